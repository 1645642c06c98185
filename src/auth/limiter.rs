//! How often: requests of a key, and wrong keys of an address. Pure but for the time, which the caller says.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// Addresses that are counted by themselves; more share one count.
const ADDRESSES_MAX: usize = 10_000;

/// The requests that a key has left: full at first, filled up evenly.
#[derive(Debug)]
pub(super) struct Bucket {
    per_minute: u32,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(per_minute: u32, now: Instant) -> Bucket {
        Bucket { per_minute, left: f64::from(per_minute), at: now }
    }

    /// # Errors
    /// After how long there is one again.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let a_second = f64::from(self.per_minute.max(1)) / 60.0;
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * a_second).min(f64::from(self.per_minute));
        self.at = self.at.max(now);
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / a_second))
    }
}

/// What to do with one who came with a wrong key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Guess {
    Few,
    /// The first too many of this minute.
    First(Duration),
    Many(Duration),
}

/// Wrong keys of the last minute, by address.
#[derive(Debug)]
pub(super) struct Guesses {
    most: u32,
    addresses_max: usize,
    counts: HashMap<IpAddr, Count>,
    /// Of those that found no place.
    others: Count,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    since: Instant,
    guesses: u32,
}

impl Count {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= MINUTE
    }
}

impl Guesses {
    pub(super) fn new(most: u32, now: Instant) -> Guesses {
        let others = Count { since: now, guesses: 0 };
        Guesses { most, addresses_max: ADDRESSES_MAX, counts: HashMap::new(), others }
    }

    /// Counts a wrong key from `address`.
    pub(super) fn count(&mut self, address: IpAddr, now: Instant) -> Guess {
        let network = network_of(address);
        if self.counts.len() >= self.addresses_max && !self.counts.contains_key(&network) {
            self.counts.retain(|_, count| !count.is_old(now));
        }
        let fresh = Count { since: now, guesses: 0 };
        // Where somebody has that many addresses, nobody's count is forgotten for a new one.
        let count = match self.counts.len() >= self.addresses_max && !self.counts.contains_key(&network) {
            true => &mut self.others,
            false => self.counts.entry(network).or_insert(fresh),
        };
        if count.is_old(now) {
            *count = fresh;
        }
        count.guesses = count.guesses.saturating_add(1);
        let left = MINUTE.saturating_sub(now.saturating_duration_since(count.since));
        match count.guesses {
            guesses if guesses <= self.most => Guess::Few,
            guesses if guesses == self.most.saturating_add(1) => Guess::First(left),
            _ => Guess::Many(left),
        }
    }
}

/// Whoever has one IPv6 address has the 2⁶⁴ beside it.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_has_its_requests_of_a_minute_and_they_come_back_evenly() {
        let start = Instant::now();
        let mut bucket = Bucket::new(30, start);
        assert!((0..30).all(|_| bucket.take(start).is_ok()));
        let wait = bucket.take(start).unwrap_err();
        assert!((1.9..=2.1).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(bucket.take(start + Duration::from_millis(2001)).is_ok());
        assert!(bucket.take(start + Duration::from_millis(2002)).is_err());
        // Never more than those of a minute, however long nobody called.
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..40).filter(|_| bucket.take(later).is_ok()).count(), 30);
        // A clock that stands back gives nothing.
        assert!(bucket.take(start).is_err());
    }

    #[test]
    fn f82_wrong_keys_of_an_address_are_counted_by_the_minute() {
        let start = Instant::now();
        let mut guesses = Guesses::new(2, start);
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        assert_eq!([guesses.count(one, start), guesses.count(one, start)], [Guess::Few, Guess::Few]);
        assert_eq!(guesses.count(one, start), Guess::First(MINUTE));
        let later = start + Duration::from_secs(20);
        assert_eq!(guesses.count(one, later), Guess::Many(Duration::from_secs(40)));
        assert_eq!(guesses.count(other, later), Guess::Few);
        assert_eq!(guesses.count(one, start + MINUTE), Guess::Few);
    }

    #[test]
    fn addresses_of_one_network_are_one() {
        let start = Instant::now();
        let mut guesses = Guesses::new(1, start);
        for (text, expected) in [
            ("2001:db8::1", Guess::Few),
            ("2001:db8::ffff:2", Guess::First(MINUTE)),
            ("2001:db8:0:1::1", Guess::Few),
            ("10.0.0.1", Guess::Few),
            ("::ffff:10.0.0.1", Guess::First(MINUTE)),
        ] {
            assert_eq!(guesses.count(address(text), start), expected, "{text}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_forgets_nobody_for_a_new_one() {
        let start = Instant::now();
        let mut guesses = Guesses { addresses_max: 2, ..Guesses::new(1, start) };
        let all: Vec<_> = (1..=4).map(|last| address(&format!("10.0.0.{last}"))).collect();
        let counted: Vec<_> = all.iter().map(|address| guesses.count(*address, start)).collect();
        assert_eq!(counted, [Guess::Few, Guess::Few, Guess::Few, Guess::First(MINUTE)]);
        assert_eq!(guesses.count(all[0], start), Guess::First(MINUTE));
        assert_eq!(guesses.counts.len(), 2);
        assert_eq!(guesses.count(all[3], start + MINUTE), Guess::Few);
    }
}

//! A breaker against those whose inputs spoil the runs that others share: for a while they share runs with nobody else.
//!
//! `Table` is pure: the caller says the time. Invariants: only a failed run that a request of somebody else was right in counts;
//! whoever is kept apart comes back [`WINDOW`] after the offence that brought it there; no more than [`SENDERS_MAX`] are counted,
//! and where nobody is kept apart that is told by one relaxed load. Clients that are one
//! sender, as those behind one proxy without keys, are nobody else to each other. Knows no key and no connection: a [`Sender`] is made by
//! a door.

use crate::telemetry::LineRate;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Spoiled runs within [`WINDOW`] after which a sender is kept apart.
const OFFENCES: usize = 3;
/// How long an offence counts, and how long a sender is kept apart.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Senders that are counted. Where there are more, those are forgotten whose last offence is the oldest.
const SENDERS_MAX: usize = 256;
/// Lines of the log that name one, of a model in a second.
const LINES: u32 = 2;

/// Who sent a request, as far as it matters with whom it shares a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    /// The bearer of the key of this number.
    Key(u64),
    /// Somebody without a key, by address; of IPv6 by network.
    Address(IpAddr),
    /// Whoever left jobs: they have nobody who waits for them.
    Jobs,
}

impl Sender {
    /// The bearer of the key of this number, else whoever is at `address`.
    pub fn of(key: Option<u64>, address: Option<IpAddr>) -> Option<Sender> {
        key.map(Sender::Key).or(address.map(Sender::Address))
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Ten digits, as a key's id has.
            Sender::Key(number) => write!(f, "key {number:010x}"),
            Sender::Address(address) => write!(f, "address {address}"),
            Sender::Jobs => f.write_str("jobs"),
        }
    }
}

/// How a request of a failed run fared in a run of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fared {
    Well,
    /// The graph refused its input.
    Badly,
    /// Nothing is known of its input: it had left, was late, or the device failed.
    Unknown,
}

/// Whose inputs spoiled a run for somebody else, each once. Where nobody fared well it is the model that fails.
pub(super) fn culprits(fared: &[(Option<Sender>, Fared)]) -> Vec<Sender> {
    let of = |wanted: Fared| fared.iter().filter(move |(_, fared)| *fared == wanted).map(|(sender, _)| *sender);
    let has_mates = |sender: Sender| of(Fared::Well).any(|mate| mate != Some(sender));
    let mut culprits: Vec<Sender> = of(Fared::Badly).flatten().filter(|sender| has_mates(*sender)).collect();
    culprits.sort_unstable();
    culprits.dedup();
    culprits
}

/// What is known of those who spoil a model's runs.
pub(super) struct Offenders {
    /// Whether anybody may be kept apart; changed under the lock.
    is_any: AtomicBool,
    /// A std mutex: held for a look.
    table: Mutex<Table>,
    /// Of the log. A std mutex, as the table's.
    lines: Mutex<LineRate>,
}

impl Default for Offenders {
    fn default() -> Offenders {
        let lines = Mutex::new(LineRate::new(LINES));
        Offenders { is_any: AtomicBool::new(false), table: Mutex::default(), lines }
    }
}

impl Offenders {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an offence; whether it is the one that sets its sender apart.
    pub(super) fn offended(&self, sender: Sender, now: Instant) -> bool {
        let mut table = self.table();
        let is_set_apart = table.offended(sender, now);
        if is_set_apart {
            self.is_any.store(true, Ordering::Relaxed);
        }
        is_set_apart
    }

    /// Whether the log is told of one more at `now`, and then how many it was not told of before.
    pub(super) fn line(&self, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = lines.left_out(now.into_std());
        lines.lets_through(now.into_std()).then_some(left_out)
    }

    /// Those who are kept apart at `now`.
    pub(super) fn apart(&self, now: Instant) -> Apart {
        if !self.is_any.load(Ordering::Relaxed) {
            return Apart::default();
        }
        let table = self.table();
        let apart = table.apart(now);
        if apart.0.is_empty() {
            self.is_any.store(false, Ordering::Relaxed);
        }
        apart
    }
}

/// Senders who share runs with nobody else; sorted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Apart(Vec<Sender>);

impl Apart {
    /// `sender`, where it is one of them.
    pub(super) fn only(&self, sender: Option<Sender>) -> Option<Sender> {
        sender.filter(|sender| self.0.binary_search(sender).is_ok())
    }
}

#[derive(Debug, Default)]
struct Table(Vec<Offender>);

#[derive(Debug)]
struct Offender {
    sender: Sender,
    /// Within the window, oldest first; at least one, and no more than [`OFFENCES`].
    offences: Vec<Instant>,
    apart_until: Option<Instant>,
}

impl Offender {
    fn is_apart(&self, now: Instant) -> bool {
        self.apart_until.is_some_and(|until| now < until)
    }

    fn last(&self) -> Option<Instant> {
        self.offences.last().copied()
    }
}

impl Table {
    fn offended(&mut self, sender: Sender, now: Instant) -> bool {
        let place = match self.0.iter().position(|offender| offender.sender == sender) {
            Some(place) => place,
            None => self.add(sender),
        };
        let Some(offender) = self.0.get_mut(place) else { return false };
        // Runs that were under way when it was set apart.
        if offender.is_apart(now) {
            return false;
        }
        offender.apart_until = None;
        offender.offences.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        offender.offences.push(now);
        if offender.offences.len() < OFFENCES {
            return false;
        }
        // Who comes back has as many offences left as anybody.
        offender.offences = vec![now];
        offender.apart_until = now.checked_add(WINDOW);
        true
    }

    /// Its place.
    fn add(&mut self, sender: Sender) -> usize {
        let offender = Offender { sender, offences: Vec::new(), apart_until: None };
        let oldest = (0..).zip(&self.0).min_by_key(|(_, offender)| offender.last()).map(|(place, _)| place);
        match oldest.filter(|_| self.0.len() >= SENDERS_MAX) {
            Some(place) => {
                self.0.splice(place..=place, [offender]);
                place
            }
            None => {
                self.0.push(offender);
                self.0.len() - 1
            }
        }
    }

    fn apart(&self, now: Instant) -> Apart {
        let apart = self.0.iter().filter(|offender| offender.is_apart(now));
        let mut apart: Vec<Sender> = apart.map(|offender| offender.sender).collect();
        apart.sort_unstable();
        Apart(apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Sender = Sender::Key(1);
    const B: Sender = Sender::Key(2);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_third_offence_within_a_minute_sets_apart_for_a_minute() {
        let (offenders, start) = (Offenders::default(), Instant::now());
        let is_apart = |at| offenders.apart(start + seconds(at)).only(Some(A)).is_some();
        for (at, expected) in [(0, false), (50, false), (61, false), (100, true), (101, false)] {
            assert_eq!(offenders.offended(A, start + seconds(at)), expected, "{at}");
        }
        assert!(is_apart(100) && is_apart(159), "an offence of a run that was under way changes nothing");
        assert_eq!(offenders.apart(start + seconds(100)).only(Some(B)), None);
        assert_eq!(offenders.apart(start + seconds(100)).only(None), None);
        assert!(!is_apart(160));
        assert!(!offenders.is_any.load(Ordering::Relaxed), "the next look costs a load again");
        for (at, expected) in [(170, false), (171, false), (172, true)] {
            assert_eq!(offenders.offended(A, start + seconds(at)), expected, "{at}: as anybody");
        }
        assert!(is_apart(231) && !is_apart(232));
    }

    #[test]
    fn only_who_spoils_a_run_of_somebody_else_offends() {
        use Fared::{Badly, Unknown, Well};
        #[track_caller]
        fn check(fared: &[(Option<Sender>, Fared)], expected: &[Sender]) {
            assert_eq!(culprits(fared), expected, "{fared:?}");
        }
        check(&[(Some(A), Badly), (Some(B), Well)], &[A]);
        check(&[(Some(B), Badly), (Some(A), Badly), (Some(B), Badly), (None, Well)], &[A, B]);
        check(&[(Some(A), Badly), (Some(A), Well)], &[]);
        check(&[(Some(A), Badly), (Some(B), Badly)], &[]);
        check(&[(Some(A), Badly), (Some(B), Unknown)], &[]);
        check(&[(Some(A), Unknown), (Some(B), Well)], &[]);
        check(&[(None, Badly), (Some(B), Well)], &[]);
        check(&[(Some(A), Badly), (Some(A), Well), (Some(B), Badly), (Some(B), Well)], &[A, B]);
    }

    #[test]
    fn a_sender_is_told_by_what_the_operator_knows_it_by() {
        assert_eq!(Sender::Key(0x00ab_cdef).to_string(), "key 0000abcdef");
        assert_eq!(Sender::Address([127, 0, 0, 1].into()).to_string(), "address 127.0.0.1");
    }

    proptest! {
        /// Against the plain rule, with every offence remembered.
        #[test]
        fn offences_are_counted_apart_and_the_table_is_bounded(
            steps in proptest::collection::vec((0u64..400, 0u64..30), 1..600),
        ) {
            let (mut table, mut now) = (Table::default(), Instant::now());
            let mut plain: Vec<(u64, Vec<Instant>, Option<Instant>)> = Vec::new();
            let few = steps.iter().map(|(sender, _)| sender).collect::<std::collections::BTreeSet<_>>().len() <= SENDERS_MAX;
            for (sender, wait) in steps {
                now += seconds(wait);
                let told = table.offended(Sender::Key(sender), now);
                prop_assert!(table.0.len() <= SENDERS_MAX);
                prop_assert!(table.0.iter().all(|offender| (1..=OFFENCES).contains(&offender.offences.len())));
                if plain.iter().all(|(known, ..)| *known != sender) {
                    plain.push((sender, vec![], None));
                }
                let (_, offences, until) = plain.iter_mut().find(|(known, ..)| *known == sender).unwrap();
                let was_apart = until.is_some_and(|until| now < until);
                if !was_apart {
                    offences.push(now);
                    let recent = offences.iter().filter(|at| now - **at < WINDOW).count();
                    if recent >= OFFENCES {
                        *until = Some(now + WINDOW);
                        *offences = vec![now];
                    }
                }
                if few {
                    let apart: Vec<Sender> = {
                        let apart = plain.iter().filter(|(_, _, until)| until.is_some_and(|until| now < until));
                        let mut apart: Vec<Sender> = apart.map(|(sender, ..)| Sender::Key(*sender)).collect();
                        apart.sort_unstable();
                        apart
                    };
                    prop_assert_eq!(told, !was_apart && apart.contains(&Sender::Key(sender)));
                    prop_assert_eq!(table.apart(now), Apart(apart));
                }
            }
        }
    }
}

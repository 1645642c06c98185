//! How many lines of one kind are written: so many a second, and of the others their number. Pure: the caller says the time.

use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// The lines of one kind. Each is either let through or told of once, by [`LineRate::left_out`].
#[derive(Debug)]
pub struct LineRate {
    /// Lines of a second; 0 = all.
    most: u32,
    /// When the second began.
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl LineRate {
    pub fn new(most: u32) -> LineRate {
        LineRate { most, since: None, written: 0, left_out: 0 }
    }

    /// Whether a line is to be written now. Where it is not, it is counted among those left out.
    pub fn lets_through(&mut self, now: Instant) -> bool {
        if self.most == 0 {
            return true;
        }
        if self.is_over(now) {
            (self.since, self.written) = (Some(now), 0);
        }
        if self.written < self.most {
            self.written += 1;
            return true;
        }
        self.left_out = self.left_out.saturating_add(1);
        false
    }

    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND)
    }

    /// Lines that were left out and not told of, once their second is over; 0 where there is nothing to tell.
    pub fn left_out(&mut self, now: Instant) -> u64 {
        if self.is_over(now) { self.all_left_out() } else { 0 }
    }

    /// The same at the end, when no second is waited for.
    pub fn all_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// Whether it says no more than one that was just made would.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.left_out == 0 && self.is_over(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn so_many_lines_of_a_second_are_written_and_the_others_are_counted() {
        let (start, millis) = (Instant::now(), Duration::from_millis);
        let mut rate = LineRate::new(2);
        assert!(rate.is_idle(start));
        let written: Vec<bool> = [0, 1, 2, 999].map(|at| rate.lets_through(start + millis(at))).into();
        assert_eq!(written, [true, true, false, false]);
        assert_eq!(rate.left_out(start + millis(999)), 0, "the second is not over");
        assert!(!rate.is_idle(start + millis(1000)));
        assert_eq!((rate.left_out(start + millis(1000)), rate.left_out(start + millis(1000))), (2, 0));
        assert!(rate.is_idle(start + millis(1000)));
        assert!(rate.lets_through(start + millis(1000)), "another second");
    }

    #[test]
    fn none_is_left_out_where_all_are_wanted() {
        let (mut rate, now) = (LineRate::new(0), Instant::now());
        assert!((0..1000).all(|_| rate.lets_through(now)));
        assert_eq!(rate.all_left_out(), 0);
    }

    proptest! {
        #[test]
        fn each_line_is_written_or_told_of(most in 1u32..5, steps in proptest::collection::vec((0u64..700, any::<bool>()), 0..200)) {
            let (mut rate, start) = (LineRate::new(most), Instant::now());
            let (mut now, mut told, mut written) = (start, 0, Vec::new());
            for (wait, asks) in &steps {
                now += Duration::from_millis(*wait);
                if rate.lets_through(now) {
                    written.push(now);
                }
                if *asks {
                    told += rate.left_out(now);
                }
            }
            told += rate.all_left_out();
            prop_assert_eq!(written.len() as u64 + told, steps.len() as u64);
            // No more than the rate of two seconds lies within one.
            for from in &written {
                let within = written.iter().filter(|at| *at >= from && **at < *from + SECOND).count();
                prop_assert!(within <= 2 * most as usize);
            }
        }
    }
}

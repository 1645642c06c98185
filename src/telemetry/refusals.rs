//! The log's lines of refused requests, and ONNX Runtime's of runs that it refuses: so many a second of each reason, and of the
//! others how many they were.
//!
//! Of the process, as the log is. Invariants: a line that is not written is told of within about a second, by its reason; all are
//! counted elsewhere; no more reasons are kept apart than [`REASONS_MAX`].

use super::LineRate;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Reasons that are kept apart; others share one rate. They are words of a closed list, which is shorter.
const REASONS_MAX: usize = 128;
const OTHER: &str = "other";

#[derive(Debug)]
struct Refusals {
    /// Lines of a second for each reason; 0 = all.
    most: u32,
    rates: BTreeMap<String, LineRate>,
}

/// A std mutex: held for a look.
static REFUSALS: Mutex<Refusals> = Mutex::new(Refusals { most: 0, rates: BTreeMap::new() });

/// Whether a line on what is refused for this `reason` is to be written. Where it is not, it is told of later by
/// [`tell_left_out`].
pub fn writes_refusal(reason: &str) -> bool {
    REFUSALS.lock().unwrap_or_else(PoisonError::into_inner).writes(reason, Instant::now())
}

/// How many lines of a second are written for each reason from here on; 0 = all.
pub(super) fn limit_refusals(most: u32) {
    let mut refusals = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner);
    *refusals = Refusals { most, rates: BTreeMap::new() };
}

/// Writes a line for each reason that lines of a past second were left out of; at the end also of the current one.
pub fn tell_left_out(is_end: bool) {
    let left_out = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner).left_out(Instant::now(), is_end);
    for (code, suppressed) in left_out {
        tracing::info!(target: super::events::REFUSALS, code, suppressed, "{suppressed} more lines like it were left out: {code}");
    }
}

impl Refusals {
    fn writes(&mut self, reason: &str, now: Instant) -> bool {
        if self.most == 0 {
            return true;
        }
        let is_full = self.rates.len() >= REASONS_MAX && !self.rates.contains_key(reason);
        let reason = if is_full { OTHER } else { reason };
        self.rates.entry(reason.to_owned()).or_insert_with(|| LineRate::new(self.most)).lets_through(now)
    }

    /// The reasons that something is to be told of, with how much. Forgets those of which there is nothing more to say.
    fn left_out(&mut self, now: Instant, is_end: bool) -> Vec<(String, u64)> {
        let told = self.rates.iter_mut().map(|(reason, rate)| {
            let count = if is_end { rate.all_left_out() } else { rate.left_out(now) };
            (reason.clone(), count)
        });
        let told = told.filter(|(_, count)| *count > 0).collect();
        self.rates.retain(|_, rate| !rate.is_idle(now));
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_reason_has_lines_of_its_own_and_what_is_left_out_is_told_once() {
        let (start, millis) = (Instant::now(), Duration::from_millis);
        let mut refusals = Refusals { most: 3, rates: BTreeMap::new() };
        let written = |refusals: &mut Refusals, reason: &'static str, count: usize, at| {
            (0..count).filter(|_| refusals.writes(reason, start + millis(at))).count()
        };
        assert_eq!(written(&mut refusals, "queue_full", 10, 0), 3);
        assert_eq!(written(&mut refusals, "unauthorized", 2, 10), 2);
        assert!(refusals.left_out(start + millis(500), false).is_empty());
        assert_eq!(refusals.left_out(start + millis(1010), false), [("queue_full".to_owned(), 7)]);
        assert!(refusals.rates.is_empty(), "nothing more to say");
        assert_eq!(written(&mut refusals, "queue_full", 4, 1020), 3);
        assert_eq!(refusals.left_out(start + millis(1030), true), [("queue_full".to_owned(), 1)]);
    }

    #[test]
    fn the_reasons_are_bounded() {
        let (mut refusals, now) = (Refusals { most: 1, rates: BTreeMap::new() }, Instant::now());
        for index in 0..1000 {
            refusals.writes(&format!("reason-{index}"), now);
        }
        assert_eq!(refusals.rates.len(), REASONS_MAX + 1);
        let told: u64 = refusals.left_out(now, true).iter().map(|(_, count)| count).sum();
        assert_eq!(told as usize, 1000 - REASONS_MAX - 1);
    }
}

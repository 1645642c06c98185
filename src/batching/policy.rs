//! Decides which of the waiting requests an idle instance runs next, as a pure function.
//!
//! Invariants: the most urgent and oldest request is always in the batch, so none is passed over for ever; with no wait
//! allowed something is always taken; a batch holds only requests of one shape and, where they are padded, of about one
//! length; it keeps within its bounds unless its first request alone exceeds them; a request whose rows are not worth copying
//! runs alone, at once; who is kept apart shares a run with its own
//! requests alone, and nobody waits for those. Knows no clock, lock, tensor or thread.

use super::offenders::Sender;
use std::time::Duration;

/// What counts of a waiting request. Requests are given in the order in which they are to be served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate<'a> {
    /// What requests of one batch have in common; `None`: it runs alone.
    pub(super) shape: Option<&'a [usize]>,
    pub(super) rows: usize,
    /// Tokens of its longest row where rows are padded to one length, else 0.
    pub(super) length: usize,
    pub(super) bytes: usize,
    /// Whom it shares runs with alone; `None`: with all that are not kept apart.
    pub(super) apart: Option<Sender>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limits {
    pub(super) max_rows: usize,
    /// Rows that are worth no further wait.
    pub(super) preferred_rows: usize,
    /// Rows times the longest length, where lengths are padded.
    pub(super) max_tokens: usize,
    /// Inputs of one run: they are copied into one buffer.
    pub(super) max_bytes: usize,
    /// Bytes of a row, up to which copying it into that buffer costs less than a run of its own.
    pub(super) max_row_bytes: usize,
    /// How long the first request may wait for mates.
    pub(super) timeout: Duration,
}

impl Limits {
    /// The same where the device has memory for so many rows.
    pub(super) fn within(self, rows: usize) -> Limits {
        Limits { max_rows: self.max_rows.min(rows), preferred_rows: self.preferred_rows.min(rows), ..self }
    }

    fn is_worth_joining(&self, candidate: &Candidate<'_>) -> bool {
        candidate.bytes <= candidate.rows.saturating_mul(self.max_row_bytes)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decision {
    /// Nothing waits.
    Nothing,
    /// Run these, by place, ascending; the first one is place 0.
    Take(Vec<usize>),
    /// Look again when a request comes, or after this time.
    Wait(Duration),
}

/// Lengths that may share a batch differ by about a quarter, so that at most about a fifth of the work is padding.
///
/// Buckets are ⌈log₁.₂₅ length⌉; all lengths up to 8 are one bucket, for there a run's own cost outweighs its tokens.
pub(super) fn bucket(length: usize) -> u32 {
    const RATIO: f64 = 1.25;
    const SMALLEST: f64 = 8.0;
    if length as f64 <= SMALLEST {
        return 0;
    }
    // Lengths are far below 2^53, and the result is below 200.
    ((length as f64 / SMALLEST).ln() / RATIO.ln()).ceil() as u32
}

/// `waited` is how long the first candidate has waited.
pub(super) fn decide<'a>(
    mut candidates: impl Iterator<Item = Candidate<'a>>,
    limits: &Limits,
    waited: Duration,
) -> Decision {
    let Some(first) = candidates.next() else { return Decision::Nothing };
    let Some(shape) = first.shape.filter(|_| limits.is_worth_joining(&first)) else { return Decision::Take(vec![0]) };
    let first_bucket = bucket(first.length);
    let (mut rows, mut bytes, mut longest) = (first.rows, first.bytes, first.length);
    let mut places = vec![0];
    for (place, candidate) in (1..).zip(candidates) {
        if rows >= limits.max_rows {
            break;
        }
        if candidate.shape != Some(shape)
            || candidate.apart != first.apart
            || bucket(candidate.length) != first_bucket
            || !limits.is_worth_joining(&candidate)
        {
            continue;
        }
        let all_rows = rows.saturating_add(candidate.rows);
        let all_bytes = bytes.saturating_add(candidate.bytes);
        let length = longest.max(candidate.length);
        // One that does not fit is passed over now and is the first of a later batch.
        if all_rows <= limits.max_rows
            && all_bytes <= limits.max_bytes
            && (length == 0 || all_rows.saturating_mul(length) <= limits.max_tokens)
        {
            (rows, bytes, longest) = (all_rows, all_bytes, length);
            places.push(place);
        }
    }
    if rows < limits.preferred_rows.min(limits.max_rows) && waited < limits.timeout && first.apart.is_none() {
        return Decision::Wait(limits.timeout - waited);
    }
    Decision::Take(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        max_rows: 4,
        preferred_rows: 4,
        max_tokens: 100,
        max_bytes: 1000,
        max_row_bytes: usize::MAX,
        timeout: Duration::ZERO,
    };

    fn one(shape: &'static [usize], rows: usize, length: usize) -> Candidate<'static> {
        Candidate { shape: Some(shape), rows, length, bytes: 10, apart: None }
    }

    #[track_caller]
    fn check(candidates: &[Candidate<'_>], limits: Limits, waited: u64, expected: Decision) {
        assert_eq!(decide(candidates.iter().copied(), &limits, Duration::from_millis(waited)), expected);
    }

    #[test]
    fn an_idle_instance_takes_what_fits_together() {
        let take = |places: &[usize]| Decision::Take(places.to_vec());
        let (a, b) = (&[1usize, 2][..], &[3usize][..]);
        check(&[], LIMITS, 0, Decision::Nothing);
        check(&[one(a, 1, 0)], LIMITS, 0, take(&[0]));
        check(&[one(a, 1, 0), one(b, 1, 0), one(a, 1, 0)], LIMITS, 0, take(&[0, 2]));
        // The third does not fit, the fourth does.
        check(&[one(a, 1, 0), one(a, 2, 0), one(a, 2, 0), one(a, 1, 0)], LIMITS, 0, take(&[0, 1, 3]));
        check(&[one(a, 9, 0), one(a, 1, 0)], LIMITS, 0, take(&[0]));
        let alone = Candidate { shape: None, ..one(a, 1, 0) };
        check(&[alone, one(a, 1, 0)], LIMITS, 0, take(&[0]));
        check(&[one(a, 1, 0), alone], LIMITS, 0, take(&[0]));
        let heavy = Candidate { bytes: 995, ..one(a, 1, 0) };
        check(&[heavy, one(a, 1, 0)], LIMITS, 0, take(&[0]));
    }

    #[test]
    fn lengths_join_within_buckets_and_the_token_budget() {
        let a = &[1usize][..];
        let take = |places: &[usize]| Decision::Take(places.to_vec());
        check(&[one(a, 1, 3), one(a, 1, 8), one(a, 1, 12)], LIMITS, 0, take(&[0, 1]));
        check(
            &[one(a, 1, 30), one(a, 1, 31), one(a, 1, 29), one(a, 1, 28), one(a, 1, 28)],
            LIMITS,
            0,
            take(&[0, 2, 3]),
        );
        check(&[one(a, 1, 400), one(a, 1, 400)], LIMITS, 0, take(&[0]));
        assert!((1..5000).all(|length| bucket(length) <= bucket(length + 1)));
        // Within a bucket the shortest is padded by a quarter at most.
        for length in 9..5000 {
            let longest = (length..).take_while(|other| bucket(*other) == bucket(length)).last().unwrap();
            assert!(longest as f64 <= length as f64 * 1.25 + 1.0, "{length} {longest}");
        }
    }

    #[test]
    fn a_batch_that_is_not_full_waits_only_where_it_may() {
        let a = &[1usize][..];
        let limits = Limits { preferred_rows: 3, timeout: Duration::from_millis(10), ..LIMITS };
        check(&[one(a, 1, 0)], limits, 4, Decision::Wait(Duration::from_millis(6)));
        check(&[one(a, 1, 0)], limits, 10, Decision::Take(vec![0]));
        check(&[one(a, 1, 0), one(a, 2, 0)], limits, 0, Decision::Take(vec![0, 1]));
    }

    #[test]
    fn who_is_kept_apart_shares_runs_with_its_own_requests_and_waits_for_nobody() {
        let limits = Limits { timeout: Duration::from_millis(10), ..LIMITS };
        let take = |places: &[usize]| Decision::Take(places.to_vec());
        let of = |sender: u64| Candidate { apart: (sender > 0).then_some(Sender::Key(sender)), ..one(&[1], 1, 0) };
        check(&[of(1), of(0), of(1), of(2)], limits, 0, take(&[0, 2]));
        check(&[of(0), of(1), of(2)], limits, 0, Decision::Wait(Duration::from_millis(10)));
        check(&[of(0), of(1), of(0), of(2), of(0), of(0)], limits, 0, take(&[0, 2, 4, 5]));
    }

    #[test]
    fn heavy_rows_run_alone_at_once_and_hold_up_nobody() {
        let a = &[1usize][..];
        let limits = Limits { max_row_bytes: 100, timeout: Duration::from_millis(10), ..LIMITS };
        let of = |rows, bytes| Candidate { bytes, ..one(a, rows, 0) };
        let take = |places: &[usize]| Decision::Take(places.to_vec());
        check(&[of(1, 101), of(1, 10)], limits, 0, take(&[0]));
        check(&[of(2, 10), of(1, 101), of(2, 200)], limits, 0, take(&[0, 2]));
        // What counts is each row, not the request.
        check(&[of(2, 200), of(2, 201), of(2, 200)], limits, 0, take(&[0, 2]));
        check(&[of(3, 301)], limits, 0, take(&[0]));
    }

    prop_compose! {
        fn any_candidate()(sender in 0u64..6, shape in 0usize..4, rows in 1usize..7, length in 0usize..60, bytes in 0usize..600)
            -> (u64, Option<Vec<usize>>, usize, usize, usize) {
            (sender, (shape > 0).then(|| vec![shape]), rows, if shape == 1 { 0 } else { length + 1 }, bytes)
        }
    }

    proptest! {
        #[test]
        fn batches_keep_their_rules(
            list in proptest::collection::vec(any_candidate(), 1..40),
            max_rows in 1usize..9, preferred_rows in 1usize..12, max_tokens in 1usize..300,
            max_row_bytes in 0usize..600, timeout in 0u64..3, waited in 0u64..4, apart in 0u64..4,
        ) {
            let timeout = Duration::from_millis(timeout);
            let limits = Limits { max_rows, preferred_rows, max_tokens, max_bytes: 1000, max_row_bytes, timeout };
            let mut left: Vec<_> = list
                .iter()
                .map(|(sender, shape, rows, length, bytes)| Candidate {
                    shape: shape.as_deref(), rows: *rows, length: *length, bytes: *bytes,
                    apart: Some(Sender::Key(*sender)).filter(|_| *sender < apart),
                })
                .collect();
            let mut waited = Duration::from_millis(waited);
            // Emptied to the end: nobody is passed over for ever.
            while let Some(&first) = left.first() {
                match decide(left.iter().copied(), &limits, waited) {
                    Decision::Nothing => prop_assert!(false, "something waits"),
                    Decision::Wait(time) => {
                        prop_assert!(waited < timeout && time == timeout - waited);
                        prop_assert!(first.shape.is_some() && first.apart.is_none() && first.rows < max_rows.min(preferred_rows));
                        waited = timeout;
                    }
                    Decision::Take(places) => {
                        prop_assert_eq!(places[0], 0);
                        prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
                        let taken: Vec<_> = places.iter().map(|place| left[*place]).collect();
                        if taken.len() > 1 {
                            prop_assert!(taken.iter().all(|one| one.shape.is_some() && one.shape == first.shape));
                            prop_assert!(taken.iter().all(|one| one.apart == first.apart));
                            prop_assert!(taken.iter().all(|one| bucket(one.length) == bucket(first.length)));
                            let rows: usize = taken.iter().map(|one| one.rows).sum();
                            let longest = taken.iter().map(|one| one.length).max().unwrap();
                            prop_assert!(rows <= max_rows);
                            prop_assert!(longest == 0 || rows * longest <= max_tokens);
                            prop_assert!(taken.iter().map(|one| one.bytes).sum::<usize>() <= 1000);
                            prop_assert!(taken.iter().all(|one| one.bytes <= one.rows * max_row_bytes));
                        }
                        let mut place = 0;
                        left.retain(|_| { place += 1; !places.contains(&(place - 1)) });
                    }
                }
            }
        }
    }
}

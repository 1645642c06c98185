//! Measures at load how far joining pays: beyond how many rows at once more of them gain nothing, and up to how many bytes
//! copying a row into a batch costs less than a run of its own.
//!
//! [`decide`] is a pure function of the measured times. Invariants: a bound is one of the measured numbers of rows, and
//! stands only where larger batches were measured and gained nothing; measuring ends soon after [`BUDGET`], unless one row
//! alone takes longer, and at once when the load is stopped; it leaves the session warm and its working memory as small as a
//! row needs. Knows no settings: what the user set is respected by whoever asks.

use super::plan::Plan;
use super::probe::{LENGTHS, MakeInputs};
use crate::runtime::{Input, Interrupt, Session};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What all runs take together, making up their inputs counted. ResNet-18 on two threads needs 0.53 s for up to 8 rows.
pub const BUDGET: Duration = Duration::from_millis(600);
/// Further runs of all sizes at most, while there is time; the best run of a size counts.
const ROUNDS: usize = 5;
/// Inputs of one run. Those of all sizes are held together, which is twice as much at most.
const INPUT_BYTES_MAX: usize = 32 << 20;
/// Tokens of a row where rows are padded: an ordinary sentence.
const SENTENCE: usize = 32;
/// Below this, handing requests over costs more than what is bounded here: all that wait join.
const SHORT_RUN: Duration = Duration::from_millis(2);
/// Times a row this near to each other are the same.
const SAME: f64 = 0.02;
/// How much slower half of the runs of one row may be than the best of them, and a row in a larger batch than the best.
/// Other work came in between where they are slower still.
const STEADY: f64 = 1.25;
/// Bytes a second of copying inputs into one buffer and cutting outputs out of it, first touch of the memory counted.
pub(super) const COPIED_PER_SECOND: f64 = 4e9;
/// What joining saves at least, as a part of a row's run: times that are nearer cannot be told apart.
const SAVED_MIN: f64 = 0.03;
/// Rows up to this are always worth their copy: it takes 16 µs, less than waking a thread.
const ROW_BYTES_MIN: usize = 64 << 10;

/// How far joining pays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worth {
    /// Rows of one run beyond which more gain nothing; `None`: no such number is known.
    pub rows: Option<usize>,
    /// Bytes of a row up to which it is worth joining to others; `None`: not known.
    pub row_bytes: Option<usize>,
}

/// Rows of one run and the least time that it took.
pub type Point = (usize, Duration);

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Measured {
    /// Ascending; empty where nothing could be measured.
    pub curve: Vec<Point>,
    /// Tokens of each row, where rows are padded to one length.
    pub row_tokens: Option<usize>,
    /// Input bytes of each row.
    pub row_bytes: usize,
}

/// How far joining pays, from the times of runs of 1, 2, 4, … rows.
pub fn decide(curve: &[Point]) -> Worth {
    let time = |rows: usize| curve.iter().find(|point| point.0 == rows).map(|point| point.1.as_secs_f64());
    Worth { rows: enough_rows(curve), row_bytes: time(1).zip(time(2)).map(|(one, two)| worth_copying(one, two)) }
}

/// The smallest number of rows that is about as fast a row as the fastest. It is no bound where nothing larger was measured,
/// which may be faster still, or only what is so much slower that other work must have spoilt it.
fn enough_rows(curve: &[Point]) -> Option<usize> {
    if is_short(curve) {
        return None;
    }
    let best = fastest(curve)?;
    let place = curve.iter().position(|point| per_row(point) <= best * (1.0 + SAME))?;
    let (larger, bound) = (curve.get(place + 1..)?, curve.get(place)?);
    larger.iter().any(|point| per_row(point) <= best * STEADY).then_some(bound.0)
}

/// `one` and `two` are the seconds that runs of one and of two rows take. Joining saves a row the fixed part of its run at
/// most.
fn worth_copying(one: f64, two: f64) -> usize {
    let fixed = (2.0 * one - two).max(0.0);
    let bytes = COPIED_PER_SECOND * fixed.max(SAVED_MIN * one);
    // Numbers out of range become the nearest in it.
    (bytes as usize).max(ROW_BYTES_MIN)
}

fn is_short(curve: &[Point]) -> bool {
    curve.first().is_some_and(|(rows, time)| *rows == 1 && *time < SHORT_RUN)
}

/// Whether the last two sizes gained nothing over those before.
fn is_flat(curve: &[Point]) -> bool {
    let (before, last) = curve.split_at(curve.len().saturating_sub(2));
    fastest(before).is_some_and(|best| last.iter().all(|point| per_row(point) >= best * (1.0 - SAME)))
}

/// Whether runs of one row, before, between and after those of more, took about the same time.
fn is_steady(times: &mut [Duration]) -> bool {
    times.sort_unstable();
    let (best, median) = (times.first(), times.get(times.len() / 2));
    best.zip(median).is_none_or(|(best, median)| median.as_secs_f64() <= best.as_secs_f64() * STEADY)
}

/// The least seconds a row.
fn fastest(curve: &[Point]) -> Option<f64> {
    curve.iter().map(per_row).min_by(f64::total_cmp)
}

fn per_row((rows, time): &Point) -> f64 {
    time.as_secs_f64() / (*rows).max(1) as f64
}

/// Measures a model whose requests join in rows, with made-up rows up to `most` at once. Blocks.
pub fn measure(
    session: &mut dyn Session,
    plan: &Plan,
    make: &MakeInputs<'_>,
    most: usize,
    interrupt: &Interrupt,
) -> Measured {
    // Loads run two at a time; two that measure would both measure each other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Models that take no sentence get what they were tried out with.
    let lengths: &[usize] = if plan.padding.is_some() { &[SENTENCE, LENGTHS.1] } else { &[LENGTHS.1] };
    let started = Instant::now();
    for &length in lengths {
        let mut trials = Trials { session: &mut *session, make, interrupt, plan, length, started, row_bytes: 0 };
        let Some(curve) = trials.curve(most) else { continue };
        return Measured { curve, row_tokens: plan.padding.as_ref().map(|_| length), row_bytes: trials.row_bytes };
    }
    Measured::default()
}

struct Trials<'a> {
    session: &'a mut dyn Session,
    make: &'a MakeInputs<'a>,
    interrupt: &'a Interrupt,
    plan: &'a Plan,
    length: usize,
    started: Instant,
    row_bytes: usize,
}

/// One number of rows.
struct Size {
    inputs: Vec<Input>,
    best: Point,
}

impl Trials<'_> {
    /// Runs of more and more rows, until more are of no use or the time is over; `None` where not even one row runs.
    fn curve(&mut self, most: usize) -> Option<Vec<Point>> {
        let row = (self.make)(1, self.length, 1)?;
        self.row_bytes = self.plan.measure(&row).bytes;
        let (first, mut cost) = self.first_runs(1, row)?;
        let mut curve = vec![first.best];
        let mut sizes = vec![first];
        let doubled = std::iter::successors(Some(2usize), |rows| rows.checked_mul(2)).take_while(|rows| *rows < most);
        for rows in doubled.chain([most].into_iter().filter(|most| *most > 1)) {
            let fits = self.has_time(2 * cost) && self.row_bytes.saturating_mul(rows) <= INPUT_BYTES_MAX;
            if !fits || is_flat(&curve) || (rows > 2 && is_short(&curve)) {
                break;
            }
            let begun = Instant::now();
            let Some(inputs) = (self.make)(rows, self.length, 1) else { break };
            let made = begun.elapsed();
            let Some((size, time)) = self.first_runs(rows, inputs) else { break };
            cost = made + time;
            curve.push(size.best);
            sizes.push(size);
        }
        let mut times_of_a_row = self.more_rounds(&mut sizes);
        if sizes.len() > 2 {
            times_of_a_row.extend(self.settle(sizes.first()?));
            if !is_steady(&mut times_of_a_row) {
                return Some(Vec::new());
            }
        }
        Some(sizes.iter().map(|size| size.best).collect())
    }

    /// A run that makes room in the arena, its time, and one that counts. Where there is no time for a second, the first
    /// counts: it is a little too slow, which bounds a batch that might have gained a little.
    fn first_runs(&mut self, rows: usize, inputs: Vec<Input>) -> Option<(Size, Duration)> {
        let first = self.run(&inputs)?;
        let time = if self.has_time(first) { self.run(&inputs)? } else { first };
        Some((Size { inputs, best: (rows, time) }, first))
    }

    /// Runs all sizes again, as often as there is time for: what else the machine does for a moment is not to spoil one of
    /// them alone. Gives the times of the smallest, that of its first run included.
    fn more_rounds(&mut self, sizes: &mut [Size]) -> Vec<Duration> {
        let mut smallest: Vec<Duration> = sizes.first().map(|size| size.best.1).into_iter().collect();
        for _ in 0..ROUNDS {
            if !self.has_time(sizes.iter().map(|size| size.best.1).sum()) {
                break;
            }
            for (place, size) in sizes.iter_mut().enumerate() {
                let Some(time) = self.run(&size.inputs) else { return smallest };
                size.best.1 = size.best.1.min(time);
                smallest.extend((place == 0).then_some(time));
            }
        }
        smallest
    }

    /// Runs a row for its time. Then gives back what larger runs took, and runs it once more, so that the first request
    /// finds its room again.
    fn settle(&mut self, row: &Size) -> Option<Duration> {
        let time = self.run(&row.inputs);
        if let Some(memory) = self.session.working_memory() {
            memory.shrink();
            self.run(&row.inputs);
        }
        time
    }

    fn has_time(&self, time: Duration) -> bool {
        self.started.elapsed() + time <= BUDGET && !self.interrupt.is_fired()
    }

    fn run(&mut self, inputs: &[Input]) -> Option<Duration> {
        let all: Vec<usize> = (0..self.session.outputs().len()).collect();
        let begun = Instant::now();
        let outputs = self.session.run(inputs, &all, self.interrupt).ok()?;
        let time = begun.elapsed();
        std::hint::black_box(outputs);
        Some(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Milliseconds of runs of 1, 2, 4, … rows.
    fn curve(millis: &[f64]) -> Vec<Point> {
        (0..).zip(millis).map(|(doubled, millis)| (1 << doubled, Duration::from_secs_f64(millis / 1e3))).collect()
    }

    #[test]
    fn rows_are_bounded_where_more_gain_nothing() {
        #[track_caller]
        fn check(millis: &[f64], expected: Option<usize>) {
            assert_eq!(decide(&curve(millis)).rows, expected, "{millis:?}");
        }
        // ResNet-18 on two threads, to the end and as far as the budget reaches.
        check(&[20.4, 36.4, 69.4, 141.0, 276.0], Some(4));
        check(&[20.4, 36.4, 69.4, 141.0], Some(4));
        // Cut before it flattened.
        check(&[20.4, 36.4, 69.4], None);
        check(&[200.0], None);
        check(&[], None);
        // Each row costs the same, and within the noise.
        check(&[10.0, 20.0, 40.0], Some(1));
        check(&[10.0, 19.9, 39.5], Some(1));
        // Each doubling pays.
        check(&[10.0, 12.0, 16.0, 24.0, 40.0], None);
        // Two rows share what one row leaves unused, eight fall out of the cache.
        check(&[10.0, 12.0, 23.8, 60.0], Some(2));
        // Spoilt in the middle.
        check(&[20.0, 38.0, 100.0, 139.0], None);
        check(&[20.0, 38.0, 100.0, 139.0, 279.0], Some(8));
        check(&[20.0, 34.0, 100.0], None);
        // Hand-overs cost more than the runs.
        check(&[0.034, 0.066, 0.13], None);
        check(&[1.9, 3.8, 7.6], None);
    }

    #[test]
    fn copying_is_weighed_against_what_joining_saves() {
        #[track_caller]
        fn check(millis: &[f64], expected: Option<usize>) {
            let row_bytes = decide(&curve(millis)).row_bytes;
            let near = |(got, expected): (usize, usize)| got.abs_diff(expected) <= expected / 1000;
            assert!(row_bytes == expected || row_bytes.zip(expected).is_some_and(near), "{millis:?}: {row_bytes:?}");
        }
        check(&[20.4, 36.4, 69.4], Some(17_600_000));
        // A run that copies its input alone.
        check(&[0.034, 0.066], Some(64 << 10));
        // No fixed part: three in a hundred of a row.
        check(&[10.0, 20.0], Some(1_200_000));
        check(&[10.0, 25.0], Some(1_200_000));
        check(&[10.0], None);
        check(&[], None);
    }

    #[test]
    fn measuring_stops_where_two_doublings_gained_nothing() {
        assert!(is_flat(&curve(&[10.0, 20.0, 40.0])));
        assert!(is_flat(&curve(&[10.0, 12.0, 24.0, 47.8])));
        assert!(!is_flat(&curve(&[10.0, 20.0])));
        assert!(!is_flat(&curve(&[10.0, 20.0, 30.0])));
        // Little by little it pays.
        assert!(!is_flat(&curve(&[10.0, 19.7, 38.8])));
        assert!(!is_flat(&[]));
    }

    #[test]
    fn what_other_work_spoilt_does_not_count() {
        #[track_caller]
        fn check(millis: &[u64], expected: bool) {
            let mut times: Vec<Duration> = millis.iter().copied().map(Duration::from_millis).collect();
            assert_eq!(is_steady(&mut times), expected, "{millis:?}");
        }
        check(&[20, 21], true);
        check(&[20, 31], false);
        check(&[31, 20], false);
        // One slow run of many is an accident.
        check(&[20, 40, 21, 22, 20], true);
        check(&[20, 40, 39, 22, 41], false);
        check(&[], true);
    }

    proptest! {
        #[test]
        fn a_bound_is_a_measured_number_of_rows_below_the_largest(
            curve in proptest::collection::vec((0usize..1000, any::<u64>()), 0..8),
        ) {
            let curve: Vec<Point> = curve.into_iter().map(|(rows, nanos)| (rows, Duration::from_nanos(nanos))).collect();
            is_flat(&curve);
            let worth = decide(&curve);
            let before_last = curve.split_last().map(|(_, before)| before).unwrap_or_default();
            prop_assert!(worth.rows.is_none_or(|rows| before_last.iter().any(|point| point.0 == rows)));
            prop_assert!(worth.row_bytes.is_none_or(|bytes| bytes >= ROW_BYTES_MIN));
        }
    }
}

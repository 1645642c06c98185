//! Keeps the runs of an instance to one number of rows where changing it costs more than the runs do, and fills them up to it.
//!
//! ONNX Runtime plans every convolution on a GPU anew when its shape is not that of the run before, and keeps no plan of an
//! earlier shape (since 1.20; <https://github.com/microsoft/onnxruntime/issues/23006>). A ResNet-50 whose run takes 3 ms on an
//! H100 pays 150 ms for it, so batches that are now of 3 rows and now of 5 are fifty times as slow as those that stay at 8.
//!
//! [`Steady`] is a pure machine over measured times. For each number of rows that was measured it adds up what the runs would
//! have saved with it; when one has saved as much as the change to it costs, it changes. By that no sequence of requests takes
//! much more than twice what it would with the one number of rows that suits it best. Knows no queue, tensor or thread.

use super::plan::Plan;
use super::probe::{LENGTHS, MakeInputs};
use super::worth::{COPIED_PER_SECOND, Point};
use crate::runtime::{Input, Interrupt, Session};
use std::time::{Duration, Instant};

/// What all runs of a measurement take together: nine changes, of a quarter of a second each for large graphs.
const BUDGET: Duration = Duration::from_secs(10);
/// Input bytes of one run.
const INPUT_BYTES_MAX: usize = 128 << 20;
/// A change counts where it takes longer than so many runs of one row.
const RUNS_MIN: f64 = 2.0;
/// And longer than this: below, other work of the machine looks the same.
const CHANGE_MIN: Duration = Duration::from_millis(2);

/// Numbers of rows that runs are kept to, and what that is told from.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Steps {
    /// Rows and the least time of a run, ascending; at least two.
    pub curve: Vec<Point>,
    /// What a run takes longer that has another number of rows than the one before.
    pub change: Duration,
    /// Input bytes of a row: what is joined or filled up is copied.
    pub row_bytes: usize,
}

/// Measures a model whose requests join in rows, with made-up rows up to `most` at once; `None` where a change costs nothing, or
/// nothing could be measured. The session's last run is of one row. Blocks.
pub fn measure(
    session: &mut dyn Session,
    plan: &Plan,
    make: &MakeInputs<'_>,
    most: usize,
    interrupt: &Interrupt,
) -> Option<Steps> {
    let started = Instant::now();
    let all: Vec<usize> = (0..session.outputs().len()).collect();
    let mut run = |inputs: &[Input]| -> Option<Duration> {
        if interrupt.is_fired() || started.elapsed() > BUDGET {
            return None;
        }
        let begun = Instant::now();
        std::hint::black_box(session.run(inputs, &all, interrupt).ok()?);
        Some(begun.elapsed())
    };
    let made = |rows| make(rows, LENGTHS.1, 1);
    let (one, two) = (made(1)?, made(2)?);
    // The first runs make room in the arena as well; each of the next two is a change and nothing else.
    run(&one)?;
    run(&two)?;
    let changed = [run(&one)?, run(&two)?];
    let best =
        |run: &mut dyn FnMut(&[Input]) -> Option<Duration>, inputs: &[Input]| Some(run(inputs)?.min(run(inputs)?));
    let of_two = best(&mut run, &two)?;
    run(&one)?;
    let of_one = best(&mut run, &one)?;
    let change = changed[0].saturating_sub(of_one).min(changed[1].saturating_sub(of_two));
    if change < CHANGE_MIN || change.as_secs_f64() < RUNS_MIN * of_one.as_secs_f64() {
        return None;
    }
    let mut curve = vec![(1, of_one), (2, of_two)];
    let row_bytes = plan.measure(&one).bytes;
    let doubled = std::iter::successors(Some(4usize), |rows| rows.checked_mul(2)).take_while(|rows| *rows < most);
    for rows in doubled.chain((most > 2).then_some(most)) {
        if row_bytes.saturating_mul(rows) > INPUT_BYTES_MAX {
            break;
        }
        let Some(inputs) = made(rows) else { break };
        // The change, then the run.
        let Some(time) = run(&inputs).and_then(|_| best(&mut run, &inputs)) else { break };
        curve.push((rows, time));
    }
    // What a first request is like.
    run(&one);
    Some(Steps { curve, change, row_bytes })
}

impl Steps {
    fn largest(&self) -> usize {
        self.curve.last().map_or(0, |point| point.0)
    }

    /// Seconds of a run, its inputs copied but where one request has just its rows, as the first with `least` may.
    fn cost(&self, (rows, time): Point, least: usize) -> f64 {
        let copied = if rows == least { 0 } else { rows.saturating_mul(self.row_bytes) };
        time.as_secs_f64() + copied as f64 / COPIED_PER_SECOND
    }
}

/// Where one instance stands.
pub(super) struct Steady<'a> {
    steps: &'a Steps,
    /// Place in the curve.
    current: usize,
    /// By place: seconds that the runs since the last change, at most back to where they were best as they are, would have saved.
    saved: Vec<f64>,
}

impl Steady<'_> {
    pub(super) fn new(steps: &Steps) -> Steady<'_> {
        Steady { steps, current: 0, saved: vec![0.0; steps.curve.len()] }
    }

    /// How many rows the next run is to have, where `rows` may join, of which the first request alone has `least`; its batch shall
    /// have no more, and is filled up to as many. `None`: as it comes, because no run of at most `most` rows was measured that is
    /// large enough.
    pub(super) fn rows(&mut self, rows: usize, least: usize, most: usize) -> Option<usize> {
        let most = most.min(self.steps.largest());
        if least > most {
            return None;
        }
        let rows = rows.min(most);
        let place = self.current;
        let fits = |&(size, _): &Point| (least..=most).contains(&size);
        if self.steps.curve.get(place).is_some_and(fits) {
            self.note(rows, least);
            let (best, saved) = self.saved.iter().enumerate().max_by(|one, other| one.1.total_cmp(other.1))?;
            if *saved < self.steps.change.as_secs_f64() || !self.steps.curve.get(best).is_some_and(fits) {
                return self.steps.curve.get(place).map(|point| point.0);
            }
            self.current = best;
        } else {
            // The smallest that holds the first request: more would be a guess.
            self.current = self.steps.curve.iter().position(fits)?;
        }
        self.saved.fill(0.0);
        self.steps.curve.get(self.current).map(|point| point.0)
    }

    /// Adds up what a run of these rows, `least` of them one request's, would have saved with other numbers of rows.
    fn note(&mut self, rows: usize, least: usize) {
        let Some(&point) = self.steps.curve.get(self.current) else { return };
        let (ours, now, rows) = (self.steps.cost(point, least), rows.min(point.0) as f64, rows as f64);
        for (saved, &point) in self.saved.iter_mut().zip(&self.steps.curve) {
            let (other, theirs) = (point.0 as f64, self.steps.cost(point, least));
            // A larger run would have taken some of those that wait along, and counts with the part that is of this run.
            let cost = if other < now { theirs * (now / other).ceil() } else { theirs * now / rows.min(other) };
            // There and back, for a request that does not fit.
            let changes = if other < least as f64 { 2.0 * self.steps.change.as_secs_f64() } else { 0.0 };
            *saved = (*saved + ours - cost - changes).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ResNet-50 on an H100, in milliseconds.
    fn steps() -> Steps {
        let curve = [(1, 2.3), (2, 1.8), (4, 1.9), (8, 3.3), (16, 5.2), (32, 9.5)];
        let curve = curve.map(|(rows, millis)| (rows, Duration::from_secs_f64(millis / 1e3))).to_vec();
        Steps { curve, change: Duration::from_millis(150), row_bytes: 0 }
    }

    #[test]
    fn a_burst_is_no_reason_to_change_and_lasting_traffic_is() {
        let steps = steps();
        let mut steady = Steady::new(&steps);
        // One burst of eight in pieces of one row.
        assert!((1..=8).rev().all(|waiting| steady.rows(waiting, 1, usize::MAX) == Some(1)));
        let runs = (0..).take_while(|_| steady.rows(8, 1, usize::MAX) == Some(1)).count();
        assert!((70..90).contains(&runs), "{runs} runs of which each loses 1.9 ms, until 150 are lost");
        assert_eq!(steady.rows(8, 1, usize::MAX), Some(8));
        // It stays there through single requests for as long, and then goes down.
        let runs = (0..).take_while(|_| steady.rows(1, 1, usize::MAX) == Some(8)).count();
        assert!((80..120).contains(&runs), "{runs}");
        assert_eq!(steady.rows(1, 1, usize::MAX), Some(2), "which is faster than one row");
    }

    #[test]
    fn a_large_request_changes_at_once_and_what_nothing_holds_goes_as_it_comes() {
        let steps = steps();
        let mut steady = Steady::new(&steps);
        assert_eq!(steady.rows(5, 5, usize::MAX), Some(8));
        assert_eq!(steady.rows(1, 1, usize::MAX), Some(8));
        assert_eq!(steady.rows(40, 33, usize::MAX), None);
        assert_eq!(steady.rows(1, 1, usize::MAX), Some(8));
        // Learnt that eight do not fit.
        assert_eq!(steady.rows(8, 1, 5), Some(1));
        assert_eq!(steady.rows(8, 5, 5), None);
        assert_eq!(steady.rows(8, 3, 5), Some(4));
    }

    #[test]
    fn requests_are_not_joined_where_copying_costs_what_it_saves() {
        let steps = Steps { row_bytes: 3 * 224 * 224 * 4, ..steps() };
        let settles = |least: usize| {
            let mut steady = Steady::new(&steps);
            (0..2000).filter_map(|_| steady.rows(32, least, usize::MAX)).last()
        };
        assert_eq!(settles(1), Some(32), "a row alone pays 2.3 ms");
        assert_eq!(settles(8), Some(8), "four of them save 3.7 ms and copy for 4.8");
    }

    /// Seconds of these batches, each of which waits whole, by a rule.
    fn time(steps: &Steps, batches: &[usize], mut rule: impl FnMut(usize) -> usize) -> f64 {
        let (mut last, mut all) = (1, 0.0);
        for &batch in batches {
            let mut left = batch;
            while left > 0 {
                let size = rule(left);
                let point = steps.curve.iter().find(|point| point.0 == size).unwrap();
                all += point.1.as_secs_f64() + if size == last { 0.0 } else { steps.change.as_secs_f64() };
                (last, left) = (size, left.saturating_sub(size));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn no_traffic_takes_much_more_than_twice_what_the_best_one_size_takes(
            batches in proptest::collection::vec(1usize..40, 1..400),
        ) {
            let steps = steps();
            let mut steady = Steady::new(&steps);
            let ours = time(&steps, &batches, |rows| steady.rows(rows, 1, usize::MAX).unwrap());
            let best = steps.curve.iter().map(|point| time(&steps, &batches, |_| point.0)).min_by(f64::total_cmp).unwrap();
            prop_assert!(ours <= 2.0 * best + 2.0 * steps.change.as_secs_f64(), "{ours} s beside {best} s");
        }
    }
}

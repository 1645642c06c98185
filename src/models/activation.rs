//! How much working memory a run takes for each of its rows, measured by runs of two or more sizes, and how many rows fit what
//! memory is left.
//!
//! Where the session's arena tells, its highest mark counts. It never falls, so these must be the first runs of the session,
//! the smaller ones first. Where there is no arena it is the peak of the process, which other work is part of. Knows no
//! settings; [`Activation::rows_within`] and [`bound`] are pure.

use crate::batching::BatchSettings;
use crate::runtime::{Input, Interrupt, Session, WorkingMemory};
use crate::telemetry::process;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of the largest run: the growth of eight rows tells what one takes, also where the arena rounds blocks up.
const ROWS_MAX: usize = 8;
/// What runs beyond the second size may take together, and the second size alone.
const BUDGET: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(1));
/// Inputs of one run.
const INPUT_BYTES_MAX: u64 = 32 << 20;
/// How many times what is in use an arena takes from the system at most: it grows by doubling, and does not split every
/// block. ResNet-18 with 8 rows: 42 MB in use, 78 MB taken.
const TAKEN: u64 = 2;

/// What the working memory of a run follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// What a run takes more for each of its rows, inputs not counted.
    pub bytes_per_row: u64,
    /// What it takes whatever its rows.
    pub fixed_bytes: u64,
    pub input_bytes_per_row: u64,
    /// Rows of each run that was measured, and the most that was in use; ascending.
    pub measured: Vec<(usize, u64)>,
    /// Tokens of each row, or of as much of a sequence as the graph leaves open.
    pub length: usize,
    pub measured_by: MeasuredBy,
}

/// Whose figures they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeasuredBy {
    /// The highest mark of the session's arena.
    Arena,
    /// The peak of the process.
    Process,
}

impl MeasuredBy {
    pub fn as_str(self) -> &'static str {
        match self {
            MeasuredBy::Arena => "arena",
            MeasuredBy::Process => "process",
        }
    }
}

/// How many rows of a version fit what memory is left for its runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMemory {
    pub activation: Activation,
    /// What all instances together may take for their runs, in bytes; `None` where no limit is known.
    pub budget_bytes: Option<u64>,
    /// Most rows of a run that fit, at least 1; `None` where no limit is known.
    pub rows_max: Option<usize>,
    /// Tokens of each of them, where rows are padded to one length and a batch is bounded in tokens.
    pub row_tokens: Option<usize>,
    /// The bound of a batch before it was lowered to what fits, in rows or tokens; `None` where it was not.
    pub lowered_from: Option<usize>,
}

impl Activation {
    /// Most rows of a run where `instances` of them at a time have `budget` bytes together; at least 1, for one row is what a
    /// model is loaded for.
    pub fn rows_within(&self, budget: u64, instances: usize) -> usize {
        let each = budget / (instances as u64).max(1);
        let left = each.saturating_sub(self.fixed_bytes.saturating_mul(TAKEN));
        let row = self.bytes_per_row.saturating_mul(TAKEN).saturating_add(self.input_bytes_per_row);
        usize::try_from(left / row.max(1)).unwrap_or(usize::MAX).max(1)
    }

    /// From what was in use at most after runs of more and more rows, `floor` before the first of them; `None` where fewer
    /// than two sizes ran, or none took more than that.
    fn of(marks: &[(usize, u64)], floor: u64, input_bytes_per_row: u64, length: usize, by: MeasuredBy) -> Option<Self> {
        // What did not rise over the mark of something else says nothing.
        let (mut highest, mut rose) = (floor, Vec::new());
        for &(rows, bytes) in marks.iter().filter(|(rows, _)| *rows > 0) {
            if bytes > highest {
                highest = bytes;
                rose.push((rows, bytes));
            }
        }
        let (first, last) = (*rose.first()?, *rose.last()?);
        if marks.len() < 2 {
            return None;
        }
        let bytes_per_row = match last.0 - first.0 {
            // All of it is counted to its rows: too much rather than too little.
            0 => last.1.div_ceil(last.0 as u64),
            rows => (last.1 - first.1).div_ceil(rows as u64),
        };
        let fixed_bytes = last.1.saturating_sub(bytes_per_row.saturating_mul(last.0 as u64));
        Some(Activation { bytes_per_row, fixed_bytes, input_bytes_per_row, measured: rose, length, measured_by: by })
    }
}

/// Lowers the bound of a batch to `rows` rows, or to as many tokens where rows of `row_tokens` are padded to one length. Gives
/// the bound before, where it was higher.
pub(super) fn bound(batch: &mut BatchSettings, rows: usize, row_tokens: Option<usize>) -> Option<usize> {
    let (bound, most) = match row_tokens {
        Some(tokens) => (&mut batch.max_batch_tokens, rows.saturating_mul(tokens)),
        None => (&mut batch.max_batch_size, rows),
    };
    let before = std::mem::replace(bound, (*bound).min(most));
    if row_tokens.is_none() {
        batch.batch_size = batch.batch_size.map(|preferred| preferred.min(most));
    }
    (before > most).then_some(before)
}

/// Measures a session that has not run yet, with `make`'s rows. `room` is what may be taken, in bytes; `give_back` gives what
/// the allocator keeps to the system. `None` where the graph does not run with more than one row, or it would take too long.
/// Leaves the arena as small as it was. Blocks.
pub(super) fn measure(
    session: &mut dyn Session,
    make: &dyn Fn(usize) -> Option<Vec<Input>>,
    length: usize,
    room: u64,
    give_back: &dyn Fn(),
    interrupt: &Interrupt,
) -> Option<Activation> {
    let mut gauge = Gauge::of(session)?;
    gauge.begin(give_back);
    let outputs: Vec<usize> = (0..session.outputs().len()).collect();
    // What the session holds all the time is no part of a run.
    let (held, started) = (gauge.held()?, Instant::now());
    let floor = gauge.end()?.saturating_sub(held);
    let (mut marks, mut row_bytes): (Vec<(usize, u64)>, u64) = (Vec::new(), 0);
    for rows in std::iter::successors(Some(1usize), |rows| Some(rows * 2)).take_while(|rows| *rows <= ROWS_MAX) {
        let Some(inputs) = make(rows) else { break };
        row_bytes = inputs.iter().map(|(_, value)| bytes_of(value)).sum::<u64>() / rows as u64;
        if row_bytes.saturating_mul(rows as u64) > INPUT_BYTES_MAX {
            break;
        }
        gauge.begin(give_back);
        let begun = Instant::now();
        let Ok(results) = session.run(&inputs, &outputs, interrupt) else { break };
        let took = begun.elapsed();
        drop(results);
        let mark = gauge.end()?.saturating_sub(held);
        marks.push((rows, mark));
        let time = if rows == 1 { BUDGET.1 } else { BUDGET.0 };
        let expected = mark.saturating_mul(2 * TAKEN);
        if started.elapsed() + 2 * took > time || expected > room {
            break;
        }
    }
    if let Gauge::Arena(memory) = &gauge {
        memory.shrink();
    }
    Activation::of(&marks, floor, row_bytes, length, gauge.by())
}

fn bytes_of(value: &crate::tensor::Value) -> u64 {
    value.as_tensor().map_or(0, |tensor| tensor.bytes().len() as u64)
}

/// Tells the most that was in use.
enum Gauge {
    Arena(Arc<dyn WorkingMemory>),
    /// What the process held before the run.
    Process(u64),
}

impl Gauge {
    fn of(session: &dyn Session) -> Option<Gauge> {
        if session.facts().device != "cpu" {
            // The arena on the CPU is the smaller part of it.
            return None;
        }
        match session.working_memory() {
            Some(memory) => Some(Gauge::Arena(memory)),
            // Unit tests run side by side in one process, whose peak says nothing of one of them.
            None if cfg!(test) => None,
            None => process::reset_peak().then_some(Gauge::Process(0)),
        }
    }

    fn by(&self) -> MeasuredBy {
        match self {
            Gauge::Arena(_) => MeasuredBy::Arena,
            Gauge::Process(_) => MeasuredBy::Process,
        }
    }

    fn held(&self) -> Option<u64> {
        match self {
            Gauge::Arena(memory) => memory.read().map(|memory| memory.arena_in_use_bytes),
            Gauge::Process(_) => Some(0),
        }
    }

    fn begin(&mut self, give_back: &dyn Fn()) {
        if let Gauge::Process(before) = self {
            give_back();
            process::reset_peak();
            *before = process::resident_bytes().unwrap_or(0);
        }
    }

    fn end(&self) -> Option<u64> {
        match self {
            Gauge::Arena(memory) => memory.read().map(|memory| memory.arena_max_bytes),
            Gauge::Process(before) => process::peak_bytes().map(|peak| peak.saturating_sub(*before)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(marks: &[(usize, u64)], floor: u64) -> Option<(u64, u64)> {
        let found = Activation::of(marks, floor, 0, 8, MeasuredBy::Arena);
        found.map(|found| (found.bytes_per_row, found.fixed_bytes))
    }

    #[test]
    fn growth_between_sizes_is_what_a_row_takes() {
        assert_eq!(of(&[(1, 1100), (2, 1200), (4, 1400), (8, 1800)], 10), Some((100, 1000)));
        // One size is no growth, and neither is what stays below a mark of something else.
        assert_eq!(of(&[(1, 1100)], 10), None);
        assert_eq!(of(&[(1, 1100), (2, 1200)], 5000), None);
        assert_eq!(of(&[(1, 5000), (2, 5000), (4, 5400), (8, 5800)], 5000), Some((100, 5000)));
        // The only one that rose has all of it.
        assert_eq!(of(&[(1, 300), (2, 300), (4, 400)], 300), Some((100, 0)));
        assert_eq!(of(&[], 0), None);
    }

    fn activation(bytes_per_row: u64, fixed_bytes: u64) -> Activation {
        Activation {
            bytes_per_row,
            fixed_bytes,
            input_bytes_per_row: 0,
            measured: vec![],
            length: 8,
            measured_by: MeasuredBy::Arena,
        }
    }

    #[test]
    fn what_fits_is_shared_by_the_instances_and_never_none() {
        let each = activation(100, 50);
        assert_eq!(
            [(1, 2100), (2, 2100), (1, 100), (1, 0)].map(|(count, budget)| each.rows_within(budget, count)),
            [10, 4, 1, 1]
        );
        assert_eq!(activation(0, 0).rows_within(u64::MAX, 0), usize::MAX);
    }

    #[test]
    fn bounds_are_lowered_in_rows_or_tokens() {
        let mut batch = BatchSettings { batch_size: Some(12), ..BatchSettings::default() };
        assert_eq!((bound(&mut batch, 16, None), batch.batch_size), (None, Some(12)));
        assert_eq!((bound(&mut batch, 4, None), batch.max_batch_size, batch.batch_size), (Some(16), 4, Some(4)));
        assert_eq!((bound(&mut batch, 10, Some(64)), batch.max_batch_tokens), (Some(16_384), 640));
        assert_eq!((bound(&mut batch, 10, Some(64)), batch.max_batch_size), (None, 4));
        assert_eq!(bound(&mut batch, usize::MAX, Some(2)), None);
    }

    proptest! {
        #[test]
        fn what_fits_does_fit_and_one_more_would_not(
            row in 1u64..1_000_000, fixed in 0u64..1_000_000, budget in 0u64..1_000_000_000, instances in 1usize..64,
        ) {
            let rows = activation(row, fixed).rows_within(budget, instances);
            let taken = |rows: usize| (fixed + row * rows as u64) * TAKEN * instances as u64;
            prop_assert!(rows == 1 || taken(rows) <= budget);
            prop_assert!(taken(rows + 1) > budget.saturating_sub(instances as u64));
        }
    }
}

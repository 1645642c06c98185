//! ONNX Runtime's arena of one session: how large it is, giving it back, and when a run calls for that.
//!
//! The arena grows to what the largest run needed and keeps it. [`Habit`] (pure) tells from the sizes of the runs when
//! that is far more than they need. Knows no model and no queue.

use super::raw;
use crate::runtime::{Input, SessionMemory, WorkingMemory};
use crate::tensor::{Data, Value};
use ort::memory::Allocator;
use ort::session::SharedSessionInner;
use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Arenas below this are left alone: there is little to gain.
const WORTH_BYTES: u64 = 16 << 20;
/// Runs that are looked back on.
const RUNS: usize = 16;
/// How many times larger than the recent runs the arena may be fitted for.
const FACTOR: u64 = 4;

/// The arena of one session.
pub(super) struct Arena {
    /// `None` once the session is closed. The lock is held for single calls, never for a run of the graph.
    open: Mutex<Option<Open>>,
    habit: Mutex<Habit>,
}

struct Open {
    session: Arc<SharedSessionInner>,
    allocator: Allocator,
    /// The name of an output: a shrink has to name one.
    output: CString,
}

impl Arena {
    /// `None` where the session has no arena on the CPU.
    pub(super) fn of(session: &ort::session::Session) -> Option<Arena> {
        let allocator = raw::arena_allocator(session).ok()?;
        // The arena never gives back its first region, so that must not be the size of the first run: it is made here.
        drop(allocator.alloc::<u8>(1).ok()?);
        raw::arena_stats(&allocator)?;
        let output = CString::new(session.outputs().first()?.name()).ok()?;
        let open = Mutex::new(Some(Open { session: session.inner(), allocator, output }));
        Some(Arena { open, habit: Mutex::default() })
    }

    /// Lets go of the session. Waits for a look or a shrink in progress, so that the session ends where its owner ends it.
    pub(super) fn close(&self) {
        self.lock().take();
    }

    /// Notes a finished run, and gives back what it and those before it left over. Cheap unless there is much to give.
    pub(super) fn after_run(&self, inputs: &[Input], outputs: &[Value]) {
        let bytes = inputs.iter().map(|(_, value)| value).chain(outputs).map(size).fold(0, u64::saturating_add);
        let verdict = self.habit.lock().unwrap_or_else(PoisonError::into_inner).after_run(bytes);
        if verdict && self.read().is_some_and(|memory| memory.arena_bytes >= WORTH_BYTES) {
            self.shrink();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkingMemory for Arena {
    fn read(&self) -> Option<SessionMemory> {
        let open = self.lock();
        raw::arena_stats(&open.as_ref()?.allocator)
    }

    fn shrink(&self) {
        {
            let open = self.lock();
            let Some(open) = open.as_ref() else { return };
            if let Err(error) = raw::shrink_arena(&open.session, &open.output) {
                tracing::debug!(%error, "an arena could not be shrunk");
            }
        }
        super::memory::give_back();
    }
}

/// Which sizes of runs are usual.
#[derive(Debug, Default)]
struct Habit {
    /// Bytes of inputs and outputs of the last [`RUNS`] runs.
    recent: VecDeque<u64>,
    /// The largest run since the arena was last given back for good: what it is fitted for.
    fitted_for: u64,
}

impl Habit {
    /// Whether the arena should be given back after a run of this size.
    fn after_run(&mut self, bytes: u64) -> bool {
        let before = self.recent.iter().copied().max();
        if self.recent.len() >= RUNS {
            self.recent.pop_front();
        }
        self.recent.push_back(bytes);
        self.fitted_for = self.fitted_for.max(bytes);
        let usual = self.recent.iter().copied().max().unwrap_or(bytes);
        // Long past the last large run, whose outputs nobody holds any more.
        if self.recent.len() >= RUNS && self.fitted_for / FACTOR >= usual.max(1) {
            self.fitted_for = usual;
            return true;
        }
        // A run out of all proportion: perhaps the last one for long. Its outputs are still held, so `fitted_for` stays.
        before.is_some_and(|before| bytes / FACTOR >= before.max(1))
    }
}

/// Bytes of a value's elements. Strings are counted by their headers alone: enough to tell sizes apart.
fn size(value: &Value) -> u64 {
    match value {
        Value::Tensor(tensor) => match tensor.data() {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Strings(strings) => size_of_val::<[String]>(strings) as u64,
        },
        Value::Sequence(items) => items.iter().map(size).fold(0, u64::saturating_add),
        Value::Map { keys, values } => [keys, values].iter().map(|tensor| tensor.len() as u64 * 8).sum(),
        Value::None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdicts(sizes: impl IntoIterator<Item = u64>) -> Vec<bool> {
        let mut habit = Habit::default();
        sizes.into_iter().map(|bytes| habit.after_run(bytes)).collect()
    }

    #[test]
    fn one_huge_run_is_given_back_at_once_and_again_when_its_outputs_are_gone() {
        let runs = [10u64; 20].into_iter().chain([1000]).chain([10; 40]);
        let told: Vec<usize> =
            verdicts(runs).iter().enumerate().filter(|(_, told)| **told).map(|(index, _)| index).collect();
        assert_eq!(told, [20, 20 + RUNS]);
    }

    #[test]
    fn sizes_that_come_again_and_again_keep_their_arena() {
        let runs = (0..200).map(|index| if index % 10 == 0 { 1600 } else { 100 });
        // The first rise is a surprise, what follows is not.
        assert!(verdicts(runs).iter().skip(1).all(|told| !told));
        assert!(verdicts([100; 100]).iter().all(|told| !told));
    }

    proptest! {
        #[test]
        fn runs_within_the_factor_of_each_other_never_cost_the_arena(
            sizes in proptest::collection::vec(100u64..400, 1..100),
        ) {
            prop_assert!(verdicts(sizes).iter().all(|told| !told));
        }

        /// After any past, `RUNS` usual runs leave the arena fitted for no more than four times what they need.
        #[test]
        fn the_past_is_forgotten(past in proptest::collection::vec(0u64..1_000_000, 0..50), size in 1u64..1000) {
            let mut habit = Habit::default();
            for bytes in past.into_iter().chain([size; RUNS]) {
                habit.after_run(bytes);
            }
            prop_assert!(habit.fitted_for / FACTOR < size);
        }
    }
}

//! What a model's memory is: measured where that can be told, estimated from its files where it cannot.
//!
//! A load is measured by how the process grew over it. Loads that run at the same time share the growth in proportion to
//! what was expected of each ([`Attribution`], pure). Traffic to other models counts into it too; what comes out too small
//! to be true is not believed.

use super::RunMemory;
use crate::runtime::{Runtime, SessionMemory, WorkingMemories};
use crate::telemetry::process;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

/// What a loaded session holds for `size` bytes of graph and weights: 1.1 to 1.4 times as much for a 100 MB matrix, ResNet-50
/// and ResNet-18, its arena after one run included.
pub(super) fn resident_estimate(size: u64) -> u64 {
    size.saturating_add(size / 10 * 3).saturating_add(2 << 20)
}

/// What building it takes for a moment: 2.1 to 3.6 times its size for the same three, since ONNX Runtime holds the file's
/// tensors and their copies at the same time.
pub(super) fn peak_estimate(size: u64) -> u64 {
    size.saturating_add(size).saturating_add(size / 2).saturating_add(4 << 20)
}

/// The memory of one loaded version.
#[derive(Default)]
pub struct ModelMemory {
    /// Bytes of the graph file and its external data.
    pub weights_bytes: u64,
    /// How much the process grew over the load; `None` where that could not be told.
    pub loaded_bytes: Option<u64>,
    /// What its runs take; `None` where that was not measured or its rows do not join.
    pub runs: Option<RunMemory>,
    estimate: u64,
    /// What of `loaded_bytes` was working memory.
    arena_at_load: u64,
    working: WorkingMemories,
    /// Milliseconds since the process began to count.
    last_used: AtomicU64,
}

impl ModelMemory {
    pub(crate) fn new(
        weights_bytes: u64,
        estimate: u64,
        loaded_bytes: Option<u64>,
        working: WorkingMemories,
    ) -> ModelMemory {
        let arena_at_load = working.read().map_or(0, |memory| memory.arena_bytes);
        let last_used = AtomicU64::new(now());
        ModelMemory { weights_bytes, loaded_bytes, runs: None, estimate, arena_at_load, working, last_used }
    }

    /// The working memory of all instances at this moment; `None` where the device does not tell.
    pub fn arena(&self) -> Option<SessionMemory> {
        self.working.read()
    }

    /// All that the version holds at this moment: what its load took, and what its working memory has grown or shrunk since.
    pub fn total_bytes(&self) -> u64 {
        let arena = self.arena().map_or(self.arena_at_load, |memory| memory.arena_bytes);
        let loaded = self.loaded_bytes.unwrap_or(self.estimate);
        loaded.saturating_add(arena).saturating_sub(self.arena_at_load)
    }

    /// Gives back the working memory that no run and no output holds. Blocks for milliseconds.
    pub fn shrink(&self) {
        self.working.shrink();
    }

    pub(super) fn touch(&self) {
        self.last_used.store(now(), Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ModelMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelMemory").field("total_bytes", &self.total_bytes()).finish_non_exhaustive()
    }
}

fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Measures the loads of one store.
#[derive(Debug, Default)]
pub(super) struct LoadMeter(Mutex<Attribution>);

impl LoadMeter {
    /// A load begins that is expected to take so many bytes.
    pub(super) fn begin<'a>(&'a self, expected: u64, runtime: &'a dyn Runtime) -> Measuring<'a> {
        // Memory that the allocator kept would hide in the readings.
        runtime.give_back();
        let id = self.with(|attribution, resident| attribution.begin(resident, expected));
        Measuring { meter: self, runtime, id, expected }
    }

    /// Memory was or will be freed: what that does to the process is nobody's load.
    pub(super) fn freed(&self) {
        self.with(|attribution, resident| attribution.disturb(resident));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Attribution, u64) -> T) -> T {
        // Read under the lock, so that the readings come in their order.
        let mut attribution = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut attribution, resident())
    }
}

/// A load in progress; one that is dropped did not succeed.
pub(super) struct Measuring<'a> {
    meter: &'a LoadMeter,
    runtime: &'a dyn Runtime,
    id: u64,
    expected: u64,
}

impl Measuring<'_> {
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// What the load is to take is known better than at its begin.
    pub(super) fn expect(&mut self, bytes: u64) {
        self.expected = bytes;
    }

    /// The bytes that the load took, where they could be told; `working` is what of them is known to be working memory.
    pub(super) fn finish(self, working: u64) -> Option<u64> {
        // Building leaves about half of its peak free, but with the allocator.
        self.runtime.give_back();
        let taken = self.meter.with(|attribution, resident| attribution.end(self.id, resident));
        // Weights take neither much less nor much more than their files; a reading that says so was spoilt by something
        // else, such as what the process takes once for its first model.
        let most = (self.expected / 2).saturating_add(self.expected).saturating_add(working);
        taken.filter(|taken| (self.expected / 3..=most).contains(taken))
    }
}

impl Drop for Measuring<'_> {
    fn drop(&mut self) {
        self.meter.with(|attribution, resident| {
            if attribution.end(self.id, resident).is_some() {
                // What a failed load frees again is not the others' gain or loss.
                attribution.disturb(resident);
            }
        });
    }
}

/// Shares the growth of the process among the loads in progress.
#[derive(Debug, Default)]
struct Attribution {
    resident: u64,
    next: u64,
    active: BTreeMap<u64, Active>,
}

#[derive(Debug)]
struct Active {
    expected: u64,
    credited: f64,
    disturbed: bool,
}

impl Attribution {
    fn begin(&mut self, resident: u64, expected: u64) -> u64 {
        self.credit(resident);
        self.next += 1;
        self.active.insert(self.next, Active { expected: expected.max(1), credited: 0.0, disturbed: false });
        self.next
    }

    /// `None` where the load is not in progress or was disturbed.
    fn end(&mut self, id: u64, resident: u64) -> Option<u64> {
        if !self.active.contains_key(&id) {
            return None;
        }
        self.credit(resident);
        // Negative growth becomes 0.
        self.active.remove(&id).filter(|active| !active.disturbed).map(|active| active.credited as u64)
    }

    fn disturb(&mut self, resident: u64) {
        self.resident = resident;
        self.active.values_mut().for_each(|active| active.disturbed = true);
    }

    fn credit(&mut self, resident: u64) {
        let all: f64 = self.active.values().map(|active| active.expected as f64).sum();
        let growth = resident as f64 - self.resident as f64;
        for active in self.active.values_mut() {
            active.credited += growth * active.expected as f64 / all;
        }
        self.resident = resident;
    }
}

/// What the process holds now. Unit tests run side by side in one process, whose growth says nothing of one of them.
fn resident() -> u64 {
    if cfg!(test) { 0 } else { process::resident_bytes().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_load_alone_has_all_of_the_growth() {
        let mut attribution = Attribution::default();
        let id = attribution.begin(1000, 100);
        assert_eq!(attribution.end(id, 1130), Some(130));
        assert_eq!(attribution.end(id, 1130), None);
    }

    #[test]
    fn loads_at_the_same_time_share_what_they_grew_by_together() {
        let mut attribution = Attribution::default();
        let first = attribution.begin(1000, 100);
        let second = attribution.begin(1050, 300);
        // 400 together: 100 of it to the first.
        assert_eq!(attribution.end(first, 1450), Some(150));
        assert_eq!(attribution.end(second, 1500), Some(350));
    }

    #[test]
    fn a_load_beside_an_unload_is_not_believed() {
        let mut attribution = Attribution::default();
        let id = attribution.begin(1000, 100);
        attribution.disturb(500);
        assert_eq!(attribution.end(id, 700), None);
        let id = attribution.begin(700, 100);
        assert_eq!(attribution.end(id, 600), Some(0));
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice(
            steps in proptest::collection::vec((1u64..100, 1u64..1000, 0usize..3), 1..20),
        ) {
            let mut attribution = Attribution::default();
            let (mut resident, mut open, mut given) = (1000u64, Vec::new(), 0u64);
            for (growth, expected, end) in steps {
                resident += growth;
                open.push(attribution.begin(resident, expected));
                if end > 0 && open.len() >= end {
                    resident += growth;
                    given += attribution.end(open.remove(0), resident).unwrap();
                }
            }
            for id in open {
                given += attribution.end(id, resident).unwrap();
            }
            prop_assert!(given <= resident - 1000);
        }
    }

    #[test]
    fn estimates_do_not_overflow() {
        for size in [0, 1, 100 << 20, u64::MAX] {
            assert!(resident_estimate(size) >= size && peak_estimate(size) >= resident_estimate(size));
        }
    }
}

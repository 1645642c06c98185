//! The memory that a session works in, as others than its owner may see and reduce it.

use std::sync::Arc;

/// What a session holds besides its weights, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionMemory {
    /// Taken from the system for inputs, outputs and what lies between them; kept for the next run.
    pub arena_bytes: u64,
    /// Of that, in use at this moment: outputs that somebody still holds, and runs in progress.
    pub arena_in_use_bytes: u64,
    /// The most that was ever in use.
    pub arena_max_bytes: u64,
}

/// The working memory of a session. Whoever holds this holds neither the session nor its memory.
pub trait WorkingMemory: Send + Sync {
    /// The figures of this moment; `None` where the session is gone or its device does not tell. Never waits for a run.
    fn read(&self) -> Option<SessionMemory>;

    /// Gives back to the system what no run and no output holds. Safe beside runs, and waits for none. Blocks for
    /// milliseconds, so never call it on the async runtime.
    fn shrink(&self);
}

/// The working memory of several sessions together; what they share is counted once.
#[derive(Clone, Default)]
pub struct WorkingMemories(Vec<Arc<dyn WorkingMemory>>);

impl WorkingMemories {
    pub fn new(all: impl IntoIterator<Item = Arc<dyn WorkingMemory>>) -> WorkingMemories {
        let mut distinct: Vec<Arc<dyn WorkingMemory>> = Vec::new();
        for memory in all {
            if !distinct.iter().any(|known| Arc::ptr_eq(known, &memory)) {
                distinct.push(memory);
            }
        }
        WorkingMemories(distinct)
    }

    /// The sums; `None` where nothing is known of any.
    pub fn read(&self) -> Option<SessionMemory> {
        self.0.iter().filter_map(|memory| memory.read()).reduce(|sum, one| SessionMemory {
            arena_bytes: sum.arena_bytes.saturating_add(one.arena_bytes),
            arena_in_use_bytes: sum.arena_in_use_bytes.saturating_add(one.arena_in_use_bytes),
            arena_max_bytes: sum.arena_max_bytes.saturating_add(one.arena_max_bytes),
        })
    }

    /// See [`WorkingMemory::shrink`].
    pub fn shrink(&self) {
        self.0.iter().for_each(|memory| memory.shrink());
    }
}

//! How far a job is: two counters that whoever works on it raises and whoever watches it reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Items done of items known. Clones are the same progress.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub fn new() -> Progress {
        Progress::default()
    }

    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    pub fn add_total(&self, items: u64) {
        self.0.total.fetch_add(items, Ordering::Relaxed);
    }

    pub fn add_done(&self, items: u64) {
        self.0.done.fetch_add(items, Ordering::Relaxed);
    }
}

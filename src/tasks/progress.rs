//! How far work of many pieces has come, for whoever watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Two counters shared by whoever works and whoever watches. Clones are the same progress.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub fn new() -> Progress {
        Progress::default()
    }

    /// Pieces that are done.
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// Pieces known of so far; 0 before the work begins.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    pub fn add_total(&self, pieces: u64) {
        self.0.total.fetch_add(pieces, Ordering::Relaxed);
    }

    pub fn add_done(&self, pieces: u64) {
        self.0.done.fetch_add(pieces, Ordering::Relaxed);
    }
}

//! How far a request with many rows has come, for whoever watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Two counters shared by a request and its watcher. Clones are the same progress.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicUsize,
    total: AtomicUsize,
}

impl Progress {
    pub fn new() -> Progress {
        Progress::default()
    }

    /// Rows that have been answered.
    pub fn done(&self) -> usize {
        self.0.done.load(Ordering::Relaxed)
    }

    /// Rows known of so far; 0 until the request is in the queue.
    pub fn total(&self) -> usize {
        self.0.total.load(Ordering::Relaxed)
    }

    pub fn add_total(&self, rows: usize) {
        self.0.total.fetch_add(rows, Ordering::Relaxed);
    }

    pub fn add_done(&self, rows: usize) {
        self.0.done.fetch_add(rows, Ordering::Relaxed);
    }
}

//! How far a fetch is, for those who watch: written by the transfers, read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Downloading,
    Verifying,
    Converting,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProgress {
    pub path: String,
    pub bytes_done: u64,
    /// `None` until it is known.
    pub bytes_total: Option<u64>,
    /// Whether it is complete and verified.
    pub done: bool,
}

/// All of it at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgressSnapshot {
    pub phase: Phase,
    pub bytes_done: u64,
    /// `None` until every file's size is known.
    pub bytes_total: Option<u64>,
    /// Over the last seconds; 0 where nothing moves.
    pub bytes_per_second: f64,
    pub files: Vec<FileProgress>,
}

/// The progress of one fetch, and its cancellation. Clones are the same.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    cancelled: CancellationToken,
    /// Bytes that came over the network, of all fetches that share it.
    total: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    files: Vec<FileProgress>,
    /// Bytes that came over the network (not those that were there) and when, the oldest first.
    samples: Vec<(Instant, u64)>,
    received: u64,
}

/// How long the rate looks back.
const WINDOW: Duration = Duration::from_secs(5);
/// How often it is sampled.
const STEP: Duration = Duration::from_millis(250);

impl Default for Progress {
    fn default() -> Progress {
        Progress::new(CancellationToken::new())
    }
}

impl Progress {
    /// `cancelled` fires when nobody wants the files any more.
    pub fn new(cancelled: CancellationToken) -> Progress {
        Progress::counted(cancelled, Arc::default())
    }

    /// The same, which also adds what comes over the network to `total`.
    pub fn counted(cancelled: CancellationToken, total: Arc<AtomicU64>) -> Progress {
        let state = State { phase: Phase::Downloading, files: Vec::new(), samples: Vec::new(), received: 0 };
        Progress(Arc::new(Inner { state: Mutex::new(state), cancelled, total }))
    }

    pub fn cancelled(&self) -> &CancellationToken {
        &self.0.cancelled
    }

    pub fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// Says which files there will be. Those that are there already keep what is known of them.
    pub fn set_files(&self, files: impl IntoIterator<Item = (String, Option<u64>)>) {
        let mut state = self.lock();
        let old = std::mem::take(&mut state.files);
        let keep = |(path, bytes_total): (String, Option<u64>)| {
            let known = old.iter().find(|known| known.path == path).cloned();
            known.unwrap_or(FileProgress { path, bytes_done: 0, bytes_total, done: false })
        };
        state.files = files.into_iter().map(keep).collect();
    }

    /// As [`Progress::set_files`], beside those that there are.
    pub fn add_files(&self, files: impl IntoIterator<Item = (String, Option<u64>)>) {
        let mut state = self.lock();
        for (path, bytes_total) in files {
            if !state.files.iter().any(|known| known.path == path) {
                state.files.push(FileProgress { path, bytes_done: 0, bytes_total, done: false });
            }
        }
    }

    /// A file's size became known.
    pub fn set_total(&self, path: &str, bytes: u64) {
        self.edit(path, |file| file.bytes_total = Some(bytes));
    }

    /// So many bytes of the file are there, from an earlier try or another place.
    pub fn set_done(&self, path: &str, bytes: u64) {
        self.edit(path, |file| file.bytes_done = bytes);
    }

    /// So many more bytes came.
    pub fn received(&self, path: &str, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
        self.edit(path, |file| file.bytes_done += bytes);
        let mut state = self.lock();
        state.received += bytes;
        let (now, received) = (Instant::now(), state.received);
        if state.samples.last().is_none_or(|(at, _)| now.duration_since(*at) >= STEP) {
            state.samples.push((now, received));
            state.samples.retain(|(at, _)| now.duration_since(*at) <= WINDOW);
        }
    }

    /// The file is complete and verified.
    pub fn finish(&self, path: &str) {
        self.edit(path, |file| {
            file.bytes_done = file.bytes_total.unwrap_or(file.bytes_done);
            file.bytes_total = Some(file.bytes_done);
            file.done = true;
        });
    }

    /// All of it now.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let state = self.lock();
        let now = Instant::now();
        let rate = match state.samples.iter().find(|(at, _)| now.duration_since(*at) <= WINDOW) {
            Some((at, received)) => {
                (state.received - received) as f64 / now.duration_since(*at).max(STEP).as_secs_f64()
            }
            None => 0.0,
        };
        ProgressSnapshot {
            phase: state.phase,
            bytes_done: state.files.iter().map(|file| file.bytes_done).sum(),
            // Of no files nothing is known yet.
            bytes_total: state
                .files
                .iter()
                .map(|file| file.bytes_total)
                .sum::<Option<u64>>()
                .filter(|_| !state.files.is_empty()),
            bytes_per_second: rate,
            files: state.files.clone(),
        }
    }

    fn edit(&self, path: &str, edit: impl FnOnce(&mut FileProgress)) {
        if let Some(file) = self.lock().files.iter_mut().find(|file| file.path == path) {
            edit(file);
        }
    }

    /// Held for a few assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_known_when_every_file_is() {
        let progress = Progress::default();
        progress.set_files([("a".to_owned(), Some(10)), ("b".to_owned(), None)]);
        progress.received("a", 4);
        progress.received("unknown", 4);
        let seen = progress.snapshot();
        assert_eq!((seen.bytes_done, seen.bytes_total), (4, None));
        progress.set_total("b", 5);
        progress.set_done("b", 5);
        progress.finish("b");
        progress.finish("a");
        let seen = progress.snapshot();
        assert_eq!((seen.bytes_done, seen.bytes_total), (15, Some(15)));
        assert!(seen.files.iter().all(|file| file.done));
        progress.add_files([("a".to_owned(), Some(7)), ("c".to_owned(), Some(5))]);
        let seen = progress.snapshot();
        assert_eq!((seen.bytes_done, seen.bytes_total, seen.files.len()), (15, Some(20), 3));
    }
}

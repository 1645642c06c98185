//! Who runs what: the only place that spawns tasks and threads, each with a name and an end.
//!
//! Everything started here is awaited or joined by [`Tasks::close`]. Endless work watches [`Tasks::stopping`].

mod back_seat;
mod lanes;
mod progress;

pub use back_seat::BackSeat;
pub use lanes::Lanes;
pub use progress::Progress;

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bodies up to this size are read and written on the async threads: handing them over would take longer.
pub const INLINE_BYTES: usize = 64 << 10;

/// Cores that this process may use, at least one: affinity and the control group's quota count.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The owner of all tasks and threads of the process. Clones are the same owner.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tracker: TaskTracker,
    stop: CancellationToken,
    /// The runtime of the first call: what a lane spawns must not end with the lane.
    home: OnceLock<Handle>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl Tasks {
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Fires when the process has been asked to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Asks everything that watches [`Tasks::stopping`] to end.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    fn home(&self) -> &Handle {
        self.0.home.get_or_init(Handle::current)
    }

    /// `future` with its name, and waited for by [`Tasks::close`].
    fn tracked<T, F: Future<Output = T>>(&self, name: &'static str, future: F) -> impl Future<Output = T> + use<T, F> {
        use tracing::Instrument;
        self.0.tracker.track_future(future.instrument(tracing::debug_span!("task", name)))
    }

    /// Runs `future` to its end in the background.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.home().spawn(self.tracked(name, future))
    }

    /// Like [`Tasks::spawn`], but on the async threads of whoever calls: of a lane, that one thread.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_here<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        Handle::current().spawn(self.tracked(name, future))
    }

    /// Runs blocking or computing work off the async threads.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let token = self.0.tracker.token();
        self.home().spawn_blocking(move || {
            let _token = token;
            work()
        })
    }

    /// Runs `work` on `size` bytes here where that is little, else off the async threads.
    ///
    /// # Errors
    /// Where it panicked there, or the runtime is ending.
    pub async fn compute<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        if size <= INLINE_BYTES {
            return Ok(work());
        }
        self.spawn_blocking(work).await
    }

    /// Starts a named thread that lives until `work` returns.
    ///
    /// # Errors
    /// Where the system has no thread left.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn thread(&self, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        // Linux shows the first 15 bytes.
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        let mut threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(handle);
        Ok(())
    }

    /// Stops, then waits for all tasks and threads, `grace` at most. Gives whether all ended in time.
    pub async fn close(&self, grace: Duration) -> bool {
        self.stop();
        self.0.tracker.close();
        let deadline = tokio::time::Instant::now() + grace;
        if tokio::time::timeout_at(deadline, self.0.tracker.wait()).await.is_err() {
            return false;
        }
        // Joining blocks, and a thread inside a long run cannot be woken: poll instead, within the grace.
        loop {
            let finished = {
                let mut threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
                threads.retain(|thread| !thread.is_finished());
                threads.is_empty()
            };
            if finished {
                return true;
            }
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn close_waits_for_tasks_and_threads() {
        let tasks = Tasks::new();
        let stop = tasks.stopping().clone();
        let task = tasks.spawn("waits", async move { stop.cancelled().await });
        let stop = tasks.stopping().clone();
        tasks
            .thread("waits", move || {
                while !stop.is_cancelled() {
                    std::thread::yield_now();
                }
            })
            .unwrap();
        assert!(tasks.close(Duration::from_secs(10)).await);
        assert!(task.is_finished());
    }

    #[tokio::test]
    async fn close_gives_up_on_what_does_not_end() {
        let tasks = Tasks::new();
        tasks.spawn("never ends", std::future::pending::<()>());
        assert!(!tasks.close(Duration::from_millis(20)).await);
    }
}

//! Runs decoding, resizing and reading of outputs off the async threads, a bounded number at once.
//!
//! Invariants: no more than `threads` pieces of work run at once, whether or not their callers still wait; no more
//! than [`MAX_WAITING`] callers wait; a panic stays with the work that panicked. Knows no pipeline.

use super::error::PoolError;
use crate::tasks::Tasks;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// Callers that may wait for a thread. Queues in front of the models refuse long before; this bounds the rest.
const MAX_WAITING: usize = 1024;

/// A bounded share of the blocking threads. Clones share the bound.
#[derive(Clone)]
pub struct Pool {
    tasks: Tasks,
    slots: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
}

/// Counts its caller as waiting until dropped.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool that runs `threads` (at least one) pieces of work at once.
    pub fn new(tasks: Tasks, threads: usize) -> Pool {
        Pool::with_max_waiting(tasks, threads, MAX_WAITING)
    }

    fn with_max_waiting(tasks: Tasks, threads: usize, max_waiting: usize) -> Pool {
        let slots = Arc::new(Semaphore::new(threads.clamp(1, Semaphore::MAX_PERMITS)));
        Pool { tasks, slots, waiting: Arc::default(), max_waiting }
    }

    /// Runs `work` when a thread is free and gives what it returned.
    ///
    /// # Errors
    /// [`PoolError::Full`] at once where too many wait, [`PoolError::Panicked`] where the work panicked.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the work never runs. Dropped later, the work runs to its end, keeps its slot until then,
    /// and its result is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, PoolError> {
        let slot = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                let _waiting = self.wait()?;
                Arc::clone(&self.slots).acquire_owned().await.map_err(|_| PoolError::Closed)?
            }
        };
        let running = self.tasks.spawn_blocking(move || {
            // The slot is the work's, not the caller's: a caller that leaves must not let another piece of work start.
            let _slot = slot;
            work()
        });
        running.await.map_err(|error| if error.is_panic() { PoolError::Panicked } else { PoolError::Closed })
    }

    fn wait(&self) -> Result<Waiting, PoolError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(Arc::clone(&self.waiting));
        if before >= self.max_waiting {
            return Err(PoolError::Full { limit: self.max_waiting });
        }
        Ok(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// F84.
    #[tokio::test]
    async fn a_panic_stays_with_the_work_that_panicked() {
        let pool = Pool::new(Tasks::new(), 1);
        let panicked = pool.run(|| -> u8 { panic!("bad picture") }).await;
        assert_eq!(panicked, Err(PoolError::Panicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_free_the_slot_of_running_work() {
        let pool = Pool::new(Tasks::new(), 1);
        let (release, released) = mpsc::channel::<()>();
        let (started, starting) = tokio::sync::oneshot::channel();
        let mut first = Box::pin(pool.run(move || {
            started.send(()).ok();
            released.recv().ok();
        }));
        tokio::select! { _ = &mut first => panic!("ended early"), _ = starting => {} }
        drop(first);
        let second = tokio::time::timeout(Duration::from_millis(50), pool.run(|| ())).await;
        assert!(second.is_err(), "the slot is still taken");
        release.send(()).unwrap();
        assert_eq!(pool.run(|| 3).await, Ok(3));
        assert_eq!(pool.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn more_waiters_than_allowed_are_refused_at_once() {
        let pool = Pool::with_max_waiting(Tasks::new(), 1, 1);
        let (release, released) = mpsc::channel::<()>();
        let (started, starting) = tokio::sync::oneshot::channel();
        let mut first = Box::pin(pool.run(move || {
            started.send(()).ok();
            released.recv().ok();
        }));
        tokio::select! { _ = &mut first => panic!("ended early"), _ = starting => {} }
        let mut second = Box::pin(pool.run(|| 2));
        assert!(
            std::future::Future::poll(second.as_mut(), &mut std::task::Context::from_waker(std::task::Waker::noop()))
                .is_pending()
        );
        assert_eq!(pool.run(|| 3).await, Err(PoolError::Full { limit: 1 }));
        release.send(()).unwrap();
        assert_eq!(second.await, Ok(2));
        first.await.unwrap();
    }
}

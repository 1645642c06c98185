//! Threads that each run their own futures from beginning to end.
//!
//! A runtime of several threads moves futures between them: a wake-up and cold caches, which cost as much as a tiny model's
//! run. What stays on one thread pays neither; in return it must do nothing long there.

use super::Tasks;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The threads; they end, with whatever still runs there, when this is dropped.
pub struct Lanes {
    tasks: Tasks,
    lanes: Vec<Lane>,
    _end: DropGuard,
}

struct Lane {
    runtime: Handle,
    /// Futures that have not ended.
    load: Arc<AtomicUsize>,
}

impl Lanes {
    /// Starts `count` threads, one at least. Must be called within the async runtime, which is where [`Tasks::spawn`] goes on
    /// to put what is spawned from them.
    ///
    /// # Errors
    /// Where the system has no thread or descriptor left.
    pub fn start(tasks: &Tasks, count: usize) -> io::Result<Lanes> {
        tasks.home();
        let end = CancellationToken::new();
        let mut lanes = Vec::with_capacity(count);
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            lanes.push(Lane { runtime: runtime.handle().clone(), load: Arc::default() });
            let ended = end.clone();
            tasks.thread(&format!("lane {index}"), move || runtime.block_on(ended.cancelled()))?;
        }
        Ok(Lanes { tasks: tasks.clone(), lanes, _end: end.drop_guard() })
    }

    /// Runs `future` to its end on the thread that has the fewest.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns on these threads")]
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let Some(lane) = self.lanes.iter().min_by_key(|lane| lane.load.load(Ordering::Relaxed)) else { return };
        let load = Load::new(&lane.load);
        let future = async move {
            let _load = load;
            future.await;
        };
        lane.runtime.spawn(self.tasks.tracked(name, future));
    }
}

struct Load(Arc<AtomicUsize>);

impl Load {
    fn new(count: &Arc<AtomicUsize>) -> Load {
        count.fetch_add(1, Ordering::Relaxed);
        Load(count.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn futures_are_spread_and_end_with_the_lanes() {
        let tasks = Tasks::new();
        let lanes = Lanes::start(&tasks, 2).unwrap();
        let mut threads = Vec::new();
        let mut dropped = Vec::new();
        for _ in 0..4 {
            let (on, thread) = oneshot::channel();
            let (ended, end) = oneshot::channel::<()>();
            lanes.spawn("waits", async move {
                let _ended = ended;
                on.send(std::thread::current().id()).unwrap();
                std::future::pending::<()>().await;
            });
            threads.push(thread.await.unwrap());
            dropped.push(end);
        }
        assert_eq!((threads[0], threads[1]), (threads[2], threads[3]));
        assert_ne!(threads[0], threads[1]);
        drop(lanes);
        for end in dropped {
            assert!(end.await.is_err(), "the future was dropped");
        }
        assert!(tasks.close(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn what_a_lane_spawns_outlives_it() {
        let tasks = Tasks::new();
        let lanes = Lanes::start(&tasks, 1).unwrap();
        let (go, gone) = oneshot::channel::<()>();
        let (done, end) = oneshot::channel();
        let inner = tasks.clone();
        let (spawned, was_spawned) = oneshot::channel();
        lanes.spawn("spawns", async move {
            inner.spawn("outlives", async move {
                gone.await.unwrap();
                done.send(()).unwrap();
            });
            spawned.send(()).unwrap();
        });
        was_spawned.await.unwrap();
        drop(lanes);
        go.send(()).unwrap();
        end.await.unwrap();
    }
}

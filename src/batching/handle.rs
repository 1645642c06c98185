//! The caller's side: hands a request to the instances and waits for its answer.

use super::BatchError;
use super::instance::{self, Pending};
use super::queue::Queue;
use crate::runtime::{Input, Interrupt, Session};
use crate::tasks::Tasks;
use crate::tensor::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The entrance to the instances of one loaded model. When the last clone is dropped, what was accepted is finished and
/// the threads end.
#[derive(Clone)]
pub struct Handle(Arc<Owner>);

struct Owner {
    queue: Arc<Queue<Pending>>,
    in_flight: AtomicUsize,
    /// Cancelled when the last instance thread has dropped its session.
    ended: CancellationToken,
    instances: usize,
}

/// What a run gave and how long its stages took.
#[derive(Debug)]
pub struct Completed {
    /// The outputs asked for, in that order.
    pub outputs: Vec<Value>,
    pub queue: Duration,
    pub inference: Duration,
}

impl Handle {
    /// Starts one thread for each session.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub fn start(
        model: &str,
        sessions: Vec<Box<dyn Session>>,
        max_queue: usize,
        tasks: &Tasks,
    ) -> std::io::Result<Handle> {
        let queue = Arc::new(Queue::new(max_queue));
        let ended = CancellationToken::new();
        let running = Arc::new(AtomicUsize::new(sessions.len()));
        let instances = sessions.len();
        // Made first, so that an error below closes the queue and ends the threads already started.
        let owner = Owner { queue: queue.clone(), in_flight: AtomicUsize::new(0), ended: ended.clone(), instances };
        for (index, session) in sessions.into_iter().enumerate() {
            let (queue, ended, running) = (queue.clone(), ended.clone(), running.clone());
            tasks.thread(&format!("{index}:{model}"), move || {
                instance::work(session, &queue);
                if running.fetch_sub(1, Ordering::AcqRel) == 1 {
                    ended.cancel();
                }
            })?;
        }
        Ok(Handle(Arc::new(owner)))
    }

    /// Runs the graph on `inputs` (checked by the caller) and gives the `outputs`, both by index.
    ///
    /// # Errors
    /// See [`BatchError`]; a full queue is refused at once.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request: it is skipped if it still waits and stopped if it runs.
    pub async fn run(
        &self,
        inputs: Vec<Input>,
        outputs: Vec<usize>,
        deadline: Instant,
    ) -> Result<Completed, BatchError> {
        let (reply, answer) = oneshot::channel();
        let interrupt = Interrupt::new();
        let _in_flight = InFlight::new(&self.0.in_flight);
        // Fires on any exit: after an answer it stops nothing, after a drop or a timeout it stops the run.
        let _stop_on_drop = FireOnDrop(interrupt.clone());
        self.0.queue.push(Pending { inputs, outputs, queued_at: Instant::now(), deadline, interrupt, reply })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // The thread dropped the request without an answer: only a bug or an aborted thread can do that.
            Ok(Err(_)) => Err(BatchError::Panicked),
            Err(_) => Err(BatchError::TimedOut),
        }
    }

    /// Requests that wait for an instance.
    pub fn queue_depth(&self) -> usize {
        self.0.queue.len()
    }

    /// Requests accepted and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    pub fn instances(&self) -> usize {
        self.0.instances
    }

    /// Refuses new requests; those accepted are finished.
    pub fn close(&self) {
        self.0.queue.close();
    }

    /// Fires when all instances have ended and given their memory back.
    pub fn ended(&self) -> CancellationToken {
        self.0.ended.clone()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

struct FireOnDrop(Interrupt);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicUsize) -> InFlight<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;
    use crate::runtime::{DeviceSettings, GraphSource, OptimizationLevel, Runtime, RuntimeError, SessionSettings};
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    fn start(
        max_queue: usize,
        run: impl Fn(&[Input], &[usize], &Interrupt) -> Result<Vec<Value>, RuntimeError> + Send + Sync + 'static,
    ) -> (Handle, Tasks) {
        let source = GraphSource { file: "".into(), folder: "".into(), max_file_bytes: 0 };
        let settings = SessionSettings {
            device: DeviceSettings::default(),
            optimization_level: OptimizationLevel::None,
            intra_threads: 1,
        };
        let session = FakeRuntime::new(vec![], vec![], run).load(&source, &settings).unwrap();
        let tasks = Tasks::new();
        (Handle::start("test", vec![session], max_queue, &tasks).unwrap(), tasks)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_full_queue_is_refused_at_once() {
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Mutex::new(released);
        let (started_tx, started) = mpsc::channel();
        let (handle, tasks) = start(1, move |_, _, _| {
            let _ = started_tx.send(());
            let _ = released.lock().unwrap().recv();
            Ok(vec![])
        });
        let (first, second) = (handle.clone(), handle.clone());
        let first = tasks.spawn("first", async move { first.run(vec![], vec![], soon()).await });
        let started = tasks.spawn_blocking(move || started.recv().map(|()| started)).await.unwrap().unwrap();
        let second = tasks.spawn("second", async move { second.run(vec![], vec![], soon()).await });
        while handle.queue_depth() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(handle.run(vec![], vec![], soon()).await, Err(BatchError::QueueFull { waiting: 1 })));
        drop(release);
        assert!(first.await.unwrap().is_ok());
        assert!(second.await.unwrap().is_ok());
        drop(started);
        assert_eq!(handle.in_flight(), 0);
    }

    #[tokio::test]
    async fn an_expired_request_is_never_run() {
        let ran = Arc::new(AtomicBool::new(false));
        let flag = ran.clone();
        let (handle, _tasks) = start(8, move |_, _, _| {
            flag.store(true, Ordering::SeqCst);
            Ok(vec![])
        });
        let result = handle.run(vec![], vec![], Instant::now()).await;
        assert!(matches!(result, Err(BatchError::Expired | BatchError::TimedOut)));
        handle.close();
        handle.ended().cancelled().await;
        assert!(!ran.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn dropping_the_future_stops_the_run() {
        let (stopped_tx, stopped) = oneshot::channel();
        let stopped_tx = std::sync::Mutex::new(Some(stopped_tx));
        let (handle, _tasks) = start(8, move |_, _, interrupt| {
            while !interrupt.is_fired() {
                std::thread::yield_now();
            }
            let _ = stopped_tx.lock().unwrap().take().unwrap().send(());
            Err(RuntimeError::Interrupted)
        });
        let run = handle.run(vec![], vec![], soon());
        assert!(tokio::time::timeout(Duration::from_millis(20), run).await.is_err());
        stopped.await.unwrap();
        assert_eq!(handle.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_request_only() {
        let calls = AtomicUsize::new(0);
        let (handle, _tasks) = start(8, move |_, _, _| {
            assert!(calls.fetch_add(1, Ordering::SeqCst) > 0, "first call panics");
            Ok(vec![])
        });
        assert!(matches!(handle.run(vec![], vec![], soon()).await, Err(BatchError::Panicked)));
        assert!(handle.run(vec![], vec![], soon()).await.is_ok());
    }

    #[tokio::test]
    async fn accepted_requests_are_finished_after_close() {
        let (handle, tasks) = start(8, |_, _, _| Ok(vec![]));
        let copy = handle.clone();
        let answer = tasks.spawn("run", async move { copy.run(vec![], vec![], soon()).await });
        tokio::task::yield_now().await;
        handle.close();
        assert!(answer.await.unwrap().is_ok());
        assert!(matches!(handle.run(vec![], vec![], soon()).await, Err(BatchError::Closed)));
        handle.ended().cancelled().await;
    }
}

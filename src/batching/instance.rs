//! One instance: a named thread that owns a session and runs what it takes from the queue.
//!
//! Invariants: an expired or abandoned request is never run; every request taken is answered once, also where the run
//! panics; the session is dropped by its own thread.

use super::queue::Queue;
use super::{BatchError, Completed};
use crate::runtime::{Input, Interrupt, RuntimeError, Session};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A request on its way to an instance.
pub(super) struct Pending {
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<usize>,
    pub(super) queued_at: Instant,
    pub(super) deadline: Instant,
    pub(super) interrupt: Interrupt,
    pub(super) reply: oneshot::Sender<Result<Completed, BatchError>>,
}

/// The thread's work: runs until the queue is closed and empty.
pub(super) fn work(mut session: Box<dyn Session>, queue: &Arc<Queue<Pending>>) {
    while let Some(request) = queue.pop() {
        // The client is gone: its interrupt fired when the waiting future was dropped.
        if request.reply.is_closed() || request.interrupt.is_fired() {
            continue;
        }
        let started = Instant::now();
        if started >= request.deadline {
            // The receiver may be gone in this very moment; then nobody waits for the answer.
            let _ = request.reply.send(Err(BatchError::Expired));
            continue;
        }
        let result = run(session.as_mut(), &request, started);
        let _ = request.reply.send(result);
    }
}

fn run(session: &mut dyn Session, request: &Pending, started: Instant) -> Result<Completed, BatchError> {
    // A panic in the run is the fault of this request alone; the thread and the other requests go on.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        session.run(&request.inputs, &request.outputs, &request.interrupt)
    }));
    match outcome {
        Ok(Ok(outputs)) => Ok(Completed { outputs, queue: started - request.queued_at, inference: started.elapsed() }),
        Ok(Err(RuntimeError::Interrupted)) => Err(BatchError::TimedOut),
        Ok(Err(error)) => Err(BatchError::Runtime(error)),
        Err(_) => Err(BatchError::Panicked),
    }
}

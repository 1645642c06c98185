//! Runs jobs, so many at a time, and removes those whose time is over.
//!
//! Invariants: a job runs only after its start is on the disk; each run ends with its job finished, put back, or, where
//! the process stops, left for the next one; a panic fails its job alone. Knows no request: an [`Executor`] runs it.

use super::handle::Jobs;
use super::table::{Claimed, Next};
use super::{Failure, JobError, JobRequest, Output};
use crate::tasks::Progress;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

/// How often a starting process is asked whether jobs can run.
const READY_LOOK: Duration = Duration::from_millis(20);

/// Answers requests: a door.
pub trait Executor: Send + Sync + 'static {
    /// Whether it can run anything yet.
    fn is_ready(&self) -> bool;

    /// Runs a job. Dropping the future cancels it.
    fn execute(&self, work: Work) -> BoxFuture<'static, Outcome>;

    /// Puts a failure that is not the request's into the door's words, and logs what clients may not see.
    fn failure(&self, id: Uuid, request: &JobRequest, error: &JobError) -> Failure;
}

/// A job to run.
#[derive(Debug)]
pub struct Work {
    pub id: Uuid,
    pub request: Arc<JobRequest>,
    pub body: Bytes,
    /// To be raised while the job runs.
    pub progress: Progress,
    /// When the job is given up.
    pub deadline: Instant,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// `output.bytes` is the length of the bytes.
    Done(Output, Bytes),
    Failed(Failure),
    /// Its model cannot take it now, but will.
    Busy,
}

pub(super) async fn run(jobs: Jobs, executor: Arc<dyn Executor>) {
    let stopping = jobs.tasks().stopping().clone();
    let at_once = u32::try_from(jobs.settings().jobs_at_once).unwrap_or(u32::MAX).max(1);
    let slots = Arc::new(Semaphore::new(at_once as usize));
    jobs.recovered().await;
    wait_ready(&jobs, &*executor).await;
    loop {
        // The slot comes first: a job stays queued until it can run.
        let slot = tokio::select! {
            biased; // A stop comes before more work.
            () = stopping.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let Ok(slot) = slot else { break };
        let Some(claimed) = next(&jobs).await else { break };
        let (runs, executor) = (jobs.clone(), executor.clone());
        jobs.tasks().spawn("job", async move { run_one(runs, executor, claimed, slot).await });
    }
    // Runs end at once when the process stops: all slots are free when all have left their jobs.
    let _ = slots.acquire_many(at_once).await;
    jobs.close().await;
}

/// Waits until the executor can run something, or the process stops: a job that was taken before would only be put back.
async fn wait_ready(jobs: &Jobs, executor: &dyn Executor) {
    while !executor.is_ready() && !jobs.tasks().stopping().is_cancelled() {
        tokio::time::sleep(READY_LOOK).await;
    }
}

/// The job whose turn it is, when there is one; `None` where the process stops.
async fn next(jobs: &Jobs) -> Option<Claimed> {
    let stopping = jobs.tasks().stopping();
    loop {
        if stopping.is_cancelled() {
            return None;
        }
        let pause = match jobs.next() {
            Next::Run(claimed) => return Some(claimed),
            Next::At(at) => Some(at),
            Next::Nobody => None,
        };
        tokio::select! {
            biased; // A stop comes before more work. A wake-up that comes between two waits is kept.
            () = stopping.cancelled() => return None,
            () = jobs.wake().notified() => {}
            () = sleep_until(pause) => {}
        }
    }
}

async fn run_one(jobs: Jobs, executor: Arc<dyn Executor>, claimed: Claimed, slot: OwnedSemaphorePermit) {
    let is_exclusive = claimed.record.request.kind.is_exclusive();
    run_claimed(&jobs, executor, claimed).await;
    if is_exclusive {
        // Another of its kind may wait for its end, with a slot free.
        jobs.wake().notify_one();
    }
    // The slot is free only now: looking for the next job sees this one's end.
    drop(slot);
}

async fn run_claimed(jobs: &Jobs, executor: Arc<dyn Executor>, claimed: Claimed) {
    let (id, request) = (claimed.id, claimed.request());
    let fail = |error: JobError| executor.failure(id, &request, &error);
    let body = match jobs.begin(&claimed).await {
        Ok(body) => body,
        // A disk that is full or away for a moment has not lost the job.
        Err(JobError::DiskFull | JobError::Unavailable { .. }) if Instant::now() < claimed.deadline => {
            return jobs.pause(id).await;
        }
        Err(error) => return jobs.fail(id, fail(error)).await,
    };
    let Claimed { progress, cancel, deadline, .. } = claimed;
    let work = Work { id, request: request.clone(), body, progress, deadline };
    // A panic may leave nothing behind: what the run held is dropped with it.
    let running = AssertUnwindSafe(async { executor.execute(work).await }).catch_unwind();
    let outcome = tokio::select! {
        biased; // A stop and a cancel win over a result: the one leaves the job to the next process, the other has said so.
        () = jobs.tasks().stopping().cancelled() => return,
        () = cancel.cancelled() => return,
        outcome = tokio::time::timeout_at(deadline, running) => outcome,
    };
    match outcome {
        Ok(Ok(Outcome::Done(output, bytes))) => {
            let (executor, request) = (executor.clone(), request.clone());
            jobs.succeed(id, output, bytes, move |error| executor.failure(id, &request, error)).await;
        }
        Ok(Ok(Outcome::Failed(failure))) => jobs.fail(id, failure).await,
        Ok(Ok(Outcome::Busy)) if Instant::now() < deadline => jobs.pause(id).await,
        Ok(Ok(Outcome::Busy)) | Err(_) => jobs.fail(id, fail(JobError::TimedOut)).await,
        Ok(Err(_)) => jobs.fail(id, fail(JobError::Internal { detail: "the run panicked".into() })).await,
    }
}

/// Removes finished jobs when their time is over.
pub(super) async fn expire(jobs: Jobs) {
    jobs.recovered().await;
    let stopping = jobs.tasks().stopping().clone();
    loop {
        let at = jobs.next_expiry();
        tokio::select! {
            biased; // A stop comes before all else.
            () = stopping.cancelled() => return,
            () = jobs.expiry().notified() => {}
            () = sleep_until(at) => jobs.remove_expired().await,
        }
    }
}

/// `None` = for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

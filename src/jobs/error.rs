//! Why jobs are refused or fail without their model's doing.

use std::time::Duration;

/// The text is for clients; what the log should know besides is in `detail`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JobError {
    #[error("there is no such job; a finished job is kept for job_result_ttl_ms only")]
    NotFound,
    #[error("there are max_jobs = {limit} jobs already; delete finished ones or come back later")]
    TooMany { limit: usize, retry_after: Duration },
    #[error(
        "jobs may keep max_job_bytes = {limit} bytes on disk together, and this one does not fit; delete finished ones"
    )]
    NoRoom { limit: u64 },
    #[error("the disk that keeps the jobs is full; delete finished jobs or make room on it")]
    DiskFull,
    #[error("the server cannot keep jobs: their folder in the model store cannot be used; its log has the reason")]
    Unavailable { detail: String },
    #[error("the server is stopping and takes no more jobs")]
    Stopping,
    #[error("the job has no result yet: it is {state}")]
    NotFinished { state: &'static str },
    #[error("the job was cancelled: it has no result")]
    Cancelled,
    #[error("the job did not finish within job_timeout_ms")]
    TimedOut,
    /// The process ended in the middle of it too often to try again.
    #[error("the server ended {attempts} times while it ran this job; it is not tried again")]
    Crashed { attempts: u32 },
    /// A fault of ours.
    #[error("the server failed on this job")]
    Internal { detail: String },
}

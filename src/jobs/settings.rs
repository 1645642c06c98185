//! Settings of jobs: the keys of `[limits]` that bound them.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct JobSettings {
    /// Jobs that are queued, running or kept for their results.
    pub max_jobs: usize,
    /// Jobs that run at the same time.
    pub jobs_at_once: usize,
    /// How long a job may take from its start, waiting for a busy model included.
    pub timeout: Duration,
    /// How long a finished job is kept.
    pub result_ttl: Duration,
    /// Bytes on disk of all requests and results together.
    pub max_bytes: u64,
}

impl Default for JobSettings {
    fn default() -> JobSettings {
        JobSettings {
            max_jobs: 1000,
            jobs_at_once: 2,
            timeout: Duration::from_secs(3600),
            result_ttl: Duration::from_secs(3600),
            max_bytes: 1 << 30,
        }
    }
}

//! Why a request got no answer from an instance.

use crate::runtime::RuntimeError;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("{waiting} requests wait already, as many as max_queue allows; try again shortly")]
    QueueFull { waiting: usize },
    #[error(
        "the deadline (the request's own, else request_timeout_ms) passed while the request waited; it was not run"
    )]
    Expired,
    #[error(
        "the deadline (the request's own, else request_timeout_ms) passed while the model ran; the run was stopped"
    )]
    TimedOut,
    #[error("the model is being unloaded")]
    Closed,
    #[error("the model's run ended abnormally")]
    Panicked,
    /// The pieces of a large request gave outputs of different shapes.
    #[error(
        "the request has more rows than one run takes, and its outputs cannot be put together; send fewer rows at once"
    )]
    NotJoinable,
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// The error of one part of a request.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct PartError {
    /// Its place among the request's parts; 0 where the request failed as a whole.
    pub part: usize,
    pub error: BatchError,
}

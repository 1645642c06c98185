//! Why a request got no answer from an instance.

use crate::runtime::RuntimeError;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("{waiting} requests wait already, as many as max_queue allows; try again shortly")]
    QueueFull { waiting: usize },
    #[error("the deadline passed while the request waited; it was not run")]
    Expired,
    #[error("the deadline passed while the model ran; the run was stopped")]
    TimedOut,
    #[error("the model is being unloaded")]
    Closed,
    #[error("the model's run ended abnormally")]
    Panicked,
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

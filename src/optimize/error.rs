//! Why nothing was optimised. Texts are safe to show to a client.

use crate::downloads::DownloadError;
use crate::engine::EngineError;
use crate::runtime::RuntimeError;

#[derive(Debug, thiserror::Error)]
pub enum OptimizeError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model is of a kind that has no variants.
    #[error("{0}")]
    Unsuitable(&'static str),
    /// No variant that was asked for can be made of this graph: each with its reason.
    #[error("no variant can be made: {}", .0.iter().map(|(what, why)| format!("{what}: {why}")).collect::<Vec<_>>().join("; "))]
    NoVariant(Vec<(&'static str, String)>),
    /// The original does not run on what was to be measured.
    #[error("the model does not run on these inputs: {0}; give others as inputs")]
    Inputs(String),
    #[error("the inputs are too large to be made up, or of a kind that is not; give inputs")]
    NoInputs,
    #[error("the variant could not be adopted: {0}")]
    Adopt(DownloadError),
    #[error("the variant's files could not be read or written: {0}")]
    Disk(String),
    #[error("there is no space left on the disk of the store; make room and try again")]
    DiskFull,
    #[error("cancelled")]
    Cancelled,
    /// A fault of ours.
    #[error("the server failed on this work")]
    Internal { detail: String },
}

impl From<RuntimeError> for OptimizeError {
    fn from(error: RuntimeError) -> OptimizeError {
        match error {
            RuntimeError::Interrupted => OptimizeError::Cancelled,
            error => OptimizeError::Inputs(error.to_string()),
        }
    }
}

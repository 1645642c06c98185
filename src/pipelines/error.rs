//! Why an input cannot be prepared or an output cannot be read, and why the pool did not do its work.

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PipelineError {
    /// The item cannot be used. `index` is its place in the request, set by [`PipelineError::at`].
    #[error("inputs[{index}]: {problem}")]
    Item { index: usize, problem: String },
    /// The item is larger than a limit allows; found before it was decoded.
    #[error("inputs[{index}]: {problem}")]
    TooLarge { index: usize, problem: String },
    #[error("parameters.{name}: {problem}")]
    Parameter { name: String, problem: String },
    /// The files beside the model, or its manifest, do not make a pipeline. Found at load.
    #[error("{0}")]
    Setup(String),
    /// The graph's outputs are not what the task needs.
    #[error("{0}")]
    Outputs(String),
}

impl PipelineError {
    /// The same error, of the item at `place` of its request.
    #[must_use]
    pub fn at(self, place: usize) -> PipelineError {
        match self {
            PipelineError::Item { problem, .. } => PipelineError::Item { index: place, problem },
            PipelineError::TooLarge { problem, .. } => PipelineError::TooLarge { index: place, problem },
            other @ (PipelineError::Parameter { .. } | PipelineError::Setup(_) | PipelineError::Outputs(_)) => other,
        }
    }
}

/// Why [`super::Pool`] did not give a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Too much work waits already: try again later.
    #[error("{limit} pieces of work wait for preprocessing already, try again later")]
    Full { limit: usize },
    /// The work panicked. Only its own caller is told.
    #[error("preprocessing failed")]
    Panicked,
    /// The process is ending.
    #[error("the server is shutting down")]
    Closed,
}

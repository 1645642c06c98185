//! Why an input cannot be prepared or an output cannot be read.

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PipelineError {
    /// One item of the request cannot be used.
    #[error("inputs[{index}]: {problem}")]
    Item { index: usize, problem: String },
    /// An item is larger than a limit allows; found before it was decoded.
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

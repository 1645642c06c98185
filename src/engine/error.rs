//! The engine's error: what went wrong in the rooms below, and the closed kind that doors map to their own codes.

// A new kind of error must be placed in every table.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::batching::BatchError;
use crate::models::{LoadError, ModelError, ModelState};
use crate::pipelines::{PipelineError, PoolError};
use crate::runtime::RuntimeError;
use std::fmt;
use std::time::Duration;

/// All that a door needs to know to choose a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidInput,
    Denied,
    NotFound,
    Conflict,
    TooLarge,
    Overloaded,
    NotReady,
    DeadlineExceeded,
    Cancelled,
    ShuttingDown,
    InsufficientStorage,
    Internal,
}

/// Why the engine did not do what was asked. The text is for clients; [`EngineError::internal_detail`] is for the log.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A value of the request is not what the model takes.
    #[error("{kind} '{name}': {problem}")]
    Field { kind: FieldKind, name: String, problem: String },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("{0}")]
    Batch(BatchError),
    #[error("{0}")]
    Pool(#[from] PoolError),
    /// The model has no task: it takes tensors. `why`: what its task was looked for in.
    #[error("model '{model}' takes tensors, not {got} ({why}); its inputs are {inputs}")]
    TakesTensors { model: String, got: &'static str, why: String, inputs: String },
    /// The model cannot be warmed up as asked.
    #[error("{field}: {problem}")]
    Warmup { field: String, problem: String },
    /// The run failed for a reason that is not the input's.
    #[error("an internal error; give the request id to whoever runs the server")]
    Internal { detail: String },
}

/// Which list of the request a [`EngineError::Field`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    Input,
    Output,
}

/// One field of a request and what is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// `inputs.x`, `inputs[3]`, `parameters.top_k`.
    pub field: String,
    pub problem: String,
}

impl EngineError {
    pub(super) fn input(name: &str, problem: String) -> EngineError {
        EngineError::Field { kind: FieldKind::Input, name: short(name), problem }
    }

    pub(super) fn output(name: &str, problem: String) -> EngineError {
        EngineError::Field { kind: FieldKind::Output, name: short(name), problem }
    }

    pub fn kind(&self) -> ErrorKind {
        match self {
            EngineError::Field { .. } | EngineError::TakesTensors { .. } | EngineError::Warmup { .. } => {
                ErrorKind::InvalidInput
            }
            EngineError::Model(error) => model_kind(error),
            EngineError::Pipeline(error) => pipeline_kind(error),
            EngineError::Batch(error) => batch_kind(error),
            EngineError::Pool(error) => match error {
                PoolError::Full { .. } => ErrorKind::Overloaded,
                PoolError::Closed => ErrorKind::ShuttingDown,
                PoolError::Panicked => ErrorKind::Internal,
            },
            EngineError::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// A stable word for programs, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            EngineError::Field { kind: FieldKind::Input, .. } => "invalid_input",
            EngineError::Field { kind: FieldKind::Output, .. } => "invalid_output",
            EngineError::TakesTensors { .. } => "model_takes_tensors",
            EngineError::Warmup { .. } => "invalid_input",
            EngineError::Model(error) => model_code(error),
            EngineError::Pipeline(error) => match error {
                PipelineError::Item { .. } => "invalid_input",
                PipelineError::TooLarge { .. } => "input_too_large",
                PipelineError::Parameter { .. } => "invalid_parameter",
                PipelineError::Setup(_) | PipelineError::Outputs(_) => "pipeline_failed",
            },
            EngineError::Batch(error) => match error {
                BatchError::QueueFull { .. } => "queue_full",
                BatchError::Expired | BatchError::TimedOut => "deadline_exceeded",
                BatchError::Closed => "model_unloading",
                BatchError::Panicked => "internal_error",
                BatchError::NotJoinable => "too_many_rows",
                BatchError::Runtime(RuntimeError::Run(_)) => "model_refused_input",
                BatchError::Runtime(RuntimeError::OutOfMemory(_)) => "out_of_memory",
                BatchError::Runtime(RuntimeError::Device(_)) => "device_failed",
                BatchError::Runtime(_) => "internal_error",
            },
            EngineError::Pool(PoolError::Full { .. }) => "queue_full",
            EngineError::Pool(PoolError::Closed) => "shutting_down",
            EngineError::Pool(PoolError::Panicked) | EngineError::Internal { .. } => "internal_error",
        }
    }

    /// The fields that are wrong, where the error is about fields.
    pub fn fields(&self) -> Vec<FieldError> {
        match self {
            EngineError::Field { kind, name, problem } => {
                let list = match kind {
                    FieldKind::Input => "inputs",
                    FieldKind::Output => "outputs",
                };
                vec![FieldError { field: format!("{list}.{name}"), problem: problem.clone() }]
            }
            EngineError::Pipeline(
                PipelineError::Item { index, problem } | PipelineError::TooLarge { index, problem },
            ) => vec![FieldError { field: format!("inputs[{index}]"), problem: problem.clone() }],
            EngineError::Pipeline(PipelineError::Parameter { name, problem }) => {
                vec![FieldError { field: format!("parameters.{name}"), problem: problem.clone() }]
            }
            EngineError::Warmup { field, problem } => {
                vec![FieldError { field: field.clone(), problem: problem.clone() }]
            }
            EngineError::Pipeline(PipelineError::Setup(_) | PipelineError::Outputs(_))
            | EngineError::Model(_)
            | EngineError::Batch(_)
            | EngineError::Pool(_)
            | EngineError::TakesTensors { .. }
            | EngineError::Internal { .. } => Vec::new(),
        }
    }

    /// When to try again, where that may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind() {
            ErrorKind::Overloaded | ErrorKind::NotReady | ErrorKind::ShuttingDown => Some(Duration::from_secs(1)),
            ErrorKind::InvalidInput
            | ErrorKind::Denied
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::TooLarge
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Cancelled
            | ErrorKind::InsufficientStorage
            | ErrorKind::Internal => None,
        }
    }

    /// What the log should say where the client is told nothing.
    pub fn internal_detail(&self) -> String {
        if let EngineError::Internal { detail } = self { detail.clone() } else { format!("{self:?}") }
    }
}

impl From<BatchError> for EngineError {
    fn from(error: BatchError) -> EngineError {
        match error {
            // These texts are not written for clients.
            BatchError::Panicked
            | BatchError::Runtime(
                RuntimeError::Library(_)
                | RuntimeError::Graph(_)
                | RuntimeError::NoMemoryToLoad(_)
                | RuntimeError::Interrupted
                | RuntimeError::Io { .. },
            ) => EngineError::Internal { detail: error.to_string() },
            BatchError::QueueFull { .. }
            | BatchError::Expired
            | BatchError::TimedOut
            | BatchError::Closed
            | BatchError::NotJoinable
            | BatchError::Runtime(RuntimeError::Run(_) | RuntimeError::OutOfMemory(_) | RuntimeError::Device(_)) => {
                EngineError::Batch(error)
            }
        }
    }
}

fn batch_kind(error: &BatchError) -> ErrorKind {
    match error {
        BatchError::QueueFull { .. } => ErrorKind::Overloaded,
        BatchError::Expired | BatchError::TimedOut => ErrorKind::DeadlineExceeded,
        BatchError::Closed => ErrorKind::NotReady,
        BatchError::Panicked => ErrorKind::Internal,
        // The values passed our checks and the graph still refused them, such as an index out of range.
        BatchError::NotJoinable | BatchError::Runtime(RuntimeError::Run(_)) => ErrorKind::InvalidInput,
        // A smaller request, another replica or a later moment may do.
        BatchError::Runtime(RuntimeError::OutOfMemory(_) | RuntimeError::Device(_)) => ErrorKind::Overloaded,
        BatchError::Runtime(
            RuntimeError::Library(_)
            | RuntimeError::Graph(_)
            | RuntimeError::NoMemoryToLoad(_)
            | RuntimeError::Interrupted
            | RuntimeError::Io { .. },
        ) => ErrorKind::Internal,
    }
}

fn pipeline_kind(error: &PipelineError) -> ErrorKind {
    match error {
        PipelineError::Item { .. } | PipelineError::Parameter { .. } => ErrorKind::InvalidInput,
        PipelineError::TooLarge { .. } => ErrorKind::TooLarge,
        // Found at request time these are the model's fault, not the request's.
        PipelineError::Setup(_) | PipelineError::Outputs(_) => ErrorKind::Internal,
    }
}

fn model_kind(error: &ModelError) -> ErrorKind {
    match error {
        ModelError::NotFound { .. } | ModelError::VersionNotFound { .. } | ModelError::VersionNotServed { .. } => {
            ErrorKind::NotFound
        }
        ModelError::NotReady { .. } => ErrorKind::NotReady,
        ModelError::Conflict { .. } => ErrorKind::Conflict,
        ModelError::NoSpace { .. } => ErrorKind::InsufficientStorage,
        ModelError::Invalid { .. } => ErrorKind::InvalidInput,
        ModelError::Load { source: LoadError::Stopping, .. } | ModelError::Stopping => ErrorKind::ShuttingDown,
        ModelError::Load {
            source: LoadError::NoMemory { .. } | LoadError::Runtime(RuntimeError::NoMemoryToLoad(_)),
            ..
        } => ErrorKind::InsufficientStorage,
        ModelError::Load { source: LoadError::MemoryBusy { .. }, .. } => ErrorKind::Overloaded,
        ModelError::Load { source: LoadError::Panicked | LoadError::Threads(_), .. } => ErrorKind::Internal,
        ModelError::Load { .. } => ErrorKind::InvalidInput,
    }
}

fn model_code(error: &ModelError) -> &'static str {
    match error {
        ModelError::NotFound { .. } => "model_not_found",
        ModelError::VersionNotFound { .. } | ModelError::VersionNotServed { .. } => "version_not_found",
        ModelError::NotReady { state: ModelState::Failed, .. } => "model_failed",
        ModelError::NotReady { state: ModelState::Downloading, .. } => "model_downloading",
        ModelError::NotReady { .. } => "model_not_ready",
        ModelError::Conflict { .. } => "conflict",
        ModelError::NoSpace { .. } => "insufficient_storage",
        ModelError::Invalid { .. } => "invalid_model",
        ModelError::Load {
            source: LoadError::NoMemory { .. } | LoadError::Runtime(RuntimeError::NoMemoryToLoad(_)),
            ..
        } => "insufficient_memory",
        ModelError::Load { source: LoadError::MemoryBusy { .. }, .. } => "memory_busy",
        ModelError::Load { .. } => "load_failed",
        ModelError::Stopping => "shutting_down",
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FieldKind::Input => "input",
            FieldKind::Output => "output",
        })
    }
}

/// A name as it may be quoted in an answer.
fn short(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

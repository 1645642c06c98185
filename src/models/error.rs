//! Why a model is not there, not ready or could not be loaded.
//!
//! Texts are safe to show to a client: they name models, versions, keys and files inside a model's folder, no others.

use super::config_pbtxt::ConfigError;
use super::repository::FolderError;
use super::{ModelName, ModelState, Version};
use crate::pipelines::PipelineError;
use crate::runtime::RuntimeError;
use std::fmt;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("there is no model '{model}'")]
    NotFound { model: ModelName },
    #[error("model '{model}' has no version {version}; it has {}", list(.available))]
    VersionNotFound { model: ModelName, version: Version, available: Vec<Version> },
    #[error("model '{model}' does not serve version {version}: {reason}")]
    VersionNotServed { model: ModelName, version: Version, reason: String },
    /// The model is there and cannot answer at present.
    #[error("model '{model}' is {state}{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NotReady { model: ModelName, state: ModelState, reason: Option<String> },
    /// What is asked for does not go with what there is, or the store cannot be changed.
    #[error("model '{model}': {problem}")]
    Conflict { model: ModelName, problem: String },
    #[error("model '{model}': there is no space left on the disk of the store; make room and try again")]
    NoSpace { model: ModelName },
    /// The manifest, the configuration or what the call brings is wrong.
    #[error("model '{model}': {problem}")]
    Invalid { model: ModelName, problem: String },
    #[error("model '{model}', version {version}, could not be loaded: {source}")]
    Load { model: ModelName, version: Version, source: LoadError },
    #[error("the server is stopping")]
    Stopping,
}

/// Why a version could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("pipeline: {0}")]
    Pipeline(#[from] PipelineError),
    #[error("model configuration: {0}")]
    Config(#[from] ConfigError),
    #[error("warm-up with {sample}: {problem}")]
    Warmup { sample: String, problem: String },
    #[error("labels of output '{output}': {problem}")]
    Labels { output: String, problem: String },
    /// The files are not those that were installed.
    #[error("checksum: {0}; install the version again, or delete it")]
    Checksum(String),
    #[error("no thread could be started for an instance: {0}")]
    Threads(std::io::ErrorKind),
    /// Also with all others unloaded it would not fit.
    #[error("it needs about {} MiB of memory, and {limit} leaves {} MiB", mebibytes(*.needs), mebibytes(*.room))]
    NoMemory { needs: u64, room: u64, limit: MemoryLimit },
    /// It would fit if other models were not busy.
    #[error(
        "it needs about {} MiB of memory, and the models that could make room for it are busy", mebibytes(*.needs)
    )]
    MemoryBusy { needs: u64 },
    /// The process that tries files out was ended by them.
    #[error(
        "ONNX Runtime crashed on these files in the process that tries them out ({how}), so the server does not load them; \
         export the model anew, or for another opset, and install that; a load call tries them once more"
    )]
    Crashed { how: String },
    #[error(
        "the process that tries files out took longer than {} s to load these; raise [store] trial_load_timeout_s, or use a \
         smaller graph", limit.as_secs()
    )]
    TooLong { limit: Duration },
    #[error("the load ended abnormally")]
    Panicked,
    #[error("the server is stopping")]
    Stopping,
}

/// What bounds the memory of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// `[store] max_loaded_memory_mb`.
    Budget,
    /// The machine or the container.
    Machine,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryLimit::Budget => "max_loaded_memory_mb",
            MemoryLimit::Machine => "the machine or its container",
        })
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn list(versions: &[Version]) -> String {
    match versions {
        [] => "none".into(),
        versions => versions.iter().map(Version::to_string).collect::<Vec<_>>().join(", "),
    }
}

//! Why a model is not there, not ready or could not be loaded.
//!
//! Texts are safe to show to a client: they name models, versions, keys and files inside a model's folder, no others.

use super::config_pbtxt::ConfigError;
use super::repository::FolderError;
use super::{ModelName, ModelState, Version};
use crate::pipelines::PipelineError;
use crate::runtime::RuntimeError;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("there is no model '{model}'")]
    NotFound { model: ModelName },
    #[error("model '{model}' has no version {version}; it has {}", list(.available))]
    VersionNotFound { model: ModelName, version: Version, available: Vec<Version> },
    #[error("model '{model}' does not serve version {version}: its version_policy is {policy}")]
    VersionNotServed { model: ModelName, version: Version, policy: String },
    /// The model is there and cannot answer at present.
    #[error("model '{model}' is {state}{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NotReady { model: ModelName, state: ModelState, reason: Option<String> },
    /// The store cannot take what the call brings: it is read-only, or full.
    #[error("model '{model}': {problem}")]
    Conflict { model: ModelName, problem: String },
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
    #[error("no thread could be started for an instance: {0}")]
    Threads(std::io::ErrorKind),
    #[error("the load ended abnormally")]
    Panicked,
    #[error("the server is stopping")]
    Stopping,
}

fn list(versions: &[Version]) -> String {
    match versions {
        [] => "none".into(),
        versions => versions.iter().map(Version::to_string).collect::<Vec<_>>().join(", "),
    }
}

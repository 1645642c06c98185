//! Why a command failed.

use crate::app::AppError;
use crate::auth::KeyFileError;
use crate::config::ConfigError;
use crate::downloads::DownloadError;
use crate::engine::EngineError;
use crate::load::LoadError;
use crate::optimize::OptimizeError;
use crate::telemetry::{LogError, printable};
use std::error::Error;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Logging(#[from] LogError),
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error("a key's id has ten hexadecimal digits; see `ortus key list`")]
    NoKeyId,
    #[error("the system has no random numbers for a key: {0}")]
    Random(std::io::Error),
    #[error(transparent)]
    App(#[from] AppError),
    /// The text of an [`EngineError`] for whoever runs the command.
    #[error("{0}")]
    Engine(String),
    /// Why a model was not got.
    #[error("{0}")]
    Download(String),
    #[error("{0:?} is neither a model's name nor a file; see `ortus list` for the names in the store")]
    NoModel(String),
    #[error("{}: {problem}", path.display())]
    LoneModel { path: PathBuf, problem: &'static str },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} has more than server.max_body_bytes = {limit} bytes; raise that key for larger input", path.display())]
    FileTooLarge { path: PathBuf, limit: usize },
    #[error("nothing to predict on: name one or more files, --text or --json")]
    NoInput,
    #[error("--json: not JSON: {0}")]
    Json(serde_json::Error),
    #[error("{0}")]
    Predict(String),
    /// What a server said of itself, or that it said nothing.
    #[error("{0}")]
    Health(String),
    /// Why a model cannot be measured as asked.
    #[error("{0}")]
    Bench(&'static str),
    /// Why nothing was optimised.
    #[error("{0}")]
    Optimize(String),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the server answered the first request with {status}: {text}; --input names a file with other tensors")]
    Refused { status: u16, text: String },
    #[error("interrupted; nothing was measured to its end")]
    Interrupted,
    #[error("the result could not be printed: {0}")]
    Output(std::io::Error),
}

impl From<DownloadError> for CliError {
    fn from(error: DownloadError) -> CliError {
        CliError::Download(one_line(&error))
    }
}

impl From<OptimizeError> for CliError {
    fn from(error: OptimizeError) -> CliError {
        match error {
            OptimizeError::Engine(error) => error.into(),
            OptimizeError::Internal { detail } => CliError::Optimize(detail),
            error => CliError::Optimize(one_line(&error)),
        }
    }
}

impl From<EngineError> for CliError {
    /// Whoever runs a command is not a client: internal detail is for them.
    fn from(error: EngineError) -> CliError {
        CliError::Engine(if let EngineError::Internal { detail } = error { detail } else { one_line(&error) })
    }
}

/// The error and, where its text leaves them out, its causes, in one line for a terminal.
pub(super) fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    // Far more than any real chain.
    for _ in 0..16 {
        let Some(error) = cause else { break };
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    printable(text.trim_end()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let source = std::io::Error::other("a\nb\u{1b}");
        let error = CliError::File { path: "f".into(), source };
        assert_eq!(one_line(&error), "f: a\\nb\\u{1b}");
        let error = CliError::from(EngineError::Internal { detail: "the reason".to_owned() });
        assert_eq!(one_line(&error), "the reason");
    }
}

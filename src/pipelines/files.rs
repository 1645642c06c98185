//! Reads the files beside a model: bounded, and only inside the model's own folder.
//!
//! Invariant: no text of an error names a path of the server. Knows no task.

use super::error::PipelineError;
use serde_json::Value;
use std::path::{Component, Path};

/// The largest `config.json` known (long label lists) has a few megabytes.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// The bytes of `name` in `folder`; `None` where there is no such file.
///
/// # Errors
/// Where it is larger than `limit` bytes or cannot be read.
pub(crate) fn read_bytes(folder: &Path, name: &str, limit: u64) -> Result<Option<Vec<u8>>, PipelineError> {
    use std::io::Read;
    let file = match std::fs::File::open(folder.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(setup(format!("{name}: cannot be opened: {}", error.kind()))),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| setup(format!("{name}: cannot be read: {}", error.kind())))?;
    if bytes.len() as u64 > limit {
        return Err(setup(format!("{name}: larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// The text of `name` in `folder`; `None` where there is no such file.
///
/// # Errors
/// Where it is larger than `limit` bytes, is not UTF-8 or cannot be read.
pub(crate) fn read_text(folder: &Path, name: &str, limit: u64) -> Result<Option<String>, PipelineError> {
    let Some(bytes) = read_bytes(folder, name, limit)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| setup(format!("{name}: not UTF-8 text")))?;
    Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
}

/// The JSON of `name` in `folder`, of any kind; `None` where there is no such file.
///
/// # Errors
/// As [`read_text`], and where it is no JSON.
pub(crate) fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, PipelineError> {
    let Some(text) = read_text(folder, name, MAX_JSON_BYTES)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| setup(format!("{name}: malformed JSON: {error}")))
}

/// The JSON object of `name` in `folder`; `None` where there is no such file.
///
/// # Errors
/// As [`read_json`], and where it is no object.
pub(crate) fn read_json_object(folder: &Path, name: &str) -> Result<Option<Value>, PipelineError> {
    match read_json(folder, name)? {
        Some(value) if !value.is_object() => Err(setup(format!("{name}: expected a JSON object"))),
        value => Ok(value),
    }
}

/// # Errors
/// Where `name`, which a file's key gives, could lie outside the model's folder.
pub(crate) fn check_inside(key: &str, name: &str) -> Result<(), PipelineError> {
    let mut components = Path::new(name).components().peekable();
    if components.peek().is_some() && components.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Ok(());
    }
    Err(setup(format!(
        "{key}: expected a file in the model's folder, got {name:?}; write a relative path without \"..\""
    )))
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

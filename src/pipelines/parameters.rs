//! Reading a request's `parameters`: each is one that the task takes, of a kind that it may be.

use super::{Parameters, PipelineError};
use serde_json::Value as Json;

/// Reads each parameter by `read`, which says whether the task takes it, or what is wrong with it.
///
/// # Errors
/// Names the parameter; of one that is not taken it lists those that are (`taken`).
pub(crate) fn read_each(
    task: &str,
    taken: &str,
    parameters: &Parameters,
    mut read: impl FnMut(&str, &Json) -> Result<bool, String>,
) -> Result<(), PipelineError> {
    for (name, value) in parameters {
        let problem = match read(name, value) {
            Ok(true) => continue,
            Ok(false) => format!("{task} has no such parameter; it takes {taken}"),
            Err(problem) => problem,
        };
        return Err(PipelineError::Parameter { name: name.clone(), problem });
    }
    Ok(())
}

/// # Errors
/// Says what it may be.
pub(crate) fn flag(value: &Json) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false, got {value}"))
}

/// # Errors
/// Says what it may be.
pub(crate) fn texts(value: &Json) -> Result<Vec<String>, String> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let texts = value.as_array().and_then(|values| values.iter().map(text).collect());
    texts.ok_or_else(|| format!("expected a list of texts, got {value}"))
}

/// A count of at least 1 that a parameter gives.
///
/// # Errors
/// Says what it may be.
pub(crate) fn count_from(value: &Json) -> Result<usize, String> {
    match value.as_u64() {
        Some(count) if count >= 1 => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
        _ => Err(format!("expected an integer of at least 1, got {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_of_texts_are_lists_of_texts() {
        assert_eq!(texts(&json!(["a", ""])), Ok(vec!["a".into(), String::new()]));
        assert!(texts(&json!(["a", 1])).unwrap_err().contains("expected a list of texts"));
    }
}

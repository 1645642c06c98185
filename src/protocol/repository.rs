//! The model repository extension: which models there are and in which state, and what a load may bring.

use super::ParameterError;
use crate::engine::{InferenceEngine, LoadOverrides, ModelState, ModelStatus};
use serde::Serialize;

#[derive(Debug, PartialEq, Serialize)]
pub struct IndexEntry {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    pub state: &'static str,
    /// Why it is not ready; empty where it is.
    pub reason: String,
}

/// All models, or those that answer.
pub fn index(engine: &InferenceEngine, only_ready: bool) -> Vec<IndexEntry> {
    let entries = engine.models().into_iter().flat_map(|model| entries_of(&model));
    entries.filter(|entry| !only_ready || entry.state == "READY").collect()
}

/// # Errors
/// Where a load brings files without the configuration that they need.
pub fn check_overrides(overrides: &LoadOverrides) -> Result<(), ParameterError> {
    if overrides.config_json.is_none() && !overrides.files.is_empty() {
        let problem = "files need config, the model configuration, beside them";
        return Err(ParameterError { name: "config".to_owned(), problem });
    }
    Ok(())
}

/// One entry for each version that is known, or one for a model without any.
fn entries_of(model: &ModelStatus) -> Vec<IndexEntry> {
    let entry = |version: Option<String>, state: ModelState, reason: &Option<String>| IndexEntry {
        name: model.name.to_string(),
        version,
        state: state_name(state),
        reason: reason_of(state, reason.as_deref()),
    };
    if model.versions.is_empty() {
        return vec![entry(None, model.state, &model.last_error)];
    }
    let versions = model.versions.iter();
    versions.map(|version| entry(Some(version.version.to_string()), version.state, &version.reason)).collect()
}

/// Triton's word for a state.
fn state_name(state: ModelState) -> &'static str {
    match state {
        ModelState::Ready => "READY",
        ModelState::Loading | ModelState::Downloading => "LOADING",
        ModelState::Unloading => "UNLOADING",
        ModelState::Unloaded | ModelState::Failed => "UNAVAILABLE",
    }
}

fn reason_of(state: ModelState, reason: Option<&str>) -> String {
    match (state, reason) {
        (ModelState::Ready, _) => String::new(),
        (_, Some(reason)) => reason.to_owned(),
        (ModelState::Unloaded, None) => "unloaded".to_owned(),
        (ModelState::Downloading, None) => "downloading".to_owned(),
        (ModelState::Loading | ModelState::Unloading | ModelState::Failed, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_tritons_names_and_a_reason() {
        for (state, reason, expected) in [
            (ModelState::Ready, Some("old"), ("READY", "")),
            (ModelState::Loading, None, ("LOADING", "")),
            (ModelState::Downloading, None, ("LOADING", "downloading")),
            (ModelState::Unloading, None, ("UNLOADING", "")),
            (ModelState::Unloaded, None, ("UNAVAILABLE", "unloaded")),
            (ModelState::Failed, Some("no graph"), ("UNAVAILABLE", "no graph")),
        ] {
            assert_eq!((state_name(state), &*reason_of(state, reason)), expected);
        }
    }
}

//! Class names of a model: from its manifest, `config.json` or `labels.txt`.
//!
//! Invariants: a file named in the manifest lies in the model's own folder; what is read is bounded. Knows no task.

use super::error::PipelineError;
use super::files::{check_inside, read_text};
use super::settings::LabelsSource;
use serde_json::Value;
use std::path::Path;

/// More classes than any model has; bounds what a single large key of `id2label` can make us allocate.
const MAX_LABELS: usize = 1_000_000;
const MAX_LABELS_BYTES: u64 = 64 << 20;

/// The class names by index, or none where no file has any. `classes` is the output's fixed class dimension.
///
/// The manifest comes first, then `id2label` of `config`, then `labels.txt`; gaps of `id2label` are `LABEL_n`, and so
/// are all names where there is no source but `classes` is known.
///
/// # Errors
/// Where a source is named but unreadable or malformed, or its count is not `classes`.
pub(crate) fn find(
    folder: &Path,
    manifest: Option<&LabelsSource>,
    config: Option<&Value>,
    classes: Option<usize>,
) -> Result<Vec<String>, PipelineError> {
    let (labels, source) = match manifest {
        Some(LabelsSource::List(labels)) => (labels.clone(), "labels of model.toml".to_owned()),
        Some(LabelsSource::File(name)) => {
            check_inside("labels", name)?;
            let text = read_text(folder, name, MAX_LABELS_BYTES)?
                .ok_or_else(|| setup(format!("labels: the file {name:?} is not in the model's folder")))?;
            (lines(&text), name.clone())
        }
        None => match from_config(config)? {
            Some(labels) => (labels, "id2label of config.json".to_owned()),
            None => match read_text(folder, "labels.txt", MAX_LABELS_BYTES)? {
                Some(text) => (lines(&text), "labels.txt".to_owned()),
                None => return Ok((0..classes.unwrap_or(0).min(MAX_LABELS)).map(numbered).collect()),
            },
        },
    };
    if labels.is_empty() || labels.len() > MAX_LABELS {
        return Err(setup(format!("{source}: expected 1 to {MAX_LABELS} labels, got {}", labels.len())));
    }
    match classes {
        Some(classes) if classes != labels.len() => {
            Err(setup(format!("{source} has {} labels, but the graph's output has {classes} classes", labels.len())))
        }
        _ => Ok(labels),
    }
}

/// The name of a class that has none, as transformers makes it.
pub(crate) fn numbered(index: usize) -> String {
    format!("LABEL_{index}")
}

fn lines(text: &str) -> Vec<String> {
    // Blank lines at the end are the editor's; one in between would shift every later class, so it is kept.
    text.trim_end().lines().map(|line| line.trim().to_owned()).collect()
}

fn from_config(config: Option<&Value>) -> Result<Option<Vec<String>>, PipelineError> {
    let Some(names) = config.and_then(|config| config.get("id2label")) else { return Ok(None) };
    let names = match names {
        Value::Null => return Ok(None),
        Value::Array(names) => return Ok(Some(names.iter().map(text_of).collect())),
        Value::Object(names) if names.is_empty() => return Ok(None),
        Value::Object(names) => names,
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            return Err(setup("config.json: id2label: expected an object of index to name".to_owned()));
        }
    };
    let mut labels = Vec::new();
    for (key, name) in names {
        let index: usize = key.parse().ok().filter(|&index| index < MAX_LABELS).ok_or_else(|| {
            setup(format!("config.json: id2label: expected keys 0 to {}, got {key:?}", MAX_LABELS - 1))
        })?;
        if index >= labels.len() {
            labels.resize(index + 1, None);
        }
        if let Some(slot) = labels.get_mut(index) {
            *slot = Some(text_of(name));
        }
    }
    Ok(Some(labels.into_iter().enumerate().map(|(index, name)| name.unwrap_or_else(|| numbered(index))).collect()))
}

fn text_of(name: &Value) -> String {
    name.as_str().map_or_else(|| name.to_string(), str::to_owned)
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `expected`: the labels joined with `|`, or a part of the error's text.
    #[track_caller]
    fn check(
        manifest: Option<LabelsSource>,
        config: Option<Value>,
        file: Option<&str>,
        classes: Option<usize>,
        expected: &str,
    ) {
        let folder = tempfile::tempdir().unwrap();
        if let Some(text) = file {
            std::fs::write(folder.path().join("labels.txt"), text).unwrap();
        }
        let got = find(folder.path(), manifest.as_ref(), config.as_ref(), classes);
        let text = got.map_or_else(|error| error.to_string(), |labels| labels.join("|"));
        assert!(text == expected || (!expected.is_empty() && text.contains(expected)), "{text}");
        assert!(!text.contains(folder.path().to_str().unwrap()), "names a path of the server: {text}");
    }

    fn named(name: &str) -> Option<LabelsSource> {
        Some(LabelsSource::File(name.to_owned()))
    }

    #[test]
    fn labels_come_from_the_manifest_then_config_then_labels_txt() {
        let config = Some(json!({"id2label": {"10": "k", "2": "c", "0": "a"}}));
        let filled = "a|LABEL_1|c|LABEL_3|LABEL_4|LABEL_5|LABEL_6|LABEL_7|LABEL_8|LABEL_9|k";
        let list = Some(LabelsSource::List(vec!["x".into(), "y".into()]));
        check(list.clone(), config.clone(), Some("p\nq"), Some(2), "x|y");
        check(named("labels.txt"), config.clone(), Some("\u{feff}p\r\nq\n\n"), Some(2), "p|q");
        check(None, config.clone(), Some("p\nq"), Some(11), filled);
        check(None, Some(json!({"id2label": ["u", "v"]})), None, None, "u|v");
        check(None, Some(json!({})), Some("p\n\nq\n"), None, "p||q");
        check(None, None, None, Some(2), "LABEL_0|LABEL_1");
        check(None, None, None, None, "");
    }

    #[test]
    fn a_wrong_count_names_both_counts() {
        let list = Some(LabelsSource::List(vec!["x".into(), "y".into()]));
        check(list, None, None, Some(3), "labels of model.toml has 2 labels, but the graph's output has 3 classes");
        check(None, Some(json!({"id2label": {"4": "e"}})), None, Some(4), "has 5 labels");
    }

    #[test]
    fn a_file_name_stays_in_the_folder() {
        for name in ["../labels.txt", "/etc/passwd", "a/../../b", ""] {
            check(named(name), None, Some("p"), None, "expected a file in the model's folder");
        }
        check(named("./labels.txt"), None, Some("p"), None, "p");
        check(named("other.txt"), None, None, None, "the file \"other.txt\" is not in the model's folder");
    }

    #[test]
    fn malformed_names_are_refused() {
        check(None, Some(json!({"id2label": {"x": "a"}})), None, None, "expected keys 0 to");
        check(None, Some(json!({"id2label": {"99999999999": "a"}})), None, None, "expected keys 0 to");
        check(None, Some(json!({"id2label": 3})), None, None, "expected an object");
        check(Some(LabelsSource::List(vec![])), None, None, None, "got 0");
    }
}

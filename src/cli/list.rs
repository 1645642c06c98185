//! `ortus list`: what is in the store, without loading anything.

use super::args::ListArgs;
use super::configuration::pretty;
use super::error::CliError;
use super::store::{offline_config, with_engine};
use super::table::{Table, size};
use crate::engine::ModelStatus;
use serde_json::{Value, json};
use std::path::Path;

pub(super) fn list(args: ListArgs) -> Result<String, CliError> {
    let json = args.json;
    let config = offline_config(args.store)?;
    let folder = config.store.models_dir.clone();
    let models = with_engine(&config, None, async |engine| Ok(engine.models()))?;
    let models: Vec<(ModelStatus, u64)> = models
        .into_iter()
        .map(|status| {
            let bytes = folder_bytes(&folder.join(status.name.as_str()), &mut 100_000);
            (status, bytes)
        })
        .collect();
    if json {
        let models: Vec<Value> = models.iter().map(|(status, bytes)| as_json(status, *bytes)).collect();
        return Ok(pretty(&Value::from(models)));
    }
    if models.is_empty() {
        return Ok(format!("no models in {}", folder.display()));
    }
    let mut table = Table::new(["NAME", "VERSIONS", "STATE", "TASK", "SIZE"]);
    let mut problems = String::new();
    for (status, bytes) in &models {
        let versions: Vec<String> = status.versions.iter().map(|version| version.version.to_string()).collect();
        let task = task(status).unwrap_or("-").to_owned();
        table.row([status.name.to_string(), versions.join(", "), status.state.as_str().to_owned(), task, size(*bytes)]);
        if let Some(error) = &status.last_error {
            problems.push_str(&format!("\n{}: {}", status.name, crate::telemetry::printable(error)));
        }
    }
    let gap = if problems.is_empty() { "" } else { "\n" };
    Ok(format!("{}{gap}{problems}", table.finish()))
}

fn as_json(status: &ModelStatus, bytes: u64) -> Value {
    json!({
        "name": status.name.as_str(),
        "versions": status.versions.iter().map(|version| version.version.to_string()).collect::<Vec<_>>(),
        "default_version": status.default_version.map(|version| version.to_string()),
        "state": status.state.as_str(),
        "task": task(status),
        "size_bytes": bytes,
        "last_error": status.last_error,
    })
}

/// The task as far as it is known without loading: what the manifest names.
fn task(status: &ModelStatus) -> Option<&str> {
    status.manifest.pipeline.task.as_deref()
}

/// Bytes of the files in `folder` and below; `left` bounds the files looked at. Folders behind links are not entered, so
/// that a link cannot lead in a circle.
fn folder_bytes(folder: &Path, left: &mut usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let mut bytes = 0u64;
    for entry in entries.filter_map(Result::ok) {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            bytes = bytes.saturating_add(folder_bytes(&entry.path(), left));
        } else if let Ok(metadata) = std::fs::metadata(entry.path())
            && metadata.is_file()
        {
            bytes = bytes.saturating_add(metadata.len());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_its_files_and_ends_on_a_circle_of_links() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("1")).unwrap();
        std::fs::write(folder.path().join("1/model.onnx"), [0; 100]).unwrap();
        std::fs::write(folder.path().join("labels.txt"), [0; 10]).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path(), folder.path().join("1/again")).unwrap();
        assert_eq!(folder_bytes(folder.path(), &mut 100), 110);
        assert!(folder_bytes(folder.path(), &mut 1) <= 10);
        assert_eq!(folder_bytes(&folder.path().join("none"), &mut 100), 0);
    }
}

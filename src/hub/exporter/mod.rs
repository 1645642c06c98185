//! PyTorch models, by way of `tools/exporter`: a process of its own, bounded in time and memory, without our secrets.
//!
//! The exporter's files are part of this binary, so that only PyTorch has to be installed. Its interpreter is the one that
//! the settings name, else that of `make exporter` (`tools/exporter/.venv` in the current folder), else
//! `.ortus/exporter/bin/python` of the store. Files without `path` in them are looked for as the system does.
//!
//! Invariants: what the process leaves behind is foreign: only files of known names are taken, regular ones and bounded. It
//! and all that it started end with the call, however that ends. Its texts reach a client without any path.

mod process;

use super::work::{disk_error, hex};
use super::{
    ExportOptions, FetchRequest, Fetched, Hub, HubError, HubSettings, ListedFile, Listing, Phase, Progress, Provenance,
    ProvenanceFile, Source, WorkFolder,
};
use crate::telemetry::{now_ms, rfc3339};
use process::{Answer, Limits};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The exporter itself.
const FILES: [(&str, &str); 7] = [
    ("__init__.py", include_str!("../../../tools/exporter/ortus_exporter/__init__.py")),
    ("__main__.py", include_str!("../../../tools/exporter/ortus_exporter/__main__.py")),
    ("archives.py", include_str!("../../../tools/exporter/ortus_exporter/archives.py")),
    ("describe.py", include_str!("../../../tools/exporter/ortus_exporter/describe.py")),
    ("errors.py", include_str!("../../../tools/exporter/ortus_exporter/errors.py")),
    ("export.py", include_str!("../../../tools/exporter/ortus_exporter/export.py")),
    ("load.py", include_str!("../../../tools/exporter/ortus_exporter/load.py")),
];
const GRAPH: &str = "model.onnx";
/// What an export may consist of, and how many bytes a file may have; `None` = what all may have together.
const RESULT: [(&str, Option<u64>); 4] = [
    (GRAPH, None),
    ("model.onnx_data", None),
    ("config.json", Some(16 << 20)),
    ("preprocessor_config.json", Some(1 << 20)),
];

pub(super) async fn check(hub: &Hub, request: &FetchRequest) -> Result<Listing, HubError> {
    allowed(hub.settings(), request)?;
    if let Some(python) = &hub.settings().python
        && named_by_path(python)
        && !python.is_file()
    {
        return Err(HubError::NoExporter);
    }
    let files = [GRAPH, "config.json"].map(|path| ListedFile { path: path.to_owned(), bytes: None });
    Ok(Listing { revision: request.revision.clone(), files: files.to_vec(), license: None, task: None })
}

pub(super) async fn fetch(
    hub: &Hub,
    request: &FetchRequest,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    allowed(hub.settings(), request)?;
    let source = match &request.source {
        Source::Torchvision { model } => json!({"kind": "torchvision", "model": model}),
        Source::PytorchHub { repository, entry } => {
            let repository = match &request.revision {
                Some(revision) if !repository.contains(':') => format!("{repository}:{revision}"),
                _ => repository.clone(),
            };
            json!({"kind": "pytorch_hub", "repository": repository, "entry": entry, "trust_repository": true})
        }
        _ => return Err(HubError::Invalid("source: expected torchvision or pytorch_hub".to_owned())),
    };
    let provenance = Provenance {
        source: request.source.kind().to_owned(),
        model_id: request.source.id(),
        revision: request.revision.clone(),
        ..Provenance::default()
    };
    export(hub, source, &request.export, provenance, work, progress).await
}

pub(super) async fn convert(
    hub: &Hub,
    file: &Path,
    options: &ExportOptions,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    let file = std::path::absolute(file).map_err(disk_error)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let source = json!({"kind": "file", "path": text(&file)?, "name": name});
    let provenance = Provenance { source: "upload".to_owned(), model_id: name, ..Provenance::default() };
    export(hub, source, options, provenance, work, progress).await
}

/// Whether the settings allow it at all.
fn allowed(settings: &HubSettings, request: &FetchRequest) -> Result<(), HubError> {
    let is_hub = matches!(request.source, Source::PytorchHub { .. });
    if is_hub && !settings.pytorch_hub {
        return Err(HubError::Refused(
            "a model of pytorch_hub is made by code of its repository, which is run; allow it with [hub] pytorch_hub = true"
                .to_owned(),
        ));
    }
    if settings.offline && (is_hub || request.export.weights.as_deref() != Some("none")) {
        return Err(HubError::Unreachable(
            "the server is offline ([hub] offline), so weights cannot be got".to_owned(),
        ));
    }
    Ok(())
}

/// The folder of one run of the exporter.
struct Room {
    root: PathBuf,
    code: PathBuf,
    scratch: PathBuf,
    out: PathBuf,
    /// Kept across tries, for the weights that were got.
    home: PathBuf,
}

impl Room {
    /// Blocks.
    fn make(work: &Path) -> Result<Room, HubError> {
        let work = std::path::absolute(work).map_err(disk_error)?;
        let root = work.join("export");
        let room = Room {
            code: root.join("code"),
            scratch: root.join("scratch"),
            out: root.join("out"),
            home: work.join("torch"),
            root,
        };
        room.remove()?;
        let package = room.code.join("ortus_exporter");
        for folder in [&package, &room.scratch, &room.out, &room.home] {
            fs::create_dir_all(folder).map_err(disk_error)?;
        }
        for (name, content) in FILES {
            fs::write(package.join(name), content).map_err(disk_error)?;
        }
        Ok(room)
    }

    fn remove(&self) -> Result<(), HubError> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk_error(error)),
            _ => Ok(()),
        }
    }
}

async fn export(
    hub: &Hub,
    mut request: Value,
    options: &ExportOptions,
    mut provenance: Provenance,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    let settings = hub.settings();
    let python = interpreter(settings, work.root()).ok_or(HubError::NoExporter)?;
    progress.set_phase(Phase::Converting);
    let root = work.root().to_owned();
    let room = blocking(hub, move || Room::make(&root)).await?;
    for (key, value) in [
        ("weights", json!(options.weights)),
        ("input_shape", json!(options.input_shape)),
        ("opset", json!(options.opset)),
        ("architecture", json!(options.architecture)),
        ("scratch", json!(text(&room.scratch)?)),
        ("out", json!(text(&room.out)?)),
    ] {
        if let Some(request) = request.as_object_mut() {
            request.insert(key.to_owned(), value);
        }
    }
    let limits = Limits {
        time: settings.export_timeout,
        memory: settings.export_memory,
        file_bytes: settings.max_download_bytes,
    };
    let run = process::run(&python, &room, &request, &limits);
    // Dropping the run ends the process.
    let answer = tokio::select! {
        biased;
        () = progress.cancelled().cancelled() => Err(HubError::Cancelled),
        () = hub.0.tasks.stopping().cancelled() => Err(HubError::Cancelled),
        answer = run => answer,
    };
    let outcome = match answer {
        Ok(Answer::Done(report)) => {
            let (version, bytes_max) = (work.version(), settings.max_download_bytes);
            progress.set_phase(Phase::Verifying);
            blocking(hub, move || {
                let files = take(&room.out, &version, bytes_max)?;
                room.remove()?;
                Ok((files, report))
            })
            .await
        }
        failed => {
            let cleaned = blocking(hub, move || room.remove()).await;
            match failed {
                Ok(Answer::Failed { code, error }) => Err(failure(&code, &error)),
                Err(error) => Err(error),
                Ok(Answer::Done(_)) => Err(cleaned.err().unwrap_or(HubError::Cancelled)),
            }
        }
    };
    let (files, report) = outcome?;
    provenance.files = files;
    provenance.export = Some(report);
    provenance.fetched_at = rfc3339(now_ms());
    Ok(Fetched { folder: work.version(), provenance })
}

async fn blocking<T: Send + 'static>(
    hub: &Hub,
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    hub.0.tasks.spawn_blocking(work).await.unwrap_or_else(|_| Err(HubError::Cancelled))
}

fn text(path: &Path) -> Result<&str, HubError> {
    path.to_str().ok_or_else(|| HubError::Disk("the store's folder has a name that is not UTF-8".to_owned()))
}

fn named_by_path(python: &Path) -> bool {
    python.components().count() > 1
}

/// The first of the places that has one. `work` is `<store>/.ortus/downloads/<name>`.
fn interpreter(settings: &HubSettings, work: &Path) -> Option<PathBuf> {
    // Not resolved further: a virtual environment is known by the link's own place.
    let there = |path: PathBuf| std::path::absolute(path).ok().filter(|path| path.is_file());
    match &settings.python {
        Some(python) if named_by_path(python) => there(python.clone()),
        Some(python) => Some(python.clone()),
        None => there(PathBuf::from("tools/exporter/.venv/bin/python"))
            .or_else(|| there(work.parent()?.parent()?.join("exporter/bin/python"))),
    }
}

fn failure(code: &str, error: &str) -> HubError {
    let error = without_paths(error);
    match code {
        "no_torch" => HubError::NoExporter,
        "bad_request" => HubError::Invalid(error),
        "unknown_model" => HubError::NotFound(error),
        "refused" => HubError::Refused(error),
        "memory" => HubError::TooLarge(error),
        "download_failed" => HubError::Unreachable(error),
        _ => HubError::Export(error),
    }
}

/// A library's message for a client: one line, bounded, without places of this machine.
fn without_paths(error: &str) -> String {
    let is_path = |word: &str| {
        let word = word.trim_start_matches(|c: char| !c.is_alphanumeric() && !"/~.".contains(c));
        word.starts_with(['/', '~'])
            || (word.contains("=/") || word.contains("file://") || word.contains(":/") && !word.contains("://"))
    };
    let words = error.split_whitespace().take(100).map(|word| if is_path(word) { "…" } else { word });
    let line: String = words.collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Takes the exporter's result into `version`, in place of what is there. Blocks.
fn take(out: &Path, version: &Path, bytes_max: u64) -> Result<Vec<ProvenanceFile>, HubError> {
    let odd = |problem: &str| HubError::Export(format!("the exporter's result was not taken: {problem}"));
    let mut files = Vec::new();
    let mut left = bytes_max;
    for entry in fs::read_dir(out).map_err(disk_error)? {
        let name = entry.map_err(disk_error)?.file_name().to_string_lossy().into_owned();
        let Some((_, most)) = RESULT.iter().find(|(known, _)| *known == name) else {
            return Err(odd("it has a file that is no part of a model"));
        };
        let path = out.join(&name);
        let data = path.symlink_metadata().map_err(disk_error)?;
        // A second name of a file could be one of a file of ours.
        if !data.is_file() || std::os::unix::fs::MetadataExt::nlink(&data) != 1 {
            return Err(odd("it has a link where a file is expected"));
        }
        if data.len() > most.unwrap_or(left).min(left) {
            return Err(HubError::TooLarge(format!(
                "{name} of the exporter's result has {} bytes, more than it may",
                data.len()
            )));
        }
        left -= data.len();
        let file = File::open(&path).map_err(disk_error)?;
        let (bytes, sha256) = hash(&file).map_err(disk_error)?;
        file.sync_all().map_err(disk_error)?;
        files.push(ProvenanceFile { path: name, bytes, sha256 });
    }
    if !files.iter().any(|file| file.path == GRAPH && file.bytes > 0) {
        return Err(odd("it has no graph"));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    fs::remove_dir_all(version).and_then(|()| fs::create_dir(version)).map_err(disk_error)?;
    for file in &files {
        fs::rename(out.join(&file.path), version.join(&file.path)).map_err(disk_error)?;
    }
    File::open(version).and_then(|folder| folder.sync_all()).map_err(disk_error)?;
    Ok(files)
}

fn hash(mut file: &File) -> std::io::Result<(u64, String)> {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            count => {
                hash.update(buffer.get(..count).unwrap_or_default());
                bytes += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! A file or folder of this machine: copied, checked as an archive or a download would be.
//!
//! Of a folder every regular file is taken, but for hidden ones, programs and pickles, as of an archive
//! ([`super::archive`]), and PyTorch's weights beside a graph. A link may lead to another file of the same folder and
//! nowhere else. Where [`super::HubSettings::allowed_paths`] names folders, nothing outside of them is read, and whether it
//! is there is not said.

use super::archive::{PROGRAMS, settle};
use super::url::{Kind, check_request, clear, download_folder, turn_into_version};
use super::work::{disk_error, hex};
use super::{
    FetchRequest, Fetched, Hub, HubError, ListedFile, Listing, PROVENANCE, Phase, Progress, Provenance, ProvenanceFile,
    Source, WorkFolder, transfer,
};
use crate::telemetry::{now_ms, rfc3339};
use sha2::Digest;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

const FILES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 8;
/// Bytes copied between two looks at whether they are still wanted.
const STEP: u64 = 16 << 20;

/// What is to be copied.
#[derive(Debug)]
struct Found {
    is_folder: bool,
    files: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Without links.
    from: PathBuf,
    /// In the version, with `/`.
    path: String,
    bytes: u64,
}

pub(super) async fn check(hub: &Hub, request: &FetchRequest) -> Result<Listing, HubError> {
    let found = find(hub, request).await?;
    let files = found.files.into_iter().map(|file| ListedFile { path: file.path, bytes: Some(file.bytes) }).collect();
    Ok(Listing { revision: None, files, license: None, task: None })
}

pub(super) async fn fetch(
    hub: &Hub,
    request: &FetchRequest,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    let found = find(hub, request).await?;
    let is_folder = found.is_folder;
    let named = found.files.first().and_then(|file| Kind::named(&file.path));
    progress.set_files(found.files.iter().map(|file| (file.path.clone(), Some(file.bytes))));
    let into = if is_folder { work.version() } else { download_folder(work)? };
    let stop = progress.cancelled().child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (shared, reserve, target, wanted) =
        (progress.clone(), hub.0.settings.reserve_bytes, into.clone(), request.sha256.clone());
    let copied = hub.0.tasks.spawn_blocking(move || {
        clear(&target)?;
        transfer::check_space(&target, found.files.iter().map(|file| file.bytes).sum(), reserve)?;
        let mut copied = Vec::new();
        for (index, file) in found.files.iter().enumerate() {
            let name = if is_folder { file.path.clone() } else { one_name(named) };
            let sha256 = copy(file, &target.join(name), &shared, &stop)?;
            if index == 0
                && !is_folder
                && let Some(wanted) = &wanted
                && *wanted != sha256
            {
                return Err(HubError::Corrupt(format!(
                    "checksum: {} has the SHA-256 {sha256}, expected {wanted}",
                    file.path
                )));
            }
            copied.push(ProvenanceFile { path: file.path.clone(), bytes: file.bytes, sha256 });
        }
        if is_folder {
            settle(&target).map_err(of_folder)?;
            // Folders may have been lifted.
            copied = ProvenanceFile::all_in(&target)?;
        }
        Ok(copied)
    });
    let files = copied.await.map_err(|_| HubError::Disk("the copy of a file broke off".to_owned()))??;
    if !is_folder {
        let file = into.join(one_name(named));
        return turn_into_version(hub, request, file, files, named, work, progress).await;
    }
    progress.set_phase(Phase::Verifying);
    if let Some(wanted) = &request.sha256
        && !files.iter().any(|file| file.sha256 == *wanted)
    {
        return Err(HubError::Corrupt(format!("checksum: no file of the folder has the SHA-256 {wanted}")));
    }
    let provenance = Provenance {
        source: request.source.kind().to_owned(),
        model_id: request.source.id(),
        fetched_at: rfc3339(now_ms()),
        files,
        ..Provenance::default()
    };
    Ok(Fetched { folder: work.version(), provenance })
}

/// What a single file is called until it is a version.
fn one_name(named: Option<Kind>) -> String {
    match named {
        Some(Kind::PyTorch(ending)) => format!("file.{ending}"),
        _ => "file".to_owned(),
    }
}

async fn find(hub: &Hub, request: &FetchRequest) -> Result<Found, HubError> {
    check_request(request)?;
    let Source::Local { path } = &request.source else {
        return Err(HubError::Invalid("source: expected a path".to_owned()));
    };
    let (path, allowed, max) = (path.clone(), hub.0.settings.allowed_paths.clone(), hub.0.settings.max_download_bytes);
    let found = hub.0.tasks.spawn_blocking(move || look(&path, &allowed, max));
    found.await.map_err(|_| HubError::Disk("a path could not be read".to_owned()))?
}

/// Blocks.
fn look(path: &Path, allowed: &[PathBuf], max: u64) -> Result<Found, HubError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let real = fs::canonicalize(path);
    if !allowed.is_empty() {
        let inside = |real: &PathBuf| {
            allowed.iter().filter_map(|folder| fs::canonicalize(folder).ok()).any(|folder| real.starts_with(folder))
        };
        if !real.as_ref().is_ok_and(inside) {
            return Err(HubError::Refused(
                "path: it is not in a folder that [hub] allowed_paths names, or is not there".to_owned(),
            ));
        }
    }
    let Ok(real) = real else {
        return Err(HubError::NotFound(format!("path: there is no file or folder {name:?} that can be read")));
    };
    let kind = fs::metadata(&real).map_err(|error| unreadable(&name, &error))?;
    let mut found = Found { is_folder: kind.is_dir(), files: Vec::new() };
    if kind.is_dir() {
        walk(&real, &real, "", 0, &mut found.files)?;
        if found.files.is_empty() {
            return Err(HubError::Refused(format!("the folder {name:?} holds no file of a model")));
        }
    } else if kind.is_file() {
        found.files.push(Entry { from: real, path: name.clone(), bytes: kind.len() });
    } else {
        return Err(HubError::Refused(format!("path: {name:?} is no regular file and no folder")));
    }
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes = found.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes));
    if bytes.is_none_or(|bytes| bytes > max) {
        return Err(HubError::TooLarge(format!(
            "{name:?} has more than the {max} bytes that [hub] max_download_mb allows"
        )));
    }
    Ok(found)
}

fn walk(root: &Path, folder: &Path, prefix: &str, depth: usize, files: &mut Vec<Entry>) -> Result<(), HubError> {
    for entry in fs::read_dir(folder).map_err(|error| unreadable(prefix, &error))? {
        let entry = entry.map_err(|error| unreadable(prefix, &error))?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            return Err(HubError::Refused(format!("a file in {prefix:?} has a name that is no text")));
        };
        if name.starts_with('.') || name == PROVENANCE || name == "__pycache__" {
            continue;
        }
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(|error| unreadable(&path, &error))?;
        if kind.is_dir() {
            if depth + 1 >= DEPTH_MAX {
                return Err(HubError::Refused(format!("{path:?}: folders are nested deeper than {DEPTH_MAX}")));
            }
            walk(root, &entry.path(), &path, depth + 1, files)?;
            continue;
        }
        if is_program(&name) {
            continue;
        }
        let from = fs::canonicalize(entry.path()).map_err(|error| unreadable(&path, &error))?;
        if !from.starts_with(root) {
            return Err(HubError::Refused(format!(
                "{path:?} is a link that leads out of the folder; put the file itself there"
            )));
        }
        let target = fs::metadata(&from).map_err(|error| unreadable(&path, &error))?;
        if !target.is_file() {
            return Err(HubError::Refused(format!("{path:?} is no regular file")));
        }
        if transfer::safe_path(&path).is_none() {
            return Err(HubError::Refused(format!("unsafe file name {path:?}")));
        }
        if files.len() >= FILES_MAX {
            return Err(HubError::TooLarge(format!("the folder has more than {FILES_MAX} files")));
        }
        files.push(Entry { from, path, bytes: target.len() });
    }
    Ok(())
}

/// Programs and pickles, and weights in PyTorch's own form, which are some. `.bin` is otherwise an ending of external data.
fn is_program(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    PROGRAMS.contains(&ending)
        || (ending == "bin"
            && ["pytorch_model", "training_args", "optimizer", "scheduler"].iter().any(|start| name.starts_with(start)))
}

/// Copies, hashes and syncs one file; gives its hash. Blocks.
fn copy(entry: &Entry, to: &Path, progress: &Progress, stop: &CancellationToken) -> Result<String, HubError> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(disk_error)?;
    }
    // The path had no links when it was looked at, and must not have become one since.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let from = fs::OpenOptions::new().read(true).custom_flags(flags).open(&entry.from);
    let from = from.map_err(|error| unreadable(&entry.path, &error))?;
    if !from.metadata().is_ok_and(|kind| kind.is_file()) {
        return Err(HubError::Refused(format!("{:?} is no regular file any more", entry.path)));
    }
    let mut file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(to).map_err(disk_error)?;
    let mut copied = 0;
    while copied < entry.bytes {
        if stop.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        // Within the kernel, and without a copy at all where the file system shares blocks.
        let bytes = io::copy(&mut (&from).take(STEP.min(entry.bytes - copied)), &mut file).map_err(disk_error)?;
        if bytes == 0 {
            break;
        }
        copied += bytes;
        progress.set_done(&entry.path, copied);
    }
    let more = (&from).read(&mut [0]).map_err(|error| unreadable(&entry.path, &error))?;
    if copied != entry.bytes || more > 0 {
        return Err(HubError::Corrupt(format!("{:?} changed while it was copied; try again", entry.path)));
    }
    let hash = transfer::hash_file(&file, copied, stop)?;
    file.sync_all().map_err(disk_error)?;
    progress.finish(&entry.path);
    Ok(hex(&hash.finalize()))
}

/// What is said of an archive, of a folder.
fn of_folder(error: HubError) -> HubError {
    match error {
        HubError::Refused(text) => HubError::Refused(text.replace("the archive", "the folder")),
        other => other,
    }
}

fn unreadable(name: &str, error: &io::Error) -> HubError {
    HubError::NotFound(format!("path: {name:?} cannot be read: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::super::HubSettings;
    use super::*;
    use crate::tasks::Tasks;
    use std::os::unix::fs::symlink;

    const GRAPH: &[u8] = b"\x08\x08graph";

    async fn take(path: &Path, allowed: &[&Path]) -> Result<Vec<String>, HubError> {
        take_checked(path, allowed, None).await
    }

    /// The names of the version's files, or why there is none.
    async fn take_checked(path: &Path, allowed: &[&Path], sha256: Option<String>) -> Result<Vec<String>, HubError> {
        let settings = HubSettings {
            allowed_paths: allowed.iter().map(|path| path.to_path_buf()).collect(),
            reserve_bytes: 0,
            max_download_bytes: 1000,
            ..HubSettings::default()
        };
        let hub = Hub::new(settings, Tasks::new()).unwrap();
        let request = FetchRequest { sha256, ..FetchRequest::new(Source::Local { path: path.to_owned() }) };
        let root = tempfile::tempdir().unwrap();
        let work = WorkFolder::open(root.path(), &request).unwrap();
        let fetched = hub.fetch(&request, &work, &Progress::default()).await?;
        assert_eq!(fetched.provenance.source, "local");
        assert_eq!(fetched.provenance.files, ProvenanceFile::all_in(&fetched.folder).unwrap());
        // A second try begins anew.
        hub.fetch(&request, &work, &Progress::default()).await?;
        Ok(fetched.provenance.files.into_iter().map(|file| file.path).collect())
    }

    #[tokio::test]
    async fn a_folder_is_copied_without_programs_and_links_out_of_it() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("model");
        fs::create_dir_all(model.join("onnx")).unwrap();
        for name in [
            "model.onnx",
            "weights.bin",
            "config.json",
            "onnx/x.txt",
            "pytorch_model.bin",
            "pytorch_model-1-of-2.bin",
            "a.py",
            "b.PKL",
            "c.so",
            "d.pt",
            ".hidden",
        ] {
            fs::write(model.join(name), GRAPH).unwrap();
        }
        symlink("config.json", model.join("link.json")).unwrap();
        let expected = ["config.json", "link.json", "model.onnx", "onnx/x.txt", "weights.bin"];
        assert_eq!(take(&model, &[]).await.unwrap(), expected);
        assert_eq!(take(&model, &[root.path()]).await.unwrap(), expected);

        fs::write(root.path().join("secret"), b"secret").unwrap();
        symlink("../secret", model.join("out.json")).unwrap();
        let error = take(&model, &[root.path()]).await.unwrap_err().to_string();
        assert!(error.contains("leads out of the folder") && !error.contains(root.path().to_str().unwrap()), "{error}");
        fs::remove_file(model.join("out.json")).unwrap();
        symlink("onnx", model.join("folder")).unwrap();
        assert!(take(&model, &[]).await.unwrap_err().to_string().contains("no regular file"));
        fs::remove_file(model.join("folder")).unwrap();
        fs::write(model.join("large"), vec![0; 1000]).unwrap();
        assert!(matches!(take(&model, &[]).await, Err(HubError::TooLarge(_))));
    }

    #[tokio::test]
    async fn a_file_becomes_a_version() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("net.onnx");
        fs::write(&file, GRAPH).unwrap();
        assert_eq!(take(&file, &[]).await.unwrap(), ["model.onnx"]);
        let good = super::super::testing::sha256(GRAPH);
        assert_eq!(take_checked(&file, &[], Some(good)).await.unwrap(), ["model.onnx"]);
        let error = take_checked(&file, &[], Some("0".repeat(64))).await.unwrap_err();
        assert!(matches!(&error, HubError::Corrupt(text) if text.contains("checksum")));
        fs::write(root.path().join("x.txt"), b"text").unwrap();
        assert!(matches!(take(&root.path().join("x.txt"), &[]).await, Err(HubError::Refused(_))));
        assert!(matches!(take(Path::new("/dev/zero"), &[]).await, Err(HubError::Refused(_))));
    }

    #[tokio::test]
    async fn nothing_outside_the_allowed_folders_is_read_or_told_of() {
        let root = tempfile::tempdir().unwrap();
        let (inside, outside) = (root.path().join("in"), root.path().join("out"));
        for folder in [&inside, &outside] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("model.onnx"), GRAPH).unwrap();
        }
        symlink(outside.join("model.onnx"), inside.join("link.onnx")).unwrap();
        assert!(take(&inside.join("model.onnx"), &[&inside]).await.is_ok());
        let mut said = std::collections::BTreeSet::new();
        for path in [
            outside.join("model.onnx"),
            inside.join("../out/model.onnx"),
            inside.join("link.onnx"),
            outside.join("none.onnx"),
            inside.join("none.onnx"),
            PathBuf::from("/etc/passwd"),
        ] {
            let error = take(&path, &[&inside]).await.unwrap_err();
            assert!(matches!(error, HubError::Refused(_)), "{}", path.display());
            said.insert(error.to_string());
        }
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(matches!(take(&inside.join("none.onnx"), &[]).await, Err(HubError::NotFound(_))));
    }
}

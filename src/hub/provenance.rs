//! Where a version came from, kept beside its files.

use super::HubError;
use super::work::{disk_error, hex, sha256_of};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

/// The file's name in a version's folder.
pub const PROVENANCE: &str = "ortus-provenance.json";
const BYTES_MAX: u64 = 4 << 20;
/// Read at once while a file is hashed.
const CHUNK_BYTES: usize = 1 << 20;

/// Where a version came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// `huggingface`, `url`, `local`, `upload`, `torchvision` or `pytorch_hub`.
    pub source: String,
    /// What it is called there: a repository, a URL without its secrets, a file's name.
    pub model_id: String,
    /// The commit that the files are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// RFC 3339, UTC.
    #[serde(default)]
    pub fetched_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Every file of the version but this one.
    #[serde(default)]
    pub files: Vec<ProvenanceFile>,
    /// What was asked for, as [`crate::hub::FetchRequest::key`] writes it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// What the exporter says of a conversion: versions, and how far its ONNX is from PyTorch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<serde_json::Value>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvenanceFile {
    pub path: String,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

impl Provenance {
    /// The `source` of a version that was made here of another one.
    pub const MADE_HERE: &str = "optimize";

    /// Whether it was made here of another version.
    pub fn is_made_here(&self) -> bool {
        self.source == Provenance::MADE_HERE
    }

    /// What lies in a version's folder; `None` where there is none, or one that cannot be read.
    pub fn read(folder: &Path) -> Option<Provenance> {
        let path = folder.join(PROVENANCE);
        // Looked at before it is opened: opening a named pipe waits for a writer.
        fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Whether a version's folder has one, be it readable or not. Blocks for one look.
    pub fn is_in(folder: &Path) -> bool {
        fs::symlink_metadata(folder.join(PROVENANCE)).is_ok()
    }

    /// The graph among the files, as far as their names tell.
    pub fn graph(&self) -> Option<&ProvenanceFile> {
        let usual = ["model.onnx", "model.ort", "onnx/model.onnx"];
        let named = usual.iter().find_map(|name| self.files.iter().find(|file| file.path == *name));
        let is_graph = |file: &&ProvenanceFile| file.path.ends_with(".onnx") || file.path.ends_with(".ort");
        named.or_else(|| self.files.iter().find(is_graph))
    }

    /// Holds the files of a version's folder to what is written here: their sizes, and with `hashes` all of their bytes.
    /// Files that are not written here are not looked at. Ends early where `is_stopping`. Blocks, for about a second for
    /// each gigabyte hashed.
    ///
    /// # Errors
    /// The first file that is not right, and in what.
    pub fn verify(&self, folder: &Path, hashes: bool, is_stopping: &dyn Fn() -> bool) -> Result<(), String> {
        for file in &self.files {
            let path = Path::new(&file.path);
            if !path.components().all(|component| matches!(component, Component::Normal(_))) {
                return Err(format!("{PROVENANCE} names a file outside the version's folder"));
            }
            let path = folder.join(path);
            match fs::metadata(&path) {
                Ok(found) if found.is_file() && found.len() == file.bytes => {}
                Ok(found) if found.is_file() => {
                    return Err(format!(
                        "{} has {} bytes and had {} when it was installed",
                        file.path,
                        found.len(),
                        file.bytes
                    ));
                }
                Ok(_) => return Err(format!("{} is no file any more", file.path)),
                Err(error) => return Err(format!("{} could not be read: {}", file.path, error.kind())),
            }
            if !hashes {
                continue;
            }
            let found = sha256_of_first(&path, file.bytes, is_stopping)
                .map_err(|error| format!("{} could not be read: {}", file.path, error.kind()))?;
            if is_stopping() {
                return Ok(());
            }
            if !found.eq_ignore_ascii_case(&file.sha256) {
                return Err(format!(
                    "{} is not what was installed: its SHA-256 is {found} and was {}",
                    file.path, file.sha256
                ));
            }
        }
        Ok(())
    }

    /// Writes and syncs it into a folder. Blocks.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        let mut file = std::fs::File::create(folder.join(PROVENANCE))?;
        std::io::Write::write_all(&mut file, &bytes)?;
        file.sync_all()
    }
}

impl ProvenanceFile {
    /// Every file below `folder` but the provenance itself, by name. Reads them all, and blocks.
    ///
    /// # Errors
    /// Where one cannot be read, or is no regular file.
    pub fn all_in(folder: &Path) -> Result<Vec<ProvenanceFile>, HubError> {
        let mut files = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(&next).map_err(disk_error)? {
                let path = entry.map_err(disk_error)?.path();
                let kind = std::fs::symlink_metadata(&path).map_err(disk_error)?;
                if kind.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(folder).ok().and_then(Path::to_str).unwrap_or_default().to_owned();
                if !kind.is_file() || name.is_empty() {
                    return Err(HubError::Refused(format!("{name:?} is no regular file")));
                }
                if name != PROVENANCE {
                    files.push(ProvenanceFile {
                        path: name,
                        bytes: kind.len(),
                        sha256: sha256_of(&path).map_err(disk_error)?,
                    });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }
}

/// The SHA-256 of a file's first `bytes`.
fn sha256_of_first(path: &Path, bytes: u64, is_stopping: &dyn Fn() -> bool) -> std::io::Result<String> {
    let mut file = File::open(path)?.take(bytes);
    let (mut hasher, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 || is_stopping() {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(chunk.get(..read).unwrap_or_default());
    }
}

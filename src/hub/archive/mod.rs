//! Unpacks a model's folder: `.zip` and `.tar.gz`, bounded, without links, devices or names that lead elsewhere.
//!
//! Invariants: nothing is written outside the folder; what an archive says of itself is an early refusal at most, the bytes
//! written are what counts; no file is written twice and none is executable; all is synced to disk. Only regular files and
//! folders are known. An archive within an archive stays closed.
//!
//! Not every file is taken: hidden ones (which are also where macOS and git keep theirs), and programs and pickles
//! ([`PROGRAMS`]), which nothing here would ever run, are left out without a word, as most repositories have some.

mod tar;
mod zip;

use super::transfer::safe_path;
use super::work::disk_error;
use super::{HubError, HubSettings, PROVENANCE};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// What kind of archive a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// Also what PyTorch's own files are: who knows a file's name looks at that first.
    Zip,
    TarGz,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Entries of any kind, also those that are left out.
    pub files: usize,
    /// All files unpacked, together.
    pub bytes: u64,
}

impl ArchiveLimits {
    /// What the settings allow.
    pub fn of(settings: &HubSettings) -> ArchiveLimits {
        ArchiveLimits { files: settings.max_archive_entries, bytes: settings.max_download_bytes }
    }
}

/// Endings of files that are programs, or become some when they are read.
pub(super) const PROGRAMS: [&str; 22] = [
    "bat", "cmd", "ckpt", "dll", "dylib", "exe", "ipynb", "jar", "joblib", "js", "mar", "pickle", "pkl", "ps1", "pt",
    "pt2", "pth", "py", "pyc", "pyd", "sh", "so",
];
const GRAPHS: [&str; 2] = ["onnx", "ort"];
/// Hidden, so that no file of an archive has the name.
const LIFTED: &str = ".lifted";

impl Archive {
    /// `None` where it is neither.
    pub fn of(first: &[u8]) -> Option<Archive> {
        if first.starts_with(b"PK\x03\x04") || first.starts_with(b"PK\x05\x06") {
            Some(Archive::Zip)
        } else if first.starts_with(&[0x1f, 0x8b, 8]) {
            Some(Archive::TarGz)
        } else {
            None
        }
    }

    /// Unpacks `file` into the empty folder `into`; where all entries lie in one folder, its content. Blocks.
    ///
    /// A folder of versions, as Triton has them, becomes its only version, with the files beside it.
    ///
    /// # Errors
    /// [`HubError::Refused`] for names, links and other kinds of entries, [`HubError::TooLarge`], [`HubError::Corrupt`].
    pub fn unpack(self, file: &Path, into: &Path, limits: &ArchiveLimits) -> Result<(), HubError> {
        self.unpack_until(file, into, limits, &CancellationToken::new())
    }

    /// [`Archive::unpack`], which also ends when `cancelled` fires.
    ///
    /// # Errors
    /// As there, and [`HubError::Cancelled`].
    pub fn unpack_until(
        self,
        file: &Path,
        into: &Path,
        limits: &ArchiveLimits,
        cancelled: &CancellationToken,
    ) -> Result<(), HubError> {
        let file = File::open(file).map_err(disk_error)?;
        let mut out = Unpacked { into, limits, cancelled, entries: 0, bytes: 0, files: 0 };
        match self {
            Archive::Zip => zip::unpack(&file, &mut out)?,
            Archive::TarGz => tar::unpack(&file, &mut out)?,
        }
        if out.files == 0 {
            return Err(HubError::Refused("the archive holds no file of a model".to_owned()));
        }
        settle(into)
    }
}

/// What is unpacked so far.
struct Unpacked<'a> {
    into: &'a Path,
    limits: &'a ArchiveLimits,
    cancelled: &'a CancellationToken,
    entries: usize,
    bytes: u64,
    files: usize,
}

impl Unpacked<'_> {
    /// Counts an entry before anything else is done for it.
    fn entry(&mut self) -> Result<(), HubError> {
        self.entries += 1;
        if self.entries > self.limits.files { Err(self.too_many()) } else { Ok(()) }
    }

    fn too_many(&self) -> HubError {
        HubError::TooLarge(format!("the archive has more than max_archive_entries = {} entries", self.limits.files))
    }

    fn too_large(&self) -> HubError {
        HubError::TooLarge(format!("the archive unpacks to more than {} bytes", self.limits.bytes))
    }

    fn folder(&mut self, path: &Path, name: &str) -> Result<(), HubError> {
        fs::create_dir_all(self.into.join(path)).map_err(|error| written(error, name))
    }

    /// Writes and syncs one file; how many bytes it has.
    fn file(&mut self, path: &Path, name: &str, content: &mut dyn Read) -> Result<u64, HubError> {
        if let Some(parent) = path.parent() {
            self.folder(parent, name)?;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(self.into.join(path));
        let mut file = file.map_err(|error| written(error, name))?;
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        loop {
            if self.cancelled.is_cancelled() {
                return Err(HubError::Cancelled);
            }
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.read_error(&error)),
            };
            bytes += count as u64;
            self.bytes += count as u64;
            if self.bytes > self.limits.bytes {
                return Err(self.too_large());
            }
            file.write_all(buffer.get(..count).unwrap_or_default()).map_err(disk_error)?;
        }
        file.sync_all().map_err(disk_error)?;
        self.files += 1;
        Ok(bytes)
    }

    fn read_error(&self, error: &io::Error) -> HubError {
        match error.kind() {
            io::ErrorKind::FileTooLarge => self.too_large(),
            _ => damaged(),
        }
    }
}

/// Where the entry `name` goes; `None` where it is left out.
fn place(name: &str, is_folder: bool) -> Result<Option<PathBuf>, HubError> {
    let mut rest = name;
    while let Some(shorter) = rest.strip_prefix("./") {
        rest = shorter;
    }
    if is_folder {
        rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() || rest == "." {
            return Ok(None);
        }
    }
    let Some(path) = safe_path(rest) else {
        return Err(HubError::Refused(format!(
            "{} in the archive is no plain relative name of a file; pack the model's folder again, with relative names, '/' \
             between folders and at most 8 of them",
            shown(name)
        )));
    };
    // What is said of its origin is said by whoever fetched it.
    let left_out = |part: &str| part.starts_with('.') || part == "__MACOSX" || part == PROVENANCE;
    if rest.split('/').any(left_out) {
        return Ok(None);
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    Ok((is_folder || !PROGRAMS.contains(&ending.as_str())).then_some(path))
}

/// A foreign name in a text for people.
fn shown(name: &str) -> String {
    let mut short: String = name.chars().take(100).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn refused_kind(name: &str, kind: &str) -> HubError {
    HubError::Refused(format!("{} in the archive is {kind}; only regular files and folders are unpacked", shown(name)))
}

fn damaged() -> HubError {
    HubError::Corrupt("the archive is damaged or cut short; pack it again, or send it again".to_owned())
}

fn written(error: io::Error, name: &str) -> HubError {
    match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            HubError::Refused(format!("{} is in the archive twice, or is a file and a folder", shown(name)))
        }
        _ => disk_error(error),
    }
}

/// Gives the folder a version's layout, and syncs it.
pub(super) fn settle(into: &Path) -> Result<(), HubError> {
    remove_empty(into, 0).map_err(disk_error)?;
    let entries = list(into).map_err(disk_error)?;
    if let [(top, true)] = entries.as_slice() {
        lift(into, top)?;
    }
    let entries = list(into).map_err(disk_error)?;
    if !has_graph(&entries) {
        let numbered = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        let mut versions = Vec::new();
        for (name, _) in entries.iter().filter(|(name, is_folder)| *is_folder && numbered(name)) {
            if has_graph(&list(&into.join(name)).map_err(disk_error)?) {
                versions.push(name);
            }
        }
        match versions.as_slice() {
            [] => {}
            [version] => lift(into, version)?,
            several => {
                return Err(HubError::Refused(format!(
                    "the archive holds {} versions of a model; send each one alone",
                    several.len()
                )));
            }
        }
    }
    sync(into, 0).map_err(disk_error)
}

/// Names of a folder's entries, and which are folders.
fn list(folder: &Path) -> io::Result<Vec<(String, bool)>> {
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()))
    };
    fs::read_dir(folder)?.map(entry).collect()
}

fn has_graph(entries: &[(String, bool)]) -> bool {
    let graph = |name: &str| name.rsplit_once('.').is_some_and(|(_, ending)| GRAPHS.contains(&ending));
    entries.iter().any(|(name, is_folder)| !is_folder && graph(name))
}

/// Puts the content of `into/name` into `into`.
fn lift(into: &Path, name: &str) -> Result<(), HubError> {
    // Aside first: the folder may hold an entry of its own name.
    let aside = into.join(LIFTED);
    fs::rename(into.join(name), &aside).map_err(disk_error)?;
    for (entry, _) in list(&aside).map_err(disk_error)? {
        let to = into.join(&entry);
        if to.exists() {
            return Err(HubError::Refused(format!(
                "the archive has {} beside the version and in it; keep one of them",
                shown(&entry)
            )));
        }
        fs::rename(aside.join(&entry), to).map_err(disk_error)?;
    }
    fs::remove_dir(aside).map_err(disk_error)
}

/// Depth is bounded by [`safe_path`].
const DEPTH_MAX: usize = 16;

fn remove_empty(folder: &Path, depth: usize) -> io::Result<()> {
    for (name, is_folder) in list(folder)? {
        let inner = folder.join(name);
        if is_folder && depth < DEPTH_MAX {
            remove_empty(&inner, depth + 1)?;
            if list(&inner)?.is_empty() {
                fs::remove_dir(inner)?;
            }
        }
    }
    Ok(())
}

fn sync(folder: &Path, depth: usize) -> io::Result<()> {
    for (name, is_folder) in list(folder)? {
        if is_folder && depth < DEPTH_MAX {
            sync(&folder.join(name), depth + 1)?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;

//! What the server itself keeps in the store, under `.ortus`: files that a load call brought, and the lock.
//!
//! Invariants: a name from a client never leads out of the folder made for that call; what is written is bounded; a
//! folder of overrides belongs to one load and is never written again.

use super::manifest::is_contained;
use super::{ModelError, ModelName, Version};
use bytes::Bytes;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILES_MAX: usize = 1_000;
const PART_BYTES_MAX: usize = 255;
const NAME_BYTES_MAX: usize = 1_024;

/// Keeps other servers off a store while it lives.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the model store is in use by another server; give each server its own store, or mount a shared one read-only"
    )]
    InUse,
    #[error("the model store could not be opened: {0}")]
    Io(io::ErrorKind),
}

impl StoreLock {
    /// Takes the store; `None` where it is read-only, which nothing needs to be kept from.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process holds it. The lock ends with its process, however that ends.
    pub fn acquire(models_dir: &Path) -> Result<Option<StoreLock>, StoreError> {
        let folder = models_dir.join(".ortus");
        let opened = fs::create_dir_all(&folder)
            .and_then(|()| OpenOptions::new().create(true).write(true).truncate(false).open(folder.join("lock")));
        let file = match opened {
            Ok(file) => file,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(StoreError::Io(error.kind())),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(StoreLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
            Err(TryLockError::Error(error)) => Err(StoreError::Io(error.kind())),
        }
    }
}

/// Checks the name of a file of a load call: `<version>/<path>`.
///
/// # Errors
/// What is wrong with it and what it should be.
pub(super) fn check_name(name: &str) -> Result<(Version, &str), String> {
    let shown: String = name.chars().take(100).collect();
    let wrong =
        || format!("file {shown:?}: expected <version>/<file name>, such as 1/model.onnx, without '..' or '\\'");
    let (version, path) = name.split_once('/').ok_or_else(wrong)?;
    let version = Version::parse(version).ok_or_else(wrong)?;
    let good = name.len() <= NAME_BYTES_MAX
        && is_contained(path)
        && !path.ends_with('/')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && !part.starts_with('.') && part.len() <= PART_BYTES_MAX)
        && !path.chars().any(char::is_control);
    if good { Ok((version, path)) } else { Err(wrong()) }
}

fn folder_of(models_dir: &Path, model: &ModelName) -> PathBuf {
    models_dir.join(".ortus").join("overrides").join(model.as_str())
}

/// Writes the files of one load call into a fresh folder. Blocks.
///
/// # Errors
/// `Invalid` for names and sizes, `Conflict` where the store cannot be written. Nothing is left behind.
pub(super) fn write(
    models_dir: &Path,
    model: &ModelName,
    files: &[(String, Bytes)],
    bytes_max: u64,
) -> Result<PathBuf, ModelError> {
    let invalid = |problem: String| ModelError::Invalid { model: model.clone(), problem };
    if files.len() > FILES_MAX {
        return Err(invalid(format!("expected at most {FILES_MAX} files, got {}", files.len())));
    }
    let total: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    if total > bytes_max {
        return Err(invalid(format!("expected files of at most {bytes_max} bytes together, got {total}")));
    }
    let checked = files.iter().map(|(name, content)| check_name(name).map(|(version, path)| (version, path, content)));
    let checked: Vec<(Version, &str, &Bytes)> = checked.collect::<Result<_, _>>().map_err(invalid)?;
    let folder = folder_of(models_dir, model).join(uuid::Uuid::new_v4().simple().to_string());
    let result = write_all(models_dir, &folder, &checked);
    if result.is_err() {
        remove(&folder);
    }
    match result {
        Ok(()) => Ok(folder),
        // One name is another's folder, or stands twice.
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            Err(invalid("two files of the call have the same name, or one is the other's folder".into()))
        }
        Err(error) => Err(ModelError::Conflict {
            model: model.clone(),
            problem: format!("the store cannot take the files of this call: {}", error.kind()),
        }),
    }
}

fn write_all(models_dir: &Path, folder: &Path, files: &[(Version, &str, &Bytes)]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // `.ortus` itself may have been made a link by whoever filled the store.
    if !folder.canonicalize()?.starts_with(models_dir.canonicalize()?) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    for (version, path, content) in files {
        let file = folder.join(version.to_string()).join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().write(true).create_new(true).open(&file)?.write_all(content)?;
    }
    Ok(())
}

/// Removes the overrides of a model but the folder `kept`. Blocks; what cannot be removed is logged and left.
pub(super) fn clean(models_dir: &Path, model: &ModelName, kept: Option<&Path>) {
    let folder = folder_of(models_dir, model);
    if kept.is_none() {
        remove(&folder);
        return;
    }
    let Ok(entries) = fs::read_dir(&folder) else { return };
    for entry in entries.filter_map(Result::ok).filter(|entry| Some(entry.path().as_path()) != kept) {
        remove(&entry.path());
    }
}

/// Removes all overrides: they end with the process that took them. Blocks.
pub(super) fn clean_all(models_dir: &Path) {
    remove(&models_dir.join(".ortus").join("overrides"));
}

/// Removes a folder of overrides. Blocks. Links in it are removed, not followed.
pub(super) fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(error = %error.kind(), "files of an earlier load call could not be removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for bad in [
            "",
            "/",
            "1",
            "1/",
            "1//x",
            "/1/x",
            "../1/x",
            "1/../x",
            "1/a/../../x",
            "1/..",
            "1/.",
            "1/./x",
            "1/x/",
            "1/x\\y",
            "1/x\0",
            "1/\n",
            "1/.hidden",
            "1/a/.b/c",
            "x/model.onnx",
            "01/model.onnx",
            "-1/x",
            "model.onnx",
            "1\\x",
            "99999999999999999999/x",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name(&format!("1/{}", "a".repeat(256))).is_err());
        assert!(check_name(&format!("1/{}", "a/".repeat(1_000))).is_err());
        assert_eq!(check_name("1/model.onnx"), Ok((Version(1), "model.onnx")));
        assert_eq!(check_name("12/onnx/model.onnx"), Ok((Version(12), "onnx/model.onnx")));
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let store = tempfile::tempdir().unwrap();
        let model = ModelName::parse("m").unwrap();
        let file = |name: &str| (name.to_owned(), Bytes::from_static(b"abc"));
        for files in [vec![file("1/a"), file("1/a")], vec![file("1/a"), file("1/a/b")], vec![file("1/a"), file("../b")]]
        {
            assert!(matches!(write(store.path(), &model, &files, 100), Err(ModelError::Invalid { .. })));
        }
        assert!(matches!(write(store.path(), &model, &[file("1/a"), file("1/b")], 5), Err(ModelError::Invalid { .. })));
        let left = folder_of(store.path(), &model);
        assert!(!left.exists() || fs::read_dir(left).unwrap().next().is_none());

        let folder = write(store.path(), &model, &[file("1/a/b")], 5).unwrap();
        assert_eq!(fs::read(folder.join("1/a/b")).unwrap(), b"abc");
        clean(store.path(), &model, Some(&folder));
        assert!(folder.exists());
        clean(store.path(), &model, None);
        assert!(!folder.exists());
    }

    #[test]
    fn overrides_are_not_written_through_a_link() {
        let (store, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), store.path().join(".ortus")).unwrap();
        let model = ModelName::parse("m").unwrap();
        let result = write(store.path(), &model, &[("1/a".into(), Bytes::from_static(b"x"))], 5);
        assert!(matches!(result, Err(ModelError::Conflict { .. })));
    }

    /// F67.
    #[test]
    fn a_store_has_one_server() {
        let store = tempfile::tempdir().unwrap();
        let first = StoreLock::acquire(store.path()).unwrap();
        assert!(matches!(StoreLock::acquire(store.path()), Err(StoreError::InUse)));
        drop(first);
        assert!(StoreLock::acquire(store.path()).unwrap().is_some());
    }
}

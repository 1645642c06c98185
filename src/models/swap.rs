//! Puts versions into the store and takes them out of it, each in one step of the file system.
//!
//! Invariants: a model is whole in the store or not there, whenever the process ends; a step is synced before it counts;
//! what is not in its place lies in `.ortus/incoming` or `.ortus/trash`, which are never served and are emptied at start;
//! one process at a time changes a store. Knows no registry: who serves what is decided elsewhere. All of it blocks.

use super::choice::Choice;
use super::{ModelName, Version, steps};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one process waits for another that changes the store.
const LOCK_MAX: Duration = Duration::from_secs(30);
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// The right to change the store; ends with the value, or with the process.
#[derive(Debug)]
pub(super) struct InstallLock {
    _file: File,
}

impl InstallLock {
    /// # Errors
    /// `WouldBlock` where another process keeps it; any other where the store cannot be written.
    pub(super) fn acquire(models_dir: &Path) -> io::Result<InstallLock> {
        let deadline = Instant::now() + LOCK_MAX;
        loop {
            match InstallLock::try_acquire(models_dir)? {
                Some(lock) => {
                    steps::reached("store locked")?;
                    return Ok(lock);
                }
                None if Instant::now() >= deadline => return Err(io::ErrorKind::WouldBlock.into()),
                None => std::thread::sleep(LOCK_LOOK),
            }
        }
    }

    /// `None` where another process has it.
    fn try_acquire(models_dir: &Path) -> io::Result<Option<InstallLock>> {
        let folder = own_folder(models_dir, "")?;
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(folder.join("install.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(InstallLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The server's own folder of this name in the store, made where it is not there.
///
/// # Errors
/// Where it cannot be made, or is a link that leads out of the store.
pub(super) fn own_folder(models_dir: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = models_dir.join(".ortus").join(name);
    fs::create_dir_all(&folder)?;
    // Whoever filled the store may have made a link of it.
    if !folder.canonicalize()?.starts_with(models_dir.canonicalize()?) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(folder)
}

/// Makes renames in a folder survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Puts a model into the store that has none of this name: its version, and its `model.toml` where there is one.
pub(super) fn add_model(
    _lock: &InstallLock,
    models_dir: &Path,
    model: &ModelName,
    version: Version,
    staged: &Path,
    model_toml: Option<&str>,
) -> io::Result<()> {
    let folder = own_folder(models_dir, "incoming")?.join(uuid::Uuid::new_v4().simple().to_string());
    let place = models_dir.join(model.as_str());
    let mut is_in_place = false;
    let mut put = || {
        fs::create_dir(&folder)?;
        steps::reached("incoming folder made")?;
        if let Some(text) = model_toml {
            let mut file = File::create_new(folder.join("model.toml"))?;
            file.write_all(text.as_bytes())?;
            steps::reached("model.toml written")?;
            file.sync_all()?;
            steps::reached("model.toml synced")?;
        }
        // A choice for a model of this name that is gone says nothing of this one.
        Choice::clear(models_dir, model)?;
        fs::rename(staged, folder.join(version.to_string()))?;
        steps::reached("version moved into the incoming folder")?;
        sync_folder(&folder)?;
        steps::reached("incoming folder synced")?;
        fs::rename(&folder, &place)?;
        is_in_place = true;
        steps::reached("model in its place")?;
        sync_folder(models_dir)?;
        steps::reached("store synced")
    };
    let result = put();
    if result.is_err() {
        // Whoever staged it may try again. What is not synced is not served.
        if is_in_place {
            let _ = fs::rename(&place, &folder);
        }
        let moved = folder.join(version.to_string());
        if moved.exists() {
            let _ = fs::rename(moved, staged);
        }
        remove(&folder);
    }
    result
}

/// Puts one more version into a model's folder.
pub(super) fn add_version(
    _lock: &InstallLock,
    models_dir: &Path,
    model: &ModelName,
    version: Version,
    staged: &Path,
) -> io::Result<()> {
    let folder = models_dir.join(model.as_str());
    let place = folder.join(version.to_string());
    // A rename would take the place of an empty folder without a word.
    if fs::symlink_metadata(&place).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    steps::reached("version about to be moved")?;
    fs::rename(staged, &place)?;
    let result = (|| {
        steps::reached("version in its place")?;
        sync_folder(&folder)?;
        steps::reached("model's folder synced")
    })();
    if result.is_err() {
        // What is not synced is not served.
        let _ = fs::rename(&place, staged);
        return result;
    }
    // The version that came has made it void.
    Choice::forget(models_dir, model);
    Ok(())
}

/// Takes a model, or one version of it, out of the store; [`remove`] then frees what lies at the path that this gives.
/// Of a link only the link is taken.
pub(super) fn take_out(
    _lock: &InstallLock,
    models_dir: &Path,
    model: &ModelName,
    version: Option<Version>,
) -> io::Result<PathBuf> {
    let trash = own_folder(models_dir, "trash")?;
    let taken = trash.join(uuid::Uuid::new_v4().simple().to_string());
    let (parent, place) = match version {
        Some(version) => {
            let parent = models_dir.join(model.as_str());
            let place = parent.join(version.to_string());
            (parent, place)
        }
        None => (models_dir.to_owned(), models_dir.join(model.as_str())),
    };
    steps::reached("about to be moved to the trash")?;
    fs::rename(&place, &taken)?;
    let result = (|| {
        steps::reached("moved to the trash")?;
        sync_folder(&parent)?;
        steps::reached("folder that it was in synced")?;
        sync_folder(&trash)?;
        steps::reached("trash synced")
    })();
    if result.is_err() {
        let _ = fs::rename(&taken, &place);
    }
    result.map(|()| taken)
}

/// Removes a folder with all in it, or a link. What cannot be removed is logged, and tried again at the next start.
pub(super) fn remove(path: &Path) {
    // Nothing depends on its end.
    let _ = steps::reached("about to remove what left the store");
    match fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => match fs::remove_file(path) {
            Ok(()) => {}
            Err(_) => tracing::warn!(error = %error.kind(), "files that left the store could not be removed"),
        },
    }
}

/// Removes what processes that were cut off left in the server's own folders.
pub(super) fn clean(models_dir: &Path) {
    if !models_dir.join(".ortus").is_dir() {
        return;
    }
    // Whoever has the lock is at work, and cleans up after itself.
    let Ok(Some(_lock)) = InstallLock::try_acquire(models_dir) else { return };
    for name in ["incoming", "trash"] {
        let folder = models_dir.join(".ortus").join(name);
        if folder.symlink_metadata().is_ok() {
            remove(&folder);
        }
    }
    Choice::clean(models_dir);
}

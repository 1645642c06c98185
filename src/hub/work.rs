//! The folder in which one request's files are got: kept across tries, and worked on by one process at a time.
//!
//! Layout: `lock`, `parts/` (files that are not complete, with what is known of them), `version/` (complete files).

use super::{FetchRequest, HubError};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Tries to remove a folder, and what lies between them.
const REMOVALS_MAX: usize = 40;
const REMOVAL_PAUSE: Duration = Duration::from_millis(25);

/// A folder of work and the right to work in it; the right ends with the value, or with the process.
#[derive(Debug)]
pub struct WorkFolder {
    root: PathBuf,
    _lock: File,
}

impl WorkFolder {
    /// The folder of `request` below `root`, which is made where it is not there. Blocks.
    ///
    /// # Errors
    /// [`HubError::Busy`] where another process works in it; [`HubError::Disk`], [`HubError::NoSpace`].
    pub fn open(root: &Path, request: &FetchRequest) -> Result<WorkFolder, HubError> {
        let key = sha256_hex(request.key().as_bytes());
        let name: String = key.chars().take(32).collect();
        WorkFolder::at(root.join(name))
    }

    /// A folder for one use, such as an upload. Blocks.
    ///
    /// # Errors
    /// As [`WorkFolder::open`].
    pub fn fresh(root: &Path) -> Result<WorkFolder, HubError> {
        WorkFolder::at(root.join(uuid::Uuid::new_v4().simple().to_string()))
    }

    fn at(root: PathBuf) -> Result<WorkFolder, HubError> {
        let made = fs::create_dir_all(root.join("parts")).and_then(|()| fs::create_dir_all(root.join("version")));
        made.map_err(disk_error)?;
        let lock = File::create(root.join("lock")).map_err(disk_error)?;
        match lock.try_lock() {
            Ok(()) => Ok(WorkFolder { root, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(HubError::Busy("another process is fetching the same files; wait for it, or stop it".to_owned()))
            }
            Err(TryLockError::Error(error)) => Err(disk_error(error)),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Files that are not complete.
    pub fn parts(&self) -> PathBuf {
        self.root.join("parts")
    }

    /// The version that is being put together.
    pub fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// Removes the folder and all in it. Blocks.
    pub fn remove(self) {
        remove(&self.root);
    }

    /// Removes the folders below `root` that nobody works in and that were not touched for `age`. Blocks.
    pub fn clean(root: &Path, age: Duration) {
        let Ok(entries) = fs::read_dir(root) else { return };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let touched = fs::metadata(path.join("lock")).and_then(|lock| lock.modified());
            let old = touched.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|passed| passed >= age));
            let free = || File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if old && free() {
                remove(&path);
            }
        }
    }
}

fn remove(folder: &Path) {
    // A write that was under way when its transfer was cancelled may still put a file there.
    for _ in 0..REMOVALS_MAX {
        match fs::remove_dir_all(folder) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => std::thread::sleep(REMOVAL_PAUSE),
            Err(error) => {
                tracing::warn!(error = %error.kind(), "the files of a download could not be removed");
                return;
            }
        }
    }
    tracing::warn!("the files of a download could not be removed: something is still written there");
}

/// What a failed operation on our own files means to whoever asked.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err(disk_error)")]
pub(crate) fn disk_error(error: io::Error) -> HubError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            HubError::NoSpace("there is no space left on the disk of the store; make room and try again".to_owned())
        }
        kind => HubError::Disk(format!("the store cannot be written: {kind}")),
    }
}

/// The SHA-256 of a file, in lower-case hex. Blocks.
///
/// # Errors
/// Where it cannot be read.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    use sha2::Digest;
    let mut file = File::open(path)?;
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! The keys on disk: one JSON file that only its owner reads, replaced in one step.
//!
//! Invariants: whoever reads it sees it whole, before or after a change; two commands at a time change it one after the other.

use super::key::{KeyId, KeyRecord};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Keys that a file may hold.
const KEYS_MAX: usize = 10_000;
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Errors name no path: who runs a command knows it, and others need not.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("the keys file could not be read: {0}")]
    Read(io::Error),
    #[error("the keys file could not be written: {0}")]
    Write(io::Error),
    #[error("the keys file is not as `ortus key create` writes it ({0}); mend it, or remove it and make new keys")]
    Malformed(String),
    #[error("the keys file is full: {KEYS_MAX} keys; revoke some")]
    Full,
    #[error("there is no key {0}; see `ortus key list`")]
    NoKey(KeyId),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    keys: Vec<KeyRecord>,
}

/// What tells one writing of the file from another; `None` where there is no file.
pub(super) type Stamp = Option<(u64, i64, i64, u64)>;

/// The file at a path, which need not exist.
#[derive(Debug, Clone)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    pub fn new(path: PathBuf) -> KeyFile {
        KeyFile { path }
    }

    pub(super) fn stamp(&self) -> io::Result<Stamp> {
        match fs::metadata(&self.path) {
            Ok(found) => Ok(Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All keys, the expired ones too; none where there is no file.
    ///
    /// # Errors
    /// Where the file cannot be read or is not one of ours.
    pub fn read(&self) -> Result<Vec<KeyRecord>, KeyFileError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(KeyFileError::Read(error)),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(KeyFileError::Read)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(KeyFileError::Malformed(format!("more than {FILE_BYTES_MAX} bytes")));
        }
        let contents: Contents =
            serde_json::from_slice(&bytes).map_err(|error| KeyFileError::Malformed(error.to_string()))?;
        match contents {
            Contents { version: 1, keys } if keys.len() <= KEYS_MAX => Ok(keys),
            Contents { version: 1, .. } => Err(KeyFileError::Full),
            Contents { version, .. } => Err(KeyFileError::Malformed(format!("version {version}, expected 1"))),
        }
    }

    /// Puts a key in; the folder of the file is made where it is missing.
    ///
    /// # Errors
    /// As [`KeyFile::read`]; where the file is full or cannot be written.
    pub fn add(&self, key: KeyRecord) -> Result<(), KeyFileError> {
        self.change(|keys| {
            if keys.len() >= KEYS_MAX {
                return Err(KeyFileError::Full);
            }
            keys.push(key);
            Ok(())
        })
    }

    /// Takes a key out, for good.
    ///
    /// # Errors
    /// As [`KeyFile::read`]; where there is no such key, or the file cannot be written.
    pub fn revoke(&self, id: &KeyId) -> Result<(), KeyFileError> {
        self.change(|keys| {
            let before = keys.len();
            keys.retain(|key| key.id != *id);
            if keys.len() == before { Err(KeyFileError::NoKey(id.clone())) } else { Ok(()) }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<KeyRecord>) -> Result<(), KeyFileError>) -> Result<(), KeyFileError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(KeyFileError::Write)?;
        // The file itself is replaced: a lock on it would be on a file that is gone.
        let lock = private().create(true).truncate(false).open(self.beside(".lock")).map_err(KeyFileError::Write)?;
        lock.lock().map_err(KeyFileError::Write)?;
        let mut keys = self.read()?;
        change(&mut keys)?;
        self.replace(folder, &Contents { version: 1, keys }).map_err(KeyFileError::Write)
    }

    fn replace(&self, folder: &Path, contents: &Contents) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(contents)?;
        bytes.push(b'\n');
        let part = self.beside(".part");
        // What a killed command left.
        match fs::remove_file(&part) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = private().create_new(true).open(&part)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&part, &self.path)?;
        File::open(folder)?.sync_all()
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }
}

/// To write a file that only its owner reads.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::super::key::{NewKey, Role, Terms};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key(name: &str) -> NewKey {
        let terms = Terms {
            role: Role::Admin,
            name: name.to_owned(),
            expires_ms: Some(5),
            requests_per_minute: Some(6),
            max_body_bytes: Some(7),
        };
        NewKey::make(terms, 1).unwrap()
    }

    #[test]
    fn f92_keys_are_kept_as_hashes_in_a_file_of_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/keys.json");
        let file = KeyFile::new(path.clone());
        assert!(file.read().unwrap().is_empty() && file.stamp().unwrap().is_none());
        let (one, two) = (key("one"), key("two"));
        file.add(one.record.clone()).unwrap();
        let stamp = file.stamp().unwrap();
        file.add(two.record.clone()).unwrap();
        assert!(stamp.is_some() && file.stamp().unwrap() != stamp);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(one.reveal()) && !text.contains(one.reveal().rsplit('_').next().unwrap()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let names = |keys: Vec<KeyRecord>| keys.into_iter().map(|key| key.name).collect::<Vec<_>>();
        assert_eq!(names(file.read().unwrap()), ["one", "two"]);
        file.revoke(&one.record.id).unwrap();
        assert_eq!(names(file.read().unwrap()), ["two"]);
        assert!(matches!(file.revoke(&one.record.id), Err(KeyFileError::NoKey(_))));
    }

    #[test]
    fn what_a_killed_command_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile::new(folder.path().join("keys.json"));
        fs::write(folder.path().join("keys.json.part"), b"half").unwrap();
        file.add(key("one").record).unwrap();
        assert_eq!(file.read().unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_not_taken_for_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        for text in ["", "{}", "[]", r#"{"version":2,"keys":[]}"#, r#"{"version":1,"keys":[{"id":"x"}]}"#, "\u{0}"] {
            fs::write(&path, text).unwrap();
            let file = KeyFile::new(path.clone());
            assert!(matches!(file.read(), Err(KeyFileError::Malformed(_))), "{text}");
            assert!(file.add(key("one").record).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn commands_at_the_same_time_lose_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile::new(folder.path().join("keys.json"));
        std::thread::scope(|scope| {
            for index in 0..8 {
                let file = file.clone();
                scope.spawn(move || file.add(key(&index.to_string()).record).unwrap());
            }
        });
        assert_eq!(file.read().unwrap().len(), 8);
    }
}

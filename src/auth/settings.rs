//! Settings of this room: `[auth]`, and of `[limits]` how often wrong keys may be tried.

use std::path::{Path, PathBuf};

/// `[auth]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthSettings {
    /// Where the keys are; a relative path starts at the store.
    pub keys_file: PathBuf,
    /// Whether callers need a key though there is none yet.
    pub require: bool,
    /// Wrong keys from one address in a minute that are answered as such.
    pub max_wrong_keys: u32,
}

impl AuthSettings {
    /// The file of the store at `models_dir`.
    pub fn path(&self, models_dir: &Path) -> PathBuf {
        models_dir.join(&self.keys_file)
    }
}

impl Default for AuthSettings {
    fn default() -> AuthSettings {
        AuthSettings { keys_file: PathBuf::from(".ortus/keys.json"), require: false, max_wrong_keys: 30 }
    }
}

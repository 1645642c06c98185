//! The version that somebody chose to serve, kept in `.ortus/chosen/<name>` across restarts.
//!
//! Invariants: a file is replaced in one step; what cannot be read, names no version of the model, or is older than a
//! version that came since, counts as no choice. Decides nothing: see [`super::lifecycle::in_force`].

use super::repository::read_bounded;
use super::swap::{own_folder, sync_folder};
use super::{ModelName, Version, steps};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const BYTES_MAX: u64 = 4_096;

/// What was chosen, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) version: Version,
    /// The highest version there was. One above it makes the choice void, so that a new version takes over in the same
    /// step that puts it in its place.
    pub(super) newest: Version,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u64,
    newest: u64,
}

fn folder(models_dir: &Path) -> PathBuf {
    models_dir.join(".ortus").join("chosen")
}

impl Choice {
    /// The choice for a model; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// What is wrong with the file, where there is one that is not a choice.
    pub(super) fn read(models_dir: &Path, model: &ModelName) -> Result<Option<Choice>, String> {
        let bytes = match read_bounded(&folder(models_dir).join(model.as_str()), BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(format!("it is larger than {BYTES_MAX} bytes")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.kind().to_string()),
        };
        let written: Written = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        Ok(Some(Choice { version: Version(written.version), newest: Version(written.newest) }))
    }

    /// Keeps the choice: after a crash there is the earlier one or this. Blocks.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub(super) fn write(self, models_dir: &Path, model: &ModelName) -> io::Result<()> {
        let folder = own_folder(models_dir, "chosen")?;
        let written = Written { version: self.version.0, newest: self.newest.0 };
        // No model is called so: names do not begin with a dot.
        let temporary = folder.join(format!(".{}", uuid::Uuid::new_v4().simple()));
        let result = (|| {
            let mut file = File::create_new(&temporary)?;
            file.write_all(&serde_json::to_vec(&written)?)?;
            steps::reached("choice written")?;
            file.sync_all()?;
            steps::reached("choice synced")?;
            fs::rename(&temporary, folder.join(model.as_str()))
        })();
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result?;
        steps::reached("choice in its place")?;
        sync_folder(&folder)?;
        steps::reached("choices synced")
    }

    /// Forgets the choice for a model. Blocks.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub(super) fn clear(models_dir: &Path, model: &ModelName) -> io::Result<()> {
        let folder = folder(models_dir);
        match fs::remove_file(folder.join(model.as_str())) {
            Ok(()) => {
                steps::reached("choice removed")?;
                sync_folder(&folder)?;
                steps::reached("choices synced without it")
            }
            // What a write that was cut off left is no choice, and neither is one in a folder that is not there.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The same for a choice that counts no more, on whose end nothing depends. Blocks.
    pub(super) fn forget(models_dir: &Path, model: &ModelName) {
        if let Err(error) = Choice::clear(models_dir, model) {
            tracing::warn!(%model, error = %error.kind(), "a void choice of a version could not be removed");
        }
    }

    /// Removes what writes that were cut off left, and the choices for models that are gone. Blocks.
    pub(super) fn clean(models_dir: &Path) {
        let Ok(folder) = own_folder(models_dir, "chosen") else { return };
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name();
            let model = name.to_str().and_then(|name| ModelName::parse(name).ok());
            if model.is_none_or(|model| fs::symlink_metadata(models_dir.join(model.as_str())).is_err()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

//! A version that was made here from another one of the same model: it goes the way of an upload.

use super::{DownloadError, Downloads, Uploaded};
use crate::hub::{Provenance, ProvenanceFile};
use crate::models::{LoadOverrides, ModelName, Staged};
use crate::telemetry::{now_ms, rfc3339};
use std::path::PathBuf;

/// A version to be taken into the store.
#[derive(Debug)]
pub struct Adoption {
    pub name: ModelName,
    /// Whose files become the version; on the disk of the store. What it holds is moved away.
    pub folder: PathBuf,
    /// What it is called where it is asked where the version came from, such as `version 1 as int8`.
    pub origin: String,
    /// Whether it is loaded, and takes over where the version policy says so.
    pub load: bool,
}

impl Downloads {
    /// Makes a folder the next version of its model: tried out, installed, and loaded where that is asked for. What is known
    /// of the original's licence and author is kept.
    ///
    /// # Errors
    /// Where another version of the model is on its way, the version cannot be served, or the store cannot be changed;
    /// what was loaded before serves on then.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the version in the store.
    pub async fn adopt(&self, adoption: Adoption) -> Result<Uploaded, DownloadError> {
        let Adoption { name, folder, origin, load } = adoption;
        let inner = &self.0;
        if inner.tasks.stopping().is_cancelled() {
            return Err(DownloadError::Stopping);
        }
        let claim = inner.models.claim_version(&name).await?;
        let staged = folder.clone();
        let written = inner.tasks.spawn_blocking(move || {
            let known = Provenance::read(&staged).unwrap_or_default();
            // It tells of the original's files.
            let _ = std::fs::remove_file(staged.join(crate::hub::PROVENANCE));
            let provenance = Provenance {
                source: Provenance::MADE_HERE.to_owned(),
                model_id: origin,
                fetched_at: rfc3339(now_ms()),
                files: ProvenanceFile::all_in(&staged)?,
                license: known.license,
                author: known.author,
                description: known.description,
                tags: known.tags,
                ..Provenance::default()
            };
            provenance.write(&staged).map_err(crate::hub::disk_error)
        });
        written.await.map_err(|_| DownloadError::Panicked)??;
        let staged = Staged { folder, model_toml: None };
        let tried = inner.models.try_out(&claim, &staged).await?;
        let version = inner.models.install(claim, staged).await?;
        if load {
            inner.models.load(&name, LoadOverrides::default()).await?;
        }
        Ok(Uploaded { version, report: tried.into() })
    }
}

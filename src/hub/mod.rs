//! Gets models from elsewhere: HuggingFace, URLs, local paths, and PyTorch by way of the exporter.
//!
//! A [`Source`] becomes a folder of verified files, as one version of a model looks, with a [`Provenance`]
//! ([`Hub::fetch`]). `guard` says which addresses may be called, `client` calls them and follows redirects, `transfer`
//! gets one file (resumed, retried, verified), `huggingface` and `url` say which files, `choose` which of a repository's
//! (pure), `hf_cache` what is there already, `archive` unpacks, `exporter` converts.
//!
//! Invariants: what a server says never becomes a path unchecked; every file is bounded, verified and synced before it is
//! part of a version; a token goes to no other host than its own. Knows no store and no model: who calls says in which
//! folder to work, and puts the result in its place.

mod archive;
mod choose;
mod client;
mod error;
mod exporter;
mod guard;
mod hf_cache;
mod huggingface;
mod local;
mod progress;
mod provenance;
mod settings;
mod source;
mod transfer;
mod url;
mod work;

#[cfg(test)]
mod testing;

pub use archive::{Archive, ArchiveLimits};
pub use error::HubError;
pub use progress::{FileProgress, Phase, Progress, ProgressSnapshot};
pub use provenance::{PROVENANCE, Provenance, ProvenanceFile};
pub use settings::{HubSettings, Secret};
pub use source::{ExportOptions, FetchRequest, Precision, Source};
pub(crate) use transfer::{check_space, safe_path};
pub use work::WorkFolder;
pub(crate) use work::{disk_error, sha256_of};

use crate::tasks::Tasks;
use client::Client;
use std::path::PathBuf;
use std::sync::Arc;

/// Gets models from elsewhere. Clones are the same.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    settings: HubSettings,
    client: Client,
    tasks: Tasks,
}

/// A version of a model that is complete, verified and synced to disk, and not yet in any store.
#[derive(Debug)]
pub struct Fetched {
    /// Holds the version's files and nothing else; inside the work folder.
    pub folder: PathBuf,
    pub provenance: Provenance,
}

/// What would be fetched.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit or tag that the files are of, where the source has such.
    pub revision: Option<String>,
    pub files: Vec<ListedFile>,
    pub license: Option<String>,
    /// The task that the source itself names.
    pub task: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Relative, with `/`; safe to join to a folder.
    pub path: String,
    /// Where the source says it.
    pub bytes: Option<u64>,
}

impl Hub {
    /// # Errors
    /// Where the certificates of the system or the exporter's interpreter cannot be used.
    pub fn new(settings: HubSettings, tasks: Tasks) -> Result<Hub, HubError> {
        let client = Client::new(&settings)?;
        Ok(Hub(Arc::new(Inner { settings, client, tasks })))
    }

    pub fn settings(&self) -> &HubSettings {
        &self.0.settings
    }

    /// What [`Hub::fetch`] would get, without getting it.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub async fn check(&self, request: &FetchRequest) -> Result<Listing, HubError> {
        match &request.source {
            Source::HuggingFace { .. } => huggingface::check(self, request).await,
            Source::Url { .. } => url::check(self, request).await,
            Source::Local { .. } => local::check(self, request).await,
            Source::Torchvision { .. } | Source::PytorchHub { .. } => exporter::check(self, request).await,
        }
    }

    /// Gets the files of `request` into `work`, which may hold what an earlier try of the same request left there.
    ///
    /// # Errors
    /// See [`HubError`]. What was got so far stays in `work` for another try.
    ///
    /// # Cancel safety
    /// Dropping the future stops the transfers; what was got so far stays in `work`.
    pub async fn fetch(
        &self,
        request: &FetchRequest,
        work: &WorkFolder,
        progress: &Progress,
    ) -> Result<Fetched, HubError> {
        match &request.source {
            Source::HuggingFace { .. } => huggingface::fetch(self, request, work, progress).await,
            Source::Url { .. } => url::fetch(self, request, work, progress).await,
            Source::Local { .. } => local::fetch(self, request, work, progress).await,
            Source::Torchvision { .. } | Source::PytorchHub { .. } => {
                exporter::fetch(self, request, work, progress).await
            }
        }
    }

    /// Turns a PyTorch file (`.pt`, `.pth`, `.pt2`) that lies in `work` into a version, through the exporter.
    ///
    /// # Errors
    /// [`HubError::NoExporter`] where it is not set up; [`HubError::Refused`] where the file is no program or weights that
    /// can be loaded without running its code.
    pub async fn convert(
        &self,
        file: &std::path::Path,
        options: &ExportOptions,
        work: &WorkFolder,
        progress: &Progress,
    ) -> Result<Fetched, HubError> {
        exporter::convert(self, file, options, work, progress).await
    }
}

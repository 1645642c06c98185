//! Takes new versions into the store: a name is claimed, what was got is tried out, and then put in its place.
//!
//! Invariants: a name has one claim at a time; nothing of a version is visible before it is whole and in its place; an
//! install that fails leaves the store as it was. Loads nothing to serve: [`ModelManager::load`] does.

use super::admission::MakeRoom;
use super::engines::EngineUse;
use super::lifecycle::{self, Fingerprint};
use super::loader::Job;
use super::manifest::MANIFEST_BYTES_MAX;
use super::repository::{FolderError, ModelFolder, VersionFolder};
use super::swap::{self, InstallLock};
use super::{Manifest, ManifestError, ModelError, ModelManager, ModelName, Version};
use crate::telemetry::Stats;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use super::loader::Tried;

/// Entries of one version's folder.
const FILES_MAX: usize = 10_000;

/// What somebody is getting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The first version of a model that is not there yet.
    Model,
    /// One more version.
    Version,
}

/// The right to install a version of a model. Dropped, it frees the name.
#[must_use = "dropped at once it frees the name"]
pub struct Claim {
    manager: ModelManager,
    name: ModelName,
    /// What it was for is done, and another may have claimed the model since.
    is_spent: bool,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Claim {
    pub fn name(&self) -> &ModelName {
        &self.name
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_spent {
            return;
        }
        let mut registry = self.manager.lock();
        let Some(entry) = registry.get_mut(&self.name) else { return };
        if entry.claimed.take() == Some(Claimed::Model) {
            self.manager.remove(&mut registry, &self.name);
        }
    }
}

/// A version that is complete and synced to disk, and not yet part of a model.
#[derive(Debug, Clone)]
pub struct Staged {
    /// Holds the version's files and nothing else, no links among them; on the store's file system, outside all models.
    pub folder: PathBuf,
    /// The model's `model.toml`, for a model that is not there yet; one that is there keeps its own.
    pub model_toml: Option<String>,
}

impl ModelManager {
    /// Takes a name for a model that is to come: it is listed as `downloading` until it is installed or the claim dropped.
    ///
    /// # Errors
    /// `Conflict` where there is a model of this name, or somebody else has claimed it.
    pub async fn claim(&self, name: &ModelName) -> Result<Claim, ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        let conflict = |problem: &str| ModelError::Conflict { model: name.clone(), problem: problem.to_owned() };
        let there = "there is a model of this name; choose another, delete it, or bring a new version of it";
        {
            let mut registry = self.lock();
            match registry.get(name).map(|entry| entry.is_downloading()) {
                Some(true) => return Err(conflict("it is being downloaded already; see GET /v1/downloads")),
                Some(false) => return Err(conflict(there)),
                None => registry.entry(name.clone()).or_default().claimed = Some(Claimed::Model),
            }
        }
        let claim = Claim { manager: self.clone(), name: name.clone(), is_spent: false };
        let (manager, model) = (self.clone(), name.clone());
        match self.blocking(move || manager.repository().is_taken(&model)).await {
            Some(false) => Ok(claim),
            Some(true) => Err(conflict(there)),
            None => Err(ModelError::Stopping),
        }
    }

    /// Whether `text` may be the `model.toml` of a model to come.
    ///
    /// # Errors
    /// `Invalid` with the line and the key that is wrong.
    pub fn check_model_toml(&self, name: &ModelName, text: &str) -> Result<(), ModelError> {
        let invalid = |error: ManifestError| ModelError::Invalid { model: name.clone(), problem: error.to_string() };
        parse(text).map(|_| ()).map_err(invalid)
    }

    /// Keeps other installs off a model to which a version is to come; it serves meanwhile as it did.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where another version is on its way, or the model's folder has no place for one.
    pub async fn claim_version(&self, name: &ModelName) -> Result<Claim, ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        let (manager, model) = (self.clone(), name.clone());
        let is_there = self.blocking(move || manager.repository().contains(&model)).await.unwrap_or(false);
        let claim = {
            let mut registry = self.lock();
            if !is_there && !registry.contains_key(name) {
                return Err(ModelError::NotFound { model: name.clone() });
            }
            let entry = registry.entry(name.clone()).or_default();
            if entry.claimed.is_some() {
                let problem = "a version of it is being downloaded already; see GET /v1/downloads".to_owned();
                return Err(ModelError::Conflict { model: name.clone(), problem });
            }
            entry.claimed = Some(Claimed::Version);
            Claim { manager: self.clone(), name: name.clone(), is_spent: false }
        };
        let (manager, model) = (self.clone(), name.clone());
        let place = self.blocking(move || manager.check_place(&model)).await;
        place.unwrap_or(Err(ModelError::Stopping)).map(|()| claim)
    }

    /// Whether a version can be put beside those that a model's folder has. Blocks.
    fn check_place(&self, name: &ModelName) -> Result<(), ModelError> {
        let conflict = |problem: &str| Err(ModelError::Conflict { model: name.clone(), problem: problem.to_owned() });
        match self.repository().read(name) {
            Ok(Some(folder)) if folder.is_bare => conflict(
                "its files lie in the model's folder itself, where a second version has no place; move all of them but \
                 model.toml and config.pbtxt into a folder 1 in it, or install the new one under another name",
            ),
            Ok(Some(_)) | Err(FolderError::NoVersion { .. }) => Ok(()),
            Ok(None) => conflict("its files came with a load call and are not in the store; unload it first"),
            Err(error) => Err(ModelError::Invalid { model: name.clone(), problem: error.to_string() }),
        }
    }

    /// Opens a staged version with one session, tells its task, runs its samples and one made-up input, and lets it go.
    /// Needs memory as a load does, and makes room as one.
    ///
    /// # Errors
    /// `Invalid` where a file is wrong, `Load` with what a load of it would fail with.
    ///
    /// # Cancel safety
    /// Dropping the future ends the process that tries the files out; what follows it runs to its end, which is bounded.
    pub async fn try_out(&self, claim: &Claim, staged: &Staged) -> Result<Tried, ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        let (manager, name, staged) = (self.clone(), claim.name.clone(), staged.clone());
        let job = self.blocking(move || manager.trial_job(&name, &staged)).await;
        let mut job = job.unwrap_or(Err(ModelError::Stopping))?;
        let (name, version, manager) = (claim.name.clone(), job.version, self.clone());
        let given_up = CancellationToken::new();
        let _gives_up = given_up.clone().drop_guard();
        let trial = async move {
            let reservation = manager.admit(&job, MakeRoom::Evict).await?;
            job.size_bytes = reservation.size_bytes;
            job.machine_bytes = reservation.machine_bytes;
            manager.run_trial(job, &reservation, &given_up).await
        };
        let failed = move |source| ModelError::Load { model: name, version, source };
        self.to_its_end("try a version out", async move { trial.await.map_err(failed) }).await
    }

    /// All that a load of the staged version would go by. Blocks.
    fn trial_job(&self, name: &ModelName, staged: &Staged) -> Result<Job, ModelError> {
        let invalid = |problem: String| ModelError::Invalid { model: name.clone(), problem };
        check_files(&staged.folder).map_err(invalid)?;
        let known = self.repository().read(name).ok().flatten();
        let manifest = match (&known, &staged.model_toml) {
            (Some(known), _) => known.manifest.clone(),
            (None, Some(text)) => Arc::new(parse(text).map_err(|error| invalid(error.to_string()))?),
            (None, None) => Arc::default(),
        };
        let unreadable =
            |error: io::Error| invalid(format!("the version's folder could not be read: {}", error.kind()));
        let folder = staged.folder.canonicalize().map_err(unreadable)?;
        let root = self.store().models_dir.canonicalize().map_err(unreadable)?;
        let model_folder =
            known.as_ref().and_then(|known| known.versions.values().next()).map(|any| any.model_folder.clone());
        let version_folder = VersionFolder {
            model_folder: model_folder.unwrap_or_else(|| folder.clone()),
            bounds: if folder.starts_with(&root) { root } else { folder.clone() },
            folder,
            fingerprint: Fingerprint(0),
            origin: None,
        };
        let config = known.as_ref().and_then(|known| known.config.clone());
        let version = known.as_ref().and_then(|known| known.versions.keys().last().copied());
        let version = lifecycle::next_number(version.into_iter(), None).unwrap_or(Version(1));
        let folder = ModelFolder {
            manifest: manifest.clone(),
            config: config.clone(),
            versions: BTreeMap::from([(version, version_folder.clone())]),
            is_bare: false,
            choice: None,
        };
        let (policy, mut settings) = self.settled(name, folder)?;
        // One session answers all that is asked here.
        settings.instances = Some(1);
        settings.tuning = Default::default();
        Ok(Job {
            name: name.clone(),
            version,
            folder: version_folder,
            manifest,
            config,
            policy,
            settings,
            limits: self.limits().clone(),
            max_model_bytes: self.store().max_model_bytes,
            size_bytes: 0,
            room_bytes: 0,
            runs_bytes: 0,
            machine_bytes: u64::MAX,
            traffic: None,
            is_verified: true,
            trial: self.trial(true),
            state: None,
            engines: EngineUse::MayBuild,
            // Nothing of it is counted: there is no such model yet.
            stats: Stats::default().model(name.as_str(), version.0),
        })
    }

    /// Puts a staged version in its place, as the highest of its model, and ends the claim. It is not loaded by this. A
    /// choice of an older version ends with it.
    ///
    /// # Errors
    /// `Conflict` where something has taken its place, or the store cannot be changed; `NoSpace`; `Invalid` where what is
    /// staged cannot be part of a store. Nothing is installed then, and the name is free.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the install.
    pub async fn install(&self, claim: Claim, staged: Staged) -> Result<Version, ModelError> {
        let manager = self.clone();
        self.to_its_end("install a version", async move {
            let mut claim = claim;
            let name = claim.name.clone();
            let Some(gate) = manager.lock().get(&name).map(|entry| entry.gate.clone()) else {
                return Err(ModelError::NotFound { model: name });
            };
            let gate = gate.lock_owned().await;
            let (inner, model) = (manager.clone(), name.clone());
            let put = manager.blocking(move || inner.put(&model, &staged)).await;
            let version = put.unwrap_or(Err(ModelError::Stopping))?;
            tracing::info!(model = %name, %version, "a version is installed");
            // From here on there is a model, and no longer one to come.
            manager.edit(&name, |entry| entry.claimed = None);
            claim.is_spent = true;
            // What is wrong with the folder as a whole is in the registry.
            let _ = manager.look(&name, &gate).await;
            Ok(version)
        })
        .await
    }

    /// Puts the version into the store. Blocks.
    fn put(&self, name: &ModelName, staged: &Staged) -> Result<Version, ModelError> {
        check_files(&staged.folder).map_err(|problem| ModelError::Invalid { model: name.clone(), problem })?;
        let failed = |error: io::Error| store_error(name, &error);
        let (models_dir, repository) = (&self.store().models_dir, self.repository());
        let lock = InstallLock::acquire(models_dir).map_err(failed)?;
        let known = self.edit(name, |entry| (entry.is_downloading(), entry.slots.keys().copied().collect::<Vec<_>>()));
        let (is_new, slots) = known.unwrap_or((true, Vec::new()));
        if !repository.is_taken(name) {
            let version = lifecycle::next_number(slots.into_iter(), None).unwrap_or(Version(1));
            if let Some(text) = &staged.model_toml {
                parse(text).map_err(|error| ModelError::Invalid { model: name.clone(), problem: error.to_string() })?;
            }
            let text = staged.model_toml.as_deref();
            swap::add_model(&lock, models_dir, name, version, &staged.folder, text).map_err(failed)?;
            return Ok(version);
        }
        if is_new {
            let problem = "a model of this name has come into the store meanwhile".to_owned();
            return Err(ModelError::Conflict { model: name.clone(), problem });
        }
        self.check_place(name)?;
        let numbers = repository.numbers(name).map_err(failed)?;
        let version = lifecycle::next_number(numbers.into_iter().chain(slots), repository.choice(name));
        let Some(version) = version else {
            let problem = "there is no number above that of its highest version".to_owned();
            return Err(ModelError::Conflict { model: name.clone(), problem });
        };
        swap::add_version(&lock, models_dir, name, version, &staged.folder).map_err(failed)?;
        Ok(version)
    }

    /// Whether a version of the model, or the model itself, is on its way; the second is `Some(true)`.
    pub(super) fn is_on_its_way(&self, name: &ModelName) -> Option<bool> {
        self.lock().get(name).and_then(|entry| entry.claimed).map(|claimed| claimed == Claimed::Model)
    }
}

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge { max: MANIFEST_BYTES_MAX });
    }
    Manifest::parse(text)
}

/// Whether a folder may be a version: plain files and folders, one at least. Links could lead anywhere once moved.
fn check_files(folder: &Path) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("the version's folder could not be read: {}", error.kind());
    let (mut pending, mut files, mut seen) = (vec![folder.to_owned()], 0usize, 0usize);
    if !fs::symlink_metadata(folder).map_err(unreadable)?.is_dir() {
        return Err("what is to be installed is no folder".to_owned());
    }
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let kind = entry.file_type().map_err(unreadable)?;
            seen += 1;
            if seen > FILES_MAX {
                return Err(format!("the version's folder holds more than {FILES_MAX} files"));
            }
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                files += 1;
            } else {
                let name = entry.file_name().to_string_lossy().into_owned();
                return Err(format!("{name:?} is neither a file nor a folder; links cannot be installed"));
            }
        }
    }
    if files == 0 { Err("the version's folder is empty".to_owned()) } else { Ok(()) }
}

/// What a failed change of the store means to whoever asked for it.
pub(super) fn store_error(name: &ModelName, error: &io::Error) -> ModelError {
    let conflict = |problem: String| ModelError::Conflict { model: name.clone(), problem };
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ModelError::NoSpace { model: name.clone() },
        io::ErrorKind::WouldBlock => {
            conflict("another process is changing the store; try again when it is done".into())
        }
        kind => conflict(format!("the store cannot be changed: {kind}")),
    }
}

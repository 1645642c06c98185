//! One download, from its source into service.

use super::handle::Inner;
use super::{DownloadError, Order, Place, Report, State, at_start};
use crate::hub::{Fetched, HubError, Progress, Provenance, Source, WorkFolder};
use crate::models::{Claim, LoadOverrides, ModelName, Staged, Tried, Version};
use crate::telemetry::now_ms;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use uuid::Uuid;

pub(super) struct Run {
    pub(super) inner: Arc<Inner>,
    pub(super) id: Uuid,
    pub(super) order: Order,
    pub(super) progress: Progress,
}

/// What was got.
enum Gathered {
    /// The store has it.
    HadAlready(Version),
    New(Ready),
}

/// A version that is complete and was tried out, with what is held for it.
struct Ready {
    staged: Staged,
    work: WorkFolder,
    twin: OwnedMutexGuard<Option<(ModelName, Version)>>,
    _slot: OwnedSemaphorePermit,
}

impl Run {
    /// Carries the order out and notes what became of it.
    pub(super) async fn carry_out(self, claim: Claim) {
        let limit = self.inner.hub.settings().total_timeout;
        let stopping = self.inner.tasks.stopping().clone();
        let gathered = tokio::select! {
            biased; // Whoever does not want it any more is heard first.
            () = self.progress.cancelled().cancelled() => Err(DownloadError::Cancelled),
            () = stopping.cancelled() => Err(DownloadError::Stopping),
            gathered = tokio::time::timeout(limit, self.gather(&claim)) => {
                gathered.unwrap_or(Err(DownloadError::TooSlow { seconds: limit.as_secs() }))
            }
        };
        // From here on it is not stopped half-way: the version is in the store, or it is not.
        let outcome = match gathered {
            Ok(Gathered::HadAlready(version)) => {
                self.edit(|record| record.unchanged = true);
                Ok(version)
            }
            Ok(Gathered::New(ready)) => self.put_into_service(claim, ready).await,
            Err(error) => Err(error),
        };
        if matches!(outcome, Err(DownloadError::Cancelled)) {
            self.forget_work().await;
        }
        let (name, id) = (&self.order.name, self.id);
        match &outcome {
            Ok(version) => tracing::info!(model = %name, %version, download = %id, "a model was got"),
            Err(error) => tracing::warn!(model = %name, download = %id, %error, "a model was not got"),
        }
        self.edit(|record| {
            record.finished_ms = Some(now_ms());
            match outcome {
                Ok(version) => {
                    record.version = Some(version);
                    record.state = State::Done;
                }
                Err(DownloadError::Cancelled) => record.state = State::Cancelled,
                Err(error) => {
                    record.state = State::Failed;
                    record.may_pass = error.may_pass();
                    record.error = Some((error.code(), error.to_string()));
                }
            }
        });
    }

    /// Gets the files and tries them out.
    async fn gather(&self, claim: &Claim) -> Result<Gathered, DownloadError> {
        let inner = &self.inner;
        // Waiting holds nothing but the name.
        let slot = inner.slots.clone().acquire_owned().await.map_err(|_| DownloadError::Stopping)?;
        let twin = inner.equal(&self.order.request.key()).lock_owned().await;
        self.set(State::Downloading);
        if let Some(version) = self.have_already().await {
            return Ok(Gathered::HadAlready(version));
        }
        let (root, request) = (inner.work_root(), self.order.request.clone());
        let work = self.blocking(move || WorkFolder::open(&root, &request)).await??;
        let fetched = match twin.clone() {
            Some((name, version)) => self.copy_of(&name, version, &work).await?,
            None => inner.hub.fetch(&self.order.request, &work, &self.progress).await?,
        };
        self.show(&fetched.provenance);
        self.edit(|record| record.revision = fetched.provenance.revision.clone().or(record.revision.take()));
        self.set(State::Verifying);
        let staged = self.stage(fetched).await?;
        let tried = inner.models.try_out(claim, &staged).await?;
        self.edit(|record| record.report = Some(Report::from(tried)));
        Ok(Gathered::New(Ready { staged, work, twin, _slot: slot }))
    }

    async fn put_into_service(&self, claim: Claim, ready: Ready) -> Result<Version, DownloadError> {
        let Ready { staged, work, mut twin, _slot } = ready;
        let version = self.inner.models.install(claim, staged).await?;
        *twin = Some((self.order.name.clone(), version));
        self.edit(|record| record.version = Some(version));
        // Before the next equal request, which works in the same folder.
        self.blocking(move || work.remove()).await?;
        drop(twin);
        if self.order.load {
            self.set(State::Loading);
            self.inner.models.load(&self.order.name, LoadOverrides::default()).await?;
        }
        Ok(version)
    }

    /// Shows what was not fetched but made here, as a conversion is.
    fn show(&self, provenance: &Provenance) {
        if self.progress.snapshot().files.is_empty() {
            let files = &provenance.files;
            self.progress.set_files(files.iter().map(|file| (file.path.clone(), Some(file.bytes))));
            files.iter().for_each(|file| self.progress.finish(&file.path));
        }
    }

    /// The newest version that came from elsewhere, where it is what the order asks for: the same request, which led to the
    /// same commit.
    async fn have_already(&self) -> Option<Version> {
        if self.order.place != Place::NextVersion || !matches!(self.order.request.source, Source::HuggingFace { .. }) {
            return None;
        }
        let status = self.inner.models.status(&self.order.name).ok()?;
        let (newest, known) = at_start::origin(&status, Version(u64::MAX))?;
        if known.request != self.order.request.key() {
            return None;
        }
        let listing = self.inner.hub.check(&self.order.request).await.ok()?;
        (listing.revision.is_some() && listing.revision == known.revision).then_some(newest)
    }

    /// What an equal request has got meanwhile, copied and verified.
    async fn copy_of(&self, name: &ModelName, version: Version, work: &WorkFolder) -> Result<Fetched, DownloadError> {
        let (from, to) = (self.version_folder(name, version), work.version());
        self.progress.set_phase(crate::hub::Phase::Verifying);
        let copied =
            self.blocking(move || copy_version(&from, &to).map(|provenance| Fetched { folder: to, provenance }));
        Ok(copied.await??)
    }

    /// What was got, with its provenance beside it.
    async fn stage(&self, fetched: Fetched) -> Result<Staged, DownloadError> {
        let Fetched { folder, mut provenance } = fetched;
        provenance.request = self.order.request.key();
        let staged = folder.clone();
        let written = self.blocking(move || provenance.write(&staged)).await?;
        written.map_err(crate::hub::disk_error)?;
        Ok(Staged { folder, model_toml: self.order.model_toml.clone() })
    }

    /// Removes what a cancelled download has got.
    async fn forget_work(&self) {
        let (root, request) = (self.inner.work_root(), self.order.request.clone());
        let removed = self.blocking(move || match WorkFolder::open(&root, &request) {
            Ok(work) => work.remove(),
            Err(error) => tracing::debug!(%error, "the files of a cancelled download are in use by another"),
        });
        // A panic there is logged where it passes.
        let _ = removed.await;
    }

    fn version_folder(&self, name: &ModelName, version: Version) -> PathBuf {
        self.inner.models_dir.join(name.as_str()).join(version.to_string())
    }

    fn set(&self, state: State) {
        self.edit(|record| record.state = state);
    }

    fn edit(&self, edit: impl FnOnce(&mut super::table::Record)) {
        self.inner.table().edit(self.id, edit);
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, DownloadError> {
        self.inner.tasks.spawn_blocking(work).await.map_err(|_| DownloadError::Panicked)
    }
}

/// Copies a version that the store has, and compares the copy with what is known of it.
fn copy_version(from: &Path, to: &Path) -> Result<Provenance, HubError> {
    let disk = crate::hub::disk_error;
    let gone =
        || HubError::Corrupt("the version that an equal request got is not there any more; try again".to_owned());
    let provenance = Provenance::read(from).ok_or_else(gone)?;
    for file in &provenance.files {
        let path = crate::hub::safe_path(&file.path).ok_or_else(gone)?;
        let target = to.join(&path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(disk)?;
        }
        std::fs::copy(from.join(&path), &target).map_err(disk)?;
        std::fs::File::open(&target).and_then(|file| file.sync_all()).map_err(disk)?;
    }
    provenance.verify(to, true, &|| false).map_err(HubError::Corrupt)?;
    Ok(provenance)
}

impl From<Tried> for Report {
    fn from(tried: Tried) -> Report {
        let texts =
            |specs: &[crate::tensor::Spec]| specs.iter().map(|spec| format!("{} {}", spec.name, spec.ty)).collect();
        Report {
            inputs: texts(&tried.inputs),
            outputs: texts(&tried.outputs),
            task: tried.task.unwrap_or("raw").to_owned(),
            evidence: tried.evidence,
            load_seconds: tried.load_time.as_secs_f64(),
            run_seconds: tried.run_time.map(|time| time.as_secs_f64()),
            run_problem: tried.run_problem,
        }
    }
}

//! What doors call ([`Downloads`]): order, look, watch, cancel, remove.

use super::table::{Record, Table};
use super::{Download, DownloadError, State, run};
use crate::hub::{FetchRequest, Hub, Listing, Progress, WorkFolder};
use crate::models::{ModelManager, ModelName, Version};
use crate::tasks::Tasks;
use crate::telemetry::now_ms;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long what a failed download left is kept for another try.
const LEFT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// All downloads of one store. Clones are the same.
#[derive(Clone)]
pub struct Downloads(pub(super) Arc<Inner>);

/// What the first of several equal requests became; held by the one that is at work.
type Twin = Arc<tokio::sync::Mutex<Option<(ModelName, Version)>>>;

pub(super) struct Inner {
    pub(super) hub: Hub,
    pub(super) models: ModelManager,
    pub(super) tasks: Tasks,
    pub(super) models_dir: PathBuf,
    pub(super) slots: Arc<Semaphore>,
    table: Mutex<Table>,
    /// Bytes that came over the network.
    received: Arc<AtomicU64>,
    /// Equal requests, by their key: the later ones wait, and take what the first one got.
    equal: Mutex<HashMap<String, Twin>>,
}

/// What is to be got, and what for.
#[derive(Debug, Clone)]
pub struct Order {
    pub name: ModelName,
    pub place: Place,
    pub request: FetchRequest,
    /// Whether it is loaded when it is there.
    pub load: bool,
    /// The `model.toml` of a new model.
    pub model_toml: Option<String>,
}

/// What the version will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first version of a model that is not there.
    NewModel,
    /// The next version of a model that is there.
    NextVersion,
}

impl Downloads {
    /// The downloads into the store at `models_dir`. Nothing is read or written before the first order.
    pub fn new(hub: Hub, models: ModelManager, models_dir: &Path, tasks: Tasks) -> Downloads {
        let slots = Arc::new(Semaphore::new(hub.settings().downloads_at_once.max(1)));
        let models_dir = models_dir.to_owned();
        let (table, received, equal) = (Mutex::default(), Arc::default(), Mutex::default());
        Downloads(Arc::new(Inner { hub, models, tasks, models_dir, slots, table, received, equal }))
    }

    /// Removes what failed downloads of long ago left, and what a killed process had of uploads: nobody can go on with those.
    /// Blocks no one.
    pub fn start(&self) {
        let (downloads, uploads) = (self.0.work_root(), self.0.uploads_root());
        drop(self.0.tasks.spawn_blocking(move || {
            WorkFolder::clean(&downloads, LEFT_MAX);
            WorkFolder::clean(&uploads, Duration::ZERO);
        }));
    }

    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    /// What an order of this request would get.
    ///
    /// # Errors
    /// See [`crate::hub::HubError`].
    pub async fn check(&self, request: &FetchRequest) -> Result<Listing, DownloadError> {
        request.check()?;
        Ok(self.0.hub.check(request).await?)
    }

    /// Takes an order and carries it out in the background.
    ///
    /// # Errors
    /// Where the request is wrong, the model's name is taken (or, for a further version, is not), or too much waits.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the order taken.
    pub async fn order(&self, order: Order) -> Result<Download, DownloadError> {
        order.request.check()?;
        if self.0.tasks.stopping().is_cancelled() {
            return Err(DownloadError::Stopping);
        }
        // Nothing is fetched for a model that could not be served.
        if let Some(text) = &order.model_toml {
            self.0.models.check_model_toml(&order.name, text)?;
        }
        let claim = match order.place {
            Place::NewModel => self.0.models.claim(&order.name).await?,
            Place::NextVersion => self.0.models.claim_version(&order.name).await?,
        };
        let id = Uuid::new_v4();
        let progress = Progress::counted(CancellationToken::new(), self.0.received.clone());
        let record = Record {
            name: order.name.clone(),
            source: order.request.source.kind(),
            model_id: order.request.source.id(),
            revision: order.request.revision.clone(),
            state: State::Queued,
            progress: progress.clone(),
            error: None,
            may_pass: false,
            version: None,
            unchanged: false,
            report: None,
            created_ms: now_ms(),
            finished_ms: None,
        };
        self.0.table().insert(id, record, self.0.hub.settings().max_downloads)?;
        let inner = self.0.clone();
        let work = run::Run { inner: inner.clone(), id, order, progress };
        // The claim goes with the task, whatever becomes of it.
        drop(self.0.tasks.spawn("get a model", async move { work.carry_out(claim).await }));
        self.get(id)
    }

    /// Bytes that came over the network since the start.
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// The newest first.
    pub fn list(&self) -> Vec<Download> {
        self.0.table().list()
    }

    /// # Errors
    /// [`DownloadError::NotFound`].
    pub fn get(&self, id: Uuid) -> Result<Download, DownloadError> {
        self.0.table().get(id).ok_or(DownloadError::NotFound)
    }

    /// The download of this model that waits or runs.
    pub fn active_of(&self, name: &ModelName) -> Option<Uuid> {
        self.0.table().active_of(name)
    }

    /// Cancels what waits or runs and returns when it has ended, with what became of it; what is in the store already
    /// stays. `None`: it had ended, and is forgotten now.
    ///
    /// # Errors
    /// [`DownloadError::NotFound`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it cancelled.
    pub async fn cancel(&self, id: Uuid) -> Result<Option<Download>, DownloadError> {
        if self.0.table().remove_ended(id) {
            return Ok(None);
        }
        let cancel = self.0.table().edit(id, |record| record.progress.cancelled().clone());
        cancel.ok_or(DownloadError::NotFound)?.cancel();
        loop {
            let now = self.get(id)?;
            if now.state.is_final() {
                return Ok(Some(now));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a download has ended.
    ///
    /// # Errors
    /// [`DownloadError::NotFound`].
    pub async fn ended(&self, id: Uuid) -> Result<Download, DownloadError> {
        loop {
            let now = self.get(id)?;
            if now.state.is_final() {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Inner {
    /// Held for look-ups only.
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the work of all downloads lies.
    pub(super) fn work_root(&self) -> PathBuf {
        self.models_dir.join(".ortus").join("downloads")
    }

    /// Where the work of all uploads lies.
    pub(super) fn uploads_root(&self) -> PathBuf {
        self.models_dir.join(".ortus").join("uploads")
    }

    /// The lock that equal requests share.
    pub(super) fn equal(&self, key: &str) -> Twin {
        let mut equal = self.equal.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else holds what is left over.
        equal.retain(|_, lock| Arc::strong_count(lock) > 1);
        equal.entry(key.to_owned()).or_default().clone()
    }
}

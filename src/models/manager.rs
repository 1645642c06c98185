//! Loads, swaps and unloads models and hands the loaded ones to requests (`ModelManager`).
//!
//! Invariants: a request for a ready model takes one short lock and never waits for a load; a model is changed by one
//! operation at a time; a version is replaced only by one that is loaded and warmed; a failed load changes nothing but
//! what is said of it. Every change runs to its end in a task of its own, also where the caller goes away.

use super::admission::{Admission, MakeRoom, Reservation};
use super::awaited::Awaited;
use super::config_pbtxt::GivenConfig;
use super::engines::{EngineUse, GpuTurns};
use super::install::Claimed;
use super::lifecycle::{self, Command, Fingerprint};
use super::loader::{self, Job};
use super::memory::LoadMeter;
use super::profile;
use super::registry::{Busy, Entry, Found};
use super::repository::{FolderError, ModelFolder, Repository, StoredFile, read_folder};
use super::state::StatePlace;
use super::trial::{PassedPlace, Trial};
use super::{LoadError, LoadOverrides, LoadedModel, ModelError, ModelName, ModelSettings, ModelState, ModelStatus};
use super::{Profiled, SetBy, StoreSettings, TrialLoad, Tried, Version, VersionPolicy, overrides, swap};
use crate::hub::Provenance;
use crate::pipelines::PipelineLimits;
use crate::runtime::{Interrupt, ProviderStatus, Runtime, Session, SessionSettings};
use crate::tasks::{BackSeat, Tasks};
use crate::telemetry::{Stats, process};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// Graphs loaded at the same time: more would fight for memory and cores with the models that serve.
const LOADS_AT_ONCE: usize = 2;
/// How long an unload waits for runs in flight to end.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long a warm-up may run before it is stopped.
const WARMUP_MAX: Duration = Duration::from_secs(120);
/// The same of a version that is tried out.
const TRIAL_MAX: Duration = Duration::from_secs(30);
/// The same of a profile, its session's load included.
const PROFILE_MAX: Duration = Duration::from_secs(60);
/// Largest configuration of a load call, in bytes.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The models of one store. Clones are the same manager.
#[derive(Clone)]
pub struct ModelManager(Arc<Inner>);

struct Inner {
    runtime: Arc<dyn Runtime>,
    tasks: Tasks,
    store: StoreSettings,
    defaults: ModelSettings,
    limits: PipelineLimits,
    stats: Stats,
    repository: Repository,
    /// A std mutex: held for look-ups and swaps, never across an await.
    registry: Mutex<BTreeMap<ModelName, Entry>>,
    loads: Arc<Semaphore>,
    turns: GpuTurns,
    admission: Admission,
    awaited: Awaited,
    meter: LoadMeter,
    started: AtomicBool,
    closed: AtomicBool,
    /// Whether what loads find out is kept for the next ones.
    saves: AtomicBool,
}

/// What a folder holds, ready to be planned with.
pub(super) struct Prepared {
    pub(super) folder: ModelFolder,
    /// As the model's files state it.
    stated: VersionPolicy,
    /// The one in force.
    policy: VersionPolicy,
    chosen: Option<Version>,
    settings: ModelSettings,
    set_by: Arc<SetBy>,
    /// The folder of the files that the call brought.
    written: Option<PathBuf>,
}

/// What to do with a model, and at whose cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) command: Command,
    pub(super) room: MakeRoom,
    pub(super) aim: Aim,
}

/// Which versions a change is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// Those of the policy in force.
    InForce,
    /// Beside all that serves, what this version would be chosen for, or what the stated policy says. Nothing is retired.
    Beside(Option<Version>),
}

/// Proof that no other operation works on the model.
pub(super) type Gate = OwnedMutexGuard<()>;

impl ModelManager {
    /// A manager over the store; nothing is read before [`ModelManager::start`].
    pub fn new(
        runtime: Arc<dyn Runtime>,
        tasks: Tasks,
        store: StoreSettings,
        defaults: ModelSettings,
        pipeline_limits: PipelineLimits,
        stats: Stats,
    ) -> ModelManager {
        let repository = Repository::new(store.models_dir.clone());
        ModelManager(Arc::new(Inner {
            runtime,
            tasks,
            store,
            defaults,
            limits: pipeline_limits,
            stats,
            repository,
            registry: Mutex::default(),
            loads: Arc::new(Semaphore::new(LOADS_AT_ONCE)),
            turns: GpuTurns::default(),
            admission: Admission::default(),
            awaited: Awaited::default(),
            meter: LoadMeter::default(),
            started: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            saves: AtomicBool::new(false),
        }))
    }

    /// From here on, what loads find out is kept for the next start, and what was kept of models that are gone is removed: for
    /// the one process that serves the store.
    pub async fn keep_states(&self) {
        self.0.saves.store(true, Ordering::Release);
        let (manager, place, passed) = (self.clone(), self.state_place(), self.passed_place());
        let clean = move || {
            let repository = manager.repository();
            let is_there = |model: &ModelName, version: Option<Version>| match version {
                None => repository.is_taken(model),
                // A model whose files lie bare in its folder is version 1.
                Some(version) => {
                    version == Version(1) || repository.numbers(model).is_ok_and(|all| all.contains(&version))
                }
            };
            place.clean(is_there);
            passed.clean(is_there);
        };
        self.blocking(clean).await;
    }

    /// Where what loads find out is kept.
    pub(super) fn state_place(&self) -> StatePlace {
        StatePlace::of(&self.0.store, self.0.saves.load(Ordering::Acquire))
    }

    /// Where it is remembered which files have passed their trial.
    pub(super) fn passed_place(&self) -> PassedPlace {
        PassedPlace::of(&self.0.store.models_dir)
    }

    /// The trial before a load, where trials are on; it is remembered where the files stay in the store.
    pub(super) fn trial(&self, is_remembered: bool) -> Option<Trial> {
        let store = &self.0.store;
        (store.trial_load == TrialLoad::First)
            .then(|| Trial { time: store.trial_load_timeout, passed: is_remembered.then(|| self.passed_place()) })
    }

    /// Removes the files of load calls that an earlier process took: for the one process that serves the store.
    pub async fn forget_overrides(&self) {
        let inner = self.0.clone();
        self.blocking(move || overrides::clean_all(&inner.store.models_dir)).await;
    }

    /// Reads the store, loads every model where `autoload` is on, and returns when each has been tried. From then on
    /// looks at the store every `poll_interval` until the process stops. A broken model is listed as failed.
    pub async fn start(&self) {
        let inner = self.0.clone();
        let names = self.blocking(move || {
            swap::clean(&inner.store.models_dir);
            inner.repository.names()
        });
        match names.await {
            Some(Ok(names)) => {
                for name in &names {
                    self.lock().entry(name.clone()).or_default();
                }
                futures_util::stream::iter(names).for_each_concurrent(LOADS_AT_ONCE, |name| self.tend(name)).await;
            }
            Some(Err(error)) => {
                tracing::error!(error = %error.kind(), "the model store could not be read; no model is served")
            }
            None => {}
        }
        self.0.started.store(true, Ordering::Release);
        if let Some(interval) = self.0.store.poll_interval {
            let manager = self.clone();
            self.0.tasks.spawn("poll the model store", async move { manager.poll(interval).await });
        }
    }

    /// Whether every model meant to be loaded at start has been tried.
    pub fn is_started(&self) -> bool {
        self.0.started.load(Ordering::Acquire)
    }

    /// All models, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        self.lock().iter().map(|(name, entry)| entry.status(name)).collect()
    }

    /// One model.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn status(&self, name: &ModelName) -> Result<ModelStatus, ModelError> {
        let registry = self.lock();
        registry.get(name).map(|entry| entry.status(name)).ok_or_else(|| ModelError::NotFound { model: name.clone() })
    }

    /// The files of a version, or of a model with all that its versions share, by their paths below its folder.
    ///
    /// # Errors
    /// `NotFound`, `VersionNotFound`, or `Invalid` where the folder cannot be read.
    pub async fn files(&self, name: &ModelName, version: Option<Version>) -> Result<Vec<StoredFile>, ModelError> {
        let status = self.status(name)?;
        let (inner, model) = (self.0.clone(), name.clone());
        let files = self.blocking(move || inner.repository.files(&model, version)).await.ok_or(ModelError::Stopping)?;
        match (files, version) {
            (Ok(Some(files)), _) => Ok(files),
            (Ok(None), Some(version)) => {
                let available = status.versions.iter().map(|known| known.version).collect();
                Err(ModelError::VersionNotFound { model: name.clone(), version, available })
            }
            // Its first files are on their way.
            (Ok(None), None) => Ok(Vec::new()),
            (Err(error), _) => Err(ModelError::Invalid { model: name.clone(), problem: error.to_string() }),
        }
    }

    /// The version that serves: the one asked for, else the highest that is ready. With `autoload`, a model that is not
    /// loaded is loaded first, once for all who ask; one that failed is tried again only when its files have changed. One
    /// that made room for others is loaded in any case, and others make room for it.
    ///
    /// # Errors
    /// `NotFound`, `VersionNotFound`, `NotReady` with the state and its reason, or `Load` where there is no memory for it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a load that it began running.
    pub async fn get_or_load(
        &self,
        name: &ModelName,
        version: Option<Version>,
    ) -> Result<Arc<LoadedModel>, ModelError> {
        let autoload = self.0.store.autoload;
        match self.find(name, version, autoload) {
            Some(Found::Ready(model)) => {
                model.memory.touch();
                return Ok(model);
            }
            _ if self.is_stopping() => return Err(ModelError::Stopping),
            Some(Found::Refused(error)) => return Err(error),
            None if !autoload => return Err(ModelError::NotFound { model: name.clone() }),
            Some(Found::MayLoad) | None => {}
        }
        let gate = self.gate(name).await?;
        // Whoever held the gate before may have loaded it, or found that it does not load.
        let mut no_memory = None;
        if let Some(Found::MayLoad) = self.find(name, version, true) {
            // Other errors are in the registry, where the next look finds them; want of memory says nothing of the model.
            let change = Change { command: Command::Refresh, room: MakeRoom::Evict, aim: Aim::InForce };
            no_memory = match self.in_background(name, gate, change, LoadOverrides::default()).await {
                Err(
                    error @ ModelError::Load {
                        source: LoadError::NoMemory { .. } | LoadError::MemoryBusy { .. }, ..
                    },
                ) => Some(error),
                Ok(()) | Err(_) => None,
            };
        }
        match (self.find(name, version, false), no_memory) {
            (Some(Found::Ready(model)), _) => Ok(model),
            (_, Some(error)) => Err(error),
            (found, None) => Err(self.refusal(name, found)),
        }
    }

    pub(super) fn refusal(&self, name: &ModelName, found: Option<Found>) -> ModelError {
        match found {
            Some(Found::Refused(error)) => error,
            Some(Found::Ready(_) | Found::MayLoad) | None if self.is_stopping() => ModelError::Stopping,
            Some(Found::Ready(_) | Found::MayLoad) | None => ModelError::NotFound { model: name.clone() },
        }
    }

    /// Reads the model's folder again and loads what its version policy asks for and is new, changed or failed before;
    /// returns when that is ready. What is replaced serves until then.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where the folder or the overrides are wrong; `Load` for the first version that did not
    /// load, or for which there is no memory: what served before serves on.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the load.
    pub async fn load(&self, name: &ModelName, overrides: LoadOverrides) -> Result<(), ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        let gate = if overrides.files.is_empty() {
            self.gate(name).await?
        } else {
            // The files that the call brings may make a model that the store does not have.
            self.lock().entry(name.clone()).or_default();
            self.gate(name).await?
        };
        let change = Change { command: Command::Load, room: MakeRoom::Evict, aim: Aim::InForce };
        self.in_background(name, gate, change, overrides).await
    }

    /// Unloads all versions and keeps the model unloaded until it is loaded by hand; returns when its runs have ended
    /// and its memory is free, or after 30 seconds of waiting for them.
    ///
    /// # Errors
    /// `NotFound`.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the unload.
    pub async fn unload(&self, name: &ModelName) -> Result<(), ModelError> {
        if !self.lock().contains_key(name) {
            return Err(ModelError::NotFound { model: name.clone() });
        }
        let gate = self.gate(name).await?;
        let (manager, model) = (self.clone(), name.clone());
        let work = self.0.tasks.spawn("unload a model", async move { manager.unload_all(&model, &gate).await });
        work.await.map_err(|_| ModelError::Stopping)
    }

    /// Gives all models back and takes no more; returns when their runs have ended, or after 30 seconds.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        let all: Vec<Arc<LoadedModel>> = {
            let mut registry = self.lock();
            let slots = registry.values_mut().flat_map(|entry| entry.slots.values_mut());
            slots.filter_map(|slot| slot.serving.take()).map(|(_, model)| model).collect()
        };
        release(all).await;
        self.forget_overrides().await;
    }

    /// As [`Runtime::providers`].
    pub fn providers(&self) -> Vec<ProviderStatus> {
        self.0.runtime.providers()
    }

    /// Name and version of the library that runs the graphs.
    pub fn runtime_version(&self) -> String {
        self.0.runtime.version().to_owned()
    }

    /// What is counted of the models: those of the store and no others.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// Loads one more session of a version, or of the graph `file` in its place, with the settings of those that serve it.
    /// It stands beside the store, for measurements, and nobody goes for it.
    ///
    /// # Errors
    /// As the load of a version.
    pub async fn bare_session(
        &self,
        model: &LoadedModel,
        file: Option<PathBuf>,
    ) -> Result<Box<dyn Session>, ModelError> {
        let (runtime, mut source) = (model.runtime.clone(), model.source.clone());
        if let Some(file) = file {
            source.folder = file.parent().unwrap_or(Path::new(".")).to_owned();
            source.file = file;
        }
        let mut settings = bare_settings(model);
        if source.file != model.source.file {
            // Engines of another graph are not the model's.
            settings.device.tensorrt.engines = None;
        }
        let session = match self.check_copy(model.facts.size_bytes).await {
            Ok(()) => self.blocking(move || runtime.load(&source, &settings)).await.ok_or(LoadError::Panicked),
            Err(error) => Err(error),
        };
        let session = session.and_then(|session| session.map_err(LoadError::Runtime));
        session.map_err(|source| ModelError::Load { model: model.name.clone(), version: model.version, source })
    }

    /// Times the operators of a version over some runs, in a session beside those that serve it, and keeps the outcome with it. It
    /// waits for its turn among the loads.
    ///
    /// # Errors
    /// As the load of a version, and where the graph refuses made-up input.
    pub async fn profile(
        &self,
        model: &LoadedModel,
        iterations: usize,
        batch_size: Option<usize>,
    ) -> Result<Profiled, ModelError> {
        let failed = |source| ModelError::Load { model: model.name.clone(), version: model.version, source };
        let needs = super::memory::resident_estimate(model.facts.size_bytes);
        if let Some(room) = crate::telemetry::process::available_bytes().filter(|room| *room < needs) {
            return Err(failed(LoadError::NoMemory { needs, room, limit: super::error::MemoryLimit::Machine }));
        }
        let (runtime, source, hints) = (model.runtime.clone(), model.source.clone(), model.hints);
        let settings = bare_settings(model);
        let work = move |_: &Inner, interrupt: &Interrupt, warming: &mut dyn FnMut()| {
            warming();
            let asked = (iterations, batch_size);
            profile::run(runtime.as_ref(), &source, &settings, &hints, asked, interrupt).map_err(LoadError::Runtime)
        };
        let turn = self.turn().await.map_err(failed)?;
        let profiled = self.in_turn(turn, PROFILE_MAX, work).await.map_err(failed)?;
        model.kept_profile.put(&profiled);
        Ok(profiled)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Entry>> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn store(&self) -> &StoreSettings {
        &self.0.store
    }

    pub(super) fn runtime(&self) -> &dyn Runtime {
        self.0.runtime.as_ref()
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    pub(super) fn gpu_turns(&self) -> &GpuTurns {
        &self.0.turns
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.0.admission
    }

    pub(super) fn awaiting(&self) -> &Awaited {
        &self.0.awaited
    }

    fn is_verified(&self, name: &ModelName, version: Version, files: Fingerprint) -> bool {
        let registry = self.lock();
        let slot = registry.get(name).and_then(|entry| entry.slots.get(&version));
        slot.and_then(|slot| slot.verified) == Some(files)
    }

    /// The bytes that these files of a version took when they were last loaded.
    pub(super) fn measured(&self, name: &ModelName, version: Version, files: Fingerprint) -> Option<u64> {
        let registry = self.lock();
        let (seen, bytes) = registry.get(name)?.slots.get(&version)?.measured?;
        (seen == files).then_some(bytes)
    }

    pub(super) fn limits(&self) -> &PipelineLimits {
        &self.0.limits
    }

    /// The policy and the settings in force for a folder. Blocks.
    pub(super) fn settled(
        &self,
        name: &ModelName,
        folder: ModelFolder,
    ) -> Result<(VersionPolicy, ModelSettings), ModelError> {
        let prepared = self.0.settle(name, folder, false, None)?;
        Ok((prepared.policy, prepared.settings))
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.0.repository
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.closed.load(Ordering::Acquire) || self.0.tasks.stopping().is_cancelled()
    }

    pub(super) fn find(&self, name: &ModelName, version: Option<Version>, may_load: bool) -> Option<Found> {
        self.lock().get(name).map(|entry| entry.find(name, version, may_load || entry.on_demand))
    }

    pub(super) fn edit<T>(&self, name: &ModelName, edit: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.lock().get_mut(name).map(edit)
    }

    /// `None` where the work panicked.
    pub(super) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.0.tasks.spawn_blocking(work).await.ok()
    }

    /// Waits for the turn to change a model; a folder that came since the last look becomes an entry.
    pub(super) async fn gate(&self, name: &ModelName) -> Result<Gate, ModelError> {
        loop {
            let known = self.lock().get(name).map(|entry| (entry.gate.clone(), entry.is_downloading()));
            let gate = match known {
                Some((_, true)) => {
                    let (model, state) = (name.clone(), ModelState::Downloading);
                    return Err(ModelError::NotReady { model, state, reason: None });
                }
                Some((gate, false)) => gate,
                None => {
                    let (inner, model) = (self.0.clone(), name.clone());
                    if self.blocking(move || inner.repository.contains(&model)).await != Some(true) {
                        return Err(ModelError::NotFound { model: name.clone() });
                    }
                    self.lock().entry(name.clone()).or_default().gate.clone()
                }
            };
            let gate = gate.lock_owned().await;
            if self.is_current(name, &gate) {
                return Ok(gate);
            }
        }
    }

    /// Whether the gate is the model's still: whoever held it before may have removed the model, and another of its name
    /// may have come.
    pub(super) fn is_current(&self, name: &ModelName, gate: &Gate) -> bool {
        let registry = self.lock();
        registry.get(name).is_some_and(|entry| Arc::ptr_eq(&entry.gate, OwnedMutexGuard::mutex(gate)))
    }

    /// Runs `work` to its end, also where whoever asked for it goes away.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, ModelError>> + Send + 'static,
    ) -> Result<T, ModelError> {
        self.0.tasks.spawn(name, work).await.unwrap_or(Err(ModelError::Stopping))
    }

    async fn in_background(
        &self,
        name: &ModelName,
        gate: Gate,
        change: Change,
        overrides: LoadOverrides,
    ) -> Result<(), ModelError> {
        let (manager, model) = (self.clone(), name.clone());
        let work =
            self.0.tasks.spawn("load a model", async move { manager.change(&model, &gate, change, overrides).await });
        work.await.unwrap_or(Err(ModelError::Stopping))
    }

    async fn poll(&self, interval: Duration) {
        loop {
            tokio::select! {
                biased; // A stop comes before another look.
                () = self.0.tasks.stopping().cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            self.poll_once().await;
        }
    }

    /// One look at the store: new models appear, changed ones are loaded again, removed ones are unloaded.
    async fn poll_once(&self) {
        let inner = self.0.clone();
        let on_disk = match self.blocking(move || inner.repository.names()).await {
            Some(Ok(names)) => names,
            // A store that is away for a moment has not lost its models.
            Some(Err(error)) => {
                tracing::warn!(error = %error.kind(), "the model store could not be read; everything stays as it is");
                return;
            }
            None => return,
        };
        let names: BTreeSet<ModelName> = {
            let mut registry = self.lock();
            for name in on_disk {
                registry.entry(name).or_default();
            }
            registry.keys().cloned().collect()
        };
        futures_util::stream::iter(names).for_each_concurrent(LOADS_AT_ONCE, |name| self.tend(name)).await;
    }

    /// Brings one model in line with its folder, loading only what `autoload` allows.
    async fn tend(&self, name: ModelName) {
        if self.is_stopping() {
            return;
        }
        let gate = self.lock().get(&name).filter(|entry| !entry.is_downloading()).map(|entry| entry.gate.clone());
        let Some(gate) = gate else { return };
        let gate = gate.lock_owned().await;
        if !self.is_current(&name, &gate) {
            return;
        }
        let state =
            self.edit(&name, |entry| (entry.serving(None).is_some(), entry.held || entry.on_demand, entry.pinned));
        let Some((serves, waits, pinned)) = state else { return };
        if pinned {
            return;
        }
        if serves || (self.0.store.autoload && !waits) {
            // What went wrong is logged and kept in the registry.
            // Others make room for what has served all along, not for what nobody has asked for.
            let room = if serves { MakeRoom::Evict } else { MakeRoom::OnlyIfFree };
            let change = Change { command: Command::Refresh, room, aim: Aim::InForce };
            let _ = self.in_background(&name, gate, change, LoadOverrides::default()).await;
        } else if let Ok(None) = self.look(&name, &gate).await {
            self.folder_is_gone(&name, Command::Refresh).await;
        }
    }

    /// Reads a folder and notes what is there; `None` where there is no folder any more.
    pub(super) async fn look(&self, name: &ModelName, _gate: &Gate) -> Result<Option<Prepared>, ModelError> {
        let (manager, model) = (self.clone(), name.clone());
        let prepared = self.blocking(move || manager.0.prepare(&model, &LoadOverrides::default())).await;
        let prepared = prepared.unwrap_or(Err(ModelError::Stopping));
        self.note(name, &prepared);
        prepared
    }

    /// Puts into the registry what a look at the folder gave.
    fn note(&self, name: &ModelName, prepared: &Result<Option<Prepared>, ModelError>) {
        let mut registry = self.lock();
        let Some(entry) = registry.get_mut(name) else { return };
        entry.looked_at = Some(tokio::time::Instant::now());
        match prepared {
            Ok(Some(prepared)) => {
                entry.broken = false;
                entry.manifest = prepared.folder.manifest.clone();
                entry.set_by = prepared.set_by.clone();
                entry.policy = prepared.policy.clone();
                entry.chosen = prepared.chosen;
                entry.set_versions(&prepared.folder.versions.keys().copied().collect());
                entry.set_origins(&prepared.folder.versions);
                entry.last_error = entry.failure(None);
                self.0.stats.keep_versions(name.as_str(), |version| entry.slots.contains_key(&Version(version)));
            }
            Ok(None) => {}
            Err(error) => {
                let text = match error {
                    ModelError::Invalid { problem, .. } => problem.clone(),
                    other => other.to_string(),
                };
                if entry.last_error.as_ref() != Some(&text) {
                    tracing::error!(model = %name, error = text, "a model's folder cannot be served");
                }
                entry.broken = true;
                entry.last_error = Some(text);
            }
        }
    }

    /// Makes the plan for a model and carries it out.
    pub(super) async fn change(
        &self,
        name: &ModelName,
        gate: &Gate,
        change: Change,
        overrides: LoadOverrides,
    ) -> Result<(), ModelError> {
        let command = change.command;
        let skip = self.edit(name, |entry| command == Command::Refresh && (entry.held || entry.pinned));
        if skip == Some(true) {
            return Ok(());
        }
        let overridden = overrides.config_json.is_some() || !overrides.files.is_empty();
        let prepared = if overridden {
            let (manager, model) = (self.clone(), name.clone());
            let prepared = self.blocking(move || manager.0.prepare(&model, &overrides)).await;
            prepared.unwrap_or(Err(ModelError::Stopping))
        } else {
            self.look(name, gate).await
        };
        let prepared = match prepared {
            Ok(Some(prepared)) => prepared,
            Ok(None) => {
                self.folder_is_gone(name, command).await;
                return Err(ModelError::NotFound { model: name.clone() });
            }
            Err(error) => {
                self.forget_empty(name);
                return Err(error);
            }
        };
        let written = prepared.written.clone();
        let result = self.carry_out(name, change, prepared, overridden).await;
        self.edit(name, |entry| {
            if result.is_ok() {
                entry.pinned = overridden;
            }
            if command == Command::Load && (result.is_ok() || !overridden) {
                entry.held = false;
            }
        });
        if result.is_err() && overridden {
            self.forget_empty(name);
        }
        let (inner, model, loaded) = (self.0.clone(), name.clone(), result.is_ok());
        if overridden || (loaded && command == Command::Load) {
            let clean = move || match (loaded, written) {
                (true, kept) => overrides::clean(&inner.store.models_dir, &model, kept.as_deref()),
                (false, Some(folder)) => overrides::remove(&folder),
                (false, None) => {}
            };
            self.blocking(clean).await;
        }
        result
    }

    async fn carry_out(
        &self,
        name: &ModelName,
        change: Change,
        prepared: Prepared,
        overridden: bool,
    ) -> Result<(), ModelError> {
        let on_disk: BTreeMap<Version, Fingerprint> =
            prepared.folder.versions.iter().map(|(version, folder)| (*version, folder.fingerprint)).collect();
        let planned = self.edit(name, |entry| {
            let before: BTreeMap<Version, _> =
                entry.slots.iter().map(|(version, slot)| (*version, slot.failed.clone())).collect();
            let policy = match change.aim {
                Aim::InForce => prepared.policy.clone(),
                Aim::Beside(version) => {
                    let target = match version {
                        Some(version) => BTreeSet::from([version]),
                        None => lifecycle::select(&prepared.stated, on_disk.keys().copied()),
                    };
                    let serves = entry.slots.iter().filter(|(_, slot)| slot.serving.is_some());
                    let serves = serves.map(|(version, _)| *version).filter(|version| on_disk.contains_key(version));
                    VersionPolicy::Specific(serves.chain(target).collect())
                }
            };
            let plan = lifecycle::plan(&policy, &on_disk, &entry.known(), change.command);
            for version in &plan.load {
                entry.slots.entry(*version).or_default().busy = Some(Busy::Loading);
            }
            (plan, before)
        });
        let Some((mut plan, before)) = planned else { return Err(ModelError::NotFound { model: name.clone() }) };
        if overridden {
            // What the call brought may fail; only its success may end what the disk's files made.
            plan.retire.append(&mut plan.unload);
        }
        let (mut first_error, mut complete) = (None, true);
        // The highest first: it is what requests without a version wait for.
        for version in plan.load.iter().rev() {
            let Some(job) = self.job(name, *version, &prepared, overridden) else { continue };
            if let Err(source) = self.load_version(job, change.room).await {
                if change.room == MakeRoom::OnlyIfFree && matches!(source, LoadError::NoMemory { .. }) {
                    // Not a failure: nobody waits for it, and whoever asks for it makes room.
                    complete = false;
                    self.edit(name, |entry| entry.on_demand = true);
                    continue;
                }
                first_error.get_or_insert(ModelError::Load { model: name.clone(), version: *version, source });
            }
        }
        let ends: BTreeSet<Version> = match first_error {
            None if complete => plan.unload.iter().chain(&plan.retire).copied().collect(),
            None | Some(_) => plan.unload.iter().copied().collect(),
        };
        self.take_down(name, &ends).await;
        if first_error.is_none() && !plan.missing.is_empty() {
            let missing: Vec<String> = plan.missing.iter().map(Version::to_string).collect();
            let problem = format!("version_policy names versions that are not there: {}", missing.join(", "));
            first_error = Some(ModelError::Invalid { model: name.clone(), problem });
        }
        self.edit(name, |entry| {
            entry.looked_at = Some(tokio::time::Instant::now());
            if overridden && first_error.is_some() {
                // The versions go back to what the disk made of them.
                entry.slots.retain(|version, slot| before.contains_key(version) || slot.serving.is_some());
                for (version, failed) in before {
                    if let Some(slot) =
                        entry.slots.get_mut(&version).filter(|slot| slot.serving.is_none() || slot.failed.is_some())
                    {
                        slot.failed = failed;
                    }
                }
            } else {
                entry.broken = false;
                entry.manifest = prepared.folder.manifest.clone();
                entry.set_by = prepared.set_by.clone();
                entry.policy = prepared.policy.clone();
                entry.chosen = prepared.chosen;
                entry.set_versions(&on_disk.keys().copied().collect());
                entry.set_origins(&prepared.folder.versions);
            }
            self.0.stats.keep_versions(name.as_str(), |version| entry.slots.contains_key(&Version(version)));
            entry.last_error = first_error.as_ref().map(ModelError::to_string).or_else(|| entry.failure(None));
        });
        match first_error {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// What loading a version takes; `None` where it has no files.
    pub(super) fn job(&self, name: &ModelName, version: Version, prepared: &Prepared, overridden: bool) -> Option<Job> {
        let folder = prepared.folder.versions.get(&version)?;
        let is_verified = self.is_verified(name, version, folder.fingerprint);
        Some(Job {
            name: name.clone(),
            version,
            folder: folder.clone(),
            manifest: prepared.folder.manifest.clone(),
            config: prepared.folder.config.clone(),
            policy: prepared.stated.clone(),
            settings: prepared.settings.clone(),
            limits: self.0.limits.clone(),
            max_model_bytes: self.0.store.max_model_bytes,
            // Known once the load is let in.
            size_bytes: 0,
            room_bytes: 0,
            runs_bytes: 0,
            machine_bytes: u64::MAX,
            traffic: None,
            // What a call brings is not there at the next start.
            state: (!overridden).then(|| self.state_place()),
            engines: EngineUse::MayBuild,
            is_verified,
            // What this process has loaded needs none.
            trial: self.trial(!overridden).filter(|_| !is_verified),
            stats: self.0.stats.model(name.as_str(), version.0),
        })
    }

    /// Loads one version and puts it in its place; what it replaces is drained.
    pub(super) async fn load_version(&self, mut job: Job, room: MakeRoom) -> Result<(), LoadError> {
        let (name, version, files) = (job.name.clone(), job.version, job.folder.fingerprint);
        let stats = job.stats.clone();
        if job.settings.tuning.is_asked() && !job.settings.tuning.is_forced {
            job.traffic = self.traffic(&name);
        }
        // Held until the model is in the registry and counted there.
        let (result, reservation) = match self.admit(&job, room).await {
            Ok(reservation) => {
                job.size_bytes = reservation.size_bytes;
                job.room_bytes = reservation.room_bytes;
                job.runs_bytes = reservation.runs_bytes;
                job.machine_bytes = reservation.machine_bytes;
                (self.run_loader(job, &reservation).await, Some(reservation))
            }
            Err(error) => (Err(error), None),
        };
        if !matches!(result, Err(LoadError::Stopping)) {
            stats.record_load(result.is_ok());
        }
        if matches!(result, Err(LoadError::Panicked)) {
            self.0.stats.record_panic();
        }
        let mut ready = None;
        // Checked under the lock that `close` empties the registry with: nothing is put in afterwards.
        let replaced = self.edit(&name, |entry| {
            let slot = entry.slots.entry(version).or_default();
            slot.busy = None;
            match result {
                Ok(_) if self.is_stopping() => Err(LoadError::Stopping),
                Ok(model) => {
                    tracing::info!(
                        model = %name, %version, seconds = model.load_time.as_secs_f64(), device = model.facts.device,
                        instances = model.instances, threads = model.intra_threads, task = model.task_evidence,
                        "a model is ready"
                    );
                    model.log_memory("load");
                    slot.failed = None;
                    slot.verified = Some(files);
                    slot.measured = model.memory.loaded_bytes.map(|bytes| (files, bytes)).or(slot.measured);
                    entry.on_demand = false;
                    let model = Arc::new(model);
                    ready = Some(model.clone());
                    Ok(slot.serving.replace((files, model)))
                }
                Err(error @ (LoadError::NoMemory { .. } | LoadError::MemoryBusy { .. })) => {
                    // It may fit the next time, so it has not failed.
                    tracing::warn!(model = %name, %version, %error, "a model is not loaded");
                    Err(error)
                }
                Err(error) => {
                    tracing::error!(model = %name, %version, %error, "a model could not be loaded");
                    slot.failed = Some((files, error.to_string()));
                    Err(error)
                }
            }
        });
        drop(reservation);
        if let Some(model) = ready {
            self.build_engines(&model, files);
        }
        if matches!(replaced, Some(Ok(_))) {
            self.hold_budget(&name).await;
        }
        match replaced {
            Some(Ok(Some((_, old)))) => {
                // Waited for, so that loads in a row never pile up copies of a model.
                self.0.meter.freed();
                release(vec![old]).await;
                self.0.meter.freed();
                Ok(())
            }
            Some(Ok(None)) => Ok(()),
            Some(Err(error)) => Err(error),
            None => Err(LoadError::Stopping),
        }
    }

    async fn run_loader(&self, job: Job, reservation: &Reservation) -> Result<LoadedModel, LoadError> {
        let expected = reservation.need.resident;
        let turn = self.turn().await?;
        self.try_apart(&job, &CancellationToken::new()).await?;
        let load = move |inner: &Inner, interrupt: &Interrupt, warming: &mut dyn FnMut()| {
            let measuring = inner.meter.begin(expected, inner.runtime.as_ref());
            loader::load(&job, &inner.runtime, &inner.tasks, measuring, interrupt, warming)
        };
        self.in_turn(turn, WARMUP_MAX, load).await
    }

    /// Opens a version that is no part of a model, and lets it go. Where it is `given_up`, the process that tries it out first ends.
    pub(super) async fn run_trial(
        &self,
        job: Job,
        reservation: &Reservation,
        given_up: &CancellationToken,
    ) -> Result<Tried, LoadError> {
        let expected = reservation.need.resident;
        let turn = self.turn().await?;
        self.try_apart(&job, given_up).await?;
        let trial = move |inner: &Inner, interrupt: &Interrupt, warming: &mut dyn FnMut()| {
            // Dropped at the end: what this took and gave back is no other load's.
            let _measuring = inner.meter.begin(expected, inner.runtime.as_ref());
            loader::try_out(&job, inner.runtime.as_ref(), interrupt, warming)
        };
        self.in_turn(turn, TRIAL_MAX, trial).await
    }

    /// Waits for the turn of a load.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, LoadError> {
        tokio::select! {
            biased; // A stop comes before another load.
            () = self.0.tasks.stopping().cancelled() => Err(LoadError::Stopping),
            permit = self.0.loads.clone().acquire_owned() => permit.map_err(|_| LoadError::Stopping),
        }
    }

    /// Runs a load with a thread of its own, and stops it where its runs take longer than `runs_max`.
    async fn in_turn<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        runs_max: Duration,
        load: impl FnOnce(&Inner, &Interrupt, &mut dyn FnMut()) -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let stopping = self.0.tasks.stopping();
        let interrupt = Interrupt::new();
        let (warming, warms) = oneshot::channel();
        let (inner, switch) = (self.0.clone(), interrupt.clone());
        let mut work = self.0.tasks.spawn_blocking(move || {
            let _permit = permit;
            // Reading, building and trying out take every core for a second and more; other models' requests go first.
            let _back_seat = BackSeat::take();
            // The receiver is gone where the process stops.
            let mut warming = Some(warming);
            load(&inner, &switch, &mut || _ = warming.take().map(|warming| warming.send(())))
        });
        let too_long = async {
            match warms.await {
                Ok(()) => tokio::time::sleep(runs_max).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased; // A result that is there counts, however late it is.
            result = &mut work => return result.unwrap_or(Err(LoadError::Panicked)),
            () = stopping.cancelled() => {}
            () = too_long => tracing::warn!("a warm-up is stopped: it takes too long"),
        }
        interrupt.fire();
        work.await.unwrap_or(Err(LoadError::Panicked))
    }

    /// Takes versions out of service and waits until they are gone.
    pub(super) async fn take_down(&self, name: &ModelName, versions: &BTreeSet<Version>) {
        let taken = self.edit(name, |entry| {
            let slots = entry.slots.iter_mut().filter(|(version, _)| versions.contains(version));
            slots
                .filter_map(|(_, slot)| {
                    let (_, model) = slot.serving.take()?;
                    slot.busy = Some(Busy::Unloading);
                    Some(model)
                })
                .collect::<Vec<_>>()
        });
        let taken = taken.unwrap_or_default();
        for model in &taken {
            tracing::info!(model = %name, version = %model.version, "a model is unloaded");
        }
        let logged = taken.iter().filter(|model| model.settings.log_memory_usage);
        let logged: Vec<(Version, u64)> = logged.map(|model| (model.version, model.memory.total_bytes())).collect();
        self.0.meter.freed();
        release(taken).await;
        self.0.meter.freed();
        for (version, bytes) in logged {
            let resident_bytes = process::resident_bytes();
            tracing::info!(model = %name, %version, event = "unload", bytes, resident_bytes, "memory of a model");
        }
        self.edit(name, |entry| {
            for (_, slot) in entry.slots.iter_mut().filter(|(version, _)| versions.contains(version)) {
                slot.busy = None;
            }
        });
    }

    async fn unload_all(&self, name: &ModelName, gate: &Gate) {
        let versions = self.edit(name, |entry| {
            entry.held = true;
            entry.on_demand = false;
            entry.pinned = false;
            entry.last_error = None;
            entry.slots.values_mut().for_each(|slot| slot.failed = None);
            entry.slots.keys().copied().collect::<BTreeSet<Version>>()
        });
        self.take_down(name, &versions.unwrap_or_default()).await;
        let (inner, model) = (self.0.clone(), name.clone());
        self.blocking(move || overrides::clean(&inner.store.models_dir, &model, None)).await;
        // Versions that a load call brought are gone; what the disk holds is listed again.
        if let Ok(None) = self.look(name, gate).await {
            self.remove(&mut self.lock(), name);
        }
    }

    async fn folder_is_gone(&self, name: &ModelName, command: Command) {
        if command == Command::Refresh {
            let versions = self.edit(name, |entry| entry.slots.keys().copied().collect::<BTreeSet<Version>>());
            self.take_down(name, &versions.unwrap_or_default()).await;
        }
        let mut registry = self.lock();
        if registry.get(name).is_some_and(|entry| entry.serving(None).is_none()) {
            self.remove(&mut registry, name);
        }
    }

    /// Removes an entry that was made for a call whose files did not make a model.
    fn forget_empty(&self, name: &ModelName) {
        let mut registry = self.lock();
        if registry.get(name).is_some_and(|entry| entry.slots.is_empty() && !entry.broken) {
            self.remove(&mut registry, name);
        }
    }

    /// The model is no longer of the store, and is no longer counted.
    pub(super) fn remove(&self, registry: &mut BTreeMap<ModelName, Entry>, name: &ModelName) {
        let removed = registry.remove(name);
        self.0.stats.forget(name.as_str());
        // Whoever is getting a version of it gets the first one of its name.
        if removed.is_some_and(|entry| entry.claimed.is_some()) {
            registry.insert(name.clone(), Entry { claimed: Some(Claimed::Model), ..Entry::default() });
        }
    }
}

impl Inner {
    /// Reads a folder, and writes the files of the call first where it brings some. Blocks.
    fn prepare(&self, name: &ModelName, overrides: &LoadOverrides) -> Result<Option<Prepared>, ModelError> {
        let invalid = |problem: String| ModelError::Invalid { model: name.clone(), problem };
        let given = match &overrides.config_json {
            Some(json) if json.len() > CONFIG_BYTES_MAX => {
                return Err(invalid(format!("config: expected at most {CONFIG_BYTES_MAX} bytes, got {}", json.len())));
            }
            Some(json) => Some(GivenConfig::parse_json(json).map_err(|error| invalid(format!("config: {error}")))?),
            None if !overrides.files.is_empty() => {
                return Err(invalid("files need the parameter config, the model configuration as JSON".into()));
            }
            None => None,
        };
        let folder_error = |error: FolderError| invalid(error.to_string());
        let (mut folder, written) = if overrides.files.is_empty() {
            match self.repository.read(name).map_err(folder_error)? {
                Some(folder) => (folder, None),
                None => return Ok(None),
            }
        } else {
            let written = overrides::write(&self.store.models_dir, name, &overrides.files, self.store.max_model_bytes)?;
            match read_folder(&written, &written) {
                Ok(folder) => (folder, Some(written)),
                Err(error) => {
                    overrides::remove(&written);
                    return Err(folder_error(error));
                }
            }
        };
        let overridden = given.is_some();
        if let Some(given) = given {
            folder.config = Some(Arc::new(given));
            let mut hasher = DefaultHasher::new();
            overrides.config_json.hash(&mut hasher);
            let mix = hasher.finish();
            folder
                .versions
                .values_mut()
                .for_each(|version| version.fingerprint = Fingerprint(version.fingerprint.0 ^ mix));
        }
        let prepared = self.settle(name, folder, overridden, written.clone());
        if let (Err(_), Some(written)) = (&prepared, written) {
            overrides::remove(&written);
        }
        prepared.map(Some)
    }

    /// Settings and version policy of a model: its own file before `config.pbtxt`, a call's configuration before both.
    fn settle(
        &self,
        name: &ModelName,
        mut folder: ModelFolder,
        overridden: bool,
        written: Option<PathBuf>,
    ) -> Result<Prepared, ModelError> {
        let (manifest, config) = (&folder.manifest, folder.config.as_deref());
        if let Some(stated) = config.and_then(|config| config.name.as_deref()).filter(|stated| *stated != name.as_str())
        {
            let problem =
                format!("the configuration is of model {stated:?}; expected the folder's name, {:?}", name.as_str());
            return Err(ModelError::Invalid { model: name.clone(), problem });
        }
        let config_policy = config.and_then(|config| config.version_policy.clone());
        let (stated, settings) = match config {
            Some(config) if overridden => {
                let settings = config.settings.apply(&manifest.overrides.apply(&self.defaults));
                (config_policy.or_else(|| manifest.version_policy.clone()), settings)
            }
            Some(config) => {
                let settings = manifest.overrides.apply(&config.settings.apply(&self.defaults));
                (manifest.version_policy.clone().or(config_policy), settings)
            }
            None => (manifest.version_policy.clone(), manifest.overrides.apply(&self.defaults)),
        };
        let mut set_by = SetBy::new();
        let own = manifest.overrides.keys().map(|key| (key, "model.toml"));
        let given = config.into_iter().flat_map(|config| config.settings.keys());
        // The later one wins.
        if overridden {
            set_by.extend(own.chain(given.map(|key| (key, "the load call"))));
        } else {
            set_by.extend(given.map(|key| (key, "config.pbtxt")).chain(own));
        }
        let stated = stated.unwrap_or_default();
        // What a call brings is served as the call says.
        let choice = folder.choice.filter(|_| !overridden);
        let on_disk = folder.versions.keys().copied().collect();
        let (policy, chosen) = lifecycle::in_force(&stated, choice, &on_disk);
        self.add_origins(name, &mut folder);
        Ok(Prepared { stated, policy, chosen, settings, set_by: Arc::new(set_by), folder, written })
    }

    /// Reads where the versions came from, as far as that is not known of these files.
    fn add_origins(&self, name: &ModelName, folder: &mut ModelFolder) {
        let known: BTreeMap<Version, _> = {
            let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = registry.get(name).into_iter().flat_map(|entry| &entry.slots);
            slots.filter_map(|(version, slot)| Some((*version, slot.origin.clone()?))).collect()
        };
        for (version, found) in &mut folder.versions {
            found.origin = match known.get(version) {
                Some((files, origin)) if *files == found.fingerprint => origin.clone(),
                Some(_) | None => Provenance::read(&found.folder).map(Arc::new),
            };
        }
    }
}

/// How a session beside those of a model is built.
fn bare_settings(model: &LoadedModel) -> SessionSettings {
    SessionSettings {
        device: model.device.clone(),
        optimization_level: model.settings.optimization_level,
        intra_threads: model.intra_threads,
        memory: model.settings.memory(),
        run_memory: model.settings.run_memory.filter(|bytes| *bytes > 0),
    }
}

/// Drops models and waits until their instances have ended: requests in flight hold references of their own.
async fn release(models: Vec<Arc<LoadedModel>>) {
    let ended: Vec<_> = models.iter().map(|model| (model.name.clone(), model.handle.ended())).collect();
    drop(models);
    let deadline = tokio::time::Instant::now() + DRAIN_MAX;
    for (name, ended) in ended {
        if tokio::time::timeout_at(deadline, ended.cancelled()).await.is_err() {
            tracing::warn!(model = %name, "runs in flight have not ended in time; their memory is freed when they do");
        }
    }
}

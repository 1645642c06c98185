//! What the server does, in one entrance for all doors: predict, infer, load, unload, list.
//!
//! A door resolves a model once ([`InferenceEngine::model`]), reads the request with the model's declared inputs at
//! hand, and hands it to [`InferenceEngine::infer`] (tensors) or [`InferenceEngine::predict`] (the task's own input).
//! Knows no protocol and no status code: errors carry an [`ErrorKind`], which each door maps once.

mod bare;
mod cache;
mod chain;
mod check;
mod cleanup;
mod error;
mod infer;
mod predict;
mod profile;
mod request;
mod samples;
#[cfg(test)]
pub(crate) mod testing;
mod warmup;

pub use bare::BareSession;
pub use cleanup::Cleaned;
pub use error::{EngineError, ErrorKind, FieldError, FieldKind};
pub use request::{CacheOutcome, InferRequest, InferResponse, PredictRequest, PredictResponse, RunOptions, Timing};
pub use warmup::{Warmed, WarmupRequest};

pub use crate::batching::{Joining, Levels, Sender, WaitingPolicy, WaitingSettings};

pub use crate::cache::{CachesUsage, Usage as CacheUsage};
pub use crate::models::{
    Deleted, DiskSpace, EngineState, EngineStatus, Gain, LoadOverrides, LoadedModel, Measured, MemoryTotals, ModelName,
    ModelState, ModelStatus, NameError, Objective, Optimization, OptimizationState, Profiled, Quantization, RunMemory,
    SetBy, StoredFile, TuneRequest, Tuned, Version, VersionStatus,
};
pub use crate::pipelines::image::picture_size;
/// One input of a run: its place among the graph's inputs, and its value.
pub use crate::runtime::Input as RunInput;

pub use crate::pipelines::{ClassScore, Item, Parameters, Prediction, TokenEmbeddings};
pub use crate::runtime::{Execution, MissingProvider, OptimizationLevel, ProviderStatus};

use crate::models::{ModelError, ModelManager};
use crate::pipelines::{Pool, PoolError};
use crate::tasks::Tasks;
use crate::telemetry::{ModelStats, Stats};
use std::sync::Arc;

/// The engine. Clones are the same engine.
#[derive(Clone)]
pub struct InferenceEngine(Arc<Inner>);

struct Inner {
    models: ModelManager,
    pool: Pool,
    tasks: Tasks,
    /// Equal requests in flight, of all models that keep answers.
    flights: cache::AnswerFlights,
}

impl InferenceEngine {
    /// An engine over `models`, with `pool` for preprocessing and postprocessing.
    pub fn new(models: ModelManager, pool: Pool, tasks: Tasks) -> InferenceEngine {
        InferenceEngine(Arc::new(Inner { models, pool, tasks, flights: cache::AnswerFlights::default() }))
    }

    /// The ready model to use for a request: the default version where none is named. Loads it where `autoload` is on
    /// and it is not loaded.
    ///
    /// # Errors
    /// `NotFound`, or `NotReady` where it is being loaded or failed to load.
    pub async fn model(&self, name: &ModelName, version: Option<Version>) -> Result<Arc<LoadedModel>, EngineError> {
        Ok(self.0.models.get_or_load(name, version).await?)
    }

    /// All models of the store with their states, by name.
    pub fn models(&self) -> Vec<ModelStatus> {
        self.0.models.list()
    }

    /// One model of the store.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn status(&self, name: &ModelName) -> Result<ModelStatus, EngineError> {
        Ok(self.0.models.status(name)?)
    }

    /// The files of a version, or of a model with all that its versions share.
    ///
    /// # Errors
    /// `NotFound`, `VersionNotFound`, or `Invalid` where the folder cannot be read.
    pub async fn files(&self, name: &ModelName, version: Option<Version>) -> Result<Vec<StoredFile>, EngineError> {
        Ok(self.0.models.files(name, version).await?)
    }

    /// What is counted of every request and run.
    pub fn stats(&self) -> &Stats {
        self.0.models.stats()
    }

    /// What is counted of a version that the store has, loaded or not: the default version where none is named.
    ///
    /// # Errors
    /// `NotFound`, or `NotReady` where the model has no version.
    pub fn model_stats(&self, name: &ModelName, version: Option<Version>) -> Result<Arc<ModelStats>, EngineError> {
        let status = self.status(name)?;
        let Some(version) = version.or(status.default_version) else {
            let (model, state, reason) = (name.clone(), status.state, status.last_error);
            return Err(EngineError::Model(ModelError::NotReady { model, state, reason }));
        };
        let available: Vec<Version> = status.versions.iter().map(|known| known.version).collect();
        if !available.contains(&version) {
            return Err(EngineError::Model(ModelError::VersionNotFound { model: name.clone(), version, available }));
        }
        Ok(self.stats().model(name.as_str(), version.0))
    }

    /// The version that is loaded under this name, where one is. Loads nothing.
    pub fn loaded_version(&self, name: &str, version: u64) -> Option<Arc<LoadedModel>> {
        let versions = self.status(&ModelName::parse(name).ok()?).ok()?.versions;
        versions.into_iter().find(|known| known.version.0 == version)?.loaded
    }

    /// Reads the model's folder again and loads the versions that its policy asks for; returns when they are ready.
    /// A version that is ready and unchanged stays; one that fails to load leaves the old one serving.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidInput` with the reason where a version could not be loaded.
    pub async fn load(&self, name: &ModelName, overrides: LoadOverrides) -> Result<ModelStatus, EngineError> {
        self.0.models.load(name, overrides).await?;
        self.status(name)
    }

    /// Measures what serves a loaded version best, the default version where none is named, and lets that serve. Returns when it
    /// does; what served before serves until then.
    ///
    /// # Errors
    /// `NotFound`, or `NotReady` where it does not serve; `Conflict` while it has traffic, unless that is forced; as
    /// [`InferenceEngine::load`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the load.
    pub async fn tune(
        &self,
        name: &ModelName,
        version: Option<Version>,
        request: TuneRequest,
    ) -> Result<Arc<LoadedModel>, EngineError> {
        Ok(self.0.models.tune(name, version, request).await?)
    }

    /// Unloads all versions; returns when their runs have ended and their memory is free.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn unload(&self, name: &ModelName) -> Result<ModelStatus, EngineError> {
        self.0.models.unload(name).await?;
        self.status(name)
    }

    /// Unloads all models, one beside the other; returns their names when their runs have ended and their memory is free.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop an unload that has begun.
    pub async fn unload_all(&self) -> Vec<ModelName> {
        let is_loaded = |model: &ModelStatus| model.versions.iter().any(|version| version.loaded.is_some());
        let loaded = self.models().into_iter().filter(is_loaded).map(|model| model.name);
        let unloads = loaded.map(|name| async move { self.0.models.unload(&name).await.is_ok().then_some(name) });
        // One that is gone meanwhile has nothing to be freed.
        futures_util::future::join_all(unloads).await.into_iter().flatten().collect()
    }

    /// Deletes a version, or the model with all of them; the only version takes its model along. Returns when its files are
    /// gone and its runs have ended.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while the model is being downloaded, or where the store cannot be changed.
    pub async fn delete(&self, name: &ModelName, version: Option<Version>) -> Result<Deleted, EngineError> {
        Ok(self.0.models.delete(name, version).await?)
    }

    /// Makes one version serve whatever the version policy says; `None` gives the word back to the policy. What served before
    /// serves until it is so.
    ///
    /// # Errors
    /// `NotFound`, or as [`InferenceEngine::load`]: nothing is changed then.
    pub async fn choose(&self, name: &ModelName, version: Option<Version>) -> Result<ModelStatus, EngineError> {
        self.0.models.choose(name, version).await?;
        self.status(name)
    }

    /// Chooses the highest version below the one that answers now.
    ///
    /// # Errors
    /// As [`InferenceEngine::choose`]; `Conflict` where there is no such version.
    pub async fn roll_back(&self, name: &ModelName) -> Result<ModelStatus, EngineError> {
        self.0.models.roll_back(name).await?;
        self.status(name)
    }

    /// Whether a balancer may send requests: every model meant to be loaded at start has been tried, those that the server was
    /// told to serve have served, and the process is not stopping.
    pub fn is_ready(&self) -> bool {
        let models = &self.0.models;
        models.is_started() && models.awaited().is_empty() && !self.0.tasks.stopping().is_cancelled()
    }

    /// The models that the server was told to serve and does not yet, and why, in words for a client.
    pub fn awaited(&self) -> Vec<(ModelName, String)> {
        self.0.models.awaited()
    }

    /// Runs `work` on the pool. A panic in it is counted, also where its caller has left.
    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, PoolError> {
        let counted = self.stats().panic_guard();
        let work = move || {
            let _counted = counted;
            work()
        };
        self.0.pool.run(work).await
    }

    /// The memory of all loaded models together, and its bound.
    pub fn memory_totals(&self) -> MemoryTotals {
        self.0.models.memory_totals()
    }

    /// The file system of the store; `None` where it does not tell.
    pub fn disk_space(&self) -> Option<DiskSpace> {
        self.0.models.disk_space()
    }

    /// The execution providers that this server can use, and why others do not work. Blocks: the first call may take seconds.
    pub fn providers(&self) -> Vec<ProviderStatus> {
        self.0.models.providers()
    }

    /// Name and version of the library that runs the graphs.
    pub fn runtime_version(&self) -> String {
        self.0.models.runtime_version()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F84.
    #[tokio::test]
    async fn a_panic_on_the_pool_is_counted_also_where_nobody_waits_for_it() {
        let tasks = Tasks::new();
        let engine = testing::engine(&tasks);
        assert_eq!(engine.compute(|| panic!("as preprocessing might")).await, Err::<(), _>(PoolError::Panicked));
        assert_eq!((engine.compute(|| 7).await, engine.stats().panics()), (Ok(7), 1));

        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (began, beginning) = tokio::sync::oneshot::channel();
        let mut left = Box::pin(engine.compute(move || {
            began.send(()).ok();
            gone.recv().ok();
            panic!("later");
        }));
        tokio::select! { () = async { left.as_mut().await.unwrap_or(()) } => panic!("ended early"), _ = beginning => {} }
        drop(left);
        go.send(()).unwrap();
        while engine.stats().panics() < 2 {
            tokio::task::yield_now().await;
        }
    }
}

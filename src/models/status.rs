//! What the room tells its neighbours: a loaded model, and the states of all models.

use super::engines::EngineBuild;
use super::made_up::{self, InputHints, Size};
use super::{Manifest, ModelMemory, ModelName, ModelSettings, Optimization, Profiled, SetBy, Tuned, Version};
use crate::batching;
use crate::cache::Caches;
use crate::hub::Provenance;
use crate::pipelines::Pipeline;
use crate::runtime::{DeviceSettings, Execution, GraphFacts, GraphSource, Input, Runtime};
use crate::telemetry::{ModelStats, process};
use crate::tensor::Spec;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// One version, ready to run. When the last reference is dropped, what was accepted is finished and its memory freed.
pub struct LoadedModel {
    pub name: ModelName,
    pub version: Version,
    pub inputs: Vec<Spec>,
    pub outputs: Vec<Spec>,
    pub facts: GraphFacts,
    /// `None`: the model takes and gives raw tensors.
    pub pipeline: Option<Arc<dyn Pipeline>>,
    /// What the task was told from.
    pub task_evidence: String,
    pub settings: ModelSettings,
    /// How its sessions are built: what the settings ask for, as far as it is served.
    pub device: DeviceSettings,
    /// By how much the process's memory on its GPU grew over the load; `None` where it runs on none, or the driver does not tell.
    pub gpu_bytes: Option<u64>,
    /// What became of TensorRT's engines.
    pub engine: EngineBuild,
    pub instances: usize,
    /// Threads of one run.
    pub intra_threads: usize,
    /// What instances, threads and batch size were chosen by, where that was measured.
    pub tuned: Option<Tuned>,
    /// Where its optimised graph came from.
    pub optimization: Optimization,
    /// Why that was not measured, where it was asked for.
    pub untuned: Option<String>,
    /// The class names of an output, by its name.
    pub output_labels: BTreeMap<String, Arc<[String]>>,
    /// 0: shapes are whole; above 0: dim 0 of every tensor is the batch, and the configuration's `dims` leave it out.
    pub max_batch_size: u32,
    /// Triton's `ModelConfig` in force, as protobuf's JSON with the original field names.
    pub config_json: serde_json::Value,
    /// What is counted of this version; the same across its reloads.
    pub stats: Arc<ModelStats>,
    /// Where the graph was read from.
    pub source: GraphSource,
    /// Loads further copies, with the shapes that clients see.
    pub runtime: Arc<dyn Runtime>,
    /// What its files say of the values that it takes.
    pub hints: InputHints,
    /// What this load has answered and prepared; goes with it, so that no other load can answer from it.
    pub caches: Caches,
    pub handle: batching::Handle,
    pub memory: ModelMemory,
    /// Where its time went when that was last looked at.
    pub kept_profile: KeptProfile,
    pub loaded_at: SystemTime,
    /// From the first byte read to the end of the warm-up.
    pub load_time: Duration,
}

/// The last profile of a model, without its traces.
#[derive(Debug, Default)]
pub struct KeptProfile(Mutex<Option<Arc<Profiled>>>);

impl KeptProfile {
    pub(super) fn put(&self, profiled: &Profiled) {
        let kept = Profiled { traces: Vec::new(), ..profiled.clone() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(kept));
    }

    pub fn get(&self) -> Option<Arc<Profiled>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

impl LoadedModel {
    /// Says in the log what memory the version holds after `event`, a load or a warm-up, where the settings ask for it.
    pub(crate) fn log_memory(&self, event: &'static str) {
        if !self.settings.log_memory_usage {
            return;
        }
        let arena = self.memory.arena().unwrap_or_default();
        tracing::info!(
            model = %self.name, version = %self.version, event, bytes = self.memory.total_bytes(),
            weights_bytes = self.memory.weights_bytes, loaded_bytes = self.memory.loaded_bytes,
            arena_bytes = arena.arena_bytes, arena_max_bytes = arena.arena_max_bytes,
            resident_bytes = process::resident_bytes(), "memory of a model"
        );
    }

    /// What runs where at this moment: as the session has it, with an engine that is still built or could not be.
    pub fn execution(&self) -> Execution {
        self.engine.seen_in(&self.facts.execution)
    }

    /// Values for the graph's inputs, made up from what it declares: `rows` in dimension 0, `None` as the graph has it and 1
    /// where that is free; sizes and token ids as the model's files have them. The same ones each time; `None` where one
    /// would be too large. Takes long where they are large.
    pub fn made_up_inputs(&self, rows: Option<usize>) -> Option<Vec<Input>> {
        self.made_up_sample(rows, 1)
    }

    /// The same with other values for each `seed`.
    pub fn made_up_sample(&self, rows: Option<usize>, seed: u64) -> Option<Vec<Input>> {
        let size = Size { rows, ..Size::default() };
        made_up::inputs(&self.inputs, &size, seed, &self.hints)
    }
}

/// Where a model or a version is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelState {
    Unloaded,
    /// Its name is taken, and its files are on their way.
    Downloading,
    Loading,
    Ready,
    Unloading,
    Failed,
}

impl ModelState {
    pub const ALL: [ModelState; 6] = [
        ModelState::Unloaded,
        ModelState::Downloading,
        ModelState::Loading,
        ModelState::Ready,
        ModelState::Unloading,
        ModelState::Failed,
    ];

    /// The state as clients know it.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelState::Unloaded => "unloaded",
            ModelState::Downloading => "downloading",
            ModelState::Loading => "loading",
            ModelState::Ready => "ready",
            ModelState::Unloading => "unloading",
            ModelState::Failed => "failed",
        }
    }
}

impl fmt::Display for ModelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone)]
pub struct VersionStatus {
    pub version: Version,
    pub state: ModelState,
    /// Why it is in this state, where there is more to say: the error of the last load.
    pub reason: Option<String>,
    /// There while the version is ready.
    pub loaded: Option<Arc<LoadedModel>>,
    /// Where its files came from, where they say so.
    pub origin: Option<Arc<Provenance>>,
}

#[derive(Debug, Clone)]
pub struct ModelStatus {
    pub name: ModelName,
    pub state: ModelState,
    /// Ascending.
    pub versions: Vec<VersionStatus>,
    /// The version that answers a request that names none: the highest that is ready, else the highest there is.
    pub default_version: Option<Version>,
    /// The version that was chosen to serve, whatever the version policy says.
    pub chosen_version: Option<Version>,
    pub manifest: Arc<Manifest>,
    /// The settings that its own files or the load call give it.
    pub set_by: Arc<SetBy>,
    /// Of the last load or look at the folder, where that failed.
    pub last_error: Option<String>,
}

/// What a load call brings along; empty for a plain load.
#[derive(Debug, Clone, Default)]
pub struct LoadOverrides {
    /// A model configuration as JSON, in place of `config.pbtxt` for this load.
    pub config_json: Option<String>,
    /// Files in place of the model's folder, as `<version>/<path>`; they need `config_json`.
    pub files: Vec<(String, Bytes)>,
}

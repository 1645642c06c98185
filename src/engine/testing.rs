//! Engines and models without a graph, for tests of the doors.

use super::{InferenceEngine, LoadedModel, ModelName, Version};
use crate::batching::{BatchSettings, Handle, Inline, Plan, Start};
use crate::cache::{CacheSettings, Caches};
use crate::models::{ModelManager, ModelSettings, StoreSettings, TrialLoad};
use crate::pipelines::{PipelineLimits, Pool};
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{GraphSource, Input, Interrupt, Runtime, RuntimeError, SessionSettings};
use crate::tasks::Tasks;
use crate::telemetry::Stats;
use crate::tensor::{Spec, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// An engine with an empty store.
pub(crate) fn engine(tasks: &Tasks) -> InferenceEngine {
    InferenceEngine::new(models(tasks), Pool::new(tasks.clone(), 1), tasks.clone())
}

/// An empty store.
pub(crate) fn models(tasks: &Tasks) -> ModelManager {
    let runtime = Arc::new(FakeRuntime::new(vec![], vec![], |_, _, _| Ok(vec![])));
    let store = StoreSettings {
        models_dir: std::env::temp_dir().join("ortus-empty-store"),
        autoload: false,
        poll_interval: None,
        max_model_bytes: 1 << 20,
        max_loaded_memory: None,
        optimized_dir: None,
        reserve_bytes: 0,
        trial_load: TrialLoad::Off,
        trial_load_timeout: Duration::ZERO,
    };
    let limits = PipelineLimits::default();
    ModelManager::new(runtime, tasks.clone(), store, ModelSettings::default(), limits, Stats::default())
}

/// A loaded model `fake`, version 1, without a task, whose runs are `run`.
pub(crate) fn model(
    tasks: &Tasks,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    run: impl Fn(&[Input], &[usize], &Interrupt) -> Result<Vec<Value>, RuntimeError> + Send + Sync + 'static,
) -> Arc<LoadedModel> {
    caching_model(tasks, inputs, outputs, &CacheSettings::default(), run)
}

/// The same with caches.
pub(crate) fn caching_model(
    tasks: &Tasks,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    cache: &CacheSettings,
    run: impl Fn(&[Input], &[usize], &Interrupt) -> Result<Vec<Value>, RuntimeError> + Send + Sync + 'static,
) -> Arc<LoadedModel> {
    let source = GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 };
    let settings = SessionSettings::default();
    let runtime = Arc::new(FakeRuntime::new(inputs.clone(), outputs.clone(), run));
    let session = runtime.load(&source, &settings).unwrap();
    let facts = session.facts().clone();
    let stats = Stats::default().model("fake", 1);
    let start = Start {
        model: "fake".into(),
        sessions: vec![session],
        settings: BatchSettings::default(),
        plan: Plan::alone("a test"),
        stats: stats.clone(),
        spare: Arc::new(|| Err(RuntimeError::Run("there is no other session".into()))),
        reserve: None,
        inline: Inline::default(),
    };
    Arc::new(LoadedModel {
        name: ModelName::parse("fake").unwrap(),
        version: Version(1),
        inputs,
        outputs,
        facts,
        pipeline: None,
        task_evidence: "no file beside the graph names a task".to_owned(),
        settings: ModelSettings::default(),
        device: Default::default(),
        gpu_bytes: None,
        engine: Default::default(),
        instances: 1,
        intra_threads: 1,
        tuned: None,
        optimization: Default::default(),
        untuned: None,
        output_labels: BTreeMap::new(),
        max_batch_size: 0,
        config_json: serde_json::Value::Null,
        caches: Caches::new(cache),
        stats,
        source,
        runtime,
        hints: Default::default(),
        handle: Handle::start(start, tasks).unwrap(),
        memory: Default::default(),
        kept_profile: Default::default(),
        loaded_at: SystemTime::UNIX_EPOCH,
        load_time: Duration::ZERO,
    })
}

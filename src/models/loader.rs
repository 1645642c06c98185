//! Makes a loaded model of a version's folder: graph, task, checks, warm-up, threads. Blocks for as long as that takes.
//!
//! Invariant: what is returned has run its samples and can answer at once; on any error everything taken is given back.
//! Knows no registry: who may be replaced by the result is decided elsewhere.

use super::config_pbtxt::{GivenConfig, InForce, effective};
use super::made_up::InputHints;
use super::repository::{VersionFolder, companion, graph_file, read_bounded};
use super::{LoadError, LoadedModel, Manifest, ModelName, ModelSettings, Version, VersionPolicy, warmup};
use crate::batching::Handle;
use crate::pipelines::{LabelsSource, Pipeline, PipelineLimits};
use crate::runtime::{GraphSource, Interrupt, Runtime, Session, SessionSettings};
use crate::tasks::Tasks;
use crate::tensor::Spec;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Largest file of class names, in bytes.
const LABELS_BYTES_MAX: u64 = 16 << 20;

/// All that is needed to load one version.
pub(super) struct Job {
    pub(super) name: ModelName,
    pub(super) version: Version,
    pub(super) folder: VersionFolder,
    pub(super) manifest: Arc<Manifest>,
    pub(super) config: Option<Arc<GivenConfig>>,
    pub(super) policy: VersionPolicy,
    pub(super) settings: ModelSettings,
    pub(super) limits: PipelineLimits,
    pub(super) max_model_bytes: u64,
}

/// Loads a version. `warming` is called when the warm-up begins, which `interrupt` stops.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn load(
    job: &Job,
    runtime: &dyn Runtime,
    tasks: &Tasks,
    interrupt: &Interrupt,
    warming: impl FnOnce(),
) -> Result<LoadedModel, LoadError> {
    let started = Instant::now();
    let config = job.config.as_deref();
    let file = graph_file(&job.folder, &job.manifest, config)?;
    let graph_name = file
        .strip_prefix(&job.folder.folder)
        .map_or_else(|_| String::new(), |file| file.to_string_lossy().into_owned());
    let (instances, intra_threads) = threads(&job.settings);
    let source = GraphSource { file, folder: job.folder.folder.clone(), max_file_bytes: job.max_model_bytes };
    let session_settings = SessionSettings {
        device: job.settings.device.clone(),
        optimization_level: job.settings.optimization_level,
        intra_threads,
    };
    let mut sessions: Vec<Box<dyn Session>> = Vec::with_capacity(instances);
    for _ in 0..instances {
        if tasks.stopping().is_cancelled() {
            return Err(LoadError::Stopping);
        }
        sessions.push(runtime.load(&source, &session_settings)?);
    }
    let Some(first) = sessions.first() else { return Err(LoadError::Panicked) };
    let (inputs, outputs, facts) = (first.inputs().to_vec(), first.outputs().to_vec(), first.facts().clone());
    if let Some(config) = config {
        config.check_graph(&inputs, &outputs)?;
    }
    let (pipeline, task_evidence) = task(job, &inputs, &outputs)?;
    let output_labels = output_labels(job, &outputs, pipeline.as_deref())?;

    warming();
    for sample in config.map(|config| config.warmup.as_slice()).unwrap_or_default() {
        warmup::configured(&mut sessions, sample, &job.folder, interrupt)?;
    }
    warmup::samples(&mut sessions, pipeline.as_deref(), &job.manifest, &job.folder, interrupt)?;
    let hints = InputHints::read(task_folder(job));
    warmup::made_up(&mut sessions, job.settings.warmup_iterations, &hints, interrupt);

    let in_force = InForce {
        name: &job.name,
        policy: &job.policy,
        graph_file: &graph_name,
        inputs: &inputs,
        outputs: &outputs,
        instances,
        device: &facts.device,
    };
    let config_json = effective(config, &in_force)?;
    let handle = Handle::start(job.name.as_str(), sessions, job.settings.max_queue, tasks)
        .map_err(|error| LoadError::Threads(error.kind()))?;
    Ok(LoadedModel {
        name: job.name.clone(),
        version: job.version,
        inputs,
        outputs,
        facts,
        pipeline,
        task_evidence,
        settings: job.settings.clone(),
        instances,
        intra_threads,
        output_labels,
        max_batch_size: config.map_or(0, |config| config.max_batch_size),
        config_json,
        source,
        hints,
        handle,
        loaded_at: SystemTime::now(),
        load_time: started.elapsed(),
    })
}

/// Instances and the threads of each. What the settings leave open is chosen so that together they fill the machine.
fn threads(settings: &ModelSettings) -> (usize, usize) {
    // Respects the process's CPU affinity and the container's quota.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let instances = settings.instances.unwrap_or(1).clamp(1, super::manifest::INSTANCES_MAX);
    (instances, settings.intra_threads.unwrap_or(cores / instances).max(1))
}

/// The model's task from the manifest and the files beside the graph, and what it was told from.
fn task(job: &Job, inputs: &[Spec], outputs: &[Spec]) -> Result<(Option<Arc<dyn Pipeline>>, String), LoadError> {
    let detected = crate::pipelines::detect(task_folder(job), &job.manifest.pipeline, inputs, outputs, &job.limits)?;
    for problem in &detected.missing {
        tracing::warn!(model = %job.name, version = %job.version, problem, "a model's task is not fully served");
    }
    Ok((detected.pipeline, detected.evidence))
}

/// The folder with the files that make the task: the version's own, else what all versions share.
fn task_folder(job: &Job) -> &Path {
    let (own, shared) = (&job.folder.folder, &job.folder.model_folder);
    let labels = match &job.manifest.pipeline.labels {
        Some(LabelsSource::File(file)) => Some(file.as_str()),
        Some(LabelsSource::List(_)) | None => None,
    };
    let has_any = |folder: &Path| {
        ["config.json", "preprocessor_config.json"].into_iter().chain(labels).any(|file| folder.join(file).is_file())
    };
    if !has_any(own) && has_any(shared) { shared } else { own }
}

fn output_labels(
    job: &Job,
    outputs: &[Spec],
    pipeline: Option<&dyn Pipeline>,
) -> Result<BTreeMap<String, Arc<[String]>>, LoadError> {
    let mut labels = BTreeMap::new();
    if let (Some(pipeline), [only]) = (pipeline, outputs)
        && !pipeline.labels().is_empty()
    {
        labels.insert(only.name.clone(), pipeline.labels().into());
    }
    for output in job.config.iter().flat_map(|config| &config.outputs) {
        let Some(file) = &output.label_filename else { continue };
        let failed = |problem: String| LoadError::Labels { output: output.name.clone(), problem };
        let path = companion(&job.folder, file)
            .ok_or_else(|| failed(format!("there is no file {file} in the model's folder")))?;
        let bytes = match read_bounded(&path, LABELS_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(failed(format!("{file} is larger than {LABELS_BYTES_MAX} bytes"))),
            Err(error) => return Err(failed(format!("{file} could not be read: {}", error.kind()))),
        };
        let text = String::from_utf8(bytes).map_err(|_| failed(format!("{file} is not UTF-8 text")))?;
        labels.insert(output.name.clone(), text.lines().map(str::to_owned).collect());
    }
    Ok(labels)
}

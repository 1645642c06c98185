//! Makes a loaded model of a version's folder: graph, task, checks, warm-up, threads. Blocks for as long as that takes.
//!
//! Invariant: what is returned has run its samples and can answer at once; on any error everything taken is given back.
//! Knows no registry: who may be replaced by the result is decided elsewhere.

use super::config_pbtxt::{GivenConfig, InForce, effective};
use super::made_up::{self, InputHints, Size};
use super::memory::Measuring;
use super::repository::{VersionFolder, companion, graph_file, read_bounded};
use super::{LoadError, LoadedModel, Manifest, ModelMemory, ModelName, ModelSettings, Version, VersionPolicy, warmup};
use crate::batching::{Handle, Inline, Joining, PaddedInput, Plan, Start, probe};
use crate::cache::Caches;
use crate::pipelines::{LabelsSource, Pipeline, PipelineLimits, text};
use crate::runtime::{GraphSource, Interrupt, Runtime, RuntimeError, Session, SessionSettings, WorkingMemories};
use crate::tasks::Tasks;
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Dim, Spec, ValueType};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Largest file of class names, in bytes.
const LABELS_BYTES_MAX: u64 = 16 << 20;

/// From this size on the instances of a model run one session together, with one copy of its weights and one arena. With two
/// instances of a 100 MB matrix that is 110 MB instead of 220. Below, the memory is not worth the lock in the session that
/// instances then meet at: with a run of 6 µs it took a third of their runs, with ResNet-18 (45 MB) nothing.
const SHARED_FROM_BYTES: u64 = 16 << 20;

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
    /// Bytes of the graph file and its external data.
    pub(super) size_bytes: u64,
    pub(super) stats: Arc<ModelStats>,
}

/// Where the version's graph is.
///
/// # Errors
/// Where the folder has no graph, or not the one that its settings name.
pub(super) fn source(job: &Job) -> Result<GraphSource, LoadError> {
    let file = graph_file(&job.folder, &job.manifest, job.config.as_deref())?;
    Ok(GraphSource { file, folder: job.folder.folder.clone(), max_file_bytes: job.max_model_bytes })
}

/// How many copies of the weights a version of this size takes.
pub(super) fn copies(settings: &ModelSettings, size_bytes: u64) -> usize {
    if size_bytes >= SHARED_FROM_BYTES { 1 } else { threads(settings).0 }
}

/// Loads a version and measures what it takes. `warming` is called when the warm-up begins, which `interrupt` stops.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn load(
    job: &Job,
    runtime: &Arc<dyn Runtime>,
    tasks: &Tasks,
    measuring: Measuring<'_>,
    interrupt: &Interrupt,
    warming: impl FnOnce(),
) -> Result<LoadedModel, LoadError> {
    let started = Instant::now();
    let config = job.config.as_deref();
    let source = source(job)?;
    let graph_name = source
        .file
        .strip_prefix(&job.folder.folder)
        .map_or_else(|_| String::new(), |file| file.to_string_lossy().into_owned());
    let (instances, intra_threads) = threads(&job.settings);
    let shares = instances > 1 && copies(&job.settings, job.size_bytes) == 1;
    // A session's own threads help whoever runs it: those who share it need the helpers of all of them.
    let session_settings = SessionSettings {
        device: job.settings.device.clone(),
        optimization_level: job.settings.optimization_level,
        intra_threads: if shares { instances * (intra_threads - 1) + 1 } else { intra_threads },
    };
    let mut sessions: Vec<Box<dyn Session>> = Vec::with_capacity(instances);
    for _ in 0..instances {
        if tasks.stopping().is_cancelled() {
            return Err(LoadError::Stopping);
        }
        let shared = sessions.first().filter(|_| shares).and_then(|first| first.share());
        sessions.push(match shared {
            Some(session) => session,
            None => runtime.load(&source, &session_settings)?,
        });
    }
    let Some(first) = sessions.first() else { return Err(LoadError::Panicked) };
    let (mut inputs, mut outputs, facts) = (first.inputs().to_vec(), first.outputs().to_vec(), first.facts().clone());
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
    warmup::made_up(&mut sessions, &hints, job.settings.warmup_iterations, interrupt);
    let plan = if job.settings.batch.dynamic_batching {
        let padding = padded_inputs(job, &inputs, pipeline.as_deref());
        batch_plan(&mut sessions, &hints, &padding, interrupt)
    } else {
        Plan::alone("dynamic_batching is off")
    };
    tracing::info!(model = %job.name, version = %job.version, joining = ?plan.joining, evidence = plan.evidence, "how requests share runs");

    let inline = inline_sessions(&sessions, &plan, &hints, interrupt, || runtime.load(&source, &session_settings));
    let working = WorkingMemories::new(sessions.iter().filter_map(|session| session.working_memory()));
    let arena = working.read().map_or(0, |memory| memory.arena_bytes);
    let memory = ModelMemory::new(facts.size_bytes, measuring.expected(), measuring.finish(arena), working);

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
    if matches!(plan.joining, Joining::Fixed(_)) {
        // Any number of rows is taken: they are filled up or split.
        inputs.iter_mut().filter(|spec| !spec.optional).chain(&mut outputs).for_each(free_rows);
    }
    let (spare_runtime, kept_source) = (runtime.clone(), source.clone());
    let start = Start {
        model: job.name.to_string(),
        sessions,
        settings: job.settings.batch.clone(),
        plan,
        stats: job.stats.clone(),
        inline,
        spare: Arc::new(move || spare_runtime.load(&source, &session_settings)),
    };
    let handle = Handle::start(start, tasks).map_err(|error| LoadError::Threads(error.kind()))?;
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
        stats: job.stats.clone(),
        source: kept_source,
        hints,
        caches: Caches::new(&job.settings.cache),
        handle,
        memory,
        loaded_at: SystemTime::now(),
        load_time: started.elapsed(),
    })
}

/// Longest run, in the best of some trials, that is made where the request is.
const INLINE_RUN_MAX: Duration = Duration::from_micros(50);
const INLINE_TRIALS: u64 = 20;

/// Sessions for runs without a hop, where a run's time is short and follows from shapes that are all fixed but for the rows.
/// One for two cores, as there are async threads.
fn inline_sessions(
    sessions: &[Box<dyn Session>],
    plan: &Plan,
    hints: &InputHints,
    interrupt: &Interrupt,
    mut load: impl FnMut() -> Result<Box<dyn Session>, RuntimeError>,
) -> Inline {
    let Some(first) = sessions.first() else { return Inline::default() };
    let fixed =
        |spec: &Spec| spec.ty.shape().is_some_and(|dims| dims.iter().skip(1).all(|dim| matches!(dim, Dim::Fixed(_))));
    let tiny = first.facts().bounded
        && first.facts().device == "cpu"
        && plan.joining == Joining::Rows
        && first.inputs().iter().all(|spec| fixed(spec) && !spec.optional);
    let Some(inputs) = made_up::inputs(first.inputs(), &Size::default(), 1, hints).filter(|_| tiny) else {
        return Inline::default();
    };
    // What is decided by a measurement is measured with the session that will run.
    let Ok(mut session) = load() else { return Inline::default() };
    let outputs: Vec<usize> = (0..session.outputs().len()).collect();
    let mut best = Duration::MAX;
    for _ in 0..INLINE_TRIALS {
        let started = Instant::now();
        if session.run(&inputs, &outputs, interrupt).is_err() {
            return Inline::default();
        }
        best = best.min(started.elapsed());
        // One slow run tells that it is no tiny model.
        if best > 10 * INLINE_RUN_MAX {
            break;
        }
    }
    if best > INLINE_RUN_MAX {
        return Inline::default();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut inline = vec![session];
    inline.extend((1..(cores / 2).clamp(1, 8)).map_while(|_| load().ok()));
    let rows = INLINE_RUN_MAX.as_nanos() / best.as_nanos().max(1);
    Inline::new(inline, usize::try_from(rows).unwrap_or(1).clamp(1, 64))
}

/// Tries out with the first session how requests may share runs.
fn batch_plan(
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    padding: &[PaddedInput],
    interrupt: &Interrupt,
) -> Plan {
    let Some(session) = sessions.first_mut() else { return Plan::alone("there is no session") };
    let specs = session.inputs().to_vec();
    let make = move |rows, length, seed| made_up::inputs(&specs, &Size { rows: Some(rows), length }, seed, hints);
    probe(session.as_mut(), &make, padding, interrupt)
}

/// The inputs that may be padded, as far as the model's files tell; none where they do not.
fn padded_inputs(job: &Job, inputs: &[Spec], pipeline: Option<&dyn Pipeline>) -> Vec<PaddedInput> {
    let stated = match pipeline {
        Some(pipeline) => pipeline.padding(),
        None => text::padding_of(task_folder(job), inputs),
    };
    let by_index = |(name, axis, value): (String, usize, i64)| {
        let input = inputs.iter().position(|spec| spec.name == name)?;
        Some(PaddedInput { input, axis, value })
    };
    stated.map(|padding| padding.inputs.into_iter().filter_map(by_index).collect()).unwrap_or_default()
}

fn free_rows(spec: &mut Spec) {
    if let ValueType::Tensor { shape: Some(dims), .. } = &mut spec.ty
        && let Some(first) = dims.first_mut()
    {
        *first = Dim::Dynamic(None);
    }
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
        let known = ["config.json", "preprocessor_config.json", "modules.json", "tokenizer.json"];
        known.into_iter().chain(labels).any(|file| folder.join(file).is_file())
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

//! Makes a loaded model of a version's folder: graph, task, checks, warm-up, threads. Blocks for as long as that takes.
//!
//! Invariant: what is returned has run its samples and can answer at once; on any error everything taken is given back.
//! Knows no registry: who may be replaced by the result is decided elsewhere.

use super::activation::{self, Activation, RunMemory};
use super::config_pbtxt::{GivenConfig, InForce, effective};
use super::engines::{Choice, EngineUse, Order, Trials};
use super::layout::{self, Layout, Setup};
use super::made_up::{self, InputHints, Size};
use super::measure::Means;
use super::memory::{Measuring, resident_estimate};
use super::profile;
use super::repository::{GraphFiles, VersionFolder, companion, graph_files, read_bounded};
use super::search::{Goal, Space};
use super::state::{Keeper, Samples, StatePlace, TUNED, circumstances};
use super::trial::Trial;
use super::tune::{self, Question, Sessions, Tuned};
use super::{
    KeptProfile, LoadError, LoadedModel, Manifest, ModelMemory, ModelName, ModelSettings, Version, VersionPolicy,
    warmup,
};
use crate::batching::steady::Steps;
use crate::batching::{
    BatchSettings, Handle, Inline, Joining, Learned, PaddedInput, Plan, SHORT_RUN, Short, Spare, Start, probe, steady,
    worth,
};

use crate::cache::Caches;
use crate::hub::{PROVENANCE, Provenance};
use crate::pipelines::{LabelsSource, Pipeline, PipelineLimits, text};
use crate::rewrite::{Drift, Sample, drift};
use crate::runtime::execution::CUDA;
use crate::runtime::{
    DeviceSettings, DeviceType, GraphFacts, GraphSource, Input, Interrupt, Runtime, RuntimeError, Session,
    SessionSettings, TENSORRT, WorkingMemories,
};
use crate::tasks::{Tasks, cores};
use crate::telemetry::gpu;
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

/// What the instances of a layout that is only tried out may hold together, where they do not share their weights.
const TRIED_BYTES_MAX: u64 = 256 << 20;

/// Setups that are held beside the one that is measured, where there is room, so that they need not be loaded again.
const SPARE_MAX: usize = 3;

/// Tokens of a sequence while measuring: an ordinary sentence or two. Models that take less get what warm-ups give.
const TUNING_LENGTH: usize = 64;

/// The part of the memory that is left which runs on the CPU may take where `memory_fraction` is not set: others grow, too.
const RUNS_FRACTION: f64 = 0.8;

/// What runs may take at the least where nobody has set it, in bytes: other programs may have the rest for a moment only.
const RUNS_LEAST: u64 = 256 << 20;

/// A measurement of activations that took less is made again at the next load, and not kept.
const WORTH_KEEPING: Duration = Duration::from_millis(100);

/// All that is needed to load one version.
#[derive(Clone)]
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
    /// Where what is found out is kept for the next load; `None` = nowhere.
    pub(super) state: Option<StatePlace>,
    pub(super) engines: EngineUse,
    /// What the machine and the budget leave free beside what the load was let in for, in bytes.
    pub(super) room_bytes: u64,
    /// What of it the runs may take, in bytes; `u64::MAX` where no limit is known.
    pub(super) runs_bytes: u64,
    /// What the machine alone leaves free; `u64::MAX` where that is not known.
    pub(super) machine_bytes: u64,
    /// What the model has to do that measuring would disturb, in words.
    pub(super) traffic: Option<String>,
    /// Whether the checksums of these files were found right before.
    pub(super) is_verified: bool,
    /// What the files have to go through first; `None` = nothing.
    pub(super) trial: Option<Trial>,
    pub(super) stats: Arc<ModelStats>,
}

/// Where the version's graph is.
///
/// # Errors
/// Where the folder has no graph, or not the one that its settings name.
pub(super) fn source(job: &Job) -> Result<GraphSource, LoadError> {
    let GraphFiles { file, text_tower } = graph_files(&job.folder, &job.manifest, job.config.as_deref())?;
    Ok(GraphSource { file, text_tower, folder: job.folder.folder.clone(), max_file_bytes: job.max_model_bytes })
}

/// How many copies of the weights the load of a version of this size holds at most.
pub(super) fn copies(settings: &ModelSettings, size_bytes: u64) -> usize {
    let chosen = layout::chosen(settings, cores(), layout::may_be_tiny(size_bytes));
    let tried = if settings.tuning.is_asked() { tried(settings, size_bytes) } else { Vec::new() };
    tried.iter().chain([&chosen]).map(|layout| copies_of(*layout, size_bytes)).max().unwrap_or(1)
}

fn copies_of(layout: Layout, size_bytes: u64) -> usize {
    if size_bytes >= SHARED_FROM_BYTES { 1 } else { layout.instances }
}

/// The layouts that tuning measures.
fn tried(settings: &ModelSettings, size_bytes: u64) -> Vec<Layout> {
    let mut layouts = layout::candidates(settings, cores());
    let least = layouts.iter().map(|layout| layout.instances).min().unwrap_or(1);
    let held = |layout: &Layout| resident_estimate(size_bytes).saturating_mul(copies_of(*layout, size_bytes) as u64);
    layouts.retain(|layout| layout.instances == least || held(layout) <= TRIED_BYTES_MAX);
    layouts
}

/// Loads a version and measures what it takes. `warming` is called when the warm-up begins, which `interrupt` stops.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn load(
    job: &Job,
    runtime: &Arc<dyn Runtime>,
    tasks: &Tasks,
    mut measuring: Measuring<'_>,
    interrupt: &Interrupt,
    warming: impl FnOnce(),
) -> Result<LoadedModel, LoadError> {
    let started = Instant::now();
    let config = job.config.as_deref();
    if let Some(unused) = config.map(|config| config.unused.join(", ")).filter(|unused| !unused.is_empty()) {
        tracing::warn!(
            model = %job.name, version = %job.version, unused,
            "the configuration tunes what this server does in its own way; answers are the same"
        );
    }
    // From here on every tensor has the shape that clients see.
    let reshapes = config.map(GivenConfig::reshapes).unwrap_or_default();
    let source = source(job)?;
    verify(job, tasks)?;
    let place = job.state.as_ref();
    let (of, wanted) = ((&job.name, job.version), job);
    let asked = session_settings(wanted, untuned(wanted, Layout { instances: 1, intra_threads: 1 }));
    let key = job.state.as_ref().and_then(|_| runtime.engine_key(&source, &asked));
    let mut choice = Choice::of(key.clone(), place, of, &source);
    let mut in_force = with_device(wanted, choice.device(&wanted.settings.device));
    let mut keeper = Keeper::open(of, place, runtime, &source, &in_force.settings);
    // Engines are of the model's own graph, whatever serves meanwhile.
    let for_engines = reshapes.clone().seen_through(runtime.clone());
    let runtime = &reshapes.seen_through(keeper.runtime());
    let graph_name = source
        .file
        .strip_prefix(&job.folder.folder)
        .map_or_else(|_| String::new(), |file| file.to_string_lossy().into_owned());
    let gpu = (in_force.settings.device.device_type != DeviceType::Cpu).then_some(asked.device.device_index);
    let gpu_before = gpu.and_then(gpu::own_bytes).unwrap_or(0);
    let is_tuned = job.settings.tuning.is_asked() && !job.settings.tuning.insists && job.traffic.is_none();
    let begin = |job: &Job| {
        let build = |setup: Setup| sessions_of(job, runtime.as_ref(), tasks, &source, setup);
        match keeper.tuned_setup(&job.settings).filter(|_| is_tuned) {
            // What was saved is of its level.
            Some(setup) => Ok((setup, build(setup)?)),
            None => first_sessions(job, &build),
        }
    };
    let mut first = begin(&in_force);
    if let (Some(problem), Some(place)) = (useless(&choice, &first), place) {
        place.discard_engines(of, &problem);
        choice = Choice::of(key, Some(place), of, &source);
        if job.engines == EngineUse::MayBuild {
            drop(first);
            in_force = with_device(wanted, choice.device(&wanted.settings.device));
            first = begin(&in_force);
        } else {
            first = Err(RuntimeError::Device(format!("the engine that was built does not load: {problem}")).into());
        }
    } else if job.engines == EngineUse::MustHave && !matches!(choice, Choice::Kept(_)) {
        first = Err(RuntimeError::Device("the engine that was built does not fit any more".to_owned()).into());
    }
    let (mut setup, mut sessions) = first?;
    let job = &in_force;
    let build = |setup: Setup| sessions_of(job, runtime.as_ref(), tasks, &source, setup);
    let Some(first) = sessions.first() else { return Err(LoadError::Panicked) };
    let (mut inputs, mut outputs, mut facts) =
        (first.inputs().to_vec(), first.outputs().to_vec(), first.facts().clone());
    if let Some(config) = config {
        config.check_graph(&inputs, &outputs)?;
    }
    let (pipeline, task_evidence) = task(job, &inputs, &outputs)?;
    let output_labels = output_labels(job, &outputs, pipeline.as_deref())?;

    warming();
    let hints = InputHints::read(task_folder(job));
    if source.text_tower.is_none()
        && let Some(first) = sessions.first_mut()
        && rewritten(job, &mut keeper, first.as_mut(), runtime.as_ref(), setup, &hints, interrupt)
    {
        sessions.clear();
        sessions = build(setup)?;
        facts = sessions.first().map_or(facts, |first| first.facts().clone());
    }
    let activation = activation_of(job, setup, &mut sessions, &hints, runtime.as_ref(), &mut keeper, interrupt);
    let rows_within = |layout: Layout| rows_within(job, activation.as_ref(), layout);
    let mut settings = job.settings.clone();
    let (mut tuned, mut plan, mut skipped) = (None, None, None);
    if let Some(traffic) = job.traffic.as_ref().filter(|_| settings.tuning.is_asked()) {
        skipped = Some(format!("{traffic}, which measuring would disturb"));
    } else if settings.tuning.is_asked() {
        let found = joining_plan(job, &mut sessions, &hints, &inputs, pipeline.as_deref(), interrupt);
        let under = circumstances(&(&job.settings, &found.joining, found.padding.is_some()), None);
        // Whoever insists wants figures of this moment.
        let kept = if job.settings.tuning.insists { None } else { keeper.measured::<Tuned>(TUNED, &under) };
        let (outcome, left) = match kept {
            Some(tuned) if tuned.chosen.setup == setup => (Some(tuned), sessions),
            Some(tuned) => {
                // Before the next are loaded: never two setups at a time.
                drop(sessions);
                (Some(tuned), Vec::new())
            }
            None => tuned_sessions(job, (setup, sessions), &found, &hints, (&build, &rows_within), tasks, interrupt),
        };
        if let Some(tuned) = outcome.as_ref().filter(|_| !interrupt.is_fired()) {
            keeper.keep(TUNED, &under, tuned);
        }
        let wanted = outcome.as_ref().map_or(setup, |tuned| tuned.chosen.setup);
        sessions = if left.is_empty() { build(wanted)? } else { left };
        if outcome.is_some() {
            settings.optimization_level = wanted.optimization_level;
            settings.memory_arena = Some(wanted.memory.arena);
            settings.memory_pattern = Some(wanted.memory.pattern);
        }
        let batch = &mut settings.batch;
        let bounds = outcome.as_ref().map(|tuned| (tuned.max_batch_size, tuned.max_batch_tokens));
        let (rows, tokens) = bounds.unwrap_or_default();
        batch.max_batch_size = rows.unwrap_or(batch.max_batch_size);
        batch.max_batch_tokens = tokens.unwrap_or(batch.max_batch_tokens);
        measuring
            .expect(resident_estimate(job.size_bytes).saturating_mul(copies_of(wanted.layout, job.size_bytes) as u64));
        if outcome.is_none() {
            skipped = Some("no input could be made up that runs in time".to_owned());
        }
        (setup, tuned, plan) = (wanted, outcome, Some(found));
    }
    if let Some(reason) = &skipped {
        tracing::warn!(model = %job.name, version = %job.version, reason, "a model is not tuned");
    }
    let Layout { instances, intra_threads } = setup.layout;
    for sample in config.map(|config| config.warmup.as_slice()).unwrap_or_default() {
        warmup::configured(&mut sessions, sample, &job.folder, interrupt)?;
    }
    warmup::samples(&mut sessions, pipeline.as_deref(), &job.manifest, &job.folder, interrupt)?;
    warmup::made_up(&job.name, &mut sessions, &hints, job.settings.warmup_iterations, interrupt);
    let (is_tuned, begun) = (plan.is_some(), Instant::now());
    let mut plan =
        plan.unwrap_or_else(|| joining_plan(job, &mut sessions, &hints, &inputs, pipeline.as_deref(), interrupt));
    // Trial runs are of four rows together: where they took so long, measuring would not come to a second size.
    let is_quick = begun.elapsed() <= worth::BUDGET;

    let alone = session_settings(job, Setup { layout: Layout { instances: 1, intra_threads: 1 }, ..setup });
    let inline = inline_sessions(&sessions, &plan, &hints, interrupt, || runtime.load(&source, &alone));
    // After the try above: before it, libc kept the weights of the session that was tried in half of the loads, and a model's
    // memory read as twice of what it is.
    if !is_tuned && is_quick {
        let fit = rows_within(setup.layout);
        settings.batch = joined_as_far_as_it_pays(
            job,
            (setup.layout, fit),
            &mut sessions,
            &hints,
            &mut plan,
            &mut keeper,
            interrupt,
        );
    }
    let runs = activation
        .filter(|_| plan.joining == Joining::Rows)
        .map(|activation| held_to_memory(job, activation, setup.layout, &mut plan, &mut settings.batch));
    kept_to_steps(job, &settings.batch, &mut sessions, &hints, &mut plan, &mut keeper, interrupt);
    tracing::info!(model = %job.name, version = %job.version, joining = ?plan.joining, evidence = plan.evidence, "how requests share runs");
    let working = WorkingMemories::new(sessions.iter().filter_map(|session| session.working_memory()));
    let arena = working.read().map_or(0, |memory| memory.arena_bytes);
    let mut memory = ModelMemory::new(facts.size_bytes, measuring.expected(), measuring.finish(arena), working);
    memory.runs = runs;

    if tuned.is_some() {
        let one = session_settings(job, setup);
        let load = || runtime.load(&source, &one).map(drop).map_err(|error| error.to_string());
        keeper.move_to(setup.optimization_level, load);
    }
    // At the level that is written.
    let one = Setup { optimization_level: keeper.graph_level(), ..untuned(job, setup.layout) };
    let one = session_settings(job, one);
    let optimization = keeper.finish(|| {
        let started = Instant::now();
        let mut again = runtime.load(&source, &one).map_err(|error| error.to_string())?;
        let time = started.elapsed();
        let Some(first) = sessions.first_mut() else { return Ok(time) };
        answers_alike(first.as_mut(), again.as_mut(), &hints, interrupt).map(|()| time)
    });

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
    let (spare_runtime, kept_source, session_settings) =
        (runtime.clone(), source.clone(), session_settings(job, setup));
    let reserve = reserve(&facts, &kept_source, runtime, &session_settings);
    let start = Start {
        model: job.name.to_string(),
        sessions,
        settings: settings.batch.clone(),
        plan,
        stats: job.stats.clone(),
        inline,
        spare: Arc::new(move || spare_runtime.load(&source, &session_settings)),
        reserve,
    };
    let handle = Handle::start(start, tasks).map_err(|error| LoadError::Threads(error.kind()))?;
    let kept_profile = KeptProfile::default();
    if job.settings.enable_profiling {
        let asked = (profile::AT_LOAD, None);
        match profile::run(runtime.as_ref(), &kept_source, &alone, &hints, asked, interrupt) {
            Ok(profiled) => kept_profile.put(&profiled),
            Err(error) => {
                tracing::warn!(model = %job.name, version = %job.version, %error, "the operators could not be timed");
            }
        }
    }
    let gpu_bytes = gpu.filter(|_| facts.device != "cpu").and_then(gpu::own_bytes);
    let gpu_bytes = gpu_bytes.map(|now| now.saturating_sub(gpu_before));
    // Shown as they were asked for.
    let device = std::mem::replace(&mut settings.device, wanted.settings.device.clone());
    let order = |key, place| Order {
        name: job.name.clone(),
        version: job.version,
        key,
        place,
        runtime: for_engines,
        source: kept_source.clone(),
        settings: asked,
        size_bytes: facts.size_bytes,
        trials: Trials {
            folder: job.folder.clone(),
            manifest: job.manifest.clone(),
            config: job.config.clone(),
            pipeline: pipeline.clone(),
            hints,
        },
    };
    let engine = choice.told(&facts.execution, started.elapsed(), order);
    Ok(LoadedModel {
        name: job.name.clone(),
        version: job.version,
        inputs,
        outputs,
        facts,
        pipeline,
        task_evidence,
        settings,
        device,
        gpu_bytes,
        engine,
        instances,
        intra_threads,
        tuned,
        optimization,
        untuned: skipped,
        output_labels,
        max_batch_size: config.map_or(0, |config| config.max_batch_size),
        config_json,
        stats: job.stats.clone(),
        source: kept_source,
        runtime: runtime.clone(),
        hints,
        caches: Caches::new(&job.settings.cache),
        handle,
        memory,
        kept_profile,
        loaded_at: SystemTime::now(),
        load_time: started.elapsed(),
    })
}

/// Whether the graph is from here on one with smaller numbers: tried beside its own with made-up input.
fn rewritten(
    job: &Job,
    keeper: &mut Keeper,
    session: &mut dyn Session,
    runtime: &dyn Runtime,
    setup: Setup,
    hints: &InputHints,
    interrupt: &Interrupt,
) -> bool {
    let (quantizes, halves) = (keeper.may_quantize(), wants_half(job, session.facts()));
    if !quantizes && !halves {
        return false;
    }
    let samples = trial_samples(session, hints, interrupt);
    let settings = session_settings(job, setup);
    let load = |source: &GraphSource| runtime.load(source, &settings);
    (quantizes && keeper.quantize(session, &samples, &load, interrupt))
        || (halves && keeper.halve(session, &samples, &load, interrupt))
}

/// Whether the graph is to be tried with numbers of 16 bits: on a GPU, where TensorRT does not choose them itself.
fn wants_half(job: &Job, facts: &GraphFacts) -> bool {
    job.settings.device.use_fp16
        && facts.device != "cpu"
        && facts.format != "ort"
        && facts.precision.as_deref() == Some("fp32")
        && facts.execution.registered.iter().all(|provider| provider != TENSORRT)
        && facts.execution.registered.iter().any(|provider| provider == CUDA)
}

/// Inputs for the trial of another graph beside the session's.
fn trial_samples(session: &mut dyn Session, hints: &InputHints, interrupt: &Interrupt) -> Samples {
    let specs = session.inputs().to_vec();
    let all: Vec<usize> = (0..session.outputs().len()).collect();
    let make = |rows, length, seed| made_up::inputs(&specs, &Size { rows, length }, seed, hints);
    let mut runs =
        |length: &usize| make(None, *length, 1).is_some_and(|inputs| session.run(&inputs, &all, interrupt).is_ok());
    let length = [TUNING_LENGTH, Size::default().length].into_iter().find(|length| runs(length));
    let sample = |rows: Option<usize>, length| Some(Sample { rows: rows.unwrap_or(1), inputs: make(rows, length, 1)? });
    Samples {
        timed: length
            .into_iter()
            .flat_map(|length| [None, Some(8)].map(|rows| sample(rows, length)))
            .flatten()
            .collect(),
        compared: length
            .into_iter()
            .flat_map(|length| (1..=4).filter_map(move |seed| make(None, length, seed)))
            .collect(),
    }
}

/// Measurements that are kept from one load to the next, by name.
const JOINING: &str = "joining";
const ACTIVATION: &str = "activation";
const STEPS: &str = "steps";

/// Whether two sessions of one graph give the same for made-up input.
fn answers_alike(
    one: &mut dyn Session,
    other: &mut dyn Session,
    hints: &InputHints,
    interrupt: &Interrupt,
) -> Result<(), String> {
    if (one.inputs(), one.outputs()) != (other.inputs(), other.outputs()) {
        return Err("the saved graph has other inputs or outputs".to_owned());
    }
    // What cannot be made up, or is rightly refused, tells nothing.
    let Some(inputs) = made_up::inputs(one.inputs(), &Size::default(), 1, hints) else { return Ok(()) };
    let all: Vec<usize> = (0..one.outputs().len()).collect();
    let Ok(expected) = one.run(&inputs, &all, interrupt) else { return Ok(()) };
    let found = other.run(&inputs, &all, interrupt).map_err(|error| error.to_string())?;
    match drift(&[expected], &[found]) {
        Some(Drift { cosine, .. }) if cosine < 0.9999 => Err("the saved graph answers otherwise".to_owned()),
        Some(_) | None => Ok(()),
    }
}

/// What makes a session on the CPU for runs that the device has no memory for; `None` where the model runs there anyway, or shall run
/// nowhere else.
fn reserve(
    facts: &GraphFacts,
    source: &GraphSource,
    runtime: &Arc<dyn Runtime>,
    settings: &SessionSettings,
) -> Option<Spare> {
    let device = &settings.device;
    if facts.device == "cpu" || !(device.allow_fallback || device.device_type == DeviceType::Auto) {
        return None;
    }
    let device = DeviceSettings { device_type: DeviceType::Cpu, ..device.clone() };
    let (runtime, source) = (runtime.clone(), source.clone());
    let settings = SessionSettings { device, ..settings.clone() };
    Some(Arc::new(move || runtime.load(&source, &settings)))
}

/// Holds the files to what is written of them where they came from elsewhere.
fn verify(job: &Job, tasks: &Tasks) -> Result<(), LoadError> {
    let folder = &job.folder.folder;
    let Some(origin) = &job.folder.origin else {
        return match Provenance::is_in(folder) {
            true => Err(LoadError::Checksum(format!("{PROVENANCE} cannot be read, so nothing tells what is right"))),
            false => Ok(()),
        };
    };
    let is_stopping = || tasks.stopping().is_cancelled();
    match origin.verify(folder, !job.is_verified, &is_stopping) {
        _ if is_stopping() => Err(LoadError::Stopping),
        verified => verified.map_err(LoadError::Checksum),
    }
}

/// What was found of a version before it is part of a model.
#[derive(Debug, Clone)]
pub struct Tried {
    pub inputs: Vec<Spec>,
    pub outputs: Vec<Spec>,
    /// HuggingFace's name of the task; `None`: the model takes and gives raw tensors.
    pub task: Option<&'static str>,
    /// What the task was told from.
    pub evidence: String,
    pub facts: GraphFacts,
    pub load_time: Duration,
    /// Of one run with made-up input.
    pub run_time: Option<Duration>,
    /// Why it did not run, where it did not: a graph may rightly refuse what is made up.
    pub run_problem: Option<String>,
}

/// Opens a version's graph with one session, tells its task, runs its samples and one made-up input, and lets it go.
/// `warming` is called when the runs begin, which `interrupt` stops.
///
/// # Errors
/// As [`load`].
pub(super) fn try_out(
    job: &Job,
    runtime: &dyn Runtime,
    interrupt: &Interrupt,
    warming: impl FnOnce(),
) -> Result<Tried, LoadError> {
    let started = Instant::now();
    let config = job.config.as_deref();
    let source = source(job)?;
    let settings = session_settings(job, untuned(job, Layout { instances: 1, intra_threads: cores() }));
    let mut sessions = vec![runtime.load(&source, &settings)?];
    let load_time = started.elapsed();
    let Some(session) = sessions.first() else { return Err(LoadError::Panicked) };
    let (inputs, outputs, facts) = (session.inputs().to_vec(), session.outputs().to_vec(), session.facts().clone());
    if let Some(config) = config {
        config.check_graph(&inputs, &outputs)?;
    }
    let (pipeline, evidence) = task(job, &inputs, &outputs)?;
    output_labels(job, &outputs, pipeline.as_deref())?;
    warming();
    for sample in config.map(|config| config.warmup.as_slice()).unwrap_or_default() {
        warmup::configured(&mut sessions, sample, &job.folder, interrupt)?;
    }
    warmup::samples(&mut sessions, pipeline.as_deref(), &job.manifest, &job.folder, interrupt)?;
    let ran = match (
        made_up::inputs(&inputs, &Size::default(), 1, &InputHints::read(task_folder(job))),
        sessions.first_mut(),
    ) {
        (Some(made_up), Some(session)) => {
            let (all, begun): (Vec<usize>, _) = ((0..outputs.len()).collect(), Instant::now());
            session.run(&made_up, &all, interrupt).map(|_| begun.elapsed()).map_err(|error| error.to_string())
        }
        (None, _) | (_, None) => Err("an input is too large or of a kind that is not made up".to_owned()),
    };
    let (run_time, run_problem) = match ran {
        Ok(time) => (Some(time), None),
        Err(problem) => (None, Some(problem)),
    };
    let task = pipeline.as_ref().map(|pipeline| pipeline.task());
    Ok(Tried { inputs, outputs, task, evidence, facts, load_time, run_time, run_problem })
}

const INLINE_TRIALS: u64 = 20;
const INLINE_SESSIONS_MAX: usize = 8;
/// Largest file whose runs are made in place where its shapes vary: each async thread has a copy.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// Sessions for runs without a hop, one for each async thread, where a run's time follows from its shapes alone: measured
/// here where the shapes are all fixed but for the rows, and learned from the runs of each shape where they are not.
fn inline_sessions(
    sessions: &[Box<dyn Session>],
    plan: &Plan,
    hints: &InputHints,
    interrupt: &Interrupt,
    mut load: impl FnMut() -> Result<Box<dyn Session>, RuntimeError>,
) -> Inline {
    let Some(first) = sessions.first() else { return Inline::default() };
    let tiny = first.facts().bounded
        && first.facts().device == "cpu"
        && plan.joining == Joining::Rows
        && first.inputs().iter().all(|spec| !spec.optional);
    if !tiny {
        return Inline::default();
    }
    let is_fixed =
        |spec: &Spec| spec.ty.shape().is_some_and(|dims| dims.iter().skip(1).all(|dim| matches!(dim, Dim::Fixed(_))));
    let mut inline = Vec::new();
    let short = if first.inputs().iter().all(is_fixed) {
        // What is decided by a measurement is measured with the session that will run.
        let Ok(mut session) = load() else { return Inline::default() };
        let Some(rows) = short_rows(session.as_mut(), hints, interrupt) else { return Inline::default() };
        inline.push(session);
        Short::Rows(rows)
    } else if first.facts().size_bytes <= INLINE_BYTES_MAX {
        Short::Learned(Learned::default())
    } else {
        return Inline::default();
    };
    let count = cores().clamp(1, INLINE_SESSIONS_MAX);
    inline.extend((inline.len()..count).map_while(|_| load().ok()));
    Inline::new(inline, short)
}

/// The rows of a run that is short, by the best of some trials; `None` where one row takes longer.
fn short_rows(session: &mut dyn Session, hints: &InputHints, interrupt: &Interrupt) -> Option<usize> {
    let inputs = made_up::inputs(session.inputs(), &Size::default(), 1, hints)?;
    let outputs: Vec<usize> = (0..session.outputs().len()).collect();
    let mut best = Duration::MAX;
    for _ in 0..INLINE_TRIALS {
        let started = Instant::now();
        session.run(&inputs, &outputs, interrupt).ok()?;
        best = best.min(started.elapsed());
        // One slow run tells that it is no tiny model.
        if best > 10 * SHORT_RUN {
            return None;
        }
    }
    let rows = usize::try_from(SHORT_RUN.as_nanos() / best.as_nanos().max(1)).unwrap_or(usize::MAX);
    (rows > 0).then(|| rows.min(64))
}

/// A layout with what else holds without measuring.
fn untuned(job: &Job, layout: Layout) -> Setup {
    Setup { layout, optimization_level: job.settings.optimization_level, memory: job.settings.memory() }
}

/// How the sessions of a setup are built.
fn session_settings(job: &Job, setup: Setup) -> SessionSettings {
    let Layout { instances, intra_threads } = setup.layout;
    let batch = &job.settings.batch;
    let mut device = job.settings.device.clone();
    device.tensorrt.rows = Some((batch.batch_size.unwrap_or(batch.max_batch_size), batch.max_batch_size));
    SessionSettings {
        device,
        optimization_level: setup.optimization_level,
        // A session's own threads help whoever runs it: those who share it need the helpers of all of them.
        intra_threads: if shares(job, setup) { instances * (intra_threads - 1) + 1 } else { intra_threads },
        memory: setup.memory,
        run_memory: run_memory(job),
    }
}

/// What the runs of a session may take; `None` where there is no bound. What nobody has set is what the machine has at this moment, so
/// that a run which it cannot hold fails and does not end the process.
fn run_memory(job: &Job) -> Option<u64> {
    match job.settings.run_memory {
        Some(bytes) => (bytes > 0).then_some(bytes),
        None => (job.machine_bytes != u64::MAX).then_some(job.machine_bytes.max(RUNS_LEAST)),
    }
}

/// Whether the instances run one session together.
fn shares(job: &Job, setup: Setup) -> bool {
    setup.layout.instances > 1 && copies_of(setup.layout, job.size_bytes) == 1
}

/// How the load of a version builds its first session.
pub(super) fn first_settings(job: &Job) -> SessionSettings {
    let layout = layout::chosen(&job.settings, cores(), layout::may_be_tiny(job.size_bytes));
    session_settings(job, untuned(job, layout))
}

/// The same job on another device.
fn with_device(job: &Job, device: DeviceSettings) -> Job {
    Job { settings: ModelSettings { device, ..job.settings.clone() }, ..job.clone() }
}

/// Why kept engines are of no use, where a load with them shows that; in words.
fn useless(choice: &Choice, first: &Result<(Setup, Sessions), LoadError>) -> Option<String> {
    if !matches!(choice, Choice::Kept(_)) {
        return None;
    }
    match first {
        Ok((_, sessions)) => {
            let execution = &sessions.first()?.facts().execution;
            let is_used = execution.registered.iter().any(|provider| provider == TENSORRT);
            (!is_used).then(|| execution.problem())
        }
        Err(LoadError::Runtime(error)) => Some(error.to_string()),
        Err(_) => None,
    }
}

/// A session for each instance.
fn sessions_of(
    job: &Job,
    runtime: &dyn Runtime,
    tasks: &Tasks,
    source: &GraphSource,
    setup: Setup,
) -> Result<Sessions, LoadError> {
    let settings = session_settings(job, setup);
    let mut sessions: Sessions = Vec::with_capacity(setup.layout.instances);
    for _ in 0..setup.layout.instances {
        if tasks.stopping().is_cancelled() {
            return Err(LoadError::Stopping);
        }
        let shared = sessions.first().filter(|_| shares(job, setup)).and_then(|first| first.share());
        sessions.push(match shared {
            Some(session) => session,
            None => runtime.load(source, &settings)?,
        });
    }
    Ok(sessions)
}

/// The sessions of the layout that is chosen without measuring. Whether a model is tiny is known when it is read; where its
/// size promised it and its graph does not hold it, it is built again, which takes milliseconds with so small a file.
fn first_sessions(
    job: &Job,
    build: &dyn Fn(Setup) -> Result<Sessions, LoadError>,
) -> Result<(Setup, Sessions), LoadError> {
    let chosen = |tiny| untuned(job, layout::chosen(&job.settings, cores(), tiny));
    let expected = chosen(layout::may_be_tiny(job.size_bytes));
    let sessions = build(expected)?;
    let found = chosen(sessions.first().is_some_and(|session| layout::is_tiny(session.facts())));
    if found == expected {
        return Ok((expected, sessions));
    }
    drop(sessions);
    Ok((found, build(found)?))
}

/// Loads the sessions of a setup.
type Build<'a> = dyn Fn(Setup) -> Result<Sessions, LoadError> + 'a;

/// Measures what suits the model, and gives the sessions that it chose, or none where they are not loaded any more.
fn tuned_sessions(
    job: &Job,
    (setup, mut sessions): (Setup, Sessions),
    plan: &Plan,
    hints: &InputHints,
    (build, rows_within): (&Build<'_>, &dyn Fn(Layout) -> Option<usize>),
    tasks: &Tasks,
    interrupt: &Interrupt,
) -> (Option<Tuned>, Sessions) {
    let Some(first) = sessions.first_mut() else { return (None, sessions) };
    let specs = first.inputs().to_vec();
    let of_length = |rows, length| made_up::inputs(&specs, &Size { rows, length }, 1, hints);
    let lengths = [TUNING_LENGTH, Size::default().length];
    let all: Vec<usize> = (0..first.outputs().len()).collect();
    let mut runs =
        |length: &usize| of_length(None, *length).is_some_and(|inputs| first.run(&inputs, &all, interrupt).is_ok());
    let Some(length) = lengths.into_iter().find(|length| runs(length)) else {
        return (None, sessions);
    };
    let row_tokens = plan.padding.as_ref().map(|_| length);
    let facts = first.facts();
    let question = Question {
        space: Space {
            // Threads and copies mean something else, or nothing, elsewhere.
            layouts: if facts.device == "cpu" { tried(&job.settings, job.size_bytes) } else { vec![setup.layout] },
            batches: layout::batches(plan.joining, &job.settings, row_tokens),
            levels: layout::levels(&job.settings, facts),
            memories: layout::memories(&job.settings, facts),
        },
        goal: Goal { objective: job.settings.tuning.objective, target_p99: job.settings.tuning.target_p99 },
        row_tokens,
    };
    let spare = |setup: Setup| {
        let copies = copies_of(setup.layout, job.size_bytes) as u64;
        let each = resident_estimate(job.size_bytes).saturating_mul(copies);
        let others = (TRIED_BYTES_MAX.min(job.room_bytes) / each.max(1)).saturating_sub(1);
        usize::try_from(others).unwrap_or(0).min(SPARE_MAX)
    };
    let make = |rows| of_length(rows, length);
    let fits =
        |setup: Setup, rows: Option<usize>| rows.zip(rows_within(setup.layout)).is_none_or(|(rows, most)| rows <= most);
    let means = Means { tasks, interrupt, load: build, make: &make, spare: &spare, fits: &fits };
    let (tuned, sessions) = tune::tune(&question, &means, setup, sessions);
    if let Some(Tuned { chosen, measured, objective, target_reached, target_p99, took, .. }) = &tuned {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let Setup { layout, optimization_level, memory } = chosen.setup;
        tracing::info!(
            model = %job.name, version = %job.version, ?objective, instances = layout.instances,
            intra_threads = layout.intra_threads, batch_size = chosen.batch_size, ?optimization_level,
            memory_arena = memory.arena, memory_pattern = memory.pattern, rows_per_second = chosen.rows_per_second,
            p99_ms = millis(chosen.p99), measured = measured.len(), seconds = took.as_secs_f64(),
            "a model is tuned by measurement"
        );
        if let (false, Some(target)) = (target_reached, target_p99) {
            tracing::warn!(
                model = %job.name, version = %job.version, target_p99_ms = millis(*target), p99_ms = millis(chosen.p99),
                "no candidate reaches the target; the one with the least latency is taken"
            );
        }
    }
    (tuned, sessions)
}

/// What a run takes for each row: as an earlier load measured it, or by the first runs of the first session. `None` where that
/// cannot be told, or the graph fixes the rows.
fn activation_of(
    job: &Job,
    setup: Setup,
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    runtime: &dyn Runtime,
    keeper: &mut Keeper,
    interrupt: &Interrupt,
) -> Option<Activation> {
    let session = sessions.first_mut()?.as_mut();
    let is_open = |spec: &Spec| matches!(spec.ty.shape().and_then(<[Dim]>::first), Some(Dim::Dynamic(_)));
    if !job.settings.batch.dynamic_batching || !session.inputs().iter().all(|spec| spec.optional || is_open(spec)) {
        return None;
    }
    let Setup { layout, optimization_level, memory } = setup;
    let under = circumstances(&(optimization_level, memory), Some(layout));
    if let Some(kept) = keeper.measured(ACTIVATION, &under) {
        keeper.keep(ACTIVATION, &under, &kept);
        return Some(kept);
    }
    let begun = Instant::now();
    let make = rows_of(session, hints);
    let found = [TUNING_LENGTH, Size::default().length].into_iter().find_map(|length| {
        let give_back = || runtime.give_back();
        activation::measure(session, &|rows| make(rows, length, 1), length, job.runs_bytes, &give_back, interrupt)
    })?;
    if begun.elapsed() >= WORTH_KEEPING && !interrupt.is_fired() {
        keeper.keep(ACTIVATION, &under, &found);
    }
    tracing::debug!(model = %job.name, version = %job.version, ?found, "what a row takes while it runs");
    Some(found)
}

/// What the runs of all instances together may take; `None` where no limit is known.
fn runs_budget(job: &Job) -> Option<u64> {
    let fraction = job.settings.device.memory_fraction.map_or(RUNS_FRACTION, |fraction| fraction.get());
    let most = job.runs_bytes.min(job.settings.run_memory.filter(|bytes| *bytes > 0).unwrap_or(u64::MAX));
    (most != u64::MAX).then_some((most as f64 * fraction) as u64)
}

/// Most rows of a run of a layout that fit; `None` where that is not known.
fn rows_within(job: &Job, activation: Option<&Activation>, layout: Layout) -> Option<usize> {
    Some(activation?.rows_within(runs_budget(job)?, layout.instances))
}

/// Lowers the batches to what fits, and says so.
fn held_to_memory(
    job: &Job,
    activation: Activation,
    layout: Layout,
    plan: &mut Plan,
    batch: &mut BatchSettings,
) -> RunMemory {
    let rows_max = rows_within(job, Some(&activation), layout);
    let row_tokens = plan.padding.as_ref().map(|_| activation.length);
    let lowered_from = rows_max.and_then(|rows| activation::bound(batch, rows, row_tokens));
    if let (Some(before), Some(rows)) = (lowered_from, rows_max) {
        let unit = if row_tokens.is_some() { "tokens" } else { "rows" };
        tracing::warn!(
            model = %job.name, version = %job.version, before, now = rows * row_tokens.unwrap_or(1), unit,
            bytes_per_row = activation.bytes_per_row, budget_bytes = runs_budget(job), instances = layout.instances,
            "batches are lowered to what fits the memory that is left; raise max_loaded_memory_mb, unload other models, or lower instances"
        );
        plan.evidence.push_str(&format!("; at most {} {unit} at once fit the memory", rows * row_tokens.unwrap_or(1)));
    }
    RunMemory { activation, budget_bytes: runs_budget(job), rows_max, row_tokens, lowered_from }
}

/// How requests share runs.
fn joining_plan(
    job: &Job,
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    inputs: &[Spec],
    pipeline: Option<&dyn Pipeline>,
    interrupt: &Interrupt,
) -> Plan {
    if !job.settings.batch.dynamic_batching {
        return Plan::alone("dynamic_batching is off");
    }
    // The first dimension that clients see is then not the graph's.
    if job.config.as_deref().is_some_and(|config| config.max_batch_size == 0 && !config.reshapes().is_empty()) {
        return Plan::alone("a tensor is reshaped and has no batch dimension");
    }
    batch_plan(sessions, hints, &padded_inputs(job, inputs, pipeline), interrupt)
}

/// Tries out with the first session how requests may share runs.
fn batch_plan(
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    padding: &[PaddedInput],
    interrupt: &Interrupt,
) -> Plan {
    let Some(session) = sessions.first_mut() else { return Plan::alone("there is no session") };
    let make = rows_of(session.as_ref(), hints);
    probe(session.as_mut(), &make, padding, interrupt)
}

/// Makes up so many rows of such a length, by such a seed.
fn rows_of(session: &dyn Session, hints: &InputHints) -> impl Fn(usize, usize, u64) -> Option<Vec<Input>> + use<> {
    let (specs, hints) = (session.inputs().to_vec(), *hints);
    move |rows, length, seed| made_up::inputs(&specs, &Size { rows: Some(rows), length }, seed, &hints)
}

/// Measures with the first session how far joining pays; what follows of it goes into the plan and the settings of batches.
fn joined_as_far_as_it_pays(
    job: &Job,
    (layout, fit): (Layout, Option<usize>),
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    plan: &mut Plan,
    keeper: &mut Keeper,
    interrupt: &Interrupt,
) -> BatchSettings {
    let batch = &job.settings.batch;
    // Elsewhere larger batches pay further than half a second can measure.
    let session = sessions.first_mut().filter(|session| session.facts().device == "cpu");
    let Some(session) = session.filter(|_| plan.joining == Joining::Rows && batch.max_batch_size > 1) else {
        return batch.clone();
    };
    // Two rows tell what copying is worth.
    let is_open = layout::is_joining_open(&job.settings, plan.padding.is_some());
    let most = if is_open { batch.max_batch_size } else { 2 }.min(fit.unwrap_or(usize::MAX));
    let make = rows_of(session.as_ref(), hints);
    let under = circumstances(&(batch, most, plan.padding.is_some()), Some(layout));
    let measured = keeper
        .measured(JOINING, &under)
        .unwrap_or_else(|| worth::measure(session.as_mut(), plan, &make, most, interrupt));
    let worth = worth::decide(&measured.curve);
    // Where no bound was found, other work may have spoilt the measurement.
    if worth.rows.is_some() {
        keeper.keep(JOINING, &under, &measured);
    }
    tracing::debug!(model = %job.name, version = %job.version, ?measured, ?worth, "how far joining pays");
    let (bounded, words) = layout::joined_as_far_as_it_pays(&worth, measured.row_tokens, &job.settings);
    plan.evidence.push_str(&words);
    // Who asks for batches of some size gets them.
    plan.max_row_bytes = worth.row_bytes.filter(|_| batch.batch_size.is_none());
    if plan.max_row_bytes.is_some_and(|most| most < measured.row_bytes) {
        plan.evidence.push_str("; its rows run alone, for copying them would take longer than joining saves");
    }
    bounded
}

/// Measures with the first session on a GPU whether runs have to be kept to one number of rows, and puts it into the plan.
fn kept_to_steps(
    job: &Job,
    batch: &BatchSettings,
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    plan: &mut Plan,
    keeper: &mut Keeper,
    interrupt: &Interrupt,
) {
    // A processor plans nothing by shape. Where lengths vary as well, hardly a run is of the shape of the one before.
    let may_step = plan.joining == Joining::Rows && plan.padding.is_none() && batch.max_batch_size > 1;
    let session = sessions.first_mut().filter(|session| may_step && session.facts().device != "cpu");
    let Some(session) = session else { return };
    let make = rows_of(session.as_ref(), hints);
    let under = circumstances(&(batch, &session.facts().execution.registered), None);
    let steps: Option<Steps> = keeper
        .measured(STEPS, &under)
        .unwrap_or_else(|| steady::measure(session.as_mut(), plan, &make, batch.max_batch_size, interrupt));
    if !interrupt.is_fired() {
        keeper.keep(STEPS, &under, &steps);
    }
    let Some(steps) = steps else { return };
    tracing::debug!(model = %job.name, version = %job.version, ?steps, "what a change of rows costs");
    let sizes = steps.curve.iter().map(|(rows, _)| rows.to_string()).collect::<Vec<_>>().join(", ");
    plan.evidence.push_str(&format!(
        "; a run takes {:.0} ms longer where its rows are not those of the run before, so runs stay at one of {sizes} rows and \
         are filled up",
        steps.change.as_secs_f64() * 1e3
    ));
    plan.steps = Some(steps);
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

/// The model's task from the manifest and the files beside the graph, and what it was told from.
fn task(job: &Job, inputs: &[Spec], outputs: &[Spec]) -> Result<(Option<Arc<dyn Pipeline>>, String), LoadError> {
    let detected = crate::pipelines::detect(task_folder(job), &job.manifest.pipeline, inputs, outputs, &job.limits)?;
    for problem in &detected.missing {
        tracing::warn!(model = %job.name, version = %job.version, problem, "a model's task is not fully served");
    }
    let evidence = std::iter::once(detected.evidence).chain(detected.missing).collect::<Vec<_>>().join("; ");
    Ok((detected.pipeline, evidence))
}

/// The folder with the files that make the task: the version's own, else what all versions share.
pub(super) fn task_folder(job: &Job) -> &Path {
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

//! One ONNX Runtime session: building it on a device, and running it.

use super::arena::Arena;
use super::options::{self, Machine, Profile};
use super::pinned::Pinned;
use super::provider::{self, Candidate, Provider};
use super::recorded::Recorded;
use super::written::Written;
use super::{convert, graph, memory, message, raw};
use crate::runtime::{
    DeviceType, Execution, GraphFacts, GraphSource, Input, Interrupt, MissingProvider, OptimizationLevel, RuntimeError,
    Session, SessionSettings, WorkingMemory,
};
use crate::telemetry::gpu;
use crate::tensor::{Spec, Value, ValueType};
use ort::environment::Environment;
use ort::memory::AllocationDevice;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, SessionInputValue};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;

/// What an arena takes before anything is in it, in bytes: its first region.
const ARENA_ITSELF: u64 = 1 << 20;

/// Largest trace that is read, in bytes.
const TRACE_BYTES_MAX: u64 = 64 << 20;

/// Reads, checks and builds; tries the devices of the settings in their order.
pub(super) fn load(
    environment: &Environment,
    source: &GraphSource,
    settings: &SessionSettings,
    is_profiled: bool,
) -> Result<Box<dyn Session>, RuntimeError> {
    load_graph(environment, &source.file, &graph::read(source)?, settings, None, is_profiled)
}

/// The same of a graph that was read; also writes what ONNX Runtime made of it where `written` says so, or times
/// every node.
pub(super) fn load_graph(
    environment: &Environment,
    file: &Path,
    graph: &graph::Graph,
    settings: &SessionSettings,
    written: Option<&Written>,
    is_profiled: bool,
) -> Result<Box<dyn Session>, RuntimeError> {
    let trace = is_profiled.then(tempfile::tempdir).transpose();
    let trace = trace.map_err(|error| RuntimeError::Io { path: std::env::temp_dir(), source: error })?;
    let prefix = trace.as_ref().map(|folder| folder.path().join("trace"));
    let candidates = provider::candidates(&settings.device);
    let device = &settings.device;
    let limits = device.memory_fraction.is_some() && device.device_type != DeviceType::Cpu;
    if limits
        && Provider::Cuda.is_in_build()
        && gpu::memory_total_bytes(device.device_index).is_none()
        && !gpu::gpus().is_empty()
    {
        return Err(RuntimeError::Device(format!(
            "memory_fraction is set, and the driver does not tell the memory of GPU {}; leave it out, or correct device_index",
            device.device_index
        )));
    }
    let asked = candidates.first().map(Candidate::names).unwrap_or_default();
    let mut missing: Vec<MissingProvider> = Vec::new();
    let mut is_fallback = false;
    for candidate in candidates {
        if let Some(absent) = candidate.providers.iter().find(|provider| !provider.is_in_build()) {
            // Under `auto` a library without CUDA is the normal case, not a problem to report.
            is_fallback |= settings.device.device_type != DeviceType::Auto;
            note(&mut missing, absent.not_in_build());
            continue;
        }
        let machine = Machine { trace: prefix.clone(), ..machine(graph, settings) };
        match built(environment, file, settings, &candidate, machine, written) {
            Ok((session, recorded)) => {
                if is_fallback {
                    for MissingProvider { provider, reason } in &missing {
                        tracing::warn!(device = candidate.device, provider, reason, "a better device was not used");
                    }
                }
                let registered = candidate.names();
                missing.retain(|missing| !registered.contains(&missing.provider));
                let nodes = raw::assigned_nodes(&session).unwrap_or_else(|error| {
                    tracing::debug!(%error, "ONNX Runtime does not tell which provider runs which node");
                    BTreeMap::new()
                });
                let execution = Execution { asked, registered, nodes, missing, is_fallback };
                let buffers = match recorded {
                    Some(recorded) => Buffers::Recorded(recorded),
                    None if candidate.providers.is_empty() => Buffers::Plain,
                    None => pinned(&session, settings.device.device_index),
                };
                let run_memory =
                    settings.run_memory.filter(|_| settings.memory.arena && candidate.providers.is_empty());
                return OnnxSession::new(session, buffers, graph, candidate.device, execution)
                    .map(|session| OnnxSession { trace, run_memory, ..session })
                    .map(|session| Box::new(session) as Box<dyn Session>);
            }
            Err((provider, error)) => {
                tracing::debug!(device = candidate.device, %error, "ONNX Runtime refused the graph");
                let Some(provider) = provider else {
                    let text = error.to_string();
                    let problem = message::clean(&text);
                    return Err(match message::is_out_of_memory(&text) {
                        true => RuntimeError::NoMemoryToLoad(problem + &bound_in_words(settings.run_memory)),
                        false => RuntimeError::Graph(format!("ONNX Runtime cannot load the graph: {problem}")),
                    });
                };
                is_fallback = true;
                note(&mut missing, provider.failed(&error.to_string()));
            }
        }
    }
    let problem = Execution { missing, ..Execution::default() }.problem();
    Err(RuntimeError::Device(format!(
        "the device that was asked for does not work ({problem}); set device_type = \"auto\" or allow_fallback = true to use another"
    )))
}

/// The first reason counts: it is of the best way that was tried.
fn note(missing: &mut Vec<MissingProvider>, found: MissingProvider) {
    if missing.iter().all(|known| known.provider != found.provider) {
        missing.push(found);
    }
}

/// What the options of a device depend on besides its settings.
pub(super) fn machine(graph: &graph::Graph, settings: &SessionSettings) -> Machine {
    let device = &settings.device;
    Machine {
        // Opens the driver's library: only for those who need it.
        gpu_bytes: device.memory_fraction.and_then(|_| gpu::memory_total_bytes(device.device_index)),
        level: Some(settings.optimization_level),
        is_fixed: options::is_fixed(&graph.shapes) && options::is_fixed(&graph.output_shapes),
        convolves: graph.convolves,
        profile: device.tensorrt.rows.and_then(|(usual, most)| Profile::of(&graph.shapes, usual, most)),
        engines: device.tensorrt.engines.clone(),
        trace: None,
        size_bytes: graph.facts.size_bytes,
    }
}

/// Builds a session, and the buffers between which its runs are recorded where that is asked for and can be done.
fn built(
    environment: &Environment,
    file: &Path,
    settings: &SessionSettings,
    candidate: &Candidate,
    machine: Machine,
    written: Option<&Written>,
) -> Result<(ort::session::Session, Option<Recorded>), (Option<Provider>, ort::Error)> {
    if options::records(&settings.device, &machine) && !candidate.providers.is_empty() && written.is_none() {
        let recording = || {
            let session = build(environment, file, settings, candidate, &machine, None).map_err(|(_, error)| error)?;
            let index = i32::try_from(settings.device.device_index).unwrap_or(i32::MAX);
            let recorded = Recorded::new(&session, AllocationDevice::CUDA, index)?;
            Ok::<_, ort::Error>(recorded.map(|recorded| (session, recorded)))
        };
        match recording() {
            Ok(Some((session, recorded))) => return Ok((session, Some(recorded))),
            Ok(None) => tracing::info!("runs are not recorded: an input or output is no tensor of one shape"),
            // Such as nodes that do not run on the GPU, or control flow.
            Err(error) => {
                let problem = message::clean(&error.to_string());
                tracing::info!(problem, "runs are not recorded: the graph cannot be");
            }
        }
    }
    let machine = Machine { is_fixed: false, ..machine };
    Ok((build(environment, file, settings, candidate, &machine, written)?, None))
}

/// Builds a session. The error names the provider that did not work; none, where the graph is at fault.
fn build(
    environment: &Environment,
    file: &Path,
    settings: &SessionSettings,
    candidate: &Candidate,
    machine: &Machine,
    written: Option<&Written>,
) -> Result<ort::session::Session, (Option<Provider>, ort::Error)> {
    let mut builder = builder(environment, settings).map_err(|error| (candidate.providers.first().copied(), error))?;
    if let Some(written) = written {
        builder = written.ask_for(builder).map_err(|error| (candidate.providers.first().copied(), error))?;
    }
    if let Some(prefix) = &machine.trace {
        let profiled = builder.with_profiling(prefix).map_err(|error| (None, error.into()))?;
        builder = profiled;
    }
    // One by one, so that it is known which of them does not work.
    for &provider in &candidate.providers {
        let dispatch = provider.dispatch(&options::of(provider, &settings.device, machine));
        dispatch.register(&mut builder).map_err(|error| (Some(provider), error))?;
    }
    if !settings.memory.arena {
        // ONNX Runtime adds the CPU by itself, with an arena.
        let cpu = ort::ep::CPU::default().with_arena_allocator(false).build().error_on_failure();
        cpu.register(&mut builder).map_err(|error| (None, error))?;
    }
    let bounded = candidate.providers.is_empty().then(|| arena_bytes(settings, machine)).flatten();
    let built = match bounded {
        Some(bytes) => {
            let shared = builder.with_config_entry("session.use_env_allocators", "1");
            let mut builder = shared.map_err(|error| (None, error.into()))?;
            raw::within_arena(environment, bytes, || builder.commit_from_file(file))
                .and_then(|session| within(session, bytes))
        }
        None => builder.commit_from_file(file),
    };
    built.map_err(|error| (candidate.providers.first().copied(), error))
}

/// What the arena of a session may hold; `None` where it has none, or none that is bounded. While a session is built its weights may lie
/// in it twice, as they were read and as its products want them.
fn arena_bytes(settings: &SessionSettings, machine: &Machine) -> Option<usize> {
    let runs = settings.run_memory.filter(|_| settings.memory.arena)?;
    let bytes = runs.saturating_add(machine.size_bytes.saturating_mul(2)).saturating_add(ARENA_ITSELF);
    Some(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The session, where what it holds is within its arena's bound. ONNX Runtime bounds what runs take, but not the constants that it
/// computes while it loads a graph, and beyond the bound it would bound nothing.
fn within(session: ort::session::Session, bytes: usize) -> ort::Result<ort::session::Session> {
    let held = raw::arena_stats(&raw::arena_allocator(&session)?).map_or(0, |memory| memory.arena_bytes);
    if held <= bytes as u64 {
        return Ok(session);
    }
    // In the words of the arena, which are told from other errors.
    Err(ort::Error::new(format!(
        "Available memory of {bytes} is smaller than the {held} bytes that the graph's constants take"
    )))
}

/// What a bound on memory says in words, where it was met.
fn bound_in_words(run_memory: Option<u64>) -> String {
    let words =
        |bytes: u64| format!("; the model's runs may take {} MiB, which [performance] run_memory_mb sets", bytes >> 20);
    run_memory.map(words).unwrap_or_default()
}

// The crate's builder errors do not convert to boxed errors; a function that returns its own result type keeps `?`.
fn builder(
    environment: &Environment,
    settings: &SessionSettings,
) -> ort::Result<ort::session::builder::SessionBuilder> {
    let level = match settings.optimization_level {
        OptimizationLevel::None => GraphOptimizationLevel::Disable,
        OptimizationLevel::Basic => GraphOptimizationLevel::Level1,
        OptimizationLevel::Balanced => GraphOptimizationLevel::Level2,
        OptimizationLevel::Aggressive => GraphOptimizationLevel::All,
    };
    // Spinning threads would take the cores from the requests' own work.
    Ok(ort::session::Session::builder(environment)?
        .with_intra_threads(settings.intra_threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_optimization_level(level)?
        .with_memory_pattern(settings.memory.pattern)?
        .with_config_entry("session.record_ep_graph_assignment_info", "1")?)
}

/// Outputs in page-locked memory where ONNX Runtime has it.
fn pinned(session: &ort::session::Session, index: u32) -> Buffers {
    match Pinned::of_cuda(session, index) {
        Ok(Some(pinned)) => Buffers::Pinned(pinned),
        Ok(None) => Buffers::Plain,
        Err(error) => {
            tracing::debug!(%error, "outputs are not written into page-locked memory");
            Buffers::Plain
        }
    }
}

/// Where runs read their inputs and write their outputs.
enum Buffers {
    /// Where ONNX Runtime puts them.
    Plain,
    /// Always the same, since runs are recorded.
    Recorded(Recorded),
    /// Outputs in page-locked memory.
    Pinned(Pinned),
}

struct OnnxSession {
    /// Before the session, which they are made of.
    buffers: Buffers,
    shared: Arc<Shared>,
    /// The folder of the trace, where runs are timed.
    trace: Option<tempfile::TempDir>,
    /// See [`SessionSettings::run_memory`].
    run_memory: Option<u64>,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    facts: GraphFacts,
}

/// What sessions over the same weights have in common.
struct Shared {
    /// `None` only while being dropped, so that the memory is given back after the session is gone.
    session: Option<ort::session::Session>,
    /// As ONNX Runtime takes them at every run.
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    /// `None` where the session does not run on the CPU.
    arena: Option<Arc<Arena>>,
}

impl OnnxSession {
    fn new(
        session: ort::session::Session,
        buffers: Buffers,
        graph: &graph::Graph,
        device: String,
        execution: Execution,
    ) -> Result<OnnxSession, RuntimeError> {
        let spec = |name: &str, ty: &ort::value::ValueType, has_default: bool| -> Result<Spec, RuntimeError> {
            let ty = convert::value_type(ty, graph.unshaped.contains(name))?;
            let optional = has_default || matches!(ty, ValueType::Optional(_));
            Ok(Spec { name: name.to_owned(), ty, optional })
        };
        let mut inputs = Vec::new();
        for input in session.inputs() {
            inputs.push(spec(input.name(), input.dtype(), false)?);
        }
        // Inputs that the graph gives a default for.
        for input in session.overridable_initializers() {
            inputs.push(spec(input.name(), input.dtype(), true)?);
        }
        let mut outputs = Vec::new();
        for output in session.outputs() {
            outputs.push(spec(output.name(), output.dtype(), false)?);
        }
        let facts = GraphFacts { execution, device, ..graph.facts.clone() };
        let arena = if facts.device == "cpu" { Arena::of(&session).map(Arc::new) } else { None };
        let shared =
            Shared { session: Some(session), input_names: c_names(&inputs)?, output_names: c_names(&outputs)?, arena };
        Ok(OnnxSession { buffers, shared: Arc::new(shared), trace: None, run_memory: None, inputs, outputs, facts })
    }
}

fn c_names(specs: &[Spec]) -> Result<Vec<CString>, RuntimeError> {
    let name = |spec: &Spec| {
        CString::new(spec.name.as_str())
            .map_err(|_| RuntimeError::Graph("the name of an input or output holds a NUL character".to_owned()))
    };
    specs.iter().map(name).collect()
}

impl Session for OnnxSession {
    fn inputs(&self) -> &[Spec] {
        &self.inputs
    }

    fn outputs(&self) -> &[Spec] {
        &self.outputs
    }

    fn facts(&self) -> &GraphFacts {
        &self.facts
    }

    fn run(&mut self, inputs: &[Input], outputs: &[usize], interrupt: &Interrupt) -> Result<Vec<Value>, RuntimeError> {
        let run_memory = self.run_memory;
        let failed = |error: ort::Error| {
            if interrupt.is_fired() {
                return RuntimeError::Interrupted;
            }
            tracing::debug!(%error, "a run failed");
            let text = error.to_string();
            if message::is_out_of_memory(&text) {
                let bound = run_memory.filter(|_| message::is_over_bound(&text));
                RuntimeError::OutOfMemory(message::clean(&text) + &bound_in_words(bound))
            } else if message::is_device_fault(&text) {
                RuntimeError::Device(format!("the device failed: {}", message::clean(&text)))
            } else {
                RuntimeError::Run(message::clean(&text))
            }
        };
        let mut values: Vec<(&CStr, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (index, value) in inputs {
            // An absent optional is an input that is not given.
            if matches!(value, Value::None) {
                continue;
            }
            let (Some(spec), Some(name)) = (self.inputs.get(*index), self.shared.input_names.get(*index)) else {
                return Err(RuntimeError::Run(format!("there is no input {index}")));
            };
            values.push((name, convert::to_input(value, &spec.ty)?));
        }
        let mut names: Vec<&CStr> = Vec::with_capacity(outputs.len());
        for &index in outputs {
            let Some(name) = self.shared.output_names.get(index) else {
                return Err(RuntimeError::Run(format!("there is no output {index}")));
            };
            names.push(name);
        }
        let options = Arc::new(RunOptions::new().map_err(failed)?);
        let terminate = options.clone();
        let _hook = interrupt.on_fire(move || {
            if let Err(error) = terminate.terminate() {
                tracing::warn!(%error, "a run could not be stopped");
            }
        });
        let Some(session) = self.shared.session.as_ref() else {
            return Err(RuntimeError::Run("the session is closed".to_owned()));
        };
        let results = match &mut self.buffers {
            Buffers::Recorded(recorded) => recorded.run(session, &values, outputs, &options),
            Buffers::Plain => {
                let outcome = raw::run(session, &values, &names, &options);
                match (outcome, &self.shared.arena) {
                    // What earlier runs left in it may be free, and of no use to this one.
                    (Err(error), Some(arena)) if message::is_over_bound(&error.to_string()) => {
                        arena.shrink();
                        raw::run(session, &values, &names, &options)
                    }
                    (outcome, _) => outcome,
                }
            }
            Buffers::Pinned(pinned) => match pinned.run(session, &values, &names, &options) {
                Err(error) if !interrupt.is_fired() => {
                    // Page-locked memory may be short, or this output not to be had in it; else the same error comes again.
                    let plain = raw::run(session, &values, &names, &options);
                    if plain.is_ok() {
                        let problem = message::clean(&error.to_string());
                        tracing::warn!(problem, "outputs are not written into page-locked memory any more");
                        self.buffers = Buffers::Plain;
                    }
                    plain
                }
                outcome => outcome,
            },
        }
        .map_err(failed)?;
        let values = results.into_iter().map(|value| value.map_or(Ok(Value::None), convert::from_output));
        let results: Vec<Value> = values.collect::<Result<_, _>>()?;
        if let Some(arena) = &self.shared.arena {
            arena.after_run(inputs, &results);
        }
        Ok(results)
    }

    fn share(&self) -> Option<Box<dyn Session>> {
        // Runs at the same time are tried out on the CPU alone: 700 000 of a tiny model and 160 of ResNet-18 without a
        // wrong result. Other providers keep state of a run in the session.
        if self.facts.device != "cpu" {
            return None;
        }
        Some(Box::new(OnnxSession {
            buffers: Buffers::Plain,
            shared: self.shared.clone(),
            trace: None,
            run_memory: self.run_memory,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            facts: self.facts.clone(),
        }))
    }

    fn end_profile(&mut self) -> Result<Vec<String>, RuntimeError> {
        // Its folder goes at the end.
        let Some(_folder) = self.trace.take() else { return Ok(Vec::new()) };
        let session = Arc::get_mut(&mut self.shared).and_then(|shared| shared.session.as_mut());
        let Some(session) = session else { return Ok(Vec::new()) };
        let failed = |error: ort::Error| RuntimeError::Run(message::clean(&error.to_string()));
        let file = std::path::PathBuf::from(session.end_profiling().map_err(failed)?);
        let io = |error| RuntimeError::Io { path: file.clone(), source: error };
        let bytes = std::fs::metadata(&file).map_err(io)?.len();
        if bytes > TRACE_BYTES_MAX {
            return Err(RuntimeError::Run(format!(
                "the profile has {bytes} bytes, more than {TRACE_BYTES_MAX}; ask for fewer iterations"
            )));
        }
        Ok(vec![std::fs::read_to_string(&file).map_err(io)?])
    }

    fn working_memory(&self) -> Option<Arc<dyn WorkingMemory>> {
        Some(self.shared.arena.clone()?)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(arena) = &self.arena {
            arena.close();
        }
        drop(self.session.take());
        memory::give_back();
    }
}

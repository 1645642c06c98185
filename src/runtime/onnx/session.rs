//! One ONNX Runtime session: building it on a device, and running it.

use super::arena::Arena;
use super::{convert, graph, memory, message, provider, raw};
use crate::runtime::{
    DeviceType, GraphFacts, GraphSource, Input, Interrupt, OptimizationLevel, RuntimeError, Session, SessionSettings,
    WorkingMemory,
};
use crate::tensor::{Spec, Value, ValueType};
use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, SessionInputValue};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Arc;

/// Reads, checks and builds; tries the devices of the settings in their order.
pub(super) fn load(
    environment: &Environment,
    source: &GraphSource,
    settings: &SessionSettings,
) -> Result<Box<dyn Session>, RuntimeError> {
    let graph = graph::read(source)?;
    let mut problems: Vec<String> = Vec::new();
    let mut graph_problem = None;
    for candidate in provider::candidates(&settings.device) {
        let on_cpu = candidate.device == "cpu";
        // Under `auto` a library without CUDA is the normal case, not a problem to report.
        if !on_cpu && settings.device.device_type == DeviceType::Auto && !provider::has_cuda() {
            continue;
        }
        match build(environment, &source.file, settings, &candidate) {
            Ok(session) => {
                for problem in &problems {
                    tracing::warn!(device = candidate.device, problem, "a better device was not used");
                }
                return OnnxSession::new(session, &graph, &candidate)
                    .map(|session| Box::new(session) as Box<dyn Session>);
            }
            Err(error) => {
                tracing::debug!(device = candidate.device, %error, "ONNX Runtime refused the graph");
                let text = message::clean(&error.to_string());
                if on_cpu {
                    graph_problem = Some(text);
                } else {
                    problems.push(format!("{}: {text}", candidate.device));
                }
            }
        }
    }
    Err(match graph_problem {
        Some(problem) => RuntimeError::Graph(format!("ONNX Runtime cannot load the graph: {problem}")),
        None => RuntimeError::Device(format!(
            "the device that was asked for does not work ({}); set device_type = \"auto\" or allow_fallback = true to use another",
            problems.join("; ")
        )),
    })
}

// The crate's builder errors do not convert to boxed errors; a function that returns its own result type keeps `?`.
fn build(
    environment: &Environment,
    file: &Path,
    settings: &SessionSettings,
    candidate: &provider::Candidate,
) -> ort::Result<ort::session::Session> {
    let level = match settings.optimization_level {
        OptimizationLevel::None => GraphOptimizationLevel::Disable,
        OptimizationLevel::Basic => GraphOptimizationLevel::Level1,
        OptimizationLevel::Balanced => GraphOptimizationLevel::Level2,
        OptimizationLevel::Aggressive => GraphOptimizationLevel::All,
    };
    // Spinning threads would take the cores from the requests' own work.
    let mut builder = ort::session::Session::builder(environment)?
        .with_intra_threads(settings.intra_threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_optimization_level(level)?;
    let providers = candidate.dispatch(&settings.device);
    if !providers.is_empty() {
        builder = builder.with_execution_providers(providers)?;
    }
    builder.commit_from_file(file)
}

struct OnnxSession {
    shared: Arc<Shared>,
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
        graph: &graph::Graph,
        candidate: &provider::Candidate,
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
        let facts = GraphFacts {
            providers: candidate.names.iter().map(|name| (*name).to_owned()).collect(),
            device: candidate.device.clone(),
            ..graph.facts.clone()
        };
        let arena = if facts.device == "cpu" { Arena::of(&session).map(Arc::new) } else { None };
        let shared =
            Shared { session: Some(session), input_names: c_names(&inputs)?, output_names: c_names(&outputs)?, arena };
        Ok(OnnxSession { shared: Arc::new(shared), inputs, outputs, facts })
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
        let failed = |error: ort::Error| {
            if interrupt.is_fired() {
                return RuntimeError::Interrupted;
            }
            tracing::debug!(%error, "a run failed");
            RuntimeError::Run(message::clean(&error.to_string()))
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
        let results = raw::run(session, &values, &names, &options).map_err(failed)?;
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
            shared: self.shared.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            facts: self.facts.clone(),
        }))
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

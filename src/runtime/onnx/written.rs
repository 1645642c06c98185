//! Writes ONNX Runtime's optimised graphs to disk, and loads them in place of the graphs that they were made of.
//!
//! The form is an ONNX file and a file with the weights beside it, as ONNX Runtime writes it at a load and maps it at the next:
//! a 90 MB encoder is loaded in 27 ms instead of 107, ResNet-18 in 2 instead of 38 (the whole in one file: 89 and 15, ONNX
//! Runtime's own format: 145 and 17). It is of one build of ONNX Runtime on one kind of processor ([`FormKey`]).

use super::provider;
use super::{graph, session};
use crate::runtime::pair::Pair;
use crate::runtime::written::processor;
use crate::runtime::{
    DeviceSettings, FormKey, GraphFacts, GraphSource, OptimizationLevel, RuntimeError, Session, SessionSettings,
    WrittenGraph,
};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::SessionBuilder;
use std::path::{Path, PathBuf};

/// The graph, or the first of two, and the second: each with the file of its weights.
const FILES: [(&str, &str); 2] = [("graph.onnx", "graph.bin"), ("text.onnx", "text.bin")];

/// Smaller tensors stay in the graph's file.
const SMALL_BYTES: &str = "1024";

/// Where to write a graph.
pub(super) struct Written {
    file: PathBuf,
    weights: &'static str,
}

impl Written {
    fn new(folder: &Path, (file, weights): (&str, &'static str)) -> Written {
        Written { file: folder.join(file), weights }
    }

    /// Has a session that is built write its graph.
    pub(super) fn ask_for(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        Ok(builder
            // It warns each time that what it writes is for this kind of processor alone.
            .with_log_level(LogLevel::Error)?
            .with_optimized_model_path(&self.file)?
            .with_config_entry("session.optimized_model_external_initializers_file_name", self.weights)?
            .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", SMALL_BYTES)?)
    }
}

/// Only what runs on the CPU is written: other providers keep what they compiled in their own caches, and what ONNX Runtime
/// would write of their graphs runs nowhere else.
pub(super) fn form_key(version: &str, device: &DeviceSettings) -> Option<FormKey> {
    let works = |candidate: &provider::Candidate| candidate.providers.iter().all(|provider| provider.is_in_build());
    let candidate = provider::candidates(device).into_iter().find(works)?;
    let names = candidate.names().join(" ");
    candidate.providers.is_empty().then(|| FormKey { runtime: version.to_owned(), cpu: processor(), device: names })
}

/// See [`crate::runtime::Runtime::load_writing`].
pub(super) fn load_writing(
    environment: &Environment,
    source: &GraphSource,
    settings: &SessionSettings,
    folder: &Path,
) -> Result<(Box<dyn Session>, Vec<WrittenGraph>), RuntimeError> {
    let (mut sessions, mut graphs) = (Vec::new(), Vec::new());
    for (file, names) in [Some(&source.file), source.text_tower.as_ref()].into_iter().flatten().zip(FILES) {
        let source = GraphSource { file: file.clone(), text_tower: None, ..source.clone() };
        let graph = graph::read(&source)?;
        if graph.facts.format != "onnx" {
            return Err(RuntimeError::Graph("the model file is ONNX Runtime's own form already".to_owned()));
        }
        let written = Written::new(folder, names);
        sessions.push(session::load_graph(environment, file, &graph, settings, Some(&written), false)?);
        let operators = read(folder, names.0)?.facts.operators;
        graphs.push(WrittenGraph { facts: graph.facts, operators });
    }
    Ok((joined(sessions)?, graphs))
}

/// See [`crate::runtime::Runtime::load_written`].
pub(super) fn load_written(
    environment: &Environment,
    folder: &Path,
    graphs: &[WrittenGraph],
    settings: &SessionSettings,
) -> Result<Box<dyn Session>, RuntimeError> {
    let settings = SessionSettings { optimization_level: OptimizationLevel::None, ..settings.clone() };
    let mut sessions = Vec::new();
    for (written, (file, _)) in graphs.iter().zip(FILES) {
        let mut graph = read(folder, file)?;
        graph.unshaped = written.facts.unshaped.iter().cloned().collect();
        graph.facts = GraphFacts { format: "onnx", ..written.facts.clone() };
        sessions.push(session::load_graph(environment, &folder.join(file), &graph, &settings, None, false)?);
    }
    joined(sessions)
}

/// Reads and checks a written graph as any other.
fn read(folder: &Path, file: &str) -> Result<graph::Graph, RuntimeError> {
    let source =
        GraphSource { file: folder.join(file), text_tower: None, folder: folder.to_owned(), max_file_bytes: u64::MAX };
    graph::read(&source)
}

fn joined(sessions: Vec<Box<dyn Session>>) -> Result<Box<dyn Session>, RuntimeError> {
    let mut sessions = sessions.into_iter();
    match (sessions.next(), sessions.next()) {
        (Some(image), Some(text)) => Ok(Box::new(Pair::new(image, text)?)),
        (Some(only), None) => Ok(only),
        (None, _) => Err(RuntimeError::Graph("nothing was written".to_owned())),
    }
}

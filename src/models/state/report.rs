//! What is told of a saved state: `report.json` beside it, and the summary of a loaded model.

use super::disk::State;
use super::quantized::Quantization;
use crate::models::{ModelName, Tuned, Version};
use crate::runtime::OptimizationLevel;
use crate::telemetry::{now_ms, rfc3339};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether a load used a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizationState {
    /// Optimised at this load.
    Fresh,
    /// Loaded as an earlier load left it.
    Reused,
    /// Nothing is saved or looked for.
    Off,
}

impl OptimizationState {
    /// The word for it in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            OptimizationState::Fresh => "fresh",
            OptimizationState::Reused => "reused",
            OptimizationState::Off => "off",
        }
    }
}

/// How a loaded version came to its optimised graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimization {
    pub state: OptimizationState,
    /// Why it is off, why an earlier state was discarded, or why the graph is not saved.
    pub reason: Option<String>,
    pub level: OptimizationLevel,
    /// Whether the next load may reuse something.
    pub saved: bool,
    /// One session from the model's own files: of this load, or as the saved state has it.
    pub cold_load_ms: Option<f64>,
    /// One session from the saved graph, checking it counted.
    pub warm_load_ms: Option<f64>,
    /// Nodes of the graph before and after optimisation, where it is saved.
    pub nodes: Option<(u64, u64)>,
    /// What the saved graph takes on the disk.
    pub saved_bytes: Option<u64>,
    /// The level that the saved graph is of, where it is another than `level`: what tuning chose.
    pub graph_level: Option<OptimizationLevel>,
    /// What tuning found, at this load or an earlier one, whether or not it counts under the settings of this one.
    pub tuned: Option<Tuned>,
    /// Measurements that were not made again.
    pub measurements: Vec<String>,
    /// What came of trying the graph with products of eight bits, where that was asked for.
    pub quantization: Option<Quantization>,
    /// The same with numbers of 16 bits, which `use_fp16` asks for on CUDA.
    pub halved: Option<Quantization>,
}

impl Default for Optimization {
    fn default() -> Optimization {
        Optimization {
            state: OptimizationState::Off,
            reason: None,
            level: OptimizationLevel::None,
            saved: false,
            cold_load_ms: None,
            warm_load_ms: None,
            nodes: None,
            saved_bytes: None,
            graph_level: None,
            tuned: None,
            measurements: Vec::new(),
            quantization: None,
            halved: None,
        }
    }
}

/// To a tenth.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

/// The text of `report.json`.
pub(super) fn report(model: &ModelName, version: Version, state: &State) -> Value {
    let (mut before, mut after) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    for graph in &state.graphs {
        for (counts, operators) in [(&mut before, &graph.facts.operators), (&mut after, &graph.operators)] {
            operators.iter().for_each(|(name, count)| *counts.entry(name).or_default() += count);
        }
    }
    let nodes = |counts: &BTreeMap<&str, u64>| json!({ "all": counts.values().sum::<u64>(), "by_operator": counts });
    let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.sum::<u64>();
    json!({
        "model": model.as_str(),
        "version": version.to_string(),
        "made_at": rfc3339(now_ms()),
        "ortus": state.ortus,
        "runtime": state.form.runtime,
        "processor": state.form.cpu,
        "device": state.form.device,
        "optimization_level": state.level,
        "graph_level": state.graph_level.unwrap_or(state.level),
        "cold_load_ms": state.cold_load_ms,
        "warm_load_ms": state.warm_load_ms,
        "not_written": state.not_written,
        "model_bytes": sum(&mut state.originals.iter().map(|file| file.bytes)),
        "saved_bytes": sum(&mut state.written.iter().map(|file| file.bytes)),
        "nodes_before": nodes(&before),
        "nodes_after": nodes(&after),
        "quantization": state.quantization,
        "measured": state.measured,
    })
}

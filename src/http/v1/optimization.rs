//! Where a model's optimised graph came from, as answers say it.

use crate::engine;
use serde::Serialize;
use utoipa::ToSchema;

/// Whether the load used what an earlier one had found out of the version.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OptimizationInfo {
    /// `fresh`: optimised at this load; `reused`: loaded as an earlier load left it; `off`: nothing is saved or looked for.
    #[schema(example = "reused")]
    state: &'static str,
    /// Why it is off, why an earlier state was discarded, or why the graph is not saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    reason: Option<String>,
    /// Whether the next load may reuse something.
    saved: bool,
    /// One session from the model's own files: read, optimised and built.
    #[schema(example = 162.4)]
    cold_load_ms: Option<f64>,
    /// One session from the saved graph, checking it counted.
    #[schema(example = 61.9)]
    warm_load_ms: Option<f64>,
    /// Nodes of the graph before optimisation, where it is saved.
    #[schema(example = 231)]
    nodes_before: Option<u64>,
    #[schema(example = 98)]
    nodes_after: Option<u64>,
    /// What the saved graph takes on the disk.
    #[schema(example = 90294272)]
    saved_bytes: Option<u64>,
    /// The level of the saved graph, where tuning chose another than the settings'.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "balanced")]
    graph_level: Option<engine::OptimizationLevel>,
    /// Measurements that were not made again.
    #[schema(example = json!(["joining"]))]
    reused_measurements: Vec<String>,
    /// What came of trying the graph with products of eight bits; left out where that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<QuantizationInfo>,
    /// The same with numbers of 16 bits, which `use_fp16` asks for on CUDA; left out where that does not apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    fp16: Option<QuantizationInfo>,
}

/// A graph with products of eight bits, or with numbers of 16, run by turns with the model's own.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct QuantizationInfo {
    /// Whether it serves.
    adopted: bool,
    #[schema(example = "2.21 times as fast within the drift")]
    reason: String,
    /// How many times as fast it is; `null` where it could not be run.
    #[schema(example = 2.21)]
    speed: Option<f64>,
    /// The lowest cosine of its outputs with the original's.
    #[schema(example = 0.9994)]
    cosine: Option<f64>,
    #[schema(example = 90274675)]
    original_bytes: Option<u64>,
    #[schema(example = 58482688)]
    quantized_bytes: Option<u64>,
}

impl From<&engine::Quantization> for QuantizationInfo {
    fn from(found: &engine::Quantization) -> QuantizationInfo {
        QuantizationInfo {
            adopted: found.adopted,
            reason: found.reason.clone(),
            speed: found.speed,
            cosine: found.cosine,
            original_bytes: found.bytes.map(|(before, _)| before),
            quantized_bytes: found.bytes.map(|(_, after)| after),
        }
    }
}

impl From<&engine::Optimization> for OptimizationInfo {
    fn from(found: &engine::Optimization) -> OptimizationInfo {
        OptimizationInfo {
            state: found.state.as_str(),
            reason: found.reason.clone(),
            saved: found.saved,
            cold_load_ms: found.cold_load_ms,
            warm_load_ms: found.warm_load_ms,
            nodes_before: found.nodes.map(|(before, _)| before),
            nodes_after: found.nodes.map(|(_, after)| after),
            graph_level: found.graph_level,
            saved_bytes: found.saved_bytes,
            reused_measurements: found.measurements.clone(),
            quantization: found.quantization.as_ref().map(QuantizationInfo::from),
            fp16: found.halved.as_ref().map(QuantizationInfo::from),
        }
    }
}

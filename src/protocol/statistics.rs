//! The statistics extension: counts since the start, as Triton gives them.
//!
//! Where a batch answers several requests, Triton counts its time once for each; here a run is counted once. `success` and
//! `fail` count requests, rows and runs are those of the instances, whoever asked for them: jobs and warm-ups too.

use crate::engine::{EngineError, InferenceEngine, ModelName, Version};
use crate::telemetry::ModelStats;
use crate::telemetry::stats::{BatchTotals, TimeTotal, VersionTotals};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

#[derive(Debug, Serialize)]
pub struct ModelStatistics {
    pub name: String,
    pub version: String,
    /// Milliseconds since the Unix epoch; 0 = never.
    pub last_inference: u64,
    /// Rows that were run.
    pub inference_count: u64,
    /// Runs.
    pub execution_count: u64,
    pub inference_stats: InferenceStatistics,
    /// Of streams of answers, which no model here gives.
    pub response_stats: BTreeMap<String, ()>,
    pub batch_stats: Vec<BatchStatistics>,
    pub memory_usage: Vec<MemoryUsage>,
}

#[derive(Debug, Serialize)]
pub struct InferenceStatistics {
    pub success: Times,
    pub fail: Times,
    pub queue: Times,
    pub compute_input: Times,
    pub compute_infer: Times,
    pub compute_output: Times,
    pub cache_hit: Times,
    pub cache_miss: Times,
}

#[derive(Debug, Serialize)]
pub struct BatchStatistics {
    pub batch_size: u64,
    pub compute_input: Times,
    pub compute_infer: Times,
    pub compute_output: Times,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    pub count: u64,
    pub ns: u64,
}

#[derive(Debug, Serialize)]
pub struct MemoryUsage {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub id: u32,
    pub byte_size: u64,
}

/// What is counted of all versions of the model, or of the one; of all models where none is named.
///
/// # Errors
/// `NotFound`.
pub fn statistics(
    engine: &InferenceEngine,
    name: Option<&ModelName>,
    version: Option<Version>,
) -> Result<Vec<ModelStatistics>, EngineError> {
    let models = match (name, version) {
        (None, _) => engine.stats().all(),
        (Some(name), Some(version)) => vec![engine.model_stats(name, Some(version))?],
        (Some(name), None) => {
            engine.status(name)?;
            let all = engine.stats().all();
            all.into_iter().filter(|model| model.name() == name.as_str()).collect()
        }
    };
    Ok(models.iter().map(|model| describe_of(engine, model)).collect())
}

fn describe_of(engine: &InferenceEngine, model: &ModelStats) -> ModelStatistics {
    let loaded = engine.loaded_version(model.name(), model.version());
    let memory = loaded.map(|loaded| MemoryUsage::of(&loaded.facts.device, loaded.memory.total_bytes()));
    describe(model, memory)
}

/// `memory`: what the version holds, where it is loaded.
fn describe(model: &ModelStats, memory: Option<MemoryUsage>) -> ModelStatistics {
    let totals = model.totals();
    let VersionTotals { answered, refused, queue, cache_hits, cache_misses, batches, last_request, .. } = &totals;
    let since_epoch = last_request.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let mut runs = BatchTotals::default();
    for of_size in batches.values() {
        runs.add(of_size);
    }
    // What a cache took is not measured: it is in `success`.
    let untimed = |count: u64| Times { count, ns: 0 };
    ModelStatistics {
        name: model.name().to_owned(),
        version: model.version().to_string(),
        last_inference: u64::try_from(since_epoch.as_millis()).unwrap_or(0),
        inference_count: runs.rows,
        execution_count: runs.count,
        inference_stats: InferenceStatistics {
            success: Times::from(*answered),
            fail: Times::from(*refused),
            queue: Times::from(*queue),
            compute_input: Times { count: runs.count, ns: runs.input_ns },
            compute_infer: Times { count: runs.count, ns: runs.infer_ns },
            compute_output: Times { count: runs.count, ns: runs.output_ns },
            cache_hit: untimed(*cache_hits),
            cache_miss: untimed(*cache_misses),
        },
        response_stats: BTreeMap::new(),
        batch_stats: batches.iter().map(|(size, runs)| BatchStatistics::of(*size, runs)).collect(),
        memory_usage: memory.into_iter().collect(),
    }
}

impl MemoryUsage {
    /// `device` as `cpu` or `cuda:0`.
    fn of(device: &str, byte_size: u64) -> MemoryUsage {
        let (name, index) = device.split_once(':').unwrap_or((device, "0"));
        let kind = if name == "cpu" { "CPU" } else { "GPU" };
        MemoryUsage { kind, id: index.parse().unwrap_or(0), byte_size }
    }
}

impl BatchStatistics {
    fn of(batch_size: u64, runs: &BatchTotals) -> BatchStatistics {
        let times = |ns| Times { count: runs.count, ns };
        BatchStatistics {
            batch_size,
            compute_input: times(runs.input_ns),
            compute_infer: times(runs.infer_ns),
            compute_output: times(runs.output_ns),
        }
    }
}

impl From<TimeTotal> for Times {
    fn from(total: TimeTotal) -> Times {
        Times { count: total.count, ns: total.ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Stats;
    use crate::telemetry::stats::{CacheKind, Protocol, Stage};
    use std::time::Duration;

    #[test]
    fn counts_are_in_tritons_form() {
        let model = Stats::default().model("m", 3);
        model.begin(Protocol::V2).finish(200, None);
        model.begin(Protocol::V2).finish(400, Some("invalid_input".into()));
        model.record_stage(Stage::Queue, Duration::from_nanos(7));
        model.record_cache(CacheKind::Response, true);
        let ns = Duration::from_nanos;
        model.record_batch(4, ns(1), ns(20), ns(3));
        model.record_batch(4, ns(1), ns(20), ns(3));
        model.record_batch(1, ns(5), ns(6), ns(7));
        let json = serde_json::to_value(describe(&model, Some(MemoryUsage::of("cuda:1", 5)))).unwrap();
        assert_eq!((&json["name"], &json["version"]), (&"m".into(), &"3".into()));
        assert_eq!((&json["inference_count"], &json["execution_count"]), (&9.into(), &3.into()));
        assert!(json["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
        let stats = &json["inference_stats"];
        assert_eq!(stats["success"]["count"], 1);
        assert_eq!(stats["fail"]["count"], 1);
        assert_eq!(stats["queue"], serde_json::json!({"count": 1, "ns": 7}));
        assert_eq!(stats["compute_infer"], serde_json::json!({"count": 3, "ns": 46}));
        assert_eq!(stats["cache_hit"], serde_json::json!({"count": 1, "ns": 0}));
        assert_eq!(json["batch_stats"][0]["batch_size"], 1);
        assert_eq!(json["batch_stats"][1]["compute_output"], serde_json::json!({"count": 2, "ns": 6}));
        assert_eq!(json["response_stats"], serde_json::json!({}));
        assert_eq!(json["memory_usage"], serde_json::json!([{"type": "GPU", "id": 1, "byte_size": 5}]));
        let cpu = serde_json::to_value(describe(&model, Some(MemoryUsage::of("cpu", 7)))).unwrap();
        assert_eq!(cpu["memory_usage"], serde_json::json!([{"type": "CPU", "id": 0, "byte_size": 7}]));
        let unloaded = serde_json::to_value(describe(&model, None)).unwrap();
        assert_eq!(unloaded["memory_usage"], serde_json::json!([]));
    }
}

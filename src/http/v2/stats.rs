//! The statistics extension: counts since the start, as Triton gives them.
//!
//! Where a batch answers several requests, Triton counts its time once for each; here a run is counted once. `success` and
//! `fail` count requests, rows and runs are those of the instances, whoever asked for them: jobs and warm-ups too.

use super::error::V2Error;
use crate::engine::InferenceEngine;
use crate::http::HttpState;
use crate::http::extract::ModelPath;
use crate::telemetry::ModelStats;
use crate::telemetry::stats::{BatchTotals, TimeTotal, VersionTotals};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

#[derive(Debug, Serialize)]
pub(super) struct Statistics {
    model_stats: Vec<ModelStatistics>,
}

#[derive(Debug, Serialize)]
struct ModelStatistics {
    name: String,
    version: String,
    /// Milliseconds since the Unix epoch; 0 = never.
    last_inference: u64,
    /// Rows that were run.
    inference_count: u64,
    /// Runs.
    execution_count: u64,
    inference_stats: InferenceStatistics,
    /// Of streams of answers, which no model here gives.
    response_stats: BTreeMap<String, ()>,
    batch_stats: Vec<BatchStatistics>,
    memory_usage: Vec<MemoryUsage>,
}

#[derive(Debug, Serialize)]
struct InferenceStatistics {
    success: Times,
    fail: Times,
    queue: Times,
    compute_input: Times,
    compute_infer: Times,
    compute_output: Times,
    cache_hit: Times,
    cache_miss: Times,
}

#[derive(Debug, Serialize)]
struct BatchStatistics {
    batch_size: u64,
    compute_input: Times,
    compute_infer: Times,
    compute_output: Times,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Times {
    count: u64,
    ns: u64,
}

#[derive(Debug, Serialize)]
struct MemoryUsage {
    #[serde(rename = "type")]
    kind: &'static str,
    id: u32,
    byte_size: u64,
}

/// `GET /v2/models/stats`: all models.
pub(super) async fn all(State(state): State<HttpState>) -> Json<Statistics> {
    Json(Statistics {
        model_stats: state.engine.stats().all().iter().map(|model| describe_of(&state.engine, model)).collect(),
    })
}

/// `GET /v2/models/{name}[/versions/{version}]/stats`: all versions of the model, or the one.
pub(super) async fn model(State(state): State<HttpState>, path: ModelPath) -> Result<Json<Statistics>, V2Error> {
    let models = match path.version {
        Some(version) => vec![state.engine.model_stats(&path.name, Some(version))?],
        None => {
            state.engine.status(&path.name)?;
            let all = state.engine.stats().all();
            all.into_iter().filter(|model| model.name() == path.name.as_str()).collect()
        }
    };
    Ok(Json(Statistics { model_stats: models.iter().map(|model| describe_of(&state.engine, model)).collect() }))
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

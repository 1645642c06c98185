//! How models did within the last minutes.

use crate::engine::{CacheUsage, InferenceEngine, Version};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, ModelPath, invalid_query};
use crate::telemetry::ModelStats;
use crate::telemetry::stats::{BatchTotals, CacheKind, CancelReason, Stage, StageSummary, WindowSummary};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};
use utoipa::ToSchema;

/// What a version of a model did within the window. Every request that reached it and ended is in `predict_time.count`
/// (answered), in `error_counts` (refused) or in `cancelled.disconnected`. An accepted job is in none of them; what it runs is
/// in the times of the stages and in `batch_size`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelStatistics {
    #[schema(example = "resnet50")]
    model: String,
    #[schema(example = "1")]
    version: String,
    /// From arrival to the encoded answer, of requests that were answered.
    predict_time: StageTime,
    /// Waiting for an instance.
    queue_time: StageTime,
    preprocess_time: StageTime,
    /// Running the graph.
    forward_time: StageTime,
    postprocess_time: StageTime,
    batch_size: BatchSizes,
    /// Requests that were refused, by code.
    #[schema(example = json!({"invalid_input": 3}))]
    error_counts: BTreeMap<String, u64>,
    cancelled: Cancelled,
    cache: Caches,
    /// How far back the numbers go at most, in seconds.
    #[schema(example = 300.0)]
    window_s: f64,
    /// From when on they count, in Unix seconds: within the window, and not before the last reset.
    #[schema(example = 1766000000.5)]
    since: f64,
}

/// In seconds; `null` where there was none. Percentiles within 1 %.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct StageTime {
    #[schema(example = 120)]
    count: u64,
    #[schema(example = 0.0123)]
    mean: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

/// Rows of a run.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct BatchSizes {
    /// Runs.
    #[schema(example = 40)]
    count: u64,
    #[schema(example = 3.0)]
    mean: Option<f64>,
    /// Runs by their rows; above 128 by the next power of two.
    #[schema(value_type = BTreeMap<String, u64>, example = json!({"1": 20, "5": 20}))]
    histogram: BTreeMap<u64, u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Cancelled {
    /// Clients that went away before their answer.
    disconnected: u64,
    /// Deadlines that passed; among `error_counts`, too.
    expired: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Caches {
    response: CacheUse,
    preprocess: CacheUse,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CacheUse {
    hits: u64,
    misses: u64,
    /// Kept at this moment; 0 where the cache is off or the version not loaded.
    #[schema(example = 120)]
    entries: u64,
    /// What they take, bounded by `[cache]`.
    #[schema(example = 1048576)]
    bytes: u64,
}

/// The statistics of all models.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AllStatistics {
    /// By name, then version; those that were loaded or asked for since the server's start.
    models: Vec<ModelStatistics>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct VersionQuery {
    version: Option<String>,
}

impl VersionQuery {
    pub(super) fn parse(self) -> Result<Option<Version>, ApiError> {
        let Some(text) = self.version else { return Ok(None) };
        Version::parse(&text).map(Some).ok_or_else(|| invalid_query("version must be a number such as 1"))
    }
}

/// Gives the statistics of a model.
#[utoipa::path(get, path = "/v1/models/{name}/stats", tag = "models", operation_id = "getModelStats",
    description = "What a version did within the last minutes (`telemetry.stats_window_s`); `/metrics` has the counts since the start.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version where absent."),
    ),
    responses((status = 200, description = "The statistics.", body = ModelStatistics)))]
pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<Json<ModelStatistics>, ApiError> {
    let model = state.engine.model_stats(&path.name, query.parse()?)?;
    let engine = state.engine.clone();
    Ok(Json(gather(&state, move || ModelStatistics::of(&engine, &model)).await?))
}

/// Resets the statistics of a model.
#[utoipa::path(delete, path = "/v1/models/{name}/stats", tag = "models", operation_id = "resetModelStats",
    description = "Counts the window anew. What `/metrics` and `/v2` count since the start stays.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "All versions where absent."),
    ),
    responses((status = 204, description = "Reset.")))]
pub(in crate::http) async fn reset(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<StatusCode, ApiError> {
    match query.parse()? {
        Some(version) => state.engine.model_stats(&path.name, Some(version))?.reset(),
        None => {
            state.engine.status(&path.name)?;
            let all = state.engine.stats().all();
            all.iter().filter(|model| model.name() == path.name.as_str()).for_each(|model| model.reset());
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Gives the statistics of all models.
#[utoipa::path(get, path = "/v1/stats", tag = "models", operation_id = "getStats",
    responses((status = 200, description = "One entry for each version.", body = AllStatistics)))]
pub(in crate::http) async fn list(State(state): State<HttpState>) -> Result<Json<AllStatistics>, ApiError> {
    let engine = state.engine.clone();
    let models = gather(&state, move || {
        engine.stats().all().iter().map(|model| ModelStatistics::of(&engine, model)).collect::<Vec<_>>()
    });
    Ok(Json(AllStatistics { models: models.await? }))
}

/// Putting the slices of the window together takes some ten microseconds a model, and models may be many.
async fn gather<T: Send + 'static>(
    state: &HttpState,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let gathered = state.tasks.spawn_blocking(work).await;
    gathered.map_err(|error| ApiError::internal(format!("gathering statistics: {error}")))
}

impl ModelStatistics {
    fn of(engine: &InferenceEngine, model: &ModelStats) -> ModelStatistics {
        let summary = model.window();
        let loaded = engine.loaded_version(model.name(), model.version());
        let caches = loaded.map(|loaded| loaded.caches.usage()).unwrap_or_default();
        let stage = |stage: Stage| StageTime::from(summary.stage(stage));
        ModelStatistics {
            model: model.name().to_owned(),
            version: model.version().to_string(),
            predict_time: stage(Stage::Total),
            queue_time: stage(Stage::Queue),
            preprocess_time: stage(Stage::Preprocess),
            forward_time: stage(Stage::Inference),
            postprocess_time: stage(Stage::Postprocess),
            batch_size: BatchSizes::from(&summary.batches),
            error_counts: summary.errors.iter().map(|(code, count)| (code.to_string(), *count)).collect(),
            cancelled: Cancelled {
                disconnected: summary.cancelled(CancelReason::Disconnected),
                expired: summary.cancelled(CancelReason::Expired),
            },
            cache: Caches {
                response: CacheUse::of(&summary, CacheKind::Response, caches.responses),
                preprocess: CacheUse::of(&summary, CacheKind::Preprocess, caches.prepared),
            },
            window_s: engine.stats().window().as_secs_f64(),
            since: summary.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        }
    }
}

impl From<StageSummary> for StageTime {
    fn from(times: StageSummary) -> StageTime {
        let seconds = |time: Duration| (times.count > 0).then_some(time.as_secs_f64());
        StageTime {
            count: times.count,
            mean: seconds(times.mean),
            min: seconds(times.min),
            max: seconds(times.max),
            p50: seconds(times.p50),
            p95: seconds(times.p95),
            p99: seconds(times.p99),
        }
    }
}

impl From<&BTreeMap<u64, BatchTotals>> for BatchSizes {
    fn from(sizes: &BTreeMap<u64, BatchTotals>) -> BatchSizes {
        let (count, rows) = sizes.values().fold((0, 0), |(count, rows), runs| (count + runs.count, rows + runs.rows));
        BatchSizes {
            count,
            mean: (count > 0).then(|| rows as f64 / count as f64),
            histogram: sizes.iter().map(|(size, runs)| (*size, runs.count)).collect(),
        }
    }
}

impl CacheUse {
    fn of(summary: &WindowSummary, cache: CacheKind, usage: Option<CacheUsage>) -> CacheUse {
        let (misses, hits) = summary.cache(cache);
        let usage = usage.unwrap_or_default();
        CacheUse { hits, misses, entries: usage.entries as u64, bytes: usage.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_are_runs_by_rows() {
        let runs = |count, rows| BatchTotals { count, rows, ..BatchTotals::default() };
        let sizes = BTreeMap::from([(1, runs(2, 2)), (256, runs(1, 200))]);
        let expected = BatchSizes { count: 3, mean: Some(202.0 / 3.0), histogram: BTreeMap::from([(1, 2), (256, 1)]) };
        assert_eq!(BatchSizes::from(&sizes), expected);
        assert_eq!(BatchSizes::from(&BTreeMap::new()).mean, None);
    }

    #[test]
    fn without_a_request_there_is_no_time() {
        let json = serde_json::to_value(StageTime::from(StageSummary::default())).unwrap();
        assert_eq!(json["count"], 0);
        assert!(["mean", "min", "max", "p50", "p95", "p99"].iter().all(|key| json[key].is_null()), "{json}");
    }
}

//! Liveness, readiness and a short overview, for balancers and people. Never waits for a model.

use super::HttpState;
use crate::engine::{ModelState, ModelStatus};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// Tells that the process answers.
#[utoipa::path(get, path = "/livez", tag = "health", operation_id = "livez",
    responses((status = 200, description = "The process answers.", body = String, content_type = "text/plain", example = "ok")))]
pub(super) async fn livez() -> &'static str {
    "ok"
}

/// Tells whether a balancer may send requests.
#[utoipa::path(get, path = "/readyz", tag = "health", operation_id = "readyz",
    responses(
        (status = 200, description = "Requests may be sent. A line more for each model that runs on another device than it should.",
            body = String, content_type = "text/plain", example = "ok"),
        (status = 503, description = "Starting or stopping; see `Retry-After`. A line more for each model that the server was told to start with and does not serve yet.",
            body = String, content_type = "text/plain", example = "not ready\nmodel minilm: is being downloaded, 12 of 91 MB"),
    ))]
pub(super) async fn readyz(State(state): State<HttpState>) -> Response {
    if state.engine.is_ready() {
        let fallen_back = Degraded::all(&state.engine.models());
        let lines = fallen_back.iter().map(|model| {
            format!("\nmodel {} version {} runs on {}: {}", model.model, model.version, model.device, model.reason)
        });
        return std::iter::once("ok".to_owned()).chain(lines).collect::<String>().into_response();
    }
    let awaited = state.engine.awaited();
    let lines = awaited.iter().map(|(model, why)| format!("\nmodel {model}: {why}"));
    let text: String = std::iter::once("not ready".to_owned()).chain(lines).collect();
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, HeaderValue::from_static("1"))], text).into_response()
}

/// What the server is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `starting` or `stopping`.
    #[schema(example = "ok")]
    status: &'static str,
    models: ModelCounts,
    /// Models that answer, but on another device than they should or with less than their memory; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    degraded: Vec<Degraded>,
    /// Models that the server was told to start with and does not serve yet; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    awaited: Vec<AwaitedModel>,
}

/// A model that the server was told to start with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AwaitedModel {
    #[schema(example = "minilm")]
    model: String,
    /// Why it does not serve yet.
    #[schema(example = "is being downloaded, 12 of 91 MB")]
    reason: String,
}

/// A model that fell back, wholly or for some of its runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Degraded {
    #[schema(example = "resnet50")]
    model: String,
    #[schema(example = "1")]
    version: String,
    /// Where it runs.
    #[schema(example = "cpu")]
    device: String,
    /// Why it does not run where it should.
    #[schema(example = "CUDAExecutionProvider: the NVIDIA driver is not installed: libcuda.so.1 was not found")]
    reason: String,
}

impl Degraded {
    fn all(models: &[ModelStatus]) -> Vec<Degraded> {
        let loaded = models.iter().flat_map(|model| &model.versions).filter_map(|version| version.loaded.as_deref());
        let degraded = loaded.filter_map(|model| {
            let execution = model.execution();
            let reason = match (execution.is_fallback, model.handle.pressure()) {
                (true, _) => execution.problem(),
                (false, Some(pressure)) if pressure.on_reserve => {
                    "the device has no memory for some runs, or failed; they are made on the CPU".to_owned()
                }
                (false, Some(pressure)) => {
                    let rows = pressure.max_rows.unwrap_or_default();
                    format!("the device has memory for runs of {rows} rows and not for larger ones")
                }
                (false, None) => return None,
            };
            let (name, version, device) = (&model.name, &model.version, &model.facts.device);
            Some(Degraded { model: name.to_string(), version: version.to_string(), device: device.clone(), reason })
        });
        degraded.collect()
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelCounts {
    /// Models that answer predictions.
    #[schema(example = 2)]
    ready: usize,
    /// Models in the store.
    #[schema(example = 3)]
    total: usize,
    /// Models whose last load failed.
    #[schema(example = 0)]
    failed: usize,
}

/// Gives an overview; 503 where `/readyz` says so.
#[utoipa::path(get, path = "/healthz", tag = "health", operation_id = "healthz",
    responses(
        (status = 200, description = "The server takes requests.", body = Health),
        (status = 503, description = "Starting or stopping.", body = Health),
    ))]
pub(super) async fn healthz(State(state): State<HttpState>) -> Response {
    let models = state.engine.models();
    let count = |wanted: ModelState| models.iter().filter(|model| model.state == wanted).count();
    let status = match (state.tasks.stopping().is_cancelled(), state.engine.is_ready()) {
        (true, _) => "stopping",
        (false, true) => "ok",
        (false, false) => "starting",
    };
    let counts =
        ModelCounts { ready: count(ModelState::Ready), total: models.len(), failed: count(ModelState::Failed) };
    let code = if status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let awaited = state.engine.awaited();
    let awaited =
        awaited.into_iter().map(|(model, reason)| AwaitedModel { model: model.to_string(), reason }).collect();
    (code, Json(Health { status, models: counts, degraded: Degraded::all(&models), awaited })).into_response()
}

//! Liveness, readiness and a short overview, for balancers and people. Never waits for a model.

use super::HttpState;
use crate::engine::ModelState;
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
        (status = 200, description = "Requests may be sent.", body = String, content_type = "text/plain", example = "ok"),
        (status = 503, description = "Starting or stopping; see `Retry-After`.", body = String, content_type = "text/plain", example = "not ready"),
    ))]
pub(super) async fn readyz(State(state): State<HttpState>) -> Response {
    if state.engine.is_ready() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, HeaderValue::from_static("1"))], "not ready")
        .into_response()
}

/// What the server is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `starting` or `stopping`.
    #[schema(example = "ok")]
    status: &'static str,
    models: ModelCounts,
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
    (code, Json(Health { status, models: counts })).into_response()
}

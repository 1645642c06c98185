//! Health and metadata of the server. Never waits for a model.

use super::error::V2Error;
use crate::http::HttpState;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

/// What is served beyond the protocol's core, in Triton's words.
const EXTENSIONS: [&str; 7] = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
];

#[derive(Debug, Serialize)]
pub(super) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; EXTENSIONS.len()],
}

/// `GET /v2`
pub(super) async fn metadata() -> Json<ServerMetadata> {
    Json(ServerMetadata { name: "ortus", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS })
}

/// `GET /v2/health/live`
pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

/// `GET /v2/health/ready`: 400 while the server starts or stops, as Triton answers.
pub(super) async fn ready(State(state): State<HttpState>) -> Result<StatusCode, V2Error> {
    if state.engine.is_ready() {
        return Ok(StatusCode::OK);
    }
    Err(V2Error::invalid("not_ready", "the server is starting or stopping"))
}

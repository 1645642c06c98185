//! Health and metadata of the server. Never waits for a model.

use super::error::V2Error;
use crate::http::HttpState;
use crate::protocol::{EXTENSIONS, SERVER_NAME, SERVER_VERSION};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; EXTENSIONS.len()],
}

/// `GET /v2`
pub(super) async fn metadata() -> Json<ServerMetadata> {
    Json(ServerMetadata { name: SERVER_NAME, version: SERVER_VERSION, extensions: EXTENSIONS })
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

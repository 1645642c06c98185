//! Health and metadata of the server. Never waits for a model.

use super::error::V2Error;
use crate::http::HttpState;
use crate::protocol::{EXTENSIONS, SERVER_NAME, SERVER_VERSION};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

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

/// `GET /v2/health/live`: the body is the protocol's, which KServe's client reads; Triton's look at the status alone.
pub(super) async fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

/// `GET /v2/health/ready`: 400 while the server starts or stops, as Triton answers.
pub(super) async fn ready(State(state): State<HttpState>) -> Result<Json<Value>, V2Error> {
    if state.engine.is_ready() {
        return Ok(Json(json!({"ready": true})));
    }
    Err(V2Error::invalid("not_ready", "the server is starting or stopping"))
}

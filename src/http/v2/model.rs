//! Metadata, readiness and configuration of one model.

use super::error::V2Error;
use crate::http::HttpState;
use crate::http::extract::ModelPath;
use crate::protocol::{self, ModelMetadata};
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

/// `GET /v2/models/{name}[/versions/{version}]`
pub(super) async fn metadata(State(state): State<HttpState>, path: ModelPath) -> Result<Json<ModelMetadata>, V2Error> {
    let model = state.engine.model(&path.name, path.version).await?;
    let status = state.engine.status(&path.name)?;
    Ok(Json(protocol::metadata(&model, &status)))
}

/// `GET /v2/models/{name}[/versions/{version}]/ready`: 400 where it is not, as Triton answers. Loads nothing.
pub(super) async fn ready(State(state): State<HttpState>, path: ModelPath) -> Result<Json<Value>, V2Error> {
    let status = state.engine.status(&path.name)?;
    if protocol::is_ready(&status, path.version) {
        return Ok(Json(json!({"name": path.name.as_str(), "ready": true})));
    }
    let what = match path.version {
        Some(version) => format!("version {version} of model '{}'", path.name),
        None => format!("model '{}'", path.name),
    };
    Err(V2Error::invalid("model_not_ready", format!("{what} is not ready")))
}

/// `GET /v2/models/{name}[/versions/{version}]/config`
pub(super) async fn config(State(state): State<HttpState>, path: ModelPath) -> Result<Json<Value>, V2Error> {
    let model = state.engine.model(&path.name, path.version).await?;
    Ok(Json(model.config_json.clone()))
}

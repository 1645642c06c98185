//! The statistics extension.

use super::error::V2Error;
use crate::http::HttpState;
use crate::http::extract::ModelPath;
use crate::protocol::{ModelStatistics, statistics};
use axum::Json;
use axum::extract::State;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Statistics {
    model_stats: Vec<ModelStatistics>,
}

/// `GET /v2/models/stats`: all models.
pub(super) async fn all(State(state): State<HttpState>) -> Result<Json<Statistics>, V2Error> {
    Ok(Json(Statistics { model_stats: statistics(&state.engine, None, None)? }))
}

/// `GET /v2/models/{name}[/versions/{version}]/stats`: all versions of the model, or the one.
pub(super) async fn model(State(state): State<HttpState>, path: ModelPath) -> Result<Json<Statistics>, V2Error> {
    Ok(Json(Statistics { model_stats: statistics(&state.engine, Some(&path.name), path.version)? }))
}

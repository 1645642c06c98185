//! The Open Inference Protocol V2 over REST, with Triton's extensions: binary tensor data, classification, model
//! repository, model configuration, statistics, parameters.
//!
//! Handlers of three steps: parse, call, encode; the forms of bodies are in `codec::json`. Errors are `{"error": text}`
//! with Triton's statuses (`error`). Knows the engine and nothing below it.

pub(in crate::http) mod error;
mod frames;
pub(in crate::http) mod infer;
mod model;
mod repository;
mod server;
mod stats;

use crate::http::HttpState;
use axum::Router;
use axum::routing::{get, post};

/// The protocol's routes.
pub(super) fn router() -> Router<HttpState> {
    Router::new()
        .route("/v2", get(server::metadata))
        .route("/v2/health/live", get(server::live))
        .route("/v2/health/ready", get(server::ready))
        .route("/v2/models/{name}", get(model::metadata))
        .route("/v2/models/{name}/versions/{version}", get(model::metadata))
        .route("/v2/models/{name}/ready", get(model::ready))
        .route("/v2/models/{name}/versions/{version}/ready", get(model::ready))
        .route("/v2/models/{name}/config", get(model::config))
        .route("/v2/models/{name}/versions/{version}/config", get(model::config))
        // A model of the name `stats` is described under its version.
        .route("/v2/models/stats", get(stats::all))
        .route("/v2/models/{name}/stats", get(stats::model))
        .route("/v2/models/{name}/versions/{version}/stats", get(stats::model))
        .route("/v2/models/{name}/infer", post(infer::infer))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer::infer))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/models/{name}/load", post(repository::load))
        .route("/v2/repository/models/{name}/unload", post(repository::unload))
        // There is one store, whatever a client calls it.
        .route("/v2/repository/{repository}/index", post(repository::index))
        .route("/v2/repository/{repository}/models/{name}/load", post(repository::load))
        .route("/v2/repository/{repository}/models/{name}/unload", post(repository::unload))
}

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

use crate::http::access::Routes;
use axum::routing::{get, post};

/// The protocol's routes.
pub(super) fn router() -> Routes {
    Routes::default()
        .infer("/v2", get(server::metadata))
        .open("/v2/health/live", get(server::live))
        .open("/v2/health/ready", get(server::ready))
        .infer("/v2/models/{name}", get(model::metadata))
        .infer("/v2/models/{name}/versions/{version}", get(model::metadata))
        .infer("/v2/models/{name}/ready", get(model::ready))
        .infer("/v2/models/{name}/versions/{version}/ready", get(model::ready))
        .infer("/v2/models/{name}/config", get(model::config))
        .infer("/v2/models/{name}/versions/{version}/config", get(model::config))
        // A model of the name `stats` is described under its version.
        .infer("/v2/models/stats", get(stats::all))
        .infer("/v2/models/{name}/stats", get(stats::model))
        .infer("/v2/models/{name}/versions/{version}/stats", get(stats::model))
        .infer("/v2/models/{name}/infer", post(infer::infer))
        .infer("/v2/models/{name}/versions/{version}/infer", post(infer::infer))
        .infer("/v2/repository/index", post(repository::index))
        .manage("/v2/repository/models/{name}/load", post(repository::load))
        .manage("/v2/repository/models/{name}/unload", post(repository::unload))
        // There is one store, whatever a client calls it.
        .infer("/v2/repository/{repository}/index", post(repository::index))
        .manage("/v2/repository/{repository}/models/{name}/load", post(repository::load))
        .manage("/v2/repository/{repository}/models/{name}/unload", post(repository::unload))
}

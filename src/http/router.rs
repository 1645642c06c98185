//! The route table. What happens around every route is in `middleware`.

use super::dashboard::Dashboard;
use super::error::ApiError;
use super::middleware::Around;
use super::{HttpState, dialects, health, metrics, middleware, openapi, v1, v2};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use std::sync::Arc;

/// All routes with what stands around them, and the pages among them.
pub(super) fn router(state: HttpState, around: Arc<Around>) -> (Router, Dashboard) {
    let dashboard = Dashboard::new(api().layer(DefaultBodyLimit::disable()), &state);
    let routes = api()
        .merge(dashboard.routes())
        .route("/openapi.json", get(openapi::json))
        .route("/openapi.yaml", get(openapi::yaml))
        .merge(openapi::docs())
        .merge(v2::router())
        .fallback(not_found)
        // `body::read` bounds bodies; axum's own limit would refuse what the settings allow.
        .layer(DefaultBodyLimit::disable());
    (middleware::wrap(routes, around).with_state(state), dashboard)
}

/// The native API with what other servers' clients call.
fn api() -> Router<HttpState> {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/healthz", get(health::healthz))
        .route("/v1/models", get(v1::models::list).post(v1::downloads::create))
        .route("/v1/models/{name}", get(v1::models::show).delete(v1::models::delete))
        .route("/v1/models/{name}/versions", post(v1::downloads::create_version))
        .route("/v1/models/{name}/versions/{version}", delete(v1::models::delete_version))
        .route("/v1/models/{name}/rollback", post(v1::models::roll_back))
        .route("/v1/downloads", get(v1::downloads::list))
        .route("/v1/downloads/{id}", get(v1::downloads::show).delete(v1::downloads::delete))
        .route("/v1/downloads/{id}/events", get(v1::downloads::events))
        .route("/v1/models/{name}/load", post(v1::models::load))
        .route("/v1/models/{name}/unload", post(v1::models::unload))
        .route("/v1/models/{name}/memory", get(v1::models::memory))
        .route("/v1/models/{name}/profile", get(v1::profile::show).post(v1::profile::profile))
        .route("/v1/models/{name}/warmup", post(v1::warmup::warm_up))
        .route("/v1/models/{name}/optimize", post(v1::optimize::optimize))
        .route("/v1/models/{name}/cleanup", post(v1::models::cleanup))
        .route("/v1/cleanup", post(v1::models::cleanup_all))
        .route("/v1/models/{name}/predict", post(v1::predict::predict))
        .route("/v1/models/{name}/versions/{version}/predict", post(v1::predict::predict))
        .route("/v1/embeddings", post(dialects::openai::embeddings))
        .route("/embed", post(dialects::tei::embed))
        .route("/embed_all", post(dialects::tei::embed_all))
        .route("/rerank", post(dialects::tei::rerank))
        .route("/v1/models/{name}/stats", get(v1::stats::show).delete(v1::stats::reset))
        .route("/v1/stats", get(v1::stats::list))
        .route("/metrics", get(metrics::serve))
        .route("/v1/models/{name}/jobs", post(v1::jobs::create))
        .route("/v1/jobs", get(v1::jobs::list))
        .route("/v1/jobs/{id}", get(v1::jobs::show).delete(v1::jobs::delete))
        .route("/v1/jobs/{id}/result", get(v1::jobs::result))
        .route("/v1/jobs/{id}/events", get(v1::jobs::events))
        .route("/v1/system", get(v1::system::system))
}

async fn not_found() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "route_not_found",
        "there is no such path; GET /openapi.json lists all of them",
    )
}

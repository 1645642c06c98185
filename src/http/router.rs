//! The route table: each route with the role that it needs. What happens around every route is in `middleware`.

use super::access::{NeedsTable, Routes};
use super::dashboard::Dashboard;
use super::dialects::torchserve;
use super::error::ApiError;
use super::{HttpState, dialects, health, metrics, openapi, v1, v2};
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::routing::{MethodRouter, delete, get, post, put};
use futures_util::FutureExt;
use std::collections::HashMap;
use tower::ServiceExt;

/// All routes, and the pages among them.
pub(super) fn routes(state: &HttpState) -> (Routes, Dashboard) {
    let dashboard = Dashboard::new(api().around(|api| api.layer(DefaultBodyLimit::disable())).into_parts().0, state);
    // `body::read` bounds bodies; axum's own limit would refuse what the settings allow.
    let around = |routes: Router<HttpState>| routes.fallback(not_found).layer(DefaultBodyLimit::disable());
    (described().merge(dashboard.routes()).around(around), dashboard)
}

/// The methods that each of the routes takes, by its template: as the table itself names them to who asks for one that nobody has.
pub(super) fn methods(routes: &Router, needs: &NeedsTable) -> HashMap<&'static str, HeaderValue> {
    let allowed = |route: &str| {
        let parts = route.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        let request = Request::builder().method(Method::TRACE).uri(path).body(Body::empty()).ok()?;
        // No handler is called, so there is nothing to wait for.
        let Ok(answer) = routes.clone().oneshot(request).now_or_never()?;
        answer.headers().get(header::ALLOW).cloned()
    };
    needs.keys().filter_map(|route| Some((*route, allowed(route)?))).collect()
}

/// The routes that the OpenAPI document describes.
pub(super) fn described() -> Routes {
    api()
        .infer("/openapi.json", get(openapi::json))
        .infer("/openapi.yaml", get(openapi::yaml))
        .foreign(&["/docs", "/docs/", "/docs/{*rest}"], openapi::docs())
        .merge(v2::router())
}

/// The native API with what other servers' clients call.
fn api() -> Routes {
    Routes::default()
        .open("/livez", get(health::livez))
        .open("/readyz", get(health::readyz))
        .open("/healthz", get(health::healthz))
        .manage("/v1/models", get(v1::models::list).post(v1::downloads::create))
        .manage("/v1/models/{name}", get(v1::models::show).delete(v1::models::delete))
        .manage("/v1/models/{name}/versions", post(v1::downloads::create_version))
        .manage("/v1/models/{name}/versions/{version}", delete(v1::models::delete_version))
        .manage("/v1/models/{name}/rollback", post(v1::models::roll_back))
        .infer("/v1/downloads", get(v1::downloads::list))
        .manage("/v1/downloads/{id}", get(v1::downloads::show).delete(v1::downloads::delete))
        .infer("/v1/downloads/{id}/events", get(v1::downloads::events))
        .manage("/v1/models/{name}/load", post(v1::models::load))
        .manage("/v1/models/{name}/unload", post(v1::models::unload))
        .infer("/v1/models/{name}/files", get(v1::models::files))
        .infer("/v1/models/{name}/memory", get(v1::models::memory))
        .manage("/v1/models/{name}/profile", get(v1::profile::show).post(v1::profile::profile))
        .manage("/v1/models/{name}/warmup", post(v1::warmup::warm_up))
        .manage("/v1/models/{name}/optimize", post(v1::optimize::optimize))
        .manage("/v1/models/{name}/cleanup", post(v1::models::cleanup))
        .manage("/v1/cleanup", post(v1::models::cleanup_all))
        .infer("/v1/models/{name}/predict", post(v1::predict::predict))
        .infer("/v1/models/{name}/versions/{version}/predict", post(v1::predict::predict))
        .infer("/v1/embeddings", post(dialects::openai::embeddings))
        .infer("/embed", post(dialects::tei::embed))
        .infer("/embed_all", post(dialects::tei::embed_all))
        .infer("/rerank", post(dialects::tei::rerank))
        .infer("/v1/models/{name}/instances", post(dialects::kserve::predict))
        .open("/ping", get(torchserve::ping))
        .infer("/predictions/{name}", post(torchserve::predict::predictions).put(torchserve::predict::predictions))
        .infer(
            "/predictions/{name}/{version}",
            post(torchserve::predict::predictions).put(torchserve::predict::predictions),
        )
        .infer("/explanations/{name}", post(torchserve::predict::explanations))
        .manage("/models", get(torchserve::manage::list).post(torchserve::manage::register))
        .manage("/models/{name}", one_of_torchserve())
        .manage("/models/{name}/{version}", one_of_torchserve())
        .manage("/models/{name}/{version}/set-default", put(torchserve::manage::set_default))
        .manage("/v1/models/{name}/stats", get(v1::stats::show).delete(v1::stats::reset))
        .infer("/v1/stats", get(v1::stats::list))
        .infer("/metrics", get(metrics::serve))
        .infer("/v1/models/{name}/jobs", post(v1::jobs::create))
        .infer("/v1/jobs", get(v1::jobs::list))
        .own("/v1/jobs/{id}", get(v1::jobs::show).delete(v1::jobs::delete))
        .infer("/v1/jobs/{id}/result", get(v1::jobs::result))
        .infer("/v1/jobs/{id}/events", get(v1::jobs::events))
        .infer("/v1/system", get(v1::system::system))
}

/// A model as TorchServe's management has it, or one version of it.
fn one_of_torchserve() -> MethodRouter<HttpState> {
    get(torchserve::manage::describe).put(torchserve::manage::scale).delete(torchserve::manage::unregister)
}

async fn not_found() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "route_not_found",
        "there is no such path; GET /openapi.json lists all of them",
    )
}

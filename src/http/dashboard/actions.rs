//! What the forms do: one call of the API each, then back to a page that says what was done, or why not.

use super::api::Refusal;
use super::frame::{Frame, Visitor, back_to};
use super::values::text;
use crate::engine::ModelName;
use crate::http::extract::{DownloadPath, JobPath, ModelPath};
use crate::telemetry::set_log_level;
use axum::Form;
use axum::extract::{RawPathParams, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::json;

/// To a page of ours, with a word about what was done.
pub(super) fn done(page: &str, word: &str) -> Response {
    Redirect::to(&format!("{page}?done={word}")).into_response()
}

fn ended<T>(visitor: &Visitor, result: Result<T, Refusal>, page: &str, word: &str) -> Response {
    match result {
        Ok(_) => done(page, word),
        Err(refusal) => visitor.refused(&refusal),
    }
}

fn page_of(name: &ModelName) -> String {
    format!("/ui/models/{name}")
}

/// The actions of a model that take nothing.
pub(super) async fn act(visitor: Visitor, path: ModelPath, parameters: RawPathParams) -> Response {
    let action = parameters.iter().find(|(key, _)| *key == "action").map_or("", |(_, value)| value);
    let name = &path.name;
    let (method, call, body) = match action {
        "load" | "unload" | "cleanup" => (Method::POST, format!("/v1/models/{name}/{action}"), None),
        "rollback" => (Method::POST, format!("/v1/models/{name}/rollback"), Some(json!({}))),
        "warmup" => (Method::POST, format!("/v1/models/{name}/warmup"), Some(json!({"iterations": 3}))),
        "reset" => (Method::DELETE, format!("/v1/models/{name}/stats"), None),
        _ => {
            let detail = "there is no such action".to_owned();
            return visitor.refused(&Refusal { status: StatusCode::NOT_FOUND, detail });
        }
    };
    let result = visitor.dashboard.api.send(method, &call, body).await;
    ended(&visitor, result, &page_of(name), action)
}

#[derive(Debug, Deserialize)]
pub(super) struct OptimizeForm {
    max_drift: String,
    adopt: String,
    /// Of the one variant to make; all that suit where absent.
    precision: Option<String>,
}

/// It takes minutes, so it is a job.
pub(super) async fn optimize(visitor: Visitor, path: ModelPath, Form(form): Form<OptimizeForm>) -> Response {
    let Ok(max_drift) = form.max_drift.trim().parse::<f64>() else {
        let detail = "the drift that is allowed is a number from 0 to 2, such as 0.01".to_owned();
        return visitor.refused(&Refusal { status: StatusCode::BAD_REQUEST, detail });
    };
    let body = json!({"adopt": form.adopt == "yes", "max_drift": max_drift, "precision": form.precision});
    let call = format!("/v1/models/{}/optimize", path.name);
    match visitor.dashboard.api.send(Method::POST, &call, Some(body)).await {
        Ok(answer) => match text(&answer.body, "/id") {
            Some(id) => done(&format!("/ui/jobs/{id}"), "optimize"),
            None => done("/ui/jobs", "optimize"),
        },
        Err(refusal) => visitor.refused(&refusal),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct VersionForm {
    #[serde(default)]
    version: Option<String>,
}

impl VersionForm {
    fn number(&self) -> Option<u64> {
        self.version.as_deref()?.parse().ok()
    }
}

pub(super) async fn choose(visitor: Visitor, path: ModelPath, Form(form): Form<VersionForm>) -> Response {
    let body = json!({"version": form.number().map(|number| number.to_string())});
    let call = format!("/v1/models/{}/rollback", path.name);
    let result = visitor.dashboard.api.send(Method::POST, &call, Some(body)).await;
    ended(&visitor, result, &page_of(&path.name), "choose")
}

pub(super) async fn delete(visitor: Visitor, path: ModelPath, Form(form): Form<VersionForm>) -> Response {
    let call = match (&form.version, form.number()) {
        (None, _) => format!("/v1/models/{}", path.name),
        (Some(_), Some(version)) => format!("/v1/models/{}/versions/{version}", path.name),
        (Some(_), None) => {
            let detail = "a version is a number".to_owned();
            return visitor.refused(&Refusal { status: StatusCode::BAD_REQUEST, detail });
        }
    };
    let result = visitor.dashboard.api.send(Method::DELETE, &call, None).await;
    ended(&visitor, result, "/ui/models", "delete")
}

/// Hands the form on as it comes: it may be larger than memory.
pub(super) async fn upload(visitor: Visitor, path: ModelPath, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let uri = format!("/v1/models/{}/versions", path.name).parse();
    let Ok(uri) = uri else { return StatusCode::NOT_FOUND.into_response() };
    parts.uri = uri;
    let result = visitor.dashboard.api.pass(Request::from_parts(parts, body)).await;
    ended(&visitor, result, &page_of(&path.name), "upload")
}

pub(super) async fn cancel_job(visitor: Visitor, JobPath(id): JobPath) -> Response {
    let result = visitor.dashboard.api.send(Method::DELETE, &format!("/v1/jobs/{id}"), None).await;
    ended(&visitor, result, "/ui/jobs", "cancel")
}

pub(super) async fn cancel_download(visitor: Visitor, DownloadPath(id): DownloadPath) -> Response {
    let result = visitor.dashboard.api.send(Method::DELETE, &format!("/v1/downloads/{id}"), None).await;
    ended(&visitor, result, "/ui/jobs", "cancel")
}

pub(super) async fn clean_up(visitor: Visitor) -> Response {
    let result = visitor.dashboard.api.send(Method::POST, "/v1/cleanup", None).await;
    ended(&visitor, result, "/ui/system", "cleanup")
}

#[derive(Debug, Deserialize)]
pub(super) struct LevelForm {
    level: String,
}

pub(super) async fn log_level(visitor: Visitor, Form(form): Form<LevelForm>) -> Response {
    match set_log_level(&form.level) {
        Ok(()) => {
            tracing::warn!(level = form.level, "the log's level was changed");
            done("/ui/system", "log-level")
        }
        Err(error) => visitor.refused(&Refusal { status: StatusCode::BAD_REQUEST, detail: error.to_string() }),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ThemeForm {
    theme: String,
    back: String,
}

pub(super) async fn theme(visitor: Visitor, headers: HeaderMap, Form(form): Form<ThemeForm>) -> Response {
    let theme = Frame::THEMES.into_iter().find(|theme| *theme == form.theme).unwrap_or("auto");
    let secure = if visitor.is_encrypted(&headers) { "; Secure" } else { "" };
    let cookie = format!("theme={theme}; Path=/; Max-Age=31536000; SameSite=Strict; HttpOnly{secure}");
    let mut response = Redirect::to(&back_to(&form.back)).into_response();
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

//! TorchServe's routes, inference and management on the one port: `predict` (predictions), `manage` (models); `body` reads what
//! its clients send, `answer` writes what its default handlers give. `super::kserve` is the same under KServe's V1 path.
//!
//! A model's workers are its instances here, and a model archive (`.mar`) is never opened: it is Python that would be run.

pub(super) mod answer;
pub(super) mod body;
pub(in crate::http) mod manage;
pub(in crate::http) mod predict;

use crate::engine::{ModelName, Version};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::extract::{no_such_model, no_such_version};
use axum::Json;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The paths whose errors are written as TorchServe does.
pub(in crate::http) fn is_torchserve(path: &str) -> bool {
    path == "/models" || ["/models/", "/predictions/", "/explanations/"].iter().any(|start| path.starts_with(start))
}

/// TorchServe's word for an error.
pub(in crate::http) fn type_of(status: StatusCode, code: &str) -> &'static str {
    match (status.as_u16(), code) {
        (401 | 403, _) => "InvalidKeyException",
        (404, "model_not_found") => "ModelNotFoundException",
        (404, "version_not_found" | "model_version_not_found") => "ModelVersionNotFoundException",
        (404, _) => "ResourceNotFoundException",
        (405, _) => "MethodNotAllowedException",
        (409, _) => "ConflictStatusException",
        (400, "download_failed") => "DownloadArchiveException",
        (501, _) => "NotImplementedException",
        (503, _) => "ServiceUnavailableException",
        (500.., _) => "InternalServerException",
        _ => "BadRequestException",
    }
}

/// An answer that says what became of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TorchserveStatus)]
pub(in crate::http) struct StatusBody {
    #[schema(example = "Healthy")]
    pub(super) status: String,
}

impl StatusBody {
    pub(super) fn new(status: impl Into<String>) -> Json<StatusBody> {
        Json(StatusBody { status: status.into() })
    }
}

/// Body of an error answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TorchserveError<'a> {
    /// The status.
    #[schema(example = 404)]
    pub(in crate::http) code: u16,
    #[serde(rename = "type")]
    #[schema(example = "ModelNotFoundException")]
    pub(in crate::http) kind: &'a str,
    #[schema(example = "there is no model 'resnet'")]
    pub(in crate::http) message: &'a str,
}

/// The `{name}` of the path and its `{version}`, where the route has one.
#[derive(Debug, Clone)]
pub(in crate::http) struct TorchservePath {
    pub(super) name: ModelName,
    pub(super) version: Option<Version>,
    /// `all` stands in place of a version.
    pub(super) all: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for TorchservePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<TorchservePath, ApiError> {
        let parameters = RawPathParams::from_request_parts(parts, state).await.map_err(|_| no_such_model())?;
        let value = |key: &str| parameters.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        let name = value("name").and_then(|name| ModelName::parse(name).ok()).ok_or_else(no_such_model)?;
        match value("version") {
            None => Ok(TorchservePath { name, version: None, all: false }),
            Some("all") => Ok(TorchservePath { name, version: None, all: true }),
            Some(text) => {
                // Archives are of version 1.0 where nobody said otherwise.
                let version = Version::parse(text.strip_suffix(".0").unwrap_or(text)).ok_or_else(no_such_version)?;
                Ok(TorchservePath { name, version: Some(version), all: false })
            }
        }
    }
}

impl TorchservePath {
    /// # Errors
    /// Where `all` stands in place of a version, which only looking takes.
    pub(super) fn one(self) -> Result<(ModelName, Option<Version>), ApiError> {
        if self.all { Err(no_such_version()) } else { Ok((self.name, self.version)) }
    }
}

/// Tells whether requests may be sent.
#[utoipa::path(get, path = "/ping", tag = "torchserve", operation_id = "ping",
    responses(
        (status = 200, description = "As `/readyz`.", body = StatusBody),
        (status = 503, description = "Starting or stopping.", body = StatusBody),
    ))]
pub(in crate::http) async fn ping(State(state): State<HttpState>) -> Response {
    match state.engine.is_ready() {
        true => StatusBody::new("Healthy").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, StatusBody::new("Unhealthy")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_word_of_its_kind() {
        for (status, code, word) in [
            (404, "model_not_found", "ModelNotFoundException"),
            (404, "route_not_found", "ResourceNotFoundException"),
            (409, "conflict", "ConflictStatusException"),
            (422, "invalid_input", "BadRequestException"),
            (503, "queue_full", "ServiceUnavailableException"),
            (507, "out_of_memory", "InternalServerException"),
        ] {
            assert_eq!(type_of(StatusCode::from_u16(status).unwrap(), code), word, "{status} {code}");
        }
    }
}

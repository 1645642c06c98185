//! The error table: what went wrong, as a status, a stable code and a text.
//!
//! Native routes answer `application/problem+json` (RFC 9457), `/v2` its own `{"error": …}`. An [`ApiError`] carries no
//! body: `middleware::observe` writes it, for only there the request's id and path are known. Detail of faults of ours
//! goes to the log, never to a client.

// A new kind of error must be placed in every table.
#![deny(clippy::wildcard_enum_match_arm)]

use super::body::BodyError;
use super::dialects;
use super::dialects::torchserve::{self, TorchserveError};
use crate::codec::CodecError;
use crate::engine::{EngineError, ErrorKind};
use crate::jobs::JobError;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::borrow::Cow;
use std::time::Duration;
use utoipa::ToSchema;

/// `499`: the client closed the connection before the answer. Only the log sees it.
pub(super) const CLIENT_CLOSED: u16 = 499;

/// An answer other than success.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError(Box<Problem>);

/// What the body of an error answer says, before the request's id and path are known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Stable, snake_case.
    pub(super) code: Cow<'static, str>,
    pub(super) detail: String,
    pub(super) errors: Vec<FieldProblem>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log only.
    pub(super) internal: Option<String>,
}

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct FieldProblem {
    /// Where in the request.
    #[schema(example = "inputs.pixel_values")]
    pub(super) field: String,
    #[schema(example = "expected shape [N, 3, 224, 224], got [3, 224, 224]")]
    pub(super) problem: String,
}

/// Body of an error answer, after RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody<'a> {
    /// A name for the kind of error, `urn:ortus:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:ortus:problem:model_not_found")]
    pub(super) kind: String,
    /// The status in words.
    #[schema(example = "Not Found")]
    pub(super) title: &'a str,
    #[schema(example = 404)]
    pub(super) status: u16,
    /// What was expected, what came and what to do.
    #[schema(example = "there is no model 'resnet'; did you mean 'resnet50'?")]
    pub(super) detail: &'a str,
    /// The path of the request.
    #[schema(example = "/v1/models/resnet/predict")]
    pub(super) instance: &'a str,
    /// Stable: programs compare this word.
    #[schema(example = "model_not_found")]
    pub(super) code: &'a str,
    /// The same as in the header `X-Request-Id` and in the server's log.
    #[schema(example = "6b1c0e6e-4d0c-4a6e-9d0f-0b1d3e0f8a55")]
    pub(super) request_id: &'a str,
    #[serde(skip_serializing_if = "<[FieldProblem]>::is_empty")]
    pub(super) errors: &'a [FieldProblem],
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> ApiError {
        ApiError(Box::new(Problem {
            status,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            errors: Vec::new(),
            headers: Vec::new(),
            internal: None,
        }))
    }

    /// A fault of ours: the client learns nothing but that.
    pub(super) fn internal(detail: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the server failed on this request; its log has the reason under the request id",
        );
        error.0.internal = Some(detail.into());
        error
    }

    /// Well-formed, but one field is not what the model takes.
    pub(super) fn field(field: impl Into<String>, problem: impl Into<String>) -> ApiError {
        let (field, problem) = (field.into(), problem.into());
        let mut error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_input", format!("{field}: {problem}"));
        error.0.errors.push(FieldProblem { field, problem });
        error
    }

    pub(super) fn unsupported_media(detail: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.0.headers.push((name, value));
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    pub(super) fn code(&self) -> &str {
        &self.0.code
    }

    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// For [`render`].
    pub(super) fn problem(&self) -> &Problem {
        &self.0
    }

    /// What only the log may see.
    pub(super) fn internal_detail(&self) -> Option<&str> {
        self.0.internal.as_deref()
    }
}

/// The status of each kind of error, for all dialects of this door.
pub(super) fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidInput => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Overloaded | ErrorKind::NotReady | ErrorKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        // Only where the server itself gave up: a client that is gone reads no status.
        ErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whole seconds, at least 1.
pub(super) fn retry_after(delay: Duration) -> HeaderValue {
    HeaderValue::from(delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)).max(1))
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        let kind = error.kind();
        let status = status_of(kind);
        if kind == ErrorKind::Internal {
            return ApiError::internal(error.internal_detail());
        }
        let mut answer = ApiError::new(status, error.code(), error.to_string());
        answer.0.errors = error
            .fields()
            .into_iter()
            .map(|field| FieldProblem { field: field.field, problem: field.problem })
            .collect();
        // 503 always says when to come back: a balancer may try another replica at once.
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let delay = error.retry_after().unwrap_or(Duration::from_secs(1));
            answer = answer.with_header(header::RETRY_AFTER, retry_after(delay));
        }
        answer
    }
}

impl From<CodecError> for ApiError {
    fn from(error: CodecError) -> ApiError {
        let detail = error.to_string();
        match error {
            CodecError::Malformed(_) => ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", detail),
            CodecError::Unprocessable { field, problem } => ApiError::field(field, problem),
            CodecError::TooLarge(_) => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail),
            CodecError::UnsupportedMedia(_) => ApiError::unsupported_media(detail),
        }
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> ApiError {
        let (status, code) = match error {
            BodyError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            BodyError::NoRoom(_) => {
                return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", error.to_string())
                    .with_header(header::RETRY_AFTER, retry_after(Duration::from_secs(1)));
            }
            BodyError::TooSlow | BodyError::Dripping { .. } => (StatusCode::REQUEST_TIMEOUT, "body_too_slow"),
            BodyError::Incomplete => (StatusCode::BAD_REQUEST, "body_incomplete"),
            BodyError::Encoding => (StatusCode::BAD_REQUEST, "malformed_encoding"),
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> ApiError {
        let soon = |delay| (header::RETRY_AFTER, retry_after(delay));
        let (status, code, retry) = match &error {
            JobError::NotFound => (StatusCode::NOT_FOUND, "job_not_found", None),
            JobError::TooMany { retry_after, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "queue_full", Some(soon(*retry_after)))
            }
            JobError::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, "job_storage_full", None),
            JobError::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk_full", None),
            JobError::Unavailable { .. } => (StatusCode::INSUFFICIENT_STORAGE, "job_storage_unavailable", None),
            JobError::Stopping => {
                (StatusCode::SERVICE_UNAVAILABLE, "shutting_down", Some(soon(Duration::from_secs(1))))
            }
            JobError::NotFinished { .. } => {
                (StatusCode::CONFLICT, "job_not_finished", Some(soon(Duration::from_secs(1))))
            }
            JobError::Cancelled => (StatusCode::CONFLICT, "job_cancelled", None),
            JobError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", None),
            JobError::Crashed { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "job_crashed", None),
            JobError::Internal { detail } => return ApiError::internal(detail.clone()),
        };
        let mut answer = ApiError::new(status, code, error.to_string());
        answer.0.headers.extend(retry);
        if let JobError::Unavailable { detail } = error {
            answer.0.internal = Some(detail);
        }
        answer
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.headers_mut().extend(self.0.headers.iter().cloned());
        response.extensions_mut().insert(*self.0);
        response
    }
}

/// What an empty error answer of a layer below (a 405 of the router, a 415 of the decompression) means in words.
pub(super) fn problem_of_status(status: StatusCode, headers: &HeaderMap) -> Problem {
    let (code, detail): (&'static str, String) = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            let allowed = headers.get(header::ALLOW).and_then(|value| value.to_str().ok());
            let allowed = allowed.map_or("the methods of the header Allow".to_owned(), |list| list.replace(',', ", "));
            ("method_not_allowed", format!("this path takes {allowed} only"))
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE if headers.contains_key(header::ACCEPT_ENCODING) => (
            "unsupported_content_encoding",
            "Content-Encoding may be gzip, deflate or identity, one of them".to_owned(),
        ),
        _ if status.is_server_error() => ("internal_error", "the server failed on this request".to_owned()),
        _ => ("bad_request", "the request cannot be served as it is".to_owned()),
    };
    Problem { status, code: Cow::Borrowed(code), detail, errors: Vec::new(), headers: Vec::new(), internal: None }
}

/// The body of `problem` for the request at `path`: its media type and bytes.
pub(super) fn render(problem: &Problem, path: &str, request_id: &str) -> (&'static str, Vec<u8>) {
    // The path is foreign text of up to 64 KiB: an answer needs no more than this of it.
    let instance = path.get(..256).unwrap_or(if path.len() > 256 { "" } else { path });
    if is_v2(path) {
        let body = serde_json::json!({ "error": problem.detail });
        return ("application/json", body.to_string().into_bytes());
    }
    if dialects::is_openai(path) {
        let kind = if problem.status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let param = problem.errors.first().map(|error| &error.field);
        let body = serde_json::json!({
            "error": { "message": problem.detail, "type": kind, "param": param, "code": problem.code }
        });
        return ("application/json", body.to_string().into_bytes());
    }
    if dialects::is_tei(path) {
        let body = serde_json::json!({ "error": problem.detail, "error_type": tei_type(problem.status) });
        return ("application/json", body.to_string().into_bytes());
    }
    if dialects::is_kserve(path) {
        let body = serde_json::json!({ "error": problem.detail });
        return ("application/json", body.to_string().into_bytes());
    }
    if dialects::is_torchserve(path) {
        let (code, kind) = (problem.status.as_u16(), torchserve::type_of(problem.status, &problem.code));
        let body = TorchserveError { code, kind, message: &problem.detail };
        return ("application/json", serde_json::to_vec(&body).unwrap_or_default());
    }
    let body = ProblemBody {
        kind: format!("urn:ortus:problem:{}", problem.code),
        title: problem.status.canonical_reason().unwrap_or("Error"),
        status: problem.status.as_u16(),
        detail: &problem.detail,
        instance,
        code: &problem.code,
        request_id,
        errors: &problem.errors,
    };
    // Text and numbers only: cannot fail.
    ("application/problem+json", serde_json::to_vec(&body).unwrap_or_default())
}

/// The words of Text Embeddings Inference.
fn tei_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        503 => "Overloaded",
        500.. => "Backend",
        _ => "Validation",
    }
}

fn is_v2(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_status() {
        for (kind, status) in [
            (ErrorKind::InvalidInput, 422),
            (ErrorKind::Denied, 403),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::TooLarge, 413),
            (ErrorKind::Overloaded, 503),
            (ErrorKind::NotReady, 503),
            (ErrorKind::DeadlineExceeded, 504),
            (ErrorKind::Cancelled, 503),
            (ErrorKind::ShuttingDown, 503),
            (ErrorKind::InsufficientStorage, 507),
            (ErrorKind::Internal, 500),
        ] {
            assert_eq!(status_of(kind).as_u16(), status, "{kind:?}");
        }
    }

    #[test]
    fn a_body_error_has_its_status() {
        for (error, status) in [
            (BodyError::TooLarge { limit: 1 }, 413),
            (crate::entrance::NoRoom { limit: 3, held: 2, wanted: 2 }.into(), 503),
            (BodyError::TooSlow, 408),
            (BodyError::Incomplete, 400),
            (BodyError::Encoding, 400),
        ] {
            assert_eq!(ApiError::from(error).status().as_u16(), status);
        }
    }

    #[test]
    fn a_codec_error_has_its_status_and_names_the_field() {
        let error =
            ApiError::from(CodecError::Unprocessable { field: "inputs.x".into(), problem: "expected FP32".into() });
        assert_eq!((error.status().as_u16(), error.detail()), (422, "inputs.x: expected FP32"));
        let (_, body) = render(&error.0, "/v1/models/a/predict", "id");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errors"][0]["field"], "inputs.x");
        assert_eq!(body["type"], "urn:ortus:problem:invalid_input");
        assert_eq!(body["request_id"], "id");
        assert_eq!(body["instance"], "/v1/models/a/predict");
    }

    #[test]
    fn a_fault_of_ours_shows_nothing() {
        let error = ApiError::internal("secret");
        for path in ["/v1/models", "/v2/models/a"] {
            let (_, body) = render(&error.0, path, "id");
            assert!(!String::from_utf8(body).unwrap().contains("secret"));
        }
        assert_eq!(error.0.internal.as_deref(), Some("secret"));
    }

    #[test]
    fn the_open_inference_protocol_has_its_own_error_body() {
        let error = ApiError::new(StatusCode::NOT_FOUND, "not_found", "no");
        assert_eq!(render(&error.0, "/v2/x", "id"), ("application/json", br#"{"error":"no"}"#.to_vec()));
        assert_eq!(render(&error.0, "/v2x", "id").0, "application/problem+json");
        let (_, openai) = render(&error.0, "/v1/embeddings", "id");
        let expected = br#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"not_found"}}"#;
        assert_eq!(openai, expected);
        assert_eq!(render(&error.0, "/embed", "id").1, br#"{"error":"no","error_type":"Validation"}"#);
        let torchserve = br#"{"code":404,"type":"ResourceNotFoundException","message":"no"}"#;
        for path in ["/models", "/models/a", "/predictions/a"] {
            assert_eq!(render(&error.0, path, "id"), ("application/json", torchserve.to_vec()));
        }
        assert_eq!(render(&error.0, "/v1/models/a/instances", "id").1, br#"{"error":"no"}"#);
    }

    #[test]
    fn a_long_path_is_not_echoed() {
        let error = ApiError::new(StatusCode::NOT_FOUND, "not_found", "no");
        let (_, body) = render(&error.0, &format!("/{}", "ä".repeat(30_000)), "id");
        assert!(body.len() < 1000);
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
            assert_eq!(retry_after(Duration::from_millis(millis)), seconds);
        }
    }
}

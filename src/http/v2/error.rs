//! The protocol's error table: Triton's statuses for the kinds of errors.
//!
//! Where the native API tells malformed (400) from well-formed but wrong (422), this protocol knows 400 alone. The body
//! `{"error": text}` is written by `middleware::observe`, as for all routes.

// A new kind of error must be placed in every table.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::codec::CodecError;
use crate::engine::{EngineError, ErrorKind};
use crate::http::body::BodyError;
use crate::http::error::{ApiError, retry_after};
use crate::protocol::ParameterError;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::time::Duration;

/// An answer other than success.
#[derive(Debug, PartialEq)]
pub(in crate::http) struct V2Error(pub(super) ApiError);

impl V2Error {
    /// The request is wrong.
    pub(super) fn invalid(code: &'static str, detail: impl Into<String>) -> V2Error {
        V2Error(ApiError::new(StatusCode::BAD_REQUEST, code, detail))
    }
}

/// The status of each kind of error.
fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        // Triton calls a state that forbids the call an invalid request, too.
        ErrorKind::InvalidInput | ErrorKind::Conflict => StatusCode::BAD_REQUEST,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Overloaded | ErrorKind::NotReady | ErrorKind::ShuttingDown | ErrorKind::Cancelled => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<EngineError> for V2Error {
    fn from(error: EngineError) -> V2Error {
        let kind = error.kind();
        if kind == ErrorKind::Internal {
            return V2Error(ApiError::internal(error.internal_detail()));
        }
        let status = status_of(kind);
        let answer = ApiError::new(status, error.code(), error.to_string());
        if status != StatusCode::SERVICE_UNAVAILABLE {
            return V2Error(answer);
        }
        // 503 always says when to come back: a balancer may try another replica at once.
        let delay = error.retry_after().unwrap_or(Duration::from_secs(1));
        V2Error(answer.with_header(header::RETRY_AFTER, retry_after(delay)))
    }
}

impl From<CodecError> for V2Error {
    fn from(error: CodecError) -> V2Error {
        let code = match &error {
            CodecError::Malformed(_) => "malformed_body",
            CodecError::Unprocessable { .. } => "invalid_input",
            // Numbers that a request merely states, such as a shape of 2^64 elements: what it sends is small, so this is
            // not the 413 of a body over the limit.
            CodecError::TooLarge(_) => "too_large",
            CodecError::UnsupportedMedia(_) => "unsupported_media_type",
        };
        V2Error::invalid(code, error.to_string())
    }
}

impl From<ParameterError> for V2Error {
    fn from(error: ParameterError) -> V2Error {
        V2Error::invalid("invalid_parameter", error.to_string())
    }
}

impl From<BodyError> for V2Error {
    fn from(error: BodyError) -> V2Error {
        V2Error(error.into())
    }
}

impl From<ApiError> for V2Error {
    fn from(error: ApiError) -> V2Error {
        V2Error(error)
    }
}

impl IntoResponse for V2Error {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_tritons_status() {
        for (kind, status) in [
            (ErrorKind::InvalidInput, 400),
            (ErrorKind::Denied, 403),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 400),
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
    fn what_a_body_says_wrongly_is_a_400_and_its_size_a_413() {
        let stated = CodecError::TooLarge("inputs.x: more than 10 elements".to_owned());
        assert_eq!(V2Error::from(stated).0.status(), 400);
        let wrong = CodecError::Unprocessable { field: "inputs.x".to_owned(), problem: "expected FP32".to_owned() };
        assert_eq!(V2Error::from(wrong), V2Error::invalid("invalid_input", "inputs.x: expected FP32"));
        assert_eq!(V2Error::from(BodyError::TooLarge { limit: 10 }).0.status(), 413);
    }
}

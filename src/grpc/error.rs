//! The error table: what went wrong, as gRPC's code, the word that programs compare, and what the same is over HTTP.
//!
//! The word is in the answer's `ortus-code`; where trying again may help, `retry-after` says in how many seconds. Detail of faults of
//! ours goes to the log, never to a client.

// A new kind of error must be placed in every table.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::auth::Denied;
use crate::codec::CodecError;
use crate::engine::{EngineError, ErrorKind};
use crate::entrance::{KeyHeaderError, NoRoom};
use crate::protocol::ParameterError;
use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Longest text of an answer in characters: it travels in a header, and clients take 8 KiB of those.
const MAX_TEXT: usize = 2000;

/// An answer other than success.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text}")]
pub(super) struct GrpcError {
    pub(super) code: Code,
    /// What the same is over HTTP: requests are counted by that, whatever brings them.
    pub(super) http: u16,
    /// Stable, snake_case.
    pub(super) word: Cow<'static, str>,
    pub(super) text: String,
    pub(super) retry_after: Option<Duration>,
    /// For the log only.
    pub(super) internal: Option<String>,
}

impl GrpcError {
    pub(super) fn new(code: Code, http: u16, word: &'static str, text: impl Into<String>) -> GrpcError {
        let text = text.into();
        GrpcError { code, http, word: Cow::Borrowed(word), text, retry_after: None, internal: None }
    }

    /// The request is wrong.
    pub(super) fn invalid(word: &'static str, text: impl Into<String>) -> GrpcError {
        GrpcError::new(Code::InvalidArgument, 400, word, text)
    }

    /// A fault of ours: the client learns nothing but that.
    pub(super) fn internal(detail: impl Into<String>) -> GrpcError {
        let text = "the server failed on this request; its log has the reason under the request id";
        let error = GrpcError::new(Code::Internal, 500, "internal_error", text);
        GrpcError { internal: Some(detail.into()), ..error }
    }

    pub(super) fn stopping() -> GrpcError {
        GrpcError::new(Code::Unavailable, 503, "shutting_down", "the server is stopping")
            .again_after(Duration::from_secs(1))
    }

    pub(super) fn too_late() -> GrpcError {
        GrpcError::new(Code::DeadlineExceeded, 504, "deadline_exceeded", "the deadline passed")
    }

    pub(super) fn too_large(text: impl Into<String>) -> GrpcError {
        GrpcError::new(Code::ResourceExhausted, 413, "body_too_large", text)
    }

    /// Says in the log what the client is not told, or that it was refused.
    pub(super) fn log(&self, request_id: &str) {
        let code = &*self.word;
        match &self.internal {
            Some(detail) => {
                tracing::error!(request_id, code, detail, "request {request_id} failed: {}", detail.escape_debug());
            }
            None => tracing::debug!(request_id, code, "request {request_id} was refused: {code}"),
        }
    }

    fn again_after(self, delay: Duration) -> GrpcError {
        GrpcError { retry_after: Some(delay), ..self }
    }

    /// What `status` says: it is one of ours, or the library's own word on a message that it could not read.
    pub(super) fn of_status(status: &Status, too_large: impl FnOnce() -> GrpcError) -> GrpcError {
        if let Some(error) = status.source().and_then(|source| source.downcast_ref::<GrpcError>()) {
            return error.clone();
        }
        match status.code() {
            Code::OutOfRange | Code::ResourceExhausted => too_large(),
            Code::Unimplemented => GrpcError::new(Code::Unimplemented, 501, "not_served", status.message()),
            Code::Cancelled => GrpcError::new(Code::Cancelled, 499, "client_closed", status.message()),
            // What does not add up in a message is the client's: a wrong length, a flag without its encoding, no message at all.
            Code::Internal
            | Code::InvalidArgument
            | Code::Ok
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated => GrpcError::invalid("malformed_body", status.message()),
        }
    }
}

/// The code of each kind of error, and its status over HTTP.
fn code_of(kind: ErrorKind) -> (Code, u16) {
    match kind {
        ErrorKind::InvalidInput => (Code::InvalidArgument, 400),
        ErrorKind::Denied => (Code::PermissionDenied, 403),
        ErrorKind::NotFound => (Code::NotFound, 404),
        ErrorKind::Conflict => (Code::FailedPrecondition, 409),
        ErrorKind::TooLarge => (Code::ResourceExhausted, 413),
        // Another replica may answer at once, which clients and balancers try on this code alone.
        ErrorKind::Overloaded | ErrorKind::NotReady | ErrorKind::ShuttingDown | ErrorKind::Cancelled => {
            (Code::Unavailable, 503)
        }
        ErrorKind::DeadlineExceeded => (Code::DeadlineExceeded, 504),
        ErrorKind::InsufficientStorage => (Code::ResourceExhausted, 507),
        ErrorKind::Internal => (Code::Internal, 500),
    }
}

impl From<EngineError> for GrpcError {
    fn from(error: EngineError) -> GrpcError {
        let kind = error.kind();
        if kind == ErrorKind::Internal {
            return GrpcError::internal(error.internal_detail());
        }
        let (code, http) = code_of(kind);
        let answer = GrpcError::new(code, http, error.code(), error.to_string());
        if code != Code::Unavailable {
            return answer;
        }
        answer.again_after(error.retry_after().unwrap_or(Duration::from_secs(1)))
    }
}

impl From<CodecError> for GrpcError {
    fn from(error: CodecError) -> GrpcError {
        let word = match &error {
            CodecError::Malformed(_) => "malformed_body",
            CodecError::Unprocessable { .. } => "invalid_input",
            // Numbers that a request merely states, such as a shape of 2^64 elements.
            CodecError::TooLarge(_) => "too_large",
            CodecError::UnsupportedMedia(_) => "unsupported_media_type",
        };
        GrpcError::invalid(word, error.to_string())
    }
}

impl From<ParameterError> for GrpcError {
    fn from(error: ParameterError) -> GrpcError {
        GrpcError::invalid("invalid_parameter", error.to_string())
    }
}

impl From<KeyHeaderError> for GrpcError {
    fn from(error: KeyHeaderError) -> GrpcError {
        GrpcError::invalid("bad_key_header", error.to_string())
    }
}

impl From<NoRoom> for GrpcError {
    fn from(error: NoRoom) -> GrpcError {
        GrpcError::new(Code::Unavailable, 503, "overloaded", error.to_string()).again_after(Duration::from_secs(1))
    }
}

impl From<&Denied> for GrpcError {
    fn from(denied: &Denied) -> GrpcError {
        let text = denied.to_string();
        match denied {
            Denied::Wrong => GrpcError::new(Code::Unauthenticated, 401, "unauthorized", text),
            Denied::TooManyWrong { retry_after, .. } => {
                GrpcError::new(Code::ResourceExhausted, 429, "too_many_wrong_keys", text).again_after(*retry_after)
            }
            Denied::TooOften { retry_after, .. } => {
                GrpcError::new(Code::ResourceExhausted, 429, "rate_limited", text).again_after(*retry_after)
            }
        }
    }
}

impl From<GrpcError> for Status {
    fn from(error: GrpcError) -> Status {
        let mut status = Status::new(error.code, shortened(&error.text));
        let metadata = status.metadata_mut();
        if let Ok(word) = MetadataValue::try_from(&*error.word) {
            metadata.insert("ortus-code", word);
        }
        if let Some(delay) = error.retry_after {
            let seconds = delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)).max(1);
            metadata.insert("retry-after", MetadataValue::from(seconds));
        }
        // Whoever counts and logs finds it there.
        status.set_source(Arc::new(error));
        status
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => text.get(..end).unwrap_or_default().chars().chain("…".chars()).collect(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_code() {
        for (kind, code, http) in [
            (ErrorKind::InvalidInput, Code::InvalidArgument, 400),
            (ErrorKind::Denied, Code::PermissionDenied, 403),
            (ErrorKind::NotFound, Code::NotFound, 404),
            (ErrorKind::Conflict, Code::FailedPrecondition, 409),
            (ErrorKind::TooLarge, Code::ResourceExhausted, 413),
            (ErrorKind::Overloaded, Code::Unavailable, 503),
            (ErrorKind::NotReady, Code::Unavailable, 503),
            (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded, 504),
            (ErrorKind::Cancelled, Code::Unavailable, 503),
            (ErrorKind::ShuttingDown, Code::Unavailable, 503),
            (ErrorKind::InsufficientStorage, Code::ResourceExhausted, 507),
            (ErrorKind::Internal, Code::Internal, 500),
        ] {
            assert_eq!(code_of(kind), (code, http), "{kind:?}");
        }
    }

    #[test]
    fn a_status_carries_the_word_and_when_to_try_again_and_nothing_of_the_inside() {
        let denied = Denied::TooOften { per_minute: 2, retry_after: Duration::from_millis(1500) };
        let status = Status::from(GrpcError::from(&denied));
        assert_eq!(status.metadata().get("ortus-code").unwrap(), "rate_limited");
        assert_eq!(status.metadata().get("retry-after").unwrap(), "2");
        let status = Status::from(GrpcError::internal("/home/secret"));
        assert!(!format!("{} {:?}", status.message(), status.metadata()).contains("secret"));
        let never = || panic!("it is no question of size");
        assert_eq!(GrpcError::of_status(&status, never).internal.as_deref(), Some("/home/secret"));
        let long = Status::from(GrpcError::invalid("x", "é".repeat(5000)));
        assert_eq!(long.message().chars().count(), MAX_TEXT + 1);
    }

    #[test]
    fn f78_what_the_library_refuses_is_the_clients_error() {
        let of = |status: Status| GrpcError::of_status(&status, || GrpcError::too_large("more than 9"));
        assert_eq!(of(Status::internal("flag")).code, Code::InvalidArgument);
        let large = of(Status::out_of_range("found 10 bytes"));
        assert_eq!((large.code, large.http), (Code::ResourceExhausted, 413));
        assert_eq!(large.text, "more than 9");
        assert_eq!(of(Status::unimplemented("encoding")).code, Code::Unimplemented);
    }
}

//! What is known of a call before it is made: in the extensions of its request, where the service finds it.

use super::error::GrpcError;
use super::messages::Messages;
use crate::engine::{ModelName, Sender};
use crate::protocol::{RequestBounds, Tally};
use http::HeaderMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

/// One call. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Visit(pub(super) Arc<Known>);

#[derive(Debug)]
pub(super) struct Known {
    pub(super) request_id: Arc<str>,
    pub(super) arrival: Instant,
    /// When its client waits no longer, where it says so.
    pub(super) deadline: Option<Instant>,
    pub(super) tally: Tally,
    pub(super) sender: Option<Sender>,
    pub(super) message: MessageLimit,
    /// What its messages hold until it ends; `None` of a call whose messages are small.
    pub(super) messages: Option<Messages>,
    /// The call's own, for the traces of a stream's requests.
    pub(super) headers: HeaderMap,
    /// The model that it is about, for the audit log.
    pub(super) about: OnceLock<ModelName>,
}

/// How large a message may be, and what says so.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageLimit {
    pub(super) bytes: usize,
    pub(super) source: LimitOf,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum LimitOf {
    All,
    /// Its messages have no tensors and no files.
    Call,
    Key,
}

impl MessageLimit {
    pub(super) fn exceeded(self) -> GrpcError {
        let limit = self.bytes;
        GrpcError::too_large(match self.source {
            LimitOf::All => format!("the message is larger than max_body_bytes = {limit}"),
            LimitOf::Call => format!("the message is larger than the {limit} bytes that this call takes"),
            LimitOf::Key => format!("the message is larger than this key's max_body_bytes = {limit}"),
        })
    }
}

impl Visit {
    /// # Errors
    /// Where the door did not put it there, which would be a fault of ours.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Visit, Status> {
        let visit = request.extensions().get::<Visit>().cloned();
        visit.ok_or_else(|| GrpcError::internal("a call came by another way than the door").into())
    }

    /// The call is about this model.
    pub(super) fn is_about(&self, name: &ModelName) {
        // Said once.
        let _ = self.0.about.set(name.clone());
    }

    /// The bounds of a request of this call that arrived at `arrival`.
    pub(super) fn bounds(&self, arrival: Instant, request_timeout: Duration) -> RequestBounds {
        let left = self.0.deadline.map(|deadline| deadline.saturating_duration_since(arrival));
        RequestBounds { arrival, timeout: left.unwrap_or(request_timeout).min(request_timeout) }
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
///
/// # Errors
/// Where it is something else.
pub(super) fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, GrpcError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let bad = || GrpcError::invalid("invalid_header", "grpc-timeout must be 1 to 8 digits and one of H, M, S, m, u, n");
    let text = value.to_str().map_err(|_| bad())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number).ok_or_else(bad)?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(bad()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let of = |text: &'static [u8]| {
            let headers = [(http::HeaderName::from_static("grpc-timeout"), HeaderValue::from_bytes(text).unwrap())];
            timeout_of(&headers.into_iter().collect()).map_err(|error| error.code)
        };
        assert_eq!(timeout_of(&HeaderMap::new()).unwrap(), None);
        assert_eq!(of(b"250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(of(b"99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        assert_eq!(of(b"0n"), Ok(Some(Duration::ZERO)));
        for bad in [&b""[..], b"S", b"5", b"5s", b"-5S", b"+5S", b"123456789S", b"5.5S", "5\u{e9}".as_bytes(), b"\xff"]
        {
            assert_eq!(of(bad), Err(tonic::Code::InvalidArgument), "{bad:?}");
        }
    }
}

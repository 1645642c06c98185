//! `X-Ortus-Cache: hit|miss`, where a model keeps answers; nothing where it does not.

use crate::engine::CacheOutcome;
use axum::http::header::{HeaderName, HeaderValue};
use axum::response::Response;

pub(super) const CACHE: HeaderName = HeaderName::from_static("x-ortus-cache");

/// `response` with the header that says where its answer came from.
pub(super) fn with_outcome(mut response: Response, outcome: Option<CacheOutcome>) -> Response {
    let word = outcome.map(|outcome| match outcome {
        CacheOutcome::Hit => "hit",
        CacheOutcome::Miss => "miss",
    });
    if let Some(word) = word {
        response.headers_mut().insert(CACHE, HeaderValue::from_static(word));
    }
    response
}

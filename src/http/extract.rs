//! What handlers take from a request's head: the model and version it names, its deadline, its query, and which media
//! types it brings and wants.
//!
//! Knows no body and no model: a name is checked for its form only.

use super::HttpSettings;
use super::error::ApiError;
pub(super) use super::middleware::RequestId;
use super::middleware::{Arrival, Visit};
use crate::downloads::DownloadError;
use crate::engine::{ModelName, Sender, Version};
use crate::jobs::JobError;
use crate::protocol::Tally;
use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// The `{name}` of the path and its `{version}`, where the route has one.
#[derive(Debug, Clone)]
pub(super) struct ModelPath {
    pub(super) name: ModelName,
    pub(super) version: Option<Version>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<ModelPath, ApiError> {
        // Text that is no UTF-8 after decoding names no model either.
        let parameters = RawPathParams::from_request_parts(parts, state).await.map_err(|_| no_such_model())?;
        let value = |key: &str| parameters.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        let name = value("name").and_then(|name| ModelName::parse(name).ok()).ok_or_else(no_such_model)?;
        let version = match value("version") {
            None => None,
            Some(text) => Some(Version::parse(text).ok_or_else(no_such_version)?),
        };
        Ok(ModelPath { name, version })
    }
}

pub(super) fn no_such_model() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "model_not_found",
        "there is no such model: a name is a letter or digit, then up to 99 letters, digits, '.', '_' or '-'",
    )
}

pub(super) fn no_such_version() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "version_not_found",
        "there is no such version: a version is a number such as 1",
    )
}

/// The `{id}` of a job's path.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobPath(pub(super) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<JobPath, ApiError> {
        id_of(parts, state).await.map(JobPath).ok_or_else(|| ApiError::from(JobError::NotFound))
    }
}

/// The `{id}` of a download's path.
#[derive(Debug, Clone, Copy)]
pub(super) struct DownloadPath(pub(super) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for DownloadPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<DownloadPath, ApiError> {
        id_of(parts, state).await.map(DownloadPath).ok_or_else(|| ApiError::from(DownloadError::NotFound))
    }
}

async fn id_of<S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<Uuid> {
    let parameters = RawPathParams::from_request_parts(parts, state).await.ok()?;
    let id = parameters.iter().find(|(name, _)| *name == "id").map_or("", |(_, value)| value);
    // Other forms of a UUID would be other paths of the same thing.
    Uuid::try_parse(id).ok().filter(|parsed| parsed.to_string() == id)
}

/// The query as `T`; a key that is wrong is a 400 that says so.
#[derive(Debug)]
pub(super) struct ApiQuery<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<ApiQuery<T>, ApiError> {
        ApiQuery::of(&parts.uri)
    }
}

impl<T: DeserializeOwned> ApiQuery<T> {
    pub(super) fn of(uri: &Uri) -> Result<ApiQuery<T>, ApiError> {
        match Query::<T>::try_from_uri(uri) {
            Ok(Query(value)) => Ok(ApiQuery(value)),
            Err(error) => Err(invalid_query(format!("the query cannot be read: {}", error.body_text()))),
        }
    }
}

pub(super) fn invalid_query(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
}

/// Reads `true`, `1` or an empty value as yes, `false` or `0` as no.
pub(super) fn query_bool(key: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(invalid_query(format!("{key} must be true or false"))),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Arrival {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Arrival, Infallible> {
        Ok(parts.extensions.get::<Arrival>().copied().unwrap_or_else(|| Arrival(Instant::now())))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Visit, Infallible> {
        Ok(Visit {
            arrival: Arrival::from_request_parts(parts, state).await?,
            id: RequestId::from_request_parts(parts, state).await?,
            tally: Tally::from_request_parts(parts, state).await?,
            sender: parts.extensions.get::<Sender>().copied(),
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<RequestId, Infallible> {
        Ok(parts.extensions.get::<RequestId>().cloned().unwrap_or_else(|| RequestId("".into())))
    }
}

/// When the answer to a request is worthless: `timeout_ms` after its arrival, `request_timeout` at most.
///
/// # Errors
/// Where `timeout_ms` is 0.
pub(super) fn deadline(
    arrival: Arrival,
    timeout_ms: Option<u64>,
    settings: &HttpSettings,
) -> Result<Instant, ApiError> {
    let timeout = match timeout_ms {
        Some(0) => return Err(ApiError::field("timeout_ms", "must be at least 1")),
        Some(millis) => Duration::from_millis(millis).min(settings.request_timeout),
        None => settings.request_timeout,
    };
    Ok(arrival.0 + timeout)
}

/// The media type of the body, in lower case and without parameters; `None` where the request does not say.
pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!essence.is_empty()).then_some(essence)
}

/// The index of the offer that `Accept` likes best, the first among equals; `None` where it takes none of them.
pub(super) fn negotiate(headers: &HeaderMap, offers: &[&str]) -> Option<usize> {
    let mut ranges = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        // An unreadable header asks for nothing we know.
        ranges.extend(value.to_str().unwrap_or_default().split(',').filter_map(media_range));
    }
    if ranges.is_empty() {
        return (!offers.is_empty()).then_some(0);
    }
    let mut best: Option<(usize, f32)> = None;
    for (index, offer) in offers.iter().enumerate() {
        let quality = quality(&ranges, offer);
        if quality > best.map_or(0.0, |(_, quality)| quality) {
            best = Some((index, quality));
        }
    }
    best.map(|(index, _)| index)
}

/// A media range such as `image/*` and its weight.
fn media_range(text: &str) -> Option<(String, f32)> {
    let mut parts = text.split(';');
    let range = parts.next()?.trim().to_ascii_lowercase();
    if range.is_empty() {
        return None;
    }
    let quality = parts.filter_map(|part| part.trim().strip_prefix("q=")?.parse().ok()).next().unwrap_or(1.0f32);
    Some((range, if quality.is_finite() { quality.clamp(0.0, 1.0) } else { 0.0 }))
}

/// The weight that the most specific matching range gives `offer`.
fn quality(ranges: &[(String, f32)], offer: &str) -> f32 {
    let family = offer.split('/').next().unwrap_or_default();
    let find =
        |wanted: &dyn Fn(&str) -> bool| ranges.iter().find(|(range, _)| wanted(range)).map(|(_, quality)| *quality);
    find(&|range| range == offer)
        .or_else(|| find(&|range| range.strip_suffix("/*").is_some_and(|prefix| prefix == family)))
        .or_else(|| find(&|range| range == "*/*"))
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[track_caller]
    fn check(accept: &[&str], expected: Option<usize>) {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, HeaderValue::from_str(value).unwrap());
        }
        let offers = ["application/json", "application/x-npy", "text/plain"];
        assert_eq!(negotiate(&headers, &offers), expected, "{accept:?}");
    }

    #[test]
    fn accept_chooses_by_weight_then_by_our_order() {
        check(&[], Some(0));
        check(&["*/*"], Some(0));
        check(&[""], Some(0));
        check(&["application/x-npy"], Some(1));
        check(&["APPLICATION/X-NPY; q=0.5"], Some(1));
        check(&["application/json;q=0.1, application/x-npy"], Some(1));
        check(&["application/json;q=0.1", "application/x-npy"], Some(1));
        check(&["text/*, application/json;q=0.5"], Some(2));
        check(&["application/json;q=0, */*;q=0.1"], Some(1));
        check(&["text/html, application/xhtml+xml, */*;q=0.8"], Some(0));
        check(&["image/png"], None);
        check(&["application/json;q=0"], None);
        check(&["application/json;q=NaN"], None);
    }

    #[test]
    fn the_content_type_is_its_essence() {
        for (value, expected) in [
            ("application/json", Some("application/json")),
            ("Application/JSON; charset=utf-8", Some("application/json")),
            (" ; x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(value).unwrap());
            assert_eq!(content_type(&headers).as_deref(), expected);
        }
    }

    #[test]
    fn a_deadline_is_never_later_than_the_request_timeout() {
        let settings = HttpSettings { request_timeout: Duration::from_secs(1), ..HttpSettings::default() };
        let now = Instant::now();
        let at = |timeout_ms| deadline(Arrival(now), timeout_ms, &settings).unwrap() - now;
        assert_eq!(at(None), Duration::from_secs(1));
        assert_eq!(at(Some(1)), Duration::from_millis(1));
        assert_eq!(at(Some(u64::MAX)), Duration::from_secs(1));
        assert!(deadline(Arrival(now), Some(0), &settings).is_err());
    }
}

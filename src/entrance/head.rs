//! What a request's head says whatever door it came to: its own name, and the key of who sends it.

use http::HeaderMap;
use http::header::{self, HeaderName};
use std::sync::Arc;

pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A head that does not say which key is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyHeaderError {
    #[error("the request has more than one Authorization or X-API-Key header; send one key")]
    Several,
    #[error("the request has a key in Authorization and one in X-API-Key; send one of them")]
    Both,
}

/// The key that the headers bring; `None` where they bring none.
///
/// # Errors
/// Where there are several.
pub fn presented_key(headers: &HeaderMap) -> Result<Option<&str>, KeyHeaderError> {
    let (mut bearers, mut keys) = (headers.get_all(header::AUTHORIZATION).iter(), headers.get_all(API_KEY).iter());
    let (bearer, key) = (bearers.next(), keys.next());
    if bearers.next().is_some() || keys.next().is_some() {
        return Err(KeyHeaderError::Several);
    }
    // What is not text is no key: it is looked at as one, and counted as a wrong one.
    let bearer = bearer.map(|value| value.to_str().unwrap_or_default().trim());
    let token = bearer.map(|value| match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
        _ => None,
    });
    let key = key.map(|value| value.to_str().unwrap_or_default().trim());
    match (token, key) {
        (Some(Some(_)), Some(_)) => Err(KeyHeaderError::Both),
        // Another scheme may be for a proxy on the way.
        (Some(None) | None, Some(key)) => Ok(Some(key)),
        (Some(token), None) => Ok(Some(token.unwrap_or_default())),
        (None, None) => Ok(None),
    }
}

/// The client's own id where it is clean (1 to 128 characters of `[A-Za-z0-9._-]`), else a new one.
pub fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_clean_id(id));
    given.map_or_else(
        || (&*uuid::Uuid::new_v4().as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())).into(),
        Arc::from,
    )
}

fn is_clean_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(rows: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let row = |(name, value): &(&'static str, &'static [u8])| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in rows.iter().map(row) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_key_comes_in_one_header() {
        for (rows, expected) in [
            (&[][..], Ok(None)),
            (&[("authorization", &b"Bearer k"[..])], Ok(Some("k"))),
            (&[("authorization", b"bearer  k ")], Ok(Some("k"))),
            (&[("x-api-key", b"k")], Ok(Some("k"))),
            (&[("authorization", b"Basic a"), ("x-api-key", b"k")], Ok(Some("k"))),
            // Looked at as wrong keys.
            (&[("authorization", b"Basic a")], Ok(Some(""))),
            (&[("authorization", b"Bearer")], Ok(Some(""))),
            (&[("authorization", b"")], Ok(Some(""))),
            (&[("authorization", b"Bearer \xff")], Ok(Some(""))),
            (&[("x-api-key", b"\xff")], Ok(Some(""))),
            (&[("authorization", b"Bearer k"), ("authorization", b"Bearer k")], Err(())),
            (&[("x-api-key", b"k"), ("x-api-key", b"k")], Err(())),
            (&[("authorization", b"Bearer k"), ("x-api-key", b"k")], Err(())),
        ] {
            let headers = headers(rows);
            let found = presented_key(&headers).map_err(drop);
            assert_eq!(found, expected, "{rows:?}");
        }
    }

    /// F81.
    #[test]
    fn only_clean_request_ids_are_kept() {
        let long = "a".repeat(129);
        for bad in ["", "a b", "a/b", "<b>", "a\tb", &long] {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(bad).unwrap());
            let id = request_id(&headers);
            assert!(is_clean_id(&id) && *id != *bad, "{bad:?} {id}");
        }
        for good in ["a", "A-1_b.2", &"a".repeat(128)] {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(good).unwrap());
            assert_eq!(&*request_id(&headers), good);
        }
    }
}

//! What the audit log says of one management request.

use super::error::CLIENT_CLOSED;
use crate::auth::{AuditEntry, Who};
use crate::engine::ModelName;
use axum::http::Method;
use std::net::IpAddr;

/// A word of the path is written down up to this length.
const WORD_CHARS: usize = 64;

/// The model that a request was about, in the extensions of its answer where its path does not name it.
#[derive(Debug, Clone)]
pub(super) struct About(pub(super) ModelName);

/// The entry of a request that came with this key, not yet answered.
pub(super) fn entry(
    key: Who<'_>,
    method: &Method,
    route: &str,
    path: &str,
    from: Option<IpAddr>,
    request_id: &str,
) -> AuditEntry {
    let route = match word_at(route, path, "{action}") {
        Some(action) if action.bytes().all(|byte| byte.is_ascii_lowercase()) => route.replace("{action}", action),
        _ => route.to_owned(),
    };
    AuditEntry {
        key: key.name(from),
        action: format!("{} {route}", super::middleware::method_name(method)),
        model: word_at(&route, path, "{name}")
            .and_then(|name| ModelName::parse(name).ok())
            .map(|name| name.to_string()),
        version: word_at(&route, path, "{version}").map(str::to_owned),
        id: word_at(&route, path, "{id}").map(str::to_owned),
        from,
        status: CLIENT_CLOSED,
        request_id: request_id.to_owned(),
    }
}

/// The word of the path that stands where the template has `place`, where it is a plain one.
fn word_at<'a>(route: &str, path: &'a str, place: &str) -> Option<&'a str> {
    let at = route.split('/').position(|part| part == place)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    path.split('/').nth(at).filter(|word| (1..=WORD_CHARS).contains(&word.len()) && word.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f91_an_entry_names_what_it_is_about_and_nothing_else_of_the_path() {
        let of = |route, path| entry(Who::Anybody, &Method::POST, route, path, Some([127, 0, 0, 1].into()), "r");
        let found = of("/v1/models/{name}/versions/{version}", "/v1/models/a/versions/2");
        assert_eq!(
            (found.key.as_str(), found.model.as_deref(), found.version.as_deref()),
            ("loopback", Some("a"), Some("2"))
        );
        let found = of("/ui/models/{name}/{action}", "/ui/models/a/unload");
        assert_eq!((found.action.as_str(), found.model.as_deref()), ("POST /ui/models/{name}/unload", Some("a")));
        let key = format!("/v1/models/ortus_{}_{}/load", "0".repeat(10), "0".repeat(64));
        for path in [&key, "/v1/models/%3Cb%3E/load", "/v1/models//load", "/v1"] {
            assert_eq!(of("/v1/models/{name}/load", path).model, None, "{path}");
        }
        assert_eq!(of("/ui/models/{name}/{action}", "/ui/models/a/X%0A").action, "POST /ui/models/{name}/{action}");
    }
}

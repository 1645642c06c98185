//! Which role each route needs, and who a request is from.
//!
//! A route comes into the table with its role or not at all: [`Routes`] has no way to add one without. Keys are read from
//! headers, and from the dashboard's cookie; never from an address, which is logged, kept and shown.

use super::HttpState;
use super::error::{ApiError, retry_after};
use crate::auth::{Caller, Denied, Gate, Role, network_of};
use crate::engine::Sender;
use crate::entrance::{KeyHeaderError, presented_key};
use axum::Router;
use axum::extract::Request;
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::MethodRouter;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// The dashboard's cookie.
pub(super) const SESSION: &str = "ortus_session";
const BEARER: &str = "Bearer realm=\"ortus\"";
const WRONG_BEARER: &str = "Bearer realm=\"ortus\", error=\"invalid_token\"";

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// What a route asks of its callers where keys are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// Of requests that change nothing (GET, HEAD); `None` = anybody.
    read: Option<Role>,
    /// Of all others.
    write: Option<Role>,
    /// Whether what it changes is written down in the audit log.
    pub(super) is_audited: bool,
}

impl Needs {
    pub(super) const OPEN: Needs = Needs { read: None, write: None, is_audited: false };
    pub(super) const INFER: Needs = Needs { read: Some(Role::Infer), write: Some(Role::Infer), is_audited: false };
    const OWN: Needs = Needs { is_audited: true, ..Needs::INFER };
    const MANAGE: Needs = Needs { read: Some(Role::Infer), write: Some(Role::Admin), is_audited: true };

    pub(super) fn role(self, method: &Method) -> Option<Role> {
        if method.is_safe() { self.read } else { self.write }
    }
}

/// The roles of routes, by their templates.
pub(super) type NeedsTable = HashMap<&'static str, Needs>;

/// A route table in which each route has its role.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<HttpState>,
    needs: NeedsTable,
}

impl Routes {
    /// Anybody.
    pub(super) fn open(self, path: &'static str, handlers: MethodRouter<HttpState>) -> Routes {
        self.with(path, Needs::OPEN, handlers)
    }

    /// Any key.
    pub(super) fn infer(self, path: &'static str, handlers: MethodRouter<HttpState>) -> Routes {
        self.with(path, Needs::INFER, handlers)
    }

    /// Any key; what it changes is written down.
    pub(super) fn own(self, path: &'static str, handlers: MethodRouter<HttpState>) -> Routes {
        self.with(path, Needs::OWN, handlers)
    }

    /// Any key to look, an admin's to change, which is written down.
    pub(super) fn manage(self, path: &'static str, handlers: MethodRouter<HttpState>) -> Routes {
        self.with(path, Needs::MANAGE, handlers)
    }

    fn with(mut self, path: &'static str, needs: Needs, handlers: MethodRouter<HttpState>) -> Routes {
        self.needs.insert(path, needs);
        Routes { router: self.router.route(path, handlers), needs: self.needs }
    }

    /// Routes of others, all of them at these `paths` and for any key.
    pub(super) fn foreign(mut self, paths: &[&'static str], router: Router<HttpState>) -> Routes {
        self.needs.extend(paths.iter().map(|path| (*path, Needs::INFER)));
        Routes { router: self.router.merge(router), needs: self.needs }
    }

    pub(super) fn merge(mut self, other: Routes) -> Routes {
        self.needs.extend(other.needs);
        Routes { router: self.router.merge(other.router), needs: self.needs }
    }

    /// The same routes with something around them.
    pub(super) fn around(self, wrap: impl FnOnce(Router<HttpState>) -> Router<HttpState>) -> Routes {
        Routes { router: wrap(self.router), needs: self.needs }
    }

    pub(super) fn into_parts(self) -> (Router<HttpState>, NeedsTable) {
        (self.router, self.needs)
    }
}

/// Somebody who is not let in.
pub(super) struct Refused {
    pub(super) error: ApiError,
    pub(super) why: Why,
}

pub(super) enum Why {
    /// There is no key, or there are several.
    NoKey,
    Denied(Denied),
    RoleTooLow(Caller),
}

/// Who the request is from, where keys are on and the route asks for one. `is_own_origin` says whether it is not a page of another
/// origin that sends it.
///
/// # Errors
/// Why it is not let in.
pub(super) fn enter(
    gate: &Gate,
    needed: Option<Role>,
    request: &Request,
    from: Option<IpAddr>,
    is_own_origin: impl FnOnce() -> bool,
) -> Result<Option<Caller>, Refused> {
    let Some(needed) = needed.filter(|_| gate.is_on()) else { return Ok(None) };
    let no_key = |error| Refused { error, why: Why::NoKey };
    let now = Instant::now();
    let headers = request.headers();
    let checked = match presented_key(headers).map_err(|error| no_key(error.into()))? {
        Some(key) => gate.check(key, from, now),
        None => match session_of(headers) {
            // A browser sends a cookie by itself: other pages of this host must not act by it.
            Some(token) if request.method().is_safe() || is_own_origin() => match gate.check_session(token, now) {
                Err(Denied::Wrong) => return Err(no_key(missing())),
                checked => checked,
            },
            Some(_) | None => return Err(no_key(missing())),
        },
    };
    let caller = checked.map_err(|denied| Refused { error: ApiError::from(&denied), why: Why::Denied(denied) })?;
    if caller.role < needed {
        let (id, role) = (&caller.id, caller.role.name());
        let detail = format!("key {id} has the role '{role}'; this takes a key of the role '{}'", needed.name());
        let error = ApiError::new(StatusCode::FORBIDDEN, "role_too_low", detail);
        return Err(Refused { error, why: Why::RoleTooLow(caller) });
    }
    Ok(Some(caller))
}

/// Whether pages are for looking only to whoever is at `from`: nothing asks for a key, and they would change something from another
/// machine. Programs may, as whoever starts a server so has said that they are to be trusted; a browser is led more easily.
pub(super) fn pages_only_look(asks_for_keys: bool, from: Option<IpAddr>) -> bool {
    let is_local = from.is_some_and(|from| from.to_canonical().is_loopback());
    !asks_for_keys && !is_local
}

/// Who sent a request, for those that it shares a run with.
pub(super) fn sender(caller: Option<&Caller>, from: Option<IpAddr>) -> Option<Sender> {
    Sender::of(caller.map(|caller| caller.id.number()), from.map(network_of))
}

/// The dashboard's session.
pub(super) fn session_of(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|cookies| cookies.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix(SESSION)?.strip_prefix('='))
}

impl From<KeyHeaderError> for ApiError {
    fn from(error: KeyHeaderError) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_key_header", error.to_string())
    }
}

fn missing() -> ApiError {
    let detail = "this server asks for a key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(BEARER))
}

impl From<&Denied> for ApiError {
    fn from(denied: &Denied) -> ApiError {
        let soon = |error: ApiError, delay| error.with_header(header::RETRY_AFTER, retry_after(delay));
        let detail = denied.to_string();
        match denied {
            Denied::Wrong => ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
                .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(WRONG_BEARER)),
            Denied::TooManyWrong { retry_after, .. } => {
                soon(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_wrong_keys", detail), *retry_after)
            }
            Denied::TooOften { retry_after, .. } => {
                soon(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail), *retry_after)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

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
    fn the_session_is_one_cookie_of_its_name() {
        assert_eq!(session_of(&headers(&[("cookie", b"theme=dark; ortus_session=a")])), Some("a"));
        for none in [&b"ortus_sessions=a"[..], b"x=ortus_session=a", b""] {
            assert_eq!(session_of(&headers(&[("cookie", none)])), None);
        }
    }

    #[test]
    fn pages_change_things_without_a_key_from_the_same_machine_only() {
        let address = |text: &str| Some(text.parse().unwrap());
        for near in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert!(!pages_only_look(false, address(near)), "{near}");
        }
        for far in ["192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7", "0.0.0.0"] {
            assert!(pages_only_look(false, address(far)), "{far}");
            // Nobody without a key comes further than the sign-in page then.
            assert!(!pages_only_look(true, address(far)), "{far}");
        }
        assert!(pages_only_look(false, None), "whoever that may be");
    }

    #[test]
    fn what_changes_something_needs_more_than_looking() {
        assert_eq!(Needs::MANAGE.role(&Method::GET), Some(Role::Infer));
        for method in [Method::POST, Method::DELETE, Method::PUT, Method::PATCH, Method::from_bytes(b"X").unwrap()] {
            assert_eq!(Needs::MANAGE.role(&method), Some(Role::Admin));
        }
        assert!(Role::Infer < Role::Admin);
    }
}

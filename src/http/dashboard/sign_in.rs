//! Signing in with a key, signing out, and what somebody sees who is not let in.
//!
//! The key comes in a form and goes no further: the browser gets a token of a session, in a cookie that no script reads and no
//! other site sends.

use super::frame::{Frame, Notice, Refused, Visitor, back_to, page, query_value, theme_of};
use crate::auth::Who;
use crate::auth::{Denied, Gate};
use crate::engine::InferenceEngine;
use crate::http::access::{Peer, SESSION, session_of};
use crate::http::audited::entry;
use crate::http::error::{ApiError, retry_after};
use crate::http::middleware::RequestId;
use askama::Template;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use serde::Deserialize;
use std::time::Instant;

const ADDRESS: &str = "/ui/sign-in";

#[derive(Template)]
#[template(path = "sign-in.html")]
struct SignIn {
    frame: Frame,
    /// The page to go to.
    back: String,
}

#[derive(Deserialize)]
pub(super) struct BackQuery {
    #[serde(default)]
    back: String,
}

/// Without `Debug`: it holds a key.
#[derive(Deserialize)]
pub(super) struct KeyForm {
    #[serde(default)]
    key: String,
    #[serde(default)]
    back: String,
}

pub(super) async fn show(visitor: Visitor, Query(BackQuery { back }): Query<BackQuery>) -> Response {
    // Where nobody asks for keys there is nothing to sign in to.
    if !visitor.dashboard.state.auth.is_on() {
        return Redirect::to("/").into_response();
    }
    page(&form(&visitor, &back, None))
}

fn form(visitor: &Visitor, back: &str, notice: Option<Notice>) -> SignIn {
    let frame = visitor.frame("Sign in", "", ADDRESS).with(notice);
    SignIn { frame: Frame { is_inside: false, ..frame }, back: back_to(back) }
}

pub(super) async fn enter(
    visitor: Visitor,
    peer: Option<Extension<Peer>>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    Form(KeyForm { key, back }): Form<KeyForm>,
) -> Response {
    let gate = &visitor.dashboard.state.auth;
    if !gate.is_on() {
        return Redirect::to("/").into_response();
    }
    let from = peer.map(|Extension(peer)| peer.0);
    let result = gate.sign_in(key.trim(), from, Instant::now());
    let (who, response) = match &result {
        Ok((caller, token)) => {
            let mut response = Redirect::to(&back_to(&back)).into_response();
            let seconds = Gate::session_lifetime().as_secs();
            set_cookie(&mut response, &session_cookie(Some(token), seconds, visitor.is_encrypted(&headers)));
            (Who::Known(caller), response)
        }
        Err(Denied::TooManyWrong { retry_after: delay, .. }) => {
            let seconds = delay.as_secs() + 1;
            let text = format!("Too many wrong keys came from this address; try again in {seconds} s.");
            let again = page(&form(&visitor, &back, Some(Notice::bad(text))));
            let wait = [(header::RETRY_AFTER, retry_after(*delay))];
            (Who::Refused, (StatusCode::TOO_MANY_REQUESTS, wait, again).into_response())
        }
        Err(Denied::Wrong | Denied::TooOften { .. }) => {
            let text = "This key is wrong, expired or revoked.";
            let again = page(&form(&visitor, &back, Some(Notice::bad(text))));
            (Who::Refused, (StatusCode::UNAUTHORIZED, again).into_response())
        }
    };
    // Of refusals at the limit only the first of a minute is written down.
    if !matches!(result, Err(Denied::TooManyWrong { is_first: false, .. })) {
        let mut line = entry(who, &Method::POST, ADDRESS, "", from, &id);
        line.status = response.status().as_u16();
        gate.audit().write(line).await;
    }
    response
}

pub(super) async fn leave(visitor: Visitor, headers: HeaderMap) -> Response {
    let gate = &visitor.dashboard.state.auth;
    if let Some(token) = session_of(&headers) {
        gate.sign_out(token, Instant::now());
    }
    let mut response = Redirect::to(&format!("{ADDRESS}?done=sign-out")).into_response();
    set_cookie(&mut response, &session_cookie(None, 0, visitor.is_encrypted(&headers)));
    response
}

fn set_cookie(response: &mut Response, cookie: &str) {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

/// The cookie that holds a session's token, or takes it away where there is none.
fn session_cookie(token: Option<&str>, seconds: u64, is_secure: bool) -> String {
    let (token, seconds) = token.map_or(("", 0), |token| (token, seconds));
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{SESSION}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}

/// What a person gets who is not let in to a page: the sign-in page, or one that says why. `None` for what programs ask.
pub(in crate::http) fn refused(engine: &InferenceEngine, request: &Request, error: &ApiError) -> Option<Response> {
    let path = request.uri().path();
    let is_page = path == "/" || path.starts_with("/docs") || (path.starts_with("/ui/") && path != "/ui/live");
    if !is_page {
        return None;
    }
    if error.status() == StatusCode::UNAUTHORIZED {
        let back = match request.method().is_safe() {
            true => back_to(request.uri().path_and_query().map_or("/", |target| target.as_str())),
            // What a form wanted is not done again by itself.
            false => "/".to_owned(),
        };
        let query = if back == "/" { String::new() } else { format!("?back={}", query_value(&back)) };
        return Some(Redirect::to(&format!("{ADDRESS}{query}")).into_response());
    }
    let theme = theme_of(request.headers());
    let frame = Frame::outside("This did not work", "/", theme, engine.runtime_version());
    let frame = Frame { is_inside: true, ..frame }.with(Some(Notice::bad(error.detail().to_owned())));
    let mut response = (error.status(), page(&Refused { frame })).into_response();
    if let Some((name, value)) = error.problem().headers.iter().find(|(name, _)| name == header::RETRY_AFTER) {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_kept_from_scripts_and_other_sites() {
        assert_eq!(
            session_cookie(Some("t"), 9, true),
            "ortus_session=t; Path=/; Max-Age=9; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(session_cookie(None, 9, false), "ortus_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    }

    #[test]
    fn an_address_to_come_back_to_is_one_value_of_a_query() {
        assert_eq!(query_value("/ui/events?model=a&level=info"), "/ui/events%3Fmodel%3Da%26level%3Dinfo");
    }
}

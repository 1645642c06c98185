//! What stands around every page, and how a page becomes an answer.

use super::Pages;
use super::api::Refusal;
use super::history::Range;
use crate::auth::{Caller, Role};
use crate::http::access::{Peer, pages_only_look};
use askama::Template;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

/// What every template calls `frame`.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) title: String,
    /// The page's place in the navigation.
    pub(super) path: &'static str,
    /// Its own address, without a word about what was done.
    pub(super) here: String,
    pub(super) theme: &'static str,
    /// Where its changing parts come from.
    pub(super) live: Option<String>,
    /// How far back its charts go, where that was chosen.
    pub(super) range: Option<Range>,
    pub(super) notice: Option<Notice>,
    /// The key that the visitor signed in with.
    pub(super) signed_in: Option<String>,
    /// Why the visitor may look and try, and change nothing; `None` for who may change things.
    pub(super) look_only: Option<&'static str>,
    /// Whether there are other pages to go to.
    pub(super) is_inside: bool,
    pub(super) version: &'static str,
    pub(super) runtime: String,
    pub(super) build: &'static str,
}

/// A word about what was done, or why not.
#[derive(Debug, Clone)]
pub(super) struct Notice {
    pub(super) text: String,
    pub(super) bad: bool,
}

impl Notice {
    pub(super) fn bad(text: impl Into<String>) -> Notice {
        Notice { text: text.into(), bad: true }
    }
}

impl Frame {
    pub(super) const PAGES: [(&'static str, &'static str); 6] = [
        ("/", "Overview"),
        ("/ui/models", "Models"),
        ("/ui/add", "Add"),
        ("/ui/jobs", "Jobs"),
        ("/ui/events", "Events"),
        ("/ui/system", "System"),
    ];
    pub(super) const RANGES: [Range; 3] = Range::ALL;
    pub(super) const THEMES: [&'static str; 3] = ["auto", "light", "dark"];

    /// Of a page for somebody who is not let in.
    pub(super) fn outside(
        title: impl Into<String>,
        here: impl Into<String>,
        theme: &'static str,
        runtime: String,
    ) -> Frame {
        Frame {
            title: title.into(),
            path: "",
            here: here.into(),
            theme,
            live: None,
            range: None,
            notice: None,
            signed_in: None,
            look_only: None,
            is_inside: false,
            version: env!("CARGO_PKG_VERSION"),
            runtime,
            build: super::assets::BUILD,
        }
    }

    /// Whether what the route table asks any key for is offered, such as to cancel a job.
    pub(super) fn may_act(&self) -> bool {
        self.may_manage() || self.signed_in.is_some()
    }

    /// The pages to go to.
    pub(super) fn pages(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        Frame::PAGES.into_iter().filter(|(path, _)| self.may_manage() || *path != "/ui/add")
    }

    /// Whether what the route table asks an admin for is offered. Pressed all the same, it is refused there.
    pub(super) fn may_manage(&self) -> bool {
        self.look_only.is_none()
    }

    pub(super) fn is_at(&self, path: &str) -> bool {
        self.path == path
    }

    pub(super) fn has_range(&self, range: &Range) -> bool {
        self.range == Some(*range)
    }

    pub(super) fn has_theme(&self, theme: &str) -> bool {
        self.theme == theme
    }

    /// The parts of the page at `here` come live.
    pub(super) fn live(mut self) -> Frame {
        let range = self.range.map_or_else(String::new, |range| format!("&minutes={}", range.minutes()));
        self.live = Some(format!("/ui/live?of={}{range}", query_value(&self.here)));
        self
    }

    pub(super) fn with(mut self, notice: Option<Notice>) -> Frame {
        self.notice = notice.or(self.notice);
        self
    }
}

/// The value of a key in an address, as it stands there.
fn in_query<'a>(query: Option<&'a str>, key: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// What was done, by a word of the address: the text is never the address's own.
fn done(query: Option<&str>) -> Option<Notice> {
    let word = in_query(query, "done")?;
    let text = match word {
        "load" => "The model is loaded.",
        "unload" => "The model is unloaded and its memory is free.",
        "delete" => "It is deleted.",
        "warmup" => "The warm-up is done.",
        "reset" => "The statistics count anew.",
        "cleanup" => "What was free is given back.",
        "rollback" => "The version before serves again.",
        "choose" => "The version serves.",
        "cancel" => "It is cancelled.",
        "sign-out" => "You are signed out.",
        "order" => "The order is taken; its progress is here.",
        "upload" => "The version is in the store.",
        "log-level" => "The log has this level now.",
        "optimize" => "The job is taken; its report will be here.",
        _ => return None,
    };
    Some(Notice { text: text.to_owned(), bad: false })
}

/// Who asks, and for which page.
pub(super) struct Visitor {
    pub(super) dashboard: Pages,
    pub(super) caller: Option<Caller>,
    /// See [`Frame::look_only`].
    pub(super) look_only: Option<&'static str>,
    /// See [`Frame::range`].
    pub(super) range: Option<Range>,
    theme: &'static str,
    notice: Option<Notice>,
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Visitor, Response> {
        match parts.extensions.get::<Pages>() {
            Some(dashboard) => Ok(Visitor {
                dashboard: dashboard.clone(),
                caller: parts.extensions.get::<Caller>().cloned(),
                look_only: look_only(dashboard.state.auth.is_on(), &parts.extensions),
                range: in_query(parts.uri.query(), "minutes").and_then(Range::of),
                theme: theme_of(&parts.headers),
                notice: done(parts.uri.query()),
            }),
            None => Err(StatusCode::NOT_FOUND.into_response()),
        }
    }
}

/// Why whoever sends a request may change nothing, from what is known of it; `None` where they may. The only place where pages
/// learn that: what they offer follows from it.
fn look_only(asks_for_keys: bool, about: &Extensions) -> Option<&'static str> {
    if let Some(caller) = about.get::<Caller>() {
        let is_low = caller.role < Role::Admin;
        return is_low
            .then_some("An infer key looks and tries models; to change something, sign in with an admin key.");
    }
    pages_only_look(asks_for_keys, about.get::<Peer>().map(|Peer(from)| *from)).then_some(
        "Without a key nothing is changed from another machine: make one with `ortus key create --role admin` where the server runs.",
    )
}

impl Visitor {
    /// `here` is the page's address; see [`Frame::path`] for `path`.
    pub(super) fn frame(&self, title: impl Into<String>, path: &'static str, here: impl Into<String>) -> Frame {
        let signed_in = self.caller.as_ref().map(|caller| format!("{} key {}", caller.role.name(), caller.id));
        let runtime = self.dashboard.state.engine.runtime_version();
        let frame = Frame { signed_in, look_only: self.look_only, ..Frame::outside(title, here, self.theme, runtime) };
        Frame { path, is_inside: true, range: self.range, notice: self.notice.clone(), ..frame }
    }

    /// Whether the browser came by TLS: to us, or to a proxy before us that says so. Who lies here only loses the own cookie.
    pub(super) fn is_encrypted(&self, headers: &HeaderMap) -> bool {
        let by_proxy =
            headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
        by_proxy || self.dashboard.state.settings.is_tls
    }

    /// A page that says why there is none.
    pub(super) fn refused(&self, refusal: &Refusal) -> Response {
        let title = if refusal.status == StatusCode::NOT_FOUND { "Not found" } else { "This did not work" };
        let frame = self.frame(title, "", "/").with(Some(Notice::bad(refusal.detail.clone())));
        (refusal.status, page(&Refused { frame })).into_response()
    }
}

#[derive(Template)]
#[template(path = "refused.html")]
pub(super) struct Refused {
    pub(super) frame: Frame,
}

pub(super) fn theme_of(headers: &HeaderMap) -> &'static str {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let named = cookies.flat_map(|cookies| cookies.split(';')).find_map(|cookie| cookie.trim().strip_prefix("theme="));
    Frame::THEMES.into_iter().find(|theme| Some(*theme) == named).unwrap_or("auto")
}

/// The template as an answer.
pub(super) fn page(template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The request's own path and query as a form may name it to come back to: a path of ours, else the first page.
pub(super) fn back_to(path: &str) -> String {
    let good = path == "/" || path.starts_with("/ui/");
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | '<' | '>' | '"');
    if good && path.len() <= 512 && path.chars().all(plain) { path.to_owned() } else { "/".to_owned() }
}

/// As a value of a query: what is not plain is written as `%XX`.
pub(super) fn query_value(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_ours_are_come_back_to() {
        for good in ["/", "/ui/models", "/ui/events?model=a&level=info"] {
            assert_eq!(back_to(good), good);
        }
        for bad in ["//evil.example", "https://evil.example", "/v1/models", "/ui/\\evil", "/ui/a\r\nb", "/ui/a b", ""] {
            assert_eq!(back_to(bad), "/", "{bad:?}");
        }
    }

    #[test]
    fn what_was_done_is_a_word_of_a_list() {
        assert!(done(Some("done=load")).is_some_and(|notice| !notice.bad));
        assert!(done(Some("done=<script>")).is_none() && done(None).is_none());
    }

    #[test]
    fn who_is_offered_nothing_is_told_how_to_make_a_key() {
        let from = |address: &str| {
            let mut about = Extensions::new();
            about.insert(Peer(address.parse().unwrap()));
            about
        };
        assert_eq!(look_only(false, &from("127.0.0.1")), None);
        assert!(look_only(false, &from("192.0.2.7")).is_some_and(|why| why.contains("ortus key create")));
    }

    #[test]
    fn a_theme_is_one_of_three() {
        let with = |cookie: &'static str| theme_of(&HeaderMap::from_iter([(header::COOKIE, cookie.parse().unwrap())]));
        assert_eq!([with("a=b; theme=dark"), with("theme=\"x"), with("")], ["dark", "auto", "auto"]);
    }
}

//! Calls other servers: one client for the process, redirects followed by hand, every address through the guard.
//!
//! The token goes to the endpoint's own scheme, host and port, and to nothing that comes after a redirect elsewhere. Texts of
//! errors name hosts as the URL has them, and nothing that the system says of addresses.

use super::guard::{Guard, NotPublic, PublicOnly, Verdict};
use super::{HubError, HubSettings};
use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use url::Url;

const REDIRECTS_MAX: usize = 5;
/// A description or a page of a listing, in bytes.
const JSON_MAX: usize = 4 << 20;
/// Calls in a row that fail, after which the call fails.
const TRIES: u32 = 5;
/// Calls of one transfer that fail, however much came between.
const TRIES_IN_ALL: u32 = 100;
/// Answers "too many requests" within one fetch, after which it fails.
const LIMITED_MAX: u32 = 6;
/// Longest wait that a server may ask for.
const WAIT_MAX: Duration = Duration::from_secs(300);
const DELAY: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(30);

pub(super) struct Client {
    guard: Guard,
    token: Option<HeaderValue>,
    offline: bool,
    idle_timeout: Duration,
    /// Before the second try; twice as long before each further one.
    pub(super) delay: Duration,
    /// Made when they are used: reading the system's certificates takes longer than all else at start.
    public: OnceLock<Option<reqwest::Client>>,
    named: OnceLock<Option<reqwest::Client>>,
}

/// From where the rest of a file is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resume<'a> {
    pub(super) from: u64,
    /// Only where the file still has this strong tag; all of it else.
    pub(super) etag: Option<&'a str>,
}

/// The head of an answer with status 200, 206 or 416, and its body to come.
pub(super) struct Reply {
    response: reqwest::Response,
    /// The tag that the endpoint itself gave the file, without its quotes: a hash of its content.
    pub(super) linked_etag: Option<String>,
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: HubError,
    again: Again,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    Soon,
    /// It said that there were too many requests, and perhaps how long to wait.
    Limited(Option<Duration>),
}

/// How often "too many requests" was said within one fetch.
#[derive(Debug, Default)]
pub(super) struct Limits(AtomicU32);

/// How often one call was tried.
#[derive(Debug, Default)]
pub(super) struct Tries {
    in_a_row: u32,
    in_all: u32,
}

/// A value, and where the next page is.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) value: T,
    pub(super) next: Option<String>,
}

impl Client {
    /// # Errors
    /// Where the endpoint is no URL, or the token could not be a header.
    pub(super) fn new(settings: &HubSettings) -> Result<Client, HubError> {
        let token = match &settings.hf_token {
            Some(secret) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose().trim())).map_err(|_| {
                    HubError::Invalid("the token for HuggingFace has characters that no token has".to_owned())
                })?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Client {
            guard: Guard::new(settings)?,
            token,
            offline: settings.offline,
            idle_timeout: settings.idle_timeout,
            delay: DELAY,
            public: OnceLock::new(),
            named: OnceLock::new(),
        })
    }

    /// Gets a small JSON document, tried again where that may help.
    ///
    /// # Errors
    /// As [`HubError`] says; [`HubError::TooLarge`] where it has more than 4 MiB.
    pub(super) async fn json<T: DeserializeOwned>(&self, url: &str) -> Result<Page<T>, HubError> {
        let (mut tries, limits) = (Tries::default(), Limits::default());
        loop {
            match self.json_once(url).await {
                Ok(page) => return Ok(page),
                Err(failed) => tries.wait(self, failed, &limits).await?,
            }
        }
    }

    async fn json_once<T: DeserializeOwned>(&self, url: &str) -> Result<Page<T>, Failed> {
        let mut reply = self.get(url, None).await?;
        if reply.is_page() {
            return Err(Failed::never(page_for_people(url)));
        }
        let next = reply.header(&header::LINK).and_then(next_page);
        let next = next.and_then(|next| Some(reply.response.url().join(&next).ok()?.to_string()));
        let too_large =
            || Failed::never(HubError::TooLarge(format!("{} answered with more than {JSON_MAX} bytes", host(url))));
        if reply.length().is_some_and(|length| length > JSON_MAX as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await? {
            if body.len() + chunk.len() > JSON_MAX {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        match serde_json::from_slice(&body) {
            Ok(value) => Ok(Page { value, next }),
            Err(_) if body.trim_ascii_start().first() == Some(&b'<') => Err(Failed::never(page_for_people(url))),
            Err(_) => Err(Failed::never(HubError::Corrupt(format!(
                "{} answered with something else than the JSON that was asked for",
                host(url)
            )))),
        }
    }

    /// Makes one call and follows its redirects.
    pub(super) async fn get(&self, url: &str, resume: Option<Resume<'_>>) -> Result<Reply, Failed> {
        if self.offline {
            let text = "nothing is fetched while [hub] offline is set".to_owned();
            return Err(Failed::never(HubError::Refused(text)));
        }
        let Ok(mut url) = Url::parse(url) else {
            return Err(Failed::never(HubError::Invalid("url: expected https:// and a host".to_owned())));
        };
        let mut verdict = self.guard.check(&url).map_err(Failed::never)?;
        let mut own = true;
        let mut linked_etag = None;
        for _ in 0..=REDIRECTS_MAX {
            own &= self.guard.is_endpoint(&url);
            let mut request = self.http(verdict)?.get(url.clone());
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, token);
            }
            if let Some(resume) = resume {
                request = request.header(header::RANGE, format!("bytes={}-", resume.from));
                if let Some(etag) = resume.etag {
                    request = request.header(header::IF_RANGE, etag);
                }
            }
            let response = request.send().await.map_err(|error| failed(&url, &error))?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if own && linked_etag.is_none() {
                let named = |name| text(response.headers(), name).map(bare_etag);
                let own_tag = || if is_redirect { None } else { named(header::ETAG) };
                linked_etag = named(HeaderName::from_static("x-linked-etag")).or_else(own_tag);
            }
            if !is_redirect {
                return self.reply(response, linked_etag);
            }
            let to = text(response.headers(), header::LOCATION).and_then(|to| url.join(to).ok());
            let Some(to) = to else { return Err(redirect_refused("it leads to no address")) };
            verdict = self.guard.check(&to).map_err(|error| redirect_refused(&error.to_string()))?;
            url = to;
        }
        Err(redirect_refused(&format!("more than {REDIRECTS_MAX} in a row")))
    }

    fn reply(&self, response: reqwest::Response, linked_etag: Option<String>) -> Result<Reply, Failed> {
        let (status, url) = (response.status().as_u16(), response.url());
        if !matches!(status, 200 | 206 | 416) {
            return Err(self.refusal(status, url, response.headers()));
        }
        if let Some(encoding) = text(response.headers(), header::CONTENT_ENCODING)
            && !encoding.eq_ignore_ascii_case("identity")
        {
            let text = format!("{} compresses what was asked for as it is", host(url.as_str()));
            return Err(Failed::never(HubError::Corrupt(text)));
        }
        Ok(Reply { response, linked_etag })
    }

    /// What a status means to whoever asked.
    fn refusal(&self, status: u16, url: &Url, headers: &HeaderMap) -> Failed {
        let (what, host) = (super::url::shown(url.as_str()), host(url.as_str()));
        let code = text(headers, HeaderName::from_static("x-error-code")).unwrap_or_default();
        let own = self.guard.is_endpoint(url);
        let wait =
            text(headers, header::RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        match (status, code) {
            (_, "GatedRepo") => Failed::never(HubError::Denied(format!(
                "{what}: the repository is gated: accept its terms on the site, and set HF_TOKEN to a token of that account"
            ))),
            (_, "RepoNotFound") => Failed::never(no_repository(&what)),
            (_, "RevisionNotFound") => {
                Failed::never(HubError::NotFound(format!("{what}: the repository has no such revision")))
            }
            (_, "EntryNotFound") => {
                Failed::never(HubError::NotFound(format!("{what}: the repository has no such file")))
            }
            // So the hub hides that a repository is not there.
            (401, _) if own && self.token.is_none() => Failed::never(no_repository(&what)),
            (401 | 403, _) if own => Failed::never(HubError::Denied(format!(
                "{what}: {host} does not let us; check HF_TOKEN and what it may read"
            ))),
            (401 | 403, _) => Failed::never(HubError::Denied(format!("{what}: {host} does not let us ({status})"))),
            (404 | 410, _) => Failed::never(HubError::NotFound(format!("{what}: there is no such file ({status})"))),
            (429, _) => {
                let hint = if own && self.token.is_none() { ", or set HF_TOKEN" } else { "" };
                let text = format!("{host} has a rate limit, which is reached (429); try again later{hint}");
                Failed { error: HubError::RateLimited(text), again: Again::Limited(wait) }
            }
            (503, _) if wait.is_some() => {
                let text = format!("{host} is not available (503)");
                Failed { error: HubError::Unreachable(text), again: Again::Limited(wait) }
            }
            (408 | 425 | 500..=599, _) => {
                Failed::soon(HubError::Unreachable(format!("{host} failed with status {status}; try again later")))
            }
            _ => Failed::never(HubError::Unreachable(format!("{what}: {host} answered with status {status}"))),
        }
    }

    fn http(&self, verdict: Verdict) -> Result<&reqwest::Client, Failed> {
        let cell = if verdict == Verdict::Public { &self.public } else { &self.named };
        let client = cell.get_or_init(|| self.build(verdict));
        client.as_ref().ok_or_else(|| Failed::never(HubError::Unreachable("no connection can be set up".to_owned())))
    }

    fn build(&self, verdict: Verdict) -> Option<reqwest::Client> {
        // Fails where there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("ortus/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                // A proxy would find the addresses of names itself.
                .no_proxy()
                .connect_timeout(self.idle_timeout)
                .read_timeout(self.idle_timeout);
            match verdict {
                Verdict::Public => builder.dns_resolver(PublicOnly),
                Verdict::Named => builder,
            }
        };
        builder().build().ok().or_else(|| {
            // A machine without certificates can still call a mirror without TLS.
            tracing::warn!("the system has no certificates: no server can be trusted by HTTPS");
            builder().tls_certs_only([]).build().ok()
        })
    }
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Bytes of the body, where they are announced.
    pub(super) fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        text(self.response.headers(), name)
    }

    /// The file's tag, with its quotes, where it stands for the same bytes.
    pub(super) fn strong_etag(&self) -> Option<&str> {
        self.header(&header::ETAG)
            .filter(|etag| etag.len() > 2 && etag.len() <= 256 && etag.starts_with('"') && etag.ends_with('"'))
    }

    /// First byte and length of all, where the answer says that it is a part.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (range, all) = self.header(&header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.trim().parse().ok()?, all.trim().parse().ok()))
    }

    /// Whether this is a page for people.
    pub(super) fn is_page(&self) -> bool {
        self.header(&header::CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            kind == "text/html" || kind == "application/xhtml+xml"
        })
    }

    /// The body's next bytes; `None` at its end.
    ///
    /// # Cancel safety
    /// No bytes are lost where it is dropped before it is ready.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failed> {
        match self.response.chunk().await {
            Ok(chunk) => Ok(chunk),
            Err(error) => Err(failed(self.response.url(), &error)),
        }
    }
}

impl Failed {
    pub(super) fn never(error: HubError) -> Failed {
        Failed { error, again: Again::Never }
    }

    pub(super) fn soon(error: HubError) -> Failed {
        Failed { error, again: Again::Soon }
    }
}

impl Tries {
    /// Something came: what failed before does not count against the next failure.
    pub(super) fn moved(&mut self) {
        self.in_a_row = 0;
    }

    /// Waits until the call may be made again.
    ///
    /// # Errors
    /// Why the call failed, where it is not to be made again.
    pub(super) async fn wait(&mut self, client: &Client, failed: Failed, limits: &Limits) -> Result<(), HubError> {
        self.in_a_row += 1;
        self.in_all += 1;
        let usual = client.delay.saturating_mul(1 << (self.in_a_row - 1).min(10)).min(DELAY_MAX);
        let delay = match failed.again {
            Again::Never => return Err(failed.error),
            Again::Soon => usual,
            Again::Limited(wait) => {
                let said = limits.0.fetch_add(1, Ordering::Relaxed) + 1;
                if said >= LIMITED_MAX || wait.is_some_and(|wait| wait > WAIT_MAX) {
                    return Err(failed.error);
                }
                wait.unwrap_or(usual).max(usual)
            }
        };
        if self.in_a_row >= TRIES || self.in_all >= TRIES_IN_ALL {
            return Err(failed.error);
        }
        // Up to half as long again, so that those who failed together do not come back together.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let delay = delay + delay.mul_f64((random % 1000) as f64 / 2000.0);
        tracing::debug!(error = %failed.error, delay_ms = delay.as_millis(), "a call to a model's source is tried again");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

fn no_repository(what: &str) -> HubError {
    HubError::NotFound(format!("{what}: there is no such repository, or it is private and HF_TOKEN may not read it"))
}

pub(super) fn page_for_people(url: &str) -> HubError {
    HubError::Corrupt(format!(
        "{} answered with a page for people (HTML) instead of the file; check the address, and whether it wants a login",
        host(url)
    ))
}

fn redirect_refused(why: &str) -> Failed {
    Failed::never(HubError::Refused(format!("redirect refused: {why}")))
}

/// What a failed connection means; the system's own text may name addresses.
fn failed(url: &Url, error: &reqwest::Error) -> Failed {
    if NotPublic::caused(error) {
        return Failed::never(NotPublic::error());
    }
    let host = host(url.as_str());
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(at) = cause {
        // rustls' error is wrapped into one of io, which shows its content and not itself as the cause.
        let inner = at.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()).or(at.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return Failed::never(HubError::Unreachable(format!(
                "{host}: its certificate is not trusted by this system"
            )));
        }
        cause = at.source();
    }
    let what = if error.is_timeout() {
        "did not answer in time"
    } else if error.is_dns() {
        "is not known by that name"
    } else if error.is_connect() {
        "could not be reached"
    } else {
        "broke the connection off"
    };
    Failed::soon(HubError::Unreachable(format!("{host} {what}; try again later")))
}

/// The host of a URL, as people know it.
fn host(url: &str) -> String {
    Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_else(|| "the server".to_owned())
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// A tag without its quotes and what says that it is weak.
fn bare_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// The address that a `Link` header names as the next page.
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, parameters) = part.split_once(';')?;
        let is_next = parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then(|| address.trim().strip_prefix('<')?.strip_suffix('>').map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::super::testing::{FakeHub, Fault, Side};
    use super::*;
    use serde_json::Value;

    const TOKEN: &str = "hf_secret";

    fn client(hub: &FakeHub, change: impl FnOnce(&mut HubSettings)) -> Client {
        let mut settings = HubSettings {
            hf_endpoint: hub.endpoint(),
            hf_token: Some(Secret::new(TOKEN.to_owned())),
            allowed_hosts: vec![hub.cdn_host()],
            idle_timeout: Duration::from_millis(300),
            ..HubSettings::default()
        };
        change(&mut settings);
        let mut client = Client::new(&settings).unwrap();
        client.delay = Duration::from_millis(2);
        client
    }

    fn one() -> FakeHub {
        let hub = FakeHub::start();
        hub.add("o/n", &[("config.json", b"{}", false), ("model.onnx", b"\x08content", true)]);
        hub
    }

    async fn describe(hub: &FakeHub) -> Result<Page<Value>, HubError> {
        client(hub, |_| ()).json(&format!("{}/api/models/o/n", hub.endpoint())).await
    }

    async fn file(hub: &FakeHub, path: &str) -> Result<(Vec<u8>, Option<String>), Failed> {
        let client = client(hub, |_| ());
        let mut reply = client.get(&format!("{}/o/n/resolve/main/{path}", hub.endpoint()), None).await?;
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok((body, reply.linked_etag))
    }

    #[tokio::test]
    async fn the_token_goes_to_the_endpoint_and_to_no_other_host() {
        let hub = one();
        let (body, etag) = file(&hub, "model.onnx").await.unwrap();
        assert_eq!(
            (body.as_slice(), etag),
            (b"\x08content".as_slice(), Some(super::super::testing::sha256(b"\x08content")))
        );
        // A redirect within the endpoint keeps it.
        assert_eq!(file(&hub, "config.json").await.unwrap().0, b"{}");
        for seen in hub.log() {
            let expected = (seen.side == Side::Hub).then(|| format!("Bearer {TOKEN}"));
            assert_eq!(seen.header("authorization"), expected.as_deref(), "{}", seen.path);
            assert_eq!(seen.header("accept-encoding"), Some("identity"));
            assert!(seen.header("user-agent").unwrap().starts_with("ortus/"));
            assert_eq!(seen.header("referer"), None);
            // The CDN gets the redirect's query whole.
            let query = if seen.side == Side::Cdn { "X-Signature=abc" } else { "" };
            assert_eq!((seen.method.as_str(), seen.query.as_str()), ("GET", query));
        }
        assert_eq!(hub.log().len(), 4);

        // Not after a way through another host either.
        let back = format!("{}/o/n/resolve/main/config.json", hub.endpoint());
        let there = hub.put("/there", b"");
        hub.fault(Side::Cdn, "/there", 1, &[Fault::Redirect(back)]);
        client(&hub, |_| ()).get(&there, None).await.unwrap();
        let last = hub.log().pop().unwrap();
        assert_eq!((last.side, last.header("authorization")), (Side::Hub, None));
    }

    /// F04.
    #[tokio::test]
    async fn redirects_are_checked_one_by_one() {
        let (hub, canary) = (one(), FakeHub::start());
        for to in [
            canary.cdn_url("/x"),
            "http://169.254.169.254/latest/meta-data/".to_owned(),
            "file:///etc/passwd".to_owned(),
            "https://user@example.com/".to_owned(),
            "http://example.com/".to_owned(),
            "https://[::ffff:127.0.0.1]/".to_owned(),
            String::new(),
        ] {
            hub.fault(Side::Hub, "config.json", 1, &[Fault::Redirect(to.clone())]);
            let failed = file(&hub, "config.json").await.err();
            // An empty one leads to itself, where the script has ended.
            if to.is_empty() {
                assert!(failed.is_none());
                continue;
            }
            let failed = failed.unwrap();
            assert_eq!(failed.again, Again::Never, "{to}");
            assert!(
                matches!(&failed.error, HubError::Refused(text) if text.starts_with("redirect refused: address not allowed")),
                "{to}: {failed:?}"
            );
        }
        assert!(canary.log().is_empty());
        let before = hub.log().len();
        hub.fault(Side::Hub, "config.json", usize::MAX, &[Fault::RedirectLoop]);
        let failed = file(&hub, "config.json").await.unwrap_err();
        assert!(matches!(&failed.error, HubError::Refused(text) if text.starts_with("redirect refused: more than 5")));
        assert_eq!(hub.log().len() - before, 6);
    }

    /// F83.
    #[tokio::test]
    async fn refusals_say_what_to_do_and_never_the_token() {
        for (fault, said, requests) in [
            (Fault::TooMany(None), "rate limit", 5),
            (Fault::TooMany(Some(3600)), "rate limit", 1),
            (Fault::Status(401), "check HF_TOKEN", 1),
            (Fault::Status(403), "check HF_TOKEN", 1),
            (Fault::Status(404), "no such file", 1),
            (Fault::Status(500), "failed with status 500", 5),
            (Fault::Status(418), "answered with status 418", 1),
            (Fault::Html, "a page for people", 1),
            (Fault::GzipBomb, "compresses", 1),
            (Fault::Cut(3), "broke the connection off", 5),
            (Fault::Stall(3), "did not answer in time", 5),
            (Fault::Header("content-encoding", "br".to_owned()), "compresses", 1),
        ] {
            let hub = one();
            hub.fault(Side::Hub, "/o/n", usize::MAX, std::slice::from_ref(&fault));
            let error = describe(&hub).await.unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains(TOKEN) && !error.contains("o/n?"), "{fault:?}: {error}");
            assert_eq!(hub.log().len(), requests, "{fault:?}");
        }
        let hub = one();
        hub.fault(Side::Hub, "/o/n", 1, &[Fault::TooMany(Some(1))]);
        hub.fault(Side::Hub, "/o/n", 2, &[Fault::Status(503)]);
        let begun = std::time::Instant::now();
        assert_eq!(describe(&hub).await.unwrap().value["id"], "o/n");
        assert!(begun.elapsed() >= Duration::from_secs(1), "Retry-After is kept");
        assert_eq!(hub.log().len(), 4);
    }

    #[tokio::test]
    async fn what_the_hub_itself_refuses_is_told_apart() {
        let hub = one();
        hub.edit("o/n", |repository| repository.gated = Some("other".to_owned()));
        hub.edit("o/secret", |repository| repository.private = Some("other".to_owned()));
        let failed = file(&hub, "model.onnx").await.unwrap_err();
        assert!(
            matches!(&failed.error, HubError::Denied(text) if text.contains("accept its terms") && text.contains("HF_TOKEN"))
        );
        for (path, said) in [
            ("api/models/o/secret", "no such repository"),
            ("api/models/o/none", "no such repository"),
            ("api/models/o/n/revision/none", "no such revision"),
        ] {
            let url = format!("{}/{path}", hub.endpoint());
            for token in [Some(Secret::new(TOKEN.to_owned())), None] {
                let error = client(&hub, |settings| settings.hf_token = token).json::<Value>(&url).await.unwrap_err();
                assert!(matches!(&error, HubError::NotFound(text) if text.contains(said)), "{path}: {error:?}");
            }
        }
        hub.edit("o/n", |repository| repository.gated = None);
        let failed = file(&hub, "none.onnx").await.unwrap_err();
        assert!(matches!(&failed.error, HubError::NotFound(text) if text.contains("no such file")));
    }

    /// F64.
    #[tokio::test]
    async fn listings_are_bounded() {
        let hub = one();
        hub.edit("o/n", |repository| repository.info = serde_json::json!({"tags": ["x".repeat(JSON_MAX)]}));
        assert!(matches!(describe(&hub).await, Err(HubError::TooLarge(_))));
        hub.fault(Side::Hub, "/o/n", 1, &[Fault::NoLength]);
        assert!(matches!(describe(&hub).await, Err(HubError::TooLarge(_))));
        hub.fault(Side::Hub, "/o/n", 1, &[Fault::Endless]);
        assert!(matches!(describe(&hub).await, Err(HubError::TooLarge(_))));
    }

    #[tokio::test]
    async fn listings_have_pages() {
        let hub = one();
        hub.page(1);
        let client = client(&hub, |_| ());
        let mut next = Some(format!("{}/api/models/o/n/tree/main?recursive=true", hub.endpoint()));
        let mut paths = Vec::new();
        while let Some(url) = next {
            let page: Page<Vec<Value>> = client.json(&url).await.unwrap();
            paths.extend(page.value.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
            next = page.next;
        }
        assert_eq!(paths, ["config.json", "model.onnx"]);
        assert_eq!(next_page("<a>; rel=\"prev\", <b>; x=1; rel=\"next\"").as_deref(), Some("b"));
        assert_eq!(next_page("b; rel=\"next\""), None);
    }

    #[tokio::test]
    async fn nobody_is_called_where_it_is_not_allowed() {
        let (hub, other) = (one(), FakeHub::start());
        let offline = client(&hub, |settings| settings.offline = true);
        let strict = client(&hub, |_| ());
        let url = other.put("/x", b"x");
        for failed in [offline.get(&hub.endpoint(), None).await, strict.get(&url, None).await] {
            assert!(matches!(failed.err().unwrap().error, HubError::Refused(_)));
        }
        assert!(hub.log().is_empty() && other.log().is_empty());
        // A name that leads to this machine is found out when it is resolved.
        let url = Url::parse("https://localhost:1/x").unwrap();
        let error = strict.build(Verdict::Public).unwrap().get(url.clone()).send().await.unwrap_err();
        let failed = failed(&url, &error);
        assert_eq!((failed.again, &failed.error), (Again::Never, &NotPublic::error()));
    }

    #[tokio::test]
    async fn nothing_of_the_system_is_told() {
        let hub = one();
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let client = client(&hub, |settings| settings.allowed_hosts = vec!["localhost".to_owned()]);
        let url = format!("http://localhost:{}/x?token={TOKEN}", free.port());
        let error = client.get(&url, None).await.err().unwrap().error.to_string();
        assert_eq!(error, "localhost could not be reached; try again later");
        assert!(!format!("{:?}", client.token).contains(TOKEN));
    }
}

//! What happens around every request, in one order: see [`wrap`].
//!
//! Knows no model. Text from outside reaches the log and the answer only cleaned: the request id by its rule, the path
//! as the route's template.

use super::access::{self, Needs, NeedsTable, Peer, Refused, Why};
use super::audited::{self, About};
use super::counted;
use super::dashboard;
use super::error::{self, ApiError, CLIENT_CLOSED, Problem};
use super::outcome;
use super::tally;
use super::{HttpSettings, HttpState};
use crate::auth::{AuditEntry, Audited, Caller, Denied, Gate, Role, Who};
use crate::engine::{InferenceEngine, Sender};
use crate::entrance::{API_KEY, Held, InFlightBytes, REQUEST_ID, request_id};
use crate::protocol::{self, Tally};
use crate::telemetry::Stats;
use crate::telemetry::trace::{RequestFacts, RequestTrace};
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body::Body as _;
use http_body_util::Limited;
use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::decompression::{DecompressionBody, RequestDecompressionLayer};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// When the request's head had been read; deadlines count from here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival(pub(super) Instant);

/// The request's own name, in the answer and in the log.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// What is known of a request before its handler is called.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) arrival: Arrival,
    pub(super) id: RequestId,
    pub(super) tally: Tally,
    /// Known once it was let in.
    pub(super) sender: Option<Sender>,
}

/// The routes with everything around them, in one order.
///
/// From the outside in: name, measure, count and log; catch panics; security headers; `Host`; CORS; key; origin; bounds on the
/// body; audit log; decompression. All of it is one layer, since each layer of the router copies and boxes the rest for every request.
pub(super) fn wrap(routes: Router<HttpState>, around: Arc<Around>) -> Router<HttpState> {
    if !around.has_cors() {
        return routes.layer(from_fn_with_state(around, all));
    }
    // CORS stands between the two halves: refusals behind it carry its headers, and a foreign `Host` gets none.
    routes
        .layer(from_fn_with_state(around.clone(), admit))
        .layer(cors(&around.origins))
        .layer(from_fn_with_state(around, observe))
}

/// What stands around every request, the same for all.
pub(super) struct Around {
    stats: Stats,
    hosts: HostRule,
    origins: Vec<String>,
    max_body_bytes: usize,
    /// Of an upload, which is written to disk as it comes.
    max_upload_bytes: usize,
    max_header_bytes: usize,
    max_headers: usize,
    is_tls: bool,
    bodies: InFlightBytes,
    gate: Gate,
    needs: NeedsTable,
    /// What the routes take, by their templates.
    methods: HashMap<&'static str, HeaderValue>,
    /// For the pages that refuse somebody.
    engine: InferenceEngine,
}

/// What anybody may send without a key, such as a key on the sign-in page.
const OPEN_BODY_BYTES: usize = 16 << 10;
/// What a form has around its files, at most.
const FORM_BYTES: usize = 1 << 20;
/// The routes of uploads: the API's and the page's.
const UPLOADS: [&str; 2] = ["/v1/models/{name}/versions", "/ui/models/{name}/upload"];

impl Around {
    /// `listen` is the address that clients may name in `Host`, `needs` has all routes and `methods` what they take.
    pub(super) fn new(
        state: &HttpState,
        listen: IpAddr,
        (needs, methods): (NeedsTable, HashMap<&'static str, HeaderValue>),
    ) -> Around {
        let settings = &state.settings;
        Around {
            stats: state.engine.stats().clone(),
            hosts: HostRule::new(settings, listen),
            origins: settings.cors_origins.clone(),
            max_body_bytes: settings.max_body_bytes,
            max_upload_bytes: usize::try_from(state.downloads.hub().settings().max_download_bytes)
                .unwrap_or(usize::MAX)
                .saturating_add(FORM_BYTES),
            max_header_bytes: settings.limits.max_header_bytes,
            max_headers: settings.limits.max_headers,
            is_tls: settings.is_tls,
            bodies: state.bodies.clone(),
            gate: state.auth.clone(),
            needs,
            methods,
            engine: state.engine.clone(),
        }
    }

    /// What the route asks for; `None` for a path that is none.
    fn needs_of(&self, route: &Route) -> Result<Option<Needs>, ApiError> {
        match route {
            Route::Unmatched => Ok(None),
            route => match self.needs.get(route.as_str()) {
                Some(needs) => Ok(Some(*needs)),
                // `Routes` adds none without: if one were, nobody should come in.
                None => Err(ApiError::internal(format!("the route {} has no role", route.as_str()))),
            },
        }
    }

    /// A refusal of a method with the header that names the right ones: the route table adds it only outside of this, and the
    /// answer's text names them, too.
    fn with_methods(&self, mut response: Response, route: &Route) -> Response {
        if response.status() == StatusCode::METHOD_NOT_ALLOWED
            && let Some(methods) = self.methods.get(route.as_str())
        {
            response.headers_mut().entry(header::ALLOW).or_insert_with(|| methods.clone());
        }
        response
    }

    /// Bytes that the body of a request may have on the wire. Handlers that read one into memory have a bound of their own.
    fn body_limit(&self, route: &str, needs: Option<Needs>, caller: Option<&Caller>) -> BodyLimit {
        let usual = self.max_body_bytes;
        let limit = match needs {
            Some(Needs::OPEN) => BodyLimit { bytes: OPEN_BODY_BYTES.min(usual), source: LimitOf::OpenRoute },
            _ if UPLOADS.contains(&route) => {
                BodyLimit { bytes: self.max_upload_bytes.max(usual), source: LimitOf::Upload }
            }
            _ => BodyLimit { bytes: usual, source: LimitOf::All },
        };
        let own =
            caller.and_then(|caller| caller.max_body_bytes).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        match own {
            Some(bytes) if bytes < limit.bytes => BodyLimit { bytes, source: LimitOf::Key },
            Some(_) | None => limit,
        }
    }

    /// Who asks, where that matters; refused guesses are written down.
    fn enter(
        &self,
        needed: Option<Role>,
        request: &Request,
        entrance: &Entrance<'_>,
    ) -> Result<Option<Caller>, Refused> {
        let is_own = || self.is_own_origin(&[], request);
        let entered = access::enter(&self.gate, needed, request, entrance.from, is_own);
        if let Err(Refused { error, why: Why::Denied(Denied::TooManyWrong { is_first: true, .. }) }) = &entered {
            let mut entry = entrance.entry(Who::Refused, request);
            entry.status = error.status().as_u16();
            drop(self.gate.audit().write(entry));
        }
        entered
    }

    /// Why a page's form is refused before anybody asks who sends it: see [`access::pages_only_look`].
    fn looks_only(&self, needs: Option<Needs>, method: &Method, entrance: &Entrance<'_>) -> Option<Refused> {
        let changes = needs.is_some_and(|needs| needs.is_audited) && !method.is_safe();
        let is_form = changes && entrance.route.starts_with("/ui/");
        if !is_form || !access::pages_only_look(self.gate.is_on(), entrance.from) {
            return None;
        }
        let detail = "without a key the dashboard changes nothing from another machine: make one with \
                      `ortus key create --role admin` where the server runs, then sign in with it";
        Some(Refused { error: ApiError::new(StatusCode::FORBIDDEN, "key_needed", detail), why: Why::NoKey })
    }

    /// Whether no page of an origin other than ours, and these `others`, sends the request.
    fn is_own_origin(&self, others: &[String], request: &Request) -> bool {
        is_own_origin(others, self.is_tls, request.headers(), request.uri().authority())
    }

    /// Whether pages of other origins may call, so that answers carry headers for them.
    pub(super) fn has_cors(&self) -> bool {
        !self.origins.is_empty()
    }

    /// What `wrap` does, around a handler that is known without the route table: `route` is its template.
    ///
    /// For an answer that does not depend on CORS, of a body that is not compressed.
    pub(super) async fn direct<F: Future<Output = Response>>(
        &self,
        route: &'static str,
        from: Option<IpAddr>,
        request: Request,
        handler: impl FnOnce(Request, Visit) -> F,
    ) -> Response {
        observed(self, Route::Known(route), request, |request, visit| async move {
            let entrance = Entrance { route, from, request_id: &visit.id.0 };
            let caller = match self.enter(Needs::INFER.role(request.method()), &request, &entrance) {
                Ok(caller) => caller,
                Err(refused) => return refused.error.into_response(),
            };
            let limit = self.body_limit(route, Some(Needs::INFER), caller.as_ref());
            let held = match self.checked(&request, route, limit) {
                Ok(held) => held,
                Err(error) => return error.into_response(),
            };
            let visit = Visit { sender: access::sender(caller.as_ref(), from), ..visit };
            limit.reworded(handler(bounded(request, limit, held.as_ref()), visit).await)
        })
        .await
    }
}

/// A request before it is let in.
struct Entrance<'a> {
    route: &'a str,
    from: Option<IpAddr>,
    request_id: &'a str,
}

impl Entrance<'_> {
    fn entry(&self, who: Who<'_>, request: &Request) -> AuditEntry {
        audited::entry(who, request.method(), self.route, request.uri().path(), self.from, self.request_id)
    }
}

/// How large a body may be, and why.
#[derive(Clone, Copy)]
struct BodyLimit {
    bytes: usize,
    source: LimitOf,
}

#[derive(Clone, Copy, PartialEq)]
enum LimitOf {
    All,
    Upload,
    OpenRoute,
    Key,
}

impl BodyLimit {
    fn error(self) -> ApiError {
        let limit = self.bytes;
        let too_large = |detail: String| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
        match self.source {
            LimitOf::All => ApiError::from(super::body::BodyError::TooLarge { limit }),
            LimitOf::Upload => {
                let detail = "the files are larger than max_download_mb allows";
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
            }
            LimitOf::OpenRoute => too_large(format!("the body is larger than the {limit} bytes that this takes")),
            LimitOf::Key => too_large(format!("the body is larger than this key's max_body_bytes = {limit}")),
        }
    }

    /// Whoever read the body knows only the limit that holds for all.
    fn reworded(self, mut response: Response) -> Response {
        if self.source == LimitOf::Key
            && let Some(problem) = response.extensions_mut().get_mut::<Problem>()
            && problem.code == "body_too_large"
        {
            problem.detail = self.error().detail().to_owned();
        }
        response
    }
}

async fn all(State(around): State<Arc<Around>>, request: Request, next: Next) -> Response {
    let route = Route::of(&request);
    observed(&around, route, request, |request, visit| admitted(&around, visit.inserted(request), next)).await
}

async fn observe(State(around): State<Arc<Around>>, request: Request, next: Next) -> Response {
    let route = Route::of(&request);
    observed(&around, route, request, |request, visit| next.run(visit.inserted(request))).await
}

async fn admit(State(around): State<Arc<Around>>, request: Request, next: Next) -> Response {
    admitted(&around, request, next).await
}

impl Visit {
    /// The request with this in its extensions, where handlers of the route table find it.
    fn inserted(self, mut request: Request) -> Request {
        let Visit { arrival, id, tally, .. } = self;
        let extensions = request.extensions_mut();
        extensions.insert(arrival);
        extensions.insert(id);
        extensions.insert(tally);
        request
    }
}

/// A route's template, such as `/v1/models/{name}`: a path would be text from outside.
enum Route {
    Known(&'static str),
    Matched(MatchedPath),
    Unmatched,
}

impl Route {
    fn of(request: &Request) -> Route {
        request.extensions().get::<MatchedPath>().cloned().map_or(Route::Unmatched, Route::Matched)
    }

    fn as_str(&self) -> &str {
        match self {
            Route::Known(route) => route,
            Route::Matched(path) => path.as_str(),
            Route::Unmatched => "unmatched",
        }
    }
}

/// Names the request, measures and counts it, checks its head, writes error bodies, and logs one line.
async fn observed<F: Future<Output = Response>>(
    around: &Around,
    route: Route,
    request: Request,
    next: impl FnOnce(Request, Visit) -> F,
) -> Response {
    let stats = &around.stats;
    let id = request_id(request.headers());
    let started = Instant::now();
    let facts = RequestFacts {
        method: method_name(request.method()),
        route: route.as_str(),
        request_id: &id,
        started: started.into_std(),
    };
    let trace = RequestTrace::begin(request.headers(), facts);
    let method = request.method().clone();
    let mut line = AccessLine { method, route, id: id.clone(), started, trace, outcome: None, code: None };
    // A copy: a shared one would keep what the connection read (see `predict::respond`).
    let path: Box<str> = request.uri().path().into();
    let tally = Tally::begin(tally::protocol_of(line.route.as_str()), stats, line.started.into_std());
    let visit = Visit { arrival: Arrival(line.started), id: RequestId(id.clone()), tally: tally.clone(), sender: None };
    let closes = request.version() < Version::HTTP_2;
    let response = match head_problem(around, &request) {
        Some(error) => error.into_response(),
        None => {
            let work = line.trace.follow(AssertUnwindSafe(next(request, visit)).catch_unwind());
            work.await.unwrap_or_else(|payload| {
                stats.record_panic();
                panicked(payload)
            })
        }
    };
    let response = around.with_methods(response, &line.route);
    let (mut response, code) = write_problem(response, &path, &id);
    add_security_headers(&mut response, path.starts_with("/docs"));
    if let Some(reason) = code.as_deref().and_then(protocol::rejected) {
        stats.record_rejected(reason);
    }
    let cache = response.headers().get(outcome::CACHE).and_then(|word| word.to_str().ok());
    line.trace.end(response.status().as_u16(), code.as_deref(), cache);
    line.code.clone_from(&code);
    tally.finish(response.status().as_u16(), code);
    // What is left of a body that was refused would be read as the next request, and so would what somebody between the client
    // and here takes for a body.
    let is_unread = line.code.as_deref().is_some_and(|code| code == BAD_FRAMING || code == "overloaded");
    if closes && (is_unread || matches!(response.status().as_u16(), 408 | 413 | 421 | 431)) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    line.outcome = Some((response.status().as_u16(), response.body().size_hint().exact().unwrap_or(0)));
    response
}

/// Lets in who may, refuses what a foreign page sends, bounds the body, decompresses it where it is compressed, and writes down
/// what was done.
async fn admitted(around: &Around, mut request: Request, next: Next) -> Response {
    let route = Route::of(&request);
    let needs = match around.needs_of(&route) {
        Ok(needs) => needs,
        Err(error) => return error.into_response(),
    };
    let from = request.extensions().get::<Peer>().map(|peer| peer.0);
    let request_id = request.extensions().get::<RequestId>().cloned();
    let request_id = request_id.as_ref().map_or("", |id| &*id.0);
    let entrance = Entrance { route: route.as_str(), from, request_id };
    // A path that is none tells nobody so who has no key.
    let needed = needs.map_or(Some(Role::Infer), |needs| needs.role(request.method()));
    let entered = match around.looks_only(needs, request.method(), &entrance) {
        Some(refused) => Err(refused),
        None => around.enter(needed, &request, &entrance),
    };
    let caller = match entered {
        Ok(caller) => caller,
        Err(refused) => {
            let (entry, response) = around.refuse(refused, needs, &request, &entrance);
            if let Some(entry) = entry {
                around.gate.audit().write(entry).await;
            }
            return response;
        }
    };
    let limit = around.body_limit(route.as_str(), needs, caller.as_ref());
    let held = match around.checked(&request, route.as_str(), limit) {
        Ok(held) => held,
        Err(error) => return error.into_response(),
    };
    let is_audited = needs.is_some_and(|needs| needs.is_audited) && !request.method().is_safe();
    let entry = is_audited.then(|| {
        let who = caller.as_ref().map_or(Who::Anybody, Who::Known);
        Audited::begin(around.gate.audit(), entrance.entry(who, &request))
    });
    if let Some(sender) = access::sender(caller.as_ref(), from) {
        request.extensions_mut().insert(sender);
    }
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let response = limit.reworded(answered(bounded(request, limit, held.as_ref()), held, next).await);
    if let Some(entry) = entry {
        let about = response.extensions().get::<About>().map(|About(model)| model.to_string());
        entry.finish(response.status().as_u16(), about).await;
    }
    response
}

async fn answered(request: Request, held: Option<Arc<Held>>, next: Next) -> Response {
    if !request.headers().contains_key(header::CONTENT_ENCODING) {
        return next.run(request).await;
    }
    let next = next.map_request(move |request: axum::http::Request<DecompressionBody<Body>>| {
        request.map(|body| match &held {
            Some(held) => counted::counting(held.clone(), Body::new(body)),
            None => Body::new(body),
        })
    });
    match RequestDecompressionLayer::new().layer(next).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => ApiError::internal(format!("decompression: {error}")).into_response(),
    }
}

impl Around {
    /// What the request's body holds while it is answered, where it may be read; an upload holds nothing, since it goes to the disk
    /// as it comes.
    fn checked(&self, request: &Request, route: &str, limit: BodyLimit) -> Result<Option<Arc<Held>>, ApiError> {
        if let Some(error) = refusal(self, request, limit) {
            return Err(error);
        }
        let is_kept = !UPLOADS.contains(&route) && !request.body().is_end_stream();
        Ok(is_kept.then(|| counted::hold(&self.bodies, request.body())).transpose()?)
    }

    /// The answer to somebody who is not let in: people get a page. Beside it what is to be written down: an attempt to change
    /// something by a key that may not.
    fn refuse(
        &self,
        Refused { error, why }: Refused,
        needs: Option<Needs>,
        request: &Request,
        entrance: &Entrance<'_>,
    ) -> (Option<AuditEntry>, Response) {
        let entry = match &why {
            Why::RoleTooLow(caller) if needs.is_some_and(|needs| needs.is_audited) => {
                let mut entry = entrance.entry(Who::Known(caller), request);
                entry.status = error.status().as_u16();
                Some(entry)
            }
            Why::RoleTooLow(_) | Why::NoKey | Why::Denied(_) => None,
        };
        (entry, dashboard::refused(&self.engine, request, &error).unwrap_or_else(|| error.into_response()))
    }
}

/// Why a request is not let in, as far as its head tells: it is a foreign page's, or its body is too large. A declared
/// length over the limit is refused before `100 Continue` is sent, as is one that there is no room for.
fn refusal(around: &Around, request: &Request, limit: BodyLimit) -> Option<ApiError> {
    let is_own = request.method().is_safe() || around.is_own_origin(&around.origins, request);
    if !is_own {
        return Some(ApiError::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "a page of another origin may not call this server; add the origin to server.cors_origins",
        ));
    }
    (request.body().size_hint().lower() > limit.bytes as u64).then(|| limit.error())
}

/// Bounds the bytes on the wire, and counts them as they come; `body::read` bounds them again after decompression.
fn bounded(request: Request, limit: BodyLimit, held: Option<&Arc<Held>>) -> Request {
    // A declared length is kept by the HTTP library.
    if request.body().size_hint().exact().is_some() {
        return request;
    }
    request.map(|body| {
        let body = Body::new(Limited::new(body, limit.bytes));
        match held {
            Some(held) => counted::counting(held.clone(), body),
            None => body,
        }
    })
}

/// One line of the access log, written when dropped: also for a client that did not wait for its answer. Of refusals that come by
/// the hundred only some are.
struct AccessLine {
    method: Method,
    route: Route,
    id: Arc<str>,
    started: Instant,
    trace: RequestTrace,
    /// Status and bytes of the answer.
    outcome: Option<(u16, u64)>,
    /// Why it was refused, or failed.
    code: Option<Cow<'static, str>>,
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let (status, bytes) = self.outcome.unwrap_or((CLIENT_CLOSED, 0));
        let duration_ms = self.started.elapsed().as_secs_f64() * 1000.0;
        self.trace.end(status, Some("client_closed"), None);
        let method = method_name(&self.method);
        let (route, request_id, trace_id) = (self.route.as_str(), &*self.id, self.trace.id());
        let code = self.code.as_deref();
        if matches!(route, "/livez" | "/readyz" | "/healthz" | "/metrics") || route.starts_with("/v2/health/") {
            tracing::debug!(
                method,
                route,
                status,
                duration_ms,
                bytes,
                code,
                request_id,
                trace_id,
                "{method} {route} {status}"
            );
        } else if protocol::writes_line(status, code) {
            tracing::info!(
                method,
                route,
                status,
                duration_ms,
                bytes,
                code,
                request_id,
                trace_id,
                "{method} {route} {status}"
            );
        }
    }
}

/// A method is any token, of any length.
pub(super) fn method_name(method: &Method) -> &str {
    if is_known(method) { method.as_str() } else { "other" }
}

fn is_known(method: &Method) -> bool {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::TRACE,
        Method::CONNECT,
    ];
    KNOWN.contains(method)
}

/// Gives an error answer its body; logs the inner detail of a fault of ours, once. Gives the error's code beside it.
fn write_problem(mut response: Response, path: &str, id: &str) -> (Response, Option<Cow<'static, str>>) {
    let status = response.status();
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if is_error(status) && response.body().size_hint().exact() == Some(0) => {
            error::problem_of_status(status, response.headers())
        }
        None => return (response, None),
    };
    if let Some(detail) = &problem.internal {
        let code = &*problem.code;
        tracing::error!(request_id = id, code, detail, "request {id} failed: {}", detail.escape_debug());
    }
    let (media_type, body) = error::render(&problem, path, id);
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    parts.headers.remove(header::CONTENT_LENGTH);
    (Response::from_parts(parts, Body::from(body)), Some(problem.code))
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// A panic in a handler is a fault of ours and of this request alone. Its text may hold anything: only the log sees it.
fn panicked(payload: Box<dyn Any + Send>) -> Response {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    ApiError::internal(format!("panic: {}", text.unwrap_or_else(|| "without text".to_owned()))).into_response()
}

fn add_security_headers(response: &mut Response, is_docs: bool) {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Without a referrer to their own server, browsers give the forms of our pages no origin either.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    if !is_docs && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html")) {
        // The browsable API document brings its pictures as data: URLs and sets styles from its script.
        let policy = if is_docs {
            "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; \
             base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        } else {
            // Pictures and sounds that were tried are shown again from the page itself.
            "default-src 'self'; img-src 'self' data:; media-src data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        };
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    }
}

/// Which names clients may call this server by. A page of another name that resolves to this machine (DNS rebinding)
/// would otherwise talk to it with the user's browser.
struct HostRule {
    any: bool,
    listen: IpAddr,
    /// Lower case, without a trailing dot; with or without a port.
    names: Vec<String>,
}

impl HostRule {
    fn new(settings: &HttpSettings, listen: IpAddr) -> HostRule {
        let names: Vec<String> = settings.allowed_hosts.iter().map(|name| normal(name)).collect();
        HostRule { any: names.iter().any(|name| name == "*"), listen, names }
    }

    fn allows(&self, authority: &str) -> bool {
        // What nearly all clients say is told without parsing.
        let (name, port) = authority.split_once(':').unwrap_or((authority, ""));
        if matches!(name, "localhost" | "127.0.0.1") && port.bytes().all(|byte| byte.is_ascii_digit()) {
            return true;
        }
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        if self.any {
            return true;
        }
        let host = normal(authority.host());
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            // An address cannot be rebound: where every address is listened on, any that reaches us is ours.
            if address.is_loopback() || address == self.listen || self.listen.is_unspecified() {
                return true;
            }
        }
        host == "localhost"
            || host.ends_with(".localhost")
            || self.names.iter().any(|name| *name == host || *name == normal(authority.as_str()))
    }
}

fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// What is wrong with a request's head: its size, how its body is framed, or its `Host`.
fn head_problem(around: &Around, request: &Request) -> Option<ApiError> {
    // A connection reads ahead in larger pieces than a head may have.
    let (limit, size) = (around.max_header_bytes, head_size(request));
    if size > limit {
        return Some(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            format!("the request's head has {size} bytes; limits.max_header_bytes is {limit}"),
        ));
    }
    // Of HTTP/1 the library refuses as many itself, before there is a request.
    let (most, fields) = (around.max_headers, request.headers().len());
    if fields > most {
        return Some(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            format!("the request's head has {fields} fields; limits.max_headers is {most}"),
        ));
    }
    framing_problem(request.headers()).or_else(|| host_problem(&around.hosts, request))
}

/// The code of a body whose end another server may see elsewhere.
const BAD_FRAMING: &str = "bad_transfer_encoding";

/// The HTTP library takes any list of encodings whose last is `chunked`, twice or more often, too, and undoes that alone.
fn framing_problem(headers: &HeaderMap) -> Option<ApiError> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let (first, second) = (encodings.next()?, encodings.next());
    let is_chunked = second.is_none() && first.as_bytes().eq_ignore_ascii_case(b"chunked");
    (!is_chunked).then(|| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            BAD_FRAMING,
            "expected one header Transfer-Encoding: chunked, or Content-Length alone; compressed bodies say Content-Encoding: gzip",
        )
    })
}

/// Bytes of a head, about as HTTP/1.1 writes it: `name: value` and a line end for each field.
fn head_size(request: &Request) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    fields.fold(target, usize::saturating_add)
}

fn host_problem(rule: &HostRule, request: &Request) -> Option<ApiError> {
    let bad = |detail: &str| Some(ApiError::new(StatusCode::BAD_REQUEST, "bad_host_header", detail));
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return bad("the request has more than one Host header");
    }
    if host.is_none() && request.version() == Version::HTTP_11 {
        return bad("an HTTP/1.1 request must have a Host header");
    }
    let host = match host.map(HeaderValue::to_str) {
        Some(Ok(host)) => Some(host),
        Some(Err(_)) => return bad("the Host header is not a host name"),
        None => None,
    };
    // HTTP/2 and the absolute form of HTTP/1 name the host in the request's target; both must be ours.
    let target = request.uri().authority().map(Authority::as_str);
    let allowed = [host, target].into_iter().flatten().all(|name| rule.allows(name));
    if allowed {
        return None;
    }
    Some(ApiError::new(
        StatusCode::MISDIRECTED_REQUEST,
        "host_not_allowed",
        "the Host header names a host that this server does not answer for; add it to server.allowed_hosts",
    ))
}

/// A page of another site can make a browser send requests that change something; what the browser says of the page's
/// origin tells them apart. Programs send neither header. Where we speak TLS ourselves, a page without it is another's: who stands
/// between can make one up. Without, a proxy before us may speak it for us.
fn is_own_origin(origins: &[String], is_tls: bool, headers: &HeaderMap, target: Option<&Authority>) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return headers.get("sec-fetch-site").is_none_or(|site| site != "cross-site");
    };
    let Ok(origin) = origin.to_str() else { return false };
    if origins.iter().any(|allowed| allowed == "*" || allowed == origin) {
        return true;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or(target.map(Authority::as_str));
    let own_scheme = |scheme: &str| scheme == "https" || (scheme == "http" && !is_tls);
    let authority = origin.split_once("://").filter(|(scheme, _)| own_scheme(scheme)).map(|(_, authority)| authority);
    matches!((authority, host), (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host))
}

/// Browsers of these origins may call every route and read the headers that tell of the request.
fn cors(origins: &[String]) -> CorsLayer {
    let origins = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers([
            header::CONTENT_TYPE,
            header::ACCEPT,
            header::AUTHORIZATION,
            API_KEY,
            REQUEST_ID,
            TRACEPARENT,
            TRACESTATE,
        ])
        .expose_headers([REQUEST_ID, SERVER_TIMING, outcome::CACHE, header::RETRY_AFTER])
        .max_age(Duration::from_secs(600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_host_rule(listen: &str, allowed: &[&str], host: &str, expected: bool) {
        let settings = HttpSettings {
            allowed_hosts: allowed.iter().map(|name| (*name).to_owned()).collect(),
            ..HttpSettings::default()
        };
        let rule = HostRule::new(&settings, listen.parse().unwrap());
        assert_eq!(rule.allows(host), expected, "{listen} {allowed:?} {host}");
    }

    /// F41.
    #[test]
    fn a_host_is_loopback_our_address_or_allowed_by_name() {
        for host in
            ["localhost", "LOCALHOST:8080", "localhost.", "a.localhost:1", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"]
        {
            check_host_rule("127.0.0.1", &[], host, true);
        }
        for host in
            ["evil.example", "localhost.evil.example", "10.0.0.5", "0.0.0.0", "evil@localhost", "", "a b", "[::2]"]
        {
            check_host_rule("127.0.0.1", &[], host, false);
        }
        check_host_rule("10.0.0.5", &[], "10.0.0.5:8080", true);
        check_host_rule("10.0.0.5", &[], "10.0.0.6:8080", false);
        check_host_rule("0.0.0.0", &[], "10.0.0.6:8080", true);
        check_host_rule("0.0.0.0", &[], "evil.example", false);
        check_host_rule("127.0.0.1", &["api.example"], "API.example.:443", true);
        check_host_rule("127.0.0.1", &["api.example:443"], "api.example:443", true);
        check_host_rule("127.0.0.1", &["api.example:443"], "api.example:80", false);
        check_host_rule("127.0.0.1", &["*"], "evil.example", true);
    }

    /// F42.
    #[test]
    fn a_page_of_another_origin_may_not_change_anything() {
        type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], bool);
        let own = [("origin", "http://localhost:8080"), ("host", "localhost:8080")];
        let own_tls = [("origin", "https://localhost:8080"), ("host", "localhost:8080")];
        let rows: [Row<'_>; 10] = [
            (&[], &[], true),
            (&[], &own, true),
            // A proxy before us may speak TLS.
            (&[], &own_tls, true),
            (&[], &[("origin", "ftp://localhost:8080"), ("host", "localhost:8080")], false),
            (&[], &[("origin", "http://localhost:9090"), ("host", "localhost:8080")], false),
            (&[], &[("origin", "null"), ("host", "localhost:8080")], false),
            (&[], &[("sec-fetch-site", "cross-site")], false),
            (&[], &[("sec-fetch-site", "same-origin")], true),
            (&["https://ui.example"], &[("origin", "https://ui.example"), ("host", "localhost")], true),
            (&["*"], &[("origin", "https://any.example"), ("host", "localhost")], true),
        ];
        let header_map = |headers: &[(&str, &str)]| -> HeaderMap {
            let header = |(name, value): &(&str, &str)| {
                (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
            };
            headers.iter().map(header).collect()
        };
        for (origins, headers, expected) in rows {
            let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
            assert_eq!(is_own_origin(&origins, false, &header_map(headers), None), expected, "{headers:?}");
        }
        assert!(is_own_origin(&[], true, &header_map(&own_tls), None));
        assert!(!is_own_origin(&[], true, &header_map(&own), None), "a page without TLS");
    }
}

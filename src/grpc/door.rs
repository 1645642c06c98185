//! What surrounds every call, in one order: name, measure, count and log; find it in the table; key and role; bounds on its message
//! and its time; audit log; the call.
//!
//! Text from outside reaches the log and the answer only cleaned: the request id by its rule, the path as the table has it.

use super::GrpcState;
use super::calls::{Call, Kind};
use super::error::GrpcError;
use super::health::HealthService;
use super::inbound::{Inbound, Room};
use super::messages::Messages;
use super::pb;
use super::pb::grpc_inference_service_server::GrpcInferenceServiceServer;
use super::service::InferenceService;
use super::visit::{Known, LimitOf, MessageLimit, Visit, timeout_of};
use crate::auth::{AuditEntry, Audited, Caller, Denied, Role, Who, network_of};
use crate::engine::Sender;
use crate::entrance::{REQUEST_ID, Service, presented_key, request_id};
use crate::protocol::{Tally, rejected, writes_line};
use crate::telemetry::Stats;
use crate::telemetry::stats::Protocol;
use crate::telemetry::trace::{RequestFacts, RequestTrace};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::any::Any;
use std::borrow::Cow;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tower::Service as _;

/// What a message without tensors and files may have.
const SMALL_MESSAGE_BYTES: usize = 16 << 10;

/// The entrance of all connections. Clones are the same.
#[derive(Clone)]
pub(super) struct Door(Arc<Inner>);

struct Inner {
    state: GrpcState,
    inference: GrpcInferenceServiceServer<InferenceService>,
    health: HealthServer<HealthService>,
    reflection: Reflection,
    reflection_alpha: Reflection,
}

/// A service whose type has no name.
type Reflection =
    Box<dyn Fn(Request<Inbound<Incoming>>) -> BoxFuture<'static, Result<Response<Body>, Infallible>> + Send + Sync>;

impl Door {
    /// # Errors
    /// Where the descriptors cannot be read, which a test would have found.
    pub(super) fn new(state: GrpcState) -> Result<Door, tonic_reflection::server::Error> {
        let described = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let (v1, alpha) = (described().build_v1()?, described().build_v1alpha()?);
        let inference = GrpcInferenceServiceServer::new(InferenceService(state.clone()))
            // Answers are sent as they are: a client that could read gzip has not asked for it.
            .accept_compressed(CompressionEncoding::Gzip);
        let health = HealthService { engine: state.engine.clone(), stopping: state.tasks.stopping().clone() };
        Ok(Door(Arc::new(Inner {
            inference,
            health: HealthServer::new(health).max_decoding_message_size(SMALL_MESSAGE_BYTES),
            reflection: Box::new(move |request| {
                v1.clone().max_decoding_message_size(SMALL_MESSAGE_BYTES).call(request)
            }),
            reflection_alpha: Box::new(move |request| {
                alpha.clone().max_decoding_message_size(SMALL_MESSAGE_BYTES).call(request)
            }),
            state,
        })))
    }
}

impl Door {
    pub(super) fn stats(&self) -> Stats {
        self.0.state.engine.stats().clone()
    }
}

impl Service for Door {
    type Body = Answer;

    async fn call(&self, request: Request<Incoming>, from: Option<IpAddr>) -> Response<Answer> {
        let (arrival, request_id) = (Instant::now(), request_id(request.headers()));
        let call = Call::find(request.uri().path());
        let path = call.map_or("unmatched", |call| call.path);
        let stats = self.0.state.engine.stats();
        let facts = RequestFacts { method: "POST", route: path, request_id: &request_id, started: arrival.into_std() };
        let trace = RequestTrace::begin(request.headers(), facts);
        let is_probe = call.is_some_and(Call::is_probe);
        let mut line =
            Line { path, is_probe, request_id: request_id.clone(), arrival, trace, outcome: None, word: None };
        let tally = Tally::begin(call.and_then(Call::protocol), stats, arrival.into_std());
        let arrived = Arrived { request_id: request_id.clone(), arrival, from, tally: tally.clone() };
        let work = self.0.answer(call, request, arrived);
        let answered = line.trace.follow(AssertUnwindSafe(work).catch_unwind()).await.unwrap_or_else(|payload| {
            stats.record_panic();
            Err(panicked(payload))
        });
        let (mut response, body_line) = match answered {
            Ok(response) => {
                tally.finish(200, None);
                let goes_on = call.is_some_and(Call::goes_on);
                if !goes_on {
                    let cache = response.headers().get("x-ortus-cache").and_then(|word| word.to_str().ok());
                    line.ended(Code::Ok, 200, None, cache);
                }
                (response, goes_on.then_some(line))
            }
            Err(error) => {
                error.log(&request_id);
                if let Some(reason) = rejected(&error.word) {
                    stats.record_rejected(reason);
                }
                line.ended(error.code, error.http, Some(&error.word), None);
                let tally = match call {
                    Some(call) if call.kind == Kind::Predictions => {
                        Tally::begin(Some(Protocol::Grpc), stats, arrival.into_std())
                    }
                    Some(_) | None => tally,
                };
                tally.finish(error.http, Some(error.word.clone()));
                (refusal(error), None)
            }
        };
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        response.map(|body| Answer { body, line: body_line })
    }
}

/// A call before it is let in.
struct Arrived {
    request_id: Arc<str>,
    arrival: Instant,
    from: Option<IpAddr>,
    tally: Tally,
}

impl Inner {
    /// The answer to a call, as far as it has begun.
    async fn answer(
        &self,
        call: Option<&'static Call>,
        request: Request<Incoming>,
        arrived: Arrived,
    ) -> Result<Response<Body>, GrpcError> {
        check_form(&request, self.state.settings.connections.max_headers)?;
        // A path that is none tells nobody so who has no key.
        let needs = call.map_or(Some(Role::Infer), |call| call.needs);
        let caller = self.enter(call, needs, request.headers(), &arrived).await?;
        let Some(call) = call else {
            let text = "there is no such call; ask the server's reflection for those there are";
            return Err(GrpcError::new(Code::Unimplemented, 501, "call_not_found", text));
        };
        if let Kind::NotServed(why) = call.kind {
            return Err(GrpcError::new(Code::Unimplemented, 501, "not_served", why));
        }
        let message = self.message_limit(call, caller.as_ref());
        let deadline = timeout_of(request.headers())?.map(|timeout| arrived.arrival + timeout);
        let entry = (call.kind == Kind::Manage).then(|| {
            let who = caller.as_ref().map_or(Who::Anybody, Who::Known);
            Audited::begin(self.state.auth.audit(), entry(call, who, &arrived))
        });
        let visit = Visit(Arc::new(Known {
            request_id: arrived.request_id,
            arrival: arrived.arrival,
            deadline,
            tally: arrived.tally,
            sender: Sender::of(caller.as_ref().map(|caller| caller.id.number()), arrived.from.map(network_of)),
            message,
            messages: call.is_loaded().then(|| Messages::of(&self.state.bodies)),
            headers: if call.kind == Kind::Predictions { request.headers().clone() } else { HeaderMap::new() },
            about: OnceLock::new(),
        }));
        let result = self.within(deadline, call, request, visit.clone()).await;
        if let Some(entry) = entry {
            let status = result.as_ref().map_or_else(|error| error.http, |_| 200);
            entry.finish(status, visit.0.about.get().map(ToString::to_string)).await;
        }
        result
    }

    /// Who asks, where that matters. Refused guesses, and attempts to change something by a key that may not, are written down.
    async fn enter(
        &self,
        call: Option<&'static Call>,
        needs: Option<Role>,
        headers: &HeaderMap,
        arrived: &Arrived,
    ) -> Result<Option<Caller>, GrpcError> {
        let gate = &self.state.auth;
        let Some(needs) = needs.filter(|_| gate.is_on()) else { return Ok(None) };
        let Some(key) = presented_key(headers)? else {
            let text =
                "this server asks for a key: send it as metadata `authorization: Bearer KEY` or `x-api-key: KEY`";
            return Err(GrpcError::new(Code::Unauthenticated, 401, "unauthorized", text));
        };
        let checked = gate.check(key, arrived.from, std::time::Instant::now());
        let written =
            |who, status| call.map(|call| gate.audit().write(AuditEntry { status, ..entry(call, who, arrived) }));
        let caller = match checked {
            Ok(caller) => caller,
            Err(denied) => {
                let error = GrpcError::from(&denied);
                if matches!(denied, Denied::TooManyWrong { is_first: true, .. }) {
                    drop(written(Who::Refused, error.http));
                }
                return Err(error);
            }
        };
        if caller.role >= needs {
            return Ok(Some(caller));
        }
        if let Some(written) = written(Who::Known(&caller), 403) {
            written.await;
        }
        let (id, role) = (&caller.id, caller.role.name());
        let text = format!("key {id} has the role '{role}'; this takes a key of the role '{}'", needs.name());
        Err(GrpcError::new(Code::PermissionDenied, 403, "role_too_low", text))
    }

    fn message_limit(&self, call: &Call, caller: Option<&Caller>) -> MessageLimit {
        let all = self.state.settings.max_body_bytes;
        let limit = if call.is_loaded() || all < SMALL_MESSAGE_BYTES {
            MessageLimit { bytes: all, source: LimitOf::All }
        } else {
            MessageLimit { bytes: SMALL_MESSAGE_BYTES, source: LimitOf::Call }
        };
        let own = caller.and_then(|caller| caller.max_body_bytes).map(|own| usize::try_from(own).unwrap_or(usize::MAX));
        match own {
            Some(own) if own < limit.bytes => MessageLimit { bytes: own, source: LimitOf::Key },
            Some(_) | None => limit,
        }
    }

    /// Makes the call. One that goes on is not ended by its deadline: its client ends it, and each of its requests has its own.
    async fn within(
        &self,
        deadline: Option<Instant>,
        call: &Call,
        request: Request<Incoming>,
        visit: Visit,
    ) -> Result<Response<Body>, GrpcError> {
        let (message, messages) = (visit.0.message, visit.0.messages.clone());
        let room = messages.clone().map(|messages| Room::new(messages, message.bytes));
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(visit);
        let time = self.state.settings.body_read_timeout;
        let (body, deadline) = match call.goes_on() {
            true => (Inbound::until_stop(body, self.state.tasks.stopping(), time, room), None),
            false => (Inbound::within(body, time, room), deadline),
        };
        let work = self.dispatch(call, message, Request::from_parts(parts, body));
        let work = async {
            match messages {
                Some(messages) => messages.within(work).await,
                None => work.await,
            }
        };
        let response = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, work).await.map_err(|_| GrpcError::too_late())?,
            None => work.await,
        };
        match response.extensions().get::<Status>() {
            Some(status) => Err(GrpcError::of_status(status, || message.exceeded())),
            None => Ok(response),
        }
    }

    async fn dispatch(
        &self,
        call: &Call,
        message: MessageLimit,
        request: Request<Inbound<Incoming>>,
    ) -> Response<Body> {
        let service = call.path.split('/').nth(1).unwrap_or_default();
        let result = match service {
            GrpcInferenceServiceServer::<InferenceService>::NAME => {
                self.inference.clone().max_decoding_message_size(message.bytes).call(request).await
            }
            HealthServer::<HealthService>::NAME => self.health.clone().call(request).await,
            "grpc.reflection.v1.ServerReflection" => (self.reflection)(request).await,
            _ => (self.reflection_alpha)(request).await,
        };
        result.unwrap_or_else(|never: Infallible| match never {})
    }
}

/// Whether a request is a call at all. A page in a browser can send none without being asked whether it may: the type is not one
/// that pages send freely.
fn check_form(request: &Request<Incoming>, max_headers: usize) -> Result<(), GrpcError> {
    let fields = request.headers().len();
    if fields > max_headers {
        let text = format!("the call has {fields} fields of metadata; limits.max_headers is {max_headers}");
        return Err(GrpcError::new(Code::ResourceExhausted, 431, "headers_too_large", text));
    }
    if request.method() != Method::POST {
        return Err(GrpcError::new(Code::Unimplemented, 405, "method_not_allowed", "a call is a POST"));
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_grpc = content_type.strip_prefix(b"application/grpc").is_some_and(|rest| {
        rest.is_empty() || rest.starts_with(b";") || rest == b"+proto" || rest.starts_with(b"+proto;")
    });
    if !is_grpc {
        let text = "this port speaks gRPC: the content type of a call is application/grpc";
        return Err(GrpcError::new(Code::Unknown, 415, "unsupported_media_type", text));
    }
    Ok(())
}

/// The entry of a call, not yet answered.
fn entry(call: &Call, who: Who<'_>, arrived: &Arrived) -> AuditEntry {
    AuditEntry {
        key: who.name(arrived.from),
        action: format!("POST {}", call.path),
        model: None,
        version: None,
        id: None,
        from: arrived.from,
        status: 499,
        request_id: arrived.request_id.to_string(),
    }
}

/// A refusal as it is sent.
fn refusal(error: GrpcError) -> Response<Body> {
    let http = error.http;
    let status = Status::from(error);
    let is_unimplemented = status.code() == Code::Unimplemented;
    let mut response = status.into_http();
    if is_unimplemented {
        // A client whose compression is not known has to be told which are.
        response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity,gzip"));
    }
    // Who speaks no gRPC reads no code.
    if matches!(http, 405 | 415) {
        *response.status_mut() = StatusCode::from_u16(http).unwrap_or_default();
    }
    response
}

/// A panic in a call is a fault of ours and of this call alone. Its text may hold anything: only the log sees it.
fn panicked(payload: Box<dyn Any + Send>) -> GrpcError {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    GrpcError::internal(format!("panic: {text}"))
}

/// One line of the access log, written when dropped: also for a client that did not wait for its answer.
struct Line {
    path: &'static str,
    is_probe: bool,
    request_id: Arc<str>,
    arrival: Instant,
    trace: RequestTrace,
    /// The code, and what it is over HTTP.
    outcome: Option<(Code, u16)>,
    /// Why it was refused, or failed.
    word: Option<Cow<'static, str>>,
}

impl Line {
    fn ended(&mut self, code: Code, http: u16, word: Option<&Cow<'static, str>>, cache: Option<&str>) {
        self.trace.end(http, word.map(|word| &**word), cache);
        self.outcome = Some((code, http));
        self.word = word.cloned();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let (code, status) = self.outcome.unwrap_or((Code::Cancelled, 499));
        let duration_ms = self.arrival.elapsed().as_secs_f64() * 1000.0;
        let trace_id = self.trace.id();
        self.trace.end(status, Some("client_closed"), None);
        let (route, request_id) = (self.path, &*self.request_id);
        let word = self.word.as_deref();
        if self.is_probe {
            tracing::debug!(route, status, duration_ms, code = word, request_id, trace_id, "gRPC {route} {code:?}");
        } else if writes_line(status, word) {
            tracing::info!(route, status, duration_ms, code = word, request_id, trace_id, "gRPC {route} {code:?}");
        }
    }
}

/// An answer on its way; of one that goes on, its line in the log waits for its end.
pub(super) struct Answer {
    body: Body,
    line: Option<Line>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let poll = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &poll
            && let Some(trailers) = frame.trailers_ref()
            && let Some(line) = &mut self.line
        {
            let code = Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code());
            line.ended(code, http_of(code), None, None);
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the end of a stream is over HTTP.
fn http_of(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument => 400,
        Code::ResourceExhausted => 413,
        Code::Cancelled => 499,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        _ => 500,
    }
}

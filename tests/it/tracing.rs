//! Traces against a collector that speaks OTLP: what spans there are, whose they are, and that a collector that is gone holds
//! nothing up.

use crate::server::{PATIENCE, Server, command, store_of, wait_until};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What was received, in order.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Received {
    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|spans| &spans.scope_spans).flat_map(|spans| spans.spans.clone()).collect()
    }

    fn of_trace(&self, trace: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace).collect()
    }
}

struct Collector {
    received: Received,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start() -> Collector {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let received = Received::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(received.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Collector { received, address, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A span's attribute as text.
fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    let value: Value = serde_json::from_str(&serde_json::to_string(&text_of(found.value.as_ref()?)).unwrap()).unwrap();
    value.as_str().map(ToOwned::to_owned)
}

fn text_of(value: &opentelemetry_proto::tonic::common::v1::AnyValue) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    match value.value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Quick, so that a test need not wait for the usual five seconds.
fn traced(collector: &str) -> Vec<(&str, &str)> {
    vec![("ORTUS_TELEMETRY__OTLP_ENDPOINT", collector), ("OTEL_BSP_SCHEDULE_DELAY", "100")]
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn predict(server: &Server, traceparent: &str, body: &Value) -> u16 {
    let request = server.post("/v1/models/embedder/predict").header("traceparent", traceparent);
    request.json(body).send().unwrap().status().as_u16()
}

#[test]
fn a_request_is_a_span_of_its_callers_trace_and_its_stages_lie_below() {
    let collector = Collector::start();
    let url = collector.url();
    let server = Server::start(&["embedder"], &traced(&url));
    let body = json!({"inputs": ["a secret text", "another"]});
    assert_eq!(predict(&server, &format!("00-{TRACE}-{PARENT}-01"), &body), 200);
    wait_until(|| collector.received.of_trace(TRACE).iter().any(|span| span.kind() == SpanKind::Server));
    let spans = collector.received.of_trace(TRACE);
    let whole = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(whole.name, "POST /v1/models/{name}/predict");
    assert_eq!(hex(&whole.parent_span_id), PARENT);
    let expected = [
        ("http.request.method", "POST"),
        ("http.route", "/v1/models/{name}/predict"),
        ("http.response.status_code", "200"),
        ("ortus.model.name", "embedder"),
        ("ortus.model.version", "1"),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(whole, key).as_deref(), Some(value), "{key}");
    }
    for stage in ["preprocess", "queue", "run", "postprocess"] {
        let [span] = spans.iter().filter(|span| span.name == stage).collect::<Vec<_>>()[..] else {
            panic!("{stage}: {spans:?}")
        };
        assert_eq!(span.parent_span_id, whole.span_id, "{stage}");
        assert!(whole.start_time_unix_nano <= span.start_time_unix_nano, "{stage}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{stage}");
        assert!(span.end_time_unix_nano <= whole.end_time_unix_nano, "{stage}");
    }
    // Nothing of what the client sent.
    assert!(!format!("{spans:?}").contains("secret"));
    let resource = format!("{:?}", collector.received.0.lock().unwrap()[0].resource_spans[0].resource);
    assert!(resource.contains("\"ortus\"") && resource.contains(env!("CARGO_PKG_VERSION")), "{resource}");
}

#[test]
fn a_request_that_its_caller_does_not_sample_is_not_exported_and_one_without_a_trace_begins_one() {
    let collector = Collector::start();
    let url = collector.url();
    let server = Server::start(&["embedder"], &traced(&url));
    assert_eq!(predict(&server, &format!("00-{TRACE}-{PARENT}-00"), &json!({"inputs": ["a"]})), 200);
    assert_eq!(predict(&server, "00-nonsense", &json!({"inputs": 3})), 422);
    let refused = |span: &&Span| attribute(span, "http.response.status_code").as_deref() == Some("422");
    wait_until(|| collector.received.spans().iter().any(|span| refused(&span)));
    let spans = collector.received.spans();
    let refused = spans.iter().find(refused).unwrap();
    assert_eq!(refused.parent_span_id, [0u8; 0]);
    assert_eq!(attribute(refused, "error.type").as_deref(), Some("invalid_input"));
    // The client's mistake is no error of the server.
    assert!(refused.status.as_ref().is_none_or(|status| status.code == 0), "{refused:?}");
    assert!(collector.received.of_trace(TRACE).is_empty());
}

#[test]
fn a_batch_links_to_its_requests() {
    let collector = Collector::start();
    let url = collector.url();
    let mut environment = traced(&url);
    environment.extend([("ORTUS_BATCH__TIMEOUT_MS", "300"), ("ORTUS_BATCH__INSTANCES", "1")]);
    let server = Server::start(&["embedder"], &environment);
    let begun = Instant::now();
    let batch = loop {
        assert!(begun.elapsed() < PATIENCE, "no batch of two requests: {:?}", collector.received.spans());
        std::thread::scope(|scope| {
            for number in 1..=4 {
                let (server, parent) = (&server, format!("00-{number:032x}-{PARENT}-01"));
                scope.spawn(move || assert_eq!(predict(server, &parent, &json!({"inputs": ["a"]})), 200));
            }
        });
        let spans = collector.received.spans();
        if let Some(batch) = spans.into_iter().find(|span| span.name == "batch" && span.links.len() > 1) {
            break batch;
        }
    };
    assert_eq!(attribute(&batch, "ortus.batch.rows"), attribute(&batch, "ortus.batch.parts"));
    assert_eq!(attribute(&batch, "ortus.model.name").as_deref(), Some("embedder"));
    let linked: BTreeSet<Vec<u8>> = batch.links.iter().map(|link| link.span_id.clone()).collect();
    assert_eq!(linked.len(), batch.links.len(), "each request once");
    let servers = || collector.received.spans().into_iter().filter(|span| span.kind() == SpanKind::Server);
    wait_until(|| linked.iter().all(|id| servers().any(|span| span.span_id == *id)));
    assert!(linked.contains(&batch.parent_span_id));
}

#[test]
fn the_last_spans_are_sent_at_the_stop() {
    let collector = Collector::start();
    let url = collector.url();
    let mut server = Server::start(
        &["embedder"],
        &[("ORTUS_TELEMETRY__OTLP_ENDPOINT", &url), ("OTEL_BSP_SCHEDULE_DELAY", "600000")],
    );
    assert_eq!(predict(&server, &format!("00-{TRACE}-{PARENT}-01"), &json!({"inputs": ["a"]})), 200);
    assert!(collector.received.of_trace(TRACE).is_empty());
    server.terminate();
    assert!(server.wait_exit().success());
    assert!(collector.received.of_trace(TRACE).iter().any(|span| span.kind() == SpanKind::Server));
}

#[test]
fn a_collector_that_is_gone_holds_nothing_up() {
    // A port that nobody listens on.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let mut server = Server::start(&["embedder"], &traced(&url));
    for _ in 0..20 {
        assert_eq!(predict(&server, &format!("00-{TRACE}-{PARENT}-01"), &json!({"inputs": ["a"]})), 200);
    }
    let stopped = Instant::now();
    server.terminate();
    assert!(server.wait_exit().success());
    assert!(stopped.elapsed() < PATIENCE);
}

#[test]
fn the_log_names_the_trace() {
    let store = store_of(&["embedder"]);
    let log = store.path().join("log");
    let mut command = command();
    command
        .env("ORTUS_TELEMETRY__LOG_FORMAT", "json")
        .env("ORTUS_TELEMETRY__LOG_LEVEL", "info")
        .stderr(std::fs::File::create(&log).unwrap());
    let mut server = Server::launch_by(command, store, &[]);
    server.wait_ready();
    assert_eq!(predict(&server, &format!("00-{TRACE}-{PARENT}-00"), &json!({"inputs": ["a"]})), 200);
    server.terminate();
    assert!(server.wait_exit().success());
    let log = std::fs::read_to_string(log).unwrap();
    let mut lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.find(|line| line["route"] == "/v1/models/{name}/predict").unwrap();
    assert_eq!(line["trace_id"], TRACE, "{line}");
}

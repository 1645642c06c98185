//! The whole door without models: what surrounds every route, over `oneshot` and over real sockets.

use super::access::Routes;
use super::door::Door;
use super::middleware::Around;
use super::{HttpSettings, HttpState, Server};
use crate::engine::testing;
use crate::jobs::{JobSettings, Jobs};
use crate::optimize::Optimizer;
use crate::tasks::Tasks;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::ServiceExt;

fn settings() -> HttpSettings {
    HttpSettings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        cors_origins: vec!["https://ui.example".to_owned()],
        max_body_bytes: 1000,
        ..HttpSettings::default()
    }
}

fn state(settings: HttpSettings, tasks: Tasks) -> HttpState {
    let jobs = Jobs::new(JobSettings::default(), std::path::Path::new("/nonexistent"), tasks.clone());
    let downloads = crate::downloads::testing::none(&tasks);
    let engine = testing::engine(&tasks);
    let optimizer =
        Optimizer::new(engine.clone(), downloads.clone(), std::path::Path::new("/nonexistent"), tasks.clone());
    let auth = crate::auth::Gate::none(tasks.clone());
    let streams = super::streams::Streams::new(settings.limits.max_event_streams);
    let bodies = settings.in_flight_bytes();
    HttpState {
        auth,
        engine,
        jobs,
        downloads,
        optimizer,
        settings: Arc::new(settings),
        tasks,
        tls: None,
        bodies,
        streams,
    }
}

fn door(settings: HttpSettings) -> Door {
    Door::new(state(settings, Tasks::new()), [127, 0, 0, 1].into())
}

/// Routes of a test with everything around them.
fn wrapped(routes: Routes) -> axum::Router {
    let (routes, needs) = routes.into_parts();
    let state = state(settings(), Tasks::new());
    let around = Arc::new(Around::new(&state, [127, 0, 0, 1].into(), (needs, Default::default())));
    super::middleware::wrap(routes, around).with_state(state)
}

struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn send(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    send_to(settings(), method, path, headers, body.into()).await
}

async fn send_to(settings: HttpSettings, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer_of(door(settings).call(request.body(body).unwrap(), None).await).await
}

async fn answer_of(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}

/// F49.
#[tokio::test]
async fn every_refusal_is_a_problem_with_the_request_id() {
    let json = ("content-type", "application/json");
    for (method, path, headers, status, code) in [
        ("GET", "/nothing", &[][..], 404, "route_not_found"),
        ("DELETE", "/livez", &[], 405, "method_not_allowed"),
        ("GET", "/v1/models/nope", &[], 404, "model_not_found"),
        ("GET", "/v1/models/..", &[], 404, "model_not_found"),
        ("GET", "/v1/models/%2e%2e", &[], 404, "model_not_found"),
        ("GET", "/v1/models/a%00b", &[], 404, "model_not_found"),
        ("GET", "/v1/models/a%ffb", &[], 404, "model_not_found"),
        ("POST", "/v1/models/nope/predict", &[json], 404, "model_not_found"),
        ("POST", "/v1/models/nope/versions/x/predict", &[json], 404, "version_not_found"),
        ("POST", "/v1/models/nope/predict?version=x", &[json], 400, "invalid_query"),
        ("POST", "/v1/models/nope/predict", &[json, ("accept", "image/png")], 406, "not_acceptable"),
        ("POST", "/v1/models/nope/load?wait=maybe", &[], 400, "invalid_query"),
        ("POST", "/v1/models/nope/load", &[], 404, "model_not_found"),
        ("POST", "/v1/models/nope/unload?wait=false", &[], 404, "model_not_found"),
        ("GET", "/v1/models", &[("host", "evil.example")], 421, "host_not_allowed"),
        ("GET", "http://evil.example/v1/models", &[], 421, "host_not_allowed"),
        ("GET", "/v1/models", &[("host", "localhost"), ("host", "localhost")], 400, "bad_host_header"),
        ("POST", "/v1/models/nope/unload", &[("origin", "https://evil.example")], 403, "origin_not_allowed"),
        ("POST", "/v1/models/nope/predict", &[json, ("content-encoding", "br")], 415, "unsupported_content_encoding"),
        (
            "POST",
            "/v1/models/nope/predict",
            &[json, ("content-encoding", "gzip, gzip")],
            415,
            "unsupported_content_encoding",
        ),
    ] {
        let headers = [headers, &[("x-request-id", "me-1")]].concat();
        // With and without CORS: through the route table alone, and straight to the handler where that is possible.
        for cors_origins in [settings().cors_origins, Vec::new()] {
            let settings = HttpSettings { cors_origins, ..settings() };
            let answer = send_to(settings, method, path, &headers, Body::empty()).await;
            assert_eq!(answer.status, status, "{method} {path} {headers:?}");
            assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
            assert_eq!(answer.header("x-request-id"), "me-1");
            let problem = answer.json();
            assert_eq!(
                (&problem["code"], &problem["status"]),
                (&code.into(), &status.into()),
                "{method} {path} {headers:?}"
            );
            assert_eq!(problem["request_id"], "me-1");
            assert!(!problem["detail"].as_str().unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn every_documented_operation_has_a_route() {
    let document: Value = serde_json::from_str(&super::document_json()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let target = path.replace("{name}", "nope").replace("{version}", "1").replace("{id}", "x");
            let answer = send(&method.to_uppercase(), &target, &[], Body::empty()).await;
            let text = String::from_utf8_lossy(&answer.body);
            assert!(answer.status != 405 && !text.contains("there is no such path"), "{method} {path}: {text}");
        }
    }
}

/// F49.
#[tokio::test]
async fn every_public_route_is_documented_with_its_methods() {
    /// The page that shows the document; a store by any name, which is described as the one store that there is; and where
    /// `/v1/models/{name}:predict` is led, which is described by that name.
    const UNDOCUMENTED: [&str; 7] = [
        "/v1/models/{name}/instances",
        "/docs",
        "/docs/",
        "/docs/{*rest}",
        "/v2/repository/{repository}/index",
        "/v2/repository/{repository}/models/{name}/load",
        "/v2/repository/{repository}/models/{name}/unload",
    ];
    let document: Value = serde_json::from_str(&super::document_json()).unwrap();
    let (_, needs) = super::router::described().into_parts();
    assert!(UNDOCUMENTED.iter().all(|path| needs.contains_key(path)), "an exception is no route");
    let mut routes: Vec<&str> = needs.into_keys().filter(|path| !UNDOCUMENTED.contains(path)).collect();
    routes.sort_unstable();
    for path in routes {
        let target = path.replace("{name}", "nope").replace("{version}", "1").replace("{id}", "x");
        // The route table names the methods that it has to who asks for one that nobody has.
        let answer = send("TRACE", &target, &[], Body::empty()).await;
        assert_eq!(answer.status, 405, "{path}");
        let mut served: Vec<String> = answer.header("allow").to_lowercase().split(',').map(str::to_owned).collect();
        served.retain(|method| method != "head");
        served.sort_unstable();
        let item = document["paths"].get(path).and_then(Value::as_object);
        let mut documented: Vec<String> = item.into_iter().flat_map(|item| item.keys().cloned()).collect();
        documented.sort_unstable();
        assert_eq!(documented, served, "{path}: describe it with utoipa::path and name it in http/openapi/mod.rs");
    }
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_right_ones() {
    let answer = send("PUT", "/v1/models", &[], Body::empty()).await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET,HEAD,POST"));
    assert_eq!(answer.json()["detail"], "this path takes GET, HEAD, POST only");
}

/// F49.
#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones_in_words_on_every_route() {
    // With and without CORS, which has layers of its own.
    for cors_origins in [settings().cors_origins, Vec::new()] {
        let settings = HttpSettings { cors_origins, ..settings() };
        let (_, needs) = super::router::routes(&state(settings.clone(), Tasks::new())).0.into_parts();
        assert!(needs.len() > 60, "{}", needs.len());
        let door = door(settings);
        for path in needs.keys() {
            let target = path.replace("{*rest}", "x").replace(['{', '}'], "");
            let request = Request::builder().method("PROPFIND").uri(target).header("host", "localhost");
            let request = request.body(Body::empty()).unwrap();
            let answer = answer_of(door.call(request, Some([127, 0, 0, 1].into())).await).await;
            let allow = answer.header("allow").to_owned();
            assert!(answer.status == 405 && !allow.is_empty(), "{path}: {}", answer.status);
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let words = format!("this path takes {} only", allow.replace(',', ", "));
            assert!(text.contains(&words), "{path}: {text}");
        }
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_also_when_it_is_compressed() {
    let answer =
        send("POST", "/v1/models/nope/predict", &[("content-type", "application/json")], vec![b' '; 1001]).await;
    assert_eq!((answer.status, &answer.json()["code"]), (413, &"body_too_large".into()));
}

/// A route that reads its body, with everything around it.
async fn read_compressed(encoding: &str, body: Vec<u8>) -> (u16, String) {
    use axum::extract::State;
    let read = async |State(state): State<HttpState>, request: Request<Body>| {
        let bytes = super::body::read(request.into_body(), &state.settings, 0).await?;
        Ok::<_, super::error::ApiError>(bytes.len().to_string())
    };
    let routes = wrapped(Routes::default().infer("/read", axum::routing::post(read)));
    let request = Request::post("/read").header("host", "localhost").header("content-encoding", encoding);
    let response = routes.oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// F25.
#[tokio::test]
async fn a_compressed_body_is_bounded_before_and_after() {
    use base64::Engine;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    // Ten letters, and 100 000 spaces in 133 bytes, by Python's gzip.compress(..., mtime=0).
    let small = decode(SMALL);
    let bomb = decode(BOMB);
    assert_eq!(read_compressed("gzip", small.clone()).await, (200, "10".to_owned()));
    for (encoding, body, status, code) in [
        ("gzip", bomb, 413, "body_too_large"),
        ("gzip", vec![b' '; 1001], 413, "body_too_large"),
        ("gzip", b"junk, junk, junk".to_vec(), 400, "malformed_encoding"),
        ("gzip", small[..small.len() - 9].to_vec(), 400, "malformed_encoding"),
        ("deflate", small.clone(), 400, "malformed_encoding"),
        ("zstd", small, 415, "unsupported_content_encoding"),
    ] {
        let (got, text) = read_compressed(encoding, body).await;
        assert_eq!(got, status, "{encoding} {text}");
        assert!(text.contains(code), "{text}");
    }
}

const SMALL: &str = "H4sIAAAAAAACA6uogAEAd0ffjgoAAAA=";
const BOMB: &str = "H4sIAAAAAAACA+3BMQEAAADCoCrrn9IaHkABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAArwYt8HnKoIYBAA==";

#[tokio::test]
async fn http_2_is_served_on_the_same_port() {
    let (address, _tasks, _) = start(settings());
    // The library takes its cryptography from whoever uses it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    for _ in 0..2 {
        let response = client.get(format!("http://{address}/livez")).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, axum::http::Version::HTTP_2));
    }
    let foreign = client.get(format!("http://{address}/livez")).header("host", "evil.example").send().await.unwrap();
    assert_eq!(foreign.status().as_u16(), 421);
}

/// F45.
#[tokio::test]
async fn pages_and_documents_are_there_and_safe() {
    for (path, media_type) in [
        ("/", "text/html"),
        ("/docs/", "text/html"),
        ("/docs/swagger-ui-bundle.js", ""),
        ("/openapi.json", "application/json"),
        ("/openapi.yaml", "application/yaml"),
        ("/livez", "text/plain"),
        ("/healthz", "application/json"),
        ("/v1/models", "application/json"),
        ("/v1/system", "application/json"),
    ] {
        let answer = send("GET", path, &[], Body::empty()).await;
        assert_ne!(answer.status, 404, "{path}");
        assert!(answer.header("content-type").starts_with(media_type), "{path} {}", answer.header("content-type"));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "same-origin");
        assert_eq!(answer.header("x-request-id").len(), 36);
        let is_page = media_type == "text/html";
        assert_eq!(answer.header("content-security-policy").is_empty(), !is_page, "{path}");
        if is_page {
            assert!(!String::from_utf8(answer.body).unwrap().contains("https://"), "{path} asks another server");
        }
        let head = send("HEAD", path, &[], Body::empty()).await;
        assert_eq!((head.status, head.body.len()), (answer.status, 0), "{path}");
    }
}

#[tokio::test]
async fn the_list_of_models_suits_openai_clients() {
    let answer = send("GET", "/v1/models", &[], Body::empty()).await;
    assert_eq!(answer.json(), serde_json::json!({"models": [], "object": "list", "data": []}));
}

/// F43.
#[tokio::test]
async fn only_the_origins_of_the_settings_get_cors_headers() {
    let preflight = |origin: &'static str| async move {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        send("OPTIONS", "/v1/models/a/predict", &headers, Body::empty()).await
    };
    assert_eq!(preflight("https://ui.example").await.header("access-control-allow-origin"), "https://ui.example");
    assert_eq!(preflight("https://evil.example").await.header("access-control-allow-origin"), "");
}

/// F84.
#[tokio::test]
async fn a_panic_is_a_500_of_its_own_request() {
    let routes = wrapped(Routes::default().infer("/boom", axum::routing::get(boom)));
    let request = Request::builder().uri("/boom").header("host", "localhost").body(Body::empty()).unwrap();
    let response = routes.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["code"], "internal_error");
    assert!(!problem.to_string().contains("secret"));
}

async fn boom() -> &'static str {
    panic!("a secret")
}

/// A server on a free port; the handle ends with the drain.
fn start(settings: HttpSettings) -> (SocketAddr, Tasks, JoinHandle<()>) {
    let tasks = Tasks::new();
    let HttpState { auth, engine, jobs, downloads, optimizer, bodies, .. } =
        state(HttpSettings::default(), tasks.clone());
    let services = super::Services { auth, engine, jobs, downloads, optimizer, bodies, tls: None };
    let server = Server::bind(settings, services, tasks.clone()).unwrap();
    let address = server.local_addr();
    let served = tasks.spawn("server", server.serve());
    (address, tasks, served)
}

async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that closes with bytes unread resets the connection: what came until then counts.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// F24, F40, F59.
#[tokio::test]
async fn malformed_heads_are_refused_and_the_connection_is_closed() {
    let (address, _tasks, _) = start(settings());
    let many = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(2000));
    let long = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(512 << 10));
    // Within what a connection reads ahead, above what a head may have.
    let wide = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(40 << 10));
    let uri = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(100_000));
    for (request, status) in [
        ("GET /livez HTTP/1.1\r\n\r\n", "400"),
        ("GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "400"),
        ("GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        (
            "POST /v1/models/a/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10737418240\r\nExpect: 100-continue\r\n\r\n",
            "413",
        ),
        ("GET /livez HTTP/1.0\r\n\r\n", "200"),
        ("\x16\x03\x01\x02\x00\x01\x00", ""),
        (&many, "431"),
        (&long, "431"),
        (&wide, "431"),
        (&uri, "4"),
    ] {
        let answer = exchange(address, request.as_bytes()).await;
        let expected = if status.is_empty() { String::new() } else { format!(" {status}") };
        assert!(answer.get(8..).unwrap_or_default().starts_with(&expected), "{:.60}: {answer:.200}", request);
        assert!(!answer.contains("100 Continue"));
    }
}

/// F60.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (address, _tasks, _) = start(settings());
    let mut request = String::new();
    for index in 0..60 {
        request += &format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: r{index}\r\n\r\n");
    }
    request += "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: r60\r\n\r\n";
    let answer = exchange(address, request.as_bytes()).await;
    let ids: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!(ids, (0..61).map(|index| format!("r{index}")).collect::<Vec<_>>());
}

/// F27.
#[tokio::test]
async fn slow_heads_are_cut_off() {
    let mut settings = settings();
    settings.limits.header_read_timeout = Duration::from_millis(100);
    let (address, _tasks, _) = start(settings);
    for part in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\nHo"] {
        let started = Instant::now();
        exchange(address, part.as_bytes()).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{part:?}");
    }
}

/// F70.
#[tokio::test]
async fn idle_and_half_sent_connections_do_not_hold_the_drain() {
    let mut settings = settings();
    settings.limits.drain_delay = Duration::from_millis(50);
    let (address, tasks, served) = start(settings);
    let idle = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nHos").await.unwrap();
    let mut used = TcpStream::connect(address).await.unwrap();
    used.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    used.read_exact(&mut first).await.unwrap();
    let started = Instant::now();
    tasks.stop();
    served.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(TcpStream::connect(address).await.is_err(), "it still accepts");
    drop((idle, half));
}

/// F11.
#[tokio::test]
async fn a_stopping_server_is_not_ready_and_still_accepts_for_the_drain_delay() {
    let mut settings = settings();
    settings.limits.drain_delay = Duration::from_secs(2);
    let (address, tasks, served) = start(settings);
    tasks.stop();
    let answer = exchange(address, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    served.await.unwrap();
}

#[tokio::test]
async fn a_stopping_server_says_that_it_closes_and_then_does() {
    let mut settings = settings();
    settings.limits.drain_delay = Duration::from_secs(2);
    let (address, tasks, served) = start(settings);
    let mut kept = TcpStream::connect(address).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    kept.write_all(request).await.unwrap();
    let mut first = [0; 15];
    kept.read_exact(&mut first).await.unwrap();
    tasks.stop();
    let answer = loop {
        // The stop is seen by another task: answers before that leave the connection open.
        kept.write_all(request).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = kept.read(&mut answer).await.unwrap();
        answer.truncate(read);
        if String::from_utf8_lossy(&answer).contains("connection: close") {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert!(answer.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(kept.read(&mut [0; 16]).await.unwrap(), 0, "it stays open");
    served.await.unwrap();
}

/// F11.
#[tokio::test]
async fn a_request_that_comes_when_the_drain_begins_is_answered() {
    let mut settings = settings();
    settings.limits.drain_delay = Duration::ZERO;
    let (address, tasks, served) = start(settings);
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut used = TcpStream::connect(address).await.unwrap();
    used.write_all(request).await.unwrap();
    let mut first = [0; 4096];
    let read = used.read(&mut first).await.unwrap();
    assert!(read > 15);
    // One that was never used, and is perhaps not even accepted.
    let mut fresh = TcpStream::connect(address).await.unwrap();
    tasks.stop();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // The listener is closed: the drain has begun, and neither connection has a request.
    for connection in [&mut used, &mut fresh] {
        connection.write_all(request).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer:?}");
    }
    served.await.unwrap();
}

/// F70.
#[tokio::test]
async fn a_dripping_body_ends_with_the_grace() {
    let mut settings = settings();
    settings.limits.drain_delay = Duration::ZERO;
    settings.shutdown_grace = Duration::from_millis(300);
    let (address, tasks, served) = start(settings);
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"POST /v2/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    tokio::task::yield_now().await;
    let started = Instant::now();
    tasks.stop();
    served.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn over_the_bound_connections_wait_and_are_served_then() {
    let (address, _tasks, _) = start(HttpSettings { max_connections: 1, ..settings() });
    let first = TcpStream::connect(address).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(request).await.unwrap();
    let mut answer = [0; 12];
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_exact(&mut answer)).await;
    assert!(early.is_err(), "the second was served beside the first");
    drop(first);
    second.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

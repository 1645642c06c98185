//! Start, readiness, drain, deadlines, and connections that misbehave.

use crate::server::{PATIENCE, Server, raw, store_of, wait_until};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// F11.
#[test]
fn a_stopped_server_answers_what_it_accepted_and_exits() {
    let mut server = Server::with(&["slow"]);
    let url = server.url("/v1/models/slow/predict");
    let body = slow_body(&server, 200_000);
    let client = server.client.clone();
    #[expect(clippy::disallowed_methods, reason = "a scope would join before the server is told to stop")]
    let request = std::thread::spawn(move || client.post(url).json(&body).send().unwrap().status());
    wait_until(|| server.get("/metrics").text().unwrap().contains("ortus_inflight{model=\"slow\"} 1"));
    server.terminate();
    assert_eq!(request.join().unwrap(), 200);
    assert!(server.wait_exit().success());
}

#[test]
fn idle_and_half_sent_connections_do_not_hold_the_exit() {
    // F70
    let mut server = Server::start(&["mlp"], &[("ORTUS_SERVER__SHUTDOWN_GRACE_MS", "3000")]);
    let idle = TcpStream::connect(server.address).unwrap();
    let mut half = TcpStream::connect(server.address).unwrap();
    half.write_all(b"POST /v1/models/mlp/predict HTTP/1.1\r\nHost: localhost\r\nContent-Le").unwrap();
    let started = Instant::now();
    server.terminate();
    assert!(server.wait_exit().success());
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    drop((idle, half));
}

/// F27.
#[test]
fn a_slow_head_is_cut_off() {
    let server = Server::start(&["mlp"], &[("ORTUS_LIMITS__HEADER_READ_TIMEOUT_MS", "300")]);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: loc").unwrap();
    let mut answer = Vec::new();
    let started = Instant::now();
    stream.read_to_end(&mut answer).unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    server.assert_well();
}

/// F28.
#[test]
fn a_dripping_body_is_cut_off() {
    let server = Server::start(&["mlp"], &[("ORTUS_LIMITS__BODY_READ_TIMEOUT_MS", "300")]);
    let head = b"POST /v1/models/mlp/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
    let answer = raw(server.address, head);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    server.assert_well();
}

/// F24.
#[test]
fn a_declared_body_over_the_limit_is_refused_from_its_head() {
    let server = Server::with(&["mlp"]);
    for path in ["/v1/models/mlp/predict", "/v2/models/mlp/infer"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10737418240\r\nExpect: 100-continue\r\n\r\n"
        );
        let answer = raw(server.address, head.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    server.assert_well();
}

/// F29, F59.
#[test]
fn malformed_http_is_refused() {
    let server = Server::with(&["mlp"]);
    for (request, expected) in [
        ("GET /livez HTTP/1.1\r\n\r\n", "400"),
        ("GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", "400"),
        ("GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        (
            "POST /v1/models/mlp/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "400",
        ),
        ("GARBAGE\r\n\r\n", "400"),
        ("DELETE /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "405"),
        ("GET /nothing/here HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "404"),
    ] {
        let answer = raw(server.address, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{request:?}: {answer}");
    }
    let many = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X-A: b\r\n".repeat(2000));
    assert!(raw(server.address, many.as_bytes()).starts_with("HTTP/1.1 431"));
    server.assert_well();
}

fn slow_body(server: &Server, trips: u64) -> Value {
    let meta = server.get_json("/v2/models/slow");
    let mut inputs = serde_json::Map::new();
    for input in meta["inputs"].as_array().unwrap() {
        let shape: Vec<u64> =
            input["shape"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap().max(1) as u64).collect();
        let count: u64 = shape.iter().product();
        let number = if input["datatype"] == "INT64" { json!(trips) } else { json!(0.5) };
        let data: Vec<Value> = (0..count).map(|_| number.clone()).collect();
        inputs.insert(
            input["name"].as_str().unwrap().to_owned(),
            json!({"dtype": input["datatype"], "shape": shape, "data": data}),
        );
    }
    json!({ "inputs": inputs })
}

/// F35.
#[test]
fn a_run_past_its_deadline_is_stopped() {
    let server = Server::with(&["slow"]);
    let mut body = slow_body(&server, 1_000_000_000_000);
    body["timeout_ms"] = json!(200);
    let started = Instant::now();
    let (status, answer) = server.post_json("/v1/models/slow/predict", &body);
    assert_eq!(status, 504, "{answer}");
    assert!(started.elapsed() < Duration::from_secs(5));
    // The instance is free again.
    assert_eq!(server.post_json("/v1/models/slow/predict", &slow_body(&server, 1)).0, 200);
}

/// F10.
#[test]
fn a_client_that_leaves_stops_its_run() {
    let server = Server::with(&["slow"]);
    let body = slow_body(&server, 1_000_000_000_000).to_string();
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = format!(
        "POST /v1/models/slow/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    drop(stream);
    // Only one instance runs at a time: an answer means that the abandoned run has ended.
    let started = Instant::now();
    assert_eq!(server.post_json("/v1/models/slow/predict", &slow_body(&server, 1)).0, 200);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// F36.
#[test]
fn a_full_queue_is_refused_at_once() {
    let server = Server::start(&["slow"], &[("ORTUS_BATCH__MAX_QUEUE", "2"), ("ORTUS_BATCH__INSTANCES", "1")]);
    let mut body = slow_body(&server, 1_000_000_000_000);
    body["timeout_ms"] = json!(1500);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..12).map(|_| scope.spawn(|| server.post_json("/v1/models/slow/predict", &body).0)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [503, 504].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&503) && statuses.contains(&504), "{statuses:?}");
    let response = server.post("/v1/models/slow/predict").json(&slow_body(&server, 1)).send().unwrap();
    assert_eq!(response.status(), 200);
    server.assert_well();
}

#[test]
fn other_models_answer_while_one_is_busy() {
    let server = Server::with(&["slow", "mlp"]);
    let mut body = slow_body(&server, 1_000_000_000_000);
    body["timeout_ms"] = json!(2000);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| server.post_json("/v1/models/slow/predict", &body).0);
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..10 {
            let (status, _) = server.post_json("/v1/models/mlp/predict", &json!({"inputs": [vec![0.5; 32]]}));
            assert_eq!(status, 200);
        }
        assert!(!slow.is_finished(), "the slow run was meant to be in progress");
        assert_eq!(slow.join().unwrap(), 504);
    });
}

#[test]
fn a_second_server_on_the_same_store_is_refused() {
    // F67
    let server = Server::with(&["mlp"]);
    let second = crate::server::command()
        .args(["serve", "--listen", "127.0.0.1:0", "--models"])
        .arg(server.store.path())
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"), "{second:?}");
    server.assert_well();
}

#[test]
fn an_empty_store_is_ready_and_says_so() {
    let server = Server::on(store_of(&[]), &[]);
    assert_eq!(server.get_json("/v1/models")["models"], json!([]));
    assert_eq!(server.get("/livez").status(), 200);
    assert_eq!(server.get("/").status(), 200);
}

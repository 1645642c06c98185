//! More than the server takes at a time: refused at once, with the time to come back, and given back when it is over.

use crate::server::{PATIENCE, Server, wait_until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Room for one body and a half.
const LIMITS: [(&str, &str); 2] =
    [("ORTUS_SERVER__MAX_BODY_BYTES", "4000"), ("ORTUS_LIMITS__MAX_INFLIGHT_BYTES", "6000")];
const V1: &str = "/v1/models/mlp/predict";

fn body() -> String {
    format!("{{\"inputs\": [{}]}}", serde_json::to_string(&vec![0.5; 32]).unwrap())
}

/// The same with blanks at its end.
fn padded(length: usize) -> String {
    format!("{:length$}", body())
}

fn head(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n\r\n")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until the text is there, or the connection ends.
#[track_caller]
fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let (mut answer, mut chunk) = (String::new(), [0; 4096]);
    while !answer.contains(text) {
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "{text:?} is not in {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    answer
}

/// A request whose head was read, and whose body is awaited.
fn begun(server: &Server, length: usize) -> TcpStream {
    let mut stream = connect(server.address);
    let more = format!("Content-Length: {length}\r\nExpect: 100-continue");
    stream.write_all(head(V1, &more).as_bytes()).unwrap();
    read_until(&mut stream, "100 Continue");
    stream
}

/// The answer to a head whose body is not sent.
#[track_caller]
fn refused(server: &Server, path: &str) -> String {
    let mut stream = connect(server.address);
    stream.write_all(head(path, "Content-Length: 3000").as_bytes()).unwrap();
    let answer = read_until(&mut stream, "}");
    for part in
        ["HTTP/1.1 503 ", "retry-after: 1", "connection: close", "limits.max_inflight_bytes = 6000", "3000 bytes"]
    {
        assert!(answer.contains(part), "{part} is not in {answer}");
    }
    // Nothing of the body is waited for.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    answer
}

fn status_of(server: &Server, length: usize) -> u16 {
    server.post_text(V1, "application/json", padded(length).into_bytes()).0
}

#[test]
fn bodies_that_do_not_fit_together_are_refused_before_they_are_read() {
    let server = Server::start(&["mlp"], &LIMITS);
    let mut first = begun(&server, 4000);
    assert!(refused(&server, V1).contains("\"code\":\"overloaded\""));
    assert!(refused(&server, "/v2/models/mlp/infer").contains("{\"error\":"));
    assert!(refused(&server, "/v1/models/mlp/jobs").contains("\"code\":\"overloaded\""));
    assert_eq!(status_of(&server, 1500), 200, "what fits is answered meanwhile");

    first.write_all(padded(4000).as_bytes()).unwrap();
    assert!(read_until(&mut first, "}").contains("HTTP/1.1 200 "));
    assert_eq!(status_of(&server, 4000), 200, "what was held is given back");

    // Also where the client goes away.
    drop((begun(&server, 3000), begun(&server, 3000)));
    wait_until(|| status_of(&server, 4000) == 200);
    let metrics = server.get("/metrics").text().unwrap();
    let refusals = metrics.lines().find(|line| line.contains("reason=\"overloaded\"")).unwrap();
    assert!(!refusals.ends_with(" 0"), "{refusals}");
    server.assert_well();
}

#[test]
fn a_body_that_does_not_say_how_long_it_is_is_counted_as_it_comes() {
    let server = Server::start(&["mlp"], &LIMITS);
    let mut first = begun(&server, 3000);
    let mut chunked = connect(server.address);
    chunked.write_all(head(V1, "Transfer-Encoding: chunked\r\nExpect: 100-continue").as_bytes()).unwrap();
    read_until(&mut chunked, "100 Continue");
    let text = padded(3500);
    chunked.write_all(format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len()).as_bytes()).unwrap();
    let answer = read_until(&mut chunked, "}");
    assert!(answer.contains("HTTP/1.1 503 ") && answer.contains("overloaded"), "{answer}");

    first.write_all(padded(3000).as_bytes()).unwrap();
    read_until(&mut first, "}");
    let mut chunked = connect(server.address);
    let request = head(V1, "Transfer-Encoding: chunked");
    chunked.write_all(format!("{request}{:x}\r\n{text}\r\n0\r\n\r\n", text.len()).as_bytes()).unwrap();
    assert!(read_until(&mut chunked, "}").contains("HTTP/1.1 200 "));
    server.assert_well();
}

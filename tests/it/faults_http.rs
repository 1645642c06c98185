//! Attacks by what HTTP itself allows to say: sizes, times, framing, connections, HTTP/2.

use crate::attack::{Attacked, exchange, good, head, pour, read_all, reset};
use crate::server::{PATIENCE, wait_until};
use crate::stats::Metrics;
use reqwest::Method;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

const PREDICT: &str = "/v1/models/mlp/predict";
/// How long a connection that stays open is read: nothing more is expected of it.
const SILENCE: Duration = Duration::from_millis(300);

/// F24.
#[test]
fn bodies_without_an_end_are_refused_on_every_route() {
    let limits = [("ORTUS_SERVER__MAX_BODY_BYTES", "1000000"), ("ORTUS_HUB__MAX_DOWNLOAD_MB", "1")];
    let mut server = Attacked::with(&[], &limits);
    let posts: Vec<String> = crate::attack::operations(&server, "mlp")
        .into_iter()
        .filter(|(method, _)| *method == Method::POST)
        .map(|(_, path)| path)
        .collect();
    assert!(posts.len() > 20, "{posts:?}");
    for path in &posts {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let request = format!("{}{expect}Content-Length: 10737418240\r\n\r\n", head(path));
            let got = exchange(server.address, request.as_bytes(), PATIENCE);
            assert_eq!(got.statuses(), [413], "{path}: {}", got.text);
            assert!(got.is_closed, "{path}");
        }
    }
    for path in [PREDICT, "/v2/models/mlp/infer", "/v1/models/mlp/jobs", "/v1/models", "/v1/embeddings"] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(format!("{}Transfer-Encoding: chunked\r\n\r\n", head(path)).as_bytes()).unwrap();
        let piece = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
        let (got, sent) = pour(&mut stream, &piece, 1 << 30);
        assert!(got.is_closed && sent < 32 << 20, "{path}: {sent} bytes were taken");
        // Bytes that came after the refusal reset the connection, which may take the answer along.
        assert!(got.text.is_empty() || got.text.starts_with("HTTP/1.1 413"), "{path}: {}", got.text);
    }
    let metrics = Metrics::of(&server);
    assert!(metrics.sum("ortus_rejected_total", &[("reason", "too_large")]) >= 2 * posts.len() as u64);
    server.assert_unharmed(32);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// F25.
#[test]
fn compressed_bodies_are_bounded_when_they_are_large_again() {
    let mut server = Attacked::with(&[], &[("ORTUS_SERVER__MAX_BODY_BYTES", "1000000")]);
    let body = good().to_string();
    let bomb = gzip(&vec![b' '; 16 << 20]);
    let twice = gzip(&gzip(body.as_bytes()));
    let right = gzip(body.as_bytes());
    for path in [PREDICT, "/v2/models/mlp/infer", "/v1/models/mlp/jobs"] {
        for (encoding, bytes, statuses) in [
            ("gzip", &bomb, &[413][..]),
            ("gzip, gzip", &twice, &[415]),
            ("gzip", &twice, &[400]),
            ("gzip", &body.as_bytes().to_vec(), &[400]),
            ("deflate", &right, &[400]),
            ("gzip", &right[..right.len() / 2].to_vec(), &[400]),
            ("br", &right, &[415]),
            ("zstd", &right, &[415]),
            ("x-unknown", &right, &[415]),
        ] {
            let request = server.post(path).header("content-type", "application/json");
            let response = request.header("content-encoding", encoding).body(bytes.clone()).send().unwrap();
            let status = response.status().as_u16();
            assert!(statuses.contains(&status), "{path} {encoding}: {status} {:?}", response.text());
        }
    }
    let request = server.post(PREDICT).header("content-type", "application/json").header("content-encoding", "gzip");
    assert_eq!(request.body(right).send().unwrap().status(), 200);
    server.assert_unharmed(32);
}

/// F26.
#[test]
fn tiny_chunks_and_long_extensions_cost_no_memory() {
    let mut server = Attacked::with(&[], &[]);
    let before = server.peak_memory_mb();
    let body = good().to_string();
    let opened = format!("{}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", head(PREDICT));
    let mut tiny = opened.clone().into_bytes();
    for _ in 0..100_000 {
        tiny.extend_from_slice(b"1\r\n \r\n");
    }
    tiny.extend_from_slice(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
    assert_eq!(exchange(server.address, &tiny, PATIENCE).statuses(), [200]);
    let mut extended = opened.into_bytes();
    for _ in 0..10_000 {
        extended.extend_from_slice(format!("1;{}\r\n \r\n", "x".repeat(200)).as_bytes());
    }
    extended.extend_from_slice(b"0\r\n\r\n");
    let got = exchange(server.address, &extended, PATIENCE);
    assert!(got.is_closed && got.statuses().iter().all(|status| *status == 400), "{}", got.text);
    assert!(server.peak_memory_mb() < before + 24, "{before} MB, then {}", server.peak_memory_mb());
    server.assert_unharmed(32);
}

/// Sends a byte now and then on many connections until the server has closed them all; others are answered meanwhile.
fn drip(server: &Attacked, begun: &str, byte: &[u8]) {
    let mut slow: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(begun.as_bytes()).unwrap();
            stream
        })
        .collect();
    wait_until(|| {
        // Each byte would be a reason to wait on, for a server that counts from the last one.
        slow.retain_mut(|stream| stream.write_all(byte).is_ok());
        assert_eq!(server.post_json(PREDICT, &good()).0, 200);
        slow.is_empty()
    });
}

/// F27.
#[test]
fn heads_that_drip_end_and_hold_up_nobody() {
    let mut server = Attacked::with(&[], &[("ORTUS_LIMITS__HEADER_READ_TIMEOUT_MS", "500")]);
    drip(&server, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"a");
    drip(&server, "", b"G");
    server.assert_unharmed(32);
}

/// F28.
#[test]
fn bodies_that_drip_end_and_hold_up_nobody() {
    let settings = [("ORTUS_LIMITS__BODY_READ_TIMEOUT_MS", "500"), ("ORTUS_BATCH__INSTANCES", "1")];
    let mut server = Attacked::with(&[], &settings);
    drip(&server, &format!("{}Content-Length: 100000\r\n\r\n", head(PREDICT)), b" ");
    drip(&server, &format!("{}Transfer-Encoding: chunked\r\n\r\n", head(PREDICT)), b"1\r\n \r\n");
    let metrics = Metrics::of(&server);
    assert_eq!(metrics.sum("ortus_rejected_total", &[("reason", "too_slow")]), 80);
    server.assert_unharmed(32);
}

/// F29.
#[test]
fn a_request_that_could_be_cut_apart_in_two_ways_is_refused() {
    let mut server = Attacked::with(&[], &[]);
    let inner = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let length = inner.len();
    let post = head(PREDICT);
    let chunked = "Transfer-Encoding: chunked\r\n";
    let get = "GET /livez HTTP/1.1\r\nHost: localhost\r\n";
    for request in [
        // Two lengths, or a length and chunks.
        format!("{post}Content-Length: {length}\r\nContent-Length: 0\r\n\r\n{inner}"),
        format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"),
        format!("{post}Content-Length: {length}, 0\r\n\r\n{inner}"),
        format!("{post}Content-Length: {length}\r\n{chunked}\r\n0\r\n\r\n{inner}"),
        format!("{post}{chunked}Content-Length: {length}\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}Content-Length: 5\r\n{chunked}\r\n0\r\n\r\n{inner}"),
        // Lengths that are none.
        format!("{post}Content-Length: +{length}\r\n\r\n{inner}"),
        format!("{post}Content-Length: -1\r\n\r\n{inner}"),
        format!("{post}Content-Length: 0x2a\r\n\r\n{inner}"),
        format!("{post}Content-Length: 4 2\r\n\r\n{inner}"),
        format!("{post}Content-Length: 99999999999999999999999\r\n\r\n{inner}"),
        format!("{post}Content-Length: \r\n\r\n{inner}"),
        // Chunks that are not said as they must be.
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}Transfer-Encoding: identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}{chunked}{chunked}\r\n0\r\n\r\n{inner}"),
        format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("POST {PREDICT} HTTP/1.0\r\nHost: localhost\r\n{chunked}\r\n0\r\n\r\n{inner}"),
        // Sizes of chunks that overflow or are no numbers, and chunks that do not end.
        format!("{post}{chunked}\r\nFFFFFFFFFFFFFFFFF\r\n{inner}"),
        format!("{post}{chunked}\r\n-1\r\n{inner}"),
        format!("{post}{chunked}\r\n0x5\r\nabcde\r\n0\r\n\r\n{inner}"),
        format!("{post}{chunked}\r\n5\r\nabcdeX0\r\n\r\n{inner}"),
        format!("{post}{chunked}\r\n 5\r\nabcde\r\n0\r\n\r\n{inner}"),
        // Heads that others read in another way.
        format!("{get}X-Folded: a\r\n b\r\n\r\n{inner}"),
        format!("{get}X-Nul: a\0b\r\n\r\n{inner}"),
        format!("{get}X\0Nul: a\r\n\r\n{inner}"),
        format!("{get}X-Return: a\rb\r\n\r\n{inner}"),
        format!("{get}no colon\r\n\r\n{inner}"),
        format!("{get} Leading: space\r\n\r\n{inner}"),
        format!("GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n{inner}"),
        format!("GET /livez\tHTTP/1.1\r\nHost: localhost\r\n\r\n{inner}"),
        format!("GET /livez HTTP/1.1 \r\nHost: localhost\r\n\r\n{inner}"),
        format!("GET /livez HTTP/3.1\r\nHost: localhost\r\n\r\n{inner}"),
    ] {
        let got = exchange(server.address, request.as_bytes(), SILENCE);
        assert!(got.is_closed, "the connection stays open: {request:?}: {}", got.text);
        let statuses = got.statuses();
        assert!(statuses.len() < 2, "a second answer: {request:?}: {}", got.text);
        assert!(statuses.iter().all(|status| *status == 400), "{request:?}: {}", got.text);
    }
    // Not counted are those that are whole requests whose JSON is none.
    wait_until(|| Metrics::of(&server).sum("ortus_rejected_total", &[("reason", "malformed")]) >= 20);
    assert!(server.log().iter().filter(|line| line["code"] == "malformed").count() >= 20);
    server.assert_unharmed(32);
}

/// Whether this process, and the servers that it starts from here on, may have so many files open.
fn may_open(wanted: u64) -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let soft = line.split_whitespace().next().unwrap();
    let arguments = [format!("--pid={}", std::process::id()), format!("--nofile={wanted}:")];
    soft.parse::<u64>().map_or(true, |soft| soft >= wanted)
        || Command::new("prlimit").args(arguments).status().is_ok_and(|status| status.success())
}

/// F38.
#[test]
fn two_thousand_idle_connections_are_held() {
    if !may_open(8192) {
        eprintln!("SKIPPED: 8,192 open files are not allowed here");
        return;
    }
    let mut server = Attacked::with(&[], &[]);
    let begun = "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Beg";
    let idle: Vec<TcpStream> = (0..2000)
        .map(|index| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(if index % 2 == 0 { b"" } else { begun.as_bytes() }).unwrap();
            stream
        })
        .collect();
    let files = || std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    wait_until(|| files() >= 2000);
    for _ in 0..20 {
        assert_eq!(server.post_json(PREDICT, &good()).0, 200);
    }
    assert!(server.peak_memory_mb() < 160, "{} MB", server.peak_memory_mb());
    drop(idle);
    server.assert_unharmed(48);
}

/// F39.
#[test]
fn without_file_descriptors_it_waits_and_serves_on() {
    let mut server = Attacked::with(&[], &[]);
    let pid = server.child.id();
    let files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |count: usize| {
        let value = format!("--nofile={count}:");
        let done = Command::new("prlimit").args([format!("--pid={pid}"), value]).status();
        assert!(done.unwrap().success());
    };
    limit(files() + 20);
    let held: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    // One that the system took and the server cannot.
    let mut waiting = TcpStream::connect(server.address).unwrap();
    waiting.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let written = server.log_bytes();
    wait_until(|| server.log().iter().any(|line| line["message"].to_string().contains("cannot accept")));
    assert!(server.is_idle(), "it spins");
    assert!(server.log_bytes() - written < 4096, "{} bytes of log", server.log_bytes() - written);
    drop(held);
    let got = read_all(&mut waiting, PATIENCE);
    assert_eq!(got.statuses(), [200], "{}", got.text);
    limit(4096);
    server.assert_unharmed(32);
}

/// F40.
#[test]
fn resets_and_other_protocols_leave_the_port_alive() {
    let mut server = Attacked::with(&[], &[]);
    for index in 0..1500 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        match index % 3 {
            0 => {}
            1 => stream.write_all(b"GET /livez HT").unwrap(),
            _ => stream.write_all(format!("{}Content-Length: 50\r\n\r\n{{", head(PREDICT)).as_bytes()).unwrap(),
        }
        reset(stream);
    }
    let tls = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03";
    let junk: Vec<u8> = (0..100_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [
        &tls[..],
        &junk,
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"\x05\x01\x00",
        b"*1\r\n$4\r\nPING\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        b"CONNECT localhost HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\njunk that is no frame",
    ] {
        let got = exchange(server.address, bytes, SILENCE);
        let statuses = got.statuses();
        assert!(statuses.iter().all(|status| (400..500).contains(status)), "{bytes:.40?}: {}", got.text);
    }
    server.assert_unharmed(32);
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /livez` of `localhost`, by HPACK without compression.
fn request_head() -> Vec<u8> {
    let mut head = vec![0x82, 0x86];
    for (index, value) in [(4u8, "/livez"), (1, "localhost")] {
        head.push(index);
        head.push(u8::try_from(value.len()).unwrap());
        head.extend_from_slice(value.as_bytes());
    }
    head
}

/// Opens an HTTP/2 connection and sends what `flood` makes until the server ends it, or there is no more.
fn flood(server: &Attacked, flood: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        // Answers are read all the while, so that the server is not stopped by a full pipe.
        let answers = scope.spawn(move || {
            use std::io::Read;
            let mut all = Vec::new();
            reader.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let _ = reader.read_to_end(&mut all);
            all
        });
        let mut flood = flood;
        while let Some(frame) = flood.next()
            && stream.write_all(&frame).is_ok()
        {}
        let _ = stream.shutdown(std::net::Shutdown::Write);
        answers.join().unwrap()
    })
}

fn says_goaway(answers: &[u8]) -> bool {
    let mut rest = answers;
    while let [a, b, c, kind, ..] = *rest {
        if kind == GOAWAY {
            return true;
        }
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// F76.
#[test]
fn streams_that_are_reset_at_once_end_their_connection() {
    let mut server = Attacked::with(&[], &[]);
    let before = server.peak_memory_mb();
    let answers = flood(
        &server,
        (0..30_000u32).map(|index| {
            let stream = 2 * index + 1;
            [frame(HEADERS, 5, stream, &request_head()), frame(RESET, 0, stream, &8u32.to_be_bytes())].concat()
        }),
    );
    assert!(says_goaway(&answers), "{} bytes", answers.len());
    assert!(server.peak_memory_mb() < before + 32, "{before} MB, then {}", server.peak_memory_mb());
    server.assert_unharmed(32);
}

/// F77.
#[test]
fn floods_of_frames_end_their_connection_or_cost_nothing() {
    let mut server = Attacked::with(&[], &[]);
    let before = server.peak_memory_mb();
    let one = |kind: u8, flags: u8, stream: u32, payload: Vec<u8>| {
        std::iter::repeat_n(frame(kind, flags, stream, &payload), 50_000)
    };
    // Header lines without an end: neither HEADERS nor any CONTINUATION says that it is the last.
    let opened = std::iter::once(frame(HEADERS, 0, 1, &request_head()));
    let line = [&[0x40, 0x01, b'x', 0x7f, 0x81, 0x07][..], &[b'y'; 1024]].concat();
    let answers = flood(&server, opened.chain(one(CONTINUATION, 0, 1, line)));
    assert!(says_goaway(&answers), "CONTINUATION: {} bytes", answers.len());
    flood(&server, std::iter::once(frame(HEADERS, 4, 1, &request_head())).chain(one(DATA, 0, 1, Vec::new())));
    flood(&server, one(SETTINGS, 0, 0, Vec::new()));
    flood(&server, one(PING, 0, 0, vec![0; 8]));
    assert!(server.peak_memory_mb() < before + 32, "{before} MB, then {}", server.peak_memory_mb());
    server.assert_unharmed(32);
}

//! Every bound that a configuration sets: what exceeds it gets its status, and an error that names the key.

use crate::server::{Server, copy_folder, raw, root, store_of, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Status and text of an answer.
type Answer = (u16, String);

/// A key, a value for it, and something that exceeds that.
struct Row {
    /// `section.name`.
    key: &'static str,
    value: &'static str,
    status: u16,
    /// Fixtures that are served; `digits` comes from `models/`.
    models: &'static [&'static str],
    /// What else is configured.
    more: &'static [(&'static str, &'static str)],
    exceed: fn(&Server) -> Answer,
}

const ROWS: &[Row] = &[
    row("server.request_timeout_ms", "300", 504, &["slow"], |server| predict(server, "slow", &endless())),
    row("server.max_body_bytes", "1000", 413, &["mlp"], |server| predict(server, "mlp", &json!("x".repeat(1001)))),
    Row {
        more: &[("ORTUS_AUTH__REQUIRE", "true")],
        ..row("limits.max_wrong_keys", "1", 429, &[], |server| {
            let ask = || server.client.get(server.url("/v1/models")).bearer_auth("wrong").send().unwrap();
            assert_eq!(ask().status(), 401);
            answer(ask())
        })
    },
    row("limits.body_read_timeout_ms", "200", 408, &["mlp"], |server| {
        by_hand(server, "POST /v1/models/mlp/predict", "Content-Type: application/json\r\nContent-Length: 100\r\n")
    }),
    row("limits.max_header_bytes", "8192", 431, &[], |server| {
        by_hand(server, "GET /livez", &format!("X-Long: {}\r\n", "a".repeat(8192)))
    }),
    row("limits.max_headers", "20", 431, &[], |server| {
        // Of HTTP/1 the library refuses them before there is a request, with the status alone.
        let fields = (0..21).map(|index| format!("X-{index}: a\r\n")).collect::<String>();
        assert_eq!(by_hand(server, "GET /livez", &fields).0, 431);
        let client = reqwest::blocking::Client::builder().http2_prior_knowledge().build().unwrap();
        let request =
            (0..21).fold(client.get(server.url("/livez")), |request, index| request.header(format!("x-{index}"), "a"));
        answer(request.send().unwrap())
    }),
    row("limits.max_json_depth", "5", 400, &["mlp"], |server| predict(server, "mlp", &json!([[[[[[1]]]]]]))),
    row("limits.max_tensor_elements", "31", 413, &["mlp"], |server| predict(server, "mlp", &json!([vec![0.5; 32]]))),
    row("limits.max_items", "2", 413, &["embedder"], |server| predict(server, "embedder", &json!(["a", "b", "c"]))),
    row("limits.max_pixels", "100", 413, &["digits"], |server| {
        let picture = std::fs::read(root().join("tests/fixtures/images/rgb.png")).unwrap();
        send(server, "/v1/models/digits/predict", "image/png", picture)
    }),
    row("limits.max_text_bytes", "9", 413, &["embedder"], |server| predict(server, "embedder", &json!("the cat runs"))),
    row("limits.max_audio_seconds", "1", 413, &["voice"], |server| {
        send(server, "/v1/models/voice/predict", "audio/wav", silence(2))
    }),
    row("performance.run_memory_mb", "8", 503, &[], |server| {
        crate::memory::write_hungry_model(&server.store.path().join("hungry"));
        // 256 MiB.
        predict(server, "hungry", &json!({"inputs": {"size": [64 << 20]}}))
    }),
    row("limits.max_model_bytes", "100", 422, &["mlp"], |server| {
        answer(server.post("/v1/models/mlp/load").send().unwrap())
    }),
    row("limits.max_jobs", "1", 503, &["slow"], |server| {
        job(server, "slow", &endless());
        send_json(server, "/v1/models/slow/jobs", &endless())
    }),
    row("limits.job_timeout_ms", "300", 504, &["slow"], |server| {
        let path = job(server, "slow", &endless());
        wait_until(|| server.get_json(&path)["status"] == "failed");
        answer(server.get(&format!("{path}/result")))
    }),
    row("limits.job_result_ttl_ms", "1", 404, &["mlp"], |server| {
        let path = job(server, "mlp", &json!({"inputs": [vec![0.5; 32]]}));
        wait_until(|| server.get(&path).status() == 404);
        answer(server.get(&path))
    }),
    row("limits.max_job_bytes", "1000", 507, &["mlp"], |server| {
        let large = json!({"inputs": [vec![0.5; 32]], "parameters": {"pad": "y".repeat(2000)}});
        send_json(server, "/v1/models/mlp/jobs", &large)
    }),
    row("limits.max_event_streams", "1", 503, &["slow"], |server| {
        let events = format!("{}/events", job(server, "slow", &endless()));
        let mut first = server.get(&events);
        assert!(first.read(&mut [0; 16]).unwrap() > 0);
        let second = answer(server.get(&events));
        // A place is free again once its client is gone.
        drop(first);
        wait_until(|| server.get(&events).status() == 200);
        second
    }),
    Row {
        more: &[("ORTUS_LIMITS__BODY_READ_TIMEOUT_MS", "700")],
        ..row("limits.min_upload_bytes_per_s", "1000000", 408, &[], drip)
    },
    Row { more: &[("ORTUS_BATCH__INSTANCES", "1")], ..row("batch.max_queue", "1", 503, &["slow"], full_queue) },
    Row {
        more: &[("ORTUS_STORE__AUTOLOAD", "false")],
        ..row("store.max_loaded_memory_mb", "1", 507, &["mlp"], |server| {
            answer(server.post("/v1/models/mlp/load").send().unwrap())
        })
    },
    row("hub.max_download_mb", "1", 413, &[], |server| upload(server, "model.onnx", vec![0; (1 << 20) + 1])),
    row("hub.max_archive_entries", "1", 413, &[], |server| {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for name in ["model.onnx", "labels.txt"] {
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(b"a").unwrap();
        }
        upload(server, "model.zip", archive.finish().unwrap().into_inner())
    }),
    row("hub.reserve_mb", "1000000000", 507, &[], |server| upload(server, "model.onnx", vec![0; 10])),
];

/// Keys of the sections [`WHOLE`] that no single request can be refused by, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("server.listen", "no bound"),
    ("server.grpc_listen", "no bound"),
    ("server.cors_origins", "no bound"),
    ("server.allowed_hosts", "no bound"),
    ("server.tls_cert", "no bound"),
    ("server.tls_key", "no bound"),
    ("server.max_connections", "more wait to be accepted: there is nothing yet to answer them by"),
    ("server.shutdown_grace_ms", "bounds the drain"),
    ("limits.header_read_timeout_ms", "the connection is closed: there is no request yet"),
    ("limits.max_inflight_bytes", "never less than one body may have: requests together exceed it, see `overload`"),
    ("limits.drain_delay_ms", "lengthens the drain"),
    ("limits.jobs_at_once", "other jobs wait"),
    ("limits.max_http2_streams", "clients are told by the protocol, and wait"),
    ("limits.write_timeout_ms", "the connection is closed: its client reads nothing"),
];

/// Sections of which every key is in one of the tables.
const WHOLE: [&str; 2] = ["server", "limits"];

const fn row(
    key: &'static str,
    value: &'static str,
    status: u16,
    models: &'static [&'static str],
    exceed: fn(&Server) -> Answer,
) -> Row {
    Row { key, value, status, models, more: &[], exceed }
}

#[test]
fn what_exceeds_a_bound_is_told_its_key() {
    for row in ROWS {
        let store = store_of(&row.models.iter().copied().filter(|model| *model != "digits").collect::<Vec<_>>());
        if row.models.contains(&"digits") {
            copy_folder(&root().join("models/digits"), &store.path().join("digits"));
        }
        let variable = format!("ORTUS_{}", row.key.replace('.', "__").to_uppercase());
        let server = Server::on(store, &[&[(&*variable, row.value)][..], row.more].concat());
        let (status, text) = (row.exceed)(&server);
        let name = row.key.rsplit('.').next().unwrap();
        assert_eq!(status, row.status, "{}: {text}", row.key);
        assert!(text.contains(name), "{}: {text}", row.key);
        server.assert_well();
    }
}

#[test]
fn every_bound_has_a_row_or_a_reason() {
    let example = std::fs::read_to_string(root().join("config.example.toml")).unwrap();
    let example: toml::Table = toml::from_str(&example).unwrap();
    let keys: BTreeSet<String> = WHOLE
        .iter()
        .flat_map(|section| example[*section].as_table().unwrap().keys().map(move |name| format!("{section}.{name}")))
        .collect();
    let rows: BTreeSet<String> = ROWS.iter().map(|row| row.key.to_owned()).collect();
    let without: BTreeSet<String> = WITHOUT.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert!(rows.is_disjoint(&without));
    let missing: Vec<_> = keys.iter().filter(|key| !rows.contains(*key) && !without.contains(*key)).collect();
    assert!(missing.is_empty(), "neither a row nor a reason: {missing:?}");
}

fn answer(response: reqwest::blocking::Response) -> Answer {
    (response.status().as_u16(), response.text().unwrap())
}

fn send(server: &Server, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
    answer(server.post(path).header("content-type", content_type).body(body).send().unwrap())
}

fn send_json(server: &Server, path: &str, body: &Value) -> Answer {
    send(server, path, "application/json", body.to_string().into_bytes())
}

/// A prediction; what is no object are its inputs.
fn predict(server: &Server, model: &str, body: &Value) -> Answer {
    let body = if body.is_object() { body.clone() } else { json!({"inputs": body}) };
    send_json(server, &format!("/v1/models/{model}/predict"), &body)
}

/// For the model `slow`: more turns than anybody waits for.
fn endless() -> Value {
    json!({"inputs": {"n": 1_000_000_000_000u64}})
}

/// Begins a job and gives its path.
fn job(server: &Server, model: &str, body: &Value) -> String {
    let (status, job) = server.post_json(&format!("/v1/models/{model}/jobs"), body);
    assert_eq!(status, 202, "{job}");
    format!("/v1/jobs/{}", job["id"].as_str().unwrap())
}

/// A request of which nothing comes after its head.
fn by_hand(server: &Server, start: &str, fields: &str) -> Answer {
    let text = raw(server.address, format!("{start} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes());
    (text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), text)
}

fn upload(server: &Server, file: &str, content: Vec<u8>) -> Answer {
    let part = reqwest::blocking::multipart::Part::bytes(content).file_name(file.to_owned());
    let form = reqwest::blocking::multipart::Form::new().part("file", part);
    answer(server.post("/v1/models/new/versions").multipart(form).send().unwrap())
}

/// An upload of some bytes now and then, until it is refused.
fn drip(server: &Server) -> Answer {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let head = "POST /v1/models/new/versions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\
                Content-Type: multipart/form-data; boundary=b\r\n\r\n\
                --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model.onnx\"\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = Vec::new();
    wait_until(|| {
        // Reading waits a little, and tells when the answer has begun; the form is read on until its client stops.
        let _ = stream.write_all(&[b'x'; 100]);
        let mut chunk = [0; 4096];
        text.extend_from_slice(stream.read(&mut chunk).map_or(&[][..], |count| &chunk[..count]));
        String::from_utf8_lossy(&text).contains("request_id")
    });
    let text = String::from_utf8(text).unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

/// Many at once: one runs, one waits, and the others are refused.
fn full_queue(server: &Server) -> Answer {
    let mut body = endless();
    body["timeout_ms"] = json!(1500);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12).map(|_| scope.spawn(|| predict(server, "slow", &body))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    answers.into_iter().find(|(status, _)| *status == 503).unwrap()
}

/// A mono sound of 16 kHz.
fn silence(seconds: u32) -> Vec<u8> {
    let bytes = seconds * 32_000;
    let mut wav = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data".to_vec();
    wav.extend(bytes.to_le_bytes());
    wav.resize(wav.len() + bytes as usize, 0);
    wav
}

/// Downloads that never begin: their number and their time are bounded.
#[test]
fn downloads_are_bounded_in_number_and_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let server = Server::start(
        &[],
        &[("ORTUS_HUB__ALLOWED_HOSTS", &host), ("ORTUS_HUB__MAX_DOWNLOADS", "1"), ("ORTUS_HUB__TOTAL_TIMEOUT_S", "2")],
    );
    let order = |name: &str| {
        let body = json!({"name": name, "source": "url", "url": format!("http://{host}/model.onnx")});
        server.post("/v1/models").json(&body).send().unwrap()
    };
    let first: Value = order("one").json().unwrap();
    let second = order("two");
    assert!(second.headers().contains_key("retry-after"));
    let (status, text) = answer(second);
    assert!(status == 503 && text.contains("max_downloads"), "{status} {text}");
    let path = format!("/v1/downloads/{}", first["download"]["id"].as_str().unwrap());
    wait_until(|| server.get_json(&path)["state"] == "failed");
    let error = server.get_json(&path)["error"].to_string();
    assert!(error.contains("total_timeout_s = 2"), "{error}");
    server.assert_well();
}

/// The state of the server's end of this connection, as `/proc/net/tcp` writes it; `None` once it is gone.
fn state_at_server(stream: &TcpStream) -> Option<String> {
    let end = |address: std::net::SocketAddr| format!("0100007F:{:04X}", address.port());
    let (theirs, ours) = (end(stream.peer_addr().unwrap()), end(stream.local_addr().unwrap()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row[1] == theirs && row[2] == ours).map(|row| row[3].to_owned())
}

/// A connection whose client reads nothing is closed.
#[test]
fn a_client_that_takes_nothing_is_cut() {
    const ESTABLISHED: &str = "01";
    let server = Server::start(&[], &[("ORTUS_LIMITS__WRITE_TIMEOUT_MS", "300")]);
    let mut stream = TcpStream::connect(server.address).unwrap();
    assert_eq!(state_at_server(&stream).unwrap(), ESTABLISHED);
    // Far more than the system takes for somebody who does not read.
    let asks = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    stream.write_all(asks.as_bytes()).unwrap();
    wait_until(|| state_at_server(&stream).is_none_or(|state| state != ESTABLISHED));
    server.assert_well();
}

//! A server that is attacked, and what must hold of it after every attack: it is the same process, ready, right, as small
//! as before, and its log is whole lines that name each refusal and nothing of the inside.

use crate::server::{PATIENCE, Server, command, store_of, wait_until};
use reqwest::Method;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A server with the model `mlp` besides others, whose log is kept.
pub struct Attacked {
    server: Server,
    folder: tempfile::TempDir,
    before: Usage,
    good: Value,
}

/// What the process holds.
#[derive(Debug, Clone, Copy)]
struct Usage {
    resident_mb: u64,
    files: usize,
    threads: usize,
}

impl Deref for Attacked {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Attacked {
    pub fn with(models: &[&str], environment: &[(&str, &str)]) -> Attacked {
        Attacked::on(store_of(models), environment)
    }

    pub fn on(store: tempfile::TempDir, environment: &[(&str, &str)]) -> Attacked {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command();
        command
            .env("ORTUS_TELEMETRY__LOG_FORMAT", "json")
            .env("ORTUS_TELEMETRY__LOG_LEVEL", "info")
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap());
        crate::server::copy_folder(&crate::server::fixture("store/mlp"), &store.path().join("mlp"));
        let server = Server::launch_by(command, store, environment);
        server.wait_ready();
        let mut attacked =
            Attacked { server, folder, before: Usage { resident_mb: 0, files: 0, threads: 0 }, good: Value::Null };
        // What a process takes once, for its first requests of all kinds, is no matter of the attack.
        for _ in 0..20 {
            attacked.good = attacked.good_answer();
            attacked.get("/metrics");
        }
        attacked.before = attacked.usage();
        attacked
    }

    fn good_answer(&self) -> Value {
        let (status, answer) = self.post_json("/v1/models/mlp/predict", &good());
        assert_eq!(status, 200, "{answer}");
        answer["outputs"].clone()
    }

    fn usage(&self) -> Usage {
        let own = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(own.join("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Usage {
            resident_mb: resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024,
            files: std::fs::read_dir(own.join("fd")).unwrap().count(),
            threads: std::fs::read_dir(own.join("task")).unwrap().count(),
        }
    }

    /// Seconds of CPU that the process has taken.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        // In hundredths: Linux's USER_HZ. User and system time.
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// Whether the process takes less than half a core for a while: nothing spins, no run goes on.
    pub fn is_idle(&self) -> bool {
        let (before, window) = (self.cpu_seconds(), Duration::from_millis(300));
        std::thread::sleep(window);
        self.cpu_seconds() - before < window.as_secs_f64() / 2.0
    }

    /// All that was logged, line by line.
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        assert!(!text.contains('\u{1b}'), "a raw escape is in the log");
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("forged: {line}"))).collect()
    }

    pub fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.folder.path().join("log")).unwrap().len()
    }

    /// What holds after any attack; the process may have grown by `grown_mb`.
    #[track_caller]
    pub fn assert_unharmed(&mut self, grown_mb: u64) {
        assert!(self.server.child.try_wait().unwrap().is_none(), "the process has ended");
        wait_until(|| self.get("/v2/health/ready").status() == 200);
        assert_eq!(self.good_answer(), self.good);
        let before = self.before;
        // Threads that nothing was given to for ten seconds end by themselves.
        wait_until(|| {
            let now = self.usage();
            let is_back = now.files <= before.files + 2 && now.threads <= before.threads + 4;
            is_back && now.resident_mb <= before.resident_mb + grown_mb
        });
        for line in self.log() {
            let text = line.to_string();
            assert!(!text.contains("panicked"), "{text}");
            if line["status"].as_u64().is_some_and(|status| status >= 400 && status != 499) {
                let has = |field: &str| line[field].as_str().is_some_and(|text| !text.is_empty());
                assert!(has("request_id") && has("code") && has("route"), "{text}");
            }
        }
    }
}

/// Makes a shared library of a C file, where there is a compiler.
pub fn compiled(source: &Path, library: &Path) -> bool {
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source);
    compiler.status().is_ok_and(|status| status.success())
}

/// A prediction that is right.
pub fn good() -> Value {
    json!({"inputs": [vec![0.5; 32]]})
}

/// The head of a POST of JSON, without the line that says how long its body is, and without the empty line.
pub fn head(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
}

/// What came back on a connection, and whether the server closed it.
pub struct Exchange {
    pub text: String,
    pub is_closed: bool,
}

impl Exchange {
    /// Status of each answer: only bodies hold these words otherwise, and ours do not.
    pub fn statuses(&self) -> Vec<u16> {
        self.text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
    }
}

/// Sends these bytes and reads until the server closes, or is silent for `patience`.
pub fn exchange(address: SocketAddr, bytes: &[u8], patience: Duration) -> Exchange {
    let mut stream = TcpStream::connect(address).unwrap();
    // A server that refuses early may close while we still write.
    let _ = stream.write_all(bytes);
    read_all(&mut stream, patience)
}

/// Reads until the server closes, or is silent for `patience`.
pub fn read_all(stream: &mut TcpStream, patience: Duration) -> Exchange {
    stream.set_read_timeout(Some(patience)).unwrap();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 << 10]);
    let is_closed = loop {
        match stream.read(&mut chunk) {
            Ok(0) => break true,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            // A reset is a way to close, too.
            Err(error) => break !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
    };
    Exchange { text: String::from_utf8_lossy(&bytes).into_owned(), is_closed }
}

/// Ends a connection by a reset, as a client that crashed.
pub fn reset(stream: TcpStream) {
    let socket = tokio::net::TcpSocket::from_std_stream(stream);
    socket.set_zero_linger().unwrap();
}

/// Sends `piece` again and again until the server answers or closes, at most `most` bytes; gives the answer, and how many
/// bytes were taken.
pub fn pour(stream: &mut TcpStream, piece: &[u8], most: usize) -> (Exchange, usize) {
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut sent = 0;
    while sent < most && stream.write_all(piece).is_ok() {
        sent += piece.len();
    }
    (read_all(stream, PATIENCE), sent)
}

/// Every operation of the server's own document and those that bring models, with `model` in the places of names.
pub fn operations(server: &Server, model: &str) -> Vec<(Method, String)> {
    crate::keys::operations(&server.get_json("/openapi.json"))
        .into_iter()
        .map(|(method, path)| (method, path.replace("/none", &format!("/{model}"))))
        .collect()
}

/// Status, headers and text of an answer to a request of these headers.
pub fn ask(server: &Server, method: &Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = server.client.request(method.clone(), server.url(path)).body(body.to_owned());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().unwrap();
    Answer { status: response.status().as_u16(), headers: response.headers().clone(), text: response.text().unwrap() }
}

pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// TorchServe's explanations, which this server does not give.
    pub fn says_it_is_not_there(&self, path: &str) -> bool {
        self.status == 501 && path.starts_with("/explanations/")
    }

    /// The form of an error of this path, and nothing of the inside.
    #[track_caller]
    pub fn assert_error(&self, path: &str, store: &Path) {
        let at = format!("{path}: {} {:.300}", self.status, self.text);
        assert!(self.status >= 400 && self.text.len() < 4096, "{at}");
        for inside in [store.to_str().unwrap(), ".cc:", ".rs:", "panicked", "/home/", "/tmp/", "/root/"] {
            assert!(!self.text.contains(inside), "{inside} is in {at}");
        }
        let body: Value = serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{at}"));
        if path.starts_with("/v2") {
            assert!(body["error"].is_string() && body.as_object().unwrap().len() == 1, "{at}");
        } else if path.starts_with("/v1") && self.header("content-type") == "application/problem+json" {
            let has = |member: &&str| body.get(*member).is_some();
            let members = ["type", "title", "status", "detail", "instance", "code", "request_id"];
            assert!(members.iter().all(has) && body["status"] == self.status, "{at}");
        }
        assert_eq!(self.header("x-content-type-options"), "nosniff", "{at}");
        assert!(!self.header("x-request-id").is_empty(), "{at}");
    }
}

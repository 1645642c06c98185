//! A server for one test: the binary as users run it, on port 0, with a store of its own.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// `../shared/models`, or where the environment says; `None`, loudly, where there is none.
pub fn shared_models() -> Option<PathBuf> {
    let path = std::env::var_os("ORTUS_SHARED_MODELS").map_or_else(|| root().join("../shared/models"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: the shared models are not there ({})", path.display());
    None
}

pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    /// Where it speaks gRPC.
    pub grpc: SocketAddr,
    pub store: tempfile::TempDir,
    pub client: reqwest::blocking::Client,
}

impl Server {
    /// A server with copies of these fixtures (folders of `tests/fixtures/store`), ready.
    pub fn with(models: &[&str]) -> Server {
        Server::start(models, &[])
    }

    /// The same with configuration from the environment.
    pub fn start(models: &[&str], environment: &[(&str, &str)]) -> Server {
        let store = store_of(models);
        Server::on(store, environment)
    }

    /// A server on this store, ready.
    pub fn on(store: tempfile::TempDir, environment: &[(&str, &str)]) -> Server {
        let server = Server::launch(store, environment);
        server.wait_ready();
        server
    }

    /// A server that listens, perhaps not ready yet.
    pub fn launch(store: tempfile::TempDir, environment: &[(&str, &str)]) -> Server {
        Server::launch_by(command(), store, environment)
    }

    /// The same by a command that says more than the usual.
    pub fn launch_by(command: Command, store: tempfile::TempDir, environment: &[(&str, &str)]) -> Server {
        Server::launch_at(command, &["--listen", "127.0.0.1:0"], store, environment)
    }

    /// The same with all flags that say where and how to listen.
    pub fn launch_at(
        mut command: Command,
        flags: &[&str],
        store: tempfile::TempDir,
        environment: &[(&str, &str)],
    ) -> Server {
        // Built first: what fails here leaves no server behind. The library takes its cryptography from whoever uses it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // No connection is kept: one that the server closes for being idle may be used in that very moment.
        let client = reqwest::blocking::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(0).build().unwrap();
        let mut child = command
            .args([&["serve", "--grpc", "127.0.0.1:0"][..], flags, &["--models"]].concat())
            .arg(store.path())
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address_after = |words: &str| {
            let Some(Ok(line)) = lines.next() else {
                panic!("the server ended at start: {:?}", child.wait());
            };
            let address = line.rsplit(words).next().and_then(|text| text.parse().ok());
            let Some(address) = address else { panic!("no address in {line:?}") };
            address
        };
        let (address, grpc) = (address_after("://"), address_after("gRPC on "));
        Server { child, address, grpc, store, client }
    }

    pub fn wait_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.get("/readyz").status() != 200 {
            assert!(Instant::now() < deadline, "not ready in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn get(&self, path: &str) -> reqwest::blocking::Response {
        self.client.get(self.url(path)).send().unwrap()
    }

    pub fn get_json(&self, path: &str) -> Value {
        let response = self.get(path);
        assert_eq!(response.status(), 200, "{path}");
        response.json().unwrap()
    }

    pub fn post(&self, path: &str) -> reqwest::blocking::RequestBuilder {
        self.client.post(self.url(path))
    }

    /// Posts JSON and gives status and body.
    pub fn post_json(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_text(path, "application/json", body.to_string().into_bytes())
    }

    pub fn post_text(&self, path: &str, content_type: &str, body: Vec<u8>) -> (u16, Value) {
        let response = self.post(path).header("content-type", content_type).body(body).send().unwrap();
        let status = response.status().as_u16();
        let text = response.text().unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Ends this child at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The store of a server that has ended, for another one.
    pub fn take_store(&mut self) -> tempfile::TempDir {
        assert!(self.child.try_wait().unwrap().is_some(), "the server still uses its store");
        std::mem::replace(&mut self.store, tempfile::tempdir().unwrap())
    }

    /// The most memory that the server has had at a time, in MB.
    pub fn peak_memory_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// SIGTERM to this child only.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// A signal by its name, such as `HUP`, to this child only.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    pub fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not exit");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The server still answers as it should: what every test of a refusal ends with.
    #[track_caller]
    pub fn assert_well(&self) {
        assert_eq!(self.get("/readyz").status(), 200);
        assert_eq!(self.get("/v2/health/ready").status(), 200);
        assert!(std::net::TcpStream::connect(self.grpc).is_ok());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary with an environment that no developer's settings reach.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ortus"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if ["ORTUS_", "HF_", "HUGGING"].iter().any(|prefix| name_text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // A folder without an ortus.toml.
    command.current_dir(root().join("tests")).env("ORTUS_TELEMETRY__LOG_LEVEL", "warn");
    // Servers of other tests have the usual port.
    command.env("ORTUS_SERVER__GRPC_LISTEN", "off");
    // One more process for each model of each server; tests of what is loaded ask for it.
    command.env("ORTUS_STORE__TRIAL_LOAD", "off");
    command
}

/// A store with copies of these fixtures.
pub fn store_of(models: &[&str]) -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    for model in models {
        copy_folder(&fixture("store").join(model), &store.path().join(model));
    }
    store
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Looks again and again until it is so.
#[track_caller]
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A raw connection: sends these bytes and gives all that comes back until the peer closes or is silent.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    // A server that refuses early may close while we still write.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

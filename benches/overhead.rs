//! What the server adds to a bare ONNX Runtime session, one request at a time: small JSON, a 600 KB binary tensor, a JPEG; tensors over
//! REST and over gRPC.
//!
//! Rounds alternate between a bare `session.run` loop in this process, a thread that echoes as many bytes over a plain
//! socket, and the release server over one kept-alive loopback connection, so that all see the same machine. Printed are
//! medians of all rounds. `added` is the server's time less the bare run; `net` leaves out the echo as well, which is what
//! the client and the loopback cost without any server. In the end the same small requests go by turns to a server that asks for no
//! key and to one that does, and the processor's time of each server is counted. `make bench` runs it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that cannot go on says so"
)]

use ort::session::Session;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;

/// A client made of the same file as the server.
mod pb {
    #![expect(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/client/inference.rs"));
}

fn main() {
    // `cargo test --benches` and `--list` pass arguments of the test harness; there is nothing to list.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let store = tempfile::tempdir().unwrap();
    let fixtures = root.join("tests/fixtures/store");
    for (name, from) in
        [("mlp", fixtures.join("mlp")), ("echo", fixtures.join("echo")), ("digits", root.join("models/digits"))]
    {
        assert!(Command::new("cp").arg("-r").arg(from).arg(store.path().join(name)).status().unwrap().success());
    }
    let library = ortus::runtime::onnx::find_library().unwrap();
    let environment = ort::init_from(library).unwrap().with_telemetry(false).build().unwrap();
    let server = Server::start(store.path());
    let mut client = Client::connect(&server.address);
    let open = |name: &str| bare_session(&environment, &store.path().join(name).join("1/model.onnx"));

    let row: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
    let json = format!(r#"{{"inputs": {{"x": [{row:?}]}}}}"#);
    let big: Vec<f32> = (0..150_528).map(|i| i as f32).collect();
    let head = r#"{"inputs":[{"name":"x","shape":[1,150528],"datatype":"FP32","parameters":{"binary_data_size":602112}}],"parameters":{"binary_data_output":true}}"#;
    let binary = [head.as_bytes(), &big.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()].concat();
    let head_bytes = head.len();
    let binary_headers =
        format!("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\n", head.len());
    let jpeg = jpeg_640x480();

    println!(
        "{:<26} {:>9} {:>9} {:>9} {:>9} {:>9}   stages (ms)",
        "µs, one at a time", "bare", "echo", "Ortus", "added", "net"
    );
    let mut echo = Echo::start();
    let mut livez = || client.request("GET", "/livez", "", b"");
    report("GET /livez", 3000, &mut || (), &mut || echo.round_trip(200, 200), &mut livez);

    let mut session = open("mlp");
    let mut bare = || run(&mut session, "x", &[1, 32], &row);
    let path = "/v1/models/mlp/predict";
    let json_type = "Content-Type: application/json\r\n";
    let mut ortus = || client.request("POST", path, json_type, json.as_bytes());
    report("MLP, 32 numbers as JSON", 3000, &mut bare, &mut || echo.round_trip(json.len() + 120, 400), &mut ortus);

    let mut grpc = Grpc::connect(&server.grpc);
    let small = row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let head = r#"{"inputs":[{"name":"x","shape":[1,32],"datatype":"FP32","parameters":{"binary_data_size":128}}],"parameters":{"binary_data_output":true}}"#;
    let body = [head.as_bytes(), &small].concat();
    let headers =
        format!("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\n", head.len());
    let mut ortus = || client.request("POST", "/v2/models/mlp/infer", &headers, &body);
    report("MLP, 32 numbers, binary", 3000, &mut bare, &mut || echo.round_trip(body.len() + 200, 500), &mut ortus);
    let request = Grpc::request("mlp", 32, small);
    report("MLP, 32 numbers, gRPC", 3000, &mut bare, &mut || echo.round_trip(400, 300), &mut || grpc.infer(&request));

    let mut session = open("echo");
    let mut bare = || run(&mut session, "x", &[1, 150_528], &big);
    let path = "/v2/models/echo/infer";
    let size = binary.len();
    let mut ortus = || client.request("POST", path, &binary_headers, &binary);
    report("echo, 602 KB binary tensor", 400, &mut bare, &mut || echo.round_trip(size, size), &mut ortus);
    let request = Grpc::request("echo", 150_528, binary[head_bytes..].to_vec());
    let mut ortus = || grpc.infer(&request);
    report("echo, 602 KB, gRPC", 400, &mut bare, &mut || echo.round_trip(size, size), &mut ortus);
    let one_copy = median_of(400, || {
        // Into fresh memory, as a server's buffer is.
        std::hint::black_box(binary.clone());
    });
    println!("{:<26} {:>49.1}", "  (one copy of its bytes)", micros(one_copy));

    let mut session = open("digits");
    let pixels = vec![0f32; 32 * 32];
    let mut bare = || run(&mut session, "pixel_values", &[1, 1, 32, 32], &pixels);
    let path = "/v1/models/digits/predict";
    let jpeg_type = "Content-Type: image/jpeg\r\n";
    let mut ortus = || client.request("POST", path, jpeg_type, &jpeg);
    report("digits, JPEG 640x480", 200, &mut bare, &mut || echo.round_trip(jpeg.len(), 400), &mut ortus);

    let asks = Server::with_key(&fixtures.join("mlp"));
    println!(
        "\n{:<26} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "what a key costs", "rate", "with key", "%", "CPU µs", "with key", "%"
    );
    let key = asks.key.as_deref().unwrap();
    let headers = format!("{json_type}Authorization: Bearer {key}\r\n");
    let path = "/v1/models/mlp/predict";
    let mut other = Client::connect(&asks.address);
    let mut plain = || drop(client.request("POST", path, json_type, json.as_bytes()));
    let mut keyed = || drop(other.request("POST", path, &headers, json.as_bytes()));
    compare("MLP, 32 numbers as JSON", [(&server, &mut plain), (&asks, &mut keyed)]);
    let request = Grpc::request("mlp", 32, row.iter().flat_map(|x| x.to_le_bytes()).collect());
    let mut other = Grpc { key: asks.key.clone(), ..Grpc::connect(&asks.grpc) };
    let mut plain = || drop(grpc.infer(&request));
    let mut keyed = || drop(other.infer(&request));
    compare("MLP, 32 numbers, gRPC", [(&server, &mut plain), (&asks, &mut keyed)]);
}

/// Requests a second and processor time of each, of two servers by turns.
fn compare(name: &str, sides: [(&Server, &mut dyn FnMut()); 2]) {
    const COUNT: u32 = 5000;
    let mut times = [Vec::new(), Vec::new()];
    let mut busy = [Vec::new(), Vec::new()];
    let mut sides = sides;
    for _ in 0..3 * ROUNDS {
        for (place, (server, work)) in sides.iter_mut().enumerate() {
            (0..COUNT / 10).for_each(|_| work());
            let (started, before) = (Instant::now(), server.processor_time());
            (0..COUNT).for_each(|_| work());
            times[place].push(started.elapsed() / COUNT);
            busy[place].push((server.processor_time() - before) / COUNT);
        }
    }
    let [rate, rate_with] = times.map(|mut times| 1e6 / micros(median(&mut times)));
    let [busy, busy_with] = busy.map(|mut busy| micros(median(&mut busy)));
    let (slower, more) = ((rate / rate_with - 1.0) * 100.0, (busy_with / busy - 1.0) * 100.0);
    println!("{name:<26} {rate:>9.0} {rate_with:>9.0} {slower:>9.1} {busy:>9.2} {busy_with:>9.2} {more:>9.1}");
}

fn report(name: &str, count: usize, bare: &mut dyn FnMut(), echo: &mut dyn FnMut(), ortus: &mut dyn FnMut() -> String) {
    let (mut bare_times, mut echo_times, mut ortus_times) = (Vec::new(), Vec::new(), Vec::new());
    let mut timing = String::new();
    for _ in 0..ROUNDS {
        bare_times.push(median_of(count, &mut *bare));
        echo_times.push(median_of(count, &mut *echo));
        ortus_times.push(median_of(count, || timing = ortus()));
    }
    let [bare, echo, ortus] = [bare_times, echo_times, ortus_times].map(|mut times| micros(median(&mut times)));
    let (added, net) = (ortus - bare, ortus - bare - echo);
    let stages = timing.replace(";dur=", " ");
    println!("{name:<26} {bare:>9.1} {echo:>9.1} {ortus:>9.1} {added:>9.1} {net:>9.1}   {stages}");
}

/// A thread that reads as many bytes as it is told and writes as many back.
struct Echo {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Echo {
    #[expect(clippy::disallowed_methods, reason = "a measurement has no server's tasks")]
    fn start() -> Echo {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        peer.set_nodelay(true).unwrap();
        std::thread::spawn(move || {
            let mut sizes = [0u8; 16];
            let mut buffer = vec![0u8; 1 << 20];
            while peer.read_exact(&mut sizes).is_ok() {
                let (read, write) = sizes.split_at(8);
                let [read, write] = [read, write].map(|half| u64::from_le_bytes(half.try_into().unwrap()) as usize);
                peer.read_exact(&mut buffer[..read - 16]).unwrap();
                peer.write_all(&buffer[..write]).unwrap();
            }
        });
        Echo { stream, buffer: vec![0; 1 << 20] }
    }

    fn round_trip(&mut self, send: usize, receive: usize) {
        self.buffer[..8].copy_from_slice(&(send as u64).to_le_bytes());
        self.buffer[8..16].copy_from_slice(&(receive as u64).to_le_bytes());
        self.stream.write_all(&self.buffer[..send]).unwrap();
        self.stream.read_exact(&mut self.buffer[..receive]).unwrap();
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median_of(count: usize, mut work: impl FnMut()) -> Duration {
    for _ in 0..count / 10 {
        work();
    }
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .collect();
    median(&mut times)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A session with the server's own settings: all cores, no spinning.
fn bare_session(environment: &ort::environment::Environment, file: &Path) -> Session {
    let build = || -> ort::Result<Session> {
        Session::builder(environment)?
            .with_intra_threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .commit_from_file(file)
    };
    build().unwrap()
}

fn run(session: &mut Session, input: &str, shape: &[usize], data: &[f32]) {
    let tensor = ort::value::TensorRef::from_array_view((shape, data)).unwrap();
    let outputs = session.run(ort::inputs![input => tensor]).unwrap();
    std::hint::black_box(&outputs);
}

struct Grpc {
    runtime: tokio::runtime::Runtime,
    client: pb::grpc_inference_service_client::GrpcInferenceServiceClient<tonic::transport::Channel>,
    key: Option<String>,
}

impl Grpc {
    fn connect(address: &str) -> Grpc {
        // One thread, as the plain client has: a hop to another would be counted as the server's.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        let client = pb::grpc_inference_service_client::GrpcInferenceServiceClient::new(channel);
        Grpc { runtime, client, key: None }
    }

    fn request(model: &str, width: i64, bytes: Vec<u8>) -> pb::ModelInferRequest {
        let input = pb::model_infer_request::InferInputTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, width],
            ..Default::default()
        };
        pb::ModelInferRequest {
            model_name: model.to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![bytes.into()],
            ..Default::default()
        }
    }

    fn infer(&mut self, request: &pb::ModelInferRequest) -> String {
        let mut request = tonic::Request::new(request.clone());
        if let Some(key) = &self.key {
            request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        }
        let answer = self.runtime.block_on(self.client.model_infer(request)).unwrap();
        assert_eq!(answer.into_inner().raw_output_contents.len(), 1);
        String::new()
    }
}

struct Server {
    child: Child,
    address: String,
    grpc: String,
    key: Option<String>,
    /// A store of its own, where it has one.
    store: Option<tempfile::TempDir>,
}

impl Server {
    /// Of one model, and for who has a key.
    fn with_key(model: &Path) -> Server {
        let store = tempfile::tempdir().unwrap();
        assert!(Command::new("cp").arg("-r").args([model, store.path()]).status().unwrap().success());
        let mut create = Command::new(env!("CARGO_BIN_EXE_ortus"));
        create.args(["key", "create", "--role", "infer", "--models"]).arg(store.path());
        let key = String::from_utf8(create.output().unwrap().stdout).unwrap().trim().to_owned();
        let mut server = Server::start(store.path());
        (server.key, server.store) = (Some(key), Some(store));
        server
    }

    /// What its threads have computed since they began.
    fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        Duration::from_nanos(tasks.map(|task| of(task.unwrap())).sum())
    }

    fn start(store: &Path) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ortus"))
            .args(["serve", "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--models"])
            .arg(store)
            .env("ORTUS_TELEMETRY__LOG_LEVEL", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address_after = |words| lines.next().unwrap().unwrap().rsplit(words).next().unwrap().to_owned();
        let (address, grpc) = (address_after("http://"), address_after("gRPC on "));
        let server = Server { child, address, grpc, key: None, store: None };
        let mut client = Client::connect(&server.address);
        for _ in 0..2000 {
            client.request("GET", "/readyz", "", b"");
            if client.status == 200 {
                return server;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server did not become ready");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One kept-alive connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    status: u16,
}

impl Client {
    fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new(), status: 0 }
    }

    /// Sends a request, reads the whole answer, gives its `Server-Timing`.
    fn request(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        if body.len() < 16_384 {
            self.stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        } else {
            self.stream.write_all(head.as_bytes()).unwrap();
            self.stream.write_all(body).unwrap();
        }
        self.buffer.clear();
        let mut chunk = [0u8; 65_536];
        let end = loop {
            let count = self.stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the server closed the connection");
            self.buffer.extend_from_slice(&chunk[..count]);
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                line.to_ascii_lowercase().starts_with(name).then(|| line[name.len()..].trim().to_owned())
            })
        };
        self.status = head[9..12].parse().unwrap();
        let length: usize = header("content-length:").map_or(0, |text| text.parse().unwrap());
        let mut have = self.buffer.len() - end;
        while have < length {
            let count = self.stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the answer was cut off");
            have += count;
        }
        assert!(self.status == 200 || path == "/readyz", "{head}");
        header("server-timing:").unwrap_or_default()
    }
}

/// A picture with some detail, so that decoding costs what photographs cost.
fn jpeg_640x480() -> Vec<u8> {
    let picture = image::RgbImage::from_fn(640, 480, |x, y| {
        let wave = ((x as f32 / 9.0).sin() * (y as f32 / 7.0).cos() * 90.0 + 128.0) as u8;
        image::Rgb([wave, (x * 255 / 640) as u8, (y * 255 / 480) as u8 ^ (wave >> 3)])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

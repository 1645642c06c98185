//! Throughput and latency under load, each beside what it is to be held against, in alternating rounds of one run:
//!
//! - `resnet18`: a convolutional net, V2 binary, beside bare ONNX Runtime at its best batch size and threads;
//! - `mlp`: a tiny net over JSON, beside an axum handler that parses and answers the same JSON without a model;
//! - `encoder`: texts of 8 to 128 tokens over JSON, which the server tokenizes and pools to one embedding each, beside a bare
//!   loop that is given the token ids and pads each FIFO batch to its longest text;
//! - `echo`: 600 KB tensors, V2 binary, beside an axum handler that sends the same bytes back.
//!
//! The server is the release binary; the axum handlers are processes of their own, too; the clients are threads of this
//! process with one kept-alive connection each, on the same cores, and what they cost is printed. A ratio is the median of
//! the rounds' own ratios, its lowest and highest round beside it.
//!
//! `make bench` makes the models and runs all. Arguments, or the same words in `ORTUS_BENCH`: the parts to run, `--rounds N`
//! (5), `--seconds S` of one measurement (2; three times that where a request takes long): `cargo bench --bench throughput -- mlp echo --rounds 3 --seconds 1`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that cannot go on says so"
)]

use axum::routing::post;
use axum::serve::ListenerExt;
use ort::session::{Session, SessionOutputs};
use ortus::load::{Client, Request, Sample, Summary, Work, measure, measure_http, median};
use ortus::tasks::Tasks;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PARTS: [&str; 4] = ["resnet18", "mlp", "encoder", "echo"];

fn main() {
    let words = std::env::var("ORTUS_BENCH").unwrap_or_default();
    let mut arguments = words.split_whitespace().map(str::to_owned).chain(std::env::args().skip(1));
    let (mut parts, mut rounds, mut seconds) = (Vec::new(), 5, 2.0);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            // `cargo test --benches` and `--list` pass arguments of the test harness; there is nothing to list.
            "--list" | "--test" => return,
            "--bench" => {}
            "--baseline" => return baseline(&value()),
            "--rounds" => rounds = value().parse().unwrap(),
            "--seconds" => seconds = value().parse().unwrap(),
            part if PARTS.contains(&part) => parts.push(part.to_owned()),
            other => panic!("unknown argument {other:?}; the parts are {PARTS:?}"),
        }
    }
    let bench = Bench::new(rounds, Duration::from_secs_f64(seconds));
    println!("{rounds} alternating rounds of {seconds} s each, {} cores", cores());
    for part in PARTS.into_iter().filter(|part| parts.is_empty() || parts.iter().any(|wanted| wanted == part)) {
        let before = Machine::now();
        match part {
            "resnet18" => bench.resnet18(),
            "mlp" => bench.mlp(),
            "encoder" => bench.encoder(),
            _ => bench.echo(),
        }
        println!("\nOther processes took {:.0} % of the machine meanwhile.", before.foreign_percent());
    }
}

/// What all parts share.
struct Bench {
    rounds: usize,
    duration: Duration,
    root: PathBuf,
    tasks: Tasks,
    environment: ort::environment::Environment,
}

/// One measurement over HTTP.
struct Run {
    sample: Sample,
    /// Processor time of the server for one request, in µs.
    server_micros: f64,
}

/// Concurrencies of the clients, and the measurements of each round.
type Rounds = Vec<(usize, Vec<Run>)>;

impl Bench {
    fn new(rounds: usize, duration: Duration) -> Bench {
        let library = ortus::runtime::onnx::find_library().unwrap();
        let environment = ort::init_from(library).unwrap().with_telemetry(false).build().unwrap();
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        Bench { rounds, duration, root, tasks: Tasks::new(), environment }
    }

    /// A model that `tools/make_bench_models.py` wrote.
    fn made(&self, name: &str) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from);
        let folder = target.join("bench-models").join(name);
        assert!(
            folder.join("1/model.onnx").exists(),
            "{} is not there: run `make bench`, or tools/make_bench_models.py",
            folder.display()
        );
        folder
    }

    fn fixture(&self, name: &str) -> PathBuf {
        self.root.join("tests/fixtures/store").join(name)
    }

    fn http(&self, server: &Server, requests: &Arc<[Request]>, concurrency: usize) -> Run {
        self.http_for(self.duration, server, requests, concurrency)
    }

    /// For requests that take so long that the first and the last of a measurement, which run with fewer beside them,
    /// would count for a tenth of it.
    fn http_long(&self, server: &Server, requests: &Arc<[Request]>, concurrency: usize) -> Run {
        self.http_for(3 * self.duration, server, requests, concurrency)
    }

    fn http_for(&self, duration: Duration, server: &Server, requests: &Arc<[Request]>, concurrency: usize) -> Run {
        let before = server.cpu_seconds();
        let sample = measure_http(&self.tasks, server.address, requests, concurrency, duration, &going()).unwrap();
        assert_eq!(sample.refused, 0, "the server refused requests");
        let server_micros = (server.cpu_seconds() - before) * 1e6 / sample.count().max(1) as f64;
        Run { sample, server_micros }
    }

    fn bare(&self, workers: Vec<Work>) -> Sample {
        measure(&self.tasks, workers, self.duration, &going()).unwrap()
    }

    fn sessions(&self, folder: &Path, count: usize, threads: usize) -> Vec<Arc<Mutex<Session>>> {
        let open = || -> ort::Result<Session> {
            Session::builder(&self.environment)?
                .with_intra_threads(threads)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .commit_from_file(folder.join("1/model.onnx"))
        };
        (0..count).map(|_| Arc::new(Mutex::new(open().unwrap()))).collect()
    }

    fn resnet18(&self) {
        const SIZE: usize = 3 * 224 * 224;
        let server = Server::start(&[&self.made("resnet18")]);
        let pictures: Vec<Vec<f32>> = (0..4).map(|seed| floats(seed, SIZE)).collect();
        let requests: Arc<[Request]> = pictures
            .iter()
            .map(|picture| v2_request("resnet18", &[("input", "FP32", vec![1, 3, 224, 224], le_bytes(picture))]))
            .collect();
        let settings = [(2, 1), (1, 2)];
        let sessions = settings.map(|(count, threads)| self.sessions(&self.made("resnet18"), count, threads));
        let batches = [1usize, 2, 4, 8, 16];
        let mut bare: Vec<((usize, usize), Vec<Sample>)> = Vec::new();
        for setting in 0..settings.len() {
            bare.extend(batches.map(|batch| ((setting, batch), Vec::new())));
        }
        let mut ours: Rounds = [1, 8, 32].map(|concurrency| (concurrency, Vec::new())).into();
        self.http(&server, &requests, 2);
        for _ in 0..self.rounds {
            for ((setting, batch), samples) in &mut bare {
                let data = Arc::new(floats(1, *batch * SIZE));
                let shape = [*batch, 3, 224, 224];
                let worker = |session: &Arc<Mutex<Session>>| {
                    let (session, data) = (session.clone(), data.clone());
                    Box::new(move || {
                        let input = ort::value::TensorRef::from_array_view((shape, data.as_slice())).unwrap();
                        std::hint::black_box(session.lock().unwrap().run(ort::inputs!["input" => input]).unwrap());
                        Ok(true)
                    }) as Work
                };
                samples.push(self.bare(sessions[*setting].iter().map(worker).collect()));
            }
            for (concurrency, samples) in &mut ours {
                samples.push(self.http_long(&server, &requests, *concurrency));
            }
        }
        let images = |batch: usize, sample: &Sample| sample.per_second() * batch as f64;
        let rate = |entry: &((usize, usize), Vec<Sample>)| {
            median(entry.1.iter().map(|sample| images(entry.0.1, sample)).collect())
        };
        heading("ResNet-18, V2 binary f32[1,3,224,224]", "bare ONNX Runtime");
        for entry in &bare {
            let (count, threads) = settings[entry.0.0];
            let name = format!("bare, {count} × {threads} threads, batch {}", entry.0.1);
            row(&name, &Summary::of(&entry.1), rate(entry));
        }
        let best = bare.iter().max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap();
        let reference: Vec<f64> = best.1.iter().map(|sample| images(best.0.1, sample)).collect();
        for (concurrency, samples) in &ours {
            http_row(&format!("**Ortus, {concurrency} clients**"), samples, Some(&reference));
        }
        // The settings whose single run is quickest: nobody could answer one client sooner.
        let single = bare.iter().filter(|entry| entry.0.1 == 1).map(|entry| Summary::of(&entry.1).p50_ms);
        let single = single.fold(f64::INFINITY, f64::min);
        let ours = summary(&ours[0].1).p50_ms;
        let added = (ours - single) * 1e3;
        println!(
            "\nWanted: 0.95 of bare at 8 and 32 clients, and at 1 client a p50 within 3 % + 150 µs, {:.0} µs, of bare: it is {ours:.2} \
             beside {single:.2} ms, {added:+.0} µs.",
            single * 30.0 + 150.0
        );
    }

    fn mlp(&self) {
        let server = Server::start(&[&self.fixture("mlp")]);
        let axum = Server::baseline("json");
        let row = floats(3, 32);
        let body = format!(r#"{{"inputs": {{"x": [{row:?}]}}}}"#);
        let headers = "Content-Type: application/json\r\n";
        let requests: Arc<[Request]> = [Request::post("/v1/models/mlp/predict", headers, body.as_bytes())].into();
        heading("MLP 32-64-64-8, JSON", "axum without a model");
        let ours = self.beside(&server, &axum, &requests, &[1, 8, 32]);
        let eight = summary(&ours[1].1);
        println!(
            "\nWanted: 0.8 of axum, and p99 below 3 × p50 at 8 clients: it is {:.1} × p50.",
            eight.p99_ms / eight.p50_ms
        );
    }

    fn echo(&self) {
        let server = Server::start(&[&self.fixture("echo")]);
        let axum = Server::baseline("echo");
        let requests: Arc<[Request]> =
            [v2_request("echo", &[("x", "FP32", vec![1, 150_528], le_bytes(&floats(5, 150_528)))])].into();
        heading("echo of 602 KB, V2 binary", "axum, the same bytes");
        self.beside(&server, &axum, &requests, &[1, 8, 32]);
        println!("\nWanted: 0.8 of axum.");
    }

    /// The same requests to the server and to an axum process, by turns; prints both.
    fn beside(&self, server: &Server, axum: &Server, requests: &Arc<[Request]>, concurrencies: &[usize]) -> Rounds {
        let start = || concurrencies.iter().map(|concurrency| (*concurrency, Vec::new())).collect();
        let (mut ours, mut theirs): (Rounds, Rounds) = (start(), start());
        for warmed in [server, axum] {
            self.http(warmed, requests, 4);
        }
        for _ in 0..self.rounds {
            for ((concurrency, ours), (_, theirs)) in ours.iter_mut().zip(&mut theirs) {
                theirs.push(self.http(axum, requests, *concurrency));
                ours.push(self.http(server, requests, *concurrency));
            }
        }
        for ((concurrency, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            http_row(&format!("axum, {concurrency} clients"), theirs, None);
            let reference: Vec<f64> = theirs.iter().map(|run| run.sample.per_second()).collect();
            http_row(&format!("**Ortus, {concurrency} clients**"), ours, Some(&reference));
        }
        ours
    }

    fn encoder(&self) {
        let folder = self.made("encoder");
        let server = Server::start(&[&folder]);
        let texts: Arc<[Tokenized]> = texts(&folder).into();
        let requests: Arc<[Request]> = texts.iter().map(|text| encoder_request(&text.text)).collect();
        let session = self.sessions(&folder, 1, cores());
        let shortest = texts.iter().min_by_key(|text| text.ids.len()).unwrap();
        // A server that cuts texts off would show it here.
        let longest = texts.iter().max_by_key(|text| text.ids.len()).unwrap();
        for text in [shortest, longest] {
            check_embedding(&server, &mut session[0].lock().unwrap(), text);
        }
        let mut fifo: Vec<(usize, Vec<Sample>)> = [1, 8, 16, 32].map(|batch| (batch, Vec::new())).into();
        let mut ours: Rounds = [1, 8, 32].map(|concurrency| (concurrency, Vec::new())).into();
        self.http(&server, &requests, 4);
        for _ in 0..self.rounds {
            for (batch, samples) in &mut fifo {
                let (session, texts, batch) = (session[0].clone(), texts.clone(), *batch);
                let next = AtomicUsize::new(0);
                samples.push(self.bare(vec![Box::new(move || {
                    let from = next.fetch_add(batch, Ordering::Relaxed);
                    let taken: Vec<&[i64]> =
                        (from..from + batch).map(|at| texts[at % texts.len()].ids.as_slice()).collect();
                    std::hint::black_box(run_padded(&mut session.lock().unwrap(), &taken));
                    Ok(true)
                })]));
            }
            for (concurrency, samples) in &mut ours {
                samples.push(self.http_long(&server, &requests, *concurrency));
            }
        }
        heading("MiniLM-sized encoder, texts of 8–128 tokens, JSON", "bare FIFO batches, padded to the longest");
        let rate = |entry: &(usize, Vec<Sample>)| {
            median(entry.1.iter().map(|sample| sample.per_second() * entry.0 as f64).collect())
        };
        for entry in &fifo {
            row(&format!("bare, FIFO batch {}", entry.0), &Summary::of(&entry.1), rate(entry));
        }
        // A batch of one is padded to nothing: it is shown, and not the policy.
        let best = fifo.iter().filter(|entry| entry.0 > 1).max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap();
        let reference: Vec<f64> = best.1.iter().map(|sample| sample.per_second() * best.0 as f64).collect();
        for (concurrency, samples) in &ours {
            http_row(&format!("**Ortus, {concurrency} clients**"), samples, Some(&reference));
        }
        println!("\nWanted: 1.3 of the best FIFO batch.");
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn going() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

// --- what is sent -------------------------------------------------------------------------------

/// Numbers in [0, 1) with all their digits, the same ones each time.
fn floats(seed: u64, count: usize) -> Vec<f32> {
    let mut next = generator(seed);
    (0..count).map(|_| (next() >> 40) as f32 / (1u64 << 24) as f32).collect()
}

fn generator(seed: u64) -> impl FnMut() -> u64 {
    let mut state = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed + 1);
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn le_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

type Tensor<'a> = (&'a str, &'a str, Vec<usize>, Vec<u8>);

/// Binary tensors in, binary tensors out.
fn v2_request(model: &str, tensors: &[Tensor]) -> Request {
    let inputs: Vec<serde_json::Value> = tensors
        .iter()
        .map(|(name, datatype, shape, bytes)| {
            let parameters = serde_json::json!({ "binary_data_size": bytes.len() });
            serde_json::json!({ "name": name, "shape": shape, "datatype": datatype, "parameters": parameters })
        })
        .collect();
    let head = serde_json::json!({ "inputs": inputs, "parameters": { "binary_data_output": true } }).to_string();
    let mut body = head.clone().into_bytes();
    tensors.iter().for_each(|(_, _, _, bytes)| body.extend(bytes));
    let headers =
        format!("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\n", head.len());
    Request::post(&format!("/v2/models/{model}/infer"), &headers, &body)
}

/// A text and what the model's tokenizer makes of it.
#[derive(Deserialize)]
struct Tokenized {
    text: String,
    /// With the special tokens.
    ids: Vec<i64>,
}

/// The texts that `tools/make_bench_models.py` wrote beside the model, in the order in which they arrive.
fn texts(folder: &Path) -> Vec<Tokenized> {
    let file = folder.join("texts.json");
    let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}: run `make bench`", file.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// One text as a client sends it.
fn encoder_request(text: &str) -> Request {
    let body = serde_json::json!({ "inputs": text }).to_string();
    Request::post("/v1/models/encoder/predict", "Content-Type: application/json\r\n", body.as_bytes())
}

#[derive(Deserialize)]
struct Embeddings {
    predictions: Vec<Vec<f32>>,
}

/// Ends the measurement where the server's answer to a text is not the mean of what a bare run gives for its token ids:
/// the two would not do the same work.
fn check_embedding(server: &Server, session: &mut Session, text: &Tokenized) {
    let outputs = run_padded(session, &[text.ids.as_slice()]);
    let (_, states) = outputs["last_hidden_state"].try_extract_tensor::<f32>().unwrap();
    let tokens = text.ids.len();
    let width = states.len() / tokens;
    let mean = |at: usize| states.iter().skip(at).step_by(width).sum::<f32>() / tokens as f32;
    let expected: Vec<f32> = (0..width).map(mean).collect();

    let mut client = Client::connect(server.address).unwrap();
    let (answer, body) = client.fetch(&encoder_request(&text.text), 1 << 20).unwrap();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&body));
    let got = serde_json::from_slice::<Embeddings>(&body).unwrap().predictions;
    assert_eq!(got.len(), 1, "one text has one embedding");
    let same =
        got[0].len() == width && got[0].iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-4);
    assert!(same, "the server's embedding {:?} is not {expected:?}", got[0]);
}

/// One run of several texts, each padded to the longest.
fn run_padded<'a>(session: &'a mut Session, texts: &[&[i64]]) -> SessionOutputs<'a> {
    let longest = texts.iter().map(|text| text.len()).max().unwrap();
    let padded = |of: &dyn Fn(i64) -> i64| -> Vec<i64> {
        texts
            .iter()
            .flat_map(|text| text.iter().map(|id| of(*id)).chain(std::iter::repeat_n(0, longest - text.len())))
            .collect()
    };
    let shape = [texts.len(), longest];
    let tensor = |numbers| ort::value::Tensor::from_array((shape, numbers)).unwrap();
    let inputs = ort::inputs![
        "input_ids" => tensor(padded(&|id| id)),
        "attention_mask" => tensor(padded(&|_| 1)),
        "token_type_ids" => tensor(padded(&|_| 0)),
    ];
    session.run(inputs).unwrap()
}

// --- what is held against -----------------------------------------------------------------------

#[derive(Deserialize)]
struct JsonRequest {
    inputs: JsonInputs,
}

#[derive(Deserialize)]
struct JsonInputs {
    x: Vec<Vec<f32>>,
}

#[derive(Serialize)]
struct JsonAnswer {
    model: &'static str,
    version: &'static str,
    outputs: JsonOutputs,
}

#[derive(Serialize)]
struct JsonOutputs {
    y: Vec<Vec<f32>>,
}

/// Eight of the numbers that came, in place of what a model would answer.
async fn answer_json(axum::Json(request): axum::Json<JsonRequest>) -> axum::Json<JsonAnswer> {
    let y = request.inputs.x.into_iter().map(|mut row| row.drain(..8).collect()).collect();
    axum::Json(JsonAnswer { model: "mlp", version: "1", outputs: JsonOutputs { y } })
}

async fn answer_echo(body: axum::body::Bytes) -> axum::body::Bytes {
    body
}

/// This process as one of the servers that the ratios are about; ends with its parent's signal.
fn baseline(name: &str) {
    let router = match name {
        "json" => axum::Router::new().route("/v1/models/mlp/predict", post(answer_json)),
        _ => axum::Router::new()
            .route("/v2/models/echo/infer", post(answer_echo))
            .layer(axum::extract::DefaultBodyLimit::disable()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listening on http://{}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        // As with us: answers are complete, and waiting for more to send would only delay them.
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, router).await.unwrap();
    });
}

/// A server process; ends with this value.
struct Server {
    child: Child,
    address: SocketAddr,
    /// Holds the models.
    _store: Option<tempfile::TempDir>,
}

impl Server {
    /// The release binary over copies of these model folders, ready.
    fn start(models: &[&Path]) -> Server {
        let store = tempfile::tempdir().unwrap();
        for model in models {
            assert!(Command::new("cp").arg("-r").args([model, &store.path()]).status().unwrap().success());
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_ortus"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--grpc", "off", "--models"]).arg(store.path());
        command.env("ORTUS_TELEMETRY__LOG_LEVEL", "warn");
        let server = Server::spawn(command, Some(store));
        for _ in 0..6000 {
            let mut client = Client::connect(server.address).unwrap();
            if client.send(&Request::get("/readyz")).unwrap().status == 200 {
                return server;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server did not become ready");
    }

    fn baseline(name: &str) -> Server {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--baseline", name]).env_remove("ORTUS_BENCH");
        Server::spawn(command, None)
    }

    fn spawn(mut command: Command, store: Option<tempfile::TempDir>) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        let address = line.rsplit("http://").next().unwrap().parse().unwrap();
        Server { child, address, _store: store }
    }

    /// Processor time of the process so far.
    fn cpu_seconds(&self) -> f64 {
        cpu_seconds(&format!("/proc/{}/stat", self.child.id()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// --- what is printed ----------------------------------------------------------------------------

fn heading(workload: &str, against: &str) {
    println!("\n| {workload} | per second | p50 ms | p99 ms | of {against} | server CPU | client CPU |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
}

/// A loop without a server; `rate` counts items, not runs.
fn row(name: &str, summary: &Summary, rate: f64) {
    println!("| {name} | {rate:.1} | {:.2} | {:.2} | – | – | – |", summary.p50_ms, summary.p99_ms);
}

/// Processor times are for one request; `reference` is the rate that each round is held against.
fn http_row(name: &str, runs: &[Run], reference: Option<&[f64]>) {
    let summary = summary(runs);
    let ratio = reference.map_or_else(|| "–".to_owned(), |reference| ratio(runs, reference));
    let server = median(runs.iter().map(|run| run.server_micros).collect());
    let client = summary.cpu_micros.map_or_else(|| "?".to_owned(), |micros| format!("{micros:.0} µs"));
    println!(
        "| {name} | {:.1} | {:.2} | {:.2} | {ratio} | {server:.0} µs | {client} |",
        summary.per_second, summary.p50_ms, summary.p99_ms
    );
}

/// The median of the rounds' ratios, the lowest and the highest.
fn ratio(runs: &[Run], reference: &[f64]) -> String {
    let mut ratios: Vec<f64> =
        runs.iter().zip(reference).map(|(run, reference)| run.sample.per_second() / reference).collect();
    ratios.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}–{:.2})", median(ratios.clone()), ratios[0], ratios[ratios.len() - 1])
}

fn summary(runs: &[Run]) -> Summary {
    Summary::of(&runs.iter().map(|run| run.sample.clone()).collect::<Vec<_>>())
}

/// Processor time of the whole machine and of this process with the children it has waited for.
struct Machine {
    busy: f64,
    all: f64,
    own: f64,
}

impl Machine {
    fn now() -> Machine {
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let line = stat.lines().next().unwrap();
        let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).map(|text| text.parse().unwrap()).collect();
        // The fourth and fifth are idle time.
        let all: f64 = ticks.iter().sum();
        Machine { busy: all - ticks[3] - ticks[4], all, own: cpu_seconds("/proc/self/stat") }
    }

    fn foreign_percent(&self) -> f64 {
        let now = Machine::now();
        let foreign = (now.busy - self.busy) - (now.own - self.own) * 100.0;
        (foreign / (now.all - self.all) * 100.0).max(0.0)
    }
}

/// User and system time of a process and of its children that have ended. A tick is 10 ms on Linux.
fn cpu_seconds(stat: &str) -> f64 {
    let text = std::fs::read_to_string(stat).unwrap();
    let after_name = text.rsplit(')').next().unwrap();
    after_name.split_whitespace().skip(11).take(4).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

//! What tasks cost beside their graphs, against what users write by hand in Python (`reference.py`): a JPEG of 1280 × 720
//! to a tensor on one core, and the embeddings of 1,000 texts of mixed lengths on all cores.
//!
//! Rounds alternate between this process and Python's, so that both see the same machine. Printed are medians. Needs the
//! Python packages of tests/clients/requirements.txt in .venv and the models of `make bench-models`; `make bench` runs it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a measurement that cannot go on says so")]

use ortus::app::{Offline, open_store};
use ortus::config::Config;
use ortus::engine::{Item, LoadOverrides, ModelName, Parameters, PredictRequest, RunOptions};
use ortus::pipelines::{Pipeline, PipelineLimits, PipelineManifest, detect};
use ortus::runtime::onnx::set_up_allocator;
use ortus::tensor::{DType, Dim, Spec, ValueType};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;
const PICTURES: usize = 20;
const TEXTS: usize = 1000;

fn main() {
    // `cargo test --benches` and `--list` pass arguments of the test harness; there is nothing to list.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    // As the server does before anything else.
    set_up_allocator();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let asked = std::env::var("ORTUS_BENCH").unwrap_or_default();
    let wants = |part: &str| asked.is_empty() || asked.split_whitespace().any(|word| word == part);
    if wants("jpeg") {
        jpeg(&root);
    }
    if wants("embed") {
        embed(&root);
    }
}

/// Python's side of a comparison, on the cores that this thread may use.
struct Reference {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Reference {
    fn start(root: &Path, cores: &str) -> Reference {
        let python = root.join(".venv/bin/python");
        assert!(python.is_file(), "the Python packages are missing; run `make bench-models`");
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(python).arg(root.join("benches/reference.py"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Reference { child, answers }
    }

    /// Seconds.
    fn ask(&mut self, line: &str) -> f64 {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().parse().unwrap_or_else(|_| panic!("the reference answered {answer:?}"))
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap()
}

/// Prints both sides' medians and that of the rounds' ratios.
fn report(name: &str, unit: &str, mut ours: Vec<f64>, mut theirs: Vec<f64>, wanted: f64) {
    let mut ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| theirs / ours).collect();
    let (ours, theirs, ratio) = (median(&mut ours), median(&mut theirs), median(&mut ratios));
    println!("| {name} | {theirs:.2} {unit} | {ours:.2} {unit} | {ratio:.2} | {wanted} |");
}

/// The preprocessing of a classifier as torchvision and ViT have it: 224 × 224, bilinear, normalised.
fn classifier() -> Arc<dyn Pipeline> {
    let manifest: PipelineManifest = toml::from_str(
        "task = \"image-classification\"\n[image]\nsize = { height = 224, width = 224 }\nresample = \"bilinear\"\n\
         mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]",
    )
    .unwrap();
    let spec = |name: &str, sizes: &[usize]| Spec {
        name: name.to_owned(),
        ty: ValueType::Tensor { dtype: DType::Fp32, shape: Some(sizes.iter().map(|&size| Dim::Fixed(size)).collect()) },
        optional: false,
    };
    let (inputs, outputs) = ([spec("pixel_values", &[1, 3, 224, 224])], [spec("logits", &[1, 1000])]);
    let found = detect(Path::new("/nonexistent"), &manifest, &inputs, &outputs, &PipelineLimits::default());
    found.unwrap().pipeline.unwrap()
}

/// A photograph-like JPEG of quality 85.
fn picture(file: &Path) {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let make = format!(
        "import numpy as np; from PIL import Image\n\
         y, x = np.mgrid[0:720, 0:1280]; noise = np.random.default_rng(1).normal(0, 8, (720, 1280, 3))\n\
         base = np.stack([128 + 100 * np.sin(x / 90), 128 + 90 * np.cos(y / 70), 128 + 80 * np.sin((x + y) / 50)], axis=2)\n\
         Image.fromarray(np.clip(base + noise, 0, 255).astype('uint8')).save({:?}, quality=85)",
        file.display()
    );
    assert!(Command::new(python).args(["-c", &make]).status().unwrap().success());
}

/// Moves this thread to `cores`.
fn keep_to(cores: &str) {
    let thread = std::process::id().to_string();
    let moved = Command::new("taskset").args(["-cp", cores, &thread]).stdout(Stdio::null()).status().unwrap();
    assert!(moved.success());
}

fn jpeg(root: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("picture.jpg");
    picture(&file);
    let item = Item::Bytes(std::fs::read(&file).unwrap().into());
    let pipeline = classifier();
    let mut reference = Reference::start(root, "0");
    // Asked before this thread is kept to one.
    let all = format!("0-{}", std::thread::available_parallelism().unwrap().get() - 1);
    keep_to("0");
    let line = format!("jpeg {} {PICTURES}", file.display());
    let ours = || {
        let started = Instant::now();
        for _ in 0..PICTURES {
            std::hint::black_box(pipeline.preprocess(&item, &Parameters::new()).unwrap());
        }
        started.elapsed().as_secs_f64() * 1e3 / PICTURES as f64
    };
    // Once each, to warm up.
    ours();
    reference.ask(&line);
    let (mut times, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        times.push(ours());
        theirs.push(reference.ask(&line) * 1e3 / PICTURES as f64);
    }
    println!("\n| | Python | Ortus | ratio | wanted |\n| --- | ---: | ---: | ---: | ---: |");
    report("JPEG 1280 × 720 to a tensor, one core (Pillow, NumPy)", "ms", times, theirs, 3.0);
    keep_to(&all);
}

fn embed(root: &Path) {
    let models = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let encoder = models.join("bench-models/encoder");
    assert!(encoder.is_dir(), "the models are missing; run `make bench-models`");
    let store = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-r").args([&encoder, &store.path().to_owned()]).status().unwrap().success());
    let mut config = Config::default();
    config.store.models_dir = store.path().to_owned();
    let Offline { engine, runtime, .. } = open_store(&config).unwrap();
    let name = ModelName::parse("encoder").unwrap();
    let model = runtime.block_on(async {
        engine.load(&name, LoadOverrides::default()).await.unwrap();
        engine.model(&name, None).await.unwrap()
    });
    let texts: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(encoder.join("texts.json")).unwrap()).unwrap();
    let texts: Vec<String> =
        texts.iter().cycle().take(TEXTS).map(|text| text.get("text").unwrap().as_str().unwrap().to_owned()).collect();
    let ours = || {
        let items = texts.iter().cloned().map(Item::Text).collect();
        let options = RunOptions::until(tokio::time::Instant::now() + Duration::from_secs(300));
        let request = PredictRequest { items, parameters: Parameters::new(), options };
        let started = Instant::now();
        let response = runtime.block_on(engine.predict(&model, request)).unwrap();
        assert_eq!(response.predictions.len(), TEXTS);
        TEXTS as f64 / started.elapsed().as_secs_f64()
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    let all = format!("0-{}", cores - 1);
    let mut reference = Reference::start(root, &all);
    let line = format!("embed {} {cores}", encoder.display());
    // Once each, to warm up.
    ours();
    reference.ask(&line);
    let (mut rates, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        rates.push(ours());
        theirs.push(TEXTS as f64 / reference.ask(&line));
    }
    println!("\n| | Python | Ortus | ratio | wanted |\n| --- | ---: | ---: | ---: | ---: |");
    let (ours, theirs) = (median(&mut rates), median(&mut theirs));
    println!(
        "| {TEXTS} texts of 8 to 128 tokens (tokenizers, sorted batches of 32) | {theirs:.1} /s | {ours:.1} /s | {:.2} | 1.0 |",
        ours / theirs
    );
}

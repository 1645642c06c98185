//! The commands that need no server, run as a user would.

use crate::server::{Server, command, fixture, root, store_of};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A failure is one line on stderr that says what to do, and exit code other than 0.
#[track_caller]
fn assert_fails(output: &Output, expected: &str) {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("error: ") && text.contains(expected), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

#[test]
fn list_shows_the_store() {
    let store = store_of(&["mlp", "versions"]);
    let text = stdout(&run(&["list", "--models", store.path().to_str().unwrap()]));
    assert!(text.contains("mlp") && text.contains("versions"), "{text}");
    let json: Value =
        serde_json::from_str(&stdout(&run(&["list", "--json", "--models", store.path().to_str().unwrap()]))).unwrap();
    assert!(json.to_string().contains("mlp"));
}

#[test]
fn inspect_reads_a_model_or_a_file() {
    let models = root().join("models");
    let text = stdout(&run(&["inspect", "digits", "--models", models.to_str().unwrap()]));
    for expected in ["pixel_values", "logits", "image-classification"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let file = fixture("store/mlp/1/model.onnx");
    assert!(stdout(&run(&["inspect", file.to_str().unwrap()])).contains("FP32"));
    assert_fails(&run(&["inspect", "nothing-here", "--models", models.to_str().unwrap()]), "nothing-here");
}

#[test]
fn predict_answers_as_the_server_does() {
    let models = root().join("models");
    let picture = root().join("models/digits/samples/seven.png");
    let models = models.to_str().unwrap();
    let answer: Value =
        serde_json::from_str(&stdout(&run(&["predict", "digits", picture.to_str().unwrap(), "--models", models])))
            .unwrap();
    assert_eq!(answer["predictions"][0][0]["label"], "7");
    let output = run(&["predict", "digits", picture.to_str().unwrap(), "--top-k", "2", "--models", models]);
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["predictions"][0].as_array().unwrap().len(), 2);
    let store = store_of(&["versions"]);
    let store = store.path().to_str().unwrap();
    let output = run(&["predict", "versions", "--json", r#"{"inputs": [1, 2]}"#, "--models", store]);
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["outputs"]["y"], serde_json::json!([4.0, 5.0]));
}

#[test]
fn the_configuration_is_shown_with_its_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ortus.toml");
    std::fs::write(&file, "[server]\nmax_body_bytes = 1000\n").unwrap();
    let file = file.to_str().unwrap();
    let text = stdout(&run(&["config", "show", "--config", file]));
    let line = text.lines().find(|line| line.contains("max_body_bytes")).unwrap();
    assert!(line.contains("1000") && line.contains("ortus.toml"), "{line}");
    assert!(run(&["config", "check", "--config", file]).status.success());
    std::fs::write(file, "[server]\nmax_body_byte = 1000\n").unwrap();
    let output = run(&["config", "check", "--config", file]);
    assert_fails(&output, "max_body_bytes");
    assert!(String::from_utf8_lossy(&output.stderr).contains(":2"));
}

#[test]
fn a_public_address_without_keys_is_refused() {
    let store = store_of(&[]);
    let output = run(&["serve", "--listen", "0.0.0.0:0", "--models", store.path().to_str().unwrap()]);
    assert_fails(&output, "--insecure");
}

#[test]
fn a_missing_library_is_one_clear_error() {
    let store = store_of(&["mlp"]);
    let output = command()
        .args(["serve", "--listen", "127.0.0.1:0", "--models", store.path().to_str().unwrap()])
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so.1")
        .output()
        .unwrap();
    assert_fails(&output, "ORT_DYLIB_PATH");
}

#[test]
fn health_is_the_exit_code() {
    let mut server = Server::with(&["mlp"]);
    let url = server.url("/");
    assert_eq!(stdout(&run(&["health", &url])), "alive\n");
    assert_eq!(stdout(&run(&["health", &url, "--ready"])), "ready\n");
    server.kill();
    assert_fails(&run(&["health", &url]), "does not answer: ");
    assert_fails(&run(&["health", "127.0.0.1"]), "no address such as http://127.0.0.1:8080");
}

#[test]
fn a_server_that_is_not_well_or_says_nothing_fails_its_health_check() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asking = command().args(["health", &url, "--ready"]).stderr(Stdio::piped()).spawn().unwrap();
    let (mut connection, _) = listener.accept().unwrap();
    assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
    connection.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").unwrap();
    let answered = asking.wait_with_output().unwrap();
    assert_fails(&answered, "/readyz answers 503 Service Unavailable: the server is not ready");
    // The connection is taken by the system, and nobody says anything.
    assert_fails(&run(&["health", &url, "--timeout-ms", "200"]), "/livez does not answer");
}

#[test]
fn openapi_is_the_file_in_the_repository() {
    let text = stdout(&run(&["openapi"]));
    assert_eq!(
        text,
        std::fs::read_to_string(root().join("openapi.yaml")).unwrap(),
        "write it again: ortus openapi > openapi.yaml"
    );
}

#[test]
fn every_command_has_help_with_an_example() {
    for command_name in
        ["serve", "pull", "rm", "health", "list", "inspect", "predict", "bench", "optimize", "key", "openapi", "config"]
    {
        let text = stdout(&run(&[command_name, "--help"]));
        assert!(text.contains("ortus"), "{text}");
    }
}

#[test]
fn bench_measures_a_model_beside_a_bare_loop() {
    let store = store_of(&["mlp", "sequence"]);
    let plot = store.path().join("plot.svg");
    let common = ["--models", store.path().to_str().unwrap(), "--seconds", "0.05", "--rounds", "2"];
    let text = stdout(&run(&[
        &["bench", "mlp", "--concurrency", "2,1", "--json", "--plot", plot.to_str().unwrap()][..],
        &common,
    ]
    .concat()));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["inputs"], serde_json::json!([{ "name": "x", "dtype": "FP32", "shape": [1, 32] }]));
    let of = |list: &str, key: &str| -> Vec<i64> {
        json[list].as_array().unwrap().iter().map(|line| line[key].as_i64().unwrap()).collect()
    };
    assert_eq!(of("bare", "batch"), [1, 2, 4, 8, 16]);
    for list in ["in_process", "http"] {
        assert_eq!(of(list, "concurrency"), [1, 2], "{list}");
        for line in json[list].as_array().unwrap() {
            assert!(line["count"].as_u64().unwrap() > 0 && line["refused"] == 0, "{line}");
            assert!(line["p50_ms"].as_f64().unwrap() <= line["p99_ms"].as_f64().unwrap(), "{line}");
            assert!(line["ratio_to_bare_best"].as_f64().unwrap() > 0.0, "{line}");
        }
    }
    assert!(std::fs::read_to_string(plot).unwrap().starts_with("<svg"));

    // Tensors of a file, and a batch in each request.
    let input = store.path().join("x.json");
    std::fs::write(&input, serde_json::json!({ "inputs": { "x": [vec![0.5; 32], vec![0.25; 32]] } }).to_string())
        .unwrap();
    let given = ["bench", "mlp", "--concurrency", "1", "--json", "--input", input.to_str().unwrap()];
    let json: Value = serde_json::from_str(&stdout(&run(&[&given[..], &common].concat()))).unwrap();
    assert_eq!((&json["rows_per_request"], &json["bare"][1]["batch"]), (&2.into(), &4.into()));
    let text = stdout(&run(&[&["bench", "mlp", "--concurrency", "1", "--batch", "3"][..], &common].concat()));
    assert!(text.contains("x FP32[3, 32]") && text.contains("batch 3") && text.contains("HTTP"), "{text}");

    assert_fails(&run(&[&["bench", "nothing-here"][..], &common].concat()), "nothing-here");
    std::fs::write(&input, r#"{"inputs": {"x": [[1]]}}"#).unwrap();
    assert_fails(&run(&[&given[..], &common].concat()), "input 'x': expected shape [N, 32]");
    let nowhere = ["bench", "mlp", "--plot", "/nowhere/plot.svg"];
    assert_fails(&run(&[&nowhere[..], &common].concat()), "/nowhere");
}

#[test]
fn bench_tunes_a_model_and_prints_what_to_write_down() {
    let store = store_of(&["mlp"]);
    let common = ["--models", store.path().to_str().unwrap()];
    // What the command asks for counts, not what the model's file says of it; what is set there is not varied.
    let file = store.path().join("mlp/model.toml");
    std::fs::write(&file, "[performance]\ntune = false\ntarget_p99_ms = 1\n[batch]\ninstances = 1\n").unwrap();
    let tune = ["bench", "mlp", "--tune", "--target-p99-ms", "60000"];
    let json: Value = serde_json::from_str(&stdout(&run(&[&tune[..], &common, &["--json"]].concat()))).unwrap();
    assert_eq!((&json["model"], &json["target_p99_ms"]), (&"mlp".into(), &60000.0.into()));
    let measurements = json["measurements"].as_array().unwrap();
    assert!(measurements.contains(&json["chosen"]), "{json}");
    assert!(measurements.iter().all(|one| one["instances"] == 1 && one["rows_per_second"].as_f64().unwrap() > 0.0));
    let rows = &json["chosen"]["batch_size"];
    let snippet = json["model_toml"].as_str().unwrap();
    assert!(snippet.starts_with("[batch]\ninstances = 1\nintra_threads = "), "{snippet}");
    assert!(
        snippet.contains(&format!("max_batch_size = {rows}\n\n[optimization]\noptimization_level = ")),
        "{snippet}"
    );

    // What is printed can be written down: then there is nothing left to vary.
    std::fs::write(&file, snippet).unwrap();
    let text = stdout(&run(&[&["bench", "mlp", "--tune"][..], &common].concat()));
    assert!(text.contains("the highest throughput") && text.contains(snippet.trim()), "{text}");
    assert_eq!(text.matches("chosen").count(), 1, "{text}");

    assert_fails(&run(&[&["bench", "mlp", "--target-p99-ms", "5"][..], &common].concat()), "--tune");
    assert_fails(&run(&[&["bench", "mlp", "--tune", "--seconds", "1"][..], &common].concat()), "--seconds");
}

#[test]
fn an_interrupted_bench_says_so_and_ends() {
    let store = store_of(&["mlp"]);
    let child = command()
        .args(["bench", "mlp", "--seconds", "600", "--models", store.path().to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Workers are named after what they do: then the measuring has begun and a signal is waited for.
    let threads = format!("/proc/{}/task", child.id());
    let is_measuring = || {
        std::fs::read_dir(&threads).unwrap().filter_map(Result::ok).any(|thread| {
            std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("load "))
        })
    };
    let deadline = std::time::Instant::now() + crate::server::PATIENCE;
    while !is_measuring() {
        assert!(std::time::Instant::now() < deadline, "nothing was measured");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_fails(&child.wait_with_output().unwrap(), "interrupted");
}

#[test]
fn optimize_makes_variants_and_compares_them() {
    let store = store_of(&["mlp", "echo"]);
    let models = store.path().to_str().unwrap();
    let output = tempfile::tempdir().unwrap();
    let variants = output.path().join("variants");
    let quick = ["--int8", "--seconds", "0.1", "--rounds", "1", "--models", models];
    let arguments = ["optimize", "mlp", "--json", "--output", variants.to_str().unwrap()];
    let report: Value = serde_json::from_str(&stdout(&run(&[&arguments[..], &quick].concat()))).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let int8 = &report["variants"][0];
    assert_eq!(int8["precision"], "int8");
    assert!(number(&int8["bytes"]["variant"]) < number(&int8["bytes"]["original"]), "{report}");
    assert!(number(&int8["drift"]["cosine"]) > 0.999 && number(&int8["drift"]["max_abs"]) > 0.0, "{report}");
    assert!(int8["replaced"].as_object().unwrap().values().any(|replaced| replaced.as_u64() > Some(1)), "{report}");
    let times = int8["times"].as_array().unwrap();
    assert!(times.iter().all(|time| number(&time["original_ms"]) > 0.0 && number(&time["variant_ms"]) > 0.0));
    assert_eq!(times.iter().map(|time| time["rows"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 4, 16]);
    assert_eq!((&report["inputs"]["source"], &report["adopted"]), (&"made_up".into(), &Value::Null));
    // Nothing is adopted that is not better, and nothing is overwritten.
    let arguments = ["optimize", "mlp", "--adopt", "--max-drift", "0"];
    let text = stdout(&run(&[&arguments[..], &quick].concat()));
    assert!(text.contains("more than the 0 that may be") && text.contains("nothing was adopted"), "{text}");
    assert!(!store.path().join("mlp/2").exists());
    let again = ["optimize", "mlp", "--output", variants.to_str().unwrap()];
    assert_fails(&run(&[&again[..], &quick].concat()), "already exists");
    let file = fixture("store/mlp/1/model.onnx");
    let lone = ["optimize", file.to_str().unwrap(), "--adopt"];
    assert_fails(&run(&[&lone[..], &quick].concat()), "a lone file has no next version");
    assert_fails(&run(&[&["optimize", "echo"][..], &quick].concat()), "no product of the graph can be quantised");
    assert!(!store.path().join(".ortus/optimizing").exists(), "the folder of work is gone");
    // The variant is a model like any other, and answers nearly as the original does.
    let answer = || -> Vec<f64> {
        let body = format!("{{\"inputs\": [{:?}]}}", vec![0.5; 32]);
        let output = run(&["predict", "mlp", "--json", &body, "--models", models]);
        let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let outputs = answer["outputs"].as_object().unwrap().values().next().unwrap();
        outputs[0].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let original = answer();
    stdout(&run(&["pull", variants.join("int8").to_str().unwrap(), "--name", "mlp", "--models", models]));
    let largest = original.iter().fold(0.0f64, |most, number| most.max(number.abs()));
    let apart = original.iter().zip(answer()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart > 0.0 && apart < largest / 20.0, "{apart} of {largest}");
}

#[test]
fn optimize_adopts_what_is_better_and_takes_input_from_a_file() {
    let store = store_of(&["mlp"]);
    let models = store.path().to_str().unwrap();
    let input = store.path().join("x.json");
    std::fs::write(&input, serde_json::json!({ "inputs": { "x": [vec![0.5; 32], vec![0.25; 32]] } }).to_string())
        .unwrap();
    let quick = ["optimize", "mlp", "--seconds", "0.1", "--rounds", "1", "--models", models, "--json"];
    // Any speed counts: whichever is faster on this machine, the variant is adopted.
    let adopt = ["--adopt", "--min-speed", "0", "--int8", "--input", input.to_str().unwrap()];
    let report: Value = serde_json::from_str(&stdout(&run(&[&quick[..], &adopt].concat()))).unwrap();
    assert_eq!(
        (&report["inputs"]["source"], &report["adopted"]["version"]),
        (&"given".into(), &"2".into()),
        "{report}"
    );
    assert_eq!(report["variants"][0]["times"][0]["rows"], 2);
    assert_eq!(report["adopted"]["roll_back"], "POST /v1/models/mlp/rollback");
    let provenance = std::fs::read_to_string(store.path().join("mlp/2/ortus-provenance.json")).unwrap();
    assert!(provenance.contains("\"optimize\"") && provenance.contains("version 1 as int8"), "{provenance}");
    // The original is where it was, and the variant of the variant has nothing left to replace.
    assert_fails(&run(&[&quick[..], &["--int8"]].concat()), "no product of the graph can be quantised");
    std::fs::write(&input, r#"{"inputs": {"x": [[1]]}}"#).unwrap();
    assert_fails(&run(&[&quick[..], &adopt].concat()), "expected shape [N, 32]");
    assert!(!store.path().join(".ortus/optimizing").exists());
}

#[test]
fn an_interrupted_optimisation_leaves_nothing() {
    let store = store_of(&["mlp"]);
    let models = store.path().to_str().unwrap();
    let mut child = crate::server::command()
        .args(["optimize", "mlp", "--int8", "--seconds", "600", "--models", models])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let work = store.path().join(".ortus/optimizing");
    let deadline = std::time::Instant::now() + crate::server::PATIENCE;
    // The variant is there: it is being measured.
    let is_there = || {
        let folders = std::fs::read_dir(&work).into_iter().flatten().flatten();
        folders.into_iter().any(|folder| folder.path().join("parts/int8/model.onnx").exists())
    };
    while !is_there() {
        assert!(child.try_wait().unwrap().is_none() && std::time::Instant::now() < deadline, "it did not begin");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_fails(&child.wait_with_output().unwrap(), "interrupted");
    assert!(!work.exists() && !store.path().join("mlp/2").exists());
}

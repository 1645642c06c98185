//! What a start keeps for the next one: optimised graphs and measurements, when they are used and when they are not.

use crate::memory::write_wide_model;
use crate::server::{PATIENCE, Server, store_of};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// 25 MB of weights: enough to be worth saving.
const WIDE: usize = 50_000;

fn info(server: &Server) -> Value {
    server.get_json("/v1/models/wide")["optimization"].clone()
}

fn answer(server: &Server) -> Value {
    let (status, answer) = server.post_json("/v1/models/wide/predict", &json!({"inputs": [vec![0.5; 64]]}));
    assert_eq!(status, 200, "{answer}");
    answer["outputs"].clone()
}

fn state(store: &Path) -> PathBuf {
    store.join(".ortus/optimized/wide/1")
}

fn stop(mut server: Server) -> tempfile::TempDir {
    server.terminate();
    assert!(server.wait_exit().success());
    server.take_store()
}

/// A store whose model `wide` has a saved graph, and the model's answer. Whether that is worth it is measured, so a busy
/// machine gets some tries.
fn saved(environment: &[(&str, &str)]) -> (tempfile::TempDir, Value) {
    let mut reasons = Vec::new();
    for _ in 0..8 {
        let store = tempfile::tempdir().unwrap();
        write_wide_model(&store.path().join("wide"), WIDE);
        let server = Server::on(store, environment);
        let (info, answer) = (info(&server), answer(&server));
        assert_eq!(info["state"], "fresh", "{info}");
        let store = stop(server);
        if info["saved_bytes"].as_u64().is_some_and(|bytes| bytes > 0) {
            assert_eq!(info["saved"], true, "{info}");
            assert!(info["nodes_before"].as_u64() > Some(0) && info["nodes_after"].as_u64() > Some(0), "{info}");
            return (store, answer);
        }
        reasons.push(info);
    }
    panic!("never saved: {reasons:?}");
}

/// Starts on the store and checks what became of the state.
#[track_caller]
fn check(store: tempfile::TempDir, expected: &str, reason: Option<&str>, answers: &Value) -> tempfile::TempDir {
    let server = Server::on(store, &[]);
    let info = info(&server);
    assert_eq!(info["state"], expected, "{info}");
    if let Some(reason) = reason {
        assert!(info["reason"].as_str().is_some_and(|text| text.contains(reason)), "{info}");
    }
    assert_eq!(&answer(&server), answers);
    server.assert_well();
    stop(server)
}

#[test]
fn the_second_start_uses_what_the_first_one_saved() {
    let (store, answers) = saved(&[]);
    let folder = state(store.path());
    for file in ["graph.onnx", "graph.bin", "state.json", "report.json"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let report: Value = serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["model"], &report["optimization_level"]), (&json!("wide"), &json!("aggressive")));
    assert_eq!(report["nodes_before"]["by_operator"]["MatMul"], 2);
    assert!(report["warm_load_ms"].as_f64().unwrap() < report["cold_load_ms"].as_f64().unwrap(), "{report}");
    let store = check(store, "reused", None, &answers);
    // Also where the files were copied or touched without being changed.
    let model = store.path().join("wide/1/model.onnx");
    fs::copy(&model, store.path().join("copy")).unwrap();
    fs::rename(store.path().join("copy"), &model).unwrap();
    let store = check(store, "reused", None, &answers);
    // Nothing else is left in its place.
    let names =
        |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(&store.path().join(".ortus/optimized")), ["wide"]);
}

#[test]
fn a_state_that_does_not_fit_is_discarded_and_the_model_answers_as_before() {
    let (store, answers) = saved(&[]);
    let folder = state(store.path());
    let kept = tempfile::tempdir().unwrap();
    crate::server::copy_folder(&folder, &kept.path().join("1"));
    let mut store = store;
    for file in ["graph.onnx", "graph.bin", "state.json"] {
        let reason = if file == "state.json" { "state.json cannot be read" } else { file };
        let damages: [fn(&mut Vec<u8>); 3] =
            [|bytes| bytes.truncate(bytes.len() / 2), |bytes| bytes[100] ^= 1, |bytes| bytes.clear()];
        for damage in damages {
            let _ = fs::remove_dir_all(&folder);
            crate::server::copy_folder(&kept.path().join("1"), &folder);
            let mut bytes = fs::read(folder.join(file)).unwrap();
            damage(&mut bytes);
            // One byte of the text may still be read, and means something else then.
            let reason = if bytes.len() > 100 && file == "state.json" { None } else { Some(reason) };
            fs::write(folder.join(file), bytes).unwrap();
            let server = Server::on(store, &[]);
            let info = info(&server);
            // What was found may be saved again, or the machine be too busy for that.
            assert_eq!(info["state"], "fresh", "{file}: {info}");
            if let Some(reason) = reason.filter(|_| info["saved"] == false) {
                assert!(info["reason"].as_str().is_some_and(|text| text.contains(reason)), "{info}");
            }
            assert_eq!(answer(&server), answers, "{file}");
            store = stop(server);
        }
    }
    // Another graph under the same name.
    let _ = fs::remove_dir_all(&folder);
    crate::server::copy_folder(&kept.path().join("1"), &folder);
    write_wide_model(&store.path().join("wide"), WIDE / 2);
    let server = Server::on(store, &[]);
    assert_eq!(info(&server)["state"], "fresh");
    assert_ne!(answer(&server), answers);
    let mut store = stop(server);
    // Another program, library, processor or level.
    for (key, value) in [
        ("ortus", json!("0.0.0")),
        ("form", json!({"runtime": "onnxruntime 1.0.0", "cpu": "x", "device": "y"})),
        ("level", json!("basic")),
        ("format", json!(0)),
    ] {
        let _ = fs::remove_dir_all(&folder);
        crate::server::copy_folder(&kept.path().join("1"), &folder);
        write_wide_model(&store.path().join("wide"), WIDE);
        let mut text: Value = serde_json::from_slice(&fs::read(folder.join("state.json")).unwrap()).unwrap();
        text[key] = value;
        fs::write(folder.join("state.json"), text.to_string()).unwrap();
        store = check(store, "fresh", None, &answers);
    }
}

#[test]
fn a_model_that_is_deleted_takes_its_state_along() {
    let (store, answers) = saved(&[]);
    let folder = state(store.path());
    let server = Server::on(store, &[]);
    assert_eq!(answer(&server), answers);
    assert!(folder.is_dir());
    assert_eq!(server.client.delete(server.url("/v1/models/wide")).send().unwrap().status(), 200);
    assert!(!folder.exists() && !folder.parent().unwrap().exists());
    let store = stop(server);
    // One that was removed by hand does so at the next start.
    write_wide_model(&store.path().join("other"), 64);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("state.json"), "{}").unwrap();
    let server = Server::on(store, &[]);
    assert!(!folder.exists());
    server.assert_well();
}

#[test]
fn what_needs_no_state_has_none() {
    // Tiny.
    let server = Server::with(&["mlp"]);
    let info = server.get_json("/v1/models/mlp")["optimization"].clone();
    assert_eq!(info["state"], json!("fresh"), "{info}");
    // On a machine that is busy enough even this takes its time, and may then be worth a place.
    if info["cold_load_ms"].as_f64().unwrap() < 20.0 {
        assert_eq!(info["saved"], json!(false), "{info}");
        assert!(info["reason"].as_str().unwrap().contains("in no time"), "{info}");
        assert!(!server.store.path().join(".ortus/optimized/mlp").exists());
    }
    // Switched off.
    let server = Server::start(&["mlp"], &[("ORTUS_OPTIMIZATION__ENABLE_OPTIMIZATION", "false")]);
    let info = server.get_json("/v1/models/mlp")["optimization"].clone();
    assert_eq!((&info["state"], &info["reason"]), (&json!("off"), &json!("optimisation is off")), "{info}");
}

#[test]
fn the_place_may_be_elsewhere_and_where_it_cannot_be_written_the_model_is_served() {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("states");
    let environment = [("ORTUS_OPTIMIZATION__CACHE_DIR", path.to_str().unwrap())];
    let (store, answers) = saved(&environment);
    assert!(path.join("wide/1/graph.onnx").is_file() && !state(store.path()).exists());
    let server = Server::on(store, &environment);
    assert_eq!((&info(&server)["state"], &answer(&server)), (&json!("reused"), &answers));
    let store = stop(server);
    // A file in the place of the folder; root may write where nothing may be written.
    let file = elsewhere.path().join("file");
    fs::write(&file, "").unwrap();
    let environment = [("ORTUS_OPTIMIZATION__CACHE_DIR", file.to_str().unwrap())];
    let server = Server::on(store, &environment);
    let info = info(&server);
    assert_eq!((&info["state"], &info["saved"]), (&json!("fresh"), &json!(false)), "{info}");
    assert!(info["reason"].as_str().unwrap().contains("cannot be written"), "{info}");
    assert_eq!(answer(&server), answers);
    server.assert_well();
}

#[test]
fn what_was_tuned_is_not_measured_again() {
    let store = store_of(&["mlp"]);
    fs::write(store.path().join("mlp/model.toml"), "[performance]\ntune = true\n").unwrap();
    let server = Server::on(store, &[]);
    let first = server.get_json("/v1/models/mlp");
    assert_eq!((&first["optimization"]["state"], &first["optimization"]["saved"]), (&json!("fresh"), &json!(true)));
    let store = stop(server);
    let server = Server::on(store, &[]);
    let second = server.get_json("/v1/models/mlp");
    assert_eq!(second["optimization"]["reused_measurements"], json!(["tuned"]), "{second}");
    assert_eq!(second["tuned"], first["tuned"]);
    assert_eq!(second["config"]["batch"], first["config"]["batch"]);
    let store = stop(server);
    // Other settings ask anew.
    fs::write(store.path().join("mlp/model.toml"), "[performance]\ntune = true\n[batch]\nintra_threads = 1\n").unwrap();
    let server = Server::on(store, &[]);
    let third = server.get_json("/v1/models/mlp");
    assert_ne!(third["tuned"]["measurements"], first["tuned"]["measurements"]);
}

#[test]
fn the_graph_of_the_level_that_was_tuned_is_saved() {
    let tune = [("ORTUS_PERFORMANCE__TUNE", "true"), ("ORTUS_BATCH__MAX_BATCH_SIZE", "1")];
    let (store, answers) = saved(&tune);
    // As if another level had been found: which one is best here is chance.
    let file = state(store.path()).join("state.json");
    let mut kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let chosen = &mut kept["measured"]["tuned"]["found"]["chosen"]["setup"]["optimization_level"];
    let other = if *chosen == "basic" { "balanced" } else { "basic" };
    *chosen = json!(other);
    fs::write(&file, kept.to_string()).unwrap();
    // This start takes the level from there, and saves its graph; the next one loads that.
    let server = Server::on(store, &tune);
    let moved = info(&server);
    assert_eq!((&moved["graph_level"], &moved["saved"]), (&json!(other), &json!(true)), "{moved}");
    let store = stop(server);
    let server = Server::on(store, &tune);
    let reused = info(&server);
    assert_eq!((&reused["state"], &reused["graph_level"]), (&json!("reused"), &json!(other)), "{reused}");
    let model = server.get_json("/v1/models/wide");
    assert_eq!(model["config"]["optimization"]["optimization_level"], other, "{model}");
    assert_eq!(model["tuned"]["chosen"]["optimization_level"], other, "{model}");
    assert!(cosine(&numbers(&answers), &numbers(&answer(&server))) > 0.99999);
    server.assert_well();
}

#[test]
fn a_process_that_is_killed_while_it_saves_leaves_a_whole_state_or_none() {
    let (store, answers) = saved(&[]);
    drop(store);
    let mut killed = 0;
    for step in 1..=12 {
        let store = tempfile::tempdir().unwrap();
        write_wide_model(&store.path().join("wide"), WIDE);
        let mut server = Server::launch(store, &[("ORTUS_FAILPOINT", &step.to_string())]);
        let until = Instant::now() + PATIENCE;
        let is_killed = loop {
            if server.child.try_wait().unwrap().is_some() {
                break true;
            }
            let ready = server.client.get(server.url("/readyz")).send().is_ok_and(|answer| answer.status() == 200);
            if ready {
                break false;
            }
            assert!(Instant::now() < until, "neither ready nor killed");
            std::thread::sleep(Duration::from_millis(5));
        };
        if !is_killed {
            break;
        }
        killed += 1;
        let server = Server::on(server.take_store(), &[]);
        assert_eq!(answer(&server), answers, "step {step}");
        let store = stop(server);
        for entry in fs::read_dir(store.path().join(".ortus/optimized")).unwrap() {
            assert_eq!(entry.unwrap().file_name(), "wide", "step {step}");
        }
    }
    assert!(killed >= 1);
}

fn numbers(outputs: &Value) -> Vec<f64> {
    outputs["y"][0].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn cosine(one: &[f64], other: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

#[test]
fn products_of_eight_bits_are_tried_once_and_serve_only_where_they_are_better() {
    let store = tempfile::tempdir().unwrap();
    write_wide_model(&store.path().join("wide"), WIDE);
    let asked = [("ORTUS_OPTIMIZATION__ENABLE_QUANTIZATION", "true")];
    let server = Server::on(store, &asked);
    let (first, answers) = (info(&server), answer(&server));
    let found = &first["quantization"];
    let (speed, near) = (found["speed"].as_f64().unwrap(), found["cosine"].as_f64().unwrap());
    assert_eq!(found["adopted"].as_bool().unwrap(), speed > 1.05 && near >= 0.99, "{first}");
    assert!(found["quantized_bytes"].as_u64() < found["original_bytes"].as_u64(), "{first}");
    let store = stop(server);
    let server = Server::on(store, &asked);
    let second = info(&server);
    assert_eq!((&second["state"], &second["quantization"]), (&json!("reused"), found), "{second}");
    assert_eq!(answer(&server), answers);
    let store = stop(server);
    // Without it the model's own graph serves again.
    let server = Server::on(store, &[]);
    let third = info(&server);
    assert_eq!((&third["state"], third.get("quantization")), (&json!("fresh"), None), "{third}");
    assert!(third["reason"].as_str().unwrap().contains("enable_quantization"), "{third}");
    let (own, quantized) = (numbers(&answer(&server)), numbers(&answers));
    assert!(cosine(&own, &quantized) > 0.98, "{own:?} {quantized:?}");
    assert!(found["adopted"] == true || own == quantized);
}

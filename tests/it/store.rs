//! The store: versions and policies, Triton's and HuggingFace's layouts, loading, swapping and failing.

use crate::server::{Server, fixture, store_of};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn a_model_that_asks_for_it_is_tuned_and_says_what_was_measured() {
    let store = store_of(&["mlp"]);
    std::fs::write(store.path().join("mlp/model.toml"), "[performance]\ntune = true\n").unwrap();
    let server = Server::on(store, &[]);
    let info = server.get_json("/v1/models/mlp");
    let (tuned, batch) = (&info["tuned"], &info["config"]["batch"]);
    assert_eq!(info["config"]["performance"]["tune"], true);
    assert_eq!((&tuned["target_p99_ms"], &tuned["target_reached"]), (&Value::Null, &json!(true)));
    let measurements = tuned["measurements"].as_array().unwrap();
    assert!(measurements.contains(&tuned["chosen"]), "{tuned}");
    for one in measurements {
        assert!(one["rows_per_second"].as_f64().unwrap() > 0.0, "{one}");
        assert!(one["run_ms"].as_f64().unwrap() <= one["p99_ms"].as_f64().unwrap(), "{one}");
    }
    assert_eq!(measurements[0]["batch_size"], 1);
    for (key, chosen) in
        [("instances", "instances"), ("intra_threads", "intra_threads"), ("max_batch_size", "batch_size")]
    {
        assert_eq!(batch[key], tuned["chosen"][chosen], "{key}");
    }
    let (status, answer) = server.post_json("/v1/models/mlp/predict", &json!({"inputs": [vec![0.5; 32]]}));
    assert_eq!(status, 200, "{answer}");

    // Of the server's settings; a graph with its own number of rows has no batch size to choose.
    let environment = [("ORTUS_PERFORMANCE__TARGET_P99_MS", "60000"), ("ORTUS_BATCH__INSTANCES", "1")];
    let server = Server::start(&["fixed-batch", "embedder"], &environment);
    let tuned = &server.get_json("/v1/models/fixed-batch")["tuned"];
    assert_eq!((&tuned["target_p99_ms"], &tuned["target_reached"]), (&json!(60000.0), &json!(true)));
    assert_eq!((&tuned["chosen"]["instances"], &tuned["chosen"]["batch_size"]), (&json!(1), &Value::Null));
    // Batches of texts are bounded in tokens.
    let info = server.get_json("/v1/models/embedder");
    let (tuned, batch) = (&info["tuned"], &info["config"]["batch"]);
    let tokens = tuned["tokens_per_row"].as_u64().unwrap() * tuned["chosen"]["batch_size"].as_u64().unwrap();
    assert_eq!((&tuned["max_batch_tokens"], &batch["max_batch_tokens"]), (&json!(tokens), &json!(tokens)));
    assert_eq!((&tuned["max_batch_size"], &batch["max_batch_size"]), (&Value::Null, &json!(16)));
}

#[test]
fn a_model_that_does_not_ask_is_not_tuned_and_a_tiny_one_has_one_thread() {
    let server = Server::with(&["mlp"]);
    let info = server.get_json("/v1/models/mlp");
    assert_eq!(info.get("tuned"), None);
    let batch = &info["config"]["batch"];
    assert_eq!(
        (&batch["instances"], &batch["intra_threads"], &batch["max_batch_size"]),
        (&json!(1), &json!(1), &json!(16))
    );
}

fn value(server: &Server, path: &str) -> (u16, Value) {
    let (status, answer) = server.post_json(&format!("/v1/models/{path}"), &json!({"inputs": [0]}));
    let output = answer["outputs"]["y"].clone();
    (status, if output.is_null() { answer } else { output })
}

fn served(server: &Server) -> Vec<u16> {
    (1..=3).map(|version| value(server, &format!("versions/versions/{version}/predict")).0).collect()
}

#[test]
fn the_highest_version_is_the_default() {
    let server = Server::with(&["versions"]);
    assert_eq!(value(&server, "versions/predict"), (200, json!([3.0])));
    assert_eq!(served(&server), [404, 404, 200]);
}

#[test]
fn the_version_policy_chooses_what_is_served() {
    for (policy, expected) in [
        ("\"all\"", [200, 200, 200]),
        ("\"latest:2\"", [404, 200, 200]),
        ("[\"1\", \"3\"]", [200, 404, 200]),
        ("\"latest\"", [404, 404, 200]),
    ] {
        let store = store_of(&["versions"]);
        std::fs::write(store.path().join("versions/model.toml"), format!("version_policy = {policy}\n")).unwrap();
        let server = Server::on(store, &[]);
        assert_eq!(served(&server), expected, "{policy}");
        assert_eq!(value(&server, "versions/predict?version=3").0, 200);
    }
}

#[test]
fn triton_and_huggingface_folders_are_served_as_they_are() {
    let server = Server::with(&["triton-layout", "hf-snapshot"]);
    let info = server.get_json("/v1/models/hf-snapshot");
    assert_eq!((&info["state"], &info["task"]), (&json!("ready"), &json!("image-classification")));
    let config = server.get_json("/v2/models/triton-layout/config");
    assert_eq!(config["max_batch_size"], 8);
    // A bare graph file is version 1.
    let store = tempfile::tempdir().unwrap();
    std::fs::create_dir(store.path().join("bare")).unwrap();
    std::fs::copy(fixture("store/mlp/1/model.onnx"), store.path().join("bare/model.onnx")).unwrap();
    let server = Server::on(store, &[]);
    assert_eq!(server.get_json("/v1/models/bare")["default_version"], "1");
}

#[test]
fn a_new_version_takes_over_after_it_is_ready() {
    let store = store_of(&["versions"]);
    std::fs::remove_dir_all(store.path().join("versions/3")).unwrap();
    let server = Server::on(store, &[]);
    assert_eq!(value(&server, "versions/predict"), (200, json!([2.0])));
    crate::server::copy_folder(&fixture("store/versions/3"), &server.store.path().join("versions/3"));
    let (status, answer) = server.post_json("/v1/models/versions/load", &json!({}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(value(&server, "versions/predict"), (200, json!([3.0])));
}

/// F17.
#[test]
fn a_failed_load_leaves_the_old_version_serving() {
    let server = Server::with(&["versions"]);
    let folder = server.store.path().join("versions/4");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("model.onnx"), b"broken").unwrap();
    let (status, answer) = server.post_json("/v1/models/versions/load", &json!({}));
    assert_eq!(status, 422, "{answer}");
    assert!(!answer.to_string().contains(server.store.path().to_str().unwrap()), "{answer}");
    assert_eq!(value(&server, "versions/predict"), (200, json!([3.0])));
    let info = server.get_json("/v1/models/versions");
    assert_eq!(info["state"], "ready");
    let broken = info["versions"].as_array().unwrap().iter().find(|v| v["version"] == "4").unwrap();
    assert_eq!(broken["state"], "failed");
    assert!(broken["reason"].is_string());
}

#[test]
fn a_broken_model_fails_alone() {
    let store = store_of(&["mlp"]);
    std::fs::create_dir_all(store.path().join("broken/1")).unwrap();
    std::fs::write(store.path().join("broken/1/model.onnx"), b"\x08\x07garbage").unwrap();
    std::fs::create_dir_all(store.path().join("badkey")).unwrap();
    std::fs::write(store.path().join("badkey/model.toml"), "descripton = \"x\"\n").unwrap();
    std::fs::copy(fixture("store/mlp/1/model.onnx"), store.path().join("badkey/model.onnx")).unwrap();
    let server = Server::on(store, &[]);
    assert_eq!(server.get_json("/v1/models/mlp")["state"], "ready");
    let broken = server.get_json("/v1/models/broken");
    assert_eq!(broken["state"], "failed");
    assert!(broken["last_error"].is_string(), "{broken}");
    let badkey = server.get_json("/v1/models/badkey");
    let reason = badkey["last_error"].as_str().unwrap();
    assert!(reason.contains("descripton") && reason.contains("description"), "{reason}");
    let (status, _) = server.post_json("/v1/models/broken/predict", &json!({"inputs": [0]}));
    assert_eq!(status, 503);
}

#[test]
fn polling_finds_new_and_removed_models() {
    let server = Server::start(&["mlp"], &[("ORTUS_STORE__POLL_INTERVAL_MS", "100")]);
    crate::server::copy_folder(&fixture("store/versions"), &server.store.path().join("versions"));
    let until = |wanted: u16| {
        let deadline = Instant::now() + crate::server::PATIENCE;
        while value(&server, "versions/predict").0 != wanted {
            assert!(Instant::now() < deadline, "polling did not notice");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(200);
    std::fs::remove_dir_all(server.store.path().join("versions")).unwrap();
    until(404);
    server.assert_well();
}

#[test]
fn unload_and_load_are_explicit() {
    let server = Server::with(&["versions"]);
    let (status, answer) = server.post_json("/v1/models/versions/unload", &json!({}));
    assert_eq!((status, &answer["state"]), (200, &json!("unloaded")), "{answer}");
    assert_eq!(value(&server, "versions/predict").0, 503);
    let (status, answer) = server.post_json("/v1/models/versions/load", &json!({}));
    assert_eq!((status, &answer["state"]), (200, &json!("ready")), "{answer}");
    assert_eq!(value(&server, "versions/predict").0, 200);
}

#[test]
fn a_model_added_later_is_loaded_on_its_first_request() {
    let server = Server::with(&["mlp"]);
    crate::server::copy_folder(&fixture("store/versions"), &server.store.path().join("versions"));
    assert_eq!(value(&server, "versions/predict"), (200, json!([3.0])));
}

/// F09.
#[test]
fn replacing_a_model_under_load_gives_whole_answers_only() {
    let server = Server::with(&["versions"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let (status, answer) = value(&server, "versions/predict");
                        assert_eq!(status, 200, "{answer}");
                        assert!(answer == json!([2.0]) || answer == json!([3.0]), "{answer}");
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        for round in 0..6 {
            let folder = server.store.path().join("versions/3");
            if round % 2 == 0 {
                std::fs::remove_dir_all(&folder).unwrap();
            } else {
                crate::server::copy_folder(&fixture("store/versions/3"), &folder);
            }
            assert_eq!(server.post_json("/v1/models/versions/load", &json!({})).0, 200);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
}

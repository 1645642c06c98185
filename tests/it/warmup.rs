//! `POST /v1/models/{name}/warmup`, and what a model says of how requests share its runs.

use crate::server::Server;
use serde_json::{Value, json};

fn warm_up(server: &Server, model: &str, body: &Value) -> (u16, Value) {
    server.post_json(&format!("/v1/models/{model}/warmup"), body)
}

#[test]
fn every_run_has_its_latency() {
    let server = Server::with(&["mlp", "versions"]);
    let (status, answer) = warm_up(&server, "mlp", &json!({"iterations": 3, "batch_sizes": [1, 4]}));
    assert_eq!((status, &answer["model"], &answer["version"]), (200, &json!("mlp"), &json!("1")), "{answer}");
    let batches = answer["batches"].as_array().unwrap();
    assert_eq!(batches.iter().map(|batch| &batch["batch_size"]).collect::<Vec<_>>(), [1, 4]);
    for batch in batches {
        let times: Vec<f64> =
            batch["latency_ms"].as_array().unwrap().iter().map(|time| time.as_f64().unwrap()).collect();
        let of = |key: &str| batch[key].as_f64().unwrap();
        assert_eq!(times.len(), 3);
        assert!(times.iter().all(|time| (of("min_ms")..=of("max_ms")).contains(time)), "{batch}");
        assert!(of("min_ms") > 0.0 && of("min_ms") <= of("mean_ms") && of("mean_ms") <= of("max_ms"), "{batch}");
    }
    // Runs, and no requests.
    let stats = server.get_json("/v1/models/mlp/stats");
    assert_eq!(stats["batch_size"]["histogram"], json!({"1": 3, "4": 3}));
    assert_eq!((&stats["predict_time"]["count"], &stats["forward_time"]["count"]), (&json!(0), &json!(0)));
    assert_eq!(server.get_json("/v2/models/mlp/stats")["model_stats"][0]["inference_count"], 15);

    // A body is optional; the default version is the highest.
    let response = server.post("/v1/models/versions/warmup").send().unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().unwrap();
    assert_eq!((&answer["version"], &answer["batches"][0]["batch_size"]), (&json!("3"), &json!(1)));
    assert_eq!(answer["batches"][0]["latency_ms"].as_array().unwrap().len(), 1);
    server.assert_well();
}

#[test]
fn what_cannot_be_run_is_named() {
    let server = Server::with(&["mlp", "scalar", "fails"]);
    for (model, body, status, words) in [
        ("mlp", json!({"batch_sizes": [1, 17]}), 422, "batch_sizes[1]: must be from 1 to 16"),
        ("mlp", json!({"batch_sizes": [0]}), 422, "batch_sizes[0]: must be from 1"),
        ("mlp", json!({"iterations": 1001}), 422, "iterations: must be from 1 to 1000"),
        ("mlp", json!({"iterations": "many"}), 422, "iterations: must be a whole number"),
        ("mlp", json!({"rounds": 1}), 400, "unknown key"),
        ("mlp", json!([]), 400, "the body"),
        ("scalar", json!({"batch_sizes": [2]}), 422, "without rows"),
        ("nope", json!({}), 404, "there is no model"),
    ] {
        let (got, answer) = warm_up(&server, model, &body);
        assert_eq!(got, status, "{model} {body}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains(words), "{model} {body}: {answer}");
        assert_eq!(answer.get("errors").is_some(), status == 422, "{answer}");
    }
    assert_eq!(server.post_text("/v1/models/mlp/warmup", "text/plain", b"{}".to_vec()).0, 415);
    assert_eq!(warm_up(&server, "mlp", &json!({})).0, 200);
    assert_eq!(server.post_json("/v1/models/mlp/warmup?version=9", &json!({})).0, 404);
    assert_eq!(server.post_json("/v1/models/mlp/warmup?versoin=1", &json!({})).0, 400);
}

#[test]
fn a_model_says_how_requests_share_its_runs() {
    let server = Server::with(&["mlp", "fixed-batch", "scalar"]);
    for (model, joining) in [("mlp", "rows"), ("fixed-batch", "fixed"), ("scalar", "alone")] {
        let batching = &server.get_json(&format!("/v1/models/{model}"))["batching"];
        assert_eq!(batching["joining"], joining, "{model}: {batching}");
        assert!(batching["evidence"].as_str().is_some_and(|evidence| !evidence.is_empty()), "{model}: {batching}");
    }
    assert_eq!(server.post_json("/v1/models/mlp/unload", &json!({})).0, 200);
    assert_eq!(server.get_json("/v1/models/mlp")["batching"], Value::Null);
}

#[test]
fn short_runs_join_as_far_as_the_settings_say() {
    let server = Server::with(&["mlp", "embedder"]);
    for model in ["mlp", "embedder"] {
        let info = server.get_json(&format!("/v1/models/{model}"));
        let batch = &info["config"]["batch"];
        assert_eq!((&batch["max_batch_size"], &batch["max_batch_tokens"]), (&json!(16), &json!(16_384)), "{model}");
        assert!(!info["batching"]["evidence"].as_str().unwrap().contains("at once gain"), "{model}: {info}");
    }
}

//! Kept answers and prepared items: `X-Ortus-Cache`, whose answers they are, and how they are switched on.

use crate::server::{Server, copy_folder, fixture, root, store_of};
use crate::stats::Metrics;
use serde_json::{Value, json};

const ON: [(&str, &str); 1] = [("ORTUS_CACHE__RESPONSE_MB", "16")];

/// What `X-Ortus-Cache` says, `Server-Timing`, and the body's bytes.
fn ask(server: &Server, path: &str, content_type: &str, body: &[u8]) -> (Option<String>, String, Vec<u8>) {
    let response = server.post(path).header("content-type", content_type).body(body.to_vec()).send().unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (outcome, timing) = (header("x-ortus-cache"), header("server-timing").unwrap_or_default());
    (outcome, timing, response.bytes().unwrap().to_vec())
}

fn ask_json(server: &Server, path: &str, body: &Value) -> (Option<String>, Vec<u8>) {
    let (outcome, _, bytes) = ask(server, path, "application/json", body.to_string().as_bytes());
    (outcome, bytes)
}

fn outcome_of(server: &Server, path: &str, body: &Value) -> Option<String> {
    ask_json(server, path, body).0
}

fn version_body() -> Value {
    json!({"inputs": [0]})
}

/// The outcome and the number that the version's graph adds.
fn version_answer(server: &Server, path: &str) -> (Option<String>, Value) {
    let (outcome, bytes) = ask_json(server, path, &version_body());
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    (outcome, answer["outputs"]["y"].clone())
}

fn hit() -> Option<String> {
    Some("hit".to_owned())
}

fn miss() -> Option<String> {
    Some("miss".to_owned())
}

#[test]
fn an_answer_is_given_again_with_the_same_bytes() {
    let server = Server::start(&["versions"], &ON);
    let path = "/v1/models/versions/predict";
    let first = ask_json(&server, path, &version_body());
    assert_eq!(first.0, miss());
    let (outcome, timing, bytes) = ask(&server, path, "application/json", version_body().to_string().as_bytes());
    assert_eq!((outcome, bytes), (hit(), first.1));
    assert_eq!(timing, "queue;dur=0.000, preprocess;dur=0.000, inference;dur=0.000, postprocess;dur=0.000");
    assert_eq!(outcome_of(&server, path, &json!({"inputs": [1]})), miss());
    // An id is the request's own: it is answered, and no part of what is equal.
    let (outcome, bytes) = ask_json(&server, path, &json!({"inputs": [0], "id": "mine"}));
    assert_eq!(outcome, hit());
    assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["id"], "mine");
}

#[test]
fn what_is_kept_is_shown_and_cleaned_up() {
    let server = Server::start(&["versions"], &ON);
    let path = "/v1/models/versions/predict";
    let kept = || server.get_json("/v1/models/versions/stats")["cache"].clone();
    assert_eq!(outcome_of(&server, path, &version_body()), miss());
    assert_eq!(outcome_of(&server, path, &version_body()), hit());
    let cache = kept();
    let bytes = cache["response"]["bytes"].as_u64().unwrap();
    assert!(bytes > 0);
    assert_eq!(cache["response"], json!({"hits": 1, "misses": 1, "entries": 1, "bytes": bytes}));
    assert_eq!(cache["preprocess"], json!({"hits": 0, "misses": 0, "entries": 0, "bytes": 0}));
    let held = || Metrics::of(&server).sum("ortus_cache_bytes", &[("model", "versions"), ("cache", "response")]);
    assert_eq!(held(), bytes);
    let (status, cleaned) = server.post_json("/v1/models/versions/cleanup", &json!({}));
    assert_eq!((status, cleaned["cache_bytes_freed"].as_u64()), (200, Some(bytes)), "{cleaned}");
    assert_eq!((held(), &kept()["response"]["entries"]), (0, &json!(0)));
    assert_eq!(outcome_of(&server, path, &version_body()), miss());
    assert_eq!(server.post_json("/v1/cleanup", &json!({})).1["cache_bytes_freed"], bytes);
}

#[test]
fn the_open_inference_protocol_says_it_too() {
    let server = Server::start(&["versions"], &ON);
    let input = &server.get_json("/v2/models/versions")["inputs"][0];
    let body = json!({"inputs": [{"name": input["name"], "datatype": input["datatype"], "shape": [1], "data": [0]}]});
    let path = "/v2/models/versions/infer";
    let first = ask_json(&server, path, &body);
    assert_eq!(first.0, miss());
    assert_eq!(ask_json(&server, path, &body), (hit(), first.1));
    // The same tensors have the same answer, whichever way they came.
    assert_eq!(outcome_of(&server, "/v1/models/versions/predict", &version_body()), hit());
}

#[test]
fn nothing_is_kept_unless_it_is_asked_for() {
    let server = Server::with(&["versions"]);
    for _ in 0..2 {
        assert_eq!(outcome_of(&server, "/v1/models/versions/predict", &version_body()), None);
    }
}

#[test]
fn a_model_switches_for_itself() {
    let store = store_of(&["versions", "mlp"]);
    std::fs::write(store.path().join("versions/model.toml"), "[cache]\nresponse_mb = 0\n").unwrap();
    let server = Server::on(store, &ON);
    assert_eq!(outcome_of(&server, "/v1/models/versions/predict", &version_body()), None);
    assert_eq!(server.get_json("/v1/models/versions")["config"]["cache"]["response_mb"], 0);
    assert_eq!(server.get_json("/v1/models/mlp")["config"]["cache"]["response_mb"], 16);

    let store = store_of(&["versions"]);
    let settings = "[cache]\nresponse_mb = 1\nresponse_ttl_ms = 1\npreprocess_mb = 2\n";
    std::fs::write(store.path().join("versions/model.toml"), settings).unwrap();
    let server = Server::on(store, &[]);
    let expected = json!({"preprocess_mb": 2, "response_mb": 1, "response_ttl_ms": 1});
    assert_eq!(server.get_json("/v1/models/versions")["config"]["cache"], expected);
    for _ in 0..2 {
        assert_eq!(outcome_of(&server, "/v1/models/versions/predict", &version_body()), miss());
        // Longer than an answer is kept.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_changed_version_never_answers_from_the_old_ones_cache() {
    let server = Server::start(&["versions"], &ON);
    let path = "/v1/models/versions/predict";
    let load = || assert_eq!(server.post("/v1/models/versions/load").send().unwrap().status(), 200);
    assert_eq!(version_answer(&server, path), (miss(), json!([3.0])));
    assert_eq!(version_answer(&server, path), (hit(), json!([3.0])));
    // The same version with another graph.
    let folder = server.store.path().join("versions");
    std::fs::copy(fixture("store/versions/1/model.onnx"), folder.join("3/model.onnx")).unwrap();
    load();
    assert_eq!(version_answer(&server, path), (miss(), json!([1.0])));
    assert_eq!(version_answer(&server, path), (hit(), json!([1.0])));
    // A new version.
    copy_folder(&fixture("store/versions/2"), &folder.join("4"));
    load();
    assert_eq!(version_answer(&server, path), (miss(), json!([2.0])));
    // The same graph, loaded again.
    assert_eq!(server.post("/v1/models/versions/unload").send().unwrap().status(), 200);
    load();
    assert_eq!(version_answer(&server, path), (miss(), json!([2.0])));
}

#[test]
fn pictures_are_prepared_and_classified_once() {
    let store = tempfile::tempdir().unwrap();
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let server = Server::on(store, &[ON[0], ("ORTUS_CACHE__PREPROCESS_MB", "16")]);
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/digits.json")).unwrap()).unwrap();
    let picture = std::fs::read(root().join(golden["cases"][0]["file"].as_str().unwrap())).unwrap();
    let other = std::fs::read(root().join(golden["cases"][1]["file"].as_str().unwrap())).unwrap();
    let ask = |query: &str, picture: &[u8]| {
        let (outcome, _, bytes) = ask(&server, &format!("/v1/models/digits/predict{query}"), "image/png", picture);
        (outcome, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let (outcome, first) = ask("", &picture);
    assert_eq!(outcome, miss());
    assert_eq!(ask("", &picture), (hit(), first.clone()));
    // Another answer is wanted of the same picture: run again, on the tensors that are kept.
    let (outcome, best) = ask("?top_k=1", &picture);
    assert_eq!(outcome, miss());
    assert_eq!(best["predictions"][0], json!([first["predictions"][0][0]]));
    let (outcome, raw) = ask("?raw=true", &picture);
    assert_eq!((outcome, raw.get("predictions")), (miss(), None));
    assert_eq!(ask("?raw=true", &picture), (hit(), raw));
    let (outcome, second) = ask("", &other);
    assert_eq!(outcome, miss());
    assert_ne!(second["predictions"], first["predictions"]);
}

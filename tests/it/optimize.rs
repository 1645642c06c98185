//! Optimising through the API: as a job, what it reports, adoption and the way back, refusals, cancelling, kills.

use crate::server::{PATIENCE, Server, store_of};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Any speed counts, so that what is adopted does not hang on this machine's mood.
fn quick() -> Value {
    json!({"precision": "int8", "seconds": 0.1, "min_speed": 0})
}

fn with(extra: Value) -> Value {
    let mut body = quick();
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[track_caller]
fn submit(server: &Server, model: &str, body: &Value) -> String {
    let (status, job) = server.post_json(&format!("/v1/models/{model}/optimize"), body);
    assert_eq!((status, &job["kind"]), (202, &json!("optimize")), "{job}");
    job["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn wait(server: &Server, id: &str, status: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let job = server.get_json(&format!("/v1/jobs/{id}"));
        if job["status"] == status {
            return job;
        }
        assert!(Instant::now() < deadline, "not {status}: {job}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn mlp_version(server: &Server) -> Value {
    let (status, answer) = server.post_json("/v1/models/mlp/predict", &json!({"inputs": [vec![0.5; 32]]}));
    assert_eq!(status, 200, "{answer}");
    answer["version"].clone()
}

fn work_is_gone(server: &Server) -> bool {
    !server.store.path().join(".ortus/optimizing").exists()
}

#[test]
fn the_best_variant_is_adopted_and_a_rollback_goes_back() {
    let server = Server::with(&["mlp"]);
    let response = server.post("/v1/models/mlp/optimize").json(&quick()).send().unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let accepted: Value = response.json().unwrap();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/jobs/{id}"));
    let job = wait(&server, id, "succeeded");
    let report = &job["result"];
    let int8 = &report["variants"][0];
    assert_eq!((&int8["precision"], &int8["verdict"]), (&json!("int8"), &json!("better")), "{report}");
    assert!(int8["drift"]["cosine"].as_f64() > Some(0.999) && int8["speed"].as_f64() > Some(0.0), "{report}");
    assert!(int8["bytes"]["variant"].as_u64() < int8["bytes"]["original"].as_u64(), "{report}");
    assert!(int8["rows_per_second"]["variant"].as_f64() > Some(0.0), "{report}");
    assert_eq!(report["inputs"], json!({"source": "made_up", "count": 4}));
    let adopted =
        json!({"precision": "int8", "version": "2", "serving": "2", "roll_back": "POST /v1/models/mlp/rollback"});
    assert_eq!(report["adopted"], adopted, "{report}");
    assert!(report["why"].as_str().unwrap().starts_with("int8 was adopted as version 2"), "{report}");
    assert_eq!((&job["progress"], &job["version"]), (&json!({"done": 3, "total": 3}), &json!("1")));
    assert_eq!(mlp_version(&server), "2");
    let info = server.get_json("/v1/models/mlp");
    assert_eq!(info["source"]["type"], "optimize", "{info}");
    assert_eq!(server.post("/v1/models/mlp/rollback").send().unwrap().status(), 200);
    assert_eq!(mlp_version(&server), "1");
    assert!(work_is_gone(&server));
    // Jobs of the kind are listed apart.
    let of = |kind: &str| server.get_json(&format!("/v1/jobs?kind={kind}"))["jobs"].as_array().unwrap().len();
    assert_eq!((of("optimize"), of("predict")), (1, 0));
    server.assert_well();
}

#[test]
fn what_drifts_too_far_or_is_not_wanted_is_not_adopted() {
    let server = Server::with(&["mlp"]);
    let job = wait(&server, &submit(&server, "mlp", &with(json!({"max_drift": 0}))), "succeeded");
    assert_eq!((&job["result"]["variants"][0]["verdict"], &job["result"]["adopted"]), (&json!("drifts"), &Value::Null));
    let inputs = json!({"x": [vec![0.5; 32], vec![0.1; 32]]});
    let body = with(json!({"adopt": false, "objective": "throughput", "inputs": inputs}));
    let report = wait(&server, &submit(&server, "mlp", &body), "succeeded")["result"].clone();
    assert_eq!((&report["objective"], &report["inputs"]["source"]), (&json!("throughput"), &json!("given")));
    assert_eq!((&report["variants"][0]["times"][0]["rows"], &report["adopted"]), (&json!(2), &Value::Null));
    assert!(report["why"].as_str().unwrap().contains("nothing was adopted, as asked for"), "{report}");
    // A variant that has to be a thousand times as fast is none.
    let report =
        wait(&server, &submit(&server, "mlp", &with(json!({"min_speed": 1000}))), "succeeded")["result"].clone();
    assert_eq!(report["variants"][0]["verdict"], "not_faster", "{report}");
    assert!(!server.store.path().join("mlp/2").exists() && work_is_gone(&server));
}

#[test]
fn a_graph_without_the_variant_fails_the_job_with_its_reason() {
    let server = Server::with(&["echo"]);
    let id = submit(&server, "echo", &quick());
    let error = wait(&server, &id, "failed")["error"].clone();
    assert_eq!((&error["status"], &error["code"]), (&json!(422), &json!("no_variant")), "{error}");
    assert!(error["detail"].as_str().unwrap().contains("int8: no product of the graph can be quantised"), "{error}");
    assert!(work_is_gone(&server));
}

#[test]
fn a_model_that_answers_requests_is_measured_only_by_force() {
    let server = Server::with(&["mlp"]);
    mlp_version(&server);
    let (status, problem) = server.post_json("/v1/models/mlp/optimize", &quick());
    assert_eq!((status, &problem["code"]), (409, &json!("model_busy")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("\"force\": true"), "{problem}");
    let id = submit(&server, "mlp", &with(json!({"force": true, "adopt": false})));
    wait(&server, &id, "succeeded");
}

#[test]
fn hostile_requests_are_refused() {
    let server = Server::with(&["mlp"]);
    let check = |body: Value, status: u16, words: &str| {
        let (got, problem) = server.post_json("/v1/models/mlp/optimize", &body);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(got == status && detail.contains(words), "{body}: {got} {problem}");
    };
    check(json!({"precison": "int8"}), 400, "precison");
    check(json!({"precision": "int3"}), 400, "int3");
    check(json!([1]), 400, "the body");
    check(json!({"precision": "int8", "precisions": ["int8"]}), 422, "give one of them");
    check(json!({"precisions": []}), 422, "1 to 8");
    check(json!({"precisions": vec!["int8"; 9]}), 422, "1 to 8");
    check(json!({"max_drift": -1}), 422, "max_drift");
    check(json!({"min_speed": 1e9}), 422, "min_speed");
    check(json!({"seconds": 1e9}), 422, "seconds");
    check(json!({"parameters": {}}), 422, "parameters");
    check(json!({"inputs": [[1]]}), 422, "x");
    let deep = format!("{{\"inputs\": {}}}", "[".repeat(100_000));
    assert_eq!(server.post_text("/v1/models/mlp/optimize", "application/json", deep.into()).0, 400);
    assert_eq!(server.post_text("/v1/models/mlp/optimize", "text/plain", b"int8".to_vec()).0, 415);
    assert_eq!(server.post_json("/v1/models/none/optimize", &json!({})).0, 404);
    assert_eq!(server.post_json("/v1/models/mlp/optimize?version=9", &json!({})).0, 404);
    assert_eq!(server.get_json("/v1/jobs")["jobs"], json!([]));
    server.assert_well();
}

#[test]
fn one_is_measured_at_a_time_and_a_cancelled_one_leaves_nothing() {
    let server = Server::with(&["mlp"]);
    let long = with(json!({"seconds": 600}));
    let (first, second) = (submit(&server, "mlp", &long), submit(&server, "mlp", &with(json!({"adopt": false}))));
    wait(&server, &first, "running");
    assert_eq!(server.get_json(&format!("/v1/jobs/{second}"))["status"], "queued");
    // Predictions are answered meanwhile, and predicted jobs pass.
    let (status, job) = server.post_json("/v1/models/mlp/jobs", &json!({"inputs": [vec![0.5; 32]]}));
    assert_eq!((status, &job["kind"]), (202, &json!("predict")));
    wait(&server, job["id"].as_str().unwrap(), "succeeded");
    let response = server.client.delete(server.url(&format!("/v1/jobs/{first}"))).send().unwrap();
    assert_eq!(response.json::<Value>().unwrap()["status"], "cancelled");
    // The model answered a request: the second waits until it is quiet again, and can be cancelled all the same.
    let response = server.client.delete(server.url(&format!("/v1/jobs/{second}"))).send().unwrap();
    assert_eq!(response.json::<Value>().unwrap()["status"], "cancelled");
    let deadline = Instant::now() + PATIENCE;
    while !work_is_gone(&server) {
        assert!(Instant::now() < deadline, "the folder of work is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!server.store.path().join("mlp/2").exists());
    server.assert_well();
}

#[test]
fn a_killed_server_leaves_no_folder_and_runs_the_job_again() {
    let mut server = Server::on(store_of(&["mlp"]), &[]);
    let id = submit(&server, "mlp", &with(json!({"seconds": 600, "adopt": false})));
    wait(&server, &id, "running");
    let deadline = Instant::now() + PATIENCE;
    while work_is_gone(&server) {
        assert!(Instant::now() < deadline, "it has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    server.kill();
    let store = server.take_store();
    let work = store.path().join(".ortus/optimizing");
    let left: Vec<_> = std::fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 1);
    let server = Server::on(store, &[]);
    wait(&server, &id, "running");
    let deadline = Instant::now() + PATIENCE;
    while left[0].exists() {
        assert!(Instant::now() < deadline, "what the killed server left is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    let response = server.client.delete(server.url(&format!("/v1/jobs/{id}"))).send().unwrap();
    assert_eq!(response.json::<Value>().unwrap()["status"], "cancelled");
}

#[test]
fn recorded_requests_are_measured_on_and_forgotten_by_a_cleanup() {
    let server = Server::start(&["mlp"], &[("ORTUS_OPTIMIZATION__RECORD_REQUESTS", "3")]);
    for place in 0..8 {
        let (status, _) = server.post_json("/v1/models/mlp/predict", &json!({"inputs": [vec![place as f32; 32]]}));
        assert_eq!(status, 200);
    }
    let quietly = with(json!({"force": true, "adopt": false}));
    let used = |server: &Server| {
        let id = submit(server, "mlp", &quietly);
        wait(server, &id, "succeeded")["result"]["inputs"].clone()
    };
    assert_eq!(used(&server), json!({"source": "recorded", "count": 3}));
    let freed: Value = server.post("/v1/models/mlp/cleanup").send().unwrap().json().unwrap();
    assert!(freed["cache_bytes_freed"].as_u64() > Some(3 * 128), "{freed}");
    assert_eq!(used(&server)["source"], "made_up");
    // A model's own file has the last word.
    std::fs::write(server.store.path().join("mlp/model.toml"), "[optimization]\nrecord_requests = 0\n").unwrap();
    assert_eq!(server.post("/v1/models/mlp/load").send().unwrap().status(), 200);
    mlp_version(&server);
    assert_eq!(used(&server)["source"], "made_up");
}

#[test]
fn every_variant_is_tried_and_told() {
    let server = Server::with(&["mlp"]);
    let inputs = json!({"x": [vec![0.5; 32], vec![-0.25; 32], vec![1.0; 32]]});
    let all = json!(["fp16", "int8", "int8_static", "int4"]);
    let body = json!({"precisions": all, "seconds": 0.1, "inputs": inputs, "adopt": false, "max_drift": 0.05});
    let report = wait(&server, &submit(&server, "mlp", &body), "succeeded")["result"].clone();
    let variants = report["variants"].as_array().unwrap();
    let names: Vec<&Value> = variants.iter().map(|variant| &variant["precision"]).collect();
    assert_eq!(json!(names), all);
    for variant in variants {
        let verdict = variant["verdict"].as_str().unwrap();
        assert!(!variant["reason"].as_str().unwrap().is_empty());
        match verdict {
            "impossible" => assert!(variant.get("speed").is_none(), "{variant}"),
            "better" | "not_faster" => assert!(variant["drift"]["cosine"].as_f64() > Some(0.95), "{variant}"),
            other => panic!("{other}: {variant}"),
        }
        let is_static = variant["precision"] == "int8_static" && verdict != "impossible";
        assert_eq!(variant.get("calibrated_on"), is_static.then_some(&json!("given")), "{variant}");
    }
    for made in &variants[..3] {
        assert!(made["bytes"]["variant"].as_u64() < made["bytes"]["original"].as_u64(), "{made}");
    }
    // Without samples nothing is calibrated unless asked for, and then the report says on what.
    let id = submit(&server, "mlp", &json!({"seconds": 0.1, "adopt": false}));
    let tried = wait(&server, &id, "succeeded")["result"]["variants"].clone();
    let names: Vec<&Value> = tried.as_array().unwrap().iter().map(|variant| &variant["precision"]).collect();
    assert_eq!(json!(names), json!(["int8", "int4"]));
    let body = json!({"precision": "int8_static", "seconds": 0.1, "min_speed": 0, "max_drift": 2});
    let report = wait(&server, &submit(&server, "mlp", &body), "succeeded")["result"].clone();
    assert_eq!(report["variants"][0]["calibrated_on"], "made_up", "{report}");
    assert!(report["why"].as_str().unwrap().contains("calibrated on made-up inputs"), "{report}");
    assert!(work_is_gone(&server));
}

#[test]
fn what_serves_is_tuned_and_serves_by_what_was_found() {
    let server = Server::with(&["mlp"]);
    let job = wait(&server, &submit(&server, "mlp", &json!({"tune": true, "objective": "latency"})), "succeeded");
    let report = &job["result"];
    assert_eq!((&report["variants"], &report["adopted"]), (&json!([]), &Value::Null), "{report}");
    let found = &report["tuned"]["found"];
    assert_eq!((&report["tuned"]["version"], &found["objective"]), (&json!("1"), &json!("latency")), "{report}");
    assert!(found["measurements"].as_array().unwrap().contains(&found["chosen"]), "{report}");
    let info = server.get_json("/v1/models/mlp");
    assert_eq!(info["tuned"], *found, "{info}");
    for key in ["instances", "intra_threads"] {
        assert_eq!(info["config"]["batch"][key], found["chosen"][key], "{info}");
    }
    assert_eq!(mlp_version(&server), "1");
    // Beside traffic figures are worth little.
    let (status, problem) = server.post_json("/v1/models/mlp/optimize", &json!({"tune": true}));
    assert_eq!((status, &problem["code"]), (409, &json!("model_busy")), "{problem}");
    assert!(work_is_gone(&server));
    server.assert_well();
}

//! Where the time of a model's runs goes: on request, at load, as a trace.

use crate::server::{Server, command, fixture};
use serde_json::{Value, json};

#[test]
fn a_profile_names_the_operators_of_a_graph_and_their_share_of_its_time() {
    let server = Server::start(&["mlp"], &[("ORTUS_DEVICE__DEVICE_TYPE", "cpu")]);
    let path = "/v1/models/mlp/profile";
    let none = server.get(path);
    assert_eq!(none.status(), 404);
    let problem: Value = none.json().unwrap();
    assert_eq!(problem["code"], "no_profile");
    assert!(problem["detail"].as_str().unwrap().contains("POST"), "{problem}");

    let (status, profile) = server.post_json(path, &json!({ "iterations": 7, "batch_size": 3 }));
    assert_eq!(status, 200, "{profile}");
    assert_eq!((&profile["iterations"], &profile["batch_size"]), (&json!(7), &json!(3)));
    let operators = profile["operators"].as_array().unwrap();
    let shares: f64 = operators.iter().map(|operator| operator["share"].as_f64().unwrap()).sum();
    assert!(!operators.is_empty() && (shares - 1.0).abs() < 0.01, "{profile}");
    // Each node was called once in each of the runs that were timed.
    for operator in operators {
        assert_eq!(operator["calls"].as_u64().unwrap(), 7 * operator["nodes"].as_u64().unwrap(), "{operator}");
        assert_eq!(operator["provider"], "CPUExecutionProvider");
    }
    let nodes: u64 = operators.iter().map(|operator| operator["nodes"].as_u64().unwrap()).sum();
    assert!(nodes <= server.get_json("/v1/models/mlp")["execution"]["nodes"]["CPUExecutionProvider"].as_u64().unwrap());
    assert_eq!(server.get_json(path), profile, "the last one is kept");

    let trace = server.post(&format!("{path}?format=chrome")).send().unwrap();
    assert!(trace.headers()["content-disposition"].to_str().unwrap().contains("trace.json"));
    let events: Value = trace.json().unwrap();
    let is_node = |event: &&Value| event["cat"] == "Node" && event["ph"] == "X";
    assert!(events.as_array().unwrap().iter().filter(is_node).count() > 10, "{events}");

    for (body, words) in [
        (json!({ "iterations": 0 }), "iterations"),
        (json!({ "iterations": 1001 }), "from 1 to 1000"),
        (json!({ "batch_size": 100_000 }), "batch_size"),
    ] {
        let (status, problem) = server.post_json(path, &body);
        assert!(status == 422 && problem.to_string().contains(words), "{body}: {status} {problem}");
    }
    assert_eq!(server.post_json(path, &json!({ "runs": 3 })).0, 400);
    assert_eq!(server.post_json("/v1/models/nope/profile", &json!({})).0, 404);
    server.assert_well();
}

#[test]
fn a_model_may_be_profiled_at_each_load() {
    let server = Server::start(&["mlp"], &[("ORTUS_PERFORMANCE__ENABLE_PROFILING", "true")]);
    let profile = server.get_json("/v1/models/mlp/profile");
    assert_eq!((&profile["iterations"], &profile["batch_size"]), (&json!(5), &Value::Null));
    assert_eq!(server.get_json("/v1/models/mlp")["config"]["performance"]["enable_profiling"], true);
}

#[test]
fn bench_prints_where_the_time_goes_and_writes_the_trace() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, model) = (folder.path().join("trace.json"), fixture("store/mlp/1/model.onnx"));
    let output = command()
        .args(["bench", model.to_str().unwrap(), "--profile", "--trace", trace.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("SHARE") && text.contains("CPUExecutionProvider") && text.contains("50 runs"), "{text}");
    let events: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    assert!(events.as_array().unwrap().len() > 50);
}

//! A model folder of a Triton repository that uses what such configurations use: reshapes, levels and policies of the queue, a
//! response cache, a warm-up, and a graph in a folder of its name.

use crate::server::{Server, copy_folder, fixture, root, store_of};
use serde_json::{Value, json};

const HEADER: &str = "inference-header-content-length";

/// The model as it stands, and its graph alone as `graph`.
fn server() -> Server {
    let store = store_of(&["triton-reshape"]);
    copy_folder(&fixture("store/triton-reshape/1"), &store.path().join("graph/1"));
    Server::on(store, &[])
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|place| (place as f32 - 4.0) / 8.0).collect()
}

fn infer(server: &Server, model: &str, x: &[usize], bias: &[usize], parameters: Value) -> (u16, Value) {
    let tensor = |name: &str, shape: &[usize]| json!({"name": name, "shape": shape, "datatype": "FP32", "data": numbers(shape.iter().product())});
    let body = json!({"inputs": [tensor("x", x), tensor("bias", bias)], "parameters": parameters});
    server.post_json(&format!("/v2/models/{model}/infer"), &body)
}

/// As [`infer`], with binary tensors both ways: the shapes and the bytes of the outputs.
fn infer_binary(server: &Server, model: &str, x: &[usize], bias: &[usize]) -> (Vec<Value>, Vec<u8>) {
    let mut tail = Vec::new();
    let inputs = [("x", x), ("bias", bias)].map(|(name, shape)| {
        let bytes: Vec<u8> = numbers(shape.iter().product()).iter().flat_map(|number| number.to_le_bytes()).collect();
        tail.extend_from_slice(&bytes);
        json!({"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": bytes.len()}})
    });
    let head = json!({"inputs": inputs, "parameters": {"binary_data_output": true}}).to_string();
    let request = server.post(&format!("/v2/models/{model}/infer")).header(HEADER, head.len().to_string());
    let response = request.body([head.as_bytes(), &tail].concat()).send().unwrap();
    assert_eq!(response.status(), 200);
    let split: usize = response.headers()[HEADER].to_str().unwrap().parse().unwrap();
    let bytes = response.bytes().unwrap();
    let answer: Value = serde_json::from_slice(&bytes[..split]).unwrap();
    let shapes = answer["outputs"].as_array().unwrap().iter().map(|output| output["shape"].clone()).collect();
    (shapes, bytes[split..].to_vec())
}

fn data(answer: &Value) -> Vec<&Value> {
    answer["outputs"].as_array().unwrap().iter().map(|output| &output["data"]).collect()
}

#[test]
fn a_reshaped_model_answers_what_its_graph_answers() {
    let server = server();
    for rows in [1, 3, 20] {
        let (status, seen) = infer(&server, "triton-reshape", &[rows, 6], &[rows, 1], json!({}));
        assert_eq!(status, 200, "{seen}");
        let (status, graph) = infer(&server, "graph", &[rows, 2, 3], &[rows], json!({}));
        assert_eq!(status, 200, "{graph}");
        assert_eq!(data(&seen), data(&graph));
        assert_eq!(seen["outputs"][0]["shape"], json!([rows, 2, 1, 2]));
        assert_eq!(seen["outputs"][1]["shape"], json!([rows, 1, 1]));
        let (shapes, bytes) = infer_binary(&server, "triton-reshape", &[rows, 6], &[rows, 1]);
        assert_eq!(shapes, [json!([rows, 2, 1, 2]), json!([rows, 1, 1])]);
        assert_eq!(bytes, infer_binary(&server, "graph", &[rows, 2, 3], &[rows]).1);
    }
    let (status, answer) = infer(&server, "triton-reshape", &[1, 2, 3], &[1], json!({}));
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("expected rank 2"), "{answer}");
}

#[test]
fn metadata_and_configuration_show_what_clients_send() {
    let server = server();
    let meta = server.get_json("/v2/models/triton-reshape");
    assert_eq!((&meta["inputs"][0]["shape"], &meta["inputs"][1]["shape"]), (&json!([-1, 6]), &json!([-1, 1])));
    assert_eq!(meta["outputs"][0]["shape"], json!([-1, 2, 1, 2]));
    let info = server.get_json("/v1/models/triton-reshape");
    assert_eq!(info["metadata"]["inputs"][0]["shape"], json!([-1, 6]), "{info}");
    let wait = info["config"]["batch"]["timeout_ms"].as_f64().unwrap();
    assert!((wait - 0.15).abs() < 1e-9, "{info}");
    let config = server.get_json("/v2/models/triton-reshape/config");
    assert_eq!((&config["input"][0]["dims"], &config["input"][0]["reshape"]["shape"]), (&json!([6]), &json!([2, 3])));
    assert_eq!(config["input"][1]["reshape"]["shape"], json!([]));
    assert_eq!(config["dynamic_batching"]["priority_levels"], 12);
    // The configuration in force can be given back.
    let config = json!({"parameters": {"config": config.to_string()}});
    let (status, answer) = server.post_json("/v2/repository/models/triton-reshape/load", &config);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(infer(&server, "triton-reshape", &[1, 6], &[1, 1], json!({})).0, 200);
}

#[test]
fn a_response_cache_hits_and_is_counted() {
    let server = server();
    let ask = || infer(&server, "triton-reshape", &[2, 6], &[2, 1], json!({}));
    let (first, second) = (ask(), ask());
    assert_eq!((first.0, &first.1["outputs"]), (200, &second.1["outputs"]));
    let stats = server.get_json("/v2/models/triton-reshape/stats");
    let counted = &stats["model_stats"][0]["inference_stats"];
    assert_eq!((&counted["cache_hit"]["count"], &counted["cache_miss"]["count"]), (&json!(1), &json!(1)), "{stats}");
    infer(&server, "graph", &[2, 2, 3], &[2], json!({}));
    let stats = server.get_json("/v2/models/graph/stats");
    assert_eq!(stats["model_stats"][0]["inference_stats"]["cache_miss"]["count"], 0, "its configuration asks for none");
}

#[test]
fn every_level_of_urgency_is_served() {
    let server = server();
    for (rows, priority) in [0, 1, 6, 12, 13, 4_000_000_000u64].into_iter().enumerate() {
        let shape = [rows + 1, 6];
        let parameters = json!({"priority": priority, "timeout": 20_000_000});
        let (status, answer) = infer(&server, "triton-reshape", &shape, &[rows + 1, 1], parameters);
        assert_eq!(status, 200, "{priority}: {answer}");
    }
}

#[test]
fn the_page_on_triton_is_linked() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("docs/triton.md"));
}

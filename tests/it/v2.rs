//! The Open Inference Protocol over REST: health, metadata, infer in JSON and binary, classification, repository.

use crate::server::{Server, fixture};
use serde_json::{Value, json};

const HEADER: &str = "inference-header-content-length";

/// Posts the JSON part and what follows it, and gives the JSON part and the rest of the answer.
fn infer_binary(server: &Server, model: &str, head: &Value, tail: &[u8]) -> (u16, Value, Vec<u8>) {
    let head = head.to_string().into_bytes();
    let length = head.len();
    let body = [head, tail.to_vec()].concat();
    let request = server.post(&format!("/v2/models/{model}/infer")).header(HEADER, length.to_string());
    let response = request.header("content-type", "application/octet-stream").body(body).send().unwrap();
    let status = response.status().as_u16();
    let split = response.headers().get(HEADER).map(|value| value.to_str().unwrap().parse::<usize>().unwrap());
    if split.is_some() {
        assert_eq!(response.headers()["content-type"], "application/octet-stream");
    }
    let declared = response.content_length();
    let bytes = response.bytes().unwrap().to_vec();
    assert_eq!(declared, Some(bytes.len() as u64));
    let (json, rest) = bytes.split_at(split.unwrap_or(bytes.len()));
    (status, serde_json::from_slice(json).unwrap(), rest.to_vec())
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn health_and_metadata_have_the_protocols_form() {
    let server = Server::with(&["mlp", "versions"]);
    // KServe's client reads the bodies.
    for (path, expected) in [
        ("/v2/health/live", json!({"live": true})),
        ("/v2/health/ready", json!({"ready": true})),
        ("/v2/models/mlp/ready", json!({"name": "mlp", "ready": true})),
        ("/v2/models/versions/versions/3/ready", json!({"name": "versions", "ready": true})),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.json::<Value>().unwrap(), expected, "{path}");
    }
    let meta = server.get_json("/v2");
    assert_eq!(meta["name"], "ortus");
    for extension in ["binary_tensor_data", "classification", "model_repository", "model_configuration"] {
        assert!(meta["extensions"].as_array().unwrap().contains(&json!(extension)), "{meta}");
    }
    let model = server.get_json("/v2/models/mlp");
    assert_eq!(model["platform"], "onnxruntime_onnx");
    assert_eq!(model["versions"], json!(["1"]));
    assert_eq!(model["inputs"][0], json!({"name": "x", "datatype": "FP32", "shape": [-1, 32]}));
    let unknown = server.get("/v2/models/nope");
    assert_eq!(unknown.status(), 404);
    assert!(unknown.json::<Value>().unwrap()["error"].as_str().unwrap().contains("nope"));
    assert_eq!(server.get("/v2/models/versions/versions/9").status(), 404);
    let config = server.get_json("/v2/models/mlp/config");
    assert_eq!(config["name"], "mlp");
    assert_eq!(config["input"][0]["data_type"], "TYPE_FP32");
}

#[test]
fn binary_tensors_go_in_and_out() {
    let server = Server::with(&["multi"]);
    let head = json!({"id": "7", "inputs": [
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        {"name": "b", "shape": [1], "datatype": "INT64", "data": [10]},
    ], "outputs": [{"name": "sum", "parameters": {"binary_data": true}}, {"name": "product"}]});
    let (status, answer, tail) = infer_binary(&server, "multi", &head, &f32s(&[1.0, 2.0]));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["id"], "7");
    assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert!(answer["outputs"][0].get("data").is_none());
    assert!(answer["outputs"][1]["data"].is_array());
    assert_eq!(tail.len(), 8);

    let head = json!({"parameters": {"binary_data_output": true}, "inputs": [
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [[1.0, 2.0]]},
        {"name": "b", "shape": [1], "datatype": "INT64", "data": [10]},
    ]});
    let (status, answer, all) = infer_binary(&server, "multi", &head, &[]);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(all.len(), 16);
    assert_eq!(all[..8], tail[..]);
}

#[test]
fn the_whole_body_may_be_the_one_input() {
    let server = Server::with(&["versions", "strings"]);
    let request = server.post("/v2/models/versions/infer").header(HEADER, "0");
    let response = request.body(f32s(&[1.0, 2.0, 3.0])).send().unwrap();
    assert_eq!(response.status(), 200);
    let split: usize = response.headers()[HEADER].to_str().unwrap().parse().unwrap();
    let bytes = response.bytes().unwrap();
    assert_eq!(bytes[split..], f32s(&[4.0, 5.0, 6.0]));
}

#[test]
fn string_tensors_are_length_prefixed() {
    let server = Server::with(&["strings"]);
    let meta = server.get_json("/v2/models/strings");
    let inputs: Vec<Value> = meta["inputs"].as_array().unwrap().clone();
    assert_eq!(inputs[0]["datatype"], "BYTES");
    let mut tail = Vec::new();
    let mut heads = Vec::new();
    for input in &inputs {
        let mut part = Vec::new();
        for text in ["héllo", ""] {
            part.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
            part.extend_from_slice(text.as_bytes());
        }
        heads.push(json!({"name": input["name"], "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": part.len()}}));
        tail.extend_from_slice(&part);
    }
    let head = json!({"parameters": {"binary_data_output": true}, "inputs": heads});
    let (status, answer, rest) = infer_binary(&server, "strings", &head, &tail);
    assert_eq!(status, 200, "{answer}");
    assert!(rest.windows(6).any(|window| window == "héllo".as_bytes()));
}

#[test]
fn classification_gives_value_index_and_label() {
    let server = Server::with(&["triton-layout"]);
    let meta = server.get_json("/v2/models/triton-layout");
    let (name, width) = (&meta["inputs"][0]["name"], meta["inputs"][0]["shape"][1].as_u64().unwrap());
    let data: Vec<f64> = (0..width).map(|i| i as f64 / 10.0).collect();
    let body = json!({"inputs": [{"name": name, "shape": [1, width], "datatype": "FP32", "data": data}],
        "outputs": [{"name": "scores", "parameters": {"classification": 2}}]});
    let (status, answer) = server.post_json("/v2/models/triton-layout/infer", &body);
    assert_eq!(status, 200, "{answer}");
    let output = &answer["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([1, 2])));
    let parts: Vec<&str> = output["data"][0].as_str().unwrap().split(':').collect();
    let labels = std::fs::read_to_string(fixture("store/triton-layout/labels.txt")).unwrap();
    assert_eq!(parts.len(), 3);
    assert_eq!(Some(parts[2]), labels.lines().nth(parts[1].parse().unwrap()));
    let value = |at: usize| output["data"][at].as_str().unwrap().split(':').next().unwrap().parse::<f64>().unwrap();
    assert!(value(0) >= value(1));
}

#[test]
fn a_subset_of_outputs_comes_in_the_order_asked_for() {
    let server = Server::with(&["multi"]);
    let inputs = json!([{"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
        {"name": "b", "shape": [1], "datatype": "INT64", "data": [3]}]);
    let ask =
        |outputs: Value| server.post_json("/v2/models/multi/infer", &json!({"inputs": inputs, "outputs": outputs}));
    let (_, answer) = ask(json!([{"name": "product"}, {"name": "sum"}]));
    let names: Vec<&Value> = answer["outputs"].as_array().unwrap().iter().map(|o| &o["name"]).collect();
    assert_eq!(names, [&json!("product"), &json!("sum")]);
    assert_eq!(ask(json!([{"name": "sum"}])).1["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(ask(json!([{"name": "sum"}, {"name": "sum"}])).0, 400);
    assert_eq!(ask(json!([{"name": "nope"}])).0, 400);
}

#[test]
fn the_repository_loads_and_unloads() {
    let server = Server::start(&["versions", "mlp"], &[("ORTUS_STORE__AUTOLOAD", "false")]);
    let index = |ready: bool| server.post_json("/v2/repository/index", &json!({"ready": ready})).1;
    let state = |all: &Value, name: &str| {
        all.as_array().unwrap().iter().find(|m| m["name"] == name).map(|m| m["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(state(&index(false), "mlp").as_deref(), Some("UNAVAILABLE"));
    assert_eq!(server.get("/v2/models/mlp/ready").status(), 400);
    let (status, answer) = server.post_text("/v2/repository/models/mlp/load", "application/json", vec![]);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(state(&index(true), "mlp").as_deref(), Some("READY"));
    assert_eq!(state(&index(true), "versions"), None);
    assert_eq!(server.get("/v2/models/mlp/ready").status(), 200);
    let (status, answer) = server.post_json("/v2/repository/models/mlp/unload", &json!({}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(server.get("/v2/models/mlp/ready").status(), 400);
    assert_eq!(server.post_json("/v2/repository/models/nope/load", &json!({})).0, 404);
}

#[test]
fn a_load_takes_a_configuration_and_files() {
    use base64::Engine;
    let server = Server::with(&["versions"]);
    let file = std::fs::read(fixture("store/versions/1/model.onnx")).unwrap();
    let config = json!({"name": "versions", "backend": "onnxruntime", "version_policy": {"all": {}}}).to_string();
    let load =
        |parameters: Value| server.post_json("/v2/repository/models/versions/load", &json!({"parameters": parameters}));
    let run = |version: u32| {
        let body = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]});
        server.post_json(&format!("/v2/models/versions/versions/{version}/infer"), &body)
    };
    assert_eq!(run(3).1["outputs"][0]["data"], json!([3.0]));
    // All three versions by configuration alone.
    let (status, answer) = load(json!({"config": config}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(run(1).1["outputs"][0]["data"], json!([1.0]));
    // One file under a version of its own: only that is served.
    let encoded = base64::engine::general_purpose::STANDARD.encode(&file);
    let (status, answer) = load(json!({"config": config, "file:8/model.onnx": encoded}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(run(8).1["outputs"][0]["data"], json!([1.0]));
    assert_eq!(run(3).0, 404);
    // Files need a configuration; names may not leave the folder.
    assert_eq!(load(json!({"file:1/model.onnx": encoded})).0, 400);
    for name in ["file:../model.onnx", "file:/etc/x", "file:1/../../x", "file:1\\x", "file:model.onnx"] {
        assert_eq!(load(json!({"config": config, name: encoded})).0, 400, "{name}");
    }
    // The last good load goes on serving.
    assert_eq!(run(8).1["outputs"][0]["data"], json!([1.0]));
    server.assert_well();
}

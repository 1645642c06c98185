//! `/v1/models/{name}/predict`: every request and response form, on small tensor models and on `digits`.

use crate::server::{Server, copy_folder, root};
use serde_json::{Value, json};

fn with_digits() -> Server {
    let store = crate::server::store_of(&["mlp", "multi", "strings", "alltypes", "hf-snapshot"]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    Server::on(store, &[])
}

fn seven() -> Vec<u8> {
    std::fs::read(root().join("models/digits/samples/seven.png")).unwrap()
}

fn b64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn tensors_come_in_every_json_form() {
    let server = Server::with(&["mlp", "multi"]);
    let row: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
    let forms = [
        json!({"inputs": {"x": [row]}}),
        json!({"inputs": [row]}),
        json!({"inputs": {"x": {"dtype": "FP32", "shape": [1, 32], "data": row}}}),
        json!({"inputs": {"x": {"dtype": "float32", "shape": [1, 32], "data": [row]}}}),
    ];
    let mut answers = Vec::new();
    for form in &forms {
        let (status, answer) = server.post_json("/v1/models/mlp/predict", form);
        assert_eq!(status, 200, "{form}: {answer}");
        assert_eq!((&answer["model"], &answer["version"]), (&json!("mlp"), &json!("1")));
        answers.push(answer["outputs"].clone());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    let (_, with_id) = server.post_json("/v1/models/mlp/predict", &json!({"id": "abc", "inputs": [row]}));
    assert_eq!(with_id["id"], "abc");
}

#[test]
fn every_answer_has_a_request_id_and_predictions_their_stage_times() {
    let server = Server::with(&["mlp"]);
    let body = json!({"inputs": [vec![0.5; 32]]}).to_string();
    let response = server
        .post("/v1/models/mlp/predict")
        .header("content-type", "application/json")
        .header("x-request-id", "mine-1")
        .body(body)
        .send()
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-1");
    let timing = response.headers()["server-timing"].to_str().unwrap().to_owned();
    for stage in ["queue;dur=", "preprocess;dur=", "inference;dur=", "postprocess;dur="] {
        assert!(timing.contains(stage), "{timing}");
    }
    let other = server.get("/v1/models");
    assert!(!other.headers()["x-request-id"].is_empty());
    let forged = server.client.get(server.url("/v1/models")).header("x-request-id", "a b<c>").send().unwrap();
    assert_ne!(forged.headers()["x-request-id"], "a b<c>");
}

#[test]
fn a_picture_comes_as_body_multipart_base64_or_data_url() {
    let server = with_digits();
    let path = "/v1/models/digits/predict";
    let png = seven();
    let mut answers = vec![server.post_text(path, "image/png", png.clone())];
    answers.push(server.post_json(path, &json!({"inputs": {"b64": b64(&png)}})));
    answers.push(server.post_json(path, &json!({"inputs": format!("data:image/png;base64,{}", b64(&png))})));
    answers.push(server.post_json(path, &json!({"inputs": [{"b64": b64(&png)}]})));
    let part = reqwest::blocking::multipart::Part::bytes(png.clone()).file_name("seven.png");
    let form = reqwest::blocking::multipart::Form::new().part("file", part);
    let response = server.post(path).multipart(form).send().unwrap();
    answers.push((response.status().as_u16(), response.json().unwrap()));
    for (status, answer) in &answers {
        assert_eq!(*status, 200, "{answer}");
        assert_eq!(answer["predictions"][0][0]["label"], "7", "{answer}");
        assert_eq!(answer["predictions"].as_array().unwrap().len(), 1);
        assert_eq!(answer["predictions"], answers[0].1["predictions"]);
    }
}

#[test]
fn a_list_of_pictures_keeps_its_order() {
    let server = with_digits();
    let read = |name: &str| std::fs::read(root().join("models/digits/samples").join(name)).unwrap();
    let items: Vec<Value> =
        ["three.png", "seven.png", "five.png"].iter().map(|name| json!({"b64": b64(&read(name))})).collect();
    let (status, answer) =
        server.post_json("/v1/models/digits/predict", &json!({"inputs": items, "parameters": {"top_k": 1}}));
    assert_eq!(status, 200, "{answer}");
    let labels: Vec<&Value> = answer["predictions"].as_array().unwrap().iter().map(|p| &p[0]["label"]).collect();
    assert_eq!(labels, [&json!("3"), &json!("7"), &json!("5")]);
    assert_eq!(answer["predictions"][0].as_array().unwrap().len(), 1);
}

#[test]
fn a_multipart_batch_takes_parameters() {
    let server = with_digits();
    let part = || reqwest::blocking::multipart::Part::bytes(seven()).file_name("x.png");
    let form = reqwest::blocking::multipart::Form::new()
        .part("file", part())
        .part("file", part())
        .text("parameters", r#"{"top_k": 2}"#);
    let answer: Value = server.post("/v1/models/digits/predict").multipart(form).send().unwrap().json().unwrap();
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(answer["predictions"][1].as_array().unwrap().len(), 2);
}

#[test]
fn a_task_model_gives_its_tensors_when_asked() {
    let server = with_digits();
    let (status, answer) = server.post_text("/v1/models/digits/predict?raw=true", "image/png", seven());
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"]["logits"][0].as_array().unwrap().len(), 10);
    assert!(answer.get("predictions").is_none());
    let pixels = vec![vec![vec![vec![0.0; 32]; 32]]];
    let (status, answer) = server.post_json("/v1/models/digits/predict", &json!({"inputs": {"pixel_values": pixels}}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"]["logits"][0].as_array().unwrap().len(), 10);
}

fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    bytes
}

#[test]
fn numpy_files_go_in_and_out() {
    let server = Server::with(&["mlp"]);
    let row: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
    let (_, expected) = server.post_json("/v1/models/mlp/predict", &json!({"inputs": [row]}));
    let name = expected["outputs"].as_object().unwrap().keys().next().unwrap().clone();
    let (status, answer) = server.post_text("/v1/models/mlp/predict", "application/x-npy", npy("(1, 32)", &row));
    assert_eq!((status, &answer["outputs"]), (200, &expected["outputs"]));

    let send = |accept: &str| {
        let request = server.post("/v1/models/mlp/predict").header("content-type", "application/x-npy");
        let response = request.header("accept", accept).body(npy("(1, 32)", &row)).send().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], accept);
        response.bytes().unwrap()
    };
    let first = expected["outputs"][&name][0][0].as_f64().unwrap() as f32;
    let answer = send("application/x-npy");
    assert!(answer.starts_with(b"\x93NUMPY"));
    assert_eq!(answer[answer.len() - 32..answer.len() - 28], first.to_le_bytes());
    let answer = send("application/x-npz");
    assert!(answer.starts_with(b"PK"));
    let answer = send("application/vnd.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&answer).unwrap();
    assert_eq!(tensors.tensor(&name).unwrap().data()[..4], first.to_le_bytes());
}

#[test]
fn safetensors_and_npz_name_their_inputs() {
    let server = Server::with(&["multi"]);
    let a: Vec<u8> = [1f32, 2.0, 3.0, 4.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let b: Vec<u8> = [10i64, -2].iter().flat_map(|v| v.to_le_bytes()).collect();
    let view =
        |dtype, shape: &[usize], data| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let tensors =
        [("a", view(safetensors::Dtype::F32, &[2, 2], &a[..])), ("b", view(safetensors::Dtype::I64, &[2], &b[..]))];
    let body = safetensors::serialize(tensors, None).unwrap();
    let (status, answer) = server.post_text("/v1/models/multi/predict", "application/vnd.safetensors", body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"]["product"], json!([30, -15]));
}

#[test]
fn non_finite_numbers_are_words_both_ways() {
    let server = Server::with(&["alltypes"]);
    let mut inputs = serde_json::Map::new();
    for name in
        ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "fp16", "bf16", "fp64"]
    {
        let value = if name == "bool" { json!([true, false, true]) } else { json!([1, 0, 1]) };
        inputs.insert(format!("in_{name}"), value);
    }
    inputs.insert("in_fp32".into(), json!(["NaN", "Infinity", "-Infinity"]));
    let (status, answer) = server.post_json("/v1/models/alltypes/predict", &json!({"inputs": inputs}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"]["out_fp32"], json!(["NaN", "Infinity", "-Infinity"]));
    assert_eq!(answer["outputs"]["out_bool"], json!([true, false, true]));
}

#[test]
fn compressed_requests_are_read() {
    // gzip of the body below, made with Python's gzip.compress(..., mtime=0): kept as code to need no encoder.
    let server = Server::with(&["strings"]);
    let body = json!({"inputs": [["a"]]}).to_string();
    let gzip = stored_gzip(body.as_bytes());
    let request = server.post("/v1/models/strings/predict").header("content-type", "application/json");
    let plain = server.post_text("/v1/models/strings/predict", "application/json", body.into_bytes());
    let response = request.header("content-encoding", "gzip").body(gzip).send().unwrap();
    assert_eq!(response.status().as_u16(), plain.0);
    assert_eq!(response.json::<Value>().unwrap()["detail"], plain.1["detail"]);
}

/// A gzip file with one stored (uncompressed) block.
fn stored_gzip(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(bytes);
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (0u32.wrapping_sub(crc & 1)));
        }
    }
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&u32::from(length).to_le_bytes());
    out
}

#[test]
fn model_info_says_what_the_graph_says() {
    let server = with_digits();
    let info = server.get_json("/v1/models/digits");
    assert_eq!(info["state"], "ready");
    assert_eq!(info["loaded"], true);
    assert_eq!(info["task"], "image-classification");
    assert_eq!(info["default_version"], "1");
    assert_eq!(info["device"], "cpu");
    assert_eq!(info["metadata"]["inputs"][0]["name"], "pixel_values");
    assert_eq!(info["metadata"]["inputs"][0]["shape"], json!([-1, 1, 32, 32]));
    assert!(info["total_parameters"].as_u64().unwrap() > 1000);
    assert!(info["metadata"]["opset"].as_u64().unwrap() >= 13);
    let list = server.get_json("/v1/models");
    let names: Vec<&str> = list["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"digits") && names.contains(&"mlp"), "{names:?}");
}

#[test]
fn the_openapi_document_is_served_with_an_operation_for_each_model() {
    let server = with_digits();
    let document = server.get_json("/openapi.json");
    assert_eq!(document["openapi"].as_str().unwrap().split('.').next(), Some("3"));
    assert!(document["paths"].as_object().unwrap().contains_key("/v1/models/digits/predict"));
    assert!(document["paths"].as_object().unwrap().contains_key("/v2/models/{name}/infer"), "V2 is documented");
    assert_eq!(server.get("/openapi.yaml").status(), 200);
    let docs = server.get("/docs/");
    assert_eq!(docs.status(), 200);
    let page = docs.text().unwrap();
    assert!(!page.contains("https://"), "the page needs nothing from outside");
}

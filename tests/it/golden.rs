//! The fixtures' answers against Python ONNX Runtime's (`tests/golden/`), through V2 JSON, V2 binary and the native API.

use crate::server::{Server, root};
use serde_json::{Value, json};

fn cases() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let mut files: Vec<_> =
        std::fs::read_dir(root().join("tests/golden")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        let golden: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let Some(model) = golden["model"].as_str() else { continue };
        for case in golden["cases"].as_array().unwrap() {
            if case.get("inputs").is_none() {
                continue;
            }
            let mut case = case.clone();
            case["tolerance"] = golden["tolerance"].clone();
            all.push((model.to_owned(), case));
        }
    }
    assert!(all.len() > 20, "the golden files were not found");
    all
}

fn models() -> Vec<String> {
    let mut names: Vec<String> = cases().into_iter().map(|(model, _)| model).collect();
    names.dedup();
    names
}

fn server() -> Server {
    let names = models();
    let store = crate::server::store_of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    std::fs::write(store.path().join("versions/model.toml"), "version_policy = \"all\"\n").unwrap();
    Server::on(store, &[])
}

/// Numbers within the file's tolerance, everything else equal.
///
/// The file prints half-precision numbers with as few digits as tell them apart, we print the number itself: half a unit
/// in the last place of the output's type is the floor.
fn close(got: &Value, expected: &Value, tolerance: &Value) -> bool {
    let limit = |key: &str| tolerance[key].as_f64().unwrap_or(0.0);
    match (got, expected) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b, tolerance))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| close(value, other, tolerance)))
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            let floor = limit("unit").max(1e-7) * b.abs();
            (a - b).abs() <= (limit("atol") + limit("rtol") * b.abs()).max(floor)
        }
        (a, b) => a == b,
    }
}

fn flatten(value: &Value, into: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, into)),
        other => into.push(other.clone()),
    }
}

/// A golden value as the native API writes it, flattened: sequences are arrays, maps are objects.
fn native(expected: &Value) -> Value {
    if let Some(items) = expected.get("sequence") {
        return Value::Array(items.as_array().unwrap().iter().map(native).collect());
    }
    if let Some(map) = expected.get("map") {
        return map.clone();
    }
    expected["data"].clone()
}

fn flat(value: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    flatten(value, &mut all);
    all
}

/// The tolerance for one output.
fn tolerance(case: &Value, output: &Value) -> Value {
    let mut tolerance = case["tolerance"].clone();
    tolerance["unit"] = match output["dtype"].as_str() {
        Some("FP16") => json!(4.9e-4),
        Some("BF16") => json!(3.9e-3),
        _ => json!(0.0),
    };
    tolerance
}

fn version_path(case: &Value) -> String {
    case["version"].as_str().map(|version| format!("/versions/{version}")).unwrap_or_default()
}

#[test]
fn the_native_api_answers_as_python_does() {
    let server = server();
    let mut checked = 0;
    for (model, case) in cases() {
        let path = format!("/v1/models/{model}{}/predict", version_path(&case));
        let (status, answer) = server.post_json(&path, &json!({ "inputs": case["inputs"] }));
        if case["fails"] == true {
            assert_eq!(status, 422, "{model} {}: {answer}", case["id"]);
            continue;
        }
        assert_eq!(status, 200, "{model} {}: {answer}", case["id"]);
        for (name, expected) in case["outputs"].as_object().unwrap() {
            let limits = tolerance(&case, expected);
            let got = Value::Array(flat(&answer["outputs"][name]));
            let expected = Value::Array(flat(&native(expected)));
            assert!(close(&got, &expected, &limits), "{model} {} {name}: {got} is not {expected}", case["id"]);
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} outputs were checked");
}

#[test]
fn v2_json_answers_as_python_does() {
    let server = server();
    for (model, case) in cases() {
        let inputs: Vec<Value> = case["inputs"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, t)| json!({"name": name, "shape": t["shape"], "datatype": t["dtype"], "data": t["data"]}))
            .collect();
        let path = format!("/v2/models/{model}{}/infer", version_path(&case));
        let (status, answer) = server.post_json(&path, &json!({ "id": "a", "inputs": inputs }));
        if case["fails"] == true {
            assert_eq!(status, 400, "{model} {}: {answer}", case["id"]);
            assert!(answer["error"].is_string(), "{answer}");
            continue;
        }
        assert_eq!(status, 200, "{model} {}: {answer}", case["id"]);
        assert_eq!(answer["id"], "a");
        for (name, expected) in case["outputs"].as_object().unwrap() {
            let limits = tolerance(&case, expected);
            let output = answer["outputs"].as_array().unwrap().iter().find(|output| output["name"] == *name).unwrap();
            if expected.get("data").is_none() {
                // Sequences and maps travel as the text of their JSON.
                assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([1])));
                let text: Value = serde_json::from_str(output["data"][0].as_str().unwrap()).unwrap();
                let (got, expected) = (Value::Array(flat(&text)), Value::Array(flat(&native(expected))));
                assert!(close(&got, &expected, &limits), "{model} {name}: {got} is not {expected}");
                continue;
            }
            assert_eq!(output["datatype"], expected["dtype"], "{model} {name}");
            assert_eq!(output["shape"], expected["shape"], "{model} {name}");
            assert!(close(&output["data"], &expected["data"], &limits), "{model} {name}: {output}");
        }
    }
}

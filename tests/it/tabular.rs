//! Records: columns to tensors, labels and probabilities back, against Python's ONNX Runtime.

use crate::server::{Server, copy_folder, fixture, shared_models};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A server with `model` from `folder` and this `model.toml`.
fn server(folder: &Path, model: &str, manifest: &str) -> Server {
    let store = tempfile::tempdir().unwrap();
    copy_folder(&folder.join(model), &store.path().join(model));
    std::fs::write(store.path().join(model).join("model.toml"), manifest).unwrap();
    Server::on(store, &[])
}

#[test]
fn a_record_is_answered_with_classes() {
    let manifest = "[pipeline]\ntask = \"tabular-classification\"\ncolumns = [\"a\", \"b\", \"c\"]\n";
    let server = server(&fixture("store"), "zipmap", manifest);
    let path = "/v1/models/zipmap/predict";
    let info = server.get_json("/v1/models/zipmap");
    assert_eq!(info["task"], "tabular-classification");
    let ask = |body: Value| server.post_json(path, &body);
    let (status, answer) = ask(json!({"inputs": {"c": 0.2, "a": 0.1, "b": 0.7}}));
    assert_eq!(status, 200, "{answer}");
    let expected = json!([[
        {"label": "versicolor", "score": 0.7}, {"label": "virginica", "score": 0.2}, {"label": "setosa", "score": 0.1}
    ]]);
    assert_eq!(answer["predictions"], expected);
    let (status, answer) = ask(json!({
        "inputs": [{"a": 1, "b": 0, "c": 0}, {"a": 0, "b": null, "c": true}], "parameters": {"top_k": 1}
    }));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["predictions"][0], json!([{"label": "setosa", "score": 1.0}]));
    assert_eq!(answer["predictions"][1], json!([{"label": "virginica", "score": 1.0}]));

    let refused = |inputs: Value, expected: &str| {
        let (status, answer) = ask(json!({"inputs": inputs}));
        assert_eq!(status, 422, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(expected), "{answer}");
    };
    refused(json!({"a": 1, "b": 2}), "inputs[0]: the record has no column \"c\"");
    refused(
        json!([{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": "x", "c": 3}]),
        "inputs[1]: column \"b\": expected a number",
    );
    refused(json!({"a": 1, "b": 2, "c": 3, "d": 4}), "no column \"d\"; its columns are \"a\", \"b\", \"c\"");
    refused(json!("text"), "expected a record, an object of column to value, got a text");
}

#[test]
fn an_items_error_stands_in_its_place_where_that_is_asked_for() {
    let manifest = "[pipeline]\ntask = \"tabular-classification\"\ncolumns = [\"a\", \"b\", \"c\"]\n";
    let server = server(&fixture("store"), "zipmap", manifest);
    let body = json!({
        "inputs": [{"a": 1, "b": 0, "c": 0}, {"a": 1}, {"a": 0, "b": 1, "c": 0}],
        "parameters": {"on_error": "item", "top_k": 1}
    });
    let (status, answer) = server.post_json("/v1/models/zipmap/predict", &body);
    assert_eq!(status, 200, "{answer}");
    let expected = json!([
        [{"label": "setosa", "score": 1.0}],
        {"error": "inputs[1]: the record has no column \"b\""},
        [{"label": "versicolor", "score": 1.0}]
    ]);
    assert_eq!(answer["predictions"], expected);
    let (status, answer) =
        server.post_json("/v1/models/zipmap/predict", &json!({"inputs": {"a": 1}, "parameters": {"on_error": "all"}}));
    assert_eq!(status, 422);
    assert!(answer["detail"].as_str().unwrap().contains("expected \"refuse\" or \"item\""), "{answer}");
}

#[test]
fn columns_that_do_not_fit_are_said_at_load() {
    for (columns, expected) in
        [("[\"a\", \"b\"]", "it takes 3 columns, but 2 are named"), ("[\"a\", \"b\", \"a\"]", "names a column twice")]
    {
        let store = tempfile::tempdir().unwrap();
        copy_folder(&fixture("store/zipmap"), &store.path().join("zipmap"));
        let manifest = format!("[pipeline]\ntask = \"tabular-classification\"\ncolumns = {columns}\n");
        std::fs::write(store.path().join("zipmap/model.toml"), manifest).unwrap();
        let server = Server::on(store, &[]);
        let info = server.get_json("/v1/models/zipmap");
        assert_eq!(info["state"], "failed", "{info}");
        assert!(info["last_error"].as_str().unwrap().contains(expected), "{info}");
    }
}

/// The rows of a case's inputs as records, its columns in the order of `columns` where one input holds them all.
fn records(inputs: &Value, columns: &[String]) -> Vec<Map<String, Value>> {
    let inputs = inputs.as_object().unwrap();
    let rows = inputs.values().next().unwrap()["shape"][0].as_u64().unwrap() as usize;
    let record = |row: usize| {
        let cells = inputs.iter().flat_map(|(name, tensor)| {
            let width = tensor["shape"][1].as_u64().unwrap() as usize;
            (0..width).map(move |at| {
                let column = if inputs.len() == 1 { columns[at].clone() } else { name.clone() };
                (column, tensor["data"][row * width + at].clone())
            })
        });
        cells.collect()
    };
    (0..rows).map(record).collect()
}

#[test]
fn shared_tables_agree_with_the_reference() {
    let Some(models) = shared_models() else { return };
    let store = models.join("store");
    let mut largest: f64 = 0.0;
    let mut rows = 0;
    for (model, task, width) in [
        ("sk-iris", "tabular-classification", 4),
        ("sk-iris-zipmap", "tabular-classification", 4),
        ("sk-iris-int-zipmap", "tabular-classification", 4),
        ("sk-columns", "tabular-classification", 0),
        ("sk-text", "tabular-classification", 1),
        ("sk-wine-forest", "tabular-classification", 13),
        ("sk-wine-gbr", "tabular-regression", 12),
    ] {
        let columns: Vec<String> = (0..width).map(|at| format!("c{at}")).collect();
        let named = if width > 0 { format!("columns = {columns:?}\n") } else { String::new() };
        let server = server(&store, model, &format!("[pipeline]\ntask = \"{task}\"\n{named}"));
        let expected = std::fs::read(store.join(model).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        for case in expected["cases"].as_array().unwrap() {
            let records = records(&case["inputs"], &columns);
            let (status, answer) =
                server.post_json(&format!("/v1/models/{model}/predict"), &json!({"inputs": records}));
            assert_eq!(status, 200, "{model}: {answer}");
            for (row, got) in answer["predictions"].as_array().unwrap().iter().enumerate() {
                rows += 1;
                let outputs = &case["outputs"];
                if task == "tabular-regression" {
                    let wanted = outputs["variable"]["data"][row].as_f64().unwrap();
                    largest = largest.max((got.as_f64().unwrap() - wanted).abs() / wanted.abs());
                    continue;
                }
                let label = outputs.get("label").or(outputs.get("output_label")).unwrap()["data"][row].clone();
                let label = label.as_str().map_or(label.to_string(), str::to_owned);
                assert_eq!(got[0]["label"].as_str(), Some(label.as_str()), "{model}: {got}");
                for class in got.as_array().unwrap() {
                    let name = class["label"].as_str().unwrap();
                    let wanted = match outputs.get("output_probability") {
                        Some(maps) => maps[row][name].as_f64().unwrap(),
                        None => {
                            let scores = &outputs["probabilities"];
                            let classes = scores["shape"][1].as_u64().unwrap() as usize;
                            scores["data"][row * classes + name.parse::<usize>().unwrap()].as_f64().unwrap()
                        }
                    };
                    largest = largest.max((class["score"].as_f64().unwrap() - wanted).abs());
                }
            }
        }
    }
    println!("{rows} rows, largest difference {largest:.1e}");
    assert!(rows > 10 && largest < 1e-4, "{rows} rows, {largest}");
}

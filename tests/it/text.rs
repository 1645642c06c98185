//! Texts: embeddings against Python's (`tests/golden/text.json`) and against sentence-transformers.

use crate::server::{Server, copy_folder, fixture, root, shared_models, store_of};
use serde_json::{Value, json};

fn cases(model: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_slice(&std::fs::read(root().join("tests/golden/text.json")).unwrap()).unwrap();
    golden["cases"].as_array().unwrap().iter().filter(|case| case["model"] == model).cloned().collect()
}

/// Largest difference of nested numbers of the same form.
fn difference(got: &Value, expected: &Value) -> f64 {
    match (got, expected) {
        (Value::Array(got), Value::Array(expected)) if got.len() == expected.len() => {
            got.iter().zip(expected).map(|(got, expected)| difference(got, expected)).fold(0.0, f64::max)
        }
        (Value::Number(got), Value::Number(expected)) => (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs(),
        _ => f64::INFINITY,
    }
}

#[test]
fn texts_become_the_embeddings_of_the_reference() {
    let server = Server::with(&["embedder", "token-features"]);
    for model in ["embedder", "token-features"] {
        let path = format!("/v1/models/{model}/predict");
        assert_eq!(server.get_json(&format!("/v1/models/{model}"))["task"], "feature-extraction");
        for case in cases(model) {
            let body = json!({"inputs": case["text"], "parameters": case["parameters"]});
            let (status, answer) = server.post_json(&path, &body);
            assert_eq!(status, 200, "{answer}");
            let differs = difference(&answer["predictions"], &json!([case["prediction"]]));
            assert!(differs <= case["atol"].as_f64().unwrap(), "{differs}: {answer} is not {case}");
        }
    }
}

#[test]
fn a_list_of_texts_is_answered_in_its_order() {
    let server = Server::with(&["embedder", "token-features"]);
    for model in ["embedder", "token-features"] {
        let mut cases = cases(model);
        cases.retain(|case| case["parameters"] == json!({}));
        let texts: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
        let (status, answer) = server.post_json(&format!("/v1/models/{model}/predict"), &json!({"inputs": texts}));
        assert_eq!(status, 200, "{answer}");
        let predictions = answer["predictions"].as_array().unwrap();
        assert_eq!(predictions.len(), cases.len());
        for (got, case) in predictions.iter().zip(&cases) {
            assert!(difference(got, &case["prediction"]) <= case["atol"].as_f64().unwrap(), "{got} is not {case}");
        }
    }
}

#[test]
fn a_text_comes_in_any_form() {
    let server = Server::with(&["embedder"]);
    let path = "/v1/models/embedder/predict";
    let expected = &cases("embedder")[0]["prediction"];
    let check = |(status, answer): (u16, Value)| {
        assert_eq!(status, 200, "{answer}");
        assert!(difference(&answer["predictions"][0], expected) <= 1e-5, "{answer}");
    };
    check(server.post_text(path, "text/plain; charset=utf-8", b"the cat runs".to_vec()));
    check(server.post_json(path, &json!({"inputs": [{"text": "the cat runs"}]})));
    check(server.post_json(path, &json!({"inputs": {"b64": "dGhlIGNhdCBydW5z"}})));
    let form =
        "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nthe cat runs\r\n--x--\r\n";
    check(server.post_text(path, "multipart/form-data; boundary=x", form.into()));
    let (status, answer) = server.post_json(&format!("{path}?raw=true"), &json!({"inputs": "the cat runs"}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"]["last_hidden_state"][0].as_array().unwrap().len(), 5);
    let numpy = server.post(path).header("accept", "application/x-npy").header("content-type", "text/plain");
    let numpy = numpy.body("the cat runs").send().unwrap();
    assert_eq!(numpy.status(), 200);
    assert!(numpy.bytes().unwrap().starts_with(b"\x93NUMPY"));
    // Whoever has the token ids sends them as tensors.
    let ids = json!({"input_ids": [[2, 5, 3]], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]});
    let (status, answer) = server.post_json(path, &json!({"inputs": ids}));
    assert_eq!(
        (status, answer["outputs"]["last_hidden_state"][0].as_array().map(Vec::len)),
        (200, Some(3)),
        "{answer}"
    );
}

/// F90.
#[test]
fn texts_that_are_too_long_are_refused_before_they_are_tokenized() {
    let server = Server::with(&["embedder"]);
    let path = "/v1/models/embedder/predict";
    let long = "x".repeat(1_000_000);
    let (status, answer) = server.post_json(path, &json!({"inputs": vec![long; 20]}));
    assert_eq!((status, answer["code"].as_str()), (413, Some("input_too_large")), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("max_text_bytes = 262144"), "{answer}");
    server.assert_well();
    drop(server);
    let server = Server::start(&["embedder"], &[("ORTUS_LIMITS__MAX_TEXT_BYTES", "12")]);
    assert_eq!(server.post_json(path, &json!({"inputs": "the cat runs"})).0, 200);
    let (status, answer) = server.post_json(path, &json!({"inputs": ["a", "the cats run "]}));
    assert_eq!(status, 413, "{answer}");
    assert!(answer["detail"].as_str().unwrap().starts_with("inputs[1]: the text has 13 bytes"), "{answer}");
}

#[test]
fn wrong_items_and_parameters_are_named() {
    let server = Server::with(&["embedder", "token-features"]);
    let path = "/v1/models/embedder/predict";
    for (body, expected) in [
        (json!({"inputs": ["a", {"b64": "/9j/"}]}), "inputs[1]: expected a text, got bytes that are not UTF-8"),
        (
            json!({"inputs": "a", "parameters": {"prompt_name": "x"}}),
            "expected the name of a prompt (\"query\", \"document\")",
        ),
        (json!({"inputs": "a", "parameters": {"pooling": "cls"}}), "the model itself says"),
        (json!({"inputs": "a", "parameters": {"normalize": "yes"}}), "expected true or false"),
        (json!({"inputs": "the ".repeat(20), "parameters": {"truncate": false}}), "more than the 16 tokens"),
    ] {
        let (status, answer) = server.post_json(path, &body);
        assert_eq!(status, 422, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(expected), "{answer}");
    }
    let (status, answer) = server.post_text(path, "image/png", vec![1]);
    assert_eq!(status, 415, "{answer}");
}

#[test]
fn a_model_without_its_tokenizer_takes_tensors() {
    let store = store_of(&["embedder"]);
    std::fs::remove_file(store.path().join("embedder/tokenizer.json")).unwrap();
    let server = Server::on(store, &[]);
    let (status, answer) = server.post_json("/v1/models/embedder/predict", &json!({"inputs": "a"}));
    assert_eq!(status, 422, "{answer}");
    let ids = json!({"input_ids": [[2, 5, 3]], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]});
    assert_eq!(server.post_json("/v1/models/embedder/predict", &json!({"inputs": ids})).0, 200);
}

#[test]
fn the_command_line_embeds_without_a_server() {
    let store = fixture("store");
    let output = crate::server::command()
        .args(["predict", "embedder", "--text", "the cat runs", "--models", store.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(difference(&answer["predictions"][0], &cases("embedder")[0]["prediction"]) <= 1e-5, "{answer}");
}

#[test]
fn minilm_agrees_with_sentence_transformers() {
    let Some(shared) = shared_models() else { return };
    let name = "all-MiniLM-L6-v2";
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(name), &store.path().join(name));
    let server = Server::on(store, &[]);
    let text = std::fs::read(shared.join("store").join(name).join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    let tolerance = expected["tolerance"]["abs"].as_f64().unwrap();
    let cases = expected["cases"].as_array().unwrap();
    let texts: Vec<&Value> = cases.iter().map(|case| &case["input"]["text"]).collect();
    let (status, answer) = server.post_json(&format!("/v1/models/{name}/predict"), &json!({"inputs": texts}));
    assert_eq!(status, 200, "{answer}");
    let differences = cases.iter().zip(answer["predictions"].as_array().unwrap());
    let differences: Vec<f64> = differences.map(|(case, got)| difference(got, &case["predictions"])).collect();
    println!("{name}: {} texts, differences {differences:.5?}", differences.len());
    assert!(differences.iter().all(|&differs| differs <= tolerance), "{differences:?}");
    assert_eq!(differences.len(), cases.len());
}

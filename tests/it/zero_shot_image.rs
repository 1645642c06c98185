//! Pictures and the labels of a request: a CLIP and a SigLIP, each as one graph and as a pair of towers, against
//! transformers' pipeline. The tolerances stand in `tests/golden/zero_shot_image.json`: PNG and a JPEG of full colour are
//! decoded as Pillow does it, half-resolution colour is enlarged a little differently.

use crate::image::content_type;
use crate::server::{Server, command, root};
use base64::Engine;
use serde_json::{Value, json};

const MODELS: [&str; 4] = ["clip", "clip-towers", "siglip", "siglip-towers"];

fn picture(file: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images").join(file)).unwrap()
}

fn item(file: &str) -> Value {
    json!({"b64": base64::engine::general_purpose::STANDARD.encode(picture(file))})
}

fn inspect(model: &str) -> Value {
    let folder = root().join("tests/fixtures/store").join(model);
    let output = command().args(["inspect", "--json"]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts the labels and their order, and gives the largest difference of a score.
fn apart(got: &Value, expected: &Value) -> f64 {
    let (got, expected) = (got.as_array().unwrap(), expected.as_array().unwrap());
    let labels = |list: &[Value]| list.iter().map(|one| one["label"].clone()).collect::<Vec<_>>();
    assert_eq!(labels(got), labels(expected), "{got:?} {expected:?}");
    let score = |one: &Value| one["score"].as_f64().unwrap();
    got.iter().zip(expected).map(|(got, expected)| (score(got) - score(expected)).abs()).fold(0.0, f64::max)
}

#[test]
fn labels_of_a_request_are_scored_as_transformers_does_it() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/zero_shot_image.json")).unwrap()).unwrap();
    let server = Server::with(&MODELS);
    for model in MODELS {
        let mut largest = std::collections::BTreeMap::<&str, f64>::new();
        let cases = golden["cases"].as_array().unwrap().iter();
        for case in cases.filter(|case| case["models"].as_array().unwrap().contains(&json!(model))) {
            let file = case["file"].as_str().unwrap();
            let tolerance = golden["tolerance"].get(file).unwrap_or(&golden["tolerance"]["png"]).as_f64().unwrap();
            let body = json!({"inputs": item(file), "parameters": case["parameters"]});
            let (status, answer) = server.post_json(&format!("/v1/models/{model}/predict"), &body);
            assert_eq!(status, 200, "{model} {file}: {answer}");
            let difference = apart(&answer["predictions"][0], &case["predictions"]);
            let most = largest.entry(file).or_default();
            *most = most.max(difference);
            assert!(difference <= tolerance, "{model} {file}: {answer} is not {case}: {difference}");
        }
        assert_eq!(largest.len(), 6, "{model}: {largest:?}");
        println!("{model}: largest difference of a score: {largest:?}");
    }
}

#[test]
fn a_pair_of_towers_is_one_model_and_says_how_it_compares() {
    let server = Server::with(&["clip-towers", "siglip-towers"]);
    let model = server.get_json("/v1/models/clip-towers");
    assert_eq!(model["task"], "zero-shot-image-classification");
    let folder = root().join("tests/fixtures/store/clip-towers/onnx");
    let size = |file: &str| std::fs::metadata(folder.join(file)).unwrap().len();
    let inspected = inspect("clip-towers");
    assert_eq!(inspected["size_bytes"], size("vision_model.onnx") + size("text_model.onnx"));
    assert_eq!(inspected["missing"], json!([]));
    let evidence = inspected["task_evidence"].to_string();
    assert!(
        evidence.contains("10 × the cosine of image_embeds and text_embeds (logit_scale of model.toml)"),
        "{evidence}"
    );
    let text = model.to_string();
    for name in ["pixel_values", "input_ids", "attention_mask", "image_embeds", "text_embeds", "text_last_hidden_state"]
    {
        assert!(text.contains(&format!("\"{name}\"")), "{name}: {text}");
    }
    let evidence = inspect("siglip-towers")["task_evidence"].to_string();
    let expected = "sigmoid of 10 × the cosine of image_pooler_output and text_pooler_output + -0.5 (logit_scale of";
    assert!(evidence.contains(expected), "{evidence}");
    // The protocol's clients may send tensors, and each tower has rows of its own.
    let pixels = vec![0.5; 2 * 3 * 32 * 32];
    let body = json!({"inputs": [
        {"name": "pixel_values", "datatype": "FP32", "shape": [2, 3, 32, 32], "data": pixels},
        {"name": "input_ids", "datatype": "INT64", "shape": [3, 4], "data": [0, 5, 6, 1, 0, 7, 8, 1, 0, 9, 10, 1]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [3, 4], "data": vec![1; 12]}
    ], "outputs": [{"name": "text_embeds"}, {"name": "image_embeds"}]});
    let (status, answer) = server.post_json("/v2/models/clip-towers/infer", &body);
    assert_eq!(status, 200, "{answer}");
    let shapes = [0, 1].map(|place| answer["outputs"][place]["shape"].clone());
    assert_eq!(shapes, [json!([3, 24]), json!([2, 24])]);
}

#[test]
fn items_are_answered_each_for_itself() {
    let server = Server::with(&["clip", "clip-towers"]);
    let labels = json!({"candidate_labels": ["a cat", "two dogs", "a red square"]});
    for model in ["clip", "clip-towers"] {
        let path = format!("/v1/models/{model}/predict");
        let alone = ["rotated.png", "grey.png"].map(|file| {
            let (status, answer) = server.post_json(&path, &json!({"inputs": item(file), "parameters": labels}));
            assert_eq!(status, 200, "{answer}");
            answer["predictions"][0].clone()
        });
        let inputs = json!([item("rotated.png"), item("grey.png"), item("rotated.png")]);
        let (status, answer) = server.post_json(&path, &json!({"inputs": inputs, "parameters": labels}));
        assert_eq!((status, answer["predictions"].as_array().map(Vec::len)), (200, Some(3)), "{answer}");
        for (got, expected) in answer["predictions"].as_array().unwrap().iter().zip([&alone[0], &alone[1], &alone[0]]) {
            assert!(apart(got, expected) < 1e-5, "{got} is not {expected}");
        }
        let mut kept = labels.clone();
        kept["on_error"] = json!("item");
        let inputs = json!([item("rotated.png"), {"b64": "AAAA"}]);
        let (status, answer) = server.post_json(&path, &json!({"inputs": inputs, "parameters": kept}));
        assert_eq!(status, 200, "{answer}");
        assert!(apart(&answer["predictions"][0], &alone[0]) < 1e-5, "{answer}");
        assert!(answer["predictions"][1]["error"].to_string().contains("picture"), "{answer}");
        let (status, answer) = server.post_json(&path, &json!({"inputs": inputs, "parameters": labels}));
        assert_eq!(status, 422, "{answer}");
        // More tokens than the model has places for: cut.
        let long = json!({"candidate_labels": ["a cat ".repeat(50), "snow"]});
        let (status, answer) = server.post_json(&path, &json!({"inputs": item("grey.png"), "parameters": long}));
        assert_eq!(status, 200, "{answer}");
    }
}

#[test]
fn a_picture_as_the_body_has_its_labels_in_the_query() {
    let server = Server::with(&["siglip"]);
    let path = "/v1/models/siglip/predict?candidate_labels=a%20cat,two%20dogs";
    let (status, answer) = server.post_text(path, content_type("rgb.jpg"), picture("rgb.jpg"));
    assert_eq!(status, 200, "{answer}");
    let body = json!({"inputs": item("rgb.jpg"), "parameters": {"candidate_labels": ["a cat", "two dogs"]}});
    let (_, expected) = server.post_json("/v1/models/siglip/predict", &body);
    assert_eq!(answer["predictions"], expected["predictions"]);
    let (status, answer) = server.post_text(&format!("{path}&raw=true"), content_type("rgb.jpg"), picture("rgb.jpg"));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"]["logits_per_image"][0].as_array().map(Vec::len), Some(2), "{answer}");
    assert_eq!(answer["outputs"]["text_embeds"].as_array().map(Vec::len), Some(2), "{answer}");
}

#[test]
fn parameters_that_are_missing_or_wrong_are_named() {
    let server = Server::with(&["clip"]);
    for (parameters, expected) in [
        (json!({}), "candidate_labels: expected the labels to choose from, as a list or separated by commas"),
        (json!({"candidate_labels": [1]}), "candidate_labels: expected a list of texts"),
        (
            json!({"candidate_labels": "a", "hypothesis_template": "a photo"}),
            "expected a text with {} where the label goes",
        ),
        (json!({"candidate_labels": "a", "top_k": 1}), "it takes candidate_labels and hypothesis_template"),
    ] {
        let body = json!({"inputs": item("rgb.png"), "parameters": parameters});
        let (status, answer) = server.post_json("/v1/models/clip/predict", &body);
        assert_eq!(status, 422, "{answer}");
        assert!(answer.to_string().contains(expected), "{answer}");
    }
}

#[test]
fn kept_items_are_those_of_the_same_labels() {
    let server = Server::start(&["clip"], &[("ORTUS_CACHE__PREPROCESS_MB", "16")]);
    let ask = |labels: &str| {
        let body = json!({"inputs": item("rgb.png"), "parameters": {"candidate_labels": labels}});
        let (status, answer) = server.post_json("/v1/models/clip/predict", &body);
        assert_eq!(status, 200, "{answer}");
        answer["predictions"][0].clone()
    };
    let first = ask("a cat,two dogs");
    let other = ask("a cat,snow");
    assert_ne!(first, other);
    assert_eq!(ask("a cat,two dogs"), first);
    let kept = server.get_json("/v1/models/clip/stats")["cache"]["preprocess"].clone();
    assert_eq!((&kept["hits"], &kept["misses"]), (&json!(1), &json!(2)), "{kept}");
}

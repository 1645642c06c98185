//! Pictures: the embedded digits model, and the shared classifiers against the transformers pipelines.

use crate::server::{Server, copy_folder, root, shared_models};
use serde_json::Value;

#[test]
fn digits_are_classified_as_the_reference_does() {
    let store = tempfile::tempdir().unwrap();
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let server = Server::on(store, &[]);
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/digits.json")).unwrap()).unwrap();
    let tolerance = golden["tolerance"]["atol"].as_f64().unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let picture = std::fs::read(root().join(case["file"].as_str().unwrap())).unwrap();
        let (status, answer) = server.post_text("/v1/models/digits/predict", "image/png", picture);
        assert_eq!(status, 200, "{answer}");
        for (got, expected) in answer["predictions"][0].as_array().unwrap().iter().zip(case["top5"].as_array().unwrap())
        {
            let difference = (got["score"].as_f64().unwrap() - expected["score"].as_f64().unwrap()).abs();
            assert!(difference <= tolerance, "{}: {got} is not {expected}", case["id"]);
        }
        assert_eq!(answer["predictions"][0][0]["label"], case["top5"][0]["label"]);
    }
}

/// Largest difference of a score over the folder's pictures, and the median, against the tolerances in the file.
fn check_classifier(name: &str) {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(name), &store.path().join(name));
    let server = Server::on(store, &[]);
    let text = std::fs::read(shared.join("store").join(name).join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    let tolerance = |key: &str| expected["tolerance"][key].as_f64().unwrap();
    let mut differences = Vec::new();
    for case in expected["cases"].as_array().unwrap() {
        let Some(file) = case["input"]["file"].as_str() else { continue };
        let Some(predictions) = case["predictions"].as_array() else { continue };
        let picture = std::fs::read(shared.join("inputs").join(file)).unwrap();
        let (status, answer) =
            server.post_text(&format!("/v1/models/{name}/predict?top_k=1000"), content_type(file), picture);
        assert_eq!(status, 200, "{name} {file}: {answer}");
        let got = answer["predictions"][0].as_array().unwrap();
        let limit = tolerance(if file.ends_with(".jpg") || file.ends_with(".jpeg") {
            "jpeg_score_abs"
        } else {
            "png_score_abs"
        });
        for wanted in predictions {
            let Some(found) = got.iter().find(|score| score["label"] == wanted["label"]) else {
                panic!("{name} {file}: no label {}", wanted["label"]);
            };
            let difference = (found["score"].as_f64().unwrap() - wanted["score"].as_f64().unwrap()).abs();
            assert!(difference <= limit, "{name} {file}: {found} is not {wanted}");
            differences.push(difference);
        }
    }
    assert!(!differences.is_empty(), "{name}: no case was checked");
    differences.sort_by(f64::total_cmp);
    let median = differences[differences.len() / 2];
    println!(
        "{name}: {} scores, median {median:.6}, largest {:.6}",
        differences.len(),
        differences[differences.len() - 1]
    );
    assert!(median <= tolerance("median_score_abs"), "{name}: median {median}");
}

pub fn content_type(file: &str) -> &'static str {
    match file.rsplit('.').next() {
        Some("png") => "image/png",
        Some("webp") => "image/webp",
        Some("gif") => "image/gif",
        Some("bmp") => "image/bmp",
        _ => "image/jpeg",
    }
}

#[test]
fn squeezenet_agrees_with_the_reference() {
    check_classifier("squeezenet1.1");
}

#[test]
fn vit_agrees_with_the_reference() {
    check_classifier("tiny-vit");
}

#[test]
fn convnext_agrees_with_the_reference() {
    check_classifier("tiny-convnext");
}

#[test]
fn mobilevit_agrees_with_the_reference() {
    check_classifier("tiny-mobilevit");
}

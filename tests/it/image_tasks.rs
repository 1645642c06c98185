//! Tasks on pictures other than classification: the shared detectors and the fixtures against their references.

use crate::image::content_type;
use crate::server::{Server, copy_folder, shared_models};
use serde_json::Value;

/// Scores and edges may differ this much: our resize differs from Pillow's by a level here and there.
const SCORE: f64 = 1e-3;
const PIXELS: f64 = 1.0;

fn read(path: impl AsRef<std::path::Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Every case of the model's `expected.json`, with `manifest` beside the model where it has none of its own.
fn check_detector(name: &str, manifest: Option<&str>, score_limit: f64, pixel_limit: f64) {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(name), &store.path().join(name));
    if let Some(manifest) = manifest {
        std::fs::write(store.path().join(name).join("model.toml"), manifest).unwrap();
    }
    let server = Server::on(store, &[]);
    let (mut boxes, mut score, mut pixels) = (0, 0.0f64, 0.0f64);
    for case in read(shared.join("store").join(name).join("expected.json"))["cases"].as_array().unwrap() {
        let file = case["input"]["file"].as_str().unwrap();
        let picture = std::fs::read(shared.join("inputs").join(file)).unwrap();
        let query: Vec<String> =
            case["parameters"].as_object().unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = format!("/v1/models/{name}/predict?{}", query.join("&"));
        let (status, answer) = server.post_text(&path, content_type(file), picture);
        assert_eq!(status, 200, "{name} {file}: {answer}");
        let got = answer["predictions"][0].as_array().unwrap();
        let expected = case["predictions"].as_array().unwrap();
        assert_eq!(got.len(), expected.len(), "{name} {file}: {got:?}");
        for (got, expected) in got.iter().zip(expected) {
            assert_eq!(got["label"], expected["label"], "{name} {file}");
            let apart = |got: &Value, expected: &Value| (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs();
            let edges = ["xmin", "ymin", "xmax", "ymax"].map(|edge| apart(&got["box"][edge], &expected["box"][edge]));
            let (score_apart, edge_apart) =
                (apart(&got["score"], &expected["score"]), edges.into_iter().fold(0.0, f64::max));
            println!("{name} {file} {}: score {score_apart:.6}, edges {edge_apart:.3}", got["label"]);
            score = score.max(score_apart);
            pixels = pixels.max(edge_apart);
            boxes += 1;
        }
    }
    println!("{name}: {boxes} boxes, largest difference of a score {score:.6}, of an edge {pixels:.3} pixels");
    assert!(boxes > 0, "{name}: no case was checked");
    assert!(score <= score_limit && pixels <= pixel_limit, "{name}: score {score}, edges {pixels}");
}

#[test]
fn yolos_agrees_with_the_reference() {
    check_detector("tiny-yolos", None, SCORE, PIXELS);
}

#[test]
fn yolox_agrees_with_the_reference() {
    check_detector("yolox-nano", None, SCORE, PIXELS);
}

#[test]
fn a_detector_with_the_head_of_ssd_agrees_with_the_reference() {
    let manifest = r#"
[pipeline]
task = "object-detection"
decoder = "ssd"
labels = ["background", "face"]

[pipeline.image]
size = { height = 240, width = 320 }
resample = "bilinear"
rescale_factor = 1.0
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
"#;
    check_detector("ultraface-rfb-320", Some(manifest), SCORE, PIXELS);
}

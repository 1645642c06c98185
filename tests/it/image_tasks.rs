//! Tasks on pictures other than classification: the shared detectors and the fixtures against their references.
//!
//! Tolerances of the fixtures stand in `tests/golden/image_tasks.json`. Those of the shared detectors stand here: they are
//! the reference's own numbers where a picture is prepared to the level, and differ where a JPEG's half-resolution colour is
//! enlarged otherwise than by libjpeg-turbo. The random weights of tiny-yolos make much of such a pixel, with Pillow too.

use crate::image::content_type;
use crate::server::{Server, copy_folder, root, shared_models};
use base64::Engine;
use serde_json::Value;

/// How much a detector's answers may differ from its reference's.
struct Limits {
    score: f64,
    /// Pixels of an edge.
    edge: f64,
    /// The same for the median of all boxes.
    median_score: f64,
    median_edge: f64,
}

fn read(path: impl AsRef<std::path::Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn apart(got: &Value, expected: &Value) -> f64 {
    (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs()
}

/// Differences of score and edges.
fn box_apart(got: &Value, expected: &Value) -> (f64, f64) {
    let edges = ["xmin", "ymin", "xmax", "ymax"].map(|edge| apart(&got["box"][edge], &expected["box"][edge]));
    (apart(&got["score"], &expected["score"]), edges.into_iter().fold(0.0, f64::max))
}

fn median(mut differences: Vec<f64>) -> f64 {
    differences.sort_by(f64::total_cmp);
    differences[differences.len() / 2]
}

/// Every case of the model's `expected.json`, with `manifest` beside the model where it has none of its own.
fn check_detector(name: &str, manifest: Option<&str>, limits: &Limits) {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(name), &store.path().join(name));
    if let Some(manifest) = manifest {
        std::fs::write(store.path().join(name).join("model.toml"), manifest).unwrap();
    }
    let server = Server::on(store, &[]);
    let (mut scores, mut edges, mut cases) = (Vec::new(), Vec::new(), 0);
    for case in read(shared.join("store").join(name).join("expected.json"))["cases"].as_array().unwrap() {
        let file = case["input"]["file"].as_str().unwrap();
        let picture = std::fs::read(shared.join("inputs").join(file)).unwrap();
        let query: Vec<String> =
            case["parameters"].as_object().unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = format!("/v1/models/{name}/predict?{}", query.join("&"));
        let (status, answer) = server.post_text(&path, content_type(file), picture);
        assert_eq!(status, 200, "{name} {file}: {answer}");
        let mut got = answer["predictions"][0].as_array().unwrap().clone();
        assert!(got.is_sorted_by(|a, b| a["score"].as_f64() >= b["score"].as_f64()), "{name} {file}: {got:?}");
        // One whose score is near the threshold may be on either side of it.
        let near = |one: &Value| apart(&one["score"], &case["parameters"]["threshold"]) <= limits.score;
        for expected in case["predictions"].as_array().unwrap() {
            let same = got.iter().enumerate().filter(|(_, one)| one["label"] == expected["label"]);
            let distance = |one: &Value| {
                let (score, edge) = box_apart(one, expected);
                score / limits.score + edge / limits.edge
            };
            let nearest = same.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).map(|(place, _)| place);
            let Some(nearest) = nearest else {
                assert!(near(expected), "{name} {file}: nothing is {expected}");
                continue;
            };
            let found = got.remove(nearest);
            let (score, edge) = box_apart(&found, expected);
            assert!(score <= limits.score && edge <= limits.edge, "{name} {file}: {found} is not {expected}");
            scores.push(score);
            edges.push(edge);
        }
        assert!(got.iter().all(near), "{name} {file}: not expected: {got:?}");
        cases += 1;
    }
    let largest = |differences: &[f64]| differences.iter().copied().fold(0.0, f64::max);
    let (score, edge) = (median(scores.clone()), median(edges.clone()));
    println!(
        "{name}: {cases} cases, {} boxes; scores: median {score:.6}, largest {:.6}; edges: median {edge:.3}, largest {:.3} pixels",
        scores.len(),
        largest(&scores),
        largest(&edges)
    );
    assert!(score <= limits.median_score && edge <= limits.median_edge, "{name}: medians {score}, {edge}");
}

#[test]
fn yolos_agrees_with_the_reference() {
    let limits = Limits { score: 0.08, edge: 40.0, median_score: 3e-3, median_edge: 1.0 };
    check_detector("tiny-yolos", None, &limits);
}

#[test]
fn yolox_agrees_with_the_reference() {
    let limits = Limits { score: 0.03, edge: 1.0, median_score: 1e-3, median_edge: 0.1 };
    check_detector("yolox-nano", None, &limits);
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
    let limits = Limits { score: 1e-3, edge: 1.0, median_score: 1e-3, median_edge: 1.0 };
    check_detector("ultraface-rfb-320", Some(manifest), &limits);
}

/// The golden model of that name, a server with it, and what that answers for each case.
fn golden(name: &str, query: &str) -> (Value, Vec<Value>) {
    let golden = read(root().join("tests/golden/image_tasks.json"));
    let model = golden["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap().clone();
    let server = Server::with(&[name]);
    let answers = model["cases"].as_array().unwrap().iter().map(|case| {
        let file = case["file"].as_str().unwrap();
        let picture = std::fs::read(root().join("tests/fixtures/images").join(file)).unwrap();
        let path = format!("/v1/models/{name}/predict?{query}");
        let (status, answer) = server.post_text(&path, content_type(file), picture);
        assert_eq!(status, 200, "{name} {file}: {answer}");
        answer["predictions"][0].clone()
    });
    let answers = answers.collect();
    (model, answers)
}

pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

/// Pixels of a mask given as run lengths, column by column.
pub fn drawn(counts: &Value) -> Vec<bool> {
    let runs = numbers(counts).into_iter().enumerate();
    runs.flat_map(|(place, count)| std::iter::repeat_n(place % 2 == 1, count as usize)).collect()
}

/// Width, height and bytes of a grey PNG in base64.
pub fn grey(text: &Value) -> (u32, u32, Vec<u8>) {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap();
    match ::image::load_from_memory_with_format(&bytes, ::image::ImageFormat::Png).unwrap() {
        ::image::DynamicImage::ImageLuma8(picture) => (picture.width(), picture.height(), picture.into_raw()),
        other => panic!("not 8 bits of grey: {:?}", other.color()),
    }
}

#[test]
fn masks_are_those_of_the_reference() {
    let (model, answers) = golden("segments", "mask_format=rle");
    let share = model["tolerance"]["pixels"].as_f64().unwrap();
    for (case, answer) in model["cases"].as_array().unwrap().iter().zip(&answers) {
        let expected = case["masks"].as_array().unwrap();
        let got = answer.as_array().unwrap();
        // A class of a few pixels may be there or not: what is compared is the class of each pixel.
        let classes = |masks: Vec<(&Value, &Value)>| {
            let mut classes: Vec<Option<Value>> = Vec::new();
            for (label, counts) in masks {
                let inside = drawn(counts);
                classes.resize(inside.len(), None);
                for (class, _) in classes.iter_mut().zip(inside).filter(|(_, inside)| *inside) {
                    assert_eq!(class.replace(label.clone()), None, "two masks have the same pixel");
                }
            }
            classes
        };
        let wanted = classes(expected.iter().map(|mask| (&mask["label"], &mask["counts"])).collect());
        let found = classes(got.iter().map(|segment| (&segment["label"], &segment["mask"]["counts"])).collect());
        assert_eq!(found.len(), wanted.len());
        let differ = found.iter().zip(&wanted).filter(|(found, wanted)| found != wanted).count();
        println!("segments {}: {differ} of {} pixels differ", case["file"], found.len());
        assert!(differ as f64 <= share * found.len() as f64, "{}: {differ} pixels differ", case["file"]);
        for segment in got {
            assert_eq!((&segment["score"], &segment["mask"]["size"]), (&Value::Null, &expected[0]["size"]));
        }
    }
}

#[test]
fn a_mask_as_picture_has_the_pixels_of_its_runs() {
    let (_, pictures) = golden("segments", "");
    let (_, runs) = golden("segments", "mask_format=rle");
    for (pictures, runs) in pictures.iter().zip(&runs) {
        assert_eq!(pictures.as_array().unwrap().len(), runs.as_array().unwrap().len());
        for (picture, runs) in pictures.as_array().unwrap().iter().zip(runs.as_array().unwrap()) {
            let (width, height, bytes) = grey(&picture["mask"]);
            assert_eq!(runs["mask"]["size"], serde_json::json!([height, width]));
            let (width, height) = (width as usize, height as usize);
            let columns = (0..width).flat_map(|x| (0..height).map(move |y| y * width + x));
            let inside: Vec<bool> = columns.map(|place| bytes[place] == 255).collect();
            assert!(inside == drawn(&runs["mask"]["counts"]), "{}", picture["label"]);
            assert!(bytes.iter().all(|byte| matches!(byte, 0 | 255)));
        }
    }
}

#[test]
fn depths_are_those_of_the_reference() {
    let (model, answers) = golden("depths", "");
    let levels = model["tolerance"]["levels"].as_u64().unwrap();
    for (case, answer) in model["cases"].as_array().unwrap().iter().zip(&answers) {
        let (width, height, bytes) = grey(&answer["depth"]);
        assert_eq!(serde_json::json!([height, width]), case["size"]);
        let expected = base64::engine::general_purpose::STANDARD.decode(case["depth"].as_str().unwrap()).unwrap();
        let level = bytes.iter().zip(&expected).map(|(got, expected)| got.abs_diff(*expected)).max().unwrap();
        println!("depths {}: a pixel differs by {level}", case["file"]);
        assert!(u64::from(level) <= levels, "{}", case["file"]);
        assert_eq!(numbers(&answer["predicted_depth"]).len(), bytes.len());
    }
    let (_, pictures) = golden("depths", "predicted_depth=false");
    for (alone, answer) in pictures.iter().zip(&answers) {
        assert_eq!((alone.get("predicted_depth"), &alone["depth"]), (None, &answer["depth"]));
    }
}

#[test]
fn embeddings_of_pictures_are_those_of_the_reference() {
    for (query, key) in [("", "hidden"), ("pool=true", "pooled")] {
        let (model, answers) = golden("patches", query);
        let atol = model["tolerance"]["atol"].as_f64().unwrap();
        for (case, answer) in model["cases"].as_array().unwrap().iter().zip(&answers) {
            let (got, expected) = (numbers(answer), numbers(&case[key]));
            assert_eq!(got.len(), expected.len());
            let largest = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f64::max);
            println!("patches {} {key}: largest difference {largest:.6}", case["file"]);
            assert!(largest <= atol, "{} {key}: {largest}", case["file"]);
        }
    }
}

#[test]
fn a_wrong_parameter_says_what_is_taken() {
    let server = Server::with(&["segments", "depths", "patches"]);
    let picture = std::fs::read(root().join("tests/fixtures/images/rgb.png")).unwrap();
    for (model, expected) in [
        ("segments", "image-segmentation has no such parameter; it takes mask_format"),
        ("depths", "depth-estimation has no such parameter; it takes predicted_depth"),
        ("patches", "image-feature-extraction has no such parameter; it takes pool"),
    ] {
        let path = format!("/v1/models/{model}/predict?top_k=3");
        let (status, answer) = server.post_text(&path, "image/png", picture.clone());
        assert_eq!(status, 422, "{answer}");
        assert!(answer.to_string().contains(expected), "{answer}");
        let (status, answer) = server.post_text(&format!("/v1/models/{model}/predict"), "text/plain", b"x".to_vec());
        assert_eq!(status, 415, "{answer}");
    }
    server.assert_well();
}

//! Tasks on pictures against transformers' own pipelines: the models of `tests/fixtures/transformers`.
//!
//! `tools/make_transformers_images.py` makes the models and `tests/golden/transformers_images.json`, whose answers come from
//! transformers with its image processors that work with Pillow. Pictures are prepared
//! to the bit, so what is allowed is the rounding of sums in another order, and a pixel where boxes are cut to whole ones.

use crate::image::content_type;
use crate::image_tasks::{drawn, grey, numbers};
use crate::server::{Server, copy_folder, fixture, root};
use serde_json::{Value, json};

/// The models of a task, and a server with all of them.
fn served(task: &str) -> (Vec<Value>, Server) {
    let text = std::fs::read(root().join("tests/golden/transformers_images.json")).unwrap();
    let golden: Value = serde_json::from_slice(&text).unwrap();
    let models: Vec<Value> =
        golden["models"].as_array().unwrap().iter().filter(|model| model["task"] == task).cloned().collect();
    assert!(!models.is_empty(), "{task}: the golden file has no model");
    let store = tempfile::tempdir().unwrap();
    for model in &models {
        let name = model["name"].as_str().unwrap();
        copy_folder(&fixture("transformers").join(name), &store.path().join(name));
    }
    (models, Server::on(store, &[]))
}

fn picture(file: &str) -> Vec<u8> {
    let own = fixture("transformers/pictures").join(file);
    std::fs::read(if own.exists() { own } else { fixture("images").join(file) }).unwrap()
}

/// What the server answers to a case, and a name for it.
fn answered(server: &Server, model: &Value, case: &Value, more: &[(&str, &str)]) -> (Value, String) {
    let (name, file) = (model["name"].as_str().unwrap(), case["file"].as_str().unwrap());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let given = case["parameters"].as_object().unwrap().iter().map(|(name, value)| format!("{name}={}", text(value)));
    let more = more.iter().map(|(name, value)| format!("{name}={value}"));
    let query: Vec<String> = given.chain(more).collect();
    let query = query.join("&");
    let path = format!("/v1/models/{name}/predict?{query}");
    let (status, answer) = server.post_text(&path, content_type(file), picture(file));
    assert_eq!(status, 200, "{name} {file} {query}: {answer}");
    (answer["predictions"][0].clone(), format!("{name} {file} {query}"))
}

fn cases(model: &Value) -> &Vec<Value> {
    model["cases"].as_array().unwrap()
}

fn apart(got: &Value, expected: &Value) -> f64 {
    (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs()
}

fn largest_apart(got: &[f64], expected: &[f64]) -> f64 {
    got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f64::max)
}

/// Where the reference's pictures are prepared to the bit, what is left is the rounding of sums in another order.
const SCORE: f64 = 1e-5;

#[test]
fn classes_are_those_of_transformers() {
    let (models, server) = served("image-classification");
    let mut wrong = Vec::new();
    for model in &models {
        let mut largest = 0.0f64;
        for case in cases(model) {
            let (answer, name) = answered(&server, model, case, &[]);
            let (got, expected) = (answer.as_array().unwrap(), case["answer"].as_array().unwrap());
            assert_eq!(got.len(), expected.len(), "{name}");
            for (got, expected) in got.iter().zip(expected) {
                let difference = apart(&got["score"], &expected["score"]);
                largest = largest.max(difference);
                // Two scores that are as near as that may stand in either order.
                if difference > SCORE {
                    wrong.push(format!("{name}: {got} is not {expected}"));
                }
            }
            assert!(got.is_sorted_by(|a, b| a["score"].as_f64() >= b["score"].as_f64()), "{name}");
            let labels = |all: &[Value]| {
                let mut labels: Vec<String> = all.iter().map(|one| one["label"].to_string()).collect();
                labels.sort();
                labels
            };
            if got.len() > 3 {
                assert_eq!(labels(got), labels(expected), "{name}");
            }
        }
        println!("{}: largest difference {largest:.6}", model["name"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn objects_are_those_of_transformers() {
    let (models, server) = served("object-detection");
    let mut wrong = Vec::new();
    for model in &models {
        let (mut score, mut edge, mut boxes) = (0.0f64, 0.0f64, 0);
        for case in cases(model) {
            let (answer, name) = answered(&server, model, case, &[("max_detections", "1000")]);
            let mut got = answer.as_array().unwrap().clone();
            let expected = case["answer"].as_array().unwrap();
            if got.len() != expected.len() {
                wrong.push(format!("{name}: {} boxes, not {}", got.len(), expected.len()));
            }
            for expected in expected {
                // The reference cuts edges to whole pixels, towards zero.
                let distance = |one: &Value| {
                    let edges = ["xmin", "ymin", "xmax", "ymax"].map(|edge| {
                        (one["box"][edge].as_f64().unwrap().trunc() - expected["box"][edge].as_f64().unwrap()).abs()
                    });
                    (apart(&one["score"], &expected["score"]), edges.into_iter().fold(0.0, f64::max))
                };
                let same = got.iter().enumerate().filter(|(_, one)| one["label"] == expected["label"]);
                let by = |one: &Value| distance(one).0 * 1000.0 + distance(one).1;
                let Some((place, _)) = same.min_by(|a, b| by(a.1).total_cmp(&by(b.1))) else {
                    wrong.push(format!("{name}: nothing is {expected}"));
                    continue;
                };
                let found = got.remove(place);
                let (score_apart, edge_apart) = distance(&found);
                (score, edge, boxes) = (score.max(score_apart), edge.max(edge_apart), boxes + 1);
                if score_apart > SCORE || edge_apart > 1.0 {
                    wrong.push(format!("{name}: {found} is not {expected}"));
                }
            }
        }
        println!("{}: {boxes} boxes, scores within {score:.6}, edges within {edge} pixels", model["name"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn segments_are_those_of_transformers() {
    let (models, server) = served("image-segmentation");
    let mut wrong = Vec::new();
    for model in &models {
        let (mut differ, mut all) = (0, 0);
        for case in cases(model) {
            let (answer, name) = answered(&server, model, case, &[("mask_format", "rle")]);
            let (got, expected) = (answer.as_array().unwrap(), case["answer"].as_array().unwrap());
            let labels = |all: &[Value]| all.iter().map(|one| one["label"].clone()).collect::<Vec<_>>();
            if labels(got) != labels(expected) {
                wrong.push(format!("{name}: {:?} are not {:?}", labels(got), labels(expected)));
                continue;
            }
            for (got, expected) in got.iter().zip(expected) {
                assert_eq!(got["mask"]["size"], expected["size"], "{name}");
                match expected["score"].as_f64() {
                    Some(_) => assert!(apart(&got["score"], &expected["score"]) <= SCORE, "{name}: {}", got["score"]),
                    None => assert!(got["score"].is_null(), "{name}"),
                }
                let (got, expected) = (drawn(&got["mask"]["counts"]), drawn(&expected["counts"]));
                assert_eq!(got.len(), expected.len(), "{name}");
                differ += got.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
                all += got.len();
            }
        }
        println!("{}: {differ} of {all} pixels of masks differ", model["name"]);
        if differ * 10_000 > all {
            wrong.push(format!("{}: {differ} of {all} pixels of masks differ", model["name"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn depths_are_those_of_transformers() {
    let (models, server) = served("depth-estimation");
    for model in &models {
        for case in cases(model) {
            let (answer, name) = answered(&server, model, case, &[]);
            let expected = &case["answer"];
            let (width, height, bytes) = grey(&answer["depth"]);
            assert_eq!(json!([height, width]), expected["size"], "{name}");
            let (_, _, levels) = grey(&expected["depth"]);
            let level = bytes.iter().zip(&levels).map(|(got, expected)| got.abs_diff(*expected)).max().unwrap();
            let at = |row: f64, column: f64| answer["predicted_depth"][row as usize][column as usize].as_f64().unwrap();
            let rows = numbers(&expected["rows"]).into_iter();
            let got: Vec<f64> = rows
                .flat_map(|row| numbers(&expected["columns"]).into_iter().map(move |column| (row, column)))
                .map(|(row, column)| at(row, column))
                .collect();
            assert_eq!(answer["predicted_depth"].as_array().unwrap().len(), height as usize, "{name}");
            assert_eq!(answer["predicted_depth"][0].as_array().unwrap().len(), width as usize, "{name}");
            let wanted = numbers(&expected["predicted_depth"]);
            let span =
                wanted.iter().copied().fold(f64::MIN, f64::max) - wanted.iter().copied().fold(f64::MAX, f64::min);
            let depth = largest_apart(&got, &wanted) / span;
            println!("{name}: depths differ by {depth:.6} of their span, pixels by {level} levels");
            assert!(depth <= 1e-4 && level <= 1, "{name}: {depth} of the span, {level} levels");
        }
    }
}

fn shape(value: &Value) -> Vec<usize> {
    let mut shape = Vec::new();
    let mut value = value;
    while let Some(values) = value.as_array() {
        shape.push(values.len());
        value = &values[0];
    }
    shape
}

#[test]
fn embeddings_are_those_of_transformers() {
    let (models, server) = served("image-feature-extraction");
    for model in &models {
        let mut largest = 0.0f64;
        for case in cases(model) {
            let (answer, name) = answered(&server, model, case, &[]);
            let expected = &case["answer"];
            // One vector is written without the axes that only hold it.
            let wanted: Vec<usize> = match shape(expected).as_slice() {
                [1, width] | [1, width, 1, 1] => vec![*width],
                shape => shape.to_vec(),
            };
            assert_eq!(shape(&answer), wanted, "{name}");
            largest = largest.max(largest_apart(&numbers(&answer), &numbers(expected)));
        }
        println!("{}: largest difference {largest:.6}", model["name"]);
        assert!(largest <= 1e-4, "{}: {largest}", model["name"]);
    }
}

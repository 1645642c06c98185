//! The tasks on texts against transformers' pipelines: each case beside the shared models, through the server.
//!
//! Labels, words, places and answers must be equal; scores may differ by what the reference's own digits allow.

use crate::server::{Server, copy_folder, shared_models};
use serde_json::{Value, json};

/// What scores may differ by, absolutely; the files themselves allow more, for other runtimes than ours.
const SCORE_ABS: f64 = 1e-4;

/// Largest difference of two scores anywhere in answers that are equal in everything else; else where they differ.
fn score_difference(got: &Value, expected: &Value) -> Result<f64, String> {
    match (got, expected) {
        (Value::Array(got), Value::Array(expected)) if got.len() == expected.len() => got
            .iter()
            .zip(expected)
            .try_fold(0.0, |most, (got, expected)| Ok(score_difference(got, expected)?.max(most))),
        (Value::Object(got), Value::Object(expected)) if got.keys().eq(expected.keys()) => {
            got.iter().zip(expected).try_fold(0.0f64, |most, ((key, got), (_, expected))| match key.as_str() {
                "score" => Ok((got.as_f64().unwrap() - expected.as_f64().unwrap()).abs().max(most)),
                _ if got == expected => Ok(most),
                _ => Err(format!("{key}: {got} is not {expected}")),
            })
        }
        _ => Err(format!("{got} is not {expected}")),
    }
}

/// Answers to every case of a shared model, each alone and all of the same parameters together.
#[track_caller]
fn agrees(model: &str, task: &str) {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(model), &store.path().join(model));
    let server = Server::on(store, &[]);
    assert_eq!(server.get_json(&format!("/v1/models/{model}"))["task"], task);
    let text = std::fs::read(shared.join("store").join(model).join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    let path = format!("/v1/models/{model}/predict");
    let mut most = 0.0f64;
    let mut wrong = Vec::new();
    let mut look = |case: &Value, got: &Value| {
        // The reference gives the best class bare where it was asked for no more.
        let reference = match &case["predictions"] {
            class @ Value::Object(_) if task == "text-classification" => json!([class]),
            other => other.clone(),
        };
        match score_difference(got, &reference) {
            Ok(differs) => most = most.max(differs),
            Err(problem) => wrong.push(format!("{}: {problem}", case["id"])),
        }
    };
    let parameters = |case: &Value| case.get("parameters").cloned().unwrap_or(json!({}));
    for case in cases {
        let body = json!({"inputs": case["input"], "parameters": parameters(case)});
        let (status, answer) = server.post_json(&path, &body);
        assert_eq!(status, 200, "{}: {answer}", case["id"]);
        look(case, &answer["predictions"][0]);
        // Those with the same parameters, in one request.
        let alike: Vec<&Value> = cases.iter().filter(|other| parameters(other) == parameters(case)).collect();
        if alike[0]["id"] == case["id"] {
            let inputs: Vec<&Value> = alike.iter().map(|case| &case["input"]).collect();
            let body = json!({"inputs": inputs, "parameters": parameters(case)});
            let (status, answer) = server.post_json(&path, &body);
            assert_eq!(status, 200, "{answer}");
            alike.iter().zip(answer["predictions"].as_array().unwrap()).for_each(|(case, got)| look(case, got));
        }
    }
    println!("{model}: {} cases, scores differ by at most {most:.2e}, {} wrong", cases.len(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(most <= SCORE_ABS, "scores differ by {most}");
}

#[test]
fn classes_of_texts_are_those_of_transformers() {
    agrees("minilm-mini-sentiment", "text-classification");
}

#[test]
fn several_classes_of_a_text_are_those_of_transformers() {
    agrees("minilm-mini-topics", "text-classification");
}

#[test]
fn scores_of_pairs_are_those_of_transformers() {
    agrees("tiny-reranker", "text-classification");
}

#[test]
fn entities_are_those_of_transformers() {
    agrees("minilm-mini-ner", "token-classification");
}

#[test]
fn filled_masks_are_those_of_transformers() {
    agrees("tiny-bert-mlm", "fill-mask");
}

#[test]
fn answers_to_questions_are_those_of_transformers() {
    agrees("tiny-bert-qa", "question-answering");
}

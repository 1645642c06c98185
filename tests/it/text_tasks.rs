//! The tasks on texts against transformers' pipelines: each case beside the shared models, through the server.
//!
//! Labels, words, places and answers must be equal; scores may differ by what the reference's own digits allow.

use crate::server::{Server, copy_folder, shared_models};
use serde_json::{Value, json};

/// What scores may differ by, absolutely.
const SCORE_ABS: f64 = 1e-4;
/// The same where weights are 8 bits wide: ONNX Runtime rounds them in another way on other processors. Its Python binding
/// differs from the reference by as much on the machine where this was measured, 0.0006.
const EIGHT_BITS_ABS: f64 = 1e-3;

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
fn agrees(model: &str, task: &str, tolerance: f64) {
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
    assert!(most <= tolerance, "scores differ by {most}");
}

#[test]
fn classes_of_texts_are_those_of_transformers() {
    agrees("minilm-mini-sentiment", "text-classification", EIGHT_BITS_ABS);
}

#[test]
fn several_classes_of_a_text_are_those_of_transformers() {
    agrees("minilm-mini-topics", "text-classification", EIGHT_BITS_ABS);
}

#[test]
fn scores_of_pairs_are_those_of_transformers() {
    agrees("tiny-reranker", "text-classification", SCORE_ABS);
}

#[test]
fn entities_are_those_of_transformers() {
    agrees("minilm-mini-ner", "token-classification", EIGHT_BITS_ABS);
}

#[test]
fn filled_masks_are_those_of_transformers() {
    agrees("tiny-bert-mlm", "fill-mask", SCORE_ABS);
}

#[test]
fn answers_to_questions_are_those_of_transformers() {
    agrees("tiny-bert-qa", "question-answering", SCORE_ABS);
}

#[test]
fn labels_of_the_request_are_scored_by_a_model_of_inference() {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join("inference");
    copy_folder(&shared.join("store/minilm-mini-sentiment"), &folder);
    // Any model of two classes is one of inference where its labels say so.
    let manifest = "[pipeline]\ntask = \"zero-shot-classification\"\nlabels = [\"contradiction\", \"entailment\"]\n";
    std::fs::write(folder.join("model.toml"), manifest).unwrap();
    let server = Server::on(store, &[]);
    let path = "/v1/models/inference/predict";
    let parameters = json!({"candidate_labels": "lovely, dreadful, a film"});
    let text = "What a wonderful film!";
    let (status, answer) = server.post_json(path, &json!({"inputs": [text, "bad"], "parameters": parameters}));
    assert_eq!(status, 200, "{answer}");
    let ranked = &answer["predictions"][0];
    assert_eq!((&ranked["sequence"], ranked["labels"].as_array().unwrap().len()), (&json!(text), 3));
    let scores: Vec<f64> = ranked["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
    assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-5 && scores.is_sorted_by(|a, b| a >= b), "{answer}");
    // Several questions about one text are what the parts of one run would be.
    let one = json!({"candidate_labels": ["lovely"]});
    let (_, alone) = server.post_json(path, &json!({"inputs": text, "parameters": one}));
    let many = json!({"candidate_labels": ["dreadful", "lovely"], "multi_label": true});
    let (_, among) = server.post_json(path, &json!({"inputs": text, "parameters": many}));
    let among = &among["predictions"][0];
    let place = among["labels"].as_array().unwrap().iter().position(|label| label == "lovely").unwrap();
    let (alone, among) =
        (alone["predictions"][0]["scores"][0].as_f64().unwrap(), among["scores"][place].as_f64().unwrap());
    assert!((alone - among).abs() < 1e-3, "{alone} is not {among}");
    let (status, answer) = server.post_json(path, &json!({"inputs": text}));
    assert_eq!((status, answer["code"].as_str().is_some()), (422, true), "{answer}");
    assert!(
        answer["detail"].as_str().unwrap().contains("parameters.candidate_labels: expected the labels"),
        "{answer}"
    );
}

#[test]
fn items_that_do_not_suit_a_task_are_named() {
    let Some(shared) = shared_models() else { return };
    let store = tempfile::tempdir().unwrap();
    for model in ["tiny-bert-qa", "tiny-bert-mlm", "tiny-reranker"] {
        copy_folder(&shared.join("store").join(model), &store.path().join(model));
    }
    let server = Server::on(store, &[]);
    for (model, body, expected) in [
        (
            "tiny-bert-qa",
            json!({"inputs": "Who?"}),
            "inputs[0]: expected {\"question\": …, \"context\": …}, got a text",
        ),
        ("tiny-bert-qa", json!({"inputs": {"question": "Who?", "context": ""}}), "the context is empty"),
        (
            "tiny-bert-mlm",
            json!({"inputs": ["a [MASK] .", "a word ."]}),
            "inputs[1]: the text has no mask; write [MASK]",
        ),
        ("tiny-reranker", json!({"inputs": {"question": "Who?", "context": "I."}}), "expected a text"),
        ("tiny-reranker", json!({"inputs": "a", "parameters": {"topk": 1}}), "it takes top_k, function_to_apply"),
    ] {
        let (status, answer) = server.post_json(&format!("/v1/models/{model}/predict"), &body);
        assert_eq!(status, 422, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(expected), "{answer}");
    }
    server.assert_well();
}

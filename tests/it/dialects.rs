//! Routes of other servers: OpenAI's embeddings, Text Embeddings Inference's embeddings and reranking.

use crate::server::{Server, copy_folder, shared_models};
use serde_json::{Value, json};

fn numbers(vector: &Value) -> Vec<f32> {
    vector.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn embeddings_come_as_openai_gives_them() {
    let server = Server::with(&["embedder", "mlp"]);
    let ask = |body: Value| server.post_json("/v1/embeddings", &body);
    let (status, answer) = ask(json!({"model": "embedder", "input": ["the cat runs", "the dog"], "user": "u"}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("embedder")));
    // [CLS] and [SEP] are counted.
    assert_eq!(answer["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
    let first = numbers(&answer["data"][0]["embedding"]);
    assert_eq!((&answer["data"][1]["index"], &answer["data"][1]["object"]), (&json!(1), &json!("embedding")));
    let length: f32 = first.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    let (status, encoded) = ask(json!({"model": "embedder", "input": "the cat runs", "encoding_format": "base64"}));
    assert_eq!(status, 200, "{encoded}");
    let text = encoded["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    let decoded: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert!(decoded.iter().zip(&first).all(|(a, b)| (a - b).abs() < 1e-6), "{decoded:?} is not {first:?}");

    let (status, cut) = ask(json!({"model": "embedder", "input": "the cat runs", "dimensions": 2}));
    assert_eq!((status, cut["data"][0]["embedding"].as_array().unwrap().len()), (200, 2));

    let error = |body: Value| {
        let (status, answer) = ask(body);
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error", "{answer}");
        (status, error["code"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(error(json!({"model": "none", "input": "a"})).1, "model_not_found");
    let (status, _, message) = error(json!({"model": "mlp", "input": "a"}));
    assert_eq!(status, 422);
    assert!(message.contains("the task of model 'mlp' is raw; this route needs feature-extraction"), "{message}");
    assert!(error(json!({"model": "embedder", "input": [1, 2]})).2.contains("token ids are not taken"));
    assert_eq!(error(json!({"model": "embedder"})).0, 400);
    let stats = server.get_json("/v1/models/embedder/stats");
    assert_eq!(stats["predict_time"]["count"], 3, "{stats}");
}

#[test]
fn text_embeddings_inference_finds_its_only_model() {
    let server = Server::with(&["embedder", "mlp"]);
    let (status, answer) = server.post_json("/embed", &json!({"inputs": ["the cat runs", "the dog"]}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer.as_array().unwrap().len(), 2);
    let raw = server.post_json("/embed", &json!({"inputs": "the cat runs", "normalize": false})).1;
    let predicted = server.post_json(
        "/v1/models/embedder/predict",
        &json!({"inputs": "the cat runs", "parameters": {"normalize": false}}),
    );
    assert_eq!(raw[0], predicted.1["predictions"][0]);
    let (status, answer) = server.post_json("/rerank", &json!({"query": "a", "texts": ["b"]}));
    assert_eq!((status, &answer["error_type"]), (404, &json!("Validation")), "{answer}");
    let (status, answer) = server.post_json("/embed?model=none", &json!({"inputs": "a"}));
    assert_eq!((status, &answer["error_type"]), (404, &json!("Validation")), "{answer}");
}

#[test]
fn several_embedders_must_be_told_apart() {
    let server = Server::with(&["embedder", "token-features"]);
    let (status, answer) = server.post_json("/embed", &json!({"inputs": "the cat"}));
    assert_eq!(status, 422, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("name one with ?model="), "{answer}");
    assert_eq!(server.post_json("/embed?model=embedder", &json!({"inputs": "the cat"})).0, 200);
    let (status, answer) = server.post_json("/embed_all?model=token-features", &json!({"inputs": "the cat"}));
    assert_eq!(status, 200, "{answer}");
    let predicted = server.post_json("/v1/models/token-features/predict", &json!({"inputs": "the cat"})).1;
    assert_eq!(answer, predicted["predictions"][0], "{predicted}");
    let (status, answer) = server.post_json("/embed?model=token-features", &json!({"inputs": "the cat"}));
    assert_eq!(status, 422);
    assert!(answer["error"].as_str().unwrap().contains("for each token"), "{answer}");
}
#[test]
fn a_reranker_orders_texts_as_the_reference() {
    let Some(models) = shared_models() else { return };
    let folder = models.join("store/tiny-reranker");
    let store = tempfile::tempdir().unwrap();
    copy_folder(&folder, &store.path().join("tiny-reranker"));
    let server = Server::on(store, &[]);
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    let query = &cases[0]["input"]["text"];
    let cases: Vec<&Value> = cases.iter().filter(|case| &case["input"]["text"] == query).collect();
    let texts: Vec<&Value> = cases.iter().map(|case| &case["input"]["text_pair"]).collect();
    let (status, ranks) =
        server.post_json("/rerank", &json!({"query": query, "texts": texts, "truncate": true, "return_text": true}));
    assert_eq!(status, 200, "{ranks}");
    let ranks = ranks.as_array().unwrap();
    assert_eq!(ranks.len(), cases.len());
    assert!(ranks.is_sorted_by(|a, b| a["score"].as_f64() >= b["score"].as_f64()), "{ranks:?}");
    for rank in ranks {
        let case = cases[rank["index"].as_u64().unwrap() as usize];
        assert_eq!(rank["text"], case["input"]["text_pair"]);
        let differs = (rank["score"].as_f64().unwrap() - case["predictions"]["score"].as_f64().unwrap()).abs();
        assert!(differs < 1e-4, "{differs}: {rank} is not {case}");
    }
}

//! Sounds: classes and speech of the shared models against the transformers pipelines.

use crate::server::{Server, copy_folder, shared_models};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn on(shared: &Path, name: &str, env: &[(&str, &str)]) -> Server {
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(name), &store.path().join(name));
    Server::on(store, env)
}

fn expected(shared: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(shared.join("store").join(name).join("expected.json")).unwrap()).unwrap()
}

fn sound(shared: &Path, file: &str) -> Vec<u8> {
    let path: PathBuf = shared.join("inputs").join(file);
    std::fs::read(path).unwrap()
}

fn content_type(file: &str) -> &'static str {
    if file.ends_with(".flac") { "audio/flac" } else { "audio/wav" }
}

/// Largest difference of the scores to the first case's, which is that of the sound at the model's own rate.
fn difference(got: &Value, expected: &Value) -> f64 {
    let expected = expected.as_array().unwrap();
    let differences = expected.iter().map(|wanted| {
        let found = got.as_array().unwrap().iter().find(|score| score["label"] == wanted["label"]).unwrap();
        (found["score"].as_f64().unwrap() - wanted["score"].as_f64().unwrap()).abs()
    });
    differences.fold(0.0, f64::max)
}

#[test]
fn sounds_are_classified_as_the_reference_does() {
    let Some(shared) = shared_models() else { return };
    let name = "tiny-wav2vec2-cls";
    let server = on(&shared, name, &[]);
    assert_eq!(server.get_json(&format!("/v1/models/{name}"))["task"], "audio-classification");
    let path = format!("/v1/models/{name}/predict");
    let expected = expected(&shared, name);
    let mut largest = 0.0f64;
    for case in expected["cases"].as_array().unwrap() {
        let file = case["input"]["file"].as_str().unwrap();
        let (status, answer) = server.post_text(&path, content_type(file), sound(&shared, file));
        assert_eq!(status, 200, "{file}: {answer}");
        let got = &answer["predictions"][0];
        let labels =
            |scores: &Value| scores.as_array().unwrap().iter().map(|one| one["label"].clone()).collect::<Vec<_>>();
        assert_eq!(labels(got), labels(&case["predictions"]), "{file}");
        largest = largest.max(difference(got, &case["predictions"]));
    }
    println!("{name}: largest difference {largest:.7}");
    assert!(largest <= 1e-4, "{largest}");
    for file in expected["must_answer"].as_array().unwrap() {
        let file = file.as_str().unwrap();
        let (status, answer) = server.post_text(&path, content_type(file), sound(&shared, file));
        assert_eq!(status, 200, "{file}: {answer}");
        let differs = difference(&answer["predictions"][0], &expected["cases"][0]["predictions"]);
        println!("{name} {file}: {differs:.5} from the sound at 16 kHz");
        assert!(differs <= 0.1, "{file}: {differs}");
    }
    let body = json!({"inputs": {"b64": base64(&sound(&shared, "audio/speech_16k.wav"))}, "parameters": {"top_k": 1}});
    let (status, answer) = server.post_json(&path, &body);
    assert_eq!((status, &answer["predictions"][0][0]["label"]), (200, &json!("cat")), "{answer}");
    assert_eq!(answer["predictions"][0].as_array().unwrap().len(), 1);
}

#[test]
fn speech_is_written_as_the_reference_does() {
    let Some(shared) = shared_models() else { return };
    let name = "tiny-wav2vec2-ctc";
    let server = on(&shared, name, &[]);
    assert_eq!(server.get_json(&format!("/v1/models/{name}"))["task"], "automatic-speech-recognition");
    let path = format!("/v1/models/{name}/predict");
    let expected = expected(&shared, name);
    for case in expected["cases"].as_array().unwrap() {
        let file = case["input"]["file"].as_str().unwrap();
        let (status, answer) = server.post_text(&path, content_type(file), sound(&shared, file));
        assert_eq!(status, 200, "{file}: {answer}");
        assert_eq!(answer["predictions"][0], case["predictions"], "{file}");
    }
    let wav = base64(&sound(&shared, "audio/speech_16k.wav"));
    for case in golden()["cases"].as_array().unwrap() {
        let body = json!({"inputs": [{"b64": wav}], "parameters": case["parameters"]});
        let (status, answer) = server.post_json(&path, &body);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["predictions"][0], case["prediction"], "{}", case["parameters"]);
    }
}

/// Answers of transformers with chunks and times, see `tools/make_audio_golden.py`.
fn golden() -> Value {
    let path = crate::server::root().join("tests/golden/speech.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn sounds_that_cannot_be_used_are_refused_with_what_to_send() {
    let Some(shared) = shared_models() else { return };
    let server = on(&shared, "tiny-wav2vec2-ctc", &[("ORTUS_LIMITS__MAX_AUDIO_SECONDS", "7")]);
    let path = "/v1/models/tiny-wav2vec2-ctc/predict";
    let whole = sound(&shared, "audio/speech_16k.wav");
    let (status, answer) = server.post_text(path, "audio/wav", whole.clone());
    assert_eq!((status, answer["code"].as_str()), (413, Some("input_too_large")), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("longer than max_audio_seconds = 7"), "{answer}");
    drop(server);
    let server = on(&shared, "tiny-wav2vec2-ctc", &[]);
    for (bytes, expected) in [
        (whole[..whole.len() / 2].to_vec(), "ends early"),
        (b"not a sound".to_vec(), "expected a WAV, FLAC, MP3 or OGG Vorbis sound, got bytes of no known sound format"),
        (whole[..44].to_vec(), "ends early"),
        (Vec::new(), ""),
    ] {
        let (status, answer) = server.post_text(path, "audio/wav", bytes);
        assert!((400..500).contains(&status), "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(expected), "{answer}");
    }
    let (status, answer) = server.post_json(path, &json!({"inputs": "a text"}));
    assert_eq!(status, 422, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("expected a sound"), "{answer}");
    let wav = json!({"b64": base64(&whole)});
    for (parameters, expected) in [
        (json!({"top_k": 1}), "it takes return_timestamps, chunk_length_s and stride_length_s"),
        (json!({"return_timestamps": true}), "expected \"char\", \"word\" or false"),
        (json!({"chunk_length_s": 0.01}), "expected at least 0.025 s"),
        (json!({"chunk_length_s": 4, "stride_length_s": [2, 2]}), "more than 3/4"),
        (json!({"chunk_length_s": -1}), "expected seconds"),
        (json!({"chunk_length_s": 1, "stride_length_s": [1]}), "[left, right]"),
    ] {
        let (status, answer) = server.post_json(path, &json!({"inputs": wav, "parameters": parameters}));
        assert_eq!(status, 422, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(expected), "{answer}");
    }
    let (status, answer) = server.post_text(path, "image/png", vec![1]);
    assert_eq!(status, 415, "{answer}");
    server.assert_well();
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

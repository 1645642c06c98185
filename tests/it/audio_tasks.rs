//! Sounds: classes and speech of the shared models against the transformers pipelines.

use crate::server::{Server, copy_folder, root, shared_models, store_of};
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
    let path = root().join("tests/golden/speech.json");
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

/// Answers by the documented rules, see `tools/make_voice_golden.py`.
fn voice_golden() -> Value {
    serde_json::from_slice(&std::fs::read(root().join("tests/golden/voice.json")).unwrap()).unwrap()
}

/// The sound `bursts` of the golden file as a WAV file of floats, the same in each channel.
fn bursts(rate: u32, channels: u16) -> Vec<u8> {
    const BURSTS: [(f64, f64, f64); 6] =
        [(0.25, 0.9, 0.5), (1.0, 1.5, 0.4), (1.9, 2.0, 0.5), (2.3, 2.7, 0.45), (2.7, 3.0, 0.245), (3.1, 3.9, 0.5)];
    let count = (4.1 * f64::from(rate)).round() as usize;
    let sample = |place: usize| {
        let t = place as f64 / f64::from(rate);
        let wave = |hertz: f64| (std::f64::consts::TAU * hertz * t).sin();
        let burst = BURSTS.iter().find(|(start, end, _)| (*start..*end).contains(&t));
        (burst.map_or(0.0, |burst| burst.2) * (0.75 * wave(300.0) + 0.25 * wave(600.0))) as f32
    };
    float_wav(rate, channels, (0..count).map(sample))
}

fn float_wav(rate: u32, channels: u16, samples: impl Iterator<Item = f32>) -> Vec<u8> {
    let data: Vec<u8> =
        samples.flat_map(|sample| std::iter::repeat_n(sample.to_le_bytes(), channels.into())).flatten().collect();
    let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x03\0".to_vec();
    bytes.extend(channels.to_le_bytes());
    bytes.extend([rate, rate * 4 * u32::from(channels)].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([4 * channels, 32].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

/// A server with the fixture `voice`, at 8 kHz where the golden file has it so.
fn voice_server(rate: u64, env: &[(&str, &str)]) -> Server {
    let store = store_of(&["voice"]);
    if rate == 8_000 {
        let manifest = "[pipeline]\ntask = \"voice-activity-detection\"\n[pipeline.audio]\nsampling_rate = 8000\n";
        std::fs::write(store.path().join("voice/model.toml"), manifest).unwrap();
    }
    Server::on(store, env)
}

/// Compares the segments of an answer with a case, edges within `edge` seconds, and gives the largest difference of scores.
#[track_caller]
fn check_segments(got: &Value, case: &Value, edge: f64) -> f64 {
    let (got, expected) = (got["segments"].as_array().unwrap(), case["segments"].as_array().unwrap());
    assert_eq!(got.len(), expected.len(), "{got:?}, not {expected:?}");
    let rate = case["rate"].as_f64().unwrap();
    let mut largest = 0.0f64;
    for (got, expected) in got.iter().zip(expected) {
        for (place, name) in ["start", "end"].into_iter().enumerate() {
            let off = (got[name].as_f64().unwrap() - expected[place].as_f64().unwrap() / rate).abs();
            assert!(off <= edge, "{name} of {got} is off by {off} s, expected {expected}");
        }
        largest = largest.max((got["score"].as_f64().unwrap() - expected[2].as_f64().unwrap()).abs());
    }
    largest
}

/// Largest difference of two lists of equal length.
#[track_caller]
fn largest_apart(got: &Value, expected: &Value) -> f64 {
    let (got, expected) = (got.as_array().unwrap(), expected.as_array().unwrap());
    assert_eq!(got.len(), expected.len());
    let apart = |(a, b): (&Value, &Value)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs();
    got.iter().zip(expected).map(apart).fold(0.0, f64::max)
}

const VOICE: &str = "/v1/models/voice/predict";

#[test]
fn voices_are_found_as_the_documented_rules_say() {
    let golden = voice_golden();
    for rate in [16_000, 8_000] {
        let server = voice_server(rate, &[]);
        assert_eq!(server.get_json("/v1/models/voice")["task"], "voice-activity-detection");
        let wav = base64(&bursts(rate as u32, 1));
        let of_rate = |case: &&Value| case["model"] == "voice" && case["rate"] == rate;
        let cases: Vec<&Value> = golden["cases"].as_array().unwrap().iter().filter(of_rate).collect();
        assert!(!cases.is_empty());
        for case in cases {
            let mut parameters = case["parameters"].clone();
            parameters["return_probabilities"] = json!(!case["probabilities"].is_null());
            let (status, answer) = server.post_json(VOICE, &json!({"inputs": {"b64": wav}, "parameters": parameters}));
            assert_eq!(status, 200, "{answer}");
            let got = &answer["predictions"][0];
            let off = check_segments(got, case, 1e-9);
            assert!(off <= 1e-4, "{}: scores are off by {off}", case["parameters"]);
            if case["probabilities"].is_null() {
                assert!(got.get("probabilities").is_none() && got.get("window_ms").is_none());
            } else {
                let off = largest_apart(&got["probabilities"], &case["probabilities"]);
                println!("voice at {rate} Hz: largest difference {off:.7}");
                assert!(off <= 1e-4, "{off}");
                assert_eq!(got["window_ms"], 32.0);
            }
        }
    }
}

#[test]
fn voices_are_found_in_sounds_of_every_kind() {
    let golden = voice_golden();
    let server = voice_server(16_000, &[]);
    let case = &golden["cases"][0];
    let file = |name: &str| std::fs::read(root().join("tests/fixtures/sounds").join(name)).unwrap();
    for (name, media_type, bytes, apart) in [
        ("stereo", "audio/wav", bursts(16_000, 2), 1e-4),
        ("44.1 kHz", "audio/wav", bursts(44_100, 1), 0.05),
        ("44.1 kHz stereo", "audio/wav", bursts(44_100, 2), 0.05),
        ("FLAC", "audio/flac", file("bursts.flac"), 1e-3),
        ("OGG Vorbis", "audio/ogg", file("bursts.ogg"), 0.15),
        ("MP3", "audio/mpeg", file("bursts.mp3"), 0.15),
    ] {
        let (status, answer) = server.post_text(&format!("{VOICE}?return_probabilities=true"), media_type, bytes);
        assert_eq!(status, 200, "{name}: {answer}");
        let got = &answer["predictions"][0];
        check_segments(got, case, 0.033);
        let off = largest_apart(&got["probabilities"], &case["probabilities"]);
        println!("{name}: largest difference {off:.5}");
        assert!(off <= apart, "{name}: {off}");
    }
}

#[test]
fn the_shared_detector_finds_speech_as_the_reference_does() {
    let Some(shared) = shared_models() else { return };
    let name = "silero-vad";
    let (server, path) = (on(&shared, name, &[]), format!("/v1/models/{name}/predict"));
    assert_eq!(server.get_json(&format!("/v1/models/{name}"))["task"], "voice-activity-detection");
    let expected = expected(&shared, name);
    let golden = voice_golden();
    let mut largest = 0.0f64;
    for case in golden["cases"].as_array().unwrap().iter().filter(|case| case["model"] == name) {
        if case["rate"] != 16_000 {
            continue;
        }
        let file = case["sound"].as_str().unwrap();
        let mut parameters = case["parameters"].clone();
        parameters["return_probabilities"] = json!(true);
        let inputs = json!([{"b64": base64(&sound(&shared, file))}]);
        let (status, answer) = server.post_json(&path, &json!({"inputs": inputs, "parameters": parameters}));
        assert_eq!(status, 200, "{file}: {answer}");
        let got = &answer["predictions"][0];
        let off = check_segments(got, case, 1e-9);
        assert!(off <= 1e-4, "{file}: scores are off by {off}");
        if !file.contains("stereo") {
            largest = largest.max(largest_apart(&got["probabilities"], &expected["probabilities"]));
        }
    }
    println!("{name}: largest difference of a window {largest:.7}");
    assert!(largest <= 1e-4, "{largest}");
    // The same speech at other rates and in another form.
    for file in ["audio/speech_44k1.wav", "audio/speech_16k.flac"] {
        let (status, answer) = server.post_text(&path, content_type(file), sound(&shared, file));
        assert_eq!(status, 200, "{file}: {answer}");
        let case = golden["cases"].as_array().unwrap().iter().find(|case| case["model"] == name).unwrap();
        check_segments(&answer["predictions"][0], case, 0.065);
    }
    let store = tempfile::tempdir().unwrap();
    copy_folder(&shared.join("store").join(name), &store.path().join(name));
    std::fs::write(store.path().join(name).join("model.toml"), "[pipeline.audio]\nsampling_rate = 8000\n").unwrap();
    drop(server);
    let server = Server::on(store, &[]);
    let case = golden["cases"].as_array().unwrap().iter().find(|case| case["sound"] == "audio/speech_8k.wav").unwrap();
    let (status, answer) = server.post_text(&path, "audio/wav", sound(&shared, "audio/speech_8k.wav"));
    assert_eq!(status, 200, "{answer}");
    let off = check_segments(&answer["predictions"][0], case, 1e-9);
    assert!(off <= 1e-4, "{off}");
}

#[test]
fn a_voice_detector_takes_tensors_as_before() {
    let server = voice_server(16_000, &[]);
    let (samples, state) = (vec![0.25f32; 576], vec![0.5f32; 256]);
    let inputs = json!({
        "input": [samples],
        "state": {"dtype": "FP32", "shape": [2, 1, 128], "data": state},
        "sr": 16_000,
    });
    let (status, answer) = server.post_json(VOICE, &json!({"inputs": inputs}));
    assert_eq!(status, 200, "{answer}");
    let expected = 1.0 / (1.0 + (-10.0 * (0.5 * (0.5 + 0.25 * 3.4) - 0.5f64)).exp());
    assert!((answer["outputs"]["output"][0][0].as_f64().unwrap() - expected).abs() < 1e-5, "{answer}");
    let tensor = |name: &str, datatype: &str, shape: Value, data: Value| json!({"name": name, "datatype": datatype, "shape": shape, "data": data});
    let body = json!({"inputs": [
        tensor("input", "FP32", json!([1, 576]), json!(samples)),
        tensor("state", "FP32", json!([2, 1, 128]), json!(state)),
        tensor("sr", "INT64", json!([]), json!([16_000])),
    ]});
    let (status, answer) = server.post_json("/v2/models/voice/infer", &body);
    assert_eq!(status, 200, "{answer}");
    assert!((answer["outputs"][0]["data"][0].as_f64().unwrap() - expected).abs() < 1e-5, "{answer}");
    // The graph's own outputs of a sound: each window's, and what was remembered last.
    let (status, answer) = server.post_text(&format!("{VOICE}?raw=true"), "audio/wav", bursts(16_000, 1));
    assert_eq!(status, 200, "{answer}");
    let windows = 65_600usize.div_ceil(512);
    assert_eq!(answer["outputs"]["output"].as_array().unwrap().len(), windows);
    assert_eq!(answer["outputs"]["stateN"].as_array().unwrap().len(), 2);
    assert_eq!(answer["outputs"]["stateN"][0][0].as_array().unwrap().len(), 128);
}

#[test]
fn sounds_of_one_request_are_listened_to_apart() {
    let golden = voice_golden();
    let server = voice_server(16_000, &[]);
    let (whole, silent) = (base64(&bursts(16_000, 1)), base64(&float_wav(16_000, 1, (0..9_000).map(|_| 0.0))));
    let items = [&whole, &silent, &whole].map(|item| json!({"b64": item}));
    let (status, answer) = server.post_json(VOICE, &json!({"inputs": items}));
    assert_eq!(status, 200, "{answer}");
    let predictions = answer["predictions"].as_array().unwrap();
    check_segments(&predictions[0], &golden["cases"][0], 1e-9);
    assert_eq!(predictions[1], json!({"segments": []}));
    assert_eq!(predictions[0], predictions[2]);
    let items = [json!({"b64": whole}), json!({"b64": base64(b"junk")})];
    let (status, answer) = server.post_json(VOICE, &json!({"inputs": items, "parameters": {"on_error": "item"}}));
    assert_eq!(status, 200, "{answer}");
    check_segments(&answer["predictions"][0], &golden["cases"][0], 1e-9);
    assert!(answer["predictions"][1]["error"].as_str().unwrap().contains("inputs[1]: expected a WAV"), "{answer}");
    let (status, answer) = server.post_json(VOICE, &json!({"inputs": items}));
    assert_eq!(status, 422, "{answer}");
    let (status, answer) = server.post_text(&format!("{VOICE}?threshold=2"), "audio/wav", bursts(16_000, 1));
    assert_eq!(status, 422, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("expected a probability from 0 to 1"), "{answer}");
}

#[test]
fn long_sounds_are_refused_before_work_and_stopped_in_the_midst_of_it() {
    let server = voice_server(16_000, &[("ORTUS_LIMITS__MAX_AUDIO_SECONDS", "150")]);
    let long = |seconds: usize| float_wav(16_000, 1, (0..seconds * 16_000).map(|place| (place % 7) as f32 / 20.0));
    let (status, answer) = server.post_text(VOICE, "audio/wav", long(151));
    assert_eq!((status, answer["code"].as_str()), (413, Some("input_too_large")), "{answer}");
    // Four hours in 44 bytes.
    let mut claiming = long(1);
    claiming[40..44].copy_from_slice(&0x3fff_fff0u32.to_le_bytes());
    let (status, answer) = server.post_text(VOICE, "audio/wav", claiming);
    assert_eq!(status, 413, "{answer}");
    let runs = || server.get_json("/v1/models/voice/stats")["batch_size"]["count"].as_u64().unwrap();
    let (sound, windows, before) = (long(150), (150 * 16_000usize).div_ceil(512) as u64, runs());
    let (status, answer) = server.post_text(VOICE, "audio/wav", sound.clone());
    assert_eq!((status, runs() - before), (200, windows), "{answer}");
    // The first that is enough for some windows is not enough for all.
    let mut timeout_ms = 100;
    let made = loop {
        let before = runs();
        let (status, answer) =
            server.post_text(&format!("{VOICE}?timeout_ms={timeout_ms}"), "audio/wav", sound.clone());
        assert_eq!((status, answer["code"].as_str()), (504, Some("deadline_exceeded")), "{timeout_ms} ms: {answer}");
        match runs() - before {
            0 => timeout_ms += timeout_ms / 4,
            made => break made,
        }
    };
    assert!(made < windows);
    let after = runs();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(runs(), after, "runs go on behind the deadline");
    // Others are answered while one is listened to.
    let ((status, others), (long_status, ended)) = std::thread::scope(|scope| {
        let post = |sound: Vec<u8>| (server.post_text(VOICE, "audio/wav", sound).0, std::time::Instant::now());
        let listened = scope.spawn(move || post(sound));
        while runs() == after {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        (post(long(1)), listened.join().unwrap())
    });
    assert_eq!((status, long_status), (200, 200));
    assert!(others < ended, "a second of sound waited for all of the long one");
    server.assert_well();
}

#[test]
fn spectrograms_and_letters_are_read_as_the_pipelines_of_transformers_do() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/sound_models.json")).unwrap()).unwrap();
    let server = Server::with(&["spectrogram", "whisper", "letters"]);
    // The sound of `tools/make_sound_models.py`.
    let rising = |seconds: f64| {
        let turn = std::f64::consts::TAU;
        let sample = move |place: usize| {
            let t = place as f64 / 16_000.0;
            (0.4 * (turn * (200.0 + 450.0 * t) * t).sin() * (1.0 + 0.5 * (turn * 3.0 * t).sin())) as f32
        };
        float_wav(16_000, 1, (0..(seconds * 16_000.0) as usize).map(sample))
    };
    for model in golden["models"].as_array().unwrap() {
        let (name, task) = (model["model"].as_str().unwrap(), model["task"].as_str().unwrap());
        assert_eq!(server.get_json(&format!("/v1/models/{name}"))["task"], task);
        let mut largest = 0.0f64;
        for case in model["cases"].as_array().unwrap() {
            let wav = base64(&rising(case["seconds"].as_f64().unwrap()));
            let body = json!({"inputs": {"b64": wav}, "parameters": case["parameters"]});
            let (status, answer) = server.post_json(&format!("/v1/models/{name}/predict"), &body);
            assert_eq!(status, 200, "{name}: {answer}");
            let (got, expected) = (&answer["predictions"][0], &case["prediction"]);
            if task == "automatic-speech-recognition" {
                assert_eq!(got, expected, "{name} {}", case["parameters"]);
                continue;
            }
            let labels =
                |scores: &Value| scores.as_array().unwrap().iter().map(|one| one["label"].clone()).collect::<Vec<_>>();
            assert_eq!(labels(got), labels(expected), "{name} {}", case["parameters"]);
            largest = largest.max(difference(got, expected));
        }
        println!("{name}: largest difference {largest:.7}");
        assert!(largest <= golden["atol"].as_f64().unwrap(), "{name}: {largest}");
    }
}

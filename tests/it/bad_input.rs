//! Requests that must be refused: the status of the contract, a sentence that names the field, and a server that goes on.

use crate::server::{Server, copy_folder, fixture, root, store_of};
use serde_json::{Value, json};

/// Answers never show the inside: no path of the server, source line or panic.
#[track_caller]
fn assert_clean(server: &Server, answer: &Value) {
    let text = answer.to_string();
    for secret in
        [server.store.path().to_str().unwrap(), ".cc:", ".rs:", "panicked", "onnxruntime_src", "/home/", "/tmp/"]
    {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    assert!(text.len() < 4096, "{} bytes: {}", text.len(), &text[..200]);
}

#[track_caller]
fn check_v1(server: &Server, path: &str, body: &str, status: u16, words: &[&str]) {
    let (got, answer) = server.post_text(path, "application/json", body.as_bytes().to_vec());
    assert_eq!(got, status, "{body:.200}: {answer}");
    let detail = answer["detail"].as_str().unwrap_or_else(|| panic!("no detail in {answer}"));
    for word in words {
        assert!(detail.contains(word), "{body:.200}: '{word}' is not in: {detail}");
    }
    for member in ["type", "title", "status", "instance", "code", "request_id"] {
        assert!(answer.get(member).is_some(), "{member} is not in {answer}");
    }
    assert_clean(server, &answer);
}

#[track_caller]
fn check_v2(server: &Server, path: &str, body: &str, status: u16, words: &[&str]) {
    let (got, answer) = server.post_text(path, "application/json", body.as_bytes().to_vec());
    assert_eq!(got, status, "{body:.200}: {answer}");
    let error = answer["error"].as_str().unwrap_or_else(|| panic!("no error in {answer}"));
    for word in words {
        assert!(error.contains(word), "{body:.200}: '{word}' is not in: {error}");
    }
    assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
    assert_clean(server, &answer);
}

/// F18, F19, F20, F21, F58.
#[test]
fn the_native_api_names_the_field_and_what_was_expected() {
    let server = Server::with(&["multi", "alltypes", "fails", "scalar"]);
    let path = "/v1/models/multi/predict";
    let deep = format!("{{\"inputs\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_ignored = format!("{{\"parameters\": {}1{}, \"inputs\": {{}}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, status, words) in [
        (r#"{"inputs": {"x": [[1, 2]], "b": [1]}}"#, 422, &["x", "a", "b"][..]),
        (r#"{"inputs": {"a": [[1, 2]]}}"#, 422, &["b", "missing", "INT64"]),
        (r#"{"inputs": {"a": [[1, 2, 3]], "b": [1]}}"#, 422, &["a", "2", "3"]),
        (r#"{"inputs": {"a": [1, 2], "b": [1]}}"#, 422, &["a", "rank"]),
        (r#"{"inputs": {"a": [[1, 2], [3]], "b": [1]}}"#, 422, &["a"]),
        (r#"{"inputs": {"a": [["x", 2]], "b": [1]}}"#, 422, &["a", "FP32"]),
        (r#"{"inputs": {"a": [[null, 2]], "b": [1]}}"#, 422, &["a"]),
        (r#"{"inputs": {"a": [[1, 2]], "b": [1.5]}}"#, 422, &["b", "INT64", "1.5"]),
        (r#"{"inputs": {"a": [[1, 2]], "b": [9223372036854775808]}}"#, 422, &["b", "INT64"]),
        (r#"{"inputs": {"a": [[1e39, 2]], "b": [1]}}"#, 422, &["a", "FP32"]),
        (
            r#"{"inputs": {"a": {"dtype": "FP64", "shape": [1, 2], "data": [1, 2]}, "b": [1]}}"#,
            422,
            &["a", "FP32", "FP64"],
        ),
        (r#"{"inputs": {"a": {"dtype": "FP33", "shape": [1, 2], "data": [1, 2]}, "b": [1]}}"#, 422, &["FP33"]),
        (r#"{"inputs": {"a": {"dtype": "FP32", "shape": [-1, 2], "data": [1, 2]}, "b": [1]}}"#, 422, &["a", "-1"]),
        (r#"{"inputs": {"a": {"dtype": "FP32", "shape": [1.5, 2], "data": [1, 2]}, "b": [1]}}"#, 422, &["a"]),
        (
            r#"{"inputs": {"a": {"dtype": "FP32", "shape": [4294967296, 4294967296, 16], "data": [1]}, "b": [1]}}"#,
            413,
            &["a"],
        ),
        (
            r#"{"inputs": {"a": {"dtype": "FP32", "shape": [1, 2], "data": [1, 2, 3]}, "b": [1]}}"#,
            422,
            &["a", "2", "3"],
        ),
        (r#"{"inputs": {"a": [[1, 2]], "b": [1], "b": [2]}}"#, 400, &["b"]),
        (r#"{"input": {"a": [[1, 2]]}}"#, 400, &["input", "inputs"]),
        (r#"{"inputs": {"a": [[NaN, 2]], "b": [1]}}"#, 400, &[]),
        (r#"{"inputs": {"a": [[1, 2]], "b": [1]}} trailing"#, 400, &[]),
        (r#"{"inputs": {"a": [[1, 2"#, 400, &[]),
        ("", 400, &[]),
        ("null", 400, &[]),
        ("[]", 400, &[]),
        ("\u{feff}{}", 400, &[]),
        (&deep, 422, &["a", "b"]),
        (&deep_ignored, 400, &[]),
    ] {
        check_v1(&server, path, body, status, words);
    }
    let out_of_range = r#"{"inputs": {"in_uint8": [300]}}"#;
    check_v1(&server, "/v1/models/alltypes/predict", out_of_range, 422, &["in_uint8", "UINT8", "300"]);
    server.assert_well();
}

/// F18, F19, F20, F21, F58.
#[test]
fn v2_names_the_field_and_what_was_expected() {
    let server = Server::with(&["multi"]);
    let path = "/v2/models/multi/infer";
    let input = |name: &str, shape: &str, datatype: &str, data: &str| {
        format!(r#"{{"name": "{name}", "shape": {shape}, "datatype": "{datatype}", "data": {data}}}"#)
    };
    let body = |first: &str| format!(r#"{{"inputs": [{first}, {}]}}"#, input("b", "[1]", "INT64", "[1]"));
    let deep = format!("{{\"inputs\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, words) in [
        (body(&input("a", "[1, 3]", "FP32", "[1, 2, 3]")), &["a", "3"][..]),
        (body(&input("a", "[1, 2]", "FP64", "[1, 2]")), &["a", "FP32", "FP64"]),
        (body(&input("a", "[1, 2]", "FP32", "[1]")), &["a"]),
        (body(&input("a", "[-1, 2]", "FP32", "[1, 2]")), &["a", "-1"]),
        (body(&input("a", "[1e30, 2]", "FP32", "[1, 2]")), &["a"]),
        (body(&input("a", "[4294967296, 4294967296]", "FP32", "[1]")), &["a"]),
        (body(&input("z", "[1, 2]", "FP32", "[1, 2]")), &["z", "a"]),
        (r#"{"inputs": []}"#.to_owned(), &["a"]),
        (r#"{"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32"}]}"#.to_owned(), &["a", "data"]),
        (r#"{"inputs": 3}"#.to_owned(), &[]),
        ("{".to_owned(), &[]),
        (deep, &[]),
    ] {
        check_v2(&server, path, &body, 400, words);
    }
    check_v2(&server, "/v2/models/nope/infer", "{}", 404, &["nope"]);
    server.assert_well();
}

/// F55, F56.
#[test]
fn lengths_of_the_binary_part_must_be_true() {
    let server = Server::with(&["versions", "strings"]);
    let head = |size: &str| {
        format!(
            r#"{{"inputs": [{{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {{"binary_data_size": {size}}}}}]}}"#
        )
    };
    let send = |head: &str, header: &str, tail: &[u8]| {
        let body = [head.as_bytes(), tail].concat();
        let request = server.post("/v2/models/versions/infer").header("inference-header-content-length", header);
        let response = request.body(body).send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    let good = head("8");
    let length = good.len().to_string();
    let short = (good.len() - 1).to_string();
    for (head, header, tail) in [
        (head("8"), &*length, &[0u8; 7][..]),
        (head("8"), &*length, &[0; 9]),
        (head("4"), &*length, &[0; 4]),
        (head("-1"), &*(good.len() + 1).to_string(), &[0; 8]),
        (head("8"), "99999999999", &[0; 8]),
        (head("8"), "-1", &[0; 8]),
        (head("8"), "x", &[0; 8]),
        (head("8"), &*short, &[0; 8]),
    ] {
        let (status, answer) = send(&head, header, tail);
        assert_eq!(status, 400, "{head} {header}: {answer}");
        assert!(answer["error"].is_string());
        assert_clean(&server, &answer);
    }
    let strings = server.get_json("/v2/models/strings");
    let name = strings["inputs"][0]["name"].as_str().unwrap();
    let head = format!(
        r#"{{"inputs": [{{"name": "{name}", "shape": [1], "datatype": "BYTES", "parameters": {{"binary_data_size": 6}}}}]}}"#
    );
    for tail in [&[255u8, 255, 255, 255, 1, 2][..], &[2, 0, 0, 0, 0xff, 0xfe], &[1, 0, 0, 0, 65, 66]] {
        let body = [head.as_bytes(), tail].concat();
        let request =
            server.post("/v2/models/strings/infer").header("inference-header-content-length", head.len().to_string());
        assert_eq!(request.body(body).send().unwrap().status(), 400);
    }
    server.assert_well();
}

/// F30, F32.
#[test]
fn pictures_that_are_not_good_are_refused() {
    let store = store_of(&["mlp"]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let server = Server::on(store, &[]);
    let png = std::fs::read(root().join("models/digits/samples/seven.png")).unwrap();
    let path = "/v1/models/digits/predict";
    let bomb = |width: u32, height: u32| {
        // A true head with an absurd size; the pixels would not fit any memory.
        let mut bytes = png[..33].to_vec();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let mut crc = !0u32;
        for byte in &bytes[12..29] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (0u32.wrapping_sub(crc & 1)));
            }
        }
        bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
        bytes.extend_from_slice(&png[33..]);
        bytes
    };
    for (body, statuses, words) in [
        (png[..png.len() / 2].to_vec(), &[422][..], "inputs[0]"),
        (b"not a picture at all".to_vec(), &[415, 422], ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), &[415, 422], ""),
        (Vec::new(), &[400, 422], ""),
        (bomb(50_000, 50_000), &[413], "50000"),
        (bomb(65_535, 65_535), &[413], "65535"),
        (bomb(0, 0), &[422], ""),
    ] {
        let (status, answer) = server.post_text(path, "image/png", body);
        assert!(statuses.contains(&status), "{status} is not in {statuses:?}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains(words), "{answer}");
        assert_clean(&server, &answer);
    }
    let (status, answer) = server.post_text(path, "application/json", br#"{"inputs": {"b64": "%%%"}}"#.to_vec());
    assert_eq!(status, 422, "{answer}");
    let (status, answer) =
        server.post_text(path, "application/json", br#"{"inputs": [], "parameters": {"top_k": "x"}}"#.to_vec());
    assert!([400, 422].contains(&status), "{answer}");
    let (status, _) = server.post_text(path, "application/x-unknown", png.clone());
    assert_eq!(status, 415);
    // A picture for a model that takes tensors.
    let (status, answer) = server.post_text("/v1/models/mlp/predict", "image/png", png);
    assert!([415, 422].contains(&status), "{answer}");
    server.assert_well();
}

/// F30.
#[test]
fn files_that_claim_more_than_they_are_take_no_memory() {
    let store = store_of(&["voice"]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let server = Server::on(store, &[]);
    let picture = |name: &str| std::fs::read(root().join("tests/fixtures/images").join(name)).unwrap();
    let sound = |name: &str| std::fs::read(root().join("tests/fixtures/sounds").join(name)).unwrap();
    let with = |mut file: Vec<u8>, at: usize, bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let jpeg = picture("rgb.jpg");
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap() + 5;
    let mut wav = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0\x80\x3e\0\0\0\xfa\0\0\x04\0\x10\0data".to_vec();
    wav.extend(400u32.to_le_bytes());
    wav.extend([1; 400]);
    let (digits, voice) = ("/v1/models/digits/predict", "/v1/models/voice/predict");
    let files = [
        // 65,535 pixels each way.
        (digits, "image/gif", with(picture("rgb.gif"), 6, &[255; 4]), 413),
        (digits, "image/bmp", with(picture("rgb.bmp"), 18, &[255, 255, 0, 0, 255, 255, 0, 0]), 413),
        (digits, "image/jpeg", with(jpeg, frame, &[255; 4]), 413),
        // 2^32 - 2 bytes of samples; 65,535 channels; 4 GHz; 2^36 samples.
        (voice, "audio/wav", with(wav.clone(), 40, &[0xfe, 255, 255, 255]), 413),
        (voice, "audio/wav", with(wav.clone(), 22, &[255, 255]), 422),
        (voice, "audio/wav", with(wav.clone(), 24, &[255; 4]), 422),
        (voice, "audio/flac", with(with(sound("tone.flac"), 21, &[0xff]), 22, &[255; 4]), 413),
    ];
    // Both models have worked before.
    assert_eq!(server.post_text(voice, "audio/wav", wav).0, 200);
    assert_eq!(server.post_text(digits, "image/png", picture("rgb.png")).0, 200);
    let before = server.peak_memory_mb();
    for (place, (path, media_type, file, expected)) in files.into_iter().enumerate() {
        let (status, answer) = server.post_text(path, media_type, file);
        assert_eq!(status, expected, "file {place}, {media_type}: {answer}");
        assert_clean(&server, &answer);
    }
    let grown = server.peak_memory_mb() - before;
    assert!(grown < 16, "{grown} MB");
    // Twenty minutes of frames without a length: ten of them are decoded.
    let mp3 = sound("tone.mp3");
    let second = mp3.windows(2).skip(2).position(|pair| pair == [0xff, 0xf3]).unwrap() + 2;
    let (status, answer) = server.post_text(voice, "audio/mpeg", mp3[second..].repeat(2_200));
    assert_eq!(status, 413, "{answer}");
    server.assert_well();
}

#[test]
fn one_bad_item_of_a_list_is_named() {
    let store = tempfile::tempdir().unwrap();
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let server = Server::on(store, &[]);
    use base64::Engine;
    let encode = |bytes: &[u8]| json!({"b64": base64::engine::general_purpose::STANDARD.encode(bytes)});
    let png = std::fs::read(root().join("models/digits/samples/seven.png")).unwrap();
    let body = json!({"inputs": [encode(&png), encode(b"junk"), encode(&png)]});
    let (status, answer) = server.post_json("/v1/models/digits/predict", &body);
    assert_eq!(status, 422, "{answer}");
    assert_eq!(answer["errors"][0]["field"], "inputs[1]", "{answer}");
}

/// F05.
#[test]
fn names_that_are_paths_reach_nothing() {
    let server = Server::with(&["mlp"]);
    for name in [
        "..",
        "%2e%2e",
        "..%2f..%2fetc",
        "a%2fb",
        "a%5cb",
        "a%00",
        "a%0ab",
        "%c0%ae%c0%ae",
        "-x",
        ".hidden",
        &"x".repeat(5000),
    ] {
        for path in [format!("/v1/models/{name}"), format!("/v2/models/{name}")] {
            let status = raw_status(&server, "GET", &path);
            assert!([400, 404, 414].contains(&status), "{path:.80}: {status}");
        }
        let status = raw_status(&server, "POST", &format!("/v2/repository/models/{name}/load"));
        assert!([400, 404, 414].contains(&status), "{name:.80}: {status}");
    }
    server.assert_well();
}

/// The status of a request whose path no client library has tidied up.
fn raw_status(server: &Server, method: &str, path: &str) -> u16 {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let answer = crate::server::raw(server.address, request.as_bytes());
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn a_run_that_fails_on_its_input_is_the_inputs_error() {
    let server = Server::with(&["fails"]);
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/fails.json")).unwrap()).unwrap();
    let case = golden["cases"].as_array().unwrap().iter().find(|case| case["fails"] == true).unwrap();
    let (status, answer) = server.post_json("/v1/models/fails/predict", &json!({"inputs": case["inputs"]}));
    assert_eq!(status, 422, "{answer}");
    assert_clean(&server, &answer);
    server.assert_well();
}

/// F01, F33.
#[test]
fn hostile_model_files_fail_with_a_reason_and_nothing_else() {
    let store = store_of(&["mlp"]);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(fixture("hostile")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            let name = entry.file_name().into_string().unwrap();
            copy_folder(&entry.path(), &store.path().join(&name));
            names.push(name);
        }
    }
    std::fs::copy(fixture("hostile/secret"), store.path().join("secret")).unwrap();
    assert!(names.len() >= 15, "{names:?}");
    let server = Server::on(store, &[crate::trial_load::TRIALS]);
    for name in names {
        let info = server.get_json(&format!("/v1/models/{name}"));
        assert_eq!(info["state"], "failed", "{name}");
        let reason = info["last_error"].as_str().unwrap();
        assert!(!reason.is_empty());
        if name.starts_with("ext-") {
            assert!(reason.contains("external data"), "{name}: {reason}");
        }
        assert_clean(&server, &json!(reason));
        let (status, _) = server.post_json(&format!("/v1/models/{name}/load"), &json!({}));
        assert_eq!(status, 422, "{name}");
    }
    assert_eq!(server.get_json("/v1/models/mlp")["state"], "ready");
    server.assert_well();
}

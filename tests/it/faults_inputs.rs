//! Attacks by what a request or a model file says: tensors, JSON, texts, pictures, graphs.

use crate::attack::{Answer, Attacked, ask, good, operations};
use crate::grpc::make_key;
use crate::server::{Server, command, copy_folder, root, store_of};
use crate::stats::Metrics;
use reqwest::Method;
use serde_json::{Value, json};
use std::io::Write;

const PREDICT: &str = "/v1/models/mlp/predict";
const INFER: &str = "/v2/models/mlp/infer";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A refusal of one of these statuses, in the form that its route has.
#[track_caller]
fn refused(server: &Attacked, path: &str, body: &str, statuses: &[u16]) -> Answer {
    let answer = ask(server, &Method::POST, path, &JSON, body);
    assert!(statuses.contains(&answer.status), "{path} {body:.200}: {} {:.300}", answer.status, answer.text);
    answer.assert_error(path, server.store.path());
    answer
}

/// F08.
#[test]
fn a_bad_item_spoils_no_run_of_others() {
    let settings = [("ORTUS_BATCH__TIMEOUT_MS", "20"), ("ORTUS_BATCH__INSTANCES", "1")];
    let mut server = Attacked::with(&["fails"], &settings);
    for wave in 0..25i64 {
        std::thread::scope(|scope| {
            for client in 0..10i64 {
                let server = &server;
                scope.spawn(move || {
                    let is_bad = client == wave % 10;
                    let index = if is_bad { 9 } else { (wave + client) % 4 };
                    let (status, answer) =
                        server.post_json("/v1/models/fails/predict", &json!({"inputs": {"index": [index]}}));
                    if is_bad {
                        assert_eq!(status, 422, "{answer}");
                    } else {
                        assert_eq!((status, &answer["outputs"]["y"]), (200, &json!([10.0 + index as f64])), "{answer}");
                    }
                });
            }
        });
    }
    server.assert_unharmed(32);
}

/// F08.
#[test]
fn who_spoils_runs_of_others_again_and_again_shares_none_with_them() {
    let store = store_of(&["fails"]);
    let (bad, mate) = (make_key(store.path(), "infer", &[]), make_key(store.path(), "infer", &[]));
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = command();
    command.stderr(log.reopen().unwrap());
    let settings = [("ORTUS_BATCH__TIMEOUT_MS", "20"), ("ORTUS_BATCH__INSTANCES", "1")];
    let server = Server::launch_by(command, store, &settings);
    server.wait_ready();
    let predict = |key: &str, index: i64| {
        let request = server.post("/v1/models/fails/predict").bearer_auth(key);
        request.json(&json!({"inputs": {"index": [index]}})).send().unwrap().status().as_u16()
    };
    let infer = |key: &str, index: i64| {
        let body = json!({"inputs": [{"name": "index", "shape": [1], "datatype": "INT64", "data": [index]}]});
        server.post("/v2/models/fails/infer").bearer_auth(key).json(&body).send().unwrap().status().as_u16()
    };
    let wave = |count: usize| {
        let (bad, mate, predict, infer) = (&bad, &mate, &predict, &infer);
        std::thread::scope(|scope| {
            let spoils = scope.spawn(move || if count.is_multiple_of(2) { predict(bad, 9) } else { infer(bad, 9) });
            let mates = [0, 1, 2, 3].map(|index| scope.spawn(move || predict(mate, index)));
            assert!(matches!(spoils.join().unwrap(), 400 | 422));
            assert!(mates.into_iter().all(|mate| mate.join().unwrap() == 200));
        });
    };
    let counts = || {
        let metrics = Metrics::by(&server, &mate);
        let of = |name| metrics.sum(name, &[("model", "fails")]);
        (of("ortus_batches_spoiled_total"), of("ortus_senders_set_apart_total"))
    };
    let mut waves = 0;
    while counts().1 == 0 {
        wave(waves);
        waves += 1;
        assert!(waves < 500, "{:?}", counts());
    }
    for count in 0..20 {
        wave(count);
    }
    // What it sends is answered as before, and nobody shares a run with it.
    assert_eq!((predict(&bad, 2), infer(&bad, 2)), (200, 200));
    assert_eq!(counts(), (3, 1), "{waves} waves");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let id = bad.split('_').nth(1).unwrap();
    assert_eq!(text.matches(&format!("key {id} sends inputs again and again")).count(), 1, "{text}");
}

/// F18, F19, F20, F21.
#[test]
fn tensors_that_lie_about_themselves_are_refused() {
    let mut server = Attacked::with(&["multi"], &[]);
    let tensor = |shape: &str, kind: &str, data: &str| {
        format!(r#"{{"name": "a", "shape": {shape}, "datatype": "{kind}", "data": {data}}}"#)
    };
    let good = tensor("[1, 2]", "FP32", "[1, 2]");
    let b = r#"{"name": "b", "shape": [1], "datatype": "INT64", "data": [1]}"#;
    let deep: String = std::iter::repeat_n("1", 40).collect::<Vec<_>>().join(", ");
    for shape in [
        "[16, 1152921504606846978]",
        "[4, 1152921504606846978]",
        "[9223372036854775807, 9223372036854775807]",
        "[18446744073709551615]",
        "[18446744073709551616]",
        "[4294967296, 4294967296, 4294967296]",
        "[2147483648, 2]",
        "[1, 1000000000000000000000000000000]",
        "[1e30]",
        "[0, 2]",
        "[-1, 2]",
        "[1, -9223372036854775808]",
        "[1.5, 2]",
        "[\"1\", 2]",
        "[null, 2]",
        "[[1], 2]",
        "[]",
        "[2]",
        "[1, 1, 2]",
        "{}",
        "null",
        "\"[1, 2]\"",
        &format!("[{deep}]"),
    ] {
        refused(
            &server,
            "/v2/models/multi/infer",
            &format!(r#"{{"inputs": [{}, {b}]}}"#, tensor(shape, "FP32", "[1, 2]")),
            &[400],
        );
        let native =
            format!(r#"{{"inputs": {{"a": {{"dtype": "FP32", "shape": {shape}, "data": [1, 2]}}, "b": [1]}}}}"#);
        refused(&server, "/v1/models/multi/predict", &native, &[400, 413, 422]);
    }
    for (kind, data) in [
        ("FP64", "[1, 2]"),
        ("FP33", "[1, 2]"),
        ("", "[1, 2]"),
        ("BYTES", "[\"a\", \"b\"]"),
        ("FP32", "[\"a\", \"b\"]"),
        ("FP32", "[true, false]"),
        ("FP32", "[1e39, 1]"),
        ("FP32", "[1]"),
        ("FP32", "[1, 2, 3]"),
        ("FP32", "[[1, 2], [3]]"),
        ("FP32", "[{}, 1]"),
        ("FP32", "\"AAAA\""),
        ("FP32", "null"),
    ] {
        refused(
            &server,
            "/v2/models/multi/infer",
            &format!(r#"{{"inputs": [{}, {b}]}}"#, tensor("[1, 2]", kind, data)),
            &[400],
        );
    }
    for body in [
        format!(r#"{{"inputs": [{good}]}}"#),
        format!(r#"{{"inputs": [{good}, {good}, {b}]}}"#),
        format!(r#"{{"inputs": [{good}, {b}, {{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}}]}}"#),
        format!(r#"{{"inputs": [{good}, {b}], "outputs": [{{"name": "nope"}}]}}"#),
        format!(r#"{{"inputs": [{good}, {b}], "outputs": [{{"name": "sum"}}, {{"name": "sum"}}]}}"#),
        format!(r#"{{"inputs": [{good}, {b}], "outputs": [{{}}]}}"#),
        format!(r#"{{"inputs": [{good}, {b}], "outputs": 1}}"#),
        format!(r#"{{"inputs": [{good}, {}]}}"#, b.replace("[1]}", "[9223372036854775808]}")),
        format!(r#"{{"inputs": [{good}, {}]}}"#, b.replace("[1]}", "[1.5]}")),
        r#"{"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}"#.to_owned(),
        r#"{"inputs": [1, 2]}"#.to_owned(),
        r#"{"outputs": []}"#.to_owned(),
    ] {
        refused(&server, "/v2/models/multi/infer", &body, &[400]);
    }
    server.assert_unharmed(32);
}

/// F22.
#[test]
fn a_small_request_is_answered_alike_after_huge_and_failing_ones() {
    let mut server = Attacked::with(&["fails"], &[]);
    let huge = json!({"inputs": vec![vec![0.25; 32]; 20_000]});
    for _ in 0..2 {
        assert_eq!(server.post_json(PREDICT, &huge).0, 200);
        assert_eq!(server.post_json(PREDICT, &json!({"inputs": vec![vec![0.25; 31]; 20_000]})).0, 422);
        assert_eq!(server.post_json("/v1/models/fails/predict", &json!({"inputs": {"index": vec![9; 50_000]}})).0, 422);
    }
    // The answer is compared, number by number, with the one from before.
    server.assert_unharmed(96);
}

/// F23.
#[test]
fn depth_is_bounded_on_every_route_that_takes_a_body() {
    let mut server = Attacked::with(&[], &[]);
    let lists = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let objects = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    let open = "[".repeat(500_000);
    let (mut bounded, mut unread) = (0, Vec::new());
    for (method, path) in operations(&server, "mlp") {
        if method != Method::POST {
            continue;
        }
        for body in [
            lists(100_000),
            format!("{{\"inputs\": {}, \"outputs\": {0}}}", lists(100_000)),
            format!("{{\"ignored\": {}, \"parameters\": {}, \"inputs\": []}}", lists(100_000), objects),
            objects.clone(),
            open.clone(),
        ] {
            let answer = ask(&server, &method, &path, &JSON, &body);
            if answer.status < 300 {
                unread.push(path.clone());
                continue;
            }
            assert!(
                [400, 404, 409, 413, 415, 422].contains(&answer.status) || answer.says_it_is_not_there(&path),
                "{path}: {} {:.300}",
                answer.status,
                answer.text
            );
            answer.assert_error(&path, server.store.path());
            bounded += 1;
        }
        if path.ends_with("/unload") {
            assert_eq!(server.post_json("/v1/models/mlp/load", &json!({})).0, 200);
        }
    }
    assert!(bounded > 60, "{bounded}; not read: {unread:?}");
    // Some actions take no body and look at none.
    unread.retain(|path| {
        !["/load", "/unload", "/cleanup", "/warmup", "/index", "/profile"].iter().any(|end| path.ends_with(end))
    });
    assert!(unread.is_empty(), "{unread:?}");
    server.assert_unharmed(32);
}

/// F54.
#[test]
fn numbers_that_are_none_are_words_and_all_json_is_strict() {
    let mut server = Attacked::with(&["nonfinite"], &[]);
    for word in ["NaN", "nan", "Infinity", "-Infinity", "inf", "+1", "01", "1.", ".5", "0x10", "1e", "1_000", "--1"] {
        refused(&server, PREDICT, &format!("{{\"inputs\": {{\"x\": [[{word}]]}}}}"), &[400]);
        let body = format!(r#"{{"inputs": [{{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [{word}]}}]}}"#);
        refused(&server, INFER, &body, &[400]);
    }
    for word in ["1e999", "-1e999", "1e39"] {
        refused(&server, "/v1/models/nonfinite/predict", &format!("{{\"inputs\": {{\"x\": [{word}]}}}}"), &[400, 422]);
    }
    // Read by a parser that knows no bare words.
    let (status, answer) = server.post_json("/v1/models/nonfinite/predict", &json!({"inputs": {"x": [-1.0, 0.0]}}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        (&answer["outputs"]["log"], &answer["outputs"]["inverse"][1]),
        (&json!(["NaN", "-Infinity"]), &json!("Infinity"))
    );
    let body = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [-1.0]}]});
    let answer = ask(&server, &Method::POST, "/v2/models/nonfinite/infer", &JSON, &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(serde_json::from_str::<Value>(&answer.text).is_ok(), "{}", answer.text);
    server.assert_unharmed(32);
}

/// F57.
#[test]
fn a_hundred_thousand_of_anything_is_refused_in_few_words() {
    let mut server = Attacked::with(&[], &[]);
    let input = r#"{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}"#;
    let many = |text: &str| std::iter::repeat_n(text, 100_000).collect::<Vec<_>>().join(",");
    let keys = |value: &str| (0..100_000).map(|index| format!("\"k{index}\":{value}")).collect::<Vec<_>>().join(",");
    refused(&server, INFER, &format!("{{\"inputs\": [{}]}}", many(input)), &[400, 413]);
    refused(
        &server,
        INFER,
        &format!("{{\"inputs\": [{input}], \"outputs\": [{}]}}", many("{\"name\": \"y\"}")),
        &[400, 413],
    );
    refused(&server, INFER, &format!("{{\"inputs\": [{input}], \"parameters\": {{{}}}}}", keys("1")), &[400, 413]);
    refused(&server, INFER, &format!("{{\"id\": \"{}\", \"inputs\": [{input}]}}", "i".repeat(1 << 20)), &[400, 413]);
    refused(&server, PREDICT, &format!("{{\"inputs\": {{{}}}}}", keys("[1]")), &[400, 413, 422]);
    refused(&server, PREDICT, &format!("{{{}}}", keys("1")), &[400, 413, 422]);
    refused(&server, PREDICT, &format!("{{\"inputs\": [{}]}}", many("[1]")), &[400, 413, 422]);
    server.assert_unharmed(96);
}

/// F58.
#[test]
fn bodies_that_are_almost_json_are_refused() {
    let mut server = Attacked::with(&[], &[]);
    let tensor = r#"{"name": "x", "shape": [1, 32], "datatype": "FP32", "data": [1]}"#;
    let native = good().to_string();
    let protocol = format!("{{\"inputs\": [{tensor}]}}");
    for (path, right) in [(PREDICT, &native), (INFER, &protocol)] {
        for body in [
            String::new(),
            " ".to_owned(),
            "null".to_owned(),
            "true".to_owned(),
            "[]".to_owned(),
            "\"\"".to_owned(),
            "{}".to_owned(),
            format!("\u{feff}{right}"),
            format!("{right} {right}"),
            format!("{right}]"),
            format!("{right}\0"),
            format!("//\n{right}"),
            right.replace('"', "'"),
            right.replacen('{', "{\"inputs\": [], ", 1),
            right[..right.len() - 1].to_owned(),
        ] {
            refused(&server, path, &body, &[400, 422]);
        }
        let wide: Vec<u8> = right.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let broken = [&right.as_bytes()[..2], &[0xff, 0xfe], &right.as_bytes()[2..]].concat();
        for body in [wide, broken] {
            let (status, answer) = server.post_text(path, "application/json", body);
            assert_eq!(status, 400, "{path}: {answer}");
        }
    }
    for doubled in ["name", "shape", "datatype", "data"] {
        let value = if doubled == "data" || doubled == "shape" { "[1]" } else { "\"x\"" };
        let body = format!("{{\"inputs\": [{}]}}", tensor.replacen('{', &format!("{{\"{doubled}\": {value}, "), 1));
        refused(&server, INFER, &body, &[400]);
    }
    server.assert_unharmed(32);
}

fn digits() -> tempfile::TempDir {
    let store = store_of(&[]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    store
}

fn picture(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/images").join(name)).unwrap()
}

/// A PNG of one bit a pixel, all of it there.
fn whole_png(side: u32) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        [&u32::try_from(data.len()).unwrap().to_be_bytes(), kind, data, &crc.sum().to_be_bytes()].concat()
    };
    let head = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[1, 0, 0, 0, 0]].concat();
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    // A byte that names the filter, then the row.
    packed.write_all(&vec![0; (1 + side as usize / 8) * side as usize]).unwrap();
    [
        &b"\x89PNG\r\n\x1a\n"[..],
        &chunk(b"IHDR", &head),
        &chunk(b"IDAT", &packed.finish().unwrap()),
        &chunk(b"IEND", &[]),
    ]
    .concat()
}

/// F30, F31, F32.
#[test]
fn pictures_are_judged_by_their_heads_and_come_back_as_no_page() {
    let mut server = Attacked::on(digits(), &[]);
    let path = "/v1/models/digits/predict";
    let webp = |width: [u8; 3], height: [u8; 3]| {
        [&b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &width, &height, b"VP8 \0\0\0\0"].concat()
    };
    // A directory of EXIF whose next one is itself.
    let looped = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x08\0\0\0";
    let jpeg = picture("rgb.jpg");
    let exif = [&jpeg[..2], &[0xff, 0xe1, 0, u8::try_from(looped.len() + 2).unwrap()], looped, &jpeg[2..]].concat();
    let mut animation = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    for _ in 0..20_000 {
        animation.extend_from_slice(b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0");
    }
    animation.push(0x3b);
    assert_eq!(server.post_text(path, "image/png", picture("rgb.png")).0, 200);
    let before = server.peak_memory_mb();
    let polyglot = [&b"<html><script>alert(1)</script>"[..], &picture("rgb.png")].concat();
    for (what, body, statuses) in [
        ("a whole picture of 144 million pixels", whole_png(12_000), &[413][..]),
        ("16 million by 16 million in WebP", webp([0xff; 3], [0xff; 3]), &[413, 422]),
        (
            "a TIFF of 65,535 by 65,535",
            b"II*\0\x08\0\0\0\x02\0\0\x01\x03\0\x01\0\0\0\xff\xff\0\0\x01\x01\x03\0\x01\0\0\0\xff\xff\0\0\0\0\0\0"
                .to_vec(),
            &[413, 415, 422],
        ),
        ("20,000 frames", animation, &[200]),
        ("EXIF in a circle", exif, &[200, 422]),
        ("half a JPEG", jpeg[..jpeg.len() / 2].to_vec(), &[200, 422]),
        ("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>".to_vec(), &[415, 422]),
        ("a page before a picture", polyglot, &[415, 422]),
        ("junk", (0..5000u32).map(|index| ((index * 7919) >> 3) as u8).collect(), &[415, 422]),
    ] {
        for media_type in ["image/png", "application/octet-stream", "text/html"] {
            let response = server.post(path).header("content-type", media_type).body(body.clone()).send().unwrap();
            let status = response.status().as_u16();
            let headers = response.headers().clone();
            let text = response.text().unwrap();
            let expected = statuses.contains(&status) || (media_type != "image/png" && status == 415);
            assert!(expected, "{what} as {media_type}: {status} {text:.300}");
            assert!(headers["content-type"].to_str().unwrap().contains("json"), "{what}: {headers:?}");
            assert_eq!(headers["x-content-type-options"], "nosniff", "{what}");
            assert!(!text.contains("<script") && !text.contains("onload"), "{what}: {text}");
        }
    }
    assert!(server.peak_memory_mb() < before + 48, "{before} MB, then {}", server.peak_memory_mb());
    server.assert_unharmed(48);
}

/// F33.
#[test]
fn files_that_are_no_models_fail_alone_with_a_reason() {
    let store = store_of(&[]);
    let graph = std::fs::read(crate::server::fixture("store/mlp/1/model.onnx")).unwrap();
    let files: [(&str, Vec<u8>); 8] = [
        ("pickle", b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x09touch /x\x85R.".to_vec()),
        ("torch", b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl".to_vec()),
        ("program", b"\x7fELF\x02\x01\x01\0".to_vec()),
        ("zeros", vec![0; 4096]),
        ("junk", (0..20_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        // A length of 2^63 in the first field, a group that never ends, and a graph with junk in its midst.
        ("length", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec()),
        ("groups", vec![0x0b; 100_000]),
        ("midst", [&graph[..graph.len() / 2], &[0xa5; 200], &graph[graph.len() / 2..]].concat()),
    ];
    for (name, bytes) in &files {
        std::fs::create_dir_all(store.path().join(name).join("1")).unwrap();
        std::fs::write(store.path().join(name).join("1/model.onnx"), bytes).unwrap();
    }
    let mut server = Attacked::on(store, &[crate::trial_load::TRIALS]);
    for (name, _) in &files {
        let info = server.get_json(&format!("/v1/models/{name}"));
        assert_eq!(info["state"], "failed", "{info}");
        assert!(!info["last_error"].as_str().unwrap().is_empty(), "{info}");
        refused(&server, &format!("/v1/models/{name}/load"), "{}", &[422]);
        refused(&server, &format!("/v1/models/{name}/predict"), &good().to_string(), &[503]);
    }
    server.assert_unharmed(32);
}

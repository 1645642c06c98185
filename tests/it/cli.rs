//! The commands that need no server, run as a user would.

use crate::server::{command, fixture, root, store_of};
use serde_json::Value;
use std::process::Output;

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A failure is one line on stderr that says what to do, and exit code other than 0.
#[track_caller]
fn assert_fails(output: &Output, expected: &str) {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("error: ") && text.contains(expected), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

#[test]
fn list_shows_the_store() {
    let store = store_of(&["mlp", "versions"]);
    let text = stdout(&run(&["list", "--models", store.path().to_str().unwrap()]));
    assert!(text.contains("mlp") && text.contains("versions"), "{text}");
    let json: Value =
        serde_json::from_str(&stdout(&run(&["list", "--json", "--models", store.path().to_str().unwrap()]))).unwrap();
    assert!(json.to_string().contains("mlp"));
}

#[test]
fn inspect_reads_a_model_or_a_file() {
    let models = root().join("models");
    let text = stdout(&run(&["inspect", "digits", "--models", models.to_str().unwrap()]));
    for expected in ["pixel_values", "logits", "image-classification"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let file = fixture("store/mlp/1/model.onnx");
    assert!(stdout(&run(&["inspect", file.to_str().unwrap()])).contains("FP32"));
    assert_fails(&run(&["inspect", "nothing-here", "--models", models.to_str().unwrap()]), "nothing-here");
}

#[test]
fn predict_answers_as_the_server_does() {
    let models = root().join("models");
    let picture = root().join("models/digits/samples/seven.png");
    let models = models.to_str().unwrap();
    let answer: Value =
        serde_json::from_str(&stdout(&run(&["predict", "digits", picture.to_str().unwrap(), "--models", models])))
            .unwrap();
    assert_eq!(answer["predictions"][0][0]["label"], "7");
    let output = run(&["predict", "digits", picture.to_str().unwrap(), "--top-k", "2", "--models", models]);
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["predictions"][0].as_array().unwrap().len(), 2);
    let store = store_of(&["versions"]);
    let store = store.path().to_str().unwrap();
    let output = run(&["predict", "versions", "--json", r#"{"inputs": [1, 2]}"#, "--models", store]);
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["outputs"]["y"], serde_json::json!([4.0, 5.0]));
}

#[test]
fn the_configuration_is_shown_with_its_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ortus.toml");
    std::fs::write(&file, "[server]\nmax_body_bytes = 1000\n").unwrap();
    let file = file.to_str().unwrap();
    let text = stdout(&run(&["config", "show", "--config", file]));
    let line = text.lines().find(|line| line.contains("max_body_bytes")).unwrap();
    assert!(line.contains("1000") && line.contains("ortus.toml"), "{line}");
    assert!(run(&["config", "check", "--config", file]).status.success());
    std::fs::write(file, "[server]\nmax_body_byte = 1000\n").unwrap();
    let output = run(&["config", "check", "--config", file]);
    assert_fails(&output, "max_body_bytes");
    assert!(String::from_utf8_lossy(&output.stderr).contains(":2"));
}

#[test]
fn a_public_address_without_keys_is_refused() {
    let store = store_of(&[]);
    let output = run(&["serve", "--listen", "0.0.0.0:0", "--models", store.path().to_str().unwrap()]);
    assert_fails(&output, "--insecure");
}

#[test]
fn a_missing_library_is_one_clear_error() {
    let store = store_of(&["mlp"]);
    let output = command()
        .args(["serve", "--listen", "127.0.0.1:0", "--models", store.path().to_str().unwrap()])
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so.1")
        .output()
        .unwrap();
    assert_fails(&output, "ORT_DYLIB_PATH");
}

#[test]
fn openapi_is_the_file_in_the_repository() {
    let text = stdout(&run(&["openapi"]));
    assert_eq!(
        text,
        std::fs::read_to_string(root().join("openapi.yaml")).unwrap(),
        "write it again: ortus openapi > openapi.yaml"
    );
}

#[test]
fn every_command_has_help_with_an_example() {
    for command_name in ["serve", "list", "inspect", "predict", "openapi", "config"] {
        let text = stdout(&run(&[command_name, "--help"]));
        assert!(text.contains("ortus"), "{text}");
    }
}

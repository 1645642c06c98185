//! Versions of a model: several at once, going back and forth, deleting, under continuous traffic and across restarts.

use crate::server::{PATIENCE, Server, copy_folder, fixture, store_of};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Sets the flag when dropped, also by a panic: clients that wait for it would hold the test for ever.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
use std::time::{Duration, Instant};

fn predict(server: &Server, path: &str) -> (u16, Value) {
    server.post_json(&format!("/v1/models/{path}"), &json!({"inputs": [0]}))
}

/// The version that answered, which every answer of the fixture `versions` also says in its output.
#[track_caller]
fn answered_by(server: &Server, path: &str) -> String {
    let (status, answer) = predict(server, path);
    assert_eq!(status, 200, "{answer}");
    let version = answer["version"].as_str().unwrap().to_owned();
    assert_eq!(answer["outputs"]["y"], json!([version.parse::<f64>().unwrap()]), "{answer}");
    version
}

fn delete(server: &Server, path: &str) -> (u16, Value) {
    let response = server.client.delete(server.url(path)).send().unwrap();
    (response.status().as_u16(), response.json().unwrap_or(Value::Null))
}

fn roll_back(server: &Server, body: &Value) -> (u16, Value) {
    server.post_json("/v1/models/versions/rollback", body)
}

#[test]
fn two_versions_answer_at_once_where_the_policy_says_so() {
    let store = store_of(&["versions"]);
    std::fs::write(store.path().join("versions/model.toml"), "version_policy = \"all\"\n").unwrap();
    let server = Server::on(store, &[]);
    std::thread::scope(|scope| {
        for version in ["1", "2", "3"] {
            let server = &server;
            scope.spawn(move || {
                for _ in 0..40 {
                    let path = format!("versions/versions/{version}/predict");
                    assert_eq!(answered_by(server, &path), version);
                }
            });
        }
    });
    assert_eq!(answered_by(&server, "versions/predict"), "3");
    // A chosen version serves alone, whatever the policy says, until the word is given back.
    let (status, info) = roll_back(&server, &json!({"version": "2"}));
    assert_eq!((status, &info["chosen_version"], &info["default_version"]), (200, &json!("2"), &json!("2")), "{info}");
    assert_eq!(answered_by(&server, "versions/predict"), "2");
    let (status, problem) = predict(&server, "versions/versions/3/predict");
    assert_eq!((status, &problem["code"]), (404, &json!("version_not_found")));
    assert!(problem["detail"].as_str().unwrap().contains("version 2 was chosen"), "{problem}");
    let (status, info) = roll_back(&server, &json!({"version": "latest"}));
    assert_eq!((status, &info["chosen_version"], &info["default_version"]), (200, &Value::Null, &json!("3")), "{info}");
    assert_eq!(answered_by(&server, "versions/versions/1/predict"), "1");
}

#[test]
fn a_rollback_holds_across_a_restart() {
    let mut server = Server::with(&["versions"]);
    let answer = server.post("/v1/models/versions/rollback").send().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answered_by(&server, "versions/predict"), "2");
    server.terminate();
    assert!(server.wait_exit().success());
    let store = server.take_store();
    let server = Server::on(store, &[]);
    assert_eq!(answered_by(&server, "versions/predict"), "2");
    assert_eq!(server.get_json("/v1/models/versions")["chosen_version"], "2");
    assert_eq!(roll_back(&server, &json!({})).0, 200);
    assert_eq!(answered_by(&server, "versions/predict"), "1");
    let (status, problem) = roll_back(&server, &json!({}));
    assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("no version below 1"), "{problem}");
    // A version that comes takes over.
    copy_folder(&fixture("store/versions/3"), &server.store.path().join("versions/4"));
    assert_eq!(server.post_json("/v1/models/versions/load", &json!({})).0, 200);
    let info = server.get_json("/v1/models/versions");
    assert_eq!((&info["default_version"], &info["chosen_version"]), (&json!("4"), &Value::Null));
}

#[test]
fn what_is_wrong_with_a_rollback_or_a_deletion_is_said() {
    let server = Server::with(&["versions"]);
    for (body, status, words) in [
        (json!({"version": 1}), 422, "must be a version's number in a string"),
        (json!({"version": "x"}), 422, "must be a version's number in a string"),
        (json!({"versions": "1"}), 400, "unknown key"),
        (json!({"version": "9"}), 404, "it has 1, 2, 3"),
    ] {
        let (found, problem) = roll_back(&server, &body);
        assert_eq!(found, status, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    let text = server.post("/v1/models/versions/rollback").body("1").header("content-type", "text/plain");
    assert_eq!(text.send().unwrap().status(), 415);
    assert_eq!(server.post_json("/v1/models/none/rollback", &json!({})).0, 404);
    for path in ["/v1/models/none", "/v1/models/versions/versions/9", "/v1/models/..%2fx", "/v1/models/none/versions/1"]
    {
        assert_eq!(delete(&server, path).0, 404, "{path}");
    }
    assert_eq!(answered_by(&server, "versions/predict"), "3");
    server.assert_well();
}

/// F17.
#[test]
fn a_version_that_does_not_load_leaves_what_serves() {
    let server = Server::with(&["versions"]);
    std::fs::write(server.store.path().join("versions/1/model.onnx"), b"broken").unwrap();
    let (status, problem) = roll_back(&server, &json!({"version": "1"}));
    assert_eq!((status, &problem["code"]), (422, &json!("load_failed")), "{problem}");
    assert_eq!(answered_by(&server, "versions/predict"), "3");
    assert_eq!(server.get_json("/v1/models/versions")["chosen_version"], Value::Null);
}

/// F09.
#[test]
fn going_back_and_forth_under_traffic_fails_no_request() {
    let server = Server::start(&["versions"], &[("ORTUS_STORE__POLL_INTERVAL_MS", "20")]);
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(["1", "2", "3"].contains(&answered_by(&server, "versions/predict").as_str()));
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = AtEnd(&stop);
        let until = Instant::now() + Duration::from_secs(3);
        let turns =
            [json!({}), json!({}), json!({"version": "3"}), json!({"version": "1"}), json!({"version": "latest"})];
        let mut done = 0;
        for body in turns.iter().cycle() {
            let (status, answer) = roll_back(&server, body);
            assert_eq!(status, 200, "{answer}");
            done += 1;
            if Instant::now() > until {
                break;
            }
        }
        drop(end);
        assert!(done >= turns.len(), "{done} turns");
    });
    assert!(answers.load(Ordering::Relaxed) > 50);
    server.assert_well();
}

/// F66.
#[test]
fn deleting_versions_under_traffic_fails_no_request_until_the_model_goes() {
    let server = Server::start(&["versions", "mlp"], &[("ORTUS_STORE__POLL_INTERVAL_MS", "20")]);
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    assert!(Instant::now() < deadline, "the model was not deleted");
                    let (status, answer) = predict(&server, "versions/predict");
                    match status {
                        200 => assert_eq!(answer["outputs"]["y"][0].as_f64().unwrap().to_string(), answer["version"]),
                        // Going, or gone: nothing else.
                        404 => break assert!(gone.load(Ordering::SeqCst), "{answer}"),
                        503 => assert!(gone.load(Ordering::SeqCst), "{answer}"),
                        _ => panic!("{status}: {answer}"),
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        for version in ["3", "1"] {
            let (status, answer) = delete(&server, &format!("/v1/models/versions/versions/{version}"));
            let expected = json!({"name": "versions", "deleted_versions": [version], "model_deleted": false});
            assert_eq!((status, answer), (200, expected));
            assert!(!server.store.path().join("versions").join(version).exists());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(answered_by(&server, "versions/predict"), "2");
        gone.store(true, Ordering::SeqCst);
        let (status, answer) = delete(&server, "/v1/models/versions");
        let expected = json!({"name": "versions", "deleted_versions": ["2"], "model_deleted": true});
        assert_eq!((status, answer), (200, expected));
    });
    assert!(!server.store.path().join("versions").exists());
    assert_eq!(std::fs::read_dir(server.store.path().join(".ortus/trash")).unwrap().count(), 0);
    assert_eq!(server.get("/v1/models/versions").status(), 404);
    let index = server.post_json("/v2/repository/index", &json!({})).1;
    assert_eq!(index.as_array().unwrap().len(), 1, "{index}");
    server.assert_well();
}

#[test]
fn a_deletion_lets_the_runs_in_flight_end() {
    // F66
    let server = Server::with(&["slow"]);
    let meta = server.get_json("/v2/models/slow");
    let mut inputs = serde_json::Map::new();
    for input in meta["inputs"].as_array().unwrap() {
        let shape: Vec<i64> =
            input["shape"].as_array().unwrap().iter().map(|dim| dim.as_i64().unwrap().max(1)).collect();
        let number = if input["datatype"] == "INT64" { json!(300_000) } else { json!(0.5) };
        let data = vec![number; shape.iter().product::<i64>() as usize];
        let value = json!({"dtype": input["datatype"], "shape": shape, "data": data});
        inputs.insert(input["name"].as_str().unwrap().to_owned(), value);
    }
    let body = json!({ "inputs": inputs });
    std::thread::scope(|scope| {
        let run = scope.spawn(|| server.post_json("/v1/models/slow/predict", &body).0);
        let deadline = Instant::now() + PATIENCE;
        while server.get_json("/v1/models/slow/stats")["in_flight"] == json!(0) && !run.is_finished() {
            assert!(Instant::now() < deadline);
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(delete(&server, "/v1/models/slow?wait=false").0, 202);
        assert_eq!(run.join().unwrap(), 200);
    });
    let deadline = Instant::now() + PATIENCE;
    while server.get("/v1/models/slow").status() != 404 {
        assert!(Instant::now() < deadline, "it was not deleted");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!server.store.path().join("slow").exists());
    server.assert_well();
}

#[test]
fn a_model_says_where_it_came_from_and_is_held_to_it() {
    // F69
    let store = store_of(&["mlp"]);
    let file = std::fs::read_dir(store.path().join("mlp/1")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::metadata(&file).unwrap().len();
    let path = file.file_name().unwrap().to_str().unwrap();
    // Of the right length; only the sum is wrong.
    let origin = json!({
        "source": "huggingface", "model_id": "some/one", "revision": "abc", "license": "mit", "tags": ["a"],
        "files": [{"path": path, "bytes": bytes, "sha256": "0".repeat(64)}],
    });
    std::fs::write(store.path().join("mlp/1/ortus-provenance.json"), origin.to_string()).unwrap();
    let server = Server::on(store, &[]);
    let info = server.get_json("/v1/models/mlp");
    assert_eq!((&info["state"], &info["metadata"]["license"]), (&json!("failed"), &json!("mit")), "{info}");
    assert!(info["last_error"].as_str().unwrap().contains("checksum: "), "{info}");
    let source = &info["source"];
    assert_eq!(
        (&source["type"], &source["model_id"], &source["revision"]),
        (&json!("huggingface"), &json!("some/one"), &json!("abc"))
    );
    assert_eq!((&source["sha256"], &source["files"]), (&json!("0".repeat(64)), &origin["files"]));
    assert_eq!(predict(&server, "mlp/predict").0, 503);
    assert!(!info.to_string().contains(server.store.path().to_str().unwrap()), "{info}");
}

#[test]
fn a_storm_of_changes_leaves_a_server_that_is_well() {
    // F09
    let server = Server::start(&["versions", "mlp"], &[("ORTUS_STORE__POLL_INTERVAL_MS", "5")]);
    let until = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        let server = &server;
        for index in 0..6 {
            scope.spawn(move || {
                let mut turn = index;
                while Instant::now() < until {
                    turn += 1;
                    let status = match index {
                        0 => roll_back(server, &json!({"version": (turn % 4).to_string()})).0,
                        1 => delete(server, &format!("/v1/models/versions/versions/{}", turn % 4)).0,
                        2 => {
                            let version = server.store.path().join("versions").join((turn % 4).to_string());
                            // Another thread may delete it meanwhile, and then there is no place for the copy.
                            if std::fs::create_dir(&version).is_ok() {
                                for file in std::fs::read_dir(fixture("store/versions/3")).unwrap() {
                                    let file = file.unwrap();
                                    let _ = std::fs::copy(file.path(), version.join(file.file_name()));
                                }
                            }
                            server.post_json("/v1/models/versions/load", &json!({})).0
                        }
                        3 => server.post_json("/v1/models/versions/unload", &json!({})).0,
                        _ => predict(server, "versions/predict").0,
                    };
                    // Half a folder that is being copied does not load; nothing is a fault of the server's.
                    assert!([200, 404, 409, 422, 503].contains(&status), "{index}: {status}");
                    let (status, answer) =
                        server.post_json("/v1/models/mlp/predict", &json!({"inputs": [vec![0.5; 32]]}));
                    assert_eq!(status, 200, "{answer}");
                }
            });
        }
    });
    let _ = delete(&server, "/v1/models/versions");
    copy_folder(&fixture("store/versions"), &server.store.path().join("versions"));
    assert_eq!(server.post_json("/v1/models/versions/load", &json!({})).0, 200);
    assert_eq!(answered_by(&server, "versions/predict"), "3");
    server.assert_well();
}

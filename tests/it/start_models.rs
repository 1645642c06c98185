//! Models that the server is told to start with: not ready before they serve, not fetched twice, and an end where one cannot
//! be got.

use crate::downloads::fake_hub::{FakeHub, Fault, Side, sha256};
use crate::downloads::{graph, large_graph};
use crate::server::{Server, command, store_of, wait_until};
use serde_json::{Value, json};
use std::process::Output;
use std::time::Duration;

const PULL: &str = "ORTUS_STORE__PULL";

/// A server that is told to start with `pull`, perhaps not ready yet.
fn launch(hub: &FakeHub, store: tempfile::TempDir, pull: &str, more: &[(&str, &str)]) -> Server {
    let (endpoint, cdn) = (hub.endpoint(), hub.cdn_host());
    let mut all = vec![("HF_ENDPOINT", endpoint.as_str()), ("ORTUS_HUB__ALLOWED_HOSTS", cdn.as_str())];
    all.extend([("ORTUS_HUB__RESERVE_MB", "0"), (PULL, pull)]);
    all.extend(more);
    Server::launch(store, &all)
}

fn ready(hub: &FakeHub, store: tempfile::TempDir, pull: &str, more: &[(&str, &str)]) -> Server {
    let server = launch(hub, store, pull, more);
    server.wait_ready();
    server
}

/// Stops a server and gives its store.
fn stopped(mut server: Server) -> tempfile::TempDir {
    server.terminate();
    assert!(server.wait_exit().success());
    server.take_store()
}

/// A server that ends by itself.
fn ended(hub: &FakeHub, arguments: &[&str]) -> Output {
    let store = tempfile::tempdir().unwrap();
    let mut command = command();
    command.args(["serve", "--listen", "127.0.0.1:0", "--models"]).arg(store.path()).args(arguments);
    command.env("HF_ENDPOINT", hub.endpoint()).env("ORTUS_HUB__RESERVE_MB", "0");
    command.output().unwrap()
}

/// What the model makes of 0: its graph's number.
#[track_caller]
fn check_answer(server: &Server, name: &str, first: f64) {
    let body = json!({"inputs": [0.0, 1.0]});
    let (status, answer) = server.post_json(&format!("/v1/models/{name}/predict"), &body);
    assert_eq!((status, &answer["outputs"]["y"]), (200, &json!([first, first + 1.0])), "{answer}");
}

fn versions(server: &Server, name: &str) -> usize {
    server.get_json(&format!("/v1/models/{name}"))["versions"].as_array().unwrap().len()
}

/// Moves `main` of the repository to a commit with this graph, and gives the commit.
fn commit(hub: &FakeHub, digit: char, version: u32) -> String {
    let name = digit.to_string().repeat(40);
    hub.edit("org/plus", |repository| {
        repository.commits.insert(name.clone(), Default::default());
        repository.refs.insert("main".to_owned(), name.clone());
    });
    hub.add("org/plus", &[("model.onnx", &graph(version), true)]);
    name
}

#[test]
fn the_server_is_not_ready_before_its_models_serve() {
    let hub = FakeHub::start();
    hub.add("org/plus", &[("model.onnx", &large_graph(1, 1_000_000), true)]);
    hub.fault(Side::Cdn, "", usize::MAX, &[Fault::Slow(20_000, Duration::from_millis(20))]);
    let url = hub.put("/files/two.onnx", &graph(2));
    let pull = format!("hf://org/plus,two={url}#sha256={}", sha256(&graph(2)));
    let server = launch(&hub, store_of(&["echo"]), &pull, &[]);
    let mut seen = String::new();
    wait_until(|| {
        let response = server.get("/readyz");
        assert_eq!(response.status(), 503, "it was ready before it was seen downloading");
        seen = response.text().unwrap();
        seen.contains("model plus: is being downloaded")
    });
    assert!(seen.starts_with("not ready\n"), "{seen}");
    assert_eq!(server.get("/livez").status(), 200);
    assert_eq!(server.get("/v2/health/live").status(), 200);
    assert_ne!(server.get("/v2/health/ready").status(), 200);
    let health: Value = server.get("/healthz").json().unwrap();
    assert_eq!((&health["status"], &health["awaited"][0]["model"]), (&json!("starting"), &json!("plus")), "{health}");
    let downloads = server.get_json("/v1/downloads");
    let plus = downloads["downloads"].as_array().unwrap().iter().find(|one| one["name"] == "plus");
    assert_eq!(plus.unwrap()["state"], "downloading", "{downloads}");
    server.wait_ready();
    check_answer(&server, "plus", 1.0);
    check_answer(&server, "two", 2.0);
    assert_eq!(server.get_json("/healthz").get("awaited"), None);
    // What becomes of it later is no matter of readiness.
    assert_eq!(server.post("/v1/models/plus/unload").send().unwrap().status(), 200);
    server.assert_well();
}

#[test]
fn what_is_there_of_a_commit_is_served_without_a_question() {
    let hub = FakeHub::start();
    let (first, second) = (commit(&hub, 'a', 1), commit(&hub, 'b', 2));
    let pull = |commit: &str| format!("plus=hf://org/plus@{commit}");
    let server = ready(&hub, store_of(&[]), &pull(&first), &[]);
    check_answer(&server, "plus", 1.0);
    let asked = hub.log().len();
    let server = ready(&hub, stopped(server), &pull(&first), &[("ORTUS_STORE__AUTOLOAD", "false")]);
    check_answer(&server, "plus", 1.0);
    assert_eq!(hub.log().len(), asked, "the hub was asked");
    let server = ready(&hub, stopped(server), &pull(&second), &[]);
    check_answer(&server, "plus", 2.0);
    // And back, by which nothing is fetched either.
    let asked = hub.log().len();
    let server = ready(&hub, stopped(server), &pull(&first), &[]);
    check_answer(&server, "plus", 1.0);
    let server = ready(&hub, stopped(server), &pull(&second), &[]);
    check_answer(&server, "plus", 2.0);
    assert_eq!((hub.log().len(), versions(&server, "plus")), (asked, 2));
}

#[test]
fn a_branch_is_followed_and_missed_by_nobody() {
    let hub = FakeHub::start();
    commit(&hub, 'a', 1);
    let server = ready(&hub, store_of(&[]), "hf://org/plus", &[]);
    let server = ready(&hub, stopped(server), "hf://org/plus", &[]);
    assert_eq!(versions(&server, "plus"), 1, "the same commit was got twice");
    commit(&hub, 'b', 2);
    // Nobody can be asked.
    let server = ready(&hub, stopped(server), "hf://org/plus", &[("HF_HUB_OFFLINE", "1")]);
    check_answer(&server, "plus", 1.0);
    // Nobody answers.
    hub.fault(Side::Hub, "/revision/main", 1, &[Fault::Stall(0)]);
    let server = ready(&hub, stopped(server), "hf://org/plus", &[]);
    check_answer(&server, "plus", 1.0);
    let server = ready(&hub, stopped(server), "hf://org/plus", &[]);
    check_answer(&server, "plus", 2.0);
    commit(&hub, 'c', 3);
    // What is newer comes broken.
    hub.fault(Side::Cdn, "", 1, &[Fault::WrongContent]);
    let server = ready(&hub, stopped(server), "hf://org/plus", &[]);
    check_answer(&server, "plus", 2.0);
    assert_eq!(versions(&server, "plus"), 2);
    // The other way of getting models knows what this one got.
    let order = json!({"source": "huggingface", "model_id": "org/plus"});
    let (status, ordered) = server.post_json("/v1/models/plus/versions", &order);
    assert_eq!(status, 202, "{ordered}");
    wait_until(|| versions(&server, "plus") == 3);
    drop(hub);
    stopped(server);
}

#[test]
fn a_failure_that_may_pass_is_tried_again() {
    let hub = FakeHub::start();
    hub.add("org/plus", &[("model.onnx", &graph(1), true)]);
    hub.fault(Side::Cdn, "", 1, &[Fault::WrongContent]);
    let server = launch(&hub, store_of(&[]), "hf://org/plus", &[]);
    wait_until(|| server.get("/readyz").text().unwrap().contains("model plus: try 1 of 5 failed"));
    assert_eq!(server.get("/livez").status(), 200);
    server.wait_ready();
    check_answer(&server, "plus", 1.0);
}

#[test]
fn a_model_that_cannot_be_got_ends_the_server() {
    let hub = FakeHub::start();
    hub.add("org/plus", &[("model.onnx", b"no graph", true)]);
    hub.fault(Side::Hub, "/none/revision/main", usize::MAX, &[Fault::Status(404)]);
    for (arguments, part) in [
        (&["--model", "hf://org/none"][..], "model 'none' could not be got from hf://org/none"),
        (&["--model", "x=hf://org/plus"], "model 'x' could not be got from hf://org/plus"),
        (&["--model", "x=https://127.0.0.1:1/x.onnx"], "not allowed"),
        (&["--model", "x=file:///nonexistent/x.onnx"], "there is no file or folder"),
        (&["--model", "bad name=hf://org/plus"], "--model: store.pull: expected a list of models"),
        (&["--model", "hf://org/plus", "--model", "plus=./x"], "--model: store.pull: expected a list of models"),
    ] {
        let ended = ended(&hub, arguments);
        let error = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {error}");
        let last = error.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains(part), "{arguments:?}: {error}");
    }
}

#[test]
fn whoever_starts_the_server_names_any_path_and_callers_none() {
    let (hub, folder) = (FakeHub::start(), tempfile::tempdir().unwrap());
    for (name, version) in [("mine.onnx", 1), ("other.onnx", 2)] {
        std::fs::write(folder.path().join(name), graph(version)).unwrap();
    }
    let path = folder.path().display();
    let elsewhere = tempfile::tempdir().unwrap();
    let allowed = elsewhere.path().to_str().unwrap();
    let pull = format!("file://{path}/mine.onnx");
    let server = ready(&hub, store_of(&[]), &pull, &[("ORTUS_HUB__ALLOWED_PATHS", allowed)]);
    check_answer(&server, "mine", 1.0);
    let order = json!({"name": "other", "source": "local", "path": format!("{path}/other.onnx")});
    let (status, ordered) = server.post_json("/v1/models", &order);
    assert_eq!(status, 202, "{ordered}");
    let download = format!("/v1/downloads/{}", ordered["download"]["id"].as_str().unwrap());
    wait_until(|| server.get_json(&download)["state"] == "failed");
    // It is there now, whatever becomes of the file.
    let store = stopped(server);
    std::fs::remove_file(folder.path().join("mine.onnx")).unwrap();
    check_answer(&ready(&hub, store, &pull, &[]), "mine", 1.0);
}

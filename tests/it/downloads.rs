//! Models from elsewhere, by REST and by the command line, against a hub that behaves well and one that does not.

#[path = "../../src/hub/testing.rs"]
#[expect(dead_code, reason = "the room's own tests use all of it")]
pub mod fake_hub;

use crate::server::{PATIENCE, Server, command, fixture, raw, store_of, wait_until};
use fake_hub::{FakeHub, Fault, Side, sha256};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

/// The graph that adds `version` to its input.
pub fn graph(version: u32) -> Vec<u8> {
    std::fs::read(fixture(&format!("store/versions/{version}/model.onnx"))).unwrap()
}

/// The same graph, made longer by bytes that are no part of it (an unknown field of the format).
pub fn large_graph(version: u32, bytes: usize) -> Vec<u8> {
    let mut graph = graph(version);
    // Field 1000, of bytes: readers of protobuf pass over what they do not know.
    graph.extend([0xc2, 0x3e]);
    let mut length = bytes;
    while length >= 0x80 {
        graph.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    graph.push(length as u8);
    // Not all the same: a file that is put together wrongly must show.
    graph.extend((0..bytes).map(|place| (place / 7 % 251) as u8));
    graph
}

struct Setup {
    hub: FakeHub,
    server: Server,
}

impl Setup {
    fn new() -> Setup {
        Setup::with(store_of(&[]), &[])
    }

    fn with(store: tempfile::TempDir, environment: &[(&str, &str)]) -> Setup {
        let hub = FakeHub::start();
        let server = serve(&hub, store, environment);
        Setup { hub, server }
    }

    /// Orders a model and gives the download's path.
    fn order(&self, body: &Value) -> String {
        let (status, answer) = self.server.post_json("/v1/models", body);
        assert_eq!(status, 202, "{answer}");
        format!("/v1/downloads/{}", answer["download"]["id"].as_str().unwrap())
    }

    /// The download when it has ended.
    fn ended(&self, download: &str) -> Value {
        ended(&self.server, download)
    }

    fn pull(&self, body: &Value) -> Value {
        self.ended(&self.order(body))
    }

    /// What the model makes of 0 and 1.
    fn predict(&self, name: &str) -> (u16, Value) {
        self.server.post_json(&format!("/v1/models/{name}/predict"), &json!({"inputs": [0.0, 1.0]}))
    }

    #[track_caller]
    fn check_answer(&self, name: &str, first: f64) {
        let (status, answer) = self.predict(name);
        assert_eq!((status, &answer["outputs"]["y"]), (200, &json!([first, first + 1.0])), "{answer}");
    }

    /// Nothing of a model, nor of what was fetched for one.
    #[track_caller]
    fn check_empty(&self, name: &str) {
        assert_eq!(self.server.get(&format!("/v1/models/{name}")).status(), 404);
        assert!(!self.server.store.path().join(name).exists());
    }
}

fn serve(hub: &FakeHub, store: tempfile::TempDir, environment: &[(&str, &str)]) -> Server {
    let (endpoint, cdn) = (hub.endpoint(), hub.cdn_host());
    let mut all = vec![("HF_ENDPOINT", endpoint.as_str()), ("ORTUS_HUB__ALLOWED_HOSTS", cdn.as_str())];
    all.push(("ORTUS_HUB__RESERVE_MB", "0"));
    all.push(crate::trial_load::TRIALS);
    all.extend(environment);
    Server::on(store, &all)
}

fn ended(server: &Server, download: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = server.get_json(download);
        if ["done", "failed", "cancelled"].contains(&now["state"].as_str().unwrap()) {
            return now;
        }
        assert!(Instant::now() < deadline, "not ended in time: {now}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until bytes have come.
fn moving(server: &Server, download: &str, bytes: u64) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = server.get_json(download);
        if now["bytes_done"].as_u64().unwrap() >= bytes {
            return now;
        }
        assert!(Instant::now() < deadline, "nothing came in time: {now}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn failed(download: &Value, code: &str, part: &str) {
    assert_eq!(download["state"], "failed", "{download}");
    assert_eq!(download["error"]["code"], code, "{download}");
    let detail = download["error"]["detail"].as_str().unwrap();
    assert!(detail.contains(part), "{detail}");
    // Neither paths of this machine nor addresses behind names.
    assert!(!detail.contains("/tmp") && !detail.contains("os error"), "{detail}");
}

fn hub_order(name: &str) -> Value {
    json!({"name": name, "source": "huggingface", "model_id": "org/plus"})
}

#[test]
fn a_model_is_pulled_swapped_rolled_back_and_deleted_under_traffic() {
    let setup = Setup::new();
    let config = json!({"architectures": ["Nonesuch"]}).to_string();
    setup.hub.add(
        "org/plus",
        &[
            ("onnx/model.onnx", &large_graph(1, 300_000), true),
            ("config.json", config.as_bytes(), false),
            ("model.py", b"raise SystemExit", false),
            ("pytorch_model.bin", b"\x80\x02", true),
        ],
    );
    setup.hub.edit("org/plus", |repository| repository.info = json!({"cardData": {"license": "apache-2.0"}}));
    let listing = setup.server.post_json("/v1/models?check=true", &hub_order("plus"));
    assert_eq!(listing.0, 200, "{}", listing.1);
    assert_eq!(listing.1["revision"], setup.hub.commit("org/plus"));
    assert!(listing.1["bytes_total"].as_u64().unwrap() > 300_000);
    setup.check_empty("plus");

    let download = setup.order(&hub_order("plus"));
    let done = setup.ended(&download);
    assert_eq!((&done["state"], &done["version"]), (&json!("done"), &json!("1")), "{done}");
    assert_eq!(done["revision"], setup.hub.commit("org/plus"));
    assert_eq!(done["check"]["task"], "raw");
    assert_eq!(done["bytes_done"], done["bytes_total"]);
    setup.check_answer("plus", 1.0);
    let folder = setup.server.store.path().join("plus/1");
    assert!(folder.join("onnx/model.onnx").is_file() && folder.join("config.json").is_file());
    assert!(!folder.join("model.py").exists() && !folder.join("pytorch_model.bin").exists());
    assert!(setup.hub.seen(Side::Cdn, "pytorch_model.bin").is_empty());
    let metrics = setup.server.get("/metrics").text().unwrap();
    let counted = format!("ortus_download_bytes_total {}\n", done["bytes_total"]);
    assert!(metrics.contains(&counted), "{counted} {metrics}");
    let info = setup.server.get_json("/v1/models/plus");
    assert_eq!((&info["source"]["type"], &info["source"]["model_id"]), (&json!("huggingface"), &json!("org/plus")));
    assert_eq!(info["source"]["revision"], done["revision"]);
    assert_eq!(info["metadata"]["license"], "apache-2.0");
    assert_eq!(setup.server.post_json("/v1/models", &hub_order("plus")).0, 409, "the name is taken");

    // A new revision takes over under load.
    setup.hub.edit("org/plus", |repository| {
        let commit = "0123456789abcdef0123456789abcdef01234567".to_owned();
        repository.commits.insert(commit.clone(), Default::default());
        repository.refs.insert("main".to_owned(), commit);
    });
    setup.hub.add("org/plus", &[("model.onnx", &graph(2), true), ("config.json", config.as_bytes(), false)]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let (status, answer) = setup.predict("plus");
                        assert_eq!(status, 200, "{answer}");
                        answers.push(answer["outputs"]["y"][0].as_f64().unwrap());
                    }
                    answers
                })
            })
            .collect();
        let body = json!({"source": "huggingface", "model_id": "org/plus"});
        let (status, answer) = setup.server.post_json("/v1/models/plus/versions", &body);
        assert_eq!(status, 202, "{answer}");
        let download = format!("/v1/downloads/{}", answer["download"]["id"].as_str().unwrap());
        let done = setup.ended(&download);
        assert_eq!((&done["state"], &done["version"]), (&json!("done"), &json!("2")), "{done}");
        setup.check_answer("plus", 2.0);
        let (status, answer) = setup.server.post_json("/v1/models/plus/rollback", &json!({}));
        assert_eq!((status, &answer["default_version"]), (200, &json!("1")), "{answer}");
        setup.check_answer("plus", 1.0);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let answers: Vec<f64> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        assert!(answers.len() > 10 && answers.iter().all(|answer| [1.0, 2.0].contains(answer)), "{answers:?}");
        assert!(answers.contains(&1.0) && answers.contains(&2.0));
    });
    let response = setup.server.client.delete(setup.server.url("/v1/models/plus")).send().unwrap();
    assert_eq!(response.status(), 200);
    setup.check_empty("plus");
    setup.server.assert_well();
}

#[test]
fn progress_is_a_stream_that_ends_with_the_final_state() {
    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &large_graph(1, 2_000_000), true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Slow(100_000, Duration::from_millis(40))]);
    let download = setup.order(&hub_order("plus"));
    let text = setup.server.get(&format!("{download}/events")).text().unwrap();
    let events: Vec<(&str, Value)> = text
        .split("\n\n")
        .filter_map(|event| {
            let (name, data) = event.split_once('\n')?;
            Some((name.strip_prefix("event: ")?, serde_json::from_str(data.strip_prefix("data: ")?).unwrap()))
        })
        .collect();
    assert!(events.iter().any(|(name, data)| *name == "progress" && data["rate_bps"].as_u64().unwrap() > 0), "{text}");
    let (name, last) = events.last().unwrap();
    assert_eq!((*name, &last["state"]), ("state", &json!("done")), "{text}");
    let done: Vec<u64> = events.iter().map(|(_, data)| data["bytes_done"].as_u64().unwrap()).collect();
    assert!(done.is_sorted(), "{done:?}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    // F02, F05
    let setup = Setup::new();
    for (number, name) in ["../../escaped.json", "/escaped.json", "a\\..\\b.json", "a/../../x.json"].iter().enumerate()
    {
        let repository = format!("org/evil{number}");
        setup.hub.add(&repository, &[("model.onnx", &graph(1), true), (name, b"{}", false)]);
        let done = setup.pull(&json!({"name": "evil", "source": "huggingface", "model_id": repository}));
        failed(&done, "refused", "unsafe file name");
        setup.check_empty("evil");
    }
    assert!(!setup.server.store.path().parent().unwrap().join("escaped.json").exists());
    for (field, value) in [
        ("model_id", "../x"),
        ("model_id", "a/b/c"),
        ("model_id", "a/../b"),
        ("revision", "../main"),
        ("revision", ""),
        ("file", "../model.onnx"),
        ("file", "/etc/passwd"),
        ("name", "../evil"),
        ("name", "a/b"),
        ("name", ""),
        ("sha256", "abc"),
        ("precision", "int9"),
        ("source", "ftp"),
    ] {
        let mut body = hub_order("evil");
        body[field] = json!(value);
        let (status, answer) = setup.server.post_json("/v1/models", &body);
        assert_eq!(status, 422, "{field} {value}: {answer}");
    }
    let (status, _) =
        setup.server.post_json("/v1/models", &json!({"source": "huggingface", "model_id": "a/b", "nmae": "x"}));
    assert_eq!(status, 422, "unknown keys are refused");
    setup.server.assert_well();
}

#[test]
fn addresses_that_are_not_public_are_refused() {
    // F03, F04
    let setup = Setup::with(store_of(&[]), &[("ORTUS_HUB__ALLOWED_HOSTS", "")]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let canary = format!(":{}", listener.local_addr().unwrap().port());
    let own = setup.server.address.port();
    let hosts = [
        format!("http://127.0.0.1:{own}/v1/models"),
        format!("https://127.0.0.1{canary}/x.onnx"),
        format!("http://localhost{canary}/x.onnx"),
        format!("http://[::1]{canary}/x.onnx"),
        format!("http://[::ffff:127.0.0.1]{canary}/x.onnx"),
        format!("http://2130706433{canary}/x.onnx"),
        format!("http://0x7f000001{canary}/x.onnx"),
        format!("http://0177.0.0.1{canary}/x.onnx"),
        format!("http://user:secret@127.0.0.1{canary}/x.onnx"),
        "https://10.0.0.1/x.onnx".to_owned(),
        "https://192.168.1.1/x.onnx".to_owned(),
        "https://100.64.0.1/x.onnx".to_owned(),
        "http://169.254.169.254/latest/meta-data/x.onnx".to_owned(),
        "https://[fd00::1]/x.onnx".to_owned(),
        "file:///etc/passwd".to_owned(),
        "data:text/plain,x".to_owned(),
        "ftp://example.org/x.onnx".to_owned(),
        "gopher://127.0.0.1/x.onnx".to_owned(),
        "http://0.0.0.0/x.onnx".to_owned(),
    ];
    for url in hosts {
        let body = json!({"name": "canary", "source": "url", "url": url});
        let (status, answer) = setup.server.post_json("/v1/models", &body);
        let text = if status == 202 {
            let done = setup.ended(&format!("/v1/downloads/{}", answer["download"]["id"].as_str().unwrap()));
            assert_eq!(done["state"], "failed", "{url}: {done}");
            done["error"]["detail"].as_str().unwrap().to_owned()
        } else {
            assert_eq!(status, 422, "{url}: {answer}");
            answer["detail"].as_str().unwrap().to_owned()
        };
        assert!(!text.contains("secret"), "{text}");
        setup.check_empty("canary");
    }
    assert!(listener.accept().is_err(), "the canary was called");
    assert!(setup.hub.log().is_empty(), "{:?}", setup.hub.log());
    setup.server.assert_well();
}

#[test]
fn redirects_are_looked_at_again() {
    // F04
    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &graph(1), false)]);
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let canary_url = format!("http://{}/model.onnx", canary.local_addr().unwrap());
    for target in [canary_url.as_str(), "http://169.254.169.254/x", "file:///etc/passwd", "ftp://x/y"] {
        setup.hub.fault(Side::Hub, "model.onnx", 1, &[Fault::Redirect(target.to_owned())]);
        let done = setup.pull(&hub_order("plus"));
        assert_eq!((&done["state"], &done["error"]["code"]), (&json!("failed"), &json!("refused")), "{target}: {done}");
    }
    assert!(canary.accept().is_err(), "the canary was called");
    setup.hub.fault(Side::Hub, "model.onnx", 20, &[Fault::RedirectLoop]);
    let before = setup.hub.log().len();
    let done = setup.pull(&hub_order("plus"));
    assert_eq!(done["state"], "failed", "{done}");
    assert!(setup.hub.log().len() - before < 12, "{:?}", setup.hub.log());
}

#[test]
fn a_token_goes_to_its_own_host_alone() {
    let setup = Setup::with(store_of(&[]), &[("HF_TOKEN", "hf_secret")]);
    setup.hub.add("org/plus", &[("model.onnx", &graph(1), true), ("config.json", b"{}", false)]);
    setup.hub.edit("org/plus", |repository| repository.gated = Some("hf_secret".to_owned()));
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done");
    let log = setup.hub.log();
    let with_token =
        |side| log.iter().filter(|seen| seen.side == side && seen.header("authorization").is_some()).count();
    assert!(with_token(Side::Hub) > 0 && with_token(Side::Cdn) == 0);
    // Without a token the answer says what to do.
    let other = Setup::new();
    other.hub.add("org/plus", &[("model.onnx", &graph(1), true)]);
    other.hub.edit("org/plus", |repository| repository.gated = Some("hf_secret".to_owned()));
    let done = other.pull(&hub_order("plus"));
    failed(&done, "access_denied", "HF_TOKEN");
    let done = other.pull(&json!({"name": "none", "source": "huggingface", "model_id": "org/nonesuch"}));
    assert_eq!((&done["state"], &done["error"]["code"]), (&json!("failed"), &json!("not_found")), "{done}");
}

#[test]
fn what_does_not_match_its_hash_is_not_installed() {
    // F12
    let setup = Setup::new();
    let content = large_graph(1, 100_000);
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Cdn, "", 50, &[Fault::WrongContent]);
    let done = setup.pull(&hub_order("plus"));
    failed(&done, "checksum", "checksum");
    setup.check_empty("plus");
    let url = setup.hub.put("/files/plus.onnx", &content);
    let order = |hash: &str| json!({"name": "plus", "source": "url", "url": url, "sha256": hash});
    let setup2 = Setup::new();
    let url2 = setup2.hub.put("/files/plus.onnx", &content);
    let mut wrong = order(&sha256(b"something else"));
    wrong["url"] = json!(url2);
    failed(&setup2.pull(&wrong), "checksum", "SHA-256");
    let mut right = order(&sha256(&content));
    right["url"] = json!(url2);
    assert_eq!(setup2.pull(&right)["state"], "done");
    setup2.check_answer("plus", 1.0);
}

#[test]
fn a_killed_server_goes_on_where_it_was() {
    // F13
    let mut setup = Setup::new();
    let content = large_graph(1, 8_000_000);
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Slow(200_000, Duration::from_millis(20))]);
    let download = setup.order(&hub_order("plus"));
    moving(&setup.server, &download, 2_000_000);
    setup.server.kill();
    let before = setup.hub.cdn_sent();
    let store = setup.server.take_store();
    assert!(!store.path().join("plus").exists(), "nothing half-done is to be seen");
    setup.server = serve(&setup.hub, store, &[]);
    setup.check_empty("plus");
    let done = setup.pull(&hub_order("plus"));
    assert_eq!(done["state"], "done", "{done}");
    setup.check_answer("plus", 1.0);
    let again = setup.hub.cdn_sent() - before;
    assert!(again < content.len() as u64, "all {again} bytes were fetched again");
    let log = setup.hub.log();
    let resumed = log.iter().rev().find(|seen| seen.side == Side::Cdn).unwrap();
    assert!(resumed.header("range").is_some() && resumed.header("if-range").is_some(), "{resumed:?}");
}

/// Halves every regular file below a folder; gives how many there were.
fn halve(folder: &Path) -> usize {
    let files = files_of(folder);
    for (name, content) in &files {
        std::fs::write(folder.join(name), &content[..content.len() / 2]).unwrap();
    }
    files.len()
}

#[test]
fn files_of_the_servers_own_that_are_cut_in_half_harm_nothing_else() {
    // F68
    let mut setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &graph(1), true)]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done");
    assert_eq!(setup.pull(&hub_order("other"))["state"], "done");
    let upload = upload(&setup.server, "other", "model.onnx", graph(2));
    assert_eq!(upload.0, 201, "{}", upload.1);
    assert_eq!(setup.server.post_json("/v1/models/other/rollback", &json!({})).0, 200);
    setup.check_answer("other", 1.0);
    // A download that was killed on its way.
    setup.hub.add("org/large", &[("model.onnx", &large_graph(3, 8_000_000), true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Slow(200_000, Duration::from_millis(20))]);
    let large = json!({"name": "large", "source": "huggingface", "model_id": "org/large"});
    moving(&setup.server, &setup.order(&large), 1_000_000);
    setup.server.kill();
    let store = setup.server.take_store();
    assert!(halve(&store.path().join(".ortus")) >= 2);
    let provenance = store.path().join("plus/1/ortus-provenance.json");
    let content = std::fs::read(&provenance).unwrap();
    std::fs::write(&provenance, &content[..content.len() / 2]).unwrap();
    setup.server = serve(&setup.hub, store, &[]);
    // A choice that cannot be read is none.
    setup.check_answer("other", 2.0);
    let info = setup.server.get_json("/v1/models/plus");
    assert_eq!(info["state"], "failed", "{info}");
    assert!(info["last_error"].as_str().unwrap().contains("ortus-provenance.json cannot be read"), "{info}");
    let done = setup.pull(&large);
    assert_eq!(done["state"], "done", "{done}");
    setup.check_answer("large", 3.0);
    let response = setup.server.client.delete(setup.server.url("/v1/models/plus")).send().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done");
    setup.check_answer("plus", 1.0);
    setup.server.assert_well();
}

#[test]
fn a_line_that_breaks_costs_little() {
    // F15, F63, F14
    let setup = Setup::new();
    let content = large_graph(1, 3_000_000);
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Cut(2_000_000)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Status(500)]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done");
    setup.check_answer("plus", 1.0);
    let sent = setup.hub.cdn_sent();
    assert!(sent <= content.len() as u64 * 12 / 10, "{sent} bytes for {}", content.len());

    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Cut(2_000_000)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::IgnoreRange]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done", "200 instead of 206 begins again");
    setup.check_answer("plus", 1.0);

    let setup = Setup::new();
    let url = setup.hub.put("/files/plus.onnx", &content);
    let other = large_graph(2, 3_000_000);
    setup.hub.fault(Side::Cdn, "plus.onnx", 1, &[Fault::CutAndReplace(2_000_000, other)]);
    assert_eq!(setup.pull(&json!({"name": "plus", "source": "url", "url": url}))["state"], "done");
    setup.check_answer("plus", 2.0);
}

#[test]
fn servers_that_misbehave_cost_no_more_than_is_allowed() {
    // F61, F64, F83
    let setup =
        Setup::with(store_of(&[]), &[("ORTUS_HUB__MAX_DOWNLOAD_MB", "4"), ("ORTUS_HUB__IDLE_TIMEOUT_MS", "500")]);
    let content = large_graph(1, 1_000_000);
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Longer(1_000_000)]);
    let done = setup.pull(&hub_order("plus"));
    assert_eq!((&done["state"], &done["error"]["code"]), (&json!("failed"), &json!("checksum")), "{done}");
    let url = setup.hub.put("/files/endless.onnx", &content);
    setup.hub.fault(Side::Cdn, "endless.onnx", 20, &[Fault::Endless]);
    let done = setup.pull(&json!({"name": "endless", "source": "url", "url": url}));
    failed(&done, "too_large", "max_download_mb");
    setup.check_empty("endless");

    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Hub, "/revision/main", 20, &[Fault::GzipBomb]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "failed");
    setup.server.assert_well();

    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Hub, "", 100, &[Fault::TooMany(Some(0))]);
    let done = setup.pull(&hub_order("plus"));
    failed(&done, "rate_limited", "");
    assert!(setup.hub.log().len() <= 12, "{} requests", setup.hub.log().len());

    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Hub, "", 100, &[Fault::Html]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "failed");
}

#[test]
fn a_stalled_download_is_cancelled_at_once_and_leaves_nothing() {
    // F62, F65
    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &large_graph(1, 1_000_000), true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Stall(300_000)]);
    let download = setup.order(&hub_order("plus"));
    moving(&setup.server, &download, 100_000);
    assert_eq!(setup.server.get_json("/v1/models/plus")["state"], "downloading");
    let (status, answer) = setup.predict("plus");
    assert_eq!(status, 503, "{answer}");
    for _ in 0..3 {
        assert_eq!(setup.server.post_json("/v1/models", &hub_order("plus")).0, 409);
    }
    let started = Instant::now();
    let response = setup.server.client.delete(setup.server.url(&download)).send().unwrap();
    assert_eq!(response.json::<Value>().unwrap()["state"], "cancelled");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    setup.check_empty("plus");
    let left = std::fs::read_dir(setup.server.store.path().join(".ortus/downloads")).unwrap().count();
    assert_eq!(left, 0, "its files are gone");
    assert_eq!(setup.server.client.delete(setup.server.url(&download)).send().unwrap().status(), 204);
    assert_eq!(setup.server.get(&download).status(), 404);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done", "the name is free");

    // Deleting the model that is on its way cancels it, too.
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Stall(300_000)]);
    let mut body = hub_order("other");
    body["revision"] = json!("main");
    let download = setup.order(&body);
    moving(&setup.server, &download, 100_000);
    let response = setup.server.client.delete(setup.server.url("/v1/models/other")).send().unwrap();
    assert!(response.status().is_success(), "{:?}", response.text());
    assert_eq!(setup.ended(&download)["state"], "cancelled");
    setup.check_empty("other");
}

#[test]
fn equal_orders_fetch_once_and_one_name_is_taken_once() {
    // F65
    let setup = Setup::new();
    let content = large_graph(1, 2_000_000);
    setup.hub.add("org/plus", &[("model.onnx", &content, true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Slow(200_000, Duration::from_millis(20))]);
    let orders: Vec<String> = ["a", "b"].iter().map(|name| setup.order(&hub_order(name))).collect();
    for download in &orders {
        assert_eq!(setup.ended(download)["state"], "done");
    }
    setup.check_answer("a", 1.0);
    setup.check_answer("b", 1.0);
    assert!(setup.hub.cdn_sent() < content.len() as u64 * 12 / 10, "{}", setup.hub.cdn_sent());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let posts: Vec<_> =
            (0..8).map(|_| scope.spawn(|| setup.server.post_json("/v1/models", &hub_order("c")).0)).collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [202, 409].contains(status)), "{statuses:?}");
}

#[test]
fn a_full_disk_is_said_and_harms_nothing() {
    // F16
    let store = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(store.path())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("SKIPPED: a small file system cannot be mounted here");
        return;
    }
    /// Taken away when the test ends, however it ends.
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let mount = Mounted(store.path().to_owned());
    let setup = Setup::with(store, &[]);
    setup.hub.add("org/small", &[("model.onnx", &graph(1), true)]);
    setup.hub.add("org/large", &[("model.onnx", &large_graph(2, 20_000_000), true)]);
    let order = |name: &str| json!({"name": name, "source": "huggingface", "model_id": format!("org/{name}")});
    assert_eq!(setup.pull(&order("small"))["state"], "done");
    failed(&setup.pull(&order("large")), "no_space", "space");
    // A server that does not say how much will come is found out on the way.
    let url = setup.hub.put("/files/x.onnx", &large_graph(2, 20_000_000));
    setup.hub.fault(Side::Cdn, "x.onnx", 20, &[Fault::NoLength]);
    failed(&setup.pull(&json!({"name": "x", "source": "url", "url": url})), "no_space", "space");
    let form = reqwest::blocking::multipart::Form::new();
    let part = reqwest::blocking::multipart::Part::bytes(large_graph(2, 10_000_000)).file_name("model.onnx");
    let response = setup.server.post("/v1/models/up/versions").multipart(form.part("file", part)).send().unwrap();
    assert_eq!(response.status(), 507, "{:?}", response.text());
    setup.check_answer("small", 1.0);
    setup.check_empty("large");
    setup.server.assert_well();
    drop(setup);
    drop(mount);
}

#[test]
fn a_version_that_does_not_load_leaves_the_one_that_serves() {
    // F17, F33
    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &graph(1), true)]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done");
    for (what, content) in [
        ("empty", Vec::new()),
        ("a page", b"<!doctype html><html></html>".to_vec()),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n".to_vec()),
        ("cut short", graph(1)[..50].to_vec()),
    ] {
        let url = setup.hub.put("/files/broken.onnx", &content);
        let (status, answer) =
            setup.server.post_json("/v1/models/plus/versions", &json!({"source": "url", "url": url}));
        assert_eq!(status, 202, "{answer}");
        let done = setup.ended(&format!("/v1/downloads/{}", answer["download"]["id"].as_str().unwrap()));
        assert_eq!(done["state"], "failed", "{what}: {done}");
        let (status, answer) = upload(&setup.server, "plus", "model.onnx", content);
        assert_eq!(status, 422, "{what}: {answer}");
        setup.check_answer("plus", 1.0);
        assert_eq!(setup.server.get_json("/v1/models/plus")["versions"].as_array().unwrap().len(), 1);
    }
}

fn upload(server: &Server, model: &str, file: &str, content: Vec<u8>) -> (u16, Value) {
    let part = reqwest::blocking::multipart::Part::bytes(content).file_name(file.to_owned());
    let form = reqwest::blocking::multipart::Form::new().part("file", part);
    let response = server.post(&format!("/v1/models/{model}/versions")).multipart(form).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn uploads_become_versions() {
    let setup = Setup::new();
    let (status, answer) = upload(&setup.server, "plus", "model.onnx", graph(1));
    assert_eq!((status, &answer["version"]), (201, &json!("1")), "{answer}");
    assert_eq!(answer["model"]["source"]["type"], "upload");
    setup.check_answer("plus", 1.0);
    let archive = zip_of(&[("plus/model.onnx", &graph(2)), ("plus/labels.txt", b"a\nb\n"), ("plus/run.py", b"boom")]);
    let (status, answer) = upload(&setup.server, "plus", "plus.zip", archive);
    assert_eq!((status, &answer["version"]), (201, &json!("2")), "{answer}");
    setup.check_answer("plus", 2.0);
    assert!(setup.server.store.path().join("plus/2/labels.txt").is_file());
    // Several files of one version, not loaded.
    let part =
        |content: Vec<u8>, name: &'static str| reqwest::blocking::multipart::Part::bytes(content).file_name(name);
    let form = reqwest::blocking::multipart::Form::new()
        .part("file", part(graph(3), "plus.onnx"))
        .part("file", part(b"a\nb\n".to_vec(), "labels.txt"))
        .text("load", "false");
    let response = setup.server.post("/v1/models/plus/versions").multipart(form).send().unwrap();
    assert_eq!(response.status(), 201, "{:?}", response.text());
    setup.check_answer("plus", 2.0);
    assert_eq!(setup.server.post_json("/v1/models/plus/load", &json!({})).0, 200);
    setup.check_answer("plus", 3.0);
    // Larger than a body may be that is read into memory, and than uploads may be.
    let large =
        Setup::with(store_of(&[]), &[("ORTUS_SERVER__MAX_BODY_BYTES", "1000000"), ("ORTUS_HUB__MAX_DOWNLOAD_MB", "4")]);
    assert_eq!(upload(&large.server, "plus", "model.onnx", large_graph(1, 3_000_000)).0, 201);
    let head = format!(
        "POST /v1/models/plus/versions HTTP/1.1\r\nHost: {}\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000000\r\n\r\n",
        large.server.address
    );
    let answer = raw(large.server.address, head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("max_download_mb"), "{answer}");
    // F06
    for (name, content) in [
        ("../../evil.onnx", graph(1)),
        ("/evil.onnx", graph(1)),
        ("evil.zip", zip_of(&[("../../evil.onnx", &graph(1))])),
        ("evil.zip", zip_of(&[("/tmp/evil.onnx", &graph(1))])),
        ("evil.zip", zip_of(&[("readme.txt", b"no model")])),
        ("evil.txt", b"no model".to_vec()),
    ] {
        let (status, answer) = upload(&setup.server, "evil", name, content);
        assert_eq!(status, 422, "{name}: {answer}");
        setup.check_empty("evil");
    }
    // Nothing is left of uploads, once what removes them behind the answer is done.
    let left = setup.server.store.path().join(".ortus/uploads");
    wait_until(|| std::fs::read_dir(&left).unwrap().count() == 0);
    setup.server.assert_well();
}

#[test]
fn what_a_killed_server_had_of_an_upload_goes_at_the_next_start() {
    use std::io::Write;
    let mut setup = Setup::new();
    let mut client = std::net::TcpStream::connect(setup.server.address).unwrap();
    let head = "POST /v1/models/plus/versions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\
        Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"model.onnx\"\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&large_graph(1, 4_000_000)).unwrap();
    let uploads = setup.server.store.path().join(".ortus/uploads");
    let count = || std::fs::read_dir(&uploads).map_or(0, Iterator::count);
    wait_until(|| count() == 1);
    setup.server.kill();
    assert_eq!(count(), 1, "nobody was there to remove it");
    let store = setup.server.take_store();
    setup.server = serve(&setup.hub, store, &[]);
    wait_until(|| count() == 0);
    setup.check_empty("plus");
    let (status, answer) = upload(&setup.server, "plus", "model.onnx", graph(1));
    assert_eq!(status, 201, "{answer}");
    setup.check_answer("plus", 1.0);
}

#[test]
fn a_pytorch_file_without_the_exporter_says_what_to_do() {
    let setup = Setup::with(store_of(&[]), &[("ORTUS_HUB__PYTHON", "/nonexistent/python")]);
    let (status, answer) = upload(&setup.server, "net", "weights.pt", b"PK\x03\x04".to_vec());
    assert_eq!(status, 503, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("make exporter"), "{answer}");
    let done = setup.pull(&json!({"name": "net", "source": "torchvision", "model_id": "resnet18"}));
    failed(&done, "no_exporter", "make exporter");
    setup.check_empty("net");
}

#[test]
fn local_files_are_a_source_only_where_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), graph(1)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link.onnx")).unwrap();
    let order = |path: &Path| json!({"name": "plus", "source": "local", "path": path});
    let refusing = Setup::new();
    let (status, answer) = refusing.server.post_json("/v1/models", &order(&folder.path().join("model.onnx")));
    assert_eq!(status, 422, "{answer}");
    let setup = Setup::with(store_of(&[]), &[("ORTUS_HUB__ALLOWED_PATHS", folder.path().to_str().unwrap())]);
    for path in ["/etc/passwd", "link.onnx", "../../etc/passwd"] {
        let done = setup.pull(&order(&folder.path().join(path)));
        assert_eq!((&done["state"], &done["error"]["code"]), (&json!("failed"), &json!("refused")), "{path}: {done}");
    }
    assert_eq!(setup.pull(&order(&folder.path().join("model.onnx")))["state"], "done");
    setup.check_answer("plus", 1.0);
}

#[test]
fn a_server_that_stops_does_not_wait_for_downloads() {
    // F71
    let mut setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &large_graph(1, 1_000_000), true)]);
    setup.hub.fault(Side::Cdn, "", 1, &[Fault::Stall(300_000)]);
    let download = setup.order(&hub_order("plus"));
    moving(&setup.server, &download, 100_000);
    let started = Instant::now();
    setup.server.terminate();
    assert!(setup.server.wait_exit().success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let store = setup.server.take_store();
    setup.server = serve(&setup.hub, store, &[]);
    assert_eq!(setup.pull(&hub_order("plus"))["state"], "done");
}

fn ortus(hub: &FakeHub, store: &Path, arguments: &[&str]) -> Output {
    let mut command = command();
    command.args(arguments).arg("--models").arg(store);
    command.env("HF_ENDPOINT", hub.endpoint()).env("ORTUS_HUB__ALLOWED_HOSTS", hub.cdn_host());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_command_line_pulls_updates_and_removes() {
    let (hub, store) = (FakeHub::start(), tempfile::tempdir().unwrap());
    hub.add(
        "org/plus",
        &[("model.onnx", &large_graph(1, 200_000), true), ("README.md", b"---\nlicense: mit\n---\n", false)],
    );
    let run = |arguments: &[&str]| ortus(&hub, store.path(), arguments);
    let checked = run(&["pull", "org/plus", "--check"]);
    assert!(checked.status.success() && text(&checked.stdout).contains("model.onnx"), "{checked:?}");
    let pulled = run(&["pull", "org/plus"]);
    assert!(pulled.status.success(), "{}", text(&pulled.stderr));
    assert!(text(&pulled.stdout).starts_with("plus, version 1, raw, "), "{}", text(&pulled.stdout));
    assert!(text(&pulled.stderr).contains("plus: done, "), "lines where nobody sees bars: {}", text(&pulled.stderr));
    let again = run(&["pull", "org/plus"]);
    assert!(text(&again.stdout).contains("up to date"), "{}", text(&again.stdout));
    let file = run(&["pull", fixture("store/versions/2/model.onnx").to_str().unwrap(), "--name", "plus", "--json"]);
    let answer: Value = serde_json::from_slice(&file.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["unchanged"]), (&json!("2"), &json!(false)), "{answer}");
    let listed = run(&["list"]);
    assert!(text(&listed.stdout).contains("1, 2"), "{}", text(&listed.stdout));
    let predicted = run(&["predict", "plus", "--json", "[0, 1]"]);
    assert!(text(&predicted.stdout).contains("2"), "{predicted:?}");
    assert!(run(&["rm", "plus", "--model-version", "2"]).status.success());
    assert!(run(&["rm", "plus"]).status.success());
    assert!(!store.path().join("plus").exists());
    let missing = run(&["rm", "plus"]);
    assert!(!missing.status.success() && text(&missing.stderr).starts_with("error: "), "{missing:?}");
    for wrong in [&["pull", "not a source"][..], &["pull", "org/nonesuch"], &["pull", "ftp://x/y"]] {
        let output = run(wrong);
        assert!(!output.status.success() && text(&output.stderr).contains("error: "), "{wrong:?} {output:?}");
        assert_eq!(text(&output.stdout), "", "{wrong:?}");
    }
}

#[test]
fn offline_only_what_is_there_is_used() {
    let (hub, store, cache) = (FakeHub::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let folder = cache.path().join("models--org--plus");
    let snapshot = folder.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::create_dir_all(folder.join("blobs")).unwrap();
    std::fs::write(folder.join("refs/main"), commit).unwrap();
    let blob = sha256(&graph(1));
    std::fs::write(folder.join("blobs").join(&blob), graph(1)).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join("model.onnx")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).arg("--models").arg(store.path()).env("HF_ENDPOINT", hub.endpoint());
        command.env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let pulled = run(&["pull", "org/plus"]);
    assert!(pulled.status.success(), "{}", text(&pulled.stderr));
    assert!(!run(&["pull", "org/other"]).status.success());
    assert!(hub.log().is_empty(), "nothing was asked of the hub");
}

#[test]
fn the_config_of_an_order_is_the_models_own() {
    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &graph(1), true)]);
    let with = |config: Value| {
        let mut order = hub_order("plus");
        order["config"] = config;
        order
    };
    let done = setup.pull(&with(json!({"description": "adds", "batch": {"max_queue": 77}})));
    assert_eq!(done["state"], "done", "{done}");
    let written = std::fs::read_to_string(setup.server.store.path().join("plus/model.toml")).unwrap();
    assert!(written.contains("max_queue = 77"), "{written}");
    assert_eq!(setup.server.get_json("/v1/models/plus")["metadata"]["description"], "adds");
    setup.check_answer("plus", 1.0);
    // A version of a model that is there comes without one, and nothing is fetched for what cannot be one.
    let (status, answer) = setup.server.post_json("/v1/models/plus/versions", &with(json!({"description": "x"})));
    assert_eq!(status, 422, "{answer}");
    let asked = setup.hub.log().len();
    for (config, part) in
        [(json!({"batch": {"max_rows": 7}}), "max_rows"), (json!({"batch": {"max_queue": 0}}), "max_queue")]
    {
        let mut order = with(config);
        order["name"] = json!("other");
        let (status, answer) = setup.server.post_json("/v1/models", &order);
        assert!(status == 422 && answer["detail"].as_str().unwrap().contains(part), "{answer}");
        setup.check_empty("other");
    }
    assert_eq!(setup.hub.log().len(), asked);
    setup.server.assert_well();
}

/// All files of a folder, by their paths in it.
fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut files, mut pending) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read(path).unwrap()));
            }
        }
    }
    files
}

#[test]
fn hostile_files_of_a_hub_are_not_installed() {
    // F01, F33
    let setup = Setup::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(fixture("hostile")).unwrap().map(Result::unwrap) {
        if !entry.file_type().unwrap().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        let files = files_of(&entry.path().join("1"));
        let files: Vec<(&str, &[u8], bool)> =
            files.iter().map(|(name, file)| (name.as_str(), &file[..], true)).collect();
        setup.hub.add(&format!("org/{name}"), &files);
        names.push(name);
    }
    assert!(names.len() >= 15, "{names:?}");
    for name in names {
        let body = json!({"name": name, "source": "huggingface", "model_id": format!("org/{name}")});
        let ended = setup.pull(&body);
        assert_eq!(ended["state"], "failed", "{name}: {ended}");
        let detail = ended["error"]["detail"].as_str().unwrap();
        assert!(!detail.is_empty() && !detail.contains("/tmp") && !detail.contains(".cc:"), "{name}: {detail}");
        setup.check_empty(&name);
    }
    setup.server.assert_well();
}

#[test]
fn forty_models_that_come_and_go_leave_nothing() {
    // F73
    let setup = Setup::new();
    setup.hub.add("org/plus", &[("model.onnx", &large_graph(1, 3_000_000), true)]);
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", setup.server.child.id())).unwrap().count();
    let resident = || setup.server.get_json("/v1/system")["memory"]["resident_mb"].as_f64().unwrap();
    let round = || {
        let done = setup.pull(&hub_order("plus"));
        assert_eq!(done["state"], "done", "{done}");
        setup.check_answer("plus", 1.0);
        assert_eq!(setup.server.client.delete(setup.server.url("/v1/models/plus")).send().unwrap().status(), 200);
    };
    // What the process takes only once is there before the start is measured.
    (0..5).for_each(|_| round());
    let (memory, files, threads) = (resident(), count("fd"), count("task"));
    (0..40).for_each(|_| round());
    setup.check_empty("plus");
    assert!(resident() < memory + 32.0, "{memory} MB, then {}", resident());
    assert!(count("fd") <= files + 4, "{files} files, then {}", count("fd"));
    assert!(count("task") <= threads + 4, "{threads} threads, then {}", count("task"));
    let own = setup.server.store.path().join(".ortus");
    for folder in ["downloads", "uploads", "incoming", "trash", "chosen"] {
        let left = std::fs::read_dir(own.join(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{folder}");
    }
    setup.server.assert_well();
}

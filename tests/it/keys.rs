//! Keys: who is let in to what, what is written down, and where no key is ever to be seen.

use crate::server::{PATIENCE, Server, command, raw, store_of, wait_until};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Runs `ortus key …` on the store.
fn key(store: &Path, arguments: &[&str]) -> std::process::Output {
    command().arg("key").args(arguments).arg("--models").arg(store).output().unwrap()
}

/// A new key of the store.
fn make(store: &Path, role: &str, more: &[&str]) -> String {
    let output = key(store, &[&["create", "--role", role][..], more].concat());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim().to_owned()
}

fn id_of(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

/// A server on the echo model with a key of each role.
pub fn guarded(environment: &[(&str, &str)]) -> (Server, String, String) {
    let store = store_of(&["echo"]);
    let (infer, admin) = (make(store.path(), "infer", &[]), make(store.path(), "admin", &[]));
    (Server::on(store, environment), infer, admin)
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.text).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn ask(server: &Server, method: &Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = browser().request(method.clone(), server.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    // The event streams of this test end at once: there is no such job.
    Answer { status, headers, text: response.text().unwrap() }
}

fn ask_with(server: &Server, method: &Method, path: &str, key: &str) -> Answer {
    ask(server, method, path, &[("authorization", &format!("Bearer {key}"))])
}

/// Goes to no other page by itself. One for all tests: to make one reads the system's certificates.
fn browser() -> &'static reqwest::blocking::Client {
    static CLIENT: std::sync::OnceLock<reqwest::blocking::Client> = std::sync::OnceLock::new();
    CLIENT.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::blocking::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(0);
        builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
    })
}

/// A form as a browser without scripts sends it.
fn post_form(url: &str, fields: &[(&str, &str)]) -> reqwest::blocking::RequestBuilder {
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let body: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    browser().post(url).header("content-type", "application/x-www-form-urlencoded").body(body.join("&"))
}

fn audit(server: &Server) -> Vec<Value> {
    let text = std::fs::read_to_string(server.store.path().join(".ortus/audit.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every operation of the document, with words in the places of its path.
pub fn operations(document: &Value) -> Vec<(Method, String)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let path = path.replace("{version}", "7").replace("{id}", "11111111-1111-4111-8111-111111111111");
            let path = path.replace("{name}", "none").replace("{model}", "none").replace("{repository}", "r");
            assert!(!path.contains('{'), "{path}");
            found.push((Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(), path));
        }
    }
    found
}

/// What a route needs, told by what it is and not by the server's own table.
fn role_of(method: &Method, path: &str) -> &'static str {
    const OPEN: [&str; 6] = ["/livez", "/readyz", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready"];
    const ASKS: [&str; 8] = ["/predict", "/infer", "/embeddings", "/embed", "/embed_all", "/rerank", "/jobs", "/index"];
    if OPEN.contains(&path) {
        return "none";
    }
    let is_job = path.starts_with("/v1/jobs/");
    let asks = path.starts_with("/predictions/")
        || *method == Method::POST
            && (ASKS.iter().any(|end| path.ends_with(end))
                || path.ends_with(":predict")
                || path.starts_with("/explanations/"));
    if *method == Method::GET || is_job || asks { "infer" } else { "admin" }
}

#[test]
fn f07_every_route_asks_for_a_key_of_its_role() {
    // Guesses are another test's.
    let (server, infer, admin) = guarded(&[("ORTUS_LIMITS__MAX_WRONG_KEYS", "1000000")]);
    let document = ask_with(&server, &Method::GET, "/openapi.json", &infer);
    let operations = operations(&serde_json::from_str(&document.text).unwrap());
    assert!(operations.len() > 50, "{}", operations.len());
    let mut other_secret = infer.clone();
    other_secret.replace_range(other_secret.len() - 64.., &"0".repeat(64));
    let wrong: [(&str, String); 8] = [
        ("authorization", format!("Bearer {other_secret}")),
        ("authorization", format!("Bearer {}", &infer[..infer.len() - 1])),
        ("authorization", format!("Bearer {}", infer.to_uppercase())),
        ("authorization", infer.clone()),
        ("authorization", format!("Basic {infer}")),
        ("authorization", "Bearer".to_owned()),
        ("x-api-key", id_of(&infer).to_owned()),
        ("x-api-key", String::new()),
    ];
    for (method, path) in &operations {
        let role = role_of(method, path);
        let open = role == "none";
        let at = format!("{method} {path}");
        let refused = |answer: Answer, at: &str| {
            assert_eq!(answer.status == 401, !open, "{at}: {} {}", answer.status, answer.text);
            assert!(open || answer.header("www-authenticate").starts_with("Bearer"), "{at}");
        };
        refused(ask(&server, method, path, &[]), &at);
        for name in ["key", "api_key", "access_token", "token"] {
            refused(ask(&server, method, &format!("{path}?{name}={admin}"), &[]), &at);
        }
        for (name, value) in &wrong {
            refused(ask(&server, method, path, &[(*name, value.as_str())]), &at);
        }
        let by_infer = ask(&server, method, path, &[("x-api-key", &infer)]);
        assert_eq!(by_infer.status == 403, role == "admin", "{at}: {} {}", by_infer.status, by_infer.text);
        assert_ne!(by_infer.status, 401, "{at}");
        let by_admin = ask_with(&server, method, path, &admin);
        assert!(![401, 403, 429].contains(&by_admin.status), "{at}: {} {}", by_admin.status, by_admin.text);
    }
    // A path that is none says so only to who has a key.
    assert_eq!(ask(&server, &Method::GET, "/nothing", &[]).status, 401);
    assert_eq!(ask_with(&server, &Method::GET, "/nothing", &infer).status, 404);
    assert_eq!(ask(&server, &Method::GET, "/docs/", &[]).status, 303);
    assert_eq!(ask_with(&server, &Method::GET, "/docs/", &infer).status, 200);
}

#[test]
fn without_keys_nobody_needs_one_and_the_first_closes_the_server() {
    let server = Server::with(&["echo"]);
    // Clients that must send something send anything.
    assert_eq!(ask_with(&server, &Method::GET, "/v1/models", "anything").status, 200);
    assert_eq!(ask(&server, &Method::GET, "/ui/sign-in", &[]).status, 303);
    let first = make(server.store.path(), "infer", &[]);
    wait_until(|| ask(&server, &Method::GET, "/v1/models", &[]).status == 401);
    assert_eq!(ask_with(&server, &Method::GET, "/v1/models", &first).status, 200);
    assert_eq!(ask(&server, &Method::GET, "/readyz", &[]).status, 200);
}

#[test]
fn keys_come_and_go_without_a_restart() {
    let (server, infer, admin) = guarded(&[("ORTUS_LIMITS__MAX_WRONG_KEYS", "1000000")]);
    let status = |key: &str| ask_with(&server, &Method::GET, "/v1/models", key).status;
    let added = make(server.store.path(), "infer", &["--name", "added", "--expires-days", "1"]);
    wait_until(|| status(&added) == 200);
    let list = key(server.store.path(), &["list", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3);
    assert_eq!(
        (&list[2]["name"], &list[2]["role"], &list[2]["expired"]),
        (&json!("added"), &json!("infer"), &json!(false))
    );
    assert!(key(server.store.path(), &["revoke", id_of(&infer)]).status.success());
    wait_until(|| status(&infer) == 401);
    assert_eq!((status(&added), status(&admin)), (200, 200));
    let again = key(server.store.path(), &["revoke", id_of(&infer)]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).starts_with("error: there is no key"));
    // A file that is gone opens nothing.
    let path = server.store.path().join(".ortus/keys.json");
    std::fs::remove_file(&path).unwrap();
    wait_until(|| status(&added) == 401);
    assert_eq!(ask(&server, &Method::GET, "/v1/models", &[]).status, 401);
}

#[test]
fn f47_odd_headers_are_refused_and_the_right_key_still_works() {
    let (server, infer, _) = guarded(&[]);
    let send = |headers: &str| {
        raw(
            server.address,
            format!("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n").as_bytes(),
        )
    };
    let right = format!("Authorization: Bearer {infer}\r\n");
    for (headers, statuses) in [
        (format!("{right}{right}"), &[400][..]),
        (format!("{right}X-API-Key: {infer}\r\n"), &[400]),
        (format!("X-API-Key: {infer}\r\nX-API-Key: {infer}\r\n"), &[400]),
        (format!("Authorization: Bearer {}\r\n", "a".repeat(100_000)), &[431]),
        (format!("Authorization: Bearer {}\r\n", "a".repeat(20_000)), &[401]),
        ("Authorization: \r\n".to_owned(), &[401]),
        ("Authorization: Bearer \u{e9}\u{0}\r\n".to_owned(), &[400]),
        ("Authorization: Bearer \u{e9}\r\n".to_owned(), &[401]),
        ("Authorization: Digest a=\"b\"\r\n".to_owned(), &[401]),
        (format!("Authorization: Bearer {infer} {infer}\r\n"), &[401]),
    ] {
        let answer = send(&headers);
        let status: u16 = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
        assert!(statuses.contains(&status), "{headers:.60}: {answer:.300}");
    }
    for index in 0..120 {
        let status = ask_with(&server, &Method::GET, "/v1/models", &format!("guess{index}")).status;
        assert!([401, 429].contains(&status), "{status}");
    }
    assert!(send(&right).starts_with("HTTP/1.1 200"));
    assert_eq!(server.get("/readyz").status(), 200);
}

#[test]
fn f82_guesses_are_refused_with_an_entry_and_the_right_key_is_let_in() {
    let (server, infer, _) = guarded(&[("ORTUS_LIMITS__MAX_WRONG_KEYS", "5")]);
    let guess = || ask_with(&server, &Method::GET, "/v1/models", "guess");
    for _ in 0..5 {
        assert_eq!(guess().status, 401);
    }
    for _ in 0..3 {
        let answer = guess();
        assert_eq!((answer.status, answer.code().as_str()), (429, "too_many_wrong_keys"));
        assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=60).contains(&seconds)));
    }
    // The two ways through the door.
    assert_eq!(ask_with(&server, &Method::POST, "/v1/models/echo/predict", "guess").status, 429);
    assert_eq!(ask_with(&server, &Method::GET, "/v1/models", &infer).status, 200);
    assert_eq!(ask(&server, &Method::GET, "/v1/models", &[]).status, 401);
    wait_until(|| audit(&server).len() == 1);
    let entry = &audit(&server)[0];
    assert_eq!((&entry["key"], &entry["status"], &entry["from"]), (&json!("none"), &json!(429), &json!("127.0.0.1")));
    assert_eq!(entry["action"], "GET /v1/models");
}

#[test]
fn a_key_has_its_own_rate_and_body_limit() {
    let store = store_of(&["echo"]);
    let slow = make(store.path(), "infer", &["--requests-per-minute", "3"]);
    let small = make(store.path(), "admin", &["--max-body-bytes", "10"]);
    let server = Server::on(store, &[]);
    for _ in 0..3 {
        assert_eq!(ask_with(&server, &Method::GET, "/v1/models", &slow).status, 200);
    }
    let answer = ask_with(&server, &Method::GET, "/v1/models", &slow);
    assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"));
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=20).contains(&seconds)));
    for path in ["/v1/models/echo/predict", "/v1/models/echo/versions/1/predict", "/v1/models"] {
        let body = r#"{"inputs": [[1, 2, 3]]}"#;
        let send = |request: reqwest::blocking::RequestBuilder| {
            let request = request.header("x-api-key", &small).header("content-type", "application/json");
            let response = request.send().unwrap();
            (response.status().as_u16(), response.text().unwrap())
        };
        for (status, text) in [
            send(server.post(path).body(body)),
            // Without a declared length.
            send(server.post(path).body(reqwest::blocking::Body::new(std::io::Cursor::new(body)))),
        ] {
            assert!(status == 413 && text.contains("this key's max_body_bytes = 10"), "{path}: {status} {text}");
        }
    }
}

#[test]
fn f80_a_public_address_needs_keys() {
    let store = store_of(&[]);
    let serve = |more: &[&str]| {
        let mut command = command();
        command.args(["serve", "--listen", "0.0.0.0:0", "--models"]).arg(store.path()).args(more);
        command
    };
    let output = serve(&[]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.lines().count() == 1, "{error}");
    assert!(error.contains("ortus key create") && error.contains("--insecure"), "{error}");
    // An expired key is none. It cannot be made, only become so.
    let key = make(store.path(), "admin", &["--expires-days", "1"]);
    let path = store.path().join(".ortus/keys.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["keys"][0]["expires_ms"] = json!(1);
    std::fs::write(&path, file.to_string()).unwrap();
    assert!(!serve(&[]).output().unwrap().status.success());
    let fresh = make(store.path(), "admin", &[]);
    let mut child = serve(&[]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().to_owned();
    let status = |key: &str| {
        browser().get(format!("http://127.0.0.1:{port}/v1/models")).bearer_auth(key).send().unwrap().status().as_u16()
    };
    let found = [status(&fresh), status(&key), status("")];
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(found, [200, 401, 401]);
}

/// An address of this machine that is not loopback; `None`, loudly, where it has none. Nothing is sent to find it.
fn outer_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()).map(|address| address.ip());
    let outer = address.ok().filter(|address| !address.is_loopback() && !address.is_unspecified());
    if outer.is_none() {
        eprintln!("SKIPPED: this machine has no address but loopback");
    }
    outer
}

#[test]
fn without_keys_the_dashboard_changes_nothing_from_another_machine() {
    let Some(outer) = outer_address() else { return };
    let server = Server::launch_at(command(), &["--listen", "0.0.0.0:0", "--insecure"], store_of(&["mlp"]), &[]);
    server.wait_ready();
    let port = server.address.port();
    let [near, far] = [format!("http://127.0.0.1:{port}"), format!("http://{outer}:{port}")];
    let get = |base: &str, path: &str| browser().get(format!("{base}{path}")).send().unwrap().status().as_u16();
    for page in ["/", "/ui/models", "/ui/models/mlp", "/ui/models/mlp/delete", "/ui/system", "/livez"] {
        assert_eq!((get(&near, page), get(&far, page)), (200, 200), "{page}");
    }
    for action in ["/ui/models/mlp/unload", "/ui/cleanup", "/ui/models/mlp/delete", "/ui/add", "/ui/log-level"] {
        let refused = post_form(&format!("{far}{action}"), &[("level", "warn")]).send().unwrap();
        let (status, text) = (refused.status().as_u16(), refused.text().unwrap());
        assert!(status == 403 && text.contains("<html") && text.contains("ortus key create"), "{action} {text}");
    }
    // To try a model out changes nothing, nor do looks; and programs may what they might.
    let form = reqwest::blocking::multipart::Form::new().text("json", r#"{"inputs": []}"#);
    let tried = browser().post(format!("{far}/ui/models/mlp/try")).multipart(form).send().unwrap();
    assert_eq!(tried.status(), 200);
    assert_eq!(
        post_form(&format!("{far}/ui/theme"), &[("theme", "dark"), ("back", "/")]).send().unwrap().status(),
        303
    );
    assert_eq!(browser().post(format!("{far}/v1/models/mlp/load")).send().unwrap().status(), 200);
    assert_eq!(post_form(&format!("{near}/ui/models/mlp/unload"), &[]).send().unwrap().status(), 303);
    // With a key it goes by the sign-in again.
    let admin = make(server.store.path(), "admin", &[]);
    wait_until(|| get(&far, "/v1/models") == 401);
    let signed = post_form(&format!("{far}/ui/sign-in"), &[("key", &admin), ("back", "/")]).send().unwrap();
    let cookie = signed.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let load = post_form(&format!("{far}/ui/models/mlp/load"), &[]).header("cookie", cookie).send().unwrap();
    assert_eq!(load.headers()["location"], "/ui/models/mlp?done=load");
}

#[test]
fn auth_require_asks_for_keys_where_there_is_none() {
    let server = Server::start(&["echo"], &[("ORTUS_AUTH__REQUIRE", "true")]);
    assert_eq!(ask(&server, &Method::GET, "/v1/models", &[]).status, 401);
    let first = make(server.store.path(), "infer", &[]);
    wait_until(|| ask_with(&server, &Method::GET, "/v1/models", &first).status == 200);
}

#[test]
fn f91_every_management_action_is_written_down() {
    let (server, infer, admin) = guarded(&[]);
    let (admin_id, infer_id) = (id_of(&admin), id_of(&infer));
    assert_eq!(ask_with(&server, &Method::POST, "/v1/models/echo/unload", &admin).status, 200);
    assert_eq!(ask_with(&server, &Method::DELETE, "/v1/models/nope", &admin).status, 404);
    assert_eq!(ask_with(&server, &Method::POST, "/v1/models/echo/load", &infer).status, 403);
    assert_eq!(ask_with(&server, &Method::POST, "/v2/repository/models/echo/load", &admin).status, 200);
    // What changes nothing is not written down.
    assert_eq!(ask_with(&server, &Method::GET, "/v1/models", &admin).status, 200);
    ask_with(&server, &Method::POST, "/v1/models/echo/predict", &infer);
    let rows: Vec<_> = audit(&server)
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            assert_eq!(text("from"), "127.0.0.1");
            assert!(text("time").ends_with('Z') && !text("request_id").is_empty());
            (text("key"), text("action"), text("model"), entry["status"].as_u64().unwrap())
        })
        .collect();
    let row =
        |key: &str, action: &str, model: &str, status| (key.to_owned(), action.to_owned(), model.to_owned(), status);
    assert_eq!(
        rows,
        [
            row(admin_id, "POST /v1/models/{name}/unload", "echo", 200),
            row(admin_id, "DELETE /v1/models/{name}", "nope", 404),
            row(infer_id, "POST /v1/models/{name}/load", "echo", 403),
            row(admin_id, "POST /v2/repository/models/{name}/load", "echo", 200),
        ]
    );
}

#[test]
fn f91_without_keys_actions_are_written_down_as_of_this_machine() {
    let server = Server::with(&["echo"]);
    assert_eq!(server.post("/ui/models/echo/unload").send().unwrap().status(), 200);
    let entries = audit(&server);
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (&entries[0]["key"], &entries[0]["action"]),
        (&json!("loopback"), &json!("POST /ui/models/{name}/unload"))
    );
}

#[test]
fn f48_a_key_is_nowhere_but_with_its_owner() {
    let store = store_of(&["echo"]);
    let (infer, admin) = (make(store.path(), "infer", &[]), make(store.path(), "admin", &[]));
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut by = command();
    by.stderr(log.reopen().unwrap());
    let server = Server::launch_by(by, store, &[("ORTUS_TELEMETRY__LOG_LEVEL", "trace")]);
    server.wait_ready();
    let session = sign_in(&server, &admin);
    let wrong = format!("{}0", &admin[..admin.len() - 1]);
    ask_with(&server, &Method::POST, "/v1/models/echo/unload", &admin);
    ask_with(&server, &Method::POST, "/v1/models/echo/load", &infer);
    ask_with(&server, &Method::GET, "/v1/models", &wrong);
    ask(&server, &Method::POST, &format!("/v1/models/{admin}/load?key={admin}"), &[("x-api-key", &admin)]);
    let mut seen = Vec::new();
    for path in ["/metrics", "/openapi.json", "/v1/system", "/v1/models", "/ui/system", "/ui/events", "/", "/v1/stats"]
    {
        seen.push((path.to_owned(), ask_with(&server, &Method::GET, path, &admin).text));
    }
    let show = command().args(["config", "show", "--json"]).output().unwrap();
    seen.push(("config show".to_owned(), String::from_utf8(show.stdout).unwrap()));
    let list = key(server.store.path(), &["list"]);
    seen.push(("key list".to_owned(), String::from_utf8(list.stdout).unwrap()));
    let process = format!("/proc/{}", server.child.id());
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("{process}/{file}")).unwrap();
        seen.push((file.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
    }
    seen.push(("log".to_owned(), std::fs::read_to_string(log.path()).unwrap()));
    for name in ["keys.json", "audit.log"] {
        let text = std::fs::read_to_string(server.store.path().join(".ortus").join(name)).unwrap();
        assert!(text.contains(id_of(&admin)), "{name}");
        seen.push((name.to_owned(), text));
    }
    let secret = |key: &str| key.rsplit('_').next().unwrap().to_owned();
    for (place, text) in &seen {
        for secret in [secret(&infer), secret(&admin), secret(&wrong), session.clone()] {
            assert!(!text.contains(&secret), "{place} holds a key");
        }
    }
}

#[test]
fn f92_keys_are_kept_as_hashes_in_a_file_of_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let store = store_of(&[]);
    let made = make(store.path(), "admin", &["--name", "me"]);
    assert_eq!(made.len(), "ortus_".len() + 10 + 1 + 64);
    let path = store.path().join(".ortus/keys.json");
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let sha256 = Command::new("sh").args(["-c", "printf %s \"$KEY\" | sha256sum"]).env("KEY", &made).output().unwrap();
    let sha256 = String::from_utf8(sha256.stdout).unwrap();
    assert_eq!(file["keys"][0]["sha256"].as_str(), sha256.split(' ').next());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for bad in [
        &["create"][..],
        &["create", "--role", "root"],
        &["create", "--role", "infer", "--expires-days", "0"],
        &["revoke", "x"],
    ] {
        let output = key(store.path(), bad);
        assert!(!output.status.success() && output.stdout.is_empty());
    }
}

/// Signs in, and gives the session's token.
fn sign_in(server: &Server, key: &str) -> String {
    let response = post_form(&server.url("/ui/sign-in"), &[("key", key), ("back", "/ui/models")]).send().unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["location"].to_str().unwrap()), (303, "/ui/models"));
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    for word in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(key));
    cookie.strip_prefix("ortus_session=").unwrap().split(';').next().unwrap().to_owned()
}

#[test]
fn the_dashboard_is_behind_a_sign_in_that_needs_no_script() {
    let (server, infer, admin) = guarded(&[]);
    let to_sign_in = ask(&server, &Method::GET, "/ui/events?level=info", &[]);
    assert_eq!((to_sign_in.status, to_sign_in.header("location")), (303, "/ui/sign-in?back=/ui/events%3Flevel%3Dinfo"));
    assert_eq!(ask(&server, &Method::GET, "/", &[]).header("location"), "/ui/sign-in");
    assert_eq!(ask(&server, &Method::POST, "/ui/cleanup", &[]).header("location"), "/ui/sign-in");
    assert_eq!(ask(&server, &Method::GET, "/ui/live?of=/", &[]).status, 401);
    assert_eq!(ask(&server, &Method::GET, "/ui/assets/ortus.css", &[]).status, 200);
    let page = ask(&server, &Method::GET, "/ui/sign-in?back=//evil.example", &[]);
    assert!(page.status == 200 && page.text.contains(r#"name="back" value="/""#), "{}", page.text);
    assert!(!page.text.contains("/ui/models"), "the page tells of others");

    let (looker, manager) = (sign_in(&server, &infer), sign_in(&server, &admin));
    let cookie = |token: &str| format!("theme=dark; ortus_session={token}");
    let get = |token: &str, path: &str| ask(&server, &Method::GET, path, &[("cookie", &cookie(token))]);
    for path in
        ["/", "/ui/models", "/ui/models/echo", "/ui/add", "/ui/jobs", "/ui/events", "/ui/system", "/openapi.json"]
    {
        assert_eq!(get(&looker, path).status, 200, "{path}");
    }
    assert!(get(&looker, "/").text.contains("Sign out"));
    let post = |token: &str, path: &str, more: &[(&str, &str)]| {
        let cookie = cookie(token);
        ask(&server, &Method::POST, path, &[&[("cookie", &*cookie)][..], more].concat())
    };
    let low = post(&looker, "/ui/models/echo/unload", &[]);
    assert!(low.status == 403 && low.text.contains("<html") && low.text.contains("role"), "{}", low.text);
    // Another page of this machine: the browser sends it the cookie, too.
    let foreign = [("origin", "http://127.0.0.1:1")];
    assert_eq!(post(&manager, "/v1/models/echo/unload", &foreign).status, 401);
    assert_eq!(post(&manager, "/ui/models/echo/unload", &foreign).header("location"), "/ui/sign-in");
    assert_eq!(post(&manager, "/ui/models/echo/unload", &[]).header("location"), "/ui/models/echo?done=unload");
    let actions: Vec<_> = audit(&server)
        .iter()
        .map(|entry| {
            format!("{} {} {}", entry["key"].as_str().unwrap(), entry["action"].as_str().unwrap(), entry["status"])
        })
        .collect();
    let (infer_id, admin_id) = (id_of(&infer), id_of(&admin));
    assert_eq!(
        actions,
        [
            format!("{infer_id} POST /ui/sign-in 303"),
            format!("{admin_id} POST /ui/sign-in 303"),
            format!("{infer_id} POST /ui/models/{{name}}/unload 403"),
            format!("{admin_id} POST /ui/models/{{name}}/unload 303"),
        ]
    );

    let out = post(&looker, "/ui/sign-out", &[]);
    assert!(out.status == 303 && out.header("set-cookie").contains("Max-Age=0"));
    assert_eq!((get(&looker, "/").status, get(&manager, "/").status), (303, 200));
    // A session ends with its key.
    assert!(key(server.store.path(), &["revoke", admin_id]).status.success());
    wait_until(|| get(&manager, "/").status == 303);
}

#[test]
fn f82_five_wrong_keys_a_minute_may_be_tried_on_the_sign_in_page() {
    let (server, infer, _) = guarded(&[]);
    let try_key = |key: &str| {
        let response = post_form(&server.url("/ui/sign-in"), &[("key", key)]).send().unwrap();
        (response.status().as_u16(), response.text().unwrap())
    };
    for _ in 0..5 {
        let (status, text) = try_key("<b>wrong</b>");
        assert!(status == 401 && text.contains("wrong, expired or revoked") && !text.contains("<b>wrong"), "{text}");
    }
    for _ in 0..2 {
        assert_eq!(try_key("wrong").0, 429);
    }
    sign_in(&server, &infer);
    let statuses: Vec<_> = audit(&server).iter().map(|entry| entry["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 303]);
    // Nobody without a key sends us much.
    let large = browser().post(server.url("/ui/sign-in")).body(vec![b'a'; 20_000]).send().unwrap();
    assert_eq!(large.status(), 413);
    // Behind a proxy that ends TLS the cookie is for TLS alone.
    let request = post_form(&server.url("/ui/sign-in"), &[("key", &infer)]).header("x-forwarded-proto", "https");
    let response = request.send().unwrap();
    assert!(response.headers()["set-cookie"].to_str().unwrap().ends_with("; Secure"));
}

/// A stream of events of which the first bytes have come.
fn open_stream(server: &Server, path: &str, key: &str) -> reqwest::blocking::Response {
    let mut stream = server.client.get(server.url(path)).bearer_auth(key).send().unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert!(std::io::Read::read(&mut stream, &mut [0; 16]).unwrap() > 0);
    stream
}

#[test]
fn a_stream_ends_with_the_key_that_opened_it_and_others_go_on() {
    // Takes a download's connection and answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let store = store_of(&["slow"]);
    let (infer, admin) = (make(store.path(), "infer", &[]), make(store.path(), "admin", &[]));
    let server = Server::on(store, &[("ORTUS_HUB__ALLOWED_HOSTS", &host)]);
    let post = |path: &str, body: Value| -> Value {
        let response = server.post(path).bearer_auth(&admin).json(&body).send().unwrap();
        assert_eq!(response.status(), 202, "{path}");
        response.json().unwrap()
    };
    let job = post("/v1/models/slow/jobs", json!({"inputs": {"n": 1_000_000_000_000u64}}));
    let order = json!({"name": "new", "source": "url", "url": format!("http://{host}/model.onnx")});
    let download = post("/v1/models", order)["download"]["id"].clone();
    let job = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let paths = [format!("{job}/events"), format!("/v1/downloads/{}/events", download.as_str().unwrap())];
    let streams = paths.iter().map(|path| open_stream(&server, path, &infer)).collect::<Vec<_>>();
    let mut other = open_stream(&server, &paths[0], &admin);
    // It expires, which is not made but becomes so.
    let path = server.store.path().join(".ortus/keys.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let keys = file["keys"].as_array_mut().unwrap();
    keys.iter_mut().find(|key| key["id"] == id_of(&infer)).unwrap()["expires_ms"] = json!(1);
    std::fs::write(&path, file.to_string()).unwrap();
    for mut stream in streams {
        // It would go on for ever else, and the client's patience would end with an error.
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    }
    let cancelled = server.client.delete(server.url(&job)).bearer_auth(&admin).send().unwrap();
    assert!(cancelled.status().is_success());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut other, &mut rest).unwrap();
    assert!(rest.contains(r#""status":"cancelled""#), "{rest}");
}

#[test]
fn a_live_page_ends_with_its_key() {
    use std::io::Read;
    let (server, infer, _) = guarded(&[]);
    let request = server.client.get(server.url("/ui/live?of=/")).bearer_auth(&infer);
    let mut stream = request.send().unwrap();
    let mut first = [0; 64];
    assert!(stream.read(&mut first).unwrap() > 0);
    assert!(key(server.store.path(), &["revoke", id_of(&infer)]).status.success());
    // It would go on for ever else, and the client's patience would end with an error.
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
}

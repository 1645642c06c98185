//! Attacks through browsers, proxies, names and the log; the form of every refusal.

use crate::attack::{Attacked, ask, exchange, good, operations};
use crate::server::{Server, command, copy_folder, fixture, root, store_of, wait_until};
use crate::stats::Metrics;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const PREDICT: &str = "/v1/models/mlp/predict";
const EVIL: &str = "https://evil.example";

/// F41.
#[test]
fn a_foreign_host_is_told_nothing_on_any_route() {
    let mut server = Attacked::with(&[], &[]);
    let pages = ["/", "/ui/models", "/ui/sign-in", "/docs/", "/nothing"].map(|path| (Method::GET, path.to_owned()));
    for (method, path) in operations(&server, "mlp").into_iter().chain(pages) {
        let answer = ask(&server, &method, &path, &[("host", "evil.example")], "");
        assert_eq!(answer.status, 421, "{method} {path}");
        answer.assert_error(&path, server.store.path());
        assert!(answer.header("access-control-allow-origin").is_empty(), "{method} {path}");
    }
    assert!(Metrics::of(&server).sum("ortus_rejected_total", &[("reason", "host")]) > 50);
    server.assert_unharmed(32);
}

/// F42.
#[test]
fn a_foreign_page_changes_nothing_by_any_route() {
    let mut server = Attacked::with(&[], &[]);
    let forms = ["/ui/models/mlp/unload", "/ui/models/mlp/delete", "/ui/add", "/ui/sign-in"];
    let forms = forms.map(|path| (Method::POST, path.to_owned()));
    let writes = operations(&server, "mlp").into_iter().filter(|(method, _)| *method != Method::GET);
    for (method, path) in writes.chain(forms) {
        for headers in [
            &[("origin", EVIL), ("content-type", "text/plain")][..],
            &[("origin", "null"), ("content-type", "application/x-www-form-urlencoded")],
            &[("origin", "http://localhost:1"), ("content-type", "application/json")],
            &[("sec-fetch-site", "cross-site"), ("content-type", "multipart/form-data; boundary=x")],
        ] {
            let answer = ask(&server, &method, &path, headers, &good().to_string());
            assert_eq!(answer.status, 403, "{method} {path} {headers:?}: {}", answer.text);
        }
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let answer = ask(&server, &Method::POST, PREDICT, &[("content-type", kind)], &good().to_string());
        assert_eq!(answer.status, 415, "{kind}: {}", answer.text);
    }
    assert!(Metrics::of(&server).sum("ortus_rejected_total", &[("reason", "origin")]) > 50);
    assert_eq!(server.get_json("/v1/models/mlp")["state"], "ready");
    server.assert_unharmed(32);
}

/// F43.
#[test]
fn nobody_gets_cors_headers_by_default() {
    let mut server = Attacked::with(&[], &[]);
    for (method, path) in operations(&server, "mlp") {
        let asked = [("origin", EVIL), ("access-control-request-method", method.as_str())];
        let preflight = ask(&server, &Method::OPTIONS, &path, &asked, "");
        let simple = ask(&server, &Method::HEAD, &path, &[("origin", EVIL)], "");
        for answer in [preflight, simple] {
            let given: Vec<_> =
                answer.headers.keys().filter(|name| name.as_str().starts_with("access-control")).collect();
            assert!(given.is_empty(), "{method} {path}: {given:?}");
        }
    }
    server.assert_unharmed(32);
}

/// F44, F45.
#[test]
fn markup_in_names_labels_and_errors_is_text_on_every_page() {
    let store = store_of(&[]);
    copy_folder(&root().join("models/digits"), &store.path().join("digits"));
    let markup = "<img src=x onerror=alert(1)>'\"";
    let file = store.path().join("digits/1/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["id2label"] = (0..10).map(|index| (index.to_string(), json!(format!("{markup}{index}")))).collect();
    std::fs::write(&file, config.to_string()).unwrap();
    let broken = store.path().join("broken/1");
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("model.onnx"), b"junk").unwrap();
    std::fs::write(store.path().join("broken/model.toml"), format!("description = '''{markup}'''\n")).unwrap();
    let mut server = Attacked::on(store, &[]);
    let quoted: String = markup.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut pages: Vec<String> =
        ["/", "/ui/models", "/ui/events", "/ui/system", "/ui/jobs", "/ui/add", "/ui/models/digits"]
            .map(str::to_owned)
            .to_vec();
    pages.extend(["try", "delete"].map(|leaf| format!("/ui/models/digits/{leaf}")));
    pages.push("/ui/models/broken".to_owned());
    pages.extend(
        ["/ui/events?text=", "/ui/events?model=", "/ui/models/", "/ui/add?model=", "/?done=", "/ui/jobs?status="]
            .map(|path| format!("{path}{quoted}")),
    );
    for path in pages {
        let answer = ask(&server, &Method::GET, &path, &[("accept", "text/html")], "");
        assert!(!answer.text.contains("<img src=x"), "{path}: {}", answer.text);
        assert!(!answer.text.contains("onerror=alert(1)>"), "{path}: {}", answer.text);
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        if !answer.header("content-type").starts_with("text/html") {
            assert!(answer.status >= 300, "{path}: {} {}", answer.status, answer.header("content-type"));
            continue;
        }
        let policy = answer.header("content-security-policy");
        for part in ["default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "object-src 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("referrer-policy"), "same-origin", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    for path in [format!("/v1/models/{quoted}"), format!("/{quoted}"), format!("/v2/models/{quoted}")] {
        let answer = ask(&server, &Method::GET, &path, &[("accept", "text/html")], "");
        answer.assert_error("/", server.store.path());
        assert!(answer.header("content-type").contains("json"), "{path}");
    }
    server.assert_unharmed(32);
}

/// F05.
#[test]
fn names_that_are_no_names_reach_nothing_by_any_route() {
    let mut server = Attacked::with(&[], &[]);
    let long = "x".repeat(20_000);
    let names = [
        "..",
        ".",
        "%2e%2e",
        "%2e",
        "..%2fmlp",
        "..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "mlp%2f..%2fmlp",
        "mlp%2f1",
        "a%5c..%5cmlp",
        "..%5c..%5cmlp",
        "%00",
        "mlp%00",
        "mlp%0a",
        "mlp%0d%0aX-Evil:1",
        "%1b%5b2J",
        "%c0%ae%c0%ae",
        "%ed%a0%80",
        "%e2%80%ae",
        "%ff",
        "-mlp",
        ".mlp",
        ".ortus",
        "mlp%20",
        "%20mlp",
        "mlp.",
        "~",
        "C:",
        "con%3a",
        &long,
    ];
    let routes: Vec<(Method, String)> =
        operations(&server, "mlp").into_iter().filter(|(_, path)| path.contains("/mlp")).collect();
    assert!(routes.len() > 25, "{routes:?}");
    for (method, path) in &routes {
        for name in names {
            let path = path.replace("/mlp", &format!("/{name}"));
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            );
            let got = exchange(server.address, request.as_bytes(), Duration::from_secs(2));
            let statuses = got.statuses();
            // What is not there at all takes any name.
            let is_refused = matches!(statuses[..], [400 | 404 | 405 | 414 | 422])
                || path.starts_with("/explanations/") && matches!(statuses[..], [501]);
            assert!(is_refused, "{method} {path:.80}: {}", got.text);
            assert!(!got.text.contains("\nX-Evil") && !got.text.contains("root:"), "{method} {path:.80}: {}", got.text);
        }
    }
    let kept = server.store.path().join("mlp/1/model.onnx");
    assert!(kept.is_file());
    server.assert_unharmed(32);
}

/// F46.
#[test]
fn what_proxies_believe_opens_no_door() {
    let (server, infer, _) = crate::keys::guarded(&[]);
    let send = |request: String| {
        let got = exchange(server.address, request.as_bytes(), Duration::from_secs(2));
        (got.statuses(), got.text)
    };
    let get = |path: &str, more: &str| {
        send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n"))
    };
    for path in [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/./models",
        "/livez/../v1/models",
        "/livez/..%2fv1/models",
        "/livez%2f..%2fv1%2fmodels",
        "/v1/models;x=1",
        "/livez;/v1/models",
        "/%76%31/models",
        "/V1/models",
        "/v1/models%00",
        "/v1/models%20",
        "/v1/models?/livez",
        "/v1/models#/livez",
        "\\v1\\models",
        "http://localhost/v1/models",
        "/ui/assets/../models",
        "/ui/assets/%2e%2e/%2e%2e/etc/passwd",
        "/docs/..%2f..%2fv1/models",
    ] {
        let (statuses, text) = get(path, "");
        // People are sent to the page where keys are asked for.
        let is_asked = statuses == [303] && text.contains("location: /ui/sign-in");
        assert!(is_asked || matches!(statuses[..], [400 | 401 | 404]), "{path}: {text}");
        assert!(!text.contains("echo") && !text.contains("root:"), "{path}: {text}");
    }
    for more in [
        "X-Original-URL: /livez\r\n",
        "X-Rewrite-URL: /livez\r\n",
        "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: localhost\r\nX-Real-IP: ::1\r\n",
        "X-Forwarded-User: admin\r\nX-Remote-User: admin\r\n",
        "X-HTTP-Method-Override: HEAD\r\nX-Method-Override: OPTIONS\r\n",
        "Connection: X-API-Key\r\n",
    ] {
        let (statuses, text) = get("/v1/models", more);
        assert_eq!(statuses, [401], "{more}: {text}");
    }
    let upgrade = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n";
    let (statuses, text) = send(upgrade.to_owned());
    assert_eq!(statuses, [401], "{text}");
    // A method that a key may not use is not used by the name of another.
    for (method, more, status) in [
        ("GET", "X-HTTP-Method-Override: DELETE\r\n", 200),
        ("POST", "X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n", 405),
        ("DELETE", "X-HTTP-Method-Override: GET\r\n", 403),
        ("PUT", "Content-Length: 0\r\n", 405),
    ] {
        let request = format!(
            "{method} /v1/models/echo HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {infer}\r\n{more}Connection: close\r\n\r\n"
        );
        let (statuses, text) = send(request);
        // A method that is none of the route's may be refused for the key's role first.
        assert!(statuses == [status] || (status == 405 && statuses == [403]), "{method} {more}: {text}");
    }
    assert_eq!(ask(&server, &Method::GET, "/v1/models/echo", &[("x-api-key", &infer)], "").status, 200);
}

/// F49.
#[test]
fn errors_wrong_methods_and_heads_have_one_form_on_every_route() {
    let mut server = Attacked::with(&[], &[]);
    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (method, path) in operations(&server, "none") {
        methods.entry(path).or_default().insert(method.to_string());
    }
    assert!(methods.len() > 40, "{methods:?}");
    for (path, own) in &methods {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"] {
            if own.contains(method) {
                continue;
            }
            let answer = ask(&server, &Method::from_bytes(method.as_bytes()).unwrap(), path, &[], "");
            assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text);
            answer.assert_error(path, server.store.path());
            let allow: BTreeSet<String> =
                answer.header("allow").split(',').map(|word| word.trim().to_owned()).collect();
            assert!(own.is_subset(&allow) && !allow.contains(method), "{method} {path}: {allow:?}");
        }
        // Streams of events do not end by themselves, and their models and jobs are not there.
        if own.contains("GET") {
            let (got, head) = (ask(&server, &Method::GET, path, &[], ""), ask(&server, &Method::HEAD, path, &[], ""));
            assert_eq!((got.status, got.header("content-type")), (head.status, head.header("content-type")), "{path}");
            assert!(head.text.is_empty(), "{path}");
            if got.status >= 400 {
                got.assert_error(path, server.store.path());
            }
        }
        if own.contains("POST") {
            let answer = ask(&server, &Method::POST, path, &[("content-type", "application/json")], "{");
            assert!(answer.status < 500 || answer.says_it_is_not_there(path), "{path}: {}", answer.text);
            if answer.status >= 400 {
                answer.assert_error(path, server.store.path());
            }
        }
    }
    server.assert_unharmed(32);
}

/// F50, F52, F81.
#[test]
fn hostile_names_and_headers_forge_no_line_and_make_no_series() {
    let mut server = Attacked::with(&[], &[]);
    let series = || Metrics::of(&server).series();
    let before = series();
    for index in 0..150u32 {
        let method = ["GET", "POST", "BREW", "M-SEARCH", "DELETE"][index as usize % 5];
        for path in [
            format!("/v1/models/x{index}%0aERROR%20forged%1b%5b31m/predict"),
            format!("/r{}/{index}", index.wrapping_mul(2_654_435_761)),
            format!("/v2/models/%22%7d%0aortus_evil%20{index}/infer"),
            format!("/v1/jobs/{index}?%1b%5d0;title%07=1"),
        ] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: \x1b[2J{index}\r\nX-Request-Id: {index}\x1b]0;<b>\r\nTraceparent: \u{202e}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let got = exchange(server.address, request.as_bytes(), Duration::from_secs(2));
            let statuses = got.statuses();
            assert!(statuses.iter().all(|status| (400..500).contains(status)), "{request:?}: {}", got.text);
            assert!(!got.text.contains('\x1b'), "{request:?}: {}", got.text);
        }
    }
    for id in ["<script>alert(1)</script>", "a b", &"a".repeat(129), "../../x"] {
        let answer = ask(&server, &Method::GET, "/nothing", &[("x-request-id", id)], "");
        let given = answer.header("x-request-id");
        assert!(given.len() == 36 && !answer.text.contains(id), "{id}: {}", answer.text);
    }
    let long = "a".repeat(100_000);
    assert_eq!(ask(&server, &Method::GET, "/livez", &[("x-request-id", &long)], "").status, 431);
    assert!(series() < before + 40, "{before} series, then {}", series());
    assert!(server.log().iter().all(|line| !line.to_string().contains("forged")));
    server.assert_unharmed(32);
}

/// F53.
#[test]
fn bad_bodies_are_few_short_lines_of_the_log_and_nothing_of_them_is_in_it() {
    let mut server = Attacked::with(&[], &[("ORTUS_TELEMETRY__REFUSAL_LINES_PER_SECOND", "5")]);
    let before = server.log_bytes();
    let body = format!("{{\"inputs\": \"{}", "secret-of-a-client ".repeat(5500));
    for index in 0..400 {
        let path = if index % 2 == 0 { PREDICT } else { "/v2/models/mlp/infer" };
        let (status, answer) = server.post_text(path, "application/json", body.clone().into_bytes());
        assert!(status == 400 && answer.to_string().len() < 2048, "{status} {answer:.300}");
    }
    // What was left out of the last second is told when it is over.
    let of_code = |lines: Vec<Value>| -> Vec<Value> {
        lines.into_iter().filter(|line| line["code"] == "malformed_body").collect()
    };
    let told = |lines: &[Value]| -> u64 { lines.iter().map(|line| line["suppressed"].as_u64().unwrap_or(1)).sum() };
    wait_until(|| told(&of_code(server.log())) >= 400);
    let written = server.log_bytes() - before;
    assert!(written < 400 * 2048, "{written} bytes");
    let lines = server.log();
    let refusals = of_code(lines.clone());
    assert_eq!(told(&refusals), 400);
    assert!(refusals.len() < 400 && refusals.iter().any(|line| line["suppressed"].is_u64()), "{}", refusals.len());
    let metrics = Metrics::of(&server);
    assert_eq!(metrics.sum("ortus_requests_total", &[("code", "400")]), 400);
    assert!(lines.iter().all(|line| !line.to_string().contains("secret-of")));
    server.assert_unharmed(32);
}

/// F53.
#[test]
fn runs_that_are_refused_by_the_hundred_are_few_lines_of_the_log() {
    let mut server = Attacked::with(&["fails"], &[("ORTUS_TELEMETRY__REFUSAL_LINES_PER_SECOND", "5")]);
    for _ in 0..200 {
        let (status, answer) = server.post_json("/v1/models/fails/predict", &json!({"inputs": {"index": [9]}}));
        assert_eq!(status, 422, "{answer}");
    }
    let written = || server.log().iter().filter(|line| line["target"] == "ort::logging").count() as u64;
    let left_out = || -> u64 {
        let log = server.log();
        let told = log.iter().filter(|line| line["code"] == "onnxruntime");
        told.map(|line| line["suppressed"].as_u64().unwrap()).sum()
    };
    wait_until(|| written() + left_out() >= 200);
    assert_eq!(written() + left_out(), 200);
    assert!(written() < 200, "{}", written());
    server.assert_unharmed(32);
}

/// The line of a refusal has the reason in both forms of the log.
#[test]
fn the_log_says_why_a_request_was_refused() {
    let store = store_of(&[]);
    copy_folder(&fixture("store/mlp"), &store.path().join("mlp"));
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = command();
    command.env("ORTUS_TELEMETRY__LOG_LEVEL", "info").stderr(log.reopen().unwrap());
    let mut server = Server::launch_by(command, store, &[]);
    server.wait_ready();
    let request = server.post(PREDICT).header("x-request-id", "mine").json(&json!({"inputs": "x"}));
    assert_eq!(request.send().unwrap().status(), 422);
    assert_eq!(server.post_json(PREDICT, &good()).0, 200);
    server.terminate();
    assert!(server.wait_exit().success());
    let text = std::fs::read_to_string(log.path()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("route=\"/v1/models/{name}/predict\"")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("code=\"invalid_input\"") && lines[0].contains("request_id=\"mine\""), "{}", lines[0]);
    assert!(!lines[1].contains("code="), "{}", lines[1]);
}

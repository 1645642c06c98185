//! The dashboard: it shows the API's own numbers, and offers nothing that would be refused.

use crate::server::{PATIENCE, Server, command, store_of, wait_until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rows of the table, list or tiles of a page below the element with `mark` in its tag, as texts.
fn rows(html: &str, mark: &str) -> Vec<Vec<String>> {
    let part = html.split_once(mark).unwrap_or_else(|| panic!("the page has no {mark}")).1;
    let end = ["</table>", "</section>"].iter().filter_map(|end| part.find(end)).min().unwrap_or(part.len());
    let part = &part[..end];
    let cells = |row: &str, closing: &[&str]| {
        let mut row = row.to_owned();
        closing.iter().for_each(|tag| row = row.replace(tag, "\u{1}"));
        row.split('\u{1}').map(text).filter(|text| !text.is_empty()).collect::<Vec<String>>()
    };
    if part.contains("<tr>") {
        part.split("<tr").skip(1).map(|row| cells(&format!("<tr{row}"), &["</td>", "</th>"])).collect()
    } else {
        part.split("<dt").skip(1).map(|row| cells(&format!("<dt{row}"), &["</dt>", "</dd>"])).collect()
    }
}

/// What a person reads of HTML.
fn text(html: &str) -> String {
    let mut read = String::new();
    let mut rest = html;
    while let Some((before, after)) = rest.split_once('<') {
        read.push_str(before);
        read.push(' ');
        rest = after.split_once('>').map_or("", |(_, after)| after);
    }
    read.push_str(rest);
    let read = read.replace("&#34;", "\"").replace("&quot;", "\"").replace("&#39;", "'").replace("&lt;", "<");
    read.replace("&gt;", ">").replace("&amp;", "&").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A number as people write it, in its base unit, and half of its last place.
fn number(shown: &str) -> (f64, f64) {
    let (digits, unit) = shown.split_once(' ').unwrap_or((shown, ""));
    let factor = match unit {
        "" | "s" | "B" => 1.0,
        "ms" => 1e-3,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        other => panic!("{shown}: no such unit {other}"),
    };
    let places = digits.split_once('.').map_or(0, |(_, places)| places.len());
    let value: f64 = digits.replace(',', "").parse().unwrap_or_else(|_| panic!("{shown} is no number"));
    (value * factor, 0.5 * 10f64.powi(-i32::try_from(places).unwrap()) * factor)
}

/// Whether what is shown is the API's value, as far as its places tell.
fn check(what: &str, shown: &str, value: &Value) {
    let Some(expected) = value.as_f64() else {
        assert_eq!((shown, value), ("–", &Value::Null), "{what}");
        return;
    };
    let (found, half) = number(shown);
    assert!((found - expected).abs() <= half * 1.001 + f64::EPSILON, "{what}: {shown} is shown of {expected}");
}

fn page(server: &Server, path: &str) -> String {
    let response = server.get(path);
    assert_eq!(response.status(), 200, "{path}");
    response.text().unwrap()
}

/// Requests that are answered, refused and shared.
fn traffic(server: &Server) {
    for rows in [1, 3, 1, 2] {
        let (status, answer) =
            server.post_json("/v1/models/mlp/predict", &json!({"inputs": {"x": vec![vec![0.5; 32]; rows]}}));
        assert_eq!(status, 200, "{answer}");
    }
    for (path, body, status) in [
        ("/v1/models/mlp/predict", json!({"inputs": {"y": [1]}}), 422),
        ("/v1/models/mlp/predict", json!({"inputs": {"x": [["a"]]}}), 422),
        ("/v1/models/mlp/predict?version=9", json!({"inputs": {}}), 404),
    ] {
        assert_eq!(server.post_json(path, &body).0, status);
    }
}

#[test]
fn a_models_page_has_the_numbers_of_the_api() {
    let server = Server::with(&["mlp"]);
    traffic(&server);
    // Counted once its client has the answer.
    wait_until(|| server.get_json("/v1/models/mlp/stats")["predict_time"]["count"] == 4);
    let html = page(&server, "/ui/models/mlp");
    let stats = server.get_json("/v1/models/mlp/stats");
    let stages = rows(&html, "aria-label=\"Times by stage\"");
    for (stage, key) in [
        ("Whole request", "predict_time"),
        ("Queue", "queue_time"),
        ("Prepare", "preprocess_time"),
        ("Run", "forward_time"),
        ("Finish", "postprocess_time"),
    ] {
        let row = stages.iter().find(|row| row[0] == stage).unwrap();
        for (cell, of) in row[1..].iter().zip(["count", "mean", "min", "p50", "p95", "p99", "max"]) {
            check(&format!("{stage} {of}"), cell, &stats[key][of]);
        }
        assert_eq!(row.len(), 8, "{row:?}");
    }
    let counted = |mark: &str| -> BTreeMap<String, u64> {
        let part = html.split_once(mark).unwrap().1;
        let part = &part[..part.find("</table>").unwrap()];
        let rows = rows(&format!("{mark}{part}"), mark);
        rows.into_iter().map(|row| (row[0].clone(), row.last().unwrap().replace(',', "").parse().unwrap())).collect()
    };
    let told = |value: &Value| -> BTreeMap<String, u64> {
        value.as_object().unwrap().iter().map(|(key, count)| (key.clone(), count.as_u64().unwrap())).collect()
    };
    assert_eq!(counted("<h3>Rows of a run</h3>"), told(&stats["batch_size"]["histogram"]));
    assert_eq!(counted("<h3>Errors</h3>"), told(&stats["error_counts"]));
    assert!(stats["error_counts"]["invalid_input"].as_u64().unwrap() >= 2, "{stats}");

    let memory = server.get_json("/v1/models/mlp/memory");
    let shown = rows(&html, "id=\"memory-h\"");
    let fact = |what: &str| shown.iter().find(|row| row[0] == what).map(|row| row[1].clone());
    for (what, key, factor) in [
        ("In memory", "cpu_memory_mb", 1_048_576.0),
        ("Size of the model", "model_size_mb", 1_048_576.0),
        ("Parameters", "total_params", 1.0),
        ("Of them trainable", "trainable_params", 1.0),
        ("On the GPU", "gpu_allocated_mb", 1_048_576.0),
        ("Reserved on the GPU", "gpu_reserved_mb", 1_048_576.0),
    ] {
        match memory[key].as_f64() {
            Some(value) => check(what, &fact(what).unwrap(), &json!(value * factor)),
            None => assert_eq!(fact(what), None, "{key} is null"),
        }
    }

    let model = server.get_json("/v1/models/mlp");
    let settings: BTreeMap<String, (String, String)> = rows(&html, "aria-label=\"Settings\"")
        .into_iter()
        .filter(|row| row.len() == 3 && row[0].contains('.'))
        .map(|row| (row[0].clone(), (row[1].clone(), row[2].clone())))
        .collect();
    let mut expected = 0;
    for (section, keys) in model["config"].as_object().unwrap() {
        for (key, value) in keys.as_object().unwrap() {
            let value = match value {
                Value::Null => "–".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(settings[&format!("{section}.{key}")].0, value, "{section}.{key}");
            expected += 1;
        }
    }
    assert_eq!(settings.len(), expected);
    let files = server.get_json("/v1/models/mlp/files?version=1");
    for file in files["files"].as_array().unwrap() {
        let row = rows(&html, "aria-label=\"Files\"").into_iter().find(|row| file["path"] == row[0].as_str()).unwrap();
        check("a file", &row[1], &file["bytes"]);
    }
}

#[test]
fn the_lists_of_models_have_the_numbers_of_the_api() {
    let server = Server::with(&["mlp", "echo"]);
    traffic(&server);
    wait_until(|| server.get_json("/v1/models/mlp/stats")["predict_time"]["count"] == 4);
    let (overview, models) = (page(&server, "/"), page(&server, "/ui/models"));
    let stats = server.get_json("/v1/models/mlp/stats");
    let row = rows(&overview, "aria-label=\"Times of the models\"").into_iter().find(|row| row[0] == "mlp v1").unwrap();
    let keys = [("queue_time", "mean"), ("forward_time", "mean")];
    let [prepare, queue, run, finish, p95, count] = &row[1..] else { panic!("{row:?}") };
    for (cell, (key, of)) in [queue, run].into_iter().zip(keys) {
        check(key, cell, &stats[key][of]);
    }
    check("prepare", prepare, &stats["preprocess_time"]["mean"]);
    check("finish", finish, &stats["postprocess_time"]["mean"]);
    check("p95", p95, &stats["predict_time"]["p95"]);
    check("count", count, &stats["predict_time"]["count"]);
    let row = rows(&models, "aria-label=\"Models\"").into_iter().find(|row| row[0] == "mlp v1").unwrap();
    check("p95", &row[5], &stats["predict_time"]["p95"]);
    let mean = stats["batch_size"]["mean"].as_f64().unwrap();
    assert!(row[6].starts_with(&format!("{mean:.1}")), "{row:?}");
    // What the server keeps beside what it may.
    let system = server.get_json("/v1/system");
    let shown = rows(&page(&server, "/ui/system"), "id=\"limits-h\"");
    assert!(shown.iter().any(|row| row == &["Jobs that are kept", "0 of 1,000"]), "{shown:?}");
    let jobs = system["limits"].as_array().unwrap().iter().find(|limit| limit["key"] == "limits.max_jobs").unwrap();
    assert_eq!((&jobs["used"], &jobs["limit"]), (&json!(0), &json!(1000)));
}

#[test]
fn files_and_what_sets_a_setting_are_told() {
    let store = store_of(&["mlp"]);
    std::fs::write(store.path().join("mlp/model.toml"), "[batch]\nmax_queue = 7\n").unwrap();
    let server = Server::on(store, &[("ORTUS_BATCH__TIMEOUT_MS", "3")]);
    let model = server.get_json("/v1/models/mlp");
    assert_eq!(model["config_set_by"], json!({"batch.max_queue": "model.toml"}));
    let html = page(&server, "/ui/models/mlp");
    let settings = rows(&html, "aria-label=\"Settings\"");
    let by =
        |key: &str| settings.iter().find(|row| row[0] == key).map(|row| (row[1].as_str(), row[2].as_str())).unwrap();
    assert_eq!(by("batch.max_queue"), ("7", "model.toml"));
    assert_eq!(by("batch.timeout_ms").0, "3");
    assert!(by("batch.timeout_ms").1.contains("ORTUS_BATCH__TIMEOUT_MS"), "{:?}", by("batch.timeout_ms"));
    assert_eq!(by("batch.instances").1, "chosen at load");

    let all = server.get_json("/v1/models/mlp/files");
    let files = all["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["path"] == "model.toml" && file["bytes"] == 22), "{all}");
    let sum: u64 = files.iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    assert_eq!(all["bytes_total"], sum);
    let paths: Vec<&str> = files.iter().map(|file| file["path"].as_str().unwrap()).collect();
    let question = rows(&page(&server, "/ui/models/mlp/delete"), "aria-label=\"Files\"");
    for path in paths {
        assert!(question.iter().any(|row| row[0] == path), "{path}: {question:?}");
    }
    for (path, status) in [("mlp/files?version=9", 404), ("mlp/files?version=x", 400), ("none/files", 404)] {
        assert_eq!(server.get(&format!("/v1/models/{path}")).status(), status, "{path}");
    }
    assert_eq!(server.get("/ui/models/mlp/delete?version=9").status(), 404);
}

/// A key of the store.
fn key(store: &Path, role: &str) -> String {
    let output = command().args(["key", "create", "--role", role, "--models"]).arg(store).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Where the forms of a page go that change something.
fn forms(html: &str) -> BTreeSet<String> {
    let posts = html.split("<form ").skip(1).filter(|form| form.split('>').next().unwrap().contains("method=\"post\""));
    posts.map(|form| form.split_once("action=\"").unwrap().1.split('"').next().unwrap().to_owned()).collect()
}

#[test]
fn nothing_is_offered_that_the_key_may_not_do() {
    let store = store_of(&["mlp", "slow"]);
    let (infer, admin) = (key(store.path(), "infer"), key(store.path(), "admin"));
    let server = Server::on(store, &[]);
    let client = reqwest::blocking::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let get = |key: &str, path: &str| {
        let response = client.get(server.url(path)).header("x-api-key", key).send().unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.text().unwrap()
    };
    let job = client.post(server.url("/v1/models/slow/jobs")).header("x-api-key", &infer);
    let job: Value = job.json(&json!({"inputs": {"n": 1_000_000_000_000_u64}})).send().unwrap().json().unwrap();
    let job = format!("/ui/jobs/{}", job["id"].as_str().unwrap());
    let pages = [
        "/",
        "/ui/models",
        "/ui/models/mlp",
        "/ui/models/mlp/try",
        "/ui/models/mlp/delete",
        "/ui/models/mlp/optimize",
        "/ui/add",
        "/ui/add?model=mlp",
        "/ui/jobs",
        "/ui/events",
        "/ui/system",
        &job,
    ];
    let everywhere = ["/ui/theme", "/ui/sign-out"].map(str::to_owned);
    let of = |key: &str| -> BTreeSet<String> { pages.iter().flat_map(|path| forms(&get(key, path))).collect() };
    let (offered, to_admins) = (of(&infer), of(&admin));
    let expected: BTreeSet<String> =
        everywhere[..1].iter().cloned().chain(["/ui/models/mlp/try".to_owned(), format!("{job}/cancel")]).collect();
    let beyond =
        |all: &BTreeSet<String>| all.iter().filter(|form| !everywhere.contains(form)).cloned().collect::<BTreeSet<_>>();
    assert_eq!(beyond(&offered), beyond(&expected));
    let managing: BTreeSet<String> = beyond(&to_admins).difference(&offered).cloned().collect();
    for form in ["load", "unload", "warmup", "cleanup", "reset", "delete", "optimize", "upload"] {
        assert!(managing.contains(&format!("/ui/models/mlp/{form}")), "{form}: {managing:?}");
    }
    assert!(managing.contains("/ui/add") && managing.contains("/ui/cleanup") && managing.contains("/ui/log-level"));
    // What is not offered is refused all the same, and what is offered is not.
    let post = |path: &str| client.post(server.url(path)).header("x-api-key", &infer).send().unwrap().status().as_u16();
    for form in &managing {
        assert_eq!(post(form), 403, "{form}");
    }
    for form in &offered {
        assert_ne!(post(form), 403, "{form}");
    }
    // Nor is there a way to it, and each page says why.
    for path in &pages {
        let html = get(&infer, path);
        for link in ["/ui/models/mlp/delete\"", "/ui/models/mlp/optimize\"", "href=\"/ui/add"] {
            assert!(
                !html.contains(&format!("{}{link}", if link.starts_with("href") { "" } else { "href=\"" })),
                "{path}: {link}"
            );
        }
        assert!(html.contains("looks only"), "{path}");
    }
    for path in
        ["/ui/models", "/ui/models/mlp", "/ui/models/mlp/delete", "/ui/models/mlp/optimize", "/ui/add", "/ui/system"]
    {
        assert!(get(&infer, path).contains("sign in with an admin key"), "{path}");
        assert!(!get(&admin, path).contains("looks only"), "{path}");
    }
}

#[test]
fn what_comes_live_suits_who_looks() {
    use std::io::{BufRead, BufReader};
    let store = store_of(&["mlp"]);
    let (infer, admin) = (key(store.path(), "infer"), key(store.path(), "admin"));
    let server = Server::on(store, &[]);
    // Until the first sign of life.
    let first_parts = |key: &str| {
        let client = reqwest::blocking::Client::builder().timeout(PATIENCE).build().unwrap();
        let stream =
            client.get(server.url("/ui/live?of=/ui/models&minutes=5")).header("x-api-key", key).send().unwrap();
        assert_eq!(stream.status(), 200);
        let mut html = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            if line == "event: tick" {
                break;
            }
            html.push_str(&line);
        }
        html
    };
    let client = reqwest::blocking::Client::builder().timeout(PATIENCE).build().unwrap();
    assert_eq!(client.delete(server.url("/v1/models/mlp")).header("x-api-key", &admin).send().unwrap().status(), 200);
    // An empty store offers to add a model, to who may.
    wait_until(|| first_parts(&admin).contains("Add your first model"));
    let looking = first_parts(&infer);
    assert!(looking.contains("The store is empty") && !looking.contains("/ui/add"), "{looking}");
}

//! What is counted: `/v1/…/stats`, `/v2/…/stats` and `/metrics` tell the same truth, and every request is in it once.

use crate::server::{PATIENCE, Server};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

/// A series: its name and its labels.
type Series = (String, BTreeMap<String, String>);

/// An exposition, read by the rules that promtool checks.
pub struct Metrics {
    samples: BTreeMap<Series, f64>,
    kinds: BTreeMap<String, String>,
}

impl Metrics {
    pub fn of(server: &Server) -> Metrics {
        let response = server.get("/metrics");
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        Metrics::parse(&response.text().unwrap())
    }

    /// The same of a server that asks for a key.
    pub fn by(server: &Server, key: &str) -> Metrics {
        let response = server.client.get(server.url("/metrics")).bearer_auth(key).send().unwrap();
        assert_eq!(response.status(), 200);
        Metrics::parse(&response.text().unwrap())
    }

    /// How many series there are.
    pub fn series(&self) -> usize {
        self.samples.len()
    }

    fn parse(text: &str) -> Metrics {
        let mut metrics = Metrics { samples: BTreeMap::new(), kinds: BTreeMap::new() };
        let (mut helped, mut closed, mut family) = (BTreeSet::new(), BTreeSet::new(), String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
                // The samples of a family stand together.
                assert!(closed.insert(std::mem::replace(&mut family, name.to_owned())), "{line}");
                assert!(!closed.contains(name), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family, "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(metrics.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = sample(line);
                let base = match metrics.kinds[&family].as_str() {
                    "histogram" => {
                        ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.0.strip_suffix(suffix))
                    }
                    _ => Some(series.0.as_str()),
                };
                assert_eq!(base, Some(family.as_str()), "{line}");
                assert!(metrics.samples.insert(series, value).is_none(), "twice: {line}");
            }
        }
        metrics.check_histograms();
        metrics
    }

    /// Buckets grow with their bound, and the last is the count.
    fn check_histograms(&self) {
        let mut buckets: BTreeMap<Series, Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            if let Some(base) = name.strip_suffix("_bucket") {
                let mut labels = labels.clone();
                let bound = labels.remove("le").unwrap();
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                buckets.entry((base.to_owned(), labels)).or_default().push((bound, *value));
            }
        }
        for ((base, labels), mut values) in buckets {
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(values.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{base} {labels:?}");
            let count = self.samples[&(format!("{base}_count"), labels.clone())];
            assert_eq!(values.last(), Some(&(f64::INFINITY, count)), "{base} {labels:?}");
            assert!(self.samples[&(format!("{base}_sum"), labels)] >= 0.0);
        }
    }

    /// The sum of all series of `name` with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let has = |series: &Series| {
            series.0 == name && labels.iter().all(|(key, value)| series.1.get(*key).map(String::as_str) == Some(*value))
        };
        self.samples.iter().filter(|(series, _)| has(series)).map(|(_, value)| *value as u64).sum()
    }
}

/// `name{label="value",…} 1`
fn sample(line: &str) -> (Series, f64) {
    let is_name = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (name, mut rest) = line.split_at(line.find(['{', ' ']).unwrap());
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c => {
                            assert!(c == '\\' || c == '"', "{line}");
                            c
                        }
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
    ((name.to_owned(), labels), value)
}

/// Waits until `met` holds: a client that goes away is noticed a moment later.
#[track_caller]
fn eventually(server: &Server, met: impl Fn(&Metrics) -> bool) -> Metrics {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = Metrics::of(server);
        if met(&metrics) {
            return metrics;
        }
        assert!(Instant::now() < deadline, "{:?}", metrics.samples);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn mlp_rows(rows: usize) -> Value {
    json!({"inputs": {"x": vec![vec![0.5; 32]; rows]}})
}

#[test]
fn every_request_is_counted_once_and_everywhere_alike() {
    let server = Server::with(&["mlp", "slow"]);
    let predict = "/v1/models/mlp/predict";
    for _ in 0..5 {
        assert_eq!(server.post_json(predict, &mlp_rows(2)).0, 200);
    }
    let v2 = json!({"inputs": [{"name": "x", "shape": [1, 32], "datatype": "FP32", "data": vec![0.5; 32]}]});
    for _ in 0..3 {
        assert_eq!(server.post_json("/v2/models/mlp/infer", &v2).0, 200);
    }
    assert_eq!(server.post_json(predict, &json!({"inputs": {"z": [1]}})).0, 422);
    assert_eq!(server.post_text(predict, "application/json", b"{".to_vec()).0, 400);
    assert_eq!(server.post_json("/v2/models/mlp/versions/9/infer", &v2).0, 404);
    assert_eq!(server.post_json("/v1/models/nope/predict", &mlp_rows(1)).0, 404);
    assert_eq!(server.post_json("/v1/models/no%22pe%0A/predict", &mlp_rows(1)).0, 404);
    assert_eq!(server.get(predict).status(), 405);

    // One that runs past its deadline, and one whose client goes away.
    let forever = json!({"inputs": {"n": 1_000_000_000_000u64}, "timeout_ms": 100});
    assert_eq!(server.post_json("/v1/models/slow/predict", &forever).0, 504);
    let body = json!({"inputs": {"n": 1_000_000_000_000u64}}).to_string();
    let mut client = TcpStream::connect(server.address).unwrap();
    write!(
        client,
        "POST /v1/models/slow/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    eventually(&server, |metrics| metrics.sum("ortus_inflight", &[("model", "slow")]) == 1);
    drop(client);
    eventually(&server, |metrics| metrics.sum("ortus_inflight", &[("model", "slow")]) == 0);
    // Read once more: the gauge stands behind the counters on the page, and a request may end in between.
    let metrics = Metrics::of(&server);

    let requests = |labels: &[(&str, &str)]| metrics.sum("ortus_requests_total", labels);
    assert_eq!(requests(&[]), 16);
    let mlp = ("model", "mlp");
    assert_eq!(requests(&[mlp, ("version", "1"), ("protocol", "v1"), ("code", "200")]), 5);
    assert_eq!(requests(&[mlp, ("version", "1"), ("protocol", "v2"), ("code", "200")]), 3);
    assert_eq!((requests(&[mlp, ("code", "422")]), requests(&[mlp, ("code", "400")]), requests(&[mlp])), (1, 1, 10));
    let slow = ("model", "slow");
    assert_eq!((requests(&[slow, ("code", "504")]), requests(&[slow, ("code", "499")]), requests(&[slow])), (1, 1, 2));
    assert_eq!((requests(&[("model", ""), ("version", "")]), requests(&[("model", ""), ("code", "404")])), (4, 3));
    assert_eq!(metrics.sum("ortus_cancelled_total", &[slow, ("reason", "expired")]), 1);
    assert_eq!(metrics.sum("ortus_cancelled_total", &[slow, ("reason", "disconnected")]), 1);
    assert_eq!(metrics.sum("ortus_request_duration_seconds_count", &[mlp, ("stage", "total")]), 8);
    assert_eq!(metrics.sum("ortus_request_duration_seconds_count", &[mlp, ("stage", "inference")]), 8);
    assert_eq!(metrics.sum("ortus_model_loads_total", &[("result", "ok")]), 2);
    assert_eq!(metrics.sum("ortus_model_state", &[mlp, ("state", "ready")]), 1);
    assert_eq!(metrics.sum("ortus_model_state", &[mlp]), 1);
    assert_eq!(metrics.sum("ortus_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1);
    assert_eq!(metrics.sum("ortus_panics_total", &[]), 0);
    assert!(metrics.sum("ortus_model_memory_bytes", &[mlp, ("device", "cpu")]) > 1000);
    assert_eq!((metrics.sum("ortus_model_evictions_total", &[]), metrics.sum("ortus_cache_bytes", &[])), (0, 0));
    assert!(metrics.sum("ortus_process_resident_memory_bytes", &[]) > 1 << 20);

    let stats = server.get_json("/v1/models/mlp/stats");
    assert_eq!((&stats["model"], &stats["version"], &stats["window_s"]), (&json!("mlp"), &json!("1"), &json!(300.0)));
    assert_eq!(stats["predict_time"]["count"], 8);
    assert_eq!(stats["forward_time"]["count"], 8);
    assert_eq!(
        stats["preprocess_time"],
        json!({"count": 0, "mean": null, "min": null, "max": null, "p50": null, "p95": null, "p99": null})
    );
    let time = |key: &str| stats["predict_time"][key].as_f64().unwrap();
    assert!(0.0 < time("min") && time("min") <= time("p50") && time("p50") <= time("p95"));
    assert!(time("p95") <= time("p99") && time("p99") <= time("max"));
    assert_eq!(stats["error_counts"], json!({"invalid_input": 1, "malformed_body": 1}));
    let slow_stats = server.get_json("/v1/models/slow/stats?version=1");
    assert_eq!(slow_stats["cancelled"], json!({"disconnected": 1, "expired": 1}));
    assert_eq!(slow_stats["error_counts"], json!({"deadline_exceeded": 1}));
    let all = server.get_json("/v1/stats");
    assert_eq!(all["models"].as_array().unwrap().len(), 2);

    let v2_stats = server.get_json("/v2/models/mlp/stats");
    let entry = &v2_stats["model_stats"][0];
    assert_eq!((&entry["name"], &entry["version"]), (&json!("mlp"), &json!("1")));
    assert_eq!(
        (&entry["inference_stats"]["success"]["count"], &entry["inference_stats"]["fail"]["count"]),
        (&json!(8), &json!(2))
    );
    let usage = &entry["memory_usage"][0];
    assert_eq!((&usage["type"], &usage["id"]), (&json!("CPU"), &json!(0)));
    assert_eq!(usage["byte_size"], metrics.sum("ortus_model_memory_bytes", &[mlp]));
    assert_eq!(server.get_json("/v2/models/stats")["model_stats"].as_array().unwrap().len(), 2);
    server.assert_well();
}

#[test]
fn a_reset_counts_the_window_anew_and_metrics_go_on() {
    let server = Server::start(&["mlp", "versions"], &[("ORTUS_TELEMETRY__STATS_WINDOW_S", "60")]);
    assert_eq!(server.post_json("/v1/models/mlp/predict", &mlp_rows(1)).0, 200);
    let before = server.get_json("/v1/models/mlp/stats");
    assert_eq!((&before["predict_time"]["count"], &before["window_s"]), (&json!(1), &json!(60.0)));
    let reset = |path: &str| server.client.delete(server.url(path)).send().unwrap().status().as_u16();
    assert_eq!(reset("/v1/models/mlp/stats"), 204);
    let after = server.get_json("/v1/models/mlp/stats");
    assert_eq!(after["predict_time"]["count"], 0);
    assert!(after["since"].as_f64() >= before["since"].as_f64());
    assert_eq!(Metrics::of(&server).sum("ortus_requests_total", &[("model", "mlp")]), 1);
    assert_eq!(server.get_json("/v2/models/mlp/stats")["model_stats"][0]["inference_stats"]["success"]["count"], 1);

    for path in [
        "/v1/models/nope/stats",
        "/v1/models/mlp/stats?version=9",
        "/v2/models/nope/stats",
        "/v2/models/mlp/versions/9/stats",
    ] {
        assert_eq!(server.get(path).status(), 404, "{path}");
    }
    assert_eq!((reset("/v1/models/nope/stats"), reset("/v1/models/mlp/stats?version=9")), (404, 404));
    assert_eq!(server.get("/v1/models/mlp/stats?version=x").status(), 400);
    assert_eq!(server.get("/v1/models/mlp/stats?versoin=1").status(), 400);
}

#[test]
fn a_job_is_one_request_and_what_it_runs_is_no_prediction() {
    let server = Server::with(&["mlp"]);
    let response = server.post("/v1/models/mlp/jobs").json(&mlp_rows(3)).send().unwrap();
    assert_eq!(response.status(), 202);
    let job: Value = response.json().unwrap();
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while server.get_json(&path)["finished_at"].is_null() {
        assert!(Instant::now() < deadline, "{}", server.get_json(&path));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(server.post_json("/v1/models/mlp/jobs", &json!({"inputs": {"z": [1]}})).0, 422);
    assert_eq!(server.post_json("/v1/models/nope/jobs", &mlp_rows(1)).0, 404);

    let metrics = Metrics::of(&server);
    let requests = |labels: &[(&str, &str)]| metrics.sum("ortus_requests_total", labels);
    let mlp = ("model", "mlp");
    assert_eq!((requests(&[mlp, ("code", "202")]), requests(&[mlp, ("code", "422")]), requests(&[])), (1, 1, 3));
    assert_eq!(metrics.sum("ortus_inflight", &[]), 0);
    let stats = server.get_json("/v1/models/mlp/stats");
    assert_eq!((&stats["predict_time"]["count"], &stats["forward_time"]["count"]), (&json!(0), &json!(1)));
    assert_eq!(stats["batch_size"]["histogram"], json!({"3": 1}));
    assert_eq!(stats["error_counts"], json!({"invalid_input": 1}));
    let v2 = &server.get_json("/v2/models/mlp/stats")["model_stats"][0];
    assert_eq!((&v2["inference_count"], &v2["execution_count"]), (&json!(3), &json!(1)));
    assert_eq!(
        (&v2["inference_stats"]["success"]["count"], &v2["inference_stats"]["fail"]["count"]),
        (&json!(0), &json!(1))
    );
}

#[test]
fn openmetrics_is_given_to_who_prefers_it() {
    let server = Server::with(&["mlp"]);
    let get = |accept: &str| {
        let response = server.client.get(server.url("/metrics")).header("accept", accept).send().unwrap();
        (response.headers()["content-type"].to_str().unwrap().to_owned(), response.text().unwrap())
    };
    // As Prometheus 2 and 3 ask.
    for accept in [
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1",
    ] {
        let (media_type, text) = get(accept);
        assert_eq!(media_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(text.ends_with("# EOF\n") && text.contains("# TYPE ortus_model_loads counter\n"), "{text}");
    }
    for accept in
        ["*/*", "text/plain", "application/json", "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.1"]
    {
        let (media_type, text) = get(accept);
        assert_eq!(media_type, "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        assert!(!text.contains("# EOF"));
    }
}

/// F50, F51: nothing in a request makes a series.
#[test]
fn names_of_requests_make_no_series() {
    let server = Server::with(&["mlp"]);
    let before = Metrics::of(&server).samples.len();
    for index in 0..100 {
        let path = match index % 4 {
            0 => format!("/v1/models/random-{index}/predict"),
            1 => format!("/v2/models/random-{index}/infer"),
            2 => format!("/v1/models/mlp/versions/{index}9/predict"),
            _ => format!("/v1/models/a%22%7D%0Aortus_evil%20{index}/predict"),
        };
        assert_eq!(server.post_json(&path, &mlp_rows(1)).0, 404);
    }
    let metrics = Metrics::of(&server);
    assert!(metrics.samples.len() < before + 10, "{:?}", metrics.samples.keys());
    assert_eq!(metrics.sum("ortus_requests_total", &[("model", "")]), 100);
    assert!(metrics.kinds.keys().all(|name| name.starts_with("ortus_") && name != "ortus_evil"));
}

#[test]
fn a_model_that_left_the_store_is_counted_no_more() {
    let server = Server::start(&["mlp", "versions"], &[("ORTUS_STORE__POLL_INTERVAL_MS", "20")]);
    assert_eq!(server.post_json("/v1/models/mlp/predict", &mlp_rows(1)).0, 200);
    std::fs::remove_dir_all(server.store.path().join("mlp")).unwrap();
    eventually(&server, |metrics| {
        metrics.samples.keys().all(|(_, labels)| labels.get("model").map(String::as_str) != Some("mlp"))
    });
    assert_eq!(server.get("/v1/models/mlp/stats").status(), 404);
}

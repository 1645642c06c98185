//! The result as a table and as JSON.

use super::inputs::Inputs;
use super::measure::{Plan, Results};
use crate::cli::table::Table;
use crate::engine::LoadedModel;
use crate::load::Summary;
use crate::tensor::Value;
use serde_json::{Value as Json, json};

/// One line of the result.
pub(super) struct Line {
    /// Clients at a time, or rows of a bare run.
    pub(super) key: usize,
    /// Of bare runs: the requests that as many rows would be.
    pub(super) requests_per_second: f64,
    /// Of the bare loop's best.
    pub(super) ratio: f64,
    pub(super) summary: Summary,
}

pub(super) struct Report {
    pub(super) model: String,
    pub(super) version: String,
    device: String,
    instances: usize,
    intra_threads: usize,
    /// Of one request.
    rows: usize,
    /// Name, type and shape.
    inputs: Vec<(String, String, Vec<usize>)>,
    rounds: usize,
    seconds: f64,
    pub(super) bare: Vec<Line>,
    pub(super) in_process: Vec<Line>,
    pub(super) http: Vec<Line>,
}

impl Report {
    pub(super) fn new(model: &LoadedModel, inputs: &Inputs, plan: &Plan, results: &Results) -> Report {
        let described = |(name, value): (String, Value)| {
            let tensor = value.as_tensor()?;
            Some((name, tensor.dtype().name().to_owned(), tensor.shape().to_vec()))
        };
        let (bare, in_process, http) = lines(inputs.rows, results);
        Report {
            model: model.name.to_string(),
            version: model.version.to_string(),
            device: model.facts.device.clone(),
            instances: model.instances,
            intra_threads: model.intra_threads,
            rows: inputs.rows,
            inputs: inputs.named(&model.inputs).into_iter().filter_map(described).collect(),
            rounds: plan.rounds,
            seconds: plan.duration.as_secs_f64(),
            bare,
            in_process,
            http,
        }
    }

    /// The bare loop's best rate, in requests a second.
    pub(super) fn best(&self) -> Option<&Line> {
        self.bare.iter().max_by(|a, b| a.requests_per_second.total_cmp(&b.requests_per_second))
    }

    pub(super) fn as_text(&self) -> String {
        let shapes: Vec<String> = self.inputs.iter().map(|(name, ty, shape)| format!("{name} {ty}{shape:?}")).collect();
        let instances = if self.instances == 1 { "instance" } else { "instances" };
        let mut table = Table::new(["LOAD", "", "REQUESTS/S", "P50 MS", "P90 MS", "P99 MS", "OF BARE", "CLIENT CPU"]);
        let mut row = |name: &str, key: String, line: &Line| {
            let cpu = line.summary.cpu_micros.filter(|_| name == "HTTP");
            table.row([
                name.to_owned(),
                key,
                number(line.requests_per_second),
                number(line.summary.p50_ms),
                number(line.summary.p90_ms),
                number(line.summary.p99_ms),
                format!("{:.2}", line.ratio),
                cpu.map_or_else(String::new, |micros| format!("{} µs/request", number(micros))),
            ]);
        };
        self.bare.iter().for_each(|line| row("bare", format!("batch {}", line.key), line));
        let clients = |line: &Line| format!("{} client{}", line.key, if line.key == 1 { "" } else { "s" });
        self.in_process.iter().for_each(|line| row("in process", clients(line), line));
        self.http.iter().for_each(|line| row("HTTP", clients(line), line));
        let refused: u64 = self.in_process.iter().chain(&self.http).map(|line| line.summary.refused).sum();
        let note = match refused {
            0 => String::new(),
            refused => format!("\n{refused} requests were refused (a full queue, for one) and are not counted above."),
        };
        let rounds = if self.rounds == 1 { "one round" } else { &format!("medians of {} rounds", self.rounds) };
        format!(
            "{} version {} on {}: {} {instances} × {} threads; {}\n{rounds} of {} s for each line\n\n{}{note}",
            self.model,
            self.version,
            self.device,
            self.instances,
            self.intra_threads,
            crate::telemetry::printable(&shapes.join(", ")),
            self.seconds,
            table.finish(),
        )
    }

    pub(super) fn as_json(&self) -> Json {
        let line = |key: &str, line: &Line| {
            let Summary { p50_ms, p90_ms, p99_ms, count, refused, .. } = line.summary;
            json!({
                key: line.key,
                "requests_per_second": line.requests_per_second,
                "p50_ms": p50_ms,
                "p90_ms": p90_ms,
                "p99_ms": p99_ms,
                "ratio_to_bare_best": line.ratio,
                "count": count,
                "refused": refused,
            })
        };
        let with_cpu = |each: &Line| {
            let mut json = line("concurrency", each);
            if let Some(json) = json.as_object_mut() {
                json.insert("client_cpu_us_per_request".to_owned(), each.summary.cpu_micros.into());
                json.insert("client_cpu_cores".to_owned(), each.summary.cpu_cores.into());
            }
            json
        };
        json!({
            "model": self.model,
            "version": self.version,
            "device": self.device,
            "instances": self.instances,
            "intra_threads": self.intra_threads,
            "rows_per_request": self.rows,
            "inputs": self.inputs.iter()
                .map(|(name, dtype, shape)| json!({ "name": name, "dtype": dtype, "shape": shape }))
                .collect::<Vec<_>>(),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "bare": self.bare.iter().map(|each| line("batch", each)).collect::<Vec<_>>(),
            "bare_best": self.best().map(|best| {
                json!({ "batch": best.key, "requests_per_second": best.requests_per_second })
            }),
            "in_process": self.in_process.iter().map(|each| line("concurrency", each)).collect::<Vec<_>>(),
            "http": self.http.iter().map(with_cpu).collect::<Vec<_>>(),
        })
    }
}

/// All rates in requests of `rows` rows a second, beside the best of the bare loop.
fn lines(rows: usize, results: &Results) -> (Vec<Line>, Vec<Line>, Vec<Line>) {
    let rate = |batch: usize, summary: &Summary| summary.per_second * batch as f64 / rows.max(1) as f64;
    let best = results.bare.iter().map(|(batch, summary)| rate(*batch, summary)).fold(0.0, f64::max);
    let line = |key: usize, batch: usize, summary: &Summary| {
        let requests_per_second = rate(batch, summary);
        let ratio = if best > 0.0 { requests_per_second / best } else { 0.0 };
        Line { key, requests_per_second, ratio, summary: summary.clone() }
    };
    let clients = |all: &[(usize, Summary)]| all.iter().map(|(key, summary)| line(*key, rows, summary)).collect();
    let bare = results.bare.iter().map(|(batch, summary)| line(*batch, *batch, summary)).collect();
    (bare, clients(&results.engine), clients(&results.http))
}

/// Three digits that count, at most three behind the point: `12345`, `123`, `12.3`, `1.23`, `0.012`.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli::bench) fn report() -> Report {
        let summary = |per_second, p50_ms: f64| Summary {
            per_second,
            p50_ms,
            p90_ms: p50_ms * 2.0,
            p99_ms: p50_ms * 3.0,
            count: 100,
            refused: 0,
            cpu_micros: Some(12.0),
            cpu_cores: Some(0.1),
        };
        let results = Results {
            bare: vec![(2, summary(100.0, 10.0)), (4, summary(80.0, 12.0))],
            engine: vec![(1, summary(60.0, 16.0)), (8, summary(150.0, 50.0))],
            http: vec![(1, summary(50.0, 20.0)), (8, Summary { refused: 3, ..summary(120.0, 60.0) })],
        };
        let (bare, in_process, http) = lines(2, &results);
        Report {
            model: "m".to_owned(),
            version: "1".to_owned(),
            device: "cpu".to_owned(),
            instances: 1,
            intra_threads: 2,
            rows: 2,
            inputs: vec![("x\u{1b}".to_owned(), "FP32".to_owned(), vec![2, 3])],
            rounds: 5,
            seconds: 1.0,
            bare,
            in_process,
            http,
        }
    }

    #[test]
    fn rates_are_in_requests_and_held_against_the_best_batch() {
        let report = report();
        // Four rows are two requests, so 80 runs a second are 160 requests.
        assert_eq!(report.best().map(|best| (best.key, best.requests_per_second)), Some((4, 160.0)));
        assert_eq!(report.bare[0].ratio, 100.0 / 160.0);
        assert_eq!(report.http[1].ratio, 0.75);
    }

    #[test]
    fn the_table_says_what_was_measured() {
        let text = report().as_text();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let line = |start: &str| lines.iter().find(|line| line.starts_with(start)).cloned().unwrap_or_default();
        assert_eq!(line("m version"), "m version 1 on cpu: 1 instance × 2 threads; x\\u{1b} FP32[2, 3]");
        assert_eq!(line("medians"), "medians of 5 rounds of 1 s for each line");
        assert_eq!(line("bare batch 4"), "bare batch 4 160 12.0 24.0 36.0 1.00");
        assert_eq!(line("in process 1"), "in process 1 client 60.0 16.0 32.0 48.0 0.38");
        assert_eq!(line("HTTP 8"), "HTTP 8 clients 120 60.0 120 180 0.75 12.0 µs/request");
        assert!(text.ends_with("3 requests were refused (a full queue, for one) and are not counted above."), "{text}");
    }

    #[test]
    fn the_json_has_the_same_numbers() {
        let json = report().as_json();
        assert_eq!(json["bare_best"], json!({ "batch": 4, "requests_per_second": 160.0 }));
        assert_eq!(json["http"][1]["refused"], 3);
        assert_eq!(json["http"][0]["client_cpu_us_per_request"], 12.0);
        assert_eq!(json["in_process"][1]["ratio_to_bare_best"], 150.0 / 160.0);
        assert_eq!(json["inputs"], json!([{ "name": "x\u{1b}", "dtype": "FP32", "shape": [2, 3] }]));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (123_456.0, "123456"),
            (123.4, "123"),
            (99.96, "100"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.0123, "0.012"),
            (0.0, "0.000"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}

//! One job, and what an optimisation found.

use super::api::Refusal;
use super::frame::{Frame, Visitor, page};
use super::live::Parts;
use super::values::{Look, integer, list, number, pretty_up_to, state, text, text_or_dash};
use super::{chart, format};
use crate::http::extract::JobPath;
use askama::Template;
use axum::response::Response;
use serde_json::Value;
use uuid::Uuid;

/// Characters of a result that are shown.
const RESULT_CHARS_MAX: usize = 20_000;

#[derive(Template)]
#[template(path = "job.html", blocks = ["job"])]
pub(super) struct Job {
    frame: Frame,
    id: String,
    kind: String,
    model: String,
    state: Look,
    error: Option<String>,
    is_running: bool,
    /// As HTML; empty where there is nothing to count.
    progress: String,
    facts: Vec<(&'static str, String)>,
    report: Option<Report>,
    /// A variant that is better and was not adopted.
    better: Option<Better>,
    /// What a prediction gave.
    result: String,
}

/// What is asked of another optimisation, so that its best serves.
struct Better {
    precision: String,
    max_drift: String,
}

/// What an optimisation found.
struct Report {
    why: String,
    facts: Vec<(&'static str, String)>,
    variants: Vec<VariantRow>,
}

struct VariantRow {
    precision: String,
    verdict: Look,
    reason: String,
    speed: String,
    rows_per_second: String,
    bytes: String,
    cosine: String,
    max_abs: String,
    top1: String,
}

pub(super) async fn show(visitor: Visitor, JobPath(id): JobPath) -> Response {
    match build(&visitor, id).await {
        Ok(job) => page(&job),
        Err(refusal) => visitor.refused(&refusal),
    }
}

pub(super) async fn build(visitor: &Visitor, id: Uuid) -> Result<Job, Refusal> {
    let job = visitor.dashboard.api.get(&format!("/v1/jobs/{id}")).await?;
    let word = text_or_dash(&job, "/status");
    let is_running = matches!(word.as_str(), "queued" | "running");
    let time = |pointer: &str| text(&job, pointer).map_or_else(|| "–".to_owned(), |at| format::moment(&at));
    let frame = visitor.frame("Job", "/ui/jobs", format!("/ui/jobs/{id}"));
    let (done, total) = (integer(&job, "/progress/done"), integer(&job, "/progress/total"));
    let items = format!("{done} of {total}");
    let result = job.get("result").filter(|result| !result.is_null());
    let report = result.filter(|result| result.get("variants").is_some());
    Ok(Job {
        // What has ended changes no more.
        frame: if is_running { frame.live() } else { frame },
        kind: text_or_dash(&job, "/kind"),
        model: text_or_dash(&job, "/model"),
        state: state(&word),
        error: text(&job, "/error/detail"),
        is_running,
        progress: if total > 0 { chart::progress(done as f64 / total as f64, &items) } else { String::new() },
        facts: vec![
            ("Items", items),
            ("Version", text_or_dash(&job, "/version")),
            ("Made (UTC)", time("/created_at")),
            ("Started (UTC)", time("/started_at")),
            ("Finished (UTC)", time("/finished_at")),
            ("Kept until (UTC)", time("/expires_at")),
            ("Request", text_or_dash(&job, "/request_id")),
        ],
        better: report.and_then(better),
        result: result
            .filter(|_| report.is_none())
            .map(|result| pretty_up_to(result, RESULT_CHARS_MAX))
            .unwrap_or_default(),
        report: report.map(Report::of),
        id: id.to_string(),
    })
}

impl Job {
    pub(super) fn parts(&self) -> Parts {
        self.as_job().render().map(|html| vec![("job", html)]).unwrap_or_default()
    }
}

/// The first variant that is better, where none was adopted.
fn better(report: &Value) -> Option<Better> {
    let is_better = |variant: &&Value| text(variant, "/verdict").as_deref() == Some("better");
    let found = list(report, "/variants").iter().find(is_better)?;
    let is_open = report.pointer("/adopted").is_none_or(Value::is_null);
    is_open
        .then(|| Better { precision: text_or_dash(found, "/precision"), max_drift: text_or_dash(report, "/max_drift") })
}

impl Report {
    fn of(report: &Value) -> Report {
        let tried = list(report, "/variants");
        let mut facts = vec![
            ("Run on", format!("{}, {} threads", text_or_dash(report, "/device"), integer(report, "/threads"))),
            ("Inputs", format!("{} ({})", integer(report, "/inputs/count"), text_or_dash(report, "/inputs/source"))),
            ("Adopted is what", {
                let (drift, speed) = (text_or_dash(report, "/max_drift"), text_or_dash(report, "/min_speed"));
                format!("is more than {speed} times as fast and drifts {drift} at most")
            }),
        ];
        if tried.is_empty() {
            // What the rest is about.
            facts.truncate(1);
        }
        if let Some(precision) = text(report, "/adopted/precision") {
            let version = text_or_dash(report, "/adopted/version");
            facts.push((
                "Adopted",
                format!("{precision} as version {version}; Roll back on the model's page undoes it"),
            ));
        }
        if let Some(gain) = number(report, "/tuned/found/times_as_good") {
            facts.push(("Tuned", format!("{gain:.2} times as good")));
        }
        facts.extend(text(report, "/tuned/problem").map(|problem| ("Not tuned", problem)));
        Report { why: text_or_dash(report, "/why"), facts, variants: tried.iter().map(VariantRow::of).collect() }
    }
}

impl VariantRow {
    fn of(variant: &Value) -> VariantRow {
        let figure = |pointer: &str, places: usize| {
            number(variant, pointer).map_or_else(|| "–".to_owned(), |figure| format!("{figure:.places$}"))
        };
        let pair = |key: &str, write: &dyn Fn(f64) -> String| {
            let of = |side: &str| number(variant, &format!("/{key}/{side}")).map(write);
            of("original").zip(of("variant")).map_or_else(|| "–".to_owned(), |(from, to)| format!("{from} → {to}"))
        };
        let verdict = match text_or_dash(variant, "/verdict").as_str() {
            "better" => Look { word: "better", ..state("done") },
            "not_faster" => Look { word: "not faster", ..state("cancelled") },
            "drifts" => Look { word: "drifts", ..state("warning") },
            "incomparable" => Look { word: "incomparable", ..state("warning") },
            _ => Look { word: "impossible", ..state("cancelled") },
        };
        VariantRow {
            precision: text_or_dash(variant, "/precision"),
            verdict,
            reason: text_or_dash(variant, "/reason"),
            speed: number(variant, "/speed").map_or_else(|| "–".to_owned(), |speed| format!("{speed:.2} ×")),
            rows_per_second: pair("rows_per_second", &|rows| format!("{rows:.0}")),
            bytes: pair("bytes", &|bytes| format::bytes(bytes as u64)),
            cosine: figure("/drift/cosine", 6),
            max_abs: number(variant, "/drift/max_abs").map_or_else(|| "–".to_owned(), |most| format!("{most:.1e}")),
            top1: number(variant, "/drift/top1")
                .map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", share * 100.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_is_rows_with_what_is_unknown_as_dashes() {
        let found = json!({
            "why": "int8 is the fastest", "device": "cpu", "threads": 2, "inputs": {"source": "samples", "count": 4},
            "max_drift": 0.01, "min_speed": 1.05, "adopted": {"precision": "int8", "version": "2"},
            "variants": [
                {"precision": "int8", "verdict": "better", "reason": "2.36 times as fast", "speed": 2.36,
                 "rows_per_second": {"original": 100.0, "variant": 236.0}, "bytes": {"original": 2048, "variant": 1024},
                 "drift": {"cosine": 0.9994, "max_abs": 0.0125, "top1": null}},
                {"precision": "int4", "verdict": "impossible", "reason": "no product"},
            ],
        });
        let report = Report::of(&found);
        let [int8, int4] = report.variants.as_slice() else { panic!("two rows") };
        assert_eq!((int8.speed.as_str(), int8.rows_per_second.as_str()), ("2.36 ×", "100 → 236"));
        assert_eq!((int8.cosine.as_str(), int8.max_abs.as_str(), int8.top1.as_str()), ("0.999400", "1.3e-2", "–"));
        assert_eq!((int4.verdict.word, int4.speed.as_str(), int4.bytes.as_str()), ("impossible", "–", "–"));
        assert!(report.facts.iter().any(|(what, value)| *what == "Adopted" && value.contains("version 2")));
        // What is better is offered as long as nothing was adopted.
        assert!(better(&found).is_none());
        let mut compared = found;
        compared["adopted"] = Value::Null;
        let offer = better(&compared).unwrap();
        assert_eq!((offer.precision.as_str(), offer.max_drift.as_str()), ("int8", "0.01"));
        compared["variants"][0]["verdict"] = "drifts".into();
        assert!(better(&compared).is_none());
    }
}

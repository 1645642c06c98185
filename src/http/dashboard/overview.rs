//! The first page: is it serving, is anyone hurt, where does the time go, what is full, what changed.

use super::api::Refusal;
use super::devices::{GpuRow, disk, gpus};
use super::events::EventRow;
use super::frame::{Frame, Visitor, page};
use super::history::History;
use super::live::Parts;
use super::traffic::charts;
use super::values::{Look, integer, list, number, state, text, text_or_dash};
use super::{chart, format};
use crate::telemetry::recent_events;
use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::time::Duration;

/// Events that are shown.
const EVENTS: usize = 8;
/// Rates are of this time, and quantiles of a minute.
const RECENT: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Template)]
#[template(path = "overview.html", blocks = ["state", "traffic", "times", "fullness", "gpus", "events"])]
pub(super) struct Overview {
    frame: Frame,
    state: Look,
    ready: u64,
    total: u64,
    failed: Vec<(String, String)>,
    uptime: String,
    traffic: Traffic,
    charts: Vec<String>,
    window: String,
    times: Vec<TimeRow>,
    fullness: Vec<Full>,
    gpus: Vec<GpuRow>,
    events: Vec<EventRow>,
}

struct Traffic {
    rate: String,
    failed: String,
    is_failing: bool,
    refused: String,
    shed: String,
    is_shedding: bool,
    p50: String,
    p95: String,
    p99: String,
    in_flight: String,
    queued: String,
}

struct TimeRow {
    name: String,
    version: String,
    bar: String,
    prepare: String,
    queue: String,
    run: String,
    finish: String,
    p95: String,
    count: String,
}

/// How much of something is used.
pub(super) struct Full {
    pub(super) what: String,
    pub(super) gauge: String,
    pub(super) value: String,
}

pub(super) async fn show(visitor: Visitor) -> Response {
    match build(&visitor).await {
        Ok(overview) => page(&overview),
        Err(refusal) => visitor.refused(&refusal).into_response(),
    }
}

pub(super) async fn build(visitor: &Visitor) -> Result<Overview, Refusal> {
    let dashboard = &visitor.dashboard;
    let models = dashboard.api.get("/v1/models").await?;
    let stats = dashboard.api.get("/v1/stats").await?;
    let system = dashboard.api.get("/v1/system").await?;
    let engine = &dashboard.state.engine;
    let word = match (dashboard.state.tasks.stopping().is_cancelled(), engine.is_ready()) {
        (true, _) => "stopping",
        (false, true) => "ok",
        (false, false) => "starting",
    };
    let all = list(&models, "/models");
    let is = |model: &&Value, word: &str| text(model, "/state").as_deref() == Some(word);
    let failed = all.iter().filter(|model| model.get("last_error").is_some_and(|error| !error.is_null()));
    let queues = fullness_of_queues(all, visitor);
    let mut fullness = memory(&system);
    fullness.extend(disk(&system));
    fullness.extend(queues);
    Ok(Overview {
        frame: visitor.frame("Overview", "/", "/").live(),
        state: state(word),
        ready: all.iter().filter(|model| is(model, "ready")).count() as u64,
        total: all.len() as u64,
        failed: failed.map(|model| (text_or_dash(model, "/name"), text_or_dash(model, "/last_error"))).collect(),
        uptime: format::age(dashboard.started.elapsed()),
        traffic: dashboard.history(Traffic::of),
        charts: charts(visitor, None),
        window: format::age(engine.stats().window()),
        times: list(&stats, "/models").iter().filter_map(TimeRow::of).collect(),
        fullness,
        gpus: gpus(&system),
        events: recent_events().iter().take(EVENTS).map(EventRow::from).collect(),
    })
}

impl Overview {
    const LEGEND: [(&'static str, &'static str); 4] =
        [("pre", "prepare"), ("queue", "queue"), ("run", "run"), ("post", "finish")];

    pub(super) fn parts(&self) -> Parts {
        let blocks = [
            ("state", self.as_state().render()),
            ("traffic", self.as_traffic().render()),
            ("times", self.as_times().render()),
            ("fullness", self.as_fullness().render()),
            ("gpus", self.as_gpus().render()),
            ("events", self.as_events().render()),
        ];
        blocks.into_iter().filter_map(|(name, html)| Some((name, html.ok()?))).collect()
    }
}

impl Traffic {
    fn of(history: &History) -> Traffic {
        let rate_of = |read: fn(&super::history::Counts) -> u64| history.rate(RECENT, |sample| read(&sample.all));
        let (failed, shed) = (rate_of(|counts| counts.failed), rate_of(|counts| counts.shed));
        let quantile = |quantile: f64| {
            let (last, before) = (history.last()?, history.before(MINUTE)?);
            last.all.quantile_since(&before.all, quantile)
        };
        let shown = |time: Option<Duration>| time.map_or_else(|| "–".to_owned(), format::time);
        let last = history.last().map(|sample| sample.all.clone()).unwrap_or_default();
        Traffic {
            rate: format::rate(rate_of(super::history::Counts::ended)),
            failed: format::rate(failed),
            is_failing: failed > 0.0,
            refused: format::rate(rate_of(|counts| counts.refused)),
            shed: format::rate(shed),
            is_shedding: shed > 0.0,
            p50: shown(quantile(0.5)),
            p95: shown(quantile(0.95)),
            p99: shown(quantile(0.99)),
            in_flight: format::count(last.in_flight),
            queued: format::count(last.queued),
        }
    }
}

/// The stages of an entry of `/v1/stats`, in the order of the legend: seconds, all requests together.
pub(super) fn stage_seconds(stats: &Value) -> [(&'static str, f64); 4] {
    let of = |key: &str| {
        number(stats, &format!("/{key}/mean")).unwrap_or(0.0) * integer(stats, &format!("/{key}/count")) as f64
    };
    [
        ("pre", of("preprocess_time")),
        ("queue", of("queue_time")),
        ("run", of("forward_time")),
        ("post", of("postprocess_time")),
    ]
}

impl TimeRow {
    fn of(stats: &Value) -> Option<TimeRow> {
        let count = integer(stats, "/predict_time/count");
        let mean = |key: &str| format::seconds(number(stats, &format!("/{key}/mean")));
        let (name, version) = (text(stats, "/model")?, text_or_dash(stats, "/version"));
        (count > 0).then(|| TimeRow {
            bar: chart::parts(&stage_seconds(stats), &format!("Share of each stage of {name}")),
            name,
            version,
            prepare: mean("preprocess_time"),
            queue: mean("queue_time"),
            run: mean("forward_time"),
            finish: mean("postprocess_time"),
            p95: format::seconds(number(stats, "/predict_time/p95")),
            count: format::count(count),
        })
    }
}

/// Memory of the process and of the models beside their limits, of `/v1/system`.
pub(super) fn memory(system: &Value) -> Vec<Full> {
    let bytes = |pointer: &str| number(system, pointer).map(|mebibytes| (mebibytes * 1_048_576.0) as u64);
    let mut rows = Vec::new();
    let (resident, available) = (bytes("/memory/resident_mb"), bytes("/memory/available_mb"));
    if let (Some(resident), Some(available)) = (resident, available) {
        rows.push(Full::of("Memory of the process", resident, resident.saturating_add(available)));
    }
    let models = bytes("/memory/models_mb").unwrap_or(0);
    match bytes("/memory/budget_mb") {
        Some(budget) => rows.push(Full::of("Memory of the models", models, budget)),
        None => rows.push(Full {
            what: "Memory of the models".to_owned(),
            gauge: String::new(),
            value: format!("{}, no limit", format::bytes(models)),
        }),
    }
    rows
}

impl Full {
    pub(super) fn of(what: &str, used: u64, limit: u64) -> Full {
        Full::counted(what, used, limit, format::bytes)
    }

    pub(super) fn counted(what: &str, used: u64, limit: u64, write: fn(u64) -> String) -> Full {
        let value = format!("{} of {}", write(used), write(limit));
        let gauge = chart::gauge(used as f64 / limit.max(1) as f64, &format!("{what}: {value}"));
        Full { what: what.to_owned(), gauge, value }
    }
}

/// The fullest queues.
fn fullness_of_queues(models: &[Value], visitor: &Visitor) -> Vec<Full> {
    const SHOWN: usize = 4;
    let waiting = visitor.dashboard.history(|history| history.last().cloned()).unwrap_or_default();
    let mut queues: Vec<(u64, u64, String)> = models
        .iter()
        .filter_map(|model| {
            let (name, most) = (text(model, "/name")?, integer(model, "/config/batch/max_queue"));
            (most > 0).then(|| (waiting.of(Some(&name)).map_or(0, |counts| counts.queued), most, name))
        })
        .collect();
    queues.sort_by(|a, b| (b.0 * a.1).cmp(&(a.0 * b.1)).then_with(|| a.2.cmp(&b.2)));
    let shown = queues.iter().take(SHOWN);
    shown
        .map(|(queued, most, name)| Full::counted(&format!("Queue of {name}"), *queued, *most, format::count))
        .collect()
}

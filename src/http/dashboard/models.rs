//! The table of all models.

use super::api::Refusal;
use super::format;
use super::frame::{Frame, Visitor, page};
use super::history::Counts;
use super::live::Parts;
use super::values::{Look, integer, list, number, state, text, text_or_dash};
use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::time::{Duration, SystemTime};

const RECENT: Duration = Duration::from_secs(10);

#[derive(Template)]
#[template(path = "models.html", blocks = ["models"])]
pub(super) struct Models {
    frame: Frame,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    version: Option<String>,
    state: Look,
    reason: Option<String>,
    task: String,
    device: String,
    rate: String,
    p95: String,
    batch: String,
    queued: String,
    memory: String,
    used: String,
}

pub(super) async fn show(visitor: Visitor) -> Response {
    match build(&visitor).await {
        Ok(models) => page(&models),
        Err(refusal) => visitor.refused(&refusal).into_response(),
    }
}

pub(super) async fn build(visitor: &Visitor) -> Result<Models, Refusal> {
    let api = &visitor.dashboard.api;
    let models = api.get("/v1/models").await?;
    let stats = api.get("/v1/stats").await?;
    let rows = list(&models, "/models").iter().map(|model| row(visitor, model, list(&stats, "/models"))).collect();
    Ok(Models { frame: visitor.frame("Models", "/ui/models", "/ui/models").live(), rows })
}

impl Models {
    pub(super) fn parts(&self) -> Parts {
        self.as_models().render().map(|html| vec![("models", html)]).unwrap_or_default()
    }
}

fn row(visitor: &Visitor, model: &Value, stats: &[Value]) -> Row {
    let name = text_or_dash(model, "/name");
    let version = text(model, "/default_version");
    let of_version =
        |entry: &&Value| text(entry, "/model").as_ref() == Some(&name) && text(entry, "/version") == version;
    let none = Value::Null;
    let stats = stats.iter().find(of_version).unwrap_or(&none);
    let (rate, counts) = visitor.dashboard.history(|history| {
        let rate = history.rate(RECENT, |sample| sample.of(Some(&name)).map_or(0, Counts::ended));
        (rate, history.last().and_then(|sample| sample.of(Some(&name)).cloned()).unwrap_or_default())
    });
    let batch = number(stats, "/batch_size/mean").map(|mean| match integer(model, "/config/batch/max_batch_size") {
        0 => format!("{mean:.1}"),
        most => format!("{mean:.1} / {most}"),
    });
    let loaded = model.get("loaded").and_then(Value::as_bool) == Some(true);
    Row {
        state: state(&text_or_dash(model, "/state")),
        reason: text(model, "/last_error"),
        task: text_or_dash(model, "/task"),
        device: layout(model).map_or_else(
            || text_or_dash(model, "/device"),
            |layout| format!("{} · {layout}", text_or_dash(model, "/device")),
        ),
        rate: format::rate(rate),
        p95: format::seconds(number(stats, "/predict_time/p95")),
        batch: batch.unwrap_or_else(|| "–".to_owned()),
        queued: if loaded { format::count(counts.queued) } else { "–".to_owned() },
        memory: if loaded { format::bytes(counts.memory_bytes) } else { "–".to_owned() },
        used: last_used(visitor, &name, version.as_deref()),
        name,
        version,
    }
}

/// Instances and threads.
pub(super) fn layout(model: &Value) -> Option<String> {
    let (instances, threads) =
        (integer(model, "/config/batch/instances"), integer(model, "/config/batch/intra_threads"));
    (instances > 0).then(|| format!("{instances} × {threads} threads"))
}

/// How long ago the version was last asked for.
pub(super) fn last_used(visitor: &Visitor, name: &str, version: Option<&str>) -> String {
    let stats = version
        .and_then(|version| version.parse().ok())
        .and_then(|version| visitor.dashboard.state.engine.stats().find(name, version));
    let last = stats.and_then(|stats| stats.totals().last_request);
    let age = last.and_then(|last| SystemTime::now().duration_since(last).ok());
    age.map_or_else(|| "–".to_owned(), |age| format!("{} ago", format::age(age)))
}

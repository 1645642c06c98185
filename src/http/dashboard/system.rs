//! What the server runs on, and with which settings.

use super::api::Refusal;
use super::devices::{GpuRow, ProviderRow, disk, gpus, providers};
use super::format;
use super::frame::{Frame, Visitor, page};
use super::live::Parts;
use super::overview::{Full, memory};
use super::traffic::resident;
use super::values::{integer, list, text, text_or_dash};
use crate::telemetry::{LogSettings, log_level, rfc3339_of};
use crate::tls::Expiry;
use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

#[derive(Template)]
#[template(path = "system.html", blocks = ["memory", "limits", "gpus"])]
pub(super) struct System {
    frame: Frame,
    facts: Vec<(&'static str, String)>,
    fullness: Vec<Full>,
    gpus: Vec<GpuRow>,
    providers: Vec<ProviderRow>,
    chart: String,
    limits: Vec<Full>,
    /// What `/v1/system` says besides, by its key.
    more: Vec<(String, String)>,
    log_level: String,
    log_hint: &'static str,
    settings: Vec<(String, String, String)>,
}

pub(super) async fn show(visitor: Visitor) -> Response {
    match build(&visitor).await {
        Ok(system) => page(&system),
        Err(refusal) => visitor.refused(&refusal).into_response(),
    }
}

pub(super) async fn build(visitor: &Visitor) -> Result<System, Refusal> {
    let dashboard = &visitor.dashboard;
    let system = dashboard.api.get("/v1/system").await?;
    let models = dashboard.api.get("/v1/models").await?;
    let known = [
        "name",
        "version",
        "runtime",
        "os",
        "arch",
        "cores",
        "memory",
        "disk",
        "devices",
        "driver",
        "execution_providers",
        "limits",
    ];
    let fields = system
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !known.contains(&key.as_str()) && !value.is_null());
    let loaded: Vec<&Value> = list(&models, "/models").iter().filter(|model| is_loaded(model)).collect();
    let instances: u64 = loaded.iter().map(|model| integer(model, "/config/batch/instances")).sum();
    let mut facts = vec![
        ("Ortus", text_or_dash(&system, "/version")),
        ("Runtime", text_or_dash(&system, "/runtime")),
        ("System", format!("{} {}", text_or_dash(&system, "/os"), text_or_dash(&system, "/arch"))),
        ("Cores it may use", text_or_dash(&system, "/cores")),
        ("Models that are loaded", format!("{}, {} instances", loaded.len(), instances)),
        ("GPU driver", text(&system, "/driver").unwrap_or_else(|| "none".to_owned())),
        ("Up for", format::age(dashboard.started.elapsed())),
        ("Listens on", dashboard.state.settings.listen.to_string()),
    ];
    if let Some((end, expiry)) = dashboard.state.tls.as_ref().and_then(|tls| tls.ends_at().zip(tls.expiry())) {
        facts.push(("TLS certificate", certificate(&rfc3339_of(end), &expiry)));
    }
    Ok(System {
        frame: visitor.frame("System", "/ui/system", "/ui/system").live(),
        facts,
        fullness: memory(&system).into_iter().chain(disk(&system)).collect(),
        gpus: gpus(&system),
        providers: providers(&system),
        chart: resident(visitor),
        limits: limits(visitor, &system, &loaded),
        more: fields.map(|(key, value)| (title(key), pretty(value))).collect(),
        log_level: log_level().unwrap_or_default(),
        log_hint: LogSettings::LEVELS,
        settings: dashboard
            .state
            .settings
            .shown
            .iter()
            .map(|shown| (shown.key.clone(), shown.value.clone(), shown.origin.clone()))
            .collect(),
    })
}

impl System {
    pub(super) fn parts(&self) -> Parts {
        let blocks = [
            ("memory", self.as_memory().render()),
            ("limits", self.as_limits().render()),
            ("gpus", self.as_gpus().render()),
        ];
        blocks.into_iter().filter_map(|(name, html)| Some((name, html.ok()?))).collect()
    }
}

/// How long the certificate holds, and until when.
fn certificate(end: &str, expiry: &Expiry) -> String {
    let moment = format::moment(end);
    match expiry {
        Expiry::Over(since) => format!("✕ expired {} ago, {moment} UTC", format::age(*since)),
        Expiry::Soon(left) => format!("▲ expires in {}, {moment} UTC", format::age(*left)),
        Expiry::Far(left) => format!("expires in {}, {moment} UTC", format::age(*left)),
    }
}

fn is_loaded(model: &Value) -> bool {
    model.get("loaded").and_then(Value::as_bool) == Some(true)
}

/// What is used of the bounds that fill up.
fn limits(visitor: &Visitor, system: &Value, models: &[&Value]) -> Vec<Full> {
    let row = |limit: &Value| {
        let (key, used, most) = (text(limit, "/key")?, integer(limit, "/used"), integer(limit, "/limit"));
        let (what, write): (&str, fn(u64) -> String) = match key.as_str() {
            "limits.max_jobs" => ("Jobs that are kept", format::count),
            "limits.jobs_at_once" => ("Jobs that run", format::count),
            "limits.max_job_bytes" => ("Jobs on the disk", format::bytes),
            "limits.max_inflight_bytes" => ("Bodies of requests in flight", format::bytes),
            "hub.downloads_at_once" => ("Downloads that run or wait", format::count),
            other => (other, format::count),
        };
        Some(Full::counted(what, used, most, write))
    };
    let mut rows: Vec<Full> = list(system, "/limits").iter().filter_map(row).collect();
    let queued = visitor.dashboard.history(|history| history.last().map_or(0, |sample| sample.all.queued));
    let places: u64 = models.iter().map(|model| integer(model, "/config/batch/max_queue")).sum();
    if places > 0 {
        rows.push(Full::counted("Places in all queues", queued, places, format::count));
    }
    rows
}

/// `execution_providers` → `Execution providers`.
pub(super) fn title(key: &str) -> String {
    let text = key.replace('_', " ");
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

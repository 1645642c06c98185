//! What the server runs on, and with which settings.

use super::api::Refusal;
use super::devices::{GpuRow, ProviderRow, disk, gpus, providers};
use super::frame::{Frame, Visitor, page};
use super::live::Parts;
use super::overview::{Full, POINTS, memory};
use super::values::{text, text_or_dash};
use super::{chart, format};
use crate::telemetry::{LogSettings, log_level};
use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

#[derive(Template)]
#[template(path = "system.html", blocks = ["memory", "gpus"])]
pub(super) struct System {
    frame: Frame,
    facts: Vec<(&'static str, String)>,
    fullness: Vec<Full>,
    gpus: Vec<GpuRow>,
    providers: Vec<ProviderRow>,
    chart: String,
    most: String,
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
    let resident = dashboard.history(|history| history.series(POINTS, |_, after| after.resident_bytes as f64));
    let most = format::bytes(resident.iter().flatten().copied().fold(0.0, f64::max) as u64);
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
    ];
    let fields = system
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !known.contains(&key.as_str()) && !value.is_null());
    let facts = vec![
        ("Ortus", text_or_dash(&system, "/version")),
        ("Runtime", text_or_dash(&system, "/runtime")),
        ("System", format!("{} {}", text_or_dash(&system, "/os"), text_or_dash(&system, "/arch"))),
        ("Cores it may use", text_or_dash(&system, "/cores")),
        ("GPU driver", text(&system, "/driver").unwrap_or_else(|| "none".to_owned())),
        ("Up for", format::age(dashboard.started.elapsed())),
        ("Listens on", dashboard.state.settings.listen.to_string()),
    ];
    Ok(System {
        frame: visitor.frame("System", "/ui/system", "/ui/system").live(),
        facts,
        fullness: memory(&system).into_iter().chain(disk(&system)).collect(),
        gpus: gpus(&system),
        providers: providers(&system),
        chart: chart::line(&resident, &format!("Memory of the process, at most {most}")),
        most,
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
        let blocks = [("memory", self.as_memory().render()), ("gpus", self.as_gpus().render())];
        blocks.into_iter().filter_map(|(name, html)| Some((name, html.ok()?))).collect()
    }
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

//! Jobs, and models on their way into the store.

use super::api::Refusal;
use super::frame::{Frame, Visitor, page};
use super::live::Parts;
use super::values::{Look, integer, list, number, state, text, text_or_dash};
use super::{chart, format};
use askama::Template;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::time::Duration;

#[derive(Template)]
#[template(path = "jobs.html", blocks = ["downloads", "jobs"])]
pub(super) struct Jobs {
    frame: Frame,
    downloads: Vec<DownloadRow>,
    jobs: Vec<JobRow>,
}

/// A model on its way.
pub(super) struct DownloadRow {
    pub(super) id: String,
    short: String,
    pub(super) name: String,
    /// Whether the store has it.
    pub(super) is_there: bool,
    pub(super) state: Look,
    pub(super) error: Option<String>,
    /// As HTML.
    pub(super) progress: String,
    source: String,
    pub(super) is_running: bool,
}

/// Whether a download goes on.
pub(super) fn is_running(download: &Value) -> bool {
    !matches!(text_or_dash(download, "/state").as_str(), "done" | "failed" | "cancelled")
}

/// A job in a table.
pub(super) struct JobRow {
    pub(super) id: String,
    pub(super) short: String,
    kind: String,
    model: String,
    pub(super) state: Look,
    error: Option<String>,
    items: String,
    pub(super) at: String,
    pub(super) made: String,
    is_running: bool,
}

pub(super) async fn show(visitor: Visitor) -> Response {
    match build(&visitor).await {
        Ok(jobs) => page(&jobs),
        Err(refusal) => visitor.refused(&refusal).into_response(),
    }
}

pub(super) async fn build(visitor: &Visitor) -> Result<Jobs, Refusal> {
    let api = &visitor.dashboard.api;
    let downloads = api.get("/v1/downloads").await?;
    let jobs = api.get("/v1/jobs").await?;
    Ok(Jobs {
        frame: visitor.frame("Jobs and downloads", "/ui/jobs", "/ui/jobs").live(),
        downloads: list(&downloads, "/downloads").iter().map(DownloadRow::of).collect(),
        jobs: list(&jobs, "/jobs").iter().map(JobRow::of).collect(),
    })
}

impl Jobs {
    pub(super) fn parts(&self) -> Parts {
        let blocks = [("downloads", self.as_downloads().render()), ("jobs", self.as_jobs().render())];
        blocks.into_iter().filter_map(|(name, html)| Some((name, html.ok()?))).collect()
    }
}

impl DownloadRow {
    pub(super) fn of(download: &Value) -> DownloadRow {
        let (id, word) = (text_or_dash(download, "/id"), text_or_dash(download, "/state"));
        let (done, total) = (integer(download, "/bytes_done"), number(download, "/bytes_total"));
        let is_running = is_running(download);
        let mut progress = match total.filter(|total| *total > 0.0) {
            Some(total) => {
                let label = format!("{} of {}", format::bytes(done), format::bytes(total as u64));
                format!("{}<span class=\"small\">{label}</span>", chart::progress(done as f64 / total, &label))
            }
            None => format!("<span class=\"small\">{}</span>", format::bytes(done)),
        };
        if is_running && integer(download, "/rate_bps") > 0 {
            progress.push_str(&format!("<span class=\"small\">, {}/s", format::bytes(integer(download, "/rate_bps"))));
            if let Some(left) = number(download, "/eta_s") {
                progress.push_str(&format!(", {} left", format::age(Duration::from_secs_f64(left.max(0.0)))));
            }
            progress.push_str("</span>");
        }
        let revision =
            text(download, "/revision").map(|revision| format!(" @ {}", short(&revision))).unwrap_or_default();
        DownloadRow {
            short: id.get(..8).unwrap_or(&id).to_owned(),
            id,
            is_there: word == "done",
            name: text_or_dash(download, "/name"),
            state: state(&word),
            error: text(download, "/error/detail"),
            progress,
            source: format!("{} {}{revision}", text_or_dash(download, "/source"), text_or_dash(download, "/model_id")),
            is_running,
        }
    }
}

/// A commit's first letters, which are enough to know it by; the model's page has all.
fn short(revision: &str) -> &str {
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    revision.get(..12).filter(|_| is_commit).unwrap_or(revision)
}

impl JobRow {
    pub(super) fn of(job: &Value) -> JobRow {
        let (id, word) = (text_or_dash(job, "/id"), text_or_dash(job, "/status"));
        JobRow {
            short: id.get(..8).unwrap_or(&id).to_owned(),
            kind: text_or_dash(job, "/kind"),
            model: text_or_dash(job, "/model"),
            state: state(&word),
            error: text(job, "/error/detail"),
            items: match integer(job, "/progress/total") {
                0 => "–".to_owned(),
                total => format!("{} of {total}", integer(job, "/progress/done")),
            },
            made: format::moment(&text_or_dash(job, "/created_at")),
            at: text_or_dash(job, "/created_at"),
            is_running: matches!(word.as_str(), "queued" | "running"),
            id,
        }
    }
}

//! One model on its way into the store: its files as they come, and what was found when it was tried out.

use super::api::Refusal;
use super::format;
use super::frame::{Frame, Visitor, page};
use super::jobs::{DownloadRow, is_running};
use super::live::Parts;
use super::values::{Look, integer, list, number, state, text, text_or_dash};
use crate::http::extract::DownloadPath;
use askama::Template;
use axum::response::Response;
use serde_json::Value;
use uuid::Uuid;

#[derive(Template)]
#[template(path = "download.html", blocks = ["download"])]
pub(super) struct Download {
    frame: Frame,
    row: DownloadRow,
    facts: Vec<(&'static str, String)>,
    /// Path, state, how much of it is here, how much there is.
    files: Vec<(String, Look, String, String)>,
    /// What was found when it was tried out.
    found: Vec<(&'static str, String)>,
}

pub(super) async fn show(visitor: Visitor, DownloadPath(id): DownloadPath) -> Response {
    match build(&visitor, id).await {
        Ok(download) => page(&download),
        Err(refusal) => visitor.refused(&refusal),
    }
}

pub(super) async fn build(visitor: &Visitor, id: Uuid) -> Result<Download, Refusal> {
    let download = visitor.dashboard.api.get(&format!("/v1/downloads/{id}")).await?;
    let title = format!("Download of {}", text_or_dash(&download, "/name"));
    let frame = visitor.frame(title, "/ui/jobs", format!("/ui/downloads/{id}"));
    Ok(Download {
        // What has ended changes no more.
        frame: if is_running(&download) { frame.live() } else { frame },
        row: DownloadRow::of(&download),
        facts: facts(&download),
        files: files(&download),
        found: found(&download),
    })
}

impl Download {
    pub(super) fn parts(&self) -> Parts {
        self.as_download().render().map(|html| vec![("download", html)]).unwrap_or_default()
    }
}

fn facts(download: &Value) -> Vec<(&'static str, String)> {
    let time = |pointer: &str| text(download, pointer).map(|at| format::moment(&at));
    let unchanged = download.get("unchanged").and_then(Value::as_bool) == Some(true);
    let all = [
        ("From", Some(format!("{} {}", text_or_dash(download, "/source"), text_or_dash(download, "/model_id")))),
        ("Revision", text(download, "/revision")),
        ("Version", text(download, "/version")),
        ("Unchanged", unchanged.then(|| "the store had exactly this already".to_owned())),
        ("Ordered (UTC)", time("/created_at")),
        ("Ended (UTC)", time("/finished_at")),
    ];
    all.into_iter().filter_map(|(what, value)| Some((what, value?))).collect()
}

fn files(download: &Value) -> Vec<(String, Look, String, String)> {
    let row = |file: &Value| {
        let is_done = file.get("done").and_then(Value::as_bool) == Some(true);
        let look = match (is_done, integer(file, "/bytes_done")) {
            (true, _) => Look { word: "verified", ..state("done") },
            (false, 0) => Look { word: "waits", ..state("unloaded") },
            (false, _) if is_running(download) => Look { word: "comes", ..state("downloading") },
            (false, _) => Look { word: "partly here", ..state("cancelled") },
        };
        let total = file.get("bytes_total").and_then(Value::as_u64).map_or_else(|| "–".to_owned(), format::bytes);
        (text_or_dash(file, "/path"), look, format::bytes(integer(file, "/bytes_done")), total)
    };
    list(download, "/files").iter().map(row).collect()
}

fn found(download: &Value) -> Vec<(&'static str, String)> {
    let Some(check) = download.get("check").filter(|check| !check.is_null()) else { return Vec::new() };
    let seconds = |pointer: &str| number(check, pointer).map(|time| format::seconds(Some(time)));
    let all = [
        ("Task", text(check, "/task")),
        ("because", text(check, "/evidence")),
        ("Inputs", text(check, "/inputs")),
        ("Outputs", text(check, "/outputs")),
        ("Reading the graph", seconds("/load_s")),
        ("A run with made-up input", seconds("/run_s").or_else(|| text(check, "/run_problem"))),
    ];
    all.into_iter().filter_map(|(what, value)| Some((what, value.filter(|value| !value.is_empty())?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_say_how_far_they_are() {
        let words = |state: &str| {
            let download = json!({"state": state, "files": [
                {"path": "a", "bytes_done": 4, "bytes_total": 4, "done": true},
                {"path": "b", "bytes_done": 2, "bytes_total": 4, "done": false},
                {"path": "c", "bytes_done": 0, "bytes_total": null, "done": false},
            ]});
            files(&download).into_iter().map(|(_, look, ..)| look.word).collect::<Vec<_>>()
        };
        assert_eq!(words("downloading"), ["verified", "comes", "waits"]);
        assert_eq!(words("failed"), ["verified", "partly here", "waits"]);
        assert!(found(&json!({})).is_empty());
        let tried = found(&json!({"check": {"task": "raw", "load_s": 0.5, "run_s": null, "run_problem": "no"}}));
        assert_eq!(tried.last(), Some(&("A run with made-up input", "no".to_owned())));
    }
}

//! The question before something is deleted: what goes.

use super::format;
use super::frame::{Frame, Visitor, page};
use super::model::stored;
use super::values::{integer, text};
use crate::http::extract::ModelPath;
use askama::Template;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

#[derive(Template)]
#[template(path = "delete.html")]
struct Delete {
    frame: Frame,
    name: String,
    version: Option<String>,
    is_serving: bool,
    files: Vec<(String, String, String)>,
    size: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteQuery {
    version: Option<String>,
}

pub(super) async fn show(visitor: Visitor, path: ModelPath, Query(query): Query<DeleteQuery>) -> Response {
    let model = match visitor.dashboard.api.get(&format!("/v1/models/{}", path.name)).await {
        Ok(model) => model,
        Err(refusal) => return visitor.refused(&refusal),
    };
    let is_default = query.version.is_none() || query.version == text(&model, "/default_version");
    // Only numbers are versions; of others the API would say so in its own words.
    let version = query.version.as_ref().filter(|version| version.bytes().all(|byte| byte.is_ascii_digit()));
    let of_version = version.map(|version| format!("?version={version}")).unwrap_or_default();
    let files = match visitor.dashboard.api.get(&format!("/v1/models/{}/files{of_version}", path.name)).await {
        Ok(files) => files,
        // A folder that cannot be read can be deleted.
        Err(refusal) if refusal.status == StatusCode::UNPROCESSABLE_ENTITY => Value::Null,
        Err(refusal) => return visitor.refused(&refusal),
    };
    let name = path.name.to_string();
    page(&Delete {
        frame: visitor.frame(format!("Delete {name}"), "/ui/models", format!("/ui/models/{name}/delete")),
        is_serving: is_default && model.get("loaded").and_then(Value::as_bool) == Some(true),
        files: stored(&files),
        size: format::bytes(integer(&files, "/bytes_total")),
        version: query.version,
        name,
    })
}

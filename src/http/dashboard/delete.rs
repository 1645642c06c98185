//! The question before something is deleted: what goes.

use super::format;
use super::frame::{Frame, Visitor, page};
use super::values::{integer, list, text, text_or_dash};
use crate::http::extract::ModelPath;
use askama::Template;
use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

#[derive(Template)]
#[template(path = "delete.html")]
struct Delete {
    frame: Frame,
    name: String,
    version: Option<String>,
    is_serving: bool,
    files: Vec<(String, String)>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteQuery {
    version: Option<String>,
}

pub(super) async fn show(visitor: Visitor, path: ModelPath, Query(query): Query<DeleteQuery>) -> Response {
    let model = match visitor.dashboard.api.get(&format!("/v1/models/{}", path.name)).await {
        Ok(model) => model,
        Err(refusal) => return visitor.refused(&refusal).into_response(),
    };
    let is_default = query.version.is_none() || query.version == text(&model, "/default_version");
    // Of other versions the API names no files.
    let files = list(&model, "/source/files").iter().filter(|_| is_default);
    let name = path.name.to_string();
    page(&Delete {
        frame: visitor.frame(format!("Delete {name}"), "/ui/models", format!("/ui/models/{name}/delete")),
        is_serving: is_default && model.get("loaded").and_then(serde_json::Value::as_bool) == Some(true),
        files: files.map(|file| (text_or_dash(file, "/path"), format::bytes(integer(file, "/bytes")))).collect(),
        version: query.version,
        name,
    })
}

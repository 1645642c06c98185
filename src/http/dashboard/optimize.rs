//! The question before a model is optimised: what is tried, and what becomes of the best.

use super::frame::{Frame, Visitor, page};
use super::values::text_or_dash;
use crate::http::extract::ModelPath;
use askama::Template;
use axum::response::{IntoResponse, Response};

#[derive(Template)]
#[template(path = "optimize.html")]
struct Optimize {
    frame: Frame,
    name: String,
    device: String,
}

pub(super) async fn show(visitor: Visitor, path: ModelPath) -> Response {
    let model = match visitor.dashboard.api.get(&format!("/v1/models/{}", path.name)).await {
        Ok(model) => model,
        Err(refusal) => return visitor.refused(&refusal).into_response(),
    };
    let name = path.name.to_string();
    page(&Optimize {
        frame: visitor.frame(format!("Optimise {name}"), "/ui/models", format!("/ui/models/{name}/optimize")),
        device: text_or_dash(&model, "/device"),
        name,
    })
}

//! The files of the pages, part of the binary. Named with the build in their addresses, so that browsers may keep them.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Changes whenever a file may have.
pub(super) const BUILD: &str = env!("CARGO_PKG_VERSION");

const FOREVER: &str = "public, max-age=3600";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, media type, bytes. htmx is of htmx.org (0BSD), pinned by its file's name.
const FILES: [(&str, &str, &str); 5] = [
    ("ortus.css", CSS, include_str!("../../../static/ortus.css")),
    ("ortus.js", SCRIPT, include_str!("../../../static/ortus.js")),
    ("htmx.js", SCRIPT, include_str!("../../../static/htmx-2.0.11.min.js")),
    ("htmx-sse.js", SCRIPT, include_str!("../../../static/htmx-ext-sse-2.2.4.min.js")),
    ("icon.svg", "image/svg+xml", include_str!("../../../static/icon.svg")),
];

pub(super) async fn serve(Path(name): Path<String>) -> Response {
    match FILES.into_iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => {
            ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, FOREVER)], text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

//! `GET /metrics`: the counts as Prometheus reads them.

use super::HttpState;
use super::error::ApiError;
use super::extract::negotiate;
use crate::engine::{InferenceEngine, ModelState};
use crate::telemetry::{Exposition, ExpositionFormat, metrics, resident_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

/// The first is what those get who do not say, or ask for neither.
const OFFERS: [(&str, ExpositionFormat); 2] =
    [("text/plain", ExpositionFormat::Text), ("application/openmetrics-text", ExpositionFormat::OpenMetrics)];

/// Gives the metrics.
#[utoipa::path(get, path = "/metrics", tag = "system", operation_id = "getMetrics",
    description = "Prometheus' text format, or OpenMetrics where `Accept` prefers it. Counts since the start of the server.",
    responses((status = 200, description = "The metrics.", content(
        (String = "text/plain", example = "ortus_inflight{model=\"resnet50\"} 2\n"),
        (String = "application/openmetrics-text"),
    ))))]
pub(super) async fn serve(State(state): State<HttpState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let media_types = OFFERS.map(|(media_type, _)| media_type);
    let index = negotiate(&headers, &media_types).unwrap_or(0);
    let format = OFFERS.get(index).map_or(ExpositionFormat::Text, |(_, format)| *format);
    let engine = state.engine.clone();
    // Many models make a long text.
    let text = state.tasks.spawn_blocking(move || write(&engine, format)).await;
    let text = text.map_err(|error| ApiError::internal(format!("writing the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

fn write(engine: &InferenceEngine, format: ExpositionFormat) -> String {
    let mut out = Exposition::new(format);
    metrics::write_stats(engine.stats(), &mut out);
    let mut samples = out.family(&metrics::MODEL_STATE);
    for model in engine.models() {
        for version in &model.versions {
            let number = version.version.to_string();
            for state in ModelState::ALL {
                let labels = [("model", model.name.as_str()), ("version", &number), ("state", state.as_str())];
                samples.put(&labels, u64::from(version.state == state));
            }
        }
    }
    if let Some(bytes) = resident_bytes() {
        out.family(&metrics::RESIDENT_MEMORY).put(&[], bytes);
    }
    let runtime = engine.runtime_version();
    // "onnxruntime 1.32.0": the label names the library.
    let runtime = runtime.rsplit(' ').next().unwrap_or(&runtime);
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("onnxruntime", runtime)];
    out.family(&metrics::BUILD_INFO).put(&labels, 1);
    out.finish()
}

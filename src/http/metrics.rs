//! `GET /metrics`: the counts as Prometheus reads them.

use super::HttpState;
use super::error::ApiError;
use super::extract::negotiate;
use crate::engine::{EngineState, InferenceEngine, ModelName, ModelState};
use crate::telemetry::stats::CacheKind;
use crate::telemetry::{Exposition, ExpositionFormat, gpu, metrics, resident_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

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
    let (engine, downloaded) = (state.engine.clone(), state.downloads.received());
    let certificate_end = state.tls.as_ref().and_then(|certificate| certificate.ends_at());
    // Many models make a long text.
    let text = state.tasks.spawn_blocking(move || write(&engine, downloaded, certificate_end, format)).await;
    let text = text.map_err(|error| ApiError::internal(format!("writing the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

/// Bytes of a series, by its two labels.
type Held<B> = BTreeMap<(ModelName, B), u64>;

/// What the loaded models hold, by device, and their caches, by kind: all versions of a model together.
fn held(engine: &InferenceEngine) -> (Held<String>, Held<CacheKind>) {
    let (mut memory, mut caches) = (Held::new(), Held::new());
    for model in engine.models() {
        for version in model.versions.iter().filter_map(|version| version.loaded.as_deref()) {
            let bytes = memory.entry((model.name.clone(), version.facts.device.clone())).or_insert(0u64);
            *bytes = bytes.saturating_add(version.memory.total_bytes());
            let usage = version.caches.usage();
            for (cache, usage) in [(CacheKind::Response, usage.responses), (CacheKind::Preprocess, usage.prepared)] {
                if let Some(usage) = usage {
                    let bytes = caches.entry((model.name.clone(), cache)).or_insert(0u64);
                    *bytes = bytes.saturating_add(usage.bytes);
                }
            }
        }
    }
    (memory, caches)
}

/// What runs where.
fn execution(engine: &InferenceEngine, out: &mut Exposition) {
    let models = engine.models();
    let loaded = || {
        let versions = models.iter().flat_map(|model| &model.versions);
        versions.filter_map(|version| Some((version.loaded.as_deref()?, version.version.to_string())))
    };
    let mut samples = out.family(&metrics::MODEL_NODES);
    for (model, version) in loaded() {
        for (provider, nodes) in &model.facts.execution.nodes {
            let labels = [("model", model.name.as_str()), ("version", &version), ("provider", provider)];
            samples.put(&labels, *nodes);
        }
    }
    let mut samples = out.family(&metrics::MODEL_DEGRADED);
    for (model, version) in loaded() {
        let labels = [("model", model.name.as_str()), ("version", &version)];
        samples.put(&labels, u64::from(model.execution().is_fallback || model.handle.pressure().is_some()));
    }
    let mut samples = out.family(&metrics::ENGINE_STATE);
    for (model, version) in loaded() {
        let found = model.engine.status().state;
        for state in EngineState::ALL {
            let labels = [("model", model.name.as_str()), ("version", &version), ("state", state.as_str())];
            samples.put(&labels, u64::from(found == state));
        }
    }
}

fn gpus(out: &mut Exposition) {
    let gpus: Vec<_> = gpu::gpus().into_iter().map(|gpu| (gpu.index.to_string(), gpu)).collect();
    if gpus.is_empty() {
        return;
    }
    let mut samples = out.family(&metrics::GPU_MEMORY_USED);
    gpus.iter().for_each(|(index, gpu)| samples.put(&[("gpu", index)], gpu.memory_used_bytes));
    let mut samples = out.family(&metrics::GPU_MEMORY_TOTAL);
    gpus.iter().for_each(|(index, gpu)| samples.put(&[("gpu", index)], gpu.memory_total_bytes));
    let mut samples = out.family(&metrics::GPU_UTILIZATION);
    for (index, gpu) in &gpus {
        if let Some(share) = gpu.utilization {
            samples.put(&[("gpu", index)], share);
        }
    }
}

fn write(
    engine: &InferenceEngine,
    downloaded: u64,
    certificate_end: Option<SystemTime>,
    format: ExpositionFormat,
) -> String {
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
    execution(engine, &mut out);
    gpus(&mut out);
    let (memory, caches) = held(engine);
    let mut samples = out.family(&metrics::MODEL_MEMORY);
    for ((model, device), bytes) in &memory {
        samples.put(&[("model", model.as_str()), ("device", device)], *bytes);
    }
    let mut samples = out.family(&metrics::CACHE_BYTES);
    for ((model, cache), bytes) in &caches {
        samples.put(&[("model", model.as_str()), ("cache", cache.name())], *bytes);
    }
    out.family(&metrics::DOWNLOAD_BYTES).put(&[], downloaded);
    if let Some(end) = certificate_end.and_then(|end| end.duration_since(UNIX_EPOCH).ok()) {
        out.family(&metrics::CERTIFICATE_EXPIRY).put(&[], end.as_secs());
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

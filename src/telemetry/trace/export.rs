//! Where spans go: to a collector that speaks OTLP over gRPC, in batches, from a thread of its own.
//!
//! Invariants: what waits is bounded, and what does not fit is dropped and logged; a collector that is slow or gone holds no
//! request. Headers for it (a key, say) come from `OTEL_EXPORTER_OTLP_HEADERS`, further facts about this server from
//! `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`, as every OpenTelemetry program takes them.

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Tracer};
use std::sync::OnceLock;
use std::time::Duration;

/// `[telemetry]`: which requests become spans, and where these go.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// `http://host:4317` or `https://…`; `None`: nowhere.
    pub endpoint: Option<String>,
    /// Share of the requests without a trace of their own that are exported; a request whose `traceparent` says that it is or
    /// is not sampled keeps to that. Above 0, at most 1.
    pub sample_ratio: f64,
}

impl Default for TraceSettings {
    fn default() -> TraceSettings {
        TraceSettings { endpoint: None, sample_ratio: 1.0 }
    }
}

impl TraceSettings {
    /// What [`TraceSettings::is_endpoint`] accepts, in words.
    pub const ENDPOINT: &str = "the URL of an OTLP collector's gRPC port, such as http://localhost:4317";

    /// Whether `text` is a URL of a collector: a scheme, a host, and neither user, password nor query, which would be shown.
    pub fn is_endpoint(text: &str) -> bool {
        let Ok(uri) = text.parse::<http::Uri>() else { return false };
        let is_http = uri.scheme().is_some_and(|scheme| ["http", "https"].contains(&scheme.as_str()));
        is_http && uri.query().is_none() && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("telemetry.otlp_endpoint: {0}")]
    Endpoint(String),
    #[error("tracing was started twice")]
    Started,
}

/// The exporter. Dropped without [`Tracing::stop`] it loses the spans of the last seconds.
#[derive(Debug)]
pub struct Tracing(SdkTracerProvider);

/// Of the process: a request's span is made before any room knows of it.
static TRACER: OnceLock<Tracer> = OnceLock::new();

/// Links of one span: requests of one batch.
const LINKS_MAX: u32 = 1024;

/// Exports spans from here on; `None` where the settings name no collector. Connects when there is something to send.
/// Call inside of the async runtime.
///
/// # Errors
/// Where the endpoint is none, or tracing was started before.
pub fn start_tracing(settings: &TraceSettings) -> Result<Option<Tracing>, TraceError> {
    let Some(endpoint) = &settings.endpoint else { return Ok(None) };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|error| TraceError::Endpoint(error.to_string()))?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let mut resource = Resource::builder().with_attribute(version);
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("ortus");
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio))))
        .with_max_links_per_span(LINKS_MAX)
        .build();
    TRACER.set(provider.tracer("ortus")).map_err(|_| TraceError::Started)?;
    tracing::info!(%endpoint, "requests are traced");
    Ok(Some(Tracing(provider)))
}

pub(super) fn tracer() -> Option<&'static Tracer> {
    TRACER.get()
}

impl Tracing {
    /// Sends what waits, for so long at most. Blocks.
    pub fn stop(self, patience: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_without_a_secret() {
        for good in ["http://localhost:4317", "https://collector.example", "http://[::1]:4317/"] {
            assert!(TraceSettings::is_endpoint(good), "{good}");
        }
        for bad in [
            "",
            "localhost:4317",
            "ftp://a",
            "/x",
            "http://",
            "http://user:key@host:4317",
            "http://host:4317/?key=a",
            "http://a b",
        ] {
            assert!(!TraceSettings::is_endpoint(bad), "{bad}");
        }
    }
}

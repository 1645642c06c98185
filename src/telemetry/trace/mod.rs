//! Traces: W3C `traceparent` in, OpenTelemetry spans out.
//!
//! A request is a span of kind server with one below it for each stage that it went through (`preprocess`, `queue`, `run`,
//! `postprocess`), made when the stage is over; a run of several requests is a span `batch` that links to all of them. Names
//! and values come from the server: nothing that a client sent is in a span but its request id, which is clean, and its
//! trace's own ids and state.
//!
//! Formats: <https://www.w3.org/TR/trace-context/>, and the names of
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.

mod export;

pub use export::{TraceError, TraceSettings, Tracing, start_tracing};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceId, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Span, Tracer};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

tokio::task_local! {
    /// Of the request whose work this is, where spans are made of it.
    static CURRENT: Option<Arc<Running>>;
}

/// One request as a trace sees it. Ended when it is dropped: also one whose client left.
#[derive(Debug, Default)]
pub struct RequestTrace {
    id: Option<TraceId>,
    running: Option<Arc<Running>>,
}

/// A request of which spans are made.
#[derive(Debug)]
struct Running {
    /// Until its end. A std mutex: held to set values, never across an await.
    span: Mutex<Option<Span>>,
    /// What its stages are below.
    context: Context,
    tracer: Tracer,
    started: Instant,
    started_at: SystemTime,
}

/// What a request is, before anything is done for it.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Upper case, one of HTTP's own; else `_OTHER`.
    pub method: &'a str,
    /// The template, not the path.
    pub route: &'a str,
    pub request_id: &'a str,
    pub started: Instant,
}

impl RequestTrace {
    /// Goes on with the trace that `headers` names (`traceparent`, `tracestate`), else begins one where spans are exported.
    /// What is no valid context counts as none.
    pub fn begin(headers: &HeaderMap, facts: RequestFacts<'_>) -> RequestTrace {
        let tracer = export::tracer();
        let is_named = headers.contains_key("traceparent");
        if tracer.is_none() && !is_named {
            return RequestTrace::default();
        }
        let parent = match is_named {
            true => TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers)),
            false => Context::new(),
        };
        let given = parent.span().span_context().clone();
        let Some(tracer) = tracer else {
            return RequestTrace { id: given.is_valid().then(|| given.trace_id()), running: None };
        };
        let started_at = before_now(facts.started.elapsed());
        let builder = tracer
            .span_builder(format!("{} {}", facts.method, facts.route))
            .with_kind(SpanKind::Server)
            .with_start_time(started_at)
            .with_attributes([
                KeyValue::new("http.request.method", facts.method.to_owned()),
                KeyValue::new("http.route", facts.route.to_owned()),
                KeyValue::new("ortus.request.id", facts.request_id.to_owned()),
            ]);
        let span = tracer.build_with_context(builder, &parent);
        let context = span.span_context().clone();
        let running = context.is_sampled().then(|| {
            let (started, tracer) = (facts.started, tracer.clone());
            let (span, below) = (Mutex::new(Some(span)), Context::new().with_remote_span_context(context.clone()));
            Arc::new(Running { span, context: below, tracer, started, started_at })
        });
        RequestTrace { id: Some(context.trace_id()), running }
    }

    /// The trace's id as 32 hexadecimal digits; `None` where the request belongs to none.
    pub fn id(&self) -> Option<String> {
        self.id.map(|id| id.to_string())
    }

    /// Does `work` so that [`stage`] and [`reached`] know whose it is.
    pub fn follow<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.running.clone(), work)
    }

    /// Ends the request's span. `code` is an error's, which programs compare; `cache` says where a kept answer came from.
    pub fn end(&mut self, status: u16, code: Option<&str>, cache: Option<&str>) {
        let Some(running) = self.running.take() else { return };
        let Some(mut span) = running.take_span() else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if let Some(code) = code {
            span.set_attribute(KeyValue::new("error.type", code.to_owned()));
        }
        if let Some(cache) = cache {
            span.set_attribute(KeyValue::new("ortus.cache", cache.to_owned()));
        }
        if status >= 500 {
            // A request that was refused is no fault of the server: its span has no error.
            span.set_status(Status::error(code.unwrap_or_default().to_owned()));
        }
        span.end_with_timestamp(running.at(Instant::now()));
    }
}

impl Running {
    fn take_span(&self) -> Option<Span> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The wall clock of a request is read once, so that its spans keep their order when the clock is set.
    fn at(&self, instant: Instant) -> SystemTime {
        self.started_at + instant.saturating_duration_since(self.started)
    }
}

/// The request of this task reached a model.
pub fn reached(model: &str, version: u64) {
    with_current(|running| {
        if let Some(span) = &mut *running.span.lock().unwrap_or_else(PoisonError::into_inner) {
            span.set_attribute(KeyValue::new("ortus.model.name", model.to_owned()));
            span.set_attribute(KeyValue::new("ortus.model.version", version.to_string()));
        }
    });
}

/// A stage of this task's request is over: a span from `started`, of that length.
pub fn stage(name: &'static str, started: Instant, length: Duration) {
    with_current(|running| {
        let builder = running.tracer.span_builder(name).with_start_time(running.at(started));
        let mut span = running.tracer.build_with_context(builder, &running.context);
        span.end_with_timestamp(running.at(started + length));
    });
}

/// The span of this task's request, for the batch that it joins.
pub fn link() -> Option<SpanLink> {
    let mut link = None;
    with_current(|running| link = Some(SpanLink(running.clone())));
    link
}

/// A request's span, on its way to a batch.
#[derive(Debug, Clone)]
pub struct SpanLink(Arc<Running>);

/// A run of several requests or items of them, of `rows` rows in all, is over: a span that links to each request's. It lies
/// below the first of them, so that it is kept where that is.
pub fn batch<'a>(
    model: &str,
    rows: usize,
    requests: impl Iterator<Item = Option<&'a SpanLink>>,
    started: Instant,
    ended: Instant,
) {
    let mut count = 0;
    let mut running: Vec<&Running> = requests.inspect(|_| count += 1).flatten().map(|link| &*link.0).collect();
    // The items of one request stand side by side.
    running.dedup_by(|one, other| std::ptr::eq(*one, *other));
    let Some(first) = running.first() else { return };
    let contexts = running.iter().map(|running| running.context.span().span_context().clone());
    let links: Vec<Link> = contexts.map(|context: SpanContext| Link::new(context, Vec::new(), 0)).collect();
    let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let builder = first.tracer.span_builder("batch").with_start_time(first.at(started)).with_links(links);
    let builder = builder.with_attributes([
        KeyValue::new("ortus.model.name", model.to_owned()),
        KeyValue::new("ortus.batch.rows", whole(rows)),
        KeyValue::new("ortus.batch.parts", whole(count)),
    ]);
    let mut span = first.tracer.build_with_context(builder, &first.context);
    span.end_with_timestamp(first.at(ended));
}

fn with_current(work: impl FnOnce(&Arc<Running>)) {
    // Outside of a request there is nothing to say.
    let _ = CURRENT.try_with(|current| current.as_ref().map(work));
}

fn before_now(length: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(length).unwrap_or(now)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    /// `None` also where it is there twice: the format then counts it as invalid.
    fn get(&self, key: &str) -> Option<&str> {
        let mut values = self.0.get_all(key).iter();
        let value = values.next()?;
        // More than one tracestate is allowed, and joining them is not worth its price here: the first is kept.
        if values.next().is_some() && key == "traceparent" {
            return None;
        }
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_of(headers: &[(&'static str, &str)]) -> RequestTrace {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers: Vec<(http::HeaderName, http::HeaderValue)> = headers.collect();
        let mut map = HeaderMap::new();
        headers.into_iter().for_each(|(name, value)| {
            map.append(name, value);
        });
        let facts = RequestFacts { method: "POST", route: "/x", request_id: "r", started: Instant::now() };
        RequestTrace::begin(&map, facts)
    }

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_named_by_its_header_alone_where_nothing_is_exported() {
        assert_eq!(trace_of(&[("traceparent", GOOD)]).id().unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(trace_of(&[]).id().is_none());
    }

    #[test]
    fn what_is_no_context_counts_as_none() {
        let long = format!("{GOOD}{}", "-x".repeat(3000));
        for bad in [
            "",
            "x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473z-00f067aa0ba902b7-01",
            &long,
        ] {
            assert!(trace_of(&[("traceparent", bad)]).id().is_none(), "{bad}");
        }
        assert!(trace_of(&[("traceparent", GOOD), ("traceparent", GOOD)]).id().is_none());
        // A bad state loses the state, not the trace.
        assert!(trace_of(&[("traceparent", GOOD), ("tracestate", "=,=;\t")]).id().is_some());
    }

    #[tokio::test]
    async fn without_an_exporter_stages_cost_nothing_and_say_nothing() {
        let mut trace = trace_of(&[("traceparent", GOOD)]);
        trace
            .follow(async {
                reached("m", 1);
                stage("run", Instant::now(), Duration::ZERO);
                assert!(link().is_none());
            })
            .await;
        trace.end(200, None, None);
    }
}

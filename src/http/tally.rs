//! Which requests are counted as meant for a model, and how each of them ended: predictions, and jobs where they are accepted.
//!
//! `middleware::observe` begins a tally for each request to a route that predicts or takes a job, and ends it with the answer; dropped with
//! the request's future it counts a client that went away. The handler says which model was reached. Knows no form of a
//! body, and takes no label from a request.

use super::dialects;
use crate::engine::{EngineError, InferenceEngine, LoadedModel, ModelName, Version};
use crate::telemetry::stats::{Protocol, Rejected};
use crate::telemetry::trace;
use crate::telemetry::{ModelStats, RequestGuard, Stats};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// One request's count. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Option<RequestGuard>>>);

impl Tally {
    /// Begins where `route`, a route's template, is one that predicts or takes a job; else counts nothing.
    pub(super) fn begin(route: &str, stats: &Stats, arrival: Instant) -> Tally {
        let guard = protocol_of(route).map(|protocol| stats.begin(protocol, arrival));
        Tally(Arc::new(Mutex::new(guard)))
    }

    /// The ready model to use for the request, which is counted as the model's from here on; also where the model is there
    /// and not ready.
    ///
    /// # Errors
    /// As [`InferenceEngine::model`].
    pub(super) async fn model(
        &self,
        engine: &InferenceEngine,
        name: &ModelName,
        version: Option<Version>,
    ) -> Result<Arc<LoadedModel>, EngineError> {
        let found = engine.model(name, version).await;
        match &found {
            Ok(model) => self.reach(&model.stats),
            Err(_) => self.aim(engine, name, version),
        }
        found
    }

    /// Counts the request as the model's where the store has it, loaded or not. Loads nothing.
    pub(super) fn aim(&self, engine: &InferenceEngine, name: &ModelName, version: Option<Version>) {
        engine.model_stats(name, version).into_iter().for_each(|stats| self.reach(&stats));
    }

    fn reach(&self, model: &Arc<ModelStats>) {
        if let Some(guard) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            guard.reach(model);
            trace::reached(model.name(), model.version());
        }
    }

    /// The answer is made: its status, and its code where it is an error.
    pub(super) fn finish(&self, status: u16, code: Option<Cow<'static, str>>) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(guard) = guard {
            guard.finish(status, code);
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Tally {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Tally, Infallible> {
        Ok(parts.extensions.get::<Tally>().cloned().unwrap_or_default())
    }
}

fn protocol_of(route: &str) -> Option<Protocol> {
    if route.starts_with("/v1/models/") && (route.ends_with("/predict") || route.ends_with("/jobs")) {
        return Some(Protocol::V1);
    }
    if dialects::is_openai(route) || dialects::is_tei(route) {
        return Some(Protocol::V1);
    }
    (route.starts_with("/v2/models/") && route.ends_with("/infer")).then_some(Protocol::V2)
}

/// Whether an error code says that a request was turned away for a reason other than its content.
pub(super) fn rejected(code: &str) -> Option<Rejected> {
    match code {
        "queue_full" => Some(Rejected::QueueFull),
        "model_not_ready" | "model_failed" | "model_unloading" => Some(Rejected::NotReady),
        "shutting_down" => Some(Rejected::Stopping),
        "body_too_large" | "headers_too_large" | "input_too_large" | "too_large" => Some(Rejected::TooLarge),
        "body_too_slow" => Some(Rejected::TooSlow),
        "bad_host_header" | "host_not_allowed" => Some(Rejected::Host),
        "origin_not_allowed" => Some(Rejected::Origin),
        "unauthorized" | "key_needed" | "bad_key_header" | "too_many_wrong_keys" | "role_too_low" => {
            Some(Rejected::Key)
        }
        "rate_limited" => Some(Rejected::RateLimited),
        "bad_transfer_encoding" => Some(Rejected::Malformed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_routes_that_predict_or_take_a_job_are_counted() {
        for (route, expected) in [
            ("/v1/models/{name}/predict", Some(Protocol::V1)),
            ("/v1/models/{name}/versions/{version}/predict", Some(Protocol::V1)),
            ("/v1/models/{name}/jobs", Some(Protocol::V1)),
            ("/v1/jobs/{id}", None),
            ("/v1/models/{name}/warmup", None),
            ("/v1/embeddings", Some(Protocol::V1)),
            ("/rerank", Some(Protocol::V1)),
            ("/v2/models/{name}/infer", Some(Protocol::V2)),
            ("/v2/models/{name}/versions/{version}/infer", Some(Protocol::V2)),
            ("/v2/models/{name}/ready", None),
            ("/v1/models/{name}", None),
            ("unmatched", None),
        ] {
            assert_eq!(protocol_of(route), expected, "{route}");
        }
    }

    #[test]
    fn a_tally_counts_once_whatever_becomes_of_its_copies() {
        let stats = Stats::new(Duration::from_secs(60));
        let model = stats.model("m", 1);
        let tally = Tally::begin("/v1/models/{name}/predict", &stats, Instant::now());
        let copy = tally.clone();
        copy.reach(&model);
        tally.finish(200, None);
        copy.finish(500, None);
        drop((tally, copy));
        drop(Tally::begin("/v2/models/{name}/infer", &stats, Instant::now()));
        Tally::begin("/livez", &stats, Instant::now()).finish(200, None);
        assert_eq!(model.totals().requests, [(Protocol::V1, 200, 1)]);
        assert_eq!(stats.nowhere().totals().requests, [(Protocol::V2, 499, 1)]);
    }
}

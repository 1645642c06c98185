//! How one request that is meant for a model ended, counted once; and whether its line is in the log.
//!
//! A door begins a tally with the request's head and ends it with the answer; dropped with the request's future it counts a client
//! that went away. The handler says which model was reached. Takes no label from a request.

use crate::engine::{EngineError, InferenceEngine, LoadedModel, ModelName, Version};
use crate::telemetry::stats::{Protocol, Rejected};
use crate::telemetry::trace;
use crate::telemetry::{ModelStats, RequestGuard, Stats, writes_refusal};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// One request's count. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<Option<RequestGuard>>>);

impl Tally {
    /// Begins a request of this protocol; none counts nothing.
    pub fn begin(protocol: Option<Protocol>, stats: &Stats, arrival: Instant) -> Tally {
        let guard = protocol.map(|protocol| stats.begin(protocol, arrival));
        Tally(Arc::new(Mutex::new(guard)))
    }

    /// The ready model to use for the request, which is counted as the model's from here on; also where the model is there
    /// and not ready.
    ///
    /// # Errors
    /// As [`InferenceEngine::model`].
    pub async fn model(
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
    pub fn aim(&self, engine: &InferenceEngine, name: &ModelName, version: Option<Version>) {
        engine.model_stats(name, version).into_iter().for_each(|stats| self.reach(&stats));
    }

    fn reach(&self, model: &Arc<ModelStats>) {
        if let Some(guard) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            guard.reach(model);
            trace::reached(model.name(), model.version());
        }
    }

    /// The answer is made: its status, and its code where it is an error.
    pub fn finish(&self, status: u16, code: Option<Cow<'static, str>>) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(guard) = guard {
            guard.finish(status, code);
        }
    }
}

/// Whether an error code says that a request was turned away for a reason other than its content.
pub fn rejected(code: &str) -> Option<Rejected> {
    match code {
        "queue_full" => Some(Rejected::QueueFull),
        "overloaded" => Some(Rejected::Overloaded),
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

/// Whether the line of a request that ended so is written to the log. Of refusals that come by the hundred it is not; a fault of ours
/// always is.
pub fn writes_line(status: u16, code: Option<&str>) -> bool {
    let Some(code) = code else { return true };
    let is_overload = || matches!(rejected(code), Some(Rejected::QueueFull | Rejected::Overloaded));
    !((400..500).contains(&status) || is_overload()) || writes_refusal(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_tally_counts_once_whatever_becomes_of_its_copies() {
        let stats = Stats::new(Duration::from_secs(60));
        let model = stats.model("m", 1);
        let tally = Tally::begin(Some(Protocol::V1), &stats, Instant::now());
        let copy = tally.clone();
        copy.reach(&model);
        tally.finish(200, None);
        copy.finish(500, None);
        drop((tally, copy));
        drop(Tally::begin(Some(Protocol::V2), &stats, Instant::now()));
        Tally::begin(None, &stats, Instant::now()).finish(200, None);
        assert_eq!(model.totals().requests, [(Protocol::V1, 200, 1)]);
        assert_eq!(stats.nowhere().totals().requests, [(Protocol::V2, 499, 1)]);
    }
}

//! Which requests are counted as meant for a model: predictions, and jobs where they are accepted.
//!
//! `middleware::observe` begins a tally for each request and ends it with the answer.

use super::dialects;
use crate::protocol::Tally;
use crate::telemetry::stats::Protocol;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::convert::Infallible;

impl<S: Send + Sync> FromRequestParts<S> for Tally {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Tally, Infallible> {
        Ok(parts.extensions.get::<Tally>().cloned().unwrap_or_default())
    }
}

/// What a request to `route`, a route's template, is counted as; `None` where it is none that predicts or takes a job.
pub(super) fn protocol_of(route: &str) -> Option<Protocol> {
    if route.starts_with("/v1/models/") && (route.ends_with("/predict") || route.ends_with("/jobs")) {
        return Some(Protocol::V1);
    }
    let is_torchserve = route.starts_with("/predictions/") || dialects::is_kserve(route);
    if is_torchserve || dialects::is_openai(route) || dialects::is_tei(route) {
        return Some(Protocol::V1);
    }
    (route.starts_with("/v2/models/") && route.ends_with("/infer")).then_some(Protocol::V2)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("/predictions/{name}", Some(Protocol::V1)),
            ("/v1/models/{name}/instances", Some(Protocol::V1)),
            ("/models/{name}", None),
            ("/explanations/{name}", None),
            ("/v2/models/{name}/infer", Some(Protocol::V2)),
            ("/v2/models/{name}/versions/{version}/infer", Some(Protocol::V2)),
            ("/v2/models/{name}/ready", None),
            ("/v1/models/{name}", None),
            ("unmatched", None),
        ] {
            assert_eq!(protocol_of(route), expected, "{route}");
        }
    }
}

//! The REST door: HTTP in, engine calls, HTTP out.
//!
//! `server` is what the app starts, `door` is the way of a request to its handler, `router` is the route table, `middleware` what surrounds every route, `counted` what bodies hold of what all may, `access` the roles of routes and the keys of
//! requests, `streams` the answers that go on, `audited` what goes to the audit log, `error` the error
//! table. `v1` is the native API, `v2` the Open Inference Protocol, `dialects` routes of other servers, `openapi` the description of
//! it all; `dashboard` is pages for people over the native API. Knows the engine and what stands beside it, and nothing below.

mod access;
mod audited;
mod body;
mod counted;
mod dashboard;
mod dialects;
mod door;
mod error;
mod extract;
mod health;
mod metrics;
mod middleware;
mod openapi;
mod outcome;
mod router;
mod server;
mod settings;
mod streams;
mod tally;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

pub use openapi::{document_json, document_yaml};
pub use server::Server;
pub use settings::{HttpLimits, HttpSettings, ShownSetting};
pub use v1::optimize::{inputs_offline, optimization_json};
pub use v1::predict::{predict_offline, tensors_offline};

use crate::auth::Gate;
use crate::downloads::Downloads;
use crate::engine::InferenceEngine;
use crate::entrance::InFlightBytes;
use crate::jobs::Jobs;
use crate::optimize::Optimizer;
use crate::tasks::Tasks;
use crate::tls::Certificate;
use std::sync::Arc;

/// What the server does, for the door.
#[derive(Clone)]
pub struct Services {
    pub auth: Gate,
    pub engine: InferenceEngine,
    pub jobs: Jobs,
    pub downloads: Downloads,
    pub optimizer: Optimizer,
    /// What the bodies of all requests hold, to all doors.
    pub bodies: InFlightBytes,
    /// `None`: without TLS.
    pub tls: Option<Certificate>,
}

/// What every handler has.
#[derive(Clone)]
pub struct HttpState {
    pub auth: Gate,
    pub engine: InferenceEngine,
    pub jobs: Jobs,
    pub downloads: Downloads,
    pub optimizer: Optimizer,
    pub settings: Arc<HttpSettings>,
    pub tasks: Tasks,
    /// `None`: without TLS.
    pub tls: Option<Certificate>,
    bodies: InFlightBytes,
    streams: streams::Streams,
}

impl HttpState {
    /// Runs `work` on `size` bytes here where that is little, else off the async threads.
    async fn compute<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, error::ApiError> {
        let done = self.tasks.compute(size, work).await;
        done.map_err(|error| error::ApiError::internal(format!("reading or writing a body: {error}")))
    }
}

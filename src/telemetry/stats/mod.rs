//! What happened to every request and every run: counted once, here, and read by `/metrics`, `/v1/…/stats` and `/v2/…/stats`
//! alike, so that they can never disagree.
//!
//! `registry` is the list of models, `model` what is counted of one version, `guard` one request from its arrival to its
//! end, `window` the last minutes, `histogram` the counts since the start. Two ages of numbers: those *since the start* only
//! grow, as Prometheus and Triton's clients expect, and go away with their model; those of the *window* are the last
//! `[telemetry] stats_window_s` and can be reset.
//!
//! Invariants: memory is bounded for each version of a model, whatever is recorded; recording takes one short lock or none
//! and allocates nothing but for a value of a kind not seen before; every request is counted exactly once, by its
//! [`RequestGuard`]: answered, refused with a code, or cancelled. Names come from the model store alone, never from a
//! request. Knows no protocol's form: see the doors.
//!
//! A job is one request: the one that brought it, accepted with 202 or refused. An accepted one is neither answered nor
//! refused, and its time is no prediction's, so it is in no stage `total`. What the job runs later is no request any more:
//! its stages, caches and runs are recorded like any other's.

mod guard;
mod histogram;
mod model;
mod registry;
#[cfg(test)]
mod tests;
mod window;

use std::time::Duration;

pub use guard::{PanicGuard, RequestGuard};
pub use histogram::HistogramSnapshot;
pub use model::{BatchTotals, ModelStats, TimeTotal, VersionTotals, WindowSummary};
pub use registry::{Activity, ModelTotals, Rejected, Stats};
pub use window::StageSummary;

/// `[telemetry]`: what is counted how far back.
#[derive(Debug, Clone, PartialEq)]
pub struct StatsSettings {
    /// How far back the numbers of the window go.
    pub window: Duration,
}

impl Default for StatsSettings {
    fn default() -> StatsSettings {
        StatsSettings { window: Duration::from_secs(300) }
    }
}

/// What part of a request's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From arrival to the encoded answer; of answered requests alone.
    Total,
    Queue,
    Preprocess,
    Inference,
    Postprocess,
}

impl Stage {
    pub const ALL: [Stage; 5] = [Stage::Total, Stage::Queue, Stage::Preprocess, Stage::Inference, Stage::Postprocess];

    /// The value of the label `stage`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Total => "total",
            Stage::Queue => "queue",
            Stage::Preprocess => "preprocess",
            Stage::Inference => "inference",
            Stage::Postprocess => "postprocess",
        }
    }
}

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The native API; a job is counted once, by the request that brought it.
    V1,
    /// The Open Inference Protocol over REST.
    V2,
    /// The Open Inference Protocol over gRPC.
    Grpc,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::V1, Protocol::V2, Protocol::Grpc];

    /// The value of the label `protocol`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::V1 => "v1",
            Protocol::V2 => "v2",
            Protocol::Grpc => "grpc",
        }
    }
}

/// Why a request ended without an answer that anyone could use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// The client went away.
    Disconnected,
    /// The deadline passed before or during the run.
    Expired,
}

impl CancelReason {
    pub const ALL: [CancelReason; 2] = [CancelReason::Disconnected, CancelReason::Expired];

    /// The value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            CancelReason::Disconnected => "disconnected",
            CancelReason::Expired => "expired",
        }
    }
}

/// Which cache was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheKind {
    Response,
    Preprocess,
}

impl CacheKind {
    pub const ALL: [CacheKind; 2] = [CacheKind::Response, CacheKind::Preprocess];

    /// The value of the label `cache`.
    pub fn name(self) -> &'static str {
        match self {
            CacheKind::Response => "response",
            CacheKind::Preprocess => "preprocess",
        }
    }
}

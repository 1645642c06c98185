//! One request from its arrival to its end, and a panic on its way out.

use super::{ModelStats, Protocol};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A request in flight. Ends in exactly one of three ways, and is counted then: [`RequestGuard::finish`] with success is
/// *answered*, with any other status *refused*; dropped without it is *cancelled* by the client.
#[derive(Debug)]
#[must_use = "dropped at once it counts a cancelled request"]
pub struct RequestGuard {
    /// `None` once it is counted.
    stats: Option<Arc<ModelStats>>,
    protocol: Protocol,
    arrival: Instant,
}

impl RequestGuard {
    pub(super) fn new(stats: Arc<ModelStats>, protocol: Protocol, arrival: Instant) -> RequestGuard {
        stats.entered();
        RequestGuard { stats: Some(stats), protocol, arrival }
    }

    /// The request reached this model: from here on it is the model's. Begun with [`super::Stats::begin`] it was nobody's.
    pub fn reach(&mut self, model: &Arc<ModelStats>) {
        let Some(before) = &mut self.stats else { return };
        model.entered();
        before.left();
        *before = model.clone();
    }

    /// The request is answered with an HTTP status (gRPC: what the code means in HTTP), and refused where that is no
    /// success: `error_code` is the stable word for why, of a closed set. Records [`super::Stage::Total`] of an answer and
    /// [`super::CancelReason::Expired`] of a 504.
    pub fn finish(mut self, status: u16, error_code: Option<Cow<'static, str>>) {
        if let Some(stats) = self.stats.take() {
            stats.finished(self.protocol, status, error_code, self.arrival.elapsed());
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let Some(stats) = self.stats.take() else { return };
        if std::thread::panicking() {
            // Nobody left: a fault of ours.
            stats.finished(self.protocol, 500, Some(Cow::Borrowed("internal_error")), self.arrival.elapsed());
        } else {
            stats.disconnected(self.protocol);
        }
    }
}

/// Counts a panic that passes through the scope where it lives; whoever catches it counts nothing.
#[derive(Debug)]
#[must_use = "dropped at once it sees no panic"]
pub struct PanicGuard(pub(super) Arc<AtomicU64>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

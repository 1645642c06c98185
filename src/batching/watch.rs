//! Replaces an instance whose run does not stop: ONNX Runtime looks at its stop signal between two nodes only.
//!
//! Invariants: an instance is given up only while the very run that was told to stop still runs; no more than
//! [`GIVEN_UP_MAX`] times the instances are given up at once, since each keeps its thread and its memory until its run ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a run that was told to stop may go on before its instance is replaced.
pub(super) const HUNG_AFTER: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 2000 });
/// Instances given up at once, for each instance of the model.
pub(super) const GIVEN_UP_MAX: usize = 2;

/// What is known from outside of an instance's thread.
#[derive(Default)]
pub(super) struct Slot {
    /// Even: idle; odd: a run. Each run has its own number.
    run: AtomicU64,
    replaced: AtomicBool,
}

impl Slot {
    /// The number of the run that begins.
    pub(super) fn begin(&self) -> u64 {
        self.run.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn end(&self) {
        self.run.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn still_runs(&self, run: u64) -> bool {
        self.run.load(Ordering::Acquire) == run
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// Ends the instance after its present run. Gives whether it was not replaced before.
    pub(super) fn replace(&self) -> bool {
        !self.replaced.swap(true, Ordering::AcqRel)
    }
}

/// A run that was told to stop.
pub(super) struct Stopped {
    pub(super) slot: Arc<Slot>,
    pub(super) run: u64,
}

/// Where runs that were told to stop are reported. Reports are as many as runs that were stopped.
#[derive(Clone)]
pub(super) struct Watch(mpsc::UnboundedSender<Stopped>);

impl Watch {
    pub(super) fn new() -> (Watch, mpsc::UnboundedReceiver<Stopped>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Watch(sender), receiver)
    }

    pub(super) fn stopped(&self, slot: Arc<Slot>, run: u64) {
        // The watcher ends with the model.
        let _ = self.0.send(Stopped { slot, run });
    }
}

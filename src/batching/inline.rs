//! Runs of tiny models without a hop to an instance's thread: waking a thread takes several times as long as their run.
//!
//! Invariant: only runs whose time is known to be short, whatever their values, for they are made on the async threads; a
//! session that is taken is not waited for. Who may run here is decided at load (`models/loader.rs`).

use super::BatchError;
use crate::runtime::{Input, Interrupt, Session};
use crate::tensor::Value;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

/// Sessions for runs in place; none for most models.
#[derive(Default)]
pub struct Inline {
    /// Std mutexes that are only tried: who finds one taken goes to the queue.
    sessions: Vec<Mutex<Box<dyn Session>>>,
    /// Rows of one run at most.
    max_rows: usize,
}

impl Inline {
    pub fn new(sessions: Vec<Box<dyn Session>>, max_rows: usize) -> Inline {
        Inline { sessions: sessions.into_iter().map(Mutex::new).collect(), max_rows }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// What the run gave and how long it took; `None` where it has to go to the queue.
    pub(super) fn run(
        &self,
        inputs: &[Input],
        outputs: &[usize],
        rows: usize,
    ) -> Option<(Result<Vec<Value>, BatchError>, Duration)> {
        if rows > self.max_rows {
            return None;
        }
        let mut session = self.sessions.iter().find_map(|session| match session.try_lock() {
            Ok(session) => Some(session),
            // A run that panicked left a session that ONNX Runtime keeps whole.
            Err(TryLockError::Poisoned(session)) => Some(session.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })?;
        let started = Instant::now();
        let run = AssertUnwindSafe(|| session.run(inputs, outputs, &Interrupt::new()));
        let outcome = match std::panic::catch_unwind(run) {
            Ok(outcome) => outcome.map_err(BatchError::Runtime),
            Err(_) => Err(BatchError::Panicked),
        };
        Some((outcome, started.elapsed()))
    }
}

//! What became of a model whose device had no memory for a run: fewer rows at once, and another device in the last place.
//!
//! A batch that is too large is halved until it fits. Its size is remembered only where both halves fitted, since one request
//! that no device has memory for must not make the batches of all others small. A request that does not fit alone runs on the reserve,
//! a session on the CPU that is made at the first need; where there is none it is told so.

use super::Spare;
use crate::runtime::{Input, Interrupt, RuntimeError, Session};
use crate::tensor::Value;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a model's instances have learnt of their device.
pub(super) struct Memory {
    /// Most rows of a run; `usize::MAX` where all have fitted.
    rows: AtomicUsize,
    /// Whether a run was made on the reserve since the last that the device made.
    on_reserve: AtomicBool,
    make: Option<Spare>,
    /// Locked for a run: it is one session for all instances, and seldom used.
    reserve: Mutex<Option<Box<dyn Session>>>,
}

/// How a model runs with less than it was to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Most rows of a run, learnt from runs that did not fit; `None` where all fitted.
    pub max_rows: Option<usize>,
    /// Whether the last run was made on the CPU, since the device could not make it.
    pub on_reserve: bool,
}

impl Memory {
    pub(super) fn new(make: Option<Spare>) -> Memory {
        Memory {
            rows: AtomicUsize::new(usize::MAX),
            on_reserve: AtomicBool::new(false),
            make,
            reserve: Mutex::new(None),
        }
    }

    /// Most rows of a run.
    pub(super) fn max_rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    /// Notes that runs of `rows` do fit where those of twice as many did not; whether that is news.
    pub(super) fn fits(&self, rows: usize) -> bool {
        let rows = rows.max(1);
        self.rows.fetch_min(rows, Ordering::Relaxed) > rows
    }

    /// Notes that the device made a run.
    pub(super) fn device_ran(&self) {
        if self.on_reserve.load(Ordering::Relaxed) {
            self.on_reserve.store(false, Ordering::Relaxed);
        }
    }

    /// Runs on the reserve what the device could not; the device's error where there is none.
    pub(super) fn run_on_reserve(
        &self,
        model: &str,
        inputs: &[Input],
        outputs: &[usize],
        interrupt: &Interrupt,
        error: RuntimeError,
    ) -> Result<Vec<Value>, RuntimeError> {
        let Some(make) = &self.make else { return Err(error) };
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        if reserve.is_none() {
            match make() {
                Ok(session) => *reserve = Some(session),
                Err(problem) => {
                    tracing::error!(model, %problem, "no session on the CPU could be made in place of the device's");
                    return Err(error);
                }
            }
        }
        let Some(session) = reserve.as_mut() else { return Err(error) };
        if !self.on_reserve.swap(true, Ordering::Relaxed) {
            tracing::warn!(model, %error, "the device could not make a run; it is made on the CPU");
        }
        session.run(inputs, outputs, interrupt)
    }

    pub(super) fn pressure(&self) -> Option<Pressure> {
        let rows = self.max_rows();
        let on_reserve = self.on_reserve.load(Ordering::Relaxed);
        (rows != usize::MAX || on_reserve)
            .then_some(Pressure { max_rows: (rows != usize::MAX).then_some(rows), on_reserve })
    }
}

//! Runs of tiny models without a hop to an instance's thread: waking a thread takes several times as long as their run.
//!
//! A request runs where it is, or gathers with others: the first of them on a thread lets the thread's other tasks go on,
//! which bring theirs, and then runs all together. Gathering is tried now and then, and kept up while it brings company.
//!
//! Invariants: only runs whose time is known to be short, whatever their values, for they are made on the async threads; who
//! leads a gathering runs it, also when its own request is cancelled, so nobody who joined is left without an answer. Which
//! models may run here is decided at load (`models/loader.rs`); where their shapes vary, which shapes is learned from runs of
//! the instances.

use super::BatchError;
use super::instance::{self, Shared};
use super::plan::Measure;
use super::queue::{Pending, expire};
use crate::runtime::{Input, Interrupt, Session};
use crate::tensor::Value;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use tokio::time::Instant;

/// Sessions for runs in place; none for most models.
#[derive(Default)]
pub struct Inline {
    /// One for each async thread, so that requests of one thread gather without meeting those of another.
    seats: Vec<Seat>,
    short: Short,
}

/// Which requests' runs are short. The time of a run follows from its shapes alone for the models that come here.
pub enum Short {
    /// All shapes are fixed but for the rows: so many at most.
    Rows(usize),
    /// Those of shapes that took little time before.
    Learned(Learned),
}

/// Shapes that were run, with the least time that a run of one request took. A std mutex: held for a look.
#[derive(Default)]
pub struct Learned(Mutex<Vec<Seen>>);

struct Seen {
    shape: Box<[usize]>,
    rows: usize,
    runs: u32,
    best: Duration,
}

/// Shapes that are remembered at most; the one seen first makes room.
const SHAPES_MAX: usize = 16;
/// Runs of a shape after which its time is known.
const RUNS_MIN: u32 = 3;
/// The longest run that is made on an async thread.
pub const SHORT_RUN: Duration = Duration::from_micros(50);
/// What may be added to it for each byte of input: the thread spends more than that on moving the byte.
const NANOS_PER_BYTE: f64 = 0.1;
/// Requests with more bytes a row run one by one: to copy them into one input costs more than a run.
const GATHERED_ROW_BYTES: usize = 64 << 10;

impl Learned {
    fn knows(&self, measure: &Measure) -> bool {
        let allowed = SHORT_RUN + Duration::from_nanos((measure.bytes as f64 * NANOS_PER_BYTE) as u64);
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().any(|seen| seen.is(measure) && seen.runs >= RUNS_MIN && seen.best <= allowed)
    }

    fn add(&self, measure: &Measure, time: Duration) {
        let Some(shape) = &measure.shape else { return };
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen.iter_mut().find(|seen| seen.is(measure)) {
            (seen.runs, seen.best) = (seen.runs.saturating_add(1), seen.best.min(time));
            return;
        }
        if seen.len() >= SHAPES_MAX {
            seen.remove(0);
        }
        seen.push(Seen { shape: shape.clone(), rows: measure.rows, runs: 1, best: time });
    }
}

impl Seen {
    fn is(&self, measure: &Measure) -> bool {
        self.rows == measure.rows && measure.shape.as_deref() == Some(&*self.shape)
    }
}

impl Default for Short {
    fn default() -> Short {
        Short::Rows(0)
    }
}

/// Std mutexes: held for a short run, or to add a request; never across an await.
struct Seat {
    session: Mutex<Box<dyn Session>>,
    gathered: Mutex<Vec<Pending>>,
    /// Gatherings to come that are worth a try, since one before brought company.
    hope: AtomicUsize,
    /// Requests that ran without a try.
    untried: AtomicUsize,
}

/// Gatherings that are tried after one that brought company.
const HOPE: usize = 8;
/// Without hope, one of so many requests tries: a try costs one look at the sockets, 1 to 2 µs.
const TRY_EVERY: usize = 16;

impl Inline {
    pub fn new(sessions: Vec<Box<dyn Session>>, short: Short) -> Inline {
        let seat = |session| Seat {
            session: Mutex::new(session),
            gathered: Mutex::default(),
            hope: AtomicUsize::new(0),
            untried: AtomicUsize::new(0),
        };
        Inline { seats: sessions.into_iter().map(seat).collect(), short }
    }

    /// The same with `max_rows` of one run at most, as the settings say of every run.
    pub(super) fn bounded(mut self, max_rows: usize) -> Inline {
        if let Short::Rows(most) = &mut self.short {
            *most = (*most).min(max_rows);
        }
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Whether a request may run here.
    pub(super) fn takes(&self, measure: &Measure) -> bool {
        match &self.short {
            Short::Rows(most) => measure.rows <= *most,
            Short::Learned(learned) => learned.knows(measure),
        }
    }

    /// Whether a request may gather with others.
    pub(super) fn gathers(&self, measure: &Measure) -> bool {
        matches!(self.short, Short::Rows(_)) && measure.bytes <= GATHERED_ROW_BYTES.saturating_mul(measure.rows)
    }

    /// Whether it is likely enough to find company on this thread.
    pub(super) fn expects_company(&self) -> bool {
        self.seat().is_some_and(|seat| {
            seat.hope.load(Ordering::Relaxed) > 0
                || seat.untried.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRY_EVERY)
                || !seat.gathered.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
        })
    }

    /// The seat of this thread.
    fn seat(&self) -> Option<&Seat> {
        self.seats.get(seat_of_thread() % self.seats.len().max(1))
    }

    /// An instance ran one request alone in this time.
    pub(super) fn ran(&self, measure: &Measure, time: Duration) {
        if let (Short::Learned(learned), false) = (&self.short, self.is_empty()) {
            learned.add(measure, time);
        }
    }

    /// What the run of one request gave and how long it took; `None` where every session is taken.
    pub(super) fn run(
        &self,
        inputs: &[Input],
        outputs: &[usize],
    ) -> Option<(Result<Vec<Value>, BatchError>, Duration)> {
        let mut session = self.free_session()?;
        let started = Instant::now();
        let run = AssertUnwindSafe(|| session.run(inputs, outputs, &Interrupt::new()));
        let outcome = match std::panic::catch_unwind(run) {
            Ok(outcome) => outcome.map_err(BatchError::Runtime),
            Err(_) => Err(BatchError::Panicked),
        };
        Some((outcome, started.elapsed()))
    }

    fn fits(&self, rows: usize) -> bool {
        matches!(self.short, Short::Rows(most) if rows <= most)
    }

    fn free_session(&self) -> Option<MutexGuard<'_, Box<dyn Session>>> {
        let from = seat_of_thread();
        let seats = self.seats.iter().cycle().skip(from % self.seats.len().max(1)).take(self.seats.len());
        seats.into_iter().find_map(|seat| match seat.session.try_lock() {
            Ok(session) => Some(session),
            // A run that panicked left a session that ONNX Runtime keeps whole.
            Err(TryLockError::Poisoned(session)) => Some(session.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })
    }

    /// Adds a request to those that gather on this thread. Who gets a [`Gathering`] leads: it shall yield and drop it.
    pub(super) fn join<'a>(shared: &'a Shared, pending: Pending) -> Option<Gathering<'a>> {
        let seat = shared.inline.seat()?;
        let mut gathered = seat.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.push(pending);
        // Made only where it is given away: it runs when it is dropped.
        if gathered.len() == 1 { Some(Gathering { shared, seat }) } else { None }
    }
}

/// Which seat is this thread's: threads count themselves.
fn seat_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SEAT: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    SEAT.with(|seat| *seat)
}

/// Requests that run together when this is dropped.
#[must_use = "dropped at once it gathers nobody"]
pub(super) struct Gathering<'a> {
    shared: &'a Shared,
    seat: &'a Seat,
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        let Gathering { shared, seat } = self;
        let gathered = std::mem::take(&mut *seat.gathered.lock().unwrap_or_else(PoisonError::into_inner));
        let hope = if gathered.len() > 1 { HOPE } else { seat.hope.load(Ordering::Relaxed).saturating_sub(1) };
        seat.hope.store(hope, Ordering::Relaxed);
        // The wait, where there is one, is for a run as short as ours.
        let mut session = match shared.inline.free_session() {
            Some(session) => session,
            None => seat.session.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let now = Instant::now();
        let apart = shared.offenders.apart(now);
        let mut batch: Vec<Pending> = Vec::with_capacity(gathered.len());
        let mut rows = 0;
        for pending in gathered {
            if pending.is_abandoned() || pending.deadline <= now {
                expire(pending);
                continue;
            }
            let joins = batch.first().is_none_or(|first| {
                first.measure.shape.is_some()
                    && first.measure.shape == pending.measure.shape
                    && apart.only(first.sender) == apart.only(pending.sender)
                    && shared.inline.fits(rows + pending.measure.rows)
            });
            if !joins {
                instance::run_batch(session.as_mut(), shared, std::mem::take(&mut batch));
                rows = 0;
            }
            rows += pending.measure.rows;
            batch.push(pending);
        }
        instance::run_batch(session.as_mut(), shared, batch);
    }
}

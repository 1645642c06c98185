//! One instance: a named thread that owns a session and runs the batches that it takes from the queue.
//!
//! Invariants: every request taken is answered once, also where the run fails or panics; where a batch fails, its requests
//! are run one by one, so that only the culprit gets the error; a run is stopped when the last of its requests has left;
//! the session is dropped by its own thread.

use super::batch::{self, Extent};
use super::inline::Inline;
use super::offenders::{Fared, Offenders, Sender, WINDOW, culprits};
use super::plan::{Joining, Plan};
use super::pressure::Memory;
use super::queue::{Pending, Queue};
use super::steady::Steady;
use super::watch::{Slot, Watch};
use super::{Answered, BatchError};
use crate::runtime::{Input, Interrupt, RuntimeError, Session};
use crate::telemetry::stats::ModelStats;
use crate::telemetry::trace;
use crate::tensor::Value;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What all instances of a model share.
pub(super) struct Shared {
    pub(super) model: String,
    pub(super) queue: Queue,
    pub(super) plan: Plan,
    pub(super) stats: Arc<ModelStats>,
    pub(super) watch: Watch,
    pub(super) inline: Inline,
    pub(super) memory: Arc<Memory>,
    pub(super) offenders: Arc<Offenders>,
}

/// The thread's work: runs until the queue is closed and empty, or until another instance has taken its place.
pub(super) fn work(mut session: Box<dyn Session>, shared: &Shared, slot: &Arc<Slot>) {
    // Only a fault of ours outside a run ends the thread this way; its requests are told when it drops them.
    let _counted = shared.stats.panic_guard();
    let mut steady = shared.plan.steps.as_ref().map(Steady::new);
    while !slot.is_replaced() {
        let Some((requests, fill)) = shared.queue.take(steady.as_mut()) else { return };
        answer_batch(session.as_mut(), shared, Some(slot), requests, fill);
    }
}

/// Runs requests that the policy put together, and answers each; the runs are too short to be stopped.
pub(super) fn run_batch(session: &mut dyn Session, shared: &Shared, requests: Vec<Pending>) {
    answer_batch(session, shared, None, requests, 0);
}

/// Runs them with `fill` rows at least, where that can be, and tells how the device's memory sufficed. `slot` is the instance's
/// own.
fn answer_batch(
    session: &mut dyn Session,
    shared: &Shared,
    slot: Option<&Arc<Slot>>,
    mut requests: Vec<Pending>,
    fill: usize,
) -> Fit {
    let started = Instant::now();
    let mut is_spoiled = false;
    if requests.len() > 1 {
        match run_together(session, shared, slot, &requests, started, fill) {
            Together::Answers(shares, inference) => {
                for (request, outputs) in requests.into_iter().zip(shares) {
                    answer(request, started, inference, Ok(outputs));
                }
                return Fit::Whole;
            }
            Together::Stopped => {
                for request in requests {
                    answer(request, started, started.elapsed(), Err(BatchError::TimedOut));
                }
                return Fit::Whole;
            }
            Together::TooLarge => {
                let rows = requests.iter().map(|request| request.measure.rows).sum::<usize>();
                let rest = requests.split_off(requests.len() / 2);
                let halves = [requests, rest].map(|half| answer_batch(session, shared, slot, half, 0));
                return halved(shared, rows, halves);
            }
            // One by one: only the culprit gets the error.
            Together::Spoiled => is_spoiled = true,
            Together::Failed => {}
        }
    }
    let (mut fit, mut fared) = (Fit::Whole, Vec::new());
    // All of them are run, whatever comes of the first.
    for request in requests {
        let sender = request.sender;
        let (own, how) = run_alone(session, shared, slot, request, fill);
        fit = fit.and(own);
        if is_spoiled {
            fared.push((sender, how));
        }
    }
    blame(shared, &culprits(&fared));
    fit
}

/// Counts who spoiled a run of others; who does so again and again shares none with them for a while.
fn blame(shared: &Shared, culprits: &[Sender]) {
    let now = Instant::now();
    for sender in culprits {
        if !shared.offenders.offended(*sender, now) {
            continue;
        }
        shared.stats.record_set_apart();
        if let Some(left_out) = shared.offenders.line(now) {
            tracing::warn!(
                model = shared.model,
                %sender,
                left_out,
                "{sender} sends inputs again and again that spoil runs of others; for {} s its requests share runs with its own alone",
                WINDOW.as_secs(),
            );
        }
    }
}

/// How a device's memory sufficed for what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Whole,
    /// In parts, each of which fitted.
    Halved,
    /// Something in it does not fit at all.
    Never,
}

impl Fit {
    fn and(self, other: Fit) -> Fit {
        match (self, other) {
            (Fit::Never, _) | (_, Fit::Never) => Fit::Never,
            (Fit::Halved, _) | (_, Fit::Halved) => Fit::Halved,
            (Fit::Whole, Fit::Whole) => Fit::Whole,
        }
    }
}

/// Of so many rows that did not fit. The size that does is remembered, where it was the size.
fn halved(shared: &Shared, rows: usize, halves: [Fit; 2]) -> Fit {
    let [one, other] = halves;
    let fit = one.and(other);
    if fit == Fit::Whole && shared.memory.fits(rows / 2) {
        tracing::warn!(
            model = shared.model,
            rows,
            max_rows = shared.memory.max_rows(),
            "the device has no memory for a run of so many rows; runs are kept smaller from now on"
        );
    }
    if fit == Fit::Whole { Fit::Halved } else { fit }
}

enum Together {
    /// Each request's outputs, and how long the run took.
    Answers(Vec<Vec<Value>>, Duration),
    /// All requests have left.
    Stopped,
    /// The device has no memory for all of them at once.
    TooLarge,
    /// The graph refused what one of them brought.
    Spoiled,
    Failed,
}

fn run_together(
    session: &mut dyn Session,
    shared: &Shared,
    slot: Option<&Arc<Slot>>,
    requests: &[Pending],
    started: Instant,
    fill: usize,
) -> Together {
    let extents: Vec<Extent> = requests.iter().map(extent).collect();
    let parts: Vec<(&[Input], Extent)> =
        requests.iter().map(|request| request.inputs.as_slice()).zip(extents.iter().copied()).collect();
    let Some(inputs) = batch::stack(&parts, &shared.plan, fill) else { return Together::Failed };
    let mut wanted: Vec<usize> = requests.iter().flat_map(|request| request.outputs.iter().copied()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let stacked = Instant::now();
    let outcome = run(session, slot, shared, &inputs, &wanted, requests);
    let ran = Instant::now();
    let outputs = match outcome {
        Ok(outputs) => outputs,
        Err(BatchError::TimedOut) => return Together::Stopped,
        Err(BatchError::Runtime(RuntimeError::OutOfMemory(_))) => return Together::TooLarge,
        Err(error) => {
            tracing::debug!(model = shared.model, requests = requests.len(), %error, "a batch failed; its requests run alone");
            if !matches!(error, BatchError::Runtime(RuntimeError::Run(_))) {
                return Together::Failed;
            }
            shared.stats.record_spoiled();
            return Together::Spoiled;
        }
    };
    // The copies are not needed while the outputs are cut.
    drop(inputs);
    let outputs: Vec<(usize, Value)> = wanted.into_iter().zip(outputs).collect();
    let Some(mut shares) = batch::split(&outputs, &extents, &shared.plan, fill) else {
        stop_joining(shared);
        return Together::Failed;
    };
    for (share, request) in shares.iter_mut().zip(requests) {
        if request.outputs.len() != outputs.len() || !request.outputs.iter().is_sorted() {
            *share = chosen(share, &outputs, &request.outputs);
        }
    }
    let rows = extents.iter().map(|extent| extent.rows).sum();
    let spans = requests.iter().map(|request| request.span.as_ref());
    trace::batch(&shared.model, rows, spans, started.into_std(), ran.into_std());
    shared.stats.record_batch(rows, stacked - started, ran - stacked, ran.elapsed());
    Together::Answers(shares, ran - stacked)
}

fn stop_joining(shared: &Shared) {
    if shared.queue.stop_joining() {
        tracing::warn!(
            model = shared.model,
            "the outputs of a batch do not have its number of rows; from now on each request is a run of its own"
        );
    }
}

/// The outputs that one request asked for, in its order.
fn chosen(share: &[Value], outputs: &[(usize, Value)], wanted: &[usize]) -> Vec<Value> {
    wanted
        .iter()
        .filter_map(|wanted| outputs.iter().position(|(index, _)| index == wanted))
        .filter_map(|place| share.get(place).cloned())
        .collect()
}

/// Answers one request by a run of its own; gives how the device's memory sufficed, and how the request fared.
fn run_alone(
    session: &mut dyn Session,
    shared: &Shared,
    slot: Option<&Arc<Slot>>,
    request: Pending,
    fill: usize,
) -> (Fit, Fared) {
    // It may have left, or its time may have passed, while its mates ran.
    let started = Instant::now();
    if request.is_abandoned() || request.deadline <= started {
        answer(request, started, Duration::ZERO, Err(BatchError::Expired));
        return (Fit::Whole, Fared::Unknown);
    }
    let extent = extent(&request);
    if fill > extent.rows && !shared.queue.has_stopped_joining() {
        match run_filled(session, shared, slot, &request, fill) {
            Ok((outputs, inference)) => {
                answer(request, started, inference, Ok(outputs));
                return (Fit::Whole, Fared::Well);
            }
            Err(BatchError::TimedOut) => {
                answer(request, started, started.elapsed(), Err(BatchError::TimedOut));
                return (Fit::Whole, Fared::Unknown);
            }
            // As it is, it may fit, or gets an error of its own.
            Err(_) => {}
        }
    }
    // A graph of fixed size is filled up for one request as well.
    let stacked = match (shared.plan.joining, &request.measure.shape) {
        (Joining::Fixed(rows), Some(_)) if rows != extent.rows => {
            batch::stack(&[(&request.inputs, extent)], &shared.plan, 0)
        }
        _ => None,
    };
    let inputs = stacked.as_deref().unwrap_or(&request.inputs);
    let ready = Instant::now();
    let (outcome, fit) = run_in_parts(session, slot, shared, inputs, extent.rows, &request);
    let inference = ready.elapsed();
    let outcome = outcome.map(|outputs| match stacked {
        Some(_) => own_rows(outputs, &request.outputs, extent, &shared.plan),
        None => outputs,
    });
    if outcome.is_ok() {
        shared.stats.record_batch(request.measure.rows, ready - started, inference, ready.elapsed() - inference);
        if slot.is_some() {
            shared.inline.ran(&request.measure, inference);
        }
    }
    drop(stacked);
    let how = fared(&outcome);
    answer(request, started, inference, outcome);
    (fit, how)
}

fn fared(outcome: &Result<Vec<Value>, BatchError>) -> Fared {
    match outcome {
        Ok(_) => Fared::Well,
        Err(BatchError::Runtime(RuntimeError::Run(_))) => Fared::Badly,
        Err(_) => Fared::Unknown,
    }
}

/// Runs one request filled up to `fill` rows; gives its own rows and how long the run took.
fn run_filled(
    session: &mut dyn Session,
    shared: &Shared,
    slot: Option<&Arc<Slot>>,
    request: &Pending,
    fill: usize,
) -> Result<(Vec<Value>, Duration), BatchError> {
    let (begun, extent) = (Instant::now(), extent(request));
    let inputs = batch::stack(&[(&request.inputs, extent)], &shared.plan, fill).ok_or(BatchError::NotJoinable)?;
    let stacked = Instant::now();
    let outputs = run(session, slot, shared, &inputs, &request.outputs, std::slice::from_ref(request))?;
    let ran = Instant::now();
    let named: Vec<(usize, Value)> = request.outputs.iter().copied().zip(outputs).collect();
    let share = batch::split(&named, &[extent], &shared.plan, fill).and_then(|mut shares| shares.pop());
    let Some(share) = share else {
        stop_joining(shared);
        return Err(BatchError::NotJoinable);
    };
    shared.stats.record_batch(extent.rows, stacked - begun, ran - stacked, ran.elapsed());
    Ok((share, ran - stacked))
}

/// Runs one request, of which `inputs` are `rows` rows: as a whole, else in halves where the device has no memory for it, else on
/// the reserve.
fn run_in_parts(
    session: &mut dyn Session,
    slot: Option<&Arc<Slot>>,
    shared: &Shared,
    inputs: &[Input],
    rows: usize,
    request: &Pending,
) -> (Result<Vec<Value>, BatchError>, Fit) {
    let error = match run(session, slot, shared, inputs, &request.outputs, std::slice::from_ref(request)) {
        Err(BatchError::Runtime(error @ (RuntimeError::OutOfMemory(_) | RuntimeError::Device(_)))) => error,
        outcome => return (outcome, Fit::Whole),
    };
    let is_divisible = rows > 1
        && shared.plan.joining == Joining::Rows
        && request.measure.shape.is_some()
        && !shared.queue.has_stopped_joining();
    if matches!(error, RuntimeError::OutOfMemory(_))
        && is_divisible
        && let Some(halves) = batch::chunks(inputs, rows, rows.div_ceil(2))
    {
        let (mut outputs, mut fits) = (Vec::with_capacity(2), [Fit::Whole; 2]);
        for (half, fit) in halves.iter().zip(&mut fits) {
            let own = if outputs.is_empty() { rows.div_ceil(2) } else { rows / 2 };
            let outcome = run_in_parts(session, slot, shared, half, own, request);
            *fit = outcome.1;
            match outcome.0 {
                Ok(values) => outputs.push(values),
                Err(error) => return (Err(error), *fit),
            }
        }
        return (batch::unite(outputs).ok_or(BatchError::NotJoinable), halved(shared, rows, fits));
    }
    let outcome = match shared.memory.run_on_reserve(&shared.model, inputs, &request.outputs, &request.interrupt, error)
    {
        Err(RuntimeError::Interrupted) => Err(BatchError::TimedOut),
        outcome => outcome.map_err(BatchError::Runtime),
    };
    (outcome, Fit::Never)
}

/// The rows that were asked for, where the graph took more.
fn own_rows(outputs: Vec<Value>, wanted: &[usize], extent: Extent, plan: &Plan) -> Vec<Value> {
    let named: Vec<(usize, Value)> = wanted.iter().copied().zip(outputs).collect();
    match batch::split(&named, &[extent], plan, 0) {
        Some(mut shares) if shares.len() == 1 => shares.remove(0),
        // Outputs that do not follow the rows are the whole answer.
        _ => named.into_iter().map(|(_, value)| value).collect(),
    }
}

fn extent(request: &Pending) -> Extent {
    Extent { rows: request.measure.rows, length: request.measure.length }
}

/// Runs the graph; stops it when the last of `requests` has left.
fn run(
    session: &mut dyn Session,
    slot: Option<&Arc<Slot>>,
    shared: &Shared,
    inputs: &[Input],
    outputs: &[usize],
    requests: &[Pending],
) -> Result<Vec<Value>, BatchError> {
    let stop = Interrupt::new();
    // A panic in the run is the fault of its requests alone; the thread goes on.
    let mut caught = || {
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            let _counted = shared.stats.panic_guard();
            session.run(inputs, outputs, &stop)
        }))
    };
    let outcome = match slot {
        None => caught(),
        Some(slot) => {
            let run = slot.begin();
            let left = Arc::new(AtomicUsize::new(requests.len()));
            let hooks: Vec<_> = requests
                .iter()
                .map(|request| {
                    let (left, stop, watch, slot) = (left.clone(), stop.clone(), shared.watch.clone(), slot.clone());
                    request.interrupt.on_fire(move || {
                        if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                            stop.fire();
                            watch.stopped(slot, run);
                        }
                    })
                })
                .collect();
            let outcome = caught();
            drop(hooks);
            slot.end();
            outcome
        }
    };
    match outcome {
        Ok(Ok(outputs)) => {
            shared.memory.device_ran();
            Ok(outputs)
        }
        Ok(Err(error @ (RuntimeError::OutOfMemory(_) | RuntimeError::Device(_)))) => {
            shared.stats.record_device_failure();
            Err(BatchError::Runtime(error))
        }
        Ok(Err(RuntimeError::Interrupted)) => Err(BatchError::TimedOut),
        Ok(Err(error)) => Err(BatchError::Runtime(error)),
        Err(_) => Err(BatchError::Panicked),
    }
}

fn answer(request: Pending, started: Instant, inference: Duration, outcome: Result<Vec<Value>, BatchError>) {
    if let Some(progress) = &request.progress {
        progress.add_done(request.measure.rows as u64);
    }
    let queue = started.saturating_duration_since(request.queued_at);
    // Nobody may be waiting any more.
    let _ = request.reply.send(outcome.map(|outputs| Answered { outputs, queue, inference }));
}

//! The caller's side: hands a request to the instances and waits for its answer. Starts the instances and replaces those
//! that hang.

use super::inline::Inline;
use super::instance::{self, Shared};
use super::offenders::{Offenders, Sender};
use super::plan::{Joining, Measure, Plan};
use super::policy::Limits;
use super::pressure::{Memory, Pressure};
use super::queue::{Pending, Queue, WaitLimit};
use super::watch::{GIVEN_UP_MAX, HUNG_AFTER, Slot, Stopped, Watch};
use super::{BatchError, BatchSettings, OnTimeout, PartError, batch};
use crate::runtime::{Input, Interrupt, RuntimeError, Session};
use crate::tasks::{Progress, Tasks};
use crate::telemetry::stats::ModelStats;
use crate::telemetry::trace;
use crate::tensor::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bytes of inputs that are copied into one run. Larger requests run alone, uncopied.
const JOINED_BYTES_MAX: usize = 256 << 20;

/// Makes another session of the same graph, for an instance that takes the place of one that hangs. Blocks.
pub type Spare = Arc<dyn Fn() -> Result<Box<dyn Session>, RuntimeError> + Send + Sync>;

/// The entrance to the instances of one loaded model. When the last clone is dropped, what was accepted is finished and
/// the threads end.
#[derive(Clone)]
pub struct Handle(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    instances: Arc<Instances>,
    in_flight: AtomicUsize,
    max_rows: Option<usize>,
    count: usize,
}

/// The threads of one model.
struct Instances {
    tasks: Tasks,
    running: AtomicUsize,
    started: AtomicUsize,
    /// Replaced, and not yet returned from their last run.
    given_up: AtomicUsize,
    /// Cancelled when the last thread has dropped its session.
    ended: CancellationToken,
}

/// What one call asks of the instances.
#[derive(Debug)]
pub struct Request {
    /// Inputs that belong together, checked by the caller; each part is answered by itself and may run with any other.
    pub parts: Vec<Vec<Input>>,
    /// Outputs wanted, by index, in this order.
    pub outputs: Vec<usize>,
    pub deadline: Instant,
    /// 1 (first) to the model's last level; 0 is the model's default.
    pub priority: u8,
    /// How long it wants to wait for an instance at most, where the model's policy asks.
    pub queue_timeout: Option<Duration>,
    /// Counts the rows that are answered.
    pub progress: Option<Progress>,
    /// `None`: nobody from outside.
    pub sender: Option<Sender>,
}

/// What the runs gave and how long their stages took.
#[derive(Debug)]
pub struct Completed {
    /// For each part, the outputs asked for, in that order.
    pub parts: Vec<Vec<Value>>,
    /// The longest that a part waited for an instance.
    pub queue: Duration,
    /// From there to the end of the last run.
    pub inference: Duration,
}

/// One piece's answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) outputs: Vec<Value>,
    pub(super) queue: Duration,
    pub(super) inference: Duration,
}

/// What a model's instances are started with.
pub struct Start {
    /// Names the threads.
    pub model: String,
    /// One for each instance.
    pub sessions: Vec<Box<dyn Session>>,
    pub settings: BatchSettings,
    pub plan: Plan,
    pub stats: Arc<ModelStats>,
    pub spare: Spare,
    /// Makes a session on the CPU for what the device cannot run; `None` where that is not wanted, or it is the device.
    pub reserve: Option<Spare>,
    pub inline: Inline,
}

impl Handle {
    /// Starts one thread for each session.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub fn start(start: Start, tasks: &Tasks) -> std::io::Result<Handle> {
        let Start { model, sessions, settings, plan, stats, spare, reserve, inline } = start;
        let max_rows = plan.max_rows(settings.max_batch_size);
        let limits = Limits {
            max_rows: if settings.dynamic_batching { max_rows.unwrap_or(1) } else { 1 },
            preferred_rows: settings.batch_size.or(max_rows).unwrap_or(1),
            max_tokens: settings.max_batch_tokens,
            max_bytes: JOINED_BYTES_MAX,
            max_row_bytes: plan.max_row_bytes.unwrap_or(usize::MAX),
            timeout: if settings.dynamic_batching { settings.timeout } else { Duration::ZERO },
        };
        let inline = inline.bounded(limits.max_rows);
        let memory = Arc::new(Memory::new(reserve));
        let offenders = Arc::new(Offenders::default());
        let known = (memory.clone(), offenders.clone());
        let queue = Queue::new(settings.max_queue, limits, settings.waiting, known, stats.clone());
        let (watch, stopped) = Watch::new();
        let count = sessions.len();
        let instances = Arc::new(Instances {
            tasks: tasks.clone(),
            running: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            ended: CancellationToken::new(),
        });
        let shared = Arc::new(Shared { model, queue, plan, stats, watch, inline, memory, offenders });
        // Made first, so that an error below closes the queue and ends the threads already started.
        let owner = Owner {
            shared: shared.clone(),
            instances: instances.clone(),
            in_flight: AtomicUsize::new(0),
            max_rows,
            count,
        };
        for session in sessions {
            instances.start(session, &shared)?;
        }
        if count > 0 {
            tasks.spawn("watch the instances", async move { instances.watch(stopped, &shared, &spare).await });
        }
        Ok(Handle(Arc::new(owner)))
    }

    /// Runs the graph on every part, joined with other requests as the model's plan allows; parts of more rows than one
    /// run takes are split and their outputs put together again, in order.
    ///
    /// # Errors
    /// See [`BatchError`]: the first part that failed. A full queue is refused at once.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request: what waits is skipped and a run that nobody else waits for is stopped.
    pub async fn run(&self, request: Request) -> Result<Completed, PartError> {
        self.run_by(request, Queue::push).await
    }

    /// The same for a request that goes on with what earlier runs gave: a full queue does not refuse it. The caller has no
    /// other run in the queue.
    ///
    /// # Errors
    /// As [`Handle::run`].
    ///
    /// # Cancel safety
    /// As [`Handle::run`].
    pub async fn run_next(&self, request: Request) -> Result<Completed, PartError> {
        self.run_by(request, Queue::push_next).await
    }

    async fn run_by(
        &self,
        request: Request,
        push: fn(&Queue, Vec<Pending>) -> Result<(), BatchError>,
    ) -> Result<Completed, PartError> {
        let _in_flight = InFlight::new(&self.0.in_flight);
        let short = self.short_run(&request);
        if let Some(measure) = &short
            && !(self.0.shared.inline.gathers(measure) && self.0.shared.inline.expects_company())
            && let Some(answered) = self.run_here(&request, measure)
        {
            return answered;
        }
        let shared = &*self.0.shared;
        let Request { parts, outputs, deadline, priority, queue_timeout, progress, sender } = request;
        let outputs: Arc<[usize]> = outputs.into();
        let queued_at = Instant::now();
        let level = shared.queue.waiting().level(priority);
        let wait_limit = shared.queue.waiting().policy(level).and_then(|policy| {
            let at = queued_at.checked_add(policy.limit(queue_timeout)?)?;
            Some(WaitLimit { at, on_timeout: policy.on_timeout })
        });
        // Answered when the wait is over, and not only when an instance next looks.
        let mut rejected_at = wait_limit
            .filter(|limit| limit.on_timeout == OnTimeout::Reject && limit.at < deadline)
            .map(|limit| limit.at);
        let mut answers = Vec::with_capacity(parts.len());
        // Fires on any exit: after an answer it stops nothing, after a drop or a timeout it stops the run.
        let mut stop_on_drop = FireOnDrop(Vec::with_capacity(parts.len()));
        let mut pending = |part: usize, inputs: Vec<Input>, measure: Measure| {
            if let Some(progress) = &progress {
                progress.add_total(measure.rows as u64);
            }
            let (reply, answer) = oneshot::channel();
            let interrupt = Interrupt::new();
            stop_on_drop.0.push(interrupt.clone());
            answers.push((part, answer));
            Pending {
                inputs,
                outputs: outputs.clone(),
                measure,
                priority: level,
                sender,
                queued_at,
                deadline,
                wait_limit,
                is_delayed: false,
                interrupt,
                progress: progress.clone(),
                span: trace::link(),
                reply,
            }
        };
        // One that does not gather and found every session for runs in place taken goes to the queue.
        if let Some(measure) = short.filter(|measure| shared.inline.gathers(measure)) {
            let gathering =
                parts.into_iter().next().and_then(|inputs| Inline::join(shared, pending(0, inputs, measure)));
            if let Some(gathering) = gathering {
                // Requests that are ready on this thread come now.
                tokio::task::yield_now().await;
                drop(gathering);
            }
        } else {
            let mut pieces = Vec::with_capacity(parts.len());
            for (part, inputs) in parts.into_iter().enumerate() {
                for (inputs, measure) in self.pieces(inputs) {
                    pieces.push(pending(part, inputs, measure));
                }
            }
            // Neighbours in the queue share a run, padded to the longest; answers keep the order of the parts.
            pieces.sort_by_key(|pending| pending.measure.length);
            push(&shared.queue, pieces).map_err(|error| PartError { part: 0, error })?;
        }
        let mut completed = Completed { parts: Vec::new(), queue: Duration::ZERO, inference: Duration::ZERO };
        let mut part_of = Vec::with_capacity(answers.len());
        for (part, mut answer) in answers {
            let failed = |error| PartError { part, error };
            let mut early = None;
            if let Some(at) = rejected_at {
                early = tokio::time::timeout_at(at, &mut answer).await.ok();
                if early.is_none() {
                    // Those that are with an instance by now are not touched.
                    shared.queue.reject_overdue();
                    rejected_at = None;
                }
            }
            let answer = async {
                match early {
                    Some(early) => early,
                    None => answer.await,
                }
            };
            let answered = match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(result)) => result.map_err(failed)?,
                // The thread dropped the request without an answer: only a bug or an aborted thread can do that.
                Ok(Err(_)) => return Err(failed(BatchError::Panicked)),
                Err(_) => return Err(failed(BatchError::TimedOut)),
            };
            completed.queue = completed.queue.max(answered.queue);
            completed.inference = completed.inference.max(answered.queue + answered.inference);
            part_of.push(part);
            completed.parts.push(answered.outputs);
        }
        completed.inference = completed.inference.saturating_sub(completed.queue);
        completed.parts = united(completed.parts, &part_of)?;
        Ok(completed)
    }

    /// The measure of a request of a tiny model, which runs on this thread where nobody waits for an instance.
    fn short_run(&self, request: &Request) -> Option<Measure> {
        let shared = &self.0.shared;
        let [inputs] = request.parts.as_slice() else { return None };
        if shared.inline.is_empty() || !shared.queue.is_idle() || request.deadline <= Instant::now() {
            return None;
        }
        let measure = shared.plan.measure(inputs);
        (measure.rows <= self.0.max_rows.unwrap_or(1) && shared.inline.takes(&measure)).then_some(measure)
    }

    /// Runs a request right here; `None` where every session for that is taken.
    fn run_here(&self, request: &Request, measure: &Measure) -> Option<Result<Completed, PartError>> {
        let shared = &self.0.shared;
        let [inputs] = request.parts.as_slice() else { return None };
        let (outcome, inference) = shared.inline.run(inputs, &request.outputs)?;
        if let Some(progress) = &request.progress {
            progress.add_total(measure.rows as u64);
            progress.add_done(measure.rows as u64);
        }
        Some(match outcome {
            Ok(outputs) => {
                shared.stats.record_batch(measure.rows, Duration::ZERO, inference, Duration::ZERO);
                Ok(Completed { parts: vec![outputs], queue: Duration::ZERO, inference })
            }
            Err(error) => Err(PartError { part: 0, error }),
        })
    }

    /// A part as pieces that each fit into one run.
    fn pieces(&self, inputs: Vec<Input>) -> Vec<(Vec<Input>, Measure)> {
        let plan = &self.0.shared.plan;
        let measure = plan.measure(&inputs);
        let most = self.0.shared.memory.max_rows();
        let pieces = match self.0.max_rows.map(|max_rows| max_rows.min(most)) {
            Some(max_rows) if measure.shape.is_some() && measure.rows > max_rows => {
                batch::chunks(&inputs, measure.rows, max_rows)
            }
            _ => None,
        };
        let measured = |inputs: Vec<Input>| {
            let measure = plan.measure(&inputs);
            (inputs, measure)
        };
        match pieces {
            Some(pieces) => pieces.into_iter().map(measured).collect(),
            None => vec![(inputs, measure)],
        }
    }

    /// The level that a request of this priority has.
    pub fn level(&self, priority: u8) -> u8 {
        self.0.shared.queue.waiting().level(priority)
    }

    /// Pieces that wait for an instance.
    pub fn queue_depth(&self) -> usize {
        self.0.shared.queue.len()
    }

    /// Requests accepted and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    pub fn instances(&self) -> usize {
        self.0.count
    }

    /// How requests share runs, as it was found at load.
    pub fn plan(&self) -> &Plan {
        &self.0.shared.plan
    }

    /// How requests share runs at this moment, and what that was told from.
    pub fn joining(&self) -> (Joining, &str) {
        if self.0.shared.queue.has_stopped_joining() {
            return (Joining::Alone, "the outputs of a batch did not have its number of rows");
        }
        (self.plan().joining, &self.plan().evidence)
    }

    /// What the model does with less of since its device had no memory for a run, or failed; `None` where all is well.
    pub fn pressure(&self) -> Option<Pressure> {
        self.0.shared.memory.pressure()
    }

    /// Refuses new requests; those accepted are finished.
    pub fn close(&self) {
        self.0.shared.queue.close();
    }

    /// Fires when all instances have ended and given their memory back.
    pub fn ended(&self) -> CancellationToken {
        self.0.instances.ended.clone()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

/// The pieces' outputs as one for each part; pieces of a part stand together.
fn united(pieces: Vec<Vec<Value>>, part_of: &[usize]) -> Result<Vec<Vec<Value>>, PartError> {
    if part_of.windows(2).all(|pair| pair.first() != pair.last()) {
        return Ok(pieces);
    }
    let mut groups: Vec<(usize, Vec<Vec<Value>>)> = Vec::new();
    for (piece, &part) in pieces.into_iter().zip(part_of) {
        match groups.last_mut() {
            Some((last, group)) if *last == part => group.push(piece),
            _ => groups.push((part, vec![piece])),
        }
    }
    groups
        .into_iter()
        .map(|(part, mut group)| match group.len() {
            1 => Ok(group.remove(0)),
            _ => batch::unite(group).ok_or(PartError { part, error: BatchError::NotJoinable }),
        })
        .collect()
}

impl Instances {
    fn start(self: &Arc<Instances>, session: Box<dyn Session>, shared: &Arc<Shared>) -> std::io::Result<()> {
        let slot = Arc::new(Slot::default());
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::AcqRel);
        let (this, work_of) = (self.clone(), shared.clone());
        let thread = self.tasks.thread(&format!("{number}:{}", shared.model), move || {
            instance::work(session, &work_of, &slot);
            if slot.is_replaced() {
                this.given_up.fetch_sub(1, Ordering::AcqRel);
            }
            // The session is gone by now: it was moved into the work.
            this.one_ended();
        });
        if thread.is_err() {
            self.one_ended();
        }
        thread
    }

    fn one_ended(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ended.cancel();
        }
    }

    /// Replaces instances that do not stop, until all have ended.
    async fn watch(
        self: Arc<Instances>,
        mut stopped: mpsc::UnboundedReceiver<Stopped>,
        shared: &Arc<Shared>,
        spare: &Spare,
    ) {
        loop {
            let report = tokio::select! {
                () = self.ended.cancelled() => return,
                () = self.tasks.stopping().cancelled() => return,
                report = stopped.recv() => report,
            };
            let Some(report) = report else { return };
            // Reports come in the order of their runs, and each wait is the same: one after another is soon enough.
            let ended = async {
                while report.slot.still_runs(report.run) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            if tokio::time::timeout(HUNG_AFTER, ended).await.is_ok() {
                continue;
            }
            self.replace(report, shared, spare).await;
        }
    }

    async fn replace(self: &Arc<Instances>, report: Stopped, shared: &Arc<Shared>, spare: &Spare) {
        let instances = self.running.load(Ordering::Acquire) - self.given_up.load(Ordering::Acquire);
        if self.given_up.load(Ordering::Acquire) >= GIVEN_UP_MAX * instances.max(1) {
            tracing::error!(model = shared.model, "an instance hangs and is not replaced: too many hang already");
            return;
        }
        let make = spare.clone();
        let session = match self.tasks.spawn_blocking(move || make()).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                tracing::error!(model = shared.model, %error, "an instance hangs and could not be replaced");
                return;
            }
            Err(_) => return,
        };
        // It may have come back while the session was made.
        if !report.slot.still_runs(report.run) {
            return;
        }
        self.given_up.fetch_add(1, Ordering::AcqRel);
        if !report.slot.replace() {
            self.given_up.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        match self.start(session, shared) {
            Ok(()) => tracing::warn!(
                model = shared.model,
                "an instance hangs in one long operation; another has taken its place, and it ends when the operation does"
            ),
            Err(error) => {
                tracing::error!(model = shared.model, %error, "no thread for the instance that replaces a hung one")
            }
        }
    }
}

struct FireOnDrop(Vec<Interrupt>);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(Interrupt::fire);
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicUsize) -> InFlight<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

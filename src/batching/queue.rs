//! A bounded queue between async callers and instance threads, which take batches from it as `policy` decides.
//!
//! Invariants: never longer than its bound, but that the pieces of one request enter together or not at all, and that a
//! request whose first run was let in has the others let in; ordered by priority, then by arrival, those of a priority that
//! have waited too long last; closed once and for ever; what was queued before closing is still handed out; abandoned and
//! expired requests are never handed out.

use super::offenders::{Offenders, Sender};
use super::plan::Measure;
use super::policy::{self, Candidate, Decision, Limits};
use super::pressure::Memory;
use super::steady::Steady;
use super::{Answered, BatchError, OnTimeout, WaitingSettings};
use crate::runtime::{Input, Interrupt};
use crate::tasks::Progress;
use crate::telemetry::stats::ModelStats;
use crate::telemetry::trace::SpanLink;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Requests that the policy looks at: those behind wait for the next look.
const LOOK_AT: usize = 1024;

/// A request, or a piece of one, on its way to an instance.
pub(super) struct Pending {
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Arc<[usize]>,
    pub(super) measure: Measure,
    pub(super) priority: u8,
    pub(super) sender: Option<Sender>,
    pub(super) queued_at: Instant,
    pub(super) deadline: Instant,
    pub(super) wait_limit: Option<WaitLimit>,
    /// Waited longer than it may, and stands behind the others of its priority.
    pub(super) is_delayed: bool,
    pub(super) interrupt: Interrupt,
    pub(super) progress: Option<Progress>,
    /// Of the request, where spans are made of it.
    pub(super) span: Option<SpanLink>,
    pub(super) reply: oneshot::Sender<Result<Answered, BatchError>>,
}

/// When a request has waited as long as it may, and what becomes of it then.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitLimit {
    pub(super) at: Instant,
    pub(super) on_timeout: OnTimeout,
}

impl Pending {
    /// What it is ordered by.
    fn place(&self) -> (u8, bool) {
        (self.priority, self.is_delayed)
    }

    fn has_waited_too_long(&self, now: Instant, then: OnTimeout) -> bool {
        self.wait_limit.is_some_and(|limit| limit.on_timeout == then && limit.at <= now)
    }

    /// Whether it is answered without a run.
    fn is_expired(&self, now: Instant) -> bool {
        self.deadline <= now || self.has_waited_too_long(now, OnTimeout::Reject)
    }

    /// Whether nobody waits for it any more: its interrupt fired when the waiting future was dropped.
    pub(super) fn is_abandoned(&self) -> bool {
        self.interrupt.is_fired() || self.reply.is_closed()
    }
}

pub(super) struct Queue {
    /// A std mutex: held for a push or a look, never across a run or an await.
    state: Mutex<State>,
    filled: Condvar,
    bound: usize,
    limits: Limits,
    waiting: WaitingSettings,
    /// Set once where the graph's outputs turned out not to follow the rows.
    alone: AtomicBool,
    /// What the device has memory for.
    memory: Arc<Memory>,
    offenders: Arc<Offenders>,
    stats: Arc<ModelStats>,
}

struct State {
    waiting: VecDeque<Pending>,
    closed: bool,
}

impl Queue {
    pub(super) fn new(
        bound: usize,
        limits: Limits,
        waiting: WaitingSettings,
        (memory, offenders): (Arc<Memory>, Arc<Offenders>),
        stats: Arc<ModelStats>,
    ) -> Queue {
        let state = Mutex::new(State { waiting: VecDeque::new(), closed: false });
        let alone = AtomicBool::new(false);
        Queue { state, filled: Condvar::new(), bound, limits, waiting, alone, memory, offenders, stats }
    }

    /// How requests wait here.
    pub(super) fn waiting(&self) -> &WaitingSettings {
        &self.waiting
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses at once where the queue is full or closed.
    pub(super) fn push(&self, pieces: Vec<Pending>) -> Result<(), BatchError> {
        let mut state = self.lock();
        if state.closed {
            return Err(BatchError::Closed);
        }
        if state.waiting.len() >= self.bound {
            // Places of those who left are free.
            self.remove(&mut state, Pending::is_abandoned);
            if state.waiting.len() >= self.bound {
                return Err(BatchError::QueueFull { waiting: state.waiting.len() });
            }
        }
        let level = pieces.first().map_or(0, |first| first.priority);
        if let Some(most) = self.waiting.policy(level).and_then(|policy| policy.max_waiting) {
            let of_level = |state: &State| state.waiting.iter().filter(|other| other.priority == level).count();
            if of_level(&state) >= most {
                self.remove(&mut state, Pending::is_abandoned);
                let waiting = of_level(&state);
                if waiting >= most {
                    return Err(BatchError::QueueFull { waiting });
                }
            }
        }
        self.put(state, pieces);
        Ok(())
    }

    /// For the next run of a request whose earlier ones were made: a full queue does not refuse it, or all of its work would
    /// be lost. Such a request has one run in the queue and entered by [`Queue::push`], which bounds their number.
    pub(super) fn push_next(&self, pieces: Vec<Pending>) -> Result<(), BatchError> {
        let state = self.lock();
        if state.closed {
            return Err(BatchError::Closed);
        }
        self.put(state, pieces);
        Ok(())
    }

    fn put(&self, mut state: MutexGuard<'_, State>, pieces: Vec<Pending>) {
        let count = pieces.len();
        pieces.into_iter().for_each(|piece| insert(&mut state, piece));
        drop(state);
        self.stats.queue_changed(isize::try_from(count).unwrap_or(isize::MAX));
        for _ in 0..count {
            self.filled.notify_one();
        }
    }

    /// Waits for the next batch, and says how many rows its run is to have where `steady` keeps them to some (else 0); `None`
    /// once the queue is closed and empty.
    pub(super) fn take(&self, mut steady: Option<&mut Steady<'_>>) -> Option<(Vec<Pending>, usize)> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            self.drop_dead(&mut state, now);
            delay(&mut state, now);
            let alone = self.has_stopped_joining();
            let apart = self.offenders.apart(now);
            let candidates = || {
                state.waiting.iter().take(LOOK_AT).map(|pending| Candidate {
                    shape: pending.measure.shape.as_deref().filter(|_| !alone),
                    rows: pending.measure.rows,
                    length: pending.measure.length,
                    bytes: pending.measure.bytes,
                    apart: apart.only(pending.sender),
                })
            };
            let waited = state.waiting.front().map(|first| now - first.queued_at).unwrap_or_default();
            let limits = self.limits.within(self.memory.max_rows());
            match policy::decide(candidates(), &limits, waited) {
                Decision::Take(mut places) => {
                    let first = candidates().next().filter(|first| first.shape.is_some());
                    let rows: usize =
                        places.iter().filter_map(|&place| state.waiting.get(place)).map(|it| it.measure.rows).sum();
                    let fill = steady
                        .as_mut()
                        .zip(first)
                        .and_then(|(steady, first)| steady.rows(rows, first.rows, self.memory.max_rows()));
                    if let Some(fill) = fill.filter(|fill| *fill < rows) {
                        places = match policy::decide(candidates(), &limits.within(fill), waited) {
                            Decision::Take(fewer) => fewer,
                            Decision::Nothing | Decision::Wait(_) => vec![0],
                        };
                    }
                    return Some((self.take_places(&mut state, &places), fill.unwrap_or(0)));
                }
                // A queue that is closed gets no more mates.
                Decision::Wait(_) if state.closed => {
                    let pending = state.waiting.pop_front();
                    self.stats.queue_changed(-1);
                    return Some((pending.into_iter().collect(), 0));
                }
                Decision::Wait(time) => {
                    state = self.filled.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
                }
                Decision::Nothing if state.closed => return None,
                Decision::Nothing => state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn take_places(&self, state: &mut State, places: &[usize]) -> Vec<Pending> {
        let mut batch: Vec<Pending> = if places.last() == Some(&(places.len() - 1)) {
            state.waiting.drain(..places.len()).collect()
        } else {
            // From the back, so that the places in front keep their meaning.
            let mut batch: Vec<Pending> =
                places.iter().rev().filter_map(|&place| state.waiting.remove(place)).collect();
            batch.reverse();
            batch
        };
        batch.shrink_to_fit();
        self.stats.queue_changed(-isize::try_from(batch.len()).unwrap_or(isize::MAX));
        batch
    }

    /// Takes out those whom nobody waits for, and answers those whose deadline has passed.
    fn drop_dead(&self, state: &mut State, now: Instant) {
        let is_dead = |pending: &Pending| pending.is_abandoned() || pending.is_expired(now);
        if state.waiting.len() <= LOOK_AT {
            if state.waiting.iter().any(is_dead) {
                self.remove(state, is_dead);
            }
            return;
        }
        while state.waiting.front().is_some_and(is_dead) {
            let dead = state.waiting.pop_front();
            self.stats.queue_changed(-1);
            dead.into_iter().for_each(expire);
        }
    }

    fn remove(&self, state: &mut State, is_dead: impl Fn(&Pending) -> bool) {
        let before = state.waiting.len();
        let (dead, alive): (VecDeque<Pending>, VecDeque<Pending>) =
            std::mem::take(&mut state.waiting).into_iter().partition(is_dead);
        state.waiting = alive;
        let gone = before - state.waiting.len();
        self.stats.queue_changed(-isize::try_from(gone).unwrap_or(isize::MAX));
        dead.into_iter().for_each(expire);
    }

    /// Answers those that have waited too long, for a caller who sees that its own time to wait is over.
    pub(super) fn reject_overdue(&self) {
        let now = Instant::now();
        self.remove(&mut self.lock(), |pending| pending.is_expired(now));
    }

    /// From now on every request is a run of its own.
    pub(super) fn stop_joining(&self) -> bool {
        !self.alone.swap(true, Ordering::Relaxed)
    }

    /// Whether every request is a run of its own, whatever the plan says.
    pub(super) fn has_stopped_joining(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// Whether requests are taken and none waits.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && !state.closed
    }

    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}

/// Behind all that are served before it.
fn insert(state: &mut State, piece: Pending) {
    // From the back: nearly always the last place.
    let behind = state.waiting.iter().rev().take_while(|other| other.place() > piece.place()).count();
    let place = state.waiting.len() - behind;
    state.waiting.insert(place, piece);
}

/// Puts those that have waited too long, and are not rejected for it, behind the others of their priority.
fn delay(state: &mut State, now: Instant) {
    let is_overdue = |pending: &Pending| !pending.is_delayed && pending.has_waited_too_long(now, OnTimeout::Delay);
    if !state.waiting.iter().take(LOOK_AT).any(is_overdue) {
        return;
    }
    let (overdue, waiting): (VecDeque<Pending>, VecDeque<Pending>) =
        std::mem::take(&mut state.waiting).into_iter().partition(is_overdue);
    state.waiting = waiting;
    for piece in overdue {
        insert(state, Pending { is_delayed: true, ..piece });
    }
}

/// Answers a request whose time has passed.
pub(super) fn expire(pending: Pending) {
    // The receiver may be gone; then nobody waits for the answer.
    let _ = pending.reply.send(Err(BatchError::Expired));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::WaitingPolicy;
    use crate::telemetry::stats::Stats;
    use std::time::Duration;

    const LIMITS: Limits = Limits {
        max_rows: 4,
        preferred_rows: 4,
        max_tokens: 100,
        max_bytes: 1000,
        max_row_bytes: usize::MAX,
        timeout: Duration::ZERO,
    };

    type Answer = oneshot::Receiver<Result<Answered, BatchError>>;

    fn queue(bound: usize, limits: Limits) -> Queue {
        queue_with(bound, limits, WaitingSettings::default())
    }

    fn queue_with(bound: usize, limits: Limits, waiting: WaitingSettings) -> Queue {
        let known = (Arc::new(Memory::new(None)), Arc::default());
        Queue::new(bound, limits, waiting, known, Stats::new(Duration::from_secs(60)).model("m", 1))
    }

    /// A request known by its number of bytes.
    fn pending(id: usize, priority: u8) -> (Pending, Answer) {
        let (reply, answer) = oneshot::channel();
        let now = Instant::now();
        let pending = Pending {
            inputs: vec![],
            outputs: [].into(),
            measure: Measure { shape: Some([1].into()), rows: 1, length: 0, bytes: id },
            priority,
            sender: None,
            queued_at: now,
            deadline: now + Duration::from_secs(60),
            wait_limit: None,
            is_delayed: false,
            interrupt: Interrupt::new(),
            progress: None,
            span: None,
            reply,
        };
        (pending, answer)
    }

    fn ids(batch: Option<(Vec<Pending>, usize)>) -> Vec<usize> {
        batch.unwrap_or_default().0.iter().map(|pending| pending.measure.bytes).collect()
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_frees_the_places_of_those_who_left() {
        let queue = queue(2, LIMITS);
        let (a, _a) = pending(1, 5);
        let (b, left) = pending(2, 5);
        queue.push(vec![a, b]).unwrap();
        let (c, _c) = pending(3, 5);
        assert!(matches!(queue.push(vec![c]), Err(BatchError::QueueFull { waiting: 2 })));
        drop(left);
        let (c, _c) = pending(3, 5);
        queue.push(vec![c]).unwrap();
        assert_eq!(ids(queue.take(None)), [1, 3]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_urgent_come_first_and_equals_in_their_order() {
        let queue = queue(9, Limits { max_rows: 1, preferred_rows: 1, ..LIMITS });
        let mut answers = vec![];
        for (id, priority) in [(1, 5), (2, 5), (3, 1), (4, 9), (5, 1)] {
            let (pending, answer) = pending(id, priority);
            answers.push(answer);
            queue.push(vec![pending]).unwrap();
        }
        let order: Vec<usize> = (0..5).flat_map(|_| ids(queue.take(None))).collect();
        assert_eq!(order, [3, 5, 1, 2, 4]);
    }

    #[test]
    fn expired_requests_are_answered_and_not_handed_out() {
        let queue = queue(9, LIMITS);
        let (mut old, mut answer) = pending(1, 5);
        old.deadline = Instant::now();
        let (young, _young) = pending(2, 5);
        queue.push(vec![old, young]).unwrap();
        assert_eq!(ids(queue.take(None)), [2]);
        assert!(matches!(answer.try_recv(), Ok(Err(BatchError::Expired))));
    }

    #[test]
    fn a_full_queue_lets_in_the_next_run_of_a_request_that_has_begun() {
        let queue = queue(1, LIMITS);
        let (a, _a) = pending(1, 5);
        let (b, _b) = pending(2, 5);
        let (c, _c) = pending(3, 5);
        queue.push(vec![a]).unwrap();
        queue.push_next(vec![b]).unwrap();
        assert!(matches!(queue.push(vec![c]), Err(BatchError::QueueFull { waiting: 2 })));
        assert_eq!(ids(queue.take(None)), [1, 2]);
        queue.close();
        let (d, _d) = pending(4, 5);
        assert!(matches!(queue.push_next(vec![d]), Err(BatchError::Closed)));
    }

    #[test]
    fn those_that_waited_too_long_go_behind_their_level_or_are_rejected() {
        let queue = queue(9, Limits { max_rows: 1, preferred_rows: 1, ..LIMITS });
        let late = |on_timeout| Some(WaitLimit { at: Instant::now(), on_timeout });
        let mut answers = vec![];
        for (id, priority, wait_limit) in [
            (1, 5, late(OnTimeout::Delay)),
            (2, 5, late(OnTimeout::Reject)),
            (3, 5, None),
            (4, 6, None),
            (5, 1, late(OnTimeout::Delay)),
        ] {
            let (request, answer) = pending(id, priority);
            answers.push(answer);
            queue.push(vec![Pending { wait_limit, ..request }]).unwrap();
        }
        assert_eq!(ids(queue.take(None)), [5], "more urgent than all, however late");
        let (newer, _newer) = pending(6, 5);
        queue.push(vec![newer]).unwrap();
        let order: Vec<usize> = (0..4).flat_map(|_| ids(queue.take(None))).collect();
        assert_eq!(order, [3, 6, 1, 4]);
        assert!(matches!(answers[1].try_recv(), Ok(Err(BatchError::Expired))));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_wait_that_is_over_is_answered_while_no_instance_looks() {
        let queue = queue(9, LIMITS);
        let (request, mut answer) = pending(1, 5);
        let wait_limit = Some(WaitLimit { at: Instant::now(), on_timeout: OnTimeout::Reject });
        queue.push(vec![Pending { wait_limit, ..request }]).unwrap();
        queue.reject_overdue();
        assert!(matches!(answer.try_recv(), Ok(Err(BatchError::Expired))));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_level_has_a_bound_of_its_own() {
        let policy = WaitingPolicy { max_waiting: Some(1), ..WaitingPolicy::default() };
        let waiting = WaitingSettings { of_level: [(2, policy)].into(), ..WaitingSettings::default() };
        let queue = queue_with(9, LIMITS, waiting);
        let mut answers = vec![];
        let mut push = |id, priority| {
            let (request, answer) = pending(id, priority);
            answers.push(answer);
            queue.push(vec![request])
        };
        push(1, 2).unwrap();
        assert!(matches!(push(2, 2), Err(BatchError::QueueFull { waiting: 1 })));
        push(3, 1).unwrap();
        push(4, 1).unwrap();
    }

    #[test]
    fn a_closed_queue_still_gives_what_was_accepted() {
        let queue = queue(9, Limits { timeout: Duration::from_secs(60), ..LIMITS });
        let (a, _a) = pending(1, 5);
        queue.push(vec![a]).unwrap();
        queue.close();
        let (b, _b) = pending(2, 5);
        assert!(matches!(queue.push(vec![b]), Err(BatchError::Closed)));
        assert_eq!(ids(queue.take(None)), [1], "without waiting for mates");
        assert!(queue.take(None).is_none());
    }
}

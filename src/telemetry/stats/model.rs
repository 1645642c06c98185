//! What is counted of one version of a model (`ModelStats`).

use super::registry::Shared;
use super::window::{Part, Ring, StageSummary, Times, summarize};
use super::{CacheKind, CancelReason, PanicGuard, Protocol, RequestGuard, Stage};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bounds of the buckets of times since the start: 100 µs to 60 s.
pub(super) static STAGE_BOUNDS_NS: [u64; 18] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];
/// Bounds of the buckets of batch sizes since the start, in rows.
pub(super) static BATCH_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Statuses that are counted apart. All others, which no route gives, are counted as the last.
const STATUSES: [u16; 18] =
    [200, ACCEPTED, 400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 499, 503, 504, 507];
const OTHER_STATUS: u16 = 500;
/// Taken, to be answered later: a job.
const ACCEPTED: u16 = 202;
/// The client closed the connection before the answer.
const CLIENT_CLOSED: u16 = 499;
/// Codes that are counted apart; the set is closed and smaller.
const MAX_CODES: usize = 64;
/// Batch sizes up to this are counted apart, larger ones by the next power of two.
const EXACT_BATCH: usize = 128;

/// The counts of one version of a model. Cheap to record to from any thread.
#[derive(Debug)]
pub struct ModelStats {
    name: String,
    version: u64,
    shared: Arc<Shared>,
    requests: [[AtomicU64; STATUSES.len() + 1]; Protocol::ALL.len()],
    answered: AtomicTime,
    refused: AtomicTime,
    queue: AtomicTime,
    /// Misses and hits of the response cache.
    cache: [AtomicU64; 2],
    /// Milliseconds since the Unix epoch; 0 = never.
    last_request_ms: AtomicU64,
    // Std mutexes: held for a few instructions, never across an await.
    /// By size.
    batches: Mutex<BTreeMap<u64, BatchTotals>>,
    stages: [Mutex<Ring<Times>>; Stage::ALL.len()],
    counts: Mutex<Ring<Counts>>,
}

#[derive(Debug, Default)]
struct AtomicTime {
    count: AtomicU64,
    ns: AtomicU64,
}

/// How often something took place, and how long all of it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeTotal {
    pub count: u64,
    pub ns: u64,
}

/// The runs of one batch size since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchTotals {
    /// Runs.
    pub count: u64,
    /// Rows of all runs.
    pub rows: u64,
    pub input_ns: u64,
    pub infer_ns: u64,
    pub output_ns: u64,
}

/// The counts of a version since the start.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionTotals {
    /// Protocol, HTTP status, requests; those that were counted. 499 = the client went away.
    pub requests: Vec<(Protocol, u16, u64)>,
    /// From arrival to the encoded answer.
    pub answered: TimeTotal,
    /// From arrival to the refusal.
    pub refused: TimeTotal,
    pub queue: TimeTotal,
    pub cache_misses: u64,
    pub cache_hits: u64,
    /// By the rows of a run; above 128 by the next power of two.
    pub batches: BTreeMap<u64, BatchTotals>,
    /// When the last request ended.
    pub last_request: Option<SystemTime>,
}

/// The counts of a slice of time, besides times.
#[derive(Debug, Default)]
struct Counts {
    batches: BTreeMap<u64, BatchTotals>,
    errors: BTreeMap<Cow<'static, str>, u64>,
    cancelled: [u64; CancelReason::ALL.len()],
    /// Misses, hits.
    cache: [[u64; 2]; CacheKind::ALL.len()],
}

impl Part for Counts {
    fn clear(&mut self) {
        *self = Counts::default();
    }
}

/// What took place within the window.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowSummary {
    /// Since when all is counted: the beginning of the window, the last reset, or the first load.
    pub since: SystemTime,
    /// In the order of [`Stage::ALL`].
    pub stages: [StageSummary; Stage::ALL.len()],
    /// By the rows of a run; above 128 by the next power of two.
    pub batches: BTreeMap<u64, BatchTotals>,
    /// Requests refused, by code.
    pub errors: BTreeMap<Cow<'static, str>, u64>,
    /// In the order of [`CancelReason::ALL`].
    pub cancelled: [u64; CancelReason::ALL.len()],
    /// Misses and hits, in the order of [`CacheKind::ALL`].
    pub cache: [[u64; 2]; CacheKind::ALL.len()],
}

/// Takes a request out of those in flight when dropped.
struct Left<'a>(&'a ModelStats);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.left();
    }
}

impl ModelStats {
    pub(super) fn new(name: &str, version: u64, shared: Arc<Shared>, window: Duration) -> ModelStats {
        let now = Instant::now();
        ModelStats {
            name: name.to_owned(),
            version,
            shared,
            requests: Default::default(),
            answered: AtomicTime::default(),
            refused: AtomicTime::default(),
            queue: AtomicTime::default(),
            cache: Default::default(),
            last_request_ms: AtomicU64::new(0),
            batches: Mutex::default(),
            stages: std::array::from_fn(|_| Mutex::new(Ring::new(window, now))),
            counts: Mutex::new(Ring::new(window, now)),
        }
    }

    /// The model's name in the store; empty for requests that reached none.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// One request spent `time` in `stage`. [`Stage::Total`] is recorded by the request's guard.
    pub fn record_stage(&self, stage: Stage, time: Duration) {
        self.record_stage_at(stage, time, Instant::now());
    }

    fn record_stage_at(&self, stage: Stage, time: Duration, now: Instant) {
        if let Some(total) = self.shared.stages.get(stage as usize) {
            total.record(nanos(time));
        }
        if stage == Stage::Queue {
            self.queue.add(time);
        }
        if let Some(ring) = self.stages.get(stage as usize)
            && let Some(slice) = lock(ring).current(now)
        {
            slice.record(time);
        }
    }

    /// One run of an instance: its rows, and how long building the batch, running it and splitting it took.
    pub fn record_batch(&self, rows: usize, input: Duration, infer: Duration, output: Duration) {
        self.shared.batches.record(rows as u64);
        let class = if rows <= EXACT_BATCH { rows } else { rows.checked_next_power_of_two().unwrap_or(usize::MAX) };
        let run = BatchTotals {
            count: 1,
            rows: rows as u64,
            input_ns: nanos(input),
            infer_ns: nanos(infer),
            output_ns: nanos(output),
        };
        lock(&self.batches).entry(class as u64).or_default().add(&run);
        self.count(|counts| counts.batches.entry(class as u64).or_default().add(&run));
    }

    /// A request that has no guard was cancelled. Requests with one are counted by it.
    pub fn record_cancelled(&self, reason: CancelReason) {
        if let Some(total) = self.shared.cancelled.get(reason as usize) {
            total.fetch_add(1, Ordering::Relaxed);
        }
        self.count(|counts| counts.cancelled.get_mut(reason as usize).into_iter().for_each(|count| *count += 1));
    }

    /// Cancelled requests of all versions since the start.
    pub(super) fn cancelled_totals(&self) -> [u64; CancelReason::ALL.len()] {
        self.shared.cancelled.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// A cache was asked.
    pub fn record_cache(&self, cache: CacheKind, hit: bool) {
        let (kind, index) = (cache as usize, usize::from(hit));
        if let Some(total) = self.shared.cache.get(kind).and_then(|counts| counts.get(index)) {
            total.fetch_add(1, Ordering::Relaxed);
        }
        if cache == CacheKind::Response
            && let Some(total) = self.cache.get(index)
        {
            total.fetch_add(1, Ordering::Relaxed);
        }
        self.count(|counts| {
            let count = counts.cache.get_mut(kind).and_then(|counts| counts.get_mut(index));
            count.into_iter().for_each(|count| *count += 1);
        });
    }

    /// A load of this version ended.
    pub fn record_load(&self, ok: bool) {
        if let Some(total) = self.shared.loads.get(usize::from(ok)) {
            total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A device had no memory for a run, or failed on it.
    pub fn record_device_failure(&self) {
        self.shared.device_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// A run that several requests shared failed on the input of one, and was made again one by one.
    pub fn record_spoiled(&self) {
        self.shared.spoiled.fetch_add(1, Ordering::Relaxed);
    }

    /// A sender was set apart, since its inputs spoiled runs of others again and again.
    pub fn record_set_apart(&self) {
        self.shared.set_apart.fetch_add(1, Ordering::Relaxed);
    }

    /// So many requests more, or fewer, wait for an instance.
    pub fn queue_changed(&self, by: isize) {
        self.shared.queued.fetch_add(by as i64, Ordering::Relaxed);
    }

    /// Counts a panic that passes through where the guard lives, among those of all models.
    pub fn panic_guard(&self) -> PanicGuard {
        PanicGuard(self.shared.panics.clone())
    }

    /// A request for this model came in now.
    pub fn begin(self: &Arc<Self>, protocol: Protocol) -> RequestGuard {
        RequestGuard::new(self.clone(), protocol, Instant::now())
    }

    /// Empties the window; what is counted since the start stays.
    pub fn reset(&self) {
        let now = Instant::now();
        self.stages.iter().for_each(|ring| lock(ring).reset(now));
        lock(&self.counts).reset(now);
    }

    /// What took place within the window.
    pub fn window(&self) -> WindowSummary {
        self.window_at(Instant::now())
    }

    fn window_at(&self, now: Instant) -> WindowSummary {
        let stages = self.stages.each_ref().map(|ring| summarize(lock(ring).recent(now)));
        let ring = lock(&self.counts);
        let mut summary = WindowSummary {
            since: SystemTime::now().checked_sub(now.saturating_duration_since(ring.since(now))).unwrap_or(UNIX_EPOCH),
            stages,
            batches: BTreeMap::new(),
            errors: BTreeMap::new(),
            cancelled: Default::default(),
            cache: Default::default(),
        };
        for slice in ring.recent(now) {
            for (size, runs) in &slice.batches {
                summary.batches.entry(*size).or_default().add(runs);
            }
            for (code, count) in &slice.errors {
                *summary.errors.entry(code.clone()).or_default() += count;
            }
            summary.cancelled.iter_mut().zip(slice.cancelled).for_each(|(sum, count)| *sum += count);
            let sums = summary.cache.iter_mut().flatten();
            sums.zip(slice.cache.iter().flatten()).for_each(|(sum, count)| *sum += count);
        }
        summary
    }

    /// The counts since the start.
    pub fn totals(&self) -> VersionTotals {
        let mut requests = Vec::new();
        for (protocol, counts) in Protocol::ALL.into_iter().zip(&self.requests) {
            for (status, count) in STATUSES.into_iter().chain([OTHER_STATUS]).zip(counts) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    requests.push((protocol, status, count));
                }
            }
        }
        let [misses, hits] = &self.cache;
        VersionTotals {
            requests,
            answered: self.answered.read(),
            refused: self.refused.read(),
            queue: self.queue.read(),
            cache_misses: misses.load(Ordering::Relaxed),
            cache_hits: hits.load(Ordering::Relaxed),
            batches: lock(&self.batches).clone(),
            last_request: self.last_request(),
        }
    }

    pub(super) fn last_request(&self) -> Option<SystemTime> {
        let last_ms = self.last_request_ms.load(Ordering::Relaxed);
        (last_ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(last_ms))
    }

    pub(super) fn entered(&self) {
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn left(&self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn finished(
        &self,
        protocol: Protocol,
        status: u16,
        error_code: Option<Cow<'static, str>>,
        time: Duration,
    ) {
        // Not in flight any more once it is counted, so that who waits for that finds it.
        let _left = Left(self);
        self.ended(protocol, status);
        if status == ACCEPTED {
            return;
        }
        if (200..300).contains(&status) {
            self.answered.add(time);
            self.record_stage(Stage::Total, time);
            return;
        }
        self.refused.add(time);
        if status == 504 {
            self.record_cancelled(CancelReason::Expired);
        }
        let code = error_code.unwrap_or(Cow::Borrowed("unknown"));
        self.count(|counts| {
            let is_full = counts.errors.len() >= MAX_CODES && !counts.errors.contains_key(&code);
            let code = if is_full { Cow::Borrowed("other") } else { code };
            *counts.errors.entry(code).or_default() += 1;
        });
    }

    pub(super) fn disconnected(&self, protocol: Protocol) {
        let _left = Left(self);
        self.ended(protocol, CLIENT_CLOSED);
        self.record_cancelled(CancelReason::Disconnected);
    }

    fn ended(&self, protocol: Protocol, status: u16) {
        // Every other success is the same to who counts.
        let status = if (200..300).contains(&status) && status != ACCEPTED { 200 } else { status };
        let index = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len());
        if let Some(count) = self.requests.get(protocol as usize).and_then(|counts| counts.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_request_ms.fetch_max(u64::try_from(now.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        if let Some(counts) = lock(&self.counts).current(Instant::now()) {
            change(counts);
        }
    }
}

impl AtomicTime {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(nanos(time), Ordering::Relaxed);
    }

    fn read(&self) -> TimeTotal {
        TimeTotal { count: self.count.load(Ordering::Relaxed), ns: self.ns.load(Ordering::Relaxed) }
    }
}

impl WindowSummary {
    pub fn stage(&self, stage: Stage) -> StageSummary {
        self.stages.get(stage as usize).copied().unwrap_or_default()
    }

    pub fn cancelled(&self, reason: CancelReason) -> u64 {
        self.cancelled.get(reason as usize).copied().unwrap_or_default()
    }

    /// Misses and hits.
    pub fn cache(&self, cache: CacheKind) -> (u64, u64) {
        self.cache.get(cache as usize).map_or((0, 0), |[misses, hits]| (*misses, *hits))
    }
}

impl BatchTotals {
    /// Adds the runs of `other`.
    pub fn add(&mut self, other: &BatchTotals) {
        self.count += other.count;
        self.rows = self.rows.saturating_add(other.rows);
        self.input_ns = self.input_ns.saturating_add(other.input_ns);
        self.infer_ns = self.infer_ns.saturating_add(other.infer_ns);
        self.output_ns = self.output_ns.saturating_add(other.output_ns);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

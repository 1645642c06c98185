//! All models that are counted (`Stats`), and what is counted of none of them.

use super::histogram::Cumulative;
use super::model::{BATCH_BOUNDS, STAGE_BOUNDS_NS};
use super::{
    CacheKind, CancelReason, HistogramSnapshot, ModelStats, PanicGuard, Protocol, RequestGuard, Stage, StatsSettings,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The counts of all models. Clones are the same registry.
#[derive(Debug, Clone)]
pub struct Stats(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    window: Duration,
    /// A std mutex: held for look-ups, never while something is recorded.
    models: Mutex<BTreeMap<String, Entry>>,
    /// Requests that reached no model. Its name is empty.
    nowhere: Arc<ModelStats>,
    panics: Arc<AtomicU64>,
    rejected: [AtomicU64; Rejected::ALL.len()],
}

#[derive(Debug)]
struct Entry {
    shared: Arc<Shared>,
    versions: BTreeMap<u64, Arc<ModelStats>>,
}

/// Why a request was turned away for a reason that is not its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    QueueFull,
    /// The bodies of all requests in flight hold as many bytes as they may.
    Overloaded,
    NotReady,
    Stopping,
    TooLarge,
    TooSlow,
    Host,
    Origin,
    /// None, a wrong one, or one of a role that is too low.
    Key,
    RateLimited,
    /// What came on a connection is no HTTP, or says in two ways where it ends; there was no request yet.
    Malformed,
}

impl Rejected {
    pub const ALL: [Rejected; 11] = [
        Rejected::QueueFull,
        Rejected::Overloaded,
        Rejected::NotReady,
        Rejected::Stopping,
        Rejected::TooLarge,
        Rejected::TooSlow,
        Rejected::Host,
        Rejected::Origin,
        Rejected::Key,
        Rejected::RateLimited,
        Rejected::Malformed,
    ];

    /// The value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Rejected::QueueFull => "queue_full",
            Rejected::Overloaded => "overloaded",
            Rejected::NotReady => "not_ready",
            Rejected::Stopping => "stopping",
            Rejected::TooLarge => "too_large",
            Rejected::TooSlow => "too_slow",
            Rejected::Host => "host",
            Rejected::Origin => "origin",
            Rejected::Key => "key",
            Rejected::RateLimited => "rate_limited",
            Rejected::Malformed => "malformed",
        }
    }
}

/// What the versions of a model count together, since the start: the series that have no label `version`.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stages: [Cumulative<{ STAGE_BOUNDS_NS.len() }>; Stage::ALL.len()],
    pub(super) batches: Cumulative<{ BATCH_BOUNDS.len() }>,
    pub(super) queued: AtomicI64,
    pub(super) in_flight: AtomicI64,
    pub(super) cancelled: [AtomicU64; CancelReason::ALL.len()],
    /// Misses, hits.
    pub(super) cache: [[AtomicU64; 2]; CacheKind::ALL.len()],
    /// Failed, done.
    pub(super) loads: [AtomicU64; 2],
    pub(super) evictions: AtomicU64,
    pub(super) device_failures: AtomicU64,
    pub(super) spoiled: AtomicU64,
    pub(super) set_apart: AtomicU64,
    /// Those of all models.
    pub(super) panics: Arc<AtomicU64>,
}

impl Shared {
    fn new(panics: Arc<AtomicU64>) -> Shared {
        Shared {
            stages: std::array::from_fn(|_| Cumulative::new(&STAGE_BOUNDS_NS)),
            batches: Cumulative::new(&BATCH_BOUNDS),
            queued: AtomicI64::new(0),
            in_flight: AtomicI64::new(0),
            cancelled: Default::default(),
            cache: Default::default(),
            loads: Default::default(),
            evictions: AtomicU64::new(0),
            device_failures: AtomicU64::new(0),
            spoiled: AtomicU64::new(0),
            set_apart: AtomicU64::new(0),
            panics,
        }
    }
}

/// What the versions of a model have to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    pub in_flight: u64,
    /// When the last request ended.
    pub last_request: Option<SystemTime>,
}

/// The counts of a model since the start, all its versions together.
#[derive(Debug, Clone)]
pub struct ModelTotals {
    pub name: String,
    /// In nanoseconds; in the order of [`Stage::ALL`].
    pub stages: [HistogramSnapshot; Stage::ALL.len()],
    /// In rows.
    pub batches: HistogramSnapshot,
    /// Waiting for an instance.
    pub queued: u64,
    pub in_flight: u64,
    /// In the order of [`CancelReason::ALL`].
    pub cancelled: [u64; CancelReason::ALL.len()],
    /// Misses and hits, in the order of [`CacheKind::ALL`].
    pub cache: [[u64; 2]; CacheKind::ALL.len()],
    pub loads_failed: u64,
    pub loads_done: u64,
    /// How often it made room for others.
    pub evictions: u64,
    /// Runs that a device had no memory for, or failed on.
    pub device_failures: u64,
    /// Shared runs that failed on the input of one request.
    pub spoiled: u64,
    /// How often a sender was set apart for that.
    pub set_apart: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats::new(StatsSettings::default().window)
    }
}

impl Stats {
    /// A registry whose window is `window` long, at least 6 ms.
    pub fn new(window: Duration) -> Stats {
        let panics = Arc::new(AtomicU64::new(0));
        Stats(Arc::new(Registry {
            window,
            models: Mutex::default(),
            nowhere: Arc::new(ModelStats::new("", 0, Arc::new(Shared::new(panics.clone())), window)),
            panics,
            rejected: Default::default(),
        }))
    }

    /// The counts of a version of a model of the store; made where they are not there.
    pub fn model(&self, name: &str, version: u64) -> Arc<ModelStats> {
        let mut models = self.lock();
        let entry = match models.get_mut(name) {
            Some(entry) => entry,
            None => models.entry(name.to_owned()).or_insert_with(|| Entry {
                shared: Arc::new(Shared::new(self.0.panics.clone())),
                versions: BTreeMap::new(),
            }),
        };
        let (shared, window) = (&entry.shared, self.0.window);
        let make = || Arc::new(ModelStats::new(name, version, shared.clone(), window));
        entry.versions.entry(version).or_insert_with(make).clone()
    }

    /// The counts of a version, where there are any.
    pub fn find(&self, name: &str, version: u64) -> Option<Arc<ModelStats>> {
        self.lock().get(name)?.versions.get(&version).cloned()
    }

    /// All models and versions, by name, then version.
    pub fn all(&self) -> Vec<Arc<ModelStats>> {
        self.lock().values().flat_map(|entry| entry.versions.values().cloned()).collect()
    }

    /// Requests that reached no model; name empty, version 0.
    pub fn nowhere(&self) -> Arc<ModelStats> {
        self.0.nowhere.clone()
    }

    /// Cancelled requests that reached no model, since the start, in the order of [`super::CancelReason::ALL`].
    pub fn cancelled_nowhere(&self) -> [u64; CancelReason::ALL.len()] {
        self.0.nowhere.cancelled_totals()
    }

    /// What each model counted since the start, by name.
    pub fn totals(&self) -> Vec<ModelTotals> {
        let shared: Vec<(String, Arc<Shared>)> =
            self.lock().iter().map(|(name, entry)| (name.clone(), entry.shared.clone())).collect();
        shared.into_iter().map(|(name, shared)| totals(name, &shared)).collect()
    }

    /// What a model has to do at this moment.
    pub fn activity(&self, name: &str) -> Activity {
        let models = self.lock();
        let Some(entry) = models.get(name) else { return Activity::default() };
        Activity {
            in_flight: u64::try_from(entry.shared.in_flight.load(Ordering::Relaxed)).unwrap_or(0),
            last_request: entry.versions.values().filter_map(|stats| stats.last_request()).max(),
        }
    }

    /// A model left the store.
    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// The store knows only these versions of the model any more. What the others counted together with them stays.
    pub fn keep_versions(&self, name: &str, is_known: impl Fn(u64) -> bool) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.versions.retain(|version, _| is_known(*version));
        }
    }

    /// A request came in that is meant for a model; which, is not known yet. See [`RequestGuard::reach`].
    pub fn begin(&self, protocol: Protocol, arrival: Instant) -> RequestGuard {
        RequestGuard::new(self.nowhere(), protocol, arrival)
    }

    /// A request was turned away, whether or not it was meant for a model.
    pub fn record_rejected(&self, reason: Rejected) {
        if let Some(count) =
            Rejected::ALL.iter().position(|known| *known == reason).and_then(|at| self.0.rejected.get(at))
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Code of ours panicked and was caught.
    pub fn record_panic(&self) {
        self.0.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a panic that passes through where the guard lives.
    pub fn panic_guard(&self) -> PanicGuard {
        PanicGuard(self.0.panics.clone())
    }

    /// A model was unloaded to make room for another.
    pub fn record_eviction(&self, name: &str) {
        if let Some(entry) = self.lock().get(name) {
            entry.shared.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Panics since the start.
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    /// Requests turned away since the start, by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (Rejected, u64)> {
        Rejected::ALL.into_iter().zip(&self.0.rejected).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// How long the window is.
    pub fn window(&self) -> Duration {
        self.0.window
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn totals(name: String, shared: &Shared) -> ModelTotals {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let gauge = |value: &AtomicI64| u64::try_from(value.load(Ordering::Relaxed)).unwrap_or(0);
    let [failed, done] = &shared.loads;
    ModelTotals {
        name,
        stages: shared.stages.each_ref().map(Cumulative::snapshot),
        batches: shared.batches.snapshot(),
        queued: gauge(&shared.queued),
        in_flight: gauge(&shared.in_flight),
        cancelled: shared.cancelled.each_ref().map(read),
        cache: shared.cache.each_ref().map(|counts| counts.each_ref().map(read)),
        loads_failed: read(failed),
        loads_done: read(done),
        evictions: read(&shared.evictions),
        device_failures: read(&shared.device_failures),
        spoiled: read(&shared.spoiled),
        set_apart: read(&shared.set_apart),
    }
}

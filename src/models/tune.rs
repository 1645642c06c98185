//! Chooses by measurement at load what serves a model best: instances, threads of a run, batch size, graph level and memory.
//!
//! [`super::search`] says what is measured, [`super::measure`] does it; this holds the sessions in between. Invariants: no
//! more sessions are held at a time than there is room for; measuring ends soon after [`BUDGET`], and with loading the
//! candidates after [`ENDS`], and at once when the load is stopped; a candidate that fails is left out.

use super::Objective;
use super::layout::Setup;
use super::measure::Means;
use super::search::{self, BUDGET, Candidate, Gauge, Goal, Space};
use crate::runtime::Session;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant, SystemTime};

/// When no further candidate is measured, loading them counted: large models load for seconds.
const ENDS: Duration = Duration::from_secs(55);

/// One candidate as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub setup: Setup,
    /// Rows of each run; `None` where a run takes what one request brings.
    pub batch_size: Option<usize>,
    /// Of all instances together; runs, where rows are not counted.
    pub rows_per_second: f64,
    /// The median of a run while all instances run.
    pub run: Duration,
    /// What a request may take at full load: a run that it waits for, and then one of the slowest as its own.
    pub p99: Duration,
}

/// What was measured at a load, and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// In the order in which each was measured first; the medians, where it was measured more than once.
    pub measured: Vec<Measured>,
    pub chosen: Measured,
    pub objective: Objective,
    pub target_p99: Option<Duration>,
    /// `false`: nothing reached it, and the candidate with the least latency was taken.
    pub target_reached: bool,
    /// Tokens of each row that was measured, where rows are padded to one length.
    pub row_tokens: Option<usize>,
    /// The bounds of a batch that follow; `None`: as the settings have it.
    pub max_batch_size: Option<usize>,
    pub max_batch_tokens: Option<usize>,
    /// How long it all took.
    pub took: Duration,
    /// When it ended; not known of what an earlier version kept.
    #[serde(default)]
    pub at: Option<SystemTime>,
}

impl Tuned {
    /// What serves without tuning, the best of its batches where they are open, and what was chosen.
    pub fn gain(&self) -> Option<Gain> {
        let first = self.measured.first()?.setup;
        let alike = self.measured.iter().filter(|one| one.setup == first);
        let goal = Goal { objective: self.objective, target_p99: self.target_p99 };
        let before =
            alike.copied().reduce(|best, one| if goal.value(&one) > goal.value(&best) { one } else { best })?;
        let (before_p99, p99) = (before.p99.as_secs_f64(), self.chosen.p99.as_secs_f64());
        let times_as_good = match self.objective {
            Objective::Throughput => self.chosen.rows_per_second / before.rows_per_second.max(f64::MIN_POSITIVE),
            Objective::Latency => before_p99 / p99.max(f64::MIN_POSITIVE),
        };
        Some(Gain { before, times_as_good })
    }
}

/// How much better a choice is than what serves without it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    pub before: Measured,
    /// As the objective counts it; above 1 is better.
    pub times_as_good: f64,
}

/// What is to be found out.
pub(super) struct Question {
    pub(super) space: Space,
    pub(super) goal: Goal,
    /// Tokens of each row that is made up, where rows are padded to one length.
    pub(super) row_tokens: Option<usize>,
}

pub(super) type Sessions = Vec<Box<dyn Session>>;

/// Searches the space and gives the outcome, `None` where nothing could be measured, and the sessions of the setup that was
/// chosen where they are loaded still; else none. `sessions` are those of `setup`, given so as not to load them twice. Blocks.
pub(super) fn tune(
    question: &Question,
    means: &Means<'_>,
    setup: Setup,
    sessions: Sessions,
) -> (Option<Tuned>, Sessions) {
    let started = Instant::now();
    let first = Held { setup, sessions, ran: Vec::new() };
    let mut floor = Floor { means, held: vec![first], failed: Vec::new(), left: BUDGET, ends: started + ENDS };
    let outcome = search::search(&question.space, question.goal, &mut floor);
    let wanted = outcome.as_ref().map_or(setup, |outcome| outcome.chosen.setup);
    let held = floor.held.into_iter().find(|held| held.setup == wanted && held.is_whole());
    let tuned = outcome.map(|outcome| {
        let chosen = outcome.chosen;
        // A run's time follows its tokens, not its rows: short rows may be more at the same latency. A single batch was no
        // choice, and says nothing of others.
        let tokens = question.row_tokens.filter(|_| question.space.batches.len() > 1).zip(chosen.batch_size);
        Tuned {
            chosen,
            objective: question.goal.objective,
            target_p99: question.goal.target_p99,
            target_reached: outcome.target_reached,
            row_tokens: question.row_tokens,
            max_batch_size: chosen.batch_size.filter(|_| question.row_tokens.is_none()),
            max_batch_tokens: tokens.map(|(tokens, rows)| tokens.saturating_mul(rows)),
            measured: outcome.measured,
            took: started.elapsed(),
            at: Some(SystemTime::now()),
        }
    });
    (tuned, held.map(|held| held.sessions).unwrap_or_default())
}

/// The sessions of a setup.
struct Held {
    setup: Setup,
    sessions: Sessions,
    /// The batches that they have run.
    ran: Vec<Option<usize>>,
}

impl Held {
    fn is_whole(&self) -> bool {
        self.sessions.len() == self.setup.layout.instances
    }
}

/// Where candidates are measured.
struct Floor<'a> {
    means: &'a Means<'a>,
    /// The one used last at the end.
    held: Vec<Held>,
    failed: Vec<Candidate>,
    left: Duration,
    ends: Instant,
}

impl Gauge for Floor<'_> {
    fn measure(&mut self, candidate: Candidate, slice: Duration) -> Option<Measured> {
        if self.failed.contains(&candidate) || !(self.means.fits)(candidate.setup, candidate.batch_size) {
            return None;
        }
        let measured = self.held(candidate.setup).and_then(|held| self.runs(held, candidate, slice));
        if let Err(problem) = &measured {
            tracing::info!(?candidate, problem, "a candidate is left out");
            self.failed.push(candidate);
        }
        measured.ok()
    }

    fn left(&self) -> Duration {
        if self.means.is_stopped() || Instant::now() >= self.ends { Duration::ZERO } else { self.left }
    }
}

impl Floor<'_> {
    /// The sessions of a setup, loaded where they are not held.
    fn held(&mut self, setup: Setup) -> Result<Held, String> {
        if let Some(place) = self.held.iter().position(|held| held.setup == setup && held.is_whole()) {
            return Ok(self.held.remove(place));
        }
        self.held.retain(|held| held.setup != setup);
        // Before the next are loaded: there is no room for more at any time.
        let gone = self.held.len().saturating_sub((self.means.spare)(setup));
        self.held.drain(..gone);
        let sessions = (self.means.load)(setup).map_err(|error| error.to_string())?;
        Ok(Held { setup, sessions, ran: Vec::new() })
    }

    fn runs(&mut self, mut held: Held, candidate: Candidate, slice: Duration) -> Result<Measured, String> {
        let inputs = (self.means.make)(candidate.batch_size).ok_or("no inputs could be made up")?;
        let prepares = !held.ran.contains(&candidate.batch_size);
        let started = Instant::now();
        // A single run may take as long as the whole budget.
        let runs = self.means.measure(&mut held.sessions, inputs, prepares, slice, BUDGET);
        self.left = self.left.saturating_sub(started.elapsed());
        if prepares {
            held.ran.push(candidate.batch_size);
        }
        if held.is_whole() {
            self.held.push(held);
        }
        runs?.summary(candidate.setup, candidate.batch_size).ok_or_else(|| "no run ended in time".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::LoadError;
    use crate::models::layout::Layout;
    use crate::runtime::fake::FakeRuntime;
    use crate::runtime::{
        GraphSource, Interrupt, MemorySettings, OptimizationLevel, Runtime as _, RuntimeError, SessionSettings,
    };
    use crate::tasks::Tasks;
    use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    fn layout(instances: usize, intra_threads: usize) -> Layout {
        Layout { instances, intra_threads }
    }

    fn setup(layout: Layout) -> Setup {
        Setup { layout, optimization_level: OptimizationLevel::Aggressive, memory: MemorySettings::default() }
    }

    fn spec(name: &str) -> Spec {
        let shape = Some(vec![Dim::Dynamic(None)]);
        Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Uint8, shape }, optional: false }
    }

    type Time = dyn Fn(Setup, usize) -> Result<u64, RuntimeError> + Send + Sync;

    /// Sessions whose runs take so many milliseconds, and what was seen of them.
    struct House {
        tasks: Tasks,
        interrupt: Interrupt,
        time: Arc<Time>,
        loads: Mutex<Vec<Setup>>,
        alive: Arc<AtomicUsize>,
        /// Of how many setups sessions may be alive beside those that are loaded.
        spare: usize,
        /// What fits the memory.
        rows_max: usize,
    }

    /// Counts a session while it lives.
    struct Alive(Arc<AtomicUsize>);

    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl House {
        fn new(time: impl Fn(Setup, usize) -> Result<u64, RuntimeError> + Send + Sync + 'static) -> House {
            House {
                tasks: Tasks::new(),
                interrupt: Interrupt::new(),
                time: Arc::new(time),
                loads: Mutex::default(),
                alive: Arc::default(),
                spare: 0,
                rows_max: usize::MAX,
            }
        }

        /// Every setup of the tests with a spare one has one instance.
        fn load(&self, setup: Setup) -> Result<Sessions, LoadError> {
            assert!(self.alive.load(Ordering::SeqCst) <= self.spare, "too many setups at a time");
            self.loads.lock().unwrap().push(setup);
            let source = GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 };
            let settings = SessionSettings::default();
            let session = |_| {
                self.alive.fetch_add(1, Ordering::SeqCst);
                let (time, alive) = (self.time.clone(), Alive(self.alive.clone()));
                let fake = FakeRuntime::new(vec![spec("x")], vec![spec("y")], move |inputs, _, interrupt| {
                    let _alive = &alive;
                    let rows = inputs[0].1.as_tensor().unwrap().len();
                    let ends = Instant::now() + Duration::from_millis(time(setup, rows)?);
                    while Instant::now() < ends {
                        if interrupt.is_fired() {
                            return Err(RuntimeError::Interrupted);
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Ok(vec![inputs[0].1.clone()])
                });
                Ok(fake.load(&source, &settings)?)
            };
            (0..setup.layout.instances).map(session).collect()
        }

        fn tune(&self, layouts: &[Layout], batches: &[usize], target_ms: Option<u64>) -> (Option<Tuned>, usize) {
            self.tune_rows_of(None, layouts, batches, target_ms)
        }

        fn tune_rows_of(
            &self,
            row_tokens: Option<usize>,
            layouts: &[Layout],
            batches: &[usize],
            target_ms: Option<u64>,
        ) -> (Option<Tuned>, usize) {
            let base = setup(layouts[0]);
            let space = Space {
                layouts: layouts.to_vec(),
                batches: batches.iter().copied().map(Some).collect(),
                levels: vec![base.optimization_level],
                memories: vec![base.memory],
            };
            self.tune_space(space, row_tokens, target_ms)
        }

        fn tune_space(
            &self,
            space: Space,
            row_tokens: Option<usize>,
            target_ms: Option<u64>,
        ) -> (Option<Tuned>, usize) {
            let base = setup(space.layouts[0]);
            let goal = Goal { target_p99: target_ms.map(Duration::from_millis), ..Goal::default() };
            let make = |rows: Option<usize>| {
                let bytes = vec![0u8; rows?];
                let tensor = Tensor::from_bytes(DType::Uint8, vec![rows?], bytes).unwrap();
                Some(vec![(0, Value::Tensor(tensor))])
            };
            let (load, spare) = (|setup| self.load(setup), |_| self.spare);
            let fits = |_, rows: Option<usize>| rows.is_none_or(|rows| rows <= self.rows_max);
            let (tasks, interrupt) = (&self.tasks, &self.interrupt);
            let means = Means { tasks, interrupt, load: &load, make: &make, spare: &spare, fits: &fits };
            let sessions = self.load(base).unwrap();
            let (tuned, sessions) = tune(&Question { space, goal, row_tokens }, &means, base, sessions);
            (tuned, sessions.len())
        }
    }

    // Times differ so much that a busy machine does not change their order.
    #[test]
    fn the_layout_and_batch_that_are_fastest_are_found() {
        let house = House::new(|setup, rows| match (setup.layout.intra_threads, rows) {
            (2, 8..) => Ok(150),
            (2, _) => Ok(2),
            _ => Ok(60),
        });
        let layouts = [layout(1, 4), layout(2, 2), layout(4, 1)];
        let (tuned, left) = house.tune(&layouts, &[1, 2, 4, 8, 16], None);
        let tuned = tuned.unwrap();
        assert_eq!((tuned.chosen.setup.layout, tuned.chosen.batch_size), (layout(2, 2), Some(4)), "{tuned:?}");
        assert!(tuned.target_reached && tuned.measured.contains(&tuned.chosen));
        let gain = tuned.gain().unwrap();
        assert_eq!(gain.before.setup.layout, layout(1, 4));
        assert!(gain.times_as_good > 1.5, "{gain:?}");
        // The first were there already; the best were loaded again, and are given back.
        let loads: Vec<Layout> = house.loads.lock().unwrap().iter().map(|setup| setup.layout).collect();
        assert_eq!((loads.as_slice(), left), (&[layouts[0], layouts[1], layouts[2], layouts[1]][..], 2));
    }

    #[test]
    fn a_target_takes_the_fastest_that_keeps_it_and_says_where_none_does() {
        let time = |_: Setup, rows: usize| Ok(if rows == 1 { 2 } else { 300 });
        let (tuned, _) = House::new(time).tune(&[layout(1, 1)], &[1, 1000], Some(250));
        let tuned = tuned.unwrap();
        assert_eq!((tuned.chosen.batch_size, tuned.target_reached), (Some(1), true), "{tuned:?}");
        let (tuned, _) = House::new(time).tune(&[layout(1, 1)], &[1000], Some(1));
        assert!(!tuned.unwrap().target_reached);
    }

    #[test]
    fn batches_of_padded_rows_are_bounded_in_tokens() {
        let time = |_: Setup, rows: usize| Ok(if rows > 4 { 300 } else { 2 });
        let bounds = |row_tokens, batches: &[usize]| {
            let tuned = House::new(time).tune_rows_of(row_tokens, &[layout(1, 1)], batches, None).0.unwrap();
            (tuned.max_batch_size, tuned.max_batch_tokens)
        };
        assert_eq!(bounds(None, &[1, 4, 8]), (Some(4), None));
        assert_eq!(bounds(Some(64), &[1, 4, 8]), (None, Some(256)));
        assert_eq!(bounds(Some(64), &[4]), (None, None));
    }

    #[test]
    fn what_fails_or_panics_is_left_out() {
        let house = House::new(|setup, rows| match (setup.layout.instances, rows) {
            (1, _) => Err(RuntimeError::Run("not this one".into())),
            (2, _) => panic!("on purpose"),
            (_, 2..) => Err(RuntimeError::Run("one row only".into())),
            _ => Ok(1),
        });
        let (tuned, left) = house.tune(&[layout(1, 3), layout(2, 2), layout(3, 1)], &[1, 2], None);
        let tuned = tuned.unwrap();
        assert_eq!((tuned.measured.len(), tuned.chosen.setup.layout, left), (1, layout(3, 1), 3), "{tuned:?}");
        let (tuned, _) = house.tune(&[layout(1, 1)], &[1], None);
        assert_eq!(tuned, None);
    }

    #[test]
    fn what_does_not_fit_the_memory_is_never_run() {
        let house = House::new(|_, rows| if rows > 4 { panic!("too large") } else { Ok(2) });
        let house = House { rows_max: 4, ..house };
        let (tuned, _) = house.tune(&[layout(1, 1)], &[1, 2, 4, 8, 16], None);
        let tuned = tuned.unwrap();
        assert_eq!(tuned.chosen.batch_size, Some(4), "{tuned:?}");
        assert!(tuned.measured.iter().all(|one| one.batch_size <= Some(4)), "{tuned:?}");
    }

    #[test]
    fn a_stop_ends_runs_that_would_last() {
        let house = Arc::new(House::new(|_, _| Ok(3_600_000)));
        let interrupt = house.interrupt.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                interrupt.fire();
            });
            assert_eq!(house.tune(&[layout(2, 1), layout(1, 2)], &[1], None).0, None);
        });
        assert_eq!(house.loads.lock().unwrap().len(), 1);
    }

    #[test]
    fn level_and_memory_are_chosen_and_their_sessions_given_back() {
        for spare in [0, 3] {
            let quick = |setup: Setup| setup.optimization_level == OptimizationLevel::Basic && !setup.memory.pattern;
            let house = House { spare, ..House::new(move |setup, _| Ok(if quick(setup) { 2 } else { 30 })) };
            let mut best = setup(layout(1, 1));
            let space = Space {
                layouts: vec![best.layout],
                batches: vec![Some(1)],
                levels: vec![OptimizationLevel::Aggressive, OptimizationLevel::Basic],
                memories: vec![MemorySettings::default(), MemorySettings { arena: true, pattern: false }],
            };
            // The level alone brings nothing, so the memory is tried with both.
            let (tuned, left) = house.tune_space(space, None, None);
            let tuned = tuned.unwrap();
            best.optimization_level = OptimizationLevel::Basic;
            best.memory.pattern = false;
            assert_eq!(tuned.chosen.setup, best, "{tuned:?}");
            assert_eq!(tuned.measured.len(), 4);
            // Where there is room, nothing is loaded twice.
            let loads = house.loads.lock().unwrap().len();
            assert!(if spare == 0 { loads > 4 } else { loads == 4 && left == 1 }, "{loads} {left}");
        }
    }
}

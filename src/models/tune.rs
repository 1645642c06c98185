//! Measures at load which instances, threads of a run and batch size serve a model best.
//!
//! Every candidate runs in a closed loop, all its instances at once, for a fraction of a second; [`choose`], a pure function,
//! picks one. Invariants: the sessions of one layout only are held at a time; measuring ends soon after [`BUDGET`], and at
//! once when the load is stopped; a candidate that fails is left out. Other work of the machine is measured along.

use super::LoadError;
use super::layout::{Layout, Setup};
use crate::runtime::{Input, Interrupt, Session};
use crate::tasks::Tasks;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// What all measurements of a load take together, loading the candidates not counted. One run may last longer.
const BUDGET: Duration = Duration::from_secs(5);
/// One measurement.
const SLICE: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(400));
/// Runs of one instance that tell enough, after the shortest slice.
const RUNS_ENOUGH: usize = 500;
/// How often whoever waits for a measurement looks whether it has to end.
const LOOK: Duration = Duration::from_millis(10);
/// Throughputs this near to each other are the same: measurements of a moment are no better.
const SAME: f64 = 0.97;

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
    /// In the order in which it was measured.
    pub measured: Vec<Measured>,
    pub chosen: Measured,
    pub target_p99: Option<Duration>,
    /// `false`: nothing reached it, and the candidate with the least latency was taken.
    pub target_reached: bool,
    /// Tokens of each row that was measured, where rows are padded to one length.
    pub row_tokens: Option<usize>,
    /// The bounds of a batch that follow; `None`: as the settings have it.
    pub max_batch_size: Option<usize>,
    pub max_batch_tokens: Option<usize>,
}

/// What is tried.
pub(super) struct Space {
    /// Of all candidates, but for the layout.
    pub(super) base: Setup,
    /// Not empty.
    pub(super) layouts: Vec<Layout>,
    /// Ascending.
    pub(super) batches: Vec<Option<usize>>,
    pub(super) row_tokens: Option<usize>,
    pub(super) target_p99: Option<Duration>,
}

/// What measuring needs of the load.
pub(super) struct Means<'a> {
    pub(super) tasks: &'a Tasks,
    pub(super) interrupt: &'a Interrupt,
    /// Loads the sessions of a layout.
    pub(super) load: &'a dyn Fn(Layout) -> Result<Vec<Box<dyn Session>>, LoadError>,
    /// Makes the inputs of a run of so many rows; `None` where it cannot.
    pub(super) make: &'a dyn Fn(Option<usize>) -> Option<Vec<Input>>,
}

/// The best of `measured`: the highest throughput of those that keep the target, among equals the one with the least
/// latency. Where nothing keeps it, the one with the least latency. Gives its place, and whether the target is kept; `None`
/// where nothing was measured.
pub(super) fn choose(measured: &[Measured], target: Option<Duration>) -> Option<(usize, bool)> {
    let keeps = |one: &Measured| target.is_none_or(|target| one.p99 <= target);
    let all = || measured.iter().enumerate();
    let best = all().filter(|(_, one)| keeps(one)).map(|(_, one)| one.rows_per_second).max_by(f64::total_cmp);
    let near_best = |one: &Measured| best.is_none_or(|best| keeps(one) && one.rows_per_second >= best * SAME);
    let place = all().filter(|(_, one)| near_best(one)).min_by_key(|(_, one)| one.p99).map(|(place, _)| place)?;
    Some((place, best.is_some()))
}

/// Measures the space and gives the outcome, `None` where nothing could be measured, and the sessions that are loaded at the
/// end with their layout. `sessions` are those of `layout`, given so as not to load them twice. Blocks.
pub(super) fn tune(
    space: &Space,
    means: &Means<'_>,
    mut layout: Layout,
    mut sessions: Vec<Box<dyn Session>>,
) -> (Option<Tuned>, Layout, Vec<Box<dyn Session>>) {
    let mut measured = Vec::new();
    let mut left = BUDGET;
    for (done, next) in space.layouts.iter().enumerate() {
        if means.is_stopped() || left.is_zero() {
            break;
        }
        if *next != layout || sessions.len() != next.instances {
            // Before the next are loaded: never two layouts at a time.
            sessions.clear();
            layout = *next;
            sessions = match (means.load)(layout) {
                Ok(sessions) => sessions,
                Err(error) => {
                    tracing::info!(?layout, %error, "a candidate is left out: it could not be loaded");
                    continue;
                }
            };
        }
        let share = left / u32::try_from(space.layouts.len() - done).unwrap_or(u32::MAX).max(1);
        let started = Instant::now();
        if let Err(problem) = ladder(space, means, layout, &mut sessions, share, &mut measured) {
            tracing::info!(?layout, problem, "a candidate is left out");
        }
        left = left.saturating_sub(started.elapsed());
    }
    let tuned = choose(&measured, space.target_p99).and_then(|(place, target_reached)| {
        let chosen = *measured.get(place)?;
        // A run's time follows its tokens, not its rows: short rows may be more at the same latency. A single batch was no
        // choice, and says nothing of others.
        let tokens = space.row_tokens.filter(|_| space.batches.len() > 1).zip(chosen.batch_size);
        Some(Tuned {
            chosen,
            target_p99: space.target_p99,
            target_reached,
            row_tokens: space.row_tokens,
            max_batch_size: chosen.batch_size.filter(|_| space.row_tokens.is_none()),
            max_batch_tokens: tokens.map(|(tokens, rows)| tokens.saturating_mul(rows)),
            measured,
        })
    });
    (tuned, layout, sessions)
}

/// The batches of one layout, until larger ones are of no use or `share` is over.
fn ladder(
    space: &Space,
    means: &Means<'_>,
    layout: Layout,
    sessions: &mut Vec<Box<dyn Session>>,
    share: Duration,
    measured: &mut Vec<Measured>,
) -> Result<(), String> {
    let started = Instant::now();
    let slice = share / u32::try_from(space.batches.len()).unwrap_or(u32::MAX).max(1);
    let (shortest, longest) = SLICE;
    let slice = slice.clamp(shortest, longest);
    let (mut best, mut worse) = (0f64, 0);
    for rows in &space.batches {
        let inputs = (means.make)(*rows).ok_or("no inputs could be made up")?;
        // A single run may take as long as the whole budget.
        let one = means
            .measure(sessions, inputs, slice, BUDGET)?
            .summary(Setup { layout, ..space.base }, *rows)
            .ok_or("no run ended in time")?;
        measured.push(one);
        worse = if one.rows_per_second < best * 0.9 { worse + 1 } else { 0 };
        best = best.max(one.rows_per_second);
        let far_too_slow = space.target_p99.is_some_and(|target| one.p99 > target.saturating_mul(2));
        // Twice the rows may take twice as long, once to prepare and once to be measured.
        if worse >= 2 || far_too_slow || started.elapsed() + 4 * one.run > share || means.is_stopped() {
            break;
        }
    }
    Ok(())
}

/// The runs of each instance, and how long they took together.
struct Runs(Vec<(Vec<Duration>, Duration)>);

impl Runs {
    fn summary(self, setup: Setup, batch_size: Option<usize>) -> Option<Measured> {
        let rate = |(runs, time): &(Vec<Duration>, Duration)| runs.len() as f64 / time.as_secs_f64().max(1e-9);
        let rows_per_second = self.0.iter().map(rate).sum::<f64>() * batch_size.unwrap_or(1) as f64;
        let mut all: Vec<Duration> = self.0.into_iter().flat_map(|(runs, _)| runs).collect();
        all.sort_unstable();
        let run = *all.get(all.len() / 2)?;
        let slow = *all.get((all.len() * 99).div_ceil(100).saturating_sub(1))?;
        Some(Measured { setup, batch_size, rows_per_second, run, p99: run.saturating_add(slow) })
    }
}

/// One instance in its loop.
struct Worker {
    session: Box<dyn Session>,
    inputs: Arc<[Input]>,
    slice: Duration,
    interrupt: Interrupt,
    stop: Arc<AtomicBool>,
    start: mpsc::Receiver<()>,
    reports: mpsc::Sender<Report>,
}

enum Report {
    /// It has run once, which is not counted, and waits for the others.
    Ready,
    Ended(Box<dyn Session>, Result<(Vec<Duration>, Duration), String>),
}

impl Worker {
    fn work(mut self) {
        let result = self.runs();
        // Whoever waits for the reports waits for all.
        let _ = self.reports.send(Report::Ended(self.session, result));
    }

    fn runs(&mut self) -> Result<(Vec<Duration>, Duration), String> {
        self.run()?;
        let mut runs = Vec::with_capacity(RUNS_ENOUGH);
        if self.reports.send(Report::Ready).is_err() || self.start.recv().is_err() {
            // Another instance failed.
            return Ok((runs, Duration::ZERO));
        }
        let started = Instant::now();
        let mut begun = started;
        // At least one run, however late this thread came to it.
        loop {
            match self.run() {
                Ok(()) => {}
                // What ended before the time was up counts.
                Err(_) if self.interrupt.is_fired() => break,
                Err(problem) => return Err(problem),
            }
            let now = Instant::now();
            runs.push(now - begun);
            begun = now;
            let time = now - started;
            if time >= self.slice || (runs.len() >= RUNS_ENOUGH && time >= SLICE.0) {
                // The others end with it, so that all were measured side by side.
                self.stop.store(true, Ordering::Relaxed);
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok((runs, begun - started))
    }

    fn run(&mut self) -> Result<(), String> {
        let all: Vec<usize> = (0..self.session.outputs().len()).collect();
        let outputs = self.session.run(&self.inputs, &all, &self.interrupt).map_err(|error| error.to_string())?;
        std::hint::black_box(outputs);
        Ok(())
    }
}

impl Means<'_> {
    fn is_stopped(&self) -> bool {
        self.interrupt.is_fired() || self.tasks.stopping().is_cancelled()
    }

    /// Runs all sessions at once, each on a thread of its own, for about `slice`; stops runs that are not done after `most`.
    /// `sessions` come back, except those of a thread that could not start or panicked.
    fn measure(
        &self,
        sessions: &mut Vec<Box<dyn Session>>,
        inputs: Vec<Input>,
        slice: Duration,
        most: Duration,
    ) -> Result<Runs, String> {
        let (reports, news) = mpsc::channel();
        let (inputs, stop): (Arc<[Input]>, _) = (inputs.into(), Arc::new(AtomicBool::new(false)));
        let (count, ends) = (sessions.len(), Instant::now() + most);
        let (mut starts, mut interrupts, mut problem) = (Vec::with_capacity(count), Vec::with_capacity(count), None);
        for session in std::mem::take(sessions) {
            let ((start, started), interrupt) = (mpsc::channel(), Interrupt::new());
            let worker = Worker {
                session,
                inputs: inputs.clone(),
                slice,
                interrupt: interrupt.clone(),
                stop: stop.clone(),
                start: started,
                reports: reports.clone(),
            };
            match self.tasks.thread("tune", move || worker.work()) {
                Ok(()) => {
                    starts.push(start);
                    interrupts.push(interrupt);
                }
                Err(error) => problem = Some(format!("no thread could be started: {}", error.kind())),
            }
        }
        drop(reports);
        if problem.is_some() {
            starts.clear();
        }
        let (mut ready, mut runs) = (0, Vec::with_capacity(count));
        loop {
            match news.recv_timeout(LOOK) {
                Ok(Report::Ready) => {
                    ready += 1;
                    if ready == count {
                        // One that has ended reports it itself.
                        starts.iter().for_each(|start| _ = start.send(()));
                    }
                }
                Ok(Report::Ended(session, result)) => {
                    sessions.push(session);
                    match result {
                        Ok(ended) => runs.push(ended),
                        Err(failed) => {
                            problem = problem.or(Some(failed));
                            // Those that wait for it wait no longer.
                            starts.clear();
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.is_stopped() || Instant::now() >= ends {
                stop.store(true, Ordering::Relaxed);
                interrupts.iter().for_each(Interrupt::fire);
            }
        }
        match problem {
            Some(problem) => Err(problem),
            None if runs.len() < count => Err("a run ended abnormally".to_owned()),
            None => Ok(Runs(runs)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;
    use crate::runtime::{GraphSource, MemorySettings, OptimizationLevel, Runtime as _, RuntimeError, SessionSettings};
    use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType};
    use proptest::prelude::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    fn layout(instances: usize, intra_threads: usize) -> Layout {
        Layout { instances, intra_threads }
    }

    fn setup(layout: Layout) -> Setup {
        Setup { layout, optimization_level: OptimizationLevel::Aggressive, memory: MemorySettings::default() }
    }

    fn measured(rows_per_second: f64, p99_ms: u64) -> Measured {
        let p99 = Duration::from_millis(p99_ms);
        Measured { setup: setup(layout(1, 1)), batch_size: Some(1), rows_per_second, run: p99 / 2, p99 }
    }

    #[test]
    fn the_highest_throughput_within_the_target_is_chosen() {
        #[track_caller]
        fn check(all: &[(f64, u64)], target: Option<u64>, expected: Option<(usize, bool)>) {
            let all: Vec<Measured> = all.iter().map(|(rate, p99)| measured(*rate, *p99)).collect();
            assert_eq!(choose(&all, target.map(Duration::from_millis)), expected);
        }
        let all = [(50.0, 20), (90.0, 60), (100.0, 200), (98.0, 150)];
        check(&all, None, Some((3, true)));
        check(&all, Some(150), Some((3, true)));
        check(&all, Some(149), Some((1, true)));
        check(&all, Some(20), Some((0, true)));
        check(&all, Some(19), Some((0, false)));
        check(&[(90.0, 60), (100.0, 200)], None, Some((1, true)));
        check(&[], Some(1), None);
        // A candidate over the target is no equal, however fast.
        check(&[(99.0, 10), (100.0, 20), (100.0, 5), (300.0, 30)], Some(20), Some((2, true)));
    }

    proptest! {
        #[test]
        fn nothing_better_is_passed_over(
            all in proptest::collection::vec((1u32..1000, 1u64..100), 1..30), target in proptest::option::of(1u64..100),
        ) {
            let all: Vec<Measured> = all.iter().map(|(rate, p99)| measured(f64::from(*rate), *p99)).collect();
            let limit = target.map(Duration::from_millis);
            let (place, kept) = choose(&all, limit).unwrap();
            let keeps = |one: &Measured| limit.is_none_or(|limit| one.p99 <= limit);
            prop_assert_eq!(kept, all.iter().any(keeps));
            if kept {
                prop_assert!(keeps(&all[place]));
                for one in all.iter().filter(|one| keeps(one)) {
                    prop_assert!(all[place].rows_per_second >= one.rows_per_second * SAME);
                    // Only one that is faster beyond doubt may have more latency than another.
                    prop_assert!(all[place].p99 <= one.p99 || one.rows_per_second < all[place].rows_per_second / SAME);
                }
            } else {
                prop_assert!(all.iter().all(|one| all[place].p99 <= one.p99));
            }
        }
    }

    fn spec(name: &str) -> Spec {
        let shape = Some(vec![Dim::Dynamic(None)]);
        Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Uint8, shape }, optional: false }
    }

    type Time = dyn Fn(Layout, usize) -> Result<u64, RuntimeError> + Send + Sync;

    /// Sessions whose runs take so many milliseconds, and what was seen of them.
    struct House {
        tasks: Tasks,
        interrupt: Interrupt,
        time: Arc<Time>,
        loads: Mutex<Vec<Layout>>,
        alive: Arc<AtomicUsize>,
    }

    /// Counts a session while it lives.
    struct Alive(Arc<AtomicUsize>);

    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl House {
        fn new(time: impl Fn(Layout, usize) -> Result<u64, RuntimeError> + Send + Sync + 'static) -> House {
            House {
                tasks: Tasks::new(),
                interrupt: Interrupt::new(),
                time: Arc::new(time),
                loads: Mutex::default(),
                alive: Arc::default(),
            }
        }

        fn load(&self, layout: Layout) -> Result<Vec<Box<dyn Session>>, LoadError> {
            assert_eq!(self.alive.load(Ordering::SeqCst), 0, "two layouts at a time");
            self.loads.lock().unwrap().push(layout);
            let source = GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 };
            let settings = SessionSettings::default();
            let session = |_| {
                self.alive.fetch_add(1, Ordering::SeqCst);
                let (time, alive) = (self.time.clone(), Alive(self.alive.clone()));
                let fake = FakeRuntime::new(vec![spec("x")], vec![spec("y")], move |inputs, _, interrupt| {
                    let _alive = &alive;
                    let rows = inputs[0].1.as_tensor().unwrap().len();
                    let ends = Instant::now() + Duration::from_millis(time(layout, rows)?);
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
            (0..layout.instances).map(session).collect()
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
            let space = Space {
                row_tokens,
                base: setup(layouts[0]),
                layouts: layouts.to_vec(),
                batches: batches.iter().copied().map(Some).collect(),
                target_p99: target_ms.map(Duration::from_millis),
            };
            let make = |rows: Option<usize>| {
                let bytes = vec![0u8; rows?];
                let tensor = Tensor::from_bytes(DType::Uint8, vec![rows?], bytes).unwrap();
                Some(vec![(0, Value::Tensor(tensor))])
            };
            let load = |layout| self.load(layout);
            let means = Means { tasks: &self.tasks, interrupt: &self.interrupt, load: &load, make: &make };
            let sessions = self.load(layouts[0]).unwrap();
            let (tuned, _, sessions) = tune(&space, &means, layouts[0], sessions);
            (tuned, sessions.len())
        }
    }

    // Times differ so much that a busy machine does not change their order.
    #[test]
    fn the_layout_and_batch_that_are_fastest_are_found() {
        let house = House::new(|layout, rows| match (layout.intra_threads, rows) {
            (2, 8..) => Ok(150),
            (2, _) => Ok(2),
            _ => Ok(60),
        });
        let layouts = [layout(1, 4), layout(2, 2), layout(4, 1)];
        let (tuned, left) = house.tune(&layouts, &[1, 2, 4, 8, 16], None);
        let tuned = tuned.unwrap();
        assert_eq!((tuned.chosen.setup.layout, tuned.chosen.batch_size), (layout(2, 2), Some(4)), "{tuned:?}");
        assert!(tuned.target_reached && tuned.measured.contains(&tuned.chosen));
        // The first were there already, and the last are given back.
        assert_eq!((house.loads.lock().unwrap().as_slice(), left), (&layouts[..], 4));
    }

    #[test]
    fn a_target_takes_the_fastest_that_keeps_it_and_says_where_none_does() {
        let time = |_: Layout, rows: usize| Ok(if rows == 1 { 2 } else { 300 });
        let (tuned, _) = House::new(time).tune(&[layout(1, 1)], &[1, 1000], Some(250));
        let tuned = tuned.unwrap();
        assert_eq!((tuned.chosen.batch_size, tuned.target_reached), (Some(1), true), "{tuned:?}");
        let (tuned, _) = House::new(time).tune(&[layout(1, 1)], &[1000], Some(1));
        assert!(!tuned.unwrap().target_reached);
    }

    #[test]
    fn batches_of_padded_rows_are_bounded_in_tokens() {
        let time = |_: Layout, rows: usize| Ok(if rows > 4 { 300 } else { 2 });
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
        let house = House::new(|layout, rows| match (layout.instances, rows) {
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
}

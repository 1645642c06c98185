//! Runs sessions over the same inputs by turns: how long a run takes in each, and how far their answers are apart.
//!
//! The first session is the original, the others are its variants: forms of the same graph, with its inputs and outputs.
//! Invariants: all were run in the same rounds on the same inputs; a variant that fails is left out and the others go on; no
//! more than one sample's outputs of two sessions are held at a time. [`decide`] is pure: what the figures mean.

use super::drift::{Drift, Drifting};
use crate::runtime::{Input, Interrupt, RuntimeError, Session};
use std::fmt;
use std::time::{Duration, Instant};

/// A variant has to be faster by more than two measurements of the same graph differ.
pub const WIN_MIN: f64 = 1.05;
/// Runs of one turn that are kept: enough for a median.
const RUNS_MAX: usize = 2000;

/// Inputs that are timed.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Rows of the run, for the report and for the throughput.
    pub rows: usize,
    pub inputs: Vec<Input>,
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// Timed, each by itself. The first must run in the original; later ones that it refuses are left out.
    pub timed: &'a [Sample],
    /// Run once in each session, for the drift.
    pub compared: &'a [Vec<Input>],
    /// How long all turns take together, at most one run and one round of turns longer. Each session gets a run for each
    /// sample and round at least, whatever it takes.
    pub time: Duration,
    /// How often the sessions take turns, at least once.
    pub rounds: usize,
}

/// The original's figures and, in the order of the sessions, those of the variants or why one has none.
#[derive(Debug)]
pub struct Compared {
    pub original: Vec<Timed>,
    pub variants: Vec<Result<Outcome, RuntimeError>>,
}

/// The time of runs of one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    pub rows: usize,
    /// The median of a run.
    pub run: Duration,
}

/// What came of a variant.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Of the same sizes as the original's.
    pub timed: Vec<Timed>,
    /// `None` where the outputs cannot be compared, or nothing was given to compare.
    pub drift: Option<Drift>,
}

/// What is to become better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Objective {
    /// Runs of all sizes, each as much as the others.
    #[default]
    Both,
    /// The smallest runs.
    Latency,
    /// Rows in a time, each form with the size that suits it best.
    Throughput,
}

/// Runs `sessions`, the original first, on what `trial` names. Blocks.
///
/// # Errors
/// [`RuntimeError::Interrupted`] where `interrupt` fired; the original's error where it cannot run what is timed first or
/// what is compared.
pub fn compare(
    sessions: &mut [&mut dyn Session],
    trial: &Trial<'_>,
    interrupt: &Interrupt,
) -> Result<Compared, RuntimeError> {
    let Some((original, variants)) = sessions.split_first_mut() else {
        return Ok(Compared { original: Vec::new(), variants: Vec::new() });
    };
    let mut runners: Vec<Runner<'_>> = std::iter::once(&mut *original)
        .chain(variants.iter_mut())
        .map(|session| Runner::new(&mut **session, interrupt))
        .collect();
    let mut drifts: Vec<Option<Drifting>> = runners.iter().skip(1).map(|_| Some(Drifting::default())).collect();
    for inputs in trial.compared {
        compare_once(&mut runners, inputs, &mut drifts)?;
    }
    let mut timed: Vec<Vec<Timed>> = runners.iter().map(|_| Vec::new()).collect();
    let share = trial.time / u32::try_from(trial.timed.len()).unwrap_or(u32::MAX).max(1);
    for (place, sample) in trial.timed.iter().enumerate() {
        let times = match time_size(&mut runners, &sample.inputs, share, trial.rounds.max(1)) {
            Ok(times) => times,
            // Some graphs declare a free dimension and refuse more than one row.
            Err(error) if place == 0 || matches!(error, RuntimeError::Interrupted) => return Err(error),
            Err(_) => continue,
        };
        for (timed, run) in timed.iter_mut().zip(times) {
            timed.extend(run.map(|run| Timed { rows: sample.rows, run }));
        }
    }
    let nothing_compared = trial.compared.is_empty();
    let problems: Vec<Option<RuntimeError>> = runners.into_iter().map(|runner| runner.problem).collect();
    let mut outcomes = timed.into_iter().zip(problems);
    let original = outcomes.next().map(|(timed, _)| timed).unwrap_or_default();
    let variants = outcomes.zip(drifts).map(|((timed, problem), drifting)| match problem {
        Some(problem) => Err(problem),
        None => Ok(Outcome { timed, drift: drifting.filter(|_| !nothing_compared).map(Drifting::finish) }),
    });
    Ok(Compared { variants: variants.collect(), original })
}

/// One session and, once it has failed, why.
struct Runner<'a> {
    session: &'a mut dyn Session,
    outputs: Vec<usize>,
    interrupt: &'a Interrupt,
    problem: Option<RuntimeError>,
}

impl<'a> Runner<'a> {
    fn new(session: &'a mut dyn Session, interrupt: &'a Interrupt) -> Runner<'a> {
        let outputs = (0..session.outputs().len()).collect();
        Runner { session, outputs, interrupt, problem: None }
    }

    fn run(&mut self, inputs: &[Input]) -> Result<Vec<crate::tensor::Value>, RuntimeError> {
        if self.interrupt.is_fired() {
            return Err(RuntimeError::Interrupted);
        }
        self.session.run(inputs, &self.outputs, self.interrupt)
    }

    /// Runs for about `time`, once at least, and adds what each run took.
    fn turn(&mut self, inputs: &[Input], time: Duration, runs: &mut Vec<Duration>) -> Result<(), RuntimeError> {
        let started = Instant::now();
        let mut begun = started;
        for _ in 0..RUNS_MAX {
            std::hint::black_box(self.run(inputs)?);
            let now = Instant::now();
            runs.push(now - begun);
            begun = now;
            if now - started >= time {
                break;
            }
        }
        Ok(())
    }
}

/// The answer to `inputs` of every session, each variant's compared with the original's.
fn compare_once(
    runners: &mut [Runner<'_>],
    inputs: &[Input],
    drifts: &mut [Option<Drifting>],
) -> Result<(), RuntimeError> {
    let Some((original, variants)) = runners.split_first_mut() else { return Ok(()) };
    let expected = original.run(inputs)?;
    for (variant, drift) in variants.iter_mut().zip(drifts) {
        if variant.problem.is_some() {
            continue;
        }
        match variant.run(inputs) {
            Ok(outputs) => {
                // Once they cannot be compared, they stay so.
                *drift = drift.take().and_then(|mut drifting| drifting.add(&expected, &outputs).then_some(drifting));
            }
            Err(RuntimeError::Interrupted) => return Err(RuntimeError::Interrupted),
            Err(error) => variant.problem = Some(error),
        }
    }
    Ok(())
}

/// The median of a run on `inputs` in each session; `None` for those that have failed. The order of the turns is reversed
/// from round to round, so that a machine that becomes slower favours none.
fn time_size(
    runners: &mut [Runner<'_>],
    inputs: &[Input],
    time: Duration,
    rounds: usize,
) -> Result<Vec<Option<Duration>>, RuntimeError> {
    let mut runs: Vec<Vec<Duration>> = runners.iter().map(|_| Vec::new()).collect();
    // The first run of a size prepares what later ones find; it is not counted.
    for (place, runner) in runners.iter_mut().enumerate().filter(|(_, runner)| runner.problem.is_none()) {
        settle(runner, place, |runner| runner.run(inputs).map(drop))?;
    }
    let turns = u32::try_from(rounds.saturating_mul(runners.len())).unwrap_or(u32::MAX).max(1);
    let (started, turn) = (Instant::now(), time / turns);
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..runners.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            let (Some(runner), Some(runs)) = (runners.get_mut(place), runs.get_mut(place)) else { continue };
            if runner.problem.is_none() {
                settle(runner, place, |runner| runner.turn(inputs, turn, runs))?;
            }
        }
        if started.elapsed() >= time {
            break;
        }
    }
    let failed = runners.iter().map(|runner| runner.problem.is_some());
    Ok(runs.into_iter().zip(failed).map(|(runs, failed)| median(runs).filter(|_| !failed)).collect())
}

/// Does something with a session. The original's failure is everyone's, a variant's its own, and an interrupt ends all.
fn settle(
    runner: &mut Runner<'_>,
    place: usize,
    work: impl FnOnce(&mut Runner<'_>) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    match work(runner) {
        Err(error) if place == 0 || matches!(error, RuntimeError::Interrupted) => Err(error),
        Err(error) => {
            runner.problem = Some(error);
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn median(mut runs: Vec<Duration>) -> Option<Duration> {
    runs.sort_unstable();
    runs.get(runs.len() / 2).copied()
}

/// How many times as fast the variant is as the original, whose sizes it was timed with; 1 where nothing was timed.
pub fn speed(original: &[Timed], variant: &[Timed], objective: Objective) -> f64 {
    let seconds = |timed: &Timed| timed.run.as_secs_f64().max(1e-9);
    let both = || original.iter().zip(variant);
    match objective {
        Objective::Both => {
            let logarithms = both().map(|(original, variant)| (seconds(original) / seconds(variant)).ln());
            (logarithms.sum::<f64>() / both().count().max(1) as f64).exp()
        }
        Objective::Latency => {
            let least = both().min_by_key(|(original, _)| original.rows);
            least.map_or(1.0, |(original, variant)| seconds(original) / seconds(variant))
        }
        Objective::Throughput => match (rows_per_second(original), rows_per_second(variant)) {
            (Some(original), Some(variant)) => variant / original,
            _ => 1.0,
        },
    }
}

/// Rows in a second with the size that gives most of them; `None` where nothing was timed.
pub fn rows_per_second(timed: &[Timed]) -> Option<f64> {
    timed.iter().map(|timed| timed.rows.max(1) as f64 / timed.run.as_secs_f64().max(1e-9)).max_by(f64::total_cmp)
}

/// What a variant must keep to be better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Most drift ([`Drift::distance`]), 0 to 2.
    pub max_drift: f64,
    /// It must be more than so many times as fast, from 0.
    pub min_speed: f64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { max_drift: 0.01, min_speed: WIN_MIN }
    }
}

/// What a variant's figures mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// So many times as fast, and near enough.
    Better { speed: f64 },
    /// Not faster by more than `min`, which the measurement may be wrong by.
    NotFaster { speed: f64, min: f64 },
    /// Its answers are too far from the original's, however fast.
    Drifts { drift: f64, max: f64 },
    /// Its answers are of another shape or kind, or nothing was compared.
    Incomparable,
}

/// Whether a variant is better than its original: `speed` times as fast, with a `drift` of at most `max_drift`
/// ([`Drift::distance`], 0 to 2).
pub fn decide(speed: f64, drift: Option<&Drift>, max_drift: f64) -> Verdict {
    decide_within(speed, drift, &Bounds { max_drift, ..Bounds::default() })
}

/// The same within other bounds.
pub fn decide_within(speed: f64, drift: Option<&Drift>, bounds: &Bounds) -> Verdict {
    let Bounds { max_drift, min_speed } = *bounds;
    // Figures that are no numbers are above no bound and below none.
    match drift.map(Drift::distance) {
        None => Verdict::Incomparable,
        Some(drift) if drift <= max_drift && speed > min_speed => Verdict::Better { speed },
        Some(drift) if drift <= max_drift => Verdict::NotFaster { speed, min: min_speed },
        Some(drift) => Verdict::Drifts { drift, max: max_drift },
    }
}

impl Verdict {
    pub fn is_better(&self) -> bool {
        matches!(self, Verdict::Better { .. })
    }

    /// A stable word: `better`, `not_faster`, `drifts` or `incomparable`.
    pub fn code(&self) -> &'static str {
        match self {
            Verdict::Better { .. } => "better",
            Verdict::NotFaster { .. } => "not_faster",
            Verdict::Drifts { .. } => "drifts",
            Verdict::Incomparable => "incomparable",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Better { speed } => write!(f, "{speed:.2} times as fast within the drift"),
            Verdict::NotFaster { speed, min } => {
                write!(f, "{speed:.2} times as fast, and more than {min} is what counts")
            }
            Verdict::Drifts { drift, max } => write!(f, "drifts by {drift:.2e}, more than the {max} that may be"),
            Verdict::Incomparable => write!(f, "its outputs cannot be compared with the original's"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;
    use crate::runtime::{DeviceSettings, GraphSource, OptimizationLevel, Runtime as _, SessionSettings};
    use crate::tensor::{DType, Spec, Tensor, Value, ValueType};
    use std::sync::{Arc, Mutex};

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn session(
        name: &'static str,
        log: &Log,
        run: impl Fn(f32) -> Result<f32, RuntimeError> + Send + Sync + 'static,
    ) -> Box<dyn Session> {
        let spec = |name: &str| Spec {
            name: name.to_owned(),
            ty: ValueType::Tensor { dtype: DType::Fp32, shape: None },
            optional: false,
        };
        let log = log.clone();
        let runtime = FakeRuntime::new(vec![spec("x")], vec![spec("y")], move |inputs, _, _| {
            log.lock().unwrap().push(name);
            let tensor = inputs[0].1.as_tensor().unwrap();
            let values = tensor.to_f32().unwrap();
            let values = values.iter().map(|value| run(*value)).collect::<Result<Vec<f32>, _>>()?;
            Ok(vec![Tensor::from_vec(DType::Fp32, tensor.shape().to_vec(), values).unwrap().into()])
        });
        let source = GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 };
        let (device, optimization_level) = (DeviceSettings::default(), OptimizationLevel::None);
        let settings = SessionSettings { device, optimization_level, ..SessionSettings::default() };
        runtime.load(&source, &settings).unwrap()
    }

    fn input(numbers: &[f32]) -> Vec<Input> {
        let value: Value = Tensor::from_vec(DType::Fp32, vec![1, numbers.len()], numbers.to_vec()).unwrap().into();
        vec![(0, value)]
    }

    fn trial<'a>(timed: &'a [Sample], compared: &'a [Vec<Input>]) -> Trial<'a> {
        Trial { timed, compared, time: Duration::ZERO, rounds: 1 }
    }

    #[test]
    fn sessions_take_turns_and_their_answers_are_compared() {
        let log = Log::default();
        let (mut a, mut b) = (session("a", &log, Ok), session("b", &log, |x| Ok(x + 0.5)));
        let mut sessions: Vec<&mut dyn Session> = vec![a.as_mut(), b.as_mut()];
        let timed = [Sample { rows: 1, inputs: input(&[1.0, 2.0]) }];
        let trial = Trial { rounds: 3, time: Duration::from_millis(5), ..trial(&timed, &[]) };
        let compared = compare(&mut sessions, &trial, &Interrupt::new()).unwrap();
        assert_eq!(compared.original.len(), 1);
        assert_eq!(compared.variants[0].as_ref().unwrap().drift, None, "nothing was given to compare");
        let mut order = log.lock().unwrap().clone();
        order.dedup();
        assert!(order.starts_with(&["a", "b", "a", "b"]), "{order:?}");

        let compared = [input(&[3.0, 4.0])];
        let done = compare(&mut sessions, &super::Trial { compared: &compared, ..trial }, &Interrupt::new()).unwrap();
        let drift = done.variants[0].as_ref().unwrap().drift.unwrap();
        assert_eq!((drift.max_abs, drift.top1), (0.5, 1.0));
    }

    #[test]
    fn a_variant_that_fails_is_left_out_and_an_original_that_fails_ends_it() {
        let log = Log::default();
        let fails = |x: f32| if x > 1.0 { Err(RuntimeError::Run("no".into())) } else { Ok(x) };
        let (mut a, mut b, mut c) = (session("a", &log, Ok), session("b", &log, fails), session("c", &log, Ok));
        let timed = [Sample { rows: 1, inputs: input(&[2.0]) }];
        let all = [input(&[2.0])];
        let done = compare(&mut [a.as_mut(), b.as_mut(), c.as_mut()], &trial(&timed, &all), &Interrupt::new()).unwrap();
        assert!(matches!(&done.variants[0], Err(RuntimeError::Run(_))));
        assert_eq!(done.variants[1].as_ref().unwrap().drift.unwrap().max_abs, 0.0);
        let ended = compare(&mut [b.as_mut(), a.as_mut()], &trial(&timed, &[]), &Interrupt::new());
        assert!(matches!(ended, Err(RuntimeError::Run(_))));
        // A larger size that the original refuses is left out.
        let timed = [Sample { rows: 1, inputs: input(&[1.0]) }, Sample { rows: 2, inputs: input(&[2.0]) }];
        let done = compare(&mut [b.as_mut(), a.as_mut()], &trial(&timed, &[]), &Interrupt::new()).unwrap();
        assert_eq!((done.original.len(), done.variants[0].as_ref().unwrap().timed.len()), (1, 1));
    }

    #[test]
    fn an_interrupt_ends_it() {
        let log = Log::default();
        let mut a = session("a", &log, Ok);
        let interrupt = Interrupt::new();
        interrupt.fire();
        let timed = [Sample { rows: 1, inputs: input(&[2.0]) }];
        let ended = compare(&mut [a.as_mut()], &trial(&timed, &[]), &interrupt);
        assert!(matches!(ended, Err(RuntimeError::Interrupted)) && log.lock().unwrap().is_empty());
    }

    fn timed(all: &[(usize, u64)]) -> Vec<Timed> {
        all.iter().map(|(rows, ms)| Timed { rows: *rows, run: Duration::from_millis(*ms) }).collect()
    }

    #[test]
    fn the_objective_says_which_sizes_count() {
        let (original, variant) = (timed(&[(1, 10), (8, 80)]), timed(&[(1, 20), (8, 40)]));
        let check = |objective, expected: f64| {
            let speed = speed(&original, &variant, objective);
            assert!((speed - expected).abs() < 1e-9, "{objective:?}: {speed}");
        };
        check(Objective::Both, 1.0);
        check(Objective::Latency, 0.5);
        check(Objective::Throughput, 2.0);
        assert_eq!(speed(&[], &[], Objective::Both), 1.0);
        assert_eq!(rows_per_second(&original), Some(100.0));
    }

    #[test]
    fn only_what_is_faster_and_near_enough_is_better() {
        let drift = |cosine| Drift { max_abs: 0.1, cosine, top1: 1.0 };
        let check = |speed, drift: Option<Drift>, code: &str| {
            let verdict = decide(speed, drift.as_ref(), 0.01);
            assert_eq!((verdict.code(), verdict.is_better()), (code, code == "better"), "{verdict}");
        };
        check(2.0, Some(drift(0.995)), "better");
        check(WIN_MIN, Some(drift(1.0)), "not_faster");
        check(f64::NAN, Some(drift(1.0)), "not_faster");
        check(9.0, Some(drift(0.9)), "drifts");
        check(9.0, Some(drift(f64::NAN)), "drifts");
        check(9.0, Some(Drift { max_abs: f64::INFINITY, ..drift(1.0) }), "drifts");
        check(9.0, None, "incomparable");
        let any = Bounds { min_speed: 0.0, ..Bounds::default() };
        assert!(decide_within(0.5, Some(&drift(1.0)), &any).is_better());
    }
}

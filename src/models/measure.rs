//! Runs the sessions of a candidate in a closed loop, all instances at once, and says how long their runs took.
//!
//! Invariants: sessions come back to whoever gave them, except those of a thread that could not start or panicked; a run that
//! does not end in time is stopped, and so are all at once when the load is stopped. Other work of the machine is measured
//! along. Knows no search.

use super::LoadError;
use super::layout::Setup;
use super::search::SLICE;
use super::tune::Measured;
use crate::runtime::{Input, Interrupt, Session};
use crate::tasks::Tasks;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Runs of one instance that tell enough, after the shortest slice.
const RUNS_ENOUGH: usize = 500;
/// How often whoever waits for a measurement looks whether it has to end.
const LOOK: Duration = Duration::from_millis(10);

/// What measuring needs of the load.
pub(super) struct Means<'a> {
    pub(super) tasks: &'a Tasks,
    pub(super) interrupt: &'a Interrupt,
    /// Loads the sessions of a setup.
    pub(super) load: &'a dyn Fn(Setup) -> Result<Vec<Box<dyn Session>>, LoadError>,
    /// Makes the inputs of a run of so many rows; `None` where it cannot.
    pub(super) make: &'a dyn Fn(Option<usize>) -> Option<Vec<Input>>,
    /// How many setups' sessions may be held at a time beside this one's.
    pub(super) spare: &'a dyn Fn(Setup) -> usize,
    /// Whether runs of so many rows by all instances of a setup fit what memory is left.
    pub(super) fits: &'a dyn Fn(Setup, Option<usize>) -> bool,
}

/// The runs of each instance, and how long they took together.
pub(super) struct Runs(Vec<(Vec<Duration>, Duration)>);

impl Runs {
    pub(super) fn summary(self, setup: Setup, batch_size: Option<usize>) -> Option<Measured> {
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
    /// Whether it runs once before it is measured.
    prepares: bool,
    interrupt: Interrupt,
    stop: Arc<AtomicBool>,
    start: mpsc::Receiver<()>,
    reports: mpsc::Sender<Report>,
}

enum Report {
    /// It has run once, which is not counted, where it had to, and waits for the others.
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
        if self.prepares {
            self.run()?;
        }
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
    pub(super) fn is_stopped(&self) -> bool {
        self.interrupt.is_fired() || self.tasks.stopping().is_cancelled()
    }

    /// Runs all sessions at once, each on a thread of its own, for about `slice`, after a run that is not counted where they
    /// have to be prepared; stops runs that are not done after `most`.
    /// `sessions` come back, except those of a thread that could not start or panicked.
    pub(super) fn measure(
        &self,
        sessions: &mut Vec<Box<dyn Session>>,
        inputs: Vec<Input>,
        prepares: bool,
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
                prepares,
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

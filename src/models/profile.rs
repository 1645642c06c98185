//! Times the operators of a model: a session of its own, some runs on made-up input, and what ONNX Runtime wrote of them.
//!
//! Invariants: the sessions that serve are not touched; runs, events and time are bounded; the trace's file is gone when this returns.

use super::made_up::{self, InputHints, Size};
use crate::runtime::{GraphSource, Interrupt, Profile, Runtime, RuntimeError, SessionSettings, profile};
use std::time::{Duration, Instant};

/// Timed nodes, over all runs together.
const EVENTS_MAX: u64 = 20_000;
const TIME_MAX: Duration = Duration::from_secs(30);
const WARM_UPS: usize = 1;
/// Runs where a load makes them.
pub(super) const AT_LOAD: usize = 5;

/// What was timed of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Profiled {
    /// Where it ran: `cpu`, `cuda:0`.
    pub device: String,
    /// Rows of a run; `None` as few as the graph takes.
    pub batch_size: Option<usize>,
    pub profile: Profile,
    /// In Chrome's trace format, one for each graph; not kept with the model.
    pub traces: Vec<String>,
}

impl Profiled {
    /// One document for a viewer of Chrome's traces.
    pub fn trace(&self) -> String {
        match self.traces.as_slice() {
            [one] => one.clone(),
            several => {
                let inside = |trace: &String| {
                    let trace = trace.trim();
                    trace.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or_default().to_owned()
                };
                format!("[{}]", several.iter().map(inside).collect::<Vec<_>>().join(","))
            }
        }
    }
}

/// Runs the graph up to `iterations` times, as far as the bounds allow. Blocks.
///
/// # Errors
/// Where the graph does not load, refuses what is made up, or no input can be made up.
pub(super) fn run(
    runtime: &dyn Runtime,
    source: &GraphSource,
    settings: &SessionSettings,
    hints: &InputHints,
    (iterations, batch_size): (usize, Option<usize>),
    interrupt: &Interrupt,
) -> Result<Profiled, RuntimeError> {
    let mut session = runtime.load_profiled(source, settings)?;
    let size = Size { rows: batch_size, ..Size::default() };
    let inputs = made_up::inputs(session.inputs(), &size, 1, hints)
        .ok_or_else(|| RuntimeError::Run("an input is too large or of a kind that is not made up".to_owned()))?;
    let outputs: Vec<usize> = (0..session.outputs().len()).collect();
    let nodes = session.facts().execution.nodes.values().sum::<u64>().max(1);
    let most = usize::try_from(EVENTS_MAX / nodes).unwrap_or(usize::MAX).max(1);
    let started = Instant::now();
    let mut done = 0;
    while done < WARM_UPS + iterations.min(most) {
        match session.run(&inputs, &outputs, interrupt) {
            Ok(_) => done += 1,
            // Stopped, with something to show.
            Err(RuntimeError::Interrupted) if done > WARM_UPS => break,
            Err(error) => return Err(error),
        }
        if started.elapsed() > TIME_MAX && done > WARM_UPS {
            break;
        }
    }
    let traces = session.end_profile()?;
    let profile = profile::read(&traces, WARM_UPS)?;
    Ok(Profiled { device: session.facts().device.clone(), batch_size, profile, traces })
}

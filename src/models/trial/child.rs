//! What the process does that tries files out: reads a request, loads, runs once, answers. Nothing of it serves.
//!
//! Invariant: it ends with whoever started it, since it ends when its standard input does.

use super::{Answer, Request};
use crate::models::made_up::{self, InputHints, Size};
use crate::runtime::{DeviceSettings, DeviceType, GraphSource, Interrupt, Runtime, RuntimeError, SessionSettings};
use crate::tasks::Tasks;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// How long the run may take before it is stopped: a long one is no crash.
const RUN_MAX: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("`ortus try-load` is started by the server alone, which asks by standard input: {0}")]
    Request(String),
    #[error("the answer could not be given: {0}")]
    Answer(#[from] io::Error),
}

/// Answers the request on standard input on standard output. `open` is called when the request is there: whoever asks sets
/// this process's limits before.
///
/// # Errors
/// Where there is no request, or nobody takes the answer.
pub fn answer_trial<R: Runtime, E: std::error::Error>(
    tasks: &Tasks,
    open: impl FnOnce() -> Result<R, E>,
) -> Result<(), ChildError> {
    let mut line = String::new();
    io::stdin().lock().take(REQUEST_BYTES_MAX).read_line(&mut line)?;
    let request = serde_json::from_str(&line).map_err(|error| ChildError::Request(error.to_string()))?;
    tasks.thread("end with server", end_with_stdin)?;
    // Where memory is short this process goes, and not one that serves.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let answer = match open() {
        Ok(runtime) => answer(&runtime, tasks, &request).unwrap_or_else(refused),
        Err(error) => Answer::Refused(error.to_string()),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn refused(error: RuntimeError) -> Answer {
    match error {
        RuntimeError::NoMemoryToLoad(problem) => Answer::NoMemory(problem),
        RuntimeError::Io { source, .. } if source.kind() == io::ErrorKind::OutOfMemory => {
            Answer::NoMemory(source.to_string())
        }
        other => Answer::Refused(other.to_string()),
    }
}

/// Nothing more comes on standard input; at its end nobody waits for an answer any more.
fn end_with_stdin() {
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    // Whatever the other threads do: no destructor runs beside them.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

fn answer(runtime: &dyn Runtime, tasks: &Tasks, request: &Request) -> Result<Answer, RuntimeError> {
    let source = GraphSource {
        file: request.file.clone(),
        text_tower: request.text_tower.clone(),
        folder: request.folder.clone(),
        max_file_bytes: request.max_file_bytes,
    };
    let settings = SessionSettings {
        device: DeviceSettings { device_type: DeviceType::Cpu, ..DeviceSettings::default() },
        optimization_level: request.optimization_level,
        intra_threads: request.intra_threads,
        memory: request.memory,
        // The process as a whole is bounded.
        run_memory: None,
    };
    let mut session = runtime.load(&source, &settings)?;
    if let Some(folder) = &request.run_by {
        run_once(session.as_mut(), tasks, folder);
    }
    let external_files = session.facts().external_files.clone();
    // A crash at the end counts too.
    drop(session);
    Ok(Answer::Passed { external_files })
}

/// One run as a warm-up makes it. That it fails says nothing: a graph may rightly refuse what is made up.
fn run_once(session: &mut dyn crate::runtime::Session, tasks: &Tasks, folder: &Path) {
    let hints = InputHints::read(folder);
    let Some(inputs) = made_up::inputs(session.inputs(), &Size::default(), 1, &hints) else { return };
    let all: Vec<usize> = (0..session.outputs().len()).collect();
    let (interrupt, (done, is_done)) = (Interrupt::new(), mpsc::channel::<()>());
    let switch = interrupt.clone();
    let stop_late = move || {
        if is_done.recv_timeout(RUN_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            switch.fire();
        }
    };
    // Without the thread the limit of the whole trial stands.
    let _ = tasks.thread("stop a long run", stop_late);
    let _ = session.run(&inputs, &all, &interrupt);
    drop(done);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_is_told_from_a_graph_that_is_wrong() {
        let io = |kind: io::ErrorKind| RuntimeError::Io { path: "m".into(), source: kind.into() };
        for error in [io(io::ErrorKind::OutOfMemory), RuntimeError::NoMemoryToLoad("none".to_owned())] {
            assert!(matches!(refused(error), Answer::NoMemory(_)));
        }
        for error in [io(io::ErrorKind::NotFound), RuntimeError::Graph("wrong".to_owned())] {
            let text = error.to_string();
            assert_eq!(refused(error), Answer::Refused(text));
        }
    }
}

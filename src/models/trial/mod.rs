//! Loads a version's files in a process of its own first, so that files which crash ONNX Runtime end that process and not the
//! server.
//!
//! It is done once for these files, this library and these options: [`passed`] remembers in the store what went well. Of what
//! the server itself made of files that passed (optimised graphs, other precisions, what tuning tries) nothing is tried. The
//! process loads on the CPU alone, whatever the model's device: a second copy on a GPU might not fit there, and what reads and
//! optimises a graph is the same. So where the model runs elsewhere, only a crash or a load without end counts. Invariant: no
//! more such processes than loads at a time ([`process`] bounds each in time and memory, [`child`] is what it does).

mod child;
mod passed;
mod process;

pub use child::{ChildError, answer_trial};
pub(super) use passed::PassedPlace;

use super::loader::{self, Job};
use super::{LoadError, ModelManager};
use crate::runtime::{GraphSource, MemorySettings, OptimizationLevel, RuntimeError};
use crate::telemetry::process::available_bytes;
use process::{Ended, Limits};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;

/// `[store] trial_load`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialLoad {
    /// Before files are loaded for the first time.
    #[default]
    First,
    Off,
}

/// The trial that a load begins with.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    /// The most it may take.
    pub(super) time: Duration,
    /// Where it is remembered; `None` = nowhere.
    pub(super) passed: Option<PassedPlace>,
}

/// What the process is to load, as one line on its standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    file: PathBuf,
    text_tower: Option<PathBuf>,
    folder: PathBuf,
    max_file_bytes: u64,
    optimization_level: OptimizationLevel,
    intra_threads: usize,
    memory: MemorySettings,
    /// Whether it also runs with made-up input, and the folder with the files that say what suits it.
    run_by: Option<PathBuf>,
}

/// What it says, as one line on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// They load. What the graph keeps outside of its file, by the paths beside it.
    Passed {
        external_files: Vec<String>,
    },
    /// They do not, without a crash, and why.
    Refused(String),
    NoMemory(String),
}

impl ModelManager {
    /// Loads the job's files in a process of its own, where the job wants that and they are not known to load.
    ///
    /// # Errors
    /// Where they do not load there: what a load would fail with, [`LoadError::Crashed`] or [`LoadError::TooLong`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the process, as `given_up` does.
    pub(super) async fn try_apart(&self, job: &Job, given_up: &CancellationToken) -> Result<(), LoadError> {
        let Some(trial) = &job.trial else { return Ok(()) };
        let (source, settings) = (loader::source(job)?, loader::first_settings(job));
        let is_on_cpu = self.runtime().form_key(&settings.device).is_some();
        let under = format!(
            "{}, ortus {}, {:?}, {:?}",
            self.runtime().version(),
            env!("CARGO_PKG_VERSION"),
            settings.optimization_level,
            settings.memory
        );
        if let Some(place) = trial.passed.clone() {
            let (source, under, name, version) = (source.clone(), under.clone(), job.name.clone(), job.version);
            let knows = move || place.knows((&name, version), &source, &under);
            if self.blocking(knows).await == Some(true) {
                return Ok(());
            }
        }
        let GraphSource { file, text_tower, folder, max_file_bytes } = source.clone();
        let request = Request {
            file,
            text_tower,
            folder,
            max_file_bytes,
            optimization_level: settings.optimization_level,
            intra_threads: settings.intra_threads,
            memory: settings.memory,
            run_by: is_on_cpu.then(|| loader::task_folder(job).to_owned()),
        };
        let (begun, started) = (SystemTime::now(), Instant::now());
        let limits = Limits { time: trial.time, memory: self.blocking(available_bytes).await.flatten() };
        let ended = tokio::select! {
            biased; // A stop comes before an answer.
            () = self.tasks().stopping().cancelled() => return Err(LoadError::Stopping),
            () = given_up.cancelled() => return Err(LoadError::Stopping),
            ended = process::run(&request, &limits) => ended,
        };
        let external_files = match ended {
            Ended::Answered(Answer::Passed { external_files }) => external_files,
            Ended::Answered(Answer::Refused(_) | Answer::NoMemory(_)) if !is_on_cpu => return Ok(()),
            Ended::Answered(Answer::Refused(problem)) => return Err(RuntimeError::Graph(problem).into()),
            Ended::Answered(Answer::NoMemory(problem)) => return Err(RuntimeError::NoMemoryToLoad(problem).into()),
            Ended::Crashed(how) => return Err(LoadError::Crashed { how }),
            Ended::TooLong => return Err(LoadError::TooLong { limit: trial.time }),
            Ended::NotStarted(error) => {
                tracing::warn!(
                    model = %job.name, version = %job.version, error = %error.kind(),
                    "no process could be started to try a model's files out; they are loaded without that"
                );
                return Ok(());
            }
        };
        tracing::debug!(
            model = %job.name, version = %job.version, seconds = started.elapsed().as_secs_f64(),
            "a model's files were tried out"
        );
        if let Some(place) = trial.passed.clone() {
            let (name, version) = (job.name.clone(), job.version);
            let note = move || place.note((&name, version), &source, &external_files, under, begun);
            if let Some(Err(problem)) = self.blocking(note).await {
                tracing::info!(
                    model = %job.name, version = %job.version, problem,
                    "that a model's files load is not remembered, so the next start tries them out again"
                );
            }
        }
        Ok(())
    }
}

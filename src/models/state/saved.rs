//! The runtime of one load: the version's own graph comes from its saved form, or is written on its first load; all else is
//! as the runtime behind it has it.

use crate::runtime::{
    DeviceSettings, FormKey, GraphSource, OptimizationLevel, Runtime, RuntimeError, Session, SessionSettings,
    WrittenGraph,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Where the next session of the graph comes from.
#[derive(Debug, Default)]
pub(super) enum Form {
    /// The model's own files.
    #[default]
    Original,
    /// The same, and what the runtime makes of them is to be written into `folder`.
    Wanted { folder: PathBuf },
    /// `checking` is what it took to find out that the files are whole.
    Saved { folder: PathBuf, graphs: Vec<WrittenGraph>, checking: Duration },
}

/// What a load made.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) folder: PathBuf,
    /// Empty where the graph could not be written: `problem` says why.
    pub(super) graphs: Vec<WrittenGraph>,
    /// One session from the model's own files, writing not counted.
    pub(super) cold: Duration,
    pub(super) problem: Option<String>,
}

/// What is known after the sessions of a load are built.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) built: Option<Built>,
    /// Why the saved form did not load.
    pub(super) problem: Option<String>,
    /// The first session, checking counted, where it came from the saved form.
    pub(super) warm: Option<Duration>,
    /// The same where it did not.
    pub(super) cold: Option<Duration>,
}

/// The form, what came of it so far, and the graph that is loaded in place of the model's own.
type Standing = (Form, Outcome, Option<PathBuf>);

pub(super) struct SavedRuntime {
    runtime: Arc<dyn Runtime>,
    source: GraphSource,
    /// The level that is saved.
    level: Mutex<OptimizationLevel>,
    /// A std mutex: held for a look, never across a load.
    state: Mutex<Standing>,
}

impl SavedRuntime {
    pub(super) fn new(runtime: Arc<dyn Runtime>, source: GraphSource, level: OptimizationLevel) -> SavedRuntime {
        SavedRuntime { runtime, source, level: Mutex::new(level), state: Mutex::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Standing) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on sessions of this level are the saved ones.
    pub(super) fn set_level(&self, level: OptimizationLevel) {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
    }

    pub(super) fn level(&self) -> OptimizationLevel {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, form: Form) {
        self.with(|(now, ..)| *now = form);
    }

    /// From here on `file` is loaded in place of the model's own graph, and what the runtime makes of it is written into
    /// `folder`. Gives what was written of the other.
    pub(super) fn replace(&self, file: PathBuf, folder: PathBuf) -> Option<Built> {
        self.with(|(form, outcome, instead)| {
            *instead = Some(file);
            *form = Form::Wanted { folder };
            outcome.built.take()
        })
    }

    /// From here on `file` is loaded in place of the model's own graph at any level, and goes with the last who loads by this.
    pub(super) fn serve_instead(&self, file: PathBuf) {
        self.with(|(form, _, instead)| {
            *form = Form::Original;
            *instead = Some(file);
        });
    }

    /// The model's own graph is loaded again where the saved form does not load; gives what was loaded in its place.
    pub(super) fn restore(&self) -> Option<PathBuf> {
        self.with(|(.., instead)| instead.take())
    }

    /// Where the graph is that is loaded for the model's own.
    fn present(&self, source: &GraphSource) -> GraphSource {
        match self.with(|(.., instead)| instead.clone()) {
            Some(file) => {
                let folder = file.parent().unwrap_or(&source.folder).to_owned();
                GraphSource { file, folder, ..source.clone() }
            }
            None => source.clone(),
        }
    }

    /// What came of the load so far. Nothing is written from here on.
    pub(super) fn take(&self) -> Outcome {
        self.with(|(form, outcome, _)| {
            if let Form::Wanted { folder } = form {
                // Nothing was loaded that could be written.
                crate::models::swap::remove(folder);
                *form = Form::Original;
            }
            std::mem::take(outcome)
        })
    }

    fn is_own(&self, source: &GraphSource, settings: &SessionSettings) -> bool {
        source.file == self.source.file
            && source.text_tower == self.source.text_tower
            && settings.optimization_level == self.level()
    }

    fn load_and_write(
        &self,
        source: &GraphSource,
        settings: &SessionSettings,
        folder: PathBuf,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        let started = Instant::now();
        let (session, built) = match self.runtime.load_writing(source, settings, &folder) {
            Ok((session, graphs)) => {
                let cold = started.elapsed().saturating_sub(writing_time(&folder));
                (session, Built { folder, graphs, cold, problem: None })
            }
            Err(error) => {
                let again = Instant::now();
                let session = self.runtime.load(source, settings)?;
                tracing::debug!(%error, "an optimised graph could not be written");
                let problem = Some(format!("the optimised graph could not be written: {error}"));
                (session, Built { folder, graphs: Vec::new(), cold: again.elapsed(), problem })
            }
        };
        self.with(|(_, outcome, _)| {
            outcome.cold = Some(built.cold);
            outcome.built = Some(built);
        });
        Ok(session)
    }
}

/// How long the files in a folder were being written: from the birth of the first to the last change, as far as the file
/// system tells.
fn writing_time(folder: &Path) -> Duration {
    let files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).collect();
    let files: Vec<_> = files.iter().filter_map(|file| file.metadata().ok()).collect();
    let born: Option<SystemTime> = files.iter().filter_map(|file| file.created().ok()).min();
    let last = files.iter().filter_map(|file| file.modified().ok()).max();
    born.zip(last).and_then(|(born, last)| last.duration_since(born).ok()).unwrap_or_default()
}

impl Drop for SavedRuntime {
    fn drop(&mut self) {
        // A load that failed leaves nothing.
        if let Some(built) = self.take().built {
            crate::models::swap::remove(&built.folder);
        }
        if let Some(folder) = self.restore().as_deref().and_then(Path::parent) {
            crate::models::swap::remove(folder);
        }
    }
}

impl Runtime for SavedRuntime {
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        if !self.is_own(source, settings) {
            let is_other_level = source.file == self.source.file && source.text_tower == self.source.text_tower;
            return match is_other_level {
                true => self.runtime.load(&self.present(source), settings),
                false => self.runtime.load(source, settings),
            };
        }
        let saved = self.with(|(form, ..)| match form {
            Form::Saved { folder, graphs, checking } => Some((folder.clone(), graphs.clone(), *checking)),
            Form::Original | Form::Wanted { .. } => None,
        });
        if let Some((folder, graphs, checking)) = saved {
            let started = Instant::now();
            match self.runtime.load_written(&folder, &graphs, settings) {
                Ok(session) => {
                    self.with(|(_, outcome, _)| outcome.warm.get_or_insert(checking + started.elapsed()).to_owned());
                    return Ok(session);
                }
                Err(error) => self.with(|(form, outcome, _)| {
                    *form = Form::Original;
                    outcome.warm = None;
                    outcome.problem = Some(format!("its graph cannot be loaded: {error}"));
                }),
            }
        }
        let wanted = self.with(|(form, ..)| match std::mem::take(form) {
            Form::Wanted { folder } => Some(folder),
            other => {
                *form = other;
                None
            }
        });
        let source = &self.present(source);
        match wanted {
            Some(folder) => self.load_and_write(source, settings, folder),
            None => {
                let started = Instant::now();
                let session = self.runtime.load(source, settings)?;
                self.with(|(_, outcome, _)| outcome.cold.get_or_insert(started.elapsed()).to_owned());
                Ok(session)
            }
        }
    }

    fn load_profiled(
        &self,
        source: &GraphSource,
        settings: &SessionSettings,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        self.runtime.load_profiled(source, settings)
    }

    fn size_bytes(&self, source: &GraphSource) -> Result<u64, RuntimeError> {
        self.runtime.size_bytes(source)
    }

    fn form_key(&self, device: &DeviceSettings) -> Option<FormKey> {
        self.runtime.form_key(device)
    }

    fn give_back(&self) {
        self.runtime.give_back();
    }

    fn version(&self) -> &str {
        self.runtime.version()
    }
}

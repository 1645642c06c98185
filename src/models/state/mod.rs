//! What a load finds out of a version and the next one need not: the graph as the runtime optimised it, and measurements.
//!
//! A [`Keeper`] stands by a load: it looks for a saved state, gives the runtime whose sessions come from it ([`saved`]), and
//! saves what there is to save at the end. Invariants: a state is reused only where the graph's files, the versions of this
//! program and of its runtime, the processor, the device and the level are what they were; whatever of it fails is discarded
//! with a line in the log, and the model is loaded from its own files; a load never fails because of a state. Blocks.

mod disk;
mod engines;
mod quantized;
mod report;
mod saved;

pub use quantized::Quantization;
pub use report::{Optimization, OptimizationState};

pub(super) use disk::OriginalFile;
pub(super) use engines::{Begun, Engines};
pub(super) use quantized::Samples;

use super::{Layout, ModelName, ModelSettings, Setup, StoreSettings, Tuned, Version, swap};
use crate::rewrite::{Fp16Options, QuantizeOptions, Rewriting};
use crate::runtime::{DeviceSettings, GraphSource, Interrupt, OptimizationLevel, Runtime, Session, WrittenGraph};
use disk::{FORMAT, Kept, State};
use saved::{Form, SavedRuntime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Below this there is nothing to save: a tiny graph is optimised and built in less time than a file is written.
const WORTH_SAVING: Duration = Duration::from_millis(20);

/// The part of the time without a state that a load from it may take at most to be worth its place on the disk.
const QUICKER: f64 = 0.8;

/// The name under which a [`Tuned`] is kept.
pub(super) const TUNED: &str = "tuned";

/// Where the states of a store are, and whether this process may write them.
#[derive(Debug, Clone)]
pub(super) struct StatePlace {
    root: PathBuf,
    /// `None` where `root` is the user's own choice.
    models_dir: Option<PathBuf>,
    reserve_bytes: u64,
    /// Only the process that serves a store writes to it.
    writes: bool,
}

impl StatePlace {
    pub(super) fn of(store: &StoreSettings, writes: bool) -> StatePlace {
        let (root, models_dir) = match &store.optimized_dir {
            Some(folder) => (folder.clone(), None),
            None => (store.models_dir.join(".ortus").join("optimized"), Some(store.models_dir.clone())),
        };
        StatePlace { root, models_dir, reserve_bytes: store.reserve_bytes, writes }
    }

    fn folder(&self, model: &ModelName, version: Version) -> PathBuf {
        self.root.join(model.as_str()).join(version.to_string())
    }

    /// The root, made where it is not there.
    fn made(&self) -> io::Result<&Path> {
        match &self.models_dir {
            Some(models_dir) => swap::own_folder(models_dir, "optimized").map(|_| ())?,
            None => std::fs::create_dir_all(&self.root)?,
        }
        Ok(&self.root)
    }

    /// Removes the states of a model, or of one of its versions.
    pub(super) fn forget(&self, model: &ModelName, version: Option<Version>) {
        disk::forget(&self.root, model, version);
    }

    /// Removes what is of no use any more: what was cut off, and the states of what `is_there` does not know.
    pub(super) fn clean(&self, is_there: impl Fn(&ModelName, Option<Version>) -> bool) {
        disk::clean(&self.root, is_there);
    }

    /// The bytes of a version's graph and its data, where a state tells and nobody has touched the files since.
    pub(super) fn known_size(&self, model: &ModelName, version: Version, source: &GraphSource) -> Option<u64> {
        let state = disk::read(&self.folder(model, version)).ok()??;
        let is_of = state.graphs.len() == 1 + usize::from(source.text_tower.is_some()) && state.is_of(source);
        let is_untouched = || state.originals.iter().all(|file| file.is_untouched(&source.folder));
        (is_of && is_untouched()).then(|| state.graphs.iter().map(|graph| graph.facts.size_bytes).sum())
    }
}

impl State {
    /// Whether it was made of these graphs, whatever they hold.
    fn is_of(&self, source: &GraphSource) -> bool {
        are_of(&self.originals, source)
    }
}

/// Whether these files are of these graphs, whatever they hold.
fn are_of(originals: &[OriginalFile], source: &GraphSource) -> bool {
    let sources = std::iter::once(&source.file).chain(&source.text_tower);
    sources.into_iter().all(|file| {
        file.strip_prefix(&source.folder).is_ok_and(|path| originals.iter().any(|known| known.path == path))
    })
}

/// Stands by one load.
pub(super) struct Keeper {
    model: ModelName,
    version: Version,
    place: Option<StatePlace>,
    source: GraphSource,
    device: DeviceSettings,
    level: OptimizationLevel,
    runtime: Arc<SavedRuntime>,
    begun: SystemTime,
    /// What of an earlier state counts on.
    measured: BTreeMap<String, Kept>,
    found: BTreeMap<String, Kept>,
    reused: Option<State>,
    /// Why there is no state, or none any more.
    reason: Option<String>,
    off: Option<&'static str>,
    /// Whether the graph is to be tried with products of eight bits.
    quantizes: bool,
    quantization: Option<Quantization>,
    /// Where a graph of 16 bits may lie while it serves; `None` where nothing may be written.
    halves_in: Option<StatePlace>,
    halved: Option<Quantization>,
    /// The model's files, where another graph is loaded in their place.
    originals: Option<Vec<PathBuf>>,
}

impl Keeper {
    /// Looks for the state of a version; one that does not fit is discarded.
    pub(super) fn open(
        (model, version): (&ModelName, Version),
        place: Option<&StatePlace>,
        runtime: &Arc<dyn Runtime>,
        source: &GraphSource,
        settings: &ModelSettings,
    ) -> Keeper {
        let (device, level) = (&settings.device, settings.optimization_level);
        let begun = SystemTime::now();
        let key = runtime.form_key(device);
        let is_onnx = |file: &PathBuf| file.extension().is_none_or(|extension| extension != "ort");
        let off = match (place, &key) {
            (None, _) => Some("nothing is kept of such a load"),
            _ if level == OptimizationLevel::None => Some("optimisation is off"),
            (_, None) => Some("nothing is kept for this device"),
            _ if !is_onnx(&source.file) => Some("the model file is ONNX Runtime's own form already"),
            (Some(_), Some(_)) => None,
        };
        let mut keeper = Keeper {
            model: model.clone(),
            version,
            place: place.filter(|_| off.is_none()).cloned(),
            source: source.clone(),
            device: device.clone(),
            level,
            runtime: Arc::new(SavedRuntime::new(runtime.clone(), source.clone(), level)),
            begun,
            measured: BTreeMap::new(),
            found: BTreeMap::new(),
            reused: None,
            reason: None,
            off,
            quantizes: settings.enable_quantization && source.text_tower.is_none() && off.is_none(),
            quantization: None,
            halves_in: place.filter(|place| place.writes).cloned(),
            halved: None,
            originals: None,
        };
        let Some(place) = keeper.place.clone() else { return keeper };
        let (folder, started) = (place.folder(model, version), Instant::now());
        match disk::read(&folder).and_then(|state| state.map(|state| keeper.check(&folder, state)).transpose()) {
            Ok(Some(state)) => {
                if !state.graphs.is_empty() {
                    let graphs = state.graphs.clone();
                    keeper.runtime.set(Form::Saved { folder, graphs, checking: started.elapsed() });
                }
                keeper.runtime.set_level(state.graph_level.unwrap_or(level));
                keeper.reason.clone_from(&state.not_written);
                keeper.measured.clone_from(&state.measured);
                keeper.quantization.clone_from(&state.quantization);
                keeper.reused = Some(state);
            }
            Ok(None) => {}
            Err(reason) => keeper.discard(&reason),
        }
        if keeper.reused.is_none() && place.writes {
            keeper.prepare(&place);
        }
        keeper
    }

    /// Has the next load write the graph.
    fn prepare(&mut self, place: &StatePlace) {
        match place.made().and_then(disk::begin) {
            Ok(folder) => self.runtime.set(Form::Wanted { folder }),
            Err(error) => self.cannot_write(&error),
        }
    }

    fn cannot_write(&mut self, error: &io::Error) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = %error.kind(),
                "no optimised state can be kept; make the store writable or set [optimization] cache_dir, or each start \
                 optimises and measures anew"
            );
        }
        self.reason = Some(format!("its place cannot be written: {}", error.kind()));
    }

    /// # Errors
    /// What does not agree.
    fn check(&self, folder: &Path, state: State) -> Result<State, String> {
        let now = (FORMAT, env!("CARGO_PKG_VERSION"));
        if (state.format, state.ortus.as_str()) != now {
            return Err(format!("it was made by version {} of this program", state.ortus));
        }
        let key = self.runtime.form_key(&self.device);
        if let Some(difference) = key.and_then(|now| state.form.difference(&now)) {
            return Err(difference);
        }
        if state.level != self.level {
            return Err("the optimisation level is another".to_owned());
        }
        if self.quantizes != state.quantization.is_some() {
            return Err("enable_quantization has changed".to_owned());
        }
        let graphs = 1 + usize::from(self.source.text_tower.is_some());
        if !(state.graphs.is_empty() || state.graphs.len() == graphs) || !state.is_of(&self.source) {
            return Err("it is of another graph".to_owned());
        }
        if let Some(changed) = state.originals.iter().find(|file| !file.is_same(&self.source.folder)) {
            return Err(format!("{} has changed", changed.path.display()));
        }
        state.written.iter().try_for_each(|file| file.check(folder))?;
        Ok(state)
    }

    fn discard(&mut self, reason: &str) {
        tracing::info!(model = %self.model, version = %self.version, reason, "a saved optimised state is discarded");
        self.reason = Some(reason.to_owned());
        self.reused = None;
        self.measured.clear();
        self.quantization = None;
        if let Some(place) = self.place.as_ref().filter(|place| place.writes) {
            disk::discard(&place.root, &place.folder(&self.model, self.version));
        }
    }

    /// Loads the version's graph from its state where there is one, and as the runtime itself does all others.
    pub(super) fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    /// What an earlier load measured, where that was `under` the same circumstances.
    pub(super) fn measured<T: DeserializeOwned>(&self, name: &str, under: &str) -> Option<T> {
        let kept = self.measured.get(name).filter(|kept| kept.under == under)?;
        serde_json::from_value(kept.found.clone()).ok()
    }

    /// The setup that an earlier load was tuned to under these settings, so that it is loaded at once.
    pub(super) fn tuned_setup(&self, settings: &ModelSettings) -> Option<Setup> {
        let kept = self.measured.get(TUNED)?;
        let begins = format!("{} cores, None, ({settings:?}, ", crate::tasks::cores());
        kept.under.starts_with(&begins).then(|| self.tuned()).flatten().map(|tuned| tuned.chosen.setup)
    }

    /// What tuning found, at this load or an earlier one.
    fn tuned(&self) -> Option<Tuned> {
        let kept = self.found.get(TUNED).or_else(|| self.measured.get(TUNED))?;
        serde_json::from_value(kept.found.clone()).ok()
    }

    /// The level that is saved.
    pub(super) fn graph_level(&self) -> OptimizationLevel {
        self.runtime.level()
    }

    /// Has the graph saved at `level`, which tuning chose, so that the next start takes it from there: `load` loads a session of
    /// that level by [`Keeper::runtime`]. What was saved of another level goes when it is there.
    pub(super) fn move_to(&mut self, level: OptimizationLevel, load: impl FnOnce() -> Result<(), String>) {
        let is_quantized = self.quantization.as_ref().is_some_and(|found| found.adopted);
        let Some(place) = self.place.clone().filter(|place| place.writes) else { return };
        // Without optimisation there is nothing to save; what was tried for its answers is of the settings' level.
        if level == OptimizationLevel::None || level == self.runtime.level() || is_quantized {
            return;
        }
        if let Some(built) = self.runtime.take().built {
            swap::remove(&built.folder);
        }
        for (name, kept) in self.reused.take().into_iter().flat_map(|state| state.measured) {
            self.found.entry(name).or_insert(kept);
        }
        self.runtime.set_level(level);
        self.prepare(&place);
        if let Err(problem) = load() {
            tracing::info!(model = %self.model, version = %self.version, problem, "the graph of the tuned level is not saved");
        }
    }

    /// Keeps a measurement for the next load.
    pub(super) fn keep(&mut self, name: &str, under: &str, found: &impl Serialize) {
        if let Ok(found) = serde_json::to_value(found) {
            self.found.insert(name.to_owned(), Kept { under: under.to_owned(), found });
        }
    }

    /// Whether [`Keeper::quantize`] has something to find out.
    pub(super) fn may_quantize(&self) -> bool {
        self.quantizes && self.quantization.is_none() && self.place.as_ref().is_some_and(|place| place.writes)
    }

    /// Tries the graph with products of eight bits beside `original`, a session of it. Where that is better, all sessions that
    /// [`Keeper::runtime`] loads from here on are of it: those that there are have to be loaded again.
    pub(super) fn quantize(
        &mut self,
        original: &mut dyn Session,
        samples: &Samples,
        load: &quantized::Load<'_>,
        interrupt: &Interrupt,
    ) -> bool {
        let Some(place) = self.place.clone() else { return false };
        let folder = match place.made().and_then(disk::begin) {
            Ok(folder) => folder,
            Err(error) => {
                self.cannot_write(&error);
                return false;
            }
        };
        let mut found = {
            let rewriting = Rewriting::Int8(QuantizeOptions::here());
            quantized::try_beside(original, &self.source, (&folder, &rewriting), samples, load, interrupt)
        };
        if interrupt.is_fired() {
            found.adopted = false;
        }
        tracing::info!(
            model = %self.model, version = %self.version, adopted = found.adopted, speed = found.speed,
            cosine = found.cosine, reason = found.reason, "the graph was tried with products of eight bits"
        );
        let begun = if found.adopted { place.made().and_then(disk::begin).ok() } else { None };
        let Some(begun) = begun else {
            found.adopted = false;
            // One that was stopped says nothing of the next.
            self.quantization = (!interrupt.is_fired()).then_some(found);
            swap::remove(&folder);
            return false;
        };
        if let Some(built) = self.runtime.replace(folder.join(quantized::FILE), begun) {
            self.originals = self.originals_of(&built.graphs);
            swap::remove(&built.folder);
        }
        self.quantization = Some(found);
        true
    }

    /// Tries the graph with numbers of 16 bits beside `original`, a session of it on a GPU. Where that is better, it is loaded in the
    /// graph's place for as long as anybody loads by [`Keeper::runtime`]; sessions that there are have to be loaded again. It is made
    /// and tried at each load: nothing is kept for a GPU.
    pub(super) fn halve(
        &mut self,
        original: &mut dyn Session,
        samples: &Samples,
        load: &quantized::Load<'_>,
        interrupt: &Interrupt,
    ) -> bool {
        let Some(place) = &self.halves_in else { return false };
        let folder = match place.made().and_then(disk::begin) {
            Ok(folder) => folder,
            Err(error) => {
                self.cannot_write(&error);
                return false;
            }
        };
        let rewriting = Rewriting::Fp16(Fp16Options::default());
        let mut found = quantized::try_beside(original, &self.source, (&folder, &rewriting), samples, load, interrupt);
        found.adopted &= !interrupt.is_fired();
        tracing::info!(
            model = %self.model, version = %self.version, adopted = found.adopted, speed = found.speed,
            cosine = found.cosine, reason = found.reason, "the graph was tried with numbers of 16 bits"
        );
        let is_adopted = found.adopted;
        if is_adopted {
            self.runtime.serve_instead(folder.join(quantized::FILE));
        } else {
            swap::remove(&folder);
        }
        self.halved = Some(found);
        is_adopted
    }

    /// The model's files, relative to its folder.
    fn originals_of(&self, graphs: &[WrittenGraph]) -> Option<Vec<PathBuf>> {
        let sources = std::iter::once(&self.source.file).chain(&self.source.text_tower).map(PathBuf::as_path);
        // What a graph keeps outside is not known where none was read, so nothing would tell when that changes.
        if graphs.is_empty() {
            return None;
        }
        disk::originals(&self.source.folder, sources.zip(graphs.iter().map(|graph| &graph.facts)))
    }

    /// Saves what there is to save, and says what became of it. `again` loads one more session by [`Keeper::runtime`], says how
    /// long that took, and fails where it does not answer as the others do.
    pub(super) fn finish(mut self, again: impl FnOnce() -> Result<Duration, String>) -> Optimization {
        let mut outcome = self.runtime.take();
        if let Some(problem) = outcome.problem.take() {
            // It was checked, and is of no use all the same.
            self.discard(&problem);
        }
        let place = self.place.clone().filter(|place| place.writes);
        if let (Some(state), Some(place)) = (&self.reused, &place) {
            let mut renewed = state.clone();
            renewed.measured.extend(self.found.clone());
            if renewed != *state {
                let folder = place.folder(&self.model, self.version);
                let report = report::report(&self.model, self.version, &renewed);
                if let Err(error) = disk::update(&folder, &renewed, &report) {
                    self.cannot_write(&error);
                }
            }
        }
        let mut fresh = None;
        if let (None, Some(place), Some(built)) = (&self.reused, &place, outcome.built.take()) {
            let begun = built.folder.clone();
            match self.save(place, built, again) {
                Ok(state) => fresh = state,
                Err(error) => self.cannot_write(&error),
            }
            // Nothing where it has come to its place.
            swap::remove(&begun);
        }
        let serves_instead = self.halved.as_ref().is_some_and(|found| found.adopted);
        if !serves_instead && let Some(folder) = self.runtime.restore().as_deref().and_then(Path::parent) {
            swap::remove(folder);
        }
        let state = self.reused.as_ref().or(fresh.as_ref());
        self.summary(state, outcome.warm, outcome.cold)
    }

    /// Writes the state; `None` where there is nothing worth it.
    fn save(
        &mut self,
        place: &StatePlace,
        built: saved::Built,
        again: impl FnOnce() -> Result<Duration, String>,
    ) -> io::Result<Option<State>> {
        let folder = built.folder.clone();
        let mut not_written = built.problem.clone();
        let (mut written, mut warm, mut graphs) = (Vec::new(), None, built.graphs.clone());
        let is_quantized = self.quantization.as_ref().is_some_and(|found| found.adopted);
        if not_written.is_none() && built.cold < WORTH_SAVING && !is_quantized {
            not_written = Some("it is optimised and built in no time".to_owned());
        }
        if not_written.is_none() {
            written = disk::written_files(&folder)?;
            let bytes: u64 = written.iter().map(|file| file.bytes).sum();
            if crate::hub::check_space(&folder, 0, place.reserve_bytes).is_err() {
                not_written = Some(format!("the disk is short of space; it takes {bytes} bytes"));
            }
        }
        if not_written.is_none() {
            let started = Instant::now();
            let checked = written.iter().try_for_each(|file| file.check(&folder));
            let checking = started.elapsed();
            self.runtime.set(Form::Saved { folder: folder.clone(), graphs: graphs.clone(), checking });
            let time = checked.and_then(|()| again()).map(|time| checking + time);
            self.runtime.set(Form::Original);
            warm = time.as_ref().ok().copied();
            not_written = match (self.runtime.take().problem, time) {
                (Some(problem), _) | (None, Err(problem)) => Some(problem),
                (None, Ok(time)) if !is_quantized && time.as_secs_f64() > built.cold.as_secs_f64() * QUICKER => {
                    Some("loading it from a saved graph would not be quicker".to_owned())
                }
                (None, Ok(_)) => None,
            };
        }
        let paths = self.originals.take().or_else(|| self.originals_of(&graphs));
        if not_written.is_some() {
            for file in written.drain(..) {
                std::fs::remove_file(folder.join(file.name))?;
            }
            for file in std::fs::read_dir(&folder)? {
                std::fs::remove_file(file?.path())?;
            }
            graphs.clear();
        }
        self.reason = match (self.reason.take(), not_written.clone()) {
            (Some(discarded), Some(problem)) => Some(format!("{discarded}; not saved again: {problem}")),
            (discarded, problem) => problem.or(discarded),
        };
        let Some(paths) = paths else { return Ok(None) };
        let is_empty = graphs.is_empty() && self.found.is_empty() && self.quantization.is_none();
        // A graph that serves and is not saved is made and tried again.
        if is_empty || (graphs.is_empty() && is_quantized) {
            return Ok(None);
        }
        let Some(form) = self.runtime.form_key(&self.device) else { return Ok(None) };
        let read = paths.into_iter().map(|path| OriginalFile::read(&self.source.folder, path));
        let originals = read.collect::<io::Result<Vec<_>>>()?;
        if originals.iter().any(|file| !file.is_older_than(self.begun)) {
            self.reason = Some("the model's files were changed while it was loaded".to_owned());
            return Ok(None);
        }
        let state = State {
            format: FORMAT,
            ortus: env!("CARGO_PKG_VERSION").to_owned(),
            form,
            level: self.level,
            graph_level: Some(self.runtime.level()).filter(|level| *level != self.level),
            originals,
            graphs,
            written,
            cold_load_ms: report::milliseconds(built.cold),
            warm_load_ms: warm.map(report::milliseconds),
            not_written,
            quantization: self.quantization.clone(),
            measured: std::mem::take(&mut self.found),
        };
        let report = report::report(&self.model, self.version, &state);
        let folder = disk::put(&place.root, (&self.model, self.version), &folder, &state, &report)?;
        if !state.graphs.is_empty() {
            // What is loaded in the place of a session that hangs.
            self.runtime.set(Form::Saved { folder, graphs: state.graphs.clone(), checking: Duration::ZERO });
        }
        tracing::info!(
            model = %self.model, version = %self.version, cold_load_ms = state.cold_load_ms,
            warm_load_ms = state.warm_load_ms, bytes = state.written.iter().map(|file| file.bytes).sum::<u64>(),
            "the optimised state is saved"
        );
        Ok(Some(state))
    }

    fn summary(&self, state: Option<&State>, warm: Option<Duration>, cold: Option<Duration>) -> Optimization {
        let is_reused = self.reused.is_some();
        let graphs = state.map(|state| state.graphs.as_slice()).unwrap_or_default();
        let count = |operators: &BTreeMap<String, u64>| operators.values().sum::<u64>();
        Optimization {
            state: match (self.off, is_reused) {
                (Some(_), _) => OptimizationState::Off,
                (None, true) => OptimizationState::Reused,
                (None, false) => OptimizationState::Fresh,
            },
            reason: self.off.map(str::to_owned).or(self.reason.clone()),
            level: self.level,
            saved: state.is_some() && self.place.is_some(),
            cold_load_ms: cold.map(report::milliseconds).or(state.map(|state| state.cold_load_ms)),
            warm_load_ms: warm.map(report::milliseconds).or(state.and_then(|state| state.warm_load_ms)),
            nodes: (!graphs.is_empty()).then(|| {
                (
                    graphs.iter().map(|graph| count(&graph.facts.operators)).sum(),
                    graphs.iter().map(|graph| count(&graph.operators)).sum(),
                )
            }),
            saved_bytes: state.map(|state| state.written.iter().map(|file| file.bytes).sum()),
            quantization: self.quantization.clone(),
            halved: self.halved.clone(),
            graph_level: Some(self.runtime.level()).filter(|level| *level != self.level),
            tuned: self.tuned().or_else(|| {
                let kept = state.and_then(|state| state.measured.get(TUNED))?;
                serde_json::from_value(kept.found.clone()).ok()
            }),
            measurements: self.reused.iter().flat_map(|state| state.measured.keys().cloned()).collect(),
        }
    }
}

/// What a measurement of a load depends on besides the graph: `settings` as they were asked for, and the machine's cores.
pub(super) fn circumstances(settings: &impl std::fmt::Debug, layout: Option<Layout>) -> String {
    format!("{} cores, {layout:?}, {settings:?}", crate::tasks::cores())
}

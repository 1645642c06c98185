//! Does it: inputs, variants one after another, each timed by turns with the original, and the adoption of the best.

use super::inputs::{self, Inputs};
use super::report::{Adopted, Figures, InputsUsed, Report, Time, TuneReport, VariantReport};
use super::variant::{self, NotMade, Scratch, internal};
use super::{Objective, OptimizeError, OptimizeRequest, Origin, Precision};
use crate::downloads::{Adoption, Downloads};
use crate::engine::{self, BareSession, InferenceEngine, LoadedModel, ModelName, TuneRequest, Version};
use crate::hub::WorkFolder;
use crate::rewrite::{
    CalibrationError, Compared, QuantizeOptions, Ranges, Rewritten, Trial, calibrate, compare, decide_within,
    rows_per_second, speed,
};
use crate::runtime::{Interrupt, RuntimeError};
use crate::tasks::{Progress, Tasks};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Steps of a variant, for the progress: made, measured.
const STEPS: u64 = 2;

/// Optimises models of one store. Clones are the same.
#[derive(Clone)]
pub struct Optimizer(Arc<Inner>);

struct Inner {
    engine: InferenceEngine,
    downloads: Downloads,
    tasks: Tasks,
    /// Folders of work lie here.
    root: PathBuf,
    /// Held by the one that works: two would measure each other. An async mutex: it is held for minutes.
    turn: Arc<Mutex<()>>,
}

impl Optimizer {
    /// For the store at `models_dir`. Nothing is read or written before the first request.
    pub fn new(engine: InferenceEngine, downloads: Downloads, models_dir: &Path, tasks: Tasks) -> Optimizer {
        let root = models_dir.join(".ortus").join("optimizing");
        Optimizer(Arc::new(Inner { engine, downloads, tasks, root, turn: Arc::default() }))
    }

    /// Removes what a killed process left, before anything is made. Blocks no one; what another process works on stays.
    pub fn start(&self) {
        let inner = self.0.clone();
        // Taken here: a job that goes on where it was killed would else be first, and work for minutes beside what it left.
        let turn = inner.turn.clone().try_lock_owned();
        drop(self.0.tasks.spawn("clean up after optimisations", async move {
            let _turn = match turn {
                Ok(turn) => turn,
                Err(_) => inner.turn.clone().lock_owned().await,
            };
            let root = inner.root.clone();
            // A process that ends first leaves it to the next one.
            let _ = inner
                .tasks
                .spawn_blocking(move || {
                    WorkFolder::clean(&root, Duration::ZERO);
                    // Fails where it is not there, or another process works in it.
                    let _ = std::fs::remove_dir(&root);
                })
                .await;
        }));
    }

    /// Tries what `request` asks for. `progress` counts steps. Ends soon after `cancel` fires, and leaves nothing then.
    ///
    /// # Errors
    /// Where the model is not there or not ready, no variant can be made, or the best one cannot be adopted.
    ///
    /// # Cancel safety
    /// Dropping the future stops the run in progress; a variant may then be adopted or not.
    pub async fn optimise(
        &self,
        name: &ModelName,
        request: OptimizeRequest,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Report, OptimizeError> {
        let inner = &self.0;
        let _turn = tokio::select! {
            biased; // Whoever does not want it any more is heard first.
            () = cancel.cancelled() => return Err(OptimizeError::Cancelled),
            turn = inner.turn.lock() => turn,
        };
        let model = inner.engine.model(name, request.version).await?;
        if model.source.text_tower.is_some() {
            return Err(OptimizeError::Unsuitable("the model is a pair of graphs; optimise each file by itself"));
        }
        let scratch = Scratch::new(&inner.root, &inner.tasks).await?;
        let work = Work { inner: inner.clone(), model, request, progress, cancel, scratch: scratch.clone() };
        let result = work.carry_out().await;
        scratch.remove().await;
        result
    }
}

/// One request at work.
struct Work<'a> {
    inner: Arc<Inner>,
    model: Arc<LoadedModel>,
    request: OptimizeRequest,
    progress: &'a Progress,
    cancel: &'a CancellationToken,
    scratch: Scratch,
}

impl Work<'_> {
    async fn carry_out(mut self) -> Result<Report, OptimizeError> {
        let tune_alone = self.request.tune && self.request.precisions.is_empty();
        self.progress.add_total(1 + u64::from(self.request.tune));
        let (inputs, variants) = match tune_alone {
            true => (InputsUsed { origin: Origin::MadeUp, count: 0 }, Vec::new()),
            false => self.try_all().await?,
        };
        let mut report = Report {
            model: self.model.name.clone(),
            version: self.model.version,
            device: self.model.facts.device.clone(),
            threads: self.model.intra_threads,
            objective: self.request.objective,
            bounds: self.request.bounds,
            inputs,
            variants,
            adopted: None,
            tuned: None,
            why: String::new(),
        };
        self.check_cancelled()?;
        let Work { inner, model, request, progress, cancel, scratch } = self;
        // The load of the next version waits until the one before has gone.
        drop(model);
        match tune_alone {
            true => report.why = "no variant was asked for".to_owned(),
            false => conclude(&inner, &request, &scratch, &mut report).await?,
        }
        progress.add_done(1);
        // What was adopted stays, whether or not there is time for this.
        if request.tune && !cancel.is_cancelled() {
            report.tuned = Some(tune(&inner, &request, &report).await);
            progress.add_done(1);
        }
        Ok(report)
    }

    /// Makes and measures every variant.
    async fn try_all(&mut self) -> Result<(InputsUsed, Vec<VariantReport>), OptimizeError> {
        let given = std::mem::take(&mut self.request.inputs);
        let inputs = Arc::new(inputs::gather(&self.inner.engine, &self.model, given).await?);
        let precisions = match self.request.precisions.as_slice() {
            [] => Precision::suiting(&self.model.facts.device, inputs.origin != Origin::MadeUp),
            asked => asked.to_vec(),
        };
        self.progress.add_total(precisions.len() as u64 * STEPS);
        let mut original = Some(self.inner.engine.bare_session(&self.model).await?);
        let mut variants = Vec::new();
        for precision in precisions {
            self.check_cancelled()?;
            let outcome = self.try_one(precision, &inputs, &mut original).await?;
            variants.push(VariantReport { precision, outcome });
        }
        if variants.iter().all(|variant| variant.outcome.is_err()) {
            let reasons = variants.into_iter().map(|one| (one.precision.name(), one.reason()));
            return Err(OptimizeError::NoVariant(reasons.collect()));
        }
        Ok((InputsUsed { origin: inputs.origin, count: inputs.compared.len() }, variants))
    }

    fn check_cancelled(&self) -> Result<(), OptimizeError> {
        if self.cancel.is_cancelled() { Err(OptimizeError::Cancelled) } else { Ok(()) }
    }

    /// Makes one variant and measures it; its own failure is its outcome. The original comes back.
    async fn try_one(
        &self,
        precision: Precision,
        inputs: &Arc<Inputs>,
        original: &mut Option<BareSession>,
    ) -> Result<Result<Figures, String>, OptimizeError> {
        let ranges = match precision {
            Precision::StaticInt8 => match self.calibrate(inputs).await? {
                Ok(ranges) => Some(ranges),
                Err(problem) => {
                    self.progress.add_done(STEPS);
                    return Ok(Err(problem));
                }
            },
            Precision::Fp16 | Precision::Int8 | Precision::Int4 => None,
        };
        let calibrated_on = ranges.as_ref().map(|_| inputs.origin);
        let (graph, rewritten) = match self.make(precision, ranges).await? {
            Ok(made) => made,
            Err(problem) => {
                self.progress.add_done(STEPS);
                return Ok(Err(problem));
            }
        };
        self.progress.add_done(1);
        self.check_cancelled()?;
        let variant = match self.inner.engine.bare_variant(&self.model, graph).await {
            Ok(session) => session,
            Err(error) => {
                self.progress.add_done(1);
                return Ok(Err(format!("it cannot be loaded: {error}")));
            }
        };
        let measured = self.measure(inputs, original, variant).await?;
        self.progress.add_done(1);
        let Compared { original, mut variants } = measured;
        let outcome = match variants.pop() {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => return Ok(Err(format!("it does not run: {error}"))),
            None => return Ok(Err("it was not run".to_owned())),
        };
        let speed = speed(&original, &outcome.timed, self.request.objective);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let times = original.iter().zip(&outcome.timed);
        let times = times.map(|(a, b)| Time { rows: a.rows, original_ms: ms(a.run), variant_ms: ms(b.run) }).collect();
        let bounds = &self.request.bounds;
        Ok(Ok(Figures {
            rewritten,
            calibrated_on,
            reduce_range: matches!(precision, Precision::Int8 | Precision::StaticInt8)
                && QuantizeOptions::here().reduce_range,
            times,
            rows_per_second: (
                rows_per_second(&original).unwrap_or_default(),
                rows_per_second(&outcome.timed).unwrap_or_default(),
            ),
            speed,
            drift: outcome.drift,
            verdict: decide_within(speed, outcome.drift.as_ref(), bounds),
        }))
    }

    /// What the tensors take that a static variant has to know the ranges of.
    async fn calibrate(&self, inputs: &Arc<Inputs>) -> Result<Result<Ranges, String>, OptimizeError> {
        let (model, scratch) = (self.model.clone(), self.scratch.clone());
        let made = self.inner.tasks.spawn_blocking(move || variant::make_observable(&model, &scratch.observed()));
        let (graph, names) = match made.await.map_err(internal)? {
            Ok(made) => made,
            Err(problem) => return refused(problem),
        };
        let mut session = match self.inner.engine.bare_variant(&self.model, graph).await {
            Ok(session) => session,
            Err(error) => return Ok(Err(format!("it cannot be calibrated: {error}"))),
        };
        let inputs = inputs.clone();
        let run = move |interrupt: &Interrupt| calibrate(session.session(), &inputs.compared, &names, interrupt);
        match self.interruptible(run).await? {
            Err(CalibrationError::Run(RuntimeError::Interrupted)) => Err(OptimizeError::Cancelled),
            calibrated => Ok(calibrated.map_err(|error| format!("it cannot be calibrated: {error}"))),
        }
    }

    async fn make(
        &self,
        precision: Precision,
        ranges: Option<Ranges>,
    ) -> Result<Result<(PathBuf, Rewritten), String>, OptimizeError> {
        let (model, scratch, output) = (self.model.clone(), self.scratch.clone(), self.request.output.clone());
        let made = self.inner.tasks.spawn_blocking(move || {
            let folder = scratch.folder(precision);
            let made = variant::make(&model, &folder, precision, ranges)?;
            if let Some(output) = output {
                variant::leave(&folder, &output.join(precision.name())).map_err(NotMade::Disk)?;
            }
            Ok(made)
        });
        match made.await.map_err(internal)? {
            Ok(made) => Ok(Ok(made)),
            Err(problem) => refused(problem),
        }
    }

    /// Runs the two by turns on a thread of its own.
    async fn measure(
        &self,
        inputs: &Arc<Inputs>,
        original: &mut Option<BareSession>,
        mut variant: BareSession,
    ) -> Result<Compared, OptimizeError> {
        let lost = || OptimizeError::Internal { detail: "the original's session is gone".to_owned() };
        let mut session = original.take().ok_or_else(lost)?;
        let (inputs, time, rounds) = (inputs.clone(), self.request.time, self.request.rounds);
        let run = move |interrupt: &Interrupt| {
            let trial = Trial { timed: &inputs.timed, compared: &inputs.compared, time, rounds };
            let compared = compare(&mut [session.session(), variant.session()], &trial, interrupt);
            (compared, session)
        };
        let (compared, session) = self.interruptible(run).await?;
        *original = Some(session);
        match compared {
            Err(RuntimeError::Interrupted) => Err(OptimizeError::Cancelled),
            compared => Ok(compared?),
        }
    }

    /// Runs blocking work whose runs are stopped where nobody wants them any more.
    async fn interruptible<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Interrupt) -> T + Send + 'static,
    ) -> Result<T, OptimizeError> {
        let interrupt = Interrupt::new();
        let stop = FireOnDrop(interrupt.clone());
        let run = self.inner.tasks.spawn_blocking(move || work(&interrupt));
        let mut run = std::pin::pin!(run);
        let stopping = self.inner.tasks.stopping();
        let ended = tokio::select! {
            biased; // What is done counts.
            ended = run.as_mut() => ended,
            () = async { tokio::select! { () = self.cancel.cancelled() => {}, () = stopping.cancelled() => {} } } => {
                drop(stop);
                run.await
            }
        };
        ended.map_err(internal)
    }
}

/// Adopts the best, where there is one and it is wanted.
async fn conclude(
    inner: &Inner,
    request: &OptimizeRequest,
    scratch: &Scratch,
    report: &mut Report,
) -> Result<(), OptimizeError> {
    let Some(best) = report.best() else {
        report.why = "nothing was adopted: no variant is better than the original".to_owned();
        return Ok(());
    };
    let (precision, reason) = (best.precision, best.reason());
    let word = precision.name();
    let blind = best.figures().is_some_and(|figures| figures.calibrated_on == Some(Origin::MadeUp));
    if !request.adopt {
        report.why = format!("nothing was adopted, as asked for; {word} is the best: {reason}");
        return Ok(());
    }
    let adoption = Adoption {
        name: report.model.clone(),
        folder: scratch.folder(precision),
        origin: format!("version {} as {word}", report.version),
        load: request.load,
    };
    let version = inner.downloads.adopt(adoption).await.map_err(OptimizeError::Adopt)?.version;
    let serving = serving(inner, &report.model);
    report.adopted = Some(Adopted { precision, version, serving });
    report.why = format!("{word} was adopted as version {version}: {reason}");
    if blind {
        report.why.push_str("; it was calibrated on made-up inputs, and real ones may go beyond its scales");
    }
    if request.load && serving != Some(version) {
        report.why.push_str("; another version serves, as the version policy or a rollback says");
    }
    Ok(())
}

/// Measures how what serves now is served best, and lets it serve so.
async fn tune(inner: &Inner, request: &OptimizeRequest, report: &Report) -> TuneReport {
    let version = report.adopted.as_ref().and_then(|adopted| adopted.serving).unwrap_or(report.version);
    let objective = match request.objective {
        Objective::Latency => engine::Objective::Latency,
        Objective::Both | Objective::Throughput => engine::Objective::Throughput,
    };
    let wanted = TuneRequest { objective, target_p99: None, force: request.force };
    let outcome = match inner.engine.tune(&report.model, Some(version), wanted).await {
        Ok(model) => model.tuned.clone().ok_or_else(|| "no input could be made up that runs in time".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    TuneReport { version, outcome }
}

/// The version that answers where none is named.
fn serving(inner: &Inner, name: &ModelName) -> Option<Version> {
    let status = inner.engine.status(name).ok()?;
    let loaded = status.versions.iter().filter(|version| version.loaded.is_some());
    loaded.map(|version| version.version).max()
}

/// A variant that the graph does not allow is no failure of the others; a disk that fails is.
fn refused<T>(problem: NotMade) -> Result<Result<T, String>, OptimizeError> {
    match problem {
        NotMade::Refused(problem) => Ok(Err(problem)),
        NotMade::Disk(error) => Err(match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => OptimizeError::DiskFull,
            kind => OptimizeError::Disk(kind.to_string()),
        }),
    }
}

/// Stops a run whose result nobody waits for.
struct FireOnDrop(Interrupt);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

//! Has the engines of loaded versions built, one on each GPU at a time, and lets them serve.
//!
//! Nothing here holds the model: a version that is unloaded, deleted or replaced is gone at once, and its build is given up.
//! Invariant: engines come to their place, and a version is loaded anew with them, only under the model's gate and only while
//! the very load serves that they were built for.

use super::build::{self, Order};
use super::{EngineUse, Progress};
use crate::models::admission::MakeRoom;
use crate::models::lifecycle::Fingerprint;
use crate::models::manager::Gate;
use crate::models::registry::Busy;
use crate::models::state::Begun;
use crate::models::{LoadedModel, ModelManager};
use crate::runtime::Interrupt;
use crate::tasks::BackSeat;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// How long a build may take.
const BUILD_MAX: Duration = Duration::from_secs(3600);

/// Whose turn it is to build, by the number of the GPU.
#[derive(Debug, Default)]
pub(in crate::models) struct GpuTurns(Mutex<BTreeMap<u32, Arc<Semaphore>>>);

impl GpuTurns {
    fn of(&self, gpu: u32) -> Arc<Semaphore> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(gpu).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

/// The load that engines are built for.
struct Served {
    /// Only looked at: whoever holds a model keeps its threads.
    model: Weak<LoadedModel>,
    files: Fingerprint,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

/// Stops the runs of a build that nobody waits for any more.
struct FireOnDrop(Interrupt);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

impl ModelManager {
    /// Has engines built for a version that has begun to serve, where its load left an order.
    pub(in crate::models) fn build_engines(&self, model: &Arc<LoadedModel>, files: Fingerprint) {
        let Some(order) = model.engine.take_order() else { return };
        let (progress, stop) = (model.engine.progress.clone(), model.engine.stop.clone());
        let served = Served { model: Arc::downgrade(model), files, progress, stop };
        let manager = self.clone();
        self.tasks().spawn("have an engine built", async move { manager.engines(order, served).await });
    }

    async fn engines(&self, order: Box<Order>, served: Served) {
        let (name, version) = (order.name.clone(), order.version);
        let order = Arc::new(*order);
        let stopping = self.tasks().stopping().clone();
        let outcome = tokio::select! {
            biased; // Whoever is gone needs no engine.
            () = stopping.cancelled() => return,
            () = served.stop.cancelled() => {
                tracing::info!(model = %name, %version, "a TensorRT engine is not needed any more; its build is given up");
                return;
            }
            built = self.built(&order, &served.progress) => built,
        };
        // From here on nothing stops it: the swap ends the load whose going would.
        let outcome = match outcome {
            Ok(begun) => match self.gate(&name).await {
                Ok(gate) => self.let_serve(&order, begun, &served, &gate).await,
                Err(_) => return self.throw_away(begun).await,
            },
            Err(problem) => Err(problem),
        };
        match outcome {
            Ok(()) => {}
            Err(_) if served.stop.is_cancelled() || stopping.is_cancelled() => {}
            Err(reason) => {
                tracing::warn!(model = %name, %version, reason, "a TensorRT engine does not serve; the model goes on without");
                served.progress.fails(reason);
            }
        }
    }

    /// Waits for the GPU's turn and builds.
    async fn built(&self, order: &Arc<Order>, progress: &Progress) -> Result<Begun, String> {
        let turns = self.gpu_turns().of(order.settings.device.device_index);
        let turn = match turns.clone().try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                progress.waits(Some("it waits for another engine that is built on this GPU"));
                turns.acquire_owned().await.map_err(|error| error.to_string())?
            }
        };
        progress.waits(None);
        self.check_copy(order.size_bytes).await.map_err(|error| error.to_string())?;
        tracing::info!(model = %order.name, version = %order.version, "a TensorRT engine is built in the background");
        let interrupt = Interrupt::new();
        let _fires = FireOnDrop(interrupt.clone());
        let (sender, built) = oneshot::channel();
        let order = order.clone();
        let work = move || {
            // Kept to the end, whoever waits: two builds at a time would measure each other.
            let _turn = turn;
            let _back_seat = BackSeat::take();
            // What nobody takes goes again.
            let _ = sender.send(build::build(&order, &interrupt));
        };
        self.tasks().thread("engine build", work).map_err(|error| format!("no thread: {}", error.kind()))?;
        match tokio::time::timeout(BUILD_MAX, built).await {
            Ok(Ok(built)) => built,
            Ok(Err(_)) => {
                self.stats().record_panic();
                Err("it ended abnormally; see the log".to_owned())
            }
            Err(_) => Err(format!("it took longer than {} s", BUILD_MAX.as_secs())),
        }
    }

    /// Removes what nobody needs, which blocks.
    async fn throw_away(&self, begun: Begun) {
        self.blocking(move || drop(begun)).await;
    }

    /// Puts the engines into their place and loads the version anew with them; what serves is replaced when that is ready.
    async fn let_serve(&self, order: &Arc<Order>, begun: Begun, served: &Served, gate: &Gate) -> Result<(), String> {
        let (name, version) = (&order.name, order.version);
        let is_serving = || {
            let serving = self.edit(name, |entry| entry.serving(Some(version)).map(Arc::downgrade));
            serving.flatten().is_some_and(|serving| serving.ptr_eq(&served.model))
        };
        if !is_serving() || self.is_stopping() {
            self.throw_away(begun).await;
            return Ok(());
        }
        let kept = order.clone();
        let keep = move || kept.place.keep_engines((&kept.name, kept.version), &begun);
        let kept = self.blocking(keep).await.ok_or("it ended abnormally; see the log")?;
        kept.map_err(|error| format!("the engines cannot be kept: {}", error.kind()))?;
        let prepared = self.look(name, gate).await.map_err(|error| error.to_string())?;
        let job = prepared.and_then(|prepared| self.job(name, version, &prepared, false));
        // Files that have changed are loaded by whoever noticed, and engines of theirs are ordered then.
        let Some(mut job) = job.filter(|job| job.folder.fingerprint == served.files) else { return Ok(()) };
        job.engines = EngineUse::MustHave;
        let failed = self.edit(name, |entry| {
            let slot = entry.slots.entry(version).or_default();
            slot.busy = Some(Busy::Loading);
            slot.failed.clone()
        });
        if let Err(error) = self.load_version(job, MakeRoom::Evict).await {
            // What serves is not broken by that.
            self.edit(name, |entry| entry.slots.get_mut(&version).map(|slot| slot.failed = failed.flatten()));
            return Err(error.to_string());
        }
        tracing::info!(model = %name, %version, "a TensorRT engine serves");
        Ok(())
    }
}

//! Measures a loaded model again, and tells when that would disturb it: while it has traffic.
//!
//! Invariant: what serves goes on serving until what was measured is ready and takes its place, by the swap of every load.

use super::admission::MakeRoom;
use super::manager::Gate;
use super::registry::{Busy, Found};
use super::{LoadedModel, ModelError, ModelManager, ModelName, Objective, TuningSettings, Version};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long ago a request may have been answered for its model to count as busy.
const QUIET: Duration = Duration::from_secs(10);

/// What to find out of a loaded model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TuneRequest {
    pub objective: Objective,
    /// What a request may take at full load in all but one of a hundred cases.
    pub target_p99: Option<Duration>,
    /// Measure beside the model's own traffic: both are slower then, and the figures are worth less.
    pub force: bool,
}

impl ModelManager {
    /// Measures what serves a version best, the default version where none is named: loads it anew with tuning on, and puts
    /// it in the place of the one that serves when it is ready. What the settings name is not varied. Returns what serves then.
    ///
    /// # Errors
    /// `NotFound`, or `NotReady` where the version does not serve; `Conflict` while it has traffic, unless that is forced, and
    /// where a load call brought its configuration; as a load: what served before serves on.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the load.
    pub async fn tune(
        &self,
        name: &ModelName,
        version: Option<Version>,
        request: TuneRequest,
    ) -> Result<Arc<LoadedModel>, ModelError> {
        if self.is_stopping() {
            return Err(ModelError::Stopping);
        }
        let gate = self.gate(name).await?;
        let found = self.find(name, version, false);
        let Some(Found::Ready(model)) = found else { return Err(self.refusal(name, found)) };
        let version = model.version;
        drop(model);
        let conflict = |problem: String| Err(ModelError::Conflict { model: name.clone(), problem });
        if self.edit(name, |entry| entry.pinned) == Some(true) {
            return conflict(
                "a load call brought its configuration; load it without one before it is tuned".to_owned(),
            );
        }
        if let Some(traffic) = self.traffic(name).filter(|_| !request.force) {
            return conflict(format!("{traffic}, and measuring would disturb that; try again later, or force it"));
        }
        let (manager, model) = (self.clone(), name.clone());
        let work = async move { manager.tune_now(&model, version, request, &gate).await };
        self.to_its_end("tune a model", work).await
    }

    async fn tune_now(
        &self,
        name: &ModelName,
        version: Version,
        request: TuneRequest,
        gate: &Gate,
    ) -> Result<Arc<LoadedModel>, ModelError> {
        let prepared = self.look(name, gate).await?.ok_or_else(|| ModelError::NotFound { model: name.clone() })?;
        let mut job = self.job(name, version, &prepared, false).ok_or_else(|| {
            let problem = format!("the files of version {version} are gone, so it cannot be loaded anew");
            ModelError::Conflict { model: name.clone(), problem }
        })?;
        let TuneRequest { objective, target_p99, force: is_forced } = request;
        job.settings.tuning = TuningSettings { tune: true, objective, target_p99, insists: true, is_forced };
        let failed = self.edit(name, |entry| {
            let slot = entry.slots.entry(version).or_default();
            slot.busy = Some(Busy::Loading);
            slot.failed.clone()
        });
        if let Err(source) = self.load_version(job, MakeRoom::Evict).await {
            // What serves is not broken by a measurement that failed.
            self.edit(name, |entry| entry.slots.get_mut(&version).map(|slot| slot.failed = failed.flatten()));
            return Err(ModelError::Load { model: name.clone(), version, source });
        }
        let serving = self.edit(name, |entry| entry.serving(Some(version)).cloned()).flatten();
        serving.ok_or(ModelError::Stopping)
    }

    /// What the model has to do at this moment, in words; `None` where it is idle or nothing of it serves.
    pub(super) fn traffic(&self, name: &ModelName) -> Option<String> {
        self.edit(name, |entry| entry.serving(None).is_some()).filter(|serves| *serves)?;
        let activity = self.stats().activity(name.as_str());
        if activity.in_flight > 0 {
            return Some("the model has requests in flight".to_owned());
        }
        let since = activity.last_request.and_then(|last| SystemTime::now().duration_since(last).ok())?;
        (since < QUIET).then(|| format!("the model answered a request {} s ago", since.as_secs()))
    }
}

//! What is known of every model at this moment, and the answer to "who serves this request".
//!
//! Invariants: a slot's serving model is replaced, never taken away, while its successor loads; every answer is made
//! under one look at the entry. Pure data behind the manager's mutex: no file, task or runtime.

use super::install::Claimed;
use super::lifecycle::{self, Fingerprint, Known};
use super::repository::VersionFolder;
use super::{
    LoadedModel, Manifest, ModelError, ModelName, ModelState, ModelStatus, SetBy, Version, VersionPolicy, VersionStatus,
};
use crate::hub::Provenance;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often requests for a failed or unknown version may cause a look at the disk.
pub(super) const RECHECK_AFTER: Duration = Duration::from_secs(2);

/// One model.
#[derive(Default)]
pub(super) struct Entry {
    /// Held by whoever loads or unloads the model. A tokio mutex: it is held across loads.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) set_by: Arc<SetBy>,
    pub(super) policy: VersionPolicy,
    pub(super) slots: BTreeMap<Version, Slot>,
    /// Unloaded by somebody: stays so until somebody loads it.
    pub(super) held: bool,
    /// Made room for another, or found none: the next request loads it, whatever `autoload` says, and nothing else does.
    pub(super) on_demand: bool,
    /// Loaded with overrides: the disk does not change it until somebody loads it again.
    pub(super) pinned: bool,
    /// Whether the folder as a whole could not be read; `last_error` says why.
    pub(super) broken: bool,
    pub(super) last_error: Option<String>,
    pub(super) looked_at: Option<Instant>,
    /// Somebody is getting a version of it.
    pub(super) claimed: Option<Claimed>,
    /// Chosen to serve whatever the policy says.
    pub(super) chosen: Option<Version>,
}

/// One version of a model.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) serving: Option<(Fingerprint, Arc<LoadedModel>)>,
    /// The last try, where it failed.
    pub(super) failed: Option<(Fingerprint, String)>,
    pub(super) busy: Option<Busy>,
    /// The bytes that these files took when they were last loaded.
    pub(super) measured: Option<(Fingerprint, u64)>,
    /// Where these files came from, where they say so.
    pub(super) origin: Option<(Fingerprint, Option<Arc<Provenance>>)>,
    /// The files whose checksums were found right since the process started.
    pub(super) verified: Option<Fingerprint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    Loading,
    Unloading,
}

/// Who answers a request.
pub(super) enum Found {
    Ready(Arc<LoadedModel>),
    /// Loading it, or looking at its folder again, may help.
    MayLoad,
    Refused(ModelError),
}

impl Slot {
    fn state(&self) -> ModelState {
        match (&self.serving, self.busy, &self.failed) {
            (Some(_), _, _) => ModelState::Ready,
            (None, Some(Busy::Loading), _) => ModelState::Loading,
            (None, Some(Busy::Unloading), _) => ModelState::Unloading,
            (None, None, Some(_)) => ModelState::Failed,
            (None, None, None) => ModelState::Unloaded,
        }
    }
}

impl Entry {
    /// The highest version that serves, or the one asked for.
    pub(super) fn serving(&self, version: Option<Version>) -> Option<&Arc<LoadedModel>> {
        let serving = |slot: &'_ Slot| slot.serving.is_some();
        let slot = match version {
            Some(version) => self.slots.get(&version),
            None => self.slots.values().rev().find(|slot| serving(slot)),
        };
        slot.and_then(|slot| slot.serving.as_ref()).map(|(_, model)| model)
    }

    pub(super) fn known(&self) -> BTreeMap<Version, Known> {
        let known = |slot: &Slot| Known {
            serving: slot.serving.as_ref().map(|(files, _)| *files),
            failed: slot.failed.as_ref().map(|(files, _)| *files),
        };
        self.slots.iter().map(|(version, slot)| (*version, known(slot))).collect()
    }

    /// Makes the slots those of the disk; what serves keeps its slot.
    pub(super) fn set_versions(&mut self, on_disk: &BTreeSet<Version>) {
        self.slots.retain(|version, slot| on_disk.contains(version) || slot.serving.is_some());
        for version in on_disk {
            self.slots.entry(*version).or_default();
        }
    }

    /// Notes where the versions came from.
    pub(super) fn set_origins(&mut self, on_disk: &BTreeMap<Version, VersionFolder>) {
        for (version, folder) in on_disk {
            if let Some(slot) = self.slots.get_mut(version) {
                slot.origin = Some((folder.fingerprint, folder.origin.clone()));
            }
        }
    }

    /// `may_load`: whether a request may cause a load.
    pub(super) fn find(&self, name: &ModelName, version: Option<Version>, may_load: bool) -> Found {
        if let Some(model) = self.serving(version) {
            return Found::Ready(model.clone());
        }
        let refused = |state, reason| Found::Refused(ModelError::NotReady { model: name.clone(), state, reason });
        if self.is_downloading() {
            return refused(ModelState::Downloading, None);
        }
        let by_hand = || Some(format!("load it with POST /v1/models/{name}/load"));
        let busy = self
            .slots
            .iter()
            .filter(|(key, _)| version.is_none_or(|version| version == **key))
            .find_map(|(_, slot)| slot.busy);
        if busy == Some(Busy::Loading) {
            return if may_load { Found::MayLoad } else { refused(ModelState::Loading, None) };
        }
        if self.held {
            let state = if busy == Some(Busy::Unloading) { ModelState::Unloading } else { ModelState::Unloaded };
            return refused(state, by_hand());
        }
        // A flood of requests for what does not work looks at the disk now and then, not each time.
        let may_look = may_load && !self.pinned && self.looked_at.is_none_or(|at| at.elapsed() >= RECHECK_AFTER);
        if let Some(version) = version.filter(|version| !self.slots.contains_key(version))
            && !self.broken
        {
            let available = self.slots.keys().copied().collect();
            let missing = ModelError::VersionNotFound { model: name.clone(), version, available };
            return if may_look { Found::MayLoad } else { Found::Refused(missing) };
        }
        if let Some(reason) = self.failure(version) {
            return if may_look { Found::MayLoad } else { refused(ModelState::Failed, Some(reason)) };
        }
        if let Some(version) = version
            && !lifecycle::select(&self.policy, self.slots.keys().copied()).contains(&version)
        {
            let reason = match self.chosen {
                Some(chosen) => format!("version {chosen} was chosen, with POST /v1/models/{name}/rollback"),
                None => format!("its version_policy is {}", self.policy),
            };
            return Found::Refused(ModelError::VersionNotServed { model: name.clone(), version, reason });
        }
        if may_load { Found::MayLoad } else { refused(ModelState::Unloaded, by_hand()) }
    }

    /// Whether there is nothing of the model yet but that somebody is getting it.
    pub(super) fn is_downloading(&self) -> bool {
        self.claimed == Some(Claimed::Model)
    }

    /// Why a version, or every version, does not serve, where that is a failure.
    pub(super) fn failure(&self, version: Option<Version>) -> Option<String> {
        if self.broken {
            return self.last_error.clone();
        }
        let failed = |slot: &Slot| slot.failed.as_ref().map(|(_, reason)| reason.clone());
        match version {
            Some(version) => self.slots.get(&version).and_then(failed),
            None => self.slots.values().rev().find_map(failed),
        }
    }

    pub(super) fn status(&self, name: &ModelName) -> ModelStatus {
        let versions: Vec<VersionStatus> = self
            .slots
            .iter()
            .map(|(version, slot)| VersionStatus {
                version: *version,
                state: slot.state(),
                reason: slot.failed.as_ref().map(|(_, reason)| reason.clone()).or_else(|| {
                    let waits = self.on_demand && slot.state() == ModelState::Unloaded;
                    waits.then(|| "not loaded for want of memory; the next request loads it".to_owned())
                }),
                loaded: slot.serving.as_ref().map(|(_, model)| model.clone()),
                origin: slot.origin.as_ref().and_then(|(_, origin)| origin.clone()),
            })
            .collect();
        let any = |state| versions.iter().any(|version| version.state == state);
        let order = [ModelState::Ready, ModelState::Loading, ModelState::Unloading, ModelState::Failed];
        let state = order.into_iter().find(|state| any(*state)).unwrap_or(ModelState::Unloaded);
        let state = if self.broken && state == ModelState::Unloaded { ModelState::Failed } else { state };
        let state = if self.is_downloading() { ModelState::Downloading } else { state };
        let ready = self.serving(None).map(|model| model.version);
        let wanted = lifecycle::select(&self.policy, self.slots.keys().copied());
        ModelStatus {
            name: name.clone(),
            state,
            default_version: ready.or_else(|| wanted.last().copied()),
            chosen_version: self.chosen,
            manifest: self.manifest.clone(),
            set_by: self.set_by.clone(),
            last_error: self.last_error.clone(),
            versions,
        }
    }
}

//! Lets loads in where there is memory for them, and makes room where others can go.
//!
//! Invariants: no load starts that would go over `max_loaded_memory_mb` or over what the machine has; who is chosen to go
//! is decided by [`super::eviction`]; one decision at a time, each counting the loads that were let in before it.

use super::error::MemoryLimit;
use super::eviction::{self, Decision, Standing, Tenant};
use super::loader::{self, Job};
use super::manager::Gate;
use super::memory::{peak_estimate, resident_estimate};
use super::{LoadError, ModelManager, ModelName, Version};
use crate::telemetry::process;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether a load may send others away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MakeRoom {
    /// Somebody waits for the model.
    Evict,
    /// Nobody asked: it is loaded where there is room.
    OnlyIfFree,
}

/// The memory of all models together, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryTotals {
    /// What the loaded models hold.
    pub models_bytes: u64,
    /// `[store] max_loaded_memory_mb`.
    pub budget_bytes: Option<u64>,
}

/// The loads in progress. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Admission(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Held while one load is decided and others go for it.
    turn: tokio::sync::Mutex<()>,
    /// A std mutex: held for look-ups only.
    reserved: Mutex<(u64, BTreeMap<u64, Need>)>,
}

/// What a load takes: in the end, and for a moment while it is built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) resident: u64,
    pub(super) peak: u64,
}

/// A load that was let in; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    admission: Admission,
    id: u64,
    pub(super) need: Need,
    /// Bytes of the graph file and its external data.
    pub(super) size_bytes: u64,
    /// What the machine and the budget had left beside it, in bytes; `u64::MAX` where neither is known.
    pub(super) room_bytes: u64,
    /// The same for its runs, where idle models of the budget go for it.
    pub(super) runs_bytes: u64,
    /// What the machine alone had left beside it.
    pub(super) machine_bytes: u64,
}

impl Admission {
    fn reserve(&self, need: Need, size_bytes: u64, [room_bytes, runs_bytes, machine_bytes]: [u64; 3]) -> Reservation {
        let mut reserved = self.0.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.0 += 1;
        let id = reserved.0;
        reserved.1.insert(id, need);
        Reservation { admission: self.clone(), id, need, size_bytes, room_bytes, runs_bytes, machine_bytes }
    }

    fn reserved(&self) -> Vec<Need> {
        self.0.reserved.lock().unwrap_or_else(PoisonError::into_inner).1.values().copied().collect()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.0.reserved.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.id);
    }
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    pub total_bytes: u64,
    /// What is left for others than root.
    pub free_bytes: u64,
}

impl ModelManager {
    /// The file system of the store; `None` where it does not tell.
    pub fn disk_space(&self) -> Option<DiskSpace> {
        let disk = rustix::fs::statvfs(&self.store().models_dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Some(DiskSpace { total_bytes: bytes(disk.f_blocks), free_bytes: bytes(disk.f_bavail) })
    }

    /// The memory of the loaded models. Reads a few figures of each.
    pub fn memory_totals(&self) -> MemoryTotals {
        let models = self.list();
        let loaded = models.iter().flat_map(|model| &model.versions).filter_map(|version| version.loaded.as_deref());
        MemoryTotals {
            models_bytes: loaded.map(|model| model.memory.total_bytes()).fold(0, u64::saturating_add),
            budget_bytes: self.store().max_loaded_memory,
        }
    }

    /// Makes the loaded versions of `name`, or of all models, and the process's allocator give back what they do not need.
    pub async fn shrink(&self, name: Option<&ModelName>) {
        let models = self.list().into_iter().filter(|model| name.is_none_or(|name| *name == model.name));
        let loaded: Vec<_> = models.flat_map(|model| model.versions).filter_map(|version| version.loaded).collect();
        let manager = self.clone();
        let work = move || {
            loaded.iter().for_each(|model| model.memory.shrink());
            manager.runtime().give_back();
        };
        self.blocking(work).await;
    }

    /// Lets the load in, after others went where they must and may.
    pub(super) async fn admit(&self, job: &Job, room: MakeRoom) -> Result<Reservation, LoadError> {
        let (need, size_bytes) = self.need(job).await?;
        let admission = self.admission().clone();
        let _turn = admission.0.turn.lock().await;
        if let Some(budget) = self.store().max_loaded_memory {
            self.make_room(&job.name, need.resident, budget, room).await?;
        }
        let others = admission.reserved().iter().map(|need| need.peak).fold(0, u64::saturating_add);
        let available = self.blocking(process::available_bytes).await.flatten();
        if let Some(available) = available.filter(|available| need.peak.saturating_add(others) > *available) {
            let room = available.saturating_sub(others);
            return Err(LoadError::NoMemory { needs: need.peak, room, limit: MemoryLimit::Machine });
        }
        let machine = available.map_or(u64::MAX, |available| available - others - need.peak);
        let totals = self.memory_totals();
        let taken =
            admission.reserved().iter().map(|need| need.resident).fold(totals.models_bytes, u64::saturating_add);
        let budget =
            totals.budget_bytes.map_or(u64::MAX, |budget| budget.saturating_sub(taken).saturating_sub(need.resident));
        let whole = totals.budget_bytes.map_or(u64::MAX, |budget| budget.saturating_sub(need.resident));
        Ok(admission.reserve(need, size_bytes, [machine.min(budget), machine.min(whole), machine]))
    }

    /// Whether a graph of `size_bytes` may be loaded once more beside the store, to be measured: nobody goes for it.
    ///
    /// # Errors
    /// [`LoadError::NoMemory`] where it goes over the budget or over what the machine has.
    pub(super) async fn check_copy(&self, size_bytes: u64) -> Result<(), LoadError> {
        let (resident, peak) = (resident_estimate(size_bytes), peak_estimate(size_bytes));
        let MemoryTotals { models_bytes, budget_bytes } = self.memory_totals();
        if let Some(room) =
            budget_bytes.map(|budget| budget.saturating_sub(models_bytes)).filter(|room| resident > *room)
        {
            return Err(LoadError::NoMemory { needs: resident, room, limit: MemoryLimit::Budget });
        }
        let others = self.admission().reserved().iter().map(|need| need.peak).fold(0, u64::saturating_add);
        match self.blocking(process::available_bytes).await {
            Some(Some(available)) if peak.saturating_add(others) > available => {
                let room = available.saturating_sub(others);
                Err(LoadError::NoMemory { needs: peak, room, limit: MemoryLimit::Machine })
            }
            _ => Ok(()),
        }
    }

    async fn need(&self, job: &Job) -> Result<(Need, u64), LoadError> {
        let measured = self.measured(&job.name, job.version, job.folder.fingerprint);
        let (manager, source) = (self.clone(), loader::source(job)?);
        let (state, name, version) = (job.state.clone(), job.name.clone(), job.version);
        let size = self.blocking(move || {
            // Without reading a graph that need not be read for the load either.
            let known = state.and_then(|state| state.known_size(&name, version, &source));
            known.map_or_else(|| manager.runtime().size_bytes(&source), Ok)
        });
        let size = size.await;
        let size = size.ok_or(LoadError::Panicked)??;
        let copies = loader::copies(&job.settings, size) as u64;
        let estimate = resident_estimate(size).saturating_mul(copies);
        // A reading that was spoilt must not keep a model out for ever.
        let resident = measured.map_or(estimate, |measured| measured.min(estimate.saturating_add(estimate / 2)));
        // Copies are built one after another.
        let built = resident_estimate(size).saturating_mul(copies.saturating_sub(1));
        Ok((Need { resident, peak: peak_estimate(size).saturating_add(built).max(resident) }, size))
    }

    /// Sends others away where a load took more than was expected of it.
    pub(super) async fn hold_budget(&self, loaded: &ModelName) {
        let Some(budget) = self.store().max_loaded_memory else { return };
        let admission = self.admission().clone();
        let _turn = admission.0.turn.lock().await;
        if let Err(error) = self.make_room(loaded, 0, budget, MakeRoom::Evict).await {
            tracing::warn!(model = %loaded, %error, "loaded models are over max_loaded_memory_mb, and none of them can go now");
        }
    }

    async fn make_room(&self, loading: &ModelName, demand: u64, budget: u64, room: MakeRoom) -> Result<(), LoadError> {
        let (mut tenants, mut gates) = self.tenants(loading);
        tenants.extend(self.admission().reserved().into_iter().map(|need| Tenant {
            key: None,
            bytes: need.resident,
            last_used: u64::MAX,
            standing: Standing::Busy,
        }));
        if room == MakeRoom::OnlyIfFree {
            tenants.iter_mut().for_each(|tenant| tenant.standing = Standing::Kept);
        }
        let gone = match eviction::decide(&tenants, demand, budget) {
            Decision::Fits => return Ok(()),
            Decision::Evict(gone) => gone,
            Decision::Wait => return Err(LoadError::MemoryBusy { needs: demand }),
            Decision::TooLarge { room } => {
                return Err(LoadError::NoMemory { needs: demand, room, limit: MemoryLimit::Budget });
            }
        };
        for name in gone.into_iter().flatten() {
            if let Some(gate) = gates.remove(&name) {
                tracing::info!(model = %name, room_for = %loading, "a model is evicted");
                self.evict(&name, &gate).await;
                self.stats().record_eviction(name.as_str());
            }
        }
        Ok(())
    }

    /// Who holds memory, and the gates of those who may go: nobody else changes them meanwhile.
    fn tenants(&self, loading: &ModelName) -> (Vec<Tenant<Option<ModelName>>>, BTreeMap<ModelName, Gate>) {
        let mut gates = BTreeMap::new();
        let registry = self.lock();
        let mut tenants = Vec::new();
        for (name, entry) in registry.iter() {
            let serving: Vec<_> =
                entry.slots.values().filter_map(|slot| slot.serving.as_ref()).map(|(_, model)| model).collect();
            if serving.is_empty() {
                continue;
            }
            let standing = if name == loading || entry.pinned {
                Standing::Kept
            // Whoever answers a request, or reads one for it, holds a reference.
            } else if serving.iter().any(|model| Arc::strong_count(model) > 1) {
                Standing::Busy
            } else if let Ok(gate) = entry.gate.clone().try_lock_owned() {
                gates.insert(name.clone(), gate);
                Standing::Idle
            } else {
                Standing::Busy
            };
            tenants.push(Tenant {
                key: Some(name.clone()),
                bytes: serving.iter().map(|model| model.memory.total_bytes()).fold(0, u64::saturating_add),
                last_used: serving.iter().map(|model| model.memory.last_used()).max().unwrap_or(0),
                standing,
            });
        }
        (tenants, gates)
    }

    async fn evict(&self, name: &ModelName, _gate: &Gate) {
        let versions = self.edit(name, |entry| {
            entry.on_demand = true;
            entry.slots.keys().copied().collect::<BTreeSet<Version>>()
        });
        self.take_down(name, &versions.unwrap_or_default()).await;
    }
}

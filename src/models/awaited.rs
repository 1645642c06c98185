//! Models that the server was told to serve: while one of them has not served yet, the server is not ready.
//!
//! Invariant: who has served once is not waited for again, whatever becomes of it: later loads and unloads are somebody's
//! wish. Gets and loads nothing.

use super::{ModelManager, ModelName};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What each waits for, in words for a client.
#[derive(Debug, Default)]
pub(super) struct Awaited(Mutex<BTreeMap<ModelName, String>>);

impl Awaited {
    /// Held for look-ups only.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelManager {
    /// From here on the server is ready only when this model has served. `why` it does not yet, in words for a client.
    pub fn await_model(&self, name: &ModelName, why: String) {
        self.awaiting().lock().insert(name.clone(), why);
    }

    /// The model serves.
    pub fn arrived(&self, name: &ModelName) {
        self.awaiting().lock().remove(name);
    }

    /// The models that are waited for, and why they do not serve yet.
    pub fn awaited(&self) -> Vec<(ModelName, String)> {
        self.awaiting().lock().iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }
}

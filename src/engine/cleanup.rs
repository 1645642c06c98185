//! Gives memory back that is only kept to be quick: what the caches hold, working memory of past runs, free memory of the
//! allocator.

use super::{EngineError, InferenceEngine, LoadedModel, ModelName};
use crate::telemetry::process;
use std::sync::Arc;

/// What a cleanup gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// By how much the process shrank; requests that ran meanwhile may have taken some of it again.
    pub bytes_freed: u64,
    /// What the models' caches held, as they count it.
    pub cache_bytes_freed: u64,
    /// Working memory of the models' sessions.
    pub arena_bytes_freed: u64,
    /// Bytes of the process that are in memory afterwards; `None` where the system does not tell.
    pub resident_bytes: Option<u64>,
}

impl InferenceEngine {
    /// Cleans up after one model, or after all. Requests go on meanwhile, and the next large one is a little slower.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn cleanup(&self, name: Option<&ModelName>) -> Result<Cleaned, EngineError> {
        if let Some(name) = name {
            self.status(name)?;
        }
        let (before, arenas_before) = (process::resident_bytes(), self.arena_bytes(name));
        let (engine, loaded) = (self.clone(), self.loaded(name));
        // Many small answers take a while to free.
        let clear = move || loaded.iter().map(|model| engine.clear_caches(model)).fold(0, u64::saturating_add);
        let cache_bytes_freed = self.0.tasks.spawn_blocking(clear).await.unwrap_or_default();
        self.0.models.shrink(name).await;
        let (after, arenas_after) = (process::resident_bytes(), self.arena_bytes(name));
        Ok(Cleaned {
            bytes_freed: before.zip(after).map_or(0, |(before, after)| before.saturating_sub(after)),
            cache_bytes_freed,
            arena_bytes_freed: arenas_before.saturating_sub(arenas_after),
            resident_bytes: after,
        })
    }

    fn arena_bytes(&self, name: Option<&ModelName>) -> u64 {
        let loaded = self.loaded(name);
        let arenas = loaded.iter().filter_map(|model| model.memory.arena()).map(|memory| memory.arena_bytes);
        arenas.fold(0, u64::saturating_add)
    }

    fn loaded(&self, name: Option<&ModelName>) -> Vec<Arc<LoadedModel>> {
        let models = self.models().into_iter().filter(|model| name.is_none_or(|name| *name == model.name));
        models.flat_map(|model| model.versions).filter_map(|version| version.loaded).collect()
    }
}

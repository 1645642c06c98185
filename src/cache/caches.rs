//! The caches of one loaded model.

use super::{Answer, CacheSettings, Key, KeyMaker, Recorder, Store, Usage, answer};
use crate::pipelines::Prepared;
use std::sync::Arc;

/// What one loaded model keeps. Each is `None` where it is switched off.
#[derive(Debug)]
pub struct Caches {
    pub keys: KeyMaker,
    /// Answers by [`KeyMaker::tensors`] and [`KeyMaker::items`].
    pub responses: Option<Store<Arc<Answer>>>,
    /// An item as the graph takes it, by [`KeyMaker::item`].
    pub prepared: Option<Store<Arc<Prepared>>>,
    /// A sample of what was asked.
    pub recorder: Recorder,
}

/// How full a model's caches are; `None` for one that is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CachesUsage {
    pub responses: Option<Usage>,
    pub prepared: Option<Usage>,
}

impl Caches {
    /// Empty caches with a secret of their own.
    pub fn new(settings: &CacheSettings) -> Caches {
        let response = settings.response_bytes;
        let preprocess = settings.preprocess_bytes;
        Caches {
            keys: KeyMaker::new(),
            responses: (response > 0).then(|| Store::new(response, settings.response_ttl)),
            prepared: (preprocess > 0).then(|| Store::new(preprocess, None)),
            recorder: Recorder::new(settings.record_requests),
        }
    }

    /// Keeps an answer where answers are kept and it fits. Copies it: large ones off the async threads.
    pub fn keep_answer(&self, key: Key, answer: &Answer) {
        if let Some(store) = &self.responses {
            let bytes = answer.bytes();
            if store.fits(bytes) {
                store.insert(key, Arc::new(answer.owned()), bytes);
            }
        }
    }

    /// Keeps a prepared item likewise.
    pub fn keep_prepared(&self, key: Key, prepared: &Prepared) {
        if let Some(store) = &self.prepared {
            let bytes = answer::prepared_bytes(prepared);
            if store.fits(bytes) {
                store.insert(key, Arc::new(answer::own_prepared(prepared)), bytes);
            }
        }
    }

    /// How full the caches are at this moment.
    pub fn usage(&self) -> CachesUsage {
        CachesUsage {
            responses: self.responses.as_ref().map(Store::usage),
            prepared: self.prepared.as_ref().map(Store::usage),
        }
    }

    /// Drops all that is kept and gives its bytes. Runs in flight go on, and their answers are kept as before.
    pub fn clear(&self) -> u64 {
        let stores = self.responses.as_ref().map_or(0, Store::clear) + self.prepared.as_ref().map_or(0, Store::clear);
        stores + self.recorder.clear()
    }
}

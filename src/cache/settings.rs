//! `[cache]`: what of a model's work is kept, and for how long.

use std::time::Duration;

/// `[cache]` in force for one model. By default nothing is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CacheSettings {
    /// Bytes of prepared items; 0 = nothing is kept.
    pub preprocess_bytes: u64,
    /// Bytes of answers; 0 = nothing is kept, and every request is run.
    pub response_bytes: u64,
    /// How long an answer is given again after its run; `None` = until it is displaced or its model is unloaded.
    pub response_ttl: Option<Duration>,
    /// Requests whose inputs are kept as a sample, for measuring; 0 = none.
    pub record_requests: usize,
}

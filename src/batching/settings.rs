//! How requests of a model wait and join: `[batch]` without the keys that concern instances.

use super::WaitingSettings;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct BatchSettings {
    /// Whether requests may share a run at all.
    pub dynamic_batching: bool,
    /// Rows of a run that are worth no further wait, where `timeout` is above 0; `None` = `max_batch_size`.
    pub batch_size: Option<usize>,
    /// Most rows of one run; a request with more is split.
    pub max_batch_size: usize,
    /// How long a batch that is not full waits for mates. 0 = an idle instance takes at once what waits.
    pub timeout: Duration,
    /// Most tokens of one run, padding counted, for models whose requests are padded to one length.
    pub max_batch_tokens: usize,
    /// Requests that may wait for an instance.
    pub max_queue: usize,
    pub waiting: WaitingSettings,
}

impl Default for BatchSettings {
    fn default() -> BatchSettings {
        BatchSettings {
            dynamic_batching: true,
            batch_size: None,
            max_batch_size: 16,
            timeout: Duration::ZERO,
            max_batch_tokens: 16_384,
            max_queue: 256,
            waiting: WaitingSettings::default(),
        }
    }
}

//! What doors give to the engine and get back.

use crate::batching::Sender;
use crate::pipelines::{Item, Parameters, Prediction};
use crate::tasks::Progress;
use crate::tensor::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Raw values for the graph's inputs, by name.
#[derive(Debug)]
pub struct InferRequest {
    pub inputs: Vec<(String, Value)>,
    /// Names of the outputs wanted, in that order; empty = all, in the graph's order.
    pub outputs: Vec<String>,
    pub options: RunOptions,
}

#[derive(Debug)]
pub struct InferResponse {
    pub outputs: Vec<(String, Value)>,
    pub timing: Timing,
    /// `None` where answers are not kept.
    pub cache: Option<CacheOutcome>,
}

/// Items for the model's task.
#[derive(Debug)]
pub struct PredictRequest {
    pub items: Vec<Item>,
    pub parameters: Parameters,
    pub options: RunOptions,
}

/// How urgent a request is, and who watches it.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// When the answer is worthless.
    pub deadline: Instant,
    /// 1 (first) to the model's last level; 0 is the model's default.
    pub priority: u8,
    /// How long it wants to wait for an instance at most, where the model's policy asks.
    pub queue_timeout: Option<Duration>,
    /// Counts the rows that are answered.
    pub progress: Option<Progress>,
    /// `None`: nobody from outside.
    pub sender: Option<Sender>,
}

impl RunOptions {
    /// A request of usual urgency that nobody watches, from nobody outside.
    pub fn until(deadline: Instant) -> RunOptions {
        RunOptions { deadline, priority: 0, queue_timeout: None, progress: None, sender: None }
    }

    /// `priority` as clients give it: 1 is the most urgent, 0 or nothing the default, what lies beyond the least urgent.
    #[must_use]
    pub fn with_priority(self, priority: Option<u64>) -> RunOptions {
        RunOptions { priority: u8::try_from(priority.unwrap_or(0)).unwrap_or(u8::MAX), ..self }
    }
}

#[derive(Debug)]
pub struct PredictResponse {
    /// One for each item, in order.
    pub predictions: Vec<Prediction>,
    /// Tokens of all items, special ones counted; 0 where they are no texts.
    pub tokens: u64,
    pub timing: Timing,
    /// `None` where answers are not kept.
    pub cache: Option<CacheOutcome>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheOutcome {
    /// From an earlier run, or from one that an equal request had begun.
    Hit,
    /// From a run of its own.
    Miss,
}

/// How long each stage took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    pub queue: Duration,
    pub preprocess: Duration,
    pub inference: Duration,
    pub postprocess: Duration,
}

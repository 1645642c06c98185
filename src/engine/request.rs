//! What doors give to the engine and get back.

use crate::pipelines::{Item, Parameters, Prediction};
use crate::tensor::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Raw values for the graph's inputs, by name.
#[derive(Debug)]
pub struct InferRequest {
    pub inputs: Vec<(String, Value)>,
    /// Names of the outputs wanted, in that order; empty = all, in the graph's order.
    pub outputs: Vec<String>,
    /// When the answer is worthless.
    pub deadline: Instant,
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
    pub deadline: Instant,
}

#[derive(Debug)]
pub struct PredictResponse {
    /// One for each item, in order.
    pub predictions: Vec<Prediction>,
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

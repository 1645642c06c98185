//! What may be asked for.

use crate::engine::Version;
use crate::rewrite::{Bounds, Objective};
use crate::runtime::Input;
use std::path::PathBuf;
use std::time::Duration;

/// A form of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// Numbers of 16 bits; inputs and outputs stay as they are.
    Fp16,
    /// Products of bytes: weights by column, activations as they come.
    Int8,
    /// Products and convolutions of bytes, with scales of activations that were calibrated and are the same in every run.
    StaticInt8,
    /// Weights of products in four bits.
    Int4,
}

impl Precision {
    /// What is tried on a device where nothing is named. A CPU computes with 16 bits by widening them. Without samples a static
    /// variant would be calibrated on what nobody sends.
    pub fn suiting(device: &str, has_samples: bool) -> Vec<Precision> {
        match (device.starts_with("cpu"), has_samples) {
            (true, true) => vec![Precision::Int8, Precision::StaticInt8, Precision::Int4],
            (true, false) => vec![Precision::Int8, Precision::Int4],
            (false, _) => vec![Precision::Fp16, Precision::Int4],
        }
    }

    /// The word for it in requests and reports.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
            Precision::StaticInt8 => "int8_static",
            Precision::Int4 => "int4",
        }
    }
}

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct OptimizeRequest {
    /// The default version where `None`.
    pub version: Option<Version>,
    /// Empty = all that suit the device; none where [`OptimizeRequest::tune`] is all that is asked for.
    pub precisions: Vec<Precision>,
    /// Whether what then serves is measured for its instances, threads, batches, graph level and memory, and serves by the outcome.
    pub tune: bool,
    /// Tune beside the model's own traffic.
    pub force: bool,
    pub objective: Objective,
    pub bounds: Bounds,
    /// What the forms are run on; empty = what was recorded, the model's samples, or what can be made up.
    pub inputs: Vec<Vec<Input>>,
    /// Whether the best of those that are better becomes the model's next version.
    pub adopt: bool,
    /// Whether what is adopted is loaded, to take over where the version policy says so.
    pub load: bool,
    /// How long the original and one variant are timed together.
    pub time: Duration,
    /// How often the two take turns with each size, from 1.
    pub rounds: usize,
    /// Each variant is left below this folder, by its name, too.
    pub output: Option<PathBuf>,
}

impl Default for OptimizeRequest {
    fn default() -> OptimizeRequest {
        OptimizeRequest {
            version: None,
            precisions: Vec::new(),
            tune: false,
            force: false,
            objective: Objective::default(),
            bounds: Bounds::default(),
            inputs: Vec::new(),
            adopt: true,
            load: true,
            time: Duration::from_secs(10),
            rounds: 5,
            output: None,
        }
    }
}

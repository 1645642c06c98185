//! What came of it.

use super::{Origin, Precision};
use crate::engine::{ModelName, Tuned, Version};
use crate::rewrite::{Bounds, Drift, Objective, Rewritten, Verdict};

/// All that was tried, and what was adopted.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub model: ModelName,
    pub version: Version,
    /// Where it ran: `cpu`, `cuda:0`.
    pub device: String,
    /// Threads of one run.
    pub threads: usize,
    pub objective: Objective,
    pub bounds: Bounds,
    pub inputs: InputsUsed,
    /// In the order in which they were tried.
    pub variants: Vec<VariantReport>,
    pub adopted: Option<Adopted>,
    /// What tuning found, where it was asked for.
    pub tuned: Option<TuneReport>,
    /// Why what was adopted was, or why nothing was.
    pub why: String,
}

/// What the forms were run on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputsUsed {
    pub origin: Origin,
    /// Of the drift.
    pub count: usize,
}

/// What came of one variant.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantReport {
    pub precision: Precision,
    /// Why there are no figures: it could not be made of this graph, or does not run.
    pub outcome: Result<Figures, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    pub rewritten: Rewritten,
    /// What the scales of its activations were calibrated on, where they are the same in every run.
    pub calibrated_on: Option<Origin>,
    /// Weights have seven bits, since the processor's products of bytes would overflow.
    pub reduce_range: bool,
    /// By the rows of a run, the smallest first.
    pub times: Vec<Time>,
    /// Rows in a second, each form with the size that suits it best: of the original and of the variant.
    pub rows_per_second: (f64, f64),
    /// How many times as fast, as the objective counts it.
    pub speed: f64,
    pub drift: Option<Drift>,
    pub verdict: Verdict,
}

/// Runs of one size, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time {
    pub rows: usize,
    pub original_ms: f64,
    pub variant_ms: f64,
}

/// What the best variant became.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    pub precision: Precision,
    pub version: Version,
    /// The version that answers requests now; `None` where none is loaded.
    pub serving: Option<Version>,
}

/// What came of tuning.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneReport {
    /// The version that was measured.
    pub version: Version,
    /// Why nothing was found: what served before serves on.
    pub outcome: Result<Tuned, String>,
}

impl Report {
    /// The best of those that are better.
    pub fn best(&self) -> Option<&VariantReport> {
        let better =
            self.variants.iter().filter(|variant| variant.figures().is_some_and(|one| one.verdict.is_better()));
        better.max_by(|a, b| {
            let speed = |variant: &VariantReport| variant.figures().map_or(0.0, |figures| figures.speed);
            speed(a).total_cmp(&speed(b))
        })
    }
}

impl VariantReport {
    pub fn figures(&self) -> Option<&Figures> {
        self.outcome.as_ref().ok()
    }

    /// `better`, `not_faster`, `drifts`, `incomparable` or `impossible`.
    pub fn verdict(&self) -> &'static str {
        self.figures().map_or("impossible", |figures| figures.verdict.code())
    }

    /// The verdict in words.
    pub fn reason(&self) -> String {
        match &self.outcome {
            Ok(figures) => figures.verdict.to_string(),
            Err(problem) => problem.clone(),
        }
    }
}

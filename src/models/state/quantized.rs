//! `enable_quantization`, and `use_fp16` on CUDA: at a load, the graph with products of eight bits, or with numbers of 16, is run by
//! turns with the graph itself.
//!
//! It serves in the graph's place where [`decide`] finds it better: faster by [`crate::rewrite::WIN_MIN`], and its answers to
//! made-up inputs within [`DRIFT_MAX`]. What was found of eight bits counts for the next loads, as all of a state does.

use crate::rewrite::{Objective, Rewriting, Sample, Trial, compare, decide, rewrite_file, speed};
use crate::runtime::{GraphSource, Input, Interrupt, RuntimeError, Session};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// How far the outputs' directions may be apart: a cosine of 0.99.
const DRIFT_MAX: f64 = 0.01;
/// What all turns take together.
const TRIAL: Duration = Duration::from_secs(2);
const ROUNDS: usize = 6;

/// The name of the graph in the folder that it is made in.
pub(super) const FILE: &str = "model.onnx";

/// What came of the trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// Whether it serves.
    pub adopted: bool,
    /// Why, in words.
    pub reason: String,
    /// How many times as fast it is; `None` where it could not be run.
    pub speed: Option<f64>,
    /// The lowest cosine of its outputs with the original's.
    pub cosine: Option<f64>,
    /// Bytes of the graph with its weights, before and after.
    pub bytes: Option<(u64, u64)>,
}

impl Quantization {
    fn refused(reason: String) -> Quantization {
        Quantization { adopted: false, reason, speed: None, cosine: None, bytes: None }
    }
}

/// Inputs of a trial.
pub(in crate::models) struct Samples {
    pub(in crate::models) timed: Vec<Sample>,
    pub(in crate::models) compared: Vec<Vec<Input>>,
}

/// Loads a session of a graph that is not the model's own.
pub(super) type Load<'a> = dyn Fn(&GraphSource) -> Result<Box<dyn Session>, RuntimeError> + 'a;

/// Makes the variant of `source` in `folder` and tries it beside `original`.
pub(super) fn try_beside(
    original: &mut dyn Session,
    source: &GraphSource,
    (folder, rewriting): (&Path, &Rewriting),
    samples: &Samples,
    load: &Load<'_>,
    interrupt: &Interrupt,
) -> Quantization {
    if samples.timed.is_empty() {
        return Quantization::refused("no input could be made up that the graph runs on".to_owned());
    }
    let file = folder.join(FILE);
    let rewritten = match rewrite_file(&source.file, &file, rewriting) {
        Ok(rewritten) => rewritten,
        Err(error) => return Quantization::refused(error.to_string()),
    };
    let refused = |problem: String| Quantization { bytes: Some(rewritten.bytes), ..Quantization::refused(problem) };
    let mut variant = match load(&GraphSource { file, folder: folder.to_owned(), ..source.clone() }) {
        Ok(variant) => variant,
        Err(error) => return refused(error.to_string()),
    };
    let trial = Trial { timed: &samples.timed, compared: &samples.compared, time: TRIAL, rounds: ROUNDS };
    let compared = match compare(&mut [original, variant.as_mut()], &trial, interrupt) {
        Ok(compared) => compared,
        Err(error) => return refused(error.to_string()),
    };
    let outcome = match compared.variants.into_iter().next() {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => return refused(error.to_string()),
        None => return refused("it was not run".to_owned()),
    };
    let speed = speed(&compared.original, &outcome.timed, Objective::Both);
    let verdict = decide(speed, outcome.drift.as_ref(), DRIFT_MAX);
    Quantization {
        adopted: verdict.is_better(),
        reason: verdict.to_string(),
        speed: Some(speed),
        cosine: outcome.drift.map(|drift| drift.cosine),
        bytes: Some(rewritten.bytes),
    }
}

//! Logits of classes to scores, best first; the same for pictures, texts and sounds.

use super::labels::numbered;
use super::{ClassScore, Outputs, PipelineError};

/// What turns logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreFunction {
    Softmax,
    Sigmoid,
    None,
}

impl ScoreFunction {
    /// The one of `problem_type` in `config`, a model's `config.json`, where it has one.
    pub(crate) fn from_config(config: Option<&serde_json::Value>) -> Option<ScoreFunction> {
        match config?.get("problem_type")?.as_str()? {
            "multi_label_classification" => Some(ScoreFunction::Sigmoid),
            "single_label_classification" => Some(ScoreFunction::Softmax),
            "regression" => Some(ScoreFunction::None),
            _ => None,
        }
    }

    /// The one that a request names.
    pub(crate) fn from_name(name: &str) -> Option<ScoreFunction> {
        match name {
            "softmax" => Some(ScoreFunction::Softmax),
            "sigmoid" => Some(ScoreFunction::Sigmoid),
            "none" => Some(ScoreFunction::None),
            _ => None,
        }
    }
}

/// The logits of one item: the output `name`, of shape `[1, classes]`, axes of size 1 aside.
///
/// # Errors
/// Where there is none, or it is of another kind.
pub(crate) fn logits_of(outputs: &Outputs, name: &str) -> Result<Vec<f32>, PipelineError> {
    let logits = outputs.iter().find(|(output, _)| output == name).and_then(|(_, value)| value.as_tensor());
    let Some(logits) = logits else {
        return Err(PipelineError::Outputs(format!("the graph gave no tensor named {name:?}")));
    };
    let wrong = || {
        PipelineError::Outputs(format!(
            "output {name:?}: expected a float tensor of shape [1, classes], got {} of shape {:?}",
            logits.dtype(),
            logits.shape()
        ))
    };
    let Some((&rows, dims)) = logits.shape().split_first() else { return Err(wrong()) };
    let one_axis = dims.iter().filter(|&&size| size != 1).count() <= 1;
    if rows != 1 || dims.is_empty() || !one_axis || logits.is_empty() {
        return Err(wrong());
    }
    logits.to_f32().ok_or_else(wrong)
}

/// One score for each logit.
pub(crate) fn scores(logits: &[f32], function: ScoreFunction) -> Vec<f32> {
    match function {
        ScoreFunction::None => logits.to_vec(),
        ScoreFunction::Sigmoid => logits.iter().map(|&logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        ScoreFunction::Softmax => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = logits.iter().map(|&logit| (logit - largest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect()
        }
    }
}

/// The `top_k` best of `scores`, best first: NaN last, equal scores in the order of the classes. Classes that have no label
/// are `LABEL_n`.
pub(crate) fn ranked(scores: Vec<f32>, labels: &[String], top_k: usize) -> Vec<ClassScore> {
    let mut ranked: Vec<(usize, f32)> = scores.into_iter().enumerate().collect();
    let best_first = |a: &(usize, f32), b: &(usize, f32)| {
        let by_score = b.1.partial_cmp(&a.1).unwrap_or_else(|| a.1.is_nan().cmp(&b.1.is_nan()));
        by_score.then_with(|| a.0.cmp(&b.0))
    };
    if top_k < ranked.len() {
        ranked.select_nth_unstable_by(top_k, best_first);
        ranked.truncate(top_k);
    }
    ranked.sort_unstable_by(best_first);
    let label = |index: usize| labels.get(index).cloned().unwrap_or_else(|| numbered(index));
    ranked.into_iter().map(|(index, score)| ClassScore { label: label(index), score }).collect()
}

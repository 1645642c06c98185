//! Logits to class scores, for every task that gives some: which output they are, what function is applied, best first.
//!
//! Invariant: scores are ranked with what is no number last and equal scores in the order of the classes. Knows no task.

use super::detect::Sources;
use super::labels::{self, numbered};
use super::outputs::{tensor_named, unexpected};
use super::parameters::{count_from, read_each};
use super::{ClassScore, Outputs, Parameters, PipelineError, Prediction, only_run};
use crate::tensor::{Dim, Spec};
use serde_json::Value;

/// What turns logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreFunction {
    Softmax,
    Sigmoid,
    None,
}

impl ScoreFunction {
    /// The function that `problem_type` of `config.json` stands for; `None` where it does not say.
    pub(crate) fn from_config(config: Option<&Value>) -> Option<ScoreFunction> {
        match config?.get("problem_type")?.as_str()? {
            "multi_label_classification" => Some(ScoreFunction::Sigmoid),
            "single_label_classification" => Some(ScoreFunction::Softmax),
            "regression" => Some(ScoreFunction::None),
            _ => None,
        }
    }

    /// The value of a request's `function_to_apply`.
    ///
    /// # Errors
    /// Says what it may be.
    pub(crate) fn from_parameter(value: &Value) -> Result<ScoreFunction, String> {
        match value.as_str() {
            Some("softmax") => Ok(ScoreFunction::Softmax),
            Some("sigmoid") => Ok(ScoreFunction::Sigmoid),
            Some("none") => Ok(ScoreFunction::None),
            _ => Err(format!("expected \"softmax\", \"sigmoid\" or \"none\", got {value}")),
        }
    }

    /// What transformers applies where nothing says: softmax to several classes, sigmoid to one.
    pub(crate) fn of_classes(count: usize) -> ScoreFunction {
        if count > 1 { ScoreFunction::Softmax } else { ScoreFunction::Sigmoid }
    }

    pub(crate) fn apply(self, logits: &[f32]) -> Vec<f32> {
        match self {
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
}

/// What every classification has behind its graph: the output with the logits, the names and the function.
#[derive(Debug, Clone)]
pub(crate) struct Classifier {
    /// Name of the output that holds the logits.
    pub(crate) output: String,
    /// By class; where shorter than the logits, the rest is `LABEL_n`.
    pub(crate) labels: Vec<String>,
    /// What `config.json` says; `None`: softmax for several classes, sigmoid for one.
    pub(crate) function: Option<ScoreFunction>,
}

impl Classifier {
    /// # Errors
    /// [`PipelineError::Setup`] where the graph has no class scores, or the names do not suit them.
    pub(crate) fn find(sources: &Sources<'_>) -> Result<Classifier, PipelineError> {
        let (output, classes) = find_logits(sources.outputs).map_err(PipelineError::Setup)?;
        let config = sources.config()?;
        let labels = labels::find(sources.folder, sources.manifest.labels.as_ref(), config, classes)?;
        Ok(Classifier { output, labels, function: ScoreFunction::from_config(config) })
    }

    /// The classes of an item that needs one run.
    ///
    /// # Errors
    /// Where the output is missing or has another type or shape.
    pub(crate) fn classes(&self, outputs: &[Outputs], wanted: ClassParameters) -> Result<Prediction, PipelineError> {
        let logits = class_logits(only_run(outputs)?, &self.output)?;
        let function = wanted.function.or(self.function).unwrap_or_else(|| ScoreFunction::of_classes(logits.len()));
        Ok(Prediction::Classes(classify(&logits, function, &self.labels, wanted.top_k)))
    }
}

/// What a request may say of the classes that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClassParameters {
    pub(crate) top_k: usize,
    /// `None`: the model's own.
    pub(crate) function: Option<ScoreFunction>,
}

impl ClassParameters {
    /// Reads `top_k`, 5 where it is not given, and `function_to_apply`, for a task that takes no other.
    ///
    /// # Errors
    /// Names the parameter and what it may be.
    pub(crate) fn read(task: &str, parameters: &Parameters) -> Result<ClassParameters, PipelineError> {
        let mut read = ClassParameters { top_k: 5, function: None };
        read_each(task, "top_k and function_to_apply", parameters, |name, value| {
            match (name, value) {
                ("top_k" | "function_to_apply", Value::Null) => {}
                ("top_k", value) => read.top_k = count_from(value)?,
                ("function_to_apply", value) => read.function = Some(ScoreFunction::from_parameter(value)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(read)
    }
}

/// The logits among `outputs` and their fixed number of classes: the output of that name, else the first float output
/// of rank 2 or more.
///
/// # Errors
/// Says in one sentence why there is none.
pub(crate) fn find_logits(outputs: &[Spec]) -> Result<(String, Option<usize>), String> {
    let is_logits = |spec: &&Spec| {
        let float = matches!(spec.ty.dtype(), Some(dtype) if dtype.is_float() && dtype.bits() >= 16);
        float && spec.ty.shape().is_none_or(|dims| dims.len() >= 2)
    };
    let named = outputs.iter().filter(|spec| spec.name == "logits").find(is_logits);
    let Some(spec) = named.or_else(|| outputs.iter().find(is_logits)) else {
        return Err("the graph has no float output of rank 2 or more that could hold the class scores".to_owned());
    };
    let Some(dims) = spec.ty.shape() else { return Ok((spec.name.clone(), None)) };
    let mut classes = None;
    for dim in dims.iter().skip(1) {
        match dim {
            Dim::Fixed(1) => {}
            Dim::Dynamic(_) => return Ok((spec.name.clone(), None)),
            Dim::Fixed(size) if classes.is_none() => classes = Some(*size),
            Dim::Fixed(_) => {
                return Err(format!("output {:?} is {}: expected one score for each class", spec.name, spec.ty));
            }
        }
    }
    match classes.unwrap_or(1) {
        0 => Err(format!("output {:?} is {}: it has no classes", spec.name, spec.ty)),
        classes => Ok((spec.name.clone(), Some(classes))),
    }
}

/// The logits of one item, one for each class and at least one.
///
/// # Errors
/// Where the output is missing or has another type or shape.
pub(crate) fn class_logits(outputs: &Outputs, name: &str) -> Result<Vec<f32>, PipelineError> {
    let logits = tensor_named(outputs, name)?;
    let wrong = || unexpected(name, "[1, classes]", logits);
    let Some((&rows, dims)) = logits.shape().split_first() else { return Err(wrong()) };
    let one_axis = dims.iter().filter(|&&size| size != 1).count() <= 1;
    if rows != 1 || dims.is_empty() || !one_axis || logits.is_empty() {
        return Err(wrong());
    }
    logits.to_f32().ok_or_else(wrong)
}

/// The `top_k` best scores, each with its place.
pub(crate) fn rank(scores: impl IntoIterator<Item = (usize, f32)>, top_k: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = scores.into_iter().collect();
    let best_first = |a: &(usize, f32), b: &(usize, f32)| {
        let by_score = b.1.partial_cmp(&a.1).unwrap_or_else(|| a.1.is_nan().cmp(&b.1.is_nan()));
        by_score.then_with(|| a.0.cmp(&b.0))
    };
    if top_k < ranked.len() {
        ranked.select_nth_unstable_by(top_k, best_first);
        ranked.truncate(top_k);
    }
    ranked.sort_unstable_by(best_first);
    ranked
}

/// The `top_k` best classes; one without a name is `LABEL_n`.
pub(crate) fn classify(logits: &[f32], function: ScoreFunction, labels: &[String], top_k: usize) -> Vec<ClassScore> {
    let ranked = rank(function.apply(logits).into_iter().enumerate(), top_k);
    ranked.into_iter().map(|(index, score)| ClassScore { label: label_of(labels, index), score }).collect()
}

pub(crate) fn label_of(labels: &[String], index: usize) -> String {
    labels.get(index).cloned().unwrap_or_else(|| numbered(index))
}

/// The place of the largest score, the first of equals; 0 where none is a number.
pub(crate) fn best(scores: &[f32]) -> usize {
    let mut best = None;
    for (index, &score) in scores.iter().enumerate() {
        if best.is_none_or(|(_, most)| score > most) && !score.is_nan() {
            best = Some((index, score));
        }
    }
    best.map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::tensor::DType;

    #[test]
    fn logits_are_found_by_name_or_type() {
        let (ids, hidden) = (spec("ids", DType::Int64, &[-1, 4]), spec("hidden", DType::Fp32, &[-1, 7, 7]));
        let logits = spec("logits", DType::Fp16, &[-1, 10, 1, 1]);
        assert_eq!(find_logits(&[ids.clone(), hidden.clone(), logits]), Ok(("logits".into(), Some(10))));
        assert_eq!(find_logits(&[spec("a", DType::Fp32, &[-1, -1])]), Ok(("a".into(), None)));
        assert_eq!(find_logits(&[spec("a", DType::Fp32, &[-1, 1])]), Ok(("a".into(), Some(1))));
        assert!(find_logits(&[ids]).unwrap_err().contains("no float output"));
        assert!(find_logits(&[hidden]).unwrap_err().contains("expected one score"));
    }

    #[test]
    fn the_best_come_first_and_what_is_no_number_last() {
        let scores = [f32::NAN, 1.0, 3.0, 1.0];
        let ranked: Vec<usize> = rank(scores.into_iter().enumerate(), 9).into_iter().map(|(place, _)| place).collect();
        assert_eq!(ranked, [2, 1, 3, 0]);
        assert_eq!(rank(scores.into_iter().enumerate(), 1), [(2, 3.0)]);
        assert_eq!((best(&scores), best(&[f32::NAN, 1.0, 1.0]), best(&[f32::NAN]), best(&[])), (2, 1, 0, 0));
    }
}

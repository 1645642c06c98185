//! `image-classification`: pictures to class scores, with the answers of transformers' pipeline.
//!
//! Knows nothing of files: what it needs is found by [`crate::pipelines::detect()`].

use super::Pictures;
use super::outputs::{tensor_named, unexpected};
use crate::pipelines::labels::numbered;
use crate::pipelines::{
    ClassScore, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, only_run,
};
use crate::tensor::{Dim, Spec};

const DEFAULT_TOP_K: usize = 5;

/// What turns logits into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreFunction {
    Softmax,
    Sigmoid,
    None,
}

/// One model's classification of pictures.
pub struct ImageClassification {
    pub pictures: Pictures,
    /// Name of the output that holds the logits.
    pub output: String,
    /// By class; where shorter than the logits, the rest is `LABEL_n`.
    pub labels: Vec<String>,
    /// `None`: softmax for several classes, sigmoid for one.
    pub function: Option<ScoreFunction>,
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

struct Checked {
    top_k: usize,
    function: Option<ScoreFunction>,
}

impl Pipeline for ImageClassification {
    fn task(&self) -> &'static str {
        "image-classification"
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        self.pictures.prepare(item)
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = read_parameters(parameters)?;
        let logits = tensor_named(only_run(outputs)?, &self.output)?;
        let wrong = || unexpected(&self.output, "[1, classes]", logits);
        let Some((&rows, dims)) = logits.shape().split_first() else { return Err(wrong()) };
        let one_axis = dims.iter().filter(|&&size| size != 1).count() <= 1;
        if rows != 1 || dims.is_empty() || !one_axis || logits.is_empty() {
            return Err(wrong());
        }
        let values = logits.to_f32().ok_or_else(wrong)?;
        Ok(self.classify(&values, checked.function.or(self.function), checked.top_k))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

impl ImageClassification {
    fn classify(&self, logits: &[f32], function: Option<ScoreFunction>, top_k: usize) -> Prediction {
        let function = match function {
            Some(function) => function,
            None if logits.len() > 1 => ScoreFunction::Softmax,
            None => ScoreFunction::Sigmoid,
        };
        let mut ranked: Vec<(usize, f32)> = scores(logits, function).into_iter().enumerate().collect();
        // NaN last, equal scores in the order of the classes.
        let best_first = |a: &(usize, f32), b: &(usize, f32)| {
            let by_score = b.1.partial_cmp(&a.1).unwrap_or_else(|| a.1.is_nan().cmp(&b.1.is_nan()));
            by_score.then_with(|| a.0.cmp(&b.0))
        };
        if top_k < ranked.len() {
            ranked.select_nth_unstable_by(top_k, best_first);
            ranked.truncate(top_k);
        }
        ranked.sort_unstable_by(best_first);
        let label = |index: usize| self.labels.get(index).cloned().unwrap_or_else(|| numbered(index));
        Prediction::Classes(
            ranked.into_iter().map(|(index, score)| ClassScore { label: label(index), score }).collect(),
        )
    }
}

fn scores(logits: &[f32], function: ScoreFunction) -> Vec<f32> {
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

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked { top_k: DEFAULT_TOP_K, function: None };
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        match (name.as_str(), value) {
            ("top_k" | "function_to_apply", serde_json::Value::Null) => {}
            ("top_k", value) => match value.as_u64() {
                Some(top_k) if top_k >= 1 => checked.top_k = usize::try_from(top_k).unwrap_or(usize::MAX),
                _ => return wrong(format!("expected an integer of at least 1, got {value}")),
            },
            ("function_to_apply", value) => match value.as_str() {
                Some("softmax") => checked.function = Some(ScoreFunction::Softmax),
                Some("sigmoid") => checked.function = Some(ScoreFunction::Sigmoid),
                Some("none") => checked.function = Some(ScoreFunction::None),
                _ => return wrong(format!("expected \"softmax\", \"sigmoid\" or \"none\", got {value}")),
            },
            _ => {
                return wrong(
                    "image-classification has no such parameter; it takes top_k and function_to_apply".to_owned(),
                );
            }
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::spec;
    use super::*;
    use crate::tensor::{DType, Tensor, Value};
    use serde_json::json;

    fn square() -> ImageClassification {
        let labels = ["ant", "bee", "cat"].map(String::from).to_vec();
        let pictures = Pictures::exact(4, 4);
        ImageClassification { pictures, output: "logits".into(), labels, function: None }
    }

    fn parameters(value: serde_json::Value) -> Parameters {
        value.as_object().unwrap().clone()
    }

    fn output(dtype: DType, shape: &[usize], values: &[f32]) -> Vec<(String, Value)> {
        let shape = shape.to_vec();
        let tensor = match dtype {
            DType::Fp16 => Tensor::from_vec(dtype, shape, values.iter().map(|&x| half::f16::from_f32(x)).collect()),
            DType::Int32 => Tensor::from_vec(dtype, shape, values.iter().map(|&x| x as i32).collect()),
            _ => Tensor::from_vec(dtype, shape, values.to_vec()),
        };
        vec![("other".into(), Value::None), ("logits".into(), tensor.unwrap().into())]
    }

    #[track_caller]
    fn check(shape: &[usize], values: &[f32], given: serde_json::Value, expected: &[(&str, f32)]) {
        let outputs = output(DType::Fp32, shape, values);
        let Prediction::Classes(got) = square().postprocess(&[outputs], &Notes::default(), &parameters(given)).unwrap()
        else {
            panic!("classes")
        };
        let names: Vec<_> = got.iter().map(|class| class.label.as_str()).collect();
        assert_eq!(names, expected.iter().map(|class| class.0).collect::<Vec<_>>());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got.score - expected.1).abs() < 1e-6 || got.score.is_nan() && expected.1.is_nan(), "{got:?}");
        }
    }

    #[test]
    fn scores_are_best_first() {
        let third = 1.0 / 3.0;
        check(&[1, 3], &[0.0, 0.0, 0.0], json!({}), &[("ant", third), ("bee", third), ("cat", third)]);
        check(&[1, 3], &[1e30, 0.0, 2e30], json!({"top_k": 1}), &[("cat", 1.0)]);
        check(
            &[1, 3, 1, 1],
            &[0.0, 2.0, 1.0],
            json!({"top_k": 2, "function_to_apply": "none"}),
            &[("bee", 2.0), ("cat", 1.0)],
        );
        check(&[1, 1], &[0.0], json!({}), &[("ant", 0.5)]);
        check(&[1, 2], &[0.0, 100.0], json!({"function_to_apply": "sigmoid"}), &[("bee", 1.0), ("ant", 0.5)]);
        check(
            &[1, 4],
            &[0.0, 1.0, 2.0, 3.0],
            json!({"top_k": 99, "function_to_apply": "none"}),
            &[("LABEL_3", 3.0), ("cat", 2.0), ("bee", 1.0), ("ant", 0.0)],
        );
        let nan = f32::NAN;
        check(
            &[1, 3],
            &[nan, 1.0, 2.0],
            json!({"function_to_apply": "none"}),
            &[("cat", 2.0), ("bee", 1.0), ("ant", nan)],
        );
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        for (dtype, shape, count) in [
            (DType::Fp32, vec![2, 3], 6),
            (DType::Fp32, vec![], 1),
            (DType::Fp32, vec![1], 1),
            (DType::Fp32, vec![1, 0], 0),
            (DType::Fp32, vec![1, 2, 2], 4),
            (DType::Int32, vec![1, 3], 3),
        ] {
            let outputs = output(dtype, &shape, &vec![0.0; count]);
            let got = square().postprocess(&[outputs], &Notes::default(), &Parameters::new());
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{dtype} {shape:?}: {got:?}");
        }
        assert!(matches!(
            square().postprocess(&[vec![]], &Notes::default(), &Parameters::new()),
            Err(PipelineError::Outputs(_))
        ));
        assert!(
            square()
                .postprocess(&[output(DType::Fp16, &[1, 3], &[0.0; 3])], &Notes::default(), &Parameters::new())
                .is_ok()
        );
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (given, expected) in [
            (json!({"top_k": 0}), "parameters.top_k: expected an integer of at least 1, got 0"),
            (json!({"top_k": "5"}), "parameters.top_k: expected an integer"),
            (json!({"function_to_apply": "tanh"}), "parameters.function_to_apply: expected \"softmax\""),
            (json!({"topk": 5}), "parameters.topk: image-classification has no such parameter; it takes top_k and"),
        ] {
            let error = square().check_parameters(&parameters(given)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(square().check_parameters(&parameters(json!({"top_k": null}))).is_ok());
    }

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
}

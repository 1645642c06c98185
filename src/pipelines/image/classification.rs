//! `image-classification`: pictures to class scores, with the answers of transformers' pipeline.
//!
//! Knows nothing of files: what it needs is found by [`crate::pipelines::detect()`].

use super::Pictures;
use crate::pipelines::scores::{class_logits, classify, count_from};
use crate::pipelines::{
    Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, ScoreFunction, only_run,
};

const DEFAULT_TOP_K: usize = 5;

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
        let logits = class_logits(only_run(outputs)?, &self.output)?;
        let function = checked.function.or(self.function).unwrap_or_else(|| ScoreFunction::of_classes(logits.len()));
        Ok(Prediction::Classes(classify(&logits, function, &self.labels, checked.top_k)))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked { top_k: DEFAULT_TOP_K, function: None };
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        match (name.as_str(), value) {
            ("top_k" | "function_to_apply", serde_json::Value::Null) => {}
            ("top_k", value) => match count_from(value) {
                Ok(top_k) => checked.top_k = top_k,
                Err(problem) => return wrong(problem),
            },
            ("function_to_apply", value) => match ScoreFunction::from_parameter(value) {
                Ok(function) => checked.function = Some(function),
                Err(problem) => return wrong(problem),
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
}

//! `image-classification`: pictures to class scores, with the answers of transformers' pipeline.

use super::{ImageInput, Pictures};
use crate::pipelines::detect::{Made, PREPROCESSOR, Sources};
use crate::pipelines::scores::{ClassParameters, Classifier, ScoreFunction};
use crate::pipelines::{Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared};
use std::sync::Arc;

pub(crate) const TASK: &str = "image-classification";

/// One model's classification of pictures.
pub struct ImageClassification {
    pictures: Pictures,
    classifier: Classifier,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let input = ImageInput::find(sources.inputs).map_err(PipelineError::Setup)?;
    let mut classifier = Classifier::find(sources)?;
    // Unlike those of texts: transformers' pipeline for pictures goes by the number of classes in every other case.
    classifier.function = classifier.function.filter(|function| *function == ScoreFunction::Sigmoid);
    let sized = sources.manifest.image.as_ref().is_some_and(|image| image.size.is_some());
    let fixed = input.height.is_some() && input.width.is_some();
    if !sized && !fixed && !sources.folder.join(PREPROCESSOR).is_file() {
        return Err(PipelineError::Setup(format!(
            "the size of the pictures is unknown: add {PREPROCESSOR}, or size in [pipeline.image] of model.toml"
        )));
    }
    let (pictures, prepared) = Pictures::of(sources)?;
    Ok(Made { pipeline: Arc::new(ImageClassification { pictures, classifier }), how: prepared.to_owned() })
}

impl Pipeline for ImageClassification {
    fn task(&self) -> &'static str {
        TASK
    }

    fn labels(&self) -> &[String] {
        &self.classifier.labels
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
        self.classifier.classes(outputs, ClassParameters::read(TASK, parameters)?)
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        ClassParameters::read(TASK, parameters).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor, Value};
    use serde_json::json;

    fn square() -> ImageClassification {
        let labels = ["ant", "bee", "cat"].map(String::from).to_vec();
        let pictures = Pictures::exact(4, 4);
        ImageClassification { pictures, classifier: Classifier { output: "logits".into(), labels, function: None } }
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

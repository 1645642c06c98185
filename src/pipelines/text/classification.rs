//! `text-classification`: a text, or two that are read together, to class scores, with the answers of transformers' pipeline.
//!
//! The answer is always a list, best first: of the best class alone unless the request asks for more.

use super::model::TextModel;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::parameters::{count_from, flag, read_each};
use crate::pipelines::scores::{ClassParameters, Classifier};
use crate::pipelines::{
    Item, Notes, Outputs, Padding, Parameters, Pipeline, PipelineError, Prediction, Prepared, ScoreFunction,
};
use serde_json::Value as Json;
use std::sync::Arc;

const TASK: &str = "text-classification";
const TAKES: &str = "top_k, function_to_apply, return_all_scores and truncation";

struct TextClassification {
    model: TextModel,
    classifier: Classifier,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let classifier = Classifier::find(sources)?;
    let model = TextModel::find(sources)?;
    let how = format!("classes are scored by {}; {}", classifier.output, model.describe());
    Ok(Made { pipeline: Arc::new(TextClassification { model, classifier }), how })
}

struct Checked {
    classes: ClassParameters,
    truncation: bool,
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked { classes: ClassParameters { top_k: 1, function: None }, truncation: true };
    let mut all = None;
    let mut top_k = None;
    read_each(TASK, TAKES, parameters, |name, value| {
        match (name, value) {
            ("top_k", Json::Null) => top_k = Some(usize::MAX),
            ("top_k", value) => top_k = Some(count_from(value)?),
            ("function_to_apply" | "return_all_scores" | "truncation", Json::Null) => {}
            ("function_to_apply", value) => checked.classes.function = Some(ScoreFunction::from_parameter(value)?),
            ("return_all_scores", value) => all = Some(flag(value)?),
            ("truncation", value) => checked.truncation = flag(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    // As transformers: the older parameter counts only where the newer is absent.
    checked.classes.top_k = top_k.unwrap_or(if all == Some(true) { usize::MAX } else { 1 });
    Ok(checked)
}

impl Pipeline for TextClassification {
    fn task(&self) -> &'static str {
        TASK
    }

    fn labels(&self) -> &[String] {
        &self.classifier.labels
    }

    fn preprocess_reads(&self, parameter: &str) -> bool {
        parameter == "truncation"
    }

    fn padding(&self) -> Option<Padding> {
        self.model.padding.clone()
    }

    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError> {
        let truncation = read_parameters(parameters)?.truncation;
        let tokenizer = &self.model.tokenizer;
        let tokens = match item {
            Item::Pair { text, text_pair } => {
                tokenizer.check_length(text)?;
                tokenizer.check_length(text_pair)?;
                tokenizer.encode_pair(text, text_pair)?
            }
            item => {
                let text = super::text_of(item)?;
                tokenizer.check_length(text)?;
                tokenizer.encode(text)?
            }
        };
        if tokens.truncated && !truncation {
            let most = tokenizer.max_tokens;
            let problem = format!(
                "{} has more than the {most} tokens that the model takes, and truncation is false",
                item.noun()
            );
            return Err(PipelineError::Item { index: 0, problem });
        }
        Ok(Prepared::one(self.model.inputs.tensors(&tokens)?))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        self.classifier.classes(outputs, read_parameters(parameters)?.classes)
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{made, numbers, output, parameters, wrong_parameter};
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::tensor::DType;
    use serde_json::json;

    fn pipeline(config: Json) -> Arc<dyn Pipeline> {
        made(TASK, config, &[], &[spec("logits", DType::Fp32, &[-1, -1])]).unwrap()
    }

    #[track_caller]
    fn check(config: Json, logits: &[f32], given: Json, expected: &[(&str, f32)]) {
        let outputs = vec![output("logits", &[1, logits.len()], logits)];
        let got = pipeline(config).postprocess(&[outputs], &Notes::default(), &parameters(given)).unwrap();
        let Prediction::Classes(got) = got else { panic!("{got:?}") };
        let got: Vec<(&str, f32)> = got.iter().map(|class| (class.label.as_str(), class.score)).collect();
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for (got, expected) in got.iter().zip(expected) {
            assert!(got.0 == expected.0 && (got.1 - expected.1).abs() < 1e-6, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn the_function_is_that_of_the_problem_and_the_best_class_is_given() {
        let labels = json!({"id2label": {"0": "no", "1": "yes"}});
        check(labels.clone(), &[0.0, 0.0], json!({}), &[("no", 0.5)]);
        let all = [("yes", 0.880_797), ("no", 0.119_203)];
        check(labels.clone(), &[0.0, 2.0], json!({"top_k": null}), &all);
        check(labels.clone(), &[0.0, 2.0], json!({"return_all_scores": true}), &all);
        check(labels.clone(), &[0.0, 2.0], json!({"return_all_scores": true, "top_k": 1}), &all[..1]);
        let raw = json!({"top_k": 9, "function_to_apply": "none"});
        check(labels, &[0.0, 2.0], raw, &[("yes", 2.0), ("no", 0.0)]);
        let of = |problem: &str| json!({"problem_type": problem, "id2label": {"0": "a", "1": "b"}});
        check(of("multi_label_classification"), &[0.0, 2.0], json!({"top_k": null}), &[("b", 0.880_797), ("a", 0.5)]);
        check(of("regression"), &[0.25, -2.0], json!({}), &[("a", 0.25)]);
        check(json!({}), &[2.0], json!({}), &[("LABEL_0", 0.880_797)]);
    }

    #[test]
    fn the_second_text_of_a_pair_has_its_own_type() {
        let pipeline = pipeline(json!({"max_position_embeddings": 4}));
        let pair = |text: &str, text_pair: &str| Item::Pair { text: text.into(), text_pair: text_pair.into() };
        let run =
            |item: &Item, given: Json| pipeline.preprocess(item, &parameters(given)).map(|made| made.runs[0].clone());
        let got = run(&pair("w0 w1", "w2"), json!({})).unwrap();
        assert_eq!(numbers(&got, "input_ids"), [7, 8, 9]);
        assert_eq!(numbers(&got, "token_type_ids"), [0, 0, 1]);
        // The longer one is cut.
        assert_eq!(numbers(&run(&pair("w0 w1 w2 w3", "w4"), json!({})).unwrap(), "input_ids"), [7, 8, 9, 11]);
        let refused = run(&pair("w0 w1 w2 w3", "w4"), json!({"truncation": false})).unwrap_err().to_string();
        assert!(refused.contains("a pair of texts has more than the 4 tokens"), "{refused}");
        let refused = run(&pair("w0", &"w".repeat(500)), json!({})).unwrap_err();
        assert!(matches!(refused, PipelineError::TooLarge { .. }), "{refused}");
        let question = Item::Question { question: "w0".into(), context: "w1".into() };
        assert!(run(&question, json!({})).unwrap_err().to_string().contains("expected a text"));
    }

    #[test]
    fn wrong_parameters_say_what_they_may_be() {
        let pipeline = pipeline(json!({}));
        wrong_parameter(
            pipeline.as_ref(),
            json!({"topk": 1}),
            "text-classification has no such parameter; it takes top_k",
        );
        wrong_parameter(pipeline.as_ref(), json!({"top_k": 0}), "parameters.top_k: expected an integer of at least 1");
        wrong_parameter(pipeline.as_ref(), json!({"truncation": "yes"}), "expected true or false, got \"yes\"");
        wrong_parameter(pipeline.as_ref(), json!({"function_to_apply": "tanh"}), "expected \"softmax\"");
        assert!(pipeline.preprocess_reads("truncation") && !pipeline.preprocess_reads("top_k"));
        assert!(pipeline.padding().is_some());
    }

    #[test]
    fn labels_that_do_not_suit_the_graph_are_refused() {
        let config = json!({"id2label": {"0": "a"}});
        let error = made(TASK, config, &[], &[spec("logits", DType::Fp32, &[-1, 2])]).err().unwrap();
        assert!(
            error.contains("id2label of config.json has 1 labels, but the graph's output has 2 classes"),
            "{error}"
        );
    }
}

//! `zero-shot-classification`: which of the request's own labels suit a text, with the answers of transformers' pipeline.
//!
//! A model of inference between sentences is asked of each label whether the text entails a sentence with it: a run for each
//! label.

use super::candidates::Candidates;
use super::model::TextModel;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::parameters::{flag, read_each};
use crate::pipelines::scores::{class_logits, find_logits, rank};
use crate::pipelines::{
    Item, Notes, Outputs, Padding, Parameters, Pipeline, PipelineError, Prediction, Prepared, RankedLabels,
    ScoreFunction, labels,
};
use serde_json::Value as Json;
use std::sync::Arc;

const TASK: &str = "zero-shot-classification";
const TAKES: &str = "candidate_labels, hypothesis_template and multi_label";
const DEFAULT_TEMPLATE: &str = "This example is {}.";

struct ZeroShotClassification {
    model: TextModel,
    /// Name of the output that holds the logits.
    output: String,
    labels: Vec<String>,
    entailment: usize,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (output, classes) = find_logits(sources.outputs).map_err(PipelineError::Setup)?;
    let model = TextModel::find(sources)?;
    let config = sources.config()?;
    let labels = labels::find(sources.folder, sources.manifest.labels.as_ref(), config, classes)?;
    let entails = |label: &str| label.to_lowercase().starts_with("entail");
    let ids = config.and_then(|config| config.get("label2id")).and_then(Json::as_object);
    let by_label = ids.into_iter().flatten().find(|(label, _)| entails(label)).and_then(|(_, id)| id.as_u64());
    let by_label = by_label.and_then(|id| usize::try_from(id).ok());
    let Some(entailment) = by_label.or_else(|| labels.iter().position(|label| entails(label))) else {
        let problem = "no class is named entailment: name it in id2label of config.json or in labels of model.toml";
        return Err(PipelineError::Setup(problem.to_owned()));
    };
    let how = format!("labels are scored by class {entailment} of {output}; {}", model.describe());
    Ok(Made { pipeline: Arc::new(ZeroShotClassification { model, output, labels, entailment }), how })
}

struct Checked {
    candidates: Candidates,
    multi_label: bool,
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let (mut candidates, mut multi_label) = (Candidates::with_template(DEFAULT_TEMPLATE), false);
    read_each(TASK, TAKES, parameters, |name, value| {
        match (name, value) {
            ("multi_label", Json::Null) => {}
            ("multi_label", value) => multi_label = flag(value)?,
            _ => return candidates.read(name, value),
        }
        Ok(true)
    })?;
    Ok(Checked { candidates: candidates.checked()?, multi_label })
}

/// The text, for the answer.
struct Sequence(String);

impl Pipeline for ZeroShotClassification {
    fn task(&self) -> &'static str {
        TASK
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn preprocess_reads(&self, parameter: &str) -> bool {
        matches!(parameter, "candidate_labels" | "hypothesis_template")
    }

    fn padding(&self) -> Option<Padding> {
        self.model.padding.clone()
    }

    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError> {
        let checked = read_parameters(parameters)?;
        let text = super::text_of(item)?;
        let tokenizer = &self.model.tokenizer;
        tokenizer.check_length(text)?;
        if text.is_empty() {
            return Err(PipelineError::Item { index: 0, problem: "the text is empty; send one".to_owned() });
        }
        let tokens = tokenizer.encode_beside(text, &checked.candidates.sentences(tokenizer)?)?;
        let runs = tokens.iter().map(|tokens| self.model.inputs.tensors(tokens)).collect::<Result<_, _>>()?;
        Ok(Prepared::new(runs, Notes::new(Sequence(text.to_owned()), text.len())))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let Checked { candidates: Candidates { labels: candidates, .. }, multi_label } = read_parameters(parameters)?;
        let Sequence(sequence) = notes.get::<Sequence>()?;
        if outputs.len() != candidates.len() {
            let (runs, came) = (candidates.len(), outputs.len());
            return Err(PipelineError::Outputs(format!("an item of {runs} runs came back with {came}")));
        }
        let logits = outputs.iter().map(|outputs| class_logits(outputs, &self.output));
        let logits: Vec<Vec<f32>> = logits.collect::<Result<_, _>>()?;
        let entailment = self.entailment;
        let missing = |logits: &Vec<f32>| {
            let classes = logits.len();
            PipelineError::Outputs(format!("entailment is class {entailment}, but the graph gave {classes} classes"))
        };
        let entails = |logits: &Vec<f32>| logits.get(entailment).copied().ok_or_else(|| missing(logits));
        let scores = match multi_label || candidates.len() == 1 {
            // Against contradiction, each label for itself.
            true => {
                let alone = |logits: &Vec<f32>| {
                    let contradiction = if entailment == 0 { logits.last() } else { logits.first() };
                    let contradiction = contradiction.copied().unwrap_or(f32::NAN);
                    let pair = ScoreFunction::Softmax.apply(&[contradiction, entails(logits)?]);
                    Ok(pair.last().copied().unwrap_or(f32::NAN))
                };
                logits.iter().map(alone).collect::<Result<Vec<f32>, PipelineError>>()?
            }
            // Against the other labels.
            false => ScoreFunction::Softmax.apply(&logits.iter().map(entails).collect::<Result<Vec<f32>, _>>()?),
        };
        let ranked = rank(scores.into_iter().enumerate(), usize::MAX);
        let (labels, scores) =
            ranked.into_iter().filter_map(|(place, score)| Some((candidates.get(place)?.clone(), score))).unzip();
        Ok(Prediction::RankedLabels(RankedLabels { sequence: sequence.clone(), labels, scores }))
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

    fn pipeline(labels: Json) -> Result<Arc<dyn Pipeline>, String> {
        let config = json!({"id2label": labels, "max_position_embeddings": 6});
        made(TASK, config, &[], &[spec("logits", DType::Fp32, &[-1, 3])])
    }

    fn mnli() -> Arc<dyn Pipeline> {
        pipeline(json!({"0": "contradiction", "1": "neutral", "2": "ENTAILMENT"})).unwrap()
    }

    #[test]
    fn each_label_is_a_sentence_beside_the_text_of_which_only_the_text_is_cut() {
        let given = json!({"candidate_labels": " w1 ,w2, ", "hypothesis_template": "the {}"});
        let prepared = mnli().preprocess(&Item::Text("w0 w3 w4 w5 w6".into()), &parameters(given)).unwrap();
        let ids: Vec<Vec<i64>> = prepared.runs.iter().map(|run| numbers(run, "input_ids")).collect();
        assert_eq!(ids, [[7, 10, 11, 12, 4, 8], [7, 10, 11, 12, 4, 9]]);
        assert_eq!(numbers(&prepared.runs[0], "token_type_ids"), [0, 0, 0, 0, 1, 1]);
        let long = json!({"candidate_labels": ["w1 w1 w1 w1 w1 w1"], "hypothesis_template": "{}"});
        let refused = mnli().preprocess(&Item::Text("w0".into()), &parameters(long)).unwrap_err().to_string();
        assert!(refused.contains("leaves no room for the text within the 6 tokens"), "{refused}");
        let slots = json!({"candidate_labels": ["w1".repeat(50)], "hypothesis_template": "{}{}{}{}"});
        let refused = mnli().preprocess(&Item::Text("w0".into()), &parameters(slots)).unwrap_err();
        assert!(matches!(refused, PipelineError::TooLarge { .. }), "{refused}");
        let some = json!({"candidate_labels": "w1"});
        assert!(mnli().preprocess(&Item::Text(String::new()), &parameters(some)).is_err());
    }

    #[track_caller]
    fn check(pipeline: &dyn Pipeline, logits: &[[f32; 3]], given: Json, expected: &[(&str, f32)]) {
        let outputs: Vec<Outputs> = logits.iter().map(|logits| vec![output("logits", &[1, 3], logits)]).collect();
        let notes = Notes::new(Sequence("the text".into()), 8);
        let got = pipeline.postprocess(&outputs, &notes, &parameters(given)).unwrap();
        let Prediction::RankedLabels(got) = got else { panic!("{got:?}") };
        assert_eq!(got.sequence, "the text");
        assert_eq!(got.labels, expected.iter().map(|one| one.0).collect::<Vec<_>>());
        for (got, expected) in got.scores.iter().zip(expected) {
            assert!((got - expected.1).abs() < 1e-6, "{got} is not {}", expected.1);
        }
    }

    #[test]
    fn labels_compete_or_are_each_judged_against_contradiction() {
        let logits = [[1.0, 5.0, 1.0], [0.0, 5.0, 3.0]];
        let given = json!({"candidate_labels": ["a", "b"]});
        check(mnli().as_ref(), &logits, given, &[("b", 0.880_797), ("a", 0.119_203)]);
        let given = json!({"candidate_labels": ["a", "b"], "multi_label": true});
        check(mnli().as_ref(), &logits, given, &[("b", 0.952_574), ("a", 0.5)]);
        check(mnli().as_ref(), &logits[1..], json!({"candidate_labels": "b"}), &[("b", 0.952_574)]);
        let first = pipeline(json!(["entailment", "neutral", "contradiction"])).unwrap();
        check(first.as_ref(), &[[3.0, 5.0, 0.0]], json!({"candidate_labels": "b"}), &[("b", 0.952_574)]);
    }

    #[test]
    fn parameters_that_are_missing_or_wrong_are_named() {
        let pipeline = mnli();
        wrong_parameter(
            pipeline.as_ref(),
            json!({}),
            "parameters.candidate_labels: expected the labels to choose from",
        );
        wrong_parameter(pipeline.as_ref(), json!({"candidate_labels": " , "}), "expected the labels to choose from");
        let many = vec!["x"; 257];
        wrong_parameter(pipeline.as_ref(), json!({"candidate_labels": many}), "at most 256 labels, got 257");
        let template = json!({"candidate_labels": "a", "hypothesis_template": "it is so"});
        wrong_parameter(pipeline.as_ref(), template, "expected a text with {} where the label goes");
        wrong_parameter(
            pipeline.as_ref(),
            json!({"labels": "a"}),
            "it takes candidate_labels, hypothesis_template and",
        );
    }

    #[test]
    fn a_model_without_entailment_is_refused() {
        let error = pipeline(json!(["a", "b", "c"])).err().unwrap();
        assert!(error.contains("no class is named entailment"), "{error}");
    }
}

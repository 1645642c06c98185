//! `audio-classification`: sounds to class scores, with the answers of transformers' pipeline: softmax unless the request
//! says otherwise, whatever `config.json` says of the problem.

use super::input::AudioInput;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::scores::{ScoreFunction, class_logits, classify, count_from, find_logits};
use crate::pipelines::{
    Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, labels, only_run,
};
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "audio-classification";
const DEFAULT_TOP_K: usize = 5;

/// One model's classification of sounds.
pub struct AudioClassification {
    input: AudioInput,
    /// Name of the output that holds the logits.
    output: String,
    /// By class; where shorter than the logits, the rest is `LABEL_n`.
    labels: Vec<String>,
}

struct Checked {
    top_k: usize,
    function: ScoreFunction,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let input = AudioInput::new(sources)?;
    let (output, classes) = find_logits(sources.outputs).map_err(PipelineError::Setup)?;
    let config = sources.config()?;
    let labels = labels::find(sources.folder, sources.manifest.labels.as_ref(), config, classes)?;
    let how = input.describe();
    Ok(Made { pipeline: Arc::new(AudioClassification { input, output, labels }), how })
}

impl Pipeline for AudioClassification {
    fn task(&self) -> &'static str {
        TASK
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        Ok(Prepared::one(self.input.tensors(&self.input.samples(item)?)?))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = read_parameters(parameters)?;
        let logits = class_logits(only_run(outputs)?, &self.output)?;
        Ok(Prediction::Classes(classify(&logits, checked.function, &self.labels, checked.top_k)))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked { top_k: DEFAULT_TOP_K, function: ScoreFunction::Softmax };
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        match (name.as_str(), value) {
            ("top_k" | "function_to_apply", Value::Null) => {}
            ("top_k", value) => match count_from(value) {
                Ok(top_k) => checked.top_k = top_k,
                Err(problem) => return wrong(problem),
            },
            ("function_to_apply", value) => match ScoreFunction::from_parameter(value) {
                Ok(function) => checked.function = function,
                Err(problem) => return wrong(problem),
            },
            _ => return wrong(format!("{TASK} has no such parameter; it takes top_k and function_to_apply")),
        }
    }
    Ok(checked)
}

//! `audio-classification`: sounds to class scores, with the answers of transformers' pipeline: softmax unless the request
//! says otherwise, whatever `config.json` says of the problem.

use super::input::AudioInput;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::scores::{ClassParameters, Classifier, ScoreFunction};
use crate::pipelines::{Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared};
use std::sync::Arc;

pub(crate) const TASK: &str = "audio-classification";

/// One model's classification of sounds.
pub struct AudioClassification {
    input: AudioInput,
    classifier: Classifier,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let input = AudioInput::new(sources)?;
    // transformers' pipeline for sounds does not look at `problem_type`.
    let classifier = Classifier { function: Some(ScoreFunction::Softmax), ..Classifier::find(sources)? };
    let how = input.describe();
    Ok(Made { pipeline: Arc::new(AudioClassification { input, classifier }), how })
}

impl Pipeline for AudioClassification {
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
        Ok(Prepared::one(self.input.tensors(&self.input.samples(item)?)?))
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

//! Inputs of a model as its graph takes them, without running it: for whoever measures forms of the graph on what is asked.

use super::{EngineError, InferenceEngine, LoadedModel, check};
use crate::pipelines::{Item, Parameters, PipelineError};
use crate::runtime::Input;
use crate::tensor::Value;
use std::sync::Arc;
use std::time::Duration;

impl InferenceEngine {
    /// A tensor request's values as the graph's inputs.
    ///
    /// # Errors
    /// As [`InferenceEngine::infer`] refuses them.
    pub fn tensors_of(&self, model: &LoadedModel, values: Vec<(String, Value)>) -> Result<Vec<Input>, EngineError> {
        check::inputs(&model.inputs, values)
    }

    /// The inputs of each run that the items would bring about, as far as they do not depend on a run.
    ///
    /// # Errors
    /// As [`InferenceEngine::predict`] refuses them.
    pub async fn items_of(
        &self,
        model: &Arc<LoadedModel>,
        items: Vec<Item>,
        parameters: Parameters,
    ) -> Result<Vec<Vec<Input>>, EngineError> {
        let pipeline = super::predict::pipeline_of(model)?;
        pipeline.check_parameters(&parameters)?;
        let model = model.clone();
        let prepare = move || {
            let mut runs = Vec::new();
            for (place, item) in items.iter().enumerate() {
                let prepared = pipeline.preprocess(item, &parameters).map_err(|error| error.at(place))?;
                // What hands tensors from run to run has no inputs of its own but those of the first.
                let independent = if prepared.carried.is_empty() { usize::MAX } else { 1 };
                for tensors in prepared.runs.into_iter().take(independent) {
                    let values = tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
                    let inputs = check::inputs(&model.inputs, values);
                    runs.push(
                        inputs.map_err(|error| PipelineError::Item { index: place, problem: error.to_string() })?,
                    );
                }
            }
            Ok::<_, PipelineError>(runs)
        };
        Ok(self.compute(prepare).await??)
    }

    /// The inputs of the samples that the model's `[[warmup]]` names; empty where there are none. One that cannot be read is
    /// left out: a load has refused it, or the file has gone since.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn samples_of(&self, model: &Arc<LoadedModel>) -> Result<Vec<Vec<Input>>, EngineError> {
        let manifest = self.status(&model.name)?.manifest;
        if manifest.warmup.is_empty() || model.pipeline.is_none() {
            return Ok(Vec::new());
        }
        let of = model.clone();
        let read = self.0.tasks.spawn_blocking(move || of.sample_items(&manifest)).await;
        let items = read.map_err(|error| EngineError::Internal { detail: format!("reading samples: {error}") })?;
        let mut runs = Vec::new();
        for item in items {
            runs.extend(self.items_of(model, vec![item], Parameters::new()).await.unwrap_or_default());
        }
        Ok(runs)
    }

    /// The inputs of requests that the model has kept as a sample (`record_requests`), in no order.
    pub fn recorded_of(&self, model: &LoadedModel) -> Vec<Vec<Input>> {
        model.caches.recorder.recorded()
    }

    /// Whether the model has no request in flight and ended none within `time`.
    pub fn is_quiet(&self, model: &LoadedModel, time: Duration) -> bool {
        let last = model.stats.totals().last_request;
        let passed = last.and_then(|at| at.elapsed().ok());
        model.handle.in_flight() == 0 && (last.is_none() || passed.is_some_and(|passed| passed >= time))
    }
}

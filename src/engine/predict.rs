//! The task's own input to the task's own answer: preprocess, infer, postprocess.

use super::request::{InferRequest, InferResponse, PredictRequest, PredictResponse};
use super::{EngineError, InferenceEngine, LoadedModel};
use crate::pipelines::Pipeline;
use crate::telemetry::stats::Stage;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl InferenceEngine {
    /// Predicts for each item of the request, in order.
    ///
    /// # Errors
    /// As [`InferenceEngine::infer`]; `InvalidInput` with the item's index where one cannot be used, and where the model
    /// has no task.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request.
    pub async fn predict(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
    ) -> Result<PredictResponse, EngineError> {
        let pipeline = pipeline_of(model)?;
        let (items, parameters) = (request.items.len(), request.parameters.clone());
        let mut response = self.predict_raw(model, request).await?;
        let started = Instant::now();
        let outputs = std::mem::take(&mut response.outputs);
        let predictions = self
            .0
            .pool
            .run(move || pipeline.postprocess(&outputs, items, &parameters))
            .await?
            .map_err(internal_outputs)?;
        response.timing.postprocess = started.elapsed();
        model.stats.record_stage(Stage::Postprocess, response.timing.postprocess);
        Ok(PredictResponse { predictions, timing: response.timing })
    }

    /// Preprocesses and infers, and gives the graph's outputs as they are.
    ///
    /// # Errors
    /// As [`InferenceEngine::predict`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request.
    pub async fn predict_raw(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
    ) -> Result<InferResponse, EngineError> {
        let pipeline = pipeline_of(model)?;
        let PredictRequest { items, parameters, deadline } = request;
        pipeline.check_parameters(&parameters)?;
        let started = Instant::now();
        let inputs = self.0.pool.run(move || pipeline.preprocess(&items, &parameters)).await??;
        let preprocess: Duration = started.elapsed();
        model.stats.record_stage(Stage::Preprocess, preprocess);
        let inputs = inputs.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        let mut response = self.infer(model, InferRequest { inputs, outputs: Vec::new(), deadline }).await?;
        response.timing.preprocess = preprocess;
        Ok(response)
    }
}

fn pipeline_of(model: &LoadedModel) -> Result<Arc<dyn Pipeline>, EngineError> {
    model.pipeline.clone().ok_or_else(|| EngineError::TakesTensors {
        model: model.name.to_string(),
        got: "images, text or audio",
        inputs: model.inputs.iter().map(|spec| format!("'{}' {}", spec.name, spec.ty)).collect::<Vec<_>>().join(", "),
    })
}

/// Outputs that do not suit the task are the model's fault: the client is told nothing of the inside.
fn internal_outputs(error: crate::pipelines::PipelineError) -> EngineError {
    match error {
        crate::pipelines::PipelineError::Outputs(detail) => EngineError::Internal { detail },
        other => EngineError::Pipeline(other),
    }
}

//! Tensors in, tensors out: check, queue, run.

use super::request::{InferRequest, InferResponse, Timing};
use super::{EngineError, InferenceEngine, LoadedModel, check};
use crate::telemetry::stats::Stage;
use std::sync::Arc;

impl InferenceEngine {
    /// Runs the graph on the request's values.
    ///
    /// # Errors
    /// `InvalidInput` naming the field, `Overloaded` where the queue is full, `DeadlineExceeded`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request; a run in progress is stopped.
    pub async fn infer(&self, model: &Arc<LoadedModel>, request: InferRequest) -> Result<InferResponse, EngineError> {
        let inputs = check::inputs(&model.inputs, request.inputs)?;
        let wanted = check::outputs(&model.outputs, &request.outputs)?;
        let completed = model.handle.run(inputs, wanted.clone(), request.deadline).await?;
        model.stats.record_stage(Stage::Queue, completed.queue);
        model.stats.record_stage(Stage::Inference, completed.inference);
        let names = wanted.iter().filter_map(|&index| model.outputs.get(index)).map(|spec| spec.name.clone());
        Ok(InferResponse {
            outputs: names.zip(completed.outputs).collect(),
            timing: Timing { queue: completed.queue, inference: completed.inference, ..Timing::default() },
        })
    }
}

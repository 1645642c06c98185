//! Tensors in, tensors out: check, queue, run.

use super::request::{InferRequest, InferResponse, RunOptions, Timing};
use super::{EngineError, InferenceEngine, LoadedModel, check};
use crate::batching::{BatchError, PartError, Request};
use crate::cache::{KeyMaker, value_bytes};
use crate::pipelines::PipelineError;
use crate::runtime::{Input, RuntimeError};
use crate::telemetry::stats::Stage;
use crate::telemetry::trace;
use crate::tensor::Value;
use std::sync::Arc;
use std::time::Instant;

impl InferenceEngine {
    /// Runs the graph on the request's values.
    ///
    /// # Errors
    /// `InvalidInput` naming the field, `Overloaded` where the queue is full, `DeadlineExceeded`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request; a run in progress is stopped.
    pub async fn infer(&self, model: &Arc<LoadedModel>, request: InferRequest) -> Result<InferResponse, EngineError> {
        if model.caches.responses.is_none() {
            return self.run_tensors(model, request).await;
        }
        let options = request.options.clone();
        let size = request.inputs.iter().map(|(_, value)| value_bytes(value)).sum();
        let make = |keys: &KeyMaker, request: &InferRequest| keys.tensors(&request.inputs, &request.outputs);
        let (key, request) = self.key(model, size, request, make).await?;
        self.answer_once(model, key, &options, self.run_tensors(model, request)).await
    }

    /// The run itself.
    pub(super) async fn run_tensors(
        &self,
        model: &Arc<LoadedModel>,
        request: InferRequest,
    ) -> Result<InferResponse, EngineError> {
        let inputs = check::inputs(&model.inputs, request.inputs)?;
        let wanted = check::outputs(&model.outputs, &request.outputs)?;
        let mut response = self.run_parts(model, vec![inputs], wanted, request.options).await?;
        Ok(InferResponse { outputs: response.parts.pop().unwrap_or_default(), timing: response.timing, cache: None })
    }

    /// Runs the graph on parts whose inputs are checked. A part's error names its place where there are several.
    pub(super) async fn run_parts(
        &self,
        model: &Arc<LoadedModel>,
        parts: Vec<Vec<Input>>,
        wanted: Vec<usize>,
        options: RunOptions,
    ) -> Result<PartsResponse, EngineError> {
        let RunOptions { deadline, priority, queue_timeout, progress, sender } = options;
        let single = parts.len() == 1;
        let names: Vec<&String> =
            wanted.iter().filter_map(|&index| model.outputs.get(index)).map(|spec| &spec.name).collect();
        parts.iter().for_each(|part| model.caches.recorder.record(part));
        let request = Request { parts, outputs: wanted.clone(), deadline, priority, queue_timeout, progress, sender };
        let started = Instant::now();
        let completed = model.handle.run(request).await.map_err(|PartError { part, error }| match error {
            BatchError::Runtime(RuntimeError::Run(problem)) if !single => {
                PipelineError::Item { index: part, problem }.into()
            }
            error => EngineError::from(error),
        })?;
        model.stats.record_stage(Stage::Queue, completed.queue);
        model.stats.record_stage(Stage::Inference, completed.inference);
        trace::stage("queue", started, completed.queue);
        trace::stage("run", started + completed.queue, completed.inference);
        let named = |values: Vec<Value>| names.iter().map(|name| (*name).clone()).zip(values).collect();
        Ok(PartsResponse {
            parts: completed.parts.into_iter().map(named).collect(),
            timing: Timing { queue: completed.queue, inference: completed.inference, ..Timing::default() },
        })
    }
}

/// The outputs of each part, by name.
pub(super) struct PartsResponse {
    pub(super) parts: Vec<Vec<(String, Value)>>,
    pub(super) timing: Timing,
}

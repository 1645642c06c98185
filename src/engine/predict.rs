//! The task's own input to the task's own answer: preprocess, infer, postprocess.

use super::request::{InferResponse, PredictRequest, PredictResponse, Timing};
use super::{EngineError, InferenceEngine, LoadedModel, cache, check};
use crate::cache::{Key, KeyMaker, Wanted, item_bytes};
use crate::pipelines::{Pipeline, PipelineError, Prediction};
use crate::telemetry::stats::Stage;
use crate::tensor::{Tensor, Value};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of the tensors that the items of one request may become: small files can make large tensors.
const PREPARED_BYTES_MAX: usize = 1 << 30;

/// The graph's outputs by name.
type Outputs = Vec<(String, Value)>;

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
        if model.caches.responses.is_none() {
            return self.run_predict(model, request).await;
        }
        let options = request.options.clone();
        let (key, request) = self.items_key(model, request, Wanted::Predictions).await?;
        self.answer_once(model, key, &options, self.run_predict(model, request)).await
    }

    /// The prediction itself.
    async fn run_predict(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
    ) -> Result<PredictResponse, EngineError> {
        let pipeline = pipeline_of(model)?;
        let parameters = request.parameters.clone();
        let (items, mut timing) = self.run_items(model, request).await?;
        let started = Instant::now();
        let read = move || items.iter().map(|outputs| pipeline.postprocess(outputs, &parameters)).collect();
        let predictions: Result<Vec<Prediction>, PipelineError> = self.compute(read).await?;
        timing.postprocess = started.elapsed();
        model.stats.record_stage(Stage::Postprocess, timing.postprocess);
        Ok(PredictResponse { predictions: predictions.map_err(internal_outputs)?, timing, cache: None })
    }

    /// Preprocesses and infers, and gives the graph's outputs as they are, the items' rows one after another.
    ///
    /// # Errors
    /// As [`InferenceEngine::predict`]; `InvalidInput` where the items' outputs do not have one shape.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request.
    pub async fn predict_raw(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
    ) -> Result<InferResponse, EngineError> {
        if model.caches.responses.is_none() {
            return self.run_raw(model, request).await;
        }
        let options = request.options.clone();
        let (key, request) = self.items_key(model, request, Wanted::Outputs).await?;
        self.answer_once(model, key, &options, self.run_raw(model, request)).await
    }

    /// The run itself.
    async fn run_raw(&self, model: &Arc<LoadedModel>, request: PredictRequest) -> Result<InferResponse, EngineError> {
        let (items, timing) = self.run_items(model, request).await?;
        Ok(InferResponse { outputs: joined(items)?, timing, cache: None })
    }

    async fn items_key(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
        wanted: Wanted,
    ) -> Result<(Key, PredictRequest), EngineError> {
        let size = request.items.iter().map(item_bytes).sum();
        let make =
            move |keys: &KeyMaker, request: &PredictRequest| keys.items(&request.items, &request.parameters, wanted);
        self.key(model, size, request, make).await
    }

    /// The graph's outputs of each item, in order.
    async fn run_items(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
    ) -> Result<(Vec<Outputs>, Timing), EngineError> {
        let pipeline = pipeline_of(model)?;
        let PredictRequest { items, parameters, options } = request;
        pipeline.check_parameters(&parameters)?;
        let started = Instant::now();
        let parameters = Arc::new(parameters);
        // As many at once as the pool has threads; an item's error names its place.
        let prepared = futures_util::future::try_join_all(items.into_iter().enumerate().map(|(place, item)| {
            let (model, pipeline, parameters) = (model.clone(), pipeline.clone(), parameters.clone());
            async move {
                let work = move || cache::prepare(&model, pipeline.as_ref(), &item, &parameters);
                let inputs = self.compute(work).await?;
                Ok::<_, EngineError>(inputs.map_err(|error| error.at(place))?)
            }
        }))
        .await?;
        let preprocess = started.elapsed();
        model.stats.record_stage(Stage::Preprocess, preprocess);
        let mut parts = Vec::with_capacity(prepared.len());
        let mut bytes = 0usize;
        for (place, tensors) in prepared.into_iter().enumerate() {
            bytes = tensors.iter().fold(bytes, |bytes, (_, tensor)| bytes.saturating_add(tensor.bytes().len()));
            if bytes > PREPARED_BYTES_MAX {
                let problem = format!(
                    "the items before it already make more than {PREPARED_BYTES_MAX} bytes for the model; send fewer at once"
                );
                return Err(PipelineError::TooLarge { index: place, problem }.into());
            }
            let values = tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
            parts.push(check::inputs(&model.inputs, values)?);
        }
        let wanted = check::outputs(&model.outputs, &[])?;
        let response = self.run_parts(model, parts, wanted, options).await?;
        Ok((response.parts, Timing { preprocess, ..response.timing }))
    }
}

/// The items' outputs as one tensor each, dim 0 being the items' rows in order.
fn joined(mut items: Vec<Outputs>) -> Result<Outputs, EngineError> {
    if items.len() == 1 {
        return Ok(items.remove(0));
    }
    let Some(first) = items.first() else { return Ok(Vec::new()) };
    let names: Vec<String> = first.iter().map(|(name, _)| name.clone()).collect();
    let mut outputs = Vec::with_capacity(names.len());
    for (index, name) in names.into_iter().enumerate() {
        let parts: Vec<&Tensor> =
            items.iter().filter_map(|item| item.get(index)).filter_map(|(_, value)| value.as_tensor()).collect();
        let whole = Tensor::concat(&parts).filter(|_| parts.len() == items.len());
        let whole = whole.ok_or_else(|| {
            let problem =
                "the items' outputs differ in shape and cannot be given as one tensor; send one item at a time";
            EngineError::output(&name, problem.to_owned())
        })?;
        outputs.push((name, whole.into()));
    }
    Ok(outputs)
}

fn pipeline_of(model: &LoadedModel) -> Result<Arc<dyn Pipeline>, EngineError> {
    model.pipeline.clone().ok_or_else(|| EngineError::TakesTensors {
        model: model.name.to_string(),
        got: "images, text or audio",
        inputs: model.inputs.iter().map(|spec| format!("'{}' {}", spec.name, spec.ty)).collect::<Vec<_>>().join(", "),
    })
}

/// Outputs that do not suit the task are the model's fault: the client is told nothing of the inside.
fn internal_outputs(error: PipelineError) -> EngineError {
    match error {
        PipelineError::Outputs(detail) => EngineError::Internal { detail },
        other => EngineError::Pipeline(other),
    }
}

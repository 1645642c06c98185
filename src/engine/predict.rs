//! The task's own input to the task's own answer: preprocess, infer, postprocess.

use super::chain::{self, Chain};
use super::infer::PartsResponse;
use super::request::{InferResponse, PredictRequest, PredictResponse, RunOptions, Timing};
use super::{EngineError, InferenceEngine, LoadedModel, cache, check};
use crate::batching::BatchError;
use crate::cache::{Key, KeyMaker, Wanted};
use crate::pipelines::text::token_count;
use crate::pipelines::{
    Inputs, Item, ItemError, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared,
};
use crate::runtime::{Input, RuntimeError};
use crate::telemetry::stats::Stage;
use crate::telemetry::trace;
use crate::tensor::{Tensor, Value};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Bytes of the tensors that the items of one request may become: small files can make large tensors.
const PREPARED_BYTES_MAX: usize = 1 << 30;

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
        mut request: PredictRequest,
    ) -> Result<PredictResponse, EngineError> {
        let pipeline = pipeline_of(model)?;
        let on_error = OnError::take(&mut request.parameters)?;
        let parameters = request.parameters.clone();
        let (items, mut timing) = self.run_items(model, request, on_error).await?;
        let tokens = items.iter().flatten().map(|ran| ran.tokens as u64).sum();
        let started = Instant::now();
        let read = move || {
            let predictions = items.into_iter().enumerate().map(|(place, item)| {
                let prediction = item.and_then(|ran| pipeline.postprocess(&ran.outputs, &ran.notes, &parameters));
                on_error.settle(place, prediction)
            });
            predictions.collect()
        };
        let predictions: Result<Vec<Prediction>, PipelineError> = self.compute(read).await?;
        timing.postprocess = started.elapsed();
        model.stats.record_stage(Stage::Postprocess, timing.postprocess);
        trace::stage("postprocess", started, timing.postprocess);
        Ok(PredictResponse { predictions: predictions.map_err(internal_outputs)?, tokens, timing, cache: None })
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
        if request.parameters.contains_key(ON_ERROR) {
            let problem = "tensors have no place for an item's error; leave it out".to_owned();
            return Err(PipelineError::Parameter { name: ON_ERROR.to_owned(), problem }.into());
        }
        let (items, timing) = self.run_items(model, request, OnError::Refuse).await?;
        let runs = items.into_iter().collect::<Result<Vec<Ran>, PipelineError>>()?;
        Ok(InferResponse {
            outputs: joined(runs.into_iter().flat_map(|ran| ran.outputs).collect())?,
            timing,
            cache: None,
        })
    }

    async fn items_key(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
        wanted: Wanted,
    ) -> Result<(Key, PredictRequest), EngineError> {
        let size = request.items.iter().map(Item::bytes).sum();
        let make =
            move |keys: &KeyMaker, request: &PredictRequest| keys.items(&request.items, &request.parameters, wanted);
        self.key(model, size, request, make).await
    }

    /// What the graph gave for each item, in order. An item's own error stands in its place only where `on_error` says so.
    async fn run_items(
        &self,
        model: &Arc<LoadedModel>,
        request: PredictRequest,
        on_error: OnError,
    ) -> Result<(Vec<Result<Ran, PipelineError>>, Timing), EngineError> {
        let pipeline = pipeline_of(model)?;
        let PredictRequest { items, parameters, options } = request;
        pipeline.check_parameters(&parameters)?;
        let started = Instant::now();
        let parameters = Arc::new(parameters);
        // As many at once as the pool has threads; an item's error names its place.
        let made = futures_util::future::try_join_all(items.into_iter().enumerate().map(|(place, item)| {
            let (model, pipeline, parameters) = (model.clone(), pipeline.clone(), parameters.clone());
            async move {
                let work = move || {
                    let prepared = cache::prepare(&model, pipeline.as_ref(), &item, &parameters)?;
                    work_of(&model, prepared)
                };
                on_error.keep(self.compute(work).await?.map_err(|error| error.at(place)))
            }
        }))
        .await?;
        let preprocess = started.elapsed();
        model.stats.record_stage(Stage::Preprocess, preprocess);
        trace::stage("preprocess", started, preprocess);
        let mut work = Vec::with_capacity(made.len());
        let mut bytes = 0usize;
        for (place, made) in made.into_iter().enumerate() {
            bytes = made.as_ref().map_or(bytes, |work| bytes.saturating_add(work.bytes));
            work.push(match made {
                Ok(_) if bytes > PREPARED_BYTES_MAX => {
                    let problem = format!(
                        "the items up to this one make more than {PREPARED_BYTES_MAX} bytes for the model; send fewer at once"
                    );
                    on_error.keep(Err(PipelineError::TooLarge { index: place, problem }))?
                }
                made => made,
            });
        }
        let wanted = check::outputs(&model.outputs, &[])?;
        let has_chains = work.iter().flatten().any(|work| !work.carried.is_empty());
        let (ran, timing) = match on_error {
            OnError::Refuse if !has_chains => self.run_together(model, work, wanted, options).await?,
            OnError::Refuse | OnError::Item => self.run_apart(model, work, wanted, options, on_error).await?,
        };
        Ok((ran, Timing { preprocess, ..timing }))
    }

    /// All items in one call; the first that fails is the call's error.
    async fn run_together(
        &self,
        model: &Arc<LoadedModel>,
        work: Vec<Result<Work, PipelineError>>,
        wanted: Vec<usize>,
        options: RunOptions,
    ) -> Result<(Vec<Result<Ran, PipelineError>>, Timing), EngineError> {
        let work = work.into_iter().collect::<Result<Vec<Work>, PipelineError>>()?;
        let owners: Vec<usize> =
            work.iter().enumerate().flat_map(|(place, work)| std::iter::repeat_n(place, work.parts.len())).collect();
        let mut parts = Vec::with_capacity(owners.len());
        let mut rest = Vec::with_capacity(work.len());
        for Work { parts: own, tokens, notes, .. } in work {
            rest.push((own.len(), tokens, notes));
            parts.extend(own);
        }
        let response = self.run_parts(model, parts, wanted, options).await.map_err(|error| match error {
            EngineError::Pipeline(PipelineError::Item { index, problem }) => {
                let index = owners.get(index).copied().unwrap_or(index);
                PipelineError::Item { index, problem }.into()
            }
            other => other,
        })?;
        let mut outputs = response.parts.into_iter();
        let ran = rest
            .into_iter()
            .map(|(count, tokens, notes)| Ok(Ran { outputs: outputs.by_ref().take(count).collect(), tokens, notes }));
        Ok((ran.collect(), response.timing))
    }

    /// Each item in calls of its own, side by side, so that none sees the error of another.
    async fn run_apart(
        &self,
        model: &Arc<LoadedModel>,
        work: Vec<Result<Work, PipelineError>>,
        wanted: Vec<usize>,
        options: RunOptions,
        on_error: OnError,
    ) -> Result<(Vec<Result<Ran, PipelineError>>, Timing), EngineError> {
        // Each chain has a run in the queue: as many as keep the instances busy, and no more of one request.
        let (chains, has_begun) = (Semaphore::new(model.instances + 1), AtomicBool::new(false));
        let ran = futures_util::future::try_join_all(work.into_iter().enumerate().map(|(place, work)| {
            let (wanted, options, chains, has_begun) = (wanted.clone(), options.clone(), &chains, &has_begun);
            async move {
                let Work { parts, carried, tokens, notes, .. } = match work {
                    Ok(work) => work,
                    Err(error) => return Ok((Err(error), Timing::default())),
                };
                let response = if carried.is_empty() {
                    self.run_parts(model, parts, wanted, options).await
                } else {
                    // Never closed.
                    let _turn = chains.acquire().await;
                    self.run_chain(model, Chain { parts, carried }, options, has_begun).await
                };
                let ran = match response {
                    Ok(PartsResponse { parts, timing }) => {
                        return Ok((Ok(Ran { outputs: parts, tokens, notes }), timing));
                    }
                    Err(
                        EngineError::Pipeline(PipelineError::Item { problem, .. })
                        | EngineError::Batch(BatchError::Runtime(RuntimeError::Run(problem))),
                    ) => on_error.keep(Err(PipelineError::Item { index: place, problem }))?,
                    Err(other) => return Err(other),
                };
                Ok((ran, Timing::default()))
            }
        }))
        .await?;
        let longest = |of: fn(&Timing) -> Duration| ran.iter().map(|(_, timing)| of(timing)).max().unwrap_or_default();
        let timing = Timing {
            queue: longest(|timing| timing.queue),
            inference: longest(|timing| timing.inference),
            ..Timing::default()
        };
        Ok((ran.into_iter().map(|(ran, _)| ran).collect(), timing))
    }
}

/// The parameter that says what an item's error means for the others.
const ON_ERROR: &str = "on_error";

/// What becomes of a request one of whose items cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnError {
    /// The request is refused, naming the item.
    Refuse,
    /// The item's prediction is its error.
    Item,
}

impl OnError {
    /// Takes the parameter out of those that the task is told.
    fn take(parameters: &mut Parameters) -> Result<OnError, PipelineError> {
        match parameters.remove(ON_ERROR) {
            None | Some(serde_json::Value::Null) => Ok(OnError::Refuse),
            Some(value) => match value.as_str() {
                Some("refuse") => Ok(OnError::Refuse),
                Some("item") => Ok(OnError::Item),
                _ => {
                    let problem = format!("expected \"refuse\" or \"item\", got {value}");
                    Err(PipelineError::Parameter { name: ON_ERROR.to_owned(), problem })
                }
            },
        }
    }

    /// An item's own error stays with the item where it may; every other ends the request.
    fn keep<T>(self, result: Result<T, PipelineError>) -> Result<Result<T, PipelineError>, EngineError> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(error @ (PipelineError::Item { .. } | PipelineError::TooLarge { .. })) if self == OnError::Item => {
                Ok(Err(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn settle(self, place: usize, prediction: Result<Prediction, PipelineError>) -> Result<Prediction, PipelineError> {
        match prediction {
            Err(error @ (PipelineError::Item { .. } | PipelineError::TooLarge { .. })) if self == OnError::Item => {
                Ok(Prediction::Error(ItemError { error: error.at(place).to_string() }))
            }
            other => other,
        }
    }
}

/// One item, checked and not yet run.
struct Work {
    parts: Vec<Vec<Input>>,
    /// Where the parts are a chain, what each hands to the next: an output and an input, by index.
    carried: Vec<(usize, usize)>,
    /// Of the parts' tensors.
    bytes: usize,
    tokens: usize,
    notes: Notes,
}

/// What the graph gave for one item's runs.
struct Ran {
    outputs: Vec<Outputs>,
    tokens: usize,
    notes: Notes,
}

/// An item's runs, checked. Off the async threads: a long sound has thousands.
fn work_of(model: &LoadedModel, prepared: Prepared) -> Result<Work, PipelineError> {
    let Prepared { runs, carried: carries, notes } = prepared;
    let tokens = runs.iter().map(|inputs| token_count(inputs)).sum();
    let bytes = runs.iter().flatten().fold(0usize, |bytes, (_, tensor)| bytes.saturating_add(tensor.bytes().len()));
    let carried = chain::links(model, &carries)?;
    // Stand in for what the runs before give, so that all else is checked before the first of them.
    let first = runs.first().into_iter().flatten();
    let stand_ins: Inputs =
        first.filter(|(name, _)| carries.iter().any(|carry| carry.input == *name)).cloned().collect();
    let mut parts: Vec<Vec<Input>> = Vec::with_capacity(runs.len());
    for mut tensors in runs {
        if !parts.is_empty() {
            tensors.extend(stand_ins.iter().cloned());
        }
        let values = tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        let inputs = check::inputs(&model.inputs, values);
        parts.push(inputs.map_err(|error| PipelineError::Item { index: 0, problem: error.to_string() })?);
    }
    Ok(Work { parts, carried, bytes, tokens, notes })
}

/// The runs' outputs as one tensor each, dim 0 being their rows in order. The last run has all outputs; of a chain, the
/// others lack what they handed on.
fn joined(mut runs: Vec<Outputs>) -> Result<Outputs, EngineError> {
    if runs.len() == 1 {
        return Ok(runs.remove(0));
    }
    let Some(last) = runs.last() else { return Ok(Vec::new()) };
    let names: Vec<String> = last.iter().map(|(name, _)| name.clone()).collect();
    let mut outputs = Vec::with_capacity(names.len());
    for name in names {
        let values: Vec<&Value> =
            runs.iter().flatten().filter(|(output, _)| *output == name).map(|(_, value)| value).collect();
        let parts: Vec<&Tensor> = values.iter().filter_map(|value| value.as_tensor()).collect();
        let whole = Tensor::concat(&parts).filter(|_| parts.len() == values.len());
        let whole = whole.ok_or_else(|| {
            let problem =
                "the items' outputs differ in shape and cannot be given as one tensor; send one item at a time";
            EngineError::output(&name, problem.to_owned())
        })?;
        outputs.push((name, whole.into()));
    }
    Ok(outputs)
}

pub(super) fn pipeline_of(model: &LoadedModel) -> Result<Arc<dyn Pipeline>, EngineError> {
    model.pipeline.clone().ok_or_else(|| EngineError::TakesTensors {
        model: model.name.to_string(),
        got: "images, text or audio",
        why: model.task_evidence.clone(),
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

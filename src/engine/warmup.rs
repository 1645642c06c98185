//! Runs a model on made-up inputs, one run after another, and says how long each took.
//!
//! The runs wait in the queue like anybody's and are counted as runs; they are no requests and leave the times of the stages
//! alone. No cache is asked.

use super::{EngineError, InferenceEngine, LoadedModel};
use crate::batching::{BatchError, Joining, Request};
use crate::runtime::{Input, RuntimeError};
use crate::tensor::{Dim, Spec};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Runs of each size.
const ITERATIONS_MAX: usize = 1000;
/// Sizes of one call.
const SIZES_MAX: usize = 16;

/// What is to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmupRequest {
    /// Runs of each size, from 1 to 1000; `None` = as many as at load, and at least one.
    pub iterations: Option<usize>,
    /// Rows of the runs, one size after another, up to 16 of them; empty = the least that the model takes.
    pub batch_sizes: Vec<usize>,
    /// When the last run must have ended.
    pub deadline: Instant,
}

/// The runs of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Warmed {
    pub batch_size: usize,
    /// From the queue to the answer, in the order of the runs.
    pub latencies: Vec<Duration>,
}

impl InferenceEngine {
    /// Runs the model on made-up inputs of each size, in order.
    ///
    /// # Errors
    /// `InvalidInput` naming the field where the model cannot take a size or refuses what is made up; those of a run.
    ///
    /// # Cancel safety
    /// Dropping the future stops the run in progress.
    pub async fn warm_up(&self, model: &Arc<LoadedModel>, request: WarmupRequest) -> Result<Vec<Warmed>, EngineError> {
        let WarmupRequest { iterations, batch_sizes, deadline } = request;
        let iterations = match iterations {
            Some(given) if !(1..=ITERATIONS_MAX).contains(&given) => {
                return Err(refused("iterations", format!("must be from 1 to {ITERATIONS_MAX}, got {given}")));
            }
            Some(given) => given,
            None => model.settings.warmup_iterations.clamp(1, ITERATIONS_MAX),
        };
        if batch_sizes.len() > SIZES_MAX {
            let problem = format!("expected at most {SIZES_MAX} sizes, got {}", batch_sizes.len());
            return Err(refused("batch_sizes", problem));
        }
        // All before the first run.
        for (place, size) in batch_sizes.iter().enumerate() {
            check_size(&model.inputs, *size, rows_max(model))
                .map_err(|problem| refused(&format!("batch_sizes[{place}]"), problem))?;
        }
        if batch_sizes.is_empty() {
            let warmed = self.warm_up_size(model, None, "batch_sizes", iterations, deadline).await?;
            model.log_memory("warm-up");
            return Ok(vec![warmed]);
        }
        let mut warmed = Vec::with_capacity(batch_sizes.len());
        for (place, size) in batch_sizes.into_iter().enumerate() {
            let field = format!("batch_sizes[{place}]");
            warmed.push(self.warm_up_size(model, Some(size), &field, iterations, deadline).await?);
        }
        model.log_memory("warm-up");
        Ok(warmed)
    }

    async fn warm_up_size(
        &self,
        model: &Arc<LoadedModel>,
        size: Option<usize>,
        field: &str,
        iterations: usize,
        deadline: Instant,
    ) -> Result<Warmed, EngineError> {
        let made_for = model.clone();
        let inputs = self.compute(move || made_for.made_up_inputs(size)).await?;
        let too_large = || refused(field, "the inputs would be too large to be made up".to_owned());
        let inputs = inputs.ok_or_else(too_large)?;
        let batch_size = size.unwrap_or_else(|| rows_of(&inputs));
        let outputs: Vec<usize> = (0..model.outputs.len()).collect();
        let mut latencies = Vec::with_capacity(iterations);
        for _ in 0..iterations {
            let started = Instant::now();
            let request = Request {
                parts: vec![inputs.clone()],
                outputs: outputs.clone(),
                deadline,
                priority: 0,
                queue_timeout: None,
                progress: None,
                sender: None,
            };
            model.handle.run(request).await.map_err(|failed| match failed.error {
                BatchError::Runtime(RuntimeError::Run(problem)) => {
                    refused(field, format!("the model refuses the made-up inputs: {problem}"))
                }
                error => EngineError::from(error),
            })?;
            latencies.push(started.elapsed());
        }
        Ok(Warmed { batch_size, latencies })
    }
}

pub(super) fn refused(field: &str, problem: String) -> EngineError {
    EngineError::Warmup { field: field.to_owned(), problem }
}

/// Most rows of one run.
pub(super) fn rows_max(model: &LoadedModel) -> usize {
    let max_batch_size = model.settings.batch.max_batch_size;
    match model.handle.plan().joining {
        Joining::Fixed(rows) => rows,
        Joining::Rows | Joining::Alone => max_batch_size,
    }
}

/// Whether runs of `rows` rows are something that the graph knows.
pub(super) fn check_size(inputs: &[Spec], rows: usize, most: usize) -> Result<(), String> {
    let mut is_fixed = false;
    for spec in inputs.iter().filter(|spec| !spec.optional) {
        match spec.ty.shape().and_then(<[Dim]>::first) {
            Some(Dim::Fixed(fixed)) if *fixed != rows => {
                return Err(format!("must be {fixed}, which the graph fixes for input '{}'; got {rows}", spec.name));
            }
            Some(Dim::Fixed(_)) => is_fixed = true,
            None if rows != 1 => {
                return Err(format!("must be 1: input '{}' is {}, without rows; got {rows}", spec.name, spec.ty));
            }
            Some(Dim::Dynamic(_)) | None => {}
        }
    }
    if is_fixed || (1..=most).contains(&rows) {
        return Ok(());
    }
    Err(format!("must be from 1 to {most}, the rows of one run; got {rows}"))
}

/// Dimension 0, where all inputs agree on it; else the whole is one row.
fn rows_of(inputs: &[Input]) -> usize {
    let mut firsts = inputs.iter().map(|(_, value)| value.as_tensor().and_then(|tensor| tensor.shape().first()));
    match firsts.next() {
        Some(Some(&first)) if firsts.all(|other| other == Some(&first)) => first,
        Some(_) | None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ErrorKind;
    use crate::engine::testing::{engine, model};
    use crate::runtime::Interrupt;
    use crate::tasks::Tasks;
    use crate::tensor::{DType, Value, ValueType};
    use std::sync::Mutex;

    fn spec(name: &str, dims: &[i64]) -> Spec {
        let dims = dims.iter().map(|&dim| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed)).collect();
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype: DType::Fp32, shape: Some(dims) }, optional: false }
    }

    fn shape(value: &Value) -> Vec<usize> {
        value.as_tensor().unwrap().shape().to_vec()
    }

    type Shapes = Arc<Mutex<Vec<Vec<usize>>>>;

    /// The engine, a model of these inputs, and the shapes of its runs.
    fn house(inputs: Vec<Spec>) -> (InferenceEngine, Arc<LoadedModel>, Shapes) {
        let tasks = Tasks::new();
        let runs = Arc::new(Mutex::new(Vec::new()));
        let seen = runs.clone();
        let run = move |inputs: &[Input], _: &[usize], _: &Interrupt| {
            seen.lock().unwrap().extend(inputs.first().map(|(_, value)| shape(value)));
            Ok(vec![])
        };
        (engine(&tasks), model(&tasks, inputs, vec![], run), runs)
    }

    fn ask(iterations: Option<usize>, batch_sizes: &[usize]) -> WarmupRequest {
        let deadline = Instant::now() + Duration::from_secs(20);
        WarmupRequest { iterations, batch_sizes: batch_sizes.to_vec(), deadline }
    }

    #[tokio::test]
    async fn every_size_is_run_as_often_as_asked_and_in_order() {
        let (engine, model, runs) = house(vec![spec("x", &[-1, 3])]);
        let warmed = engine.warm_up(&model, ask(Some(2), &[4, 1])).await.unwrap();
        let sizes: Vec<(usize, usize)> = warmed.iter().map(|size| (size.batch_size, size.latencies.len())).collect();
        assert_eq!(sizes, [(4, 2), (1, 2)]);
        assert_eq!(*runs.lock().unwrap(), [[4, 3], [4, 3], [1, 3], [1, 3]]);
        assert_eq!(model.stats.totals().batches.values().map(|runs| runs.count).sum::<u64>(), 4);
        let totals = model.stats.totals();
        assert_eq!((totals.requests.len(), totals.queue.count), (0, 0));
    }

    #[tokio::test]
    async fn without_a_word_it_is_run_once_as_the_graph_has_it() {
        for (dims, rows) in [(&[-1, 3][..], 1), (&[32, 3], 32), (&[], 1)] {
            let (engine, model, runs) = house(vec![spec("x", dims)]);
            let warmed = engine.warm_up(&model, ask(None, &[])).await.unwrap();
            assert_eq!((warmed.len(), warmed[0].batch_size, warmed[0].latencies.len()), (1, rows, 1));
            assert_eq!(runs.lock().unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_refused_by_name_before_anything_runs() {
        let check = async |dims: &[i64], request: WarmupRequest, expected: &str| {
            let (engine, model, runs) = house(vec![spec("x", dims)]);
            let error = engine.warm_up(&model, request).await.unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, expected));
            assert_eq!(error.fields()[0].field, expected.split(':').next().unwrap());
            assert!(runs.lock().unwrap().is_empty());
        };
        check(&[-1], ask(Some(0), &[]), "iterations: must be from 1 to 1000, got 0").await;
        check(&[-1], ask(Some(1001), &[]), "iterations: must be from 1 to 1000, got 1001").await;
        check(&[-1], ask(None, &[1; 17]), "batch_sizes: expected at most 16 sizes, got 17").await;
        check(&[-1], ask(None, &[1, 0]), "batch_sizes[1]: must be from 1 to 16, the rows of one run; got 0").await;
        check(&[-1], ask(None, &[17]), "batch_sizes[0]: must be from 1 to 16, the rows of one run; got 17").await;
        check(&[4], ask(None, &[4, 2]), "batch_sizes[1]: must be 4, which the graph fixes for input 'x'; got 2").await;
        check(&[32], ask(None, &[32, 16]), "batch_sizes[1]: must be 32, which the graph fixes for input 'x'; got 16")
            .await;
        check(&[], ask(None, &[2]), "batch_sizes[0]: must be 1: input 'x' is FP32[], without rows; got 2").await;
        let huge = "batch_sizes[0]: the inputs would be too large to be made up";
        check(&[-1, 1 << 40], ask(None, &[2]), huge).await;
    }

    #[tokio::test]
    async fn a_model_that_refuses_what_is_made_up_says_so() {
        let tasks = Tasks::new();
        let run = |_: &[Input], _: &[usize], _: &Interrupt| Err(RuntimeError::Run("index out of range".to_owned()));
        let model = model(&tasks, vec![spec("x", &[-1])], vec![], run);
        let error = engine(&tasks).warm_up(&model, ask(None, &[1])).await.unwrap_err();
        assert_eq!(error.to_string(), "batch_sizes[0]: the model refuses the made-up inputs: index out of range");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

//! Runs of which each takes outputs of the one before it, such as the windows of a sound that is listened to with a memory.
//!
//! Invariants: one run of a chain is in the queue at a time, behind all that came before it, so that a long chain takes its
//! turns among the other requests; what was let in once is not refused for a full queue; a chain ends with its request, at
//! the deadline or where the client leaves.

use super::infer::PartsResponse;
use super::request::{RunOptions, Timing};
use super::{EngineError, InferenceEngine, LoadedModel};
use crate::batching::Request;
use crate::pipelines::{Carry, PipelineError};
use crate::runtime::Input;
use crate::telemetry::stats::Stage;
use crate::telemetry::trace;
use crate::tensor::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs of which each hands outputs to the next.
pub(super) struct Chain {
    pub(super) parts: Vec<Vec<Input>>,
    /// Outputs, and the inputs of the next run whose values they replace, by index.
    pub(super) carried: Vec<(usize, usize)>,
}

impl InferenceEngine {
    /// Makes the runs of a chain, whose inputs are checked, one after another. Outputs that are carried are given of the last
    /// run only. `has_begun`: whether a run of the request was let in, for all of its chains.
    ///
    /// # Errors
    /// Those of the first run that fails.
    ///
    /// # Cancel safety
    /// Dropping the future stops the run in progress, and the others are not made.
    pub(super) async fn run_chain(
        &self,
        model: &Arc<LoadedModel>,
        chain: Chain,
        options: RunOptions,
        has_begun: &AtomicBool,
    ) -> Result<PartsResponse, EngineError> {
        let Chain { parts, carried } = chain;
        let started = std::time::Instant::now();
        let RunOptions { deadline, priority, progress, queue_timeout, sender } = options;
        if let Some(progress) = &progress {
            progress.add_total(parts.len() as u64);
        }
        let all: Vec<usize> = (0..model.outputs.len()).collect();
        let (count, mut timing) = (parts.len(), Timing::default());
        let mut given = Vec::with_capacity(count);
        let mut handed: Vec<Input> = Vec::new();
        for (place, mut inputs) in parts.into_iter().enumerate() {
            for (index, value) in handed.drain(..) {
                inputs.retain(|(input, _)| *input != index);
                inputs.push((index, value));
            }
            let request = Request {
                parts: vec![inputs],
                outputs: all.clone(),
                deadline,
                priority,
                progress: None,
                queue_timeout,
                sender,
            };
            // Where the first is refused the request has failed.
            let completed = match has_begun.swap(true, Ordering::Relaxed) {
                false => model.handle.run(request).await,
                true => model.handle.run_next(request).await,
            };
            let mut completed = completed.map_err(|failed| EngineError::from(failed.error))?;
            timing.queue += completed.queue;
            timing.inference += completed.inference;
            let values = completed.parts.pop().unwrap_or_default();
            let is_last = place + 1 == count;
            if !is_last {
                handed = hand_on(model, &carried, &values)?;
            }
            let is_kept = |index: usize| is_last || !carried.iter().any(|(output, _)| *output == index);
            let named = model.outputs.iter().map(|spec| spec.name.clone()).zip(values).enumerate();
            given.push(named.filter(|(index, _)| is_kept(*index)).map(|(_, output)| output).collect());
            if let Some(progress) = &progress {
                progress.add_done(1);
            }
            // A tiny model runs on this very thread: others want their turn, and this one may have been dropped.
            tokio::task::yield_now().await;
        }
        model.stats.record_stage(Stage::Queue, timing.queue);
        model.stats.record_stage(Stage::Inference, timing.inference);
        // One span for all its runs, with what lies between them: there may be thousands.
        trace::stage("run", started, started.elapsed());
        Ok(PartsResponse { parts: given, timing })
    }
}

/// What the next run takes of the outputs of one.
fn hand_on(model: &LoadedModel, carried: &[(usize, usize)], values: &[Value]) -> Result<Vec<Input>, EngineError> {
    let mut handed = Vec::with_capacity(carried.len());
    for &(output, input) in carried {
        let fault = |problem: &dyn std::fmt::Display| {
            let detail = format!("output {output} of a run cannot be input {input} of the next: {problem}");
            EngineError::Internal { detail }
        };
        let (Some(value), Some(spec)) = (values.get(output), model.inputs.get(input)) else {
            return Err(fault(&"there is none"));
        };
        spec.ty.check(value).map_err(|mismatch| fault(&mismatch))?;
        handed.push((input, value.clone()));
    }
    Ok(handed)
}

/// The graph's outputs and inputs of those names, by index.
///
/// # Errors
/// Where the graph has none of that name: a fault of ours.
pub(super) fn links(model: &LoadedModel, carried: &[Carry]) -> Result<Vec<(usize, usize)>, PipelineError> {
    let link = |carry: &Carry| {
        let output = model.outputs.iter().position(|spec| spec.name == carry.output)?;
        Some((output, model.inputs.iter().position(|spec| spec.name == carry.input)?))
    };
    let fault = |carry: &Carry| {
        PipelineError::Outputs(format!("the graph does not carry {:?} to {:?}", carry.output, carry.input))
    };
    carried.iter().map(|carry| link(carry).ok_or_else(|| fault(carry))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batching::BatchError;
    use crate::engine::InferRequest;
    use crate::engine::testing::{engine, model};
    use crate::runtime::{Interrupt, RuntimeError};
    use crate::tasks::{Progress, Tasks};
    use crate::tensor::{DType, Dim, Spec, Tensor, ValueType};
    use std::sync::Mutex;
    use std::time::Duration;
    use tokio::time::Instant;

    fn spec(name: &str, shape: Vec<Dim>) -> Spec {
        Spec {
            name: name.to_owned(),
            ty: ValueType::Tensor { dtype: DType::Fp32, shape: Some(shape) },
            optional: false,
        }
    }

    fn number(value: f32) -> Value {
        Tensor::from_vec(DType::Fp32, vec![1], vec![value]).unwrap().into()
    }

    fn read(value: &Value) -> f32 {
        value.as_tensor().unwrap().to_f32().unwrap()[0]
    }

    fn of(inputs: &[Input], wanted: usize) -> f32 {
        read(&inputs.iter().find(|(index, _)| *index == wanted).unwrap().1)
    }

    /// A model `x, sum → y, sum` that adds up, of which every run of a negative `x` goes on until it is interrupted. The
    /// second is every `x` that was run.
    fn adder(tasks: &Tasks) -> (Arc<LoadedModel>, Arc<Mutex<Vec<f32>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seen_by_run = seen.clone();
        let run = move |inputs: &[Input], _: &[usize], interrupt: &Interrupt| {
            let (x, sum) = (of(inputs, 0), of(inputs, 1));
            seen_by_run.lock().unwrap().push(x);
            if x < 0.0 {
                while !interrupt.is_fired() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Err(RuntimeError::Interrupted);
            }
            if x > 1000.0 {
                return Err(RuntimeError::Run("x is too large".to_owned()));
            }
            Ok(vec![number(10.0 * x), number(x + sum)])
        };
        let dims = || vec![Dim::Fixed(1)];
        let inputs = vec![spec("x", dims()), spec("sum", dims())];
        (model(tasks, inputs, vec![spec("y", dims()), spec("sum", dims())], run), seen)
    }

    /// Each `x` a run, with another sum than is handed on.
    fn chain(numbers: &[f32]) -> Chain {
        let sum = |place: usize| if place == 0 { 0.0 } else { 77.0 };
        let part = |(place, &x): (usize, &f32)| vec![(0, number(x)), (1, number(sum(place)))];
        Chain { parts: numbers.iter().enumerate().map(part).collect(), carried: vec![(1, 1)] }
    }

    async fn run(
        engine: &InferenceEngine,
        model: &Arc<LoadedModel>,
        chain: Chain,
        options: RunOptions,
    ) -> Result<PartsResponse, EngineError> {
        engine.run_chain(model, chain, options, &AtomicBool::new(false)).await
    }

    fn soon() -> RunOptions {
        RunOptions::until(Instant::now() + Duration::from_secs(20))
    }

    #[tokio::test]
    async fn each_run_takes_what_the_one_before_it_gave() {
        let tasks = Tasks::new();
        let (model, _) = adder(&tasks);
        let progress = Progress::new();
        let options = RunOptions { progress: Some(progress.clone()), ..soon() };
        let response = run(&engine(&tasks), &model, chain(&[1.0, 2.0, 4.0]), options).await.unwrap();
        let given: Vec<Vec<(&str, f32)>> = response
            .parts
            .iter()
            .map(|outputs| outputs.iter().map(|(name, value)| (name.as_str(), read(value))).collect())
            .collect();
        assert_eq!(given, [vec![("y", 10.0)], vec![("y", 20.0)], vec![("y", 40.0), ("sum", 7.0)]]);
        assert_eq!((progress.done(), progress.total()), (3, 3));
    }

    #[tokio::test]
    async fn a_chain_ends_at_its_deadline_and_with_its_request() {
        let tasks = Tasks::new();
        let (model, seen) = adder(&tasks);
        let options = RunOptions::until(Instant::now() + Duration::from_millis(50));
        let late = run(&engine(&tasks), &model, chain(&[1.0, -2.0, 3.0]), options).await;
        assert!(matches!(late.err(), Some(EngineError::Batch(BatchError::TimedOut))));
        let (engine, leaving) = (engine(&tasks), model.clone());
        let asked = tasks.spawn("ask", async move {
            let _ = run(&engine, &leaving, chain(&[4.0, -5.0, 6.0]), soon()).await;
        });
        let has_seen = |x: f32| seen.lock().unwrap().contains(&x);
        while !has_seen(-5.0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        asked.abort();
        // The instance is free again, and the runs behind were not made.
        let inputs = vec![("x".to_owned(), number(8.0)), ("sum".to_owned(), number(1.0))];
        let request = InferRequest { inputs, outputs: vec![], options: soon() };
        let response = crate::engine::testing::engine(&tasks).infer(&model, request).await.unwrap();
        assert_eq!(read(&response.outputs[1].1), 9.0);
        assert!(!has_seen(3.0) && !has_seen(6.0));
    }

    #[tokio::test]
    async fn the_first_error_ends_a_chain() {
        let tasks = Tasks::new();
        let (model, seen) = adder(&tasks);
        let failed = run(&engine(&tasks), &model, chain(&[1.0, 2000.0, 3.0]), soon()).await;
        assert!(matches!(failed.err(), Some(EngineError::Batch(BatchError::Runtime(RuntimeError::Run(_))))));
        assert_eq!(*seen.lock().unwrap(), [1.0, 2000.0]);
        // What a graph gives need not be what it takes.
        let odd = Chain { carried: vec![(7, 1)], ..chain(&[1.0, 2.0]) };
        let odd = run(&engine(&tasks), &model, odd, soon()).await;
        assert!(matches!(odd.err(), Some(EngineError::Internal { .. })));
    }

    #[tokio::test]
    async fn others_get_their_turn_between_the_runs_of_a_chain() {
        let tasks = Tasks::new();
        let (model, seen) = adder(&tasks);
        let (engine, long) = (engine(&tasks), model.clone());
        let engine_of_chain = engine.clone();
        let chain = tasks.spawn("chain", async move {
            run(&engine_of_chain, &long, chain(&vec![1.0; 3_000]), soon()).await.map(|all| all.parts.len())
        });
        while seen.lock().unwrap().len() < 10 {
            tokio::task::yield_now().await;
        }
        let inputs = vec![("x".to_owned(), number(2.0)), ("sum".to_owned(), number(0.0))];
        engine.infer(&model, InferRequest { inputs, outputs: vec![], options: soon() }).await.unwrap();
        assert!(!chain.is_finished(), "the other request waited for all of the chain");
        assert_eq!(chain.await.unwrap().unwrap(), 3_000);
    }
}

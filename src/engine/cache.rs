//! Answers from what a model keeps: looks before the queue, runs equal requests once, keeps what came of it.
//!
//! Invariants: an answer is given again only by the load that made it; an error is never kept, and reaches the followers of a
//! flight only where the same input would bring it about again; a request's deadline is its own, whoever runs. A kept answer
//! needs no place in a queue. Knows no form of a body: what is kept is typed.

use super::request::{CacheOutcome, InferResponse, PredictResponse, RunOptions, Timing};
use super::{EngineError, ErrorKind, InferenceEngine, LoadedModel};
use crate::batching::BatchError;
use crate::cache::{Answer, Flights, Key, KeyMaker, Landing, Lead, Turn};
use crate::pipelines::{Item, Parameters, Pipeline, PipelineError, Prepared};
use crate::runtime::RuntimeError;
use crate::telemetry::stats::{CacheKind, Stage};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Up to this size requests are hashed and answers copied on the async threads: handing them over would take longer.
/// BLAKE3 takes 11 µs for 64 KiB and 100 µs for 600 kB.
const INLINE_BYTES: usize = 64 << 10;

/// Equal requests in flight. Keys of different loads never meet: each load has its own secret.
pub(super) type AnswerFlights = Flights<Arc<Answer>, Arc<EngineError>>;

/// A response that can be kept.
pub(super) trait Kept: Sized {
    fn answer(&self) -> Answer;
    /// `None` where the answer is of another kind, which no key of this kind leads to.
    fn of(answer: &Answer, timing: Timing) -> Option<Self>;
    fn outcome(&mut self) -> &mut Option<CacheOutcome>;
}

impl Kept for InferResponse {
    fn answer(&self) -> Answer {
        Answer::Outputs(self.outputs.clone())
    }

    fn of(answer: &Answer, timing: Timing) -> Option<InferResponse> {
        match answer {
            Answer::Outputs(outputs) => Some(InferResponse { outputs: outputs.clone(), timing, cache: None }),
            Answer::Predictions(..) => None,
        }
    }

    fn outcome(&mut self) -> &mut Option<CacheOutcome> {
        &mut self.cache
    }
}

impl Kept for PredictResponse {
    fn answer(&self) -> Answer {
        Answer::Predictions(self.predictions.clone(), self.tokens)
    }

    fn of(answer: &Answer, timing: Timing) -> Option<PredictResponse> {
        match answer {
            Answer::Predictions(predictions, tokens) => {
                Some(PredictResponse { predictions: predictions.clone(), tokens: *tokens, timing, cache: None })
            }
            Answer::Outputs(_) => None,
        }
    }

    fn outcome(&mut self) -> &mut Option<CacheOutcome> {
        &mut self.cache
    }
}

impl InferenceEngine {
    /// Drops what the model keeps of its work, and gives the bytes.
    pub fn clear_caches(&self, model: &LoadedModel) -> u64 {
        model.caches.clear()
    }

    /// The request's key, made off the async threads where `size` bytes are many.
    pub(super) async fn key<R: Send + 'static>(
        &self,
        model: &Arc<LoadedModel>,
        size: usize,
        request: R,
        make: impl FnOnce(&KeyMaker, &R) -> Key + Send + 'static,
    ) -> Result<(Key, R), EngineError> {
        if size <= INLINE_BYTES {
            return Ok((make(&model.caches.keys, &request), request));
        }
        let model = model.clone();
        Ok(self.compute(move || (make(&model.caches.keys, &request), request)).await?)
    }

    /// The answer kept under `key`, or that of an equal request of the same priority in flight, or that of `run`, which is kept.
    ///
    /// # Errors
    /// Those of `run`; `DeadlineExceeded` where the deadline passes while an equal request runs.
    ///
    /// # Cancel safety
    /// Dropping the future drops `run`; an equal request that waits for it takes over.
    pub(super) async fn answer_once<R: Kept>(
        &self,
        model: &Arc<LoadedModel>,
        key: Key,
        options: &RunOptions,
        run: impl Future<Output = Result<R, EngineError>>,
    ) -> Result<R, EngineError> {
        let Some(store) = &model.caches.responses else { return run.await };
        let started = Instant::now();
        let mut waited = Duration::ZERO;
        let lead = loop {
            let follow = match self.0.flights.join(key, model.handle.level(options.priority), store) {
                Turn::Kept(answer) => match hit(model, &answer, waited) {
                    Some(response) => return Ok(response),
                    None => break None,
                },
                Turn::Lead(lead) => break Some(lead),
                Turn::Follow(follow) => follow,
            };
            let landing = tokio::time::timeout_at(options.deadline, follow.landing()).await;
            waited = started.elapsed();
            match landing {
                Err(_) => return Err(EngineError::Batch(BatchError::Expired)),
                // The leader gave up: somebody else leads, perhaps this request.
                Ok(None) => {}
                Ok(Some(Landing::Answered(answer))) => match hit(model, &answer, waited) {
                    Some(response) => return Ok(response),
                    None => break None,
                },
                Ok(Some(Landing::Refused(error))) => match refusal(&error) {
                    Some(error) => return Err(error),
                    None => break None,
                },
                Ok(Some(Landing::Failed)) => break None,
            }
        };
        model.stats.record_cache(CacheKind::Response, false);
        let result = run.await;
        if let Some(lead) = lead {
            self.land(model, key, lead, &result).await;
        }
        let mut response = result?;
        *response.outcome() = Some(CacheOutcome::Miss);
        Ok(response)
    }

    /// Keeps the leader's answer and hands it to the followers.
    async fn land<R: Kept>(
        &self,
        model: &Arc<LoadedModel>,
        key: Key,
        lead: Lead<'_, Arc<Answer>, Arc<EngineError>>,
        result: &Result<R, EngineError>,
    ) {
        match result {
            Ok(response) => {
                let answer = Arc::new(response.answer());
                if answer.bytes() <= INLINE_BYTES {
                    model.caches.keep_answer(key, &answer);
                } else {
                    let (model, answer) = (model.clone(), answer.clone());
                    // Where the pool is too busy the answer is not kept; it is given all the same.
                    let _ = self.compute(move || model.caches.keep_answer(key, &answer)).await;
                }
                lead.land(Landing::Answered(answer));
            }
            Err(error) => match (refusal(error), error.kind()) {
                (Some(error), _) => lead.land(Landing::Refused(Arc::new(error))),
                // The leader's own time is up; the followers may have more.
                (None, ErrorKind::DeadlineExceeded | ErrorKind::Cancelled) => drop(lead),
                (None, _) => lead.land(Landing::Failed),
            },
        }
    }
}

/// A response from a kept answer, after `waited` for another request's run.
fn hit<R: Kept>(model: &LoadedModel, answer: &Answer, waited: Duration) -> Option<R> {
    let mut response = R::of(answer, Timing { queue: waited, ..Timing::default() })?;
    *response.outcome() = Some(CacheOutcome::Hit);
    model.stats.record_cache(CacheKind::Response, true);
    model.stats.record_stage(Stage::Queue, waited);
    Some(response)
}

/// The same error once more, where it is the input's fault and the next request with this input would get it too.
fn refusal(error: &EngineError) -> Option<EngineError> {
    match error {
        EngineError::Field { kind, name, problem } => {
            Some(EngineError::Field { kind: *kind, name: name.clone(), problem: problem.clone() })
        }
        EngineError::Pipeline(
            error @ (PipelineError::Item { .. } | PipelineError::TooLarge { .. } | PipelineError::Parameter { .. }),
        ) => Some(EngineError::Pipeline(error.clone())),
        EngineError::TakesTensors { model, got, why, inputs } => {
            let (model, why, inputs) = (model.clone(), why.clone(), inputs.clone());
            Some(EngineError::TakesTensors { model, got, why, inputs })
        }
        EngineError::Batch(BatchError::Runtime(RuntimeError::Run(text))) => {
            Some(EngineError::Batch(BatchError::Runtime(RuntimeError::Run(text.clone()))))
        }
        EngineError::Pipeline(_)
        | EngineError::Batch(_)
        | EngineError::Model(_)
        | EngineError::Pool(_)
        | EngineError::Warmup { .. }
        | EngineError::Internal { .. } => None,
    }
}

/// One item as the graph takes it, from what is kept or made now. Computing: runs on the pool.
pub(super) fn prepare(
    model: &LoadedModel,
    pipeline: &dyn Pipeline,
    item: &Item,
    parameters: &Parameters,
) -> Result<Prepared, PipelineError> {
    let Some(store) = &model.caches.prepared else { return pipeline.preprocess(item, parameters) };
    let read = parameters.iter().filter(|(name, _)| pipeline.preprocess_reads(name));
    let key = model.caches.keys.item(item, read);
    let found = store.get(&key);
    model.stats.record_cache(CacheKind::Preprocess, found.is_some());
    if let Some(prepared) = found {
        return Ok(Prepared::clone(&prepared));
    }
    let prepared = pipeline.preprocess(item, parameters)?;
    model.caches.keep_prepared(key, &prepared);
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheSettings;
    use crate::engine::RunOptions;
    use crate::engine::testing::{caching_model, engine};
    use crate::engine::{InferRequest, LoadedModel};
    use crate::pipelines::{Notes, Outputs};
    use crate::runtime::{Input, Interrupt};
    use crate::tasks::Tasks;
    use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;

    /// A model `x → y` whose every run says that it began and ends when it is told how, or when it is interrupted.
    struct House {
        engine: InferenceEngine,
        model: Arc<LoadedModel>,
        tasks: Tasks,
        began: mpsc::UnboundedReceiver<()>,
        endings: std::sync::mpsc::Sender<Result<(), RuntimeError>>,
        runs: Arc<AtomicUsize>,
    }

    fn spec(name: &str) -> Spec {
        let shape = Some(vec![Dim::Dynamic(None)]);
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype: DType::Fp32, shape }, optional: false }
    }

    fn house(cache: &CacheSettings) -> House {
        let tasks = Tasks::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let (beginning, began) = mpsc::unbounded_channel();
        let (endings, ending) = std::sync::mpsc::channel::<Result<(), RuntimeError>>();
        let (ending, counter) = (Mutex::new(ending), runs.clone());
        let run = move |inputs: &[Input], _: &[usize], interrupt: &Interrupt| {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = beginning.send(());
            let ending = ending.lock().unwrap();
            loop {
                if interrupt.is_fired() {
                    return Err(RuntimeError::Interrupted);
                }
                match ending.recv_timeout(Duration::from_millis(1)) {
                    Ok(Ok(())) => return Ok(inputs.iter().map(|(_, value)| value.clone()).collect()),
                    Ok(Err(error)) => return Err(error),
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                    Err(error @ std::sync::mpsc::RecvTimeoutError::Disconnected) => panic!("{error}"),
                }
            }
        };
        let model = caching_model(&tasks, vec![spec("x")], vec![spec("y")], cache, run);
        House { engine: engine(&tasks), model, tasks, began, endings, runs }
    }

    fn answers() -> CacheSettings {
        CacheSettings { response_bytes: 1 << 20, ..CacheSettings::default() }
    }

    const LONG: Duration = Duration::from_secs(20);

    type Answered = tokio::task::JoinHandle<Result<InferResponse, EngineError>>;

    impl House {
        fn ask(&self, number: f32, timeout: Duration) -> Answered {
            self.ask_with(number, timeout, None)
        }

        fn ask_with(&self, number: f32, timeout: Duration, priority: Option<u64>) -> Answered {
            let (engine, model) = (self.engine.clone(), self.model.clone());
            let value = Tensor::from_vec(DType::Fp32, vec![1], vec![number]).unwrap();
            let inputs = vec![("x".to_owned(), Value::from(value))];
            let options = RunOptions::until(Instant::now() + timeout).with_priority(priority);
            let request = InferRequest { inputs, outputs: Vec::new(), options };
            self.tasks.spawn("ask", async move { engine.infer(&model, request).await })
        }

        /// Asks, and returns when the request waits for another's run.
        async fn ask_behind(&self, number: f32, timeout: Duration) -> Answered {
            let asked = self.ask(number, timeout);
            // The one async thread runs what is spawned in its order, up to where it waits.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            asked
        }

        fn end(&self, ending: Result<(), RuntimeError>) {
            self.endings.send(ending).unwrap();
        }

        fn runs(&self) -> usize {
            self.runs.load(Ordering::SeqCst)
        }

        /// Hits and misses of answers.
        fn counted(&self) -> (u64, u64) {
            let totals = self.model.stats.totals();
            (totals.cache_hits, totals.cache_misses)
        }
    }

    async fn outcome(asked: Answered) -> (CacheOutcome, Vec<f32>) {
        let response = asked.await.unwrap().unwrap();
        (response.cache.unwrap(), response.outputs[0].1.as_tensor().unwrap().to_f32().unwrap())
    }

    #[tokio::test]
    async fn equal_requests_in_flight_and_after_it_are_run_once() {
        let mut house = house(&answers());
        let first = house.ask(1.0, LONG);
        house.began.recv().await.unwrap();
        let mut others = Vec::new();
        for _ in 0..10 {
            others.push(house.ask_behind(1.0, LONG).await);
        }
        house.end(Ok(()));
        assert_eq!(outcome(first).await, (CacheOutcome::Miss, vec![1.0]));
        for other in others {
            assert_eq!(outcome(other).await, (CacheOutcome::Hit, vec![1.0]));
        }
        let kept = house.ask(1.0, LONG).await.unwrap().unwrap();
        assert_eq!((kept.cache, kept.timing), (Some(CacheOutcome::Hit), Timing::default()));
        assert_eq!(house.runs(), 1);
        assert_eq!(house.counted(), (11, 1));
        assert!(house.engine.0.flights.is_empty());

        let usage = house.model.caches.usage();
        assert_eq!((usage.responses.unwrap().entries, usage.prepared), (1, None));
        assert_eq!(house.engine.clear_caches(&house.model), usage.responses.unwrap().bytes);
        house.end(Ok(()));
        assert_eq!(outcome(house.ask(1.0, LONG)).await.0, CacheOutcome::Miss);
        assert_eq!(house.runs(), 2);
    }

    #[tokio::test]
    async fn different_requests_do_not_wait_for_each_other() {
        let mut house = house(&answers());
        let (zero, negative) = (house.ask(0.0, LONG), house.ask(-0.0, LONG));
        house.began.recv().await.unwrap();
        house.end(Ok(()));
        house.end(Ok(()));
        assert_eq!(outcome(zero).await.0, CacheOutcome::Miss);
        let (outcome, values) = outcome(negative).await;
        assert_eq!((outcome, values[0].is_sign_negative()), (CacheOutcome::Miss, true));
        assert_eq!(house.runs(), 2);
    }

    #[tokio::test]
    async fn off_by_default_every_request_is_run() {
        let house = house(&CacheSettings::default());
        for _ in 0..2 {
            house.end(Ok(()));
            let response = house.ask(1.0, LONG).await.unwrap().unwrap();
            assert_eq!(response.cache, None);
        }
        assert_eq!((house.runs(), house.counted()), (2, (0, 0)));
    }

    #[tokio::test]
    async fn an_urgent_request_does_not_wait_for_a_patient_equal() {
        let mut house = house(&answers());
        // The one instance is busy, so that both of the others wait for it.
        let busy = house.ask(0.0, LONG);
        house.began.recv().await.unwrap();
        let patient = house.ask_with(1.0, LONG, Some(9));
        tokio::task::yield_now().await;
        let between = house.ask_with(2.0, LONG, Some(5));
        tokio::task::yield_now().await;
        let urgent = house.ask_with(1.0, LONG, Some(1));
        tokio::task::yield_now().await;
        house.end(Ok(()));
        house.end(Ok(()));
        assert_eq!(outcome(busy).await.0, CacheOutcome::Miss);
        assert_eq!(outcome(urgent).await, (CacheOutcome::Miss, vec![1.0]));
        assert!(!between.is_finished() && !patient.is_finished());
        house.end(Ok(()));
        house.end(Ok(()));
        assert_eq!(outcome(between).await.0, CacheOutcome::Miss);
        assert_eq!(outcome(patient).await.0, CacheOutcome::Miss);
    }

    #[tokio::test]
    async fn a_follower_takes_over_from_a_leader_whose_client_left() {
        let mut house = house(&answers());
        let leader = house.ask(1.0, LONG);
        house.began.recv().await.unwrap();
        let followers = [house.ask_behind(1.0, LONG).await, house.ask_behind(1.0, LONG).await];
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        house.began.recv().await.unwrap();
        house.end(Ok(()));
        let [first, second] = followers;
        let mut outcomes = [outcome(first).await.0, outcome(second).await.0];
        outcomes.sort_by_key(|outcome| *outcome == CacheOutcome::Miss);
        assert_eq!(outcomes, [CacheOutcome::Hit, CacheOutcome::Miss]);
        assert_eq!(house.runs(), 2);
    }

    #[tokio::test]
    async fn a_leaders_deadline_is_not_its_followers() {
        let mut house = house(&answers());
        let leader = house.ask(1.0, Duration::from_millis(50));
        house.began.recv().await.unwrap();
        let follower = house.ask_behind(1.0, LONG).await;
        assert_eq!(leader.await.unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        house.began.recv().await.unwrap();
        house.end(Ok(()));
        assert_eq!(outcome(follower).await, (CacheOutcome::Miss, vec![1.0]));
    }

    #[tokio::test]
    async fn a_follower_does_not_wait_past_its_own_deadline() {
        let mut house = house(&answers());
        let leader = house.ask(1.0, LONG);
        house.began.recv().await.unwrap();
        let follower = house.ask_behind(1.0, Duration::from_millis(20)).await;
        assert_eq!(follower.await.unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        house.end(Ok(()));
        assert_eq!(outcome(leader).await.0, CacheOutcome::Miss);
    }

    #[tokio::test]
    async fn an_error_of_the_input_reaches_the_followers_and_is_not_kept() {
        let mut house = house(&answers());
        let leader = house.ask(1.0, LONG);
        house.began.recv().await.unwrap();
        let follower = house.ask_behind(1.0, LONG).await;
        house.end(Err(RuntimeError::Run("index out of range".to_owned())));
        for asked in [leader, follower] {
            let error = asked.await.unwrap().unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, "index out of range"));
        }
        assert_eq!(house.runs(), 1);
        house.end(Ok(()));
        assert_eq!(outcome(house.ask(1.0, LONG)).await.0, CacheOutcome::Miss);
    }

    #[tokio::test]
    async fn an_error_that_is_not_the_inputs_concerns_its_own_request_alone() {
        let mut house = house(&answers());
        let leader = house.ask(1.0, LONG);
        house.began.recv().await.unwrap();
        let follower = house.ask_behind(1.0, LONG).await;
        house.end(Err(RuntimeError::Device("lost".to_owned())));
        assert_eq!(leader.await.unwrap().unwrap_err().kind(), ErrorKind::Overloaded);
        house.began.recv().await.unwrap();
        house.end(Ok(()));
        assert_eq!(outcome(follower).await, (CacheOutcome::Miss, vec![1.0]));
    }

    /// Counts its preprocessing, which reads the parameter `size` alone.
    struct Counting(AtomicUsize);

    impl Pipeline for Counting {
        fn task(&self) -> &'static str {
            "counting"
        }

        fn preprocess_reads(&self, parameter: &str) -> bool {
            parameter == "size"
        }

        fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let Item::Text(text) = item else {
                return Err(PipelineError::Item { index: 0, problem: "expected text".to_owned() });
            };
            let tensor = Tensor::from_bytes(DType::Uint8, vec![text.len()], text.clone().into_bytes()).unwrap();
            Ok(Prepared::one(vec![("x".to_owned(), tensor)]))
        }

        fn postprocess(
            &self,
            _: &[Outputs],
            _: &Notes,
            _: &Parameters,
        ) -> Result<crate::pipelines::Prediction, PipelineError> {
            Err(PipelineError::Outputs("never asked".to_owned()))
        }

        fn check_parameters(&self, _: &Parameters) -> Result<(), PipelineError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_item_is_prepared_once_for_the_parameters_that_bear_on_it() {
        let house = house(&CacheSettings { preprocess_bytes: 1 << 20, ..CacheSettings::default() });
        let pipeline = Counting(AtomicUsize::new(0));
        let calls = |item: &Item, parameters: serde_json::Value| {
            let serde_json::Value::Object(parameters) = parameters else { panic!("not an object") };
            let prepared = prepare(&house.model, &pipeline, item, &parameters);
            let expected = match item {
                Item::Text(text) => text.as_bytes(),
                Item::Bytes(_) => return (prepared.is_err(), pipeline.0.load(Ordering::SeqCst)),
                other => panic!("{other:?}"),
            };
            (prepared.unwrap().runs[0][0].1.bytes() == expected, pipeline.0.load(Ordering::SeqCst))
        };
        let text = |text: &str| Item::Text(text.to_owned());
        assert_eq!(calls(&text("a"), serde_json::json!({"size": 1, "top_k": 1})), (true, 1));
        assert_eq!(calls(&text("a"), serde_json::json!({"size": 1, "top_k": 2})), (true, 1));
        assert_eq!(calls(&text("a"), serde_json::json!({"size": 2})), (true, 2));
        assert_eq!(calls(&text("b"), serde_json::json!({"size": 1})), (true, 3));
        // A refused item is refused anew.
        let picture = Item::Bytes("a".into());
        assert_eq!(calls(&picture, serde_json::json!({})), (true, 4));
        assert_eq!(calls(&picture, serde_json::json!({})), (true, 5));
        let usage = house.model.caches.usage();
        assert_eq!((usage.responses, usage.prepared.unwrap().entries), (None, 3));
        assert_eq!(house.model.stats.window().cache[CacheKind::Preprocess as usize], [5, 1]);
    }
}

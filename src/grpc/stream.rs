//! `ModelStreamInfer`: requests and answers on one stream, answered in the order they came.
//!
//! Invariants: a request that fails is answered with its error and the stream goes on; each is counted, logged and traced as one that
//! came alone; no more than [`IN_FLIGHT`] are worked on, and each holds its bytes until it is answered; a stopping server reads no more, answers what it has, and ends the stream.

use super::GrpcState;
use super::error::GrpcError;
use super::messages::Messages;
use super::pb::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use super::service::infer;
use super::visit::Visit;
use crate::protocol::{Tally, rejected};
use crate::telemetry::stats::Protocol;
use crate::telemetry::trace::{RequestFacts, RequestTrace};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// Requests of one stream at a time.
const IN_FLIGHT: usize = 16;
pub(super) const ROUTE: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

/// The answers to what comes on `requests`.
pub(super) fn answers(state: GrpcState, visit: Visit, requests: Streaming<ModelInferRequest>) -> Answers {
    let (stopping, limit) = (state.tasks.stopping().clone(), visit.0.message);
    let is_stopping = stopping.clone();
    let answered = requests.map(move |request| {
        let (state, visit, stopping) = (state.clone(), visit.clone(), stopping.clone());
        let held = if request.is_ok() { visit.0.messages.as_ref().and_then(Messages::take) } else { None };
        async move {
            let _held = held;
            match request {
                Ok(request) => Ok(answer(&state, &visit, request).await),
                // Its message was cut off by us.
                Err(_) if stopping.is_cancelled() => Err(GrpcError::stopping().into()),
                // A message that cannot be read leaves no place from which the next one could be.
                Err(status) => {
                    let error = GrpcError::of_status(&status, || limit.exceeded());
                    if let Some(reason) = rejected(&error.word) {
                        state.engine.stats().record_rejected(reason);
                    }
                    Err(error.into())
                }
            }
        }
    });
    let end = async move { is_stopping.is_cancelled().then(|| Err(GrpcError::stopping().into())) };
    Box::pin(answered.buffered(IN_FLIGHT).chain(stream::once(end).filter_map(std::future::ready)))
}

async fn answer(state: &GrpcState, visit: &Visit, request: ModelInferRequest) -> ModelStreamInferResponse {
    let arrival = Instant::now();
    let (id, request_id) = (request.id.clone(), &*visit.0.request_id);
    let stats = state.engine.stats();
    let tally = Tally::begin(Some(Protocol::Grpc), stats, arrival.into_std());
    let facts = RequestFacts { method: "POST", route: ROUTE, request_id, started: arrival.into_std() };
    let mut trace = RequestTrace::begin(&visit.0.headers, facts);
    let bounds = visit.bounds(arrival, state.settings.request_timeout);
    let work = trace.follow(AssertUnwindSafe(infer(state, &tally, visit.0.sender, bounds, request)).catch_unwind());
    let result = work.await.unwrap_or_else(|_| {
        stats.record_panic();
        Err(GrpcError::internal("a panic on a stream"))
    });
    match result {
        Ok((response, _)) => {
            trace.end(200, None, None);
            tally.finish(200, None);
            ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
        }
        Err(error) => {
            error.log(request_id);
            trace.end(error.http, Some(&error.word), None);
            if let Some(reason) = rejected(&error.word) {
                stats.record_rejected(reason);
            }
            tally.finish(error.http, Some(error.word));
            // With the request's id, so that clients know which of theirs it was.
            let infer_response = Some(ModelInferResponse { id, ..Default::default() });
            ModelStreamInferResponse { error_message: error.text, infer_response }
        }
    }
}

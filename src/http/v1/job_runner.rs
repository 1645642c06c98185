//! Runs a stored request: a prediction as `predict` would have answered it, or an optimisation.
//!
//! Knows nothing of how jobs are kept: see `crate::jobs`.

use super::optimize;
use super::parse::BodyKind;
use super::predict::{self, Ask, AskedBy};
use crate::engine::{ModelName, Version};
use crate::http::HttpState;
use crate::http::error::{ApiError, render};
use crate::http::extract::ModelPath;
use crate::jobs::{Executor, Failure, JobError, JobRequest, Kind, Outcome, Output, Work};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderValue};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

pub(in crate::http) struct JobRunner(pub(in crate::http) HttpState);

impl Executor for JobRunner {
    fn is_ready(&self) -> bool {
        self.0.engine.is_ready()
    }

    fn execute(&self, work: Work) -> BoxFuture<'static, Outcome> {
        let state = self.0.clone();
        Box::pin(async move {
            let _counted = state.engine.stats().panic_guard();
            let (id, request, deadline) = (work.id, work.request.clone(), work.deadline);
            let ran = match request.kind {
                Kind::Predict => run(&state, work).await,
                Kind::Optimize => optimize::run(&state, work).await,
            };
            match ran {
                Ok((output, bytes)) => Outcome::Done(output, bytes),
                Err(error) if is_busy(&error) => Outcome::Busy,
                // The job's time, not the request's own, was over: that is another setting.
                Err(error) if error.status() == StatusCode::GATEWAY_TIMEOUT && Instant::now() >= deadline => {
                    Outcome::Failed(failure(id, &request, &ApiError::from(JobError::TimedOut)))
                }
                Err(error) => Outcome::Failed(failure(id, &request, &error)),
            }
        })
    }

    fn failure(&self, id: Uuid, request: &JobRequest, error: &JobError) -> Failure {
        failure(id, request, &ApiError::from(error.clone()))
    }
}

async fn run(state: &HttpState, work: Work) -> Result<(Output, Bytes), ApiError> {
    if !state.engine.is_ready() {
        // Before every model has been tried, a missing one may only not have been read yet.
        return Err(JobError::Stopping.into());
    }
    let Work { request, body, progress, deadline, .. } = work;
    let no_model = |_| ApiError::internal("a stored job names no model");
    let path = ModelPath {
        name: ModelName::parse(&request.model).map_err(no_model)?,
        version: request.version.as_deref().and_then(Version::parse),
    };
    let headers = headers_of(&request);
    let ask = Ask::read(&path, request.query.clone(), &headers)?;
    let model = state.engine.model(&path.name, ask.version()).await?;
    let kind = BodyKind::of(&headers, &model)?;
    let due = |timeout_ms| match timeout_ms {
        Some(0) => Err(ApiError::field("timeout_ms", "must be at least 1")),
        Some(millis) => Ok(deadline.min(Instant::now() + Duration::from_millis(millis).min(state.jobs.timeout()))),
        None => Ok(deadline),
    };
    let answered = predict::answer(state, &model, ask, kind, body, due, AskedBy::Job(progress)).await?;
    let output = Output {
        media_type: answered.format.media_type().to_owned(),
        version: model.version.to_string(),
        bytes: answered.bytes.len() as u64,
    };
    Ok((output, answered.bytes.into()))
}

/// Whether the model would take the request later: it is loading, its queue is full, or the server stops.
fn is_busy(error: &ApiError) -> bool {
    error.status() == StatusCode::SERVICE_UNAVAILABLE && error.code() != "model_failed"
}

/// The head of the request, as far as it counts.
fn headers_of(request: &JobRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let content_type = request.content_type.iter().map(|value| (header::CONTENT_TYPE, value));
    for (name, value) in content_type.chain(request.accept.iter().map(|value| (header::ACCEPT, value))) {
        // It was a header once.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    }
    headers
}

/// What the client would have been answered, for the job's path. A fault of ours is logged, once, here.
fn failure(id: Uuid, request: &JobRequest, error: &ApiError) -> Failure {
    let request_id = &*request.request_id;
    let code = error.code();
    match error.internal_detail() {
        Some(detail) => {
            tracing::error!(job = %id, request_id, code, detail, "job {id} failed: {}", detail.escape_debug());
        }
        None => tracing::debug!(job = %id, request_id, code, "job {id} failed: {code}"),
    }
    let (_, body) = render(error.problem(), &format!("/v1/jobs/{id}"), request_id);
    // The renderer writes JSON.
    Failure { status: error.status().as_u16(), problem: String::from_utf8(body).unwrap_or_default() }
}

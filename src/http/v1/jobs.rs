//! What is answered later: `POST /v1/models/{name}/jobs` takes what predict takes, `/v1/jobs` shows what has
//! become of it.
//!
//! Knows neither how jobs are kept nor how they are run: `crate::jobs` does the one, `job_runner` the other.

use super::optimize::ReportBody;
use super::predict::{Ask, PredictRequestBody, PredictResponseBody};
use crate::auth::Caller;
use crate::engine::{EngineError, ErrorKind, ModelState};
use crate::http::error::{ApiError, ProblemBody};
use crate::http::extract::{ApiQuery, JobPath, ModelPath, RequestId, invalid_query};
use crate::http::{HttpState, body};
use crate::jobs::{Deleted, Filter, Job, JobError, JobRequest, Jobs, Kind, State as JobState, Status};
use crate::protocol::Tally;
use crate::telemetry::rfc3339;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

/// How long a job waits for a model that is not loaded before it is accepted unseen.
const MODEL_WAIT: Duration = Duration::from_millis(50);
/// Bodies up to this size are read before the job is accepted; larger ones when it runs.
const CHECKED_BYTES: usize = 1 << 20;
/// Jobs of one page.
const PAGE: usize = 50;
const PAGE_MAX: usize = 200;
/// How often an open stream looks at the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// What is answered later.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(in crate::http) struct JobInfo {
    #[schema(example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")]
    id: String,
    kind: KindName,
    status: StatusName,
    #[schema(example = "resnet50")]
    model: String,
    /// The version asked for, or the one that answered; `null` until then.
    #[schema(example = "1")]
    version: Option<String>,
    /// RFC 3339, UTC.
    #[schema(example = "2026-03-01T12:30:05.250Z")]
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    /// When a finished job is removed.
    expires_at: Option<String>,
    progress: JobProgress,
    /// The id of the request that brought the job, also in the server's log.
    #[schema(example = "6b1c0e6e-4d0c-4a6e-9d0f-0b1d3e0f8a55")]
    request_id: String,
    /// Media type of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "application/json")]
    result_type: Option<String>,
    /// Length of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<u64>,
    /// What predict would have answered, where that is JSON; other results are at `/v1/jobs/{id}/result`. Of an
    /// optimisation its report. Not in lists and events.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<JobResult>)]
    result: Option<Box<RawValue>>,
    /// What the request would have been answered, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ProblemBody<'static>>)]
    error: Option<Box<RawValue>>,
}

/// Items done of the items known so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct JobProgress {
    #[schema(example = 12)]
    done: u64,
    #[schema(example = 64)]
    total: u64,
}

/// The result of a job whose result is JSON.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "described for the document; results are kept as they were written")]
pub(in crate::http) enum JobResult {
    Prediction(Box<PredictResponseBody>),
    Optimization(Box<ReportBody>),
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = JobKind)]
pub(in crate::http) enum KindName {
    Predict,
    Optimize,
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = JobStatus)]
pub(in crate::http) enum StatusName {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// Jobs, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct JobList {
    jobs: Vec<JobInfo>,
    /// `after` of the next page; `null` on the last one.
    #[schema(example = "128")]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ListQuery {
    limit: Option<usize>,
    after: Option<u64>,
    kind: Option<KindName>,
    model: Option<String>,
    status: Option<StatusName>,
}

/// Predicts later.
#[utoipa::path(post, path = "/v1/models/{name}/jobs", tag = "jobs", operation_id = "createJob",
    description = "Takes what predict takes and answers at once. The job outlives a restart of the server. It has no \
        request timeout; `timeout_ms` counts from its start. Query keys that are not listed are the task's `parameters`.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version when the job runs, where absent."),
        ("raw" = Option<bool>, Query, description = "The graph's outputs instead of the task's answer."),
        ("output" = Option<String>, Query, description = "The output wanted; may be repeated."),
        ("timeout_ms" = Option<u64>, Query, description = "As in the JSON body, which counts where both are there."),
        ("id" = Option<String>, Query, description = "As in the JSON body, which counts where both are there."),
    ),
    request_body(content(
        (PredictRequestBody = "application/json"),
        (Object = "multipart/form-data", example = json!({"file": "(a picture)", "parameters": "{\"top_k\": 3}"})),
        (Vec<u8> = "image/*"),
        (Vec<u8> = "audio/*"),
        (String = "text/plain"),
        (Vec<u8> = "application/x-npy"),
        (Vec<u8> = "application/x-npz"),
        (Vec<u8> = "application/vnd.safetensors"),
    )),
    responses((status = 202, description = "The job is kept and will run.", body = JobInfo,
        headers(("Location" = String, description = "The job: `/v1/jobs/{id}`.")))))]
pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<Vec<(String, String)>>,
    RequestId(request_id): RequestId,
    tally: Tally,
    request: Request,
) -> Result<Response, ApiError> {
    let ask = Ask::read(&path, query.clone(), request.headers())?;
    tally.aim(&state.engine, &path.name, ask.version());
    let (head, body) = request.into_parts();
    // The body comes first, as in predict.
    let body = body::read(body, &state.settings, 0).await?;
    state.jobs.check_room(body.len() as u64).await?;
    check(&state, &path, &ask, &head.headers, &body).await?;
    let texts = |name| head.headers.get_all(name).iter().filter_map(|value| Some(value.to_str().ok()?.to_owned()));
    let request = JobRequest {
        kind: Kind::Predict,
        model: path.name.to_string(),
        version: ask.version().map(|version| version.to_string()),
        request_id: request_id.to_string(),
        content_type: texts(header::CONTENT_TYPE).next(),
        accept: texts(header::ACCEPT).collect(),
        query,
    };
    Ok(accepted(state.jobs.submit(request, body).await?))
}

/// The answer to who brought a job.
pub(super) fn accepted(job: Job) -> Response {
    let location = format!("/v1/jobs/{}", job.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(JobInfo::from(job))).into_response()
}

/// Refuses at once what would fail later: an unknown model, a media type that does not suit it, a small body that cannot
/// be read. A model that is loading is not waited for.
async fn check(
    state: &HttpState,
    path: &ModelPath,
    ask: &Ask,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<(), ApiError> {
    match tokio::time::timeout(MODEL_WAIT, state.engine.model(&path.name, ask.version())).await {
        Ok(Ok(model)) => {
            let body = (body.len() <= CHECKED_BYTES).then(|| body.clone());
            ask.check(state, &model, headers, body).await
        }
        Ok(Err(error)) if !is_loading(state, path, &error) => Err(error.into()),
        Ok(Err(_)) | Err(_) => Ask::check_unseen(headers),
    }
}

fn is_loading(state: &HttpState, path: &ModelPath, error: &EngineError) -> bool {
    error.kind() == ErrorKind::NotReady
        && state
            .engine
            .status(&path.name)
            .is_ok_and(|status| status.versions.iter().any(|version| version.state == ModelState::Loading))
}

/// Lists jobs.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", operation_id = "listJobs",
    params(
        ("limit" = Option<usize>, Query, description = "Jobs of a page, 1 to 200; 50 where absent."),
        ("after" = Option<String>, Query, description = "`next` of the page before."),
        ("kind" = Option<KindName>, Query, description = "Only jobs that do this."),
        ("model" = Option<String>, Query, description = "Only jobs of this model."),
        ("status" = Option<StatusName>, Query, description = "Only jobs in this state."),
    ),
    responses((status = 200, description = "Jobs, the newest first, without their results.", body = JobList)))]
pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<ListQuery>,
) -> Result<Json<JobList>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(invalid_query(format!("limit must be from 1 to {PAGE_MAX}")));
    }
    let (kind, status) = (query.kind.map(Kind::from), query.status.map(Status::from));
    let filter = Filter { kind, model: query.model, status, after: query.after, limit };
    let page = state.jobs.list(&filter).await;
    let jobs = page.jobs.into_iter().map(JobInfo::from).collect();
    Ok(Json(JobList { jobs, next: page.next.map(|next| next.to_string()) }))
}

/// Shows a job.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "getJob",
    params(("id" = String, Path, description = "The job's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses((status = 200, description = "The job, with its result where that is JSON.", body = JobInfo)))]
pub(in crate::http) async fn show(State(state): State<HttpState>, JobPath(id): JobPath) -> Result<Response, ApiError> {
    let job = state.jobs.get(id).await?;
    let is_json = matches!(&job.state, JobState::Succeeded { output } if output.media_type == "application/json");
    let info = JobInfo::from(job);
    if !is_json {
        return Ok(Json(info).into_response());
    }
    let result = match state.jobs.result(id).await? {
        Ok((_, bytes)) => bytes,
        // A job that succeeded stays so.
        Err(_) => return Err(JobError::NotFound.into()),
    };
    let written = state.compute(result.len(), move || {
        let result = RawValue::from_string(String::from_utf8(result.into())?)?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(serde_json::to_vec(&JobInfo {
            result: Some(result),
            ..info
        })?)
    });
    let written = written.await?.map_err(|error| ApiError::internal(format!("a stored result: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], written).into_response())
}

/// Fetches a result.
#[utoipa::path(get, path = "/v1/jobs/{id}/result", tag = "jobs", operation_id = "getJobResult",
    description = "What predict would have answered: the result in its own media type, or the error with its own status. \
        409 while there is none.",
    params(("id" = String, Path, description = "The job's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses((status = 200, description = "The result.", content(
        (PredictResponseBody = "application/json"),
        (Vec<u8> = "application/x-npy"),
        (Vec<u8> = "application/x-npz"),
        (Vec<u8> = "application/vnd.safetensors"),
    ))))]
pub(in crate::http) async fn result(
    State(state): State<HttpState>,
    JobPath(id): JobPath,
) -> Result<Response, ApiError> {
    let (status, media_type, body) = match state.jobs.result(id).await? {
        Ok((output, bytes)) => (StatusCode::OK, output.media_type, Body::from(bytes)),
        Err(failure) => {
            let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, "application/problem+json".to_owned(), Body::from(failure.problem))
        }
    };
    let media_type = HeaderValue::try_from(media_type).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((status, [(header::CONTENT_TYPE, media_type)], body).into_response())
}

/// Cancels or removes a job.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "deleteJob",
    description = "Cancels a job that is queued or running, and removes one that is finished.",
    params(("id" = String, Path, description = "The job's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses(
        (status = 200, description = "The job is cancelled, or ended in that moment as `status` says.", body = JobInfo),
        (status = 204, description = "The finished job is removed."),
    ))]
pub(in crate::http) async fn delete(
    State(state): State<HttpState>,
    JobPath(id): JobPath,
) -> Result<Response, ApiError> {
    Ok(match state.jobs.delete(id).await? {
        Deleted::Ended(job) => Json(JobInfo::from(job)).into_response(),
        Deleted::Removed => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Watches a job.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs", operation_id = "watchJob",
    description = "Server-sent events: `state` with the job, first as it is and then on each change, and `progress` with \
        `{done, total}`. Ends after the final state, and when the server stops.",
    params(("id" = String, Path, description = "The job's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses((status = 200, description = "Events.", body = String, content_type = "text/event-stream")))]
pub(in crate::http) async fn events(
    State(state): State<HttpState>,
    caller: Option<Extension<Caller>>,
    JobPath(id): JobPath,
) -> Result<Response, ApiError> {
    let changes = state.jobs.watch(id).await?;
    let feed = Feed {
        jobs: state.jobs.clone(),
        id,
        changes,
        stopping: state.tasks.stopping().clone(),
        state: None,
        progress: JobProgress { done: 0, total: 0 },
        ready: VecDeque::new(),
        is_over: false,
    };
    state.stream(caller.map(|Extension(caller)| caller), feed.stream())
}

/// What one stream has said of its job.
struct Feed {
    jobs: Jobs,
    id: Uuid,
    changes: watch::Receiver<()>,
    stopping: CancellationToken,
    state: Option<Status>,
    progress: JobProgress,
    ready: VecDeque<Event>,
    is_over: bool,
}

impl Feed {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures_util::stream::unfold(self, |mut feed| async move {
            loop {
                if let Some(event) = feed.ready.pop_front() {
                    return Some((Ok(event), feed));
                }
                if feed.is_over {
                    return None;
                }
                // The first look needs no change.
                if feed.state.is_some() {
                    tokio::select! {
                        biased; // A stop comes first: an endless stream would hold the drain.
                        () = feed.stopping.cancelled() => return None,
                        // An error is the removal of the job, which the look finds.
                        _ = feed.changes.changed() => {}
                        () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
                    }
                }
                feed.look().await;
            }
        })
    }

    /// Puts what is new into `ready`.
    async fn look(&mut self) {
        let Ok(job) = self.jobs.get(self.id).await else {
            self.is_over = true;
            return;
        };
        let status = job.state.status();
        let progress = JobProgress { done: job.done, total: job.total };
        let is_change = self.state.replace(status) != Some(status);
        self.is_over = status.is_final();
        let info = is_change.then(|| JobInfo::from(job));
        // The end is the last word; every other state comes before the progress it makes.
        if !self.is_over {
            self.say("state", info.as_ref());
        }
        let moved = self.progress != progress && progress.total > 0;
        self.progress = progress;
        self.say("progress", moved.then_some(&progress));
        if self.is_over {
            self.say("state", info.as_ref());
        }
    }

    fn say<T: Serialize>(&mut self, name: &str, data: Option<&T>) {
        // Texts and numbers only: writing them cannot fail.
        let text = data.and_then(|data| serde_json::to_string(data).ok());
        self.ready.extend(text.map(|text| Event::default().event(name).data(text)));
    }
}

impl From<Job> for JobInfo {
    fn from(job: Job) -> JobInfo {
        let status = job.state.status();
        let mut info = JobInfo {
            id: job.id.to_string(),
            kind: job.request.kind.into(),
            status: status.into(),
            model: job.request.model.clone(),
            version: job.request.version.clone(),
            created_at: rfc3339(job.created_ms),
            started_at: job.started_ms.map(rfc3339),
            finished_at: job.finished_ms.map(rfc3339),
            expires_at: job.expires_ms.map(rfc3339),
            progress: JobProgress { done: job.done, total: job.total },
            request_id: job.request.request_id.clone(),
            result_type: None,
            result_bytes: None,
            result: None,
            error: None,
        };
        match job.state {
            JobState::Succeeded { output } => {
                info.version = Some(output.version);
                info.result_type = Some(output.media_type);
                info.result_bytes = Some(output.bytes);
            }
            JobState::Failed { failure } => info.error = RawValue::from_string(failure.problem).ok(),
            JobState::Queued | JobState::Running | JobState::Cancelled => {}
        }
        info
    }
}

impl From<Kind> for KindName {
    fn from(kind: Kind) -> KindName {
        match kind {
            Kind::Predict => KindName::Predict,
            Kind::Optimize => KindName::Optimize,
        }
    }
}

impl From<KindName> for Kind {
    fn from(name: KindName) -> Kind {
        match name {
            KindName::Predict => Kind::Predict,
            KindName::Optimize => Kind::Optimize,
        }
    }
}

impl From<Status> for StatusName {
    fn from(status: Status) -> StatusName {
        match status {
            Status::Queued => StatusName::Queued,
            Status::Running => StatusName::Running,
            Status::Succeeded => StatusName::Succeeded,
            Status::Failed => StatusName::Failed,
            Status::Cancelled => StatusName::Cancelled,
        }
    }
}

impl From<StatusName> for Status {
    fn from(name: StatusName) -> Status {
        match name {
            StatusName::Queued => Status::Queued,
            StatusName::Running => Status::Running,
            StatusName::Succeeded => Status::Succeeded,
            StatusName::Failed => Status::Failed,
            StatusName::Cancelled => Status::Cancelled,
        }
    }
}

//! `POST /v1/models/{name}/optimize`: makes variants of a model, measures them and adopts the best, as a job.

use super::jobs::{self, JobInfo};
use super::models::Tuned;
use super::parse::{self, BodyKind, Input, Limits};
use super::stats::VersionQuery;
use crate::engine::{InferenceEngine, LoadedModel, ModelName, Parameters, RunInput, Version};
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, ModelPath, RequestId, content_type};
use crate::http::{HttpSettings, HttpState, body};
use crate::jobs::{JobError, JobRequest, Kind, Output, Work};
use crate::optimize::{
    Bounds, Figures, Objective, OptimizeError, OptimizeRequest, Origin, Precision, Report, TuneReport, VariantReport,
};
use crate::telemetry::printable;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

/// How long a model must have had no request before it is measured, unless `force`.
const QUIET: Duration = Duration::from_secs(10);
/// Up to this size the inputs of a loaded model are checked before the job is taken.
const CHECKED_BYTES: usize = 1 << 20;
/// Seconds for a variant.
const SECONDS: std::ops::RangeInclusive<f64> = 0.1..=600.0;

/// What is to be tried; every key may be left out, and the body too.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = OptimizeRequest)]
pub(in crate::http) struct OptimizeBody {
    /// The one variant to try.
    precision: Option<PrecisionName>,
    /// The variants to try; all that suit the device where neither key is there.
    #[schema(max_items = 8)]
    precisions: Option<Vec<PrecisionName>>,
    /// Measure at the end which instances, threads, batches, graph level and memory settings serve the model best, and let it serve
    /// so; alone, no variant is tried.
    tune: Option<bool>,
    /// What is to become better; `both` where absent: runs of all sizes. Tuning takes `both` for `throughput`.
    objective: Option<ObjectiveName>,
    /// Most drift of a variant that may be adopted; 0.01 where absent.
    #[schema(minimum = 0, maximum = 2, example = 0.01)]
    max_drift: Option<f64>,
    /// More than so many times as fast has a variant to be; 1.05 where absent.
    #[schema(minimum = 0, example = 1.05)]
    min_speed: Option<f64>,
    /// How long the original and one variant are timed together; 10 where absent.
    #[schema(minimum = 0.1, maximum = 600, example = 10)]
    seconds: Option<f64>,
    /// What to measure on, as predict takes it; where absent recorded requests, else the model's samples, else made-up inputs.
    #[schema(value_type = Option<Value>, example = json!({"x": [[0.5, 1.5]]}))]
    inputs: Option<Box<RawValue>>,
    /// What the task is told with `inputs`.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Box<RawValue>>,
    /// Whether the best of those that are better becomes the model's next version and takes over; true where absent.
    adopt: Option<bool>,
    /// Measure also while the model answers requests, which makes the figures worth less.
    force: Option<bool>,
}

/// A form of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OptimizationPrecision)]
pub(in crate::http) enum PrecisionName {
    Fp16,
    Int8,
    Int8Static,
    Int4,
}

/// Optimises a model.
#[utoipa::path(post, path = "/v1/models/{name}/optimize", tag = "models", operation_id = "optimizeModel",
    description = "Makes variants of the model's graph, times each by turns with the original, measures how far its answers \
        drift, and adopts the best that is faster within `max_drift` as the model's next version: a rollback goes back. \
        Runs as a job, one at a time; its result is an OptimizationReport. Cancelled, it leaves nothing.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version where absent."),
    ),
    request_body = Option<OptimizeBody>,
    responses((status = 202, description = "The job is kept and will run.", body = JobInfo,
        headers(("Location" = String, description = "The job: `/v1/jobs/{id}`.")))))]
pub(in crate::http) async fn optimize(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<VersionQuery>,
    RequestId(request_id): RequestId,
    request: Request,
) -> Result<Response, ApiError> {
    let version = query.parse()?;
    let (head, body) = request.into_parts();
    let bytes = body::read(body, &state.settings, 0).await?;
    if !bytes.is_empty() && content_type(&head.headers).as_deref() != Some("application/json") {
        return Err(ApiError::unsupported_media("an optimisation takes application/json, or no body"));
    }
    let (size, text) = (bytes.len(), bytes.clone());
    let body = state.compute(size, move || OptimizeBody::parse(&text)).await??;
    state.jobs.check_room(size as u64).await?;
    let status = state.engine.status(&path.name)?;
    let wanted = version.or(status.default_version);
    let known = wanted.and_then(|wanted| status.versions.into_iter().find(|known| known.version == wanted));
    match (known, version) {
        // The engine's own words for a version that is not there.
        (None, Some(version)) => drop(state.engine.model_stats(&path.name, Some(version))?),
        (Some(known), _) => {
            if let Some(model) = known.loaded {
                body.check(&state, &model, size).await?;
            }
        }
        (None, None) => {}
    }
    let request = JobRequest {
        kind: Kind::Optimize,
        model: path.name.to_string(),
        version: version.map(|version| version.to_string()),
        request_id: request_id.to_string(),
        content_type: None,
        accept: Vec::new(),
        query: Vec::new(),
    };
    Ok(jobs::accepted(state.jobs.submit(request, bytes).await?))
}

/// Runs the job of a stored request.
pub(super) async fn run(state: &HttpState, work: Work) -> Result<(Output, Bytes), ApiError> {
    if !state.engine.is_ready() {
        // Before every model has been tried, a missing one may only not have been read yet.
        return Err(JobError::Stopping.into());
    }
    let Work { request, body, progress, .. } = work;
    let no_model = |_| ApiError::internal("a stored job names no model");
    let name = ModelName::parse(&request.model).map_err(no_model)?;
    let version = request.version.as_deref().and_then(Version::parse);
    let model = state.engine.model(&name, version).await?;
    let asked = state.compute(body.len(), move || OptimizeBody::parse(&body)).await??;
    if asked.check_quiet(state, &model).is_err() {
        // It waits, as for a model that is loading.
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_busy", "the model answers requests"));
    }
    let request = asked.request(state, &model).await?;
    // The load of what is adopted waits until the version before has gone.
    drop(model);
    // Dropped with this future, which is how a job is cancelled; what it holds is then put away in peace.
    let cancel = CancellationToken::new();
    let _cancelled_on_drop = cancel.clone().drop_guard();
    let (optimizer, counted) = (state.optimizer.clone(), state.engine.stats().panic_guard());
    let optimising = state.tasks.spawn("optimise", async move {
        let _counted = counted;
        optimizer.optimise(&name, request, &progress, &cancel).await
    });
    let report = optimising.await.map_err(|error| ApiError::internal(format!("an optimisation: {error}")))??;
    let bytes = serde_json::to_vec(&ReportBody::from(&report))
        .map_err(|error| ApiError::internal(format!("an optimisation's report: {error}")))?;
    let (media_type, version) = ("application/json".to_owned(), report.version.to_string());
    Ok((Output { media_type, version, bytes: bytes.len() as u64 }, bytes.into()))
}

impl OptimizeBody {
    fn parse(bytes: &[u8]) -> Result<OptimizeBody, ApiError> {
        if bytes.is_empty() {
            return Ok(OptimizeBody::default());
        }
        let body: OptimizeBody = serde_json::from_slice(bytes).map_err(|error| {
            let text: String = error.to_string().chars().take(400).collect();
            ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", format!("the body: {}", printable(&text)))
        })?;
        body.validate()?;
        Ok(body)
    }

    fn validate(&self) -> Result<(), ApiError> {
        if self.precision.is_some() && self.precisions.is_some() {
            return Err(ApiError::field("precisions", "stands beside precision; give one of them"));
        }
        if self.precisions.as_ref().is_some_and(|list| list.is_empty() || list.len() > 8) {
            return Err(ApiError::field("precisions", "must name 1 to 8 variants; leave it out for all that suit"));
        }
        let within =
            |value: Option<f64>, range: std::ops::RangeInclusive<f64>| value.is_none_or(|value| range.contains(&value));
        if !within(self.max_drift, 0.0..=2.0) {
            return Err(ApiError::field("max_drift", "must be from 0 to 2"));
        }
        if !within(self.min_speed, 0.0..=1000.0) {
            return Err(ApiError::field("min_speed", "must be from 0 to 1000"));
        }
        if !within(self.seconds, SECONDS) {
            return Err(ApiError::field("seconds", "must be from 0.1 to 600"));
        }
        if self.parameters.is_some() && self.inputs.is_none() {
            return Err(ApiError::field("parameters", "are for inputs, and there are none"));
        }
        Ok(())
    }

    /// Refuses what would fail or wait later, as far as that can be told now.
    async fn check(&self, state: &HttpState, model: &Arc<LoadedModel>, size: usize) -> Result<(), ApiError> {
        self.check_quiet(state, model)?;
        if size <= CHECKED_BYTES {
            self.inputs(state, model).await?;
        }
        Ok(())
    }

    fn check_quiet(&self, state: &HttpState, model: &LoadedModel) -> Result<(), ApiError> {
        if self.force == Some(true) || state.engine.is_quiet(model, QUIET) {
            return Ok(());
        }
        let detail = format!(
            "model '{}' answered requests within the last {} s, and figures taken beside them are worth little; come back \
             when it is quiet, or send \"force\": true",
            model.name,
            QUIET.as_secs()
        );
        Err(ApiError::new(StatusCode::CONFLICT, "model_busy", detail))
    }

    async fn request(&self, state: &HttpState, model: &Arc<LoadedModel>) -> Result<OptimizeRequest, ApiError> {
        let defaults = OptimizeRequest::default();
        let named = self.precision.iter().chain(self.precisions.iter().flatten());
        let mut precisions: Vec<Precision> = named.map(|name| Precision::from(*name)).collect();
        precisions.sort_unstable();
        precisions.dedup();
        Ok(OptimizeRequest {
            version: Some(model.version),
            precisions,
            objective: self.objective.map_or(defaults.objective, Objective::from),
            bounds: Bounds {
                max_drift: self.max_drift.unwrap_or(defaults.bounds.max_drift),
                min_speed: self.min_speed.unwrap_or(defaults.bounds.min_speed),
            },
            inputs: self.inputs(state, model).await?,
            tune: self.tune.unwrap_or(false),
            force: self.force.unwrap_or(false),
            adopt: self.adopt.unwrap_or(true),
            time: self.seconds.map_or(defaults.time, Duration::from_secs_f64),
            ..defaults
        })
    }

    /// The given inputs as the graph takes them; empty where none are.
    async fn inputs(&self, state: &HttpState, model: &Arc<LoadedModel>) -> Result<Vec<Vec<RunInput>>, ApiError> {
        let Some(inputs) = &self.inputs else { return Ok(Vec::new()) };
        let parameters = self.parameters.as_ref().map_or("{}", |parameters| parameters.get());
        let text = format!("{{\"inputs\": {}, \"parameters\": {parameters}}}", inputs.get());
        let limits = Limits::from(&*state.settings);
        let call = parse::parse(model, BodyKind::Json, Bytes::from(text), &limits).await?;
        runs_of(&state.engine, model, call.input, call.parameters).await
    }
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Precision {
        match name {
            PrecisionName::Fp16 => Precision::Fp16,
            PrecisionName::Int8 => Precision::Int8,
            PrecisionName::Int8Static => Precision::StaticInt8,
            PrecisionName::Int4 => Precision::Int4,
        }
    }
}

impl From<OptimizeError> for ApiError {
    fn from(error: OptimizeError) -> ApiError {
        let text = error.to_string();
        let refused = |code| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, text.clone());
        match error {
            OptimizeError::Engine(error) => error.into(),
            OptimizeError::Unsuitable(_) => refused("unsuitable_model"),
            OptimizeError::NoVariant(_) => refused("no_variant"),
            OptimizeError::Inputs(_) | OptimizeError::NoInputs => refused("invalid_input"),
            OptimizeError::Adopt(error) => error.into(),
            OptimizeError::DiskFull => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", text),
            OptimizeError::Disk(detail) | OptimizeError::Internal { detail } => ApiError::internal(detail),
            OptimizeError::Cancelled => JobError::Stopping.into(),
        }
    }
}

/// What came of an optimisation: the result of its job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationReport)]
pub(in crate::http) struct ReportBody {
    #[schema(example = "resnet50")]
    model: String,
    /// The original.
    #[schema(example = "1")]
    version: String,
    #[schema(example = "cpu")]
    device: String,
    /// Of one run.
    threads: usize,
    objective: ObjectiveName,
    #[schema(example = 0.01)]
    max_drift: f64,
    #[schema(example = 1.05)]
    min_speed: f64,
    inputs: InputsBody,
    /// In the order in which they were tried.
    variants: Vec<VariantBody>,
    adopted: Option<AdoptedBody>,
    /// What tuning found; absent where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tuned: Option<TuneBody>,
    /// Why what was adopted was, or why nothing was.
    #[schema(example = "int8 was adopted as version 2: 2.26 times as fast within the drift")]
    why: String,
}

/// What is to become better: runs of all sizes, the smallest, or the most rows in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = OptimizationObjective)]
pub(in crate::http) enum ObjectiveName {
    Both,
    Latency,
    Throughput,
}

/// What the drift was measured on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationInputs)]
pub(in crate::http) struct InputsBody {
    /// `given`, `recorded` (`record_requests`), `samples` (the model's own) or `made_up`, which says little of real inputs.
    #[schema(example = "given")]
    source: &'static str,
    count: usize,
}

/// What came of one variant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationVariant)]
pub(in crate::http) struct VariantBody {
    #[schema(example = "int8")]
    precision: &'static str,
    /// `better`, `not_faster`, `drifts`, `incomparable`, or `impossible` where this graph has no such variant.
    #[schema(example = "better")]
    verdict: &'static str,
    /// The verdict in words.
    #[schema(example = "2.26 times as fast within the drift")]
    reason: String,
    #[serde(flatten)]
    figures: Option<FiguresBody>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationFigures)]
pub(in crate::http) struct FiguresBody {
    /// How many times as fast as the original, as the objective counts it.
    #[schema(example = 2.26)]
    speed: f64,
    times: Vec<TimeBody>,
    /// Rows in a second, each form with the size that suits it best.
    rows_per_second: PairBody<f64>,
    bytes: PairBody<u64>,
    /// Absent where the outputs cannot be compared.
    drift: Option<DriftBody>,
    /// Operators that were replaced, by their type.
    #[schema(example = json!({"MatMul": 24}))]
    replaced: BTreeMap<String, usize>,
    /// Operators that could have been, and why they were not: the reason and their number.
    left: BTreeMap<String, usize>,
    /// Weights that a number of 16 bits cannot hold, and that became the nearest one.
    clamped: usize,
    /// What the scales of `int8_static` were calibrated on, as `inputs.source`: real inputs may go beyond `made_up` ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "recorded")]
    calibrated_on: Option<&'static str>,
    /// Weights have seven bits, since the processor's products of bytes would overflow.
    reduce_range: bool,
}

/// The median of runs of one size.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationTime)]
pub(in crate::http) struct TimeBody {
    rows: usize,
    original_ms: f64,
    variant_ms: f64,
    speed: f64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PairBody<T> {
    original: T,
    variant: T,
}

/// How far the variant's outputs are from the original's.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationDrift)]
pub(in crate::http) struct DriftBody {
    /// One minus the cosine, 0 to 2: what `max_drift` bounds. `null` where a number became none.
    drift: Option<f64>,
    /// The lowest cosine of an output with its original.
    #[schema(example = 0.9994)]
    cosine: f64,
    /// The largest difference of two numbers; `null` where one is none.
    max_abs: Option<f64>,
    /// The share of rows whose largest number stands in the same place.
    #[schema(example = 1.0)]
    top1: f64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationAdopted)]
pub(in crate::http) struct AdoptedBody {
    #[schema(example = "int8")]
    precision: &'static str,
    /// The version that it became.
    #[schema(example = "2")]
    version: String,
    /// The version that answers now; `null` where none is loaded.
    #[schema(example = "2")]
    serving: Option<String>,
    /// The call that goes back to the version before.
    #[schema(example = "POST /v1/models/resnet50/rollback")]
    roll_back: String,
}

/// What tuning found.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OptimizationTuning)]
pub(in crate::http) struct TuneBody {
    /// The version that was measured.
    #[schema(example = "2")]
    version: String,
    /// What serves it best, and serves it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<Tuned>,
    /// Why nothing was found; what served before serves on.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl From<&TuneReport> for TuneBody {
    fn from(report: &TuneReport) -> TuneBody {
        TuneBody {
            version: report.version.to_string(),
            found: report.outcome.as_ref().ok().map(Tuned::from),
            problem: report.outcome.as_ref().err().cloned(),
        }
    }
}

impl From<&Report> for ReportBody {
    fn from(report: &Report) -> ReportBody {
        ReportBody {
            model: report.model.to_string(),
            version: report.version.to_string(),
            device: report.device.clone(),
            threads: report.threads,
            objective: report.objective.into(),
            max_drift: report.bounds.max_drift,
            min_speed: report.bounds.min_speed,
            inputs: InputsBody { source: report.inputs.origin.name(), count: report.inputs.count },
            variants: report.variants.iter().map(VariantBody::from).collect(),
            adopted: report.adopted.as_ref().map(|adopted| AdoptedBody {
                precision: adopted.precision.name(),
                version: adopted.version.to_string(),
                serving: adopted.serving.map(|version| version.to_string()),
                roll_back: format!("POST /v1/models/{}/rollback", report.model),
            }),
            tuned: report.tuned.as_ref().map(TuneBody::from),
            why: report.why.clone(),
        }
    }
}

impl From<&VariantReport> for VariantBody {
    fn from(variant: &VariantReport) -> VariantBody {
        VariantBody {
            precision: variant.precision.name(),
            verdict: variant.verdict(),
            reason: variant.reason(),
            figures: variant.figures().map(FiguresBody::from),
        }
    }
}

impl From<&Figures> for FiguresBody {
    fn from(figures: &Figures) -> FiguresBody {
        let times = figures.times.iter().map(|time| TimeBody {
            rows: time.rows,
            original_ms: time.original_ms,
            variant_ms: time.variant_ms,
            speed: time.original_ms / time.variant_ms,
        });
        // JSON has no word for what is infinite.
        let finite = |number: f64| number.is_finite().then_some(number);
        FiguresBody {
            speed: figures.speed,
            times: times.collect(),
            rows_per_second: PairBody { original: figures.rows_per_second.0, variant: figures.rows_per_second.1 },
            bytes: PairBody { original: figures.rewritten.bytes.0, variant: figures.rewritten.bytes.1 },
            drift: figures.drift.map(|drift| DriftBody {
                drift: finite(drift.distance()),
                cosine: drift.cosine,
                max_abs: finite(drift.max_abs),
                top1: drift.top1,
            }),
            replaced: figures.rewritten.replaced.clone(),
            left: figures.rewritten.left.clone(),
            clamped: figures.rewritten.clamped,
            calibrated_on: figures.calibrated_on.map(Origin::name),
            reduce_range: figures.reduce_range,
        }
    }
}

impl From<Objective> for ObjectiveName {
    fn from(objective: Objective) -> ObjectiveName {
        match objective {
            Objective::Both => ObjectiveName::Both,
            Objective::Latency => ObjectiveName::Latency,
            Objective::Throughput => ObjectiveName::Throughput,
        }
    }
}

impl From<ObjectiveName> for Objective {
    fn from(name: ObjectiveName) -> Objective {
        match name {
            ObjectiveName::Both => Objective::Both,
            ObjectiveName::Latency => Objective::Latency,
            ObjectiveName::Throughput => Objective::Throughput,
        }
    }
}

/// The report as the API writes it.
pub fn optimization_json(report: &Report) -> serde_json::Value {
    // Texts and numbers only: writing them cannot fail.
    serde_json::to_value(ReportBody::from(report)).unwrap_or_default()
}

/// What is run for the input in files, as `predict` takes them.
///
/// # Errors
/// What is wrong with it.
pub async fn inputs_offline(
    engine: &InferenceEngine,
    model: &Arc<LoadedModel>,
    files: Vec<(PathBuf, Bytes)>,
) -> Result<Vec<Vec<RunInput>>, String> {
    let limits = Limits::from(&HttpSettings::default());
    let is_json = |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let (files, json) = match files.as_slice() {
        [(path, bytes)] if is_json(path) => {
            let text = std::str::from_utf8(bytes).map_err(|_| "the file is not UTF-8 text".to_owned())?;
            (Vec::new(), Some(text.to_owned()))
        }
        _ => (files, None),
    };
    let call = parse::offline(model, files, None, json, &limits).await.map_err(|error| error.detail().to_owned())?;
    let runs = runs_of(engine, model, call.input, call.parameters).await;
    runs.map_err(|error| error.internal_detail().unwrap_or(error.detail()).to_owned())
}

/// What a prediction's input is to the graph.
async fn runs_of(
    engine: &InferenceEngine,
    model: &Arc<LoadedModel>,
    input: Input,
    parameters: Parameters,
) -> Result<Vec<Vec<RunInput>>, ApiError> {
    Ok(match input {
        Input::Tensors(values) => vec![engine.tensors_of(model, values)?],
        Input::Items(items) => engine.items_of(model, items, parameters).await?,
    })
}

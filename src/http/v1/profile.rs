//! `/v1/models/{name}/profile`: where the time of a model's runs goes, by operator and by node.

use super::stats::VersionQuery;
use crate::codec::json::{JsonLimits, parse_object};
use crate::engine::{LoadedModel, Profiled, Version};
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, ModelPath, content_type};
use crate::http::{HttpState, body};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;
use utoipa::ToSchema;

/// Nodes in an answer.
const NODES_MAX: usize = 50;

/// Body of a profile; every key may be left out, and the body too.
#[derive(Serialize, ToSchema)]
#[schema(as = ProfileRequest)]
pub(in crate::http) struct ProfileBody {
    /// Runs that are timed; fewer are where the graph is large or slow.
    #[schema(minimum = 1, maximum = 1000, example = 10)]
    iterations: Option<u32>,
    /// Rows of a run; the least that the model takes where absent.
    #[schema(example = 8)]
    batch_size: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ProfileQuery {
    version: Option<String>,
    #[serde(default)]
    format: Format,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Table,
    Chrome,
}

/// Where the time goes. Times are of one run, on average.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelProfile {
    #[schema(example = "resnet50")]
    model: String,
    #[schema(example = "1")]
    version: String,
    #[schema(example = "cpu")]
    device: String,
    /// Runs that were timed.
    #[schema(example = 10)]
    iterations: usize,
    /// `null`: the least that the model takes.
    #[schema(example = 8)]
    batch_size: Option<usize>,
    #[schema(example = 31.2)]
    run_ms: f64,
    /// Of the operators; the rest of a run is ONNX Runtime's own.
    #[schema(example = 30.9)]
    operators_ms: f64,
    /// The longest first.
    operators: Vec<ProfiledOperator>,
    /// The longest 50, the longest first.
    nodes: Vec<ProfiledNode>,
}

/// All nodes of an operator that one provider runs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ProfiledOperator {
    #[schema(example = "Conv")]
    operator: String,
    #[schema(example = "CPUExecutionProvider")]
    provider: String,
    #[schema(example = 53)]
    nodes: usize,
    /// Over all runs.
    #[schema(example = 530)]
    calls: u64,
    #[schema(example = 27.1)]
    time_ms: f64,
    /// Of the operators' time, 0 to 1.
    #[schema(example = 0.877)]
    share: f64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ProfiledNode {
    /// As ONNX Runtime calls it after optimising the graph.
    #[schema(example = "/layer1/conv1/Conv")]
    name: String,
    #[schema(example = "Conv")]
    operator: String,
    #[schema(example = "CPUExecutionProvider")]
    provider: String,
    #[schema(example = 10)]
    calls: u64,
    #[schema(example = 1.9)]
    time_ms: f64,
    #[schema(example = 0.061)]
    share: f64,
}

/// Profiles a model.
#[utoipa::path(post, path = "/v1/models/{name}/profile", tag = "models", operation_id = "profileModel",
    description = "Times every operator over some runs on made-up inputs, in a session of its own: the ones that serve are not \
        touched, but share the machine with it. Half a minute at most.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version where absent."),
        ("format" = Option<String>, Query, description = "`chrome` gives the trace as a file for chrome://tracing or Perfetto; \
            `table`, the default, what it sums up to."),
    ),
    request_body = Option<ProfileBody>,
    responses((status = 200, description = "Where the time goes.", body = ModelProfile)))]
pub(in crate::http) async fn profile(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<ProfileQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let version = version(query.version)?;
    let (head, body) = request.into_parts();
    let bytes = body::read(body, &state.settings, 0).await?;
    let object = if bytes.is_empty() {
        Map::new()
    } else if content_type(&head.headers).as_deref() == Some("application/json") {
        parse_object(&bytes, "the body", &JsonLimits::from(&state.settings.limits))?
    } else {
        return Err(ApiError::unsupported_media("a profile takes application/json, or no body"));
    };
    let (iterations, batch_size) = read(&object)?;
    let model = state.engine.model(&path.name, version).await?;
    let profiled = state.engine.profile(&model, iterations, batch_size).await?;
    match query.format {
        Format::Table => Ok(Json(ModelProfile::of(&model, &profiled)).into_response()),
        Format::Chrome => {
            let headers = [
                (header::CONTENT_TYPE, "application/json"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"trace.json\""),
            ];
            Ok((headers, profiled.trace()).into_response())
        }
    }
}

/// Gives the last profile of a model.
#[utoipa::path(get, path = "/v1/models/{name}/profile", tag = "models", operation_id = "getModelProfile",
    description = "What was found last, on request or at load (`performance.enable_profiling`).",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version where absent."),
    ),
    responses((status = 200, description = "Where the time goes.", body = ModelProfile)))]
pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<Json<ModelProfile>, ApiError> {
    let model = state.engine.model(&path.name, query.parse()?).await?;
    let Some(profiled) = model.kept_profile.get() else {
        let detail = format!(
            "model '{}' has no profile yet; POST to this path makes one, and performance.enable_profiling at each load",
            model.name
        );
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_profile", detail));
    };
    Ok(Json(ModelProfile::of(&model, &profiled)))
}

fn version(text: Option<String>) -> Result<Option<Version>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", "version must be a number such as 1");
    Version::parse(&text).map(Some).ok_or_else(wrong)
}

fn read(object: &Map<String, Value>) -> Result<(Option<usize>, Option<usize>), ApiError> {
    let (mut iterations, mut batch_size) = (None, None);
    for (key, value) in object {
        let place = match key.as_str() {
            "iterations" => &mut iterations,
            "batch_size" => &mut batch_size,
            other => {
                let shown: String = other.chars().take(64).collect();
                let detail = format!("unknown key {shown:?}; a body has the keys iterations and batch_size");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", detail));
            }
        };
        if !value.is_null() {
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            *place = Some(number.ok_or_else(|| ApiError::field(key, "must be a whole number, at least 1"))?);
        }
    }
    Ok((iterations, batch_size))
}

impl ModelProfile {
    fn of(model: &LoadedModel, profiled: &Profiled) -> ModelProfile {
        let profile = &profiled.profile;
        let runs = u32::try_from(profile.runs).unwrap_or(u32::MAX).max(1);
        let total: Duration = profile.operators.iter().map(|operator| operator.time).sum();
        let share = |time: Duration| {
            if total.is_zero() { 0.0 } else { (time.as_secs_f64() / total.as_secs_f64() * 1e4).round() / 1e4 }
        };
        // To a microsecond.
        let of_run = |time: Duration| ((time / runs).as_secs_f64() * 1e6).round() / 1e3;
        let operators = profile.operators.iter().map(|operator| ProfiledOperator {
            operator: operator.operator.clone(),
            provider: operator.provider.clone(),
            nodes: operator.nodes,
            calls: operator.calls,
            time_ms: of_run(operator.time),
            share: share(operator.time),
        });
        let nodes = profile.nodes.iter().take(NODES_MAX).map(|node| ProfiledNode {
            name: node.name.clone(),
            operator: node.operator.clone(),
            provider: node.provider.clone(),
            calls: node.calls,
            time_ms: of_run(node.time),
            share: share(node.time),
        });
        ModelProfile {
            model: model.name.to_string(),
            version: model.version.to_string(),
            device: profiled.device.clone(),
            iterations: profile.runs,
            batch_size: profiled.batch_size,
            run_ms: of_run(profile.time),
            operators_ms: of_run(total),
            operators: operators.collect(),
            nodes: nodes.collect(),
        }
    }
}

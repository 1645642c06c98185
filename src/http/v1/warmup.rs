//! `POST /v1/models/{name}/warmup`: runs a model on made-up inputs and says how long each run took.

use super::stats::VersionQuery;
use crate::codec::json::{JsonLimits, parse_object};
use crate::engine::{LoadedModel, Warmed, WarmupRequest};
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, ModelPath, content_type, deadline};
use crate::http::middleware::Arrival;
use crate::http::{HttpState, body};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::Instant;
use utoipa::ToSchema;

/// Body of a warm-up; every key may be left out, and the body too.
#[derive(Serialize, ToSchema)]
#[schema(as = WarmupRequest)]
pub(in crate::http) struct WarmupBody {
    /// Runs of each size; as many as at load where absent, and at least one.
    #[schema(minimum = 1, maximum = 1000, example = 10)]
    iterations: Option<u32>,
    /// Rows of the runs, one size after another, each up to the model's `max_batch_size`; the least that the model takes
    /// where absent.
    #[schema(max_items = 16, example = json!([1, 8]))]
    batch_sizes: Option<Vec<u32>>,
}

/// How long the runs took.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct Warmup {
    #[schema(example = "resnet50")]
    model: String,
    #[schema(example = "1")]
    version: String,
    /// One for each size, in the order asked for.
    batches: Vec<WarmedBatch>,
}

/// The runs of one size. Times are from the queue to the answer.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct WarmedBatch {
    /// Rows of a run.
    #[schema(example = 8)]
    batch_size: usize,
    /// Of each run, in order.
    #[schema(example = json!([14.2, 11.9, 11.8]))]
    latency_ms: Vec<f64>,
    #[schema(example = 12.633)]
    mean_ms: f64,
    #[schema(example = 11.8)]
    min_ms: f64,
    #[schema(example = 14.2)]
    max_ms: f64,
}

/// Warms a model up.
#[utoipa::path(post, path = "/v1/models/{name}/warmup", tag = "models", operation_id = "warmUpModel",
    description = "Runs the model on made-up inputs, one run after another, beside the requests that it answers. All runs must \
        end within the server's request timeout.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version where absent."),
    ),
    request_body = Option<WarmupBody>,
    responses((status = 200, description = "The latency of every run.", body = Warmup)))]
pub(in crate::http) async fn warm_up(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<VersionQuery>,
    arrival: Arrival,
    request: Request,
) -> Result<Json<Warmup>, ApiError> {
    let version = query.parse()?;
    let deadline = deadline(arrival, None, &state.settings)?;
    let (head, body) = request.into_parts();
    let bytes = body::read(body, &state.settings, 0).await?;
    let object = if bytes.is_empty() {
        Map::new()
    } else if content_type(&head.headers).as_deref() == Some("application/json") {
        parse_object(&bytes, "the body", &JsonLimits::from(&state.settings.limits))?
    } else {
        return Err(ApiError::unsupported_media("a warm-up takes application/json, or no body"));
    };
    let request = read(&object, deadline)?;
    let model = state.engine.model(&path.name, version).await?;
    let warmed = state.engine.warm_up(&model, request).await?;
    Ok(Json(Warmup::of(&model, warmed)))
}

fn read(object: &Map<String, Value>, deadline: Instant) -> Result<WarmupRequest, ApiError> {
    let mut request = WarmupRequest { iterations: None, batch_sizes: Vec::new(), deadline };
    for (key, value) in object {
        match (key.as_str(), value) {
            ("iterations" | "batch_sizes", Value::Null) => {}
            ("iterations", value) => request.iterations = Some(whole("iterations", value)?),
            ("batch_sizes", Value::Array(sizes)) if !sizes.is_empty() => {
                let sizes = sizes.iter().enumerate();
                let sizes = sizes.map(|(place, size)| whole(&format!("batch_sizes[{place}]"), size));
                request.batch_sizes = sizes.collect::<Result<_, _>>()?;
            }
            ("batch_sizes", _) => {
                return Err(ApiError::field("batch_sizes", "must be a list of whole numbers, at least one"));
            }
            (other, _) => {
                let shown: String = other.chars().take(64).collect();
                let detail = format!("unknown key {shown:?}; a body has the keys iterations and batch_sizes");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", detail));
            }
        }
    }
    Ok(request)
}

fn whole(field: &str, value: &Value) -> Result<usize, ApiError> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| ApiError::field(field, "must be a whole number, at least 1"))
}

impl Warmup {
    fn of(model: &LoadedModel, warmed: Vec<Warmed>) -> Warmup {
        Warmup {
            model: model.name.to_string(),
            version: model.version.to_string(),
            batches: warmed.into_iter().map(WarmedBatch::from).collect(),
        }
    }
}

impl From<Warmed> for WarmedBatch {
    fn from(Warmed { batch_size, latencies }: Warmed) -> WarmedBatch {
        let sum: Duration = latencies.iter().sum();
        let count = u32::try_from(latencies.len()).unwrap_or(u32::MAX).max(1);
        WarmedBatch {
            batch_size,
            mean_ms: milliseconds(sum / count),
            min_ms: milliseconds(latencies.iter().min().copied().unwrap_or_default()),
            max_ms: milliseconds(latencies.iter().max().copied().unwrap_or_default()),
            latency_ms: latencies.into_iter().map(milliseconds).collect(),
        }
    }
}

/// To a microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_body_may_say_how_often_and_how_large() {
        let now = Instant::now();
        let read = |value: Value| {
            let request = read(value.as_object().unwrap(), now)
                .map_err(|error| (error.status().as_u16(), error.detail().to_owned()));
            request.map(|request| (request.iterations, request.batch_sizes))
        };
        assert_eq!(read(json!({})), Ok((None, vec![])));
        assert_eq!(read(json!({"iterations": null, "batch_sizes": null})), Ok((None, vec![])));
        assert_eq!(read(json!({"iterations": 3, "batch_sizes": [1, 8]})), Ok((Some(3), vec![1, 8])));
        for (body, status, words) in [
            (json!({"iterations": 1.5}), 422, "iterations: must be a whole number"),
            (json!({"iterations": -1}), 422, "iterations: must be a whole number"),
            (json!({"batch_sizes": 4}), 422, "batch_sizes: must be a list"),
            (json!({"batch_sizes": []}), 422, "batch_sizes: must be a list"),
            (json!({"batch_sizes": [1, "2"]}), 422, "batch_sizes[1]: must be a whole number"),
            (json!({"iteration": 1}), 400, "unknown key \"iteration\"; a body has the keys iterations and batch_sizes"),
        ] {
            let (got, detail) = read(body.clone()).unwrap_err();
            assert!(got == status && detail.contains(words), "{body}: {got} {detail}");
        }
    }

    #[test]
    fn times_are_summed_up() {
        let latencies = [3, 1, 2].map(Duration::from_millis).to_vec();
        let batch = WarmedBatch::from(Warmed { batch_size: 4, latencies });
        let expected =
            WarmedBatch { batch_size: 4, latency_ms: vec![3.0, 1.0, 2.0], mean_ms: 2.0, min_ms: 1.0, max_ms: 3.0 };
        assert_eq!(batch, expected);
        assert_eq!(milliseconds(Duration::from_nanos(1_234_567)), 1.235);
    }
}

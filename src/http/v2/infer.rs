//! `POST /v2/models/{name}/infer`: tensors in, tensors out, as JSON, as binary data behind JSON, or both mixed.

use super::error::V2Error;
use super::frames::Frames;
use crate::engine::{InferRequest, LoadedModel, Parameters, RunOptions, WaitingSettings};
use crate::http::codec::json::{JsonLimits, V2Answer, V2Body, V2Request, encode_v2_response, parse_v2};
use crate::http::extract::ModelPath;
use crate::http::middleware::Arrival;
use crate::http::outcome::with_outcome;
use crate::http::tally::Tally;
use crate::http::{HttpSettings, HttpState, body};
use crate::tensor::{DType, Data, Value};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value as Json;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of the JSON part, on a request or answer with binary tensors behind it.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Reads the request for the model's inputs, runs it, and answers in the form that the request asks for.
pub(super) async fn infer(
    State(state): State<HttpState>,
    path: ModelPath,
    arrival: Arrival,
    tally: Tally,
    request: Request,
) -> Result<Response, V2Error> {
    respond(&state, path, arrival, tally, request).await
}

/// The handler itself, for who has what it needs at hand.
pub(in crate::http) async fn respond(
    state: &HttpState,
    path: ModelPath,
    arrival: Arrival,
    tally: Tally,
    request: Request,
) -> Result<Response, V2Error> {
    let json_length = json_length(request.headers(), state.settings.max_body_bytes);
    // The first binary tensor follows the JSON part, and is aligned there. The body is read before anything is refused:
    // a client that is still sending would find a closed connection instead of the reason.
    let align_at = json_length.as_ref().map_or(0, |length| length.unwrap_or(0));
    let body = body::read(request.into_body(), &state.settings, align_at).await?;
    let json_length = json_length?;
    let model = tally.model(&state.engine, &path.name, path.version).await?;

    let limits = JsonLimits::from(&state.settings.limits);
    let parsed_for = model.clone();
    // Numbers behind the JSON are only sliced; strings are read one by one.
    let only_numbers = model.inputs.iter().all(|spec| spec.ty.dtype().is_some_and(|dtype| dtype != DType::String));
    let text_size = json_length.filter(|_| only_numbers).unwrap_or(body.len());
    let parse = move || parse_v2(&body, json_length, &parsed_for.inputs, &limits);
    let mut request = state.compute(text_size, parse).await??;
    let waiting = &model.settings.batch.waiting;
    let options = options_of(&request.parameters, arrival.0, &state.settings, waiting)?;
    let inputs = std::mem::take(&mut request.inputs).into_iter().map(|input| (input.name, input.value)).collect();
    let outputs = request.outputs.iter().map(|output| output.name.clone()).collect();

    let response = state.engine.infer(&model, InferRequest { inputs, outputs, options }).await?;

    let (outputs, cache) = (response.outputs, response.cache);
    let text_size = outputs
        .iter()
        .filter(|(name, value)| !is_sent_as_it_is(&request, name, value))
        .map(|(_, value)| byte_size(value))
        .sum();
    let body = state.compute(text_size, move || encode(&model, &request, &outputs)).await??;
    Ok(with_outcome(answer(body), cache))
}

/// The bytes of the JSON part; `None` where the request does not say, so that the body is JSON alone.
fn json_length(headers: &HeaderMap, max_body_bytes: usize) -> Result<Option<usize>, V2Error> {
    let mut values = headers.get_all(JSON_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refuse =
        |problem: String| Err(V2Error::invalid("invalid_header", format!("Inference-Header-Content-Length {problem}")));
    if values.next().is_some() {
        return refuse("is given twice".to_owned());
    }
    // Digits alone: `parse` would take a sign.
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(text) = text else {
        return refuse("must be a whole number: the bytes of the JSON part, or 0 for a raw request".to_owned());
    };
    match text.parse::<usize>() {
        Ok(length) if length <= max_body_bytes => Ok(Some(length)),
        // What does not fit is longer than any body.
        _ => {
            refuse(format!("must be between 0 and the size of the body, which may have {max_body_bytes} bytes at most"))
        }
    }
}

/// Checks the request's reserved parameters and gives deadline and priority. Others are the client's own and mean nothing here.
///
/// Where the model's configuration states a queue policy, `timeout` is what it is for Triton: how long the request may wait for
/// an instance, as far as the policy lets it say so. Elsewhere it bounds the whole request.
fn options_of(
    parameters: &Parameters,
    arrival: Instant,
    settings: &HttpSettings,
    waiting: &WaitingSettings,
) -> Result<RunOptions, V2Error> {
    let refuse = |name: &str, problem: &str| {
        let name: String = name.chars().take(64).collect();
        Err(V2Error::invalid("invalid_parameter", format!("parameters.{name}: {problem}")))
    };
    let (mut timeout, mut priority) = (None, None);
    for (name, value) in parameters {
        match name.as_str() {
            "timeout" => match value.as_u64() {
                // 0 asks for the server's own timeout.
                Some(0) => {}
                Some(micros) => timeout = Some(Duration::from_micros(micros)),
                None => return refuse(name, "must be a whole number of microseconds"),
            },
            "priority" => match value.as_u64() {
                Some(value) => priority = Some(value),
                None => return refuse(name, "must be a whole number; 1 is served first, 0 is the default"),
            },
            "sequence_id" | "sequence_start" | "sequence_end" if !is_unset(value) => {
                return refuse(name, "sequences are not served: send what belongs together in one request");
            }
            "headers" => return refuse(name, "the name is reserved; request headers are not passed to models"),
            name if name.starts_with("triton_") => {
                return refuse(name, "names that begin with triton_ are reserved, and none is served");
            }
            name if name.starts_with("shared_memory_") => {
                return refuse(name, "shared memory is not served; send the data in the body");
            }
            _ => {}
        }
    }
    // As Triton has it: a level that the model does not have is the default one.
    let priority = priority.filter(|priority| waiting.levels.is_none_or(|levels| *priority <= u64::from(levels.count)));
    let options = RunOptions::until(arrival + settings.request_timeout).with_priority(priority);
    if waiting.policy(waiting.level(options.priority)).is_some() {
        return Ok(RunOptions { queue_timeout: timeout, ..options });
    }
    let deadline = arrival + timeout.unwrap_or(settings.request_timeout).min(settings.request_timeout);
    Ok(RunOptions { deadline, ..options })
}

/// Whether a sequence parameter says that there is no sequence.
fn is_unset(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(value) => !value,
        Json::Number(number) => number.as_u64() == Some(0),
        Json::String(text) => text.is_empty(),
        Json::Array(_) | Json::Object(_) => false,
    }
}

fn encode(model: &LoadedModel, request: &V2Request, outputs: &[(String, Value)]) -> Result<V2Body, V2Error> {
    let version = model.version.to_string();
    Ok(encode_v2_response(&V2Answer {
        model_name: model.name.as_str(),
        model_version: &version,
        request,
        outputs,
        labels: &model.output_labels,
        batched: model.max_batch_size > 0,
    })?)
}

/// Whether an output's bytes are sent without being looked at.
fn is_sent_as_it_is(request: &V2Request, name: &str, value: &Value) -> bool {
    let is_number = value.as_tensor().is_some_and(|tensor| tensor.dtype() != DType::String);
    let is_classified = request.outputs.iter().any(|output| output.name == name && output.classification.is_some());
    is_number && !is_classified && request.is_binary(name)
}

/// Bytes of a value's elements.
fn byte_size(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => match tensor.data() {
            Data::Bytes(bytes) => bytes.len(),
            Data::Strings(strings) => strings.iter().map(String::len).sum(),
        },
        Value::Sequence(values) => values.iter().map(byte_size).sum(),
        Value::Map { keys, values } => byte_size(&keys.clone().into()) + values.bytes().len(),
        Value::None => 0,
    }
}

fn answer(body: V2Body) -> Response {
    let V2Body { json, frames } = body;
    let json_length = (!frames.is_empty()).then_some(json.len());
    let mut response = Response::new(Body::new(Frames::new(std::iter::once(Bytes::from(json)).chain(frames))));
    let headers = response.headers_mut();
    let media_type = if json_length.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(length) = json_length {
        headers.insert(JSON_LENGTH, HeaderValue::from(length));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Levels, WaitingPolicy};
    use http_body::Body as _;
    use serde_json::json;

    #[track_caller]
    fn check_length(values: &[&str], expected: Result<Option<usize>, &str>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(JSON_LENGTH, HeaderValue::from_str(value).unwrap());
        }
        match (json_length(&headers, 1000), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{values:?}"),
            (Err(error), Err(words)) => {
                assert_eq!(error.0.status(), 400);
                assert!(error.0.detail().contains(words), "{}", error.0.detail());
            }
            (got, expected) => panic!("{values:?}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_length_of_the_json_part_is_a_number_within_the_body() {
        check_length(&[], Ok(None));
        check_length(&["0"], Ok(Some(0)));
        check_length(&["1000"], Ok(Some(1000)));
        for bad in ["", "-1", "+1", "x", "1.5", "0x10", "1 1"] {
            check_length(&[bad], Err("whole number"));
        }
        for large in ["1001", "99999999999", "99999999999999999999999"] {
            check_length(&[large], Err("between 0 and the size of the body"));
        }
        check_length(&["1", "1"], Err("twice"));
    }

    #[track_caller]
    fn check_parameters(parameters: Json, expected: Result<Duration, &str>) {
        let settings = HttpSettings { request_timeout: Duration::from_secs(10), ..HttpSettings::default() };
        let Json::Object(parameters) = parameters else { panic!("not an object") };
        let now = Instant::now();
        match (options_of(&parameters, now, &settings, &WaitingSettings::default()), expected) {
            (Ok(options), Ok(expected)) => assert_eq!(options.deadline - now, expected, "{parameters:?}"),
            (Err(error), Err(words)) => {
                assert_eq!(error.0.status(), 400);
                assert!(error.0.detail().contains(words), "{}", error.0.detail());
            }
            (got, expected) => panic!("{parameters:?}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_timeout_is_in_microseconds_and_never_above_the_servers() {
        let default = Ok(Duration::from_secs(10));
        check_parameters(json!({}), default);
        check_parameters(json!({"timeout": 0}), default);
        check_parameters(json!({"timeout": 1500}), Ok(Duration::from_micros(1500)));
        check_parameters(json!({"timeout": u64::MAX}), default);
        for bad in [json!(-1), json!(1.5), json!("1"), json!(null)] {
            check_parameters(
                json!({"timeout": bad}),
                Err("parameters.timeout: must be a whole number of microseconds"),
            );
        }
    }

    #[test]
    fn a_stated_policy_makes_the_timeout_one_of_the_queue_and_levels_are_the_models() {
        let levels = Some(Levels { count: 3, default: 2 });
        let policy = WaitingPolicy::default();
        let waiting = WaitingSettings { levels, policy: None, of_level: [(1, policy)].into() };
        let (settings, now) = (HttpSettings::default(), Instant::now());
        let options = |parameters: Json| {
            let Json::Object(parameters) = parameters else { panic!("not an object") };
            options_of(&parameters, now, &settings, &waiting).unwrap()
        };
        let urgent = options(json!({"priority": 1, "timeout": 5}));
        assert_eq!((urgent.priority, urgent.queue_timeout), (1, Some(Duration::from_micros(5))));
        assert_eq!(urgent.deadline, now + settings.request_timeout);
        let other = options(json!({"priority": 3, "timeout": 5}));
        assert_eq!((other.priority, other.queue_timeout), (3, None));
        assert_eq!(other.deadline, now + Duration::from_micros(5));
        assert_eq!(options(json!({"priority": 4})).priority, 0);
        assert_eq!(options(json!({})).priority, 0);
    }

    #[test]
    fn reserved_parameters_that_are_not_served_are_refused() {
        let default = Ok(Duration::from_secs(10));
        check_parameters(json!({"priority": 2, "binary_data_output": true, "mine": {"a": [1]}}), default);
        check_parameters(json!({"sequence_id": 0, "sequence_start": false, "sequence_end": false}), default);
        check_parameters(json!({"sequence_id": ""}), default);
        check_parameters(json!({"priority": "high"}), Err("parameters.priority"));
        for (name, value) in [("sequence_id", json!(7)), ("sequence_id", json!("a")), ("sequence_start", json!(true))] {
            check_parameters(json!({name: value}), Err("sequences are not served"));
        }
        for name in ["headers", "triton_enable_empty_final_response", "shared_memory_region"] {
            check_parameters(json!({name: 1}), Err(name));
        }
        check_parameters(json!({format!("triton_{}", "x".repeat(5000)): 1}), Err("parameters.triton_x"));
    }

    #[test]
    fn an_answer_says_where_its_json_ends_where_tensors_follow() {
        let frames = vec![Bytes::from_static(&[0; 8]), Bytes::new()];
        let binary = answer(V2Body { json: b"{}".to_vec(), frames });
        assert_eq!(binary.headers()[JSON_LENGTH], "2");
        assert_eq!(binary.headers()[header::CONTENT_TYPE], "application/octet-stream");
        assert_eq!(binary.body().size_hint().exact(), Some(10));
        let plain = answer(V2Body { json: b"{}".to_vec(), frames: Vec::new() });
        assert!(!plain.headers().contains_key(JSON_LENGTH));
        assert_eq!(plain.headers()[header::CONTENT_TYPE], "application/json");
    }
}

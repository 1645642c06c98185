//! `POST /v2/models/{name}/infer`: tensors in, tensors out, as JSON, as binary data behind JSON, or both mixed.

use super::error::V2Error;
use super::frames::Frames;
use crate::codec::json::{JsonLimits, V2Answer, V2Body, V2Request, encode_v2_response, parse_v2};
use crate::codec::wire::byte_size;
use crate::engine::{InferRequest, LoadedModel, RunOptions};
use crate::http::extract::ModelPath;
use crate::http::middleware::Visit;
use crate::http::outcome::with_outcome;
use crate::http::{HttpState, body};
use crate::protocol::{RequestBounds, options_of};
use crate::tensor::{DType, Value};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;

/// Bytes of the JSON part, on a request or answer with binary tensors behind it.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Reads the request for the model's inputs, runs it, and answers in the form that the request asks for.
pub(super) async fn infer(
    State(state): State<HttpState>,
    path: ModelPath,
    visit: Visit,
    request: Request,
) -> Result<Response, V2Error> {
    respond(&state, path, visit, request).await
}

/// The handler itself, for who has what it needs at hand.
pub(in crate::http) async fn respond(
    state: &HttpState,
    path: ModelPath,
    visit: Visit,
    request: Request,
) -> Result<Response, V2Error> {
    let json_length = json_length(request.headers(), state.settings.max_body_bytes);
    // The first binary tensor follows the JSON part, and is aligned there. The body is read before anything is refused:
    // a client that is still sending would find a closed connection instead of the reason.
    let align_at = json_length.as_ref().map_or(0, |length| length.unwrap_or(0));
    let body = body::read(request.into_body(), &state.settings, align_at).await?;
    let json_length = json_length?;
    let model = visit.tally.model(&state.engine, &path.name, path.version).await?;

    let limits = JsonLimits::from(&state.settings.limits);
    let parsed_for = model.clone();
    // Numbers behind the JSON are only sliced; strings are read one by one.
    let only_numbers = model.inputs.iter().all(|spec| spec.ty.dtype().is_some_and(|dtype| dtype != DType::String));
    let text_size = json_length.filter(|_| only_numbers).unwrap_or(body.len());
    let parse = move || parse_v2(&body, json_length, &parsed_for.inputs, &limits);
    let mut request = state.compute(text_size, parse).await??;
    let waiting = &model.settings.batch.waiting;
    let bounds = RequestBounds { arrival: visit.arrival.0, timeout: state.settings.request_timeout };
    let options = options_of(&request.parameters, bounds, waiting)?;
    let options = RunOptions { sender: visit.sender, ..options };
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
    use http_body::Body as _;

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

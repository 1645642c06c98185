//! The engine's answer to bytes, by `Accept`: JSON, or tensors as `.npy`, `.npz` or safetensors.

use crate::codec::json::{write_string, write_value};
use crate::codec::{CodecError, npy, safetensors};
use crate::engine::{LoadedModel, Prediction, Timing};
use crate::http::error::ApiError;
use crate::http::extract::negotiate;
use crate::tensor::{Data, Tensor, Value};
use axum::body::Body;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use std::fmt::Write as _;

/// What the answer is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Npy,
    Npz,
    Safetensors,
}

/// What the engine gave.
#[derive(Debug)]
pub(super) enum Answer {
    /// One for each item.
    Predictions(Vec<Prediction>),
    /// By name.
    Outputs(Vec<(String, Value)>),
}

const FORMATS: [(Format, &str); 4] = [
    (Format::Json, "application/json"),
    (Format::Npy, "application/x-npy"),
    (Format::Npz, "application/x-npz"),
    (Format::Safetensors, "application/vnd.safetensors"),
];

impl Format {
    /// # Errors
    /// 406 where `Accept` takes none of the formats.
    pub(super) fn negotiate(headers: &HeaderMap) -> Result<Format, ApiError> {
        let chosen =
            negotiate(headers, &FORMATS.map(|(_, media_type)| media_type)).and_then(|index| FORMATS.get(index));
        chosen.map(|(format, _)| *format).ok_or_else(|| {
            not_acceptable("Accept takes none of application/json, application/x-npy, application/x-npz and application/vnd.safetensors")
        })
    }

    pub(super) fn is_binary(self) -> bool {
        self != Format::Json
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Npy => "application/x-npy",
            Format::Npz => "application/x-npz",
            Format::Safetensors => "application/vnd.safetensors",
        }
    }

    /// Finds before the run what could not be answered after it.
    ///
    /// # Errors
    /// 406 for a `.npy` of more than one output.
    pub(super) fn check(self, model: &LoadedModel, outputs: &[String]) -> Result<(), ApiError> {
        let wanted = if outputs.is_empty() { model.outputs.len() } else { outputs.len() };
        if self != Format::Npy || wanted == 1 {
            return Ok(());
        }
        let names: Vec<&str> = model.outputs.iter().take(16).map(|spec| spec.name.as_str()).collect();
        Err(not_acceptable(format!(
            "a .npy holds one tensor; name one with ?output= (outputs: {}), or accept application/x-npz",
            names.join(", ")
        )))
    }
}

fn not_acceptable(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail)
}

impl Answer {
    /// Roughly the bytes that the answer is made of.
    pub(super) fn size(&self) -> usize {
        match self {
            Answer::Predictions(predictions) => predictions.iter().map(Prediction::bytes).sum(),
            Answer::Outputs(outputs) => outputs.iter().map(|(_, value)| value_size(value)).sum(),
        }
    }
}

/// Roughly the bytes that a value is made of.
pub(in crate::http) fn value_size(value: &Value) -> usize {
    let tensor_size = |tensor: &Tensor| match tensor.data() {
        Data::Bytes(bytes) => bytes.len(),
        Data::Strings(strings) => strings.iter().map(|text| text.len() + 8).sum(),
    };
    match value {
        Value::Tensor(tensor) => tensor_size(tensor),
        Value::Sequence(items) => items.iter().map(value_size).sum(),
        Value::Map { keys, values } => tensor_size(keys) + tensor_size(values),
        Value::None => 0,
    }
}

/// The answer's body. Computing: large answers are written off the async threads.
///
/// # Errors
/// 406 where an output cannot be written in the format that was asked for.
pub(super) fn encode(
    model: &LoadedModel,
    format: Format,
    id: Option<&str>,
    answer: &Answer,
) -> Result<Vec<u8>, ApiError> {
    match (format, answer) {
        (Format::Json, _) => Ok(encode_json(model, id, answer)),
        (_, Answer::Predictions(_)) => Err(ApiError::internal("predictions were to be written as tensors")),
        (_, Answer::Outputs(outputs)) => encode_tensors(format, outputs).map_err(|error| match error {
            CodecError::UnsupportedMedia(detail) | CodecError::TooLarge(detail) => not_acceptable(detail),
            CodecError::Malformed(_) | CodecError::Unprocessable { .. } => ApiError::internal(error.to_string()),
        }),
    }
}

fn encode_tensors(format: Format, outputs: &[(String, Value)]) -> Result<Vec<u8>, CodecError> {
    let mut tensors = Vec::with_capacity(outputs.len());
    for (name, value) in outputs {
        let Some(tensor) = value.as_tensor() else {
            let text =
                format!("output '{name}' is no tensor; accept application/json, or name other outputs with ?output=");
            return Err(CodecError::UnsupportedMedia(text));
        };
        tensors.push((name.as_str(), tensor));
    }
    match (format, tensors.as_slice()) {
        (Format::Npy, [(name, tensor)]) => npy::write(&format!("outputs.{name}"), tensor),
        (Format::Npy | Format::Json, _) => {
            Err(CodecError::UnsupportedMedia("a .npy holds one tensor; name one with ?output=".into()))
        }
        (Format::Npz, _) => npy::write_archive(tensors),
        (Format::Safetensors, _) => safetensors::write(tensors),
    }
}

fn encode_json(model: &LoadedModel, id: Option<&str>, answer: &Answer) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + answer.size() * 3);
    out.extend_from_slice(b"{\"model\":");
    write_string(model.name.as_str(), &mut out);
    out.extend_from_slice(b",\"version\":");
    write_string(&model.version.to_string(), &mut out);
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write_string(id, &mut out);
    }
    match answer {
        Answer::Predictions(predictions) => {
            out.extend_from_slice(b",\"predictions\":");
            // Numbers that are not finite are text, and writing to memory cannot fail.
            let _ = serde_json::to_writer(&mut out, predictions);
        }
        Answer::Outputs(outputs) => {
            out.extend_from_slice(b",\"outputs\":{");
            for (index, (name, value)) in outputs.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(name, &mut out);
                out.push(b':');
                write_value(value, &mut out);
            }
            out.push(b'}');
        }
    }
    out.push(b'}');
    out
}

/// The whole response.
pub(super) fn response(format: Format, bytes: Vec<u8>, timing: &Timing) -> Response {
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(server_timing(timing))) {
        headers.insert(HeaderName::from_static("server-timing"), value);
    }
    response
}

fn server_timing(timing: &Timing) -> String {
    let Timing { queue, preprocess, inference, postprocess } = timing;
    let mut text = String::with_capacity(100);
    for (name, stage) in
        [("queue", queue), (", preprocess", preprocess), (", inference", inference), (", postprocess", postprocess)]
    {
        // 64 bits of microseconds are half a million years, and quicker to write than 128.
        let micros = u64::try_from(stage.as_micros()).unwrap_or(u64::MAX);
        text.push_str(name);
        text.push_str(";dur=");
        // Writing to a string cannot fail.
        let _ = match micros {
            0 => text.write_str("0.000"),
            _ => write!(text, "{}.{:03}", micros / 1000, micros % 1000),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_timing_is_in_milliseconds() {
        let timing = Timing {
            queue: Duration::from_micros(1),
            preprocess: Duration::from_millis(2),
            inference: Duration::from_secs(1),
            postprocess: Duration::ZERO,
        };
        assert_eq!(
            server_timing(&timing),
            "queue;dur=0.001, preprocess;dur=2.000, inference;dur=1000.000, postprocess;dur=0.000"
        );
    }

    #[test]
    fn accept_chooses_the_format() {
        for (accept, expected) in [
            ("*/*", Some(Format::Json)),
            ("application/x-npz", Some(Format::Npz)),
            ("application/vnd.safetensors, application/json;q=0.9", Some(Format::Safetensors)),
            ("text/csv", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Format::negotiate(&headers).ok(), expected, "{accept}");
        }
    }
}

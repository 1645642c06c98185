//! The Open Inference Protocol's inference response: JSON, with binary tensors as frames behind it.
//!
//! Frames are the tensors' own bytes and are never copied; only `BYTES` tensors are serialised. Outputs that are no
//! tensors (sequence, map, nothing) are `BYTES` of shape `[1]` holding the JSON text of the value.

use super::v2::V2Request;
use super::write::{write_flat, write_string, write_value};
use crate::http::codec::CodecError;
use crate::http::codec::classification::classification;
use crate::tensor::{Data, Tensor, Value};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an answer is made of.
#[derive(Debug, Clone, Copy)]
pub struct V2Answer<'a> {
    pub model_name: &'a str,
    pub model_version: &'a str,
    /// The request, for its `id` and how each output is wanted.
    pub request: &'a V2Request,
    /// In the order of the answer.
    pub outputs: &'a [(String, Value)],
    /// Class names by output, for the classification extension.
    pub labels: &'a BTreeMap<String, Arc<[String]>>,
    /// Whether dimension 0 of the outputs is the batch.
    pub batched: bool,
}

/// An encoded answer.
#[derive(Debug, Clone, PartialEq)]
pub struct V2Body {
    /// The JSON part; its length is the `Inference-Header-Content-Length` where there are frames.
    pub json: Vec<u8>,
    /// The binary outputs, in their order. Empty where the answer is JSON alone.
    pub frames: Vec<Bytes>,
}

/// Encodes an answer.
///
/// # Errors
/// Where a classification is asked of an output that has no numbers to sort.
pub fn encode_v2_response(answer: &V2Answer<'_>) -> Result<V2Body, CodecError> {
    let mut json = Vec::new();
    let mut frames = Vec::new();
    json.extend_from_slice(b"{\"model_name\":");
    write_string(answer.model_name, &mut json);
    json.extend_from_slice(b",\"model_version\":");
    write_string(answer.model_version, &mut json);
    if let Some(id) = &answer.request.id {
        json.extend_from_slice(b",\"id\":");
        write_string(id, &mut json);
    }
    json.extend_from_slice(b",\"outputs\":[");
    for (index, (name, value)) in answer.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let tensor = answered(answer, name, value)?;
        json.extend_from_slice(b"{\"name\":");
        write_string(name, &mut json);
        json.extend_from_slice(b",\"datatype\":\"");
        json.extend_from_slice(tensor.dtype().name().as_bytes());
        json.extend_from_slice(b"\",\"shape\":[");
        let shape: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
        json.extend_from_slice(shape.join(",").as_bytes());
        json.push(b']');
        if answer.request.is_binary(name) {
            let frame = binary(name, &tensor)?;
            json.extend_from_slice(format!(",\"parameters\":{{\"binary_data_size\":{}}}}}", frame.len()).as_bytes());
            frames.push(frame);
        } else {
            json.extend_from_slice(b",\"data\":");
            write_flat(&tensor, &mut json);
            json.push(b'}');
        }
    }
    json.extend_from_slice(b"]}");
    Ok(V2Body { json, frames })
}

/// The tensor that is sent for `value`.
fn answered(answer: &V2Answer<'_>, name: &str, value: &Value) -> Result<Tensor, CodecError> {
    let classes = answer.request.output(name).and_then(|output| output.classification);
    let field = format!("outputs.{name}");
    match (value, classes) {
        (Value::Tensor(tensor), Some(classes)) => {
            let labels = answer.labels.get(name).map(|labels| &**labels).unwrap_or_default();
            classification(&field, tensor, classes, labels, answer.batched)
        }
        (Value::Tensor(tensor), None) => Ok(tensor.clone()),
        (Value::Sequence(_) | Value::Map { .. } | Value::None, Some(_)) => {
            Err(CodecError::unprocessable(field, "only a tensor can be answered as a classification"))
        }
        (Value::Sequence(_) | Value::Map { .. } | Value::None, None) => {
            let mut text = Vec::new();
            write_value(value, &mut text);
            let text = String::from_utf8(text).unwrap_or_default();
            Tensor::from_strings(vec![1], vec![text]).map_err(|error| CodecError::tensor(&field, &error))
        }
    }
}

/// The binary form of a tensor.
fn binary(name: &str, tensor: &Tensor) -> Result<Bytes, CodecError> {
    let strings = match tensor.data() {
        Data::Bytes(bytes) => return Ok(bytes.clone()),
        Data::Strings(strings) => strings,
    };
    let mut bytes = Vec::with_capacity(strings.iter().map(|text| 4 + text.len()).sum());
    for text in strings.iter() {
        let Ok(length) = u32::try_from(text.len()) else {
            return Err(CodecError::TooLarge(format!("outputs.{name}: a string is longer than 4 GiB")));
        };
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    Ok(bytes.into())
}

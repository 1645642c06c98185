//! The Open Inference Protocol's inference response: JSON, with binary tensors as frames behind it.
//!
//! Frames are the tensors' own bytes and are never copied; only `BYTES` tensors are serialised. Outputs that are no
//! tensors (sequence, map, nothing) are `BYTES` of shape `[1]` holding the JSON text of the value.

use super::v2::V2Request;
use super::write::{write_flat, write_string};
use crate::codec::CodecError;
use crate::codec::wire::{Answered, write_binary};
use crate::tensor::Value;
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
        let answered = Answered {
            name,
            classes: answer.request.output(name).and_then(|output| output.classification),
            labels: answer.labels.get(name).map(|labels| &**labels).unwrap_or_default(),
            batched: answer.batched,
        };
        let tensor = answered.tensor(value)?;
        json.extend_from_slice(b"{\"name\":");
        write_string(name, &mut json);
        json.extend_from_slice(b",\"datatype\":\"");
        json.extend_from_slice(tensor.dtype().name().as_bytes());
        json.extend_from_slice(b"\",\"shape\":[");
        let shape: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
        json.extend_from_slice(shape.join(",").as_bytes());
        json.push(b']');
        if answer.request.is_binary(name) {
            let frame = write_binary(name, &tensor)?;
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

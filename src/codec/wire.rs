//! Tensors as the Open Inference Protocol sends them, whatever carries them: the binary form, what stands for values that are
//! no tensors, and what is answered for an output.
//!
//! A value that is no tensor (sequence, map, optional) is `BYTES` of shape `[1]` holding its JSON text, an extension of the
//! protocol. No length is trusted before it is compared with the bytes that are there.

use super::classification::classification;
use super::json::{JsonLimits, parse_value, write_value};
use super::{CodecError, clip, list};
use crate::tensor::{DType, Data, Spec, Tensor, Value, ValueType, byte_len};
use bytes::Bytes;

/// The input called `name`.
///
/// # Errors
/// Where there is none: the text lists those there are.
pub fn find_input<'a>(inputs: &'a [Spec], name: &str) -> Result<&'a Spec, CodecError> {
    inputs.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names = list(inputs.iter().map(|spec| spec.name.as_str()));
        CodecError::unprocessable(
            format!("inputs.{}", clip(name)),
            format!("the model has no such input; its inputs are {names}"),
        )
    })
}

/// A tensor from its binary form: little-endian and row-major; of `BYTES`, a length of four bytes before each element.
///
/// # Errors
/// Where the bytes are not those of `count` elements.
pub fn read_binary(
    field: &str,
    dtype: DType,
    shape: Vec<usize>,
    count: usize,
    bytes: Bytes,
) -> Result<Tensor, CodecError> {
    if dtype != DType::String {
        if let Some(expected) = byte_len(dtype, count)
            && expected != bytes.len()
        {
            return Err(CodecError::unprocessable(
                field,
                format!("shape {shape:?} of {dtype} needs {expected} bytes of data, got {}", bytes.len()),
            ));
        }
        return Tensor::from_bytes(dtype, shape, bytes).map_err(|error| CodecError::tensor(field, &error));
    }
    // Each element has a prefix of 4 bytes, so the bytes bound the number of elements.
    let mut strings = Vec::with_capacity(count.min(bytes.len() / 4));
    let mut rest: &[u8] = &bytes;
    while let Some((prefix, tail)) = rest.split_first_chunk::<4>() {
        if strings.len() == count {
            break;
        }
        let length = u32::from_le_bytes(*prefix);
        let element = usize::try_from(length).ok().and_then(|length| tail.split_at_checked(length));
        let Some((element, tail)) = element else {
            let index = strings.len();
            return Err(CodecError::unprocessable(
                field,
                format!("element {index} is said to have {length} bytes, but {} are left", tail.len()),
            ));
        };
        strings.push(text_of(field, strings.len(), element)?);
        rest = tail;
    }
    if strings.len() != count || !rest.is_empty() {
        return Err(CodecError::unprocessable(
            field,
            format!(
                "shape {shape:?} needs {count} BYTES elements; {} were read and {} bytes are left",
                strings.len(),
                rest.len()
            ),
        ));
    }
    Tensor::from_strings(shape, strings).map_err(|error| CodecError::tensor(field, &error))
}

/// One element of a `BYTES` tensor.
///
/// # Errors
/// Where it is not UTF-8.
pub fn text_of(field: &str, index: usize, bytes: &[u8]) -> Result<String, CodecError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(CodecError::unprocessable(
            field,
            format!("element {index} is not UTF-8 text from byte {} on; ONNX strings are UTF-8", error.valid_up_to()),
        )),
    }
}

/// The binary form of a tensor: its own bytes, not copied, or its strings with their lengths.
///
/// # Errors
/// Where a string is longer than its length can say.
pub fn write_binary(name: &str, tensor: &Tensor) -> Result<Bytes, CodecError> {
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

/// The value that a tensor stands for where it comes for `spec`: itself, or the value whose JSON text it holds.
///
/// # Errors
/// Where a value that is no tensor comes in another form, or its text is not one of it.
pub fn value_of(field: &str, spec: &Spec, tensor: Tensor, limits: &JsonLimits) -> Result<Value, CodecError> {
    match &spec.ty {
        ValueType::Tensor { .. } => return Ok(tensor.into()),
        ValueType::Optional(inner) if tensor.dtype() != DType::String && inner.dtype().is_some() => {
            return Ok(tensor.into());
        }
        ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_) => {}
    }
    let [text] = tensor.strings() else {
        return Err(CodecError::unprocessable(
            field,
            format!("a {} is given as BYTES of shape [1] holding the JSON text of the value", spec.ty),
        ));
    };
    parse_value(text.as_bytes(), spec, limits)
}

/// How one output is answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    pub name: &'a str,
    /// The number of best classes to answer instead of the tensor.
    pub classes: Option<usize>,
    /// Class names, where the model has some for the output.
    pub labels: &'a [String],
    /// Whether dimension 0 is the batch.
    pub batched: bool,
}

impl Answered<'_> {
    /// The tensor that is sent for `value`.
    ///
    /// # Errors
    /// Where classes are asked of what has no numbers to sort.
    pub fn tensor(&self, value: &Value) -> Result<Tensor, CodecError> {
        let field = format!("outputs.{}", self.name);
        match (value, self.classes) {
            (Value::Tensor(tensor), Some(classes)) => {
                classification(&field, tensor, classes, self.labels, self.batched)
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
}

/// Bytes of a value's elements, for who decides where to encode it.
pub fn byte_size(value: &Value) -> usize {
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

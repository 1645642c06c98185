//! The body formats of the doors: bytes to domain values and back, as pure functions.
//!
//! `json` is the native body and the Open Inference Protocol's, `wire` what that protocol sends in any form, `npy` and
//! `safetensors` are what their names say. Every function is bounded by limits that the caller passes, and nothing here panics on what a client sends or
//! allocates by a number that it merely claims. Knows no route, no status code and no model beyond its declared inputs.

pub mod classification;
pub mod json;
pub mod npy;
pub mod safetensors;
mod smallfloat;
pub mod wire;

use crate::tensor::{Tensor, TensorError};

/// Why a body is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The body is not what its format asks for.
    #[error("{0}")]
    Malformed(String),
    /// The body is well-formed, but a value in it is not one that its field can hold.
    #[error("{field}: {problem}")]
    Unprocessable { field: String, problem: String },
    /// A limit is exceeded.
    #[error("{0}")]
    TooLarge(String),
    /// The format cannot be read, or cannot carry the answer.
    #[error("{0}")]
    UnsupportedMedia(String),
}

impl CodecError {
    pub fn unprocessable(field: impl Into<String>, problem: impl Into<String>) -> CodecError {
        CodecError::Unprocessable { field: field.into(), problem: problem.into() }
    }

    pub fn tensor(field: &str, error: &TensorError) -> CodecError {
        CodecError::unprocessable(field, error.to_string())
    }
}

/// Numbers that take the memory of one string: its header, and the least that an allocation costs.
const STRING_WEIGHT: usize = 16;

/// Largest rank read from a client. ONNX Runtime itself sets none; no graph comes near.
const MAX_RANK: usize = 64;

/// Checks a foreign shape and gives its number of elements.
///
/// Zero dimensions do not hide the others: `[2^62, 0]` holds nothing, but its nested form would be 2^62 empty arrays.
pub fn checked_count(field: &str, shape: &[usize], strings: bool, max_elements: usize) -> Result<usize, CodecError> {
    if shape.len() > MAX_RANK {
        return Err(CodecError::unprocessable(
            field,
            format!("the shape has {} dimensions; at most {MAX_RANK} are read", shape.len()),
        ));
    }
    let limit = if strings { max_elements / STRING_WEIGHT } else { max_elements };
    let product = shape.iter().filter(|&&dim| dim != 0).try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match product {
        Some(product) if product <= limit => Ok(if shape.contains(&0) { 0 } else { product }),
        _ => Err(too_many_elements(field, strings, max_elements)),
    }
}

fn too_many_elements(field: &str, strings: bool, max_elements: usize) -> CodecError {
    CodecError::TooLarge(if strings {
        format!(
            "{field}: more than {} strings (max_tensor_elements = {max_elements}; a string counts as {STRING_WEIGHT} elements)",
            max_elements / STRING_WEIGHT
        )
    } else {
        format!("{field}: more than max_tensor_elements = {max_elements} elements")
    })
}

/// `tensor` under the shape that the client stated beside the data: the data may be flat, or nested as the shape says.
fn with_shape(field: &str, tensor: Tensor, shape: Vec<usize>, count: usize) -> Result<Tensor, CodecError> {
    if tensor.shape() == shape {
        return Ok(tensor);
    }
    if tensor.len() != count {
        return Err(CodecError::unprocessable(
            field,
            format!("shape {shape:?} needs {count} elements, got {}", tensor.len()),
        ));
    }
    // Empty data has lost its inner dimensions: `[]` and `[[], []]` are both flat enough.
    if tensor.shape().len() > 1 && !tensor.is_empty() {
        return Err(CodecError::unprocessable(
            field,
            format!("the data is nested as {:?}, the shape is {shape:?}; nest it so, or give it flat", tensor.shape()),
        ));
    }
    tensor.reshape(shape).map_err(|error| CodecError::tensor(field, &error))
}

/// A foreign name in an error text: whole where it is short.
pub fn clip(name: &str) -> String {
    const LONGEST: usize = 64;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    name.chars().take(LONGEST).chain("…".chars()).collect()
}

/// Names for an error text: the first few, and how many more there are.
fn list<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 16;
    let more = names.len().saturating_sub(SHOWN);
    let mut text = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shape: &[usize], strings: bool, expected: Result<usize, &str>) {
        let got = checked_count("x", shape, strings, 1000).map_err(|error| error.to_string());
        assert_eq!(got, expected.map_err(str::to_owned), "{shape:?}");
    }

    #[test]
    fn foreign_shapes_are_counted_without_overflow() {
        let many = Err("x: more than max_tensor_elements = 1000 elements");
        check(&[], false, Ok(1));
        check(&[10, 100], false, Ok(1000));
        check(&[10, 101], false, many);
        check(&[3, 0], false, Ok(0));
        check(&[1 << 62, 0], false, many);
        check(&[1 << 40, 1 << 40], false, many);
        check(&[4, (1 << 60) + 2], false, many);
        check(&[usize::MAX, usize::MAX, 0], false, many);
        check(&[1; 64], false, Ok(1));
        check(&[1; 65], false, Err("x: the shape has 65 dimensions; at most 64 are read"));
        check(&[62], true, Ok(62));
        check(&[63], true, Err("x: more than 62 strings (max_tensor_elements = 1000; a string counts as 16 elements)"));
    }

    #[test]
    fn long_foreign_names_are_clipped_in_texts() {
        assert_eq!(clip("short"), "short");
        assert_eq!(clip(&"é".repeat(1000)).chars().count(), 65);
        let names: Vec<String> = (0..20).map(|index| index.to_string()).collect();
        assert!(list(names.iter().map(String::as_str)).ends_with("15 and 4 more"));
    }
}

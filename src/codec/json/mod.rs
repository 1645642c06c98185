//! JSON bodies: the native `/v1` body and the Open Inference Protocol's, with numbers read straight into typed buffers.
//!
//! Tensor data never becomes a tree of JSON values: the parser calls a visitor that knows the element type, its range and
//! the nesting so far. Texts of errors name the input and the index path. Depth is counted in every value that is looked
//! into and in every value that is skipped; keys may come in any order, and a doubled key is an error.

mod document;
mod element;
mod instances;
mod predict;
mod tensor;
mod v2;
mod v2_response;
mod write;

pub use instances::{Instances, parse_instances};
pub use predict::{PredictBody, PredictInput, Target, parse_object, parse_predict, parse_value};
pub use v2::{V2Input, V2Output, V2Request, parse_v2, raw_v2};
pub use v2_response::{V2Answer, V2Body, encode_v2_response};
pub use write::{write_flat, write_nested, write_string, write_value};

use super::CodecError;
use serde::de;
use std::cell::RefCell;

/// Bounds on one JSON body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JsonLimits {
    /// Arrays and objects within each other.
    pub max_depth: usize,
    /// Elements of one tensor; a string counts as 16.
    pub max_elements: usize,
    /// Items of one request to a task.
    pub max_items: usize,
}

/// Bytes of an `id`.
const MAX_ID_BYTES: usize = 1024;

/// What all visitors of one body share: its limits, and the error that one of them found. The parser's own error type
/// carries only text, so the real one is kept here and the parser is stopped with a placeholder.
struct Context<'a> {
    limits: &'a JsonLimits,
    failure: RefCell<Option<CodecError>>,
}

impl<'a> Context<'a> {
    fn new(limits: &'a JsonLimits) -> Context<'a> {
        Context { limits, failure: RefCell::new(None) }
    }

    /// Keeps `error` unless there is one already, and gives what stops the parser.
    #[cold]
    fn fail<E: de::Error>(&self, error: CodecError) -> E {
        self.failure.borrow_mut().get_or_insert(error);
        E::custom("refused")
    }

    fn malformed<E: de::Error>(&self, text: impl Into<String>) -> E {
        self.fail(CodecError::Malformed(text.into()))
    }

    fn unprocessable<E: de::Error>(&self, field: &str, problem: impl Into<String>) -> E {
        self.fail(CodecError::unprocessable(field, problem))
    }

    /// Checks that an array or object may open at `depth`, the outermost being 1.
    fn enter<E: de::Error>(&self, depth: usize) -> Result<(), E> {
        let limit = self.limits.max_depth;
        if depth <= limit {
            return Ok(());
        }
        Err(self.malformed(format!("the JSON is nested deeper than max_json_depth = {limit}")))
    }

    /// The error that a visitor found, or else the parser's own.
    fn into_error(self, error: &serde_json::Error) -> CodecError {
        self.failure.into_inner().unwrap_or_else(|| {
            CodecError::Malformed(match error.is_data() {
                true => error.to_string(),
                false => format!("the body is not valid JSON: {error}"),
            })
        })
    }

    /// The same for a value whose syntax was checked before, where the parser's position would mislead.
    fn nested_error<E: de::Error>(&self, field: &str, error: &serde_json::Error) -> E {
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        self.malformed(format!("{field}: {text}"))
    }
}

/// Reads all of `json` with `seed`.
fn parse_all<'de, S: de::DeserializeSeed<'de>>(json: &'de [u8], seed: S) -> Result<S::Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

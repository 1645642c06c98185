//! What goes into a pipeline and what comes out, in the terms of the task.

use bytes::Bytes;

/// One item of a request.
#[derive(Debug, Clone)]
pub enum Item {
    /// An encoded picture or sound as it came: JPEG, PNG, WAV, …
    Bytes(Bytes),
    Text(String),
}

/// The request's `parameters`, checked by the pipeline.
pub type Parameters = serde_json::Map<String, serde_json::Value>;

/// The answer for one item.
#[derive(Debug, Clone, PartialEq)]
pub enum Prediction {
    /// Best first.
    Classes(Vec<ClassScore>),
    /// One vector for the whole item.
    Embedding(Vec<f32>),
    /// A vector of `width` numbers, at least one, for each token: `values` has them token by token.
    TokenEmbeddings { width: usize, values: Vec<f32> },
}

/// A class and how sure the model is of it, 0 to 1 (or the raw output, where the task has no function to apply).
#[derive(Debug, Clone, PartialEq)]
pub struct ClassScore {
    pub label: String,
    pub score: f32,
}

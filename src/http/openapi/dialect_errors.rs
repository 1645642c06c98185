//! What the errors of other servers' routes look like, for the document: `http/error.rs` writes them.

use serde::Serialize;
use utoipa::ToSchema;

/// Body of an error answer, after OpenAI's API.
#[derive(Serialize, ToSchema)]
pub(super) struct OpenAiError {
    error: OpenAiProblem,
}

#[derive(Serialize, ToSchema)]
pub(super) struct OpenAiProblem {
    #[schema(example = "there is no model 'minilm'")]
    message: String,
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    kind: String,
    /// The wrong field of the request.
    param: Option<String>,
    #[schema(example = "model_not_found")]
    code: String,
}

/// Body of an error answer, after Text Embeddings Inference.
#[derive(Serialize, ToSchema)]
pub(super) struct TeiError {
    #[schema(example = "there is no model 'minilm'")]
    error: String,
    /// `Validation`, `Overloaded` or `Backend`.
    #[schema(example = "Validation")]
    error_type: String,
}

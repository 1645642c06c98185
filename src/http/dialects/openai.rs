//! `POST /v1/embeddings` as OpenAI's clients call it.

use super::{EMBEDS, Texts, TextsBody, answered, named, predict, read_json, vectors};
use crate::engine::Parameters;
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::middleware::Visit;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is to be embedded, and by which model.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct EmbeddingsRequest {
    #[schema(value_type = TextsBody)]
    input: Texts,
    /// A model's name whose task is feature-extraction.
    #[schema(example = "all-MiniLM-L6-v2")]
    model: String,
    #[serde(default)]
    encoding_format: Encoding,
    /// Numbers that are kept of each vector, which is made of length 1 again.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    /// The numbers as 32-bit floats, little end first.
    Base64,
}

/// The vectors, in the order of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EmbeddingsAnswer {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<DataBody>,
    model: String,
    usage: UsageBody,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DataBody {
    #[schema(example = "embedding")]
    object: &'static str,
    index: usize,
    embedding: EmbeddingBody,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum EmbeddingBody {
    Numbers(Vec<f32>),
    Base64(String),
}

/// Tokens, special ones counted.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UsageBody {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// Embeds texts.
#[utoipa::path(post, path = "/v1/embeddings", tag = "predict", operation_id = "createEmbeddings",
    description = "As OpenAI's API has it. Vectors have length 1. Errors are `{\"error\": {message, type, param, code}}`.",
    request_body = EmbeddingsRequest,
    responses((status = 200, description = "The vectors.", body = EmbeddingsAnswer)))]
pub(in crate::http) async fn embeddings(
    State(state): State<HttpState>,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let EmbeddingsRequest { input, model, encoding_format, dimensions } =
        read_json(&state, &head.headers, body).await?;
    let items = input.into_items("input", state.settings.limits.max_items)?;
    let model = named(&state, &visit.tally, &model, EMBEDS).await?;
    let parameters = Parameters::from_iter([("normalize".to_owned(), true.into())]);
    let response = predict(&state, &model, &visit, items, parameters).await?;
    let (vectors, tokens) = (vectors(response.predictions, dimensions)?, response.tokens);
    let numbers = vectors.iter().map(Vec::len).sum();
    let data = move |(index, values): (usize, Vec<f32>)| DataBody {
        object: "embedding",
        index,
        embedding: match encoding_format {
            Encoding::Float => EmbeddingBody::Numbers(values),
            Encoding::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                EmbeddingBody::Base64(STANDARD.encode(bytes))
            }
        },
    };
    answered(&state, numbers, move || EmbeddingsAnswer {
        object: "list",
        data: vectors.into_iter().enumerate().map(data).collect(),
        model: model.name.to_string(),
        usage: UsageBody { prompt_tokens: tokens, total_tokens: tokens },
    })
    .await
}

//! `/embed`, `/embed_all` and `/rerank` as Text Embeddings Inference has them.
//!
//! That server has one model; here it is the only one of the task that is ready, or the one that `?model=` names.

use super::{
    EMBEDS, ModelQuery, RANKS, Texts, TextsBody, answered, check_count, named, only, predict, read_json, vectors,
};
use crate::engine::{Item, LoadedModel, Parameters, Prediction, TokenEmbeddings};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::extract::ApiQuery;
use crate::http::middleware::Visit;
use crate::protocol::Tally;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// What is to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct EmbedRequest {
    #[schema(value_type = TextsBody)]
    inputs: Texts,
    /// Whether texts that are too long are cut; else they are refused.
    #[serde(default)]
    truncate: bool,
    /// Whether vectors have length 1; `true` where absent. `/embed_all` does not look at it.
    normalize: Option<bool>,
    /// Name of a prompt that the model knows.
    prompt_name: Option<String>,
    /// Numbers that are kept of each vector.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
}

impl EmbedRequest {
    fn parameters(&self) -> Parameters {
        let mut parameters = Parameters::new();
        parameters.insert("truncate".to_owned(), self.truncate.into());
        if let Some(name) = &self.prompt_name {
            parameters.insert("prompt_name".to_owned(), name.as_str().into());
        }
        parameters
    }
}

/// Embeds texts.
#[utoipa::path(post, path = "/embed", tag = "predict", operation_id = "embed",
    description = "As Text Embeddings Inference has it. Errors are `{\"error\", \"error_type\"}`.",
    params(("model" = Option<String>, Query, description = "Needed where several models embed texts.")),
    request_body = EmbedRequest,
    responses((status = 200, description = "A vector for each text.", body = Vec<Vec<f32>>)))]
pub(in crate::http) async fn embed(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<ModelQuery>,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let asked: EmbedRequest = read_json(&state, &head.headers, body).await?;
    let mut parameters = asked.parameters();
    parameters.insert("normalize".to_owned(), asked.normalize.unwrap_or(true).into());
    let model = find(&state, &visit.tally, &query, EMBEDS).await?;
    let items = asked.inputs.into_items("inputs", state.settings.limits.max_items)?;
    let response = predict(&state, &model, &visit, items, parameters).await?;
    let vectors = vectors(response.predictions, asked.dimensions)?;
    answered(&state, vectors.iter().map(Vec::len).sum(), move || vectors).await
}

/// Embeds every token of texts.
#[utoipa::path(post, path = "/embed_all", tag = "predict", operation_id = "embedAll",
    description = "As Text Embeddings Inference has it; for models that do not say how tokens become one vector.",
    params(("model" = Option<String>, Query, description = "Needed where several models embed texts.")),
    request_body = EmbedRequest,
    responses((status = 200, description = "For each text a vector for each token.", body = Vec<Vec<Vec<f32>>>)))]
pub(in crate::http) async fn embed_all(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<ModelQuery>,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let asked: EmbedRequest = read_json(&state, &head.headers, body).await?;
    let parameters = asked.parameters();
    let model = find(&state, &visit.tally, &query, EMBEDS).await?;
    let items = asked.inputs.into_items("inputs", state.settings.limits.max_items)?;
    let response = predict(&state, &model, &visit, items, parameters).await?;
    let tokens = response.predictions.into_iter().map(|prediction| match prediction {
        Prediction::TokenEmbeddings(tokens) => Ok(tokens),
        _ => Err(ApiError::field("model", "the model gives one vector for each text; use /embed")),
    });
    let texts = tokens.collect::<Result<Vec<_>, ApiError>>()?;
    let rows = |text: TokenEmbeddings| -> Vec<Vec<f32>> {
        text.values.chunks_exact(text.width.max(1)).map(<[f32]>::to_vec).collect()
    };
    let numbers = texts.iter().map(|text| text.values.len()).sum();
    answered(&state, numbers, move || texts.into_iter().map(rows).collect::<Vec<_>>()).await
}

/// A query and the texts that may answer it.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct RerankRequest {
    #[schema(example = "who lives in berlin?")]
    query: String,
    texts: Vec<String>,
    /// Whether texts that are too long are cut; else they are refused.
    #[serde(default)]
    truncate: bool,
    /// The model's own numbers instead of 0 to 1.
    #[serde(default)]
    raw_scores: bool,
    #[serde(default)]
    return_text: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RankBody {
    /// Place in the request's `texts`.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    score: f32,
}

/// Ranks texts by how well they answer a query.
#[utoipa::path(post, path = "/rerank", tag = "predict", operation_id = "rerank",
    description = "As Text Embeddings Inference has it: for text classifiers with one label. Best first.",
    params(("model" = Option<String>, Query, description = "Needed where several models classify texts.")),
    request_body = RerankRequest,
    responses((status = 200, description = "The texts' ranks.", body = Vec<RankBody>)))]
pub(in crate::http) async fn rerank(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<ModelQuery>,
    visit: Visit,
    request: Request,
) -> Result<Json<Vec<RankBody>>, ApiError> {
    let (head, body) = request.into_parts();
    let asked: RerankRequest = read_json(&state, &head.headers, body).await?;
    let model = find(&state, &visit.tally, &query, RANKS).await?;
    if model.pipeline.as_ref().is_some_and(|pipeline| pipeline.labels().len() > 1) {
        return Err(ApiError::field("model", "a reranker has one label, this model has several; use /predict"));
    }
    check_count("texts", asked.texts.len(), state.settings.limits.max_items)?;
    let pair = |text: &String| Item::Pair { text: asked.query.clone(), text_pair: text.clone() };
    let items = asked.texts.iter().map(pair).collect();
    let function = if asked.raw_scores { "none" } else { "sigmoid" };
    let parameters = Parameters::from_iter([
        ("function_to_apply".to_owned(), function.into()),
        ("truncation".to_owned(), asked.truncate.into()),
    ]);
    let response = predict(&state, &model, &visit, items, parameters).await?;
    let mut ranks = Vec::with_capacity(asked.texts.len());
    for (index, (prediction, text)) in response.predictions.into_iter().zip(asked.texts).enumerate() {
        let score = match &prediction {
            Prediction::Classes(classes) => classes.first().map(|class| class.score),
            _ => None,
        };
        let score = score.ok_or_else(|| ApiError::internal("a reranker gave no score"))?;
        ranks.push(RankBody { index, text: asked.return_text.then_some(text), score });
    }
    // NaN last, equal scores in the order of the texts.
    ranks.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or_else(|| a.score.is_nan().cmp(&b.score.is_nan())));
    Ok(Json(ranks))
}

async fn find(
    state: &HttpState,
    tally: &Tally,
    query: &ModelQuery,
    task: &'static str,
) -> Result<Arc<LoadedModel>, ApiError> {
    match &query.model {
        Some(name) => named(state, tally, name, task).await,
        None => only(state, tally, task).await,
    }
}

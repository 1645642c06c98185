//! Routes that other servers' clients speak, on the same pipelines: `openai` (embeddings), `tei` (embeddings, reranking),
//! `torchserve` (predictions and management), `kserve` (its V1 protocol).
//!
//! They find the model, turn their own bodies into items and parameters of a task, and the predictions into their own
//! answers. Errors are written by `error::render`, which knows these paths.

pub(super) mod kserve;
pub(super) mod openai;
pub(super) mod tei;
pub(super) mod torchserve;

use super::error::ApiError;
use super::extract::{content_type, deadline};
use super::middleware::Visit;
use super::{HttpState, body};
use crate::engine::{
    Item, LoadedModel, ModelName, ModelState, Parameters, PredictRequest, PredictResponse, Prediction, RunOptions,
};
use crate::protocol::Tally;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

const EMBEDS: &str = "feature-extraction";
const RANKS: &str = "text-classification";

/// The paths whose errors are written as OpenAI's API does.
pub(super) fn is_openai(path: &str) -> bool {
    path == "/v1/embeddings"
}

/// The paths whose errors are written as Text Embeddings Inference does.
pub(super) fn is_tei(path: &str) -> bool {
    matches!(path, "/embed" | "/embed_all" | "/rerank")
}

/// The paths whose errors are written as TorchServe does.
pub(super) fn is_torchserve(path: &str) -> bool {
    torchserve::is_torchserve(path)
}

/// The paths whose errors are written as KServe's V1 protocol has them.
pub(super) fn is_kserve(path: &str) -> bool {
    kserve::is_kserve(path)
}

/// `?model=`, where a dialect has no other place for it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ModelQuery {
    model: Option<String>,
}

/// One text or several.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
    /// What is understood and not taken: ids of a vocabulary that the client chose.
    Ids(Vec<serde_json::Value>),
}

/// A text or a list of texts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "described for the document; bodies are read as Texts")]
pub(super) enum TextsBody {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    /// # Errors
    /// Names `field` where there is no text or there are more than `max_items`.
    fn into_items(self, field: &'static str, max_items: usize) -> Result<Vec<Item>, ApiError> {
        let texts = match self {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
            Texts::Ids(_) => {
                return Err(ApiError::field(field, "expected a text or a list of texts; token ids are not taken"));
            }
        };
        check_count(field, texts.len(), max_items)?;
        Ok(texts.into_iter().map(Item::Text).collect())
    }
}

/// # Errors
/// Names `field` where it holds no text or more than `max_items`.
fn check_count(field: &'static str, count: usize, max_items: usize) -> Result<(), ApiError> {
    if count == 0 {
        return Err(ApiError::field(field, "the list is empty; give at least one text"));
    }
    if count > max_items {
        let detail = format!("{field}: {count} texts are more than max_items = {max_items}");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
    }
    Ok(())
}

/// The JSON body of a request as `T`; keys that are not known are let through, as these protocols' servers do.
async fn read_json<T: DeserializeOwned + Send + 'static>(
    state: &HttpState,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    if content_type(headers).is_none_or(|media_type| media_type != "application/json") {
        return Err(ApiError::unsupported_media("send the body as application/json"));
    }
    let bytes = body::read(body, &state.settings, 0).await?;
    state.compute(bytes.len(), move || serde_json::from_slice(&bytes).map_err(malformed)).await?
}

/// The answer that `make` gives, of roughly so many `numbers`: large ones are made and written off the async threads.
async fn answered<T: Serialize>(
    state: &HttpState,
    numbers: usize,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<Response, ApiError> {
    let write = move || serde_json::to_vec(&make());
    let bytes = state.compute(numbers.saturating_mul(8), write).await?;
    let bytes = bytes.map_err(|error| ApiError::internal(format!("writing an answer: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

fn malformed(error: serde_json::Error) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", format!("the body cannot be read: {error}"))
}

/// The model that is named, ready and of the task.
async fn named(state: &HttpState, tally: &Tally, name: &str, task: &'static str) -> Result<Arc<LoadedModel>, ApiError> {
    let no_such = || {
        let name: String = name.chars().take(100).collect();
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", format!("there is no model '{name}'"))
    };
    let name = ModelName::parse(name).map_err(|_| no_such())?;
    let model = tally.model(&state.engine, &name, None).await?;
    match model.pipeline.as_ref().map(|pipeline| pipeline.task()) {
        Some(found) if found == task => Ok(model),
        found => {
            let found = found.unwrap_or("raw");
            Err(ApiError::field("model", format!("the task of model '{name}' is {found}; this route needs {task}")))
        }
    }
}

/// The only model of the task that is ready, where the request names none.
async fn only(state: &HttpState, tally: &Tally, task: &'static str) -> Result<Arc<LoadedModel>, ApiError> {
    let mut found = None;
    for status in state.engine.models().into_iter().filter(|status| status.state == ModelState::Ready) {
        let Ok(model) = state.engine.model(&status.name, None).await else { continue };
        if model.pipeline.as_ref().is_none_or(|pipeline| pipeline.task() != task) {
            continue;
        }
        if found.replace(status.name).is_some() {
            return Err(ApiError::field(
                "model",
                format!("several models have the task {task}; name one with ?model="),
            ));
        }
    }
    let Some(name) = found else {
        let detail = format!("no model of the task {task} is ready; load one, or name one with ?model=");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", detail));
    };
    named(state, tally, name.as_str(), task).await
}

async fn predict(
    state: &HttpState,
    model: &Arc<LoadedModel>,
    visit: &Visit,
    items: Vec<Item>,
    parameters: Parameters,
) -> Result<PredictResponse, ApiError> {
    let deadline = deadline(visit.arrival, None, &state.settings)?;
    let options = RunOptions { sender: visit.sender, ..RunOptions::until(deadline) };
    Ok(state.engine.predict(model, PredictRequest { items, parameters, options }).await?)
}

/// One vector for each text, cut to `dimensions` and of length 1 again where that is asked for.
///
/// # Errors
/// Where the model gives one for each token, or has fewer numbers.
fn vectors(predictions: Vec<Prediction>, dimensions: Option<usize>) -> Result<Vec<Vec<f32>>, ApiError> {
    let vector = |prediction: Prediction| match prediction {
        Prediction::Embedding(mut values) => {
            if let Some(count) = dimensions {
                if count == 0 || count > values.len() {
                    let problem = format!("must be between 1 and {}", values.len());
                    return Err(ApiError::field("dimensions", problem));
                }
                values.truncate(count);
                let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
                values.iter_mut().for_each(|value| *value /= length.max(1e-12));
            }
            Ok(values)
        }
        _ => Err(ApiError::field(
            "model",
            "the model gives a vector for each token and no file says how they become one; use \
             /v1/models/{name}/predict with \"parameters\": {\"pooling\": \"mean\"}",
        )),
    };
    predictions.into_iter().map(vector).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_cut_and_made_of_length_one() {
        let embedding = || vec![Prediction::Embedding(vec![3.0, 4.0, 12.0])];
        assert_eq!(vectors(embedding(), None).unwrap(), [[3.0, 4.0, 12.0]]);
        assert_eq!(vectors(embedding(), Some(2)).unwrap(), [[0.6, 0.8]]);
        for wrong in [0, 4] {
            let error = vectors(embedding(), Some(wrong)).unwrap_err();
            assert_eq!((error.status().as_u16(), error.detail()), (422, "dimensions: must be between 1 and 3"));
        }
        assert!(vectors(vec![Prediction::Classes(vec![])], None).unwrap_err().detail().contains("for each token"));
    }

    #[test]
    fn inputs_are_one_text_or_several() {
        let items = |json: &str| {
            let texts: Texts = serde_json::from_str(json).unwrap();
            texts.into_items("input", 2).map(|items| items.len()).map_err(|error| error.detail().to_owned())
        };
        assert_eq!(items(r#""a""#), Ok(1));
        assert_eq!(items(r#"["a", "b"]"#), Ok(2));
        assert_eq!(items("[]"), Err("input: the list is empty; give at least one text".to_owned()));
        assert_eq!(items(r#"["a", "b", "c"]"#), Err("input: 3 texts are more than max_items = 2".to_owned()));
        for ids in ["[1, 2]", "[[1, 2], [3]]"] {
            assert!(items(ids).unwrap_err().contains("token ids are not taken"), "{ids}");
        }
    }
}

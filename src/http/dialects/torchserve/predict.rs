//! `/predictions/{name}`, and what is not there: `/explanations/{name}`.

use super::TorchservePath;
use super::answer::Answer;
use super::body::{self as asked, AnswerForm, Asked};
use crate::engine::{InferRequest, LoadedModel, ModelName, PredictRequest, RunOptions, Version};
use crate::http::error::ApiError;
use crate::http::extract::deadline;
use crate::http::middleware::Visit;
use crate::http::v1::parse::{Input, Limits};
use crate::http::{HttpState, body};
use crate::tasks::INLINE_BYTES;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::sync::Arc;

/// Whose clients ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::dialects) enum Client {
    Torchserve,
    /// Of KServe's V1 protocol: JSON in any case, and an answer under `predictions`.
    KserveV1,
}

/// Predicts with a model.
#[utoipa::path(post, path = "/predictions/{name}", tag = "torchserve", operation_id = "torchservePredict",
    description = "As TorchServe has it, by POST or PUT: the bytes of a picture, sound or text under any media type, a form with \
        the field `data` or `body`, or JSON (`{\"instances\": […]}`, `{\"data\": …}`, inputs by name, or the inputs alone). \
        The answer has the form of TorchServe's default handlers: classes as `{label: probability}`, objects as \
        `{label: [x1, y1, x2, y2], \"score\"}`, outputs of a model without a task as nested arrays; of `instances`, a list under \
        `predictions`. Errors are `{code, type, message}`.",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    request_body(content(
        (Vec<u8> = "application/octet-stream"),
        (Object = "multipart/form-data", example = json!({"data": "(a picture)"})),
        (Object = "application/json", example = json!({"instances": [[0.5, 1.5]]})),
    )),
    responses((status = 200, description = "The prediction.", body = Object, example = json!({"tabby": 0.47, "tiger_cat": 0.46}))))]
pub(in crate::http) async fn predictions(
    State(state): State<HttpState>,
    path: TorchservePath,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    let (name, version) = path.one()?;
    respond(&state, (name, version), Client::Torchserve, visit, request).await
}

/// Says that there are no explanations.
#[utoipa::path(post, path = "/explanations/{name}", tag = "torchserve", operation_id = "torchserveExplain",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 501, description = "Explanations are made by Python beside the model, which is not run here.", body = super::TorchserveError)))]
pub(in crate::http) async fn explanations() -> ApiError {
    let detail = "explanations are made by Python beside the model (Captum), which this server does not run";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", detail)
}

/// Reads, runs, answers.
pub(in crate::http::dialects) async fn respond(
    state: &HttpState,
    (name, version): (ModelName, Option<Version>),
    client: Client,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    // The body is read before the model is looked for: a refusal in the middle of an upload reaches few clients.
    let bytes = body::read(body, &state.settings, 0).await?;
    let model = visit.tally.model(&state.engine, &name, version).await?;
    let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
    let Asked { input, parameters, form } = read(state, &model, client, content_type, bytes).await?;
    let form = if client == Client::KserveV1 { AnswerForm::Envelope } else { form };
    let deadline = deadline(visit.arrival, None, &state.settings)?;
    let options = RunOptions { sender: visit.sender, ..RunOptions::until(deadline) };
    let answer = match input {
        Input::Tensors(inputs) => {
            let response = state.engine.infer(&model, InferRequest { inputs, outputs: Vec::new(), options }).await?;
            Answer::Outputs(response.outputs)
        }
        Input::Items(items) => {
            let mut parameters = parameters;
            // TorchServe's handler of texts gives all classes, that of pictures five, which is the usual number here.
            if model.pipeline.as_ref().is_some_and(|pipeline| pipeline.task() == "text-classification") {
                parameters.entry("top_k").or_insert(serde_json::Value::Null);
            }
            let response = state.engine.predict(&model, PredictRequest { items, parameters, options }).await?;
            Answer::Predictions(response.predictions)
        }
    };
    let bytes = state.compute(answer.size(), move || answer.write(form)).await?;
    let bytes = bytes.map_err(|error| ApiError::internal(format!("writing an answer: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

async fn read(
    state: &HttpState,
    model: &Arc<LoadedModel>,
    client: Client,
    content_type: Option<HeaderValue>,
    bytes: Bytes,
) -> Result<Asked, ApiError> {
    let limits = Limits::from(&*state.settings);
    let (size, model) = (bytes.len(), model.clone());
    let work = async move {
        match client {
            Client::Torchserve => asked::read(&model, content_type.as_ref(), bytes, &limits).await,
            Client::KserveV1 => asked::read_json(&model, &bytes, &limits),
        }
    };
    if size <= INLINE_BYTES {
        return work.await;
    }
    let runtime = tokio::runtime::Handle::current();
    state.compute(size, move || runtime.block_on(work)).await?
}

//! Models from elsewhere: `POST /v1/models` orders one, `POST /v1/models/{name}/versions` orders or uploads a further
//! version, `/v1/downloads` shows how far each is.

use super::models::ModelInfo;
use crate::auth::Caller;
use crate::downloads::{
    Download, DownloadError, Downloads, Order, Place, Report, State as DownloadState, Upload, UploadOptions, Uploaded,
};
use crate::engine::ModelName;
use crate::http::audited::About;
use crate::http::error::{ApiError, retry_after};
use crate::http::extract::{ApiQuery, DownloadPath, ModelPath, content_type};
use crate::http::{HttpState, body};
use crate::hub::{ExportOptions, FetchRequest, HubError, Precision, Source};
use crate::telemetry::rfc3339;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

/// How often an open stream looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Bytes of a field of a form that is no file.
const FIELD_BYTES_MAX: usize = 1 << 20;
/// How long the rest of a form that was refused is read.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Numbers of a shape.
const SHAPE_MAX: usize = 8;

/// A model to get.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct NewModel {
    /// A letter or digit, then up to 99 letters, digits, '.', '_' or '-'. From the source where absent.
    #[schema(example = "minilm")]
    name: Option<String>,
    #[serde(flatten)]
    #[schema(inline)]
    order: OrderBody,
}

/// What to get.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = ModelOrder)]
pub(in crate::http) struct OrderBody {
    /// `huggingface`, `url`, `local`, `torchvision` or `pytorch_hub`.
    #[schema(example = "huggingface")]
    source: String,
    /// `org/name` of HuggingFace, a function of torchvision, `owner/repo:function` of PyTorch Hub.
    #[schema(example = "sentence-transformers/all-MiniLM-L6-v2")]
    model_id: Option<String>,
    /// Of `url`: a graph (.onnx, .ort), an archive of a model's folder (.zip, .tar.gz) or a PyTorch file (.pt, .pth, .pt2).
    url: Option<String>,
    /// Of `local`: a file or folder of the server, inside `[hub] allowed_paths`.
    path: Option<String>,
    /// Branch, tag or commit.
    #[schema(example = "main")]
    revision: Option<String>,
    /// The graph's path in the source, where there are several.
    #[schema(example = "onnx/model.onnx")]
    file: Option<String>,
    /// `fp32`, `fp16`, `int8` or `q4`: which variant of the graph, where there are several.
    precision: Option<String>,
    /// What the file of a URL must be: 64 hexadecimal digits.
    sha256: Option<String>,
    /// Whether it is loaded when it is there; true where absent.
    load: Option<bool>,
    /// The new model's `model.toml`, as JSON.
    #[schema(value_type = Option<Object>)]
    config: Option<Map<String, Value>>,
    /// Of torchvision and PyTorch Hub: the pretrained weights' name, `DEFAULT` where absent, `none` for random ones.
    weights: Option<String>,
    /// Of PyTorch models: the example input's shape, batch included.
    #[schema(example = json!([1, 3, 224, 224]))]
    input_shape: Option<Vec<u64>>,
    /// Of PyTorch models: ONNX's opset.
    opset: Option<u32>,
    /// Of PyTorch weights alone: the function of torchvision that they belong to.
    architecture: Option<String>,
}

/// An order that was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Ordered {
    download: DownloadInfo,
}

/// A model on its way into the store.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Download)]
pub(in crate::http) struct DownloadInfo {
    #[schema(example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")]
    id: String,
    /// The model's name.
    #[schema(example = "minilm")]
    name: String,
    #[schema(example = "huggingface")]
    source: &'static str,
    #[schema(example = "sentence-transformers/all-MiniLM-L6-v2")]
    model_id: String,
    /// The one asked for, then the commit that it stands for.
    revision: Option<String>,
    state: DownloadStateName,
    bytes_done: u64,
    /// `null` until it is known.
    bytes_total: Option<u64>,
    files: Vec<DownloadFile>,
    /// Bytes a second, over the last five.
    rate_bps: u64,
    /// Seconds; `null` where it cannot be told.
    eta_s: Option<u64>,
    /// The version that it became.
    version: Option<String>,
    /// Whether the store had exactly this already.
    unchanged: bool,
    /// What was found when the version was tried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<CheckInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<DownloadProblem>,
    /// RFC 3339, UTC.
    #[schema(example = "2026-03-01T12:30:05.250Z")]
    created_at: String,
    finished_at: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DownloadFile {
    #[schema(example = "onnx/model.onnx")]
    path: String,
    bytes_done: u64,
    bytes_total: Option<u64>,
    /// Complete and verified.
    done: bool,
}

/// A version as it was tried out before it came into the store.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CheckInfo {
    #[schema(example = "feature-extraction")]
    task: String,
    /// What the task was told from.
    evidence: String,
    #[schema(example = json!(["input_ids INT64[-1,-1]"]))]
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// How long the graph took to be read.
    load_s: f64,
    /// How long one run with made-up input took.
    run_s: Option<f64>,
    /// Why it did not run, where it did not: a graph may rightly refuse what is made up.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_problem: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DownloadProblem {
    /// Stable: programs compare this word.
    #[schema(example = "checksum")]
    code: &'static str,
    detail: String,
}

/// Where a download is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = DownloadState)]
pub(in crate::http) enum DownloadStateName {
    Queued,
    Downloading,
    Verifying,
    Converting,
    Loading,
    Done,
    Failed,
    Cancelled,
}

/// Downloads, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DownloadList {
    downloads: Vec<DownloadInfo>,
}

/// What an order would get.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SourceListing)]
pub(in crate::http) struct ListingInfo {
    /// The commit that the files are of.
    revision: Option<String>,
    files: Vec<ListedFileInfo>,
    /// `null` where a file's size is not known.
    bytes_total: Option<u64>,
    license: Option<String>,
    /// The task that the source names.
    task: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ListedFileInfo {
    path: String,
    bytes: Option<u64>,
}

/// A version that was uploaded.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UploadedInfo {
    version: String,
    check: CheckInfo,
    model: ModelInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct CheckQuery {
    #[serde(default)]
    check: bool,
}

/// Gets a model.
#[utoipa::path(post, path = "/v1/models", tag = "models", operation_id = "createModel",
    description = "Takes the order and answers at once; the download says how far it is. Nothing is to be seen of the \
        model before all its files are there, verified and tried out.",
    params(("check" = Option<bool>, Query, description = "`true`: only say what would be got.")),
    request_body = NewModel,
    responses(
        (status = 202, description = "The order is taken.", body = Ordered,
            headers(("Location" = String, description = "The download: `/v1/downloads/{id}`."))),
        (status = 200, description = "What would be got (`?check=true`).", body = ListingInfo),
    ))]
pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<CheckQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body: Map<String, Value> = read_json(&state, request).await?;
    let name = match body.remove("name") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name),
        Some(_) => return Err(ApiError::field("name", "expected a text")),
    };
    let (request, load, model_toml) = read_order(&state, body)?;
    if query.check {
        return Ok(Json(ListingInfo::from(state.downloads.check(&request).await?)).into_response());
    }
    let name = match name.or_else(|| request.source.default_name()) {
        Some(name) => ModelName::parse(&name).map_err(|rule| ApiError::field("name", rule.to_string()))?,
        None => return Err(ApiError::field("name", "the source does not give one; name the model")),
    };
    let about = About(name.clone());
    let mut response = order(&state, Order { name, place: Place::NewModel, request, load, model_toml }).await?;
    response.extensions_mut().insert(about);
    Ok(response)
}

/// Gets or uploads a further version.
#[utoipa::path(post, path = "/v1/models/{name}/versions", tag = "models", operation_id = "createVersion",
    description = "As a form: the files of a version in fields named `file` (a graph with what belongs to it, one archive \
        of a model's folder, or one PyTorch file), and `load`, `sha256`, `architecture`, `input_shape`, `opset`. Makes the \
        model where there is none, then also with `config`. As JSON: an order, as `POST /v1/models` takes it, without `name` and `config`. The version that served \
        serves until the new one is ready.",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    request_body(content(
        (Object = "multipart/form-data", example = json!({"file": "(model.onnx)", "load": "true"})),
        (OrderBody = "application/json"),
    )),
    responses(
        (status = 201, description = "The uploaded version is in the store, and loaded where that was asked for.", body = UploadedInfo,
            headers(("Location" = String, description = "The model: `/v1/models/{name}`."))),
        (status = 202, description = "The order is taken.", body = Ordered,
            headers(("Location" = String, description = "The download: `/v1/downloads/{id}`."))),
    ))]
pub(in crate::http) async fn create_version(
    State(state): State<HttpState>,
    path: ModelPath,
    request: Request,
) -> Result<Response, ApiError> {
    match content_type(request.headers()).as_deref() {
        Some("multipart/form-data") => upload(&state, path.name, request).await,
        Some("application/json") => {
            let body = read_json(&state, request).await?;
            let (request, load, model_toml) = read_order(&state, body)?;
            if model_toml.is_some() {
                return Err(ApiError::field(
                    "config",
                    "only a new model takes one; the model has a model.toml of its own",
                ));
            }
            order(&state, Order { name: path.name, place: Place::NextVersion, request, load, model_toml: None }).await
        }
        _ => Err(ApiError::unsupported_media(
            "send the files as multipart/form-data (curl -F file=@model.onnx), or an order as application/json",
        )),
    }
}

/// Lists downloads.
#[utoipa::path(get, path = "/v1/downloads", tag = "models", operation_id = "listDownloads",
    responses((status = 200, description = "The newest first; of those that have ended, the last 200 since the start.", body = DownloadList)))]
pub(in crate::http) async fn list(State(state): State<HttpState>) -> Json<DownloadList> {
    Json(DownloadList { downloads: state.downloads.list().into_iter().map(DownloadInfo::from).collect() })
}

/// Shows a download.
#[utoipa::path(get, path = "/v1/downloads/{id}", tag = "models", operation_id = "getDownload",
    params(("id" = String, Path, description = "The download's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses((status = 200, description = "The download.", body = DownloadInfo)))]
pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    DownloadPath(id): DownloadPath,
) -> Result<Json<DownloadInfo>, ApiError> {
    Ok(Json(state.downloads.get(id)?.into()))
}

/// Cancels or forgets a download.
#[utoipa::path(delete, path = "/v1/downloads/{id}", tag = "models", operation_id = "deleteDownload",
    description = "Cancels one that waits or runs, and leaves nothing of it; forgets one that has ended. What is in the \
        store stays there.",
    params(("id" = String, Path, description = "The download's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses(
        (status = 200, description = "It is cancelled, or ended in that moment as `state` says.", body = DownloadInfo),
        (status = 204, description = "It had ended and is forgotten."),
    ))]
pub(in crate::http) async fn delete(
    State(state): State<HttpState>,
    DownloadPath(id): DownloadPath,
) -> Result<Response, ApiError> {
    Ok(match state.downloads.cancel(id).await? {
        Some(download) => Json(DownloadInfo::from(download)).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Watches a download.
#[utoipa::path(get, path = "/v1/downloads/{id}/events", tag = "models", operation_id = "watchDownload",
    description = "Server-sent events: `state` with the download whenever its state changes, `progress` with it while bytes \
        come, four times a second at most. Ends after the final state, and when the server stops.",
    params(("id" = String, Path, description = "The download's id.", example = "0b8e6c5e-3f0e-4c39-9f0b-2a8f2f1f4c11")),
    responses((status = 200, description = "Events.", body = String, content_type = "text/event-stream")))]
pub(in crate::http) async fn events(
    State(state): State<HttpState>,
    caller: Option<Extension<Caller>>,
    DownloadPath(id): DownloadPath,
) -> Result<Response, ApiError> {
    state.downloads.get(id)?;
    let feed = Feed {
        downloads: state.downloads.clone(),
        id,
        stopping: state.tasks.stopping().clone(),
        said: None,
        is_over: false,
    };
    state.stream(caller.map(|Extension(caller)| caller), feed.stream())
}

async fn order(state: &HttpState, order: Order) -> Result<Response, ApiError> {
    let download = state.downloads.order(order).await?;
    let location = format!("/v1/downloads/{}", download.id);
    let body = Json(Ordered { download: download.into() });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], body).into_response())
}

async fn read_json(state: &HttpState, request: Request) -> Result<Map<String, Value>, ApiError> {
    let (head, body) = request.into_parts();
    if content_type(&head.headers).is_none_or(|media_type| media_type != "application/json") {
        return Err(ApiError::unsupported_media("send the order as application/json"));
    }
    let bytes = body::read(body, &state.settings, 0).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", format!("the body cannot be read: {error}"))
    })
}

/// The request, whether to load, and the new model's `model.toml`.
fn read_order(state: &HttpState, body: Map<String, Value>) -> Result<(FetchRequest, bool, Option<String>), ApiError> {
    let order: OrderBody = serde_json::from_value(Value::Object(body))
        .map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_input", error.to_string()))?;
    let needs = |field: &'static str, given: &Option<String>| {
        given.clone().ok_or_else(|| ApiError::field(field, format!("source {:?} needs it", order.source)))
    };
    let source = match order.source.as_str() {
        "huggingface" => Source::hugging_face(&needs("model_id", &order.model_id)?),
        "torchvision" => Source::torchvision(&needs("model_id", &order.model_id)?),
        "pytorch_hub" => {
            let id = needs("model_id", &order.model_id)?;
            match id.rsplit_once(':') {
                Some((repository, entry)) => Source::pytorch_hub(repository, entry),
                None => return Err(ApiError::field("model_id", "expected owner/repo:function")),
            }
        }
        "url" => Ok(Source::Url { url: needs("url", &order.url)? }),
        "local" => {
            check_local(state)?;
            Ok(Source::Local { path: PathBuf::from(needs("path", &order.path)?) })
        }
        "" => return Err(ApiError::field("source", "expected huggingface, url, local, torchvision or pytorch_hub")),
        other => {
            return Err(ApiError::field(
                "source",
                format!("expected huggingface, url, local, torchvision or pytorch_hub, got {other:?}"),
            ));
        }
    };
    let input_shape = order.input_shape.map(check_shape).transpose()?;
    let request = FetchRequest {
        revision: order.revision,
        file: order.file,
        precision: order.precision.as_deref().map(Precision::parse).transpose().map_err(DownloadError::from)?,
        sha256: order.sha256,
        export: ExportOptions {
            weights: order.weights,
            input_shape,
            opset: order.opset,
            architecture: order.architecture,
        },
        ..FetchRequest::new(source.map_err(DownloadError::from)?)
    };
    let model_toml = order.config.as_ref().map(model_toml).transpose()?;
    Ok((request, order.load.unwrap_or(true), model_toml))
}

/// # Errors
/// Where no file of the server may be a source of those who call.
pub(in crate::http) fn check_local(state: &HttpState) -> Result<(), ApiError> {
    if state.downloads.hub().settings().allowed_paths.is_empty() {
        return Err(ApiError::field(
            "source",
            "files of the server are not served as sources; [hub] allowed_paths names the folders that may be",
        ));
    }
    Ok(())
}

fn check_shape(shape: Vec<u64>) -> Result<Vec<u64>, ApiError> {
    let good = (1..=SHAPE_MAX).contains(&shape.len()) && shape.iter().all(|size| (1..=1 << 16).contains(size));
    if good { Ok(shape) } else { Err(ApiError::field("input_shape", "expected 1 to 8 sizes from 1 to 65536")) }
}

/// The configuration of a new model as the file that keeps it.
fn model_toml(config: &Map<String, Value>) -> Result<String, ApiError> {
    toml::to_string_pretty(config)
        .map_err(|error| ApiError::field("config", format!("cannot stand in a model.toml: {error}")))
}

async fn upload(state: &HttpState, name: ModelName, request: Request) -> Result<Response, ApiError> {
    let form = Multipart::from_request(request, state).await;
    let mut form = form.map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "malformed_body",
            format!("the form cannot be read: {}", error.body_text()),
        )
    })?;
    let uploaded = match take(state, &name, &mut form).await {
        Ok(uploaded) => uploaded,
        Err(error) => {
            // A client that is still sending would see its connection break instead of the answer.
            let _ = tokio::time::timeout(DRAIN_MAX, drain(&mut form)).await;
            return Err(error);
        }
    };
    let model = ModelInfo::from(&state.engine.status(&name)?);
    let body = UploadedInfo { version: uploaded.version.to_string(), check: uploaded.report.into(), model };
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/models/{name}"))], Json(body)).into_response())
}

async fn take(state: &HttpState, name: &ModelName, form: &mut Multipart) -> Result<Uploaded, ApiError> {
    let mut upload = state.downloads.begin_upload(name.clone()).await?;
    let mut options = UploadOptions { load: true, ..UploadOptions::default() };
    while let Some(field) = next_field(state, form).await? {
        let field_name = field.name().unwrap_or_default().to_owned();
        if field_name == "file" {
            receive(state, &mut upload, field).await?;
        } else {
            let text = read_text(state, &field_name, field).await?;
            set_option(&mut options, &field_name, &text)?;
        }
    }
    Ok(upload.finish(options).await?)
}

/// Reads what is left of a form that was refused.
async fn drain(form: &mut Multipart) {
    while let Ok(Some(mut field)) = form.next_field().await {
        while let Ok(Some(_)) = field.chunk().await {}
    }
}

async fn receive(state: &HttpState, upload: &mut Upload, mut field: Field<'_>) -> Result<(), ApiError> {
    let name = field.file_name().unwrap_or("model.onnx").to_owned();
    let mut file = upload.begin_file(&name).await?;
    let (started, mut received) = (tokio::time::Instant::now(), 0u64);
    while let Some(bytes) = within(state, field.chunk()).await? {
        received += bytes.len() as u64;
        // Whoever drips would hold the model's name for ever.
        let limits = &state.settings.limits;
        let late = started.elapsed().saturating_sub(limits.body_read_timeout).as_secs();
        let least = limits.min_upload_bytes_per_second;
        if received < late.saturating_mul(least) {
            return Err(ApiError::from(body::BodyError::Dripping { least }));
        }
        upload.write(&mut file, &bytes).await?;
    }
    Ok(upload.end_file(file).await?)
}

async fn next_field<'a>(state: &HttpState, form: &'a mut Multipart) -> Result<Option<Field<'a>>, ApiError> {
    within(state, form.next_field()).await
}

async fn read_text(state: &HttpState, name: &str, mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = within(state, field.chunk()).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > FIELD_BYTES_MAX {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("the field {name:?} is larger than 1 MiB"),
            ));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, "the field is not UTF-8 text"))
}

/// Each part of an upload has the time of a body: a whole one may take longer, one that stands still does not.
async fn within<T>(
    state: &HttpState,
    work: impl Future<Output = Result<T, axum::extract::multipart::MultipartError>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(state.settings.limits.body_read_timeout, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "malformed_body",
            format!("the form cannot be read: {}", error.body_text()),
        )),
        Err(_) => Err(ApiError::from(body::BodyError::TooSlow)),
    }
}

fn set_option(options: &mut UploadOptions, name: &str, text: &str) -> Result<(), ApiError> {
    let text = text.trim();
    match name {
        "load" => options.load = crate::http::extract::query_bool("load", text)?,
        "sha256" => options.sha256 = Some(text.to_owned()),
        "architecture" => options.export.architecture = Some(text.to_owned()),
        "opset" => {
            options.export.opset = Some(text.parse().map_err(|_| ApiError::field("opset", "expected a number"))?)
        }
        "input_shape" => {
            let shape = serde_json::from_str(text)
                .map_err(|_| ApiError::field("input_shape", "expected a list such as [1,3,224,224]"))?;
            options.export.input_shape = Some(check_shape(shape)?);
        }
        "config" => {
            let config = serde_json::from_str(text).map_err(|_| ApiError::field("config", "expected a JSON object"))?;
            options.model_toml = Some(model_toml(&config)?);
        }
        other => {
            let other: String = other.chars().take(100).collect();
            return Err(ApiError::field(
                other,
                "the form has no such field; it takes file, load, sha256, config, architecture, input_shape and opset",
            ));
        }
    }
    Ok(())
}

/// What one stream has said of its download.
struct Feed {
    downloads: Downloads,
    id: Uuid,
    stopping: CancellationToken,
    said: Option<(DownloadState, u64)>,
    is_over: bool,
}

impl Feed {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures_util::stream::unfold(self, |mut feed| async move {
            loop {
                if feed.is_over {
                    return None;
                }
                // The first look waits for nothing.
                if feed.said.is_some() {
                    tokio::select! {
                        biased; // A stop comes first: an endless stream would hold the drain.
                        () = feed.stopping.cancelled() => return None,
                        () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    }
                }
                if let Some(event) = feed.look() {
                    return Some((Ok(event), feed));
                }
            }
        })
    }

    /// The next event, where there is something new.
    fn look(&mut self) -> Option<Event> {
        let Ok(download) = self.downloads.get(self.id) else {
            self.is_over = true;
            return None;
        };
        let now = (download.state, download.progress.bytes_done);
        let before = self.said.replace(now);
        self.is_over = download.state.is_final();
        let name = match before {
            Some(before) if before == now => return None,
            Some((state, _)) if state == now.0 => "progress",
            _ => "state",
        };
        // Texts and numbers only: writing them cannot fail.
        let text = serde_json::to_string(&DownloadInfo::from(download)).ok()?;
        Some(Event::default().event(name).data(text))
    }
}

impl From<Download> for DownloadInfo {
    fn from(download: Download) -> DownloadInfo {
        let progress = download.progress;
        let rate = progress.bytes_per_second;
        let missing = progress.bytes_total.map(|total| total.saturating_sub(progress.bytes_done));
        let eta_s = missing
            .filter(|_| rate >= 1.0 && !download.state.is_final())
            .map(|bytes| (bytes as f64 / rate).ceil() as u64);
        let files = progress.files.into_iter().map(|file| DownloadFile {
            path: file.path,
            bytes_done: file.bytes_done,
            bytes_total: file.bytes_total,
            done: file.done,
        });
        DownloadInfo {
            id: download.id.to_string(),
            name: download.name.to_string(),
            source: download.source,
            model_id: download.model_id,
            revision: download.revision,
            state: download.state.into(),
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            files: files.collect(),
            rate_bps: if download.state.is_final() { 0 } else { rate as u64 },
            eta_s,
            version: download.version.map(|version| version.to_string()),
            unchanged: download.unchanged,
            check: download.report.map(CheckInfo::from),
            error: download.error.map(|(code, detail)| DownloadProblem { code, detail }),
            created_at: rfc3339(download.created_ms),
            finished_at: download.finished_ms.map(rfc3339),
        }
    }
}

impl From<DownloadState> for DownloadStateName {
    fn from(state: DownloadState) -> DownloadStateName {
        match state {
            DownloadState::Queued => DownloadStateName::Queued,
            DownloadState::Downloading => DownloadStateName::Downloading,
            DownloadState::Verifying => DownloadStateName::Verifying,
            DownloadState::Converting => DownloadStateName::Converting,
            DownloadState::Loading => DownloadStateName::Loading,
            DownloadState::Done => DownloadStateName::Done,
            DownloadState::Failed => DownloadStateName::Failed,
            DownloadState::Cancelled => DownloadStateName::Cancelled,
        }
    }
}

impl From<Report> for CheckInfo {
    fn from(report: Report) -> CheckInfo {
        CheckInfo {
            task: report.task,
            evidence: report.evidence,
            inputs: report.inputs,
            outputs: report.outputs,
            load_s: report.load_seconds,
            run_s: report.run_seconds,
            run_problem: report.run_problem,
        }
    }
}

impl From<crate::hub::Listing> for ListingInfo {
    fn from(listing: crate::hub::Listing) -> ListingInfo {
        ListingInfo {
            revision: listing.revision,
            bytes_total: listing.files.iter().map(|file| file.bytes).sum(),
            files: listing
                .files
                .into_iter()
                .map(|file| ListedFileInfo { path: file.path, bytes: file.bytes })
                .collect(),
            license: listing.license,
            task: listing.task,
        }
    }
}

impl From<DownloadError> for ApiError {
    fn from(error: DownloadError) -> ApiError {
        let detail = error.to_string();
        let status = match &error {
            DownloadError::Model(_) => None,
            DownloadError::Hub(error) => Some(match error {
                HubError::Invalid(_) | HubError::Refused(_) | HubError::Corrupt(_) | HubError::Export(_) => {
                    StatusCode::UNPROCESSABLE_ENTITY
                }
                HubError::NotFound(_) => StatusCode::UNPROCESSABLE_ENTITY,
                HubError::Denied(_) => StatusCode::UNPROCESSABLE_ENTITY,
                HubError::RateLimited(_) | HubError::Unreachable(_) | HubError::NoExporter => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                HubError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                HubError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
                HubError::Disk(_) | HubError::Busy(_) | HubError::Cancelled => StatusCode::CONFLICT,
            }),
            DownloadError::NotFound => Some(StatusCode::NOT_FOUND),
            DownloadError::TooMany { .. } | DownloadError::Stopping => Some(StatusCode::SERVICE_UNAVAILABLE),
            DownloadError::TooSlow { .. } => Some(StatusCode::GATEWAY_TIMEOUT),
            DownloadError::Cancelled => Some(StatusCode::CONFLICT),
            DownloadError::Panicked => None,
        };
        let code = match &error {
            DownloadError::NotFound => "download_not_found",
            error => error.code(),
        };
        match (error, status) {
            (DownloadError::Model(error), _) => crate::engine::EngineError::from(error).into(),
            // Downloads take seconds at least.
            (_, Some(StatusCode::SERVICE_UNAVAILABLE)) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
                .with_header(header::RETRY_AFTER, retry_after(Duration::from_secs(5))),
            (_, Some(status)) => ApiError::new(status, code, detail),
            (_, None) => ApiError::internal(detail),
        }
    }
}

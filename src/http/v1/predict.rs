//! `POST /v1/models/{name}/predict`: parse, call, encode.
//!
//! What the bodies look like is in `parse` and `encode`. Knows no task: items and predictions are the engine's.

use super::encode::{self, Answer, Format};
use super::parse::{self, BodyKind, Call, Input, Limits};
use crate::engine::{
    CacheOutcome, EngineError, ErrorKind, InferRequest, InferenceEngine, LoadedModel, ModelName, Parameters,
    PredictRequest, RunOptions, Sender, Timing, Version,
};
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, ModelPath, deadline, invalid_query, query_bool};
use crate::http::middleware::Visit;
use crate::http::outcome::with_outcome;
use crate::http::{HttpSettings, HttpState, body};
use crate::tasks::Progress;
use crate::tensor::Value;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use utoipa::ToSchema;

/// Bytes of an `id`.
const MAX_ID_BYTES: usize = 1024;
/// `parameters` in a query.
const MAX_QUERY_PARAMETERS: usize = 32;

/// What a query may say; every other key is one of the task's parameters, such as `top_k=3`.
#[derive(Debug, Default, PartialEq)]
struct PredictQuery {
    version: Option<Version>,
    /// Tensors instead of the task's answer.
    raw: bool,
    /// The outputs wanted, by name; empty = all.
    outputs: Vec<String>,
    timeout_ms: Option<u64>,
    id: Option<String>,
    parameters: Parameters,
}

/// Body of a prediction in JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = PredictRequest)]
pub(in crate::http) struct PredictRequestBody {
    /// Tensor model: `{"<input>": nested array | {"dtype", "shape", "data"}}`, or the bare nested array where the model has
    /// one input. Task model: one item or a list of items; an item is text, `{"b64": "…"}` or a `data:` URL. Non-finite
    /// numbers are "NaN", "Infinity" and "-Infinity".
    #[schema(value_type = Value, example = json!({"x": [[0.5, 1.5]]}))]
    inputs: serde_json::Value,
    /// What the task may be told, such as `top_k`.
    #[schema(value_type = Option<Object>, example = json!({}))]
    parameters: Option<serde_json::Value>,
    /// Given back in the answer.
    #[schema(example = "a-1")]
    id: Option<String>,
    /// When the answer is worthless, from the request's arrival; at most the server's request timeout.
    #[schema(minimum = 1, example = 1000)]
    timeout_ms: Option<u64>,
    /// 1 is served first, 9 last; 0 is the default, 5.
    #[schema(minimum = 0, example = 5)]
    priority: Option<u32>,
}

/// Answer to a prediction: `predictions` of a task, or `outputs` of a model that takes tensors.
#[derive(Serialize, ToSchema)]
#[schema(as = PredictResponse)]
pub(in crate::http) struct PredictResponseBody {
    #[schema(example = "resnet50")]
    model: String,
    #[schema(example = "1")]
    version: String,
    id: Option<String>,
    /// One for each item, in order.
    #[schema(value_type = Option<Vec<PredictionBody>>)]
    predictions: Option<serde_json::Value>,
    /// By name, as nested arrays.
    #[schema(value_type = Option<Object>, example = json!({"y": [[0.25, 0.75]]}))]
    outputs: Option<serde_json::Value>,
}

/// The answer for one item, in the shape of the HuggingFace pipeline of its task.
#[derive(Serialize, ToSchema)]
#[schema(as = Prediction)]
#[serde(untagged)]
#[expect(dead_code, reason = "described for the document; encode writes predictions without a copy")]
pub(in crate::http) enum PredictionBody {
    /// Classification of pictures, sounds, texts and records: best first.
    Classes(Vec<ScoredLabel>),
    /// Feature extraction: one vector for the text. Non-finite numbers are text.
    #[schema(example = json!([0.0676, 0.0635, -0.0052]))]
    Embedding(Vec<f32>),
    /// Feature extraction of a model that does not say how tokens become one vector: `[1][tokens][numbers]`.
    #[schema(example = json!([[[0.0676, 0.0635], [0.0487, 0.0793]]]))]
    TokenEmbeddings(Vec<Vec<Vec<f32>>>),
    /// Feature extraction of a convolutional model of pictures: `[1][channels][rows][columns]`.
    #[schema(example = json!([[[[0.0, 1.7], [0.4, 4.7]]]]))]
    FeatureMaps(Vec<Vec<Vec<Vec<f32>>>>),
    /// Speech recognition.
    Speech(SpokenText),
    /// Voice activity detection.
    Voice(VoiceActivity),
    /// Entities of a text, token by token.
    TokenLabels(Vec<LabelledToken>),
    /// Entities of a text, whole, where `aggregation_strategy` asks for that.
    Entities(Vec<Entity>),
    /// What may stand where a text has its mask; a list for each where it has several.
    Masks(Vec<FilledMask>),
    /// Question answering; a list where `top_k` is above 1.
    Answer(FoundAnswer),
    /// Zero-shot classification.
    Ranked(RankedLabels),
    /// Object detection: best first.
    Objects(Vec<DetectedObject>),
    /// Image segmentation: the classes that are in the picture.
    Segments(Vec<Segment>),
    Depth(Depth),
    /// Regression.
    Number(f32),
    /// Why the item has no answer, where `on_error` is `item`.
    Error(ItemProblem),
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct LabelledToken {
    #[schema(example = "B-PER")]
    entity: String,
    #[schema(example = 0.997)]
    score: f32,
    /// Place among the tokens.
    index: usize,
    #[schema(example = "maria")]
    word: String,
    /// In characters of the text, as `end`.
    start: usize,
    end: usize,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Entity {
    #[schema(example = "PER")]
    entity_group: String,
    #[schema(example = 0.997)]
    score: f32,
    #[schema(example = "maria garcia")]
    word: String,
    /// In characters of the text, as `end`.
    start: usize,
    end: usize,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct FilledMask {
    #[schema(example = 0.41)]
    score: f32,
    /// Place in the vocabulary.
    token: u32,
    #[schema(example = "france")]
    token_str: String,
    #[schema(example = "the capital of france is paris.")]
    sequence: String,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct FoundAnswer {
    #[schema(example = 0.93)]
    score: f32,
    /// In characters of the context, as `end`.
    start: usize,
    end: usize,
    #[schema(example = "Berlin")]
    answer: String,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct RankedLabels {
    sequence: String,
    /// Best first.
    labels: Vec<String>,
    /// One for each label.
    scores: Vec<f32>,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct DetectedObject {
    #[schema(example = "cat")]
    label: String,
    #[schema(example = 0.91)]
    score: f32,
    #[serde(rename = "box")]
    bounds: BoundingBox,
}

/// In pixels of the picture as it is looked at; may reach over its edges.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct BoundingBox {
    xmin: f32,
    ymin: f32,
    xmax: f32,
    ymax: f32,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Segment {
    score: Option<f32>,
    #[schema(example = "sky")]
    label: String,
    mask: SegmentMask,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "described for the document; encode writes predictions without a copy")]
pub(in crate::http) enum SegmentMask {
    /// A grey PNG of the picture's size in base64: 255 is inside.
    Png(String),
    /// Where `mask_format` is `rle`: lengths of runs outside and inside, by turns, column by column.
    Rle { size: Vec<usize>, counts: Vec<u64> },
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Depth {
    /// For each pixel of the picture; absent where the parameter `predicted_depth` is false.
    predicted_depth: Option<Vec<Vec<f32>>>,
    /// A grey PNG of the picture's size in base64.
    depth: String,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct ItemProblem {
    #[schema(example = "inputs[1]: the picture cannot be decoded")]
    error: String,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct SpokenText {
    #[schema(example = "HELLO WORLD")]
    text: String,
    /// Where `return_timestamps` asked for them.
    chunks: Option<Vec<TextChunk>>,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct TextChunk {
    #[schema(example = "HELLO")]
    text: String,
    /// Start and end, seconds.
    #[schema(example = json!([0.5, 0.86]))]
    timestamp: Vec<f64>,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct VoiceActivity {
    /// When somebody speaks, in order.
    segments: Vec<SpokenPart>,
    /// Milliseconds of a window, where `return_probabilities` asked for them.
    #[schema(example = 32.0)]
    window_ms: Option<f64>,
    /// How likely it is that somebody speaks, window by window.
    #[schema(example = json!([0.02, 0.97]))]
    probabilities: Option<Vec<f32>>,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct SpokenPart {
    /// Seconds from the beginning, as `end`.
    #[schema(example = 0.226)]
    start: f64,
    #[schema(example = 1.886)]
    end: f64,
    /// Mean probability of the windows in it.
    #[schema(example = 0.97)]
    score: f32,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct ScoredLabel {
    #[schema(example = "tabby cat")]
    label: String,
    #[schema(example = 0.87)]
    score: f32,
}

/// Predicts with a model.
#[utoipa::path(post, path = "/v1/models/{name}/predict", tag = "predict", operation_id = "predict",
    description = "Predicts. The media type of the body says what is sent, `Accept` what comes back: JSON by default, or the \
        outputs as tensors. Query keys that are not listed are the task's `parameters`, such as `?top_k=3`.",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "The default version where absent."),
        ("raw" = Option<bool>, Query, description = "The graph's outputs instead of the task's answer."),
        ("output" = Option<String>, Query, description = "The output wanted; may be repeated."),
        ("timeout_ms" = Option<u64>, Query, description = "As in the JSON body, which counts where both are there."),
        ("id" = Option<String>, Query, description = "As in the JSON body, which counts where both are there."),
    ),
    request_body(content(
        (PredictRequestBody = "application/json"),
        (Object = "multipart/form-data", example = json!({"file": "(a picture)", "parameters": "{\"top_k\": 3}"})),
        (Vec<u8> = "image/*"),
        (Vec<u8> = "audio/*"),
        (String = "text/plain"),
        (Vec<u8> = "application/x-npy"),
        (Vec<u8> = "application/x-npz"),
        (Vec<u8> = "application/vnd.safetensors"),
    )),
    responses((status = 200, description = "The predictions.",
        headers(("Server-Timing" = String, description = "`queue`, `preprocess`, `inference` and `postprocess` in ms; all 0 for a kept answer."),
            ("X-Ortus-Cache" = String, description = "`hit` or `miss` where the model keeps answers.")),
        content(
            (PredictResponseBody = "application/json"),
            (Vec<u8> = "application/x-npy"),
            (Vec<u8> = "application/x-npz"),
            (Vec<u8> = "application/vnd.safetensors"),
        ))))]
pub(in crate::http) async fn predict(
    State(state): State<HttpState>,
    path: ModelPath,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    respond(&state, path, visit, request).await
}

/// The handler itself, for who has what it needs at hand.
pub(in crate::http) async fn respond(
    state: &HttpState,
    path: ModelPath,
    visit: Visit,
    request: Request,
) -> Result<Response, ApiError> {
    let ApiQuery(query) = ApiQuery::of(request.uri())?;
    let ask = Ask::read(&path, query, request.headers())?;
    let (head, body) = request.into_parts();
    // The body is read before the model is looked for: a refusal in the middle of an upload reaches few clients.
    let body = body::read(body, &state.settings, 0).await?;
    let model = visit.tally.model(&state.engine, &path.name, ask.version()).await?;
    let kind = BodyKind::of(&head.headers, &model)?;
    // The head lies in what its connection read; once it is gone, the next request is read to the same place.
    drop(head);
    let due = |timeout_ms| deadline(visit.arrival, timeout_ms, &state.settings);
    let answered = answer(state, &model, ask, kind, body, due, AskedBy::Client(visit.sender)).await?;
    let response = encode::response(answered.format, answered.bytes, &answered.timing);
    Ok(with_outcome(response, answered.cache))
}

/// What a prediction's path, query and head ask for, before its model is known.
pub(super) struct Ask {
    query: PredictQuery,
    format: Format,
}

/// A prediction's answer.
pub(super) struct Answered {
    pub(super) format: Format,
    pub(super) bytes: Vec<u8>,
    pub(super) timing: Timing,
    pub(super) cache: Option<CacheOutcome>,
}

impl Ask {
    /// # Errors
    /// 400 for the query, 406 for `Accept`.
    pub(super) fn read(path: &ModelPath, query: Vec<(String, String)>, headers: &HeaderMap) -> Result<Ask, ApiError> {
        let mut query = PredictQuery::parse(query)?;
        if path.version.is_some() && query.version.is_some() && path.version != query.version {
            return Err(invalid_query("the path and ?version= name different versions"));
        }
        query.version = path.version.or(query.version);
        Ok(Ask { query, format: Format::negotiate(headers)? })
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.query.version
    }

    /// Finds what is wrong with a request without running it.
    /// Its body is read where one is given.
    ///
    /// # Errors
    /// What [`answer`] would give, as far as it shows before the run.
    pub(super) async fn check(
        &self,
        state: &HttpState,
        model: &Arc<LoadedModel>,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> Result<(), ApiError> {
        let kind = BodyKind::of(headers, model)?;
        self.format.check(model, &self.query.outputs)?;
        let Some(body) = body else { return Ok(()) };
        read_call(state, model, kind, body).await.map(drop)
    }

    /// The same where the model is not loaded.
    ///
    /// # Errors
    /// 415 for a media type that suits no model.
    pub(super) fn check_unseen(headers: &HeaderMap) -> Result<(), ApiError> {
        BodyKind::check_served(headers)
    }
}

/// Who waits for a prediction.
pub(super) enum AskedBy {
    Client(Option<Sender>),
    /// Nobody, but whoever watches this.
    Job(Progress),
}

/// What is left to do once the model is known. `due` gives the deadline from the request's own `timeout_ms`.
pub(super) async fn answer(
    state: &HttpState,
    model: &Arc<LoadedModel>,
    ask: Ask,
    kind: BodyKind,
    body: Bytes,
    due: impl FnOnce(Option<u64>) -> Result<Instant, ApiError>,
    by: AskedBy,
) -> Result<Answered, ApiError> {
    let Ask { query, format } = ask;
    format.check(model, &query.outputs)?;
    let mut call = read_call(state, model, kind, body).await?;
    query.complete(&mut call);
    let deadline = due(call.timeout_ms)?;
    let id = call.id.take();

    let priority = call.priority.map(u64::from);
    let options = match by {
        AskedBy::Client(sender) => RunOptions { sender, ..RunOptions::until(deadline) }.with_priority(priority),
        // It waits behind those whose client waits for the answer.
        AskedBy::Job(progress) => {
            RunOptions { progress: Some(progress), sender: Some(Sender::Jobs), ..RunOptions::until(deadline) }
                .with_priority(priority.or(Some(u64::MAX)))
        }
    };
    let wants = Wants { raw: query.raw || format.is_binary(), outputs: query.outputs };
    let (answer, timing, cache) = run(&state.engine, model, call, wants, options).await?;

    let size = answer.size();
    let encoded_for = model.clone();
    let bytes = state.compute(size, move || encode::encode(&encoded_for, format, id.as_deref(), &answer)).await??;
    Ok(Answered { format, bytes, timing, cache })
}

async fn read_call(state: &HttpState, model: &Arc<LoadedModel>, kind: BodyKind, body: Bytes) -> Result<Call, ApiError> {
    let limits = Limits::from(&*state.settings);
    if body.len() <= crate::tasks::INLINE_BYTES {
        return parse::parse(model, kind, body, &limits).await;
    }
    let (model, runtime) = (model.clone(), tokio::runtime::Handle::current());
    state.compute(body.len(), move || runtime.block_on(parse::parse(&model, kind, body, &limits))).await?
}

/// What of the answer is wanted.
struct Wants {
    raw: bool,
    /// Empty = all.
    outputs: Vec<String>,
}

/// Tensors are answered by tensors; items by predictions, or by the graph's outputs where these are wanted.
async fn run(
    engine: &InferenceEngine,
    model: &Arc<LoadedModel>,
    call: Call,
    wants: Wants,
    options: RunOptions,
) -> Result<(Answer, Timing, Option<CacheOutcome>), ApiError> {
    let Call { input, parameters, .. } = call;
    match input {
        Input::Tensors(inputs) => {
            if let Some(name) = parameters.keys().next() {
                let field = format!("parameters.{}", clip(name));
                return Err(ApiError::field(field, "tensors are run as they are: no parameters apply to them"));
            }
            let response = engine.infer(model, InferRequest { inputs, outputs: wants.outputs, options }).await?;
            Ok((Answer::Outputs(response.outputs), response.timing, response.cache))
        }
        Input::Items(items) if wants.raw || !wants.outputs.is_empty() => {
            if let Some(name) = wants.outputs.iter().find(|name| !model.outputs.iter().any(|spec| &spec.name == *name))
            {
                return Err(ApiError::field(format!("outputs.{}", clip(name)), "the model has no output of this name"));
            }
            let mut response = engine.predict_raw(model, PredictRequest { items, parameters, options }).await?;
            if !wants.outputs.is_empty() {
                response.outputs.retain(|(name, _)| wants.outputs.contains(name));
            }
            Ok((Answer::Outputs(response.outputs), response.timing, response.cache))
        }
        Input::Items(items) => {
            let response = engine.predict(model, PredictRequest { items, parameters, options }).await?;
            Ok((Answer::Predictions(response.predictions), response.timing, response.cache))
        }
    }
}

/// A foreign name, short enough for an error text.
fn clip(name: &str) -> String {
    name.chars().take(64).collect()
}

impl PredictQuery {
    fn parse(pairs: Vec<(String, String)>) -> Result<PredictQuery, ApiError> {
        let mut query = PredictQuery::default();
        for (key, value) in pairs {
            match key.as_str() {
                "version" => {
                    let version =
                        Version::parse(&value).ok_or_else(|| invalid_query("version must be a number such as 1"))?;
                    query.version = Some(version);
                }
                "raw" => query.raw = query_bool("raw", &value)?,
                "output" => query.outputs.push(value),
                "timeout_ms" => {
                    let millis =
                        value.parse().map_err(|_| invalid_query("timeout_ms must be a whole number of at least 1"))?;
                    query.timeout_ms = Some(millis);
                }
                "id" if value.len() > MAX_ID_BYTES => {
                    return Err(invalid_query(format!("id must be at most {MAX_ID_BYTES} bytes long")));
                }
                "id" => query.id = Some(value),
                _ => {
                    query.parameters.insert(key, scalar(value));
                }
            }
            if query.parameters.len().max(query.outputs.len()) > MAX_QUERY_PARAMETERS {
                return Err(invalid_query(format!(
                    "more than {MAX_QUERY_PARAMETERS} parameters or outputs in the query"
                )));
            }
        }
        Ok(query)
    }

    /// Adds to `call` what its body does not say itself.
    fn complete(&self, call: &mut Call) {
        call.timeout_ms = call.timeout_ms.or(self.timeout_ms);
        call.id = call.id.take().or_else(|| self.id.clone());
        for (name, value) in &self.parameters {
            if !call.parameters.contains_key(name) {
                call.parameters.insert(name.clone(), value.clone());
            }
        }
    }
}

/// `3`, `0.5`, `true` and `null` are what they look like; all else is text.
fn scalar(text: String) -> serde_json::Value {
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(value) if !(value.is_array() || value.is_object() || value.is_string()) => value,
        _ => serde_json::Value::String(text),
    }
}

/// One prediction without a server, for the command line: the same bodies and the same answer as over HTTP.
///
/// `files` are items of a task, or tensors where they end in `.npy`, `.npz` or `.safetensors`; `json` is a whole body with
/// `inputs`, or the inputs alone.
///
/// # Errors
/// The text that a client would get as `detail`.
pub async fn predict_offline(
    engine: &InferenceEngine,
    model: &ModelName,
    version: Option<Version>,
    files: Vec<(PathBuf, Bytes)>,
    text: Option<String>,
    json: Option<String>,
    parameters: Parameters,
) -> Result<String, String> {
    /// Nobody waits behind a command.
    const TIMEOUT: Duration = Duration::from_secs(3600);
    let describe = |error: EngineError| {
        if error.kind() == ErrorKind::Internal { error.internal_detail() } else { error.to_string() }
    };
    let model = engine.model(model, version).await.map_err(describe)?;
    let limits = Limits::from(&HttpSettings::default());
    let mut call =
        parse::offline(&model, files, text, json, &limits).await.map_err(|error| error.detail().to_owned())?;
    call.parameters.extend(parameters);
    let id = call.id.clone();
    let timeout = call.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
    let wants = Wants { raw: false, outputs: Vec::new() };
    let (answer, ..) = run(engine, &model, call, wants, RunOptions::until(Instant::now() + timeout))
        .await
        .map_err(|error| error.internal_detail().unwrap_or(error.detail()).to_owned())?;
    let bytes =
        encode::encode(&model, Format::Json, id.as_deref(), &answer).map_err(|error| error.detail().to_owned())?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// The tensors of a file for `model`, for the command line: `.npy`, `.npz`, `.safetensors`, or JSON as a request has it.
///
/// # Errors
/// The text that a client would get as `detail`; where the file holds items of a task.
pub async fn tensors_offline(model: &LoadedModel, file: PathBuf, bytes: Bytes) -> Result<Vec<(String, Value)>, String> {
    let limits = Limits::from(&HttpSettings::default());
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let (files, json) = if is_json {
        (Vec::new(), Some(String::from_utf8(bytes.into()).map_err(|_| "the file is not UTF-8 text".to_owned())?))
    } else {
        (vec![(file, bytes)], None)
    };
    let call = parse::offline(model, files, None, json, &limits).await.map_err(|error| error.detail().to_owned())?;
    match call.input {
        Input::Tensors(values) => Ok(values),
        Input::Items(_) => {
            Err("the file holds input for the model's task; give tensors as .npy, .npz or .safetensors".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn query(pairs: &[(&str, &str)]) -> Result<PredictQuery, ApiError> {
        PredictQuery::parse(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn unlisted_query_keys_are_parameters() {
        let query = query(&[
            ("top_k", "3"),
            ("raw", "true"),
            ("version", "2"),
            ("function", "none"),
            ("x", "[1]"),
            ("y", "\"a\""),
        ]);
        let query = query.unwrap();
        assert!(query.raw);
        assert_eq!(query.version, Some(Version(2)));
        assert_eq!(
            serde_json::Value::Object(query.parameters),
            json!({"top_k": 3, "function": "none", "x": "[1]", "y": "\"a\""})
        );
    }

    #[test]
    fn a_wrong_query_value_is_refused() {
        for pair in [("version", "x"), ("version", "01"), ("raw", "maybe"), ("timeout_ms", "-1"), ("timeout_ms", "1.5")]
        {
            assert_eq!(query(&[pair]).unwrap_err().code(), "invalid_query", "{pair:?}");
        }
        let many: Vec<String> = (0..40).map(|index| format!("p{index}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
        assert!(query(&many).is_err());
    }

    #[test]
    fn the_body_counts_where_the_query_says_the_same() {
        let query = query(&[("top_k", "3"), ("id", "q"), ("timeout_ms", "5")]).unwrap();
        let mut call = Call {
            input: Input::Items(vec![]),
            parameters: Parameters::new(),
            id: Some("b".into()),
            timeout_ms: None,
            priority: None,
        };
        call.parameters.insert("top_k".into(), json!(1));
        query.complete(&mut call);
        assert_eq!((call.id.as_deref(), call.timeout_ms, &call.parameters["top_k"]), (Some("b"), Some(5), &json!(1)));
    }

    /// Answers `model` gives to one body.
    async fn ask(
        model: &Arc<LoadedModel>,
        query: &[(&str, &str)],
        media_type: &str,
        accept: &str,
        body: &[u8],
    ) -> (u16, Bytes) {
        use axum::response::IntoResponse;
        use http_body_util::BodyExt;
        let tasks = crate::tasks::Tasks::new();
        let engine = crate::engine::testing::engine(&tasks);
        let jobs = crate::jobs::Jobs::new(Default::default(), std::path::Path::new("/nonexistent"), tasks.clone());
        let downloads = crate::downloads::testing::none(&tasks);
        let folder = std::path::Path::new("/nonexistent");
        let optimizer = crate::optimize::Optimizer::new(engine.clone(), downloads.clone(), folder, tasks.clone());
        let settings = Arc::new(HttpSettings::default());
        let auth = crate::auth::Gate::none(tasks.clone());
        let streams = crate::http::streams::Streams::new(1);
        let bodies = settings.in_flight_bytes();
        let state = HttpState { auth, engine, jobs, downloads, optimizer, settings, tasks, tls: None, bodies, streams };
        let request = Request::builder().header("content-type", media_type).header("accept", accept);
        let headers = request.body(axum::body::Body::empty()).unwrap().into_parts().0.headers;
        let body = Bytes::copy_from_slice(body);
        let ask = Ask { query: self::query(query).unwrap(), format: Format::negotiate(&headers).unwrap() };
        let due = |timeout_ms| deadline(crate::http::middleware::Arrival(Instant::now()), timeout_ms, &state.settings);
        let result = async {
            let kind = BodyKind::of(&headers, model)?;
            answer(&state, model, ask, kind, body, due, AskedBy::Client(None)).await
        };
        let result = result.await;
        let response = match result {
            Ok(answered) => encode::response(answered.format, answered.bytes, &answered.timing),
            Err(error) => (error.status(), error.detail().to_owned()).into_response(),
        };
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    /// Gives its input `x` back as `y`, and its double as `z`.
    fn echo(tasks: &crate::tasks::Tasks) -> Arc<LoadedModel> {
        use crate::tensor::{DType, Dim, Spec, Tensor, ValueType};
        let spec = |name: &str| Spec {
            name: name.to_owned(),
            ty: ValueType::Tensor { dtype: DType::Fp32, shape: Some(vec![Dim::Dynamic(None)]) },
            optional: false,
        };
        crate::engine::testing::model(tasks, vec![spec("x")], vec![spec("y"), spec("z")], |inputs, outputs, _| {
            let tensor = inputs[0].1.as_tensor().unwrap();
            let doubled: Vec<f32> = tensor.to_f32().unwrap().iter().map(|x| x * 2.0).collect();
            let doubled = Tensor::from_vec(DType::Fp32, tensor.shape().to_vec(), doubled).unwrap();
            Ok(outputs
                .iter()
                .map(|&index| if index == 0 { tensor.clone().into() } else { doubled.clone().into() })
                .collect())
        })
    }

    #[tokio::test]
    async fn tensors_are_answered_by_tensors_in_the_format_asked_for() {
        let tasks = crate::tasks::Tasks::new();
        let model = echo(&tasks);
        let (json, npy, npz, safetensors) =
            ("application/json", "application/x-npy", "application/x-npz", "application/vnd.safetensors");
        let body = br#"{"inputs": {"x": [0.5, "NaN"]}, "id": "a"}"#;
        let (status, bytes) = ask(&model, &[], json, "*/*", body).await;
        let expected = r#"{"model":"fake","version":"1","id":"a","outputs":{"y":[0.5,"NaN"],"z":[1.0,"NaN"]}}"#;
        assert_eq!((status, std::str::from_utf8(&bytes).unwrap()), (200, expected));

        let (status, array) = ask(&model, &[("output", "z")], json, npy, body).await;
        assert_eq!((status, array.get(..6)), (200, Some(&b"\x93NUMPY"[..])));
        let (status, bytes) = ask(&model, &[("output", "y")], npy, json, &array).await;
        assert_eq!((status, bytes), (200, r#"{"model":"fake","version":"1","outputs":{"y":[1.0,"NaN"]}}"#.into()));

        for format in [npz, safetensors] {
            let (status, bytes) = ask(&model, &[], json, format, body).await;
            assert_eq!(status, 200, "{bytes:?}");
            // Its arrays are called y and z: the model has no such inputs.
            let (status, problem) = ask(&model, &[], format, json, &bytes).await;
            assert_eq!(status, 422, "{problem:?}");
        }
        let form = "--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n[1]\r\n--b--\r\n";
        let (status, bytes) = ask(&model, &[], "multipart/form-data; boundary=b", json, form.as_bytes()).await;
        assert_eq!((status, bytes), (200, r#"{"model":"fake","version":"1","outputs":{"y":[1.0],"z":[2.0]}}"#.into()));
    }

    #[tokio::test]
    async fn large_bodies_and_answers_are_whole() {
        let tasks = crate::tasks::Tasks::new();
        let model = echo(&tasks);
        let values = vec!["0.25"; 100_000].join(",");
        let (status, bytes) =
            ask(&model, &[], "application/json", "*/*", format!("{{\"inputs\":[{values}]}}").as_bytes()).await;
        assert_eq!((status, bytes.iter().filter(|&&byte| byte == b',').count()), (200, 2 * 99_999 + 3));
    }

    #[tokio::test]
    async fn what_does_not_suit_the_model_is_refused() {
        let tasks = crate::tasks::Tasks::new();
        let model = echo(&tasks);
        let good = r#"{"inputs": [1]}"#;
        for (query, media_type, accept, body, expected) in [
            (("raw", "0"), "image/png", "*/*", "x", 415),
            (("raw", "0"), "application/octet-stream", "*/*", "x", 415),
            (("raw", "0"), "multipart/form-data", "*/*", "x", 400),
            (("raw", "0"), "application/json", "*/*", "{", 400),
            (("raw", "0"), "application/json", "*/*", r#"{"inputs": {"w": [1]}}"#, 422),
            (("raw", "0"), "application/json", "*/*", r#"{"inputs": [[1]]}"#, 422),
            (("raw", "0"), "application/json", "*/*", r#"{"inputs": [1], "timeout_ms": 0}"#, 422),
            (("top_k", "3"), "application/json", "*/*", good, 422),
            (("output", "w"), "application/json", "*/*", good, 422),
            (("raw", "0"), "application/json", "application/x-npy", good, 406),
            (("raw", "0"), "application/x-npy", "*/*", "junk", 400),
            (("raw", "0"), "application/x-npz", "*/*", "junk", 400),
            (("raw", "0"), "application/vnd.safetensors", "*/*", "junk", 400),
        ] {
            let (status, bytes) = ask(&model, &[query], media_type, accept, body.as_bytes()).await;
            // A timeout of 0 is refused by the codec as malformed or by the deadline as unprocessable.
            let fine = status == expected || (body.contains("timeout_ms") && status == 400);
            assert!(fine, "{query:?} {media_type} {accept} {body}: {status} {bytes:?}");
        }
    }
}

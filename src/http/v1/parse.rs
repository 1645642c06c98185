//! A prediction's body, by its media type, to what the engine takes.
//!
//! Invariant: whether a media type suits the model is decided from the request's head, before a body is read.

use super::multipart;
use crate::codec::json::{self, JsonLimits, PredictInput, Target};
use crate::codec::{npy, safetensors};
use crate::engine::{Item, LoadedModel, Parameters};
use crate::http::HttpSettings;
use crate::http::error::ApiError;
use crate::http::extract::content_type;
use crate::tensor::{Tensor, Value};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use std::path::PathBuf;

/// What the media type says the body is.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::http) enum BodyKind {
    Json,
    /// A form; the whole header, for its boundary.
    Multipart(HeaderValue),
    /// One encoded picture or sound.
    File,
    /// One text.
    Text,
    Npy,
    Npz,
    Safetensors,
}

/// Bounds on what is read.
#[derive(Debug, Clone)]
pub(in crate::http) struct Limits {
    json: JsonLimits,
    /// Bytes that an archive may unpack to.
    unpacked_bytes: usize,
}

impl From<&HttpSettings> for Limits {
    fn from(settings: &HttpSettings) -> Limits {
        Limits { json: JsonLimits::from(&settings.limits), unpacked_bytes: settings.max_body_bytes }
    }
}

/// A request to predict.
#[derive(Debug)]
pub(in crate::http) struct Call {
    pub(in crate::http) input: Input,
    pub(in crate::http) parameters: Parameters,
    pub(super) id: Option<String>,
    pub(super) timeout_ms: Option<u64>,
    pub(super) priority: Option<u32>,
}

#[derive(Debug)]
pub(in crate::http) enum Input {
    Items(Vec<Item>),
    Tensors(Vec<(String, Value)>),
}

impl Limits {
    pub(in crate::http) fn json(&self) -> &JsonLimits {
        &self.json
    }
}

impl Call {
    fn new(input: Input) -> Call {
        Call { input, parameters: Parameters::new(), id: None, timeout_ms: None, priority: None }
    }
}

/// What the items of a task are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Modality {
    Image,
    Audio,
    Text,
    Other,
}

fn modality(task: &str) -> Modality {
    if task.contains("image") || matches!(task, "object-detection" | "depth-estimation" | "mask-generation") {
        return Modality::Image;
    }
    if ["audio", "speech", "voice"].iter().any(|word| task.contains(word)) {
        return Modality::Audio;
    }
    let is_text = task.starts_with("text") || task.contains("question") || task.contains("token");
    if is_text
        || matches!(task, "feature-extraction" | "sentence-similarity" | "fill-mask" | "zero-shot-classification")
    {
        return Modality::Text;
    }
    Modality::Other
}

/// Whether the items of the model's task are pictures or sounds.
pub(in crate::http) fn takes_files(model: &LoadedModel) -> bool {
    matches!(modality_of(model), Some(Modality::Image | Modality::Audio))
}

/// Whether they are texts.
pub(in crate::http) fn takes_texts(model: &LoadedModel) -> bool {
    modality_of(model) == Some(Modality::Text)
}

/// `None`: the model has no task.
fn modality_of(model: &LoadedModel) -> Option<Modality> {
    model.pipeline.as_ref().map(|pipeline| modality(pipeline.task()))
}

impl BodyKind {
    /// # Errors
    /// 415 for a media type that is not served or does not suit the model, saying what does.
    pub(super) fn of(headers: &HeaderMap, model: &LoadedModel) -> Result<BodyKind, ApiError> {
        let task = model.pipeline.as_ref().map(|pipeline| pipeline.task());
        BodyKind::for_task(headers, task).map_err(|problem| {
            let text = format!("model '{}': {problem}", model.name);
            ApiError::unsupported_media(text).with_header(header::ACCEPT, HeaderValue::from_static(accepted(task)))
        })
    }

    /// For a model that is not known yet.
    ///
    /// # Errors
    /// 415 for a media type that suits no model.
    pub(super) fn check_served(headers: &HeaderMap) -> Result<(), ApiError> {
        // One task of each kind of file that is taken, and none.
        let tasks = [None, Some("image-classification"), Some("audio-classification"), Some("text-classification")];
        let served = tasks.map(|task| BodyKind::for_task(headers, task));
        let refused = |problem: &String| ApiError::unsupported_media(problem.clone());
        match &served {
            [Err(problem), rest @ ..] if rest.iter().all(Result::is_err) => Err(refused(problem)),
            _ => Ok(()),
        }
    }

    fn for_task(headers: &HeaderMap, task: Option<&str>) -> Result<BodyKind, String> {
        let served = accepted(task);
        let Some(media_type) = content_type(headers) else {
            return Err(format!("the request has no Content-Type; send one of {served}"));
        };
        let kind = match media_type.as_str() {
            "application/json" => return Ok(BodyKind::Json),
            "application/x-npy" => return Ok(BodyKind::Npy),
            "application/x-npz" => return Ok(BodyKind::Npz),
            "application/vnd.safetensors" => return Ok(BodyKind::Safetensors),
            "multipart/form-data" => {
                // It was there a moment ago.
                let value = headers.get(header::CONTENT_TYPE).cloned();
                return Ok(BodyKind::Multipart(value.unwrap_or(HeaderValue::from_static("multipart/form-data"))));
            }
            "text/plain" => (BodyKind::Text, Modality::Text),
            _ if media_type.starts_with("image/") => (BodyKind::File, Modality::Image),
            _ if media_type.starts_with("audio/") => (BodyKind::File, Modality::Audio),
            "application/octet-stream" => {
                return Err(format!("application/octet-stream does not say what the bytes are; send one of {served}"));
            }
            "application/x-www-form-urlencoded" => {
                return Err(format!(
                    "a form is not served (curl -d sends one unless -H names a type); send one of {served}"
                ));
            }
            _ => return Err(format!("this Content-Type is not served; send one of {served}")),
        };
        let (kind, brings) = kind;
        let Some(task) = task else {
            return Err(format!(
                "{} is not what a model without a task takes; send tensors as one of {served}",
                noun(brings)
            ));
        };
        let takes = modality(task);
        if takes == brings || takes == Modality::Other {
            return Ok(kind);
        }
        Err(format!("{} is not what its task {task} takes; send one of {served}", noun(brings)))
    }
}

fn noun(modality: Modality) -> &'static str {
    match modality {
        Modality::Image => "a picture",
        Modality::Audio => "a sound",
        Modality::Text => "a text",
        Modality::Other => "this",
    }
}

/// The media types that suit a task, for texts and the `Accept` header of a refusal.
fn accepted(task: Option<&str>) -> &'static str {
    const TENSORS: &str =
        "application/json, multipart/form-data, application/x-npy, application/x-npz, application/vnd.safetensors";
    match task.map(modality) {
        None => TENSORS,
        Some(Modality::Image) => "application/json, multipart/form-data, image/*",
        Some(Modality::Audio) => "application/json, multipart/form-data, audio/*",
        Some(Modality::Text) => "application/json, multipart/form-data, text/plain",
        Some(Modality::Other) => "application/json, multipart/form-data, image/*, audio/*, text/plain",
    }
}

/// Reads `body`, which is complete: nothing is waited for. Computing: large bodies are read off the async threads.
///
/// # Errors
/// As the codecs' own.
pub(in crate::http) async fn parse(
    model: &LoadedModel,
    kind: BodyKind,
    body: Bytes,
    limits: &Limits,
) -> Result<Call, ApiError> {
    match kind {
        BodyKind::Json => parse_json(model, &body, limits),
        BodyKind::Multipart(content_type) => parse_form(model, body, content_type, limits).await,
        BodyKind::File if body.is_empty() => Err(ApiError::field("inputs", "the body is empty")),
        BodyKind::File => Ok(Call::new(Input::Items(vec![Item::Bytes(body)]))),
        BodyKind::Text => match std::str::from_utf8(&body) {
            Ok(text) => Ok(Call::new(Input::Items(vec![Item::Text(text.to_owned())]))),
            Err(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", "the text is not UTF-8")),
        },
        BodyKind::Npy => Ok(Call::new(Input::Tensors(vec![parse_npy(model, &body, limits)?]))),
        BodyKind::Npz => {
            Ok(Call::new(named(npy::read_archive(&body, limits.json.max_elements, limits.unpacked_bytes)?)))
        }
        BodyKind::Safetensors => Ok(Call::new(named(safetensors::read(&body, limits.json.max_elements)?))),
    }
}

/// What the codecs need to know of a model.
pub(in crate::http) fn target(model: &LoadedModel) -> Target<'_> {
    let records = model.pipeline.as_ref().is_some_and(|pipeline| pipeline.takes_records());
    Target { inputs: &model.inputs, task: model.pipeline.is_some(), records }
}

fn parse_json(model: &LoadedModel, body: &Bytes, limits: &Limits) -> Result<Call, ApiError> {
    let body = json::parse_predict(body, &target(model), &limits.json)?;
    Ok(Call {
        input: input(body.inputs),
        parameters: body.parameters,
        id: body.id,
        timeout_ms: body.timeout_ms,
        priority: body.priority,
    })
}

fn input(inputs: PredictInput) -> Input {
    match inputs {
        PredictInput::Tensors(values) => Input::Tensors(values),
        PredictInput::Items { items, .. } => Input::Items(items),
    }
}

async fn parse_form(
    model: &LoadedModel,
    body: Bytes,
    content_type: HeaderValue,
    limits: &Limits,
) -> Result<Call, ApiError> {
    let mut request = Request::new(Body::from(body));
    request.headers_mut().insert(header::CONTENT_TYPE, content_type);
    // The body has been read within our own limit.
    DefaultBodyLimit::disable().apply(&mut request);
    let form = Multipart::from_request(request, &()).await.map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "malformed_body",
            format!("the form cannot be read: {}", error.body_text()),
        )
    })?;
    let form = multipart::read(form, &target(model), &limits.json).await?;
    Ok(Call {
        input: input(form.inputs),
        parameters: form.parameters,
        id: form.id,
        timeout_ms: form.timeout_ms,
        priority: form.priority,
    })
}

/// A `.npy` has no name: it is for a model with one input.
fn parse_npy(model: &LoadedModel, body: &Bytes, limits: &Limits) -> Result<(String, Value), ApiError> {
    let mut required = model.inputs.iter().filter(|spec| !spec.optional);
    let (Some(spec), None) = (required.next().or(model.inputs.first()), required.next()) else {
        let names: Vec<&str> = model.inputs.iter().take(16).map(|spec| spec.name.as_str()).collect();
        let problem = format!(
            "a .npy holds one tensor, the model has inputs {}; send a .npz with one array for each",
            names.join(", ")
        );
        return Err(ApiError::field("inputs", problem));
    };
    let tensor = npy::read(&format!("inputs.{}", spec.name), body, limits.json.max_elements)?;
    Ok((spec.name.clone(), Value::Tensor(tensor)))
}

fn named(tensors: Vec<(String, Tensor)>) -> Input {
    Input::Tensors(tensors.into_iter().map(|(name, tensor)| (name, Value::Tensor(tensor))).collect())
}

/// The same for the command line: `files` by their extensions, or a text, or JSON.
///
/// # Errors
/// As [`parse`]; where nothing or more than one kind of input is given.
pub(super) async fn offline(
    model: &LoadedModel,
    files: Vec<(PathBuf, Bytes)>,
    text: Option<String>,
    json: Option<String>,
    limits: &Limits,
) -> Result<Call, ApiError> {
    let has_task = model.pipeline.is_some();
    match (files.is_empty(), text, json) {
        (true, None, Some(json)) => parse_json(model, &whole_body(json), limits),
        (true, Some(text), None) if has_task => Ok(Call::new(Input::Items(vec![Item::Text(text)]))),
        (true, Some(_), None) => {
            Err(ApiError::field("text", "the model takes tensors: give --json or a .npy, .npz or .safetensors file"))
        }
        (false, None, None) => offline_files(model, files, limits).await,
        (true, None, None) => Err(ApiError::field("inputs", "give a file, --text or --json")),
        _ => Err(ApiError::field("inputs", "give only one of files, --text and --json")),
    }
}

/// `json` as it is where it is a body, else as the inputs of one.
fn whole_body(json: String) -> Bytes {
    let is_body = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&json)
        .is_ok_and(|body| body.contains_key("inputs"));
    if is_body { json.into() } else { format!("{{\"inputs\":{json}}}").into() }
}

async fn offline_files(model: &LoadedModel, files: Vec<(PathBuf, Bytes)>, limits: &Limits) -> Result<Call, ApiError> {
    let kind_of = |path: &PathBuf| match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => Some(BodyKind::Npy),
        Some("npz") => Some(BodyKind::Npz),
        Some("safetensors") => Some(BodyKind::Safetensors),
        _ => None,
    };
    let first = files.first().and_then(|(path, _)| kind_of(path));
    match (first, files.len()) {
        (Some(kind), 1) => {
            let (_, body) = files.into_iter().next().ok_or_else(|| ApiError::internal("no file"))?;
            parse(model, kind, body, limits).await
        }
        (Some(_), _) => Err(ApiError::field("inputs", "give one file of tensors; a .npz holds several by name")),
        (None, _) if model.pipeline.is_none() => {
            Err(ApiError::field("inputs", "the model takes tensors: give a .npy, .npz or .safetensors file, or --json"))
        }
        (None, _) => Ok(Call::new(Input::Items(files.into_iter().map(|(_, bytes)| Item::Bytes(bytes)).collect()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(task: Option<&str>, media_type: &str, expected: Result<BodyKind, &str>) {
        let mut headers = HeaderMap::new();
        if !media_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(media_type).unwrap());
        }
        match (BodyKind::for_task(&headers, task), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}"),
            (got, expected) => panic!("{media_type}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_media_type_that_does_not_suit_the_model_is_refused_with_what_does() {
        let image = Some("image-classification");
        check(image, "image/jpeg", Ok(BodyKind::File));
        check(image, "IMAGE/PNG", Ok(BodyKind::File));
        check(
            image,
            "audio/wav",
            Err(
                "a sound is not what its task image-classification takes; send one of application/json, multipart/form-data, image/*",
            ),
        );
        check(image, "text/plain", Err("a text is not what its task"));
        check(image, "application/json; charset=utf-8", Ok(BodyKind::Json));
        check(image, "application/x-npy", Ok(BodyKind::Npy));
        check(
            None,
            "image/jpeg",
            Err("a picture is not what a model without a task takes; send tensors as one of application/json"),
        );
        check(None, "application/x-npz", Ok(BodyKind::Npz));
        check(None, "application/vnd.safetensors", Ok(BodyKind::Safetensors));
        check(None, "application/octet-stream", Err("does not say what the bytes are"));
        check(None, "application/x-www-form-urlencoded", Err("curl -d"));
        check(None, "text/html", Err("not served"));
        check(None, "", Err("no Content-Type"));
        check(Some("text-classification"), "text/plain; charset=utf-8", Ok(BodyKind::Text));
        check(Some("automatic-speech-recognition"), "audio/wav", Ok(BodyKind::File));
    }

    #[test]
    fn the_command_line_takes_a_whole_body_or_the_inputs_alone() {
        for (given, expected) in [
            ("[1]", r#"{"inputs":[1]}"#),
            (r#"{"inputs":[1]}"#, r#"{"inputs":[1]}"#),
            (r#"{"x":1}"#, r#"{"inputs":{"x":1}}"#),
        ] {
            assert_eq!(whole_body(given.to_owned()), expected);
        }
    }
}

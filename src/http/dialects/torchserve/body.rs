//! What clients of TorchServe send to a model: bytes whose media type says little, a form with a field `data` or `body`, JSON.
//!
//! `curl -T` names no type and `curl --data-binary` that of a form, so the task of the model and the first bytes say what a
//! body is. Bounds are those of the native bodies.

use crate::codec::json::{Instances, PredictInput, parse_instances};
use crate::codec::npy;
use crate::engine::{LoadedModel, Parameters};
use crate::http::error::ApiError;
use crate::http::v1::parse::{self, BodyKind, Input, Limits, target};
use axum::body::Body;
use axum::extract::multipart::Multipart;
use axum::extract::{DefaultBodyLimit, Form, FromRequest, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use bytes::Bytes;

/// Fields of a form.
const FIELDS_MAX: usize = 16;
/// The fields that hold what is predicted on, as TorchServe's handlers look for them.
const FIELDS: [&str; 3] = ["data", "body", "file"];

/// What a body asks for.
#[derive(Debug)]
pub(in crate::http::dialects) struct Asked {
    pub(in crate::http::dialects) input: Input,
    pub(in crate::http::dialects) parameters: Parameters,
    pub(in crate::http::dialects) form: AnswerForm,
}

/// Which form the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::dialects) enum AnswerForm {
    /// That of the one item.
    One,
    /// A list, one for each item.
    List,
    /// The same under `predictions`.
    Envelope,
}

/// A body and what its head says of it, in lower case.
struct Part {
    media_type: Option<String>,
    bytes: Bytes,
}

/// Reads a body of `/predictions`. Computing: large bodies are read off the async threads.
///
/// # Errors
/// As the codecs' own; where a form has no field that is predicted on.
pub(in crate::http::dialects) async fn read(
    model: &LoadedModel,
    content_type: Option<&HeaderValue>,
    bytes: Bytes,
    limits: &Limits,
) -> Result<Asked, ApiError> {
    let media_type = content_type.and_then(|value| value.to_str().ok()).and_then(essence);
    let part = match (media_type.as_deref(), content_type) {
        (Some("multipart/form-data"), Some(content_type)) => field_of(bytes, content_type).await?,
        (Some("application/x-www-form-urlencoded"), _) => value_of(bytes).await,
        _ => Part { media_type, bytes },
    };
    let kind = match part.media_type.as_deref() {
        Some("application/json") => None,
        Some("application/x-npy") => Some(BodyKind::Npy),
        Some("application/x-npz") => Some(BodyKind::Npz),
        Some("application/vnd.safetensors") => Some(BodyKind::Safetensors),
        _ => told_by_content(model, &part.bytes),
    };
    match kind {
        None => read_json(model, &part.bytes, limits),
        // A text may begin as JSON does.
        Some(BodyKind::Text) if first_byte(&part.bytes) == Some(b'{') => match read_json(model, &part.bytes, limits) {
            Err(_) => read_as(model, BodyKind::Text, part.bytes, limits).await,
            asked => asked,
        },
        Some(kind) => read_as(model, kind, part.bytes, limits).await,
    }
}

/// Reads JSON, whatever its media type.
///
/// # Errors
/// As the codec's own.
pub(in crate::http::dialects) fn read_json(
    model: &LoadedModel,
    bytes: &Bytes,
    limits: &Limits,
) -> Result<Asked, ApiError> {
    let parsed = parse_instances(bytes, &target(model), parse::takes_files(model), limits.json())?;
    let Instances { inputs, parameters, in_envelope } = parsed;
    let (input, single) = match inputs {
        // Of tensors the answer is the output as it is, which has its rows.
        PredictInput::Tensors(values) => (Input::Tensors(values), true),
        PredictInput::Items { items, single } => (Input::Items(items), single),
    };
    let form = match (in_envelope, single) {
        (true, _) => AnswerForm::Envelope,
        (false, true) => AnswerForm::One,
        (false, false) => AnswerForm::List,
    };
    Ok(Asked { input, parameters, form })
}

async fn read_as(model: &LoadedModel, kind: BodyKind, bytes: Bytes, limits: &Limits) -> Result<Asked, ApiError> {
    let call = parse::parse(model, kind, bytes, limits).await?;
    Ok(Asked { input: call.input, parameters: call.parameters, form: AnswerForm::One })
}

/// `None`: JSON.
fn told_by_content(model: &LoadedModel, bytes: &Bytes) -> Option<BodyKind> {
    if model.pipeline.is_none() {
        return match bytes.get(..4) {
            _ if npy::is_npy(bytes) => Some(BodyKind::Npy),
            Some(b"PK\x03\x04") => Some(BodyKind::Npz),
            _ => None,
        };
    }
    // No picture and no sound begins so.
    let is_json = matches!(first_byte(bytes), Some(b'{' | b'[' | b'"'));
    match (parse::takes_files(model), parse::takes_texts(model)) {
        (true, _) => (!is_json).then_some(BodyKind::File),
        (false, true) => Some(BodyKind::Text),
        (false, false) => None,
    }
}

fn first_byte(bytes: &[u8]) -> Option<u8> {
    bytes.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

fn essence(content_type: &str) -> Option<String> {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!essence.is_empty()).then_some(essence)
}

/// The field of a form that is predicted on.
async fn field_of(bytes: Bytes, content_type: &HeaderValue) -> Result<Part, ApiError> {
    let malformed = |detail: String| {
        let detail = format!("the form cannot be read: {detail}");
        ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", detail)
    };
    let mut request = Request::new(Body::from(bytes));
    request.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    // The body has been read within our own limit.
    DefaultBodyLimit::disable().apply(&mut request);
    let form = Multipart::from_request(request, &()).await;
    let mut form = form.map_err(|error| malformed(error.body_text()))?;
    let mut found = None;
    for _ in 0..FIELDS_MAX {
        let Some(field) = form.next_field().await.map_err(|error| malformed(error.body_text()))? else {
            return found.ok_or_else(|| ApiError::field("data", "the form has no field data, body or file"));
        };
        let name = field.name().unwrap_or_default().to_owned();
        if !FIELDS.contains(&name.as_str()) || found.is_some() {
            let name: String = name.chars().take(64).collect();
            let problem = "a form has one field, data, body or file; for several inputs send JSON with their names";
            return Err(ApiError::field(name, problem));
        }
        let media_type = field.content_type().and_then(essence);
        let bytes = field.bytes().await.map_err(|error| malformed(error.body_text()))?;
        found = Some(Part { media_type, bytes });
    }
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the form has too many fields"))
}

/// The value of `data=…` or `body=…`; where there is none it was no form, whatever curl says.
async fn value_of(bytes: Bytes) -> Part {
    let whole = Part { media_type: None, bytes: bytes.clone() };
    let is_field = |field: &&str| bytes.strip_prefix(field.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    // One field, so that nothing grows while it is read.
    if !FIELDS.iter().any(is_field) || bytes.contains(&b'&') {
        return whole;
    }
    let mut request = Request::new(Body::from(bytes));
    // Of a GET the query would be read.
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    DefaultBodyLimit::disable().apply(&mut request);
    match Form::<Vec<(String, String)>>::from_request(request, &()).await {
        Ok(Form(fields)) => {
            fields.into_iter().next().map_or(whole, |(_, value)| Part { media_type: None, bytes: value.into() })
        }
        Err(_) => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_form_is_one_where_it_has_the_field() {
        for (body, expected) in [
            ("data=a+b%21", "a b!"),
            ("body=x", "x"),
            ("a text", "a text"),
            ("data is a word", "data is a word"),
            ("other=1", "other=1"),
            ("data=a&data=b", "data=a&data=b"),
        ] {
            assert_eq!(value_of(Bytes::from_static(body.as_bytes())).await.bytes, expected, "{body}");
        }
        // What holds bytes of a file is that file.
        let bytes = Bytes::from_static(b"\x89PNG&data=");
        assert_eq!(value_of(bytes.clone()).await.bytes, bytes);
    }

    #[tokio::test]
    async fn a_form_with_files_has_one_field() {
        let content_type = HeaderValue::from_static("multipart/form-data; boundary=x");
        let field = |name: &str| format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\nhi\r\n");
        let read = async |fields: &[&str]| {
            let body = fields.iter().map(|name| field(name)).collect::<String>() + "--x--\r\n";
            field_of(body.into(), &content_type).await.map(|part| part.bytes).map_err(|error| error.detail().to_owned())
        };
        assert_eq!(read(&["data"]).await, Ok(Bytes::from_static(b"hi")));
        assert_eq!(read(&["body"]).await, Ok(Bytes::from_static(b"hi")));
        for (fields, part) in
            [(&["image"][..], "image: a form has one field"), (&["data", "body"], "body: a form has"), (&[], "data: ")]
        {
            let error = read(fields).await.unwrap_err();
            assert!(error.starts_with(part), "{error}");
        }
    }
}

//! The model repository extension: which models there are, loading and unloading.

use super::error::V2Error;
use crate::codec::json::{JsonLimits, parse_object};
use crate::engine::LoadOverrides;
use crate::http::extract::ModelPath;
use crate::http::{HttpState, body};
use crate::protocol::{self, IndexEntry, check_overrides};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

/// `POST /v2/repository[/{repository}]/index`
pub(super) async fn index(State(state): State<HttpState>, body: Body) -> Result<Json<Vec<IndexEntry>>, V2Error> {
    let request = read_object(&state, body).await?;
    let only_ready = flag(&request, "ready", "ready")?;
    Ok(Json(protocol::index(&state.engine, only_ready)))
}

/// `POST /v2/repository[/{repository}]/models/{name}/load`: answers when the model is ready, or says why it is not.
pub(super) async fn load(State(state): State<HttpState>, path: ModelPath, body: Body) -> Result<StatusCode, V2Error> {
    let request = read_object(&state, body).await?;
    let overrides = overrides_of(parameters_of(&request)?)?;
    state.engine.load(&path.name, overrides).await?;
    Ok(StatusCode::OK)
}

/// `POST /v2/repository[/{repository}]/models/{name}/unload`: answers when the memory is free.
pub(super) async fn unload(State(state): State<HttpState>, path: ModelPath, body: Body) -> Result<StatusCode, V2Error> {
    let request = read_object(&state, body).await?;
    // No model depends on another here, so both values mean the same.
    if let Some(parameters) = parameters_of(&request)? {
        flag(parameters, "unload_dependents", "parameters.unload_dependents")?;
    }
    state.engine.unload(&path.name).await?;
    Ok(StatusCode::OK)
}

/// The body as an object; an empty one is an object without keys.
async fn read_object(state: &HttpState, body: Body) -> Result<Map<String, Value>, V2Error> {
    let bytes = body::read(body, &state.settings, 0).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    Ok(parse_object(&bytes, "the body", &JsonLimits::from(&state.settings.limits))?)
}

fn parameters_of(request: &Map<String, Value>) -> Result<Option<&Map<String, Value>>, V2Error> {
    match request.get("parameters") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(parameters)) => Ok(Some(parameters)),
        Some(_) => Err(V2Error::invalid("malformed_body", "parameters must be an object")),
    }
}

/// The flag `key`; not set where it is absent.
fn flag(object: &Map<String, Value>, key: &str, field: &str) -> Result<bool, V2Error> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(V2Error::invalid("malformed_body", format!("{field} must be true or false"))),
    }
}

/// `config` and `file:<version>/<name>` of a load.
fn overrides_of(parameters: Option<&Map<String, Value>>) -> Result<LoadOverrides, V2Error> {
    let mut overrides = LoadOverrides { config_json: None, files: Vec::new() };
    for (name, value) in parameters.into_iter().flatten() {
        let shown: String = name.chars().take(64).collect();
        let refuse =
            |problem: &str| Err(V2Error::invalid("invalid_parameter", format!("parameters.{shown}: {problem}")));
        match (name.as_str(), name.strip_prefix("file:"), value) {
            ("config", _, Value::String(config)) => overrides.config_json = Some(config.clone()),
            ("config", _, _) => return refuse("must be the model configuration as JSON text in a string"),
            (_, Some(path), Value::String(encoded)) => {
                let Ok(content) = STANDARD.decode(encoded) else {
                    return refuse("must be the file's content in base64");
                };
                overrides.files.push((path.to_owned(), Bytes::from(content)));
            }
            (_, Some(_), _) => return refuse("must be the file's content in base64, as a string"),
            (_, None, _) => return refuse("a load takes config and file:<version>/<name>"),
        }
    }
    check_overrides(&overrides)?;
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn overrides(parameters: Value) -> Result<LoadOverrides, String> {
        let request = json!({ "parameters": parameters });
        let request = request.as_object().unwrap();
        parameters_of(request).and_then(overrides_of).map_err(|error| {
            assert_eq!(error.0.status(), 400);
            error.0.detail().to_owned()
        })
    }

    #[test]
    fn a_load_takes_a_configuration_and_files() {
        let none = overrides(json!({})).unwrap();
        assert!(none.config_json.is_none() && none.files.is_empty());
        assert!(overrides(Value::Null).unwrap().files.is_empty());
        let both = overrides(json!({"file:2/model.onnx": "AAEC", "config": "{}"})).unwrap();
        assert_eq!(both.config_json.as_deref(), Some("{}"));
        assert_eq!(both.files, [("2/model.onnx".to_owned(), Bytes::from_static(&[0, 1, 2]))]);
    }

    #[test]
    fn a_wrong_load_parameter_is_named() {
        for (parameters, words) in [
            (json!([]), "parameters must be an object"),
            (json!({"config": {}}), "parameters.config: must be the model configuration as JSON text"),
            (json!({"config": "{}", "file:1/a": 1}), "parameters.file:1/a: must be the file's content in base64"),
            (json!({"config": "{}", "file:1/a": "%"}), "parameters.file:1/a: must be the file's content in base64"),
            (json!({"file:1/a": "AA=="}), "files need config"),
            (json!({"other": 1}), "parameters.other: a load takes config and file:"),
        ] {
            let error = overrides(parameters.clone()).err().unwrap_or_default();
            assert!(error.contains(words), "{parameters}: {error}");
        }
    }

    #[test]
    fn flags_are_true_or_false() {
        let object = json!({"a": true, "b": null, "c": 1});
        let object = object.as_object().unwrap();
        assert_eq!(flag(object, "a", "a"), Ok(true));
        assert_eq!(flag(object, "b", "b"), Ok(false));
        assert_eq!(flag(object, "d", "d"), Ok(false));
        assert_eq!(flag(object, "c", "c"), Err(V2Error::invalid("malformed_body", "c must be true or false")));
    }
}

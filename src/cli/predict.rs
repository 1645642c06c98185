//! `ortus predict`: one request to the engine, in this process.

use super::args::PredictArgs;
use super::error::CliError;
use super::store::{offline_config, with_engine};
use crate::engine::{ModelName, Version};
use crate::http;
use bytes::Bytes;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::PathBuf;

pub(super) fn predict(args: PredictArgs) -> Result<String, CliError> {
    if args.files.is_empty() && args.text.is_none() && args.json.is_none() {
        return Err(CliError::NoInput);
    }
    let Ok(model) = ModelName::parse(&args.model) else { return Err(CliError::NoModel(args.model)) };
    let json = request_json(args.json.as_deref(), args.top_k)?;
    let config = offline_config(args.store)?;
    let files = read_files(args.files, config.http.max_body_bytes)?;
    let version = args.model_version.map(Version);
    with_engine(&config, Some(&model), async |engine| {
        http::predict_offline(engine, &model, version, files, args.text, json).await.map_err(CliError::Predict)
    })
}

/// The request's JSON: `{"inputs"?, "parameters"?}`. What is not an object with one of these is the inputs themselves.
fn request_json(json: Option<&str>, top_k: Option<u32>) -> Result<Option<String>, CliError> {
    let mut request = match json.map(serde_json::from_str).transpose().map_err(CliError::Json)? {
        None => Map::new(),
        Some(Value::Object(object)) if object.contains_key("inputs") => object,
        Some(inputs) => Map::from_iter([("inputs".to_owned(), inputs)]),
    };
    if let Some(top_k) = top_k {
        let parameters = request.entry("parameters").or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(parameters) = parameters else { return Err(CliError::Parameters) };
        parameters.insert("top_k".to_owned(), Value::from(top_k));
    }
    Ok(if request.is_empty() { None } else { Some(Value::Object(request).to_string()) })
}

/// The files' bytes, `limit` for all of them together, as in a request's body.
fn read_files(paths: Vec<PathBuf>, limit: usize) -> Result<Vec<(PathBuf, Bytes)>, CliError> {
    let mut left = limit;
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let mut bytes = Vec::new();
        let bound = (left as u64).saturating_add(1);
        let read = std::fs::File::open(&path).and_then(|file| file.take(bound).read_to_end(&mut bytes));
        if let Err(source) = read {
            return Err(CliError::File { path, source });
        }
        let Some(rest) = left.checked_sub(bytes.len()) else { return Err(CliError::FileTooLarge { path, limit }) };
        left = rest;
        files.push((path, Bytes::from(bytes)));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_request_or_its_inputs() {
        let check = |json: Option<&str>, top_k: Option<u32>, expected: Option<&str>| {
            assert_eq!(request_json(json, top_k).unwrap().as_deref(), expected);
        };
        check(None, None, None);
        check(Some("[[1,2]]"), None, Some(r#"{"inputs":[[1,2]]}"#));
        check(Some(r#"{"x":[1]}"#), None, Some(r#"{"inputs":{"x":[1]}}"#));
        check(
            Some(r#"{"inputs":1,"parameters":{"a":1}}"#),
            Some(3),
            Some(r#"{"inputs":1,"parameters":{"a":1,"top_k":3}}"#),
        );
        check(None, Some(2), Some(r#"{"parameters":{"top_k":2}}"#));
        assert!(matches!(request_json(Some("{"), None), Err(CliError::Json(_))));
        assert!(matches!(request_json(Some(r#"{"inputs":1,"parameters":1}"#), Some(1)), Err(CliError::Parameters)));
    }

    #[test]
    fn files_are_bounded_together() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        paths.iter().for_each(|path| std::fs::write(path, [0; 10]).unwrap());
        assert_eq!(read_files(paths.clone(), 20).unwrap().len(), 2);
        assert!(matches!(read_files(paths, 19), Err(CliError::FileTooLarge { limit: 19, .. })));
        assert!(matches!(read_files(vec![folder.path().join("none")], 19), Err(CliError::File { .. })));
    }
}

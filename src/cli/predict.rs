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
    let json = args.json.as_deref().map(request_json).transpose()?;
    let parameters = args.top_k.map(|top_k| ("top_k".to_owned(), Value::from(top_k))).into_iter().collect();
    let config = offline_config(args.store)?;
    let files = read_files(args.files, config.http.max_body_bytes)?;
    let version = args.model_version.map(Version);
    with_engine(&config, Some(&model), async |engine| {
        http::predict_offline(engine, &model, version, files, args.text, json, parameters)
            .await
            .map_err(CliError::Predict)
    })
}

/// The request's JSON: an object with `inputs`, or what is the inputs themselves.
fn request_json(json: &str) -> Result<String, CliError> {
    let request = match serde_json::from_str(json).map_err(CliError::Json)? {
        Value::Object(object) if object.contains_key("inputs") => object,
        inputs => Map::from_iter([("inputs".to_owned(), inputs)]),
    };
    Ok(Value::Object(request).to_string())
}

/// The files' bytes, `limit` for all of them together, as in a request's body.
pub(super) fn read_files(paths: Vec<PathBuf>, limit: usize) -> Result<Vec<(PathBuf, Bytes)>, CliError> {
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
        let check = |json: &str, expected: &str| assert_eq!(request_json(json).unwrap(), expected);
        check("[[1,2]]", r#"{"inputs":[[1,2]]}"#);
        check(r#"{"x":[1]}"#, r#"{"inputs":{"x":[1]}}"#);
        check(r#"{"inputs":1,"parameters":{"a":1}}"#, r#"{"inputs":1,"parameters":{"a":1}}"#);
        assert!(matches!(request_json("{"), Err(CliError::Json(_))));
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

//! The same call as `curl`, Python and JavaScript. Pure.

use super::values::{list, text_or_dash};
use crate::http::HttpState;
use serde_json::{Value, json};

/// Id of the element, title, code.
pub(super) type Snippet = (&'static str, &'static str, String);

/// What a task takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Image,
    Audio,
    Text,
    Question,
    Json,
}

impl Kind {
    pub(super) fn of(task: Option<&str>) -> Kind {
        match task.unwrap_or("raw") {
            "image-classification"
            | "object-detection"
            | "image-segmentation"
            | "depth-estimation"
            | "image-feature-extraction"
            | "zero-shot-image-classification" => Kind::Image,
            "audio-classification" | "automatic-speech-recognition" | "voice-activity-detection" => Kind::Audio,
            "question-answering" => Kind::Question,
            "feature-extraction"
            | "text-classification"
            | "token-classification"
            | "fill-mask"
            | "zero-shot-classification" => Kind::Text,
            _ => Kind::Json,
        }
    }

    /// Whether the task chooses among labels that the request names.
    pub(super) fn wants_labels(task: Option<&str>) -> bool {
        task.is_some_and(|task| task.starts_with("zero-shot"))
    }
}

/// A value for each input of a model that takes tensors: zeros, 1 where a size is free.
pub(super) fn example_inputs(model: &Value) -> Value {
    const ELEMENTS_MAX: i64 = 64;
    let mut inputs = serde_json::Map::new();
    for input in list(model, "/metadata/inputs") {
        let shape: Vec<i64> = list(input, "/shape").iter().map(|dim| dim.as_i64().unwrap_or(1).max(1)).collect();
        let dtype = text_or_dash(input, "/dtype");
        let count = shape.iter().try_fold(1i64, |count, dim| count.checked_mul(*dim)).unwrap_or(i64::MAX);
        let zero = match dtype.as_str() {
            "BOOL" => json!(false),
            "BYTES" => json!("text"),
            _ => json!(0),
        };
        let data = if count <= ELEMENTS_MAX { vec![zero; usize::try_from(count).unwrap_or(1)] } else { Vec::new() };
        inputs.insert(text_or_dash(input, "/name"), json!({"dtype": dtype, "shape": shape, "data": data}));
    }
    Value::Object(inputs)
}

/// For the model's page.
pub(super) fn snippets(state: &HttpState, name: &str, task: Option<&str>, model: &Value) -> Vec<Snippet> {
    let url = format!("{}://{}/v1/models/{name}/predict", state.settings.scheme(), state.settings.listen);
    let labels = if Kind::wants_labels(task) { json!({"candidate_labels": ["one", "two"]}) } else { Value::Null };
    match Kind::of(task) {
        Kind::Image => with_file(&url, "picture.jpg", &labels),
        Kind::Audio => with_file(&url, "sound.wav", &labels),
        Kind::Text => with_json(&url, &body(json!("some text"), &labels)),
        Kind::Question => with_json(&url, &body(json!({"question": "Who?", "context": "Some text."}), &labels)),
        Kind::Json => with_json(&url, &body(example_inputs(model), &labels)),
    }
}

pub(super) fn body(inputs: Value, parameters: &Value) -> Value {
    match parameters {
        Value::Null => json!({"inputs": inputs}),
        parameters => json!({"inputs": inputs, "parameters": parameters}),
    }
}

/// Calls with one file.
pub(super) fn with_file(url: &str, file: &str, parameters: &Value) -> Vec<Snippet> {
    let file = file.replace(['\'', '"', '\\', '\n', '\r'], "_");
    let (form, data, append) = match parameters {
        Value::Null => (String::new(), String::new(), String::new()),
        parameters => {
            let text = parameters.to_string();
            (
                format!(" -F {}", shell(&format!("parameters={text}"))),
                format!(", data={{\"parameters\": {}}}", Value::from(text.clone())),
                format!("form.append(\"parameters\", {});\n", Value::from(text)),
            )
        }
    };
    vec![
        ("curl", "curl", format!("curl -F {}{form} {url}", shell(&format!("file=@{file}")))),
        (
            "python",
            "Python",
            format!(
                "import requests\n\nwith open(\"{file}\", \"rb\") as file:\n    answer = requests.post(\"{url}\", files={{\"file\": file}}{data})\nprint(answer.json())"
            ),
        ),
        (
            "javascript",
            "JavaScript",
            format!(
                "const form = new FormData();\nform.append(\"file\", file);\n{append}const answer = await fetch(\"{url}\", {{ method: \"POST\", body: form }});\nconsole.log(await answer.json());"
            ),
        ),
    ]
}

/// Calls with a JSON body.
pub(super) fn with_json(url: &str, body: &Value) -> Vec<Snippet> {
    let text = body.to_string();
    vec![
        ("curl", "curl", format!("curl -H 'Content-Type: application/json' -d {} {url}", shell(&text))),
        (
            "python",
            "Python",
            // A JSON text in a JSON string is a Python string, too.
            format!(
                "import json, requests\n\nbody = json.loads({})\nprint(requests.post(\"{url}\", json=body).json())",
                Value::from(text.clone())
            ),
        ),
        (
            "javascript",
            "JavaScript",
            format!(
                "const answer = await fetch(\"{url}\", {{\n  method: \"POST\",\n  headers: {{ \"Content-Type\": \"application/json\" }},\n  body: JSON.stringify({text}),\n}});\nconsole.log(await answer.json());"
            ),
        ),
    ]
}

/// In single quotes, for a POSIX shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_stays_one_word() {
        assert_eq!(shell("it's"), "'it'\\''s'");
        let all = with_file("http://h/p", "a'b\".png", &json!({"top_k": 3}));
        assert_eq!(all[0].2, "curl -F 'file=@a_b_.png' -F 'parameters={\"top_k\":3}' http://h/p");
        assert!(all[1].2.contains("data={\"parameters\": \"{\\\"top_k\\\":3}\"}"), "{}", all[1].2);
    }

    #[test]
    fn tensors_get_zeros_of_their_shape() {
        let model = json!({"metadata": {"inputs": [
            {"name": "x", "dtype": "FP32", "shape": [-1, 2]}, {"name": "big", "dtype": "FP32", "shape": [1, 3, 224, 224]},
        ]}});
        let expected = json!({
            "x": {"dtype": "FP32", "shape": [1, 2], "data": [0, 0]},
            "big": {"dtype": "FP32", "shape": [1, 3, 224, 224], "data": []},
        });
        assert_eq!(example_inputs(&model), expected);
    }
}

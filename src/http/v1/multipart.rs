//! `multipart/form-data` for the native predict call: files and parameters, as HTML forms and `curl -F` send them.
//!
//! Fields named `file` are the items of a task, in their order (text where their type says so), or the tensor of a model
//! with one input; fields named like an input are its tensor, as `.npy` or JSON, or the one item of a task. `parameters`,
//! `id`, `timeout_ms` and `priority` are as in a JSON body. The body limit of the route bounds all parts together.

use crate::codec::json::{JsonLimits, PredictBody, PredictInput, Target, parse_object, parse_value};
use crate::codec::{CodecError, clip, npy};
use crate::engine::{Item, Parameters};
use crate::tensor::{Spec, Value};
use axum::extract::Multipart;
use axum::extract::multipart::MultipartError;
use bytes::Bytes;

/// Bytes of the small fields together with their names.
const MAX_FIELD_BYTES: usize = 1 << 20;

/// Reads a form.
///
/// # Errors
/// `Malformed` for what is no form or names no field of a form, `Unprocessable` for values that an input cannot hold,
/// `TooLarge` beyond a limit.
pub async fn read(mut form: Multipart, model: &Target<'_>, limits: &JsonLimits) -> Result<PredictBody, CodecError> {
    let mut body = Form::default();
    // The items have a limit of their own; each input and each named field may come once.
    let most = limits.max_items.saturating_add(model.inputs.len()).saturating_add(4);
    for count in 0.. {
        let Some(field) = form.next_field().await.map_err(|error| from_multipart(&error))? else { break };
        if count >= most {
            return Err(CodecError::TooLarge(format!("the form has more than {most} parts")));
        }
        let part = Part {
            name: field.name().unwrap_or_default().to_owned(),
            is_text: field.content_type().is_some_and(|kind| kind.starts_with("text/plain")),
            content: field.bytes().await.map_err(|error| from_multipart(&error))?,
        };
        body.add(part, model, limits)?;
    }
    body.finish(model)
}

fn from_multipart(error: &MultipartError) -> CodecError {
    match error.status().as_u16() {
        413 => CodecError::TooLarge(error.body_text()),
        _ => CodecError::Malformed(format!("the form cannot be read: {}", error.body_text())),
    }
}

/// One part of a form.
struct Part {
    name: String,
    is_text: bool,
    content: Bytes,
}

#[derive(Default)]
struct Form {
    items: Vec<Item>,
    tensors: Vec<(String, Value)>,
    parameters: Option<Parameters>,
    id: Option<String>,
    timeout_ms: Option<u64>,
    priority: Option<u32>,
}

impl Form {
    fn add(&mut self, part: Part, model: &Target<'_>, limits: &JsonLimits) -> Result<(), CodecError> {
        let spec = model.inputs.iter().find(|spec| spec.name == part.name);
        match (part.name.as_str(), spec) {
            // An input called like a field of the form wins where tensors are expected.
            (_, Some(spec)) if !model.task || npy::is_npy(&part.content) => self.add_tensor(spec, &part, limits),
            ("file", _) if !model.task => {
                let Some(spec) = model.only_input() else {
                    return Err(CodecError::unprocessable(
                        "file",
                        "the model has several inputs; name each field after its input",
                    ));
                };
                self.add_tensor(spec, &part, limits)
            }
            ("file", _) | (_, Some(_)) => self.add_item(part, limits),
            ("parameters", None) => {
                let parameters = parse_object(bounded(&part)?, "parameters", limits)?;
                once("parameters", &mut self.parameters, parameters)
            }
            ("id", None) => {
                let id = text(&part)?.to_owned();
                once("id", &mut self.id, id)
            }
            ("timeout_ms", None) => {
                let timeout_ms = number("timeout_ms", &part)?;
                once("timeout_ms", &mut self.timeout_ms, timeout_ms)
            }
            ("priority", None) => {
                let priority = number("priority", &part)?;
                let priority = u32::try_from(priority).map_err(|_| {
                    CodecError::Malformed(format!("priority must be a whole number from 0 to {}", u32::MAX))
                })?;
                once("priority", &mut self.priority, priority)
            }
            (name, None) => Err(CodecError::Malformed(format!(
                "the form has the unknown field {:?}; fields are file, the inputs' names, parameters, id, timeout_ms and priority",
                clip(name)
            ))),
        }
    }

    fn add_tensor(&mut self, spec: &Spec, part: &Part, limits: &JsonLimits) -> Result<(), CodecError> {
        if self.tensors.iter().any(|(name, _)| *name == spec.name) {
            return Err(CodecError::Malformed(format!("the form has the field for input {:?} twice", spec.name)));
        }
        let value = match npy::is_npy(&part.content) {
            true => npy::read(&format!("inputs.{}", spec.name), &part.content, limits.max_elements)?.into(),
            false => parse_value(&part.content, spec, limits)?,
        };
        self.tensors.push((spec.name.clone(), value));
        Ok(())
    }

    fn add_item(&mut self, part: Part, limits: &JsonLimits) -> Result<(), CodecError> {
        if self.items.len() >= limits.max_items {
            return Err(CodecError::TooLarge(format!("the form has more than max_items = {} items", limits.max_items)));
        }
        let item = match part.is_text {
            true => match String::from_utf8(part.content.into()) {
                Ok(text) => Item::Text(text),
                Err(_) => {
                    let field = format!("inputs[{}]", self.items.len());
                    return Err(CodecError::unprocessable(field, "the text is not UTF-8"));
                }
            },
            false => Item::Bytes(part.content),
        };
        self.items.push(item);
        Ok(())
    }

    fn finish(self, model: &Target<'_>) -> Result<PredictBody, CodecError> {
        let inputs = match (self.items.is_empty(), self.tensors.is_empty()) {
            (true, false) => PredictInput::Tensors(self.tensors),
            (false, true) => PredictInput::Items { single: self.items.len() == 1, items: self.items },
            (false, false) => {
                return Err(CodecError::Malformed("the form has both tensors and items; send one kind".into()));
            }
            (true, true) if model.task => {
                return Err(CodecError::Malformed("the form has no field called file".into()));
            }
            (true, true) => PredictInput::Tensors(Vec::new()),
        };
        let (id, timeout_ms, priority) = (self.id, self.timeout_ms, self.priority);
        Ok(PredictBody { inputs, parameters: self.parameters.unwrap_or_default(), id, timeout_ms, priority })
    }
}

fn once<T>(name: &str, slot: &mut Option<T>, value: T) -> Result<(), CodecError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(CodecError::Malformed(format!("the form has the field {name} twice"))),
    }
}

fn bounded(part: &Part) -> Result<&[u8], CodecError> {
    if part.content.len() > MAX_FIELD_BYTES {
        return Err(CodecError::TooLarge(format!("the field {} is larger than {MAX_FIELD_BYTES} bytes", part.name)));
    }
    Ok(&part.content)
}

fn text(part: &Part) -> Result<&str, CodecError> {
    const MAX_TEXT_BYTES: usize = 1024;
    match std::str::from_utf8(&part.content) {
        Ok(text) if text.len() <= MAX_TEXT_BYTES => Ok(text),
        _ => Err(CodecError::Malformed(format!("{} must be text of at most {MAX_TEXT_BYTES} bytes", part.name))),
    }
}

fn number(name: &str, part: &Part) -> Result<u64, CodecError> {
    let text = text(part)?.trim();
    text.parse().map_err(|_| CodecError::Malformed(format!("{name} must be a whole number, got {:?}", clip(text))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::json::write_value;
    use crate::tensor::{DType, Tensor, ValueType};
    use axum::body::Body;
    use axum::extract::FromRequest;

    fn spec(name: &str) -> Spec {
        Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Fp32, shape: None }, optional: false }
    }

    async fn read_form(inputs: &[Spec], task: bool, parts: &[(&str, &str, &[u8])]) -> Result<PredictBody, CodecError> {
        let mut body = Vec::new();
        for (name, kind, content) in parts {
            let head = format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n{kind}\r\n");
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(content);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--B--\r\n");
        read_body(inputs, task, body).await
    }

    async fn read_body(inputs: &[Spec], task: bool, body: Vec<u8>) -> Result<PredictBody, CodecError> {
        let request = axum::http::Request::builder()
            .header("content-type", "multipart/form-data; boundary=B")
            .body(Body::from(body))
            .unwrap();
        let form = Multipart::from_request(request, &()).await.unwrap();
        let limits = JsonLimits { max_depth: 64, max_elements: 1600, max_items: 2 };
        read(form, &Target { inputs, task, records: false }, &limits).await
    }

    fn show(result: Result<PredictBody, CodecError>) -> String {
        match result {
            Err(error) => error.to_string(),
            Ok(PredictBody { inputs: PredictInput::Items { items, single }, parameters, .. }) => {
                format!("{single} {items:?} {}", serde_json::Value::Object(parameters))
            }
            Ok(PredictBody { inputs: PredictInput::Tensors(values), .. }) => {
                let mut text = Vec::new();
                for (name, value) in &values {
                    text.extend_from_slice(name.as_bytes());
                    write_value(value, &mut text);
                }
                String::from_utf8(text).unwrap()
            }
        }
    }

    #[tokio::test]
    async fn files_are_items_of_a_task() {
        let inputs = [spec("pixel_values")];
        let text = "Content-Type: text/plain; charset=utf-8\r\n";
        #[expect(clippy::type_complexity, reason = "rows of a table")]
        let rows: &[(&[(&str, &str, &[u8])], &str)] = &[
            (&[("file", "", b"\xff\xd8")], r#"true [Bytes(b"\xff\xd8")] {}"#),
            (&[("file", "", b"a"), ("file", text, b"b")], r#"false [Bytes(b"a"), Text("b")] {}"#),
            (&[("pixel_values", "", b"a")], r#"true [Bytes(b"a")]"#),
            (&[("parameters", "", br#"{"top_k":1}"#), ("file", "", b"a")], r#"{"top_k":1}"#),
            (&[("file", "", b"a"), ("file", "", b"b"), ("file", "", b"c")], "more than max_items = 2 items"),
            (&[("file", text, b"\xff")], "inputs[0]: the text is not UTF-8"),
            (&[("parameters", "", b"[]"), ("file", "", b"a")], "parameters must be an object"),
            (&[("parameters", "", b"{}"), ("parameters", "", b"{}")], "the field parameters twice"),
            (&[("id", "", b"7")], "no field called file"),
            (&[("timeout_ms", "", b"soon")], "timeout_ms must be a whole number, got \"soon\""),
            (&[("priority", "", b"99999999999")], "priority must be"),
            (&[("image", "", b"a")], "unknown field \"image\""),
            (&[("id", "", b"7"), ("id", "", b"7")], "the field id twice"),
        ];
        for (parts, expected) in rows {
            let got = show(read_form(&inputs, true, parts).await);
            assert!(got.contains(expected), " got: {got}\nwant: {expected}");
        }
    }

    #[tokio::test]
    async fn fields_named_after_inputs_are_tensors() {
        let npy = npy::write("x", &Tensor::from_vec(DType::Fp32, vec![1], vec![1f32]).unwrap()).unwrap();
        let (one, two) = ([spec("x")], [spec("x"), spec("y")]);
        #[expect(clippy::type_complexity, reason = "rows of a table")]
        let rows: &[(&[Spec], bool, &[(&str, &str, &[u8])], &str)] = &[
            (&one, false, &[("x", "", &npy)], "x[1.0]"),
            (&one, false, &[("file", "", &npy)], "x[1.0]"),
            (&one, true, &[("x", "", &npy)], "x[1.0]"),
            (&two, false, &[("y", "", b"[[2]]"), ("x", "", &npy)], "y[[2.0]]x[1.0]"),
            (&two, false, &[("file", "", &npy)], "several inputs"),
            (&one, false, &[("x", "", &npy), ("x", "", &npy)], "input \"x\" twice"),
            (&one, false, &[("x", "", b"PNG")], "inputs.x is not valid JSON"),
            (&one, true, &[("x", "", &npy), ("file", "", b"a")], "both tensors and items"),
        ];
        for (inputs, task, parts, expected) in rows {
            let got = show(read_form(inputs, *task, parts).await);
            assert!(got.contains(expected), " got: {got}\nwant: {expected}");
        }
    }

    #[tokio::test]
    async fn forms_that_end_early_or_are_too_large_are_refused() {
        let inputs = [spec("x")];
        let head = b"--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n".to_vec();
        let cut = read_body(&inputs, true, head.clone()).await.unwrap_err();
        assert!(matches!(cut, CodecError::Malformed(_)), "{cut}");
        // Without a limit of the route, axum's own of 2 MiB holds.
        let large = read_body(&inputs, true, [head, vec![0; 3 << 20]].concat()).await.unwrap_err();
        assert!(matches!(large, CodecError::TooLarge(_)), "{large}");
    }
}

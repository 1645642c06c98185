//! Bodies of servers whose models read their JSON themselves, as clients of TorchServe and of KServe's V1 protocol send them:
//! `{"instances": X}`, `{"data": X}`, `{"body": X}`, inputs by name, or X alone.
//!
//! X is what stands under `inputs` of a native body; where the task takes files, a plain text is base64, and an item may call
//! its content `data` or `body`. Unknown and doubled keys are refused.

use super::document::read_object;
use super::predict::{ITEM_KEYS, InputsSeed, Strings};
use super::{Context, JsonLimits, PredictInput, Target, parse_all};
use crate::codec::{CodecError, clip};
use crate::pipelines::Parameters;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::fmt;

/// What such a body gives the model.
#[derive(Debug)]
pub struct Instances {
    pub inputs: PredictInput,
    pub parameters: Parameters,
    /// Whether they stood under `instances`, which asks for an answer under `predictions`.
    pub in_envelope: bool,
}

/// Reads such a body. `takes_files`: the items of the model's task are pictures or sounds.
///
/// # Errors
/// As [`super::parse_predict`].
pub fn parse_instances(
    bytes: &Bytes,
    model: &Target<'_>,
    takes_files: bool,
    limits: &JsonLimits,
) -> Result<Instances, CodecError> {
    let context = Context::new(limits);
    let strings = if takes_files { Strings::Base64 } else { Strings::Text };
    let inputs = InputsSeed { context: &context, model, strings };
    let parsed = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => parse_all(bytes, BodySeed { inputs }),
        _ => parse_all(bytes, inputs).map(|inputs| Instances::bare(inputs, false)),
    };
    parsed.map_err(|error| context.into_error(&error))
}

impl Instances {
    fn bare(inputs: PredictInput, in_envelope: bool) -> Instances {
        Instances { inputs, parameters: Parameters::new(), in_envelope }
    }
}

struct BodySeed<'a> {
    inputs: InputsSeed<'a>,
}

impl<'de> DeserializeSeed<'de> for BodySeed<'_> {
    type Value = Instances;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Instances, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BodySeed<'_> {
    type Value = Instances;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key \"instances\" or \"data\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Instances, A::Error> {
        let InputsSeed { context, model, .. } = self.inputs;
        context.enter(1)?;
        let mut found: Option<Instances> = None;
        let mut parameters = None;
        while let Some(key) = map.next_key::<String>()? {
            let is_input = model.inputs.iter().any(|spec| spec.name == key);
            let is_item = model.records || ITEM_KEYS.contains(&key.as_str());
            match key.as_str() {
                // An input that is called so is that input.
                _ if found.is_none() && is_input && !model.task => {
                    return Ok(Instances::bare(self.inputs.named(map, Some(key))?, false));
                }
                "instances" | "data" | "body" | "inputs" if found.is_some() => {
                    return Err(context.malformed(format!("the body has inputs twice: {:?} is the second", clip(&key))));
                }
                "instances" | "data" | "body" | "inputs" => {
                    let inputs = map.next_value_seed(self.inputs)?;
                    found = Some(Instances::bare(inputs, key == "instances"));
                }
                "parameters" if parameters.is_none() => {
                    parameters = Some(read_object(context, &mut map, 1, "parameters")?);
                }
                _ if found.is_none() && parameters.is_none() && model.task && is_item => {
                    return Ok(Instances::bare(self.inputs.item_object(map, Some(key))?, false));
                }
                other => {
                    let known = "instances, data, body and parameters";
                    return Err(context
                        .malformed(format!("unknown or doubled key {:?}; a body has the keys {known}", clip(other))));
                }
            }
        }
        let Some(mut found) = found else {
            return Err(context.malformed("the body has no key \"instances\" or \"data\""));
        };
        found.parameters = parameters.unwrap_or_default();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Item;
    use crate::tensor::{DType, Dim, Spec, ValueType};

    const LIMITS: JsonLimits = JsonLimits { max_depth: 8, max_elements: 1600, max_items: 3 };

    fn input(name: &str) -> Spec {
        let shape = Some(vec![Dim::Dynamic(None); 2]);
        Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Fp32, shape }, optional: false }
    }

    /// The inputs as text, with `*` in front where they came in an envelope.
    fn read(inputs: &[Spec], task: bool, records: bool, files: bool, json: &str) -> Result<String, String> {
        let target = Target { inputs, task, records };
        let body = Bytes::copy_from_slice(json.as_bytes());
        let parsed = parse_instances(&body, &target, files, &LIMITS).map_err(|error| error.to_string())?;
        let inputs = match parsed.inputs {
            PredictInput::Items { items, single } => format!("{items:?} {single}"),
            PredictInput::Tensors(values) => {
                let show = |(name, value): &(String, crate::tensor::Value)| {
                    let mut text = Vec::new();
                    super::super::write_value(value, &mut text);
                    format!("{name}={}", String::from_utf8(text).unwrap())
                };
                values.iter().map(show).collect::<Vec<_>>().join(" ")
            }
        };
        Ok(format!("{}{inputs}", if parsed.in_envelope { "*" } else { "" }))
    }

    #[test]
    fn tensors_come_in_every_form() {
        let one = [input("x")];
        for (json, expected) in [
            (r#"{"instances": [[1, 2]]}"#, "*x=[[1.0,2.0]]"),
            (r#" {"data": [[1, 2]]}"#, "x=[[1.0,2.0]]"),
            (r#"{"body": [[1, 2]]}"#, "x=[[1.0,2.0]]"),
            (r#"{"inputs": {"x": [[1, 2]]}}"#, "x=[[1.0,2.0]]"),
            (r#"{"x": [[1, 2]]}"#, "x=[[1.0,2.0]]"),
            ("[[1, 2]]", "x=[[1.0,2.0]]"),
        ] {
            assert_eq!(read(&one, false, false, false, json).as_deref(), Ok(expected), "{json}");
        }
        let two = [input("data"), input("b")];
        let found = read(&two, false, false, false, r#"{"data": [[1]], "b": [[2]]}"#);
        assert_eq!(found.as_deref(), Ok("data=[[1.0]] b=[[2.0]]"));
    }

    #[test]
    fn items_are_texts_or_files_as_the_task_takes_them() {
        let text = |text: &str| format!("{:?}", Item::Text(text.to_owned()));
        let file = format!("{:?}", Item::Bytes(Bytes::from_static(b"hi")));
        for (files, json, expected) in [
            (false, r#"{"instances": ["a", {"data": "b"}]}"#, format!("*[{}, {}] false", text("a"), text("b"))),
            (false, r#"{"data": "a"}"#, format!("[{}] true", text("a"))),
            (false, r#"{"text": "a"}"#, format!("[{}] true", text("a"))),
            (false, r#""a""#, format!("[{}] true", text("a"))),
            (true, r#"{"instances": [{"data": "aGk="}, {"b64": "aGk"}]}"#, format!("*[{file}, {file}] false")),
            (true, r#"{"body": "aGk="}"#, format!("[{file}] true")),
            (true, r#"{"data": "data:image/png;base64,aGk="}"#, format!("[{file}] true")),
        ] {
            assert_eq!(read(&[], true, false, files, json), Ok(expected), "{json}");
        }
        let record = read(&[], true, true, false, r#"{"instances": [{"age": 3}]}"#).unwrap();
        assert!(record.starts_with("*[Record") && record.contains("age"), "{record}");
        let record = read(&[], true, true, false, r#"{"age": 3, "body": 2}"#).unwrap();
        assert!(record.contains("age") && record.contains("body") && record.ends_with("true"), "{record}");
    }

    #[test]
    fn what_is_none_of_these_is_refused() {
        for (json, expected) in [
            ("{}", "no key \"instances\""),
            (r#"{"instances": ["a"], "data": "b"}"#, "inputs twice"),
            (r#"{"instances": ["a"], "signature_name": "b"}"#, "unknown or doubled key"),
            (r#"{"parameters": {}, "parameters": {}}"#, "unknown or doubled key"),
            (r#"{"instances": []}"#, "the list is empty"),
            (r#"{"instances": ["a", "b", "c", "d"]}"#, "max_items"),
            (r#"{"instances": [[[[[[[["a"]]]]]]]]}"#, "expected an item"),
            (r#"{"instances": [{"data": 1}]}"#, "a string in inputs[0].data"),
            ("[", "not valid JSON"),
            ("", "not valid JSON"),
            ("{\"instances\": [\"a\"]} x", "not valid JSON"),
        ] {
            let error = read(&[], true, false, false, json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
        let error = read(&[], true, false, true, r#"{"data": "not base64!"}"#).unwrap_err();
        assert!(error.contains("base64"), "{error}");
    }
}

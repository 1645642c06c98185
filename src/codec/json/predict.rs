//! The native body `{"inputs": X, "parameters"?, "id"?, "timeout_ms"?, "priority"?}`.
//!
//! X is tensors (an object of input name to value, or the bare value where only one is needed) or items of the model's
//! task (text, `{"b64"}`, a `data:` URL, `{"text"}`, or a list of these). A task model takes tensors too: the first key of
//! the object decides, and item keys win over inputs of the same name. Unknown and doubled keys are refused.

use super::document::{read_object, read_text};
use super::tensor::{TensorSeed, ValueSeed};
use super::{Context, JsonLimits, MAX_ID_BYTES, parse_all};
use crate::codec::wire::find_input;
use crate::codec::{CodecError, clip, list};
use crate::pipelines::{Item, Parameters};
use crate::tensor::{Spec, Value, ValueType};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

/// The model that a body is for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub inputs: &'a [Spec],
    /// Whether the model has a task, so that items are expected.
    pub task: bool,
    /// Whether its items are records.
    pub records: bool,
}

impl<'a> Target<'a> {
    /// The one input that a bare value is for.
    pub fn only_input(&self) -> Option<&'a Spec> {
        if let [spec] = self.inputs {
            return Some(spec);
        }
        let mut required = self.inputs.iter().filter(|spec| !spec.optional);
        let first = required.next()?;
        required.next().is_none().then_some(first)
    }

    /// The input called `name`, or the error that lists the inputs.
    pub fn input(&self, name: &str) -> Result<&'a Spec, CodecError> {
        find_input(self.inputs, name)
    }

    fn names(&self) -> String {
        list(self.inputs.iter().map(|spec| spec.name.as_str()))
    }
}

/// A native body.
#[derive(Debug)]
pub struct PredictBody {
    pub inputs: PredictInput,
    pub parameters: Parameters,
    pub id: Option<String>,
    pub timeout_ms: Option<u64>,
    /// As in the Open Inference Protocol: 0 is the default, 1 the highest.
    pub priority: Option<u32>,
}

/// What a native body gives the model.
#[derive(Debug)]
pub enum PredictInput {
    /// Values by input name.
    Tensors(Vec<(String, Value)>),
    /// Input of the model's task; `single` where one item came outside of a list.
    Items { items: Vec<Item>, single: bool },
}

/// Reads a native body.
///
/// # Errors
/// `Malformed` for what is not JSON or not this object, `Unprocessable` for values that an input cannot hold, `TooLarge`
/// beyond a limit.
pub fn parse_predict(bytes: &Bytes, model: &Target<'_>, limits: &JsonLimits) -> Result<PredictBody, CodecError> {
    let context = Context::new(limits);
    let parsed = parse_all(bytes, BodySeed { context: &context, model });
    parsed.map_err(|error| context.into_error(&error))
}

/// Reads one value for `spec` from JSON text, as it would stand under `inputs`.
///
/// # Errors
/// As [`parse_predict`].
pub fn parse_value(json: &[u8], spec: &Spec, limits: &JsonLimits) -> Result<Value, CodecError> {
    let context = Context::new(limits);
    let field = format!("inputs.{}", spec.name);
    let seed = ValueSeed { context: &context, ty: &spec.ty, field: &field, depth: 0, optional: false };
    let parsed = parse_all(json, seed);
    parsed.map_err(|error| match context.into_error(&error) {
        CodecError::Malformed(_) if error.is_syntax() || error.is_eof() => {
            CodecError::Malformed(format!("{field} is not valid JSON: {error}"))
        }
        error => error,
    })
}

/// Reads a free-form object, such as `parameters`, from JSON text.
///
/// # Errors
/// `Malformed` for anything but an object without doubled keys, `TooLarge` beyond a limit.
pub fn parse_object(json: &[u8], field: &str, limits: &JsonLimits) -> Result<Parameters, CodecError> {
    let context = Context::new(limits);
    let count = Cell::new(0);
    let seed = super::document::DocumentSeed { context: &context, depth: 0, field, count: &count };
    let parsed = parse_all(json, seed);
    match parsed.map_err(|error| context.into_error(&error))? {
        serde_json::Value::Object(object) => Ok(object),
        _ => Err(CodecError::Malformed(format!("{field} must be an object"))),
    }
}

const KEYS: &str = "inputs, parameters, id, timeout_ms and priority";

struct BodySeed<'a> {
    context: &'a Context<'a>,
    model: &'a Target<'a>,
}

impl<'de> DeserializeSeed<'de> for BodySeed<'_> {
    type Value = PredictBody;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<PredictBody, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BodySeed<'_> {
    type Value = PredictBody;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key \"inputs\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PredictBody, A::Error> {
        let context = self.context;
        context.enter(1)?;
        let (mut inputs, mut parameters, mut id, mut timeout_ms, mut priority) = (None, None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let doubled = match key.as_str() {
                "inputs" if inputs.is_some() => true,
                "inputs" => {
                    let seed = InputsSeed { context, model: self.model, strings: Strings::Native };
                    inputs = Some(map.next_value_seed(seed)?);
                    false
                }
                "parameters" => parameters.replace(read_object(context, &mut map, 1, "parameters")?).is_some(),
                "id" => id.replace(read_text(context, &mut map, "id", MAX_ID_BYTES)?).is_some(),
                "timeout_ms" => timeout_ms.replace(read_whole(context, &mut map, "timeout_ms", u64::MAX)?).is_some(),
                "priority" => priority.replace(read_whole(context, &mut map, "priority", u32::MAX.into())?).is_some(),
                other => {
                    return Err(context.malformed(format!("unknown key {:?}; a body has the keys {KEYS}", clip(other))));
                }
            };
            if doubled {
                return Err(context.malformed(format!("the key {key:?} is doubled")));
            }
        }
        let Some(inputs) = inputs else { return Err(context.malformed("the body has no key \"inputs\"")) };
        Ok(PredictBody {
            inputs,
            parameters: parameters.unwrap_or_default(),
            id: id.flatten(),
            timeout_ms: timeout_ms.flatten(),
            priority: priority.flatten().and_then(|priority| u32::try_from(priority).ok()),
        })
    }
}

/// A whole number up to `max`; `null` is none.
fn read_whole<'de, A: MapAccess<'de>>(
    context: &Context<'_>,
    map: &mut A,
    field: &str,
    max: u64,
) -> Result<Option<u64>, A::Error> {
    let count = Cell::new(0);
    let value = map.next_value_seed(super::document::DocumentSeed { context, depth: 1, field, count: &count })?;
    match value.as_u64() {
        Some(number) if number <= max => Ok(Some(number)),
        None if value.is_null() => Ok(None),
        Some(_) | None => Err(context.malformed(format!("{field} must be a whole number from 0 to {max}"))),
    }
}

/// What a plain text of a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strings {
    /// A text, or a `data:` URL.
    Native,
    /// The same; an item may call it `data` or `body`, too.
    Text,
    /// A file in base64, or a `data:` URL; an item may call it `data` or `body`, too.
    Base64,
}

impl Strings {
    /// The native key that an item's key stands for.
    fn key(self, key: &str) -> &str {
        match (self, key) {
            (Strings::Text, "data" | "body") => "text",
            (Strings::Base64, "data" | "body") => "b64",
            _ => key,
        }
    }
}

/// Reads `inputs`.
#[derive(Clone, Copy)]
pub(super) struct InputsSeed<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) model: &'a Target<'a>,
    pub(super) strings: Strings,
}

impl<'de> DeserializeSeed<'de> for InputsSeed<'_> {
    type Value = PredictInput;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<PredictInput, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> InputsSeed<'a> {
    /// Reads a value without a name with `visit`.
    fn bare<E: Error>(self, visit: impl FnOnce(ValueSeed<'_>) -> Result<Value, E>) -> Result<PredictInput, E> {
        if self.model.task {
            return Err(self.context.unprocessable(
                "inputs",
                "expected an item (a string, {\"b64\"}, {\"text\"}), a list of items, or an object of input name to tensor",
            ));
        }
        let Some(spec) = self.model.only_input() else {
            let problem = format!("expected an object of input name to value; the inputs are {}", self.model.names());
            return Err(self.context.unprocessable("inputs", problem));
        };
        let field = format!("inputs.{}", spec.name);
        let value = visit(ValueSeed { context: self.context, ty: &spec.ty, field: &field, depth: 1, optional: false })?;
        Ok(PredictInput::Tensors(vec![(spec.name.clone(), value)]))
    }

    /// Reads an object of input name to value, whose first key was read.
    pub(super) fn named<'de, A: MapAccess<'de>>(
        self,
        mut map: A,
        first: Option<String>,
    ) -> Result<PredictInput, A::Error> {
        let mut values = Vec::new();
        let mut seen = HashSet::new();
        let mut key = first;
        while let Some(name) = key {
            let spec = self.model.input(&name).map_err(|error| self.context.fail(error))?;
            if !seen.insert(spec.name.as_str()) {
                return Err(self.context.malformed(format!("inputs: the key {:?} is doubled", clip(&name))));
            }
            let field = format!("inputs.{name}");
            let seed =
                ValueSeed { context: self.context, ty: &spec.ty, field: &field, depth: 2, optional: spec.optional };
            match map.next_value_seed(seed)? {
                // `null` for an input that has a default leaves it out; an optional value is given as nothing.
                Value::None if !matches!(spec.ty, ValueType::Optional(_)) => {}
                value => values.push((name, value)),
            }
            key = map.next_key()?;
        }
        Ok(PredictInput::Tensors(values))
    }

    fn item(self, index: usize) -> ItemSeed<'a> {
        ItemSeed { context: self.context, index, records: self.model.records, strings: self.strings }
    }

    /// Reads the one item, an object whose first key was read.
    pub(super) fn item_object<'de, A: MapAccess<'de>>(
        self,
        map: A,
        first: Option<String>,
    ) -> Result<PredictInput, A::Error> {
        let item = match self.model.records {
            true => self.item(0).read_record(map, first)?,
            false => self.item(0).read_object(map, first)?,
        };
        Ok(PredictInput::Items { items: vec![item], single: true })
    }
}

impl<'de> Visitor<'de> for InputsSeed<'_> {
    type Value = PredictInput;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the inputs of the model")
    }

    fn visit_unit<E: Error>(self) -> Result<PredictInput, E> {
        self.bare(|seed| seed.visit_unit())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<PredictInput, E> {
        self.bare(|seed| seed.visit_bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<PredictInput, E> {
        self.bare(|seed| seed.visit_u64(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<PredictInput, E> {
        self.bare(|seed| seed.visit_i64(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<PredictInput, E> {
        self.bare(|seed| seed.visit_f64(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<PredictInput, E> {
        if self.model.task {
            let item = self.item(0).visit_str(value)?;
            return Ok(PredictInput::Items { items: vec![item], single: true });
        }
        self.bare(|seed| seed.visit_str(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PredictInput, A::Error> {
        if !self.model.task {
            return self.bare(|seed| seed.visit_seq(seq));
        }
        self.context.enter(2)?;
        let limit = self.context.limits.max_items;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.item(items.len()))? {
            if items.len() >= limit {
                return Err(self
                    .context
                    .fail(CodecError::TooLarge(format!("inputs: more than max_items = {limit} items"))));
            }
            items.push(item);
        }
        if items.is_empty() {
            return Err(self.context.unprocessable("inputs", "the list is empty; give at least one item"));
        }
        Ok(PredictInput::Items { items, single: false })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PredictInput, A::Error> {
        self.context.enter(2)?;
        let first = map.next_key::<String>()?;
        let Some(key) = first.as_deref() else {
            if self.model.task {
                return Err(self
                    .context
                    .unprocessable("inputs", "the object is empty; an item is {\"b64\"} or {\"text\"}"));
            }
            return Ok(PredictInput::Tensors(Vec::new()));
        };
        let is_input = self.model.inputs.iter().any(|spec| spec.name == key);
        if self.model.records || (self.model.task && (ITEM_KEYS.contains(&key) || !is_input)) {
            return self.item_object(map, first);
        }
        // A tensor object for the only input may stand bare as well.
        if !is_input
            && matches!(key, "dtype" | "shape" | "data")
            && let Some(spec) = self.model.only_input()
            && let ValueType::Tensor { dtype, shape } = &spec.ty
        {
            let field = format!("inputs.{}", spec.name);
            let (context, declared) = (self.context, shape.as_deref());
            let seed = TensorSeed { context, dtype: *dtype, declared, field: &field, depth: 1 };
            let tensor = seed.read_object(map, first)?;
            return Ok(PredictInput::Tensors(vec![(spec.name.clone(), tensor.into())]));
        }
        self.named(map, first)
    }
}

pub(super) const ITEM_KEYS: [&str; 5] = ["b64", "text", "text_pair", "question", "context"];
const ITEM_FORMS: &str = "{\"b64\"}, {\"text\"}, {\"text\", \"text_pair\"} or {\"question\", \"context\"}";

/// Base64 of the standard alphabet, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads one item of a task.
#[derive(Clone, Copy)]
struct ItemSeed<'a> {
    context: &'a Context<'a>,
    index: usize,
    records: bool,
    strings: Strings,
}

impl ItemSeed<'_> {
    fn refuse<E: Error>(&self, problem: impl Into<String>) -> E {
        self.context.unprocessable(&format!("inputs[{}]", self.index), problem)
    }

    fn decode<E: Error>(&self, text: &str) -> Result<Item, E> {
        match BASE64.decode(text) {
            Ok(bytes) => Ok(Item::Bytes(bytes.into())),
            Err(error) => Err(self.refuse(format!("the base64 is not valid: {error}"))),
        }
    }

    /// Reads a record whose first column's name was read.
    fn read_record<'de, A: MapAccess<'de>>(self, mut map: A, first: Option<String>) -> Result<Item, A::Error> {
        let field = format!("inputs[{}]", self.index);
        let count = Cell::new(0);
        let mut record = serde_json::Map::new();
        let mut key = first;
        while let Some(name) = key {
            let seed = super::document::DocumentSeed { context: self.context, depth: 3, field: &field, count: &count };
            let value = map.next_value_seed(seed)?;
            if record.contains_key(&name) {
                return Err(self.context.malformed(format!("{field}: the column {:?} is doubled", clip(&name))));
            }
            record.insert(name, value);
            key = map.next_key()?;
        }
        Ok(Item::Record(record))
    }

    /// Reads an item object whose first key was read.
    fn read_object<'de, A: MapAccess<'de>>(self, mut map: A, first: Option<String>) -> Result<Item, A::Error> {
        let mut fields: [Option<String>; ITEM_KEYS.len()] = Default::default();
        let mut key = first;
        while let Some(name) = key {
            let known_as = self.strings.key(&name);
            let place = ITEM_KEYS.iter().position(|known| *known == known_as);
            let Some(field) = place.and_then(|place| fields.get_mut(place)) else {
                return Err(self.refuse(format!("unknown key {:?}; an item is {ITEM_FORMS}", clip(&name))));
            };
            if field.is_some() {
                let text = format!("inputs[{}]: the key {name:?} is doubled", self.index);
                return Err(self.context.malformed(text));
            }
            *field = Some(map.next_value_seed(ItemText { seed: self, key: &name })?);
            key = map.next_key()?;
        }
        match fields {
            [Some(encoded), None, None, None, None] => self.decode(&encoded),
            [None, Some(text), None, None, None] => Ok(Item::Text(text)),
            [None, Some(text), Some(text_pair), None, None] => Ok(Item::Pair { text, text_pair }),
            [None, None, None, Some(question), Some(context)] => Ok(Item::Question { question, context }),
            _ => Err(self.refuse(format!("an item is {ITEM_FORMS}"))),
        }
    }
}

/// The encoded part of a `data:` URL in base64.
fn data_url(text: &str) -> Option<&str> {
    let (kind, data) = text.strip_prefix("data:")?.split_once(',')?;
    kind.ends_with(";base64").then_some(data)
}

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemSeed<'_> {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an item at inputs[{}]: a string, {{\"b64\"}} or {{\"text\"}}", self.index)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Item, E> {
        match (data_url(value), self.strings) {
            (Some(data), _) => self.decode(data),
            (None, Strings::Base64) => self.decode(value),
            (None, Strings::Native | Strings::Text) => Ok(Item::Text(value.to_owned())),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Item, E> {
        Err(self.refuse("expected an item, got null"))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Item, E> {
        Err(self.refuse(format!("expected an item, got {value}")))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Item, E> {
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Item, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Item, E> {
        Err(self.refuse("expected an item, got a number; tensors are given as an object of input name to tensor"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Item, A::Error> {
        Err(self.refuse("expected an item, got an array; tensors are given as an object of input name to tensor"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
        self.context.enter(3)?;
        let mut map = map;
        let first = map.next_key()?;
        if self.records {
            return self.read_record(map, first);
        }
        self.read_object(map, first)
    }
}

/// The string under an item's key.
struct ItemText<'a> {
    seed: ItemSeed<'a>,
    key: &'a str,
}

impl<'de> DeserializeSeed<'de> for ItemText<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemText<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string in inputs[{}].{}", self.seed.index, self.key)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_value;
    use super::*;
    use crate::tensor::{DType, Dim};

    const LIMITS: JsonLimits = JsonLimits { max_depth: 64, max_elements: 1600, max_items: 3 };

    fn tensor(name: &str, dtype: DType, rank: usize) -> Spec {
        let shape = Some(vec![Dim::Dynamic(None); rank]);
        Spec { name: name.into(), ty: ValueType::Tensor { dtype, shape }, optional: false }
    }

    fn spec(name: &str, ty: ValueType) -> Spec {
        Spec { name: name.into(), ty, optional: false }
    }

    /// A value as `dtype[shape]json`.
    fn show(value: &Value) -> String {
        let mut text = Vec::new();
        write_value(value, &mut text);
        let text = String::from_utf8(text).unwrap();
        match value {
            Value::Tensor(tensor) => format!("{}{:?}{text}", tensor.dtype(), tensor.shape()),
            _ => text,
        }
    }

    fn parse(inputs: &[Spec], task: bool, json: &str) -> Result<PredictBody, CodecError> {
        parse_predict(&Bytes::copy_from_slice(json.as_bytes()), &Target { inputs, task, records: false }, &LIMITS)
    }

    fn parse_one(dtype: DType, x: &str) -> Result<String, String> {
        let inputs = [tensor("x", dtype, 2)];
        let body = parse(&inputs, false, &format!(r#"{{"inputs":{{"x":{x}}}}}"#)).map_err(|error| error.to_string())?;
        let PredictInput::Tensors(values) = body.inputs else { panic!("not tensors") };
        Ok(values.iter().map(|(_, value)| show(value)).collect())
    }

    #[track_caller]
    fn check(dtype: DType, x: &str, expected: &str) {
        assert_eq!(parse_one(dtype, x).as_deref(), Ok(expected), "{x}");
    }

    #[track_caller]
    fn check_error(dtype: DType, x: &str, expected: &str) {
        let error = parse_one(dtype, x).unwrap_err();
        assert!(error.contains(expected), "{x}\n got: {error}\nwant: {expected}");
    }

    #[test]
    fn numbers_of_every_type_are_read_at_their_limits() {
        check(DType::Uint8, "[0, 255]", "UINT8[2][0,255]");
        check(DType::Int8, "[-128, 127]", "INT8[2][-128,127]");
        check(DType::Uint16, "[65535]", "UINT16[1][65535]");
        check(DType::Int16, "[-32768]", "INT16[1][-32768]");
        check(DType::Uint32, "[4294967295]", "UINT32[1][4294967295]");
        check(DType::Int32, "[-2147483648]", "INT32[1][-2147483648]");
        check(DType::Uint64, "[18446744073709551615]", "UINT64[1][18446744073709551615]");
        check(DType::Int64, "[-9223372036854775808, -0]", "INT64[2][-9223372036854775808,0]");
        check(DType::Fp16, "[65504, 0.1, 5.9604644775390625e-8]", "FP16[3][65504.0,0.099975586,5.9604645e-8]");
        check(DType::Bf16, "[1, 3.38e38]", "BF16[2][1.0,3.3762391e+38]");
        check(DType::Fp32, "[0.1, 1, -0.0, 3.4028235e38, 1e-50]", "FP32[5][0.1,1.0,-0.0,3.4028235e+38,0.0]");
        check(DType::Fp32, "[16777217, -3]", "FP32[2][16777216.0,-3.0]");
        check(DType::Fp64, "[0.1, 1.7976931348623157e308]", "FP64[2][0.1,1.7976931348623157e+308]");
        check(DType::Fp32, r#"["NaN", "Infinity", "-Infinity"]"#, r#"FP32[3]["NaN","Infinity","-Infinity"]"#);
        check(DType::Fp16, r#"["NaN", "Infinity", "-Infinity"]"#, r#"FP16[3]["NaN","Infinity","-Infinity"]"#);
        check(DType::Bool, "[true, false, 1, 0]", "BOOL[4][true,false,true,false]");
        check(DType::Int4, "[-8, 7, -1]", "INT4[3][-8,7,-1]");
        check(DType::Uint4, "[0, 15, 1]", "UINT4[3][0,15,1]");
        check(DType::Int2, "[-2, -1, 0, 1, -2]", "INT2[5][-2,-1,0,1,-2]");
        check(DType::Uint2, "[3, 0, 1, 2, 3]", "UINT2[5][3,0,1,2,3]");
        check(DType::Fp4E2M1, "[6, -0.5, 0.3]", "FP4E2M1[3][6.0,-0.5,0.5]");
        check(DType::Fp8E4M3Fn, r#"[448, 0.1, "NaN"]"#, r#"FP8E4M3FN[3][448.0,0.1015625,"NaN"]"#);
        check(DType::Fp8E5M2, r#"["-Infinity", 57344]"#, r#"FP8E5M2[2]["-Infinity",57344.0]"#);
        check(DType::Fp8E8M0, "[1, 0.5]", "FP8E8M0[2][1.0,0.5]");
        check(DType::String, r#"["a", "", "é\n\u0041"]"#, r#"BYTES[3]["a","","é\nA"]"#);
        check(DType::String, r#"["a\u0000b"]"#, r#"BYTES[1]["a\u0000b"]"#);
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused_with_input_index_and_range() {
        check_error(DType::Uint8, "[[1, 2], [3, 300]]", "inputs.x[1][1]: 300 does not fit UINT8 (0 to 255)");
        check_error(DType::Uint8, "[-1]", "inputs.x[0]: -1 does not fit UINT8 (0 to 255)");
        check_error(DType::Int64, "[9223372036854775808]", "inputs.x[0]: 9223372036854775808 does not fit INT64");
        check_error(DType::Uint64, "[18446744073709551616]", "does not fit UINT64");
        check_error(DType::Int32, "[1.5]", "inputs.x[0]: 1.5 is not an integer; INT32 takes integers");
        check_error(DType::Int32, "[3.0]", "3.0 is written as a float; INT32 takes integers without fraction");
        check_error(DType::Int32, "[1e2]", "100.0 is written as a float");
        check_error(DType::Fp32, "[1e39]", "inputs.x[0]: 1e39 does not fit FP32 (-3.4028234663852886e38 to");
        check_error(DType::Fp32, "[1e999]", "number out of range");
        check_error(DType::Fp64, "[-1e999]", "number out of range");
        check_error(DType::Fp16, "[65520]", "65520 does not fit FP16 (-6.5504e4 to 6.5504e4)");
        check_error(DType::Fp32, "[NaN]", "the body is not valid JSON");
        check_error(DType::Fp32, r#"["nan"]"#, r#"inputs.x[0]: "nan" is not a value of FP32; the only strings are"#);
        check_error(DType::Fp32, r#"["1.0"]"#, "the only strings are");
        check_error(DType::Int8, r#"["NaN"]"#, r#""NaN" is a string, not a value of INT8"#);
        check_error(DType::Fp32, "[true]", "true is not a value of FP32");
        check_error(DType::Fp32, "[null]", "inputs.x[0]: null is not a value of FP32");
        check_error(DType::Fp32, "[{}]", "inputs.x[0]: an object is not a value of FP32");
        check_error(DType::Fp32, "null", "inputs.x: expected FP32[-1, -1], got null");
        check_error(DType::Bool, "[2]", "2 is not a value of BOOL; it takes true, false, 1 and 0");
        check_error(DType::Bool, r#"["true"]"#, "is a string");
        check_error(DType::Int4, "[8]", "8 does not fit INT4 (-8 to 7)");
        check_error(DType::Uint4, "[-1]", "-1 does not fit UINT4 (0 to 15)");
        check_error(DType::Int4, "[0.5]", "0.5 is not an integer");
        check_error(DType::Fp8E4M3Fn, "[449]", "449.0 does not fit FP8E4M3FN (-448.0 to 448.0)");
        check_error(DType::Fp8E4M3Fn, r#"["Infinity"]"#, "inf is not a value of FP8E4M3FN");
        check_error(DType::String, "[1]", "inputs.x[0]: 1 is a number; BYTES takes strings");
        check_error(DType::String, "[true]", "BYTES takes strings");
        check_error(DType::String, r#"["\ud800"]"#, "not valid JSON");
    }

    #[test]
    fn the_shape_is_that_of_the_nesting() {
        check(DType::Fp32, "5", "FP32[]5.0");
        check(DType::Fp32, "[]", "FP32[0, 0][]");
        check(DType::Fp32, "[[],[]]", "FP32[2, 0][[],[]]");
        check(DType::Fp32, "[[[]]]", "FP32[1, 1, 0][[[]]]");
        check(DType::Int8, "[[1,2,3],[4,5,6]]", "INT8[2, 3][[1,2,3],[4,5,6]]");
        check(DType::Int8, "[[[1],[2]],[[3],[4]]]", "INT8[2, 2, 1][[[1],[2]],[[3],[4]]]");
        check_error(
            DType::Int8,
            "[[1,2],[3]]",
            "inputs.x[1]: has 1 elements where the first array of this level has 2",
        );
        check_error(DType::Int8, "[[1],2]", "inputs.x[1]: is a single value where an array was expected");
        check_error(DType::Int8, "[1,[2]]", "inputs.x[1]: is an array where a single value was expected");
        check_error(DType::Int8, "[[],1]", "inputs.x[1]: is a single value");
        check_error(DType::Int8, "[[],[1]]", "inputs.x[1]: has 1 elements where the first array of this level has 0");
        check_error(DType::Int8, "[[[1,2]],[[1,2],[3,4]]]", "inputs.x[1]: has 2 elements");
        check_error(DType::Int8, "[[[1]],[[[1]]]]", "inputs.x[1][0][0]: is an array");
    }

    #[test]
    fn an_empty_array_takes_its_inner_sizes_from_the_declared_shape() {
        let shape = Some(vec![Dim::Dynamic(None), Dim::Fixed(3), Dim::Fixed(2)]);
        let inputs = [spec("x", ValueType::Tensor { dtype: DType::Fp32, shape })];
        let body = parse(&inputs, false, r#"{"inputs":[]}"#).unwrap();
        let PredictInput::Tensors(values) = body.inputs else { panic!("not tensors") };
        assert_eq!(values[0].1.as_tensor().unwrap().shape(), [0, 3, 2]);
    }

    #[test]
    fn a_tensor_object_states_type_and_shape_in_any_order() {
        check(DType::Fp32, r#"{"dtype":"FP32","shape":[2,2],"data":[1,2,3,4]}"#, "FP32[2, 2][[1.0,2.0],[3.0,4.0]]");
        check(DType::Fp32, r#"{"data":[1,2,3,4],"shape":[2,2],"dtype":"float32"}"#, "FP32[2, 2][[1.0,2.0],[3.0,4.0]]");
        check(DType::Fp32, r#"{"data":[[1,2]]}"#, "FP32[1, 2][[1.0,2.0]]");
        check(DType::Fp32, r#"{"data":[1],"dtype":"int64"}"#, "INT64[1][1]");
        check(DType::Fp32, r#"{"shape":[],"data":[1]}"#, "FP32[]1.0");
        check(DType::Fp32, r#"{"shape":[],"data":1}"#, "FP32[]1.0");
        check(DType::Fp32, r#"{"shape":[0,3],"data":[]}"#, "FP32[0, 3][]");
        check(DType::Fp32, r#"{"shape":[2,0],"data":[[],[]]}"#, "FP32[2, 0][[],[]]");
        check(DType::Fp32, r#"{"shape":[2,1],"data":[[1],[2]]}"#, "FP32[2, 1][[1.0],[2.0]]");
        check(DType::Fp32, r#"{"dtype":"BYTES","shape":[1],"data":["a"]}"#, r#"BYTES[1]["a"]"#);
        check_error(DType::Fp32, r#"{"shape":[2,2],"data":[1,2,3]}"#, "shape [2, 2] needs 4 elements, got 3");
        check_error(DType::Fp32, r#"{"shape":[2,2],"data":[[1,2,3,4]]}"#, "nested as [1, 4], the shape is [2, 2]");
        check_error(DType::Fp32, r#"{"shape":[-1],"data":[1]}"#, "inputs.x.shape[0]: -1 does not fit");
        check_error(DType::Fp32, r#"{"shape":[1.5],"data":[1]}"#, "inputs.x.shape[0]: 1.5 is not an integer");
        check_error(DType::Fp32, r#"{"shape":["1"],"data":[1]}"#, "inputs.x.shape[0]:");
        check_error(DType::Fp32, r#"{"shape":null,"data":[1]}"#, "inputs.x.shape: null");
        check_error(DType::Fp32, r#"{"shape":3,"data":[1]}"#, "a shape is a flat array");
        check_error(DType::Fp32, r#"{"shape":[[3]],"data":[1]}"#, "a shape is a flat array");
        check_error(
            DType::Fp32,
            r#"{"shape":[1000000000000000000000000000000],"data":[1]}"#,
            "shape[0]: 1e30 does not fit",
        );
        check_error(DType::Fp32, r#"{"shape":[4,1152921504606846978],"data":[1]}"#, "max_tensor_elements");
        check_error(DType::Fp32, r#"{"shape":[4611686018427387904,0],"data":[]}"#, "max_tensor_elements");
        check_error(DType::Fp32, r#"{"dtype":"FP33","data":[1]}"#, r#"unknown dtype "FP33""#);
        check_error(DType::Fp32, r#"{"dtype":7,"data":[1]}"#, "expected a string for dtype");
        check_error(DType::Fp32, r#"{"shape":[1]}"#, "inputs.x: the tensor has no \"data\"");
        check_error(DType::Fp32, r#"{"data":[1],"data":[1]}"#, "the key \"data\" is doubled");
        check_error(DType::Fp32, r#"{"shape":[1],"shape":[1],"data":[1]}"#, "the key \"shape\" is doubled");
        check_error(
            DType::Fp32,
            r#"{"data":[1],"type":"FP32"}"#,
            "unknown key \"type\"; a tensor has dtype, shape and data",
        );
        check_error(DType::Fp32, r#"{"data":{"data":[1]}}"#, "an object is not a value");
        check_error(DType::Fp32, r#"{"data":[1e999]}"#, "inputs.x: number out of range");
        check_error(DType::Uint8, r#"{"data":[[1],[300]]}"#, "inputs.x[1][0]: 300 does not fit");
    }

    #[test]
    fn limits_of_depth_and_elements_hold_everywhere() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_one(DType::Fp32, &deep(62)).is_ok());
        check_error(DType::Fp32, &deep(63), "nested deeper than max_json_depth = 64");
        check_error(DType::Fp32, &deep(100_000), "nested deeper than max_json_depth = 64");
        check_error(DType::Fp32, &format!(r#"{{"data":{}}}"#, deep(100_000)), "nested deeper");
        check_error(DType::Fp32, &format!(r#"{{"dtype":{}}}"#, deep(100_000)), "invalid type");
        check_error(DType::Fp32, &format!(r#"{{"shape":{}}}"#, deep(100_000)), "nested deeper");
        check_error(DType::Fp32, &format!("[{}]", vec!["1"; 1601].join(",")), "more than max_tensor_elements = 1600");
        check_error(DType::String, &format!("[{}]", vec!["\"\""; 101].join(",")), "more than 100 strings");
        let inputs = [tensor("x", DType::Fp32, 1)];
        for key in ["parameters", "id", "timeout_ms"] {
            let error = parse(&inputs, false, &format!(r#"{{"{key}":{}}}"#, deep(100_000))).unwrap_err();
            assert!(error.to_string().contains("nested deeper"), "{key}: {error}");
        }
        let many = vec!["0"; 70_000].join(",");
        let error = parse(&inputs, false, &format!(r#"{{"inputs":[1],"parameters":{{"a":[{many}]}}}}"#)).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge(_)), "{error}");
        let error = parse(&inputs, false, &format!(r#"{{"inputs":[1],"id":"{}"}}"#, "x".repeat(1 << 20))).unwrap_err();
        assert!(error.to_string().contains("at most 1024"), "{error}");
    }

    #[track_caller]
    fn check_body(inputs: &[Spec], json: &str, expected: &str) {
        let got = match parse(inputs, false, json) {
            Err(error) => error.to_string(),
            Ok(body) => match body.inputs {
                PredictInput::Tensors(values) => {
                    values.iter().map(|(name, value)| format!("{name}={} ", show(value))).collect()
                }
                PredictInput::Items { .. } => "items".into(),
            },
        };
        assert!(
            if expected.is_empty() { got.is_empty() } else { got.contains(expected) },
            "{json}\n got: {got}\nwant: {expected}"
        );
    }

    #[test]
    fn a_body_is_one_object_with_known_keys_each_once() {
        let one = [tensor("x", DType::Fp32, 1)];
        check_body(&one, "", "not valid JSON: EOF");
        check_body(&one, "null", "expected an object with the key \"inputs\"");
        check_body(&one, "[]", "expected an object");
        check_body(&one, "{}", "no key \"inputs\"");
        check_body(&one, "\u{feff}{}", "not valid JSON");
        check_body(&one, "{\0\"\0", "not valid JSON");
        check_body(&one, r#"{"inputs":[1]} x"#, "trailing characters");
        check_body(&one, r#"{"inputs":[1]"#, "not valid JSON: EOF");
        check_body(&one, r#"{"inputs":[1,]}"#, "not valid JSON");
        check_body(&one, r#"{"inputs":[01]}"#, "not valid JSON");
        check_body(&one, r#"{"inputs":[1],"inputs":[1]}"#, "the key \"inputs\" is doubled");
        check_body(&one, r#"{"inputs":[1],"id":"a","id":"a"}"#, "the key \"id\" is doubled");
        check_body(&one, r#"{"inputs":[1],"parameters":{"a":1,"a":2}}"#, "parameters: the key \"a\" is doubled");
        check_body(&one, r#"{"inputs":{"x":[1],"x":[2]}}"#, "the key \"x\" is doubled");
        check_body(&one, r#"{"input":[1]}"#, "unknown key \"input\"; a body has the keys inputs, parameters");
        check_body(&one, r#"{"inputs":[1],"parameters":[]}"#, "parameters must be an object");
        check_body(&one, r#"{"inputs":[1],"id":7}"#, "id must be a string");
        check_body(&one, r#"{"inputs":[1],"timeout_ms":-1}"#, "timeout_ms must be a whole number");
        check_body(&one, r#"{"inputs":[1],"timeout_ms":1.5}"#, "timeout_ms must be a whole number");
        check_body(
            &one,
            r#"{"inputs":[1],"priority":4294967296}"#,
            "priority must be a whole number from 0 to 4294967295",
        );
        check_body(
            &one,
            r#"{"inputs":[1],"priority":null,"id":null,"timeout_ms":null,"parameters":null}"#,
            "x=FP32[1][1.0]",
        );
        let body =
            parse(&one, false, r#"{"timeout_ms":5,"inputs":[1],"id":"q","priority":1,"parameters":{"top_k":3}}"#);
        let body = body.unwrap();
        assert_eq!((body.timeout_ms, body.id.as_deref(), body.priority), (Some(5), Some("q"), Some(1)));
        assert_eq!(body.parameters["top_k"], 3);
    }

    #[test]
    fn inputs_come_by_name_or_bare_where_one_is_needed() {
        let one = [tensor("x", DType::Fp32, 1)];
        let two = [tensor("a", DType::Fp32, 1), tensor("b", DType::Int64, 1)];
        let mut defaulted = two.clone();
        defaulted[1].optional = true;
        check_body(&one, r#"{"inputs":[1]}"#, "x=FP32[1][1.0] ");
        check_body(&one, r#"{"inputs":1}"#, "x=FP32[]1.0 ");
        check_body(&one, r#"{"inputs":{"x":[1]}}"#, "x=FP32[1][1.0] ");
        check_body(&one, r#"{"inputs":{"data":[1],"shape":[1,1]}}"#, "x=FP32[1, 1][[1.0]] ");
        check_body(&one, r#"{"inputs":{}}"#, "");
        check_body(&one, r#"{"inputs":{"y":[1]}}"#, "inputs.y: the model has no such input; its inputs are x");
        check_body(&two, r#"{"inputs":{"b":[1],"a":[2]}}"#, "b=INT64[1][1] a=FP32[1][2.0] ");
        check_body(&two, r#"{"inputs":[1]}"#, "inputs: expected an object of input name to value; the inputs are a, b");
        check_body(&two, r#"{"inputs":"text"}"#, "expected an object of input name to value");
        check_body(&defaulted, r#"{"inputs":[1]}"#, "a=FP32[1][1.0] ");
        check_body(&defaulted, r#"{"inputs":{"a":[1],"b":null}}"#, "a=FP32[1][1.0] ");
        check_body(&two, r#"{"inputs":{"a":[1],"b":null}}"#, "inputs.b: expected INT64[-1], got null");
    }

    #[test]
    fn sequences_maps_and_optionals_are_read_as_json_has_them() {
        let float = ValueType::Tensor { dtype: DType::Fp32, shape: None };
        let map = |key, value| spec("m", ValueType::Map { key, value });
        let sequence = [spec("s", ValueType::Sequence(Box::new(float.clone())))];
        let optional = [spec("o", ValueType::Optional(Box::new(float.clone())))];
        check_body(
            &sequence,
            r#"{"inputs":[[1,2],[[3]],4,{"data":[5],"dtype":"FP32"}]}"#,
            "s=[[1.0,2.0],[[3.0]],4.0,[5.0]]",
        );
        check_body(&sequence, r#"{"inputs":{"s":[]}}"#, "s=[]");
        check_body(&sequence, r#"{"inputs":{"s":[[1],[2,"x"]]}}"#, "inputs.s[1][1]: \"x\" is not a value of FP32");
        check_body(&sequence, r#"{"inputs":{"s":1}}"#, "inputs.s: expected sequence(FP32[...]), got a number");
        check_body(&sequence, r#"{"inputs":{"s":{"a":1}}}"#, "inputs.s: expected sequence(FP32[...]), got an object");
        check_body(&optional, r#"{"inputs":{"o":null}}"#, "o=null");
        check_body(&optional, r#"{"inputs":{"o":[1]}}"#, "o=FP32[1][1.0]");
        check_body(&[map(DType::String, DType::Fp32)], r#"{"inputs":{"m":{"a":1,"b":2.5}}}"#, r#"m={"a":1.0,"b":2.5}"#);
        check_body(&[map(DType::Int64, DType::Int64)], r#"{"inputs":{"m":{"-1":1,"2":2}}}"#, r#"m={"-1":1,"2":2}"#);
        check_body(
            &[map(DType::Int64, DType::Int64)],
            r#"{"inputs":{"m":{"x":1}}}"#,
            "the key \"x\" is not an integer",
        );
        check_body(&[map(DType::Int64, DType::Int64)], r#"{"inputs":{"m":{"1":1,"1":2}}}"#, "the key \"1\" is doubled");
        check_body(&[map(DType::String, DType::Fp32)], r#"{"inputs":{"m":{"a":[1]}}}"#, "inputs.m.a: is an array");
        check_body(
            &[map(DType::String, DType::Fp32)],
            r#"{"inputs":{"m":{"a":"b"}}}"#,
            "inputs.m.a: \"b\" is not a value",
        );
        check_body(&[map(DType::String, DType::Fp32)], r#"{"inputs":{"m":{}}}"#, "m={}");
        check_body(
            &[map(DType::String, DType::Fp32)],
            r#"{"inputs":{"m":[1]}}"#,
            "expected map(BYTES to FP32), got an array",
        );
    }

    #[track_caller]
    fn check_items(x: &str, expected: &str) {
        let inputs = [tensor("pixel_values", DType::Fp32, 1)];
        let got = match parse(&inputs, true, &format!(r#"{{"inputs":{x}}}"#)) {
            Err(error) => error.to_string(),
            Ok(PredictBody { inputs: PredictInput::Items { items, single }, .. }) => {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| match item {
                        Item::Bytes(bytes) => format!("b:{}", String::from_utf8_lossy(bytes)),
                        Item::Text(text) => format!("t:{text}"),
                        Item::Pair { text, text_pair } => format!("p:{text}/{text_pair}"),
                        Item::Question { question, context } => format!("q:{question}/{context}"),
                        Item::Record(record) => format!("r:{}", serde_json::Value::Object(record.clone())),
                    })
                    .collect();
                format!("{single} {}", items.join(" "))
            }
            Ok(PredictBody { inputs: PredictInput::Tensors(values), .. }) => {
                values.iter().map(|(name, value)| format!("{name}={}", show(value))).collect()
            }
        };
        assert!(got.contains(expected), "{x}\n got: {got}\nwant: {expected}");
    }

    #[test]
    fn items_of_a_task_come_alone_or_in_a_list() {
        check_items(r#""hello""#, "true t:hello");
        check_items(r#"["a", "b"]"#, "false t:a t:b");
        check_items(r#"[{"text": "a", "text_pair": "b"}, {"context": "c", "question": "d"}]"#, "false p:a/b q:d/c");
        check_items(r#"{"text_pair": "b"}"#, "inputs[0]: an item is {\"b64\"}, {\"text\"}");
        check_items(r#"{"question": "b", "text": "c"}"#, "inputs[0]: an item is");
        check_items(r#"{"b64":"aGk="}"#, "true b:hi");
        check_items(r#"{"b64":"aGk"}"#, "true b:hi");
        check_items(r#""data:image/png;base64,aGk=""#, "true b:hi");
        check_items(r#"[{"text":"a"}, {"b64":"aGk="}, "data:;base64,aGk="]"#, "false t:a b:hi b:hi");
        check_items(r#"{"text":"data:image/png;base64,aGk="}"#, "true t:data:");
        check_items(r#""data: the word, and ;base64, later""#, "true t:data: the word");
        check_items(r#"{"pixel_values":[1]}"#, "pixel_values=FP32[1][1.0]");
        check_items("[]", "the list is empty");
        check_items("{}", "the object is empty");
        check_items("[{}]", "inputs[0]: an item is {\"b64\"}");
        check_items("[1]", "inputs[0]: expected an item, got a number");
        check_items(r#"["a", [1]]"#, "inputs[1]: expected an item, got an array");
        check_items("[null]", "inputs[0]: expected an item, got null");
        check_items("1", "inputs: expected an item");
        check_items("null", "inputs: expected an item");
        check_items(r#"{"b64":"a*"}"#, "inputs[0]: the base64 is not valid");
        check_items(r#"["x", "data:image/png;base64,%%"]"#, "inputs[1]: the base64 is not valid");
        check_items(r#"{"b64":7}"#, "expected a string in inputs[0]");
        check_items(r#"{"b64":"aGk=","text":"a"}"#, "inputs[0]: an item is {\"b64\"}");
        check_items(r#"{"b64":"aGk=","b64":"aGk="}"#, "the key \"b64\" is doubled");
        check_items(r#"{"url":"http://x"}"#, "unknown key \"url\"");
        check_items(r#"["a","b","c","d"]"#, "more than max_items = 3 items");
    }

    #[test]
    fn errors_fall_into_their_classes() {
        let inputs = [tensor("x", DType::Uint8, 1)];
        assert!(matches!(parse(&inputs, false, "{"), Err(CodecError::Malformed(_))));
        assert!(matches!(parse(&inputs, false, r#"{"inputs":[300]}"#), Err(CodecError::Unprocessable { .. })));
        let many = format!(r#"{{"inputs":[{}]}}"#, vec!["1"; 1601].join(","));
        assert!(matches!(parse(&inputs, false, &many), Err(CodecError::TooLarge(_))));
        let name = "n".repeat(100_000);
        let error = parse(&inputs, false, &format!(r#"{{"inputs":{{"{name}":1}}}}"#)).unwrap_err();
        assert!(error.to_string().len() < 4096, "texts stay short");
    }

    #[test]
    fn a_value_alone_is_read_like_one_in_a_body() {
        let x = tensor("x", DType::Fp32, 1);
        assert_eq!(show(&parse_value(b"[1,2]", &x, &LIMITS).unwrap()), "FP32[2][1.0,2.0]");
        let error = parse_value(b"[1,", &x, &LIMITS).unwrap_err();
        assert!(error.to_string().starts_with("inputs.x is not valid JSON: EOF"), "{error}");
        assert!(parse_object(b"[]", "parameters", &LIMITS).is_err());
        assert_eq!(parse_object(b"{\"a\":1}", "parameters", &LIMITS).unwrap()["a"], 1);
    }
}

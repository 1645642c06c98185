//! Small free-form parts of a body (`parameters`), and values that are skipped: bounded in depth and number, and strict
//! about doubled keys.

use super::Context;
use crate::codec::{CodecError, clip};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Values in one free-form part.
const MAX_VALUES: usize = 65_536;

/// Reads any JSON value.
#[derive(Clone, Copy)]
pub(super) struct DocumentSeed<'a> {
    pub(super) context: &'a Context<'a>,
    /// How deep the value stands.
    pub(super) depth: usize,
    pub(super) field: &'a str,
    /// Values read so far.
    pub(super) count: &'a Cell<usize>,
}

impl DocumentSeed<'_> {
    fn count<E: Error>(&self) -> Result<(), E> {
        self.count.set(self.count.get() + 1);
        if self.count.get() <= MAX_VALUES {
            return Ok(());
        }
        Err(self.context.fail(CodecError::TooLarge(format!("{} holds more than {MAX_VALUES} values", self.field))))
    }

    fn inner(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for DocumentSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DocumentSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.context.enter(self.depth + 1)?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.context.enter(self.depth + 1)?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(self.context.malformed(format!("{}: the key {:?} is doubled", self.field, clip(&key))));
            }
            let value = map.next_value_seed(self.inner())?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

/// Reads an object; `null` is an empty one.
pub(super) fn read_object<'de, A: MapAccess<'de>>(
    context: &Context<'_>,
    map: &mut A,
    depth: usize,
    field: &str,
) -> Result<Map<String, Value>, A::Error> {
    let count = Cell::new(0);
    match map.next_value_seed(DocumentSeed { context, depth, field, count: &count })? {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(Map::new()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(context.malformed(format!("{field} must be an object")))
        }
    }
}

/// Reads a string of at most `max_bytes`; `null` is none.
pub(super) fn read_text<'de, A: MapAccess<'de>>(
    context: &Context<'_>,
    map: &mut A,
    field: &str,
    max_bytes: usize,
) -> Result<Option<String>, A::Error> {
    let count = Cell::new(0);
    match map.next_value_seed(DocumentSeed { context, depth: 1, field, count: &count })? {
        Value::Null => Ok(None),
        Value::String(text) if text.len() <= max_bytes => Ok(Some(text)),
        Value::String(text) => {
            Err(context.malformed(format!("{field} has {} bytes; at most {max_bytes} are accepted", text.len())))
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(context.malformed(format!("{field} must be a string")))
        }
    }
}

/// Skips any value, with its depth counted.
#[derive(Clone, Copy)]
pub(super) struct Skip<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) depth: usize,
}

impl<'de> DeserializeSeed<'de> for Skip<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.context.enter(self.depth + 1)?;
        while seq.next_element_seed(Skip { depth: self.depth + 1, ..self })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.context.enter(self.depth + 1)?;
        while map.next_key_seed(Skip { depth: self.depth + 1, ..self })?.is_some() {
            map.next_value_seed(Skip { depth: self.depth + 1, ..self })?;
        }
        Ok(())
    }
}

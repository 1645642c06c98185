//! Values for a graph's inputs from JSON: nested arrays, scalars, `{"dtype", "shape", "data"}` objects, and the sequences,
//! maps and optionals made of them.
//!
//! The shape of a nested array is the shape of its first branch; whatever differs from that is ragged and refused with its
//! index path. Numbers are parsed as `f64` and rounded once more for `FP32`, as NumPy does with a Python list.

use super::element::{Sink, with_sink};
use super::{Context, parse_all};
use crate::codec::{CodecError, STRING_WEIGHT, checked_count, clip, too_many_elements, with_shape};
use crate::tensor::{DType, Dim, Tensor, Value, ValueType};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::fmt;

/// Reads one value of a declared type.
#[derive(Clone, Copy)]
pub(super) struct ValueSeed<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) ty: &'a ValueType,
    /// What error texts call the value, such as `inputs.x`.
    pub(super) field: &'a str,
    /// How deep the value stands.
    pub(super) depth: usize,
    /// Whether `null` leaves the input out.
    pub(super) optional: bool,
}

impl<'a> ValueSeed<'a> {
    /// The seed of the tensor that this value is; the problem where it is none.
    fn tensor<E: Error>(&self, got: &str) -> Result<TensorSeed<'a>, E> {
        match self.ty.without_optional() {
            ValueType::Tensor { dtype, shape } => Ok(TensorSeed {
                context: self.context,
                dtype: *dtype,
                declared: shape.as_deref(),
                field: self.field,
                depth: self.depth,
            }),
            ty => Err(self.context.unprocessable(self.field, format!("expected {ty}, got {got}"))),
        }
    }
}

/// The type inside any number of optionals.
trait WithoutOptional {
    fn without_optional(&self) -> &ValueType;
}

impl WithoutOptional for ValueType {
    fn without_optional(&self) -> &ValueType {
        let mut ty = self;
        while let ValueType::Optional(inner) = ty {
            ty = inner;
        }
        ty
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.ty, self.field)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        if self.optional || matches!(self.ty, ValueType::Optional(_)) {
            return Ok(Value::None);
        }
        Err(self.context.unprocessable(self.field, format!("expected {}, got null", self.ty)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.tensor("a boolean")?.visit_bool(value).map(Value::Tensor)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.tensor("a number")?.visit_u64(value).map(Value::Tensor)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.tensor("a number")?.visit_i64(value).map(Value::Tensor)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.tensor("a number")?.visit_f64(value).map(Value::Tensor)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.tensor("a string")?.visit_str(value).map(Value::Tensor)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let ValueType::Sequence(element) = self.ty.without_optional() else {
            return self.tensor("an array")?.visit_seq(seq).map(Value::Tensor);
        };
        self.context.enter(self.depth + 1)?;
        // An element is a whole value with its own buffers, so it weighs more than a number.
        let limit = self.context.limits.max_elements / STRING_WEIGHT;
        let mut values = Vec::new();
        loop {
            let field = format!("{}[{}]", self.field, values.len());
            let seed = ValueSeed { ty: element, field: &field, depth: self.depth + 1, optional: false, ..self };
            let Some(value) = seq.next_element_seed(seed)? else { return Ok(Value::Sequence(values)) };
            if values.len() >= limit {
                return Err(self
                    .context
                    .fail(CodecError::TooLarge(format!("{}: more than {limit} values", self.field))));
            }
            values.push(value);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        match self.ty.without_optional() {
            ValueType::Map { key, value } => self.read_map(map, *key, *value),
            ValueType::Tensor { .. } | ValueType::Sequence(_) | ValueType::Optional(_) => {
                self.tensor("an object")?.visit_map(map).map(Value::Tensor)
            }
        }
    }
}

impl ValueSeed<'_> {
    fn read_map<'de, A: MapAccess<'de>>(self, mut map: A, key: DType, value: DType) -> Result<Value, A::Error> {
        self.context.enter(self.depth + 1)?;
        let (keys, values) = self.collect_map(&mut map, value)?;
        let count = keys.len();
        let fail = |error| self.context.fail(CodecError::tensor(self.field, &error));
        let keys = match key {
            DType::String => Tensor::from_strings(vec![count], keys).map_err(fail)?,
            key => self.integer_keys(key, &keys)?,
        };
        Ok(Value::Map { keys, values })
    }

    fn collect_map<'de, A: MapAccess<'de>>(
        &self,
        map: &mut A,
        value: DType,
    ) -> Result<(Vec<String>, Tensor), A::Error> {
        let mut keys: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let limit = self.context.limits.max_elements / STRING_WEIGHT;
        with_sink!(value, |sink| {
            let mut grid = Grid::new(self.context, self.field, sink, self.depth + 1);
            // Every value is a scalar.
            grid.leaf = Some(0);
            while let Some(key) = map.next_key::<String>()? {
                if !seen.insert(key.clone()) {
                    return Err(self.context.malformed(format!("{}: the key {:?} is doubled", self.field, clip(&key))));
                }
                if keys.len() >= limit {
                    return Err(self.context.fail(too_many_elements(
                        self.field,
                        true,
                        self.context.limits.max_elements,
                    )));
                }
                if let Err(error) = map.next_value_seed(Node { grid: &mut grid, level: 0 }) {
                    grid.report(&format!("{}.{}", self.field, clip(&key)));
                    return Err(error);
                }
                keys.push(key);
            }
            let count = keys.len();
            match grid.sink.finish(vec![count]) {
                Ok(values) => Ok((keys, values)),
                Err(error) => Err(self.context.fail(CodecError::tensor(self.field, &error))),
            }
        })
    }

    fn integer_keys<E: Error>(&self, dtype: DType, keys: &[String]) -> Result<Tensor, E> {
        with_sink!(dtype, |sink| {
            let mut sink = sink;
            for key in keys {
                let pushed = match (key.parse::<i64>(), key.parse::<u64>()) {
                    (Ok(value), _) => sink.signed(value),
                    (_, Ok(value)) => sink.unsigned(value),
                    _ => Err(format!("the key {:?} is not an integer", clip(key))),
                };
                pushed.map_err(|problem| self.context.unprocessable(self.field, problem))?;
            }
            sink.finish(vec![keys.len()]).map_err(|error| self.context.fail(CodecError::tensor(self.field, &error)))
        })
    }
}

/// Reads one tensor: a nested array, a scalar, or an object with `data`.
#[derive(Clone, Copy)]
pub(super) struct TensorSeed<'a> {
    pub(super) context: &'a Context<'a>,
    /// The type to read, unless an object names another.
    pub(super) dtype: DType,
    /// The declared shape: only the inner dimensions of empty arrays are taken from it.
    pub(super) declared: Option<&'a [Dim]>,
    pub(super) field: &'a str,
    pub(super) depth: usize,
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = Tensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tensor, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Elements that room is made for before the first is read, at most.
const RESERVED_MAX: usize = 1024;

/// Elements of a value of the declared shape whose free dimensions are 1; few at most.
fn one_row(declared: &[Dim]) -> usize {
    let sizes = declared.iter().map(|dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Dynamic(_) => 1,
    });
    sizes.fold(1, usize::saturating_mul).min(RESERVED_MAX)
}

impl TensorSeed<'_> {
    /// Reads with `visit` into `sink` and makes a tensor of it.
    fn collect<S: Sink, E: Error>(
        self,
        mut sink: S,
        visit: impl FnOnce(Node<'_, '_, S>) -> Result<(), E>,
    ) -> Result<Tensor, E> {
        sink.reserve(self.declared.map_or(0, one_row));
        let mut grid = Grid::new(self.context, self.field, sink, self.depth);
        if let Err(error) = visit(Node { grid: &mut grid, level: 0 }) {
            grid.report(self.field);
            return Err(error);
        }
        let shape = grid.shape(self.declared);
        grid.sink.finish(shape).map_err(|error| self.context.fail(CodecError::tensor(self.field, &error)))
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = Tensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values for {}", self.dtype, self.field)
    }

    fn visit_unit<E: Error>(self) -> Result<Tensor, E> {
        Err(self.context.unprocessable(self.field, format!("expected {} values, got null", self.dtype)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Tensor, E> {
        with_sink!(self.dtype, |sink| self.collect(sink, |node| node.visit_bool(value)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Tensor, E> {
        with_sink!(self.dtype, |sink| self.collect(sink, |node| node.visit_u64(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Tensor, E> {
        with_sink!(self.dtype, |sink| self.collect(sink, |node| node.visit_i64(value)))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Tensor, E> {
        with_sink!(self.dtype, |sink| self.collect(sink, |node| node.visit_f64(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Tensor, E> {
        with_sink!(self.dtype, |sink| self.collect(sink, |node| node.visit_str(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Tensor, A::Error> {
        with_sink!(self.dtype, |sink| self.collect(sink, |node| node.visit_seq(seq)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tensor, A::Error> {
        self.read_object(map, None)
    }
}

impl TensorSeed<'_> {
    /// Reads `{"dtype", "shape", "data"}`, whose first key may have been read. `dtype` and `shape` may be left out.
    pub(super) fn read_object<'de, A: MapAccess<'de>>(
        self,
        mut map: A,
        first: Option<String>,
    ) -> Result<Tensor, A::Error> {
        let context = self.context;
        context.enter(self.depth + 1)?;
        let (mut dtype, mut shape, mut data, mut raw) = (None, None, None, None::<&'de RawValue>);
        let mut key = match first {
            Some(key) => Some(key),
            None => map.next_key::<String>()?,
        };
        while let Some(name) = key {
            let doubled = match name.as_str() {
                "dtype" => dtype.replace(self.read_dtype(&map.next_value_seed(TextSeed("dtype"))?)?).is_some(),
                "shape" => {
                    let seed = ShapeSeed { context, field: self.field, depth: self.depth + 1 };
                    shape.replace(map.next_value_seed(seed)?).is_some()
                }
                "data" if data.is_some() || raw.is_some() => true,
                // The data is read as it comes where its type is known, and put aside where `dtype` may follow.
                "data" => {
                    match dtype {
                        Some(dtype) => data = Some(map.next_value_seed(self.data_seed(dtype))?),
                        None => raw = Some(map.next_value()?),
                    }
                    false
                }
                other => {
                    return Err(context.malformed(format!(
                        "{}: unknown key {:?}; a tensor has dtype, shape and data",
                        self.field,
                        clip(other)
                    )));
                }
            };
            if doubled {
                return Err(context.malformed(format!("{}: the key {name:?} is doubled", self.field)));
            }
            key = map.next_key()?;
        }
        let tensor = match (data, raw) {
            (Some(data), _) => data,
            (None, Some(raw)) => self.data_seed(dtype.unwrap_or(self.dtype)).read_raw(raw)?,
            (None, None) => return Err(context.unprocessable(self.field, "the tensor has no \"data\"")),
        };
        let Some(shape) = shape else { return Ok(tensor) };
        apply_shape(context, self.field, tensor, shape)
    }

    fn read_dtype<E: Error>(&self, name: &str) -> Result<DType, E> {
        DType::parse(name)
            .ok_or_else(|| self.context.unprocessable(self.field, format!("unknown dtype {:?}", clip(name))))
    }

    fn data_seed(self, dtype: DType) -> DataSeed<Self> {
        DataSeed(TensorSeed { dtype, depth: self.depth + 1, ..self })
    }
}

/// Puts the stated shape on data that was read.
pub(super) fn apply_shape<E: Error>(
    context: &Context<'_>,
    field: &str,
    tensor: Tensor,
    shape: Vec<usize>,
) -> Result<Tensor, E> {
    checked_count(field, &shape, tensor.dtype() == DType::String, context.limits.max_elements)
        .and_then(|count| with_shape(field, tensor, shape, count))
        .map_err(|error| context.fail(error))
}

/// Reads the `data` of a tensor: a nested or flat array or a scalar, but no object.
#[derive(Clone, Copy)]
pub(super) struct DataSeed<T>(pub(super) T);

impl DataSeed<TensorSeed<'_>> {
    /// Reads data whose syntax was checked before.
    pub(super) fn read_raw<E: Error>(self, raw: &RawValue) -> Result<Tensor, E> {
        let TensorSeed { context, field, .. } = self.0;
        parse_all(raw.get().as_bytes(), self).map_err(|error| context.nested_error(field, &error))
    }
}

impl<'de> DeserializeSeed<'de> for DataSeed<TensorSeed<'_>> {
    type Value = Tensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tensor, D::Error> {
        let seed = self.0;
        with_sink!(seed.dtype, |sink| seed.collect(sink, |node| node.deserialize(deserializer)))
    }
}

/// Reads a shape: an array of whole numbers from 0.
#[derive(Clone, Copy)]
pub(super) struct ShapeSeed<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) field: &'a str,
    pub(super) depth: usize,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        // The dimensions are read like any tensor of UINT64, which checks sign, fraction and range.
        let field = format!("{}.shape", self.field);
        let seed = DataSeed(TensorSeed {
            context: self.context,
            dtype: DType::Uint64,
            declared: None,
            field: &field,
            depth: self.depth,
        });
        let tensor = seed.deserialize(deserializer)?;
        let dims = tensor.elements::<u64>().unwrap_or_default();
        if tensor.shape().len() != 1 {
            return Err(self.context.unprocessable(&field, "a shape is a flat array of whole numbers"));
        }
        dims.iter()
            .map(|&dim| usize::try_from(dim))
            .collect::<Result<_, _>>()
            .map_err(|_| self.context.unprocessable(&field, "a dimension is too large"))
    }
}

/// Reads the string called so.
pub(super) struct TextSeed(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string for {}", self.0)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}

/// The state of one tensor being read.
struct Grid<'c, S> {
    context: &'c Context<'c>,
    field: &'c str,
    sink: S,
    /// The size of the first array at each level; `None` while it is still being read.
    dims: Vec<Option<usize>>,
    /// The level of the scalars, from the first of them on.
    leaf: Option<usize>,
    /// How deep the outermost array stands.
    depth: usize,
    limit: usize,
    problem: Option<String>,
    /// Indexes that lead to the problem, innermost first.
    path: Vec<usize>,
}

impl<'c, S: Sink> Grid<'c, S> {
    fn new(context: &'c Context<'c>, field: &'c str, sink: S, depth: usize) -> Grid<'c, S> {
        let limit = match sink.dtype() {
            DType::String => context.limits.max_elements / STRING_WEIGHT,
            _ => context.limits.max_elements,
        };
        Grid { context, field, sink, dims: Vec::new(), leaf: None, depth, limit, problem: None, path: Vec::new() }
    }

    #[cold]
    fn refuse<E: Error>(&mut self, problem: String) -> E {
        self.problem = Some(problem);
        E::custom("refused")
    }

    /// Hands the problem found, if any, to the context.
    fn report(&mut self, field: &str) {
        let Some(problem) = self.problem.take() else { return };
        let path: String = self.path.iter().rev().map(|index| format!("[{index}]")).collect();
        let _: serde_json::Error = self.context.unprocessable(&format!("{field}{path}"), problem);
    }

    /// A scalar at `level`.
    #[inline]
    fn scalar<E: Error>(&mut self, level: usize, push: impl FnOnce(&mut S) -> Result<(), String>) -> Result<(), E> {
        if self.leaf != Some(level) {
            self.first_scalar(level)?;
        }
        if self.sink.len() >= self.limit {
            let strings = self.sink.dtype() == DType::String;
            return Err(self.context.fail(too_many_elements(self.field, strings, self.context.limits.max_elements)));
        }
        push(&mut self.sink).map_err(|problem| self.refuse(problem))
    }

    fn first_scalar<E: Error>(&mut self, level: usize) -> Result<(), E> {
        if self.leaf.is_some() || self.dims.len() != level {
            return Err(self.refuse("is a single value where an array was expected; the nesting is ragged".into()));
        }
        self.leaf = Some(level);
        Ok(())
    }

    /// An array begins at `level`.
    fn open<E: Error>(&mut self, level: usize) -> Result<(), E> {
        self.context.enter(self.depth + level + 1)?;
        if self.leaf.is_some_and(|leaf| leaf <= level) {
            return Err(self.refuse("is an array where a single value was expected; the nesting is ragged".into()));
        }
        if self.dims.len() == level {
            self.dims.push(None);
        }
        Ok(())
    }

    /// The array at `level` ends with `count` elements.
    fn close<E: Error>(&mut self, level: usize, count: usize) -> Result<(), E> {
        match self.dims.get_mut(level) {
            Some(Some(expected)) if *expected != count => {
                let expected = *expected;
                Err(self.refuse(format!(
                    "has {count} elements where the first array of this level has {expected}; the nesting is ragged"
                )))
            }
            Some(Some(_)) | None => Ok(()),
            Some(dim) => {
                *dim = Some(count);
                Ok(())
            }
        }
    }

    /// The shape read. An empty array cannot show its inner dimensions; they are taken from the declared shape.
    fn shape(&self, declared: Option<&[Dim]>) -> Vec<usize> {
        let mut shape: Vec<usize> = self.dims.iter().map(|dim| dim.unwrap_or(0)).collect();
        if self.leaf.is_none()
            && !shape.is_empty()
            && let Some(inner) = declared.and_then(|dims| dims.get(shape.len()..))
        {
            shape.extend(inner.iter().map(|dim| match dim {
                Dim::Fixed(size) => *size,
                Dim::Dynamic(_) => 0,
            }));
        }
        shape
    }
}

/// A place in the nesting: everything below it goes into the grid.
struct Node<'g, 'c, S> {
    grid: &'g mut Grid<'c, S>,
    level: usize,
}

impl<'de, S: Sink> DeserializeSeed<'de> for Node<'_, '_, S> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Sink> Visitor<'de> for Node<'_, '_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.grid.sink.dtype())
    }

    #[inline]
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.grid.scalar(self.level, |sink| sink.boolean(value))
    }

    #[inline]
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.grid.scalar(self.level, |sink| sink.unsigned(value))
    }

    #[inline]
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.grid.scalar(self.level, |sink| sink.signed(value))
    }

    #[inline]
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.grid.scalar(self.level, |sink| sink.float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.grid.scalar(self.level, |sink| sink.text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        let dtype = self.grid.sink.dtype();
        Err(self.grid.refuse(format!("null is not a value of {dtype}")))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        let dtype = self.grid.sink.dtype();
        Err(self.grid.refuse(format!("an object is not a value of {dtype}")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Node { grid, level } = self;
        grid.open(level)?;
        let mut count = 0;
        loop {
            match seq.next_element_seed(Node { grid: &mut *grid, level: level + 1 }) {
                Ok(Some(())) => count += 1,
                Ok(None) => return grid.close(level, count),
                Err(error) => {
                    grid.path.push(count);
                    return Err(error);
                }
            }
        }
    }
}

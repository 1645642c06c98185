//! The Open Inference Protocol's inference request: JSON, JSON with binary tensors behind it, and the raw request.
//!
//! Invariants: every byte of the binary part belongs to exactly one input; no length is trusted before it is compared with
//! the bytes that are there. An input that is no tensor (sequence, map, optional) comes as `BYTES` of shape `[1]` holding
//! the JSON text of the value, an extension of the protocol. Unknown keys are skipped, as the protocol asks.

use super::document::{DocumentSeed, Skip, read_object, read_text};
use super::tensor::{DataSeed, ShapeSeed, TensorSeed, TextSeed, apply_shape};
use super::{Context, JsonLimits, MAX_ID_BYTES, parse_all};
use crate::codec::wire::{find_input, read_binary, text_of, value_of};
use crate::codec::{CodecError, checked_count, clip};
use crate::pipelines::Parameters;
use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType};
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

/// Outputs that one request may ask for.
const MAX_OUTPUTS: usize = 4096;

/// Bytes of an output's name.
const MAX_NAME_BYTES: usize = 1024;

/// An inference request.
#[derive(Debug, Default)]
pub struct V2Request {
    pub id: Option<String>,
    pub parameters: Parameters,
    pub inputs: Vec<V2Input>,
    /// Empty = all.
    pub outputs: Vec<V2Output>,
}

#[derive(Debug)]
pub struct V2Input {
    pub name: String,
    pub value: Value,
}

/// How one output is wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V2Output {
    pub name: String,
    /// Binary or JSON; `None` = as the request's `binary_data_output` says.
    pub binary_data: Option<bool>,
    /// The number of best classes to answer instead of the tensor; at least 1.
    pub classification: Option<usize>,
}

impl V2Request {
    /// Whether the output called `name` is answered in binary.
    pub fn is_binary(&self, name: &str) -> bool {
        self.output(name).and_then(|output| output.binary_data).unwrap_or_else(|| {
            self.parameters.get("binary_data_output").and_then(serde_json::Value::as_bool).unwrap_or(false)
        })
    }

    pub(super) fn output(&self, name: &str) -> Option<&V2Output> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

/// Reads a request. `header_len` is the `Inference-Header-Content-Length`: the bytes of the JSON part, `None` where the
/// body is JSON alone, 0 for the raw request (see [`raw_v2`]).
///
/// # Errors
/// `Malformed` for what is not JSON or not this object and for a binary part that does not add up, `Unprocessable` for
/// values that an input cannot hold, `TooLarge` beyond a limit.
pub fn parse_v2(
    body: &Bytes,
    header_len: Option<usize>,
    inputs: &[Spec],
    limits: &JsonLimits,
) -> Result<V2Request, CodecError> {
    let json_len = match header_len {
        Some(0) => {
            let [spec] = inputs else {
                return Err(CodecError::Malformed(format!(
                    "a raw request (Inference-Header-Content-Length: 0) needs a model with one input; this one has {}",
                    inputs.len()
                )));
            };
            return raw_v2(spec, body, limits);
        }
        Some(length) => length,
        None => body.len(),
    };
    let Some(json) = body.get(..json_len) else {
        return Err(CodecError::Malformed(format!(
            "Inference-Header-Content-Length is {json_len}, but the body has {} bytes",
            body.len()
        )));
    };
    let context = Context::new(limits);
    let binary = Binary { bytes: body.slice(json_len..), taken: Cell::new(0) };
    let request = RequestSeed { context: &context, inputs, binary: &binary };
    let parsed = parse_all(json, request);
    let request = parsed.map_err(|error| context.into_error(&error))?;
    let left = binary.bytes.len() - binary.taken.get();
    if left > 0 {
        return Err(CodecError::Malformed(format!(
            "{left} bytes behind the JSON belong to no input; the sum of binary_data_size must be the size of the binary part"
        )));
    }
    Ok(request)
}

/// Reads a raw request: the body is the one input. One dynamic dimension is computed from the size; where there are more,
/// a dynamic first one is taken as 1. A `BYTES` input is one element holding the whole body. All outputs are binary.
///
/// # Errors
/// Where the input is no tensor, more dimensions are unknown, or the size does not fit.
pub fn raw_v2(spec: &Spec, body: &Bytes, limits: &JsonLimits) -> Result<V2Request, CodecError> {
    let field = format!("inputs.{}", spec.name);
    let refuse = |problem: String| Err(CodecError::unprocessable(&field, problem));
    let ValueType::Tensor { dtype, shape: Some(dims) } = &spec.ty else {
        return refuse(format!("a raw request needs a tensor of known rank; the input is {}", spec.ty));
    };
    let tensor = match dtype {
        DType::String => {
            if dims.iter().any(|dim| !matches!(dim, Dim::Dynamic(_) | Dim::Fixed(1))) {
                return refuse(format!("a raw request holds one BYTES element; the input is {}", spec.ty));
            }
            let text = text_of(&field, 0, body)?;
            Tensor::from_strings(vec![1; dims.len()], vec![text])
        }
        dtype => {
            let shape = raw_shape(&field, *dtype, dims, body.len())?;
            checked_count(&field, &shape, false, limits.max_elements)?;
            Tensor::from_bytes(*dtype, shape, body.clone())
        }
    };
    let tensor = tensor.map_err(|error| CodecError::tensor(&field, &error))?;
    let mut parameters = Parameters::new();
    parameters.insert("binary_data_output".into(), true.into());
    let inputs = vec![V2Input { name: spec.name.clone(), value: tensor.into() }];
    Ok(V2Request { id: None, parameters, inputs, outputs: Vec::new() })
}

fn raw_shape(field: &str, dtype: DType, dims: &[Dim], size: usize) -> Result<Vec<usize>, CodecError> {
    let mut unknown: Vec<usize> =
        dims.iter().enumerate().filter(|(_, dim)| matches!(dim, Dim::Dynamic(_))).map(|(axis, _)| axis).collect();
    if unknown.len() > 1 && unknown.first() == Some(&0) {
        unknown.remove(0);
    }
    let mut shape: Vec<usize> = dims
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Dynamic(_) => 1,
        })
        .collect();
    match unknown.as_slice() {
        [] => {}
        [axis] => {
            let each = crate::tensor::element_count(&shape).and_then(|count| count.checked_mul(dtype.bits()));
            let bits = size.checked_mul(8);
            let (Some(each), Some(bits)) = (each.filter(|&each| each > 0), bits) else {
                return Err(CodecError::unprocessable(field, "the shape cannot be computed from the size of the body"));
            };
            if bits % each != 0 {
                return Err(CodecError::unprocessable(
                    field,
                    format!(
                        "the body has {size} bytes, which is no multiple of the {each} bits that one step of dimension {axis} takes"
                    ),
                ));
            }
            if let Some(dim) = shape.get_mut(*axis) {
                *dim = bits / each;
            }
        }
        _ => {
            return Err(CodecError::unprocessable(
                field,
                "a raw request can have one dimension of unknown size; send the shape in JSON",
            ));
        }
    }
    Ok(shape)
}

/// The binary part, taken from front to back.
struct Binary {
    bytes: Bytes,
    taken: Cell<usize>,
}

impl Binary {
    fn take(&self, field: &str, size: u64) -> Result<Bytes, CodecError> {
        let start = self.taken.get();
        let left = self.bytes.len() - start;
        match usize::try_from(size) {
            Ok(size) if size <= left => {
                self.taken.set(start + size);
                Ok(self.bytes.slice(start..start + size))
            }
            _ => Err(CodecError::Malformed(format!(
                "{field}: binary_data_size is {size}, but {left} bytes of the binary part are left (it begins at Inference-Header-Content-Length)"
            ))),
        }
    }
}

#[derive(Clone, Copy)]
struct RequestSeed<'a> {
    context: &'a Context<'a>,
    inputs: &'a [Spec],
    binary: &'a Binary,
}

impl<'de> DeserializeSeed<'de> for RequestSeed<'_> {
    type Value = V2Request;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V2Request, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RequestSeed<'_> {
    type Value = V2Request;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the key \"inputs\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<V2Request, A::Error> {
        let context = self.context;
        context.enter(1)?;
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let doubled = match key.as_str() {
                "id" => id.replace(read_text(context, &mut map, "id", MAX_ID_BYTES)?).is_some(),
                "parameters" => parameters.replace(read_object(context, &mut map, 1, "parameters")?).is_some(),
                "inputs" if inputs.is_some() => true,
                "inputs" => {
                    inputs = Some(map.next_value_seed(InputsSeed(self))?);
                    false
                }
                "outputs" => outputs.replace(map.next_value_seed(OutputsSeed(context))?).is_some(),
                _ => {
                    map.next_value_seed(Skip { context, depth: 1 })?;
                    false
                }
            };
            if doubled {
                return Err(context.malformed(format!("the key {key:?} is doubled")));
            }
        }
        let Some(inputs) = inputs else { return Err(context.malformed("the body has no key \"inputs\"")) };
        let parameters = parameters.unwrap_or_default();
        if parameters.get("binary_data_output").is_some_and(|value| !value.is_boolean()) {
            return Err(context.malformed("parameters.binary_data_output must be true or false"));
        }
        Ok(V2Request { id: id.flatten(), parameters, inputs, outputs: outputs.unwrap_or_default() })
    }
}

#[derive(Clone, Copy)]
struct InputsSeed<'a>(RequestSeed<'a>);

impl<'de> DeserializeSeed<'de> for InputsSeed<'_> {
    type Value = Vec<V2Input>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<V2Input>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for InputsSeed<'_> {
    type Value = Vec<V2Input>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<V2Input>, A::Error> {
        let context = self.0.context;
        context.enter(2)?;
        // Unknown and doubled names end the reading, so the model's inputs bound their number.
        let mut inputs: Vec<V2Input> = Vec::new();
        let mut seen = HashSet::new();
        while let Some(input) = seq.next_element_seed(InputSeed { request: self.0, index: inputs.len() })? {
            if !seen.insert(input.name.clone()) {
                return Err(context.malformed(format!("inputs: {:?} is given twice", input.name)));
            }
            inputs.push(input);
        }
        Ok(inputs)
    }
}

#[derive(Clone, Copy)]
struct InputSeed<'a> {
    request: RequestSeed<'a>,
    index: usize,
}

impl<'de> DeserializeSeed<'de> for InputSeed<'_> {
    type Value = V2Input;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V2Input, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The parts of one input object, in whatever order they came.
#[derive(Default)]
struct Parts<'de> {
    name: Option<String>,
    dtype: Option<DType>,
    shape: Option<Vec<usize>>,
    parameters: Option<Parameters>,
    data: Option<Tensor>,
    /// Data that came before its type.
    raw: Option<&'de RawValue>,
}

impl<'de> Visitor<'de> for InputSeed<'_> {
    type Value = V2Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object at inputs[{}]", self.index)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<V2Input, A::Error> {
        let context = self.request.context;
        context.enter(3)?;
        let mut parts = Parts::default();
        while let Some(key) = map.next_key::<String>()? {
            let field = self.field(&parts);
            let doubled = match key.as_str() {
                "name" => {
                    let name = map.next_value_seed(TextSeed("name"))?;
                    find_input(self.request.inputs, &name).map_err(|error| context.fail(error))?;
                    parts.name.replace(name).is_some()
                }
                "shape" => {
                    parts.shape.replace(map.next_value_seed(ShapeSeed { context, field: &field, depth: 3 })?).is_some()
                }
                "datatype" => {
                    let name = map.next_value_seed(TextSeed("datatype"))?;
                    let Some(dtype) = DType::parse(&name) else {
                        return Err(context.unprocessable(&field, format!("unknown datatype {:?}", clip(&name))));
                    };
                    parts.dtype.replace(dtype).is_some()
                }
                "parameters" => {
                    let field = format!("{field}.parameters");
                    parts.parameters.replace(read_object(context, &mut map, 3, &field)?).is_some()
                }
                "data" if parts.data.is_some() || parts.raw.is_some() => true,
                "data" => {
                    match parts.dtype {
                        Some(dtype) => parts.data = Some(map.next_value_seed(self.data(&field, dtype))?),
                        None => parts.raw = Some(map.next_value()?),
                    }
                    false
                }
                _ => {
                    map.next_value_seed(Skip { context, depth: 3 })?;
                    false
                }
            };
            if doubled {
                return Err(context.malformed(format!("{field}: the key {key:?} is doubled")));
            }
        }
        self.finish(parts)
    }
}

impl InputSeed<'_> {
    /// What error texts call the input: by name, once that is known.
    fn field(&self, parts: &Parts<'_>) -> String {
        match &parts.name {
            Some(name) => format!("inputs.{name}"),
            None => format!("inputs[{}]", self.index),
        }
    }

    fn data<'b>(&'b self, field: &'b str, dtype: DType) -> DataSeed<TensorSeed<'b>> {
        DataSeed(TensorSeed { context: self.request.context, dtype, declared: None, field, depth: 3 })
    }

    fn finish<E: Error>(self, parts: Parts<'_>) -> Result<V2Input, E> {
        let context = self.request.context;
        let field = self.field(&parts);
        let Some(name) = parts.name else { return Err(context.malformed(format!("{field} has no name"))) };
        let Some(dtype) = parts.dtype else { return Err(context.malformed(format!("{field} has no datatype"))) };
        let Some(shape) = parts.shape else { return Err(context.malformed(format!("{field} has no shape"))) };
        let parameters = parts.parameters.unwrap_or_default();
        if parameters.contains_key("shared_memory_region") {
            return Err(context.unprocessable(&field, "shared memory is not served; send the data in the body"));
        }
        let data = match (parts.data, parts.raw) {
            (None, Some(raw)) => Some(self.data(&field, dtype).read_raw(raw)?),
            (data, _) => data,
        };
        let tensor = match (data, parameters.get("binary_data_size")) {
            (Some(_), Some(_)) => {
                return Err(context.malformed(format!("{field} has both data and binary_data_size")));
            }
            (Some(data), None) => apply_shape(context, &field, data, shape)?,
            (None, Some(size)) => {
                let Some(size) = size.as_u64() else {
                    return Err(context.malformed(format!("{field}: binary_data_size must be a whole number from 0")));
                };
                checked_count(&field, &shape, dtype == DType::String, context.limits.max_elements)
                    .and_then(|count| {
                        let bytes = self.request.binary.take(&field, size)?;
                        read_binary(&field, dtype, shape, count, bytes)
                    })
                    .map_err(|error| context.fail(error))?
            }
            (None, None) => {
                return Err(context.malformed(format!("{field} has neither data nor binary_data_size")));
            }
        };
        let value = find_input(self.request.inputs, &name)
            .and_then(|spec| value_of(&field, spec, tensor, context.limits))
            .map_err(|error| context.fail(error))?;
        Ok(V2Input { name, value })
    }
}

#[derive(Clone, Copy)]
struct OutputsSeed<'a>(&'a Context<'a>);

impl<'de> DeserializeSeed<'de> for OutputsSeed<'_> {
    type Value = Vec<V2Output>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<V2Output>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OutputsSeed<'_> {
    type Value = Vec<V2Output>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of outputs")
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<V2Output>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<V2Output>, A::Error> {
        self.0.enter(2)?;
        let mut outputs: Vec<V2Output> = Vec::new();
        let mut seen = HashSet::new();
        let count = Cell::new(0);
        let field = "outputs";
        while let Some(output) =
            seq.next_element_seed(DocumentSeed { context: self.0, depth: 2, field, count: &count })?
        {
            if outputs.len() >= MAX_OUTPUTS {
                return Err(self
                    .0
                    .fail(CodecError::TooLarge(format!("more than {MAX_OUTPUTS} outputs are asked for"))));
            }
            let output = read_output(outputs.len(), &output).map_err(|error| self.0.fail(error))?;
            if !seen.insert(output.name.clone()) {
                return Err(self.0.malformed(format!("outputs: {:?} is asked for twice", clip(&output.name))));
            }
            outputs.push(output);
        }
        Ok(outputs)
    }
}

fn read_output(index: usize, output: &serde_json::Value) -> Result<V2Output, CodecError> {
    let malformed = |problem: &str| CodecError::Malformed(format!("outputs[{index}]{problem}"));
    let name = output.get("name").and_then(serde_json::Value::as_str).ok_or_else(|| malformed(" has no name"))?;
    if name.len() > MAX_NAME_BYTES {
        return Err(malformed(&format!(".name is longer than {MAX_NAME_BYTES} bytes")));
    }
    let mut wanted = V2Output { name: name.to_owned(), ..V2Output::default() };
    let parameters = match output.get("parameters") {
        None | Some(serde_json::Value::Null) => return Ok(wanted),
        Some(serde_json::Value::Object(parameters)) => parameters,
        Some(_) => return Err(malformed(".parameters must be an object")),
    };
    if parameters.contains_key("shared_memory_region") {
        let field = format!("outputs.{}", clip(name));
        return Err(CodecError::unprocessable(field, "shared memory is not served; the data comes in the body"));
    }
    if let Some(binary) = parameters.get("binary_data") {
        let binary = binary.as_bool().ok_or_else(|| malformed(".parameters.binary_data must be true or false"))?;
        wanted.binary_data = Some(binary);
    }
    if let Some(classes) = parameters.get("classification") {
        let classes = classes.as_u64().and_then(|classes| usize::try_from(classes).ok()).filter(|&classes| classes > 0);
        let classes = classes.ok_or_else(|| malformed(".parameters.classification must be a whole number from 1"))?;
        wanted.classification = Some(classes);
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::super::{V2Answer, encode_v2_response, write_value};
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const LIMITS: JsonLimits = JsonLimits { max_depth: 64, max_elements: 1600, max_items: 3 };

    fn tensor(name: &str, dtype: DType) -> Spec {
        Spec { name: name.into(), ty: ValueType::Tensor { dtype, shape: None }, optional: false }
    }

    fn specs() -> Vec<Spec> {
        let float = Box::new(ValueType::Tensor { dtype: DType::Fp32, shape: None });
        vec![
            tensor("x", DType::Fp32),
            tensor("t", DType::String),
            Spec { name: "s".into(), ty: ValueType::Sequence(float.clone()), optional: false },
            Spec { name: "o".into(), ty: ValueType::Optional(float), optional: false },
        ]
    }

    fn show(result: Result<V2Request, CodecError>) -> String {
        let request = match result {
            Err(error) => return error.to_string(),
            Ok(request) => request,
        };
        let show = |input: &V2Input| {
            let mut text = Vec::new();
            write_value(&input.value, &mut text);
            let text = String::from_utf8(text).unwrap();
            match &input.value {
                Value::Tensor(tensor) => format!("{}={}{:?}{text}", input.name, tensor.dtype(), tensor.shape()),
                _ => format!("{}={text}", input.name),
            }
        };
        request.inputs.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(input: &str, expected: &str) {
        let got = show(parse_v2(&format!(r#"{{"inputs":[{input}]}}"#).into(), None, &specs(), &LIMITS));
        assert!(got.contains(expected), "{input}\n got: {got}\nwant: {expected}");
    }

    #[test]
    fn tensors_come_flat_or_nested_with_keys_in_any_order() {
        check(r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}"#, "x=FP32[2, 2][[1.0,2.0],[3.0,4.0]]");
        check(
            r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4]]}"#,
            "x=FP32[2, 2][[1.0,2.0],[3.0,4.0]]",
        );
        check(r#"{"data":[1,2],"datatype":"INT64","shape":[2,1],"name":"x","extra":[{}]}"#, "x=INT64[2, 1][[1],[2]]");
        check(r#"{"name":"x","shape":[],"datatype":"FP16","data":[0.5]}"#, "x=FP16[]0.5");
        check(r#"{"name":"x","shape":[0,3],"datatype":"FP32","data":[]}"#, "x=FP32[0, 3][]");
        check(
            r#"{"name":"t","shape":[2],"datatype":"BYTES","data":["a","b"],"parameters":null}"#,
            r#"t=BYTES[2]["a","b"]"#,
        );
    }

    #[test]
    fn wrong_inputs_are_refused_by_name() {
        check(
            r#"{"name":"x","shape":[3],"datatype":"FP32","data":[1,2]}"#,
            "inputs.x: shape [3] needs 3 elements, got 2",
        );
        check(
            r#"{"name":"x","shape":[4],"datatype":"FP32","data":[[1,2],[3,4]]}"#,
            "nested as [2, 2], the shape is [4]",
        );
        check(r#"{"name":"x","shape":[3,2],"datatype":"FP32","data":[[1,2,3],[4,5,6]]}"#, "nested as [2, 3]");
        check(r#"{"name":"x","shape":[1],"datatype":"UINT8","data":[300]}"#, "inputs.x[0]: 300 does not fit UINT8");
        check(r#"{"data":[300],"name":"x","shape":[1],"datatype":"UINT8"}"#, "inputs.x[0]: 300 does not fit UINT8");
        check(r#"{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}"#, "inputs.x.shape[0]: -1 does not fit");
        check(r#"{"name":"x","shape":[4,1152921504606846978],"datatype":"FP32","data":[1]}"#, "max_tensor_elements");
        check(r#"{"name":"x","shape":[1],"datatype":"FP31","data":[1]}"#, r#"inputs.x: unknown datatype "FP31""#);
        check(
            r#"{"name":"y","shape":[1],"datatype":"FP32","data":[1]}"#,
            "inputs.y: the model has no such input; its inputs are x, t, s, o",
        );
        check(r#"{"shape":[1],"datatype":"FP32","data":[1]}"#, "inputs[0] has no name");
        check(r#"{"name":"x","datatype":"FP32","data":[1]}"#, "inputs.x has no shape");
        check(r#"{"name":"x","shape":[1],"data":[1]}"#, "inputs.x has no datatype");
        check(r#"{"name":"x","shape":[1],"datatype":"FP32"}"#, "inputs.x has neither data nor binary_data_size");
        check(r#"{"name":"x","name":"x"}"#, "the key \"name\" is doubled");
        check(r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1],"data":[1]}"#, "the key \"data\" is doubled");
        check(
            r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]},{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#,
            "\"x\" is given twice",
        );
        check(
            r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r"}}"#,
            "shared memory is not served",
        );
        check(
            r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}"#,
            "binary_data_size is 4, but 0 bytes",
        );
        check("7", "expected an object at inputs[0]");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        check(&format!(r#"{{"name":"x","skipped":{deep}}}"#), "nested deeper");
        check(&format!(r#"{{"data":{deep},"name":"x","shape":[1],"datatype":"FP32"}}"#), "nested deeper");
        check(&format!(r#"{{"name":"x","datatype":"FP32","data":{deep}}}"#), "nested deeper");
    }

    #[test]
    fn other_values_come_as_json_text() {
        check(r#"{"name":"s","shape":[1],"datatype":"BYTES","data":["[[1],[2,3]]"]}"#, "s=[[1.0],[2.0,3.0]]");
        check(r#"{"name":"o","shape":[1],"datatype":"BYTES","data":["null"]}"#, "o=null");
        check(r#"{"name":"o","shape":[1],"datatype":"FP32","data":[7]}"#, "o=FP32[1][7.0]");
        check(
            r#"{"name":"s","shape":[1],"datatype":"FP32","data":[7]}"#,
            "is given as BYTES of shape [1] holding the JSON text",
        );
        check(r#"{"name":"s","shape":[1],"datatype":"BYTES","data":["[["]}"#, "inputs.s is not valid JSON");
    }

    fn parse_body(json: &str) -> Result<V2Request, CodecError> {
        parse_v2(&json.to_owned().into(), None, &specs(), &LIMITS)
    }

    #[test]
    fn the_request_says_how_outputs_are_wanted() {
        let request = parse_body(
            r#"{"outputs":[{"name":"a","parameters":{"binary_data":false}},{"name":"b"},{"name":"c","parameters":{"classification":3}}],
                "parameters":{"binary_data_output":true},"id":"7","inputs":[],"unknown":[[1]]}"#,
        )
        .unwrap();
        assert_eq!(request.id.as_deref(), Some("7"));
        assert!(!request.is_binary("a") && request.is_binary("b") && request.is_binary("z"));
        assert_eq!(request.outputs[2].classification, Some(3));
        #[track_caller]
        fn check(json: &str, expected: &str) {
            let error = parse_body(json).unwrap_err();
            assert!(error.to_string().contains(expected), "{json}\n got: {error}");
        }
        check("{}", "no key \"inputs\"");
        check("", "not valid JSON");
        check(r#"{"inputs":[],"outputs":[{"name":"a"},{"name":"a"}]}"#, "\"a\" is asked for twice");
        check(r#"{"inputs":[],"outputs":[{}]}"#, "outputs[0] has no name");
        check(r#"{"inputs":[],"outputs":[{"name":"a","parameters":{"classification":0}}]}"#, "whole number from 1");
        check(r#"{"inputs":[],"outputs":[{"name":"a","parameters":{"binary_data":1}}]}"#, "must be true or false");
        check(r#"{"inputs":[],"parameters":{"binary_data_output":"yes"}}"#, "must be true or false");
        check(r#"{"inputs":[],"inputs":[]}"#, "the key \"inputs\" is doubled");
        let many = vec![r#"{"name":"a"}"#; 100_000].join(",");
        check(&format!(r#"{{"inputs":[],"outputs":[{many}]}}"#), "twice");
        let many: Vec<String> = (0..100_000).map(|index| format!(r#"{{"name":"{index}"}}"#)).collect();
        let error = parse_body(&format!(r#"{{"inputs":[],"outputs":[{}]}}"#, many.join(","))).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge(_)), "{error}");
    }

    fn binary(inputs: &str, tail: &[u8]) -> String {
        let json = format!(r#"{{"inputs":[{inputs}]}}"#);
        let body: Bytes = [json.as_bytes(), tail].concat().into();
        show(parse_v2(&body, Some(json.len()), &specs(), &LIMITS))
    }

    #[track_caller]
    fn check_binary(inputs: &str, tail: &[u8], expected: &str) {
        let got = binary(inputs, tail);
        assert!(got.contains(expected), "{inputs}\n got: {got}\nwant: {expected}");
    }

    #[test]
    fn binary_parts_belong_to_the_inputs_in_their_order() {
        let x = r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}"#;
        let t = |size: u64, shape: &str| {
            format!(r#"{{"name":"t","shape":{shape},"datatype":"BYTES","parameters":{{"binary_data_size":{size}}}}}"#)
        };
        let one = 1f32.to_le_bytes();
        check_binary(x, &one, "x=FP32[1][1.0]");
        check_binary(
            &format!("{x},{}", t(6, "[1]")),
            b"\0\0\x80\x3f\x02\0\0\0hi",
            r#"x=FP32[1][1.0] t=BYTES[1]["hi"]"#,
        );
        check_binary(
            &format!("{},{x}", t(6, "[1]")),
            b"\x02\0\0\0hi\0\0\x80\x3f",
            r#"t=BYTES[1]["hi"] x=FP32[1][1.0]"#,
        );
        check_binary(&t(0, "[0]"), b"", "t=BYTES[0][]");
        check_binary(&t(8, "[2]"), &[0; 8], r#"t=BYTES[2]["",""]"#);
        check_binary(x, &[0; 3], "binary_data_size is 4, but 3 bytes");
        check_binary(x, &[0; 5], "1 bytes behind the JSON belong to no input");
        check_binary(
            r#"{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":4}}"#,
            &one,
            "needs 8 bytes of data, got 4",
        );
        check_binary(
            r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}}"#,
            &one,
            "both data and binary_data_size",
        );
        check_binary(
            r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":-4}}"#,
            &one,
            "whole number from 0",
        );
        check_binary(
            r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":18446744073709551615}}"#,
            &one,
            "but 4 bytes",
        );
        check_binary(
            r#"{"name":"x","shape":[1],"datatype":"BOOL","parameters":{"binary_data_size":1}}"#,
            &[2],
            "only 0 and 1",
        );
        check_binary(&t(4, "[1]"), &[0xff; 4], "element 0 is said to have 4294967295 bytes, but 0 are left");
        check_binary(&t(3, "[1]"), &[0; 3], "0 were read and 3 bytes are left");
        check_binary(&t(8, "[1]"), &[0; 8], "1 were read and 4 bytes are left");
        check_binary(&t(4, "[100]"), &[0; 4], "1 were read and 0 bytes are left");
        check_binary(&t(5, "[1]"), b"\x01\0\0\0\xff", "element 0 is not UTF-8 text");
        check_binary(&t(5, "[1]"), b"\x01\0\0\0\0", r#"t=BYTES[1]["\u0000"]"#);
        check_binary(&t(4, "[1099511627776]"), &[0; 4], "max_tensor_elements");
    }

    #[test]
    fn a_header_length_that_lies_is_refused() {
        let body = Bytes::from_static(br#"{"inputs":[]}"#);
        for length in [14, 99_999_999_999, usize::MAX] {
            let error = parse_v2(&body, Some(length), &specs(), &LIMITS).unwrap_err();
            assert!(error.to_string().contains("but the body has 13 bytes"), "{error}");
        }
        assert!(parse_v2(&body, Some(5), &specs(), &LIMITS).is_err());
        assert!(
            parse_v2(&body, Some(0), &specs(), &LIMITS).unwrap_err().to_string().contains("a model with one input")
        );
    }

    #[test]
    fn a_raw_request_computes_its_shape() {
        #[track_caller]
        fn check(dtype: DType, dims: &[i64], body: &'static [u8], expected: &str) {
            let dim = |&dim: &i64| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed);
            let shape = Some(dims.iter().map(dim).collect());
            let spec = Spec { name: "x".into(), ty: ValueType::Tensor { dtype, shape }, optional: false };
            let got = show(parse_v2(&Bytes::from_static(body), Some(0), &[spec], &LIMITS));
            assert!(got.contains(expected), "{dims:?}\n got: {got}\nwant: {expected}");
        }
        check(DType::Uint8, &[2], &[1, 2], "x=UINT8[2][1,2]");
        check(DType::Uint8, &[-1, 2], &[1, 2], "x=UINT8[1, 2][[1,2]]");
        check(DType::Uint8, &[-1, 2], &[1, 2, 3, 4], "x=UINT8[2, 2]");
        check(DType::Uint8, &[-1, -1], &[1, 2, 3], "x=UINT8[1, 3][[1,2,3]]");
        check(DType::Uint8, &[-1, 1, -1], &[1, 2], "x=UINT8[1, 1, 2]");
        check(DType::Uint8, &[-1, -1, -1], &[1, 2], "one dimension of unknown size");
        check(DType::Uint8, &[1, -1, -1], &[1, 2], "one dimension of unknown size");
        check(DType::Uint8, &[-1, 2], &[1, 2, 3], "no multiple");
        check(DType::Uint8, &[-1, 0], &[1], "cannot be computed");
        check(DType::Uint8, &[2], &[1], "needs 2 bytes, got 1");
        check(DType::Int4, &[-1], &[0x21], "x=INT4[2][1,2]");
        check(DType::String, &[1], b"hello", r#"x=BYTES[1]["hello"]"#);
        check(DType::String, &[-1, 1], b"hello", r#"x=BYTES[1, 1][["hello"]]"#);
        check(DType::String, &[2], b"hello", "holds one BYTES element");
        check(DType::String, &[1], b"\xff", "not UTF-8");
    }

    #[test]
    fn answers_are_json_with_binary_frames_behind() {
        let labels = BTreeMap::from([("y".to_owned(), Arc::from(["cat".to_owned(), "dog".to_owned()]))]);
        let y = Tensor::from_vec(DType::Fp32, vec![1, 2], vec![0.25f32, 0.5]).unwrap();
        let t = Tensor::from_strings(vec![2], vec!["a".into(), String::new()]).unwrap();
        let outputs = [
            ("y".to_owned(), Value::from(y)),
            ("t".to_owned(), t.into()),
            ("s".to_owned(), Value::Sequence(vec![Value::None])),
        ];
        #[track_caller]
        fn check(
            request: &str,
            outputs: &[(String, Value)],
            labels: &BTreeMap<String, Arc<[String]>>,
            json: &str,
            frames: &[&[u8]],
        ) {
            let request = parse_body(request).unwrap();
            let answer =
                V2Answer { model_name: "m", model_version: "1", request: &request, outputs, labels, batched: true };
            let body = encode_v2_response(&answer).unwrap();
            assert_eq!(String::from_utf8(body.json).unwrap(), json);
            assert_eq!(body.frames, frames);
        }
        check(
            r#"{"inputs":[],"id":"q\""}"#,
            &outputs,
            &labels,
            r#"{"model_name":"m","model_version":"1","id":"q\"","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[0.25,0.5]},{"name":"t","datatype":"BYTES","shape":[2],"data":["a",""]},{"name":"s","datatype":"BYTES","shape":[1],"data":["[null]"]}]}"#,
            &[],
        );
        check(
            r#"{"inputs":[],"parameters":{"binary_data_output":true},"outputs":[{"name":"y","parameters":{"binary_data":false,"classification":1}}]}"#,
            &outputs,
            &labels,
            r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"BYTES","shape":[1,1],"data":["0.5:1:dog"]},{"name":"t","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":9}},{"name":"s","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":10}}]}"#,
            &[b"\x01\0\0\0a\0\0\0\0", b"\x06\0\0\0[null]"],
        );
        let empty = [("e".to_owned(), Value::from(Tensor::from_bytes(DType::Fp32, vec![0, 2], Bytes::new()).unwrap()))];
        check(
            r#"{"inputs":[],"parameters":{"binary_data_output":true}}"#,
            &empty,
            &labels,
            r#"{"model_name":"m","model_version":"1","outputs":[{"name":"e","datatype":"FP32","shape":[0,2],"parameters":{"binary_data_size":0}}]}"#,
            &[b""],
        );
    }
}

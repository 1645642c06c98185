//! An inference request's message as tensors for the model's inputs.
//!
//! Invariants: an input's elements are in one place, and as many as its shape says; the same limits and the same texts as over
//! REST.

use super::pb::infer_parameter::ParameterChoice;
use super::pb::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::pb::{InferParameter, InferTensorContents, ModelInferRequest};
use crate::codec::json::JsonLimits;
use crate::codec::wire::{find_input, read_binary, text_of, value_of};
use crate::codec::{CodecError, checked_count, clip};
use crate::engine::Parameters;
use crate::protocol::MAX_TEXT_BYTES;
use crate::tensor::{DType, Spec, Tensor, Value};
use bytes::Bytes;
use serde_json::{Number, Value as Json};
use std::collections::{HashMap, HashSet};

/// A request, read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) id: String,
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<(String, Value)>,
    /// Empty = all.
    pub(super) outputs: Vec<Wanted>,
}

/// How one output is wanted.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// The number of best classes to answer instead of the tensor; at least 1.
    pub(super) classes: Option<usize>,
}

/// Reads a request for a model with these inputs.
///
/// # Errors
/// `Malformed` for a message that does not add up, `Unprocessable` for values that an input cannot hold, `TooLarge` beyond a limit.
pub(super) fn read(request: ModelInferRequest, inputs: &[Spec], limits: &JsonLimits) -> Result<Read, CodecError> {
    if request.id.len() > MAX_TEXT_BYTES {
        return Err(CodecError::Malformed(format!("id is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let given = request.inputs.len();
    let mut raw = request.raw_input_contents.into_iter();
    let is_raw = raw.len() > 0;
    if is_raw && raw.len() != given {
        return Err(CodecError::Malformed(format!(
            "raw_input_contents has {} tensors for {given} inputs; where it is used it has one for each, in their order",
            raw.len()
        )));
    }
    let mut seen = HashSet::new();
    let mut read_inputs = Vec::with_capacity(given.min(inputs.len()));
    for input in request.inputs {
        let spec = find_input(inputs, &input.name)?;
        if !seen.insert(&spec.name) {
            return Err(CodecError::Malformed(format!("inputs: {:?} is given twice", spec.name)));
        }
        let value = read_input(input, spec, raw.next(), limits)?;
        read_inputs.push((spec.name.clone(), value));
    }
    let outputs: Vec<Wanted> = request.outputs.into_iter().map(read_output).collect::<Result<_, _>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = outputs.iter().find(|output| !seen.insert(&output.name)) {
        return Err(CodecError::Malformed(format!("outputs: {:?} is asked for twice", clip(&twice.name))));
    }
    Ok(Read { id: request.id, parameters: parameters_of(request.parameters)?, inputs: read_inputs, outputs })
}

/// The same as JSON has them.
fn parameters_of(parameters: HashMap<String, InferParameter>) -> Result<Parameters, CodecError> {
    parameters.into_iter().map(|(name, parameter)| Ok((name.clone(), json_of(&name, parameter)?))).collect()
}

fn json_of(name: &str, parameter: InferParameter) -> Result<Json, CodecError> {
    let refuse = |problem: &str| CodecError::Malformed(format!("parameters.{}: {problem}", clip(name)));
    Ok(match parameter.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => value.into(),
        Some(ParameterChoice::Int64Param(value)) => value.into(),
        Some(ParameterChoice::Uint64Param(value)) => value.into(),
        Some(ParameterChoice::StringParam(value)) => value.into(),
        Some(ParameterChoice::DoubleParam(value)) => {
            Json::Number(Number::from_f64(value).ok_or_else(|| refuse("must be a finite number"))?)
        }
        None => return Err(refuse("has no value")),
    })
}

fn read_input(
    input: InferInputTensor,
    spec: &Spec,
    raw: Option<Bytes>,
    limits: &JsonLimits,
) -> Result<Value, CodecError> {
    let field = format!("inputs.{}", spec.name);
    let refuse = |problem: String| Err(CodecError::unprocessable(&field, problem));
    if input.parameters.contains_key("shared_memory_region") {
        return refuse("shared memory is not served; send the data in the message".to_owned());
    }
    let Some(dtype) = DType::parse(&input.datatype) else {
        return refuse(format!("unknown datatype {:?}", clip(&input.datatype)));
    };
    let Ok(shape) = input.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<usize>, _>>() else {
        return refuse("the shape has a negative size".to_owned());
    };
    let count = checked_count(&field, &shape, dtype == DType::String, limits.max_elements)?;
    let tensor = match (raw, input.contents) {
        (Some(_), Some(_)) => {
            return Err(CodecError::Malformed(format!(
                "{field} has contents, and raw_input_contents is used; a request's tensors are all in one of them"
            )));
        }
        (Some(raw), None) => read_binary(&field, dtype, shape, count, raw)?,
        (None, contents) => read_contents(&field, dtype, shape, count, contents.unwrap_or_default())?,
    };
    value_of(&field, spec, tensor, limits)
}

/// A tensor from the list that its type uses.
fn read_contents(
    field: &str,
    dtype: DType,
    shape: Vec<usize>,
    count: usize,
    contents: InferTensorContents,
) -> Result<Tensor, CodecError> {
    let list = list_of(dtype).ok_or_else(|| {
        CodecError::unprocessable(field, format!("{dtype} has no list in contents; send it in raw_input_contents"))
    })?;
    let lengths = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    if let Some((other, _)) = lengths.iter().find(|(name, length)| *name != list && *length > 0) {
        let problem = format!("the elements of {dtype} are in {list}, but {other} has some");
        return Err(CodecError::unprocessable(field, problem));
    }
    let got: usize = lengths.iter().map(|(_, length)| length).sum();
    if got != count {
        let problem = format!("shape {shape:?} needs {count} elements in {list}, got {got}");
        return Err(CodecError::unprocessable(field, problem));
    }
    let tensor = match dtype {
        DType::Bool => {
            let bytes: Vec<u8> = contents.bool_contents.into_iter().map(u8::from).collect();
            Tensor::from_bytes(dtype, shape, bytes)
        }
        DType::Int8 => Tensor::from_vec(dtype, shape, narrowed::<_, i8>(field, dtype, contents.int_contents)?),
        DType::Int16 => Tensor::from_vec(dtype, shape, narrowed::<_, i16>(field, dtype, contents.int_contents)?),
        DType::Int32 => Tensor::from_vec(dtype, shape, contents.int_contents),
        DType::Int64 => Tensor::from_vec(dtype, shape, contents.int64_contents),
        DType::Uint8 => Tensor::from_vec(dtype, shape, narrowed::<_, u8>(field, dtype, contents.uint_contents)?),
        DType::Uint16 => Tensor::from_vec(dtype, shape, narrowed::<_, u16>(field, dtype, contents.uint_contents)?),
        DType::Uint32 => Tensor::from_vec(dtype, shape, contents.uint_contents),
        DType::Uint64 => Tensor::from_vec(dtype, shape, contents.uint64_contents),
        DType::Fp32 => Tensor::from_vec(dtype, shape, contents.fp32_contents),
        DType::Fp64 => Tensor::from_vec(dtype, shape, contents.fp64_contents),
        // `list_of` knows no other type.
        _ => {
            let texts = contents.bytes_contents.iter().enumerate().map(|(index, bytes)| text_of(field, index, bytes));
            Tensor::from_strings(shape, texts.collect::<Result<_, _>>()?)
        }
    };
    tensor.map_err(|error| CodecError::tensor(field, &error))
}

fn list_of(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::Bool => Some("bool_contents"),
        DType::Int8 | DType::Int16 | DType::Int32 => Some("int_contents"),
        DType::Int64 => Some("int64_contents"),
        DType::Uint8 | DType::Uint16 | DType::Uint32 => Some("uint_contents"),
        DType::Uint64 => Some("uint64_contents"),
        DType::Fp32 => Some("fp32_contents"),
        DType::Fp64 => Some("fp64_contents"),
        DType::String => Some("bytes_contents"),
        _ => None,
    }
}

/// The elements in the type's own size.
fn narrowed<W: Copy + std::fmt::Display, N: TryFrom<W>>(
    field: &str,
    dtype: DType,
    elements: Vec<W>,
) -> Result<Vec<N>, CodecError> {
    let narrow = |(index, element): (usize, W)| {
        let refuse = |_| CodecError::unprocessable(field, format!("element {index} is {element}: not within {dtype}"));
        N::try_from(element).map_err(refuse)
    };
    elements.into_iter().enumerate().map(narrow).collect()
}

fn read_output(output: InferRequestedOutputTensor) -> Result<Wanted, CodecError> {
    let InferRequestedOutputTensor { name, mut parameters } = output;
    if name.len() > MAX_TEXT_BYTES {
        return Err(CodecError::Malformed(format!("outputs: a name is longer than {MAX_TEXT_BYTES} bytes")));
    }
    if parameters.contains_key("shared_memory_region") {
        let field = format!("outputs.{}", clip(&name));
        return Err(CodecError::unprocessable(field, "shared memory is not served; the data comes in the message"));
    }
    let classes = match parameters.remove("classification").map(|parameter| json_of("classification", parameter)) {
        None => None,
        Some(number) => {
            let number = number?.as_u64().and_then(|classes| usize::try_from(classes).ok());
            let refuse = || {
                let name = clip(&name);
                CodecError::Malformed(format!("outputs.{name}.parameters.classification must be a whole number from 1"))
            };
            Some(number.filter(|&classes| classes > 0).ok_or_else(refuse)?)
        }
    };
    Ok(Wanted { name, classes })
}

/// Reads a request, and what was read once more as raw tensors, which must be the same. Gives the tensors as they are sent.
#[cfg(any(test, fuzzing))]
pub(super) fn read_twice(request: ModelInferRequest) -> Result<Vec<(InferInputTensor, Bytes)>, CodecError> {
    use crate::codec::wire::{Answered, write_binary};
    use crate::tensor::{Dim, ValueType};
    let spec = |name: &str, ty| Spec { name: name.to_owned(), ty, optional: false };
    let numbers = || ValueType::Tensor { dtype: DType::Fp32, shape: Some(vec![Dim::Dynamic(None)]) };
    let map = ValueType::Map { key: DType::String, value: DType::Fp32 };
    // What types its elements have is nothing that reading asks.
    let specs = [spec("x", numbers()), spec("m", map), spec("o", ValueType::Optional(Box::new(numbers())))];
    let limits = JsonLimits { max_depth: 8, max_elements: 1 << 12, max_items: 16 };
    let sent = |request| -> Result<Vec<(InferInputTensor, Bytes)>, CodecError> {
        let one = |(name, value): &(String, Value)| {
            let tensor = Answered { name, classes: None, labels: &[], batched: false }.tensor(value)?;
            let shape = tensor.shape().iter().filter_map(|&size| i64::try_from(size).ok()).collect();
            let (name, datatype) = (name.clone(), tensor.dtype().name().to_owned());
            let bytes = write_binary(&name, &tensor)?;
            Ok((InferInputTensor { name, datatype, shape, ..Default::default() }, bytes))
        };
        read(request, &specs, &limits)?.inputs.iter().map(one).collect()
    };
    let first = sent(request)?;
    let (inputs, raw_input_contents) = first.iter().cloned().unzip();
    let again = sent(ModelInferRequest { inputs, raw_input_contents, ..Default::default() });
    assert_eq!(again.as_ref(), Ok(&first));
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::codec::decoded;
    use crate::tensor::{Dim, ValueType};
    use proptest::prelude::*;
    use prost::Message;

    const LIMITS: JsonLimits = JsonLimits { max_depth: 8, max_elements: 1000, max_items: 10 };

    fn specs() -> Vec<Spec> {
        let spec = |name: &str, ty| Spec { name: name.to_owned(), ty, optional: false };
        let tensor = |dtype| ValueType::Tensor { dtype, shape: Some(vec![Dim::Dynamic(Some("N".to_owned()))]) };
        let map = ValueType::Map { key: DType::String, value: DType::Fp32 };
        vec![spec("x", tensor(DType::Fp32)), spec("t", tensor(DType::String)), spec("m", map)]
    }

    fn input(name: &str, datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
        let (name, datatype, shape) = (name.to_owned(), datatype.to_owned(), shape.to_vec());
        InferInputTensor { name, datatype, shape, contents, ..Default::default() }
    }

    fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
        let raw_input_contents = raw.iter().map(|bytes| Bytes::from_static(bytes)).collect();
        ModelInferRequest { inputs, raw_input_contents, ..Default::default() }
    }

    fn floats(elements: &[f32]) -> Option<InferTensorContents> {
        Some(InferTensorContents { fp32_contents: elements.to_vec(), ..Default::default() })
    }

    #[track_caller]
    fn check(request: ModelInferRequest, words: &str) {
        let error = read(request, &specs(), &LIMITS).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn typed_and_raw_contents_are_the_same_tensor() {
        let typed =
            read(request(vec![input("x", "FP32", &[2], floats(&[1.0, -2.0]))], &[]), &specs(), &LIMITS).unwrap();
        let bytes = &[0, 0, 128, 63, 0, 0, 0, 192];
        let raw = read(request(vec![input("x", "FP32", &[2], None)], &[bytes]), &specs(), &LIMITS).unwrap();
        let elements = |read: &Read| read.inputs[0].1.as_tensor().unwrap().elements::<f32>().unwrap().to_vec();
        assert_eq!((elements(&typed), elements(&raw)), (vec![1.0, -2.0], vec![1.0, -2.0]));
        let empty = read(request(vec![input("x", "FP32", &[0], None)], &[]), &specs(), &LIMITS).unwrap();
        assert!(elements(&empty).is_empty());
    }

    #[test]
    fn every_list_of_contents_is_read_for_its_types() {
        let all = InferTensorContents {
            bool_contents: vec![true],
            int_contents: vec![-3],
            int64_contents: vec![-4],
            uint_contents: vec![5],
            uint64_contents: vec![6],
            fp32_contents: vec![7.0],
            fp64_contents: vec![8.0],
            bytes_contents: vec![Bytes::from_static("ü".as_bytes())],
        };
        type Lists = InferTensorContents;
        type Row<'a> = (&'a str, fn(Lists) -> Lists, &'a [u8]);
        let rows: [Row<'_>; 11] = [
            ("BOOL", |all| Lists { bool_contents: all.bool_contents, ..Default::default() }, &[1]),
            ("INT8", |all| Lists { int_contents: all.int_contents, ..Default::default() }, &[0xfd]),
            ("INT16", |all| Lists { int_contents: all.int_contents, ..Default::default() }, &[0xfd, 0xff]),
            ("INT32", |all| Lists { int_contents: all.int_contents, ..Default::default() }, &[0xfd, 0xff, 0xff, 0xff]),
            (
                "INT64",
                |all| Lists { int64_contents: all.int64_contents, ..Default::default() },
                &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            ),
            ("UINT8", |all| Lists { uint_contents: all.uint_contents, ..Default::default() }, &[5]),
            ("UINT16", |all| Lists { uint_contents: all.uint_contents, ..Default::default() }, &[5, 0]),
            ("UINT32", |all| Lists { uint_contents: all.uint_contents, ..Default::default() }, &[5, 0, 0, 0]),
            (
                "UINT64",
                |all| Lists { uint64_contents: all.uint64_contents, ..Default::default() },
                &[6, 0, 0, 0, 0, 0, 0, 0],
            ),
            ("FP32", |all| Lists { fp32_contents: all.fp32_contents, ..Default::default() }, &[0, 0, 0xe0, 0x40]),
            (
                "FP64",
                |all| Lists { fp64_contents: all.fp64_contents, ..Default::default() },
                &[0, 0, 0, 0, 0, 0, 0x20, 0x40],
            ),
        ];
        for (datatype, only, bytes) in rows {
            let dtype = DType::parse(datatype).unwrap();
            let tensor = read_contents("x", dtype, vec![1], 1, only(all.clone())).unwrap();
            assert_eq!((tensor.dtype(), tensor.bytes()), (dtype, bytes));
            let error = read_contents("x", dtype, vec![1], 1, all.clone()).unwrap_err().to_string();
            assert!(error.contains("are in") && error.contains("has some"), "{error}");
        }
        let texts = Lists { bytes_contents: all.bytes_contents, ..Default::default() };
        assert_eq!(read_contents("x", DType::String, vec![1], 1, texts).unwrap().strings(), ["ü"]);
    }

    #[test]
    fn what_does_not_add_up_is_named() {
        let x = |contents| vec![input("x", "FP32", &[2], contents)];
        check(request(x(floats(&[1.0])), &[]), "inputs.x: shape [2] needs 2 elements in fp32_contents, got 1");
        check(request(x(None), &[]), "needs 2 elements in fp32_contents, got 0");
        check(request(x(floats(&[1.0, 2.0])), &[&[0; 8]]), "inputs.x has contents, and raw_input_contents is used");
        check(request(x(None), &[&[0; 8], &[0; 8]]), "raw_input_contents has 2 tensors for 1 inputs");
        check(request(x(None), &[&[0; 7]]), "needs 8 bytes of data, got 7");
        check(request(vec![input("x", "FP32", &[-1], floats(&[]))], &[]), "negative");
        check(request(vec![input("x", "FP31", &[1], floats(&[1.0]))], &[]), "unknown datatype \"FP31\"");
        check(request(vec![input("x", "FP16", &[1], None)], &[]), "FP16 has no list in contents; send it in raw");
        check(request(vec![input("x", "BF16", &[1], None)], &[]), "raw_input_contents");
        check(request(vec![input("z", "FP32", &[1], floats(&[1.0]))], &[]), "its inputs are x, t, m");
        check(request([x(floats(&[1.0, 2.0])), x(floats(&[1.0, 2.0]))].concat(), &[]), "given twice");
        check(request(vec![input("x", "FP32", &[1 << 62, 1 << 62], None)], &[&[]]), "more than max_tensor_elements");
        let small = InferTensorContents { int_contents: vec![1, 200], ..Default::default() };
        check(request(vec![input("x", "INT8", &[2], Some(small))], &[]), "element 1 is 200: not within INT8");
        let bytes = InferTensorContents { bytes_contents: vec![Bytes::from_static(&[0xff])], ..Default::default() };
        check(request(vec![input("t", "BYTES", &[1], Some(bytes))], &[]), "element 0 is not UTF-8");
        check(
            request(vec![input("t", "BYTES", &[2], None)], &[&[1, 0, 0, 0, b'a', 9, 0, 0, 0]]),
            "said to have 9 bytes",
        );
        check(ModelInferRequest { id: "i".repeat(2000), ..Default::default() }, "id is longer than");
    }

    #[test]
    fn values_that_are_no_tensors_come_as_json_text() {
        let text =
            InferTensorContents { bytes_contents: vec![Bytes::from_static(b"{\"a\":1.5}")], ..Default::default() };
        let read = read(request(vec![input("m", "BYTES", &[1], Some(text))], &[]), &specs(), &LIMITS).unwrap();
        assert!(matches!(&read.inputs[0].1, Value::Map { .. }));
        check(request(vec![input("m", "FP32", &[1], floats(&[1.0]))], &[]), "holding the JSON text");
    }

    #[test]
    fn parameters_and_outputs_are_read() {
        let choice = |choice| InferParameter { parameter_choice: choice };
        let mut wanted = InferRequestedOutputTensor { name: "y".to_owned(), ..Default::default() };
        wanted.parameters.insert("classification".to_owned(), choice(Some(ParameterChoice::Int64Param(3))));
        let mut given = ModelInferRequest { outputs: vec![wanted.clone()], ..Default::default() };
        given.parameters.insert("timeout".to_owned(), choice(Some(ParameterChoice::Uint64Param(u64::MAX))));
        let parsed = read(given.clone(), &specs(), &LIMITS).unwrap();
        assert_eq!(parsed.outputs, [Wanted { name: "y".to_owned(), classes: Some(3) }]);
        assert_eq!(parsed.parameters["timeout"], u64::MAX);
        let with = |name: &str, value| {
            let mut given = given.clone();
            given.parameters.insert(name.to_owned(), choice(value));
            given
        };
        check(with("a", None), "parameters.a: has no value");
        check(with("a", Some(ParameterChoice::DoubleParam(f64::NAN))), "parameters.a: must be a finite number");
        given.outputs.push(wanted.clone());
        check(given.clone(), "asked for twice");
        wanted.parameters.insert("classification".to_owned(), choice(Some(ParameterChoice::Int64Param(0))));
        check(
            ModelInferRequest { outputs: vec![wanted.clone()], ..Default::default() },
            "must be a whole number from 1",
        );
        wanted.parameters.insert("shared_memory_region".to_owned(), choice(Some(ParameterChoice::BoolParam(true))));
        check(ModelInferRequest { outputs: vec![wanted], ..Default::default() }, "shared memory is not served");
    }

    /// Elements of a type, in the list that it uses and as raw bytes.
    fn any_elements() -> impl Strategy<Value = (&'static str, InferTensorContents, Vec<u8>)> {
        type Lists = InferTensorContents;
        fn raw<T, const N: usize>(elements: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
            elements.iter().flat_map(bytes).collect()
        }
        let sizes = 0..20usize;
        prop_oneof![
            prop::collection::vec(any::<bool>(), sizes.clone()).prop_map(|list| {
                let bytes = raw(&list, |&element| [u8::from(element)]);
                ("BOOL", Lists { bool_contents: list, ..Default::default() }, bytes)
            }),
            prop::collection::vec(any::<i8>(), sizes.clone()).prop_map(|list| {
                let int_contents = list.iter().map(|&element| element.into()).collect();
                ("INT8", Lists { int_contents, ..Default::default() }, raw(&list, |element| element.to_le_bytes()))
            }),
            prop::collection::vec(any::<u16>(), sizes.clone()).prop_map(|list| {
                let uint_contents = list.iter().map(|&element| element.into()).collect();
                ("UINT16", Lists { uint_contents, ..Default::default() }, raw(&list, |element| element.to_le_bytes()))
            }),
            prop::collection::vec(any::<i32>(), sizes.clone()).prop_map(|list| {
                let bytes = raw(&list, |element| element.to_le_bytes());
                ("INT32", Lists { int_contents: list, ..Default::default() }, bytes)
            }),
            prop::collection::vec(any::<i64>(), sizes.clone()).prop_map(|list| {
                let bytes = raw(&list, |element| element.to_le_bytes());
                ("INT64", Lists { int64_contents: list, ..Default::default() }, bytes)
            }),
            prop::collection::vec(any::<u64>(), sizes.clone()).prop_map(|list| {
                let bytes = raw(&list, |element| element.to_le_bytes());
                ("UINT64", Lists { uint64_contents: list, ..Default::default() }, bytes)
            }),
            prop::collection::vec(any::<u32>().prop_map(f32::from_bits), sizes.clone()).prop_map(|list| {
                let bytes = raw(&list, |element| element.to_le_bytes());
                ("FP32", Lists { fp32_contents: list, ..Default::default() }, bytes)
            }),
            prop::collection::vec(any::<u64>().prop_map(f64::from_bits), sizes.clone()).prop_map(|list| {
                let bytes = raw(&list, |element| element.to_le_bytes());
                ("FP64", Lists { fp64_contents: list, ..Default::default() }, bytes)
            }),
            prop::collection::vec(any::<String>(), sizes).prop_map(|list| {
                let length = |text: &String| u32::try_from(text.len()).unwrap().to_le_bytes();
                let bytes = list.iter().flat_map(|text| [&length(text)[..], text.as_bytes()].concat()).collect();
                let bytes_contents = list.into_iter().map(|text| Bytes::from(text.into_bytes())).collect();
                ("BYTES", Lists { bytes_contents, ..Default::default() }, bytes)
            }),
        ]
    }

    proptest! {
        /// From message to message: typed and raw elements are the same tensor, and it is sent as it came.
        #[test]
        fn tensors_come_out_as_they_went_in((datatype, contents, bytes) in any_elements()) {
            let count = match datatype {
                "BYTES" => contents.bytes_contents.len(),
                datatype => bytes.len() * 8 / DType::parse(datatype).unwrap().bits(),
            };
            let described = input("x", datatype, &[i64::try_from(count).unwrap(), 1], None);
            let typed = InferInputTensor { contents: Some(contents), ..described.clone() };
            let raw_input_contents = vec![Bytes::from(bytes)];
            let expected = vec![(described.clone(), raw_input_contents[0].clone())];
            let raw = ModelInferRequest { raw_input_contents, ..request(vec![described], &[]) };
            for sent in [request(vec![typed], &[]), raw] {
                let came: ModelInferRequest = decoded(Bytes::from(sent.encode_to_vec())).unwrap();
                prop_assert_eq!(read_twice(came).unwrap(), expected.clone());
            }
        }

        #[test]
        fn no_bytes_are_too_odd_to_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = decoded::<ModelInferRequest>(Bytes::from(bytes)) {
                let _ = read_twice(request);
            }
        }
    }
}

//! Our values to ONNX Runtime's and back, without copying numbers where the bytes allow it.

use crate::runtime::RuntimeError;
use crate::tensor::{DType, Data, Dim, Tensor, Value, ValueType};
use bytes::Bytes;
use half::{bf16, f16};
use ort::memory::Allocator;
use ort::session::SessionInputValue;
use ort::value::{
    DynMapValueType, DynSequenceValueType, DynTensor, DynTensorValueType, DynValue, Map, PrimitiveTensorElementType,
    Sequence, Tensor as OrtTensor, TensorElementType, TensorRef, ValueType as OrtType,
};
use std::borrow::Cow;
use std::fmt::Debug;

/// Each of our types beside ONNX Runtime's.
const TYPES: [(DType, TensorElementType); 24] = [
    (DType::Bool, TensorElementType::Bool),
    (DType::Uint8, TensorElementType::Uint8),
    (DType::Uint16, TensorElementType::Uint16),
    (DType::Uint32, TensorElementType::Uint32),
    (DType::Uint64, TensorElementType::Uint64),
    (DType::Int8, TensorElementType::Int8),
    (DType::Int16, TensorElementType::Int16),
    (DType::Int32, TensorElementType::Int32),
    (DType::Int64, TensorElementType::Int64),
    (DType::Fp16, TensorElementType::Float16),
    (DType::Bf16, TensorElementType::Bfloat16),
    (DType::Fp32, TensorElementType::Float32),
    (DType::Fp64, TensorElementType::Float64),
    (DType::String, TensorElementType::String),
    (DType::Int4, TensorElementType::Int4),
    (DType::Uint4, TensorElementType::Uint4),
    (DType::Int2, TensorElementType::Int2),
    (DType::Uint2, TensorElementType::Uint2),
    (DType::Fp4E2M1, TensorElementType::Float4E2M1),
    (DType::Fp8E4M3Fn, TensorElementType::Float8E4M3FN),
    (DType::Fp8E4M3FnUz, TensorElementType::Float8E4M3FNUZ),
    (DType::Fp8E5M2, TensorElementType::Float8E5M2),
    (DType::Fp8E5M2FnUz, TensorElementType::Float8E5M2FNUZ),
    (DType::Fp8E8M0, TensorElementType::Float8E8M0),
];

/// Outputs up to this size are copied, so that ONNX Runtime's arena is not held by an answer that is being sent.
const COPY_UP_TO: usize = 4096;

fn from_element_type(element: TensorElementType) -> Result<DType, RuntimeError> {
    TYPES
        .iter()
        .find(|(_, theirs)| *theirs == element)
        .map(|(ours, _)| *ours)
        .ok_or_else(|| RuntimeError::Graph(format!("element type {element} is not supported")))
}

/// The type's number in ONNX files (`TensorProto.DataType`).
fn onnx_code(dtype: DType) -> i32 {
    use super::proto::tensor_proto::DataType;
    let code = match dtype {
        DType::Bool => DataType::Bool,
        DType::Uint8 => DataType::Uint8,
        DType::Uint16 => DataType::Uint16,
        DType::Uint32 => DataType::Uint32,
        DType::Uint64 => DataType::Uint64,
        DType::Int8 => DataType::Int8,
        DType::Int16 => DataType::Int16,
        DType::Int32 => DataType::Int32,
        DType::Int64 => DataType::Int64,
        DType::Fp16 => DataType::Float16,
        DType::Bf16 => DataType::Bfloat16,
        DType::Fp32 => DataType::Float,
        DType::Fp64 => DataType::Double,
        DType::String => DataType::String,
        DType::Int4 => DataType::Int4,
        DType::Uint4 => DataType::Uint4,
        DType::Int2 => DataType::Int2,
        DType::Uint2 => DataType::Uint2,
        DType::Fp4E2M1 => DataType::Float4e2m1,
        DType::Fp8E4M3Fn => DataType::Float8e4m3fn,
        DType::Fp8E4M3FnUz => DataType::Float8e4m3fnuz,
        DType::Fp8E5M2 => DataType::Float8e5m2,
        DType::Fp8E5M2FnUz => DataType::Float8e5m2fnuz,
        DType::Fp8E8M0 => DataType::Float8e8m0,
    };
    code.into()
}

fn to_element_type(dtype: DType) -> TensorElementType {
    TYPES.iter().find(|(ours, _)| *ours == dtype).map_or(TensorElementType::Undefined, |(_, theirs)| *theirs)
}

/// The declared type of an input or output. `unshaped` says that the graph states no shape for it.
pub(super) fn value_type(ty: &OrtType, unshaped: bool) -> Result<ValueType, RuntimeError> {
    Ok(match ty {
        OrtType::Tensor { ty, shape, dimension_symbols } => {
            let dims = shape.iter().enumerate().map(|(axis, &size)| match usize::try_from(size) {
                Ok(size) => Dim::Fixed(size),
                Err(_) => Dim::Dynamic(dimension_symbols.get(axis).filter(|name| !name.is_empty()).cloned()),
            });
            let dims: Vec<Dim> = dims.collect();
            let shape = if unshaped && dims.is_empty() { None } else { Some(dims) };
            ValueType::Tensor { dtype: from_element_type(*ty)?, shape }
        }
        // The elements' shape is not part of the type that ONNX Runtime checks.
        OrtType::Sequence(element) => ValueType::Sequence(Box::new(without_shape(value_type(element, true)?))),
        OrtType::Map { key, value } => {
            ValueType::Map { key: from_element_type(*key)?, value: from_element_type(*value)? }
        }
        OrtType::Optional(inner) => ValueType::Optional(Box::new(value_type(inner, unshaped)?)),
    })
}

fn without_shape(ty: ValueType) -> ValueType {
    match ty {
        ValueType::Tensor { dtype, .. } => ValueType::Tensor { dtype, shape: None },
        other @ (ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_)) => other,
    }
}

fn run_error(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Run(super::message::clean(&error.to_string()))
}

/// An input for a run. Numbers are borrowed from `value` where they are aligned.
pub(super) fn to_input<'a>(value: &'a Value, ty: &ValueType) -> Result<SessionInputValue<'a>, RuntimeError> {
    match value {
        Value::Sequence(items) if items.is_empty() => {
            let dtype = sequence_dtype(ty).ok_or_else(|| run_error("an empty sequence of maps cannot be given"))?;
            Ok(super::empty_sequence::make(onnx_code(dtype)).map(Into::into)?)
        }
        Value::Tensor(tensor) => tensor_input(tensor),
        Value::Sequence(_) | Value::Map { .. } => Ok(owned(value)?.into()),
        Value::None => {
            Err(RuntimeError::Run("an absent optional value cannot be given; leave the input out".to_owned()))
        }
    }
}

fn sequence_dtype(ty: &ValueType) -> Option<DType> {
    match ty {
        ValueType::Sequence(element) => element.dtype(),
        ValueType::Optional(inner) => sequence_dtype(inner),
        ValueType::Tensor { .. } | ValueType::Map { .. } => None,
    }
}

fn tensor_input(tensor: &Tensor) -> Result<SessionInputValue<'_>, RuntimeError> {
    macro_rules! numbers {
        ($type:ty) => {{
            let Some(elements) = tensor.elements::<$type>() else { return Ok(owned_tensor(tensor)?.into_dyn().into()) };
            borrowed_or_owned(tensor.shape(), elements)
        }};
    }
    match tensor.dtype() {
        DType::Uint8 => numbers!(u8),
        DType::Uint16 => numbers!(u16),
        DType::Uint32 => numbers!(u32),
        DType::Uint64 => numbers!(u64),
        DType::Int8 => numbers!(i8),
        DType::Int16 => numbers!(i16),
        DType::Int32 => numbers!(i32),
        DType::Int64 => numbers!(i64),
        DType::Fp16 => numbers!(f16),
        DType::Bf16 => numbers!(bf16),
        DType::Fp32 => numbers!(f32),
        DType::Fp64 => numbers!(f64),
        DType::Bool => {
            // The tensor's invariant (0 or 1) makes the cast succeed; the check is repeated because it is a cast.
            let elements = bytemuck::checked::try_cast_slice::<u8, bool>(tensor.bytes()).map_err(run_error)?;
            borrowed_or_owned(tensor.shape(), Cow::Borrowed(elements))
        }
        DType::String
        | DType::Int4
        | DType::Uint4
        | DType::Int2
        | DType::Uint2
        | DType::Fp4E2M1
        | DType::Fp8E4M3Fn
        | DType::Fp8E4M3FnUz
        | DType::Fp8E5M2
        | DType::Fp8E5M2FnUz
        | DType::Fp8E8M0 => Ok(owned_tensor(tensor)?.into_dyn().into()),
    }
}

fn borrowed_or_owned<'a, T>(shape: &'a [usize], elements: Cow<'a, [T]>) -> Result<SessionInputValue<'a>, RuntimeError>
where
    T: PrimitiveTensorElementType + Clone + Debug + Send + Sync + 'static,
{
    Ok(match elements {
        // A tensor without elements has no address to borrow.
        Cow::Borrowed(elements) if !elements.is_empty() => {
            TensorRef::from_array_view((shape, elements)).map_err(run_error)?.into()
        }
        elements => OrtTensor::from_array((shape, elements.into_owned())).map_err(run_error)?.into(),
    })
}

/// A copy that ONNX Runtime owns.
fn owned_tensor(tensor: &Tensor) -> Result<DynTensor, RuntimeError> {
    match tensor.data() {
        Data::Strings(strings) => super::raw::string_tensor(tensor.shape(), strings).map_err(run_error),
        Data::Bytes(bytes) => {
            let element = to_element_type(tensor.dtype());
            let mut copy = DynTensor::new(&Allocator::default(), element, tensor.shape()).map_err(run_error)?;
            let size = copy.size().unwrap_or(0);
            if size < bytes.len() {
                return Err(RuntimeError::Run(format!("{} tensors of this shape cannot be made", tensor.dtype())));
            }
            if !bytes.is_empty() {
                #[expect(unsafe_code, reason = "packed and 8-bit float types have no Rust type in the crate")]
                // SAFETY: the tensor was just allocated with `size >= bytes.len()` bytes on the CPU and is not shared.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.data_ptr_mut().cast::<u8>(), bytes.len());
                }
            }
            Ok(copy)
        }
    }
}

fn owned(value: &Value) -> Result<DynValue, RuntimeError> {
    match value {
        Value::Tensor(tensor) => Ok(owned_tensor(tensor)?.into_dyn()),
        Value::Sequence(items) => sequence(items),
        Value::Map { keys, values } => map(keys, values),
        Value::None => Err(RuntimeError::Run("a sequence cannot hold an absent value".to_owned())),
    }
}

fn sequence(items: &[Value]) -> Result<DynValue, RuntimeError> {
    let mut tensors = Vec::with_capacity(items.len());
    for item in items {
        let Value::Tensor(tensor) = item else {
            return Err(RuntimeError::Run("only sequences of tensors can be given".to_owned()));
        };
        tensors.push(owned_tensor(tensor)?);
    }
    Ok(Sequence::<DynTensorValueType>::new(tensors).map_err(run_error)?.into_dyn())
}

fn map(keys: &Tensor, values: &Tensor) -> Result<DynValue, RuntimeError> {
    macro_rules! entries {
        ($key:ty, $value:ty, $keys:expr) => {{
            let Some(values) = values.elements::<$value>() else { return Err(unsupported_map(keys, values)) };
            let entries: Vec<($key, $value)> = $keys.into_iter().zip(values.iter().copied()).collect();
            Map::<$key, $value>::new(entries).map_err(run_error)?.into_dyn()
        }};
    }
    macro_rules! by_value {
        ($key:ty, $keys:expr) => {
            match values.dtype() {
                DType::Fp32 => entries!($key, f32, $keys),
                DType::Fp64 => entries!($key, f64, $keys),
                DType::Int64 => entries!($key, i64, $keys),
                _ => return Err(unsupported_map(keys, values)),
            }
        };
    }
    Ok(match keys.dtype() {
        DType::String => by_value!(String, keys.strings().to_vec()),
        DType::Int64 => by_value!(i64, keys.elements::<i64>().unwrap_or_default().into_owned()),
        _ => return Err(unsupported_map(keys, values)),
    })
}

fn unsupported_map(keys: &Tensor, values: &Tensor) -> RuntimeError {
    RuntimeError::Run(format!("maps from {} to {} are not supported", keys.dtype(), values.dtype()))
}

/// One output of a run. Large tensors keep ONNX Runtime's buffer instead of copying it.
pub(super) fn from_output(value: DynValue) -> Result<Value, RuntimeError> {
    match value.dtype() {
        OrtType::Tensor { .. } => {
            Ok(Value::Tensor(from_tensor(value.downcast::<DynTensorValueType>().map_err(run_error)?)?))
        }
        OrtType::Sequence(_) => {
            let sequence = value.downcast::<DynSequenceValueType>().map_err(run_error)?;
            let items = sequence.try_extract_sequence::<ort::value::DynValueTypeMarker>().map_err(run_error)?;
            Ok(Value::Sequence(items.into_iter().map(from_output).collect::<Result<_, _>>()?))
        }
        OrtType::Map { key, value: element } => {
            let (key, element) = (*key, *element);
            from_map(&value.downcast::<DynMapValueType>().map_err(run_error)?, key, element)
        }
        OrtType::Optional(_) => Ok(Value::None),
    }
}

fn from_tensor(tensor: DynTensor) -> Result<Tensor, RuntimeError> {
    let dtype = from_element_type(*tensor.data_type())?;
    let shape: Vec<usize> = tensor.shape().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    if dtype == DType::String {
        let (_, strings) = tensor.try_extract_strings().map_err(run_error)?;
        return Tensor::from_strings(shape, strings).map_err(run_error);
    }
    let buffer = OutputBuffer(tensor);
    let bytes = buffer.as_ref();
    let bytes = if bytes.len() <= COPY_UP_TO { Bytes::copy_from_slice(bytes) } else { Bytes::from_owner(buffer) };
    Tensor::from_bytes(dtype, shape, bytes).map_err(run_error)
}

/// An output tensor as bytes; keeps it, and the session it came from, alive.
struct OutputBuffer(DynTensor);

impl AsRef<[u8]> for OutputBuffer {
    fn as_ref(&self) -> &[u8] {
        let size = self.0.size().unwrap_or(0);
        let pointer = self.0.data_ptr().cast::<u8>();
        if size == 0 || pointer.is_null() {
            return &[];
        }
        #[expect(unsafe_code, reason = "packed and 8-bit float types have no Rust type in the crate")]
        // SAFETY: the tensor is not a string, lives on the CPU (runs give their outputs there), owns `size` bytes, and
        // nothing writes to it after the run.
        unsafe {
            std::slice::from_raw_parts(pointer, size)
        }
    }
}

fn from_map(
    map: &ort::value::DynMap,
    key: TensorElementType,
    element: TensorElementType,
) -> Result<Value, RuntimeError> {
    macro_rules! values {
        ($pairs:expr, $dtype:expr) => {{
            let values: Vec<_> = $pairs.iter().map(|(_, value)| *value).collect();
            Tensor::from_vec($dtype, vec![values.len()], values).map_err(run_error)?
        }};
    }
    macro_rules! pairs {
        ($key:ty) => {
            match element {
                TensorElementType::Float32 => {
                    let pairs = map.try_extract_key_values::<$key, f32>().map_err(run_error)?;
                    (pairs.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), values!(pairs, DType::Fp32))
                }
                TensorElementType::Float64 => {
                    let pairs = map.try_extract_key_values::<$key, f64>().map_err(run_error)?;
                    (pairs.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), values!(pairs, DType::Fp64))
                }
                TensorElementType::Int64 => {
                    let pairs = map.try_extract_key_values::<$key, i64>().map_err(run_error)?;
                    (pairs.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), values!(pairs, DType::Int64))
                }
                other => return Err(RuntimeError::Run(format!("maps to {other} are not supported"))),
            }
        };
    }
    let (keys, values) = match key {
        TensorElementType::String => {
            let (keys, values) = pairs!(String);
            (Tensor::from_strings(vec![keys.len()], keys).map_err(run_error)?, values)
        }
        TensorElementType::Int64 => {
            let (keys, values) = pairs!(i64);
            (Tensor::from_vec(DType::Int64, vec![keys.len()], keys).map_err(run_error)?, values)
        }
        other => return Err(RuntimeError::Run(format!("maps from {other} are not supported"))),
    };
    Ok(Value::Map { keys, values })
}

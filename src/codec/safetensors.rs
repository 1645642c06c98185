//! HuggingFace's safetensors, read without copying the tensors and written in one piece.
//!
//! Carries every numeric type but integers of less than 8 bits; strings cannot be carried.

use super::{CodecError, MAX_RANK, checked_count, clip};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// Bytes of the JSON header.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Tensors in one file.
const MAX_TENSORS: usize = 4096;

const TYPES: [(Dtype, DType); 19] = [
    (Dtype::BOOL, DType::Bool),
    (Dtype::U8, DType::Uint8),
    (Dtype::U16, DType::Uint16),
    (Dtype::U32, DType::Uint32),
    (Dtype::U64, DType::Uint64),
    (Dtype::I8, DType::Int8),
    (Dtype::I16, DType::Int16),
    (Dtype::I32, DType::Int32),
    (Dtype::I64, DType::Int64),
    (Dtype::F16, DType::Fp16),
    (Dtype::BF16, DType::Bf16),
    (Dtype::F32, DType::Fp32),
    (Dtype::F64, DType::Fp64),
    (Dtype::F4, DType::Fp4E2M1),
    (Dtype::F8_E4M3, DType::Fp8E4M3Fn),
    (Dtype::F8_E4M3FNUZ, DType::Fp8E4M3FnUz),
    (Dtype::F8_E5M2, DType::Fp8E5M2),
    (Dtype::F8_E5M2FNUZ, DType::Fp8E5M2FnUz),
    (Dtype::F8_E8M0, DType::Fp8E8M0),
];

/// Reads all tensors, by name in alphabetical order.
///
/// # Errors
/// `Malformed` for what is no safetensors file, `UnsupportedMedia` for types that ONNX has not, `TooLarge` beyond a limit.
pub fn read(bytes: &Bytes, max_elements: usize) -> Result<Vec<(String, Tensor)>, CodecError> {
    let malformed = |problem: &dyn std::fmt::Display| {
        CodecError::Malformed(format!("the body is not a safetensors file: {problem}"))
    };
    let Some(length) = bytes.first_chunk::<8>() else { return Err(malformed(&"it has less than 8 bytes")) };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(malformed(&format_args!("the header of {length} bytes is longer than {MAX_HEADER_BYTES}")));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error: SafeTensorError| malformed(&error))?;
    if file.len() > MAX_TENSORS {
        return Err(CodecError::TooLarge(format!(
            "the file has {} tensors; at most {MAX_TENSORS} are read",
            file.len()
        )));
    }
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let field = format!("inputs.{}", clip(name));
        let Some((_, dtype)) = TYPES.iter().find(|row| row.0 == view.dtype()) else {
            return Err(CodecError::UnsupportedMedia(format!(
                "{field} is {:?}, a type that ONNX has not",
                view.dtype()
            )));
        };
        checked_count(&field, view.shape(), false, max_elements)?;
        let tensor = Tensor::from_bytes(*dtype, view.shape().to_vec(), bytes.slice_ref(view.data()));
        tensors.push((name.to_owned(), tensor.map_err(|error| CodecError::tensor(&field, &error))?));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(tensors)
}

/// Writes tensors by name.
///
/// # Errors
/// `UnsupportedMedia` for types that the format has not.
pub fn write<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Vec<u8>, CodecError> {
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let unsupported = |problem: &str| {
            CodecError::UnsupportedMedia(format!(
                "outputs.{name} is {}{:?}, {problem}; ask for JSON",
                tensor.dtype(),
                tensor.shape()
            ))
        };
        let Some((dtype, _)) = TYPES.iter().find(|row| row.1 == tensor.dtype()) else {
            return Err(unsupported("which safetensors cannot carry"));
        };
        if tensor.shape().len() > MAX_RANK {
            return Err(unsupported("which has too many dimensions"));
        }
        let view = TensorView::new(*dtype, tensor.shape().to_vec(), tensor.bytes());
        views.push((name, view.map_err(|_| unsupported("which does not end at a whole byte"))?));
    }
    safetensors::serialize(views, None)
        .map_err(|error| CodecError::UnsupportedMedia(format!("the outputs make no safetensors file: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_it_carries_survives_the_round_trip_without_a_copy() {
        for (_, dtype) in TYPES {
            let size = crate::tensor::byte_len(dtype, 6).unwrap();
            let data: Vec<u8> = (0..size).map(|byte| (byte % 2) as u8).collect();
            let tensor = Tensor::from_bytes(dtype, vec![2, 3], data.clone()).unwrap();
            let file = Bytes::from(write([("a", &tensor), ("b/c", &tensor)]).unwrap());
            let back = read(&file, 100).unwrap();
            assert_eq!(back.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b/c"]);
            for (_, tensor) in back {
                assert_eq!(
                    (tensor.dtype(), tensor.shape(), tensor.bytes()),
                    (dtype, &[2usize, 3][..], data.as_slice())
                );
                assert!(file.as_ptr_range().contains(&tensor.bytes().as_ptr()));
            }
        }
    }

    #[test]
    fn types_it_cannot_carry_are_refused_on_writing() {
        let strings = Tensor::from_strings(vec![1], vec!["a".into()]).unwrap();
        let int4 = Tensor::from_bytes(DType::Int4, vec![2], vec![0]).unwrap();
        for tensor in [strings, int4] {
            let error = write([("y", &tensor)]).unwrap_err();
            assert!(matches!(error, CodecError::UnsupportedMedia(_)), "{error}");
        }
    }

    fn file(header: &str, data: &[u8]) -> Bytes {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        file.into()
    }

    #[test]
    fn files_that_lie_are_refused() {
        #[track_caller]
        fn check(bytes: Bytes, expected: &str) {
            let error = read(&bytes, 1000).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        check(Bytes::new(), "less than 8 bytes");
        check(Bytes::from(vec![0xff; 64]), "longer than");
        check(file("{", b""), "not a safetensors file");
        check(file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]), "not a safetensors file");
        check(file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 4]), "not a safetensors file");
        check(file(r#"{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]), "not a safetensors file");
        check(file(r#"{"x":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#, &[2]), "only 0 and 1");
        check(file(r#"{"x":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]), "ONNX has not");
        check(
            file(r#"{"x":{"dtype":"U8","shape":[4611686018427387904,0],"data_offsets":[0,0]}}"#, &[]),
            "max_tensor_elements",
        );
        check(
            file(r#"{"x":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,1]}}"#, &[0]),
            "not a safetensors file",
        );
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        check(file(&format!(r#"{{"x":{deep}}}"#), &[]), "not a safetensors file");
    }
}

//! A tensor and the other values that ONNX graphs take and give: sequences, maps and absent optionals.
//!
//! Invariant: a [`Tensor`]'s data holds exactly as many bytes (or strings) as its shape and type ask for, and every
//! `BOOL` byte is 0 or 1. Cloning shares the bytes.

use super::dtype::DType;
use bytes::Bytes;
use std::sync::Arc;

/// What one input takes or one output gives.
#[derive(Debug, Clone)]
pub enum Value {
    Tensor(Tensor),
    Sequence(Vec<Value>),
    /// A map from text or integers to numbers; keys and values are tensors of equal length.
    Map {
        keys: Tensor,
        values: Tensor,
    },
    /// An optional value that is not there.
    None,
}

/// A typed array of any rank; rank 0 is a scalar, and any dimension may be 0.
#[derive(Debug, Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

/// The elements of a tensor.
#[derive(Debug, Clone)]
pub enum Data {
    /// Little-endian elements, row-major, packed for types smaller than a byte. May be unaligned.
    Bytes(Bytes),
    Strings(Arc<[String]>),
}

/// Why data does not make a tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorError {
    #[error("shape {shape:?} has more elements than a tensor can hold")]
    TooManyElements { shape: Vec<usize> },
    #[error("shape {shape:?} of {dtype} needs {expected} {unit}, got {got}")]
    Length { dtype: DType, shape: Vec<usize>, expected: usize, got: usize, unit: &'static str },
    #[error("a BOOL element is the byte {0}; only 0 and 1 are allowed")]
    NotBool(u8),
    #[error("{0} tensors cannot be made from {1}")]
    WrongData(DType, &'static str),
}

/// The number of elements of `shape`; `None` where it does not fit `usize`.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero dimension makes the tensor empty however large the others are; without it every factor counts.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

/// The bytes that `count` elements take; `None` for strings and on overflow.
pub fn byte_len(dtype: DType, count: usize) -> Option<usize> {
    match dtype.bits() {
        0 => None,
        bits => Some(count.checked_mul(bits)?.div_ceil(8)),
    }
}

impl Tensor {
    /// A tensor of any type but strings over `bytes`, without copying.
    ///
    /// # Errors
    /// Where the bytes do not match shape and type, or a `BOOL` byte is neither 0 nor 1.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, bytes: impl Into<Bytes>) -> Result<Tensor, TensorError> {
        let bytes = bytes.into();
        let count = element_count(&shape).ok_or_else(|| TensorError::TooManyElements { shape: shape.clone() })?;
        if dtype == DType::String {
            return Err(TensorError::WrongData(dtype, "raw bytes"));
        }
        let expected = byte_len(dtype, count).ok_or_else(|| TensorError::TooManyElements { shape: shape.clone() })?;
        if bytes.len() != expected {
            return Err(TensorError::Length { dtype, shape, expected, got: bytes.len(), unit: "bytes" });
        }
        if dtype == DType::Bool
            && let Some(&bad) = bytes.iter().find(|&&byte| byte > 1)
        {
            return Err(TensorError::NotBool(bad));
        }
        Ok(Tensor { dtype, shape, data: Data::Bytes(bytes) })
    }

    /// A tensor over a vector of numbers, without copying.
    ///
    /// # Errors
    /// Where the number of elements does not match the shape, or `T` is not what `dtype` stores.
    pub fn from_vec<T: bytemuck::Pod + Send + Sync>(
        dtype: DType,
        shape: Vec<usize>,
        data: Vec<T>,
    ) -> Result<Tensor, TensorError> {
        struct Owner<T>(Vec<T>);
        impl<T: bytemuck::Pod> AsRef<[u8]> for Owner<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        if dtype.size().is_some_and(|size| size != size_of::<T>()) {
            return Err(TensorError::WrongData(dtype, std::any::type_name::<T>()));
        }
        Tensor::from_bytes(dtype, shape, Bytes::from_owner(Owner(data)))
    }

    /// A tensor of strings.
    ///
    /// # Errors
    /// Where their number does not match the shape.
    pub fn from_strings(shape: Vec<usize>, strings: Vec<String>) -> Result<Tensor, TensorError> {
        let expected = element_count(&shape).ok_or_else(|| TensorError::TooManyElements { shape: shape.clone() })?;
        if strings.len() != expected {
            return Err(TensorError::Length {
                dtype: DType::String,
                shape,
                expected,
                got: strings.len(),
                unit: "strings",
            });
        }
        Ok(Tensor { dtype: DType::String, shape, data: Data::Strings(strings.into()) })
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        // The constructors refused shapes that overflow.
        element_count(&self.shape).unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw elements; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Bytes(bytes) => bytes,
            Data::Strings(_) => &[],
        }
    }

    /// The strings; empty for other types.
    pub fn strings(&self) -> &[String] {
        match &self.data {
            Data::Bytes(_) => &[],
            Data::Strings(strings) => strings,
        }
    }

    /// The elements as `T`, copied only where the bytes are not aligned; `None` where `T` is not what the type stores.
    pub fn elements<T: bytemuck::Pod>(&self) -> Option<std::borrow::Cow<'_, [T]>> {
        if self.dtype.size() != Some(size_of::<T>()) {
            return None;
        }
        Some(match bytemuck::try_cast_slice(self.bytes()) {
            Ok(slice) => std::borrow::Cow::Borrowed(slice),
            Err(_) => std::borrow::Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes())),
        })
    }

    /// The elements of a float tensor as `f32`, whatever its precision; `None` for other types.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        Some(match self.dtype {
            DType::Fp32 => self.elements::<f32>()?.into_owned(),
            DType::Fp64 => self.elements::<f64>()?.iter().map(|&x| x as f32).collect(),
            DType::Fp16 => self.elements::<half::f16>()?.iter().map(|x| x.to_f32()).collect(),
            DType::Bf16 => self.elements::<half::bf16>()?.iter().map(|x| x.to_f32()).collect(),
            _ => return None,
        })
    }

    /// The rows of all `parts` one after another, copied once; `None` where types or shapes beyond dim 0 differ, where a
    /// part has rank 0, or where elements are smaller than a byte.
    pub fn concat(parts: &[&Tensor]) -> Option<Tensor> {
        let first = parts.first()?;
        let (_, inner) = first.shape.split_first()?;
        let mut rows = 0usize;
        for part in parts {
            let (&count, dims) = part.shape.split_first()?;
            if part.dtype != first.dtype || dims != inner {
                return None;
            }
            rows = rows.checked_add(count)?;
        }
        let shape: Vec<usize> = std::iter::once(rows).chain(inner.iter().copied()).collect();
        if first.dtype == DType::String {
            let strings = parts.iter().flat_map(|part| part.strings().iter().cloned()).collect();
            return Tensor::from_strings(shape, strings).ok();
        }
        first.dtype.size()?;
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.bytes().len()).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part.bytes()));
        Some(Tensor { dtype: first.dtype, shape, data: Data::Bytes(bytes.into()) })
    }

    /// `count` rows of dim 0 from `start` on; numbers are shared, not copied. `None` where there are not as many rows, at
    /// rank 0, and where elements are smaller than a byte.
    pub fn rows(&self, start: usize, count: usize) -> Option<Tensor> {
        let (&all, inner) = self.shape.split_first()?;
        if start.checked_add(count)? > all {
            return None;
        }
        let shape: Vec<usize> = std::iter::once(count).chain(inner.iter().copied()).collect();
        let row = element_count(inner)?;
        let data = match &self.data {
            Data::Strings(strings) => Data::Strings(strings.get(start * row..(start + count) * row)?.into()),
            Data::Bytes(bytes) => {
                let size = row.checked_mul(self.dtype.size()?)?;
                Data::Bytes(bytes.slice(start * size..(start + count) * size))
            }
        };
        Some(Tensor { dtype: self.dtype, shape, data })
    }

    /// The same elements under another shape of equal size.
    ///
    /// # Errors
    /// Where the number of elements differs.
    pub fn reshape(&self, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        let expected = element_count(&shape).ok_or_else(|| TensorError::TooManyElements { shape: shape.clone() })?;
        if expected != self.len() {
            return Err(TensorError::Length { dtype: self.dtype, shape, expected, got: self.len(), unit: "elements" });
        }
        Ok(Tensor { dtype: self.dtype, shape, data: self.data.clone() })
    }
}

impl Value {
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(tensor) => Some(tensor),
            Value::Sequence(_) | Value::Map { .. } | Value::None => None,
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Value {
        Value::Tensor(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F18.
    #[test]
    fn shapes_that_overflow_are_refused_before_anything_is_allocated() {
        let shape = vec![1 << 40, 1 << 40];
        assert_eq!(
            Tensor::from_bytes(DType::Fp32, shape.clone(), Bytes::new()).unwrap_err(),
            TensorError::TooManyElements { shape }
        );
        let empty = Tensor::from_bytes(DType::Fp32, vec![usize::MAX, 0, usize::MAX], Bytes::new()).unwrap();
        assert_eq!(empty.len(), 0);
    }

    #[test]
    fn packed_types_round_up_to_whole_bytes() {
        assert_eq!(byte_len(DType::Int4, 7), Some(4));
        assert_eq!(byte_len(DType::Uint2, 5), Some(2));
        assert_eq!(byte_len(DType::Fp64, usize::MAX), None);
    }

    #[test]
    fn a_bool_byte_is_zero_or_one() {
        assert_eq!(Tensor::from_bytes(DType::Bool, vec![2], vec![1, 2]).unwrap_err(), TensorError::NotBool(2));
    }

    #[test]
    fn unaligned_elements_are_copied() {
        let bytes = Bytes::from(vec![0u8, 0, 0, 128, 63, 0, 0, 0, 64]).slice(1..);
        let tensor = Tensor::from_bytes(DType::Fp32, vec![2], bytes).unwrap();
        assert_eq!(tensor.elements::<f32>().unwrap().as_ref(), &[1.0, 2.0]);
    }

    #[test]
    fn rows_are_joined_and_taken_apart() {
        let numbers =
            |shape: &[usize], data: &[f32]| Tensor::from_vec(DType::Fp32, shape.to_vec(), data.to_vec()).unwrap();
        let (a, b) = (numbers(&[1, 2], &[1.0, 2.0]), numbers(&[2, 2], &[3.0, 4.0, 5.0, 6.0]));
        let whole = Tensor::concat(&[&a, &b]).unwrap();
        assert_eq!(whole.shape(), [3, 2]);
        assert_eq!(whole.rows(1, 2).unwrap().to_f32(), b.to_f32());
        assert_eq!(whole.rows(3, 0).unwrap().shape(), [0, 2]);
        assert!(whole.rows(2, 2).is_none() && whole.rows(usize::MAX, 1).is_none());
        assert!(Tensor::concat(&[&a, &numbers(&[1, 3], &[0.0; 3])]).is_none());
        assert!(Tensor::concat(&[&numbers(&[], &[0.0])]).is_none());

        let texts = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
            Tensor::from_strings(vec![list.len()], list).unwrap()
        };
        let whole = Tensor::concat(&[&texts(&["a"]), &texts(&["b", "c"])]).unwrap();
        assert_eq!(whole.rows(1, 2).unwrap().strings(), ["b", "c"]);
        assert!(Tensor::concat(&[&whole, &numbers(&[1], &[0.0])]).is_none());
    }
}

//! Nodes, attributes and constants: made in one line, and read without trust.

use crate::runtime::onnx::proto::{
    AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use bytes::Bytes;

/// Whether the operator is one of ONNX's own.
pub(super) fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

/// An integer of the node, `default` where it names none.
pub(super) fn int_of(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).and_then(|attribute| attribute.i).unwrap_or(default)
}

/// A number of the node, `default` where it names none.
pub(super) fn float_of(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).and_then(|attribute| attribute.f).unwrap_or(default)
}

/// An input by its index, `None` where it is left out.
pub(super) fn input(node: &NodeProto, index: usize) -> Option<&str> {
    node.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

pub(super) fn tensor(name: &str, kind: DataType, dims: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(kind as i32),
        dims: dims.iter().map(|&size| size as i64).collect(),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    }
}

/// Numbers as a tensor keeps them.
pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The sizes of a tensor, `None` where one is negative or all together have no number.
pub(super) fn dims(tensor: &TensorProto) -> Option<Vec<usize>> {
    let dims: Vec<usize> = tensor.dims.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<_>>()?;
    dims.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
    Some(dims)
}

/// The numbers of a tensor of 32-bit numbers that has as many as its shape says; never more than the file holds.
pub(super) fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type() != DataType::Float as i32 {
        return None;
    }
    let count: usize = dims(tensor)?.iter().product();
    let values: Vec<f32> = match &tensor.raw_data {
        Some(raw) if raw.len().is_multiple_of(4) => {
            raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        Some(_) => return None,
        None => tensor.float_data.clone(),
    };
    (values.len() == count).then_some(values)
}

/// A tensor of 16-bit numbers as one of 32 named `name`; `None` for other types.
pub(super) fn widened(from: &TensorProto, name: &str) -> Option<TensorProto> {
    let kind = from.data_type();
    let wide = |bits: u16| match kind == DataType::Float16 as i32 {
        true => half::f16::from_bits(bits).to_f32(),
        false => half::bf16::from_bits(bits).to_f32(),
    };
    if kind != DataType::Float16 as i32 && kind != DataType::Bfloat16 as i32 {
        return None;
    }
    let values: Vec<f32> = match &from.raw_data {
        Some(raw) => raw.as_chunks::<2>().0.iter().map(|bytes| wide(u16::from_le_bytes(*bytes))).collect(),
        None => from.int32_data.iter().map(|&bits| wide(bits as u16)).collect(),
    };
    Some(tensor(name, DataType::Float, &dims(from)?, bytes_of(&values)))
}

/// The numbers that bytes stand for: `(x − zero) · scale`, a scale for all or for each channel along `axis`.
pub(super) fn unquantized(
    from: &TensorProto,
    scale: &TensorProto,
    zero: Option<&TensorProto>,
    axis: i64,
    name: &str,
) -> Option<TensorProto> {
    let bytes = |tensor: &TensorProto| -> Option<Vec<f32>> {
        let raw = tensor.raw_data.as_ref()?;
        let signed = tensor.data_type() == DataType::Int8 as i32;
        if !signed && tensor.data_type() != DataType::Uint8 as i32 {
            return None;
        }
        Some(raw.iter().map(|&byte| if signed { f32::from(byte.cast_signed()) } else { f32::from(byte) }).collect())
    };
    let (dims, values, scales) = (dims(from)?, bytes(from)?, floats(scale)?);
    let zeros = zero.map_or(Some(vec![0.0]), bytes)?;
    let axis = usize::try_from(if axis < 0 { axis + dims.len() as i64 } else { axis }).ok()?;
    let channels = dims.get(axis).copied().filter(|_| scales.len() != 1).unwrap_or(1);
    if scales.len() != channels || !(zeros.len() == channels || zeros.len() == 1) || channels == 0 {
        return None;
    }
    let inner = dims.iter().skip(axis + 1).product::<usize>().max(1);
    let number = |(at, value): (usize, &f32)| {
        let channel = at / inner % channels;
        let zero = zeros.get(channel).or(zeros.first()).copied().unwrap_or_default();
        (value - zero) * scales.get(channel).copied().unwrap_or_default()
    };
    let numbers: Vec<f32> = values.iter().enumerate().map(number).collect();
    Some(tensor(name, DataType::Float, &dims, bytes_of(&numbers)))
}

/// The same numbers in another shape, which `shape` says as `Reshape` takes it; `None` where they do not fill it.
pub(super) fn reshaped(from: &TensorProto, shape: &TensorProto, zero_is_zero: bool, name: &str) -> Option<TensorProto> {
    if shape.data_type() != DataType::Int64 as i32 {
        return None;
    }
    let sizes: Vec<i64> = match &shape.raw_data {
        Some(raw) => raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        None => shape.int64_data.clone(),
    };
    let before = dims(from)?;
    let count: usize = before.iter().product();
    let known = |(at, &size): (usize, &i64)| match size {
        -1 => Some(1),
        0 if !zero_is_zero => before.get(at).copied(),
        size => usize::try_from(size).ok(),
    };
    let mut after: Vec<usize> = sizes.iter().enumerate().map(known).collect::<Option<_>>()?;
    let filled = after.iter().try_fold(1usize, |filled, &size| filled.checked_mul(size))?;
    let mut free = sizes.iter().zip(&mut after).filter(|(size, _)| **size == -1);
    if let Some((_, slot)) = free.next() {
        if free.next().is_some() || filled == 0 || !count.is_multiple_of(filled) {
            return None;
        }
        *slot = count / filled;
    } else if filled != count {
        return None;
    }
    let dims = after.iter().map(|&size| size as i64).collect();
    Some(TensorProto { name: Some(name.to_owned()), dims, ..from.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_take_the_shape_that_is_asked_for() {
        let from = tensor("x", DataType::Float, &[2, 3, 4], bytes_of(&[0.5; 24]));
        let check = |sizes: &[i64], expected: Option<&[i64]>| {
            let bytes = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
            let shape = tensor("shape", DataType::Int64, &[sizes.len()], bytes);
            let made = reshaped(&from, &shape, false, "y");
            assert_eq!(made.as_ref().map(|made| made.dims.as_slice()), expected, "{sizes:?}");
        };
        check(&[6, 4], Some(&[6, 4]));
        check(&[0, -1], Some(&[2, 12]));
        check(&[-1], Some(&[24]));
        check(&[5, -1], None);
        check(&[-1, -1], None);
        check(&[7, 7], None);
        check(&[0, 0, 0, 0], None);
        check(&[i64::MAX, i64::MAX], None);
        check(&[-2, 12], None);
    }
}

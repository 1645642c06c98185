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

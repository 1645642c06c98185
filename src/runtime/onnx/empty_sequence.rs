//! Makes an empty sequence, which ONNX Runtime's interface cannot: a graph of the one operator that can is run for it.

use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto, attribute_proto,
    type_proto,
};
use super::{OnnxRuntime, message, raw};
use crate::runtime::RuntimeError;
use ort::session::{RunOptions, Session};
use ort::value::DynValue;
use prost::Message;

/// A sequence without elements whose elements would be tensors of this ONNX element type. Rare, so the graph is built for
/// each call (about 1 ms).
///
/// # Errors
/// Where ONNX Runtime has no sequences of that type.
pub(super) fn make(element_type: i32) -> Result<DynValue, RuntimeError> {
    let failed = |error: ort::Error| RuntimeError::Run(message::clean(&error.to_string()));
    let runtime = OnnxRuntime::open().map_err(|error| RuntimeError::Library(error.to_string()))?;
    let session = session(runtime.environment(), &graph(element_type)).map_err(failed)?;
    let options = RunOptions::new().map_err(failed)?;
    let mut outputs = raw::run(&session, &[], &[c"s"], &options).map_err(failed)?;
    outputs.pop().flatten().ok_or_else(|| RuntimeError::Run("an empty sequence could not be made".to_owned()))
}

fn session(environment: &ort::environment::Environment, graph: &[u8]) -> ort::Result<Session> {
    Session::builder(environment)?.with_intra_threads(1)?.commit_from_memory(graph)
}

fn graph(element_type: i32) -> Vec<u8> {
    let dtype = AttributeProto {
        name: Some("dtype".to_owned()),
        r#type: Some(attribute_proto::AttributeType::Int.into()),
        i: Some(element_type.into()),
        ..AttributeProto::default()
    };
    let node = NodeProto {
        op_type: Some("SequenceEmpty".to_owned()),
        output: vec!["s".to_owned()],
        attribute: vec![dtype],
        ..NodeProto::default()
    };
    let tensor = type_proto::Tensor { elem_type: Some(element_type), shape: None };
    let element = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    let sequence = type_proto::Sequence { elem_type: Some(Box::new(element)) };
    let sequence = type_proto::Value::SequenceType(Box::new(sequence));
    let ty = TypeProto { value: Some(sequence), ..TypeProto::default() };
    let output = ValueInfoProto { name: Some("s".to_owned()), r#type: Some(ty), ..ValueInfoProto::default() };
    let graph =
        GraphProto { name: Some("empty".to_owned()), node: vec![node], output: vec![output], ..GraphProto::default() };
    let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(11) };
    ModelProto { ir_version: Some(7), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() }
        .encode_to_vec()
}

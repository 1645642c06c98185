//! How a model is described: its versions that answer, its inputs and outputs, and whether it is ready.

use crate::engine::{LoadedModel, ModelState, ModelStatus, Version};
use crate::tensor::{DType, Dim, Spec, ValueType};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct ModelMetadata {
    pub name: String,
    /// Those that answer, ascending.
    pub versions: Vec<String>,
    pub platform: &'static str,
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct TensorMetadata {
    pub name: String,
    pub datatype: &'static str,
    /// -1 is any size.
    pub shape: Vec<i64>,
}

/// What clients are told of `model`, of whose versions `status` knows.
pub fn metadata(model: &LoadedModel, status: &ModelStatus) -> ModelMetadata {
    let batched = model.max_batch_size > 0;
    let describe_all = |specs: &[Spec]| specs.iter().map(|spec| describe(spec, batched)).collect();
    ModelMetadata {
        name: model.name.to_string(),
        versions: ready_versions(status).map(|version| version.to_string()).collect(),
        platform: "onnxruntime_onnx",
        inputs: describe_all(&model.inputs),
        outputs: describe_all(&model.outputs),
    }
}

/// Whether this version answers; the default one where none is named.
pub fn is_ready(status: &ModelStatus, version: Option<Version>) -> bool {
    let wanted = version.or(status.default_version);
    wanted.is_some_and(|wanted| ready_versions(status).any(|version| version == wanted))
}

fn ready_versions(status: &ModelStatus) -> impl Iterator<Item = Version> {
    status.versions.iter().filter(|version| version.state == ModelState::Ready).map(|version| version.version)
}

/// How an input or output is described. With `batched`, dimension 0 is the batch and of any size.
fn describe(spec: &Spec, batched: bool) -> TensorMetadata {
    let (datatype, shape) = wire_type(&spec.ty, batched);
    TensorMetadata { name: spec.name.clone(), datatype: datatype.name(), shape }
}

fn wire_type(ty: &ValueType, batched: bool) -> (DType, Vec<i64>) {
    match ty {
        ValueType::Tensor { dtype, shape: Some(dims) } => {
            let mut shape: Vec<i64> = dims.iter().map(Dim::to_wire).collect();
            if batched && let Some(batch) = shape.first_mut() {
                *batch = -1;
            }
            (*dtype, shape)
        }
        // The protocol cannot say "any rank"; this is what it has that claims least.
        ValueType::Tensor { dtype, shape: None } => (*dtype, vec![-1]),
        ValueType::Optional(inner) => wire_type(inner, batched),
        // One element that holds the value as JSON text.
        ValueType::Sequence(_) | ValueType::Map { .. } => (DType::String, vec![1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ty: ValueType, batched: bool, datatype: &'static str, shape: &[i64]) {
        let spec = Spec { name: "x".to_owned(), ty, optional: false };
        assert_eq!(describe(&spec, batched), TensorMetadata { name: "x".to_owned(), datatype, shape: shape.to_vec() });
    }

    #[test]
    fn inputs_and_outputs_are_described_in_the_protocols_words() {
        let tensor = |dims: Vec<Dim>| ValueType::Tensor { dtype: DType::Fp32, shape: Some(dims) };
        let any = || Dim::Dynamic(Some("N".to_owned()));
        check(tensor(vec![any(), Dim::Fixed(3)]), false, "FP32", &[-1, 3]);
        check(tensor(vec![any(), Dim::Fixed(3)]), true, "FP32", &[-1, 3]);
        check(tensor(vec![Dim::Fixed(1), Dim::Fixed(3)]), false, "FP32", &[1, 3]);
        check(tensor(vec![Dim::Fixed(1), Dim::Fixed(3)]), true, "FP32", &[-1, 3]);
        check(tensor(vec![]), true, "FP32", &[]);
        check(ValueType::Tensor { dtype: DType::Int4, shape: None }, false, "INT4", &[-1]);
        check(ValueType::Optional(Box::new(tensor(vec![any()]))), false, "FP32", &[-1]);
        let map = ValueType::Map { key: DType::String, value: DType::Fp32 };
        check(ValueType::Sequence(Box::new(map.clone())), true, "BYTES", &[1]);
        check(ValueType::Optional(Box::new(map)), false, "BYTES", &[1]);
    }
}

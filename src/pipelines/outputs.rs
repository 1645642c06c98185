//! The graph's outputs by name and kind, for every task that reads some.

use crate::pipelines::{Outputs, PipelineError};
use crate::tensor::{Dim, Spec, Tensor};

/// The tensor of that name.
///
/// # Errors
/// Where the graph gave none.
pub(crate) fn tensor_named<'a>(outputs: &'a Outputs, wanted: &str) -> Result<&'a Tensor, PipelineError> {
    let tensor = outputs.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.as_tensor());
    tensor.ok_or_else(|| PipelineError::Outputs(format!("the graph gave no tensor named {wanted:?}")))
}

/// Why a tensor of the graph cannot be read.
pub(crate) fn unexpected(name: &str, expected: &str, tensor: &Tensor) -> PipelineError {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    PipelineError::Outputs(format!(
        "output {name:?}: expected a float tensor of shape {expected}, got {dtype} of shape {shape:?}"
    ))
}

/// The float outputs of one of these ranks, or of none that is declared.
pub(crate) fn floats_of_rank<'a>(outputs: &'a [Spec], ranks: &'a [usize]) -> impl Iterator<Item = &'a Spec> {
    let is_float = |spec: &&Spec| matches!(spec.ty.dtype(), Some(dtype) if dtype.is_float() && dtype.bits() >= 16);
    outputs.iter().filter(is_float).filter(|spec| spec.ty.shape().is_none_or(|dims| ranks.contains(&dims.len())))
}

/// The declared size of an axis.
pub(crate) fn fixed_dim(spec: &Spec, axis: usize) -> Option<usize> {
    match spec.ty.shape().and_then(|dims| dims.get(axis)) {
        Some(Dim::Fixed(size)) => Some(*size),
        Some(Dim::Dynamic(_)) | None => None,
    }
}

/// The outputs' names, for a sentence.
pub(crate) fn names(outputs: &[Spec]) -> String {
    outputs.iter().take(16).map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ")
}

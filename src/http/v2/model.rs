//! Metadata, readiness and configuration of one model.

use super::error::V2Error;
use crate::engine::{ModelState, ModelStatus, Version};
use crate::http::HttpState;
use crate::http::extract::ModelPath;
use crate::tensor::{DType, Dim, Spec, ValueType};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Serialize)]
pub(super) struct ModelMetadata {
    name: String,
    /// Those that answer, ascending.
    versions: Vec<String>,
    platform: &'static str,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
}

#[derive(Debug, PartialEq, Serialize)]
struct TensorMetadata {
    name: String,
    datatype: &'static str,
    /// -1 is any size.
    shape: Vec<i64>,
}

/// `GET /v2/models/{name}[/versions/{version}]`
pub(super) async fn metadata(State(state): State<HttpState>, path: ModelPath) -> Result<Json<ModelMetadata>, V2Error> {
    let model = state.engine.model(&path.name, path.version).await?;
    let status = state.engine.status(&path.name)?;
    let batched = model.max_batch_size > 0;
    let describe_all = |specs: &[Spec]| specs.iter().map(|spec| describe(spec, batched)).collect();
    Ok(Json(ModelMetadata {
        name: model.name.to_string(),
        versions: ready_versions(&status).map(|version| version.to_string()).collect(),
        platform: "onnxruntime_onnx",
        inputs: describe_all(&model.inputs),
        outputs: describe_all(&model.outputs),
    }))
}

/// `GET /v2/models/{name}[/versions/{version}]/ready`: 400 where it is not, as Triton answers. Loads nothing.
pub(super) async fn ready(State(state): State<HttpState>, path: ModelPath) -> Result<StatusCode, V2Error> {
    let status = state.engine.status(&path.name)?;
    let wanted = path.version.or(status.default_version);
    if wanted.is_some_and(|wanted| ready_versions(&status).any(|version| version == wanted)) {
        return Ok(StatusCode::OK);
    }
    let what = match path.version {
        Some(version) => format!("version {version} of model '{}'", path.name),
        None => format!("model '{}'", path.name),
    };
    Err(V2Error::invalid("model_not_ready", format!("{what} is not ready")))
}

/// `GET /v2/models/{name}[/versions/{version}]/config`
pub(super) async fn config(State(state): State<HttpState>, path: ModelPath) -> Result<Json<Value>, V2Error> {
    let model = state.engine.model(&path.name, path.version).await?;
    Ok(Json(model.config_json.clone()))
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

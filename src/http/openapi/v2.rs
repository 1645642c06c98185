//! The Open Inference Protocol's routes and bodies, for the document only: the functions are never called, and the wire
//! types that are read and written are in `http::v2`.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Body of an error answer of `/v2`.
#[derive(Serialize, ToSchema)]
pub(super) struct V2Error {
    #[schema(example = "there is no model 'resnet'; did you mean 'resnet50'?")]
    error: String,
}

#[derive(Serialize, ToSchema)]
struct V2Server {
    #[schema(example = "ortus")]
    name: String,
    #[schema(example = "0.1.0")]
    version: String,
    #[schema(example = json!(["binary_tensor_data", "classification", "model_configuration", "model_repository"]))]
    extensions: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct V2Model {
    #[schema(example = "resnet50")]
    name: String,
    #[schema(example = json!(["1"]))]
    versions: Vec<String>,
    #[schema(example = "onnxruntime_onnx")]
    platform: String,
    inputs: Vec<V2TensorMetadata>,
    outputs: Vec<V2TensorMetadata>,
}

#[derive(Serialize, ToSchema)]
struct V2TensorMetadata {
    #[schema(example = "pixel_values")]
    name: String,
    #[schema(example = "FP32")]
    datatype: String,
    /// -1 is any size.
    #[schema(example = json!([-1, 3, 224, 224]))]
    shape: Vec<i64>,
}

#[derive(Serialize, ToSchema)]
struct V2InferRequest {
    id: Option<String>,
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    inputs: Vec<V2InputTensor>,
    outputs: Option<Vec<V2RequestedOutput>>,
}

#[derive(Serialize, ToSchema)]
struct V2InputTensor {
    #[schema(example = "x")]
    name: String,
    #[schema(example = json!([1, 2]))]
    shape: Vec<u64>,
    #[schema(example = "FP32")]
    datatype: String,
    /// `binary_data_size`: the tensor's bytes stand after the JSON part.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Flat or nested; absent where the data is binary.
    #[schema(value_type = Option<Vec<Object>>, example = json!([0.5, 1.5]))]
    data: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct V2RequestedOutput {
    #[schema(example = "y")]
    name: String,
    /// `binary_data`, `classification`.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct V2InferResponse {
    #[schema(example = "resnet50")]
    model_name: String,
    #[schema(example = "1")]
    model_version: String,
    id: Option<String>,
    outputs: Vec<V2OutputTensor>,
}

#[derive(Serialize, ToSchema)]
struct V2OutputTensor {
    #[schema(example = "y")]
    name: String,
    #[schema(example = "FP32")]
    datatype: String,
    #[schema(example = json!([1, 2]))]
    shape: Vec<u64>,
    /// `binary_data_size` where the data is binary.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    #[schema(value_type = Option<Vec<Object>>, example = json!([0.25, 0.75]))]
    data: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct V2IndexRequest {
    /// Only models that are ready.
    ready: Option<bool>,
}

#[derive(Serialize, ToSchema)]
struct V2IndexEntry {
    #[schema(example = "resnet50")]
    name: String,
    #[schema(example = "1")]
    version: Option<String>,
    #[schema(example = "READY")]
    state: String,
    #[schema(example = "")]
    reason: String,
}

#[derive(Serialize, ToSchema)]
struct V2LoadRequest {
    /// `config`: a model configuration as JSON text; `file:<version>/<name>`: a file in base64.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct V2Statistics {
    model_stats: Vec<V2ModelStatistics>,
}

#[derive(Serialize, ToSchema)]
struct V2ModelStatistics {
    #[schema(example = "resnet50")]
    name: String,
    #[schema(example = "1")]
    version: String,
    /// Milliseconds since the Unix epoch; 0 = never.
    last_inference: u64,
    /// Rows that were run.
    inference_count: u64,
    /// Runs.
    execution_count: u64,
    inference_stats: V2InferenceStatistics,
    #[schema(value_type = Object)]
    response_stats: Value,
    batch_stats: Vec<V2BatchStatistics>,
    memory_usage: Vec<V2MemoryUsage>,
}

#[derive(Serialize, ToSchema)]
struct V2InferenceStatistics {
    success: V2Times,
    fail: V2Times,
    queue: V2Times,
    /// Building the batch, once for each run.
    compute_input: V2Times,
    compute_infer: V2Times,
    compute_output: V2Times,
    cache_hit: V2Times,
    cache_miss: V2Times,
}

#[derive(Serialize, ToSchema)]
struct V2BatchStatistics {
    /// Rows of these runs; above 128 the next power of two.
    batch_size: u64,
    compute_input: V2Times,
    compute_infer: V2Times,
    compute_output: V2Times,
}

#[derive(Serialize, ToSchema)]
struct V2Times {
    count: u64,
    ns: u64,
}

#[derive(Serialize, ToSchema)]
struct V2MemoryUsage {
    /// `CPU` or `GPU`.
    r#type: String,
    id: u32,
    byte_size: u64,
}

/// Tells that the process answers.
#[utoipa::path(get, path = "/v2/health/live", tag = "v2", operation_id = "v2ServerLive",
    responses((status = 200, description = "The process answers.", body = Object, example = json!({"live": true}))))]
pub(super) fn server_live() {}

/// Tells whether requests may be sent.
#[utoipa::path(get, path = "/v2/health/ready", tag = "v2", operation_id = "v2ServerReady",
    responses((status = 200, description = "Requests may be sent.", body = Object, example = json!({"ready": true})),
        (status = 400, description = "Starting or stopping.")))]
pub(super) fn server_ready() {}

/// Describes the server.
#[utoipa::path(get, path = "/v2", tag = "v2", operation_id = "v2ServerMetadata",
    responses((status = 200, description = "Name, version and extensions.", body = V2Server)))]
pub(super) fn server_metadata() {}

/// Describes a model.
#[utoipa::path(get, path = "/v2/models/{name}", tag = "v2", operation_id = "v2ModelMetadata",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "Inputs and outputs.", body = V2Model)))]
pub(super) fn model_metadata() {}

/// Tells whether a model answers.
#[utoipa::path(get, path = "/v2/models/{name}/ready", tag = "v2", operation_id = "v2ModelReady",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "The model answers.", body = Object, example = json!({"name": "resnet50", "ready": true})),
        (status = 400, description = "The model is not ready.")))]
pub(super) fn model_ready() {}

/// Runs a model on tensors.
#[utoipa::path(post, path = "/v2/models/{name}/infer", tag = "v2", operation_id = "v2ModelInfer",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("Inference-Header-Content-Length" = Option<u64>, Header, description = "Bytes of the JSON part, where binary tensors follow it."),
    ),
    request_body(content(
        (V2InferRequest = "application/json"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses((status = 200, description = "The outputs; where binary data was asked for, it follows the JSON part.",
        content((V2InferResponse = "application/json"), (Vec<u8> = "application/octet-stream")),
        headers(("X-Ortus-Cache" = String, description = "`hit` or `miss` where the model keeps answers.")))))]
pub(super) fn model_infer() {}

/// Gives a model's configuration.
#[utoipa::path(get, path = "/v2/models/{name}/config", tag = "v2", operation_id = "v2ModelConfig",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "Triton's ModelConfig.", body = Object)))]
pub(super) fn model_config() {}

/// Gives the counts of a model since the start.
#[utoipa::path(get, path = "/v2/models/{name}/stats", tag = "v2", operation_id = "v2ModelStats",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "One entry for each version.", body = V2Statistics)))]
pub(super) fn model_stats() {}

/// Gives the counts of all models since the start.
#[utoipa::path(get, path = "/v2/models/stats", tag = "v2", operation_id = "v2AllStats",
    responses((status = 200, description = "One entry for each version.", body = V2Statistics)))]
pub(super) fn all_stats() {}

/// Lists the models and their states.
#[utoipa::path(post, path = "/v2/repository/index", tag = "v2", operation_id = "v2RepositoryIndex",
    request_body = Option<V2IndexRequest>,
    responses((status = 200, description = "All models and their states.", body = Vec<V2IndexEntry>)))]
pub(super) fn repository_index() {}

/// Loads a model.
#[utoipa::path(post, path = "/v2/repository/models/{name}/load", tag = "v2", operation_id = "v2RepositoryLoad",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    request_body = Option<V2LoadRequest>,
    responses((status = 200, description = "Loaded.")))]
pub(super) fn repository_load() {}

/// Unloads a model.
#[utoipa::path(post, path = "/v2/repository/models/{name}/unload", tag = "v2", operation_id = "v2RepositoryUnload",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    request_body = Option<V2LoadRequest>,
    responses((status = 200, description = "Unloaded.")))]
pub(super) fn repository_unload() {}

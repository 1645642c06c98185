//! Which models there are, and their loading and unloading.

use crate::codec::json::{JsonLimits, parse_object};
use crate::engine::{
    self, Cleaned, LoadOverrides, LoadedModel, ModelState, ModelStatus, Objective, OptimizationLevel, RunMemory,
    StoredFile, Version,
};
use crate::http::error::ApiError;
use crate::http::extract::{ApiQuery, ModelPath, content_type};
use crate::http::v1::optimization::OptimizationInfo;
use crate::http::v1::stats::VersionQuery;
use crate::http::{HttpState, body};
use crate::hub::{Provenance, ProvenanceFile};
use crate::telemetry::{process, rfc3339_of};
use crate::tensor::{Dim, Spec};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use utoipa::ToSchema;

/// How long `?wait=false` waits all the same, so that a wrong name is still an error of this request.
const ERROR_WINDOW: Duration = Duration::from_millis(50);

/// All models. `object` and `data` are what clients of OpenAI's API read.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelList {
    models: Vec<ModelInfo>,
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<OpenAiModel>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OpenAiModel {
    #[schema(example = "resnet50")]
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// Unix seconds of the load; 0 where the model is not loaded.
    created: u64,
    #[schema(example = "ortus")]
    owned_by: &'static str,
}

/// One model of the store. What is known only of a loaded model is `null` until then.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelInfo {
    #[schema(example = "resnet50")]
    name: String,
    versions: Vec<VersionInfo>,
    /// The version that answers requests which name none.
    #[schema(example = "1")]
    default_version: Option<String>,
    /// The version that was chosen to serve, whatever the version policy says; `null` where none was.
    #[schema(example = json!(null))]
    chosen_version: Option<String>,
    state: StateName,
    /// Whether the default version answers requests.
    loaded: bool,
    /// The same, as KServe's clients ask for it.
    ready: bool,
    /// HuggingFace's name of the task; `raw` where the model takes tensors.
    #[schema(example = "image-classification")]
    task: Option<String>,
    #[schema(example = "cpu")]
    device: Option<String>,
    #[schema(example = "fp32")]
    precision: Option<String>,
    /// ONNX Runtime's execution providers, the preferred one first.
    #[schema(example = json!(["CPUExecutionProvider"]))]
    providers: Vec<String>,
    execution: Option<ExecutionInfo>,
    /// The settings in force, by section.
    #[schema(value_type = Option<Object>)]
    config: Option<Value>,
    /// The settings of `config`, as `section.key`, that are not the server's own, by what sets them: `model.toml`, `config.pbtxt`
    /// or the load call.
    #[schema(example = json!({"batch.max_batch_size": "model.toml"}))]
    config_set_by: BTreeMap<String, String>,
    batching: Option<Batching>,
    /// What instances, threads and batch size were chosen by; left out where that was not measured at load.
    #[serde(skip_serializing_if = "Option::is_none")]
    tuned: Option<Tuned>,
    optimization: Option<OptimizationInfo>,
    /// Why that was not measured, where the settings ask for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    tuning_skipped: Option<String>,
    metadata: ModelMetadata,
    memory_usage: MemoryUsage,
    total_parameters: Option<u64>,
    /// A graph for inference trains none: 0 once it is loaded.
    trainable_parameters: Option<u64>,
    source: ModelSource,
    /// Why the last load failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

/// What runs where.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ExecutionInfo {
    /// The providers that the settings ask for, the preferred one first.
    #[schema(example = json!(["CUDAExecutionProvider", "CPUExecutionProvider"]))]
    asked: Vec<String>,
    /// Those that the model has.
    #[schema(example = json!(["CPUExecutionProvider"]))]
    registered: Vec<String>,
    /// Nodes of the optimised graph by the provider that runs them; empty where ONNX Runtime does not tell.
    #[schema(example = json!({ "CPUExecutionProvider": 49 }))]
    nodes: BTreeMap<String, u64>,
    /// Those asked for that the model does not have.
    missing: Vec<MissingProvider>,
    /// Whether the model runs on something else than it was expected to; `/readyz` and `/healthz` name it then.
    is_fallback: bool,
    /// Most rows of a run, learnt from runs that the device had no memory for; `null` where all have fitted.
    #[schema(example = json!(null))]
    max_rows: Option<usize>,
    /// Whether the last run was made on the CPU, since the device had no memory for it or failed.
    on_reserve: bool,
    engine: EngineInfo,
}

/// What TensorRT compiles of the graph: it is built in the background while the other providers serve, and kept.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EngineInfo {
    /// `building`: the model serves without TensorRT meanwhile; `failed`: it goes on so; `none`: TensorRT is not asked for, does
    /// not work here, or runs none of the nodes.
    #[schema(example = "none", pattern = "^(none|building|ready|failed)$")]
    state: &'static str,
    /// When it came to that; of one that is ready, when it was built.
    #[schema(example = json!(null), format = DateTime)]
    since: Option<String>,
    /// How long the build has taken so far, or took.
    #[schema(example = json!(null))]
    seconds: Option<f64>,
    /// Why it failed, what it waits for, or why there is none.
    #[schema(example = json!(null))]
    reason: Option<String>,
}

impl From<engine::EngineStatus> for EngineInfo {
    fn from(status: engine::EngineStatus) -> EngineInfo {
        let engine::EngineStatus { state, since, seconds, reason } = status;
        EngineInfo { state: state.as_str(), since: since.map(rfc3339_of), seconds, reason }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MissingProvider {
    #[schema(example = "CUDAExecutionProvider")]
    provider: String,
    /// What is missing, and what to do.
    #[schema(example = "the NVIDIA driver is not installed: libcuda.so.1 was not found")]
    reason: String,
}

impl From<&LoadedModel> for ExecutionInfo {
    fn from(model: &LoadedModel) -> ExecutionInfo {
        let (execution, pressure) = (model.execution(), model.handle.pressure());
        let missing = |missing: &engine::MissingProvider| MissingProvider {
            provider: missing.provider.clone(),
            reason: missing.reason.clone(),
        };
        ExecutionInfo {
            asked: execution.asked.clone(),
            registered: execution.registered.clone(),
            nodes: execution.nodes.clone(),
            missing: execution.missing.iter().map(missing).collect(),
            is_fallback: execution.is_fallback,
            max_rows: pressure.and_then(|pressure| pressure.max_rows),
            on_reserve: pressure.is_some_and(|pressure| pressure.on_reserve),
            engine: model.engine.status().into(),
        }
    }
}

/// How requests share runs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Batching {
    /// `rows`: dimension 0 counts rows, and rows of several requests run together; `fixed`: the same, and each run has exactly
    /// as many rows as the graph takes; `alone`: each request is a run.
    #[schema(example = "rows")]
    joining: &'static str,
    /// What that was told from.
    #[schema(example = "two trial rows gave the same alone and together")]
    evidence: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VersionInfo {
    #[schema(example = "1")]
    version: String,
    state: StateName,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Where a model is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum StateName {
    Unloaded,
    /// Its name is taken and its files are on their way.
    Downloading,
    Loading,
    Ready,
    Unloading,
    Failed,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct ModelMetadata {
    /// `onnx` or `ort`.
    #[schema(example = "onnx")]
    model_type: Option<String>,
    /// Shape of the first input; -1 is any size.
    #[schema(example = json!([-1, 3, 224, 224]))]
    input_shape: Option<Vec<i64>>,
    /// Shape of the first output; -1 is any size.
    #[schema(example = json!([-1, 1000]))]
    output_shape: Option<Vec<i64>>,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    #[schema(example = 17)]
    opset: Option<i64>,
    producer: Option<String>,
    description: Option<String>,
    author: Option<String>,
    license: Option<String>,
    tags: Vec<String>,
    num_parameters: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TensorInfo {
    #[schema(example = "pixel_values")]
    name: String,
    /// The Open Inference Protocol's name of the element type, or the kind of a value that is no tensor.
    #[schema(example = "FP32")]
    dtype: String,
    /// -1 is any size; `null` where the graph declares no rank.
    #[schema(example = json!([-1, 3, 224, 224]))]
    shape: Option<Vec<i64>>,
    /// Whether a request may leave it out.
    optional: bool,
}

/// What was measured at load, and what was chosen.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Tuned {
    /// In the order in which it was measured.
    measurements: Vec<TunedMeasurement>,
    chosen: TunedMeasurement,
    objective: TuningObjective,
    /// `null` where the highest throughput was asked for, whatever the latency.
    #[schema(example = 50.0)]
    target_p99_ms: Option<f64>,
    /// `false`: nothing reached the target, and the candidate with the least latency was taken.
    target_reached: bool,
    /// Tokens of each row that was measured; `null` where rows are not padded to one length.
    #[schema(example = json!(null))]
    tokens_per_row: Option<usize>,
    /// The bound of a batch that follows; `null`: as it is set, or in tokens.
    #[schema(example = 4)]
    max_batch_size: Option<usize>,
    /// The same where rows are padded to one length.
    #[schema(example = json!(null))]
    max_batch_tokens: Option<usize>,
    /// How many times as good the choice is, by the objective, as the best batch of what serves without tuning, both as they
    /// were measured here.
    #[schema(example = 1.18)]
    times_as_good: Option<f64>,
    /// How long measuring and loading the candidates took.
    #[schema(example = 9.4)]
    seconds: f64,
}

/// What tuning is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum TuningObjective {
    /// The most rows a second.
    Throughput,
    /// The least time that a request takes at full load.
    Latency,
}

/// All instances running at once.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TunedMeasurement {
    #[schema(example = 2)]
    instances: usize,
    #[schema(example = 1)]
    intra_threads: usize,
    /// Rows of each run; `null` where rows of requests do not join.
    #[schema(example = 4)]
    batch_size: Option<usize>,
    /// `none`, `basic`, `balanced` or `aggressive`.
    #[schema(value_type = String, example = "aggressive")]
    optimization_level: OptimizationLevel,
    memory_arena: bool,
    memory_pattern: bool,
    /// Of all instances together; runs, where `batch_size` is `null`.
    #[schema(example = 43.9)]
    rows_per_second: f64,
    /// The median of a run.
    #[schema(example = 183.2)]
    run_ms: f64,
    /// What a request may take at full load: a run that it waits for, and one of the slowest as its own.
    #[schema(example = 374.0)]
    p99_ms: f64,
}

/// In MiB; `null` where it is not measured.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct MemoryUsage {
    gpu_allocated_mb: Option<f64>,
    /// By how much the process's memory on the GPU grew over the loads, as the driver counts it; the first one's has CUDA's own
    /// context too. `null` without a GPU, or where the driver does not tell.
    gpu_reserved_mb: Option<f64>,
    gpu_max_allocated_mb: Option<f64>,
    /// By how much the process grew over the load, and what working memory was taken or given back since.
    #[schema(example = 118.2)]
    cpu_memory_mb: Option<f64>,
    #[schema(example = 25557032)]
    total_params: Option<u64>,
    /// A graph for inference trains none: 0 once it is loaded.
    #[schema(example = 0)]
    trainable_params: Option<u64>,
    /// The graph's file and its external data.
    #[schema(example = 97.8)]
    model_size_mb: Option<f64>,
    /// What runs of the version that answers take; `null` where it is not loaded, rows do not join, or it was not measured.
    activation: Option<ActivationMemory>,
}

/// What working memory grows by with the rows of a run, as it was measured at load, and the batch that fits what is left.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ActivationMemory {
    /// What a run takes more for each row, inputs not counted.
    #[schema(example = 4194304)]
    bytes_per_row: u64,
    /// What a run takes whatever its rows.
    #[schema(example = 65536)]
    fixed_bytes: u64,
    #[schema(example = 602112)]
    input_bytes_per_row: u64,
    /// `arena`: by the highest mark of ONNX Runtime's arena; `process`: by the peak of the process, which other work is part of.
    #[schema(example = "arena")]
    measured_by: &'static str,
    /// Rows of the runs that it was measured by.
    #[schema(example = json!([1, 2, 4, 8]))]
    measured_rows: Vec<usize>,
    /// Tokens of each row, where rows are padded to one length; else `null`.
    #[schema(example = json!(null))]
    tokens_per_row: Option<usize>,
    /// What all instances together may take for their runs; `null` where no limit is known.
    #[schema(example = 6442450944u64)]
    budget_bytes: Option<u64>,
    /// Most rows of a run that fit it, arenas taken for twice of what is in use; `null` where no limit is known.
    #[schema(example = 512)]
    optimal_batch_size: Option<usize>,
    /// What `max_batch_size`, or `max_batch_tokens` where rows are padded, was before it was lowered to what fits; `null`
    /// where it was not.
    #[schema(example = json!(null))]
    lowered_from: Option<usize>,
}

impl From<&RunMemory> for ActivationMemory {
    fn from(runs: &RunMemory) -> ActivationMemory {
        let found = &runs.activation;
        ActivationMemory {
            bytes_per_row: found.bytes_per_row,
            fixed_bytes: found.fixed_bytes,
            input_bytes_per_row: found.input_bytes_per_row,
            measured_by: found.measured_by.as_str(),
            measured_rows: found.measured.iter().map(|(rows, _)| *rows).collect(),
            tokens_per_row: runs.row_tokens,
            budget_bytes: runs.budget_bytes,
            optimal_batch_size: runs.rows_max,
            lowered_from: runs.lowered_from,
        }
    }
}

/// Where the files of the default version came from; all but the type is `null` where they do not say so.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelSource {
    /// `local`, `huggingface`, `url`, `upload`, `torchvision` or `pytorch_hub`.
    #[serde(rename = "type")]
    #[schema(example = "huggingface")]
    kind: String,
    /// What it is called there.
    #[schema(example = "microsoft/resnet-50")]
    model_id: Option<String>,
    /// The commit that the files are of.
    #[schema(example = "34c2154c194f829b11125337b98c8f5f9965ff19")]
    revision: Option<String>,
    /// Of the graph's file.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: Option<String>,
    files: Vec<SourceFile>,
}

/// One file as it was installed; each load holds it to this.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SourceFile {
    #[schema(example = "model.onnx")]
    path: String,
    #[schema(example = 102580931)]
    bytes: u64,
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: String,
}

/// What lies in the store of a model or a version.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelFiles {
    /// Below the folder of the model, or of the version that was asked for; hidden folders are left out.
    files: Vec<StoredFileInfo>,
    #[schema(example = 102580931)]
    bytes_total: u64,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StoredFile)]
pub(in crate::http) struct StoredFileInfo {
    #[schema(example = "1/model.onnx")]
    path: String,
    #[schema(example = 102580931)]
    bytes: u64,
    /// As it was installed; `null` of what was put into the store by hand.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: Option<String>,
}

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DeletedModel {
    #[schema(example = "resnet50")]
    name: String,
    #[schema(example = json!(["1"]))]
    deleted_versions: Vec<String>,
    /// Whether the model went with them; its only version takes it along.
    model_deleted: bool,
}

/// Which version is to serve; without it, the highest below the one that answers now.
#[derive(ToSchema)]
#[expect(dead_code, reason = "described for the document; the body is read key by key")]
pub(in crate::http) struct RollbackBody {
    /// A version's number, or `latest`: as the version policy says.
    #[schema(example = "1")]
    version: Option<String>,
}

/// The answer to a load or unload that is not waited for.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Accepted {
    #[schema(example = "resnet50")]
    name: String,
    state: Option<StateName>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct WaitQuery {
    #[serde(default = "default_wait")]
    wait: bool,
}

fn default_wait() -> bool {
    true
}

/// What a cleanup gave back, in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CleanedUp {
    /// By how much the process shrank; requests that ran meanwhile may have taken some of it again.
    #[schema(example = 62914560)]
    bytes_freed: u64,
    /// What the models' caches held.
    #[schema(example = 12582912)]
    cache_bytes_freed: u64,
    /// Working memory of the models' sessions.
    #[schema(example = 50331648)]
    arena_bytes_freed: u64,
    /// What the process holds afterwards; `null` where the system does not tell.
    #[schema(example = 432537600)]
    resident_bytes: Option<u64>,
    /// The models that were unloaded for it; there only where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["resnet50"]))]
    unloaded: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct CleanupQuery {
    #[serde(default)]
    unload: bool,
}

/// Lists the models.
#[utoipa::path(get, path = "/v1/models", tag = "models", operation_id = "listModels",
    responses((status = 200, description = "All models of the store, by name.", body = ModelList)))]
pub(in crate::http) async fn list(State(state): State<HttpState>) -> Json<ModelList> {
    let statuses = state.engine.models();
    let data = statuses.iter().map(OpenAiModel::from).collect();
    Json(ModelList { models: statuses.iter().map(ModelInfo::from).collect(), object: "list", data })
}

/// Describes a model.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "models", operation_id = "getModel",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "The model.", body = ModelInfo)))]
pub(in crate::http) async fn show(
    State(state): State<HttpState>,
    path: ModelPath,
) -> Result<Json<ModelInfo>, ApiError> {
    Ok(Json(ModelInfo::from(&state.engine.status(&path.name)?)))
}

/// Lists the files of a model or of one of its versions.
#[utoipa::path(get, path = "/v1/models/{name}/files", tag = "models", operation_id = "listModelFiles",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = Option<String>, Query, description = "All versions and what they share where absent."),
    ),
    responses((status = 200, description = "What lies in the store.", body = ModelFiles)))]
pub(in crate::http) async fn files(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<VersionQuery>,
) -> Result<Json<ModelFiles>, ApiError> {
    let version = query.parse()?;
    let files = state.engine.files(&path.name, version).await?;
    let status = state.engine.status(&path.name)?;
    let files: Vec<StoredFileInfo> = files
        .into_iter()
        .map(|file| StoredFileInfo {
            sha256: installed_sha256(&status, version, &file),
            path: file.path,
            bytes: file.bytes,
        })
        .collect();
    Ok(Json(ModelFiles { bytes_total: files.iter().map(|file| file.bytes).sum(), files }))
}

/// What the file was as it was installed, where its version says so and it has that size still.
fn installed_sha256(status: &ModelStatus, version: Option<Version>, file: &StoredFile) -> Option<String> {
    let (number, path) = match version {
        Some(version) => (version, file.path.as_str()),
        None => {
            let (number, path) = file.path.split_once('/')?;
            (Version::parse(number)?, path)
        }
    };
    let of_version = status.versions.iter().find(|known| known.version == number)?;
    let installed = of_version.origin.as_ref()?.files.iter().find(|installed| installed.path == path)?;
    (installed.bytes == file.bytes).then(|| installed.sha256.clone())
}

/// Loads a model, or loads it again where its files have changed.
#[utoipa::path(post, path = "/v1/models/{name}/load", tag = "models", operation_id = "loadModel",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("wait" = Option<bool>, Query, description = "`false` answers at once; the model's state tells the outcome."),
    ),
    responses(
        (status = 200, description = "The versions that the model's policy asks for are ready.", body = ModelInfo),
        (status = 202, description = "Being loaded (`?wait=false`).", body = Accepted),
    ))]
pub(in crate::http) async fn load(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<WaitQuery>,
) -> Result<Response, ApiError> {
    let (engine, name) = (state.engine.clone(), path.name.clone());
    let work = async move { engine.load(&name, LoadOverrides::default()).await };
    carry_out(&state, path, query, work).await
}

/// Unloads a model.
#[utoipa::path(post, path = "/v1/models/{name}/unload", tag = "models", operation_id = "unloadModel",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("wait" = Option<bool>, Query, description = "`false` answers at once; the model's state tells the outcome."),
    ),
    responses(
        (status = 200, description = "All versions are unloaded and their memory is free.", body = ModelInfo),
        (status = 202, description = "Being unloaded (`?wait=false`).", body = Accepted),
    ))]
pub(in crate::http) async fn unload(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<WaitQuery>,
) -> Result<Response, ApiError> {
    let (engine, name) = (state.engine.clone(), path.name.clone());
    let work = async move { engine.unload(&name).await };
    carry_out(&state, path, query, work).await
}

/// Deletes a model with all its versions.
#[utoipa::path(delete, path = "/v1/models/{name}", tag = "models", operation_id = "deleteModel",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("wait" = Option<bool>, Query, description = "`false` answers at once; the model is gone when its state is 404."),
    ),
    responses(
        (status = 200, description = "Its files are gone; requests that it had taken were answered.", body = DeletedModel),
        (status = 202, description = "Being deleted (`?wait=false`).", body = Accepted),
    ))]
pub(in crate::http) async fn delete(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<WaitQuery>,
) -> Result<Response, ApiError> {
    let (engine, name, version) = (state.engine.clone(), path.name.clone(), path.version);
    if version.is_none() && is_on_its_way(&state, &name).await? {
        let deleted = DeletedModel { name: name.to_string(), deleted_versions: Vec::new(), model_deleted: true };
        return Ok(Json(deleted).into_response());
    }
    let work = async move { engine.delete(&name, version).await };
    let Some(deleted) = wait_for(&state, query, work).await? else { return Ok(accepted(&state, &path)) };
    let deleted = DeletedModel {
        name: path.name.to_string(),
        deleted_versions: deleted.versions.iter().map(ToString::to_string).collect(),
        model_deleted: deleted.model,
    };
    Ok(Json(deleted).into_response())
}

/// Cancels the download of a model that is not there yet; whether there was one.
async fn is_on_its_way(state: &HttpState, name: &engine::ModelName) -> Result<bool, ApiError> {
    if state.engine.status(name).is_ok_and(|status| status.state != ModelState::Downloading) {
        return Ok(false);
    }
    let Some(id) = state.downloads.active_of(name) else { return Ok(false) };
    let ended = state.downloads.cancel(id).await?;
    // It may have come in that very moment, and is deleted then.
    Ok(ended.is_none_or(|download| download.version.is_none()))
}

/// Deletes one version of a model.
///
/// Where it serves, the version that follows is ready before it goes.
#[utoipa::path(delete, path = "/v1/models/{name}/versions/{version}", tag = "models", operation_id = "deleteModelVersion",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("version" = String, Path, description = "The version's number.", example = "1"),
        ("wait" = Option<bool>, Query, description = "`false` answers at once; the model's versions tell the outcome."),
    ),
    responses(
        (status = 200, description = "Its files are gone; the only version takes its model along.", body = DeletedModel),
        (status = 202, description = "Being deleted (`?wait=false`).", body = Accepted),
    ))]
pub(in crate::http) async fn delete_version(
    state: State<HttpState>,
    path: ModelPath,
    query: ApiQuery<WaitQuery>,
) -> Result<Response, ApiError> {
    delete(state, path, query).await
}

/// Goes back to an earlier version, or chooses one.
///
/// The chosen version serves alone, whatever the version policy says and across restarts, until another is chosen or a new
/// one is installed. What served before serves until it is ready.
#[utoipa::path(post, path = "/v1/models/{name}/rollback", tag = "models", operation_id = "rollBackModel",
    params(
        ("name" = String, Path, description = "The model's name.", example = "resnet50"),
        ("wait" = Option<bool>, Query, description = "`false` answers at once; the model's `chosen_version` tells the outcome."),
    ),
    request_body(content = Option<RollbackBody>, description = "Left out: the highest version below the one that answers now."),
    responses(
        (status = 200, description = "The version serves.", body = ModelInfo),
        (status = 202, description = "Being loaded (`?wait=false`).", body = Accepted),
    ))]
pub(in crate::http) async fn roll_back(
    State(state): State<HttpState>,
    path: ModelPath,
    ApiQuery(query): ApiQuery<WaitQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let bytes = body::read(body, &state.settings, 0).await?;
    let version = if bytes.is_empty() {
        None
    } else if content_type(&head.headers).as_deref() == Some("application/json") {
        wanted_version(&parse_object(&bytes, "the body", &JsonLimits::from(&state.settings.limits))?)?
    } else {
        return Err(ApiError::unsupported_media("a rollback takes application/json, or no body"));
    };
    let (engine, name) = (state.engine.clone(), path.name.clone());
    let work = async move {
        match version {
            None => engine.roll_back(&name).await,
            Some(version) => engine.choose(&name, version).await,
        }
    };
    carry_out(&state, path, query, work).await
}

/// The version of a rollback's body; `None` in place of one is what the policy says.
fn wanted_version(object: &Map<String, Value>) -> Result<Option<Option<Version>>, ApiError> {
    if let Some(other) = object.keys().find(|key| *key != "version") {
        let shown: String = other.chars().take(64).collect();
        let detail = format!("unknown key {shown:?}; a body has the key version");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "malformed_body", detail));
    }
    match object.get("version") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text == "latest" => Ok(Some(None)),
        Some(Value::String(text)) if Version::parse(text).is_some() => Ok(Some(Version::parse(text))),
        Some(_) => {
            Err(ApiError::field("version", "must be a version's number in a string, such as \"1\", or \"latest\""))
        }
    }
}

/// Says what memory a model takes.
#[utoipa::path(get, path = "/v1/models/{name}/memory", tag = "models", operation_id = "getModelMemory",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "Measured; `null` where it cannot be, or the model is not loaded.", body = MemoryUsage)))]
pub(in crate::http) async fn memory(
    State(state): State<HttpState>,
    path: ModelPath,
) -> Result<Json<MemoryUsage>, ApiError> {
    Ok(Json(memory_of(&state.engine.status(&path.name)?)))
}

/// Gives back what a model keeps only to be quick.
#[utoipa::path(post, path = "/v1/models/{name}/cleanup", tag = "models", operation_id = "cleanUpModel",
    params(("name" = String, Path, description = "The model's name.", example = "resnet50")),
    responses((status = 200, description = "Given back; the model serves on.", body = CleanedUp)))]
pub(in crate::http) async fn cleanup(
    State(state): State<HttpState>,
    path: ModelPath,
) -> Result<Json<CleanedUp>, ApiError> {
    Ok(Json(state.engine.cleanup(Some(&path.name)).await?.into()))
}

/// Gives back what all models keep only to be quick, or all that they hold.
#[utoipa::path(post, path = "/v1/cleanup", tag = "system", operation_id = "cleanUp",
    params(("unload" = Option<bool>, Query, description = "`true` unloads all models first; they stay so until they are \
        loaded by hand or the server starts again.")),
    responses((status = 200, description = "Given back; all models serve on where they were not unloaded.", body = CleanedUp)))]
pub(in crate::http) async fn cleanup_all(
    State(state): State<HttpState>,
    ApiQuery(query): ApiQuery<CleanupQuery>,
) -> Result<Json<CleanedUp>, ApiError> {
    let before = process::resident_bytes();
    let unloaded = if query.unload { Some(state.engine.unload_all().await) } else { None };
    let mut cleaned = CleanedUp::from(state.engine.cleanup(None).await?);
    if let Some(names) = unloaded {
        cleaned.bytes_freed =
            before.zip(cleaned.resident_bytes).map_or(0, |(before, after)| before.saturating_sub(after));
        cleaned.unloaded = Some(names.iter().map(ToString::to_string).collect());
    }
    Ok(Json(cleaned))
}

/// Runs `work` to its end whether or not the client waits for it: half a load would help nobody.
async fn carry_out(
    state: &HttpState,
    path: ModelPath,
    query: WaitQuery,
    work: impl Future<Output = Result<ModelStatus, crate::engine::EngineError>> + Send + 'static,
) -> Result<Response, ApiError> {
    match wait_for(state, query, work).await? {
        Some(status) => Ok(Json(ModelInfo::from(&status)).into_response()),
        None => Ok(accepted(state, &path)),
    }
}

/// What came of `work`; `None` where it was not to be waited for, and did not fail at once.
async fn wait_for<T: Send + 'static>(
    state: &HttpState,
    query: WaitQuery,
    work: impl Future<Output = Result<T, crate::engine::EngineError>> + Send + 'static,
) -> Result<Option<T>, ApiError> {
    let mut task = state.tasks.spawn("model lifecycle", work);
    let outcome =
        if query.wait { Some((&mut task).await) } else { tokio::time::timeout(ERROR_WINDOW, &mut task).await.ok() };
    match outcome {
        Some(Ok(result)) => Ok(Some(result?).filter(|_| query.wait)),
        Some(Err(error)) => Err(ApiError::internal(error.to_string())),
        None => Ok(None),
    }
}

fn accepted(state: &HttpState, path: &ModelPath) -> Response {
    let now = state.engine.status(&path.name).ok().map(|status| StateName::from(status.state));
    (StatusCode::ACCEPTED, Json(Accepted { name: path.name.to_string(), state: now })).into_response()
}

/// Of all loaded versions together; size and parameters are those of the version that answers.
fn memory_of(status: &ModelStatus) -> MemoryUsage {
    let Some(default) = default_of(status) else { return MemoryUsage::default() };
    let loaded = status.versions.iter().filter_map(|version| version.loaded.as_deref());
    let on_gpu: Vec<u64> = loaded.clone().filter_map(|model| model.gpu_bytes).collect();
    MemoryUsage {
        gpu_reserved_mb: (!on_gpu.is_empty()).then(|| mebibytes(on_gpu.into_iter().fold(0, u64::saturating_add))),
        cpu_memory_mb: Some(mebibytes(loaded.map(|model| model.memory.total_bytes()).fold(0, u64::saturating_add))),
        total_params: default.facts.num_parameters,
        trainable_params: Some(0),
        model_size_mb: Some(mebibytes(default.facts.size_bytes)),
        activation: default.memory.runs.as_ref().map(ActivationMemory::from),
        ..MemoryUsage::default()
    }
}

impl From<Cleaned> for CleanedUp {
    fn from(cleaned: Cleaned) -> CleanedUp {
        CleanedUp {
            bytes_freed: cleaned.bytes_freed,
            cache_bytes_freed: cleaned.cache_bytes_freed,
            arena_bytes_freed: cleaned.arena_bytes_freed,
            resident_bytes: cleaned.resident_bytes,
            unloaded: None,
        }
    }
}

impl From<ModelState> for StateName {
    fn from(state: ModelState) -> StateName {
        match state {
            ModelState::Unloaded => StateName::Unloaded,
            ModelState::Downloading => StateName::Downloading,
            ModelState::Loading => StateName::Loading,
            ModelState::Ready => StateName::Ready,
            ModelState::Unloading => StateName::Unloading,
            ModelState::Failed => StateName::Failed,
        }
    }
}

impl From<&ModelStatus> for OpenAiModel {
    fn from(status: &ModelStatus) -> OpenAiModel {
        let created = default_of(status)
            .and_then(|model| model.loaded_at.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs());
        OpenAiModel { id: status.name.to_string(), object: "model", created, owned_by: "ortus" }
    }
}

/// The loaded default version, or else the highest loaded one.
pub(in crate::http) fn default_of(status: &ModelStatus) -> Option<&LoadedModel> {
    let of_default = status.versions.iter().find(|version| Some(version.version) == status.default_version);
    of_default
        .and_then(|version| version.loaded.as_deref())
        .or_else(|| status.versions.iter().rev().find_map(|version| version.loaded.as_deref()))
}

impl From<&ModelStatus> for ModelInfo {
    fn from(status: &ModelStatus) -> ModelInfo {
        let versions = status
            .versions
            .iter()
            .map(|version| VersionInfo {
                version: version.version.to_string(),
                state: version.state.into(),
                reason: version.reason.clone(),
            })
            .collect();
        let loaded = default_of(status);
        let parameters = loaded.and_then(|model| model.facts.num_parameters);
        let manifest = &status.manifest;
        let mut metadata = loaded.map_or_else(ModelMetadata::default, metadata_of);
        let default = status.versions.iter().find(|version| Some(version.version) == status.default_version);
        let origin = default.and_then(|version| version.origin.as_deref());
        let told = |tell: fn(&Provenance) -> &Option<String>| origin.and_then(|origin| tell(origin).clone());
        let description = manifest.description.clone().or_else(|| told(|origin| &origin.description));
        metadata.description = description.or(metadata.description);
        metadata.author = manifest.author.clone().or_else(|| told(|origin| &origin.author));
        metadata.license = manifest.license.clone().or_else(|| told(|origin| &origin.license));
        metadata.tags = manifest.tags.clone();
        if let Some(origin) = origin.filter(|_| metadata.tags.is_empty()) {
            metadata.tags = origin.tags.clone();
        }
        ModelInfo {
            name: status.name.to_string(),
            versions,
            default_version: status.default_version.map(|version| version.to_string()),
            chosen_version: status.chosen_version.map(|version| version.to_string()),
            state: status.state.into(),
            loaded: loaded.is_some(),
            ready: loaded.is_some(),
            task: loaded.map(|model| task_of(model).to_owned()),
            device: loaded.map(|model| model.facts.device.clone()),
            precision: loaded.and_then(|model| model.facts.precision.clone()),
            providers: loaded.map_or_else(Vec::new, |model| model.facts.execution.registered.clone()),
            execution: loaded.map(ExecutionInfo::from),
            config: loaded.map(config_of),
            config_set_by: status.set_by.iter().map(|(key, by)| ((*key).to_owned(), (*by).to_owned())).collect(),
            batching: loaded.map(batching_of),
            tuned: loaded.and_then(|model| model.tuned.as_ref()).map(Tuned::from),
            optimization: loaded.map(|model| OptimizationInfo::from(&model.optimization)),
            tuning_skipped: loaded.and_then(|model| model.untuned.clone()),
            metadata,
            memory_usage: memory_of(status),
            total_parameters: parameters,
            trainable_parameters: loaded.map(|_| 0),
            source: source_of(origin, loaded),
            last_error: status.last_error.clone(),
        }
    }
}

fn source_of(origin: Option<&Provenance>, loaded: Option<&LoadedModel>) -> ModelSource {
    let Some(origin) = origin else {
        return ModelSource {
            kind: "local".to_owned(),
            model_id: None,
            revision: None,
            sha256: None,
            files: Vec::new(),
        };
    };
    let graph = loaded.and_then(|model| model.source.file.strip_prefix(&model.source.folder).ok()?.to_str());
    let named = graph.and_then(|graph| origin.files.iter().find(|file| file.path == graph));
    ModelSource {
        kind: origin.source.clone(),
        model_id: Some(origin.model_id.clone()),
        revision: origin.revision.clone(),
        sha256: named.or_else(|| origin.graph()).map(|file| file.sha256.clone()),
        files: origin.files.iter().map(SourceFile::from).collect(),
    }
}

impl From<&ProvenanceFile> for SourceFile {
    fn from(file: &ProvenanceFile) -> SourceFile {
        SourceFile { path: file.path.clone(), bytes: file.bytes, sha256: file.sha256.clone() }
    }
}

fn batching_of(model: &LoadedModel) -> Batching {
    let (joining, evidence) = model.handle.joining();
    Batching { joining: joining.name(), evidence: evidence.to_owned() }
}

impl From<&engine::Tuned> for Tuned {
    fn from(tuned: &engine::Tuned) -> Tuned {
        Tuned {
            measurements: tuned.measured.iter().map(TunedMeasurement::from).collect(),
            chosen: (&tuned.chosen).into(),
            objective: tuned.objective.into(),
            target_p99_ms: tuned.target_p99.map(milliseconds),
            target_reached: tuned.target_reached,
            tokens_per_row: tuned.row_tokens,
            max_batch_size: tuned.max_batch_size,
            max_batch_tokens: tuned.max_batch_tokens,
            times_as_good: tuned.gain().map(|gain| gain.times_as_good),
            seconds: tuned.took.as_secs_f64(),
        }
    }
}

impl From<Objective> for TuningObjective {
    fn from(objective: Objective) -> TuningObjective {
        match objective {
            Objective::Throughput => TuningObjective::Throughput,
            Objective::Latency => TuningObjective::Latency,
        }
    }
}

impl From<&engine::Measured> for TunedMeasurement {
    fn from(measured: &engine::Measured) -> TunedMeasurement {
        TunedMeasurement {
            instances: measured.setup.layout.instances,
            intra_threads: measured.setup.layout.intra_threads,
            batch_size: measured.batch_size,
            optimization_level: measured.setup.optimization_level,
            memory_arena: measured.setup.memory.arena,
            memory_pattern: measured.setup.memory.pattern,
            rows_per_second: measured.rows_per_second,
            run_ms: milliseconds(measured.run),
            p99_ms: milliseconds(measured.p99),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// HuggingFace's name of the model's task; `raw` where it takes tensors.
pub(in crate::http) fn task_of(model: &LoadedModel) -> &'static str {
    model.pipeline.as_ref().map_or("raw", |pipeline| pipeline.task())
}

/// To two decimals.
pub(super) fn mebibytes(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 100.0).round() / 100.0
}

fn metadata_of(model: &LoadedModel) -> ModelMetadata {
    let first_shape = |specs: &[Spec]| specs.first().and_then(|spec| spec.ty.shape()).map(wire_shape);
    ModelMetadata {
        model_type: Some(model.facts.format.to_owned()),
        input_shape: first_shape(&model.inputs),
        output_shape: first_shape(&model.outputs),
        inputs: model.inputs.iter().map(TensorInfo::from).collect(),
        outputs: model.outputs.iter().map(TensorInfo::from).collect(),
        opset: model.facts.opset,
        producer: model.facts.producer.clone(),
        description: model.facts.description.clone(),
        num_parameters: model.facts.num_parameters,
        ..ModelMetadata::default()
    }
}

/// In the sections of the configuration file.
fn config_of(model: &LoadedModel) -> Value {
    let settings = &model.settings;
    json!({
        "device": {
            "device_type": settings.device.device_type,
            "device_index": settings.device.device_index,
            "allow_fallback": settings.device.allow_fallback,
            "use_fp16": settings.device.use_fp16,
            "compile_mode": settings.device.compile_mode,
            "memory_fraction": settings.device.memory_fraction,
        },
        "optimization": {
            "optimization_level": settings.optimization_level,
            "enable_tensorrt": settings.device.enable_tensorrt,
            "enable_quantization": settings.enable_quantization,
            "memory_arena": settings.memory().arena,
            "memory_pattern": settings.memory().pattern,
        },
        "batch": {
            "instances": model.instances,
            "intra_threads": model.intra_threads,
            "dynamic_batching": settings.batch.dynamic_batching,
            "batch_size": settings.batch.batch_size,
            "max_batch_size": settings.batch.max_batch_size,
            "timeout_ms": setting_ms(settings.batch.timeout),
            "max_batch_tokens": settings.batch.max_batch_tokens,
            "max_queue": settings.batch.max_queue,
        },
        "performance": {
            "warmup_iterations": settings.warmup_iterations,
            "enable_profiling": settings.enable_profiling,
            "log_memory_usage": settings.log_memory_usage,
            "run_memory_mb": settings.run_memory.map(|bytes| bytes >> 20),
            "tune": settings.tuning.tune,
            "objective": settings.tuning.objective,
            "target_p99_ms": settings.tuning.target_p99.map_or(0, |target| target.as_millis()),
        },
        "cache": {
            "preprocess_mb": settings.cache.preprocess_bytes >> 20,
            "response_mb": settings.cache.response_bytes >> 20,
            "response_ttl_ms": settings.cache.response_ttl.map_or(0, |ttl| ttl.as_millis()),
        },
    })
}

/// A whole number, as settings are written, where it is one: a Triton configuration waits by the microsecond.
fn setting_ms(time: Duration) -> Value {
    match time.subsec_micros() % 1000 {
        0 => u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into(),
        _ => (time.as_secs_f64() * 1e3).into(),
    }
}

fn wire_shape(dims: &[Dim]) -> Vec<i64> {
    dims.iter().map(Dim::to_wire).collect()
}

impl From<&Spec> for TensorInfo {
    fn from(spec: &Spec) -> TensorInfo {
        TensorInfo {
            name: spec.name.clone(),
            dtype: spec.ty.dtype().map_or_else(|| spec.ty.to_string(), |dtype| dtype.name().to_owned()),
            shape: spec.ty.shape().map(wire_shape),
            optional: spec.optional,
        }
    }
}

//! What the server is and runs on.

use super::models::mebibytes;
use crate::engine::{InferenceEngine, ProviderStatus};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::telemetry::{gpu, process};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// What the server is and runs on.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct System {
    #[schema(example = "ortus")]
    name: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// The library that runs the graphs.
    #[schema(example = "onnxruntime 1.32.0")]
    runtime: String,
    #[schema(example = "linux")]
    os: &'static str,
    #[schema(example = "x86_64")]
    arch: &'static str,
    /// Cores that this process may use; limits of its container are respected.
    #[schema(example = 8)]
    cores: usize,
    memory: SystemMemory,
    /// The file system of the model store; `null` where it does not tell.
    disk: Option<Disk>,
    /// ONNX Runtime's execution providers that this server can use, the fastest first.
    execution_providers: Vec<ExecutionProvider>,
    /// The GPUs of this machine; empty where there is none, or no driver.
    devices: Vec<Device>,
    /// Of the GPUs; `null` where there is none.
    #[schema(example = "580.65.06")]
    driver: Option<String>,
    /// The bounds that fill up, beside what is used of them.
    limits: Vec<Limit>,
}

/// A bound and what is used of it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Limit {
    /// Its setting.
    #[schema(example = "limits.max_jobs")]
    key: &'static str,
    #[schema(example = 3)]
    used: u64,
    #[schema(example = 1000)]
    limit: u64,
}

/// In MiB.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SystemMemory {
    /// What this process holds (RSS); `null` where the system does not tell.
    #[schema(example = 412.5)]
    resident_mb: Option<f64>,
    /// What the loaded models hold of it.
    #[schema(example = 350.1)]
    models_mb: f64,
    /// `max_loaded_memory_mb`; `null` where there is no limit.
    #[schema(example = 2048.0)]
    budget_mb: Option<f64>,
    /// What this process may still take from the machine or its container.
    #[schema(example = 8123.4)]
    available_mb: Option<f64>,
}

/// In MiB.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Disk {
    #[schema(example = 51200.0)]
    total_mb: f64,
    /// What downloads, uploads and jobs may still take.
    #[schema(example = 20480.0)]
    free_mb: f64,
}

/// Whether models can run by this provider here.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ExecutionProvider {
    #[schema(example = "CUDAExecutionProvider")]
    name: &'static str,
    available: bool,
    /// Why it is not, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "the NVIDIA driver is not installed: libcuda.so.1 was not found")]
    reason: Option<String>,
}

/// A GPU, as its driver tells.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Device {
    /// As models name it.
    #[schema(example = "cuda:0")]
    device: String,
    #[schema(example = "NVIDIA H100 80GB HBM3")]
    name: String,
    #[schema(example = 81559.0)]
    memory_total_mb: f64,
    /// Of all processes.
    #[schema(example = 2110.5)]
    memory_used_mb: f64,
    /// Share of time in which it computes, 0 to 1; `null` where it does not tell.
    #[schema(example = 0.42)]
    utilization: Option<f64>,
    #[schema(example = 41)]
    temperature_celsius: Option<u32>,
    #[schema(example = 118.4)]
    power_watts: Option<f64>,
}

/// Describes the server.
///
/// The first call tries what each execution provider needs, and may take seconds where a GPU's libraries are loaded for it.
#[utoipa::path(get, path = "/v1/system", tag = "system", operation_id = "getSystem",
    responses((status = 200, description = "What the server is and runs on.", body = System)))]
pub(in crate::http) async fn system(State(state): State<HttpState>) -> Result<Json<System>, ApiError> {
    let (engine, limits) = (state.engine.clone(), limits(&state));
    let work = state.tasks.spawn_blocking(move || system_of(&engine, limits));
    let system = work.await.map_err(|error| ApiError::internal(format!("describing the system: {error}")))?;
    Ok(Json(system))
}

fn limits(state: &HttpState) -> Vec<Limit> {
    let (jobs, bounds) = (state.jobs.usage(), state.jobs.settings());
    let coming = state.downloads.list().iter().filter(|download| !download.state.is_final()).count();
    let limit = |key, used: usize, limit: usize| Limit { key, used: used as u64, limit: limit as u64 };
    vec![
        limit("limits.max_jobs", jobs.kept, bounds.max_jobs),
        limit("limits.jobs_at_once", jobs.running, bounds.jobs_at_once),
        Limit { key: "limits.max_job_bytes", used: jobs.bytes, limit: bounds.max_bytes },
        limit("limits.max_inflight_bytes", state.bodies.held(), state.bodies.limit()),
        limit("hub.downloads_at_once", coming, state.downloads.hub().settings().downloads_at_once),
    ]
}

fn system_of(engine: &InferenceEngine, limits: Vec<Limit>) -> System {
    let totals = engine.memory_totals();
    System {
        name: "ortus",
        version: env!("CARGO_PKG_VERSION"),
        runtime: engine.runtime_version(),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        cores: crate::tasks::cores(),
        memory: SystemMemory {
            resident_mb: process::resident_bytes().map(mebibytes),
            models_mb: mebibytes(totals.models_bytes),
            budget_mb: totals.budget_bytes.map(mebibytes),
            available_mb: process::available_bytes().map(mebibytes),
        },
        disk: engine
            .disk_space()
            .map(|disk| Disk { total_mb: mebibytes(disk.total_bytes), free_mb: mebibytes(disk.free_bytes) }),
        execution_providers: engine.providers().into_iter().map(ExecutionProvider::from).collect(),
        devices: gpu::gpus().into_iter().map(Device::from).collect(),
        driver: gpu::driver_version(),
        limits,
    }
}

impl From<ProviderStatus> for ExecutionProvider {
    fn from(status: ProviderStatus) -> ExecutionProvider {
        ExecutionProvider { name: status.name, available: status.reason.is_none(), reason: status.reason }
    }
}

impl From<gpu::Gpu> for Device {
    fn from(gpu: gpu::Gpu) -> Device {
        Device {
            device: format!("cuda:{}", gpu.index),
            name: gpu.name,
            memory_total_mb: mebibytes(gpu.memory_total_bytes),
            memory_used_mb: mebibytes(gpu.memory_used_bytes),
            utilization: gpu.utilization,
            temperature_celsius: gpu.temperature_celsius,
            power_watts: gpu.power_watts,
        }
    }
}

//! What to load, how, and what is known of it afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a graph is. External data may be read only from `folder` and below.
#[derive(Debug, Clone)]
pub struct GraphSource {
    /// The `.onnx` or `.ort` file.
    pub file: PathBuf,
    /// Where `file` takes pictures and the texts beside them have a graph of their own: that.
    pub text_tower: Option<PathBuf>,
    /// The model version's folder; contains the files.
    pub folder: PathBuf,
    /// Largest graph file accepted, each by itself and external data not counted, in bytes.
    pub max_file_bytes: u64,
}

/// How to build a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSettings {
    pub device: DeviceSettings,
    pub optimization_level: OptimizationLevel,
    /// Threads of one run, at least 1.
    pub intra_threads: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSettings {
    pub device_type: DeviceType,
    /// Which GPU, from 0.
    pub device_index: u32,
    /// Whether a device named by the user may be replaced by the CPU where it does not work.
    pub allow_fallback: bool,
    pub tensorrt: TensorrtSettings,
}

/// How TensorRT builds its engines, where it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorrtSettings {
    /// A narrower float type than the graph's, where that is quicker; `None` keeps the graph's.
    pub precision: Option<TensorrtPrecision>,
    /// GPU memory for one run's intermediate results, in bytes; `None` leaves the choice to ONNX Runtime.
    pub max_workspace_bytes: Option<usize>,
}

/// The float types that TensorRT may compute in instead of the graph's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorrtPrecision {
    Fp16,
    Bf16,
}

/// `Auto` takes the best that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceType {
    Auto,
    Cpu,
    Cuda,
    Tensorrt,
}

/// ONNX Runtime's graph optimisation levels: off, basic, extended, all (with layout changes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizationLevel {
    None,
    Basic,
    Balanced,
    Aggressive,
}

/// What the graph file and the session say of themselves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GraphFacts {
    /// `onnx` or `ort`.
    pub format: &'static str,
    /// Opset of the default domain; `None` for `.ort` files, which do not keep it readable.
    pub opset: Option<i64>,
    pub ir_version: Option<i64>,
    pub producer: Option<String>,
    pub graph_name: Option<String>,
    pub description: Option<String>,
    /// The graph's own metadata entries.
    pub custom: BTreeMap<String, String>,
    /// Elements of all floating-point and integer initialisers; `None` where they cannot be counted (`.ort`).
    pub num_parameters: Option<u64>,
    /// Whether an operator is known that uses its weights many times for one row: a convolution, a recurrence or a loop.
    pub repeats_weights: bool,
    /// Bytes of the graph's files and their external data.
    pub size_bytes: u64,
    /// Execution providers registered for the session, the preferred one first.
    pub providers: Vec<String>,
    /// `cpu` or `cuda:0`: where the session runs.
    pub device: String,
    /// Whether the time of a run follows from the shapes of its inputs alone: no loop, and no size that is computed.
    pub bounded: bool,
    /// The narrowest float type of the weights, such as `fp32`; `None` where there are none.
    pub precision: Option<String>,
}

impl Default for DeviceSettings {
    fn default() -> DeviceSettings {
        DeviceSettings {
            device_type: DeviceType::Auto,
            device_index: 0,
            allow_fallback: false,
            tensorrt: TensorrtSettings::default(),
        }
    }
}

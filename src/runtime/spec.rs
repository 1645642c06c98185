//! What to load, how, and what is known of it afterwards.

use super::Execution;
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
    pub memory: MemorySettings,
    /// Bytes that the session's runs on the CPU may take together; `None` = as many as the system gives. The arena is bounded, in
    /// which weights may lie as well, so twice the bytes of the graph's files are allowed beside it. Without an arena nothing is.
    pub run_memory: Option<u64>,
}

impl Default for SessionSettings {
    fn default() -> SessionSettings {
        SessionSettings {
            device: DeviceSettings::default(),
            optimization_level: OptimizationLevel::Aggressive,
            intra_threads: 1,
            memory: MemorySettings::default(),
            run_memory: None,
        }
    }
}

/// How a session's runs on the CPU get their working memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
pub struct MemorySettings {
    /// Keep what a run took for the next one, instead of asking libc each time. Without it nothing is known of the memory.
    pub arena: bool,
    /// Take the memory of a run in one block, laid out as the first run of the same shapes needed it.
    pub pattern: bool,
}

impl Default for MemorySettings {
    fn default() -> MemorySettings {
        MemorySettings { arena: true, pattern: true }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSettings {
    pub device_type: DeviceType,
    /// Which GPU, from 0.
    pub device_index: u32,
    /// Whether a device named by the user may be replaced by the CPU where it does not work.
    pub allow_fallback: bool,
    /// Whether a GPU may compute in half precision: TensorRT chooses it itself, for CUDA the loader tries a graph of 16 bits. The CPU
    /// always computes in the graph's own.
    pub use_fp16: bool,
    pub compile_mode: CompileMode,
    /// Share of the GPU's memory that one session may take; `None` = what there is.
    pub memory_fraction: Option<Fraction>,
    /// Whether TensorRT is tried before CUDA where it is not named.
    pub enable_tensorrt: bool,
    pub tensorrt: TensorrtSettings,
}

impl DeviceSettings {
    /// Whether TensorRT is the first that these settings try.
    pub fn wants_tensorrt(&self) -> bool {
        match self.device_type {
            DeviceType::Cpu => false,
            DeviceType::Tensorrt => true,
            DeviceType::Auto | DeviceType::Cuda => self.enable_tensorrt,
        }
    }

    /// The same without TensorRT: what they try after it.
    pub fn without_tensorrt(&self) -> DeviceSettings {
        let device_type = match self.device_type {
            DeviceType::Tensorrt => DeviceType::Cuda,
            other => other,
        };
        DeviceSettings { device_type, enable_tensorrt: false, ..self.clone() }
    }
}

/// What is spent before the first request so that those after it are quicker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompileMode {
    #[default]
    Default,
    /// Runs of graphs whose shapes are all fixed are recorded as a CUDA graph and played again.
    ReduceOverhead,
    /// Every algorithm is tried: cuDNN's and TensorRT's on a GPU, layouts of instances and threads on the CPU.
    MaxAutotune,
}

/// A share: above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Fraction(f64);

impl Fraction {
    /// `None` where the number is no share.
    pub fn new(value: f64) -> Option<Fraction> {
        (value > 0.0 && value <= 1.0).then_some(Fraction(value))
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> serde::Deserialize<'de> for Fraction {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Fraction, D::Error> {
        let value = f64::deserialize(deserializer)?;
        Fraction::new(value)
            .ok_or_else(|| serde::de::Error::custom(format!("expected a number above 0 and at most 1, got {value}")))
    }
}

/// How TensorRT builds its engines, where it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorrtSettings {
    /// A narrower float type than the graph's, where that is quicker; `None` keeps the graph's.
    pub precision: Option<TensorrtPrecision>,
    /// GPU memory for one run's intermediate results, in bytes; `None` leaves the choice to ONNX Runtime.
    pub max_workspace_bytes: Option<usize>,
    /// Rows that runs have mostly and at most; engines are built for 1 to the most. `None` = learned from the runs.
    pub rows: Option<(usize, usize)>,
    /// Folder in which engines of this graph are kept; `None` = none are.
    pub engines: Option<PathBuf>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizationLevel {
    None,
    Basic,
    Balanced,
    Aggressive,
}

/// What the graph file and the session say of themselves. What only the session says is not serialised.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GraphFacts {
    /// `onnx` or `ort`.
    #[serde(skip)]
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
    /// What runs where.
    #[serde(skip)]
    pub execution: Execution,
    /// The files of its external data, relative to the folder of the graph's file.
    pub external_files: Vec<String>,
    /// Its nodes by their operator, those of sub-graphs not counted; empty for `.ort` files.
    pub operators: BTreeMap<String, u64>,
    /// Inputs and outputs that declare no shape at all.
    pub unshaped: Vec<String>,
    /// `cpu` or `cuda:0`: where the session runs.
    #[serde(skip)]
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
            use_fp16: false,
            compile_mode: CompileMode::Default,
            memory_fraction: None,
            enable_tensorrt: false,
            tensorrt: TensorrtSettings::default(),
        }
    }
}

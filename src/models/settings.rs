//! Settings of the store and of one model: the server's sections, and what a model's own `model.toml` overrides.

use super::TrialLoad;
use crate::batching::{BatchSettings, WaitingSettings};
use crate::cache::CacheSettings;
use crate::runtime::{
    CompileMode, DeviceSettings, DeviceType, Fraction, MemorySettings, OptimizationLevel, TensorrtSettings,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `[store]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreSettings {
    pub models_dir: PathBuf,
    /// Whether models are loaded when the server starts and on their first request.
    pub autoload: bool,
    /// How often the folder is read again; `None` = only when asked.
    pub poll_interval: Option<Duration>,
    /// Largest graph file, external data not counted, in bytes.
    pub max_model_bytes: u64,
    /// Memory of all loaded models together, in bytes; `None` = what the machine has.
    pub max_loaded_memory: Option<u64>,
    /// Where optimised graphs and measurements are kept for the next start; `None` = `.ortus/optimized` in the store.
    pub optimized_dir: Option<PathBuf>,
    /// Bytes that are left free on its disk.
    pub reserve_bytes: u64,
    /// Whether a process of its own loads files before this one does.
    pub trial_load: TrialLoad,
    /// The most that such a process may take.
    pub trial_load_timeout: Duration,
}

/// `[device] [optimization] [batch] [performance] [cache]` in force for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    pub device: DeviceSettings,
    pub optimization_level: OptimizationLevel,
    /// Whether a graph with products of eight bits is tried at load, and served where it is better. On the CPU alone.
    pub enable_quantization: bool,
    /// Whether `optimization_level` is somebody's wish, which no measurement changes.
    pub optimization_level_is_set: bool,
    /// See [`MemorySettings::arena`]; `None` = on, or what tuning finds.
    pub memory_arena: Option<bool>,
    /// See [`MemorySettings::pattern`]; `None` = on, or what tuning finds.
    pub memory_pattern: Option<bool>,
    /// Bytes that the runs of a session on the CPU may take, 0 = as many as the system gives; `None` = what the machine
    /// leaves at load.
    pub run_memory: Option<u64>,
    /// Loaded copies; `None` = chosen for the machine.
    pub instances: Option<usize>,
    /// Threads of one run; `None` = chosen for the machine.
    pub intra_threads: Option<usize>,
    pub batch: BatchSettings,
    /// Whether `batch.max_batch_size` is somebody's wish, which no measurement changes.
    pub max_batch_size_is_set: bool,
    /// The same of `batch.max_batch_tokens`.
    pub max_batch_tokens_is_set: bool,
    /// Runs with made-up input before a version is ready.
    pub warmup_iterations: usize,
    /// Whether the operators are timed at load.
    pub enable_profiling: bool,
    /// Whether the log says what memory each load, unload and warm-up took.
    pub log_memory_usage: bool,
    pub tuning: TuningSettings,
    /// What is kept of the model's work.
    pub cache: CacheSettings,
}

/// What is best.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The most rows a second.
    #[default]
    Throughput,
    /// The least time that a request takes at full load.
    Latency,
}

/// Whether what the settings leave open is chosen by measuring at load: instances, threads, batch size, graph level, memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TuningSettings {
    pub tune: bool,
    pub objective: Objective,
    /// What a request may take at full load in all but one of a hundred cases; asks for measuring by itself.
    pub target_p99: Option<Duration>,
    /// These stand whatever the model's own file says of them: for whoever measures.
    pub insists: bool,
    /// Also while the model has traffic.
    pub is_forced: bool,
}

impl TuningSettings {
    pub fn is_asked(&self) -> bool {
        self.tune || self.target_p99.is_some()
    }

    /// The same where the mode of the device asks for every means.
    fn with_mode(self, mode: CompileMode) -> TuningSettings {
        TuningSettings { tune: self.tune || (mode == CompileMode::MaxAutotune && !self.insists), ..self }
    }
}

impl ModelSettings {
    /// How sessions get their working memory where nothing was measured.
    pub fn memory(&self) -> MemorySettings {
        let default = MemorySettings::default();
        MemorySettings {
            arena: self.memory_arena.unwrap_or(default.arena),
            pattern: self.memory_pattern.unwrap_or(default.pattern),
        }
    }
}

impl Default for ModelSettings {
    fn default() -> ModelSettings {
        ModelSettings {
            device: DeviceSettings::default(),
            optimization_level: OptimizationLevel::Aggressive,
            enable_quantization: false,
            optimization_level_is_set: false,
            memory_arena: None,
            memory_pattern: None,
            run_memory: None,
            instances: None,
            intra_threads: None,
            batch: BatchSettings::default(),
            max_batch_size_is_set: false,
            max_batch_tokens_is_set: false,
            warmup_iterations: 1,
            enable_profiling: false,
            log_memory_usage: false,
            tuning: TuningSettings::default(),
            cache: CacheSettings::default(),
        }
    }
}

/// The sections that `ortus.toml` and `model.toml` share, as written: every key optional, unknown keys refused.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOverrides {
    pub device: DeviceOverrides,
    pub optimization: OptimizationOverrides,
    pub batch: BatchOverrides,
    pub performance: PerformanceOverrides,
    pub cache: CacheOverrides,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceOverrides {
    pub device_type: Option<DeviceType>,
    pub device_index: Option<u32>,
    pub allow_fallback: Option<bool>,
    pub use_fp16: Option<bool>,
    pub compile_mode: Option<CompileMode>,
    pub memory_fraction: Option<Fraction>,
    /// From a model configuration alone.
    #[serde(skip)]
    pub tensorrt: Option<TensorrtSettings>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizationOverrides {
    /// `false` is the same as the level `none`.
    pub enable_optimization: Option<bool>,
    pub optimization_level: Option<OptimizationLevel>,
    pub enable_quantization: Option<bool>,
    pub enable_tensorrt: Option<bool>,
    pub memory_arena: Option<bool>,
    pub memory_pattern: Option<bool>,
    /// 0 = none.
    pub record_requests: Option<usize>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchOverrides {
    pub dynamic_batching: Option<bool>,
    pub batch_size: Option<usize>,
    pub max_batch_size: Option<usize>,
    pub timeout_ms: Option<u64>,
    pub max_batch_tokens: Option<usize>,
    pub max_queue: Option<usize>,
    pub instances: Option<usize>,
    pub intra_threads: Option<usize>,
    /// `timeout_ms` to the microsecond, from a model configuration alone.
    #[serde(skip)]
    pub timeout: Option<Duration>,
    /// From a model configuration alone.
    #[serde(skip)]
    pub waiting: Option<WaitingSettings>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerformanceOverrides {
    pub warmup_iterations: Option<usize>,
    pub enable_profiling: Option<bool>,
    pub log_memory_usage: Option<bool>,
    /// MiB; 0 = as much as the system gives.
    pub run_memory_mb: Option<u64>,
    pub tune: Option<bool>,
    pub objective: Option<Objective>,
    /// 0 = none.
    pub target_p99_ms: Option<u64>,
}

impl PerformanceOverrides {
    fn tuning(&self, base: &TuningSettings) -> TuningSettings {
        if base.insists {
            return base.clone();
        }
        let target = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        TuningSettings {
            tune: self.tune.unwrap_or(base.tune),
            objective: self.objective.unwrap_or(base.objective),
            target_p99: self.target_p99_ms.map_or(base.target_p99, target),
            insists: false,
            is_forced: base.is_forced,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheOverrides {
    /// MiB; 0 = off.
    pub preprocess_mb: Option<u64>,
    /// MiB; 0 = off.
    pub response_mb: Option<u64>,
    /// 0 = answers do not expire.
    pub response_ttl_ms: Option<u64>,
    /// Whether answers are kept at all, from a model configuration alone, which names no size.
    #[serde(skip)]
    pub keeps_answers: Option<bool>,
}

/// What a model keeps that shall keep answers, where no size is set.
const ANSWERS_BYTES: u64 = 64 << 20;

impl CacheOverrides {
    fn apply(&self, base: &CacheSettings) -> CacheSettings {
        let bytes = |mebibytes: u64| mebibytes.saturating_mul(1 << 20);
        let lifetime = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        CacheSettings {
            preprocess_bytes: self.preprocess_mb.map_or(base.preprocess_bytes, bytes),
            response_bytes: match (self.response_mb, self.keeps_answers) {
                (Some(mebibytes), _) => bytes(mebibytes),
                (None, Some(false)) => 0,
                (None, Some(true)) if base.response_bytes == 0 => ANSWERS_BYTES,
                (None, _) => base.response_bytes,
            },
            response_ttl: self.response_ttl_ms.map_or(base.response_ttl, lifetime),
            record_requests: base.record_requests,
        }
    }
}

/// By which file of a model, or which call, each setting `section.key` was set that is not the server's own.
pub type SetBy = BTreeMap<&'static str, &'static str>;

impl ModelOverrides {
    /// The settings that are set here, as `section.key`.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> + use<> {
        let ModelOverrides { device, optimization, batch, performance, cache } = self;
        let level = optimization.optimization_level.is_some() || optimization.enable_optimization.is_some();
        let timeout = batch.timeout_ms.is_some() || batch.timeout.is_some();
        let answers = cache.response_mb.is_some() || cache.keeps_answers.is_some();
        let all = [
            ("device.device_type", device.device_type.is_some()),
            ("device.device_index", device.device_index.is_some()),
            ("device.allow_fallback", device.allow_fallback.is_some()),
            ("device.use_fp16", device.use_fp16.is_some()),
            ("device.compile_mode", device.compile_mode.is_some()),
            ("device.memory_fraction", device.memory_fraction.is_some()),
            ("optimization.optimization_level", level),
            ("optimization.enable_quantization", optimization.enable_quantization.is_some()),
            ("optimization.enable_tensorrt", optimization.enable_tensorrt.is_some()),
            ("optimization.memory_arena", optimization.memory_arena.is_some()),
            ("optimization.memory_pattern", optimization.memory_pattern.is_some()),
            ("optimization.record_requests", optimization.record_requests.is_some()),
            ("batch.dynamic_batching", batch.dynamic_batching.is_some()),
            ("batch.batch_size", batch.batch_size.is_some()),
            ("batch.max_batch_size", batch.max_batch_size.is_some()),
            ("batch.timeout_ms", timeout),
            ("batch.max_batch_tokens", batch.max_batch_tokens.is_some()),
            ("batch.max_queue", batch.max_queue.is_some()),
            ("batch.instances", batch.instances.is_some()),
            ("batch.intra_threads", batch.intra_threads.is_some()),
            ("performance.warmup_iterations", performance.warmup_iterations.is_some()),
            ("performance.enable_profiling", performance.enable_profiling.is_some()),
            ("performance.log_memory_usage", performance.log_memory_usage.is_some()),
            ("performance.run_memory_mb", performance.run_memory_mb.is_some()),
            ("performance.tune", performance.tune.is_some()),
            ("performance.objective", performance.objective.is_some()),
            ("performance.target_p99_ms", performance.target_p99_ms.is_some()),
            ("cache.preprocess_mb", cache.preprocess_mb.is_some()),
            ("cache.response_mb", answers),
            ("cache.response_ttl_ms", cache.response_ttl_ms.is_some()),
        ];
        all.into_iter().filter_map(|(key, is_set)| is_set.then_some(key))
    }

    /// `base` with every key that is set here in its place.
    pub fn apply(&self, base: &ModelSettings) -> ModelSettings {
        let level = self.optimization.optimization_level.unwrap_or(base.optimization_level);
        ModelSettings {
            device: DeviceSettings {
                device_type: self.device.device_type.unwrap_or(base.device.device_type),
                device_index: self.device.device_index.unwrap_or(base.device.device_index),
                allow_fallback: self.device.allow_fallback.unwrap_or(base.device.allow_fallback),
                use_fp16: self.device.use_fp16.unwrap_or(base.device.use_fp16),
                compile_mode: self.device.compile_mode.unwrap_or(base.device.compile_mode),
                memory_fraction: self.device.memory_fraction.or(base.device.memory_fraction),
                enable_tensorrt: self.optimization.enable_tensorrt.unwrap_or(base.device.enable_tensorrt),
                tensorrt: self.device.tensorrt.clone().unwrap_or_else(|| base.device.tensorrt.clone()),
            },
            optimization_level: if self.optimization.enable_optimization == Some(false) {
                OptimizationLevel::None
            } else {
                level
            },
            enable_quantization: self.optimization.enable_quantization.unwrap_or(base.enable_quantization),
            optimization_level_is_set: self.optimization.optimization_level.is_some()
                || self.optimization.enable_optimization == Some(false)
                || base.optimization_level_is_set,
            memory_arena: self.optimization.memory_arena.or(base.memory_arena),
            memory_pattern: self.optimization.memory_pattern.or(base.memory_pattern),
            run_memory: self
                .performance
                .run_memory_mb
                .map(|mebibytes| mebibytes.saturating_mul(1 << 20))
                .or(base.run_memory),
            instances: self.batch.instances.or(base.instances),
            intra_threads: self.batch.intra_threads.or(base.intra_threads),
            batch: BatchSettings {
                dynamic_batching: self.batch.dynamic_batching.unwrap_or(base.batch.dynamic_batching),
                batch_size: self.batch.batch_size.or(base.batch.batch_size),
                max_batch_size: self.batch.max_batch_size.unwrap_or(base.batch.max_batch_size),
                timeout: self
                    .batch
                    .timeout_ms
                    .map(Duration::from_millis)
                    .or(self.batch.timeout)
                    .unwrap_or(base.batch.timeout),
                max_batch_tokens: self.batch.max_batch_tokens.unwrap_or(base.batch.max_batch_tokens),
                max_queue: self.batch.max_queue.unwrap_or(base.batch.max_queue),
                waiting: self.batch.waiting.clone().unwrap_or_else(|| base.batch.waiting.clone()),
            },
            max_batch_size_is_set: self.batch.max_batch_size.is_some() || base.max_batch_size_is_set,
            max_batch_tokens_is_set: self.batch.max_batch_tokens.is_some() || base.max_batch_tokens_is_set,
            warmup_iterations: self.performance.warmup_iterations.unwrap_or(base.warmup_iterations),
            enable_profiling: self.performance.enable_profiling.unwrap_or(base.enable_profiling),
            log_memory_usage: self.performance.log_memory_usage.unwrap_or(base.log_memory_usage),
            tuning: self
                .performance
                .tuning(&base.tuning)
                .with_mode(self.device.compile_mode.unwrap_or(base.device.compile_mode)),
            cache: CacheSettings {
                record_requests: self.optimization.record_requests.unwrap_or(base.cache.record_requests),
                ..self.cache.apply(&base.cache)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunes(toml: &str, base: &TuningSettings) -> bool {
        let overrides: ModelOverrides = toml::from_str(toml).unwrap();
        overrides.apply(&ModelSettings { tuning: base.clone(), ..ModelSettings::default() }).tuning.is_asked()
    }

    #[test]
    fn what_is_set_is_told_by_its_key() {
        let keys = |toml: &str| toml::from_str::<ModelOverrides>(toml).unwrap().keys().collect::<Vec<_>>();
        assert!(keys("").is_empty());
        let set = keys(
            "[optimization]\nenable_optimization = false\n[batch]\ntimeout_ms = 3\nmax_queue = 5\n[cache]\nresponse_mb = 1",
        );
        assert_eq!(
            set,
            ["optimization.optimization_level", "batch.timeout_ms", "batch.max_queue", "cache.response_mb"]
        );
    }

    #[test]
    fn the_mode_that_tries_everything_tunes_at_load() {
        let base = TuningSettings::default();
        assert!(tunes("[device]\ncompile_mode = \"max-autotune\"", &base));
        for other in ["", "[device]\ncompile_mode = \"default\"", "[device]\ncompile_mode = \"reduce-overhead\""] {
            assert!(!tunes(other, &base), "{other}");
        }
        // Who measures without it, does.
        let insists = TuningSettings { insists: true, ..TuningSettings::default() };
        assert!(!tunes("[device]\ncompile_mode = \"max-autotune\"", &insists));
    }

    #[test]
    fn what_a_model_says_of_its_device_comes_before_what_all_say() {
        let read = |toml: &str| toml::from_str::<ModelOverrides>(toml);
        let overrides =
            read("[device]\nmemory_fraction = 0.5\nuse_fp16 = true\n[optimization]\nenable_tensorrt = true").unwrap();
        let device = overrides.apply(&ModelSettings::default()).device;
        assert_eq!(device.memory_fraction.map(Fraction::get), Some(0.5));
        assert!(device.use_fp16 && device.enable_tensorrt && device.compile_mode == CompileMode::Default);
        for wrong in ["0.0", "1.5", "-0.5", "nan"] {
            let error = read(&format!("[device]\nmemory_fraction = {wrong}")).unwrap_err().to_string();
            assert!(error.contains("above 0 and at most 1"), "{error}");
        }
        assert!(read("[device]\ncompile_mode = \"fast\"").unwrap_err().to_string().contains("max-autotune"));
    }
}

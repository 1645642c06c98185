//! What the settings of a device become for each execution provider: one pure table.
//!
//! `docs/devices.md` shows it to users. Keys are ONNX Runtime's own; what is left out keeps ONNX Runtime's default. Some things
//! that other servers set are not here: every session on a GPU has a CUDA stream of its own by ONNX Runtime's default, and
//! `do_copy_in_default_stream` is no longer read by it.

use super::provider::Provider;
use crate::runtime::{CompileMode, DeviceSettings, OptimizationLevel, TensorrtPrecision};
use std::path::PathBuf;

/// Keys and values, as ONNX Runtime takes them.
pub(super) type Options = Vec<(&'static str, String)>;

/// What the options need to know besides the settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Machine {
    /// Memory of the GPU, in bytes; `None` where it is not known.
    pub(super) gpu_bytes: Option<u64>,
    pub(super) level: Option<OptimizationLevel>,
    /// Whether every input has the one shape that it will ever have, so that a run can be recorded and played again.
    pub(super) is_fixed: bool,
    /// Whether the graph has convolutions.
    pub(super) convolves: bool,
    /// Shapes of the inputs from fewest to most rows, where all but the rows are known.
    pub(super) profile: Option<Profile>,
    /// Where engines are kept for this graph, TensorRT and GPU.
    pub(super) engines: Option<PathBuf>,
    /// Where the times of all nodes are written, where they are taken.
    pub(super) trace: Option<PathBuf>,
    /// Bytes of the graph's files.
    pub(super) size_bytes: u64,
}

/// Shapes that an engine is built for, as TensorRT's options have them: `x:1x3x224x224,y:1x8`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) min: String,
    pub(super) opt: String,
    pub(super) max: String,
}

/// Names and sizes of inputs, as a graph declares them; `None` where one is free, or all are.
type Shapes = [(String, Option<Vec<Option<u64>>>)];

/// Whether every input has one shape alone.
pub(super) fn is_fixed(shapes: &Shapes) -> bool {
    shapes.iter().all(|(_, sizes)| sizes.as_ref().is_some_and(|sizes| sizes.iter().all(Option::is_some)))
}

impl Profile {
    /// For runs of 1, `usual` and `most` rows; `None` where no size is free, or another than the first.
    pub(super) fn of(shapes: &Shapes, usual: usize, most: usize) -> Option<Profile> {
        if is_fixed(shapes) {
            return None;
        }
        let all = |rows: usize| -> Option<String> {
            let one = |(name, sizes): &(String, Option<Vec<Option<u64>>>)| -> Option<String> {
                let (first, rest) = sizes.as_ref()?.split_first()?;
                let rest = rest.iter().copied().collect::<Option<Vec<u64>>>()?;
                let sizes: Vec<String> =
                    std::iter::once(first.unwrap_or(rows as u64)).chain(rest).map(|size| size.to_string()).collect();
                // These two part the list that TensorRT reads.
                (!name.contains([':', ','])).then(|| format!("{name}:{}", sizes.join("x")))
            };
            Some(shapes.iter().map(one).collect::<Option<Vec<String>>>()?.join(","))
        };
        let most = most.max(1);
        Some(Profile { min: all(1)?, opt: all(usual.clamp(1, most))?, max: all(most)? })
    }
}

/// The options of a provider.
pub(super) fn of(provider: Provider, settings: &DeviceSettings, machine: &Machine) -> Options {
    match provider {
        Provider::Cuda => cuda(settings, machine),
        Provider::Tensorrt => tensorrt(settings, machine),
    }
}

fn cuda(settings: &DeviceSettings, machine: &Machine) -> Options {
    let tunes = settings.compile_mode == CompileMode::MaxAutotune;
    let mut options: Options = vec![
        ("device_id", settings.device_index.to_string()),
        // Products and convolutions of fp32 by tensor cores: ten bits of each factor's fraction.
        ("use_tf32", flag(machine.level.is_none_or(|level| level == OptimizationLevel::Aggressive))),
        // Trying all algorithms takes seconds for each new shape.
        ("cudnn_conv_algo_search", if tunes { "EXHAUSTIVE" } else { "HEURISTIC" }.to_owned()),
        ("prefer_nhwc", flag(tunes && machine.convolves)),
        ("enable_cuda_graph", flag(records(settings, machine))),
    ];
    if let Some(bytes) = memory_limit(settings, machine) {
        options.push(("gpu_mem_limit", bytes.to_string()));
        // Doubling steps would meet the limit with half of it unused.
        options.push(("arena_extend_strategy", "kSameAsRequested".to_owned()));
    }
    options
}

fn tensorrt(settings: &DeviceSettings, machine: &Machine) -> Options {
    let own = &settings.tensorrt;
    let fp16 = own.precision == Some(TensorrtPrecision::Fp16) || (own.precision.is_none() && settings.use_fp16);
    let mut options: Options = vec![
        ("device_id", settings.device_index.to_string()),
        ("trt_fp16_enable", flag(fp16)),
        ("trt_bf16_enable", flag(own.precision == Some(TensorrtPrecision::Bf16))),
        ("trt_cuda_graph_enable", flag(records(settings, machine))),
    ];
    if settings.compile_mode == CompileMode::MaxAutotune {
        // TensorRT's highest; its default is 3.
        options.push(("trt_builder_optimization_level", "5".to_owned()));
    }
    let workspace = own.max_workspace_bytes.map(|bytes| bytes as u64).or_else(|| memory_limit(settings, machine));
    if let Some(bytes) = workspace {
        options.push(("trt_max_workspace_size", bytes.to_string()));
    }
    if let Some(Profile { min, opt, max }) = &machine.profile {
        options.push(("trt_profile_min_shapes", min.clone()));
        options.push(("trt_profile_opt_shapes", opt.clone()));
        options.push(("trt_profile_max_shapes", max.clone()));
    }
    if let Some(folder) = machine.engines.as_ref().and_then(|folder| folder.to_str()) {
        options.push(("trt_engine_cache_enable", flag(true)));
        options.push(("trt_engine_cache_path", folder.to_owned()));
        options.push(("trt_timing_cache_enable", flag(true)));
        options.push(("trt_timing_cache_path", folder.to_owned()));
    }
    options
}

fn flag(on: bool) -> String {
    u8::from(on).to_string()
}

/// Whether runs are recorded as a CUDA graph and played again.
pub(super) fn records(settings: &DeviceSettings, machine: &Machine) -> bool {
    settings.compile_mode == CompileMode::ReduceOverhead && machine.is_fixed
}

/// Bytes of the GPU that the fraction allows.
fn memory_limit(settings: &DeviceSettings, machine: &Machine) -> Option<u64> {
    let (fraction, total) = (settings.memory_fraction?, machine.gpu_bytes?);
    Some((total as f64 * fraction.get()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Fraction, TensorrtSettings};

    #[track_caller]
    fn check(provider: Provider, settings: &DeviceSettings, machine: &Machine, expected: &[(&str, &str)]) {
        let options = of(provider, settings, machine);
        for (key, value) in expected {
            let found = options.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
            assert_eq!(found.unwrap_or("unset"), *value, "{key} in {options:?}");
        }
        let mut keys: Vec<_> = options.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), options.len(), "{options:?}");
    }

    fn settings(compile_mode: CompileMode) -> DeviceSettings {
        DeviceSettings { compile_mode, ..DeviceSettings::default() }
    }

    fn machine() -> Machine {
        let profile = Profile { min: "x:1x3".into(), opt: "x:8x3".into(), max: "x:32x3".into() };
        Machine {
            gpu_bytes: Some(80_000_000_000),
            level: Some(OptimizationLevel::Aggressive),
            is_fixed: true,
            convolves: true,
            profile: Some(profile),
            engines: Some("/store/engines".into()),
            trace: None,
            size_bytes: 0,
        }
    }

    #[test]
    fn cuda_is_set_up_by_level_mode_and_fraction() {
        let plain = settings(CompileMode::Default);
        check(
            Provider::Cuda,
            &plain,
            &machine(),
            &[
                ("device_id", "0"),
                ("use_tf32", "1"),
                ("cudnn_conv_algo_search", "HEURISTIC"),
                ("prefer_nhwc", "0"),
                ("enable_cuda_graph", "0"),
                ("gpu_mem_limit", "unset"),
                ("arena_extend_strategy", "unset"),
            ],
        );
        for level in [OptimizationLevel::None, OptimizationLevel::Basic, OptimizationLevel::Balanced] {
            check(Provider::Cuda, &plain, &Machine { level: Some(level), ..machine() }, &[("use_tf32", "0")]);
        }
        let tunes = settings(CompileMode::MaxAutotune);
        check(Provider::Cuda, &tunes, &machine(), &[("cudnn_conv_algo_search", "EXHAUSTIVE"), ("prefer_nhwc", "1")]);
        check(Provider::Cuda, &tunes, &Machine { convolves: false, ..machine() }, &[("prefer_nhwc", "0")]);
        let limited = DeviceSettings { memory_fraction: Fraction::new(0.25), device_index: 3, ..plain };
        let expected =
            [("gpu_mem_limit", "20000000000"), ("arena_extend_strategy", "kSameAsRequested"), ("device_id", "3")];
        check(Provider::Cuda, &limited, &machine(), &expected);
        check(Provider::Cuda, &limited, &Machine { gpu_bytes: None, ..machine() }, &[("gpu_mem_limit", "unset")]);
    }

    #[test]
    fn runs_are_recorded_for_fixed_shapes_alone() {
        let recording = settings(CompileMode::ReduceOverhead);
        let free = Machine { is_fixed: false, ..machine() };
        for (provider, key) in [(Provider::Cuda, "enable_cuda_graph"), (Provider::Tensorrt, "trt_cuda_graph_enable")] {
            check(provider, &recording, &machine(), &[(key, "1")]);
            check(provider, &recording, &free, &[(key, "0")]);
            check(provider, &settings(CompileMode::MaxAutotune), &machine(), &[(key, "0")]);
        }
    }

    #[test]
    fn tensorrt_is_set_up_by_precision_rows_and_caches() {
        let plain = settings(CompileMode::Default);
        check(
            Provider::Tensorrt,
            &plain,
            &machine(),
            &[
                ("trt_fp16_enable", "0"),
                ("trt_bf16_enable", "0"),
                ("trt_profile_min_shapes", "x:1x3"),
                ("trt_profile_opt_shapes", "x:8x3"),
                ("trt_profile_max_shapes", "x:32x3"),
                ("trt_engine_cache_enable", "1"),
                ("trt_engine_cache_path", "/store/engines"),
                ("trt_timing_cache_enable", "1"),
                ("trt_timing_cache_path", "/store/engines"),
                ("trt_max_workspace_size", "unset"),
                ("trt_builder_optimization_level", "unset"),
            ],
        );
        let bare = Machine { profile: None, engines: None, ..machine() };
        check(
            Provider::Tensorrt,
            &plain,
            &bare,
            &[("trt_profile_min_shapes", "unset"), ("trt_engine_cache_enable", "unset")],
        );
        let half = DeviceSettings { use_fp16: true, memory_fraction: Fraction::new(0.5), ..plain.clone() };
        check(Provider::Tensorrt, &half, &bare, &[("trt_fp16_enable", "1"), ("trt_max_workspace_size", "40000000000")]);
        // What a model's own configuration says of TensorRT comes before the general switch.
        let own = TensorrtSettings {
            precision: Some(TensorrtPrecision::Bf16),
            max_workspace_bytes: Some(1 << 30),
            ..TensorrtSettings::default()
        };
        let own = DeviceSettings { tensorrt: own, ..half };
        let expected = [("trt_fp16_enable", "0"), ("trt_bf16_enable", "1"), ("trt_max_workspace_size", "1073741824")];
        check(Provider::Tensorrt, &own, &bare, &expected);
        check(
            Provider::Tensorrt,
            &settings(CompileMode::MaxAutotune),
            &bare,
            &[("trt_builder_optimization_level", "5")],
        );
    }

    #[test]
    fn an_engine_is_built_for_the_rows_that_the_batches_have() {
        let input = |name: &str, sizes: &[i64]| {
            (name.to_owned(), Some(sizes.iter().map(|&size| u64::try_from(size).ok()).collect::<Vec<_>>()))
        };
        let two = [input("x", &[-1, 3, 8]), input("mask", &[-1, 8])];
        let profile = Profile::of(&two, 8, 32).unwrap();
        assert_eq!(profile.min, "x:1x3x8,mask:1x8");
        assert_eq!(profile.opt, "x:8x3x8,mask:8x8");
        assert_eq!(profile.max, "x:32x3x8,mask:32x8");
        assert_eq!(Profile::of(&two, 100, 32).unwrap().opt, "x:32x3x8,mask:32x8");
        // Nothing is free; something else than the rows is; a name that TensorRT would read as something else.
        assert_eq!(Profile::of(&[input("x", &[1, 3])], 8, 32), None);
        assert_eq!(Profile::of(&[input("x", &[-1, -1])], 8, 32), None);
        assert_eq!(Profile::of(&[("x".to_owned(), None)], 8, 32), None);
        assert_eq!(Profile::of(&[input("a:b", &[-1, 3])], 8, 32), None);
        assert!(is_fixed(&[input("x", &[1, 3]), input("y", &[])]) && !is_fixed(&two));
    }
}

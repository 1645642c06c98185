//! What engines depend on that TensorRT builds here: its version, the GPU, and the options that change an engine.

use super::provider::{self, Provider};
use super::{graph, options, session};
use crate::runtime::{EngineKey, GraphSource, SessionSettings, TENSORRT};
use crate::telemetry::gpu;
use ort::environment::Environment;
use std::ffi::{CStr, CString, c_int};

/// Options that say where and how runs are made, and not what is built.
const OF_RUNS: [&str; 2] = ["device_id", "trt_cuda_graph_enable"];

const UNKNOWN: &str = "unknown";

/// See [`crate::runtime::Runtime::engine_key`].
pub(super) fn engine_key(
    environment: &Environment,
    version: &str,
    source: &GraphSource,
    settings: &SessionSettings,
) -> Option<EngineKey> {
    if !settings.device.wants_tensorrt() || !Provider::Tensorrt.is_in_build() {
        return None;
    }
    let works = |found: &crate::runtime::ProviderStatus| found.name == TENSORRT && found.reason.is_none();
    if !provider::statuses(environment).iter().any(works) {
        return None;
    }
    let sources = std::iter::once(&source.file).chain(&source.text_tower);
    let graphs =
        sources.map(|file| graph::read(&GraphSource { file: file.clone(), text_tower: None, ..source.clone() }));
    let (options, learns_shapes) = told(&graphs.collect::<Result<Vec<_>, _>>().ok()?, settings);
    Some(EngineKey {
        tensorrt: loaded_version().unwrap_or_else(|| UNKNOWN.to_owned()),
        runtime: version.to_owned(),
        gpu: gpu::identity(settings.device.device_index).unwrap_or_else(|| UNKNOWN.to_owned()),
        options,
        learns_shapes,
    })
}

/// What changes the engines of these graphs, and whether their shapes are learned from the runs.
fn told(graphs: &[graph::Graph], settings: &SessionSettings) -> (String, bool) {
    let (mut words, mut learns) = (vec![format!("level={:?}", settings.optimization_level)], false);
    for graph in graphs {
        let machine = options::Machine { engines: None, ..session::machine(graph, settings) };
        learns |= machine.profile.is_none() && !options::is_fixed(&graph.shapes);
        let options = options::of(Provider::Tensorrt, &settings.device, &machine);
        words.extend(
            options.into_iter().filter(|(key, _)| !OF_RUNS.contains(key)).map(|(key, value)| format!("{key}={value}")),
        );
    }
    (words.join(" "), learns)
}

/// The version of the TensorRT that this process has loaded: by its own word, else by its file's name.
fn loaded_version() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = library_in(&maps)?;
    let stated = CString::new(path).ok().and_then(|path| stated_version(&path)).map(version_of_number);
    stated.or_else(|| version_of_name(path))
}

/// The file of `libnvinfer` among a process's mappings; its plug-ins and builders have other names.
fn library_in(maps: &str) -> Option<&str> {
    let paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    let name = |path: &&str| path.rsplit('/').next().is_some_and(|name| name.starts_with("libnvinfer.so"));
    paths.map(str::trim_end).find(name)
}

/// `libnvinfer.so.10.13.3` says 10.13.3.
fn version_of_name(path: &str) -> Option<String> {
    let (_, version) = path.rsplit_once(".so.")?;
    let is_version =
        version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(|c| c.is_ascii_digit() || c == '.');
    is_version.then(|| version.to_owned())
}

/// 101303 is 10.13.3; before 10 the thousands were the first part: 8601 is 8.6.1.
fn version_of_number(number: c_int) -> String {
    let first = if number >= 10_000 { 10_000 } else { 1000 };
    format!("{}.{}.{}", number / first, number % first / 100, number % 100)
}

/// What a loaded TensorRT says of itself.
#[expect(unsafe_code, reason = "the function is TensorRT's, which no crate here knows")]
fn stated_version(path: &CStr) -> Option<c_int> {
    // SAFETY: `path` ends with NUL. The library is loaded already, and with `RTLD_NOLOAD` no other is: no constructor runs.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return None;
    }
    // SAFETY: `library` is a handle of `dlopen`, and the name ends with NUL.
    let symbol = unsafe { libc::dlsym(library, c"getInferLibVersion".as_ptr()) };
    let version = (!symbol.is_null()).then(|| {
        // SAFETY: TensorRT declares `extern "C" int32_t getInferLibVersion() noexcept` in all versions since 5.
        let function = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> c_int>(symbol) };
        function()
    });
    // SAFETY: a handle of `dlopen`, closed once; those who loaded the library keep it.
    unsafe { libc::dlclose(library) };
    version.filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DeviceSettings, DeviceType, TensorrtSettings};

    #[test]
    fn the_version_is_told_by_the_library_or_by_its_name() {
        assert_eq!(version_of_number(101_303), "10.13.3");
        assert_eq!(version_of_number(100_000), "10.0.0");
        assert_eq!(version_of_number(8601), "8.6.1");
        assert_eq!(version_of_name("/opt/trt/libnvinfer.so.10.13.3").as_deref(), Some("10.13.3"));
        assert_eq!(version_of_name("/opt/trt/libnvinfer.so"), None);
        assert_eq!(version_of_name("/opt/trt/libnvinfer.so.old"), None);
    }

    #[test]
    fn the_library_is_found_among_the_mappings_of_the_process() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/libnvinfer_plugin.so.10.13.3\n\
                    7f02-7f03 r-xp 00000000 00:00 0\n\
                    7f04-7f05 r-xp 00000000 08:01 13 /opt/my libs/libnvinfer.so.10.13.3\n";
        assert_eq!(library_in(maps), Some("/opt/my libs/libnvinfer.so.10.13.3"));
        assert_eq!(library_in("7f00-7f01 r-xp 0 08:01 12 /usr/lib/libc.so.6\n"), None);
    }

    #[test]
    fn a_library_that_is_loaded_is_asked_and_no_other_is_loaded() {
        // One without the function, and one that is not there.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc =
            maps.lines().find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.contains("libc.so")));
        assert_eq!(stated_version(&CString::new(libc.unwrap()).unwrap()), None);
        assert_eq!(stated_version(c"/no/libnvinfer.so.10"), None);
    }

    #[test]
    fn an_engine_depends_on_what_it_is_built_with_and_not_on_how_it_is_run() {
        let graph = |free: bool| {
            let sizes = vec![None, if free { None } else { Some(8) }];
            graph::Graph { shapes: vec![("x".to_owned(), Some(sizes))], ..graph::Graph::default() }
        };
        let settings = |most, device: DeviceSettings| SessionSettings {
            device: DeviceSettings {
                device_type: DeviceType::Tensorrt,
                tensorrt: TensorrtSettings { rows: Some((1, most)), ..TensorrtSettings::default() },
                ..device
            },
            ..SessionSettings::default()
        };
        let (plain, learns) = told(&[graph(false)], &settings(8, DeviceSettings::default()));
        assert!(plain.contains("trt_profile_max_shapes=x:8x8") && plain.contains("level=Aggressive"), "{plain}");
        assert!(!plain.contains("device_id") && !plain.contains("cache") && !learns, "{plain}");
        let other = DeviceSettings { device_index: 3, ..DeviceSettings::default() };
        assert_eq!(told(&[graph(false)], &settings(8, other)).0, plain);
        assert_ne!(told(&[graph(false)], &settings(16, DeviceSettings::default())).0, plain);
        let half = DeviceSettings { use_fp16: true, ..DeviceSettings::default() };
        assert_ne!(told(&[graph(false)], &settings(8, half)).0, plain);
        assert!(told(&[graph(true)], &settings(8, DeviceSettings::default())).1);
    }
}

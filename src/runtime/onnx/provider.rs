//! Devices and execution providers: which to try for the settings, in which order, whether they work here, and why not.

use super::{message, options, proto};
use crate::runtime::execution::{CPU, CUDA, MissingProvider, ProviderStatus, TENSORRT};
use crate::runtime::{DeviceSettings, DeviceType};
use ort::environment::Environment;
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use prost::Message;
use std::sync::OnceLock;

const NOT_IN_BUILD: &str = "this build of ONNX Runtime does not have it; install the GPU build (`make gpu-library`) and set ORT_DYLIB_PATH to it";

/// One way to run a graph.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    /// Shown to users: `cpu`, `cuda:0`.
    pub(super) device: String,
    /// Providers to register, the preferred one first; ONNX Runtime adds the CPU for what the others cannot run.
    pub(super) providers: Vec<Provider>,
}

/// A provider that is registered; the CPU's always is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provider {
    Tensorrt,
    Cuda,
}

impl Provider {
    pub(super) fn name(self) -> &'static str {
        match self {
            Provider::Tensorrt => TENSORRT,
            Provider::Cuda => CUDA,
        }
    }

    /// Whether the library has it compiled in; a cheap question that needs no GPU.
    pub(super) fn is_in_build(self) -> bool {
        match self {
            Provider::Tensorrt => ep::TensorRT::is_available(),
            Provider::Cuda => ep::CUDA::is_available(),
        }
        .unwrap_or(false)
    }

    /// What registers it. Registration must fail loudly: a silent fall-back to the CPU would be reported as a GPU.
    pub(super) fn dispatch(self, options: &options::Options) -> ExecutionProviderDispatch {
        fn set<P: ArbitrarilyConfigurableExecutionProvider>(provider: P, options: &options::Options) -> P {
            options.iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value))
        }
        match self {
            Provider::Tensorrt => set(ep::TensorRT::default(), options).build().error_on_failure(),
            Provider::Cuda => set(ep::CUDA::default(), options).build().error_on_failure(),
        }
    }

    pub(super) fn not_in_build(self) -> MissingProvider {
        MissingProvider { provider: self.name().to_owned(), reason: NOT_IN_BUILD.to_owned() }
    }

    /// What ONNX Runtime says of it in words that help.
    pub(super) fn failed(self, text: &str) -> MissingProvider {
        MissingProvider { provider: self.name().to_owned(), reason: reason(text) }
    }
}

impl Candidate {
    fn cpu() -> Candidate {
        Candidate { device: "cpu".to_owned(), providers: vec![] }
    }

    fn gpu(index: u32, tensorrt: bool) -> Candidate {
        let providers = if tensorrt { vec![Provider::Tensorrt, Provider::Cuda] } else { vec![Provider::Cuda] };
        Candidate { device: format!("cuda:{index}"), providers }
    }

    /// Names of its providers, the CPU's last.
    pub(super) fn names(&self) -> Vec<String> {
        self.providers.iter().map(|provider| provider.name()).chain([CPU]).map(str::to_owned).collect()
    }
}

/// What to try, in order. TensorRT builds engines for minutes, so only who names it or enables it gets it.
pub(super) fn candidates(settings: &DeviceSettings) -> Vec<Candidate> {
    let index = settings.device_index;
    let mut candidates = match settings.device_type {
        DeviceType::Cpu => vec![Candidate::cpu()],
        DeviceType::Auto | DeviceType::Cuda if settings.enable_tensorrt => {
            vec![Candidate::gpu(index, true), Candidate::gpu(index, false)]
        }
        DeviceType::Auto | DeviceType::Cuda => vec![Candidate::gpu(index, false)],
        DeviceType::Tensorrt if settings.allow_fallback => {
            vec![Candidate::gpu(index, true), Candidate::gpu(index, false)]
        }
        DeviceType::Tensorrt => vec![Candidate::gpu(index, true)],
    };
    if settings.device_type == DeviceType::Auto || (settings.device_type != DeviceType::Cpu && settings.allow_fallback)
    {
        candidates.push(Candidate::cpu());
    }
    candidates
}

/// What a failed registration or a session that could not be made means for whoever runs the server.
fn reason(text: &str) -> String {
    let lower = text.to_lowercase();
    let has = |part: &str| lower.contains(part);
    if has("not enabled in this build") {
        return NOT_IN_BUILD.to_owned();
    }
    if has("cannot open shared object file") {
        let before = text.split(": cannot open shared object file").next().unwrap_or_default();
        let library = before.rsplit([' ', '/', ':']).next().unwrap_or_default();
        return match library {
            "libcuda.so.1" => "the NVIDIA driver is not installed: libcuda.so.1 was not found".to_owned(),
            library => format!("{library} was not found; install it and put its folder on LD_LIBRARY_PATH"),
        };
    }
    if has("no cuda-capable device") || has("cuda failure 100:") {
        return "no NVIDIA GPU was found that CUDA can use".to_owned();
    }
    if has("invalid device ordinal") || has("cuda failure 101:") {
        return "there is no GPU of this number; set device_index to one that there is".to_owned();
    }
    if has("driver version is insufficient") || has("cuda failure 35:") {
        return "the NVIDIA driver is too old for the CUDA version of this build of ONNX Runtime".to_owned();
    }
    if message::is_out_of_memory(text) {
        return "the GPU has not enough free memory for it".to_owned();
    }
    message::clean(text)
}

/// Whether each provider of this server works here: tried once, then remembered.
pub(super) fn statuses(environment: &Environment) -> Vec<ProviderStatus> {
    static FOUND: OnceLock<Vec<ProviderStatus>> = OnceLock::new();
    let find = || {
        let settings = DeviceSettings::default();
        let cuda = problem(environment, Provider::Cuda, &settings);
        // A session with it builds an engine for seconds; that it registers says that its libraries are there.
        let tensorrt = cuda.clone().or_else(|| problem(environment, Provider::Tensorrt, &settings));
        vec![
            ProviderStatus { name: TENSORRT, reason: tensorrt },
            ProviderStatus { name: CUDA, reason: cuda },
            ProviderStatus { name: CPU, reason: None },
        ]
    };
    FOUND.get_or_init(find).clone()
}

/// Why a provider does not work here, by trying it.
fn problem(environment: &Environment, provider: Provider, settings: &DeviceSettings) -> Option<String> {
    if !provider.is_in_build() {
        return Some(NOT_IN_BUILD.to_owned());
    }
    let tried = || -> ort::Result<()> {
        let dispatch = provider.dispatch(&options::of(provider, settings, &options::Machine::default()));
        let mut builder = Session::builder(environment)?.with_intra_threads(1)?;
        dispatch.register(&mut builder)?;
        match provider {
            Provider::Tensorrt => Ok(()),
            // With a driver and no device, only a session finds that out.
            Provider::Cuda => builder.commit_from_memory(&smallest_graph()).map(drop),
        }
    };
    tried().err().map(|error| reason(&error.to_string()))
}

/// `y = x + x` of one float.
fn smallest_graph() -> Vec<u8> {
    use proto::type_proto::{Tensor, Value};
    let value = |name: &str| proto::ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(proto::TypeProto {
            value: Some(Value::TensorType(Tensor {
                elem_type: Some(1),
                shape: Some(proto::TensorShapeProto::default()),
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let node = proto::NodeProto {
        op_type: Some("Add".to_owned()),
        input: vec!["x".to_owned(), "x".to_owned()],
        output: vec!["y".to_owned()],
        ..Default::default()
    };
    let graph = proto::GraphProto {
        name: Some("smallest".to_owned()),
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    let opset = proto::OperatorSetIdProto { version: Some(17), ..Default::default() };
    let model =
        proto::ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..Default::default() };
    model.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::OnnxRuntime;

    #[test]
    fn devices_are_tried_from_the_best_to_the_one_that_always_works() {
        let check = |device_type, enable_tensorrt, allow_fallback, expected: &[&str]| {
            let settings =
                DeviceSettings { device_type, enable_tensorrt, allow_fallback, device_index: 1, ..Default::default() };
            let found: Vec<String> = candidates(&settings)
                .iter()
                .map(|candidate| format!("{} {}", candidate.device, candidate.names().join(",")))
                .collect();
            let expected: Vec<String> = expected
                .iter()
                .map(|text| text.replace("trt", TENSORRT).replace("gpu", CUDA).replace("CPU", CPU))
                .collect();
            assert_eq!(found, expected, "{settings:?}");
        };
        let (trt, gpu, cpu) = ("cuda:1 trt,gpu,CPU", "cuda:1 gpu,CPU", "cpu CPU");
        check(DeviceType::Cpu, true, true, &[cpu]);
        check(DeviceType::Auto, false, false, &[gpu, cpu]);
        check(DeviceType::Auto, true, false, &[trt, gpu, cpu]);
        check(DeviceType::Cuda, false, false, &[gpu]);
        check(DeviceType::Cuda, false, true, &[gpu, cpu]);
        check(DeviceType::Cuda, true, false, &[trt, gpu]);
        check(DeviceType::Tensorrt, false, false, &[trt]);
        check(DeviceType::Tensorrt, false, true, &[trt, gpu, cpu]);
    }

    #[test]
    fn what_is_missing_is_said_so_that_it_can_be_mended() {
        let check = |text: &str, expected: &str| assert_eq!(reason(text), expected);
        check("CUDA execution provider is not enabled in this build. ", NOT_IN_BUILD);
        check(
            "Failed to load library /opt/ort/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open \
             shared object file: No such file or directory",
            "libcublasLt.so.13 was not found; install it and put its folder on LD_LIBRARY_PATH",
        );
        check(
            "Failed to load library /opt/libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared object file",
            "the NVIDIA driver is not installed: libcuda.so.1 was not found",
        );
        check(
            "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 CUDA failure 100: no CUDA-capable device is detected ; GPU=0",
            "no NVIDIA GPU was found that CUDA can use",
        );
        check(
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "the NVIDIA driver is too old for the CUDA version of this build of ONNX Runtime",
        );
        check("CUDA failure 2: out of memory ; GPU=0", "the GPU has not enough free memory for it");
        check("Something else at /var/lib/x failed", "Something else at (path) failed");
    }

    #[test]
    fn providers_are_tried_and_the_cpu_is_always_there() {
        let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
        let found = statuses(runtime.environment());
        assert_eq!(found.iter().map(|status| status.name).collect::<Vec<_>>(), [TENSORRT, CUDA, CPU]);
        assert_eq!(found[2].reason, None);
        for status in &found[..2] {
            // Where there is a GPU they may work; where they do not, the reason says what to do and holds no path.
            assert!(
                status.reason.as_ref().is_none_or(|reason| !reason.is_empty() && !reason.contains("(path)")),
                "{found:?}"
            );
        }
        assert!(Provider::Cuda.is_in_build() || found[1].reason.as_deref() == Some(NOT_IN_BUILD), "{found:?}");
    }
}

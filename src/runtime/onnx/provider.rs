//! Devices and execution providers: which to try for the settings, in which order, and their options.

use crate::runtime::{DeviceSettings, DeviceType, TensorrtPrecision};
use ort::ep::{self, ExecutionProviderDispatch};

/// One way to run a graph.
pub(super) struct Candidate {
    /// Shown to users: `cpu`, `cuda:0`.
    pub(super) device: String,
    /// Provider names, the preferred one first; ONNX Runtime adds the CPU for what the others cannot run.
    pub(super) names: Vec<&'static str>,
    providers: Vec<Provider>,
}

#[derive(Clone, Copy)]
enum Provider {
    Tensorrt,
    Cuda,
}

impl Candidate {
    fn cpu() -> Candidate {
        Candidate { device: "cpu".to_owned(), names: vec!["CPUExecutionProvider"], providers: vec![] }
    }

    fn gpu(index: u32, tensorrt: bool) -> Candidate {
        let mut names = vec!["CUDAExecutionProvider", "CPUExecutionProvider"];
        let mut providers = vec![Provider::Cuda];
        if tensorrt {
            names.insert(0, "TensorrtExecutionProvider");
            providers.insert(0, Provider::Tensorrt);
        }
        Candidate { device: format!("cuda:{index}"), names, providers }
    }

    /// The providers to register. Registration must fail loudly: a silent fall-back to the CPU would be reported as a GPU.
    pub(super) fn dispatch(&self, settings: &DeviceSettings) -> Vec<ExecutionProviderDispatch> {
        let device = i32::try_from(settings.device_index).unwrap_or(i32::MAX);
        let build = |provider: &Provider| match provider {
            Provider::Tensorrt => {
                let mut tensorrt = ep::TensorRT::default().with_device_id(device);
                tensorrt = match settings.tensorrt.precision {
                    Some(TensorrtPrecision::Fp16) => tensorrt.with_fp16(true),
                    Some(TensorrtPrecision::Bf16) => tensorrt.with_bf16(true),
                    None => tensorrt,
                };
                if let Some(bytes) = settings.tensorrt.max_workspace_bytes {
                    tensorrt = tensorrt.with_max_workspace_size(bytes);
                }
                tensorrt.build().error_on_failure()
            }
            Provider::Cuda => ep::CUDA::default().with_device_id(device).build().error_on_failure(),
        };
        self.providers.iter().map(build).collect()
    }
}

/// What to try, in order. TensorRT builds engines for minutes, so only who names it gets it.
pub(super) fn candidates(settings: &DeviceSettings) -> Vec<Candidate> {
    let index = settings.device_index;
    match settings.device_type {
        DeviceType::Cpu => vec![Candidate::cpu()],
        DeviceType::Auto => vec![Candidate::gpu(index, false), Candidate::cpu()],
        DeviceType::Cuda if settings.allow_fallback => vec![Candidate::gpu(index, false), Candidate::cpu()],
        DeviceType::Cuda => vec![Candidate::gpu(index, false)],
        DeviceType::Tensorrt if settings.allow_fallback => {
            vec![Candidate::gpu(index, true), Candidate::gpu(index, false), Candidate::cpu()]
        }
        DeviceType::Tensorrt => vec![Candidate::gpu(index, true)],
    }
}

/// Whether the library has the CUDA provider compiled in; a cheap question that needs no GPU.
pub(super) fn has_cuda() -> bool {
    use ep::ExecutionProvider;
    ep::CUDA::is_available().unwrap_or(false)
}

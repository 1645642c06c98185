//! Runs between buffers that never move, as the player of a recorded CUDA graph needs them.
//!
//! A recording holds the addresses that its kernels read and write. Inputs are copied into buffers on the device that were made at
//! load, the graph runs between those, and the outputs are copied out. Works for any device; only a GPU gains by it.

use super::raw;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynTensor, DynTensorValueType, DynValue, TensorElementType, ValueType};
use std::ffi::{CStr, CString};

/// The buffers of a session, bound to its inputs and outputs in their order.
pub(super) struct Recorded {
    binding: raw::Binding,
    /// By name, in the graph's order.
    inputs: Vec<(CString, DynTensor)>,
    outputs: Vec<DynTensor>,
}

impl Recorded {
    /// `None` where an input or output has not one shape alone, or is no tensor of numbers.
    ///
    /// # Errors
    /// Where the device has no memory for the buffers.
    pub(super) fn new(session: &Session, device: AllocationDevice, index: i32) -> ort::Result<Option<Recorded>> {
        let kinds = |outlets: &[ort::value::Outlet]| {
            outlets.iter().map(|outlet| fixed(outlet.dtype())).collect::<Option<Vec<_>>>()
        };
        let (Some(inputs), Some(outputs)) = (kinds(session.inputs()), kinds(session.outputs())) else {
            return Ok(None);
        };
        let memory = MemoryInfo::new(device, index, AllocatorType::Device, MemoryType::Default)?;
        let allocator = Allocator::new(session, memory)?;
        let buffers = |kinds: Vec<(TensorElementType, Vec<usize>)>| {
            kinds.into_iter().map(|(ty, shape)| DynTensor::new(&allocator, ty, shape)).collect::<ort::Result<Vec<_>>>()
        };
        let name = |outlet: &ort::value::Outlet| CString::new(outlet.name()).map_err(ort::Error::from);
        let mut binding = raw::Binding::new(session)?;
        let mut bound = Vec::with_capacity(inputs.len());
        for (outlet, buffer) in session.inputs().iter().zip(buffers(inputs)?) {
            let name = name(outlet)?;
            binding.bind_input(&name, &buffer)?;
            bound.push((name, buffer));
        }
        let (inputs, outputs) = (bound, buffers(outputs)?);
        for (outlet, buffer) in session.outputs().iter().zip(&outputs) {
            binding.bind_output(&name(outlet)?, buffer)?;
        }
        Ok(Some(Recorded { binding, inputs, outputs }))
    }

    /// Runs the graph on all inputs, and gives the outputs asked for.
    ///
    /// # Errors
    /// As a run; where an input is missing, or is one that the graph has a default for.
    pub(super) fn run(
        &mut self,
        session: &Session,
        inputs: &[(&CStr, SessionInputValue<'_>)],
        outputs: &[usize],
        options: &RunOptions,
    ) -> ort::Result<Vec<Option<DynValue>>> {
        if inputs.len() != self.inputs.len() {
            return Err(ort::Error::new(format!("expected {} inputs, got {}", self.inputs.len(), inputs.len())));
        }
        for (name, buffer) in &mut self.inputs {
            let Some((_, value)) = inputs.iter().find(|(given, _)| *given == name.as_c_str()) else {
                return Err(ort::Error::new("an input is missing, or has a default that cannot be replaced here"));
            };
            value.view().downcast::<DynTensorValueType>()?.copy_into(buffer)?;
        }
        self.binding.run(session, options)?;
        let mut results = Vec::with_capacity(outputs.len());
        for &index in outputs {
            let buffer =
                self.outputs.get(index).ok_or_else(|| ort::Error::new(format!("there is no output {index}")))?;
            results.push(Some(buffer.to(AllocationDevice::CPU, 0)?.into_dyn()));
        }
        Ok(results)
    }
}

/// Type and shape of a tensor of numbers whose sizes are all given.
fn fixed(ty: &ValueType) -> Option<(TensorElementType, Vec<usize>)> {
    let ValueType::Tensor { ty, shape, .. } = ty else { return None };
    let shape = shape.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<usize>>>()?;
    (*ty != TensorElementType::String).then_some((*ty, shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::OnnxRuntime;
    use ort::value::Tensor;
    use std::path::Path;

    fn open(model: &str) -> Session {
        let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store").join(model).join("1/model.onnx");
        let mut builder = Session::builder(runtime.environment()).unwrap();
        builder.commit_from_file(file).unwrap()
    }

    /// On the CPU, whose memory is a device's like any other's.
    #[test]
    fn runs_between_fixed_buffers_give_what_plain_runs_give() {
        let session = open("fixed-batch");
        let mut recorded = Recorded::new(&session, AllocationDevice::CPU, 0).unwrap().unwrap();
        let options = RunOptions::new().unwrap();
        // Several times: what a run left behind must not be in the next.
        for seed in [1.0f32, -2.0, 0.5] {
            let data: Vec<f32> = (0..4).map(|index| seed * (index as f32 - 1.4)).collect();
            let value = || SessionInputValue::from(Tensor::from_array(([1usize, 4], data.clone())).unwrap());
            let bound = recorded.run(&session, &[(c"x", value())], &[0], &options).unwrap();
            let plain = raw::run(&session, &[(c"x", value())], &[c"y"], &options).unwrap();
            let floats = |values: &[Option<DynValue>]| {
                values[0].as_ref().unwrap().try_extract_tensor::<f32>().unwrap().1.to_vec()
            };
            assert_eq!(floats(&bound), floats(&plain));
            assert!(floats(&bound).iter().any(|value| *value != 0.0));
        }
        assert!(recorded.run(&session, &[], &[0], &options).is_err());
    }

    #[test]
    fn a_graph_with_a_free_size_is_not_recorded() {
        assert!(Recorded::new(&open("mlp"), AllocationDevice::CPU, 0).unwrap().is_none());
    }
}

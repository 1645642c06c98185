//! Runs whose outputs ONNX Runtime writes into page-locked memory of the host.
//!
//! A GPU copies into such memory at the full speed of the bus and without a copy of the driver's in between; what comes back is
//! read, split and sent from there. Works with memory of any kind that the processor can read; only a GPU gains by it.

use super::raw;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, TensorElementType, ValueType};
use std::ffi::CStr;

/// A session's outputs, in memory of one kind.
pub(super) struct Pinned {
    binding: raw::Binding,
    memory: MemoryInfo<'static>,
}

impl Pinned {
    /// For runs on GPU `index`; `None` where an output is no tensor of numbers.
    ///
    /// # Errors
    /// Where this build of ONNX Runtime knows no such memory.
    pub(super) fn of_cuda(session: &Session, index: u32) -> ort::Result<Option<Pinned>> {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        let device = AllocationDevice::CUDA_PINNED;
        Pinned::new(session, MemoryInfo::new(device, index, AllocatorType::Device, MemoryType::CPUOutput)?)
    }

    fn new(session: &Session, memory: MemoryInfo<'static>) -> ort::Result<Option<Pinned>> {
        let is_numbers = |ty: &ValueType| match ty {
            ValueType::Tensor { ty, .. } => *ty != TensorElementType::String,
            _ => false,
        };
        if !session.outputs().iter().all(|output| is_numbers(output.dtype())) {
            return Ok(None);
        }
        Ok(Some(Pinned { binding: raw::Binding::new(session)?, memory }))
    }

    /// Runs the graph and gives the outputs named, in that order; `None` for one that holds nothing.
    ///
    /// # Errors
    /// As a run.
    pub(super) fn run(
        &mut self,
        session: &Session,
        inputs: &[(&CStr, SessionInputValue<'_>)],
        outputs: &[&CStr],
        options: &RunOptions,
    ) -> ort::Result<Vec<Option<DynValue>>> {
        // The inputs are borrowed: nothing of them may stay bound, whatever becomes of the run.
        let bound = self.binding.for_one_run();
        for (name, value) in inputs {
            bound.0.bind_value(name, value)?;
        }
        for name in outputs {
            bound.0.bind_output_in(name, &self.memory)?;
        }
        bound.0.run(session, options)?;
        bound.0.outputs(session, outputs.len())
    }
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

    fn on_the_cpu(session: &Session) -> Option<Pinned> {
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput).unwrap();
        Pinned::new(session, memory).unwrap()
    }

    fn floats(values: &[Option<DynValue>]) -> Vec<f32> {
        values
            .iter()
            .flat_map(|value| value.as_ref().unwrap().try_extract_tensor::<f32>().unwrap().1.to_vec())
            .collect()
    }

    /// In the processor's own memory, which is bound like any other.
    #[test]
    fn bound_runs_give_what_plain_runs_give_whatever_their_rows() {
        let session = open("mlp");
        let mut pinned = on_the_cpu(&session).unwrap();
        let options = RunOptions::new().unwrap();
        let mut kept = Vec::new();
        for rows in [1usize, 3, 2] {
            let data: Vec<f32> = (0..rows * 32).map(|index| (index as f32 * 0.37).sin()).collect();
            let value = || SessionInputValue::from(Tensor::from_array(([rows, 32], data.clone())).unwrap());
            let name = std::ffi::CString::new(session.outputs()[0].name()).unwrap();
            let input = std::ffi::CString::new(session.inputs()[0].name()).unwrap();
            let bound = pinned.run(&session, &[(&input, value())], &[&name], &options).unwrap();
            let plain = raw::run(&session, &[(&input, value())], &[&name], &options).unwrap();
            assert_eq!(floats(&bound), floats(&plain));
            assert!(floats(&bound).iter().any(|value| *value != 0.0));
            kept.push((bound, floats(&plain)));
            // A run that fails leaves nothing bound for the next.
            assert!(pinned.run(&session, &[(c"nobody", value())], &[&name], &options).is_err());
            assert!(pinned.run(&session, &[], &[&name], &options).is_err());
        }
        // Later runs do not write into what earlier ones gave.
        for (bound, expected) in kept {
            assert_eq!(floats(&bound), expected);
        }
    }

    #[test]
    fn outputs_are_given_in_the_order_asked_for_and_only_those() {
        let session = open("multi");
        let mut pinned = on_the_cpu(&session).unwrap();
        let options = RunOptions::new().unwrap();
        let given = || {
            let numbers = Tensor::from_array(([2usize, 2], vec![1.5f32, -2.0, 0.25, 4.0])).unwrap();
            let whole = Tensor::from_array(([2usize], vec![3i64, -5])).unwrap();
            let scale = Tensor::from_array(([0usize; 0], vec![2.5f32])).unwrap();
            let values: [(&CStr, SessionInputValue<'_>); 3] =
                [(c"a", numbers.into()), (c"b", whole.into()), (c"scale", scale.into())];
            values
        };
        let bytes = |values: Vec<Option<DynValue>>| {
            let values =
                values.into_iter().map(|value| crate::runtime::onnx::convert::from_output(value.unwrap()).unwrap());
            values.map(|value| value.as_tensor().unwrap().bytes().to_vec()).collect::<Vec<_>>()
        };
        for wanted in [&[c"product", c"sum"][..], &[c"product"], &[c"sum"], &[c"sum", c"product"]] {
            let bound = bytes(pinned.run(&session, &given(), wanted, &options).unwrap());
            let plain = bytes(raw::run(&session, &given(), wanted, &options).unwrap());
            assert_eq!(bound, plain);
            assert_eq!(bound.len(), wanted.len());
            assert!(bound.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)));
        }
    }

    /// Where nodes run on the processor their outputs stay in its memory: right, and no quicker.
    #[test]
    fn without_a_gpu_page_locked_memory_is_the_processors_own() {
        let session = open("mlp");
        let mut pinned = Pinned::of_cuda(&session, 0).unwrap().unwrap();
        let options = RunOptions::new().unwrap();
        let value = || SessionInputValue::from(Tensor::from_array(([1usize, 32], vec![0.5f32; 32])).unwrap());
        let name = std::ffi::CString::new(session.outputs()[0].name()).unwrap();
        let input = std::ffi::CString::new(session.inputs()[0].name()).unwrap();
        let bound = pinned.run(&session, &[(&input, value())], &[&name], &options).unwrap();
        let plain = raw::run(&session, &[(&input, value())], &[&name], &options).unwrap();
        assert_eq!(floats(&bound), floats(&plain));
    }

    #[test]
    fn outputs_that_are_no_numbers_are_not_bound() {
        assert!(on_the_cpu(&open("strings")).is_none());
        assert!(on_the_cpu(&open("sequence")).is_none());
    }
}

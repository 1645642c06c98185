//! Runs a session before its version is ready, so that the first request does not pay for the runtime's own preparation.
//!
//! A run with made-up input proves nothing, so its failure is only logged; a sample that the model brings must run.

use super::config_pbtxt::{WarmupData, WarmupInput};
use super::repository::{VersionFolder, companion, read_bounded};
use super::{LoadError, Manifest};
use crate::pipelines::{Item, Parameters, Pipeline};
use crate::runtime::{Input, Interrupt, Session};
use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType, byte_len, element_count};
use std::path::Path;

/// Bytes of one made-up or sampled input.
const INPUT_BYTES_MAX: usize = 256 << 20;

/// Runs every session `iterations` times with zeros.
pub(super) fn made_up(sessions: &mut [Box<dyn Session>], iterations: usize, interrupt: &Interrupt) {
    let Some(first) = sessions.first() else { return };
    let inputs: Option<Vec<Input>> = first
        .inputs()
        .iter()
        .enumerate()
        .filter(|(_, spec)| !spec.optional)
        .map(|(index, spec)| made_up_value(&spec.ty).map(|value| (index, value)))
        .collect();
    let Some(inputs) = inputs else {
        tracing::info!("no warm-up: an input is too large or of a kind that is not made up");
        return;
    };
    for session in sessions {
        for _ in 0..iterations {
            if interrupt.is_fired() {
                return;
            }
            if let Err(error) = run(session.as_mut(), &inputs, interrupt) {
                // The graph may rightly refuse zeros; the first real request then pays for the preparation.
                tracing::info!(%error, "the warm-up with made-up input failed");
                return;
            }
        }
    }
}

/// Runs the manifest's `[[warmup]]` samples through the model's task, on every session.
///
/// # Errors
/// Names the sample that did not run, and why.
pub(super) fn samples(
    sessions: &mut [Box<dyn Session>],
    pipeline: Option<&dyn Pipeline>,
    manifest: &Manifest,
    version: &VersionFolder,
    interrupt: &Interrupt,
) -> Result<(), LoadError> {
    for sample in &manifest.warmup {
        let failed = |problem: String| LoadError::Warmup { sample: sample.file.clone(), problem };
        let Some(pipeline) = pipeline else {
            return Err(failed(
                "the model has no task, so a file cannot be made into tensors; remove [[warmup]]".into(),
            ));
        };
        let bytes = read(version, &sample.file).map_err(failed)?;
        let item = match Path::new(&sample.file).extension() {
            Some(extension) if extension == "txt" => {
                Item::Text(String::from_utf8(bytes).map_err(|_| failed("expected UTF-8 text".into()))?)
            }
            _ => Item::Bytes(bytes.into()),
        };
        let parameters = Parameters::new();
        let tensors = pipeline.preprocess(&item, &parameters).map_err(|error| failed(error.to_string()))?;
        for session in sessions.iter_mut() {
            let inputs = by_index(session.inputs(), tensors.iter().cloned()).map_err(failed)?;
            let outputs = run(session.as_mut(), &inputs, interrupt).map_err(failed)?;
            let named: Vec<(String, Value)> =
                session.outputs().iter().map(|spec| spec.name.clone()).zip(outputs).collect();
            pipeline.postprocess(&named, &parameters).map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok(())
}

/// Runs a sample of the model configuration on every session.
///
/// # Errors
/// Names the sample that did not run, and why.
pub(super) fn configured(
    sessions: &mut [Box<dyn Session>],
    sample: &super::config_pbtxt::GivenWarmup,
    version: &VersionFolder,
    interrupt: &Interrupt,
) -> Result<(), LoadError> {
    let failed = |problem: String| LoadError::Warmup { sample: format!("model_warmup '{}'", sample.name), problem };
    let tensors = sample
        .inputs
        .iter()
        .map(|input| configured_input(input, version).map(|tensor| (input.name.clone(), tensor)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    for session in sessions {
        let inputs = by_index(session.inputs(), tensors.iter().cloned()).map_err(failed)?;
        for _ in 0..sample.count {
            run(session.as_mut(), &inputs, interrupt).map_err(failed)?;
        }
    }
    Ok(())
}

fn run(session: &mut dyn Session, inputs: &[Input], interrupt: &Interrupt) -> Result<Vec<Value>, String> {
    let all: Vec<usize> = (0..session.outputs().len()).collect();
    session.run(inputs, &all, interrupt).map_err(|error| error.to_string())
}

/// Names to indices, each value checked as a request's would be.
fn by_index(specs: &[Spec], tensors: impl Iterator<Item = (String, Tensor)>) -> Result<Vec<Input>, String> {
    let mut inputs: Vec<Input> = Vec::with_capacity(specs.len());
    for (name, tensor) in tensors {
        let index = specs
            .iter()
            .position(|spec| spec.name == name)
            .ok_or_else(|| format!("the graph has no input '{name}'"))?;
        let value = Value::Tensor(tensor);
        if let Some(spec) = specs.get(index) {
            spec.ty.check(&value).map_err(|mismatch| format!("input '{name}': {mismatch}"))?;
        }
        inputs.push((index, value));
    }
    let given = |index: usize| inputs.iter().any(|(given, _)| *given == index);
    match specs.iter().enumerate().find(|(index, spec)| !spec.optional && !given(*index)) {
        Some((_, missing)) => Err(format!("input '{}' is missing", missing.name)),
        None => Ok(inputs),
    }
}

fn configured_input(input: &WarmupInput, version: &VersionFolder) -> Result<Tensor, String> {
    let place = |problem: String| format!("input '{}': {problem}", input.name);
    let large = || place(format!("shape {:?} is larger than {INPUT_BYTES_MAX} bytes", input.shape));
    match &input.data {
        WarmupData::Zero => zeros(input.dtype, input.shape.clone()).ok_or_else(large),
        WarmupData::Random => random(input.dtype, input.shape.clone()).ok_or_else(large),
        WarmupData::File(file) => {
            let bytes = read(version, &format!("warmup/{file}")).map_err(place)?;
            Tensor::from_bytes(input.dtype, input.shape.clone(), bytes).map_err(|error| place(error.to_string()))
        }
    }
}

fn read(version: &VersionFolder, file: &str) -> Result<Vec<u8>, String> {
    let path = companion(version, file).ok_or_else(|| format!("there is no file {file} in the model's folder"))?;
    match read_bounded(&path, INPUT_BYTES_MAX as u64) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("the file is larger than {INPUT_BYTES_MAX} bytes")),
        Err(error) => Err(format!("the file could not be read: {}", error.kind())),
    }
}

/// The smallest value of a type: zeros, dynamic dimensions 1; `None` where it would be too large.
fn made_up_value(ty: &ValueType) -> Option<Value> {
    match ty {
        ValueType::Tensor { dtype, shape } => {
            let dims = shape.as_deref().unwrap_or(&[Dim::Fixed(1)]);
            let shape = dims.iter().map(|dim| if let Dim::Fixed(size) = dim { *size } else { 1 }).collect();
            zeros(*dtype, shape).map(Value::Tensor)
        }
        ValueType::Sequence(element) => made_up_value(element).map(|value| Value::Sequence(vec![value])),
        ValueType::Map { key, value } => {
            Some(Value::Map { keys: zeros(*key, vec![1])?, values: zeros(*value, vec![1])? })
        }
        ValueType::Optional(_) => Some(Value::None),
    }
}

fn zeros(dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
    let count = element_count(&shape)?;
    if dtype == DType::String {
        // Each string is three words even when it is empty.
        (count <= INPUT_BYTES_MAX / size_of::<String>()).then_some(())?;
        return Tensor::from_strings(shape, vec![String::new(); count]).ok();
    }
    let len = byte_len(dtype, count).filter(|len| *len <= INPUT_BYTES_MAX)?;
    Tensor::from_bytes(dtype, shape, vec![0u8; len]).ok()
}

/// Floats from 0 to 1, small whole numbers, empty strings: the same ones each time.
fn random(dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
    let zeros = zeros(dtype, shape.clone())?;
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let count = zeros.len();
    match dtype {
        DType::Fp32 => Tensor::from_vec(dtype, shape, (0..count).map(|_| next()).collect::<Vec<f32>>()).ok(),
        DType::Fp64 => Tensor::from_vec(dtype, shape, (0..count).map(|_| f64::from(next())).collect::<Vec<f64>>()).ok(),
        DType::Fp16 => {
            Tensor::from_vec(dtype, shape, (0..count).map(|_| half::f16::from_f32(next())).collect::<Vec<half::f16>>())
                .ok()
        }
        DType::Bf16 => Tensor::from_vec(
            dtype,
            shape,
            (0..count).map(|_| half::bf16::from_f32(next())).collect::<Vec<half::bf16>>(),
        )
        .ok(),
        // 0 and 1 are inside every type and every vocabulary.
        _ => match dtype.size() {
            Some(size) => {
                let bytes = (0..count).flat_map(|_| {
                    let low = u8::from(next() >= 0.5);
                    std::iter::once(low).chain(std::iter::repeat_n(0, size - 1))
                });
                Tensor::from_bytes(dtype, shape, bytes.collect::<Vec<u8>>()).ok()
            }
            None => Some(zeros),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_values_fit_their_type() {
        let tensor = |dtype, shape| ValueType::Tensor { dtype, shape };
        for dtype in DType::all() {
            let free = Some(vec![Dim::Dynamic(None), Dim::Fixed(3)]);
            for ty in [tensor(dtype, free), tensor(dtype, Some(vec![])), tensor(dtype, None)] {
                ty.check(&made_up_value(&ty).unwrap()).unwrap();
            }
            let made = random(dtype, vec![5, 2]).unwrap();
            assert_eq!((made.dtype(), made.shape()), (dtype, [5, 2].as_slice()));
        }
        let sequence = ValueType::Sequence(Box::new(ValueType::Map { key: DType::String, value: DType::Fp32 }));
        sequence.check(&made_up_value(&sequence).unwrap()).unwrap();
    }

    #[test]
    fn nothing_huge_is_made_up() {
        for shape in [vec![usize::MAX], vec![usize::MAX, 2], vec![1 << 40], vec![1 << 20, 1 << 20]] {
            for dtype in [DType::Fp32, DType::String, DType::Int4] {
                assert!(zeros(dtype, shape.clone()).is_none(), "{shape:?}");
                assert!(random(dtype, shape.clone()).is_none(), "{shape:?}");
            }
        }
    }
}

//! Runs a session before its version is ready, so that the first request does not pay for the runtime's own preparation.
//!
//! A run with made-up input proves nothing, so its failure is only logged; a sample that the model brings must run.

use super::config_pbtxt::{WarmupData, WarmupInput};
use super::made_up::{self, INPUT_BYTES_MAX, InputHints, Size};
use super::repository::{VersionFolder, companion, companion_in, read_bounded};
use super::{LoadError, LoadedModel, Manifest, ModelName};
use crate::pipelines::{Item, Outputs, Parameters, Pipeline};
use crate::runtime::{Input, Interrupt, Session};
use crate::tensor::{Spec, Tensor, Value};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs every session of `model` `iterations` times with made-up input, and says in the log how long the first run and the last
/// one took.
pub(super) fn made_up(
    model: &ModelName,
    sessions: &mut [Box<dyn Session>],
    hints: &InputHints,
    iterations: usize,
    interrupt: &Interrupt,
) {
    let Some(first) = sessions.first() else { return };
    let Some(inputs) = made_up::inputs(first.inputs(), &Size::default(), 1, hints) else {
        tracing::info!(%model, "no warm-up: an input is too large or of a kind that is not made up");
        return;
    };
    let (count, mut times) = (sessions.len(), Vec::<Duration>::new());
    for session in sessions {
        for _ in 0..iterations {
            if interrupt.is_fired() {
                return;
            }
            let begun = Instant::now();
            if let Err(error) = run(session.as_mut(), &inputs, interrupt) {
                // The graph may rightly refuse what is made up; the first real request then pays for the preparation.
                tracing::info!(%model, %error, "the warm-up with made-up input failed");
                return;
            }
            times.push(begun.elapsed());
        }
    }
    if let (Some(first), Some(last)) = (times.first(), times.last()) {
        // To a microsecond.
        let millis = |time: &Duration| time.as_micros() as f64 / 1e3;
        tracing::info!(
            %model, iterations, instances = count, first_ms = millis(first), last_ms = millis(last),
            total_ms = millis(&times.iter().sum()), "a model is warmed up"
        );
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
        let item = item(&sample.file, read(version, &sample.file).map_err(failed)?).map_err(failed)?;
        let parameters = Parameters::new();
        let prepared = pipeline.preprocess(&item, &parameters).map_err(|error| failed(error.to_string()))?;
        for session in sessions.iter_mut() {
            let mut outputs: Vec<Outputs> = Vec::with_capacity(prepared.runs.len());
            for tensors in &prepared.runs {
                let carried = outputs.last().map(|last| prepared.carry(last)).unwrap_or_default();
                let tensors = tensors.iter().cloned().chain(carried);
                let inputs = by_index(session.inputs(), tensors).map_err(failed)?;
                let values = run(session.as_mut(), &inputs, interrupt).map_err(failed)?;
                outputs.push(session.outputs().iter().map(|spec| spec.name.clone()).zip(values).collect());
            }
            let read = pipeline.postprocess(&outputs, &prepared.notes, &parameters);
            read.map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok(())
}

impl LoadedModel {
    /// The samples of the manifest's `[[warmup]]`, without those that cannot be read any more. Blocks.
    pub fn sample_items(&self, manifest: &Manifest) -> Vec<Item> {
        let folder = self.source.folder.clone();
        // A version's folder lies in its model's; a bare model's is both.
        let is_version = folder.file_name().is_some_and(|name| *name == *self.version.to_string());
        let model_folder = folder.parent().filter(|_| is_version).unwrap_or(&folder).to_owned();
        let read = |file: &String| {
            let bytes = read_in(companion_in(&folder, &model_folder, &model_folder, file), file);
            bytes.and_then(|bytes| item(file, bytes)).ok()
        };
        manifest.warmup.iter().filter_map(|sample| read(&sample.file)).collect()
    }
}

/// A sample as the task takes it.
fn item(file: &str, bytes: Vec<u8>) -> Result<Item, String> {
    Ok(match Path::new(file).extension() {
        Some(extension) if extension == "txt" => {
            Item::Text(String::from_utf8(bytes).map_err(|_| "expected UTF-8 text".to_owned())?)
        }
        _ => Item::Bytes(bytes.into()),
    })
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
        WarmupData::Zero => made_up::zeros(input.dtype, input.shape.clone()).ok_or_else(large),
        WarmupData::Random => made_up::random(input.dtype, input.shape.clone(), 1).ok_or_else(large),
        WarmupData::File(file) => {
            let bytes = read(version, &format!("warmup/{file}")).map_err(place)?;
            Tensor::from_bytes(input.dtype, input.shape.clone(), bytes).map_err(|error| place(error.to_string()))
        }
    }
}

fn read(version: &VersionFolder, file: &str) -> Result<Vec<u8>, String> {
    read_in(companion(version, file), file)
}

fn read_in(path: Option<PathBuf>, file: &str) -> Result<Vec<u8>, String> {
    let path = path.ok_or_else(|| format!("there is no file {file} in the model's folder"))?;
    match read_bounded(&path, INPUT_BYTES_MAX as u64) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("the file is larger than {INPUT_BYTES_MAX} bytes")),
        Err(error) => Err(format!("the file could not be read: {}", error.kind())),
    }
}

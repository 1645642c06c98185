//! Every form of real models: it loads, keeps what a user sees of it, covers what Python's tools cover, and stays near.
//!
//! Models are those of `../shared/models/store`; where they are absent, the tests say so loudly and pass. What Python's tools
//! cover stands in `tests/golden/rewriters.json`, which says how it was made.

use super::tests::{load, numbers, run};
use super::*;
use crate::runtime::onnx::proto::ModelProto;
use crate::runtime::{Input, Interrupt, Session};
use crate::tensor::{DType, Spec, Tensor};
use prost::Message;
use std::path::PathBuf;

/// A form of a model, and the lowest cosine of an output with the original's that it may have on made-up inputs.
type Form = (&'static str, f64);

/// `model` is its folder, `graph` the file in it.
struct Row {
    model: &'static str,
    graph: &'static str,
    forms: &'static [Form],
    /// Operators by form and kind that Python's tools cover and ours do not, with why.
    fewer: &'static [(&'static str, &'static str, u64)],
}

/// Products of two computed operands stay in 32 bits, and a table of two types is too small to gain: docs/rewriting.md.
const BERT: &[(&str, &str, u64)] =
    &[("int8", "Gather", 1), ("int8-static", "Gather", 1), ("int8-static", "MatMul", 4), ("int4", "MatMul", 13)];

#[rustfmt::skip]
const ROWS: [Row; 9] = [
    Row { model: "tiny-bert-mlm", graph: "model.onnx", fewer: BERT,
          forms: &[("fp16", 0.9999), ("int8", 0.99), ("int8-static", 0.97), ("int4", 0.98)] },
    Row { model: "edge-external-data", graph: "1/model.onnx", fewer: &[],
          forms: &[("fp16", 0.9999), ("int8", 0.999), ("int8-static", 0.999), ("int4", 0.98)] },
    Row { model: "dtln-stage1", graph: "1/model.onnx", fewer: &[],
          forms: &[("fp16", 0.9999), ("int8", 0.999), ("int4", 0.98)] },
    Row { model: "dtln-stage2", graph: "1/model.onnx", fewer: &[], forms: &[("int8", 0.999), ("int8-static", 0.9)] },
    Row { model: "mnist", graph: "1/model.onnx", fewer: &[],
          forms: &[("fp16", 0.9999), ("int8", 0.999), ("int8-static", 0.97)] },
    Row { model: "squeezenet1.1", graph: "onnx/model.onnx", fewer: &[],
          forms: &[("fp16", 0.9999), ("int8-static", 0.97)] },
    Row { model: "magika-v3.3", graph: "1/model.onnx", fewer: &[], forms: &[("int8", 0.999)] },
    Row { model: "ppocr-v2-det", graph: "1/model.onnx", fewer: &[],
          forms: &[("fp16", 0.999), ("int8-static", 0.9)] },
    Row { model: "yolox-nano", graph: "model.onnx", fewer: &[], forms: &[("fp16", 0.99)] },
];

/// Kinds that have weights or rows to gain by; what lies between is covered where it gains, and 16 bits have lists of operators
/// that differ on purpose.
const KINDS: [&str; 4] = ["Conv", "Gather", "LSTM", "MatMul"];

fn store() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let models = std::env::var_os("ORTUS_SHARED_MODELS").map_or_else(|| root.join("../shared/models"), PathBuf::from);
    let store = models.join("store");
    if store.is_dir() {
        return Some(store);
    }
    eprintln!("SKIPPED: the shared models are not there ({})", store.display());
    None
}

fn made_up(session: &dyn Session, seed: u32) -> Vec<Input> {
    let value = |(index, spec): (usize, &Spec)| {
        let dims = spec.ty.shape().unwrap();
        let size = |(axis, dim): (usize, &crate::tensor::Dim)| match usize::try_from(dim.to_wire()) {
            Ok(size) => size,
            Err(_) if axis == 0 => 1,
            Err(_) if dims.len() == 4 => 64,
            Err(_) => 16,
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let numbers = numbers(shape.iter().product(), seed);
        let ids = |number: &f32| match spec.name.as_str() {
            name if name.contains("mask") => 1,
            name if name.contains("type") => 0,
            _ => (number.abs() * 60.0) as i32 + 1,
        };
        let tensor = match spec.ty.dtype().unwrap() {
            DType::Int64 => Tensor::from_vec(DType::Int64, shape, numbers.iter().map(|x| i64::from(ids(x))).collect()),
            DType::Int32 => Tensor::from_vec(DType::Int32, shape, numbers.iter().map(ids).collect()),
            _ => Tensor::from_vec(DType::Fp32, shape, numbers),
        };
        (index, tensor.unwrap().into())
    };
    session.inputs().iter().enumerate().map(value).collect()
}

/// What a user of a graph sees of it.
fn face(file: &std::path::Path) -> impl PartialEq + std::fmt::Debug {
    let model = ModelProto::decode(&*std::fs::read(file).unwrap()).unwrap();
    let graph = model.graph.unwrap();
    let constants: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|input| !constants.contains(&input.name())).cloned().collect();
    (inputs, graph.output, graph.name, model.metadata_props, model.producer_name, model.doc_string)
}

fn form(name: &str, ranges: Ranges) -> Rewriting {
    match name {
        "fp16" => Rewriting::Fp16(Fp16Options::default()),
        "int8" => Rewriting::Int8(QuantizeOptions::default()),
        "int8-static" => Rewriting::StaticInt8(StaticOptions { ranges, percentile: None, reduce_range: false }),
        "int4" => Rewriting::Int4(Int4Options::default()),
        _ => panic!("no form {name}"),
    }
}

fn check(row: &Row, file: PathBuf, python: &serde_json::Value) {
    let Row { model, forms, fewer, .. } = row;
    let mut original = load(file.clone());
    let samples: Vec<Vec<Input>> = (20..23).map(|seed| made_up(&*original, seed)).collect();
    let outputs = |session: &mut dyn Session| samples.iter().map(|sample| run(session, sample)).collect::<Vec<_>>();
    let expected = outputs(&mut *original);
    for (name, cosine) in *forms {
        let folder = tempfile::tempdir().unwrap();
        let [to, observable] = ["to", "observable"].map(|name| folder.path().join(name).join("model.onnx"));
        for file in [&to, &observable] {
            std::fs::create_dir(file.parent().unwrap()).unwrap();
        }
        let mut ranges = Ranges::default();
        if *name == "int8-static" {
            let names = observable_file(&file, &observable).unwrap();
            ranges = calibrate(&mut *load(observable), &samples, &names, &Interrupt::new()).unwrap();
        }
        let done = rewrite_file(&file, &to, &form(name, ranges)).unwrap();
        let mut variant = load(to.clone());
        let specs = |session: &dyn Session| format!("{:?} {:?}", session.inputs(), session.outputs());
        assert_eq!(specs(&*original), specs(&*variant), "{model} {name}");
        assert_eq!(face(&file), face(&to), "{model} {name}");
        let drift = drift(&expected, &outputs(&mut *variant)).unwrap();
        assert!(drift.cosine >= *cosine, "{model} {name}: {drift:?}, at least {cosine}");
        let of = |kind: &str| done.replaced.get(kind).copied().unwrap_or_default() as u64;
        let theirs = python["models"][model][name]["operators"].as_object();
        let theirs = theirs.into_iter().flatten().filter(|(kind, _)| KINDS.contains(&kind.as_str()) && *name != "fp16");
        for (kind, count) in theirs {
            let ours = if kind == "MatMul" { of("MatMul") + of("Gemm") } else { of(kind) };
            let left = fewer.iter().find(|(form, left, _)| form == name && left == kind).map_or(0, |(.., left)| *left);
            assert!(
                ours + left >= count.as_u64().unwrap(),
                "{model} {name} {kind}: {ours} and {left} of {count}: {done:?}"
            );
        }
    }
}

#[test]
fn forms_of_real_models_cover_what_pythons_do_and_stay_near() {
    let Some(store) = store() else { return };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rewriters.json");
    let python: serde_json::Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for row in &ROWS {
        check(row, store.join(row.model).join(row.graph), &python);
    }
}

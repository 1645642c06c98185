//! Every form of small graphs is run by ONNX Runtime beside the original.

use super::node::{bytes_of, int, tensor};
use super::*;
use crate::runtime::onnx::OnnxRuntime;
use crate::runtime::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension::Value as Size},
    type_proto::{Tensor as TensorType, Value as TypeValue},
};
use crate::runtime::{
    DeviceSettings, DeviceType, GraphSource, Interrupt, OptimizationLevel, Runtime, Session, SessionSettings,
};
use crate::tensor::{DType, Tensor, Value};
use prost::Message;
use std::path::PathBuf;

/// Numbers that look random and are the same every time, between -1 and 1.
pub(super) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn constant(name: &str, dims: &[usize], seed: u32) -> TensorProto {
    let count = dims.iter().product();
    let scale = 1.0 / (dims.iter().skip(1).product::<usize>().max(1) as f32).sqrt();
    let values: Vec<f32> = numbers(count, seed).iter().map(|number| number * scale).collect();
    tensor(name, DataType::Float, dims, bytes_of(&values))
}

fn node(operator: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(operator.into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let (name, kind) = (Some(name.to_owned()), Some(AttributeType::Ints as i32));
    AttributeProto { name, r#type: kind, ints: values.to_vec(), ..AttributeProto::default() }
}

fn value(name: &str, kind: DataType, dims: &[i64]) -> ValueInfoProto {
    let size = |&size: &i64| Dimension {
        value: Some(if size < 0 { Size::DimParam("n".into()) } else { Size::DimValue(size) }),
        ..Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(size).collect() });
    let tensor = TypeValue::TensorType(TensorType { elem_type: Some(kind as i32), shape });
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(tensor), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

fn model(opset: i64, graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { version: Some(opset), ..OperatorSetIdProto::default() }],
        graph: Some(GraphProto { name: Some("graph".into()), ..graph }),
        ..ModelProto::default()
    }
}

/// Pictures to three logits: convolutions, a sum around one, pooling, a product with a bias.
fn pictures(opset: i64) -> ModelProto {
    let same = || vec![ints("pads", &[1, 1, 1, 1])];
    let node_list = vec![
        node("Conv", &["x", "w1", "b1"], "c1", same()),
        node("Relu", &["c1"], "r1", Vec::new()),
        node("MaxPool", &["r1"], "p1", vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]),
        node("Conv", &["p1", "w2"], "c2", same()),
        node("Add", &["c2", "p1"], "a", Vec::new()),
        node("Relu", &["a"], "r2", Vec::new()),
        node("GlobalAveragePool", &["r2"], "g", Vec::new()),
        node("Flatten", &["g"], "f", Vec::new()),
        node("Gemm", &["f", "w3", "b3"], "y", vec![int("transB", 1)]),
    ];
    let initializer = vec![
        constant("w1", &[8, 3, 3, 3], 1),
        constant("b1", &[8], 2),
        constant("w2", &[8, 8, 3, 3], 3),
        constant("w3", &[3, 8], 4),
        constant("b3", &[3], 5),
    ];
    let input = vec![value("x", DataType::Float, &[-1, 3, 8, 8])];
    let output = vec![value("y", DataType::Float, &[-1, 3])];
    model(opset, GraphProto { node: node_list, initializer, input, output, ..GraphProto::default() })
}

/// Convolutions, one of them by channel, with norms, factors and shifts behind them.
fn normed(opset: i64) -> ModelProto {
    let same = |group| vec![ints("pads", &[1, 1, 1, 1]), int("group", group)];
    let nodes = vec![
        node("Conv", &["x", "w1"], "c1", same(1)),
        node("BatchNormalization", &["c1", "scale", "shift", "mean", "variance"], "n1", Vec::new()),
        node("Relu", &["n1"], "r1", Vec::new()),
        node("Conv", &["r1", "w2", "b2"], "c2", same(8)),
        node("BatchNormalization", &["c2", "scale", "shift", "mean", "variance"], "n2", Vec::new()),
        node("Mul", &["n2", "factors"], "m2", Vec::new()),
        node("Add", &["one", "m2"], "a2", Vec::new()),
        node("Relu", &["a2"], "r2", Vec::new()),
        node("Conv", &["r2", "w3"], "c3", same(1)),
        node("Add", &["c3", "shifts"], "a3", Vec::new()),
        node("GlobalAveragePool", &["a3"], "g", Vec::new()),
        node("Flatten", &["g"], "f", Vec::new()),
        node("MatMul", &["f", "w4"], "y", Vec::new()),
    ];
    let positive = numbers(8, 6).iter().map(|number| number.abs() + 0.2).collect::<Vec<_>>();
    let initializer = vec![
        constant("w1", &[8, 3, 3, 3], 1),
        constant("w2", &[8, 1, 3, 3], 2),
        constant("w3", &[40, 8, 3, 3], 3),
        constant("b2", &[8], 4),
        constant("scale", &[8], 5),
        constant("shift", &[8], 7),
        constant("mean", &[8], 8),
        tensor("variance", DataType::Float, &[8], bytes_of(&positive)),
        tensor("factors", DataType::Float, &[1, 8, 1, 1], bytes_of(&numbers(8, 9))),
        tensor("one", DataType::Float, &[], bytes_of(&[1.0])),
        tensor("shifts", DataType::Float, &[40, 1, 1], bytes_of(&numbers(40, 10))),
        constant("w4", &[40, 3], 11),
    ];
    let input = vec![value("x", DataType::Float, &[-1, 3, 8, 8])];
    let output = vec![value("y", DataType::Float, &[-1, 3])];
    model(opset, GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() })
}

/// Token ids to vectors: a table, products whose weights are shared, a norm in steps, a branch of control flow.
fn texts() -> ModelProto {
    let branch = |operator: &str| GraphProto {
        name: Some(operator.into()),
        node: vec![node(operator, &["h1"], "inner", Vec::new())],
        output: vec![value("inner", DataType::Float, &[-1, 4, 128])],
        ..GraphProto::default()
    };
    let graph = |name: &str, graph: GraphProto| AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph),
        ..AttributeProto::default()
    };
    let to = |kind: DataType| vec![int("to", kind as i64)];
    let either = vec![graph("then_branch", branch("Neg")), graph("else_branch", branch("Identity"))];
    let nodes = vec![
        node("Gather", &["table", "ids"], "e", Vec::new()),
        node("MatMul", &["e", "w"], "h1", Vec::new()),
        node("MatMul", &["h1", "w"], "h2", Vec::new()),
        node("Cast", &["ids"], "mask", to(DataType::Bool)),
        node("ReduceMax", &["h2"], "top", vec![ints("axes", &[2])]),
        node("Cast", &["yes"], "condition", to(DataType::Bool)),
        node("If", &["condition"], "either", either),
        node("Add", &["h2", "either"], "sum", Vec::new()),
        node("Max", &["sum", "low"], "limited", Vec::new()),
        node("Mul", &["limited", "w_row"], "scaled", Vec::new()),
        node("Sub", &["scaled", "top"], "y", Vec::new()),
    ];
    let initializer = vec![
        constant("table", &[64, 128], 1),
        constant("w", &[128, 128], 2),
        tensor("low", DataType::Float, &[], bytes_of(&[-3.0e38])),
        tensor("w_row", DataType::Float, &[128], bytes_of(&numbers(128, 3))),
        tensor("yes", DataType::Int64, &[], 1i64.to_le_bytes().to_vec()),
    ];
    let input = vec![value("ids", DataType::Int64, &[-1, 4])];
    let output = vec![value("y", DataType::Float, &[-1, 4, 128]), value("h1", DataType::Float, &[-1, 4, 128])];
    model(17, GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() })
}

pub(super) fn load(file: PathBuf) -> Box<dyn Session> {
    let folder = file.parent().unwrap().to_owned();
    let settings = SessionSettings {
        device: DeviceSettings { device_type: DeviceType::Cpu, ..DeviceSettings::default() },
        optimization_level: OptimizationLevel::Aggressive,
        intra_threads: 1,
        ..SessionSettings::default()
    };
    let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
    let source = GraphSource { file, text_tower: None, folder, max_file_bytes: 1 << 30 };
    runtime.load(&source, &settings).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn run(session: &mut dyn Session, sample: &[crate::runtime::Input]) -> Vec<Value> {
    let outputs: Vec<usize> = (0..session.outputs().len()).collect();
    session.run(sample, &outputs, &Interrupt::new()).unwrap()
}

/// Samples that fit a graph's inputs.
fn samples(session: &dyn Session) -> Vec<Vec<crate::runtime::Input>> {
    let sample = |seed: u32| {
        let value = |(index, spec): (usize, &crate::tensor::Spec)| {
            let size = |dim: &crate::tensor::Dim| usize::try_from(dim.to_wire()).unwrap_or(2);
            let shape: Vec<usize> = spec.ty.shape().unwrap().iter().map(size).collect();
            let count = shape.iter().product();
            let numbers = numbers(count, seed);
            let tensor = match spec.ty.dtype().unwrap() {
                DType::Int64 => {
                    let ids: Vec<i64> = numbers.iter().map(|number| (number.abs() * 60.0) as i64 + 1).collect();
                    Tensor::from_vec(DType::Int64, shape, ids)
                }
                _ => Tensor::from_vec(DType::Fp32, shape, numbers),
            };
            (index, tensor.unwrap().into())
        };
        session.inputs().iter().enumerate().map(value).collect()
    };
    (10..14).map(sample).collect()
}

/// The form `how` of a model, and how far its answers are from the model's own.
fn rewritten(original: &ModelProto, how: impl Fn(Ranges) -> Rewriting) -> (ModelProto, Rewritten, Drift) {
    let folder = tempfile::tempdir().unwrap();
    let [from, observable, to] = ["from", "observable", "to"].map(|name| folder.path().join(name).join("model.onnx"));
    for file in [&from, &observable, &to] {
        std::fs::create_dir(file.parent().unwrap()).unwrap();
    }
    std::fs::write(&from, original.encode_to_vec()).unwrap();
    let mut first = load(from.clone());
    let samples = samples(&*first);
    let mut how = how(Ranges::default());
    if let Rewriting::StaticInt8(options) = &mut how {
        let names = observable_file(&from, &observable).unwrap();
        options.ranges = calibrate(&mut *load(observable), &samples, &names, &Interrupt::new()).unwrap();
        assert_eq!(options.ranges.len(), names.len());
    }
    let done = rewrite_file(&from, &to, &how).unwrap();
    let mut second = load(to.clone());
    let specs = |session: &dyn Session| format!("{:?} {:?}", session.inputs(), session.outputs());
    assert_eq!(specs(&*first), specs(&*second));
    let outputs = |session: &mut dyn Session| samples.iter().map(|sample| run(session, sample)).collect::<Vec<_>>();
    let drift = drift(&outputs(&mut *first), &outputs(&mut *second)).unwrap();
    (ModelProto::decode(&*std::fs::read(to).unwrap()).unwrap(), done, drift)
}

fn count(model: &ModelProto, operator: &str) -> usize {
    model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type() == operator).count()
}

fn statically(ranges: Ranges) -> Rewriting {
    Rewriting::StaticInt8(StaticOptions { ranges, percentile: None, reduce_range: false })
}

#[track_caller]
fn close(drift: &Drift, cosine: f64) {
    assert!(drift.cosine >= cosine, "{drift:?}");
}

#[test]
fn sixteen_bits_stay_close_and_what_has_none_keeps_its_own() {
    let half = |_| Rewriting::Fp16(Fp16Options::default());
    let (model, done, drift) = rewritten(&pictures(17), half);
    close(&drift, 0.9999);
    assert_eq!((done.left.len(), count(&model, "Cast")), (0, 2), "{done:?}");
    assert!(done.bytes.1 < done.bytes.0);
    let (model, done, drift) = rewritten(&texts(), half);
    close(&drift, 0.9999);
    // `If` and `Max` are kept; a branch takes `h1`, which is also an output, in 32 bits.
    assert_eq!(done.left.values().sum::<usize>(), 2, "{done:?}");
    assert_eq!(done.clamped, 0);
    let table = model.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name() == "table").unwrap();
    assert_eq!(table.data_type(), DataType::Float16 as i32);
}

#[test]
fn numbers_beyond_sixteen_bits_are_clamped_and_counted() {
    let initializer = vec![tensor("w", DataType::Float, &[4], bytes_of(&[1e9, -1e9, 1e-12, f32::INFINITY]))];
    let (input, output) = (vec![value("x", DataType::Float, &[4])], vec![value("y", DataType::Float, &[4])]);
    let nodes = vec![node("Mul", &["x", "w"], "y", Vec::new())];
    let mut model = model(17, GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() });
    let done = rewrite(&mut model, &Rewriting::Fp16(Fp16Options::default())).unwrap();
    assert_eq!(done.clamped, 3);
    let raw = model.graph.unwrap().initializer[0].raw_data().to_vec();
    let halves: Vec<u16> = raw.chunks(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])).collect();
    assert_eq!(halves, [0x7bff, 0xfbff, 1, 0x7c00]);
}

#[test]
fn a_norm_whose_variance_is_too_large_keeps_its_bits() {
    for (variance, left) in [(2.0, 0), (2.5e8, 1)] {
        let one = |name: &str, value: f32| tensor(name, DataType::Float, &[3], bytes_of(&[value; 3]));
        let initializer = vec![one("scale", 900.0), one("shift", 0.5), one("mean", 10.0), one("variance", variance)];
        let nodes = vec![
            node("Relu", &["x"], "r", Vec::new()),
            node("BatchNormalization", &["r", "scale", "shift", "mean", "variance"], "y", Vec::new()),
        ];
        let (input, output) = (vec![value("x", DataType::Float, &[1, 3])], vec![value("y", DataType::Float, &[1, 3])]);
        let original = model(17, GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() });
        let (_, done, drift) = rewritten(&original, |_| Rewriting::Fp16(Fp16Options::default()));
        close(&drift, 0.9999);
        assert_eq!((done.left.len(), done.clamped), (left, 0), "{done:?}");
    }
}

#[test]
fn norms_factors_and_shifts_behind_convolutions_are_folded_in_every_form_but_four_bits() {
    let eager = QuantizeOptions { conv: true, ..QuantizeOptions::default() };
    for opset in [9, 17] {
        for (how, cosine) in [
            (Rewriting::Fp16(Fp16Options::default()), 0.9999),
            (Rewriting::Int8(QuantizeOptions::default()), 0.999),
            (Rewriting::Int8(eager), 0.99),
            (statically(Ranges::default()), 0.99),
        ] {
            let (model, done, drift) = rewritten(&normed(opset), |_| how.clone());
            close(&drift, cosine);
            assert_eq!(count(&model, "BatchNormalization"), 0, "{how:?}");
            assert!(!done.replaced.contains_key("Add") && !done.replaced.contains_key("Mul"), "{done:?}");
            if how != Rewriting::Int8(QuantizeOptions::default()) {
                assert_eq!(done.replaced.get("Conv"), Some(&3), "{done:?}");
            }
        }
    }
}

#[test]
fn norms_are_folded_where_the_data_are_in_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name).join("model.onnx"));
    for file in [&from, &to] {
        std::fs::create_dir(file.parent().unwrap()).unwrap();
    }
    file::write(normed(17), &from, true).unwrap();
    let how = Rewriting::Fp16(Fp16Options::default());
    let done = rewrite_file(&from, &to, &how).unwrap();
    assert_eq!(done.data_files, ["model.onnx.data"]);
    let mut expected = normed(17);
    rewrite(&mut expected, &how).unwrap();
    assert_eq!(file::read(&to).unwrap().model, expected);
    assert_eq!(count(&expected, "BatchNormalization"), 0);
}

#[test]
fn inputs_and_outputs_become_sixteen_bits_where_asked_for() {
    let mut model = pictures(17);
    rewrite(&mut model, &Rewriting::Fp16(Fp16Options { keep_io_types: false })).unwrap();
    assert_eq!(count(&model, "Cast"), 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    std::fs::write(&file, model.encode_to_vec()).unwrap();
    let session = load(file);
    let types = [session.inputs()[0].ty.dtype(), session.outputs()[0].ty.dtype()];
    assert_eq!(types, [Some(DType::Fp16), Some(DType::Fp16)]);
}

#[test]
fn dynamic_bytes_of_products_tables_and_convolutions_stay_close() {
    let (model, done, drift) = rewritten(&texts(), |_| Rewriting::Int8(QuantizeOptions::default()));
    close(&drift, 0.999);
    assert_eq!(done.replaced, [("Gather".to_owned(), 1), ("MatMul".to_owned(), 2)].into());
    let constants = &model.graph.as_ref().unwrap().initializer;
    assert!(!constants.iter().any(|tensor| ["w", "table"].contains(&tensor.name())));
    let eager = QuantizeOptions { conv: true, ..QuantizeOptions::default() };
    let (model, done, drift) = rewritten(&pictures(17), |_| Rewriting::Int8(eager));
    close(&drift, 0.999);
    assert_eq!((done.replaced.get("Conv"), count(&model, "ConvInteger")), (Some(&2), 2));
}

#[test]
fn static_bytes_stay_close_and_reach_from_the_first_convolution_to_the_last_product() {
    for opset in [9, 13, 17] {
        let (model, done, drift) = rewritten(&pictures(opset), statically);
        close(&drift, 0.999);
        let expected = ["Add", "Flatten", "Gemm", "GlobalAveragePool", "MaxPool"].map(|name| (name.to_owned(), 1));
        let expected = expected.into_iter().chain([("Conv".to_owned(), 2)]).collect();
        assert_eq!(done.replaced, expected);
        assert_eq!(count(&model, "Relu"), 0);
    }
    let (model, done, drift) = rewritten(&texts(), statically);
    close(&drift, 0.999);
    assert_eq!(done.replaced, [("Gather".to_owned(), 1), ("MatMul".to_owned(), 2)].into());
    assert_eq!(count(&model, "Gather"), 2, "bytes and their scales");
}

/// Two directions of an `LSTM` with a bias and an initial state, then a table's rows beside it.
fn sounds() -> ModelProto {
    let direction = AttributeProto {
        name: Some("direction".into()),
        r#type: Some(AttributeType::String as i32),
        s: Some("bidirectional".into()),
        ..AttributeProto::default()
    };
    let nodes = vec![
        node("LSTM", &["x", "w", "r", "b", "", "h", "h"], "steps", vec![int("hidden_size", 16), direction]),
        node("Neg", &["steps"], "y", Vec::new()),
    ];
    let initializer = vec![
        constant("w", &[2, 64, 24], 1),
        constant("r", &[2, 64, 16], 2),
        constant("b", &[2, 128], 3),
        tensor("h", DataType::Float, &[2, 1, 16], bytes_of(&numbers(32, 4))),
    ];
    let input = vec![value("x", DataType::Float, &[-1, 1, 24])];
    let output = vec![value("y", DataType::Float, &[-1, 2, 1, 16])];
    model(17, GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() })
}

#[test]
fn dynamic_bytes_of_an_lstm_stay_close() {
    let (model, done, drift) = rewritten(&sounds(), |_| Rewriting::Int8(QuantizeOptions::default()));
    close(&drift, 0.999);
    assert_eq!((done.replaced.get("LSTM"), count(&model, "DynamicQuantizeLSTM")), (Some(&1), 1));
    let graph = model.graph.unwrap();
    assert!(!graph.initializer.iter().any(|tensor| ["w", "r"].contains(&tensor.name())));
    assert_eq!(model.opset_import.iter().filter(|set| set.domain() == "com.microsoft").count(), 1);
    let mut computed = sounds();
    computed.graph.as_mut().unwrap().node[0].input[2] = "x".into();
    let error = rewrite(&mut computed, &Rewriting::Int8(QuantizeOptions::default())).unwrap_err().to_string();
    assert!(error.contains("its weights are computed"), "{error}");
}

#[test]
fn what_was_not_observed_is_not_guessed() {
    let error = rewrite(&mut pictures(17), &statically(Ranges::default())).unwrap_err().to_string();
    assert!(error.contains("was not observed"), "{error}");
}

#[test]
fn four_bits_of_large_constants_stay_close() {
    for symmetric in [true, false] {
        let options = Int4Options { symmetric, ..Int4Options::default() };
        let (model, done, drift) = rewritten(&texts(), |_| Rewriting::Int4(options));
        close(&drift, 0.98);
        assert_eq!((done.replaced.get("MatMul"), count(&model, "MatMulNBits")), (Some(&2), 2));
        // Both take the same weights.
        let names = model.graph.as_ref().unwrap().initializer.iter().filter(|tensor| tensor.name().contains("int4"));
        assert_eq!(names.count(), if symmetric { 2 } else { 3 });
    }
    let error = rewrite(&mut pictures(17), &Rewriting::Int4(Int4Options::default())).unwrap_err().to_string();
    assert!(error.contains("its constant is small"), "{error}");
}

#[test]
fn a_default_that_a_caller_may_override_is_no_constant() {
    let mut original = pictures(17);
    let graph = original.graph.as_mut().unwrap();
    graph.input.extend([value("w1", DataType::Float, &[8, 3, 3, 3]), value("w3", DataType::Float, &[3, 8])]);
    let mut model = original.clone();
    let eager = QuantizeOptions { conv: true, ..QuantizeOptions::default() };
    let done = rewrite(&mut model, &Rewriting::Int8(eager)).unwrap();
    assert_eq!(done.replaced, [("Conv".to_owned(), 1)].into());
    assert_eq!(model.graph.unwrap().input.len(), 3);
    // Before such defaults, all constants are listed.
    original.ir_version = Some(3);
    let done = rewrite(&mut original, &Rewriting::Int8(eager)).unwrap();
    assert_eq!(done.replaced, [("Conv".to_owned(), 2), ("Gemm".to_owned(), 1)].into());
    assert_eq!(original.graph.unwrap().input.len(), 1);
}

#[test]
fn names_notes_and_metadata_stay() {
    use crate::runtime::onnx::proto::StringStringEntryProto;
    let mut original = pictures(17);
    let entry = StringStringEntryProto { key: Some("author".into()), value: Some("somebody".into()) };
    original.metadata_props = vec![entry];
    original.doc_string = Some("what it is for".into());
    original.producer_name = Some("a tool".into());
    let eager = QuantizeOptions { conv: true, ..QuantizeOptions::default() };
    for how in [Rewriting::Int8(eager), Rewriting::Fp16(Fp16Options::default())] {
        let (model, ..) = rewritten(&original, |_| how.clone());
        let kept = |model: &ModelProto| {
            let graph = model.graph.as_ref().unwrap();
            let names = [graph.name.clone(), model.doc_string.clone(), model.producer_name.clone()];
            (names, model.metadata_props.clone(), graph.input.clone(), graph.output.clone())
        };
        assert_eq!(kept(&model), kept(&original));
    }
}

#[test]
fn sixteen_bit_weights_behind_a_cast_are_weights() {
    let weights: Vec<u8> =
        numbers(128 * 128, 7).iter().flat_map(|&x| half::f16::from_f32(x / 11.0).to_le_bytes()).collect();
    let initializer = vec![tensor("w16", DataType::Float16, &[128, 128], weights)];
    let nodes = vec![
        node("Cast", &["w16"], "w", vec![int("to", DataType::Float as i64)]),
        node("MatMul", &["x", "w"], "y", Vec::new()),
    ];
    let (input, output) =
        (vec![value("x", DataType::Float, &[-1, 128])], vec![value("y", DataType::Float, &[-1, 128])]);
    let original = model(17, GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() });
    for (how, cosine) in [
        (Rewriting::Int8(QuantizeOptions::default()), 0.999),
        (Rewriting::Int4(Int4Options::default()), 0.98),
        (statically(Ranges::default()), 0.999),
        (Rewriting::Fp16(Fp16Options::default()), 0.9999),
    ] {
        let (model, done, drift) = rewritten(&original, |_| how.clone());
        close(&drift, cosine);
        assert_eq!(done.replaced, [("MatMul".to_owned(), 1)].into());
        let has_original = model.graph.unwrap().initializer.iter().any(|tensor| tensor.name() == "w16");
        assert_eq!(has_original, matches!(how, Rewriting::Fp16(_)), "{how:?}");
    }
}

#[test]
fn broken_graphs_are_errors_or_stay_broken() {
    let mut state = 1u32;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % bound.max(1)
    };
    let mut tried = 0;
    for base in [pictures(9), pictures(17), normed(17), texts(), sounds()] {
        for _ in 0..300 {
            let mut model = base.clone();
            let graph = model.graph.as_mut().unwrap();
            for _ in 0..=next(3) {
                let (nodes, constants) = (graph.node.len(), graph.initializer.len());
                match next(8) {
                    0 => graph.initializer[next(constants)].dims = vec![i64::MAX, 3],
                    1 => graph.initializer[next(constants)].dims = vec![-1, 0],
                    2 => graph.initializer[next(constants)].raw_data = None,
                    3 => graph.node[next(nodes)].input.clear(),
                    4 => graph.node[next(nodes)].output.clear(),
                    5 => graph.node.rotate_left(1),
                    6 => {
                        let name = graph.node[next(nodes)].output.first().cloned().unwrap_or_default();
                        let node = next(nodes);
                        graph.node[node].input = vec![name.clone(); 3];
                    }
                    _ => graph.initializer[next(constants)].data_type = Some(next(20) as i32),
                }
            }
            let mut ranges = Ranges::default();
            for name in static_int8::observed(model.clone()).unwrap_or_default() {
                ranges.observe(&name, &Tensor::from_vec(DType::Fp32, vec![1], vec![1f32]).unwrap().into());
            }
            for how in [
                Rewriting::Int8(QuantizeOptions { conv: true, ..QuantizeOptions::default() }),
                statically(ranges),
                Rewriting::Fp16(Fp16Options { keep_io_types: next(2) == 0 }),
                Rewriting::Int4(Int4Options { symmetric: next(2) == 0, ..Int4Options::default() }),
            ] {
                let mut model = model.clone();
                tried += usize::from(rewrite(&mut model, &how).is_ok());
                assert!(model.encoded_len() < 1 << 20);
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

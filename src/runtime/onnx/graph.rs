//! Reads an ONNX file before ONNX Runtime does: refuses external data outside the model's folder, and collects what the
//! session cannot tell (parameters, opset, which values have no declared shape).
//!
//! Invariant: nothing named by the file is opened; external files are only looked at (`lstat`). Weights are not copied.

use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto, type_proto,
};
use crate::runtime::{GraphFacts, GraphSource, RuntimeError};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

/// What was read of a graph file.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) facts: GraphFacts,
    /// Inputs and outputs that declare no shape at all; the session reports those as rank 0.
    pub(super) unshaped: HashSet<String>,
    /// The inputs that a run must give, with their sizes; `None` where one is free, or all are.
    pub(super) shapes: Vec<(String, Option<Vec<Option<u64>>>)>,
    /// The same of the outputs.
    pub(super) output_shapes: Vec<(String, Option<Vec<Option<u64>>>)>,
    pub(super) convolves: bool,
}

/// Reads and checks the graph file of `source`.
///
/// # Errors
/// Where it cannot be read, is too large, is not ONNX, or names external data that is refused.
pub(super) fn read(source: &GraphSource) -> Result<Graph, RuntimeError> {
    let io = |error| RuntimeError::Io { path: source.file.clone(), source: error };
    let metadata = std::fs::metadata(&source.file).map_err(io)?;
    if !metadata.is_file() {
        return Err(RuntimeError::Graph("the model is not a regular file".to_owned()));
    }
    if metadata.len() > source.max_file_bytes {
        return Err(RuntimeError::Graph(format!(
            "the model file has {} bytes, more than max_model_bytes = {}",
            metadata.len(),
            source.max_file_bytes
        )));
    }
    let bytes = Bytes::from(std::fs::read(&source.file).map_err(io)?);
    refuse_lookalikes(&bytes)?;
    // The ORT format is a flatbuffer with its identifier at byte 4.
    if bytes.get(4..8) == Some(b"ORTM") {
        let facts = GraphFacts { format: "ort", size_bytes: metadata.len(), ..GraphFacts::default() };
        let unknown = || vec![(String::new(), None)];
        let (shapes, output_shapes) = (unknown(), unknown());
        return Ok(Graph { facts, unshaped: HashSet::new(), shapes, output_shapes, convolves: false });
    }
    let model = ModelProto::decode(bytes).map_err(|error| {
        let problem = error.to_string();
        let reason =
            if problem.contains("recursion limit") { "it is nested too deeply" } else { "it is damaged or cut off" };
        RuntimeError::Graph(format!("the model file is not a readable ONNX graph: {reason}"))
    })?;
    let folder = source.file.parent().unwrap_or(&source.folder);
    collect(&model, folder, metadata.len())
}

/// Names the files that people put under a model's name by accident.
fn refuse_lookalikes(bytes: &[u8]) -> Result<(), RuntimeError> {
    let start = bytes.get(..64.min(bytes.len())).unwrap_or_default();
    let problem = if bytes.is_empty() {
        "the model file is empty"
    } else if start.starts_with(b"version https://git-lfs") {
        "the model file is a Git LFS pointer, not the model: fetch it with `git lfs pull`"
    } else if start.starts_with(b"PK\x03\x04") {
        "the model file is a zip archive (a PyTorch checkpoint?), not ONNX: export it to ONNX first"
    } else if start.starts_with(b"\x80\x02") || start.starts_with(b"\x80\x04") {
        "the model file is a Python pickle, which is never loaded: export the model to ONNX first"
    } else if start.trim_ascii_start().starts_with(b"<") {
        "the model file is an HTML or XML page, not ONNX: was a download redirected?"
    } else {
        return Ok(());
    };
    Err(RuntimeError::Graph(problem.to_owned()))
}

fn collect(model: &ModelProto, folder: &Path, file_bytes: u64) -> Result<Graph, RuntimeError> {
    let Some(graph) = &model.graph else {
        return Err(RuntimeError::Graph("the model file has no graph".to_owned()));
    };
    let mut tensors = Tensors::default();
    tensors.graph(graph);
    for function in &model.functions {
        tensors.nodes(&function.node);
    }
    let mut external = BTreeMap::new();
    for tensor in &tensors.all {
        if is_external(tensor) {
            let (location, bytes) = check_external(tensor, folder)?;
            external.insert(location, bytes);
        }
    }
    let text = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
    let unshaped = graph.input.iter().chain(&graph.output).filter(|value| has_no_shape(value));
    let unshaped: Vec<String> = unshaped.map(|value| value.name().to_owned()).collect();
    let facts = GraphFacts {
        format: "onnx",
        opset: model.opset_import.iter().find(|set| matches!(set.domain(), "" | "ai.onnx")).map(|set| set.version()),
        ir_version: model.ir_version,
        producer: text(&model.producer_name).map(|name| match text(&model.producer_version) {
            Some(version) => format!("{name} {version}"),
            None => name,
        }),
        graph_name: text(&graph.name),
        description: text(&model.doc_string),
        custom: model.metadata_props.iter().map(|entry| (entry.key().to_owned(), entry.value().to_owned())).collect(),
        num_parameters: Some(tensors.initializers.iter().map(|tensor| elements(tensor)).sum()),
        repeats_weights: tensors.repeats_weights,
        size_bytes: file_bytes.saturating_add(external.values().sum()),
        precision: precision(&tensors.initializers),
        external_files: external.into_keys().collect(),
        operators: operators(&graph.node),
        unshaped: unshaped.clone(),
        bounded: model.functions.is_empty() && graph.node.iter().all(is_bounded),
        ..GraphFacts::default()
    };
    let defaults: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let given = graph.input.iter().filter(|value| !defaults.contains(value.name()));
    Ok(Graph {
        facts,
        unshaped: unshaped.into_iter().collect(),
        shapes: given.map(|value| (value.name().to_owned(), sizes(value))).collect(),
        output_shapes: graph.output.iter().map(|value| (value.name().to_owned(), sizes(value))).collect(),
        convolves: tensors.convolves,
    })
}

/// The sizes that an input declares, `None` for a free one.
fn sizes(value: &ValueInfoProto) -> Option<Vec<Option<u64>>> {
    use super::proto::tensor_shape_proto::dimension;
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref()?.value.as_ref() else { return None };
    let size = |value: Option<&dimension::Value>| match value {
        Some(dimension::Value::DimValue(size)) => u64::try_from(*size).ok(),
        Some(dimension::Value::DimParam(_)) | None => None,
    };
    Some(tensor.shape.as_ref()?.dim.iter().map(|dim| size(dim.value.as_ref())).collect())
}

/// Operators whose work follows from the shapes of their inputs: no control flow, and none that make a tensor of a size that is
/// itself computed (`Range`, `Expand`, `Tile`, `Resize`, …). A short list on purpose: what is not on it is only not sped up.
const BOUNDED: [&str; 68] = [
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "AveragePool",
    "BatchNormalization",
    "Binarizer",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "FeatureVectorizer",
    "Flatten",
    "Floor",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "Imputer",
    "InstanceNormalization",
    "LabelEncoder",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LinearClassifier",
    "LinearRegressor",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "Normalizer",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "SVMClassifier",
    "Scaler",
    "Sigmoid",
    "Softmax",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

fn is_bounded(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx" | "ai.onnx.ml") && BOUNDED.binary_search(&node.op_type()).is_ok()
}

/// Counts nodes by operator; those of other domains than ONNX's own have theirs before the name.
fn operators(nodes: &[NodeProto]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        let name = match node.domain() {
            "" | "ai.onnx" => node.op_type().to_owned(),
            domain => format!("{domain}.{}", node.op_type()),
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

fn has_no_shape(value: &ValueInfoProto) -> bool {
    match value.r#type.as_ref().and_then(|ty| ty.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor.shape.is_none(),
        _ => false,
    }
}

/// All tensors of a graph, its sub-graphs and attributes.
#[derive(Default)]
struct Tensors<'a> {
    all: Vec<&'a TensorProto>,
    initializers: Vec<&'a TensorProto>,
    /// Whether one of the nodes is of [`REPEATING`].
    repeats_weights: bool,
    convolves: bool,
}

/// Operators that use the same weights many times for one row; those of other domains have names made of these.
const REPEATING: [&str; 7] = ["Conv", "RNN", "LSTM", "GRU", "Loop", "Scan", "Attention"];

impl<'a> Tensors<'a> {
    // Recursion is bounded: the decoder refuses messages nested deeper than 100.
    fn graph(&mut self, graph: &'a GraphProto) {
        let sparse = graph.sparse_initializer.iter().flat_map(|tensor| tensor.values.iter().chain(&tensor.indices));
        self.all.extend(graph.initializer.iter().chain(sparse));
        self.initializers.extend(&graph.initializer);
        self.nodes(&graph.node);
    }

    fn nodes(&mut self, nodes: &'a [NodeProto]) {
        for node in nodes {
            self.convolves |= node.op_type().contains("Conv");
            self.repeats_weights |= REPEATING.iter().any(|operator| node.op_type().contains(operator));
            node.attribute.iter().for_each(|attribute| self.attribute(attribute));
        }
    }

    fn attribute(&mut self, attribute: &'a AttributeProto) {
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        let sparse = sparse.flat_map(|tensor| tensor.values.iter().chain(&tensor.indices));
        self.all.extend(attribute.t.iter().chain(&attribute.tensors).chain(sparse));
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            self.graph(graph);
        }
    }
}

fn elements(tensor: &TensorProto) -> u64 {
    tensor.dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(u64::try_from(dim).ok()?)).unwrap_or(0)
}

/// The element type that most weights have, in lower case.
fn precision(initializers: &[&TensorProto]) -> Option<String> {
    let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
    for tensor in initializers {
        let count = counts.entry(tensor.data_type()).or_default();
        *count = count.saturating_add(elements(tensor));
    }
    let (&code, _) = counts.iter().max_by_key(|(_, count)| **count)?;
    let name = match tensor_proto::DataType::try_from(code).ok()? {
        tensor_proto::DataType::Float => "fp32".to_owned(),
        tensor_proto::DataType::Float16 => "fp16".to_owned(),
        tensor_proto::DataType::Double => "fp64".to_owned(),
        tensor_proto::DataType::Bfloat16 => "bf16".to_owned(),
        other => other.as_str_name().to_lowercase(),
    };
    Some(name)
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location() == tensor_proto::DataLocation::External || !tensor.external_data.is_empty()
}

/// Checks one tensor's external data and gives its location and the file's size.
fn check_external(tensor: &TensorProto, folder: &Path) -> Result<(String, u64), RuntimeError> {
    let refuse = |problem: &str| {
        Err(RuntimeError::Graph(format!(
            "external data refused: tensor '{}' {problem}; external data must be a regular file in the model's own folder",
            tensor.name().chars().take(80).collect::<String>()
        )))
    };
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let known: BTreeSet<&str> = ["location", "offset", "length", "checksum", "basepath"].into();
    if let Some(odd) = tensor.external_data.iter().find(|entry| !known.contains(entry.key())) {
        return refuse(&format!("has the unknown entry '{}'", odd.key().chars().take(40).collect::<String>()));
    }
    let Some(location) = entry("location").filter(|location| !location.is_empty()) else {
        return refuse("names no location");
    };
    if location.contains(['\\', '\0', '*', ':']) || location.contains("_ORT_MEM_ADDR_") {
        return refuse("has a location with characters that are not allowed");
    }
    let path = Path::new(location);
    if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return refuse("points outside the model's folder");
    }
    // Every step is looked at without following it: a linked folder leads outside as well as a linked file.
    let mut at = folder.to_owned();
    let mut metadata = None;
    for part in path.components() {
        at.push(part);
        match std::fs::symlink_metadata(&at) {
            Ok(found) if found.is_symlink() => return refuse("goes through a link"),
            Ok(found) => metadata = Some(found),
            Err(_) => return refuse(&format!("names the file '{}', which is missing", path.display())),
        }
    }
    let Some(metadata) = metadata.filter(std::fs::Metadata::is_file) else {
        return refuse("does not name a regular file");
    };
    if metadata.nlink() > 1 {
        return refuse("names a file with several hard links");
    }
    let number = |key: &str, default: u64| entry(key).map_or(Some(default), |text| text.parse::<u64>().ok());
    let (Some(offset), Some(length)) = (number("offset", 0), number("length", 0)) else {
        return refuse("has an offset or length that is not a number");
    };
    if offset.checked_add(length).is_none_or(|end| end > metadata.len()) {
        return refuse("has an offset and length beyond the file's end");
    }
    Ok((location.to_owned(), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::super::proto::{StringStringEntryProto, TypeProto};
    use super::*;

    fn source(folder: &Path, bytes: &[u8]) -> GraphSource {
        let file = folder.join("model.onnx");
        std::fs::write(&file, bytes).unwrap();
        GraphSource { file, text_tower: None, folder: folder.to_owned(), max_file_bytes: 1 << 20 }
    }

    fn external(entries: &[(&str, &str)]) -> Vec<u8> {
        let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
            key: Some((*key).to_owned()),
            value: Some((*value).to_owned()),
        };
        let tensor = TensorProto {
            dims: vec![2],
            data_type: Some(1),
            name: Some("w".into()),
            data_location: Some(1),
            external_data: entries.iter().map(entry).collect(),
            ..TensorProto::default()
        };
        let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[track_caller]
    fn check(entries: &[(&str, &str)], expected: &str) {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("model");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::write(outer.path().join("secret"), [0; 64]).unwrap();
        std::fs::write(folder.join("w.bin"), [0; 8]).unwrap();
        std::fs::write(folder.join("sub/w.bin"), [0; 8]).unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        std::os::unix::fs::symlink("..", folder.join("linked")).unwrap();
        std::fs::hard_link(outer.path().join("secret"), folder.join("hard")).unwrap();
        let result = read(&source(&folder, &external(entries)));
        let text = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(if expected.is_empty() { text.is_empty() } else { text.contains(expected) }, "{entries:?}: {text}");
        assert!(!text.contains(outer.path().to_str().unwrap()), "{text}");
    }

    #[test]
    fn the_list_of_bounded_operators_can_be_searched() {
        assert!(BOUNDED.is_sorted());
        for missing in ["Loop", "If", "Scan", "Range", "Expand", "Tile", "Resize", "NonZero", "Pad", "ConstantOfShape"]
        {
            assert!(BOUNDED.binary_search(&missing).is_err(), "{missing}");
        }
    }

    /// F01.
    #[test]
    fn external_data_outside_the_folder_is_refused() {
        check(&[("location", "w.bin")], "");
        check(&[("location", "./sub/w.bin"), ("offset", "0"), ("length", "8")], "");
        check(&[("location", "../secret")], "outside");
        check(&[("location", "sub/../../secret")], "outside");
        check(&[("location", "/etc/passwd")], "outside");
        check(&[("location", "..\\secret")], "characters");
        check(&[("location", "*/_ORT_MEM_ADDR_/*")], "characters");
        check(&[("location", "_ORT_MEM_ADDR_")], "characters");
        check(&[("location", "a\0b")], "characters");
        check(&[("location", "link")], "link");
        check(&[("location", "linked/secret")], "link");
        check(&[("location", "hard")], "hard links");
        check(&[("location", "sub")], "regular file");
        check(&[("location", "missing.bin")], "missing");
        check(&[("location", "")], "no location");
        check(&[("offset", "0")], "no location");
        check(&[("location", "w.bin"), ("offset", "4"), ("length", "8")], "beyond");
        check(&[("location", "w.bin"), ("offset", "18446744073709551615"), ("length", "8")], "beyond");
        check(&[("location", "w.bin"), ("offset", "-1")], "not a number");
        check(&[("location", "w.bin"), ("surprise", "1")], "unknown entry");
    }

    /// F33.
    #[test]
    fn files_that_are_not_onnx_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for (bytes, expected) in [
            (&b""[..], "empty"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
            (b"PK\x03\x04aaaa", "zip archive"),
            (b"\x80\x02aaaa", "pickle"),
            (b"<!DOCTYPE html>", "HTML"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "damaged"),
        ] {
            let error = read(&source(folder.path(), bytes)).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// F33.
    #[test]
    fn a_graph_nested_too_deeply_is_refused() {
        // Built as bytes from the inside out: encoding such a value recursively would be the problem it tests.
        let field = |tag: u8, content: &[u8]| {
            let mut bytes = vec![tag << 3 | 2];
            prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
            bytes.extend_from_slice(content);
            bytes
        };
        let mut graph = Vec::new();
        for _ in 0..1000 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        let folder = tempfile::tempdir().unwrap();
        let error = read(&source(folder.path(), &field(7, &graph))).err().unwrap().to_string();
        assert!(error.contains("nested too deeply"), "{error}");
    }

    #[test]
    fn parameters_and_missing_shapes_are_found() {
        let weight = TensorProto { dims: vec![3, 4], data_type: Some(1), ..TensorProto::default() };
        let tensor_type = type_proto::Tensor { elem_type: Some(1), shape: None };
        let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor_type)), ..TypeProto::default() };
        let input = ValueInfoProto { name: Some("x".into()), r#type: Some(ty), ..ValueInfoProto::default() };
        let graph = GraphProto { initializer: vec![weight], input: vec![input], ..GraphProto::default() };
        let bytes = ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec();
        let folder = tempfile::tempdir().unwrap();
        let read = read(&source(folder.path(), &bytes)).ok().unwrap();
        assert_eq!(read.facts.num_parameters, Some(12));
        assert_eq!(read.facts.precision.as_deref(), Some("fp32"));
        assert!(read.unshaped.contains("x") && !read.facts.repeats_weights);
    }

    #[test]
    fn operators_that_use_their_weights_often_are_found_at_any_depth() {
        let node = |op: &str| NodeProto { op_type: Some(op.into()), ..NodeProto::default() };
        let check = |node: NodeProto, expected: bool| {
            let graph = GraphProto { node: vec![node], ..GraphProto::default() };
            let bytes = ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec();
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(read(&source(folder.path(), &bytes)).ok().unwrap().facts.repeats_weights, expected);
        };
        for operator in ["Conv", "ConvTranspose", "QLinearConv", "LSTM", "Loop", "MultiHeadAttention"] {
            check(node(operator), true);
        }
        check(node("Gemm"), false);
        let branch = GraphProto { node: vec![node("Conv")], ..GraphProto::default() };
        let attribute = AttributeProto { g: Some(branch), ..AttributeProto::default() };
        check(NodeProto { attribute: vec![attribute], ..node("If") }, true);
    }
}

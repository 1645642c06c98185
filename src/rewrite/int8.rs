//! Dynamic quantisation to eight bits, in standard operators (opset 11) that ONNX Runtime has integer kernels for.
//!
//! `Y = X·W` becomes `Y = (Xq − z)·Wq · (sx·sw)`, with `Xq, sx, z = DynamicQuantizeLinear(X)` and for each column of the
//! constant `W` the scale `sw = max|W| / 127` and `Wq = round(W / sw)`. An activation that several products take is
//! quantised once. Only the main graph is rewritten, not the branches of control flow.

use super::{QuantizeOptions, RewriteError, Rewritten};
use crate::runtime::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto, tensor_proto::DataType,
};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};

/// The opset in which `DynamicQuantizeLinear` came.
const OPSET_MIN: i64 = 11;

/// Rewrites the products of `model`.
///
/// # Errors
/// Where it has no graph, an older opset, or no product that could be replaced.
pub(super) fn quantize(model: &mut ModelProto, options: QuantizeOptions) -> Result<Rewritten, RewriteError> {
    let opset =
        model.opset_import.iter().find(|set| matches!(set.domain(), "" | "ai.onnx")).map_or(0, |set| set.version());
    if opset < OPSET_MIN {
        return Err(RewriteError::Graph(format!(
            "the graph is of opset {opset}; quantising takes {OPSET_MIN} or later"
        )));
    }
    let Some(graph) = &mut model.graph else { return Err(RewriteError::Graph("the file has no graph".into())) };
    let mut work = Work::new(graph, if options.reduce_range { 63 } else { 127 });
    for node in std::mem::take(&mut graph.node) {
        work.rewrite(node);
    }
    let Work { nodes, made, done, .. } = work;
    if done.replaced.is_empty() {
        let why: Vec<String> = done.left.iter().map(|(why, number)| format!("{number}: {why}")).collect();
        let why = if why.is_empty() { "it has none".to_owned() } else { why.join("; ") };
        return Err(RewriteError::Graph(format!("no product of the graph can be quantised ({why})")));
    }
    graph.node = nodes;
    graph.initializer.extend(made);
    drop_unused(graph);
    Ok(done)
}

/// A constant of two dimensions.
struct Matrix {
    rows: usize,
    columns: usize,
    /// Row by row.
    values: Vec<f32>,
}

/// What stands for a product's operands.
struct Product {
    activation: String,
    weights: String,
    transposed: bool,
    bias: Option<String>,
}

struct Work {
    /// Constants of the graph by their names.
    constants: HashMap<String, TensorProto>,
    names: HashSet<String>,
    /// The largest quantised weight.
    most: i32,
    nodes: Vec<NodeProto>,
    /// The new constants.
    made: Vec<TensorProto>,
    /// What an activation, or a constant and whether it is transposed, was quantised to.
    activations: HashMap<String, [String; 3]>,
    weights: HashMap<(String, bool), Option<[String; 2]>>,
    done: Rewritten,
}

impl Work {
    fn new(graph: &GraphProto, most: i32) -> Work {
        let mut constants: HashMap<String, TensorProto> =
            graph.initializer.iter().map(|tensor| (tensor.name().to_owned(), tensor.clone())).collect();
        for node in graph.node.iter().filter(|node| node.op_type() == "Constant" && is_standard(node)) {
            let value = node.attribute.iter().find(|attribute| attribute.name() == "value");
            if let (Some(name), Some(tensor)) = (node.output.first(), value.and_then(|value| value.t.as_ref())) {
                constants.insert(name.clone(), tensor.clone());
            }
        }
        let mut names = HashSet::new();
        names.extend(graph.input.iter().chain(&graph.output).map(|value| value.name().to_owned()));
        names.extend(constants.keys().cloned());
        for node in &graph.node {
            names.extend(node.input.iter().chain(&node.output).cloned());
            names.insert(node.name().to_owned());
        }
        Work {
            constants,
            names,
            most,
            nodes: Vec::with_capacity(graph.node.len()),
            made: Vec::new(),
            activations: HashMap::new(),
            weights: HashMap::new(),
            done: Rewritten::default(),
        }
    }

    fn rewrite(&mut self, node: NodeProto) {
        let product = match (is_standard(&node), node.op_type()) {
            (true, "MatMul") => matmul(&node),
            (true, "Gemm") => gemm(&node),
            _ => return self.nodes.push(node),
        };
        let quantised = product.and_then(|product| match self.weights(&product.weights, product.transposed) {
            Some(weights) => Ok((product, weights)),
            None if self.constants.contains_key(&product.weights) => {
                Err("its constant is not of two dimensions and 32 bits")
            }
            None => Err("both its operands are computed"),
        });
        match quantised {
            Ok((product, weights)) => {
                *self.done.replaced.entry(node.op_type().to_owned()).or_default() += 1;
                self.replace(&node, product, weights);
            }
            Err(why) => {
                *self.done.left.entry(why.to_owned()).or_default() += 1;
                self.nodes.push(node);
            }
        }
    }

    fn replace(&mut self, node: &NodeProto, product: Product, [weights, weight_scales]: [String; 2]) {
        let [activation, scale, zero] = self.activation(&product.activation);
        let output = node.output.first().cloned().unwrap_or_default();
        let base = if node.name().is_empty() { output.clone() } else { node.name().to_owned() };
        let sums = self.name(&base, "sums");
        self.node("MatMulInteger", &base, &[&activation, &weights, &zero], &[&sums], Vec::new());
        let numbers = self.name(&base, "numbers");
        let to = AttributeProto {
            name: Some("to".into()),
            r#type: Some(attribute_proto::AttributeType::Int as i32),
            i: Some(DataType::Float as i64),
            ..AttributeProto::default()
        };
        self.node("Cast", &base, &[&sums], &[&numbers], vec![to]);
        let scales = self.name(&base, "scales");
        self.node("Mul", &base, &[&scale, &weight_scales], &[&scales], Vec::new());
        match product.bias {
            None => self.node("Mul", &base, &[&numbers, &scales], &[&output], Vec::new()),
            Some(bias) => {
                let scaled = self.name(&base, "scaled");
                self.node("Mul", &base, &[&numbers, &scales], &[&scaled], Vec::new());
                self.node("Add", &base, &[&scaled, &bias], &[&output], Vec::new());
            }
        }
    }

    /// The values of an activation as bytes, their scale and their zero.
    fn activation(&mut self, name: &str) -> [String; 3] {
        if let Some(known) = self.activations.get(name) {
            return known.clone();
        }
        let made = ["quantized", "scale", "zero"].map(|part| self.name(name, part));
        let [quantized, scale, zero] = &made;
        self.node("DynamicQuantizeLinear", name, &[name], &[quantized, scale, zero], Vec::new());
        self.activations.insert(name.to_owned(), made.clone());
        made
    }

    /// A constant as bytes, and the scales of its columns; `None` where it is no matrix of 32-bit numbers.
    fn weights(&mut self, name: &str, transposed: bool) -> Option<[String; 2]> {
        let key = (name.to_owned(), transposed);
        if let Some(known) = self.weights.get(&key) {
            return known.clone();
        }
        let matrix = self.constants.get(name).and_then(|tensor| Matrix::of(tensor, transposed));
        let made = matrix.map(|matrix| {
            let names = [self.name(name, "quantized"), self.name(name, "scales")];
            let (bytes, scales) = matrix.quantized(self.most);
            let [quantized, scale] = &names;
            self.made.push(tensor(quantized, DataType::Int8, &[matrix.rows, matrix.columns], bytes));
            let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            self.made.push(tensor(scale, DataType::Float, &[matrix.columns], scales));
            names
        });
        self.weights.insert(key, made.clone());
        made
    }

    /// A name that nothing in the graph has.
    fn name(&mut self, base: &str, part: &str) -> String {
        let plain = format!("{base}_{part}");
        let mut name = plain.clone();
        let mut number = 1;
        while !self.names.insert(name.clone()) {
            number += 1;
            name = format!("{plain}_{number}");
        }
        name
    }

    fn node(&mut self, operator: &str, base: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) {
        let name = self.name(base, operator);
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.nodes.push(NodeProto {
            name: Some(name),
            op_type: Some(operator.to_owned()),
            input: owned(inputs),
            output: owned(outputs),
            attribute,
            ..NodeProto::default()
        });
    }
}

fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

fn matmul(node: &NodeProto) -> Result<Product, &'static str> {
    match node.input.as_slice() {
        [activation, weights] => {
            Ok(Product { activation: activation.clone(), weights: weights.clone(), transposed: false, bias: None })
        }
        _ => Err("it has not two operands"),
    }
}

fn gemm(node: &NodeProto) -> Result<Product, &'static str> {
    let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name() == name);
    let is_one = |name: &str| attribute(name).is_none_or(|attribute| attribute.f() == 1.0);
    let is_set = |name: &str| attribute(name).is_some_and(|attribute| attribute.i() != 0);
    let (Some(activation), Some(weights)) = (node.input.first(), node.input.get(1)) else {
        return Err("it has not two operands");
    };
    let bias = node.input.get(2).filter(|name| !name.is_empty());
    if !is_one("alpha") || (bias.is_some() && !is_one("beta")) || is_set("transA") {
        return Err("it scales or transposes what is computed");
    }
    Ok(Product {
        activation: activation.clone(),
        weights: weights.clone(),
        transposed: is_set("transB"),
        bias: bias.cloned(),
    })
}

impl Matrix {
    /// `None` where the tensor is none of 32-bit numbers and two dimensions.
    fn of(tensor: &TensorProto, transposed: bool) -> Option<Matrix> {
        let [rows, columns] = tensor.dims.as_slice() else { return None };
        let (rows, columns) = (usize::try_from(*rows).ok()?, usize::try_from(*columns).ok()?);
        if tensor.data_type() != DataType::Float as i32 || rows == 0 || columns == 0 {
            return None;
        }
        let values: Vec<f32> = match &tensor.raw_data {
            Some(raw) => raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            None => tensor.float_data.clone(),
        };
        // Weights that are no numbers have no scale.
        if Some(values.len()) != rows.checked_mul(columns) || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        if !transposed {
            return Some(Matrix { rows, columns, values });
        }
        let column = |at: usize| values.iter().skip(at).step_by(columns).copied();
        Some(Matrix { rows: columns, columns: rows, values: (0..columns).flat_map(column).collect() })
    }

    /// The bytes row by row, and the scale of each column.
    fn quantized(&self, most: i32) -> (Vec<u8>, Vec<f32>) {
        let mut largest = vec![0f32; self.columns];
        for row in self.values.chunks_exact(self.columns) {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = largest.max(value.abs());
            }
        }
        // A column of nothing, or of less than can be divided by.
        let scale = |largest: f32| Some(largest / most as f32).filter(|scale| scale.is_normal()).unwrap_or(1.0);
        let scales: Vec<f32> = largest.into_iter().map(scale).collect();
        let bytes = self.values.chunks_exact(self.columns).flat_map(|row| {
            let byte = |(value, scale): (&f32, &f32)| {
                let level = (value / scale).round_ties_even() as i32;
                (level.clamp(-most, most) as i8).cast_unsigned()
            };
            row.iter().zip(&scales).map(byte)
        });
        (bytes.collect(), scales)
    }
}

fn tensor(name: &str, kind: DataType, dims: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(kind as i32),
        dims: dims.iter().map(|&size| size as i64).collect(),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    }
}

/// Removes constants that nothing takes any more, also from the inputs, where old files list them.
fn drop_unused(graph: &mut GraphProto) {
    let mut used: HashSet<String> = graph.output.iter().map(|value| value.name().to_owned()).collect();
    let mut graphs: Vec<&GraphProto> = vec![&*graph];
    while let Some(graph) = graphs.pop() {
        for node in &graph.node {
            used.extend(node.input.iter().cloned());
            graphs.extend(node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)));
        }
        // What a branch gives may be a value of the graph around it.
        used.extend(graph.output.iter().map(|value| value.name().to_owned()));
    }
    let unused: HashSet<String> =
        graph.initializer.iter().map(|tensor| tensor.name().to_owned()).filter(|name| !used.contains(name)).collect();
    graph.initializer.retain(|tensor| !unused.contains(tensor.name()));
    graph.input.retain(|value| !unused.contains(value.name()));
    graph.value_info.retain(|value| !unused.contains(value.name()));
    graph.node.retain(|node| {
        node.op_type() != "Constant" || !is_standard(node) || node.output.iter().any(|name| used.contains(name))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::proto::OperatorSetIdProto;

    fn floats(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
        tensor(name, DataType::Float, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
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

    fn model(opset: i64, nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> ModelProto {
        ModelProto {
            opset_import: vec![OperatorSetIdProto { version: Some(opset), ..OperatorSetIdProto::default() }],
            graph: Some(GraphProto { node: nodes, initializer: constants, ..GraphProto::default() }),
            ..ModelProto::default()
        }
    }

    fn operators(model: &ModelProto) -> Vec<&str> {
        model.graph.as_ref().unwrap().node.iter().map(|node| node.op_type()).collect()
    }

    #[test]
    fn products_by_constants_are_replaced_and_what_they_share_is_quantised_once() {
        let weights = || floats("w", &[2, 2], &[1.0, -0.5, 0.5, 0.0]);
        let nodes = vec![
            node("MatMul", &["x", "w"], "a", Vec::new()),
            node("MatMul", &["x", "w"], "b", Vec::new()),
            node("MatMul", &["a", "b"], "y", Vec::new()),
        ];
        let mut rewritten = model(17, nodes, vec![weights()]);
        let done = quantize(&mut rewritten, QuantizeOptions::default()).unwrap();
        assert_eq!(done.replaced, [("MatMul".to_owned(), 2)].into());
        assert_eq!(done.left, [("both its operands are computed".to_owned(), 1)].into());
        let product = ["MatMulInteger", "Cast", "Mul", "Mul"];
        let expected = [&["DynamicQuantizeLinear"][..], &product, &product, &["MatMul"]].concat();
        assert_eq!(operators(&rewritten), expected);
        let constants = &rewritten.graph.as_ref().unwrap().initializer;
        let names: Vec<&str> = constants.iter().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["w_quantized", "w_scales"]);
        assert_eq!(constants[0].raw_data().iter().map(|&byte| byte as i8).collect::<Vec<i8>>(), [127, -127, 64, 0]);
        let names: Vec<&String> = rewritten.graph.as_ref().unwrap().node.iter().flat_map(|node| &node.output).collect();
        assert_eq!(names.len(), names.iter().collect::<HashSet<_>>().len(), "{names:?}");
    }

    #[test]
    fn a_gemm_keeps_its_bias_and_its_transposed_weights() {
        let transposed = AttributeProto { name: Some("transB".into()), i: Some(1), ..AttributeProto::default() };
        let nodes = vec![node("Gemm", &["x", "w", "c"], "y", vec![transposed])];
        let constants = vec![floats("w", &[1, 3], &[1.0, 1.9, -4.0]), floats("c", &[1], &[7.0])];
        let mut rewritten = model(11, nodes, constants);
        quantize(&mut rewritten, QuantizeOptions { reduce_range: true }).unwrap();
        assert_eq!(operators(&rewritten), ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"]);
        let constants = &rewritten.graph.as_ref().unwrap().initializer;
        let weights = constants.iter().find(|tensor| tensor.name() == "w_quantized").unwrap();
        assert_eq!(weights.dims, [3, 1]);
        assert_eq!(weights.raw_data().iter().map(|&byte| byte as i8).collect::<Vec<i8>>(), [16, 30, -63]);
        assert!(constants.iter().any(|tensor| tensor.name() == "c"));
    }

    #[test]
    fn what_cannot_be_quantised_is_said() {
        let check = |mut model: ModelProto, expected: &str| {
            let error = quantize(&mut model, QuantizeOptions::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let product = || vec![node("MatMul", &["x", "w"], "y", Vec::new())];
        check(model(10, product(), vec![floats("w", &[1, 1], &[1.0])]), "opset 10");
        check(model(17, product(), vec![floats("w", &[1, 1, 1], &[1.0])]), "two dimensions");
        check(model(17, product(), vec![floats("w", &[1, 1], &[f32::NAN])]), "two dimensions");
        check(model(17, product(), Vec::new()), "operands are computed");
        check(model(17, vec![node("Relu", &["x"], "y", Vec::new())], Vec::new()), "it has none");
        check(ModelProto::default(), "opset 0");
        let scaled = AttributeProto { name: Some("alpha".into()), f: Some(2.0), ..AttributeProto::default() };
        check(model(17, vec![node("Gemm", &["x", "w"], "y", vec![scaled])], Vec::new()), "scales or transposes");
    }
}

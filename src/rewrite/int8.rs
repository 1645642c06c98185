//! Dynamic quantisation to eight bits, in standard operators (opset 11) that ONNX Runtime has integer kernels for.
//!
//! `Y = X·W` becomes `Y = (Xq − z)·Wq · (sx·sw)`, with `Xq, sx, z = DynamicQuantizeLinear(X)` and for each column of the
//! constant `W` the scale `sw = max|W| / 127` and `Wq = round(W / sw)`. An activation that several products take is
//! quantised once.

use super::editor::{Editor, base_of};
use super::node::{bytes_of, int, is_standard};
use super::opset;
use super::product::{Matrix, Product};
use super::{QuantizeOptions, RewriteError, Rewritten};
use crate::runtime::onnx::proto::{ModelProto, NodeProto, tensor_proto::DataType};
use std::collections::HashMap;

/// The opset in which `DynamicQuantizeLinear` came.
const OPSET_MIN: i64 = 11;

/// Rewrites the products of `model`.
///
/// # Errors
/// Where it has no graph, an older opset, or no product that could be replaced.
pub(super) fn quantize(model: &mut ModelProto, options: QuantizeOptions) -> Result<Rewritten, RewriteError> {
    opset::at_least(model, OPSET_MIN, "quantising")?;
    let (editor, nodes) = Editor::open(model)?;
    let most = if options.reduce_range { 63 } else { 127 };
    let mut work = Work { editor, most, activations: HashMap::new(), weights: HashMap::new() };
    for node in nodes {
        work.rewrite(node);
    }
    work.editor.close(model, "product of the graph can be quantised")
}

struct Work {
    editor: Editor,
    /// The largest quantised weight.
    most: i32,
    /// What an activation, or a constant and whether it is transposed, was quantised to.
    activations: HashMap<String, [String; 3]>,
    weights: HashMap<(String, bool), Option<[String; 2]>>,
}

impl Work {
    fn rewrite(&mut self, node: NodeProto) {
        if !is_standard(&node) || !matches!(node.op_type(), "MatMul" | "Gemm") {
            return self.editor.nodes.push(node);
        }
        let quantised =
            Product::of(&node).and_then(|product| match self.weights(&product.weights, product.transposed) {
                Some(weights) => Ok((product, weights)),
                None if self.editor.constants.contains_key(&product.weights) => {
                    Err("its constant is not of two dimensions and 32 bits")
                }
                None => Err("both its operands are computed"),
            });
        match quantised {
            Ok((product, weights)) => {
                self.editor.replaced(&node);
                self.replace(&node, &product, weights);
            }
            Err(why) => self.editor.left(node, why),
        }
    }

    fn replace(&mut self, node: &NodeProto, product: &Product, [weights, weight_scales]: [String; 2]) {
        let [activation, scale, zero] = self.activation(&product.activation);
        let output = node.output.first().cloned().unwrap_or_default();
        let base = base_of(node);
        let edit = &mut self.editor;
        let sums = edit.name(&base, "sums");
        edit.node("MatMulInteger", &base, &[&activation, &weights, &zero], &[&sums], Vec::new());
        let numbers = edit.name(&base, "numbers");
        edit.node("Cast", &base, &[&sums], &[&numbers], vec![int("to", DataType::Float as i64)]);
        let scales = edit.name(&base, "scales");
        edit.node("Mul", &base, &[&scale, &weight_scales], &[&scales], Vec::new());
        match &product.bias {
            None => edit.node("Mul", &base, &[&numbers, &scales], &[&output], Vec::new()),
            Some(bias) => {
                let scaled = edit.name(&base, "scaled");
                edit.node("Mul", &base, &[&numbers, &scales], &[&scaled], Vec::new());
                edit.node("Add", &base, &[&scaled, bias], &[&output], Vec::new());
            }
        }
    }

    /// The values of an activation as bytes, their scale and their zero.
    fn activation(&mut self, name: &str) -> [String; 3] {
        if let Some(known) = self.activations.get(name) {
            return known.clone();
        }
        let made = ["quantized", "scale", "zero"].map(|part| self.editor.name(name, part));
        let [quantized, scale, zero] = &made;
        self.editor.node("DynamicQuantizeLinear", name, &[name], &[quantized, scale, zero], Vec::new());
        self.activations.insert(name.to_owned(), made.clone());
        made
    }

    /// A constant as bytes, and the scales of its columns; `None` where it is no matrix of 32-bit numbers.
    fn weights(&mut self, name: &str, transposed: bool) -> Option<[String; 2]> {
        let key = (name.to_owned(), transposed);
        if let Some(known) = self.weights.get(&key) {
            return known.clone();
        }
        let matrix = self.editor.constants.get(name).and_then(|tensor| Matrix::of(tensor, transposed));
        let made = matrix.map(|matrix| {
            let (bytes, scales) = matrix.quantized(self.most);
            let dims = [matrix.rows, matrix.columns];
            let quantized = self.editor.constant(name, "quantized", DataType::Int8, &dims, bytes);
            let scale = self.editor.constant(name, "scales", DataType::Float, &[matrix.columns], bytes_of(&scales));
            [quantized, scale]
        });
        self.weights.insert(key, made.clone());
        made
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::tensor;
    use super::*;
    use crate::runtime::onnx::proto::{AttributeProto, GraphProto, OperatorSetIdProto, TensorProto};
    use std::collections::HashSet;

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

//! Dynamic quantisation to eight bits, in standard operators (opset 11) that ONNX Runtime has integer kernels for.
//!
//! `Y = X·W` becomes `Y = (Xq − z)·Wq · (sx·sw)`, with `Xq, sx, z = DynamicQuantizeLinear(X)` and for each column of the
//! constant `W` the scale `sw = max|W| / 127` and `Wq = round(W / sw)`. An activation that several products take is
//! quantised once. Convolutions go the same way where asked for, with a scale for each output channel, what is behind them
//! folded in by [`super::norms`]. Tables of `Gather` are
//! [`super::table`]'s, `LSTM` is [`super::lstm`]'s.

use super::editor::{Editor, base_of};
use super::node::{bytes_of, dims, floats, input, int, is_standard};
use super::product::{Matrix, Product, quantized};
use super::table::Tables;
use super::{QuantizeOptions, RewriteError, Rewritten};
use super::{lstm, norms, opset};
use crate::runtime::onnx::proto::{ModelProto, NodeProto, tensor_proto::DataType};
use std::collections::HashMap;

/// The opset in which `DynamicQuantizeLinear` came.
const OPSET_MIN: i64 = 11;

/// Rewrites the products of `model`.
///
/// # Errors
/// Where it has no graph, an older opset, or no product that could be replaced.
pub(super) fn quantize(model: &mut ModelProto, options: QuantizeOptions) -> Result<Rewritten, RewriteError> {
    opset::raise(model, OPSET_MIN, "quantising")?;
    norms::fold(model, f32::MAX)?;
    let (mut editor, nodes) = Editor::open(model)?;
    editor.fold(&nodes);
    let most = if options.reduce_range { 63 } else { 127 };
    let mut work = Work {
        tables: Tables::of(&editor, &nodes),
        editor,
        options,
        most,
        activations: HashMap::new(),
        weights: HashMap::new(),
        lstm: false,
    };
    for node in nodes {
        work.rewrite(node);
    }
    let Work { editor, lstm, .. } = work;
    let done = editor.close(model, "product of the graph can be quantised")?;
    if lstm {
        opset::import(model, lstm::DOMAIN);
    }
    Ok(done)
}

struct Work {
    editor: Editor,
    options: QuantizeOptions,
    tables: Tables,
    /// The largest quantised weight.
    most: i32,
    /// What an activation, or a constant and whether it is transposed, was quantised to.
    activations: HashMap<String, [String; 3]>,
    weights: HashMap<(String, bool), Option<[String; 2]>>,
    /// Whether one became ONNX Runtime's.
    lstm: bool,
}

impl Work {
    fn rewrite(&mut self, node: NodeProto) {
        match node.op_type() {
            _ if !is_standard(&node) => return self.editor.nodes.push(node),
            "MatMul" | "Gemm" => {}
            "Conv" if self.options.conv => return self.rewrite_convolution(node),
            "LSTM" => return self.rewrite_lstm(node),
            "Gather" if self.options.gather => return self.tables.rewrite(&mut self.editor, node),
            _ => return self.editor.nodes.push(node),
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

    fn rewrite_lstm(&mut self, node: NodeProto) {
        match lstm::rewrite(&mut self.editor, &node, self.most) {
            Ok(()) => {
                self.lstm = true;
                self.editor.replaced(&node);
            }
            Err(why) => self.editor.left(node, why),
        }
    }

    fn rewrite_convolution(&mut self, node: NodeProto) {
        match self.convolution(&node) {
            Ok(()) => self.editor.replaced(&node),
            Err(why) => self.editor.left(node, why),
        }
    }

    fn convolution(&mut self, node: &NodeProto) -> Result<(), &'static str> {
        let (Some(activation), Some(name)) = (input(node, 0), input(node, 1)) else {
            return Err("it has not two operands");
        };
        let tensor = self.editor.constants.get(name).ok_or("both its operands are computed")?;
        let dims = dims(tensor).filter(|dims| dims.len() > 2).ok_or("its weights have no window")?;
        let values = floats(tensor).filter(|values| !values.is_empty() && values.iter().all(|value| value.is_finite()));
        let values = values.ok_or("its weights are not of 32 bits")?;
        let channels = dims.first().copied().unwrap_or_default();
        let bias = match input(node, 2) {
            None => None,
            Some(name) => {
                let bias = self.editor.constants.get(name).and_then(floats).filter(|bias| bias.len() == channels);
                Some((name, bias.ok_or("its bias is computed, or not of 32 bits")?))
            }
        };
        // What there is for each channel spreads over the window's dimensions.
        let mut of_channels = vec![1; dims.len() - 1];
        if let Some(first) = of_channels.first_mut() {
            *first = channels;
        }
        let output = node.output.first().cloned().unwrap_or_default();
        let base = base_of(node);
        let [quantised, scale, zero] = self.activation(activation);
        let (bytes, scales) = quantized(&values, &dims, 0, self.most, |_| 0.0);
        let edit = &mut self.editor;
        let weights = edit.constant(name, "quantized", DataType::Int8, &dims, bytes);
        let weight_scales = edit.constant(name, "scales", DataType::Float, &of_channels, bytes_of(&scales));
        let [sums, numbers, scales] = ["sums", "numbers", "scales"].map(|part| edit.name(&base, part));
        let attributes = node.attribute.clone();
        edit.node("ConvInteger", &base, &[&quantised, &weights, &zero], &[&sums], attributes);
        edit.node("Cast", &base, &[&sums], &[&numbers], vec![int("to", DataType::Float as i64)]);
        edit.node("Mul", &base, &[&scale, &weight_scales], &[&scales], Vec::new());
        match bias {
            None => edit.node("Mul", &base, &[&numbers, &scales], &[&output], Vec::new()),
            Some((name, bias)) => {
                let bias = edit.constant(name, "bias", DataType::Float, &of_channels, bytes_of(&bias));
                let scaled = edit.name(&base, "scaled");
                edit.node("Mul", &base, &[&numbers, &scales], &[&scaled], Vec::new());
                edit.node("Add", &base, &[&scaled, &bias], &[&output], Vec::new());
            }
        }
        Ok(())
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
            let dims = [matrix.rows, matrix.columns];
            let (bytes, scales) = quantized(&matrix.values, &dims, 1, self.most, |_| 0.0);
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
        quantize(&mut rewritten, QuantizeOptions { reduce_range: true, ..QuantizeOptions::default() }).unwrap();
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
        check(model(6, product(), vec![floats("w", &[1, 1], &[1.0])]), "opset 6");
        check(model(17, product(), vec![floats("w", &[1, 1, 1], &[1.0])]), "two dimensions");
        check(model(17, product(), vec![floats("w", &[1, 1], &[f32::NAN])]), "two dimensions");
        check(model(17, product(), Vec::new()), "operands are computed");
        check(model(17, vec![node("Relu", &["x"], "y", Vec::new())], Vec::new()), "it has none");
        check(ModelProto::default(), "opset 0");
        let scaled = AttributeProto { name: Some("alpha".into()), f: Some(2.0), ..AttributeProto::default() };
        check(model(17, vec![node("Gemm", &["x", "w"], "y", vec![scaled])], Vec::new()), "scales or transposes");
    }
}

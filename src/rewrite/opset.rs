//! The version of the standard operators that a graph is written in, and how an older graph is brought to a later one.

use super::editor::{Editor, base_of};
use super::node::{attribute, float_of, input, int, int_of, is_standard};
use super::{RewriteError, Rewritten};
use crate::runtime::onnx::proto::{AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, tensor_proto::DataType};

/// What a graph is raised to: here `DequantizeLinear` learnt a scale for each channel.
const RAISED: i64 = 13;
/// Below, operators spread their operands in another way.
const RAISED_FROM: i64 = 7;

/// Operators that mean in opset 13 what they meant in 7, or when they came.
const SAME: [&str; 110] = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "Cast",
    "Ceil",
    "Compress",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "DynamicQuantizeLinear",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RNN",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "ReverseSequence",
    "Round",
    "Selu",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Sqrt",
    "Sub",
    "Sum",
    "Tan",
];
/// The rest of [`SAME`].
const SAME_TOO: [&str; 6] = ["Tanh", "ThresholdedRelu", "Tile", "Transpose", "Where", "Xor"];

/// 0 where the model names none.
pub(super) fn of(model: &ModelProto) -> i64 {
    model.opset_import.iter().find(|set| matches!(set.domain(), "" | "ai.onnx")).map_or(0, |set| set.version())
}

/// Says that the model has operators of `domain`, of its first version, where it does not say so yet.
pub(super) fn import(model: &mut ModelProto, domain: &str) {
    if !model.opset_import.iter().any(|set| set.domain() == domain) {
        model.opset_import.push(OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(1) });
    }
}

/// Brings the model to opset 13 where it is older than `version`, which is at most 13.
///
/// # Errors
/// Where that cannot be done with the same meaning.
pub(super) fn raise(model: &mut ModelProto, version: i64, what: &str) -> Result<(), RewriteError> {
    let found = of(model);
    if found >= version {
        return Ok(());
    }
    let cannot = |why: String| {
        RewriteError::Graph(format!(
            "the graph is of opset {found}; {what} takes {version} or later, and it cannot be raised: {why}"
        ))
    };
    if found < RAISED_FROM {
        return Err(cannot(format!("it is older than opset {RAISED_FROM}")));
    }
    if !model.functions.is_empty() {
        return Err(cannot("it has functions of its own".to_owned()));
    }
    let (editor, nodes) = Editor::open(model)?;
    let mut raising = Raising { editor, from: found };
    for node in nodes {
        raising.rewrite(node).map_err(&cannot)?;
    }
    let Raising { mut editor, .. } = raising;
    // Nothing of this is told: it is no replacement that anybody asked for.
    editor.done = Rewritten { replaced: [(String::new(), 1)].into(), ..Rewritten::default() };
    editor.close(model, "operator")?;
    for set in &mut model.opset_import {
        if matches!(set.domain(), "" | "ai.onnx") {
            set.version = Some(RAISED);
        }
    }
    Ok(())
}

struct Raising {
    editor: Editor,
    from: i64,
}

impl Raising {
    fn rewrite(&mut self, mut node: NodeProto) -> Result<(), String> {
        let operator = node.op_type().to_owned();
        if node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty()) {
            return Err("it has control flow".to_owned());
        }
        let same = SAME.contains(&operator.as_str()) || SAME_TOO.contains(&operator.as_str());
        if !is_standard(&node) || same {
            self.editor.nodes.push(node);
            return Ok(());
        }
        match operator.as_str() {
            "Squeeze" | "Unsqueeze" | "ReduceSum" => self.ints_to_input(&mut node, "axes", 1),
            "Split" => self.ints_to_input(&mut node, "split", 1),
            "Slice" if self.from < 10 => {
                for (name, at) in [("starts", 1), ("ends", 2), ("axes", 3)] {
                    self.ints_to_input(&mut node, name, at);
                }
            }
            "Slice" => {}
            "Clip" if self.from < 11 => {
                for (name, default, at) in [("min", f32::MIN, 1), ("max", f32::MAX, 2)] {
                    self.float_to_input(&mut node, name, default, at);
                }
            }
            "Pad" if self.from < 11 => {
                self.ints_to_input(&mut node, "pads", 1);
                self.float_to_input(&mut node, "value", 0.0, 2);
            }
            "Clip" | "Pad" => {}
            "BatchNormalization" if int_of(&node, "spatial", 1) == 1 && node.output.len() == 1 => {
                node.attribute.retain(|attribute| attribute.name() != "spatial");
            }
            "Dropout" if node.output.iter().skip(1).all(String::is_empty) => {
                node.attribute.retain(|attribute| attribute.name() == "seed");
                node.output.truncate(1);
            }
            "TopK" | "Resize" if self.from >= 11 => {}
            "Softmax" | "LogSoftmax" | "Hardmax" => return self.softmax(node),
            _ => return Err(format!("{operator} has another meaning there")),
        }
        self.editor.nodes.push(node);
        Ok(())
    }

    fn set_input(node: &mut NodeProto, at: usize, name: String) {
        while node.input.len() <= at {
            node.input.push(String::new());
        }
        if let Some(slot) = node.input.get_mut(at) {
            *slot = name;
        }
    }

    fn ints_to_input(&mut self, node: &mut NodeProto, name: &str, at: usize) {
        let Some(values) = attribute(node, name).map(|attribute| attribute.ints.clone()) else { return };
        node.attribute.retain(|attribute| attribute.name() != name);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let made = self.editor.constant(&base_of(node), name, DataType::Int64, &[values.len()], bytes);
        Self::set_input(node, at, made);
    }

    fn float_to_input(&mut self, node: &mut NodeProto, name: &str, default: f32, at: usize) {
        let value = float_of(node, name, default);
        node.attribute.retain(|attribute| attribute.name() != name);
        let made = self.editor.constant(&base_of(node), name, DataType::Float, &[], value.to_le_bytes().to_vec());
        Self::set_input(node, at, made);
    }

    /// Before, all axes from `axis` on were one; that is said by flattening and shaping back.
    fn softmax(&mut self, mut node: NodeProto) -> Result<(), String> {
        let axis = int_of(&node, "axis", 1);
        node.attribute.retain(|attribute| attribute.name() != "axis");
        node.attribute.push(int("axis", -1));
        let (Some(from), Some(to)) = (input(&node, 0), node.output.first()) else {
            return Err(format!("a {} has no operands", node.op_type()));
        };
        if axis != -1 {
            let (base, from, to) = (base_of(&node), from.to_owned(), to.clone());
            let names = ["shape", "flat", "flat_result"].map(|part| self.editor.name(&base, part));
            let [shape, flat, result] = &names;
            let axis: AttributeProto = int("axis", axis);
            self.editor.node("Shape", &base, &[&from], &[shape], Vec::new());
            self.editor.node("Flatten", &base, &[&from], &[flat], vec![axis]);
            node.input = vec![flat.clone()];
            node.output = vec![result.clone()];
            self.editor.nodes.push(node);
            self.editor.node("Reshape", &base, &[result, shape], &[&to], Vec::new());
        } else {
            self.editor.nodes.push(node);
        }
        Ok(())
    }
}

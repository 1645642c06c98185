//! Which tensors hold numbers of which type, as far as a rule for their operator or the file itself says.

use super::node::{attribute, input, int_of, is_standard};
use crate::runtime::onnx::proto::{
    GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType, type_proto::Value,
};
use std::collections::HashMap;

/// Types of tensors, by their names. What is not here is not known, or is no tensor.
#[derive(Default)]
pub(super) struct Kinds(HashMap<String, i32>);

impl Kinds {
    /// Of `graph`, whose nodes are `nodes`, in their order.
    pub(super) fn of(graph: &GraphProto, nodes: &[NodeProto]) -> Kinds {
        let mut kinds = Kinds::default();
        for value in graph.value_info.iter().chain(&graph.output).chain(&graph.input) {
            if let Some(kind) = of_value(value) {
                kinds.0.insert(value.name().to_owned(), kind);
            }
        }
        kinds.0.extend(graph.initializer.iter().map(|tensor| (tensor.name().to_owned(), tensor.data_type())));
        for node in nodes {
            for (index, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                if let Some(kind) = kinds.of_output(node, index) {
                    kinds.0.insert(name.clone(), kind);
                }
            }
        }
        kinds
    }

    pub(super) fn get(&self, name: &str) -> Option<i32> {
        self.0.get(name).copied()
    }

    pub(super) fn is_float(&self, name: &str) -> bool {
        self.get(name) == Some(DataType::Float as i32)
    }

    /// By the rule of the operator.
    fn of_output(&self, node: &NodeProto, index: usize) -> Option<i32> {
        if !is_standard(node) {
            return match (node.domain(), node.op_type(), index) {
                ("com.microsoft", operator, 0) if MICROSOFT.contains(&operator) => self.get(input(node, 0)?),
                _ => None,
            };
        }
        let first = || self.get(input(node, 0)?);
        let int64 = Some(DataType::Int64 as i32);
        match (node.op_type(), index) {
            ("Cast", _) => i32::try_from(int_of(node, "to", 0)).ok(),
            ("CastLike" | "Where", _) => self.get(input(node, 1)?),
            ("OneHot", _) => self.get(input(node, 2)?),
            ("Constant" | "ConstantOfShape", _) => {
                let value = |name: &str| attribute(node, name).is_some();
                match attribute(node, "value") {
                    Some(value) => value.t.as_ref().map(TensorProto::data_type),
                    None if value("value_float") || value("value_floats") => Some(DataType::Float as i32),
                    None if value("value_int") || value("value_ints") => int64,
                    None if node.op_type() == "ConstantOfShape" => Some(DataType::Float as i32),
                    None => None,
                }
            }
            (
                "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" | "And" | "Or" | "Not" | "Xor"
                | "IsNaN" | "IsInf",
                _,
            ) => Some(DataType::Bool as i32),
            ("Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" | "NonMaxSuppression", _) => int64,
            ("MaxPool" | "TopK", 1) | ("Unique", 1..) => int64,
            ("Dropout", 1) => Some(DataType::Bool as i32),
            ("LayerNormalization", 1..) => Some(DataType::Float as i32),
            ("MatMulInteger" | "ConvInteger", _) => Some(DataType::Int32 as i32),
            ("DynamicQuantizeLinear", 1) => Some(DataType::Float as i32),
            ("DynamicQuantizeLinear", _) => Some(DataType::Uint8 as i32),
            ("QuantizeLinear", _) => input(node, 2).map_or(Some(DataType::Uint8 as i32), |zero| self.get(zero)),
            ("DequantizeLinear", _) => self.get(input(node, 1)?),
            // What branches and bodies give; a loop's first is whether it goes on.
            ("If", _) => of_value(attribute(node, "then_branch")?.g.as_ref()?.output.get(index)?),
            ("Loop", _) => of_value(attribute(node, "body")?.g.as_ref()?.output.get(index + 1)?),
            ("Scan", _) => of_value(attribute(node, "body")?.g.as_ref()?.output.get(index)?),
            (operator, _) if is_of_one_type(operator) => first(),
            (
                "BitShift" | "CumSum" | "Range" | "Max" | "Min" | "Mod" | "TopK" | "Upsample" | "Unique" | "RoiAlign"
                | "Det" | "GroupNormalization" | "Celu",
                _,
            ) => first(),
            _ => None,
        }
    }
}

/// Operators of ONNX Runtime's own whose first output is of the first input's type.
pub(super) const MICROSOFT: [&str; 6] =
    ["BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "QuickGelu", "SkipLayerNormalization"];

/// Standard operators whose outputs are of the first input's type, and whose other floating-point inputs are of it too; each
/// takes numbers of 16 bits.
pub(super) const OF_ONE_TYPE: [&str; 104] = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "Ceil",
    "Clip",
    "Compress",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GridSample",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MaxPool",
    "Mean",
    "MeanVarianceNormalization",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "RNN",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "Round",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
];

fn is_of_one_type(operator: &str) -> bool {
    OF_ONE_TYPE.binary_search(&operator).is_ok()
}

/// The type of a tensor's numbers.
fn of_value(value: &ValueInfoProto) -> Option<i32> {
    match value.r#type.as_ref()?.value.as_ref()? {
        Value::TensorType(tensor) => tensor.elem_type,
        _ => None,
    }
}

/// Says that a tensor of 32-bit numbers is one of 16.
pub(super) fn halve(value: &mut ValueInfoProto) {
    if let Some(Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
        && tensor.elem_type == Some(DataType::Float as i32)
    {
        tensor.elem_type = Some(DataType::Float16 as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_in_order() {
        assert!(OF_ONE_TYPE.is_sorted());
    }
}

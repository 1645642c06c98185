//! `LSTM` by constants becomes ONNX Runtime's `DynamicQuantizeLSTM`, which quantises what comes in step by step.
//!
//! Weights `[directions, 4·hidden, inputs]` and recurrent weights `[directions, 4·hidden, hidden]` become signed bytes with a
//! scale for each gate and unit, `[directions, 4·hidden]`, and lie transposed: `[directions, inputs, 4·hidden]`.

use super::editor::{Editor, base_of};
use super::node::{bytes_of, dims, floats, input, int_of};
use super::product::quantized;
use crate::runtime::onnx::proto::{NodeProto, tensor_proto::DataType};

pub(super) const DOMAIN: &str = "com.microsoft";
/// Inputs of the standard operator, the last of them optional.
const INPUTS: usize = 8;

/// Appends it in bytes, as large as `most` at most.
///
/// # Errors
/// Why it cannot be; nothing is appended then.
pub(super) fn rewrite(editor: &mut Editor, node: &NodeProto, most: i32) -> Result<(), &'static str> {
    if int_of(node, "layout", 0) != 0 {
        return Err("its batch comes first");
    }
    let (Some(weights), Some(recurrent)) = (input(node, 1), input(node, 2)) else {
        return Err("it has not three operands");
    };
    let (weights, recurrent) = (weights.to_owned(), recurrent.to_owned());
    // Both are looked at before anything is made.
    let of_inputs = Bytes::of(editor, &weights, most)?;
    let of_states = Bytes::of(editor, &recurrent, most)?;
    let [weights, weight_scales, weight_zeros] = of_inputs.put(editor, &weights);
    let [recurrent, recurrent_scales, recurrent_zeros] = of_states.put(editor, &recurrent);
    let mut inputs = vec![input(node, 0).unwrap_or_default(), &weights, &recurrent];
    inputs.extend((inputs.len()..INPUTS).map(|at| input(node, at).unwrap_or_default()));
    inputs.extend([&weight_scales, &weight_zeros, &recurrent_scales, &recurrent_zeros].map(String::as_str));
    let outputs: Vec<&str> = node.output.iter().map(String::as_str).collect();
    let mut attributes = node.attribute.clone();
    attributes.retain(|attribute| attribute.name() != "layout");
    editor.node("DynamicQuantizeLSTM", &base_of(node), &inputs, &outputs, attributes);
    if let Some(made) = editor.nodes.last_mut() {
        made.domain = Some(DOMAIN.to_owned());
    }
    Ok(())
}

struct Bytes {
    dims: [usize; 3],
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

impl Bytes {
    fn of(editor: &Editor, name: &str, most: i32) -> Result<Bytes, &'static str> {
        let tensor = editor.constants.get(name).ok_or("its weights are computed")?;
        let (dims, values) = (dims(tensor), floats(tensor));
        let (Some([directions, gates, inputs]), Some(values)) = (dims.as_deref(), values) else {
            return Err("its weights are not of three dimensions and 32 bits");
        };
        if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
            return Err("its weights are not all numbers");
        }
        let dims = [*directions, *gates, *inputs];
        let (rows, scales) = quantized(&values, &[directions * gates, *inputs], 0, most, |_| 0.0);
        let mut bytes = Vec::with_capacity(rows.len());
        for direction in rows.chunks(gates * inputs) {
            for at in 0..*inputs {
                bytes.extend(direction.iter().skip(at).step_by(*inputs));
            }
        }
        Ok(Bytes { dims, bytes, scales })
    }

    /// Makes the constants: bytes, scales, zeros.
    fn put(self, editor: &mut Editor, name: &str) -> [String; 3] {
        let [directions, gates, inputs] = self.dims;
        let of_gates = [directions, gates];
        [
            editor.constant(name, "quantized", DataType::Int8, &[directions, inputs, gates], self.bytes),
            editor.constant(name, "scales", DataType::Float, &of_gates, bytes_of(&self.scales)),
            editor.constant(name, "zeros", DataType::Int8, &of_gates, vec![0; directions * gates]),
        ]
    }
}

//! Products by a constant matrix, whichever operator states them.

use super::node::{float_of, floats, input, int_of};
use crate::runtime::onnx::proto::{NodeProto, TensorProto};

/// What stands for a product's operands.
pub(super) struct Product {
    pub(super) activation: String,
    pub(super) weights: String,
    /// Whether the weights' columns are what is multiplied.
    pub(super) transposed: bool,
    pub(super) bias: Option<String>,
}

impl Product {
    /// Of a `MatMul` or a `Gemm`.
    ///
    /// # Errors
    /// What it does besides, or lacks.
    pub(super) fn of(node: &NodeProto) -> Result<Product, &'static str> {
        let (Some(activation), Some(weights)) = (input(node, 0), input(node, 1)) else {
            return Err("it has not two operands");
        };
        let (activation, weights) = (activation.to_owned(), weights.to_owned());
        if node.op_type() == "MatMul" {
            return Ok(Product { activation, weights, transposed: false, bias: None });
        }
        let bias = input(node, 2).map(str::to_owned);
        let scales = |name: &str| float_of(node, name, 1.0) != 1.0;
        if scales("alpha") || (bias.is_some() && scales("beta")) || int_of(node, "transA", 0) != 0 {
            return Err("it scales or transposes what is computed");
        }
        Ok(Product { activation, weights, transposed: int_of(node, "transB", 0) != 0, bias })
    }
}

/// A constant of two dimensions.
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Row by row.
    pub(super) values: Vec<f32>,
}

impl Matrix {
    /// `None` where the tensor is none of 32-bit numbers and two dimensions.
    pub(super) fn of(tensor: &TensorProto, transposed: bool) -> Option<Matrix> {
        let [rows, columns] = tensor.dims.as_slice() else { return None };
        let (rows, columns) = (usize::try_from(*rows).ok()?, usize::try_from(*columns).ok()?);
        if rows == 0 || columns == 0 {
            return None;
        }
        let values = floats(tensor)?;
        // Weights that are no numbers have no scale.
        if !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        if !transposed {
            return Some(Matrix { rows, columns, values });
        }
        let column = |at: usize| values.iter().skip(at).step_by(columns).copied();
        Some(Matrix { rows: columns, columns: rows, values: (0..columns).flat_map(column).collect() })
    }
}

/// Numbers of the shape `dims` as signed bytes up to `most`, with a scale for each channel, which are along `axis`; no scale is
/// below `least` of its channel.
pub(super) fn quantized(
    values: &[f32],
    dims: &[usize],
    axis: usize,
    most: i32,
    least: impl Fn(usize) -> f32,
) -> (Vec<u8>, Vec<f32>) {
    let channels = dims.get(axis).copied().unwrap_or(1).max(1);
    let inner = dims.iter().skip(axis + 1).product::<usize>().max(1);
    let mut largest = vec![0f32; channels];
    let runs = || values.chunks(inner).zip((0..channels).cycle());
    for (run, channel) in runs() {
        if let Some(largest) = largest.get_mut(channel) {
            *largest = run.iter().fold(*largest, |most, value| most.max(value.abs()));
        }
    }
    // A channel of nothing, or of less than can be divided by, has any scale.
    let usable = |(channel, largest): (usize, f32)| {
        let scale = (largest / most as f32).max(least(channel));
        if scale.is_normal() { scale } else { 1.0 }
    };
    let scales: Vec<f32> = largest.into_iter().enumerate().map(usable).collect();
    let bytes = runs().flat_map(|(run, channel)| {
        let scale = scales.get(channel).copied().unwrap_or(1.0);
        run.iter().map(move |value| {
            let level = (value / scale).round_ties_even() as i32;
            (level.clamp(-most, most) as i8).cast_unsigned()
        })
    });
    let bytes = bytes.collect();
    (bytes, scales)
}

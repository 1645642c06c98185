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

    /// The bytes row by row, and the scale of each column.
    pub(super) fn quantized(&self, most: i32) -> (Vec<u8>, Vec<f32>) {
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

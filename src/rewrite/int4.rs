//! Weights of four bits: products by large constants become ONNX Runtime's `MatMulNBits`, which widens them as it goes.
//!
//! Each column of a constant `[K, N]` is cut into blocks of `block_size` rows with a scale of their own, and a zero where not
//! symmetric. Two weights share a byte, the earlier in the lower half: `B[N, ⌈K/block⌉, block/2]`, scales `[N·⌈K/block⌉]`, zeros
//! two a byte, `[N·⌈⌈K/block⌉/2⌉]`.

use super::editor::{Editor, base_of};
use super::node::{bytes_of, int, is_standard};
use super::product::{Matrix, Product};
use super::{Int4Options, RewriteError, Rewritten, opset};
use crate::runtime::onnx::proto::{ModelProto, NodeProto, tensor_proto::DataType};
use std::collections::HashMap;

const DOMAIN: &str = "com.microsoft";
/// Smaller constants would save little.
const WEIGHTS_MIN: usize = 1 << 14;
/// What stands for zero where blocks are symmetric.
const MIDDLE: f32 = 8.0;

/// # Errors
/// Where it has no graph, or no product that could be replaced.
pub(super) fn quantize(model: &mut ModelProto, options: Int4Options) -> Result<Rewritten, RewriteError> {
    let block = options.block_size;
    if !block.is_power_of_two() || !(16..=256).contains(&block) {
        return Err(RewriteError::Graph(format!("blocks have 16, 32, 64, 128 or 256 weights, not {block}")));
    }
    let (mut editor, nodes) = Editor::open(model)?;
    editor.fold(&nodes);
    let mut work = Work { editor, options, weights: HashMap::new() };
    for node in nodes {
        work.rewrite(node);
    }
    let done = work.editor.close(model, "product of the graph is by a large constant")?;
    opset::import(model, DOMAIN);
    Ok(done)
}

#[derive(Clone)]
struct Weights {
    rows: usize,
    columns: usize,
    /// The packed weights, their scales, and their zeros where they have any.
    names: Vec<String>,
}

struct Work {
    editor: Editor,
    options: Int4Options,
    weights: HashMap<(String, bool), Result<Weights, &'static str>>,
}

impl Work {
    fn rewrite(&mut self, node: NodeProto) {
        if !is_standard(&node) || !matches!(node.op_type(), "MatMul" | "Gemm") {
            return self.editor.nodes.push(node);
        }
        let found = Product::of(&node).and_then(|product| Ok((self.weights(&product)?, product)));
        match found {
            Ok((weights, product)) => {
                self.editor.replaced(&node);
                self.replace(&node, &product, &weights);
            }
            Err(why) => self.editor.left(node, why),
        }
    }

    fn replace(&mut self, node: &NodeProto, product: &Product, weights: &Weights) {
        let output = node.output.first().cloned().unwrap_or_default();
        let base = base_of(node);
        let result = match product.bias {
            Some(_) => self.editor.name(&base, "product"),
            None => output.clone(),
        };
        let mut inputs = vec![product.activation.as_str()];
        inputs.extend(weights.names.iter().map(String::as_str));
        let attributes = vec![
            int("K", weights.rows as i64),
            int("N", weights.columns as i64),
            int("bits", 4),
            int("block_size", self.options.block_size as i64),
            int("accuracy_level", self.options.accuracy_level),
        ];
        self.editor.node("MatMulNBits", &base, &inputs, &[&result], attributes);
        if let Some(made) = self.editor.nodes.last_mut() {
            made.domain = Some(DOMAIN.to_owned());
        }
        if let Some(bias) = &product.bias {
            self.editor.node("Add", &base, &[&result, bias], &[&output], Vec::new());
        }
    }

    fn weights(&mut self, product: &Product) -> Result<Weights, &'static str> {
        let key = (product.weights.clone(), product.transposed);
        if let Some(known) = self.weights.get(&key) {
            return known.clone();
        }
        let made = self.make_weights(product);
        self.weights.insert(key, made.clone());
        made
    }

    fn make_weights(&mut self, product: &Product) -> Result<Weights, &'static str> {
        let name = &product.weights;
        let tensor = self.editor.constants.get(name).ok_or("both its operands are computed")?;
        let matrix =
            Matrix::of(tensor, product.transposed).ok_or("its constant is not of two dimensions and 32 bits")?;
        let (rows, columns) = (matrix.rows, matrix.columns);
        if rows < self.options.block_size || rows * columns < WEIGHTS_MIN {
            return Err("its constant is small");
        }
        let packed = Packed::of(&matrix, self.options.block_size, self.options.symmetric);
        let blocks = rows.div_ceil(self.options.block_size);
        let dims = [columns, blocks, self.options.block_size / 2];
        let mut names = vec![self.editor.constant(name, "int4", DataType::Uint8, &dims, packed.weights)];
        let scales = bytes_of(&packed.scales);
        names.push(self.editor.constant(name, "int4_scales", DataType::Float, &[columns * blocks], scales));
        if !self.options.symmetric {
            let dims = [packed.zeros.len()];
            names.push(self.editor.constant(name, "int4_zeros", DataType::Uint8, &dims, packed.zeros));
        }
        Ok(Weights { rows, columns, names })
    }
}

#[derive(Default)]
struct Packed {
    weights: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

impl Packed {
    fn of(matrix: &Matrix, block_size: usize, symmetric: bool) -> Packed {
        let mut packed = Packed::default();
        let mut block = Vec::with_capacity(block_size);
        for column in 0..matrix.columns {
            let mut zeros = Vec::new();
            for first in (0..matrix.rows).step_by(block_size) {
                let cells = matrix.values.iter().skip(first * matrix.columns + column).step_by(matrix.columns);
                block.clear();
                block.extend(cells.take(block_size));
                let (scale, zero) = if symmetric { symmetric_scale(&block) } else { asymmetric_scale(&block) };
                packed.scales.push(scale);
                zeros.push(zero as u8);
                // What fills up the last block counts as zero.
                block.resize(block_size, 0.0);
                let level = |value: f32| (value / scale + zero).round_ties_even().clamp(0.0, 15.0) as u8;
                packed
                    .weights
                    .extend(block.as_chunks::<2>().0.iter().map(|[low, high]| level(*low) | level(*high) << 4));
            }
            packed.zeros.extend(zeros.chunks(2).map(|pair| match pair {
                [low, high] => low | high << 4,
                [low, ..] => low | (MIDDLE as u8) << 4,
                [] => 0,
            }));
        }
        packed
    }
}

/// The number that is farthest from zero becomes the lowest level, since there is one more of those below the middle.
fn symmetric_scale(block: &[f32]) -> (f32, f32) {
    let farthest = block.iter().copied().fold(0.0f32, |most, next| if next.abs() > most.abs() { next } else { most });
    (usable(farthest / -MIDDLE), MIDDLE)
}

fn asymmetric_scale(block: &[f32]) -> (f32, f32) {
    let (low, high) = block.iter().fold((0f32, 0f32), |(low, high), &next| (low.min(next), high.max(next)));
    let scale = usable(high / 15.0 - low / 15.0);
    (scale, (-low / scale).round_ties_even().clamp(0.0, 15.0))
}

/// A scale that can be divided by.
fn usable(scale: f32) -> f32 {
    if scale.is_normal() { scale } else { 1.0 }
}

//! Large constant tables that `Gather` takes rows of, embeddings, as bytes with a scale for each row.
//!
//! `Y = T[ids]` becomes `Y = Tq[ids] · s[ids]`, with `s[row] = max|T[row]| / 127`. A row's scale is finer than a column's or the
//! table's would be, which one far number anywhere widens; it costs one number a row.

use super::editor::{Editor, base_of};
use super::node::{bytes_of, dims, input, int, int_of, is_standard};
use super::product::{Matrix, quantized};
use crate::runtime::onnx::proto::{NodeProto, tensor_proto::DataType};
use std::collections::{HashMap, HashSet};

/// Smaller tables would save less than their scales and nodes take.
const NUMBERS_MIN: usize = 1 << 12;

pub(super) struct Tables {
    /// Those that nothing but `Gather` takes.
    free: HashSet<String>,
    /// Bytes and scales of tables; `None` where a table has none.
    made: HashMap<String, Option<[String; 2]>>,
}

impl Tables {
    pub(super) fn of(editor: &Editor, nodes: &[NodeProto]) -> Tables {
        let mut free = HashSet::new();
        let mut others: HashSet<&str> = editor.pinned.iter().map(String::as_str).collect();
        for node in nodes {
            for (index, name) in node.input.iter().enumerate() {
                if index == 0 && takes_rows(node) {
                    free.insert(name.clone());
                } else {
                    others.insert(name);
                }
            }
        }
        free.retain(|name| !others.contains(name.as_str()));
        Tables { free, made: HashMap::new() }
    }

    /// Appends a `Gather`, in bytes where it takes rows of a large table.
    pub(super) fn rewrite(&mut self, editor: &mut Editor, node: NodeProto) {
        let is_large = |name: &str| {
            let count = editor.constants.get(name).and_then(dims).map(|dims| dims.iter().product::<usize>());
            count.is_some_and(|count| count >= NUMBERS_MIN)
        };
        // Most take a number of a shape: those are not worth a word.
        let Some(table) = input(&node, 0).filter(|name| takes_rows(&node) && is_large(name)).map(str::to_owned) else {
            return editor.nodes.push(node);
        };
        let Some(indices) = input(&node, 1).map(str::to_owned) else { return editor.nodes.push(node) };
        if !self.free.contains(&table) {
            return editor.left(node, "its table is also taken as it is");
        }
        let Some([table, scales]) = self.bytes(editor, &table) else {
            return editor.left(node, "its table is not of two dimensions and 32 bits");
        };
        editor.replaced(&node);
        let base = base_of(&node);
        let output = node.output.first().cloned().unwrap_or_default();
        let [rows, scale, numbers] = ["rows", "scale", "numbers"].map(|part| editor.name(&base, part));
        editor.node("Gather", &base, &[&table, &indices], &[&rows], Vec::new());
        editor.node("Gather", &base, &[&scales, &indices], &[&scale], Vec::new());
        editor.node("Cast", &base, &[&rows], &[&numbers], vec![int("to", DataType::Float as i64)]);
        editor.node("Mul", &base, &[&numbers, &scale], &[&output], Vec::new());
    }

    fn bytes(&mut self, editor: &mut Editor, name: &str) -> Option<[String; 2]> {
        if let Some(known) = self.made.get(name) {
            return known.clone();
        }
        let matrix = editor.constants.get(name).and_then(|tensor| Matrix::of(tensor, false));
        let made = matrix.map(|Matrix { rows, columns, values }| {
            // Nothing is added up of these, so that they need no room.
            let (bytes, scales) = quantized(&values, &[rows, columns], 0, 127, |_| 0.0);
            let table = editor.constant(name, "quantized", DataType::Int8, &[rows, columns], bytes);
            let scale = editor.constant(name, "scales", DataType::Float, &[rows, 1], bytes_of(&scales));
            [table, scale]
        });
        self.made.insert(name.to_owned(), made.clone());
        made
    }
}

fn takes_rows(node: &NodeProto) -> bool {
    is_standard(node) && node.op_type() == "Gather" && int_of(node, "axis", 0) == 0
}

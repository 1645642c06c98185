//! What every rewriting needs of a graph: its constants, names that nothing has, nodes put in one after another, and an end
//! that drops what nothing takes any more.
//!
//! Only the main graph is edited, not the branches of control flow; what those take keeps its name and its type.

use super::node::{input, int_of, is_standard, reshaped, tensor, unquantized, widened};
use super::{RewriteError, Rewritten};
use crate::runtime::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType,
};
use std::collections::{HashMap, HashSet};

/// From this version of the format on, an initialiser that is listed as an input is a default that a caller may override, and one
/// that is not listed is a constant. Before, all are listed and all are constants.
const IR_WITH_DEFAULTS: i64 = 4;

pub(super) struct Editor {
    /// Tensors of the graph that are the same in every run, by their names.
    pub(super) constants: HashMap<String, TensorProto>,
    /// The graph's nodes so far.
    pub(super) nodes: Vec<NodeProto>,
    /// The new constants.
    pub(super) made: Vec<TensorProto>,
    pub(super) done: Rewritten,
    /// Names that are not the main graph's alone to change: its inputs and outputs, and what branches of control flow take.
    pub(super) pinned: HashSet<String>,
    /// Those of them that branches take.
    pub(super) captured: HashSet<String>,
    names: HashSet<String>,
    /// The last number that was tried for a name.
    numbers: HashMap<String, usize>,
}

impl Editor {
    /// An editor, and the nodes that it has to be given.
    ///
    /// # Errors
    /// Where the model has no graph.
    pub(super) fn open(model: &mut ModelProto) -> Result<(Editor, Vec<NodeProto>), RewriteError> {
        let has_defaults = model.ir_version() >= IR_WITH_DEFAULTS;
        let Some(graph) = &mut model.graph else { return Err(RewriteError::Graph("the file has no graph".into())) };
        let (names, captured) = names(graph);
        let mut pinned = captured.clone();
        pinned.extend(graph.input.iter().chain(&graph.output).map(|value| value.name().to_owned()));
        let mut constants: HashMap<String, TensorProto> =
            graph.initializer.iter().map(|tensor| (tensor.name().to_owned(), tensor.clone())).collect();
        if has_defaults {
            for input in &graph.input {
                constants.remove(input.name());
            }
        }
        for node in graph.node.iter().filter(|node| node.op_type() == "Constant" && is_standard(node)) {
            let value = node.attribute.iter().find(|attribute| attribute.name() == "value");
            if let (Some(name), Some(tensor)) = (node.output.first(), value.and_then(|value| value.t.as_ref())) {
                constants.insert(name.clone(), tensor.clone());
            }
        }
        let nodes = std::mem::take(&mut graph.node);
        let editor = Editor {
            constants,
            nodes: Vec::with_capacity(nodes.len()),
            made: Vec::new(),
            done: Rewritten::default(),
            pinned,
            captured,
            names,
            numbers: HashMap::new(),
        };
        Ok((editor, nodes))
    }

    /// Counts what is computed of constants alone as constants: 16-bit numbers widened, bytes that stand for numbers, and what
    /// has another shape or name.
    pub(super) fn fold<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeProto>) {
        for node in nodes.into_iter().filter(|node| is_standard(node)) {
            let constant = |index| input(node, index).and_then(|name| self.constants.get(name));
            let (Some(from), Some(name)) = (constant(0), node.output.first()) else { continue };
            let made = match node.op_type() {
                "Cast" if int_of(node, "to", 0) == DataType::Float as i64 => widened(from, name),
                "Identity" => Some(TensorProto { name: Some(name.clone()), ..from.clone() }),
                "Reshape" => {
                    constant(1).and_then(|shape| reshaped(from, shape, int_of(node, "allowzero", 0) != 0, name))
                }
                "DequantizeLinear" if input(node, 2).is_none() || constant(2).is_some() => {
                    constant(1).and_then(|scale| unquantized(from, scale, constant(2), int_of(node, "axis", 1), name))
                }
                _ => None,
            };
            if let Some(made) = made {
                self.constants.insert(name.clone(), made);
            }
        }
    }

    /// Puts the nodes and constants into the model, and drops what nothing takes. Gives what was done.
    ///
    /// # Errors
    /// Where nothing was replaced: `what` could not be.
    pub(super) fn close(self, model: &mut ModelProto, what: &str) -> Result<Rewritten, RewriteError> {
        if self.done.replaced.is_empty() {
            let why: Vec<String> = self.done.left.iter().map(|(why, number)| format!("{number}: {why}")).collect();
            let why = if why.is_empty() { "it has none".to_owned() } else { why.join("; ") };
            return Err(RewriteError::Graph(format!("no {what} ({why})")));
        }
        if let Some(graph) = &mut model.graph {
            graph.node = self.nodes;
            if model.ir_version.unwrap_or(0) < IR_WITH_DEFAULTS {
                // New constants are not listed as inputs, so that the old ones must not be either.
                let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
                graph.input.retain(|input| !constants.contains(input.name()));
                model.ir_version = Some(IR_WITH_DEFAULTS);
            }
            graph.initializer.extend(self.made);
            drop_unused(graph);
        }
        Ok(self.done)
    }

    /// A name that nothing in the graph has.
    pub(super) fn name(&mut self, base: &str, part: &str) -> String {
        let plain = format!("{base}_{part}");
        if self.names.insert(plain.clone()) {
            return plain;
        }
        // Many things of one name must not be tried from the start each.
        let number = self.numbers.entry(plain.clone()).or_insert(1);
        loop {
            *number += 1;
            let name = format!("{plain}_{number}");
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Appends a standard operator, named after `base`.
    pub(super) fn node(
        &mut self,
        operator: &str,
        base: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) {
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

    /// Makes a constant named after `base`. Gives its name.
    pub(super) fn constant(
        &mut self,
        base: &str,
        part: &str,
        kind: DataType,
        dims: &[usize],
        bytes: Vec<u8>,
    ) -> String {
        let name = self.name(base, part);
        self.made.push(tensor(&name, kind, dims, bytes));
        name
    }

    pub(super) fn replaced(&mut self, node: &NodeProto) {
        *self.done.replaced.entry(node.op_type().to_owned()).or_default() += 1;
    }

    /// Keeps the node as it is.
    pub(super) fn left(&mut self, node: NodeProto, why: &str) {
        *self.done.left.entry(why.to_owned()).or_default() += 1;
        self.nodes.push(node);
    }
}

/// What a node is called, by its first output where it has no name.
pub(super) fn base_of(node: &NodeProto) -> String {
    match node.name() {
        "" => node.output.first().cloned().unwrap_or_default(),
        name => name.to_owned(),
    }
}

/// Every name of the graph and of the graphs in it, and those that the latter take.
fn names(graph: &GraphProto) -> (HashSet<String>, HashSet<String>) {
    let mut names = HashSet::new();
    let mut captured = HashSet::new();
    let mut graphs = vec![(graph, true)];
    while let Some((graph, is_main)) = graphs.pop() {
        names.extend(graph.input.iter().chain(&graph.output).map(|value| value.name().to_owned()));
        names.extend(graph.initializer.iter().map(|tensor| tensor.name().to_owned()));
        let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
        names.extend(sparse.map(|tensor| tensor.name().to_owned()));
        if !is_main {
            captured.extend(graph.output.iter().map(|value| value.name().to_owned()));
        }
        for node in &graph.node {
            names.extend(node.input.iter().chain(&node.output).cloned());
            names.insert(node.name().to_owned());
            if !is_main {
                captured.extend(node.input.iter().cloned());
            }
            let inner = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
            graphs.extend(inner.map(|graph| (graph, false)));
        }
    }
    (names, captured)
}

/// Removes constants that nothing takes any more, and what computed something of them alone.
fn drop_unused(graph: &mut GraphProto) {
    let mut used: HashSet<String> =
        graph.input.iter().chain(&graph.output).map(|value| value.name().to_owned()).collect();
    let mut kept = Vec::with_capacity(graph.node.len());
    // Takers come after what they take.
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        let idle = is_standard(&node)
            && matches!(node.op_type(), "Constant" | "Cast" | "DequantizeLinear" | "Identity" | "Reshape")
            && !node.output.is_empty()
            && !node.output.iter().any(|name| used.contains(name));
        if idle {
            continue;
        }
        used.extend(node.input.iter().cloned());
        let mut graphs: Vec<&GraphProto> =
            node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)).collect();
        while let Some(graph) = graphs.pop() {
            // What a branch gives may be a value of the graph around it.
            used.extend(graph.output.iter().map(|value| value.name().to_owned()));
            for node in &graph.node {
                used.extend(node.input.iter().cloned());
                graphs.extend(node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)));
            }
        }
        kept.push(node);
    }
    kept.reverse();
    let made: HashSet<&str> = kept.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    graph.initializer.retain(|tensor| used.contains(tensor.name()));
    graph.value_info.retain(|value| made.contains(value.name()) || used.contains(value.name()));
    graph.node = kept;
}

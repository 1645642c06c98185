//! Numbers of 16 bits in place of 32: weights take half the room, and devices with such units are faster.
//!
//! An operator is computed in 16 bits where ONNX allows it and its tensors' types are known ([`super::kinds`]); the others
//! keep 32 bits with `Cast`s around them, control flow among them, whose branches are not looked into. Norms behind convolutions
//! are folded into them first ([`super::norms`]). Each tensor is cast once. What a name of the graph's inputs, outputs and branches means stays of 32 bits.

use super::editor::{Editor, base_of};
use super::kinds::{Kinds, MICROSOFT, OF_ONE_TYPE, halve};
use super::node::{attribute, dims, floats, int, int_of, is_standard, tensor};
use super::{Fp16Options, RewriteError, Rewritten, norms};
use crate::runtime::onnx::proto::{
    AttributeProto, ModelProto, NodeProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use half::f16;
use std::collections::{HashMap, HashSet};

const FLOAT: i64 = DataType::Float as i64;
const FLOAT16: i64 = DataType::Float16 as i64;

/// Operators that take 16 bits with outputs of another type.
const OTHERS: [&str; 13] = [
    "ArgMax",
    "ArgMin",
    "CastLike",
    "ConstantOfShape",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "NonZero",
    "Size",
    "Where",
];

/// # Errors
/// Where it has no graph, or no operator that could be computed in 16 bits.
pub(super) fn halve_model(model: &mut ModelProto, options: Fp16Options) -> Result<Rewritten, RewriteError> {
    norms::fold(model, f16::MAX.to_f32())?;
    let (editor, nodes) = Editor::open(model)?;
    let Some(graph) = &mut model.graph else { return Err(RewriteError::Graph("the file has no graph".into())) };
    let kinds = Kinds::of(graph, &nodes);
    let mut work = Work::new(editor, kinds);
    if !options.keep_io_types {
        let defaults: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
        let names = graph.input.iter().map(|value| value.name()).filter(|name| !defaults.contains(name));
        let free: Vec<String> = names.filter(|name| work.kinds.is_float(name)).map(str::to_owned).collect();
        for name in free {
            if !work.editor.captured.contains(&name) {
                work.editor.pinned.remove(&name);
                work.halved.insert(name.clone(), name);
            }
        }
        for output in &graph.output {
            if !work.editor.captured.contains(output.name()) {
                work.editor.pinned.remove(output.name());
            }
        }
    }
    let places: Vec<Place> = nodes.iter().map(|node| work.place(node)).collect();
    work.find_constants_of_both(&nodes, &places);
    for (node, place) in nodes.into_iter().zip(places) {
        work.rewrite(node, place);
    }
    let Work { editor, halved, moved, .. } = work;
    let rewritten = editor.close(model, "operator of the graph can be computed in 16 bits")?;
    if let Some(graph) = &mut model.graph {
        let mut seen = HashSet::new();
        // The halved constant came last.
        let mut kept: Vec<_> = std::mem::take(&mut graph.initializer).into_iter().rev().collect();
        kept.retain(|tensor| !moved.contains(tensor.name()) || seen.insert(tensor.name().to_owned()));
        graph.initializer = kept.into_iter().rev().collect();
        for value in graph.value_info.iter_mut().chain(&mut graph.input).chain(&mut graph.output) {
            if halved.get(value.name()).is_some_and(|name| name == value.name()) {
                halve(value);
            }
        }
    }
    Ok(rewritten)
}

/// Where a node is computed.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// It has to do with no number of 32 bits.
    Elsewhere,
    Half,
    /// A `Cast` to 32 bits, which becomes one to 16.
    Cast,
    Full(&'static str),
}

struct Work {
    editor: Editor,
    kinds: Kinds,
    /// Tensors of 32 bits whose 16-bit form is there, with its name.
    halved: HashMap<String, String>,
    /// Tensors whose own name means 16 bits, and the name of their 32-bit form.
    widened: HashMap<String, String>,
    /// Constants that something takes in 32 bits.
    kept: HashSet<String>,
    /// Constants whose 16-bit form has their name.
    moved: HashSet<String>,
}

impl Work {
    fn new(editor: Editor, kinds: Kinds) -> Work {
        let (halved, widened, moved) = (HashMap::new(), HashMap::new(), HashSet::new());
        Work { editor, kinds, halved, widened, kept: HashSet::new(), moved }
    }

    fn place(&self, node: &NodeProto) -> Place {
        let has = |names: &[String]| names.iter().any(|name| self.kinds.is_float(name));
        let known = |names: &[String]| names.iter().all(|name| name.is_empty() || self.kinds.get(name).is_some());
        if node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty()) {
            return Place::Full("control flow is kept in 32 bits");
        }
        if !known(&node.input) || !known(&node.output) {
            return Place::Full("the types of its tensors are not known");
        }
        let standard = is_standard(node);
        if standard && node.op_type() == "Cast" {
            return if int_of(node, "to", 0) == FLOAT { Place::Cast } else { Place::Elsewhere };
        }
        let neutral = standard && matches!(node.op_type(), "Constant" | "Shape");
        if neutral || !(has(&node.input) || has(&node.output)) {
            return Place::Elsewhere;
        }
        let takes = match standard {
            true => OF_ONE_TYPE.binary_search(&node.op_type()).is_ok() || OTHERS.contains(&node.op_type()),
            false => node.domain() == "com.microsoft" && MICROSOFT.contains(&node.op_type()),
        };
        // The statistics that normalisations give besides are of 32 bits whatever comes in.
        let one = !node.op_type().ends_with("LayerNormalization") || node.output.iter().skip(1).all(String::is_empty);
        if standard && node.op_type() == "BatchNormalization" && !self.fits(node) {
            return Place::Full("its statistics do not fit 16 bits");
        }
        match takes && one {
            true => Place::Half,
            false => Place::Full("its operator is kept in 32 bits"),
        }
    }

    /// Whether the constants of a node are numbers of 16 bits too. A clamped limit or mask does what it did, but what is divided by
    /// must not be.
    fn fits(&self, node: &NodeProto) -> bool {
        let constants = node.input.iter().filter_map(|name| self.editor.constants.get(name)).filter_map(floats);
        constants.flatten().all(|value| !value.is_finite() || f16::from_f32(value).is_finite())
    }

    /// Finds what is taken in 32 bits too.
    fn find_constants_of_both(&mut self, nodes: &[NodeProto], places: &[Place]) {
        for (node, place) in nodes.iter().zip(places) {
            for (index, name) in node.input.iter().enumerate() {
                if *place != Place::Half || is_always_full(node, index) {
                    self.kept.insert(name.clone());
                }
            }
        }
        self.kept.extend(self.editor.pinned.iter().cloned());
    }

    fn rewrite(&mut self, mut node: NodeProto, place: Place) {
        match place {
            Place::Elsewhere => match self.is_moved_constant(&node) {
                Some(name) => {
                    self.half(&name);
                }
                None => self.editor.nodes.push(node),
            },
            Place::Full(why) => {
                for at in 0..node.input.len() {
                    self.take_full(&mut node, at);
                }
                let counts = node.input.iter().chain(&node.output).any(|name| self.kinds.is_float(name));
                match counts || why.starts_with("control") {
                    true => self.editor.left(node, why),
                    false => self.editor.nodes.push(node),
                }
            }
            Place::Cast => {
                node.attribute.retain(|attribute| attribute.name() != "to");
                node.attribute.push(int("to", FLOAT16));
                self.give_half(node);
            }
            Place::Half => {
                self.editor.replaced(&node);
                for at in 0..node.input.len() {
                    if is_always_full(&node, at) {
                        self.take_full(&mut node, at);
                    } else if let Some(name) = node.input.get(at).cloned().filter(|name| self.kinds.is_float(name)) {
                        let half = self.half(&name);
                        if let Some(slot) = node.input.get_mut(at) {
                            *slot = half;
                        }
                    }
                }
                if node.op_type() == "ConstantOfShape" {
                    self.halve_value(&mut node);
                }
                self.give_half(node);
            }
        }
    }

    /// The output of a `Constant` that is taken in 16 bits only.
    fn is_moved_constant(&self, node: &NodeProto) -> Option<String> {
        let name = node.output.first().filter(|_| is_standard(node) && node.op_type() == "Constant")?;
        let moves = self.kinds.is_float(name) && !self.kept.contains(name) && self.editor.constants.contains_key(name);
        moves.then(|| name.clone())
    }

    fn take_full(&mut self, node: &mut NodeProto, at: usize) {
        let Some(name) = node.input.get(at).cloned() else { return };
        // The name of a pinned tensor means 32 bits.
        if self.halved.get(&name) != Some(&name) {
            return;
        }
        let full = match self.widened.get(&name) {
            Some(full) => full.clone(),
            None => {
                let full = self.editor.name(&name, "fp32");
                self.editor.node("Cast", &name, &[&name], &[&full], vec![int("to", FLOAT)]);
                self.widened.insert(name, full.clone());
                full
            }
        };
        if let Some(slot) = node.input.get_mut(at) {
            *slot = full;
        }
    }

    /// The name of a tensor's 16-bit form, which is made where it is not there.
    fn half(&mut self, name: &str) -> String {
        if let Some(half) = self.halved.get(name) {
            return half.clone();
        }
        let constant = self.editor.constants.get(name).and_then(|tensor| Some((dims(tensor)?, floats(tensor)?)));
        let half = match constant {
            Some((dims, values)) => {
                let half = match self.kept.contains(name) {
                    true => self.editor.name(name, "fp16"),
                    false => {
                        self.moved.insert(name.to_owned());
                        name.to_owned()
                    }
                };
                let bytes = self.bytes(&values);
                self.editor.made.push(tensor(&half, DataType::Float16, &dims, bytes));
                half
            }
            None => {
                let half = self.editor.name(name, "fp16");
                self.editor.node("Cast", name, &[name], &[&half], vec![int("to", FLOAT16)]);
                half
            }
        };
        self.halved.insert(name.to_owned(), half.clone());
        half
    }

    /// Appends a node that gives 16 bits where the graph had 32.
    fn give_half(&mut self, mut node: NodeProto) {
        let mut casts = Vec::new();
        for output in &mut node.output {
            if !self.kinds.is_float(output) || output.is_empty() {
                continue;
            }
            let name = output.clone();
            if self.editor.pinned.contains(&name) {
                *output = self.editor.name(&name, "fp16");
                casts.push((name.clone(), output.clone()));
            }
            self.halved.insert(name, output.clone());
        }
        self.editor.nodes.push(node);
        for (full, half) in casts {
            self.editor.node("Cast", &full, &[&half], &[&full], vec![int("to", FLOAT)]);
        }
    }

    fn halve_value(&mut self, node: &mut NodeProto) {
        let values = match attribute(node, "value").and_then(|value| value.t.as_ref()) {
            Some(tensor) if tensor.data_type() != DataType::Float as i32 => return,
            Some(tensor) => floats(tensor).unwrap_or_default(),
            None => vec![0.0],
        };
        let bytes = self.bytes(&values);
        node.attribute.retain(|attribute| attribute.name() != "value");
        node.attribute.push(AttributeProto {
            name: Some("value".into()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(tensor(&base_of(node), DataType::Float16, &[values.len()], bytes)),
            ..AttributeProto::default()
        });
    }

    /// Numbers as 16 bits; those that have none become the nearest that does, but for infinity and zero.
    fn bytes(&mut self, values: &[f32]) -> Vec<u8> {
        let mut clamped = 0;
        let half = |&value: &f32| {
            let half = f16::from_f32(value);
            let lost = value.is_finite() && (!half.is_finite() || (half == f16::ZERO && value != 0.0));
            clamped += usize::from(lost);
            let nearest = match (lost, half.is_finite()) {
                (false, _) => half,
                (true, true) => f16::from_bits(1),
                (true, false) => f16::MAX,
            };
            if lost && value < 0.0 { -nearest } else { nearest }.to_le_bytes()
        };
        let bytes = values.iter().flat_map(half).collect();
        self.editor.done.clamped += clamped;
        bytes
    }
}

/// Inputs that an operator takes in 32 bits beside others of 16: where and by how much `Resize` resizes.
fn is_always_full(node: &NodeProto, index: usize) -> bool {
    is_standard(node) && node.op_type() == "Resize" && index > 0
}

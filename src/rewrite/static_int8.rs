//! Static quantisation to eight bits: pairs of `QuantizeLinear` and `DequantizeLinear` whose scales were calibrated, around
//! operators that ONNX Runtime then computes with bytes.
//!
//! Convolutions and products by constants are quantised: what they take, their weights for each output channel, and of
//! convolutions also what they give, since there is no kernel that would take bytes and give numbers. Cheap operators between
//! quantised ones ([`Step::Between`]) stay in bytes; a `Relu` behind a convolution or a sum becomes the range's end at zero.
//! What else takes a tensor gets it unquantised, where it is there. Large tables of `Gather` are bytes too ([`super::table`]).
//! Activations are unsigned with a zero of their own, weights signed and symmetric. Before all that [`super::norms`] folds what
//! is behind convolutions into them; what a convolution then gives has a name that the graph had.

use super::editor::{Editor, base_of};
use super::kinds::Kinds;
use super::node::{attribute, bytes_of, dims, floats, input, int, is_standard};
use super::norms;
use super::opset;
use super::product::{Product, quantized};
use super::table::Tables;
use super::{RewriteError, Rewritten, StaticOptions};
use crate::runtime::onnx::proto::{ModelProto, NodeProto, tensor_proto::DataType};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The opset in which `DequantizeLinear` learnt a scale for each channel.
const OPSET_MIN: i64 = 13;
const WHAT: &str = "static quantisation";
/// Biases are of 32 bits; half of that, so that the sum they are added to has room.
const BIAS_MAX: f64 = (1 << 30) as f64;

/// The tensors whose ranges [`quantize`] will ask for.
///
/// # Errors
/// As [`quantize`], but for ranges.
pub(super) fn observed(mut model: ModelProto) -> Result<Vec<String>, RewriteError> {
    opset::raise(&mut model, OPSET_MIN, WHAT)?;
    norms::fold(&mut model, f32::MAX)?;
    let (mut editor, nodes) = Editor::open(&mut model)?;
    editor.fold(&nodes);
    let kinds = model.graph.as_ref().map(|graph| Kinds::of(graph, &nodes)).unwrap_or_default();
    let plan = Plan::of(&editor, &kinds, &nodes);
    if plan.observed.is_empty() {
        return Err(RewriteError::Graph("no operator of the graph can be quantised statically".into()));
    }
    Ok(plan.observed.into_iter().collect())
}

/// # Errors
/// Where it has no graph, is too old and cannot be raised, has nothing to quantise, or a range is missing.
pub(super) fn quantize(model: &mut ModelProto, options: &StaticOptions) -> Result<Rewritten, RewriteError> {
    opset::raise(model, OPSET_MIN, WHAT)?;
    norms::fold(model, f32::MAX)?;
    let (mut editor, nodes) = Editor::open(model)?;
    editor.fold(&nodes);
    let kinds = model.graph.as_ref().map(|graph| Kinds::of(graph, &nodes)).unwrap_or_default();
    let plan = Plan::of(&editor, &kinds, &nodes);
    let tables = Tables::of(&editor, &nodes);
    let mut work = Work {
        editor,
        options,
        most: if options.reduce_range { 63 } else { 127 },
        tables,
        scales: HashMap::new(),
        taken: HashMap::new(),
        weights: HashMap::new(),
    };
    work.make_scales(&plan)?;
    let Plan { steps, tight, .. } = plan;
    for (node, step) in nodes.into_iter().zip(steps) {
        work.rewrite(node, step, &tight)?;
    }
    work.editor.close(model, "operator of the graph can be quantised statically")
}

/// What becomes of a node.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// It stays as it is; a reason where its like is quantised.
    Keep(Option<&'static str>),
    /// Its activation and weights become bytes. Where `output` is not empty, it gives that in bytes.
    Weighted { output: String, channels: usize },
    /// All it takes is in bytes, and it gives `output` in bytes.
    Between { output: String },
    /// A `Relu` that the end of the range before it does.
    Gone,
}

struct Plan {
    steps: Vec<Step>,
    /// Tensors that are only there in bytes.
    tight: HashSet<String>,
    /// Tensors that have the scale of another.
    scale_of: HashMap<String, String>,
    /// Tensors that need a scale.
    quantised: BTreeSet<String>,
    observed: BTreeSet<String>,
}

impl Plan {
    fn of(editor: &Editor, kinds: &Kinds, nodes: &[NodeProto]) -> Plan {
        let mut takers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, node) in nodes.iter().enumerate() {
            for name in node.input.iter().filter(|name| !name.is_empty()) {
                takers.entry(name).or_default().push(at);
            }
        }
        let mut steps = vec![Step::Keep(None); nodes.len()];
        let mut tight: HashSet<String> = HashSet::new();
        let mut wanted: HashSet<String> = HashSet::new();
        for (at, node) in nodes.iter().enumerate() {
            if steps.get(at) == Some(&Step::Gone) || !is_standard(node) {
                continue;
            }
            // A range that ends at zero does what a lone Relu behind would do.
            let ended = |node: &NodeProto| -> Option<(String, Option<usize>)> {
                let output = node.output.first()?;
                let next = takers.get(output.as_str()).map(Vec::as_slice);
                let relu = match next {
                    Some([next]) if !editor.pinned.contains(output) => nodes.get(*next).filter(|node| is_relu(node)),
                    _ => None,
                };
                match (relu.and_then(|relu| relu.output.first()), next) {
                    (Some(output), Some([next])) => Some((output.clone(), Some(*next))),
                    _ => Some((output.clone(), None)),
                }
            };
            let step = match node.op_type() {
                "Conv" => match convolution(editor, kinds, node) {
                    Err(why) => Step::Keep(Some(why)),
                    Ok(channels) => match ended(node) {
                        Some((output, gone)) => {
                            if let Some(slot) = gone.and_then(|gone| steps.get_mut(gone)) {
                                *slot = Step::Gone;
                            }
                            Step::Weighted { output, channels }
                        }
                        None => Step::Keep(None),
                    },
                },
                "MatMul" | "Gemm" => match product(editor, node) {
                    Err(why) => Step::Keep(Some(why)),
                    Ok(channels) => Step::Weighted { output: String::new(), channels },
                },
                operator if BETWEEN.contains(&operator) && is_between(node, &tight) => {
                    let ends = operator == "Add";
                    match (ends, ended(node), node.output.first()) {
                        (true, Some((output, gone)), _) => {
                            if let Some(slot) = gone.and_then(|gone| steps.get_mut(gone)) {
                                *slot = Step::Gone;
                            }
                            Step::Between { output }
                        }
                        (_, _, Some(output)) => Step::Between { output: output.clone() },
                        _ => Step::Keep(None),
                    }
                }
                _ => Step::Keep(None),
            };
            match &step {
                Step::Weighted { output, .. } => {
                    wanted.extend(input(node, 0).map(str::to_owned));
                    tight.extend(Some(output.clone()).filter(|output| !output.is_empty()));
                }
                Step::Between { output } => {
                    tight.insert(output.clone());
                }
                Step::Keep(_) | Step::Gone => {}
            }
            if let Some(slot) = steps.get_mut(at) {
                *slot = step;
            }
        }
        let mut plan =
            Plan { steps, tight, scale_of: HashMap::new(), quantised: BTreeSet::new(), observed: BTreeSet::new() };
        plan.trim(nodes, &takers, &mut wanted);
        plan.find_scales(nodes, wanted);
        plan
    }

    /// What is between has to lead to an operator that gains from bytes, or else it only loses by them.
    fn trim(&mut self, nodes: &[NodeProto], takers: &HashMap<&str, Vec<usize>>, wanted: &mut HashSet<String>) {
        for (at, node) in nodes.iter().enumerate().rev() {
            let Some(Step::Between { output }) = self.steps.get(at).cloned() else { continue };
            if wanted.contains(&output) {
                wanted.extend(inputs_of(node).map(str::to_owned));
                continue;
            }
            self.tight.remove(&output);
            if let Some(slot) = self.steps.get_mut(at) {
                *slot = Step::Keep(None);
            }
            // Its Relu comes back.
            for &next in node.output.first().and_then(|name| takers.get(name.as_str())).into_iter().flatten() {
                if let Some(slot) = self.steps.get_mut(next).filter(|step| **step == Step::Gone) {
                    *slot = Step::Keep(None);
                }
            }
        }
    }

    fn find_scales(&mut self, nodes: &[NodeProto], wanted: HashSet<String>) {
        self.quantised = self.tight.iter().cloned().chain(wanted).collect();
        for (node, step) in nodes.iter().zip(&self.steps) {
            if let (Step::Between { output }, Some(from)) = (step, input(node, 0))
                && OF_ONE_SCALE.contains(&node.op_type())
            {
                let root = self.scale_of.get(from).cloned().unwrap_or_else(|| from.to_owned());
                self.scale_of.insert(output.clone(), root);
            }
        }
        self.observed = self.quantised.iter().filter(|name| !self.scale_of.contains_key(*name)).cloned().collect();
        self.observed.extend(self.scale_of.values().cloned());
    }
}

/// Operators that may stay in bytes between quantised ones.
const BETWEEN: [&str; 14] = [
    "Add",
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Mul",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
/// Those that give what they take, so that the bytes mean the same.
const OF_ONE_SCALE: [&str; 8] =
    ["Flatten", "MaxPool", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"];

/// The inputs of an operator between others that are activations.
fn inputs_of(node: &NodeProto) -> impl Iterator<Item = &str> {
    let count = if matches!(node.op_type(), "Add" | "Mul" | "Concat") { usize::MAX } else { 1 };
    node.input.iter().take(count).map(String::as_str)
}

fn is_between(node: &NodeProto, tight: &HashSet<String>) -> bool {
    let only = node.output.iter().skip(1).all(String::is_empty) && !node.input.is_empty();
    // Only its nearest neighbours are among the bytes that came.
    let nearest = node.op_type() != "Resize"
        || attribute(node, "mode").is_none_or(|mode| mode.s.as_ref().is_some_and(|mode| mode.as_ref() == b"nearest"));
    only && nearest && inputs_of(node).all(|name| tight.contains(name))
}

fn is_relu(node: &NodeProto) -> bool {
    is_standard(node) && node.op_type() == "Relu" && node.input.len() == 1 && node.output.len() == 1
}

/// The output channels of a convolution that can be quantised.
fn convolution(editor: &Editor, kinds: &Kinds, node: &NodeProto) -> Result<usize, &'static str> {
    let weights = input(node, 1).and_then(|name| editor.constants.get(name)).ok_or("its weights are computed")?;
    let dims = dims(weights).filter(|dims| dims.len() > 2).ok_or("its weights have no window")?;
    let channels = weighted(weights, &dims, 0)?;
    if !input(node, 0).is_some_and(|name| kinds.is_float(name)) {
        return Err("its tensors are not known to be of 32 bits");
    }
    bias(editor, node, channels)
}

fn product(editor: &Editor, node: &NodeProto) -> Result<usize, &'static str> {
    let product = Product::of(node)?;
    let weights = editor.constants.get(&product.weights).ok_or("both its operands are computed")?;
    let dims = dims(weights).filter(|dims| dims.len() == 2).ok_or("its constant is not of two dimensions")?;
    let channels = weighted(weights, &dims, if product.transposed { 0 } else { 1 })?;
    bias(editor, node, channels)
}

fn weighted(
    weights: &crate::runtime::onnx::proto::TensorProto,
    dims: &[usize],
    axis: usize,
) -> Result<usize, &'static str> {
    let values = floats(weights).ok_or("its weights are not of 32 bits")?;
    if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
        return Err("its weights are not all numbers");
    }
    dims.get(axis).copied().ok_or("its weights have no channels")
}

/// A bias has to be a constant with a number for each channel.
fn bias(editor: &Editor, node: &NodeProto, channels: usize) -> Result<usize, &'static str> {
    let Some(name) = input(node, 2) else { return Ok(channels) };
    let bias = editor.constants.get(name).and_then(floats).ok_or("its bias is computed, or not of 32 bits")?;
    let fits = bias.len() == channels && bias.iter().all(|value| value.is_finite());
    if fits { Ok(channels) } else { Err("its bias has not a number for each channel") }
}

struct Work<'a> {
    editor: Editor,
    options: &'a StaticOptions,
    most: i32,
    tables: Tables,
    /// The scale of a tensor, the names of its scale and zero.
    scales: HashMap<String, (f32, [String; 2])>,
    /// The unquantised form of tensors that are there in numbers too.
    taken: HashMap<String, String>,
    weights: HashMap<(String, usize), (String, Vec<f32>)>,
}

impl Work<'_> {
    fn make_scales(&mut self, plan: &Plan) -> Result<(), RewriteError> {
        for name in &plan.observed {
            let limits = self.options.ranges.limits(name, self.options.percentile).ok_or_else(|| {
                RewriteError::Graph(format!("tensor {name:?} was not observed; calibrate with this graph"))
            })?;
            let (low, high) = (limits.0.min(0.0), limits.1.max(0.0));
            let scale = Some(high / 255.0 - low / 255.0).filter(|scale| scale.is_normal()).unwrap_or(1.0);
            let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8;
            let made = [
                self.editor.constant(name, "scale", DataType::Float, &[], bytes_of(&[scale])),
                self.editor.constant(name, "zero", DataType::Uint8, &[], vec![zero]),
            ];
            self.scales.insert(name.clone(), (scale, made));
        }
        for (name, root) in &plan.scale_of {
            if let Some(scale) = self.scales.get(root).cloned() {
                self.scales.insert(name.clone(), scale);
            }
        }
        Ok(())
    }

    fn rewrite(&mut self, mut node: NodeProto, step: Step, tight: &HashSet<String>) -> Result<(), RewriteError> {
        match step {
            Step::Gone => {}
            Step::Keep(None) if node.op_type() == "Gather" => self.tables.rewrite(&mut self.editor, node),
            Step::Keep(None) => self.editor.nodes.push(node),
            Step::Keep(Some(why)) => self.editor.left(node, why),
            Step::Between { output } => {
                self.editor.replaced(&node);
                self.give(node, output);
            }
            Step::Weighted { output, channels } => {
                self.editor.replaced(&node);
                let Some(activation) = input(&node, 0).map(str::to_owned) else { return Ok(()) };
                let Some((scale, _)) = self.scales.get(&activation).cloned() else { return Ok(()) };
                let taken = match tight.contains(&activation) {
                    true => activation,
                    false => self.take(&activation),
                };
                self.weigh(&mut node, taken, scale, channels);
                match output.is_empty() {
                    true => self.editor.nodes.push(node),
                    false => self.give(node, output),
                }
            }
        }
        Ok(())
    }

    /// Puts bytes in the place of the weights and the bias.
    fn weigh(&mut self, node: &mut NodeProto, activation: String, scale: f32, channels: usize) {
        let transposed = Product::of(node).is_ok_and(|product| product.transposed);
        let axis = usize::from(node.op_type() != "Conv" && !transposed);
        let bias = input(node, 2).map(str::to_owned);
        let values = bias.as_ref().and_then(|name| self.editor.constants.get(name)).and_then(floats);
        let Some(weights) = input(node, 1).map(str::to_owned) else { return };
        let Some((unquantised, scales)) = self.weights(&weights, axis, channels, scale, values.as_deref()) else {
            return;
        };
        let mut inputs = vec![activation, unquantised];
        if let (Some(name), Some(values)) = (bias, values) {
            let scales: Vec<f32> = scales.iter().map(|weight| weight * scale).collect();
            let levels = values.iter().zip(&scales).flat_map(|(value, scale)| {
                let level = (f64::from(*value) / f64::from(*scale)).round_ties_even().clamp(-BIAS_MAX, BIAS_MAX);
                (level as i32).to_le_bytes()
            });
            let levels = levels.collect();
            let base = base_of(node);
            let edit = &mut self.editor;
            let quantised = edit.constant(&name, "quantized", DataType::Int32, &[channels], levels);
            let scale = edit.constant(&name, "scales", DataType::Float, &[channels], bytes_of(&scales));
            let zero = edit.constant(&name, "zeros", DataType::Int32, &[channels], vec![0; channels * 4]);
            let unquantised = edit.name(&name, "unquantized");
            let attributes = vec![int("axis", 0)];
            edit.node("DequantizeLinear", &base, &[&quantised, &scale, &zero], &[&unquantised], attributes);
            inputs.push(unquantised);
        }
        node.input = inputs;
    }

    /// The name of weights that were bytes, and their scales. Weights that several take are bytes once, but where a bias
    /// would not fit their scales.
    fn weights(
        &mut self,
        name: &str,
        axis: usize,
        channels: usize,
        scale: f32,
        bias: Option<&[f32]>,
    ) -> Option<(String, Vec<f32>)> {
        let fits = |scales: &[f32]| {
            let room = |(bias, weight): (&f32, &f32)| {
                f64::from(bias.abs()) <= BIAS_MAX * f64::from(*weight) * f64::from(scale)
            };
            bias.is_none_or(|bias| bias.iter().zip(scales).all(room))
        };
        let key = (name.to_owned(), axis);
        if let Some(known) = self.weights.get(&key).filter(|(_, scales)| fits(scales)) {
            return Some(known.clone());
        }
        let tensor = self.editor.constants.get(name)?;
        let (dims, values) = (dims(tensor)?, floats(tensor)?);
        // A channel of tiny weights gets a wider scale, for the sake of its bias.
        let least = |channel: usize| {
            let bias = bias.and_then(|bias| bias.get(channel)).copied().unwrap_or_default();
            (f64::from(bias.abs()) / BIAS_MAX / f64::from(scale)) as f32
        };
        let (bytes, scales) = quantized(&values, &dims, axis, self.most, least);
        let base = name;
        let edit = &mut self.editor;
        let quantised = edit.constant(base, "quantized", DataType::Int8, &dims, bytes);
        let scale_name = edit.constant(base, "scales", DataType::Float, &[channels], bytes_of(&scales));
        let zero = edit.constant(base, "zeros", DataType::Int8, &[channels], vec![0; channels]);
        let unquantised = edit.name(base, "unquantized");
        let attributes = vec![int("axis", axis as i64)];
        edit.node("DequantizeLinear", base, &[&quantised, &scale_name, &zero], &[&unquantised], attributes);
        let made = (unquantised, scales);
        self.weights.insert(key, made.clone());
        Some(made)
    }

    /// A tensor of numbers as what is left of them in bytes.
    fn take(&mut self, name: &str) -> String {
        if let Some(taken) = self.taken.get(name) {
            return taken.clone();
        }
        let unquantised = self.editor.name(name, "unquantized");
        self.pair(name, name, &unquantised);
        self.taken.insert(name.to_owned(), unquantised.clone());
        unquantised
    }

    /// Appends a node whose output is `output`, in bytes and back.
    fn give(&mut self, mut node: NodeProto, output: String) {
        let exact = self.editor.name(&output, "exact");
        node.output = vec![exact.clone()];
        self.editor.nodes.push(node);
        self.pair(&output, &exact, &output);
    }

    fn pair(&mut self, name: &str, from: &str, to: &str) {
        let Some((_, [scale, zero])) = self.scales.get(name).cloned() else { return };
        let quantised = self.editor.name(name, "quantized");
        self.editor.node("QuantizeLinear", name, &[from, &scale, &zero], &[&quantised], Vec::new());
        self.editor.node("DequantizeLinear", name, &[&quantised, &scale, &zero], &[to], Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_of_one_scale_are_between() {
        assert!(OF_ONE_SCALE.iter().all(|operator| BETWEEN.contains(operator)));
    }
}

//! Norms, factors and shifts of channels behind convolutions become part of the convolutions' weights and biases.
//!
//! `a·(W∗x + b) + c` is `(a·W)∗x + (a·b + c)`, with an `a` and a `c` for each output channel; those are along the weights' first
//! axis whatever the groups. What is rounded once drifts less than what is rounded twice with a rounded tensor between. It is
//! reckoned in 64 bits, over all that is folded into a convolution together.
//!
//! Folded is only what nobody else sees: what the convolution gave has one taker, the graph does not give it, and no branch
//! takes it. New weights have names of their own, so that others that take the old ones keep them.

use super::editor::{Editor, base_of};
use super::node::{bytes_of, dims, float_of, floats, input, int_of, is_standard};
use super::{RewriteError, Rewritten, opset};
use crate::runtime::onnx::proto::{ModelProto, NodeProto, TensorProto, tensor_proto::DataType};
use std::collections::HashMap;

/// Before, norms had a flag for training, and sums and products spread their operands in another way.
const OPSET_MIN: i64 = 7;
/// New numbers beyond as many as the graph's constants have: small weights that several convolutions take may be copied for each,
/// large ones that many take must not become many large ones.
const MORE_MAX: usize = 1 << 22;
const EPSILON: f32 = 1e-5;

/// Folds into the convolutions of `model` what is behind them. Where a weight or bias would be beyond `most`, above or below
/// zero, that stays as it is.
///
/// # Errors
/// Where the model has no graph to edit.
pub(super) fn fold(model: &mut ModelProto, most: f32) -> Result<(), RewriteError> {
    let mut nodes = model.graph.iter().flat_map(|graph| &graph.node);
    if opset::of(model) < OPSET_MIN || !nodes.any(is_convolution) {
        return Ok(());
    }
    let (mut editor, nodes) = Editor::open(model)?;
    let steps = plan(&mut editor, &nodes, most);
    let folds = steps.iter().any(|step| matches!(step, Step::Become(_)));
    for (node, step) in nodes.into_iter().zip(steps) {
        match step {
            Step::Keep => editor.nodes.push(node),
            Step::Become(node) => editor.nodes.push(*node),
            Step::Gone => {}
        }
    }
    if !folds {
        if let Some(graph) = &mut model.graph {
            graph.node = editor.nodes;
        }
        return Ok(());
    }
    // Nothing of this is told: it is no replacement that anybody asked for.
    editor.done = Rewritten { replaced: [(String::new(), 1)].into(), ..Rewritten::default() };
    editor.close(model, "convolution")?;
    Ok(())
}

/// What becomes of a node.
enum Step {
    Keep,
    /// A convolution that does what is behind it too.
    Become(Box<NodeProto>),
    /// A convolution does it.
    Gone,
}

fn plan(editor: &mut Editor, nodes: &[NodeProto], most: f32) -> Vec<Step> {
    let numbers = |tensor: &TensorProto| tensor.raw_data().len() / 4 + tensor.float_data.len();
    let mut room = MORE_MAX + editor.constants.values().map(numbers).sum::<usize>();
    // Not what is widened: weights of 16 bits, or of bytes, would take more room.
    editor.fold(nodes.iter().filter(|node| matches!(node.op_type(), "Identity" | "Reshape")));
    let mut takers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        for name in &node.input {
            takers.entry(name).or_default().push(at);
        }
    }
    let mut steps: Vec<Step> = nodes.iter().map(|_| Step::Keep).collect();
    for (at, node) in nodes.iter().enumerate().filter(|(_, node)| is_convolution(node)) {
        // Most weights need not be looked at.
        if behind(editor, nodes, &takers, at).is_none() {
            continue;
        }
        let Some(mut convolution) = Convolution::of(editor, node) else { continue };
        let (mut last, mut output) = (at, None);
        let mut gone = Vec::new();
        while let Some((next, node, from)) = behind(editor, nodes, &takers, last) {
            let scaling = Scaling::of(editor, node, from, &convolution.dims);
            if !scaling.is_some_and(|scaling| convolution.scale(&scaling, most)) {
                break;
            }
            (last, output) = (next, node.output.first());
            gone.push(next);
        }
        let Some(output) = output else { continue };
        let Some(left) = room.checked_sub(convolution.new_numbers()) else { continue };
        room = left;
        let made = Step::Become(Box::new(convolution.make(editor, node, output)));
        let gone = gone.into_iter().map(|at| (at, Step::Gone));
        for (at, step) in gone.chain([(at, made)]) {
            if let Some(slot) = steps.get_mut(at) {
                *slot = step;
            }
        }
    }
    steps
}

/// The only taker of what node `before` gives, and the name of that, where a convolution could do what the taker does.
fn behind<'a>(
    editor: &Editor,
    nodes: &'a [NodeProto],
    takers: &HashMap<&str, Vec<usize>>,
    before: usize,
) -> Option<(usize, &'a NodeProto, &'a str)> {
    let from = nodes.get(before)?.output.first()?.as_str();
    let [next] = takers.get(from)?.as_slice() else { return None };
    let node = nodes.get(*next)?;
    let scales = is_standard(node) && matches!(node.op_type(), "BatchNormalization" | "Mul" | "Add") && gives_one(node);
    // Takers come after what they take, or the graph is broken.
    (scales && *next > before && !editor.pinned.contains(from)).then_some((*next, node, from))
}

fn is_convolution(node: &NodeProto) -> bool {
    is_standard(node) && node.op_type() == "Conv" && gives_one(node)
}

/// Whether the node has one output with a name; norms that train have more.
fn gives_one(node: &NodeProto) -> bool {
    node.output.first().is_some_and(|name| !name.is_empty()) && node.output.iter().skip(1).all(String::is_empty)
}

/// A factor for each channel, and what is added then.
struct Scaling {
    factors: Vec<f64>,
    shifts: Vec<f64>,
}

impl Scaling {
    /// What `node` does to `from`, which a convolution with weights of the shape `dims` gave; `None` where it is anything else.
    fn of(editor: &Editor, node: &NodeProto, from: &str, dims: &[usize]) -> Option<Scaling> {
        let channels = *dims.first()?;
        if node.op_type() == "BatchNormalization" {
            return Scaling::of_norm(editor, node, from, channels);
        }
        let other = match node.input.as_slice() {
            [one, other] if one == from => other,
            [other, one] if one == from => other,
            _ => return None,
        };
        let operand = editor.constants.get(other)?;
        let values = floats(operand).filter(|_| is_by_channel(operand, dims))?;
        let values: Vec<f64> = (0..channels).zip(values.iter().cycle()).map(|(_, value)| f64::from(*value)).collect();
        Some(match node.op_type() {
            "Mul" => Scaling { factors: values, shifts: vec![0.0; channels] },
            _ => Scaling { factors: vec![1.0; channels], shifts: values },
        })
    }

    /// `scale·(x − mean)/√(variance + ε) + shift`
    fn of_norm(editor: &Editor, node: &NodeProto, from: &str, channels: usize) -> Option<Scaling> {
        let trains = int_of(node, "training_mode", 0) != 0 || int_of(node, "spatial", 1) != 1;
        if trains || node.input.len() != 5 || input(node, 0) != Some(from) {
            return None;
        }
        let values = |index: usize| -> Option<Vec<f32>> {
            let tensor = editor.constants.get(input(node, index)?)?;
            floats(tensor).filter(|values| tensor.dims.len() == 1 && values.len() == channels)
        };
        let (scales, shifts, means, variances) = (values(1)?, values(2)?, values(3)?, values(4)?);
        let epsilon = f64::from(float_of(node, "epsilon", EPSILON));
        let factor = |(scale, variance): (&f32, &f32)| f64::from(*scale) / (f64::from(*variance) + epsilon).sqrt();
        let factors: Vec<f64> = scales.iter().zip(&variances).map(factor).collect();
        let shift = |((shift, mean), factor): ((&f32, &f32), &f64)| f64::from(*shift) - f64::from(*mean) * factor;
        let shifts = shifts.iter().zip(&means).zip(&factors).map(shift).collect();
        Some(Scaling { factors, shifts })
    }
}

/// Whether `operand` spreads over what a convolution with weights of the shape `weights` gives as one number, or as one for each
/// channel, and adds no axis to it.
fn is_by_channel(operand: &TensorProto, weights: &[usize]) -> bool {
    let Some(operand) = dims(operand) else { return false };
    // Axes are matched from the last on; the channels are the second from the front.
    let fits = |(from_end, size): (usize, &usize)| {
        *size == 1 || (from_end + 2 == weights.len() && weights.first() == Some(size))
    };
    operand.len() <= weights.len() && operand.iter().rev().enumerate().all(fits)
}

struct Convolution {
    dims: Vec<usize>,
    weights: Vec<f32>,
    /// How far from zero the weights of each channel go.
    largest: Vec<f64>,
    has_bias: bool,
    /// What is folded so far: factors for the weights, and the bias.
    scaling: Scaling,
}

impl Convolution {
    /// `None` where its weights or its bias are computed, not of 32 bits, or not finite.
    fn of(editor: &Editor, node: &NodeProto) -> Option<Convolution> {
        let constant = |index| input(node, index).and_then(|name| editor.constants.get(name));
        let tensor = constant(1)?;
        let dims = dims(tensor).filter(|dims| dims.len() > 2)?;
        let finite = |values: &Vec<f32>| values.iter().all(|value| value.is_finite());
        let weights = floats(tensor).filter(|weights| !weights.is_empty()).filter(finite)?;
        let channels = *dims.first()?;
        let has_bias = input(node, 2).is_some();
        let bias = match has_bias {
            true => constant(2).and_then(floats).filter(|bias| bias.len() == channels).filter(finite)?,
            false => vec![0.0; channels],
        };
        let of_channel = weights.len() / channels;
        let farthest = |run: &[f32]| f64::from(run.iter().fold(0f32, |most, weight| most.max(weight.abs())));
        let largest = weights.chunks(of_channel).map(farthest).collect();
        let scaling = Scaling { factors: vec![1.0; channels], shifts: bias.into_iter().map(f64::from).collect() };
        Some(Convolution { dims, weights, largest, has_bias, scaling })
    }

    /// Folds `next` in; where a number would be none or beyond `most`, gives `false` and changes nothing.
    fn scale(&mut self, next: &Scaling, most: f32) -> bool {
        let Scaling { factors, shifts } = &self.scaling;
        let new: Vec<f64> = factors.iter().zip(&next.factors).map(|(factor, next)| factor * next).collect();
        let shift = |((shift, factor), next): ((&f64, &f64), &f64)| shift * factor + next;
        let shifts: Vec<f64> = shifts.iter().zip(&next.factors).zip(&next.shifts).map(shift).collect();
        let fits = |number: f64| (number as f32).abs() <= most;
        let all = new.iter().zip(&self.largest).all(|(factor, largest)| fits(factor * largest))
            && shifts.iter().all(|shift| fits(*shift));
        if all {
            self.scaling = Scaling { factors: new, shifts };
        }
        all
    }

    fn is_scaled(&self) -> bool {
        self.scaling.factors.iter().any(|factor| *factor != 1.0)
    }

    /// How many [`Convolution::make`] makes, at most.
    fn new_numbers(&self) -> usize {
        self.scaling.shifts.len() + if self.is_scaled() { self.weights.len() } else { 0 }
    }

    /// The convolution `node` with all that was folded into it, which gives `output`.
    fn make(&self, editor: &mut Editor, node: &NodeProto, output: &str) -> NodeProto {
        let Scaling { factors, shifts } = &self.scaling;
        let mut inputs: Vec<String> = node.input.iter().take(2).cloned().collect();
        let base = base_of(node);
        if self.is_scaled() {
            let runs = self.weights.chunks(self.weights.len() / factors.len()).zip(factors);
            let scaled = |(run, factor): (&[f32], &f64)| -> Vec<f32> {
                run.iter().map(|weight| (f64::from(*weight) * factor) as f32).collect()
            };
            let weights: Vec<f32> = runs.flat_map(scaled).collect();
            let name = input(node, 1).unwrap_or(&base);
            let made = editor.constant(name, "folded", DataType::Float, &self.dims, bytes_of(&weights));
            if let Some(slot) = inputs.get_mut(1) {
                *slot = made;
            }
        }
        if self.has_bias || shifts.iter().any(|shift| *shift != 0.0) {
            let bias: Vec<f32> = shifts.iter().map(|shift| *shift as f32).collect();
            let (base, part) = input(node, 2).map_or((base.as_str(), "bias"), |name| (name, "folded"));
            inputs.push(editor.constant(base, part, DataType::Float, &[bias.len()], bytes_of(&bias)));
        }
        NodeProto { input: inputs, output: vec![output.to_owned()], ..node.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::{int, tensor};
    use super::*;
    use crate::runtime::onnx::proto::{
        AttributeProto, GraphProto, OperatorSetIdProto, ValueInfoProto, attribute_proto::AttributeType,
    };
    use prost::Message;

    fn constant(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
        tensor(name, DataType::Float, dims, bytes_of(values))
    }

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: Some(operator.into()),
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() }
    }

    fn model(nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> ModelProto {
        let output = nodes.last().map(|node| value(&node.output[0])).into_iter().collect();
        let (input, initializer) = (vec![value("x")], constants);
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }],
            graph: Some(GraphProto { node: nodes, initializer, input, output, ..GraphProto::default() }),
            ..ModelProto::default()
        }
    }

    /// A convolution of two channels, a norm whose roots are 2 and 3, a step that nothing is done to.
    fn normed() -> ModelProto {
        let mut norm = node("BatchNormalization", &["c", "scale", "shift", "mean", "variance"], "n");
        norm.attribute = vec![epsilon(1.0)];
        let nodes = vec![node("Conv", &["x", "w", "b"], "c"), norm, node("Relu", &["n"], "y")];
        let constants = vec![
            constant("w", &[2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0]),
            constant("b", &[2], &[1.0, -1.0]),
            constant("scale", &[2], &[4.0, -3.0]),
            constant("shift", &[2], &[0.5, 0.0]),
            constant("mean", &[2], &[3.0, 2.0]),
            constant("variance", &[2], &[3.0, 8.0]),
        ];
        model(nodes, constants)
    }

    fn epsilon(value: f32) -> AttributeProto {
        let kind = Some(AttributeType::Float as i32);
        AttributeProto { name: Some("epsilon".into()), r#type: kind, f: Some(value), ..AttributeProto::default() }
    }

    fn graph(model: &mut ModelProto) -> &mut GraphProto {
        model.graph.as_mut().unwrap()
    }

    fn find<'a>(model: &'a mut ModelProto, name: &str) -> &'a mut TensorProto {
        graph(model).initializer.iter_mut().find(|tensor| tensor.name() == name).unwrap()
    }

    fn operators(model: &ModelProto) -> Vec<&str> {
        model.graph.as_ref().unwrap().node.iter().map(|node| node.op_type()).collect()
    }

    fn names(model: &ModelProto) -> Vec<&str> {
        model.graph.as_ref().unwrap().initializer.iter().map(|tensor| tensor.name()).collect()
    }

    fn numbers(model: &mut ModelProto, name: &str) -> Vec<f32> {
        floats(find(model, name)).unwrap()
    }

    #[test]
    fn a_norm_becomes_weights_and_a_bias() {
        let mut folded = normed();
        graph(&mut folded).node[0].attribute = vec![int("group", 1)];
        fold(&mut folded, f32::MAX).unwrap();
        assert_eq!(operators(&folded), ["Conv", "Relu"]);
        let first = graph(&mut folded).node[0].clone();
        assert_eq!(
            (first.input, first.output),
            (vec!["x".into(), "w_folded".into(), "b_folded".into()], vec!["n".into()])
        );
        assert_eq!(first.attribute, [int("group", 1)]);
        assert_eq!(names(&folded), ["w_folded", "b_folded"]);
        // Factors are 4/2 and -3/3; (1 - 3) * 2 + 0.5 and (-1 - 2) * -1 + 0.
        assert_eq!(find(&mut folded, "w_folded").dims, [2, 2, 1, 1]);
        assert_eq!(numbers(&mut folded, "w_folded"), [2.0, 4.0, -3.0, -4.0]);
        assert_eq!(numbers(&mut folded, "b_folded"), [-3.5, 3.0]);
        // Without a bias: -3 * 2 + 0.5 and -2 * -1 + 0.
        let mut folded = normed();
        graph(&mut folded).node[0].input.truncate(2);
        fold(&mut folded, f32::MAX).unwrap();
        assert_eq!(numbers(&mut folded, "c_bias"), [-5.5, 2.0]);
    }

    #[test]
    fn factors_and_shifts_of_channels_are_folded_one_after_another() {
        let group = vec![int("group", 4)];
        let nodes = vec![
            NodeProto { attribute: group.clone(), ..node("Conv", &["x", "w"], "c") },
            node("Mul", &["c", "factors"], "m"),
            node("Add", &["one", "m"], "a1"),
            node("Identity", &["flat"], "same"),
            node("Reshape", &["same", "shape"], "shifts"),
            node("Add", &["a1", "shifts"], "a2"),
            node("Mul", &["a2", "all"], "y"),
        ];
        let shape = [4i64, 1, 1].iter().flat_map(|size| size.to_le_bytes()).collect();
        let constants = vec![
            constant("w", &[4, 1, 1, 2], &[1.0, 0.0, 2.0, -2.0, 3.0, 1.0, 4.0, 5.0]),
            constant("factors", &[1, 4, 1, 1], &[1.0, 10.0, 100.0, 1000.0]),
            constant("one", &[], &[1.0]),
            constant("flat", &[4], &[1.0, 2.0, 3.0, 4.0]),
            tensor("shape", DataType::Int64, &[3], shape),
            constant("all", &[1, 1], &[0.5]),
        ];
        let mut folded = model(nodes, constants);
        fold(&mut folded, f32::MAX).unwrap();
        assert_eq!(operators(&folded), ["Conv"]);
        let only = graph(&mut folded).node[0].clone();
        assert_eq!((only.output, only.attribute), (vec!["y".into()], group));
        assert_eq!(names(&folded), ["w_folded", "c_bias"]);
        assert_eq!(numbers(&mut folded, "w_folded"), [0.5, 0.0, 10.0, -10.0, 150.0, 50.0, 2000.0, 2500.0]);
        assert_eq!(numbers(&mut folded, "c_bias"), [1.0, 1.5, 2.0, 2.5]);
    }

    #[test]
    fn what_is_only_added_leaves_the_weights_and_what_is_only_multiplied_makes_no_bias() {
        let check = |operator: &str, inputs: &[&str]| {
            let nodes = vec![node("Conv", &["x", "w"], "c"), node(operator, &["c", "two"], "y")];
            let mut folded = model(nodes, vec![constant("w", &[1, 1, 3], &[1.0; 3]), constant("two", &[1], &[2.0])]);
            fold(&mut folded, f32::MAX).unwrap();
            assert_eq!(
                (graph(&mut folded).node.len(), graph(&mut folded).node[0].input.as_slice()),
                (1, strings(inputs).as_slice())
            );
        };
        check("Add", &["x", "w", "c_bias"]);
        check("Mul", &["x", "w_folded"]);
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn weights_that_others_take_stay_theirs_and_new_ones_have_names_of_their_own() {
        let mut folded = normed();
        graph(&mut folded).node.insert(0, node("Conv", &["x", "w", "b"], "other"));
        graph(&mut folded).output.push(value("other"));
        // A name that is there already.
        graph(&mut folded).node.push(node("Neg", &["x"], "w_folded"));
        fold(&mut folded, f32::MAX).unwrap();
        let nodes = &graph(&mut folded).node;
        assert_eq!(nodes[0].input, strings(&["x", "w", "b"]));
        assert_eq!(nodes[1].input, strings(&["x", "w_folded_2", "b_folded"]));
        assert_eq!(names(&folded), ["w", "b", "w_folded_2", "b_folded"]);
        assert_eq!(numbers(&mut folded, "w"), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn one_weight_of_many_convolutions_does_not_become_many_large_ones() {
        let mut nodes = Vec::new();
        for at in 0..3 {
            let [given, output] = ["c", "y"].map(|name| format!("{name}{at}"));
            nodes.extend([node("Conv", &["x", "w"], &given), node("Mul", &[&given, "two"], &output)]);
        }
        let constants =
            vec![constant("w", &[64, MORE_MAX / 64, 1], &vec![1.0; MORE_MAX]), constant("two", &[], &[2.0])];
        let mut folded = model(nodes, constants);
        graph(&mut folded).output = (0..3).map(|at| value(&format!("y{at}"))).collect();
        fold(&mut folded, f32::MAX).unwrap();
        let left = operators(&folded).iter().filter(|operator| **operator == "Mul").count();
        // There is room for nearly two copies.
        assert_eq!(left, 2, "{:?}", operators(&folded));
    }

    #[test]
    fn what_is_not_safe_to_fold_is_left_as_it_is() {
        let check = |why: &str, change: &dyn Fn(&mut ModelProto)| {
            let mut original = normed();
            change(&mut original);
            let mut folded = original.clone();
            fold(&mut folded, f32::MAX).unwrap();
            // As bytes, in which a number that is none equals itself.
            assert!(folded.encode_to_vec() == original.encode_to_vec(), "{why}");
        };
        let mut folds = normed();
        fold(&mut folds, f32::MAX).unwrap();
        assert_ne!(folds, normed());
        check("the graph gives it", &|model| graph(model).output.push(value("c")));
        check("another takes it", &|model| graph(model).node.push(node("Neg", &["c"], "z")));
        check("a branch takes it", &|model| {
            let inner = GraphProto { node: vec![node("Neg", &["c"], "z")], ..GraphProto::default() };
            let branch = AttributeProto { g: Some(inner), ..AttributeProto::default() };
            graph(model).node.push(NodeProto { attribute: vec![branch], ..node("If", &["x"], "i") });
        });
        check("a norm that trains", &|model| graph(model).node[1].attribute.push(int("training_mode", 1)));
        check("a norm that gives more", &|model| graph(model).node[1].output.push("mean_out".into()));
        check("a norm of each place", &|model| graph(model).node[1].attribute.push(int("spatial", 0)));
        check("a norm that takes it as its scale", &|model| graph(model).node[1].input.swap(0, 1));
        check("a norm without variances", &|model| graph(model).node[1].input.truncate(4));
        check("a norm of another size", &|model| *find(model, "scale") = constant("scale", &[1], &[1.0]));
        check("a norm of another shape", &|model| find(model, "mean").dims = vec![2, 1]);
        check("a variance below zero", &|model| *find(model, "variance") = constant("variance", &[2], &[1.0, -2.0]));
        check("no variance at all", &|model| *find(model, "variance") = constant("variance", &[2], &[1.0, -1.0]));
        check("an ε that is no number", &|model| graph(model).node[1].attribute = vec![epsilon(f32::NAN)]);
        check("weights that are no numbers", &|model| *find(model, "w") = constant("w", &[2, 2, 1, 1], &[f32::NAN; 4]));
        check("weights that would be too large", &|model| *find(model, "w") = constant("w", &[2, 2, 1, 1], &[3e38; 4]));
        check("a bias that would be too large", &|model| *find(model, "b") = constant("b", &[2], &[3e38; 2]));
        check("a bias of another size", &|model| *find(model, "b") = constant("b", &[1], &[1.0]));
        check("weights without a window", &|model| find(model, "w").dims = vec![2, 2]);
        check("fewer weights than their shape says", &|model| find(model, "w").dims = vec![2, 2, 9, 9]);
        check("weights of 16 bits", &|model| {
            *find(model, "w") = tensor("w", DataType::Float16, &[2, 2, 1, 1], vec![0; 8]);
        });
        for name in ["w", "b", "scale", "shift", "mean", "variance"] {
            check("a default that a request may override", &|model| graph(model).input.push(value(name)));
            check("a computed operand", &|model| {
                graph(model).initializer.retain(|tensor| tensor.name() != name);
                graph(model).node.insert(0, node("Neg", &["x"], name));
            });
        }
        check("an old opset", &|model| model.opset_import[0].version = Some(6));
        check("an operator of another domain", &|model| graph(model).node[1].domain = Some("mine".into()));
        check("a convolution of another domain", &|model| graph(model).node[0].domain = Some("mine".into()));
        check("another order of channels", &|model| graph(model).node[0].op_type = Some("ConvTranspose".into()));
        check("a taker that comes first", &|model| graph(model).node.swap(0, 1));
        let two = |dims: &[usize]| constant("two", dims, &vec![2.0; dims.iter().product()]);
        for (why, operator, dims) in [
            ("along the last axis", "Mul", &[2][..]),
            ("along the height", "Add", &[2, 1]),
            ("along the batch", "Mul", &[2, 1, 1, 1]),
            ("for each place", "Add", &[2, 1, 3]),
            ("that adds an axis", "Add", &[1, 1, 2, 1, 1]),
            ("of other channels", "Mul", &[3, 1, 1]),
            ("of nothing", "Mul", &[0]),
            ("that is subtracted", "Sub", &[]),
        ] {
            check(why, &|model| {
                graph(model).initializer.push(two(dims));
                graph(model).node[1] = node(operator, &["c", "two"], "n");
            });
        }
        check("two computed operands", &|model| graph(model).node[1] = node("Mul", &["c", "x"], "n"));
        check("it twice", &|model| graph(model).node[1] = node("Mul", &["c", "c"], "n"));
        check("three operands", &|model| graph(model).node[1] = node("Add", &["c", "b", "b"], "n"));
        fold(&mut ModelProto::default(), f32::MAX).unwrap();
    }

    #[test]
    fn the_first_steps_are_folded_where_a_later_one_cannot_be() {
        let mut folded = normed();
        graph(&mut folded).node[2] = node("Mul", &["n", "huge"], "y");
        graph(&mut folded).initializer.push(constant("huge", &[], &[3e38]));
        fold(&mut folded, f32::MAX).unwrap();
        assert_eq!(operators(&folded), ["Conv", "Mul"]);
        assert_eq!(numbers(&mut folded, "w_folded"), [2.0, 4.0, -3.0, -4.0]);
    }

    #[test]
    fn nothing_becomes_larger_than_the_form_can_hold() {
        for (most, left) in [(65504.0, 1), (f32::MAX, 0)] {
            let mut folded = normed();
            *find(&mut folded, "scale") = constant("scale", &[2], &[4.0, 60000.0]);
            fold(&mut folded, most).unwrap();
            assert_eq!(operators(&folded).iter().filter(|name| **name == "BatchNormalization").count(), left);
        }
    }

    #[test]
    fn constants_of_old_files_that_are_listed_as_inputs_are_folded() {
        let mut folded = normed();
        folded.ir_version = Some(3);
        let listed: Vec<ValueInfoProto> = names(&folded).into_iter().map(value).collect();
        graph(&mut folded).input.extend(listed);
        fold(&mut folded, f32::MAX).unwrap();
        assert_eq!(operators(&folded), ["Conv", "Relu"]);
        assert_eq!((graph(&mut folded).input.len(), folded.ir_version()), (1, 4));
    }

    #[test]
    fn a_norm_that_takes_what_it_gives_ends() {
        let mut folded = normed();
        graph(&mut folded).node[1].output = vec!["c".into()];
        fold(&mut folded, f32::MAX).unwrap();
    }
}

//! Tensors that clients see in another shape than the graph: `reshape` of Triton's model configuration.
//!
//! A [`Runtime`] in front of the real one, whose sessions declare the clients' shapes and reshape on the way in and out, without
//! a copy. So all else (checks, made-up inputs, joining, metadata) knows the clients' shapes alone. Knows no file.

use crate::runtime::{
    GraphFacts, GraphSource, Input, Interrupt, ProviderStatus, Runtime, RuntimeError, Session, SessionSettings,
    WorkingMemory,
};
use crate::tensor::{Dim, Spec, Tensor, Value, ValueType};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One tensor's two shapes. The open sizes (-1) of both stand for each other in their order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reshape {
    /// As clients send and get it.
    dims: Vec<i64>,
    /// As the graph has it.
    shape: Vec<i64>,
    /// Whether both have a batch dimension in front, which `dims` and `shape` leave out.
    batched: bool,
}

/// The reshaped tensors of a model, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reshapes {
    pub(super) inputs: BTreeMap<String, Reshape>,
    pub(super) outputs: BTreeMap<String, Reshape>,
}

impl Reshape {
    /// # Errors
    /// Says what of the two shapes does not agree.
    pub(super) fn new(dims: Vec<i64>, shape: Vec<i64>, batched: bool) -> Result<Reshape, String> {
        if dims.is_empty() {
            return Err("a reshape needs dims, such as dims: [ 1 ]".into());
        }
        if shape.is_empty() && !batched {
            return Err("an empty shape needs max_batch_size above 0; state the shape that the graph declares".into());
        }
        if let Some(bad) = dims.iter().chain(&shape).find(|size| **size != -1 && **size < 1) {
            return Err(format!("expected sizes of at least 1, or -1 for any size, got {bad}"));
        }
        let (outside, inside) = (counts(&dims), counts(&shape));
        if outside.is_none() || outside != inside {
            return Err(format!(
                "dims {dims:?} and shape {shape:?} do not have the same elements: before, between and after the sizes of -1 \
                 their products must be equal"
            ));
        }
        Ok(Reshape { dims, shape, batched })
    }

    /// The type that clients see of a value that the graph declares as `ty`.
    fn outside(&self, ty: &ValueType) -> Result<ValueType, String> {
        let ValueType::Tensor { dtype, shape: declared } = ty else {
            return Err(format!("the graph declares {ty}, which has no shape"));
        };
        let mut open = Vec::new();
        let mut batch = self.batched.then_some(Dim::Dynamic(None));
        if let Some(declared) = declared.as_deref() {
            let rest = if self.batched { declared.get(1..).unwrap_or_default() } else { declared };
            let agrees = declared.len() == usize::from(self.batched) + self.shape.len()
                && self
                    .shape
                    .iter()
                    .zip(rest)
                    .all(|(&stated, dim)| stated == -1 || dim.to_wire() == -1 || stated == dim.to_wire());
            if !agrees {
                let note = if self.batched { " behind the batch dimension" } else { "" };
                return Err(format!("the graph declares {ty}, the configuration {:?}{note}", self.shape));
            }
            batch = batch.and(declared.first().cloned());
            open.extend(self.shape.iter().zip(rest).filter(|(stated, _)| **stated == -1).map(|(_, dim)| dim.clone()));
        }
        // What the graph fixes or names is so for clients, too.
        let mut open = open.into_iter();
        let dim = |&size: &i64| match usize::try_from(size) {
            Ok(size) => Dim::Fixed(size),
            Err(_) => open.next().unwrap_or(Dim::Dynamic(None)),
        };
        let shape = batch.into_iter().chain(self.dims.iter().map(dim)).collect();
        Ok(ValueType::Tensor { dtype: *dtype, shape: Some(shape) })
    }

    fn inwards(&self, tensor: &Tensor) -> Option<Tensor> {
        tensor.reshape(mapped(tensor.shape(), &self.dims, &self.shape, self.batched)?).ok()
    }

    fn outwards(&self, tensor: &Tensor) -> Option<Tensor> {
        tensor.reshape(mapped(tensor.shape(), &self.shape, &self.dims, self.batched)?).ok()
    }
}

/// The elements before, between and after the open sizes; `None` where one is beyond all bounds.
fn counts(shape: &[i64]) -> Option<Vec<i64>> {
    shape
        .split(|size| *size == -1)
        .map(|part| part.iter().try_fold(1i64, |count, size| count.checked_mul(*size)))
        .collect()
}

/// A shape of the form `from` as one of the form `to`; `None` where it is not of that form.
fn mapped(shape: &[usize], from: &[i64], to: &[i64], batched: bool) -> Option<Vec<usize>> {
    let (batch, rest) = if batched { shape.split_at_checked(1)? } else { (&[][..], shape) };
    if rest.len() != from.len() {
        return None;
    }
    let mut open = Vec::new();
    for (&stated, &size) in from.iter().zip(rest) {
        match usize::try_from(stated) {
            Ok(stated) if stated == size => {}
            Ok(_) => return None,
            Err(_) => open.push(size),
        }
    }
    let mut open = open.into_iter();
    let sizes = to.iter().map(|&stated| usize::try_from(stated).ok().or_else(|| open.next()));
    batch.iter().copied().map(Some).chain(sizes).collect()
}

impl Reshapes {
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }

    /// The runtime whose sessions have the clients' shapes.
    pub(super) fn seen_through(self, runtime: Arc<dyn Runtime>) -> Arc<dyn Runtime> {
        if self.is_empty() { runtime } else { Arc::new(Reshaping { runtime, reshapes: self }) }
    }
}

struct Reshaping {
    runtime: Arc<dyn Runtime>,
    reshapes: Reshapes,
}

impl Reshaping {
    fn reshaped(&self, session: Box<dyn Session>) -> Result<Box<dyn Session>, RuntimeError> {
        let (inputs, to_graph) = declared("input", session.inputs(), &self.reshapes.inputs)?;
        let (outputs, from_graph) = declared("output", session.outputs(), &self.reshapes.outputs)?;
        Ok(Box::new(ReshapingSession { session, inputs, outputs, to_graph, from_graph }))
    }
}

impl Runtime for Reshaping {
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        self.reshaped(self.runtime.load(source, settings)?)
    }

    fn load_profiled(
        &self,
        source: &GraphSource,
        settings: &SessionSettings,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        self.reshaped(self.runtime.load_profiled(source, settings)?)
    }

    fn size_bytes(&self, source: &GraphSource) -> Result<u64, RuntimeError> {
        self.runtime.size_bytes(source)
    }

    fn providers(&self) -> Vec<ProviderStatus> {
        self.runtime.providers()
    }

    fn give_back(&self) {
        self.runtime.give_back();
    }

    fn version(&self) -> &str {
        self.runtime.version()
    }
}

/// By a value's index; `None`: it is as the graph has it.
type ByIndex = Arc<[Option<Reshape>]>;

fn declared(
    kind: &str,
    specs: &[Spec],
    reshapes: &BTreeMap<String, Reshape>,
) -> Result<(Vec<Spec>, ByIndex), RuntimeError> {
    let mut seen = specs.to_vec();
    for spec in &mut seen {
        if let Some(reshape) = reshapes.get(&spec.name) {
            let problem = |problem| {
                RuntimeError::Graph(format!("model configuration: {kind} '{}': reshape: {problem}", spec.name))
            };
            spec.ty = reshape.outside(&spec.ty).map_err(problem)?;
        }
    }
    Ok((seen, specs.iter().map(|spec| reshapes.get(&spec.name).cloned()).collect()))
}

struct ReshapingSession {
    session: Box<dyn Session>,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    to_graph: ByIndex,
    from_graph: ByIndex,
}

impl Session for ReshapingSession {
    fn inputs(&self) -> &[Spec] {
        &self.inputs
    }

    fn outputs(&self) -> &[Spec] {
        &self.outputs
    }

    fn facts(&self) -> &GraphFacts {
        self.session.facts()
    }

    fn run(&mut self, inputs: &[Input], outputs: &[usize], interrupt: &Interrupt) -> Result<Vec<Value>, RuntimeError> {
        let failed = |kind: &str, specs: &[Spec], index: usize| {
            let name = specs.get(index).map_or("", |spec| spec.name.as_str());
            RuntimeError::Run(format!(
                "{kind} '{name}' has a shape that the reshape of the configuration does not cover"
            ))
        };
        let inside: Vec<Input> = inputs
            .iter()
            .map(|(index, value)| {
                let value = reshaped(value, &self.to_graph, *index, Reshape::inwards);
                Ok((*index, value.ok_or_else(|| failed("input", &self.inputs, *index))?))
            })
            .collect::<Result<_, RuntimeError>>()?;
        let values = self.session.run(&inside, outputs, interrupt)?;
        let outside = outputs.iter().zip(&values).map(|(&index, value)| {
            reshaped(value, &self.from_graph, index, Reshape::outwards)
                .ok_or_else(|| failed("output", &self.outputs, index))
        });
        outside.collect()
    }

    fn end_profile(&mut self) -> Result<Vec<String>, RuntimeError> {
        self.session.end_profile()
    }

    fn share(&self) -> Option<Box<dyn Session>> {
        Some(Box::new(ReshapingSession {
            session: self.session.share()?,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            to_graph: self.to_graph.clone(),
            from_graph: self.from_graph.clone(),
        }))
    }

    fn working_memory(&self) -> Option<Arc<dyn WorkingMemory>> {
        self.session.working_memory()
    }
}

/// The value in its other shape; itself where it has none.
fn reshaped(
    value: &Value,
    reshapes: &ByIndex,
    index: usize,
    turn: fn(&Reshape, &Tensor) -> Option<Tensor>,
) -> Option<Value> {
    match (value, reshapes.get(index).and_then(Option::as_ref)) {
        (Value::Tensor(tensor), Some(reshape)) => turn(reshape, tensor).map(Value::Tensor),
        (value, _) => Some(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;
    use crate::tensor::DType;

    #[test]
    fn open_sizes_pair_in_their_order() {
        #[track_caller]
        fn check(dims: &[i64], shape: &[i64], batched: bool, outside: &[usize], inside: &[usize]) {
            let reshape = Reshape::new(dims.to_vec(), shape.to_vec(), batched).unwrap();
            let count = outside.iter().product();
            let sent = Tensor::from_vec(DType::Fp32, outside.to_vec(), vec![0f32; count]).unwrap();
            let run = reshape.inwards(&sent).unwrap();
            assert_eq!(run.shape(), inside);
            assert_eq!(reshape.outwards(&run).unwrap().shape(), outside);
        }
        check(&[1], &[], true, &[7, 1], &[7]);
        check(&[3], &[1, 3], false, &[3], &[1, 3]);
        check(&[2, 4, -1, 6], &[8, -1, 1, 6], false, &[2, 4, 5, 6], &[8, 5, 1, 6]);
        check(&[-1, 4, -1], &[-1, 2, 2, -1], true, &[2, 3, 4, 0], &[2, 3, 2, 2, 0]);
        check(&[12], &[2, 2, 3], true, &[0, 12], &[0, 2, 2, 3]);
    }

    #[test]
    fn shapes_that_do_not_hold_the_same_are_refused() {
        #[track_caller]
        fn check(dims: &[i64], shape: &[i64], batched: bool, expected: &str) {
            let error = Reshape::new(dims.to_vec(), shape.to_vec(), batched).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        check(&[], &[1], true, "needs dims");
        check(&[1], &[], false, "max_batch_size above 0");
        check(&[2], &[], true, "same elements");
        check(&[4], &[2, 3], true, "same elements");
        check(&[-1], &[1], true, "same elements");
        check(&[-1, -1], &[-1], true, "same elements");
        check(&[2, -1, 3], &[3, -1, 2], true, "same elements");
        check(&[0], &[1], true, "at least 1");
        check(&[1], &[-2], true, "at least 1");
        check(&[i64::MAX, i64::MAX], &[i64::MAX, i64::MAX], true, "same elements");
    }

    fn spec(name: &str, dims: &[i64]) -> Spec {
        let shape = dims.iter().map(|&dim| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed)).collect();
        Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Fp32, shape: Some(shape) }, optional: false }
    }

    fn load(graph: &[i64], dims: &[i64], shape: &[i64]) -> Result<Box<dyn Session>, RuntimeError> {
        let reshape = Reshape::new(dims.to_vec(), shape.to_vec(), true).unwrap();
        let both = |name: &str| BTreeMap::from([(name.to_owned(), reshape.clone())]);
        // Says in which shape it came.
        let run = |inputs: &[Input], _: &[usize], _: &Interrupt| {
            assert_eq!(inputs[0].1.as_tensor().unwrap().shape().len(), 3);
            Ok(vec![inputs[0].1.clone()])
        };
        let runtime = Arc::new(FakeRuntime::new(vec![spec("x", graph)], vec![spec("y", graph)], run));
        let runtime = Reshapes { inputs: both("x"), outputs: both("y") }.seen_through(runtime);
        let source = GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 };
        let settings = SessionSettings::default();
        runtime.load(&source, &settings)
    }

    #[test]
    fn a_session_is_seen_in_the_clients_shapes() {
        let mut session = load(&[-1, 2, 3], &[6], &[2, 3]).unwrap();
        assert_eq!(session.inputs()[0].ty.to_string(), "FP32[-1, 6]");
        let sent = Tensor::from_vec(DType::Fp32, vec![2, 6], vec![0.5f32; 12]).unwrap();
        let outputs = session.run(&[(0, sent.into())], &[0], &Interrupt::new()).unwrap();
        assert_eq!(outputs[0].as_tensor().unwrap().shape(), [2, 6]);
        let wrong = Tensor::from_vec(DType::Fp32, vec![2, 5], vec![0.5f32; 10]).unwrap();
        assert!(session.run(&[(0, wrong.into())], &[0], &Interrupt::new()).is_err());
    }

    #[test]
    fn what_the_graph_fixes_clients_see_fixed_and_a_contradiction_is_named() {
        let session = load(&[-1, 4, -1], &[-1, -1], &[-1, -1]).unwrap();
        assert_eq!(session.inputs()[0].ty.to_string(), "FP32[-1, 4, -1]");
        let error = load(&[-1, 2, 4], &[6], &[2, 3]).err().unwrap().to_string();
        assert_eq!(
            error,
            "model configuration: input 'x': reshape: the graph declares FP32[-1, 2, 4], the configuration [2, 3] behind the batch dimension"
        );
        assert!(load(&[-1, 6], &[6], &[2, 3]).is_err());
    }
}

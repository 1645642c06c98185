//! Two graphs behind one [`Session`]: a tower for pictures and one for texts, whose embeddings are compared outside of both.
//!
//! Invariants: the inputs and outputs are those of both towers, the pictures' first; a name that both have stands there
//! with `image_` or `text_` before it, and no two are the same. Rows of one tower have nothing to do with rows of the
//! other, so the first dimensions have different names. A tower none of whose outputs is asked for does not run.
//!
//! Many pictures are asked about the same few texts, and the texts cost more than a picture does: what the text tower gave
//! last is given again where its inputs are the same to the byte.

use super::{
    Execution, GraphFacts, Input, Interrupt, RuntimeError, Session, SessionMemory, WorkingMemories, WorkingMemory,
};
use crate::tensor::{Dim, Spec, Value, ValueType};
use std::collections::HashSet;
use std::sync::Arc;

/// Bytes of the texts' inputs, and of what the text tower gave for them, that are kept for the next run.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// A picture tower and a text tower.
pub(super) struct Pair {
    image: Box<dyn Session>,
    text: Box<dyn Session>,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    facts: GraphFacts,
    working: Option<Arc<dyn WorkingMemory>>,
    kept: Option<Kept>,
}

/// A run of the text tower: its inputs, and what it gave for the outputs that were asked for.
struct Kept {
    inputs: Vec<Input>,
    outputs: Vec<(usize, Value)>,
}

impl Pair {
    /// # Errors
    /// Where two inputs or two outputs cannot be told apart by name.
    pub(super) fn new(image: Box<dyn Session>, text: Box<dyn Session>) -> Result<Pair, RuntimeError> {
        let inputs = union("inputs", image.inputs(), text.inputs())?;
        let outputs = union("outputs", image.outputs(), text.outputs())?;
        let facts = facts(image.facts(), text.facts());
        let both: Vec<_> = [&image, &text].iter().filter_map(|tower| tower.working_memory()).collect();
        let working = (!both.is_empty()).then(|| Arc::new(WorkingMemories::new(both)) as Arc<dyn WorkingMemory>);
        Ok(Pair { image, text, inputs, outputs, facts, working, kept: None })
    }

    fn run_text(
        &mut self,
        inputs: Vec<Input>,
        outputs: &[usize],
        interrupt: &Interrupt,
    ) -> Result<Vec<Value>, RuntimeError> {
        if let Some(values) = self.kept.as_ref().and_then(|kept| kept.answer(&inputs, outputs)) {
            return Ok(values);
        }
        // Given back before the next run needs memory.
        self.kept = None;
        let values = self.text.run(&inputs, outputs, interrupt)?;
        self.kept = Kept::new(inputs, outputs, &values);
        Ok(values)
    }
}

impl Session for Pair {
    fn inputs(&self) -> &[Spec] {
        &self.inputs
    }

    fn outputs(&self) -> &[Spec] {
        &self.outputs
    }

    fn facts(&self) -> &GraphFacts {
        &self.facts
    }

    fn run(&mut self, inputs: &[Input], outputs: &[usize], interrupt: &Interrupt) -> Result<Vec<Value>, RuntimeError> {
        let (pictures, texts): (Vec<Input>, Vec<Input>) = apart(inputs, self.image.inputs().len());
        let borders = self.image.outputs().len();
        let of_image: Vec<usize> = outputs.iter().copied().filter(|&index| index < borders).collect();
        let of_text: Vec<usize> = outputs.iter().filter_map(|&index| index.checked_sub(borders)).collect();
        let mut of_image = match of_image.is_empty() {
            true => Vec::new(),
            false => self.image.run(&pictures, &of_image, interrupt)?,
        }
        .into_iter();
        let mut of_text = match of_text.is_empty() {
            true => Vec::new(),
            false => self.run_text(texts, &of_text, interrupt)?,
        }
        .into_iter();
        let next = |&index: &usize| if index < borders { of_image.next() } else { of_text.next() };
        let values: Option<Vec<Value>> = outputs.iter().map(next).collect();
        values.ok_or_else(|| RuntimeError::Run("a tower gave fewer outputs than were asked for".to_owned()))
    }

    fn end_profile(&mut self) -> Result<Vec<String>, RuntimeError> {
        let mut traces = self.image.end_profile()?;
        traces.extend(self.text.end_profile()?);
        Ok(traces)
    }

    fn share(&self) -> Option<Box<dyn Session>> {
        Some(Box::new(Pair {
            image: self.image.share()?,
            text: self.text.share()?,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            facts: self.facts.clone(),
            working: self.working.clone(),
            kept: None,
        }))
    }

    fn working_memory(&self) -> Option<Arc<dyn WorkingMemory>> {
        self.working.clone()
    }
}

impl WorkingMemory for WorkingMemories {
    fn read(&self) -> Option<SessionMemory> {
        WorkingMemories::read(self)
    }

    fn shrink(&self) {
        WorkingMemories::shrink(self);
    }
}

impl Kept {
    /// `None` where it would be too large, or is of a kind that is not compared.
    fn new(inputs: Vec<Input>, wanted: &[usize], values: &[Value]) -> Option<Kept> {
        let outputs: Vec<(usize, Value)> = wanted.iter().copied().zip(values.iter().cloned()).collect();
        let mut bytes = 0usize;
        for (_, value) in inputs.iter().chain(&outputs) {
            let tensor = value.as_tensor().filter(|tensor| tensor.strings().is_empty())?;
            bytes = bytes.saturating_add(tensor.bytes().len());
        }
        (bytes <= KEPT_BYTES_MAX).then_some(Kept { inputs, outputs })
    }

    fn answer(&self, inputs: &[Input], wanted: &[usize]) -> Option<Vec<Value>> {
        let same = |(one, other): (&Input, &Input)| match (one.1.as_tensor(), other.1.as_tensor()) {
            (Some(a), Some(b)) => {
                one.0 == other.0 && a.dtype() == b.dtype() && a.shape() == b.shape() && a.bytes() == b.bytes()
            }
            _ => false,
        };
        let is_same = self.inputs.len() == inputs.len() && self.inputs.iter().zip(inputs).all(same);
        let find = |index: &usize| Some(self.outputs.iter().find(|(kept, _)| kept == index)?.1.clone());
        is_same.then(|| wanted.iter().map(find).collect())?
    }
}

/// The values of the first tower's inputs, and those of the second's by its own indices.
fn apart(inputs: &[Input], border: usize) -> (Vec<Input>, Vec<Input>) {
    let (first, second): (Vec<Input>, Vec<Input>) = inputs.iter().cloned().partition(|(index, _)| *index < border);
    (first, second.into_iter().map(|(index, value)| (index.saturating_sub(border), value)).collect())
}

fn union(kind: &str, image: &[Spec], text: &[Spec]) -> Result<Vec<Spec>, RuntimeError> {
    let in_both = |name: &str| [image, text].iter().all(|specs| specs.iter().any(|spec| spec.name == name));
    let named = |tower: &str, spec: &Spec| {
        let mut spec = spec.clone();
        if in_both(&spec.name) {
            spec.name = format!("{tower}_{}", spec.name);
        }
        if let ValueType::Tensor { shape: Some(dims), .. } = &mut spec.ty
            && let Some(first @ Dim::Dynamic(_)) = dims.first_mut()
        {
            *first = Dim::Dynamic(Some(format!("{tower}_batch_size")));
        }
        spec
    };
    let all = image.iter().map(|spec| named("image", spec)).chain(text.iter().map(|spec| named("text", spec)));
    let all: Vec<Spec> = all.collect();
    let mut names = HashSet::new();
    match all.iter().find(|spec| !names.insert(spec.name.as_str())) {
        Some(spec) => Err(RuntimeError::Graph(format!(
            "the two towers have {kind} that cannot be told apart: {:?}; rename one when exporting",
            spec.name
        ))),
        None => Ok(all),
    }
}

/// What is counted is the sum; what says one thing is the picture tower's.
fn facts(image: &GraphFacts, text: &GraphFacts) -> GraphFacts {
    let mut custom = text.custom.clone();
    custom.extend(image.custom.clone());
    GraphFacts {
        custom,
        num_parameters: image.num_parameters.zip(text.num_parameters).map(|(a, b)| a.saturating_add(b)),
        repeats_weights: image.repeats_weights || text.repeats_weights,
        size_bytes: image.size_bytes.saturating_add(text.size_bytes),
        bounded: image.bounded && text.bounded,
        execution: execution(&image.execution, &text.execution),
        ..image.clone()
    }
}

/// The nodes of both; whatever either misses.
fn execution(image: &Execution, text: &Execution) -> Execution {
    let mut both = image.clone();
    for (provider, nodes) in &text.nodes {
        *both.nodes.entry(provider.clone()).or_insert(0) += nodes;
    }
    both.missing.extend(text.missing.iter().filter(|missing| !image.missing.contains(missing)).cloned());
    both.registered.retain(|provider| text.registered.contains(provider));
    both.is_fallback |= text.is_fallback;
    both
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRuntime;
    use super::super::{GraphSource, Runtime, SessionSettings};
    use super::*;
    use crate::tensor::{DType, Tensor};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn spec(name: &str, dtype: DType) -> Spec {
        let shape = vec![Dim::Dynamic(Some("batch_size".into())), Dim::Fixed(1)];
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype, shape: Some(shape) }, optional: false }
    }

    /// A tower that gives its first input for every output, and counts its runs.
    fn tower(inputs: &[&str], outputs: &[&str], runs: &Arc<AtomicUsize>) -> Box<dyn Session> {
        let specs = |names: &[&str]| names.iter().map(|name| spec(name, DType::Fp32)).collect();
        let runs = runs.clone();
        let runtime = FakeRuntime::new(specs(inputs), specs(outputs), move |inputs, outputs, _| {
            runs.fetch_add(1, Ordering::SeqCst);
            Ok(outputs.iter().map(|_| inputs[0].1.clone()).collect())
        });
        let settings = SessionSettings::default();
        let source = GraphSource { file: "".into(), text_tower: None, folder: "".into(), max_file_bytes: 0 };
        runtime.load(&source, &settings).unwrap()
    }

    fn rows(count: usize, value: f32) -> Value {
        Tensor::from_vec(DType::Fp32, vec![count, 1], vec![value; count]).unwrap().into()
    }

    fn first(value: &Value) -> (usize, f32) {
        let tensor = value.as_tensor().unwrap();
        (tensor.shape()[0], tensor.to_f32().unwrap()[0])
    }

    #[test]
    fn a_pair_has_the_inputs_and_outputs_of_both_towers_under_names_that_differ() {
        let runs = Arc::default();
        let image = tower(&["pixel_values"], &["image_embeds", "hidden"], &runs);
        let text = tower(&["input_ids", "attention_mask"], &["hidden", "text_embeds"], &runs);
        let pair = Pair::new(image, text).unwrap();
        let names = |specs: &[Spec]| specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(pair.inputs()), ["pixel_values", "input_ids", "attention_mask"]);
        assert_eq!(names(pair.outputs()), ["image_embeds", "image_hidden", "text_hidden", "text_embeds"]);
        let rows = |index: usize| pair.outputs()[index].ty.shape().unwrap()[0].clone();
        assert_eq!(rows(0), Dim::Dynamic(Some("image_batch_size".into())));
        assert_eq!(rows(3), Dim::Dynamic(Some("text_batch_size".into())));
        let image = tower(&["x"], &["text_y", "y"], &runs);
        let refused = Pair::new(image, tower(&["z"], &["y"], &runs)).err().unwrap().to_string();
        assert!(refused.contains("outputs that cannot be told apart: \"text_y\""), "{refused}");
    }

    #[test]
    fn each_tower_runs_for_its_own_outputs_and_the_same_texts_only_once() {
        let (pictures, texts) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let image = tower(&["pixel_values"], &["image_embeds"], &pictures);
        let text = tower(&["input_ids"], &["text_embeds", "hidden"], &texts);
        let mut pair = Pair::new(image, text).unwrap();
        let mut check = |inputs: &[Input], outputs: &[usize], expected: &[(usize, f32)], runs: (usize, usize)| {
            let values = pair.run(inputs, outputs, &Interrupt::new()).unwrap();
            assert_eq!(values.iter().map(first).collect::<Vec<_>>(), expected);
            assert_eq!((pictures.load(Ordering::SeqCst), texts.load(Ordering::SeqCst)), runs);
        };
        let given = |picture: f32, labels: usize, text: f32| vec![(1, rows(labels, text)), (0, rows(1, picture))];
        check(&given(1.0, 3, 5.0), &[1, 0], &[(3, 5.0), (1, 1.0)], (1, 1));
        check(&given(2.0, 3, 5.0), &[0, 1], &[(1, 2.0), (3, 5.0)], (2, 1));
        // An output that was not asked for before.
        check(&given(2.0, 3, 5.0), &[2, 0, 1], &[(3, 5.0), (1, 2.0), (3, 5.0)], (3, 2));
        check(&given(2.0, 3, 6.0), &[1], &[(3, 6.0)], (3, 3));
        check(&given(2.0, 2, 6.0), &[1], &[(2, 6.0)], (3, 4));
        check(&given(2.0, 2, 7.0), &[0], &[(1, 2.0)], (4, 4));
        // More than is kept.
        let many = KEPT_BYTES_MAX / 8 + 1;
        check(&given(2.0, many, 7.0), &[1], &[(many, 7.0)], (4, 5));
        check(&given(2.0, many, 7.0), &[1], &[(many, 7.0)], (4, 6));
    }
}

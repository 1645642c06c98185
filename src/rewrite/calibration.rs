//! Which numbers a graph's tensors take in real runs, for quantisation whose scales are the same in every run.
//!
//! [`observable_file`] writes a copy of the graph that also gives the tensors to be observed; [`calibrate`] runs it over
//! samples and keeps their [`Ranges`]. A range is a low, a high and a histogram of fixed size, however many numbers come.

use super::static_int8;
use super::{RewriteError, file};
use crate::runtime::onnx::proto::{
    TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    type_proto::{Tensor as TensorType, Value as TypeValue},
};
use crate::runtime::{Input, Interrupt, RuntimeError, Session};
use crate::tensor::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Bins of a histogram, half of them for each sign.
const BINS: usize = 2048;
/// Where the bins begin: what is less than this is as good as zero.
const FIRST_WIDTH: f64 = 1e-12;

/// Writes `to`, a copy of the graph of `from` that gives in addition the tensors whose ranges static quantisation has to know.
/// Gives their names. Blocks.
///
/// # Errors
/// Where the file cannot be read or written, or the graph cannot be quantised statically.
pub fn observable_file(from: &Path, to: &Path) -> Result<Vec<String>, RewriteError> {
    let mut read = file::read(from)?;
    let names = static_int8::observed(read.model.clone())?;
    if let Some(graph) = &mut read.model.graph {
        for name in &names {
            if !graph.output.iter().any(|output| output.name() == name) {
                let tensor = TensorType { elem_type: Some(DataType::Float as i32), shape: None };
                let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
                let known = graph.value_info.iter().find(|value| value.name() == name).cloned();
                graph.value_info.retain(|value| value.name() != name);
                graph.output.push(known.unwrap_or(ValueInfoProto {
                    name: Some(name.clone()),
                    r#type: Some(kind),
                    ..ValueInfoProto::default()
                }));
            }
        }
    }
    file::write(read.model, to, !read.data_files.is_empty())?;
    Ok(names)
}

/// Runs a graph that [`observable_file`] wrote over `samples`, and gives what `names` took. Blocks for all the runs.
///
/// # Errors
/// Where a run fails or `interrupt` fires, or the session lacks a name.
pub fn calibrate(
    session: &mut dyn Session,
    samples: &[Vec<Input>],
    names: &[String],
    interrupt: &Interrupt,
) -> Result<Ranges, CalibrationError> {
    let at = |name: &String| session.outputs().iter().position(|output| output.name == *name);
    // An input that is observed is no output, and known all the same.
    let (mut outputs, mut inputs) = (Vec::new(), Vec::new());
    for name in names {
        match (at(name), session.inputs().iter().position(|input| input.name == *name)) {
            (_, Some(index)) => inputs.push((index, name)),
            (Some(index), None) => outputs.push((index, name)),
            (None, None) => return Err(CalibrationError::Missing(name.clone())),
        }
    }
    let indices: Vec<usize> = outputs.iter().map(|(index, _)| *index).collect();
    let mut ranges = Ranges::default();
    for sample in samples {
        for (index, value) in sample {
            for (_, name) in inputs.iter().filter(|(at, _)| at == index) {
                ranges.observe(name, value);
            }
        }
        if indices.is_empty() {
            continue;
        }
        let values = session.run(sample, &indices, interrupt)?;
        for ((_, name), value) in outputs.iter().zip(&values) {
            ranges.observe(name, value);
        }
    }
    Ok(ranges)
}

/// Why a graph could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    #[error("the graph gives no tensor {0:?}; observe the file that was written for it")]
    Missing(String),
    #[error(transparent)]
    Run(#[from] RuntimeError),
}

/// What tensors took, by their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges(BTreeMap<String, Range>);

impl Ranges {
    /// Adds the finite numbers of a tensor; other values have none.
    pub fn observe(&mut self, name: &str, value: &Value) {
        let Some(numbers) = value.as_tensor().and_then(|tensor| tensor.to_f32()) else { return };
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Range::default());
        }
        if let Some(range) = self.0.get_mut(name) {
            range.observe(&numbers);
        }
    }

    /// Tensors that were observed.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was observed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest and highest number of a tensor, or the limits within which `percentile` of a hundred numbers lie; `None`
    /// where no finite number came.
    pub fn limits(&self, name: &str, percentile: Option<f64>) -> Option<(f32, f32)> {
        self.0.get(name).and_then(|range| range.limits(percentile))
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Range {
    low: f32,
    high: f32,
    /// How many numbers came, by how far they are from zero: negative ones first.
    bins: Vec<u64>,
    width: f64,
}

impl Default for Range {
    fn default() -> Range {
        Range { low: f32::INFINITY, high: f32::NEG_INFINITY, bins: vec![0; BINS], width: FIRST_WIDTH }
    }
}

impl Range {
    fn observe(&mut self, numbers: &[f32]) {
        let finite = || numbers.iter().copied().filter(|number| number.is_finite());
        let farthest = finite().fold(0f32, |most, next| most.max(next.abs()));
        while f64::from(farthest) >= self.width * (BINS / 2) as f64 {
            self.widen();
        }
        for number in finite() {
            self.low = self.low.min(number);
            self.high = self.high.max(number);
            let bin = (f64::from(number) / self.width).floor() as isize + (BINS / 2) as isize;
            if let Some(count) = usize::try_from(bin).ok().and_then(|bin| self.bins.get_mut(bin)) {
                *count += 1;
            }
        }
    }

    /// Twice as wide bins: two become one.
    fn widen(&mut self) {
        let pairs: Vec<u64> = self.bins.as_chunks::<2>().0.iter().map(|[a, b]| a + b).collect();
        self.bins.fill(0);
        for (to, from) in self.bins.iter_mut().skip(BINS / 4).zip(pairs) {
            *to = from;
        }
        self.width *= 2.0;
    }

    fn limits(&self, percentile: Option<f64>) -> Option<(f32, f32)> {
        if self.low > self.high {
            return None;
        }
        let Some(percentile) = percentile else { return Some((self.low, self.high)) };
        let total: u64 = self.bins.iter().sum();
        let outside = ((100.0 - percentile.clamp(0.0, 100.0)) / 200.0 * total as f64) as u64;
        let edge = |bin: usize| ((bin as f64 - (BINS / 2) as f64) * self.width) as f32;
        let low = passed(self.bins.iter(), outside).map_or(self.low, edge);
        let high = passed(self.bins.iter().rev(), outside).map_or(self.high, |bin| edge(BINS - bin));
        Some((low.max(self.low), high.min(self.high)))
    }
}

/// The bin in which more than `outside` numbers have been passed.
fn passed<'a>(mut counts: impl Iterator<Item = &'a u64>, outside: u64) -> Option<usize> {
    let mut sum = 0;
    counts.position(|count| {
        sum += count;
        sum > outside
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor};

    fn observe(ranges: &mut Ranges, numbers: &[f32]) {
        let tensor = Tensor::from_vec(DType::Fp32, vec![numbers.len()], numbers.to_vec()).unwrap();
        ranges.observe("x", &tensor.into());
    }

    #[test]
    fn percentiles_leave_outliers_out_and_limits_do_not() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.limits("x", None), None);
        let numbers: Vec<f32> = (0..10_000).map(|at| at as f32 / 10_000.0).collect();
        observe(&mut ranges, &numbers);
        observe(&mut ranges, &[f32::NAN, f32::INFINITY, -100.0]);
        assert_eq!(ranges.limits("x", None), Some((-100.0, 0.9999)));
        let (low, high) = ranges.limits("x", Some(99.9)).unwrap();
        assert!((-0.2..=0.2).contains(&low), "{low}");
        assert!((0.8..=0.9999).contains(&high), "{high}");
    }

    #[test]
    fn huge_and_tiny_numbers_end() {
        let mut ranges = Ranges::default();
        observe(&mut ranges, &[f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0]);
        assert_eq!(ranges.limits("x", None), Some((f32::MIN, f32::MAX)));
        assert!(ranges.limits("x", Some(50.0)).is_some());
        observe(&mut ranges, &[]);
        assert_eq!(ranges.len(), 1);
    }
}

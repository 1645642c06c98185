//! How far a variant's outputs are from the original's.

use crate::tensor::{Data, Tensor, Value};
use std::collections::BTreeMap;

/// Of all outputs together, over all samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// The largest difference of two numbers.
    pub max_abs: f64,
    /// The lowest cosine of an output with its original, 1 where they point the same way.
    pub cosine: f64,
    /// Rows (along the last axis) whose largest number stands in the same place, and labels that are the same, among all, 0
    /// to 1.
    pub top1: f64,
}

impl Drift {
    /// How far the outputs' directions are apart, 0 (the same) to 2: one minus the cosine. Infinite where a number is none
    /// in the one and something in the other.
    pub fn distance(&self) -> f64 {
        let is_told = self.max_abs.is_finite() && !self.cosine.is_nan();
        if is_told { (1.0 - self.cosine).max(0.0) } else { f64::INFINITY }
    }
}

/// Compares outputs, a list for each sample, in the same order. `None` where they differ in number, shape or type, or one is no
/// tensor.
pub fn drift(original: &[Vec<Value>], variant: &[Vec<Value>]) -> Option<Drift> {
    if original.len() != variant.len() {
        return None;
    }
    let mut drifting = Drifting::default();
    original.iter().zip(variant).all(|(original, variant)| drifting.add(original, variant)).then(|| drifting.finish())
}

/// A drift that is added up sample by sample.
#[derive(Debug)]
pub(super) struct Drifting {
    max_abs: f64,
    cosine: f64,
    rows: usize,
    same: usize,
    /// Outputs of one number, by their place: those of all samples, of the original and the variant, as one vector each.
    /// A number alone has no direction.
    singles: BTreeMap<usize, (Vec<f32>, Vec<f32>)>,
}

impl Default for Drifting {
    fn default() -> Drifting {
        Drifting { max_abs: 0.0, cosine: 1.0, rows: 0, same: 0, singles: BTreeMap::new() }
    }
}

impl Drifting {
    /// Adds the outputs of one sample; `false` where they cannot be compared.
    pub(super) fn add(&mut self, original: &[Value], variant: &[Value]) -> bool {
        original.len() == variant.len()
            && original.iter().zip(variant).enumerate().all(|(at, (a, b))| self.add_output(at, a, b).is_some())
    }

    fn add_output(&mut self, at: usize, original: &Value, variant: &Value) -> Option<()> {
        let (original, variant) = (original.as_tensor()?, variant.as_tensor()?);
        if original.shape() != variant.shape() || original.dtype() != variant.dtype() {
            return None;
        }
        let (Some(a), Some(b)) = (original.to_f32(), variant.to_f32()) else {
            return self.add_labels(original, variant);
        };
        // A number that is none in the one has to be none in the other.
        let apart =
            |(a, b): (&f32, &f32)| if a.is_nan() && b.is_nan() || a == b { 0.0 } else { f64::from(a - b).abs() };
        let farthest = a
            .iter()
            .zip(&b)
            .map(apart)
            .fold(0.0, |most: f64, next| if next.is_nan() { f64::INFINITY } else { most.max(next) });
        self.max_abs = self.max_abs.max(farthest);
        if let ([one], [other]) = (a.as_slice(), b.as_slice()) {
            let (all, others) = self.singles.entry(at).or_default();
            all.push(*one);
            others.push(*other);
        } else {
            self.cosine = self.cosine.min(cosine_of(&a, &b));
        }
        let width = original.shape().last().copied().unwrap_or(1).max(1);
        if width > 1 {
            self.rows += a.len() / width;
            self.same += a.chunks(width).zip(b.chunks(width)).filter(|(a, b)| largest(a) == largest(b)).count();
        }
        Some(())
    }

    /// Whole numbers, truths and texts: names of classes and their like, which are right or wrong.
    fn add_labels(&mut self, original: &Tensor, variant: &Tensor) -> Option<()> {
        let count = labels_of(original);
        let same = match (original.data(), variant.data()) {
            (Data::Strings(a), Data::Strings(b)) => a.iter().zip(b.iter()).filter(|(a, b)| a == b).count(),
            (Data::Bytes(a), Data::Bytes(b)) => {
                let size = original.dtype().size().unwrap_or(1);
                a.chunks(size).zip(b.chunks(size)).filter(|(a, b)| a == b).count()
            }
            (Data::Strings(_), Data::Bytes(_)) | (Data::Bytes(_), Data::Strings(_)) => return None,
        };
        self.rows += count;
        self.same += same;
        Some(())
    }

    pub(super) fn finish(mut self) -> Drift {
        for (all, others) in self.singles.values() {
            self.cosine = self.cosine.min(cosine_of(all, others));
        }
        let top1 = if self.rows == 0 { 1.0 } else { self.same as f64 / self.rows as f64 };
        Drift { max_abs: self.max_abs, cosine: self.cosine, top1 }
    }
}

/// Elements of a tensor that are compared each by itself; packed ones count by the byte.
fn labels_of(tensor: &Tensor) -> usize {
    match tensor.data() {
        Data::Strings(strings) => strings.len(),
        Data::Bytes(bytes) => bytes.len() / tensor.dtype().size().unwrap_or(1).max(1),
    }
}

fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    // What is infinite or no number points nowhere; whether it is so in both is the difference's to say.
    let (a, b): (Vec<f32>, Vec<f32>) = a.iter().zip(b).filter(|(a, b)| a.is_finite() && b.is_finite()).unzip();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (a, b) = (a.as_slice(), b.as_slice());
    let (ab, aa, bb) = (dot(a, b), dot(a, a), dot(b, b));
    match aa == 0.0 || bb == 0.0 {
        // Nothing points nowhere: both or one of them.
        true => {
            if aa == bb {
                1.0
            } else {
                0.0
            }
        }
        false => ab / (aa.sqrt() * bb.sqrt()),
    }
}

fn largest(row: &[f32]) -> Option<usize> {
    row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn value(shape: &[usize], numbers: &[f32]) -> Vec<Value> {
        vec![Tensor::from_vec(DType::Fp32, shape.to_vec(), numbers.to_vec()).unwrap().into()]
    }

    #[test]
    fn differences_angles_and_winners_are_told() {
        let original = [value(&[2, 2], &[1.0, 0.0, 0.0, 2.0])];
        let same = drift(&original, &original).unwrap();
        assert_eq!((same.max_abs, same.top1), (0.0, 1.0));
        assert!((same.cosine - 1.0).abs() < 1e-12, "{}", same.cosine);
        let other = drift(&original, &[value(&[2, 2], &[0.0, 1.0, 0.0, 2.0])]).unwrap();
        assert_eq!((other.max_abs, other.top1), (1.0, 0.5));
        assert!((other.cosine - 0.8).abs() < 1e-9, "{}", other.cosine);
        assert_eq!(drift(&original, &[value(&[4], &[1.0, 0.0, 0.0, 2.0])]), None);
        assert_eq!(drift(&original, &[]), None);
        let broken = drift(&original, &[value(&[2, 2], &[f32::NAN, 0.0, 0.0, 2.0])]).unwrap();
        assert_eq!((broken.max_abs, broken.distance()), (f64::INFINITY, f64::INFINITY));
        let masked = [value(&[1, 3], &[f32::NEG_INFINITY, 1.0, 0.0])];
        let other = drift(&masked, &[value(&[1, 3], &[f32::NEG_INFINITY, 0.0, 1.0])]).unwrap();
        assert_eq!((other.max_abs, other.cosine), (1.0, 0.0), "the rest still counts");
    }

    #[test]
    fn labels_are_right_or_wrong_and_single_numbers_are_one_vector() {
        let labels = |all: &[i64]| -> Vec<Value> {
            vec![Tensor::from_vec(DType::Int64, vec![all.len()], all.to_vec()).unwrap().into()]
        };
        let drift_of = |a: &[Vec<Value>], b: &[Vec<Value>]| drift(a, b).unwrap();
        let found = drift_of(&[labels(&[1, 2]), labels(&[3, 4])], &[labels(&[1, 2]), labels(&[3, 5])]);
        assert_eq!((found.max_abs, found.cosine, found.top1), (0.0, 1.0, 0.75));
        let text = |text: &str| vec![Tensor::from_strings(vec![1], vec![text.to_owned()]).unwrap().into()];
        assert_eq!(drift_of(&[text("a")], &[text("b")]).top1, 0.0);
        let one = |number: f32| value(&[1, 1], &[number]);
        let found = drift_of(&[one(1.0), one(-1.0)], &[one(1.0), one(1.0)]);
        assert_eq!((found.max_abs, found.cosine), (2.0, 0.0));
        assert_eq!(drift(&[labels(&[1])], &[one(1.0)]), None);
    }
}

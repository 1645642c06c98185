//! How far a variant's outputs are from the original's.

use crate::tensor::{Tensor, Value};

/// Of all outputs together, over all samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// The largest difference of two numbers.
    pub max_abs: f64,
    /// The lowest cosine of an output with its original, 1 where they point the same way.
    pub cosine: f64,
    /// Rows (along the last axis) whose largest number stands in the same place, among all, 0 to 1.
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

/// Compares outputs, a list for each sample, in the same order. `None` where they differ in number, shape or kind, or hold no
/// numbers.
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
}

impl Default for Drifting {
    fn default() -> Drifting {
        Drifting { max_abs: 0.0, cosine: 1.0, rows: 0, same: 0 }
    }
}

impl Drifting {
    /// Adds the outputs of one sample; `false` where they cannot be compared.
    pub(super) fn add(&mut self, original: &[Value], variant: &[Value]) -> bool {
        original.len() == variant.len()
            && original.iter().zip(variant).all(|(original, variant)| self.add_output(original, variant).is_some())
    }

    fn add_output(&mut self, original: &Value, variant: &Value) -> Option<()> {
        let (original, variant) = (original.as_tensor()?, variant.as_tensor()?);
        if original.shape() != variant.shape() {
            return None;
        }
        let (a, b) = (numbers(original)?, numbers(variant)?);
        // A number that is none in the one has to be none in the other.
        let apart =
            |(a, b): (&f32, &f32)| if a.is_nan() && b.is_nan() || a == b { 0.0 } else { f64::from(a - b).abs() };
        let farthest = a
            .iter()
            .zip(&b)
            .map(apart)
            .fold(0.0, |most: f64, next| if next.is_nan() { f64::INFINITY } else { most.max(next) });
        self.max_abs = self.max_abs.max(farthest);
        self.cosine = self.cosine.min(cosine_of(&a, &b));
        let width = original.shape().last().copied().unwrap_or(1).max(1);
        if width > 1 {
            self.rows += a.len() / width;
            self.same += a.chunks(width).zip(b.chunks(width)).filter(|(a, b)| largest(a) == largest(b)).count();
        }
        Some(())
    }

    pub(super) fn finish(self) -> Drift {
        let top1 = if self.rows == 0 { 1.0 } else { self.same as f64 / self.rows as f64 };
        Drift { max_abs: self.max_abs, cosine: self.cosine, top1 }
    }
}

fn numbers(tensor: &Tensor) -> Option<Vec<f32>> {
    tensor.to_f32()
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
}

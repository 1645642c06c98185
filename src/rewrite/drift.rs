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

/// Compares outputs, a list for each sample, in the same order. `None` where they differ in number, shape or kind, or hold no
/// numbers.
pub fn drift(original: &[Vec<Value>], variant: &[Vec<Value>]) -> Option<Drift> {
    let (mut max_abs, mut cosine) = (0f64, 1f64);
    let (mut rows, mut same) = (0usize, 0usize);
    if original.len() != variant.len() {
        return None;
    }
    for (original, variant) in original.iter().zip(variant) {
        if original.len() != variant.len() {
            return None;
        }
        for (original, variant) in original.iter().zip(variant) {
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
            max_abs = max_abs.max(farthest);
            cosine = cosine.min(cosine_of(&a, &b));
            let width = original.shape().last().copied().unwrap_or(1).max(1);
            if width > 1 {
                rows += a.len() / width;
                same += a.chunks(width).zip(b.chunks(width)).filter(|(a, b)| largest(a) == largest(b)).count();
            }
        }
    }
    let top1 = if rows == 0 { 1.0 } else { same as f64 / rows as f64 };
    Some(Drift { max_abs, cosine, top1 })
}

fn numbers(tensor: &Tensor) -> Option<Vec<f32>> {
    tensor.to_f32()
}

fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
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
        assert_eq!(broken.max_abs, f64::INFINITY);
    }
}

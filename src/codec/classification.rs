//! The classification extension: an output as its best classes, `"value:index[:label]"`, best first.

use super::CodecError;
use crate::tensor::{DType, Tensor};
use std::cmp::Ordering;

/// The `n` best classes of `tensor` as `BYTES`: `[batch, n]` where dimension 0 is the batch (`batched`), else `[n]`; fewer
/// where there are fewer classes. Equal values stand in the order of their indexes, NaN last. A class without a label, or
/// with an empty one, has none.
///
/// # Errors
/// Where the elements are no numbers, or `n` is 0.
pub fn classification(
    field: &str,
    tensor: &Tensor,
    n: usize,
    labels: &[String],
    batched: bool,
) -> Result<Tensor, CodecError> {
    if n == 0 {
        return Err(CodecError::unprocessable(field, "classification needs at least 1 class"));
    }
    let rows = match tensor.shape() {
        [batch, ..] if batched => *batch,
        _ => 1,
    };
    let classes = tensor.len().checked_div(rows).unwrap_or(0);
    let kept = n.min(classes);
    let mut strings = Vec::with_capacity(rows.min(tensor.len()).saturating_mul(kept));
    macro_rules! classify {
        ($ty:ty, $order:expr) => {{
            let elements = tensor.elements::<$ty>().unwrap_or_default();
            for row in elements.chunks(classes.max(1)) {
                best(row, kept, labels, $order, &mut strings);
            }
        }};
    }
    match tensor.dtype() {
        DType::Uint8 => classify!(u8, Ord::cmp),
        DType::Uint16 => classify!(u16, Ord::cmp),
        DType::Uint32 => classify!(u32, Ord::cmp),
        DType::Uint64 => classify!(u64, Ord::cmp),
        DType::Int8 => classify!(i8, Ord::cmp),
        DType::Int16 => classify!(i16, Ord::cmp),
        DType::Int32 => classify!(i32, Ord::cmp),
        DType::Int64 => classify!(i64, Ord::cmp),
        DType::Fp16 => classify!(half::f16, |a: &half::f16, b: &half::f16| order(a.to_f64(), b.to_f64())),
        DType::Bf16 => classify!(half::bf16, |a: &half::bf16, b: &half::bf16| order(a.to_f64(), b.to_f64())),
        DType::Fp32 => classify!(f32, |a: &f32, b: &f32| order(f64::from(*a), f64::from(*b))),
        DType::Fp64 => classify!(f64, |a: &f64, b: &f64| order(*a, *b)),
        dtype => {
            return Err(CodecError::unprocessable(field, format!("{dtype} values cannot be sorted into classes")));
        }
    }
    let shape = match tensor.shape() {
        [_, ..] if batched => vec![rows, kept],
        _ => vec![kept],
    };
    Tensor::from_strings(shape, strings).map_err(|error| CodecError::tensor(field, &error))
}

/// Numbers in their order, NaN below all of them.
fn order(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// Appends the best `kept` classes of one row.
fn best<T: std::fmt::Display>(
    row: &[T],
    kept: usize,
    labels: &[String],
    order: impl Fn(&T, &T) -> Ordering,
    out: &mut Vec<String>,
) {
    let mut indexed: Vec<(usize, &T)> = row.iter().enumerate().collect();
    let descending = |a: &(usize, &T), b: &(usize, &T)| order(b.1, a.1).then(a.0.cmp(&b.0));
    // Only the kept ones are sorted: vocabularies have 100,000 classes and more.
    if kept > 0 && kept < indexed.len() {
        indexed.select_nth_unstable_by(kept - 1, descending);
    }
    indexed.truncate(kept);
    indexed.sort_unstable_by(descending);
    out.extend(indexed.into_iter().map(|(index, value)| match labels.get(index) {
        Some(label) if !label.is_empty() => format!("{value}:{index}:{label}"),
        _ => format!("{value}:{index}"),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shape: &[usize], data: &[f32], n: usize, batched: bool, expected_shape: &[usize], expected: &[&str]) {
        let tensor = Tensor::from_vec(DType::Fp32, shape.to_vec(), data.to_vec()).unwrap();
        let labels = ["cat".to_owned(), String::new(), "dog".to_owned()];
        let got = classification("outputs.y", &tensor, n, &labels, batched).unwrap();
        assert_eq!(got.shape(), expected_shape);
        assert_eq!(got.strings(), expected);
    }

    #[test]
    fn the_best_classes_come_first_with_index_and_label() {
        check(&[1, 3], &[0.25, 0.5, 0.75], 2, true, &[1, 2], &["0.75:2:dog", "0.5:1"]);
        check(&[2, 2], &[1.0, 2.0, 4.0, 3.0], 1, true, &[2, 1], &["2:1", "4:0:cat"]);
        check(&[3], &[0.1, 0.3, 0.2], 9, false, &[3], &["0.3:1", "0.2:2:dog", "0.1:0:cat"]);
        check(&[2, 2], &[1.0, 2.0, 4.0, 3.0], 1, false, &[1], &["4:2:dog"]);
        check(&[4], &[f32::NAN, 1.0, f32::INFINITY, 1.0], 4, false, &[4], &["inf:2:dog", "1:1", "1:3", "NaN:0:cat"]);
        check(&[0, 3], &[], 2, true, &[0, 0], &[]);
        check(&[2, 0], &[], 2, true, &[2, 0], &[]);
        check(&[], &[7.0], 1, true, &[1], &["7:0:cat"]);
    }

    #[test]
    fn what_has_no_order_is_refused() {
        let strings = Tensor::from_strings(vec![1], vec!["a".into()]).unwrap();
        let error = classification("outputs.y", &strings, 1, &[], false).unwrap_err();
        assert_eq!(error.to_string(), "outputs.y: BYTES values cannot be sorted into classes");
        let numbers = Tensor::from_vec(DType::Int8, vec![2], vec![-1i8, 5]).unwrap();
        assert!(classification("outputs.y", &numbers, 0, &[], false).is_err());
        assert_eq!(classification("outputs.y", &numbers, 1, &[], false).unwrap().strings(), ["5:1"]);
    }
}

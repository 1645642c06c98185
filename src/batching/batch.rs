//! Requests to one run and back: rows stacked, lengths padded, a fixed size filled up; then cut apart again.
//!
//! Invariant: what a request gets back are exactly its own rows at its own length, in their order. Numbers are copied once
//! on the way in (not at all where a request is alone), and on the way out only where a length is cut.

use super::plan::{Joining, PaddedInput, Padding, Plan};
use crate::runtime::Input;
use crate::tensor::{DType, Tensor, Value, element_count};

/// Rows and padded length of one request of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) length: usize,
}

/// The rows of a run for requests of `total` rows that is to have `fill` rows at least.
fn run_rows(total: usize, plan: &Plan, fill: usize) -> usize {
    match plan.joining {
        Joining::Fixed(rows) => rows,
        Joining::Rows => total.max(fill),
        Joining::Alone => total,
    }
}

/// The inputs of one run of `fill` rows at least for all `requests`, whose measures agree; `None` where they cannot be stacked
/// after all.
pub(super) fn stack(requests: &[(&[Input], Extent)], plan: &Plan, fill: usize) -> Option<Vec<Input>> {
    let ((first, _), total) = (requests.first()?, requests.iter().map(|(_, extent)| extent.rows).sum::<usize>());
    let missing = run_rows(total, plan, fill).checked_sub(total)?;
    let longest = requests.iter().map(|(_, extent)| extent.length).max()?;
    let mut stacked = Vec::with_capacity(first.len());
    for (place, (index, _)) in first.iter().enumerate() {
        let padded = plan.padding.iter().flat_map(|padding| &padding.inputs).find(|padded| padded.input == *index);
        let mut parts: Vec<Tensor> = Vec::with_capacity(requests.len() + 1);
        for (inputs, extent) in requests {
            let (_, Value::Tensor(tensor)) = inputs.get(place)? else { return None };
            parts.push(match padded {
                Some(padded) if extent.length < longest => pad(tensor, padded, longest)?,
                _ => tensor.clone(),
            });
        }
        if missing > 0 {
            // The last row again: values that the graph has been asked for anyway.
            let last = parts.last()?;
            let row = last.rows(last.shape().first()?.checked_sub(1)?, 1)?;
            parts.extend(std::iter::repeat_n(row, missing));
        }
        let whole = match parts.as_slice() {
            [only] => only.clone(),
            parts => Tensor::concat(&parts.iter().collect::<Vec<_>>())?,
        };
        stacked.push((*index, Value::Tensor(whole)));
    }
    Some(stacked)
}

/// Each request's share of `outputs` (with their indices in the graph) of a run that was stacked with the same `fill`; `None`
/// where an output does not hold a row for each row of the run.
pub(super) fn split(
    outputs: &[(usize, Value)],
    extents: &[Extent],
    plan: &Plan,
    fill: usize,
) -> Option<Vec<Vec<Value>>> {
    let total: usize = extents.iter().map(|extent| extent.rows).sum();
    let run_rows = run_rows(total, plan, fill);
    let longest = extents.iter().map(|extent| extent.length).max()?;
    let mut shares: Vec<Vec<Value>> = extents.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for (index, value) in outputs {
        let Value::Tensor(tensor) = value else { return None };
        if tensor.shape().first() != Some(&run_rows) {
            return None;
        }
        let cut_axis =
            plan.padding.iter().flat_map(|padding: &Padding| &padding.outputs).find(|(output, _)| output == index);
        let mut start = 0;
        for (share, extent) in shares.iter_mut().zip(extents) {
            let rows = tensor.rows(start, extent.rows)?;
            start += extent.rows;
            share.push(Value::Tensor(match cut_axis {
                Some((_, axis)) if extent.length < longest => cut(&rows, *axis, extent.length)?,
                _ => rows,
            }));
        }
    }
    Some(shares)
}

/// The rows of one request as pieces of `max_rows` (at least 1) at most, which share its numbers. All inputs hold `rows`
/// rows.
pub(super) fn chunks(inputs: &[Input], rows: usize, max_rows: usize) -> Option<Vec<Vec<Input>>> {
    (0..rows)
        .step_by(max_rows)
        .map(|start| {
            let count = max_rows.min(rows - start);
            inputs
                .iter()
                .map(|(index, value)| Some((*index, Value::Tensor(value.as_tensor()?.rows(start, count)?))))
                .collect()
        })
        .collect()
}

/// The pieces' outputs as one, in their order.
pub(super) fn unite(pieces: Vec<Vec<Value>>) -> Option<Vec<Value>> {
    let count = pieces.first()?.len();
    (0..count)
        .map(|output| {
            let parts: Option<Vec<&Tensor>> =
                pieces.iter().map(|piece| piece.get(output).and_then(Value::as_tensor)).collect();
            Tensor::concat(&parts?).map(Value::Tensor)
        })
        .collect()
}

/// A view of a tensor around one axis: `outer` blocks of `size` times `inner` bytes.
fn blocks(tensor: &Tensor, axis: usize) -> Option<(usize, usize, usize)> {
    let (before, rest) = tensor.shape().split_at_checked(axis)?;
    let (&size, after) = rest.split_first()?;
    Some((element_count(before)?, size, element_count(after)?.checked_mul(tensor.dtype().size()?)?))
}

fn with_axis(tensor: &Tensor, axis: usize, size: usize) -> Vec<usize> {
    tensor.shape().iter().enumerate().map(|(at, &dim)| if at == axis { size } else { dim }).collect()
}

pub(super) fn pad(tensor: &Tensor, padded: &PaddedInput, length: usize) -> Option<Tensor> {
    let (outer, size, inner) = blocks(tensor, padded.axis)?;
    let element: Vec<u8> = match tensor.dtype() {
        DType::Int64 => padded.value.to_le_bytes().to_vec(),
        DType::Int32 => i32::try_from(padded.value).ok()?.to_le_bytes().to_vec(),
        _ => return None,
    };
    let filler: Vec<u8> = element.iter().copied().cycle().take(inner.checked_mul(length.checked_sub(size)?)?).collect();
    let mut bytes = Vec::with_capacity(outer * length * inner);
    for block in 0..outer {
        bytes.extend_from_slice(tensor.bytes().get(block * size * inner..(block + 1) * size * inner)?);
        bytes.extend_from_slice(&filler);
    }
    Tensor::from_bytes(tensor.dtype(), with_axis(tensor, padded.axis, length), bytes).ok()
}

/// The first `length` of `axis`.
pub(super) fn cut(tensor: &Tensor, axis: usize, length: usize) -> Option<Tensor> {
    let (outer, size, inner) = blocks(tensor, axis)?;
    if length > size {
        return None;
    }
    let mut bytes = Vec::with_capacity(outer * length * inner);
    for block in 0..outer {
        let start = block * size * inner;
        bytes.extend_from_slice(tensor.bytes().get(start..start + length * inner)?);
    }
    Tensor::from_bytes(tensor.dtype(), with_axis(tensor, axis, length), bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(joining: Joining) -> Plan {
        let padding = Padding { inputs: vec![PaddedInput { input: 0, axis: 1, value: -7 }], outputs: vec![(0, 1)] };
        Plan {
            joining,
            inputs: vec![0],
            padding: Some(padding),
            max_row_bytes: None,
            steps: None,
            evidence: String::new(),
        }
    }

    fn ids(rows: usize, length: usize, from: i64) -> Tensor {
        let data: Vec<i64> = (0..(rows * length) as i64).map(|i| from + i).collect();
        Tensor::from_vec(DType::Int64, vec![rows, length], data).unwrap()
    }

    #[test]
    fn shorter_rows_are_padded_and_a_fixed_size_is_filled_up() {
        let (a, b) = (ids(1, 2, 0), ids(1, 3, 10));
        let inputs = [vec![(0, Value::Tensor(a))], vec![(0, Value::Tensor(b))]];
        let extents = [Extent { rows: 1, length: 2 }, Extent { rows: 1, length: 3 }];
        let requests: Vec<_> = inputs.iter().map(Vec::as_slice).zip(extents).collect();
        let stacked = stack(&requests, &plan(Joining::Fixed(4)), 0).unwrap();
        let tensor = stacked[0].1.as_tensor().unwrap();
        assert_eq!(tensor.shape(), [4, 3]);
        let numbers = tensor.elements::<i64>().unwrap();
        assert_eq!(*numbers, [0, 1, -7, 10, 11, 12, 10, 11, 12, 10, 11, 12]);
        assert!(stack(&requests, &plan(Joining::Fixed(1)), 0).is_none(), "more rows than the graph takes");
    }

    #[test]
    fn outputs_that_do_not_follow_the_rows_are_not_cut() {
        let extents = [Extent { rows: 1, length: 0 }, Extent { rows: 1, length: 0 }];
        let split = |value| split(&[(1, value)], &extents, &plan(Joining::Rows), 0);
        assert!(split(Value::Tensor(ids(3, 2, 0))).is_none());
        assert!(split(Value::Tensor(Tensor::from_vec(DType::Fp32, vec![], vec![1f32]).unwrap())).is_none());
        assert!(split(Value::None).is_none());
        assert_eq!(split(Value::Tensor(ids(2, 2, 0))).unwrap().len(), 2);
    }

    proptest! {
        /// The identity graph gives every request its own rows back, whatever it is joined with.
        #[test]
        fn everyone_gets_their_own_back(
            extents in proptest::collection::vec((1usize..4, 1usize..6), 1..6),
            fixed in any::<bool>(),
            fill in 0usize..20,
        ) {
            let total: usize = extents.iter().map(|(rows, _)| rows).sum();
            let plan = plan(if fixed { Joining::Fixed(total + 2) } else { Joining::Rows });
            let inputs: Vec<Vec<Input>> = (0..)
                .zip(&extents)
                .map(|(at, (rows, length))| vec![(0, Value::Tensor(ids(*rows, *length, at * 1000)))])
                .collect();
            let extents: Vec<Extent> = extents.iter().map(|&(rows, length)| Extent { rows, length }).collect();
            let requests: Vec<_> = inputs.iter().map(Vec::as_slice).zip(extents.iter().copied()).collect();
            let run = stack(&requests, &plan, fill).unwrap();
            let shares = split(&run, &extents, &plan, fill).unwrap();
            for (share, own) in shares.iter().zip(&inputs) {
                let (share, own) = (share[0].as_tensor().unwrap(), own[0].1.as_tensor().unwrap());
                prop_assert_eq!(share.shape(), own.shape());
                prop_assert_eq!(share.bytes(), own.bytes());
            }
        }

        #[test]
        fn a_large_request_is_split_and_put_together_in_order(rows in 1usize..40, max_rows in 1usize..9) {
            let whole = ids(rows, 2, 0);
            let pieces = chunks(&[(0, Value::Tensor(whole.clone()))], rows, max_rows).unwrap();
            prop_assert_eq!(pieces.len(), rows.div_ceil(max_rows));
            let pieces = pieces.into_iter().map(|piece| piece.into_iter().map(|(_, value)| value).collect()).collect();
            let united = unite(pieces).unwrap();
            prop_assert_eq!(united[0].as_tensor().unwrap().shape(), whole.shape());
            prop_assert_eq!(united[0].as_tensor().unwrap().bytes(), whole.bytes());
        }
    }
}

//! What is known of how a model's requests may share a run. Made at load, from the graph's shapes and a probe.

use super::steady::Steps;
use crate::runtime::Input;
use crate::tensor::{DType, Value};

/// How requests of one model share runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub joining: Joining,
    /// The inputs whose dim 0 counts rows. A request that gives any other runs alone.
    pub inputs: Vec<usize>,
    /// Which inputs may be padded to one length; `None`: requests join only where all their shapes agree.
    pub padding: Option<Padding>,
    /// Bytes of a row, up to which it is joined to others; `None`: whatever it takes.
    pub max_row_bytes: Option<usize>,
    /// Numbers of rows that runs are kept to and filled up to, where changing costs more than runs do; with `Joining::Rows` alone.
    pub steps: Option<Steps>,
    /// One sentence for the operator: what the plan was told from.
    pub evidence: String,
}

/// What dim 0 means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// Nothing that is known: each request is a run.
    Alone,
    /// The rows of every input and every output, and rows do not see each other.
    Rows,
    /// As `Rows`, but the graph takes exactly this many: fewer are filled up, more are split.
    Fixed(usize),
}

impl Joining {
    /// As clients know it.
    pub fn name(self) -> &'static str {
        match self {
            Joining::Alone => "alone",
            Joining::Rows => "rows",
            Joining::Fixed(_) => "fixed",
        }
    }
}

/// Inputs that are padded to the longest of a batch, and outputs that are cut back.
#[derive(Debug, Clone, PartialEq)]
pub struct Padding {
    pub inputs: Vec<PaddedInput>,
    /// Output and axis that follow the padded length.
    pub outputs: Vec<(usize, usize)>,
}

/// The integer tensor `input` grows along `axis` (at least 1) with `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddedInput {
    pub input: usize,
    pub axis: usize,
    pub value: i64,
}

/// Stands for a padded dimension among those that must agree. No real dimension is as large.
const ANY: usize = usize::MAX;

/// What the policy has to know of one request's inputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measure {
    /// Inputs, types and dimensions that requests of one batch have in common; `None`: runs alone.
    pub(super) shape: Option<Box<[usize]>>,
    pub(super) rows: usize,
    /// Length of the padded axis; 0 where nothing is padded.
    pub(super) length: usize,
    pub(super) bytes: usize,
}

impl Plan {
    /// Each request a run of its own.
    pub fn alone(evidence: impl Into<String>) -> Plan {
        Plan {
            joining: Joining::Alone,
            inputs: Vec::new(),
            padding: None,
            max_row_bytes: None,
            steps: None,
            evidence: evidence.into(),
        }
    }

    /// Most rows of one run under the settings' `max_batch_size`; `None`: rows mean nothing here.
    pub fn max_rows(&self, max_batch_size: usize) -> Option<usize> {
        match self.joining {
            Joining::Alone => None,
            Joining::Rows => Some(max_batch_size.max(1)),
            Joining::Fixed(rows) => Some(rows.max(1)),
        }
    }

    fn padded_axis(&self, input: usize) -> Option<PaddedInput> {
        self.padding.iter().flat_map(|padding| &padding.inputs).copied().find(|padded| padded.input == input)
    }

    pub(super) fn measure(&self, inputs: &[Input]) -> Measure {
        let bytes = inputs.iter().map(|(_, value)| byte_size(value)).sum();
        let alone = Measure { shape: None, rows: 1, length: 0, bytes };
        if self.joining == Joining::Alone {
            return alone;
        }
        let (mut shape, mut rows, mut length) = (Vec::with_capacity(inputs.len() * 6), None, None);
        for (index, value) in inputs {
            let Value::Tensor(tensor) = value else { return alone };
            let Some((&count, inner)) = tensor.shape().split_first() else { return alone };
            // Elements smaller than a byte cannot be cut at rows.
            if !self.inputs.contains(index)
                || *rows.get_or_insert(count) != count
                || (tensor.dtype().size().is_none() && tensor.dtype() != DType::String)
            {
                return alone;
            }
            shape.extend([*index, tensor.dtype() as usize, inner.len()]);
            let padded = self.padded_axis(*index).map(|padded| padded.axis);
            for (axis, &size) in (1..).zip(inner) {
                if padded == Some(axis) {
                    // The inputs of one request must agree; where they do not, the graph shall say so itself.
                    if *length.get_or_insert(size) != size {
                        return alone;
                    }
                    shape.push(ANY);
                } else {
                    shape.push(size);
                }
            }
        }
        match rows {
            // A run without rows has nothing to share.
            Some(rows) if rows > 0 => Measure { shape: Some(shape.into()), rows, length: length.unwrap_or(0), bytes },
            _ => alone,
        }
    }
}

fn byte_size(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => {
            tensor.bytes().len() + tensor.strings().iter().map(|text| text.len() + size_of::<String>()).sum::<usize>()
        }
        Value::Sequence(values) => values.iter().map(byte_size).sum(),
        Value::Map { keys, values } => keys.bytes().len() + values.bytes().len(),
        Value::None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn tensor(dtype: DType, shape: &[usize]) -> Value {
        let bytes = dtype.bits() * shape.iter().product::<usize>() / 8;
        Tensor::from_bytes(dtype, shape.to_vec(), vec![0u8; bytes]).unwrap().into()
    }

    fn rows() -> Plan {
        let inputs = vec![PaddedInput { input: 1, axis: 1, value: 0 }, PaddedInput { input: 2, axis: 1, value: 0 }];
        let padding = Some(Padding { inputs, outputs: vec![] });
        Plan {
            joining: Joining::Rows,
            inputs: vec![0, 1, 2, 3],
            padding,
            max_row_bytes: None,
            steps: None,
            evidence: String::new(),
        }
    }

    #[track_caller]
    fn same(a: &[Input], b: &[Input], expected: bool) {
        let (a, b) = (rows().measure(a), rows().measure(b));
        assert_eq!(a.shape.is_some() && a.shape == b.shape, expected, "{a:?} {b:?}");
    }

    #[test]
    fn requests_of_one_shape_have_one_measure() {
        use DType::{Fp16, Fp32, Int4, Int64};
        same(&[(0, tensor(Fp32, &[1, 3]))], &[(0, tensor(Fp32, &[4, 3]))], true);
        same(&[(0, tensor(Fp32, &[1, 3]))], &[(0, tensor(Fp32, &[1, 4]))], false);
        same(&[(0, tensor(Fp32, &[1, 3]))], &[(0, tensor(Fp16, &[1, 3]))], false);
        same(&[(0, tensor(Fp32, &[1, 3]))], &[(3, tensor(Fp32, &[1, 3]))], false);
        // Rank and dimensions cannot be taken for each other's.
        same(&[(0, tensor(Fp32, &[1, 3, 1]))], &[(0, tensor(Fp32, &[1, 3]))], false);
        for alone in [tensor(Fp32, &[]), tensor(Fp32, &[0, 3]), tensor(Int4, &[2, 2]), Value::None] {
            same(&[(0, alone.clone())], &[(0, alone)], false);
        }
        same(
            &[(0, tensor(Fp32, &[1])), (3, tensor(Fp32, &[2]))],
            &[(0, tensor(Fp32, &[1])), (3, tensor(Fp32, &[2]))],
            false,
        );
        let text = |length| [(1, tensor(Int64, &[1, length])), (2, tensor(Int64, &[1, length]))];
        same(&text(5), &text(9), true);
        assert_eq!((rows().measure(&text(5)).length, rows().measure(&text(5)).bytes), (5, 80));
        let torn = [(1, tensor(Int64, &[1, 4])), (2, tensor(Int64, &[1, 5]))];
        same(&torn, &torn, false);
        same(&[(9, tensor(Fp32, &[1]))], &[(9, tensor(Fp32, &[1]))], false);
        assert_eq!(Plan::alone("").measure(&text(5)).shape, None);
    }
}

//! What the original and its variants are run on.
//!
//! The drift is measured on what is nearest to real requests: inputs that were given, else recorded requests, else the model's
//! own samples, else made-up ones. Times are taken of several sizes where the graph leaves dimension 0 free: rows of the
//! first of those inputs, repeated. Everything is bounded.

use super::OptimizeError;
use crate::engine::{InferenceEngine, LoadedModel};
use crate::rewrite::Sample;
use crate::runtime::Input;
use crate::tensor::{Data, Dim, Spec, Tensor};
use std::sync::Arc;

/// Rows of the runs that are timed, as many as a request of the model may bring.
const SIZES: [usize; 3] = [1, 4, 16];
/// Inputs that the drift is measured on, of those there are.
const COMPARED_MAX: usize = 32;
const MADE_UP: u64 = 4;
/// Bytes of one run that is timed.
const RUN_BYTES_MAX: usize = 256 << 20;

/// Where inputs came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Given,
    Recorded,
    Samples,
    MadeUp,
}

impl Origin {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Given => "given",
            Origin::Recorded => "recorded",
            Origin::Samples => "samples",
            Origin::MadeUp => "made_up",
        }
    }
}

pub(super) struct Inputs {
    pub(super) origin: Origin,
    /// For the drift; not empty.
    pub(super) compared: Vec<Vec<Input>>,
    /// The smallest first; not empty.
    pub(super) timed: Vec<Sample>,
}

/// # Errors
/// Where nothing was given and nothing can be made up.
pub(super) async fn gather(
    engine: &InferenceEngine,
    model: &Arc<LoadedModel>,
    given: Vec<Vec<Input>>,
) -> Result<Inputs, OptimizeError> {
    let (mut compared, mut origin) = (given, Origin::Given);
    if compared.is_empty() {
        (compared, origin) = (engine.recorded_of(model), Origin::Recorded);
    }
    if compared.is_empty() {
        (compared, origin) = (engine.samples_of(model).await?, Origin::Samples);
    }
    if compared.is_empty() {
        // A graph that fixes its rows takes that many, though requests may bring fewer.
        let rows = model.handle.plan().max_rows(1);
        let made_up = (1..=MADE_UP).filter_map(|seed| model.made_up_sample(rows, seed));
        (compared, origin) = (made_up.collect(), Origin::MadeUp);
    }
    compared.truncate(COMPARED_MAX);
    let first = compared.first().ok_or(OptimizeError::NoInputs)?.clone();
    let rows = rows_of(&first).unwrap_or(1);
    let mut timed = vec![Sample { rows, inputs: first.clone() }];
    let most = model.settings.batch.max_batch_size.max(rows);
    if is_free(&model.inputs) && rows_of(&first).is_some() {
        let larger = SIZES.iter().skip(1).filter(|times| rows.saturating_mul(**times) <= most);
        timed.extend(larger.filter_map(|times| Some(Sample { rows: rows * times, inputs: repeated(&first, *times)? })));
    }
    Ok(Inputs { origin, compared, timed })
}

/// The rows of a run; `None` where its inputs do not agree in them.
fn rows_of(inputs: &[Input]) -> Option<usize> {
    let mut rows = inputs.iter().map(|(_, value)| value.as_tensor()?.shape().first().copied());
    let first = rows.next()??;
    (first > 0 && rows.all(|rows| rows == Some(first))).then_some(first)
}

fn repeated(inputs: &[Input], times: usize) -> Option<Vec<Input>> {
    let bytes =
        inputs.iter().filter_map(|(_, value)| value.as_tensor()).map(|tensor| tensor.bytes().len()).sum::<usize>();
    if bytes.saturating_mul(times) > RUN_BYTES_MAX {
        return None;
    }
    inputs.iter().map(|(index, value)| Some((*index, repeat(value.as_tensor()?, times)?.into()))).collect()
}

/// Whether dimension 0 of every input that must be given is free, so that rows can be put together.
pub fn is_free(specs: &[Spec]) -> bool {
    let mut needed = specs.iter().filter(|spec| !spec.optional).peekable();
    needed.peek().is_some() && needed.all(|spec| matches!(spec.ty.shape(), Some([Dim::Dynamic(_), ..])))
}

/// A tensor's rows, `times` over; `None` where they are packed below a byte.
pub fn repeat(tensor: &Tensor, times: usize) -> Option<Tensor> {
    let mut shape = tensor.shape().to_vec();
    let rows = shape.first_mut()?;
    *rows = rows.checked_mul(times)?;
    match tensor.data() {
        Data::Bytes(bytes) => {
            tensor.dtype().size()?;
            Tensor::from_bytes(tensor.dtype(), shape, bytes.repeat(times)).ok()
        }
        Data::Strings(strings) => {
            let all = strings.iter().cycle().take(strings.len().checked_mul(times)?);
            Tensor::from_strings(shape, all.cloned().collect()).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Value, ValueType};

    fn spec(shape: Vec<Dim>) -> Spec {
        let ty = ValueType::Tensor { dtype: DType::Fp32, shape: Some(shape) };
        Spec { name: "x".to_owned(), ty, optional: false }
    }

    #[test]
    fn rows_are_put_together_only_where_every_input_leaves_them_free() {
        let free = spec(vec![Dim::Dynamic(None), Dim::Fixed(3)]);
        let fixed = spec(vec![Dim::Fixed(1), Dim::Fixed(3)]);
        assert!(is_free(&[free.clone(), free.clone()]));
        assert!(!is_free(&[free.clone(), fixed.clone()]));
        assert!(!is_free(&[spec(vec![])]) && !is_free(&[]));
        assert!(is_free(&[free, Spec { optional: true, ..fixed }]));
    }

    #[test]
    fn rows_are_repeated_whole() {
        let tensor = Tensor::from_vec(DType::Fp32, vec![2, 1], vec![1f32, 2.0]).unwrap();
        let thrice = repeat(&tensor, 3).unwrap();
        assert_eq!(thrice.shape(), [6, 1]);
        assert_eq!(thrice.elements::<f32>().unwrap().as_ref(), &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        let strings = Tensor::from_strings(vec![1], vec!["a".to_owned()]).unwrap();
        assert_eq!(repeat(&strings, 2).unwrap().strings(), ["a", "a"]);
        assert!(repeat(&Tensor::from_bytes(DType::Int4, vec![3], vec![0, 0]).unwrap(), 2).is_none());
        assert!(repeat(&Tensor::from_vec(DType::Fp32, vec![], vec![1f32]).unwrap(), 2).is_none());
    }

    #[test]
    fn inputs_that_differ_in_their_rows_are_not_repeated() {
        let value =
            |rows: usize| -> Value { Tensor::from_vec(DType::Fp32, vec![rows, 1], vec![0f32; rows]).unwrap().into() };
        assert_eq!(rows_of(&[(0, value(2)), (1, value(2))]), Some(2));
        assert_eq!(rows_of(&[(0, value(2)), (1, value(1))]), None);
        assert_eq!((rows_of(&[(0, value(0))]), rows_of(&[]), rows_of(&[(0, Value::None)])), (None, None, None));
        assert!(repeated(&[(0, value(2))], usize::MAX).is_none(), "too large");
    }
}

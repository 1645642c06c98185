//! What is kept of an answer: the typed outputs or predictions, before any protocol's form.

use super::weight::{named_bytes, own_tensor, own_value, tensor_bytes};
use crate::pipelines::{Inputs, Prediction, Prepared};
use crate::tensor::Value;

/// The answer to one request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The graph's outputs, by name, in the order asked for.
    Outputs(Vec<(String, Value)>),
    /// One for each item, and the tokens of all of them.
    Predictions(Vec<Prediction>, u64),
}

impl Answer {
    /// Bytes in memory, once it is [`Answer::owned`].
    pub fn bytes(&self) -> usize {
        match self {
            Answer::Outputs(outputs) => outputs.iter().map(|(name, value)| named_bytes(name, value)).sum(),
            Answer::Predictions(predictions, _) => predictions.iter().map(Prediction::bytes).sum(),
        }
    }

    /// A copy that holds nothing else in memory, such as the other rows of its batch.
    #[must_use]
    pub fn owned(&self) -> Answer {
        match self {
            Answer::Outputs(outputs) => {
                Answer::Outputs(outputs.iter().map(|(name, value)| (name.clone(), own_value(value))).collect())
            }
            Answer::Predictions(predictions, tokens) => Answer::Predictions(predictions.clone(), *tokens),
        }
    }
}

/// Bytes of a prepared item in memory.
pub(super) fn prepared_bytes(prepared: &Prepared) -> usize {
    let inputs = prepared.runs.iter().flatten();
    inputs.map(|(name, tensor)| tensor_bytes(name, tensor)).sum::<usize>() + prepared.notes.bytes()
}

/// A copy of a prepared item that holds nothing else in memory.
pub(super) fn own_prepared(prepared: &Prepared) -> Prepared {
    let own = |inputs: &Inputs| inputs.iter().map(|(name, tensor)| (name.clone(), own_tensor(tensor))).collect();
    let carried = prepared.carried.clone();
    Prepared { runs: prepared.runs.iter().map(own).collect(), carried, notes: prepared.notes.clone() }
}

//! One item between preprocessing and postprocessing.

use super::PipelineError;
use crate::tensor::{Tensor, Value};
use std::any::Any;
use std::sync::Arc;

/// Values for the graph's inputs, by name.
pub type Inputs = Vec<(String, Tensor)>;
/// What a run of the graph gave, by name.
pub type Outputs = Vec<(String, Value)>;

/// An item as the graph takes it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The inputs of each run that the item needs: one for most, several where it is longer than the graph takes or is asked
    /// several questions. Dim 0 holds the run's rows, usually one.
    pub runs: Vec<Inputs>,
    pub notes: Notes,
}

impl Prepared {
    /// An item that needs one run, and of which nothing else must be known.
    pub fn one(inputs: Inputs) -> Prepared {
        Prepared { runs: vec![inputs], notes: Notes::default() }
    }
}

/// What a pipeline must know of an item to read its outputs, such as where its tokens stand in the text. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    kept: Option<Arc<dyn Any + Send + Sync>>,
    bytes: usize,
}

impl Notes {
    /// `bytes`: roughly what `value` takes in memory.
    pub fn new<T: Any + Send + Sync>(value: T, bytes: usize) -> Notes {
        Notes { kept: Some(Arc::new(value)), bytes }
    }

    /// # Errors
    /// Where the notes are another pipeline's: a fault of ours.
    pub fn get<T: Any + Send + Sync>(&self) -> Result<&T, PipelineError> {
        let kept = self.kept.as_ref().and_then(|kept| kept.downcast_ref());
        kept.ok_or_else(|| PipelineError::Outputs("an item came back without its notes".to_owned()))
    }

    /// Roughly the bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The outputs of an item that needs one run.
///
/// # Errors
/// Where there are more or none: a fault of ours.
pub(crate) fn only_run(outputs: &[Outputs]) -> Result<&Outputs, PipelineError> {
    match outputs {
        [outputs] => Ok(outputs),
        _ => Err(PipelineError::Outputs(format!("an item of one run came back with {}", outputs.len()))),
    }
}

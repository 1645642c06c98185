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
    /// What a run hands to the next one; empty where the runs do not depend on one another. The first run has these inputs
    /// itself, the others leave them out. Such runs are made one after another, and what is carried is an output of the last
    /// one only.
    pub carried: Vec<Carry>,
    pub notes: Notes,
}

/// An output of a run that is an input of the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Carry {
    pub output: String,
    pub input: String,
}

impl Prepared {
    /// Runs that do not depend on one another, and of which `notes` must be known.
    pub fn new(runs: Vec<Inputs>, notes: Notes) -> Prepared {
        Prepared { runs, carried: Vec::new(), notes }
    }

    /// An item that needs one run, and of which nothing else must be known.
    pub fn one(inputs: Inputs) -> Prepared {
        Prepared::new(vec![inputs], Notes::default())
    }

    /// The inputs that a run takes from the outputs of the one before it.
    pub(crate) fn carry(&self, outputs: &Outputs) -> Inputs {
        let value = |carry: &Carry| {
            let (_, value) = outputs.iter().find(|(name, _)| *name == carry.output)?;
            Some((carry.input.clone(), value.as_tensor()?.clone()))
        };
        self.carried.iter().filter_map(value).collect()
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

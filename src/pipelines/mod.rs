//! What a task does before and after the graph: typed input to tensors, tensors to a typed prediction.
//!
//! One folder for each kind of input. Knows no protocol, no store and no runtime: a [`Pipeline`] is made from the files
//! beside the model (see [`detect()`]) and the graph's declared inputs and outputs.

pub mod detect;
mod error;
pub mod image;
mod labels;
mod pool;
mod prediction;
mod settings;

pub use detect::{Detected, detect};
pub use error::{PipelineError, PoolError};
pub use pool::Pool;
pub use prediction::{ClassScore, Item, Parameters, Prediction};
pub use settings::{ImageOverrides, LabelsSource, PipelineLimits, PipelineManifest};

use crate::tensor::{Tensor, Value};

/// Preprocessing and postprocessing of one model's task, item by item: which items run together is decided by the queue in
/// front of the model. Blocking and computing: runs on the [`Pool`] only.
pub trait Pipeline: Send + Sync {
    /// HuggingFace's name of the task, such as `image-classification`.
    fn task(&self) -> &'static str;

    /// The class names by index; empty where the task has none.
    fn labels(&self) -> &[String] {
        &[]
    }

    /// One item to the graph's inputs: dim 0 holds its rows, usually one. Items of one request may come with different shapes.
    ///
    /// # Errors
    /// Why the item cannot be used.
    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Vec<(String, Tensor)>, PipelineError>;

    /// The graph's outputs for one item, by name, to its prediction.
    ///
    /// # Errors
    /// Where the outputs are not what the task needs, or a parameter is wrong.
    fn postprocess(&self, outputs: &[(String, Value)], parameters: &Parameters) -> Result<Prediction, PipelineError>;

    /// Checks the parameters before any work is done.
    ///
    /// # Errors
    /// Names the parameter, what it may be and what came.
    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError>;
}

//! What a task does before and after the graph: typed input to tensors, tensors to a typed prediction.
//!
//! One folder for each kind of input. Knows no protocol, no store and no runtime: a [`Pipeline`] is made from the files
//! beside the model (see [`detect()`]) and the graph's declared inputs and outputs.

pub mod audio;
pub mod detect;
mod error;
mod files;
pub mod image;
mod labels;
mod outputs;
mod padding;
mod parameters;
mod pool;
mod prediction;
mod prepared;
mod scores;
mod settings;
mod tabular;
pub mod text;

pub use detect::{Detected, detect};
pub use error::{PipelineError, PoolError};
pub use padding::Padding;
pub use pool::Pool;
pub use prediction::{
    Answer, BoundingBox, ClassScore, DepthMap, Detection, EntityGroup, FeatureMaps, FilledMask, Item, ItemError, Mask,
    Parameters, Prediction, RankedLabels, Rows, Segment, SpokenPart, SpokenText, TextChunk, TokenEmbeddings,
    TokenLabel, VoiceActivity, VoiceWindows,
};
pub(crate) use prepared::only_run;
pub use prepared::{Carry, Inputs, Notes, Outputs, Prepared};
pub use scores::ScoreFunction;
pub use settings::{AudioOverrides, ImageOverrides, LabelsSource, PipelineLimits, PipelineManifest};

/// Preprocessing and postprocessing of one model's task, item by item: which items run together is decided by the queue in
/// front of the model. Blocking and computing: runs on the [`Pool`] only.
pub trait Pipeline: Send + Sync {
    /// HuggingFace's name of the task, such as `image-classification`.
    fn task(&self) -> &'static str;

    /// The class names by index; empty where the task has none.
    fn labels(&self) -> &[String] {
        &[]
    }

    /// Whether an item is a record, an object of column to value.
    fn takes_records(&self) -> bool {
        false
    }

    /// Whether [`Pipeline::preprocess`] looks at this parameter. One that it does not look at need not be the same for an
    /// item's tensors to be used again.
    fn preprocess_reads(&self, _parameter: &str) -> bool {
        true
    }

    /// How the inputs may be padded, so that items of different lengths run together; `None` where they may not.
    fn padding(&self) -> Option<Padding> {
        None
    }

    /// One item to the graph's inputs. Items of one request may come with different shapes.
    ///
    /// # Errors
    /// Why the item cannot be used.
    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError>;

    /// What the graph gave for the runs of one item, in their order, to the item's prediction.
    ///
    /// # Errors
    /// Where the outputs are not what the task needs, or a parameter is wrong.
    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError>;

    /// Checks the parameters before any work is done.
    ///
    /// # Errors
    /// Names the parameter, what it may be and what came.
    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError>;
}

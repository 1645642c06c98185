//! How a model's inputs may be made longer so that items of different lengths run together.

/// The inputs that may be padded at the end of an axis without changing what the graph gives for the rest.
///
/// What it promises follows from the inputs' names and is not proven: whoever pads confirms it with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Padding {
    /// Name of the input, the axis that may grow, and the value that fills it. All of them have one length in an item.
    pub inputs: Vec<(String, usize, i64)>,
}

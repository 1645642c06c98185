//! Tensors in, tensors out, on a device: loading a graph and running it.
//!
//! The traits are what the rooms above know; `onnx` keeps them with ONNX Runtime, `fake` for tests. Knows no model
//! store, no queue and no task.

mod error;
mod interrupt;
mod spec;

pub mod fake;
pub mod onnx;

pub use error::RuntimeError;
pub use interrupt::Interrupt;
pub use spec::{DeviceSettings, DeviceType, GraphFacts, GraphSource, OptimizationLevel, SessionSettings};

use crate::tensor::{Spec, Value};

/// One input of a run: the index into [`Session::inputs`] and its value.
pub type Input = (usize, Value);

/// Loads graphs. One for the process.
pub trait Runtime: Send + Sync {
    /// Loads the graph of `source`. Blocks for as long as that takes; never call it on the async runtime.
    ///
    /// # Errors
    /// Where the file is not a graph this runtime can run, or the device asked for is not there.
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError>;

    /// Name and version of the library that runs the graphs, such as `onnxruntime 1.32.0`.
    fn version(&self) -> &str;
}

/// One loaded copy of a graph. Owned by one worker thread, so runs need no lock.
pub trait Session: Send {
    fn inputs(&self) -> &[Spec];
    fn outputs(&self) -> &[Spec];
    fn facts(&self) -> &GraphFacts;

    /// Runs the graph and gives the values of `outputs` (indices into [`Session::outputs`]), in that order.
    ///
    /// The caller has checked `inputs` against [`Session::inputs`]. Blocks until the run ends or `interrupt` fires.
    ///
    /// # Errors
    /// [`RuntimeError::Interrupted`] where `interrupt` fired, [`RuntimeError::Run`] where the graph failed on this input.
    fn run(&mut self, inputs: &[Input], outputs: &[usize], interrupt: &Interrupt) -> Result<Vec<Value>, RuntimeError>;
}

//! Tensors in, tensors out, on a device: loading a graph and running it.
//!
//! The traits are what the rooms above know; `onnx` keeps them with ONNX Runtime, `fake` for tests, `pair` with two sessions. Knows no model
//! store, no queue and no task.

mod engine;
mod error;
pub mod execution;
mod interrupt;
mod memory;
mod pair;
pub mod profile;
mod spec;
mod written;

pub mod fake;
pub mod onnx;

pub use engine::EngineKey;
pub use error::RuntimeError;
pub use execution::{Execution, MissingProvider, ProviderStatus, TENSORRT};
pub use interrupt::Interrupt;
pub use memory::{SessionMemory, WorkingMemories, WorkingMemory};
pub use profile::{NodeTime, OperatorTime, Profile};
pub use spec::{
    CompileMode, DeviceSettings, DeviceType, Fraction, GraphFacts, GraphSource, MemorySettings, OptimizationLevel,
    SessionSettings, TensorrtPrecision, TensorrtSettings,
};

pub use written::{FormKey, WrittenGraph};

use crate::tensor::{Spec, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One input of a run: the index into [`Session::inputs`] and its value.
pub type Input = (usize, Value);

/// Loads graphs. One for the process.
pub trait Runtime: Send + Sync {
    /// Loads the graph of `source`. Blocks for as long as that takes; never call it on the async runtime.
    ///
    /// # Errors
    /// Where the file is not a graph this runtime can run, or the device asked for is not there.
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError>;

    /// Bytes of the graph's files and their external data, as [`GraphFacts::size_bytes`] will say. Reads the file, and blocks.
    ///
    /// # Errors
    /// As [`Runtime::load`], where the file itself is refused.
    fn size_bytes(&self, source: &GraphSource) -> Result<u64, RuntimeError> {
        let size = |file: &PathBuf| {
            let io = |error| RuntimeError::Io { path: file.clone(), source: error };
            Ok(std::fs::metadata(file).map_err(io)?.len())
        };
        source.text_tower.iter().try_fold(size(&source.file)?, |sum, file| Ok(sum.saturating_add(size(file)?)))
    }

    /// As [`Runtime::load`]; every node of every run is timed, and [`Session::end_profile`] gives what came of it.
    ///
    /// # Errors
    /// As [`Runtime::load`], and where the runtime keeps no times.
    fn load_profiled(
        &self,
        _source: &GraphSource,
        _settings: &SessionSettings,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        Err(RuntimeError::Library("this runtime does not time its operators".to_owned()))
    }

    /// The execution providers that this server can use, and whether they work here. The first call may take seconds and load
    /// a device's libraries; later ones give the same. Empty where the runtime has no such thing.
    fn providers(&self) -> Vec<ProviderStatus> {
        Vec::new()
    }

    /// What a form that [`Runtime::load_writing`] writes is good for, besides the graph and the level; `None` where none can be
    /// written for such a device, or the device is not known before the load.
    fn form_key(&self, _device: &DeviceSettings) -> Option<FormKey> {
        None
    }

    /// What engines depend on that TensorRT would build of this graph for these settings; `None` where they want none, or none
    /// can be built here. The first call may take seconds, as [`Runtime::providers`]; each reads the graph's file.
    fn engine_key(&self, _source: &GraphSource, _settings: &SessionSettings) -> Option<EngineKey> {
        None
    }

    /// As [`Runtime::load`], and writes what the runtime made of the graph into `folder`, which is there and empty. Gives
    /// what [`Runtime::load_written`] wants to know besides.
    ///
    /// # Errors
    /// As [`Runtime::load`]; also where the form cannot be written, and the graph alone may load then.
    fn load_writing(
        &self,
        _source: &GraphSource,
        _settings: &SessionSettings,
        _folder: &Path,
    ) -> Result<(Box<dyn Session>, Vec<WrittenGraph>), RuntimeError> {
        Err(RuntimeError::Device("this runtime writes no graphs".to_owned()))
    }

    /// Loads what [`Runtime::load_writing`] left in `folder`, in place of the graph that it was made of, whose facts the
    /// session gives. The files' weights are mapped, so they must not be written while the session lives.
    ///
    /// # Errors
    /// Where the files are not what was written.
    fn load_written(
        &self,
        _folder: &Path,
        _graphs: &[WrittenGraph],
        _settings: &SessionSettings,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        Err(RuntimeError::Device("this runtime writes no graphs".to_owned()))
    }

    /// Makes the process's allocator give free memory back to the system. Blocks for milliseconds.
    fn give_back(&self) {}

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

    /// Another session over the same weights and the same working memory, to be run by another thread at the same time. The
    /// memory is freed with the last of them. `None` where the device does not allow that.
    fn share(&self) -> Option<Box<dyn Session>> {
        None
    }

    /// Ends the timing of a session that was made for it, and gives a trace in Chrome's format for each of its graphs.
    ///
    /// # Errors
    /// Where the traces are too large or cannot be read.
    fn end_profile(&mut self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }

    /// The session's working memory, for those who do not own the session; `None` where it cannot be measured. Sessions
    /// that share it give the same one.
    fn working_memory(&self) -> Option<Arc<dyn WorkingMemory>> {
        None
    }
}

//! What can go wrong below: loading a library, loading a graph, running it.
//!
//! Texts are safe to show to a client: ONNX Runtime's own messages go through `onnx::clean_message` first.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{0}")]
    Library(String),
    /// The file is not a graph that can be run: the text says why.
    #[error("{0}")]
    Graph(String),
    /// The device or execution provider that the settings ask for is not there, or has failed.
    #[error("{0}")]
    Device(String),
    /// The graph refused this input or failed on it.
    #[error("{0}")]
    Run(String),
    /// The device had not enough memory for this run; a smaller one may fit.
    #[error(
        "the device has not enough memory for this run: {0}; send fewer rows or smaller inputs at once, or try again later"
    )]
    OutOfMemory(String),
    #[error("there is not enough memory to load the graph: {0}; unload other models, or give the server more")]
    NoMemoryToLoad(String),
    #[error("the run was stopped")]
    Interrupted,
    #[error("the model file could not be read: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

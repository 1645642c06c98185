//! Ortus serves ONNX models over HTTP; see ARCHITECTURE.md for the map of the rooms.
pub mod batching;
pub mod runtime;
pub mod tasks;
pub mod tensor;

//! Ortus serves ONNX models over HTTP; see ARCHITECTURE.md for the map of the rooms.

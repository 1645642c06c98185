//! ONNX Runtime behind the room's traits: finding the library, reading graphs, sessions on devices.
//!
//! The only place that knows the `ort` crate. `graph` reads the file before ONNX Runtime sees it and refuses external
//! data outside the model's folder. ONNX Runtime's own texts hold paths and source lines: they pass through `message`.

mod convert;
mod graph;
mod library;
mod memory;
mod message;
mod provider;
mod session;

pub use library::{LibraryError, OnnxRuntime, find_library};

/// The ONNX file format, generated from `proto/onnx-ml.proto`.
mod proto {
    #![expect(
        clippy::all,
        clippy::disallowed_methods,
        clippy::doc_markdown,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

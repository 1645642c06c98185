//! The Open Inference Protocol as far as it is the same over REST and gRPC: what a request's parameters ask for, how models are
//! described, the repository, the statistics, and the count of a request.
//!
//! Errors name a field and what is wrong with it; each door gives them its own status. Knows the engine and no transport.

mod describe;
mod parameters;
mod repository;
mod statistics;
mod tally;

pub use describe::{ModelMetadata, TensorMetadata, is_ready, metadata};
pub use parameters::{ParameterError, RequestBounds, options_of};
pub use repository::{IndexEntry, check_overrides, index};
pub use statistics::{BatchStatistics, InferenceStatistics, MemoryUsage, ModelStatistics, Times, statistics};
pub use tally::{Tally, rejected, writes_line};

/// What the server calls itself.
pub const SERVER_NAME: &str = "ortus";
pub const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is served beyond the protocol's core, in Triton's words.
pub const EXTENSIONS: [&str; 7] = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
];

/// An `id` or the name of an output may have so many bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

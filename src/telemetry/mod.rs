//! Logs, statistics and metrics: what the server says of itself. Ground floor: every room may use it.

mod exposition;
pub mod gpu;
mod logging;
pub mod metrics;
mod printable;
pub mod process;
pub mod stats;
mod timestamp;

pub use exposition::{Exposition, ExpositionFormat, Family, Labels, Samples};
pub use logging::{LogError, LogFormat, LogSettings, start_logging};
pub use printable::printable;
pub use process::resident_bytes;
pub use stats::{ModelStats, RequestGuard, Stats, StatsSettings};
pub use timestamp::{now_ms, rfc3339};

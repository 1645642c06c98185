//! Logs and statistics: what the server says of itself. Ground floor: every room may use it.

mod logging;
mod printable;
pub mod process;
pub mod stats;

pub use logging::{LogError, LogFormat, LogSettings, start_logging};
pub use printable::printable;
pub use stats::{ModelStats, RequestGuard, Stats, StatsSettings};

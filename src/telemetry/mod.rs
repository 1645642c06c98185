//! Logs, statistics, metrics and traces: what the server says of itself. Ground floor: every room may use it.

mod events;
mod exposition;
pub mod gpu;
mod line_rate;
mod logging;
pub mod metrics;
mod printable;
pub mod process;
mod refusals;
pub mod stats;
mod timestamp;
pub mod trace;

pub use events::{Event, EventLevel, recent_events};
pub use exposition::{Exposition, ExpositionFormat, Family, Labels, Samples};
pub use line_rate::LineRate;
pub use logging::{LogError, LogFormat, LogSettings, log_level, set_log_level, start_logging};
pub use printable::printable;
pub use process::resident_bytes;
pub use refusals::{tell_left_out, writes_refusal};
pub use stats::{ModelStats, RequestGuard, Stats, StatsSettings};
pub use timestamp::{now_ms, rfc3339, rfc3339_of};

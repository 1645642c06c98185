//! Logs (later metrics and history): what the server says of itself. Ground floor: every room may use it.

mod logging;

pub use logging::{LogFormat, LogSettings, start_logging};

//! Logs (later metrics and history): what the server says of itself. Ground floor: every room may use it.

mod logging;
mod printable;
pub mod process;

pub use logging::{LogError, LogFormat, LogSettings, start_logging};
pub use printable::printable;

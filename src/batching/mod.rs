//! The way to a session: a bounded queue for each loaded model, and the threads that own the sessions and empty it.
//!
//! An instance that is free takes at once what waits; there is no scheduler in between: one hop to the instance's
//! thread, one back. Expired and abandoned requests are never run. Knows no task, no store and no protocol.

mod error;
mod handle;
mod instance;
mod queue;

pub use error::BatchError;
pub use handle::{Completed, Handle};

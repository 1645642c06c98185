//! The way to a session: a bounded queue for each loaded model, and the threads that own the sessions and empty it.
//!
//! An instance that is free takes at once what waits and may share a run (`policy`, a pure function); there is no scheduler
//! in between: one hop to the instance's thread, one back. `plan` says which requests of a model may share a run, `worth`
//! how far that pays, `batch` stacks and splits them, `offenders` who shares them with nobody else for a while. Expired and abandoned
//! requests are never run. Knows no task, no store and no protocol.

mod batch;
mod error;
mod handle;
mod inline;
mod instance;
mod offenders;
mod plan;
mod policy;
mod pressure;
mod probe;
mod queue;
mod settings;
pub mod steady;
#[cfg(test)]
mod tests;
mod waiting;
mod watch;
pub mod worth;

pub use error::{BatchError, PartError};
use handle::Answered;
pub use handle::{Completed, Handle, Request, Spare, Start};
pub use inline::{Inline, Learned, SHORT_RUN, Short};
pub use offenders::Sender;
pub use plan::{Joining, PaddedInput, Padding, Plan};
pub use pressure::Pressure;
pub use probe::{MakeInputs, probe};
pub use settings::BatchSettings;
pub use waiting::{Levels, OnTimeout, WaitingPolicy, WaitingSettings};

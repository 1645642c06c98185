//! What is answered later: accepted jobs, kept on disk until their results have been fetched or expire.
//!
//! `job` is what is kept of a job, `table` all jobs in memory (pure: bounds, order, expiry), `disk` the same on disk,
//! `handle` what doors call ([`Jobs`]), `scheduler` what runs jobs. Knows no protocol and no model: a request is opaque
//! bytes with a few headers, and a door's [`Executor`] turns it into an answer.

mod disk;
mod error;
mod handle;
mod job;
mod scheduler;
mod settings;
mod table;
#[cfg(test)]
mod tests;

pub use error::JobError;
pub use handle::{Deleted, JobUsage, Jobs};
pub use job::{Failure, Job, JobRequest, Kind, Output, State, Status};
pub use scheduler::{Executor, Outcome, Work};
pub use settings::JobSettings;
pub use table::{Filter, Page};

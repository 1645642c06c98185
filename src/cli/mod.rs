//! The command line: `args` says what there is, one file does each command.
//!
//! Invariants: a result goes to standard output, an error to standard error as one line that begins with `error: `; the
//! exit code is 0 only on success (2 where the arguments are wrong). Nothing printed holds control characters of a file
//! or a model. Commands return their text; only `run` prints.

mod args;
mod bench;
mod configuration;
mod error;
mod health;
mod inspect;
mod key;
mod list;
mod lone_model;
mod optimize;
mod predict;
mod pull;
mod remove;
mod run;
mod serve;
mod store;
mod table;

pub use args::Cli;
pub use run::run;

//! Closed-loop load: each worker does its next piece of work when the last is done. For `ortus bench` and the benchmarks.
//!
//! `client` is an HTTP client that costs as little as it can, `workers` runs work on threads and measures it, `sample` makes
//! numbers of that. Knows no model and no server of ours: what is measured is a closure or an address.

mod client;
mod sample;
mod workers;

pub use client::{Answer, Client, Request};
pub use sample::{Sample, Summary, median};
pub use workers::{LoadError, Work, measure, measure_http};

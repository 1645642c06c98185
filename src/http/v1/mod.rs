//! The native API: handlers of three steps (parse, call, encode) and their wire types.

pub(super) mod downloads;
pub(super) mod encode;
pub(super) mod job_runner;
pub(super) mod jobs;
pub(super) mod models;
mod multipart;
mod optimization;
pub mod optimize;
pub(super) mod parse;
pub mod predict;
pub(super) mod profile;
pub(super) mod stats;
pub(super) mod system;
pub(super) mod warmup;

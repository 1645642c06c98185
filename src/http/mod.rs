//! The REST door: HTTP in, engine calls, HTTP out.
//!
//! `router` is the route table, `middleware` their order, `error` the error table. `v1` is the native API, `v2` the Open
//! Inference Protocol, `codec` the body formats. Knows the engine and nothing below it.

mod body;
pub mod codec;
mod settings;

pub use settings::{HttpLimits, HttpSettings};

use crate::engine::InferenceEngine;
use std::sync::Arc;

/// What every handler has.
#[derive(Clone)]
pub struct HttpState {
    pub engine: InferenceEngine,
    pub settings: Arc<HttpSettings>,
}

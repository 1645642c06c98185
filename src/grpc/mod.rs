//! The gRPC door: the Open Inference Protocol with Triton's extensions, health and reflection.
//!
//! `server` is what the app starts, `calls` the table of calls with their roles, `door` what surrounds every call, `service` the calls
//! themselves, `stream` the one that goes on, `messages` what they hold of what all bodies may, `health` whether the server answers; `decode` and `encode` turn messages into tensors and
//! back, `codec` is their outermost form, `error` the error table. Knows the engine and what stands beside it, and nothing below.

mod calls;
mod codec;
mod decode;
mod door;
mod encode;
mod error;
mod health;
mod inbound;
mod messages;
mod server;
mod service;
mod settings;
mod stream;
mod visit;

pub use server::Server;
pub use settings::GrpcSettings;

/// The messages and the service of `proto/inference.proto`.
mod pb {
    #![expect(
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));

    /// What reflection answers from.
    pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.fds"));
}

use crate::auth::Gate;
use crate::engine::InferenceEngine;
use crate::entrance::InFlightBytes;
use crate::tasks::Tasks;
use crate::tls::Certificate;
use std::sync::Arc;

/// What the server does, for the door.
#[derive(Clone)]
pub struct Services {
    pub auth: Gate,
    pub engine: InferenceEngine,
    /// What the bodies of all requests hold, to all doors.
    pub bodies: InFlightBytes,
    /// `None`: without TLS.
    pub tls: Option<Certificate>,
}

/// What every call has.
#[derive(Clone)]
struct GrpcState {
    auth: Gate,
    engine: InferenceEngine,
    bodies: InFlightBytes,
    settings: Arc<GrpcSettings>,
    tasks: Tasks,
}

/// Reads an inference request for a model of numbers, texts and a value that is no tensor, and again from what was read: for the
/// fuzzer alone.
#[cfg(fuzzing)]
pub fn fuzz_infer_request(message: &[u8]) {
    if let Ok(request) = codec::decoded(message) {
        // What is refused is as good.
        let _ = decode::read_twice(request);
    }
}

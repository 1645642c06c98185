//! Settings of the gRPC door: its address, and the bounds that it shares with the REST door.

use crate::codec::json::JsonLimits;
use crate::entrance::ConnectionLimits;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct GrpcSettings {
    pub listen: SocketAddr,
    /// Deadline of a request that names none, from its arrival.
    pub request_timeout: Duration,
    /// Of one message.
    pub max_body_bytes: usize,
    /// Time for the message of a call to arrive.
    pub body_read_timeout: Duration,
    /// Of tensors, and of the JSON that stands for values that are none.
    pub values: JsonLimits,
    pub connections: ConnectionLimits,
}

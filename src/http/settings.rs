//! Settings of the REST door: `[server]` and the bounds of `[limits]` that guard it.

use crate::codec::json::JsonLimits;
use crate::entrance::{ConnectionLimits, InFlightBytes};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// `[server]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    /// Deadline of a request that names none, from its arrival.
    pub request_timeout: Duration,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    /// How long a drain may take, from the signal to the exit.
    pub shutdown_grace: Duration,
    /// Origins that browsers may call from; empty = none (no CORS headers at all).
    pub cors_origins: Vec<String>,
    /// Names accepted in the `Host` header besides loopback names and the listen address; `*` = any.
    pub allowed_hosts: Vec<String>,
    /// Whether callers speak TLS; what the door is bound with decides.
    pub is_tls: bool,
    pub limits: HttpLimits,
    /// The whole configuration in words, for those who look at the System page.
    pub shown: Arc<[ShownSetting]>,
}

/// One line of the effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownSetting {
    /// `section.key`.
    pub key: String,
    pub value: String,
    /// Where the value comes from, in words.
    pub origin: String,
}

/// The keys of `[limits]` that belong to this door.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpLimits {
    /// Time for a request's head to arrive.
    pub header_read_timeout: Duration,
    /// Time for a request's body to arrive.
    pub body_read_timeout: Duration,
    /// Bytes of a request's head.
    pub max_header_bytes: usize,
    pub max_headers: usize,
    pub max_json_depth: usize,
    /// Elements of one tensor.
    pub max_tensor_elements: usize,
    /// Items of one request to a task, and parts of a multipart body.
    pub max_items: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub max_http2_streams: u32,
    /// How long a client may take no byte of its answer.
    pub write_timeout: Duration,
    /// What an upload must bring on average, once it has had the time of a whole body; 0 = anything.
    pub min_upload_bytes_per_second: u64,
    /// Streams of events that are open at once.
    pub max_event_streams: usize,
    /// Bytes that the bodies of all requests, to all doors, may hold together, never less than `max_body_bytes`; `None` = a quarter of
    /// the memory that is free at the start.
    pub max_inflight_bytes: Option<usize>,
    /// How long a stopping server goes on accepting, so that balancers notice that it is not ready.
    pub drain_delay: Duration,
}

impl HttpSettings {
    /// Of the addresses that callers use.
    pub fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    /// What bounds the connections of a door.
    pub fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: self.max_connections,
            header_read_timeout: self.limits.header_read_timeout,
            max_header_bytes: self.limits.max_header_bytes,
            max_headers: self.limits.max_headers,
            max_http2_streams: self.limits.max_http2_streams,
            write_timeout: self.limits.write_timeout,
            drain_delay: self.limits.drain_delay,
            shutdown_grace: self.shutdown_grace,
        }
    }

    /// What the bodies of all requests may hold, counted anew.
    pub fn in_flight_bytes(&self) -> InFlightBytes {
        InFlightBytes::new(self.limits.max_inflight_bytes, self.max_body_bytes)
    }
}

impl Default for HttpSettings {
    fn default() -> HttpSettings {
        HttpSettings {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            request_timeout: Duration::from_secs(30),
            max_body_bytes: 64 << 20,
            max_connections: 4096,
            shutdown_grace: Duration::from_secs(20),
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            is_tls: false,
            limits: HttpLimits {
                header_read_timeout: Duration::from_secs(10),
                body_read_timeout: Duration::from_secs(30),
                max_header_bytes: 32 << 10,
                max_headers: 100,
                max_json_depth: 64,
                max_tensor_elements: 1 << 28,
                max_items: 256,
                max_http2_streams: 128,
                write_timeout: Duration::from_secs(30),
                min_upload_bytes_per_second: 4 << 10,
                max_event_streams: 1024,
                max_inflight_bytes: None,
                drain_delay: Duration::from_millis(200),
            },
            shown: Arc::from([]),
        }
    }
}

impl From<&HttpLimits> for JsonLimits {
    fn from(limits: &HttpLimits) -> JsonLimits {
        JsonLimits {
            max_depth: limits.max_json_depth,
            max_elements: limits.max_tensor_elements,
            max_items: limits.max_items,
        }
    }
}

//! Answers that go on while something happens: server-sent events, to anybody who looks.
//!
//! Invariants: never more than `max_event_streams` at a time; a stream ends with the key or the session that opened it, within
//! [`LOOK`] of the moment that the gate knows.

use super::HttpState;
use super::error::{ApiError, retry_after};
use crate::auth::{Caller, Gate};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How often something is sent on a stream that has nothing to say, so that nobody on the way takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often it is looked whether whoever opened a stream would still be let in.
const LOOK: Duration = Duration::from_secs(1);

/// The places for streams. Clones share them.
#[derive(Clone)]
pub(super) struct Streams(Arc<Semaphore>);

impl Streams {
    pub(super) fn new(most: usize) -> Streams {
        Streams(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
    }
}

impl HttpState {
    /// The answer that sends these events to `caller`, who is `None` where keys are off.
    ///
    /// # Errors
    /// Where too many are open already.
    pub(super) fn stream(
        &self,
        caller: Option<Caller>,
        events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let most = self.settings.limits.max_event_streams;
        let place = self.streams.0.clone().try_acquire_owned().map_err(|_| {
            let detail = format!(
                "as many event streams are open as limits.max_event_streams = {most} allows; close one, or ask for the state instead"
            );
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", detail)
                .with_header(header::RETRY_AFTER, retry_after(Duration::from_secs(1)))
        })?;
        let let_out = no_longer_let_in(self.auth.clone(), caller);
        let events = events.take_until(let_out).map(move |event| {
            // Held as long as the stream is.
            let _ = &place;
            event
        });
        let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        // Proxies that collect answers would hold the events back.
        Ok(([("x-accel-buffering", "no")], stream).into_response())
    }
}

/// Returns when a key was revoked or has expired, a session has ended, or the first key came into being.
async fn no_longer_let_in(gate: Gate, caller: Option<Caller>) {
    let is_let_in = || match &caller {
        Some(caller) => gate.still_admits(caller, Instant::now()),
        None => !gate.is_on(),
    };
    while is_let_in() {
        tokio::time::sleep(LOOK).await;
    }
}

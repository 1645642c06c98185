//! The way in, the same for all doors: connections from their acceptance to the drain (`listener`), what a request's head says
//! whatever door it came to (`head`): its name and its key; and what all bodies may hold together (`inflight`).
//!
//! The only room that knows how HTTP is spoken on a socket. Knows no route, no body and no answer.

mod head;
mod inflight;
mod listener;

pub use head::{API_KEY, KeyHeaderError, REQUEST_ID, presented_key, request_id};
pub use inflight::{Held, InFlightBytes, NoRoom};
pub use listener::{ConnectionLimits, Listener, Service, Speaks};

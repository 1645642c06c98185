//! The last things that happened, for those who look without a log at hand: what the log says at `info` and above, but for the
//! line of each request.
//!
//! Invariants: at most [`keep_events`] says are kept, each of bounded text, printable; recording takes one short lock. What must not be
//! in the log is not here either: both see the same records.

use super::printable;
use std::collections::VecDeque;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Bytes of a text.
const TEXT_MAX: usize = 2000;
/// Lines on refused requests that were not written one by one.
pub(super) const REFUSALS: &str = "ortus::refusals";
/// The lines of requests are written here.
const ACCESS_LOG: [&str; 3] = ["ortus::http::middleware", "ortus::grpc::door", REFUSALS];

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Ascending, from 0.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub level: EventLevel,
    /// Where it was written: `models`, `downloads`.
    pub room: String,
    /// The model that it is about, where it names one.
    pub model: Option<String>,
    /// What happened, in a few words.
    pub text: String,
    /// More of it: the record's fields.
    pub fields: String,
}

/// How serious it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventLevel {
    Info,
    Warning,
    Error,
}

impl EventLevel {
    pub const ALL: [EventLevel; 3] = [EventLevel::Info, EventLevel::Warning, EventLevel::Error];

    pub fn name(self) -> &'static str {
        match self {
            EventLevel::Info => "info",
            EventLevel::Warning => "warning",
            EventLevel::Error => "error",
        }
    }
}

#[derive(Debug)]
struct Ring {
    /// How many are kept.
    most: usize,
    next: u64,
    events: VecDeque<Event>,
}

/// Of the process: so is the log.
static RING: Mutex<Ring> = Mutex::new(Ring { most: 1000, next: 0, events: VecDeque::new() });

/// The events, the newest first.
pub fn recent_events() -> Vec<Event> {
    RING.lock().unwrap_or_else(PoisonError::into_inner).events.iter().rev().cloned().collect()
}

/// How many are kept from here on.
pub(super) fn keep_events(most: usize) {
    let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    ring.most = most;
    let over = ring.events.len().saturating_sub(most);
    ring.events.drain(..over);
}

/// Puts records into the ring.
pub(super) struct Remember;

impl Remember {
    /// Whether records of this origin are kept.
    pub(super) fn takes(metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        *metadata.level() <= Level::INFO && target.starts_with("ortus::") && !ACCESS_LOG.contains(&target)
    }
}

impl<S: Subscriber> Layer<S> for Remember {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut words = Words::default();
        event.record(&mut words);
        let level = match *metadata.level() {
            Level::ERROR => EventLevel::Error,
            Level::WARN => EventLevel::Warning,
            _ => EventLevel::Info,
        };
        let room = metadata.target().split("::").nth(1).unwrap_or("").to_owned();
        let text = cut(printable(words.message.trim()).into_owned());
        let fields = cut(printable(words.fields.trim()).into_owned());
        let model = words.model.map(|model| cut(printable(&model).into_owned()));
        let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
        while ring.events.len() >= ring.most.max(1) {
            ring.events.pop_front();
        }
        let number = ring.next;
        ring.next += 1;
        ring.events.push_back(Event { number, at_ms: super::now_ms(), level, room, model, text, fields });
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
    model: Option<String>,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

impl Words {
    fn put(&mut self, field: &Field, value: &str) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            "model" => {
                self.model = Some(value.to_owned());
                Ok(())
            }
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn what_happened_is_kept_and_bounded() {
        let subscriber = tracing_subscriber::registry().with(Remember.with_filter(filter_fn(Remember::takes)));
        let mine = || recent_events().into_iter().filter(|event| event.room == "events-test").collect::<Vec<_>>();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "ortus::events-test", model = "m\u{1b}", ms = 3, "loaded");
            tracing::debug!(target: "ortus::events-test", "not kept");
            tracing::warn!(target: "ortus::http::middleware", "GET / 200");
            tracing::error!(target: "ortus::events-test::deep", text = "é".repeat(3000), "failed");
        });
        let events = mine();
        let texts: Vec<&str> = events.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(events.len(), 2, "{texts:?}");
        assert_eq!((events[1].level, events[1].model.as_deref()), (EventLevel::Info, Some("m\\u{1b}")));
        assert_eq!((texts[1], events[1].fields.as_str(), texts[0]), ("loaded", "ms=3", "failed"));
        assert!(events[0].fields.starts_with("text=é") && events[0].fields.len() <= TEXT_MAX + 3);
        assert!(events[0].number > events[1].number);
        assert!(!recent_events().iter().any(|event| event.text.contains("GET / 200")));
    }
}

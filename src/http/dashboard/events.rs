//! The page of what happened, with a filter in its address.

use super::format;
use super::frame::{Frame, Visitor, page};
use super::values::state;
use crate::telemetry::{Event, EventLevel, recent_events, rfc3339};
use askama::Template;
use axum::extract::Query;
use axum::response::Response;
use serde::Deserialize;

#[derive(Template)]
#[template(path = "events.html")]
struct Events {
    frame: Frame,
    query: EventQuery,
    all: usize,
    events: Vec<EventRow>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EventQuery {
    text: String,
    model: String,
    level: String,
}

/// One event as it is shown.
pub(super) struct EventRow {
    pub(super) at: String,
    /// Its day and second, to be read.
    pub(super) moment: String,
    /// Hours, minutes and seconds of it.
    pub(super) clock: String,
    pub(super) icon: &'static str,
    pub(super) class: &'static str,
    pub(super) level: &'static str,
    pub(super) room: String,
    pub(super) model: Option<String>,
    pub(super) text: String,
    pub(super) fields: String,
}

impl From<&Event> for EventRow {
    fn from(event: &Event) -> EventRow {
        let (at, look) = (rfc3339(event.at_ms), state(event.level.name()));
        EventRow {
            moment: format::moment(&at),
            clock: at.get(11..19).unwrap_or("").to_owned(),
            at,
            icon: look.icon,
            class: look.class,
            level: event.level.name(),
            room: event.room.clone(),
            model: event.model.clone(),
            text: event.text.clone(),
            fields: event.fields.clone(),
        }
    }
}

impl EventQuery {
    fn is_level(&self, level: &EventLevel) -> bool {
        self.level == level.name()
    }

    fn takes(&self, event: &Event) -> bool {
        let least = EventLevel::ALL.into_iter().find(|level| level.name() == self.level).unwrap_or(EventLevel::Info);
        let holds = |text: &str, part: &str| part.is_empty() || text.to_lowercase().contains(&part.to_lowercase());
        event.level >= least
            && (holds(&event.text, &self.text) || holds(&event.fields, &self.text))
            && (self.model.is_empty() || event.model.as_deref() == Some(&self.model))
    }
}

pub(super) async fn show(visitor: Visitor, Query(query): Query<EventQuery>) -> Response {
    let all = recent_events();
    let events = all.iter().filter(|event| query.takes(event)).map(EventRow::from).collect();
    let frame = visitor.frame("Events", "/ui/events", "/ui/events");
    page(&Events { frame, all: all.len(), events, query })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_takes_what_it_says() {
        let event = Event {
            number: 0,
            at_ms: 0,
            level: EventLevel::Warning,
            room: "models".into(),
            model: Some("a".into()),
            text: "Could not load".into(),
            fields: String::new(),
        };
        let query = |text: &str, model: &str, level: &str| EventQuery {
            text: text.into(),
            model: model.into(),
            level: level.into(),
        };
        assert!(query("", "", "").takes(&event) && query("could", "a", "warning").takes(&event));
        assert!(
            !query("", "b", "").takes(&event)
                && !query("", "", "error").takes(&event)
                && !query("x", "", "").takes(&event)
        );
    }
}

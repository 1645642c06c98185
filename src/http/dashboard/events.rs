//! The page of what happened, with a filter in its address, also of what happens while it is looked at.

use super::format;
use super::frame::{Frame, Visitor, page, query_value};
use super::live::Parts;
use super::values::state;
use crate::telemetry::{Event, EventLevel, recent_events, rfc3339};
use askama::Template;
use axum::extract::Query;
use axum::http::Uri;
use axum::response::Response;
use serde::Deserialize;

#[derive(Template)]
#[template(path = "events.html", blocks = ["events"])]
pub(super) struct Events {
    frame: Frame,
    query: EventQuery,
    all: usize,
    events: Vec<EventRow>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
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
    const PAGE: &str = "/ui/events";

    /// The filter in the page's address; `None` where it is another's, or says something else.
    pub(super) fn of(address: &str) -> Option<EventQuery> {
        let address: Uri = address.parse().ok().filter(|address: &Uri| address.path() == EventQuery::PAGE)?;
        Query::try_from_uri(&address).ok().map(|Query(query)| query)
    }

    /// The page's address with this filter.
    fn address(&self) -> String {
        let fields = [("text", &self.text), ("model", &self.model), ("level", &self.level)];
        let said = fields.iter().filter(|(_, value)| !value.is_empty());
        let query: Vec<String> = said.map(|(name, value)| format!("{name}={}", query_value(value))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{mark}{}", EventQuery::PAGE, query.join("&"))
    }

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
    page(&build(&visitor, query))
}

pub(super) fn build(visitor: &Visitor, query: EventQuery) -> Events {
    let all = recent_events();
    let events = all.iter().filter(|event| query.takes(event)).map(EventRow::from).collect();
    let frame = visitor.frame("Events", EventQuery::PAGE, query.address()).live();
    Events { frame, all: all.len(), events, query }
}

impl Events {
    pub(super) fn parts(&self) -> Parts {
        self.as_events().render().map(|html| ("events", html)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_has_the_filter() {
        let query = |text: &str, model: &str, level: &str| EventQuery {
            text: text.into(),
            model: model.into(),
            level: level.into(),
        };
        for (query, address) in [
            (query("", "", ""), "/ui/events"),
            (query("", "a.b", ""), "/ui/events?model=a.b"),
            (query("a&level=b \u{fc}%", "", "error"), "/ui/events?text=a%26level%3Db%20%C3%BC%25&level=error"),
        ] {
            assert_eq!(query.address(), address);
            assert_eq!(EventQuery::of(address), Some(query));
        }
        for none in ["", "/ui/events/", "/ui/jobs?text=a", "/ui/eventsx", "/ui/events?text=a&text=b", "no path"] {
            assert_eq!(EventQuery::of(none), None, "{none}");
        }
    }

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

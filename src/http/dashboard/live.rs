//! The changing parts of the pages: one stream for each tab, written once a second for all who look at the same page.

use super::events::EventQuery;
use super::frame::Visitor;
use super::history::Range;
use super::{download, events, job, jobs, model, models, overview, system};
use crate::engine::ModelName;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde::Deserialize;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Parts of a page by their names, as HTML.
pub(super) type Parts = Vec<(&'static str, String)>;

/// The parts of this second, by the page's address.
#[derive(Default)]
pub(super) struct Rendered {
    tick: u64,
    pages: HashMap<Key, Arc<Parts>>,
}

/// The page's address, what a visitor may do, on which depends what is offered, and how far back its charts go.
type Key = (String, [bool; 2], Option<Range>);

#[derive(Debug, Deserialize)]
pub(super) struct LiveQuery {
    of: String,
}

/// A page with changing parts.
#[derive(Debug, Clone, PartialEq)]
enum Live {
    Overview,
    Models,
    Model(ModelName),
    Jobs,
    Job(Uuid),
    Download(Uuid),
    Events(EventQuery),
    System,
}

impl Live {
    fn of(address: &str) -> Option<Live> {
        Some(match address {
            "/" => Live::Overview,
            "/ui/models" => Live::Models,
            "/ui/jobs" => Live::Jobs,
            "/ui/system" => Live::System,
            other => {
                if let Some(query) = EventQuery::of(other) {
                    return Some(Live::Events(query));
                }
                let (kind, which) = other.strip_prefix("/ui/")?.split_once('/')?;
                match kind {
                    "models" => Live::Model(ModelName::parse(which).ok()?),
                    "jobs" => Live::Job(which.parse().ok()?),
                    "downloads" => Live::Download(which.parse().ok()?),
                    _ => return None,
                }
            }
        })
    }

    async fn parts(&self, visitor: &Visitor) -> Option<Parts> {
        match self {
            Live::Overview => Some(overview::build(visitor).await.ok()?.parts()),
            Live::Models => Some(models::build(visitor).await.ok()?.parts()),
            Live::Model(name) => Some(model::build(visitor, name).await.ok()?.parts()),
            Live::Jobs => Some(jobs::build(visitor).await.ok()?.parts()),
            Live::Job(id) => Some(job::build(visitor, *id).await.ok()?.parts()),
            Live::Download(id) => Some(download::build(visitor, *id).await.ok()?.parts()),
            Live::Events(query) => {
                let events = events::build(visitor, query.clone());
                // Thousands are kept where the settings say so.
                visitor.dashboard.state.tasks.spawn_blocking(move || events.parts()).await.ok()
            }
            Live::System => Some(system::build(visitor).await.ok()?.parts()),
        }
    }
}

pub(super) async fn stream(visitor: Visitor, Query(LiveQuery { of }): Query<LiveQuery>) -> Response {
    let Some(page) = Live::of(&of) else { return StatusCode::NOT_FOUND.into_response() };
    let (state, caller) = (visitor.dashboard.state.clone(), visitor.caller.clone());
    let feed = Feed {
        ticks: visitor.dashboard.ticks.subscribe(),
        stopping: visitor.dashboard.state.tasks.stopping().clone(),
        key: (of, [visitor.look_only.is_none(), visitor.caller.is_some()], visitor.range),
        visitor,
        page,
        sent: HashMap::new(),
        ready: Vec::new(),
    };
    state.stream(caller, feed.stream()).into_response()
}

struct Feed {
    ticks: watch::Receiver<u64>,
    stopping: CancellationToken,
    visitor: Visitor,
    /// Of what is rendered.
    key: Key,
    page: Live,
    /// What this tab has already.
    sent: HashMap<&'static str, String>,
    /// In reverse.
    ready: Vec<Event>,
}

impl Feed {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures_util::stream::unfold(self, |mut feed| async move {
            loop {
                if let Some(event) = feed.ready.pop() {
                    return Some((Ok(event), feed));
                }
                tokio::select! {
                    biased; // A stop comes first: an endless stream would hold the drain.
                    () = feed.stopping.cancelled() => return None,
                    changed = feed.ticks.changed() => if changed.is_err() { return None },
                }
                let tick = *feed.ticks.borrow_and_update();
                let parts = feed.parts(tick).await?;
                for (name, html) in parts.iter() {
                    if feed.sent.get(name) != Some(html) {
                        feed.sent.insert(name, html.clone());
                        feed.ready.push(Event::default().event(name).data(html));
                    }
                }
                // A sign of life, so that the page knows how old it is.
                feed.ready.push(Event::default().event("tick").data(tick.to_string()));
                feed.ready.reverse();
            }
        })
    }

    /// What this second's page is, written by the first who asks.
    async fn parts(&self, tick: u64) -> Option<Arc<Parts>> {
        let dashboard = &self.visitor.dashboard;
        let known = {
            let mut rendered = dashboard.rendered.lock().unwrap_or_else(PoisonError::into_inner);
            if rendered.tick != tick {
                *rendered = Rendered { tick, pages: HashMap::new() };
            }
            rendered.pages.get(&self.key).cloned()
        };
        if let Some(parts) = known {
            return Some(parts);
        }
        let parts = Arc::new(self.page.parts(&self.visitor).await?);
        let mut rendered = dashboard.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if rendered.tick == tick {
            rendered.pages.insert(self.key.clone(), parts.clone());
        }
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_address() {
        assert_eq!(Live::of("/"), Some(Live::Overview));
        assert_eq!(Live::of("/ui/events?model=a"), EventQuery::of("/ui/events?model=a").map(Live::Events));
        assert_eq!(Live::of("/ui/models/a.b"), ModelName::parse("a.b").ok().map(Live::Model));
        let id = Uuid::from_u128(7);
        assert_eq!(Live::of(&format!("/ui/jobs/{id}")), Some(Live::Job(id)));
        assert_eq!(Live::of(&format!("/ui/downloads/{id}")), Some(Live::Download(id)));
        for none in ["", "/ui/jobs/x", "/ui/events/a", "/ui/add", "/ui/models/a/b", "/ui/models/../x", "/v1/models"] {
            assert_eq!(Live::of(none), None, "{none}");
        }
    }
}

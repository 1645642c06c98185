//! The changing parts of the pages: one stream for each tab, written once a second for all who look at the same page.

use super::frame::Visitor;
use super::{Pages, jobs, model, models, overview, system};
use crate::auth::Caller;
use crate::engine::ModelName;
use axum::Extension;
use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde::Deserialize;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Parts of a page by their names, as HTML.
pub(super) type Parts = Vec<(&'static str, String)>;

/// The parts of this second, by the page's address.
#[derive(Default)]
pub(super) struct Rendered {
    tick: u64,
    pages: HashMap<String, Arc<Parts>>,
}

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
    System,
}

impl Live {
    fn of(address: &str) -> Option<Live> {
        Some(match address {
            "/" => Live::Overview,
            "/ui/models" => Live::Models,
            "/ui/jobs" => Live::Jobs,
            "/ui/system" => Live::System,
            other => Live::Model(ModelName::parse(other.strip_prefix("/ui/models/")?).ok()?),
        })
    }

    async fn parts(&self, visitor: &Visitor) -> Option<Parts> {
        match self {
            Live::Overview => Some(overview::build(visitor).await.ok()?.parts()),
            Live::Models => Some(models::build(visitor).await.ok()?.parts()),
            Live::Model(name) => Some(model::build(visitor, name).await.ok()?.parts()),
            Live::Jobs => Some(jobs::build(visitor).await.ok()?.parts()),
            Live::System => Some(system::build(visitor).await.ok()?.parts()),
        }
    }
}

pub(super) async fn stream(
    Extension(dashboard): Extension<Pages>,
    caller: Option<Extension<Caller>>,
    Query(LiveQuery { of }): Query<LiveQuery>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let Some(page) = Live::of(&of) else { return StatusCode::NOT_FOUND.into_response() };
    let (state, caller) = (dashboard.state.clone(), caller.map(|caller| caller.0));
    let feed = Feed {
        ticks: dashboard.ticks.subscribe(),
        stopping: dashboard.state.tasks.stopping().clone(),
        visitor: Visitor::new(dashboard, caller.clone(), &headers, &uri),
        address: of,
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
    address: String,
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
            rendered.pages.get(&self.address).cloned()
        };
        if let Some(parts) = known {
            return Some(parts);
        }
        let parts = Arc::new(self.page.parts(&self.visitor).await?);
        let mut rendered = dashboard.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if rendered.tick == tick {
            rendered.pages.insert(self.address.clone(), parts.clone());
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
        assert_eq!(Live::of("/ui/models/a.b"), ModelName::parse("a.b").ok().map(Live::Model));
        for none in ["", "/ui/add", "/ui/models/a/b", "/ui/models/../x", "/v1/models"] {
            assert_eq!(Live::of(none), None, "{none}");
        }
    }
}

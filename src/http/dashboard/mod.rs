//! The dashboard: pages for people over the native API.
//!
//! A page is a file here with its template in `templates/`; `frame` is what stands around each. `api` is where all facts and
//! actions come from, `history` the last minutes and `traffic` their charts, `live` sends the changing parts of a page once a second,
//! `actions` takes the forms, `chart` and `format` write numbers (pure), `assets` has the files. Every action is a form and every view has an
//! address: scripts only make them smoother.

mod actions;
mod add;
mod api;
mod assets;
mod chart;
mod delete;
mod devices;
mod download;
mod events;
mod format;
mod frame;
mod history;
mod job;
mod jobs;
mod live;
mod model;
mod models;
mod optimize;
mod overview;
mod sign_in;
mod snippets;
mod system;
mod traffic;
mod try_it;
mod values;

use crate::http::HttpState;
use crate::http::access::Routes;
pub(in crate::http) use sign_in::refused;

use api::Api;
use axum::Router;
use axum::routing::{get, post};
use history::{History, Sample};
use live::Rendered;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often a sample is taken.
const TICK: Duration = Duration::from_secs(1);

/// The dashboard, as the door has it.
pub(in crate::http) struct Dashboard(Pages);

/// What all pages have. Clones are the same.
#[derive(Clone)]
struct Pages(Arc<Inner>);

struct Inner {
    state: HttpState,
    api: Api,
    history: Mutex<History>,
    /// Counts samples.
    ticks: watch::Sender<u64>,
    started: Instant,
    rendered: Mutex<Rendered>,
}

impl std::ops::Deref for Pages {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    /// Looks at the history.
    fn history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Dashboard {
    /// Pages over `routes`, the native API's.
    pub(in crate::http) fn new(routes: Router<HttpState>, state: &HttpState) -> Dashboard {
        Dashboard(Pages(Arc::new(Inner {
            state: state.clone(),
            api: Api::new(routes, state),
            history: Mutex::default(),
            ticks: watch::Sender::new(0),
            started: Instant::now(),
            rendered: Mutex::default(),
        })))
    }

    /// Takes a sample a second from here on, until the process stops.
    pub(in crate::http) fn start(&self) {
        let (pages, stopping) = (self.0.clone(), self.0.state.tasks.stopping().clone());
        self.0.state.tasks.spawn("history", async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                let (engine, at) = (pages.state.engine.clone(), pages.started.elapsed());
                // With many models this takes longer than an async thread should be held.
                let Ok(sample) = pages.state.tasks.spawn_blocking(move || Sample::take(&engine, at)).await else {
                    return;
                };
                pages.history.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                pages.ticks.send_modify(|tick| *tick += 1);
            }
        });
    }

    /// The pages' routes.
    pub(in crate::http) fn routes(&self) -> Routes {
        let pages = self.0.clone();
        Routes::default()
            .infer("/", get(overview::show))
            .infer("/ui/models", get(models::show))
            .infer("/ui/models/{name}", get(model::show))
            .infer("/ui/models/{name}/try", get(try_it::show).post(try_it::run))
            .manage("/ui/models/{name}/delete", get(delete::show).post(actions::delete))
            .manage("/ui/models/{name}/optimize", get(optimize::show).post(actions::optimize))
            .manage("/ui/models/{name}/choose", post(actions::choose))
            .manage("/ui/models/{name}/upload", post(actions::upload))
            .manage("/ui/models/{name}/{action}", post(actions::act))
            .manage("/ui/add", get(add::show).post(add::order))
            .infer("/ui/jobs", get(jobs::show))
            .infer("/ui/jobs/{id}", get(job::show))
            .infer("/ui/downloads/{id}", get(download::show))
            .own("/ui/jobs/{id}/cancel", post(actions::cancel_job))
            .manage("/ui/downloads/{id}/cancel", post(actions::cancel_download))
            .infer("/ui/events", get(events::show))
            .infer("/ui/system", get(system::show))
            .manage("/ui/cleanup", post(actions::clean_up))
            .manage("/ui/log-level", post(actions::log_level))
            .open("/ui/theme", post(actions::theme))
            .infer("/ui/live", get(live::stream))
            .open("/ui/assets/{name}", get(assets::serve))
            .open("/ui/sign-in", get(sign_in::show).post(sign_in::enter))
            .open("/ui/sign-out", post(sign_in::leave))
            .around(|routes| routes.layer(axum::Extension(pages)))
    }
}

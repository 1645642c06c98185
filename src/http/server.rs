//! The REST door as the app starts it: bound to its address, then serving.

use super::door::Door;
use super::streams::Streams;
use super::v1::job_runner::JobRunner;
use super::{HttpSettings, HttpState, Services};
use crate::entrance::{Listener, Service, Speaks};
use crate::tasks::Tasks;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The REST door, bound to its address and not yet serving.
pub struct Server {
    listener: Listener,
    door: Door,
    state: HttpState,
}

impl Server {
    /// Binds `settings.listen`. Must be called within the async runtime.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(mut settings: HttpSettings, services: Services, tasks: Tasks) -> io::Result<Server> {
        let Services { auth, engine, jobs, downloads, optimizer, bodies, tls } = services;
        settings.is_tls = tls.is_some();
        let limits = settings.connection_limits();
        let listener = Listener::bind(settings.listen, Speaks::Http1And2, limits, tls.as_ref(), tasks.clone())?;
        let settings = Arc::new(settings);
        let streams = Streams::new(settings.limits.max_event_streams);
        let state = HttpState { auth, engine, jobs, downloads, optimizer, settings, tasks, tls, bodies, streams };
        let door = Door::new(state.clone(), listener.local_addr().ip());
        Ok(Server { listener, door, state })
    }

    /// The address in use: with the port that the system chose where the settings say 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Runs jobs and serves until the tasks are asked to stop, then drains: see [`Listener::serve`].
    pub async fn serve(self) {
        self.state.downloads.start();
        self.state.optimizer.start();
        self.state.auth.start(&self.state.tasks);
        self.door.start();
        self.state.jobs.start(Arc::new(JobRunner(self.state.clone())));
        self.listener.serve(self.door, self.state.engine.stats().clone()).await;
    }
}

impl Service for Door {
    type Body = Body;

    fn call(&self, request: hyper::Request<Incoming>, from: Option<IpAddr>) -> impl Future<Output = Response> + Send {
        Door::call(self, Request::map(request, Body::new), from)
    }
}

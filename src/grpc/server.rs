//! The gRPC door as the app starts it: bound to its address, then serving.

use super::door::Door;
use super::{GrpcSettings, GrpcState, Services};
use crate::entrance::{Listener, Speaks};
use crate::tasks::Tasks;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// The gRPC door, bound to its address and not yet serving.
pub struct Server {
    listener: Listener,
    door: Door,
}

impl Server {
    /// Binds `settings.listen`. Must be called within the async runtime.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(settings: GrpcSettings, services: Services, tasks: Tasks) -> io::Result<Server> {
        let Services { auth, engine, bodies, tls } = services;
        let (listen, limits) = (settings.listen, settings.connections);
        let listener = Listener::bind(listen, Speaks::Http2, limits, tls.as_ref(), tasks.clone())?;
        let state = GrpcState { auth, engine, bodies, settings: Arc::new(settings), tasks };
        let door = Door::new(state).map_err(io::Error::other)?;
        Ok(Server { listener, door })
    }

    /// The address in use: with the port that the system chose where the settings say 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until the tasks are asked to stop, then drains: see [`Listener::serve`].
    pub async fn serve(self) {
        let stats = self.door.stats();
        self.listener.serve(self.door, stats).await;
    }
}

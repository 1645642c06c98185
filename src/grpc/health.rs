//! Whether the server answers, as gRPC's own health protocol says it: for balancers and probes.
//!
//! The whole server (`""`) and the inference service are one: ready when every model meant to be loaded at start has been tried, and not
//! any more once the server stops.

use super::error::GrpcError;
use crate::engine::InferenceEngine;
use futures_util::{Stream, stream};
use std::pin::Pin;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, async_trait};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How often a watcher's state is looked at.
const LOOK: Duration = Duration::from_millis(100);
const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];

#[derive(Clone)]
pub(super) struct HealthService {
    pub(super) engine: InferenceEngine,
    pub(super) stopping: CancellationToken,
}

impl HealthService {
    fn status_of(&self, is_known: bool) -> ServingStatus {
        match (is_known, self.engine.is_ready()) {
            (false, _) => ServingStatus::ServiceUnknown,
            (true, true) => ServingStatus::Serving,
            (true, false) => ServingStatus::NotServing,
        }
    }
}

#[async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status_of(SERVICES.contains(&request.get_ref().service.as_str())) {
            ServingStatus::ServiceUnknown => {
                let text = "there is no such service; its health is that of inference.GRPCInferenceService";
                Err(GrpcError::new(Code::NotFound, 404, "service_not_found", text).into())
            }
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The state now, and each time that it changes; ends when the server stops.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = SERVICES.contains(&request.get_ref().service.as_str());
        let service = self.clone();
        let changes = stream::unfold((service, None), move |(service, before)| async move {
            loop {
                let is_last = service.stopping.is_cancelled();
                let status = service.status_of(is_known);
                if before != Some(status) {
                    return Some((Ok(HealthCheckResponse { status: status.into() }), (service, Some(status))));
                }
                if is_last {
                    return None;
                }
                tokio::select! {
                    biased;
                    () = service.stopping.cancelled() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

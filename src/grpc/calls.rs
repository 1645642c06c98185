//! Every call there is, with the role that it needs: what is not in the table is not reached.

use crate::auth::Role;
use crate::telemetry::stats::Protocol;

/// One call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Call {
    /// As in the address: `/package.Service/Method`.
    pub(super) path: &'static str,
    /// `None` = anybody.
    pub(super) needs: Option<Role>,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// One message in, one out.
    Once,
    /// The same, and a prediction, which is counted.
    Predict,
    /// The same, and it changes something, which is written down.
    Manage,
    /// Messages go on until somebody ends it.
    Stream,
    /// The same, and each is a prediction.
    Predictions,
    /// Another server's; the text says what to do instead.
    NotServed(&'static str),
}

impl Call {
    /// What is asked for at `path`, where that is a call.
    pub(super) fn find(path: &str) -> Option<&'static Call> {
        CALLS.iter().find(|call| call.path == path)
    }

    /// Whether it has no end of its own.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.kind, Kind::Stream | Kind::Predictions)
    }

    /// What a request is counted as; those of a stream are counted one by one, where they are answered.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        (self.kind == Kind::Predict).then_some(Protocol::Grpc)
    }

    /// Whether its messages bring tensors or files. Others say what is asked for, and are small.
    pub(super) fn is_loaded(&self) -> bool {
        matches!(self.kind, Kind::Predict | Kind::Predictions | Kind::Manage)
    }

    /// Whether probes make it all the time.
    pub(super) fn is_probe(&self) -> bool {
        self.needs.is_none()
    }
}

const SHARED_MEMORY: &str = "shared memory is not served; send tensors in the message";
const TRACES: &str =
    "trace settings cannot be changed by a call; traces go to telemetry.otlp_endpoint of the configuration";
const LOGS: &str = "log settings cannot be changed by a call; set telemetry.log_level in the configuration";

/// The table.
pub(super) const CALLS: [Call; 24] = [
    open("/inference.GRPCInferenceService/ServerLive", Kind::Once),
    open("/inference.GRPCInferenceService/ServerReady", Kind::Once),
    infer("/inference.GRPCInferenceService/ModelReady", Kind::Once),
    infer("/inference.GRPCInferenceService/ServerMetadata", Kind::Once),
    infer("/inference.GRPCInferenceService/ModelMetadata", Kind::Once),
    infer("/inference.GRPCInferenceService/ModelInfer", Kind::Predict),
    infer("/inference.GRPCInferenceService/ModelStreamInfer", Kind::Predictions),
    infer("/inference.GRPCInferenceService/ModelConfig", Kind::Once),
    infer("/inference.GRPCInferenceService/ModelStatistics", Kind::Once),
    infer("/inference.GRPCInferenceService/RepositoryIndex", Kind::Once),
    manage("/inference.GRPCInferenceService/RepositoryModelLoad"),
    manage("/inference.GRPCInferenceService/RepositoryModelUnload"),
    infer("/inference.GRPCInferenceService/SystemSharedMemoryStatus", Kind::NotServed(SHARED_MEMORY)),
    infer("/inference.GRPCInferenceService/SystemSharedMemoryRegister", Kind::NotServed(SHARED_MEMORY)),
    infer("/inference.GRPCInferenceService/SystemSharedMemoryUnregister", Kind::NotServed(SHARED_MEMORY)),
    infer("/inference.GRPCInferenceService/CudaSharedMemoryStatus", Kind::NotServed(SHARED_MEMORY)),
    infer("/inference.GRPCInferenceService/CudaSharedMemoryRegister", Kind::NotServed(SHARED_MEMORY)),
    infer("/inference.GRPCInferenceService/CudaSharedMemoryUnregister", Kind::NotServed(SHARED_MEMORY)),
    infer("/inference.GRPCInferenceService/TraceSetting", Kind::NotServed(TRACES)),
    infer("/inference.GRPCInferenceService/LogSettings", Kind::NotServed(LOGS)),
    open("/grpc.health.v1.Health/Check", Kind::Once),
    open("/grpc.health.v1.Health/Watch", Kind::Stream),
    infer("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Kind::Stream),
    infer("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Kind::Stream),
];

/// Anybody.
const fn open(path: &'static str, kind: Kind) -> Call {
    Call { path, needs: None, kind }
}

/// Any key.
const fn infer(path: &'static str, kind: Kind) -> Call {
    Call { path, needs: Some(Role::Infer), kind }
}

/// An admin's key.
const fn manage(path: &'static str) -> Call {
    Call { path, needs: Some(Role::Admin), kind: Kind::Manage }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::pb;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::collections::BTreeSet;

    #[test]
    fn every_call_of_the_service_has_a_role_and_only_health_is_open() {
        let described: BTreeSet<String> = [pb::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET]
            .into_iter()
            .flat_map(|bytes| FileDescriptorSet::decode(bytes).unwrap().file)
            .flat_map(|file| {
                let package = file.package().to_owned();
                file.service.into_iter().flat_map(move |service| {
                    let prefix = format!("/{package}.{}/", service.name());
                    service.method.into_iter().map(move |method| format!("{prefix}{}", method.name()))
                })
            })
            .collect();
        let table: BTreeSet<String> = CALLS.iter().map(|call| call.path.to_owned()).collect();
        assert_eq!(table.len(), CALLS.len(), "a call is there twice");
        let reflection = |path: &&String| path.starts_with("/grpc.reflection.");
        assert_eq!(described, table.iter().filter(|path| !reflection(path)).cloned().collect());
        let open: Vec<&str> = CALLS.iter().filter(|call| call.needs.is_none()).map(|call| call.path).collect();
        assert_eq!(
            open,
            [
                "/inference.GRPCInferenceService/ServerLive",
                "/inference.GRPCInferenceService/ServerReady",
                "/grpc.health.v1.Health/Check",
                "/grpc.health.v1.Health/Watch"
            ]
        );
        let admin: Vec<&str> =
            CALLS.iter().filter(|call| call.needs == Some(Role::Admin)).map(|call| call.path).collect();
        assert!(admin.iter().all(|path| path.ends_with("Load") || path.ends_with("Unload")) && admin.len() == 2);
    }

    #[test]
    fn what_is_not_in_the_table_is_no_call() {
        for path in ["", "/", "/inference.GRPCInferenceService/", "/inference.GRPCInferenceService/ModelInfer/", "/x"] {
            assert_eq!(Call::find(path), None, "{path}");
        }
    }
}

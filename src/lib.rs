//! Ortus serves ONNX models over HTTP and gRPC. ARCHITECTURE.md is the map: which room does what, and who may import whom.

pub mod app;
pub mod auth;
pub mod batching;
pub mod cache;
pub mod cli;
pub mod codec;
pub mod config;
pub mod downloads;
pub mod engine;
pub mod entrance;
pub mod grpc;
pub mod http;
pub mod hub;
pub mod jobs;
pub mod load;
pub mod models;
pub mod optimize;
pub mod pipelines;
pub mod protocol;
pub mod rewrite;
pub mod runtime;
pub mod tasks;
pub mod telemetry;
pub mod tensor;
pub mod tls;

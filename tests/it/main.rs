//! Integration tests: the real `ortus` binary on a port of its own, real models, real HTTP.
//!
//! Needs ONNX Runtime's library, which `make test` installs. Models are those of `models/` and `tests/fixtures/`; tests
//! on `../shared/models` say so loudly where it is absent.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what it expects by panicking"
)]

/// What must hold of a server after any attack.
mod attack;
/// Starts and stops servers; the HTTP client.
mod server;

/// Sounds: the shared models of classes and speech.
mod audio_tasks;
/// Requests that must be refused, and the sentence they get.
mod bad_input;
/// Kept answers and prepared items.
mod cache;
/// The commands that need no server.
mod cli;
/// The pages: the API's numbers, and nothing that is refused.
mod dashboard;
/// Devices and execution providers: what runs where, and why not elsewhere.
mod devices;
/// Routes of other servers on the same models.
mod dialects;
/// Models from elsewhere: pull, upload, swap, roll back, delete.
mod downloads;
/// Attacks by what HTTP allows to say.
mod faults_http;
/// Attacks by tensors, texts, pictures and models.
mod faults_inputs;
/// Overload, hung runs, want of memory, the clock.
mod faults_overload;
/// Attacks through browsers, proxies, names and the log.
mod faults_routes;
/// Answers of the fixtures against Python ONNX Runtime's.
mod golden;
/// The Open Inference Protocol over gRPC.
mod grpc;
/// Pictures: the embedded digits and the shared classifiers.
mod image;
/// Detectors and the other tasks on pictures, against their references.
mod image_tasks;
/// Predictions that are answered later.
mod jobs;
/// What a start keeps for the next one.
mod kept_state;
/// Keys: who is let in to what, and what is written down.
mod keys;
/// Start, readiness, drain, connections that misbehave.
mod lifecycle;
/// Bounds: what exceeds them, and the key that the error names.
mod limits;
/// What models take and give back, the budget, cleaning up.
mod memory;
/// Variants: made, measured, adopted, refused, cancelled.
mod optimize;
/// More than the server takes at a time.
mod overload;
/// `/v1/models/{name}/predict`: every request and response form.
mod predict;
/// Where the time of runs goes, by operator.
mod profile;
/// Models that the server is told to start with.
mod start_models;
/// Statistics and metrics.
mod stats;
/// Versions, policies, loading, swapping, failing.
mod store;
/// Crates and libraries of others.
mod supply;
/// Records of named columns.
mod tabular;
/// Texts: embeddings of the fixtures and of the shared encoder.
mod text;
/// Texts: classes, entities, masks and answers of the shared models against transformers.
mod text_tasks;
/// TLS: certificates, reloading them, handshakes that misbehave.
mod tls;
/// What TorchServe's clients, and those of KServe's V1 protocol, call.
mod torchserve;
/// Traces: `traceparent` in, spans out.
mod tracing;
/// Pictures: tiny models of many architectures against transformers' own pipelines.
mod transformers_images;
/// Files that crash ONNX Runtime, in a process that tries them out.
mod trial_load;
/// A model folder of a Triton repository, with what such configurations use.
mod triton;
/// The Open Inference Protocol.
mod v2;
/// Versions of a model: going back and forth, deleting, where they came from.
mod versions;
/// Warming models up on request.
mod warmup;
/// Pictures and the labels of a request, against transformers.
mod zero_shot_image;

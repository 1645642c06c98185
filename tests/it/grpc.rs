//! The Open Inference Protocol over gRPC: every call, keys and roles, limits, streams, deadlines, drain, and bytes that are no call.

use crate::server::{PATIENCE, Server, command, raw, root, store_of, wait_until};
use crate::stats::Metrics;
use pb::grpc_inference_service_client::GrpcInferenceServiceClient;
use pb::infer_parameter::ParameterChoice;
use pb::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use pb::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use prost::Message;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// A client made of the same file as the server.
mod pb {
    #![expect(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/client/inference.rs"));
}

type Client = GrpcInferenceServiceClient<Channel>;

/// Turns of the model `slow` that no test waits for.
const ENDLESS: i64 = 1_000_000_000_000;

struct Grpc {
    runtime: Runtime,
    channel: Channel,
}

impl Grpc {
    fn to(server: &Server) -> Grpc {
        let runtime = Runtime::new().unwrap();
        let endpoint = Channel::from_shared(format!("http://{}", server.grpc)).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Grpc { runtime, channel }
    }

    fn client(&self) -> Client {
        GrpcInferenceServiceClient::new(self.channel.clone())
    }

    fn run<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        let bounded = async { tokio::time::timeout(PATIENCE, call).await.unwrap() };
        self.runtime.block_on(bounded).map(Response::into_inner)
    }

    fn infer(&self, request: impl tonic::IntoRequest<ModelInferRequest>) -> Result<ModelInferResponse, Status> {
        let mut client = self.client().max_decoding_message_size(usize::MAX);
        self.run(client.model_infer(request))
    }

    fn health(&self) -> ServingStatus {
        let mut client = HealthClient::new(self.channel.clone());
        self.run(client.check(HealthCheckRequest::default())).unwrap().status()
    }
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor { name: name.into(), datatype: datatype.into(), shape: shape.to_vec(), ..Default::default() }
}

fn asks(model: &str, inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    ModelInferRequest { model_name: model.into(), inputs, ..Default::default() }
}

/// The request with its one tensor as bytes.
fn asks_raw(model: &str, input: InferInputTensor, bytes: Vec<u8>) -> ModelInferRequest {
    ModelInferRequest { raw_input_contents: vec![bytes.into()], ..asks(model, vec![input]) }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn echo(values: &[f32]) -> ModelInferRequest {
    asks_raw("echo", input("x", "FP32", &[1, values.len() as i64]), floats(values))
}

fn slow(turns: i64) -> ModelInferRequest {
    asks_raw("slow", input("n", "INT64", &[]), turns.to_le_bytes().to_vec())
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) -> Status {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{status:?}");
    status
}

#[test]
fn health_and_metadata_are_the_same_as_over_rest() {
    let server = Server::with(&["mlp", "versions"]);
    let grpc = Grpc::to(&server);
    let mut client = grpc.client();
    assert!(grpc.run(client.server_live(pb::ServerLiveRequest {})).unwrap().live);
    assert!(grpc.run(client.server_ready(pb::ServerReadyRequest {})).unwrap().ready);
    let mut ready = |name: &str, version: &str| {
        let request = pb::ModelReadyRequest { name: name.into(), version: version.into() };
        grpc.run(client.model_ready(request)).unwrap().ready
    };
    assert!(ready("mlp", "") && ready("versions", "3"));
    assert!(!ready("versions", "9") && !ready("nope", "") && !ready("..", "") && !ready("mlp", "x"));
    let server_metadata = grpc.run(client.server_metadata(pb::ServerMetadataRequest {})).unwrap();
    let rest = server.get_json("/v2");
    assert_eq!(json!(server_metadata.extensions), rest["extensions"]);
    assert_eq!(
        (json!(server_metadata.name), json!(server_metadata.version)),
        (rest["name"].clone(), rest["version"].clone())
    );
    let mut metadata = |name: &str, version: &str| {
        let request = pb::ModelMetadataRequest { name: name.into(), version: version.into() };
        grpc.run(client.model_metadata(request))
    };
    let mlp = metadata("mlp", "").unwrap();
    assert_eq!((&*mlp.platform, &*mlp.versions), ("onnxruntime_onnx", &["1".to_owned()][..]));
    assert_eq!((&*mlp.inputs[0].name, &*mlp.inputs[0].datatype, &*mlp.inputs[0].shape), ("x", "FP32", &[-1, 32][..]));
    refused(metadata("nope", ""), Code::NotFound, "nope");
    refused(metadata("..", ""), Code::NotFound, "a name is");
    refused(metadata("versions", "9"), Code::NotFound, "9");
    refused(metadata("versions", "-1"), Code::NotFound, "a version is a number");
    let mut config = |name: &str| {
        grpc.run(client.model_config(pb::ModelConfigRequest { name: name.into(), version: String::new() }))
    };
    let found = config("mlp").unwrap().config.unwrap();
    assert_eq!((&*found.name, found.input[0].data_type()), ("mlp", pb::DataType::TypeFp32));
    refused(config("nope"), Code::NotFound, "nope");
}

#[test]
fn tensors_go_in_typed_or_raw_and_come_out_raw() {
    let server = Server::with(&["echo", "multi", "versions"]);
    let grpc = Grpc::to(&server);
    let values = [1.5, -2.0, f32::INFINITY];
    let raw = grpc.infer(ModelInferRequest { id: "7".into(), ..echo(&values) }).unwrap();
    assert_eq!((&*raw.model_name, &*raw.model_version, &*raw.id), ("echo", "1", "7"));
    assert_eq!((&*raw.outputs[0].datatype, &*raw.outputs[0].shape), ("FP32", &[1, 3][..]));
    assert_eq!(raw.raw_output_contents, [floats(&values)]);
    let contents = InferTensorContents { fp32_contents: values.to_vec(), ..Default::default() };
    let typed = InferInputTensor { contents: Some(contents), ..input("x", "FP32", &[1, 3]) };
    assert_eq!(grpc.infer(asks("echo", vec![typed.clone()])).unwrap().raw_output_contents, raw.raw_output_contents);
    let both = ModelInferRequest { raw_input_contents: raw.raw_output_contents, ..asks("echo", vec![typed]) };
    refused(grpc.infer(both), Code::InvalidArgument, "inputs.x has contents, and raw_input_contents is used");

    let wanted = |name: &str| InferRequestedOutputTensor { name: name.into(), ..Default::default() };
    let several = ModelInferRequest {
        raw_input_contents: vec![floats(&[1.0, 2.0]).into(), 10i64.to_le_bytes().to_vec().into()],
        outputs: vec![wanted("product"), wanted("sum")],
        ..asks("multi", vec![input("a", "FP32", &[1, 2]), input("b", "INT64", &[1])])
    };
    let answer = grpc.infer(several).unwrap();
    let names: Vec<&str> = answer.outputs.iter().map(|output| &*output.name).collect();
    assert_eq!((names, answer.raw_output_contents[1].len()), (vec!["product", "sum"], 8));

    let version = |version: &str| ModelInferRequest {
        model_version: version.into(),
        ..asks_raw("versions", input("x", "FP32", &[1]), floats(&[1.0]))
    };
    assert_eq!(grpc.infer(version("3")).unwrap().raw_output_contents, [floats(&[4.0])]);
    refused(grpc.infer(version("9")), Code::NotFound, "9");
}

#[test]
fn texts_and_half_floats_go_through() {
    let server = Server::with(&["strings", "alltypes"]);
    let grpc = Grpc::to(&server);
    let names: Vec<String> = server.get_json("/v2/models/strings")["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input["name"].as_str().unwrap().to_owned())
        .collect();
    let contents = InferTensorContents {
        bytes_contents: vec!["héllo".as_bytes().to_vec().into(), Vec::new().into()],
        ..Default::default()
    };
    let inputs = names
        .iter()
        .map(|name| InferInputTensor { contents: Some(contents.clone()), ..input(name, "BYTES", &[2]) })
        .collect();
    let answer = grpc.infer(asks("strings", inputs)).unwrap();
    let text = [&6u32.to_le_bytes()[..], "héllo".as_bytes()].concat();
    assert!(answer.raw_output_contents.iter().any(|raw| raw.windows(text.len()).any(|window| window == text)));

    // Every type of this model as bytes of zeros.
    let metadata = server.get_json("/v2/models/alltypes");
    let mut request = asks("alltypes", Vec::new());
    for given in metadata["inputs"].as_array().unwrap() {
        let datatype = given["datatype"].as_str().unwrap();
        let size = match datatype {
            "BOOL" | "INT8" | "UINT8" => 1,
            "INT16" | "UINT16" | "FP16" | "BF16" => 2,
            "INT32" | "UINT32" | "FP32" => 4,
            "BYTES" => 4,
            _ => 8,
        };
        let shape: Vec<i64> =
            given["shape"].as_array().unwrap().iter().map(|size| size.as_i64().unwrap().max(1)).collect();
        let count: i64 = shape.iter().product();
        request.inputs.push(input(given["name"].as_str().unwrap(), datatype, &shape));
        request.raw_input_contents.push(vec![0; size * count as usize].into());
    }
    let answer = grpc.infer(request.clone()).unwrap();
    let types: Vec<&str> = answer.outputs.iter().map(|output| &*output.datatype).collect();
    assert!(["BOOL", "INT8", "UINT64", "FP16", "FP64"].iter().all(|datatype| types.contains(datatype)), "{types:?}");
    request.raw_input_contents.clear();
    refused(grpc.infer(request), Code::InvalidArgument, "needs 1 elements");
}

#[test]
fn classification_gives_value_index_and_label() {
    let server = Server::with(&["triton-layout"]);
    let grpc = Grpc::to(&server);
    let mut wanted = InferRequestedOutputTensor { name: "scores".into(), ..Default::default() };
    wanted.parameters.insert("classification".into(), parameter(ParameterChoice::Int64Param(2)));
    let request = asks_raw("triton-layout", input("x", "FP32", &[1, 4]), floats(&[0.1, 0.2, 0.3, 0.4]));
    let answer = grpc.infer(ModelInferRequest { outputs: vec![wanted], ..request }).unwrap();
    assert_eq!((&*answer.outputs[0].datatype, &*answer.outputs[0].shape), ("BYTES", &[1, 2][..]));
    let text = String::from_utf8_lossy(&answer.raw_output_contents[0]).into_owned();
    assert_eq!(text.matches(':').count(), 4, "{text:?}");
}

#[test]
fn wrong_requests_are_refused_with_their_reason() {
    let server = Server::with(&["mlp", "slow"]);
    let grpc = Grpc::to(&server);
    let x = |shape: &[i64], count: usize| asks_raw("mlp", input("x", "FP32", shape), floats(&vec![0.5; count]));
    refused(grpc.infer(asks("nope", Vec::new())), Code::NotFound, "nope");
    refused(grpc.infer(x(&[1, 31], 31)), Code::InvalidArgument, "32");
    refused(grpc.infer(x(&[1, 32], 31)), Code::InvalidArgument, "needs 128 bytes of data, got 124");
    refused(grpc.infer(asks("mlp", Vec::new())), Code::InvalidArgument, "x");
    refused(
        grpc.infer(asks_raw("mlp", input("z", "FP32", &[1]), floats(&[1.0]))),
        Code::InvalidArgument,
        "its inputs are x",
    );
    let with = |name: &str, choice: ParameterChoice| {
        let mut request = x(&[1, 32], 32);
        request.parameters.insert(name.into(), parameter(choice));
        request
    };
    assert!(grpc.infer(with("priority", ParameterChoice::Uint64Param(1))).is_ok());
    let status = refused(
        grpc.infer(with("sequence_id", ParameterChoice::Int64Param(7))),
        Code::InvalidArgument,
        "parameters.sequence_id: sequences are not served",
    );
    assert_eq!(status.metadata().get("ortus-code").unwrap(), "invalid_parameter");
    refused(
        grpc.infer(with("timeout", ParameterChoice::StringParam("1".into()))),
        Code::InvalidArgument,
        "microseconds",
    );
    let mut late = slow(ENDLESS);
    late.parameters.insert("timeout".into(), parameter(ParameterChoice::Int64Param(100_000)));
    refused(grpc.infer(late), Code::DeadlineExceeded, "deadline");
    let mut late = Request::new(slow(ENDLESS));
    late.set_timeout(Duration::from_millis(200));
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&grpc.infer(late).unwrap_err().code()));
    // The instance is free again.
    assert!(grpc.infer(slow(1)).is_ok());
    server.assert_well();
}

#[test]
fn statistics_and_metrics_count_each_request_once() {
    let server = Server::with(&["echo"]);
    let grpc = Grpc::to(&server);
    for _ in 0..3 {
        grpc.infer(echo(&[1.0])).unwrap();
    }
    refused(grpc.infer(asks("echo", Vec::new())), Code::InvalidArgument, "x");
    refused(grpc.infer(asks("nope", Vec::new())), Code::NotFound, "nope");
    let mut client = grpc.client();
    let mut statistics = |name: &str| {
        let request = pb::ModelStatisticsRequest { name: name.into(), version: String::new() };
        grpc.run(client.model_statistics(request))
    };
    let counted = statistics("echo").unwrap().model_stats.remove(0);
    let of = counted.inference_stats.unwrap();
    assert_eq!((of.success.unwrap().count, of.fail.unwrap().count), (3, 1));
    assert_eq!(counted.inference_count, 3);
    assert!(counted.last_inference > 1_600_000_000_000 && !counted.memory_usage.is_empty());
    assert_eq!(statistics("").unwrap().model_stats.len(), 1);
    refused(statistics("nope"), Code::NotFound, "nope");
    let metrics = Metrics::of(&server);
    let count = |model: &str, code: &str| {
        metrics.sum("ortus_requests_total", &[("model", model), ("protocol", "grpc"), ("code", code)])
    };
    assert_eq!((count("echo", "200"), count("echo", "400"), count("", "404")), (3, 1, 1));
}

#[test]
fn a_model_is_loaded_and_unloaded() {
    let server = Server::with(&["scalar", "versions"]);
    let grpc = Grpc::to(&server);
    let mut client = grpc.client();
    let index = |only_ready| {
        let request = pb::RepositoryIndexRequest { repository_name: String::new(), ready: only_ready };
        let models = grpc.run(grpc.client().repository_index(request)).unwrap().models;
        models.into_iter().map(|model| (model.name, model.state)).collect::<Vec<_>>()
    };
    assert!(index(true).contains(&("scalar".to_owned(), "READY".to_owned())));
    let unload = pb::RepositoryModelUnloadRequest { model_name: "scalar".into(), ..Default::default() };
    grpc.run(client.repository_model_unload(unload)).unwrap();
    assert!(index(false).contains(&("scalar".to_owned(), "UNAVAILABLE".to_owned())));
    assert!(!index(true).iter().any(|(name, _)| name == "scalar"));
    let load = |name: &str, parameters: Vec<(&str, pb::model_repository_parameter::ParameterChoice)>| {
        let parameters = parameters
            .into_iter()
            .map(|(name, choice)| (name.to_owned(), pb::ModelRepositoryParameter { parameter_choice: Some(choice) }));
        pb::RepositoryModelLoadRequest {
            model_name: name.into(),
            parameters: parameters.collect(),
            ..Default::default()
        }
    };
    grpc.run(client.repository_model_load(load("scalar", Vec::new()))).unwrap();
    assert!(index(true).iter().any(|(name, _)| name == "scalar"));
    use pb::model_repository_parameter::ParameterChoice::{BytesParam, StringParam};
    let content = std::fs::read(root().join("tests/fixtures/store/versions/1/model.onnx")).unwrap();
    let config = || ("config", StringParam(json!({"name": "versions", "backend": "onnxruntime"}).to_string()));
    let file = ("file:8/model.onnx", BytesParam(content.into()));
    grpc.run(client.repository_model_load(load("versions", vec![config(), file.clone()]))).unwrap();
    let ready = pb::ModelReadyRequest { name: "versions".into(), version: "8".into() };
    assert!(grpc.run(client.model_ready(ready)).unwrap().ready);
    for (request, code, words) in [
        (load("nope", Vec::new()), Code::NotFound, "nope"),
        (load("versions", vec![file]), Code::InvalidArgument, "config"),
        (load("versions", vec![("config", StringParam("{".into()))]), Code::InvalidArgument, ""),
        (load("versions", vec![("x", StringParam("{}".into()))]), Code::InvalidArgument, "parameters.x"),
    ] {
        refused(grpc.run(client.repository_model_load(request)), code, words);
    }
    let unload = pb::RepositoryModelUnloadRequest { model_name: "nope".into(), ..Default::default() };
    refused(grpc.run(client.repository_model_unload(unload)), Code::NotFound, "nope");
}

#[test]
fn calls_that_are_not_served_say_so() {
    let server = Server::with(&["echo"]);
    let grpc = Grpc::to(&server);
    let mut client = grpc.client();
    let register = pb::SystemSharedMemoryRegisterRequest::default();
    refused(
        grpc.run(client.system_shared_memory_register(register)),
        Code::Unimplemented,
        "send tensors in the message",
    );
    let status = pb::CudaSharedMemoryStatusRequest::default();
    refused(grpc.run(client.cuda_shared_memory_status(status)), Code::Unimplemented, "shared memory is not served");
    refused(grpc.run(client.trace_setting(pb::TraceSettingRequest::default())), Code::Unimplemented, "otlp_endpoint");
    refused(grpc.run(client.log_settings(pb::LogSettingsRequest::default())), Code::Unimplemented, "log_level");
    let posted = post(server.grpc, "/inference.GRPCInferenceService/Nothing", &[], message(&[]));
    assert_eq!((posted.grpc_status, posted.code.as_str()), (Some(12), "call_not_found"));
}

#[test]
fn health_says_whether_the_server_answers_and_its_watch_ends_with_it() {
    let mut server = Server::with(&["echo"]);
    let grpc = Grpc::to(&server);
    let health = |service: &str| HealthCheckRequest { service: service.into() };
    let mut client = HealthClient::new(grpc.channel.clone());
    for service in ["", "inference.GRPCInferenceService"] {
        assert_eq!(grpc.run(client.check(health(service))).unwrap().status(), ServingStatus::Serving);
    }
    refused(grpc.run(client.check(health("other"))), Code::NotFound, "no such service");
    let mut unknown = grpc.run(client.watch(health("other"))).unwrap();
    let mut watch = grpc.run(client.watch(health(""))).unwrap();
    grpc.runtime.block_on(async {
        assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    });
    server.terminate();
    grpc.runtime.block_on(async {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watch.message().await.unwrap().is_none() && unknown.message().await.unwrap().is_none());
    });
    assert!(server.wait_exit().success());
}

/// Asks reflection for the names of the services.
async fn reflected(channel: Channel) -> Result<Vec<String>, Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers: Streaming<ServerReflectionResponse> =
        client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await?.unwrap().message_response else {
        panic!("not a list of services");
    };
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[test]
fn reflection_lists_the_services() {
    let server = Server::with(&["echo"]);
    let grpc = Grpc::to(&server);
    let services = grpc.runtime.block_on(reflected(grpc.channel.clone())).unwrap();
    for service in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert!(services.contains(&service.to_owned()), "{services:?}");
    }
}

/// Sends these on a stream and gives what comes back, and how it ends.
async fn stream(
    mut client: Client,
    requests: Vec<ModelInferRequest>,
) -> (Vec<ModelStreamInferResponse>, Option<Status>) {
    let mut answers = client.model_stream_infer(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => got.push(answer),
            Err(status) => return (got, Some(status)),
        }
    }
    (got, None)
}

#[test]
fn a_stream_answers_in_order_and_goes_on_after_an_error() {
    let server = Server::with(&["echo", "slow"]);
    let grpc = Grpc::to(&server);
    let mut requests: Vec<ModelInferRequest> =
        (0..40).map(|index| ModelInferRequest { id: index.to_string(), ..echo(&[index as f32]) }).collect();
    requests[7].model_name = "nope".into();
    // What follows a slow one waits for it.
    requests[0] = ModelInferRequest { id: "0".into(), ..slow(100_000) };
    let (answers, end) = grpc.runtime.block_on(stream(grpc.client(), requests));
    assert!(end.is_none(), "{end:?}");
    let ids: Vec<&str> = answers.iter().map(|answer| &*answer.infer_response.as_ref().unwrap().id).collect();
    assert_eq!(ids, (0..40).map(|index| index.to_string()).collect::<Vec<_>>());
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer.error_message.contains("nope"), index == 7, "{answer:?}");
    }
    let raw = &answers[39].infer_response.as_ref().unwrap().raw_output_contents;
    assert_eq!(*raw, [floats(&[39.0])]);
    let metrics = Metrics::of(&server);
    let count = |code| metrics.sum("ortus_requests_total", &[("protocol", "grpc"), ("code", code)]);
    assert_eq!((count("200"), count("404")), (39, 1));
}

#[test]
fn a_stopped_server_answers_what_it_accepted_and_ends_its_streams() {
    let mut server = Server::with(&["slow"]);
    let grpc = Grpc::to(&server);
    let (mut alone, mut streaming) = (grpc.client(), grpc.client());
    let (send, receive) = mpsc::channel(4);
    let alone = grpc.runtime.spawn(async move { alone.model_infer(slow(200_000)).await });
    let streamed = grpc.runtime.spawn(async move {
        let mut answers = streaming.model_stream_infer(ReceiverStream::new(receive)).await.unwrap().into_inner();
        (answers.next().await.unwrap(), answers.next().await.unwrap())
    });
    grpc.runtime.block_on(send.send(slow(200_000))).unwrap();
    wait_until(|| server.get("/metrics").text().unwrap().contains("ortus_inflight{model=\"slow\"} 2"));
    server.terminate();
    let (answered, end) = grpc.runtime.block_on(streamed).unwrap();
    assert!(answered.unwrap().error_message.is_empty());
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    assert!(grpc.runtime.block_on(alone).unwrap().is_ok());
    assert!(server.wait_exit().success());
    drop(send);
}

#[test]
fn a_client_that_leaves_stops_its_run() {
    let server = Server::with(&["slow"]);
    let grpc = Grpc::to(&server);
    let mut client = grpc.client();
    let left = grpc.runtime.spawn(async move { client.model_infer(slow(ENDLESS)).await });
    let inflight = |count: u32| format!("ortus_inflight{{model=\"slow\"}} {count}");
    wait_until(|| server.get("/metrics").text().unwrap().contains(&inflight(1)));
    left.abort();
    wait_until(|| server.get("/metrics").text().unwrap().contains(&inflight(0)));
    let metrics = Metrics::of(&server);
    assert_eq!(metrics.sum("ortus_requests_total", &[("protocol", "grpc"), ("code", "499")]), 1);
    // One instance runs at a time: an answer means that the abandoned run has ended.
    assert!(grpc.infer(slow(1)).is_ok());
}

#[test]
fn a_full_queue_is_unavailable_and_says_when_to_come_back() {
    let server = Server::start(&["slow"], &[("ORTUS_BATCH__MAX_QUEUE", "1"), ("ORTUS_BATCH__INSTANCES", "1")]);
    let grpc = Grpc::to(&server);
    let statuses: Vec<Status> = grpc.runtime.block_on(async {
        let calls = (0..8).map(|_| {
            let mut client = grpc.client();
            let mut request = slow(ENDLESS);
            request.parameters.insert("timeout".into(), parameter(ParameterChoice::Int64Param(1_500_000)));
            async move { client.model_infer(request).await.unwrap_err() }
        });
        futures_util::future::join_all(calls).await
    });
    assert!(statuses.iter().any(|status| status.code() == Code::DeadlineExceeded), "{statuses:?}");
    let full = statuses.iter().find(|status| status.code() == Code::Unavailable).unwrap();
    assert_eq!(full.metadata().get("ortus-code").unwrap(), "queue_full");
    assert!(full.metadata().contains_key("retry-after"));
}

#[test]
fn messages_are_bounded_and_compressed_ones_are_read() {
    let server = Server::start(&["echo"], &[("ORTUS_SERVER__MAX_BODY_BYTES", "100000")]);
    let grpc = Grpc::to(&server);
    let large = refused(grpc.infer(echo(&vec![0.0; 30_000])), Code::ResourceExhausted, "max_body_bytes = 100000");
    assert_eq!(large.metadata().get("ortus-code").unwrap(), "body_too_large");
    let (answers, end) = grpc.runtime.block_on(stream(grpc.client(), vec![echo(&[1.0]), echo(&vec![0.0; 30_000])]));
    assert_eq!((answers.len(), end.unwrap().code()), (1, Code::ResourceExhausted));
    let mut zipped = grpc.client().send_compressed(CompressionEncoding::Gzip);
    assert_eq!(grpc.run(zipped.model_infer(echo(&[0.5; 1000]))).unwrap().raw_output_contents, [floats(&[0.5; 1000])]);
    // 400 KB that are small on the wire.
    refused(grpc.run(zipped.model_infer(echo(&vec![0.0; 100_000]))), Code::ResourceExhausted, "max_body_bytes");
    assert!(grpc.infer(echo(&[1.0])).is_ok());
    let metrics = Metrics::of(&server);
    assert!(metrics.sum("ortus_requests_total", &[("protocol", "grpc"), ("code", "413")]) >= 2);
}

/// Runs `ortus key create` on the store.
pub fn make_key(store: &Path, role: &str, more: &[&str]) -> String {
    let arguments = [&["key", "create", "--role", role][..], more].concat();
    let output = command().args(arguments).arg("--models").arg(store).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

fn audit(server: &Server) -> Vec<Value> {
    let text = std::fs::read_to_string(server.store.path().join(".ortus/audit.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// F08.
#[test]
fn a_call_that_spoils_runs_of_others_is_known_by_its_key() {
    let store = store_of(&["fails"]);
    let (bad, mate) = (make_key(store.path(), "infer", &[]), make_key(store.path(), "infer", &[]));
    let server = Server::on(store, &[("ORTUS_BATCH__TIMEOUT_MS", "20"), ("ORTUS_BATCH__INSTANCES", "1")]);
    let grpc = Grpc::to(&server);
    let index = |index: i64| asks_raw("fails", input("index", "INT64", &[1]), index.to_le_bytes().to_vec());
    let wave = async || {
        let call = async |key: &str, value| grpc.client().model_infer(with_key(index(value), key)).await.is_ok();
        let answers = tokio::join!(call(&bad, 9), call(&mate, 1), call(&mate, 2), call(&mate, 3));
        assert_eq!(answers, (false, true, true, true));
    };
    let set_apart = || Metrics::by(&server, &mate).sum("ortus_senders_set_apart_total", &[("model", "fails")]);
    let mut waves = 0;
    while set_apart() == 0 {
        grpc.runtime.block_on(wave());
        waves += 1;
        assert!(waves < 500);
    }
    (0..10).for_each(|_| grpc.runtime.block_on(wave()));
    assert_eq!(Metrics::by(&server, &mate).sum("ortus_batches_spoiled_total", &[("model", "fails")]), 3);
}

#[test]
fn every_call_but_health_asks_for_a_key_and_managing_for_an_admins() {
    let store = store_of(&["echo"]);
    let (infer, admin) = (make_key(store.path(), "infer", &[]), make_key(store.path(), "admin", &[]));
    let small = make_key(store.path(), "infer", &["--max-body-bytes", "50"]);
    let server = Server::on(store, &[]);
    let grpc = Grpc::to(&server);
    let mut client = grpc.client();

    assert_eq!(grpc.health(), ServingStatus::Serving);
    assert!(grpc.run(client.server_live(pb::ServerLiveRequest {})).unwrap().live);
    let unload = || pb::RepositoryModelUnloadRequest { model_name: "echo".into(), ..Default::default() };
    refused(grpc.infer(echo(&[1.0])), Code::Unauthenticated, "asks for a key");
    refused(grpc.run(client.server_metadata(pb::ServerMetadataRequest {})), Code::Unauthenticated, "asks for a key");
    refused(grpc.run(client.repository_model_unload(unload())), Code::Unauthenticated, "asks for a key");
    refused(grpc.runtime.block_on(reflected(grpc.channel.clone())), Code::Unauthenticated, "asks for a key");
    refused(
        grpc.runtime.block_on(client.model_stream_infer(tokio_stream::iter([echo(&[1.0])]))),
        Code::Unauthenticated,
        "",
    );
    for call in ["/inference.GRPCInferenceService/LogSettings", "/inference.GRPCInferenceService/Nothing", "/x"] {
        assert_eq!(post(server.grpc, call, &[], message(&[])).grpc_status, Some(16), "{call}");
    }
    refused(grpc.infer(with_key(echo(&[1.0]), "ortus_wrong")), Code::Unauthenticated, "the key is wrong");
    let twice = [("authorization", &*format!("Bearer {infer}")), ("x-api-key", &*infer)];
    let posted = post(server.grpc, "/inference.GRPCInferenceService/ModelInfer", &twice, message(&[]));
    assert_eq!((posted.grpc_status, posted.code.as_str()), (Some(3), "bad_key_header"));

    assert!(grpc.infer(with_key(echo(&[1.0]), &infer)).is_ok());
    let mut other = Request::new(echo(&[1.0]));
    other.metadata_mut().insert("x-api-key", infer.parse().unwrap());
    assert!(grpc.infer(other).is_ok());
    refused(grpc.infer(with_key(echo(&[0.0; 64]), &small)), Code::ResourceExhausted, "this key's max_body_bytes = 50");
    refused(grpc.run(client.repository_model_unload(with_key(unload(), &infer))), Code::PermissionDenied, "'admin'");
    let mut named = with_key(unload(), &admin);
    named.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    grpc.run(client.repository_model_unload(named)).unwrap();

    let entries = audit(&server);
    let action = "POST /inference.GRPCInferenceService/RepositoryModelUnload";
    assert_eq!(entries.len(), 2, "{entries:?}");
    let id = |key: &str| key.split('_').nth(1).unwrap().to_owned();
    assert_eq!((&entries[0]["key"], &entries[0]["status"]), (&json!(id(&infer)), &json!(403)));
    let done = &entries[1];
    assert_eq!((&done["key"], &done["action"], &done["model"]), (&json!(id(&admin)), &json!(action), &json!("echo")));
    assert_eq!(
        (&done["status"], &done["from"], &done["request_id"]),
        (&json!(200), &json!("127.0.0.1"), &json!("mine-1"))
    );
}

#[test]
fn guesses_and_the_rate_of_a_key_are_limited() {
    let store = store_of(&["echo"]);
    let slow = make_key(store.path(), "infer", &["--requests-per-minute", "2"]);
    let server = Server::on(store, &[]);
    let grpc = Grpc::to(&server);
    assert!(grpc.infer(with_key(echo(&[1.0]), &slow)).is_ok() && grpc.infer(with_key(echo(&[1.0]), &slow)).is_ok());
    let often = refused(grpc.infer(with_key(echo(&[1.0]), &slow)), Code::ResourceExhausted, "2 requests a minute");
    assert!(often.metadata().contains_key("retry-after"));
    let guesses: Vec<Code> =
        (0..40).map(|_| grpc.infer(with_key(echo(&[1.0]), "ortus_no")).unwrap_err().code()).collect();
    assert_eq!((guesses[0], guesses[39]), (Code::Unauthenticated, Code::ResourceExhausted), "{guesses:?}");
}

#[test]
fn a_call_has_the_clients_id_and_a_line_in_the_log() {
    let store = store_of(&["echo"]);
    let log = store.path().join("log");
    let mut command = command();
    command.stderr(std::fs::File::create(&log).unwrap());
    let environment = [("ORTUS_TELEMETRY__LOG_LEVEL", "info"), ("ORTUS_TELEMETRY__LOG_FORMAT", "json")];
    let server = Server::launch_by(command, store, &environment);
    server.wait_ready();
    let grpc = Grpc::to(&server);
    let mut request = Request::new(echo(&[1.0]));
    request.metadata_mut().insert("x-request-id", "mine-2".parse().unwrap());
    let answer = grpc.runtime.block_on(grpc.client().model_infer(request)).unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine-2");
    let (_, end) = grpc.runtime.block_on(stream(grpc.client(), vec![echo(&[1.0])]));
    assert!(end.is_none());
    let has = |words: &[&str]| {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    wait_until(|| has(&["GRPCInferenceService/ModelInfer Ok", "mine-2", "\"status\":200"]));
    wait_until(|| has(&["GRPCInferenceService/ModelStreamInfer Ok"]));
}

#[test]
fn a_taken_port_and_a_public_one_without_keys_are_refused_by_name() {
    let server = Server::with(&["echo"]);
    let store = store_of(&["echo"]);
    let start = |grpc: &str| {
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--grpc", grpc, "--models"]).arg(store.path());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let taken = start(&server.grpc.to_string());
    assert!(taken.contains("--grpc off") && taken.contains(&server.grpc.to_string()), "{taken}");
    let public = start("0.0.0.0:0");
    assert!(public.contains("server.grpc_listen = 0.0.0.0:0") && public.contains("--insecure"), "{public}");
    let bad = start("here");
    assert!(bad.contains("--grpc: server.grpc_listen: expected") && bad.contains("or off"), "{bad}");
}

/// A message with its prefix.
fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

struct Posted {
    http_status: u16,
    /// `None` where the call has begun to be answered.
    grpc_status: Option<u16>,
    code: String,
}

/// A call whose body is these bytes.
fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Posted {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let mut request = client.post(format!("http://{address}{path}")).header("te", "trailers").body(body);
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().unwrap();
    let text = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let grpc_status = text("grpc-status").map(|status| status.parse().unwrap());
    Posted { http_status: response.status().as_u16(), grpc_status, code: text("ortus-code").unwrap_or_default() }
}

#[test]
fn f78_messages_that_do_not_add_up_are_the_clients_error() {
    let server = Server::with(&["echo"]);
    let good = echo(&[1.0]).encode_to_vec();
    const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
    let check = |headers: &[(&str, &str)], body: Vec<u8>, expected: u16| {
        let posted = post(server.grpc, INFER, headers, body);
        assert_eq!((posted.http_status, posted.grpc_status), (200, Some(expected)), "{headers:?}");
    };
    const INVALID: u16 = 3;
    let with_length = |length: u32| [&[0][..], &length.to_be_bytes(), &good].concat();
    check(&[], Vec::new(), INVALID);
    check(&[], vec![0, 0, 0], INVALID);
    check(&[], with_length(good.len() as u32 + 1), INVALID);
    check(&[], with_length(good.len() as u32 - 1), INVALID);
    check(&[], with_length(u32::MAX), 8);
    // The compressed flag without a compression, an unknown flag, an unknown compression, and what is no gzip.
    check(&[], [&[1][..], &message(&good)[1..]].concat(), INVALID);
    check(&[], [&[9][..], &message(&good)[1..]].concat(), INVALID);
    check(&[("grpc-encoding", "snappy")], message(&good), 12);
    check(&[("grpc-encoding", "gzip")], [&[1][..], &message(&good)[1..]].concat(), INVALID);
    for garbage in
        [vec![0xff; 100], vec![0x0b; 50_000], [0x2a, 0].repeat(50_000), vec![0x0a, 4, 0xc3, 0x28, 0xa0, 0xa1]]
    {
        check(&[], message(&garbage), INVALID);
    }
    check(&[("grpc-timeout", "soon")], message(&good), INVALID);
    let plain = post(server.grpc, INFER, &[("content-type", "application/json")], b"{}".to_vec());
    assert_eq!(plain.http_status, 415);
    assert_eq!(post(server.grpc, INFER, &[], message(&good)).grpc_status, None);
    server.assert_well();
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &u32::try_from(payload.len()).unwrap().to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of an inference, each header written out.
fn head() -> Vec<u8> {
    head_of("/inference.GRPCInferenceService/ModelInfer")
}

fn head_of(path: &str) -> Vec<u8> {
    let rows = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let word = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
    rows.iter().flat_map(|(name, value)| [vec![0], word(name), word(value)].concat()).collect()
}

/// Sends these until the server has had enough or all are sent; whether it closed the connection.
fn flood(address: SocketAddr, pieces: impl Iterator<Item = Vec<u8>>) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let begun = stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).is_ok();
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        // What comes back is taken, or the server would wait for us.
        let closed = scope.spawn(move || {
            let mut chunk = [0; 16 << 10];
            loop {
                match reader.read(&mut chunk) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
                }
            }
        });
        let mut pieces = pieces;
        let sent = begun && pieces.all(|piece| stream.write_all(&piece).is_ok());
        let closed = closed.join().unwrap();
        !sent || closed
    })
}

/// F76, F77.
#[test]
fn floods_end_their_connection_and_nothing_else() {
    let server = Server::with(&["echo"]);
    let resets = (0..30_000u32).map(|index| {
        let stream = 2 * index + 1;
        [frame(HEADERS, 4, stream, &head()), frame(3, 0, stream, &8u32.to_be_bytes())].concat()
    });
    assert!(flood(server.grpc, resets), "rapid resets");
    // CONTINUATION without end, behind a head that has none.
    let continued = std::iter::once(frame(HEADERS, 0, 1, &head()))
        .chain((0..2000).map(|_| frame(9, 0, 1, &[&[0, 1, b'a', 127, 255, 0][..], &[b'b'; 254]].concat())));
    assert!(flood(server.grpc, continued), "endless head");
    // Data of nothing, settings and pings: answered or refused, never kept.
    let empty = std::iter::once(frame(HEADERS, 4, 1, &head())).chain((0..20_000).map(|_| frame(0, 0, 1, &[])));
    flood(server.grpc, empty);
    flood(server.grpc, (0..20_000).map(|_| frame(SETTINGS, 0, 0, &[])));
    flood(server.grpc, (0..20_000).map(|_| frame(6, 0, 0, &[0; 8])));
    assert!(Grpc::to(&server).infer(echo(&[1.0])).is_ok());
    assert!(server.peak_memory_mb() < 600, "{} MB", server.peak_memory_mb());
}

#[test]
fn f78_bytes_that_are_no_http2_close_their_connection() {
    let server = Server::start(&["echo"], &[("ORTUS_LIMITS__HEADER_READ_TIMEOUT_MS", "500")]);
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        &[0xff; 500],
        &[0; 100],
        &PREFACE[..10],
        &[PREFACE, &[0xff; 100]].concat(),
        // A frame of 16 MB that never comes.
        &[PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
    ] {
        raw(server.grpc, bytes);
        assert!(Grpc::to(&server).infer(echo(&[1.0])).is_ok());
    }
    server.assert_well();
}

/// F28.
#[test]
fn a_message_that_does_not_come_in_time_is_given_up() {
    let server = Server::start(&["echo"], &[("ORTUS_LIMITS__BODY_READ_TIMEOUT_MS", "300")]);
    let mut stream = TcpStream::connect(server.grpc).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let begun =
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 4, 1, &head()), &frame(0, 0, 1, &[0, 0])].concat();
    stream.write_all(&begun).unwrap();
    wait_until(|| Metrics::of(&server).sum("ortus_requests_total", &[("protocol", "grpc"), ("code", "408")]) == 1);
}

/// Room for one message of the largest size, so that one fits only where nothing is held.
const TIGHT: [(&str, &str); 2] =
    [("ORTUS_SERVER__MAX_BODY_BYTES", "4000"), ("ORTUS_LIMITS__MAX_INFLIGHT_BYTES", "4000")];

/// The request with a parameter that makes its message about so large.
fn padded(mut request: ModelInferRequest, bytes: usize) -> ModelInferRequest {
    let missing = bytes.saturating_sub(request.encoded_len() + 20);
    request.parameters.insert("pad".into(), parameter(ParameterChoice::StringParam("a".repeat(missing))));
    request
}

/// What bodies and messages hold together, whatever door they came to; to ask for it has no body.
fn held(server: &Server) -> u64 {
    let system = server.get_json("/v1/system");
    let limits = system["limits"].as_array().unwrap();
    limits.iter().find(|limit| limit["key"] == "limits.max_inflight_bytes").unwrap()["used"].as_u64().unwrap()
}

/// Whether all is given back, and a body of the largest size fits again.
fn is_all_given_back(server: &Server) -> bool {
    let body = format!("{:4000}", json!({"inputs": [[1.0]]}).to_string());
    held(server) == 0 && server.post_text("/v1/models/echo/predict", "application/json", body.into_bytes()).0 == 200
}

/// A call whose message of so many bytes has begun; it is held when this is back.
fn begun(server: &Server, bytes: u32) -> TcpStream {
    let mut stream = TcpStream::connect(server.grpc).unwrap();
    let prefix = [&[0][..], &bytes.to_be_bytes()].concat();
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 4, 1, &head()), &frame(0, 0, 1, &prefix)];
    let before = held(server);
    stream.write_all(&begun.concat()).unwrap();
    wait_until(|| held(server) == before + u64::from(bytes));
    stream
}

#[track_caller]
fn overloaded<T: std::fmt::Debug>(result: Result<T, Status>) {
    let status = refused(result, Code::Unavailable, "limits.max_inflight_bytes = 4000");
    assert_eq!(status.metadata().get("ortus-code").unwrap(), "overloaded");
    assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
}

#[test]
fn messages_and_bodies_hold_of_one_bound_whatever_door_they_come_to() {
    let server = Server::start(&["echo"], &TIGHT);
    let grpc = Grpc::to(&server);
    let other = begun(&server, 3000);
    assert!(!is_all_given_back(&server), "a body over REST is refused beside it");
    overloaded(grpc.infer(padded(echo(&[1.0]), 1500)));
    assert!(grpc.infer(echo(&[1.0])).is_ok(), "what fits is answered meanwhile");
    // Small on the wire.
    let mut zipped = grpc.client().send_compressed(CompressionEncoding::Gzip);
    overloaded(grpc.run(zipped.model_infer(padded(echo(&[1.0]), 1500))));
    let load = pb::RepositoryModelLoadRequest { model_name: "e".repeat(1500), ..Default::default() };
    overloaded(grpc.run(grpc.client().repository_model_load(load)));
    let (answers, end) =
        grpc.runtime.block_on(stream(grpc.client(), vec![echo(&[1.0]), padded(echo(&[1.0]), 1500), echo(&[1.0])]));
    assert_eq!(answers.len(), 1);
    overloaded(end.map_or(Ok(()), Err));
    // Probes are answered however full it is.
    let rest = begun(&server, 1000);
    assert_eq!(grpc.health(), ServingStatus::Serving);
    let ready = pb::ModelReadyRequest { name: "echo".into(), version: String::new() };
    assert!(grpc.run(grpc.client().model_ready(ready)).unwrap().ready);
    let metrics = Metrics::of(&server);
    assert!(metrics.sum("ortus_requests_total", &[("protocol", "grpc"), ("code", "503")]) >= 2);
    assert!(metrics.sum("ortus_rejected_total", &[("reason", "overloaded")]) >= 4);

    drop((other, rest));
    wait_until(|| is_all_given_back(&server));
    assert!(grpc.infer(padded(echo(&[1.0]), 3900)).is_ok());
    assert!(grpc.run(zipped.model_infer(padded(echo(&[1.0]), 3900))).is_ok());
    wait_until(|| is_all_given_back(&server));
    server.assert_well();
}

#[test]
fn a_stream_that_sends_faster_than_it_is_answered_is_slowed_down() {
    let server = Server::start(&["echo", "slow"], &TIGHT);
    let grpc = Grpc::to(&server);
    let mut requests: Vec<ModelInferRequest> = (0..40)
        .map(|index| padded(ModelInferRequest { id: index.to_string(), ..echo(&[index as f32]) }, 500 + index * 80))
        .collect();
    requests[3] = padded(ModelInferRequest { id: "3".into(), ..slow(100_000) }, 2000);
    let (answers, end) = grpc.runtime.block_on(stream(grpc.client(), requests));
    assert!(end.is_none(), "{end:?}");
    assert!(answers.iter().all(|answer| answer.error_message.is_empty()), "{answers:?}");
    let ids: Vec<&str> = answers.iter().map(|answer| &*answer.infer_response.as_ref().unwrap().id).collect();
    assert_eq!(ids, (0..40).map(|index| index.to_string()).collect::<Vec<_>>());
    wait_until(|| is_all_given_back(&server));
}

#[test]
fn what_messages_held_is_given_back_however_their_call_ends() {
    let server = Server::start(&["echo", "slow"], &TIGHT);
    let grpc = Grpc::to(&server);
    let is_running = || server.get("/metrics").text().unwrap().contains("ortus_inflight{model=\"slow\"} 1");
    // Left by its client, alone and on a stream.
    let mut client = grpc.client();
    let left = grpc.runtime.spawn(async move { client.model_infer(padded(slow(ENDLESS), 3000)).await });
    wait_until(is_running);
    assert!(held(&server) >= 2900);
    left.abort();
    wait_until(|| is_all_given_back(&server));
    let left = grpc.runtime.spawn(stream(grpc.client(), vec![padded(slow(ENDLESS), 3000)]));
    wait_until(is_running);
    assert!(held(&server) >= 2900);
    left.abort();
    wait_until(|| is_all_given_back(&server));
    // Past its deadline.
    let mut late = padded(slow(ENDLESS), 3000);
    late.parameters.insert("timeout".into(), parameter(ParameterChoice::Int64Param(100_000)));
    refused(grpc.infer(late), Code::DeadlineExceeded, "deadline");
    wait_until(|| is_all_given_back(&server));
    // Broken: cut off, no protobuf, no gzip, of a model that there is not, and with a second message.
    const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
    let good = padded(echo(&[1.0]), 1500).encode_to_vec();
    let cut_off = message(&good)[..700].to_vec();
    for body in [cut_off, message(&[0xff; 3000]), [&[1][..], &message(&good)[1..]].concat()] {
        assert_ne!(post(server.grpc, INFER, &[], body).grpc_status, None);
        wait_until(|| is_all_given_back(&server));
    }
    refused(grpc.infer(padded(asks("nope", Vec::new()), 3000)), Code::NotFound, "nope");
    wait_until(|| is_all_given_back(&server));
    post(server.grpc, INFER, &[], message(&good).repeat(2));
    wait_until(|| is_all_given_back(&server));
    server.assert_well();
}

/// F28.
#[test]
fn a_message_of_a_stream_that_does_not_come_in_time_is_given_up() {
    let server = Server::start(&["echo"], &[&TIGHT[..], &[("ORTUS_LIMITS__BODY_READ_TIMEOUT_MS", "1000")]].concat());
    let grpc = Grpc::to(&server);
    let (send, receive) = mpsc::channel::<ModelInferRequest>(1);
    let mut quiet = grpc.client();
    let open = grpc.runtime.spawn(async move { quiet.model_stream_infer(ReceiverStream::new(receive)).await });
    let mut late = TcpStream::connect(server.grpc).unwrap();
    let call = head_of("/inference.GRPCInferenceService/ModelStreamInfer");
    let piece = [0, 0, 0, 0x0b, 0xb8, 0x0a];
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 4, 1, &call), &frame(0, 0, 1, &piece)];
    late.write_all(&begun.concat()).unwrap();
    wait_until(|| held(&server) == 3000);
    wait_until(|| is_all_given_back(&server));
    // A stream on which nothing comes goes on.
    grpc.runtime.block_on(send.send(echo(&[1.0]))).unwrap();
    let mut answers = grpc.runtime.block_on(open).unwrap().unwrap().into_inner();
    assert!(grpc.runtime.block_on(answers.next()).unwrap().unwrap().error_message.is_empty());
}

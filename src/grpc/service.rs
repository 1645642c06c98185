//! The calls of the protocol, each in three steps: parse, call, encode. Calls that are not served do not come here: see `calls`.

use super::GrpcState;
use super::decode::{Read, read};
use super::encode::infer_response;
use super::error::GrpcError;
use super::pb::grpc_inference_service_server::GrpcInferenceService;
use super::pb::model_repository_parameter::ParameterChoice;
use super::pb::{self, ModelRepositoryParameter};
use super::stream::{Answers, answers};
use super::visit::Visit;
use crate::engine::{CacheOutcome, InferRequest, LoadOverrides, ModelName, RunOptions, Sender, Version};
use crate::protocol::{
    EXTENSIONS, ParameterError, RequestBounds, SERVER_NAME, SERVER_VERSION, Tally, check_overrides, index, is_ready,
    metadata, options_of, statistics,
};
use crate::tensor::DType;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use std::collections::HashMap;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

pub(super) struct InferenceService(pub(super) GrpcState);

#[async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(&self, _: Request<pb::ServerLiveRequest>) -> Result<Response<pb::ServerLiveResponse>, Status> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        Ok(Response::new(pb::ServerReadyResponse { ready: self.0.engine.is_ready() }))
    }

    /// A model that there is not is not ready, as Triton answers. Loads nothing.
    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        let pb::ModelReadyRequest { name, version } = request.into_inner();
        let ready = model_of(&name, &version)
            .is_ok_and(|(name, version)| self.0.engine.status(&name).is_ok_and(|status| is_ready(&status, version)));
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: SERVER_NAME.to_owned(),
            version: SERVER_VERSION.to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        let pb::ModelMetadataRequest { name, version } = request.into_inner();
        let (name, version) = model_of(&name, &version)?;
        let model = self.0.engine.model(&name, version).await.map_err(GrpcError::from)?;
        let status = self.0.engine.status(&name).map_err(GrpcError::from)?;
        Ok(Response::new(metadata(&model, &status).into()))
    }

    async fn model_infer(
        &self,
        request: Request<pb::ModelInferRequest>,
    ) -> Result<Response<pb::ModelInferResponse>, Status> {
        let visit = Visit::of(&request)?;
        let bounds = visit.bounds(visit.0.arrival, self.0.settings.request_timeout);
        let (response, cache) = infer(&self.0, &visit.0.tally, visit.0.sender, bounds, request.into_inner()).await?;
        let mut response = Response::new(response);
        if let Some(outcome) = cache {
            let word = match outcome {
                CacheOutcome::Hit => "hit",
                CacheOutcome::Miss => "miss",
            };
            response.metadata_mut().insert("x-ortus-cache", MetadataValue::from_static(word));
        }
        Ok(response)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<pb::ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let visit = Visit::of(&request)?;
        Ok(Response::new(answers(self.0.clone(), visit, request.into_inner())))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        let pb::ModelConfigRequest { name, version } = request.into_inner();
        let (name, version) = model_of(&name, &version)?;
        let model = self.0.engine.model(&name, version).await.map_err(GrpcError::from)?;
        let config = config_message(&model.config_json).map_err(GrpcError::internal)?;
        Ok(Response::new(pb::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let pb::ModelStatisticsRequest { name, version } = request.into_inner();
        let engine = &self.0.engine;
        let counted = if name.is_empty() {
            statistics(engine, None, None)
        } else {
            let (name, version) = model_of(&name, &version)?;
            statistics(engine, Some(&name), version)
        };
        let model_stats = counted.map_err(GrpcError::from)?.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let models = index(&self.0.engine, request.into_inner().ready).into_iter().map(Into::into).collect();
        Ok(Response::new(pb::RepositoryIndexResponse { models }))
    }

    /// Answers when the model is ready, or says why it is not.
    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let visit = Visit::of(&request)?;
        let pb::RepositoryModelLoadRequest { model_name, parameters, .. } = request.into_inner();
        let (name, _) = model_of(&model_name, "")?;
        visit.is_about(&name);
        let overrides = overrides_of(parameters).map_err(GrpcError::from)?;
        self.0.engine.load(&name, overrides).await.map_err(GrpcError::from)?;
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    /// Answers when the memory is free.
    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let visit = Visit::of(&request)?;
        let pb::RepositoryModelUnloadRequest { model_name, parameters, .. } = request.into_inner();
        let (name, _) = model_of(&model_name, "")?;
        visit.is_about(&name);
        // No model depends on another here, so both values mean the same.
        if let Some(flag) = parameters.get("unload_dependents")
            && !matches!(flag.parameter_choice, Some(ParameterChoice::BoolParam(_)))
        {
            let error = ParameterError { name: "unload_dependents".to_owned(), problem: "must be true or false" };
            return Err(GrpcError::from(error).into());
        }
        self.0.engine.unload(&name).await.map_err(GrpcError::from)?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }
}

/// One request for a model from its message to its answer, whether it came alone or on a stream.
///
/// # Cancel safety
/// Dropping the future cancels the request; a run in progress is stopped.
pub(super) async fn infer(
    state: &GrpcState,
    tally: &Tally,
    sender: Option<Sender>,
    bounds: RequestBounds,
    request: pb::ModelInferRequest,
) -> Result<(pb::ModelInferResponse, Option<CacheOutcome>), GrpcError> {
    let (name, version) = model_of(&request.model_name, &request.model_version)?;
    let model = tally.model(&state.engine, &name, version).await?;
    let (parsed_for, limits) = (model.clone(), state.settings.values);
    // Raw numbers are only sliced; what else there is is read one by one.
    let only_numbers = model.inputs.iter().all(|spec| spec.ty.dtype().is_some_and(|dtype| dtype != DType::String));
    let is_sliced = only_numbers && !request.raw_input_contents.is_empty();
    let size = if is_sliced { 0 } else { request.encoded_len() };
    let parsed = state.tasks.compute(size, move || read(request, &parsed_for.inputs, &limits)).await;
    let Read { id, parameters, inputs, outputs: wanted } =
        parsed.map_err(|error| GrpcError::internal(format!("reading a message: {error}")))??;
    let options = options_of(&parameters, bounds, &model.settings.batch.waiting)?;
    let options = RunOptions { sender, ..options };
    let outputs = wanted.iter().map(|wanted| wanted.name.clone()).collect();

    let response = state.engine.infer(&model, InferRequest { inputs, outputs, options }).await?;

    Ok((infer_response(&model, id, &wanted, &response.outputs)?, response.cache))
}

/// The model and version that a message names; no version is the default one.
fn model_of(name: &str, version: &str) -> Result<(ModelName, Option<Version>), GrpcError> {
    let name = ModelName::parse(name).map_err(|_| {
        let text =
            "there is no such model: a name is a letter or digit, then up to 99 letters, digits, '.', '_' or '-'";
        GrpcError::new(Code::NotFound, 404, "model_not_found", text)
    })?;
    if version.is_empty() {
        return Ok((name, None));
    }
    let version = Version::parse(version).ok_or_else(|| {
        let text = "there is no such version: a version is a number such as 1";
        GrpcError::new(Code::NotFound, 404, "version_not_found", text)
    })?;
    Ok((name, Some(version)))
}

/// A configuration as the protocol's message; `json` is the same as protobuf writes it.
fn config_message(json: &serde_json::Value) -> Result<pb::ModelConfig, String> {
    let pool = DescriptorPool::decode(pb::DESCRIPTORS).map_err(|error| error.to_string())?;
    let Some(descriptor) = pool.get_message_by_name("inference.ModelConfig") else {
        return Err("the schema has no ModelConfig".to_owned());
    };
    let message = DynamicMessage::deserialize(descriptor, json).map_err(|error| error.to_string())?;
    message.transcode_to().map_err(|error| error.to_string())
}

/// `config` and `file:<version>/<name>` of a load.
fn overrides_of(parameters: HashMap<String, ModelRepositoryParameter>) -> Result<LoadOverrides, ParameterError> {
    let mut overrides = LoadOverrides { config_json: None, files: Vec::new() };
    for (name, parameter) in parameters {
        let refuse = |problem| Err(ParameterError { name: crate::codec::clip(&name), problem });
        match (name.as_str(), name.strip_prefix("file:"), parameter.parameter_choice) {
            ("config", _, Some(ParameterChoice::StringParam(config))) => overrides.config_json = Some(config),
            ("config", _, _) => return refuse("must be the model configuration as JSON text in string_param"),
            (_, Some(path), Some(ParameterChoice::BytesParam(content))) => {
                overrides.files.push((path.to_owned(), content));
            }
            (_, Some(_), _) => return refuse("must be the file's content in bytes_param"),
            (_, None, _) => return refuse("a load takes config and file:<version>/<name>"),
        }
    }
    check_overrides(&overrides)?;
    // A map has no order of its own.
    overrides.files.sort();
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_load_takes_a_configuration_and_files() {
        let of = |rows: Vec<(&str, ParameterChoice)>| {
            let parameter = |choice| ModelRepositoryParameter { parameter_choice: Some(choice) };
            overrides_of(rows.into_iter().map(|(name, choice)| (name.to_owned(), parameter(choice))).collect())
        };
        let config = || ("config", ParameterChoice::StringParam("{}".to_owned()));
        let file = |name| (name, ParameterChoice::BytesParam(Bytes::from_static(&[0, 1])));
        let both = of(vec![config(), file("file:2/model.onnx"), file("file:1/model.onnx")]).unwrap();
        assert_eq!(both.config_json.as_deref(), Some("{}"));
        assert_eq!(both.files[0].0, "1/model.onnx");
        assert!(of(vec![]).unwrap().files.is_empty());
        for (rows, words) in [
            (vec![file("file:1/a")], "files need config"),
            (vec![("config", ParameterChoice::BoolParam(true))], "must be the model configuration"),
            (vec![config(), ("file:1/a", ParameterChoice::StringParam("AA==".to_owned()))], "bytes_param"),
            (vec![("other", ParameterChoice::Int64Param(1))], "parameters.other: a load takes"),
        ] {
            let error = of(rows).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_configuration_is_the_protocols_message() {
        let json = serde_json::json!({"name": "m", "max_batch_size": 8, "input": [{"name": "x", "data_type": "TYPE_FP32",
            "dims": ["3"]}]});
        let config = config_message(&json).unwrap();
        assert_eq!((config.name.as_str(), config.max_batch_size, &*config.input[0].dims), ("m", 8, &[3][..]));
        assert!(config_message(&serde_json::json!({"nothing": 1})).is_err());
    }
}

//! What the engine gave as messages.

use super::decode::Wanted;
use super::error::GrpcError;
use super::pb;
use super::pb::model_infer_response::InferOutputTensor;
use super::pb::model_metadata_response;
use super::pb::repository_index_response::ModelIndex;
use crate::codec::CodecError;
use crate::codec::wire::{Answered, write_binary};
use crate::engine::LoadedModel;
use crate::protocol::{
    BatchStatistics, IndexEntry, InferenceStatistics, MemoryUsage, ModelMetadata, ModelStatistics, TensorMetadata,
    Times,
};
use crate::tensor::Value;
use prost::Message;
use tonic::Code;

/// What protobuf's own readers take.
const MAX_ANSWER_BYTES: usize = i32::MAX as usize;

/// The tensors of an answer, all of them raw, as Triton gives them.
pub(super) fn infer_response(
    model: &LoadedModel,
    id: String,
    wanted: &[Wanted],
    outputs: &[(String, Value)],
) -> Result<pb::ModelInferResponse, GrpcError> {
    let mut response = pb::ModelInferResponse {
        model_name: model.name.to_string(),
        model_version: model.version.to_string(),
        id,
        ..Default::default()
    };
    for (name, value) in outputs {
        let answered = Answered {
            name,
            classes: wanted.iter().find(|wanted| wanted.name == *name).and_then(|wanted| wanted.classes),
            labels: model.output_labels.get(name).map(|labels| &**labels).unwrap_or_default(),
            batched: model.max_batch_size > 0,
        };
        let tensor = answered.tensor(value)?;
        let too_large = |_| CodecError::TooLarge(format!("outputs.{name}: the shape is too large"));
        let shape = tensor.shape().iter().map(|&size| i64::try_from(size)).collect::<Result<_, _>>();
        response.outputs.push(InferOutputTensor {
            name: name.clone(),
            datatype: tensor.dtype().name().to_owned(),
            shape: shape.map_err(too_large)?,
            ..Default::default()
        });
        response.raw_output_contents.push(write_binary(name, &tensor)?);
    }
    let bytes = response.encoded_len();
    if bytes > MAX_ANSWER_BYTES {
        let text = format!(
            "the answer has {bytes} bytes; a message may have {MAX_ANSWER_BYTES}: ask for fewer outputs or rows, or over REST"
        );
        return Err(GrpcError::new(Code::ResourceExhausted, 413, "answer_too_large", text));
    }
    Ok(response)
}

impl From<ModelMetadata> for pb::ModelMetadataResponse {
    fn from(metadata: ModelMetadata) -> pb::ModelMetadataResponse {
        let all = |tensors: Vec<TensorMetadata>| tensors.into_iter().map(Into::into).collect();
        pb::ModelMetadataResponse {
            name: metadata.name,
            versions: metadata.versions,
            platform: metadata.platform.to_owned(),
            inputs: all(metadata.inputs),
            outputs: all(metadata.outputs),
        }
    }
}

impl From<TensorMetadata> for model_metadata_response::TensorMetadata {
    fn from(tensor: TensorMetadata) -> model_metadata_response::TensorMetadata {
        let TensorMetadata { name, datatype, shape } = tensor;
        model_metadata_response::TensorMetadata { name, datatype: datatype.to_owned(), shape }
    }
}

impl From<IndexEntry> for ModelIndex {
    fn from(entry: IndexEntry) -> ModelIndex {
        let IndexEntry { name, version, state, reason } = entry;
        ModelIndex { name, version: version.unwrap_or_default(), state: state.to_owned(), reason }
    }
}

impl From<ModelStatistics> for pb::ModelStatistics {
    fn from(statistics: ModelStatistics) -> pb::ModelStatistics {
        pb::ModelStatistics {
            name: statistics.name,
            version: statistics.version,
            last_inference: statistics.last_inference,
            inference_count: statistics.inference_count,
            execution_count: statistics.execution_count,
            inference_stats: Some(statistics.inference_stats.into()),
            batch_stats: statistics.batch_stats.into_iter().map(Into::into).collect(),
            memory_usage: statistics.memory_usage.into_iter().map(Into::into).collect(),
            // Of streams of answers to one request, which no model here gives.
            response_stats: Default::default(),
        }
    }
}

impl From<InferenceStatistics> for pb::InferStatistics {
    fn from(statistics: InferenceStatistics) -> pb::InferStatistics {
        pb::InferStatistics {
            success: Some(statistics.success.into()),
            fail: Some(statistics.fail.into()),
            queue: Some(statistics.queue.into()),
            compute_input: Some(statistics.compute_input.into()),
            compute_infer: Some(statistics.compute_infer.into()),
            compute_output: Some(statistics.compute_output.into()),
            cache_hit: Some(statistics.cache_hit.into()),
            cache_miss: Some(statistics.cache_miss.into()),
        }
    }
}

impl From<BatchStatistics> for pb::InferBatchStatistics {
    fn from(statistics: BatchStatistics) -> pb::InferBatchStatistics {
        pb::InferBatchStatistics {
            batch_size: statistics.batch_size,
            compute_input: Some(statistics.compute_input.into()),
            compute_infer: Some(statistics.compute_infer.into()),
            compute_output: Some(statistics.compute_output.into()),
        }
    }
}

impl From<MemoryUsage> for pb::MemoryUsage {
    fn from(usage: MemoryUsage) -> pb::MemoryUsage {
        pb::MemoryUsage { r#type: usage.kind.to_owned(), id: usage.id.into(), byte_size: usage.byte_size }
    }
}

impl From<Times> for pb::StatisticDuration {
    fn from(Times { count, ns }: Times) -> pb::StatisticDuration {
        pb::StatisticDuration { count, ns }
    }
}

//! `image-feature-extraction`: pictures to embeddings.
//!
//! As transformers' pipeline: without a parameter the graph's hidden states, a vector for each patch, or a map for each
//! channel of a convolutional model (or the picture's own vector where the graph is made for it, as CLIP's `image_embeds`);
//! with `pool` one vector for the picture, without the axes of length 1 that the reference has around it.

use super::Pictures;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::outputs::{floats_of_rank, names, tensor_named, unexpected};
use crate::pipelines::{
    FeatureMaps, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, TokenEmbeddings,
    only_run,
};
use crate::tensor::Spec;
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "image-feature-extraction";

/// One model's embeddings of pictures.
pub struct ImageFeatureExtraction {
    pictures: Pictures,
    vectors: Vectors,
}

/// The outputs that are read, by name.
#[derive(Debug, Clone, PartialEq)]
enum Vectors {
    /// `[1, width]`, or with further axes of 1: one vector for the picture.
    Pooled(String),
    /// `[1, patches, width]` or `[1, channels, height, width]`.
    Patches(String),
    Both {
        patches: String,
        pooled: String,
    },
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (pictures, prepared) = Pictures::of(sources)?;
    let vectors = Vectors::find(sources.outputs).ok_or_else(|| {
        PipelineError::Setup(format!(
            "embeddings need a float output last_hidden_state [1, patches, width] or pooler_output [1, width]; the graph's \
             outputs are {}: serve it with task = \"raw\"",
            names(sources.outputs)
        ))
    })?;
    let what = match &vectors {
        Vectors::Pooled(name) => format!("a picture's embedding is {name}"),
        Vectors::Patches(name) => format!("each patch's embedding is a row of {name}"),
        Vectors::Both { patches, pooled } => {
            format!("each patch's embedding is a row of {patches}, with pool the picture's is {pooled}")
        }
    };
    let how = format!("{what}; {prepared}");
    Ok(Made { pipeline: Arc::new(ImageFeatureExtraction { pictures, vectors }), how })
}

impl Vectors {
    fn find(outputs: &[Spec]) -> Option<Vectors> {
        let name = |spec: &Spec| spec.name.clone();
        // Convolutional models pool to [1, width, 1, 1].
        let pooled = |wanted: &str| floats_of_rank(outputs, &[2, 4]).find(|spec| spec.name == wanted).map(name);
        if let Some(embedding) = pooled("image_embeds") {
            return Some(Vectors::Pooled(embedding));
        }
        let patches = floats_of_rank(outputs, &[3, 4]).find(|spec| spec.name == "last_hidden_state").map(name);
        match (patches, pooled("pooler_output")) {
            (Some(patches), Some(pooled)) => return Some(Vectors::Both { patches, pooled }),
            (Some(patches), None) => return Some(Vectors::Patches(patches)),
            (None, Some(pooled)) => return Some(Vectors::Pooled(pooled)),
            (None, None) => {}
        }
        // Under other names only what cannot be mistaken.
        let declared = |rank: &'static [usize]| floats_of_rank(outputs, rank).filter(|spec| spec.ty.shape().is_some());
        match (outputs, declared(&[2]).next(), declared(&[3]).next()) {
            ([_], Some(spec), _) => Some(Vectors::Pooled(name(spec))),
            ([_], None, Some(spec)) => Some(Vectors::Patches(name(spec))),
            _ => None,
        }
    }
}

impl ImageFeatureExtraction {
    /// Whether one vector is asked for.
    fn read_parameters(&self, parameters: &Parameters) -> Result<bool, PipelineError> {
        let mut pool = false;
        for (name, value) in parameters {
            let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
            match (name.as_str(), value) {
                ("pool", Value::Null) => {}
                ("pool", Value::Bool(true)) if matches!(self.vectors, Vectors::Patches(_)) => {
                    return wrong("the graph has no output pooler_output; leave pool out, or false".to_owned());
                }
                ("pool", Value::Bool(given)) => pool = *given,
                ("pool", value) => return wrong(format!("expected true or false, got {value}")),
                _ => return wrong(format!("{TASK} has no such parameter; it takes pool")),
            }
        }
        Ok(pool)
    }
}

impl Pipeline for ImageFeatureExtraction {
    fn task(&self) -> &'static str {
        TASK
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        self.pictures.prepare(item)
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let pool = self.read_parameters(parameters)?;
        let outputs = only_run(outputs)?;
        match &self.vectors {
            Vectors::Both { pooled, .. } if pool => embedding(outputs, pooled),
            Vectors::Pooled(pooled) => embedding(outputs, pooled),
            Vectors::Both { patches, .. } | Vectors::Patches(patches) => {
                let tensor = tensor_named(outputs, patches)?;
                let wrong = || unexpected(patches, "[1, patches, width]", tensor);
                let values = || tensor.to_f32().ok_or_else(wrong);
                match *tensor.shape() {
                    _ if tensor.is_empty() => Err(wrong()),
                    [1, _, width] => Ok(Prediction::TokenEmbeddings(TokenEmbeddings { width, values: values()? })),
                    [1, _, height, width] => {
                        Ok(Prediction::FeatureMaps(FeatureMaps { height, width, values: values()? }))
                    }
                    _ => Err(wrong()),
                }
            }
        }
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        self.read_parameters(parameters).map(|_| ())
    }
}

fn embedding(outputs: &Outputs, name: &str) -> Result<Prediction, PipelineError> {
    let tensor = tensor_named(outputs, name)?;
    let wrong = || unexpected(name, "[1, width]", tensor);
    match *tensor.shape() {
        [1, width] | [1, width, 1, 1] if width > 0 => {}
        _ => return Err(wrong()),
    }
    Ok(Prediction::Embedding(tensor.to_f32().ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::super::input_spec as spec;
    use super::*;
    use crate::tensor::{DType, Tensor};
    use serde_json::json;

    fn hidden() -> Spec {
        spec("last_hidden_state", DType::Fp32, &[-1, -1, 2])
    }

    fn pooler() -> Spec {
        spec("pooler_output", DType::Fp32, &[-1, 2])
    }

    fn features(outputs: &[Spec]) -> ImageFeatureExtraction {
        ImageFeatureExtraction { pictures: Pictures::exact(4, 4), vectors: Vectors::find(outputs).unwrap() }
    }

    fn outputs(tensors: &[(&str, &[usize])]) -> Outputs {
        let tensor = |(name, shape): &(&str, &[usize])| {
            let values = (0..shape.iter().product::<usize>()).map(|value| value as f32).collect();
            ((*name).to_owned(), Tensor::from_vec(DType::Fp32, shape.to_vec(), values).unwrap().into())
        };
        tensors.iter().map(tensor).collect()
    }

    #[track_caller]
    fn check(declared: &[Spec], given: &[(&str, &[usize])], parameters: Value, expected: &str) {
        let got = features(declared).postprocess(&[outputs(given)], &Notes::default(), parameters.as_object().unwrap());
        let got = got.map_or_else(|error| error.to_string(), |got| serde_json::to_string(&got).unwrap());
        assert!(got.contains(expected), "{got}");
    }

    #[test]
    fn patches_have_a_vector_each_and_with_pool_the_picture_has_one() {
        let both = [("last_hidden_state", [1, 2, 2].as_slice()), ("pooler_output", &[1, 2])];
        check(&[hidden(), pooler()], &both, json!({}), "[[[0.0,1.0],[2.0,3.0]]]");
        check(&[hidden(), pooler()], &both, json!({"pool": true}), "[0.0,1.0]");
        check(&[hidden(), pooler()], &both, json!({"pool": false}), "[[[0.0,1.0],[2.0,3.0]]]");
        check(&[hidden()], &both, json!({}), "[[[0.0,1.0],[2.0,3.0]]]");
        check(&[hidden()], &both, json!({"pool": true}), "parameters.pool: the graph has no output pooler_output");
    }

    #[test]
    fn a_graph_made_for_the_pictures_vector_gives_it() {
        let clip = [hidden(), spec("image_embeds", DType::Fp32, &[-1, 2])];
        check(&clip, &[("image_embeds", &[1, 2])], json!({}), "[0.0,1.0]");
        let convolutional = [
            spec("last_hidden_state", DType::Fp32, &[-1, 2, 7, 7]),
            spec("pooler_output", DType::Fp32, &[-1, 2, 1, 1]),
        ];
        check(&convolutional, &[("pooler_output", &[1, 2, 1, 1])], json!({"pool": true}), "[0.0,1.0]");
        check(&convolutional, &[("last_hidden_state", &[1, 2, 1, 2])], json!({}), "[[[[0.0,1.0]],[[2.0,3.0]]]]");
        check(&[spec("y", DType::Fp32, &[-1, 2])], &[("y", &[1, 2])], json!({}), "[0.0,1.0]");
        assert_eq!(Vectors::find(&[spec("a", DType::Fp32, &[-1, 2]), spec("b", DType::Fp32, &[-1, 2])]), None);
        assert_eq!(Vectors::find(&[spec("a", DType::Int64, &[-1, 2])]), None);
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        for shape in [[2, 2, 2].as_slice(), &[1, 0, 2], &[1, 2]] {
            check(
                &[hidden()],
                &[("last_hidden_state", shape)],
                json!({}),
                "expected a float tensor of shape [1, patches",
            );
        }
        check(&[pooler()], &[("pooler_output", &[2, 2])], json!({}), "expected a float tensor of shape [1, width]");
        check(&[pooler()], &[], json!({}), "the graph gave no tensor named \"pooler_output\"");
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (given, expected) in [
            (json!({"pool": 1}), "parameters.pool: expected true or false, got 1"),
            (
                json!({"normalize": true}),
                "parameters.normalize: image-feature-extraction has no such parameter; it takes",
            ),
        ] {
            let error = features(&[pooler()]).check_parameters(given.as_object().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

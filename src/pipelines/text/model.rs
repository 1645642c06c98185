//! What the tasks on texts have in common: the tokenizer and the graph's inputs, and outputs with a row for each token.

use super::TOKENIZER;
use super::input::{TextInputs, padding_of};
use super::tokenizer::TextTokenizer;
use crate::pipelines::detect::Sources;
use crate::pipelines::outputs::{tensor_named, unexpected};
use crate::pipelines::{Outputs, Padding, PipelineError};
use crate::tensor::{Dim, Spec, Tensor};

/// A graph that takes texts, and its tokenizer.
pub(crate) struct TextModel {
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) inputs: TextInputs,
    pub(crate) padding: Option<Padding>,
}

impl TextModel {
    /// # Errors
    /// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
    pub(crate) fn find(sources: &Sources<'_>) -> Result<TextModel, PipelineError> {
        let inputs = TextInputs::find(sources.inputs).map_err(PipelineError::Setup)?;
        let max_text_bytes = usize::try_from(sources.limits.max_text_bytes).unwrap_or(usize::MAX);
        let tokenizer = TextTokenizer::from_folder(sources.folder, sources.config()?, None, max_text_bytes)?;
        let Some(tokenizer) = tokenizer else {
            return Err(PipelineError::Setup(format!("there is no {TOKENIZER} beside the graph")));
        };
        Ok(TextModel { tokenizer, inputs, padding: padding_of(sources.folder, sources.inputs) })
    }

    /// How long texts may be, for a sentence.
    pub(crate) fn describe(&self) -> String {
        format!("texts have at most {} tokens ({})", self.tokenizer.max_tokens, self.tokenizer.limit_source)
    }
}

/// The float output `[batch, tokens, width]` among `outputs`, and its width where it is declared: the one named `logits`,
/// else the first.
///
/// # Errors
/// Says in one sentence why there is none.
pub(crate) fn find_token_logits(outputs: &[Spec]) -> Result<(String, Option<usize>), String> {
    let fits = |spec: &&Spec| is_float(spec) && spec.ty.shape().is_none_or(|dims| dims.len() == 3);
    let named = outputs.iter().filter(|spec| spec.name == "logits").find(fits);
    let Some(spec) = named.or_else(|| outputs.iter().find(fits)) else {
        return Err("the graph has no float output [batch, tokens, classes] that could hold the tokens' scores".into());
    };
    match spec.ty.shape().and_then(<[Dim]>::last) {
        Some(Dim::Fixed(0)) => Err(format!("output {:?} is {}: it has no classes", spec.name, spec.ty)),
        Some(Dim::Fixed(width)) => Ok((spec.name.clone(), Some(*width))),
        Some(Dim::Dynamic(_)) | None => Ok((spec.name.clone(), None)),
    }
}

pub(crate) fn is_float(spec: &Spec) -> bool {
    matches!(spec.ty.dtype(), Some(dtype) if dtype.is_float() && dtype.bits() >= 16)
}

/// The output `[1, tokens, width]` as `[tokens, width]`: a row for each of as many tokens as there were, none of them empty.
///
/// # Errors
/// Where the output is missing or has another type or shape.
pub(crate) fn token_rows(outputs: &Outputs, name: &str, tokens: usize) -> Result<Tensor, PipelineError> {
    let tensor = tensor_named(outputs, name)?;
    let rows = match tensor.shape() {
        &[1, rows, width] if rows == tokens && width > 0 && tensor.dtype().is_float() => {
            tensor.reshape(vec![rows, width]).ok()
        }
        _ => None,
    };
    rows.ok_or_else(|| unexpected(name, &format!("[1, {tokens}, classes]"), tensor))
}

/// One row of [`token_rows`].
///
/// # Errors
/// None that foreign data could bring about.
pub(crate) fn row(rows: &Tensor, place: usize) -> Result<Vec<f32>, PipelineError> {
    let row = rows.rows(place, 1).and_then(|row| row.to_f32());
    row.ok_or_else(|| PipelineError::Outputs(format!("the graph gave no row for token {place}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::pipelines::{Detected, Parameters, Pipeline, PipelineLimits, PipelineManifest, detect};
    use crate::tensor::{DType, Value};
    use serde_json::Value as Json;
    use std::sync::Arc;

    /// The pipeline of `task` in a folder with a tokenizer of words and `files`.
    pub(crate) fn made(
        task: &str,
        config: Json,
        files: &[(&str, Json)],
        outputs: &[Spec],
    ) -> Result<Arc<dyn Pipeline>, String> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Json| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        write(TOKENIZER, &super::super::a_tokenizer());
        write("config.json", &config);
        files.iter().for_each(|(name, value)| write(name, value));
        let inputs = ["input_ids", "attention_mask", "token_type_ids"].map(|name| spec(name, DType::Int64, &[-1, -1]));
        let manifest: PipelineManifest = toml::from_str(&format!("task = {task:?}")).unwrap();
        let limits = PipelineLimits { max_text_bytes: 400, ..PipelineLimits::default() };
        let made = detect(folder.path(), &manifest, &inputs, outputs, &limits);
        let Detected { pipeline, task: found, .. } = made.map_err(|error| error.to_string())?;
        assert_eq!(found, task);
        Ok(pipeline.unwrap())
    }

    pub(crate) fn parameters(value: Json) -> Parameters {
        value.as_object().unwrap().clone()
    }

    /// The numbers of an input of one run.
    pub(crate) fn numbers(run: &[(String, Tensor)], name: &str) -> Vec<i64> {
        let (_, tensor) = run.iter().find(|(given, _)| given == name).unwrap();
        tensor.elements::<i64>().unwrap().into_owned()
    }

    pub(crate) fn output(name: &str, shape: &[usize], values: &[f32]) -> (String, Value) {
        (name.to_owned(), Tensor::from_vec(DType::Fp32, shape.to_vec(), values.to_vec()).unwrap().into())
    }

    #[track_caller]
    pub(crate) fn wrong_parameter(pipeline: &dyn Pipeline, given: Json, expected: &str) {
        let error = pipeline.check_parameters(&parameters(given)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn the_scores_of_tokens_are_found_by_name_or_rank() {
        let float = |name: &str, dims: &[i64]| spec(name, DType::Fp32, dims);
        let (hidden, logits) = (float("hidden", &[-1, -1, 8]), float("logits", &[-1, -1, 3]));
        assert_eq!(find_token_logits(&[hidden.clone(), logits]), Ok(("logits".into(), Some(3))));
        assert_eq!(find_token_logits(&[float("logits", &[-1, 3]), hidden]), Ok(("hidden".into(), Some(8))));
        assert_eq!(find_token_logits(&[float("x", &[-1, -1, -1])]), Ok(("x".into(), None)));
        assert!(find_token_logits(&[float("x", &[-1, -1, 0])]).unwrap_err().contains("no classes"));
        assert!(find_token_logits(&[spec("x", DType::Int64, &[-1, -1, 2])]).unwrap_err().contains("no float output"));
    }

    #[test]
    fn outputs_without_a_row_for_each_token_are_an_error() {
        for shape in [vec![1, 2, 2], vec![1, 3, 0], vec![3, 2], vec![2, 3, 2]] {
            let outputs = vec![output("x", &shape, &vec![0.0; shape.iter().product()])];
            let error = token_rows(&outputs, "x", 3).unwrap_err().to_string();
            assert!(error.contains("expected a float tensor of shape [1, 3, classes]"), "{error}");
        }
        let rows = token_rows(&vec![output("x", &[1, 2, 2], &[1.0, 2.0, 3.0, 4.0])], "x", 2).unwrap();
        assert_eq!((row(&rows, 1).unwrap(), row(&rows, 2).is_err()), (vec![3.0, 4.0], true));
    }
}

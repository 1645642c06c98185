//! What a graph of sounds takes, and an item to it.

use super::decode::decode;
use super::features::{Extractor, Features, PREPROCESSOR, normalize};
use super::resample::resample;
use crate::pipelines::detect::Sources;
use crate::pipelines::files::read_json_object;
use crate::pipelines::{Inputs, Item, PipelineError};
use crate::tensor::{DType, Dim, Spec, Tensor};
use serde_json::Value;

/// The graph's inputs for one sound.
pub(super) struct AudioInput {
    /// `f32` or `f16`: `[1, samples]`, or `[1, rows, columns]` of a spectrogram.
    name: String,
    dtype: DType,
    /// Samples that the graph is made for, where it is for one length only.
    length: Option<usize>,
    /// `i64` or `i32[1, samples]`: ones.
    mask: Option<(String, DType)>,
    extractor: Extractor,
    convolutions: Convolutions,
    max_seconds: u64,
}

/// The layers that make samples into frames, from `config.json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Convolutions {
    /// Kernel and stride of each; none where the file does not tell.
    layers: Vec<(u64, u64)>,
    ratio: Option<u64>,
}

impl Convolutions {
    fn new(config: Option<&Value>) -> Convolutions {
        let numbers = |key: &str| -> Vec<u64> {
            let list = config.and_then(|config| config.get(key)).and_then(Value::as_array);
            list.map_or_else(Vec::new, |list| list.iter().map_while(Value::as_u64).filter(|&n| n > 0).collect())
        };
        let (kernels, strides) = (numbers("conv_kernel"), numbers("conv_stride"));
        let product = strides.iter().try_fold(1u64, |product, &stride| product.checked_mul(stride));
        let told = config.and_then(|config| config.get("inputs_to_logits_ratio")).and_then(Value::as_u64);
        let ratio = told.or(product.filter(|_| !strides.is_empty()));
        let ratio = ratio.filter(|ratio| (1..=1 << 24).contains(ratio));
        let layers = match kernels.len() == strides.len() && kernels.len() <= 64 {
            true => kernels.into_iter().zip(strides).collect(),
            false => Vec::new(),
        };
        Convolutions { layers, ratio }
    }

    /// The fewest samples that give a frame.
    fn shortest(&self) -> u64 {
        let before =
            |frames: u64, (kernel, stride): (u64, u64)| (frames - 1).saturating_mul(stride).saturating_add(kernel);
        self.layers.iter().rev().copied().fold(1, before).max(1)
    }
}

impl AudioInput {
    /// What the graph and the files beside it say.
    ///
    /// # Errors
    /// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
    pub(super) fn new(sources: &Sources<'_>) -> Result<AudioInput, PipelineError> {
        let preprocessor = read_json_object(sources.folder, PREPROCESSOR)?;
        let (name, rank) = find_name(sources.inputs).map_err(PipelineError::Setup)?;
        let extractor = Extractor::new(preprocessor.as_ref())?;
        let setup = |problem: String| Err(PipelineError::Setup(problem));
        let spectrogram = extractor.features.spectrogram();
        let expected = if spectrogram.is_some() { 3 } else { 2 };
        if rank.is_some_and(|rank| rank != expected) {
            return setup(format!("the input {name:?} does not fit: {PREPROCESSOR} gives tensors of rank {expected}"));
        }
        let mut mask = None;
        let mut found = None;
        for spec in sources.inputs {
            match (spec.name.as_str(), spec.ty.dtype()) {
                (input, Some(dtype @ (DType::Fp32 | DType::Fp16))) if input == name => found = Some((spec, dtype)),
                ("attention_mask", Some(dtype @ (DType::Int64 | DType::Int32))) if expected == 2 => {
                    mask = Some((spec.name.clone(), dtype));
                }
                (other, _) => {
                    return setup(format!("the graph needs the input {other:?}, which a sound does not give"));
                }
            }
        }
        let Some((spec, dtype)) = found else {
            return setup(format!("the input {name:?} takes no FP32 or FP16 numbers"));
        };
        let dims = spec.ty.shape().unwrap_or_default();
        let fixed = |axis: usize| match dims.get(axis) {
            Some(Dim::Fixed(size)) => Some(*size),
            Some(Dim::Dynamic(_)) | None => None,
        };
        if let Some([rows, columns]) = spectrogram
            && (fixed(1).is_some_and(|size| size != rows) || fixed(2).is_some_and(|size| size != columns))
        {
            let ty = &spec.ty;
            return setup(format!("the input {name:?} is {ty}, but {PREPROCESSOR} gives [1, {rows}, {columns}]"));
        }
        Ok(AudioInput {
            name: name.to_owned(),
            dtype,
            length: if expected == 2 { fixed(1) } else { None },
            mask,
            extractor,
            convolutions: Convolutions::new(sources.config()?),
            max_seconds: sources.limits.max_audio_seconds,
        })
    }

    /// One sentence's end: what sounds become.
    pub(super) fn describe(&self) -> String {
        self.extractor.describe()
    }

    /// Hz.
    pub(super) fn rate(&self) -> u32 {
        self.extractor.rate
    }

    /// Samples of one frame of the graph's output, where the files tell.
    pub(super) fn samples_per_frame(&self) -> Option<u64> {
        match self.extractor.features {
            Features::Samples { .. } => self.convolutions.ratio,
            Features::LogMel(_) | Features::Fbank(_) => None,
        }
    }

    /// The fewest samples that the graph makes something of.
    pub(super) fn shortest(&self) -> usize {
        match &self.extractor.features {
            Features::Samples { .. } => usize::try_from(self.convolutions.shortest()).unwrap_or(usize::MAX),
            Features::LogMel(_) => 1,
            Features::Fbank(fbank) => fbank.window,
        }
    }

    /// The samples of an item, at the model's rate.
    ///
    /// # Errors
    /// Why the item cannot be used.
    pub(super) fn samples(&self, item: &Item) -> Result<Vec<f32>, PipelineError> {
        let samples = samples_at(item, self.max_seconds, self.rate())?;
        let (length, shortest, rate) = (samples.len(), self.shortest(), self.rate());
        if length < shortest {
            let problem = format!(
                "the sound has {length} samples at {rate} Hz; the model needs at least {shortest}, send a longer one"
            );
            return Err(PipelineError::Item { index: 0, problem });
        }
        Ok(samples)
    }

    /// The graph's inputs for `samples`, which [`AudioInput::samples`] gave or a part of them is.
    ///
    /// # Errors
    /// Where the graph is for sounds of another length.
    pub(super) fn tensors(&self, samples: &[f32]) -> Result<Inputs, PipelineError> {
        let refuse = |problem: String| PipelineError::Item { index: 0, problem };
        let values = match &self.extractor.features {
            Features::Samples { normalize: wanted } => {
                if let Some(length) = self.length.filter(|&length| length != samples.len()) {
                    let (given, rate) = (samples.len(), self.rate());
                    return Err(refuse(format!(
                        "the sound has {given} samples at {rate} Hz; the model takes {length}"
                    )));
                }
                let mut values = samples.to_vec();
                if *wanted {
                    normalize(&mut values);
                }
                values
            }
            Features::LogMel(mel) => mel.of(samples).map_err(refuse)?,
            Features::Fbank(fbank) => fbank.of(samples).map_err(refuse)?,
        };
        let shape = match self.extractor.features.spectrogram() {
            Some([rows, columns]) => vec![1, rows, columns],
            None => vec![1, values.len()],
        };
        let fault = |error: crate::tensor::TensorError| PipelineError::Item { index: 0, problem: error.to_string() };
        let mask = self.mask.as_ref().map(|(name, dtype)| {
            let tensor = match dtype {
                DType::Int32 => Tensor::from_vec(*dtype, shape.clone(), vec![1i32; values.len()]),
                _ => Tensor::from_vec(*dtype, shape.clone(), vec![1i64; values.len()]),
            };
            tensor.map(|tensor| (name.clone(), tensor)).map_err(fault)
        });
        let tensor = match self.dtype {
            DType::Fp16 => {
                let values: Vec<half::f16> = values.into_iter().map(half::f16::from_f32).collect();
                Tensor::from_vec(self.dtype, shape, values)
            }
            _ => Tensor::from_vec(self.dtype, shape, values),
        };
        let mut inputs = vec![(self.name.clone(), tensor.map_err(fault)?)];
        inputs.extend(mask.transpose()?);
        Ok(inputs)
    }
}

/// The samples of an item at `rate` Hz; its sound is at most `max_seconds` long.
///
/// # Errors
/// Why the item cannot be used.
pub(super) fn samples_at(item: &Item, max_seconds: u64, rate: u32) -> Result<Vec<f32>, PipelineError> {
    let Item::Bytes(bytes) = item else {
        let problem = format!("expected a sound (bytes, {{\"b64\": …}} or a data: URL), got {}", item.noun());
        return Err(PipelineError::Item { index: 0, problem });
    };
    Ok(resample(decode(bytes, max_seconds)?, rate)?.samples)
}

/// The name and declared rank of the input that holds the sound.
fn find_name(inputs: &[Spec]) -> Result<(&str, Option<usize>), String> {
    let is_float = |spec: &&Spec| spec.ty.dtype().is_some_and(|dtype| matches!(dtype, DType::Fp32 | DType::Fp16));
    let named = inputs.iter().find(|spec| matches!(spec.name.as_str(), "input_values" | "input_features"));
    let Some(spec) = named.or_else(|| inputs.iter().find(is_float)) else {
        return Err("the graph has no FP32 or FP16 input that could hold a sound".to_owned());
    };
    Ok((&spec.name, spec.ty.shape().map(<[Dim]>::len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn convolutions_tell_the_shortest_sound() {
        let wav2vec2 = json!({"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]});
        let layers = Convolutions::new(Some(&wav2vec2));
        assert_eq!((layers.shortest(), layers.ratio), (400, Some(320)));
        let told = Convolutions::new(Some(&json!({"inputs_to_logits_ratio": 640})));
        assert_eq!((told.shortest(), told.ratio), (1, Some(640)));
        for odd in [json!({"conv_stride": []}), json!({"conv_stride": [1 << 20, 1 << 20]}), json!({"conv_stride": "x"})]
        {
            assert_eq!(Convolutions::new(Some(&odd)).ratio, None, "{odd}");
        }
        let huge = json!({"conv_kernel": [u64::MAX, u64::MAX], "conv_stride": [u64::MAX, 2]});
        assert!(Convolutions::new(Some(&huge)).shortest() > 1);
    }
}

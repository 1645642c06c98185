//! What a model's manifest may say of its pipeline: the `[pipeline]` table of `model.toml`.

use serde::Deserialize;

/// `[pipeline]`: every key optional, each overriding what the files beside the model say.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineManifest {
    /// HuggingFace's name of the task, or `raw` for tensors as they are.
    pub task: Option<String>,
    /// The graph file to serve, relative to the version's folder.
    pub file: Option<String>,
    pub labels: Option<LabelsSource>,
    /// Raw detection head, for `object-detection`.
    pub decoder: Option<String>,
    /// Record fields in the order of the input's columns.
    pub columns: Option<Vec<String>>,
    pub image: Option<ImageOverrides>,
    /// What the cosine of a picture and a text is multiplied by, for `zero-shot-image-classification` of graphs that give
    /// embeddings: `exp` of the model's weight of this name.
    pub logit_scale: Option<f64>,
    /// What is added to that.
    pub logit_bias: Option<f64>,
    pub audio: Option<AudioOverrides>,
}

/// A file with one label a line, or the labels themselves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum LabelsSource {
    File(String),
    List(Vec<String>),
}

/// `[pipeline.image]`: overrides of `preprocessor_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageOverrides {
    pub size: Option<SizeOverride>,
    /// `exact`, `shortest_edge` or `letterbox`.
    pub resize: Option<String>,
    /// `nearest`, `bilinear`, `bicubic`, `lanczos`, `box` or `hamming`.
    pub resample: Option<String>,
    /// Side of the centre crop; none where absent.
    pub crop_size: Option<SizeOverride>,
    /// `RGB`, `BGR` or `L` (one grey channel).
    pub channel_order: Option<String>,
    pub rescale_factor: Option<f64>,
    /// Grey value (0 to 255) that fills a letterbox.
    pub pad_value: Option<u8>,
    pub mean: Option<Vec<f64>>,
    pub std: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeOverride {
    pub height: u32,
    pub width: u32,
}

/// `[pipeline.audio]`: what a graph of sounds does not tell.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioOverrides {
    /// Hz at which the graph is given sounds, for `voice-activity-detection`: 16000 where absent, or 8000.
    pub sampling_rate: Option<u32>,
}

/// Bounds on what a pipeline decodes.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineLimits {
    /// Pixels of one picture, read from its header before decoding.
    pub max_pixels: u64,
    /// Bytes of one text, before it is tokenized.
    pub max_text_bytes: u64,
    /// Seconds of one sound, from its header where that tells and counted while it is decoded.
    pub max_audio_seconds: u64,
}

impl Default for PipelineLimits {
    fn default() -> PipelineLimits {
        PipelineLimits { max_pixels: 1 << 26, max_text_bytes: 1 << 18, max_audio_seconds: 600 }
    }
}

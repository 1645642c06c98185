//! Tasks on pictures: encoded bytes to the tensor a vision graph takes, scores to classes.
//!
//! Steps, each its own file: [`decode`] → [`resize`] (and centre crop) → [`tensor`]; [`settings`] says how, from
//! `preprocessor_config.json`, and [`input`] what the graph takes. The numbers are those of Pillow and of transformers'
//! image processors.

mod classification;
mod decode;
mod input;
mod resize;
mod settings;
mod tensor;

#[cfg(test)]
mod golden;

pub use classification::ImageClassification;
pub(crate) use classification::find_logits;
#[cfg(test)]
pub(crate) use input::tests::spec as input_spec;
pub use input::{ImageInput, Layout};
pub use settings::{ChannelOrder, Geometry, ImageSettings, Normalize, Pad, Resample, Size};

/// Decoded pixels, 8 bits a channel, interleaved, row by row; `channels` is 3 (RGB) or 1 (grey).
///
/// Invariant: `data` holds `width * height * channels` bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picture {
    width: u32,
    height: u32,
    channels: usize,
    data: Vec<u8>,
}

/// Why a picture is refused, before it is known which item of the request it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    TooLarge(String),
    Bad(String),
}

impl From<Refusal> for crate::pipelines::PipelineError {
    fn from(refusal: Refusal) -> crate::pipelines::PipelineError {
        match refusal {
            Refusal::TooLarge(problem) => crate::pipelines::PipelineError::TooLarge { index: 0, problem },
            Refusal::Bad(problem) => crate::pipelines::PipelineError::Item { index: 0, problem },
        }
    }
}

//! Tasks on pictures: encoded bytes to the tensor a vision graph takes, scores to classes.
//!
//! Steps, each its own file: [`decode`] (and [`jpeg`]) → [`resize`] (and centre crop) → [`tensor`], put together in [`prepare`];
//! [`settings`] says how, from `preprocessor_config.json`, and [`input`] what the graph takes. The numbers are those of
//! Pillow and of transformers' image processors. One file for each task: [`classification`], [`detection`] (whose model
//! outputs are read by [`boxes`] and thinned out by [`suppression`]), [`segmentation`] and [`depth`] (whose maps [`maps`]
//! enlarges), [`features`], [`zero_shot`] (which reads texts beside the picture).

mod boxes;
mod classification;
mod decode;
mod depth;
mod detection;
mod features;
mod input;
mod jpeg;
mod maps;
mod prepare;
mod resample;
mod resize;
mod segmentation;
mod settings;
mod suppression;
mod tensor;
mod zero_shot;

#[cfg(test)]
mod golden;

pub use classification::ImageClassification;
pub(crate) use classification::{TASK as IMAGE_CLASSIFICATION, make as make_image_classification};
pub use decode::picture_size;
pub use depth::DepthEstimation;
pub(crate) use depth::{TASK as DEPTH_ESTIMATION, make as make_depth_estimation};
pub use detection::ObjectDetection;
pub(crate) use detection::{TASK as OBJECT_DETECTION, make as make_object_detection};
pub use features::ImageFeatureExtraction;
pub(crate) use features::{TASK as IMAGE_FEATURE_EXTRACTION, make as make_image_feature_extraction};
#[cfg(test)]
pub(crate) use input::tests::spec as input_spec;
pub use input::{ImageInput, Layout};
pub use prepare::Pictures;
pub(crate) use prepare::Placed;
pub use segmentation::ImageSegmentation;
pub(crate) use segmentation::{TASK as IMAGE_SEGMENTATION, make as make_image_segmentation};
pub use settings::{ChannelOrder, Geometry, ImageSettings, Normalize, Pad, Resample, Size, Step};
pub(crate) use zero_shot::{TASK as ZERO_SHOT_IMAGE, make as make_zero_shot_image, takes_both};

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

//! Pixels to the graph's tensor: channel order, scale and normalisation in one pass.
//!
//! A channel has only 256 values, so each is computed once in transformers' order and precision (`u8 · factor` in
//! double, the rest in single) and then looked up: the result is the reference's, bit for bit.

use super::Picture;
use super::input::{ImageInput, Layout};
use super::settings::{ChannelOrder, ImageSettings};
use crate::pipelines::PipelineError;
use crate::tensor::{DType, Tensor};

/// The tensor of a picture, which has `input.channels` channels and fits into `height`×`width`. A smaller one stands at
/// the top left; what it does not cover is 0 (after normalisation), as transformers pads.
///
/// # Errors
/// Where the tensor would not fit memory.
pub(crate) fn fill(
    picture: &Picture,
    height: usize,
    width: usize,
    settings: &ImageSettings,
    input: &ImageInput,
) -> Result<Tensor, PipelineError> {
    let canvas = Canvas { picture, height, width, order: settings.channel_order, input };
    match input.dtype {
        // A graph that takes bytes scales and normalises inside.
        DType::Uint8 => canvas.fill(|_, value| value),
        DType::Fp16 => canvas.fill(|channel, value| half::f16::from_f32(settings.normalize.apply(channel, value))),
        DType::Bf16 => canvas.fill(|channel, value| half::bf16::from_f32(settings.normalize.apply(channel, value))),
        DType::Fp64 => canvas.fill(|channel, value| f64::from(settings.normalize.apply(channel, value))),
        DType::Fp32 => canvas.fill(|channel, value| settings.normalize.apply(channel, value)),
        other => Err(PipelineError::Setup(format!(
            "input {:?} is {other}: pictures need a float or UINT8 tensor",
            input.name
        ))),
    }
}

struct Canvas<'a> {
    picture: &'a Picture,
    height: usize,
    width: usize,
    order: ChannelOrder,
    input: &'a ImageInput,
}

impl Canvas<'_> {
    fn fill<T: bytemuck::Pod + Send + Sync>(&self, value: impl Fn(usize, u8) -> T) -> Result<Tensor, PipelineError> {
        let channels = self.input.channels;
        let shape = match self.input.layout {
            Layout::Nchw => vec![1, channels, self.height, self.width],
            Layout::Nhwc => vec![1, self.height, self.width, channels],
        };
        let failed = || PipelineError::Outputs("the tensor of the picture does not fit memory".to_owned());
        let count = crate::tensor::element_count(&shape).ok_or_else(failed)?;
        let mut data: Vec<T> = Vec::new();
        data.try_reserve_exact(count).map_err(|_| failed())?;
        data.resize(count, bytemuck::Zeroable::zeroed());
        let tables: Vec<[T; 256]> =
            (0..channels).map(|channel| std::array::from_fn(|byte| value(channel, byte as u8))).collect();
        match self.input.layout {
            Layout::Nchw => self.planar(&mut data, &tables),
            Layout::Nhwc => self.interleaved(&mut data, &tables),
        }
        Tensor::from_vec(self.input.dtype, shape, data).map_err(|error| PipelineError::Outputs(error.to_string()))
    }

    /// The channel of the picture that stands at `channel` of the tensor.
    fn source_channel(&self, channel: usize) -> usize {
        match self.order {
            ChannelOrder::Rgb | ChannelOrder::Grey => channel,
            ChannelOrder::Bgr => self.input.channels - 1 - channel,
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a table has a value for every byte")]
    fn planar<T: Copy>(&self, item: &mut [T], tables: &[[T; 256]]) {
        let picture = self.picture;
        let row_bytes = (picture.width as usize * picture.channels).max(1);
        let planes = item.chunks_exact_mut((self.height * self.width).max(1));
        for (channel, (plane, table)) in planes.zip(tables).enumerate() {
            let source = self.source_channel(channel);
            let rows = plane.chunks_exact_mut(self.width.max(1)).zip(picture.data.chunks_exact(row_bytes));
            for (row, pixels) in rows {
                let values = pixels.iter().skip(source).step_by(picture.channels);
                for (target, &byte) in row.iter_mut().zip(values) {
                    *target = table[usize::from(byte)];
                }
            }
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a table has a value for every byte")]
    fn interleaved<T: Copy>(&self, item: &mut [T], tables: &[[T; 256]]) {
        let picture = self.picture;
        let row_bytes = (picture.width as usize * picture.channels).max(1);
        let rows =
            item.chunks_exact_mut((self.width * self.input.channels).max(1)).zip(picture.data.chunks_exact(row_bytes));
        for (row, pixels) in rows {
            let targets = row.chunks_exact_mut(self.input.channels);
            for (target, pixel) in targets.zip(pixels.chunks_exact(picture.channels)) {
                for (channel, (target, table)) in target.iter_mut().zip(tables).enumerate() {
                    let byte = pixel.get(self.source_channel(channel)).copied().unwrap_or_default();
                    *target = table[usize::from(byte)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::spec;
    use super::super::settings::Normalize;
    use super::*;

    fn settings(order: ChannelOrder) -> ImageSettings {
        let normalize = Normalize {
            factor: 1.0 / 255.0,
            offset: 0.0,
            mean: vec![0.5, 0.25, 0.0],
            std: vec![0.5, 0.25, 1.0],
            divide_twice: false,
        };
        ImageSettings { channel_order: order, normalize, ..ImageSettings::exact(1, 2) }
    }

    fn picture() -> Picture {
        Picture { width: 2, height: 1, channels: 3, data: vec![0, 51, 255, 255, 102, 0] }
    }

    #[track_caller]
    fn check(dtype: DType, dims: &[i64], order: ChannelOrder, expected: &[f32]) {
        let input = ImageInput::find(&[spec("x", dtype, dims)]).unwrap();
        let tensor = fill(&picture(), 1, 2, &settings(order), &input).unwrap();
        let got = tensor.to_f32().unwrap_or_else(|| tensor.bytes().iter().map(|&byte| f32::from(byte)).collect());
        assert_eq!(got.len(), 6);
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 4e-3, "{got} is not {expected}");
        }
    }

    #[test]
    fn layout_order_and_type_follow_the_graph() {
        let rgb = [-1.0, 1.0, -0.2, 0.6, 1.0, 0.0];
        for dtype in [DType::Fp32, DType::Fp16, DType::Bf16, DType::Fp64] {
            check(dtype, &[-1, 3, 1, 2], ChannelOrder::Rgb, &rgb);
        }
        check(DType::Fp32, &[-1, 3, 1, 2], ChannelOrder::Bgr, &[1.0, -1.0, -0.2, 0.6, 0.0, 1.0]);
        check(DType::Fp32, &[-1, -1, -1, 3], ChannelOrder::Rgb, &[-1.0, -0.2, 1.0, 1.0, 0.6, 0.0]);
        check(DType::Uint8, &[-1, -1, -1, 3], ChannelOrder::Bgr, &[255.0, 51.0, 0.0, 0.0, 102.0, 255.0]);
        check(DType::Uint8, &[-1, 3, -1, -1], ChannelOrder::Rgb, &[0.0, 255.0, 51.0, 102.0, 255.0, 0.0]);
    }

    #[test]
    fn what_a_smaller_picture_does_not_cover_is_zero() {
        let input = ImageInput::find(&[spec("x", DType::Fp32, &[-1, 3, -1, -1])]).unwrap();
        let tensor = fill(&picture(), 2, 3, &settings(ChannelOrder::Rgb), &input).unwrap();
        assert_eq!(tensor.shape(), [1, 3, 2, 3]);
        assert_eq!(tensor.to_f32().unwrap()[..6], [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

//! What picture tensor a graph takes: layout, channels, element type and, where declared, height and width.
//!
//! Read from the declared shape alone: `[N, C, H, W]` or `[N, H, W, C]`, `C` being 1 or 3. Beside the picture a graph may
//! take `pixel_mask` `[N, H, W]`, as exports of DETR do: which pixels are the picture's and which are padding.

use crate::tensor::{DType, Dim, Spec};

/// Where the channels stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Nchw,
    Nhwc,
}

/// The one picture input of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInput {
    pub name: String,
    /// FP32, FP16, BF16, FP64 or UINT8.
    pub dtype: DType,
    pub layout: Layout,
    /// 1 or 3.
    pub channels: usize,
    /// `None` where the graph takes any.
    pub height: Option<usize>,
    /// `None` where the graph takes any.
    pub width: Option<usize>,
    /// Where the graph is told which pixels are padding.
    pub mask: Option<MaskInput>,
}

/// The input `pixel_mask`: 1 for the picture's pixels, 0 for padding.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskInput {
    /// INT64, BOOL or FP32.
    pub dtype: DType,
    /// `None` where it is the picture's.
    pub height: Option<usize>,
    /// `None` where it is the picture's.
    pub width: Option<usize>,
}

/// Masks of a size of their own are coarser than the picture.
const MAX_MASK_SIDE: usize = 4096;

impl MaskInput {
    pub(crate) const NAME: &str = "pixel_mask";

    fn from_spec(spec: &Spec) -> Option<MaskInput> {
        let dtype = spec.ty.dtype().filter(|dtype| matches!(dtype, DType::Int64 | DType::Bool | DType::Fp32))?;
        let Some([_, height, width]) = spec.ty.shape() else { return None };
        let (height, width) = (fixed(height), fixed(width));
        let sane = |side: Option<usize>| side.is_none_or(|side| (1..=MAX_MASK_SIDE).contains(&side));
        let is_mask = spec.name == MaskInput::NAME && !spec.optional && sane(height) && sane(width);
        is_mask.then_some(MaskInput { dtype, height, width })
    }
}

impl ImageInput {
    /// The picture input among `inputs`: the only one that a request must give, beside a mask of its pixels.
    ///
    /// # Errors
    /// Says in one sentence why the graph does not take one picture tensor.
    pub fn find(inputs: &[Spec]) -> Result<ImageInput, String> {
        let mask = inputs.iter().find_map(MaskInput::from_spec);
        let is_mask = |input: &Spec| mask.is_some() && input.name == MaskInput::NAME;
        let mut needed = inputs.iter().filter(|input| !input.optional && !is_mask(input));
        match (needed.next(), needed.next()) {
            (Some(input), None) => ImageInput::from_spec(input).map(|input| ImageInput { mask, ..input }),
            (None, _) => Err("the graph has no input that a request gives".to_owned()),
            (Some(_), Some(_)) => Err(format!(
                "the graph needs more than one input ({})",
                inputs
                    .iter()
                    .filter(|input| !input.optional)
                    .map(|input| input.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }

    fn from_spec(spec: &Spec) -> Result<ImageInput, String> {
        let refuse = |problem: &str| Err(format!("input {:?} is {}: {problem}", spec.name, spec.ty));
        let Some(dtype) = spec.ty.dtype() else { return refuse("expected a tensor") };
        if !matches!(dtype, DType::Fp32 | DType::Fp16 | DType::Bf16 | DType::Fp64 | DType::Uint8) {
            return refuse("pictures need a float or UINT8 tensor");
        }
        let Some([_, second, third, fourth]) = spec.ty.shape() else {
            return refuse("pictures need a tensor of rank 4");
        };
        let channels = |dim: &Dim| fixed(dim).filter(|size| matches!(size, 1 | 3));
        let (layout, channels, height, width) = match (channels(second), channels(fourth)) {
            (Some(count), _) => (Layout::Nchw, count, third, fourth),
            (None, Some(count)) => (Layout::Nhwc, count, second, third),
            // A graph that leaves everything open came from a PyTorch export: channels first, RGB.
            (None, None) if fixed(second).is_none() => (Layout::Nchw, 3, third, fourth),
            (None, None) => return refuse("neither dimension 1 nor 3 is 1 or 3 channels"),
        };
        let (height, width) = (fixed(height), fixed(width));
        if height == Some(0) || width == Some(0) {
            return refuse("the height or width is 0");
        }
        Ok(ImageInput { name: spec.name.clone(), dtype, layout, channels, height, width, mask: None })
    }
}

fn fixed(dim: &Dim) -> Option<usize> {
    match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Dynamic(_) => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tensor::ValueType;

    /// A spec with -1 for dynamic dimensions.
    pub(crate) fn spec(name: &str, dtype: DType, dims: &[i64]) -> Spec {
        let shape = dims.iter().map(|&dim| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed)).collect();
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype, shape: Some(shape) }, optional: false }
    }

    #[track_caller]
    #[expect(clippy::type_complexity, reason = "rows of a table")]
    fn check(dtype: DType, dims: &[i64], expected: Result<(Layout, usize, Option<usize>, Option<usize>), &str>) {
        match (ImageInput::find(&[spec("x", dtype, dims)]), expected) {
            (Ok(got), Ok(expected)) => assert_eq!((got.layout, got.channels, got.height, got.width), expected),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}"),
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }

    #[test]
    fn the_layout_is_read_from_the_declared_shape() {
        check(DType::Fp32, &[-1, 3, 224, 192], Ok((Layout::Nchw, 3, Some(224), Some(192))));
        check(DType::Fp16, &[1, 1, 28, 28], Ok((Layout::Nchw, 1, Some(28), Some(28))));
        check(DType::Uint8, &[-1, 224, 192, 3], Ok((Layout::Nhwc, 3, Some(224), Some(192))));
        check(DType::Fp32, &[-1, -1, -1, 1], Ok((Layout::Nhwc, 1, None, None)));
        check(DType::Fp32, &[-1, -1, -1, -1], Ok((Layout::Nchw, 3, None, None)));
        check(DType::Fp32, &[1, 3, 3, 3], Ok((Layout::Nchw, 3, Some(3), Some(3))));
    }

    #[test]
    fn other_inputs_are_no_pictures() {
        check(DType::Int64, &[-1, 3, 8, 8], Err("float or UINT8"));
        check(DType::Fp32, &[-1, 128], Err("rank 4"));
        check(DType::Fp32, &[-1, 64, 8, 8], Err("channels"));
        check(DType::Fp32, &[-1, 3, 0, 8], Err("is 0"));
        let two = [spec("pixel_values", DType::Fp32, &[1, 3, 8, 8]), spec("mask", DType::Fp32, &[1, 3, 8, 8])];
        assert_eq!(ImageInput::find(&two).unwrap_err(), "the graph needs more than one input (pixel_values, mask)");
        assert!(ImageInput::find(&[]).is_err());
    }

    #[test]
    fn a_mask_of_the_pixels_may_stand_beside_the_picture() {
        let picture = spec("pixel_values", DType::Fp32, &[-1, 3, -1, -1]);
        let with_mask = [picture.clone(), spec("pixel_mask", DType::Int64, &[-1, 64, -1])];
        let mask = ImageInput::find(&with_mask).unwrap().mask;
        assert_eq!(mask, Some(MaskInput { dtype: DType::Int64, height: Some(64), width: None }));
        let odd = [picture, spec("pixel_mask", DType::Int64, &[-1, 64])];
        assert!(ImageInput::find(&odd).unwrap_err().contains("more than one input"));
    }
}

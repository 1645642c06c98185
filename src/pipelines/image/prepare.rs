//! A request's picture to the graph's tensor, the same for every task on pictures, and the way back to its pixels.
//!
//! Invariants: what is decoded, resized or padded has at most `max_pixels` pixels; the notes of an item are always
//! [`Placed`]. Knows no task.

use super::input::MaskInput;
use super::resize::Placement;
use super::settings::Pad;
use super::{ChannelOrder, ImageInput, ImageSettings, Picture, Refusal, Size, decode, resize, tensor};
use crate::pipelines::detect::{PREPROCESSOR, Sources};
use crate::pipelines::files::read_json_object;
use crate::pipelines::{ImageOverrides, Item, Notes, PipelineError, PipelineLimits, Prepared};
use crate::tensor::{DType, Tensor};
use serde_json::Value;

/// How one model's pictures are made into tensors.
#[derive(Debug, Clone)]
pub struct Pictures {
    pub settings: ImageSettings,
    pub input: ImageInput,
    pub limits: PipelineLimits,
}

/// Where an item's picture stands in its tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Placed {
    /// The picture as it came, upright.
    pub(crate) source: Size,
    /// What resize and crop made of it.
    pub(crate) canvas: Size,
    /// The canvas with padding at its right and below.
    pub(crate) tensor: Size,
    placement: Placement,
}

impl Placed {
    #[cfg(test)]
    pub(crate) fn stretched(source: Size, tensor: Size) -> Placed {
        let geometry = super::Geometry::Exact { size: tensor, crop: None };
        Placed { source, canvas: tensor, tensor, placement: resize::placement(source, &geometry) }
    }

    /// A point of the tensor, in its pixels, as a point of the picture that came.
    pub(crate) fn to_source(self, (x, y): (f64, f64)) -> (f64, f64) {
        let Placement { scale_x, scale_y, offset_x, offset_y } = self.placement;
        ((x - offset_x) / scale_x, (y - offset_y) / scale_y)
    }

    /// The other way.
    pub(crate) fn to_tensor(self, (x, y): (f64, f64)) -> (f64, f64) {
        let Placement { scale_x, scale_y, offset_x, offset_y } = self.placement;
        (x * scale_x + offset_x, y * scale_y + offset_y)
    }
}

impl Pictures {
    /// The pictures of a model: how its files say they are prepared, and one sentence that says where that stands.
    ///
    /// # Errors
    /// [`PipelineError::Setup`] where the graph takes no picture, or the files do not say how.
    pub(crate) fn of(sources: &Sources<'_>) -> Result<(Pictures, &'static str), PipelineError> {
        let input = ImageInput::find(sources.inputs).map_err(PipelineError::Setup)?;
        let preprocessor = read_json_object(sources.folder, PREPROCESSOR)?;
        Pictures::new(preprocessor.as_ref(), sources.manifest.image.as_ref(), input, sources.limits)
    }

    /// The same where the processor's file has been read.
    ///
    /// # Errors
    /// As [`ImageSettings::new`].
    pub(crate) fn new(
        preprocessor: Option<&Value>,
        overrides: Option<&ImageOverrides>,
        input: ImageInput,
        limits: &PipelineLimits,
    ) -> Result<(Pictures, &'static str), PipelineError> {
        let settings = ImageSettings::new(preprocessor, overrides, &input)?;
        let how = match (preprocessor, overrides) {
            (Some(_), None) => "pictures are prepared as preprocessor_config.json says",
            (Some(_), Some(_)) => {
                "pictures are prepared as preprocessor_config.json and [pipeline.image] of model.toml say"
            }
            (None, Some(_)) => "pictures are prepared as [pipeline.image] of model.toml says",
            (None, None) => "pictures are resized to the graph's input and scaled to 0…1",
        };
        Ok((Pictures { settings, input, limits: limits.clone() }, how))
    }

    /// Resizes to `height`×`width`, for an input named `pixel_values` of any size.
    #[cfg(test)]
    pub(crate) fn exact(height: u32, width: u32) -> Pictures {
        let input = super::input_spec("pixel_values", DType::Fp32, &[-1, 3, -1, -1]);
        Pictures {
            settings: ImageSettings::exact(height, width),
            input: ImageInput::find(&[input]).unwrap(),
            limits: PipelineLimits { max_pixels: 1000, ..PipelineLimits::default() },
        }
    }

    /// The tensors of an item that is one picture; its notes are a [`Placed`].
    ///
    /// # Errors
    /// Why the item cannot be used.
    pub(crate) fn prepare(&self, item: &Item) -> Result<Prepared, PipelineError> {
        let Item::Bytes(bytes) = item else {
            let problem = format!("expected a picture (bytes, {{\"b64\": …}} or a data: URL), got {}", item.noun());
            return Err(PipelineError::Item { index: 0, problem });
        };
        let grey = self.settings.channel_order == ChannelOrder::Grey;
        let picture = decode::decode(bytes, grey, self.limits.max_pixels)?;
        let source = Size { height: picture.height, width: picture.width };
        let placement = resize::placement(source, &self.settings.geometry);
        let picture = resize::resize(picture, &self.settings.geometry, self.settings.resample, self.limits.max_pixels)?;
        let tensor = self.size_in_tensor(&picture)?;
        let (height, width) = (tensor.height as usize, tensor.width as usize);
        let values = tensor::fill(&picture, height, width, &self.settings, &self.input)?;
        let mut inputs = vec![(self.input.name.clone(), values)];
        let canvas = Size { height: picture.height, width: picture.width };
        if let Some(mask) = &self.input.mask {
            inputs.push((MaskInput::NAME.to_owned(), pixel_mask(mask, canvas, tensor)?));
        }
        let placed = Placed { source, canvas, tensor, placement };
        Ok(Prepared::new(vec![inputs], Notes::new(placed, size_of::<Placed>())))
    }

    /// Height and width that `picture` takes in the tensor.
    fn size_in_tensor(&self, picture: &Picture) -> Result<Size, Refusal> {
        let side = |side: Option<usize>| side.map_or("any".to_owned(), |side| side.to_string());
        let fits = |declared: Option<usize>, side: u32| declared.is_none_or(|declared| declared == side as usize);
        let (height, width) = match self.settings.pad {
            Pad::To(size) => (size.height, size.width),
            Pad::None => (picture.height, picture.width),
            Pad::Largest => return self.padded_to_graph(picture),
        };
        if picture.height > height || picture.width > width {
            return Err(Refusal::Bad(format!(
                "the picture is {}×{} when resized, larger than the model's {width}×{height}",
                picture.width, picture.height
            )));
        }
        if !(fits(self.input.height, height) && fits(self.input.width, width)) {
            return Err(Refusal::Bad(format!(
                "the picture is {width}×{height} when resized, but the model takes {}×{}",
                side(self.input.width),
                side(self.input.height)
            )));
        }
        Ok(Size { height, width })
    }

    /// A processor that pads to the largest picture of a batch pads to the graph's fixed size where there is one, and not
    /// at all where there is none: every item is prepared alone.
    fn padded_to_graph(&self, picture: &Picture) -> Result<Size, Refusal> {
        let side = |declared: Option<usize>, size: u32| match declared.and_then(|side| u32::try_from(side).ok()) {
            Some(declared) if size > declared => {
                Err(Refusal::Bad(format!("the picture has a side of {size} when resized, the model takes {declared}")))
            }
            declared => Ok(declared.unwrap_or(size)),
        };
        let (height, width) = (side(self.input.height, picture.height)?, side(self.input.width, picture.width)?);
        // Padding multiplies the pixels again.
        let most = self.limits.max_pixels;
        if u64::from(height) * u64::from(width) > most {
            return Err(Refusal::TooLarge(format!("padded to {width}×{height} the picture exceeds {most} pixels")));
        }
        Ok(Size { height, width })
    }
}

/// 1 where the picture is. A mask of a size of its own has the padding's share of its pixels.
fn pixel_mask(mask: &MaskInput, canvas: Size, tensor: Size) -> Result<Tensor, PipelineError> {
    let height = mask.height.unwrap_or(tensor.height as usize);
    let width = mask.width.unwrap_or(tensor.width as usize);
    let share = |side: usize, canvas: u32, tensor: u32| {
        (side as f64 * f64::from(canvas) / f64::from(tensor.max(1))).round() as usize
    };
    let rows = share(height, canvas.height, tensor.height);
    let columns = share(width, canvas.width, tensor.width);
    let failed = || PipelineError::Outputs("the mask of the picture does not fit memory".to_owned());
    let shape = vec![1, height, width];
    let count = crate::tensor::element_count(&shape).ok_or_else(failed)?;
    let mut inside: Vec<bool> = Vec::new();
    inside.try_reserve_exact(count).map_err(|_| failed())?;
    inside.extend((0..height).flat_map(|y| (0..width).map(move |x| y < rows && x < columns)));
    let tensor = match mask.dtype {
        DType::Int64 => Tensor::from_vec(mask.dtype, shape, inside.into_iter().map(i64::from).collect()),
        DType::Fp32 => {
            Tensor::from_vec(mask.dtype, shape, inside.into_iter().map(|inside| f32::from(u8::from(inside))).collect())
        }
        _ => Tensor::from_vec(mask.dtype, shape, inside.into_iter().map(u8::from).collect()),
    };
    tensor.map_err(|error| PipelineError::Outputs(error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::Geometry;
    use super::*;

    pub(crate) fn png(width: u32, height: u32) -> Item {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(width, height).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        Item::Bytes(bytes.into_inner().into())
    }

    fn pictures(geometry: Geometry, pad: Pad) -> Pictures {
        let pictures = Pictures::exact(4, 4);
        Pictures { settings: ImageSettings { geometry, pad, ..pictures.settings }, ..pictures }
    }

    #[track_caller]
    fn prepared(pictures: &Pictures, item: &Item, expected: Result<&[usize], &str>) {
        match (pictures.prepare(item), expected) {
            (Ok(prepared), Ok(shape)) => {
                let (name, tensor) = &prepared.runs[0][0];
                assert_eq!((name.as_str(), tensor.shape()), ("pixel_values", shape));
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }

    #[test]
    fn a_picture_becomes_a_tensor_or_an_error() {
        let square = Pictures::exact(4, 4);
        prepared(&square, &png(9, 3), Ok(&[1, 3, 4, 4]));
        prepared(&square, &Item::Text("x".into()), Err("expected a picture"));
        prepared(&square, &png(50, 50), Err("the picture's dimensions are 50×50, more than max_pixels = 1000"));
    }

    #[test]
    fn pictures_of_any_size_are_padded_only_where_the_processor_pads() {
        let keep = Geometry::Keep { crop: None };
        prepared(&pictures(keep, Pad::None), &png(9, 3), Ok(&[1, 3, 3, 9]));
        prepared(&pictures(keep, Pad::Largest), &png(2, 5), Ok(&[1, 3, 5, 2]));
        let to = Pad::To(Size { height: 6, width: 9 });
        prepared(&pictures(keep, to), &png(2, 5), Ok(&[1, 3, 6, 9]));
        prepared(&pictures(keep, to), &png(10, 1), Err("larger than the model's 9×6"));
        let mut fixed = pictures(Geometry::ShortestEdge { edge: 4, longest: None, crop: None }, Pad::None);
        fixed.input.width = Some(4);
        prepared(&fixed, &png(8, 4), Err("the picture is 8×4 when resized, but the model takes 4×any"));
        let mut fixed = pictures(keep, Pad::Largest);
        (fixed.input.height, fixed.input.width) = (Some(20), Some(40));
        prepared(&fixed, &png(8, 4), Ok(&[1, 3, 20, 40]));
        prepared(&fixed, &png(41, 4), Err("a side of 41 when resized, the model takes 40"));
        fixed.input.width = Some(60);
        prepared(&fixed, &png(8, 4), Err("padded to 60×20 the picture exceeds 1000 pixels"));
    }

    #[test]
    fn the_notes_lead_back_to_the_pictures_pixels() {
        let size = |height, width| Size { height, width };
        for (geometry, corner, centre) in [
            (Geometry::Exact { size: size(4, 8), crop: None }, (0.0, 0.0), (4.0, 2.0)),
            (Geometry::Exact { size: size(8, 8), crop: Some(size(4, 4)) }, (-2.0, -2.0), (2.0, 2.0)),
            (Geometry::Keep { crop: Some(size(20, 40)) }, (10.0, 5.0), (20.0, 10.0)),
            (Geometry::ShortestEdge { edge: 5, longest: None, crop: None }, (0.0, 0.0), (5.0, 2.5)),
            (Geometry::Letterbox { size: size(8, 8), pad_value: 0 }, (0.0, 0.0), (4.0, 2.0)),
            (Geometry::Multiple { size: size(12, 12), multiple: 4 }, (0.0, 0.0), (12.0, 6.0)),
        ] {
            let prepared = pictures(geometry, Pad::None).prepare(&png(20, 10)).unwrap();
            let placed = *prepared.notes.get::<Placed>().unwrap();
            assert_eq!(placed.source, size(10, 20), "{geometry:?}");
            assert_eq!(placed.to_tensor((0.0, 0.0)), corner, "{geometry:?}");
            assert_eq!(placed.to_tensor((10.0, 5.0)), centre, "{geometry:?}");
            assert_eq!(placed.to_source(centre), (10.0, 5.0), "{geometry:?}");
        }
    }

    #[test]
    fn a_mask_has_ones_where_the_picture_is() {
        let mut padded = pictures(Geometry::Keep { crop: None }, Pad::To(Size { height: 2, width: 4 }));
        for (dtype, expected) in [(DType::Int64, 64), (DType::Bool, 8), (DType::Fp32, 32)] {
            padded.input.mask = Some(MaskInput { dtype, height: None, width: None });
            let prepared = padded.prepare(&png(3, 1)).unwrap();
            let (name, mask) = &prepared.runs[0][1];
            assert_eq!(
                (name.as_str(), mask.shape(), mask.bytes().len()),
                ("pixel_mask", [1, 2, 4].as_slice(), expected)
            );
        }
        padded.input.mask = Some(MaskInput { dtype: DType::Bool, height: Some(4), width: Some(8) });
        let prepared = padded.prepare(&png(2, 1)).unwrap();
        let rows: Vec<_> = prepared.runs[0][1].1.bytes().chunks(8).map(<[u8]>::to_vec).collect();
        let inside = vec![1, 1, 1, 1, 0, 0, 0, 0];
        assert_eq!(rows, [inside.clone(), inside, vec![0; 8], vec![0; 8]]);
    }
}

//! Resizing and centre crop with the numbers of Pillow.
//!
//! A crop after a resize is done as one step that only computes the pixels kept: the kernel reaches into the whole
//! picture, so they are the same pixels, and the cost is bounded by the crop however long and thin the picture is.

use super::resample::{self, Filter, resample};
use super::settings::{Geometry, Resample, Size};
use super::{Picture, Refusal};

/// Where one axis of the resized picture falls in the result.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    /// Size of the whole resized axis.
    full: u64,
    /// First pixel of it that is kept.
    offset: u64,
    /// Pixels of it that are kept.
    kept: u32,
    /// Size of the result and where the kept pixels start in it.
    canvas: u32,
    start: u32,
}

/// Resizes and crops `picture` as `geometry` says, black where the crop is larger than the picture.
///
/// # Errors
/// [`Refusal::TooLarge`] where the result would have more than `max_pixels` pixels.
pub(crate) fn resize(
    picture: Picture,
    geometry: &Geometry,
    resample: Resample,
    max_pixels: u64,
) -> Result<Picture, Refusal> {
    let source = Size { height: picture.height, width: picture.width };
    let (full, crop) = plan(source, geometry);
    if let Geometry::Letterbox { size, pad_value } = *geometry {
        let inner = place(picture, full, None, pad_value, resample, max_pixels)?;
        return Ok(on_canvas(&inner, size, 0, 0, pad_value));
    }
    place(picture, full, crop, 0, resample, max_pixels)
}

/// Where a picture stands on the canvas that [`resize`] makes of it: a point of the picture times `scale` plus `offset` is
/// the point on the canvas, both in pixels counted from the left or upper edge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Placement {
    pub(crate) scale_x: f64,
    pub(crate) scale_y: f64,
    pub(crate) offset_x: f64,
    pub(crate) offset_y: f64,
}

/// Where a picture of the size `source` stands after [`resize`].
pub(crate) fn placement(source: Size, geometry: &Geometry) -> Placement {
    if let Geometry::Letterbox { size, .. } = *geometry {
        // The ratio before it is cut to whole pixels, as YOLOX divides by it.
        let ratio = letterbox_ratio(source, size);
        return Placement { scale_x: ratio, scale_y: ratio, offset_x: 0.0, offset_y: 0.0 };
    }
    let ((height, width), crop) = plan(source, geometry);
    let offset =
        |full: u64, crop: Option<u32>| axis(full, crop).map_or(0.0, |axis| f64::from(axis.start) - axis.offset as f64);
    Placement {
        scale_x: width as f64 / f64::from(source.width.max(1)),
        scale_y: height as f64 / f64::from(source.height.max(1)),
        offset_x: offset(width, crop.map(|crop| crop.width)),
        offset_y: offset(height, crop.map(|crop| crop.height)),
    }
}

/// Height and width that the whole picture is resized to, and what is then kept of it.
fn plan(source: Size, geometry: &Geometry) -> ((u64, u64), Option<Size>) {
    match *geometry {
        Geometry::Keep { crop } => ((source.height.into(), source.width.into()), crop),
        Geometry::Exact { size, crop } => ((size.height.into(), size.width.into()), crop),
        Geometry::ShortestEdge { edge, longest, crop } => (shortest_edge(source, edge, longest), crop),
        Geometry::Stepped { edge, longest, step } => {
            let (height, width) = shortest_edge(source, edge, longest);
            ((step.apply(height), step.apply(width)), None)
        }
        Geometry::Own { step } => ((step.apply(source.height.into()), step.apply(source.width.into())), None),
        Geometry::Within { size } => {
            let ratio = letterbox_ratio(source, size);
            let side = |side: u32| ((f64::from(side) * ratio) as u64).max(1);
            ((side(source.height), side(source.width)), None)
        }
        Geometry::Multiple { size, multiple } => (nearest_multiple(source, size, multiple), None),
        Geometry::Letterbox { size, .. } => {
            let ratio = letterbox_ratio(source, size);
            // Cut to whole pixels as YOLOX does; a thin picture keeps one pixel.
            let side = |side: u32, most: u32| ((f64::from(side) * ratio) as u64).clamp(1, u64::from(most.max(1)));
            ((side(source.height, size.height), side(source.width, size.width)), None)
        }
    }
}

fn letterbox_ratio(source: Size, size: Size) -> f64 {
    let ratio = |side: u32, source: u32| f64::from(side) / f64::from(source.max(1));
    ratio(size.height, source.height).min(ratio(size.width, source.width))
}

/// DPT's way to keep the shape: both sides by the factor of the side that changes least, to whole multiples.
fn nearest_multiple(source: Size, size: Size, multiple: u32) -> (u64, u64) {
    let factor = |side: u32, source: u32| f64::from(side) / f64::from(source.max(1));
    let (rows, columns) = (factor(size.height, source.height), factor(size.width, source.width));
    let factor = if (1.0 - columns).abs() < (1.0 - rows).abs() { columns } else { rows };
    let multiple = f64::from(multiple.max(1));
    // Python's rounding: a half goes to the even side.
    let side = |side: u32| ((f64::from(side) * factor / multiple).round_ties_even() * multiple).max(multiple) as u64;
    (side(source.height), side(source.width))
}

/// The short side becomes `edge`, and the long one is cut, not rounded. Where that exceeds `longest`, the sizes are those of
/// DETR's `get_size_with_aspect_ratio`, the only one among transformers' processors that bounds the long side: its short side
/// is rounded, its long one is computed from the number before that and may miss `longest` by one.
fn shortest_edge(source: Size, edge: u32, longest: Option<u32>) -> (u64, u64) {
    let (height, width) = (f64::from(source.height.max(1)), f64::from(source.width.max(1)));
    let (short, long) = (height.min(width), height.max(width));
    let (mut new_short, mut factor) = (f64::from(edge), f64::from(edge));
    if let Some(longest) = longest.map(f64::from)
        && long / short * new_short > longest
    {
        factor = longest * short / long;
        // Python's rounding: a half goes to the even number.
        new_short = factor.round_ties_even();
        if new_short == short {
            return (source.height.into(), source.width.into());
        }
    }
    // In this order, as the reference's rounding has it.
    let new_long = ((factor * long / short) as u64).max(1);
    let new_short = (new_short as u64).max(1);
    if source.width <= source.height { (new_long, new_short) } else { (new_short, new_long) }
}

fn axis(full: u64, crop: Option<u32>) -> Option<Axis> {
    let Some(crop) = crop else {
        let kept = u32::try_from(full).ok()?;
        return Some(Axis { full, offset: 0, kept, canvas: kept, start: 0 });
    };
    match u32::try_from(full) {
        // The rounding of transformers' `center_crop`: up where black is added, down where pixels are cut.
        Ok(small) if small < crop => {
            Some(Axis { full, offset: 0, kept: small, canvas: crop, start: (crop - small).div_ceil(2) })
        }
        _ => Some(Axis { full, offset: (full - u64::from(crop)) / 2, kept: crop, canvas: crop, start: 0 }),
    }
}

/// Resizes to `full` (height, width), keeps its centre of the size `crop` and fills what is missing with `fill`.
fn place(
    picture: Picture,
    full: (u64, u64),
    crop: Option<Size>,
    fill: u8,
    resample: Resample,
    max_pixels: u64,
) -> Result<Picture, Refusal> {
    let too_large = || {
        Refusal::TooLarge(format!(
            "the {}×{} picture becomes {}×{} when resized for the model, more than max_pixels = {max_pixels} together",
            picture.width, picture.height, full.1, full.0
        ))
    };
    let rows = axis(full.0, crop.map(|crop| crop.height)).ok_or_else(too_large)?;
    let columns = axis(full.1, crop.map(|crop| crop.width)).ok_or_else(too_large)?;
    if u64::from(rows.canvas) * u64::from(columns.canvas) > max_pixels {
        return Err(too_large());
    }
    let kept = scale(picture, rows, columns, resample);
    if (kept.height, kept.width) == (rows.canvas, columns.canvas) {
        return Ok(kept);
    }
    Ok(on_canvas(&kept, Size { height: rows.canvas, width: columns.canvas }, rows.start, columns.start, fill))
}

/// `picture` with its top left corner at (`top`, `left`) of a canvas that it fits into.
fn on_canvas(picture: &Picture, size: Size, top: u32, left: u32, fill: u8) -> Picture {
    let (row_bytes, inner_bytes) = (size.width as usize * picture.channels, picture.width as usize * picture.channels);
    let mut data = vec![fill; row_bytes * size.height as usize];
    let rows = data.chunks_exact_mut(row_bytes.max(1)).skip(top as usize);
    for (row, inner) in rows.zip(picture.data.chunks_exact(inner_bytes.max(1))) {
        let start = left as usize * picture.channels;
        if let Some(target) = row.get_mut(start..start + inner_bytes) {
            target.copy_from_slice(inner);
        }
    }
    Picture { width: size.width, height: size.height, channels: picture.channels, data }
}

/// The kept part of the resized picture.
fn scale(picture: Picture, rows: Axis, columns: Axis, filter: Resample) -> Picture {
    let untouched = rows.kept == picture.height
        && columns.kept == picture.width
        && (rows.full, columns.full) == (picture.height.into(), picture.width.into());
    if untouched {
        return picture;
    }
    let filter = match filter {
        Resample::Nearest => return nearest(&picture, rows, columns),
        Resample::Box => Filter::Box,
        Resample::Bilinear => Filter::Bilinear,
        Resample::Hamming => Filter::Hamming,
        Resample::Bicubic => Filter::Bicubic,
        Resample::Lanczos => Filter::Lanczos,
    };
    let axis = |source: u32, Axis { full, offset, kept, .. }: Axis| resample::Axis { source, full, offset, kept };
    resample(&picture, axis(picture.height, rows), axis(picture.width, columns), filter)
}

/// Offsets up to which nearest adds up its positions one by one.
const MAX_STEPS: u64 = 1 << 20;

/// Pillow's nearest: the source pixel under the centre of each target pixel.
fn nearest(picture: &Picture, rows: Axis, columns: Axis) -> Picture {
    let indices = |source: u32, axis: Axis| -> Vec<usize> {
        let step = f64::from(source) / axis.full as f64;
        // Pillow adds the step up, and its rounding decides which neighbour a centre on an edge falls to.
        let mut position = step * 0.5;
        if axis.offset <= MAX_STEPS {
            (0..axis.offset).for_each(|_| position += step);
        } else {
            position = (axis.offset as f64 + 0.5) * step;
        }
        let mut indices = Vec::with_capacity(axis.kept as usize);
        for _ in 0..axis.kept {
            indices.push((position as usize).min(source.saturating_sub(1) as usize));
            position += step;
        }
        indices
    };
    let from_columns = indices(picture.width, columns);
    let row_bytes = picture.width as usize * picture.channels;
    let mut data = Vec::with_capacity(rows.kept as usize * columns.kept as usize * picture.channels);
    for row in indices(picture.height, rows) {
        let row = picture.data.get(row * row_bytes..).unwrap_or_default();
        for &column in &from_columns {
            data.extend_from_slice(
                row.get(column * picture.channels..(column + 1) * picture.channels).unwrap_or_default(),
            );
        }
    }
    Picture { width: columns.kept, height: rows.kept, channels: picture.channels, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1_000_000;

    fn gradient(width: u32, height: u32, channels: usize) -> Picture {
        let data = (0..height)
            .flat_map(|y| {
                (0..width).flat_map(move |x| (0..channels).map(move |c| ((x * 5 + y * 3) as usize + c * 40) as u8))
            })
            .collect();
        Picture { width, height, channels, data }
    }

    fn size(height: u32, width: u32) -> Size {
        Size { height, width }
    }

    #[test]
    fn sides_are_those_of_transformers() {
        for (height, width, edge, longest, expected) in [
            (300, 451, 256, None, (256, 384)),
            (451, 300, 256, None, (384, 256)),
            (100, 100, 33, None, (33, 33)),
            (1, 3, 2, None, (2, 6)),
            (300, 451, 256, Some(300), (200, 300)),
            (451, 300, 256, Some(300), (300, 200)),
            // What the reference gives: one less than the bound, and a picture that stays as it is.
            (93, 131, 64, Some(77), (55, 77)),
            (233, 90, 64, Some(120), (120, 46)),
            (150, 1, 64, Some(120), (150, 1)),
            (1, 65535, 256, None, (256, 16_776_960)),
        ] {
            assert_eq!(shortest_edge(size(height, width), edge, longest), expected, "{height}×{width} to {edge}");
        }
    }

    #[test]
    fn a_crop_rounds_as_transformers_does() {
        let kept = |axis: Axis| (axis.offset, axis.kept, axis.start);
        for (full, crop, expected) in [
            (10, 4, (3, 4, 0)),
            (11, 4, (3, 4, 0)),
            (10, 5, (2, 5, 0)),
            (4, 4, (0, 4, 0)),
            (3, 4, (0, 3, 1)),
            (4, 7, (0, 4, 2)),
        ] {
            assert_eq!(kept(axis(full, Some(crop)).unwrap()), expected, "{full} to {crop}");
        }
    }

    #[test]
    fn a_crop_after_a_resize_keeps_the_same_pixels() {
        for resample in [Resample::Bilinear, Resample::Bicubic, Resample::Lanczos, Resample::Box, Resample::Nearest] {
            for channels in [1, 3] {
                let whole = Geometry::ShortestEdge { edge: 41, longest: None, crop: None };
                let cropped = Geometry::ShortestEdge { edge: 41, longest: None, crop: Some(size(32, 30)) };
                let whole = resize(gradient(97, 61, channels), &whole, resample, LIMIT).unwrap();
                let cropped = resize(gradient(97, 61, channels), &cropped, resample, LIMIT).unwrap();
                assert_eq!((whole.width, whole.height), (65, 41));
                let (top, left) = ((41 - 32) / 2, (65 - 30) / 2);
                for (y, row) in cropped.data.chunks_exact(30 * channels).enumerate() {
                    let start = ((top + y) * 65 + left) * channels;
                    assert_eq!(row, &whole.data[start..start + 30 * channels], "{resample:?} row {y}");
                }
            }
        }
    }

    #[test]
    fn a_crop_larger_than_the_picture_is_black_around_it() {
        let crop = Some(size(5, 6));
        let got = resize(gradient(3, 2, 1), &Geometry::Keep { crop }, Resample::Bilinear, LIMIT).unwrap();
        let expected = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 10, 0, 0, 0, 3, 8, 13, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((got.width, got.height), (6, 5));
        assert_eq!(got.data, expected);
    }

    #[test]
    fn a_letterbox_stands_at_the_top_left() {
        let geometry = Geometry::Letterbox { size: size(8, 8), pad_value: 114 };
        let got = resize(gradient(40, 20, 3), &geometry, Resample::Bilinear, LIMIT).unwrap();
        assert_eq!((got.width, got.height, got.data.len()), (8, 8, 192));
        assert!(got.data[4 * 24..].iter().all(|&value| value == 114));
        assert!(got.data[..4 * 24].iter().any(|&value| value != 114));
        let thin = resize(gradient(1, 2000, 1), &geometry, Resample::Bilinear, LIMIT).unwrap();
        assert_eq!((thin.width, thin.height), (8, 8));
    }

    #[test]
    fn a_long_thin_picture_costs_no_more_than_its_crop() {
        let picture = gradient(1, 60_000, 3);
        let crop = Some(size(224, 224));
        let geometry = Geometry::ShortestEdge { edge: 256, longest: None, crop };
        let got = resize(picture.clone(), &geometry, Resample::Bicubic, LIMIT).unwrap();
        assert_eq!((got.width, got.height), (224, 224));
        let geometry = Geometry::ShortestEdge { edge: 256, longest: None, crop: None };
        let refused = resize(picture, &geometry, Resample::Bicubic, LIMIT).unwrap_err();
        assert!(matches!(refused, Refusal::TooLarge(text) if text.contains("becomes 256×15360000")));
    }

    #[test]
    fn a_shape_that_is_kept_is_rounded_to_multiples() {
        let check = |(height, width), expected| {
            let size = Size { height: 518, width: 518 };
            assert_eq!(nearest_multiple(Size { height, width }, size, 14), expected);
        };
        // The side whose factor is nearer to 1 decides for both.
        check((480, 640), (518, 686));
        check((640, 480), (686, 518));
        check((1000, 2000), (518, 1036));
        check((518, 518), (518, 518));
        check((1, 16_384), (14, 518));
    }
}

//! Maps that a graph gives for a picture, enlarged to the picture's own pixels, and pictures as PNG.
//!
//! Sampling is that of PyTorch's `interpolate` without `align_corners` and without antialiasing: the centre of a pixel of
//! the picture is looked up where it stood in the tensor, so that a crop or a letterbox is undone as well. Invariant: a
//! tap's places are inside the map.

use super::{Placed, Refusal};
use base64::Engine;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// Which places of an axis of the map make one pixel of the picture, and their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Taps<const N: usize> {
    pub(crate) places: [usize; N],
    pub(crate) weights: [f32; N],
}

/// An axis of the picture and of the map.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Along {
    Rows,
    Columns,
}

/// Where the centres of the picture's pixels stand on an axis of `side` places, the first place being 0.
fn centres(placed: &Placed, along: Along, side: usize) -> impl Iterator<Item = f64> {
    let placed = *placed;
    let (pixels, tensor) = match along {
        Along::Rows => (placed.source.height, placed.tensor.height),
        Along::Columns => (placed.source.width, placed.tensor.width),
    };
    (0..pixels).map(move |pixel| {
        let centre = f64::from(pixel) + 0.5;
        let (x, y) = placed.to_tensor((centre, centre));
        let at = if matches!(along, Along::Rows) { y } else { x };
        at / f64::from(tensor.max(1)) * side as f64 - 0.5
    })
}

/// Two neighbours, linearly. `side` is at least 1.
pub(crate) fn linear(placed: &Placed, along: Along, side: usize) -> Vec<Taps<2>> {
    let last = side.saturating_sub(1);
    let taps = centres(placed, along, side).map(|centre| {
        let centre = centre.clamp(0.0, last as f64);
        let low = centre as usize;
        let weight = (centre - low as f64) as f32;
        Taps { places: [low.min(last), (low + 1).min(last)], weights: [1.0 - weight, weight] }
    });
    taps.collect()
}

/// Four neighbours, by cubic convolution with PyTorch's -0.75. `side` is at least 1.
pub(crate) fn cubic(placed: &Placed, along: Along, side: usize) -> Vec<Taps<4>> {
    const A: f64 = -0.75;
    let last = side.saturating_sub(1) as f64;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let taps = centres(placed, along, side).map(|centre| {
        let low = centre.floor();
        let part = centre - low;
        let weights = [far(part + 1.0), near(part), near(1.0 - part), far(2.0 - part)].map(|weight| weight as f32);
        let places = [low - 1.0, low, low + 1.0, low + 2.0].map(|place| place.clamp(0.0, last) as usize);
        Taps { places, weights }
    });
    taps.collect()
}

/// A grey picture as PNG in base64. `pixels` has `width * height` bytes.
///
/// # Errors
/// Where the encoder refuses, as for a picture without pixels.
pub(crate) fn png(pixels: &[u8], width: u32, height: u32) -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(pixels, width, height, ExtendedColorType::L8)
        .map_err(|error| Refusal::Bad(format!("the answer's picture cannot be encoded: {error}")))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;

    fn stretched(pixels: u32) -> Placed {
        Placed::stretched(Size { height: pixels, width: 7 }, Size { height: 16, width: 16 })
    }

    /// `expected`: numbers of PyTorch's `interpolate` of [0, 1, 4, 9].
    #[track_caller]
    fn check<const N: usize>(taps: &[Taps<N>], expected: &[f32]) {
        let map = [0.0f32, 1.0, 4.0, 9.0];
        let got =
            taps.iter().map(|taps| taps.places.iter().zip(taps.weights).map(|(&at, by)| map[at] * by).sum::<f32>());
        let got: Vec<f32> = got.collect();
        assert_eq!(got.len(), expected.len());
        for (one, expected) in got.iter().zip(expected) {
            assert!((one - expected).abs() < 1e-5, "{got:?}");
        }
    }

    #[test]
    fn enlarging_is_that_of_the_reference() {
        let eight = [0.0, 0.25, 0.75, 1.75, 3.25, 5.25, 7.75, 9.0];
        check(&linear(&stretched(8), Along::Rows, 4), &eight);
        check(&linear(&stretched(2), Along::Rows, 4), &[0.5, 6.5]);
        check(&linear(&stretched(4), Along::Rows, 4), &[0.0, 1.0, 4.0, 9.0]);
        check(&cubic(&stretched(4), Along::Rows, 4), &[0.0, 1.0, 4.0, 9.0]);
        // Weights at a half: -3/32, 19/32, 19/32, -3/32.
        check(&cubic(&stretched(2), Along::Rows, 4), &[(19.0 - 12.0) / 32.0, (19.0 * 13.0 - 30.0) / 32.0]);
    }

    #[test]
    fn a_map_of_one_place_is_the_same_everywhere() {
        for taps in linear(&stretched(3), Along::Columns, 1) {
            assert_eq!(taps.places, [0, 0]);
        }
        for taps in cubic(&stretched(3), Along::Columns, 1) {
            assert_eq!(taps.places, [0; 4]);
            assert!((taps.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }
}

//! Encoded bytes to pixels, as Pillow's `convert("RGB")` or `convert("L")` gives them after `exif_transpose`.
//!
//! Invariants: the format is told from the content, never from a name; width and height are read from the header and
//! checked before anything is decoded; a picture that ends early is refused, not half grey. Of an animation the first
//! frame is taken. Differs from Pillow in one place: 16-bit grey keeps its high byte, as 16-bit colour does in both,
//! where Pillow clips at 255 and so gives a white picture.

use super::{Picture, Refusal, jpeg};
use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};
use std::io::Cursor;

/// What a decoder may allocate beside the pixels: tables, metadata, a row.
const OVERHEAD_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
}

/// The pixels of `bytes`, upright; one grey channel where `grey`, else RGB.
///
/// # Errors
/// [`Refusal::TooLarge`] where the header names more than `max_pixels` pixels.
pub(crate) fn decode(bytes: &[u8], grey: bool, max_pixels: u64) -> Result<Picture, Refusal> {
    let format = sniff(bytes)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(OVERHEAD_BYTES));
    let broken = |error| refuse(format, error);
    let input = Cursor::new(bytes);
    let mut decoder: Box<dyn ImageDecoder + '_> = match format {
        Format::Png => Box::new(PngDecoder::with_limits(input, limits.clone()).map_err(broken)?),
        Format::Jpeg => return to_picture(jpeg::decode(bytes, max_pixels)?, grey),
        Format::WebP => Box::new(WebPDecoder::new(input).map_err(broken)?),
        Format::Gif => Box::new(GifDecoder::new(input).map_err(broken)?),
        Format::Bmp => Box::new(BmpDecoder::new(input).map_err(broken)?),
    };
    let (width, height) = decoder.dimensions();
    check_size(width, height, max_pixels)?;
    decoder.set_limits(limits).map_err(broken)?;
    // Metadata that cannot be read does not make the pixels unusable: Pillow shows such a picture as it lies.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut pixels = DynamicImage::from_decoder(decoder).map_err(broken)?;
    pixels.apply_orientation(orientation);
    to_picture(pixels, grey)
}

/// Width and height of a picture as it is looked at; `None` where it cannot be decoded.
pub fn picture_size(bytes: &[u8], max_pixels: u64) -> Option<(u32, u32)> {
    let picture = decode(bytes, true, max_pixels).ok()?;
    Some((picture.width, picture.height))
}

pub(super) fn check_size(width: u32, height: u32, max_pixels: u64) -> Result<(), Refusal> {
    if width == 0 || height == 0 {
        return Err(Refusal::Bad(format!("the picture is {width}×{height} pixels; expected at least 1×1")));
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(Refusal::TooLarge(format!(
            "the picture's dimensions are {width}×{height}, more than max_pixels = {max_pixels} together; send a smaller picture"
        )));
    }
    Ok(())
}

fn sniff(bytes: &[u8]) -> Result<Format, Refusal> {
    let found = match bytes {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => return Ok(Format::Png),
        [0xff, 0xd8, 0xff, ..] => return Ok(Format::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => return Ok(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => return Ok(Format::Gif),
        [b'B', b'M', ..] => return Ok(Format::Bmp),
        [] => "nothing",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF file",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "a HEIF, AVIF or video file",
        [b'%', b'P', b'D', b'F', ..] => "a PDF file",
        _ => match bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start() {
            [b'<', ..] => "an SVG, XML or HTML document",
            [b'{' | b'[', ..] => "JSON text",
            _ => "bytes of no known picture format",
        },
    };
    Err(Refusal::Bad(format!("expected a PNG, JPEG, WebP, GIF or BMP picture, got {found}")))
}

fn refuse(format: Format, error: ImageError) -> Refusal {
    let name = match format {
        Format::Png => "PNG",
        Format::Jpeg => "JPEG",
        Format::WebP => "WebP",
        Format::Gif => "GIF",
        Format::Bmp => "BMP",
    };
    match error {
        ImageError::Limits(_) => Refusal::TooLarge(format!(
            "decoding the {name} picture takes more memory than allowed, send a smaller picture"
        )),
        ImageError::Decoding(_)
        | ImageError::Encoding(_)
        | ImageError::Parameter(_)
        | ImageError::Unsupported(_)
        | ImageError::IoError(_) => Refusal::Bad(format!("the {name} picture cannot be decoded: {error}")),
    }
}

fn to_picture(pixels: DynamicImage, grey: bool) -> Result<Picture, Refusal> {
    let (width, height) = (pixels.width(), pixels.height());
    let high = |sample: u16| (sample >> 8) as u8;
    // Alpha is dropped, not blended, as Pillow's `convert` does.
    let (data, is_grey) = match pixels {
        DynamicImage::ImageLuma8(pixels) => (pixels.into_raw(), true),
        DynamicImage::ImageLumaA8(pixels) => (drop_alpha::<_, 2, 1>(pixels.as_raw(), |sample| sample), true),
        DynamicImage::ImageLuma16(pixels) => (pixels.as_raw().iter().map(|&sample| high(sample)).collect(), true),
        DynamicImage::ImageLumaA16(pixels) => (drop_alpha::<_, 2, 1>(pixels.as_raw(), high), true),
        DynamicImage::ImageRgb8(pixels) => (pixels.into_raw(), false),
        DynamicImage::ImageRgba8(pixels) => (drop_alpha::<_, 4, 3>(pixels.as_raw(), |sample| sample), false),
        DynamicImage::ImageRgb16(pixels) => (pixels.as_raw().iter().map(|&sample| high(sample)).collect(), false),
        DynamicImage::ImageRgba16(pixels) => (drop_alpha::<_, 4, 3>(pixels.as_raw(), high), false),
        // The enum is open and its float variants come from formats that are not read here.
        _ => return Err(Refusal::Bad("the picture has samples that are neither 8 nor 16 bits".to_owned())),
    };
    let (data, channels) = match (is_grey, grey) {
        (true, true) => (data, 1),
        (false, false) => (data, 3),
        (true, false) => (data.iter().flat_map(|&sample| [sample; 3]).collect(), 3),
        (false, true) => (data.as_chunks::<3>().0.iter().map(luma).collect(), 1),
    };
    Ok(Picture { width, height, channels, data })
}

fn drop_alpha<S: Copy, const FROM: usize, const TO: usize>(samples: &[S], narrow: impl Fn(S) -> u8) -> Vec<u8> {
    let pixels = samples.as_chunks::<FROM>().0;
    let mut data = Vec::with_capacity(pixels.len() * TO);
    for pixel in pixels {
        data.extend(pixel.iter().take(TO).map(|&sample| narrow(sample)));
    }
    data
}

/// Pillow's `L`: ITU-R 601-2 luma in 16-bit fixed point.
fn luma(&[red, green, blue]: &[u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgb, RgbImage};

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([(x * 6) as u8, (y * 8) as u8, ((x * y) % 251) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[track_caller]
    fn refused(bytes: &[u8], max_pixels: u64, expected: &str) {
        match decode(bytes, false, max_pixels) {
            Err(Refusal::TooLarge(text)) => assert!(format!("TooLarge: {text}").contains(expected), "{text}"),
            Err(Refusal::Bad(text)) => assert!(text.contains(expected), "{text}"),
            Ok(picture) => panic!("{}×{} was decoded, expected {expected:?}", picture.width, picture.height),
        }
    }

    const ALL: [ImageFormat; 5] =
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

    #[test]
    fn every_format_is_told_from_its_content() {
        for format in ALL {
            let picture = decode(&encoded(format), false, 10_000).unwrap();
            assert_eq!((picture.width, picture.height, picture.channels), (40, 30, 3), "{format:?}");
            assert_eq!(picture.data.len(), 40 * 30 * 3);
        }
    }

    #[test]
    fn dimensions_are_checked_before_decoding() {
        for format in ALL {
            refused(
                &encoded(format),
                1199,
                "TooLarge: the picture's dimensions are 40×30, more than max_pixels = 1199",
            );
        }
        // Headers alone: nothing follows that could be decoded.
        let mut png = encoded(ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        refused(&png, 100_000_000, "TooLarge: the picture's dimensions are 50000×50000");
        let mut gif = encoded(ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[255; 4]);
        refused(&gif, 100_000_000, "TooLarge: the picture's dimensions are 65535×65535");
        gif[6..10].copy_from_slice(&[0; 4]);
        refused(&gif, 100_000_000, "expected at least 1×1");
        let mut jpeg = encoded(ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[255; 4]);
        refused(&jpeg, 100_000_000, "TooLarge: the picture's dimensions are 65535×65535");
        let mut bmp = encoded(ImageFormat::Bmp);
        bmp[18..26].copy_from_slice(&[255, 255, 0, 0, 255, 255, 0, 0]);
        refused(&bmp, 100_000_000, "TooLarge: the picture's dimensions are 65535×65535");
        bmp[18..26].copy_from_slice(&[255, 255, 255, 0x7f, 255, 255, 255, 0x7f]);
        refused(&bmp, 100_000_000, "Image too large");
        // Without loss: behind a byte of signature, 14 bits of each size less 1.
        let mut webp = encoded(ImageFormat::WebP);
        let frame = webp.windows(4).position(|chunk| chunk == b"VP8L").unwrap();
        webp[frame + 9..frame + 13].copy_from_slice(&[0xfe, 0xbf, 0xff, 0x0f]);
        refused(&webp, 100_000_000, "TooLarge: the picture's dimensions are 16383×16383");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }

    #[test]
    fn a_gif_frame_larger_than_its_screen_allocates_no_more_than_allowed() {
        let mut gif = encoded(ImageFormat::Gif);
        let frame = gif.iter().position(|&byte| byte == 0x2c).unwrap();
        gif[frame + 5..frame + 9].copy_from_slice(&[255; 4]);
        refused(&gif, 10_000, "TooLarge: decoding the GIF picture takes more memory");
    }

    #[test]
    fn a_picture_that_ends_early_is_refused() {
        for format in ALL {
            let bytes = encoded(format);
            for keep in [bytes.len() / 4, bytes.len() / 2, bytes.len() * 3 / 4] {
                let got = decode(&bytes[..keep], false, 10_000);
                assert!(matches!(got, Err(Refusal::Bad(_))), "{format:?} cut to {keep} of {}", bytes.len());
            }
        }
        let jpeg = encoded(ImageFormat::Jpeg);
        refused(&jpeg[..jpeg.len() - 1], 10_000, "ends early");
        let trailing = [jpeg.as_slice(), b"junk"].concat();
        assert!(decode(&trailing, false, 10_000).is_ok());
    }

    #[test]
    fn what_is_no_picture_is_named() {
        for (bytes, expected) in [
            (b"".as_slice(), "got nothing"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG, XML or HTML document"),
            (b"\xef\xbb\xbf \n<!doctype html>", "an SVG, XML or HTML document"),
            (b"II\x2a\x00\x08\x00\x00\x00", "a TIFF file"),
            (b"\x00\x00\x00\x20ftypheic", "a HEIF"),
            (b"{\"b64\": 1}", "JSON"),
            (b"\x01\x02\x03", "no known picture format"),
            (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
            (b"\xff\xd8\xff", "cannot be decoded"),
            (b"BM", "cannot be decoded"),
            (b"GIF89a", "cannot be decoded"),
            (b"RIFF\x00\x00\x00\x00WEBP", "cannot be decoded"),
        ] {
            refused(bytes, 10_000, expected);
        }
    }

    #[test]
    fn changed_bytes_never_panic() {
        for format in ALL {
            let bytes = encoded(format);
            for at in 0..bytes.len().min(400) {
                for value in [0, 255, bytes[at] ^ 0x10] {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    decode(&changed, at % 2 == 0, 100_000).ok();
                }
            }
        }
    }

    #[test]
    fn grey_is_pillows_luma() {
        let bytes = encoded(ImageFormat::Png);
        let colour = decode(&bytes, false, 10_000).unwrap();
        let grey = decode(&bytes, true, 10_000).unwrap();
        assert_eq!(grey.channels, 1);
        let expected: Vec<u8> = colour.data.as_chunks::<3>().0.iter().map(luma).collect();
        assert_eq!(grey.data, expected);
        assert_eq!(luma(&[255, 255, 255]), 255);
        assert_eq!(luma(&[10, 200, 30]), 124);
    }
}

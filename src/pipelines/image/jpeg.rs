//! JPEG files to pixels, by zune-jpeg without the wrapper that `image` puts around it.
//!
//! The wrapper reads the headers three times and hands the coded data over through a reader that copies each word by a
//! call; that is a fifteenth of a picture's time. Pixels are the same.

use super::Refusal;
use super::decode::check_size;
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use std::io::{BufRead, Read, Seek, SeekFrom};
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

/// The pixels of a file, upright: grey ones where the file has no colour, else RGB.
///
/// # Errors
/// [`Refusal::TooLarge`] where the header names more than `max_pixels` pixels.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage, Refusal> {
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(Input { bytes, at: 0 }, options);
    decoder.decode_headers().map_err(refuse)?;
    let unknown = || Refusal::Bad("the JPEG picture cannot be decoded: it has no size".to_owned());
    let (width, height) = decoder.dimensions().ok_or_else(unknown)?;
    let (width, height) = (width as u32, height as u32);
    check_size(width, height, max_pixels)?;
    if !is_complete(bytes) {
        return Err(Refusal::Bad("the JPEG picture ends early; send the whole file".to_owned()));
    }
    let is_grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colours = if is_grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let mut data = vec![0; decoder.output_buffer_size().ok_or_else(unknown)?];
    decoder.decode_into(&mut data).map_err(refuse)?;
    let pixels = match is_grey {
        true => GrayImage::from_raw(width, height, data).map(DynamicImage::ImageLuma8),
        false => RgbImage::from_raw(width, height, data).map(DynamicImage::ImageRgb8),
    };
    let mut pixels = pixels.ok_or_else(unknown)?;
    // Metadata that cannot be read does not make the pixels unusable: Pillow shows such a picture as it lies.
    if let Some(orientation) = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif)) {
        pixels.apply_orientation(orientation);
    }
    Ok(pixels)
}

fn refuse(error: DecodeErrors) -> Refusal {
    Refusal::Bad(format!("the JPEG picture cannot be decoded: {error:?}"))
}

/// Whether the file's markers reach the end of the image.
///
/// The decoder paints what is missing grey and succeeds; libjpeg under Pillow refuses, and so do we.
fn is_complete(bytes: &[u8]) -> bool {
    // The start marker has been seen.
    let mut rest = bytes.get(2..).unwrap_or_default();
    loop {
        let Some(at) = memchr::memchr(0xff, rest) else { return false };
        rest = rest.get(at + 1..).unwrap_or_default();
        let Some((&marker, after)) = rest.split_first() else { return false };
        match marker {
            0xd9 => return true,
            // A fill byte: the marker's code may be the next one.
            0xff => {}
            // A stuffed byte of the coded data, a restart, or a marker without content.
            0x00 | 0x01 | 0xd0..=0xd8 => rest = after,
            // A segment: its length counts itself. Coded data follows SOS and is searched for the next marker.
            _ => {
                let [high, low, ..] = after else { return false };
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(after) = after.get(length.max(2)..) else { return false };
                rest = after;
            }
        }
    }
}

/// What the decoder reads: mostly words of four bytes, which are one instruction where the length is known.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    #[inline(always)]
    fn take<const N: usize>(&mut self, target: &mut [u8; N]) -> Option<usize> {
        *target = *self.bytes.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(N)
    }
}

impl Read for Input<'_> {
    #[inline(always)]
    fn read(&mut self, target: &mut [u8]) -> std::io::Result<usize> {
        if let Some(read) = <&mut [u8; 4]>::try_from(&mut *target).ok().and_then(|word| self.take(word)) {
            return Ok(read);
        }
        if let Some(read) = <&mut [u8; 1]>::try_from(&mut *target).ok().and_then(|byte| self.take(byte)) {
            return Ok(read);
        }
        let read = self.bytes.get(self.at..).unwrap_or_default().read(target)?;
        self.at += read;
        Ok(read)
    }
}

impl BufRead for Input<'_> {
    #[inline(always)]
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        Ok(self.bytes.get(self.at..).unwrap_or_default())
    }

    #[inline(always)]
    fn consume(&mut self, amount: usize) {
        self.at = self.at.saturating_add(amount);
    }
}

impl Seek for Input<'_> {
    #[inline(always)]
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => usize::try_from(at).ok(),
            SeekFrom::Current(by) => isize::try_from(by).ok().and_then(|by| self.at.checked_add_signed(by)),
            SeekFrom::End(by) => isize::try_from(by).ok().and_then(|by| self.bytes.len().checked_add_signed(by)),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ImageFormat;
    use std::io::Cursor;

    #[test]
    fn pixels_are_those_of_the_wrapped_decoder() {
        let colour =
            RgbImage::from_fn(75, 41, |x, y| image::Rgb([(x * 3) as u8, (y * 6) as u8, ((x * y) % 251) as u8]));
        for picture in [DynamicImage::ImageRgb8(colour.clone()), DynamicImage::ImageRgb8(colour).to_luma8().into()] {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
            let bytes = bytes.into_inner();
            let wrapped = image::load_from_memory(&bytes).unwrap();
            assert!(decode(&bytes, 10_000).unwrap() == wrapped);
        }
    }

    #[test]
    fn the_input_reads_and_seeks_as_a_cursor_does() {
        let bytes: Vec<u8> = (0..40).collect();
        let (mut input, mut cursor) = (Input { bytes: &bytes, at: 0 }, Cursor::new(&bytes));
        for (length, seek) in [
            (4, SeekFrom::Current(-3)),
            (1, SeekFrom::Start(7)),
            (5, SeekFrom::End(-2)),
            (4, SeekFrom::Current(0)),
            (1, SeekFrom::Start(90)),
            (4, SeekFrom::Current(-1000)),
            (1, SeekFrom::End(-1000)),
            (3, SeekFrom::End(0)),
        ] {
            let (mut ours, mut theirs) = (vec![0; length], vec![0; length]);
            assert_eq!(input.read(&mut ours).unwrap(), cursor.read(&mut theirs).unwrap());
            assert_eq!((ours, input.fill_buf().unwrap()), (theirs, cursor.fill_buf().unwrap()));
            assert_eq!(input.seek(seek).ok(), cursor.seek(seek).ok(), "{seek:?}");
        }
    }
}

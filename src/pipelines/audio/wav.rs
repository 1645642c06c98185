//! WAV: the chunks of a RIFF file to samples.
//!
//! Invariants: nothing is allocated by what a header claims, only by what is there; sizes are checked before samples are
//! read. Integers become `sample / 2^(bits - 1)`, as ffmpeg and libsndfile give them. Read here rather than by a crate
//! because the format is this small, and readers of it tend to believe its sizes.

use super::decode::{Header, Mono, Refusal};

/// How one sample is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sample {
    U8,
    I16,
    I24,
    I32,
    F32,
    F64,
}

impl Sample {
    fn bytes(self) -> usize {
        match self {
            Sample::U8 => 1,
            Sample::I16 => 2,
            Sample::I24 => 3,
            Sample::I32 | Sample::F32 => 4,
            Sample::F64 => 8,
        }
    }

    /// The sample of its `bytes()` bytes.
    fn read(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Sample::U8, [a]) => (f32::from(*a) - 128.0) / 128.0,
            (Sample::I16, [a, b]) => f32::from(i16::from_le_bytes([*a, *b])) / 32_768.0,
            (Sample::I24, [a, b, c]) => i32::from_le_bytes([0, *a, *b, *c]) as f32 / 2_147_483_648.0,
            (Sample::I32, [a, b, c, d]) => i32::from_le_bytes([*a, *b, *c, *d]) as f32 / 2_147_483_648.0,
            (Sample::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
            (Sample::F64, [a, b, c, d, e, f, g, h]) => f64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as f32,
            _ => 0.0,
        }
    }
}

struct Format {
    sample: Sample,
    channels: usize,
    rate: u32,
}

/// The sound of a file that begins with `RIFF....WAVE`.
///
/// # Errors
/// Where it is malformed, ends early, has samples of another kind or exceeds a limit.
pub(super) fn read(bytes: &[u8], max_seconds: u64) -> Result<Mono, Refusal> {
    let mut rest = bytes.get(12..).unwrap_or_default();
    let mut format = None;
    loop {
        let [a, b, c, d, e, f, g, h, after @ ..] = rest else {
            return Err(bad("it has no data"));
        };
        let (name, length) = ([*a, *b, *c, *d], u32::from_le_bytes([*e, *f, *g, *h]));
        match &name {
            b"fmt " => {
                let chunk = usize::try_from(length).ok().and_then(|length| after.get(..length));
                format = Some(read_format(chunk.ok_or_else(|| bad("it ends in its header"))?)?);
            }
            b"data" => {
                let format = format.ok_or_else(|| bad("its format does not come before its data"))?;
                return read_data(&format, after, length, max_seconds);
            }
            _ => {}
        }
        // Chunks begin at even places.
        let skip = u64::from(length) + u64::from(length % 2);
        rest = usize::try_from(skip).ok().and_then(|skip| after.get(skip..)).ok_or_else(|| bad("it has no data"))?;
    }
}

fn read_format(chunk: &[u8]) -> Result<Format, Refusal> {
    let [
        tag_low,
        tag_high,
        channels_low,
        channels_high,
        r0,
        r1,
        r2,
        r3,
        _,
        _,
        _,
        _,
        align_low,
        align_high,
        bits_low,
        bits_high,
        more @ ..,
    ] = chunk
    else {
        return Err(bad("its format is too short"));
    };
    let rate = u32::from_le_bytes([*r0, *r1, *r2, *r3]);
    let channels = usize::from(u16::from_le_bytes([*channels_low, *channels_high]));
    let align = usize::from(u16::from_le_bytes([*align_low, *align_high]));
    let bits = u16::from_le_bytes([*bits_low, *bits_high]);
    let tag = match (u16::from_le_bytes([*tag_low, *tag_high]), more) {
        // The extensible format: the first two bytes of its GUID are the tag.
        (0xfffe, [_, _, _, _, _, _, _, _, low, high, ..]) => u16::from_le_bytes([*low, *high]),
        (tag, _) => tag,
    };
    let sample = match (tag, bits) {
        (1, 8) => Sample::U8,
        (1, 16) => Sample::I16,
        (1, 24) => Sample::I24,
        (1, 32) => Sample::I32,
        (3, 32) => Sample::F32,
        (3, 64) => Sample::F64,
        _ => {
            return Err(Refusal::Bad(format!(
                "the WAV file has samples of {bits} bits in format {tag}; expected PCM of 8, 16, 24 or 32 bits, or float"
            )));
        }
    };
    Header { rate, channels, frames: None }.check(u64::MAX)?;
    if align != channels * sample.bytes() {
        return Err(bad("its block size is not that of its channels"));
    }
    Ok(Format { sample, channels, rate })
}

fn read_data(format: &Format, data: &[u8], length: u32, max_seconds: u64) -> Result<Mono, Refusal> {
    let frame = format.channels * format.sample.bytes();
    // Programs that write to a pipe do not know the length: they leave one of these, and the data goes on to the end.
    let unknown = length == u32::MAX || length == 0;
    let claimed = if unknown { data.len() as u64 } else { u64::from(length) };
    let header = Header { rate: format.rate, channels: format.channels, frames: Some(claimed / frame as u64) };
    header.check(max_seconds)?;
    let data = match usize::try_from(claimed).ok().and_then(|claimed| data.get(..claimed)) {
        Some(data) => data,
        None => {
            return Err(Refusal::Bad(format!(
                "the WAV file ends early: its header tells {claimed} bytes of sound, {} are there; send the whole file",
                data.len()
            )));
        }
    };
    let mut mono = Mono::new(header, max_seconds);
    let mut mixed = Vec::with_capacity(format.channels);
    mono.reserve(data.len() / frame);
    for frame in data.chunks_exact(frame) {
        mixed.clear();
        mixed.extend(frame.chunks_exact(format.sample.bytes()).map(|bytes| format.sample.read(bytes)));
        mono.push(&mixed)?;
    }
    Ok(mono)
}

fn bad(problem: &str) -> Refusal {
    Refusal::Bad(format!("the WAV file cannot be read: {problem}"))
}

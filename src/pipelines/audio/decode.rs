//! Encoded bytes to mono samples at their own rate: WAV, FLAC, MP3 and OGG Vorbis.
//!
//! Invariants: the format is told from the content, never from a name; rate, channels and length are checked before
//! anything is allocated where the header tells them, and the length is counted while the sound is decoded; a sound that
//! ends early is refused where the file tells its length; channels are mixed by their mean; every sample is finite. Titles
//! and pictures inside the file are never parsed.

use super::{Sound, vorbis, wav};
use crate::pipelines::PipelineError;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatOptions, FormatReader, Track};
use symphonia::core::io::{MediaSource, MediaSourceStream, ReadOnlySource};
use symphonia::default::codecs::{FlacDecoder, MpaDecoder, VorbisDecoder};
use symphonia::default::formats::{FlacReader, MpaReader, OggReader};

const MAX_CHANNELS: usize = 8;
pub(super) const MIN_RATE: u32 = 1_000;
pub(super) const MAX_RATE: u32 = 384_000;
/// Above this rate the seconds that are taken shrink, so that the limit on the length bounds the memory too.
const RATE_OF_LIMIT: u64 = 48_000;
const CONTRADICTION: &str = "its contents contradict each other";
/// Samples of one frame of MP3: how far its headers' count may be off.
const MP3_FRAME: u64 = 1_152;

/// Why a sound is refused, before it is known which item of the request it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Refusal {
    TooLarge(String),
    Bad(String),
}

impl From<Refusal> for PipelineError {
    fn from(refusal: Refusal) -> PipelineError {
        match refusal {
            Refusal::TooLarge(problem) => PipelineError::TooLarge { index: 0, problem },
            Refusal::Bad(problem) => PipelineError::Item { index: 0, problem },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Wav,
    Flac,
    Mp3,
    Ogg,
}

/// What a file tells of its sound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Hz.
    pub(super) rate: u32,
    pub(super) channels: usize,
    /// Samples of each channel, where the file tells.
    pub(super) frames: Option<u64>,
}

impl Header {
    /// # Errors
    /// Names the limit that is exceeded.
    pub(super) fn check(&self, max_seconds: u64) -> Result<(), Refusal> {
        let Header { rate, channels, frames } = *self;
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(Refusal::Bad(format!("the sound has {channels} channels; expected 1 to {MAX_CHANNELS}")));
        }
        if !(MIN_RATE..=MAX_RATE).contains(&rate) {
            return Err(Refusal::Bad(format!(
                "the sound has {rate} samples a second; expected {MIN_RATE} to {MAX_RATE}"
            )));
        }
        match frames {
            Some(frames) if frames > max_frames(rate, max_seconds) => Err(too_long(rate, max_seconds)),
            _ => Ok(()),
        }
    }
}

fn max_frames(rate: u32, max_seconds: u64) -> u64 {
    u64::from(rate).min(RATE_OF_LIMIT).saturating_mul(max_seconds)
}

fn too_long(rate: u32, max_seconds: u64) -> Refusal {
    let seconds = max_frames(rate, max_seconds) / u64::from(rate.max(1));
    let at =
        if u64::from(rate) > RATE_OF_LIMIT { format!(", which are {seconds} at {rate} Hz") } else { String::new() };
    Refusal::TooLarge(format!("the sound is longer than max_audio_seconds = {max_seconds}{at}; send it in parts"))
}

/// Mixes frames to one channel and counts them.
pub(super) struct Mono {
    rate: u32,
    max_seconds: u64,
    max_frames: u64,
    samples: Vec<f32>,
}

impl Mono {
    pub(super) fn new(header: Header, max_seconds: u64) -> Mono {
        let max_frames = max_frames(header.rate, max_seconds);
        Mono { rate: header.rate, max_seconds, max_frames, samples: Vec::new() }
    }

    /// `frames` has been checked against the limit, or is of what lies in memory anyway.
    pub(super) fn reserve(&mut self, frames: usize) {
        self.samples.reserve_exact(frames);
    }

    /// One sample of each channel.
    ///
    /// # Errors
    /// Where the sound is longer than the limit.
    pub(super) fn push(&mut self, frame: &[f32]) -> Result<(), Refusal> {
        if self.samples.len() as u64 >= self.max_frames {
            return Err(too_long(self.rate, self.max_seconds));
        }
        let mixed = match frame {
            [sample] => *sample,
            frame => frame.iter().sum::<f32>() / frame.len().max(1) as f32,
        };
        self.samples.push(mixed);
        Ok(())
    }

    fn finish(self) -> Result<Sound, Refusal> {
        if self.samples.is_empty() {
            return Err(Refusal::Bad("the sound is empty".to_owned()));
        }
        if !self.samples.iter().all(|sample| sample.is_finite()) {
            return Err(Refusal::Bad("the sound has samples that are no finite numbers".to_owned()));
        }
        Ok(Sound { samples: self.samples, rate: self.rate })
    }
}

/// The sound of `bytes`, at most `max_seconds` long.
///
/// # Errors
/// [`Refusal::TooLarge`] where it is longer, [`Refusal::Bad`] says what is wrong with it.
pub(super) fn decode(bytes: &[u8], max_seconds: u64) -> Result<Sound, Refusal> {
    let bytes = skip_id3(bytes);
    let format = sniff(bytes)?;
    // The decoders are written for hostile bytes but assert what they hold for true; such a file is the sender's fault.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        Format::Wav => wav::read(bytes, max_seconds),
        Format::Flac => flac(bytes, max_seconds),
        Format::Mp3 => mp3(bytes, max_seconds),
        Format::Ogg => ogg(bytes, max_seconds),
    }));
    decoded.unwrap_or_else(|_| Err(broken(format, CONTRADICTION)))?.finish()
}

/// What follows the titles and pictures that many programs put in front: a header of ten bytes whose last four are the
/// length, seven bits each (<https://id3.org/id3v2.4.0-structure>, 3.1).
fn skip_id3(bytes: &[u8]) -> &[u8] {
    let [b'I', b'D', b'3', _, _, flags, a, b, c, d, ..] = bytes else { return bytes };
    let length = [a, b, c, d].iter().fold(0, |length, &&byte| length << 7 | usize::from(byte & 0x7f));
    let footer = if flags & 0x10 != 0 { 10 } else { 0 };
    bytes.get(10 + length + footer..).unwrap_or_default()
}

fn sniff(bytes: &[u8]) -> Result<Format, Refusal> {
    let found = match bytes {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', ..] => return Ok(Format::Wav),
        [b'f', b'L', b'a', b'C', ..] => return Ok(Format::Flac),
        [b'O', b'g', b'g', b'S', ..] => return Ok(Format::Ogg),
        [0xff, second, ..] if second & 0xf6 == 0xf0 => "an AAC stream",
        // Eleven bits of sync, then the version (1 is none) and layer III.
        [0xff, second, ..] if second & 0xe6 == 0xe2 && second & 0x18 != 0x08 => return Ok(Format::Mp3),
        [] => "nothing",
        [b'R', b'F', b'6', b'4', ..] => "an RF64 file",
        [b'F', b'O', b'R', b'M', ..] => "an AIFF file",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an MP4 or M4A file",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => "a WebM or Matroska file",
        [0xff, 0xd8, ..] | [0x89, b'P', b'N', b'G', ..] => "a picture",
        _ => match bytes.trim_ascii_start() {
            [b'{' | b'[', ..] => "JSON text",
            [b'<', ..] => "an XML or HTML document",
            _ => "bytes of no known sound format",
        },
    };
    Err(Refusal::Bad(format!("expected a WAV, FLAC, MP3 or OGG Vorbis sound, got {found}")))
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Wav => "WAV",
        Format::Flac => "FLAC",
        Format::Mp3 => "MP3",
        Format::Ogg => "OGG",
    }
}

fn broken(format: Format, problem: impl std::fmt::Display) -> Refusal {
    Refusal::Bad(format!("the {} sound cannot be decoded: {problem}", name(format)))
}

fn refuse(format: Format, error: &Error) -> Refusal {
    match error {
        Error::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => ends_early(format),
        Error::LimitError(_) => {
            Refusal::TooLarge(format!("decoding the {} sound takes more than allowed", name(format)))
        }
        Error::ResetRequired => broken(format, "it has several streams one after the other; send one"),
        error => broken(format, error),
    }
}

fn ends_early(format: Format) -> Refusal {
    Refusal::Bad(format!("the {} sound ends early; send the whole file", name(format)))
}

fn stream<'s>(source: impl MediaSource + 's) -> MediaSourceStream<'s> {
    MediaSourceStream::new(Box::new(source), Default::default())
}

/// A FLAC file: `fLaC`, then blocks of metadata, the first of them about the sound, then frames (RFC 9639, 8).
fn flac(bytes: &[u8], max_seconds: u64) -> Result<Mono, Refusal> {
    const INFO_BYTES: usize = 34;
    let refuse = |error: Error| refuse(Format::Flac, &error);
    let cut = || ends_early(Format::Flac);
    let mut rest = bytes.get(4..).ok_or_else(cut)?;
    let mut info: Option<[u8; INFO_BYTES]> = None;
    loop {
        let [kind, a, b, c, after @ ..] = rest else { return Err(cut()) };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (block, after) = after.split_at_checked(length).ok_or_else(cut)?;
        if kind & 0x7f == 0 && info.is_none() {
            info = block.try_into().ok();
        }
        rest = after;
        if kind & 0x80 != 0 {
            break;
        }
    }
    let Some(info) = info else { return Err(broken(Format::Flac, "it does not tell its format")) };
    // 20 bits of rate, 3 of channels - 1, 5 of bits - 1, 36 of samples, then the checksum.
    let [_, _, _, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = info;
    let packed = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let frames = Some(packed & ((1 << 36) - 1)).filter(|&frames| frames > 0);
    let header = Header { rate: (packed >> 44) as u32, channels: (packed >> 41 & 7) as usize + 1, frames };
    header.check(max_seconds)?;
    let lone = [b"fLaC".as_slice(), &[0x80, 0, 0, INFO_BYTES as u8], &info].concat();
    let source = ReadOnlySource::new(Cursor::new(lone).chain(Cursor::new(rest)));
    let mut reader = FlacReader::try_new(stream(source), FormatOptions::default()).map_err(refuse)?;
    let (_, parameters) = audio_track(&reader, Format::Flac)?;
    let mut decoder = FlacDecoder::try_new(&parameters, &AudioDecoderOptions::default()).map_err(refuse)?;
    let mono = run(Format::Flac, &mut reader, &mut decoder, header, max_seconds)?;
    match frames {
        Some(frames) if (mono.samples.len() as u64) < frames => Err(cut()),
        _ => Ok(mono),
    }
}

fn mp3(bytes: &[u8], max_seconds: u64) -> Result<Mono, Refusal> {
    let refuse = |error: Error| refuse(Format::Mp3, &error);
    let mut reader = MpaReader::try_new(stream(Cursor::new(bytes)), FormatOptions::default()).map_err(refuse)?;
    let (track, parameters) = audio_track(&reader, Format::Mp3)?;
    // The count is exact where the encoder left one, and else an estimate from the size of the file.
    let told = track.num_frames.filter(|_| track.delay.is_some());
    let header = Header { frames: told, ..header_of(&parameters, Format::Mp3)? };
    header.check(max_seconds)?;
    let mut decoder = MpaDecoder::try_new(&parameters, &AudioDecoderOptions::default()).map_err(refuse)?;
    let mono = run(Format::Mp3, &mut reader, &mut decoder, header, max_seconds)?;
    match told {
        Some(told) if mono.samples.len() as u64 + MP3_FRAME < told => Err(ends_early(Format::Mp3)),
        _ => Ok(mono),
    }
}

fn ogg(bytes: &[u8], max_seconds: u64) -> Result<Mono, Refusal> {
    let refuse = |error: Error| refuse(Format::Ogg, &error);
    if bytes.get(..128).unwrap_or(bytes).windows(8).any(|window| window == b"OpusHead") {
        return Err(Refusal::Bad("expected a WAV, FLAC, MP3 or OGG Vorbis sound, got Opus in OGG".to_owned()));
    }
    if !vorbis::ogg_is_complete(bytes) {
        return Err(ends_early(Format::Ogg));
    }
    let mut reader = OggReader::try_new(stream(Cursor::new(bytes)), FormatOptions::default()).map_err(refuse)?;
    let (track, parameters) = audio_track(&reader, Format::Ogg)?;
    let header = Header { frames: track.num_frames, ..header_of(&parameters, Format::Ogg)? };
    header.check(max_seconds)?;
    if !vorbis::tables_are_small(parameters.extra_data.as_deref().unwrap_or_default()) {
        let problem = "the tables of the OGG Vorbis sound take more memory than allowed";
        return Err(Refusal::TooLarge(problem.to_owned()));
    }
    let mut decoder = VorbisDecoder::try_new(&parameters, &AudioDecoderOptions::default()).map_err(refuse)?;
    run(Format::Ogg, &mut reader, &mut decoder, header, max_seconds)
}

fn audio_track(reader: &dyn FormatReader, format: Format) -> Result<(Track, AudioCodecParameters), Refusal> {
    let track = reader.tracks().iter().find_map(|track| match &track.codec_params {
        Some(CodecParameters::Audio(parameters)) => Some((track.clone(), parameters.clone())),
        _ => None,
    });
    track.ok_or_else(|| broken(format, "it has no sound"))
}

fn header_of(parameters: &AudioCodecParameters, format: Format) -> Result<Header, Refusal> {
    match (parameters.sample_rate, &parameters.channels) {
        (Some(rate), Some(channels)) => Ok(Header { rate, channels: channels.count(), frames: None }),
        _ => Err(broken(format, "it does not tell its format")),
    }
}

fn run(
    format: Format,
    reader: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    header: Header,
    max_seconds: u64,
) -> Result<Mono, Refusal> {
    let track = audio_track(reader, format)?.0.id;
    let mut mono = Mono::new(header, max_seconds);
    let mut samples: Vec<f32> = Vec::new();
    while let Some(packet) = reader.next_packet().map_err(|error| refuse(format, &error))? {
        if packet.track_id != track {
            continue;
        }
        let decoded = match decoder.decode(&packet) {
            Ok(decoded) => decoded,
            // A cut from a longer MP3 begins with frames that need what was before them: players leave them out.
            Err(Error::DecodeError(_)) if format == Format::Mp3 => continue,
            Err(error) => return Err(refuse(format, &error)),
        };
        let channels = decoded.spec().channels().count();
        let now = Header { rate: decoded.spec().rate(), channels, frames: None };
        if now.rate != header.rate {
            return Err(broken(format, "its rate changes"));
        }
        now.check(max_seconds)?;
        decoded.copy_to_vec_interleaved(&mut samples);
        for frame in samples.chunks_exact(channels) {
            mono.push(frame)?;
        }
    }
    Ok(mono)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TONES: [&str; 4] = ["tone.flac", "tone-24.flac", "tone.mp3", "tone.ogg"];

    /// Half a second of 440 Hz at 22,050 Hz by `tools/make_audio_golden.py`: in stereo half as loud on the right.
    fn tone(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sounds").join(name)).unwrap()
    }

    /// A WAV file of `format` (1: integers, 3: float) and `bits`, around `data`.
    fn wav(format: u16, bits: u16, channels: u16, rate: u32, data: &[u8]) -> Vec<u8> {
        let align = channels.wrapping_mul(bits / 8);
        let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
        bytes.extend([format, channels].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend([rate, rate.wrapping_mul(u32::from(align))].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend([align, bits].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(b"LIST\x05\0\0\0INFO\x01\0data");
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn claiming(mut wav: Vec<u8>, place_from_end_of_header: usize, bytes: &[u8]) -> Vec<u8> {
        let at = wav.windows(4).position(|window| window == b"data").unwrap() + 4 - place_from_end_of_header;
        wav[at..at + bytes.len()].copy_from_slice(bytes);
        wav
    }

    #[track_caller]
    fn refused(bytes: &[u8], max_seconds: u64, expected: &str) {
        match decode(bytes, max_seconds) {
            Err(Refusal::TooLarge(text)) => assert!(format!("TooLarge: {text}").contains(expected), "{text}"),
            Err(Refusal::Bad(text)) => assert!(text.contains(expected), "{text}"),
            Ok(sound) => panic!("{} samples were decoded, expected {expected:?}", sound.samples.len()),
        }
    }

    #[test]
    fn samples_of_every_kind_of_wav_are_the_same() {
        let ints = [0i32, 64, -128, 127];
        let expected: Vec<f32> = ints.iter().map(|&int| int as f32 / 128.0).collect();
        let of = |bytes: &dyn Fn(i32) -> Vec<u8>| ints.iter().flat_map(|&int| bytes(int)).collect::<Vec<u8>>();
        for (format, bits, data) in [
            (1, 8, of(&|int| vec![(int + 128) as u8])),
            (1, 16, of(&|int| ((int << 8) as i16).to_le_bytes().to_vec())),
            (1, 24, of(&|int| (int << 24).to_le_bytes()[1..].to_vec())),
            (1, 32, of(&|int| (int << 24).to_le_bytes().to_vec())),
            (3, 32, of(&|int| (int as f32 / 128.0).to_le_bytes().to_vec())),
            (3, 64, of(&|int| (f64::from(int) / 128.0).to_le_bytes().to_vec())),
        ] {
            let sound = decode(&wav(format, bits, 1, 8_000, &data), 1).unwrap();
            assert_eq!((sound.rate, &sound.samples), (8_000, &expected), "{format} {bits}");
            let pairs = decode(&wav(format, bits, 2, 8_000, &data), 1).unwrap();
            assert_eq!(pairs.samples, [0.25, (expected[2] + expected[3]) / 2.0], "{format} {bits}");
        }
    }

    #[test]
    fn the_extensible_wav_is_read_by_its_subformat() {
        let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x28\0\0\0\xfe\xff\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0".to_vec();
        bytes.extend(b"\x16\0\x10\0\0\0\0\0\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71data\x02\0\0\0\0\x40");
        assert_eq!(decode(&bytes, 1).unwrap().samples, [0.5]);
    }

    #[test]
    fn a_wav_from_a_pipe_goes_on_to_the_end() {
        for claimed in [u32::MAX, 0] {
            let bytes = claiming(wav(1, 8, 1, 8_000, &[128; 50]), 0, &claimed.to_le_bytes());
            assert_eq!(decode(&bytes, 1).unwrap().samples.len(), 50);
        }
    }

    #[test]
    fn tones_of_every_format_are_the_tone() {
        for name in TONES {
            let sound = decode(&tone(name), 1).unwrap();
            let loud = if name == "tone-24.flac" { 0.5 } else { 0.375 };
            assert_eq!((sound.rate, sound.samples.len()), (22_050, 11_025), "{name}");
            let lossy = if name.ends_with("flac") { 1e-4 } else { 0.02 };
            let expected = |at: usize| loud * (std::f64::consts::TAU * 440.0 * at as f64 / 22_050.0).sin();
            let off = |at: usize| (f64::from(sound.samples[at]) - expected(at)).abs();
            let largest = (1_000..10_000).map(off).fold(0.0, f64::max);
            assert!(largest < lossy, "{name}: off by {largest}");
        }
    }

    #[test]
    fn the_tables_of_a_real_vorbis_stream_are_counted() {
        let bytes = tone("tone.ogg");
        let reader = OggReader::try_new(stream(Cursor::new(bytes)), FormatOptions::default()).unwrap();
        let (_, parameters) = audio_track(&reader, Format::Ogg).unwrap();
        let numbers = vorbis::table_numbers(&parameters.extra_data.unwrap()).unwrap();
        assert!((1_000..200_000).contains(&numbers), "{numbers}");
    }

    #[test]
    fn titles_in_front_are_skipped() {
        let title = [b"ID3\x04\0\0\0\0\x01\x02".as_slice(), &[7; 130]].concat();
        for name in TONES {
            let bytes = [title.as_slice(), &tone(name)].concat();
            assert_eq!(decode(&bytes, 1).unwrap().samples.len(), 11_025, "{name}");
        }
        refused(&title[..40], 1, "got nothing");
    }

    #[test]
    fn sounds_that_are_too_long_are_refused() {
        for name in TONES {
            refused(&tone(name), 0, "TooLarge: the sound is longer than max_audio_seconds = 0; send it in parts");
        }
        let second = wav(1, 8, 1, 8_000, &[128; 8_001]);
        refused(&second, 1, "TooLarge: the sound is longer than max_audio_seconds = 1;");
        assert!(decode(&second[..], 2).is_ok());
        // A high rate does not multiply the memory.
        let fast = wav(1, 8, 1, 384_000, &[128; 48_001]);
        refused(&fast, 1, "TooLarge: the sound is longer than max_audio_seconds = 1, which are 0 at 384000 Hz");
    }

    #[test]
    fn a_wav_that_claims_four_gigabytes_allocates_none_of_them() {
        let bytes = claiming(wav(1, 16, 1, 16_000, &[0; 4]), 0, &(u32::MAX - 1).to_le_bytes());
        refused(&bytes, 600, "TooLarge: the sound is longer");
        refused(&bytes, 1 << 40, "ends early: its header tells 4294967294 bytes of sound, 4 are there");
        let mut list = wav(1, 16, 1, 16_000, &[0; 4]);
        list[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
        refused(&list, 600, "it has no data");
    }

    #[test]
    fn absurd_formats_are_refused_with_the_range() {
        refused(&wav(1, 16, u16::MAX, 16_000, &[0; 64]), 600, "65535 channels; expected 1 to 8");
        refused(&wav(1, 16, 0, 16_000, &[0; 64]), 600, "0 channels");
        refused(&wav(1, 16, 9, 16_000, &[0; 64]), 600, "9 channels");
        for rate in [0, 999, 384_001, u32::MAX] {
            refused(&wav(1, 16, 1, rate, &[0; 64]), 600, &format!("{rate} samples a second; expected 1000 to 384000"));
        }
        refused(&wav(1, 12, 1, 16_000, &[0; 64]), 600, "samples of 12 bits in format 1");
        refused(&wav(7, 8, 1, 16_000, &[0; 64]), 600, "samples of 8 bits in format 7");
        refused(&wav(1, 16, 1, 16_000, &[]), 600, "the sound is empty");
        refused(&wav(3, 32, 1, 16_000, &f32::NAN.to_le_bytes()), 600, "no finite numbers");
    }

    #[test]
    fn a_flac_that_claims_more_than_it_has_is_refused() {
        let mut bytes = tone("tone.flac");
        // The low 36 bits of the packed 64 that begin 18 bytes in.
        bytes[21] |= 0x0f;
        bytes[22..26].copy_from_slice(&[255; 4]);
        refused(&bytes, 600, "TooLarge: the sound is longer than max_audio_seconds = 600");
        refused(&bytes, 86_400 * 365, "the FLAC sound ends early");
        // A block of metadata that claims more than follows.
        bytes[5..8].copy_from_slice(&[255; 3]);
        refused(&bytes, 600, "the FLAC sound ends early");
    }

    #[test]
    fn absurd_rates_and_lengths_of_every_format_are_refused() {
        let mut flac = tone("tone.flac");
        // 20 bits of rate, 18 bytes in.
        flac[18..20].copy_from_slice(&[255; 2]);
        refused(&flac, 600, "1048562 samples a second; expected 1000 to 384000");
        for (rate, channels) in [(u32::MAX, 2), (500, 2), (384_001, 1)] {
            let ogg = with_page(&tone("tone.ogg"), 0, |page| {
                // Behind a head of 28 bytes: 7 of a marker, 4 of a version.
                page[39] = channels;
                page[40..44].copy_from_slice(&rate.to_le_bytes());
            });
            refused(&ogg, 600, &format!("{rate} samples a second; expected 1000 to 384000"));
        }
        let crowded = with_page(&tone("tone.ogg"), 0, |page| page[39] = 255);
        refused(&crowded, 600, "");
        let pages = pages(&tone("tone.ogg")).len();
        for claimed in [600 * 22_050 + 1, i64::MAX] {
            let ogg =
                with_page(&tone("tone.ogg"), pages - 1, |page| page[6..14].copy_from_slice(&claimed.to_le_bytes()));
            refused(&ogg, 600, "TooLarge: the sound is longer than max_audio_seconds = 600");
        }
    }

    #[test]
    fn a_sound_whose_header_tells_no_length_is_counted_while_it_is_decoded() {
        let mut flac = tone("tone.flac");
        flac[21] &= 0xf0;
        flac[22..26].copy_from_slice(&[0; 4]);
        assert_eq!(decode(&flac, 1).unwrap().samples.len(), 11_025);
        refused(&flac, 0, "TooLarge: the sound is longer than max_audio_seconds = 0");
        // Without the first frame, which tells the length, an MP3 goes on as long as there are frames.
        let mp3 = tone("tone.mp3");
        let second = mp3.windows(2).skip(2).position(|pair| pair == [0xff, 0xf3]).unwrap() + 2;
        let long = mp3[second..].repeat(400);
        refused(&long, 3, "TooLarge: the sound is longer than max_audio_seconds = 3");
        // Of one that tells a length no more is taken.
        assert_eq!(decode(&[mp3.as_slice(), &long].concat(), 3).unwrap().samples.len(), 11_025);
        let samples = decode(&mp3[second..].repeat(4), 3).unwrap().samples.len();
        assert!((33_075..55_125).contains(&samples), "{samples}");
    }

    /// Begin and end of each page of an OGG file.
    fn pages(ogg: &[u8]) -> Vec<(usize, usize)> {
        let starts: Vec<usize> = (0..ogg.len()).filter(|&at| ogg[at..].starts_with(b"OggS")).collect();
        starts.iter().zip(starts[1..].iter().chain([&ogg.len()])).map(|(&start, &end)| (start, end)).collect()
    }

    /// The file with one page changed and its checksum made right: polynomial 04c11db7, nothing reflected.
    fn with_page(ogg: &[u8], number: usize, change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut ogg = ogg.to_vec();
        let (start, end) = pages(&ogg)[number];
        let page = &mut ogg[start..end];
        change(page);
        page[22..26].copy_from_slice(&[0; 4]);
        let step = |crc: u32, _| if crc >> 31 == 1 { crc << 1 ^ 0x04c1_1db7 } else { crc << 1 };
        let crc = page.iter().fold(0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte) << 24, step));
        page[22..26].copy_from_slice(&crc.to_le_bytes());
        ogg
    }

    #[test]
    fn a_sound_that_ends_early_is_refused() {
        for name in ["tone.flac", "tone-24.flac", "tone.ogg"] {
            let bytes = tone(name);
            for keep in [bytes.len() / 4, bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 1] {
                refused(&bytes[..keep], 600, "ends early");
            }
        }
        // An MP3 has its length in the first frame; less than one frame may be missing.
        let mp3 = tone("tone.mp3");
        refused(&mp3[..mp3.len() / 2], 600, "ends early");
        let wav = wav(1, 16, 1, 16_000, &[0; 64]);
        refused(&wav[..wav.len() - 1], 600, "its header tells 64 bytes of sound, 63 are there; send the whole file");
        refused(&wav[..30], 600, "ends in its header");
    }

    #[test]
    fn what_is_no_sound_is_named() {
        for (bytes, expected) in [
            (b"".as_slice(), "got nothing"),
            (b"{\"b64\": 1}", "JSON text"),
            (b"<html>", "an XML or HTML document"),
            (b"\x01\x02\x03", "bytes of no known sound format"),
            (b"\x00\x00\x00\x20ftypM4A ", "an MP4 or M4A file"),
            (b"\x1a\x45\xdf\xa3", "a WebM or Matroska file"),
            (b"\xff\xd8\xff", "a picture"),
            (b"\xff\xf1\x50\x80", "an AAC stream"),
            (b"FORM\0\0\0\0AIFF", "an AIFF file"),
            (b"OggS\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead", "Opus in OGG"),
            (b"OggS", "ends early"),
            (b"fLaC", "ends early"),
            (b"fLaC\x81\0\0\0", "does not tell its format"),
            (b"\xff\xfb", "ends early"),
            (b"RIFF\0\0\0\0WAVE", "it has no data"),
            (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "its format does not come before its data"),
        ] {
            refused(bytes, 600, expected);
        }
    }

    #[test]
    fn changed_bytes_never_panic() {
        let sounds = TONES.iter().map(|name| tone(name)).chain([wav(1, 16, 2, 16_000, &[3; 400])]);
        for bytes in sounds {
            for at in (0..bytes.len().min(200)).chain((200..bytes.len()).step_by(97)) {
                for value in [0, 255, bytes[at] ^ 0x10] {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    match decode(&changed, 5) {
                        Err(Refusal::Bad(text)) => assert!(!text.contains(CONTRADICTION), "byte {at} as {value}"),
                        Err(Refusal::TooLarge(_)) | Ok(_) => {}
                    }
                }
            }
        }
    }
}

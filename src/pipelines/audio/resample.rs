//! Samples at one rate to samples at another, band-limited.
//!
//! Invariants: the same input gives the same output, bit for bit; the result has `round(length * to / from)` samples and
//! begins at the same instant. Frequencies above the lower of the two Nyquist limits are removed, as by ffmpeg's and
//! librosa's resamplers, whose filters differ from this one near that limit only.

use super::Sound;
use crate::pipelines::PipelineError;
use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

/// Samples of the filter, and of a block: the longer, the closer to the Nyquist limit the filter cuts.
const BLOCK: usize = 4096;
/// Terms of the ratio of two rates at most: the transform is as long as they are, so 383,993 Hz would take seconds. A ratio
/// that needs larger ones is off by less than 1 in 10 million, a twentieth of a millisecond in ten minutes. Those of the
/// rates in use are exact: 44,100 to 16,000 is 441 to 160.
const MAX_TERM: usize = 1 << 16;

/// `sound` at `rate` Hz.
///
/// # Errors
/// Where the rates cannot be converted; both are in the range that [`super::decode`] and [`super::input`] allow, so a fault
/// of ours.
pub(super) fn resample(sound: Sound, rate: u32) -> Result<Sound, PipelineError> {
    if sound.rate == rate {
        return Ok(sound);
    }
    let fault = |error: &dyn std::fmt::Display| {
        let problem = format!("a sound at {} Hz cannot be resampled to {rate} Hz: {error}", sound.rate);
        PipelineError::Item { index: 0, problem }
    };
    let (from, to, length) = (sound.rate as usize, rate as usize, sound.samples.len());
    let (from_term, to_term) = ratio(from, to);
    // An even number of terms makes blocks of even length, whose middle is a sample: else the result is half a sample late.
    let block = (2 * from_term) * BLOCK.div_ceil(2 * from_term);
    let mut resampler =
        Fft::<f32>::new_custom(from_term, to_term, block, 1, 1, WindowFunction::BlackmanHarris2, FixedSync::Both)
            .map_err(|error| fault(&error))?;
    let input = SequentialSlice::new(&sound.samples, 1, length).map_err(|error| fault(&error))?;
    let mut samples = resampler.process_all(&input, length, None).map_err(|error| fault(&error))?.take_data();
    samples.resize((length * to + from / 2) / from, 0.0);
    if samples.is_empty() {
        return Err(PipelineError::Item { index: 0, problem: "the sound is shorter than one sample".to_owned() });
    }
    Ok(Sound { samples, rate })
}

/// `from / to` in lowest terms, or the last of its continued fraction's convergents whose terms are no larger than
/// [`MAX_TERM`].
fn ratio(from: usize, to: usize) -> (usize, usize) {
    let (mut before, mut last) = ((0, 1), (1, 0));
    let (mut a, mut b) = (from, to);
    while b > 0 {
        let whole = a / b;
        let next = (whole * last.0 + before.0, whole * last.1 + before.1);
        if next.0.max(next.1) > MAX_TERM {
            break;
        }
        (before, last) = (last, next);
        (a, b) = (b, a % b);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(rate: u32, hertz: f64, length: usize) -> Vec<f32> {
        let step = std::f64::consts::TAU * hertz / f64::from(rate);
        (0..length).map(|at| (step * at as f64).sin() as f32).collect()
    }

    #[test]
    fn a_sine_stays_a_sine() {
        for (from, to, hertz) in [
            (44_100, 16_000, 440.0),
            (8_000, 16_000, 1_000.0),
            (48_000, 16_000, 7_000.0),
            (44_101, 16_000, 3_333.0),
            (192_007, 16_001, 3_333.0),
        ] {
            let sound = Sound { samples: sine(from, hertz, from as usize), rate: from };
            let got = resample(sound, to).unwrap();
            assert_eq!((got.rate, got.samples.len()), (to, to as usize));
            let expected = sine(to, hertz, to as usize);
            // The ends see silence beyond them.
            let edge = to as usize / 8;
            let inner = edge..to as usize - edge;
            let off = got.samples[inner.clone()].iter().zip(&expected[inner]).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0, f32::max);
            assert!(off < 1e-4, "{from} to {to}: off by {off}");
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_removed() {
        let sound = Sound { samples: sine(44_100, 9_000.0, 44_100), rate: 44_100 };
        let got = resample(sound, 16_000).unwrap();
        let loudest = got.samples[2_000..14_000].iter().map(|sample| sample.abs()).fold(0.0, f32::max);
        assert!(loudest < 1e-4, "{loudest}");
    }

    #[test]
    fn the_length_is_that_of_the_time() {
        for (from, to) in [(44_100, 16_000), (8_000, 16_000), (383_993, 16_000), (1_000, 384_000)] {
            for length in [1usize, 159, 10_007] {
                let expected = (length as f64 * f64::from(to) / f64::from(from)).round() as usize;
                let got = resample(Sound { samples: vec![0.5; length], rate: from }, to);
                match got {
                    Ok(sound) => assert_eq!(sound.samples.len(), expected, "{length} from {from} to {to}"),
                    Err(_) => assert_eq!(expected, 0),
                }
            }
        }
    }

    #[test]
    fn ratios_are_exact_where_their_terms_are_small() {
        for (from, to, expected) in
            [(44_100, 16_000, (441, 160)), (8_000, 16_000, (1, 2)), (44_101, 16_000, (44_101, 16_000)), (7, 7, (1, 1))]
        {
            assert_eq!(ratio(from, to), expected);
        }
        for (from, to) in [(383_993, 16_000), (1_000, 383_993), (383_993, 383_987), (191_999, 1_001)] {
            let (a, b) = ratio(from, to);
            let off = (a as f64 / b as f64) / (from as f64 / to as f64) - 1.0;
            assert!(off.abs() < 1e-7 && a.max(b) <= MAX_TERM, "{from} to {to} is {a} to {b}, off by {off}");
        }
    }

    #[test]
    fn the_same_sound_gives_the_same_samples() {
        let sound = || Sound { samples: sine(11_025, 700.0, 5_000), rate: 11_025 };
        assert_eq!(resample(sound(), 16_000).unwrap(), resample(sound(), 16_000).unwrap());
        let same = Sound { samples: vec![0.1, -0.2], rate: 16_000 };
        assert_eq!(resample(same.clone(), 16_000).unwrap(), same);
    }
}

//! Log-mel spectrograms by Whisper's formula.
//!
//! The samples, cut or filled with silence to one length, in frames of a periodic Hann window around every `hop` samples
//! (mirrored at both ends) → power spectrum → triangular filters on the mel scale of Slaney's Auditory Toolbox, each of
//! area 1 → `log10`, nothing below 10^-10 → nothing below the largest less 8 → `(x + 4) / 4`. The formula is that of
//! `WhisperFeatureExtractor` in transformers and `log_mel_spectrogram` in openai/whisper; the numbers in the tests come from
//! `tools/make_audio_golden.py`.

use realfft::{RealFftPlanner, RealToComplex};
use std::sync::Arc;

/// The sizes of a spectrogram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MelSettings {
    /// Hz.
    pub(super) rate: u32,
    /// Samples of a frame.
    pub(super) window: usize,
    /// Samples from one frame to the next.
    pub(super) hop: usize,
    pub(super) mels: usize,
    /// What every sound is cut or filled to.
    pub(super) samples: usize,
}

/// The tables for spectrograms of one size.
pub(super) struct LogMel {
    pub(super) settings: MelSettings,
    fft: Arc<dyn RealToComplex<f64>>,
    hann: Vec<f64>,
    /// For each mel the first frequency that counts and the weights from there on.
    filters: Vec<(usize, Vec<f64>)>,
}

impl LogMel {
    pub(super) fn new(settings: MelSettings) -> LogMel {
        let MelSettings { window, mels, rate, .. } = settings;
        let turn = std::f64::consts::TAU / window as f64;
        LogMel {
            fft: RealFftPlanner::new().plan_fft_forward(window),
            hann: (0..window).map(|at| 0.5 - 0.5 * (turn * at as f64).cos()).collect(),
            filters: filters(f64::from(rate), window, mels),
            settings,
        }
    }

    /// Frames of every spectrogram.
    pub(super) fn frames(&self) -> usize {
        self.settings.samples / self.settings.hop
    }

    /// `mels` rows of `frames` numbers.
    ///
    /// # Errors
    /// Where the transform fails, a fault of ours.
    pub(super) fn of(&self, samples: &[f32]) -> Result<Vec<f32>, String> {
        let MelSettings { window, hop, mels, samples: length, .. } = self.settings;
        let frames = self.frames();
        let half = (window / 2) as i64;
        let last = length as i64 - 1;
        let at = |place: i64| {
            let mirrored = if place < 0 {
                -place
            } else if place > last {
                2 * last - place
            } else {
                place
            };
            usize::try_from(mirrored).ok().and_then(|place| samples.get(place)).copied().map_or(0.0, f64::from)
        };
        let mut values = vec![0.0f64; mels * frames];
        let mut frame = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        for index in 0..frames {
            let start = (index * hop) as i64 - half;
            for ((place, value), weight) in (start..).zip(frame.iter_mut()).zip(&self.hann) {
                *value = at(place) * weight;
            }
            self.fft
                .process_with_scratch(&mut frame, &mut spectrum, &mut scratch)
                .map_err(|error| format!("a spectrum cannot be computed: {error}"))?;
            for ((first, weights), row) in self.filters.iter().zip(values.chunks_exact_mut(frames)) {
                let powers = spectrum.iter().skip(*first).map(|bin| bin.norm_sqr());
                let power: f64 = powers.zip(weights).map(|(power, weight)| power * weight).sum();
                if let Some(value) = row.get_mut(index) {
                    *value = power.max(1e-10).log10();
                }
            }
        }
        let floor = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - 8.0;
        Ok(values.into_iter().map(|value| ((value.max(floor) + 4.0) / 4.0) as f32).collect())
    }
}

/// Triangles between neighbouring mels from 0 Hz to half the rate, each divided by half its width in Hz.
fn filters(rate: f64, window: usize, mels: usize) -> Vec<(usize, Vec<f64>)> {
    let top = to_mel(rate / 2.0);
    let hertz = |mel: usize| to_hertz(top * mel as f64 / (mels + 1) as f64);
    let bin = rate / window as f64;
    let triangle = |mel: usize| {
        let (low, middle, high) = (hertz(mel), hertz(mel + 1), hertz(mel + 2));
        let weight = |frequency: f64| {
            let rising = (frequency - low) / (middle - low);
            let falling = (high - frequency) / (high - middle);
            rising.min(falling).max(0.0) * 2.0 / (high - low)
        };
        let weights: Vec<f64> = (0..=window / 2).map(|at| weight(at as f64 * bin)).collect();
        let first = weights.iter().position(|&weight| weight > 0.0).unwrap_or(0);
        let end = weights.iter().rposition(|&weight| weight > 0.0).map_or(0, |last| last + 1);
        (first, weights.get(first..end).unwrap_or_default().to_vec())
    };
    (0..mels).map(triangle).collect()
}

/// Slaney's scale: linear up to 1000 Hz, which is mel 15, logarithmic above.
fn to_mel(hertz: f64) -> f64 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

fn to_hertz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::Value;
    use std::path::Path;

    /// The signal of `tools/make_audio_golden.py`.
    pub(in crate::pipelines::audio) fn signal(samples: usize) -> Vec<f32> {
        let sample = |at: usize| {
            let t = at as f64 / 16_000.0;
            (0.5 * (std::f64::consts::TAU * (200.0 + 900.0 * t) * t).sin() * (-t).exp()) as f32
        };
        (0..samples).map(sample).collect()
    }

    #[test]
    fn spectrograms_are_those_of_the_reference() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mel.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tolerance = golden["atol"].as_f64().unwrap();
        let mut largest = 0.0f64;
        for case in golden["cases"].as_array().unwrap() {
            let number = |key: &str| case[key].as_u64().unwrap() as usize;
            let (mels, samples) = (number("mels"), number("samples"));
            let mel = LogMel::new(MelSettings { rate: 16_000, window: 400, hop: 160, mels, samples: 480_000 });
            let got = mel.of(&signal(samples)).unwrap();
            assert_eq!(got.len(), mels * 3_000);
            let mean = got.iter().map(|&value| f64::from(value)).sum::<f64>() / got.len() as f64;
            assert!((mean - case["mean"].as_f64().unwrap()).abs() < tolerance, "{mean} of {case}");
            for spot in case["spots"].as_array().unwrap() {
                let at = |place: usize| spot[place].as_f64().unwrap();
                let value = f64::from(got[at(0) as usize * 3_000 + at(1) as usize]);
                largest = largest.max((value - at(2)).abs());
            }
        }
        assert!(largest < tolerance, "{largest}");
    }

    #[test]
    fn what_is_too_long_is_cut_and_silence_is_even() {
        let mel = LogMel::new(MelSettings { rate: 1_000, window: 64, hop: 10, mels: 4, samples: 1_000 });
        let long = signal(1_500);
        assert_eq!(mel.of(&long).unwrap(), mel.of(&long[..1_000]).unwrap());
        let silence = mel.of(&[0.0]).unwrap();
        assert!(silence.len() == 400 && silence.iter().all(|&value| value == -1.5), "{silence:?}");
    }
}

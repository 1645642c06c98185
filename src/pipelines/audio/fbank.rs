//! Log filter banks by Kaldi's formula, as the Audio Spectrogram Transformer takes them.
//!
//! Frames of 25 ms every 10 ms, whole ones only: mean taken off → each sample less 0.97 of the one before → symmetric Hann
//! window → power spectrum → triangular filters, linear in Kaldi's mel (`1127 ln(1 + f / 700)`), from 20 Hz to half the
//! rate → natural logarithm, nothing below the smallest step of `f32` at 1. The result is cut or filled with zeros to one
//! length and then `(x - mean) / (2 std)`. The formula is that of Kaldi's `compute-fbank-feats` and of `ASTFeatureExtractor`
//! in transformers; the numbers in the tests come from `tools/make_audio_golden.py`.

use realfft::{RealFftPlanner, RealToComplex};
use std::sync::Arc;

const PREEMPHASIS: f64 = 0.97;
const LOWEST_HERTZ: f64 = 20.0;
const FLOOR: f64 = f32::EPSILON as f64;

/// The sizes of a filter bank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FbankSettings {
    /// Hz.
    pub(super) rate: u32,
    pub(super) mels: usize,
    /// What every sound is cut or filled to.
    pub(super) frames: usize,
    /// Mean and standard deviation of the training's numbers; `None`: they stay as they are.
    pub(super) normalize: Option<(f64, f64)>,
}

/// The tables for filter banks of one size.
pub(super) struct Fbank {
    pub(super) settings: FbankSettings,
    /// Samples of a frame.
    pub(super) window: usize,
    hop: usize,
    fft: Arc<dyn RealToComplex<f64>>,
    hann: Vec<f64>,
    /// For each mel the weights of all frequencies.
    filters: Vec<Vec<f64>>,
}

impl Fbank {
    pub(super) fn new(settings: FbankSettings) -> Fbank {
        let rate = settings.rate as usize;
        let window = (rate * 25 / 1000).max(2);
        let length = window.next_power_of_two();
        let turn = std::f64::consts::TAU / (window - 1) as f64;
        let mel = |hertz: f64| 1127.0 * (1.0 + hertz / 700.0).ln();
        let (low, high) = (mel(LOWEST_HERTZ), mel((rate / 2) as f64));
        let step = (high - low) / (settings.mels + 1) as f64;
        let filter = |index: usize| {
            let middle = low + step * (index + 1) as f64;
            let weight = |bin: usize| {
                let mel = mel(bin as f64 * rate as f64 / length as f64);
                (1.0 - (mel - middle).abs() / step).max(0.0)
            };
            (0..=length / 2).map(weight).collect()
        };
        Fbank {
            window,
            hop: (rate * 10 / 1000).max(1),
            fft: RealFftPlanner::new().plan_fft_forward(length),
            hann: (0..window).map(|at| 0.5 - 0.5 * (turn * at as f64).cos()).collect(),
            filters: (0..settings.mels).map(filter).collect(),
            settings,
        }
    }

    /// `frames` rows of `mels` numbers.
    ///
    /// # Errors
    /// Where the transform fails, a fault of ours.
    pub(super) fn of(&self, samples: &[f32]) -> Result<Vec<f32>, String> {
        let FbankSettings { mels, frames, normalize, .. } = self.settings;
        let mut values = Vec::with_capacity(mels * frames);
        let mut frame = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        for window in samples.windows(self.window).step_by(self.hop).take(frames) {
            let mean = window.iter().map(|&sample| f64::from(sample)).sum::<f64>() / window.len() as f64;
            let mut before = window.first().map_or(0.0, |&first| f64::from(first) - mean);
            frame.fill(0.0);
            for ((value, &sample), weight) in frame.iter_mut().zip(window).zip(&self.hann) {
                let centred = f64::from(sample) - mean;
                *value = (centred - PREEMPHASIS * before) * weight;
                before = centred;
            }
            self.fft
                .process_with_scratch(&mut frame, &mut spectrum, &mut scratch)
                .map_err(|error| format!("a spectrum cannot be computed: {error}"))?;
            for filter in &self.filters {
                let power: f64 = filter.iter().zip(&spectrum).map(|(weight, bin)| weight * bin.norm_sqr()).sum();
                values.push(power.max(FLOOR).ln() as f32);
            }
        }
        values.resize(mels * frames, 0.0);
        if let Some((mean, deviation)) = normalize {
            for value in &mut values {
                *value = ((f64::from(*value) - mean) / (2.0 * deviation)) as f32;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::mel::tests::signal;
    use super::*;
    use serde_json::Value;
    use std::path::Path;

    #[test]
    fn filter_banks_are_those_of_the_reference() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fbank.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tolerance = golden["atol"].as_f64().unwrap();
        let mut largest = 0.0f64;
        for case in golden["cases"].as_array().unwrap() {
            let normalize = Some((-4.2677393, 4.5689974));
            let fbank = Fbank::new(FbankSettings { rate: 16_000, mels: 128, frames: 1_024, normalize });
            let got = fbank.of(&signal(case["samples"].as_u64().unwrap() as usize)).unwrap();
            assert_eq!(got.len(), 1_024 * 128);
            let mean = got.iter().map(|&value| f64::from(value)).sum::<f64>() / got.len() as f64;
            assert!((mean - case["mean"].as_f64().unwrap()).abs() < tolerance, "{mean} of {case}");
            for spot in case["spots"].as_array().unwrap() {
                let at = |place: usize| spot[place].as_f64().unwrap();
                let value = f64::from(got[at(1) as usize * 128 + at(0) as usize]);
                largest = largest.max((value - at(2)).abs());
            }
        }
        assert!(largest < tolerance, "{largest}");
    }
}

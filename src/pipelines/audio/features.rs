//! Samples to what a model takes of them, as `preprocessor_config.json` says and transformers' feature extractors do.
//!
//! `Wav2Vec2FeatureExtractor`: the samples, their mean taken off and divided by their deviation where `do_normalize`.
//! `WhisperFeatureExtractor`: a log-mel spectrogram, see [`super::mel`]. `ASTFeatureExtractor`: a filter bank, see
//! [`super::fbank`].

use super::decode::{MAX_RATE, MIN_RATE};
use super::fbank::{Fbank, FbankSettings};
use super::mel::{LogMel, MelSettings};
use crate::pipelines::PipelineError;
use serde_json::Value;

pub(super) const PREPROCESSOR: &str = "preprocessor_config.json";
/// What transformers adds to the variance, so that silence is not divided by nothing.
const EPSILON: f64 = 1e-7;
/// Those of AudioSet, which the transformer is trained on.
const AST_MEAN: f64 = -4.2677393;
const AST_DEVIATION: f64 = 4.5689974;
/// Of one spectrogram: Whisper's have 384,000.
const MAX_NUMBERS: usize = 1 << 24;

/// What is made of the samples.
pub(super) enum Features {
    Samples { normalize: bool },
    LogMel(Box<LogMel>),
    Fbank(Box<Fbank>),
}

impl Features {
    /// Rows and columns of a spectrogram; `None` where the samples stay samples.
    pub(super) fn spectrogram(&self) -> Option<[usize; 2]> {
        match self {
            Features::Samples { .. } => None,
            Features::LogMel(mel) => Some([mel.settings.mels, mel.frames()]),
            Features::Fbank(fbank) => Some([fbank.settings.frames, fbank.settings.mels]),
        }
    }
}

/// The extractor of one model.
pub(super) struct Extractor {
    pub(super) features: Features,
    /// Hz.
    pub(super) rate: u32,
}

impl Extractor {
    /// From `preprocessor_config.json`.
    ///
    /// # Errors
    /// Where there is none, or it is of another kind or malformed.
    pub(super) fn new(config: Option<&Value>) -> Result<Extractor, PipelineError> {
        let setup = |problem: String| PipelineError::Setup(format!("{PREPROCESSOR}: {problem}"));
        let Some(config) = config else {
            let problem = format!("{PREPROCESSOR} is missing: it tells the rate and the features that the model takes");
            return Err(PipelineError::Setup(problem));
        };
        let number = |key: &str, default: u64, range: std::ops::RangeInclusive<u64>| match config.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_u64().filter(|number| range.contains(number)).ok_or_else(|| {
                setup(format!("{key}: expected an integer from {} to {}, got {value}", range.start(), range.end()))
            }),
        };
        let rate = number("sampling_rate", 16_000, u64::from(MIN_RATE)..=u64::from(MAX_RATE))?;
        let rate = u32::try_from(rate).unwrap_or(MAX_RATE);
        let kind = config.get("feature_extractor_type").and_then(Value::as_str).unwrap_or("Wav2Vec2FeatureExtractor");
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(true),
            Some(value) => value.as_bool().ok_or_else(|| setup(format!("{key}: expected true or false, got {value}"))),
        };
        let features = match kind {
            "Wav2Vec2FeatureExtractor" => Features::Samples { normalize: flag("do_normalize")? },
            "ASTFeatureExtractor" => {
                let real = |key: &str, default: f64| match config.get(key) {
                    None | Some(Value::Null) => Ok(default),
                    Some(value) => {
                        value.as_f64().ok_or_else(|| setup(format!("{key}: expected a number, got {value}")))
                    }
                };
                let (mean, deviation) = (real("mean", AST_MEAN)?, real("std", AST_DEVIATION)?);
                if deviation == 0.0 {
                    return Err(setup("std: expected a number that is not 0".to_owned()));
                }
                let settings = FbankSettings {
                    rate,
                    mels: number("num_mel_bins", 128, 1..=1024)? as usize,
                    frames: number("max_length", 1024, 1..=16_384)? as usize,
                    normalize: flag("do_normalize")?.then_some((mean, deviation)),
                };
                Features::Fbank(Box::new(Fbank::new(settings)))
            }
            "WhisperFeatureExtractor" => {
                let seconds = number("chunk_length", 30, 1..=600)?;
                let settings = MelSettings {
                    rate,
                    window: number("n_fft", 400, 16..=16_384)? as usize,
                    hop: number("hop_length", 160, 1..=16_384)? as usize,
                    mels: number("feature_size", 80, 1..=1024)? as usize,
                    samples: seconds as usize * rate as usize,
                };
                if settings.mels * (settings.samples / settings.hop) > MAX_NUMBERS {
                    return Err(setup(format!("a spectrogram has more than {MAX_NUMBERS} numbers")));
                }
                Features::LogMel(Box::new(LogMel::new(settings)))
            }
            other => return Err(setup(format!("the feature extractor {other} is not served yet"))),
        };
        Ok(Extractor { features, rate })
    }

    /// One sentence's end: what sounds become.
    pub(super) fn describe(&self) -> String {
        let what = match &self.features {
            Features::Samples { normalize: true } => "samples of mean 0 and deviation 1".to_owned(),
            Features::Samples { normalize: false } => "samples as they are".to_owned(),
            Features::LogMel(mel) => format!("{} log-mel bands", mel.settings.mels),
            Features::Fbank(fbank) => format!("{} filter-bank bands", fbank.settings.mels),
        };
        format!("sounds become {what} at {} Hz ({PREPROCESSOR})", self.rate)
    }
}

/// Takes the mean off and divides by the deviation, both over the whole clip.
pub(super) fn normalize(samples: &mut [f32]) {
    let count = samples.len().max(1) as f64;
    let mean = samples.iter().map(|&sample| f64::from(sample)).sum::<f64>() / count;
    let variance = samples.iter().map(|&sample| (f64::from(sample) - mean).powi(2)).sum::<f64>() / count;
    let deviation = (variance + EPSILON).sqrt();
    for sample in samples {
        *sample = ((f64::from(*sample) - mean) / deviation) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn normalized_samples_have_mean_0_and_deviation_1() {
        let mut samples = vec![1.0, 2.0, 3.0, 6.0];
        normalize(&mut samples);
        // (x - 3) / sqrt(3.5 + 1e-7)
        for (got, expected) in samples.iter().zip([-1.069_045, -0.534_522_5, 0.0, 1.603_567_5]) {
            assert!((got - expected).abs() < 1e-6, "{samples:?}");
        }
        let mut silence = vec![0.25; 100];
        normalize(&mut silence);
        assert!(silence.iter().all(|&sample| sample == 0.0));
    }

    #[track_caller]
    fn check(config: Value, expected: &str) {
        let got = Extractor::new(Some(&config));
        let text = got.map_or_else(|error| error.to_string(), |extractor| extractor.describe());
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn the_extractor_is_the_one_of_the_file() {
        check(json!({}), "samples of mean 0 and deviation 1 at 16000 Hz");
        check(json!({"do_normalize": false, "sampling_rate": 8000}), "samples as they are at 8000 Hz");
        check(json!({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128}), "128 log-mel bands");
        check(
            json!({"feature_extractor_type": "EncodecFeatureExtractor"}),
            "EncodecFeatureExtractor is not served yet",
        );
        check(json!({"sampling_rate": 0}), "sampling_rate: expected an integer from 1000 to 384000, got 0");
        check(json!({"do_normalize": 1}), "do_normalize: expected true or false");
        assert!(Extractor::new(None).is_err_and(|error| error.to_string().contains("is missing")));
    }
}

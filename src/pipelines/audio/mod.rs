//! Tasks on sounds: an encoded sound to the samples or features that a graph of speech or sound takes.
//!
//! Steps, each its own file: [`decode`] (bytes to mono samples; [`wav`] and [`vorbis`] are parts of it) → [`resample`] (to
//! the model's rate) → [`features`] ([`mel`] or [`fbank`] where the model takes a spectrogram) → [`input`] (to the graph's tensors) → the
//! graph → the task. [`classification`] is `audio-classification`; [`recognition`] is `automatic-speech-recognition` by CTC,
//! whose frames [`ctc`] makes into text with the characters of [`vocabulary`], [`parts`] cutting what is long; [`voice`] is
//! `voice-activity-detection`, by the rules of [`activity`].

mod activity;
mod classification;
mod ctc;
mod decode;
mod fbank;
mod features;
mod input;
mod mel;
mod parts;
mod recognition;
mod resample;
mod vocabulary;
mod voice;
mod vorbis;
mod wav;

pub use classification::AudioClassification;
pub(crate) use classification::{TASK as AUDIO_CLASSIFICATION, make as make_audio_classification};
pub use recognition::SpeechRecognition;
pub(crate) use recognition::{TASK as SPEECH_RECOGNITION, make as make_speech_recognition};
pub use voice::VoiceDetection;
pub(crate) use voice::{TASK as VOICE_DETECTION, is_detector as is_voice_detector, make as make_voice_detection};

/// One channel of samples, full scale being -1 to 1.
///
/// Invariant: there is at least one, and each is finite.
#[derive(Debug, Clone, PartialEq)]
struct Sound {
    samples: Vec<f32>,
    /// Samples a second.
    rate: u32,
}

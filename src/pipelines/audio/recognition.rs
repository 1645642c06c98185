//! `automatic-speech-recognition` by CTC: sounds to what is said, with the answers of transformers' pipeline.
//!
//! A long sound may be cut into parts (`chunk_length_s`), each a run of the graph; the frames of their contexts are dropped
//! and the rest is read as one. Times are those of frames: their first sample's, at the model's rate.

use super::ctc::{Spoken, best_classes, collapse, words};
use super::input::AudioInput;
use super::parts::{Cut, Part};
use super::vocabulary::Vocabulary;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::{
    Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, SpokenText, TextChunk,
};
use crate::tensor::Spec;
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "automatic-speech-recognition";
/// Runs of one sound.
const MAX_PARTS: usize = 1024;

/// One model's recognition of speech.
pub struct SpeechRecognition {
    input: AudioInput,
    /// Name of the output: `[1, frames, classes]`.
    output: String,
    vocabulary: Vocabulary,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Times {
    Characters,
    Words,
}

/// The request's parameters, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Checked {
    times: Option<Times>,
    cut: Option<Cut>,
}

/// The parts of the sound, one for each run; none where the sound is whole.
struct Parts(Vec<Part>);

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let input = AudioInput::new(sources)?;
    let output = find_output(sources.outputs).map_err(PipelineError::Setup)?;
    let vocabulary = Vocabulary::from_folder(sources.folder)?;
    let how = format!("{}; the characters are those of {}", input.describe(), vocabulary.source);
    Ok(Made { pipeline: Arc::new(SpeechRecognition { input, output, vocabulary }), how })
}

/// The logits of each frame: the output of that name, else the first float output of rank 3.
fn find_output(outputs: &[Spec]) -> Result<String, String> {
    let fits = |spec: &&Spec| {
        let float = matches!(spec.ty.dtype(), Some(dtype) if dtype.is_float() && dtype.bits() >= 16);
        float && spec.ty.shape().is_none_or(|dims| dims.len() == 3)
    };
    let named = outputs.iter().filter(|spec| spec.name == "logits").find(fits);
    let found = named.or_else(|| outputs.iter().find(fits)).map(|spec| spec.name.clone());
    found.ok_or_else(|| "the graph has no float output of rank 3 that could hold the logits of each frame".to_owned())
}

impl Pipeline for SpeechRecognition {
    fn task(&self) -> &'static str {
        TASK
    }

    fn preprocess_reads(&self, parameter: &str) -> bool {
        matches!(parameter, "chunk_length_s" | "stride_length_s")
    }

    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError> {
        let checked = self.read_parameters(parameters)?;
        let samples = self.input.samples(item)?;
        let Some(cut) = checked.cut else {
            let notes = Notes::new(Parts(Vec::new()), size_of::<Parts>());
            return Ok(Prepared { runs: vec![self.input.tensors(&samples)?], notes });
        };
        if samples.len().div_ceil(cut.step()) > MAX_PARTS {
            let problem = format!("the sound has more than {MAX_PARTS} parts; send a longer chunk_length_s");
            return Err(PipelineError::TooLarge { index: 0, problem });
        }
        // An end that is too short for a frame says nothing.
        let shortest = self.input.shortest();
        let parts = cut.parts(samples.len()).into_iter().filter(|part| part.end - part.start >= shortest);
        let parts: Vec<Part> = parts.collect();
        let runs = parts.iter().map(|part| self.input.tensors(samples.get(part.start..part.end).unwrap_or_default()));
        let runs = runs.collect::<Result<_, _>>()?;
        let bytes = size_of::<Parts>() + size_of_val(parts.as_slice());
        Ok(Prepared { runs, notes: Notes::new(Parts(parts), bytes) })
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = self.read_parameters(parameters)?;
        let Parts(parts) = notes.get()?;
        if outputs.len() != parts.len().max(1) {
            let (given, parts) = (outputs.len(), parts.len().max(1));
            return Err(PipelineError::Outputs(format!("a sound of {parts} parts came back with {given}")));
        }
        let mut frames = Vec::new();
        for (place, outputs) in outputs.iter().enumerate() {
            let classes = self.classes(outputs)?;
            let counted = match (parts.get(place), self.input.samples_per_frame()) {
                (Some(part), Some(samples)) => {
                    let (first, end) = part.frames(samples);
                    classes.get(first..end.min(classes.len())).unwrap_or_default()
                }
                _ => &classes,
            };
            frames.extend(counted.iter().map(|&class| self.vocabulary.token(class)));
        }
        Ok(Prediction::Speech(self.read_frames(&frames, checked.times)))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        self.read_parameters(parameters).map(|_| ())
    }
}

impl SpeechRecognition {
    /// The best class of each frame of one run.
    fn classes(&self, outputs: &Outputs) -> Result<Vec<usize>, PipelineError> {
        let name = &self.output;
        let logits = outputs.iter().find(|(output, _)| output == name).and_then(|(_, value)| value.as_tensor());
        let Some(logits) = logits else {
            return Err(PipelineError::Outputs(format!("the graph gave no tensor named {name:?}")));
        };
        let (dtype, shape) = (logits.dtype(), logits.shape());
        match (shape, logits.to_f32()) {
            (&[1, _, classes], Some(values)) if classes > 0 => Ok(best_classes(&values, classes)),
            _ => Err(PipelineError::Outputs(format!(
                "output {name:?}: expected a float tensor of shape [1, frames, classes], got {dtype} of shape {shape:?}"
            ))),
        }
    }

    /// The text of the frames' tokens.
    fn read_frames(&self, frames: &[&str], times: Option<Times>) -> SpokenText {
        let vocabulary = &self.vocabulary;
        let mut characters = collapse(frames, vocabulary.blank.as_str());
        for character in &mut characters {
            character.token = vocabulary.written(character.token);
        }
        let text: String = characters.iter().map(|character| character.token).collect();
        let mut text = text.trim().to_owned();
        if vocabulary.lower_case {
            text = text.to_lowercase();
        }
        if vocabulary.clean_up {
            text = clean_up(text);
        }
        let seconds = |frame: usize| {
            let samples = frame as f64 * self.input.samples_per_frame().unwrap_or(1) as f64;
            samples / f64::from(self.input.rate())
        };
        let chunk =
            |text: String, start: usize, end: usize| TextChunk { text, timestamp: [seconds(start), seconds(end)] };
        let chunks = times.map(|times| match times {
            Times::Characters => {
                let all = characters.iter();
                all.map(|&Spoken { token, start, end }| chunk(token.to_owned(), start, end)).collect()
            }
            Times::Words => {
                let words = words(&characters, &vocabulary.space).into_iter();
                words.map(|Spoken { token, start, end }| chunk(token, start, end)).collect()
            }
        });
        SpokenText { text, chunks }
    }

    fn read_parameters(&self, parameters: &Parameters) -> Result<Checked, PipelineError> {
        let (mut times, mut length, mut context) = (None, 0.0, None);
        for (name, value) in parameters {
            let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
            match (name.as_str(), value) {
                ("return_timestamps" | "chunk_length_s" | "stride_length_s", Value::Null)
                | ("return_timestamps", Value::Bool(false)) => {}
                ("return_timestamps", value) => {
                    times = match value.as_str() {
                        Some("char") => Some(Times::Characters),
                        Some("word") => Some(Times::Words),
                        _ => return wrong(format!("expected \"char\", \"word\" or false, got {value}")),
                    };
                    self.needs_frames(name)?;
                }
                ("chunk_length_s", value) => match seconds(value) {
                    Some(seconds) => length = seconds,
                    None => return wrong(format!("expected seconds, 0 for the whole sound, got {value}")),
                },
                ("stride_length_s", value) => {
                    context = match value.as_array().map(Vec::as_slice) {
                        Some([left, right]) => seconds(left).zip(seconds(right)),
                        Some(_) => None,
                        None => seconds(value).map(|both| (both, both)),
                    };
                    if context.is_none() {
                        return wrong(format!("expected seconds, or [left, right] in seconds, got {value}"));
                    }
                }
                _ => {
                    return wrong(format!(
                        "{TASK} has no such parameter; it takes return_timestamps, chunk_length_s and stride_length_s"
                    ));
                }
            }
        }
        if length == 0.0 {
            return Ok(Checked { times, cut: None });
        }
        let (left, right) = context.unwrap_or((length / 6.0, length / 6.0));
        Ok(Checked { times, cut: Some(self.cut(length, left, right)?) })
    }

    /// The cut into parts of `length` seconds, in whole frames.
    fn cut(&self, length: f64, left: f64, right: f64) -> Result<Cut, PipelineError> {
        let wrong = |name: &str, problem: String| Err(PipelineError::Parameter { name: name.to_owned(), problem });
        let frame = self.needs_frames("chunk_length_s")? as f64;
        let rate = f64::from(self.input.rate());
        let samples = |seconds: f64| ((seconds * rate / frame).round_ties_even() * frame) as usize;
        let cut = Cut { length: samples(length), left: samples(left), right: samples(right) };
        let shortest = self.input.shortest();
        if cut.length < shortest {
            let least = shortest as f64 / rate;
            return wrong(
                "chunk_length_s",
                format!("expected at least {least} s, which the model needs, got {length}"),
            );
        }
        // Each sample is run again for every part that it is in.
        if cut.left.saturating_add(cut.right) > cut.length / 4 * 3 {
            let problem = format!("the strides, {left} s and {right} s, take more than 3/4 of the chunk of {length} s");
            return wrong("stride_length_s", problem);
        }
        Ok(cut)
    }

    /// Samples of a frame.
    fn needs_frames(&self, parameter: &str) -> Result<u64, PipelineError> {
        self.input.samples_per_frame().ok_or_else(|| PipelineError::Parameter {
            name: parameter.to_owned(),
            problem: "config.json does not tell how many samples a frame has (conv_stride)".to_owned(),
        })
    }
}

/// A number of seconds that a sound may have.
fn seconds(value: &Value) -> Option<f64> {
    value.as_f64().filter(|seconds| (0.0..=86_400.0).contains(seconds))
}

/// What `clean_up_tokenization_spaces` of transformers does to English text.
fn clean_up(text: String) -> String {
    let pairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    pairs.into_iter().fold(text, |text, (from, to)| text.replace(from, to))
}

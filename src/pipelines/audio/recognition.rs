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
            return Ok(Prepared::new(vec![self.input.tensors(&samples)?], notes));
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
        Ok(Prepared::new(runs, Notes::new(Parts(parts), bytes)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::pipelines::{PipelineLimits, PipelineManifest, detect};
    use crate::tensor::{DType, Tensor};
    use serde_json::json;

    const CONFIG: &str = r#"{"architectures": ["Wav2Vec2ForCTC"], "conv_kernel": [10, 4], "conv_stride": [5, 2], "model_type": "wav2vec2"}"#;
    const VOCAB: &str = r#"{"<pad>": 0, "|": 1, "A": 2, "B": 3, "<s>": 4}"#;

    /// A model of 1,000 Hz whose frames are 10 samples.
    fn pipeline(tokenizer_config: &str) -> Arc<dyn Pipeline> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("config.json", CONFIG),
            ("preprocessor_config.json", r#"{"sampling_rate": 1000, "do_normalize": false}"#),
            ("vocab.json", VOCAB),
            ("tokenizer_config.json", tokenizer_config),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let inputs = [spec("input_values", DType::Fp32, &[-1, -1]), spec("attention_mask", DType::Int64, &[-1, -1])];
        let outputs = [spec("logits", DType::Fp32, &[-1, -1, 5])];
        let manifest = PipelineManifest::default();
        let found = detect(folder.path(), &manifest, &inputs, &outputs, &PipelineLimits::default()).unwrap();
        found.pipeline.unwrap_or_else(|| panic!("{:?}", found.missing))
    }

    fn parameters(value: serde_json::Value) -> Parameters {
        value.as_object().unwrap().clone()
    }

    /// 8-bit samples that rise by one each.
    fn rising(samples: usize) -> Item {
        let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\xe8\x03\0\0\xe8\x03\0\0\x01\0\x08\0data".to_vec();
        bytes.extend((samples as u32).to_le_bytes());
        bytes.extend((0..samples).map(|at| at as u8));
        Item::Bytes(bytes.into())
    }

    /// The output of a run whose frames say `classes`.
    fn frames(classes: &[usize]) -> Outputs {
        let logits: Vec<f32> =
            classes.iter().flat_map(|&best| (0..5).map(move |class| if class == best { 3.0 } else { 1.0 })).collect();
        vec![("logits".to_owned(), Tensor::from_vec(DType::Fp32, vec![1, classes.len(), 5], logits).unwrap().into())]
    }

    #[track_caller]
    fn check(tokenizer_config: &str, said: &[usize], given: serde_json::Value, expected: serde_json::Value) {
        let pipeline = pipeline(tokenizer_config);
        let given = parameters(given);
        let prepared = pipeline.preprocess(&rising(100), &given).unwrap();
        let got = pipeline.postprocess(&[frames(said)], &prepared.notes, &given).unwrap();
        assert_eq!(serde_json::to_value(got).unwrap(), expected);
    }

    #[test]
    fn frames_are_read_as_text() {
        let said = [1, 2, 2, 0, 2, 1, 1, 0, 3, 4, 3, 1];
        check("{}", &said, json!({}), json!({"text": "AA B<s>B"}));
        check(r#"{"do_lower_case": true}"#, &said, json!({}), json!({"text": "aa b<s>b"}));
        check(r#"{"replace_word_delimiter_char": "."}"#, &said, json!({}), json!({"text": ".AA.B<s>B."}));
        check("{}", &[0, 0], json!({"return_timestamps": "char"}), json!({"text": "", "chunks": []}));
        check("{}", &[], json!({}), json!({"text": ""}));
    }

    #[test]
    fn times_are_those_of_the_frames() {
        let said = [1, 2, 2, 0, 3, 1, 2];
        let words = json!({"text": "AB A", "chunks": [
            {"text": "AB", "timestamp": [0.01, 0.05]},
            {"text": "A", "timestamp": [0.06, 0.07]},
        ]});
        check("{}", &said, json!({"return_timestamps": "word"}), words);
        let characters = json!({"text": "AB A", "chunks": [
            {"text": " ", "timestamp": [0.0, 0.01]},
            {"text": "A", "timestamp": [0.01, 0.03]},
            {"text": "B", "timestamp": [0.04, 0.05]},
            {"text": " ", "timestamp": [0.05, 0.06]},
            {"text": "A", "timestamp": [0.06, 0.07]},
        ]});
        check("{}", &said, json!({"return_timestamps": "char"}), characters);
    }

    #[test]
    fn a_long_sound_is_several_runs_whose_contexts_are_cut_off() {
        let pipeline = pipeline("{}");
        let given = parameters(json!({"chunk_length_s": 0.05, "stride_length_s": [0.01, 0.02]}));
        let prepared = pipeline.preprocess(&rising(87), &given).unwrap();
        let shape =
            |run: &crate::pipelines::Inputs| run.iter().map(|(_, tensor)| tensor.shape().to_vec()).collect::<Vec<_>>();
        let lengths: Vec<_> = prepared.runs.iter().map(shape).collect();
        assert_eq!(lengths, [50, 50, 47].map(|length| vec![vec![1, length]; 2]));
        let first = prepared.runs[1][0].1.to_f32().unwrap();
        assert_eq!(first[..2], [(20.0 - 128.0) / 128.0, (21.0 - 128.0) / 128.0]);
        let runs = [frames(&[2, 2, 3, 4, 4]), frames(&[4, 3, 2, 4, 4]), frames(&[4, 2, 0, 3, 3])];
        let got = pipeline.postprocess(&runs, &prepared.notes, &given).unwrap();
        // Of the first run three frames count, of the second two, of the last four.
        assert_eq!(serde_json::to_value(got).unwrap(), json!({"text": "ABAB"}));
        let missing = pipeline.postprocess(&runs[..2], &prepared.notes, &given);
        assert!(matches!(missing, Err(PipelineError::Outputs(_))), "{missing:?}");
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        let pipeline = pipeline("{}");
        let notes = pipeline.preprocess(&rising(100), &Parameters::new()).unwrap().notes;
        for shape in [vec![1, 10], vec![2, 1, 5], vec![10], vec![1, 10, 1, 1]] {
            let tensor = Tensor::from_vec(DType::Fp32, shape.clone(), vec![0.0f32; 10]).unwrap();
            let got = pipeline.postprocess(&[vec![("logits".to_owned(), tensor.into())]], &notes, &Parameters::new());
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{shape:?}: {got:?}");
        }
        assert!(pipeline.postprocess(&[vec![]], &notes, &Parameters::new()).is_err());
    }

    #[test]
    fn a_sound_that_is_too_short_or_in_too_many_parts_is_refused() {
        let pipeline = pipeline("{}");
        let short = pipeline.preprocess(&rising(24), &Parameters::new()).unwrap_err();
        assert!(short.to_string().contains("24 samples at 1000 Hz; the model needs at least 25"), "{short}");
        assert_eq!(pipeline.preprocess(&rising(25), &Parameters::new()).unwrap().runs.len(), 1);
        let given = parameters(json!({"chunk_length_s": 0.03, "stride_length_s": 0}));
        assert_eq!(pipeline.preprocess(&rising(80), &given).unwrap().runs.len(), 2, "20 samples are no frame");
        let many = pipeline.preprocess(&rising(30 * 1024 + 1), &given).unwrap_err();
        assert!(matches!(&many, PipelineError::TooLarge { problem, .. } if problem.contains("1024 parts")), "{many}");
    }

    #[test]
    fn only_what_cuts_the_sound_is_read_before_the_graph() {
        let pipeline = pipeline("{}");
        let reads = |name: &str| pipeline.preprocess_reads(name);
        assert!(reads("chunk_length_s") && reads("stride_length_s") && !reads("return_timestamps"));
    }
}

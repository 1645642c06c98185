//! `voice-activity-detection`: sounds to the parts in which somebody speaks, by graphs as Silero's.
//!
//! Such a graph is given a window of samples and what it remembered of those before, so each window is a run that takes the
//! memory from the one before it. From the fifth version on the window has the end of the one before it in front. Windows
//! share the samples in memory; [`super::activity`] makes parts of the windows' probabilities.

use super::activity::{Rules, Windows, spoken};
use super::input::samples_at;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::outputs::{tensor_named, unexpected};
use crate::pipelines::{
    Carry, Inputs, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, SpokenPart,
    VoiceActivity, VoiceWindows,
};
use crate::tensor::{DType, Data, Dim, Spec, Tensor, TensorError, element_count};
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "voice-activity-detection";
const RATE: u32 = 16_000;
const LOW_RATE: u32 = 8_000;
/// Runs of one sound: 70 minutes of windows of 32 ms.
const MAX_WINDOWS: usize = 1 << 17;
/// Numbers that a graph may remember.
const MAX_MEMORY: usize = 1 << 20;
/// Milliseconds and seconds that a parameter may have: a day.
const MAX_MS: f64 = 86_400_000.0;
const MAX_SECONDS: f64 = 86_400.0;

/// One model's detection of speech.
pub struct VoiceDetection {
    graph: Graph,
    /// Hz: [`RATE`] or [`LOW_RATE`].
    rate: u32,
    max_seconds: u64,
}

/// The inputs and outputs of a detector.
#[derive(Debug, Clone, PartialEq)]
struct Graph {
    memory: Vec<Memory>,
    /// Of the input `sr`: none or `[1]`.
    rate_shape: Vec<usize>,
    /// Whether a window has the end of the one before it in front.
    has_context: bool,
    /// Samples of a run, where the graph fixes them.
    length: Option<usize>,
}

/// What a run remembers for the next.
#[derive(Debug, Clone, PartialEq)]
struct Memory {
    carry: Carry,
    shape: Vec<usize>,
}

/// What of a request is not in its windows.
struct Heard {
    /// At the model's rate.
    samples: usize,
}

struct Checked {
    threshold: f64,
    neg_threshold: f64,
    min_speech_ms: f64,
    min_silence_ms: f64,
    pad_ms: f64,
    max_speech_s: f64,
    probabilities: bool,
}

const INPUT: &str = "input";
const SAMPLING_RATE: &str = "sr";
const OUTPUT: &str = "output";

impl Graph {
    /// # Errors
    /// What is missing or of another form.
    fn find(inputs: &[Spec], outputs: &[Spec]) -> Result<Graph, String> {
        let expected = "expected the inputs input, state and sr and the outputs output and stateN, as Silero's detectors have \
            them, or sr, h, c, hn and cn";
        let of = |specs: &'_ [Spec], name: &str, dtype| -> Option<Vec<Dim>> {
            let spec = specs.iter().find(|spec| spec.name == name && spec.ty.dtype() == Some(dtype))?;
            spec.ty.shape().map(<[Dim]>::to_vec)
        };
        let lacks = |name: &str| format!("the graph has no {name} of the right type and rank; {expected}");
        let pairs: &[(&str, &str)] = match inputs.iter().any(|spec| spec.name == "state") {
            true => &[("state", "stateN")],
            false => &[("h", "hn"), ("c", "cn")],
        };
        let memory = pairs.iter().map(|&(input, output)| {
            let shape = of(inputs, input, DType::Fp32).as_deref().and_then(memory_shape).ok_or_else(|| lacks(input))?;
            match outputs.iter().any(|spec| spec.name == output && spec.ty.dtype() == Some(DType::Fp32)) {
                true => Ok(Memory { carry: Carry { output: output.to_owned(), input: input.to_owned() }, shape }),
                false => Err(lacks(output)),
            }
        });
        let memory = memory.collect::<Result<Vec<Memory>, String>>()?;
        let length = match of(inputs, INPUT, DType::Fp32).as_deref() {
            Some([Dim::Dynamic(_) | Dim::Fixed(1), Dim::Dynamic(_)]) => None,
            Some([Dim::Dynamic(_) | Dim::Fixed(1), Dim::Fixed(length)]) => Some(*length),
            _ => return Err(lacks(INPUT)),
        };
        let rate_shape = match of(inputs, SAMPLING_RATE, DType::Int64).as_deref() {
            Some([]) => vec![],
            Some([Dim::Fixed(1)]) => vec![1],
            _ => return Err(lacks(SAMPLING_RATE)),
        };
        if of(outputs, OUTPUT, DType::Fp32).is_none_or(|dims| dims.len() != 2) {
            return Err(lacks(OUTPUT));
        }
        let is_known = |name: &str| {
            name == INPUT || name == SAMPLING_RATE || memory.iter().any(|memory| memory.carry.input == name)
        };
        if let Some(other) = inputs.iter().find(|spec| !spec.optional && !is_known(&spec.name)) {
            return Err(format!("the graph needs the input {:?}, which a sound does not give", other.name));
        }
        Ok(Graph { has_context: pairs.len() == 1, memory, rate_shape, length })
    }
}

/// The sizes of a memory for one sound: `[layers, 1, numbers]`.
fn memory_shape(dims: &[Dim]) -> Option<Vec<usize>> {
    match dims {
        [Dim::Fixed(layers), Dim::Dynamic(_) | Dim::Fixed(1), Dim::Fixed(numbers)] => {
            let shape = vec![*layers, 1, *numbers];
            element_count(&shape).filter(|count| (1..=MAX_MEMORY).contains(count)).map(|_| shape)
        }
        _ => None,
    }
}

/// Whether a graph is a voice activity detector, which its inputs and outputs tell.
pub(crate) fn is_detector(inputs: &[Spec], outputs: &[Spec]) -> bool {
    Graph::find(inputs, outputs).is_ok()
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let setup = |problem: String| Err(PipelineError::Setup(problem));
    let graph = Graph::find(sources.inputs, sources.outputs).map_err(PipelineError::Setup)?;
    let asked = sources.manifest.audio.as_ref().and_then(|audio| audio.sampling_rate);
    let rate = asked.unwrap_or(RATE);
    if rate != RATE && rate != LOW_RATE {
        return setup(format!(
            "[pipeline.audio] sampling_rate of model.toml: expected {RATE} or {LOW_RATE}, got {rate}"
        ));
    }
    let detection = VoiceDetection { graph, rate, max_seconds: sources.limits.max_audio_seconds };
    let (window, context) = (detection.window(), detection.context());
    if let Some(length) = detection.graph.length.filter(|&length| length != window + context) {
        return setup(format!(
            "the input {INPUT:?} takes {length} samples; at {rate} Hz a window has {window}, with {context} in front"
        ));
    }
    let how = format!("sounds become windows of {window} samples at {rate} Hz, with {context} in front");
    Ok(Made { pipeline: Arc::new(detection), how })
}

impl VoiceDetection {
    /// Samples of a window: 32 ms.
    fn window(&self) -> usize {
        if self.rate == LOW_RATE { 256 } else { 512 }
    }

    /// Samples of the window before that a run is given again.
    fn context(&self) -> usize {
        if self.graph.has_context { self.window() / 8 } else { 0 }
    }

    fn check_length(&self, samples: usize) -> Result<(), PipelineError> {
        if samples.div_ceil(self.window()) <= MAX_WINDOWS {
            return Ok(());
        }
        let seconds = MAX_WINDOWS * self.window() / self.rate as usize;
        let problem = format!("the sound is longer than {seconds} s, which is as long as is taken; send it in parts");
        Err(PipelineError::TooLarge { index: 0, problem })
    }

    /// One run for each window.
    fn runs(&self, samples: &[f32]) -> Result<Vec<Inputs>, TensorError> {
        let (window, context) = (self.window(), self.context());
        let count = samples.len().div_ceil(window);
        let mut padded = Vec::with_capacity(context + count * window);
        padded.resize(context, 0.0);
        padded.extend_from_slice(samples);
        padded.resize(context + count * window, 0.0);
        let rate = Tensor::from_vec(DType::Int64, self.graph.rate_shape.clone(), vec![i64::from(self.rate)])?;
        let whole = Tensor::from_vec(DType::Fp32, vec![padded.len()], padded)?;
        let Data::Bytes(bytes) = whole.data() else { return Ok(Vec::new()) };
        let number = size_of::<f32>();
        let mut runs: Vec<Inputs> = Vec::with_capacity(count);
        for place in 0..count {
            let start = place * window;
            let samples = bytes.slice(start * number..(start + context + window) * number);
            let samples = Tensor::from_bytes(DType::Fp32, vec![1, context + window], samples)?;
            runs.push(vec![(INPUT.to_owned(), samples), (SAMPLING_RATE.to_owned(), rate.clone())]);
        }
        if let Some(first) = runs.first_mut() {
            for Memory { carry, shape } in &self.graph.memory {
                let nothing = vec![0f32; element_count(shape).unwrap_or_default()];
                first.push((carry.input.clone(), Tensor::from_vec(DType::Fp32, shape.clone(), nothing)?));
            }
        }
        Ok(runs)
    }
}

impl Pipeline for VoiceDetection {
    fn task(&self) -> &'static str {
        TASK
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        let samples = samples_at(item, self.max_seconds, self.rate)?;
        self.check_length(samples.len())?;
        let fault = |error: TensorError| PipelineError::Item { index: 0, problem: error.to_string() };
        Ok(Prepared {
            runs: self.runs(&samples).map_err(fault)?,
            carried: self.graph.memory.iter().map(|memory| memory.carry.clone()).collect(),
            notes: Notes::new(Heard { samples: samples.len() }, size_of::<Heard>()),
        })
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = read_parameters(parameters)?;
        let Heard { samples } = notes.get()?;
        let probability = |outputs: &Outputs| {
            let tensor = tensor_named(outputs, OUTPUT)?;
            match tensor.to_f32().as_deref() {
                Some(&[probability]) => Ok(probability),
                _ => Err(unexpected(OUTPUT, "[1, 1]", tensor)),
            }
        };
        let probabilities = outputs.iter().map(probability).collect::<Result<Vec<f32>, PipelineError>>()?;
        let rate = f64::from(self.rate);
        let windows = Windows { size: self.window(), length: *samples, rate: self.rate };
        let parts = spoken(&probabilities, windows, &checked.rules(self.window(), rate));
        let segments = parts.iter().map(|part| SpokenPart {
            start: part.start as f64 / rate,
            end: part.end as f64 / rate,
            score: part.score,
        });
        let window_ms = self.window() as f64 * 1000.0 / rate;
        Ok(Prediction::Voice(VoiceActivity {
            segments: segments.collect(),
            windows: checked.probabilities.then_some(VoiceWindows { window_ms, probabilities }),
        }))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

impl Checked {
    fn rules(&self, window: usize, rate: f64) -> Rules {
        let samples = |ms: f64| ms * rate / 1000.0;
        // With its margins and the window that is found to be too much, a part is as long as was asked for.
        let max_speech = self.max_speech_s * rate - window as f64 - 2.0 * samples(self.pad_ms);
        Rules {
            threshold: self.threshold,
            neg_threshold: self.neg_threshold,
            min_speech: samples(self.min_speech_ms),
            min_silence: samples(self.min_silence_ms),
            pad: samples(self.pad_ms) as usize,
            max_speech,
        }
    }
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked {
        threshold: 0.5,
        // Until it is told, or follows from the threshold.
        neg_threshold: f64::NAN,
        min_speech_ms: 250.0,
        min_silence_ms: 100.0,
        pad_ms: 30.0,
        max_speech_s: f64::INFINITY,
        probabilities: false,
    };
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        let (number, max, what) = match name.as_str() {
            "threshold" => (&mut checked.threshold, 1.0, "a probability"),
            "neg_threshold" => (&mut checked.neg_threshold, 1.0, "a probability"),
            "min_speech_duration_ms" => (&mut checked.min_speech_ms, MAX_MS, "milliseconds"),
            "min_silence_duration_ms" => (&mut checked.min_silence_ms, MAX_MS, "milliseconds"),
            "speech_pad_ms" => (&mut checked.pad_ms, MAX_MS, "milliseconds"),
            "max_speech_duration_s" => (&mut checked.max_speech_s, MAX_SECONDS, "seconds"),
            "return_probabilities" => {
                match value {
                    Value::Null => {}
                    Value::Bool(wanted) => checked.probabilities = *wanted,
                    _ => return wrong(format!("expected true or false, got {value}")),
                }
                continue;
            }
            _ => {
                return wrong(format!(
                    "{TASK} has no such parameter; it takes threshold, neg_threshold, min_speech_duration_ms, \
                    min_silence_duration_ms, speech_pad_ms, max_speech_duration_s and return_probabilities"
                ));
            }
        };
        match value.as_f64() {
            Some(given) if (0.0..=max).contains(&given) => *number = given,
            None if value.is_null() => {}
            _ => return wrong(format!("expected {what} from 0 to {max}, got {value}")),
        }
    }
    let Checked { threshold, neg_threshold, .. } = checked;
    if neg_threshold.is_nan() {
        checked.neg_threshold = (threshold - 0.15).max(0.01).min(threshold);
    } else if neg_threshold > threshold {
        let problem = format!("expected at most the threshold, {threshold}, got {neg_threshold}");
        return Err(PipelineError::Parameter { name: "neg_threshold".to_owned(), problem });
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::pipelines::{PipelineLimits, PipelineManifest, detect};
    use serde_json::json;
    use std::path::Path;

    fn silero() -> (Vec<Spec>, Vec<Spec>) {
        let inputs = vec![
            spec("input", DType::Fp32, &[-1, -1]),
            spec("state", DType::Fp32, &[2, -1, 128]),
            spec("sr", DType::Int64, &[]),
        ];
        (inputs, vec![spec("output", DType::Fp32, &[-1, 1]), spec("stateN", DType::Fp32, &[-1, -1, -1])])
    }

    /// As the fourth version has them.
    fn older() -> (Vec<Spec>, Vec<Spec>) {
        let memory = |name: &str| spec(name, DType::Fp32, &[2, -1, 64]);
        let inputs =
            vec![spec("input", DType::Fp32, &[-1, -1]), spec("sr", DType::Int64, &[]), memory("h"), memory("c")];
        (inputs, vec![spec("output", DType::Fp32, &[-1, 1]), memory("hn"), memory("cn")])
    }

    fn found(manifest: &str, (inputs, outputs): (Vec<Spec>, Vec<Spec>)) -> Result<Arc<dyn Pipeline>, String> {
        let manifest: PipelineManifest = toml::from_str(manifest).unwrap();
        let limits = PipelineLimits { max_audio_seconds: 5_000, ..PipelineLimits::default() };
        let found = detect(Path::new("/nonexistent"), &manifest, &inputs, &outputs, &limits);
        let found = found.map_err(|error| error.to_string())?;
        found.pipeline.ok_or(found.task)
    }

    /// A WAV file of as many samples of 8 bits, each one louder than the one before it.
    fn wav(rate: u32, samples: usize) -> Item {
        let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
        bytes.extend([rate, rate].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(b"\x01\0\x08\0data");
        bytes.extend((samples as u32).to_le_bytes());
        bytes.extend((0..samples).map(|place| 129 + (place % 100) as u8));
        Item::Bytes(bytes.into())
    }

    fn numbers(inputs: &Inputs, name: &str) -> Vec<f32> {
        inputs.iter().find(|(input, _)| input == name).unwrap().1.to_f32().unwrap()
    }

    #[test]
    fn each_window_is_a_run_with_the_end_of_the_one_before_it_in_front() {
        for (manifest, rate, window) in
            [("", 16_000, 512), ("task = \"voice-activity-detection\"\n[audio]\nsampling_rate = 8000", 8_000, 256)]
        {
            let pipeline = found(manifest, silero()).unwrap();
            assert_eq!(pipeline.task(), TASK);
            let item = wav(rate, 2 * window + 3);
            let prepared = pipeline.preprocess(&item, &Parameters::new()).unwrap();
            assert_eq!(prepared.runs.len(), 3);
            assert_eq!(prepared.carried, [Carry { output: "stateN".into(), input: "state".into() }]);
            let all: Vec<f32> = (0..2 * window + 3).map(|place| (place % 100 + 1) as f32 / 128.0).collect();
            let inputs: Vec<Vec<f32>> = prepared.runs.iter().map(|run| numbers(run, "input")).collect();
            let context = window / 8;
            assert_eq!((&inputs[0][..context], &inputs[0][context..]), (&vec![0.0; context][..], &all[..window]));
            assert_eq!(inputs[1], all[window - context..2 * window]);
            assert_eq!(inputs[2][..context + 3], all[2 * window - context..]);
            assert_eq!(inputs[2][context + 3..], vec![0.0; window - 3]);
            assert_eq!(numbers(&prepared.runs[0], "state"), vec![0.0; 256]);
            assert_eq!(prepared.runs[1].len(), 2, "the memory is left to the run before");
            let (_, sr) = &prepared.runs[2][1];
            assert_eq!((sr.shape(), sr.bytes()), (&[][..], &u64::from(rate).to_le_bytes()[..]));
        }
    }

    #[test]
    fn graphs_of_the_fourth_version_have_two_memories_and_no_context() {
        let prepared = found("", older()).unwrap().preprocess(&wav(16_000, 600), &Parameters::new()).unwrap();
        let shapes: Vec<&[usize]> = prepared.runs[0].iter().map(|(_, tensor)| tensor.shape()).collect();
        assert_eq!(shapes, [&[1, 512][..], &[], &[2, 1, 64], &[2, 1, 64]]);
        assert_eq!(prepared.carried.len(), 2);
    }

    #[test]
    fn other_graphs_are_no_detectors() {
        let change = |graph: (Vec<Spec>, Vec<Spec>), name: &str, with: Option<Spec>| {
            let (mut inputs, mut outputs) = graph;
            for list in [&mut inputs, &mut outputs] {
                if let Some(place) = list.iter().position(|spec| spec.name == name) {
                    list.splice(place..=place, with.clone());
                }
            }
            (inputs, outputs)
        };
        for (name, with, expected) in [
            ("sr", None, "no sr"),
            ("sr", Some(spec("sr", DType::Int32, &[])), "no sr"),
            ("sr", Some(spec("sr", DType::Int64, &[-1])), "no sr"),
            ("state", None, "no h "),
            ("state", Some(spec("state", DType::Fp32, &[2, 2, 128])), "no state"),
            ("state", Some(spec("state", DType::Fp32, &[-1, -1, 128])), "no state"),
            ("state", Some(spec("state", DType::Fp32, &[1 << 12, 1, 1 << 12])), "no state"),
            ("stateN", None, "no stateN"),
            ("input", Some(spec("input", DType::Fp32, &[-1, -1, -1])), "no input"),
            ("input", Some(spec("input", DType::Fp32, &[2, -1])), "no input"),
            ("input", Some(spec("input", DType::Fp32, &[1, 512])), "takes 512 samples"),
            ("output", Some(spec("output", DType::Int64, &[-1, 1])), "no output"),
        ] {
            let graph = change(silero(), name, with);
            let text = found("task = \"voice-activity-detection\"", graph.clone()).err().unwrap();
            assert!(text.contains(expected), "{name}: {text}");
            assert_eq!(found("", graph).err().as_deref(), Some("raw"), "{name}");
        }
        let (mut inputs, outputs) = silero();
        inputs.push(spec("more", DType::Fp32, &[1]));
        let text = found("task = \"voice-activity-detection\"", (inputs, outputs)).err().unwrap();
        assert!(text.contains("needs the input \"more\""), "{text}");
    }

    #[test]
    fn the_rate_is_one_of_two_and_belongs_to_this_task() {
        let with = |rate: u32| format!("task = \"voice-activity-detection\"\n[audio]\nsampling_rate = {rate}");
        let text = found(&with(44_100), silero()).err().unwrap();
        assert!(text.contains("sampling_rate of model.toml: expected 16000 or 8000, got 44100"), "{text}");
        assert!(found("[audio]\nsampling_rate = 8000", silero()).is_ok());
        let text = found("task = \"raw\"\n[audio]\nsampling_rate = 8000", silero()).err().unwrap();
        assert!(text.contains("[pipeline] audio of model.toml belongs to voice-activity-detection"), "{text}");
    }

    #[test]
    fn a_sound_of_more_windows_than_are_taken_is_refused() {
        let (inputs, outputs) = silero();
        let graph = Graph::find(&inputs, &outputs).unwrap();
        let detection = VoiceDetection { graph, rate: RATE, max_seconds: u64::MAX };
        assert_eq!(detection.check_length(MAX_WINDOWS * 512), Ok(()));
        let refused = detection.check_length(MAX_WINDOWS * 512 + 1).unwrap_err();
        assert!(matches!(&refused, PipelineError::TooLarge { .. }) && refused.to_string().contains("than 4194 s"));
    }

    #[test]
    fn parameters_are_checked_before_any_work() {
        let pipeline = found("", silero()).unwrap();
        let check = |parameters: serde_json::Value| {
            let checked = pipeline.check_parameters(parameters.as_object().unwrap());
            checked.err().map(|error| error.to_string()).unwrap_or_default()
        };
        for fine in [
            json!({"threshold": 0.3, "neg_threshold": null, "min_speech_duration_ms": 0, "return_probabilities": true}),
            json!({"min_silence_duration_ms": 5.5, "speech_pad_ms": null, "max_speech_duration_s": 15, "threshold": 0}),
        ] {
            assert_eq!(check(fine), "");
        }
        for (parameters, expected) in [
            (json!({"threshold": 1.5}), "parameters.threshold: expected a probability from 0 to 1, got 1.5"),
            (json!({"threshold": "x"}), "expected a probability from 0 to 1, got \"x\""),
            (json!({"neg_threshold": 0.6}), "parameters.neg_threshold: expected at most the threshold, 0.5, got 0.6"),
            (json!({"speech_pad_ms": -1}), "expected milliseconds from 0 to 86400000, got -1"),
            (json!({"max_speech_duration_s": 1e300}), "expected seconds from 0 to 86400"),
            (json!({"return_probabilities": 1}), "expected true or false, got 1"),
            (json!({"top_k": 1}), "has no such parameter; it takes threshold, neg_threshold"),
        ] {
            let text = check(parameters);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn outputs_that_are_no_probability_are_the_models_fault() {
        let pipeline = found("", silero()).unwrap();
        let notes = Notes::new(Heard { samples: 512 }, 0);
        let output = |shape: &[usize]| {
            let values = vec![0.9f32; shape.iter().product()];
            vec![("output".to_owned(), Tensor::from_vec(DType::Fp32, shape.to_vec(), values).unwrap().into())]
        };
        let read = |outputs: &[Outputs]| pipeline.postprocess(outputs, &notes, &Parameters::new());
        assert!(read(&[output(&[1, 1])]).is_ok());
        for wrong in [vec![output(&[2, 1])], vec![vec![]]] {
            assert!(matches!(read(&wrong), Err(PipelineError::Outputs(_))));
        }
    }
}

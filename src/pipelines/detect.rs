//! Finds the task of a model, and its pipeline, from its manifest, the HuggingFace files beside it and its graph.
//!
//! The manifest decides where it names a task; else `modules.json` of sentence-transformers, else `architectures` of
//! `config.json`, else an image processor's file with class names, else a graph that can only be a voice activity detector. What is found but not served in this version is served as raw tensors, and said. Files that the
//! task does not need may be missing, malformed or of any other kind. Reads files: call it off the async threads.

use super::audio::{self, AUDIO_CLASSIFICATION, SPEECH_RECOGNITION, VOICE_DETECTION};
use super::files::read_json_object;
use super::image::{self, ImageInput};
use super::image::{
    DEPTH_ESTIMATION, IMAGE_CLASSIFICATION, IMAGE_FEATURE_EXTRACTION, IMAGE_SEGMENTATION, OBJECT_DETECTION,
    ZERO_SHOT_IMAGE,
};
use super::scores::find_logits;
use super::text::{self, FEATURE_EXTRACTION};
use super::{Pipeline, PipelineError, PipelineLimits, PipelineManifest, tabular};
use crate::tensor::Spec;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const RAW: &str = "raw";
const CONFIG: &str = "config.json";
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";

/// Endings of `architectures` and the tasks they stand for; the first that fits.
const ARCHITECTURES: [(&str, &str); 27] = [
    ("ForImageClassification", IMAGE_CLASSIFICATION),
    ("ForImageClassificationWithTeacher", IMAGE_CLASSIFICATION),
    ("ForObjectDetection", OBJECT_DETECTION),
    ("ForZeroShotObjectDetection", "zero-shot-object-detection"),
    ("ForSemanticSegmentation", IMAGE_SEGMENTATION),
    ("ForInstanceSegmentation", IMAGE_SEGMENTATION),
    ("ForUniversalSegmentation", IMAGE_SEGMENTATION),
    ("ForDepthEstimation", DEPTH_ESTIMATION),
    ("ForVideoClassification", "video-classification"),
    ("ForAudioClassification", AUDIO_CLASSIFICATION),
    ("ForAudioFrameClassification", "audio-frame-classification"),
    ("ForCTC", SPEECH_RECOGNITION),
    ("ForSpeechSeq2Seq", SPEECH_RECOGNITION),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForCausalLM", "text-generation"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("LMHeadModel", "text-generation"),
    ("DoubleHeadsModel", "text-generation"),
    ("MTModel", "text2text-generation"),
    ("VisionEncoderDecoderModel", "image-to-text"),
    ("SpeechEncoderDecoderModel", SPEECH_RECOGNITION),
    ("EncoderDecoderModel", "text2text-generation"),
    ("ModelWithProjection", FEATURE_EXTRACTION),
    ("Model", FEATURE_EXTRACTION),
];

/// Other names of tasks that are in use among HuggingFace's users.
const ALIASES: [(&str, &str); 4] = [
    ("ner", "token-classification"),
    ("sentiment-analysis", "text-classification"),
    ("text-ranking", "text-classification"),
    ("sentence-similarity", FEATURE_EXTRACTION),
];

/// What a pipeline can be made from.
pub(crate) struct Sources<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) manifest: &'a PipelineManifest,
    config: &'a Result<Option<Value>, PipelineError>,
    pub(crate) inputs: &'a [Spec],
    pub(crate) outputs: &'a [Spec],
    pub(crate) limits: &'a PipelineLimits,
}

impl<'a> Sources<'a> {
    /// `config.json`, where there is one.
    ///
    /// # Errors
    /// Where it is malformed.
    pub(crate) fn config(&self) -> Result<Option<&'a Value>, PipelineError> {
        self.config.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }

    /// The same with some of the graph's inputs only.
    pub(crate) fn with_inputs<'b>(&self, inputs: &'b [Spec]) -> Sources<'b>
    where
        'a: 'b,
    {
        let Sources { folder, manifest, config, outputs, limits, .. } = *self;
        Sources { folder, manifest, config, inputs, outputs, limits }
    }
}

/// A pipeline, and one sentence on how it does what it does.
pub(crate) struct Made {
    pub(crate) pipeline: Arc<dyn Pipeline>,
    pub(crate) how: String,
}

/// Makes the pipeline of one task.
///
/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
type Maker = fn(&Sources<'_>) -> Result<Made, PipelineError>;

/// The tasks that are served beside `raw`.
const MAKERS: [(&str, Maker); 17] = [
    (FEATURE_EXTRACTION, text::make_feature_extraction),
    ("fill-mask", text::make_fill_mask),
    ("question-answering", text::make_question_answering),
    ("text-classification", text::make_text_classification),
    ("token-classification", text::make_token_classification),
    ("zero-shot-classification", text::make_zero_shot),
    (IMAGE_CLASSIFICATION, image::make_image_classification),
    (OBJECT_DETECTION, image::make_object_detection),
    (IMAGE_SEGMENTATION, image::make_image_segmentation),
    (DEPTH_ESTIMATION, image::make_depth_estimation),
    (IMAGE_FEATURE_EXTRACTION, image::make_image_feature_extraction),
    (ZERO_SHOT_IMAGE, image::make_zero_shot_image),
    (AUDIO_CLASSIFICATION, audio::make_audio_classification),
    (SPEECH_RECOGNITION, audio::make_speech_recognition),
    (VOICE_DETECTION, audio::make_voice_detection),
    (tabular::CLASSIFICATION, tabular::make_classification),
    (tabular::REGRESSION, tabular::make_regression),
];

/// The names of the tasks that are served beside `raw`.
pub(crate) fn tasks() -> impl Iterator<Item = &'static str> {
    MAKERS.iter().map(|(name, _)| *name)
}

/// What was found.
pub struct Detected {
    /// `None`: the model is served as raw tensors.
    pub pipeline: Option<Arc<dyn Pipeline>>,
    /// The pipeline's task; `raw` where there is none.
    pub task: String,
    /// One sentence: what the task was read from.
    pub evidence: String,
    /// What is missing to serve the task that was found; a warning for the operator.
    pub missing: Vec<String>,
}

/// A task found and where.
struct Found {
    task: String,
    evidence: String,
    /// Whether the manifest asks for it: then what is missing is an error.
    demanded: bool,
}

/// Finds the pipeline of the model whose files lie in `folder` and whose graph has `inputs` and `outputs`.
///
/// # Errors
/// [`PipelineError::Setup`] where the manifest asks for what cannot be, or a file the task depends on is malformed.
pub fn detect(
    folder: &Path,
    manifest: &PipelineManifest,
    inputs: &[Spec],
    outputs: &[Spec],
    limits: &PipelineLimits,
) -> Result<Detected, PipelineError> {
    let config = read_json_object(folder, CONFIG);
    let found = find_task(folder, manifest, &config, inputs, outputs)?;
    check_applies(manifest, found.as_ref())?;
    let Some(found) = found else {
        let missing = match &config {
            Err(problem) => vec![format!("{problem}; it was not used")],
            Ok(_) => Vec::new(),
        };
        return Ok(raw("no file beside the graph names a task".to_owned(), missing));
    };
    let task = found.task.as_str();
    if task == RAW {
        return Ok(raw(found.evidence, Vec::new()));
    }
    let Some((_, make)) = MAKERS.iter().find(|(name, _)| *name == task) else {
        if found.demanded {
            let names = tasks().collect::<Vec<_>>().join(", ");
            return Err(PipelineError::Setup(format!("there is no task {task:?}; task may be {RAW}, {names}")));
        }
        return Ok(raw(found.evidence, vec![format!("the task {task} is not served yet: tensors only")]));
    };
    let sources = Sources { folder, manifest, config: &config, inputs, outputs, limits };
    match make(&sources) {
        Ok(Made { pipeline, how }) => Ok(Detected {
            task: pipeline.task().to_owned(),
            pipeline: Some(pipeline),
            evidence: format!("{}; {how}", found.evidence),
            missing: Vec::new(),
        }),
        Err(problem) if found.demanded => Err(PipelineError::Setup(format!("task {task:?}: {problem}"))),
        // Models of other kinds have such architectures too, and one may come without a file that it needs.
        Err(problem) => {
            let missing = vec![format!("the task {task} cannot be served: {problem}")];
            Ok(raw(found.evidence, missing))
        }
    }
}

fn raw(evidence: String, missing: Vec<String>) -> Detected {
    Detected { pipeline: None, task: RAW.to_owned(), evidence, missing }
}

fn find_task(
    folder: &Path,
    manifest: &PipelineManifest,
    config: &Result<Option<Value>, PipelineError>,
    inputs: &[Spec],
    outputs: &[Spec],
) -> Result<Option<Found>, PipelineError> {
    if let Some(task) = &manifest.task {
        let evidence = format!("model.toml says task = {task:?}");
        let task = ALIASES.iter().find(|(other, _)| other == task).map_or(task.as_str(), |(_, task)| task).to_owned();
        return Ok(Some(Found { task, evidence, demanded: true }));
    }
    // Before the architecture, which is often that of the model's training.
    if text::is_sentence_transformers(folder) {
        let evidence = "modules.json is that of a sentence-transformers folder".to_owned();
        return Ok(Some(Found { task: FEATURE_EXTRACTION.to_owned(), evidence, demanded: false }));
    }
    let takes_picture = ImageInput::find(inputs).is_ok();
    let config = match config {
        Ok(Some(config)) => config,
        Ok(None) => return Ok(told_by_graph(inputs, outputs)),
        // Beside an image processor's file the graph is someone's vision model, and its task cannot be told.
        Err(problem) if takes_picture && folder.join(PREPROCESSOR).is_file() => return Err(problem.clone()),
        Err(_) => return Ok(None),
    };
    if let Some(architecture) = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str) {
        // Encoders of pictures, of texts and of both have the same endings.
        let task = task_of(architecture, config).map(|task| match task {
            FEATURE_EXTRACTION if image::takes_both(inputs) => ZERO_SHOT_IMAGE,
            FEATURE_EXTRACTION if takes_picture && folder.join(PREPROCESSOR).is_file() => IMAGE_FEATURE_EXTRACTION,
            task => task,
        });
        let evidence = match task {
            Some(_) => format!("{CONFIG} names the architecture {architecture}"),
            None => format!("{CONFIG} names the architecture {architecture}, which stands for no known task"),
        };
        let task = task.unwrap_or(RAW).to_owned();
        return Ok(Some(Found { task, evidence, demanded: false }));
    }
    let has_labels = config.get("id2label").is_some_and(|labels| labels.is_object() || labels.is_array());
    let has_classes = matches!(find_logits(outputs), Ok((_, Some(_))));
    if takes_picture && has_classes && has_labels && folder.join(PREPROCESSOR).is_file() {
        let evidence =
            format!("the graph takes pictures and gives class scores, and {PREPROCESSOR} and id2label are beside it");
        return Ok(Some(Found { task: IMAGE_CLASSIFICATION.to_owned(), evidence, demanded: false }));
    }
    Ok(told_by_graph(inputs, outputs))
}

/// The task of a graph that comes without any file and whose inputs and outputs can mean one thing only.
fn told_by_graph(inputs: &[Spec], outputs: &[Spec]) -> Option<Found> {
    audio::is_voice_detector(inputs, outputs).then(|| Found {
        task: VOICE_DETECTION.to_owned(),
        evidence: "the graph's inputs and outputs are those of Silero's voice activity detectors".to_owned(),
        demanded: false,
    })
}

fn task_of(architecture: &str, config: &Value) -> Option<&'static str> {
    let (_, task) = ARCHITECTURES.iter().find(|(ending, _)| architecture.ends_with(ending))?;
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let hears = ["wav2vec2", "hubert", "wavlm", "sew", "unispeech", "audio", "whisper"];
    let hears = hears.iter().any(|part| model_type.contains(part));
    Some(match *task {
        "text-classification" if hears => AUDIO_CLASSIFICATION,
        "text2text-generation" if model_type == "whisper" => SPEECH_RECOGNITION,
        task => task,
    })
}

/// Refuses keys of the manifest that nothing would read.
fn check_applies(manifest: &PipelineManifest, found: Option<&Found>) -> Result<(), PipelineError> {
    let task = found.map_or(RAW, |found| found.task.as_str());
    for (key, set, needs) in [
        ("decoder", manifest.decoder.is_some(), OBJECT_DETECTION),
        ("columns", manifest.columns.is_some(), tabular::CLASSIFICATION),
        ("logit_scale", manifest.logit_scale.is_some(), ZERO_SHOT_IMAGE),
        ("logit_bias", manifest.logit_bias.is_some(), ZERO_SHOT_IMAGE),
        ("audio", manifest.audio.is_some(), VOICE_DETECTION),
    ] {
        let belongs = task == needs || needs == tabular::CLASSIFICATION && task == tabular::REGRESSION;
        if set && !belongs {
            return Err(PipelineError::Setup(format!(
                "[pipeline] {key} of model.toml belongs to {needs}; the task is {task}: remove {key}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::image::input_spec as spec;
    use super::*;
    use crate::tensor::DType;

    const IMAGE_CONFIG: &str =
        r#"{"architectures": ["ViTForImageClassification"], "id2label": {"0": "ant", "1": "bee"}}"#;
    const VIT: &str = r#"{"image_processor_type": "ViTImageProcessor", "size": 32}"#;

    fn vision() -> (Vec<Spec>, Vec<Spec>) {
        (vec![spec("pixel_values", DType::Fp32, &[-1, 3, -1, -1])], vec![spec("logits", DType::Fp32, &[-1, 2])])
    }

    fn text() -> (Vec<Spec>, Vec<Spec>) {
        (vec![spec("input_ids", DType::Int64, &[-1, -1])], vec![spec("logits", DType::Fp32, &[-1, 2])])
    }

    fn encoder() -> (Vec<Spec>, Vec<Spec>) {
        (text().0, vec![spec("last_hidden_state", DType::Fp32, &[-1, -1, 4])])
    }

    fn found(manifest: &str, files: &[(&str, &str)], graph: (Vec<Spec>, Vec<Spec>)) -> Result<Detected, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let manifest = toml::from_str(manifest).unwrap();
        let got = detect(folder.path(), &manifest, &graph.0, &graph.1, &PipelineLimits::default());
        got.map_err(|error| {
            let text = error.to_string();
            assert!(!text.contains(folder.path().to_str().unwrap()), "names a path of the server: {text}");
            text
        })
    }

    /// `expected`: the task, then a part of the evidence, then a part of what is missing (empty: nothing).
    #[track_caller]
    fn check(manifest: &str, files: &[(&str, &str)], graph: (Vec<Spec>, Vec<Spec>), expected: (&str, &str, &str)) {
        let got = found(manifest, files, graph).unwrap();
        let missing = got.missing.join("; ");
        assert_eq!(got.task, expected.0, "{} {missing}", got.evidence);
        assert_eq!(got.pipeline.is_some(), got.task != RAW);
        assert!(got.evidence.contains(expected.1), "{}", got.evidence);
        assert!(missing.contains(expected.2) && missing.is_empty() == expected.2.is_empty(), "{missing}");
    }

    #[track_caller]
    fn refused(manifest: &str, files: &[(&str, &str)], graph: (Vec<Spec>, Vec<Spec>), expected: &str) {
        let text = found(manifest, files, graph).err().unwrap_or_default();
        assert!(text.contains(expected), "{text:?}");
    }

    #[test]
    fn the_task_is_read_from_the_manifest_then_the_architecture() {
        let files = [("config.json", IMAGE_CONFIG), ("preprocessor_config.json", VIT)];
        check(
            "",
            &files,
            vision(),
            (IMAGE_CLASSIFICATION, "config.json names the architecture ViTForImageClassification", ""),
        );
        check("task = \"raw\"", &files, vision(), (RAW, "model.toml says task = \"raw\"", ""));
        check("", &[], vision(), (RAW, "no file beside the graph names a task", ""));
        let fixed = (vec![spec("x", DType::Fp32, &[1, 1, 28, 28])], vec![spec("y", DType::Fp32, &[1, 10])]);
        check("task = \"image-classification\"", &[], fixed, (IMAGE_CLASSIFICATION, "scaled to 0…1", ""));
        let labelled = r#"{"id2label": {"0": "ant", "1": "bee"}}"#;
        let files = [("config.json", labelled), ("preprocessor_config.json", VIT)];
        check("", &files, vision(), (IMAGE_CLASSIFICATION, "takes pictures and gives class scores", ""));
        let unknown = [("config.json", r#"{"architectures": ["Nonesuch"]}"#)];
        check("", &unknown, vision(), (RAW, "stands for no known task", ""));
        let odd = [("config.json", r#"{"architectures": 7, "id2label": null}"#)];
        check("", &odd, vision(), (RAW, "no file", ""));
    }

    #[test]
    fn tasks_that_are_not_served_are_raw_and_said() {
        for (architecture, model_type, task) in [
            ("GPT2LMHeadModel", "gpt2", "text-generation"),
            ("MarianMTModel", "marian", "text2text-generation"),
            ("VisionEncoderDecoderModel", "vision-encoder-decoder", "image-to-text"),
        ] {
            let config = format!(r#"{{"architectures": ["{architecture}"], "model_type": "{model_type}"}}"#);
            let missing = format!("the task {task} is not served yet: tensors only");
            check("", &[("config.json", &config)], text(), (RAW, architecture, &missing));
        }
    }

    #[test]
    fn detectors_are_found_by_the_architecture_or_the_manifest() {
        let config = r#"{"architectures": ["YolosForObjectDetection"], "model_type": "yolos", "id2label": ["a", "b"]}"#;
        let files = [("config.json", config), ("preprocessor_config.json", VIT)];
        let outputs = vec![spec("logits", DType::Fp32, &[-1, -1, 3]), spec("pred_boxes", DType::Fp32, &[-1, -1, 4])];
        check("", &files, (vision().0, outputs), (OBJECT_DETECTION, "boxes are read by the decoder \"detr\"", ""));
        check("", &files, vision(), (RAW, "YolosForObjectDetection", "name the decoder in [pipeline] of model.toml"));
        let yolox =
            "task = \"object-detection\"\ndecoder = \"yolox\"\nlabels = [\"a\"]\n[image]\nresize = \"letterbox\"";
        let head = || {
            let input = spec("images", DType::Fp32, &[1, 3, 32, 32]);
            (vec![input], vec![spec("output", DType::Fp32, &[1, 21, 6])])
        };
        check(yolox, &[], head(), (OBJECT_DETECTION, "the decoder \"yolox\"; pictures are prepared as", ""));
        refused("task = \"object-detection\"\ndecoder = \"none\"", &[], head(), "expected one of \"detr\"");
    }

    #[test]
    fn tasks_on_texts_are_found_by_the_architecture() {
        let tokenizer = crate::pipelines::text::a_tokenizer().to_string();
        let tokenizer = ("tokenizer.json", tokenizer.as_str());
        let mask = ("tokenizer_config.json", r#"{"mask_token": "[UNK]"}"#);
        let float = |name: &str, dims: &[i64]| spec(name, DType::Fp32, dims);
        let tokens = || vec![float("logits", &[-1, -1, 3])];
        let ends = || vec![float("start_logits", &[-1, -1]), float("end_logits", &[-1, -1])];
        for (architecture, outputs, task) in [
            ("BertForSequenceClassification", text().1, "text-classification"),
            ("BertForTokenClassification", tokens(), "token-classification"),
            ("BertForMaskedLM", tokens(), "fill-mask"),
            ("BertForQuestionAnswering", ends(), "question-answering"),
        ] {
            let config = format!(r#"{{"architectures": ["{architecture}"]}}"#);
            let files = [("config.json", config.as_str()), tokenizer, mask];
            check("", &files, (text().0, outputs.clone()), (task, architecture, ""));
            check("", &files[..1], (text().0, outputs.clone()), (RAW, architecture, "there is no tokenizer.json"));
            check("", &files, (text().0, vec![]), (RAW, architecture, "the graph has no"));
        }
        let entails = r#"{"architectures": ["BertForSequenceClassification"], "id2label": ["entailment", "neutral"]}"#;
        let files = [("config.json", entails), tokenizer];
        let zero_shot = "zero-shot-classification";
        check(&format!("task = {zero_shot:?}"), &files, text(), (zero_shot, "model.toml says", ""));
    }

    #[test]
    fn sounds_are_found_by_the_architecture() {
        let config = |architecture: &str, model_type: &str| {
            format!(r#"{{"architectures": ["{architecture}"], "model_type": "{model_type}"}}"#)
        };
        let inputs = || vec![spec("input_values", DType::Fp32, &[-1, -1])];
        let classes = || (inputs(), vec![spec("logits", DType::Fp32, &[-1, 5])]);
        let frames = || (inputs(), vec![spec("logits", DType::Fp32, &[-1, -1, 32])]);
        let preprocessor = ("preprocessor_config.json", r#"{"sampling_rate": 8000}"#);
        let vocab = ("vocab.json", r#"{"<pad>": 0}"#);
        let how = "samples of mean 0 and deviation 1 at 8000 Hz";
        for architecture in ["Wav2Vec2ForSequenceClassification", "HubertForAudioClassification"] {
            let config = config(architecture, "wav2vec2");
            let files = [("config.json", config.as_str()), preprocessor];
            check("", &files, classes(), (AUDIO_CLASSIFICATION, how, ""));
            check("", &files[..1], classes(), (RAW, architecture, "preprocessor_config.json is missing"));
            check("", &files, text(), (RAW, architecture, "no FP32 or FP16 input that could hold a sound"));
        }
        let ctc = config("Wav2Vec2ForCTC", "wav2vec2");
        let files = [("config.json", ctc.as_str()), preprocessor, vocab];
        check("", &files, frames(), (SPEECH_RECOGNITION, "the characters are those of vocab.json", ""));
        check("", &files[..2], frames(), (RAW, "Wav2Vec2ForCTC", "there is no vocab.json or tokenizer.json"));
        check("", &files, classes(), (RAW, "Wav2Vec2ForCTC", "no float output of rank 3"));
        let demanded = "task = \"automatic-speech-recognition\"";
        refused(demanded, &files[..2], frames(), "there is no vocab.json or tokenizer.json");
        let whisper = config("WhisperForConditionalGeneration", "whisper");
        let mel = ("preprocessor_config.json", r#"{"feature_extractor_type": "WhisperFeatureExtractor"}"#);
        let files = [("config.json", whisper.as_str()), mel];
        let two = (
            vec![
                spec("input_features", DType::Fp32, &[-1, 80, 3000]),
                spec("decoder_input_ids", DType::Int64, &[-1, -1]),
            ],
            vec![spec("logits", DType::Fp32, &[-1, -1, 51865])],
        );
        check("", &files, two, (RAW, "Whisper", "needs the input \"decoder_input_ids\", which a sound does not give"));
        let classes =
            (vec![spec("input_features", DType::Fp32, &[-1, 80, 3000])], vec![spec("logits", DType::Fp32, &[-1, 5])]);
        let config = config("WhisperForAudioClassification", "whisper");
        let files = [("config.json", config.as_str()), mel];
        check("", &files, classes, (AUDIO_CLASSIFICATION, "80 log-mel bands", ""));
        let ast = r#"{"architectures": ["ASTForAudioClassification"], "model_type": "audio-spectrogram-transformer"}"#;
        let extractor = r#"{"feature_extractor_type": "ASTFeatureExtractor"}"#;
        let files = [("config.json", ast), ("preprocessor_config.json", extractor)];
        let graph = |frames: i64| {
            (vec![spec("input_values", DType::Fp32, &[-1, frames, 128])], vec![spec("logits", DType::Fp32, &[-1, 5])])
        };
        check("", &files, graph(-1), (AUDIO_CLASSIFICATION, "128 filter-bank bands", ""));
        check("", &files, graph(512), (RAW, "AST", "preprocessor_config.json gives [1, 1024, 128]"));
    }

    #[test]
    fn embeddings_are_found_by_sentence_transformers_or_the_architecture() {
        let tokenizer = crate::pipelines::text::a_tokenizer().to_string();
        let tokenizer = ("tokenizer.json", tokenizer.as_str());
        let bert = ("config.json", r#"{"architectures": ["BertModel"], "max_position_embeddings": 9}"#);
        let rows =
            "the architecture BertModel; each token's embedding is a row of last_hidden_state; texts have at most 9";
        check("", &[bert, tokenizer], encoder(), (FEATURE_EXTRACTION, rows, ""));
        check("task = \"feature-extraction\"", &[tokenizer], encoder(), (FEATURE_EXTRACTION, "model.toml says", ""));
        let modules =
            r#"[{"type": "sentence_transformers.models.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}]"#;
        let modules = ("modules.json", modules);
        let masked = ("config.json", r#"{"architectures": ["MPNetForMaskedLM"]}"#);
        let problem = "cannot be served: 1_Pooling/config.json is missing";
        check("", &[masked, modules, tokenizer], encoder(), (RAW, "a sentence-transformers folder", problem));
        let given = (text().0, vec![spec("sentence_embedding", DType::Fp32, &[-1, 4])]);
        check("", &[masked, modules, tokenizer], given, (FEATURE_EXTRACTION, "the graph's sentence_embedding", ""));
        refused("columns = [\"age\"]", &[bert, tokenizer], encoder(), "the task is feature-extraction: remove columns");
    }

    #[test]
    fn maps_and_embeddings_of_pictures_are_found_by_the_architecture() {
        let found = |architecture: &str, output: Spec, expected: (&str, &str, &str)| {
            let config = format!(r#"{{"architectures": ["{architecture}"], "id2label": ["a", "b"]}}"#);
            let files = [("config.json", config.as_str()), ("preprocessor_config.json", VIT)];
            check("", &files, (vision().0, vec![output]), expected);
        };
        let output = |name, dims: &[i64]| spec(name, DType::Fp32, dims);
        let segformer = "SegformerForSemanticSegmentation";
        found(segformer, output("logits", &[-1, 2, -1, -1]), (IMAGE_SEGMENTATION, "masks are made of logits; ", ""));
        found(segformer, output("logits", &[-1, 2]), (RAW, segformer, "needs a float output [1, classes, height"));
        found(segformer, output("logits", &[-1, 3, -1, -1]), (RAW, segformer, "has 2 labels, but the graph's output"));
        let mask2former = "Mask2FormerForUniversalSegmentation";
        let queries = output("masks_queries_logits", &[-1, -1, -1, -1]);
        found(mask2former, queries, (RAW, mask2former, "masks of queries (masks_queries_logits) are not put together"));
        let depth = "DepthAnythingForDepthEstimation";
        found(depth, output("predicted_depth", &[-1, -1, -1]), (DEPTH_ESTIMATION, "those of predicted_depth", ""));
        found(depth, output("predicted_depth", &[-1]), (RAW, depth, "needs a float output [1, height, width]"));
        let rows = "a row of last_hidden_state";
        let hidden = || output("last_hidden_state", &[-1, -1, 4]);
        found("Dinov2Model", hidden(), (IMAGE_FEATURE_EXTRACTION, rows, ""));
        let clip = "CLIPVisionModelWithProjection";
        found(clip, output("image_embeds", &[-1, 4]), (IMAGE_FEATURE_EXTRACTION, "embedding is image_embeds", ""));
        found(
            "ViTModel",
            output("a", &[-1]),
            (RAW, "ViTModel", "last_hidden_state [1, patches, width] or pooler_output"),
        );
    }

    #[test]
    fn tasks_have_other_names_and_unknown_ones_are_refused() {
        let tokenizer = crate::pipelines::text::a_tokenizer().to_string();
        let tokenizer = ("tokenizer.json", tokenizer.as_str());
        let evidence = "task = \"sentiment-analysis\"";
        check("task = \"sentiment-analysis\"", &[tokenizer], text(), ("text-classification", evidence, ""));
        refused("task = \"image-clasification\"", &[], vision(), "no task \"image-clasification\"; task may be raw,");
        for (_, task) in ALIASES {
            assert!(MAKERS.iter().any(|(name, _)| *name == task), "{task}");
        }
    }

    #[test]
    fn keys_that_cannot_apply_are_refused() {
        let files = [("config.json", IMAGE_CONFIG), ("preprocessor_config.json", VIT)];
        refused("decoder = \"yolox\"", &files, vision(), "decoder of model.toml belongs to object-detection");
        refused("columns = [\"age\"]", &[], text(), "the task is raw: remove columns");
        let letterbox =
            "task = \"image-classification\"\n[image]\nresize = \"letterbox\"\nsize = { height = 8, width = 8 }";
        check(letterbox, &[], vision(), (IMAGE_CLASSIFICATION, "[pipeline.image] of model.toml says", ""));
    }

    #[test]
    fn malformed_files_matter_only_where_the_task_depends_on_them() {
        let broken = ("config.json", "{\"architectures\": [");
        refused("", &[broken, ("preprocessor_config.json", VIT)], vision(), "config.json: malformed JSON");
        refused("task = \"image-classification\"", &[broken], vision(), "config.json: malformed JSON");
        check("", &[broken], vision(), (RAW, "no file", "config.json: malformed JSON"));
        check("", &[("config.json", "[1]")], text(), (RAW, "no file", "expected a JSON object"));
        check("task = \"raw\"", &[broken], vision(), (RAW, "raw", ""));
        let broken = ("preprocessor_config.json", "nonsense");
        let config = ("config.json", IMAGE_CONFIG);
        let problem = "preprocessor_config.json: malformed JSON";
        check("", &[config, broken], vision(), (RAW, "ViTForImageClassification", problem));
        refused("task = \"image-classification\"", &[config, broken], vision(), problem);
        check(
            "",
            &[("config.json", r#"{"architectures": ["BertModel"]}"#), broken],
            text(),
            (RAW, "BertModel", "feature-extraction"),
        );
    }

    #[test]
    fn a_graph_that_does_not_fit_the_task_is_raw_unless_the_manifest_demands_it() {
        let config = [("config.json", IMAGE_CONFIG)];
        let demanded = "task = \"image-classification\"";
        check("", &config, text(), (RAW, "ViTForImageClassification", "float or UINT8"));
        refused(demanded, &config, text(), "float or UINT8");
        check("", &config, vision(), (RAW, "ViTForImageClassification", "size of the pictures is unknown"));
        refused(demanded, &config, vision(), "size of the pictures is unknown");
        let config = [("config.json", r#"{"architectures": ["BertModel"]}"#)];
        let demanded = "task = \"feature-extraction\"";
        check("", &config, vision(), (RAW, "BertModel", "needs the input \"pixel_values\""));
        refused(demanded, &config, vision(), "needs the input \"pixel_values\"");
        check("", &config, encoder(), (RAW, "BertModel", "there is no tokenizer.json"));
        refused(demanded, &config, encoder(), "there is no tokenizer.json");
        let broken = [config[0], ("tokenizer.json", "{")];
        check("", &broken, encoder(), (RAW, "BertModel", "tokenizer.json: not a tokenizer"));
        let graph = || (vision().0, vec![spec("logits", DType::Fp32, &[-1, 3])]);
        let files = [("config.json", IMAGE_CONFIG), ("preprocessor_config.json", VIT)];
        let problem = "id2label of config.json has 2 labels, but the graph's output has 3 classes";
        check("", &files, graph(), (RAW, "ViTForImageClassification", problem));
        refused("task = \"image-classification\"", &files, graph(), problem);
    }
}

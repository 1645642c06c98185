//! `zero-shot-image-classification`: which of the request's own labels suit a picture, with the answers of transformers'
//! pipeline.
//!
//! Models like CLIP compare a picture with texts. A run has one picture and a row of tokens for each label; the graph gives
//! their logits, or the embeddings of both, which are compared here. CLIP's labels compete (softmax), SigLIP's are each
//! judged for themselves (sigmoid).
//!
//! Invariant: texts of one item are padded to one length, and their tokens are bounded before a tensor is made.

use super::{ImageInput, Pictures};
use crate::pipelines::detect::{Made, PREPROCESSOR, Sources};
use crate::pipelines::outputs::{fixed_dim, floats_of_rank, names, tensor_named, unexpected};
use crate::pipelines::parameters::read_each;
use crate::pipelines::scores::{class_logits, rank};
use crate::pipelines::text::{
    Candidates, RowPadding, TextInputs, TextTokenizer, Tokens, is_text_input, pad_id, pads_left,
};
use crate::pipelines::{
    ClassScore, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, PipelineManifest, Prediction, Prepared,
    ScoreFunction, only_run,
};
use crate::tensor::{Dim, Spec, Tensor};
use serde_json::Value as Json;
use std::sync::Arc;

pub(crate) const TASK: &str = "zero-shot-image-classification";
const TAKES: &str = "candidate_labels and hypothesis_template";
const DEFAULT_TEMPLATE: &str = "This is a photo of {}.";
/// Tokens that SigLIP was trained with, padding included; transformers always gives it so many.
const SIGLIP_TOKENS: u64 = 64;
/// Tokens of all labels together, padding included: more than 256 labels of CLIP's longest texts.
const MAX_TOKENS: usize = 1 << 15;
/// What CLIP's weight ends at in training, where it is bounded.
const CLIP_SCALE: f64 = 100.0;

struct ZeroShotImageClassification {
    pictures: Pictures,
    tokenizer: TextTokenizer,
    texts: TextInputs,
    /// The length that every text is padded to; `None`: that of the item's longest.
    length: Option<usize>,
    padding: RowPadding,
    scores: Scores,
    function: ScoreFunction,
}

/// Where a label's score before the function comes from.
#[derive(Debug, Clone, PartialEq)]
enum Scores {
    /// The output `[1, labels]` of this name.
    Logits(String),
    /// `scale · cos + bias` of the outputs `[1, width]` and `[labels, width]` of these names.
    Embeddings { image: String, text: String, scale: f64, bias: f64 },
}

/// Whether a graph takes a picture and texts.
pub(crate) fn takes_both(inputs: &[Spec]) -> bool {
    let (texts, pictures) = by_kind(inputs);
    texts.iter().any(|spec| spec.name == "input_ids") && ImageInput::find(&pictures).is_ok()
}

/// The inputs that texts make, and the rest.
fn by_kind(inputs: &[Spec]) -> (Vec<Spec>, Vec<Spec>) {
    inputs.iter().cloned().partition(|spec| is_text_input(&spec.name))
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (texts, pictures) = by_kind(sources.inputs);
    let (texts, fixed) = check_rows(&texts, &pictures)
        .and_then(|()| TextInputs::of_any_length(&texts))
        .map_err(|problem| setup(format!("{problem}: labels become texts, a row of tokens each")))?;
    if sources.manifest.image.is_none() && !sources.folder.join(PREPROCESSOR).is_file() {
        return Err(setup(format!("there is no {PREPROCESSOR} beside the graph")));
    }
    let (pictures, prepared) = Pictures::of(&sources.with_inputs(&pictures))?;
    let config = sources.config()?;
    let model_type = config.and_then(|config| config.get("model_type")).and_then(Json::as_str).unwrap_or_default();
    let is_siglip = model_type.contains("siglip");
    let (scores, how) = Scores::find(sources.outputs, sources.manifest, is_siglip)?;
    let function = if is_siglip { ScoreFunction::Sigmoid } else { ScoreFunction::Softmax };

    let of_texts = config.and_then(|config| config.get("text_config")).filter(|part| part.is_object()).or(config);
    let max_text_bytes = usize::try_from(sources.limits.max_text_bytes).unwrap_or(usize::MAX);
    let stated = match fixed {
        Some(length) => Some((length as u64, "the graph")),
        None => is_siglip.then_some((SIGLIP_TOKENS, "SigLIP")),
    };
    let Some(tokenizer) = TextTokenizer::from_folder(sources.folder, of_texts, stated, max_text_bytes)? else {
        return Err(setup("there is no tokenizer.json beside the graph".to_owned()));
    };
    let length = fixed.or(is_siglip.then_some(tokenizer.max_tokens));
    let padding = RowPadding { id: pad_id(sources.folder, config), left: pads_left(sources.folder)? };
    let verb = if is_siglip { "sigmoid" } else { "softmax" };
    let (most, source) = (tokenizer.max_tokens, tokenizer.limit_source);
    let how = format!("scores are the {verb} of {how}; labels have at most {most} tokens ({source}); {prepared}");
    let pipeline = ZeroShotImageClassification { pictures, tokenizer, texts, length, padding, scores, function };
    Ok(Made { pipeline: Arc::new(pipeline), how })
}

/// # Errors
/// Where a graph takes another number of pictures than one, or only so many texts.
fn check_rows(texts: &[Spec], pictures: &[Spec]) -> Result<(), String> {
    let rows = |spec: &Spec| fixed_dim(spec, 0);
    let refuse = |spec: &Spec, wanted: &str| Err(format!("input {:?} is {}; expected {wanted}", spec.name, spec.ty));
    if let Some(spec) = pictures.iter().find(|spec| !spec.optional && rows(spec).is_some_and(|rows| rows != 1)) {
        return refuse(spec, "one picture, or any number");
    }
    match texts.iter().find(|spec| rows(spec).is_some()) {
        Some(spec) => refuse(spec, "any number of texts; export the graph with a dynamic first dimension"),
        None => Ok(()),
    }
}

impl Scores {
    /// The output that is read, and how, in words.
    fn find(outputs: &[Spec], manifest: &PipelineManifest, is_siglip: bool) -> Result<(Scores, String), PipelineError> {
        let named = |wanted: &str| floats_of_rank(outputs, &[2]).find(|spec| spec.name == wanted);
        if let Some(logits) = named("logits_per_image") {
            if manifest.logit_scale.is_some() || manifest.logit_bias.is_some() {
                return Err(setup(
                    "logit_scale and logit_bias of model.toml are for graphs that give embeddings, and this one gives \
                     logits_per_image: remove them"
                        .to_owned(),
                ));
            }
            return Ok((Scores::Logits(logits.name.clone()), logits.name.clone()));
        }
        let both = |image: &str, text: &str| named(image).zip(named(text));
        // What CLIP pools is not what it compares; SigLIP compares what it pools.
        let pooled = || if is_siglip { both("image_pooler_output", "text_pooler_output") } else { None };
        let Some((image, text)) = both("image_embeds", "text_embeds").or_else(pooled) else {
            let names = names(outputs);
            return Err(setup(format!(
                "pictures and texts are compared by an output logits_per_image [pictures, texts], or image_embeds and \
                 text_embeds; the graph's outputs are {names}: serve it with task = \"raw\""
            )));
        };
        let width = |spec: &Spec| match spec.ty.shape() {
            Some([_, Dim::Fixed(width)]) => Some(*width),
            _ => None,
        };
        if let (Some(one), Some(other)) = (width(image), width(text))
            && one != other
        {
            return Err(setup(format!(
                "{} has {one} numbers and {} has {other}: they cannot be compared",
                image.name, text.name
            )));
        }
        let (scale, source) = match (manifest.logit_scale, manifest.logit_bias) {
            (Some(scale), _) if !(scale.is_finite() && scale > 0.0) => {
                return Err(setup(format!("[pipeline] logit_scale of model.toml: expected more than 0, got {scale}")));
            }
            (_, Some(bias)) if !bias.is_finite() => {
                return Err(setup(format!("[pipeline] logit_bias of model.toml: expected a number, got {bias}")));
            }
            (Some(_), None) | (None, _) if is_siglip => {
                return Err(setup(
                    "SigLIP's towers do not say how their embeddings are scored: set logit_scale (exp of the model's \
                     weight logit_scale) and logit_bias in [pipeline] of model.toml"
                        .to_owned(),
                ));
            }
            (Some(scale), _) => (scale, "logit_scale of model.toml"),
            (None, _) => (CLIP_SCALE, "CLIP's scale; logit_scale in model.toml says another"),
        };
        let bias = manifest.logit_bias.unwrap_or(0.0);
        let (image, text) = (image.name.clone(), text.name.clone());
        let add = if bias == 0.0 { String::new() } else { format!(" + {bias}") };
        let how = format!("{scale} × the cosine of {image} and {text}{add} ({source})");
        Ok((Scores::Embeddings { image, text, scale, bias }, how))
    }

    /// A logit for each of as many labels.
    fn read(&self, outputs: &Outputs, labels: usize) -> Result<Vec<f32>, PipelineError> {
        match self {
            Scores::Logits(name) => {
                let logits = class_logits(outputs, name)?;
                match logits.len() == labels {
                    true => Ok(logits),
                    false => Err(unexpected(name, &format!("[1, {labels}]"), tensor_named(outputs, name)?)),
                }
            }
            Scores::Embeddings { image, text, scale, bias } => {
                let vectors = |name: &str, rows: usize| {
                    let tensor = tensor_named(outputs, name)?;
                    let wrong = || unexpected(name, &format!("[{rows}, width]"), tensor);
                    match *tensor.shape() {
                        [count, width] if count == rows && width > 0 => {
                            Ok((width, tensor.to_f32().ok_or_else(wrong)?, tensor))
                        }
                        _ => Err(wrong()),
                    }
                };
                let (width, picture, _) = vectors(image, 1)?;
                let (text_width, texts, tensor) = vectors(text, labels)?;
                if width != text_width {
                    return Err(unexpected(text, &format!("[{labels}, {width}]"), tensor));
                }
                let logit = |text: &[f32]| (scale * cosine(&picture, text) + bias) as f32;
                Ok(texts.chunks_exact(width).map(logit).collect())
            }
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn read_parameters(parameters: &Parameters) -> Result<Candidates, PipelineError> {
    let mut candidates = Candidates::with_template(DEFAULT_TEMPLATE);
    read_each(TASK, TAKES, parameters, |name, value| candidates.read(name, value))?;
    candidates.checked()
}

impl ZeroShotImageClassification {
    /// The tensors of the labels, a row each.
    fn rows(&self, candidates: &Candidates) -> Result<Vec<(String, Tensor)>, PipelineError> {
        let sentences = candidates.sentences(&self.tokenizer)?;
        let tokens: Vec<Tokens> = sentences.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<_, _>>()?;
        let longest = tokens.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(0);
        let length = self.length.unwrap_or(longest).max(longest);
        let count = tokens.len();
        if count.saturating_mul(length) > MAX_TOKENS {
            let problem = format!(
                "{count} labels of {length} tokens each are more than {MAX_TOKENS} tokens; send fewer or shorter labels"
            );
            return Err(PipelineError::TooLarge { index: 0, problem });
        }
        self.texts.rows(&tokens, length, &self.padding)
    }
}

impl Pipeline for ZeroShotImageClassification {
    fn task(&self) -> &'static str {
        TASK
    }

    fn preprocess_reads(&self, parameter: &str) -> bool {
        matches!(parameter, "candidate_labels" | "hypothesis_template")
    }

    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError> {
        let rows = self.rows(&read_parameters(parameters)?)?;
        let mut prepared = self.pictures.prepare(item)?;
        prepared.runs.iter_mut().for_each(|run| run.extend(rows.iter().cloned()));
        Ok(prepared)
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let labels = read_parameters(parameters)?.labels;
        let logits = self.scores.read(only_run(outputs)?, labels.len())?;
        let ranked = rank(self.function.apply(&logits).into_iter().enumerate(), usize::MAX);
        let class = |(place, score): (usize, f32)| Some(ClassScore { label: labels.get(place)?.clone(), score });
        Ok(Prediction::Classes(ranked.into_iter().filter_map(class).collect()))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
mod tests {
    use super::super::input_spec as spec;
    use super::*;
    use crate::pipelines::{Detected, PipelineLimits, detect};
    use crate::tensor::DType;
    use serde_json::json;

    const CLIP: &str = r#"{"architectures": ["CLIPModel"], "model_type": "clip",
        "text_config": {"max_position_embeddings": 5}, "vision_config": {"image_size": 4}}"#;
    const SIGLIP: &str = r#"{"architectures": ["SiglipModel"], "model_type": "siglip"}"#;
    const PROCESSOR: &str = r#"{"image_processor_type": "ViTImageProcessor", "size": 4}"#;

    fn inputs(tokens: &[i64]) -> Vec<Spec> {
        let text = |name| spec(name, DType::Int64, tokens);
        vec![text("input_ids"), spec("pixel_values", DType::Fp32, &[-1, 3, 4, 4]), text("attention_mask")]
    }

    fn float(name: &str, dims: &[i64]) -> Spec {
        spec(name, DType::Fp32, dims)
    }

    fn logits() -> Vec<Spec> {
        vec![float("logits_per_image", &[-1, -1])]
    }

    fn embeddings() -> Vec<Spec> {
        vec![float("text_embeds", &[-1, 2]), float("image_embeds", &[-1, 2])]
    }

    fn found(config: &str, manifest: &str, inputs: &[Spec], outputs: &[Spec], without: &str) -> Detected {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = crate::pipelines::text::a_tokenizer().to_string();
        let files = [("config.json", config), ("preprocessor_config.json", PROCESSOR), ("tokenizer.json", &tokenizer)];
        for (name, text) in files.into_iter().filter(|(name, _)| *name != without) {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"pad_token": "[UNK]"}"#).unwrap();
        let limits = PipelineLimits { max_text_bytes: 300, ..PipelineLimits::default() };
        let manifest = toml::from_str(manifest).unwrap();
        detect(folder.path(), &manifest, inputs, outputs, &limits).unwrap()
    }

    fn made(config: &str, manifest: &str, inputs: &[Spec], outputs: &[Spec]) -> Arc<dyn Pipeline> {
        let found = found(config, manifest, inputs, outputs, "");
        found.pipeline.unwrap_or_else(|| panic!("{} {:?}", found.evidence, found.missing))
    }

    fn picture() -> Item {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/rgb.png");
        Item::Bytes(std::fs::read(path).unwrap().into())
    }

    fn parameters(value: Json) -> Parameters {
        value.as_object().unwrap().clone()
    }

    #[track_caller]
    fn check_tokens(pipeline: &dyn Pipeline, given: Json, expected: &[&[i64]], masked: &[&[i64]]) {
        let prepared = pipeline.preprocess(&picture(), &parameters(given)).unwrap();
        let run = &prepared.runs[0];
        let numbers = |wanted: &str| {
            let (_, tensor) = run.iter().find(|(name, _)| name == wanted).unwrap();
            (tensor.shape().to_vec(), tensor.elements::<i64>().unwrap().into_owned())
        };
        let shape = vec![expected.len(), expected[0].len()];
        assert_eq!(numbers("input_ids"), (shape.clone(), expected.concat()));
        assert_eq!(numbers("attention_mask"), (shape, masked.concat()));
        let (_, pixels) = run.iter().find(|(name, _)| name == "pixel_values").unwrap();
        assert_eq!(pixels.shape(), [1, 3, 4, 4]);
    }

    #[test]
    fn labels_become_texts_of_one_length_beside_the_picture() {
        let clip = made(CLIP, "", &inputs(&[-1, -1]), &logits());
        let given = json!({"candidate_labels": "w1, w2 w3", "hypothesis_template": "w0 {}"});
        check_tokens(clip.as_ref(), given, &[&[2, 7, 8, 3, 1], &[2, 7, 9, 10, 3]], &[&[1, 1, 1, 1, 0], &[1; 5]]);
        // Longer than the model takes.
        let given = json!({"candidate_labels": ["w1 w2 w3 w4 w5 w6"], "hypothesis_template": "{}"});
        check_tokens(clip.as_ref(), given, &[&[2, 8, 9, 10, 3]], &[&[1; 5]]);
        let fixed = made(CLIP, "", &inputs(&[-1, 4]), &logits());
        let given = json!({"candidate_labels": ["w1", "w1 w2 w3"], "hypothesis_template": "{}"});
        check_tokens(fixed.as_ref(), given, &[&[2, 8, 3, 1], &[2, 8, 9, 3]], &[&[1, 1, 1, 0], &[1; 4]]);
        let siglip = made(SIGLIP, "", &inputs(&[-1, -1]), &logits());
        let prepared = siglip.preprocess(&picture(), &parameters(json!({"candidate_labels": "w1"}))).unwrap();
        let ids = prepared.runs[0].iter().find(|(name, _)| name == "input_ids").unwrap();
        assert_eq!(ids.1.shape(), [1, 64]);
    }

    #[test]
    fn labels_that_are_too_many_or_too_long_are_refused() {
        let siglip = made(SIGLIP, "", &inputs(&[-1, 200]), &logits());
        let given = parameters(json!({"candidate_labels": vec!["w1"; 200]}));
        let refused = siglip.preprocess(&picture(), &given).unwrap_err().to_string();
        assert!(refused.contains("200 labels of 200 tokens each are more than 32768 tokens"), "{refused}");
        let given = parameters(json!({"candidate_labels": ["w1".repeat(100)], "hypothesis_template": "{}{}"}));
        let refused = siglip.preprocess(&picture(), &given).unwrap_err();
        assert!(matches!(refused, PipelineError::TooLarge { .. }), "{refused}");
        let text = siglip.preprocess(&Item::Text("w1".into()), &parameters(json!({"candidate_labels": "w1"})));
        assert!(text.unwrap_err().to_string().contains("expected a picture"));
    }

    #[track_caller]
    fn check_scores(pipeline: &dyn Pipeline, outputs: &[(&str, &[usize], &[f32])], expected: &[(&str, f32)]) {
        let tensor = |(name, shape, values): &(&str, &[usize], &[f32])| {
            ((*name).to_owned(), Tensor::from_vec(DType::Fp32, shape.to_vec(), values.to_vec()).unwrap().into())
        };
        let outputs: Outputs = outputs.iter().map(tensor).collect();
        let given = parameters(json!({"candidate_labels": ["a", "b"]}));
        let got = pipeline.postprocess(&[outputs], &Notes::default(), &given);
        match (got, expected) {
            (Ok(Prediction::Classes(got)), expected) => {
                let labels: Vec<&str> = got.iter().map(|class| class.label.as_str()).collect();
                assert_eq!(labels, expected.iter().map(|class| class.0).collect::<Vec<_>>());
                for (got, expected) in got.iter().zip(expected) {
                    assert!((got.score - expected.1).abs() < 1e-5, "{got:?} is not {expected:?}");
                }
            }
            (Ok(other), _) => panic!("{other:?}"),
            (Err(error), _) => {
                let error = error.to_string();
                assert!(expected.iter().all(|(part, _)| error.contains(part)) && !expected.is_empty(), "{error}");
            }
        }
    }

    #[test]
    fn labels_of_clip_compete_and_those_of_siglip_are_judged_alone() {
        let clip = made(CLIP, "", &inputs(&[-1, -1]), &logits());
        let siglip = made(SIGLIP, "", &inputs(&[-1, -1]), &logits());
        let two = [("logits_per_image", [1, 2].as_slice(), [1.0, 3.0].as_slice())];
        check_scores(clip.as_ref(), &two, &[("b", 0.880_797), ("a", 0.119_203)]);
        check_scores(siglip.as_ref(), &two, &[("b", 0.952_574), ("a", 0.731_059)]);
        let wrong = [("expected a float tensor of shape [1, 2]", 0.0)];
        check_scores(clip.as_ref(), &[("logits_per_image", &[1, 3], &[0.0; 3])], &wrong);
        check_scores(clip.as_ref(), &[], &[("no tensor named \"logits_per_image\"", 0.0)]);
    }

    #[test]
    fn embeddings_are_compared_by_their_cosine() {
        let outputs = embeddings();
        let clip = made(CLIP, "logit_scale = 2.0", &inputs(&[-1, -1]), &outputs);
        let vectors = [
            ("image_embeds", [1, 2].as_slice(), [3.0, 0.0].as_slice()),
            ("text_embeds", &[2, 2], &[0.0, 7.0, 5.0, 0.0]),
        ];
        check_scores(clip.as_ref(), &vectors, &[("b", 0.880_797), ("a", 0.119_203)]);
        let siglip = made(SIGLIP, "logit_scale = 2.0\nlogit_bias = 1.0", &inputs(&[-1, -1]), &outputs);
        check_scores(siglip.as_ref(), &vectors, &[("b", 0.952_574), ("a", 0.731_059)]);
        let pooled = [float("image_pooler_output", &[-1, 2]), float("text_pooler_output", &[-1, 2])];
        let siglip = made(SIGLIP, "logit_scale = 2.0\nlogit_bias = 1.0", &inputs(&[-1, -1]), &pooled);
        let vectors =
            [("image_pooler_output", vectors[0].1, vectors[0].2), ("text_pooler_output", &[2, 2], vectors[1].2)];
        check_scores(siglip.as_ref(), &vectors, &[("b", 0.952_574), ("a", 0.731_059)]);
        let image = ("image_embeds", [1, 2].as_slice(), [3.0, 0.0].as_slice());
        for (shape, expected) in [
            ([2, 3].as_slice(), "expected a float tensor of shape [2, 2]"),
            (&[1, 2], "expected a float tensor of shape [2, width]"),
        ] {
            let text = ("text_embeds", shape, vec![1.0; shape.iter().product()]);
            check_scores(clip.as_ref(), &[image, (text.0, text.1, &text.2)], &[(expected, 0.0)]);
        }
    }

    /// `expected`: a part of the evidence, or of what is missing.
    #[track_caller]
    fn check_found(config: &str, manifest: &str, inputs: &[Spec], outputs: &[Spec], without: &str, expected: &str) {
        let found = found(config, manifest, inputs, outputs, without);
        let text = format!("{} {}", found.evidence, found.missing.join("; "));
        assert!(text.contains(expected), "{text}");
        assert_eq!(
            found.pipeline.map_or("raw", |pipeline| pipeline.task()) == TASK,
            found.missing.is_empty(),
            "{text}"
        );
    }

    #[test]
    fn a_graph_of_pictures_and_texts_is_found_and_what_it_lacks_is_said() {
        let both = inputs(&[-1, -1]);
        let check = |config: &str, outputs: &[Spec], expected: &str| {
            check_found(config, "", &both, outputs, "", expected);
        };
        check(
            CLIP,
            &logits(),
            "scores are the softmax of logits_per_image; labels have at most 5 tokens (config.json)",
        );
        check(SIGLIP, &logits(), "scores are the sigmoid of logits_per_image; labels have at most 64 tokens (SigLIP)");
        check(CLIP, &embeddings(), "softmax of 100 × the cosine of image_embeds and text_embeds (CLIP's scale");
        check(SIGLIP, &embeddings(), "set logit_scale (exp of the model's weight logit_scale) and logit_bias");
        let chinese = r#"{"architectures": ["ChineseCLIPModel"], "model_type": "chinese_clip"}"#;
        check(chinese, &embeddings(), "ChineseCLIPModel; scores are the softmax of 100");
        let pooled = [float("image_pooler_output", &[-1, 2]), float("text_pooler_output", &[-1, 2])];
        check(CLIP, &pooled, "the graph's outputs are image_pooler_output, text_pooler_output");
        let widths = [float("text_embeds", &[-1, 2]), float("image_embeds", &[-1, 3])];
        check(CLIP, &widths, "image_embeds has 3 numbers and text_embeds has 2");
        for file in ["tokenizer.json", "preprocessor_config.json"] {
            check_found(CLIP, "", &both, &logits(), file, &format!("there is no {file} beside the graph"));
        }
        check_found(CLIP, "", &inputs(&[1, -1]), &logits(), "", "expected any number of texts");
        let scaled = "logit_scale = 20.0\nlogit_bias = -1.5";
        check_found(
            CLIP,
            scaled,
            &both,
            &embeddings(),
            "",
            "20 × the cosine of image_embeds and text_embeds + -1.5 (log",
        );
        check_found(CLIP, scaled, &both, &logits(), "", "logit_scale and logit_bias of model.toml are for graphs");
        check_found(CLIP, "logit_scale = 0.0", &both, &embeddings(), "", "expected more than 0, got 0");
        check_found(CLIP, "logit_bias = nan", &both, &embeddings(), "", "logit_bias of model.toml: expected a number");
    }

    #[test]
    fn wrong_parameters_are_named() {
        let clip = made(CLIP, "", &inputs(&[-1, -1]), &logits());
        for (given, expected) in [
            (json!({}), "parameters.candidate_labels: expected the labels to choose from"),
            (json!({"candidate_labels": 3}), "parameters.candidate_labels: expected a list of texts, got 3"),
            (json!({"candidate_labels": vec!["x"; 257]}), "expected at most 256 labels, got 257"),
            (json!({"candidate_labels": "a", "hypothesis_template": "a"}), "expected a text with {} where"),
            (json!({"candidate_labels": "a", "top_k": 1}), "it takes candidate_labels and hypothesis_template"),
        ] {
            let error = clip.check_parameters(&parameters(given)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(clip.preprocess_reads("candidate_labels") && clip.preprocess_reads("hypothesis_template"));
    }
}

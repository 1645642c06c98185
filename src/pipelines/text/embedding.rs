//! `feature-extraction`: texts to embeddings.
//!
//! A sentence-transformers folder gives one vector for each text, as the library does; any other model gives a vector for
//! each token, as transformers' pipeline does, unless the request asks for one by `pooling`. A graph that gives
//! `sentence_embedding` is taken at its word. Which of them a folder is, is found once, by [`FeatureExtraction::new`].

use super::TOKENIZER;
use super::input::{TextInputs, padding_of};
use super::pooling::{Pooling, normalize};
use super::sentence::{MODULES, SentenceTransformer, TRANSFORMER_CONFIG, TextRules, transformer_path};
use super::tokenizer::TextTokenizer;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::files::read_json_object;
use crate::pipelines::{
    Item, Notes, Outputs, Padding, Parameters, Pipeline, PipelineError, PipelineLimits, Prediction, Prepared,
    TokenEmbeddings, only_run,
};
use crate::tensor::{Dim, Spec, Value};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

pub(crate) const TASK: &str = "feature-extraction";

/// One model's embeddings of texts.
pub struct FeatureExtraction {
    tokenizer: TextTokenizer,
    inputs: TextInputs,
    output: Output,
    /// What a sentence-transformers folder does with the tokens' vectors.
    sentence: Option<SentenceTransformer>,
    /// Whether texts are stripped first, as sentence-transformers does.
    strip: bool,
    rules: TextRules,
    /// Tokens that each prompt puts in front, by its place in the rules.
    prompt_tokens: Vec<usize>,
    padding: Option<Padding>,
}

/// # Errors
/// As [`FeatureExtraction::new`].
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (pipeline, how) = FeatureExtraction::new(sources.folder, sources.inputs, sources.outputs, sources.limits)?;
    Ok(Made { pipeline: Arc::new(pipeline), how })
}

/// The output that is read, by name.
#[derive(Debug, Clone, PartialEq)]
enum Output {
    /// `[1, width]`: the embedding.
    Sentence(String),
    /// `[1, tokens, width]`.
    Tokens(String),
}

/// The request's parameters, checked.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Checked {
    /// Place of the prompt in the rules.
    prompt: Option<usize>,
    normalized: Option<bool>,
    truncate: bool,
    pooling: Option<Pooling>,
}

impl FeatureExtraction {
    /// The pipeline of the model in `folder`, whose graph has `inputs` and `outputs`, and one sentence on how it makes
    /// embeddings.
    ///
    /// # Errors
    /// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
    pub(crate) fn new(
        folder: &Path,
        inputs: &[Spec],
        outputs: &[Spec],
        limits: &PipelineLimits,
    ) -> Result<(FeatureExtraction, String), PipelineError> {
        let text_inputs = TextInputs::find(inputs).map_err(PipelineError::Setup)?;
        let (output, width) = Output::find(outputs).map_err(PipelineError::Setup)?;
        let is_sentence_transformers = super::is_sentence_transformers(folder);
        let path = transformer_path(folder)?;
        let own = path.map_or_else(|| folder.to_owned(), |path| folder.join(path));
        let rules = match is_sentence_transformers {
            true => TextRules::from_folder(folder, &own)?,
            false => TextRules::default(),
        };
        let config = read_json_object(&own, "config.json")?;
        let max_text_bytes = usize::try_from(limits.max_text_bytes).unwrap_or(usize::MAX);
        let stated = rules.max_seq_length.map(|tokens| (tokens, TRANSFORMER_CONFIG));
        let tokenizer = TextTokenizer::from_folder(&own, config.as_ref(), stated, max_text_bytes)?;
        let Some(tokenizer) = tokenizer else {
            return Err(PipelineError::Setup(format!("there is no {TOKENIZER} beside the graph")));
        };
        // Where the graph does all of it, the folder's own steps are in it.
        let sentence = match &output {
            Output::Sentence(_) => None,
            Output::Tokens(_) => SentenceTransformer::from_folder(folder)?,
        };
        if let (Some(sentence), Some(width)) = (&sentence, width) {
            sentence.check_width(width)?;
        }
        let made = match (&output, &sentence) {
            (Output::Sentence(name), _) => format!("embeddings are the graph's {name}"),
            (Output::Tokens(name), Some(sentence)) => {
                format!("embeddings are made of {name} as {MODULES} says ({})", sentence.describe())
            }
            (Output::Tokens(name), None) => format!("each token's embedding is a row of {name}"),
        };
        let evidence =
            format!("{made}; texts have at most {} tokens ({})", tokenizer.max_tokens, tokenizer.limit_source);
        let mut pipeline = FeatureExtraction {
            padding: padding_of(&own, inputs),
            tokenizer,
            inputs: text_inputs,
            output,
            sentence,
            strip: is_sentence_transformers,
            rules,
            prompt_tokens: Vec::new(),
        };
        let tokens = |(_, prompt): &(String, String)| pipeline.tokenizer.prompt_tokens(&pipeline.prepare(prompt));
        pipeline.prompt_tokens = pipeline.rules.prompts.iter().map(tokens).collect::<Result<_, _>>()?;
        Ok((pipeline, evidence))
    }

    /// The text as the tokenizer gets it.
    fn prepare<'a>(&self, text: &'a str) -> Cow<'a, str> {
        // Python's strip also takes the separators of files, groups, records and units.
        let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
        let text = if self.strip { text.trim_matches(space) } else { text };
        if self.rules.lower_case { text.to_lowercase().into() } else { text.into() }
    }

    fn prompt(&self, checked: &Checked) -> Option<&str> {
        checked.prompt.and_then(|place| self.rules.prompts.get(place)).map(|(_, prompt)| prompt.as_str())
    }

    fn read_parameters(&self, parameters: &Parameters) -> Result<Checked, PipelineError> {
        let mut checked =
            Checked { prompt: self.rules.default_prompt, normalized: None, truncate: true, pooling: None };
        // A graph that pools, and a folder that says how, leave nothing to choose.
        let pools = matches!(self.output, Output::Tokens(_)) && self.sentence.is_none();
        for (name, value) in parameters {
            let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
            match (name.as_str(), value) {
                ("normalize" | "truncate" | "prompt_name", Json::Null) => {}
                ("pooling", Json::Null) if pools => {}
                ("normalize", Json::Bool(normalized)) => checked.normalized = Some(*normalized),
                ("truncate", Json::Bool(truncate)) => checked.truncate = *truncate,
                ("normalize" | "truncate", value) => return wrong(format!("expected true or false, got {value}")),
                ("prompt_name", value) => {
                    let known = |wanted: &str| self.rules.prompts.iter().position(|(name, _)| name == wanted);
                    checked.prompt = value.as_str().and_then(known);
                    if checked.prompt.is_none() {
                        let names = self.rules.prompts.iter().take(16).map(|(name, _)| format!("{name:?}"));
                        let names = names.collect::<Vec<_>>().join(", ");
                        let names = if names.is_empty() { "the model has no prompts".to_owned() } else { names };
                        return wrong(format!("expected the name of a prompt ({names}), got {value}"));
                    }
                }
                ("pooling", value) if pools => match value.as_str() {
                    Some("none") => checked.pooling = None,
                    other => match other.and_then(Pooling::from_name) {
                        Some(mode) => checked.pooling = Some(mode),
                        None => {
                            let names = Pooling::ALL.map(|(_, _, name)| format!("{name:?}")).join(", ");
                            return wrong(format!("expected \"none\", {names}, got {value}"));
                        }
                    },
                },
                ("pooling", _) => return wrong("the model itself says how tokens become one embedding".to_owned()),
                _ => {
                    return wrong(format!(
                        "{TASK} has no such parameter; it takes normalize, truncate, prompt_name and pooling"
                    ));
                }
            }
        }
        Ok(checked)
    }
}

impl Pipeline for FeatureExtraction {
    fn task(&self) -> &'static str {
        TASK
    }

    fn padding(&self) -> Option<Padding> {
        self.padding.clone()
    }

    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError> {
        let checked = self.read_parameters(parameters)?;
        let refuse = |problem: String| PipelineError::Item { index: 0, problem };
        let text = super::text_of(item)?;
        self.tokenizer.check_length(text)?;
        let text = match self.prompt(&checked) {
            Some(prompt) => Cow::Owned(format!("{prompt}{text}")),
            None => Cow::Borrowed(text),
        };
        let tokens = self.tokenizer.encode(&self.prepare(&text))?;
        if tokens.truncated && !checked.truncate {
            let most = self.tokenizer.max_tokens;
            return Err(refuse(format!(
                "the text has more than the {most} tokens that the model takes, and truncate is false"
            )));
        }
        Ok(Prepared::one(self.inputs.tensors(&tokens)?))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = self.read_parameters(parameters)?;
        let (values, width) = self.output.read(only_run(outputs)?)?;
        let prompt_tokens = checked.prompt.and_then(|place| self.prompt_tokens.get(place)).copied().unwrap_or(0);
        let mut values = match (&self.output, &self.sentence, checked.pooling) {
            (Output::Tokens(_), Some(sentence), _) => {
                let embedding = sentence.embed(&values, width, prompt_tokens, checked.normalized)?;
                return Ok(Prediction::Embedding(embedding));
            }
            (Output::Tokens(_), None, Some(mode)) => mode.pool(&values, width, 0),
            (Output::Tokens(_), None, None) | (Output::Sentence(_), _, _) => values,
        };
        if checked.normalized == Some(true) {
            values.chunks_exact_mut(width).for_each(normalize);
        }
        match (&self.output, checked.pooling) {
            (Output::Tokens(_), None) => Ok(Prediction::TokenEmbeddings(TokenEmbeddings { width, values })),
            (Output::Tokens(_), Some(_)) | (Output::Sentence(_), _) => Ok(Prediction::Embedding(values)),
        }
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        self.read_parameters(parameters).map(|_| ())
    }
}

impl Output {
    /// The output that holds embeddings and, where it is declared, their width.
    ///
    /// # Errors
    /// Says in one sentence why there is none.
    fn find(outputs: &[Spec]) -> Result<(Output, Option<usize>), String> {
        let is_float = |spec: &&Spec| matches!(spec.ty.dtype(), Some(dtype) if dtype.is_float() && dtype.bits() >= 16);
        let of_rank = |rank: usize| {
            outputs.iter().filter(is_float).filter(move |spec| spec.ty.shape().is_none_or(|dims| dims.len() == rank))
        };
        let named = |rank: usize, name: &str| of_rank(rank).find(|spec| spec.name == name);
        let width = |spec: &Spec| match spec.ty.shape().and_then(<[Dim]>::last) {
            Some(Dim::Fixed(width)) => Some(*width),
            Some(Dim::Dynamic(_)) | None => None,
        };
        if let Some(spec) = named(2, "sentence_embedding") {
            return Ok((Output::Sentence(spec.name.clone()), width(spec)));
        }
        let declared = |spec: &&Spec| spec.ty.shape().is_some();
        let tokens = named(3, "token_embeddings")
            .or_else(|| named(3, "last_hidden_state"))
            .or_else(|| of_rank(3).find(declared));
        if let Some(spec) = tokens {
            return Ok((Output::Tokens(spec.name.clone()), width(spec)));
        }
        let mut vectors = of_rank(2).filter(declared).filter(|spec| spec.name != "logits");
        match (vectors.next(), vectors.next()) {
            (Some(spec), None) => Ok((Output::Sentence(spec.name.clone()), width(spec))),
            _ => Err("the graph has no float output [batch, tokens, width] with the tokens' embeddings".to_owned()),
        }
    }

    /// The numbers of the output, and how many make one vector: at least one.
    fn read(&self, outputs: &[(String, Value)]) -> Result<(Vec<f32>, usize), PipelineError> {
        let (Output::Sentence(wanted) | Output::Tokens(wanted)) = self;
        let tensor = outputs.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.as_tensor());
        let Some(tensor) = tensor else {
            return Err(PipelineError::Outputs(format!("the graph gave no tensor named {wanted:?}")));
        };
        let width = match (self, tensor.shape()) {
            (Output::Sentence(_), &[1, width]) => Some(width),
            (Output::Tokens(_), &[1, tokens, width]) if tokens > 0 => Some(width),
            _ => None,
        };
        width.filter(|&width| width > 0).and_then(|width| Some((tensor.to_f32()?, width))).ok_or_else(|| {
            let expected = if matches!(self, Output::Sentence(_)) { "[1, width]" } else { "[1, tokens, width]" };
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            PipelineError::Outputs(format!(
                "output {wanted:?}: expected a float tensor of shape {expected}, got {dtype} of shape {shape:?}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::words;
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::tensor::{DType, Tensor};
    use serde_json::json;

    fn inputs() -> Vec<Spec> {
        ["input_ids", "attention_mask"].map(|name| spec(name, DType::Int64, &[-1, -1])).to_vec()
    }

    fn hidden() -> Vec<Spec> {
        vec![spec("last_hidden_state", DType::Fp32, &[-1, -1, 2]), spec("pooler_output", DType::Fp32, &[-1, 2])]
    }

    const MODULES: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    ]"#;

    /// A folder with a tokenizer, and `files` in it.
    fn pipeline(files: &[(&str, &str)], outputs: &[Spec]) -> Result<(FeatureExtraction, String), String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(TOKENIZER), words().to_string()).unwrap();
        for (name, text) in files {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let limits = PipelineLimits { max_text_bytes: 64, ..PipelineLimits::default() };
        FeatureExtraction::new(folder.path(), &inputs(), outputs, &limits).map_err(|error| error.to_string())
    }

    fn plain() -> FeatureExtraction {
        pipeline(&[], &hidden()).unwrap().0
    }

    fn sentence() -> FeatureExtraction {
        let files = [
            ("modules.json", MODULES),
            ("1_Pooling/config.json", r#"{"include_prompt": false}"#),
            ("sentence_bert_config.json", r#"{"max_seq_length": 6, "do_lower_case": true}"#),
            ("config_sentence_transformers.json", r#"{"prompts": {"query": "query: ", "none": ""}}"#),
        ];
        pipeline(&files, &hidden()).unwrap().0
    }

    fn parameters(value: Json) -> Parameters {
        value.as_object().unwrap().clone()
    }

    fn ids(pipeline: &FeatureExtraction, text: &str, given: Json) -> Result<Vec<i64>, String> {
        let tensors = pipeline.preprocess(&Item::Text(text.into()), &parameters(given));
        let tensors = tensors.map_err(|error| error.to_string())?;
        let [(ids, tensor), (mask, ones)] = tensors.runs[0].as_slice() else { panic!("two inputs") };
        assert_eq!((ids.as_str(), mask.as_str()), ("input_ids", "attention_mask"));
        assert!(ones.elements::<i64>().unwrap().iter().all(|&one| one == 1) && ones.shape() == tensor.shape());
        Ok(tensor.elements::<i64>().unwrap().into_owned())
    }

    fn read_outputs(
        model: &FeatureExtraction,
        outputs: Outputs,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        model.postprocess(&[outputs], &Notes::default(), parameters)
    }

    fn outputs(values: &[f32]) -> Vec<(String, Value)> {
        let tensor = Tensor::from_vec(DType::Fp32, vec![1, values.len() / 2, 2], values.to_vec()).unwrap();
        vec![("last_hidden_state".to_owned(), tensor.into())]
    }

    #[test]
    fn texts_are_stripped_lowered_and_prompted_as_sentence_transformers_does() {
        let model = sentence();
        assert_eq!(ids(&model, "\u{1c} THE W1 \n", json!({})).unwrap(), [2, 4, 8, 3]);
        assert_eq!(ids(&model, "w1", json!({"prompt_name": "query"})).unwrap(), [2, 5, 6, 8, 3]);
        assert_eq!(ids(&model, "w1", json!({"prompt_name": "none"})).unwrap(), [2, 8, 3]);
        assert_eq!(ids(&plain(), "W1", json!({})).unwrap(), [2, 1, 3]);
    }

    #[test]
    fn long_texts_are_cut_or_refused() {
        let long = "w0 w1 w2 w3 w4";
        assert_eq!(ids(&sentence(), long, json!({})).unwrap(), [2, 7, 8, 9, 10, 3]);
        let refused = ids(&sentence(), long, json!({"truncate": false})).unwrap_err();
        assert_eq!(
            refused,
            "inputs[0]: the text has more than the 6 tokens that the model takes, and truncate is false"
        );
        assert!(ids(&sentence(), "w0", json!({"truncate": false})).is_ok());
        let error = plain().preprocess(&Item::Text("w".repeat(65)), &Parameters::new()).unwrap_err();
        let PipelineError::TooLarge { problem, .. } = error else { panic!("{error}") };
        assert_eq!(problem, "the text has 65 bytes, more than max_text_bytes = 64; send it in parts");
    }

    #[test]
    fn files_are_texts_where_they_are_utf8() {
        let bytes = |bytes: &'static [u8]| plain().preprocess(&Item::Bytes(bytes.into()), &Parameters::new());
        assert_eq!(bytes(b"w1").unwrap().runs[0][0].1.shape(), [1, 3]);
        assert!(bytes(b"\xff\xd8\xff").unwrap_err().to_string().contains("bytes that are not UTF-8"));
    }

    #[test]
    fn tokens_become_one_embedding_in_a_sentence_transformers_folder() {
        let model = sentence();
        let embed =
            |given: Json| read_outputs(&model, outputs(&[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 3.0, 4.0]), &parameters(given));
        // [CLS] and the two tokens of the prompt do not count.
        let prompted = json!({"prompt_name": "query"});
        assert_eq!(embed(prompted).unwrap(), Prediction::Embedding(vec![0.6, 0.8]));
        let raw = json!({"prompt_name": "query", "normalize": false});
        assert_eq!(embed(raw).unwrap(), Prediction::Embedding(vec![3.0, 4.0]));
        assert_eq!(embed(json!({"normalize": false})).unwrap(), Prediction::Embedding(vec![7.5, 7.75]));
    }

    #[test]
    fn without_such_a_folder_each_token_has_its_embedding() {
        let model = plain();
        let read = |given: Json| read_outputs(&model, outputs(&[3.0, 4.0, 0.0, 2.0]), &parameters(given)).unwrap();
        let tokens =
            |values: &[f32]| Prediction::TokenEmbeddings(TokenEmbeddings { width: 2, values: values.to_vec() });
        assert_eq!(read(json!({})), tokens(&[3.0, 4.0, 0.0, 2.0]));
        assert_eq!(read(json!({"pooling": "none", "normalize": true})), tokens(&[0.6, 0.8, 0.0, 1.0]));
        assert_eq!(read(json!({"pooling": "mean"})), Prediction::Embedding(vec![1.5, 3.0]));
        assert_eq!(read(json!({"pooling": "cls", "normalize": true})), Prediction::Embedding(vec![0.6, 0.8]));
    }

    #[test]
    fn a_graph_that_gives_the_embedding_is_taken_at_its_word() {
        let outputs =
            [spec("token_embeddings", DType::Fp32, &[-1, -1, 2]), spec("sentence_embedding", DType::Fp16, &[-1, 2])];
        // The steps of the folder are in the graph: their files are not needed.
        let (model, evidence) = pipeline(&[("modules.json", MODULES)], &outputs).unwrap();
        assert!(evidence.contains("the graph's sentence_embedding; texts have at most 5 tokens"), "{evidence}");
        let halves = [3.0, 4.0].map(half::f16::from_f32).to_vec();
        let tensor = Tensor::from_vec(DType::Fp16, vec![1, 2], halves).unwrap();
        let given = vec![("sentence_embedding".to_owned(), Value::from(tensor))];
        assert_eq!(
            read_outputs(&model, given.clone(), &Parameters::new()).unwrap(),
            Prediction::Embedding(vec![3.0, 4.0])
        );
        let normalized = read_outputs(&model, given, &parameters(json!({"normalize": true})));
        assert_eq!(normalized.unwrap(), Prediction::Embedding(vec![0.6, 0.8]));
    }

    #[test]
    fn outputs_of_another_shape_are_an_error() {
        let model = plain();
        let read = |shape: Vec<usize>| {
            let count = shape.iter().product();
            let tensor = Tensor::from_vec(DType::Fp32, shape, vec![0f32; count]).unwrap();
            read_outputs(&model, vec![("last_hidden_state".to_owned(), tensor.into())], &Parameters::new())
        };
        for shape in [vec![2, 1, 2], vec![1, 0, 2], vec![1, 1, 0], vec![1, 2], vec![]] {
            let error = read(shape.clone()).unwrap_err().to_string();
            assert!(error.contains("expected a float tensor of shape [1, tokens, width]"), "{error}");
        }
        assert!(read_outputs(&model, vec![], &Parameters::new()).is_err());
    }

    #[track_caller]
    fn output(outputs: &[Spec], expected: Result<(Output, Option<usize>), &str>) {
        match (Output::find(outputs), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}"),
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }

    #[test]
    fn the_output_is_found_by_name_then_by_rank() {
        let float = |name: &str, dims: &[i64]| spec(name, DType::Fp32, dims);
        output(&hidden(), Ok((Output::Tokens("last_hidden_state".into()), Some(2))));
        output(&[float("x", &[-1, -1, -1])], Ok((Output::Tokens("x".into()), None)));
        output(&[float("text_embeds", &[-1, 8])], Ok((Output::Sentence("text_embeds".into()), Some(8))));
        output(&[float("logits", &[-1, 2])], Err("no float output [batch, tokens, width]"));
        output(&[float("a", &[-1, 2]), float("b", &[-1, 2])], Err("no float output"));
        output(&[spec("ids", DType::Int64, &[-1, -1, 2])], Err("no float output"));
    }

    #[track_caller]
    fn wrong_parameter(model: &FeatureExtraction, given: Json, expected: &str) {
        let error = model.check_parameters(&parameters(given)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn wrong_parameters_say_what_they_may_be() {
        wrong_parameter(&plain(), json!({"top_k": 1}), "takes normalize, truncate, prompt_name and pooling");
        wrong_parameter(&plain(), json!({"normalize": 1}), "expected true or false, got 1");
        wrong_parameter(&plain(), json!({"pooling": "best"}), "expected \"none\", \"cls\", \"max\", \"mean\"");
        wrong_parameter(&sentence(), json!({"pooling": "cls"}), "the model itself says");
        wrong_parameter(&sentence(), json!({"prompt_name": "x"}), "(\"query\", \"none\"), got \"x\"");
        wrong_parameter(&plain(), json!({"prompt_name": "query"}), "the model has no prompts");
        let nulls = json!({"normalize": null, "truncate": null, "prompt_name": null, "pooling": null});
        assert!(plain().check_parameters(&parameters(nulls)).is_ok());
    }

    #[test]
    fn what_a_folder_lacks_is_said() {
        let missing = pipeline(&[("modules.json", MODULES)], &hidden()).err().unwrap();
        assert_eq!(missing, "1_Pooling/config.json is missing");
        let folder = tempfile::tempdir().unwrap();
        let made = FeatureExtraction::new(folder.path(), &inputs(), &hidden(), &PipelineLimits::default());
        assert_eq!(made.err().unwrap().to_string(), "there is no tokenizer.json beside the graph");
    }

    #[test]
    fn the_padding_is_that_of_the_graph() {
        let expected = [("input_ids".to_owned(), 1, 0), ("attention_mask".to_owned(), 1, 0)];
        assert_eq!(plain().padding().unwrap().inputs, expected);
    }
}

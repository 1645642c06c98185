//! `token-classification`: which tokens of a text name what, with the answers of transformers' pipeline.
//!
//! Tokens are answered one by one, or put together: to words by how the vocabulary marks those that go on with a word, and
//! words to entities by the `B-` and `I-` of their labels.

use super::model::{TextModel, find_token_logits, row, token_rows};
use super::tokenizer::{Located, SpecialTokens};
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::parameters::{read_each, texts};
use crate::pipelines::scores::{best, label_of};
use crate::pipelines::{
    EntityGroup, Item, Notes, Outputs, Padding, Parameters, Pipeline, PipelineError, Prediction, Prepared,
    ScoreFunction, TokenLabel, labels, only_run,
};
use serde_json::Value as Json;
use std::sync::Arc;

const TASK: &str = "token-classification";
const TAKES: &str = "aggregation_strategy and ignore_labels";

struct TokenClassification {
    model: TextModel,
    /// Name of the output that holds the logits.
    output: String,
    labels: Vec<String>,
    /// Whether the vocabulary marks tokens that go on with a word.
    marks_subwords: bool,
    /// The token that stands for what the vocabulary lacks.
    unknown: Option<u32>,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (output, classes) = find_token_logits(sources.outputs).map_err(PipelineError::Setup)?;
    let model = TextModel::find(sources)?;
    let labels = labels::find(sources.folder, sources.manifest.labels.as_ref(), sources.config()?, classes)?;
    let tokenizer = &model.tokenizer;
    let unknown = SpecialTokens::from_folder(sources.folder)?.unknown;
    let unknown = unknown.and_then(|token| tokenizer.id_of(&token)).or_else(|| tokenizer.own_unknown());
    let how = format!("tokens are scored by {output}; {}", model.describe());
    let marks_subwords = tokenizer.marks_subwords();
    Ok(Made { pipeline: Arc::new(TokenClassification { model, output, labels, marks_subwords, unknown }), how })
}

/// How tokens become entities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    /// Tokens alone.
    None,
    /// Neighbouring tokens of one label.
    Simple,
    /// Neighbouring words of one label, which a word has from its first token,
    First,
    /// from the mean of its tokens' scores,
    Average,
    /// or from the token that is surest.
    Max,
}

struct Checked {
    strategy: Strategy,
    ignored: Vec<String>,
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked { strategy: Strategy::None, ignored: vec!["O".to_owned()] };
    read_each(TASK, TAKES, parameters, |name, value| {
        match (name, value) {
            ("aggregation_strategy" | "ignore_labels", Json::Null) => {}
            ("aggregation_strategy", value) => {
                checked.strategy = match value.as_str().map(str::to_ascii_lowercase).as_deref() {
                    Some("none") => Strategy::None,
                    Some("simple") => Strategy::Simple,
                    Some("first") => Strategy::First,
                    Some("average") => Strategy::Average,
                    Some("max") => Strategy::Max,
                    _ => {
                        let names = "\"none\", \"simple\", \"first\", \"average\" or \"max\"";
                        return Err(format!("expected {names}, got {value}"));
                    }
                }
            }
            ("ignore_labels", value) => checked.ignored = texts(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(checked)
}

/// What postprocessing must know of a text.
struct Read {
    text: String,
    located: Located,
}

/// One token of the text and its scores, one for each label and at least one.
struct Token {
    index: usize,
    word: String,
    start: usize,
    end: usize,
    goes_on: bool,
    scores: Vec<f32>,
}

/// A token or a word with its label.
struct Labelled {
    label: String,
    score: f32,
    word: String,
    start: usize,
    end: usize,
}

impl TokenClassification {
    fn tokens(&self, outputs: &Outputs, read: &Read) -> Result<Vec<Token>, PipelineError> {
        let Located { tokens, offsets, special, .. } = &read.located;
        let rows = token_rows(outputs, &self.output, tokens.ids.len())?;
        // Byte of each character, to cut the text by characters.
        let bytes: Vec<usize> = read.text.char_indices().map(|(byte, _)| byte).chain([read.text.len()]).collect();
        let cut = |start: usize, end: usize| {
            let byte = |place: usize| bytes.get(place).copied().unwrap_or(read.text.len());
            read.text.get(byte(start)..byte(end)).unwrap_or_default()
        };
        let mut found = Vec::new();
        for (index, ((&id, &(start, end)), &special)) in tokens.ids.iter().zip(offsets).zip(special).enumerate() {
            if special {
                continue;
            }
            let scores = ScoreFunction::Softmax.apply(&row(&rows, index)?);
            let own = cut(start, end);
            let word = self.model.tokenizer.token(id);
            let goes_on = match self.marks_subwords {
                true => word.chars().count() != own.chars().count(),
                // Without marks, only a space tells where a word begins.
                false => start > 0 && !cut(start - 1, start + 1).contains(' '),
            };
            let (word, goes_on) = match Some(id) == self.unknown {
                true => (own.to_owned(), false),
                false => (word, goes_on),
            };
            found.push(Token { index, word, start, end, goes_on, scores });
        }
        Ok(found)
    }

    /// Tokens of one word to the word.
    fn word(&self, tokens: &[Token], strategy: Strategy) -> Result<Option<Labelled>, PipelineError> {
        let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return Ok(None) };
        let highest = |token: &Token| token.scores.get(best(&token.scores)).copied().unwrap_or(f32::NAN);
        let mean = |class: usize| mean(tokens.iter().filter_map(|token| token.scores.get(class)).copied());
        let scores = match strategy {
            Strategy::Average => (0..first.scores.len()).map(mean).collect(),
            Strategy::Max => {
                let heights: Vec<f32> = tokens.iter().map(highest).collect();
                tokens.get(best(&heights)).unwrap_or(first).scores.clone()
            }
            Strategy::None | Strategy::Simple | Strategy::First => first.scores.clone(),
        };
        let class = best(&scores);
        Ok(Some(Labelled {
            label: label_of(&self.labels, class),
            score: scores.get(class).copied().unwrap_or(f32::NAN),
            word: self.model.tokenizer.join(tokens.iter().map(|token| token.word.clone()).collect())?,
            start: first.start,
            end: last.end,
        }))
    }

    fn words(&self, tokens: &[Token], strategy: Strategy) -> Result<Vec<Labelled>, PipelineError> {
        let words = tokens.chunk_by(|_, next| next.goes_on);
        words.filter_map(|word| self.word(word, strategy).transpose()).collect()
    }

    fn groups(&self, labelled: &[Labelled]) -> Result<Vec<EntityGroup>, PipelineError> {
        let groups = labelled.chunk_by(|last, next| {
            let ((_, last), (begins, next)) = (tag(&last.label), tag(&next.label));
            last == next && !begins
        });
        let group = |parts: &[Labelled]| {
            let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(None) };
            Ok(Some(EntityGroup {
                entity_group: first.label.rsplit('-').next().unwrap_or_default().to_owned(),
                score: mean(parts.iter().map(|part| part.score)),
                word: self.model.tokenizer.join(parts.iter().map(|part| part.word.clone()).collect())?,
                start: first.start,
                end: last.end,
            }))
        };
        groups.filter_map(|parts| group(parts).transpose()).collect()
    }

    fn label(&self, token: Token) -> (usize, Labelled) {
        let class = best(&token.scores);
        let score = token.scores.get(class).copied().unwrap_or(f32::NAN);
        let Token { index, word, start, end, .. } = token;
        (index, Labelled { label: label_of(&self.labels, class), score, word, start, end })
    }
}

/// Whether a label begins an entity, and of what kind it is. One without `B-` or `I-` goes on.
fn tag(label: &str) -> (bool, &str) {
    match (label.strip_prefix("B-"), label.strip_prefix("I-")) {
        (Some(kind), _) => (true, kind),
        (None, Some(kind)) => (false, kind),
        (None, None) => (false, label),
    }
}

/// The mean of those that are numbers.
fn mean(values: impl Iterator<Item = f32>) -> f32 {
    let (sum, count) = values
        .filter(|value| !value.is_nan())
        .fold((0.0f64, 0u32), |(sum, count), value| (sum + f64::from(value), count + 1));
    (sum / f64::from(count)) as f32
}

impl Pipeline for TokenClassification {
    fn task(&self) -> &'static str {
        TASK
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn padding(&self) -> Option<Padding> {
        self.model.padding.clone()
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        let text = super::text_of(item)?;
        self.model.tokenizer.check_length(text)?;
        let located = self.model.tokenizer.locate(text)?;
        let inputs = self.model.inputs.tensors(&located.tokens)?;
        let bytes = text.len() + located.bytes();
        let notes = Notes::new(Read { text: text.to_owned(), located }, bytes);
        Ok(Prepared::new(vec![inputs], notes))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let Checked { strategy, ignored } = read_parameters(parameters)?;
        let tokens = self.tokens(only_run(outputs)?, notes.get::<Read>()?)?;
        let groups = match strategy {
            Strategy::None => {
                let labels = tokens.into_iter().map(|token| self.label(token));
                let labels = labels.map(|(index, labelled)| {
                    let Labelled { label, score, word, start, end } = labelled;
                    TokenLabel { entity: label, score, index, word, start, end }
                });
                return Ok(Prediction::TokenLabels(labels.filter(|label| !ignored.contains(&label.entity)).collect()));
            }
            Strategy::Simple => {
                let labelled: Vec<Labelled> = tokens.into_iter().map(|token| self.label(token).1).collect();
                self.groups(&labelled)?
            }
            Strategy::First | Strategy::Average | Strategy::Max => self.groups(&self.words(&tokens, strategy)?)?,
        };
        let kept = |group: &EntityGroup| !ignored.contains(&group.entity_group);
        Ok(Prediction::EntityGroups(groups.into_iter().filter(kept).collect()))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{made, output, parameters, wrong_parameter};
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::tensor::DType;
    use serde_json::json;

    /// Words of letters, pieces marked by `##`; labels O, B-X, I-X and B-Y.
    fn pipeline() -> Arc<dyn Pipeline> {
        let mut tokenizer = super::super::a_tokenizer();
        let vocab = json!({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "ab": 4, "##cd": 5, "ef": 6});
        tokenizer["model"] = json!({
            "type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
        });
        tokenizer["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        tokenizer["truncation"] = Json::Null;
        let config = json!({"id2label": {"0": "O", "1": "B-X", "2": "I-X", "3": "B-Y"}});
        made(TASK, config, &[("tokenizer.json", tokenizer)], &[spec("logits", DType::Fp32, &[-1, -1, 4])]).unwrap()
    }

    /// The answer as JSON where each token of `text`, special ones included, has logit 9 for the class in `classes`.
    fn answer(text: &str, classes: &[usize], given: Json) -> Json {
        let pipeline = pipeline();
        let prepared = pipeline.preprocess(&Item::Text(text.into()), &Parameters::new()).unwrap();
        let mut logits = vec![0.0f32; classes.len() * 4];
        classes.iter().enumerate().for_each(|(token, class)| logits[token * 4 + class] = 9.0);
        let outputs = vec![output("logits", &[1, classes.len(), 4], &logits)];
        let got = pipeline.postprocess(&[outputs], &prepared.notes, &parameters(given)).unwrap();
        serde_json::to_value(got).unwrap()
    }

    /// `expected`: the words with their places.
    #[track_caller]
    fn check(text: &str, classes: &[usize], given: Json, expected: &[(&str, &str, usize, usize)]) {
        let got = answer(text, classes, given);
        let text = |value: &Json, keys: [&str; 2]| keys.iter().find_map(|key| value[*key].as_str()).unwrap().to_owned();
        let place = |value: &Json| usize::try_from(value.as_u64().unwrap()).unwrap();
        let got = got.as_array().unwrap().iter().map(|one| {
            let label = text(one, ["entity", "entity_group"]);
            (label, text(one, ["word", "word"]), place(&one["start"]), place(&one["end"]))
        });
        let got: Vec<_> = got.collect();
        let expected: Vec<_> = expected.iter().map(|one| (one.0.to_owned(), one.1.to_owned(), one.2, one.3)).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn tokens_are_answered_alone_with_their_places_in_characters() {
        let expected = [("B-X", "ab", 2, 4), ("I-X", "##cd", 4, 6)];
        check("🙂 abcd ef", &[0, 0, 1, 2, 0, 0], json!({}), &expected);
        // What the vocabulary lacks is answered as it stands in the text.
        let all = json!({"ignore_labels": []});
        check("🙂 ef", &[3, 1, 0, 3], all, &[("B-X", "🙂", 0, 1), ("O", "ef", 2, 4)]);
        let one = answer("abcd", &[0, 1, 0, 0], json!({}));
        assert_eq!(one[0]["index"], 1);
        let keys: Vec<&String> = one[0].as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 6, "{keys:?}");
    }

    #[test]
    fn neighbours_of_one_kind_are_one_entity_unless_they_begin_another() {
        let simple = json!({"aggregation_strategy": "simple"});
        check("abcd ef", &[0, 1, 2, 2, 0], simple.clone(), &[("X", "abcd ef", 0, 7)]);
        check("abcd ef", &[0, 1, 2, 1, 0], simple.clone(), &[("X", "abcd", 0, 4), ("X", "ef", 5, 7)]);
        check("abcd ef", &[0, 2, 0, 3, 0], simple, &[("X", "ab", 0, 2), ("Y", "ef", 5, 7)]);
    }

    #[test]
    fn words_have_one_label() {
        let by = |strategy: &str| json!({"aggregation_strategy": strategy});
        check("abcd ef", &[0, 1, 0, 0, 0], by("first"), &[("X", "abcd", 0, 4)]);
        check("abcd ef", &[0, 1, 0, 0, 0], by("max"), &[("X", "abcd", 0, 4)]);
        // Both labels have the same mean, and "O" is the first of them.
        check("abcd ef", &[0, 1, 0, 0, 0], by("average"), &[]);
        let first = answer("abcd", &[0, 1, 2, 0], json!({"aggregation_strategy": "FIRST"}));
        assert!((first[0]["score"].as_f64().unwrap() - 0.999_63).abs() < 1e-4, "{first}");
        let average = answer("abcd", &[0, 1, 3, 0], json!({"aggregation_strategy": "average"}));
        assert!((average[0]["score"].as_f64().unwrap() - 0.499_88).abs() < 1e-4, "{average}");
    }

    #[test]
    fn wrong_parameters_say_what_they_may_be() {
        let pipeline = pipeline();
        wrong_parameter(
            pipeline.as_ref(),
            json!({"aggregation_strategy": "best"}),
            "\"average\" or \"max\", got \"best\"",
        );
        wrong_parameter(pipeline.as_ref(), json!({"ignore_labels": "O"}), "expected a list of texts, got \"O\"");
        wrong_parameter(pipeline.as_ref(), json!({"stride": 1}), "it takes aggregation_strategy and ignore_labels");
    }

    #[test]
    fn notes_of_another_pipeline_are_an_error() {
        let outputs = vec![output("logits", &[1, 2, 4], &[0.0; 8])];
        let got = pipeline().postprocess(&[outputs], &Notes::default(), &Parameters::new());
        assert!(matches!(got, Err(PipelineError::Outputs(_))), "{got:?}");
    }
}

//! A text to token ids and back, by `tokenizer.json`, as transformers' fast tokenizers do it.
//!
//! Invariants: a text longer than the limit is refused before it is tokenized; no more than `max_tokens` tokens come out,
//! special tokens counted; nothing is padded, and nothing runs on threads of the tokenizer's own. Places in a text are
//! counted in Unicode characters, as Python counts. The only file that knows the `tokenizers` crate.

use super::TOKENIZER;
use crate::pipelines::PipelineError;
use crate::pipelines::files::{read_bytes, read_json_object};
use serde_json::Value;
use std::path::Path;
use tokenizers::{
    Decoder, Encoding, Model, ModelWrapper, OffsetType, PostProcessor, PreTokenizer, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
/// The largest known, of multilingual models with 250,000 pieces, have about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Where no file says how many tokens the model takes.
const DEFAULT_MAX_TOKENS: usize = 512;
/// Transformers writes 10^30 for "no limit".
const MAX_TOKENS: u64 = 1 << 24;
/// Models whose positions begin behind the padding token's id.
const OFFSET_POSITIONS: [&str; 8] = [
    "altclip_text_model",
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "mpnet",
    "longformer",
    "roberta-prelayernorm",
];

/// A tokenizer that truncates to what its model takes.
pub(crate) struct TextTokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens of one text at most, special tokens counted.
    pub(crate) max_tokens: usize,
    /// The file that says so.
    pub(crate) limit_source: &'static str,
    max_text_bytes: usize,
}

/// The tokens of one text, special tokens among them; at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) type_ids: Vec<u32>,
    /// Whether the text had more tokens than these.
    pub(crate) truncated: bool,
}

/// Tokens and where they stand in the text, or in the texts of a pair. All lists have one length.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Located {
    pub(crate) tokens: Tokens,
    /// Start and end of each token in its text, in characters.
    pub(crate) offsets: Vec<(usize, usize)>,
    /// Whether the model's template put the token there.
    pub(crate) special: Vec<bool>,
    /// The word that each token is of, counted within its text; `None` for special tokens.
    pub(crate) words: Vec<Option<u32>>,
    /// The text that each token is of, 0 or 1; `None` for special tokens.
    pub(crate) texts: Vec<Option<usize>>,
}

impl Located {
    /// Roughly the bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        const EACH: usize = 2 * size_of::<u32>() + 2 * size_of::<usize>() + 1 + size_of::<Option<u32>>() + 16;
        size_of::<Located>() + self.offsets.len() * EACH
    }
}

/// How a long text is read in several parts beside a short one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Windows {
    /// Tokens of a part at most, with those of the short text and the special ones.
    pub(crate) tokens: usize,
    /// Tokens that a part has in common with the next, where there is room for so many and one more.
    pub(crate) stride: usize,
    /// Tokens of the short text at most.
    pub(crate) first_tokens: usize,
    /// Parts at most.
    pub(crate) count: usize,
}

/// How many tokens a model takes, and the file that says so.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limit {
    tokens: usize,
    source: &'static str,
}

impl TextTokenizer {
    /// The tokenizer beside the model, whose `config.json` is `config`. `stated` are tokens at most and what says so, such as
    /// `max_seq_length` of `sentence_bert_config.json`. `None` where there is no `tokenizer.json`.
    ///
    /// # Errors
    /// Where a file is malformed or too large, or leaves no room for a text.
    pub(crate) fn from_folder(
        folder: &Path,
        config: Option<&Value>,
        stated: Option<(u64, &'static str)>,
        max_text_bytes: usize,
    ) -> Result<Option<TextTokenizer>, PipelineError> {
        let Some(bytes) = read_bytes(folder, TOKENIZER, MAX_TOKENIZER_BYTES)? else { return Ok(None) };
        // Items are spread over the pool's threads: the crate's own would only fight with them.
        tokenizers::parallelism::set_parallelism(false);
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| setup(format!("{TOKENIZER}: not a tokenizer: {error}")))?;
        let tokenizer_config = read_json_object(folder, TOKENIZER_CONFIG)?;
        let own = inner.get_truncation().cloned();
        let limit = Limit::find(stated, tokenizer_config.as_ref(), config, own.as_ref().map(|own| own.max_length));
        let special = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if limit.tokens <= special {
            return Err(setup(format!(
                "{}: at most {} tokens leave no room for a text beside {special} special tokens",
                limit.source, limit.tokens
            )));
        }
        let side = tokenizer_config.as_ref().and_then(|config| config.get("truncation_side")).and_then(Value::as_str);
        let direction = match side {
            Some("left") => TruncationDirection::Left,
            Some(_) => TruncationDirection::Right,
            None => own.map_or(TruncationDirection::Right, |own| own.direction),
        };
        let strategy = TruncationStrategy::LongestFirst;
        let truncation = TruncationParams { max_length: limit.tokens, strategy, stride: 0, direction };
        inner.with_truncation(Some(truncation)).map_err(|error| setup(format!("{TOKENIZER}: {error}")))?;
        inner.with_padding(None);
        let (max_tokens, limit_source) = (limit.tokens, limit.source);
        Ok(Some(TextTokenizer { inner, max_tokens, limit_source, max_text_bytes }))
    }

    /// # Errors
    /// [`PipelineError::TooLarge`] where the text is longer than the server's limit.
    pub(crate) fn check_length(&self, text: &str) -> Result<(), PipelineError> {
        self.check_bytes(text.len())
    }

    /// # Errors
    /// As [`TextTokenizer::check_length`], for a text of so many bytes.
    pub(crate) fn check_bytes(&self, bytes: usize) -> Result<(), PipelineError> {
        let most = self.max_text_bytes;
        if bytes > most {
            let problem = format!("the text has {bytes} bytes, more than max_text_bytes = {most}; send it in parts");
            return Err(PipelineError::TooLarge { index: 0, problem });
        }
        Ok(())
    }

    /// The tokens of `text`, with the special tokens of the model.
    ///
    /// # Errors
    /// Where the text has no tokens, or the tokenizer cannot take it.
    pub(crate) fn encode(&self, text: &str) -> Result<Tokens, PipelineError> {
        let encoding = self.inner.encode_fast(text, true).map_err(cannot_take)?;
        tokens_of(&encoding)
    }

    /// The tokens of two texts that are read together; where they are too long, the longer one is cut first.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub(crate) fn encode_pair(&self, text: &str, text_pair: &str) -> Result<Tokens, PipelineError> {
        let special = self.special_tokens(true);
        if special >= self.max_tokens {
            let most = self.max_tokens;
            return Err(refuse(format!(
                "a pair has {special} special tokens alone, and the model takes {most} tokens; send one text"
            )));
        }
        let encoding = self.inner.encode_fast((text, text_pair), true).map_err(cannot_take)?;
        tokens_of(&encoding)
    }

    /// The tokens of `text` as [`TextTokenizer::encode`] gives them, and where they stand.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub(crate) fn locate(&self, text: &str) -> Result<Located, PipelineError> {
        let encoding = self.inner.encode_char_offsets(text, true).map_err(cannot_take)?;
        located(&encoding)
    }

    /// `text` beside each of `pairs`; where the two are too long, only `text` is cut.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`], and where one of `pairs` leaves no room for the text.
    pub(crate) fn encode_beside(&self, text: &str, pairs: &[String]) -> Result<Vec<Tokens>, PipelineError> {
        let special = self.special_tokens(true);
        let direction = self.direction();
        let whole = self.bare(text, 0, Some(self.max_tokens), OffsetType::None)?;
        let beside = |pair: &String| {
            let second = self.bare(pair, 1, Some(self.max_tokens), OffsetType::None)?;
            let room = self.max_tokens.saturating_sub(special + second.len());
            if room == 0 {
                let most = self.max_tokens;
                return Err(refuse(format!(
                    "{pair:?} leaves no room for the text within the {most} tokens that the model takes; shorten it"
                )));
            }
            let mut first = whole.clone();
            let truncated = first.len() > room;
            first.truncate(room, 0, direction);
            // Only what is left counts, and the post-processor would go through all that was cut off.
            first.take_overflowing();
            let encoding = self.inner.post_process(first, Some(second), true).map_err(cannot_take)?;
            Ok(Tokens { truncated, ..tokens_of(&encoding)? })
        };
        pairs.iter().map(beside).collect()
    }

    /// `first` beside each part of `second`, which are as many as it takes to read all of it.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`], where `first` leaves no room, and where there are too many parts.
    pub(crate) fn windows(&self, first: &str, second: &str, windows: &Windows) -> Result<Vec<Located>, PipelineError> {
        let mut first = self.bare(first, 0, Some(windows.first_tokens), OffsetType::Char)?;
        first.truncate(windows.first_tokens, 0, self.direction());
        first.take_overflowing();
        let mut second = self.bare(second, 1, None, OffsetType::Char)?;
        let special = self.special_tokens(true);
        let room = windows.tokens.min(self.max_tokens).saturating_sub(special + first.len());
        if room == 0 {
            return Err(refuse(format!(
                "the question's {} tokens and {special} special ones leave no room for the context within {} tokens; \
                 shorten the question",
                first.len(),
                windows.tokens.min(self.max_tokens)
            )));
        }
        let stride = windows.stride.min(room - 1);
        let count = 1 + second.len().saturating_sub(room).div_ceil(room - stride);
        if count > windows.count {
            return Err(refuse(format!(
                "the context is read in {count} parts, more than {}; shorten it or choose a smaller doc_stride",
                windows.count
            )));
        }
        second.truncate(room, stride, self.direction());
        let rest = second.take_overflowing();
        let part = |part: Encoding| {
            let encoding = self.inner.post_process(first.clone(), Some(part), true).map_err(cannot_take)?;
            located(&encoding)
        };
        std::iter::once(second).chain(rest).map(part).collect()
    }

    /// The tokens of `text` without special ones, of which no more than about `limit` are wanted.
    fn bare(
        &self,
        text: &str,
        type_id: u32,
        limit: Option<usize>,
        offsets: OffsetType,
    ) -> Result<Encoding, PipelineError> {
        let inner = &self.inner;
        let bare = || {
            let added = inner.get_added_vocabulary();
            let mut pieces = added.extract_and_normalize(inner.get_normalizer(), text);
            if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            let limit = limit.map(|limit| (limit, self.direction()));
            inner.get_model().tokenize_in_pretokenized(&mut pieces, limit)?;
            pieces.into_encoding(None, type_id, offsets)
        };
        bare().map_err(cannot_take)
    }

    fn direction(&self) -> TruncationDirection {
        self.inner.get_truncation().map_or(TruncationDirection::Right, |truncation| truncation.direction)
    }

    /// How many special tokens a text or a pair gets.
    fn special_tokens(&self, pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
    }

    /// The token's text in the vocabulary.
    pub(crate) fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The first token of a text, special ones left out.
    pub(crate) fn first_token(&self, text: &str) -> Option<u32> {
        self.bare(text, 0, Some(1), OffsetType::None).ok()?.get_ids().first().copied()
    }

    /// Tokens as they are in the vocabulary to the text that they make.
    ///
    /// # Errors
    /// Where the tokenizer cannot: a fault of its file.
    pub(crate) fn join(&self, tokens: Vec<String>) -> Result<String, PipelineError> {
        match self.inner.get_decoder() {
            Some(decoder) => decoder.decode(tokens).map_err(cannot_decode),
            None => Ok(tokens.join(" ")),
        }
    }

    /// The text that `ids` make.
    ///
    /// # Errors
    /// As [`TextTokenizer::join`].
    pub(crate) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, PipelineError> {
        self.inner.decode(ids, skip_special).map_err(cannot_decode)
    }

    /// Whether the vocabulary marks tokens that go on with a word, as BERT's `##` does.
    pub(crate) fn marks_subwords(&self) -> bool {
        match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => !model.continuing_subword_prefix.is_empty(),
            ModelWrapper::BPE(model) => model.continuing_subword_prefix.as_ref().is_some_and(|mark| !mark.is_empty()),
            ModelWrapper::WordLevel(_) | ModelWrapper::Unigram(_) => false,
        }
    }

    /// The token that stands for what the vocabulary lacks, as the model itself has it.
    pub(crate) fn own_unknown(&self) -> Option<u32> {
        match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => self.id_of(&model.unk_token),
            ModelWrapper::BPE(model) => self.id_of(model.unk_token.as_ref()?),
            ModelWrapper::WordLevel(model) => self.id_of(&model.unk_token),
            ModelWrapper::Unigram(_) => None,
        }
    }

    /// Tokens that `prompt` puts in front of a text: its own, without the special token that would end it.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub(crate) fn prompt_tokens(&self, prompt: &str) -> Result<usize, PipelineError> {
        let refuse = |error: tokenizers::Error| setup(format!("a prompt cannot be tokenized: {error}"));
        let encoding = self.inner.encode_fast(prompt, true).map_err(refuse)?;
        let ends_special = encoding.get_special_tokens_mask().last().is_some_and(|&mask| mask == 1);
        Ok(encoding.len() - usize::from(ends_special))
    }
}

fn refuse(problem: String) -> PipelineError {
    PipelineError::Item { index: 0, problem }
}

fn cannot_take(error: tokenizers::Error) -> PipelineError {
    tracing::debug!(%error, "a text could not be tokenized");
    refuse("the model's tokenizer cannot take this text".to_owned())
}

fn cannot_decode(error: tokenizers::Error) -> PipelineError {
    PipelineError::Outputs(format!("the model's tokenizer cannot make a text of its tokens: {error}"))
}

fn tokens_of(encoding: &Encoding) -> Result<Tokens, PipelineError> {
    if encoding.is_empty() {
        return Err(refuse("the text has no tokens".to_owned()));
    }
    Ok(Tokens {
        truncated: !encoding.get_overflowing().is_empty(),
        ids: encoding.get_ids().to_vec(),
        type_ids: encoding.get_type_ids().to_vec(),
    })
}

fn located(encoding: &Encoding) -> Result<Located, PipelineError> {
    Ok(Located {
        tokens: tokens_of(encoding)?,
        offsets: encoding.get_offsets().to_vec(),
        special: encoding.get_special_tokens_mask().iter().map(|&mask| mask == 1).collect(),
        words: encoding.get_word_ids().to_vec(),
        texts: encoding.get_sequence_ids(),
    })
}

/// Tokens with a meaning of their own, and how decoded text is tidied, from the files beside a tokenizer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SpecialTokens {
    /// Stands for a word that is asked for.
    pub(crate) mask: Option<String>,
    /// Stands for what the vocabulary lacks.
    pub(crate) unknown: Option<String>,
    /// Begins a text.
    pub(crate) class: Option<String>,
    /// Whether spaces before punctuation are taken out of decoded text.
    pub(crate) tidy: bool,
}

impl SpecialTokens {
    /// # Errors
    /// Where a file is malformed.
    pub(crate) fn from_folder(folder: &Path) -> Result<SpecialTokens, PipelineError> {
        let config = read_json_object(folder, TOKENIZER_CONFIG)?;
        let map = read_json_object(folder, SPECIAL_TOKENS_MAP)?;
        let named = |key: &str| [&config, &map].into_iter().flatten().find_map(|file| content_of(file.get(key)?));
        let tidy = config.as_ref().and_then(|config| config.get("clean_up_tokenization_spaces"));
        Ok(SpecialTokens {
            mask: named("mask_token"),
            unknown: named("unk_token"),
            class: named("cls_token"),
            tidy: tidy == Some(&Value::Bool(true)),
        })
    }
}

/// A special token's text, which files give alone or with its properties.
fn content_of(value: &Value) -> Option<String> {
    match value {
        Value::String(token) => Some(token.clone()),
        other => other.get("content").and_then(Value::as_str).map(str::to_owned),
    }
}

impl Limit {
    /// `first` counts over all but the positions that the model has; `own` is the truncation in `tokenizer.json`, which transformers replaces by what the others say.
    fn find(
        first: Option<(u64, &'static str)>,
        tokenizer_config: Option<&Value>,
        config: Option<&Value>,
        own: Option<usize>,
    ) -> Limit {
        let limit = |tokens: Option<u64>, source| {
            let tokens = tokens.filter(|tokens| (1..MAX_TOKENS).contains(tokens))?;
            Some(Limit { tokens: usize::try_from(tokens).ok()?, source })
        };
        let model_max_length = tokenizer_config.and_then(|config| config.get("model_max_length"));
        let positions = limit(config.and_then(positions), "config.json");
        let stated = first
            .and_then(|(tokens, source)| limit(Some(tokens), source))
            .or_else(|| limit(model_max_length.and_then(Value::as_u64), TOKENIZER_CONFIG));
        let own = || limit(own.and_then(|own| u64::try_from(own).ok()), TOKENIZER);
        match (stated, positions) {
            (Some(stated), Some(positions)) if positions.tokens < stated.tokens => positions,
            (Some(stated), _) => stated,
            (None, Some(positions)) => positions,
            (None, None) => own().unwrap_or(Limit { tokens: DEFAULT_MAX_TOKENS, source: "no file" }),
        }
    }
}

/// The positions that the model has; `None` where they have no end, or the file does not say.
fn positions(config: &Value) -> Option<u64> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    // Distances between tokens instead of places: no last one.
    if config.get("position_biased_input") == Some(&Value::Bool(false)) {
        return None;
    }
    let positions = number("max_position_embeddings").or_else(|| number("n_positions"))?;
    if OFFSET_POSITIONS.contains(&model_type) {
        return positions.checked_sub(number("pad_token_id").unwrap_or(1) + 1);
    }
    Some(positions)
}

/// Whether padding stands before the text.
///
/// # Errors
/// Where the file that says so is malformed.
pub(crate) fn pads_left(folder: &Path) -> Result<bool, PipelineError> {
    let config = read_json_object(folder, TOKENIZER_CONFIG)?;
    let side = config.as_ref().and_then(|config| config.get("padding_side")).and_then(Value::as_str);
    Ok(side == Some("left"))
}

/// The id of the padding token from the files beside the model; 0, which every vocabulary has, where none says: padding is
/// masked, whatever it is.
pub(crate) fn pad_id(folder: &Path, config: Option<&Value>) -> i64 {
    let id = |value: &Value| value.as_i64().filter(|&id| id >= 0);
    if let Some(id) = config.and_then(|config| config.get("pad_token_id")).and_then(id) {
        return id;
    }
    let token = [TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP].into_iter().find_map(|file| {
        let file = read_json_object(folder, file).ok().flatten()?;
        file.get("pad_token").and_then(content_of)
    });
    let Ok(Some(bytes)) = read_bytes(folder, TOKENIZER, MAX_TOKENIZER_BYTES) else { return 0 };
    let Ok(tokenizer) = serde_json::from_slice::<PadFields>(&bytes) else { return 0 };
    let added = tokenizer.added_tokens.iter().find(|added| Some(&added.content) == token.as_ref());
    added.map(|added| added.id).or(tokenizer.padding.map(|padding| padding.pad_id)).map_or(0, i64::from)
}

/// What `tokenizer.json` says of padding.
#[derive(serde::Deserialize)]
struct PadFields {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    padding: Option<OwnPadding>,
}

#[derive(serde::Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(serde::Deserialize)]
struct OwnPadding {
    pad_id: u32,
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// Words of `w0` … `w7`, `the`, with [CLS] and [SEP] around, as a `tokenizer.json`.
    pub(crate) fn words() -> Value {
        let mut vocab = serde_json::Map::new();
        for (id, token) in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "query", ":"].into_iter().enumerate() {
            vocab.insert(token.to_owned(), json!(id));
        }
        (0..8).for_each(|word| _ = vocab.insert(format!("w{word}"), json!(7 + word)));
        let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let template = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
        json!({
            "version": "1.0",
            "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [template("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, template("[SEP]")],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {
                    "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                    "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
                },
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
        })
    }

    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        folder
    }

    fn tokenizer(files: &[(&str, Value)]) -> TextTokenizer {
        TextTokenizer::from_folder(folder(files).path(), None, None, 100).unwrap().unwrap()
    }

    #[test]
    fn special_tokens_are_added_and_nothing_is_padded() {
        let tokens = tokenizer(&[(TOKENIZER, words())]).encode("the w0").unwrap();
        assert_eq!(tokens, Tokens { ids: vec![2, 4, 7, 3], type_ids: vec![0; 4], truncated: false });
        assert_eq!(tokenizer(&[(TOKENIZER, words())]).encode("").unwrap().ids, [2, 3]);
    }

    #[test]
    fn long_texts_are_cut_where_the_files_say() {
        let long = "w0 w1 w2 w3 w4 w5 w6 w7";
        let own = tokenizer(&[(TOKENIZER, words())]).encode(long).unwrap();
        assert_eq!((own.ids.as_slice(), own.truncated), ([2, 7, 8, 9, 3].as_slice(), true));
        let sides = json!({"model_max_length": 4, "truncation_side": "left"});
        let left = tokenizer(&[(TOKENIZER, words()), (TOKENIZER_CONFIG, sides)]).encode(long).unwrap();
        assert_eq!(left.ids, [2, 13, 14, 3]);
    }

    #[test]
    fn places_are_counted_in_characters_and_words_within_their_text() {
        let located = tokenizer(&[(TOKENIZER, words())]).locate("é w1").unwrap();
        assert_eq!(located.tokens.ids, [2, 1, 8, 3]);
        assert_eq!(located.offsets, [(0, 0), (0, 1), (2, 4), (0, 0)]);
        assert_eq!(located.special, [true, false, false, true]);
        assert_eq!(located.words, [None, Some(0), Some(1), None]);
        assert_eq!(located.texts, [None, Some(0), Some(0), None]);
    }

    #[test]
    fn a_pair_without_room_for_a_text_is_refused() {
        let mut long = words();
        let special = json!({"SpecialToken": {"id": "[SEP]", "type_id": 0}});
        long["post_processor"]["pair"].as_array_mut().unwrap().extend(vec![special; 5]);
        let tokenizer = tokenizer(&[(TOKENIZER, long)]);
        let refused = tokenizer.encode_pair("w0", "w1").unwrap_err().to_string();
        assert!(refused.contains("a pair has 5 special tokens alone, and the model takes 5"), "{refused}");
        assert!(tokenizer.encode_beside("w0", &["w1".to_owned()]).is_err());
        let windows = Windows { tokens: 9, stride: 0, first_tokens: 1, count: 9 };
        assert!(tokenizer.windows("w0", "w1", &windows).is_err());
    }

    #[test]
    fn special_tokens_are_named_by_either_file() {
        let config = json!({"mask_token": {"content": "<m>"}, "clean_up_tokenization_spaces": true, "cls_token": null});
        let map = json!({"mask_token": "<other>", "unk_token": "<u>", "cls_token": "<s>"});
        let found = SpecialTokens::from_folder(folder(&[(TOKENIZER_CONFIG, config), (SPECIAL_TOKENS_MAP, map)]).path());
        let expected = ["<m>", "<u>", "<s>"].map(|token| Some(token.to_owned()));
        let [mask, unknown, class] = expected;
        assert_eq!(found.unwrap(), SpecialTokens { mask, unknown, class, tidy: true });
        assert_eq!(SpecialTokens::from_folder(folder(&[]).path()).unwrap(), SpecialTokens::default());
    }

    #[test]
    fn a_text_without_tokens_is_refused() {
        let mut bare = words();
        bare["post_processor"] = Value::Null;
        let error = tokenizer(&[(TOKENIZER, bare)]).encode("  ").unwrap_err();
        assert_eq!(error.to_string(), "inputs[0]: the text has no tokens");
    }

    #[track_caller]
    fn limit(sentence: Option<u64>, tokenizer: Value, config: Value, own: Option<usize>, expected: (usize, &str)) {
        let sentence = sentence.map(|tokens| (tokens, "sentence_bert_config.json"));
        let limit = Limit::find(sentence, Some(&tokenizer), Some(&config), own);
        assert_eq!((limit.tokens, limit.source), expected);
    }

    #[test]
    fn the_limit_is_max_seq_length_then_model_max_length_within_the_positions() {
        let bert = json!({"model_type": "bert", "max_position_embeddings": 512});
        limit(Some(256), json!({"model_max_length": 512}), bert.clone(), Some(128), (256, "sentence_bert_config.json"));
        limit(None, json!({"model_max_length": 64}), bert.clone(), Some(128), (64, TOKENIZER_CONFIG));
        limit(None, json!({"model_max_length": 1e30}), bert.clone(), Some(128), (512, "config.json"));
        limit(Some(1024), json!({}), bert, None, (512, "config.json"));
        let roberta = json!({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1});
        limit(Some(514), json!({}), roberta, None, (512, "config.json"));
        let relative = json!({"max_position_embeddings": 512, "position_biased_input": false});
        limit(Some(1024), json!({}), relative, None, (1024, "sentence_bert_config.json"));
        limit(None, json!({}), json!({}), Some(128), (128, TOKENIZER));
        limit(Some(0), json!({"model_max_length": -1}), json!({"n_positions": "x"}), None, (512, "no file"));
    }

    #[test]
    fn files_that_make_no_tokenizer_are_named() {
        let no_room = json!({"model_max_length": 2});
        let cases = [
            (vec![(TOKENIZER, json!([1]))], "tokenizer.json: not a tokenizer"),
            (
                vec![(TOKENIZER, words()), (TOKENIZER_CONFIG, json!([]))],
                "tokenizer_config.json: expected a JSON object",
            ),
            (
                vec![(TOKENIZER, words()), (TOKENIZER_CONFIG, no_room)],
                "leave no room for a text beside 2 special tokens",
            ),
        ];
        for (files, expected) in cases {
            let folder = folder(&files);
            let error = TextTokenizer::from_folder(folder.path(), None, None, 9).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(TextTokenizer::from_folder(folder(&[]).path(), None, None, 9).unwrap().is_none());
    }

    #[test]
    fn the_pad_token_is_found_in_any_of_the_files() {
        let mut other = words();
        other["added_tokens"][1] = json!({"id": 9, "content": "<pad>"});
        other["padding"] = Value::Null;
        for (files, config, expected) in [
            (vec![], json!({"pad_token_id": 7}), 7),
            (vec![(TOKENIZER, words())], json!({"pad_token_id": null}), 0),
            (vec![(TOKENIZER, other.clone()), (TOKENIZER_CONFIG, json!({"pad_token": "<pad>"}))], json!({}), 9),
            (
                vec![
                    (TOKENIZER, other.clone()),
                    ("special_tokens_map.json", json!({"pad_token": {"content": "<pad>"}})),
                ],
                json!({}),
                9,
            ),
            (vec![(TOKENIZER, other), (TOKENIZER_CONFIG, json!({"pad_token": "nonesuch"}))], json!({}), 0),
            (vec![(TOKENIZER, json!("x"))], json!({"pad_token_id": -1}), 0),
        ] {
            assert_eq!(pad_id(folder(&files).path(), Some(&config)), expected);
        }
    }
}

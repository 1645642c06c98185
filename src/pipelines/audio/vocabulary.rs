//! The characters that a model of speech writes, by class: `vocab.json` or `tokenizer.json`, with what
//! `tokenizer_config.json` says of them.

use crate::pipelines::PipelineError;
use crate::pipelines::files::read_json_object;
use serde_json::Value;
use std::path::Path;

/// More than any alphabet has; bounds what a single large number in a file can make us allocate.
const MAX_TOKENS: u64 = 1 << 20;
const VOCAB: &str = "vocab.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The tokens of one model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Vocabulary {
    tokens: Vec<Option<String>>,
    unknown: String,
    /// CTC's blank.
    pub(super) blank: String,
    /// The token between words.
    delimiter: String,
    /// What is written for it.
    pub(super) space: String,
    pub(super) lower_case: bool,
    /// Whether blanks in front of punctuation are taken out.
    pub(super) clean_up: bool,
    /// The file the tokens are from.
    pub(super) source: &'static str,
}

impl Vocabulary {
    /// # Errors
    /// Where the folder has no vocabulary or a malformed one.
    pub(super) fn from_folder(folder: &Path) -> Result<Vocabulary, PipelineError> {
        let config = read_json_object(folder, TOKENIZER_CONFIG)?;
        let map = read_json_object(folder, "special_tokens_map.json")?;
        let text = |key: &str, default: &str| {
            let found = [&config, &map].into_iter().flatten().find_map(|file| content(file.get(key)?));
            found.unwrap_or(default).to_owned()
        };
        let flag = |key: &str| config.as_ref().and_then(|config| config.get(key)) == Some(&Value::Bool(true));
        let mut vocabulary = Vocabulary {
            tokens: Vec::new(),
            unknown: text("unk_token", "<unk>"),
            blank: text("pad_token", "<pad>"),
            delimiter: text("word_delimiter_token", "|"),
            space: text("replace_word_delimiter_char", " "),
            lower_case: flag("do_lower_case"),
            clean_up: flag("clean_up_tokenization_spaces"),
            source: VOCAB,
        };
        match read_json_object(folder, VOCAB)? {
            Some(vocab) => {
                let language = config.as_ref().and_then(|config| config.get("target_lang")).and_then(Value::as_str);
                vocabulary.add_all(VOCAB, of_language(&vocab, language)?)?;
            }
            None => match read_json_object(folder, TOKENIZER)? {
                Some(tokenizer) => vocabulary.add_tokenizer(&tokenizer)?,
                None => return Err(setup(format!("there is no {VOCAB} or {TOKENIZER} beside the graph"))),
            },
        }
        if let Some(added) = read_json_object(folder, "added_tokens.json")? {
            vocabulary.add_all("added_tokens.json", &added)?;
        }
        let added = config.as_ref().and_then(|config| config.get("added_tokens_decoder")).and_then(Value::as_object);
        for (id, token) in added.into_iter().flatten() {
            let id = id.parse::<u64>().map_or(Value::Null, Value::from);
            vocabulary.add(TOKENIZER_CONFIG, &id, content(token).unwrap_or_default())?;
        }
        if !vocabulary.tokens.iter().any(|token| token.as_ref() == Some(&vocabulary.blank)) {
            let blank = &vocabulary.blank;
            return Err(setup(format!("{}: there is no pad token {blank:?}, which is CTC's blank", vocabulary.source)));
        }
        Ok(vocabulary)
    }

    fn add_tokenizer(&mut self, tokenizer: &Value) -> Result<(), PipelineError> {
        self.source = TOKENIZER;
        let vocab = tokenizer.get("model").and_then(|model| model.get("vocab"));
        let Some(vocab) = vocab.filter(|vocab| vocab.is_object()) else {
            return Err(setup(format!("{TOKENIZER}: model.vocab is no object of token to id")));
        };
        self.add_all(TOKENIZER, vocab)?;
        for token in tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let id = token.get("id").unwrap_or(&Value::Null);
            self.add(TOKENIZER, id, content(token).unwrap_or_default())?;
        }
        Ok(())
    }

    fn add_all(&mut self, file: &str, tokens: &Value) -> Result<(), PipelineError> {
        for (token, id) in tokens.as_object().into_iter().flatten() {
            self.add(file, id, token)?;
        }
        Ok(())
    }

    fn add(&mut self, file: &str, id: &Value, token: &str) -> Result<(), PipelineError> {
        let Some(place) = id.as_u64().filter(|&id| id < MAX_TOKENS).and_then(|id| usize::try_from(id).ok()) else {
            return Err(setup(format!("{file}: the token {token:?} has no id from 0 to {}", MAX_TOKENS - 1)));
        };
        if place >= self.tokens.len() {
            self.tokens.resize(place + 1, None);
        }
        if let Some(slot) = self.tokens.get_mut(place) {
            *slot = Some(token.to_owned());
        }
        Ok(())
    }

    /// The token of a class.
    pub(super) fn token(&self, class: usize) -> &str {
        self.tokens.get(class).and_then(Option::as_deref).unwrap_or(&self.unknown)
    }

    /// The token as it is written.
    pub(super) fn written<'a>(&'a self, token: &'a str) -> &'a str {
        if token == self.delimiter { &self.space } else { token }
    }
}

/// A token as these files write it: text, or an object with `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}

/// The vocabulary of one language, where the file has one for each.
fn of_language<'a>(vocab: &'a Value, language: Option<&str>) -> Result<&'a Value, PipelineError> {
    let nested = vocab.as_object().is_some_and(|vocab| vocab.values().any(Value::is_object));
    if !nested {
        return Ok(vocab);
    }
    language.and_then(|language| vocab.get(language)).filter(|vocab| vocab.is_object()).ok_or_else(|| {
        setup(format!("{VOCAB} has several languages, and target_lang of {TOKENIZER_CONFIG} none of them"))
    })
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Vocabulary, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Vocabulary::from_folder(folder.path()).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        let got = read(files).map(|vocabulary| {
            let written = |class| vocabulary.written(vocabulary.token(class)).to_owned();
            (0..5).map(written).collect::<Vec<_>>().join(",")
        });
        let text = got.unwrap_or_else(|problem| problem);
        assert!(text == expected || text.contains(expected), "{text}");
    }

    #[test]
    fn tokens_come_from_the_files_as_transformers_reads_them() {
        let vocab = ("vocab.json", r#"{"<pad>": 0, "|": 1, "A": 2}"#);
        check(&[vocab], "<pad>, ,A,<unk>,<unk>");
        check(&[vocab, ("added_tokens.json", r#"{"<s>": 4}"#)], "<pad>, ,A,<unk>,<s>");
        let config = r#"{"added_tokens_decoder": {"3": {"content": "</s>"}}, "unk_token": {"content": "?"},
            "word_delimiter_token": "A", "replace_word_delimiter_char": "_"}"#;
        check(&[vocab, ("tokenizer_config.json", config)], "<pad>,|,_,</s>,?");
        let tokenizer = r#"{"model": {"vocab": {"<pad>": 0, "B": 1}}, "added_tokens": [{"id": 2, "content": "C"}]}"#;
        check(&[("tokenizer.json", tokenizer)], "<pad>,B,C,<unk>,<unk>");
        let nested = ("vocab.json", r#"{"eng": {"<pad>": 0, "A": 1}, "deu": {"<pad>": 0, "Ä": 1}}"#);
        check(&[nested, ("tokenizer_config.json", r#"{"target_lang": "deu"}"#)], "<pad>,Ä,<unk>");
        check(&[nested], "several languages");
    }

    #[test]
    fn malformed_vocabularies_are_refused() {
        check(&[], "there is no vocab.json or tokenizer.json");
        check(&[("vocab.json", r#"{"A": 99999999999}"#)], "\"A\" has no id from 0");
        check(&[("vocab.json", r#"{"A": "x"}"#)], "\"A\" has no id from 0");
        check(&[("vocab.json", r#"{"A": 0}"#)], "no pad token \"<pad>\"");
        check(&[("tokenizer.json", r#"{"model": {"vocab": [["a", 0.1]]}}"#)], "model.vocab is no object");
    }
}

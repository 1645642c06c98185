//! What goes into a pipeline and what comes out, in the terms of the task.

use bytes::Bytes;
use serde::{Serialize, Serializer};

/// One item of a request.
#[derive(Debug, Clone)]
pub enum Item {
    /// An encoded picture or sound as it came: JPEG, PNG, WAV, …
    Bytes(Bytes),
    Text(String),
    /// Two texts that are read together.
    Pair {
        text: String,
        text_pair: String,
    },
    Question {
        question: String,
        context: String,
    },
}

impl Item {
    /// What it is, for a sentence.
    pub fn noun(&self) -> &'static str {
        match self {
            Item::Bytes(_) => "a file",
            Item::Text(_) => "a text",
            Item::Pair { .. } => "a pair of texts",
            Item::Question { .. } => "a question and its context",
        }
    }

    /// Bytes of its content.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Bytes(bytes) => bytes.len(),
            Item::Text(text) => text.len(),
            Item::Pair { text, text_pair } => text.len() + text_pair.len(),
            Item::Question { question, context } => question.len() + context.len(),
        }
    }
}

/// The request's `parameters`, checked by the pipeline.
pub type Parameters = serde_json::Map<String, serde_json::Value>;

/// The answer for one item, in the shape of the HuggingFace pipeline of its task. Written as JSON, numbers have the digits of
/// their type, and those that are not finite are text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Prediction {
    /// Best first.
    Classes(Vec<ClassScore>),
    /// One vector for the whole item.
    Embedding(#[serde(serialize_with = "numbers")] Vec<f32>),
    /// A vector of `width` numbers, at least one, for each token: `values` has them token by token.
    TokenEmbeddings(TokenEmbeddings),
    /// What was said.
    Speech(SpokenText),
    /// Why there is none, where the request asked to go on (`on_error`).
    Error(ItemError),
}

/// A class and how sure the model is of it, 0 to 1 (or the raw output, where the task has no function to apply).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassScore {
    pub label: String,
    #[serde(serialize_with = "number")]
    pub score: f32,
}

/// A vector for each token of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEmbeddings {
    /// Numbers of a vector, at least one.
    pub width: usize,
    /// Token by token.
    pub values: Vec<f32>,
}

/// What was said in a sound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpokenText {
    pub text: String,
    /// Where the request asked for times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Vec<TextChunk>>,
}

/// A character or word and when it is said: seconds from the beginning, start and end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TextChunk {
    pub text: String,
    pub timestamp: [f64; 2],
}

/// What is wrong with one item of a request whose other items are answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ItemError {
    pub error: String,
}

impl Prediction {
    /// Roughly the bytes in memory, and a measure of how much there is to write.
    pub fn bytes(&self) -> usize {
        let inside = match self {
            Prediction::Classes(classes) => {
                classes.iter().map(|class| size_of_val(class) + class.label.len()).sum::<usize>()
            }
            Prediction::Embedding(values) => size_of_val(values.as_slice()),
            Prediction::TokenEmbeddings(tokens) => size_of_val(tokens.values.as_slice()),
            Prediction::Speech(speech) => {
                let chunks = speech.chunks.iter().flatten();
                speech.text.len() + chunks.map(|chunk| size_of_val(chunk) + chunk.text.len()).sum::<usize>()
            }
            Prediction::Error(error) => error.error.len(),
        };
        size_of::<Prediction>() + inside
    }
}

/// As transformers gives it: one text's vectors in a list of one.
impl Serialize for TokenEmbeddings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens: Vec<Numbers<'_>> = self.values.chunks_exact(self.width.max(1)).map(Numbers).collect();
        [tokens].serialize(serializer)
    }
}

struct Numbers<'a>(&'a [f32]);

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        numbers(self.0, serializer)
    }
}

struct Number(f32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        number(&self.0, serializer)
    }
}

pub(crate) fn numbers<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|&value| Number(value)))
}

/// The fewest digits that read back as the same number; non-finite numbers are text, as in all our JSON.
pub(crate) fn number<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    match *value {
        value if value.is_nan() => serializer.serialize_str("NaN"),
        f32::INFINITY => serializer.serialize_str("Infinity"),
        f32::NEG_INFINITY => serializer.serialize_str("-Infinity"),
        value => serializer.serialize_f32(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prediction: &Prediction, expected: &str) {
        assert_eq!(serde_json::to_string(prediction).unwrap(), expected);
    }

    #[test]
    fn scores_that_are_no_numbers_are_text() {
        let classes = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.1]
            .map(|score| ClassScore { label: "a\"b".into(), score })
            .to_vec();
        check(
            &Prediction::Classes(classes),
            r#"[{"label":"a\"b","score":"NaN"},{"label":"a\"b","score":"Infinity"},{"label":"a\"b","score":"-Infinity"},{"label":"a\"b","score":0.1}]"#,
        );
    }

    #[test]
    fn speech_has_chunks_only_where_they_were_asked_for() {
        let speech = |chunks| Prediction::Speech(SpokenText { text: "A".to_owned(), chunks });
        check(&speech(None), r#"{"text":"A"}"#);
        let chunk = TextChunk { text: "A".to_owned(), timestamp: [0.5, 1.0] };
        check(&speech(Some(vec![chunk])), r#"{"text":"A","chunks":[{"text":"A","timestamp":[0.5,1.0]}]}"#);
    }

    #[test]
    fn embeddings_are_numbers_with_the_digits_of_their_type() {
        let values = vec![0.1, -2.0, f32::NAN, 1e-7];
        check(&Prediction::Embedding(values.clone()), r#"[0.1,-2.0,"NaN",1e-7]"#);
        let tokens = Prediction::TokenEmbeddings(TokenEmbeddings { width: 2, values });
        check(&tokens, r#"[[[0.1,-2.0],["NaN",1e-7]]]"#);
    }
}

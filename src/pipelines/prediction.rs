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
    /// Values by column.
    Record(serde_json::Map<String, serde_json::Value>),
}

impl Item {
    /// What it is, for a sentence.
    pub fn noun(&self) -> &'static str {
        match self {
            Item::Bytes(_) => "a file",
            Item::Text(_) => "a text",
            Item::Pair { .. } => "a pair of texts",
            Item::Question { .. } => "a question and its context",
            Item::Record(_) => "a record",
        }
    }

    /// Bytes of its content.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Bytes(bytes) => bytes.len(),
            Item::Text(text) => text.len(),
            Item::Pair { text, text_pair } => text.len() + text_pair.len(),
            Item::Question { question, context } => question.len() + context.len(),
            Item::Record(record) => record.iter().map(|(name, value)| name.len() + value.to_string().len()).sum(),
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
    /// A map for each channel, of a picture's encoder that is convolutional.
    FeatureMaps(FeatureMaps),
    /// What a regression gives.
    Number(#[serde(serialize_with = "number")] f32),
    /// In the order of the text.
    TokenLabels(Vec<TokenLabel>),
    /// In the order of the text.
    EntityGroups(Vec<EntityGroup>),
    /// For the only mask of a text; best first.
    FilledMask(Vec<FilledMask>),
    /// For each mask of a text that has several; best first.
    FilledMasks(Vec<Vec<FilledMask>>),
    /// Where one was asked for.
    Answer(Answer),
    /// Best first.
    Answers(Vec<Answer>),
    RankedLabels(RankedLabels),
    /// Best first.
    Objects(Vec<Detection>),
    /// In the order of the classes.
    Segments(Vec<Segment>),
    Depth(DepthMap),
    /// What was said.
    Speech(SpokenText),
    /// When somebody speaks.
    Voice(VoiceActivity),
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

/// A thing found in a picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detection {
    pub label: String,
    /// 0 to 1.
    #[serde(serialize_with = "number")]
    pub score: f32,
    #[serde(rename = "box")]
    pub bounds: BoundingBox,
}

/// Edges in pixels of the picture that came, from its upper left corner; they may lie outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BoundingBox {
    #[serde(serialize_with = "number")]
    pub xmin: f32,
    #[serde(serialize_with = "number")]
    pub ymin: f32,
    #[serde(serialize_with = "number")]
    pub xmax: f32,
    #[serde(serialize_with = "number")]
    pub ymax: f32,
}

/// The pixels of a picture that are of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Segment {
    /// None where each pixel has the class that is best there.
    pub score: Option<f32>,
    pub label: String,
    pub mask: Mask,
}

/// A mask of the size of the picture that came.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Mask {
    /// A grey PNG in base64, 255 inside.
    Png(String),
    /// COCO's run lengths, not compressed: column by column, outside and inside in turn, beginning outside.
    Rle {
        /// Height and width.
        size: [u32; 2],
        counts: Vec<u32>,
    },
}

/// How far the pixels of a picture are, in the model's own unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DepthMap {
    /// For each pixel of the picture that came; `None` where the request asked for the grey picture alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_depth: Option<Rows>,
    /// A grey PNG in base64 of the size of the picture that came: 0 for the least, 255 for the greatest depth.
    pub depth: String,
}

/// Numbers row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Numbers of a row, at least one.
    pub width: usize,
    pub values: Vec<f32>,
}

/// A vector for each token of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEmbeddings {
    /// Numbers of a vector, at least one.
    pub width: usize,
    /// Token by token.
    pub values: Vec<f32>,
}

/// Maps of equal size, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureMaps {
    /// Of one map, at least 1 each.
    pub height: usize,
    pub width: usize,
    pub values: Vec<f32>,
}

/// What one token is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLabel {
    pub entity: String,
    #[serde(serialize_with = "number")]
    pub score: f32,
    /// The token's place among all tokens, special ones counted.
    pub index: usize,
    /// The token as the vocabulary has it.
    pub word: String,
    /// In characters of the text, as `end`.
    pub start: usize,
    pub end: usize,
}

/// Neighbouring tokens that name one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntityGroup {
    pub entity_group: String,
    #[serde(serialize_with = "number")]
    pub score: f32,
    /// The tokens as text, in the tokenizer's spelling.
    pub word: String,
    /// In characters of the text, as `end`.
    pub start: usize,
    pub end: usize,
}

/// A token that may stand where a text has its mask.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilledMask {
    #[serde(serialize_with = "number")]
    pub score: f32,
    /// Its place in the vocabulary.
    pub token: u32,
    pub token_str: String,
    /// The text with the token in it, in the tokenizer's spelling.
    pub sequence: String,
}

/// A part of a context that answers a question; empty where nothing does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    #[serde(serialize_with = "number")]
    pub score: f32,
    /// In characters of the context, as `end`.
    pub start: usize,
    pub end: usize,
    pub answer: String,
}

/// A text and the labels that it was offered, best first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankedLabels {
    pub sequence: String,
    pub labels: Vec<String>,
    /// One for each label.
    #[serde(serialize_with = "numbers")]
    pub scores: Vec<f32>,
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

/// When somebody speaks in a sound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoiceActivity {
    /// In order, not overlapping.
    pub segments: Vec<SpokenPart>,
    /// Where the request asked for them.
    #[serde(flatten)]
    pub windows: Option<VoiceWindows>,
}

/// A part of a sound in which somebody speaks: seconds from the beginning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpokenPart {
    pub start: f64,
    pub end: f64,
    /// Mean probability of its windows, 0 to 1.
    #[serde(serialize_with = "number")]
    pub score: f32,
}

/// How likely it is that somebody speaks in each window of a sound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoiceWindows {
    pub window_ms: f64,
    /// 0 to 1, window by window; the last may reach over the end.
    #[serde(serialize_with = "numbers")]
    pub probabilities: Vec<f32>,
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
            Prediction::FeatureMaps(maps) => size_of_val(maps.values.as_slice()),
            Prediction::Number(_) => 0,
            Prediction::TokenLabels(labels) => {
                labels.iter().map(|label| size_of_val(label) + label.entity.len() + label.word.len()).sum()
            }
            Prediction::EntityGroups(groups) => {
                groups.iter().map(|group| size_of_val(group) + group.entity_group.len() + group.word.len()).sum()
            }
            Prediction::FilledMask(filled) => filled.iter().map(FilledMask::bytes).sum(),
            Prediction::FilledMasks(masks) => masks.iter().flatten().map(FilledMask::bytes).sum(),
            Prediction::Answer(answer) => answer.answer.len(),
            Prediction::Answers(answers) => {
                answers.iter().map(|answer| size_of_val(answer) + answer.answer.len()).sum()
            }
            Prediction::RankedLabels(ranked) => {
                let labels = ranked.labels.iter().map(|label| size_of_val(label) + label.len()).sum::<usize>();
                ranked.sequence.len() + labels + size_of_val(ranked.scores.as_slice())
            }
            Prediction::Objects(objects) => {
                objects.iter().map(|object| size_of_val(object) + object.label.len()).sum::<usize>()
            }
            Prediction::Segments(segments) => segments.iter().map(Segment::bytes).sum::<usize>(),
            Prediction::Depth(map) => {
                let numbers = map.predicted_depth.as_ref().map_or(0, |rows| size_of_val(rows.values.as_slice()));
                numbers + map.depth.len()
            }
            Prediction::Speech(speech) => {
                let chunks = speech.chunks.iter().flatten();
                speech.text.len() + chunks.map(|chunk| size_of_val(chunk) + chunk.text.len()).sum::<usize>()
            }
            Prediction::Voice(activity) => {
                let windows = activity.windows.as_ref().map(|windows| size_of_val(windows.probabilities.as_slice()));
                size_of_val(activity.segments.as_slice()) + windows.unwrap_or_default()
            }
            Prediction::Error(error) => error.error.len(),
        };
        size_of::<Prediction>() + inside
    }
}

impl FilledMask {
    fn bytes(&self) -> usize {
        size_of_val(self) + self.token_str.len() + self.sequence.len()
    }
}

impl Segment {
    fn bytes(&self) -> usize {
        let mask = match &self.mask {
            Mask::Png(text) => text.len(),
            Mask::Rle { counts, .. } => size_of_val(counts.as_slice()),
        };
        size_of_val(self) + self.label.len() + mask
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.values.chunks_exact(self.width.max(1)).map(Numbers))
    }
}

/// As transformers gives it: one text's vectors in a list of one.
impl Serialize for TokenEmbeddings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens: Vec<Numbers<'_>> = self.values.chunks_exact(self.width.max(1)).map(Numbers).collect();
        [tokens].serialize(serializer)
    }
}

/// As transformers gives it: one picture's maps in a list of one.
impl Serialize for FeatureMaps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (height, width) = (self.height.max(1), self.width.max(1));
        let maps = self.values.chunks_exact(height * width);
        let maps: Vec<Vec<Numbers<'_>>> = maps.map(|map| map.chunks_exact(width).map(Numbers).collect()).collect();
        [maps].serialize(serializer)
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
    fn voices_have_their_windows_only_where_they_were_asked_for() {
        let segments = vec![SpokenPart { start: 0.5, end: 1.25, score: 0.1 }];
        let mut activity = VoiceActivity { segments, windows: None };
        check(&Prediction::Voice(activity.clone()), r#"{"segments":[{"start":0.5,"end":1.25,"score":0.1}]}"#);
        activity.segments.clear();
        activity.windows = Some(VoiceWindows { window_ms: 32.0, probabilities: vec![0.1, f32::NAN] });
        let text = r#"{"segments":[],"window_ms":32.0,"probabilities":[0.1,"NaN"]}"#;
        check(&Prediction::Voice(activity), text);
    }

    #[test]
    fn embeddings_are_numbers_with_the_digits_of_their_type() {
        let values = vec![0.1, -2.0, f32::NAN, 1e-7];
        check(&Prediction::Embedding(values.clone()), r#"[0.1,-2.0,"NaN",1e-7]"#);
        let tokens = Prediction::TokenEmbeddings(TokenEmbeddings { width: 2, values });
        check(&tokens, r#"[[[0.1,-2.0],["NaN",1e-7]]]"#);
        let maps = FeatureMaps { height: 1, width: 2, values: vec![1.0, 2.0, 3.0, 4.0] };
        check(&Prediction::FeatureMaps(maps), "[[[[1.0,2.0]],[[3.0,4.0]]]]");
    }

    #[test]
    fn answers_of_tasks_on_texts_have_the_fields_of_transformers_in_their_order() {
        let (score, start, end) = (0.5, 1, 3);
        let label = TokenLabel { entity: "B-X".into(), score, index: 2, word: "##a".into(), start, end };
        check(
            &Prediction::TokenLabels(vec![label]),
            r###"[{"entity":"B-X","score":0.5,"index":2,"word":"##a","start":1,"end":3}]"###,
        );
        let group = EntityGroup { entity_group: "X".into(), score, word: "a".into(), start, end };
        let text = r#"[{"entity_group":"X","score":0.5,"word":"a","start":1,"end":3}]"#;
        check(&Prediction::EntityGroups(vec![group]), text);
        let filled = FilledMask { score, token: 7, token_str: "a".into(), sequence: "a b".into() };
        let text = r#"[{"score":0.5,"token":7,"token_str":"a","sequence":"a b"}]"#;
        check(&Prediction::FilledMask(vec![filled.clone()]), text);
        check(&Prediction::FilledMasks(vec![vec![filled]]), &format!("[{text}]"));
        let answer = Answer { score, start, end, answer: "a".into() };
        let text = r#"{"score":0.5,"start":1,"end":3,"answer":"a"}"#;
        check(&Prediction::Answer(answer.clone()), text);
        check(&Prediction::Answers(vec![answer]), &format!("[{text}]"));
        let ranked = RankedLabels { sequence: "s".into(), labels: vec!["a".into()], scores: vec![f32::NAN] };
        check(&Prediction::RankedLabels(ranked), r#"{"sequence":"s","labels":["a"],"scores":["NaN"]}"#);
    }

    #[test]
    fn objects_have_the_shape_of_the_reference() {
        let bounds = BoundingBox { xmin: -1.5, ymin: 0.0, xmax: 2.0, ymax: 3.25 };
        check(
            &Prediction::Objects(vec![Detection { label: "cat".into(), score: 0.1, bounds }]),
            r#"[{"label":"cat","score":0.1,"box":{"xmin":-1.5,"ymin":0.0,"xmax":2.0,"ymax":3.25}}]"#,
        );
    }

    #[test]
    fn masks_and_depths_have_the_shape_of_the_reference() {
        let segment = |mask| Segment { score: None, label: "sky".into(), mask };
        let masks = [Mask::Png("AA==".into()), Mask::Rle { size: [2, 3], counts: vec![0, 6] }].map(segment);
        check(
            &Prediction::Segments(masks.to_vec()),
            r#"[{"score":null,"label":"sky","mask":"AA=="},{"score":null,"label":"sky","mask":{"size":[2,3],"counts":[0,6]}}]"#,
        );
        let predicted_depth = Some(Rows { width: 2, values: vec![0.1, f32::NAN, 2.0, 3.0] });
        check(
            &Prediction::Depth(DepthMap { predicted_depth, depth: "AA==".into() }),
            r#"{"predicted_depth":[[0.1,"NaN"],[2.0,3.0]],"depth":"AA=="}"#,
        );
    }
}

//! `question-answering`: the part of a context that answers a question, with the answers of transformers' pipeline.
//!
//! A context that is longer than the model takes is read in parts that overlap, each a run of the graph; answers of all
//! parts are compared. A score is the product of the chances that the answer begins and ends where it does, and answers
//! that read alike, whatever their case, are one answer with the sum of their scores.

use super::model::{TextModel, is_float};
use super::tokenizer::{Located, SpecialTokens, Windows};
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::outputs::{tensor_named, unexpected};
use crate::pipelines::parameters::{count_from, flag, read_each};
use crate::pipelines::{
    Answer, Item, Notes, Outputs, Padding, Parameters, Pipeline, PipelineError, Prediction, Prepared, ScoreFunction,
};
use crate::tensor::{Dim, Spec};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::Arc;

const TASK: &str = "question-answering";
const TAKES: &str = "top_k, doc_stride, max_seq_len, max_question_len, max_answer_len, handle_impossible_answer and \
                     align_to_words";
const DEFAULT_SEQ_LEN: usize = 384;
const DEFAULT_STRIDE: usize = 128;
const DEFAULT_QUESTION_LEN: usize = 64;
const DEFAULT_ANSWER_LEN: usize = 15;
const MAX_TOP_K: usize = 100;
const MAX_ANSWER_LEN: usize = 512;
/// Runs of one item. A context of 65,536 tokens needs about 340.
const MAX_PARTS: usize = 2048;
/// Spans of one part that are compared at once.
const SPANS_KEPT: usize = 1 << 14;
/// The logit of a token that cannot be in an answer.
const MASKED: f32 = -10_000.0;

struct QuestionAnswering {
    model: TextModel,
    /// Names of the outputs that hold the logits of beginning and end.
    start: String,
    end: String,
    /// The token that begins a text: for "no answer".
    class: Option<u32>,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (start, end) = find_ends(sources.outputs).map_err(PipelineError::Setup)?;
    let model = TextModel::find(sources)?;
    let class = SpecialTokens::from_folder(sources.folder)?.class;
    let known = ["[CLS]", "<s>"].iter().find_map(|token| model.tokenizer.id_of(token));
    let class = class.and_then(|token| model.tokenizer.id_of(&token)).or(known);
    let how = format!("answers lie between {start} and {end}; longer contexts are read in parts; {}", model.describe());
    Ok(Made { pipeline: Arc::new(QuestionAnswering { model, start, end, class }), how })
}

/// The float outputs `[batch, tokens]` for beginning and end: `start_logits` and `end_logits`, else the first two.
fn find_ends(outputs: &[Spec]) -> Result<(String, String), String> {
    let fits = |spec: &&Spec| {
        let any_length = |dims: &[Dim]| matches!(dims, [_, Dim::Dynamic(_)]);
        is_float(spec) && spec.ty.shape().is_none_or(any_length)
    };
    let named = |name: &str| outputs.iter().filter(fits).find(|spec| spec.name == name);
    let mut others = outputs.iter().filter(fits);
    let ends = named("start_logits").zip(named("end_logits")).or_else(|| others.next().zip(others.next()));
    let ends = ends.map(|(start, end)| (start.name.clone(), end.name.clone()));
    ends.ok_or_else(|| {
        "the graph has no two float outputs [batch, tokens] for the answer's beginning and end".to_owned()
    })
}

struct Checked {
    top_k: usize,
    doc_stride: Option<usize>,
    max_seq_len: Option<usize>,
    max_question_len: usize,
    max_answer_len: usize,
    handle_impossible_answer: bool,
    align_to_words: bool,
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked {
        top_k: 1,
        doc_stride: None,
        max_seq_len: None,
        max_question_len: DEFAULT_QUESTION_LEN,
        max_answer_len: DEFAULT_ANSWER_LEN,
        handle_impossible_answer: false,
        align_to_words: true,
    };
    read_each(TASK, TAKES, parameters, |name, value| {
        match (name, value) {
            ("top_k" | "doc_stride" | "max_seq_len" | "max_question_len" | "max_answer_len", Json::Null) => {}
            ("handle_impossible_answer" | "align_to_words", Json::Null) => {}
            ("top_k", value) => match count_from(value)? {
                top_k if top_k > MAX_TOP_K => return Err(format!("expected at most {MAX_TOP_K}, got {value}")),
                top_k => checked.top_k = top_k,
            },
            ("doc_stride", value) => match value.as_u64().and_then(|stride| usize::try_from(stride).ok()) {
                Some(stride) => checked.doc_stride = Some(stride),
                None => return Err(format!("expected an integer of at least 0, got {value}")),
            },
            ("max_seq_len", value) => checked.max_seq_len = Some(count_from(value)?),
            ("max_question_len", value) => checked.max_question_len = count_from(value)?,
            ("max_answer_len", value) => match count_from(value)? {
                most if most > MAX_ANSWER_LEN => {
                    return Err(format!("expected at most {MAX_ANSWER_LEN} tokens, got {value}"));
                }
                most => checked.max_answer_len = most,
            },
            ("handle_impossible_answer", value) => checked.handle_impossible_answer = flag(value)?,
            ("align_to_words", value) => checked.align_to_words = flag(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if let (Some(stride), Some(most)) = (checked.doc_stride, checked.max_seq_len)
        && stride > most
    {
        let problem = format!("expected at most max_seq_len = {most}, got {stride}");
        return Err(PipelineError::Parameter { name: "doc_stride".to_owned(), problem });
    }
    Ok(checked)
}

impl Checked {
    /// How a context is split, for a model that takes `max_tokens`.
    fn windows(&self, max_tokens: usize) -> Windows {
        let tokens = self.max_seq_len.unwrap_or(DEFAULT_SEQ_LEN).min(max_tokens);
        let stride = self.doc_stride.unwrap_or(DEFAULT_STRIDE.min(tokens / 2));
        Windows { tokens, stride, first_tokens: self.max_question_len, count: MAX_PARTS }
    }
}

/// What postprocessing must know of a question.
struct Read {
    context: String,
    /// One for each run.
    parts: Vec<Located>,
}

/// A context that is cut by characters, and its text in small letters.
struct Context<'a> {
    text: &'a str,
    /// Byte of each character, and of the end.
    bytes: Vec<usize>,
    small: String,
    small_bytes: Vec<usize>,
}

impl<'a> Context<'a> {
    fn new(text: &'a str) -> Context<'a> {
        let bytes = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
        let (mut small, mut small_bytes) = (String::with_capacity(text.len()), Vec::new());
        for character in text.chars() {
            small_bytes.push(small.len());
            small.extend(character.to_lowercase());
        }
        small_bytes.push(small.len());
        Context { text, bytes, small, small_bytes }
    }

    fn cut(&self, start: usize, end: usize) -> &'a str {
        slice(self.text, &self.bytes, start, end)
    }

    fn cut_small(&self, start: usize, end: usize) -> &str {
        slice(&self.small, &self.small_bytes, start, end)
    }
}

fn slice<'t>(text: &'t str, bytes: &[usize], start: usize, end: usize) -> &'t str {
    let byte = |place: usize| bytes.get(place).copied().unwrap_or(text.len());
    text.get(byte(start)..byte(end)).unwrap_or_default()
}

/// A part of the context, in characters, and its score so far.
struct Candidate {
    start: usize,
    end: usize,
    score: f64,
}

/// Candidates by what they read.
struct Candidates<'c> {
    context: &'c Context<'c>,
    found: Vec<Candidate>,
    by_place: HashMap<(usize, usize), usize>,
    by_text: HashMap<&'c str, usize>,
}

impl<'c> Candidates<'c> {
    fn add(&mut self, (start, end): (usize, usize), score: f32) {
        // Places first: most candidates come from several parts, and a text may be long.
        let next = self.found.len();
        let (context, by_text) = (self.context, &mut self.by_text);
        let place = *self
            .by_place
            .entry((start, end))
            .or_insert_with(|| *by_text.entry(context.cut_small(start, end)).or_insert(next));
        match self.found.get_mut(place) {
            Some(same) => same.score += f64::from(score),
            None => self.found.push(Candidate { start, end, score: f64::from(score) }),
        }
    }
}

/// The chances that the answer begins, or ends, at each token: 0 for those that cannot be in it.
fn chances(logits: &[f32], may: &[bool]) -> Vec<f32> {
    let masked: Vec<f32> = logits.iter().zip(may).map(|(&logit, &may)| if may { logit } else { MASKED }).collect();
    ScoreFunction::Softmax.apply(&masked)
}

/// The likeliest beginnings and ends, best first, and their scores.
fn best_spans(
    start: &[f32],
    end: &[f32],
    in_context: &[bool],
    max_len: usize,
    count: usize,
) -> Vec<(usize, usize, f32)> {
    let best_first = |a: &(usize, usize, f32), b: &(usize, usize, f32)| {
        b.2.total_cmp(&a.2).then_with(|| (a.0, a.1).cmp(&(b.0, b.1)))
    };
    let mut spans = Vec::new();
    let keep_best = |spans: &mut Vec<(usize, usize, f32)>| {
        if count < spans.len() {
            spans.select_nth_unstable_by(count, best_first);
            spans.truncate(count);
        }
    };
    let may = |place: usize| in_context.get(place).copied().unwrap_or(false);
    for (first, &begins) in start.iter().enumerate().filter(|(first, _)| may(*first)) {
        let ends = end.iter().enumerate().skip(first).take(max_len).filter(|(last, _)| may(*last));
        spans.extend(ends.map(|(last, &ends)| (first, last, begins * ends)));
        // All spans of a long part would be many times its size.
        if spans.len() > SPANS_KEPT {
            keep_best(&mut spans);
        }
    }
    keep_best(&mut spans);
    spans.sort_unstable_by(best_first);
    spans
}

/// Characters of each token's word, where it is of one, else of the token.
fn word_places(part: &Located) -> Vec<(usize, usize)> {
    let mut words: HashMap<u32, (usize, usize)> = HashMap::new();
    let in_context = part.texts.iter().map(|text| *text == Some(1));
    for ((&(start, end), word), _) in part.offsets.iter().zip(&part.words).zip(in_context).filter(|(_, in_it)| *in_it) {
        if let Some(word) = word {
            words.entry(*word).or_insert((start, end)).1 = end;
        }
    }
    let place =
        |(&own, word): (&(usize, usize), &Option<u32>)| word.and_then(|word| words.get(&word)).copied().unwrap_or(own);
    part.offsets.iter().zip(&part.words).map(place).collect()
}

impl QuestionAnswering {
    /// The logits of one run, one for each token.
    fn logits(outputs: &Outputs, name: &str, tokens: usize) -> Result<Vec<f32>, PipelineError> {
        let tensor = tensor_named(outputs, name)?;
        let values = if tensor.shape() == [1, tokens] { tensor.to_f32() } else { None };
        values.ok_or_else(|| unexpected(name, &format!("[1, {tokens}]"), tensor))
    }
}

impl Pipeline for QuestionAnswering {
    fn task(&self) -> &'static str {
        TASK
    }

    fn preprocess_reads(&self, parameter: &str) -> bool {
        matches!(parameter, "doc_stride" | "max_seq_len" | "max_question_len")
    }

    fn padding(&self) -> Option<Padding> {
        self.model.padding.clone()
    }

    fn preprocess(&self, item: &Item, parameters: &Parameters) -> Result<Prepared, PipelineError> {
        let checked = read_parameters(parameters)?;
        let refuse = |problem: String| PipelineError::Item { index: 0, problem };
        let Item::Question { question, context } = item else {
            let problem = format!("expected {{\"question\": …, \"context\": …}}, got {}", item.noun());
            return Err(refuse(problem));
        };
        for (name, text) in [("question", question), ("context", context)] {
            self.model.tokenizer.check_length(text)?;
            if text.is_empty() {
                return Err(refuse(format!("the {name} is empty; send a text")));
            }
        }
        let windows = checked.windows(self.model.tokenizer.max_tokens);
        let parts = self.model.tokenizer.windows(question, context, &windows)?;
        let runs = parts.iter().map(|part| self.model.inputs.tensors(&part.tokens)).collect::<Result<_, _>>()?;
        let bytes = context.len() + parts.iter().map(Located::bytes).sum::<usize>();
        Ok(Prepared::new(runs, Notes::new(Read { context: context.clone(), parts }, bytes)))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = read_parameters(parameters)?;
        let read = notes.get::<Read>()?;
        if outputs.len() != read.parts.len() {
            let (runs, came) = (read.parts.len(), outputs.len());
            return Err(PipelineError::Outputs(format!("an item of {runs} runs came back with {came}")));
        }
        let context = Context::new(&read.context);
        let mut candidates =
            Candidates { context: &context, found: Vec::new(), by_place: HashMap::new(), by_text: HashMap::new() };
        // More than are asked for, as some of them turn out to be the same words.
        let count = if checked.align_to_words { checked.top_k * 2 + 10 } else { checked.top_k };
        let mut no_answer: Option<f32> = None;
        for (outputs, part) in outputs.iter().zip(&read.parts) {
            let tokens = part.tokens.ids.len();
            let in_context: Vec<bool> = part.texts.iter().map(|text| *text == Some(1)).collect();
            // "No answer" takes its share of the chances, asked for or not.
            let is_class = part.tokens.ids.iter().map(|id| Some(*id) == self.class);
            let may: Vec<bool> = in_context.iter().zip(is_class).map(|(&inside, class)| inside || class).collect();
            let start = chances(&Self::logits(outputs, &self.start, tokens)?, &may);
            let end = chances(&Self::logits(outputs, &self.end, tokens)?, &may);
            if let (Some(start), Some(end)) = (start.first(), end.first()) {
                no_answer = Some(no_answer.map_or(start * end, |least| least.min(start * end)));
            }
            let places = if checked.align_to_words { word_places(part) } else { part.offsets.clone() };
            for (first, last, score) in best_spans(&start, &end, &in_context, checked.max_answer_len, count) {
                if let (Some((start, _)), Some((_, end))) = (places.get(first), places.get(last)) {
                    candidates.add((*start, *end), score);
                }
            }
        }
        let answer = |Candidate { start, end, score }: Candidate| {
            let answer = context.cut(start, end).to_owned();
            Answer { score: score as f32, start, end, answer }
        };
        let mut found = candidates.found;
        if let Some(score) = no_answer.filter(|_| checked.handle_impossible_answer) {
            found.push(Candidate { start: 0, end: 0, score: f64::from(score) });
        }
        // Stable: of equals the earlier comes first.
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(checked.top_k);
        let mut answers: Vec<Answer> = found.into_iter().map(answer).collect();
        match answers.pop() {
            Some(only) if answers.is_empty() => Ok(Prediction::Answer(only)),
            last => {
                answers.extend(last);
                Ok(Prediction::Answers(answers))
            }
        }
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{made, numbers, output, parameters, wrong_parameter};
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::tensor::DType;
    use serde_json::json;

    /// A template of [CLS] question [SEP] context [SEP].
    fn pipeline(max_tokens: u64) -> Arc<dyn Pipeline> {
        let mut tokenizer = super::super::a_tokenizer();
        let special = |token: &str, text: u32| json!({"SpecialToken": {"id": token, "type_id": text}});
        let sequence = |id: &str, text: u32| json!({"Sequence": {"id": id, "type_id": text}});
        let pair = [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0), sequence("B", 1), special("[SEP]", 1)];
        tokenizer["post_processor"]["pair"] = json!(pair);
        let files = [("tokenizer.json", tokenizer), ("tokenizer_config.json", json!({"model_max_length": max_tokens}))];
        let logits = ["start_logits", "end_logits"].map(|name| spec(name, DType::Fp32, &[-1, -1]));
        made(TASK, json!({}), &files, &logits).unwrap()
    }

    fn ask(question: &str, context: &str) -> Item {
        Item::Question { question: question.into(), context: context.into() }
    }

    fn runs(max_tokens: u64, item: &Item, given: Json) -> Result<Vec<Vec<i64>>, String> {
        let prepared = pipeline(max_tokens).preprocess(item, &parameters(given));
        prepared
            .map(|made| made.runs.iter().map(|run| numbers(run, "input_ids")).collect())
            .map_err(|error| error.to_string())
    }

    /// The answer where each run has logit 9 for a beginning and an end at the tokens named for it, 0 elsewhere.
    fn answer(max_tokens: u64, context: &str, ends: &[(usize, usize)], given: Json) -> Json {
        let pipeline = pipeline(max_tokens);
        let prepared = pipeline.preprocess(&ask("the", context), &parameters(given.clone())).unwrap();
        assert_eq!(prepared.runs.len(), ends.len());
        let outputs = prepared.runs.iter().zip(ends).map(|(run, &(start, end))| {
            let tokens = run[0].1.len();
            let logits = |place| (0..tokens).map(|token| if token == place { 9.0 } else { 0.0 }).collect::<Vec<f32>>();
            let given = |name, place| output(name, &[1, tokens], &logits(place));
            vec![given("start_logits", start), given("end_logits", end)]
        });
        let outputs: Vec<Outputs> = outputs.collect();
        serde_json::to_value(pipeline.postprocess(&outputs, &prepared.notes, &parameters(given)).unwrap()).unwrap()
    }

    #[test]
    fn long_contexts_are_read_in_parts_that_overlap() {
        let item = ask("the", "w0 w1 w2 w3 w4");
        assert_eq!(runs(99, &item, json!({})).unwrap(), [[2, 4, 3, 7, 8, 9, 10, 11, 3]]);
        let two = [[2, 4, 3, 7, 8, 9, 3], [2, 4, 3, 9, 10, 11, 3]];
        assert_eq!(runs(99, &item, json!({"max_seq_len": 7, "doc_stride": 1})).unwrap(), two);
        assert_eq!(runs(7, &item, json!({"max_seq_len": 50, "doc_stride": 1})).unwrap(), two);
        // There is always a step forward.
        assert_eq!(runs(7, &item, json!({"doc_stride": 7})).unwrap().len(), 3);
        let long = ask("w0 w1 w2 w3", "the");
        assert_eq!(runs(9, &long, json!({"max_question_len": 2})).unwrap(), [[2, 7, 8, 3, 4, 3]]);
        let refused = runs(7, &long, json!({})).unwrap_err();
        assert!(refused.contains("the question's 4 tokens and 3 special ones leave no room"), "{refused}");
    }

    #[test]
    fn the_answer_is_the_likeliest_of_all_parts() {
        let got = answer(99, "é w1 w2", &[(4, 5)], json!({}));
        assert_eq!((&got["answer"], &got["start"], &got["end"]), (&json!("w1 w2"), &json!(2), &json!(7)));
        assert!((got["score"].as_f64().unwrap() - 0.999_26).abs() < 1e-3, "{got}");
        // The second part is sure of w4, the first of nothing.
        let given = json!({"max_seq_len": 7, "doc_stride": 1});
        assert_eq!(answer(99, "w0 w1 w2 w3 w4", &[(6, 6), (5, 5)], given)["answer"], "w4");
    }

    #[test]
    fn answers_that_read_alike_are_one() {
        let got = answer(99, "w1 w2 W1", &[(3, 3)], json!({"top_k": 9}));
        let texts: Vec<&str> = got.as_array().unwrap().iter().map(|one| one["answer"].as_str().unwrap()).collect();
        assert_eq!(texts, ["w1", "w1 w2", "w1 w2 W1", "w2", "w2 W1"]);
        let limited = answer(99, "w1 w2 W1", &[(3, 3)], json!({"top_k": 9, "max_answer_len": 1}));
        assert_eq!(limited.as_array().unwrap().len(), 2);
    }

    #[test]
    fn no_answer_is_one_where_it_is_asked_for() {
        let got = answer(99, "w1 w2", &[(0, 0)], json!({"handle_impossible_answer": true}));
        assert_eq!((&got["answer"], &got["start"], &got["end"]), (&json!(""), &json!(0), &json!(0)));
        assert!(got["score"].as_f64().unwrap() > 0.99, "{got}");
        let got = answer(99, "w1 w2", &[(0, 0)], json!({}));
        assert!(got["score"].as_f64().unwrap() < 0.01 && got["answer"] != "", "{got}");
    }

    #[test]
    fn answers_are_whole_words_unless_tokens_are_asked_for() {
        let part = Located {
            tokens: super::super::tokenizer::Tokens { ids: vec![0; 4], type_ids: vec![0; 4], truncated: false },
            offsets: vec![(0, 3), (0, 2), (2, 4), (5, 6)],
            special: vec![false; 4],
            words: vec![Some(0), Some(0), Some(0), None],
            texts: vec![Some(0), Some(1), Some(1), Some(1)],
        };
        assert_eq!(word_places(&part)[1..], [(0, 4), (0, 4), (5, 6)]);
    }

    #[test]
    fn items_and_parameters_that_cannot_be_are_named() {
        assert!(runs(9, &Item::Text("w0".into()), json!({})).unwrap_err().contains("expected {\"question\""));
        assert!(runs(9, &ask("w0", ""), json!({})).unwrap_err().contains("the context is empty"));
        assert!(runs(9, &ask("", "w0"), json!({})).unwrap_err().contains("the question is empty"));
        let pipeline = pipeline(9);
        wrong_parameter(
            pipeline.as_ref(),
            json!({"topk": 1}),
            "question-answering has no such parameter; it takes top_k",
        );
        wrong_parameter(pipeline.as_ref(), json!({"top_k": 101}), "expected at most 100, got 101");
        wrong_parameter(pipeline.as_ref(), json!({"doc_stride": -1}), "an integer of at least 0");
        wrong_parameter(
            pipeline.as_ref(),
            json!({"doc_stride": 9, "max_seq_len": 8}),
            "expected at most max_seq_len = 8",
        );
        wrong_parameter(pipeline.as_ref(), json!({"align_to_words": 1}), "expected true or false");
        let error = pipeline.postprocess(&[], &Notes::default(), &Parameters::new()).unwrap_err();
        assert!(matches!(error, PipelineError::Outputs(_)));
    }

    #[test]
    fn a_context_of_too_many_parts_is_refused() {
        let context = "w ".repeat(180);
        assert_eq!(runs(9, &ask("w0", &context), json!({"doc_stride": 0})).unwrap().len(), 36);
        let windows = Windows { tokens: 9, stride: 4, first_tokens: 3, count: 43 };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), super::super::a_tokenizer().to_string()).unwrap();
        let tokenizer = super::super::tokenizer::TextTokenizer::from_folder(
            folder.path(),
            Some(&json!({"max_position_embeddings": 9})),
            None,
            999,
        );
        let refused = tokenizer.unwrap().unwrap().windows("w0", &context, &windows).unwrap_err().to_string();
        assert!(refused.contains("44 parts, more than 43; shorten it or choose a smaller doc_stride"), "{refused}");
    }
}

//! `fill-mask`: what could stand where a text has the model's mask, with the answers of transformers' pipeline.
//!
//! A text with one mask is answered by a list; one with several by a list for each, in which the other masks stay.

use super::model::{TextModel, find_token_logits, row, token_rows};
use super::tokenizer::SpecialTokens;
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::parameters::{count_from, read_each, texts};
use crate::pipelines::scores::rank;
use crate::pipelines::{
    FilledMask, Item, Notes, Outputs, Padding, Parameters, Pipeline, PipelineError, Prediction, Prepared,
    ScoreFunction, only_run,
};
use serde_json::Value as Json;
use std::sync::Arc;

const TASK: &str = "fill-mask";
const TAKES: &str = "top_k and targets";
const DEFAULT_TOP_K: usize = 5;
/// Texts of one answer: each holds the whole text again.
const MAX_FILLED: usize = 10_000;

struct FillMask {
    model: TextModel,
    /// Name of the output that holds the logits.
    output: String,
    mask: String,
    mask_id: u32,
    /// Whether spaces before punctuation are taken out of what is decoded.
    tidy: bool,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (output, _) = find_token_logits(sources.outputs).map_err(PipelineError::Setup)?;
    let model = TextModel::find(sources)?;
    let special = SpecialTokens::from_folder(sources.folder)?;
    // Where no file names the mask, it is the one that everybody has.
    let known =
        || ["[MASK]", "<mask>"].map(str::to_owned).into_iter().find(|mask| model.tokenizer.id_of(mask).is_some());
    let Some(mask) = special.mask.or_else(known) else {
        let problem = "no file names a mask: add mask_token to tokenizer_config.json";
        return Err(PipelineError::Setup(problem.to_owned()));
    };
    let Some(mask_id) = model.tokenizer.id_of(&mask) else {
        return Err(PipelineError::Setup(format!("tokenizer.json has no token {mask:?}, which is the mask_token")));
    };
    let how = format!("{mask} is filled by {output}; {}", model.describe());
    Ok(Made { pipeline: Arc::new(FillMask { model, output, mask, mask_id, tidy: special.tidy }), how })
}

struct Checked {
    top_k: usize,
    /// The tokens to choose from; `None`: all.
    targets: Option<Vec<u32>>,
}

impl FillMask {
    fn read_parameters(&self, parameters: &Parameters) -> Result<Checked, PipelineError> {
        let mut checked = Checked { top_k: DEFAULT_TOP_K, targets: None };
        read_each(TASK, TAKES, parameters, |name, value| {
            match (name, value) {
                ("top_k" | "targets", Json::Null) => {}
                ("top_k", value) => {
                    checked.top_k = count_from(value)?;
                    if checked.top_k > MAX_FILLED {
                        return Err(format!("expected at most {MAX_FILLED}, got {value}"));
                    }
                }
                ("targets", Json::String(target)) => checked.targets = Some(self.ids_of(std::slice::from_ref(target))?),
                ("targets", value) => checked.targets = Some(self.ids_of(&texts(value)?)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(checked)
    }

    /// The tokens that targets stand for: a word that is none itself by its first token.
    fn ids_of(&self, targets: &[String]) -> Result<Vec<u32>, String> {
        let tokenizer = &self.model.tokenizer;
        let id = |target: &String| {
            let within = tokenizer.check_length(target).is_ok();
            within.then(|| tokenizer.id_of(target).or_else(|| tokenizer.first_token(target))).flatten()
        };
        let mut ids: Vec<u32> = targets.iter().filter_map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        match ids.is_empty() {
            true => Err("none of them is a word of the model's vocabulary; send at least one".to_owned()),
            false => Ok(ids),
        }
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, PipelineError> {
        let text = self.model.tokenizer.decode(ids, skip_special)?;
        Ok(if self.tidy { tidy(&text) } else { text })
    }

    /// What could stand at `place` of `ids`.
    fn fill(
        &self,
        ids: &[u32],
        place: usize,
        logits: &[f32],
        checked: &Checked,
        alone: bool,
    ) -> Result<Vec<FilledMask>, PipelineError> {
        let scores = ScoreFunction::Softmax.apply(logits);
        let ranked = match &checked.targets {
            None => rank(scores.into_iter().enumerate(), checked.top_k),
            Some(targets) => {
                let scored = targets.iter().filter_map(|&id| {
                    let place = usize::try_from(id).ok()?;
                    Some((place, *scores.get(place)?))
                });
                rank(scored, checked.top_k)
            }
        };
        let filled = |(token, score): (usize, f32)| {
            let Ok(token) = u32::try_from(token) else {
                return Err(PipelineError::Outputs(format!("output {:?} has more classes than tokens", self.output)));
            };
            let mut ids = ids.to_vec();
            if let Some(slot) = ids.get_mut(place) {
                *slot = token;
            }
            let token_str = self.decode(&[token], false)?;
            // The other masks are special tokens, and would be gone.
            Ok(FilledMask { score, token, token_str, sequence: self.decode(&ids, alone)? })
        };
        ranked.into_iter().map(filled).collect()
    }
}

/// Python's `clean_up_tokenization`: spaces before punctuation and English endings are taken out, in this order.
fn tidy(text: &str) -> String {
    let pairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Ids of a text's tokens.
struct Ids(Vec<u32>);

impl Pipeline for FillMask {
    fn task(&self) -> &'static str {
        TASK
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
        let tokens = self.model.tokenizer.encode(text)?;
        if !tokens.ids.contains(&self.mask_id) {
            let (mask, most) = (&self.mask, self.model.tokenizer.max_tokens);
            let problem = match tokens.truncated {
                true => format!("the text has no {mask} among the {most} tokens that the model takes; shorten it"),
                false => format!("the text has no mask; write {mask} where a word is wanted"),
            };
            return Err(PipelineError::Item { index: 0, problem });
        }
        let inputs = self.model.inputs.tensors(&tokens)?;
        let bytes = size_of_val(tokens.ids.as_slice());
        Ok(Prepared::new(vec![inputs], Notes::new(Ids(tokens.ids), bytes)))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = self.read_parameters(parameters)?;
        let Ids(ids) = notes.get::<Ids>()?;
        let rows = token_rows(only_run(outputs)?, &self.output, ids.len())?;
        let masks = ids.iter().enumerate().filter(|(_, id)| **id == self.mask_id).map(|(place, _)| place);
        let masks: Vec<usize> = masks.collect();
        let most = checked.targets.as_ref().map_or(checked.top_k, |targets| targets.len().min(checked.top_k));
        if masks.len().saturating_mul(most) > MAX_FILLED {
            let problem =
                format!("{} masks with top_k = {most} are more than {MAX_FILLED} texts; ask for fewer", masks.len());
            return Err(PipelineError::Item { index: 0, problem });
        }
        let alone = masks.len() == 1;
        let fill = |&place: &usize| self.fill(ids, place, &row(&rows, place)?, &checked, alone);
        let mut filled: Vec<Vec<FilledMask>> = masks.iter().map(fill).collect::<Result<_, _>>()?;
        match filled.pop() {
            Some(only) if alone => Ok(Prediction::FilledMask(only)),
            last => {
                filled.extend(last);
                Ok(Prediction::FilledMasks(filled))
            }
        }
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        self.read_parameters(parameters).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{made, output, parameters, wrong_parameter};
    use super::*;
    use crate::pipelines::image::input_spec as spec;
    use crate::tensor::DType;
    use serde_json::json;

    /// Words, of which [PAD], which nobody needs, is the mask.
    fn pipeline() -> Arc<dyn Pipeline> {
        let config = json!({"mask_token": {"content": "[PAD]"}, "clean_up_tokenization_spaces": true});
        let files = [("tokenizer_config.json", config)];
        made(TASK, json!({}), &files, &[spec("logits", DType::Fp32, &[-1, -1, 15])]).unwrap()
    }

    /// The answer where every token's logits grow with the vocabulary.
    fn fill(text: &str, given: Json) -> Result<Json, String> {
        let pipeline = pipeline();
        let prepared = pipeline.preprocess(&Item::Text(text.into()), &Parameters::new());
        let prepared = prepared.map_err(|error| error.to_string())?;
        let tokens = prepared.runs[0][0].1.len();
        let logits: Vec<f32> = (0..tokens * 15).map(|place| (place % 15) as f32).collect();
        let outputs = vec![output("logits", &[1, tokens, 15], &logits)];
        let got = pipeline.postprocess(&[outputs], &prepared.notes, &parameters(given));
        got.map(|got| serde_json::to_value(got).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mask_is_filled_by_the_likeliest_words() {
        let got = fill("the [PAD] w0", json!({"top_k": 2})).unwrap();
        assert_eq!(got.as_array().unwrap().len(), 2);
        assert_eq!((&got[0]["token"], &got[0]["token_str"]), (&json!(14), &json!("w7")));
        assert_eq!(got[0]["sequence"], "the w7 w0");
        assert_eq!(got[1]["sequence"], "the w6 w0");
        assert!((got[0]["score"].as_f64().unwrap() - 0.632_12).abs() < 1e-4, "{got}");
        assert_eq!(fill("[PAD]", json!({})).unwrap().as_array().unwrap().len(), 5);
    }

    #[test]
    fn several_masks_are_filled_each_with_the_others_in_place() {
        let got = fill("[PAD] w0 [PAD]", json!({"top_k": 1})).unwrap();
        assert_eq!(got[0][0]["sequence"], "[CLS] w7 w0 [PAD] [SEP]");
        assert_eq!(got[1][0]["sequence"], "[CLS] [PAD] w0 w7 [SEP]");
    }

    #[test]
    fn targets_are_the_only_words_to_choose_from() {
        let got = fill("[PAD]", json!({"targets": ["w1", "w2", "w1", "w0 w5"]})).unwrap();
        let words: Vec<&str> = got.as_array().unwrap().iter().map(|one| one["token_str"].as_str().unwrap()).collect();
        assert_eq!(words, ["w2", "w1", "w0"]);
        assert_eq!(fill("[PAD]", json!({"targets": "w3"})).unwrap()[0]["token_str"], "w3");
        wrong_parameter(pipeline().as_ref(), json!({"targets": []}), "send at least one");
        wrong_parameter(pipeline().as_ref(), json!({"targets": 1}), "expected a list of texts");
        wrong_parameter(pipeline().as_ref(), json!({"top_k": 0}), "an integer of at least 1");
        wrong_parameter(pipeline().as_ref(), json!({"top_k": 10_001}), "expected at most 10000");
        wrong_parameter(
            pipeline().as_ref(),
            json!({"best": 1}),
            "fill-mask has no such parameter; it takes top_k and targets",
        );
    }

    #[test]
    fn a_text_without_a_mask_is_told_the_mask() {
        assert_eq!(
            fill("w0", json!({})).unwrap_err(),
            "inputs[0]: the text has no mask; write [PAD] where a word is wanted"
        );
        let cut = fill("w0 w1 w2 w3 [PAD]", json!({})).unwrap_err();
        assert!(cut.contains("no [PAD] among the 5 tokens"), "{cut}");
    }

    #[test]
    fn a_model_without_a_mask_is_refused() {
        let outputs = [spec("logits", DType::Fp32, &[-1, -1, 15])];
        let error = made(TASK, json!({}), &[], &outputs).err().unwrap();
        assert!(error.contains("add mask_token to tokenizer_config.json"), "{error}");
        let files = [("special_tokens_map.json", json!({"mask_token": "<m>"}))];
        let error = made(TASK, json!({}), &files, &outputs).err().unwrap();
        assert!(error.contains("no token \"<m>\""), "{error}");
    }

    #[test]
    fn decoded_text_is_tidied_as_python_does() {
        assert_eq!(tidy("do n't , it 's me ! a ' b"), "don't, it's me! a'b");
    }
}

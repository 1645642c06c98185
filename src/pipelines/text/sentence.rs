//! What a sentence-transformers folder says: how tokens become one vector, and what is put in front of a text.
//!
//! Read from `modules.json` and the files it names, `sentence_bert_config.json` and `config_sentence_transformers.json`.
//! Modules that are not known here make the folder one that is not served: a vector that lacks a step is a wrong one.

use super::dense::Dense;
use super::pooling::{Pooling, normalize};
use crate::pipelines::PipelineError;
use crate::pipelines::files::{check_inside, read_json, read_json_object};
use serde_json::Value;
use std::path::Path;

pub(crate) const MODULES: &str = "modules.json";
pub(crate) const TRANSFORMER_CONFIG: &str = "sentence_bert_config.json";
const FOLDER_CONFIG: &str = "config_sentence_transformers.json";
/// More than any folder has.
const MAX_MODULES: usize = 64;

/// What is done around a graph that gives a vector for each token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SentenceTransformer {
    /// At least one; several are put one after another.
    pub(crate) pooling: Vec<Pooling>,
    /// Whether the tokens of a prompt count.
    pub(crate) include_prompt: bool,
    /// What follows the pooling, in order.
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Dense(Dense),
    Normalize,
}

/// How texts are prepared.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TextRules {
    pub(crate) max_seq_length: Option<u64>,
    pub(crate) lower_case: bool,
    /// Names and texts, in the file's order.
    pub(crate) prompts: Vec<(String, String)>,
    /// Where no prompt is named.
    pub(crate) default_prompt: Option<usize>,
}

/// One entry of `modules.json`.
struct Module {
    /// The last part of the Python class.
    class: String,
    /// Its folder; empty for the model's own.
    path: String,
}

/// Whether `modules.json` in `folder` says that sentence-transformers makes embeddings of a text graph.
pub(crate) fn is_sentence_transformers(folder: &Path) -> bool {
    matches!(modules(folder), Ok(Some(_)))
}

/// The modules; `None` where there is no such file, or its first module is no text model.
fn modules(folder: &Path) -> Result<Option<Vec<Module>>, PipelineError> {
    let Some(list) = read_json(folder, MODULES)? else { return Ok(None) };
    let malformed = || setup(format!("{MODULES}: expected a list of modules with type and path"));
    let list = list.as_array().filter(|list| list.len() <= MAX_MODULES).ok_or_else(malformed)?;
    let mut modules = Vec::with_capacity(list.len());
    for module in list {
        let text = |key: &str| module.get(key).and_then(Value::as_str);
        let class = text("type").and_then(|class| class.rsplit('.').next()).ok_or_else(malformed)?;
        modules.push(Module { class: class.to_owned(), path: text("path").unwrap_or_default().to_owned() });
    }
    Ok(modules.first().is_some_and(|first| first.class == "Transformer").then_some(modules))
}

/// The folder of the text model's own files inside `folder`: old folders have them in `0_Transformer`.
///
/// # Errors
/// Where the module's path leaves the folder.
pub(crate) fn transformer_path(folder: &Path) -> Result<Option<String>, PipelineError> {
    let first = modules(folder)?.and_then(|modules| modules.into_iter().next());
    let Some(path) = first.map(|module| module.path).filter(|path| !path.is_empty()) else { return Ok(None) };
    check_inside("path of modules.json", &path)?;
    Ok(folder.join(&path).join(super::TOKENIZER).is_file().then_some(path))
}

impl TextRules {
    /// The rules in `folder`, of the text model whose own files are in `own`.
    ///
    /// # Errors
    /// Where a file is malformed.
    pub(crate) fn from_folder(folder: &Path, own: &Path) -> Result<TextRules, PipelineError> {
        let mut rules = TextRules::default();
        if let Some(config) = read_json_object(own, TRANSFORMER_CONFIG)? {
            rules.max_seq_length = config.get("max_seq_length").and_then(Value::as_u64);
            rules.lower_case = config.get("do_lower_case") == Some(&Value::Bool(true));
        }
        let Some(config) = read_json_object(folder, FOLDER_CONFIG)? else { return Ok(rules) };
        let malformed = |problem: &str| setup(format!("{FOLDER_CONFIG}: {problem}"));
        match config.get("prompts") {
            None | Some(Value::Null) => {}
            Some(Value::Object(prompts)) => {
                for (name, prompt) in prompts {
                    let prompt = match prompt {
                        Value::String(prompt) => prompt.clone(),
                        Value::Null => String::new(),
                        _ => return Err(malformed("prompts: expected texts by name")),
                    };
                    rules.prompts.push((name.clone(), prompt));
                }
            }
            Some(_) => return Err(malformed("prompts: expected texts by name")),
        }
        if let Some(name) = config.get("default_prompt_name").and_then(Value::as_str) {
            let place = rules.prompts.iter().position(|(known, _)| known == name);
            rules.default_prompt =
                Some(place.ok_or_else(|| malformed("default_prompt_name: there is no such prompt"))?);
        }
        Ok(rules)
    }
}

impl SentenceTransformer {
    /// What `modules.json` in `folder` says; `None` where it is not there.
    ///
    /// # Errors
    /// Names the module that is malformed or not served.
    pub(crate) fn from_folder(folder: &Path) -> Result<Option<SentenceTransformer>, PipelineError> {
        let Some(modules) = modules(folder)? else { return Ok(None) };
        let mut pooling = None;
        let mut steps = Vec::new();
        for Module { class, path } in modules.into_iter().skip(1) {
            let own_folder = || check_inside("path of modules.json", &path).map(|()| path.as_str());
            match class.as_str() {
                "Pooling" if pooling.is_none() && steps.is_empty() => {
                    pooling = Some(read_pooling(folder, own_folder()?)?);
                }
                "Dense" if pooling.is_some() => steps.push(Step::Dense(Dense::from_folder(folder, own_folder()?)?)),
                "Normalize" if pooling.is_some() => steps.push(Step::Normalize),
                // Does nothing outside training.
                "Dropout" => {}
                _ => return Err(setup(format!("{MODULES}: the module {class} in this place is not served"))),
            }
        }
        let Some((pooling, include_prompt)) = pooling else {
            return Err(setup(format!("{MODULES}: there is no module Pooling, so tokens do not become one embedding")));
        };
        Ok(Some(SentenceTransformer { pooling, include_prompt, steps }))
    }

    /// Checks that each step takes what the one before gives, where a token's vector has `width` numbers.
    ///
    /// # Errors
    /// Names both numbers.
    pub(crate) fn check_width(&self, width: usize) -> Result<(), PipelineError> {
        let mut width = width.saturating_mul(self.pooling.len());
        for step in &self.steps {
            if let Step::Dense(dense) = step {
                if dense.width != width {
                    return Err(setup(format!("the module Dense takes {} numbers, but gets {width}", dense.width)));
                }
                width = dense.rows();
            }
        }
        Ok(())
    }

    /// The embedding of `values`, token by token, each of `width` numbers. `normalized` overrules the folder.
    ///
    /// # Errors
    /// Where a step takes another number of numbers.
    pub(crate) fn embed(
        &self,
        values: &[f32],
        width: usize,
        prompt_tokens: usize,
        normalized: Option<bool>,
    ) -> Result<Vec<f32>, PipelineError> {
        let skipped = if self.include_prompt { 0 } else { prompt_tokens };
        let mut vector: Vec<f32> = self.pooling.iter().flat_map(|mode| mode.pool(values, width, skipped)).collect();
        for step in &self.steps {
            match step {
                Step::Dense(dense) => {
                    vector = dense.apply(&vector).ok_or_else(|| {
                        let (takes, got) = (dense.width, vector.len());
                        PipelineError::Outputs(format!("the module Dense takes {takes} numbers, got {got}"))
                    })?;
                }
                Step::Normalize if normalized == Some(false) => {}
                Step::Normalize => normalize(&mut vector),
            }
        }
        if normalized == Some(true) {
            normalize(&mut vector);
        }
        Ok(vector)
    }

    /// Such as `mean, dense, normalized`.
    pub(crate) fn describe(&self) -> String {
        let modes = self.pooling.iter().map(|mode| mode.name());
        let steps = self.steps.iter().map(|step| match step {
            Step::Dense(_) => "dense",
            Step::Normalize => "normalized",
        });
        modes.chain(steps).collect::<Vec<_>>().join(", ")
    }
}

/// The modes, and whether a prompt's tokens count.
fn read_pooling(folder: &Path, path: &str) -> Result<(Vec<Pooling>, bool), PipelineError> {
    let file = format!("{path}/config.json");
    let config = read_json_object(folder, &file)?.ok_or_else(|| setup(format!("{file} is missing")))?;
    let modes: Vec<Pooling> = match config.get("pooling_mode").and_then(Value::as_str) {
        Some(name) => vec![
            Pooling::from_name(name)
                .ok_or_else(|| setup(format!("{file}: the pooling_mode {name:?} is not served")))?,
        ],
        None => {
            let on = |mode: Pooling, key: &str| match config.get(key) {
                // The class takes the mean where it is told nothing.
                None => mode == Pooling::Mean,
                Some(value) => value == &Value::Bool(true),
            };
            Pooling::ALL.iter().filter(|(mode, key, _)| on(*mode, key)).map(|(mode, _, _)| *mode).collect()
        }
    };
    if modes.is_empty() {
        return Err(setup(format!("{file}: no pooling mode is on")));
    }
    Ok((modes, config.get("include_prompt") != Some(&Value::Bool(false))))
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::text::dense::tests::write as write_dense;
    use serde_json::json;

    fn folder(modules: &[(&str, &str)], pooling: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let list: Vec<Value> = modules
            .iter()
            .enumerate()
            .map(|(idx, (class, path))| json!({"idx": idx, "name": "", "path": path, "type": format!("sentence_transformers.models.{class}")}))
            .collect();
        std::fs::write(folder.path().join(MODULES), Value::from(list).to_string()).unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        std::fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        folder
    }

    const TRANSFORMER: (&str, &str) = ("Transformer", "");
    const POOLING: (&str, &str) = ("Pooling", "1_Pooling");

    #[track_caller]
    fn modes(pooling: Value, expected: Result<&[Pooling], &str>) {
        let folder = folder(&[TRANSFORMER, POOLING], pooling);
        match (SentenceTransformer::from_folder(folder.path()), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got.unwrap().pooling, expected),
            (Err(got), Err(expected)) => assert!(got.to_string().contains(expected), "{got}"),
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }

    #[test]
    fn modes_stand_in_the_order_of_sentence_transformers() {
        let all = json!({
            "pooling_mode_lasttoken": true, "pooling_mode_weightedmean_tokens": true, "pooling_mode_mean_sqrt_len_tokens": true,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true, "pooling_mode_cls_token": true,
        });
        modes(all, Ok(&Pooling::ALL.map(|(mode, _, _)| mode)));
        modes(json!({"word_embedding_dimension": 4}), Ok(&[Pooling::Mean]));
        modes(json!({"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": true}), Ok(&[Pooling::Cls]));
        modes(json!({"pooling_mode": "lasttoken"}), Ok(&[Pooling::LastToken]));
        modes(json!({"pooling_mode": "attention"}), Err("\"attention\" is not served"));
        modes(json!({"pooling_mode_mean_tokens": false}), Err("no pooling mode is on"));
    }

    #[test]
    fn modules_that_would_be_left_out_are_named() {
        for (list, expected) in [
            (vec![TRANSFORMER], "there is no module Pooling"),
            (vec![TRANSFORMER, POOLING, ("LayerNorm", "2_LayerNorm")], "the module LayerNorm in this place"),
            (vec![TRANSFORMER, POOLING, POOLING], "the module Pooling in this place"),
            (vec![TRANSFORMER, ("Dense", "1_Dense"), POOLING], "the module Dense in this place"),
            (vec![TRANSFORMER, ("Pooling", "../1_Pooling")], "expected a file in the model's folder"),
            (vec![TRANSFORMER, POOLING, ("Dense", "2_Dense")], "2_Dense/config.json is missing"),
        ] {
            let error = SentenceTransformer::from_folder(folder(&list, json!({})).path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let clip = folder(&[("CLIPModel", "")], json!({}));
        assert!(!is_sentence_transformers(clip.path()));
        std::fs::write(clip.path().join(MODULES), "{}").unwrap();
        assert!(!is_sentence_transformers(clip.path()));
    }

    #[test]
    fn the_steps_follow_one_another() {
        let list = [TRANSFORMER, POOLING, ("Dropout", "2_Dropout"), ("Dense", "3_Dense"), ("Normalize", "4_Normalize")];
        let folder = folder(&list, json!({"pooling_mode_max_tokens": true, "include_prompt": false}));
        let config = r#"{"activation_function": "torch.nn.modules.linear.Identity"}"#;
        write_dense(&folder.path().join("3_Dense"), config, 2, 2);
        let model = SentenceTransformer::from_folder(folder.path()).unwrap().unwrap();
        assert_eq!(model.describe(), "max, mean, dense, normalized");
        // Tokens 9 | 1 3, of which the first is a prompt: max 3, mean 2; dense 3, 13.
        let raw = model.embed(&[9.0, 1.0, 3.0], 1, 1, Some(false)).unwrap();
        assert_eq!(raw, [3.0, 13.0]);
        for normalized in [None, Some(true)] {
            let unit = model.embed(&[9.0, 1.0, 3.0], 1, 1, normalized).unwrap();
            let length = unit.iter().map(|value| value * value).sum::<f32>();
            assert!((length - 1.0).abs() < 1e-6 && (unit[1] / unit[0] - 13.0 / 3.0).abs() < 1e-5, "{unit:?}");
        }
        assert!(model.check_width(1).is_ok());
        assert_eq!(model.check_width(2).unwrap_err().to_string(), "the module Dense takes 2 numbers, but gets 4");
        assert!(model.embed(&[1.0, 2.0], 2, 0, None).is_err());
    }

    #[test]
    fn prompts_and_limits_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        let rules = || TextRules::from_folder(folder.path(), folder.path());
        assert_eq!(rules().unwrap(), TextRules::default());
        write(TRANSFORMER_CONFIG, json!({"max_seq_length": 256, "do_lower_case": true}));
        write(
            FOLDER_CONFIG,
            json!({"prompts": {"query": "query: ", "document": null}, "default_prompt_name": "document"}),
        );
        let expected = TextRules {
            max_seq_length: Some(256),
            lower_case: true,
            prompts: vec![("query".into(), "query: ".into()), ("document".into(), String::new())],
            default_prompt: Some(1),
        };
        assert_eq!(rules().unwrap(), expected);
        write(FOLDER_CONFIG, json!({"prompts": ["query: "]}));
        assert!(rules().unwrap_err().to_string().contains("prompts: expected texts by name"));
        write(FOLDER_CONFIG, json!({"default_prompt_name": "query"}));
        assert!(rules().unwrap_err().to_string().contains("there is no such prompt"));
    }
}

//! The labels that a request wants to choose from, and the sentence that its template makes of each.
//!
//! Invariant: bounded in number and in bytes before any sentence is made. Knows no model.

use super::tokenizer::TextTokenizer;
use crate::pipelines::PipelineError;
use crate::pipelines::parameters::texts;
use serde_json::Value as Json;

/// Labels of one request: each is a text to the model.
const MAX_LABELS: usize = 256;
/// Where the template takes the label.
const SLOT: &str = "{}";

/// At least one label, once it is [`Candidates::checked`].
#[derive(Debug, PartialEq)]
pub(crate) struct Candidates {
    pub(crate) labels: Vec<String>,
    template: String,
}

impl Candidates {
    /// None yet; `template` stands where the request has no other.
    pub(crate) fn with_template(template: &str) -> Candidates {
        Candidates { labels: Vec::new(), template: template.to_owned() }
    }

    /// Reads `candidate_labels` and `hypothesis_template`; whether it is one of them.
    ///
    /// # Errors
    /// Says what it may be.
    pub(crate) fn read(&mut self, name: &str, value: &Json) -> Result<bool, String> {
        match (name, value) {
            ("candidate_labels" | "hypothesis_template", Json::Null) => {}
            ("candidate_labels", Json::String(labels)) => {
                let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty());
                self.labels = labels.map(str::to_owned).collect();
            }
            ("candidate_labels", value) => self.labels = texts(value)?,
            ("hypothesis_template", Json::String(template)) if template.contains(SLOT) => {
                self.template.clone_from(template);
            }
            ("hypothesis_template", value) => {
                return Err(format!("expected a text with {SLOT} where the label goes, got {value}"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// # Errors
    /// Where there is no label, or there are too many.
    pub(crate) fn checked(self) -> Result<Candidates, PipelineError> {
        let problem = match self.labels.len() {
            0 => "expected the labels to choose from, as a list or separated by commas".to_owned(),
            count if count > MAX_LABELS => {
                format!("expected at most {MAX_LABELS} labels, got {count}; send them in parts")
            }
            _ => return Ok(self),
        };
        Err(PipelineError::Parameter { name: "candidate_labels".to_owned(), problem })
    }

    /// What the template makes of each label.
    ///
    /// # Errors
    /// [`PipelineError::TooLarge`] where one is longer than the server's limit.
    pub(crate) fn sentences(&self, tokenizer: &TextTokenizer) -> Result<Vec<String>, PipelineError> {
        let slots = self.template.matches(SLOT).count();
        let sentence = |label: &String| {
            // Checked before it is made: a template may have many places for a long label.
            tokenizer.check_bytes(self.template.len().saturating_add(label.len().saturating_mul(slots)))?;
            Ok(self.template.replace(SLOT, label))
        };
        self.labels.iter().map(sentence).collect()
    }
}

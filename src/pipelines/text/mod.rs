//! Tasks on texts: a text to the token ids that a language graph takes, hidden states to embeddings.
//!
//! Steps, each its own file: [`tokenizer`] (text to tokens, from `tokenizer.json`) → [`input`] (tokens to the graph's
//! tensors, and how these may be padded) → the graph → the task. [`embedding`] is `feature-extraction`; what a
//! sentence-transformers folder says of it is read by [`sentence`], and computed by [`pooling`] and [`dense`]. The other
//! tasks are a file each, with the answers of transformers' pipelines; what they have in common is in [`model`], and
//! what zero-shot tasks read of a request in [`candidates`].
//!
//! Invariant: inside one item of these tasks there is no padding. Every token of an item's tensors is real, and whoever pads items to run
//! them together takes the padding off again; so an output's token axis is the item's tokens, all of them attended to.

mod answering;
mod candidates;
mod classification;
mod dense;
mod embedding;
mod entities;
mod fill_mask;
mod input;
mod model;
mod pooling;
mod sentence;
mod tokenizer;
mod zero_shot;

#[cfg(test)]
mod golden;

pub(crate) use answering::make as make_question_answering;
pub(crate) use candidates::Candidates;
pub(crate) use classification::make as make_text_classification;
pub use embedding::FeatureExtraction;
pub(crate) use embedding::{TASK as FEATURE_EXTRACTION, make as make_feature_extraction};
pub(crate) use entities::make as make_token_classification;
pub(crate) use fill_mask::make as make_fill_mask;
pub(crate) use input::{RowPadding, TextInputs, is_text_input};
pub use input::{padding_of, token_count};
pub(crate) use sentence::is_sentence_transformers;
#[cfg(test)]
pub(crate) use tokenizer::tests::words as a_tokenizer;
pub(crate) use tokenizer::{TextTokenizer, Tokens, pad_id, pads_left};
pub(crate) use zero_shot::make as make_zero_shot;

use crate::pipelines::{Item, PipelineError};

/// The text of an item that is one.
///
/// # Errors
/// Where it is something else, or bytes that are no text.
pub(crate) fn text_of(item: &Item) -> Result<&str, PipelineError> {
    let refuse = |problem: String| PipelineError::Item { index: 0, problem };
    match item {
        Item::Text(text) => Ok(text),
        // A file, whose type nobody told.
        Item::Bytes(bytes) => {
            std::str::from_utf8(bytes).map_err(|_| refuse("expected a text, got bytes that are not UTF-8".to_owned()))
        }
        other => Err(refuse(format!("expected a text, got {}", other.noun()))),
    }
}

/// The file that makes texts into tokens.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

//! Makes variants of a graph that are smaller or faster, and says how far their answers are from the original's.
//!
//! [`rewrite_file`] writes a graph in another form, a [`Rewriting`]; [`compare()`] runs variants and their original by
//! turns, [`decide`] says what came of it. Invariants: what is written is a valid model of the same inputs and outputs, its
//! metadata kept; nothing is adopted here, and nothing loaded: who asks brings the sessions. Reads and writes only the files
//! it is told.

mod compare;
mod drift;
mod editor;
mod file;
mod int8;
mod node;
mod opset;
mod product;

pub use compare::{
    Compared, Objective, Outcome, Sample, Timed, Trial, Verdict, WIN_MIN, compare, decide, rows_per_second, speed,
};
pub use drift::{Drift, drift};

use std::path::Path;

/// Why a variant could not be made. Texts are safe to show to a client.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// What is in the graph, or is not, that keeps it from being rewritten.
    #[error("{0}")]
    Graph(String),
    #[error("the graph's files cannot be read or written: {0}")]
    Io(#[from] std::io::Error),
}

/// What a rewriting did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Operators that were replaced, by their type.
    pub replaced: std::collections::BTreeMap<String, usize>,
    /// Operators of a kind that is replaced, and why they were left, each reason with their number.
    pub left: std::collections::BTreeMap<String, usize>,
    /// Bytes of the graph with all its data, before and after.
    pub bytes: (u64, u64),
    /// The files beside the original in which it kept data, by their paths from its folder. The variant needs none of them.
    pub data_files: Vec<String>,
}

/// How a graph is quantised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Weights of seven bits in place of eight: processors without VNNI add pairs of products in 16 bits, which full
    /// bytes overflow.
    pub reduce_range: bool,
}

impl QuantizeOptions {
    /// What this machine needs.
    pub fn here() -> QuantizeOptions {
        #[cfg(target_arch = "x86_64")]
        let has_dot_products = std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni");
        #[cfg(not(target_arch = "x86_64"))]
        let has_dot_products = true;
        QuantizeOptions { reduce_range: !has_dot_products }
    }
}

/// A form that a graph can be brought into.
#[derive(Debug, Clone, PartialEq)]
pub enum Rewriting {
    /// Products of bytes: weights become bytes with a scale for each column, activations become bytes as they come.
    Int8(QuantizeOptions),
}

impl Rewriting {
    /// One word for tables, flags and file names.
    pub fn name(&self) -> &'static str {
        match self {
            Rewriting::Int8(_) => "int8",
        }
    }
}

/// Rewrites the graph of `from` as `how` says. Writes `to`, and `to` with `.data` appended where the original kept its
/// weights outside, or they would not fit one file. Blocks.
///
/// # Errors
/// Where the file cannot be read or written, is no ONNX graph, is too old, or has nothing to replace.
pub fn rewrite_file(from: &Path, to: &Path, how: &Rewriting) -> Result<Rewritten, RewriteError> {
    let mut read = file::read(from)?;
    let mut rewritten = match how {
        Rewriting::Int8(options) => int8::quantize(&mut read.model, *options)?,
    };
    rewritten.bytes = (read.bytes, file::write(read.model, to, !read.data_files.is_empty())?);
    rewritten.data_files = read.data_files;
    Ok(rewritten)
}

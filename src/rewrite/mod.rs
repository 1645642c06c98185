//! Makes variants of a graph that are smaller or faster, and says how far their answers are from the original's.
//!
//! [`rewrite_file`] writes a graph in another form, a [`Rewriting`]; [`compare()`] runs variants and their original by
//! turns, [`decide`] says what came of it. Invariants: what is written is a valid model of the same inputs and outputs, its
//! metadata kept; nothing is adopted here, and nothing loaded: who asks brings the sessions. Reads and writes only the files
//! it is told.

mod calibration;
mod compare;
mod drift;
mod editor;
mod file;
mod fp16;
#[cfg(test)]
mod golden;
mod int4;
mod int8;
mod kinds;
mod lstm;
mod node;
mod norms;
mod opset;
mod product;
mod static_int8;
mod table;
#[cfg(test)]
mod tests;

pub use calibration::{CalibrationError, Ranges, calibrate, observable_file};
pub use compare::{
    Bounds, Compared, Objective, Outcome, Sample, Timed, Trial, Verdict, WIN_MIN, compare, decide, decide_within,
    rows_per_second, speed,
};
pub use drift::{Drift, drift};

use crate::runtime::onnx::proto::ModelProto;
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
    /// Weights that a number of 16 bits cannot hold, and that became the nearest one.
    pub clamped: usize,
    /// Bytes of the graph with all its data, before and after.
    pub bytes: (u64, u64),
    /// The files beside the original in which it kept data, by their paths from its folder. The variant needs none of them.
    pub data_files: Vec<String>,
}

/// How a graph is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Weights of seven bits in place of eight: processors without VNNI add pairs of products in 16 bits, which full
    /// bytes overflow.
    pub reduce_range: bool,
    /// Whether tables that `Gather` takes rows of, embeddings, become bytes too.
    pub gather: bool,
    /// Whether convolutions become ones of bytes too. That often loses: the bytes of their input are found anew in each run, and
    /// nothing is fused with what follows.
    pub conv: bool,
}

impl Default for QuantizeOptions {
    fn default() -> QuantizeOptions {
        QuantizeOptions { reduce_range: false, gather: true, conv: false }
    }
}

impl QuantizeOptions {
    /// What this machine needs.
    pub fn here() -> QuantizeOptions {
        QuantizeOptions { reduce_range: !has_dot_products(), ..QuantizeOptions::default() }
    }
}

/// Whether the processor adds products of bytes in 32 bits.
fn has_dot_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has = true;
    has
}

/// How a graph is quantised with scales that were calibrated.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticOptions {
    /// What the tensors that [`observable_file`] named took.
    pub ranges: Ranges,
    /// Where set, the share of numbers of a hundred that ranges hold; the others are clipped. Such as 99.99.
    pub percentile: Option<f64>,
    /// As [`QuantizeOptions::reduce_range`].
    pub reduce_range: bool,
}

impl StaticOptions {
    /// What this machine needs.
    pub fn here(ranges: Ranges) -> StaticOptions {
        StaticOptions { ranges, percentile: None, reduce_range: !has_dot_products() }
    }
}

/// How a graph is brought to 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fp16Options {
    /// Whether inputs and outputs stay of 32 bits.
    pub keep_io_types: bool,
}

impl Default for Fp16Options {
    fn default() -> Fp16Options {
        Fp16Options { keep_io_types: true }
    }
}

/// How weights are brought to four bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int4Options {
    /// Weights that share a scale: 16, 32, 64, 128 or 256.
    pub block_size: usize,
    /// Whether zero is the middle of each block; otherwise each block has a zero of its own.
    pub symmetric: bool,
    /// What ONNX Runtime computes with: 0 or 1 with 32 bits, 2 with 16, 4 with bytes, which is quicker and less exact.
    pub accuracy_level: i64,
}

impl Default for Int4Options {
    fn default() -> Int4Options {
        Int4Options { block_size: 32, symmetric: true, accuracy_level: 4 }
    }
}

/// A form that a graph can be brought into.
#[derive(Debug, Clone, PartialEq)]
pub enum Rewriting {
    /// Products of bytes: weights become bytes with a scale for each column, activations become bytes as they come.
    Int8(QuantizeOptions),
    /// Convolutions and products of bytes, with scales for activations that are the same in every run.
    StaticInt8(StaticOptions),
    /// Numbers of 16 bits.
    Fp16(Fp16Options),
    /// Large constants of products in four bits, which are widened as they are used.
    Int4(Int4Options),
}

impl Rewriting {
    /// One word for tables, flags and file names.
    pub fn name(&self) -> &'static str {
        match self {
            Rewriting::Int8(_) => "int8",
            Rewriting::StaticInt8(_) => "int8-static",
            Rewriting::Fp16(_) => "fp16",
            Rewriting::Int4(_) => "int4",
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
    let mut rewritten = rewrite(&mut read.model, how)?;
    rewritten.bytes = (read.bytes, file::write(read.model, to, !read.data_files.is_empty())?);
    rewritten.data_files = read.data_files;
    Ok(rewritten)
}

fn rewrite(model: &mut ModelProto, how: &Rewriting) -> Result<Rewritten, RewriteError> {
    match how {
        Rewriting::Int8(options) => int8::quantize(model, *options),
        Rewriting::StaticInt8(options) => static_int8::quantize(model, options),
        Rewriting::Fp16(options) => fp16::halve_model(model, *options),
        Rewriting::Int4(options) => int4::quantize(model, *options),
    }
}

/// Rewrites a graph that is not in a file in every form that needs no samples, and says which tensors static quantisation
/// would observe. For the fuzzer: what it gives is dropped, what it must not do is panic or take memory without bound.
#[doc(hidden)]
pub fn rewrite_bytes(bytes: &[u8]) {
    use prost::Message;
    let Ok(model) = ModelProto::decode(bytes) else { return };
    let eager = QuantizeOptions { conv: true, ..QuantizeOptions::default() };
    let observed = static_int8::observed(model.clone()).unwrap_or_default();
    let mut ranges = Ranges::default();
    for name in &observed {
        let tensor = crate::tensor::Tensor::from_vec(crate::tensor::DType::Fp32, vec![2], vec![-1f32, 2.0]);
        if let Ok(tensor) = tensor {
            ranges.observe(name, &tensor.into());
        }
    }
    let forms = [
        Rewriting::Int8(eager),
        Rewriting::StaticInt8(StaticOptions { ranges, percentile: None, reduce_range: false }),
        Rewriting::Fp16(Fp16Options::default()),
        Rewriting::Fp16(Fp16Options { keep_io_types: false }),
        Rewriting::Int4(Int4Options { symmetric: false, ..Int4Options::default() }),
    ];
    for form in &forms {
        let mut copy = model.clone();
        if rewrite(&mut copy, form).is_ok() {
            let _ = copy.encode_to_vec();
        }
    }
}

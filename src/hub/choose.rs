//! Which files of a repository make a version: the graph with its external data, and what its task needs. Pure.
//!
//! Invariants: only files of an allow-list are chosen, so that no program, pickle or weights of another framework ever
//! comes; every path is one that [`safe_path`] takes. A repository's own `model.toml` and `config.pbtxt` are left out:
//! they are the operator's settings, and a stranger's would overrule them.
//!
//! External data is found by the names that exporters give it. Which names a graph really has is read when it is loaded;
//! what is missing then is said then.

use super::transfer::safe_path;
use super::{FetchRequest, HubError, Precision};
use std::collections::BTreeSet;

/// A file of a repository, as its listing has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) bytes: Option<u64>,
    /// Git's name of the content, where git itself holds it; lower-case hex.
    pub(super) git_oid: Option<String>,
    /// Of the content, where it is a large file; lower-case hex.
    pub(super) sha256: Option<String>,
}

/// What is got of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice<'a> {
    /// One, or the two towers of a model that compares pictures with texts.
    pub(super) graphs: Vec<&'a Entry>,
    /// External data and the files of the task, in the listing's order.
    pub(super) rest: Vec<&'a Entry>,
}

impl<'a> Choice<'a> {
    pub(super) fn files(&self) -> impl Iterator<Item = &'a Entry> {
        self.graphs.iter().chain(&self.rest).copied()
    }
}

/// File names listed in an error.
const NAMES_SHOWN: usize = 12;

/// Files beside the graph, at the top of the repository, that a task may read; and the licence.
const COMPANIONS: [&str; 17] = [
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "labels.txt",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
];

/// Files in the folders that `modules.json` names.
const MODULE_COMPANIONS: [&str; 6] = [
    "config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// A graph for pictures and one for texts.
const TOWERS: [[&str; 2]; 2] =
    [["onnx/vision_model.onnx", "onnx/text_model.onnx"], ["vision_model.onnx", "text_model.onnx"]];

/// Endings of the weights that PyTorch models come with.
const PYTORCH: [&str; 7] = [".safetensors", ".bin", ".pt", ".pth", ".pt2", ".ckpt", ".pkl"];

/// What is got of `repository`, whose files are `entries`.
///
/// # Errors
/// [`HubError::Refused`] where the listing holds a name that could lead elsewhere; [`HubError::NotFound`] where there is no
/// such graph; [`HubError::Invalid`] where there are several, or none that can be served.
pub(super) fn choose<'a>(
    repository: &str,
    entries: &'a [Entry],
    request: &FetchRequest,
) -> Result<Choice<'a>, HubError> {
    check_names(entries)?;
    // Hidden folders are other programs': the store does not look into them.
    let visible: Vec<&Entry> =
        entries.iter().filter(|entry| !entry.path.split('/').any(|part| part.starts_with('.'))).collect();
    let graphs = Graphs { repository, all: visible.iter().copied().filter(|entry| is_graph(&entry.path)).collect() };
    let graphs = match (&request.file, request.precision) {
        (Some(file), _) => vec![graphs.named(file)?],
        (None, _) if graphs.all.is_empty() => return Err(no_graph(repository, &visible)),
        (None, precision) => graphs.by_precision(precision)?,
    };
    let has = |path: &str| visible.iter().any(|entry| entry.path == path);
    let (has_modules, has_merges) = (has("modules.json"), has("merges.txt"));
    let belongs = |entry: &&Entry| {
        let path = entry.path.as_str();
        // Beside merges, a vocabulary is that of a tokenizer, which tokenizer.json has too; else a speech model writes by it.
        COMPANIONS.contains(&path)
            || (path == "vocab.json" && !has_merges)
            || (has_modules && is_of_a_module(path))
            || graphs.iter().any(|graph| is_external_data(&graph.path, path))
    };
    let rest = visible.iter().copied().filter(belongs).collect();
    Ok(Choice { graphs, rest })
}

/// # Errors
/// [`HubError::Refused`] for a name that is no plain relative path, that comes twice, or that has a hash that is none.
fn check_names(entries: &[Entry]) -> Result<(), HubError> {
    let mut seen = BTreeSet::new();
    for entry in entries {
        let shown = || format!("{:?}", entry.path.chars().take(200).collect::<String>());
        if safe_path(&entry.path).is_none() {
            return Err(HubError::Refused(format!("unsafe file name in the repository: {}", shown())));
        }
        if !seen.insert(entry.path.as_str()) {
            return Err(HubError::Refused(format!("the repository lists {} twice", shown())));
        }
        let good = |hash: &Option<String>, length| hash.as_deref().is_none_or(|hash| is_hex(hash, length));
        if !good(&entry.git_oid, 40) || !good(&entry.sha256, 64) {
            return Err(HubError::Refused(format!("the repository lists {} with a malformed hash", shown())));
        }
    }
    Ok(())
}

/// Whether `text` is a hash of `length` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_graph(path: &str) -> bool {
    path.ends_with(".onnx") || path.ends_with(".ort")
}

/// The graphs of a repository.
struct Graphs<'n, 'a> {
    repository: &'n str,
    all: Vec<&'a Entry>,
}

impl<'a> Graphs<'_, 'a> {
    fn get(&self, path: &str) -> Option<&'a Entry> {
        self.all.iter().copied().find(|entry| entry.path == path)
    }

    fn named(&self, file: &str) -> Result<&'a Entry, HubError> {
        if !is_graph(file) {
            return Err(HubError::Invalid(format!("file: expected the path of an .onnx or .ort file, got {file:?}")));
        }
        let missing = || format!("{} has no graph {file:?}; it has {}", self.repository, self.listing());
        self.get(file).ok_or_else(|| HubError::NotFound(missing()))
    }

    /// The graph in the precision that is wanted: by the usual names first, else the only one that may be meant.
    fn by_precision(&self, wanted: Option<Precision>) -> Result<Vec<&'a Entry>, HubError> {
        let precision = wanted.unwrap_or(Precision::Fp32);
        if let Some(usual) = usual_names(precision).find_map(|name| self.get(&name)) {
            return Ok(vec![usual]);
        }
        if let Some(towers) = self.towers() {
            return match precision {
                Precision::Fp32 => Ok(towers),
                Precision::Fp16 | Precision::Int8 | Precision::Q4 => Err(HubError::Invalid(format!(
                    "{} has one graph for pictures and one for texts, and such a pair is served in fp32 alone; leave \
                     precision out, or name one graph with file",
                    self.repository
                ))),
            };
        }
        let fitting = match self.all.as_slice() {
            [only] if wanted.is_none() => vec![*only],
            // Of several models, which one is meant is not guessed.
            several if !are_variants(several) => Vec::new(),
            variants => variants.iter().copied().filter(|entry| variant(&entry.path).1 == Some(precision)).collect(),
        };
        match (fitting.as_slice(), wanted) {
            ([only], _) => Ok(vec![*only]),
            _ if self.is_split() => Err(HubError::Invalid(format!(
                "{} is split into an encoder and a decoder that writes text token by token; generation is not served. \
                 One of its graphs alone is got by naming it with file: {}",
                self.repository,
                self.listing()
            ))),
            ([], Some(wanted)) if are_variants(&self.all) => Err(HubError::NotFound(format!(
                "{} has no {} graph; it has {}; name one with file",
                self.repository,
                word(wanted),
                self.listing()
            ))),
            _ => Err(HubError::Invalid(format!(
                "{} has several graphs: {}; name one with file",
                self.repository,
                self.listing()
            ))),
        }
    }

    fn towers(&self) -> Option<Vec<&'a Entry>> {
        TOWERS.iter().find_map(|[vision, text]| Some(vec![self.get(vision)?, self.get(text)?]))
    }

    /// Whether text is written by a decoder that is a graph of its own.
    fn is_split(&self) -> bool {
        let is_decoder = |name: &str| name.starts_with("decoder_model") || name.starts_with("decoder_with_past");
        self.all.iter().any(|entry| is_decoder(file_name(&entry.path)))
    }

    fn listing(&self) -> String {
        let names: Vec<&str> = self.all.iter().map(|entry| entry.path.as_str()).collect();
        let shown = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
        match names.len().saturating_sub(NAMES_SHOWN) {
            0 if names.is_empty() => "none".to_owned(),
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

fn no_graph(repository: &str, entries: &[&Entry]) -> HubError {
    if entries.iter().any(|entry| PYTORCH.iter().any(|ending| entry.path.ends_with(ending))) {
        return HubError::NotFound(format!(
            "{repository} has no ONNX file, only weights for PyTorch: export it with `optimum-cli export onnx --model \
             {repository} <folder>` and take that folder (the server's own exporter is for torchvision's models and \
             TorchScript alone)"
        ));
    }
    HubError::NotFound(format!("{repository} has no ONNX file (.onnx or .ort)"))
}

/// The names that a graph in `precision` usually has, the best first: those of transformers.js and of optimum, then those
/// of sentence-transformers, of which the ones for this machine's processor come first.
fn usual_names(precision: Precision) -> impl Iterator<Item = String> {
    let stems: &[&str] = match precision {
        Precision::Fp32 => &["model", "model_fp32"],
        Precision::Fp16 => &["model_fp16", "model_float16"],
        Precision::Int8 if cfg!(target_arch = "aarch64") => {
            &["model_quantized", "model_int8", "model_uint8", "model_qint8_arm64", "model_quint8_avx2"]
        }
        Precision::Int8 => &[
            "model_quantized",
            "model_int8",
            "model_uint8",
            "model_quint8_avx2",
            "model_qint8_avx512",
            "model_qint8_avx512_vnni",
            "model_qint8_arm64",
        ],
        Precision::Q4 => &["model_q4", "model_q4f16", "model_bnb4"],
    };
    let places = |stem: &&str| [format!("onnx/{stem}.onnx"), format!("{stem}.onnx"), format!("{stem}.ort")];
    stems.iter().flat_map(places)
}

fn word(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Fp16 => "fp16",
        Precision::Int8 => "int8",
        Precision::Q4 => "q4",
    }
}

fn are_variants(graphs: &[&Entry]) -> bool {
    graphs.windows(2).all(|pair| matches!(pair, [a, b] if variant(&a.path).0 == variant(&b.path).0))
}

/// A graph's path without what its name says of its variant, and the precision that the name says; `None` for a variant
/// that is no precision of ours.
fn variant(path: &str) -> (&str, Option<Precision>) {
    let mut stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    for processor in ["_avx512_vnni", "_avx512", "_avx2", "_arm64"] {
        stem = stem.strip_suffix(processor).unwrap_or(stem);
    }
    let Some((base, ending)) = stem.rsplit_once(['_', '-', '.']).filter(|(base, _)| !file_name(base).is_empty()) else {
        return (stem, Some(Precision::Fp32));
    };
    match ending.to_ascii_lowercase().as_str() {
        "fp32" | "float32" => (base, Some(Precision::Fp32)),
        "fp16" | "float16" | "half" => (base, Some(Precision::Fp16)),
        "quantized" | "quant" | "int8" | "uint8" | "qint8" | "quint8" | "q8" => (base, Some(Precision::Int8)),
        "q4" | "q4f16" | "bnb4" | "int4" | "uint4" => (base, Some(Precision::Q4)),
        "o1" | "o2" | "o3" | "o4" | "optimized" | "q8f16" | "q2" | "q2f16" | "bf16" => (base, None),
        _ => (stem, Some(Precision::Fp32)),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether `path` is a file that exporters write beside `graph` for its weights: `model.onnx_data`, `model.onnx_data_1`,
/// `model.onnx.data`, `model.data`, and `weights.pb` of diffusers.
fn is_external_data(graph: &str, path: &str) -> bool {
    let (folder, name) = graph.rsplit_once('/').map_or(("", graph), |(folder, name)| (folder, name));
    let (beside, other) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
    if folder != beside {
        return false;
    }
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let is_count = |rest: &str| {
        rest.is_empty()
            || rest.strip_prefix(['_', '.', '-']).is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let begins = [name, stem].into_iter().flat_map(|start| ["_data", ".data"].map(|end| format!("{start}{end}")));
    other == "weights.pb" || begins.into_iter().any(|begin| other.strip_prefix(begin.as_str()).is_some_and(is_count))
}

/// Whether `path` is a file of a module of sentence-transformers: `1_Pooling/config.json`, `2_Dense/model.safetensors`.
fn is_of_a_module(path: &str) -> bool {
    let Some((folder, name)) = path.split_once('/') else { return false };
    let Some((number, kind)) = folder.split_once('_') else { return false };
    let is_module = !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && kind.bytes().all(|byte| byte.is_ascii_alphabetic());
    // Weights are taken of the one module that is computed beside the graph.
    is_module && (MODULE_COMPANIONS.contains(&name) || (name == "model.safetensors" && kind == "Dense"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Source;

    fn entry(path: &str) -> Entry {
        Entry { path: path.to_owned(), bytes: Some(1), git_oid: None, sha256: None }
    }

    fn request(file: Option<&str>, precision: Option<&str>) -> FetchRequest {
        FetchRequest {
            file: file.map(str::to_owned),
            precision: precision.map(|word| Precision::parse(word).unwrap()),
            ..FetchRequest::new(Source::hugging_face("org/name").unwrap())
        }
    }

    /// What is chosen of the files in `paths` (apart by blanks): graphs, a bar, the rest; or the error.
    fn chosen(paths: &str, file: Option<&str>, precision: Option<&str>) -> String {
        let entries: Vec<Entry> = paths.split_whitespace().map(entry).collect();
        match choose("org/name", &entries, &request(file, precision)) {
            Ok(choice) => {
                let names =
                    |entries: &[&Entry]| entries.iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>().join(" ");
                format!("{} | {}", names(&choice.graphs), names(&choice.rest)).trim_end().to_owned()
            }
            Err(error) => error.to_string(),
        }
    }

    /// `expected` that ends with … is the answer's beginning.
    #[track_caller]
    fn check(paths: &str, file: Option<&str>, precision: Option<&str>, expected: &str) {
        let got = chosen(paths, file, precision);
        match expected.strip_suffix('…') {
            Some(start) => assert!(got.starts_with(start), "{got}"),
            None => assert_eq!(got, expected),
        }
    }

    const MINILM: &str = "1_Pooling/config.json README.md config.json config_sentence_transformers.json model.safetensors \
                          modules.json onnx/model.onnx onnx/model_O1.onnx onnx/model_O4.onnx \
                          onnx/model_qint8_arm64.onnx onnx/model_qint8_avx512.onnx onnx/model_qint8_avx512_vnni.onnx \
                          onnx/model_quint8_avx2.onnx openvino/openvino_model.bin pytorch_model.bin rust_model.ot \
                          sentence_bert_config.json special_tokens_map.json tf_model.h5 tokenizer.json \
                          tokenizer_config.json train_script.py vocab.txt";
    const XENOVA: &str = "README.md config.json onnx/model.onnx onnx/model_bnb4.onnx onnx/model_fp16.onnx \
                          onnx/model_int8.onnx onnx/model_q4.onnx onnx/model_q4f16.onnx onnx/model_quantized.onnx \
                          onnx/model_uint8.onnx quantize_config.json tokenizer.json";
    const CLIP: &str = "config.json merges.txt onnx/text_model.onnx onnx/text_model_int8.onnx onnx/vision_model.onnx \
                        onnx/vision_model_int8.onnx preprocessor_config.json tokenizer.json vocab.json";
    const WHISPER: &str = "config.json generation_config.json onnx/decoder_model.onnx onnx/decoder_model_merged.onnx \
                           onnx/decoder_with_past_model.onnx onnx/encoder_model.onnx tokenizer.json";

    #[test]
    fn the_usual_graph_comes_with_the_files_of_its_task() {
        check(
            MINILM,
            None,
            None,
            "onnx/model.onnx | 1_Pooling/config.json config.json config_sentence_transformers.json modules.json \
             sentence_bert_config.json special_tokens_map.json tokenizer.json tokenizer_config.json",
        );
        check(XENOVA, None, None, "onnx/model.onnx | config.json tokenizer.json");
        check("model.onnx config.json", None, None, "model.onnx | config.json");
        check("model.onnx onnx/model.onnx", None, None, "onnx/model.onnx |");
        check("model.ort labels.txt LICENSE", None, None, "model.ort | labels.txt LICENSE");
        check("resnet50-v1-12.onnx README.md", None, None, "resnet50-v1-12.onnx |");
        check("deep/er/net.ort", None, None, "deep/er/net.ort |");
        // A speech model writes by vocab.json; a BPE tokenizer has it in tokenizer.json.
        check("model.onnx vocab.json tokenizer.json", None, None, "model.onnx | vocab.json tokenizer.json");
        check("model.onnx vocab.json merges.txt tokenizer.json", None, None, "model.onnx | tokenizer.json");
        check(
            "modules.json 0_Transformer/tokenizer.json 2_Dense/config.json 2_Dense/model.safetensors \
             2_Dense/pytorch_model.bin 3_Other/model.safetensors a/2_Dense/config.json model.onnx",
            None,
            None,
            "model.onnx | modules.json 0_Transformer/tokenizer.json 2_Dense/config.json 2_Dense/model.safetensors",
        );
        check("1_Pooling/config.json model.onnx", None, None, "model.onnx |");
    }

    #[test]
    fn a_precision_picks_the_variant() {
        check(XENOVA, None, Some("fp32"), "onnx/model.onnx | config.json tokenizer.json");
        check(XENOVA, None, Some("fp16"), "onnx/model_fp16.onnx | config.json tokenizer.json");
        check(XENOVA, None, Some("int8"), "onnx/model_quantized.onnx | config.json tokenizer.json");
        check(XENOVA, None, Some("q4"), "onnx/model_q4.onnx | config.json tokenizer.json");
        check("onnx/model_q4f16.onnx onnx/model.onnx", None, Some("q4"), "onnx/model_q4f16.onnx |");
        check("onnx/model_bnb4.onnx onnx/model.onnx", None, Some("q4"), "onnx/model_bnb4.onnx |");
        check("model_uint8.onnx onnx/model.onnx", None, Some("int8"), "model_uint8.onnx |");
        check("net_int8.onnx net.onnx", None, Some("int8"), "net_int8.onnx |");
        check("net-fp16.onnx net.onnx", None, Some("fp16"), "net-fp16.onnx |");
        check("net-fp16.onnx net.onnx", None, None, "net.onnx |");
        check("net_int8.onnx", None, None, "net_int8.onnx |");
        let missing = "org/name has no fp16 graph; it has net.onnx, net_int8.onnx; name one with file";
        check("net.onnx net_int8.onnx", None, Some("fp16"), missing);
        check(
            "net_int8.onnx",
            None,
            Some("fp32"),
            "org/name has no fp32 graph; it has net_int8.onnx; name one with file",
        );
        assert!(chosen(MINILM, None, Some("int8")).starts_with("onnx/model_q"));
        check(MINILM, None, Some("fp16"), "org/name has no fp16 graph; it has onnx/model.onnx, onnx/model_O1.onnx, …");
    }

    #[test]
    fn a_file_is_taken_as_named() {
        check(
            XENOVA,
            Some("onnx/model_uint8.onnx"),
            Some("fp16"),
            "onnx/model_uint8.onnx | config.json tokenizer.json",
        );
        check(CLIP, Some("onnx/text_model_int8.onnx"), None, "onnx/text_model_int8.onnx | config.json…");
        check(WHISPER, Some("onnx/encoder_model.onnx"), None, "onnx/encoder_model.onnx | config.json tokenizer.json");
        check("a.onnx b.onnx", Some("c.onnx"), None, "org/name has no graph \"c.onnx\"; it has a.onnx, b.onnx");
        check("model.bin", Some("c.onnx"), None, "org/name has no graph \"c.onnx\"; it has none");
        for other in ["model.bin", "train.py", "weights.pt", "model.toml"] {
            let wrong = format!("file: expected the path of an .onnx or .ort file, got {other:?}");
            check("model.onnx model.bin train.py weights.pt model.toml", Some(other), None, &wrong);
        }
    }

    #[test]
    fn external_data_comes_with_its_graph_and_with_no_other() {
        let data = "onnx/model.onnx onnx/model.onnx_data onnx/model.onnx_data_1 onnx/model_fp16.onnx \
                    onnx/model_fp16.onnx_data model.onnx_data onnx/model.onnx_data_x onnx/model.onnx_database";
        check(data, None, None, "onnx/model.onnx | onnx/model.onnx_data onnx/model.onnx_data_1");
        check(data, None, Some("fp16"), "onnx/model_fp16.onnx | onnx/model_fp16.onnx_data");
        check(
            "m.onnx m.onnx.data m.data m.onnx.data.1 n.data",
            None,
            None,
            "m.onnx | m.onnx.data m.data m.onnx.data.1",
        );
        check("unet/model.onnx unet/weights.pb", None, None, "unet/model.onnx | unet/weights.pb");
    }

    #[test]
    fn two_towers_are_a_pair() {
        let files = "| config.json preprocessor_config.json tokenizer.json";
        check(CLIP, None, None, &format!("onnx/vision_model.onnx onnx/text_model.onnx {files}"));
        check(CLIP, None, Some("int8"), "org/name has one graph for pictures and one for texts, and such a pair…");
        check(&format!("{CLIP} onnx/model.onnx"), None, None, &format!("onnx/model.onnx {files}"));
        check("vision_model.onnx text_model.onnx", None, None, "vision_model.onnx text_model.onnx |");
        check("vision_model.onnx", None, None, "vision_model.onnx |");
    }

    #[test]
    fn what_cannot_be_chosen_is_said_with_what_there_is() {
        check("a.onnx b.onnx", None, None, "org/name has several graphs: a.onnx, b.onnx; name one with file");
        // Not variants of one model: which is meant is not guessed.
        let two = "org/name has several graphs: detector.onnx, reader_int8.onnx; name one with file";
        check("detector.onnx reader_int8.onnx", None, None, two);
        check("detector.onnx reader_int8.onnx", None, Some("int8"), two);
        check("unet/model.onnx vae_decoder/model.onnx", None, None, "org/name has several graphs: …");
        check(WHISPER, None, None, "org/name is split into an encoder and a decoder that writes text token by token…");
        check(WHISPER, None, Some("int8"), "org/name is split…");
        let many: Vec<String> = (0..15).map(|place| format!("n{place}.onnx")).collect();
        assert!(chosen(&many.join(" "), None, None).contains("n11.onnx and 3 more; name one"));
        for weights in ["model.safetensors", "pytorch_model.bin", "best.pt", "a/b.pth"] {
            let expected =
                "org/name has no ONNX file, only weights for PyTorch: export it with `optimum-cli export onnx…";
            check(&format!("config.json {weights}"), None, None, expected);
        }
        check("config.json model.gguf", None, None, "org/name has no ONNX file (.onnx or .ort)");
        check("", None, None, "org/name has no ONNX file (.onnx or .ort)");
        check(".cache/model.onnx", None, None, "org/name has no ONNX file (.onnx or .ort)");
    }

    #[test]
    fn programs_pickles_and_settings_never_come() {
        // F79
        let all = "model.onnx model.toml config.pbtxt modeling.py handler.py model.pt model.bin model.pkl custom_ops.so \
                   tf_model.h5 flax_model.msgpack model.safetensors generation_config.json quantize_config.json \
                   README.md .gitattributes ortus-provenance.json config.json tokenizer.model 1_Pooling/run.py modules.json";
        check(all, None, None, "model.onnx | config.json modules.json");
    }

    #[test]
    fn a_listing_with_an_evil_name_or_hash_is_refused_as_a_whole() {
        let deep = "a/".repeat(9) + "b";
        for bad in ["../x", "/etc/passwd", "a/../b", "a\\b", "a\0b", "", "a//b", "C:x", "./a", "a\nb", &deep] {
            let entries = [entry("model.onnx"), entry(bad)];
            let error = choose("org/name", &entries, &request(None, None)).unwrap_err();
            assert!(matches!(&error, HubError::Refused(text) if text.starts_with("unsafe file name")), "{error}");
            assert!(!error.to_string().contains(['\0', '\n']));
        }
        let twice = [entry("model.onnx"), entry("model.onnx")];
        let oid = [Entry { git_oid: Some("../../x".into()), ..entry("model.onnx") }];
        let sha256 = [Entry { sha256: Some("A".repeat(64)), ..entry("model.onnx") }];
        for entries in [&twice[..], &oid, &sha256] {
            assert!(matches!(choose("org/name", entries, &request(None, None)), Err(HubError::Refused(_))));
        }
        let good = Entry { git_oid: Some("0a".repeat(20)), sha256: Some("0a".repeat(32)), ..entry("model.onnx") };
        assert!(choose("org/name", &[good], &request(None, None)).is_ok());
    }
}

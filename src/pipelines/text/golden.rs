//! Token ids against those of Python's tokenizers, and token counts against the shared sentence-transformers model.
//!
//! `tests/golden/text.json` is made by `tools/make_fixtures.py`; its embeddings are compared through the server, in `tests/it`.
//! `tests/golden/tokens.json` is made by `tools/make_tokenizer_golden.py`.

use super::tokenizer::{Located, TextTokenizer, Windows};
use crate::pipelines::image::input_spec as spec;
use crate::pipelines::{Item, Padding, Parameters, Pipeline, PipelineLimits, PipelineManifest, detect};
use crate::tensor::{DType, Spec};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BERT: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn pipeline(folder: &Path, inputs: &[&str], dtype: DType, width: i64) -> Arc<dyn Pipeline> {
    let inputs: Vec<Spec> = inputs.iter().map(|name| spec(name, dtype, &[-1, -1])).collect();
    let outputs = [spec("last_hidden_state", DType::Fp32, &[-1, -1, width])];
    let found = detect(folder, &PipelineManifest::default(), &inputs, &outputs, &PipelineLimits::default()).unwrap();
    println!("{}", found.evidence);
    found.pipeline.unwrap()
}

fn token_ids(pipeline: &dyn Pipeline, text: &str, parameters: &Parameters) -> Vec<i64> {
    let tensors = pipeline.preprocess(&Item::Text(text.to_owned()), parameters).unwrap();
    let (_, ids) = tensors.runs[0].iter().find(|(name, _)| name == "input_ids").unwrap();
    match ids.dtype() {
        DType::Int32 => ids.elements::<i32>().unwrap().iter().map(|&id| i64::from(id)).collect(),
        _ => ids.elements::<i64>().unwrap().into_owned(),
    }
}

#[test]
fn token_ids_are_those_of_python() {
    let store = root().join("tests/fixtures/store");
    let embedder = pipeline(&store.join("embedder"), &BERT, DType::Int64, 8);
    let inputs = ["input_ids", "attention_mask", "position_ids"];
    let features = pipeline(&store.join("token-features"), &inputs, DType::Int32, 8);
    let golden = json(&root().join("tests/golden/text.json"));
    for case in golden["cases"].as_array().unwrap() {
        let model = if case["model"] == "embedder" { &embedder } else { &features };
        let parameters = case["parameters"].as_object().unwrap();
        let expected: Vec<i64> = case["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        assert_eq!(token_ids(model.as_ref(), case["text"].as_str().unwrap(), parameters), expected, "{case}");
    }
    let padding = |inputs: [&str; 3], pad| {
        let value = |name: &str| if name == "input_ids" { pad } else { 0 };
        Some(Padding { inputs: inputs.map(|name| (name.to_owned(), 1, value(name))).to_vec() })
    };
    assert_eq!((embedder.padding(), features.padding()), (padding(BERT, 0), padding(inputs, 1)));
}

fn shared_model() -> Option<PathBuf> {
    let folder = std::env::var_os("ORTUS_SHARED_MODELS")
        .map_or_else(|| root().join("../shared/models"), PathBuf::from)
        .join("store/all-MiniLM-L6-v2");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no models with reference values; set ORTUS_SHARED_MODELS to their folder");
    None
}

#[test]
fn a_sentence_transformers_model_has_the_tokens_of_its_reference() {
    let Some(folder) = shared_model() else { return };
    let pipeline = pipeline(&folder, &BERT, DType::Int64, 384);
    let expected = json(&folder.join("expected.json"));
    for case in expected["cases"].as_array().unwrap() {
        let ids = token_ids(pipeline.as_ref(), case["input"]["text"].as_str().unwrap(), &Parameters::new());
        // The reference counts before it cuts at 256, which tokenizer.json would have done at 128.
        assert_eq!(ids.len() as u64, case["tokens"].as_u64().unwrap().min(256), "{}", case["id"]);
    }
    // As long as the limit allows: what a hostile text costs.
    let started = std::time::Instant::now();
    assert_eq!(token_ids(pipeline.as_ref(), &"ab, ".repeat(65_536), &Parameters::new()).len(), 256);
    println!("a text of 262,144 bytes: {:?}", started.elapsed());
}

/// FNV-1a over the numbers' 4 bytes, lowest first, as hexadecimal digits.
fn hash(numbers: impl IntoIterator<Item = u32>) -> String {
    let byte = |value: u64, byte: u8| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = numbers.into_iter().flat_map(u32::to_le_bytes);
    format!("{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325, byte))
}

fn hash_places<'a>(parts: impl IntoIterator<Item = &'a Located>) -> String {
    let places = parts.into_iter().flat_map(|part| &part.offsets).flat_map(|&(start, end)| [start, end]);
    hash(places.map(|place| u32::try_from(place).unwrap()))
}

/// Compares `tokenizer.json` in `folder` with what Python made of the same lines.
#[track_caller]
fn tokenizes_as_python(name: &str, folder: &Path, lines: &[&str], found: &Value) {
    // A limit beyond every line, as in the reference.
    let tokenizer =
        |limit| TextTokenizer::from_folder(folder, None, Some((limit, "the test")), 1 << 20).unwrap().unwrap();
    let whole = tokenizer(100_000);
    let mut wrong = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        let got = match whole.locate(line) {
            Ok(located) => located,
            // Without special tokens an empty line has none at all.
            Err(_) => {
                assert_eq!(found["ids"][place], hash([]), "{name}: {line:?}");
                continue;
            }
        };
        let decoded = whole.decode(&got.tokens.ids, true).unwrap();
        let hashes = [
            ("ids", place, hash(got.tokens.ids.iter().copied())),
            ("places", place, hash_places([&got])),
            ("decoded", place / 10, hash(decoded.bytes().map(u32::from))),
        ];
        let kept = if place % 10 == 0 { 3 } else { 2 };
        for (what, place, hash) in
            hashes.into_iter().take(kept).filter(|(what, place, hash)| found[*what][*place] != **hash)
        {
            wrong.push(format!("{what} {place} {hash}: {line:?} {:?} {:?} {decoded:?}", got.tokens.ids, got.offsets));
        }
    }
    let short = tokenizer(64);
    let parts = found["parts"].as_array().unwrap();
    for (place, expected) in parts.iter().enumerate() {
        let context = lines[place * 20..place * 20 + 8].join(" ");
        let windows = Windows { tokens: 64, stride: 16, first_tokens: 64, count: 999 };
        let got = short.windows("who is it?", &context, &windows).unwrap();
        let words = got.iter().flat_map(|part| &part.words).map(|word| word.map_or(0, |word| word + 1));
        let ids = hash(got.iter().flat_map(|part| &part.tokens.ids).copied());
        let got = serde_json::json!([got.len(), ids, hash_places(&got), hash(words)]);
        if got != *expected {
            wrong.push(format!("parts {place}: {got} is not {expected}"));
        }
        let first = short.encode_beside(&context, &["This is it.".to_owned()]).unwrap();
        if found["firsts"][place] != hash(first[0].ids.iter().copied()) {
            wrong.push(format!("firsts {place}: {first:?}"));
        }
    }
    println!("{name}: {} lines, {} long ones, {} wrong", lines.len(), parts.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.into_iter().take(9).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_thousand_lines_of_many_scripts_have_the_tokens_and_places_of_python() {
    let golden = json(&root().join("tests/golden/tokens.json"));
    let lines: Vec<&str> = golden["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert_eq!(lines.len(), 1000);
    let unigram = tempfile::tempdir().unwrap();
    std::fs::write(unigram.path().join("tokenizer.json"), golden["unigram"].to_string()).unwrap();
    let shared = shared_model();
    for (name, found) in golden["found"].as_object().unwrap() {
        let folder = match (name.strip_prefix("shared/"), &shared) {
            (Some(model), Some(shared)) => shared.with_file_name(model),
            (Some(_), None) => continue,
            (None, _) if name == "unigram" => unigram.path().to_owned(),
            (None, _) => root().join(name),
        };
        // The tokenizer alone: what is beside it would lower the limit.
        let alone = tempfile::tempdir().unwrap();
        std::fs::copy(folder.join("tokenizer.json"), alone.path().join("tokenizer.json")).unwrap();
        tokenizes_as_python(name, alone.path(), &lines, found);
    }
}

//! Token ids against those of Python's tokenizers, and token counts against the shared sentence-transformers model.
//!
//! `tests/golden/text.json` is made by `tools/make_fixtures.py`; its embeddings are compared through the server, in `tests/it`.

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

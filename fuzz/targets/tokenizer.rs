//! Texts, through the tokenizer of an encoder.
#![no_main]

use ortus::pipelines::{Item, Parameters, Pipeline, PipelineLimits, PipelineManifest, detect};
use ortus::tensor::{DType, Dim, Spec, ValueType};
use std::path::Path;
use std::sync::{Arc, LazyLock};

static PIPELINE: LazyLock<Arc<dyn Pipeline>> = LazyLock::new(|| {
    let spec = |name: &str, dtype, dims: Vec<Dim>| Spec {
        name: name.to_owned(),
        ty: ValueType::Tensor { dtype, shape: Some(dims) },
        optional: false,
    };
    let any = || Dim::Dynamic(None);
    let inputs = ["input_ids", "attention_mask", "token_type_ids"]
        .map(|name| spec(name, DType::Int64, vec![any(), any()]));
    let outputs = [spec("last_hidden_state", DType::Fp32, vec![any(), any(), Dim::Fixed(8)])];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/store/embedder");
    let found = detect(&folder, &PipelineManifest::default(), &inputs, &outputs, &PipelineLimits::default());
    found.unwrap().pipeline.unwrap()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let texts = [Item::Bytes(data.to_vec().into()), Item::Text(String::from_utf8_lossy(data).into_owned())];
    for text in texts {
        let _ = PIPELINE.preprocess(&text, &Parameters::new());
    }
});

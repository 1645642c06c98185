//! Sounds, through decoding, mixing and resampling for a detector of voices.
#![no_main]

use bytes::Bytes;
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
    let state = || vec![Dim::Fixed(2), any(), Dim::Fixed(128)];
    let inputs = [
        spec("input", DType::Fp32, vec![any(), any()]),
        spec("state", DType::Fp32, state()),
        spec("sr", DType::Int64, vec![]),
    ];
    let outputs = [spec("output", DType::Fp32, vec![any(), Dim::Fixed(1)]), spec("stateN", DType::Fp32, state())];
    let limits = PipelineLimits { max_audio_seconds: 2, ..PipelineLimits::default() };
    let found = detect(Path::new("/nonexistent"), &PipelineManifest::default(), &inputs, &outputs, &limits);
    found.unwrap().pipeline.unwrap()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let sound = Item::Bytes(Bytes::copy_from_slice(data));
    if let Ok(prepared) = PIPELINE.preprocess(&sound, &Parameters::new()) {
        // Two seconds of windows of 32 ms, and the one that reaches over the end.
        assert!((1..=63).contains(&prepared.runs.len()));
    }
});

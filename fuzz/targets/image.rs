//! Pictures, through the preprocessing of a classifier.
#![no_main]

use bytes::Bytes;
use ortus::pipelines::{Item, Parameters, Pipeline, PipelineLimits, PipelineManifest, detect};
use ortus::tensor::{DType, Dim, Spec, ValueType};
use std::path::Path;
use std::sync::{Arc, LazyLock};

static PIPELINE: LazyLock<Arc<dyn Pipeline>> = LazyLock::new(|| {
    let manifest: PipelineManifest =
        toml::from_str("task = \"image-classification\"\n[image]\nsize = { height = 8, width = 8 }").unwrap();
    let dims = |sizes: &[usize]| Some(sizes.iter().map(|&size| Dim::Fixed(size)).collect());
    let spec = |name: &str, sizes: &[usize]| Spec {
        name: name.to_owned(),
        ty: ValueType::Tensor { dtype: DType::Fp32, shape: dims(sizes) },
        optional: false,
    };
    let limits = PipelineLimits { max_pixels: 1 << 16, ..PipelineLimits::default() };
    let (inputs, outputs) = ([spec("pixel_values", &[1, 3, 8, 8])], [spec("logits", &[1, 2])]);
    detect(Path::new("/nonexistent"), &manifest, &inputs, &outputs, &limits).unwrap().pipeline.unwrap()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = PIPELINE.preprocess(&Item::Bytes(Bytes::copy_from_slice(data)), &Parameters::new());
});

//! Pictures against the numbers of Pillow and of transformers.
//!
//! `tests/golden/images.json` and the pictures it names are made by `tools/make_image_golden.py`. Tolerances: lossless
//! pictures, lossy WebP and resizes are equal; JPEG differs by
//! a few levels at coloured edges where the colour is stored at half resolution, as libjpeg-turbo enlarges it otherwise.

use super::settings::Resample;
use super::{Geometry, Picture, Size, decode, resize};
use crate::pipelines::{Item, Parameters, PipelineLimits, PipelineManifest, detect};
use crate::tensor::{DType, Dim, Spec, ValueType};
use serde_json::Value;
use std::path::{Path, PathBuf};

const LIMIT: u64 = 100_000_000;

fn golden() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn bytes_of(case: &Value) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    std::fs::read(folder.join(case["file"].as_str().unwrap())).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Largest and mean difference of the pixels on the grid, and largest difference of the channels' means.
fn difference(picture: &Picture, expected: &Value) -> (f64, f64, f64) {
    assert_eq!(Value::from(picture.width), expected["width"]);
    assert_eq!(Value::from(picture.height), expected["height"]);
    let at = |y: f64, x: f64, c: usize| {
        f64::from(picture.data[(y as usize * picture.width as usize + x as usize) * picture.channels + c])
    };
    let mut got = Vec::new();
    for &y in &numbers(&expected["rows"]) {
        for &x in &numbers(&expected["columns"]) {
            got.extend((0..picture.channels).map(|c| at(y, x, c)));
        }
    }
    let pixels = numbers(&expected["pixels"]);
    assert_eq!(got.len(), pixels.len());
    let differences: Vec<f64> = got.iter().zip(&pixels).map(|(got, expected)| (got - expected).abs()).collect();
    let count = (picture.width * picture.height) as f64;
    let means = numbers(&expected["mean"]).into_iter().enumerate().map(|(channel, mean)| {
        let sum: f64 = picture.data.iter().skip(channel).step_by(picture.channels).map(|&byte| f64::from(byte)).sum();
        (sum / count - mean).abs()
    });
    let largest = differences.iter().copied().fold(0.0, f64::max);
    (largest, differences.iter().sum::<f64>() / differences.len() as f64, means.fold(0.0, f64::max))
}

#[test]
fn decoded_pixels_are_those_of_pillow() {
    for case in golden() {
        let name = case["file"].as_str().unwrap();
        for (grey, key) in [(false, "rgb"), (true, "l")] {
            let picture = decode::decode(&bytes_of(&case), grey, LIMIT).unwrap();
            let (largest, mean, of_means) = difference(&picture, &case[key]);
            eprintln!("{name} {key}: largest {largest}, mean {mean:.3}, of the means {of_means:.3}");
            let allowed = match name.rsplit_once('.').unwrap() {
                // Only where the colour is at half resolution: it is enlarged in another way.
                ("rgb" | "progressive" | "rotated", "jpg") => (5.0, 0.75, 0.5),
                (_, "jpg") => (1.0, 0.1, 0.05),
                _ => (0.0, 0.0, 1e-4),
            };
            assert!(largest <= allowed.0 && mean <= allowed.1 && of_means <= allowed.2, "{name} {key}");
        }
    }
}

#[test]
fn resized_pixels_are_those_of_pillow() {
    let mut cases = 0;
    for case in golden() {
        for expected in case["resized"].as_array().unwrap() {
            let resample = match expected["filter"].as_str().unwrap() {
                "nearest" => Resample::Nearest,
                "lanczos" => Resample::Lanczos,
                "bilinear" => Resample::Bilinear,
                "bicubic" => Resample::Bicubic,
                "box" => Resample::Box,
                _ => Resample::Hamming,
            };
            let side = |key: &str| expected[key].as_u64().unwrap() as u32;
            let size = Size { height: side("height"), width: side("width") };
            let picture = decode::decode(&bytes_of(&case), expected["mode"] == "L", LIMIT).unwrap();
            let picture = resize::resize(picture, &Geometry::Exact { size, crop: None }, resample, LIMIT).unwrap();
            let (largest, mean, of_means) = difference(&picture, expected);
            eprintln!(
                "{} {resample:?} {size:?}: largest {largest}, mean {mean:.3}, of the means {of_means:.4}",
                case["file"]
            );
            // Means are rounded in the file.
            assert!(largest == 0.0 && mean == 0.0 && of_means <= 1e-4, "{resample:?} {size:?}");
            cases += 1;
        }
    }
    assert_eq!(cases, 36);
}

fn shared_models() -> Option<PathBuf> {
    let folder = std::env::var_os("ORTUS_SHARED_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models"), PathBuf::from);
    if folder.join("store").is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no models with reference values; set ORTUS_SHARED_MODELS to their folder");
    None
}

fn spec(name: &str, dims: &[i64]) -> Spec {
    let shape = dims.iter().map(|&dim| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed)).collect();
    Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Fp32, shape: Some(shape) }, optional: false }
}

#[test]
fn tensors_are_those_of_transformers() {
    let Some(models) = shared_models() else { return };
    for model in ["tiny-vit", "tiny-convnext", "tiny-mobilevit"] {
        let folder = models.join("store").join(model);
        let (inputs, outputs) = ([spec("pixel_values", &[-1, -1, -1, -1])], [spec("logits", &[-1, 5])]);
        let limits = PipelineLimits { max_pixels: LIMIT, ..PipelineLimits::default() };
        let found = detect(&folder, &PipelineManifest::default(), &inputs, &outputs, &limits).unwrap();
        let pipeline = found.pipeline.unwrap();
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        for case in expected["cases"].as_array().unwrap() {
            let file = case["input"]["file"].as_str().unwrap();
            let bytes = std::fs::read(models.join("inputs").join(file)).unwrap();
            let mut tensors = pipeline.preprocess(&Item::Bytes(bytes.into()), &Parameters::new()).unwrap();
            let (_, tensor) = tensors.runs.remove(0).remove(0);
            let shape: Vec<f64> = tensor.shape().iter().map(|&size| size as f64).collect();
            assert_eq!(shape, numbers(&case["pixel_values_shape"]));
            let values = tensor.to_f32().unwrap();
            let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
            let [_, channels, height, width] = *tensor.shape() else { panic!("rank 4") };
            let corner = (0..channels).flat_map(|channel| {
                [0, 1, width, width + 1].map(|at| f64::from(values[channel * height * width + at]))
            });
            let largest = corner
                .zip(numbers(&case["pixel_values_corner"]))
                .map(|(got, expected)| (got - expected).abs())
                .fold(0.0, f64::max);
            // In levels of 255, whatever the normalisation.
            let level = if model == "tiny-mobilevit" { 1.0 / 255.0 } else { 2.0 / 255.0 };
            let of_mean = (mean - case["pixel_values_mean"].as_f64().unwrap()).abs() / level;
            eprintln!("{model} {file}: corner {:.3} levels, mean {of_mean:.4} levels", largest / level);
            let allowed = if file.ends_with('g') && !file.ends_with("png") { (3.0, 0.3) } else { (1.01, 0.1) };
            assert!(largest / level <= allowed.0 && of_mean <= allowed.1, "{model} {file}");
        }
    }
}

#[test]
fn odd_pictures_are_decoded_or_refused() {
    let Some(models) = shared_models() else { return };
    let read = |name: &str| std::fs::read(models.join("inputs/images").join(name)).unwrap();
    for name in ["cat_cmyk.jpg", "cat_gray16.png", "one_pixel.png"] {
        assert!(decode::decode(&read(name), false, LIMIT).is_ok(), "{name}");
    }
    assert!(decode::decode(&read("broken.jpg"), false, LIMIT).is_err());
}

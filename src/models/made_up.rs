//! Makes inputs up from what a graph declares, for warm-up and for measurements.
//!
//! Invariants: what is made fits the declared types, is the same each time, and no input is larger than
//! [`INPUT_BYTES_MAX`]. Knows conventions (names of dimensions and inputs), not meanings: a graph may still refuse it.

use crate::runtime::Input;
use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType, byte_len, element_count};
use serde_json::Value as Json;
use std::path::Path;

/// Bytes of one made-up or sampled input.
pub(super) const INPUT_BYTES_MAX: usize = 256 << 20;
/// Tokens of a text, where the graph leaves their number open.
const SEQUENCE: usize = 32;
/// Height and width of a picture, where the graph leaves them open.
const SIDE: usize = 224;
/// Samples of a sound, where the graph leaves their number open: a second at the usual rate.
const SAMPLES: usize = 16_000;
/// Largest `config.json` that is looked at, in bytes.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// What the files beside a graph say of its inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputHints {
    /// Token ids are below this.
    pub vocabulary: Option<usize>,
    /// Height and width of the pictures.
    pub image_size: Option<(usize, usize)>,
}

impl InputHints {
    /// From the `config.json` in `folder`, as HuggingFace's models have it; nothing where there is none.
    pub(super) fn read(folder: &Path) -> InputHints {
        let bytes = super::repository::read_bounded(&folder.join("config.json"), CONFIG_BYTES_MAX);
        let config = bytes.ok().flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Json::Null);
        // Models of several parts have it in the part that it is about.
        let entry = |part: &str, key: &str| config.get(key).or_else(|| config.get(part)?.get(key));
        let number = |value: &Json| value.as_u64().filter(|size| *size > 0).and_then(|size| usize::try_from(size).ok());
        let image_size =
            entry("vision_config", "image_size").and_then(|size| match size.as_array().map(Vec::as_slice) {
                Some([height, width]) => Some((number(height)?, number(width)?)),
                Some(_) => None,
                None => number(size).map(|side| (side, side)),
            });
        InputHints { vocabulary: entry("text_config", "vocab_size").and_then(number), image_size }
    }
}

/// A value for every input that must be given, with `rows` in dimension 0 where that is free. `None` where one would be too
/// large.
pub(super) fn inputs(specs: &[Spec], rows: usize, hints: &InputHints) -> Option<Vec<Input>> {
    let needed = specs.iter().enumerate().filter(|(_, spec)| !spec.optional);
    needed.map(|(index, spec)| value(&spec.name, &spec.ty, rows, hints).map(|value| (index, value))).collect()
}

fn value(name: &str, ty: &ValueType, rows: usize, hints: &InputHints) -> Option<Value> {
    match ty {
        ValueType::Tensor { dtype, shape } => {
            let dims = shape.as_deref().unwrap_or(&[Dim::Fixed(1)]);
            let shape = (0..dims.len()).map(|axis| size(name, *dtype, dims, axis, rows, hints)).collect();
            tensor(name, *dtype, shape, hints.vocabulary).map(Value::Tensor)
        }
        ValueType::Sequence(element) => value(name, element, rows, hints).map(|value| Value::Sequence(vec![value])),
        ValueType::Map { key, value } => {
            Some(Value::Map { keys: zeros(*key, vec![1])?, values: zeros(*value, vec![1])? })
        }
        ValueType::Optional(_) => Some(Value::None),
    }
}

/// The size of one dimension: the declared one, else what its name or place suggests, else 1.
fn size(input: &str, dtype: DType, dims: &[Dim], axis: usize, rows: usize, hints: &InputHints) -> usize {
    let name = match dims.get(axis) {
        Some(Dim::Fixed(size)) => return *size,
        Some(Dim::Dynamic(name)) => name.as_deref().unwrap_or_default().to_ascii_lowercase(),
        None => return 1,
    };
    let is = |words: &[&str]| words.iter().any(|word| name.contains(word));
    // The tensors that a decoder hands to its next step; one step of history is the least that has a meaning.
    if is(&["past", "cache"]) {
        return 1;
    }
    let is_float = matches!(dtype, DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64);
    // Exporters call the length of a sound a sequence, too.
    if axis > 0 && is_float && (input == "input_values" || is(&["sample", "audio"])) {
        return SAMPLES;
    }
    if is(&["seq", "length", "token"]) {
        return SEQUENCE;
    }
    if axis == 0 {
        return rows;
    }
    let (height, width) = hints.image_size.unwrap_or((SIDE, SIDE));
    if is(&["height"]) || name == "h" {
        return height;
    }
    if is(&["width"]) || name == "w" {
        return width;
    }
    match dims {
        // A picture: its channels are last where they are few, else second.
        [_, _, _, Dim::Fixed(1 | 3 | 4)] => {
            if axis == 1 {
                height
            } else {
                width
            }
        }
        [_, _, _, _] => match axis {
            1 => 3,
            2 => height,
            _ => width,
        },
        [_, _] if matches!(dtype, DType::Int64 | DType::Int32) && is_of_text(input) => SEQUENCE,
        _ => 1,
    }
}

/// Whether an input is named like those of a text model.
fn is_of_text(name: &str) -> bool {
    name.ends_with("ids") || name.ends_with("mask")
}

fn tensor(name: &str, dtype: DType, shape: Vec<usize>, vocabulary: Option<usize>) -> Option<Tensor> {
    let name = name.to_ascii_lowercase();
    if !matches!(dtype, DType::Int64 | DType::Int32) {
        let is_random = matches!(dtype, DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64);
        return if is_random { random(dtype, shape) } else { zeros(dtype, shape) };
    }
    let last = shape.last().copied().unwrap_or(1).max(1);
    if name.ends_with("mask") {
        return whole_numbers(dtype, shape, |_| 1);
    }
    if name.contains("position") {
        return whole_numbers(dtype, shape, |index| index % last);
    }
    match vocabulary {
        Some(vocabulary) if name.ends_with("ids") && !name.contains("type") => {
            let mut next = generator();
            // The quotient is in [0, 1), so the product stays below the size.
            whole_numbers(dtype, shape, |_| (f64::from(next()) * vocabulary as f64) as usize)
        }
        _ => zeros(dtype, shape),
    }
}

/// Integers by their index; `dtype` is a whole number of bytes wide.
fn whole_numbers(dtype: DType, shape: Vec<usize>, mut number: impl FnMut(usize) -> usize) -> Option<Tensor> {
    let count = zeros(dtype, shape.clone())?.len();
    let size = dtype.size()?;
    let bytes: Vec<u8> =
        (0..count).flat_map(|index| (number(index) as u64).to_le_bytes().into_iter().take(size)).collect();
    Tensor::from_bytes(dtype, shape, bytes).ok()
}

/// Zeros, or empty strings; `None` where they would take more than [`INPUT_BYTES_MAX`].
pub(super) fn zeros(dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
    let count = element_count(&shape)?;
    if dtype == DType::String {
        // Each string is three words even when it is empty.
        (count <= INPUT_BYTES_MAX / size_of::<String>()).then_some(())?;
        return Tensor::from_strings(shape, vec![String::new(); count]).ok();
    }
    let len = byte_len(dtype, count).filter(|len| *len <= INPUT_BYTES_MAX)?;
    Tensor::from_bytes(dtype, shape, vec![0u8; len]).ok()
}

/// Floats from 0 to 1, small whole numbers, empty strings: the same ones each time.
pub(super) fn random(dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
    let zeros = zeros(dtype, shape.clone())?;
    let mut next = generator();
    let count = zeros.len();
    match dtype {
        DType::Fp32 => Tensor::from_vec(dtype, shape, (0..count).map(|_| next()).collect::<Vec<f32>>()).ok(),
        DType::Fp64 => Tensor::from_vec(dtype, shape, (0..count).map(|_| f64::from(next())).collect::<Vec<f64>>()).ok(),
        DType::Fp16 => {
            Tensor::from_vec(dtype, shape, (0..count).map(|_| half::f16::from_f32(next())).collect::<Vec<half::f16>>())
                .ok()
        }
        DType::Bf16 => Tensor::from_vec(
            dtype,
            shape,
            (0..count).map(|_| half::bf16::from_f32(next())).collect::<Vec<half::bf16>>(),
        )
        .ok(),
        // 0 and 1 are inside every type and every vocabulary.
        _ => match dtype.size() {
            Some(size) => {
                let bytes = (0..count).flat_map(|_| {
                    let low = u8::from(next() >= 0.5);
                    std::iter::once(low).chain(std::iter::repeat_n(0, size - 1))
                });
                Tensor::from_bytes(dtype, shape, bytes.collect::<Vec<u8>>()).ok()
            }
            None => Some(zeros),
        },
    }
}

/// Numbers in [0, 1), the same ones each time.
fn generator() -> impl FnMut() -> f32 {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_values_fit_their_type() {
        let tensor = |dtype, shape| ValueType::Tensor { dtype, shape };
        for dtype in DType::all() {
            let free = Some(vec![Dim::Dynamic(None), Dim::Fixed(3)]);
            for ty in [tensor(dtype, free), tensor(dtype, Some(vec![])), tensor(dtype, None)] {
                ty.check(&value("x", &ty, 1, &InputHints::default()).unwrap()).unwrap();
            }
            let made = random(dtype, vec![5, 2]).unwrap();
            assert_eq!((made.dtype(), made.shape()), (dtype, [5, 2].as_slice()));
        }
        let sequence = ValueType::Sequence(Box::new(ValueType::Map { key: DType::String, value: DType::Fp32 }));
        sequence.check(&value("x", &sequence, 1, &InputHints::default()).unwrap()).unwrap();
    }

    #[test]
    fn nothing_huge_is_made_up() {
        for shape in [vec![usize::MAX], vec![usize::MAX, 2], vec![1 << 40], vec![1 << 20, 1 << 20]] {
            for dtype in [DType::Fp32, DType::String, DType::Int4] {
                assert!(zeros(dtype, shape.clone()).is_none(), "{shape:?}");
                assert!(random(dtype, shape.clone()).is_none(), "{shape:?}");
            }
        }
    }

    fn spec(name: &str, dtype: DType, dims: &[&str]) -> Spec {
        let dim = |text: &&str| match text.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Dynamic((!text.is_empty()).then(|| (*text).to_owned())),
        };
        let shape = Some(dims.iter().map(dim).collect());
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype, shape }, optional: false }
    }

    #[track_caller]
    fn check_shape(spec: Spec, rows: usize, expected: &[usize]) {
        let made = inputs(std::slice::from_ref(&spec), rows, &InputHints::default()).unwrap();
        assert_eq!(made[0].1.as_tensor().unwrap().shape(), expected, "{spec:?}");
    }

    #[test]
    fn free_dimensions_get_sizes_that_their_names_and_places_suggest() {
        check_shape(spec("x", DType::Fp32, &["N", "32"]), 4, &[4, 32]);
        check_shape(spec("x", DType::Fp32, &["", ""]), 1, &[1, 1]);
        check_shape(spec("pixel_values", DType::Fp32, &["batch", "channels", "height", "width"]), 2, &[2, 3, 224, 224]);
        check_shape(spec("image", DType::Uint8, &["", "", "", "3"]), 1, &[1, 224, 224, 3]);
        check_shape(spec("image", DType::Fp32, &["1", "3", "", ""]), 8, &[1, 3, 224, 224]);
        check_shape(spec("input_ids", DType::Int64, &["batch_size", "sequence_length"]), 2, &[2, 32]);
        check_shape(spec("input_ids", DType::Int64, &["", ""]), 2, &[2, 32]);
        check_shape(spec("input_values", DType::Fp32, &["", ""]), 1, &[1, 16_000]);
        check_shape(
            spec("past_key_values.0.key", DType::Fp32, &["batch", "8", "past_sequence_length", "64"]),
            1,
            &[1, 8, 1, 64],
        );
        check_shape(spec("input_values", DType::Fp32, &["batch_size", "sequence_length"]), 2, &[2, 16_000]);
        check_shape(spec("n", DType::Int64, &[]), 5, &[]);
    }

    #[test]
    fn the_inputs_of_a_text_model_are_within_its_vocabulary() {
        let text = |name| spec(name, DType::Int64, &["batch", "sequence"]);
        let specs = ["input_ids", "attention_mask", "token_type_ids", "position_ids"].map(text);
        let made = inputs(&specs, 2, &InputHints { vocabulary: Some(100), ..InputHints::default() }).unwrap();
        let numbers = |index: usize| made[index].1.as_tensor().unwrap().elements::<i64>().unwrap().into_owned();
        let ids = numbers(0);
        assert!(ids.iter().all(|id| (0..100).contains(id)) && ids.iter().any(|id| *id > 1), "{ids:?}");
        assert!(numbers(1).iter().all(|mask| *mask == 1));
        assert!(numbers(2).iter().all(|kind| *kind == 0));
        assert_eq!(numbers(3), (0..32).chain(0..32).collect::<Vec<i64>>());
        // Where the vocabulary is not known, 0 is inside every one.
        let made = inputs(&specs, 1, &InputHints::default()).unwrap();
        assert!(made[0].1.as_tensor().unwrap().elements::<i64>().unwrap().iter().all(|id| *id == 0));
    }

    #[test]
    fn pictures_have_the_size_that_the_model_says() {
        let hints = InputHints { image_size: Some((64, 96)), ..InputHints::default() };
        for (dims, expected) in [
            (["batch", "channels", "height", "width"], [1, 3, 64, 96]),
            (["", "3", "", ""], [1, 3, 64, 96]),
            (["", "", "", "3"], [1, 64, 96, 3]),
            (["", "3", "32", "w"], [1, 3, 32, 96]),
        ] {
            let made = inputs(&[spec("x", DType::Fp32, &dims)], 1, &hints).unwrap();
            assert_eq!(made[0].1.as_tensor().unwrap().shape(), expected, "{dims:?}");
        }
    }

    #[test]
    fn hints_are_read_from_the_models_own_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(InputHints::read(folder.path()), InputHints::default());
        for (text, vocabulary, image_size) in [
            (r#"{"vocab_size": 30522}"#, Some(30_522), None),
            (r#"{"text_config": {"vocab_size": 7}, "vision_config": {"image_size": 30}}"#, Some(7), Some((30, 30))),
            (r#"{"vocab_size": -1, "image_size": [64, 96]}"#, None, Some((64, 96))),
            (r#"{"vocab_size": 0, "image_size": [64, 0]}"#, None, None),
            (r#"{"image_size": [1, 2, 3]}"#, None, None),
            ("{", None, None),
        ] {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            assert_eq!(InputHints::read(folder.path()), InputHints { vocabulary, image_size }, "{text}");
        }
    }
}

//! Inputs made up from a graph's declared inputs, for warm-up, for trial runs and for benchmarks.
//!
//! Shapes that the graph leaves open are what graphs of that kind are given: 224 by 224 pixels, a few tokens, a second of
//! sound. Whole numbers stay inside the vocabulary, masks hide nothing, floats are from 0 to 1. The same seed makes the same
//! values.

use crate::runtime::Input;
use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType, byte_len, element_count};
use serde_json::Value as Json;
use std::path::Path;

/// Bytes of one made-up or sampled input.
pub(super) const INPUT_BYTES_MAX: usize = 256 << 20;
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// Pixels of a side that the graph leaves open.
const SIDE: usize = 224;
/// Samples of a sound: a second at the rate of speech models.
const SAMPLES: usize = 16_000;
/// Samples of a window of voice activity detectors, with those of the window before; others make them fail.
const WINDOW: usize = 576;
/// What such graphs call the input that holds the samples a second.
const RATE_INPUT: &str = "sr";

/// How large made-up inputs are where the graph leaves it open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Dim 0; `Some` also where the graph fixes another.
    pub rows: Option<usize>,
    /// Tokens of a sequence.
    pub length: usize,
}

impl Default for Size {
    fn default() -> Size {
        Size { rows: None, length: 8 }
    }
}

/// What the files beside a graph say of its inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct InputHints {
    /// Token ids are below this.
    pub vocabulary: Option<usize>,
    /// Height and width of the pictures.
    pub image_size: Option<(usize, usize)>,
    /// Whether sounds come in short windows, of which the graph is told the rate as `sr`.
    pub has_windows: bool,
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
        let vocabulary = entry("text_config", "vocab_size").and_then(number);
        InputHints { vocabulary, image_size, has_windows: false }
    }
}

/// Values for all inputs that a request must give; `None` where one would be too large or is of a kind that cannot be made up.
pub fn inputs(specs: &[Spec], size: &Size, seed: u64, hints: &InputHints) -> Option<Vec<Input>> {
    let has_windows = specs.iter().any(|spec| spec.name == RATE_INPUT && spec.ty.dtype() == Some(DType::Int64));
    let hints = InputHints { has_windows, ..*hints };
    let required = specs.iter().enumerate().filter(|(_, spec)| !spec.optional);
    required.map(|(index, spec)| Some((index, value(&spec.name, &spec.ty, size, seed, &hints)?))).collect()
}

fn value(name: &str, ty: &ValueType, size: &Size, seed: u64, hints: &InputHints) -> Option<Value> {
    match ty {
        ValueType::Tensor { dtype, shape } => {
            let dims = shape.as_deref().unwrap_or(&[Dim::Dynamic(None)]);
            let shape: Vec<usize> = (0..dims.len())
                .zip(dims)
                .map(|(axis, dim)| dim_size(name, *dtype, dims, axis, dim, size, hints))
                .collect();
            numbers(name, *dtype, shape, seed, hints).map(Value::Tensor)
        }
        ValueType::Sequence(element) => {
            value(name, element, size, seed, hints).map(|value| Value::Sequence(vec![value]))
        }
        ValueType::Map { key, value } => {
            Some(Value::Map { keys: zeros(*key, vec![1])?, values: random(*value, vec![1], seed)? })
        }
        ValueType::Optional(_) => Some(Value::None),
    }
}

fn dim_size(input: &str, dtype: DType, dims: &[Dim], axis: usize, dim: &Dim, size: &Size, hints: &InputHints) -> usize {
    let (height, width) = hints.image_size.unwrap_or((SIDE, SIDE));
    if let (0, Some(rows)) = (axis, size.rows) {
        return rows;
    }
    let symbol = match dim {
        Dim::Fixed(size) => return *size,
        Dim::Dynamic(symbol) => symbol.as_deref().unwrap_or_default().to_ascii_lowercase(),
    };
    let says = |words: &[&str]| words.iter().any(|word| symbol.contains(word));
    let is_sound =
        ["wave", "audio", "sound", "speech", "signal", "input_values"].iter().any(|word| input.contains(word));
    let (channels_first, channels_last) = match dims {
        [_, second, _, last] => (is_channels(second), is_channels(last)),
        _ => (false, false),
    };
    match (dims.len(), axis) {
        (_, 0) => 1,
        // The tensors that a decoder hands to its next step; one step of history is the least that has a meaning.
        _ if says(&["past", "cache"]) => 1,
        (2, 1) if dtype.is_float() && hints.has_windows => WINDOW,
        // Exporters call the length of a sound a sequence, too.
        (2, 1) if dtype.is_float() && (is_sound || says(&["sample", "audio"])) => SAMPLES,
        _ if says(&["seq", "token", "len"]) => size.length,
        _ if says(&["height"]) || symbol == "h" => height,
        _ if says(&["width"]) || symbol == "w" => width,
        (4, 1) if channels_last && !channels_first => height,
        (4, 1) => 3,
        (4, 2) if channels_last && !channels_first => width,
        (4, 3) if channels_last && !channels_first => 3,
        (4, 2) => height,
        (4, 3) => width,
        (2, 1) if matches!(dtype, DType::Int64 | DType::Int32) => size.length,
        _ => 1,
    }
}

fn is_channels(dim: &Dim) -> bool {
    matches!(dim, Dim::Fixed(1 | 3 | 4))
}

fn numbers(name: &str, dtype: DType, shape: Vec<usize>, seed: u64, hints: &InputHints) -> Option<Tensor> {
    if !matches!(dtype, DType::Int64 | DType::Int32) {
        return random(dtype, shape, seed);
    }
    // Bounds the size before anything is made.
    let count = zeros(dtype, shape.clone())?.len();
    let length = shape.last().copied().unwrap_or(1).max(1);
    let below = hints.vocabulary.unwrap_or(2);
    let name = name.to_ascii_lowercase();
    let mut dice = Dice::new(seed);
    let values = (0..count).map(|place| {
        if name.contains("mask") {
            1
        } else if name.contains("type") || name.contains("segment") {
            0
        } else if hints.has_windows && name == RATE_INPUT {
            16_000
        } else if name.contains("position") {
            i32::try_from(place % length).unwrap_or(0)
        } else {
            i32::try_from((f64::from(dice.roll()) * below as f64) as u64).unwrap_or(0)
        }
    });
    match dtype {
        DType::Int32 => Tensor::from_vec(dtype, shape, values.collect::<Vec<i32>>()).ok(),
        _ => Tensor::from_vec(dtype, shape, values.map(i64::from).collect::<Vec<i64>>()).ok(),
    }
}

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

/// A small generator (xorshift): made-up values need no secrets.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        // Never 0, where it would stay.
        Dice(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed.wrapping_add(1)) | 1)
    }

    /// From 0 to 1, 1 excluded.
    fn roll(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Floats from 0 to 1, small whole numbers, empty strings.
pub(super) fn random(dtype: DType, shape: Vec<usize>, seed: u64) -> Option<Tensor> {
    let zeros = zeros(dtype, shape.clone())?;
    let mut dice = Dice::new(seed);
    let mut next = || dice.roll();
    let count = zeros.len();
    match dtype {
        DType::Fp32 => Tensor::from_vec(dtype, shape, (0..count).map(|_| next()).collect::<Vec<f32>>()).ok(),
        DType::Fp64 => Tensor::from_vec(dtype, shape, (0..count).map(|_| f64::from(next())).collect::<Vec<f64>>()).ok(),
        DType::Fp16 => {
            let values = (0..count).map(|_| half::f16::from_f32(next()));
            Tensor::from_vec(dtype, shape, values.collect::<Vec<half::f16>>()).ok()
        }
        DType::Bf16 => {
            let values = (0..count).map(|_| half::bf16::from_f32(next()));
            Tensor::from_vec(dtype, shape, values.collect::<Vec<half::bf16>>()).ok()
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: DType, shape: &[i64]) -> ValueType {
        let shape = shape.iter().map(|&dim| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed)).collect();
        ValueType::Tensor { dtype, shape: Some(shape) }
    }

    fn made(name: &str, ty: &ValueType, hints: &InputHints) -> Value {
        let value = value(name, ty, &Size::default(), 1, hints).unwrap();
        ty.check(&value).unwrap();
        value
    }

    #[test]
    fn made_up_values_fit_their_type() {
        for dtype in DType::all() {
            for ty in [tensor(dtype, &[-1, 3]), tensor(dtype, &[]), ValueType::Tensor { dtype, shape: None }] {
                made("x", &ty, &InputHints::default());
            }
            let random = random(dtype, vec![5, 2], 1).unwrap();
            assert_eq!((random.dtype(), random.shape()), (dtype, [5, 2].as_slice()));
        }
        let map = ValueType::Map { key: DType::String, value: DType::Fp32 };
        made("x", &ValueType::Sequence(Box::new(map)), &InputHints::default());
    }

    #[track_caller]
    fn shape(name: &str, dtype: DType, declared: &[i64], expected: &[usize]) {
        let made = made(name, &tensor(dtype, declared), &InputHints::default());
        assert_eq!(made.as_tensor().unwrap().shape(), expected);
    }

    #[test]
    fn open_dimensions_are_what_such_graphs_are_given() {
        shape("pixel_values", DType::Fp32, &[-1, 3, -1, -1], &[1, 3, 224, 224]);
        shape("x", DType::Fp32, &[-1, -1, -1, -1], &[1, 3, 224, 224]);
        shape("x", DType::Uint8, &[-1, -1, -1, 3], &[1, 224, 224, 3]);
        shape("x", DType::Fp32, &[-1, 3, 96, 96], &[1, 3, 96, 96]);
        shape("input_ids", DType::Int64, &[-1, -1], &[1, 8]);
        shape("input_values", DType::Fp32, &[-1, -1], &[1, 16_000]);
        shape("x", DType::Fp32, &[-1, -1], &[1, 1]);
    }

    #[test]
    fn whole_numbers_suit_their_input() {
        let hints = InputHints { vocabulary: Some(30_000), ..InputHints::default() };
        let ids = |name: &str| made(name, &tensor(DType::Int64, &[-1, -1]), &hints);
        let numbers = |value: &Value| value.as_tensor().unwrap().elements::<i64>().unwrap().into_owned();
        let tokens = numbers(&ids("input_ids"));
        assert!(tokens.iter().all(|id| (0..30_000).contains(id)) && tokens.iter().any(|id| *id > 1), "{tokens:?}");
        assert_eq!(numbers(&ids("attention_mask")), [1; 8]);
        assert_eq!(numbers(&ids("token_type_ids")), [0; 8]);
        assert_eq!(numbers(&ids("position_ids")), [0, 1, 2, 3, 4, 5, 6, 7]);
        let two = |seed| inputs(&[], &Size::default(), seed, &hints);
        assert_eq!(two(1).unwrap().len(), 0);
        assert_ne!(random(DType::Fp32, vec![9], 1).unwrap().bytes(), random(DType::Fp32, vec![9], 2).unwrap().bytes());
    }

    #[test]
    fn detectors_of_voices_are_given_a_window_and_its_rate() {
        let spec = |name: &str, ty| Spec { name: name.to_owned(), ty, optional: false };
        let specs = [spec("input", tensor(DType::Fp32, &[-1, -1])), spec("sr", tensor(DType::Int64, &[]))];
        let made = inputs(&specs, &Size::default(), 1, &InputHints::default()).unwrap();
        let tensors: Vec<&Tensor> = made.iter().filter_map(|(_, value)| value.as_tensor()).collect();
        assert_eq!(tensors[0].shape(), [1, 576]);
        assert_eq!(tensors[1].elements::<i64>().unwrap().as_ref(), [16_000]);
    }

    #[test]
    fn nothing_huge_is_made_up() {
        for shape in [vec![usize::MAX], vec![usize::MAX, 2], vec![1 << 40], vec![1 << 20, 1 << 20]] {
            for dtype in [DType::Fp32, DType::String, DType::Int4] {
                assert!(zeros(dtype, shape.clone()).is_none(), "{shape:?}");
                assert!(random(dtype, shape.clone(), 1).is_none(), "{shape:?}");
            }
            assert!(numbers("ids", DType::Int64, shape, 1, &InputHints::default()).is_none());
        }
    }
}

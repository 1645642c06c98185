//! Values as JSON, written straight from their typed data.
//!
//! Floats are the shortest text that reads back as the same number of their own type; `FP16`, `BF16` and the 8-bit and
//! 4-bit floats are written as the `FP32` they equal. Non-finite floats are the strings "NaN", "Infinity", "-Infinity".

use crate::codec::smallfloat;
use crate::tensor::{DType, Tensor, Value};
use serde_json::ser::{CompactFormatter, Formatter};

/// Empty arrays written for one empty tensor; beyond that its nesting is left out.
const MAX_EMPTY_ARRAYS: usize = 1 << 16;

/// Writes `value`: a tensor as [`write_nested`] does, a sequence as an array, a map as an object, nothing as `null`.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Tensor(tensor) => write_nested(tensor, out),
        Value::Sequence(values) => {
            out.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(value, out);
            }
            out.push(b']');
        }
        Value::Map { keys, values } => {
            out.push(b'{');
            let texts = Elements::of(values);
            for index in 0..keys.len().min(values.len()) {
                if index > 0 {
                    out.push(b',');
                }
                write_key(keys, index, out);
                out.push(b':');
                texts.write(index..index + 1, out);
            }
            out.push(b'}');
        }
        Value::None => out.extend_from_slice(b"null"),
    }
}

fn write_key(keys: &Tensor, index: usize, out: &mut Vec<u8>) {
    match keys.strings().get(index) {
        Some(key) => write_string(key, out),
        None => {
            out.push(b'"');
            Elements::of(keys).write(index..index + 1, out);
            out.push(b'"');
        }
    }
}

/// Writes a JSON string.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail, and any string can be written.
    let _ = serde_json::to_writer(out, text);
}

/// Writes a tensor as nested arrays: a scalar as itself, `[2, 0]` as `[[],[]]`, `[0, 3]` as `[]`.
pub fn write_nested(tensor: &Tensor, out: &mut Vec<u8>) {
    out.reserve(text_size(tensor));
    let shape = tensor.shape();
    if tensor.is_empty() {
        // The product stops before the first zero; arrays behind it do not exist.
        let arrays =
            shape.iter().take_while(|&&dim| dim != 0).try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if arrays.is_none_or(|arrays| arrays > MAX_EMPTY_ARRAYS) {
            out.extend_from_slice(b"[]");
            return;
        }
    }
    write_level(&Elements::of(tensor), shape, &mut 0, out);
}

fn write_level(elements: &Elements<'_>, shape: &[usize], next: &mut usize, out: &mut Vec<u8>) {
    match shape {
        [] => {
            elements.write(*next..*next + 1, out);
            *next += 1;
        }
        [size] => {
            out.push(b'[');
            elements.write(*next..*next + size, out);
            *next += size;
            out.push(b']');
        }
        [size, inner @ ..] => {
            out.push(b'[');
            for index in 0..*size {
                if index > 0 {
                    out.push(b',');
                }
                write_level(elements, inner, next, out);
            }
            out.push(b']');
        }
    }
}

/// Writes a tensor as one flat array in row-major order.
pub fn write_flat(tensor: &Tensor, out: &mut Vec<u8>) {
    out.reserve(text_size(tensor));
    out.push(b'[');
    Elements::of(tensor).write(0..tensor.len(), out);
    out.push(b']');
}

/// About how many bytes the text takes.
fn text_size(tensor: &Tensor) -> usize {
    let each = match tensor.dtype().bits() {
        0..=8 => 4,
        16 => 8,
        32 => 11,
        _ => 16,
    };
    tensor.len().saturating_mul(each)
}

/// The elements of a tensor in a form that can be written.
struct Elements<'a> {
    tensor: &'a Tensor,
}

/// Writes a range of the elements of type `$ty`, aligned or not, with commas between them.
macro_rules! write_range {
    ($bytes:expr, $range:expr, $out:expr, $ty:ty, |$value:ident| $write:expr) => {{
        const SIZE: usize = size_of::<$ty>();
        let range = $range.start * SIZE..$range.end * SIZE;
        for (index, chunk) in $bytes.get(range).unwrap_or_default().chunks_exact(SIZE).enumerate() {
            if index > 0 {
                $out.push(b',');
            }
            let $value: $ty = bytemuck::pod_read_unaligned(chunk);
            $write;
        }
    }};
}

impl<'a> Elements<'a> {
    fn of(tensor: &'a Tensor) -> Elements<'a> {
        Elements { tensor }
    }

    fn write(&self, range: std::ops::Range<usize>, out: &mut Vec<u8>) {
        let bytes = self.tensor.bytes();
        let dtype = self.tensor.dtype();
        let mut json = CompactFormatter;
        // Writing to a vector cannot fail, so the results carry nothing.
        match dtype {
            DType::Uint8 => write_range!(bytes, range, out, u8, |value| _ = json.write_u8(out, value)),
            DType::Uint16 => write_range!(bytes, range, out, u16, |value| _ = json.write_u16(out, value)),
            DType::Uint32 => write_range!(bytes, range, out, u32, |value| _ = json.write_u32(out, value)),
            DType::Uint64 => write_range!(bytes, range, out, u64, |value| _ = json.write_u64(out, value)),
            DType::Int8 => write_range!(bytes, range, out, i8, |value| _ = json.write_i8(out, value)),
            DType::Int16 => write_range!(bytes, range, out, i16, |value| _ = json.write_i16(out, value)),
            DType::Int32 => write_range!(bytes, range, out, i32, |value| _ = json.write_i32(out, value)),
            DType::Int64 => write_range!(bytes, range, out, i64, |value| _ = json.write_i64(out, value)),
            DType::Fp16 => write_range!(bytes, range, out, half::f16, |value| write_f32(value.to_f32(), out)),
            DType::Bf16 => write_range!(bytes, range, out, half::bf16, |value| write_f32(value.to_f32(), out)),
            DType::Fp32 => write_range!(bytes, range, out, f32, |value| write_f32(value, out)),
            DType::Fp64 => write_range!(bytes, range, out, f64, |value| write_f64(value, out)),
            DType::Bool => write_range!(bytes, range, out, u8, |value| _ = json.write_bool(out, value != 0)),
            DType::String => {
                for (index, text) in self.tensor.strings().get(range).unwrap_or_default().iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_string(text, out);
                }
            }
            DType::Int4
            | DType::Uint4
            | DType::Int2
            | DType::Uint2
            | DType::Fp4E2M1
            | DType::Fp8E4M3Fn
            | DType::Fp8E4M3FnUz
            | DType::Fp8E5M2
            | DType::Fp8E5M2FnUz
            | DType::Fp8E8M0 => {
                for (position, index) in range.enumerate() {
                    if position > 0 {
                        out.push(b',');
                    }
                    write_code(dtype, unpack(dtype, bytes, index), out);
                }
            }
        }
    }
}

/// The code of one element of a type of at most 8 bits.
fn unpack(dtype: DType, bytes: &[u8], index: usize) -> u8 {
    let bits = dtype.bits();
    let in_byte = 8 / bits;
    let byte = bytes.get(index / in_byte).copied().unwrap_or(0);
    let shift = (index % in_byte) * bits;
    (byte >> shift) & (0xff >> (8 - bits))
}

fn write_code(dtype: DType, code: u8, out: &mut Vec<u8>) {
    // The sign bit of a short integer moves to the top, and back with the sign spread.
    let signed = |bits: u32| (code << (8 - bits)).cast_signed() >> (8 - bits);
    let mut json = CompactFormatter;
    match dtype {
        DType::Int4 => _ = json.write_i8(out, signed(4)),
        DType::Int2 => _ = json.write_i8(out, signed(2)),
        _ => match smallfloat::decode(dtype, code) {
            Some(value) => write_f32(value, out),
            None => _ = json.write_u8(out, code),
        },
    }
}

fn write_f32(value: f32, out: &mut Vec<u8>) {
    match value.is_finite() {
        true => _ = CompactFormatter.write_f32(out, value),
        false => write_non_finite(f64::from(value), out),
    }
}

fn write_f64(value: f64, out: &mut Vec<u8>) {
    match value.is_finite() {
        true => _ = CompactFormatter.write_f64(out, value),
        false => write_non_finite(value, out),
    }
}

#[cold]
fn write_non_finite(value: f64, out: &mut Vec<u8>) {
    let text: &[u8] = match value {
        value if value.is_nan() => b"\"NaN\"",
        value if value > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    };
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[track_caller]
    fn check(tensor: &Tensor, nested: &str, flat: &str) {
        let mut out = Vec::new();
        write_nested(tensor, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), nested);
        let mut out = Vec::new();
        write_flat(tensor, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), flat);
    }

    fn fp32(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::from_vec(DType::Fp32, shape.to_vec(), data.to_vec()).unwrap()
    }

    #[test]
    fn tensors_are_written_nested_and_flat() {
        check(&fp32(&[], &[0.1]), "0.1", "[0.1]");
        check(&fp32(&[2, 2], &[0.1, -0.0, 1e-7, 1e30]), "[[0.1,-0.0],[1e-7,1e+30]]", "[0.1,-0.0,1e-7,1e+30]");
        check(
            &fp32(&[1, 3], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
            r#"[["NaN","Infinity","-Infinity"]]"#,
            r#"["NaN","Infinity","-Infinity"]"#,
        );
        check(&fp32(&[0], &[]), "[]", "[]");
        check(&fp32(&[2, 0], &[]), "[[],[]]", "[]");
        check(&fp32(&[0, 3], &[]), "[]", "[]");
        check(&fp32(&[1, 2, 0, 5], &[]), "[[[],[]]]", "[]");
        check(&fp32(&[1 << 40, 0], &[]), "[]", "[]");
        let doubles = Tensor::from_vec(DType::Fp64, vec![2], vec![0.1f64, 5e-324]).unwrap();
        check(&doubles, "[0.1,5e-324]", "[0.1,5e-324]");
        let halves = [half::f16::from_f32(0.5), half::f16::INFINITY];
        check(
            &Tensor::from_vec(DType::Fp16, vec![2], halves.to_vec()).unwrap(),
            r#"[0.5,"Infinity"]"#,
            r#"[0.5,"Infinity"]"#,
        );
        let strings = Tensor::from_strings(vec![2, 1], vec!["a\"\n".into(), "é".into()]).unwrap();
        check(&strings, r#"[["a\"\n"],["é"]]"#, r#"["a\"\n","é"]"#);
        let packed = Tensor::from_bytes(DType::Int4, vec![3, 1], vec![0x8f, 0x07]).unwrap();
        check(&packed, "[[-1],[-8],[7]]", "[-1,-8,7]");
        let packed = Tensor::from_bytes(DType::Uint2, vec![5], vec![0b11_10_01_00, 0b01]).unwrap();
        check(&packed, "[0,1,2,3,1]", "[0,1,2,3,1]");
        let packed = Tensor::from_bytes(DType::Int2, vec![4], vec![0b11_10_01_00]).unwrap();
        check(&packed, "[0,1,-2,-1]", "[0,1,-2,-1]");
    }

    #[test]
    fn unaligned_elements_are_written_as_they_are() {
        let bytes = Bytes::from(vec![9, 1, 0, 0, 0, 0, 0, 0, 0]).slice(1..);
        check(&Tensor::from_bytes(DType::Int64, vec![1], bytes).unwrap(), "[1]", "[1]");
    }

    #[test]
    fn floats_read_back_as_the_same_bits() {
        let mut state = 1u32;
        let data: Vec<f32> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(state)
        })
        .filter(|value| value.is_finite())
        .take(20_000)
        .collect();
        let mut out = Vec::new();
        write_flat(&fp32(&[data.len()], &data), &mut out);
        let back: Vec<f32> = serde_json::from_slice(&out).unwrap();
        assert!(data.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn other_values_are_arrays_objects_and_null() {
        let keys = Tensor::from_vec(DType::Int64, vec![2], vec![-1i64, 5]).unwrap();
        let map = Value::Map { keys, values: fp32(&[2], &[0.5, f32::NAN]) };
        let names = Tensor::from_strings(vec![1], vec!["a\"".into()]).unwrap();
        let named = Value::Map { keys: names, values: fp32(&[1], &[1.0]) };
        let value = Value::Sequence(vec![map, named, Value::None, fp32(&[1], &[2.0]).into(), Value::Sequence(vec![])]);
        let mut out = Vec::new();
        write_value(&value, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), r#"[{"-1":0.5,"5":"NaN"},{"a\"":1.0},null,[2.0],[]]"#);
    }
}

//! Typed buffers that JSON scalars are pushed into, each checking that the scalar is one of its type.
//!
//! Nothing wraps, saturates or is cut off: a number that the type cannot hold is refused with the range. Integers are
//! written without fraction or exponent. Non-finite floats are the strings "NaN", "Infinity" and "-Infinity". Knows no
//! shape.

use crate::codec::smallfloat;
use crate::tensor::{DType, Tensor, TensorError};
use std::fmt::Display;

/// A buffer of one element type. The errors say what is wrong with the scalar.
pub(super) trait Sink {
    fn dtype(&self) -> DType;
    fn len(&self) -> usize;
    /// Makes room for so many elements.
    fn reserve(&mut self, count: usize);
    fn unsigned(&mut self, value: u64) -> Result<(), String>;
    fn signed(&mut self, value: i64) -> Result<(), String>;
    fn float(&mut self, value: f64) -> Result<(), String>;

    fn boolean(&mut self, value: bool) -> Result<(), String> {
        Err(unfit(value, self.dtype()))
    }

    fn text(&mut self, value: &str) -> Result<(), String> {
        Err(unfit_text(value, self.dtype()))
    }

    fn finish(self, shape: Vec<usize>) -> Result<Tensor, TensorError>;
}

/// Runs `$body` with `$sink` being an empty buffer for `$dtype`, whose type differs from arm to arm.
macro_rules! with_sink {
    ($dtype:expr, |$sink:ident| $body:expr) => {{
        use $crate::codec::json::element::{Bits, Floats, Integers, Strings};
        use $crate::tensor::DType;
        let dtype: DType = $dtype;
        match dtype {
            DType::Uint8 => {
                let $sink = Integers::<u8>::new(dtype);
                $body
            }
            DType::Uint16 => {
                let $sink = Integers::<u16>::new(dtype);
                $body
            }
            DType::Uint32 => {
                let $sink = Integers::<u32>::new(dtype);
                $body
            }
            DType::Uint64 => {
                let $sink = Integers::<u64>::new(dtype);
                $body
            }
            DType::Int8 => {
                let $sink = Integers::<i8>::new(dtype);
                $body
            }
            DType::Int16 => {
                let $sink = Integers::<i16>::new(dtype);
                $body
            }
            DType::Int32 => {
                let $sink = Integers::<i32>::new(dtype);
                $body
            }
            DType::Int64 => {
                let $sink = Integers::<i64>::new(dtype);
                $body
            }
            DType::Fp16 => {
                let $sink = Floats::<half::f16>::new(dtype);
                $body
            }
            DType::Bf16 => {
                let $sink = Floats::<half::bf16>::new(dtype);
                $body
            }
            DType::Fp32 => {
                let $sink = Floats::<f32>::new(dtype);
                $body
            }
            DType::Fp64 => {
                let $sink = Floats::<f64>::new(dtype);
                $body
            }
            DType::String => {
                let $sink = Strings::new();
                $body
            }
            DType::Bool
            | DType::Int4
            | DType::Uint4
            | DType::Int2
            | DType::Uint2
            | DType::Fp4E2M1
            | DType::Fp8E4M3Fn
            | DType::Fp8E4M3FnUz
            | DType::Fp8E5M2
            | DType::Fp8E5M2FnUz
            | DType::Fp8E8M0 => {
                let $sink = Bits::new(dtype);
                $body
            }
        }
    }};
}
pub(super) use with_sink;

#[cold]
fn unfit(value: impl Display, dtype: DType) -> String {
    format!("{value} is not a value of {dtype}")
}

#[cold]
fn unfit_text(value: &str, dtype: DType) -> String {
    let clipped = crate::codec::clip(value);
    match dtype.is_float() {
        true => format!(
            "{clipped:?} is not a value of {dtype}; the only strings are \"NaN\", \"Infinity\" and \"-Infinity\""
        ),
        false => format!("{clipped:?} is a string, not a value of {dtype}"),
    }
}

#[cold]
fn out_of_range(value: impl Display, dtype: DType, low: impl Display, high: impl Display) -> String {
    format!("{value} does not fit {dtype} ({low} to {high})")
}

#[cold]
fn not_an_integer(value: f64, dtype: DType) -> String {
    if value.fract() != 0.0 {
        return format!("{value:?} is not an integer; {dtype} takes integers");
    }
    if value.abs() < 1e15 {
        return format!("{value:?} is written as a float; {dtype} takes integers without fraction or exponent");
    }
    format!("{value:?} does not fit {dtype}")
}

/// Whether a JSON float is the integer 0 written `-0`, the one integer that the parser gives as a float.
fn is_negative_zero(value: f64) -> bool {
    value == 0.0 && value.is_sign_negative()
}

/// `value` as another integer type, where it fits.
#[inline]
fn fit<T>(value: impl TryInto<T>) -> Option<T> {
    value.try_into().ok()
}

pub(super) struct Integers<T> {
    dtype: DType,
    data: Vec<T>,
}

impl<T> Integers<T> {
    pub(super) fn new(dtype: DType) -> Integers<T> {
        Integers { dtype, data: Vec::new() }
    }
}

macro_rules! integer_sinks {
    ($($ty:ty),*) => {$(
        impl Sink for Integers<$ty> {
            fn dtype(&self) -> DType {
                self.dtype
            }

            fn len(&self) -> usize {
                self.data.len()
            }

            fn reserve(&mut self, count: usize) {
                self.data.reserve_exact(count);
            }

            fn unsigned(&mut self, value: u64) -> Result<(), String> {
                let Some(number) = fit::<$ty>(value) else {
                    return Err(out_of_range(value, self.dtype, <$ty>::MIN, <$ty>::MAX));
                };
                self.data.push(number);
                Ok(())
            }

            fn signed(&mut self, value: i64) -> Result<(), String> {
                let Some(number) = fit::<$ty>(value) else {
                    return Err(out_of_range(value, self.dtype, <$ty>::MIN, <$ty>::MAX));
                };
                self.data.push(number);
                Ok(())
            }

            fn float(&mut self, value: f64) -> Result<(), String> {
                if !is_negative_zero(value) {
                    return Err(not_an_integer(value, self.dtype));
                }
                self.data.push(0);
                Ok(())
            }

            fn finish(self, shape: Vec<usize>) -> Result<Tensor, TensorError> {
                Tensor::from_vec(self.dtype, shape, self.data)
            }
        }
    )*};
}
integer_sinks!(u8, u16, u32, u64, i8, i16, i32, i64);

pub(super) struct Floats<T> {
    dtype: DType,
    data: Vec<T>,
}

impl<T: Float> Floats<T> {
    pub(super) fn new(dtype: DType) -> Floats<T> {
        Floats { dtype, data: Vec::new() }
    }
}

/// A float of at least 16 bits.
pub(super) trait Float: bytemuck::Pod + Send + Sync {
    /// The nearest value; infinite where `value` is too large.
    fn nearest(value: f64) -> Self;
    /// The nearest value to an integer that `f64` may not hold exactly.
    fn nearest_to_unsigned(value: u64) -> Self {
        Self::nearest(value as f64)
    }
    fn nearest_to_signed(value: i64) -> Self {
        Self::nearest(value as f64)
    }
    fn finite(self) -> bool;
}

impl Float for f32 {
    #[inline]
    fn nearest(value: f64) -> f32 {
        value as f32
    }
    #[inline]
    fn nearest_to_unsigned(value: u64) -> f32 {
        value as f32
    }
    #[inline]
    fn nearest_to_signed(value: i64) -> f32 {
        value as f32
    }
    #[inline]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    #[inline]
    fn nearest(value: f64) -> f64 {
        value
    }
    #[inline]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for half::f16 {
    #[inline]
    fn nearest(value: f64) -> half::f16 {
        smallfloat::to_f16(value)
    }
    #[inline]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for half::bf16 {
    #[inline]
    fn nearest(value: f64) -> half::bf16 {
        smallfloat::to_bf16(value)
    }
    #[inline]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

/// The value that a string stands for among floats.
fn non_finite(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

impl<T: Float> Floats<T> {
    #[inline]
    fn push(&mut self, number: T, value: impl Display) -> Result<(), String> {
        if !number.finite() {
            let (low, high) = smallfloat::range(self.dtype);
            return Err(out_of_range(value, self.dtype, format_args!("{low:e}"), format_args!("{high:e}")));
        }
        self.data.push(number);
        Ok(())
    }
}

impl<T: Float> Sink for Floats<T> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn len(&self) -> usize {
        self.data.len()
    }

    fn reserve(&mut self, count: usize) {
        self.data.reserve_exact(count);
    }

    #[inline]
    fn unsigned(&mut self, value: u64) -> Result<(), String> {
        self.push(T::nearest_to_unsigned(value), value)
    }

    #[inline]
    fn signed(&mut self, value: i64) -> Result<(), String> {
        self.push(T::nearest_to_signed(value), value)
    }

    #[inline]
    fn float(&mut self, value: f64) -> Result<(), String> {
        self.push(T::nearest(value), format_args!("{value:e}"))
    }

    fn text(&mut self, value: &str) -> Result<(), String> {
        let Some(number) = non_finite(value) else { return Err(unfit_text(value, self.dtype)) };
        self.data.push(T::nearest(number));
        Ok(())
    }

    fn finish(self, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        Tensor::from_vec(self.dtype, shape, self.data)
    }
}

pub(super) struct Strings(Vec<String>);

impl Strings {
    pub(super) fn new() -> Strings {
        Strings(Vec::new())
    }
}

impl Sink for Strings {
    fn dtype(&self) -> DType {
        DType::String
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn reserve(&mut self, count: usize) {
        self.0.reserve_exact(count);
    }

    fn unsigned(&mut self, value: u64) -> Result<(), String> {
        Err(format!("{value} is a number; BYTES takes strings"))
    }

    fn signed(&mut self, value: i64) -> Result<(), String> {
        Err(format!("{value} is a number; BYTES takes strings"))
    }

    fn float(&mut self, value: f64) -> Result<(), String> {
        Err(format!("{value:?} is a number; BYTES takes strings"))
    }

    fn boolean(&mut self, value: bool) -> Result<(), String> {
        Err(format!("{value} is not a string; BYTES takes strings"))
    }

    fn text(&mut self, value: &str) -> Result<(), String> {
        self.0.push(value.to_owned());
        Ok(())
    }

    fn finish(self, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        Tensor::from_strings(shape, self.0)
    }
}

/// Types of at most 8 bits that Rust has no type for: one code a byte while reading, packed at the end.
pub(super) struct Bits {
    dtype: DType,
    codes: Vec<u8>,
}

impl Bits {
    pub(super) fn new(dtype: DType) -> Bits {
        Bits { dtype, codes: Vec::new() }
    }

    /// The range of the integer types among them.
    fn integer_range(&self) -> Option<(i64, i64)> {
        match self.dtype {
            DType::Bool => Some((0, 1)),
            DType::Int4 => Some((-8, 7)),
            DType::Uint4 => Some((0, 15)),
            DType::Int2 => Some((-2, 1)),
            DType::Uint2 => Some((0, 3)),
            _ => None,
        }
    }

    fn push_float(&mut self, value: f64) -> Result<(), String> {
        let Some(code) = smallfloat::encode(self.dtype, value) else {
            if !value.is_finite() {
                return Err(unfit(value, self.dtype));
            }
            let (low, high) = smallfloat::range(self.dtype);
            return Err(out_of_range(
                format_args!("{value:?}"),
                self.dtype,
                format_args!("{low:?}"),
                format_args!("{high:?}"),
            ));
        };
        self.codes.push(code);
        Ok(())
    }
}

impl Sink for Bits {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn len(&self) -> usize {
        self.codes.len()
    }

    fn reserve(&mut self, count: usize) {
        self.codes.reserve_exact(count);
    }

    fn unsigned(&mut self, value: u64) -> Result<(), String> {
        match i64::try_from(value) {
            Ok(value) => self.signed(value),
            Err(_) => self.float(value as f64),
        }
    }

    fn signed(&mut self, value: i64) -> Result<(), String> {
        let Some((low, high)) = self.integer_range() else { return self.push_float(value as f64) };
        if value < low || value > high {
            return Err(match self.dtype {
                DType::Bool => format!("{value} is not a value of BOOL; it takes true, false, 1 and 0"),
                _ => out_of_range(value, self.dtype, low, high),
            });
        }
        // The low bits of the two's complement are the code; packing cuts the rest off.
        self.codes.push(value.to_le_bytes()[0]);
        Ok(())
    }

    fn float(&mut self, value: f64) -> Result<(), String> {
        if self.integer_range().is_none() {
            return self.push_float(value);
        }
        if !is_negative_zero(value) {
            return Err(not_an_integer(value, self.dtype));
        }
        self.codes.push(0);
        Ok(())
    }

    fn boolean(&mut self, value: bool) -> Result<(), String> {
        if self.dtype != DType::Bool {
            return Err(unfit(value, self.dtype));
        }
        self.codes.push(u8::from(value));
        Ok(())
    }

    fn text(&mut self, value: &str) -> Result<(), String> {
        match non_finite(value) {
            Some(number) if self.dtype.is_float() => self.push_float(number),
            _ => Err(unfit_text(value, self.dtype)),
        }
    }

    fn finish(self, shape: Vec<usize>) -> Result<Tensor, TensorError> {
        let bits = self.dtype.bits();
        if bits == 8 {
            return Tensor::from_bytes(self.dtype, shape, self.codes);
        }
        let mask = (1u8 << bits) - 1;
        let packed: Vec<u8> = self
            .codes
            .chunks(8 / bits)
            .map(|codes| codes.iter().rev().fold(0, |byte, code| (byte << bits) | (code & mask)))
            .collect();
        Tensor::from_bytes(self.dtype, shape, packed)
    }
}

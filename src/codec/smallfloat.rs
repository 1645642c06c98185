//! Floats of 16, 8 and 4 bits from `f64` with one correct rounding (to nearest, ties to even), and back.
//!
//! Finite values beyond the largest finite one are refused, never turned into infinity or saturated: the caller decides
//! what a client hears. Knows tensors' types and nothing else.

use crate::tensor::DType;

/// `value` as the nearest FP16; infinite where it is too large.
pub(super) fn to_f16(value: f64) -> half::f16 {
    half::f16::from_f32(to_odd_f32(value))
}

/// `value` as the nearest BF16; infinite where it is too large.
pub(super) fn to_bf16(value: f64) -> half::bf16 {
    half::bf16::from_f32(to_odd_f32(value))
}

/// `value` cut to `f32` with the last bit set where something was cut off: rounding that once more to a shorter float
/// gives the same as rounding `value` itself, which two roundings to nearest would not.
fn to_odd_f32(value: f64) -> f32 {
    let nearest = value as f32;
    if value.is_nan() || value.is_infinite() || f64::from(nearest) == value {
        return nearest;
    }
    // The bits of floats of one sign count up with their magnitude, infinity following the largest finite one.
    let cut = if f64::from(nearest).abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(cut | 1)
}

/// How a type of at most 8 bits lays out its codes.
struct Layout {
    mantissa_bits: u32,
    bias: i32,
    /// Whether there is a sign bit.
    signed: bool,
    /// Whether exponent 0 means subnormal; otherwise it is an exponent like the others.
    subnormals: bool,
    /// The largest code without sign that is a finite number.
    largest: u8,
    infinity: Option<u8>,
    nan: Option<u8>,
    /// Whether zero has a sign.
    negative_zero: bool,
}

fn layout(dtype: DType) -> Option<Layout> {
    let (mantissa_bits, bias, largest, infinity, nan, negative_zero) = match dtype {
        DType::Fp8E4M3Fn => (3, 7, 0x7e, None, Some(0x7f), true),
        DType::Fp8E4M3FnUz => (3, 8, 0x7f, None, Some(0x80), false),
        DType::Fp8E5M2 => (2, 15, 0x7b, Some(0x7c), Some(0x7e), true),
        DType::Fp8E5M2FnUz => (2, 16, 0x7f, None, Some(0x80), false),
        DType::Fp4E2M1 => (1, 1, 0x07, None, None, true),
        DType::Fp8E8M0 => {
            return Some(Layout {
                mantissa_bits: 0,
                bias: 127,
                signed: false,
                subnormals: false,
                largest: 0xfe,
                infinity: None,
                nan: Some(0xff),
                negative_zero: false,
            });
        }
        _ => return None,
    };
    Some(Layout { mantissa_bits, bias, signed: true, subnormals: true, largest, infinity, nan, negative_zero })
}

impl Layout {
    fn sign_bit(&self) -> u8 {
        match self.signed {
            // The sign is the bit above the largest code, also where that code is NaN or infinity.
            true => (self.largest | self.infinity.unwrap_or(0) | 1).next_power_of_two(),
            false => 0,
        }
    }

    /// The magnitude of a finite code without its sign. Exact.
    fn magnitude(&self, code: u8) -> f64 {
        let exponent = i32::from(code >> self.mantissa_bits);
        let mantissa = f64::from(code & ((1 << self.mantissa_bits) - 1)) / f64::from(1u32 << self.mantissa_bits);
        match self.subnormals && exponent == 0 {
            true => mantissa * 2f64.powi(1 - self.bias),
            false => (1.0 + mantissa) * 2f64.powi(exponent - self.bias),
        }
    }
}

/// The number that `code` stands for; `None` where `dtype` is not a float of at most 8 bits. Exact.
pub(super) fn decode(dtype: DType, code: u8) -> Option<f32> {
    let layout = layout(dtype)?;
    let sign_bit = layout.sign_bit();
    let (negative, magnitude) = (code & sign_bit != 0, code & !sign_bit);
    let value = match magnitude {
        // The types without a negative zero keep their only NaN in its place.
        _ if layout.nan == Some(code) && !layout.negative_zero => f64::NAN,
        _ if magnitude <= layout.largest => layout.magnitude(magnitude),
        _ if layout.infinity == Some(magnitude) => f64::INFINITY,
        _ => f64::NAN,
    };
    Some(if negative { -value as f32 } else { value as f32 })
}

/// The code of the number nearest to `value`; `None` where there is none: too large, infinite or NaN in a type that has
/// no such value, below the smallest power of two in `FP8E8M0`, or `dtype` is not a float of at most 8 bits.
pub(super) fn encode(dtype: DType, value: f64) -> Option<u8> {
    let layout = layout(dtype)?;
    if value.is_nan() {
        return layout.nan;
    }
    let sign_bit = layout.sign_bit();
    let sign = if value.is_sign_negative() { sign_bit } else { 0 };
    let magnitude = value.abs();
    if value.is_sign_negative() && !layout.signed {
        return None;
    }
    if magnitude.is_infinite() {
        return layout.infinity.map(|code| code | sign);
    }
    if magnitude > layout.magnitude(layout.largest) || magnitude < layout.magnitude(0) {
        return None;
    }
    // The first code above the value; codes count up with their magnitude.
    let (mut low, mut high) = (0u8, layout.largest);
    while low < high {
        let middle = low + (high - low) / 2;
        match layout.magnitude(middle) < magnitude {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    // Neighbours differ in one short mantissa, so their mean is exact.
    let code = match low.checked_sub(1) {
        None => low,
        Some(below) => {
            let middle = (layout.magnitude(below) + layout.magnitude(low)) / 2.0;
            let nearer_below = magnitude < middle || (magnitude == middle && below % 2 == 0);
            if nearer_below { below } else { low }
        }
    };
    Some(if code == 0 && !layout.negative_zero { 0 } else { code | sign })
}

/// The finite range of a float type, for error texts.
pub(super) fn range(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::Fp16 => (f64::from(half::f16::MIN), f64::from(half::f16::MAX)),
        DType::Bf16 => (f64::from(half::bf16::MIN), f64::from(half::bf16::MAX)),
        DType::Fp32 => (f64::from(f32::MIN), f64::from(f32::MAX)),
        _ => match layout(dtype) {
            Some(layout) if layout.signed => (-layout.magnitude(layout.largest), layout.magnitude(layout.largest)),
            Some(layout) => (layout.magnitude(0), layout.magnitude(layout.largest)),
            None => (f64::MIN, f64::MAX),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: [DType; 6] =
        [DType::Fp8E4M3Fn, DType::Fp8E4M3FnUz, DType::Fp8E5M2, DType::Fp8E5M2FnUz, DType::Fp8E8M0, DType::Fp4E2M1];

    #[test]
    fn every_code_survives_the_round_trip() {
        for dtype in SMALL {
            for code in 0..=(if dtype == DType::Fp4E2M1 { 15u8 } else { 255 }) {
                let value = decode(dtype, code).unwrap();
                let back = encode(dtype, f64::from(value)).unwrap();
                match value.is_nan() {
                    true => assert!(decode(dtype, back).unwrap().is_nan(), "{dtype} {code:#x}"),
                    false => assert_eq!(back, code, "{dtype} {value}"),
                }
            }
        }
    }

    #[test]
    fn known_codes_have_the_values_of_their_specification() {
        #[track_caller]
        fn check(dtype: DType, code: u8, value: f32) {
            assert_eq!(decode(dtype, code), Some(value), "{dtype} {code:#x}");
        }
        check(DType::Fp8E4M3Fn, 0x38, 1.0);
        check(DType::Fp8E4M3Fn, 0x7e, 448.0);
        check(DType::Fp8E4M3Fn, 0x01, 2f32.powi(-9));
        check(DType::Fp8E4M3Fn, 0xb8, -1.0);
        check(DType::Fp8E4M3FnUz, 0x40, 1.0);
        check(DType::Fp8E4M3FnUz, 0x7f, 240.0);
        check(DType::Fp8E5M2, 0x3c, 1.0);
        check(DType::Fp8E5M2, 0x7b, 57344.0);
        check(DType::Fp8E5M2, 0xfc, f32::NEG_INFINITY);
        check(DType::Fp8E5M2FnUz, 0x7f, 57344.0);
        check(DType::Fp8E8M0, 0x7f, 1.0);
        check(DType::Fp8E8M0, 0x00, 2f32.powi(-127));
        check(DType::Fp4E2M1, 0x7, 6.0);
        check(DType::Fp4E2M1, 0x9, -0.5);
        assert!(decode(DType::Fp8E4M3FnUz, 0x80).unwrap().is_nan());
        assert!(decode(DType::Fp8E8M0, 0xff).unwrap().is_nan());
        assert_eq!(decode(DType::Fp32, 0), None);
    }

    #[test]
    fn values_round_to_the_nearest_and_ties_to_even() {
        #[track_caller]
        fn check(dtype: DType, value: f64, expected: Option<f32>) {
            assert_eq!(encode(dtype, value).and_then(|code| decode(dtype, code)), expected, "{dtype} {value}");
        }
        check(DType::Fp4E2M1, 0.25, Some(0.0));
        check(DType::Fp4E2M1, 0.26, Some(0.5));
        check(DType::Fp4E2M1, 5.0, Some(4.0));
        check(DType::Fp4E2M1, 5.1, Some(6.0));
        check(DType::Fp4E2M1, 6.1, None);
        check(DType::Fp4E2M1, f64::NAN, None);
        check(DType::Fp4E2M1, f64::INFINITY, None);
        check(DType::Fp8E4M3Fn, 449.0, None);
        check(DType::Fp8E4M3Fn, 1.0625, Some(1.0));
        check(DType::Fp8E4M3Fn, 1.1875, Some(1.25));
        check(DType::Fp8E5M2, f64::INFINITY, Some(f32::INFINITY));
        check(DType::Fp8E8M0, 0.0, None);
        check(DType::Fp8E8M0, -1.0, None);
        check(DType::Fp8E8M0, 3.1, Some(4.0));
        assert_eq!(encode(DType::Fp8E4M3Fn, -0.0), Some(0x80));
        assert_eq!(encode(DType::Fp8E4M3FnUz, -0.0), Some(0));
        assert_eq!(encode(DType::Fp8E5M2FnUz, -1e-30), Some(0));
    }

    #[test]
    fn half_floats_are_rounded_once() {
        // Just above the middle of two FP16 numbers; rounding to f32 first would land on the middle and go down.
        let middle = 1.0 + 2f64.powi(-11);
        assert_eq!(to_f16(middle).to_f64(), 1.0);
        assert_eq!(to_f16(middle + 2f64.powi(-40)).to_f64(), 1.0 + 2f64.powi(-10));
        assert_eq!(to_f16(-middle - 2f64.powi(-40)).to_f64(), -1.0 - 2f64.powi(-10));
        assert_eq!(to_bf16(1.0 + 2f64.powi(-8) + 2f64.powi(-40)).to_f64(), 1.0 + 2f64.powi(-7));
        assert_eq!(to_f16(65504.0).to_f64(), 65504.0);
        assert!(to_f16(65520.0).is_infinite());
        assert!(to_f16(1e300).is_infinite() && to_bf16(-1e300).is_infinite());
        assert_eq!(to_f16(0.1).to_bits(), 0x2e66);
    }
}

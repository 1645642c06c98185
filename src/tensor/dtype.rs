//! Element types of ONNX tensors, with the names of the Open Inference Protocol.
//!
//! Names of the types that the protocol does not have (4-bit, 2-bit and 8-bit floats) follow its pattern.

use std::fmt;

/// The type of one tensor element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// UTF-8 text, `BYTES` on the wire.
    String,
    /// Packed, two elements a byte, the first in the low nibble.
    Int4,
    /// Packed, two elements a byte, the first in the low nibble.
    Uint4,
    /// Packed, four elements a byte, the first in the lowest bits.
    Int2,
    /// Packed, four elements a byte, the first in the lowest bits.
    Uint2,
    /// Packed, two elements a byte, the first in the low nibble.
    Fp4E2M1,
    Fp8E4M3Fn,
    Fp8E4M3FnUz,
    Fp8E5M2,
    Fp8E5M2FnUz,
    Fp8E8M0,
}

/// One row for each type: (type, name in the protocol, name in NumPy or `ml_dtypes`, bits of one element).
const TABLE: [(DType, &str, &str, usize); 24] = [
    (DType::Bool, "BOOL", "bool", 8),
    (DType::Uint8, "UINT8", "uint8", 8),
    (DType::Uint16, "UINT16", "uint16", 16),
    (DType::Uint32, "UINT32", "uint32", 32),
    (DType::Uint64, "UINT64", "uint64", 64),
    (DType::Int8, "INT8", "int8", 8),
    (DType::Int16, "INT16", "int16", 16),
    (DType::Int32, "INT32", "int32", 32),
    (DType::Int64, "INT64", "int64", 64),
    (DType::Fp16, "FP16", "float16", 16),
    (DType::Bf16, "BF16", "bfloat16", 16),
    (DType::Fp32, "FP32", "float32", 32),
    (DType::Fp64, "FP64", "float64", 64),
    (DType::String, "BYTES", "object", 0),
    (DType::Int4, "INT4", "int4", 4),
    (DType::Uint4, "UINT4", "uint4", 4),
    (DType::Int2, "INT2", "int2", 2),
    (DType::Uint2, "UINT2", "uint2", 2),
    (DType::Fp4E2M1, "FP4E2M1", "float4_e2m1fn", 4),
    (DType::Fp8E4M3Fn, "FP8E4M3FN", "float8_e4m3fn", 8),
    (DType::Fp8E4M3FnUz, "FP8E4M3FNUZ", "float8_e4m3fnuz", 8),
    (DType::Fp8E5M2, "FP8E5M2", "float8_e5m2", 8),
    (DType::Fp8E5M2FnUz, "FP8E5M2FNUZ", "float8_e5m2fnuz", 8),
    (DType::Fp8E8M0, "FP8E8M0", "float8_e8m0fnu", 8),
];

impl DType {
    #[expect(clippy::indexing_slicing, reason = "the table has a row for every type; a test holds it to that")]
    fn row(self) -> &'static (DType, &'static str, &'static str, usize) {
        // The table is in declaration order.
        &TABLE[self as usize]
    }

    /// The protocol's name, such as `FP32`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// NumPy's name, such as `float32`.
    pub fn numpy_name(self) -> &'static str {
        self.row().2
    }

    /// Reads the protocol's name or NumPy's; `None` for any other text.
    pub fn parse(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name || row.2 == name).map(|row| row.0).or(match name {
            "string" | "str" | "STRING" => Some(DType::String),
            _ => None,
        })
    }

    /// Bits of one element; 0 for strings, whose length varies.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// Bytes of one element where elements are whole bytes: `None` for strings and packed types.
    pub fn size(self) -> Option<usize> {
        match self.bits() {
            0 | 2 | 4 => None,
            bits => Some(bits / 8),
        }
    }

    /// Whether JSON numbers of this type may have a fraction or be non-finite.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            DType::Fp16
                | DType::Bf16
                | DType::Fp32
                | DType::Fp64
                | DType::Fp4E2M1
                | DType::Fp8E4M3Fn
                | DType::Fp8E4M3FnUz
                | DType::Fp8E5M2
                | DType::Fp8E5M2FnUz
                | DType::Fp8E8M0
        )
    }

    /// Every type, in declaration order.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_order() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.1);
        }
    }

    #[test]
    fn both_names_are_read_back() {
        for dtype in DType::all() {
            assert_eq!(DType::parse(dtype.name()), Some(dtype));
            assert_eq!(DType::parse(dtype.numpy_name()), Some(dtype));
        }
        assert_eq!(DType::parse("FP33"), None);
    }
}

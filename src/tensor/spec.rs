//! What a graph declares about an input or output, and the check of a value against it.

use super::dtype::DType;
use super::value::{Tensor, Value};
use std::fmt;

/// A named input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub name: String,
    pub ty: ValueType,
    /// Whether a request may leave it out: the graph has a default for it, or it is an optional value.
    pub optional: bool,
}

/// The declared type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueType {
    /// `shape` is `None` where the graph does not even state a rank.
    Tensor {
        dtype: DType,
        shape: Option<Vec<Dim>>,
    },
    Sequence(Box<ValueType>),
    Map {
        key: DType,
        value: DType,
    },
    Optional(Box<ValueType>),
}

/// One declared dimension.
#[derive(Debug, Clone, PartialEq)]
pub enum Dim {
    Fixed(usize),
    /// Any size; the name, where the graph gives one.
    Dynamic(Option<String>),
}

/// How a value differs from what its input takes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Mismatch {
    #[error("expected datatype {expected}, got {got}")]
    DType { expected: DType, got: DType },
    #[error("expected rank {}, shape {}, got rank {}, shape {got:?}", .expected.len(), ShapeText(.expected), .got.len())]
    Rank { expected: Vec<Dim>, got: Vec<usize> },
    #[error("expected shape {}, got {got:?} (dimension {axis} must be {fixed})", ShapeText(.expected))]
    Dim { expected: Vec<Dim>, got: Vec<usize>, axis: usize, fixed: usize },
    #[error("expected {expected}, got {got}")]
    Kind { expected: String, got: &'static str },
}

/// A declared shape as text: `[N, 3, -1]`.
struct ShapeText<'a>(&'a [Dim]);

impl ValueType {
    /// Whether `value` may be given to an input of this type.
    ///
    /// # Errors
    /// The first difference found.
    pub fn check(&self, value: &Value) -> Result<(), Mismatch> {
        match (self, value) {
            (ValueType::Tensor { dtype, shape }, Value::Tensor(tensor)) => {
                check_tensor(*dtype, shape.as_deref(), tensor)
            }
            (ValueType::Sequence(element), Value::Sequence(items)) => {
                items.iter().try_for_each(|item| element.check(item))
            }
            (ValueType::Map { key, value }, Value::Map { keys, values }) => {
                check_tensor(*key, None, keys)?;
                check_tensor(*value, None, values)
            }
            (ValueType::Optional(_), Value::None) => Ok(()),
            (ValueType::Optional(inner), value) => inner.check(value),
            (_, value) => Err(Mismatch::Kind { expected: self.to_string(), got: kind_of(value) }),
        }
    }

    /// The element type of a tensor; `None` for other kinds.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            ValueType::Tensor { dtype, .. } => Some(*dtype),
            ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_) => None,
        }
    }

    /// The declared shape of a tensor; `None` for other kinds and where no rank is declared.
    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            ValueType::Tensor { shape, .. } => shape.as_deref(),
            ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_) => None,
        }
    }
}

fn check_tensor(dtype: DType, shape: Option<&[Dim]>, tensor: &Tensor) -> Result<(), Mismatch> {
    if tensor.dtype() != dtype {
        return Err(Mismatch::DType { expected: dtype, got: tensor.dtype() });
    }
    let Some(dims) = shape else { return Ok(()) };
    let got = tensor.shape();
    if dims.len() != got.len() {
        return Err(Mismatch::Rank { expected: dims.to_vec(), got: got.to_vec() });
    }
    for (axis, (dim, &size)) in dims.iter().zip(got).enumerate() {
        if let Dim::Fixed(fixed) = *dim
            && fixed != size
        {
            return Err(Mismatch::Dim { expected: dims.to_vec(), got: got.to_vec(), axis, fixed });
        }
    }
    Ok(())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Tensor(_) => "a tensor",
        Value::Sequence(_) => "a sequence",
        Value::Map { .. } => "a map",
        Value::None => "nothing",
    }
}

impl Dim {
    /// The size in the protocol's form: -1 for a dynamic dimension.
    pub fn to_wire(&self) -> i64 {
        match self {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
            Dim::Dynamic(_) => -1,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(size) => size.fmt(f),
            Dim::Dynamic(Some(name)) if !name.is_empty() => f.write_str(name),
            Dim::Dynamic(_) => f.write_str("-1"),
        }
    }
}

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            dim.fmt(f)?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor { dtype, shape: Some(dims) } => write!(f, "{dtype}{}", ShapeText(dims)),
            ValueType::Tensor { dtype, shape: None } => write!(f, "{dtype}[...]"),
            ValueType::Sequence(element) => write!(f, "sequence({element})"),
            ValueType::Map { key, value } => write!(f, "map({key} to {value})"),
            ValueType::Optional(inner) => write!(f, "optional({inner})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(dims: &[Dim], shape: &[usize], expected: &str) {
        let count: usize = shape.iter().product();
        let tensor = Tensor::from_vec(DType::Fp32, shape.to_vec(), vec![0f32; count]).unwrap();
        let ty = ValueType::Tensor { dtype: DType::Fp32, shape: Some(dims.to_vec()) };
        let got = ty.check(&tensor.into()).map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(got, expected);
    }

    #[test]
    fn a_mismatch_says_what_was_expected_and_what_came() {
        let dims = [Dim::Dynamic(Some("N".into())), Dim::Fixed(3)];
        check(&dims, &[7, 3], "");
        check(&dims, &[0, 3], "");
        check(&dims, &[7, 4], "expected shape [N, 3], got [7, 4] (dimension 1 must be 3)");
        check(&dims, &[3], "expected rank 2, shape [N, 3], got rank 1, shape [3]");
        check(&[], &[1], "expected rank 0, shape [], got rank 1, shape [1]");
    }

    #[test]
    fn an_optional_takes_nothing_or_its_content() {
        let inner = ValueType::Tensor { dtype: DType::Fp32, shape: None };
        let optional = ValueType::Optional(Box::new(inner));
        assert!(optional.check(&Value::None).is_ok());
        let tensor = Tensor::from_vec(DType::Fp32, vec![1], vec![1f32]).unwrap();
        assert!(optional.check(&tensor.into()).is_ok());
        assert!(optional.check(&Value::Sequence(vec![])).is_err());
    }
}

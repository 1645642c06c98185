//! The vocabulary of the house: element types, shapes, tensors and the values a graph takes and gives.
//!
//! Ground floor: knows no runtime, no protocol and no model. Bytes are little-endian and row-major, as in ONNX,
//! in the Open Inference Protocol and in NumPy's `C` order.

mod dtype;
mod spec;
mod value;

pub use dtype::DType;
pub use spec::{Dim, Mismatch, Spec, ValueType};
pub use value::{Data, Tensor, TensorError, Value, byte_len, element_count};

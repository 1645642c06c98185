//! What values weigh in memory, and copies of them that hold nothing else in memory.
//!
//! A tensor is often a window into something larger: the outputs of a whole batch, a request's body, a buffer of ONNX
//! Runtime's arena. Kept as it is it would keep all of that.

use crate::tensor::{Data, Tensor, Value};
use bytes::Bytes;

/// A string's own fields besides its text.
const STRING: usize = size_of::<String>();

/// Bytes of a value's elements, names and shapes left out.
pub fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => elements_bytes(tensor),
        Value::Sequence(values) => values.iter().map(|value| value_bytes(value) + size_of::<Value>()).sum(),
        Value::Map { keys, values } => elements_bytes(keys) + elements_bytes(values),
        Value::None => 0,
    }
}

/// Bytes of a named tensor, everything counted.
pub(super) fn tensor_bytes(name: &str, tensor: &Tensor) -> usize {
    STRING + name.len() + size_of::<Tensor>() + size_of_val(tensor.shape()) + elements_bytes(tensor)
}

/// Bytes of a named value, everything counted but the shapes inside sequences.
pub(super) fn named_bytes(name: &str, value: &Value) -> usize {
    let shape = value.as_tensor().map_or(0, |tensor| size_of_val(tensor.shape()));
    STRING + name.len() + size_of::<Value>() + shape + value_bytes(value)
}

fn elements_bytes(tensor: &Tensor) -> usize {
    match tensor.data() {
        Data::Bytes(bytes) => bytes.len(),
        Data::Strings(strings) => strings.iter().map(|text| STRING + text.len()).sum(),
    }
}

/// The same tensor in memory of its own.
pub(super) fn own_tensor(tensor: &Tensor) -> Tensor {
    match tensor.data() {
        Data::Bytes(bytes) => {
            Tensor::from_bytes(tensor.dtype(), tensor.shape().to_vec(), Bytes::copy_from_slice(bytes))
                // What was a tensor before is one again.
                .unwrap_or_else(|_| tensor.clone())
        }
        // Never a window: strings are made one by one.
        Data::Strings(_) => tensor.clone(),
    }
}

/// The same value in memory of its own.
pub(super) fn own_value(value: &Value) -> Value {
    match value {
        Value::Tensor(tensor) => own_tensor(tensor).into(),
        Value::Sequence(values) => Value::Sequence(values.iter().map(own_value).collect()),
        Value::Map { keys, values } => Value::Map { keys: own_tensor(keys), values: own_tensor(values) },
        Value::None => Value::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_kept_window_does_not_keep_what_it_looks_into() {
        struct Arena(Vec<u8>, #[expect(dead_code, reason = "dropped with the bytes")] std::sync::Arc<()>);
        impl AsRef<[u8]> for Arena {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let alive = std::sync::Arc::new(());
        let whole = Bytes::from_owner(Arena(vec![7; 4096], alive.clone()));
        let window = Tensor::from_bytes(DType::Uint8, vec![1, 16], whole.slice(32..48)).unwrap();
        drop(whole);
        let own = own_tensor(&window);
        drop(window);
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
        assert_eq!((own.bytes(), own.shape()), ([7; 16].as_slice(), [1, 16].as_slice()));
    }

    #[test]
    fn strings_weigh_their_texts() {
        let texts = vec!["a".repeat(1000), String::new()];
        let tensor = Tensor::from_strings(vec![2], texts).unwrap();
        assert!(tensor_bytes("x", &tensor) > 1000);
        assert!(value_bytes(&Value::Sequence(vec![tensor.clone().into(), Value::None])) > 1000);
        assert!(value_bytes(&Value::Map { keys: tensor.clone(), values: tensor }) > 2000);
    }
}

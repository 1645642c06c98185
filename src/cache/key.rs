//! Turns a request into 128 bits that no other request has.
//!
//! Every part is written with a tag and its length, so that two requests that differ anywhere write different bytes; what
//! means the same (the order of a request's inputs, the order of parameters) is written alike. The hash is BLAKE3 with a
//! secret of the loaded model: whoever could find two requests of one key would get one client's answer given to another,
//! and fast hashes such as xxh3 are made without that in mind: pairs that collide under them can be written down. Without
//! the secret not even the 2⁶⁴ tries that any 128 bits allow can be made in advance.

use crate::pipelines::{Item, Parameters};
use crate::tensor::{Data, Tensor, Value};
use serde_json::Value as Json;

/// A request, as 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u128);

/// What of an item's run is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Predictions,
    /// The graph's outputs.
    Outputs,
}

/// Makes the keys of one loaded model. Keys of different makers have nothing in common.
pub struct KeyMaker {
    secret: [u8; 32],
}

impl std::fmt::Debug for KeyMaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyMaker").finish_non_exhaustive()
    }
}

impl Default for KeyMaker {
    fn default() -> KeyMaker {
        KeyMaker::new()
    }
}

impl KeyMaker {
    /// A maker with a fresh secret.
    pub fn new() -> KeyMaker {
        // Two random identifiers hold 244 random bits.
        let mut secret = [0; 32];
        let (first, second) = secret.split_at_mut(16);
        first.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        second.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        KeyMaker { secret }
    }

    /// Of a run on tensors: the `inputs` in any order, the `outputs` in the order wanted.
    pub fn tensors(&self, inputs: &[(String, Value)], outputs: &[String]) -> Key {
        let mut writer = self.writer(0);
        let mut sorted: Vec<&(String, Value)> = inputs.iter().collect();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        writer.count(sorted.len());
        for (name, value) in sorted {
            writer.bytes(name.as_bytes());
            writer.value(value);
        }
        writer.count(outputs.len());
        outputs.iter().for_each(|name| writer.bytes(name.as_bytes()));
        writer.key()
    }

    /// Of a prediction for `items`.
    pub fn items(&self, items: &[Item], parameters: &Parameters, wanted: Wanted) -> Key {
        let mut writer = self.writer(match wanted {
            Wanted::Predictions => 1,
            Wanted::Outputs => 2,
        });
        writer.count(items.len());
        items.iter().for_each(|item| writer.item(item));
        writer.object(parameters.iter());
        writer.key()
    }

    /// Of the preprocessing of one item, with the `parameters` that bear on it.
    pub fn item<'a>(&self, item: &Item, parameters: impl Iterator<Item = (&'a String, &'a Json)>) -> Key {
        let mut writer = self.writer(3);
        writer.item(item);
        writer.object(parameters);
        writer.key()
    }

    fn writer(&self, kind: u8) -> Writer {
        let mut writer = Writer(blake3::Hasher::new_keyed(&self.secret));
        writer.tag(kind);
        writer
    }
}

/// Writes into the hash, each part so that its end is known.
struct Writer(blake3::Hasher);

impl Writer {
    fn tag(&mut self, tag: u8) {
        self.0.update(&[tag]);
    }

    fn count(&mut self, count: usize) {
        self.0.update(&(count as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Tensor(tensor) => {
                self.tag(0);
                self.tensor(tensor);
            }
            Value::Sequence(values) => {
                self.tag(1);
                self.count(values.len());
                values.iter().for_each(|value| self.value(value));
            }
            Value::Map { keys, values } => {
                self.tag(2);
                self.tensor(keys);
                self.tensor(values);
            }
            Value::None => self.tag(3),
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.tag(tensor.dtype() as u8);
        self.count(tensor.shape().len());
        tensor.shape().iter().for_each(|&dim| self.count(dim));
        match tensor.data() {
            Data::Bytes(bytes) => {
                self.tag(0);
                self.bytes(bytes);
            }
            Data::Strings(strings) => {
                self.tag(1);
                self.count(strings.len());
                strings.iter().for_each(|text| self.bytes(text.as_bytes()));
            }
        }
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Bytes(bytes) => {
                self.tag(0);
                self.bytes(bytes);
            }
            Item::Text(text) => {
                self.tag(1);
                self.bytes(text.as_bytes());
            }
            Item::Pair { text, text_pair } => {
                self.tag(2);
                self.bytes(text.as_bytes());
                self.bytes(text_pair.as_bytes());
            }
            Item::Question { question, context } => {
                self.tag(3);
                self.bytes(question.as_bytes());
                self.bytes(context.as_bytes());
            }
            Item::Record(record) => {
                self.tag(4);
                self.object(record.iter());
            }
        }
    }

    fn object<'a>(&mut self, members: impl Iterator<Item = (&'a String, &'a Json)>) {
        let mut members: Vec<(&String, &Json)> = members.collect();
        members.sort_by_key(|(name, _)| *name);
        self.count(members.len());
        for (name, value) in members {
            self.bytes(name.as_bytes());
            self.json(value);
        }
    }

    fn json(&mut self, value: &Json) {
        match value {
            Json::Null => self.tag(0),
            Json::Bool(false) => self.tag(1),
            Json::Bool(true) => self.tag(2),
            Json::Number(number) => {
                self.tag(3);
                self.bytes(number.to_string().as_bytes());
            }
            Json::String(text) => {
                self.tag(4);
                self.bytes(text.as_bytes());
            }
            Json::Array(values) => {
                self.tag(5);
                self.count(values.len());
                values.iter().for_each(|value| self.json(value));
            }
            Json::Object(members) => {
                self.tag(6);
                self.object(members.iter());
            }
        }
    }

    fn key(self) -> Key {
        let mut half = [0; 16];
        self.0.finalize_xof().fill(&mut half);
        Key(u128::from_le_bytes(half))
    }
}

#[cfg(test)]
impl Key {
    /// A key for tests of what is kept under keys.
    pub(super) fn of(number: u128) -> Key {
        Key(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::json;

    type Inputs = Vec<(String, Value)>;

    fn maker() -> KeyMaker {
        KeyMaker { secret: [7; 32] }
    }

    fn floats(shape: &[usize], data: &[f32]) -> Value {
        Tensor::from_vec(DType::Fp32, shape.to_vec(), data.to_vec()).unwrap().into()
    }

    fn texts(shape: &[usize], texts: &[&str]) -> Value {
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        Tensor::from_strings(shape.to_vec(), texts).unwrap().into()
    }

    fn bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Value {
        Tensor::from_bytes(dtype, shape.to_vec(), bytes.to_vec()).unwrap().into()
    }

    fn parameters(value: Json) -> Parameters {
        let Json::Object(parameters) = value else { panic!("not an object") };
        parameters
    }

    /// No two of these tensor requests have one key.
    #[test]
    fn tensor_requests_that_differ_anywhere_have_different_keys() {
        let named = |name: &str, value: Value| vec![(name.to_owned(), value)];
        let both = |a: Value, b: Value| vec![("x".to_owned(), a), ("y".to_owned(), b)];
        let none: &[&str] = &[];
        let requests: Vec<(Inputs, &[&str])> = vec![
            (vec![], none),
            (vec![], &[""]),
            (named("x", floats(&[2], &[1.0, 2.0])), none),
            (named("y", floats(&[2], &[1.0, 2.0])), none),
            (named("x", floats(&[2], &[2.0, 1.0])), none),
            (named("x", floats(&[1, 2], &[1.0, 2.0])), none),
            (named("x", floats(&[2, 1], &[1.0, 2.0])), none),
            (named("x", floats(&[2], &[1.0, 2.0])), &["a"]),
            (named("x", floats(&[2], &[1.0, 2.0])), &["a", "b"]),
            (named("x", floats(&[2], &[1.0, 2.0])), &["b", "a"]),
            (named("x", floats(&[2], &[1.0, 2.0])), &["ab"]),
            (named("x", floats(&[1], &[0.0])), none),
            (named("x", floats(&[1], &[-0.0])), none),
            (named("x", floats(&[], &[0.0])), none),
            (named("x", bytes(DType::Int32, &[1], &[0; 4])), none),
            (named("x", bytes(DType::Uint8, &[4], &[0; 4])), none),
            (named("x", bytes(DType::Int8, &[4], &[0; 4])), none),
            (named("x", bytes(DType::Uint8, &[0], &[])), none),
            (named("x", bytes(DType::Uint8, &[0, 3], &[])), none),
            (named("x", texts(&[2], &["ab", ""])), none),
            (named("x", texts(&[2], &["a", "b"])), none),
            (named("x", texts(&[2], &["", "ab"])), none),
            (named("x", texts(&[1], &["ab"])), none),
            (named("x", Value::None), none),
            (named("x", Value::Sequence(vec![])), none),
            (named("x", Value::Sequence(vec![Value::None])), none),
            (named("x", Value::Sequence(vec![Value::Sequence(vec![])])), none),
            (named("x", Value::Sequence(vec![Value::Sequence(vec![]), Value::None])), none),
            (named("x", Value::Sequence(vec![Value::Sequence(vec![Value::None])])), none),
            (both(floats(&[1], &[1.0]), floats(&[1], &[2.0])), none),
            (both(floats(&[1], &[2.0]), floats(&[1], &[1.0])), none),
        ];
        let keys: Vec<Key> = requests
            .iter()
            .map(|(inputs, outputs)| {
                let outputs: Vec<String> = outputs.iter().map(|name| (*name).to_owned()).collect();
                maker().tensors(inputs, &outputs)
            })
            .collect();
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(index), "{:?}", requests[index]);
        }
    }

    /// No two of these item requests have one key.
    #[test]
    fn item_requests_that_differ_anywhere_have_different_keys() {
        let picture = |bytes: &[u8]| Item::Bytes(Bytes::copy_from_slice(bytes));
        let text = |text: &str| Item::Text(text.to_owned());
        let mut requests = vec![
            (vec![], json!({})),
            (vec![text("")], json!({})),
            (vec![text("ab")], json!({})),
            (vec![picture(b"ab")], json!({})),
            (vec![text("a"), text("b")], json!({})),
            (vec![text("b"), text("a")], json!({})),
            (vec![text("ab"), text("")], json!({})),
        ];
        let parameters_of = [
            json!({"k": null}),
            json!({"k": false}),
            json!({"k": true}),
            json!({"k": 1}),
            json!({"k": 1.0}),
            json!({"k": -1}),
            json!({"k": 0.0}),
            json!({"k": -0.0}),
            json!({"k": "1"}),
            json!({"k": ["1"]}),
            json!({"k": ["1", []]}),
            json!({"k": [["1"], []]}),
            json!({"k": [["1", []]]}),
            json!({"k": {}}),
            json!({"k": {"k": 1}}),
            json!({"k": {"k": 1}, "l": 2}),
            json!({"k": {"k": 1, "l": 2}}),
            json!({"l": 1}),
        ];
        requests.extend(parameters_of.into_iter().map(|parameters| (vec![text("ab")], parameters)));
        let mut keys = Vec::new();
        for (items, given) in &requests {
            for wanted in [Wanted::Predictions, Wanted::Outputs] {
                keys.push(maker().items(items, &parameters(given.clone()), wanted));
            }
            if let [item] = items.as_slice() {
                keys.push(maker().item(item, parameters(given.clone()).iter()));
            }
        }
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(index));
        }
    }

    #[test]
    fn what_means_the_same_has_one_key() {
        let (a, b) = (("a".to_owned(), floats(&[1], &[1.0])), ("b".to_owned(), Value::None));
        assert_eq!(maker().tensors(&[a.clone(), b.clone()], &[]), maker().tensors(&[b, a], &[]));
        let of = |given: &str| {
            let given = parameters(serde_json::from_str(given).unwrap());
            maker().items(&[Item::Text("x".into())], &given, Wanted::Predictions)
        };
        assert_eq!(of(r#"{"a": 1, "b": {"c": [1], "d": 2}}"#), of(r#"{"b": {"d": 2, "c": [1]}, "a": 1}"#));
        assert_ne!(of(r#"{"a": [1, 2]}"#), of(r#"{"a": [2, 1]}"#));
    }

    #[test]
    fn keys_of_two_loads_have_nothing_in_common() {
        let item = [Item::Text("x".into())];
        let key = |maker: &KeyMaker| maker.items(&item, &Parameters::new(), Wanted::Predictions);
        let (first, second) = (KeyMaker::new(), KeyMaker::new());
        assert_eq!(key(&first), key(&first));
        assert_ne!(key(&first), key(&second));
    }

    fn tensors() -> impl Strategy<Value = Value> {
        let small = 0usize..3;
        let texts = vec("[ab]{0,2}", 0..4).prop_map(|texts| Tensor::from_strings(vec![texts.len()], texts).unwrap());
        let bytes =
            (vec(small, 0..3), prop_oneof![Just(DType::Uint8), Just(DType::Int8), Just(DType::Bool)], any::<bool>())
                .prop_map(|(shape, dtype, fill)| {
                    let count = shape.iter().product();
                    Tensor::from_bytes(dtype, shape, vec![u8::from(fill); count]).unwrap()
                });
        prop_oneof![texts, bytes].prop_map(Value::from)
    }

    fn values() -> impl Strategy<Value = Value> {
        prop_oneof![tensors(), Just(Value::None)]
            .prop_recursive(2, 6, 3, |inner| vec(inner, 0..3).prop_map(Value::Sequence))
    }

    type Call = (Inputs, Vec<String>);

    fn calls() -> impl Strategy<Value = Call> {
        (proptest::collection::btree_map("[xy]{0,2}", values(), 0..3), vec("[xy]{0,2}", 0..3))
            .prop_map(|(inputs, outputs)| (inputs.into_iter().collect(), outputs))
    }

    proptest! {
        /// Small requests over a small alphabet, so that pairs are often nearly equal.
        #[test]
        fn requests_have_one_key_where_and_only_where_they_are_equal(a in calls(), b in calls()) {
            // The debug form shows types, shapes and elements, with quotes and commas: equal where the requests are.
            let equal = format!("{a:?}") == format!("{b:?}");
            prop_assert_eq!(maker().tensors(&a.0, &a.1) == maker().tensors(&b.0, &b.1), equal);
            let mut turned = a.0.clone();
            turned.reverse();
            prop_assert_eq!(maker().tensors(&a.0, &a.1), maker().tensors(&turned, &a.1));
        }
    }
}

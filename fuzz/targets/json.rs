//! JSON bodies of predictions, the native and the foreign ones, for a model of tensors, one of items and one of records.
#![no_main]

use bytes::Bytes;
use ortus::codec::json::{JsonLimits, Target, parse_instances, parse_predict};
use ortus::tensor::{DType, Dim, Spec, ValueType};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let spec = |name: &str, dtype| {
        let shape = Some(vec![Dim::Dynamic(None), Dim::Fixed(2)]);
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype, shape }, optional: false }
    };
    let inputs = [spec("x", DType::Fp32), spec("s", DType::String), spec("h", DType::Bf16)];
    let limits = JsonLimits { max_depth: 16, max_elements: 1 << 12, max_items: 16 };
    let bytes = Bytes::copy_from_slice(data);
    for (task, records) in [(false, false), (true, false), (true, true)] {
        let target = Target { inputs: &inputs, task, records };
        let _ = parse_predict(&bytes, &target, &limits);
        let _ = parse_instances(&bytes, &target, task, &limits);
    }
});

//! Inference requests of the Open Inference Protocol: a gRPC message, and a body over REST whose JSON part ends where its first two
//! bytes say, with tensors behind it.
#![no_main]

use bytes::Bytes;
use ortus::codec::json::{JsonLimits, parse_v2};
use ortus::tensor::{DType, Dim, Spec, ValueType};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ortus::grpc::fuzz_infer_request(data);
    let spec = |name: &str, dtype| {
        let shape = Some(vec![Dim::Dynamic(None)]);
        Spec { name: name.to_owned(), ty: ValueType::Tensor { dtype, shape }, optional: false }
    };
    let inputs = [spec("x", DType::Fp32), spec("t", DType::String)];
    let limits = JsonLimits { max_depth: 16, max_elements: 1 << 12, max_items: 16 };
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    let (length, body) = (usize::from(u16::from_le_bytes(*length)), Bytes::copy_from_slice(body));
    for (length, inputs) in [(Some(length), &inputs[..]), (None, &inputs), (Some(0), &inputs[..1]), (Some(0), &inputs[1..])] {
        if let Ok(request) = parse_v2(&body, length, inputs, &limits) {
            assert!(request.inputs.len() <= inputs.len());
        }
    }
});

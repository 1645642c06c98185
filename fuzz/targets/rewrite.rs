//! ONNX graphs that are brought into other forms.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ortus::rewrite::rewrite_bytes(data));

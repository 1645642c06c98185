//! safetensors bodies.
#![no_main]

use bytes::Bytes;
use ortus::codec::safetensors;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = safetensors::read(&Bytes::copy_from_slice(data), 1 << 16);
});

//! `.npy` and `.npz` bodies.
#![no_main]

use bytes::Bytes;
use ortus::codec::npy;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(tensor) = npy::read("x", &bytes, 1 << 16) {
        // What was read can be written, and is read again as the same.
        if let Ok(written) = npy::write("x", &tensor) {
            assert_eq!(npy::read("x", &written.into(), 1 << 16).unwrap().shape(), tensor.shape());
        }
    }
    let _ = npy::read_archive(&bytes, 1 << 16, 1 << 20);
});

//! What the `ort` crate's safe interface cannot do: outputs that may be absent, and strings with NUL characters.
//!
//! The crate reads the type of every output, which ends the process where an output holds nothing, as optional ones may and
//! those that a graph computes from an absent optional; and it gives strings to ONNX Runtime as C strings. Both are a few calls of ONNX Runtime's C interface, kept together here.

#![expect(unsafe_code, reason = "calls of ONNX Runtime's C interface that the crate does not wrap")]

use ort::memory::Allocator;
use ort::session::{RunOptions, SelectedOutputMarker, Session, SessionInputValue};
use ort::value::{DynTensor, DynValue, TensorElementType};
use ort::{AsPointer, sys};
use std::borrow::Cow;
use std::ffi::CString;
use std::ptr::{self, NonNull};

fn check(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: every status given here comes straight from a call of the interface and is consumed once.
    unsafe { ort::Error::result_from_status(status) }
}

fn c_string(name: &str) -> ort::Result<CString> {
    CString::new(name).map_err(|_| ort::Error::new("a name holds a NUL character"))
}

/// Runs the graph and gives the outputs named, `None` for one that holds nothing.
pub(super) fn run<O: SelectedOutputMarker>(
    session: &mut Session,
    inputs: &[(Cow<'_, str>, SessionInputValue<'_>)],
    outputs: &[&str],
    options: &RunOptions<O>,
) -> ort::Result<Vec<Option<DynValue>>> {
    let input_names = inputs.iter().map(|(name, _)| c_string(name)).collect::<ort::Result<Vec<_>>>()?;
    let output_names = outputs.iter().map(|name| c_string(name)).collect::<ort::Result<Vec<_>>>()?;
    let input_name_pointers: Vec<_> = input_names.iter().map(|name| name.as_ptr()).collect();
    let output_name_pointers: Vec<_> = output_names.iter().map(|name| name.as_ptr()).collect();
    let input_pointers: Vec<*const sys::OrtValue> = inputs.iter().map(|(_, value)| value.ptr()).collect();
    let mut results = Outputs(vec![ptr::null_mut(); outputs.len()]);
    // SAFETY: session and options live through the call, the arrays are as long as the counts say, the inputs are borrowed
    // until it returns, and `&mut` keeps other runs of this session away. ONNX Runtime fills every output or gives an error.
    check(unsafe {
        (ort::api().Run)(
            session.ptr().cast_mut(),
            options.ptr(),
            input_name_pointers.as_ptr(),
            input_pointers.as_ptr(),
            input_pointers.len(),
            output_name_pointers.as_ptr(),
            output_name_pointers.len(),
            results.0.as_mut_ptr(),
        )
    })?;
    let mut values = Vec::with_capacity(outputs.len());
    for index in 0..outputs.len() {
        values.push(results.take(index, session.allocator())?);
    }
    Ok(values)
}

/// Outputs of a run that nobody owns yet; released when dropped.
struct Outputs(Vec<*mut sys::OrtValue>);

impl Outputs {
    fn take(&mut self, index: usize, allocator: &Allocator) -> ort::Result<Option<DynValue>> {
        let Some(pointer) = self.0.get(index).copied().and_then(NonNull::new) else { return Ok(None) };
        let mut has_value = 0;
        // SAFETY: the pointer came from a finished run and is not released.
        check(unsafe { (ort::api().HasValue)(pointer.as_ptr(), &raw mut has_value) })?;
        if has_value == 0 {
            return Ok(None);
        }
        if let Some(slot) = self.0.get_mut(index) {
            *slot = ptr::null_mut();
        }
        // SAFETY: the value is valid, holds data, and is owned by nobody else since the line above.
        Ok(Some(unsafe { DynValue::from_ptr(pointer, Some(allocator)) }))
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        for &pointer in self.0.iter().filter(|pointer| !pointer.is_null()) {
            // SAFETY: the pointer came from a run, and was not handed out.
            unsafe { (ort::api().ReleaseValue)(pointer) };
        }
    }
}

/// A string tensor whose elements may hold any character.
pub(super) fn string_tensor(shape: &[usize], strings: &[String]) -> ort::Result<DynTensor> {
    let mut tensor = DynTensor::new(&Allocator::default(), TensorElementType::String, shape)?;
    for (index, text) in strings.iter().enumerate() {
        let mut buffer: *mut std::ffi::c_char = ptr::null_mut();
        let pointer = tensor.ptr_mut();
        // SAFETY: the tensor was just made, is of strings, and is shared with nobody; an index out of range is an error.
        check(unsafe {
            (ort::api().GetResizedStringTensorElementBuffer)(pointer, index, text.len(), &raw mut buffer)
        })?;
        if !text.is_empty() && !buffer.is_null() {
            // SAFETY: the call above made the buffer exactly as long as the text.
            unsafe { ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), text.len()) };
        }
    }
    Ok(tensor)
}

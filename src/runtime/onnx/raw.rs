//! What the `ort` crate's safe interface cannot do: outputs that may be absent, and strings with NUL characters.
//!
//! The crate reads the type of every output, which ends the process where an output holds nothing, as optional ones may and
//! those that a graph computes from an absent optional; it gives strings to ONNX Runtime as C strings; and it does not wrap
//! the figures and bounds of an arena. All are a few calls of ONNX Runtime's C interface, kept together here.

#![expect(unsafe_code, reason = "calls of ONNX Runtime's C interface that the crate does not wrap")]

use crate::runtime::SessionMemory;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, SelectedOutputMarker, Session, SessionInputValue, SharedSessionInner};
use ort::value::{DynTensor, DynValue, TensorElementType};
use ort::{AsPointer, sys};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

fn check(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: every status given here comes straight from a call of the interface and is consumed once.
    unsafe { ort::Error::result_from_status(status) }
}

/// Runs the graph and gives the outputs named, `None` for one that holds nothing.
///
/// ONNX Runtime documents `Run` as safe from several threads at once; the crate's `&mut` is its own caution for devices other
/// than the CPU, so only sessions on the CPU are run by several (see [`super::session`]).
pub(super) fn run<O: SelectedOutputMarker>(
    session: &Session,
    inputs: &[(&CStr, SessionInputValue<'_>)],
    outputs: &[&CStr],
    options: &RunOptions<O>,
) -> ort::Result<Vec<Option<DynValue>>> {
    let input_name_pointers: Vec<_> = inputs.iter().map(|(name, _)| name.as_ptr()).collect();
    let output_name_pointers: Vec<_> = outputs.iter().map(|name| name.as_ptr()).collect();
    let input_pointers: Vec<*const sys::OrtValue> = inputs.iter().map(|(_, value)| value.ptr()).collect();
    let mut results = Outputs(vec![ptr::null_mut(); outputs.len()]);
    // SAFETY: session and options live through the call, the arrays are as long as the counts say, the inputs are borrowed
    // until it returns, and the caller runs a session on several threads only where that is safe. ONNX Runtime fills every output or gives an error.
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

/// The arena that the session's runs on the CPU work in.
///
/// # Errors
/// Where the session has none.
pub(super) fn arena_allocator(session: &Session) -> ort::Result<Allocator> {
    Allocator::new(session, MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?)
}

/// Held while a session is built that takes the environment's allocator: the environment has one for the CPU at a time.
static BUILDING: Mutex<()> = Mutex::new(());

/// Runs `build`, which builds a session with `session.use_env_allocators`: the session's arena on the CPU is then one of its own that
/// never holds more than `bytes`.
///
/// ONNX Runtime takes a bound for an arena only of one that its environment shares among sessions. So one is registered, taken by this
/// session alone, and taken back: the session keeps it, and it is freed with the last value in it.
///
/// # Errors
/// As `build`. Where no arena can be registered the session has one without a bound, and the log says so.
pub(super) fn within_arena<T>(
    environment: &Environment,
    bytes: usize,
    build: impl FnOnce() -> ort::Result<T>,
) -> ort::Result<T> {
    let place = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken back before the next one is registered.
    let _registered = Registered::new(environment, &place, bytes)
        .inspect_err(|error| tracing::warn!(%error, bytes, "the memory of a model's runs is not bounded"));
    build()
}

/// An arena that the environment shares; no longer once dropped.
struct Registered<'a> {
    environment: &'a Environment,
    place: &'a MemoryInfo<'a>,
}

impl<'a> Registered<'a> {
    fn new(environment: &'a Environment, place: &'a MemoryInfo<'a>, bytes: usize) -> ort::Result<Registered<'a>> {
        let mut bounds: *mut sys::OrtArenaCfg = ptr::null_mut();
        // -1 is ONNX Runtime's own choice, as for the arenas that sessions make themselves.
        // SAFETY: the call has no other precondition, and gives new bounds or an error.
        check(unsafe { (ort::api().CreateArenaCfg)(bytes, -1, -1, -1, &raw mut bounds) })?;
        // SAFETY: environment, place and bounds live through the call, which copies what it needs of them.
        let status =
            unsafe { (ort::api().CreateAndRegisterAllocator)(environment.ptr().cast_mut(), place.ptr(), bounds) };
        // SAFETY: made above and released once.
        unsafe { (ort::api().ReleaseArenaCfg)(bounds) };
        check(status)?;
        Ok(Registered { environment, place })
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // SAFETY: both live through the call. Sessions that took the arena have references of their own to it.
        let status = unsafe { (ort::api().UnregisterAllocator)(self.environment.ptr().cast_mut(), self.place.ptr()) };
        if let Err(error) = check(status) {
            tracing::warn!(%error, "a shared arena could not be taken back");
        }
    }
}

/// The figures of an arena; `None` where the allocator is no arena.
pub(super) fn arena_stats(arena: &Allocator) -> Option<SessionMemory> {
    let mut pairs = Pairs(ptr::null_mut());
    // SAFETY: the allocator lives through the call, which locks the arena itself and gives a new list or an error.
    check(unsafe { (ort::api().AllocatorGetStats)(arena.ptr(), &raw mut pairs.0) }).ok()?;
    let figure = |key: &CStr| -> Option<u64> {
        // SAFETY: the list was made above and is not released; the name is a C string.
        let text = unsafe { (ort::api().GetKeyValue)(pairs.0, key.as_ptr()) };
        if text.is_null() {
            return None;
        }
        // SAFETY: a text of the list is a C string that lives as long as the list.
        unsafe { CStr::from_ptr(text) }.to_str().ok()?.parse().ok()
    };
    Some(SessionMemory {
        arena_bytes: figure(c"TotalAllocated")?,
        arena_in_use_bytes: figure(c"InUse")?,
        arena_max_bytes: figure(c"MaxInUse")?,
    })
}

struct Pairs(*mut sys::OrtKeyValuePairs);

impl Drop for Pairs {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the list came from the interface and is released once.
            unsafe { (ort::api().ReleaseKeyValuePairs)(self.0) };
        }
    }
}

/// Makes the session's arena give back what is not in use. `output` is the name of any output.
///
/// The arena has no call for this in ONNX Runtime 1.32; only a run can ask for it, and it does so also when it is stopped
/// before its first node. Such a run needs no inputs and computes nothing. It ends with an error, as every stopped run does,
/// so whether memory came back is told by [`arena_stats`] alone.
///
/// # Errors
/// Where the run could not even be prepared.
pub(super) fn shrink_arena(session: &SharedSessionInner, output: &CStr) -> ort::Result<()> {
    let mut options = RunOptions::new()?;
    options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
    // The stop is on purpose, so it is not logged.
    options.set_log_level(LogLevel::Fatal)?;
    options.terminate()?;
    let mut results = Outputs(vec![ptr::null_mut()]);
    // SAFETY: session and options live through the call; there are no inputs, one output name and one place for it. Runs
    // beside this one are allowed as for `run`.
    let status = unsafe {
        (ort::api().Run)(
            session.ptr().cast_mut(),
            options.ptr(),
            ptr::null(),
            ptr::null(),
            0,
            [output.as_ptr()].as_ptr(),
            1,
            results.0.as_mut_ptr(),
        )
    };
    // Released; its text says that the run was stopped.
    let _ = check(status);
    Ok(())
}

/// How many nodes of the session's optimised graph each execution provider runs; the session must have been built with
/// `session.record_ep_graph_assignment_info`.
///
/// # Errors
/// Where that was not so.
pub(super) fn assigned_nodes(session: &Session) -> ort::Result<BTreeMap<String, u64>> {
    let mut subgraphs: *const *const sys::OrtEpAssignedSubgraph = ptr::null();
    let mut count = 0;
    // SAFETY: the session lives through the call, which gives an array of so many entries that the session owns.
    check(unsafe { (ort::api().Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut subgraphs, &raw mut count) })?;
    let mut nodes = BTreeMap::new();
    for index in 0..if subgraphs.is_null() { 0 } else { count } {
        // SAFETY: the index is within the array, which lives as long as the session.
        let subgraph = unsafe { *subgraphs.add(index) };
        let mut name: *const std::ffi::c_char = ptr::null();
        // SAFETY: the entry is the session's, and so is the text that the call gives.
        check(unsafe { (ort::api().EpAssignedSubgraph_GetEpName)(subgraph, &raw mut name) })?;
        let mut members: *const *const sys::OrtEpAssignedNode = ptr::null();
        let mut size = 0;
        // SAFETY: as above; only the number of entries is used.
        check(unsafe { (ort::api().EpAssignedSubgraph_GetNodes)(subgraph, &raw mut members, &raw mut size) })?;
        if name.is_null() {
            continue;
        }
        // SAFETY: the text is a C string that lives as long as the session.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let sum = nodes.entry(name).or_insert(0u64);
        *sum = sum.saturating_add(size as u64);
    }
    Ok(nodes)
}

/// Buffers bound to the inputs and outputs of a session; the session must outlive it.
pub(super) struct Binding(NonNull<sys::OrtIoBinding>);

// SAFETY: a binding has no thread of its own; it is used by one thread at a time through `&mut`.
unsafe impl Send for Binding {}

impl Binding {
    pub(super) fn new(session: &Session) -> ort::Result<Binding> {
        let mut pointer: *mut sys::OrtIoBinding = ptr::null_mut();
        // SAFETY: the session lives through the call, which gives a new binding or an error.
        check(unsafe { (ort::api().CreateIoBinding)(session.ptr().cast_mut(), &raw mut pointer) })?;
        NonNull::new(pointer).map(Binding).ok_or_else(|| ort::Error::new("no binding was made"))
    }

    /// The value's memory is what runs read; ONNX Runtime holds a reference of its own to it.
    pub(super) fn bind_input(&mut self, name: &CStr, value: &DynTensor) -> ort::Result<()> {
        // SAFETY: binding, name and value live through the call.
        check(unsafe { (ort::api().BindInput)(self.0.as_ptr(), name.as_ptr(), value.ptr()) })
    }

    /// The value's memory is what runs write.
    pub(super) fn bind_output(&mut self, name: &CStr, value: &DynTensor) -> ort::Result<()> {
        // SAFETY: as above.
        check(unsafe { (ort::api().BindOutput)(self.0.as_ptr(), name.as_ptr(), value.ptr()) })
    }

    /// The same of a value that may be borrowed: it must be unbound before its memory goes, see [`Binding::for_one_run`].
    pub(super) fn bind_value(&mut self, name: &CStr, value: &SessionInputValue<'_>) -> ort::Result<()> {
        // SAFETY: as above.
        check(unsafe { (ort::api().BindInput)(self.0.as_ptr(), name.as_ptr(), value.ptr()) })
    }

    /// Runs make the output's memory themselves, of this kind.
    pub(super) fn bind_output_in(&mut self, name: &CStr, memory: &MemoryInfo<'_>) -> ort::Result<()> {
        // SAFETY: as above; the description of the memory is copied.
        check(unsafe { (ort::api().BindOutputToDevice)(self.0.as_ptr(), name.as_ptr(), memory.ptr()) })
    }

    /// The binding, from which all is unbound at the end.
    pub(super) fn for_one_run(&mut self) -> Bound<'_> {
        Bound(self)
    }

    /// What the last run gave for the outputs, in the order in which they were bound; `None` for one that holds nothing.
    pub(super) fn outputs(&self, session: &Session, count: usize) -> ort::Result<Vec<Option<DynValue>>> {
        let allocator = session.allocator();
        let (mut pointers, mut given): (*mut *mut sys::OrtValue, usize) = (ptr::null_mut(), 0);
        // SAFETY: binding and allocator live through the call, which makes an array by the allocator and fills it with
        // values that are the caller's.
        check(unsafe {
            let allocator = allocator.ptr().cast_mut();
            (ort::api().GetBoundOutputValues)(self.0.as_ptr(), allocator, &raw mut pointers, &raw mut given)
        })?;
        let mut results = Outputs(Vec::with_capacity(given));
        for index in 0..if pointers.is_null() { 0 } else { given } {
            // SAFETY: the index is within the array.
            results.0.push(unsafe { *pointers.add(index) });
        }
        if !pointers.is_null() {
            // SAFETY: made by this allocator in the call above and given back once; its values are in `results`.
            check(unsafe { (ort::api().AllocatorFree)(allocator.ptr().cast_mut(), pointers.cast()) })?;
        }
        if given != count {
            return Err(ort::Error::new(format!("expected {count} outputs, got {given}")));
        }
        (0..count).map(|index| results.take(index, allocator)).collect()
    }

    pub(super) fn run(&mut self, session: &Session, options: &RunOptions) -> ort::Result<()> {
        // SAFETY: the binding was made of this session, and all live through the call; the caller runs one at a time.
        check(unsafe { (ort::api().RunWithBinding)(session.ptr().cast_mut(), options.ptr(), self.0.as_ptr()) })
    }
}

/// A binding for one run; empty again when dropped.
pub(super) struct Bound<'a>(pub(super) &'a mut Binding);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        // SAFETY: the binding lives, and no run is in progress: runs borrow it.
        unsafe {
            (ort::api().ClearBoundInputs)(self.0.0.as_ptr());
            (ort::api().ClearBoundOutputs)(self.0.0.as_ptr());
        }
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: made by `new` and released once.
        unsafe { (ort::api().ReleaseIoBinding)(self.0.as_ptr()) };
    }
}

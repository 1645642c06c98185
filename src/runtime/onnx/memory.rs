//! Gives memory back to the system after a session is gone, and keeps the allocator such that it can.

/// Freed memory at the end of an arena that is kept for the next request. With libc's own 128 KiB, which it raises only by
/// chance, bodies and outputs of 602 KB were given back and fetched again with each request: 63 page faults and a quarter of
/// its time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 16 << 20;
/// Blocks from this size on are fetched from the system and given back one by one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: i32 = 8 << 20;

/// Sets what libc's allocator keeps; [`give_back`] returns all of it.
///
/// Two of its arenas in place of eight for each core: memory that is free at the end of an arena other than the first is
/// not given back as long as something lives behind it, and every thread that allocates may get an arena of its own. After
/// twelve clients with bodies of 0.6 to 6 MB beside loads of a 50 MB model, the process kept 115 to 126 MB; with two arenas
/// 67 MB, at no more CPU for a request.
///
/// Call it before the process starts a thread: libc reads the limit when the second thread first allocates.
pub fn set_up_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "no safe binding of mallopt exists")]
    // SAFETY: mallopt has no preconditions and may be called from any thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}

/// ONNX Runtime allocates through libc, which keeps freed memory for later: after 50 loads of a 100 MB model that was
/// 275 MB instead of 35 MB. Cheap, and never on the path of a request.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "no safe binding of malloc_trim exists")]
    // SAFETY: malloc_trim has no preconditions and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

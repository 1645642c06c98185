//! Numbers the steps of whatever changes the store, so that a test can end the process at each of them, or have it fail.
//!
//! `ORTUS_FAILPOINT=<n>` kills a process of a debug build as it reaches its `n`-th step, `ORTUS_FAILPOINT=<n>:<errno>` has
//! the system call there fail once; other builds have none of this.

use std::io;

/// Whether the step that was to fail has been reached.
#[cfg(all(test, debug_assertions))]
pub(super) static HAS_FAILED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// The process has come so far; a kill here is what a crash or a power cut would be.
///
/// # Errors
/// What a test asks for in place of what the disk might say.
#[cfg(debug_assertions)]
pub(super) fn reached(step: &'static str) -> io::Result<()> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: OnceLock<Option<(u64, Option<i32>)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let last = LAST.get_or_init(|| {
        let text = std::env::var("ORTUS_FAILPOINT").ok()?;
        match text.split_once(':') {
            Some((number, errno)) => Some((number.parse().ok()?, Some(errno.parse().ok()?))),
            None => Some((text.parse().ok()?, None)),
        }
    });
    let Some((last, errno)) = last else { return Ok(()) };
    if REACHED.fetch_add(1, Ordering::SeqCst) + 1 != *last {
        return Ok(());
    }
    if let Some(errno) = errno {
        #[cfg(test)]
        HAS_FAILED.store(true, Ordering::SeqCst);
        tracing::error!(step, errno, "failed by ORTUS_FAILPOINT");
        return Err(io::Error::from_raw_os_error(*errno));
    }
    tracing::error!(step, "killed by ORTUS_FAILPOINT");
    // No destructor and no handler runs, as in a crash.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    Ok(())
}

#[cfg(not(debug_assertions))]
pub(super) fn reached(_step: &'static str) -> io::Result<()> {
    Ok(())
}

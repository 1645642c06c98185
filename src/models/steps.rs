//! Numbers the steps of whatever changes the store, so that a test can end the process after each of them.
//!
//! `ORTUS_FAILPOINT=<n>` kills a process of a debug build as it reaches its `n`-th step; other builds have none of this.

/// The process has come so far; a kill here is what a crash or a power cut would be.
#[cfg(debug_assertions)]
pub(super) fn reached(step: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: OnceLock<Option<u64>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let last = LAST.get_or_init(|| std::env::var("ORTUS_FAILPOINT").ok()?.parse().ok());
    let Some(last) = last else { return };
    let number = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
    if number == *last {
        tracing::error!(step, "killed by ORTUS_FAILPOINT");
        // No destructor and no handler runs, as in a crash.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn reached(_step: &'static str) {}

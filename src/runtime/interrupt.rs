//! Stops a run from another thread: the client is gone or the deadline has passed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn FnOnce() + Send>;

/// A one-way switch shared by a request and the thread that runs it. Clones are the same switch.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    fired: AtomicBool,
    /// What stops the run in progress. A std mutex: held for a few instructions, never across a run.
    hook: Mutex<Option<Hook>>,
}

impl Interrupt {
    pub fn new() -> Interrupt {
        Interrupt::default()
    }

    pub fn is_fired(&self) -> bool {
        self.0.fired.load(Ordering::Acquire)
    }

    /// Asks the run, present or future, to stop. Further calls do nothing.
    pub fn fire(&self) {
        self.0.fired.store(true, Ordering::Release);
        let hook = self.0.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Sets what [`Interrupt::fire`] calls until the guard is dropped; calls it at once where it has already fired.
    #[must_use]
    pub fn on_fire(&self, hook: impl FnOnce() + Send + 'static) -> HookGuard<'_> {
        *self.0.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
        // `fire` may have taken the empty hook between the caller's check and this line.
        if self.is_fired() {
            self.fire();
        }
        HookGuard(self)
    }
}

/// Removes the hook when dropped.
pub struct HookGuard<'a>(&'a Interrupt);

impl Drop for HookGuard<'_> {
    fn drop(&mut self) {
        *self.0.0.hook.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn the_hook_is_called_once_whichever_comes_first() {
        for fire_first in [true, false] {
            let calls = Arc::new(AtomicUsize::new(0));
            let interrupt = Interrupt::new();
            if fire_first {
                interrupt.fire();
            }
            let counter = calls.clone();
            let guard = interrupt.on_fire(move || {
                counter.fetch_add(1, Ordering::SeqCst);
            });
            interrupt.fire();
            interrupt.fire();
            drop(guard);
            assert_eq!(calls.load(Ordering::SeqCst), 1);
        }
    }
}

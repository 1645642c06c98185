//! Bounds the bytes that the bodies of all requests hold together, whatever door they come to: what does not fit is refused at once.
//!
//! Invariants: what is held is given back when it is dropped, however its request ends; nothing waits for room. One body of the
//! largest size fits whenever nothing else is held. Knows no body: each door says what its own have.

use crate::telemetry::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The share of the memory that is free at the start which bodies may hold where the settings name no number.
const SHARE: u64 = 4;
/// What they may hold where the system does not tell what is free.
const UNKNOWN: usize = 1 << 30;

/// More than bodies may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the bodies of requests in flight hold {held} of limits.max_inflight_bytes = {limit}: {wanted} bytes more do not fit; try again"
)]
pub struct NoRoom {
    pub limit: usize,
    pub held: usize,
    pub wanted: usize,
}

/// What all bodies hold together. Clones are the same.
#[derive(Debug, Clone)]
pub struct InFlightBytes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    held: AtomicUsize,
}

/// What one body holds; given back when dropped.
#[derive(Debug)]
pub struct Held {
    all: InFlightBytes,
    bytes: AtomicUsize,
}

impl InFlightBytes {
    /// Of `limit` bytes, or a share of the memory that is free, but never less than one body of `largest` bytes.
    pub fn new(limit: Option<usize>, largest: usize) -> InFlightBytes {
        let limit = limit.unwrap_or_else(|| {
            process::available_bytes().map_or(UNKNOWN, |free| usize::try_from(free / SHARE).unwrap_or(usize::MAX))
        });
        InFlightBytes(Arc::new(Inner { limit: limit.max(largest), held: AtomicUsize::new(0) }))
    }

    /// # Errors
    /// Where they do not fit.
    pub fn hold(&self, bytes: usize) -> Result<Held, NoRoom> {
        self.take(bytes)?;
        Ok(Held { all: self.clone(), bytes: AtomicUsize::new(bytes) })
    }

    /// What is held now.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// What may be held.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    fn take(&self, bytes: usize) -> Result<(), NoRoom> {
        let Inner { limit, held } = &*self.0;
        if bytes == 0 {
            return Ok(());
        }
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| sum <= limit);
        match held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(held) => Err(NoRoom { limit: *limit, held, wanted: bytes }),
        }
    }
}

impl Held {
    /// Holds what the body has beyond what is held of it.
    ///
    /// # Errors
    /// Where that does not fit; what was held stays so.
    pub fn grow_to(&self, bytes: usize) -> Result<(), NoRoom> {
        // One body is read by one task: nobody else changes it meanwhile.
        let more = bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        self.all.take(more)?;
        self.bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.all.0.held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back_when_it_ends() {
        let all = InFlightBytes::new(Some(10), 1);
        let first = all.hold(6).unwrap();
        assert_eq!(all.hold(5).unwrap_err(), NoRoom { limit: 10, held: 6, wanted: 5 });
        let second = all.hold(3).unwrap();
        second.grow_to(2).unwrap();
        second.grow_to(4).unwrap();
        assert_eq!(second.grow_to(6).unwrap_err(), NoRoom { limit: 10, held: 10, wanted: 2 });
        assert_eq!(all.held(), 10);
        assert!(all.hold(0).is_ok(), "nothing is asked of who sends nothing");
        drop(first);
        assert_eq!(all.held(), 4);
        drop(second);
        assert_eq!(all.held(), 0);
        assert!(all.hold(usize::MAX).is_err());
    }

    #[test]
    fn one_largest_body_always_fits() {
        let all = InFlightBytes::new(Some(5), 8);
        let own = all.hold(8).unwrap();
        assert_eq!(all.hold(1).unwrap_err(), NoRoom { limit: 8, held: 8, wanted: 1 });
        drop(own);
        assert!(InFlightBytes::new(None, 1 << 40).hold(1 << 40).is_ok());
        assert!(InFlightBytes::new(None, 0).hold(1 << 20).is_ok(), "a share of what is free");
    }
}

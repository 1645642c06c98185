//! A bounded first-in first-out queue between async callers and instance threads.
//!
//! Invariants: never longer than its bound; closed once and for ever; what was queued before closing is still handed out.

use super::BatchError;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(super) struct Queue<T> {
    /// A std mutex: held for a push or a pop, never across a run or an await.
    state: Mutex<State<T>>,
    filled: Condvar,
    bound: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(bound: usize) -> Queue<T> {
        Queue { state: Mutex::new(State { waiting: VecDeque::new(), closed: false }), filled: Condvar::new(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses at once where the queue is full or closed.
    pub(super) fn push(&self, item: T) -> Result<(), BatchError> {
        let mut state = self.lock();
        if state.closed {
            return Err(BatchError::Closed);
        }
        if state.waiting.len() >= self.bound {
            return Err(BatchError::QueueFull { waiting: state.waiting.len() });
        }
        state.waiting.push_back(item);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for an item; `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_at_once() {
        let queue = Queue::new(1);
        queue.push(1).unwrap();
        assert!(matches!(queue.push(2), Err(BatchError::QueueFull { waiting: 1 })));
        assert_eq!(queue.pop(), Some(1));
        queue.push(3).unwrap();
    }

    #[test]
    fn a_closed_queue_still_gives_what_was_accepted() {
        let queue = Queue::new(4);
        queue.push(1).unwrap();
        queue.close();
        assert!(matches!(queue.push(2), Err(BatchError::Closed)));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.pop(), None);
    }
}

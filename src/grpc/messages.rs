//! What the messages of one call hold of the bytes that all bodies may hold together.
//!
//! Invariants: a message is held from the moment its length is known until its answer is made, a compressed one as what it is unpacked
//! to; one that came alone until its call ends. Knows no protobuf and no socket: `inbound` says what comes, `codec` what it became.

use crate::entrance::{Held, InFlightBytes, NoRoom};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// The messages of one call. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Messages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: InFlightBytes,
    /// Those that nobody has taken yet, in the order in which they come. Locked for a push or a pop.
    coming: Mutex<VecDeque<Message>>,
    /// As many clones as there are messages.
    count: Arc<()>,
}

/// What one message holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Message {
    held: Held,
    _counted: Arc<()>,
}

tokio::task_local! {
    /// Of the call that is made.
    static OWN: Messages;
}

impl Messages {
    pub(super) fn of(all: &InFlightBytes) -> Messages {
        let (all, coming) = (all.clone(), Mutex::default());
        Messages(Arc::new(Inner { all, coming, count: Arc::default() }))
    }

    /// Makes a call, whose messages these are.
    pub(super) async fn within<T>(self, call: impl Future<Output = T>) -> T {
        OWN.scope(self, call).await
    }

    /// Of the call that is made here, where they are counted.
    pub(super) fn own() -> Option<Messages> {
        OWN.try_get().ok()
    }

    /// A message of so many bytes begins.
    ///
    /// # Errors
    /// Where there is no room for it.
    pub(super) fn begin(&self, bytes: usize) -> Result<(), NoRoom> {
        let held = self.0.all.hold(bytes)?;
        self.coming().push_back(Message { held, _counted: self.0.count.clone() });
        Ok(())
    }

    /// The first of those that nobody has taken has so many bytes in memory.
    ///
    /// # Errors
    /// Where there is no room for that.
    pub(super) fn unpacked(&self, bytes: usize) -> Result<(), NoRoom> {
        self.coming().front().map_or(Ok(()), |message| message.held.grow_to(bytes))
    }

    /// Takes the first, which is held until it is dropped.
    pub(super) fn take(&self) -> Option<Message> {
        self.coming().pop_front()
    }

    /// Whether none is held: neither on its way nor taken.
    pub(super) fn are_none(&self) -> bool {
        Arc::strong_count(&self.0.count) == 1
    }

    fn coming(&self) -> std::sync::MutexGuard<'_, VecDeque<Message>> {
        self.0.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_held_until_they_are_answered_or_their_call_ends() {
        let all = InFlightBytes::new(Some(10), 1);
        let messages = Messages::of(&all);
        assert!(messages.are_none() && messages.take().is_none());
        messages.begin(2).unwrap();
        messages.begin(0).unwrap();
        messages.begin(3).unwrap();
        assert!(messages.begin(6).is_err());
        messages.unpacked(7).unwrap();
        assert!(messages.unpacked(8).is_err());
        assert_eq!(all.held(), 10);
        let first = messages.take();
        drop((first, messages.take()));
        assert_eq!((all.held(), messages.are_none()), (3, false));
        let last = messages.take();
        assert!(!messages.are_none());
        drop(last);
        assert_eq!((all.held(), messages.are_none()), (0, true));
        messages.begin(10).unwrap();
        drop(messages);
        assert_eq!(all.held(), 0);
    }

    #[tokio::test]
    async fn a_call_finds_its_own() {
        assert!(Messages::own().is_none());
        let messages = Messages::of(&InFlightBytes::new(Some(10), 1));
        messages.begin(1).unwrap();
        let found = messages.clone().within(async { Messages::own() }).await.unwrap();
        assert!(found.take().is_some() && messages.are_none());
    }
}

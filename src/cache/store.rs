//! Values by key, bounded in bytes: the least recently used go first, and none is given after its time.
//!
//! Invariants: what is kept never weighs more than the bound, at any moment; what is displaced, expired or cleared is freed
//! at once by whoever displaces it, outside the lock. Written out instead of taken from a crate because of these two: caches
//! that clean up behind their callers' backs are over their bound by what waits to be cleaned up.

use super::Key;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What an entry costs besides its value: its places in the two maps, which are up to half empty.
const ENTRY_BYTES: u64 = 256;

/// A bounded cache. Values are cloned out, so `V` should be cheap to clone.
#[derive(Debug)]
pub struct Store<V> {
    /// A std mutex: held for a look or a change of the maps, never across a run or an await.
    state: Mutex<State<V>>,
    bytes_max: u64,
    ttl: Option<Duration>,
}

#[derive(Debug)]
struct State<V> {
    entries: HashMap<Key, Entry<V>>,
    /// From the least recently used to the most.
    order: BTreeMap<u64, Key>,
    next_use: u64,
    bytes: u64,
    /// When expired entries are looked for again.
    sweep_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: u64,
    expires: Option<Instant>,
}

/// How full a store is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub entries: usize,
    pub bytes: u64,
    pub bytes_max: u64,
}

impl<V: Clone> Store<V> {
    /// A store of at most `bytes_max` bytes whose values are given for `ttl`; `None` = for ever.
    pub fn new(bytes_max: u64, ttl: Option<Duration>) -> Store<V> {
        Store { state: Mutex::new(State::new()), bytes_max, ttl }
    }

    fn lock(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value kept under `key`, which counts as a use.
    pub fn get(&self, key: &Key) -> Option<V> {
        self.get_at(key, Instant::now())
    }

    fn get_at(&self, key: &Key, now: Instant) -> Option<V> {
        let mut state = self.lock();
        let (value, expires) = state.touch(key)?;
        if expires.is_some_and(|expires| expires <= now) {
            let gone = state.remove(key);
            drop(state);
            drop(gone);
            return None;
        }
        Some(value)
    }

    /// Whether a value of this many bytes is kept at all.
    pub fn fits(&self, bytes: usize) -> bool {
        (bytes as u64).saturating_add(ENTRY_BYTES) <= self.bytes_max
    }

    /// Keeps a value that weighs `bytes`, in place of the least recently used where there is no room, and of an earlier
    /// value under the same key. One that does not fit is not kept.
    pub fn insert(&self, key: Key, value: V, bytes: usize) {
        self.insert_at(key, value, bytes, Instant::now());
    }

    fn insert_at(&self, key: Key, value: V, bytes: usize, now: Instant) {
        if !self.fits(bytes) {
            return;
        }
        let bytes = bytes as u64 + ENTRY_BYTES;
        let mut gone = Vec::new();
        let mut state = self.lock();
        gone.extend(state.remove(&key));
        state.sweep(now, self.ttl, &mut gone);
        while state.bytes > self.bytes_max - bytes
            && let Some((_, &oldest)) = state.order.first_key_value()
        {
            gone.extend(state.remove(&oldest));
        }
        let used = state.next_use;
        state.next_use += 1;
        state.bytes += bytes;
        state.order.insert(used, key);
        // A time beyond what the clock can tell is for ever.
        let expires = self.ttl.and_then(|ttl| now.checked_add(ttl));
        state.entries.insert(key, Entry { value, bytes, used, expires });
        drop(state);
        drop(gone);
    }

    /// Drops all values and gives their bytes.
    pub fn clear(&self) -> u64 {
        // The maps' own memory goes too.
        let old = std::mem::replace(&mut *self.lock(), State::new());
        old.bytes
    }

    /// What is kept at this moment; expired values are dropped first.
    pub fn usage(&self) -> Usage {
        self.usage_at(Instant::now())
    }

    fn usage_at(&self, now: Instant) -> Usage {
        let mut gone = Vec::new();
        let mut state = self.lock();
        state.sweep_at = None;
        state.sweep(now, self.ttl, &mut gone);
        let usage = Usage { entries: state.entries.len(), bytes: state.bytes, bytes_max: self.bytes_max };
        drop(state);
        drop(gone);
        usage
    }
}

impl<V> State<V> {
    fn new() -> State<V> {
        State { entries: HashMap::new(), order: BTreeMap::new(), next_use: 0, bytes: 0, sweep_at: None }
    }

    fn remove(&mut self, key: &Key) -> Option<Entry<V>> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.used);
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Takes the expired entries out, once in each `ttl`: so each look at all of them is paid by those that came since.
    fn sweep(&mut self, now: Instant, ttl: Option<Duration>, gone: &mut Vec<Entry<V>>) {
        let Some(ttl) = ttl else { return };
        if self.sweep_at.is_some_and(|at| now < at) {
            return;
        }
        self.sweep_at = now.checked_add(ttl);
        let expired = |entry: &Entry<V>| entry.expires.is_some_and(|expires| expires <= now);
        let keys: Vec<Key> = self.entries.iter().filter(|(_, entry)| expired(entry)).map(|(key, _)| *key).collect();
        gone.extend(keys.iter().filter_map(|key| self.remove(key)));
    }
}

impl<V: Clone> State<V> {
    fn touch(&mut self, key: &Key) -> Option<(V, Option<Instant>)> {
        let entry = self.entries.get_mut(key)?;
        self.order.remove(&entry.used);
        entry.used = self.next_use;
        self.order.insert(entry.used, *key);
        self.next_use += 1;
        Some((entry.value.clone(), entry.expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    const ROOM: u64 = 10 * (100 + ENTRY_BYTES);

    fn key(number: u128) -> Key {
        Key::of(number)
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let store = Store::new(ROOM, None);
        (0..10).for_each(|number| store.insert(key(number), number, 100));
        assert_eq!(store.get(&key(0)), Some(0));
        store.insert(key(10), 10, 100);
        assert_eq!(store.get(&key(1)), None);
        assert_eq!(store.get(&key(0)), Some(0));
        assert_eq!(store.usage(), Usage { entries: 10, bytes: ROOM, bytes_max: ROOM });
    }

    #[test]
    fn what_is_larger_than_the_store_displaces_nothing() {
        let store = Store::new(ROOM, None);
        store.insert(key(1), 1, 100);
        store.insert(key(2), 2, usize::try_from(ROOM).unwrap());
        store.insert(key(3), 3, usize::MAX);
        assert_eq!((store.get(&key(1)), store.get(&key(2)), store.get(&key(3))), (Some(1), None, None));
    }

    #[test]
    fn a_value_is_freed_when_it_is_displaced_or_cleared() {
        let values: Vec<Arc<()>> = (0..3).map(|_| Arc::new(())).collect();
        let alive = || values.iter().map(Arc::strong_count).collect::<Vec<_>>();
        let store = Store::new(2 * (10 + ENTRY_BYTES), None);
        for (number, value) in values.iter().enumerate() {
            store.insert(key(number as u128), value.clone(), 10);
        }
        assert_eq!(alive(), [1, 2, 2]);
        store.insert(key(1), values[0].clone(), 10);
        assert_eq!(alive(), [2, 1, 2]);
        assert_eq!(store.clear(), 2 * (10 + ENTRY_BYTES));
        assert_eq!(alive(), [1, 1, 1]);
        assert_eq!((store.usage().entries, store.clear()), (0, 0));
    }

    #[test]
    fn a_value_is_not_given_after_its_time_nor_kept() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let value = Arc::new(());
        let store = Store::new(ROOM, Some(Duration::from_secs(10)));
        store.insert_at(key(1), value.clone(), 1, at(0));
        store.insert_at(key(2), value.clone(), 1, at(6));
        // A use does not prolong it.
        assert!(store.get_at(&key(1), at(9)).is_some());
        assert!(store.get_at(&key(1), at(10)).is_none());
        assert!(store.get_at(&key(2), at(10)).is_some());
        assert_eq!(store.usage_at(at(16)).bytes, 0);
        assert_eq!(Arc::strong_count(&value), 1);
        store.insert_at(key(3), value.clone(), 1, at(20));
        // Freed also where nobody asks for it again.
        store.insert_at(key(4), value.clone(), 1, at(41));
        assert_eq!(Arc::strong_count(&value), 2);
    }

    #[test]
    fn a_time_beyond_the_clock_is_for_ever() {
        let store = Store::new(ROOM, Some(Duration::MAX));
        store.insert(key(1), 1, 1);
        assert_eq!(store.get(&key(1)), Some(1));
    }

    proptest! {
        /// Against a list that is searched.
        #[test]
        fn it_keeps_what_was_used_last_within_its_bound(
            steps in proptest::collection::vec((0u128..8, 0usize..400, any::<bool>()), 0..60),
        ) {
            let store = Store::new(1500, None);
            let mut model: Vec<(u128, usize)> = Vec::new();
            for (number, bytes, is_insert) in steps {
                let at = model.iter().position(|(known, _)| *known == number);
                if is_insert {
                    store.insert(key(number), (number, bytes), bytes);
                    model.retain(|(known, _)| *known != number);
                    model.push((number, bytes));
                    while model.iter().map(|(_, bytes)| *bytes as u64 + ENTRY_BYTES).sum::<u64>() > 1500 {
                        model.remove(0);
                    }
                } else {
                    let found = store.get(&key(number));
                    prop_assert_eq!(found, at.map(|at| model[at]));
                    at.into_iter().for_each(|at| { let entry = model.remove(at); model.push(entry); });
                }
                let bytes = model.iter().map(|(_, bytes)| *bytes as u64 + ENTRY_BYTES).sum::<u64>();
                prop_assert_eq!(store.usage(), Usage { entries: model.len(), bytes, bytes_max: 1500 });
            }
            prop_assert!(model.iter().all(|entry| store.get(&key(entry.0)) == Some(*entry)));
        }
    }
}

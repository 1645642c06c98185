//! Lets equal requests in flight wait for one run.
//!
//! The first to ask leads, those that come while it flies follow. Nothing is spawned: the leader's own request does the run,
//! and where that request goes away the flight is given up and the first follower to notice leads anew. A follower waits as
//! long as it likes: its deadline is its own.
//!
//! Invariants: at most one flight for a key and a priority; whoever asks finds the value in the store, the flight that will
//! bring it, or is the one to bring it, so that equal requests cannot slip past each other. An urgent request never waits for
//! a run that others are served before.

use super::{Key, Store};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The flights there are. As many as requests in flight, at most.
#[derive(Debug)]
pub struct Flights<V, E> {
    /// A std mutex: held for a look or a change of the map and of a store, never across an await.
    flying: Mutex<HashMap<Route, Flight<V, E>>>,
}

/// What is asked for, and how urgently: the leader's run waits as long as its own priority makes it.
type Route = (Key, u8);

/// Holds the landing once there is one; closed without one where the leader gave up.
type Flight<V, E> = watch::Receiver<Option<Landing<V, E>>>;

/// How a flight ended.
#[derive(Debug, Clone)]
pub enum Landing<V, E> {
    Answered(V),
    /// Whoever sends this request gets this error.
    Refused(E),
    /// It failed for a reason that need not concern the followers: let each try for itself.
    Failed,
}

/// What to do with a request.
#[derive(Debug)]
pub enum Turn<'a, V, E> {
    Kept(V),
    Lead(Lead<'a, V, E>),
    Follow(Follow<V, E>),
}

/// The duty to run the request. Dropped without [`Lead::land`], the flight is given up and a follower takes over.
#[derive(Debug)]
pub struct Lead<'a, V, E> {
    flights: &'a Flights<V, E>,
    route: Route,
    sender: watch::Sender<Option<Landing<V, E>>>,
}

/// The right to the leader's answer.
#[derive(Debug)]
pub struct Follow<V, E>(Flight<V, E>);

impl<V, E> Default for Flights<V, E> {
    fn default() -> Flights<V, E> {
        Flights { flying: Mutex::default() }
    }
}

impl<V, E> Flights<V, E> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Route, Flight<V, E>>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flights under way.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V: Clone, E: Clone> Flights<V, E> {
    /// The turn of whoever asks for `key` with `priority`. `store` may hold its value, whoever brought it. A leader puts its
    /// value into `store` before it lands.
    pub fn join(&self, key: Key, priority: u8, store: &Store<V>) -> Turn<'_, V, E> {
        let mut flying = self.lock();
        let route = (key, priority);
        if let Some(flight) = flying.get(&route) {
            return Turn::Follow(Follow(flight.clone()));
        }
        // Under the lock: a leader that has landed since an earlier look has put its value there before.
        if let Some(value) = store.get(&key) {
            return Turn::Kept(value);
        }
        let (sender, receiver) = watch::channel(None);
        flying.insert(route, receiver);
        Turn::Lead(Lead { flights: self, route, sender })
    }
}

impl<V, E> Lead<'_, V, E> {
    /// Ends the flight.
    pub fn land(self, landing: Landing<V, E>) {
        self.sender.send_replace(Some(landing));
    }
}

impl<V, E> Drop for Lead<'_, V, E> {
    fn drop(&mut self) {
        // Before the channel closes: who wakes then must not find this flight again.
        self.flights.lock().remove(&self.route);
    }
}

impl<V: Clone, E: Clone> Follow<V, E> {
    /// Waits for the flight's end; `None` where it was given up: join again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the flight as it is.
    pub async fn landing(mut self) -> Option<Landing<V, E>> {
        let landing = self.0.wait_for(Option::is_some).await.ok()?;
        landing.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestFlights = Flights<u32, &'static str>;

    fn lead<'a>(flights: &'a TestFlights, store: &Store<u32>) -> Lead<'a, u32, &'static str> {
        match flights.join(Key::of(1), 5, store) {
            Turn::Lead(lead) => lead,
            other => panic!("expected to lead, got {other:?}"),
        }
    }

    fn follow(flights: &TestFlights, store: &Store<u32>) -> Follow<u32, &'static str> {
        match flights.join(Key::of(1), 5, store) {
            Turn::Follow(follow) => follow,
            other => panic!("expected to follow, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn followers_get_what_the_leader_got_and_later_ones_what_is_kept() {
        let (flights, store) = (TestFlights::default(), Store::new(10_000, None));
        let leader = lead(&flights, &store);
        let (early, late) = (follow(&flights, &store), follow(&flights, &store));
        let other = flights.join(Key::of(2), 5, &store);
        assert!(matches!(other, Turn::Lead(_)));
        store.insert(Key::of(1), 7, 4);
        leader.land(Landing::Answered(7));
        assert!(matches!(early.landing().await, Some(Landing::Answered(7))));
        assert!(matches!(late.landing().await, Some(Landing::Answered(7))));
        assert!(matches!(flights.join(Key::of(1), 5, &store), Turn::Kept(7)));
        drop(other);
        assert!(flights.is_empty());
    }

    #[test]
    fn who_is_in_a_hurry_follows_only_who_is_as_much() {
        let (flights, store) = (TestFlights::default(), Store::new(10_000, None));
        let patient = flights.join(Key::of(1), 9, &store);
        let urgent = flights.join(Key::of(1), 1, &store);
        assert!(matches!((&patient, &urgent), (Turn::Lead(_), Turn::Lead(_))));
        assert!(matches!(flights.join(Key::of(1), 9, &store), Turn::Follow(_)));
        drop(patient);
        assert!(matches!(flights.join(Key::of(1), 1, &store), Turn::Follow(_)));
        // What one brings is there for all.
        store.insert(Key::of(1), 7, 4);
        drop(urgent);
        assert!(matches!(flights.join(Key::of(1), 9, &store), Turn::Kept(7)));
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn one_follower_takes_over_from_a_leader_that_left() {
        let (flights, store) = (TestFlights::default(), Store::new(10_000, None));
        let leader = lead(&flights, &store);
        let (first, second) = (follow(&flights, &store), follow(&flights, &store));
        drop(leader);
        assert!(first.landing().await.is_none());
        let leader = lead(&flights, &store);
        assert!(second.landing().await.is_none());
        let second = follow(&flights, &store);
        leader.land(Landing::Refused("bad"));
        assert!(matches!(second.landing().await, Some(Landing::Refused("bad"))));
        assert!(matches!(flights.join(Key::of(1), 5, &store), Turn::Lead(_)), "a refusal is not kept");
        assert!(flights.is_empty());
    }
}

//! One cold read per key at a time: whoever asks while a read is under way waits for its answer.
//!
//! A read belongs to all who wait for it: each of them drives it, so it goes on when the first caller is gone, and is
//! dropped when the last is.

use std::{
    collections::{HashMap, hash_map::Entry as Place},
    future::Future,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ahash::RandomState;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use super::promote::ColdRead;
use crate::{entry::Key, write_queue::Ticket};

/// Enough that threads rarely meet.
const SHARDS: usize = 16;

/// The reads under way: at most as many as callers wait.
pub(super) struct Flights {
    shards: [Mutex<HashMap<Key, Flight, RandomState>>; SHARDS],
    hasher: RandomState,
    taken_off: AtomicU64,
}

struct Flight {
    number: u64,
    /// When it took off. A write after that makes its answer old for whoever asks later.
    ticket: Ticket,
    passengers: usize,
    read: Shared<BoxFuture<'static, ColdRead>>,
}

/// Counts one passenger out, however it leaves.
struct Seat<'a> {
    flights: &'a Flights,
    key: &'a Key,
    flight: u64,
}

// === impl Flights ===

impl Default for Flights {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            taken_off: AtomicU64::new(0),
        }
    }
}

impl Flights {
    /// Joins the read of `key` under way, unless a write has made it too old for this ticket; else starts `read`.
    ///
    /// # Cancel safety
    /// The read goes on as long as anybody waits for it.
    pub(super) async fn join<F>(&self, key: &Key, ticket: Ticket, read: impl FnOnce() -> F) -> ColdRead
    where
        F: Future<Output = ColdRead> + Send + 'static,
    {
        let (read, _seat) = {
            let mut flights = self.shard(key);
            match flights.entry(key.clone()) {
                Place::Occupied(mut place) if place.get().ticket >= ticket => {
                    let flight = place.get_mut();
                    flight.passengers += 1;
                    (flight.read.clone(), Seat { flights: self, key, flight: flight.number })
                }
                place => {
                    let number = self.taken_off.fetch_add(1, Ordering::Relaxed);
                    let read = read().boxed().shared();
                    // A flight under an older ticket loses its place; its passengers keep it going.
                    place.insert_entry(Flight { number, ticket, passengers: 1, read: read.clone() });
                    (read, Seat { flights: self, key, flight: number })
                }
            }
        };
        read.await
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Flight, RandomState>> {
        let hash = self.hasher.hash_one(key);
        let shard = usize::try_from(hash >> 32).expect("32 bits") % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Seat ===

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.shard(self.key);
        let Place::Occupied(mut place) = flights.entry(self.key.clone()) else { return };
        if place.get().number != self.flight {
            return;
        }
        place.get_mut().passengers -= 1;
        if place.get().passengers == 0 {
            place.remove();
        }
    }
}

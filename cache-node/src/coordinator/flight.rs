//! One cold read per key at a time: whoever asks while a read is under way waits for its answer.
//!
//! A read belongs to the node, not to who asked first: it goes on when all its callers are gone, because what it finds
//! is promoted for the next.

use std::{
    collections::{HashMap, hash_map::Entry as Place},
    future::Future,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ahash::RandomState;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio_util::task::TaskTracker;

use super::promote::ColdRead;
use crate::{entry::Key, sync::Mutex, write_queue::Ticket};

/// Enough that threads rarely meet.
const SHARDS: usize = 16;

/// The reads under way; each ends with the deadline of who began it.
pub(super) struct Flights {
    air: Arc<Air>,
    crew: TaskTracker,
}

struct Air {
    shards: [Mutex<HashMap<Key, Flight, RandomState>>; SHARDS],
    hasher: RandomState,
    taken_off: AtomicU64,
}

struct Flight {
    number: u64,
    /// When it took off. A write after that makes its answer old for whoever asks later.
    ticket: Ticket,
    read: Shared<BoxFuture<'static, ColdRead>>,
}

// === impl Flights ===

impl Flights {
    /// None under way. The crew drives reads whose callers are gone; it is waited for at shutdown.
    pub(super) fn new(crew: TaskTracker) -> Self {
        let air = Air {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            taken_off: AtomicU64::new(0),
        };
        Self { air: Arc::new(air), crew }
    }

    /// Joins the read of `key` under way, unless a write has made it too old for this ticket; else starts `read`.
    ///
    /// # Cancel safety
    /// The read goes on without its callers.
    pub(super) async fn join<F>(&self, key: &Key, ticket: Ticket, read: impl FnOnce() -> F) -> ColdRead
    where
        F: Future<Output = ColdRead> + Send + 'static,
    {
        let (read, begun) = self.board(key, ticket, read);
        let Some(number) = begun else { return read.await };
        // A read that the block cache answers ends at its first step and needs no crew.
        if let Some(answer) = read.clone().now_or_never() {
            self.air.land(key, number);
            return answer;
        }
        let (air, key, driven) = (Arc::clone(&self.air), key.clone(), read.clone());
        self.crew.spawn(async move {
            driven.await;
            air.land(&key, number);
        });
        read.await
    }

    /// The read to wait for, and its number if it begins now.
    fn board<F>(
        &self,
        key: &Key,
        ticket: Ticket,
        read: impl FnOnce() -> F,
    ) -> (Shared<BoxFuture<'static, ColdRead>>, Option<u64>)
    where
        F: Future<Output = ColdRead> + Send + 'static,
    {
        match self.air.shard(key).entry(key.clone()) {
            Place::Occupied(place) if place.get().ticket >= ticket => (place.get().read.clone(), None),
            place => {
                let number = self.air.taken_off.fetch_add(1, Ordering::Relaxed);
                let read = read().boxed().shared();
                // A flight under an older ticket loses its place, and goes on for those who wait for it.
                place.insert_entry(Flight { number, ticket, read: read.clone() });
                (read, Some(number))
            }
        }
    }
}

// === impl Air ===

impl Air {
    fn land(&self, key: &Key, number: u64) {
        if let Place::Occupied(place) = self.shard(key).entry(key.clone())
            && place.get().number == number
        {
            place.remove();
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Flight, RandomState>> {
        let hash = self.hasher.hash_one(key);
        let shard = usize::try_from(hash >> 32).expect("32 bits") % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! One cold read per key at a time: whoever asks while a read is under way waits for its answer, alone or as one of many
//! keys.
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
    time::{Duration, Instant},
};

use ahash::RandomState;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::search::Found;
use crate::{
    clock::Clock,
    context::{Outcome, Trail, TrailStep},
    entry::Key,
    sync::Mutex,
    write_queue::Ticket,
};

/// How long after a read has begun others may still join it. What it finds is as old as its beginning, and to that comes
/// by how much the node may be behind the others (`backplane.maxStaleness`): both together are the bound for all reads.
const BOARDING: Duration = Duration::from_millis(500);

/// Enough that threads rarely meet.
const SHARDS: usize = 16;

/// The reads under way; each ends with the deadline of who began it.
pub(super) struct Flights {
    air: Arc<Air>,
    crew: TaskTracker,
}

/// A key on its way in a read, which may have others aboard.
#[derive(Clone)]
pub(super) struct Ride {
    read: Read,
    /// Which of its answers.
    place: usize,
    log: Arc<Logbook>,
}

/// What a read has asked so far, for those who do not wait for its end as well.
#[derive(Default)]
pub(super) struct Logbook(std::sync::Mutex<Progress>);

type Read = Shared<BoxFuture<'static, Arc<[Found]>>>;

#[derive(Default)]
struct Progress {
    trail: Trail,
    /// Which part is being asked, for how many keys, and since when.
    asking: Option<(&'static str, usize, Instant)>,
}

struct Air {
    shards: [Mutex<HashMap<Key, Flight, RandomState>>; SHARDS],
    hasher: RandomState,
    taken_off: AtomicU64,
    clock: Clock,
}

struct Flight {
    number: u64,
    begun: Instant,
    /// When it took off. A write after that makes its answer old for whoever asks later.
    ticket: Ticket,
    ride: Ride,
}

/// Takes keys out of the air in the end, also of a read that panics: the next one must not wait for it.
struct Landing {
    air: Arc<Air>,
    /// Keys, and the numbers of their flights.
    aboard: Vec<(Key, u64)>,
}

// === impl Flights ===

impl Flights {
    /// None under way. The crew drives reads whose callers are gone; it is waited for at shutdown.
    pub(super) fn new(crew: TaskTracker, clock: Clock) -> Self {
        let air = Air {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            taken_off: AtomicU64::new(0),
            clock,
        };
        Self { air: Arc::new(air), crew }
    }

    /// Joins the read of `key` under way, unless a write or time has made it too old for this ticket; else begins `read`, which
    /// goes on whether or not anybody waits for it.
    pub(super) fn board<F>(&self, key: &Key, ticket: Ticket, read: impl FnOnce(Arc<Logbook>) -> F) -> Ride
    where
        F: Future<Output = Found> + Send + 'static,
    {
        let (ride, begun) = self.air.board(key, ticket, || {
            let log = Arc::<Logbook>::default();
            let found = read(Arc::clone(&log));
            Ride { read: async { Arc::from([found.await]) }.boxed().shared(), place: 0, log }
        });
        if let Some(number) = begun {
            self.take_off(&ride.read, vec![(key.clone(), number)]);
        }
        ride
    }

    /// The same for many keys. Those that nobody reads are read together; `read` answers for each of them, in their order.
    pub(super) fn board_many<F>(
        &self,
        wanted: &[(Key, Ticket)],
        read: impl FnOnce(Vec<(Key, Ticket)>, Arc<Logbook>) -> F + Send + 'static,
    ) -> Vec<Ride>
    where
        F: Future<Output = Vec<Found>> + Send + 'static,
    {
        let log = Arc::<Logbook>::default();
        // Others may come aboard before it is known who else travels: it departs when that is known.
        let (depart, departure) = oneshot::channel();
        let answers = {
            let log = Arc::clone(&log);
            async move {
                let travellers = departure.await.expect("sent as soon as all are aboard");
                Arc::from(read(travellers, log).await)
            }
        };
        let together = Ride { read: answers.boxed().shared(), place: 0, log };
        let (mut travellers, mut aboard) = (Vec::new(), Vec::new());
        let board = |(key, ticket): &(Key, Ticket)| {
            let place = travellers.len();
            let (ride, begun) = self.air.board(key, *ticket, || Ride { place, ..together.clone() });
            if let Some(number) = begun {
                travellers.push((key.clone(), *ticket));
                aboard.push((key.clone(), number));
            }
            ride
        };
        let rides = wanted.iter().map(board).collect();
        if !travellers.is_empty() && depart.send(travellers).is_ok() {
            self.take_off(&together.read, aboard);
        }
        rides
    }

    fn take_off(&self, read: &Read, aboard: Vec<(Key, u64)>) {
        let landing = Landing { air: Arc::clone(&self.air), aboard };
        // A read that the block cache answers ends at its first step and needs no crew.
        if read.clone().now_or_never().is_none() {
            let driven = read.clone();
            self.crew.spawn(async move {
                driven.await;
                drop(landing);
            });
        }
    }
}

// === impl Ride ===

impl Ride {
    /// Waits for the answer.
    ///
    /// # Cancel safety
    /// The read goes on without its callers.
    pub(super) async fn end(&self) -> Found {
        self.read.clone().await[self.place].clone()
    }

    /// The answer, if it is there.
    pub(super) fn ended(&self) -> Option<Found> {
        self.read.peek().map(|answers| answers[self.place].clone())
    }

    /// What the read has asked, and is asking.
    pub(super) const fn log(&self) -> &Arc<Logbook> {
        &self.log
    }
}

// === impl Logbook ===

impl Logbook {
    /// This part is being asked from now on.
    pub(super) fn asks(&self, part: &'static str, keys: usize, now: Instant) {
        self.progress().asking = Some((part, keys, now));
    }

    /// It has answered.
    pub(super) fn note(&self, step: TrailStep) {
        let mut progress = self.progress();
        progress.asking = None;
        progress.trail.add(step);
    }

    /// Every part asked so far; the one that has not answered yet is late.
    pub(super) fn trail(&self, now: Instant) -> Trail {
        let Progress { mut trail, asking } = *self.progress();
        if let Some((part, keys, since)) = asking {
            let took = now.saturating_duration_since(since);
            trail.add(TrailStep { part, outcome: Outcome::Late, keys, hits: 0, failed: keys, took });
        }
        trail
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Air ===

impl Air {
    /// The ride of the key that is good enough for this ticket, and its number if it begins now.
    fn board(&self, key: &Key, ticket: Ticket, ride: impl FnOnce() -> Ride) -> (Ride, Option<u64>) {
        let now = self.clock.monotonic();
        let is_open =
            |flight: &Flight| flight.ticket >= ticket && now.saturating_duration_since(flight.begun) < BOARDING;
        match self.shard(key).entry(key.clone()) {
            Place::Occupied(place) if is_open(place.get()) => (place.get().ride.clone(), None),
            place => {
                let number = self.taken_off.fetch_add(1, Ordering::Relaxed);
                let ride = ride();
                // An older flight loses its place, and goes on for those who wait for it.
                place.insert_entry(Flight { number, begun: now, ticket, ride: ride.clone() });
                (ride, Some(number))
            }
        }
    }

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

impl Drop for Landing {
    fn drop(&mut self) {
        self.aboard.iter().for_each(|(key, number)| self.air.land(key, *number));
    }
}

//! Which cold layers a change is meant for, and what the queue knows about each of them.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, RwLock};

use super::{NEVER_MS, lock, tagged::Tagged};
use crate::{
    clock::UnixMillis,
    layer::{Layer, LayerError, LayerId},
    metrics::Histogram,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

/// Lanes in all: one for each kind of cold layer.
pub(super) const LANES_MAX: usize = 2;

/// A set of cold layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lanes(u8);

/// One cold layer and the way to it. The slots that it owes stand in the lines of the shards.
pub(super) struct Lane {
    pub(super) target: Arc<dyn Layer>,
    pub(super) place: usize,
    /// One for each flusher. A flusher takes the shards whose number leaves the number of its seat when divided by
    /// their count, so that the writes of one key never overtake each other.
    pub(super) seats: Box<[Seat]>,
    /// Batches share it; a clear has it alone, so that every batch is wholly before or wholly after it.
    pub(super) gate: RwLock<()>,
    /// The last attempt failed.
    away: AtomicBool,
    /// When an attempt worked after one that had failed, in milliseconds since 1970; zero if none ever failed.
    back_ms: AtomicU64,
    /// A clear is owed: whatever the layer holds does not count.
    pub(super) void: AtomicBool,
    /// The lane has outgrown its share or is in somebody's way, and its flusher shall forget what it can.
    pub(super) overgrown: AtomicBool,
    /// The largest change that found no room since.
    pub(super) needed_bytes: AtomicU64,
    pub(super) relief: Notify,
    pub(super) tagged: Mutex<Tagged>,
    /// The last batch had nothing but removals by tag.
    went_alone: AtomicBool,
    pub(super) counts: LaneCounts,
    trouble: Mutex<Option<String>>,
}

/// Where one flusher rests.
pub(super) struct Seat {
    rest: AtomicU8,
    pub(super) wake: Notify,
    /// When the oldest write of the batch under way was accepted.
    pub(super) applying_since_ms: AtomicU64,
}

/// What a flusher is doing, so that writers know whether to wake it.
pub(super) enum Rest {}

#[derive(Default)]
pub(super) struct LaneCounts {
    pub(super) flushed: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) clears: AtomicU64,
    pub(super) replayed: AtomicU64,
    pub(super) forgotten: AtomicU64,
    pub(super) lost_at_shutdown: AtomicU64,
    /// From the acceptance of a write until the layer had it.
    pub(super) waited: Histogram,
}

/// What the queue reports about the way to one cold layer.
#[derive(Clone, Copy, Debug)]
pub struct LaneReport {
    /// Which layer.
    pub layer: LayerId,
    /// Writes that the layer does not have yet.
    pub items: u64,
    /// Removals among them, by key, by tag, and a clear.
    pub removals: u64,
    /// Removals brought to the layer that had to wait until it came back.
    pub replayed: u64,
    /// How long the oldest change has waited that the layer does not have, be it a write, a removal by tag or a clear.
    pub oldest_age: Duration,
    /// Writes brought to the layer.
    pub flushed: u64,
    /// Batches brought to the layer.
    pub batches: u64,
    /// Batches that failed, each of which was tried again.
    pub failures: u64,
    /// Values that the layer never got, because it was away for too long; their keys are removed from it.
    pub forgotten: u64,
    /// Clears carried out, those included that the layer was owed after it had been away for too long.
    pub clears: u64,
    /// Writes, removals by tag and clears that the layer did not have when the time to stop had run out.
    pub lost: u64,
    /// Whether the last attempt worked.
    pub is_reachable: bool,
    /// Whether what the layer holds may be served.
    pub is_trusted: bool,
}

// === impl Lanes ===

impl Lanes {
    /// No layer.
    pub const NONE: Self = Self(0);

    /// One layer; none for memory, to which nothing is queued.
    pub const fn of(layer: LayerId) -> Self {
        match layer {
            LayerId::Memory => Self::NONE,
            LayerId::Redis => Self(1),
            LayerId::Disk => Self(2),
        }
    }

    pub(super) const fn at(place: usize) -> Self {
        Self(1 << place)
    }

    pub(super) const fn bits(self) -> u8 {
        self.0
    }

    /// The reverse of [`Lanes::bits`]; what is no lane is left out.
    pub(super) fn from_bits(bits: u64) -> Self {
        (0..LANES_MAX)
            .filter(|place| bits >> place & 1 == 1)
            .fold(Self::NONE, |lanes, place| lanes.with(Self::at(place)))
    }

    /// Those of both.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These except the others.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// Whether all of the others are among these.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Takes these out; answers whether they were in.
    pub(super) const fn remove(&mut self, lanes: Self) -> bool {
        let were_in = self.contains(lanes);
        *self = self.without(lanes);
        were_in
    }

    pub(super) fn places(self) -> impl Iterator<Item = usize> {
        (0..LANES_MAX).filter(move |&place| self.contains(Self::at(place)))
    }
}

// === impl Lane ===

impl Lane {
    pub(super) fn new(target: Arc<dyn Layer>) -> Self {
        let place = Lanes::of(target.id()).places().next().expect("memory is no target of the queue");
        Self {
            seats: (0..flushers(target.id())).map(|_| Seat::default()).collect(),
            target,
            place,
            gate: RwLock::new(()),
            away: AtomicBool::new(false),
            back_ms: AtomicU64::new(0),
            void: AtomicBool::new(false),
            overgrown: AtomicBool::new(false),
            needed_bytes: AtomicU64::new(0),
            relief: Notify::new(),
            tagged: Mutex::default(),
            went_alone: AtomicBool::new(false),
            counts: LaneCounts::default(),
            trouble: Mutex::new(None),
        }
    }

    /// Whether the removals by tag that there are, if any, get a batch of their own: every other one at most.
    pub(super) fn go_alone(&self, are_there: bool) -> bool {
        let alone = are_there && !self.went_alone.load(Ordering::Relaxed);
        self.went_alone.store(alone, Ordering::Relaxed);
        alone
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    pub(super) fn is_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }

    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    pub(super) fn back_ms(&self) -> u64 {
        self.back_ms.load(Ordering::Relaxed)
    }

    /// An attempt worked.
    pub(super) fn arrived(&self, now: UnixMillis) {
        if self.away.swap(false, Ordering::AcqRel) {
            self.back_ms.store(now.0, Ordering::Relaxed);
            *lock(&self.trouble) = None;
            self.overgrown.store(false, Ordering::Relaxed);
            tracing::info!(layer = %self.target.id(), "queued writes reach the layer again");
        }
    }

    /// An attempt failed.
    pub(super) fn failed(&self, error: &LayerError) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        *lock(&self.trouble) = Some(error.to_string());
        if !self.away.swap(true, Ordering::AcqRel) {
            tracing::warn!(%error, "queued writes do not reach the layer; they are tried again until they do");
        }
    }

    /// Wakes the flusher of the shard if it rests, out of its linger only if it is urgent.
    #[inline]
    pub(super) fn wake(&self, shard: usize, urgent: bool) {
        self.seats[shard % self.seats.len()].wake(urgent);
    }

    pub(super) fn wake_all(&self) {
        self.seats.iter().for_each(|seat| seat.wake(true));
    }

    pub(super) fn applying_since_ms(&self) -> u64 {
        let since = self.seats.iter().map(|seat| seat.applying_since_ms.load(Ordering::Relaxed));
        since.min().unwrap_or(NEVER_MS)
    }
}

/// RocksDB has one writer; Redis answers one batch while the next is on its way.
const fn flushers(layer: LayerId) -> usize {
    match layer {
        LayerId::Redis => 2,
        LayerId::Memory | LayerId::Disk => 1,
    }
}

// === impl Seat ===

impl Default for Seat {
    fn default() -> Self {
        Self { rest: AtomicU8::new(Rest::BUSY), wake: Notify::new(), applying_since_ms: AtomicU64::new(NEVER_MS) }
    }
}

impl Seat {
    pub(super) fn rests(&self, rest: u8) {
        self.rest.store(rest, Ordering::Relaxed);
    }

    #[inline]
    fn wake(&self, urgent: bool) {
        let rest = self.rest.load(Ordering::Relaxed);
        let wanted = rest == Rest::IDLE || (rest == Rest::LINGERING && urgent);
        if wanted && self.rest.swap(Rest::BUSY, Ordering::Relaxed) != Rest::BUSY {
            self.wake.notify_one();
        }
    }
}

// === impl Rest ===

impl Rest {
    pub(super) const BUSY: u8 = 0;
    /// Waits for more overwrites; wants to hear of removals.
    pub(super) const LINGERING: u8 = 1;
    /// Wants to hear of anything.
    pub(super) const IDLE: u8 = 2;
}

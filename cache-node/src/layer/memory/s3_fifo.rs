//! S3-FIFO: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
//!
//! A read takes a shard's lock shared, counts its visit in the entry's own header and clones a pointer. A write takes
//! the lock of one shard. Entries are dropped outside the locks.
//!
//! The capacity is one for all shards: each has an allowance, which it draws from the [`Room`] until that is used up. From
//! then on a shard evicts its own entries, unless it has clearly less than an equal share, or the new entry is heavy:
//! then the others give up some of theirs. So an entry is held if it fits the capacity, however many shards there are.

mod ghosts;
mod levy;
mod room;
mod shard;

use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicUsize};

use ahash::RandomState;

use self::{room::Room, shard::Shard};
use super::{Admission, weight::weight};
use crate::{entry::Entry, sync::RwLock};

/// A shard for so many bytes: a few thousand entries, so that a growing table stops its shard for less than a
/// millisecond.
const SHARD_BYTES: u64 = 2 << 20;

/// Fewer make threads wait for each other, more take memory for nothing.
const SHARDS_MIN: u64 = 4;
const SHARDS_MAX: u64 = 4096;

/// Entries that are looked at or given up under one lock.
const STEP: usize = 128;

/// Times that a writer asks the other shards for room; other writers may take it before him.
const ROUNDS_MAX: usize = 4;

/// The engine.
pub(super) struct S3Fifo {
    shards: Box<[Place]>,
    hasher: RandomState,
    room: Room,
    /// Which shard is asked for room first the next time.
    hand: AtomicUsize,
}

/// Two cache lines apart, because processors fetch lines in pairs.
#[repr(align(128))]
struct Place(RwLock<Shard>);

/// An entry on its way in.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    hash: u64,
    entry: &'a Entry,
    until: u64,
}

/// What one lock's worth of eviction pushed out, so that it is dropped outside the lock.
#[derive(Default)]
struct Gone {
    entries: Vec<Entry>,
    unread: u64,
}

// === impl S3Fifo ===

impl S3Fifo {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let shards = (capacity_bytes / SHARD_BYTES).next_power_of_two().clamp(SHARDS_MIN, SHARDS_MAX) as usize;
        let hasher = RandomState::new();
        Self {
            shards: (0..shards).map(|_| Place(RwLock::new(Shard::new(hasher.clone())))).collect(),
            hasher,
            room: Room::new(capacity_bytes, shards),
            hand: AtomicUsize::new(0),
        }
    }

    /// The entry of `key`, if it is one to be kept.
    #[inline]
    pub(super) fn get(&self, key: &[u8], keeps: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let hash = self.hasher.hash_one(key);
        let shard = self.place(hash).read();
        let entry = shard.get(hash, key).filter(|entry| keeps(entry))?;
        entry.marks().visit();
        Some(entry.clone())
    }

    /// Holds the entry until that time.
    pub(super) fn set(&self, entry: &Entry, until: u64) -> Admission {
        let mut admission = Admission::default();
        let hash = self.hasher.hash_one(entry.key());
        let arrival = Arrival { hash, entry, until };
        if weight(entry) <= self.room.capacity() {
            for round in 1..=ROUNDS_MAX {
                let short = self.try_set(arrival, round == ROUNDS_MAX, &mut admission);
                if short == 0 {
                    return admission;
                }
                let got = self.levy(short + self.room.reserve(), Some(hash), &mut admission);
                self.place(hash).write().allowance += got;
            }
        }
        self.remove(entry.key());
        Admission { refused: true, ..admission }
    }

    pub(super) fn remove(&self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        // Dropped outside the lock.
        let _removed = self.remove_if(hash, key, |_| true);
    }

    pub(super) fn clear(&self) {
        for place in &self.shards {
            let mut shard = place.write();
            let empty = shard.emptied();
            let full = std::mem::replace(&mut *shard, empty);
            self.give_back(&mut shard);
            drop(shard);
            drop(full);
        }
    }

    /// Takes out what is `gone` and shows it, without holding a lock for long.
    pub(super) fn sweep(&self, gone: &dyn Fn(&Entry) -> bool, mut swept: impl FnMut(&Entry)) {
        for place in &self.shards {
            let mut next = Some(0);
            while let Some(from) = next {
                let (found, after) = place.read().scan(from, STEP, gone);
                next = after;
                for entry in found {
                    // Asked again under the lock: a fresh value may have come meanwhile.
                    let hash = self.hasher.hash_one(entry.key());
                    self.remove_if(hash, entry.key(), gone).iter().for_each(&mut swept);
                }
            }
            place.write().pack();
        }
    }

    pub(super) fn entries(&self) -> u64 {
        self.shards.iter().map(|place| place.read().entries() as u64).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.shards.iter().map(|place| place.read().bytes()).sum()
    }

    /// A power of two; the lower half of the hash is the table's and the ghosts'.
    fn place(&self, hash: u64) -> &Place {
        &self.shards[(hash >> 32) as usize & (self.shards.len() - 1)]
    }

    fn remove_if(&self, hash: u64, key: &[u8], may_go: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let mut shard = self.place(hash).write();
        let removed = shard.remove_if(hash, key, may_go);
        self.give_back(&mut shard);
        removed
    }

    /// Puts the entry in, if its shard can make room; else answers how many bytes it lacks.
    fn try_set(&self, arrival: Arrival<'_>, alone: bool, admission: &mut Admission) -> u64 {
        let (Arrival { hash, entry, until }, mut gone) = (arrival, Gone::default());
        entry.marks().hold_until(until);
        let mut shard = self.place(hash).write();
        let mut outcome = shard.put(hash, entry);
        if outcome.is_err() {
            let short = self.make_room(&mut shard, arrival, alone, &mut gone);
            outcome = if short == 0 { shard.put(hash, entry) } else { Err(short) };
        }
        if outcome.is_ok() {
            self.give_back(&mut shard);
        }
        drop(shard);
        admission.add(&gone);
        // What was replaced is dropped outside the lock, too.
        outcome.err().unwrap_or(0)
    }
}

// === impl Place ===

impl Place {
    fn read(&self) -> RwLockReadGuard<'_, Shard> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shard> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Gone ===

impl Gone {
    fn evict_from(&mut self, shard: &mut Shard) {
        if let Some(evicted) = shard.evict() {
            self.unread += u64::from(evicted.unread);
            self.entries.push(evicted.entry);
        }
    }
}

impl Admission {
    fn add(&mut self, gone: &Gone) {
        self.evicted += gone.entries.len() as u64;
        self.evicted_unread += gone.unread;
    }
}

#[cfg(test)]
mod tests;

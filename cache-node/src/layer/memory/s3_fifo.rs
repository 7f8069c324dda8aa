//! S3-FIFO by quick_cache. Key slot and value slot are thin pointers to the same block, so an entry is one allocation.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    thread,
};

use ahash::RandomState;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter, sync::Cache};

use super::{Admission, Held};
use crate::{clock::UnixMillis, entry::Entry};

/// Share of evicted keys that are remembered, per entry: 0.1 measured as good as 0.5 and takes a fifth of the memory.
const GHOSTS_PER_ENTRY: f64 = 0.1;

/// Share of a shard that popular entries may take. quick_cache refuses an entry heavier than this share.
const HOT_SHARE: f64 = 0.97;

/// Entries a shard is expected to hold, by which ghosts are bounded.
const ENTRY_WEIGHT_EXPECTED: u64 = 256;

/// More shards than this only cost memory.
const SHARDS_MAX: usize = 256;

/// The engine.
pub(super) struct S3Fifo {
    cache: Cache<KeySlot, Held, Weight, RandomState, Watch>,
    /// Heavier entries are refused by the engine.
    weight_max: u64,
}

/// Hashes and compares as the key inside the block.
#[derive(Clone)]
struct KeySlot(Entry);

#[derive(Clone)]
struct Weight;

/// Collects what one insertion pushed out, so that it is dropped and counted outside the shard's lock.
#[derive(Clone)]
struct Watch;

#[derive(Default)]
struct Gone {
    first: Option<(Entry, Queue)>,
    more: Vec<(Entry, Queue)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// Not read since it came.
    Cold,
    Hot,
}

// === impl S3Fifo ===

impl S3Fifo {
    pub(super) fn new(capacity_bytes: u64, weight_max: u64) -> Self {
        let shards = shards(capacity_bytes, weight_max);
        let entries = usize::try_from(capacity_bytes / ENTRY_WEIGHT_EXPECTED).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity(entries.max(32 * shards))
            .weight_capacity(capacity_bytes)
            .hot_allocation(HOT_SHARE)
            .ghost_allocation(GHOSTS_PER_ENTRY)
            .build()
            .expect("items and weight are set");
        let cache = Cache::with_options(options, Weight, RandomState::new(), Watch);
        let weight_max = hot_bytes(cache.shard_capacity());
        Self { cache, weight_max }
    }

    #[inline]
    pub(super) fn get(&self, key: &[u8]) -> Option<Held> {
        self.cache.get(key)
    }

    pub(super) fn set(&self, entry: &Entry, until_ms: u64) -> Admission {
        let held = Held { entry: entry.clone(), until_ms };
        if held.weight() > self.weight_max {
            self.remove(entry.key());
            return Admission { refused: true, ..Admission::default() };
        }
        let mut gone = Gone::default();
        self.cache.insert_with_lifecycle(KeySlot(entry.clone()), held, &mut gone);
        gone.admission(entry.key())
    }

    pub(super) fn remove(&self, key: &[u8]) {
        drop(self.cache.remove(key));
    }

    pub(super) fn clear(&self) {
        self.cache.clear();
    }

    pub(super) fn sweep(&self, now: UnixMillis) -> u64 {
        let mut swept = 0;
        // Not `retain`: it holds a shard's write lock for as long as it takes to look at all its entries.
        for (key, held) in self.cache.iter() {
            if now.0 < held.until_ms {
                continue;
            }
            // Checked again under the lock: a fresh value may have come meanwhile.
            let removed = self.cache.remove_if(key.0.key(), |held| held.until_ms <= now.0);
            swept += u64::from(removed.is_some());
        }
        swept
    }

    pub(super) fn entries(&self) -> u64 {
        self.cache.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

/// Four shards a core, so that threads rarely meet, but no shard so small that it must refuse the largest entry:
/// quick_cache splits its weight evenly and never lends.
fn shards(capacity_bytes: u64, weight_max: u64) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut shards = (4 * cores).next_power_of_two().min(SHARDS_MAX);
    while shards > 1 && hot_bytes(capacity_bytes / shards as u64) < weight_max {
        shards /= 2;
    }
    shards
}

fn hot_bytes(shard_capacity: u64) -> u64 {
    (shard_capacity as f64 * HOT_SHARE) as u64
}

// === impl KeySlot ===

impl Borrow<[u8]> for KeySlot {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl PartialEq for KeySlot {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for KeySlot {}

impl Hash for KeySlot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}

// === impl Weight ===

impl Weighter<KeySlot, Held> for Weight {
    fn weight(&self, _key: &KeySlot, held: &Held) -> u64 {
        held.weight()
    }
}

// === impl Watch ===

impl Lifecycle<KeySlot, Held> for Watch {
    type RequestState = Gone;

    fn on_evict_cold(&self, gone: &mut Gone, _key: KeySlot, held: Held) {
        gone.push(held.entry, Queue::Cold);
    }

    fn on_evict_hot(&self, gone: &mut Gone, _key: KeySlot, held: Held) {
        gone.push(held.entry, Queue::Hot);
    }
}

// === impl Gone ===

impl Gone {
    fn push(&mut self, entry: Entry, queue: Queue) {
        if self.first.is_none() {
            self.first = Some((entry, queue));
        } else {
            self.more.push((entry, queue));
        }
    }

    /// The engine reports an overwritten entry like an evicted one; only those of other keys were evicted.
    fn admission(&self, inserted: &[u8]) -> Admission {
        let mut admission = Admission::default();
        for (entry, queue) in self.first.iter().chain(&self.more) {
            if entry.key() != inserted {
                admission.evicted += 1;
                admission.evicted_unread += u64::from(*queue == Queue::Cold);
            }
        }
        admission
    }
}

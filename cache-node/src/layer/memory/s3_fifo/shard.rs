//! One shard: a table of the keys, their entries in two queues, and the memory of evicted keys. Knows no lock.

use ahash::RandomState;
use hashbrown::HashTable;

use super::{
    ghosts::Ghosts,
    slab::{Queue, Slab},
};
use crate::{entry::Entry, layer::memory::weight::weight};

/// An entry read this often since it came is moved to the main queue instead of being evicted.
const VISITS_TO_STAY: u32 = 2;

/// The small queue is to have one part in so many of the bytes.
const SMALL_PART: u64 = 10;

/// Entries that one eviction may spare, so that it holds the lock only for so long. The next one then goes, read or not.
const SPARED_MAX: usize = 64;

/// A shard with less than one entry in so many slots is packed anew by the sweep.
const SPARSE: usize = 4;

/// Fewer slots than this are not worth packing.
const SLOTS_KEPT: usize = 64;

/// Part of the engine that one lock guards.
pub(super) struct Shard {
    /// Bytes that its entries may weigh together. Between two calls they do not weigh more.
    pub(super) allowance: u64,
    hasher: RandomState,
    /// Numbers of slots, by the hash of their entry's key.
    table: HashTable<u32>,
    slab: Slab,
    ghosts: Ghosts,
}

/// An entry given up for want of room.
pub(super) struct Evicted {
    pub(super) entry: Entry,
    /// Nobody had read it.
    pub(super) unread: bool,
}

// === impl Shard ===

impl Shard {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self { allowance: 0, hasher, table: HashTable::new(), slab: Slab::default(), ghosts: Ghosts::default() }
    }

    pub(super) fn entries(&self) -> usize {
        self.table.len()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.slab.bytes()
    }

    /// Bytes of the allowance that no entry takes.
    pub(super) const fn spare(&self) -> u64 {
        self.allowance.saturating_sub(self.slab.bytes())
    }

    #[inline]
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        self.find(hash, key).map(|id| self.slab.entry(id))
    }

    /// By how many bytes the allowance is too small to put `entry` in.
    pub(super) fn short_of(&self, hash: u64, entry: &Entry) -> u64 {
        let old = self.get(hash, entry.key()).map_or(0, weight);
        (self.slab.bytes() - old + weight(entry)).saturating_sub(self.allowance)
    }

    /// Puts the entry in; answers the one of the same key that was there. A replaced entry hands on its place and its
    /// visits.
    pub(super) fn put(&mut self, hash: u64, entry: Entry) -> Option<Entry> {
        debug_assert_eq!(self.short_of(hash, &entry), 0, "room is made first");
        if let Some(id) = self.find(hash, entry.key()) {
            entry.marks().set_visits(self.slab.entry(id).marks().visits());
            return Some(self.slab.replace(id, entry));
        }
        entry.marks().set_visits(0);
        let queue = if self.ghosts.recall(hash) { Queue::Main } else { Queue::Small };
        let id = self.slab.push(entry, queue);
        let Self { hasher, table, slab, .. } = self;
        table.insert_unique(hash, id, |&id| hasher.hash_one(slab.entry(id).key()));
        None
    }

    /// Takes the entry out, if it is one that may go.
    pub(super) fn remove_if(&mut self, hash: u64, key: &[u8], may_go: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let id = self.find(hash, key).filter(|&id| may_go(self.slab.entry(id)))?;
        Some(self.take(hash, id))
    }

    /// Gives up one entry, as S3-FIFO chooses: from the small queue while that has more than its part, else from the
    /// main one; entries that were read meanwhile are spared.
    pub(super) fn evict(&mut self) -> Option<Evicted> {
        for spared in 0.. {
            let queue = self.queue_to_shrink();
            let id = self.slab.oldest(queue)?;
            let marks = self.slab.entry(id).marks();
            let visits = marks.visits();
            match queue {
                Queue::Small if visits >= VISITS_TO_STAY && spared < SPARED_MAX => marks.set_visits(0),
                Queue::Main if visits > 0 && spared < SPARED_MAX => marks.set_visits(visits - 1),
                Queue::Small | Queue::Main => {
                    let hash = self.hasher.hash_one(self.slab.entry(id).key());
                    if queue == Queue::Small {
                        self.ghosts.remember(hash, self.table.len());
                    }
                    let unread = queue == Queue::Small && visits == 0;
                    return Some(Evicted { entry: self.take(hash, id), unread });
                }
            }
            self.slab.requeue(id, Queue::Main);
        }
        None
    }

    /// Looks at the next `count` places of the table from `from` on; answers which entries are `gone`, and where to go
    /// on. Whoever writes meanwhile may move entries, so that one is missed until the next time.
    pub(super) fn scan(&self, from: usize, count: usize, gone: &dyn Fn(&Entry) -> bool) -> (Vec<Entry>, Option<usize>) {
        let end = (from + count).min(self.table.num_buckets());
        let entries = (from..end).filter_map(|place| self.table.get_bucket(place)).map(|&id| self.slab.entry(id));
        let found = entries.filter(|entry| gone(entry)).cloned().collect();
        (found, (end < self.table.num_buckets()).then_some(end))
    }

    /// Gives memory back after most entries have gone.
    pub(super) fn pack(&mut self) {
        let entries = self.table.len();
        if self.slab.slots() < SLOTS_KEPT || entries * SPARSE > self.slab.slots() {
            return;
        }
        let mut slab = Slab::with_capacity(entries);
        let mut table = HashTable::with_capacity(entries);
        for queue in [Queue::Small, Queue::Main] {
            while let Some(oldest) = self.slab.oldest(queue) {
                let id = slab.push(self.slab.take(oldest), queue);
                let hash = |&id: &u32| self.hasher.hash_one(slab.entry(id).key());
                table.insert_unique(hash(&id), id, hash);
            }
        }
        self.slab = slab;
        self.table = table;
    }

    /// A shard with nothing in it, and the allowance of this one.
    pub(super) fn emptied(&self) -> Self {
        Self { allowance: self.allowance, ..Self::new(self.hasher.clone()) }
    }

    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.table.find(hash, |&id| self.slab.entry(id).key() == key).copied()
    }

    fn queue_to_shrink(&self) -> Queue {
        let small = self.slab.bytes_of(Queue::Small);
        let whole = small * SMALL_PART >= self.slab.bytes() && small > 0;
        if whole { Queue::Small } else { Queue::Main }
    }

    fn take(&mut self, hash: u64, id: u32) -> Entry {
        match self.table.find_entry(hash, |&known| known == id) {
            Ok(place) => drop(place.remove()),
            Err(_) => debug_assert!(false, "every occupied slot is in the table"),
        }
        self.slab.take(id)
    }
}

#[cfg(test)]
mod tests;

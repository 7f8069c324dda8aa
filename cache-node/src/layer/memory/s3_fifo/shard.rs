//! One shard: a table of the entries, two queues, and the memory of evicted keys. Knows no lock.
//!
//! The table holds one pointer an entry. The queues hold fingerprints, 32 bits of the key's hash, by which the entry is
//! found again when its turn comes: 4 bytes instead of two links. A removed entry leaves its fingerprint behind, which
//! is skipped then; when half of all are left behind, the queues are tidied.

use std::{
    collections::{HashSet, VecDeque},
    mem,
};

use ahash::RandomState;
use hashbrown::{HashTable, hash_table::Entry as Slot};

use super::ghosts::Ghosts;
use crate::{entry::Entry, layer::memory::weight::weight};

/// An entry read this often since it came is moved to the main queue instead of being evicted.
const VISITS_TO_STAY: u32 = 2;

/// The small queue is to have one part in so many of the entries.
const SMALL_PART: usize = 10;

/// Entries that one eviction may spare, so that it holds the lock only for so long. The next one then goes, read or not.
const SPARED_MAX: usize = 64;

/// What would hold so many times the entries there are gives memory back at the next sweep.
const SPARSE: usize = 4;

/// Fewer places than this are not worth giving back.
const PLACES_KEPT: usize = 64;

/// Part of the engine that one lock guards.
pub(super) struct Shard {
    /// By the fingerprint of their key.
    table: HashTable<Entry>,
    bytes: u64,
    /// Bytes that the entries may weigh together. Between two calls they do not weigh more.
    pub(super) allowance: u64,
    /// New entries, oldest first. Most leave from here.
    small: VecDeque<u32>,
    /// Entries that were asked for again.
    main: VecDeque<u32>,
    ghosts: Ghosts,
    hasher: RandomState,
}

/// An entry given up for want of room.
pub(super) struct Evicted {
    pub(super) entry: Entry,
    /// Nobody had read it.
    pub(super) unread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

// === impl Shard ===

impl Shard {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            table: HashTable::new(),
            bytes: 0,
            allowance: 0,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: Ghosts::default(),
            hasher,
        }
    }

    pub(super) fn entries(&self) -> usize {
        self.table.len()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the allowance that no entry takes.
    pub(super) const fn spare(&self) -> u64 {
        self.allowance.saturating_sub(self.bytes)
    }

    #[inline]
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        self.table.find(place(fingerprint(hash)), |entry| entry.key() == key)
    }

    /// By how many bytes the allowance is too small to put `entry` in.
    pub(super) fn short_of(&self, hash: u64, entry: &Entry) -> u64 {
        let old = self.get(hash, entry.key()).map_or(0, weight);
        (self.bytes - old + weight(entry)).saturating_sub(self.allowance)
    }

    /// Puts the entry in, if the allowance has room for it, with one look at the table; answers the one of the same key
    /// that was there, or how many bytes there are too few. A replaced entry hands on its place and its visits.
    pub(super) fn put(&mut self, hash: u64, entry: &Entry) -> Result<Option<Entry>, u64> {
        let (fingerprint, hasher, more) = (fingerprint(hash), &self.hasher, weight(entry));
        let is_same = |held: &Entry| held.key() == entry.key();
        match self.table.entry(place(fingerprint), is_same, |held| place(fingerprint_of(hasher, held))) {
            Slot::Occupied(mut slot) => {
                let held = slot.get_mut();
                let bytes = self.bytes - weight(held) + more;
                if bytes > self.allowance {
                    return Err(bytes - self.allowance);
                }
                self.bytes = bytes;
                entry.marks().set_visits(held.marks().visits());
                return Ok(Some(mem::replace(held, entry.clone())));
            }
            Slot::Vacant(slot) => {
                let bytes = self.bytes + more;
                if bytes > self.allowance {
                    return Err(bytes - self.allowance);
                }
                self.bytes = bytes;
                entry.marks().set_visits(0);
                slot.insert(entry.clone());
            }
        }
        let queue = if self.ghosts.recall(fingerprint) { &mut self.main } else { &mut self.small };
        queue.push_back(fingerprint);
        if self.small.len() + self.main.len() > 2 * self.table.len() + PLACES_KEPT {
            self.tidy();
        }
        Ok(None)
    }

    /// Takes the entry out, if it is one that may go.
    pub(super) fn remove_if(&mut self, hash: u64, key: &[u8], may_go: impl Fn(&Entry) -> bool) -> Option<Entry> {
        self.take(fingerprint(hash), |entry| entry.key() == key && may_go(entry))
    }

    /// Gives up one entry, as S3-FIFO chooses: from the small queue while that has more than its part, else from the
    /// main one; entries that were read meanwhile are spared.
    pub(super) fn evict(&mut self) -> Option<Evicted> {
        let mut spared = 0;
        while !self.table.is_empty() {
            let queue = self.queue_to_shrink();
            let Some(fingerprint) = self.queue(queue).pop_front() else {
                // Two keys of one fingerprint, and tidying kept it once.
                self.small.extend(self.table.iter().map(|entry| fingerprint_of(&self.hasher, entry)));
                continue;
            };
            let Some(entry) = self.find(fingerprint) else { continue };
            let visits = entry.marks().visits();
            match queue {
                Queue::Small if visits >= VISITS_TO_STAY && spared < SPARED_MAX => entry.marks().set_visits(0),
                Queue::Main if visits > 0 && spared < SPARED_MAX => entry.marks().set_visits(visits - 1),
                Queue::Small | Queue::Main => {
                    if queue == Queue::Small {
                        self.ghosts.remember(fingerprint, self.table.len());
                    }
                    let entry = self.take_any(fingerprint)?;
                    return Some(Evicted { entry, unread: queue == Queue::Small && visits == 0 });
                }
            }
            spared += 1;
            self.main.push_back(fingerprint);
        }
        None
    }

    /// Looks at the next `count` places of the table from `from` on; answers which entries are `gone`, and where to go
    /// on. Whoever writes meanwhile may move entries, so that one is missed until the next time.
    pub(super) fn scan(&self, from: usize, count: usize, gone: &dyn Fn(&Entry) -> bool) -> (Vec<Entry>, Option<usize>) {
        let end = (from + count).min(self.table.num_buckets());
        let entries = (from..end).filter_map(|place| self.table.get_bucket(place));
        let found = entries.filter(|entry| gone(entry)).cloned().collect();
        (found, (end < self.table.num_buckets()).then_some(end))
    }

    /// Gives memory back after most entries have gone.
    pub(super) fn pack(&mut self) {
        let entries = self.table.len();
        if self.table.capacity() > PLACES_KEPT.max(entries * SPARSE) {
            self.tidy();
            self.table.shrink_to(0, |entry| place(fingerprint_of(&self.hasher, entry)));
        }
        for queue in [&mut self.small, &mut self.main] {
            if queue.capacity() > PLACES_KEPT.max(queue.len() * SPARSE) {
                queue.shrink_to(2 * queue.len());
            }
        }
    }

    /// A shard with nothing in it, and the allowance of this one.
    pub(super) fn emptied(&self) -> Self {
        Self { allowance: self.allowance, ..Self::new(self.hasher.clone()) }
    }

    /// Drops fingerprints of entries that are gone, and all but the youngest of those that are there again. The main
    /// queue is asked first: in doubt an entry stays longer.
    fn tidy(&mut self) {
        let mut seen = HashSet::with_capacity_and_hasher(self.table.len(), self.hasher.clone());
        for queue in [Queue::Main, Queue::Small] {
            let old = mem::take(self.queue(queue));
            let youngest_first =
                old.into_iter().rev().filter(|&known| self.find(known).is_some() && seen.insert(known));
            let mut kept: VecDeque<u32> = youngest_first.collect();
            kept.make_contiguous().reverse();
            *self.queue(queue) = kept;
        }
    }

    fn queue_to_shrink(&self) -> Queue {
        let whole = self.small.len() + self.main.len();
        if self.small.len() * SMALL_PART >= whole { Queue::Small } else { Queue::Main }
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<u32> {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    fn find(&self, fingerprint: u32) -> Option<&Entry> {
        self.table.find(place(fingerprint), |entry| fingerprint_of(&self.hasher, entry) == fingerprint)
    }

    fn take_any(&mut self, fingerprint: u32) -> Option<Entry> {
        let hasher = self.hasher.clone();
        self.take(fingerprint, |entry| fingerprint_of(&hasher, entry) == fingerprint)
    }

    fn take(&mut self, fingerprint: u32, is_it: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let (entry, _) = self.table.find_entry(place(fingerprint), is_it).ok()?.remove();
        self.bytes -= weight(&entry);
        Some(entry)
    }
}

fn fingerprint_of(hasher: &RandomState, entry: &Entry) -> u32 {
    fingerprint(hasher.hash_one(entry.key()))
}

/// The lower half, never zero; the upper one has chosen the shard.
fn fingerprint(hash: u64) -> u32 {
    (hash as u32).max(1)
}

/// Where the table has it: hashbrown takes the place from the lower bits and a tag from the upper ones.
fn place(fingerprint: u32) -> u64 {
    u64::from(fingerprint).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests;

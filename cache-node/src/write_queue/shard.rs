//! A part of the queue under one lock: slots by key, and the order in which they are flushed.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::{HashTable, hash_table::Entry as Place};

use super::{BATCH_BYTES, BATCH_ITEMS, Pending, Receipt};
use crate::layer::Change;

/// Write counts of a shard. With 64 shards there are 4096, so an unrelated write rarely spoils a ticket.
pub(super) const STRIPES: usize = 64;

/// A part of the queue.
pub(super) struct Shard {
    writes: [u64; STRIPES],
    slots: HashTable<Slot>,
    order: VecDeque<Ref>,
    /// Slots somebody waits for; they stand in `order` too, whichever comes first.
    removals: VecDeque<Ref>,
    next_seq: u64,
    /// A clear is on its way: whatever is below is stale.
    clearing: bool,
}

/// The newest accepted change of a key.
struct Slot {
    hash: u64,
    /// Changes whenever the slot is queued anew, so that an old reference or batch does not touch it.
    seq: u64,
    since_ms: u64,
    change: Change,
    charge: u64,
    applying: bool,
    receipts: Vec<Arc<Receipt>>,
}

/// A change for which there is room.
pub(super) struct Accepted {
    pub(super) change: Change,
    pub(super) charge: u64,
    pub(super) at_ms: u64,
}

#[derive(Clone, Copy)]
struct Ref {
    hash: u64,
    seq: u64,
}

/// Changes on their way to disk together. They stay visible in their slots until settled.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    slots: Vec<(usize, Ref)>,
    receipts: Vec<Arc<Receipt>>,
    charge: u64,
    oldest_ms: Option<u64>,
}

// === impl Shard ===

impl Default for Shard {
    fn default() -> Self {
        Self {
            writes: [0; STRIPES],
            slots: HashTable::new(),
            order: VecDeque::new(),
            removals: VecDeque::new(),
            next_seq: 0,
            clearing: false,
        }
    }
}

impl Shard {
    pub(super) fn pending(&self, hash: u64, key: &[u8]) -> Pending {
        match self.slots.find(hash, |slot| slot.change.key() == key) {
            Some(Slot { change: Change::Set(entry) | Change::Fill(entry), .. }) => Pending::Value(entry.clone()),
            Some(Slot { change: Change::Remove(_) | Change::RemoveTagged(_), .. }) => Pending::Removed,
            None if self.clearing => Pending::Removed,
            None => Pending::Unknown,
        }
    }

    pub(super) fn writes(&self, stripe: usize) -> u64 {
        self.writes[stripe]
    }

    pub(super) fn count_write(&mut self, stripe: usize) {
        self.writes[stripe] += 1;
    }

    /// What the waiting slot of the key is charged; `None` if a change of the key needs a slot of its own. A slot that
    /// is being applied keeps its charge in the batch.
    pub(super) fn replaceable_charge(&self, hash: u64, key: &[u8]) -> Option<u64> {
        self.slots.find(hash, |slot| slot.change.key() == key).filter(|slot| !slot.applying).map(|slot| slot.charge)
    }

    /// Takes the change in, replacing one of the same key.
    pub(super) fn put(&mut self, hash: u64, accepted: Accepted, receipt: Option<Arc<Receipt>>) {
        let Accepted { change, charge, at_ms } = accepted;
        let fresh = Slot {
            hash,
            seq: self.next_seq,
            since_ms: at_ms,
            change,
            charge,
            applying: false,
            receipts: receipt.into_iter().collect(),
        };
        self.next_seq += 1;
        let hurried = !fresh.receipts.is_empty();
        let reference = match self.slots.entry(hash, |slot| slot.change.key() == fresh.change.key(), |slot| slot.hash) {
            Place::Vacant(place) => {
                let reference = fresh.reference();
                place.insert(fresh);
                self.order.push_back(reference);
                reference
            }
            Place::Occupied(mut place) => {
                let slot = place.get_mut();
                if slot.applying {
                    // Its receipts and its charge went with the batch.
                    *slot = fresh;
                    self.order.push_back(slot.reference());
                } else {
                    // It keeps its place and its age; whoever waits for the older change waits for this one.
                    slot.change = fresh.change;
                    slot.charge = fresh.charge;
                    slot.receipts.extend(fresh.receipts);
                }
                slot.reference()
            }
        };
        if hurried {
            self.removals.push_back(reference);
        }
    }

    pub(super) fn take_removals(&mut self, index: usize, batch: &mut Batch) {
        while !batch.is_full() {
            let Some(reference) = self.removals.pop_front() else { return };
            self.take(index, reference, batch);
        }
    }

    pub(super) fn take_ordered(&mut self, index: usize, batch: &mut Batch) {
        while !batch.is_full() {
            let Some(reference) = self.order.pop_front() else { return };
            self.take(index, reference, batch);
        }
    }

    fn take(&mut self, index: usize, reference: Ref, batch: &mut Batch) {
        // Gone or taken: it went through the other order.
        let Some(slot) = self.slots.find_mut(reference.hash, |slot| slot.seq == reference.seq) else { return };
        if slot.applying {
            return;
        }
        slot.applying = true;
        batch.changes.push(slot.change.clone());
        batch.slots.push((index, reference));
        batch.receipts.append(&mut slot.receipts);
        batch.charge += slot.charge;
        batch.oldest_ms = Some(batch.oldest_ms.map_or(slot.since_ms, |oldest| oldest.min(slot.since_ms)));
    }

    /// The change with this number is on disk. If the key was written again meanwhile, the slot stays.
    pub(super) fn settle(&mut self, hash: u64, seq: u64) {
        if let Ok(place) = self.slots.find_entry(hash, |slot| slot.seq == seq) {
            place.remove();
        }
    }

    /// Drops all slots and spoils all tickets; answers the items and bytes that are free again. Slots being applied
    /// are hidden too, but stay charged to their batch.
    pub(super) fn clear(&mut self, until_cold_is_clear: bool, receipts: &mut Vec<Arc<Receipt>>) -> (u64, u64) {
        self.clearing = until_cold_is_clear;
        self.writes.iter_mut().for_each(|count| *count += 1);
        self.order.clear();
        self.removals.clear();
        let mut freed = (0, 0);
        for mut slot in self.slots.drain() {
            if !slot.applying {
                freed = (freed.0 + 1, freed.1 + slot.charge);
                receipts.append(&mut slot.receipts);
            }
        }
        freed
    }

    pub(super) fn has_work(&self) -> bool {
        !self.order.is_empty() || !self.removals.is_empty()
    }

    pub(super) fn has_removals(&self) -> bool {
        !self.removals.is_empty()
    }

    pub(super) fn end_clear(&mut self) {
        self.clearing = false;
    }

    /// What all slots are charged.
    #[cfg(test)]
    pub(super) fn charged(&self) -> u64 {
        self.slots.iter().map(|slot| slot.charge).sum()
    }

    /// When the slot at the head of the order was accepted.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let live = |reference: &&Ref| self.slots.find(reference.hash, |slot| slot.seq == reference.seq).is_some();
        let head = self.order.iter().find(live)?;
        self.slots.find(head.hash, |slot| slot.seq == head.seq).map(|slot| slot.since_ms)
    }
}

// === impl Slot ===

impl Slot {
    const fn reference(&self) -> Ref {
        Ref { hash: self.hash, seq: self.seq }
    }
}

// === impl Batch ===

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.changes.len() as u64
    }

    pub(super) const fn charge(&self) -> u64 {
        self.charge
    }

    pub(super) fn oldest_ms(&self) -> u64 {
        self.oldest_ms.unwrap_or(super::NEVER_MS)
    }

    fn is_full(&self) -> bool {
        self.len() >= BATCH_ITEMS || self.charge >= BATCH_BYTES
    }

    /// Gives each slot back through `settle`, then confirms to everybody who waits.
    pub(super) fn settle(self, settle: impl Fn(usize, u64, u64)) {
        for (index, Ref { hash, seq }) in self.slots {
            settle(index, hash, seq);
        }
        self.receipts.iter().for_each(|receipt| receipt.settle());
    }
}

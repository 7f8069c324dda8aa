//! Changes on their way to one cold layer together. They stay visible in their slots until settled.

use super::{BATCH_BYTES, BATCH_ITEMS, NEVER_MS, line::Ref};
use crate::{
    entry::Position,
    layer::{Change, LayerId, TagRemoval},
};

/// A batch for the disk is so many times smaller than one for Redis.
const DISK_SHARE: u64 = 8;

/// A batch.
pub(super) struct Batch {
    /// Removals by tag first, then one change for each of `taken`.
    pub(super) changes: Vec<Change>,
    pub(super) taken: Vec<Taken>,
    /// Where the log was known to be before it is sent.
    pub(super) known: Position,
    charge: u64,
    oldest_ms: Option<u64>,
    items_max: u64,
    bytes_max: u64,
}

/// Where a change was taken from, and goes back to if the batch fails.
pub(super) struct Taken {
    pub(super) shard: usize,
    pub(super) reference: Ref,
    pub(super) from: Order,
}

/// The orders in which a line is served, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Somebody waits for it.
    Urgent,
    /// Only a key is left of it.
    Keys,
    /// As they came.
    Accepted,
}

// === impl Batch ===

impl Batch {
    /// An empty one. Whoever waits for a removal waits for the batch under way, and RocksDB takes 5 us a value of a
    /// hundred bytes: so its batches are small. To Redis, large ones save round trips.
    pub(super) fn to(layer: LayerId, known: Position) -> Self {
        let share = if layer == LayerId::Disk { DISK_SHARE } else { 1 };
        Self {
            changes: Vec::new(),
            taken: Vec::new(),
            known,
            charge: 0,
            oldest_ms: None,
            items_max: BATCH_ITEMS / share,
            bytes_max: BATCH_BYTES / share,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.changes.len() as u64
    }

    pub(super) fn oldest_ms(&self) -> u64 {
        self.oldest_ms.unwrap_or(NEVER_MS)
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.items_max || self.charge >= self.bytes_max
    }

    /// How many removals of keys are among it that were accepted up to this time.
    pub(super) fn removals_until(&self, until_ms: u64) -> u64 {
        let keys = &self.changes[self.changes.len() - self.taken.len()..];
        let is_one = |(change, taken): &(&Change, &Taken)| {
            matches!(change, Change::Remove(_)) && taken.reference.at_ms <= until_ms
        };
        keys.iter().zip(&self.taken).filter(is_one).count() as u64
    }

    pub(super) fn add_tagged<'a>(&mut self, tagged: impl Iterator<Item = &'a TagRemoval>) {
        self.changes.extend(tagged.cloned().map(Change::RemoveTagged));
    }

    pub(super) fn add(&mut self, taken: Taken, change: Change, charge: u64) {
        let at_ms = taken.reference.at_ms;
        self.changes.push(change);
        self.taken.push(taken);
        self.charge += charge;
        self.oldest_ms = Some(self.oldest_ms.map_or(at_ms, |oldest| oldest.min(at_ms)));
    }
}

// === impl Order ===

impl Order {
    pub(super) const ALL: [Self; 3] = [Self::Urgent, Self::Keys, Self::Accepted];
}

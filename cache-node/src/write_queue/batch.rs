//! Changes on their way to one cold layer together. They stay visible in their slots until settled.

use super::{BATCH_BYTES, BATCH_ITEMS, NEVER_MS, line::Ref};
use crate::layer::{Change, TagRemoval};

/// A batch.
#[derive(Default)]
pub(super) struct Batch {
    /// Removals by tag first, then one change for each of `taken`.
    pub(super) changes: Vec<Change>,
    pub(super) taken: Vec<Taken>,
    charge: u64,
    oldest_ms: Option<u64>,
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
        self.len() >= BATCH_ITEMS || self.charge >= BATCH_BYTES
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

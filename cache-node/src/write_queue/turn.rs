//! The order of the writes of one key: whoever holds its turn is alone with it.

use std::sync::{Arc, MutexGuard, atomic::Ordering};

use super::{
    Full, Receipt, SLOT_OVERHEAD_BYTES, WriteQueue,
    shard::{Accepted, Shard},
    stripe_of,
};
use crate::{clock::UnixMillis, entry::Entry, layer::Change};

/// The right to read and write one key below memory, exclusively. Short: never held over an await.
pub struct Turn<'a> {
    pub(super) queue: &'a WriteQueue,
    pub(super) shard: MutexGuard<'a, Shard>,
    pub(super) hash: u64,
}

/// Proof of when a key was looked at: the number of writes its stripe had seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What the queue knows about a key.
#[derive(Debug)]
pub enum Pending {
    /// A write of this entry is on its way. It may have expired.
    Value(Entry),
    /// A removal is on its way: whatever is below is stale.
    Removed,
    /// Nothing; ask below.
    Unknown,
}

// === impl Turn ===

impl Turn<'_> {
    /// What the queue knows about the key.
    #[inline]
    pub fn pending(&self, key: &[u8]) -> Pending {
        self.shard.pending(self.hash, key)
    }

    /// Proof of this moment, for a later [`Turn::is_current`].
    #[inline]
    pub fn ticket(&self) -> Ticket {
        Ticket(self.shard.writes(stripe_of(self.hash)))
    }

    /// Whether nothing was written to the key, nor to those that share its stripe, since the ticket was issued.
    pub fn is_current(&self, ticket: Ticket) -> bool {
        self.ticket() == ticket
    }

    /// Accepts a change of the turn's key; the newest change of a key replaces an older one that waits. With a
    /// `receipt` the flusher hurries, and settles it once the change is on disk.
    ///
    /// # Errors
    /// [`Full`] if there is no room; then nothing has changed.
    pub fn push(&mut self, now: UnixMillis, change: Change, receipt: Option<Arc<Receipt>>) -> Result<(), Full> {
        debug_assert_eq!(self.hash, self.queue.hasher.hash_one(change.key()), "a turn is good for its own key");
        if self.queue.target.is_none() {
            self.shard.count_write(stripe_of(self.hash));
            receipt.iter().for_each(|receipt| receipt.settle());
            return Ok(());
        }
        let charge = change.bytes() + SLOT_OVERHEAD_BYTES;
        let replaced = self.shard.replaceable_charge(self.hash, change.key());
        if !self.queue.used.reserve(&self.queue.options, replaced, charge) {
            self.queue.counts.refuse(now);
            return Err(Full);
        }
        let urgent = receipt.is_some();
        self.shard.count_write(stripe_of(self.hash));
        self.shard.put(self.hash, Accepted { change, charge, at_ms: now.0 }, receipt);
        self.queue.counts.accepted.fetch_add(1, Ordering::Relaxed);
        self.queue.wake(urgent || self.queue.backlog_fills_a_batch());
        Ok(())
    }
}

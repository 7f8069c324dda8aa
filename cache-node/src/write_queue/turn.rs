//! The order of the writes of one key: whoever holds its turn is alone with it.

use std::sync::{Arc, MutexGuard, atomic::Ordering};

use super::{
    BATCH_BYTES, Full, Lanes, Overflow, Receipt, SLOT_OVERHEAD_BYTES, WriteQueue,
    shard::{Accepted, Dropped, Shard},
    stripe_of,
};
use crate::{
    clock::UnixMillis,
    entry::{Entry, Key, Position},
    layer::{Change, LayerId},
};

/// A value this large is worth a flush of its own.
const LARGE_BYTES: u64 = BATCH_BYTES / 4;

/// How far one write looks for something that can give way to it.
const STEPS_TO_ROOM: usize = 64;

/// Values that one write turns into keys while a layer is away: more than it adds, so that the backlog shrinks.
const HIDDEN_PER_WRITE: usize = 8;

/// The right to read and write one key below memory, exclusively. Short: never held over an await.
pub struct Turn<'a> {
    pub(super) queue: &'a WriteQueue,
    pub(super) shard: MutexGuard<'a, Shard>,
    pub(super) index: usize,
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
    /// Nothing; ask below, of the layers that [`WriteQueue::is_trusted`] names.
    Unknown,
}

// === impl Turn ===

impl Turn<'_> {
    /// What the queue knows about the key.
    #[inline]
    pub fn pending(&self, key: &[u8]) -> Pending {
        self.shard.pending(self.hash, key)
    }

    /// Whether the key was written here and Redis has yet to be told: until then nobody else can have changed it since. What
    /// was made of an earlier value is as old as that.
    pub fn is_untold(&self, key: &[u8]) -> bool {
        self.shard.is_untold(self.hash, key)
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

    /// Accepts a change of the turn's key for all cold layers; the newest change of a key replaces an older one that
    /// waits. With a `receipt` the flushers hurry, and settle it once every layer has the change that can be reached;
    /// of the others the queue keeps it, and the journal, if there is one.
    ///
    /// # Errors
    /// [`Full`] if there is no room; then nothing has changed, except that with [`Overflow::DropOldest`] older values
    /// may have been dropped.
    pub fn push(&mut self, now: UnixMillis, change: Change, receipt: Option<Arc<Receipt>>) -> Result<(), Full> {
        self.accept(now, change, self.queue.all, receipt)
    }

    /// As [`Turn::push`] of an entry that was made of the one before it, of which this node knows that nobody else has
    /// changed it up to this place in the log. If somebody has since, the key is removed.
    ///
    /// # Errors
    /// As [`Turn::push`].
    pub fn revise(
        &mut self,
        now: UnixMillis,
        entry: &Entry,
        seen: Position,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<(), Full> {
        // What was made of a write that Redis has yet to be given is one write with it.
        let since = self.shard.doubted_since(self.hash, entry.key()).unwrap_or(seen);
        self.push(now, Change::Set(entry.clone()), receipt)?;
        self.shard.doubt(self.hash, entry.key(), since);
        Ok(())
    }

    /// As [`Turn::push`] for the layers that belong to this node alone: the change has its place in the log already. Should Redis
    /// be owed an older change of the key, it gets this one, unless somebody else has changed the key since.
    ///
    /// # Errors
    /// As [`Turn::push`].
    pub fn push_own(
        &mut self,
        now: UnixMillis,
        change: Change,
        at: Position,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<(), Full> {
        let own = self.queue.all.without(Lanes::of(LayerId::Redis));
        let key = Key::new(change.key().to_vec()).expect("a change of a key has a key");
        self.accept(now, change, own, receipt)?;
        self.shard.place(self.hash, key.as_bytes(), at);
        Ok(())
    }

    fn accept(
        &mut self,
        now: UnixMillis,
        change: Change,
        lanes: Lanes,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<(), Full> {
        let queue = self.queue;
        debug_assert_eq!(self.hash, queue.hasher.hash_one(change.key()), "a turn is good for its own key");
        if lanes.is_empty() {
            self.shard.count_write(stripe_of(self.hash));
            receipt.iter().for_each(|receipt| receipt.give_up());
            return Ok(());
        }
        let charge = change.bytes() + SLOT_OVERHEAD_BYTES;
        if !self.make_room(change.key(), charge) {
            queue.counts.refuse(now);
            queue.ask_for_relief(charge);
            self.wake(true);
            return Err(Full);
        }
        let waiting = receipt.map(|receipt| {
            let waited = queue.waited_for().and(lanes);
            receipt.excuse(lanes.without(waited));
            receipt.spread(waited);
            (receipt, waited)
        });
        let urgent = waiting.is_some() || charge >= LARGE_BYTES;
        self.shard.count_write(stripe_of(self.hash));
        self.shard.put(self.hash, Accepted { change, charge, at_ms: now.0, lanes }, waiting);
        queue.counts.accepted.fetch_add(1, Ordering::Relaxed);
        self.relieve();
        self.wake(urgent);
        Ok(())
    }

    /// Has these layers forget the key, of which others have the newest value: readers are not told that it is gone. A
    /// key that waits already is left alone.
    ///
    /// # Errors
    /// [`Full`] if there is no room.
    pub(super) fn forget_in(&mut self, now: UnixMillis, key: &Key, lanes: Lanes) -> Result<(), Full> {
        if self.shard.charge_of(self.hash, key.as_bytes()).is_some() {
            return Ok(());
        }
        let change = Change::Remove(key.clone());
        let charge = change.bytes() + SLOT_OVERHEAD_BYTES;
        if !self.queue.used.reserve(&self.queue.options, None, charge) {
            return Err(Full);
        }
        self.shard.put_hidden(self.hash, Accepted { change, charge, at_ms: now.0, lanes });
        self.wake(false);
        Ok(())
    }

    /// Queues a value that was read from another layer, for those of these layers that can be reached. It is only worth
    /// having: it never replaces a change that waits, is refused when the queue is half full, gives way first, and is
    /// not tried again. Answers whether it was queued.
    ///
    /// The caller must know, by a ticket, that nothing was written to the key since the value was read.
    pub fn fill(&mut self, now: UnixMillis, entry: Entry, lanes: Lanes) -> bool {
        let queue = self.queue;
        debug_assert_eq!(self.hash, queue.hasher.hash_one(entry.key()), "a turn is good for its own key");
        let lanes = lanes.and(queue.all).without(queue.away());
        let charge = entry.bytes() + SLOT_OVERHEAD_BYTES;
        let welcome = !lanes.is_empty()
            && !queue.used.exceeds(&queue.options, 50)
            && self.shard.charge_of(self.hash, entry.key()).is_none()
            && queue.used.reserve(&queue.options, None, charge);
        if welcome {
            let accepted = Accepted { change: Change::Fill(entry), charge, at_ms: now.0, lanes };
            self.shard.put(self.hash, accepted, None);
            self.wake(false);
        } else {
            queue.counts.dropped_fills.fetch_add(1, Ordering::Relaxed);
        }
        welcome
    }

    /// Reserves room for a change of this charge; what may give way does so.
    fn make_room(&mut self, key: &[u8], charge: u64) -> bool {
        let queue = self.queue;
        for _ in 0..STEPS_TO_ROOM {
            if queue.used.reserve(&queue.options, self.shard.charge_of(self.hash, key), charge) {
                return true;
            }
            if self.shard.drop_fill() {
                queue.counts.dropped_fills.fetch_add(1, Ordering::Relaxed);
            } else if self.hide(HIDDEN_PER_WRITE) == 0 && !self.drop_oldest() {
                return false;
            }
        }
        false
    }

    fn drop_oldest(&mut self) -> bool {
        if self.queue.options.overflow != Overflow::DropOldest {
            return false;
        }
        match self.shard.drop_value(STEPS_TO_ROOM) {
            Dropped::Value(key) => {
                // Under the lock of its shard, so that nobody finds it in memory once a newer write is accepted.
                if let Some(on_drop) = self.queue.on_drop.get() {
                    on_drop(&key);
                }
                self.queue.counts.dropped_values.fetch_add(1, Ordering::Relaxed);
                true
            }
            Dropped::Nothing => false,
        }
    }

    #[inline]
    fn wake(&self, urgent: bool) {
        for lane in &self.queue.lanes {
            lane.wake(self.index, urgent || self.shard.fills_a_batch_of(lane.place));
        }
    }

    /// Keeps what a layer owes that is away from filling the queue.
    fn relieve(&mut self) {
        let queue = self.queue;
        if queue.away().is_empty() || !queue.used.exceeds(&queue.options, 50) {
            return;
        }
        self.hide(HIDDEN_PER_WRITE);
        if queue.used.exceeds(&queue.options, 75) {
            queue.ask_for_relief(0);
        }
    }

    /// Forgets values that only layers owe that are away; answers how many.
    fn hide(&mut self, steps: usize) -> u64 {
        let away = self.queue.away();
        let mut hidden = 0;
        for place in away.places() {
            let count = self.shard.hide_values(place, away, steps);
            self.queue.count_forgotten(place, count);
            hidden += count;
        }
        hidden
    }
}

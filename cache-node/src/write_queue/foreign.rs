//! What other nodes have changed, as far as it concerns queued writes of this node.
//!
//! The log orders all changes of a key. A queued write that Redis does not have yet comes after whatever the log has
//! now, so it stays; one that has its place in the log goes if a foreign change has a later one. Of a write that is on
//! its way to Redis its answer decides. If there is none, the write may have been carried out, and others may have seen it
//! before they changed the key: then it is doubtful, and the first change of theirs turns it into a removal.

use std::sync::Arc;

use super::{Lanes, Receipt, WriteQueue, lock, shard::Superseded, stripe_of, turn::Turn};
use crate::{
    clock::UnixMillis,
    entry::Position,
    layer::{LayerId, TagRemoval},
};

/// Hears which places the log gave to changes of this node.
pub(super) type OnPlaced = Box<dyn Fn(Position, Option<&TagRemoval>) + Send + Sync>;

/// Tells the newest place in the log that this node knows of.
pub(super) type Known = Box<dyn Fn() -> Position + Send + Sync>;

// === impl Turn ===

impl Turn<'_> {
    /// Another node has changed the key, at this position: spoils all tickets of the key, and has a queued write that is
    /// older removed. Answers whether copies of the key in memory and on disk are older, too.
    pub fn supersede(&mut self, now: UnixMillis, key: &[u8], at: Position) -> bool {
        self.shard.count_write(stripe_of(self.hash));
        match self.shard.supersede(self.hash, key, at, now.0) {
            Superseded::NotQueued => true,
            Superseded::Kept => false,
            Superseded::Removed => {
                self.queue.lanes.iter().for_each(|lane| lane.wake(self.index, true));
                true
            }
        }
    }
}

// === impl WriteQueue ===

impl WriteQueue {
    /// Has `placed` called whenever Redis has taken a change, with its position in the log and what it was, if it was a
    /// removal by tag, before anybody is told that it is confirmed. Only the first call counts.
    pub fn on_placed(&self, placed: impl Fn(Position, Option<&TagRemoval>) + Send + Sync + 'static) {
        drop(self.on_placed.set(Box::new(placed)));
    }

    /// Has `known` tell the newest place in the log that this node knows of. Only the first call counts.
    pub fn on_log(&self, known: impl Fn() -> Position + Send + Sync + 'static) {
        drop(self.known.set(Box::new(known)));
    }

    /// Another node has removed everything, at this position, or what was removed is not known: runs `also` before any
    /// other write or look, spoils all tickets, drops queued writes that are older, and has all layers cleared that
    /// belong to this node alone. The receipt is settled once they are.
    pub fn clear_own(&self, at: Position, also: impl FnOnce()) -> Arc<Receipt> {
        let now = self.clock.now();
        let mut clears = lock(&self.clears);
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        let own = || self.lanes.iter().filter(|lane| lane.target.id() != LayerId::Redis);
        let receipt = Receipt::new(1);
        receipt.spread(self.all.without(Lanes::of(LayerId::Redis)));
        for lane in own() {
            let clear = &mut clears[lane.place];
            clear.receipts.push(Arc::clone(&receipt));
            self.order_clear(lane, clear, now);
        }
        for shard in &mut shards {
            shard.supersede_all(at, now.0, |place, receipt| clears[place].receipts.push(receipt));
        }
        also();
        drop(shards);
        drop(clears);
        self.room.notify_waiters();
        self.lanes.iter().for_each(|lane| lane.wake_all());
        receipt
    }

    /// What this node alone keeps can not be told what happened: nothing of it counts until it has been cleared.
    pub fn distrust_own(&self) {
        let now = self.clock.now();
        let mut clears = lock(&self.clears);
        for lane in self.lanes.iter().filter(|lane| lane.target.id() != LayerId::Redis) {
            if !clears[lane.place].is_owed() {
                self.order_clear(lane, &mut clears[lane.place], now);
            }
        }
    }

    /// Whether a clear of the layer is on its way, so that nothing that it holds now counts.
    pub fn is_void(&self, layer: LayerId) -> bool {
        self.lanes.iter().any(|lane| lane.target.id() == layer && lane.is_void())
    }
}

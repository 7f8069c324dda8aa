//! Removals: by key, by tag, of everything. Each is acknowledged only once it can not be undone by a kill.
//!
//! A Redis that can not be told is not waited for. The removal holds on this node, is kept where a kill does not reach,
//! by the journal (keys, clears) or by the disk (tags), and is told to Redis before anything that Redis holds is served
//! here again; the caller hears that it is queued. Told late, it has a late place in the order of changes: it may take
//! with it what other nodes have written meanwhile, and never spares what is older.

use std::sync::Arc;

use super::{Coordinator, Look, Traced, WriteError, freshness::Freshness, search::Found, stores::Stores, times::Times};
use crate::{
    backplane::What,
    context::OperationContext,
    entry::{Entry, Key, TagSet},
    layer::{LayerId, Matching},
    write_queue::{Full, Pending, Receipt, Ticket},
};

/// Who knows of a change when it is acknowledged; the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confirmed {
    /// All layers; of the log, if there is one, every node that follows it.
    Everywhere,
    /// This node, which brings it to the layers later: a value that is written behind.
    Accepted,
    /// This node alone. Redis, which can not be reached, is told once it can, also by a node that was killed meanwhile.
    Queued,
}

/// What the removal of keys came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// How many of the keys had a live entry.
    pub live: u64,
    /// Who knows.
    pub confirmed: Confirmed,
}

/// What becomes of a removal of which Redis can not be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outbox {
    /// It is acknowledged as [`Confirmed::Queued`].
    #[default]
    Queue,
    /// It is answered with [`WriteError::Untold`].
    Refuse,
}

/// What a removal came to under the turn of its key.
enum Removal {
    Queued {
        live: bool,
    },
    /// The key was written after it was looked at: look again.
    Changed,
    Full,
}

// === impl Coordinator ===

impl Coordinator {
    /// Forgets the keys in all layers; answers how many had a live entry. Returns once no kill -9 brings them back. A key
    /// of which it is not known within the deadline whether it has one is forgotten all the same, and not counted.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`]; some keys may have been removed. [`WriteError::Unconfirmed`] or [`WriteError::Untold`];
    /// all have been removed on this node.
    pub async fn remove_many(&self, op: impl Into<Traced<'_>>, keys: &[Key]) -> Result<Removed, WriteError> {
        let op = &mut op.into();
        let mut removed = 0;
        let receipt = Receipt::new(0);
        let mut left = keys.to_vec();
        while !left.is_empty() {
            let cx = &self.renewed(op.cx);
            let room = self.stores.write_queue.room();
            let found = self.look_below(cx, op, &left).await;
            let is_late = self.clock.monotonic() >= cx.deadline;
            let mut again = Vec::new();
            let mut full = false;
            for (key, seen) in left.into_iter().zip(found) {
                match self.stores.remove_seen(cx, (&key, seen), is_late, &receipt) {
                    Removal::Queued { live } => removed += u64::from(live),
                    Removal::Changed => again.push(key),
                    Removal::Full => {
                        full = true;
                        again.push(key);
                    }
                }
            }
            if full {
                self.roomy(op, room.for_removal(cx.deadline)).await?;
            }
            left = again;
        }
        Ok(Removed { live: removed, confirmed: self.told(op, &receipt, keys.len()).await? })
    }

    /// What the cold layers have of keys of which memory and queue do not know enough, and as of when.
    async fn look_below(
        &self,
        cx: &OperationContext,
        op: &mut Traced<'_>,
        keys: &[Key],
    ) -> Vec<Option<(Ticket, Found)>> {
        let looks: Vec<Look> = keys.iter().map(|key| self.look(cx, key.as_bytes())).collect();
        let rides = self.ask_many(cx, keys, &looks);
        let mut next = rides.iter();
        let mut seen = Vec::with_capacity(keys.len());
        for look in looks {
            seen.push(match look.ticket().zip(next.as_slice().first()) {
                Some((ticket, ride)) => {
                    next.next();
                    Some((ticket, self.arrival(cx, ride, None).await))
                }
                None => None,
            });
        }
        op.note(&self.trail(&rides));
        seen
    }

    /// Forgets all entries written so far that carry the tags, in all layers, whether or not anybody knows of them.
    /// Returns once no kill -9 brings them back; they are not served from the moment of the call.
    ///
    /// # Errors
    /// [`WriteError::Unconfirmed`]; the removal goes on, and nothing that it concerns is served meanwhile.
    /// [`WriteError::Untold`]; it holds on this node.
    pub async fn remove_tagged(
        &self,
        op: impl Into<Traced<'_>>,
        tags: TagSet,
        matching: Matching,
    ) -> Result<Confirmed, WriteError> {
        if tags.tags().is_empty() {
            // It concerns nothing. To the index a removal without tags is one of everything that has some.
            return Ok(Confirmed::Everywhere);
        }
        let op = &mut op.into();
        let (cx, begun) = (op.cx, self.clock.monotonic());
        let removal = self.stores.tags.remove(cx.now, tags, matching);
        Times::lap(&self.stores.times.tag_removal, begun, &self.clock);
        self.stores.tell(cx, What::Tagged(&removal));
        let receipt = self.stores.write_queue.remove_tagged(&removal);
        self.told(op, &receipt, 1).await
    }

    /// Forgets everything in all layers. Once it returns, nothing stored before comes back, also after a kill -9.
    ///
    /// # Errors
    /// [`WriteError::Unconfirmed`]; the clear goes on, and nothing of before is served meanwhile. [`WriteError::Untold`];
    /// it holds on this node.
    pub async fn clear(&self, op: impl Into<Traced<'_>>) -> Result<Confirmed, WriteError> {
        let op = &mut op.into();
        let receipt = self.stores.clear(op.cx);
        self.told(op, &receipt, 1).await
    }

    /// Waits for the confirmation of so many changes, and says who knows of them.
    pub(super) async fn told(
        &self,
        op: &mut Traced<'_>,
        receipt: &Receipt,
        changes: usize,
    ) -> Result<Confirmed, WriteError> {
        self.confirmed(op, receipt, changes).await?;
        match self.outbox {
            _ if receipt.excused().is_empty() => Ok(Confirmed::Everywhere),
            Outbox::Queue => Ok(Confirmed::Queued),
            Outbox::Refuse => {
                let trouble = self.stores.write_queue.trouble_of(LayerId::Redis);
                Err(WriteError::Untold(trouble.unwrap_or_else(|| "it was away a moment ago".to_owned())))
            }
        }
    }
}

// === impl Stores ===

impl Stores {
    /// Forgets the key, of which the cold layers said `seen` when the ticket was issued. Who is late does not look again.
    fn remove_seen(
        &self,
        cx: &OperationContext,
        (key, seen): (&Key, Option<(Ticket, Found)>),
        is_late: bool,
        receipt: &Arc<Receipt>,
    ) -> Removal {
        let mut turn = self.write_queue.turn(key.as_bytes());
        let fresh = |entry: &Entry| self.freshness(cx, entry) == Freshness::Fresh;
        let held = self.trusted(cx, self.memory.peek(cx.now, key.as_bytes()));
        let live = match held.map(|entry| self.freshness(cx, &entry)) {
            Some(Freshness::Fresh) => true,
            // Known without a look below, as to a reader.
            Some(Freshness::Negative) => false,
            _ if self.cold.is_empty() => false,
            _ => match (turn.pending(key.as_bytes()), seen) {
                (Pending::Value(entry), _) => fresh(&entry),
                // Somebody else is removing it. This caller, too, is told only once that is certain.
                (Pending::Removed, _) => false,
                (Pending::Unknown, Some((ticket, found))) if turn.is_current(ticket) => {
                    matches!(found, Found::Fresh(_))
                }
                (Pending::Unknown, _) if is_late => false,
                (Pending::Unknown, _) => return Removal::Changed,
            },
        };
        // Also if nothing was found: an expired copy must not come back should the clock step back.
        match self.remove(cx, &mut turn, key, receipt) {
            Ok(()) => Removal::Queued { live },
            Err(Full) => Removal::Full,
        }
    }
}

//! The heart of a node: the order in which memory, write queue and cold layers are read, and are changed.
//!
//! Nothing else says this order. What makes it correct, in three rules:
//!
//! 1. Every write takes the [`Turn`](crate::write_queue::Turn) of its key and changes the queue and then memory under
//!    it. A reader that misses memory therefore finds the write in the queue, or on disk.
//! 2. A value read from below enters memory only with a ticket taken before the read, and only if nothing was written
//!    since: a slow read can not bring an older value back.
//! 3. A removal is acknowledged only once the cold layer has it for good.
//!
//! Every entry carries its absolute expiry wherever it goes; nothing here computes a new one.

mod answers;
mod applied;
mod below;
mod explain;
mod flight;
mod foreign;
mod freshness;
mod learn;
mod lease;
mod open;
mod promote;
mod remove;
mod report;
mod search;
mod stores;
mod times;
mod traced;
mod update;
mod upkeep;
mod write;

use std::{
    iter::once,
    pin::pin,
    sync::{Arc, atomic::AtomicU64},
};

use tokio::{sync::Semaphore, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    answers::{Answer, Answers},
    applied::Applied,
    below::{Peek, Wants},
    explain::{Explanation, Seen},
    freshness::FreshnessOptions,
    lease::{LeaseCounts, Leased, Token},
    open::Parts,
    remove::{Confirmed, Outbox, Removed},
    report::Part,
    traced::Traced,
    update::{TryUpdate, Update},
    write::{WriteError, WriteMode},
};
use self::{
    flight::Flights,
    freshness::{Freshness, Refreshes},
    lease::Leases,
    search::Found,
    stores::{Cold, Stores, trusts_queued},
    times::Times,
};
use crate::{
    backplane::What,
    clock::Clock,
    context::{OperationContext, Trail, Trust},
    entry::{Entry, Key},
    layer::{Change, followers::Followers, lease::SharedLeases, memory::Memory},
    write_queue::{Full, Pending, Receipt, Ticket, Turn, WriteQueue},
};

/// The layers of one node as one cache.
pub struct Coordinator {
    stores: Arc<Stores>,
    flights: Flights,
    refreshes: Refreshes,
    leases: Arc<Leases>,
    shared_leases: Option<Arc<dyn SharedLeases>>,
    followers: Option<Arc<dyn Followers>>,
    outbox: Outbox,
    freshness: FreshnessOptions,
    write_mode: WriteMode,
    clock: Clock,
    operations: AtomicU64,
    answers: Arc<Answers>,
    /// Turns of those who wait for everything that was accepted.
    waiters: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a read came to.
#[derive(Debug)]
pub struct Reading {
    /// The entry, if there is one to serve. It may be past its expiry, within its stale life; then only its value counts.
    pub entry: Option<Entry>,
    /// Which layers below memory and queue were asked.
    pub trail: Trail,
}

/// What is known about a key without I/O, for readers that then go on.
enum Look {
    Hit(Entry),
    Absent,
    Cold(Ticket),
    /// A stale value; with a ticket if there may be a fresh one below.
    Stale(Entry, Option<Ticket>),
}

/// A place where an entry can be.
enum Place<'a> {
    Memory(&'a Memory),
    Queue(&'a WriteQueue),
    Cold(&'a Cold),
}

// === impl Stores ===

impl Stores {
    /// Every place where an entry can be, in the order in which a read asks.
    fn in_order(&self) -> impl Iterator<Item = Place<'_>> {
        // Without a layer to write to, the queue keeps nothing.
        let queue = (!self.cold.is_empty()).then_some(Place::Queue(&self.write_queue));
        once(Place::Memory(&self.memory)).chain(queue).chain(self.cold.iter().map(Place::Cold))
    }

    /// Those of them that can not be asked without I/O.
    fn cold_in_order(&self) -> impl Iterator<Item = &Cold> {
        self.in_order().filter_map(|place| if let Place::Cold(cold) = place { Some(cold) } else { None })
    }

    /// Stores the entry under the turn of its key. The queue first: a reader that finds memory still without it must
    /// find it there, or it would read an older copy from below.
    #[inline]
    pub(super) fn set(
        &self,
        cx: &OperationContext,
        turn: &mut Turn<'_>,
        entry: &Entry,
        receipt: Option<Arc<Receipt>>,
    ) -> Result<(), Full> {
        self.take_in(cx, entry, || turn.push(cx.now, Change::Set(entry.clone()), receipt))
    }

    /// Holds an entry in memory that the queue accepts.
    #[inline]
    fn take_in(
        &self,
        cx: &OperationContext,
        entry: &Entry,
        accept: impl FnOnce() -> Result<(), Full>,
    ) -> Result<(), Full> {
        let begun = Times::begin(cx, &self.clock);
        accept()?;
        let queued = begun.map(|begun| Times::lap(&self.times.accept, begun, &self.clock));
        self.memory.set(cx.now, entry);
        if let Some(queued) = queued {
            Times::lap(&self.times.memory_set, queued, &self.clock);
        }
        self.tell(cx, What::Key(entry.key()));
        Ok(())
    }

    /// Forgets the key under its turn. The tombstone first, for the same reason.
    pub(super) fn remove(
        &self,
        cx: &OperationContext,
        turn: &mut Turn<'_>,
        key: &Key,
        receipt: &Arc<Receipt>,
    ) -> Result<(), Full> {
        receipt.expect();
        let pushed = turn.push(cx.now, Change::Remove(key.clone()), Some(Arc::clone(receipt)));
        pushed.inspect_err(|Full| receipt.give_up())?;
        self.memory.remove(key.as_bytes());
        self.tell(cx, What::Key(key.as_bytes()));
        Ok(())
    }
}

// === impl Coordinator ===

impl Coordinator {
    /// What memory and the queue know. Synchronous; a hit in memory takes no lock of ours and allocates nothing.
    #[inline]
    pub fn peek(&self, cx: &OperationContext, key: &[u8]) -> Peek {
        self.peek_or(cx, key, |_| Peek::Cold)
    }

    #[inline]
    fn peek_or(&self, cx: &OperationContext, key: &[u8], below: impl FnOnce(Ticket) -> Peek) -> Peek {
        let begun = Times::begin(cx, &self.clock);
        let held = self.stores.memory.get(cx.now, key);
        if let Some(begun) = begun {
            Times::lap(&self.stores.times.memory_get, begun, &self.clock);
        }
        let entry = match held {
            Some(entry) if entry.is_plain() && cx.trust == Trust::Full => return Peek::Hit(entry),
            entry => entry,
        };
        match self.look_beside(cx, key, entry) {
            Look::Hit(entry) => Peek::Hit(entry),
            Look::Absent => Peek::Absent,
            Look::Cold(ticket) => below(ticket),
            Look::Stale(..) => Peek::Cold,
        }
    }

    /// The entry of `key` from the first layer that has it; none once `cx.deadline` has passed. A value from below is
    /// promoted into memory and into the layers that missed it. Of a stale value one reader in each refresh window is
    /// told that there is none, so that it brings a fresh one.
    ///
    /// # Cancel safety
    /// A read that has begun goes on without this caller.
    pub async fn get(&self, cx: &OperationContext, key: &Key, wants: Wants) -> Reading {
        let cx = &self.renewed(cx);
        let (ticket, stale) = match self.look(cx, key.as_bytes()) {
            Look::Hit(entry) => return Reading { entry: Some(entry), trail: Trail::default() },
            Look::Absent => return Reading { entry: None, trail: Trail::default() },
            Look::Stale(entry, None) => {
                let entry = self.serve(cx, key, wants, (Found::Absent, Some(entry)));
                return Reading { entry, trail: Trail::default() };
            }
            Look::Cold(ticket) => (ticket, None),
            Look::Stale(entry, Some(ticket)) => (ticket, Some(entry)),
        };
        let ride = self.ask(cx, key, ticket);
        let mut patience = pin!(sleep(self.freshness.soft_timeout));
        let patience = (stale.is_some() && wants == Wants::Value).then_some(patience.as_mut());
        let found = self.arrival(cx, &ride, patience).await;
        let trail = self.trail(std::slice::from_ref(&ride));
        Reading { entry: self.serve(cx, key, wants, (found, stale)), trail }
    }

    /// As [`Coordinator::get`] for many keys, in their order, with one round trip to each cold layer for those keys that
    /// nobody else is reading.
    pub async fn get_many(&self, cx: &OperationContext, keys: &[Key], wants: Wants) -> (Vec<Option<Entry>>, Trail) {
        let cx = &self.renewed(cx);
        let looks: Vec<Look> = keys.iter().map(|key| self.look(cx, key.as_bytes())).collect();
        let rides = self.ask_many(cx, keys, &looks);
        let (mut next, mut patience) = (rides.iter(), pin!(sleep(self.freshness.soft_timeout)));
        let mut entries = Vec::with_capacity(keys.len());
        for (key, look) in keys.iter().zip(looks) {
            let ride = look.ticket().and_then(|_| next.next());
            let stale = match look {
                Look::Hit(entry) => {
                    entries.push(Some(entry));
                    continue;
                }
                Look::Stale(entry, _) => Some(entry),
                Look::Absent | Look::Cold(_) => None,
            };
            let found = match ride {
                None => Found::Absent,
                Some(ride) => {
                    let patience = (stale.is_some() && wants == Wants::Value).then_some(patience.as_mut());
                    self.arrival(cx, ride, patience).await
                }
            };
            entries.push(self.serve(cx, key, wants, (found, stale)));
        }
        (entries, self.trail(&rides))
    }

    /// What memory, which holds `entry`, and the queue know.
    fn look_beside(&self, cx: &OperationContext, key: &[u8], entry: Option<Entry>) -> Look {
        let held = self.stores.trusted(cx, entry);
        let held = held.map(|entry| (self.stores.freshness(cx, &entry), entry));
        let below = || {
            if self.stores.cold.is_empty() {
                return Look::Absent;
            }
            self.below(cx, &self.stores.write_queue.turn(key), key)
        };
        match held {
            Some((Freshness::Fresh, entry)) => Look::Hit(entry),
            Some((Freshness::Negative, _)) => Look::Absent,
            Some((Freshness::Stale, entry)) => match below() {
                Look::Cold(ticket) => Look::Stale(entry, Some(ticket)),
                Look::Absent if self.stores.cold.is_empty() => Look::Stale(entry, None),
                known => known,
            },
            Some((Freshness::Expired | Freshness::Removed, _)) | None => below(),
        }
    }

    /// What the queue knows, with proof of when.
    fn below(&self, cx: &OperationContext, turn: &Turn<'_>, key: &[u8]) -> Look {
        let known = match turn.pending(key) {
            Pending::Value(_) if !trusts_queued(cx, turn, key) => Look::Cold(turn.ticket()),
            Pending::Value(entry) => match self.stores.freshness(cx, &entry) {
                Freshness::Fresh => Look::Hit(entry),
                Freshness::Stale => Look::Stale(entry, None),
                // A write on its way that is past its life: what is below it is older still.
                Freshness::Negative | Freshness::Expired | Freshness::Removed => Look::Absent,
            },
            Pending::Removed => Look::Absent,
            Pending::Unknown => Look::Cold(turn.ticket()),
        };
        self.note_queued(&known);
        known
    }
}

#[cfg(test)]
mod tests;

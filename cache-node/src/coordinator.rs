//! The heart of a node: get, set, remove, update and clear over memory, write queue and cold layers, in this order.
//!
//! What makes it correct, in three rules:
//!
//! 1. Every write takes the [`Turn`](crate::write_queue::Turn) of its key and changes the queue and then memory under
//!    it. A reader that misses memory therefore finds the write in the queue, or on disk.
//! 2. A value read from below enters memory only with a ticket taken before the read, and only if nothing was written
//!    since: a slow read can not bring an older value back.
//! 3. A removal is acknowledged only once the cold layer has it for good.
//!
//! Every entry carries its absolute expiry wherever it goes; nothing here computes a new one.

mod flight;
mod promote;
mod update;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::spawn_blocking,
    time::{interval, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::update::{TryUpdate, Update};
use self::{
    flight::Flights,
    promote::{ColdRead, Removal, Stores},
};
use crate::{
    clock::Clock,
    context::OperationContext,
    entry::{Entry, Key},
    layer::{Component, Layer, memory::Memory},
    write_queue::{Full, Pending, QueueOptions, Receipt, Ticket, Turn, WriteQueue},
};

/// How often postponed work is done and health observed.
const TICK: Duration = Duration::from_millis(200);

/// Ticks from one sweep of expired entries to the next: ten seconds.
const TICKS_PER_SWEEP: u32 = 50;

/// The layers of one node as one cache.
pub struct Coordinator {
    stores: Arc<Stores>,
    flights: Flights,
    clock: Clock,
    upkeep: TaskTracker,
    stop: CancellationToken,
}

/// What is known about a key without I/O.
#[derive(Debug)]
pub enum Peek {
    /// Here it is.
    Hit(Entry),
    /// There is none: it is being removed, has expired, or there is no layer below.
    Absent,
    /// Ask below, by [`Coordinator::get`].
    Cold,
}

/// Why a write was not accepted, or a removal not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue stayed full until the deadline. Nothing was changed.
    #[error("the write queue is full; the disk does not keep up")]
    QueueFull,
    /// The change is under way but not confirmed within the deadline; it may still take effect.
    #[error("not confirmed by the disk within the deadline")]
    Unconfirmed,
    /// The value to be modified could not be read within the deadline. Nothing was changed.
    #[error("the value could not be read within the deadline")]
    Unreadable,
    /// The entry alone exceeds the queue's capacity. Nothing was changed.
    #[error("entry of {0} bytes exceeds the capacity of the write queue")]
    TooLarge(u64),
}

/// What is known about a key without I/O, for readers that then go on.
enum Look {
    Hit(Entry),
    Absent,
    Cold(Ticket),
}

// === impl Coordinator: open and shutdown ===

impl Coordinator {
    /// Joins the layers; `cold` in the order in which they are read. Runs its upkeep on the current runtime.
    pub fn open(memory: Memory, queue: QueueOptions, cold: Vec<Arc<dyn Layer>>, clock: Clock) -> Arc<Self> {
        assert!(cold.is_sorted_by_key(|layer| layer.id()), "layers are read in the order of their declaration");
        let write_queue = WriteQueue::open(queue, cold.clone(), clock.clone());
        let stores = Arc::new(Stores::new(memory, write_queue, cold));
        let weak = Arc::downgrade(&stores);
        stores.write_queue.on_drop(move |key| {
            weak.upgrade().iter().for_each(|stores| stores.memory.remove(key));
        });
        let coordinator = Arc::new(Self {
            stores,
            flights: Flights::default(),
            clock,
            upkeep: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        coordinator.upkeep.spawn(upkeep(
            Arc::clone(&coordinator.stores),
            coordinator.clock.clone(),
            coordinator.stop.clone(),
        ));
        coordinator.upkeep.close();
        coordinator
    }

    /// Writes what is queued, then closes the layers from top to bottom. Nobody may use the coordinator any more.
    pub async fn shutdown(&self, deadline: Instant) {
        self.stop.cancel();
        self.upkeep.wait().await;
        self.stores.write_queue.shutdown(deadline).await;
        for layer in &self.stores.cold {
            layer.shutdown(deadline).await;
        }
    }

    /// L1, for reports.
    pub fn memory(&self) -> &Memory {
        &self.stores.memory
    }

    /// The write queue, for reports.
    pub fn write_queue(&self) -> &WriteQueue {
        &self.stores.write_queue
    }

    /// The layers below memory, for reports, in the order in which they are read.
    pub fn cold(&self) -> &[Arc<dyn Layer>] {
        &self.stores.cold
    }

    /// Values that were brought from a cold layer into memory.
    pub fn promotions(&self) -> u64 {
        self.stores.promotions()
    }

    /// Values from a cold layer that were kept out of memory because their key was written meanwhile.
    pub fn promotions_refused(&self) -> u64 {
        self.stores.promotions_refused()
    }

    /// An estimate of the number of entries, for `DBSIZE`.
    pub fn entries(&self) -> u64 {
        self.stores.entries()
    }
}

async fn upkeep(stores: Arc<Stores>, clock: Clock, stop: CancellationToken) {
    let mut ticks = interval(TICK);
    let mut count = 0;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        stores.memory.tick();
        stores.write_queue.tick();
        count += 1;
        if count % TICKS_PER_SWEEP == 0 {
            let (stores, now) = (Arc::clone(&stores), clock.now());
            // Awaited, so that it ends before the upkeep does. It can only fail by a panic, which is logged by then.
            let _ = spawn_blocking(move || stores.memory.sweep(now, |_| false)).await;
        }
    }
}

// === impl Coordinator: read ===

impl Coordinator {
    /// What memory and the queue know. Synchronous; a hit in memory takes no lock of ours and allocates nothing.
    #[inline]
    pub fn peek(&self, cx: &OperationContext, key: &[u8]) -> Peek {
        if let Some(entry) = self.stores.memory.get(cx.now, key).filter(|entry| entry.is_live(cx.now)) {
            return Peek::Hit(entry);
        }
        match self.look_below(cx, key) {
            Look::Hit(entry) => Peek::Hit(entry),
            Look::Absent => Peek::Absent,
            Look::Cold(_) => Peek::Cold,
        }
    }

    /// The live entry of `key` from the first layer that has it, or none once `cx.deadline` has passed. A value from
    /// below is promoted into memory.
    ///
    /// # Cancel safety
    /// A read that others wait for goes on without this caller.
    pub async fn get(&self, cx: &OperationContext, key: &Key) -> Option<Entry> {
        match self.look(cx, key.as_bytes()) {
            Look::Hit(entry) => Some(entry),
            Look::Absent => None,
            Look::Cold(ticket) => self.read_cold(cx, key, ticket).await.found(),
        }
    }

    /// As [`Coordinator::get`] for many keys, in their order, with one round trip to each cold layer.
    pub async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Vec<Option<Entry>> {
        let looks: Vec<Look> = keys.iter().map(|key| self.look(cx, key.as_bytes())).collect();
        let mut cold = self.read_cold_many(cx, keys, &looks).await.into_iter();
        looks
            .into_iter()
            .map(|look| match look {
                Look::Hit(entry) => Some(entry),
                Look::Absent => None,
                Look::Cold(_) => cold.next().and_then(ColdRead::found),
            })
            .collect()
    }

    fn look(&self, cx: &OperationContext, key: &[u8]) -> Look {
        let live = self.stores.memory.peek(cx.now, key).filter(|entry| entry.is_live(cx.now));
        live.map_or_else(|| self.look_below(cx, key), Look::Hit)
    }

    fn look_below(&self, cx: &OperationContext, key: &[u8]) -> Look {
        if self.stores.cold.is_empty() {
            return Look::Absent;
        }
        below(cx, &self.stores.write_queue.turn(key), key)
    }

    async fn read_cold(&self, cx: &OperationContext, key: &Key, ticket: Ticket) -> ColdRead {
        let read = || Arc::clone(&self.stores).read_cold(*cx, key.clone(), ticket);
        within(cx, self.flights.join(key, ticket, read)).await.unwrap_or(ColdRead::Failed)
    }

    /// Reads those keys whose look said so.
    async fn read_cold_many(&self, cx: &OperationContext, keys: &[Key], looks: &[Look]) -> Vec<ColdRead> {
        let asked = |(key, look): (&Key, &Look)| match look {
            Look::Cold(ticket) => Some((key.clone(), *ticket)),
            Look::Hit(_) | Look::Absent => None,
        };
        let (keys, tickets): (Vec<Key>, Vec<Ticket>) = keys.iter().zip(looks).filter_map(asked).unzip();
        let read = self.stores.read_cold_many(cx, &keys, &tickets);
        within(cx, read).await.unwrap_or_else(|| vec![ColdRead::Failed; keys.len()])
    }
}

// === impl Coordinator: write ===

impl Coordinator {
    /// Stores the entry if that takes no waiting.
    ///
    /// # Errors
    /// The entry, if the queue is full: call [`Coordinator::set`].
    #[inline]
    pub fn try_set(&self, cx: &OperationContext, entry: Entry) -> Result<(), Entry> {
        let mut turn = self.stores.write_queue.turn(entry.key());
        self.stores.set(cx, &mut turn, &entry).map_err(|Full| entry)
    }

    /// Stores the entry, waiting for room in the queue if need be.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`] or [`WriteError::TooLarge`].
    pub async fn set(&self, cx: &OperationContext, entry: Entry) -> Result<(), WriteError> {
        if !self.stores.write_queue.fits(&entry) {
            return Err(WriteError::TooLarge(entry.bytes()));
        }
        loop {
            let room = self.stores.write_queue.room();
            if self.try_set(cx, entry.clone()).is_ok() {
                return Ok(());
            }
            room.for_value(cx.deadline).await.map_err(|Full| WriteError::QueueFull)?;
        }
    }

    /// Stores the entries in their order.
    ///
    /// # Errors
    /// As [`Coordinator::set`]; the entries before the refused one are stored.
    pub async fn set_many(&self, cx: &OperationContext, entries: Vec<Entry>) -> Result<(), WriteError> {
        for entry in entries {
            self.set(cx, entry).await?;
        }
        Ok(())
    }

    /// Forgets the keys in all layers; answers how many had a live entry. Returns once no kill -9 brings them back.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`] or [`WriteError::Unconfirmed`]; some keys may have been removed.
    pub async fn remove_many(&self, cx: &OperationContext, keys: &[Key]) -> Result<u64, WriteError> {
        let mut removed = 0;
        let mut receipts = Vec::new();
        let mut left = keys.to_vec();
        while !left.is_empty() {
            let room = self.stores.write_queue.room();
            let looks: Vec<Look> = left.iter().map(|key| self.look(cx, key.as_bytes())).collect();
            let mut cold = self.read_cold_many(cx, &left, &looks).await.into_iter();
            let mut again = Vec::new();
            let mut full = false;
            for (key, look) in left.into_iter().zip(looks) {
                let seen = if let Look::Cold(ticket) = look { cold.next().map(|read| (ticket, read)) } else { None };
                match self.stores.remove_seen(cx, &key, seen) {
                    Removal::Absent => {}
                    Removal::Queued { live, receipt } => {
                        removed += u64::from(live);
                        receipts.push(receipt);
                    }
                    Removal::Changed => again.push(key),
                    Removal::Full => {
                        full = true;
                        again.push(key);
                    }
                }
            }
            if full {
                room.for_removal(cx.deadline).await.map_err(|Full| WriteError::QueueFull)?;
            } else if !again.is_empty() && self.clock.monotonic() >= cx.deadline {
                return Err(WriteError::Unconfirmed);
            }
            left = again;
        }
        for receipt in receipts {
            self.confirmed(cx, &receipt).await?;
        }
        Ok(removed)
    }

    /// Forgets everything in all layers. Once it returns, nothing stored before comes back, also after a kill -9.
    ///
    /// # Errors
    /// [`WriteError::Unconfirmed`]; the clear goes on, and nothing of before is served meanwhile.
    pub async fn clear(&self, cx: &OperationContext) -> Result<(), WriteError> {
        let receipt = self.stores.clear();
        self.confirmed(cx, &receipt).await
    }

    async fn confirmed(&self, cx: &OperationContext, receipt: &Receipt) -> Result<(), WriteError> {
        within(cx, receipt.settled()).await.ok_or(WriteError::Unconfirmed)
    }
}

/// What the queue knows, with proof of when.
fn below(cx: &OperationContext, turn: &Turn<'_>, key: &[u8]) -> Look {
    match turn.pending(key) {
        Pending::Value(entry) if entry.is_live(cx.now) => Look::Hit(entry),
        // An expired write on its way: what is below it is older still.
        Pending::Value(_) | Pending::Removed => Look::Absent,
        Pending::Unknown => Look::Cold(turn.ticket()),
    }
}

async fn within<T>(cx: &OperationContext, wait: impl Future<Output = T>) -> Option<T> {
    timeout_at(cx.deadline.into(), wait).await.ok()
}

#[cfg(test)]
mod tests;

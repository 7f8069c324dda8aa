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

mod below;
mod explain;
mod flight;
mod foreign;
mod freshness;
mod lease;
mod promote;
mod remove;
mod report;
mod times;
mod traced;
mod update;
mod upkeep;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    explain::{Explanation, Seen},
    freshness::FreshnessOptions,
    lease::{LeaseCounts, Leased, Token},
    remove::{Confirmed, Outbox, Removed},
    report::Part,
    traced::Traced,
    update::{TryUpdate, Update},
};
use self::{
    flight::Flights,
    freshness::{Freshness, Refreshes},
    lease::Leases,
    promote::{Found, Stores},
    times::Times,
};
use crate::{
    backplane::{Backplane, BackplaneOptions, Listener},
    clock::{Clock, UnixMillis},
    context::{OperationContext, Trail, Trust},
    entry::{Entry, EntryMeta, Key, Position, Tags},
    layer::{Component, Layer, lease::SharedLeases, log::Log, memory::Memory},
    tag_index::{TagIndex, TagOptions},
    write_queue::{Full, JournalPlace, Pending, QueueOptions, Receipt, Ticket, Turn, Unflushed, WriteQueue},
};

/// What a coordinator joins.
pub struct Parts {
    /// L1.
    pub memory: Memory,
    /// How the write queue is bounded.
    pub queue: QueueOptions,
    /// The layers below memory, in the order in which they are read.
    pub cold: Vec<Arc<dyn Layer>>,
    /// Removals by tag.
    pub tags: Arc<TagIndex>,
    /// When stale values are served.
    pub freshness: FreshnessOptions,
    /// When a write of a client is acknowledged.
    pub write_mode: WriteMode,
    /// Where the keys of queued writes are written down, so that a kill brings no older value back.
    pub journal: Option<JournalPlace>,
    /// The log of the changes of all nodes, and how it is followed; none if this node shares nothing.
    pub log: Option<(Box<dyn Log>, BackplaneOptions)>,
    /// Where leases are kept for all nodes; none if this node shares nothing.
    pub leases: Option<Arc<dyn SharedLeases>>,
    /// What becomes of a removal of which Redis can not be told.
    pub outbox: Outbox,
}

/// When a write of a client is acknowledged. Removals always wait for the layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// Once it is in memory and in the queue.
    #[default]
    Behind,
    /// Once the cold layers have it.
    Through,
}

/// The layers of one node as one cache.
pub struct Coordinator {
    stores: Arc<Stores>,
    flights: Flights,
    refreshes: Refreshes,
    leases: Arc<Leases>,
    shared_leases: Option<Arc<dyn SharedLeases>>,
    outbox: Outbox,
    freshness: FreshnessOptions,
    write_mode: WriteMode,
    clock: Clock,
    operations: AtomicU64,
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

/// What a reader is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The value, be it stale.
    Value,
    /// Whether there is a live entry, and what it is like: to such a reader a stale one is none.
    Facts,
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue stayed full until the deadline. Nothing was changed.
    #[error("the write queue is full; the layers below do not keep up")]
    QueueFull,
    /// The change is under way but not confirmed within the deadline; it may still take effect.
    #[error("not confirmed by the layers below within the deadline")]
    Unconfirmed,
    /// Redis can not be told of a removal, for this reason, and [`Outbox::Refuse`] holds. The removal has taken effect on
    /// this node, and Redis is told once it is back.
    #[error("Redis can not be told of the removal: {0}; it holds on this node alone until Redis is told")]
    Untold(String),
    /// Some writes are not in all layers yet.
    #[error(transparent)]
    Unflushed(#[from] Unflushed),
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
    /// A stale value; with a ticket if there may be a fresh one below.
    Stale(Entry, Option<Ticket>),
}

// === impl Parts ===

impl Parts {
    /// These layers, and the defaults for the rest.
    pub fn new(memory: Memory, queue: QueueOptions, cold: Vec<Arc<dyn Layer>>, clock: &Clock) -> Self {
        Self {
            memory,
            queue,
            cold,
            tags: Arc::new(TagIndex::open(TagOptions::default(), clock.clone())),
            freshness: FreshnessOptions::default(),
            write_mode: WriteMode::default(),
            journal: None,
            log: None,
            leases: None,
            outbox: Outbox::default(),
        }
    }
}

// === impl Coordinator: open and shutdown ===

impl Coordinator {
    /// Joins the layers, and returns once what they keep about the past is known, as far as they can be reached. Runs
    /// its upkeep on the current runtime.
    pub async fn open(parts: Parts, clock: Clock) -> Arc<Self> {
        let Parts { memory, queue, cold, tags, freshness, write_mode, journal, log, leases, outbox } = parts;
        let write_queue = WriteQueue::open(queue, cold.clone(), journal.as_ref(), clock.clone());
        let tasks = TaskTracker::new();
        let (log, options) = log.unzip();
        let backplane = Arc::new(match options {
            None => Backplane::none(clock.clone()),
            Some(options) => Backplane::following(options, clock.clone()),
        });
        let coordinator = Arc::new(Self {
            stores: Arc::new(Stores::new(memory, write_queue, cold, tags, backplane)),
            flights: Flights::new(tasks.clone()),
            refreshes: Refreshes::new(freshness.refresh_window),
            leases: Arc::default(),
            shared_leases: leases,
            outbox,
            freshness,
            write_mode,
            clock,
            operations: AtomicU64::new(1),
            tasks,
            stop: CancellationToken::new(),
        });
        coordinator.backplane().listen(Arc::clone(&coordinator.leases) as Arc<dyn Listener>);
        coordinator.stores.hear_the_queue();
        let upkeep = upkeep::Upkeep::new(Arc::clone(&coordinator.stores), coordinator.clock.clone());
        upkeep.learn().await;
        if let Some(log) = log {
            coordinator.follow(log).await;
        }
        coordinator.tasks.spawn(upkeep.run(coordinator.stop.clone()));
        coordinator
    }

    /// Writes what is queued, then closes the layers from top to bottom. Nobody may use the coordinator any more.
    pub async fn shutdown(&self, deadline: Instant) {
        self.stop.cancel();
        self.tasks.close();
        // Reads under way end by their own deadlines; the queue need not wait for them longer than for itself.
        let _ = timeout_at(deadline.into(), self.tasks.wait()).await;
        self.stores.write_queue.shutdown(deadline).await;
        for cold in &self.stores.cold {
            cold.layer.shutdown(deadline).await;
        }
    }
}

// === impl Coordinator: read ===

impl Coordinator {
    /// A number for an operation that begins now; no other of this node has it.
    pub fn number(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed)
    }

    /// What memory and the queue know. Synchronous; a hit in memory takes no lock of ours and allocates nothing.
    #[inline]
    pub fn peek(&self, cx: &OperationContext, key: &[u8]) -> Peek {
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
            Look::Cold(_) | Look::Stale(..) => Peek::Cold,
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

    /// What the client gets, of what the cold layers have and of a stale value from memory.
    fn serve(
        &self,
        cx: &OperationContext,
        key: &Key,
        wants: Wants,
        (found, stale): (Found, Option<Entry>),
    ) -> Option<Entry> {
        let (stale, reachable) = match found {
            Found::Fresh(entry) => return Some(entry),
            Found::Stale(below) => (stale.or(Some(below)), true),
            Found::Absent => (stale, true),
            Found::Unknown => (stale, false),
        };
        let entry = stale.filter(|_| wants == Wants::Value)?;
        // While the layers below can not be asked, nobody is sent away for a fresh value.
        if reachable && self.refreshes.claim(key.as_bytes(), cx.now) { None } else { self.refreshes.serve(entry) }
    }

    /// The operation, which may have waited, with what is to be trusted now.
    fn renewed(&self, cx: &OperationContext) -> OperationContext {
        OperationContext { trust: self.stores.backplane.trust(self.clock.monotonic()), ..*cx }
    }

    fn look(&self, cx: &OperationContext, key: &[u8]) -> Look {
        self.look_beside(cx, key, self.stores.memory.peek(cx.now, key))
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
        match turn.pending(key) {
            Pending::Value(entry) => match self.stores.freshness(cx, &entry) {
                Freshness::Fresh => Look::Hit(entry),
                Freshness::Stale => Look::Stale(entry, None),
                // A write on its way that is past its life: what is below it is older still.
                Freshness::Negative | Freshness::Expired | Freshness::Removed => Look::Absent,
            },
            Pending::Removed => Look::Absent,
            Pending::Unknown => Look::Cold(turn.ticket()),
        }
    }
}

// === impl Coordinator: write ===

impl Coordinator {
    /// A position for an entry with tags that is written now.
    pub fn position(&self, cx: &OperationContext) -> Position {
        self.stores.tags.position(cx.now)
    }

    /// What comes with a value that is written now. Its stale life begins at its expiry.
    pub fn meta<'a>(
        &self,
        cx: &OperationContext,
        expires_at: Option<UnixMillis>,
        stale: Option<Duration>,
        tags: Tags<'a>,
    ) -> EntryMeta<'a> {
        EntryMeta {
            expires_at,
            stale_until: expires_at.zip(stale).map(|(at, stale)| at.after(stale)),
            // Only tags are compared with positions.
            position: if tags.is_empty() { Position::NONE } else { self.position(cx) },
            tags,
            negative: false,
        }
    }

    /// Stores the entry if that takes no waiting.
    ///
    /// # Errors
    /// The entry, if the queue is full or writes wait for the layers: call [`Coordinator::set`].
    #[inline]
    pub fn try_set(&self, cx: &OperationContext, entry: Entry) -> Result<(), Entry> {
        if self.write_mode == WriteMode::Through {
            return Err(entry);
        }
        self.store(cx, &entry, None).map_err(|Full| entry)
    }

    #[inline]
    fn store(&self, cx: &OperationContext, entry: &Entry, receipt: Option<Arc<Receipt>>) -> Result<(), Full> {
        let mut turn = self.stores.write_queue.turn(entry.key());
        self.stores.set(cx, &mut turn, entry, receipt)
    }

    /// Stores the entry, waiting for room in the queue if need be, and for the layers if writes go through.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`] or [`WriteError::TooLarge`]; written through also [`WriteError::Unconfirmed`].
    pub async fn set(&self, op: impl Into<Traced<'_>>, entry: Entry) -> Result<Confirmed, WriteError> {
        let op = &mut op.into();
        if !self.stores.write_queue.fits(&entry) {
            return Err(WriteError::TooLarge(entry.bytes()));
        }
        let receipt = (self.write_mode == WriteMode::Through).then(|| Receipt::new(1));
        loop {
            let room = self.stores.write_queue.room();
            if self.store(op.cx, &entry, receipt.clone()).is_ok() {
                break;
            }
            self.roomy(op, room.for_value(op.cx.deadline)).await?;
        }
        match receipt {
            Some(receipt) => self.told(op, &receipt, 1).await,
            None => Ok(Confirmed::Accepted),
        }
    }

    /// Stores the entries in their order; says what the one knows of which the fewest know.
    ///
    /// # Errors
    /// As [`Coordinator::set`]; the entries before the refused one are stored.
    pub async fn set_many(&self, op: impl Into<Traced<'_>>, entries: Vec<Entry>) -> Result<Confirmed, WriteError> {
        let op = &mut op.into();
        let mut least = Confirmed::Everywhere;
        for entry in entries {
            least = least.max(self.set(op.again(), entry).await?);
        }
        Ok(least)
    }

    /// Waits until the cold layers that can be reached have every write accepted so far.
    ///
    /// # Errors
    /// [`WriteError::Unflushed`] if the deadline passed before; the flushing goes on.
    pub async fn flush(&self, op: impl Into<Traced<'_>>) -> Result<Confirmed, WriteError> {
        let receipt = self.stores.write_queue.hurry();
        let flushed = self.confirmed(&mut op.into(), &receipt, receipt.left()).await;
        flushed.map_err(|_| WriteError::Unflushed(Unflushed { left: receipt.left() }))?;
        Ok(if receipt.excused().is_empty() { Confirmed::Everywhere } else { Confirmed::Queued })
    }
}

#[cfg(test)]
mod tests;

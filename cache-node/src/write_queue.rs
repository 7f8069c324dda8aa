//! Writes accepted, not yet in every cold layer: visible to reads, bounded in items and bytes, one slot per key, ordered
//! per key.
//!
//! The queue is also where the writes of one key get their order. Whoever holds the [`Turn`] of a key is alone with it:
//! a write changes the queue and then memory under one turn, so that memory, queue and cold layers agree on who was
//! last; a promotion puts a value into memory under a turn, and only if its [`Ticket`] proves that nothing was written
//! since before the value was read.
//!
//! Every cold layer has a lane of its own, with flushers of its own, so that a slow or dead layer never delays another.
//! A slot stays visible until every layer has its change, so a reader finds every accepted write in memory, here or
//! below. A removal is confirmed to its caller only after that ([`Receipt`]); callers that wait for one batch are woken
//! together, which makes their removals one write.
//!
//! A layer that can not be reached must neither fill the queue nor hold up removals. It stops counting for receipts,
//! except for the disk. Once the queue is half full, or a change finds no room, values that only it lacks are
//! forgotten, and their keys kept, to be removed there; at three quarters, or if that is not enough, the keys are
//! forgotten too, in exchange for a clear. Until all that is done,
//! [`WriteQueue::is_trusted`] tells readers to leave the layer out, because it holds older values.
//!
//! What a kill -9 loses is what is in the queue: overwrites accepted in the last moments ([`LINGER`] plus the time of
//! one batch, when the layer keeps up). The journal knows their keys, so that they are absent afterwards and never older.
//! A confirmed removal is never lost.

mod account;
mod batch;
mod clear;
mod flusher;
mod foreign;
mod journal;
mod lanes;
mod line;
mod receipt;
mod report;
mod shard;
mod slot;
mod tagged;
mod turn;
mod work;

use std::{
    sync::{Arc, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use ahash::RandomState;
use tokio::{
    sync::{Notify, futures::Notified},
    time::timeout_at,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    account::{Counts, Used},
    clear::Clear,
    flusher::Flusher,
    foreign::{Known, OnPlaced},
    journal::{Journal, LeftBehind},
    lanes::{LANES_MAX, Lane},
    shard::Shard,
};
pub use self::{
    journal::JournalPlace,
    lanes::{LaneReport, Lanes},
    receipt::{Hurry, Receipt},
    turn::{Pending, Ticket, Turn},
};
use crate::{
    clock::Clock,
    context::OperationContext,
    entry::Entry,
    layer::{Layer, LayerId, Observed, TagRemoval},
    sync::{Mutex, atomic::Ordering},
};

/// What a slot takes besides key and value: itself, its place in the table and in the lines.
pub const SLOT_OVERHEAD_BYTES: u64 = 200;

/// How long a lone overwrite waits for company before it is flushed. Longer merges more overwrites of one key into one
/// write; shorter narrows what a kill -9 loses, which is a miss after it.
pub const LINGER: Duration = Duration::from_millis(5);

/// Enough that threads rarely meet; a power of two.
const SHARDS: usize = 64;

/// A batch this large is worth a write of its own.
const BATCH_ITEMS: u64 = 1024;
const BATCH_BYTES: u64 = 1024 * 1024;

/// Stands for "not at the moment" where a time is kept in an atomic.
const NEVER_MS: u64 = u64::MAX;

/// How the queue is bounded. `config.rs` fills it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Bytes of keys, values and [`SLOT_OVERHEAD_BYTES`] each. An entry larger than this can not be stored.
    pub capacity_bytes: u64,
    /// Number of slots.
    pub items_max: u64,
    /// What happens to a value that finds the queue full.
    pub overflow: Overflow,
}

/// What happens to a value that finds the queue full. Removals always wait for room, and are never dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It waits for room until its deadline, and is refused then.
    #[default]
    Block,
    /// It is refused at once.
    Reject,
    /// Older queued values give way: their keys are removed from all layers, so that no older value comes back. Where
    /// there is none, it waits. The keys left behind may be as many again as the slots.
    DropOldest,
}

/// The queue.
pub struct WriteQueue {
    options: QueueOptions,
    /// Where writes go; without a cold layer the queue only orders writes and keeps none.
    lanes: Vec<Arc<Lane>>,
    all: Lanes,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// The clears owed to each lane. Locked while a batch is collected and while a clear is ordered, so that every
    /// batch is wholly before or wholly after it; always locked before a shard.
    clears: Mutex<[Clear; LANES_MAX]>,
    used: Arc<Used>,
    room: Notify,
    on_drop: OnceLock<OnDrop>,
    on_placed: OnceLock<OnPlaced>,
    known: OnceLock<Known>,
    clock: Clock,
    counts: Counts,
    observed: Observed,
    flushing: TaskTracker,
    drain: CancellationToken,
    give_up: CancellationToken,
    journal: Mutex<Option<Journal>>,
    /// Why there is no journal although there should be one.
    journal_trouble: Mutex<Option<String>>,
}

/// Removes a key from memory.
type OnDrop = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The queue has no room for a write now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the write queue is full")]
pub struct Full;

/// What was accepted did not reach all layers within the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{left} writes were not flushed within the deadline")]
pub struct Unflushed {
    /// Writes that are left, each counted for each layer that does not have it.
    pub left: usize,
}

/// A place in the queue for those who wait for room. Whoever waits must have been refused after it was made.
pub struct Room<'a> {
    overflow: Overflow,
    made: Notified<'a>,
}

// === impl WriteQueue ===

impl WriteQueue {
    /// An empty queue in front of `targets`, at most one of each kind, and its flushers, on the current runtime.
    ///
    /// With a place for a journal it begins with what an earlier queue left behind there: the keys whose writes may be
    /// lost are removed from all layers, and are absent to readers from now on.
    pub fn open(
        options: QueueOptions,
        targets: Vec<Arc<dyn Layer>>,
        journal: Option<&JournalPlace>,
        clock: Clock,
    ) -> Arc<Self> {
        let left_behind = journal.map(LeftBehind::load).unwrap_or_default();
        let (journal, journal_trouble) = match journal.map(Journal::create) {
            None => (None, None),
            Some(Ok(journal)) => (Some(journal), None),
            Some(Err(error)) => {
                tracing::warn!(%error, "no journal of queued keys: a kill may bring overwritten values back");
                (None, Some(error.to_string()))
            }
        };
        let queue =
            Self { journal_trouble: Mutex::new(journal_trouble), ..Self::idle(options, targets, journal, clock) };
        let queue = Arc::new(queue);
        queue.take_over(&left_behind);
        for lane in &queue.lanes {
            for number in 0..lane.seats.len() {
                queue.flushing.spawn(Flusher::new(Arc::clone(&queue), Arc::clone(lane), number).run());
            }
        }
        queue.flushing.close();
        queue
    }

    /// An empty queue without flushers.
    fn idle(options: QueueOptions, targets: Vec<Arc<dyn Layer>>, journal: Option<Journal>, clock: Clock) -> Self {
        let ring = |shard| journal.as_ref().and_then(|journal| journal.ring(shard));
        let lanes: Vec<Arc<Lane>> = targets.into_iter().map(|target| Arc::new(Lane::new(target))).collect();
        let all = lanes.iter().fold(Lanes::NONE, |all, lane| all.with(Lanes::at(lane.place)));
        assert_eq!(all.count(), lanes.len(), "one target of each kind");
        let used = Arc::new(Used::default());
        Self {
            options,
            lanes,
            all,
            shards: (0..SHARDS).map(|index| Mutex::new(Shard::new(all, Arc::clone(&used), ring(index)))).collect(),
            hasher: RandomState::new(),
            clears: Mutex::default(),
            used,
            room: Notify::new(),
            on_drop: OnceLock::new(),
            on_placed: OnceLock::new(),
            known: OnceLock::new(),
            counts: Counts::default(),
            observed: Observed::new(clock.clone()),
            clock,
            flushing: TaskTracker::new(),
            drain: CancellationToken::new(),
            give_up: CancellationToken::new(),
            journal: Mutex::new(journal),
            journal_trouble: Mutex::default(),
        }
    }

    /// Has `forget` called for the key of every value that [`Overflow::DropOldest`] drops, or that turns out to be older
    /// than the change of another node, under the turn of that key: it must remove the key from memory, and not come back to the queue. Only the first call counts.
    pub fn on_drop(&self, forget: impl Fn(&[u8]) + Send + Sync + 'static) {
        drop(self.on_drop.set(Box::new(forget)));
    }

    /// Waits until the key's turn comes and takes it.
    #[inline]
    pub fn turn(&self, key: &[u8]) -> Turn<'_> {
        let hash = self.hasher.hash_one(key);
        let index = self.shard_of(hash);
        Turn { queue: self, shard: lock(&self.shards[index]), index, hash }
    }

    /// Neither the low bits nor the top seven: the table of the shard uses those.
    const fn shard_of(&self, hash: u64) -> usize {
        (hash >> 40) as usize & (self.shards.len() - 1)
    }

    /// Whether an entry of this size could ever be accepted.
    pub fn fits(&self, entry: &Entry) -> bool {
        self.lanes.is_empty() || entry.bytes() + SLOT_OVERHEAD_BYTES <= self.options.capacity_bytes
    }

    /// A place among those who wait for room; to be taken before the attempt that may find none.
    pub fn room(&self) -> Room<'_> {
        Room { overflow: self.options.overflow, made: self.room.notified() }
    }

    /// Whether what the layer holds may be served. Not while it holds older values than this queue has seen, after it
    /// could not be reached for long, nor while it has not heard of a removal by tag that was acknowledged: what others
    /// have stored there since may be older than the removal, and nobody can tell before it has its place in the log. To
    /// be asked after the queue was asked for the key.
    pub fn is_trusted(&self, layer: LayerId) -> bool {
        let trusted = |lane: &Arc<Lane>| {
            let hidden = self.used.hidden[lane.place].load(Ordering::Acquire);
            !lane.is_void() && hidden == 0 && !lock(&lane.tagged).owes()
        };
        self.lanes.iter().filter(|lane| lane.target.id() == layer).all(trusted)
    }

    /// Drops all queued writes, runs `also` before any other write or look, and has all cold layers cleared. Nothing
    /// written before is served from here on; once the receipt is settled, nothing of it comes back.
    pub fn clear(&self, also: impl FnOnce()) -> Arc<Receipt> {
        let mut clears = lock(&self.clears);
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        // Before the slots go: a kill from here on must not leave the older values of their keys.
        lock(&self.journal).iter().for_each(|journal| journal.owe_clears(self.all));
        let receipt = Receipt::new(1);
        receipt.spread(self.all);
        for shard in &mut shards {
            // Removals dropped here are carried out by the clear, so whoever waits for them waits for it.
            shard.clear(|place, receipt| clears[place].receipts.push(receipt));
        }
        also();
        for lane in &self.lanes {
            let clear = &mut clears[lane.place];
            clear.receipts.push(Arc::clone(&receipt));
            self.order_clear(lane, clear, self.clock.now());
        }
        drop(shards);
        drop(clears);
        self.room.notify_waiters();
        self.lanes.iter().for_each(|lane| lane.wake_all());
        receipt
    }

    /// Has all cold layers keep the removal of tagged entries, ahead of everything else. It is never dropped; of one set
    /// of tags the newest is enough. Not to be called during a turn.
    pub fn remove_tagged(&self, removal: &TagRemoval) -> Arc<Receipt> {
        let receipt = Receipt::new(1);
        receipt.spread(self.all);
        for lane in &self.lanes {
            let mut tagged = lock(&lane.tagged);
            let excused = lane.is_away() && self.excuses(lane);
            let waiting = if excused { Vec::new() } else { vec![Arc::clone(&receipt)] };
            tagged.add(removal.clone(), self.clock.now().0, waiting, excused);
            let is_over = tagged.is_over_its_bound();
            drop(tagged);
            if excused {
                receipt.excuse_at(lane.place);
            }
            if is_over {
                self.forget(lane);
            }
            lane.wake(0, true);
        }
        receipt
    }

    /// Returns once everything that was accepted before is in every layer that can be reached, or must be.
    ///
    /// # Errors
    /// [`Unflushed`] at the deadline of `cx`; the flushing goes on.
    pub async fn flush(&self, cx: &OperationContext) -> Result<(), Unflushed> {
        let receipt = self.hurry();
        let flushed = timeout_at(cx.deadline.into(), receipt.settled()).await;
        flushed.map_err(|_| Unflushed { left: receipt.left() })
    }

    /// Hurries with everything that was accepted before; the receipt is settled once it is flushed. It is noted at each
    /// change that is queued: whoever can call this often has to see to it that few do at once.
    pub fn hurry(&self) -> Hurry {
        let receipt = Receipt::new(1);
        {
            let mut clears = lock(&self.clears);
            let reachable = self.waited_for();
            receipt.excuse(self.all.without(reachable));
            for lane in self.lanes.iter().filter(|lane| reachable.contains(Lanes::at(lane.place))) {
                let clear = &mut clears[lane.place];
                if clear.is_owed() {
                    receipt.expect_at(lane.place, 1);
                    clear.receipts.push(Arc::clone(&receipt));
                }
                lock(&lane.tagged).wait_for_all(lane.place, &receipt);
            }
            for shard in &self.shards {
                lock(shard).wait_for_all(reachable, &receipt);
            }
        }
        receipt.give_up();
        self.lanes.iter().for_each(|lane| lane.wake_all());
        Hurry(receipt)
    }
}

// === impl Room ===

impl Room<'_> {
    /// Waits until a batch has made room for a value, if the policy is to wait.
    ///
    /// # Errors
    /// [`Full`] at the deadline, or at once with [`Overflow::Reject`].
    pub async fn for_value(self, deadline: Instant) -> Result<(), Full> {
        if self.overflow == Overflow::Reject { Err(Full) } else { self.for_removal(deadline).await }
    }

    /// Waits until a batch has made room for a removal.
    ///
    /// # Errors
    /// [`Full`] at the deadline.
    pub async fn for_removal(self, deadline: Instant) -> Result<(), Full> {
        timeout_at(deadline.into(), self.made).await.map_err(|_| Full)
    }
}

const fn stripe_of(hash: u64) -> usize {
    (hash >> 46) as usize % shard::STRIPES
}

/// A panic under a lock leaves the data as consistent as a removal at that moment would, so the lock is taken anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

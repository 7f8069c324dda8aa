//! Writes accepted, not yet on disk: visible to reads, bounded in items and bytes, one slot per key, ordered per key.
//!
//! The queue is also where the writes of one key get their order. Whoever holds the [`Turn`] of a key is alone with it:
//! a write changes the queue and then memory under one turn, so that memory, queue and disk agree on who was last; a
//! promotion puts a value into memory under a turn, and only if its [`Ticket`] proves that nothing was written since
//! before the value was read.
//!
//! One flusher takes batches to the cold layer. A slot stays visible until its batch is applied, so a reader finds
//! every accepted write in memory, here or on disk. A removal is confirmed to its caller only after that
//! ([`Receipt`]); callers that wait for one batch are woken together, which makes their removals one write.
//!
//! What a kill -9 loses is what is in the queue: overwrites accepted in the last moments ([`LINGER`] plus the time of
//! one batch, when the disk keeps up). A confirmed removal is never lost.

mod account;
mod flusher;
mod receipt;
mod shard;
mod turn;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ahash::RandomState;
use async_trait::async_trait;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    account::{Counts, Used},
    flusher::Flusher,
    shard::{Batch, Shard},
};
pub use self::{
    receipt::Receipt,
    turn::{Pending, Ticket, Turn},
};
use crate::{
    clock::{Clock, UnixMillis},
    entry::Entry,
    layer::{Component, Health, Layer, LayerError, Observed, Stats, Verdict},
};

/// What a slot takes besides key and value: itself, its place in the table and in the order.
pub const SLOT_OVERHEAD_BYTES: u64 = 160;

/// How long a lone overwrite waits for company before it is flushed. Longer merges more overwrites of one key into one
/// write; shorter narrows what a kill -9 loses.
pub const LINGER: Duration = Duration::from_millis(5);

/// Enough that threads rarely meet; a power of two.
const SHARDS: usize = 64;

/// A batch this large is worth a write of its own: about 5 ms of RocksDB's time.
const BATCH_ITEMS: u64 = 1024;
const BATCH_BYTES: u64 = 1024 * 1024;

/// From this age of the oldest write on the queue is called degraded.
const AGE_DEGRADED: Duration = Duration::from_secs(1);

/// Having been full for this long makes the queue unavailable.
const FULL_UNAVAILABLE: Duration = Duration::from_secs(10);

/// Stands for "not at the moment" where a time is kept in an atomic.
const NEVER_MS: u64 = u64::MAX;

/// How the queue is bounded. `config.rs` fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Bytes of keys, values and [`SLOT_OVERHEAD_BYTES`] each. An entry larger than this can not be stored.
    pub capacity_bytes: u64,
    /// Number of slots.
    pub items_max: u64,
}

/// The queue.
pub struct WriteQueue {
    options: QueueOptions,
    /// Where writes go; without a cold layer the queue only orders writes and keeps none.
    target: Option<Arc<dyn Layer>>,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// Who waits for a clear that is not carried out yet. Locked while a batch is collected and while a clear is
    /// marked, so that every batch is wholly before or wholly after it; always locked before a shard.
    clears: Mutex<Vec<Arc<Receipt>>>,
    used: Used,
    rest: AtomicU8,
    wake: Notify,
    room: Notify,
    clock: Clock,
    counts: Counts,
    trouble: Mutex<Option<String>>,
    observed: Observed,
    flushing: TaskTracker,
    drain: CancellationToken,
    give_up: CancellationToken,
}

/// The queue has no room for a write now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the write queue is full")]
pub struct Full;

/// What the flusher is doing, so that writers know whether to wake it.
enum Rest {}

/// What the flusher does next.
enum Work {
    Clear(Vec<Arc<Receipt>>),
    Apply(Batch),
    Nothing,
}

// === impl WriteQueue ===

impl WriteQueue {
    /// An empty queue in front of `target`, and its flusher, on the current runtime.
    pub fn open(options: QueueOptions, target: Option<Arc<dyn Layer>>, clock: Clock) -> Arc<Self> {
        let queue = Arc::new(Self {
            options,
            target: target.clone(),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
            hasher: RandomState::new(),
            clears: Mutex::new(Vec::new()),
            used: Used::default(),
            rest: AtomicU8::new(Rest::BUSY),
            wake: Notify::new(),
            room: Notify::new(),
            counts: Counts::default(),
            trouble: Mutex::new(None),
            observed: Observed::new(clock.clone()),
            clock,
            flushing: TaskTracker::new(),
            drain: CancellationToken::new(),
            give_up: CancellationToken::new(),
        });
        if let Some(target) = target {
            queue.flushing.spawn(Flusher::new(Arc::clone(&queue), target).run());
        }
        queue.flushing.close();
        queue
    }

    /// Waits until the key's turn comes and takes it.
    #[inline]
    pub fn turn(&self, key: &[u8]) -> Turn<'_> {
        let hash = self.hasher.hash_one(key);
        Turn { queue: self, shard: lock(&self.shards[shard_of(hash)]), hash }
    }

    /// Whether an entry of this size could ever be accepted.
    pub fn fits(&self, entry: &Entry) -> bool {
        self.target.is_none() || entry.bytes() + SLOT_OVERHEAD_BYTES <= self.options.capacity_bytes
    }

    /// Waits until a batch has made room. Whoever waits must have been refused after this future was made, or check
    /// once more before awaiting it.
    pub fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Drops all queued writes, runs `also` before any other write or look, and has the cold layer cleared. Once the
    /// receipt is settled, nothing written before comes back.
    pub fn clear(&self, also: impl FnOnce()) -> Arc<Receipt> {
        let mut clears = lock(&self.clears);
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        let receipt = Receipt::new(usize::from(self.target.is_some()));
        let mut freed = (0, 0);
        for shard in &mut shards {
            // Removals dropped here are carried out by the clear, so whoever waits for them waits for it.
            let (items, bytes) = shard.clear(self.target.is_some(), &mut clears);
            freed = (freed.0 + items, freed.1 + bytes);
        }
        also();
        if self.target.is_some() {
            clears.push(Arc::clone(&receipt));
        }
        drop(shards);
        drop(clears);
        self.used.release(freed.0, freed.1);
        self.room.notify_waiters();
        self.wake(true);
        receipt
    }

    /// Observes health. To be called about once a second.
    pub fn tick(&self) {
        let now_ms = self.clock.now().0;
        let refused_ago = now_ms.saturating_sub(self.counts.refused_last_ms.load(Ordering::Relaxed));
        if refused_ago > 2000 {
            self.counts.full_since_ms.store(NEVER_MS, Ordering::Relaxed);
        }
        self.observed.observe(self.verdict());
    }

    /// Bytes of slots in use.
    pub fn bytes(&self) -> u64 {
        self.used.bytes.load(Ordering::Relaxed)
    }

    /// Slots in use.
    pub fn items(&self) -> u64 {
        self.used.items.load(Ordering::Relaxed)
    }

    /// How long ago the oldest write that is not on disk was accepted.
    pub fn oldest_age(&self) -> Duration {
        let queued = self.shards.iter().filter_map(|shard| lock(shard).oldest_ms()).min().unwrap_or(NEVER_MS);
        let oldest_ms = queued.min(self.counts.applying_since_ms.load(Ordering::Relaxed));
        if oldest_ms == NEVER_MS { Duration::ZERO } else { self.clock.now().since(UnixMillis(oldest_ms)) }
    }

    fn verdict(&self) -> Verdict {
        let full_since = self.counts.full_since_ms.load(Ordering::Relaxed);
        if full_since != NEVER_MS && self.clock.now().since(UnixMillis(full_since)) >= FULL_UNAVAILABLE {
            return Verdict::unavailable("QueueFull", "writes wait for room and time out".to_owned());
        }
        if let Some(trouble) = lock(&self.trouble).clone() {
            return Verdict::degraded("FlushFails", trouble);
        }
        let age = self.oldest_age();
        if age > AGE_DEGRADED {
            return Verdict::degraded("QueueLags", format!("the oldest write has waited {} ms", age.as_millis()));
        }
        let percent = (self.bytes() * 100 / self.options.capacity_bytes.max(1))
            .max(self.items() * 100 / self.options.items_max.max(1));
        if percent > 80 {
            return Verdict::degraded("QueueNearlyFull", format!("{percent} % full"));
        }
        Verdict::healthy()
    }

    /// Collects what the flusher does next.
    fn take(&self) -> Work {
        let mut clears = lock(&self.clears);
        if !clears.is_empty() {
            return Work::Clear(std::mem::take(&mut *clears));
        }
        let mut batch = Batch::default();
        // Removals first: somebody waits for each.
        for (index, shard) in self.shards.iter().enumerate() {
            lock(shard).take_removals(index, &mut batch);
        }
        for (index, shard) in self.shards.iter().enumerate() {
            lock(shard).take_ordered(index, &mut batch);
        }
        drop(clears);
        if batch.is_empty() {
            return Work::Nothing;
        }
        self.counts.applying_since_ms.store(batch.oldest_ms(), Ordering::Relaxed);
        Work::Apply(batch)
    }

    /// The cold layer has done it for good.
    fn settle(&self, work: Work) {
        match work {
            Work::Apply(batch) => self.settle_batch(batch),
            Work::Clear(receipts) => self.settle_clear(&receipts),
            Work::Nothing => {}
        }
    }

    fn settle_batch(&self, batch: Batch) {
        let (items, bytes) = (batch.len(), batch.charge());
        batch.settle(|index, hash, seq| lock(&self.shards[index]).settle(hash, seq));
        self.counts.applying_since_ms.store(NEVER_MS, Ordering::Relaxed);
        self.counts.flushed.fetch_add(items, Ordering::Relaxed);
        self.counts.batches.fetch_add(1, Ordering::Relaxed);
        *lock(&self.trouble) = None;
        self.used.release(items, bytes);
        self.room.notify_waiters();
    }

    fn settle_clear(&self, receipts: &[Arc<Receipt>]) {
        let clears = lock(&self.clears);
        if clears.is_empty() {
            for shard in &self.shards {
                lock(shard).end_clear();
            }
        }
        drop(clears);
        *lock(&self.trouble) = None;
        receipts.iter().for_each(|receipt| receipt.settle());
    }

    fn trouble(&self, error: &LayerError) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        *lock(&self.trouble) = Some(error.to_string());
    }

    /// Wakes the flusher if it rests, out of its linger only if somebody waits.
    fn wake(&self, urgent: bool) {
        let rest = self.rest.load(Ordering::Relaxed);
        let wanted = rest == Rest::IDLE || (rest == Rest::LINGERING && urgent);
        if wanted && self.rest.swap(Rest::BUSY, Ordering::Relaxed) != Rest::BUSY {
            self.wake.notify_one();
        }
    }

    fn has_work(&self) -> bool {
        !lock(&self.clears).is_empty() || self.shards.iter().any(|shard| lock(shard).has_work())
    }

    fn has_urgent_work(&self) -> bool {
        self.backlog_fills_a_batch()
            || !lock(&self.clears).is_empty()
            || self.shards.iter().any(|shard| lock(shard).has_removals())
    }

    fn backlog_fills_a_batch(&self) -> bool {
        self.items() >= BATCH_ITEMS || self.bytes() >= BATCH_BYTES
    }
}

#[async_trait]
impl Component for WriteQueue {
    fn name(&self) -> &'static str {
        "writeQueue"
    }

    fn health(&self) -> Health {
        self.observed.health()
    }

    fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            operations: count(&self.counts.accepted),
            entries: Some(self.items()),
            bytes: Some(self.bytes()),
            capacity_bytes: Some(self.options.capacity_bytes),
            extras: vec![
                ("oldestAgeMs", u64::try_from(self.oldest_age().as_millis()).unwrap_or(u64::MAX)),
                ("flushed", count(&self.counts.flushed)),
                ("batches", count(&self.counts.batches)),
                ("flushFailures", count(&self.counts.failures)),
                ("refusedFull", count(&self.counts.refused_full)),
                ("lostAtShutdown", count(&self.counts.lost_at_shutdown)),
            ],
            ..Stats::default()
        }
    }

    /// Writes everything queued. What is left at `deadline` is counted and logged.
    async fn shutdown(&self, deadline: Instant) {
        self.drain.cancel();
        self.wake(true);
        if tokio::time::timeout_at(deadline.into(), self.flushing.wait()).await.is_err() {
            self.give_up.cancel();
            self.flushing.wait().await;
            let lost = self.items();
            self.counts.lost_at_shutdown.store(lost, Ordering::Relaxed);
            tracing::warn!(lost, "stopped before all queued writes were on disk");
        }
    }
}

// === impl Rest ===

impl Rest {
    const BUSY: u8 = 0;
    /// Waits for more overwrites; wants to hear of removals.
    const LINGERING: u8 = 1;
    /// Wants to hear of anything.
    const IDLE: u8 = 2;
}

/// Neither the low bits nor the top seven: the table of the shard uses those.
const fn shard_of(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
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

//! L3: entries in RocksDB on the node's volume. They survive a restart, and a kill -9 of the process, of which this
//! layer gives exact account:
//!
//! - What [`Layer::apply`] has returned is in the write-ahead log, in the kernel's hands: a kill -9 does not lose it.
//! - Nothing is synced to the medium. After a power cut the newest writes may be gone, removals among them, so an older
//!   value could come back. Therefore a database that was not closed before the machine went down starts cold.
//! - A log or manifest that lost its end opens without an error, shorter than it was. Therefore the number of the last
//!   write is noted beside the database after each batch, and a database that ends before it starts cold.
//!
//! L3 is disposable: a database that is damaged, foreign or behind is moved aside and replaced by an empty one, and
//! health says so. What is damaged inside an open database is a counted miss.
//!
//! RocksDB blocks, so it is called on threads of this layer's own. A read that the block cache can answer is answered
//! inline: the hop to a thread costs ten times as much.

mod admission;
mod counts;
mod error;
mod files;
mod options;
mod pool;
mod reclaim;
mod removals;
mod shared;
mod statistics;
mod store;
mod tuning;
mod upkeep;

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::Instant,
};

use async_trait::async_trait;

pub use self::{
    admission::Admit,
    options::{DiskOptions, FULL_PATIENCE, IsRemoved},
};
use self::{
    pool::Pool,
    shared::Shared,
    store::{Cached, Found, Store},
};
use crate::{
    clock::Clock,
    context::OperationContext,
    entry::{Key, Position},
    layer::{
        Answers, Change, Component, Health, Layer, LayerError, LayerId, LayerResult, Stats, TagRemoval, log::Cursor,
    },
};

/// Threads for reads that go to the disk; more only lengthen the disk's own queue.
const READ_THREADS: usize = 4;

/// Reads that may wait for a thread.
const READS_WAITING_MAX: usize = 1024;

/// Batches that may wait; there is one flusher.
const WRITES_WAITING_MAX: usize = 16;

/// L3.
pub struct Disk {
    shared: Arc<Shared>,
    reads: Pool,
    writes: Pool,
    upkeep: Mutex<Option<JoinHandle<()>>>,
}

// === impl Disk ===

impl Disk {
    /// Opens the database, or an empty one in its place.
    ///
    /// # Errors
    /// [`LayerError`] if the folder can not be used at all, or another process uses it.
    pub async fn open(options: DiskOptions, clock: Clock) -> Result<Self, LayerError> {
        let shared = Arc::new(Shared::new(options, clock.clone()));
        let writes = Pool::start("disk-write", 1, WRITES_WAITING_MAX, clock.clone())?;
        let reads = Pool::start("disk-read", READ_THREADS, READS_WAITING_MAX, clock)?;
        let opening = Arc::clone(&shared);
        writes.run(None, move || opening.open()).await??;
        let upkeep = upkeep::start(Arc::clone(&shared))?;
        Ok(Self { shared, reads, writes, upkeep: Mutex::new(Some(upkeep)) })
    }

    fn answer(&self, found: Result<Found, LayerError>) -> Result<LayerResult, LayerError> {
        let found = found.inspect_err(|error| self.shared.counts.failed_read(error))?;
        Ok(self.say(found))
    }

    fn say(&self, found: Found) -> LayerResult {
        let counts = &self.shared.counts;
        let counter = if let Found::Entry(entry) = &found {
            self.shared.admission.see(entry.key());
            &counts.hits
        } else {
            &counts.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match found {
            Found::Entry(entry) => LayerResult::Hit(entry),
            // Whatever replaced it would have removed this copy: a copy elsewhere is as old, and past its life as well.
            Found::Expired => LayerResult::StopWithoutValue,
            Found::Nothing => LayerResult::Miss,
        }
    }
}

impl Drop for Disk {
    /// Without a shutdown, as in a panic: the upkeep must not keep the folder locked.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(upkeep) = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).take() {
            upkeep.thread().unpark();
        }
    }
}

#[async_trait]
impl Component for Disk {
    fn name(&self) -> &'static str {
        LayerId::Disk.label()
    }

    fn health(&self) -> Health {
        self.shared.observed.health()
    }

    fn stats(&self) -> Stats {
        self.shared.counts.stats()
    }

    /// Flushes memtables, notes that everything is on the medium and closes the database, so that the next start is
    /// quick and warm.
    async fn shutdown(&self, deadline: Instant) {
        self.shared.stopping.store(true, Ordering::Release);
        let upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shared = Arc::clone(&self.shared);
        let close = self.writes.run(None, move || {
            if let Some(upkeep) = upkeep {
                upkeep.thread().unpark();
                let _ = upkeep.join();
            }
            shared.close();
        });
        if tokio::time::timeout_at(deadline.into(), close).await.is_err() {
            tracing::warn!("stopped before the database was closed; it is recovered from its log at the next start");
        }
        self.reads.stop();
        self.writes.stop();
    }
}

#[async_trait]
impl Layer for Disk {
    fn id(&self) -> LayerId {
        LayerId::Disk
    }

    async fn get(&self, cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        if let Cached::Known(found) = self.shared.store()?.get_cached(cx.now, key.as_bytes()) {
            self.shared.counts.inline.fetch_add(1, Ordering::Relaxed);
            return self.answer(found);
        }
        let (shared, now, key) = (Arc::clone(&self.shared), cx.now, key.clone());
        let read = move || shared.store()?.get(now, key.as_bytes());
        self.answer(self.reads.run(Some(cx.deadline), read).await.and_then(|found| found))
    }

    fn get_now(&self, cx: &OperationContext, key: &[u8], is_last: bool) -> Option<LayerResult> {
        let Cached::Known(Ok(found)) = self.shared.store().ok()?.get_cached(cx.now, key) else { return None };
        let settles = match &found {
            Found::Entry(entry) => entry.is_live(cx.now),
            Found::Expired => true,
            Found::Nothing => is_last,
        };
        settles.then(|| {
            self.shared.counts.inline.fetch_add(1, Ordering::Relaxed);
            self.say(found)
        })
    }

    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Answers {
        let cached = self.shared.store()?.get_cached_many(cx.now, keys);
        let (shared, now) = (Arc::clone(&self.shared), cx.now);
        let unknown: Vec<Key> = keys
            .iter()
            .zip(&cached)
            .filter(|(_, cached)| matches!(cached, Cached::Unknown))
            .map(|(key, _)| key.clone())
            .collect();
        let count = unknown.len();
        self.shared.counts.inline.fetch_add((keys.len() - count) as u64, Ordering::Relaxed);
        let mut read = Vec::new().into_iter();
        if count > 0 {
            let job = move || shared.store().map(|store| store.get_many(now, &unknown));
            let found = self.reads.run(Some(cx.deadline), job).await.and_then(|found| found);
            // What is known all the same is answered.
            read = found.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect()).into_iter();
        }
        let found = cached.into_iter().map(|cached| match cached {
            Cached::Known(found) => found,
            Cached::Unknown => read.next().expect("every key that was asked for is answered"),
        });
        Ok(found.map(|found| self.answer(found)).collect())
    }

    async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        let (shared, now, changes) = (Arc::clone(&self.shared), cx.now, changes.to_vec());
        let write = move || shared.apply(now, &changes);
        self.writes.run(None, write).await.and_then(|outcome| outcome).map(|()| Vec::new())
    }

    async fn clear(&self, _cx: &OperationContext) -> Result<(), LayerError> {
        let shared = Arc::clone(&self.shared);
        let clear = move || shared.write(Store::clear);
        self.writes.run(None, clear).await.and_then(|outcome| outcome)
    }

    async fn tag_removals(&self, cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        let (shared, now) = (Arc::clone(&self.shared), cx.now);
        let read = move || shared.store()?.tag_removals(now);
        let found = self.reads.run(Some(cx.deadline), read).await.and_then(|found| found);
        found.inspect_err(|error| self.shared.counts.failed_read(error))
    }

    async fn newest_position(&self, _cx: &OperationContext) -> Result<Position, LayerError> {
        Ok(self.shared.store()?.newest_position())
    }

    async fn cursor(&self) -> Result<Option<Cursor>, LayerError> {
        let shared = Arc::clone(&self.shared);
        let read = move || shared.store()?.cursor();
        self.reads.run(None, read).await.and_then(|found| found)
    }
}

#[cfg(test)]
mod tests;

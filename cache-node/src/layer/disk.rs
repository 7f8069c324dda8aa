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
mod files;
mod pool;
mod reclaim;
mod removals;
mod statistics;
mod store;
mod tuning;
mod upkeep;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;

pub use self::admission::Admit;
use self::{
    admission::Admission,
    counts::Counts,
    pool::Pool,
    store::{Applied, Cached, Found, Store},
};
use crate::{
    clock::{Clock, UnixMillis},
    context::OperationContext,
    entry::{Entry, Key, Position, Tags, envelope::Codec},
    layer::{
        Change, Component, ErrorKind, Health, Layer, LayerError, LayerId, LayerResult, Observed, Stats, TagRemoval,
    },
};

/// A full volume may be given room by a person, by expiry or by compaction for this long, before the layer gives up
/// entries.
pub const FULL_PATIENCE: Duration = Duration::from_secs(60);

/// Threads for reads that go to the disk; more only lengthen the disk's own queue.
const READ_THREADS: usize = 4;

/// Reads that may wait for a thread.
const READS_WAITING_MAX: usize = 1024;

/// Batches that may wait; there is one flusher.
const WRITES_WAITING_MAX: usize = 16;

/// Says whether an entry with these tags and this position was removed by one of them. Compaction asks it of every
/// entry that has tags, from threads of RocksDB.
pub type IsRemoved = Arc<dyn Fn(Tags<'_>, Position) -> bool + Send + Sync>;

/// How L3 is opened. `config.rs` fills it.
#[derive(Clone)]
pub struct DiskOptions {
    /// Folder of the layer, created if missing. The layer owns everything in it.
    pub path: PathBuf,
    /// Block cache and memtables together, in bytes.
    pub memory_bytes: u64,
    /// How long after it was written an entry is served from disk.
    pub max_ttl: Duration,
    /// An entry with less life than this is not worth a write: it would be dead before a restart could use it. An older
    /// copy on disk is removed instead.
    pub min_ttl: Duration,
    /// Which entries are written.
    pub admit: Admit,
    /// Bytes of entries that may be written a day; none is any number.
    pub daily_write_bytes: Option<u64>,
    /// How values are compressed.
    pub codec: Codec,
    /// Lets compaction drop entries that were removed by a tag. Reads do not ask it: that is for the caller.
    pub is_removed: IsRemoved,
    /// For how long the volume may be full before the layer gives up entries to make room: [`FULL_PATIENCE`], except in
    /// tests.
    pub full_patience: Duration,
    /// Identity of the cache; a volume of another cache starts cold.
    pub cache_uid: String,
    /// Identity of the node; a volume of another node starts cold.
    pub node: String,
}

/// L3.
pub struct Disk {
    shared: Arc<Shared>,
    reads: Pool,
    writes: Pool,
    upkeep: Mutex<Option<JoinHandle<()>>>,
}

/// What the layer's threads share.
struct Shared {
    options: DiskOptions,
    clock: Clock,
    /// None while the database is being reopened, and after the shutdown.
    store: ArcSwapOption<Store>,
    counts: Arc<Counts>,
    admission: Admission,
    /// Above the last threshold of the volume: sets are not written, old copies are removed.
    brake: AtomicBool,
    /// Since when, or since when entries were last given up.
    braked_since: Mutex<Option<Instant>>,
    /// Why what is on disk must not be trusted, although it may look intact.
    distrust: Mutex<Option<String>>,
    stopping: AtomicBool,
    /// The failure of the last write, and since when writes have failed; none after a success.
    failing: Mutex<Option<Failing>>,
    observed: Observed,
    started_cold: Mutex<Option<String>>,
}

#[derive(Clone)]
struct Failing {
    since: Instant,
    kind: ErrorKind,
    message: String,
}

// === impl DiskOptions ===

impl DiskOptions {
    /// The defaults of the settings, in this folder, for a cache and a node without names and without tags.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            memory_bytes: 64 << 20,
            max_ttl: Duration::from_secs(168 * 3600),
            min_ttl: Duration::from_secs(60),
            admit: Admit::default(),
            daily_write_bytes: None,
            codec: Codec::default(),
            is_removed: Arc::new(|_, _| false),
            full_patience: FULL_PATIENCE,
            cache_uid: String::new(),
            node: String::new(),
        }
    }
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
        let counts = &self.shared.counts;
        let result = found.inspect_err(|error| counts.failed_read(error))?;
        let counter = if let Found::Entry(entry) = &result {
            self.shared.admission.see(entry.key());
            &counts.hits
        } else {
            &counts.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(match result {
            Found::Entry(entry) => LayerResult::Hit(entry),
            Found::Expired => LayerResult::StopWithoutValue,
            Found::Nothing => LayerResult::Miss,
        })
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

    async fn get_many(&self, cx: &OperationContext, keys: &[Key]) -> Result<Vec<LayerResult>, LayerError> {
        let cached = self.shared.store()?.get_cached_many(cx.now, keys);
        let (shared, now) = (Arc::clone(&self.shared), cx.now);
        let unknown: Vec<Key> = keys
            .iter()
            .zip(&cached)
            .filter(|(_, cached)| matches!(cached, Cached::Unknown))
            .map(|(key, _)| key.clone())
            .collect();
        let mut read = Vec::new().into_iter();
        if !unknown.is_empty() {
            let job = move || shared.store().map(|store| store.get_many(now, &unknown));
            let found = self.reads.run(Some(cx.deadline), job).await.and_then(|found| found);
            read = found.inspect_err(|error| self.shared.counts.failed_read(error))?.into_iter();
        }
        let found = cached.into_iter().map(|cached| match cached {
            Cached::Known(found) => found,
            Cached::Unknown => read.next().expect("every key that was asked for is answered"),
        });
        // A key whose copy is damaged must not spoil the others of its batch.
        Ok(found.map(|found| self.answer(found).unwrap_or(LayerResult::StopWithoutValue)).collect())
    }

    async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<(), LayerError> {
        let (shared, now, changes) = (Arc::clone(&self.shared), cx.now, changes.to_vec());
        let write = move || shared.apply(now, &changes);
        self.writes.run(None, write).await.and_then(|outcome| outcome)
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
}

// === impl Shared ===

impl Shared {
    fn new(options: DiskOptions, clock: Clock) -> Self {
        Self {
            admission: Admission::new(&options, clock.clone()),
            options,
            store: ArcSwapOption::empty(),
            counts: Arc::default(),
            brake: AtomicBool::new(false),
            braked_since: Mutex::new(None),
            distrust: Mutex::new(None),
            stopping: AtomicBool::new(false),
            failing: Mutex::new(None),
            observed: Observed::new(clock.clone()),
            clock,
            started_cold: Mutex::new(None),
        }
    }

    /// Opens the database in place of none.
    fn open(&self) -> Result<(), LayerError> {
        let distrust = self.distrust.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let opened = Store::open(&self.options, &self.clock, &self.counts, distrust);
        let (store, cold) = opened.inspect_err(|error| {
            self.counts.error(error.kind);
        })?;
        *self.distrust.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(why) = cold {
            tracing::warn!(why, path = %self.options.path.display(), "the disk layer starts cold");
            self.counts.cold_starts.fetch_add(1, Ordering::Relaxed);
            *self.started_cold.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
        self.store.store(Some(Arc::new(store)));
        self.refresh();
        Ok(())
    }

    fn store(&self) -> Result<Arc<Store>, LayerError> {
        self.store.load_full().ok_or_else(|| LayerError {
            layer: LayerId::Disk,
            kind: ErrorKind::Unreachable,
            message: "the database is not open".to_owned(),
        })
    }

    fn apply(&self, now: UnixMillis, changes: &[Change]) -> Result<(), LayerError> {
        // A small volume fills within the second until the next look.
        if !self.brake.load(Ordering::Relaxed) {
            self.measure();
        }
        let braked = self.brake.load(Ordering::Relaxed);
        let admit = |entry: &Entry| {
            let verdict = self.admission.admit(now, entry, braked);
            verdict.map_err(|refusal| self.counts.refused(refusal)).is_ok()
        };
        let Applied { written, bytes, removed } = self.write(|store| store.apply(now, changes, admit))?;
        self.admission.spend(bytes);
        self.counts.written.fetch_add(written, Ordering::Relaxed);
        self.counts.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        self.counts.removed.fetch_add(removed, Ordering::Relaxed);
        Ok(())
    }

    /// Writes, and keeps account of failures for the upkeep.
    fn write<T>(&self, write: impl FnOnce(&Store) -> Result<T, LayerError>) -> Result<T, LayerError> {
        let outcome = self.store().and_then(|store| write(&store));
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &outcome {
            Ok(_) => *failing = None,
            Err(error) => {
                self.counts.error(error.kind);
                let since = failing.as_ref().map_or_else(|| self.clock.monotonic(), |failing| failing.since);
                *failing = Some(Failing { since, kind: error.kind, message: error.message.clone() });
            }
        }
        outcome
    }

    /// Takes the database out of use and waits for its last reader.
    fn take_store(&self) -> Option<Store> {
        let mut store = self.store.swap(None)?;
        loop {
            match Arc::try_unwrap(store) {
                Ok(store) => return Some(store),
                // A reader is inside RocksDB, where it is not for long.
                Err(shared) => store = shared,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn close(&self) {
        if let Some(store) = self.take_store()
            && let Err(error) = store.close()
        {
            tracing::warn!(%error, "the database was not closed cleanly; it is recovered from its log at the next start");
        }
    }
}

#[cfg(test)]
mod tests;

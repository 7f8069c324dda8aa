//! What the unit tests of several modules need: times, keys, and a cold layer that does as it is told.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::join_all;
use shuttle::{
    Runner,
    scheduler::{PctScheduler, RandomScheduler},
};
use tokio::sync::Semaphore;

use crate::{
    clock::{Clock, UnixMillis},
    context::{OperationContext, Origin, Trust},
    entry::{Entry, EntryMeta, Key, Position},
    layer::{
        Answers, Change, Component, ErrorKind, Health, HealthState, Layer, LayerError, LayerId, LayerResult, Stats,
        TagRemoval,
    },
    sync::may_switch,
};

/// When manual clocks of tests begin.
pub(crate) const START: UnixMillis = UnixMillis(1_800_000_000_000);

/// A client's operation now. It has ten minutes, because a manual clock stands still while a busy machine takes its time.
pub(crate) fn cx(clock: &Clock) -> OperationContext {
    cx_within(clock, Duration::from_secs(600))
}

/// A client's operation now, with this long to finish.
pub(crate) fn cx_within(clock: &Clock, patience: Duration) -> OperationContext {
    OperationContext {
        id: 0,
        origin: Origin::Client,
        now: clock.now(),
        deadline: clock.monotonic() + patience,
        trust: Trust::Full,
    }
}

/// A key.
pub(crate) fn key(text: &str) -> Key {
    Key::new(text.as_bytes().to_vec()).unwrap()
}

/// An entry without an expiry.
pub(crate) fn entry(key: &str, value: &str) -> Entry {
    Entry::new(key.as_bytes(), value.as_bytes(), EntryMeta::default())
}

/// An entry that expires.
pub(crate) fn entry_until(key: &str, value: &str, expires_at: UnixMillis) -> Entry {
    Entry::new(key.as_bytes(), value.as_bytes(), EntryMeta { expires_at: Some(expires_at), ..EntryMeta::default() })
}

/// The value as text.
pub(crate) fn text(entry: &Entry) -> String {
    String::from_utf8(entry.value().to_vec()).unwrap()
}

/// Polls until the condition holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("did not happen within the limit: {what}");
}

/// Lets the other tasks of this thread come as far as they can without time or I/O.
pub(crate) async fn let_others_go_on() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Runs a test in many of the orders in which its threads can go on: at random, and with few switches at surprising
/// places (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010). Its threads
/// are those of [`shuttle::thread`], and it ends when all have. `ORDERS` is how many of each kind; a failure tells the
/// seed, which `SHUTTLE_RANDOM_SEED` repeats. Nothing may wait for time.
pub(crate) fn in_every_order(test: impl Fn() + Send + Sync + Copy + 'static) {
    let orders = std::env::var("ORDERS").map_or(300, |orders| orders.parse().unwrap());
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new(orders), config.clone()).run(test);
    for switches in 2..=4 {
        Runner::new(PctScheduler::new(switches, orders), config.clone()).run(test);
    }
}

/// A cold layer in memory, whose reads and writes a test can hold back and make fail.
pub(crate) struct Scripted {
    id: LayerId,
    pub(crate) tag_removals: Mutex<Vec<TagRemoval>>,
    entries: Mutex<HashMap<Vec<u8>, Entry>>,
    /// Reads look the key up at once and answer once they get a permit: a slow read of an old value.
    pub(crate) read_gate: Semaphore,
    /// Writes take effect once they get a permit.
    pub(crate) write_gate: Semaphore,
    /// Tells what it has without waiting, as if nothing of it took I/O.
    pub(crate) at_once: AtomicBool,
    /// Says that it takes no part.
    pub(crate) away: AtomicBool,
    /// Keys for which it was not asked.
    pub(crate) passed_over: AtomicU64,
    /// Fails all calls.
    pub(crate) failing: AtomicBool,
    /// Answers all reads that there is no value, here or below.
    pub(crate) stopping: AtomicBool,
    /// Keys looked up.
    pub(crate) reads: AtomicU64,
    /// Calls in which they were.
    pub(crate) round_trips: AtomicU64,
    pub(crate) batches: Mutex<Vec<Vec<Change>>>,
}

// === impl Scripted ===

impl Scripted {
    /// A layer that answers at once.
    pub(crate) fn open() -> Arc<Self> {
        Self::gated(Semaphore::MAX_PERMITS, Semaphore::MAX_PERMITS)
    }

    /// A layer with this many permits for reads and for writes.
    pub(crate) fn gated(reads: usize, writes: usize) -> Arc<Self> {
        Self::gated_as(LayerId::Disk, reads, writes)
    }

    /// The same in the place of that layer.
    pub(crate) fn gated_as(id: LayerId, reads: usize, writes: usize) -> Arc<Self> {
        Arc::new(Self {
            id,
            tag_removals: Mutex::default(),
            entries: Mutex::default(),
            read_gate: Semaphore::new(reads),
            write_gate: Semaphore::new(writes),
            at_once: AtomicBool::new(false),
            away: AtomicBool::new(false),
            passed_over: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            batches: Mutex::default(),
        })
    }

    pub(crate) fn put(&self, entry: Entry) {
        self.entries.lock().unwrap().insert(entry.key().to_vec(), entry);
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        self.entries.lock().unwrap().get(key.as_bytes()).map(text)
    }

    async fn read(&self, key: &Key) -> Result<LayerResult, LayerError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let found = self.entries.lock().unwrap().get(key.as_bytes()).cloned();
        may_switch();
        self.read_gate.acquire().await.expect("never closed").forget();
        self.outcome()?;
        if self.stopping.load(Ordering::SeqCst) {
            return Ok(LayerResult::StopWithoutValue);
        }
        Ok(found.map_or(LayerResult::Miss, LayerResult::Hit))
    }

    fn outcome(&self) -> Result<(), LayerError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(LayerError::new(self.id, ErrorKind::Refused, "scripted"));
        }
        Ok(())
    }
}

#[async_trait]
impl Component for Scripted {
    fn name(&self) -> &'static str {
        self.id.label()
    }

    fn health(&self) -> Health {
        Health { state: HealthState::Healthy, reason: "AsExpected", message: String::new(), since: START }
    }

    fn stats(&self) -> Stats {
        Stats { entries: Some(self.entries.lock().unwrap().len() as u64), ..Stats::default() }
    }

    async fn shutdown(&self, _deadline: Instant) {}
}

#[async_trait]
impl Layer for Scripted {
    fn id(&self) -> LayerId {
        self.id
    }

    async fn get(&self, _cx: &OperationContext, key: &Key) -> Result<LayerResult, LayerError> {
        self.round_trips.fetch_add(1, Ordering::SeqCst);
        self.read(key).await
    }

    fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    fn passed_over(&self, keys: usize) {
        self.passed_over.fetch_add(keys as u64, Ordering::SeqCst);
    }

    fn get_now(&self, cx: &OperationContext, key: &[u8], is_last: bool) -> Option<LayerResult> {
        let is_able = self.at_once.load(Ordering::SeqCst) && !self.failing.load(Ordering::SeqCst);
        let found = self.entries.lock().unwrap().get(key).cloned();
        let settles = found.as_ref().map_or(is_last, |entry| entry.is_live(cx.now));
        (is_able && settles).then(|| {
            self.reads.fetch_add(1, Ordering::SeqCst);
            found.map_or(LayerResult::Miss, LayerResult::Hit)
        })
    }

    async fn get_many(&self, _cx: &OperationContext, keys: &[Key]) -> Answers {
        self.round_trips.fetch_add(1, Ordering::SeqCst);
        Ok(join_all(keys.iter().map(|key| self.read(key))).await)
    }

    async fn apply(&self, _cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, LayerError> {
        self.write_gate.acquire().await.expect("never closed").forget();
        self.outcome()?;
        may_switch();
        let mut entries = self.entries.lock().unwrap();
        for change in changes {
            match change {
                Change::Set(entry) | Change::Again(entry, _) => entries.insert(entry.key().to_vec(), entry.clone()),
                Change::Fill(entry) => {
                    Some(entries.entry(entry.key().to_vec()).or_insert_with(|| entry.clone()).clone())
                }
                Change::RemoveTagged(removal) => {
                    self.tag_removals.lock().unwrap().push(removal.clone());
                    None
                }
                Change::Remove(key) => entries.remove(key.as_bytes()),
                Change::Follow(_) => None,
            };
        }
        self.batches.lock().unwrap().push(changes.to_vec());
        Ok(Vec::new())
    }

    async fn clear(&self, _cx: &OperationContext) -> Result<(), LayerError> {
        self.write_gate.acquire().await.expect("never closed").forget();
        self.outcome()?;
        self.entries.lock().unwrap().clear();
        Ok(())
    }

    async fn tag_removals(&self, _cx: &OperationContext) -> Result<Vec<TagRemoval>, LayerError> {
        Ok(self.tag_removals.lock().unwrap().clone())
    }
}

//! One whole node against a map: any order of operations, evictions, faults of the layers below, passing time,
//! restarts and crashes. What a read may find is in `known.rs`, what can go wrong below in `layers.rs`.
//!
//! `SEED` repeats the operations of a run; what the flushers do meanwhile is up to the machine. `MODEL_OPERATIONS` is
//! how many there are in all.

mod diary;
mod known;
mod layers;
mod setup;

use std::{cell::Cell, pin::pin};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tempfile::{TempDir, tempdir};
use tokio::time::timeout;

use self::{
    known::{Answering, Model, TAGS, Version},
    layers::{Mood, Reads, Remote, Writes},
    setup::{Setup, abandon, stop},
};
use super::*;
use crate::layer::{ErrorKind, LayerId, disk::Admit};

/// In a plain `cargo test`; the gate runs five times as many.
const OPERATIONS: u64 = 200_000;
const KEYS: u32 = 200;
/// What is shorter-lived is not written to disk.
const LIFE_MIN: Duration = Duration::from_secs(5);
/// No operation takes so long, whatever else the machine does.
const OPERATION_LIMIT: Duration = Duration::from_secs(60);
/// After so long a removal waits for the slow read that it has joined.
const JOINED: Duration = Duration::from_millis(2);
/// How long a write waits that the disk does not confirm.
const PATIENCE: Duration = Duration::from_millis(2);

const READ_FAULTS: [Reads; 4] = [
    Reads::NotHandled,
    Reads::Failing(ErrorKind::Timeout),
    Reads::Failing(ErrorKind::Unreachable),
    Reads::Failing(ErrorKind::Corrupt),
];

struct Run {
    setup: Setup,
    folder: TempDir,
    clock: Clock,
    node: Arc<Coordinator>,
    remote: Arc<Remote>,
    redis: Arc<Mood>,
    disk: Arc<Mood>,
    model: Model,
    /// Which operation is under way, as in [`Run::step`].
    kind: u32,
    random: StdRng,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_behaves_like_a_map_with_expiries() {
    run(Setup::roomy(), 35).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_reads_the_disk_first_behaves_like_a_map_with_expiries() {
    run(Setup { policy: Policy::TinyLfu, disk_first: true, ..Setup::roomy() }, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_whose_queue_drops_values_serves_no_older_ones() {
    let queue = QueueOptions { capacity_bytes: 8 << 10, items_max: 30, overflow: Overflow::DropOldest };
    run(Setup { queue, ..Setup::roomy() }, 15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_writes_few_entries_to_disk_and_forgets_removals_by_tag_serves_no_older_values() {
    run(Setup { admit: Admit::SecondHit, removals_max: 3, ..Setup::roomy() }, 15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_writes_through_loses_no_confirmed_write_by_a_crash() {
    run(Setup { write_mode: WriteMode::Through, ..Setup::roomy() }, 5).await;
}

async fn run(setup: Setup, percent: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("SEED").unwrap_or_else(|| rand::rng().next_u64());
    let operations = number("MODEL_OPERATIONS").unwrap_or(OPERATIONS) * percent / 100;
    println!("SEED={seed} MODEL_OPERATIONS={}", operations * 100 / percent);
    let mut run = Run::begin(setup, seed).await;
    for number in 0..operations {
        let step = timeout(OPERATION_LIMIT, run.step(number)).await;
        assert!(step.is_ok(), "operation {number} hangs: {}", run.state());
    }
    run.restart().await;
    for number in 0..KEYS {
        run.get(&format!("k{number}")).await;
    }
    stop(&run.node).await;
}

// === impl Run ===

impl Run {
    async fn begin(setup: Setup, seed: u64) -> Self {
        let (folder, clock, remote) = (tempdir().unwrap(), Clock::manual(START), Arc::new(Remote::default()));
        let (redis, disk) = (Mood::good(), Mood::good());
        let node = setup.open(&folder, &clock, (&remote, &redis, &disk)).await;
        let model = Model::new(setup.promises());
        let random = StdRng::seed_from_u64(seed);
        Self { setup, folder, clock, node, remote, redis, disk, model, kind: 0, random }
    }

    async fn step(&mut self, number: u64) {
        let name = self.any_name();
        self.kind = self.below(20_000);
        self.model.diary.operation = number;
        match self.kind {
            0..8000 => self.get(&name).await,
            8000..13_000 => self.set(&name, number).await,
            13_000..14_000 => self.append(&name).await,
            14_000..14_100 => self.take(&name).await,
            14_100..14_600 => self.remove(&name).await,
            14_600..14_800 => self.remove_tagged().await,
            14_800..15_600 => self.get_some().await,
            15_600..18_600 => {
                self.model.diary.note(&name, || "evicted by memory".to_owned());
                self.node.memory().remove(name.as_bytes());
            }
            18_600..18_620 => {
                self.model.diary.note_all(|| "memory emptied".to_owned());
                self.node.memory().clear();
            }
            18_620..19_220 => self.pass_time(),
            19_220..19_280 => self.node.stores.sweep(self.clock.now()),
            19_280..19_330 => self.flush().await,
            19_330..19_370 => self.read_slowly(&name, number).await,
            19_370..19_770 => {
                self.remote.evict(&name);
                self.model.redis_evicted(&name);
            }
            19_770..19_780 => {
                self.remote.empty();
                self.model.redis_emptied();
            }
            19_780..19_800 => self.change_moods(),
            19_800..19_806 => self.clear().await,
            19_806 => self.restart().await,
            19_807 => self.crash().await,
            _ => self.get(&name).await,
        }
    }

    fn state(&self) -> String {
        let Self { kind, redis, disk, node, .. } = self;
        format!("{kind}, redis {redis:?}, disk {disk:?}, {:?}", node.write_queue().lanes())
    }

    fn pass_time(&mut self) {
        let ms = self.below(2000);
        self.clock.advance(Duration::from_millis(u64::from(ms)));
    }

    fn below(&mut self, end: u32) -> u32 {
        self.random.random_range(0..end)
    }

    fn any_name(&mut self) -> String {
        format!("k{}", self.below(KEYS))
    }

    fn any_tags(&mut self, max: u32) -> u8 {
        (0..=self.below(max)).fold(0, |tags, _| tags | 1 << self.below(8))
    }
}

// === impl Run: read ===

impl Run {
    async fn get(&mut self, name: &str) {
        let (cx, wants, answering) = (self.cx(), self.wants(), self.answering());
        let found = match self.node.get_now(&cx, name.as_bytes()) {
            Peek::Hit(entry) => Some(entry),
            Peek::Absent => None,
            Peek::Cold => self.node.get(&cx, &key(name), wants).await.entry,
        };
        let seen = found.as_ref().map_or("nothing".to_owned(), |found| Version::of(found).to_string());
        self.model.diary.note(name, || format!("read {seen}"));
        self.check(name, found.as_ref(), wants, answering);
    }

    async fn get_some(&mut self) {
        let names: Vec<String> = (0..10).map(|_| self.any_name()).collect();
        let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
        let (wants, answering) = (self.wants(), self.answering());
        let (found, _) = self.node.get_many(&self.cx(), &keys, wants).await;
        for (name, found) in names.iter().zip(found) {
            self.check(name, found.as_ref(), wants, answering);
        }
    }

    /// A read that has looked below and answers only after other changes of its key.
    async fn read_slowly(&mut self, name: &str, number: u64) {
        self.model.diary.note(name, || "slow read".to_owned());
        let slow = if self.below(2) == 0 { Arc::clone(&self.redis) } else { Arc::clone(&self.disk) };
        let mut legal = self.model.versions(name);
        self.node.memory().remove(name.as_bytes());
        slow.hold(name);
        let (node, cx, asked) = (Arc::clone(&self.node), self.cx(), key(name));
        let mut reads = JoinSet::new();
        let read = reads.spawn(async move { node.get(&cx, &asked, Wants::Value).await.entry });
        eventually("the read waits below, or is over", || slow.holding.load(Ordering::SeqCst) || read.is_finished())
            .await;
        // It may be over although it never came so far, and nobody else is to wait in its place.
        slow.expect_no_more();
        for _ in 0..=self.below(2) {
            match self.below(8) {
                0..4 => self.set(name, number).await,
                4..6 => {
                    // Unless the key was written since, it wants to know what the slow read brings, and waits for it.
                    let mut removal = pin!(self.remove(name));
                    if timeout(JOINED, &mut removal).await.is_err() {
                        slow.release();
                        removal.await;
                    }
                }
                6 => self.remove_tagged().await,
                _ => self.clear().await,
            }
            legal.extend(self.model.versions(name));
        }
        slow.release();
        self.model.diary.note(name, || "slow read ends".to_owned());
        if let Some(found) = reads.join_next().await.unwrap().unwrap() {
            assert!(legal.contains(&Version::of(&found)), "{name} has {found:?}: {legal:?}");
        }
        self.get(name).await;
        self.node.memory().remove(name.as_bytes());
        self.get(name).await;
    }

    /// `before` is from before the read. A layer that was given up meanwhile, by a batch that failed, need not have answered.
    fn check(&self, name: &str, found: Option<&Entry>, wants: Wants, before: Answering) {
        let after = self.answering();
        let answering = Answering { redis: before.redis && after.redis, disk: before.disk && after.disk };
        self.model.check(name, found, wants == Wants::Value, (self.clock.now(), answering));
    }

    fn wants(&mut self) -> Wants {
        if self.below(5) == 0 { Wants::Facts } else { Wants::Value }
    }

    /// After a crash a layer is left out until it has been told what it missed.
    fn answering(&self) -> Answering {
        Answering {
            redis: self.redis_answers() && self.trusts(LayerId::Redis),
            disk: self.disk_answers() && self.trusts(LayerId::Disk),
        }
    }

    fn trusts(&self, id: LayerId) -> bool {
        let stores = &self.node.stores;
        stores.cold.iter().filter(|cold| cold.layer.id() == id).all(|cold| stores.may_ask(cold))
    }

    fn redis_answers(&self) -> bool {
        self.redis.reads() == Reads::Answered
    }

    fn disk_answers(&self) -> bool {
        self.disk.reads() == Reads::Answered
    }

    fn cx(&self) -> OperationContext {
        cx(&self.clock)
    }
}

// === impl Run: write ===

impl Run {
    async fn set(&mut self, name: &str, number: u64) {
        let cx = self.write_cx();
        let entry = self.any_entry(name, number);
        let version = Version::of(&entry);
        let reaches_all = self.reaches_all_layers();
        let stored = match self.node.try_set(&cx, entry) {
            Ok(()) => Ok(()),
            Err(entry) => self.node.set(&cx, entry).await.map(drop),
        };
        match stored {
            Ok(()) => {
                self.model.written(name, version);
                if self.setup.write_mode == WriteMode::Through && reaches_all {
                    self.model.confirmed(name, self.clock.now());
                }
            }
            Err(WriteError::Unconfirmed) if self.is_impatient() => self.model.written(name, version),
            Err(error) => assert_eq!((error, self.is_impatient()), (WriteError::QueueFull, true)),
        }
    }

    fn any_entry(&mut self, name: &str, number: u64) -> Entry {
        let now = self.clock.now();
        let life = match self.below(3) {
            0 => None,
            1 => Some(1 + self.below(10_000)),
            _ => Some(10_000 + self.below(1_000_000)),
        };
        let after = |ms: u32| now.after(Duration::from_millis(u64::from(ms)));
        let stale = life.filter(|_| self.below(4) == 0).map(|life| life + self.below(20_000));
        let mut tags = TagSet::default();
        if self.below(4) == 0 {
            let bits = self.any_tags(3);
            TAGS.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0).for_each(|(_, tag)| {
                tags.add(tag.as_bytes()).unwrap();
            });
        }
        let negative = self.below(30) == 0;
        let meta = EntryMeta {
            expires_at: life.map(after),
            stale_until: stale.map(after),
            position: if tags.tags().is_empty() { Position::NONE } else { self.node.position(&self.cx()) },
            tags: tags.tags(),
            negative,
        };
        let length = if self.below(50) == 0 { 4000 } else { 20 };
        let value = if negative { String::new() } else { format!("{number}{}", "x".repeat(length)) };
        Entry::new(name.as_bytes(), value.as_bytes(), meta)
    }

    async fn append(&mut self, name: &str) {
        let tried = Cell::new(None);
        let grown = |current: Option<&Entry>| {
            let value = current.map(text).unwrap_or_default() + "+";
            let entry = Entry::new(name.as_bytes(), value.as_bytes(), current.map(Entry::meta).unwrap_or_default());
            tried.set(Some(Version::of(&entry)));
            (Update::Set(entry.clone()), (current.cloned(), Version::of(&entry)))
        };
        let (cx, answering) = (self.write_cx(), self.answering());
        let outcome = match self.node.try_update(&cx, name.as_bytes(), grown) {
            TryUpdate::Done(done) => Ok(done),
            TryUpdate::Cold => self.node.update(&cx, &key(name), grown).await,
        };
        match outcome {
            Ok((before, after)) => {
                self.check(name, before.as_ref(), Wants::Facts, answering);
                self.model.written(name, after);
            }
            Err(WriteError::Unconfirmed) if self.is_impatient() => {
                self.model.written(name, tried.take().expect("it was tried"));
            }
            Err(error) => self.expect_unreadable(error),
        }
    }

    async fn take(&mut self, name: &str) {
        let taken =
            |current: Option<&Entry>| (if current.is_some() { Update::Remove } else { Update::Keep }, current.cloned());
        let (cx, answering) = (self.write_cx(), self.answering());
        match self.node.update(&cx, &key(name), taken).await {
            Ok(before) => {
                self.check(name, before.as_ref(), Wants::Facts, answering);
                if before.is_some() {
                    self.model.removed(name);
                }
            }
            Err(WriteError::Unconfirmed) if self.is_impatient() => self.model.removed(name),
            Err(error) => self.expect_unreadable(error),
        }
    }

    async fn remove(&mut self, name: &str) {
        let there = self.model.is_there(name, self.clock.now(), self.answering());
        match self.node.remove_many(&self.write_cx(), &[key(name)]).await {
            Ok(Removed { live: removed, .. }) => {
                let must = there.filter(|_| !self.is_impatient()).map(u64::from);
                assert!(removed <= 1 && must.is_none_or(|must| must == removed), "{removed} of {name}: {there:?}");
                self.model.removed(name);
            }
            Err(error) => {
                assert!(self.is_impatient(), "{error}");
                if error == WriteError::Unconfirmed {
                    self.model.removed(name);
                }
            }
        }
    }

    async fn remove_tagged(&mut self) {
        let bits = self.any_tags(2);
        let matching = if self.below(2) == 0 { Matching::Any } else { Matching::All };
        let mut tags = TagSet::default();
        for (_, tag) in TAGS.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0) {
            tags.add(tag.as_bytes()).unwrap();
        }
        let outcome = self.node.remove_tagged(&self.write_cx(), tags, matching).await;
        self.model.removed_tagged(bits, matching, self.is_confirmed(outcome));
    }

    async fn clear(&mut self) {
        let outcome = self.node.clear(&self.write_cx()).await;
        self.is_confirmed(outcome);
        self.model.cleared();
    }

    async fn flush(&mut self) {
        let reaches_all = self.reaches_all_layers();
        let outcome = self.node.flush(&self.write_cx()).await;
        if outcome.is_ok() {
            self.model.flushed(self.clock.now(), reaches_all);
            assert!(self.trusts(LayerId::Disk), "it has everything: {}", self.state());
        } else {
            assert!(self.is_impatient(), "{outcome:?}");
        }
    }

    fn is_confirmed(&self, outcome: Result<Confirmed, WriteError>) -> bool {
        assert!(outcome.is_ok() || self.is_impatient(), "{outcome:?}");
        outcome.is_ok()
    }

    fn expect_unreadable(&self, error: WriteError) {
        let unreadable = error == WriteError::Unreadable && !(self.redis_answers() && self.disk_answers());
        assert!(unreadable || self.is_impatient(), "{error}");
    }

    /// Whether what is confirmed from now on is in Redis, too.
    fn reaches_all_layers(&self) -> bool {
        let lanes = self.node.write_queue().lanes();
        self.redis.writes() == Writes::Taken && lanes.iter().all(|lane| lane.is_reachable)
    }

    /// Nothing is confirmed while the disk takes no writes.
    fn is_impatient(&self) -> bool {
        self.disk.writes() != Writes::Taken
    }

    #[allow(clippy::disallowed_methods, reason = "the flushers take real time, whatever the test's clock says")]
    fn write_cx(&self) -> OperationContext {
        let deadline = if self.is_impatient() { Instant::now() + PATIENCE } else { self.cx().deadline };
        OperationContext { deadline, ..self.cx() }
    }
}

// === impl Run: faults and restarts ===

impl Run {
    fn change_moods(&mut self) {
        let random = &mut self.random;
        let mut reads = |percent| {
            let fault = random.random_range(0..100_u32) < percent;
            if fault { *READ_FAULTS.choose(random).expect("there are some") } else { Reads::Answered }
        };
        *self.redis.reads.lock().unwrap() = reads(40);
        *self.disk.reads.lock().unwrap() = reads(20);
        let mut writes = |percent| match random.random_range(0..100_u32) {
            number if number >= percent => Writes::Taken,
            number if number % 2 == 0 => Writes::Refused,
            _ => Writes::TakenInSilence,
        };
        *self.redis.writes.lock().unwrap() = writes(40);
        *self.disk.writes.lock().unwrap() = writes(6);
        let (redis, disk) = (&self.redis, &self.disk);
        let moods =
            format!("Redis {:?}, {:?}; disk {:?}, {:?}", redis.reads(), redis.writes(), disk.reads(), disk.writes());
        self.model.diary.note_all(|| moods);
    }

    async fn restart(&mut self) {
        self.model.diary.note_all(|| "restart".to_owned());
        self.redis.heal();
        self.disk.heal();
        stop(&self.node).await;
        self.model.flushed(self.clock.now(), true);
        self.reopen().await;
    }

    /// What is queued is lost, also what only a layer was owed that is away, and stays away.
    async fn crash(&mut self) {
        abandon(&self.node).await;
        self.model.crashed();
        self.reopen().await;
    }

    async fn reopen(&mut self) {
        // No restart is over within the millisecond in which it began.
        self.clock.advance(Duration::from_millis(1));
        self.node = self.setup.open(&self.folder, &self.clock, (&self.remote, &self.redis, &self.disk)).await;
    }
}

//! One node against a map with expiries: any order of operations, evictions, passing time and restarts.

use std::collections::HashMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tempfile::{TempDir, tempdir};

use super::*;
use crate::{
    clock::UnixMillis,
    layer::disk::{Disk, DiskOptions},
};

const OPERATIONS: u64 = 100_000;
const KEYS: u32 = 200;
const LIFE_MIN: Duration = Duration::from_secs(5);

/// What the map knows of a live key.
#[derive(Clone, Debug)]
struct Known {
    value: String,
    expires_at: Option<UnixMillis>,
    /// Too short-lived for the disk: may be gone once memory has given it up.
    may_be_gone: bool,
}

struct Run {
    folder: TempDir,
    policy: Policy,
    clock: Clock,
    node: Arc<Coordinator>,
    model: HashMap<String, Known>,
    random: StdRng,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_behaves_like_a_map_with_expiries() {
    let seed = std::env::var("SEED").ok().map_or_else(|| rand::rng().next_u64(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    for policy in [Policy::S3Fifo, Policy::TinyLfu] {
        let mut run = Run::begin(policy, seed).await;
        for number in 0..OPERATIONS / 2 {
            run.step(number).await;
        }
        run.restart().await;
        for number in 0..KEYS {
            run.get(&format!("k{number}")).await;
        }
    }
}

// === impl Run ===

impl Run {
    async fn begin(policy: Policy, seed: u64) -> Self {
        let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
        let node = open(&folder, policy, &clock).await;
        Self { folder, policy, clock, node, model: HashMap::new(), random: StdRng::seed_from_u64(seed) }
    }

    async fn step(&mut self, number: u64) {
        let name = format!("k{}", self.random.random_range(0..KEYS));
        match self.random.random_range(0..1000_u32) {
            0..400 => self.get(&name).await,
            400..650 => self.set(&name, number).await,
            650..720 => self.append(&name).await,
            720..790 => self.remove(&name).await,
            790..830 => self.get_some().await,
            830..930 => self.node.memory().remove(name.as_bytes()),
            930..990 => self.pass_time(),
            990..998 => {
                self.node.memory().sweep(self.clock.now(), |_| false);
            }
            998 => {
                self.node.clear(&self.cx()).await.unwrap();
                self.model.clear();
            }
            _ => self.restart().await,
        }
    }

    fn pass_time(&mut self) {
        self.clock.advance(Duration::from_millis(self.random.random_range(0..2000)));
        let now = self.clock.now();
        self.model.retain(|_, known| known.expires_at.is_none_or(|at| at > now));
    }

    async fn set(&mut self, name: &str, number: u64) {
        let life = match self.random.random_range(0..3_u32) {
            0 => None,
            1 => Some(Duration::from_millis(self.random.random_range(1..10_000))),
            _ => Some(Duration::from_secs(self.random.random_range(10..1000))),
        };
        let expires_at = life.map(|life| self.clock.now().after(life));
        let length = if self.random.random_range(0..50_u32) == 0 { 8000 } else { 20 };
        let value = format!("{number}{}", "x".repeat(length));
        let entry = Entry::new(name.as_bytes(), value.as_bytes(), EntryMeta { expires_at, ..EntryMeta::default() });
        self.node.set(&self.cx(), entry).await.unwrap();
        self.know(name, value, expires_at);
    }

    fn know(&mut self, name: &str, value: String, expires_at: Option<UnixMillis>) {
        let now = self.clock.now();
        // The write reaches the disk some time later, with less life left.
        let may_be_gone = expires_at.is_some_and(|at| at.since(now) < LIFE_MIN + Duration::from_secs(10));
        self.model.insert(name.to_owned(), Known { value, expires_at, may_be_gone });
    }

    async fn append(&mut self, name: &str) {
        let grown = |current: Option<&Entry>| {
            let value = current.map(text).unwrap_or_default() + "+";
            let meta = current.map(Entry::meta).unwrap_or_default();
            (Update::Set(Entry::new(name.as_bytes(), value.as_bytes(), meta)), (value, meta.expires_at))
        };
        let (value, expires_at) = match self.node.try_update(&self.cx(), name.as_bytes(), grown) {
            TryUpdate::Done(done) => done,
            TryUpdate::Cold => self.node.update(&self.cx(), &key(name), grown).await.unwrap(),
        };
        let before = value.strip_suffix('+').unwrap();
        self.check(name, (!before.is_empty()).then_some(before));
        self.know(name, value, expires_at);
    }

    async fn remove(&mut self, name: &str) {
        let removed = self.node.remove_many(&self.cx(), &[key(name)]).await.unwrap();
        match self.model.remove(name) {
            Some(Known { may_be_gone: true, .. }) => assert!(removed <= 1),
            known => assert_eq!(removed, u64::from(known.is_some()), "removal of {name}"),
        }
    }

    async fn get(&mut self, name: &str) {
        let cx = self.cx();
        let found = match self.node.peek(&cx, name.as_bytes()) {
            Peek::Hit(entry) => Some(entry),
            Peek::Absent => None,
            Peek::Cold => self.node.get(&cx, &key(name), Wants::Value).await.entry,
        };
        if let (Some(found), Some(known)) = (&found, self.model.get(name)) {
            assert_eq!(found.expires_at(), known.expires_at, "{name}");
        }
        self.check(name, found.as_ref().map(text).as_deref());
    }

    async fn get_some(&mut self) {
        let names: Vec<String> = (0..10).map(|_| format!("k{}", self.random.random_range(0..KEYS))).collect();
        let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
        let (found, _) = self.node.get_many(&self.cx(), &keys, Wants::Value).await;
        for (name, found) in names.iter().zip(found) {
            self.check(name, found.as_ref().map(text).as_deref());
        }
    }

    fn check(&mut self, name: &str, found: Option<&str>) {
        let known = self.model.get(name);
        if found.is_none() && known.is_some_and(|known| known.may_be_gone) {
            self.model.remove(name);
            return;
        }
        assert_eq!(found, known.map(|known| known.value.as_str()), "{name}: {known:?}");
    }

    async fn restart(&mut self) {
        stop(&self.node).await;
        self.node = open(&self.folder, self.policy, &self.clock).await;
    }

    fn cx(&self) -> OperationContext {
        cx(&self.clock)
    }
}

#[allow(clippy::disallowed_methods, reason = "closing takes real time, whatever the test's clock says")]
async fn stop(node: &Coordinator) {
    node.shutdown(Instant::now() + Duration::from_secs(60)).await;
}

async fn open(folder: &TempDir, policy: Policy, clock: &Clock) -> Arc<Coordinator> {
    let options = DiskOptions {
        memory_bytes: 16 << 20,
        max_ttl: Duration::from_secs(24 * 3600),
        min_ttl: LIFE_MIN,
        ..DiskOptions::at(folder.path())
    };
    let disk = Disk::open(options, clock.clone()).await.unwrap();
    Coordinator::open(parts(clock, policy, vec![Arc::new(disk)]), clock.clone()).await
}

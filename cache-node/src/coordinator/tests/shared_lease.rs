//! Leases that all nodes share: what another node does, and what becomes of them when nobody can be asked.

use std::{collections::VecDeque, sync::Mutex};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{tags::tag_set, *};
use crate::layer::{
    ErrorKind, LayerError,
    lease::{SharedLeases, Taken},
};

const LIFE: Duration = Duration::from_secs(10);

fn at(sequence: u64) -> Position {
    Position::from_parts(START.0, sequence)
}

fn away() -> LayerError {
    LayerError::new(LayerId::Redis, ErrorKind::Unreachable, "scripted")
}

/// Answers as it was told; what it was not told it can not be asked for.
#[derive(Default)]
struct Vault {
    takes: Mutex<VecDeque<Taken>>,
    /// Which copies counted as none, with each request.
    dead: Mutex<Vec<Option<Position>>>,
    granted: Mutex<Option<Position>>,
    fills: Mutex<VecDeque<Option<Position>>>,
    /// Fills are answered once they get a permit.
    gate: Option<Semaphore>,
    filled: Mutex<Vec<(i64, Position, Position)>>,
}

#[async_trait]
impl SharedLeases for Vault {
    async fn take(
        &self,
        _cx: &OperationContext,
        _key: &Key,
        _lease: (i64, Duration),
        dead: Option<Position>,
    ) -> Result<Taken, LayerError> {
        self.dead.lock().unwrap().push(dead);
        self.takes.lock().unwrap().pop_front().ok_or_else(away)
    }

    async fn granted(&self, _cx: &OperationContext, _key: &[u8], token: i64) -> Result<Option<Position>, LayerError> {
        Ok(self.granted.lock().unwrap().filter(|_| token == 7))
    }

    async fn fill(
        &self,
        _cx: &OperationContext,
        (token, granted): (i64, Position),
        entry: &Entry,
    ) -> Result<Option<Position>, LayerError> {
        self.filled.lock().unwrap().push((token, granted, entry.position()));
        if let Some(gate) = &self.gate {
            gate.acquire().await.expect("never closed").forget();
        }
        self.fills.lock().unwrap().pop_front().ok_or_else(away)
    }
}

/// A node with a Redis, a disk, and this vault.
struct Fleet {
    vault: Arc<Vault>,
    redis: Arc<Scripted>,
    disk: Arc<Scripted>,
    node: Fixture,
}

impl Fleet {
    async fn with(takes: Vec<Taken>, fills: Vec<Option<Position>>, is_gated: bool) -> Self {
        let redis = Scripted::gated_as(LayerId::Redis, Semaphore::MAX_PERMITS, Semaphore::MAX_PERMITS);
        Self::over(redis, takes, fills, is_gated).await
    }

    async fn over(redis: Arc<Scripted>, takes: Vec<Taken>, fills: Vec<Option<Position>>, is_gated: bool) -> Self {
        let clock = Clock::manual(START);
        let vault = Arc::new(Vault {
            takes: Mutex::new(takes.into()),
            fills: Mutex::new(fills.into()),
            gate: is_gated.then(|| Semaphore::new(0)),
            ..Vault::default()
        });
        let disk = Scripted::open();
        let cold = vec![Arc::clone(&redis) as Arc<dyn Layer>, Arc::clone(&disk) as Arc<dyn Layer>];
        let leases = Some(Arc::clone(&vault) as Arc<dyn SharedLeases>);
        let parts = Parts { leases, ..parts(&clock, Policy::S3Fifo, cold) };
        let coordinator = Coordinator::open(parts, clock.clone()).await;
        Self { vault, redis, node: Fixture { coordinator, layer: Arc::clone(&disk), clock }, disk }
    }

    async fn lease(&self) -> Leased {
        self.node.coordinator.get_or_lease(&self.node.cx(), &key("k"), LIFE).await.unwrap()
    }

    async fn granted(&self) -> Token {
        match self.lease().await {
            Leased::Granted(token, LIFE) => token,
            other => panic!("no lease, but {other:?}"),
        }
    }

    async fn fill(&self, token: Token, value: &str, tags: &[&str]) -> bool {
        let tags = tag_set(tags);
        let meta = self.node.coordinator.meta(&self.node.cx(), None, None, tags.tags());
        let entry = Entry::new(b"k", value.as_bytes(), meta);
        self.node.coordinator.fill(&self.node.cx(), token, entry).await.unwrap()
    }
}

#[tokio::test]
async fn a_lease_of_another_node_is_waited_for_and_asked_for_anew() {
    let left = Duration::from_secs(3);
    let f = Fleet::with(vec![Taken::Held(left), Taken::Granted(at(5))], vec![Some(at(6))], false).await;
    assert!(matches!(f.lease().await, Leased::Wait(None, waits) if waits == left));
    let token = f.granted().await;
    assert!(matches!(f.lease().await, Leased::Wait(None, LIFE)), "this node knows without asking");
    assert!(f.fill(token, "v", &["t"]).await);
    assert_eq!(*f.vault.filled.lock().unwrap(), [(token.0, at(5), at(5))], "the value is as fresh as its lease");
    assert_eq!(f.node.get("k").await.as_deref(), Some("v"));
    f.node.flushed().await;
    assert_eq!((f.disk.value("k").as_deref(), f.redis.value("k")), (Some("v"), None), "redis had it first");
    let counts = f.node.coordinator.leases();
    assert_eq!((counts.granted, counts.alone, counts.waits, counts.filled), (1, 0, 2, 1));
}

#[tokio::test]
async fn a_copy_that_came_meanwhile_is_served_and_one_that_counts_as_none_is_no_reason_to_wait() {
    let expired = entry_until("k", "old", UnixMillis(START.0 - 1));
    let negative = Entry::new(b"k", b"", EntryMeta { negative: true, ..EntryMeta::default() });
    let found = |entry| Taken::Found(Some(entry), at(1));
    let takes =
        vec![found(entry("k", "v")), found(negative), found(expired), Taken::Found(None, at(2)), Taken::Granted(at(3))];
    let f = Fleet::with(takes, Vec::new(), false).await;
    assert!(matches!(f.lease().await, Leased::Value(entry) if text(&entry) == "v"));
    assert!(matches!(f.lease().await, Leased::Negative));
    f.granted().await;
    assert_eq!(*f.vault.dead.lock().unwrap(), [None, None, None, Some(at(1)), Some(at(2))]);
}

#[tokio::test]
async fn a_fill_that_redis_refuses_is_not_stored() {
    let f = Fleet::with(vec![Taken::Granted(at(5))], vec![None], false).await;
    let token = f.granted().await;
    assert!(!f.fill(token, "older", &[]).await);
    assert_eq!((f.node.get("k").await, f.node.coordinator.leases().refused), (None, 1));
}

#[tokio::test]
async fn without_redis_a_lease_is_the_nodes_own_and_what_it_brings_stays_there() {
    let f = Fleet::with(Vec::new(), Vec::new(), false).await;
    let token = f.granted().await;
    assert!(f.fill(token, "v", &[]).await);
    assert!(f.vault.filled.lock().unwrap().is_empty(), "nobody else knows of the lease");
    f.node.flushed().await;
    assert_eq!((f.disk.value("k").as_deref(), f.redis.value("k")), (Some("v"), None));
    assert_eq!(f.node.coordinator.leases().alone, 1);
    // What the log tells afterwards is newer than what was fetched before.
    let f = Fleet::with(vec![Taken::Granted(at(5))], Vec::new(), false).await;
    let token = f.granted().await;
    assert!(f.fill(token, "v", &[]).await, "redis went away between lease and fill");
    assert_eq!(f.node.get("k").await.as_deref(), Some("v"));
    assert!(f.node.coordinator.write_queue().turn(b"k").supersede(START, b"k", at(6)));
}

#[tokio::test]
async fn a_fill_gives_way_to_what_was_written_while_it_was_under_way() {
    for change in ["set", "remove", "heard"] {
        let f = Fleet::with(vec![Taken::Granted(at(5))], vec![Some(at(6))], true).await;
        let token = f.granted().await;
        let changing = async {
            eventually("the fill is under way", || !f.vault.filled.lock().unwrap().is_empty()).await;
            match change {
                "set" => f.node.set("k", "newer").await,
                "remove" => drop(f.node.remove("k").await),
                _ => drop(f.node.coordinator.write_queue().turn(b"k").supersede(START, b"k", at(7))),
            }
            f.vault.gate.as_ref().unwrap().add_permits(1);
        };
        let (filled, ()) = tokio::join!(f.fill(token, "older", &[]), changing);
        assert!(filled, "{change}: redis has taken it");
        assert_ne!(f.node.get("k").await.as_deref(), Some("older"), "{change}");
        f.node.flushed().await;
        assert_ne!(f.disk.value("k").as_deref(), Some("older"), "{change}");
    }
}

#[tokio::test]
async fn a_value_may_be_brought_to_another_node_than_the_one_that_sent_for_it() {
    let redis = Scripted::gated_as(LayerId::Redis, Semaphore::MAX_PERMITS, 0);
    let f = Fleet::over(Arc::clone(&redis), Vec::new(), vec![Some(at(6)), Some(at(8))], false).await;
    *f.vault.granted.lock().unwrap() = Some(at(5));
    assert!(!f.fill(Token(8), "guessed", &[]).await);
    f.node.set("k", "newer").await;
    assert!(!f.fill(Token(7), "older", &[]).await, "redis does not know of the newer value yet");
    redis.write_gate.add_permits(1);
    f.node.flushed().await;
    assert!(f.fill(Token(7), "v", &[]).await);
    assert_eq!(f.node.get("k").await.as_deref(), Some("v"));
}

mod cold;
mod counted;
mod explained;
mod flights;
mod heard;
mod lease;
mod model;
mod now;
mod orders;
mod remove;
mod settings;
mod shared_lease;
mod stale;
mod stops;
mod tags;
mod told;
mod trails;
mod update;
mod upkeep;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::*;
use crate::{
    backplane::Backplane,
    clock::UnixMillis,
    context::Outcome,
    entry::{EntryMeta, Position, TagSet},
    layer::{
        Component, Layer, LayerId, Matching,
        memory::{MemoryOptions, Policy},
    },
    tag_index::{TagIndex, TagOptions},
    testing::{START, Scripted, cx, cx_within, entry, entry_until, eventually, key, let_others_go_on, text},
    write_queue::{Overflow, QueueOptions, SLOT_OVERHEAD_BYTES},
};

struct Fixture {
    coordinator: Arc<Coordinator>,
    layer: Arc<Scripted>,
    clock: Clock,
}

const QUEUE: QueueOptions = QueueOptions { capacity_bytes: 1024 * 1024, items_max: 10_000, overflow: Overflow::Block };

const SOFT_TIMEOUT: Duration = Duration::from_millis(20);

const REFRESH_WINDOW: Duration = Duration::from_secs(2);

impl Fixture {
    async fn over(layer: Arc<Scripted>, queue: QueueOptions) -> Self {
        let clock = Clock::manual(START);
        let cold: Vec<Arc<dyn Layer>> = vec![Arc::clone(&layer) as Arc<dyn Layer>];
        let parts = Parts { queue, ..parts(&clock, Policy::S3Fifo, cold) };
        Self { coordinator: Coordinator::open(parts, clock.clone()).await, layer, clock }
    }

    fn cx(&self) -> OperationContext {
        cx(&self.clock)
    }

    async fn get(&self, name: &str) -> Option<String> {
        self.coordinator.get(&self.cx(), &key(name), Wants::Value).await.entry.as_ref().map(text)
    }

    async fn set(&self, name: &str, value: &str) {
        self.coordinator.set(&self.cx(), entry(name, value)).await.unwrap();
    }

    async fn remove(&self, name: &str) -> u64 {
        self.coordinator.remove_many(&self.cx(), &[key(name)]).await.unwrap().live
    }

    async fn flushed(&self) {
        eventually("the queue is empty", || self.coordinator.write_queue().items() == 0).await;
    }

    /// Makes memory forget, as an eviction would.
    fn evict(&self, name: &str) {
        self.coordinator.memory().remove(name.as_bytes());
    }
}

fn parts(clock: &Clock, policy: Policy, cold: Vec<Arc<dyn Layer>>) -> Parts {
    Parts {
        memory: memory(clock, policy),
        queue: QUEUE,
        cold,
        tags: Arc::new(TagIndex::open(
            TagOptions { removals_max: 1000, life_max: Duration::from_secs(86_400) },
            clock.clone(),
        )),
        freshness: FreshnessOptions { soft_timeout: SOFT_TIMEOUT, refresh_window: REFRESH_WINDOW },
        write_mode: WriteMode::Behind,
        journal: None,
        log: None,
        leases: None,
        followers: None,
        outbox: Outbox::default(),
    }
}

fn memory(clock: &Clock, policy: Policy) -> Memory {
    let options = MemoryOptions { capacity_bytes: 1 << 20, policy, max_ttl: Duration::from_secs(3600) };
    Memory::open(options, clock.clone())
}

fn increment(current: Option<&Entry>) -> (Update, u64) {
    let next = current.map_or(0, |entry| text(entry).parse::<u64>().unwrap()) + 1;
    let meta = current.map(Entry::meta).unwrap_or_default();
    (Update::Set(Entry::new(b"n", next.to_string().as_bytes(), meta)), next)
}

// === read ===

#[tokio::test]
async fn written_value_is_read_from_memory_then_queue_then_disk() {
    let f = Fixture::over(Scripted::gated(100, 0), QUEUE).await;
    f.set("k", "v").await;
    assert!(matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Hit(_)));
    f.evict("k");
    assert!(matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Hit(_)), "pending in the queue");
    f.layer.write_gate.add_permits(1);
    f.flushed().await;
    assert!(matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Cold));
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
    assert!(matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Hit(_)), "promoted");
}

#[tokio::test]
async fn promotion_keeps_the_absolute_expiry() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let expires_at = START.after(Duration::from_secs(60));
    f.layer.put(entry_until("k", "v", expires_at));
    f.clock.advance(Duration::from_secs(50));
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
    let Peek::Hit(promoted) = f.coordinator.peek(&f.cx(), b"k") else { panic!("not promoted") };
    assert_eq!(promoted.expires_at(), Some(expires_at));
    f.clock.advance(Duration::from_secs(10));
    assert_eq!(f.get("k").await, None);
}

#[tokio::test]
async fn expired_value_is_absent_in_every_layer() {
    let f = Fixture::over(Scripted::gated(100, 0), QUEUE).await;
    f.coordinator.set(&f.cx(), entry_until("k", "v", START.after(Duration::from_secs(1)))).await.unwrap();
    f.clock.advance(Duration::from_millis(999));
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
    f.clock.advance(Duration::from_millis(1));
    assert_eq!(f.get("k").await, None, "memory and queue");
    f.layer.put(entry_until("k", "older", START.after(Duration::from_secs(9))));
    assert_eq!(f.get("k").await, None, "what is below a pending write is older");
}

#[tokio::test]
async fn failing_layer_is_a_miss() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.layer.put(entry("k", "v"));
    f.layer.failing.store(true, Ordering::SeqCst);
    assert_eq!(f.get("k").await, None);
    f.layer.failing.store(false, Ordering::SeqCst);
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn read_ends_at_the_deadline() {
    let f = Fixture::over(Scripted::gated(0, 0), QUEUE).await;
    f.layer.put(entry("k", "v"));
    let cx = cx_within(&f.clock, Duration::from_millis(50));
    let started = tokio::time::Instant::now();
    assert!(f.coordinator.get(&cx, &key("k"), Wants::Value).await.entry.is_none());
    assert!(f.coordinator.get_many(&cx, &[key("k")], Wants::Value).await.0[0].is_none());
    assert!(started.elapsed() < Duration::from_millis(200));
}

#[tokio::test]
async fn many_keys_are_answered_in_their_order_from_their_layers() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.layer.put(entry("disk", "1"));
    f.set("memory", "2").await;
    let keys = ["none", "disk", "memory", "disk"].map(key);
    let (found, trail) = f.coordinator.get_many(&f.cx(), &keys, Wants::Value).await;
    let step = trail.steps().next().unwrap();
    assert_eq!((step.part, step.keys, step.hits), ("disk", 2, 1));
    let values: Vec<Option<String>> = found.iter().map(|found| found.as_ref().map(text)).collect();
    assert_eq!(values, [None, Some("1".to_owned()), Some("2".to_owned()), Some("1".to_owned())]);
}

// === slow reads against writes ===

/// Starts a read of `k` that has found `old` below and is held there, runs `meanwhile`, and lets the read end.
async fn while_a_slow_read_is_under_way(f: Arc<Fixture>, meanwhile: impl AsyncFnOnce(&Fixture)) {
    f.layer.put(entry("k", "old"));
    let reader = Arc::clone(&f);
    let mut read = JoinSet::new();
    read.spawn(async move { reader.get("k").await });
    eventually("the read has begun", || f.layer.reads.load(Ordering::SeqCst) == 1).await;
    meanwhile(&f).await;
    f.layer.read_gate.add_permits(1000);
    let seen = read.join_next().await.unwrap().unwrap();
    assert_eq!(seen.as_deref(), Some("old"), "it began before the write, so it may see the old value");
}

#[tokio::test]
async fn slow_read_does_not_bring_a_removed_value_back() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    while_a_slow_read_is_under_way(Arc::clone(&f), async |f| {
        f.set("k", "new").await;
        assert_eq!(f.remove("k").await, 1);
    })
    .await;
    assert_eq!(f.get("k").await, None);
    assert_eq!(f.coordinator.promotions_refused(), 1);
}

#[tokio::test]
async fn slow_read_does_not_bring_an_overwritten_value_back() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    while_a_slow_read_is_under_way(Arc::clone(&f), async |f| f.set("k", "new").await).await;
    assert_eq!(f.get("k").await.as_deref(), Some("new"));
    f.flushed().await;
    f.evict("k");
    assert_eq!(f.get("k").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn slow_read_does_not_bring_a_cleared_value_back() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    while_a_slow_read_is_under_way(Arc::clone(&f), async |f| assert!(f.coordinator.clear(&f.cx()).await.is_ok())).await;
    assert_eq!(f.get("k").await, None);
}

#[tokio::test]
async fn reader_after_a_write_does_not_join_the_read_from_before() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    while_a_slow_read_is_under_way(Arc::clone(&f), async |f| {
        f.set("k", "new").await;
        f.flushed().await;
        f.evict("k");
        // The first goes to the read that waits already, the second to the later one.
        f.layer.read_gate.add_permits(2);
        assert_eq!(f.get("k").await.as_deref(), Some("new"));
    })
    .await;
}

// === remove and clear ===

#[tokio::test]
async fn removal_is_acknowledged_only_once_the_layer_has_it() {
    let f = Arc::new(Fixture::over(Scripted::gated(1000, 0), QUEUE).await);
    f.layer.put(entry("k", "v"));
    let mut removal = JoinSet::new();
    let remover = Arc::clone(&f);
    removal.spawn(async move { remover.remove("k").await });
    eventually("the removal is queued", || f.coordinator.write_queue().items() == 1).await;
    assert_eq!(f.get("k").await, None, "gone at once");
    assert!(removal.try_join_next().is_none(), "but not acknowledged");
    assert_eq!(f.layer.value("k").as_deref(), Some("v"));
    f.layer.write_gate.add_permits(1);
    assert_eq!(removal.join_next().await.unwrap().unwrap(), 1);
    assert_eq!(f.layer.value("k"), None);
}

#[tokio::test(start_paused = true)]
async fn removal_that_the_layer_does_not_confirm_is_an_error() {
    let f = Fixture::over(Scripted::gated(1000, 0), QUEUE).await;
    f.layer.put(entry("k", "v"));
    let outcome = f.coordinator.remove_many(&f.cx(), &[key("k")]).await;
    assert_eq!(outcome, Err(WriteError::Unconfirmed));
    assert_eq!(f.get("k").await, None);
}

#[tokio::test]
async fn removal_counts_live_entries_of_every_layer_once() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.layer.put(entry("disk", "1"));
    f.layer.put(entry_until("dead", "1", START));
    f.set("memory", "2").await;
    let keys = ["disk", "memory", "none", "dead", "memory"].map(key);
    assert_eq!(f.coordinator.remove_many(&f.cx(), &keys).await.unwrap().live, 2);
    assert_eq!(f.layer.value("dead"), None, "an expired copy is removed too");
    assert_eq!(f.coordinator.remove_many(&f.cx(), &keys).await.unwrap().live, 0);
}

#[tokio::test]
async fn concurrent_removals_of_one_key_count_it_once() {
    let f = Arc::new(Fixture::over(Scripted::open(), QUEUE).await);
    for round in 0..200 {
        f.layer.put(entry("k", "v"));
        let mut removals = JoinSet::new();
        for _ in 0..4 {
            let f = Arc::clone(&f);
            removals.spawn(async move { f.remove("k").await });
        }
        let removed: u64 = removals.join_all().await.into_iter().sum();
        assert_eq!(removed, 1, "round {round}");
    }
}

#[tokio::test]
async fn clear_forgets_every_layer_and_what_is_queued() {
    let f = Arc::new(Fixture::over(Scripted::gated(1000, 0), QUEUE).await);
    f.layer.put(entry("disk", "1"));
    f.set("queued", "2").await;
    let clearer = Arc::clone(&f);
    let mut clear = JoinSet::new();
    clear.spawn(async move { clearer.coordinator.clear(&clearer.cx()).await });
    eventually("the clear is marked", || f.coordinator.memory().entries() == 0).await;
    assert_eq!((f.get("disk").await, f.get("queued").await), (None, None), "gone before the layer is cleared");
    f.set("after", "3").await;
    f.layer.write_gate.add_permits(1000);
    clear.join_next().await.unwrap().unwrap().unwrap();
    f.flushed().await;
    assert_eq!((f.get("disk").await, f.get("queued").await), (None, None));
    f.evict("after");
    assert_eq!(f.get("after").await.as_deref(), Some("3"), "written after the clear");
}

// === full queue ===

fn tight() -> QueueOptions {
    QueueOptions { capacity_bytes: 2 * (SLOT_OVERHEAD_BYTES + 3), items_max: 2, overflow: Overflow::Block }
}

#[tokio::test(start_paused = true)]
async fn full_queue_gives_the_entry_back_and_then_an_error() {
    let f = Fixture::over(Scripted::gated(1000, 0), tight()).await;
    f.set("k1", "a").await;
    f.set("k2", "a").await;
    let refused = f.coordinator.try_set(&f.cx(), entry("k3", "a")).unwrap_err();
    assert_eq!(refused.key(), b"k3");
    assert_eq!(f.coordinator.set(&f.cx(), refused).await, Err(WriteError::QueueFull));
    assert_eq!(f.get("k3").await, None, "a refused write leaves nothing behind");
}

#[tokio::test]
async fn write_waits_for_room() {
    let f = Fixture::over(Scripted::gated(1000, 0), tight()).await;
    f.set("k1", "a").await;
    f.set("k2", "a").await;
    let cx = f.cx();
    let (stored, ()) =
        tokio::join!(f.coordinator.set(&cx, entry("k3", "a")), async { f.layer.write_gate.add_permits(9) });
    stored.unwrap();
    assert_eq!(f.get("k3").await.as_deref(), Some("a"));
}

fn rejecting() -> QueueOptions {
    QueueOptions { overflow: Overflow::Reject, ..tight() }
}

#[tokio::test(start_paused = true)]
async fn full_queue_that_rejects_answers_at_once_changes_nothing_and_takes_the_value_once_there_is_room() {
    let f = Fixture::over(Scripted::gated(1000, 0), rejecting()).await;
    f.layer.put(entry("k3", "older"));
    assert_eq!(f.get("k3").await.as_deref(), Some("older"));
    f.set("k1", "a").await;
    f.set("k2", "a").await;
    let started = tokio::time::Instant::now();
    assert_eq!(f.coordinator.set(&f.cx(), entry("k3", "a")).await, Err(WriteError::QueueFull));
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(f.get("k3").await.as_deref(), Some("older"), "in memory");
    f.evict("k3");
    assert_eq!(f.get("k3").await.as_deref(), Some("older"), "and below");
    f.layer.write_gate.add_permits(1000);
    f.flushed().await;
    f.set("k3", "a").await;
    f.flushed().await;
    f.evict("k3");
    assert_eq!(f.get("k3").await.as_deref(), Some("a"));
}

#[tokio::test]
async fn removal_waits_for_room_also_where_values_are_rejected() {
    let f = Fixture::over(Scripted::gated(1000, 0), rejecting()).await;
    f.layer.put(entry("k3", "older"));
    f.set("k1", "a").await;
    f.set("k2", "a").await;
    let (removed, ()) = tokio::join!(f.remove("k3"), async { f.layer.write_gate.add_permits(9) });
    assert_eq!((removed, f.layer.value("k3")), (1, None));
    let refused = f.coordinator.write_queue().stats().extras.into_iter().find(|(name, _)| *name == "refusedFull");
    assert!(refused.is_some_and(|(_, count)| count > 0), "it found no room at first: {refused:?}");
}

#[tokio::test]
async fn entry_larger_than_the_queue_is_refused() {
    let f = Fixture::over(Scripted::open(), tight()).await;
    let outcome = f.coordinator.set(&f.cx(), entry("k", &"v".repeat(1000))).await;
    assert_eq!(outcome, Err(WriteError::TooLarge(1001)));
}

// === shutdown ===

#[tokio::test]
async fn shutdown_writes_what_is_queued() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    for number in 0..3000 {
        f.set(&format!("k{number}"), "v").await;
    }
    f.coordinator.shutdown(f.clock.monotonic() + Duration::from_secs(10)).await;
    assert_eq!(f.layer.stats().entries, Some(3000));
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_up_at_its_deadline_and_counts_what_is_lost() {
    let f = Fixture::over(Scripted::gated(0, 0), QUEUE).await;
    f.set("k", "v").await;
    f.coordinator.shutdown(f.clock.monotonic() + Duration::from_secs(5)).await;
    let lost = f.coordinator.write_queue().stats().extras.into_iter().find(|(name, _)| *name == "lostAtShutdown");
    assert_eq!(lost, Some(("lostAtShutdown", 1)));
    assert_eq!(f.coordinator.write_queue().lanes()[0].lost, 1);
}

// === without a cold layer ===

#[tokio::test]
async fn node_without_a_cold_layer_keeps_nothing_in_the_queue() {
    let clock = Clock::manual(START);
    let coordinator = Coordinator::open(parts(&clock, Policy::TinyLfu, Vec::new()), clock.clone()).await;
    let cx = cx(&clock);
    coordinator.try_set(&cx, entry("k", "v")).unwrap();
    assert_eq!(coordinator.write_queue().items(), 0);
    assert!(matches!(coordinator.peek(&cx, b"k"), Peek::Hit(_)));
    let removed = coordinator.remove_many(&cx, &[key("k"), key("other")]).await.unwrap();
    assert_eq!(removed, Removed { live: 1, confirmed: Confirmed::Everywhere });
    assert!(matches!(coordinator.peek(&cx, b"k"), Peek::Absent));
    coordinator.try_set(&cx, entry("k", "v")).unwrap();
    coordinator.clear(&cx).await.unwrap();
    assert!(matches!(coordinator.peek(&cx, b"k"), Peek::Absent));
}

// === races ===

/// Promotion against removal and overwrite, from real threads: whatever interleaving, the last write is what is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn promotion_never_beats_a_later_write() {
    const ROUNDS: u64 = 20_000;
    let f = Arc::new(Fixture::over(Scripted::open(), QUEUE).await);
    let reader_done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..2 {
        let (f, done) = (Arc::clone(&f), Arc::clone(&reader_done));
        readers.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                f.get("k").await;
                f.evict("k");
                tokio::task::yield_now().await;
            }
        });
    }
    for round in 0..ROUNDS {
        let value = round.to_string();
        f.set("k", &value).await;
        assert_eq!(f.get("k").await.as_deref(), Some(&*value), "round {round}");
        if round % 4 == 0 {
            f.remove("k").await;
            assert_eq!(f.get("k").await, None, "round {round}");
        }
    }
    reader_done.store(true, Ordering::Relaxed);
    readers.join_all().await;
}

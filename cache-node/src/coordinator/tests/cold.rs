//! Two cold layers: what moves between them, and what waits for them.

use super::{tags::tag_set, *};

struct Pair {
    coordinator: Arc<Coordinator>,
    redis: Arc<Scripted>,
    disk: Arc<Scripted>,
    clock: Clock,
}

impl Pair {
    async fn open(write_mode: WriteMode) -> Self {
        let clock = Clock::manual(START);
        let redis = Scripted::gated_as(LayerId::Redis, 1000, 1000);
        let disk = Scripted::gated_as(LayerId::Disk, 1000, 1000);
        let cold: Vec<Arc<dyn Layer>> = vec![Arc::clone(&redis) as Arc<dyn Layer>, Arc::clone(&disk) as Arc<dyn Layer>];
        let parts = Parts { write_mode, ..parts(&clock, Policy::S3Fifo, cold) };
        Self { coordinator: Coordinator::open(parts, clock.clone()).await, redis, disk, clock }
    }

    async fn get(&self, name: &str) -> Option<String> {
        self.coordinator.get(&cx(&self.clock), &key(name), Wants::Value).await.entry.as_ref().map(text)
    }
}

#[tokio::test]
async fn hit_is_promoted_into_every_layer_that_missed_it_with_its_own_expiry() {
    let f = Pair::open(WriteMode::Behind).await;
    let expires_at = START.after(Duration::from_secs(60));
    f.disk.put(entry_until("k", "v", expires_at));
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
    eventually("L2 has it", || f.redis.value("k").is_some()).await;
    f.clock.advance(Duration::from_secs(60));
    f.coordinator.memory().remove(b"k");
    assert_eq!(f.get("k").await, None, "no layer gave it a new life");
}

#[tokio::test]
async fn value_written_meanwhile_is_not_replaced_by_a_promotion() {
    let f = Pair::open(WriteMode::Behind).await;
    f.disk.put(entry("k", "old"));
    f.redis.put(entry("other", "x"));
    assert_eq!(f.get("k").await.as_deref(), Some("old"));
    f.coordinator.set(&cx(&f.clock), entry("k", "new")).await.unwrap();
    eventually("both have it", || {
        f.redis.value("k").as_deref() == Some("new") && f.disk.value("k").as_deref() == Some("new")
    })
    .await;
}

#[tokio::test]
async fn dead_layer_is_a_miss_and_the_next_one_answers() {
    let f = Pair::open(WriteMode::Behind).await;
    f.disk.put(entry("k", "v"));
    f.redis.failing.store(true, Ordering::SeqCst);
    let reading = f.coordinator.get(&cx(&f.clock), &key("k"), Wants::Value).await;
    assert_eq!(reading.entry.as_ref().map(text).as_deref(), Some("v"));
    let outcomes: Vec<Outcome> = reading.trail.steps().map(|step| step.outcome).collect();
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Hit]);
}

#[tokio::test]
async fn write_through_is_acknowledged_once_the_layers_have_it() {
    let f = Pair::open(WriteMode::Through).await;
    assert!(f.coordinator.try_set(&cx(&f.clock), entry("k", "v")).is_err(), "it takes waiting");
    f.coordinator.set(&cx(&f.clock), entry("k", "v")).await.unwrap();
    assert_eq!(f.redis.value("k").as_deref(), Some("v"));
    assert_eq!(f.coordinator.update(&cx(&f.clock), &key("n"), increment).await, Ok(1));
    assert_eq!(f.redis.value("n").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_removal_that_redis_can_not_be_told_is_queued_or_refused_and_holds_either_way() {
    for outbox in [Outbox::Queue, Outbox::Refuse] {
        let clock = Clock::manual(START);
        let [redis, disk] = [LayerId::Redis, LayerId::Disk].map(|id| Scripted::gated_as(id, 1000, 1000));
        let cold = vec![Arc::clone(&redis) as Arc<dyn Layer>, disk as Arc<dyn Layer>];
        let parts = Parts { outbox, ..parts(&clock, Policy::S3Fifo, cold) };
        let node = Coordinator::open(parts, clock.clone()).await;
        let cx = || cx(&clock);
        for name in ["k", "l", "m"] {
            let tags = tag_set(&["t"]);
            let meta = node.meta(&cx(), None, None, tags.tags());
            node.set(&cx(), Entry::new(name.as_bytes(), b"v", meta)).await.unwrap();
        }
        assert_eq!(node.remove_many(&cx(), &[key("k")]).await.unwrap().confirmed, Confirmed::Everywhere);
        redis.failing.store(true, Ordering::SeqCst);
        let expire = |_: Option<&Entry>| (Update::Remove, Confirmed::Queued);
        let outcomes = [
            node.remove_many(&cx(), &[key("l")]).await.map(|removed| removed.confirmed),
            node.remove_tagged(&cx(), tag_set(&["t"]), Matching::Any).await,
            node.clear(&cx()).await,
            node.update(&cx(), &key("n"), expire).await,
        ];
        for outcome in outcomes {
            match outbox {
                Outbox::Queue => assert_eq!(outcome, Ok(Confirmed::Queued)),
                Outbox::Refuse => assert_eq!(outcome, Err(WriteError::Untold("redis refused: scripted".to_owned()))),
            }
        }
        let names = ["k", "l", "m"].map(key);
        assert_eq!(node.get_many(&cx(), &names, Wants::Value).await.0.iter().flatten().count(), 0);
    }
}

#[tokio::test]
async fn who_joins_a_batch_that_waits_for_the_next_layer_gets_nothing_that_a_tag_has_removed_since() {
    let f = Arc::new(Pair::open(WriteMode::Behind).await);
    f.disk.read_gate.forget_permits(usize::MAX);
    let (red, position) = (tag_set(&["red"]), f.coordinator.position(&cx(&f.clock)));
    f.redis.put(Entry::new(b"near", b"1", EntryMeta { tags: red.tags(), position, ..EntryMeta::default() }));
    f.disk.put(entry("far", "2"));
    let batch = Arc::clone(&f);
    let mut first = JoinSet::new();
    first.spawn(async move {
        let keys = ["near", "far"].map(key);
        batch.coordinator.get_many(&cx(&batch.clock), &keys, Wants::Value).await.0.iter().flatten().count()
    });
    eventually("one is found, the other being read", || f.disk.reads.load(Ordering::SeqCst) == 1).await;
    f.coordinator.remove_tagged(&cx(&f.clock), red, Matching::Any).await.unwrap();
    let joining = Arc::clone(&f);
    let mut later = JoinSet::new();
    later.spawn(async move { joining.get("near").await });
    let_others_go_on().await;
    assert!(later.try_join_next().is_none() && f.redis.reads.load(Ordering::SeqCst) == 2, "it waits for the batch");
    f.disk.read_gate.add_permits(1000);
    assert_eq!(later.join_next().await.unwrap().unwrap(), None);
    assert_eq!(first.join_next().await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn explanation_names_what_every_layer_holds_and_changes_nothing() {
    let f = Pair::open(WriteMode::Behind).await;
    f.disk.put(entry_until("k", "v", START.after(Duration::from_secs(60))));
    let explanation = f.coordinator.explain(&cx(&f.clock), &key("k")).await;
    let seen: Vec<(&str, Outcome)> = explanation.seen.iter().map(|seen| (seen.part, seen.outcome)).collect();
    assert_eq!(
        seen,
        [("memory", Outcome::Miss), ("writeQueue", Outcome::Miss), ("redis", Outcome::Miss), ("disk", Outcome::Hit)]
    );
    assert!(matches!(f.coordinator.peek(&cx(&f.clock), b"k"), Peek::Cold), "not promoted");
}

#[tokio::test]
async fn shutdown_writes_also_what_waits_for_a_clear() {
    let f = Pair::open(WriteMode::Behind).await;
    f.redis.failing.store(true, Ordering::SeqCst);
    f.coordinator.clear(&cx(&f.clock)).await.unwrap();
    // Enough for both flushers of Redis.
    for number in 0..100 {
        f.coordinator.set(&cx(&f.clock), entry(&format!("k{number}"), "v")).await.unwrap();
    }
    f.redis.failing.store(false, Ordering::SeqCst);
    f.coordinator.shutdown(f.clock.monotonic() + Duration::from_secs(60)).await;
    assert_eq!(f.redis.stats().entries, Some(100));
}

//! Stale values and negative entries.

use super::{tags::tag_set, *};

pub(super) fn stale_after(name: &str, value: &str, life: Duration, stale: Duration) -> Entry {
    let expires_at = START.after(life);
    let meta =
        EntryMeta { expires_at: Some(expires_at), stale_until: Some(expires_at.after(stale)), ..EntryMeta::default() };
    Entry::new(name.as_bytes(), value.as_bytes(), meta)
}

#[tokio::test]
async fn stale_value_is_served_to_all_but_one_reader_of_each_window_until_its_end() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let entry = stale_after("k", "v", Duration::from_secs(10), Duration::from_secs(60));
    f.coordinator.try_set(&f.cx(), entry).unwrap();
    f.flushed().await;
    f.clock.advance(Duration::from_secs(10));
    let facts = f.coordinator.get(&f.cx(), &key("k"), Wants::Facts).await;
    assert!(facts.entry.is_none(), "to ask about it is not to ask for it");
    assert_eq!(f.get("k").await, None, "the one that is to bring a fresh value");
    for _ in 0..3 {
        assert_eq!(f.get("k").await.as_deref(), Some("v"));
    }
    f.clock.advance(REFRESH_WINDOW);
    assert_eq!(f.get("k").await, None, "it never did, so it is another's turn");
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
    assert_eq!(f.coordinator.stale_hits(), 4);
    f.clock.advance(Duration::from_secs(58));
    assert_eq!((f.get("k").await, f.get("k").await), (None, None), "past its stale life");
}

#[tokio::test]
async fn removed_value_is_never_served_stale() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    for by_tag in [false, true] {
        let red = tag_set(&["red"]);
        let stale = stale_after("k", "v", Duration::from_secs(10), Duration::from_secs(60));
        let position = f.coordinator.position(&f.cx());
        let meta = EntryMeta { tags: red.tags(), position, ..stale.meta() };
        f.coordinator.try_set(&f.cx(), Entry::new(b"k", b"v", meta)).unwrap();
        if by_tag {
            f.coordinator.remove_tagged(&f.cx(), tag_set(&["red"]), Matching::Any).await.unwrap();
        } else {
            f.remove("k").await;
        }
    }
    f.clock.advance(Duration::from_secs(10));
    assert_eq!((f.get("k").await, f.get("k").await, f.get("k").await), (None, None, None));
}

#[tokio::test(start_paused = true)]
async fn slow_layer_is_not_waited_for_longer_than_the_soft_timeout_when_there_is_a_stale_value() {
    let f = Fixture::over(Scripted::gated(0, 1000), QUEUE).await;
    let entry = stale_after("k", "old", Duration::from_secs(10), Duration::from_secs(60));
    f.coordinator.try_set(&f.cx(), entry).unwrap();
    f.flushed().await;
    f.layer.put(self::entry("k", "fresh"));
    f.clock.advance(Duration::from_secs(10));
    let started = tokio::time::Instant::now();
    assert_eq!(f.get("k").await.as_deref(), Some("old"));
    assert!(started.elapsed() < 2 * SOFT_TIMEOUT, "{:?}", started.elapsed());
    f.layer.read_gate.add_permits(1);
    eventually("the read went on and brought it", || matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Hit(_))).await;
    assert_eq!(f.get("k").await.as_deref(), Some("fresh"));
}

#[tokio::test(start_paused = true)]
async fn of_many_keys_the_stale_ones_are_served_after_the_soft_timeout_and_the_read_goes_on() {
    let f = Fixture::over(Scripted::gated(0, 1000), QUEUE).await;
    let keys = ["a", "b"].map(key);
    for name in ["a", "b"] {
        let entry = stale_after(name, "old", Duration::from_secs(10), Duration::from_secs(60));
        f.coordinator.try_set(&f.cx(), entry).unwrap();
    }
    f.flushed().await;
    ["a", "b"].iter().for_each(|name| f.layer.put(self::entry(name, "fresh")));
    f.clock.advance(Duration::from_secs(10));
    let started = tokio::time::Instant::now();
    let (found, trail) = f.coordinator.get_many(&f.cx(), &keys, Wants::Value).await;
    assert_eq!(found.iter().flatten().map(text).collect::<Vec<_>>(), ["old", "old"]);
    assert!(started.elapsed() < 2 * SOFT_TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(trail.steps().next().map(|step| step.outcome), Some(Outcome::Late));
    f.layer.read_gate.add_permits(2);
    eventually("the read went on and brought it", || matches!(f.coordinator.peek(&f.cx(), b"b"), Peek::Hit(_))).await;
    let (found, _) = f.coordinator.get_many(&f.cx(), &keys, Wants::Value).await;
    assert_eq!(found.iter().flatten().map(text).collect::<Vec<_>>(), ["fresh", "fresh"]);
    assert_eq!(f.layer.reads.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn who_asks_about_a_stale_value_waits_for_a_fresh_one_as_long_as_there_is_time() {
    let f = Fixture::over(Scripted::gated(0, 1000), QUEUE).await;
    let entry = stale_after("k", "old", Duration::from_secs(10), Duration::from_secs(60));
    f.coordinator.try_set(&f.cx(), entry).unwrap();
    f.flushed().await;
    f.layer.put(self::entry("k", "fresh"));
    f.clock.advance(Duration::from_secs(10));
    let (coordinator, cx) = (Arc::clone(&f.coordinator), f.cx());
    let mut asking = JoinSet::new();
    asking.spawn(async move { coordinator.get(&cx, &key("k"), Wants::Facts).await.entry });
    tokio::time::sleep(2 * SOFT_TIMEOUT).await;
    f.layer.read_gate.add_permits(1);
    assert_eq!(asking.join_next().await.unwrap().unwrap().as_ref().map(text).as_deref(), Some("fresh"));
}

#[tokio::test]
async fn stale_value_is_served_while_the_layer_fails() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let entry = stale_after("k", "v", Duration::from_secs(10), Duration::from_secs(60));
    f.coordinator.try_set(&f.cx(), entry).unwrap();
    f.flushed().await;
    f.clock.advance(Duration::from_secs(10));
    f.layer.failing.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(f.get("k").await.as_deref(), Some("v"), "nobody is sent away for a value that can not be had");
    }
}

#[tokio::test]
async fn stale_value_is_absent_to_updates() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let entry = stale_after("n", "41", Duration::from_secs(10), Duration::from_secs(60));
    f.coordinator.try_set(&f.cx(), entry).unwrap();
    f.flushed().await;
    f.clock.advance(Duration::from_secs(10));
    assert_eq!(f.coordinator.update(&f.cx(), &key("n"), increment).await, Ok(1));
}

#[tokio::test]
async fn negative_entry_is_absent_and_stops_the_search() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let meta =
        EntryMeta { negative: true, expires_at: Some(START.after(Duration::from_secs(5))), ..EntryMeta::default() };
    f.coordinator.try_set(&f.cx(), Entry::new(b"k", b"", meta)).unwrap();
    f.flushed().await;
    let reads = f.layer.reads.load(Ordering::SeqCst);
    assert!(matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Absent));
    assert_eq!(f.layer.reads.load(Ordering::SeqCst), reads);
    f.layer.put(entry("k", "new"));
    f.clock.advance(Duration::from_secs(5));
    assert_eq!(f.get("k").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn negative_entry_is_removed_at_once_and_counts_as_none() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let meta = EntryMeta { negative: true, ..EntryMeta::default() };
    f.coordinator.try_set(&f.cx(), Entry::new(b"k", b"", meta)).unwrap();
    f.flushed().await;
    assert_eq!(f.remove("k").await, 0);
    assert_eq!(f.layer.value("k"), None);
}

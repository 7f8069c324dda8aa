//! What reads count, besides what the layers count themselves.

use super::*;

/// Hits, misses and stale hits of the write queue.
fn counted(f: &Fixture) -> (u64, u64, u64) {
    let stats = f.coordinator.write_queue().stats();
    (stats.hits, stats.misses, stats.stale_hits)
}

/// Whose layer takes no writes.
async fn queueing() -> Fixture {
    Fixture::over(Scripted::gated(1000, 0), QUEUE).await
}

impl Fixture {
    /// As a client reads.
    async fn read(&self, name: &str) -> Option<String> {
        match self.coordinator.get_now(&self.cx(), name.as_bytes()) {
            Peek::Hit(entry) => Some(text(&entry)),
            Peek::Absent => None,
            Peek::Cold => self.get(name).await,
        }
    }
}

#[tokio::test]
async fn a_read_that_the_queue_answers_is_its_hit() {
    let f = queueing().await;
    f.set("k", "v").await;
    assert_eq!((f.read("k").await.as_deref(), counted(&f)), (Some("v"), (0, 0, 0)), "memory answers");
    f.evict("k");
    assert_eq!((f.read("k").await.as_deref(), counted(&f)), (Some("v"), (1, 0, 0)));
    assert_eq!((f.get("k").await.as_deref(), counted(&f)), (Some("v"), (2, 0, 0)));
}

#[tokio::test]
async fn a_read_that_finds_nothing_in_the_queue_is_one_miss_of_it() {
    let f = queueing().await;
    f.layer.put(entry("below", "v"));
    assert_eq!((f.read("below").await.as_deref(), counted(&f)), (Some("v"), (0, 1, 0)));
    let names = ["a", "b", "c"].map(key);
    assert!(f.coordinator.get_many(&f.cx(), &names, Wants::Value).await.0.iter().all(Option::is_none));
    assert_eq!(counted(&f), (0, 4, 0));
    f.set("k", "v").await;
    assert!(f.coordinator.remove_many(&cx_within(&f.clock, Duration::ZERO), &[key("k")]).await.is_err());
    let before = counted(&f).1;
    assert_eq!((f.read("k").await, counted(&f)), (None, (0, before + 1, 0)), "it is being removed");
}

#[tokio::test]
async fn a_stale_value_of_the_queue_is_a_miss_that_may_be_served() {
    let f = queueing().await;
    let entry = stale::stale_after("k", "v", Duration::from_secs(10), Duration::from_secs(60));
    f.coordinator.try_set(&f.cx(), entry).unwrap();
    f.evict("k");
    f.clock.advance(Duration::from_secs(10));
    assert_eq!((f.get("k").await, f.get("k").await.as_deref()), (None, Some("v")));
    assert_eq!(counted(&f), (0, 2, 2));
}

//! The explanation of a key names who answers a read of it.

use super::{stale::stale_after, *};

const LIFE: Duration = Duration::from_secs(10);
const STALE_LIFE: Duration = Duration::from_secs(60);

/// Who answers a read of `k`, and what every part says.
async fn explained(node: &Coordinator, cx: &OperationContext) -> (Option<&'static str>, Vec<Outcome>) {
    let Explanation { answered_by, seen, .. } = node.explain(cx, &key("k")).await;
    (answered_by, seen.iter().map(|seen| seen.outcome).collect())
}

#[tokio::test]
async fn memory_of_a_fenced_node_answers_nothing() {
    let clock = Clock::manual(START);
    let node = Coordinator::open(parts(&clock, Policy::S3Fifo, Vec::new()), clock.clone()).await;
    node.set(&cx(&clock), entry("k", "v")).await.unwrap();
    assert_eq!(explained(&node, &cx(&clock)).await, (Some("memory"), vec![Outcome::Hit]));
    let fenced = OperationContext { trust: Trust::None, ..cx(&clock) };
    assert!(matches!(node.peek(&fenced, b"k"), Peek::Absent));
    assert_eq!(explained(&node, &fenced).await, (None, vec![Outcome::NotHandled]));
}

#[tokio::test]
async fn fresh_value_below_answers_in_the_place_of_a_stale_one() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.coordinator.try_set(&f.cx(), stale_after("k", "old", LIFE, STALE_LIFE)).unwrap();
    f.flushed().await;
    f.clock.advance(LIFE);
    let said = explained(&f.coordinator, &f.cx()).await;
    assert_eq!(said, (Some("memory"), vec![Outcome::Stale, Outcome::Miss, Outcome::Stale]));
    f.layer.put(entry("k", "fresh"));
    let said = explained(&f.coordinator, &f.cx()).await;
    assert_eq!(said, (Some("disk"), vec![Outcome::Stale, Outcome::Miss, Outcome::Hit]));
    assert_eq!(f.get("k").await.as_deref(), Some("fresh"));
}

#[tokio::test]
async fn stale_value_in_memory_outlives_a_copy_below_that_has_ended() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.coordinator.try_set(&f.cx(), stale_after("k", "old", LIFE, STALE_LIFE)).unwrap();
    f.flushed().await;
    f.clock.advance(LIFE);
    f.layer.stopping.store(true, Ordering::SeqCst);
    let said = explained(&f.coordinator, &f.cx()).await;
    assert_eq!(said, (Some("memory"), vec![Outcome::Stale, Outcome::Miss, Outcome::Stopped]));
    assert_eq!((f.get("k").await, f.get("k").await.as_deref()), (None, Some("old")), "all but one reader get it");
}

#[tokio::test]
async fn queued_write_answers_also_once_it_is_past_its_expiry() {
    let f = Fixture::over(Scripted::gated(1000, 0), QUEUE).await;
    f.layer.put(entry("k", "older"));
    f.coordinator.try_set(&f.cx(), stale_after("k", "new", LIFE, STALE_LIFE)).unwrap();
    f.evict("k");
    f.clock.advance(LIFE);
    let said = explained(&f.coordinator, &f.cx()).await;
    assert_eq!(said, (Some("writeQueue"), vec![Outcome::Miss, Outcome::Stale, Outcome::Hit]));
    assert_eq!((f.get("k").await, f.get("k").await.as_deref()), (None, Some("new")));
    f.clock.advance(STALE_LIFE);
    let said = explained(&f.coordinator, &f.cx()).await;
    assert_eq!(said, (Some("writeQueue"), vec![Outcome::Miss, Outcome::Stopped, Outcome::Hit]));
    assert_eq!(f.get("k").await, None, "what is below is older still");
}

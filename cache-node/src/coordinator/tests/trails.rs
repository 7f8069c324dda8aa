//! What an operation tells about where its time went.

use super::*;

impl Fixture {
    async fn removed(&self, cx: &OperationContext, names: &[&str]) -> (Result<Removed, WriteError>, Trail) {
        let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
        let mut trail = Trail::default();
        (self.coordinator.remove_many((cx, &mut trail), &keys).await, trail)
    }
}

/// Part, outcome and keys of each step.
fn steps(trail: &Trail) -> Vec<(&'static str, Outcome, usize)> {
    trail.steps().map(|step| (step.part, step.outcome, step.keys)).collect()
}

/// A layer in each place, the first of which answers no read and takes no write.
async fn behind_a_stuck_redis(write_mode: WriteMode) -> (Arc<Coordinator>, Clock) {
    let clock = Clock::manual(START);
    let (redis, disk) = (Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::gated_as(LayerId::Disk, 1000, 1000));
    let parts = Parts { write_mode, ..parts(&clock, Policy::S3Fifo, vec![redis, disk]) };
    (Coordinator::open(parts, clock.clone()).await, clock)
}

#[tokio::test(start_paused = true)]
async fn read_that_is_not_waited_for_any_longer_names_the_layer_that_is_late() {
    let (coordinator, clock) = behind_a_stuck_redis(WriteMode::Behind).await;
    let cx = cx_within(&clock, Duration::from_millis(50));
    let reading = coordinator.get(&cx, &key("k"), Wants::Value).await;
    assert_eq!(steps(&reading.trail), [("redis", Outcome::Late, 1)]);
    assert!(reading.trail.has_failed(), "nobody knows whether there is a value");
    let (_, trail) = coordinator.get_many(&cx, &["k", "l", "m"].map(key), Wants::Value).await;
    assert_eq!(steps(&trail), [("redis", Outcome::Late, 3)], "of two reads");
    let mut trail = Trail::default();
    let unreadable = coordinator.update((&cx, &mut trail), &key("k"), increment).await;
    assert_eq!(unreadable, Err(WriteError::Unreadable));
    assert_eq!(steps(&trail), [("redis", Outcome::Late, 1)]);
}

#[tokio::test]
async fn removal_names_what_was_read_before_and_what_was_written() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.layer.put(entry("a", "1"));
    let (removed, trail) = f.removed(&f.cx(), &["a", "b"]).await;
    assert_eq!(removed.map(|removed| removed.live), Ok(1));
    assert_eq!(steps(&trail), [("disk", Outcome::Hit, 2), ("disk", Outcome::Written, 2)]);
    let mut trail = Trail::default();
    f.coordinator.clear((&f.cx(), &mut trail)).await.unwrap();
    assert_eq!(steps(&trail), [("disk", Outcome::Written, 1)]);
}

#[tokio::test(start_paused = true)]
async fn write_that_is_not_confirmed_names_the_layer_that_has_not_got_it() {
    let (coordinator, clock) = behind_a_stuck_redis(WriteMode::Through).await;
    let cx = cx_within(&clock, Duration::from_millis(50));
    let mut trail = Trail::default();
    let set = coordinator.set((&cx, &mut trail), entry("k", "v")).await;
    assert_eq!(set, Err(WriteError::Unconfirmed));
    let expected = [("disk", Outcome::Written, 1), ("redis", Outcome::Unconfirmed, 1)];
    assert_eq!(steps(&trail), expected);
    assert_eq!(trail.outcome(), Some(Outcome::Unconfirmed));
}

#[tokio::test]
async fn write_through_past_a_layer_that_is_away_says_that_it_was_not_waited_for() {
    let clock = Clock::manual(START);
    let (redis, disk) = (Scripted::gated_as(LayerId::Redis, 1000, 1000), Scripted::gated_as(LayerId::Disk, 1000, 1000));
    redis.failing.store(true, Ordering::SeqCst);
    let cold = vec![Arc::clone(&redis) as Arc<dyn Layer>, Arc::clone(&disk) as Arc<dyn Layer>];
    let parts = Parts { write_mode: WriteMode::Through, ..parts(&clock, Policy::S3Fifo, cold) };
    let coordinator = Coordinator::open(parts, clock.clone()).await;
    let mut trail = Trail::default();
    coordinator.set((&cx(&clock), &mut trail), entry("k", "v")).await.unwrap();
    let mut steps = steps(&trail);
    steps.sort_unstable();
    assert_eq!(steps, [("disk", Outcome::Written, 1), ("redis", Outcome::Excused, 1)]);
}

#[tokio::test(start_paused = true)]
async fn write_that_waits_for_room_says_so() {
    let queue = QueueOptions { items_max: 1, ..QUEUE };
    let f = Fixture::over(Scripted::gated(1000, 0), queue).await;
    f.set("a", "1").await;
    let cx = cx_within(&f.clock, Duration::from_millis(50));
    let mut trail = Trail::default();
    let full = f.coordinator.set((&cx, &mut trail), entry("b", "1")).await;
    assert_eq!(full, Err(WriteError::QueueFull));
    let step = trail.steps().next().unwrap();
    assert_eq!((step.part, step.outcome), ("writeQueue", Outcome::Full));
}

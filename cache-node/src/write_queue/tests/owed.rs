//! What a layer is owed besides keys, removals by tag and clears: how old it is, and that it is lost at the end.

use super::{
    lanes::{FOREVER, Two, removal},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

/// A queue in front of a Redis that takes nothing, and of a disk that takes everything.
fn before_a_redis_that_hangs() -> Two {
    Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open())
}

#[tokio::test]
async fn removal_by_tag_is_as_old_as_the_first_of_its_tags_until_the_layer_has_it() {
    let f = Fixture::over(Scripted::gated(0, 0));
    drop(f.queue.remove_tagged(&removal(&["a", "b"], 1)));
    f.clock.advance(SECOND);
    let receipt = f.queue.remove_tagged(&removal(&["b", "a"], 2));
    f.clock.advance(SECOND);
    assert_eq!(f.queue.oldest_age(), 2 * SECOND);
    eventually("it is under way", || !lock(&f.queue.lanes[0].tagged).has_work()).await;
    assert_eq!(f.queue.oldest_age(), 2 * SECOND);
    f.layer.write_gate.add_permits(FOREVER);
    receipt.settled().await;
    assert_eq!(f.queue.oldest_age(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn removal_by_tag_that_failed_is_as_old_as_before() {
    let f = Fixture::over(Scripted::open());
    f.layer.failing.store(true, Ordering::SeqCst);
    drop(f.queue.remove_tagged(&removal(&["a"], 1)));
    f.clock.advance(SECOND);
    eventually("it was tried twice", || f.queue.lanes()[0].failures >= 2).await;
    assert_eq!(f.queue.oldest_age(), SECOND);
}

#[tokio::test]
async fn clear_is_as_old_as_its_order_until_the_layer_has_carried_it_out() {
    let f = Fixture::over(Scripted::gated(0, 0));
    let first = f.queue.clear(|| {});
    f.clock.advance(SECOND);
    assert_eq!(f.queue.oldest_age(), SECOND);
    eventually("it is under way", || f.queue.lanes[0].gate.try_read().is_err()).await;
    let second = f.queue.clear(|| {});
    f.clock.advance(SECOND);
    assert_eq!(f.queue.oldest_age(), 2 * SECOND);
    f.layer.write_gate.add_permits(1);
    first.settled().await;
    assert_eq!(f.queue.oldest_age(), SECOND, "the one under way does not carry out what was ordered since");
    f.layer.write_gate.add_permits(1);
    second.settled().await;
    assert_eq!(f.queue.oldest_age(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn clear_that_stands_for_what_was_forgotten_is_as_old_as_the_oldest_of_it() {
    let two = Two::without_redis(OPTIONS).await;
    two.clock.advance(SECOND);
    for number in 0..=tagged::TAGGED_MAX as u64 {
        drop(two.queue.remove_tagged(&removal(&[&number.to_string()], number)));
    }
    let redis = two.lane(LayerId::Redis);
    assert_eq!((redis.items, redis.removals), (0, 1), "a clear in place of all");
    assert_eq!(redis.oldest_age, SECOND, "the first write that Redis did not take");
    two.redis_comes_back().await;
    assert_eq!(two.lane(LayerId::Redis).oldest_age, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn removals_by_tag_that_a_layer_has_not_got_are_lost_when_the_time_to_stop_is_over() {
    let two = before_a_redis_that_hangs();
    // The first is under way by then.
    drop(two.queue.remove_tagged(&removal(&["a"], 1)));
    eventually("it is under way", || !lock(&two.queue.lanes[0].tagged).has_work()).await;
    drop(two.queue.remove_tagged(&removal(&["b"], 2)));
    two.set("k", "v");
    two.queue.shutdown(two.clock.monotonic() + SECOND).await;
    assert_eq!((two.lane(LayerId::Redis).lost, two.lane(LayerId::Disk).lost), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn clear_that_a_layer_has_not_carried_out_is_lost_when_the_time_to_stop_is_over() {
    let two = before_a_redis_that_hangs();
    drop(two.queue.clear(|| {}));
    two.queue.shutdown(two.clock.monotonic() + SECOND).await;
    assert_eq!((two.lane(LayerId::Redis).lost, two.lane(LayerId::Disk).lost), (1, 0));
}

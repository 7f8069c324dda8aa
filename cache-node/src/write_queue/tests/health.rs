//! What the queue says of itself while the layer does not keep up, and afterwards.

use super::{
    lanes::{full, small},
    *,
};

const WELL: (HealthState, &str) = (HealthState::Healthy, "AsExpected");

const SECOND: Duration = Duration::from_secs(1);

/// Looks at the queue now and after each of so many seconds.
fn watch(f: &Fixture, seconds: usize) {
    f.queue.tick();
    for _ in 0..seconds {
        f.clock.advance(SECOND);
        f.queue.tick();
    }
}

fn health(f: &Fixture) -> (HealthState, &'static str) {
    let health = f.queue.health();
    (health.state, health.reason)
}

fn asks_in_vain(f: &Fixture) {
    assert_eq!(f.push(Change::Set(entry("new", "v")), None), Err(Full));
}

/// The layer takes everything.
async fn catches_up(f: &Fixture) {
    f.layer.write_gate.add_permits(9);
    f.drained().await;
}

#[tokio::test]
async fn writes_that_wait_for_more_than_a_second_are_a_lag_until_the_layer_has_them() {
    let f = Fixture::over(Scripted::gated(0, 0));
    f.set("k", "v");
    // Seen first after two seconds, and called so after two more.
    watch(&f, 3);
    assert_eq!(health(&f), WELL);
    watch(&f, 1);
    assert_eq!(health(&f), (HealthState::Degraded, "QueueLags"));
    catches_up(&f).await;
    watch(&f, 10);
    assert_eq!(health(&f), WELL);
}

#[tokio::test]
async fn queue_with_less_than_a_fifth_of_its_room_left_is_nearly_full_although_nothing_waits_for_long() {
    let f = small(Overflow::Block);
    for (writes, expected) in [(80, WELL), (81, (HealthState::Degraded, "QueueNearlyFull"))] {
        // Each second the layer takes everything, and as much comes again.
        for _ in 0..3 {
            (0..writes).for_each(|number| f.set(&format!("k{number}"), "v"));
            watch(&f, 1);
            catches_up(&f).await;
        }
        assert_eq!(health(&f), expected, "{writes} of 100");
    }
    watch(&f, 10);
    assert_eq!(health(&f), WELL);
}

#[tokio::test]
async fn queue_that_refuses_writes_for_ten_seconds_is_full_until_it_refuses_none() {
    let f = full(Overflow::Block);
    // After ten seconds it is seen, and called so after two more.
    for second in 0..=12 {
        asks_in_vain(&f);
        f.queue.tick();
        assert_eq!(health(&f).0 == HealthState::Unavailable, second == 12, "after {second} s: {:?}", health(&f));
        f.clock.advance(SECOND);
    }
    assert_eq!(health(&f), (HealthState::Unavailable, "QueueFull"));
    catches_up(&f).await;
    // Two seconds in which a writer may still come back count as full.
    watch(&f, 11);
    assert_eq!(health(&f), (HealthState::Unavailable, "QueueFull"));
    watch(&f, 1);
    assert_eq!(health(&f), WELL);
}

#[tokio::test]
async fn refusals_with_seconds_between_them_do_not_make_the_queue_full() {
    let f = full(Overflow::Block);
    for _ in 0..5 {
        asks_in_vain(&f);
        watch(&f, 3);
        f.clock.advance(SECOND);
    }
    assert_eq!(health(&f), (HealthState::Degraded, "QueueLags"));
}

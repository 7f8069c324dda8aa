//! Changes of which nobody knows whether Redis has carried them out: the attempt failed, and may have been seen by others.

use std::sync::Mutex;

use super::{
    lanes::{FOREVER, Two},
    *,
};
use crate::entry::Position;

/// A queue that has sent Redis a value, and hears nothing yet.
async fn on_its_way(name: &str) -> Two {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open());
    two.set(name, "v");
    eventually("a batch is under way", || two.queue.lanes[0].applying_since_ms() != NEVER_MS).await;
    two
}

fn supersede(two: &Two, name: &str) -> bool {
    two.queue.turn(name.as_bytes()).supersede(START, name.as_bytes(), Position::from_bits(7))
}

#[tokio::test(start_paused = true)]
async fn value_is_stored_again_as_one_that_may_have_been_stored_before() {
    let two = Two::without_redis(OPTIONS).await;
    two.redis_comes_back().await;
    let batches = two.redis.batches.lock().unwrap();
    assert!(matches!(batches[0][..], [Change::Again(..)]), "{batches:?}");
    let batches = two.disk.batches.lock().unwrap();
    assert!(matches!(batches[0][..], [Change::Set(_)]), "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn newer_value_is_stored_for_the_first_time() {
    let two = Two::without_redis(OPTIONS).await;
    two.set("first", "newer");
    // Else it would be taken on the way.
    two.redis.failing.store(false, Ordering::SeqCst);
    two.redis_comes_back().await;
    let batches = two.redis.batches.lock().unwrap();
    assert!(matches!(batches[0][..], [Change::Set(_)]), "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn value_that_another_node_may_have_seen_before_it_changed_the_key_is_removed_everywhere() {
    let two = Two::without_redis(OPTIONS).await;
    eventually("the disk has it", || two.disk.value("first").is_some()).await;
    assert!(supersede(&two, "first"), "memory has to forget it");
    assert!(matches!(two.pending("first"), Pending::Removed));
    two.redis.put(entry("first", "of the other node"));
    two.redis_comes_back().await;
    assert_eq!((two.redis.value("first"), two.disk.value("first")), (None, None));
}

#[tokio::test(start_paused = true)]
async fn value_whose_key_another_node_changed_during_a_lost_attempt_is_removed_everywhere() {
    let two = on_its_way("k").await;
    let dropped = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&dropped);
    two.queue.on_drop(move |key| heard.lock().unwrap().push(key.to_vec()));
    assert!(!supersede(&two, "k"), "its answer decides");
    two.redis.failing.store(true, Ordering::SeqCst);
    two.redis.write_gate.add_permits(FOREVER);
    eventually("memory has to forget it", || *dropped.lock().unwrap() == [b"k"]).await;
    assert!(matches!(two.pending("k"), Pending::Removed));
    two.redis.put(entry("k", "of the other node"));
    two.redis_comes_back().await;
    assert_eq!((two.redis.value("k"), two.disk.value("k")), (None, None));
}

#[tokio::test(start_paused = true)]
async fn value_that_was_never_tried_comes_after_what_another_node_has_changed() {
    let two = on_its_way("k").await;
    two.set("later", "v");
    assert!(!supersede(&two, "later"));
    two.redis.write_gate.add_permits(FOREVER);
    two.redis_comes_back().await;
    assert_eq!(two.redis.value("later").as_deref(), Some("v"));
}

/// What is made of the value that this node knows of a key, as of this place in the log.
fn revise(two: &Two, name: &str, seen: u64) {
    let entry = entry(name, "made of the one before");
    two.queue.turn(name.as_bytes()).revise(START, &entry, Position::from_bits(seen), None).unwrap();
}

/// What Redis is asked to do with the key, when it answers.
async fn asked_of_redis(two: &Two, name: &str) -> Change {
    two.redis.write_gate.add_permits(FOREVER);
    two.redis_comes_back().await;
    let batches = two.redis.batches.lock().unwrap();
    let asked = batches.iter().flatten().filter(|change| change.key() == name.as_bytes());
    asked.last().expect("it was asked").clone()
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_a_known_value_is_stored_only_if_nobody_has_changed_the_key_since() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open());
    revise(&two, "k", 5);
    let change = asked_of_redis(&two, "k").await;
    assert!(matches!(&change, Change::Again(_, since) if *since == Position::from_bits(5)), "{change:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_a_known_value_is_no_newer_than_what_others_did_meanwhile() {
    let two = on_its_way("other").await;
    let is_untold = || two.queue.turn(b"k").is_untold(b"k");
    revise(&two, "k", 5);
    assert!(!is_untold(), "a fenced node must not serve it");
    two.set("k", "written here");
    assert!(is_untold());
    revise(&two, "k", 5);
    assert!(is_untold(), "one write with the one before it");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_a_write_that_still_waits_is_one_write_with_it() {
    let two = on_its_way("other").await;
    two.set("k", "v");
    revise(&two, "k", 5);
    let change = asked_of_redis(&two, "k").await;
    assert!(matches!(&change, Change::Set(entry) if entry.key() == b"k"), "{change:?}");
    // Of one that is on its way others may have heard.
    let two = on_its_way("k").await;
    revise(&two, "k", 5);
    let change = asked_of_redis(&two, "k").await;
    assert!(matches!(&change, Change::Again(_, since) if *since == Position::from_bits(5)), "{change:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_a_write_on_its_way_that_another_node_has_overtaken_is_in_doubt_from_before_that() {
    let two = on_its_way("k").await;
    assert!(!supersede(&two, "k"), "its answer decides");
    revise(&two, "k", 7);
    let change = asked_of_redis(&two, "k").await;
    assert!(matches!(&change, Change::Again(_, since) if *since < Position::from_bits(7)), "{change:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_what_was_in_doubt_is_in_doubt_as_long() {
    let two = on_its_way("other").await;
    revise(&two, "k", 5);
    revise(&two, "k", 9);
    let change = asked_of_redis(&two, "k").await;
    assert!(matches!(&change, Change::Again(_, since) if *since == Position::from_bits(5)), "{change:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_a_value_that_another_node_has_removed_meanwhile_is_removed_everywhere() {
    let two = on_its_way("other").await;
    revise(&two, "k", 5);
    assert!(supersede(&two, "k"), "memory has to forget it");
    assert!(matches!(two.pending("k"), Pending::Removed));
    two.redis.write_gate.add_permits(FOREVER);
    two.redis_comes_back().await;
    assert_eq!((two.redis.value("k"), two.disk.value("k")), (None, None));
}

#[tokio::test(start_paused = true)]
async fn what_redis_has_taken_is_not_in_doubt_any_more() {
    let two =
        Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, FOREVER), Scripted::gated_as(LayerId::Disk, 0, 0));
    revise(&two, "k", 5);
    eventually("Redis has it", || two.redis.value("k").is_some()).await;
    eventually("that is known", || two.lane(LayerId::Redis).items == 0).await;
    assert!(supersede(&two, "k"), "the other node's change is newer");
    two.disk.write_gate.add_permits(FOREVER);
    two.redis_comes_back().await;
    assert!(two.redis.value("k").is_some(), "what the other node has stored there stays");
    assert_eq!(two.disk.value("k"), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_for_this_node_alone_and_takes_the_place_of_what_redis_is_owed_does_not_beat_others() {
    let two = on_its_way("other").await;
    let mut turn = two.queue.turn(b"k");
    turn.push(START, Change::Remove(key("k")), None).unwrap();
    turn.push_own(START, Change::Set(entry("k", "fetched")), Position::from_bits(5), None).unwrap();
    drop(turn);
    let change = asked_of_redis(&two, "k").await;
    assert!(matches!(&change, Change::Again(_, since) if *since == Position::from_bits(5)), "{change:?}");
}

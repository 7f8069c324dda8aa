//! What a queue begins with that follows one which was killed.

use tempfile::{TempDir, tempdir};

use super::*;
use crate::{layer::LayerId, testing::cx};

fn place(folder: &TempDir) -> JournalPlace {
    JournalPlace { path: folder.path().join("journal"), owner: "me".to_owned() }
}

/// A queue over a layer of which nothing is let through.
fn stuck(place: &JournalPlace, clock: &Clock) -> Arc<WriteQueue> {
    let layer: Arc<dyn Layer> = Scripted::gated(1000, 0);
    WriteQueue::open(OPTIONS, vec![layer], Some(place), clock.clone())
}

fn push(queue: &WriteQueue, change: Change) {
    queue.turn(change.key()).push(START, change.clone(), None).unwrap();
}

#[tokio::test]
async fn key_whose_write_was_lost_is_removed_and_absent_from_the_beginning() {
    let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
    let place = place(&folder);
    let killed = stuck(&place, &clock);
    push(&killed, Change::Set(entry("overwritten", "new")));
    push(&killed, Change::Set(entry("overwritten", "newest")));
    push(&killed, Change::Remove(key("removed")));

    let layer = Scripted::open();
    ["overwritten", "removed", "other"].iter().for_each(|name| layer.put(entry(name, "old")));
    let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], Some(&place), clock.clone());
    for name in ["overwritten", "removed"] {
        let pending = queue.turn(name.as_bytes()).pending(name.as_bytes());
        assert!(matches!(pending, Pending::Removed) || layer.value(name).is_none(), "{name}");
    }
    queue.flush(&cx(&clock)).await.unwrap();
    assert_eq!((layer.value("overwritten"), layer.value("removed")), (None, None));
    assert_eq!(layer.value("other").as_deref(), Some("old"));
}

#[tokio::test]
async fn write_that_reached_the_layer_is_kept() {
    let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
    let place = place(&folder);
    let layer = Scripted::open();
    let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], Some(&place), clock.clone());
    push(&queue, Change::Set(entry("k", "v")));
    queue.flush(&cx(&clock)).await.unwrap();
    // Killed now.
    let next = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], Some(&place), clock.clone());
    next.flush(&cx(&clock)).await.unwrap();
    assert_eq!(layer.value("k").as_deref(), Some("v"));
}

#[tokio::test]
async fn queue_that_ended_empty_leaves_nothing_behind_and_one_that_did_not_does() {
    for (writes, left) in [(1000, false), (0, true)] {
        let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
        let place = place(&folder);
        let layer: Arc<dyn Layer> = Scripted::gated(0, writes);
        let queue = WriteQueue::open(OPTIONS, vec![layer], Some(&place), clock.clone());
        push(&queue, Change::Set(entry("k", "v")));
        queue.shutdown(clock.monotonic() + Duration::from_millis(300)).await;
        assert_eq!(place.path.exists(), left);
    }
}

#[tokio::test]
async fn what_only_one_layer_lacks_at_a_stop_is_removed_there_and_stays_in_the_other() {
    let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
    let place = place(&folder);
    let (disk, redis) = (Scripted::open(), Scripted::gated_as(LayerId::Redis, 1000, 0));
    let open = || {
        let targets = [Arc::clone(&redis) as Arc<dyn Layer>, Arc::clone(&disk) as Arc<dyn Layer>];
        WriteQueue::open(OPTIONS, targets.to_vec(), Some(&place), clock.clone())
    };
    redis.put(entry("k", "old"));
    let stopped = open();
    push(&stopped, Change::Set(entry("k", "new")));
    eventually("the disk has it", || disk.value("k").is_some()).await;
    stopped.shutdown(clock.monotonic() + Duration::from_millis(300)).await;

    let next = open();
    let pending = || next.turn(b"k").pending(b"k");
    assert!(matches!(pending(), Pending::Unknown), "it is not gone");
    assert_eq!((next.is_trusted(LayerId::Redis), next.is_trusted(LayerId::Disk)), (false, true));
    redis.write_gate.add_permits(1000);
    eventually("redis has forgotten it", || next.is_trusted(LayerId::Redis)).await;
    assert_eq!((redis.value("k"), disk.value("k").as_deref()), (None, Some("new")));

    // A key that the client writes meanwhile is written as ever.
    redis.put(entry("k", "older"));
    push(&next, Change::Set(entry("k", "newest")));
    next.flush(&cx(&clock)).await.unwrap();
    assert_eq!((redis.value("k").as_deref(), disk.value("k").as_deref()), (Some("newest"), Some("newest")));
}

#[tokio::test]
async fn kill_during_a_clear_leaves_the_layer_to_be_cleared() {
    let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
    let place = place(&folder);
    let killed = stuck(&place, &clock);
    push(&killed, Change::Set(entry("k", "new")));
    let _receipt = killed.clear(|| {});

    let layer = Scripted::open();
    layer.put(entry("k", "old"));
    let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], Some(&place), clock.clone());
    queue.flush(&cx(&clock)).await.unwrap();
    assert_eq!(layer.value("k"), None);
    assert!(queue.is_trusted(LayerId::Disk));
}

#[tokio::test]
async fn journal_is_let_go_when_its_volume_fails_and_health_says_so() {
    let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
    let place = place(&folder);
    let layer = Scripted::open();
    layer.failing.store(true, Ordering::SeqCst);
    let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], Some(&place), clock.clone());
    push(&queue, Change::Set(entry("k", "v")));
    eventually("it is let go", || lock(&queue.journal_trouble).is_some()).await;
    layer.failing.store(false, Ordering::SeqCst);
    queue.flush(&cx(&clock)).await.unwrap();
    push(&queue, Change::Set(entry("k", "w")));
    for _ in 0..4 {
        queue.tick();
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(queue.health().reason, "NoJournal");
}

#[tokio::test]
async fn damaged_journal_makes_everything_below_count_as_lost() {
    let (folder, clock) = (tempdir().unwrap(), Clock::manual(START));
    let place = place(&folder);
    std::fs::write(&place.path, b"not a journal").unwrap();
    let layer = Scripted::gated(1000, 0);
    layer.put(entry("k", "old"));
    let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], Some(&place), clock.clone());
    assert!(!queue.is_trusted(LayerId::Disk));
    layer.write_gate.add_permits(10);
    queue.flush(&cx(&clock)).await.unwrap();
    assert_eq!((layer.value("k"), queue.is_trusted(LayerId::Disk)), (None, true));
}

//! Reads that a cold layer settles without I/O, and those that it must not settle.

use super::{tags::tag_set, *};

/// Two cold layers, asked in this order, of which the disk tells at once what it has.
async fn over(order: [LayerId; 2]) -> (Arc<Coordinator>, [Arc<Scripted>; 2], Clock) {
    let clock = Clock::manual(START);
    let layers = order.map(|id| Scripted::gated_as(id, 1000, 1000));
    for layer in &layers {
        layer.at_once.store(layer.id() == LayerId::Disk, Ordering::SeqCst);
    }
    let cold = layers.iter().map(|layer| Arc::clone(layer) as Arc<dyn Layer>).collect();
    (Coordinator::open(parts(&clock, Policy::S3Fifo, cold), clock.clone()).await, layers, clock)
}

fn reads(layer: &Scripted) -> u64 {
    layer.reads.load(Ordering::SeqCst)
}

#[tokio::test]
async fn what_the_first_layer_has_is_answered_at_once_and_promoted() {
    let (node, [disk, redis], clock) = over([LayerId::Disk, LayerId::Redis]).await;
    disk.put(entry_until("k", "v", START.after(Duration::from_secs(60))));
    let Peek::Hit(found) = node.get_now(&cx(&clock), b"k") else { panic!("the disk knows") };
    assert_eq!((text(&found).as_str(), reads(&disk)), ("v", 1));
    assert!(matches!(node.peek(&cx(&clock), b"k"), Peek::Hit(_)), "memory has it");
    eventually("Redis has it", || redis.value("k").is_some()).await;
    clock.advance(Duration::from_secs(60));
    assert!(!matches!(node.get_now(&cx(&clock), b"k"), Peek::Hit(_)), "no new life");
}

#[tokio::test]
async fn a_miss_settles_only_what_no_other_layer_could_have() {
    let (node, [disk, redis], clock) = over([LayerId::Disk, LayerId::Redis]).await;
    redis.put(entry("k", "v"));
    assert!(matches!(node.get_now(&cx(&clock), b"k"), Peek::Cold));
    assert_eq!(reads(&disk), 0, "it counts as looked up when it is");
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.layer.at_once.store(true, Ordering::SeqCst);
    assert!(matches!(f.coordinator.get_now(&f.cx(), b"k"), Peek::Absent));
    assert_eq!((reads(&f.layer), f.coordinator.write_queue().stats().misses), (1, 1));
}

#[tokio::test]
async fn what_was_removed_by_tag_in_the_first_layer_is_looked_for_in_the_next() {
    let (node, [disk, redis], clock) = over([LayerId::Disk, LayerId::Redis]).await;
    let tags = tag_set(&["t"]);
    let tagged = |value: &[u8]| Entry::new(b"k", value, node.meta(&cx(&clock), None, None, tags.tags()));
    disk.put(tagged(b"old"));
    node.remove_tagged(&cx(&clock), tags.clone(), Matching::Any).await.unwrap();
    redis.put(tagged(b"new"));
    assert!(matches!(node.get_now(&cx(&clock), b"k"), Peek::Cold));
    let found = node.get(&cx(&clock), &key("k"), Wants::Value).await.entry;
    assert_eq!(found.as_ref().map(text).as_deref(), Some("new"));
}

#[tokio::test]
async fn a_layer_that_is_asked_first_is_not_passed_over() {
    let (node, [redis, disk], clock) = over([LayerId::Redis, LayerId::Disk]).await;
    disk.put(entry("k", "old"));
    redis.put(entry("k", "new"));
    assert!(matches!(node.get_now(&cx(&clock), b"k"), Peek::Cold));
    let found = node.get(&cx(&clock), &key("k"), Wants::Value).await.entry;
    assert_eq!(found.as_ref().map(text).as_deref(), Some("new"));
}

#[tokio::test]
async fn a_layer_that_is_away_is_passed_over_and_counted_once_the_read_is_settled() {
    let (node, [redis, disk], clock) = over([LayerId::Redis, LayerId::Disk]).await;
    disk.put(entry("k", "v"));
    redis.away.store(true, Ordering::SeqCst);
    let Peek::Hit(found) = node.get_now(&cx(&clock), b"k") else { panic!("the disk knows") };
    assert_eq!((text(&found).as_str(), redis.passed_over.load(Ordering::SeqCst)), ("v", 1));
    assert!(matches!(node.get_now(&cx(&clock), b"absent"), Peek::Absent), "the disk is the last that is there");
    disk.at_once.store(false, Ordering::SeqCst);
    assert!(matches!(node.get_now(&cx(&clock), b"other"), Peek::Cold));
    assert_eq!(redis.passed_over.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_is_on_its_way_or_can_not_be_read_is_not_settled_by_the_disk() {
    let f = Fixture::over(Scripted::gated(1000, 0), QUEUE).await;
    f.layer.at_once.store(true, Ordering::SeqCst);
    f.layer.put(entry("k", "old"));
    f.set("k", "new").await;
    f.coordinator.memory().remove(b"k");
    let Peek::Hit(found) = f.coordinator.get_now(&f.cx(), b"k") else { panic!("the queue has it") };
    assert_eq!((text(&found).as_str(), reads(&f.layer)), ("new", 0));
    f.layer.put(entry("other", "v"));
    f.layer.failing.store(true, Ordering::SeqCst);
    assert!(matches!(f.coordinator.get_now(&f.cx(), b"other"), Peek::Cold), "a failure is told by the read");
}

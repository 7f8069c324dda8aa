//! Several cold layers behind one queue, one of them slow, dead or away for long.

use super::*;
use crate::{
    entry::{Position, TagSet},
    layer::Matching,
    testing::{cx, cx_within},
};

use tokio::time::timeout;

pub(super) struct Two {
    pub(super) queue: Arc<WriteQueue>,
    pub(super) redis: Arc<Scripted>,
    pub(super) disk: Arc<Scripted>,
    pub(super) clock: Clock,
}

pub(super) const FOREVER: usize = tokio::sync::Semaphore::MAX_PERMITS;

impl Two {
    fn open(options: QueueOptions) -> Self {
        Self::over(options, Scripted::gated_as(LayerId::Redis, 0, FOREVER), Scripted::open())
    }

    pub(super) fn over(options: QueueOptions, redis: Arc<Scripted>, disk: Arc<Scripted>) -> Self {
        let clock = Clock::manual(START);
        let targets = vec![Arc::clone(&redis) as Arc<dyn Layer>, Arc::clone(&disk) as Arc<dyn Layer>];
        Self { queue: WriteQueue::open(options, targets, None, clock.clone()), redis, disk, clock }
    }

    /// One in which Redis fails, and the queue knows it.
    pub(super) async fn without_redis(options: QueueOptions) -> Self {
        let two = Self::open(options);
        two.redis.failing.store(true, Ordering::SeqCst);
        two.set("first", "v");
        eventually("redis is away", || !two.lane(LayerId::Redis).is_reachable).await;
        two
    }

    pub(super) fn lane(&self, layer: LayerId) -> LaneReport {
        self.queue.lanes().into_iter().find(|lane| lane.layer == layer).unwrap()
    }

    /// Redis answers again, and gets all that it is owed.
    pub(super) async fn redis_comes_back(&self) {
        self.redis.failing.store(false, Ordering::SeqCst);
        eventually("the queue is empty", || self.queue.items() == 0).await;
        eventually("all is trusted", || self.queue.lanes().iter().all(|lane| lane.is_trusted)).await;
        assert_eq!(self.queue.bytes(), 0);
    }
}

impl Deref for Two {
    type Target = WriteQueue;

    fn deref(&self) -> &WriteQueue {
        &self.queue
    }
}

pub(super) fn removal(tags: &[&str], position: u64) -> TagRemoval {
    let mut set = TagSet::default();
    tags.iter().for_each(|tag| set.add(tag.as_bytes()).unwrap());
    TagRemoval { tags: set, matching: Matching::All, position: Position::from_bits(position) }
}

#[tokio::test]
async fn what_redis_has_been_told_may_have_been_changed_by_others_although_the_disk_does_not_have_it() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, FOREVER, FOREVER), Scripted::gated(0, 0));
    two.set("k", "v");
    assert!(two.turn(b"k").is_untold(b"k"));
    eventually("redis has it", || !two.turn(b"k").is_untold(b"k")).await;
    assert!(matches!(two.pending("k"), Pending::Value(_)));
    two.disk.write_gate.add_permits(9);
    eventually("the disk has it", || two.queue.items() == 0).await;
}

#[tokio::test]
async fn slow_layer_does_not_delay_another() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open());
    two.set("k", "v");
    eventually("the disk has it", || two.disk.value("k").is_some()).await;
    assert!(two.redis.value("k").is_none());
    assert!(matches!(two.pending("k"), Pending::Value(_)), "visible until both have it");
    assert!(two.turn(b"k").is_untold(b"k"));
    two.redis.write_gate.add_permits(9);
    two.redis_comes_back().await;
    assert_eq!(two.redis.value("k").as_deref(), Some("v"));
}

#[tokio::test]
async fn removal_waits_for_every_layer_that_can_be_reached() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open());
    let receipt = two.remove("k");
    eventually("the disk has it", || two.lane(LayerId::Disk).flushed == 1).await;
    assert_eq!(receipt.left(), 1);
    two.redis.write_gate.add_permits(9);
    receipt.settled().await;
}

#[tokio::test(start_paused = true)]
async fn removal_does_not_wait_for_a_redis_that_is_away_and_reaches_it_later() {
    let two = Two::open(OPTIONS);
    two.redis.put(entry("k", "old"));
    two.redis.failing.store(true, Ordering::SeqCst);
    two.remove("k").settled().await;
    two.remove("k").settled().await;
    assert!(matches!(two.pending("k"), Pending::Removed), "what redis holds is not served");
    two.redis_comes_back().await;
    assert!(two.redis.value("k").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_receipt_says_whether_a_layer_was_not_waited_for_and_what_is_kept_for_it_is_counted() {
    let two = Two::open(OPTIONS);
    let receipt = two.remove("k");
    receipt.settled().await;
    assert!(receipt.excused().is_empty());
    two.redis.failing.store(true, Ordering::SeqCst);
    // The first is under way when redis turns out to be away, the others come after that.
    let mut receipts = vec![two.remove("k")];
    receipts[0].settled().await;
    receipts.push(two.remove("l"));
    receipts.push(two.queue.remove_tagged(&removal(&["t"], 5)));
    for receipt in receipts {
        receipt.settled().await;
        assert_eq!(receipt.excused(), Lanes::of(LayerId::Redis));
    }
    assert_eq!((two.lane(LayerId::Redis).removals, two.lane(LayerId::Redis).replayed), (3, 0));
    two.clock.advance(Duration::from_secs(1));
    two.redis_comes_back().await;
    eventually("redis is told", || two.lane(LayerId::Redis).removals == 0).await;
    assert_eq!(two.lane(LayerId::Redis).replayed, 3);
    two.redis.failing.store(true, Ordering::SeqCst);
    let receipt = two.queue.clear(|| {});
    receipt.settled().await;
    assert_eq!(receipt.excused(), Lanes::of(LayerId::Redis));
    two.redis_comes_back().await;
    assert_eq!(two.lane(LayerId::Redis).replayed, 4);
}

#[tokio::test(start_paused = true)]
async fn removal_is_not_confirmed_while_the_disk_fails() {
    let two = Two::open(OPTIONS);
    two.disk.failing.store(true, Ordering::SeqCst);
    let receipt = two.remove("k");
    eventually("it was tried twice", || two.lane(LayerId::Disk).failures >= 2).await;
    assert_eq!(receipt.left(), 1);
    two.disk.failing.store(false, Ordering::SeqCst);
    receipt.settled().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_disk_nobody_is_told_of_a_removal_that_redis_has_not_got() {
    let clock = Clock::manual(START);
    let redis = Scripted::gated_as(LayerId::Redis, 0, FOREVER);
    redis.failing.store(true, Ordering::SeqCst);
    let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&redis) as Arc<dyn Layer>], None, clock.clone());
    let removed = Receipt::new(1);
    let change = Change::Remove(key("k"));
    queue.turn(b"k").push(clock.now(), change.clone(), Some(Arc::clone(&removed))).unwrap();
    eventually("it is known to be away", || !queue.lanes()[0].is_reachable).await;
    // Ordered while it is away, and by somebody who comes when that is known.
    let late = Receipt::new(1);
    queue.turn(b"k").push(clock.now(), change, Some(Arc::clone(&late))).unwrap();
    let cleared = queue.clear(|| ());
    let tagged = queue.remove_tagged(&removal(&["red"], 7));
    let failures = queue.lanes()[0].failures;
    eventually("it was tried again", || queue.lanes()[0].failures > failures + 1).await;
    let receipts = [&removed, &late, &cleared, &tagged];
    assert_eq!(receipts.map(|receipt| receipt.is_settled()), [false; 4]);
    let soon = cx_within(&clock, Duration::from_millis(10));
    assert!(queue.flush(&soon).await.is_err(), "nor of a flush");
    redis.failing.store(false, Ordering::SeqCst);
    for receipt in receipts {
        receipt.settled().await;
    }
    assert_eq!(removed.excused(), Lanes::NONE);
}

#[tokio::test(start_paused = true)]
async fn layer_that_is_away_does_not_fill_the_queue_and_serves_nothing_older_afterwards() {
    let two = Two::without_redis(QueueOptions { items_max: 2000, ..OPTIONS }).await;
    let names: Vec<String> = (0..5000_u32).map(|number| format!("k{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        two.redis.put(entry(name, "older"));
        let room = two.queue.room();
        if two.push(Change::Set(entry(name, "newer")), None).is_err() {
            room.for_value(cx(&two.clock).deadline).await.unwrap();
            two.set(name, "newer");
        }
        if number % 500 == 0 {
            tokio::time::sleep(Duration::from_secs(6)).await;
        }
        let served = matches!(two.pending(&names[0]), Pending::Unknown) && two.queue.is_trusted(LayerId::Redis);
        assert!(!served, "the older value");
    }
    assert!(two.lane(LayerId::Redis).forgotten > 2000);
    eventually("the disk has all", || names.iter().all(|name| two.disk.value(name).is_some())).await;
    two.redis_comes_back().await;
    assert!(two.lane(LayerId::Redis).clears > 0, "more was owed than could be kept");
    for name in &names {
        assert_ne!(two.redis.value(name).as_deref(), Some("older"), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn forgotten_values_leave_their_keys_to_be_removed() {
    let two = Two::without_redis(QueueOptions { items_max: 1000, ..OPTIONS }).await;
    for number in 0..600 {
        two.redis.put(entry(&format!("k{number}"), "older"));
        two.set(&format!("k{number}"), "newer");
        if number % 50 == 0 {
            eventually("the disk keeps up", || two.lane(LayerId::Disk).items == 0).await;
        }
    }
    let gone = (0..600).filter(|number| matches!(two.pending(&format!("k{number}")), Pending::Unknown)).count();
    assert!(gone > 50, "{gone}");
    assert!(!two.queue.is_trusted(LayerId::Redis) && two.queue.is_trusted(LayerId::Disk));
    two.redis_comes_back().await;
    assert_eq!(two.lane(LayerId::Redis).clears, 0);
    assert!((0..600).all(|number| two.redis.value(&format!("k{number}")).as_deref() != Some("older")));
}

#[tokio::test(start_paused = true)]
async fn large_value_finds_room_although_a_layer_is_away() {
    for overflow in [Overflow::Block, Overflow::DropOldest] {
        for (values, length) in [(40, 1000), (200, 1)] {
            let two = Two::without_redis(QueueOptions { capacity_bytes: 100_000, items_max: 1000, overflow }).await;
            for number in 0..values {
                two.set(&format!("k{number}"), &"x".repeat(length));
            }
            eventually("only redis is owed", || two.lane(LayerId::Disk).items == 0).await;
            assert!(!two.queue.used.exceeds(&two.queue.options, 50));
            let (large, room) = ("x".repeat(90_000), two.queue.room());
            assert_eq!(two.push(Change::Set(entry("large", &large)), None), Err(Full));
            room.for_value(cx(&two.clock).deadline).await.unwrap();
            two.set("large", &large);
            eventually("the disk has it", || two.disk.value("large").is_some()).await;
            two.redis.put(entry("large", "older"));
            two.redis_comes_back().await;
            assert_ne!(two.redis.value("large").as_deref(), Some("older"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clear_does_not_wait_for_a_redis_that_is_away_nor_trust_it_before_it_is_clear() {
    let two = Two::without_redis(OPTIONS).await;
    two.redis.put(entry("k", "old"));
    two.queue.clear(|| {}).settled().await;
    assert!(!two.queue.is_trusted(LayerId::Redis));
    two.set("k", "new");
    two.redis_comes_back().await;
    assert_eq!(two.redis.value("k").as_deref(), Some("new"), "what came after the clear is written after it");
    assert_eq!(two.redis.value("first"), None);
}

#[tokio::test(start_paused = true)]
async fn clear_that_fails_lets_those_go_who_wait_behind_it() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open());
    drop(two.queue.clear(|| {}));
    eventually("the clear is under way", || two.queue.lanes[0].gate.try_read().is_err()).await;
    let key = two.remove("k");
    let tagged = two.queue.remove_tagged(&removal(&["a"], 5));
    two.redis.failing.store(true, Ordering::SeqCst);
    two.redis.write_gate.add_permits(FOREVER);
    for receipt in [key, tagged] {
        timeout(Duration::from_secs(60), receipt.settled()).await.expect("nobody waits for a Redis that is away");
        assert_eq!(receipt.excused(), Lanes::of(LayerId::Redis));
    }
    two.redis_comes_back().await;
}

#[tokio::test]
async fn tag_removals_go_first_once_for_each_set_of_tags() {
    let redis = Scripted::gated_as(LayerId::Redis, 0, FOREVER);
    let two = Two::over(OPTIONS, redis, Scripted::gated(0, 0));
    two.set("k", "v");
    eventually("a batch is under way", || two.queue.lanes[1].applying_since_ms() != NEVER_MS).await;
    two.set("later", "v");
    let removals = [(["a", "b"], 5), (["b", "a"], 9), (["a", "b"], 7)];
    let receipts = removals.map(|(tags, position)| two.queue.remove_tagged(&removal(&tags, position)));
    two.disk.write_gate.add_permits(9);
    for receipt in receipts {
        receipt.settled().await;
    }
    two.redis_comes_back().await;
    assert_eq!(*two.disk.tag_removals.lock().unwrap(), [removal(&["a", "b"], 9)]);
    let batches = two.disk.batches.lock().unwrap();
    assert!(matches!(batches[1][..], [Change::RemoveTagged(_)]), "alone, so that it is quick: {:?}", batches[1]);
}

#[tokio::test]
async fn values_go_on_however_many_tag_removals_come() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, FOREVER), Scripted::gated(0, 0));
    two.set("k", "v");
    // Before each batch there is a new removal.
    for number in 0..4 {
        drop(two.queue.remove_tagged(&removal(&[&number.to_string()], number)));
        two.disk.write_gate.add_permits(1);
        let taken = usize::try_from(number).unwrap() + 1;
        eventually("a batch is written", || two.disk.batches.lock().unwrap().len() >= taken).await;
    }
    assert_eq!(two.disk.value("k").as_deref(), Some("v"));
}

#[tokio::test]
async fn batches_of_the_disk_are_small_because_removals_wait_for_the_one_under_way() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, FOREVER), Scripted::gated(0, 0));
    for number in 0..2000 {
        two.set(&format!("k{number}"), "v");
    }
    two.disk.write_gate.add_permits(1000);
    eventually("the disk has all", || two.disk.value("k1999").is_some() && two.queue.lanes()[1].items == 0).await;
    let longest = two.disk.batches.lock().unwrap().iter().map(Vec::len).max();
    assert_eq!(longest, Some(128));
}

#[tokio::test(start_paused = true)]
async fn tag_removals_beyond_their_bound_become_a_clear() {
    let two = Two::without_redis(OPTIONS).await;
    two.redis.put(entry("k", "old"));
    for number in 0..=tagged::TAGGED_MAX as u64 {
        drop(two.queue.remove_tagged(&removal(&[&number.to_string()], number)));
    }
    assert!(!two.queue.is_trusted(LayerId::Redis));
    two.redis_comes_back().await;
    assert_eq!(two.redis.value("k"), None);
}

#[tokio::test]
async fn promotion_is_queued_for_its_layers_only_and_never_replaces_a_write() {
    let two = Two::open(OPTIONS);
    let fill = |name: &str| {
        let mut turn = two.queue.turn(name.as_bytes());
        let ticket = turn.ticket();
        let queued = turn.fill(two.clock.now(), entry(name, "filled"), Lanes::of(LayerId::Redis));
        assert!(turn.is_current(ticket), "a promotion is no write");
        queued
    };
    two.set("written", "v");
    assert!(fill("k") && !fill("written"));
    two.redis_comes_back().await;
    assert_eq!(two.redis.value("k").as_deref(), Some("filled"));
    assert_eq!(two.disk.value("k"), None);
    assert_eq!(two.redis.value("written").as_deref(), Some("v"));
}

#[tokio::test]
async fn promotions_are_refused_from_half_full_on_and_give_way_first() {
    let options = QueueOptions { items_max: 64, ..OPTIONS };
    let two = Two::over(options, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::gated(0, 0));
    let filled = (0..64_u32).filter(|number| {
        let name = format!("f{number}");
        two.queue.turn(name.as_bytes()).fill(two.clock.now(), entry(&name, "v"), Lanes::of(LayerId::Redis))
    });
    assert_eq!(filled.count(), 33);
    // Those of its own shard give way to a write, so that some find room although the queue is full.
    let accepted = (0..400_u32).filter(|number| two.push(Change::Set(entry(&format!("k{number}"), "v")), None).is_ok());
    assert!(accepted.count() > 31);
    assert_eq!(two.queue.items(), 64);
}

#[tokio::test]
async fn flush_returns_once_every_layer_has_what_came_before() {
    let two = Two::over(OPTIONS, Scripted::gated_as(LayerId::Redis, 0, 0), Scripted::open());
    (0..2000).for_each(|number| two.set(&format!("k{number}"), "v"));
    eventually("the disk has all", || two.lane(LayerId::Disk).flushed == 2000).await;
    let soon = cx_within(&two.clock, Duration::from_millis(50));
    assert_eq!(two.queue.flush(&soon).await, Err(Unflushed { left: 2000 }));
    two.redis.write_gate.add_permits(99);
    two.queue.flush(&cx(&two.clock)).await.unwrap();
    assert_eq!(two.queue.items(), 0);
    two.queue.flush(&cx(&two.clock)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn flush_does_not_wait_for_a_redis_that_is_away() {
    let two = Two::without_redis(OPTIONS).await;
    two.set("k", "v");
    two.queue.flush(&cx(&two.clock)).await.unwrap();
    assert_eq!(two.disk.value("k").as_deref(), Some("v"));
}

/// A queue with room for a hundred writes, whose batches stand still.
pub(super) fn small(overflow: Overflow) -> Fixture {
    let (layer, clock) = (Scripted::gated(0, 0), Clock::manual(START));
    let options = QueueOptions { items_max: 100, overflow, ..OPTIONS };
    let queue = WriteQueue::open(options, vec![Arc::clone(&layer) as Arc<dyn Layer>], None, clock.clone());
    Fixture { queue, layer, clock }
}

/// One that is full.
pub(super) fn full(overflow: Overflow) -> Fixture {
    let f = small(overflow);
    (0..100).for_each(|number| f.set(&format!("k{number}"), "v"));
    f
}

#[tokio::test]
async fn full_queue_lets_values_wait_or_refuses_them_at_once_and_lets_removals_wait() {
    for (overflow, waits) in [(Overflow::Block, true), (Overflow::Reject, false)] {
        let f = full(overflow);
        let deadline = cx_within(&f.clock, Duration::from_millis(50)).deadline;
        let room = f.queue.room();
        assert_eq!(f.push(Change::Set(entry("new", "v")), None), Err(Full));
        let at_once = tokio::time::timeout(Duration::ZERO, room.for_value(deadline)).await;
        assert_eq!(at_once.is_err(), waits, "{overflow:?}");
        let room = f.queue.room();
        assert_eq!(f.push(Change::Remove(key("new")), None), Err(Full));
        f.layer.write_gate.add_permits(9);
        room.for_removal(cx(&f.clock).deadline).await.unwrap();
    }
}

#[tokio::test]
async fn oldest_values_give_way_and_no_older_value_comes_back() {
    let f = full(Overflow::DropOldest);
    let dropped = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&dropped);
    f.queue.on_drop(move |key| seen.lock().unwrap().push(String::from_utf8(key.to_vec()).unwrap()));
    (0..100).for_each(|number| f.layer.put(entry(&format!("k{number}"), "older")));
    let accepted =
        (0..50).filter(|number| f.push(Change::Set(entry(&format!("new{number}"), "v")), None).is_ok()).count();
    let dropped = dropped.lock().unwrap().clone();
    assert!(!dropped.is_empty() && accepted == dropped.len(), "{} for {accepted}", dropped.len());
    for key in &dropped {
        assert_eq!(f.pending(key), Some(None), "a miss, never the older value");
    }
    f.layer.write_gate.add_permits(99);
    f.drained().await;
    assert!(dropped.iter().all(|key| f.layer.value(key).is_none()));
    assert_eq!(f.queue.bytes(), 0);
    let count = f.queue.stats().extras.into_iter().find(|(name, _)| *name == "droppedOverflow");
    assert_eq!(count, Some(("droppedOverflow", dropped.len() as u64)));
}

mod by_hand;
mod doubt;
mod health;
mod lanes;
mod orders;
mod owed;
mod recovery;

use std::{ops::Deref, sync::atomic::Ordering, time::Duration};

use super::*;
use crate::{
    entry::Key,
    layer::{Change, Component, HealthState},
    testing::{START, Scripted, entry, eventually, key, text},
};

const OPTIONS: QueueOptions = QueueOptions { capacity_bytes: 1024 * 1024, items_max: 5000, overflow: Overflow::Block };

/// What clients do with a queue, each change in a turn of its own.
impl WriteQueue {
    fn push(&self, change: Change, receipt: Option<Arc<Receipt>>) -> Result<(), Full> {
        let key = change.key().to_vec();
        self.turn(&key).push(self.clock.now(), change, receipt)
    }

    fn set(&self, name: &str, value: &str) {
        self.push(Change::Set(entry(name, value)), None).unwrap();
    }

    fn remove(&self, name: &str) -> Arc<Receipt> {
        let receipt = Receipt::new(1);
        self.push(Change::Remove(key(name)), Some(Arc::clone(&receipt))).unwrap();
        receipt
    }

    fn pending(&self, name: &str) -> Pending {
        self.turn(name.as_bytes()).pending(name.as_bytes())
    }
}

struct Fixture {
    queue: Arc<WriteQueue>,
    layer: Arc<Scripted>,
    clock: Clock,
}

impl Fixture {
    fn over(layer: Arc<Scripted>) -> Self {
        let clock = Clock::manual(START);
        let queue = WriteQueue::open(OPTIONS, vec![Arc::clone(&layer) as Arc<dyn Layer>], None, clock.clone());
        Self { queue, layer, clock }
    }

    fn pending(&self, name: &str) -> Option<Option<String>> {
        match self.queue.pending(name) {
            Pending::Value(entry) => Some(Some(text(&entry))),
            Pending::Removed => Some(None),
            Pending::Unknown => None,
        }
    }

    async fn drained(&self) {
        eventually("the queue is empty", || self.queue.items() == 0).await;
    }
}

impl Deref for Fixture {
    type Target = WriteQueue;

    fn deref(&self) -> &WriteQueue {
        &self.queue
    }
}

#[test]
fn slots_are_charged_what_they_take() {
    // A table is at most 8/7 as large as its slots; each of two lines holds a reference.
    let bytes = size_of::<slot::Slot>() * 8 / 7 + 2 * size_of::<line::Ref>();
    assert!(bytes as u64 <= SLOT_OVERHEAD_BYTES, "{bytes}");
}

#[tokio::test]
async fn overwrites_of_one_key_take_one_slot_and_one_write() {
    let f = Fixture::over(Scripted::open());
    for number in 0..100 {
        f.set("k", &number.to_string());
    }
    assert_eq!(f.queue.items(), 1);
    f.drained().await;
    assert_eq!(f.layer.value("k").as_deref(), Some("99"));
    assert_eq!(f.layer.batches.lock().unwrap().len(), 1);
    assert_eq!(f.queue.bytes(), 0);
}

#[tokio::test]
async fn write_stays_visible_until_it_is_applied() {
    let f = Fixture::over(Scripted::gated(0, 0));
    f.set("k", "v");
    let receipt = f.remove("gone");
    eventually("a batch is under way", || f.queue.lanes[0].applying_since_ms() != NEVER_MS).await;
    assert_eq!(f.pending("k"), Some(Some("v".to_owned())));
    assert_eq!(f.pending("gone"), Some(None));
    f.layer.write_gate.add_permits(2);
    receipt.settled().await;
    f.drained().await;
    assert_eq!((f.pending("k"), f.pending("gone")), (None, None));
}

#[tokio::test]
async fn newer_write_during_a_batch_is_applied_after_it() {
    let f = Fixture::over(Scripted::gated(0, 0));
    f.set("k", "1");
    let first = f.remove("other");
    eventually("a batch is under way", || f.queue.lanes[0].applying_since_ms() != NEVER_MS).await;
    f.set("k", "2");
    let second = f.remove("k");
    f.set("k", "3");
    f.layer.write_gate.add_permits(1);
    first.settled().await;
    assert_eq!(f.layer.value("k").as_deref(), Some("1"));
    assert_eq!(f.pending("k"), Some(Some("3".to_owned())), "the newer write stays visible");
    f.layer.write_gate.add_permits(9);
    second.settled().await;
    f.drained().await;
    assert_eq!(f.layer.value("k").as_deref(), Some("3"));
    assert_eq!((f.queue.items(), f.queue.bytes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn lone_removal_does_not_wait_for_company() {
    let f = Fixture::over(Scripted::open());
    let started = tokio::time::Instant::now();
    f.remove("k").settled().await;
    assert!(started.elapsed() < LINGER);
}

#[tokio::test]
async fn removals_go_before_a_backlog_of_sets() {
    let f = Fixture::over(Scripted::gated(0, 0));
    for number in 0..4000 {
        f.set(&format!("k{number}"), "v");
    }
    let receipt = f.remove("late");
    f.layer.write_gate.add_permits(2);
    receipt.settled().await;
    assert!(f.queue.items() > 1000, "most sets still wait");
}

#[tokio::test(start_paused = true)]
async fn failing_layer_keeps_the_writes_and_gets_them_once_it_recovers() {
    let f = Fixture::over(Scripted::open());
    f.layer.failing.store(true, Ordering::SeqCst);
    f.set("k", "v");
    let receipt = f.remove("gone");
    eventually("it was tried twice", || f.queue.lanes()[0].failures >= 2).await;
    assert_eq!(f.pending("k"), Some(Some("v".to_owned())));
    let lane = f.queue.lanes()[0];
    assert_eq!((lane.flushed, lane.batches), (0, 0), "what failed counts as failed");
    f.queue.tick();
    f.clock.advance(Duration::from_secs(2));
    f.queue.tick();
    let health = f.queue.health();
    assert_eq!((health.state, health.reason), (HealthState::Degraded, "FlushFails"));
    f.layer.failing.store(false, Ordering::SeqCst);
    receipt.settled().await;
    f.drained().await;
    assert_eq!(f.layer.value("k").as_deref(), Some("v"));
    assert_eq!(f.queue.lanes()[0].flushed, 2);
}

#[tokio::test]
async fn bounds_hold_against_many_threads() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 0)));
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let f = &f;
            threads.spawn(move || {
                for number in 0..10_000 {
                    let _ = f.push(Change::Set(entry(&format!("{thread}-{number}"), "v")), None);
                    assert!(f.queue.items() <= OPTIONS.items_max + 4, "a refused write shows for a moment");
                }
            });
        }
    });
    assert_eq!(f.queue.items(), OPTIONS.items_max);
    let expected: u64 = f.queue.shards.iter().map(|shard| lock(shard).charged()).sum();
    assert_eq!(f.queue.bytes(), expected, "the account agrees with the slots");
}

#[tokio::test]
async fn account_is_even_after_any_mixture_of_writes() {
    let f = Fixture::over(Scripted::open());
    for round in 0..200_u32 {
        for number in 0..50_u32 {
            let name = format!("k{}", (round * 7 + number * 13) % 40);
            match (round + number) % 5 {
                0 => drop(f.remove(&name)),
                1 => f.set(&name, &"v".repeat(number as usize * 20)),
                _ => f.set(&name, "v"),
            }
        }
        if round % 50 == 49 {
            f.queue.clear(|| {}).settled().await;
        }
        tokio::task::yield_now().await;
    }
    f.drained().await;
    assert_eq!(f.queue.bytes(), 0);
}

#[tokio::test]
async fn age_is_that_of_the_oldest_write_not_on_disk() {
    let f = Fixture::over(Scripted::gated(0, 0));
    assert_eq!(f.queue.oldest_age(), Duration::ZERO);
    f.set("k", "v");
    f.clock.advance(Duration::from_secs(3));
    f.set("k", "newer");
    assert_eq!(f.queue.oldest_age(), Duration::from_secs(3));
    f.layer.write_gate.add_permits(9);
    f.drained().await;
    assert_eq!(f.queue.oldest_age(), Duration::ZERO);
}

#[tokio::test]
async fn ticket_is_spoilt_by_any_write_of_its_key_and_by_a_clear() {
    let f = Fixture::over(Scripted::open());
    let name: Key = key("k");
    let issue = || f.queue.turn(name.as_bytes()).ticket();
    let is_current = |ticket| f.queue.turn(name.as_bytes()).is_current(ticket);
    let ticket = issue();
    assert!(is_current(ticket));
    f.set("k", "v");
    assert!(!is_current(ticket));
    let ticket = issue();
    f.remove("k").settled().await;
    assert!(!is_current(ticket));
    let ticket = issue();
    f.queue.clear(|| {}).settled().await;
    assert!(!is_current(ticket));
}

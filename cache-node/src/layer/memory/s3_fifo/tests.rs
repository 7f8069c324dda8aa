use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    entry::EntryMeta,
    testing::{entry, text},
};

const CAPACITY: u64 = 1 << 20;

/// Nothing here is past a limit.
const FOREVER: u64 = 1 << 20;

fn held(engine: &S3Fifo, key: &str) -> Option<String> {
    engine.get(key.as_bytes(), |_| true).map(|entry| text(&entry))
}

fn put(engine: &S3Fifo, keys: impl Iterator<Item = impl AsRef<str>>) {
    for key in keys {
        assert!(!engine.set(&entry(key.as_ref(), "v"), FOREVER).refused);
    }
}

/// What all shards may use, and what is left to be drawn, is the capacity.
fn assert_accounts(engine: &S3Fifo) {
    let mut drawn = 0;
    for place in &engine.shards {
        let shard = place.read();
        assert!(shard.bytes() <= shard.allowance);
        drawn += shard.allowance;
    }
    let left = engine.room.draw(u64::from(u32::MAX));
    engine.room.give_back(left);
    assert_eq!(drawn + left, engine.capacity());
}

#[test]
fn entry_heavier_than_an_equal_share_is_held_if_it_fits_the_capacity() {
    let engine = S3Fifo::new(CAPACITY);
    assert!(engine.room.share() < CAPACITY / 2);
    for number in 0..20_000 {
        engine.set(&entry(&format!("small{number}"), "v"), FOREVER);
    }
    for size in [CAPACITY / 3, CAPACITY / 2, CAPACITY * 7 / 10] {
        for key in ["a", "b", "c"] {
            let large = Entry::new(key.as_bytes(), &vec![1; size as usize], EntryMeta::default());
            assert!(!engine.set(&large, FOREVER).refused, "{size}");
            assert!(engine.get(key.as_bytes(), |_| true).is_some(), "{size}");
            assert!(engine.bytes() <= CAPACITY);
        }
    }
    assert_accounts(&engine);
    assert!(engine.set(&entry("d", &"v".repeat(CAPACITY as usize)), FOREVER).refused);
    for number in 0..40_000 {
        engine.set(&entry(&format!("again{number}"), "v"), FOREVER);
    }
    assert!(engine.bytes() > CAPACITY * 9 / 10, "what the large ones had is of use again");
    assert_accounts(&engine);
}

#[test]
fn heavy_entry_costs_every_shard_a_little_and_none_all() {
    let engine = S3Fifo::new(16 << 20);
    for number in 0..200_000 {
        engine.set(&entry(&format!("small{number}"), "v"), FOREVER);
    }
    let before: Vec<u64> = engine.shards.iter().map(|place| place.read().bytes()).collect();
    assert!(!engine.set(&entry("large", &"v".repeat(2 << 20)), FOREVER).refused);
    for (place, before) in engine.shards.iter().zip(before) {
        let after = place.read().bytes();
        assert!(after > before / 2, "{before} B before, {after} B after");
    }
}

#[test]
fn shards_that_others_left_behind_get_their_share_back() {
    let engine = S3Fifo::new(CAPACITY);
    let poor = &engine.shards[0];
    let keys: Vec<String> = (0..100_000).map(|number| format!("k{number}")).collect();
    let (own, others): (Vec<_>, Vec<_>) =
        keys.iter().partition(|key| std::ptr::eq(engine.place(engine.hasher.hash_one(key.as_bytes())), poor));
    put(&engine, others.into_iter());
    assert!(engine.bytes() > CAPACITY * 95 / 100, "without want the others may have all");
    put(&engine, own.into_iter());
    let bytes = poor.read().bytes();
    assert!(bytes > engine.room.share() * 9 / 10, "{bytes}");
    assert_accounts(&engine);
}

#[test]
fn capacity_is_used_and_kept_by_random_writes_of_random_sizes() {
    let engine = S3Fifo::new(4 * CAPACITY);
    let mut random = StdRng::seed_from_u64(3);
    for round in 0..60_000 {
        let key = format!("k{}", random.random_range(0..20_000));
        let size = 1_usize << random.random_range(0..15);
        let value = vec![0; random.random_range(size / 2..=size)];
        engine.set(&Entry::new(key.as_bytes(), &value, EntryMeta::default()), FOREVER);
        if random.random_bool(0.05) {
            engine.remove(key.as_bytes());
        }
        if round % 1000 == 0 {
            let bytes = engine.bytes();
            assert!(bytes <= 4 * CAPACITY, "{bytes}");
            assert!(round < 20_000 || bytes > 4 * CAPACITY * 95 / 100, "{bytes} at {round}");
        }
    }
    assert_accounts(&engine);
}

#[test]
fn lowered_capacity_holds_at_once_and_a_raised_one_is_used() {
    let engine = S3Fifo::new(4 * CAPACITY);
    let fill = |from: usize| {
        put(&engine, (from..from + 60_000).map(|number| format!("k{number}")));
        engine.bytes()
    };
    assert!(fill(0) > 3 * CAPACITY);
    let evicted = engine.set_capacity(CAPACITY).evicted;
    assert!(evicted > 20_000 && engine.bytes() <= CAPACITY && engine.bytes() > CAPACITY / 2, "{evicted}");
    assert_accounts(&engine);
    assert!(fill(100_000) <= CAPACITY);
    assert_eq!(engine.set_capacity(8 * CAPACITY).evicted, 0);
    assert!(fill(200_000) > 4 * CAPACITY);
    assert_accounts(&engine);
}

#[test]
fn swept_and_cleared_room_is_free_for_all() {
    let engine = S3Fifo::new(CAPACITY);
    let fill =
        || (0..20_000).map(|number| engine.set(&entry(&format!("k{number}"), "v"), FOREVER).evicted).sum::<u64>();
    fill();
    let mut swept = 0;
    engine.sweep(&|entry| entry.key() != b"k19999", |_| swept += 1);
    assert!(swept > 5000 && engine.entries() == 1, "{swept}");
    assert_eq!(held(&engine, "k19999"), Some("v".to_owned()));
    assert_accounts(&engine);
    engine.clear();
    assert_eq!((engine.entries(), engine.bytes()), (0, 0));
    assert_accounts(&engine);
}

/// Four threads write, read, remove, sweep, clear and resize; every value names its key, and grows with every write of
/// it.
#[test]
fn threads_see_only_values_of_their_key_and_none_older_than_one_seen() {
    const KEYS: u64 = 64;
    let engine = S3Fifo::new(CAPACITY);
    let written: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let writer = |seed: u64| {
        let mut random = StdRng::seed_from_u64(seed);
        for number in 1_u64..2000 {
            // One writer a key, so that its order is known.
            let key = random.random_range(0..KEYS / 2) * 2 + seed;
            let mut value = vec![0; random.random_range(0..20_000)];
            value.splice(0..0, key.to_le_bytes().into_iter().chain(number.to_le_bytes()));
            engine.set(&Entry::new(&key.to_le_bytes(), &value, EntryMeta::default()), FOREVER);
            written[key as usize].store(number, Ordering::Release);
            if random.random_bool(0.1) {
                engine.remove(&key.to_le_bytes());
            }
        }
    };
    let reader = || {
        let mut random = StdRng::seed_from_u64(9);
        while !stop.load(Ordering::Relaxed) {
            let key = random.random_range(0..KEYS);
            let oldest = written[key as usize].load(Ordering::Acquire);
            if let Some(found) = engine.get(&key.to_le_bytes(), |_| true) {
                assert_eq!(found.value()[..8], key.to_le_bytes());
                assert!(u64::from_le_bytes(found.value()[8..16].try_into().unwrap()) >= oldest);
            }
        }
    };
    let keeper = || {
        for round in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            engine.sweep(&|entry| entry.value().len() % 7 == 0, |_| ());
            engine.set_capacity(CAPACITY / 4 + (round % 5) * CAPACITY / 8);
            if round % 50 == 0 {
                engine.clear();
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(reader);
        scope.spawn(keeper);
        let writers = [scope.spawn(|| writer(0)), scope.spawn(|| writer(1))];
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert_accounts(&engine);
    assert!(engine.bytes() <= engine.capacity());
}

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    entry::EntryMeta,
    testing::{entry, text},
};

fn shard(allowance: u64) -> Shard {
    Shard { allowance, ..Shard::new(RandomState::with_seeds(1, 2, 3, 4)) }
}

fn hash(shard: &Shard, key: &str) -> u64 {
    shard.hasher.hash_one(key.as_bytes())
}

/// As a writer does: makes room, then puts the entry in. Answers the keys that had to go.
fn set(shard: &mut Shard, entry: Entry) -> Vec<String> {
    let hash = shard.hasher.hash_one(entry.key());
    let mut gone = Vec::new();
    while shard.short_of(hash, &entry) > 0 {
        let evicted = shard.evict().expect("the entry alone fits");
        gone.push(String::from_utf8(evicted.entry.key().to_vec()).unwrap());
    }
    shard.put(hash, &entry).expect("room was made");
    gone
}

fn read(shard: &Shard, key: &str) -> bool {
    let found = shard.get(hash(shard, key), key.as_bytes());
    found.inspect(|entry| entry.marks().visit()).is_some()
}

/// A shard with room for twenty entries `e0` to `e19`, all in the small queue.
fn full() -> Shard {
    let mut shard = shard(20 * weight(&entry("e00", "v")));
    for number in 0..20 {
        assert!(set(&mut shard, entry(&format!("e{number:02}"), "v")).is_empty());
    }
    shard
}

#[test]
fn unread_entries_leave_in_the_order_in_which_they_came() {
    let mut shard = full();
    assert_eq!(set(&mut shard, entry("f00", "v")), ["e00"]);
    assert_eq!(set(&mut shard, entry("f01", "v")), ["e01"]);
}

#[test]
fn entry_that_was_read_twice_stays() {
    let mut shard = full();
    for key in ["e00", "e00", "e01", "e02", "e02", "e02"] {
        assert!(read(&shard, key));
    }
    assert_eq!(set(&mut shard, entry("f00", "v")), ["e01"], "one read is not enough");
    assert_eq!(set(&mut shard, entry("f01", "v")), ["e03"]);
    assert!(read(&shard, "e00") && read(&shard, "e02"));
}

#[test]
fn key_that_comes_back_soon_goes_to_the_main_queue() {
    let mut shard = full();
    set(&mut shard, entry("f00", "v"));
    assert_eq!((shard.small.len(), shard.main.len()), (20, 0));
    assert_eq!(set(&mut shard, entry("e00", "v")), ["e01"]);
    assert_eq!((shard.small.len(), shard.main.len()), (19, 1));
}

#[test]
fn scan_of_new_keys_does_not_push_out_what_is_read() {
    let mut shard = full();
    for number in 0..16 {
        assert!(read(&shard, &format!("e{number:02}")) && read(&shard, &format!("e{number:02}")));
    }
    for number in 0..1000 {
        set(&mut shard, entry(&format!("scan{number}"), ""));
    }
    let kept = (0..16).filter(|number| read(&shard, &format!("e{number:02}"))).count();
    assert!(kept >= 15, "{kept}");
}

#[test]
fn overwrite_keeps_place_and_visits() {
    let mut shard = full();
    assert!(read(&shard, "e00") && read(&shard, "e00"));
    assert!(set(&mut shard, entry("e00", "w")).is_empty());
    assert!(set(&mut shard, entry("e01", "w")).is_empty());
    assert_eq!(set(&mut shard, entry("f00", "v")), ["e01"]);
    assert_eq!(text(shard.get(hash(&shard, "e00"), b"e00").unwrap()), "w");
}

#[test]
fn one_eviction_spares_a_bounded_number_of_entries() {
    let mut shard = shard(u64::MAX);
    for number in 0..1000 {
        let key = format!("e{number}");
        set(&mut shard, entry(&key, "v"));
        assert!(read(&shard, &key) && read(&shard, &key));
    }
    assert_eq!(shard.evict().unwrap().entry.key(), format!("e{SPARED_MAX}").as_bytes());
}

#[test]
fn evicted_entry_tells_whether_anybody_had_read_it() {
    let mut shard = full();
    assert!(read(&shard, "e00"));
    assert_eq!([shard.evict().unwrap().unread, shard.evict().unwrap().unread], [false, true]);
}

#[test]
fn packing_keeps_entries_and_their_order_and_gives_memory_back() {
    let mut shard = shard(u64::MAX);
    for number in 0..2000 {
        set(&mut shard, entry(&format!("e{number:04}"), "v"));
    }
    for number in (0..2000).filter(|number| number % 10 != 0) {
        let key = format!("e{number:04}");
        shard.remove_if(hash(&shard, &key), key.as_bytes(), |_| true).unwrap();
    }
    let (bytes, places) = (shard.bytes(), shard.table.num_buckets());
    shard.pack();
    assert_eq!((shard.entries(), shard.bytes(), shard.small.len()), (200, bytes, 200));
    assert!(shard.table.num_buckets() < places / 4 && shard.small.capacity() <= 400);
    assert!(read(&shard, "e1990"));
    let order: Vec<_> = (0..3).map(|_| shard.evict().unwrap().entry).collect();
    assert_eq!(order.iter().map(Entry::key).collect::<Vec<_>>(), [b"e0000", b"e0010", b"e0020"]);
}

#[test]
fn keys_set_and_removed_in_turn_leave_no_trail() {
    let mut shard = shard(u64::MAX);
    for number in 0..100 {
        set(&mut shard, entry(&format!("e{number:02}"), "v"));
    }
    for number in 0..10_000 {
        let key = format!("e{:02}", number % 7);
        shard.remove_if(hash(&shard, &key), key.as_bytes(), |_| true).unwrap();
        set(&mut shard, entry(&key, "v"));
    }
    assert!(shard.small.len() + shard.main.len() <= 2 * 100 + PLACES_KEPT);
    let order: Vec<_> = (0..100).map(|_| shard.evict().unwrap().entry).collect();
    assert_eq!((order[0].key(), order[92].key()), (&b"e07"[..], &b"e99"[..]), "set anew is young again");
}

#[test]
fn entry_that_no_queue_knows_is_evicted_all_the_same() {
    let mut shard = full();
    shard.small.truncate(19);
    let gone: HashMap<Vec<u8>, ()> = (0..20).map(|_| (shard.evict().unwrap().entry.key().to_vec(), ())).collect();
    assert!(gone.len() == 20 && shard.evict().is_none() && shard.bytes() == 0);
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u16),
    Remove(u8),
    Read(u8),
    Evict,
    Pack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<u8>(), 0_u16..2000).prop_map(|(key, len)| Step::Set(key, len)),
        2 => any::<u8>().prop_map(Step::Remove),
        4 => any::<u8>().prop_map(Step::Read),
        1 => Just(Step::Evict),
        1 => Just(Step::Pack),
    ];
    prop::collection::vec(step, 0..600)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a map that holds everything: what the shard has is the newest value, what it lacks was removed or
    /// evicted, and its bytes are the sum of its entries.
    #[test]
    fn shard_never_serves_another_value_and_weighs_exactly(steps in steps()) {
        let mut shard = shard(40_000);
        let mut model: HashMap<Vec<u8>, Entry> = HashMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Set(key, len) => {
                    let mut value = vec![0; usize::from(len)];
                    value.extend_from_slice(&number.to_le_bytes());
                    let new = Entry::new(&[key], &value, EntryMeta::default());
                    let hash = shard.hasher.hash_one(&[key][..]);
                    while shard.short_of(hash, &new) > 0 {
                        prop_assert_eq!(shard.put(hash, &new).unwrap_err(), shard.short_of(hash, &new));
                        let gone = shard.evict().unwrap().entry;
                        prop_assert!(model.remove(gone.key()).is_some());
                    }
                    let old = shard.put(hash, &new).unwrap();
                    let known = model.insert(vec![key], new);
                    prop_assert_eq!(old.map(|old| old.value().to_vec()), known.map(|old| old.value().to_vec()));
                }
                Step::Remove(key) => {
                    let removed = shard.remove_if(shard.hasher.hash_one(&[key][..]), &[key], |_| true);
                    prop_assert_eq!(removed.is_some(), model.remove(&[key][..]).is_some());
                }
                Step::Read(key) => {
                    let found = shard.get(shard.hasher.hash_one(&[key][..]), &[key]);
                    found.iter().for_each(|entry| entry.marks().visit());
                    prop_assert_eq!(found.map(Entry::value), model.get(&[key][..]).map(Entry::value));
                }
                Step::Evict => {
                    let gone = shard.evict();
                    prop_assert_eq!(gone.is_some(), !model.is_empty());
                    gone.iter().for_each(|gone| drop(model.remove(gone.entry.key())));
                }
                Step::Pack => shard.pack(),
            }
            prop_assert_eq!(shard.entries(), model.len());
            prop_assert_eq!(shard.bytes(), model.values().map(weight).sum::<u64>());
            prop_assert!(shard.bytes() <= shard.allowance);
        }
    }
}

/// Keys asked for: seven of ten by Zipf 0.9 over 20 000, three from a scan that never comes back.
fn zipf_with_scan() -> Vec<u32> {
    let mut weights: Vec<f64> = (1..=20_000).map(|rank| f64::from(rank).powf(-0.9)).collect();
    for rank in 1..weights.len() {
        weights[rank] += weights[rank - 1];
    }
    let mut random = StdRng::seed_from_u64(7);
    let mut fresh = 1_000_000;
    let mut pick = || {
        if random.random_range(0..10) < 3 {
            fresh += 1;
            return fresh;
        }
        let point = random.random_range(0.0..weights[weights.len() - 1]);
        weights.partition_point(|weight| *weight < point) as u32
    };
    (0..60_000).map(|_| pick()).collect()
}

const HELD: usize = 1000;

fn hits_of_shard(trace: &[u32]) -> usize {
    let name = |key: u32| format!("{key:08}");
    let mut shard = shard(HELD as u64 * weight(&entry(&name(0), "v")));
    let mut ask = |key: &u32| {
        let hit = read(&shard, &name(*key));
        if !hit {
            set(&mut shard, entry(&name(*key), "v"));
        }
        hit
    };
    trace.iter().filter(|key| ask(key)).count()
}

/// Plain queues: a hit moves the key to the young end (LRU) or does not (FIFO).
fn hits_of_queue(trace: &[u32], moves: bool) -> usize {
    let mut held: HashMap<u32, usize> = HashMap::new();
    let mut queue: VecDeque<(u32, usize)> = VecDeque::new();
    let mut hits = 0;
    for (now, &key) in trace.iter().enumerate() {
        let hit = held.contains_key(&key);
        hits += usize::from(hit);
        if hit && !moves {
            continue;
        }
        held.insert(key, now);
        queue.push_back((key, now));
        while held.len() > HELD {
            let (oldest, since) = queue.pop_front().unwrap();
            if held.get(&oldest) == Some(&since) {
                held.remove(&oldest);
            }
        }
    }
    hits
}

#[test]
fn hit_ratio_beats_fifo_and_lru_where_scans_disturb() {
    let trace = zipf_with_scan();
    let (own, fifo, lru) = (hits_of_shard(&trace), hits_of_queue(&trace, false), hits_of_queue(&trace, true));
    assert!(own * 100 > lru * 115 && lru > fifo, "S3-FIFO {own}, FIFO {fifo}, LRU {lru}");
}

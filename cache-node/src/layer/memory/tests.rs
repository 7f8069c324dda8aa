use super::*;
use crate::testing::{START, entry, entry_until, text};

const POLICIES: [Policy; 2] = [Policy::S3Fifo, Policy::TinyLfu];

const OPTIONS: MemoryOptions = MemoryOptions {
    capacity_bytes: 1 << 20,
    policy: Policy::S3Fifo,
    max_ttl: Duration::from_secs(60),
    value_bytes_max: 16 * 1024,
};

fn open(policy: Policy) -> Memory {
    Memory::open(MemoryOptions { policy, ..OPTIONS }, Clock::manual(START))
}

fn extra(memory: &Memory, name: &str) -> u64 {
    memory.stats().extras.into_iter().find(|(known, _)| *known == name).unwrap().1
}

#[test]
fn entry_is_served_until_the_millisecond_of_its_expiry() {
    for policy in POLICIES {
        let memory = open(policy);
        memory.set(START, &entry_until("k", "v", UnixMillis(START.0 + 1000)));
        assert!(memory.get(UnixMillis(START.0 + 999), b"k").is_some());
        assert!(memory.get(UnixMillis(START.0 + 1000), b"k").is_none());
        let stats = memory.stats();
        assert_eq!((stats.hits, stats.misses), (1, 1), "{policy:?}");
    }
}

#[test]
fn copy_past_the_limit_of_the_layer_is_a_miss_and_can_be_promoted_again_with_its_own_expiry() {
    for policy in POLICIES {
        let memory = open(policy);
        let long = entry_until("k", "v", START.after(Duration::from_secs(600)));
        memory.set(START, &long);
        let later = START.after(OPTIONS.max_ttl);
        assert!(memory.get(later, b"k").is_none());
        memory.set(later, &long);
        assert_eq!(memory.get(later, b"k").unwrap().expires_at(), long.expires_at(), "{policy:?}");
    }
}

#[test]
fn overwritten_and_removed_blocks_are_freed() {
    for policy in POLICIES {
        let memory = open(policy);
        let first = entry("k", "first");
        memory.set(START, &first);
        assert!(first.holders() > 1);
        memory.set(START, &entry("k", "second"));
        memory.tick();
        assert_eq!(first.holders(), 1, "{policy:?}: neither key slot nor value slot holds the old block");
        let second = memory.get(START, b"k").unwrap();
        assert_eq!(text(&second), "second");
        memory.remove(b"k");
        memory.tick();
        assert_eq!(second.holders(), 1, "{policy:?}");
    }
}

#[test]
fn entry_too_large_for_the_engine_is_refused_and_its_older_copy_goes() {
    for policy in POLICIES {
        let memory = open(policy);
        memory.set(START, &entry("k", "small"));
        memory.set(START, &entry("k", &"v".repeat(2 << 20)));
        assert!(memory.get(START, b"k").is_none());
        assert_eq!(extra(&memory, "refusedTooLarge"), 1, "{policy:?}");
    }
}

#[test]
fn largest_permitted_value_is_held_however_many_cores_there_are() {
    let memory = open(Policy::S3Fifo);
    let large = "v".repeat(usize::try_from(OPTIONS.value_bytes_max).unwrap());
    for number in 0..8 {
        let key = format!("k{number}");
        memory.set(START, &entry(&key, &large));
        assert!(memory.get(START, key.as_bytes()).is_some());
    }
}

#[test]
fn capacity_is_kept_and_evictions_are_counted() {
    for policy in POLICIES {
        let memory = open(policy);
        for number in 0..50_000 {
            memory.set(START, &entry(&format!("k{number}"), "some value of a usual length"));
        }
        memory.tick();
        let stats = memory.stats();
        assert!(stats.bytes.unwrap() <= OPTIONS.capacity_bytes, "{policy:?}");
        assert!(stats.entries.unwrap() > 4000, "{policy:?}: {stats:?}");
        let evicted = memory.evictions();
        assert!((40_000..50_000).contains(&evicted), "{policy:?}: {evicted}");
    }
}

#[test]
fn overwrite_is_not_an_eviction() {
    let memory = open(Policy::S3Fifo);
    for number in 0..1000 {
        memory.set(START, &entry("k", &number.to_string()));
    }
    assert_eq!((memory.evictions(), memory.entries()), (0, 1));
}

#[test]
fn sweep_reclaims_only_what_has_expired() {
    for policy in POLICIES {
        let memory = open(policy);
        memory.set(START, &entry_until("dead", "v", UnixMillis(START.0 + 10)));
        memory.set(START, &entry_until("live", "v", UnixMillis(START.0 + 20)));
        memory.tick();
        memory.sweep(UnixMillis(START.0 + 10));
        memory.tick();
        assert_eq!((memory.entries(), extra(&memory, "expired")), (1, 1), "{policy:?}");
    }
}

#[test]
fn clear_forgets_everything() {
    for policy in POLICIES {
        let memory = open(policy);
        for number in 0..1000 {
            memory.set(START, &entry(&format!("k{number}"), "v"));
        }
        memory.clear();
        assert!((0..1000).all(|number| memory.get(START, format!("k{number}").as_bytes()).is_none()));
    }
}

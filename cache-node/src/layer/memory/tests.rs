use super::*;
use crate::{
    entry::EntryMeta,
    testing::{START, entry, entry_until, text},
};

const POLICIES: [Policy; 2] = [Policy::S3Fifo, Policy::TinyLfu];

const OPTIONS: MemoryOptions =
    MemoryOptions { capacity_bytes: 1 << 20, policy: Policy::S3Fifo, max_ttl: Duration::from_secs(60) };

fn open(policy: Policy) -> Memory {
    Memory::open(MemoryOptions { policy, ..OPTIONS }, Clock::manual(START))
}

fn extra(memory: &Memory, name: &str) -> u64 {
    memory.stats().extras.into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// Whether only the test holds the entry. moka lets go once no thread of the process is amid a call any more.
fn is_let_go(memory: &Memory, entry: &Entry) -> bool {
    (0..100_000).any(|_| {
        memory.tick();
        std::thread::yield_now();
        entry.holders() == 1
    })
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
        assert!(is_let_go(&memory, &first), "{policy:?}: an overwritten block is held");
        let second = memory.get(START, b"k").unwrap();
        assert_eq!(text(&second), "second");
        memory.remove(b"k");
        assert!(is_let_go(&memory, &second), "{policy:?}: a removed block is held");
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
fn large_value_is_held_if_it_fits_the_capacity() {
    let memory = open(Policy::S3Fifo);
    let large = "v".repeat(600 * 1024);
    for number in 0..8 {
        let key = format!("k{number}");
        memory.set(START, &entry(&key, &large));
        assert!(memory.get(START, key.as_bytes()).is_some());
    }
    assert_eq!(extra(&memory, "refusedTooLarge"), 0);
}

#[test]
fn copy_stays_for_its_stale_life_and_counts_as_a_miss_then() {
    for policy in POLICIES {
        let memory = open(policy);
        let expires_at = Some(UnixMillis(START.0 + 10));
        let meta = EntryMeta { expires_at, stale_until: Some(UnixMillis(START.0 + 20)), ..EntryMeta::default() };
        memory.set(START, &Entry::new(b"k", b"v", meta));
        let stale = memory.get(UnixMillis(START.0 + 19), b"k").unwrap();
        assert!(!stale.is_live(UnixMillis(START.0 + 19)));
        memory.tick();
        memory.sweep(UnixMillis(START.0 + 19), |_| false);
        assert!(memory.peek(UnixMillis(START.0 + 19), b"k").is_some(), "{policy:?}: the sweep leaves it");
        assert!(memory.get(UnixMillis(START.0 + 20), b"k").is_none());
        let stats = memory.stats();
        assert_eq!((stats.hits, stats.misses, stats.stale_hits), (0, 2, 1), "{policy:?}");
    }
}

#[test]
fn limit_of_the_layer_ends_a_stale_life_too() {
    for policy in POLICIES {
        let memory = open(policy);
        let meta = EntryMeta {
            expires_at: Some(UnixMillis(START.0 + 10)),
            stale_until: Some(START.after(Duration::from_secs(3600))),
            ..EntryMeta::default()
        };
        memory.set(START, &Entry::new(b"k", b"v", meta));
        assert!(memory.peek(START.after(OPTIONS.max_ttl), b"k").is_none(), "{policy:?}");
    }
}

#[test]
fn sweep_reclaims_what_is_called_dead_and_says_how_many() {
    for policy in POLICIES {
        let memory = open(policy);
        for number in 0..1000 {
            memory.set(START, &entry(&format!("k{number}"), if number % 4 == 0 { "dead" } else { "live" }));
        }
        memory.tick();
        assert_eq!(memory.sweep(START, |entry| entry.value() == b"dead"), 250, "{policy:?}");
        memory.tick();
        assert_eq!((memory.entries(), extra(&memory, "expired")), (750, 0), "{policy:?}");
    }
}

#[test]
fn value_that_came_during_a_sweep_stays() {
    let memory = open(Policy::S3Fifo);
    memory.set(START, &entry("k", "old"));
    let fresh = std::cell::Cell::new(false);
    // What was found dead is asked again under the lock; by then it is another entry.
    let swept = memory.sweep(START, |_| !fresh.replace(true));
    assert_eq!((swept, memory.entries()), (0, 1));
}

#[test]
fn capacity_can_be_lowered_and_raised_at_run_time() {
    let memory = open(Policy::S3Fifo);
    let fill = || (0..20_000).for_each(|number| memory.set(START, &entry(&format!("k{number}"), "v")));
    fill();
    let before = memory.evictions();
    memory.set_capacity(1 << 18).unwrap();
    let stats = memory.stats();
    assert!(stats.bytes.unwrap() <= 1 << 18 && stats.capacity_bytes == Some(1 << 18), "{stats:?}");
    assert!(memory.evictions() > before, "what had to go is counted");
    memory.set_capacity(1 << 21).unwrap();
    fill();
    assert!(memory.stats().bytes.unwrap() > 1 << 20);
}

#[test]
fn tiny_lfu_refuses_another_capacity_and_says_why() {
    let memory = open(Policy::TinyLfu);
    memory.set_capacity(OPTIONS.capacity_bytes).unwrap();
    let refusal = memory.set_capacity(1 << 18).unwrap_err();
    assert!(refusal.to_string().contains("restart"), "{refusal}");
    assert_eq!(memory.stats().capacity_bytes, Some(OPTIONS.capacity_bytes));
}

#[test]
fn evictions_are_told_apart_by_whether_anybody_had_read_the_entry() {
    let memory = open(Policy::S3Fifo);
    for number in 0..20_000 {
        let key = format!("k{number}");
        memory.set(START, &entry(&key, "v"));
        if number % 2 == 0 {
            memory.get(START, key.as_bytes());
        }
    }
    let (all, unread) = (memory.evictions(), extra(&memory, "evictionsUnread"));
    assert!(all > 5000 && (all * 4 / 10..=all * 6 / 10).contains(&unread), "{unread} of {all}");
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
        assert!(stats.entries.unwrap() > 3000, "{policy:?}: {stats:?}");
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
        memory.sweep(UnixMillis(START.0 + 10), |_| false);
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

//! TinyLFU by moka, for loads with scans, which its admission filter keeps out.
//!
//! moka postpones its bookkeeping: sizes lag and the capacity may be exceeded by its write log until
//! [`TinyLfu::tick`]. It fixes its capacity when it is built: its sketch and its segments are sized by it, and there is no
//! call that changes it (`Cache::policy` only tells it). Never use a moka below 0.12.16, which could grow without bound.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ahash::RandomState;
use moka::{notification::RemovalCause, ops::compute::Op, policy::EvictionPolicy, sync::Cache};

use super::{Admission, weight::tiny_lfu_weight};
use crate::entry::Entry;

/// The engine. Keys are their own allocation here: moka keeps the first key of an entry over all its overwrites, which
/// would keep the first block alive.
pub(super) struct TinyLfu {
    capacity_bytes: u64,
    cache: Cache<Box<[u8]>, Entry, RandomState>,
    evicted: Arc<AtomicU64>,
}

// === impl TinyLfu ===

impl TinyLfu {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let evicted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&evicted);
        let cache = Cache::builder()
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .max_capacity(capacity_bytes)
            .weigher(|_, entry: &Entry| u32::try_from(tiny_lfu_weight(entry)).unwrap_or(u32::MAX))
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build_with_hasher(RandomState::new());
        Self { capacity_bytes, cache, evicted }
    }

    #[inline]
    pub(super) fn get(&self, key: &[u8], keeps: impl Fn(&Entry) -> bool) -> Option<Entry> {
        self.cache.get(key).filter(keeps)
    }

    /// Holds the entry until `time`.
    pub(super) fn set(&self, entry: &Entry, time: u64) -> Admission {
        if tiny_lfu_weight(entry) > self.capacity_bytes {
            self.remove(entry.key());
            return Admission { refused: true, ..Admission::default() };
        }
        entry.marks().hold_until(time);
        self.cache.insert(entry.key().into(), entry.clone());
        // What it pushes out becomes known at the next tick.
        Admission::default()
    }

    pub(super) fn remove(&self, key: &[u8]) {
        self.cache.invalidate(key);
    }

    pub(super) fn clear(&self) {
        // Not `invalidate_all`: it goes by time stamps, and an entry written in the same tick may survive (moka #155).
        for (key, _) in &self.cache {
            self.cache.invalidate(&*key);
        }
        self.cache.run_pending_tasks();
    }

    /// Takes out what is `gone` and shows it.
    pub(super) fn sweep(&self, gone: &dyn Fn(&Entry) -> bool, mut swept: impl FnMut(&Entry)) {
        for (key, entry) in &self.cache {
            if !gone(&entry) {
                continue;
            }
            // Asked again under the key's lock: a fresh value may have come meanwhile.
            self.cache.entry_by_ref(&*key).and_compute_with(|current| match current {
                Some(current) if gone(current.value()) => {
                    swept(current.value());
                    Op::Remove
                }
                _ => Op::Nop,
            });
        }
    }

    /// Does postponed work; answers how many entries were evicted since the last tick.
    pub(super) fn tick(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.evicted.swap(0, Ordering::Relaxed)
    }

    pub(super) fn entries(&self) -> u64 {
        self.cache.entry_count()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weighted_size()
    }

    pub(super) const fn capacity(&self) -> u64 {
        self.capacity_bytes
    }
}

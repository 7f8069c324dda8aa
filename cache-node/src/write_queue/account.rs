//! What the queue holds and has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{NEVER_MS, QueueOptions};
use crate::clock::UnixMillis;

/// Slots and bytes in use, those of batches being written included.
#[derive(Default)]
pub(super) struct Used {
    pub(super) items: AtomicU64,
    pub(super) bytes: AtomicU64,
}

pub(super) struct Counts {
    pub(super) accepted: AtomicU64,
    pub(super) flushed: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) refused_full: AtomicU64,
    pub(super) lost_at_shutdown: AtomicU64,
    /// When the oldest write of the batch being applied was accepted.
    pub(super) applying_since_ms: AtomicU64,
    /// Since when writes have been refused again and again.
    pub(super) full_since_ms: AtomicU64,
    pub(super) refused_last_ms: AtomicU64,
}

// === impl Used ===

impl Used {
    /// Takes room for `charge` bytes, in exchange for the slot that is replaced, if any.
    pub(super) fn reserve(&self, options: &QueueOptions, replaced: Option<u64>, charge: u64) -> bool {
        let (freed, items) = replaced.map_or((0, 1), |freed| (freed, 0));
        if charge <= freed && items == 0 {
            self.bytes.fetch_sub(freed - charge, Ordering::Relaxed);
            return true;
        }
        let more = charge - freed.min(charge);
        let bytes = self.bytes.fetch_add(more, Ordering::Relaxed) + more;
        let items_now = self.items.fetch_add(items, Ordering::Relaxed) + items;
        if bytes <= options.capacity_bytes && items_now <= options.items_max {
            return true;
        }
        self.release(items, more);
        false
    }

    pub(super) fn release(&self, items: u64, bytes: u64) {
        self.items.fetch_sub(items, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn refuse(&self, now: UnixMillis) {
        self.refused_full.fetch_add(1, Ordering::Relaxed);
        self.refused_last_ms.store(now.0, Ordering::Relaxed);
        self.full_since_ms.fetch_min(now.0, Ordering::Relaxed);
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refused_full: AtomicU64::new(0),
            lost_at_shutdown: AtomicU64::new(0),
            applying_since_ms: AtomicU64::new(NEVER_MS),
            full_since_ms: AtomicU64::new(NEVER_MS),
            refused_last_ms: AtomicU64::new(0),
        }
    }
}

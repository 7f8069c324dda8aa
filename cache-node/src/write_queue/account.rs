//! What the queue holds and has done, in numbers.

use super::{NEVER_MS, QueueOptions, lanes::LANES_MAX};
use crate::{
    clock::UnixMillis,
    sync::atomic::{AtomicU64, Ordering},
};

/// Slots and bytes in use, those of batches under way included.
#[derive(Default)]
pub(super) struct Used {
    pub(super) items: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Slots whose value gave way to a newer one.
    pub(super) dropped: AtomicU64,
    /// For each lane, slots that readers do not see although the layer still has to forget their keys.
    pub(super) hidden: [AtomicU64; LANES_MAX],
}

pub(super) struct Counts {
    pub(super) accepted: AtomicU64,
    pub(super) recovered: AtomicU64,
    pub(super) refused_full: AtomicU64,
    pub(super) dropped_values: AtomicU64,
    pub(super) dropped_fills: AtomicU64,
    /// Since when writes have been refused again and again.
    pub(super) full_since_ms: AtomicU64,
    pub(super) refused_last_ms: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) stale_hits: AtomicU64,
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
        // The key that a dropped value leaves behind must not keep the newer one out; there may be as many again.
        let dropped = self.dropped.load(Ordering::Relaxed).min(options.items_max);
        if bytes <= options.capacity_bytes && items_now <= options.items_max + dropped {
            return true;
        }
        self.release(items, more);
        false
    }

    pub(super) fn release(&self, items: u64, bytes: u64) {
        self.items.fetch_sub(items, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether one more change of so many bytes would be taken.
    pub(super) fn has_room_for(&self, options: &QueueOptions, bytes: u64) -> bool {
        self.items.load(Ordering::Relaxed) < options.items_max
            && self.bytes.load(Ordering::Relaxed) + bytes <= options.capacity_bytes
    }

    /// Whether more than this share of the bounds is in use.
    pub(super) fn exceeds(&self, options: &QueueOptions, percent: u64) -> bool {
        self.items.load(Ordering::Relaxed) * 100 > options.items_max * percent
            || self.bytes.load(Ordering::Relaxed) * 100 > options.capacity_bytes * percent
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
            recovered: AtomicU64::new(0),
            refused_full: AtomicU64::new(0),
            dropped_values: AtomicU64::new(0),
            dropped_fills: AtomicU64::new(0),
            full_since_ms: AtomicU64::new(NEVER_MS),
            refused_last_ms: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stale_hits: AtomicU64::new(0),
        }
    }
}

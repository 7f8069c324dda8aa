//! Compaction drops what is dead, so that it does not fill the volume: entries past their life, entries whose tags were
//! removed, and removals that no entry can be old enough for.

use std::{
    ffi::CStr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rocksdb::{
    CompactionDecision,
    compaction_filter::CompactionFilter,
    compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory},
};

use super::{DiskOptions, IsRemoved, counts::Counts, removals};
use crate::{
    clock::{Clock, UnixMillis},
    entry::envelope::{self, Dates},
};

const ENTRIES_NAME: &CStr = c"tieredcache.dead-entries";
const TAGS_NAME: &CStr = c"tieredcache.old-removals";

/// Makes one filter per compaction: RocksDB runs several at once.
pub(super) struct DropDead {
    pub(super) clock: Clock,
    pub(super) max_ttl: Duration,
    pub(super) is_removed: IsRemoved,
    pub(super) counts: Arc<Counts>,
}

/// The filter of one compaction of entries.
pub(super) struct DeadEntries {
    pub(super) now: UnixMillis,
    pub(super) max_ttl: Duration,
    pub(super) is_removed: IsRemoved,
    pub(super) counts: Arc<Counts>,
}

/// The same for removals of tagged entries.
pub(super) struct DropOldRemovals {
    clock: Clock,
    kept: Duration,
}

pub(super) struct OldRemovals {
    now: UnixMillis,
    kept: Duration,
}

// === impl DropDead ===

impl DropDead {
    pub(super) fn new(options: &DiskOptions, clock: &Clock, counts: &Arc<Counts>) -> Self {
        Self {
            clock: clock.clone(),
            max_ttl: options.max_ttl,
            is_removed: Arc::clone(&options.is_removed),
            counts: Arc::clone(counts),
        }
    }
}

impl CompactionFilterFactory for DropDead {
    type Filter = DeadEntries;

    fn create(&mut self, _context: CompactionFilterContext) -> DeadEntries {
        DeadEntries {
            now: self.clock.now(),
            max_ttl: self.max_ttl,
            is_removed: Arc::clone(&self.is_removed),
            counts: Arc::clone(&self.counts),
        }
    }

    fn name(&self) -> &CStr {
        ENTRIES_NAME
    }
}

// === impl DeadEntries ===

impl CompactionFilter for DeadEntries {
    fn filter(&mut self, _level: u32, _key: &[u8], value: &[u8]) -> CompactionDecision {
        let dead = match envelope::outline(value) {
            Ok(outline) => {
                is_over(outline.dates, self.max_ttl, self.now)
                    || !outline.tags.is_empty() && (self.is_removed)(outline.tags, outline.position)
            }
            // Never served, so never missed.
            Err(_) => true,
        };
        if !dead {
            return CompactionDecision::Keep;
        }
        self.counts.reclaimed.fetch_add(1, Ordering::Relaxed);
        // Dropping only the newest version of a key is safe: RocksDB turns it into a deletion where older versions may
        // lie below.
        CompactionDecision::Remove
    }

    fn name(&self) -> &CStr {
        ENTRIES_NAME
    }
}

/// Whether the entry is past its own life, the stale one included, or past the time this layer keeps entries.
pub(super) fn is_over(dates: Dates, max_ttl: Duration, now: UnixMillis) -> bool {
    dates.useful_until().is_some_and(|at| at <= now) || dates.written_at.after(max_ttl) <= now
}

// === impl DropOldRemovals ===

impl DropOldRemovals {
    pub(super) fn new(options: &DiskOptions, clock: &Clock) -> Self {
        Self { clock: clock.clone(), kept: options.removals_kept }
    }
}

impl CompactionFilterFactory for DropOldRemovals {
    type Filter = OldRemovals;

    fn create(&mut self, _context: CompactionFilterContext) -> OldRemovals {
        OldRemovals { now: self.clock.now(), kept: self.kept }
    }

    fn name(&self) -> &CStr {
        TAGS_NAME
    }
}

impl CompactionFilter for OldRemovals {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        match removals::position(key, value) {
            Some(position) if removals::is_over(position, self.kept, self.now) => CompactionDecision::Remove,
            // A damaged one is kept, so that the next start finds it and trusts nothing.
            _ => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        TAGS_NAME
    }
}

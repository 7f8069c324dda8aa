//! Compaction drops what has expired, so that dead entries do not fill the volume.

use std::{ffi::CStr, time::Duration};

use rocksdb::{
    CompactionDecision,
    compaction_filter::CompactionFilter,
    compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory},
};

use crate::{
    clock::{Clock, UnixMillis},
    entry::envelope::{self, Dates},
};

const NAME: &CStr = c"tieredcache.expiry";

/// Makes one filter per compaction: RocksDB runs several at once.
pub(super) struct DropExpired {
    pub(super) clock: Clock,
    pub(super) max_ttl: Duration,
}

/// The filter of one compaction.
pub(super) struct Filter {
    pub(super) now: UnixMillis,
    pub(super) max_ttl: Duration,
}

impl CompactionFilterFactory for DropExpired {
    type Filter = Filter;

    fn create(&mut self, _context: CompactionFilterContext) -> Filter {
        Filter { now: self.clock.now(), max_ttl: self.max_ttl }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

impl CompactionFilter for Filter {
    fn filter(&mut self, _level: u32, _key: &[u8], value: &[u8]) -> CompactionDecision {
        match envelope::dates(value) {
            // Dropping only the newest version of a key is safe: RocksDB turns it into a deletion where older versions
            // may lie below.
            Ok(dates) if is_expired(dates, self.max_ttl, self.now) => CompactionDecision::Remove,
            Ok(_) => CompactionDecision::Keep,
            // Never served, so never missed.
            Err(_) => CompactionDecision::Remove,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

/// Whether the entry is past its own expiry or past the time this layer keeps entries.
pub(super) fn is_expired(dates: Dates, max_ttl: Duration, now: UnixMillis) -> bool {
    dates.expires_at.is_some_and(|at| at <= now) || dates.written_at.after(max_ttl) <= now
}

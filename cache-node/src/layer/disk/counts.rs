//! What the disk layer has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{admission::Refusal, statistics::Statistics};
use crate::layer::{ErrorKind, LayerError, Stats};

/// All counters of the layer.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) inline: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) not_written: [AtomicU64; Refusal::COUNT],
    /// Dead entries that compaction dropped.
    pub(super) reclaimed: AtomicU64,
    /// Times that a part of the entries was given up to make room.
    pub(super) trimmed: AtomicU64,
    pub(super) cold_starts: AtomicU64,
    pub(super) reopened: AtomicU64,
    pub(super) errors: [AtomicU64; ErrorKind::ALL.len()],
    /// What RocksDB counts itself, refreshed by the upkeep.
    pub(super) statistics: Statistics,
    /// Estimates, refreshed by the upkeep.
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) capacity_bytes: AtomicU64,
}

// === impl Counts ===

impl Counts {
    pub(super) fn error(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.not_written[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts, and logs damage: the first time, the second, the fourth …, so that a bad medium can not flood the log.
    pub(super) fn failed_read(&self, error: &LayerError) {
        let count = self.error(error.kind);
        if error.kind == ErrorKind::Corrupt && count.is_power_of_two() {
            tracing::warn!(%error, count, "what was read from disk is damaged; it counts as a miss");
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let errors = ErrorKind::ALL.map(|kind| (kind, count(&self.errors[kind as usize])));
        let (hits, misses) = (count(&self.hits), count(&self.misses));
        Stats {
            hits,
            misses,
            operations: hits + misses + count(&self.written) + count(&self.removed),
            errors: errors.into_iter().filter(|(_, count)| *count > 0).collect(),
            entries: Some(count(&self.entries)),
            bytes: Some(count(&self.bytes)),
            capacity_bytes: Some(count(&self.capacity_bytes)).filter(|bytes| *bytes > 0),
            extras: self.extras(),
            ..Stats::default()
        }
    }

    fn extras(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let not_written = |refusal: Refusal| count(&self.not_written[refusal as usize]);
        let mut extras = vec![
            ("readInline", count(&self.inline)),
            ("written", count(&self.written)),
            ("bytesWritten", count(&self.bytes_written)),
            ("removed", count(&self.removed)),
            ("reclaimed", count(&self.reclaimed)),
            ("trimmed", count(&self.trimmed)),
            ("notWrittenShortLived", not_written(Refusal::ShortLived)),
            ("notWrittenDiskPressure", not_written(Refusal::DiskPressure)),
            ("notWrittenFirstSeen", not_written(Refusal::FirstSeen)),
            ("notWrittenOverBudget", not_written(Refusal::OverBudget)),
            ("coldStarts", count(&self.cold_starts)),
            ("reopened", count(&self.reopened)),
        ];
        extras.extend(self.statistics.extras());
        extras
    }
}

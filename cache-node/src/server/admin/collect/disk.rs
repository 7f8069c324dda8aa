//! L3.

use super::{BYTES, CAPACITY, ENTRIES, ERRORS, EXPIRED, Export, Facts, HEALTH, counter, errors, extra, gauge};
use crate::{
    layer::LayerId,
    metrics::{Definition, Samples},
};

const ENTRIES_WRITTEN: Definition =
    counter("tieredcache_disk_entries_written_total", "Entries written to disk, overwrites included.", &[]);
const ENTRIES_REMOVED: Definition = counter(
    "tieredcache_disk_entries_removed_total",
    "Removals of entries written to disk, whether or not there was one.",
    &[],
);
const INLINE_READS: Definition = counter(
    "tieredcache_disk_inline_reads_total",
    "Reads answered from RocksDB's memory, without a thread of the disk's own.",
    &[],
);
const NOT_WRITTEN: Definition = counter(
    "tieredcache_disk_not_written_total",
    "Entries that were accepted and not written to disk: too little life left, the volume too full, not admitted yet, or the day's budget spent.",
    &["reason"],
);
const COLD_STARTS: Definition = counter(
    "tieredcache_disk_cold_starts_total",
    "Times that the database was replaced by an empty one: foreign, damaged or behind.",
    &[],
);
const REOPENED: Definition =
    counter("tieredcache_disk_reopened_total", "Times that the database was reopened because it refused writes.", &[]);
const TRIMS: Definition = counter(
    "tieredcache_disk_trims_total",
    "Times that a part of the entries was given up because they filled the volume.",
    &[],
);
const ENTRY_BYTES: Definition = counter(
    "tieredcache_disk_entry_bytes_total",
    "Bytes of entries written to disk, as disk.dailyWriteBudget counts them.",
    &[],
);
const BLOCK_CACHE: Definition = counter(
    "tieredcache_disk_block_cache_total",
    "Blocks that RocksDB looked for in its block cache, by whether they were there.",
    &["result"],
);
const CHANGE_BYTES: Definition =
    counter("tieredcache_disk_change_bytes_total", "Bytes of changes that RocksDB was given.", &[]);
const WRITTEN_BYTES: Definition = counter(
    "tieredcache_disk_written_bytes_total",
    "Bytes that RocksDB wrote to the volume, by what wrote them.",
    &["by"],
);
const COMPACTION_READ: Definition =
    counter("tieredcache_disk_compaction_read_bytes_total", "Bytes that compactions of RocksDB read.", &[]);
const STALLED: Definition = counter(
    "tieredcache_disk_stalled_seconds_total",
    "Time that writes waited for RocksDB to catch up with flushes and compactions.",
    &[],
);
const AMPLIFICATION: Definition = gauge(
    "tieredcache_disk_write_amplification",
    "Bytes written to the volume for each byte of changes, since the start.",
    &[],
);

pub(super) const DISK: Export = Export {
    name: LayerId::Disk.label(),
    definitions: &[
        HEALTH,
        ERRORS,
        ENTRIES,
        BYTES,
        CAPACITY,
        EXPIRED,
        ENTRIES_WRITTEN,
        ENTRIES_REMOVED,
        INLINE_READS,
        NOT_WRITTEN,
        COLD_STARTS,
        REOPENED,
        TRIMS,
        ENTRY_BYTES,
        BLOCK_CACHE,
        CHANGE_BYTES,
        WRITTEN_BYTES,
        COMPACTION_READ,
        STALLED,
        AMPLIFICATION,
    ],
    read: disk,
};

fn disk(Facts { stats, .. }: &Facts<'_>, samples: &mut Samples) {
    errors(samples, stats);
    samples.put(&ENTRIES_WRITTEN, &[], extra(stats, "written"));
    samples.put(&ENTRIES_REMOVED, &[], extra(stats, "removed"));
    samples.put(&INLINE_READS, &[], extra(stats, "readInline"));
    samples.put(&NOT_WRITTEN, &["short_lived"], extra(stats, "notWrittenShortLived"));
    samples.put(&NOT_WRITTEN, &["disk_pressure"], extra(stats, "notWrittenDiskPressure"));
    samples.put(&NOT_WRITTEN, &["admission"], extra(stats, "notWrittenFirstSeen"));
    samples.put(&NOT_WRITTEN, &["budget"], extra(stats, "notWrittenOverBudget"));
    samples.put(&EXPIRED, &[], extra(stats, "reclaimed"));
    samples.put(&COLD_STARTS, &[], extra(stats, "coldStarts"));
    samples.put(&REOPENED, &[], extra(stats, "reopened"));
    samples.put(&TRIMS, &[], extra(stats, "trimmed"));
    samples.put(&ENTRY_BYTES, &[], extra(stats, "bytesWritten"));
    samples.put(&BLOCK_CACHE, &["hit"], extra(stats, "blockCacheHits"));
    samples.put(&BLOCK_CACHE, &["miss"], extra(stats, "blockCacheMisses"));
    samples.put(&CHANGE_BYTES, &[], extra(stats, "changeBytes"));
    samples.put(&WRITTEN_BYTES, &["log"], extra(stats, "logBytes"));
    samples.put(&WRITTEN_BYTES, &["flush"], extra(stats, "flushBytes"));
    samples.put(&WRITTEN_BYTES, &["compaction"], extra(stats, "compactionWrittenBytes"));
    samples.put(&COMPACTION_READ, &[], extra(stats, "compactionReadBytes"));
    samples.put(&STALLED, &[], extra(stats, "stalledMicros") / 1e6);
    samples.put(&AMPLIFICATION, &[], extra(stats, "writeAmplificationPercent") / 100.0);
}

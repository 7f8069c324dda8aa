//! How RocksDB is set up for small values, point reads, no scans, and a fixed budget of memory.

use std::{fs, io, sync::Arc};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    WriteBufferManager, statistics::StatsLevel,
};
use rustix::process::{Pid, setpriority_process};

use super::{
    DiskOptions,
    counts::Counts,
    reclaim::{DropDead, DropOldRemovals},
};
use crate::clock::Clock;

/// Entries by key.
pub(super) const ENTRIES: &str = "entries";
/// Removals of tagged entries.
pub(super) const TAGS: &str = "tags";
/// Facts about the database: its stamp.
pub(super) const META: &str = "meta";

/// Values from this size on live in blob files, so that compaction does not copy them again and again.
const BLOB_BYTES_MIN: u64 = 4 * 1024;

/// Memtables of what is small, flushed early so that the log of all need not be kept for them.
const SMALL_BUFFER_BYTES: usize = 64 * 1024;

/// Open files; each costs memory for its table's metadata.
const OPEN_FILES_MAX: i32 = 1000;

/// Bounds the log that a start has to replay.
const WAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Files that nothing else compacts are rewritten after a day, so that what expired in them is dropped.
const COMPACT_AFTER_SECONDS: u64 = 24 * 3600;

/// What RocksDB calls its threads that compact.
const COMPACTORS: &str = "rocksdb:low";

/// How nice those are: on a processor that clients use up, compaction gets a tenth of it, and a command that comes while
/// it runs does not wait for the end of its turn. RocksDB itself offers 19, which is a seventieth: too little to keep up.
const COMPACTORS_NICE: i32 = 10;

/// The database as a whole.
pub(super) fn database(options: &DiskOptions, cache: &Cache) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    // A log that is cut off is replayed up to the cut, in order and without holes. That it was cut is found by the mark.
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_max_total_wal_size(WAL_BYTES_MAX);
    db.set_max_open_files(OPEN_FILES_MAX);
    db.set_max_background_jobs(2);
    // A quarter of the budget for memtables, charged to the block cache, so that both together keep it.
    let memtables = usize_of(options.memory_bytes / 4);
    db.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        memtables,
        false,
        cache.clone(),
    ));
    // Counters only: taking times would cost each read more than the read.
    db.enable_statistics();
    db.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    db.set_bytes_per_sync(1024 * 1024);
    db.set_log_level(LogLevel::Warn);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(1024 * 1024);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db.set_max_manifest_file_size(16 * 1024 * 1024);
    db
}

/// Its column families.
pub(super) fn families(
    options: &DiskOptions,
    cache: &Cache,
    clock: &Clock,
    counts: &Arc<Counts>,
) -> Vec<ColumnFamilyDescriptor> {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    // Index and filters count against the budget like everything else, and stay while they are used.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut entries = Options::default();
    entries.set_block_based_table_factory(&table);
    entries.set_write_buffer_size(usize_of(options.memory_bytes / 8));
    // Beside the compression of values, which is a setting: it packs keys, headers and all values below the threshold,
    // and leaves blocks alone that do not get smaller.
    entries.set_compression_type(DBCompressionType::Lz4);
    entries.set_enable_blob_files(true);
    entries.set_min_blob_size(BLOB_BYTES_MIN);
    entries.set_blob_compression_type(DBCompressionType::Lz4);
    entries.set_blob_cache(cache);
    entries.set_enable_blob_gc(true);
    entries.set_blob_gc_force_threshold(0.5);
    entries.set_compaction_filter_factory(DropDead::new(options, clock, counts));
    entries.set_ttl(COMPACT_AFTER_SECONDS);
    entries.set_periodic_compaction_seconds(COMPACT_AFTER_SECONDS);

    let mut tags = Options::default();
    tags.set_block_based_table_factory(&table);
    tags.set_write_buffer_size(SMALL_BUFFER_BYTES);
    tags.set_compaction_filter_factory(DropOldRemovals::new(options, clock));
    tags.set_ttl(COMPACT_AFTER_SECONDS);
    tags.set_periodic_compaction_seconds(COMPACT_AFTER_SECONDS);

    let mut meta = Options::default();
    meta.set_block_based_table_factory(&table);
    meta.set_write_buffer_size(SMALL_BUFFER_BYTES);

    vec![
        ColumnFamilyDescriptor::new(ENTRIES, entries),
        ColumnFamilyDescriptor::new(TAGS, tags),
        ColumnFamilyDescriptor::new(META, meta),
    ]
}

/// The cache for blocks, blobs and memtables.
pub(super) fn cache(options: &DiskOptions) -> Cache {
    // Zero lets RocksDB size the table of the cache by what it holds.
    Cache::new_hyper_clock_cache(usize_of(options.memory_bytes), 0)
}

/// Has the threads that compact make way for all others. They are there once a database is open.
///
/// # Errors
/// Of the system, if its threads can not be listed, or may not be made nicer.
pub(super) fn make_way() -> io::Result<()> {
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?;
        // It may have ended since it was listed.
        let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        let number = thread.file_name().to_str().and_then(|number| number.parse().ok()).and_then(Pid::from_raw);
        if name.starts_with(COMPACTORS) {
            setpriority_process(number, COMPACTORS_NICE)?;
        }
    }
    Ok(())
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

//! What the node accepts, field by field; both ends belong to the range. The operator must not write anything else.

use std::ops::RangeInclusive;

use super::{ByteSize, HumanDuration, hours, milliseconds, seconds};

const LIFE: RangeInclusive<HumanDuration> = seconds(1)..=hours(87_600);

/// Length in bytes of `cache.name`, `cache.uid` and `cache.node`.
pub const NAME_LEN: RangeInclusive<usize> = 1..=253;
/// `listen.threads`.
pub const THREADS: RangeInclusive<u16> = 0..=64;
/// `memory.capacity`.
pub const MEMORY_CAPACITY: RangeInclusive<ByteSize> = ByteSize::mebibytes(1)..=ByteSize::mebibytes(1 << 20);
/// `memory.maxTtl`.
pub const MEMORY_MAX_TTL: RangeInclusive<HumanDuration> = LIFE;
/// Number of `redis.endpoints`, unless Redis is disabled.
pub const REDIS_ENDPOINTS: RangeInclusive<usize> = 1..=16;
/// `redis.database`.
pub const REDIS_DATABASE: RangeInclusive<u16> = 0..=1023;
/// `redis.maxTtl`.
pub const REDIS_MAX_TTL: RangeInclusive<HumanDuration> = LIFE;
/// `redis.timeout`.
pub const REDIS_TIMEOUT: RangeInclusive<HumanDuration> = milliseconds(1)..=seconds(10);
/// `redis.connections`.
pub const REDIS_CONNECTIONS: RangeInclusive<u16> = 2..=64;
/// `redis.concurrency`.
pub const REDIS_CONCURRENCY: RangeInclusive<u16> = 1..=4096;
/// `backplane.maxStaleness`.
pub const MAX_STALENESS: RangeInclusive<HumanDuration> = seconds(1)..=hours(1);
/// `backplane.serveStaleFor`.
pub const SERVE_STALE_FOR: RangeInclusive<HumanDuration> = seconds(1)..=hours(24);
/// `backplane.logRecords`.
pub const LOG_RECORDS: RangeInclusive<u32> = 1_000..=100_000_000;
/// `disk.maxTtl`.
pub const DISK_MAX_TTL: RangeInclusive<HumanDuration> = LIFE;
/// `disk.memory`.
pub const DISK_MEMORY: RangeInclusive<ByteSize> = ByteSize::mebibytes(16)..=ByteSize::mebibytes(1 << 20);
/// `disk.minTtl`.
pub const DISK_MIN_TTL: RangeInclusive<HumanDuration> = seconds(0)..=hours(24);
/// `disk.dailyWriteBudget`, unless it is 0.
pub const DISK_WRITE_BUDGET: RangeInclusive<ByteSize> = ByteSize::mebibytes(1)..=ByteSize::mebibytes(1 << 30);
/// `compression.threshold`.
pub const COMPRESSION_THRESHOLD: RangeInclusive<ByteSize> = ByteSize(64)..=ByteSize::mebibytes(256);
/// `writeQueue.capacity`, which must also hold the largest entry.
pub const QUEUE_CAPACITY: RangeInclusive<ByteSize> = ByteSize::mebibytes(1)..=ByteSize::mebibytes(64 << 10);
/// `writeQueue.itemsMax`.
pub const QUEUE_ITEMS: RangeInclusive<u32> = 100..=10_000_000;
/// `tagIndex.removalsMax`.
pub const TAG_REMOVALS: RangeInclusive<u32> = 1_000..=100_000_000;
/// `freshness.ttlJitterPercent`.
pub const TTL_JITTER_PERCENT: RangeInclusive<u8> = 0..=50;
/// `freshness.softTimeout`.
pub const SOFT_TIMEOUT: RangeInclusive<HumanDuration> = milliseconds(0)..=seconds(10);
/// `freshness.refreshWindow`.
pub const REFRESH_WINDOW: RangeInclusive<HumanDuration> = milliseconds(10)..=hours(1);
/// `freshness.negativeTtl`.
pub const NEGATIVE_TTL: RangeInclusive<HumanDuration> = seconds(1)..=hours(24);
/// `limits.connectionsMax`.
pub const CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
/// `limits.valueBytesMax`.
pub const VALUE_BYTES: RangeInclusive<ByteSize> = ByteSize(1 << 10)..=ByteSize::mebibytes(256);
/// `limits.requestTimeout`.
pub const REQUEST_TIMEOUT: RangeInclusive<HumanDuration> = milliseconds(1)..=seconds(600);
/// `limits.partialRequestTimeout`.
pub const PARTIAL_REQUEST_TIMEOUT: RangeInclusive<HumanDuration> = seconds(1)..=hours(1);
/// `limits.trackedItemsMax`.
pub const TRACKED_ITEMS: RangeInclusive<u32> = 1_000..=100_000_000;
/// `slowLog.threshold`.
pub const SLOW_LOG_THRESHOLD: RangeInclusive<HumanDuration> = seconds(0)..=hours(1);
/// `slowLog.lengthMax`.
pub const SLOW_LOG_LENGTH: RangeInclusive<u32> = 0..=10_000;
/// `shutdown.drainTimeout`.
pub const DRAIN_TIMEOUT: RangeInclusive<HumanDuration> = seconds(0)..=hours(1);

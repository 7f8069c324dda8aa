//! How much memory one node needs: the sum that the schema checks against the limit, and that the operator uses as the
//! limit when none is given. One set of constants for both, so that the two agree.

use super::RedisMode;
use crate::{node_config::DiskMode, quantity::ByteSize};

/// Program, threads, connection buffers and requests in flight.
pub const PROCESS: ByteSize = ByteSize::mebibytes(128);
/// One part in so many of `memory.capacity` is added for what the allocator loses to fragmentation.
pub const FRAGMENTATION_DIVISOR: u64 = 8;
/// Block cache and memtables of RocksDB: the `disk.memory` that the operator writes into the node's configuration.
pub const ROCKSDB: ByteSize = ByteSize::mebibytes(64);

/// What a node is to hold in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// `memory.capacity`.
    pub capacity: ByteSize,
    /// `writeQueue.capacity`, which counts if there is a layer below memory.
    pub write_queue: ByteSize,
    /// `redis.mode`.
    pub redis: RedisMode,
    /// `disk.mode`.
    pub disk: DiskMode,
}

// === impl MemoryNeeds ===

impl MemoryNeeds {
    /// The least memory limit that such a node can live in.
    pub fn limit(&self) -> ByteSize {
        let below_memory = match (self.disk, self.redis) {
            (DiskMode::RocksDb, _) => ROCKSDB.0.saturating_add(self.write_queue.0),
            (DiskMode::Disabled, RedisMode::External | RedisMode::Managed) => self.write_queue.0,
            (DiskMode::Disabled, RedisMode::Disabled) => 0,
        };
        let memory = self.capacity.0.saturating_add(self.capacity.0 / FRAGMENTATION_DIVISOR);
        ByteSize(memory.saturating_add(PROCESS.0).saturating_add(below_memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_config;

    const ORDINARY: MemoryNeeds = MemoryNeeds {
        capacity: ByteSize::mebibytes(256),
        write_queue: ByteSize::mebibytes(64),
        redis: RedisMode::Disabled,
        disk: DiskMode::RocksDb,
    };

    #[test]
    fn need_is_capacity_an_eighth_of_it_and_the_other_parts() {
        assert_eq!(ORDINARY.limit(), ByteSize::mebibytes(256 + 32 + 128 + 64 + 64));
        let long_queue = MemoryNeeds { write_queue: ByteSize::mebibytes(100), ..ORDINARY };
        assert_eq!(long_queue.limit(), ByteSize::mebibytes(256 + 32 + 128 + 64 + 100));
        let without_disk = MemoryNeeds { disk: DiskMode::Disabled, ..ORDINARY };
        assert_eq!(without_disk.limit(), ByteSize::mebibytes(256 + 32 + 128));
        let with_redis = MemoryNeeds { redis: RedisMode::External, ..without_disk };
        assert_eq!(with_redis.limit(), ByteSize::mebibytes(256 + 32 + 128 + 64));
        assert_eq!(MemoryNeeds { redis: RedisMode::Managed, ..without_disk }.limit(), with_redis.limit());
    }

    #[test]
    fn parts_are_what_a_node_takes_by_default() {
        assert_eq!(ROCKSDB, node_config::Disk::default().memory);
        assert_eq!(ORDINARY.write_queue, node_config::WriteQueue::default().capacity);
    }

    #[test]
    fn an_absurd_capacity_does_not_wrap_around() {
        let absurd = ByteSize(u64::MAX);
        assert_eq!(MemoryNeeds { capacity: absurd, write_queue: absurd, ..ORDINARY }.limit(), absurd);
    }
}

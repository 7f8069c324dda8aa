//! How much memory one node needs: the sum that the schema checks against the limit, and that the operator uses as the
//! limit when none is given. One set of constants for both, so that the two agree.

use crate::{node_config::DiskMode, quantity::ByteSize};

/// Program, threads, connection buffers and requests in flight.
pub const PROCESS: ByteSize = ByteSize::mebibytes(128);
/// One part in so many of `memory.capacity` is added for what the allocator loses to fragmentation.
pub const FRAGMENTATION_DIVISOR: u64 = 8;
/// Block cache and memtables of RocksDB: the `disk.memory` that the operator writes into the node's configuration.
pub const ROCKSDB: ByteSize = ByteSize::mebibytes(64);
/// Capacity of the write queue: the `writeQueue.capacity` that the operator writes into the node's configuration.
pub const WRITE_QUEUE: ByteSize = ByteSize::mebibytes(64);

/// The least memory limit that a node with this memory capacity and disk mode can live in.
pub fn needed(capacity: ByteSize, mode: DiskMode) -> ByteSize {
    let below_memory = match mode {
        DiskMode::RocksDb => ROCKSDB.0 + WRITE_QUEUE.0,
        DiskMode::Disabled => 0,
    };
    let fixed = PROCESS.0 + below_memory;
    ByteSize(capacity.0.saturating_add(capacity.0 / FRAGMENTATION_DIVISOR).saturating_add(fixed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_config;

    #[test]
    fn need_is_capacity_an_eighth_of_it_and_the_fixed_parts() {
        assert_eq!(needed(ByteSize::mebibytes(256), DiskMode::RocksDb), ByteSize::mebibytes(256 + 32 + 128 + 128));
        assert_eq!(needed(ByteSize::mebibytes(256), DiskMode::Disabled), ByteSize::mebibytes(256 + 32 + 128));
    }

    #[test]
    fn parts_are_what_a_node_takes_by_default() {
        assert_eq!(ROCKSDB, node_config::Disk::default().memory);
        assert_eq!(WRITE_QUEUE, node_config::WriteQueue::default().capacity);
    }

    #[test]
    fn an_absurd_capacity_does_not_wrap_around() {
        assert_eq!(needed(ByteSize(u64::MAX), DiskMode::RocksDb), ByteSize(u64::MAX));
    }
}

//! What an entry weighs: the memory it takes, not the bytes it carries.

use crate::entry::Entry;

/// What the S3-FIFO engine takes for an entry besides its block: 10 to 21 B in the table, 4 to 8 B in the queues, 2 to 4 B
/// for the memory of evicted keys. Measured with one million entries of 116 bytes (`cargo bench --bench memory`).
pub const ENTRY_OVERHEAD_BYTES: u64 = 32;

/// What moka takes for an entry besides its block and the copy of its key. Measured likewise.
const TINY_LFU_OVERHEAD_BYTES: u64 = 240;

/// What an entry weighs in S3-FIFO.
pub(super) fn weight(entry: &Entry) -> u64 {
    allocated(entry.block_bytes()) + ENTRY_OVERHEAD_BYTES
}

/// What an entry weighs in TinyLFU.
pub(super) fn tiny_lfu_weight(entry: &Entry) -> u64 {
    allocated(entry.block_bytes()) + allocated(entry.key().len() as u64) + TINY_LFU_OVERHEAD_BYTES
}

/// Bytes that the allocator sets aside for a block: jemalloc's size classes, 16 B apart up to 128 and from there on
/// four to each doubling.
const fn allocated(bytes: u64) -> u64 {
    let spacing = if bytes <= 128 { 16 } else { 1 << ((bytes - 1).ilog2() - 2) };
    bytes.next_multiple_of(spacing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_charged_as_the_size_classes_of_the_allocator() {
        let classes =
            [16, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 16_384, 20_480, 24_576];
        for class in classes {
            assert_eq!(allocated(class), class);
        }
        assert_eq!([1, 33, 129, 148, 257, 16_385, 1 << 24].map(allocated), [16, 48, 160, 160, 320, 20_480, 1 << 24]);
        assert_eq!(allocated((1 << 24) + 1), 5 << 22);
    }
}

//! How large values are, as far as this node has met them: so many keys are read in one round trip that it neither takes
//! too many of them nor brings more bytes at once than there should be.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys of one round trip.
const KEYS_MAX: usize = 1024;

/// Bytes that the values of one round trip should not exceed: as many keys as find room if all values are as large as the
/// largest one of late.
const TRIP_BYTES: usize = 64 * 1024 * 1024;

/// Of values up to this size any number of keys may be read at once.
const SMALL_BYTES: usize = TRIP_BYTES / KEYS_MAX;

/// Stands for a size that is not known yet.
const UNKNOWN: usize = usize::MAX;

/// The largest value of late.
#[derive(Debug)]
pub(super) struct Values {
    value_bytes_max: usize,
    largest_bytes: AtomicUsize,
}

// === impl Values ===

impl Values {
    /// None read yet: every one may be as large as values can be.
    pub(super) const fn new(value_bytes_max: usize) -> Self {
        Self { value_bytes_max, largest_bytes: AtomicUsize::new(UNKNOWN) }
    }

    /// Keys of the next round trip.
    pub(super) fn keys_at_once(&self) -> usize {
        let largest_bytes = self.largest_bytes.load(Ordering::Relaxed).min(self.value_bytes_max);
        (TRIP_BYTES / largest_bytes.max(SMALL_BYTES)).clamp(1, KEYS_MAX)
    }

    /// A client brings a value of this size.
    #[inline]
    pub(super) fn met(&self, bytes: usize) {
        if bytes > SMALL_BYTES {
            self.largest_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    /// A round trip has brought values, the largest of this size. What was larger before counts half from now on, so that
    /// one large value does not slow down the readers of small ones for long.
    pub(super) fn read(&self, largest_bytes: Option<usize>) {
        let Some(largest_bytes) = largest_bytes else { return };
        let halved = |before| largest_bytes.max(if before == UNKNOWN { 0 } else { before / 2 });
        let _ = self.largest_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(halved(before)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn small_values_are_read_a_thousand_at_once_and_large_ones_as_many_as_there_is_room_for() {
        let values = Values::new(16 * MIB);
        values.met(MIB);
        values.read(None);
        assert_eq!(values.keys_at_once(), 4, "nobody knows what the others are like");
        values.read(Some(100));
        values.met(1000);
        assert_eq!(values.keys_at_once(), KEYS_MAX);
        values.met(16 * MIB);
        assert_eq!(values.keys_at_once(), 4);
        values.read(Some(16 * MIB));
        assert_eq!(values.keys_at_once(), 4);
        let keys: Vec<usize> = std::iter::repeat_with(|| {
            values.read(Some(100));
            values.keys_at_once()
        })
        .take(9)
        .collect();
        assert_eq!(keys, [8, 16, 32, 64, 128, 256, 512, KEYS_MAX, KEYS_MAX], "twice as many with each round trip");
    }
}

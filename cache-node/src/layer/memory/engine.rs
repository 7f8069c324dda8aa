//! The two engines behind one interface: an enum, because the set is closed and the call is hot.

use super::{Admission, FixedCapacity, MemoryOptions, Policy, s3_fifo::S3Fifo, tiny_lfu::TinyLfu};
use crate::entry::Entry;

/// What holds the entries and chooses which of them stay.
pub(super) enum Engine {
    S3Fifo(S3Fifo),
    TinyLfu(TinyLfu),
}

// === impl Engine ===

impl Engine {
    pub(super) fn new(options: MemoryOptions) -> Self {
        match options.policy {
            Policy::S3Fifo => Self::S3Fifo(S3Fifo::new(options.capacity_bytes)),
            Policy::TinyLfu => Self::TinyLfu(TinyLfu::new(options.capacity_bytes)),
        }
    }

    /// The entry of `key`, if it is one to be kept.
    #[inline]
    pub(super) fn get(&self, key: &[u8], keeps: impl Fn(&Entry) -> bool) -> Option<Entry> {
        match self {
            Self::S3Fifo(engine) => engine.get(key, keeps),
            Self::TinyLfu(engine) => engine.get(key, keeps),
        }
    }

    /// Holds the entry until that time.
    pub(super) fn set(&self, entry: &Entry, until: u64) -> Admission {
        match self {
            Self::S3Fifo(engine) => engine.set(entry, until),
            Self::TinyLfu(engine) => engine.set(entry, until),
        }
    }

    pub(super) fn remove(&self, key: &[u8]) {
        match self {
            Self::S3Fifo(engine) => engine.remove(key),
            Self::TinyLfu(engine) => engine.remove(key),
        }
    }

    pub(super) fn clear(&self) {
        match self {
            Self::S3Fifo(engine) => engine.clear(),
            Self::TinyLfu(engine) => engine.clear(),
        }
    }

    /// Takes out what is `gone` and shows it, without holding a lock for long.
    pub(super) fn sweep(&self, gone: &dyn Fn(&Entry) -> bool, swept: impl FnMut(&Entry)) {
        match self {
            Self::S3Fifo(engine) => engine.sweep(gone, swept),
            Self::TinyLfu(engine) => engine.sweep(gone, swept),
        }
    }

    pub(super) fn set_capacity(&self, bytes: u64) -> Result<Admission, FixedCapacity> {
        match self {
            Self::S3Fifo(engine) => Ok(engine.set_capacity(bytes)),
            Self::TinyLfu(engine) if engine.capacity() == bytes => Ok(Admission::default()),
            Self::TinyLfu(_) => Err(FixedCapacity),
        }
    }

    /// Does postponed work; answers how many entries that evicted.
    pub(super) fn tick(&self) -> u64 {
        match self {
            Self::S3Fifo(_) => 0,
            Self::TinyLfu(engine) => engine.tick(),
        }
    }

    pub(super) fn entries(&self) -> u64 {
        match self {
            Self::S3Fifo(engine) => engine.entries(),
            Self::TinyLfu(engine) => engine.entries(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::S3Fifo(engine) => engine.bytes(),
            Self::TinyLfu(engine) => engine.bytes(),
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        match self {
            Self::S3Fifo(engine) => engine.capacity(),
            Self::TinyLfu(engine) => engine.capacity(),
        }
    }
}

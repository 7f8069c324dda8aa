//! What tests look at inside a database, and do to it.

use rocksdb::IteratorMode;

use super::{NEWEST, Store, entries, meta, tags};

impl Store {
    /// Compacts everything.
    pub(in super::super) fn compact(&self) {
        let mut all = rocksdb::CompactOptions::default();
        all.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        for family in [entries(&self.db), tags(&self.db)] {
            self.db.flush_cf(family).unwrap();
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &all);
        }
    }

    /// How many records the family has, dead or alive.
    pub(in super::super) fn records(&self, family: &str) -> usize {
        self.db.iterator_cf(self.db.cf_handle(family).unwrap(), IteratorMode::Start).count()
    }

    /// Gives all removals by tag this value.
    pub(in super::super) fn overwrite_removals(&self, value: &[u8]) {
        for record in self.db.iterator_cf(tags(&self.db), IteratorMode::Start) {
            self.db.put_cf(tags(&self.db), record.unwrap().0, value).unwrap();
        }
    }

    /// Writes this in the place of an entry.
    pub(in super::super) fn overwrite_entry(&self, key: &[u8], value: &[u8]) {
        self.db.put_cf(entries(&self.db), key, value).unwrap();
    }

    /// Writes this in the place of the newest position.
    pub(in super::super) fn overwrite_newest_position(&self, value: &[u8]) {
        self.db.put_cf(meta(&self.db), NEWEST, value).unwrap();
    }

    /// Memory of block cache and memtables. The memtables are charged to the cache.
    pub(in super::super) fn memory_bytes(&self) -> u64 {
        self.number(rocksdb::properties::BLOCK_CACHE_USAGE)
    }
}

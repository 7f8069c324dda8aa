//! How a database changes: batches, removals by tag, ranges.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use rocksdb::WriteBatch;

use super::{CURSOR, Found, NEWEST, Store, entries, meta, tags};
use crate::{
    clock::UnixMillis,
    entry::{Entry, KEY_BYTES_MAX, Position},
    layer::{
        Change, LayerError,
        disk::{
            error::{damaged_removal, from_rocksdb},
            removals,
            tuning::ENTRIES,
        },
    },
};

/// What became of a batch of changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Applied {
    /// Entries written.
    pub(in super::super) written: u64,
    /// Their bytes, keys and envelopes.
    pub(in super::super) bytes: u64,
    /// Keys and tags removed, those of entries that were not admitted included.
    pub(in super::super) removed: u64,
}

// === impl Store ===

impl Store {
    /// Writes the changes as one batch. A set that is not admitted removes the older copy.
    pub(in super::super) fn apply(
        &self,
        now: UnixMillis,
        changes: &[Change],
        admit: impl Fn(&Entry) -> bool,
    ) -> Result<Applied, LayerError> {
        let family = entries(&self.db);
        let mut batch = WriteBatch::default();
        let mut envelope = Vec::new();
        let mut tag_positions = BTreeMap::new();
        let mut applied = Applied::default();
        for (place, change) in changes.iter().enumerate() {
            match change {
                Change::Fill(entry) if !self.may_fill(now, entry, &changes[..place]) => {}
                Change::Set(entry) | Change::Again(entry, _) | Change::Fill(entry) if admit(entry) => {
                    self.codec.encode(entry, now, &mut envelope);
                    batch.put_cf(family, entry.key(), &envelope);
                    applied.written += 1;
                    applied.bytes += (entry.key().len() + envelope.len()) as u64;
                }
                // What may have been there before is dead, by `may_fill`.
                Change::Fill(_) => {}
                Change::Set(_) | Change::Again(..) | Change::Remove(_) => {
                    batch.delete_cf(family, change.key());
                    applied.removed += 1;
                }
                Change::Follow(cursor) => batch.put_cf(meta(&self.db), CURSOR, cursor.to_text()),
                Change::RemoveTagged(removal) => {
                    for key in removals::keys(removal) {
                        let position = tag_positions.entry(key).or_insert(Position::NONE);
                        *position = removal.position.max(*position);
                    }
                }
            }
        }
        applied.removed += tag_positions.len() as u64;
        self.remove_tagged(tag_positions, &mut batch)?;
        let newest = changes.iter().map(Change::position).max().filter(|newest| *newest > self.newest_position());
        if let Some(newest) = newest {
            batch.put_cf(meta(&self.db), NEWEST, removals::value(NEWEST, newest));
        }
        self.db.write_opt(batch, &self.write).map_err(|error| from_rocksdb("writing", &error))?;
        if let Some(newest) = newest {
            self.newest.store(newest.to_bits(), Ordering::Release);
        }
        self.mark(false, false)?;
        Ok(applied)
    }

    /// Whether an entry from another layer has a place: there is no live copy, and no earlier change of the batch is
    /// about its key.
    fn may_fill(&self, now: UnixMillis, entry: &Entry, earlier: &[Change]) -> bool {
        let live = matches!(self.get(now, entry.key()), Ok(Found::Entry(_)));
        !live && earlier.iter().all(|change| change.key() != entry.key())
    }

    /// Notes removals of tagged entries, each at its greatest position.
    fn remove_tagged(&self, positions: BTreeMap<Vec<u8>, Position>, batch: &mut WriteBatch) -> Result<(), LayerError> {
        let family = tags(&self.db);
        for (key, position) in positions {
            let known =
                self.db.get_cf(family, &key).map_err(|error| from_rocksdb("reading a removal by tag", &error))?;
            let known = known.map(|value| removals::position(&key, &value).ok_or_else(damaged_removal)).transpose()?;
            if known.is_none_or(|known| known < position) {
                batch.put_cf(family, &key, removals::value(&key, position));
            }
        }
        Ok(())
    }

    /// Removes all entries. The removals by tag stay: another layer may hold older entries still.
    pub(in super::super) fn clear(&self) -> Result<(), LayerError> {
        // Longer than any key, so above all of them.
        self.remove_range(&[], &[0xff; KEY_BYTES_MAX + 1])
    }

    /// Removes the entries of one file of the lowest level, which holds most of them, and all others between its first
    /// and last key; all entries if there is no such file. `any` chooses the file.
    pub(in super::super) fn trim(&self, any: u64) -> Result<(), LayerError> {
        let files = self.db.live_files().map_err(|error| from_rocksdb("listing files", &error))?;
        let files: Vec<_> = files.into_iter().filter(|file| file.column_family_name == ENTRIES).collect();
        let lowest = files.iter().map(|file| file.level).max().filter(|level| *level > 0);
        let candidates: Vec<_> = files.iter().filter(|file| Some(file.level) == lowest).collect();
        let chosen = candidates.get(usize::try_from(any % candidates.len().max(1) as u64).unwrap_or(0));
        let range = chosen.and_then(|file| Some((file.start_key.clone()?, file.end_key.clone()?)));
        let Some((first, last)) = range else { return self.clear() };
        // The smallest key above the last one.
        let above = [&last[..], &[0]].concat();
        self.remove_range(&first, &above)?;
        // What the range had in other levels still takes its room.
        self.db.compact_range_cf(entries(&self.db), Some(first), Some(above));
        Ok(())
    }

    /// Removes a range: one tombstone over all its keys, then the files below it.
    fn remove_range(&self, first: &[u8], above: &[u8]) -> Result<(), LayerError> {
        let family = entries(&self.db);
        self.db
            .delete_range_cf_opt(family, first, above, &self.write)
            .map_err(|error| from_rocksdb("removing a range", &error))?;
        self.mark(false, false)?;
        // From here on it is only about space.
        let reclaimed = self.db.flush_cf(family).and_then(|()| self.db.delete_file_in_range_cf(family, first, above));
        if let Err(error) = reclaimed {
            tracing::warn!(%error, "space of removed entries is reclaimed later, by compaction");
        }
        Ok(())
    }
}

//! One open database. All calls block, except those that only ask the block cache.

use std::{io, time::Duration};

use rocksdb::{
    CStrLike, ColumnFamily, DB, DBPinnableSlice, FlushOptions, ReadOptions, ReadTier, WriteBatch, WriteOptions,
    properties::{ESTIMATE_NUM_KEYS, LIVE_SST_FILES_SIZE},
};

use super::{
    DiskOptions,
    expiry::is_expired,
    files::{Files, Mark, boot_id},
    tuning::{self, ENTRIES, META},
};
use crate::{
    clock::{Clock, UnixMillis},
    entry::{
        Entry, KEY_BYTES_MAX, Key,
        envelope::{self, Codec},
    },
    layer::{Change, ErrorKind, LayerError, LayerId},
};

/// Key of the stamp in the column family `meta`.
const STAMP: &[u8] = b"stamp";

const LIVE_BLOB_FILES_SIZE: &str = "rocksdb.live-blob-file-size";

/// Version of the layout of keys and column families.
const LAYOUT: u8 = 1;

/// An open database.
pub(super) struct Store {
    db: DB,
    files: Files,
    boot: [u8; 36],
    max_ttl: Duration,
    cached_only: ReadOptions,
    write: WriteOptions,
}

/// What the database has under a key.
#[derive(Debug)]
pub(super) enum Found {
    Entry(Entry),
    /// There is a copy, past its life.
    Expired,
    Nothing,
}

/// What can be said about a key without going to the disk.
pub(super) enum Cached {
    Known(Result<Found, LayerError>),
    Unknown,
}

// === impl Store: open and close ===

impl Store {
    /// Opens the database of the folder; an empty one, with the reason, if what is there can not be trusted.
    pub(super) fn open(options: &DiskOptions, clock: &Clock) -> Result<(Self, Option<String>), LayerError> {
        let files = Files::open(&options.path).map_err(|error| from_io("opening the folder", &error))?;
        let boot = boot_id().map_err(|error| from_io("reading the boot id", &error))?;
        if !files.database().exists() {
            // Nothing stored, nothing lost.
            return Ok((Self::create(options, clock, files, boot)?, None));
        }
        let why = match Self::open_warm(options, clock, &files, boot) {
            Ok(db) => return Ok((Self::over(db, options, files, boot)?, None)),
            Err(why) => why,
        };
        files.move_aside().map_err(|error| from_io("moving the database aside", &error))?;
        Ok((Self::create(options, clock, files, boot)?, Some(why)))
    }

    /// Opens what is there, or says why it can not be trusted.
    fn open_warm(options: &DiskOptions, clock: &Clock, files: &Files, boot: [u8; 36]) -> Result<DB, String> {
        let mark = files.read_mark().ok_or("there is no intact mark of the last write")?;
        if !mark.closed && mark.boot != boot {
            return Err("the machine went down before the database was closed; unsynced writes may be lost".to_owned());
        }
        let db = open_db(options, clock, files).map_err(|error| format!("it does not open: {error}"))?;
        let sequence = db.latest_sequence_number();
        if sequence < mark.sequence {
            return Err(format!("its log ends at write {sequence}, but write {} had been made", mark.sequence));
        }
        let expected = stamp(options);
        match db.get_cf(meta(&db), STAMP) {
            Ok(Some(found)) if found == expected => Ok(db),
            Ok(Some(found)) => Err(format!(
                "it belongs to {}, not to {}",
                String::from_utf8_lossy(&found).escape_debug(),
                String::from_utf8_lossy(&expected).escape_debug()
            )),
            Ok(None) => Err("it has no stamp".to_owned()),
            Err(error) => Err(format!("its stamp can not be read: {error}")),
        }
    }

    fn create(options: &DiskOptions, clock: &Clock, files: Files, boot: [u8; 36]) -> Result<Self, LayerError> {
        let db = match open_db(options, clock, &files).map_err(|error| from_rocksdb("creating the database", &error)) {
            Err(error) if error.kind == ErrorKind::Full => {
                // What was put aside takes the room.
                files.drop_aside().map_err(|error| from_io("dropping the old database", &error))?;
                open_db(options, clock, &files).map_err(|error| from_rocksdb("creating the database", &error))?
            }
            outcome => outcome?,
        };
        db.put_cf(meta(&db), STAMP, stamp(options)).map_err(|error| from_rocksdb("stamping", &error))?;
        // The stamp must not keep the log alive that holds it.
        db.flush_cf(meta(&db)).map_err(|error| from_rocksdb("stamping", &error))?;
        Self::over(db, options, files, boot)
    }

    fn over(db: DB, options: &DiskOptions, files: Files, boot: [u8; 36]) -> Result<Self, LayerError> {
        let mut cached_only = ReadOptions::default();
        cached_only.set_read_tier(ReadTier::BlockCache);
        let store = Self { db, files, boot, max_ttl: options.max_ttl, cached_only, write: WriteOptions::default() };
        // Synced before the first write: after a power cut nobody must believe the mark of an earlier close.
        store.mark(false, true)?;
        Ok(store)
    }

    /// Brings everything to the medium and closes the database. No reader may be left.
    pub(super) fn close(self) -> Result<(), LayerError> {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        let flushed = self.db.flush_cfs_opt(&[entries(&self.db), meta(&self.db)], &flush);
        let marked = flushed.map_err(|error| from_rocksdb("flushing", &error)).and_then(|()| self.mark(true, true));
        self.db.cancel_all_background_work(true);
        marked
    }

    /// Closes the database and puts it aside.
    pub(super) fn discard(self) -> Result<(), LayerError> {
        let Self { db, files, .. } = self;
        db.cancel_all_background_work(true);
        drop(db);
        files.move_aside().map_err(|error| from_io("moving the database aside", &error))
    }

    fn mark(&self, closed: bool, sync: bool) -> Result<(), LayerError> {
        let mark = Mark { sequence: self.db.latest_sequence_number(), boot: self.boot, closed };
        self.files.write_mark(mark, sync).map_err(|error| from_io("noting the last write", &error))
    }
}

// === impl Store: read ===

impl Store {
    /// What the memtables and the block cache say.
    pub(super) fn get_cached(&self, now: UnixMillis, key: &[u8]) -> Cached {
        cached(self.db.get_pinned_cf_opt(entries(&self.db), key, &self.cached_only), |found| self.read(now, key, found))
    }

    pub(super) fn get(&self, now: UnixMillis, key: &[u8]) -> Result<Found, LayerError> {
        self.read(now, key, self.db.get_pinned_cf(entries(&self.db), key))
    }

    pub(super) fn get_cached_many(&self, now: UnixMillis, keys: &[Key]) -> Vec<Cached> {
        let bytes = keys.iter().map(Key::as_bytes);
        let found = self.db.batched_multi_get_cf_opt(entries(&self.db), bytes, false, &self.cached_only);
        keys.iter()
            .zip(found)
            .map(|(key, found)| cached(found, |found| self.read(now, key.as_bytes(), found)))
            .collect()
    }

    pub(super) fn get_many(&self, now: UnixMillis, keys: &[Key]) -> Vec<Result<Found, LayerError>> {
        let found = self.db.batched_multi_get_cf(entries(&self.db), keys.iter().map(Key::as_bytes), false);
        keys.iter().zip(found).map(|(key, found)| self.read(now, key.as_bytes(), found)).collect()
    }

    fn read(
        &self,
        now: UnixMillis,
        key: &[u8],
        found: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
    ) -> Result<Found, LayerError> {
        let Some(bytes) = found.map_err(|error| from_rocksdb("reading", &error))? else { return Ok(Found::Nothing) };
        let (entry, dates) = envelope::decode(key, &bytes).map_err(|error| LayerError {
            layer: LayerId::Disk,
            kind: ErrorKind::Corrupt,
            message: error.to_string(),
        })?;
        Ok(if is_expired(dates, self.max_ttl, now) { Found::Expired } else { Found::Entry(entry) })
    }
}

// === impl Store: write ===

impl Store {
    /// Writes the changes as one batch. A set that is not `worth_a_write` removes the older copy.
    pub(super) fn apply(
        &self,
        now: UnixMillis,
        changes: &[Change],
        worth_a_write: impl Fn(&Entry) -> bool,
    ) -> Result<(), LayerError> {
        let family = entries(&self.db);
        let mut batch = WriteBatch::default();
        let mut envelope = Vec::new();
        for change in changes {
            match change {
                Change::Set(entry) | Change::Fill(entry) if worth_a_write(entry) => {
                    Codec::default().encode(entry, now, &mut envelope);
                    batch.put_cf(family, entry.key(), &envelope);
                }
                Change::Set(_) | Change::Fill(_) | Change::Remove(_) => batch.delete_cf(family, change.key()),
                Change::RemoveTagged(_) => {}
            }
        }
        self.db.write_opt(batch, &self.write).map_err(|error| from_rocksdb("writing", &error))?;
        self.mark(false, false)
    }

    /// Removes everything: one tombstone over all keys, then the files below it.
    pub(super) fn clear(&self) -> Result<(), LayerError> {
        let family = entries(&self.db);
        // Longer than any key, so above all of them.
        let above = vec![0xff; KEY_BYTES_MAX + 1];
        self.db
            .delete_range_cf_opt(family, &[][..], &above[..], &self.write)
            .map_err(|error| from_rocksdb("clearing", &error))?;
        self.mark(false, false)?;
        // From here on it is only about space.
        let reclaimed =
            self.db.flush_cf(family).and_then(|()| self.db.delete_file_in_range_cf(family, &[][..], &above[..]));
        if let Err(error) = reclaimed {
            tracing::warn!(%error, "space of cleared entries is reclaimed later, by compaction");
        }
        Ok(())
    }
}

// === impl Store: report ===

impl Store {
    pub(super) fn entries_estimate(&self) -> u64 {
        self.number(ESTIMATE_NUM_KEYS)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.number(LIVE_SST_FILES_SIZE) + self.number(LIVE_BLOB_FILES_SIZE)
    }

    fn number(&self, property: impl CStrLike) -> u64 {
        self.db.property_int_value_cf(entries(&self.db), property).ok().flatten().unwrap_or(0)
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }
}

fn open_db(options: &DiskOptions, clock: &Clock, files: &Files) -> Result<DB, rocksdb::Error> {
    let cache = tuning::cache(options);
    let families = tuning::families(options, &cache, clock.clone());
    DB::open_cf_descriptors(&tuning::database(options, &cache), files.database(), families)
}

fn entries(db: &DB) -> &ColumnFamily {
    db.cf_handle(ENTRIES).expect("opened with the database")
}

fn meta(db: &DB) -> &ColumnFamily {
    db.cf_handle(META).expect("opened with the database")
}

fn stamp(options: &DiskOptions) -> Vec<u8> {
    let (uid, node) = (&options.cache_uid, &options.node);
    format!("cache {uid} node {node} layout {LAYOUT}").into_bytes()
}

fn cached<'a>(
    found: Result<Option<DBPinnableSlice<'a>>, rocksdb::Error>,
    read: impl FnOnce(Result<Option<DBPinnableSlice<'a>>, rocksdb::Error>) -> Result<Found, LayerError>,
) -> Cached {
    match found {
        Err(error) if error.kind() == rocksdb::ErrorKind::Incomplete => Cached::Unknown,
        // RocksDB's batched read says "found" with an empty value where it means "may exist, but the block is not
        // cached". No envelope is empty.
        Ok(Some(bytes)) if bytes.is_empty() => Cached::Unknown,
        found => Cached::Known(read(found)),
    }
}

fn from_rocksdb(doing: &str, error: &rocksdb::Error) -> LayerError {
    let text = error.as_ref();
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        _ if text.contains("No space left") || text.contains("Out of space") => ErrorKind::Full,
        rocksdb::ErrorKind::TimedOut => ErrorKind::Timeout,
        rocksdb::ErrorKind::ShutdownInProgress => ErrorKind::Unreachable,
        _ => ErrorKind::Refused,
    };
    LayerError { layer: LayerId::Disk, kind, message: format!("{doing}: {text}") }
}

fn from_io(doing: &str, error: &io::Error) -> LayerError {
    let kind = if error.kind() == io::ErrorKind::StorageFull { ErrorKind::Full } else { ErrorKind::Unreachable };
    LayerError { layer: LayerId::Disk, kind, message: format!("{doing}: {error}") }
}

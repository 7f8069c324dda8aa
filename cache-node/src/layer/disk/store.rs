//! One open database. All calls block, except those that only ask the block cache.

mod changes;
#[cfg(test)]
mod inspect;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rocksdb::{
    CStrLike, ColumnFamily, DB, DBPinnableSlice, FlushOptions, IteratorMode, ReadOptions, ReadTier, WriteOptions,
    properties::{ESTIMATE_NUM_KEYS, LIVE_SST_FILES_SIZE},
};

pub(super) use self::changes::Applied;
use super::{
    DiskOptions,
    counts::Counts,
    error::{damaged_position, damaged_removal, from_io, from_rocksdb},
    files::{Files, Mark},
    reclaim::is_over,
    removals,
    statistics::Tickers,
    tuning::{self, ENTRIES, META, TAGS},
};
use crate::{
    clock::{Clock, UnixMillis, boot_id},
    entry::{
        Entry, Key, Position,
        envelope::{self, Codec},
    },
    layer::{ErrorKind, LayerError, LayerId, TagRemoval, log::Cursor, newest_removals::NewestRemovals},
};

/// Key of the stamp in the column family `meta`.
const STAMP: &[u8] = b"stamp";

/// Key of the newest position of all changes, in the same place, with a value like that of a removal by tag.
const NEWEST: &[u8] = b"newest";

/// Key of the cursor in the same family: how far the log was followed, written with the effects of what it covers.
const CURSOR: &[u8] = b"cursor";

const LIVE_BLOB_FILES_SIZE: &str = "rocksdb.live-blob-file-size";

/// Version of the layout of keys and column families.
const LAYOUT: u8 = 1;

/// An open database.
pub(super) struct Store {
    db: DB,
    tickers: Tickers,
    files: Files,
    boot: [u8; 36],
    max_ttl: Duration,
    /// For how long removals by tag are kept, and of how many this tells.
    removals: (Duration, usize),
    /// The newest position of all changes. Only the one writer changes it.
    newest: AtomicU64,
    codec: Codec,
    cached_only: ReadOptions,
    write: WriteOptions,
}

/// What the database has under a key.
#[derive(Debug)]
pub(super) enum Found {
    Entry(Entry),
    /// There is a copy, past the life that the entry was given, stale life included.
    Expired,
    /// There is none, or one past what this layer keeps; another layer may have the entry still.
    Nothing,
}

/// What RocksDB gives back when it opens a database.
struct Opened {
    db: DB,
    tickers: Tickers,
}

/// What can be said about a key without going to the disk.
pub(super) enum Cached {
    Known(Result<Found, LayerError>),
    Unknown,
}

// === impl Store: open and close ===

impl Store {
    /// Opens the database of the folder; an empty one, with the reason, if what is there can not be trusted, or shall not
    /// be, for the reason given.
    pub(super) fn open(
        options: &DiskOptions,
        clock: &Clock,
        counts: &Arc<Counts>,
        distrust: Option<String>,
    ) -> Result<(Self, Option<String>), LayerError> {
        let files = Files::open(&options.path).map_err(|error| from_io("opening the folder", &error))?;
        let boot = boot_id().map_err(|error| from_io("reading the boot id", &error))?;
        let open = || open_db(options, clock, counts, &files);
        if !files.database().exists() {
            // Nothing stored, nothing lost.
            let opened = Self::create(options, &files, open)?;
            return Ok((Self::over(opened, options, files, boot)?, distrust));
        }
        let warm = distrust.map_or_else(|| Self::open_warm(options, clock, &files, boot, open), Err);
        let why = match warm {
            Ok(opened) => return Ok((Self::over(opened, options, files, boot)?, None)),
            Err(why) => why,
        };
        files.move_aside().map_err(|error| from_io("moving the database aside", &error))?;
        let opened = Self::create(options, &files, open)?;
        Ok((Self::over(opened, options, files, boot)?, Some(why)))
    }

    /// Opens what is there, or says why it can not be trusted.
    fn open_warm(
        options: &DiskOptions,
        clock: &Clock,
        files: &Files,
        boot: [u8; 36],
        open: impl Fn() -> Result<Opened, rocksdb::Error>,
    ) -> Result<Opened, String> {
        let mark = files.read_mark().ok_or("there is no intact mark of the last write")?;
        if !mark.closed && mark.boot != boot {
            return Err("the machine went down before the database was closed; unsynced writes may be lost".to_owned());
        }
        match files.log_with_hole() {
            Ok(None) => {}
            Ok(Some(log)) => return Err(format!("its log {} has a hole", log.display())),
            Err(error) => return Err(format!("its log can not be read: {error}")),
        }
        let opened = open().map_err(|error| format!("it does not open: {error}"))?;
        let sequence = opened.db.latest_sequence_number();
        if sequence < mark.sequence {
            return Err(format!("its log ends at write {sequence}, but write {} had been made", mark.sequence));
        }
        let expected = stamp(options);
        match opened.db.get_cf(meta(&opened.db), STAMP) {
            Ok(Some(found)) if found == expected => {}
            Ok(Some(found)) => {
                return Err(format!(
                    "it belongs to {}, not to {}",
                    String::from_utf8_lossy(&found).escape_debug(),
                    String::from_utf8_lossy(&expected).escape_debug()
                ));
            }
            Ok(None) => return Err("it has no stamp".to_owned()),
            Err(error) => return Err(format!("its stamp can not be read: {error}")),
        }
        // A removal that can not be read can not be kept, so nothing beside it can be served.
        tag_removals(&opened.db, (options.removals_kept, options.removals_max), clock.now())
            .map_err(|error| error.message)?;
        newest_position(&opened.db).map_err(|error| error.message)?;
        Ok(opened)
    }

    fn create(
        options: &DiskOptions,
        files: &Files,
        open: impl Fn() -> Result<Opened, rocksdb::Error>,
    ) -> Result<Opened, LayerError> {
        let creating = |error| from_rocksdb("creating the database", &error);
        let opened = match open().map_err(creating) {
            Err(error) if error.kind == ErrorKind::Full => {
                // What was put aside takes the room.
                files.drop_aside().map_err(|error| from_io("dropping the old database", &error))?;
                open().map_err(creating)?
            }
            outcome => outcome?,
        };
        let meta = meta(&opened.db);
        opened.db.put_cf(meta, STAMP, stamp(options)).map_err(|error| from_rocksdb("stamping", &error))?;
        // The stamp must not keep the log alive that holds it.
        opened.db.flush_cf(meta).map_err(|error| from_rocksdb("stamping", &error))?;
        Ok(opened)
    }

    fn over(opened: Opened, options: &DiskOptions, files: Files, boot: [u8; 36]) -> Result<Self, LayerError> {
        let mut cached_only = ReadOptions::default();
        cached_only.set_read_tier(ReadTier::BlockCache);
        let store = Self {
            newest: AtomicU64::new(newest_position(&opened.db)?.to_bits()),
            db: opened.db,
            tickers: opened.tickers,
            files,
            boot,
            max_ttl: options.max_ttl,
            removals: (options.removals_kept, options.removals_max),
            codec: options.codec,
            cached_only,
            write: WriteOptions::default(),
        };
        // Synced before the first write: after a power cut nobody must believe the mark of an earlier close.
        store.mark(false, true)?;
        Ok(store)
    }

    /// Brings everything to the medium and closes the database. No reader may be left.
    pub(super) fn close(self) -> Result<(), LayerError> {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        let flushed = self.db.flush_cfs_opt(&[entries(&self.db), tags(&self.db), meta(&self.db)], &flush);
        let marked = flushed.map_err(|error| from_rocksdb("flushing", &error)).and_then(|()| self.mark(true, true));
        self.db.cancel_all_background_work(true);
        marked
    }

    /// Closes the database as it is, because it is not to be trusted any more.
    pub(super) fn abandon(self) {
        self.db.cancel_all_background_work(true);
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

    /// The removals of tagged entries that may still matter.
    pub(super) fn tag_removals(&self, now: UnixMillis) -> Result<Vec<TagRemoval>, LayerError> {
        tag_removals(&self.db, self.removals, now)
    }

    /// The newest position of all changes that the database was given.
    pub(super) fn newest_position(&self) -> Position {
        Position::from_bits(self.newest.load(Ordering::Acquire))
    }

    /// How far the log was followed; none if that is not known, also if it can not be understood.
    pub(super) fn cursor(&self) -> Result<Option<Cursor>, LayerError> {
        let found =
            self.db.get_cf(meta(&self.db), CURSOR).map_err(|error| from_rocksdb("reading the cursor", &error))?;
        Ok(found.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
    }

    fn read(
        &self,
        now: UnixMillis,
        key: &[u8],
        found: Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>,
    ) -> Result<Found, LayerError> {
        let Some(bytes) = found.map_err(|error| from_rocksdb("reading", &error))? else { return Ok(Found::Nothing) };
        let (entry, dates) = envelope::decode(key, &bytes)
            .map_err(|error| LayerError::new(LayerId::Disk, ErrorKind::Corrupt, error.to_string()))?;
        Ok(match dates.useful_until() {
            Some(until) if until <= now => Found::Expired,
            _ if is_over(dates, self.max_ttl, now) => Found::Nothing,
            _ => Found::Entry(entry),
        })
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

    pub(super) const fn tickers(&self) -> &Tickers {
        &self.tickers
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }
}

fn open_db(
    options: &DiskOptions,
    clock: &Clock,
    counts: &Arc<Counts>,
    files: &Files,
) -> Result<Opened, rocksdb::Error> {
    let cache = tuning::cache(options);
    let families = tuning::families(options, &cache, clock, counts);
    let database = tuning::database(options, &cache);
    let db = DB::open_cf_descriptors(&database, files.database(), families)?;
    if let Err(error) = tuning::make_way() {
        tracing::warn!(%error, "compaction may keep clients waiting: its threads can not be made nicer");
    }
    Ok(Opened { db, tickers: Tickers::new(database) })
}

fn tag_removals(db: &DB, (kept, most): (Duration, usize), now: UnixMillis) -> Result<Vec<TagRemoval>, LayerError> {
    let mut found = NewestRemovals::at_most(most);
    for record in db.iterator_cf(tags(db), IteratorMode::Start) {
        let (key, value) = record.map_err(|error| from_rocksdb("reading removals by tag", &error))?;
        let removal = removals::decode(&key, &value).ok_or_else(damaged_removal)?;
        if !removals::is_over(removal.position, kept, now) {
            found.add(removal);
        }
    }
    Ok(found.end())
}

fn newest_position(db: &DB) -> Result<Position, LayerError> {
    let found = db.get_cf(meta(db), NEWEST).map_err(|error| from_rocksdb("reading the newest position", &error))?;
    let Some(value) = found else { return Ok(Position::NONE) };
    removals::position(NEWEST, &value).ok_or_else(damaged_position)
}

fn entries(db: &DB) -> &ColumnFamily {
    db.cf_handle(ENTRIES).expect("opened with the database")
}

fn tags(db: &DB) -> &ColumnFamily {
    db.cf_handle(TAGS).expect("opened with the database")
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

//! What lies in the layer's folder besides the database: the lock, the mark of the last write, and what was moved aside.
//!
//! ```text
//! lock      held while a process uses the folder
//! mark      which write was the last, on which boot of the machine, and whether the database was closed after it
//! db/       the database
//! aside/    the last database that was found damaged, foreign or behind; given up when the volume fills
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crc_fast::{CrcAlgorithm, checksum};

/// RocksDB's write-ahead log: blocks of records, each behind a checksum (4 bytes), its length (2) and its kind (1).
/// Source: RocksDB, `db/log_format.h`.
const LOG_BLOCK_BYTES: usize = 32 * 1024;
const LOG_HEADER_BYTES: usize = 7;
/// Kinds that RocksDB writes here: whole records, and first, middle and last parts of longer ones.
const LOG_KINDS: std::ops::RangeInclusive<u8> = 1..=4;

const MAGIC: [u8; 8] = *b"TCMARK01";
const MARK_BYTES: usize = 64;

/// The folder, locked.
pub(super) struct Files {
    folder: PathBuf,
    mark: File,
    _lock: File,
}

/// How far a database had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The database's number of its last write.
    pub(super) sequence: u64,
    /// Which boot of the machine it was.
    pub(super) boot: [u8; 36],
    /// Closed, with everything on the medium.
    pub(super) closed: bool,
}

// === impl Files ===

impl Files {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process uses the folder"),
            TryLockError::Error(error) => error,
        })?;
        let mark = File::options().create(true).truncate(false).read(true).write(true).open(folder.join("mark"))?;
        Ok(Self { folder: folder.to_owned(), mark, _lock: lock })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.join("db")
    }

    /// Puts the database aside, in place of an older one.
    pub(super) fn move_aside(&self) -> io::Result<()> {
        self.drop_aside()?;
        match fs::rename(self.database(), self.aside()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// Frees the space of what was put aside.
    pub(super) fn drop_aside(&self) -> io::Result<()> {
        remove_all(&self.aside())
    }

    /// A write-ahead log of the database in which there is nothing where records should be. RocksDB passes over that
    /// without a word, because it takes zeroes for room that was reserved; what was written before is lost then, although
    /// the end of the log is there.
    pub(super) fn log_with_hole(&self) -> io::Result<Option<PathBuf>> {
        for file in fs::read_dir(self.database())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "log") && has_hole(&fs::read(&path)?) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn aside(&self) -> PathBuf {
        self.folder.join("aside")
    }

    /// The mark, unless there is none or it is damaged.
    pub(super) fn read_mark(&self) -> Option<Mark> {
        let mut bytes = [0; MARK_BYTES];
        self.mark.read_exact_at(&mut bytes, 0).ok()?;
        Mark::decode(&bytes)
    }

    /// Replaces the mark. Outlives the process; with `sync` it outlives the machine.
    pub(super) fn write_mark(&self, mark: Mark, sync: bool) -> io::Result<()> {
        self.mark.write_all_at(&mark.encode(), 0)?;
        if sync { self.mark.sync_data() } else { Ok(()) }
    }
}

// === impl Mark ===

impl Mark {
    fn encode(self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..52].copy_from_slice(&self.boot);
        bytes[52] = u8::from(self.closed);
        let sum = checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..56]);
        bytes[56..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; MARK_BYTES]) -> Option<Self> {
        let sequence = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        let boot = bytes[16..52].try_into().expect("36 bytes");
        let mark = Self { sequence, boot, closed: bytes[52] == 1 };
        (mark.encode() == *bytes).then_some(mark)
    }
}

/// Whether records follow after zeroes where a record should begin.
fn has_hole(log: &[u8]) -> bool {
    let mut left = log;
    while !left.is_empty() {
        let (mut block, later) = left.split_at(left.len().min(LOG_BLOCK_BYTES));
        while block.len() >= LOG_HEADER_BYTES {
            let (length, kind) = (usize::from(u16::from_le_bytes([block[4], block[5]])), block[6]);
            if kind == 0 && length == 0 {
                return block.iter().chain(later).any(|byte| *byte != 0);
            }
            if !LOG_KINDS.contains(&kind) {
                // Damaged in a way that RocksDB notices, by its checksum.
                break;
            }
            block = block.get(LOG_HEADER_BYTES + length..).unwrap_or_default();
        }
        left = later;
    }
    false
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A file in place of the folder.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let [low, high] = length.to_le_bytes();
        [&[7, 7, 7, 7, low, high, kind][..], &vec![b'x'; usize::from(length)]].concat()
    }

    #[test]
    fn zeroes_between_records_are_a_hole_and_zeroes_behind_them_are_not() {
        let whole = [record(1, 100), record(1, 50)].concat();
        assert!(!has_hole(&whole) && !has_hole(&[]));
        assert!(!has_hole(&[&whole[..], &[0; 500]].concat()), "room that was reserved");
        let mut zeroed = whole.clone();
        zeroed[..107].fill(0);
        assert!(has_hole(&zeroed));
        let full = u16::try_from(LOG_BLOCK_BYTES - LOG_HEADER_BYTES).unwrap();
        let blocks = [record(2, full), record(4, 9)].concat();
        assert!(!has_hole(&blocks));
        let mut zeroed = blocks;
        zeroed[..4096].fill(0);
        assert!(has_hole(&zeroed), "of a record that goes on in the next block");
    }
}

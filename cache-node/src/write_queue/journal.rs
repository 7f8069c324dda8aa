//! Which keys are in the queue, written down outside the process: after a kill those keys are removed from the layers
//! below, so that a lost write is a miss and never an older value.
//!
//! The journal is a file that is mapped into memory: what is stored there outlives the process, because the kernel holds
//! it, and costs no call. It has a ring of keys for each shard of the queue, written under the shard's lock. A key is
//! noted when its slot begins and given up when the slot ends, in the order of the ring; that some are given up late only
//! removes a key too many after a kill. A ring without room marks itself *incomplete*: after a kill everything that
//! is below counts as lost then. The file is allocated in full when it is made, because a page that can not be allocated
//! later would end the process. A queue that ended empty leaves no file behind.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use xxhash_rust::xxh3::xxh3_64;

use super::{Lanes, SHARDS};
use crate::entry::Key;

/// Bytes of keys that one shard can have in the ring: 64 shards make 16 MiB.
const RING_BYTES: usize = 256 * 1024;

/// Magic, version and owner, then one word that names the layers that are owed a clear, and one that names those in which
/// the keys may be older than what was accepted: none stands for all.
const HEADER_BYTES: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"TCJRNL01");
const OWNER_AT: usize = 8;
const VOID_AT: usize = 16;
const LACKING_AT: usize = 24;

/// In front of the keys of a ring: where the next key goes, where the oldest is, and whether keys are missing.
const RING_HEADER_BYTES: usize = 24;
const HEAD_AT: usize = 0;
const TAIL_AT: usize = 8;
const INCOMPLETE_AT: usize = 16;

/// In front of a key: its length and a hash of it.
const RECORD_HEADER_BYTES: usize = 6;

const FILE_BYTES: usize = HEADER_BYTES + SHARDS * (RING_HEADER_BYTES + RING_BYTES);

/// Where the journal of a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalPlace {
    /// The file, on the volume of the disk layer. A second one with the extension `next` is made beside it.
    pub path: PathBuf,
    /// Whose layers it is about. What another owner left behind counts for nothing.
    pub owner: String,
}

/// The journal of one queue.
pub(super) struct Journal {
    path: PathBuf,
    /// None once it was let go.
    map: Option<Arc<MmapRegion>>,
}

/// The keys of one shard.
pub(super) struct Ring {
    map: Arc<MmapRegion>,
    /// Where its header begins in the file.
    at: usize,
    head: u64,
    tail: u64,
    /// Lengths of the records from the oldest on, and whether each was given up.
    records: VecDeque<(u32, bool)>,
    /// Number of the oldest record.
    first: u64,
    /// Slots whose key found no room.
    missing: u64,
}

/// What the ring knows of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// Its key is the one with this number.
    At(u64),
    /// Its key found no room.
    Missing,
}

/// What a queue left behind that did not end empty.
#[derive(Debug, Default)]
pub(super) struct LeftBehind {
    /// Keys whose newest value may be lost.
    pub(super) keys: Vec<Key>,
    /// Layers that may have older values of them; if none is named, all.
    pub(super) lacking: Lanes,
    /// Layers that are owed a clear.
    pub(super) void: Lanes,
    /// Keys are missing or damaged: whatever is below may be older than what was accepted.
    pub(super) incomplete: bool,
}

// === impl Journal ===

impl Journal {
    /// A new journal beside the one that an earlier queue left behind, whose place it takes with [`Journal::replace`].
    pub(super) fn create(place: &JournalPlace) -> io::Result<Self> {
        let JournalPlace { path, owner } = place;
        let next = path.with_extension("next");
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&next)?;
        fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES as u64)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), FILE_BYTES).map_err(io::Error::other)?;
        store(&map, OWNER_AT, xxh3_64(owner.as_bytes()));
        store(&map, 0, MAGIC);
        Ok(Self { path: path.to_owned(), map: Some(Arc::new(map)) })
    }

    /// From here on an end of the process leaves this journal behind.
    pub(super) fn replace(&self) -> io::Result<()> {
        fs::rename(self.path.with_extension("next"), &self.path)
    }

    /// The ring of one shard.
    pub(super) fn ring(&self, shard: usize) -> Option<Ring> {
        Some(Ring {
            map: Arc::clone(self.map.as_ref()?),
            at: HEADER_BYTES + shard * (RING_HEADER_BYTES + RING_BYTES),
            head: 0,
            tail: 0,
            records: VecDeque::new(),
            first: 0,
            missing: 0,
        })
    }

    /// Notes which layers are owed a clear.
    pub(super) fn owe_clears(&self, void: Lanes) {
        if let Some(map) = &self.map {
            store(map, VOID_AT, u64::from(void.bits()));
        }
    }

    /// Touches the file no more until it is discarded; false if it was let go before.
    pub(super) fn let_go(&mut self) -> bool {
        self.map.take().is_some()
    }

    /// Only these layers lack writes of the keys, for the queue has ended; the others have them all.
    pub(super) fn end_lacking(&self, lanes: Lanes) {
        if let Some(map) = &self.map {
            store(map, LACKING_AT, u64::from(lanes.bits()));
        }
    }

    /// The queue ended empty: there is nothing to remember.
    pub(super) fn discard(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn store(map: &MmapRegion, at: usize, word: u64) {
    map.as_volatile_slice().store(word, at, Ordering::Release).expect("words lie within the file, eight bytes apart");
}

// === impl Ring ===

impl Ring {
    /// Notes a key. Once this returns, a kill does not lose it.
    pub(super) fn note(&mut self, key: &[u8]) -> Record {
        let len = RECORD_HEADER_BYTES + key.len();
        if self.head - self.tail + len as u64 > RING_BYTES as u64 {
            self.missing += 1;
            self.word(INCOMPLETE_AT, 1);
            return Record::Missing;
        }
        self.write(&header_of(key));
        self.write(key);
        // Behind the bytes: a record counts from here on.
        self.word(HEAD_AT, self.head);
        self.records.push_back((u32::try_from(len).expect("a key has at most 32 KiB"), false));
        Record::At(self.first + self.records.len() as u64 - 1)
    }

    /// Gives a key up.
    pub(super) fn release(&mut self, record: Record) {
        match record {
            Record::Missing => {
                self.missing -= 1;
                if self.missing == 0 {
                    self.word(INCOMPLETE_AT, 0);
                }
            }
            Record::At(number) => {
                let index = usize::try_from(number - self.first).expect("a record is given up once");
                self.records[index].1 = true;
                let before = self.tail;
                while let Some((len, true)) = self.records.front() {
                    self.tail += u64::from(*len);
                    self.records.pop_front();
                    self.first += 1;
                }
                if self.tail != before {
                    self.word(TAIL_AT, self.tail);
                }
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let start = position(self.head);
        let (first, rest) = bytes.split_at(bytes.len().min(RING_BYTES - start));
        let data = self.at + RING_HEADER_BYTES;
        let slice = self.map.as_volatile_slice();
        slice.write_slice(first, data + start).expect("a ring lies within the file");
        slice.write_slice(rest, data).expect("a ring lies within the file");
        self.head += bytes.len() as u64;
    }

    fn word(&self, at: usize, word: u64) {
        store(&self.map, self.at + at, word);
    }
}

fn position(count: u64) -> usize {
    usize::try_from(count % RING_BYTES as u64).expect("less than the size of a ring")
}

fn header_of(key: &[u8]) -> [u8; RECORD_HEADER_BYTES] {
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..2].copy_from_slice(&u16::try_from(key.len()).expect("a key has at most 32 KiB").to_le_bytes());
    header[2..].copy_from_slice(&xxh3_64(key).to_le_bytes()[..4]);
    header
}

// === impl LeftBehind ===

impl LeftBehind {
    /// What an earlier queue left behind. A journal that can not be read may have named any key.
    pub(super) fn load(JournalPlace { path, owner }: &JournalPlace) -> Self {
        match fs::read(path) {
            Ok(bytes) => Self::read(&bytes, xxh3_64(owner.as_bytes())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(_) => Self { incomplete: true, ..Self::default() },
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_nothing(&self) -> bool {
        self.keys.is_empty() && self.void.is_empty() && !self.incomplete
    }

    /// What a journal of this owner says; that of another one says nothing.
    fn read(bytes: &[u8], owner: u64) -> Self {
        if bytes.len() != FILE_BYTES || word_at(bytes, 0) != MAGIC {
            return Self { incomplete: true, ..Self::default() };
        }
        if word_at(bytes, OWNER_AT) != owner {
            return Self::default();
        }
        let lanes = |at| Lanes::from_bits(word_at(bytes, at));
        let mut left = Self { void: lanes(VOID_AT), lacking: lanes(LACKING_AT), ..Self::default() };
        for ring in bytes[HEADER_BYTES..].chunks_exact(RING_HEADER_BYTES + RING_BYTES) {
            left.incomplete |= word_at(ring, INCOMPLETE_AT) != 0 || left.read_ring(ring).is_none();
        }
        left
    }

    /// The keys of a ring; none if it is damaged, with those before the damage.
    fn read_ring(&mut self, ring: &[u8]) -> Option<()> {
        let (head, mut tail) = (word_at(ring, HEAD_AT), word_at(ring, TAIL_AT));
        if head.checked_sub(tail)? > RING_BYTES as u64 {
            return None;
        }
        let data = &ring[RING_HEADER_BYTES..];
        let bytes = |from: u64, len: usize| -> Vec<u8> {
            (0..len).map(|offset| data[position(from + offset as u64)]).collect()
        };
        while tail < head {
            let header = bytes(tail, RECORD_HEADER_BYTES);
            let len = usize::from(u16::from_le_bytes([header[0], header[1]]));
            if len as u64 + RECORD_HEADER_BYTES as u64 > head - tail {
                return None;
            }
            let key = bytes(tail + RECORD_HEADER_BYTES as u64, len);
            if header_of(&key)[..] != header[..] {
                return None;
            }
            self.keys.push(Key::new(key).ok()?);
            tail += (RECORD_HEADER_BYTES + len) as u64;
        }
        Some(())
    }
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;

    fn place(folder: &TempDir) -> JournalPlace {
        JournalPlace { path: folder.path().join("journal"), owner: "me".to_owned() }
    }

    fn created(place: &JournalPlace) -> Journal {
        let journal = Journal::create(place).unwrap();
        journal.replace().unwrap();
        journal
    }

    fn keys(left: &LeftBehind) -> Vec<String> {
        left.keys.iter().map(|key| String::from_utf8(key.as_bytes().to_vec()).unwrap()).collect()
    }

    #[test]
    fn keys_that_were_not_given_up_are_left_behind() {
        let folder = tempdir().unwrap();
        let place = place(&folder);
        assert!(LeftBehind::load(&place).is_nothing());
        let journal = created(&place);
        let (mut one, mut other) = (journal.ring(0).unwrap(), journal.ring(63).unwrap());
        let a = one.note(b"a");
        let b = one.note(b"b");
        one.note(b"c");
        other.note(b"d");
        // Out of order: `a` still keeps `b` from being given up.
        one.release(b);
        assert_eq!(keys(&LeftBehind::load(&place)), ["a", "b", "c", "d"]);
        one.release(a);
        assert_eq!(keys(&LeftBehind::load(&place)), ["c", "d"]);
        let another = JournalPlace { owner: "another".to_owned(), ..place.clone() };
        assert!(LeftBehind::load(&another).is_nothing(), "it is about somebody else's layers");
        journal.discard().unwrap();
        assert!(LeftBehind::load(&place).is_nothing());
    }

    #[test]
    fn ring_goes_round_for_ever() {
        let folder = tempdir().unwrap();
        let place = place(&folder);
        let journal = created(&place);
        let mut ring = journal.ring(5).unwrap();
        let mut live = VecDeque::new();
        for number in 0..20_000 {
            let key = format!("{number}{}", "x".repeat(number % 100));
            live.push_back((ring.note(key.as_bytes()), key));
            if live.len() > 50 {
                ring.release(live.pop_front().unwrap().0);
            }
        }
        let expected: Vec<String> = live.into_iter().map(|(_, key)| key).collect();
        let left = LeftBehind::load(&place);
        assert!(!left.incomplete);
        assert_eq!(keys(&left), expected);
    }

    #[test]
    fn ring_without_room_says_so_until_what_is_missing_is_gone() {
        let folder = tempdir().unwrap();
        let place = place(&folder);
        let journal = created(&place);
        let mut ring = journal.ring(0).unwrap();
        let long = vec![b'k'; 32 * 1024];
        let records: Vec<Record> = (0..8).map(|_| ring.note(&long)).collect();
        assert_eq!((records[6] != Record::Missing, records[7]), (true, Record::Missing));
        assert!(LeftBehind::load(&place).incomplete);
        ring.release(Record::Missing);
        assert!(!LeftBehind::load(&place).incomplete);
    }

    #[test]
    fn owed_clears_are_remembered() {
        let folder = tempdir().unwrap();
        let place = place(&folder);
        let journal = created(&place);
        journal.owe_clears(Lanes::at(1));
        assert_eq!(LeftBehind::load(&place).void, Lanes::at(1));
        journal.owe_clears(Lanes::NONE);
        assert!(LeftBehind::load(&place).is_nothing());
    }

    #[test]
    fn damaged_journal_says_that_keys_are_missing() {
        let folder = tempdir().unwrap();
        let place = place(&folder);
        let journal = created(&place);
        let mut ring = journal.ring(0).unwrap();
        for number in 0..10 {
            ring.note(format!("key{number}").as_bytes());
        }
        let intact = fs::read(&place.path).unwrap();
        for at in
            [0, HEADER_BYTES + HEAD_AT + 7, HEADER_BYTES + RING_HEADER_BYTES, HEADER_BYTES + RING_HEADER_BYTES + 8]
        {
            let mut damaged = intact.clone();
            damaged[at] ^= 0x55;
            fs::write(&place.path, &damaged).unwrap();
            assert!(LeftBehind::load(&place).incomplete, "byte {at}");
        }
        fs::write(&place.path, &intact[..intact.len() / 2]).unwrap();
        assert!(LeftBehind::load(&place).incomplete, "cut off");
    }
}

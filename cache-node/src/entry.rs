//! Keys and entries. An entry is one allocation: header, key and value in one block.

use std::{
    borrow::Borrow,
    cell::RefCell,
    fmt,
    hash::{Hash, Hasher},
};

use bytes::Bytes;
use triomphe::ThinArc;

pub mod envelope;
mod marks;
mod position;
mod tags;

pub(crate) use self::marks::Marks;
pub use self::{
    position::{Position, Positions},
    tags::{TAG_BYTES_MAX, TAGS_MAX, TagError, TagSet, Tags},
};
use crate::clock::UnixMillis;

/// Longest key, as in the documentation of the RESP and HTTP front ends.
pub const KEY_BYTES_MAX: usize = 32 * 1024;

/// A key: 1 byte to [`KEY_BYTES_MAX`] of any bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Bytes);

/// Why some bytes can not be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("key is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    /// Longer than the limit.
    #[error("key has {0} bytes; a key has 1 to {KEY_BYTES_MAX} bytes")]
    TooLong(usize),
}

/// A key with its value and its life, immutable and shared by reference count.
#[derive(Clone)]
pub struct Entry(ThinArc<Header, u8>);

/// What an entry carries besides key and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryMeta<'a> {
    /// When the value stops being served; `None` is "until evicted".
    pub expires_at: Option<UnixMillis>,
    /// Until when the expired value may still be served while a fresh one is fetched; `None` is "not at all".
    pub stale_until: Option<UnixMillis>,
    /// What the value is at least as fresh as. Without tags nothing is compared with it in memory.
    pub position: Position,
    /// Words by which the entry can be removed.
    pub tags: Tags<'a>,
    /// The client said that there is no value: a read is answered as absent without asking below.
    pub negative: bool,
}

/// 16 bytes in front of the key. What few entries have stands behind the key, so that it costs the others nothing.
struct Header {
    /// `u64::MAX` for none, so that the check of a hit is one comparison.
    expires_at_ms: u64,
    key_len: u16,
    /// Bytes between key and value: zero, or [`EXTRA_BYTES`] and the packed tags. With the bit [`NEGATIVE`].
    extra: u16,
    marks: Marks,
}

/// In `Header::extra`, where lengths end far below: there is no value.
const NEGATIVE: u16 = 1 << 15;

/// Until when it may be served stale (0 for never), and the position.
const EXTRA_BYTES: usize = 16;

/// Scratch buffers larger than this are not kept: an occasional large value must not pin memory on every thread.
const SCRATCH_KEPT_BYTES: usize = 64 * 1024;

thread_local! {
    /// Where key and value meet before they become one block. `ThinArc` is filled at speed only from one slice; this
    /// buffer makes that a second copy (3 ns for 100 bytes) instead of a second allocation.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

// === impl Key ===

impl Key {
    /// Accepts the bytes of a key.
    ///
    /// # Errors
    /// [`KeyError`] if there are none or too many.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        Self::check(&bytes)?;
        Ok(Self(bytes))
    }

    /// Says whether the bytes could be a key, without taking them.
    ///
    /// # Errors
    /// [`KeyError`] if there are none or too many.
    pub const fn check(bytes: &[u8]) -> Result<(), KeyError> {
        match bytes.len() {
            0 => Err(KeyError::Empty),
            1..=KEY_BYTES_MAX => Ok(()),
            len => Err(KeyError::TooLong(len)),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Hash for Key {
    /// As the bytes, so that a map of keys can be asked with bytes.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.escape_ascii())
    }
}

// === impl Entry ===

impl Entry {
    /// Copies key, value and what comes with them into one block.
    pub fn new(key: &[u8], value: &[u8], meta: EntryMeta<'_>) -> Self {
        debug_assert!(Key::check(key).is_ok(), "keys are checked where they enter");
        let EntryMeta { expires_at, stale_until, position, tags, negative } = meta;
        let plain = stale_until.is_none() && position == Position::NONE && tags.is_empty();
        let extra_len = if plain { 0 } else { EXTRA_BYTES + tags.packed().len() };
        let header = Header {
            expires_at_ms: expires_at.map_or(u64::MAX, |at| at.0),
            key_len: u16::try_from(key.len()).expect("a key has at most 32 KiB"),
            extra: u16::try_from(extra_len).expect("32 tags of 256 bytes") | if negative { NEGATIVE } else { 0 },
            marks: Marks::default(),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.extend_from_slice(key);
            if !plain {
                scratch.extend_from_slice(&stale_until.map_or(0, |at| at.0).to_le_bytes());
                scratch.extend_from_slice(&position.to_bits().to_le_bytes());
                scratch.extend_from_slice(tags.packed());
            }
            scratch.extend_from_slice(value);
            let block = ThinArc::from_header_and_slice(header, scratch);
            if scratch.capacity() > SCRATCH_KEPT_BYTES {
                *scratch = Vec::new();
            }
            Self(block)
        })
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.0.slice[..usize::from(self.header().key_len)]
    }

    /// The value; empty if the entry is negative.
    pub fn value(&self) -> &[u8] {
        &self.0.slice[usize::from(self.header().key_len) + self.header().extra_len()..]
    }

    /// When the value stops being served.
    pub fn expires_at(&self) -> Option<UnixMillis> {
        let ms = self.header().expires_at_ms;
        (ms != u64::MAX).then_some(UnixMillis(ms))
    }

    /// Until when the expired value may still be served while a fresh one is fetched.
    pub fn stale_until(&self) -> Option<UnixMillis> {
        self.extra_word(0).filter(|&ms| ms != 0).map(UnixMillis)
    }

    /// What the value is at least as fresh as.
    pub fn position(&self) -> Position {
        self.extra_word(8).map_or(Position::NONE, Position::from_bits)
    }

    /// Words by which the entry can be removed.
    pub fn tags(&self) -> Tags<'_> {
        Tags::trusted(self.extra().get(EXTRA_BYTES..).unwrap_or_default())
    }

    /// Whether the client said that there is no value.
    pub fn is_negative(&self) -> bool {
        self.header().extra & NEGATIVE != 0
    }

    /// Whether expiry is all that decides if the value may be served: no tags, no stale life, not negative.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.header().extra == 0
    }

    /// What the entry carries besides key and value.
    pub fn meta(&self) -> EntryMeta<'_> {
        EntryMeta {
            expires_at: self.expires_at(),
            stale_until: self.stale_until(),
            position: self.position(),
            tags: self.tags(),
            negative: self.is_negative(),
        }
    }

    fn header(&self) -> &Header {
        &self.0.header.header
    }

    fn extra(&self) -> &[u8] {
        let start = usize::from(self.header().key_len);
        &self.0.slice[start..start + self.header().extra_len()]
    }

    fn extra_word(&self, offset: usize) -> Option<u64> {
        self.extra().get(offset..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Whether the value may still be served at `now`: from the millisecond of its expiry on it may not.
    #[inline]
    pub fn is_live(&self, now: UnixMillis) -> bool {
        now.0 < self.header().expires_at_ms
    }

    /// Whether the entry is of any use at `now`, be it only to be served stale.
    #[inline]
    pub fn is_useful(&self, now: UnixMillis) -> bool {
        self.is_live(now) || self.stale_until().is_some_and(|until| now < until)
    }

    /// What memory notes on the entry while it holds it; no part of what the entry says.
    #[inline]
    pub(crate) fn marks(&self) -> &Marks {
        &self.header().marks
    }

    /// How many hold this entry, the caller included.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        ThinArc::strong_count(&self.0)
    }

    /// Until when the entry is of any use: its expiry, or the end of its stale life; none is "until evicted".
    pub fn useful_until(&self) -> Option<UnixMillis> {
        self.expires_at().map(|at| self.stale_until().map_or(at, |stale| stale.max(at)))
    }

    /// Bytes of key, value and tags together.
    pub fn bytes(&self) -> u64 {
        self.0.slice.len() as u64
    }

    /// Bytes of the block: a reference count, the header, a length, then key, value and tags.
    pub(crate) fn block_bytes(&self) -> u64 {
        (2 * size_of::<usize>() + size_of::<Header>()) as u64 + self.bytes()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} B, until {:?})", self.key().escape_ascii(), self.value().len(), self.expires_at())
    }
}

// === impl Header ===

impl Header {
    fn extra_len(&self) -> usize {
        usize::from(self.extra & !NEGATIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_gives_back_what_it_was_made_of() {
        let mut tags = TagSet::default();
        tags.add(b"red").unwrap();
        tags.add(b"round").unwrap();
        let full = EntryMeta {
            expires_at: Some(UnixMillis(5)),
            stale_until: Some(UnixMillis(9)),
            position: Position::from_parts(3, 1),
            tags: tags.tags(),
            negative: false,
        };
        let negative = EntryMeta { negative: true, ..EntryMeta::default() };
        let placed = EntryMeta { position: Position::from_parts(3, 1), ..EntryMeta::default() };
        for (meta, plain) in [(full, false), (negative, false), (placed, false), (EntryMeta::default(), true)] {
            let entry = Entry::new(b"key", b"value", meta);
            assert_eq!((entry.key(), entry.value(), entry.meta()), (&b"key"[..], &b"value"[..], meta));
            assert_eq!(entry.is_plain(), plain);
        }
    }

    #[test]
    fn header_has_sixteen_bytes_and_one_pointer_refers_to_an_entry() {
        assert_eq!((size_of::<Header>(), size_of::<Option<Entry>>()), (16, 8));
        let entry = Entry::new(&[0; 16], &[0; 100], EntryMeta::default());
        assert_eq!(entry.block_bytes(), 32 + 116);
    }

    #[test]
    fn expired_entry_is_useful_until_the_end_of_its_stale_life() {
        let meta =
            EntryMeta { expires_at: Some(UnixMillis(5)), stale_until: Some(UnixMillis(9)), ..EntryMeta::default() };
        let entry = Entry::new(b"k", b"v", meta);
        let states = |ms| (entry.is_live(UnixMillis(ms)), entry.is_useful(UnixMillis(ms)));
        assert_eq!([4, 5, 8, 9].map(states), [(true, true), (false, true), (false, true), (false, false)]);
    }

    #[test]
    fn largest_key_and_tags_fit() {
        let mut tags = TagSet::default();
        for number in 0..TAGS_MAX {
            tags.add(&[u8::try_from(number).unwrap(); TAG_BYTES_MAX]).unwrap();
        }
        let key = vec![7; KEY_BYTES_MAX];
        let entry = Entry::new(&key, b"v", EntryMeta { tags: tags.tags(), ..EntryMeta::default() });
        assert_eq!((entry.key(), entry.value(), entry.tags()), (&key[..], &b"v"[..], tags.tags()));
    }
}

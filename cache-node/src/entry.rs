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
pub struct EntryMeta {
    /// When the value stops being served; `None` is "until evicted".
    pub expires_at: Option<UnixMillis>,
}

/// 16 bytes in front of the key.
struct Header {
    /// `u64::MAX` for none, so that the check of a hit is one comparison.
    expires_at_ms: u64,
    key_len: u32,
}

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
    /// Copies key and value into one block.
    pub fn new(key: &[u8], value: &[u8], meta: EntryMeta) -> Self {
        debug_assert!(Key::check(key).is_ok(), "keys are checked where they enter");
        let header = Header {
            expires_at_ms: meta.expires_at.map_or(u64::MAX, |at| at.0),
            key_len: u32::try_from(key.len()).expect("a key is shorter than 4 GiB"),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.extend_from_slice(key);
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
        &self.0.slice[..self.0.header.header.key_len as usize]
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.0.slice[self.0.header.header.key_len as usize..]
    }

    /// When the value stops being served.
    pub fn expires_at(&self) -> Option<UnixMillis> {
        let ms = self.0.header.header.expires_at_ms;
        (ms != u64::MAX).then_some(UnixMillis(ms))
    }

    /// What the entry carries besides key and value.
    pub fn meta(&self) -> EntryMeta {
        EntryMeta { expires_at: self.expires_at() }
    }

    /// Whether the value may still be served at `now`: from the millisecond of its expiry on it may not.
    #[inline]
    pub fn is_live(&self, now: UnixMillis) -> bool {
        now.0 < self.0.header.header.expires_at_ms
    }

    /// How many hold this entry, the caller included.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        ThinArc::strong_count(&self.0)
    }

    /// Bytes of key and value together.
    pub fn bytes(&self) -> u64 {
        self.0.slice.len() as u64
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} B, until {:?})", self.key().escape_ascii(), self.value().len(), self.expires_at())
    }
}

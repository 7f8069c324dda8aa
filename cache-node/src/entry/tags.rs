//! Tags: words that clients give entries, so that all that carry one can be removed together.
//!
//! Tags are kept packed, each with a length of two bytes (little-endian) before it: the same bytes in the block of an
//! entry and in an envelope.

use std::fmt;

/// Most tags of one entry.
pub const TAGS_MAX: usize = 32;

/// Longest tag.
pub const TAG_BYTES_MAX: usize = 256;

/// The tags of one entry, packed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Tags<'a>(&'a [u8]);

/// Tags being collected for an entry or for a removal.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagSet(Vec<u8>);

/// Why some bytes can not be a tag, or not one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// No bytes at all, or more than a tag may have.
    #[error("tag has {0} bytes; a tag has 1 to {TAG_BYTES_MAX} bytes")]
    Length(usize),
    /// The entry has as many as it may.
    #[error("entry has more than {TAGS_MAX} tags")]
    TooMany,
    /// Bytes that [`TagSet`] never packs.
    #[error("packed tags are damaged")]
    Damaged,
}

// === impl Tags ===

impl<'a> Tags<'a> {
    /// None.
    pub const NONE: Self = Self(&[]);

    /// Accepts packed tags from outside.
    ///
    /// # Errors
    /// [`TagError`] unless the bytes are what [`TagSet`] packs.
    pub fn from_packed(packed: &'a [u8]) -> Result<Self, TagError> {
        let mut rest = packed;
        let mut count = 0;
        while !rest.is_empty() {
            let (tag, tail) = split_first(rest).ok_or(TagError::Damaged)?;
            check(tag)?;
            rest = tail;
            count += 1;
        }
        if count > TAGS_MAX { Err(TagError::TooMany) } else { Ok(Self(packed)) }
    }

    /// Tags that were accepted before.
    pub(super) const fn trusted(packed: &'a [u8]) -> Self {
        Self(packed)
    }

    /// The packed form.
    pub const fn packed(self) -> &'a [u8] {
        self.0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// One after the other, in the order given by the client.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> + Clone {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (tag, tail) = split_first(rest)?;
            rest = tail;
            Some(tag)
        })
    }

    /// Whether `tag` is one of them.
    pub fn contains(self, tag: &[u8]) -> bool {
        self.iter().any(|own| own == tag)
    }
}

impl fmt::Debug for Tags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|tag| tag.escape_ascii().to_string())).finish()
    }
}

// === impl TagSet ===

impl TagSet {
    /// None yet, and room for so many bytes of them, each with two more.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a tag; one that is there already counts once.
    ///
    /// # Errors
    /// [`TagError::Length`] or [`TagError::TooMany`]; the set is unchanged.
    pub fn add(&mut self, tag: &[u8]) -> Result<(), TagError> {
        check(tag)?;
        if self.tags().contains(tag) {
            return Ok(());
        }
        if self.tags().iter().count() == TAGS_MAX {
            return Err(TagError::TooMany);
        }
        let len = u16::try_from(tag.len()).expect("a tag is shorter than 64 KiB");
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(tag);
        Ok(())
    }

    /// The tags so far.
    pub fn tags(&self) -> Tags<'_> {
        Tags(&self.0)
    }
}

impl fmt::Debug for TagSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tags().fmt(f)
    }
}

const fn check(tag: &[u8]) -> Result<(), TagError> {
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX { Err(TagError::Length(tag.len())) } else { Ok(()) }
}

fn split_first(packed: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = packed.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_order_and_count_once() {
        let mut set = TagSet::default();
        for tag in [&b"b"[..], b"a", b"b", b"\0\xff"] {
            set.add(tag).unwrap();
        }
        assert_eq!(set.tags().iter().collect::<Vec<_>>(), [&b"b"[..], b"a", b"\0\xff"]);
        assert!(set.tags().contains(b"a") && !set.tags().contains(b"c"));
        assert_eq!(Tags::from_packed(set.tags().packed()).unwrap(), set.tags());
    }

    #[test]
    fn limits_are_told_with_the_value() {
        let mut set = TagSet::default();
        assert_eq!(set.add(b"").unwrap_err().to_string(), "tag has 0 bytes; a tag has 1 to 256 bytes");
        assert_eq!(set.add(&[b'x'; 257]).unwrap_err(), TagError::Length(257));
        for number in 0..TAGS_MAX {
            set.add(number.to_string().as_bytes()).unwrap();
        }
        assert_eq!(set.add(b"one more").unwrap_err().to_string(), "entry has more than 32 tags");
        set.add(b"0").unwrap();
    }

    #[test]
    fn damaged_tags_are_refused() {
        let mut set = TagSet::default();
        set.add(b"abc").unwrap();
        set.add(b"d").unwrap();
        let packed = set.tags().packed();
        for len in 1..packed.len() {
            let cut = Tags::from_packed(&packed[..len]);
            assert!(cut.is_err() || len == 5, "cut to {len} bytes and not noticed");
        }
        assert_eq!(Tags::from_packed(&[0, 0]).unwrap_err(), TagError::Length(0));
    }
}

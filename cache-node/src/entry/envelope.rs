//! The form of an entry outside memory, the same in every cold store.
//!
//! Version 1, numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 2 | magic `TC` |
//! | 2 | 1 | format version, 1 |
//! | 3 | 1 | flags; bits 0–1 compression of the payload (0 none, 1 lz4, 2 zstd), the others 0 |
//! | 4 | 4 | CRC-32C of everything behind it and of the four bytes before it |
//! | 8 | 8 | expiry, ms since 1970; all ones for none |
//! | 16 | 8 | until when it may be served stale, ms since 1970; 0 for never |
//! | 24 | 8 | when the value was written, ms since 1970 |
//! | 32 | 16 | position in the invalidation log that the value is as fresh as: ms, then sequence; 0 0 for none |
//! | 48 | 16 | node that wrote it and that node's write number; 0 0 for none |
//! | 64 | 8 | XXH3-64 of the key |
//! | 72 | 4 | length of the tags |
//! | 76 | … | tags, each with a length of two bytes before it; then the payload up to the end |
//!
//! A reader refuses what it does not understand: every refusal is a counted miss, never a wrong value.

use crc_fast::{CrcAlgorithm, Digest};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    clock::UnixMillis,
    entry::{Entry, EntryMeta},
};

/// Bytes before the tags.
pub const HEADER_BYTES: usize = 76;

const MAGIC: [u8; 2] = *b"TC";
const VERSION: u8 = 1;
const NEVER: u64 = u64::MAX;

/// Why bytes from a cold store are not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an envelope, or cut off.
    #[error("no envelope: {0} bytes without the magic or shorter than a header")]
    NotAnEnvelope(usize),
    /// Written by a version of the program that this one does not know.
    #[error("envelope of unknown format version {0}")]
    UnknownVersion(u8),
    /// The bytes read are not the bytes written.
    #[error("checksum does not match")]
    Checksum,
    /// An intact envelope of another key.
    #[error("envelope belongs to another key")]
    WrongKey,
    /// Flags, tags or lengths that this version never writes.
    #[error("envelope uses a feature this version does not know")]
    Unsupported,
}

/// The dates in the header, readable without its payload. Only for decisions that a wrong date can not harm, because
/// the checksum is not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    /// When the value stops being served; `None` is never.
    pub expires_at: Option<UnixMillis>,
    /// When the value was written.
    pub written_at: UnixMillis,
}

// === encode ===

/// Replaces the content of `out` by the envelope of `entry`, written at `written_at`.
pub fn encode(entry: &Entry, written_at: UnixMillis, out: &mut Vec<u8>) {
    out.clear();
    out.reserve(HEADER_BYTES + entry.value().len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&entry.expires_at().map_or(NEVER, |at| at.0).to_le_bytes());
    out.extend_from_slice(&0_u64.to_le_bytes());
    out.extend_from_slice(&written_at.0.to_le_bytes());
    out.extend_from_slice(&[0; 32]);
    out.extend_from_slice(&xxh3_64(entry.key()).to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    out.extend_from_slice(entry.value());
    let checksum = checksum(out);
    out[4..8].copy_from_slice(&checksum.to_le_bytes());
}

// === decode ===

/// Checks the envelope that was read under `key` and unpacks it.
///
/// # Errors
/// [`EnvelopeError`] unless the bytes are exactly what a version of this program wrote under this key.
pub fn decode(key: &[u8], bytes: &[u8]) -> Result<(Entry, Dates), EnvelopeError> {
    let dates = dates(bytes)?;
    if checksum(bytes) != u32::from_le_bytes(array_at(bytes, 4)) {
        return Err(EnvelopeError::Checksum);
    }
    if u64::from_le_bytes(array_at(bytes, 64)) != xxh3_64(key) {
        return Err(EnvelopeError::WrongKey);
    }
    let tags_len = u32::from_le_bytes(array_at(bytes, 72));
    if bytes[3] != 0 || tags_len != 0 {
        return Err(EnvelopeError::Unsupported);
    }
    let meta = EntryMeta { expires_at: dates.expires_at };
    Ok((Entry::new(key, &bytes[HEADER_BYTES..], meta), dates))
}

/// The dates of an envelope, without verifying its checksum.
///
/// # Errors
/// [`EnvelopeError`] if there is no header of a known version.
pub fn dates(bytes: &[u8]) -> Result<Dates, EnvelopeError> {
    if bytes.len() < HEADER_BYTES || bytes[..2] != MAGIC {
        return Err(EnvelopeError::NotAnEnvelope(bytes.len()));
    }
    if bytes[2] != VERSION {
        return Err(EnvelopeError::UnknownVersion(bytes[2]));
    }
    let expires_at = u64::from_le_bytes(array_at(bytes, 8));
    Ok(Dates {
        expires_at: (expires_at != NEVER).then_some(UnixMillis(expires_at)),
        written_at: UnixMillis(u64::from_le_bytes(array_at(bytes, 24))),
    })
}

fn checksum(envelope: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&envelope[8..]);
    digest.update(&envelope[..4]);
    u32::try_from(digest.finalize()).expect("CRC-32C has 32 bits")
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the slice has the array's length")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 1 as it is on volumes in the field. If this test fails, old volumes become unreadable: add a version.
    const GOLDEN_V1: &[u8] = include_bytes!("envelope/golden-v1.bin");

    const WRITTEN_AT: UnixMillis = UnixMillis(1_700_000_000_000);

    fn sample() -> Entry {
        Entry::new(b"user:42", b"a value", EntryMeta { expires_at: Some(UnixMillis(1_700_000_060_000)) })
    }

    fn envelope_of(entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        encode(entry, WRITTEN_AT, &mut out);
        out
    }

    #[test]
    fn version_1_is_written_and_read_as_in_the_golden_file() {
        assert_eq!(envelope_of(&sample()), GOLDEN_V1);
        let (entry, dates) = decode(b"user:42", GOLDEN_V1).unwrap();
        assert_eq!(entry.value(), b"a value");
        assert_eq!(entry.meta(), sample().meta());
        assert_eq!(dates.written_at, WRITTEN_AT);
    }

    #[test]
    fn entry_without_expiry_and_without_value_survives() {
        let entry = Entry::new(b"k", b"", EntryMeta::default());
        let (read, _) = decode(b"k", &envelope_of(&entry)).unwrap();
        assert_eq!((read.value(), read.expires_at()), (&b""[..], None));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        for bit in 0..GOLDEN_V1.len() * 8 {
            let mut bytes = GOLDEN_V1.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(b"user:42", &bytes).is_err(), "bit {bit} flipped and not noticed");
        }
        for len in 0..GOLDEN_V1.len() {
            assert!(decode(b"user:42", &GOLDEN_V1[..len]).is_err(), "cut to {len} bytes and not noticed");
        }
    }

    #[test]
    fn envelope_of_another_key_is_refused() {
        assert_eq!(decode(b"user:43", GOLDEN_V1).unwrap_err(), EnvelopeError::WrongKey);
    }

    #[test]
    fn unknown_version_is_refused() {
        for version in [0, 2, 255] {
            let mut bytes = GOLDEN_V1.to_vec();
            bytes[2] = version;
            assert_eq!(decode(b"user:42", &bytes).unwrap_err(), EnvelopeError::UnknownVersion(version));
        }
    }

    #[test]
    fn feature_of_a_later_version_is_refused_even_with_a_right_checksum() {
        let mut bytes = GOLDEN_V1.to_vec();
        bytes[3] = 1;
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(b"user:42", &bytes).unwrap_err(), EnvelopeError::Unsupported);
    }
}

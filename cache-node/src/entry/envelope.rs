//! The form of an entry outside memory, the same in every cold store.
//!
//! Version 1, numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 2 | magic `TC` |
//! | 2 | 1 | format version, 1 |
//! | 3 | 1 | flags; bits 0–1 compression of the payload (0 none, 1 lz4, 2 zstd), bit 2 negative, the others 0 |
//! | 4 | 4 | CRC-32C of everything behind it and of the four bytes before it |
//! | 8 | 8 | expiry, ms since 1970; all ones for none |
//! | 16 | 8 | until when it may be served stale, ms since 1970; 0 for never |
//! | 24 | 8 | when the value was written, ms since 1970 |
//! | 32 | 16 | position in the invalidation log that the value is as fresh as: ms, then sequence; 0 0 for none |
//! | 48 | 16 | node that wrote it and that node's write number; 0 0 for none |
//! | 64 | 8 | XXH3-64 of the key |
//! | 72 | 4 | length of the tags |
//! | 76 | … | tags, each with a length of two bytes before it; then the payload up to the end. A compressed payload begins with its length before compression in 4 bytes |
//!
//! A reader refuses what it does not understand: every refusal is a counted miss, never a wrong value.

use crc_fast::{CrcAlgorithm, Digest};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    clock::UnixMillis,
    entry::{Entry, EntryMeta, Position, Tags},
};

/// Bytes before the tags.
pub const HEADER_BYTES: usize = 76;

const MAGIC: [u8; 2] = *b"TC";
const VERSION: u8 = 1;
const NEVER: u64 = u64::MAX;
const NEGATIVE: u8 = 1 << 2;

/// The level that zstd's authors call the default: 3 to 5 times smaller JSON at 300 MB/s a core.
const ZSTD_LEVEL: i32 = 3;

/// No node accepts a larger value, so nothing larger was ever written.
const VALUE_BYTES_LIMIT: usize = 256 * 1024 * 1024;

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
    /// Until when the expired value may still be served stale; `None` is not at all.
    pub stale_until: Option<UnixMillis>,
    /// When the value was written.
    pub written_at: UnixMillis,
}

/// What can be told of an envelope without its payload, also unverified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline<'a> {
    /// Its dates.
    pub dates: Dates,
    /// What the value is at least as fresh as.
    pub position: Position,
    /// Words by which the entry can be removed.
    pub tags: Tags<'a>,
}

/// How payloads are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Fast.
    Lz4,
    /// Small, at its level 3.
    Zstd,
}

/// Writes envelopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    /// How payloads are compressed.
    pub compression: Compression,
    /// Values shorter than this stay as they are, in bytes.
    pub threshold_bytes: usize,
}

// === impl Dates ===

impl Dates {
    /// Until when the value is of any use: its expiry, or the end of its stale life; none is "until evicted".
    pub fn useful_until(&self) -> Option<UnixMillis> {
        self.expires_at.map(|at| self.stale_until.map_or(at, |stale| stale.max(at)))
    }
}

// === encode ===

impl Codec {
    /// Replaces the content of `out` by the envelope of `entry`, written at `written_at`.
    pub fn encode(&self, entry: &Entry, written_at: UnixMillis, out: &mut Vec<u8>) {
        let EntryMeta { expires_at, stale_until, position, tags, negative } = entry.meta();
        out.clear();
        out.reserve(HEADER_BYTES + tags.packed().len() + entry.value().len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, if negative { NEGATIVE } else { 0 }, 0, 0, 0, 0]);
        out.extend_from_slice(&expires_at.map_or(NEVER, |at| at.0).to_le_bytes());
        out.extend_from_slice(&stale_until.map_or(0, |at| at.0).to_le_bytes());
        out.extend_from_slice(&written_at.0.to_le_bytes());
        out.extend_from_slice(&position.millis().to_le_bytes());
        out.extend_from_slice(&position.sequence().to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&xxh3_64(entry.key()).to_le_bytes());
        let tags_len = u32::try_from(tags.packed().len()).expect("32 tags of 256 bytes");
        out.extend_from_slice(&tags_len.to_le_bytes());
        out.extend_from_slice(tags.packed());
        match self.compressed(entry.value()) {
            Some(payload) => {
                out[3] |= self.compression.flag();
                let len = u32::try_from(entry.value().len()).expect("a value has at most 256 MiB");
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(&payload);
            }
            None => out.extend_from_slice(entry.value()),
        }
        let checksum = checksum(out);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The value in fewer bytes, if that is wanted and possible.
    fn compressed(&self, value: &[u8]) -> Option<Vec<u8>> {
        if value.len() < self.threshold_bytes || value.is_empty() {
            return None;
        }
        let payload = match self.compression {
            Compression::None => return None,
            Compression::Lz4 => lz4_flex::block::compress(value),
            Compression::Zstd => zstd::bulk::compress(value, ZSTD_LEVEL).ok()?,
        };
        (payload.len() + 4 < value.len()).then_some(payload)
    }
}

impl Default for Codec {
    /// Without compression.
    fn default() -> Self {
        Self { compression: Compression::None, threshold_bytes: 4096 }
    }
}

impl Compression {
    const fn flag(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }
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
    let flags = bytes[3];
    let (tags, payload) = tags_and_payload(bytes)?;
    let meta = EntryMeta {
        expires_at: dates.expires_at,
        stale_until: dates.stale_until,
        position: position(bytes),
        tags,
        negative: flags & NEGATIVE != 0,
    };
    let entry = match flags & !NEGATIVE {
        0 => Entry::new(key, payload, meta),
        1 => Entry::new(key, &unpacked(payload, |bytes, len| lz4_flex::block::decompress(bytes, len).ok())?, meta),
        2 => Entry::new(key, &unpacked(payload, |bytes, len| zstd::bulk::decompress(bytes, len).ok())?, meta),
        _ => return Err(EnvelopeError::Unsupported),
    };
    Ok((entry, dates))
}

/// A compressed payload as it was before. The length is checked before that much memory is taken.
fn unpacked(
    payload: &[u8],
    decompress: impl FnOnce(&[u8], usize) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, EnvelopeError> {
    let (len, compressed) = payload.split_first_chunk().ok_or(EnvelopeError::Unsupported)?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > VALUE_BYTES_LIMIT {
        return Err(EnvelopeError::Unsupported);
    }
    decompress(compressed, len).filter(|value| value.len() == len).ok_or(EnvelopeError::Unsupported)
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
    let stale_until = u64::from_le_bytes(array_at(bytes, 16));
    Ok(Dates {
        expires_at: (expires_at != NEVER).then_some(UnixMillis(expires_at)),
        stale_until: (stale_until != 0).then_some(UnixMillis(stale_until)),
        written_at: UnixMillis(u64::from_le_bytes(array_at(bytes, 24))),
    })
}

/// Dates, position and tags of an envelope, without verifying its checksum.
///
/// # Errors
/// [`EnvelopeError`] if there is no header of a known version, or the tags are damaged.
pub fn outline(bytes: &[u8]) -> Result<Outline<'_>, EnvelopeError> {
    let dates = dates(bytes)?;
    let (tags, _) = tags_and_payload(bytes)?;
    Ok(Outline { dates, position: position(bytes), tags })
}

/// Both may only be asked of bytes that have dates.
fn position(bytes: &[u8]) -> Position {
    Position::from_parts(u64::from_le_bytes(array_at(bytes, 32)), u64::from_le_bytes(array_at(bytes, 40)))
}

fn tags_and_payload(bytes: &[u8]) -> Result<(Tags<'_>, &[u8]), EnvelopeError> {
    let tags_len = u32::from_le_bytes(array_at(bytes, 72)) as usize;
    let (tags, payload) = bytes[HEADER_BYTES..].split_at_checked(tags_len).ok_or(EnvelopeError::Unsupported)?;
    Ok((Tags::from_packed(tags).map_err(|_| EnvelopeError::Unsupported)?, payload))
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
    use crate::entry::TagSet;

    /// Version 1 as it is on volumes in the field. If this test fails, old volumes become unreadable: add a version.
    const GOLDEN_V1: &[u8] = include_bytes!("envelope/golden-v1.bin");

    const WRITTEN_AT: UnixMillis = UnixMillis(1_700_000_000_000);

    /// The same with everything that an entry can carry, by the version of 2026-11.
    const GOLDEN_V1_TAGGED_LZ4: &[u8] = include_bytes!("envelope/golden-v1-tagged-lz4.bin");
    const GOLDEN_V1_TAGGED_ZSTD: &[u8] = include_bytes!("envelope/golden-v1-tagged-zstd.bin");

    fn sample() -> Entry {
        let meta = EntryMeta { expires_at: Some(UnixMillis(1_700_000_060_000)), ..EntryMeta::default() };
        Entry::new(b"user:42", b"a value", meta)
    }

    /// An entry with everything, whose value can be compressed.
    fn full_sample() -> Entry {
        let mut tags = TagSet::default();
        tags.add(b"users").unwrap();
        tags.add(b"team:7").unwrap();
        let meta = EntryMeta {
            expires_at: Some(UnixMillis(1_700_000_060_000)),
            stale_until: Some(UnixMillis(1_700_000_090_000)),
            position: Position::from_parts(1_700_000_000_000, 3),
            tags: tags.tags(),
            negative: false,
        };
        Entry::new(b"user:42", &b"again ".repeat(30), meta)
    }

    const fn packing(compression: Compression) -> Codec {
        Codec { compression, threshold_bytes: 1 }
    }

    fn envelope_by(codec: Codec, entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        codec.encode(entry, WRITTEN_AT, &mut out);
        out
    }

    fn envelope_of(entry: &Entry) -> Vec<u8> {
        envelope_by(Codec::default(), entry)
    }

    #[test]
    fn tags_stale_life_position_and_compression_are_read_as_in_the_golden_files() {
        assert_eq!(envelope_by(packing(Compression::Lz4), &full_sample()), GOLDEN_V1_TAGGED_LZ4);
        // What zstd writes may change with its version; what it reads may not.
        for golden in [GOLDEN_V1_TAGGED_LZ4, GOLDEN_V1_TAGGED_ZSTD] {
            let (entry, dates) = decode(b"user:42", golden).unwrap();
            assert_eq!((entry.value(), entry.meta()), (full_sample().value(), full_sample().meta()));
            assert_eq!((dates.written_at, dates.stale_until), (WRITTEN_AT, full_sample().stale_until()));
        }
    }

    #[test]
    fn every_form_survives() {
        let negative = Entry::new(b"k", b"", EntryMeta { negative: true, ..EntryMeta::default() });
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            for entry in [sample(), full_sample(), negative.clone()] {
                let envelope = envelope_by(packing(compression), &entry);
                let (read, _) = decode(entry.key(), &envelope).unwrap();
                assert_eq!((read.value(), read.meta()), (entry.value(), entry.meta()), "{compression:?}");
            }
        }
    }

    #[test]
    fn value_that_does_not_shrink_or_is_short_stays_as_it_is() {
        let plain = envelope_of(&sample());
        assert_eq!(envelope_by(packing(Compression::Lz4), &sample()), plain);
        let patient = Codec { compression: Compression::Lz4, threshold_bytes: 181 };
        assert_eq!(envelope_by(patient, &full_sample())[3], 0);
        assert_eq!(envelope_by(Codec { threshold_bytes: 180, ..patient }, &full_sample())[3], 1);
    }

    #[test]
    fn lying_length_of_a_compressed_value_is_refused() {
        for golden in [GOLDEN_V1_TAGGED_LZ4, GOLDEN_V1_TAGGED_ZSTD] {
            let at = HEADER_BYTES + full_sample().tags().packed().len();
            for lie in [0_u32, 179, 181, u32::MAX] {
                let mut bytes = golden.to_vec();
                bytes[at..at + 4].copy_from_slice(&lie.to_le_bytes());
                let sum = checksum(&bytes);
                bytes[4..8].copy_from_slice(&sum.to_le_bytes());
                assert_eq!(decode(b"user:42", &bytes).unwrap_err(), EnvelopeError::Unsupported, "{lie}");
            }
        }
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
        for golden in [GOLDEN_V1, GOLDEN_V1_TAGGED_LZ4, GOLDEN_V1_TAGGED_ZSTD] {
            for bit in 0..golden.len() * 8 {
                let mut bytes = golden.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(b"user:42", &bytes).is_err(), "bit {bit} flipped and not noticed");
            }
            for len in 0..golden.len() {
                assert!(decode(b"user:42", &golden[..len]).is_err(), "cut to {len} bytes and not noticed");
            }
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
        bytes[3] = 8;
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(b"user:42", &bytes).unwrap_err(), EnvelopeError::Unsupported);
    }
}

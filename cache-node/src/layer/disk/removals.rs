//! Removals of tagged entries, as they lie in the column family `tags`: one record for each tag of "any of these", one
//! for the whole set of "all of these".
//!
//! | key | value |
//! |---|---|
//! | `1` and the packed tag, or `*` and the packed tags in order | the greatest position, 8 bytes little-endian; CRC-32C of key and position |

use std::time::Duration;

use crc_fast::{CrcAlgorithm, Digest};

use crate::{
    clock::UnixMillis,
    entry::{Position, TagSet, Tags},
    layer::{Matching, TagRemoval},
};

const ANY: u8 = b'1';
const ALL: u8 = b'*';
const VALUE_BYTES: usize = 12;

/// An entry is written this much later than its position at most: the longest that the write queue may have to wait
/// for a disk that fails. So long a removal outlives the entries that it could be about.
const LATEST_WRITE: Duration = Duration::from_secs(24 * 3600);

/// The keys of the records that keep this removal.
pub(super) fn keys(removal: &TagRemoval) -> Vec<Vec<u8>> {
    let mut tags: Vec<&[u8]> = removal.tags.tags().iter().collect();
    match removal.matching {
        Matching::Any => tags.into_iter().map(|tag| key(ANY, &[tag])).collect(),
        Matching::All => {
            tags.sort_unstable();
            vec![key(ALL, &tags)]
        }
    }
}

/// The value of a record.
pub(super) fn value(key: &[u8], position: Position) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    value[..8].copy_from_slice(&position.to_bits().to_le_bytes());
    let sum = checksum(key, &value[..8]);
    value[8..].copy_from_slice(&sum.to_le_bytes());
    value
}

/// The position of a record, unless it is damaged.
pub(super) fn position(key: &[u8], bytes: &[u8]) -> Option<Position> {
    let position = Position::from_bits(u64::from_le_bytes(*bytes.first_chunk()?));
    (value(key, position) == *bytes).then_some(position)
}

/// The removal that a record keeps, unless it is damaged.
pub(super) fn decode(key: &[u8], bytes: &[u8]) -> Option<TagRemoval> {
    let position = position(key, bytes)?;
    let (kind, packed) = key.split_first()?;
    let matching = match *kind {
        ANY => Matching::Any,
        ALL => Matching::All,
        _ => return None,
    };
    let mut tags = TagSet::default();
    for tag in Tags::from_packed(packed).ok()?.iter() {
        tags.add(tag).ok()?;
    }
    Some(TagRemoval { tags, matching, position })
}

/// Whether no entry of this layer can be as old as the position any more.
pub(super) fn is_over(position: Position, kept: Duration, now: UnixMillis) -> bool {
    UnixMillis(position.millis()).after(kept).after(LATEST_WRITE) <= now
}

fn key(kind: u8, tags: &[&[u8]]) -> Vec<u8> {
    let mut set = TagSet::default();
    for tag in tags {
        set.add(tag).expect("they were accepted as tags of one set before");
    }
    [&[kind], set.tags().packed()].concat()
}

fn checksum(key: &[u8], position: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(key);
    digest.update(position);
    u32::try_from(digest.finalize()).expect("CRC-32C has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(matching: Matching, tags: &[&str]) -> TagRemoval {
        let mut set = TagSet::default();
        tags.iter().for_each(|tag| set.add(tag.as_bytes()).unwrap());
        TagRemoval { tags: set, matching, position: Position::from_parts(7, 1) }
    }

    #[test]
    fn any_of_several_tags_is_one_record_each_and_all_of_them_one_in_any_order() {
        let any = removal(Matching::Any, &["b", "a"]);
        let records: Vec<_> = keys(&any).iter().map(|key| decode(key, &value(key, any.position)).unwrap()).collect();
        assert_eq!(records, [removal(Matching::Any, &["b"]), removal(Matching::Any, &["a"])]);
        let all = removal(Matching::All, &["b", "a"]);
        assert_eq!(keys(&all), keys(&removal(Matching::All, &["a", "b"])));
        let key = &keys(&all)[0];
        assert_eq!(decode(key, &value(key, all.position)), Some(removal(Matching::All, &["a", "b"])));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_a_record_is_noticed() {
        let any = removal(Matching::Any, &["tag"]);
        let key = keys(&any).remove(0);
        let value = value(&key, any.position);
        for bit in 0..value.len() * 8 {
            let mut damaged = value;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&key, &damaged), None, "bit {bit}");
        }
        for bit in 0..key.len() * 8 {
            let mut damaged = key.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, &value), None, "bit {bit} of the key");
        }
        (0..value.len()).for_each(|len| assert_eq!(decode(&key, &value[..len]), None, "cut to {len}"));
    }
}

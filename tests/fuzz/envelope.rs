//! Envelopes: whatever a volume or a Redis gives back is the value that was stored, or a refusal.

use cache_node::{
    clock::UnixMillis,
    entry::{
        Entry, EntryMeta, Position, TagSet,
        envelope::{Codec, Compression, dates, decode, outline},
    },
};
use rand::{RngExt, rngs::SmallRng};

use crate::{peak_resident_bytes, random};

const INPUTS: usize = 600_000;

/// What all of it may take: a length that is only announced reserves nothing that is used.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Envelopes as they are in the field, and their key.
const GOLDEN: [&[u8]; 3] = [
    include_bytes!("../../cache-node/src/entry/envelope/golden-v1.bin"),
    include_bytes!("../../cache-node/src/entry/envelope/golden-v1-tagged-lz4.bin"),
    include_bytes!("../../cache-node/src/entry/envelope/golden-v1-tagged-zstd.bin"),
];
const GOLDEN_KEY: &[u8] = b"user:42";

const HEADER_BYTES: usize = 76;

/// An intact envelope, and what is in it.
struct Intact {
    key: Vec<u8>,
    bytes: Vec<u8>,
    content: Content,
}

/// All that an envelope says of an entry.
type Content = (Vec<u8>, Option<UnixMillis>, Option<UnixMillis>, Position, Vec<u8>, bool);

fn content(entry: &Entry) -> Content {
    let EntryMeta { expires_at, stale_until, position, tags, negative } = entry.meta();
    (entry.value().to_vec(), expires_at, stale_until, position, tags.iter().collect::<Vec<_>>().concat(), negative)
}

fn bytes(random: &mut SmallRng, most: usize) -> Vec<u8> {
    let length = random.random_range(0..=most);
    (0..length).map(|_| random.random()).collect()
}

fn intact(random: &mut SmallRng) -> Intact {
    if random.random_range(0..4) == 0 {
        let bytes = GOLDEN[random.random_range(0..GOLDEN.len())].to_vec();
        let (entry, _) = decode(GOLDEN_KEY, &bytes).expect("it is intact");
        return Intact { key: GOLDEN_KEY.to_vec(), bytes, content: content(&entry) };
    }
    let mut key = bytes(random, 20);
    key.push(b'k');
    let mut tags = TagSet::default();
    for _ in 0..random.random_range(0..3) {
        let mut tag = bytes(random, 5);
        tag.push(b't');
        tags.add(&tag).expect("few and short");
    }
    let expires_at = random.random::<bool>().then(|| UnixMillis(random.random_range(0..u64::MAX)));
    let meta = EntryMeta {
        expires_at,
        stale_until: expires_at.filter(|_| random.random()).map(|at| UnixMillis(at.0.saturating_add(1))),
        position: Position::from_bits(random.random::<u64>() >> 1),
        tags: tags.tags(),
        negative: random.random_range(0..8) == 0,
    };
    // Some can be made smaller, others not.
    let value = if random.random() { vec![b'x'; random.random_range(0..300)] } else { bytes(random, 100) };
    let entry = Entry::new(&key, &value, meta);
    let compression = [Compression::None, Compression::Lz4, Compression::Zstd][random.random_range(0..3)];
    let mut envelope = Vec::new();
    Codec { compression, threshold_bytes: 1 }.encode(&entry, UnixMillis(random.random()), &mut envelope);
    Intact { key, bytes: envelope, content: content(&entry) }
}

/// Flips, cuts, stretches, or mixes with an envelope of another key.
fn damage(key: &[u8], bytes: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        // The header is where most of the meaning is.
        let at = if random.random() { at.min(random.random_range(0..HEADER_BYTES)) } else { at };
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes[at] = [0, 0xff, 0x7f, 0x80][random.random_range(0..4)],
            3 => bytes.truncate(at),
            4 => bytes.extend(self::bytes(random, 40)),
            5 => drop(bytes.splice(at..at, self::bytes(random, 8))),
            _ => {
                let other = intact(random);
                let end = bytes.len().min(other.bytes.len());
                if at < end && other.key != key {
                    bytes[at..end].copy_from_slice(&other.bytes[at..end]);
                }
            }
        }
    }
}

/// CRC-32C, by a table of our own: what is damaged has to get past the checksum to reach what is behind it.
fn checksum(table: &[u32; 256], bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| table[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

fn table() -> [u32; 256] {
    std::array::from_fn(|index| {
        let first = u32::try_from(index).expect("below 256");
        (0..8).fold(first, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 })
    })
}

fn seal(table: &[u32; 256], bytes: &mut [u8]) {
    if bytes.len() >= 8 {
        let sum = checksum(table, &[&bytes[8..], &bytes[..4]].concat());
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn any_bytes_are_the_value_that_was_stored_or_refused() {
    let (mut random, table) = (random(), table());
    let before = peak_resident_bytes();
    let (mut refused, mut right, mut sealed_right) = (0, 0, 0);
    for _ in 0..INPUTS {
        let Intact { key, mut bytes, content: stored } = intact(&mut random);
        let kind = random.random_range(0..10);
        match kind {
            0 => bytes = self::bytes(&mut random, 200),
            1 => {
                // As much of a header as it takes to look further.
                bytes = [b"TC\x01".as_slice(), &self::bytes(&mut random, 200)].concat();
                seal(&table, &mut bytes);
            }
            2 => {}
            3..6 => damage(&key, &mut bytes, &mut random),
            _ => {
                damage(&key, &mut bytes, &mut random);
                seal(&table, &mut bytes);
            }
        }
        // Neither is verified; they only must not fall over.
        let _ = (dates(&bytes), outline(&bytes));
        match decode(&key, &bytes) {
            Err(_) => {
                assert_ne!(kind, 2, "intact, and refused: {}", bytes.escape_ascii());
                refused += 1;
            }
            // Somebody who knows the checksum can write what he likes, but it is read the same by everybody.
            Ok((entry, _)) if matches!(kind, 1 | 6..) => {
                let mut again = Vec::new();
                Codec::default().encode(&entry, UnixMillis(0), &mut again);
                let (read, _) = decode(&key, &again).expect("what was read can be written");
                assert_eq!((read.key(), content(&read)), (key.as_slice(), content(&entry)));
                sealed_right += 1;
            }
            Ok((entry, _)) => {
                assert_eq!(content(&entry), stored, "{}", bytes.escape_ascii());
                right += 1;
            }
        }
        let other = [&key[..], b"'"].concat();
        assert!(decode(&other, &bytes).is_err(), "of another key: {}", bytes.escape_ascii());
    }
    // The generator has to reach all ends, or it proves nothing.
    for count in [refused, right, sealed_right] {
        assert!(count > INPUTS / 20, "{refused} refused, {right} right, {sealed_right} sealed and right");
    }
    let growth = peak_resident_bytes() - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
}

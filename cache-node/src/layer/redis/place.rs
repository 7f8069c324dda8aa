//! Positions of the log as Redis keeps them.
//!
//! A stored entry is `TL`, the position of its record (milliseconds in 6 bytes and sequence in 4, big-endian) twice, and
//! the envelope. The envelope has a checksum of its own; scripts, which know the position first, can not compute one, and
//! of two copies a damaged one shows. Other positions are kept as text, twice as well.

use crate::entry::Position;

/// Lua: reads the position in the first bytes of an entry; nil if they are damaged or no entry's.
macro_rules! lua_place {
    () => {
        "local function place(head)
  if #head < 22 or string.sub(head, 1, 2) ~= 'TL' or string.sub(head, 3, 12) ~= string.sub(head, 13, 22) then return end
  return struct.unpack('>I6I4', head, 3)
end
"
    };
}

/// Lua: reads a position that is kept as text; nil if there is none, or a damaged one.
macro_rules! lua_twice {
    () => {
        "local function twice(text)
  local ms, seq = string.match(text or '', '^(%d+)%-(%d+) %1%-%2')
  return tonumber(ms), tonumber(seq)
end
"
    };
}

pub(super) use {lua_place, lua_twice};

/// Bytes of a stored entry in front of its envelope.
pub(super) const HEAD_BYTES: usize = 22;

/// The position that a script answered.
pub(super) fn position(id: &[u8]) -> Option<Position> {
    let (millis, sequence) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some(Position::from_parts(millis.parse().ok()?, sequence.parse().ok()?))
}

/// A position that is kept as text, twice, and what follows it. None if it is damaged.
pub(super) fn twice(value: &[u8]) -> Option<(Position, &[u8])> {
    let mut words = value.splitn(3, |byte| *byte == b' ');
    let (first, second) = (words.next()?, words.next()?);
    Some((position(first)?, words.next().unwrap_or_default())).filter(|_| first == second)
}

/// A stored value: the position of its record, and the envelope. None if this version did not write it, or if it is damaged.
pub(super) fn stored(value: &[u8]) -> Option<(Position, &[u8])> {
    let (at, rest) = value.strip_prefix(b"TL")?.split_first_chunk::<10>()?;
    let envelope = rest.strip_prefix(at)?;
    let (millis, sequence) = at.split_at(6);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some((Position::from_parts(number(millis), number(sequence)), envelope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_stored_values_are_read_as_redis_writes_them() {
        assert_eq!(position(b"1800000000000-7"), Some(Position::from_parts(1_800_000_000_000, 7)));
        for text in ["", "7", "-", "1-", "x-1", "1-1-1"] {
            assert_eq!(position(text.as_bytes()), None, "{text}");
        }
        let at = [0, 0, 0, 0, 1, 5, 0, 0, 0, 7];
        let value = [&b"TL"[..], &at, &at, b"rest"].concat();
        assert_eq!(stored(&value), Some((Position::from_parts(261, 7), &b"rest"[..])));
        assert_eq!((stored(b"TC rest of an envelope"), stored(&value[..HEAD_BYTES - 1])), (None, None));
        assert_eq!(twice(b"261-7 261-7"), Some((Position::from_parts(261, 7), &b""[..])));
        assert_eq!(twice(b"261-7 261-7 what follows"), Some((Position::from_parts(261, 7), &b"what follows"[..])));
    }

    #[test]
    fn a_flipped_bit_never_makes_another_position() {
        let at = [0, 0, 0, 0, 1, 5, 0, 0, 0, 7];
        let value = [&b"TL"[..], &at, &at, b"rest"].concat();
        for bit in 0..8 * HEAD_BYTES {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(stored(&damaged), None, "bit {bit}");
        }
        let text = b"1800000000000-7 1800000000000-7";
        for bit in 0..8 * text.len() {
            let mut damaged = *text;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(twice(&damaged), None, "bit {bit}");
        }
    }
}

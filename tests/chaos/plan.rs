//! What clients ask for: which operations in which mixture, and what each looks like on the wire.

use std::time::Duration;

use rand::{RngExt, rngs::SmallRng};

use crate::{
    clock::{Nanos, nanos},
    history::{FOREIGN, KeyId, TagId, Target, WriteId},
};

/// Keys in all. Each is changed every few seconds, so that there are values to be wrong about.
pub(crate) const KEYS: KeyId = 4096;
/// Keys of one MGET.
pub(crate) const MULTI: usize = 24;
/// The first of them are changed all the time.
const BUSY_KEYS: KeyId = 64;
/// Tags in all; a key's tag is its number modulo this.
const TAGS: TagId = 32;
/// Every so manyth value is long enough to be stored apart by the disk layer.
const LONG_ONE_IN: WriteId = 37;

/// How long a receipt is waited for, in milliseconds.
const RECEIPT_MS: &str = "200";

/// What kinds of operations there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Changes a second of each client that makes changes.
    pub(crate) changes_per_second: u32,
    /// Whether there are tags, clears and flushes: what a plain cache does not have.
    pub(crate) own_commands: bool,
    /// Whether clients flush, so that the judge knows where queued writes stand.
    pub(crate) flushes: bool,
    /// Whether clients ask for receipts, so that the judge holds them against what other nodes serve.
    pub(crate) receipts: bool,
}

/// What a client asks for, and waits to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    Read(KeyId),
    Reads([KeyId; MULTI]),
    /// With the life of the value; 0 for none.
    Write(WriteId, KeyId, Option<TagId>, Nanos),
    Removal(Target),
    /// A new end for a life that has none: what a node writes then is made of what it had read.
    Touch(KeyId),
    Flush,
    Receipt,
}

/// The name of a key.
pub(crate) fn key(id: KeyId) -> String {
    format!("k{id}")
}

/// The name of a tag.
pub(crate) fn tag(id: TagId) -> String {
    format!("t{id}")
}

/// What this write stores: it names itself and its key, and its end shows that nothing is missing.
pub(crate) fn value(id: WriteId, key: KeyId) -> String {
    let length = if id.is_multiple_of(LONG_ONE_IN) { 6000 } else { 90 };
    format!("{id}:{key}:{:x<length$}.", "")
}

/// Which write stored this under the key.
pub(crate) fn written_by(key: KeyId, bytes: &[u8]) -> WriteId {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let id = text.split(':').next().and_then(|digits| digits.parse().ok()).unwrap_or(FOREIGN);
    // All of it must be as stored: a value that is torn or mixed was written by nobody.
    if value(id, key) == text { id } else { FOREIGN }
}

fn any_key(random: &mut SmallRng) -> KeyId {
    let busy = random.random_ratio(1, 16);
    random.random_range(0..if busy { BUSY_KEYS } else { KEYS })
}

// === impl Plan ===

impl Plan {
    /// How many changes are due after so long.
    pub(crate) fn due(&self, elapsed: Nanos) -> u64 {
        elapsed / (1_000_000_000 / u64::from(self.changes_per_second))
    }

    /// Some read.
    pub(crate) fn read(&self, random: &mut SmallRng) -> Asked {
        if random.random_ratio(1, 2) {
            return Asked::Read(any_key(random));
        }
        let mut keys = [0; MULTI];
        keys.iter_mut().for_each(|key| *key = any_key(random));
        Asked::Reads(keys)
    }

    /// Some change; one that writes takes its number from `next`.
    pub(crate) fn change(&self, random: &mut SmallRng, next: impl FnOnce() -> WriteId) -> Asked {
        match random.random_range(0..40_000) {
            0..28_000 => {
                let key = any_key(random);
                self.write(random, key, next())
            }
            28_000..28_050 if self.own_commands => Asked::Removal(Target::Tag(random.random_range(0..TAGS))),
            28_050..28_054 if self.own_commands => Asked::Removal(Target::All),
            28_060..28_100 if self.flushes => Asked::Flush,
            28_100..28_200 if self.receipts => Asked::Receipt,
            28_200..34_000 if self.own_commands => Asked::Touch(any_key(random)),
            _ => Asked::Removal(Target::Key(any_key(random))),
        }
    }

    /// A write of this key and number, with or without a tag and a life.
    pub(crate) fn write(&self, random: &mut SmallRng, key: KeyId, id: WriteId) -> Asked {
        let tag = (self.own_commands && random.random_ratio(1, 2)).then_some(key % TAGS);
        let life_ms = if random.random_ratio(1, 4) { random.random_range(500..8000) } else { 0 };
        Asked::Write(id, key, tag, nanos(Duration::from_millis(life_ms)))
    }

    /// The words of the command.
    pub(crate) fn words(&self, asked: &Asked) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match asked {
            Asked::Read(id) => words(&["GET", &key(*id)]),
            Asked::Reads(ids) => std::iter::once("MGET".to_owned()).chain(ids.iter().map(|id| key(*id))).collect(),
            Asked::Write(id, key_id, tag_id, life) => {
                let mut command = vec!["SET".to_owned(), key(*key_id), value(*id, *key_id)];
                if let Some(id) = tag_id {
                    "TC.SET".clone_into(&mut command[0]);
                    command.extend(["TAGS".to_owned(), "1".to_owned(), tag(*id)]);
                }
                if *life > 0 {
                    command.extend(["PX".to_owned(), (life / 1_000_000).to_string()]);
                }
                command
            }
            // Which tells whether all nodes hear of it.
            Asked::Removal(Target::Key(id)) if self.own_commands => words(&["TC.DEL", &key(*id)]),
            Asked::Removal(Target::Key(id)) => words(&["DEL", &key(*id)]),
            Asked::Removal(Target::Tag(id)) => words(&["TC.INVALIDATE", &tag(*id)]),
            Asked::Removal(Target::All) => words(&["FLUSHALL"]),
            // Never longer than it was.
            Asked::Touch(id) => words(&["EXPIRE", &key(*id), "100", "LT"]),
            Asked::Flush => words(&["TC.FLUSH"]),
            Asked::Receipt => words(&["TC.WAIT", RECEIPT_MS]),
        }
    }
}

// === impl Asked ===

impl Asked {
    /// Whether it changes nothing.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Reads(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_names_its_write_and_its_key() {
        for id in [1, LONG_ONE_IN, 4_000_000_000] {
            assert_eq!(written_by(7, value(id, 7).as_bytes()), id);
        }
    }

    #[test]
    fn value_that_is_torn_or_under_the_wrong_key_is_foreign() {
        let whole = value(5, 7);
        for wrong in [&whole[..whole.len() - 1], "", "5", "5:7:x.", "x:7:."] {
            assert_eq!(written_by(7, wrong.as_bytes()), FOREIGN, "{wrong}");
        }
        assert_eq!(written_by(8, whole.as_bytes()), FOREIGN);
    }

    #[test]
    fn command_of_a_write_has_its_tag_and_its_life() {
        let plan = Plan { changes_per_second: 1, own_commands: true, flushes: true, receipts: true };
        let plain = value(5, 7);
        assert_eq!(plan.words(&Asked::Write(5, 7, None, 0)), ["SET", "k7", &plain]);
        let words = plan.words(&Asked::Write(5, 7, Some(3), 250_000_000));
        assert_eq!(words, ["TC.SET", "k7", &plain, "TAGS", "1", "t3", "PX", "250"]);
    }
}

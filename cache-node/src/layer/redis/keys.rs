//! Where things are in Redis. All keys of a cache share one hash tag, so that they live in one slot of a cluster and
//! scripts may touch several of them.
//!
//! | key | what |
//! |---|---|
//! | `{tc:<uid>}:e:<key>` | envelope of an entry; its life in Redis is what is left of its useful life |
//! | `{tc:<uid>}:log` | stream, one record for each change: kind, key or tags, the process that made it |
//! | `{tc:<uid>}:floor` | id of a record, twice: entries with an older one count as missing |
//! | `{tc:<uid>}:tags` | hash of tag removals: which tags → id of the newest record of their removal, twice, and a checksum of the tags; under the empty name the id of the log's beginning |
//! | `{tc:<uid>}:epoch` | random token, made with the log |
//! | `{tc:<uid>}:history` | the replication id for which the log is known to be whole, and how that is known |
//! | `{tc:<uid>}:nodes` | hash of the nodes that follow the log: name → time, history, position, for how long it trusts itself |
//! | `{tc:<uid>}:l:<key>` | who may fill the entry, since which record, and until when |

use crc_fast::CrcAlgorithm;

use super::place::twice;
use crate::{
    entry::{TagSet, Tags},
    layer::{Matching, TagRemoval},
};

/// Names the keys of one cache.
pub(super) struct Keys {
    prefix: String,
    leases: String,
    log: String,
    floor: String,
    tags: String,
    epoch: String,
    history: String,
    nodes: String,
}

// === impl Keys ===

impl Keys {
    /// The keys of the cache with this identity.
    pub(super) fn new(cache_uid: &str) -> Self {
        let of = |name: &str| format!("{{tc:{cache_uid}}}:{name}");
        Self {
            prefix: of("e:"),
            leases: of("l:"),
            log: of("log"),
            floor: of("floor"),
            tags: of("tags"),
            epoch: of("epoch"),
            history: of("history"),
            nodes: of("nodes"),
        }
    }

    /// The key of an entry. The prefix is always added: a key that begins with it already is a key like others.
    pub(super) fn entry(&self, key: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), key].concat()
    }

    /// A glob that matches the keys of all entries and nothing else.
    pub(super) fn all_entries(&self) -> String {
        // What a cache is identified by has no letter that means something in a glob.
        format!("{}*", self.prefix)
    }

    /// The key of an entry's lease.
    pub(super) fn lease(&self, key: &[u8]) -> Vec<u8> {
        [self.leases.as_bytes(), key].concat()
    }

    /// The key of the log.
    pub(super) fn log(&self) -> &str {
        &self.log
    }

    /// The key of the log's token.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The key of the log's history.
    pub(super) fn history(&self) -> &str {
        &self.history
    }

    /// The key of the nodes that follow the log.
    pub(super) fn nodes(&self) -> &str {
        &self.nodes
    }

    /// The key of the floor.
    pub(super) fn floor(&self) -> &str {
        &self.floor
    }

    /// The key of the tag removals.
    pub(super) fn tags(&self) -> &str {
        &self.tags
    }
}

/// The fields that keep a removal: each tag on its own, or all together.
pub(super) fn fields(removal: &TagRemoval) -> Vec<Vec<u8>> {
    let tags = removal.tags.tags();
    match removal.matching {
        Matching::Any => tags.iter().map(|tag| [b"t:", tag].concat()).collect(),
        Matching::All => {
            let mut sorted: Vec<&[u8]> = tags.iter().collect();
            sorted.sort_unstable();
            vec![[b"a:", set_of(sorted).tags().packed()].concat()]
        }
    }
}

/// By which a damaged field shows; the value of the field ends in it.
pub(super) fn checksum(field: &[u8]) -> String {
    format!("{:08x}", crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, field))
}

/// The removal that a field keeps; none if it is damaged, or if no version of this program wrote it.
pub(super) fn removal(field: &[u8], value: &[u8]) -> Option<TagRemoval> {
    let (position, _) = twice(value).filter(|(_, sum)| *sum == checksum(field).as_bytes())?;
    let (tags, matching) = match field.split_first_chunk::<2>()? {
        (b"t:", tag) => {
            let mut tags = TagSet::default();
            tags.add(tag).ok()?;
            (tags, Matching::Any)
        }
        (b"a:", packed) => (set_of(Tags::from_packed(packed).ok()?.iter()), Matching::All),
        _ => return None,
    };
    Some(TagRemoval { tags, matching, position })
}

fn set_of<'a>(tags: impl IntoIterator<Item = &'a [u8]>) -> TagSet {
    let mut set = TagSet::default();
    for tag in tags {
        set.add(tag).expect("they were tags of a set before");
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Position;

    fn removal_of(tags: &[&[u8]], matching: Matching) -> TagRemoval {
        TagRemoval {
            tags: set_of(tags.iter().copied()),
            matching,
            position: Position::from_parts(1_800_000_000_000, 7),
        }
    }

    /// As the script puts it together.
    fn value_of(removal: &TagRemoval, field: &[u8]) -> Vec<u8> {
        format!("{0} {0} {1}", removal.position, checksum(field)).into_bytes()
    }

    #[test]
    fn a_flipped_bit_never_makes_another_removal() {
        let written = removal_of(&[b"group"], Matching::Any);
        let [field] = &fields(&written)[..] else { panic!("one tag, one field") };
        let value = value_of(&written, field);
        for bit in 0..8 * (field.len() + value.len()) {
            let mut both = [&field[..], &value].concat();
            both[bit / 8] ^= 1 << (bit % 8);
            let (field, value) = both.split_at(field.len());
            assert_eq!(removal(field, value), None, "bit {bit}");
        }
    }

    #[test]
    fn a_key_that_begins_with_the_prefix_is_a_key_like_others() {
        let keys = Keys::new("u-1");
        assert_eq!(keys.entry(b"a"), b"{tc:u-1}:e:a");
        assert_eq!(keys.entry(b"{tc:u-1}:e:a"), b"{tc:u-1}:e:{tc:u-1}:e:a");
        assert_ne!(keys.entry(b"floor"), keys.floor().as_bytes());
    }

    #[test]
    fn removals_survive_whatever_bytes_their_tags_have() {
        for matching in [Matching::Any, Matching::All] {
            let written = removal_of(&[b"t:\0\xff"], matching);
            let [field] = &fields(&written)[..] else { panic!("one tag, one field") };
            assert_eq!(removal(field, &value_of(&written, field)), Some(written));
        }
    }

    #[test]
    fn any_has_a_field_for_each_tag_and_all_has_one_in_whatever_order() {
        assert_eq!(fields(&removal_of(&[b"b", b"a"], Matching::Any)), [b"t:b".to_vec(), b"t:a".to_vec()]);
        let all = fields(&removal_of(&[b"b", b"a"], Matching::All));
        assert_eq!(all, fields(&removal_of(&[b"a", b"b"], Matching::All)));
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn foreign_fields_are_no_removals() {
        let position = Position::from_parts(1, 1);
        for field in ["t:", "x", "q:a", "a:\u{1}"] {
            let written = TagRemoval { position, ..removal_of(&[b"any"], Matching::Any) };
            assert_eq!(removal(field.as_bytes(), &value_of(&written, field.as_bytes())), None, "{field}");
        }
        for value in ["", "x", "1-1", "1-1 1-1"] {
            assert_eq!(removal(b"t:a", value.as_bytes()), None, "{value}");
        }
    }
}

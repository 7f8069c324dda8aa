//! Commands that read a value and write another: each a pure function from the old entry to the new one.

use bytes::Bytes;

use super::{
    Commands, Step, error,
    later::Later,
    options::{Existing, ExpireCondition, SignedMillis},
    owned,
};
use crate::{
    clock::UnixMillis,
    context::{OperationContext, Trail},
    coordinator::{Confirmed, TryUpdate, Update},
    entry::{Entry, EntryMeta, Key},
    protocol::{Replies, parse_i64},
};

/// A change of one value that depends on what it was.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// SET with a condition, GET, KEEPTTL or an expiry that is past.
    Set(ConditionalSet),
    /// EXPIRE and its kin.
    Expire {
        at: SignedMillis,
        condition: ExpireCondition,
    },
    Persist,
    /// INCR and its kin.
    Add(i64),
    Append {
        suffix: Bytes,
        value_bytes_max: usize,
    },
}

#[derive(Clone, Debug)]
pub(super) struct ConditionalSet {
    pub entry: Entry,
    pub existing: Existing,
    pub keep_life: bool,
    pub get: bool,
}

/// What the client is told about a change.
#[derive(Debug)]
pub(super) enum Changed {
    Ok,
    Null,
    Integer(i64),
    Old(Entry),
    Error(&'static str),
}

// === impl Change ===

impl Change {
    /// What becomes of the entry of `key`, whose live form is `old`.
    pub(super) fn apply(&self, cx: &OperationContext, key: &[u8], old: Option<&Entry>) -> (Update, Changed) {
        match self {
            Self::Set(set) => set.apply(cx, key, old),
            Self::Expire { at, condition } => match old {
                Some(old) if condition.allows(old.expires_at(), *at) => {
                    let update = match u64::try_from(*at).ok().filter(|&at| at > cx.now.0) {
                        Some(at) => Update::Revise(with_expiry(old, Some(UnixMillis(at)))),
                        None => Update::Remove,
                    };
                    (update, Changed::Integer(1))
                }
                _ => (Update::Keep, Changed::Integer(0)),
            },
            Self::Persist => match old {
                Some(old) if old.expires_at().is_some() => {
                    (Update::Revise(with_expiry(old, None)), Changed::Integer(1))
                }
                _ => (Update::Keep, Changed::Integer(0)),
            },
            Self::Add(delta) => add(key, old, *delta),
            Self::Append { suffix, value_bytes_max } => append(key, old, suffix, *value_bytes_max),
        }
    }
}

// === impl ConditionalSet ===

impl ConditionalSet {
    fn apply(&self, cx: &OperationContext, key: &[u8], old: Option<&Entry>) -> (Update, Changed) {
        let allowed = match self.existing {
            Existing::Any => true,
            Existing::Absent => old.is_none(),
            Existing::Present => old.is_some(),
        };
        let changed = match (self.get, old) {
            (true, Some(old)) => Changed::Old(old.clone()),
            (true, None) => Changed::Null,
            (false, _) if allowed => Changed::Ok,
            (false, _) => Changed::Null,
        };
        let update = if !allowed {
            Update::Keep
        } else if let Some(old) = old.filter(|_| self.keep_life) {
            Update::Set(Entry::new(
                key,
                self.entry.value(),
                EntryMeta { expires_at: old.expires_at(), ..EntryMeta::default() },
            ))
        } else if self.entry.expires_at().is_some_and(|at| at <= cx.now) {
            Update::Remove
        } else {
            Update::Set(self.entry.clone())
        };
        (update, changed)
    }
}

fn with_expiry(old: &Entry, expires_at: Option<UnixMillis>) -> Entry {
    // The life is new, so the stale life that began at its end is not known any more.
    Entry::new(old.key(), old.value(), EntryMeta { expires_at, stale_until: None, ..old.meta() })
}

/// What was made of nothing can not be older than what somebody else has done.
fn revised(entry: Entry, old: Option<&Entry>) -> Update {
    if old.is_some() { Update::Revise(entry) } else { Update::Set(entry) }
}

fn add(key: &[u8], old: Option<&Entry>, delta: i64) -> (Update, Changed) {
    let Some(number) = old.map_or(Some(0), |old| parse_i64(old.value())) else {
        return (Update::Keep, Changed::Error(error::NOT_INTEGER));
    };
    let Some(sum) = number.checked_add(delta) else {
        return (Update::Keep, Changed::Error(error::OVERFLOW));
    };
    let meta = old.map(Entry::meta).unwrap_or_default();
    let entry = Entry::new(key, itoa::Buffer::new().format(sum).as_bytes(), meta);
    (revised(entry, old), Changed::Integer(sum))
}

fn append(key: &[u8], old: Option<&Entry>, suffix: &[u8], value_bytes_max: usize) -> (Update, Changed) {
    let prefix = old.map_or(&[][..], Entry::value);
    let length = prefix.len() + suffix.len();
    if length > value_bytes_max {
        return (Update::Keep, Changed::Error(error::STRING_TOO_LONG));
    }
    let meta = old.map(Entry::meta).unwrap_or_default();
    let reply = Changed::Integer(i64::try_from(length).expect("the limit of a value fits an i64"));
    (revised(Entry::new(key, &[prefix, suffix].concat(), meta), old), reply)
}

// === impl Changed ===

impl Changed {
    fn reply(self, out: &mut Replies) {
        match self {
            Self::Ok => out.simple("OK"),
            Self::Null => out.null(),
            Self::Integer(value) => out.integer(value),
            Self::Old(entry) => out.value(&entry),
            Self::Error(text) => out.error(text),
        }
    }
}

// === impl Commands ===

impl Commands {
    /// Changes the entry now if its value is known without I/O.
    pub(super) fn change(&self, cx: &OperationContext, key: &[u8], change: Change, out: &mut Replies) -> Step {
        match self.coordinator.try_update(cx, key, |old| change.apply(cx, key, old)) {
            TryUpdate::Done(changed) => {
                changed.reply(out);
                Step::Done
            }
            TryUpdate::Cold => Step::Later(Later::change(owned(key), change)),
        }
    }

    pub(super) async fn change_later(
        &self,
        (cx, trail): (&OperationContext, &mut Trail),
        key: &Key,
        change: &Change,
        out: &mut Replies,
    ) {
        match self.coordinator.update_told((cx, trail), key, |old| change.apply(cx, key.as_bytes(), old)).await {
            Ok((Changed::Ok, Confirmed::Queued)) => out.simple("QUEUED"),
            Ok((changed, _)) => changed.reply(out),
            Err(error) => error::write(out, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        clock::Clock,
        context::{Origin, Trust},
    };

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn cx() -> OperationContext {
        let deadline: Instant = Clock::system().monotonic();
        OperationContext { id: 0, origin: Origin::Client, now: NOW, deadline, trust: Trust::Full }
    }

    fn entry(value: &str, expires_at: Option<u64>) -> Entry {
        Entry::new(b"k", value.as_bytes(), EntryMeta { expires_at: expires_at.map(UnixMillis), ..EntryMeta::default() })
    }

    fn stored(update: Update) -> Option<(String, Option<u64>)> {
        match update {
            Update::Set(entry) | Update::Revise(entry) => {
                let value = String::from_utf8(entry.value().to_vec()).unwrap();
                Some((value, entry.expires_at().map(|at| at.0)))
            }
            Update::Keep | Update::Remove => None,
        }
    }

    #[test]
    fn an_increment_keeps_the_life_of_the_key() {
        let (update, changed) = Change::Add(5).apply(&cx(), b"k", Some(&entry("-3", Some(2_000_000))));
        assert_eq!(stored(update), Some(("2".to_owned(), Some(2_000_000))));
        assert!(matches!(changed, Changed::Integer(2)));
    }

    #[test]
    fn an_increment_past_the_range_changes_nothing() {
        let (update, changed) = Change::Add(1).apply(&cx(), b"k", Some(&entry(&i64::MAX.to_string(), None)));
        assert!(matches!(update, Update::Keep));
        assert!(matches!(changed, Changed::Error(error::OVERFLOW)));
    }

    #[test]
    fn an_expiry_in_the_past_removes() {
        let change = Change::Expire { at: 999_999, condition: ExpireCondition::default() };
        assert!(matches!(change.apply(&cx(), b"k", Some(&entry("v", None))).0, Update::Remove));
        assert!(matches!(change.apply(&cx(), b"k", None).0, Update::Keep));
    }

    #[test]
    fn no_expiry_counts_as_the_end_of_time() {
        let gt = ExpireCondition { gt: true, ..ExpireCondition::default() };
        let lt = ExpireCondition { lt: true, ..ExpireCondition::default() };
        assert!(!gt.allows(None, i64::MAX));
        assert!(lt.allows(None, 5));
        assert!(gt.allows(Some(UnixMillis(4)), 5) && !gt.allows(Some(UnixMillis(5)), 5));
        assert!(lt.allows(Some(UnixMillis(6)), 5) && !lt.allows(Some(UnixMillis(5)), 5));
    }

    #[test]
    fn a_kept_life_outlives_the_old_value() {
        let set = ConditionalSet { entry: entry("new", None), existing: Existing::Any, keep_life: true, get: true };
        let (update, changed) = Change::Set(set).apply(&cx(), b"k", Some(&entry("old", Some(2_000_000))));
        assert_eq!(stored(update), Some(("new".to_owned(), Some(2_000_000))));
        assert!(matches!(changed, Changed::Old(old) if old.value() == b"old"));
    }

    #[test]
    fn a_value_grows_up_to_the_limit_and_no_further() {
        let append = |suffix: &'static str| Change::Append { suffix: suffix.into(), value_bytes_max: 5 };
        let (update, _) = append("de").apply(&cx(), b"k", Some(&entry("abc", None)));
        assert_eq!(stored(update), Some(("abcde".to_owned(), None)));
        let (update, changed) = append("def").apply(&cx(), b"k", Some(&entry("abc", None)));
        assert!(matches!((update, changed), (Update::Keep, Changed::Error(error::STRING_TOO_LONG))));
    }
}

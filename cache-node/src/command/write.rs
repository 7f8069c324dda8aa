//! Commands that write: SET, MSET, DEL, UNLINK, the EXPIRE family, PERSIST, the INCR family, APPEND, FLUSHALL, FLUSHDB.

use bytes::Bytes;

use super::{
    Call, Commands, Step,
    change::{Change, ConditionalSet},
    error,
    later::{Later, distinct},
    options::{Existing, ExpireCondition, Life, SetOptions, TimeUnit},
    table::Verb,
};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    coordinator::Coordinator,
    entry::{Entry, EntryMeta},
    protocol::{Replies, parse_i64},
};

// === impl Commands ===

impl Commands {
    pub(super) fn set(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let value = call.args.at(2);
        if !self.is_value(value, out) {
            return Step::Done;
        }
        let options = if call.args.len() == 3 {
            SetOptions::default()
        } else {
            match SetOptions::parse(&call.args, call.cx.now) {
                Ok(options) => options,
                Err(text) => {
                    out.error(&text);
                    return Step::Done;
                }
            }
        };
        let (expires_at, keep_life) = match options.life {
            Life::Unlimited => (None, false),
            Life::Kept => (None, true),
            Life::Until(at) if options.relative => (Some(self.jittered(key, at, call.cx.now)), false),
            Life::Until(at) => (Some(at), false),
        };
        let entry = Entry::new(key, value, EntryMeta { expires_at, ..EntryMeta::default() });
        let expired = expires_at.is_some_and(|at| at <= call.cx.now);
        if keep_life || expired || options.get || options.existing != Existing::Any {
            let set = ConditionalSet { entry, existing: options.existing, keep_life, get: options.get };
            return self.change(call.cx, key, Change::Set(set), out);
        }
        self.store(call.cx, entry, out)
    }

    /// Stores the entry now if that takes no waiting.
    pub(super) fn store(&self, cx: &OperationContext, entry: Entry, out: &mut Replies) -> Step {
        match self.coordinator.try_set(cx, entry) {
            Ok(()) => out.simple("OK"),
            Err(entry) => return Step::Later(Later::set(entry)),
        }
        Step::Done
    }

    /// An expiry that was given as a life, earlier by a share of it that the key chooses.
    pub(super) fn jittered(&self, key: &[u8], at: UnixMillis, now: UnixMillis) -> UnixMillis {
        now.after(Coordinator::jittered(at.since(now), key, self.settings.ttl_jitter_percent))
    }

    pub(super) fn mset(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let args = call.args;
        if args.len().is_multiple_of(2) {
            error::arity(out, call.verb.spec());
            return Step::Done;
        }
        let longest = || args.from(2).step_by(2).max_by_key(|value| value.len()).unwrap_or_default();
        if !self.are_keys(call, 2, out) || !self.is_value(longest(), out) {
            return Step::Done;
        }
        let mut entries = (1..args.len())
            .step_by(2)
            .map(|index| Entry::new(args.at(index), args.at(index + 1), EntryMeta::default()));
        while let Some(entry) = entries.next() {
            if let Err(entry) = self.coordinator.try_set(call.cx, entry) {
                return Step::Later(Later::set_many([entry].into_iter().chain(entries).collect()));
            }
        }
        out.simple("OK");
        Step::Done
    }

    pub(super) fn del(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        if !self.are_keys(call, 1, out) {
            return Step::Done;
        }
        let keys = distinct(&call.args);
        Step::Later(if call.verb == Verb::TcDel { Later::remove_told(keys) } else { Later::remove(keys) })
    }

    pub(super) fn expire(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let parsed = ExpireCondition::parse(&call.args).and_then(|condition| {
            let amount = parse_i64(call.args.at(2)).ok_or(error::NOT_INTEGER)?;
            let at = TimeUnit::of_command(call.verb).moment(amount, call.cx.now);
            let at = at.ok_or_else(|| error::invalid_expiry(call.verb.spec().name))?;
            Ok(Change::Expire { at, condition })
        });
        self.change_if_valid(call, key, parsed, out)
    }

    pub(super) fn persist(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        self.change(call.cx, key, Change::Persist, out)
    }

    /// INCR, DECR, INCRBY, DECRBY.
    pub(super) fn add(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let amount = || parse_i64(call.args.at(2)).ok_or(error::NOT_INTEGER);
        let delta = match call.verb {
            Verb::Incr => Ok(1),
            Verb::Decr => Ok(-1),
            Verb::Decrby => amount().and_then(|by| by.checked_neg().ok_or(error::DECREMENT_OVERFLOW)),
            _ => amount(),
        };
        self.change_if_valid(call, key, delta.map(Change::Add).map_err(str::to_owned), out)
    }

    pub(super) fn append(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let suffix = Bytes::copy_from_slice(call.args.at(2));
        let value_bytes_max = self.settings.value_bytes_max;
        self.change(call.cx, key, Change::Append { suffix, value_bytes_max }, out)
    }

    /// `FLUSHALL|FLUSHDB [ASYNC|SYNC]`: both words mean the same, because forgetting is one step in every layer.
    pub(super) fn flush(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let known = |word: &[u8]| word.eq_ignore_ascii_case(b"async") || word.eq_ignore_ascii_case(b"sync");
        if call.args.len() > 2 || !call.args.from(1).all(known) {
            out.error(error::SYNTAX);
            return Step::Done;
        }
        Step::Later(Later::clear())
    }

    fn change_if_valid(&self, call: &Call<'_>, key: &[u8], change: Result<Change, String>, out: &mut Replies) -> Step {
        match change {
            Ok(change) => self.change(call.cx, key, change, out),
            Err(text) => {
                out.error(&text);
                Step::Done
            }
        }
    }
}

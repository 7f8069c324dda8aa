//! Commands that read: GET, MGET, STRLEN, EXISTS, TTL, PTTL.

use super::{
    Call, Commands, REPLY_BYTES_PAUSE, Step,
    later::{Later, One, Tell},
    owned,
};
use crate::{
    context::{OperationContext, Trail},
    coordinator::Peek,
    entry::Entry,
    protocol::Replies,
};

// === impl Commands ===

impl Commands {
    /// GET, STRLEN, TTL, PTTL.
    pub(super) fn read(&self, call: &Call<'_>, what: One, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        match self.known(call.cx, key) {
            Peek::Hit(entry) => self.tell(call, what, Some(&entry), out),
            Peek::Absent => self.tell(call, what, None, out),
            Peek::Cold => return Step::Later(Later::read(owned(key), what)),
        }
        Step::Done
    }

    /// What is known without I/O; what is below memory only if nobody is to be told who was asked.
    #[inline]
    pub(super) fn known(&self, cx: &OperationContext, key: &[u8]) -> Peek {
        if self.settings.follows_reads { self.coordinator.peek(cx, key) } else { self.coordinator.get_now(cx, key) }
    }

    /// Writes the reply of a read without I/O, and counts how it ended.
    #[inline]
    fn tell(&self, call: &Call<'_>, what: One, entry: Option<&Entry>, out: &mut Replies) {
        self.answers.note(call.cx, entry, &Trail::default());
        if call.tracked {
            self.learn(entry);
        }
        what.reply(call.cx.now, entry, out);
    }

    pub(super) fn mget(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        if !self.are_keys(call, 1, out) {
            return Step::Done;
        }
        out.array(call.args.len() - 1);
        self.read_many(call, Tell::Values, out)
    }

    pub(super) fn exists(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        if !self.are_keys(call, 1, out) {
            return Step::Done;
        }
        self.read_many(call, Tell::Count(0), out)
    }

    /// Tells about the keys in order, up to the first that needs I/O or until the replies should be sent first.
    fn read_many(&self, call: &Call<'_>, mut tell: Tell, out: &mut Replies) -> Step {
        let mut keys = call.args.from(1);
        loop {
            let rest = keys.clone();
            let Some(key) = keys.next() else { break };
            let known = match self.known(call.cx, key) {
                Peek::Hit(entry) => Some(Some(entry)),
                Peek::Absent => Some(None),
                Peek::Cold => None,
            };
            match known.filter(|_| out.len() <= REPLY_BYTES_PAUSE) {
                Some(entry) => {
                    self.answers.note(call.cx, entry.as_ref(), &Trail::default());
                    if call.tracked {
                        self.learn(entry.as_ref());
                    }
                    tell.one(entry.as_ref(), out);
                }
                None => return Step::Later(Later::many(rest.map(owned).collect(), tell)),
            }
        }
        tell.end(out);
        Step::Done
    }
}

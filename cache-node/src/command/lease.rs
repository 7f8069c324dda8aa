//! TC.GETLEASE and TC.FILL: of all who miss a key, one fetches the value.

use std::time::Duration;

use super::{
    Call, Commands, Step, error,
    later::Later,
    options::{OwnSetOptions, millis_within},
    owned,
};
use crate::{
    context::{OperationContext, Trail},
    coordinator::{Leased, Peek, Token},
    entry::{Entry, Key},
    protocol::{Replies, parse_i64},
};

/// How long the value may be fetched if the client does not say, and at most.
const LIFE: Duration = Duration::from_secs(10);
const LIFE_MS_MAX: u64 = 60_000;

/// A fill on its way.
#[derive(Debug)]
pub(super) struct Fill {
    token: Token,
    entry: Entry,
}

// === impl Commands ===

impl Commands {
    /// `TC.GETLEASE key [PX ms]`
    pub(super) fn get_lease(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let life = match (call.args.get(2), call.args.get(3), call.args.len()) {
            (None, None, _) => Ok(LIFE),
            (Some(word), Some(ms), 4) if word.eq_ignore_ascii_case(b"px") => life(ms),
            _ => Err(error::SYNTAX.to_owned()),
        };
        match (life, self.coordinator.peek(call.cx, key)) {
            (Err(text), _) => out.error(&text),
            (Ok(_), Peek::Hit(entry)) => {
                self.note_read(call.cx, Some(&entry), &Trail::default(), call.tracked);
                value(Some(&entry), out);
            }
            (Ok(life), _) => return Step::Later(Later::lease(owned(key), life)),
        }
        Step::Done
    }

    pub(super) async fn lease_later(
        &self,
        cx: &OperationContext,
        (key, life): (&Key, Duration),
        tracked: bool,
        out: &mut Replies,
    ) -> Trail {
        let mut trail = Trail::default();
        let leased = match self.coordinator.get_or_lease((cx, &mut trail), key, life).await {
            Ok(leased) => leased,
            Err(error) => {
                error::write(out, &error);
                return trail;
            }
        };
        let entry = match &leased {
            Leased::Value(entry) | Leased::Wait(Some(entry), _) => Some(entry),
            Leased::Negative | Leased::Granted(..) | Leased::Wait(None, _) => None,
        };
        self.note_read(cx, entry, &trail, tracked);
        match leased {
            Leased::Value(entry) => value(Some(&entry), out),
            Leased::Negative => value(None, out),
            Leased::Granted(token, life) => {
                out.array(3);
                out.bulk(b"lease");
                out.integer(token.0);
                out.integer(millis(life));
            }
            Leased::Wait(None, left) => {
                out.array(2);
                out.bulk(b"wait");
                out.integer(millis(left));
            }
            Leased::Wait(Some(stale), left) => {
                out.array(3);
                out.bulk(b"stale");
                out.value(&stale);
                out.integer(millis(left));
            }
        }
        trail
    }

    fn note_read(&self, cx: &OperationContext, entry: Option<&Entry>, trail: &Trail, tracked: bool) {
        self.answers.note(cx, entry, trail);
        if tracked {
            self.learn(entry);
        }
    }

    /// `TC.FILL key token value [EX s|PX ms|EXAT s|PXAT ms] [TAGS n tag …] [STALE ms] [NEGATIVE]`
    pub(super) fn fill(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let value = call.args.at(3);
        if !self.is_value(value, out) {
            return Step::Done;
        }
        let token = parse_i64(call.args.at(2)).map(Token).ok_or_else(|| error::NOT_INTEGER.to_owned());
        let parsed = token.and_then(|token| Ok((token, OwnSetOptions::parse_fill(&call.args, call.cx.now)?)));
        let (token, options) = match parsed {
            Ok(parsed) => parsed,
            Err(text) => {
                out.error(&text);
                return Step::Done;
            }
        };
        let entry = self.own_entry(call.cx, key, value, &options);
        Step::Later(Later::fill(Fill { token, entry }))
    }

    pub(super) async fn fill_later(&self, op: (&OperationContext, &mut Trail), fill: Fill, out: &mut Replies) {
        match self.coordinator.fill(op, fill.token, fill.entry).await {
            Ok(true) => out.simple("OK"),
            Ok(false) => out.null(),
            Err(error) => error::write(out, &error),
        }
    }
}

fn value(entry: Option<&Entry>, out: &mut Replies) {
    out.array(2);
    out.bulk(b"value");
    match entry {
        Some(entry) => out.value(entry),
        None => out.null(),
    }
}

fn life(ms: &[u8]) -> Result<Duration, String> {
    millis_within(ms, LIFE_MS_MAX)
        .ok_or_else(|| format!("ERR PX is '{}'; a lease has 1 to {LIFE_MS_MAX} ms", error::quoted(ms)))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX).max(1)
}

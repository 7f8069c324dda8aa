//! Commands that Redis does not have, all under `TC.`: values with tags and a stale life, removal by tag, and what the
//! layers do. Any client can call them with its generic call.

use super::{
    Call, Commands, Step,
    change::{Change, ConditionalSet},
    later::Later,
    options::{Existing, Life, OwnSetOptions},
    owned,
};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    coordinator::Seen,
    entry::{Entry, EntryMeta, Key, Position, TagSet, Tags},
    layer::{Health, HealthState, Latency, Matching, Stats},
    protocol::Replies,
};

// === impl Commands ===

impl Commands {
    /// TC.SET.
    pub(super) fn own_set(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        let value = call.args.at(2);
        if !self.is_value(value, out) {
            return Step::Done;
        }
        let options = match OwnSetOptions::parse(&call.args, call.cx.now) {
            Ok(options) => options,
            Err(text) => {
                out.error(&text);
                return Step::Done;
            }
        };
        let entry = self.own_entry(call.cx, key, value, &options);
        if options.set.existing != Existing::Any || entry.expires_at().is_some_and(|at| at <= call.cx.now) {
            let set = ConditionalSet { entry, existing: options.set.existing, keep_life: false, get: false };
            return self.change(call.cx, key, Change::Set(set), out);
        }
        self.store(call.cx, entry, out)
    }

    pub(super) fn own_entry(&self, cx: &OperationContext, key: &[u8], value: &[u8], options: &OwnSetOptions) -> Entry {
        let expires_at = match options.set.life {
            Life::Until(at) => Some(if options.set.relative { self.jittered(key, at, cx.now) } else { at }),
            Life::Unlimited | Life::Kept => options.negative.then(|| cx.now.after(self.settings.negative_ttl)),
        };
        let meta = self.coordinator.meta(cx, expires_at, options.stale, options.tags.tags());
        Entry::new(key, value, EntryMeta { negative: options.negative, ..meta })
    }

    /// TC.INVALIDATE and TC.INVALIDATEALL.
    pub(super) fn remove_tagged(&self, call: &Call<'_>, matching: Matching, out: &mut Replies) -> Step {
        let mut tags = TagSet::default();
        for tag in call.args.from(1) {
            if let Err(error) = tags.add(tag) {
                out.error(&format!("ERR {error}"));
                return Step::Done;
            }
        }
        Step::Later(Later::remove_tagged(tags, matching))
    }

    /// TC.EXPLAIN.
    pub(super) fn explain(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let Some(key) = self.key(call, 1, out) else { return Step::Done };
        Step::Later(Later::explain(owned(key)))
    }

    pub(super) async fn explain_later(&self, cx: &OperationContext, key: &Key, out: &mut Replies) {
        let left = cx.deadline.saturating_duration_since(self.clock.monotonic()).as_millis();
        let explanation = self.coordinator.explain(cx, key).await;
        out.map(8);
        field(out, "key", |out| out.bulk(key.as_bytes()));
        field(out, "operation", |out| out.integer(i64::try_from(explanation.id).unwrap_or(i64::MAX)));
        field(out, "origin", |out| out.bulk(cx.origin.label().as_bytes()));
        field(out, "now", |out| out.integer(i64::try_from(cx.now.0).unwrap_or(i64::MAX)));
        field(out, "deadlineMs", |out| out.integer(i64::try_from(left).unwrap_or(i64::MAX)));
        field(out, "trust", |out| out.bulk(cx.trust.label().as_bytes()));
        field(out, "answeredBy", |out| out.bulk(explanation.answered_by.unwrap_or("none").as_bytes()));
        field(out, "layers", |out| {
            out.array(explanation.seen.len());
            explanation.seen.iter().for_each(|seen| explain_part(seen, cx.now, out));
        });
    }

    /// TC.LAYERS.
    pub(super) fn layers(&self, out: &mut Replies) -> Step {
        let parts = self.coordinator.parts();
        out.array(1 + parts.len());
        layer("node", &self.coordinator.health(), &self.coordinator.stats(), out);
        for part in parts {
            layer(part.name(), &part.health(), &part.stats(), out);
        }
        Step::Done
    }
}

fn explain_part(seen: &Seen, now: UnixMillis, out: &mut Replies) {
    let Seen { part, outcome, note, took_us, entry } = seen;
    let entry = entry.as_ref();
    let facts: [(&str, Option<u64>); 4] = [
        ("bytes", entry.map(|entry| entry.value().len() as u64)),
        ("ttlMs", entry.and_then(Entry::expires_at).map(|at| millis(at, now))),
        ("staleMs", entry.and_then(Entry::stale_until).map(|at| millis(at, now))),
        ("tookUs", (*took_us > 0).then_some(*took_us)),
    ];
    let tags = entry.map_or(Tags::NONE, Entry::tags);
    let position = entry.map(Entry::position).filter(|position| *position != Position::NONE);
    let known = facts.iter().filter(|(_, number)| number.is_some()).count();
    let texts = usize::from(!note.is_empty()) + usize::from(!tags.is_empty()) + usize::from(position.is_some());
    out.map(2 + known + texts);
    field(out, "layer", |out| out.bulk(part.as_bytes()));
    field(out, "outcome", |out| out.bulk(outcome.label().as_bytes()));
    if !note.is_empty() {
        field(out, "note", |out| out.bulk(note.as_bytes()));
    }
    for (name, number) in facts {
        if let Some(number) = number {
            field(out, name, |out| out.integer(i64::try_from(number).unwrap_or(i64::MAX)));
        }
    }
    if let Some(position) = position {
        field(out, "position", |out| out.bulk(position.to_string().as_bytes()));
    }
    if !tags.is_empty() {
        field(out, "tags", |out| tag_array(tags, out));
    }
}

fn layer(name: &str, health: &Health, stats: &Stats, out: &mut Replies) {
    let state = match health.state {
        HealthState::Healthy => "Healthy",
        HealthState::Disabled => "Disabled",
        HealthState::Degraded => "Degraded",
        HealthState::Unavailable => "Unavailable",
    };
    let Stats { hits, misses, stale_hits, operations, errors, latency, entries, bytes, capacity_bytes, extras } = stats;
    let known = [("hits", *hits), ("misses", *misses), ("staleHits", *stale_hits), ("operations", *operations)];
    let optional = [("entries", *entries), ("bytes", *bytes), ("capacityBytes", *capacity_bytes)];
    let optional = optional.into_iter().filter_map(|(name, number)| Some((name, number?)));
    let numbers: Vec<(&str, u64)> = known.into_iter().chain(optional).chain(extras.iter().copied()).collect();
    out.map(7 + numbers.len());
    for (key, text) in
        [("layer", name), ("health", state), ("reason", health.reason), ("message", health.message.as_str())]
    {
        field(out, key, |out| out.bulk(text.as_bytes()));
    }
    integer(out, "sinceUnixMs", health.since.0);
    field(out, "errors", |out| {
        out.map(errors.len());
        errors.iter().for_each(|(kind, count)| integer(out, kind.label(), *count));
    });
    field(out, "latency", |out| {
        out.map(latency.len());
        for Latency { operation, count, mean_ns, p99_ns } in latency {
            field(out, operation, |out| {
                out.map(3);
                integer(out, "count", *count);
                integer(out, "meanNs", *mean_ns);
                integer(out, "p99Ns", *p99_ns);
            });
        }
    });
    numbers.into_iter().for_each(|(name, number)| integer(out, name, number));
}

/// The tags of an entry.
pub(super) fn tag_array(tags: Tags<'_>, out: &mut Replies) {
    out.array(tags.iter().count());
    tags.iter().for_each(|tag| out.bulk(tag));
}

fn integer(out: &mut Replies, name: &str, number: u64) {
    field(out, name, |out| out.integer(i64::try_from(number).unwrap_or(i64::MAX)));
}

fn field(out: &mut Replies, name: &str, value: impl FnOnce(&mut Replies)) {
    out.bulk(name.as_bytes());
    value(out);
}

/// Milliseconds from now on; none left is 0.
fn millis(at: UnixMillis, now: UnixMillis) -> u64 {
    u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX)
}

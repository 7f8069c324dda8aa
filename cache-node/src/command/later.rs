//! Commands that need I/O: owned, so that they can wait while the buffer they came in is used for other clients.
//!
//! Neighbours in a pipeline that can share one round trip are joined: reads with reads, removals of different keys
//! with removals.

use std::{collections::HashSet, time::Duration};

use futures::future::join_all;

use super::{
    Commands, Near, REPLY_BYTES_PAUSE, change::Change, error, lease::Fill, own::tag_array, owned, table::Verb,
};
use crate::{
    clock::UnixMillis,
    context::{OperationContext, Trail},
    coordinator::{Confirmed, Peek, Reading, Removed, Wants, WriteError},
    entry::{Entry, Key, TagSet},
    layer::Matching,
    protocol::{Arguments, Replies},
};

/// Reads of a pipeline that share one round trip. A client that does not read its replies holds at most so many values.
const READS_JOINED_MAX: usize = 32;

/// Keys that removals of a pipeline, joined, may have.
const REMOVALS_JOINED_MAX: usize = 256;

/// A command, or several joined, whose replies need I/O.
#[derive(Debug)]
pub struct Later {
    work: Work,
    /// Of a client that keeps what it reads.
    near: Option<Near>,
}

#[derive(Debug)]
enum Work {
    /// One or several single reads.
    Reads(Vec<Read>),
    /// MGET or EXISTS, from the first key that was cold.
    Many(ManyReads),
    Lease(Key, Duration),
    Explain(Key),
    Wait(Duration),
    Capacity(u64),
    Write(Write),
}

#[derive(Debug)]
enum Write {
    Set(Entry),
    SetMany(Vec<Entry>),
    Change(Box<(Key, Change)>),
    /// One or several commands, each with its keys.
    Removals(Vec<Vec<Key>>),
    /// A removal whose caller wants to know who knows of it.
    RemoveTold(Vec<Key>),
    Clear,
    RemoveTagged(TagSet, Matching),
    Fill(Box<Fill>),
    Flush,
}

/// What running a command that needs I/O came to.
#[must_use]
#[derive(Debug)]
pub struct Ran {
    /// What is left of it, once so many replies are written that they should be sent first.
    pub left: Option<Later>,
    /// The operation that it was for the layers.
    pub operation: u64,
    /// Which layers were asked.
    pub trail: Trail,
}

/// A single read: what to tell about which entry.
#[derive(Debug)]
struct Read {
    what: One,
    from: Source,
}

#[derive(Debug)]
enum Source {
    Known(Option<Entry>),
    Cold(Key),
}

#[derive(Debug)]
struct ManyReads {
    keys: Vec<Key>,
    /// How many of the keys were told about.
    told: usize,
    tell: Tell,
    /// Whether the client may keep what it reads.
    tracked: bool,
}

/// What a command with one key tells about it.
#[derive(Clone, Copy, Debug)]
pub(super) enum One {
    Value,
    Length,
    LifeSeconds,
    LifeMillis,
    Tags,
}

/// What a command with many keys tells about them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tell {
    /// The value of each.
    Values,
    /// How many there are; so far.
    Count(i64),
}

// === impl Later ===

impl Later {
    const fn new(work: Work) -> Self {
        Self { work, near: None }
    }

    /// The same for a client that may keep what it reads.
    pub(super) fn of(self, near: Option<Near>) -> Self {
        Self { near, ..self }
    }

    pub(super) fn read(key: Key, what: One) -> Self {
        Self::new(Work::Reads(vec![Read { what, from: Source::Cold(key) }]))
    }

    pub(super) fn many(keys: Vec<Key>, tell: Tell) -> Self {
        Self::new(Work::Many(ManyReads { keys, told: 0, tell, tracked: false }))
    }

    pub(super) fn set(entry: Entry) -> Self {
        Self::new(Work::Write(Write::Set(entry)))
    }

    pub(super) fn set_many(entries: Vec<Entry>) -> Self {
        Self::new(Work::Write(Write::SetMany(entries)))
    }

    pub(super) fn change(key: Key, change: Change) -> Self {
        Self::new(Work::Write(Write::Change(Box::new((key, change)))))
    }

    pub(super) fn remove(keys: Vec<Key>) -> Self {
        Self::new(Work::Write(Write::Removals(vec![keys])))
    }

    pub(super) fn remove_told(keys: Vec<Key>) -> Self {
        Self::new(Work::Write(Write::RemoveTold(keys)))
    }

    pub(super) fn clear() -> Self {
        Self::new(Work::Write(Write::Clear))
    }

    pub(super) fn remove_tagged(tags: TagSet, matching: Matching) -> Self {
        Self::new(Work::Write(Write::RemoveTagged(tags, matching)))
    }

    pub(super) fn lease(key: Key, life: Duration) -> Self {
        Self::new(Work::Lease(key, life))
    }

    pub(super) fn fill(fill: Fill) -> Self {
        Self::new(Work::Write(Write::Fill(Box::new(fill))))
    }

    pub(super) fn explain(key: Key) -> Self {
        Self::new(Work::Explain(key))
    }

    pub(super) fn wait(limit: Duration) -> Self {
        Self::new(Work::Wait(limit))
    }

    pub(super) fn flush() -> Self {
        Self::new(Work::Write(Write::Flush))
    }

    pub(super) fn capacity(bytes: u64) -> Self {
        Self::new(Work::Capacity(bytes))
    }
}

// === impl Commands ===

impl Commands {
    /// Takes the next command of the pipeline into `later`, if both can share a round trip. Returns which it was.
    pub fn join(&self, cx: &OperationContext, later: &mut Later, args: &Arguments<'_>) -> Option<Verb> {
        let verb = Verb::find(args.name()).filter(|verb| verb.spec().takes(args.len()))?;
        let joined = match &mut later.work {
            // A read of a client that keeps it is entered before it is run.
            _ if later.near.is_some() => false,
            Work::Reads(reads) if reads.len() < READS_JOINED_MAX => {
                let wants = |what: One| reads.first().is_none_or(|first| first.what.wants() == what.wants());
                let what = One::of(verb).filter(|what| wants(*what));
                let read = what.and_then(|what| self.read_for_join(cx, what, args.at(1)));
                read.map(|read| reads.push(read)).is_some()
            }
            Work::Write(Write::Removals(removals)) if matches!(verb, Verb::Del | Verb::Unlink) => {
                join_removal(removals, args)
            }
            _ => false,
        };
        joined.then_some(verb)
    }

    fn read_for_join(&self, cx: &OperationContext, what: One, key: &[u8]) -> Option<Read> {
        Key::check(key).ok()?;
        let from = match self.known(cx, key) {
            Peek::Hit(entry) => Source::Known(Some(entry)),
            Peek::Absent => Source::Known(None),
            Peek::Cold => Source::Cold(owned(key)),
        };
        Some(Read { what, from })
    }

    /// Goes on with a command that needs I/O.
    pub async fn run_later(&self, later: Later, out: &mut Replies) -> Ran {
        let cx = &self.context();
        let mut ran = Ran { left: None, operation: cx.id, trail: Trail::default() };
        let Later { work, near } = later;
        if let Some(near) = &near {
            near.runs(cx.id);
        }
        match work {
            Work::Reads(reads) => ran.trail = self.finish_reads(cx, reads, near.is_some(), out).await,
            Work::Many(many) => {
                let many = ManyReads { tracked: near.is_some(), ..many };
                let left = self.go_on(cx, many, &mut ran, out).await;
                ran.left = left.map(|many| Later { work: Work::Many(many), near });
            }
            Work::Lease(key, life) => ran.trail = self.lease_later(cx, (&key, life), near.is_some(), out).await,
            Work::Explain(key) => self.explain_later(cx, &key, out).await,
            Work::Wait(limit) => self.wait_later((cx, &mut ran.trail), limit, out).await,
            Work::Capacity(bytes) => self.set_capacity(bytes, out).await,
            Work::Write(write) => self.write_later((cx, &mut ran.trail), write, out).await,
        }
        ran
    }

    async fn write_later(&self, (cx, trail): (&OperationContext, &mut Trail), write: Write, out: &mut Replies) {
        match write {
            Write::Set(entry) => confirm(self.coordinator.set((cx, trail), entry).await, out),
            Write::SetMany(entries) => confirm(self.coordinator.set_many((cx, trail), entries).await, out),
            Write::Change(change) => self.change_later((cx, trail), &change.0, &change.1, out).await,
            Write::Removals(removals) => self.finish_removals((cx, trail), &removals, out).await,
            Write::RemoveTold(keys) => {
                let removed = self.coordinator.remove_many((cx, trail), &keys).await;
                confirm(removed.map(|removed| removed.confirmed), out);
            }
            Write::Clear => confirm(self.coordinator.clear((cx, trail)).await, out),
            Write::RemoveTagged(tags, matching) => {
                confirm(self.coordinator.remove_tagged((cx, trail), tags, matching).await, out);
            }
            Write::Fill(fill) => self.fill_later((cx, trail), *fill, out).await,
            Write::Flush => confirm(self.coordinator.flush((cx, trail)).await, out),
        }
    }

    async fn finish_reads(&self, cx: &OperationContext, reads: Vec<Read>, tracked: bool, out: &mut Replies) -> Trail {
        let cold: Vec<Key> = reads.iter().filter_map(Read::cold_key).cloned().collect();
        // Reads of one kind only are joined.
        let wants = reads.first().map_or(Wants::Value, |read| read.what.wants());
        let (found, trail) = match cold.as_slice() {
            [key] => {
                let Reading { entry, trail } = self.coordinator.get(cx, key, wants).await;
                (vec![entry], trail)
            }
            keys => self.coordinator.get_many(cx, keys, wants).await,
        };
        let mut found = found.into_iter();
        for read in reads {
            let entry = match read.from {
                Source::Known(entry) => entry,
                Source::Cold(_) => found.next().flatten(),
            };
            self.answers.note(cx, entry.as_ref(), &trail);
            if tracked {
                self.learn(entry.as_ref());
            }
            read.what.reply(cx.now, entry.as_ref(), out);
        }
        trail
    }

    async fn go_on(
        &self,
        cx: &OperationContext,
        mut many: ManyReads,
        ran: &mut Ran,
        out: &mut Replies,
    ) -> Option<ManyReads> {
        while many.told < many.keys.len() {
            if out.len() > REPLY_BYTES_PAUSE {
                return Some(many);
            }
            let end = many.keys.len().min(many.told + self.values.keys_at_once());
            let (entries, asked) = self.coordinator.get_many(cx, &many.keys[many.told..end], many.tell.wants()).await;
            asked.steps().for_each(|step| ran.trail.add(*step));
            debug_assert_eq!(entries.len(), end - many.told, "one answer per key");
            self.values.read(entries.iter().flatten().map(|entry| entry.value().len()).max());
            for entry in &entries {
                self.answers.note(cx, entry.as_ref(), &asked);
                if many.tracked {
                    self.learn(entry.as_ref());
                }
                many.tell.one(entry.as_ref(), out);
            }
            many.told = end;
        }
        many.tell.end(out);
        None
    }

    async fn finish_removals(
        &self,
        (cx, trail): (&OperationContext, &mut Trail),
        removals: &[Vec<Key>],
        out: &mut Replies,
    ) {
        let remove = async |keys: &Vec<Key>| {
            let mut trail = Trail::default();
            (self.coordinator.remove_many((cx, &mut trail), keys).await, trail)
        };
        for (removed, asked) in join_all(removals.iter().map(remove)).await {
            trail.beside(&asked);
            match removed {
                // Clients expect a number, whoever knows.
                Ok(Removed { live, confirmed: _ }) => out.integer(i64::try_from(live).unwrap_or(i64::MAX)),
                Err(error) => error::write(out, &error),
            }
        }
    }
}

/// Removals that share a key are not joined: the second must find it gone.
fn join_removal(removals: &mut Vec<Vec<Key>>, args: &Arguments<'_>) -> bool {
    let taken: HashSet<&[u8], ahash::RandomState> = removals.iter().flatten().map(Key::as_bytes).collect();
    let fits = taken.len() + args.len() <= REMOVALS_JOINED_MAX;
    if !fits || args.from(1).any(|key| Key::check(key).is_err() || taken.contains(key)) {
        return false;
    }
    removals.push(distinct(args));
    true
}

/// The keys of a removal, each once: a key named twice is removed, and counted, once.
pub(super) fn distinct(args: &Arguments<'_>) -> Vec<Key> {
    if args.len() == 2 {
        return vec![owned(args.at(1))];
    }
    let mut seen: HashSet<&[u8], ahash::RandomState> = HashSet::default();
    args.from(1).filter(|key| seen.insert(key)).map(owned).collect()
}

/// Tells who knows of a change.
fn confirm(result: Result<Confirmed, WriteError>, out: &mut Replies) {
    match result {
        Ok(Confirmed::Everywhere | Confirmed::Accepted) => out.simple("OK"),
        Ok(Confirmed::Queued) => out.simple("QUEUED"),
        Err(error) => error::write(out, &error),
    }
}

// === impl Read ===

impl Read {
    fn cold_key(&self) -> Option<&Key> {
        match &self.from {
            Source::Known(_) => None,
            Source::Cold(key) => Some(key),
        }
    }
}

// === impl One ===

impl One {
    /// What a command with one key tells, if it is such a command.
    pub(super) const fn of(verb: Verb) -> Option<Self> {
        match verb {
            Verb::Get => Some(Self::Value),
            Verb::Strlen => Some(Self::Length),
            Verb::Ttl => Some(Self::LifeSeconds),
            Verb::Pttl => Some(Self::LifeMillis),
            Verb::TcTags => Some(Self::Tags),
            _ => None,
        }
    }

    const fn wants(self) -> Wants {
        match self {
            Self::Value => Wants::Value,
            Self::Length | Self::LifeSeconds | Self::LifeMillis | Self::Tags => Wants::Facts,
        }
    }

    pub(super) fn reply(self, now: UnixMillis, entry: Option<&Entry>, out: &mut Replies) {
        match (self, entry) {
            (Self::Value, Some(entry)) => out.value(entry),
            (Self::Value | Self::Tags, None) => out.null(),
            (Self::Tags, Some(entry)) => tag_array(entry.tags(), out),
            (Self::Length, entry) => out.integer(entry.map_or(0, |entry| signed(entry.value().len()))),
            (Self::LifeSeconds | Self::LifeMillis, None) => out.integer(-2),
            (Self::LifeSeconds, Some(entry)) => out.integer(life_ms(now, entry).map_or(-1, |ms| (ms + 500) / 1000)),
            (Self::LifeMillis, Some(entry)) => out.integer(life_ms(now, entry).unwrap_or(-1)),
        }
    }
}

fn life_ms(now: UnixMillis, entry: &Entry) -> Option<i64> {
    let life = entry.expires_at()?.since(now);
    Some(i64::try_from(life.as_millis()).unwrap_or(i64::MAX - 500))
}

fn signed(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

// === impl Tell ===

impl Tell {
    const fn wants(self) -> Wants {
        match self {
            Self::Values => Wants::Value,
            Self::Count(_) => Wants::Facts,
        }
    }

    /// Tells about the next key.
    pub(super) fn one(&mut self, entry: Option<&Entry>, out: &mut Replies) {
        match (self, entry) {
            (Self::Values, Some(entry)) => out.value(entry),
            (Self::Values, None) => out.null(),
            (Self::Count(count), entry) => *count += i64::from(entry.is_some()),
        }
    }

    /// All keys were told about.
    pub(super) fn end(self, out: &mut Replies) {
        match self {
            Self::Values => {}
            Self::Count(count) => out.integer(count),
        }
    }
}

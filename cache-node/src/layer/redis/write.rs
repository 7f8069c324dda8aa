//! Writes: one pipeline for a batch, over the connection that all writes share. Each change is a script, which records
//! it in the log and answers its position.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, ErrorKind as Kind, Pipeline, RedisResult, ServerErrorKind, Value};

use super::{
    Errand, Shared,
    connect::Connected,
    counts::Counts,
    keys::{checksum, fields},
    link::Writing,
    place,
    trouble::{NO_ANSWER, Trouble, all_of},
};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    entry::{Entry, Position},
    layer::{Change, ErrorKind, log::write_tags},
};

/// A batch as commands, with what must be known when their answers come.
struct Batch {
    commands: Pipeline,
    sent: Vec<Sent>,
    bytes: usize,
}

/// One command.
#[derive(Clone, Copy)]
struct Sent {
    /// Which change of the batch it makes.
    change: usize,
    kind: SentKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SentKind {
    /// If Redis has no room for it, the older copy of the key is removed: the cache works on without the new one.
    Set,
    /// If Redis has no room for it, it is left out.
    Fill,
    /// Needs no room: if there is none, something else is wrong.
    Removal,
}

/// What a script answers.
enum Told {
    /// The place of the record of a change.
    At(Position),
    /// The same of a removal, which was made in place of what was asked for.
    Removed(Position),
    /// Whether a fill was stored.
    Filled(bool),
}

/// What is left to do after the answers came.
#[derive(Default)]
struct Left {
    /// Changes whose script Redis did not know, so that they had no effect.
    unknown: Vec<usize>,
    /// Changes of keys for whose values Redis has no room.
    no_room: Vec<usize>,
    refusal: Option<Trouble>,
}

// === impl Shared: apply ===

impl Shared {
    /// Applies the changes in their order; answers their positions. If that fails, some of them may have been applied;
    /// doing all again is safe.
    pub(super) async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<Vec<Position>, Trouble> {
        self.writable().map_err(Trouble::unsent)?;
        let mut positions = vec![Position::NONE; changes.len()];
        let all: Vec<usize> = (0..changes.len()).collect();
        let mut left = self.send(cx, changes, &all, &mut positions).await?;
        if !left.unknown.is_empty() {
            // A server that was started, or made to forget its scripts, since they were loaded.
            self.load_scripts(cx).await.map_err(Trouble::after_more)?;
            let unknown = std::mem::take(&mut left.unknown);
            let again = self.send(cx, changes, &unknown, &mut positions).await.map_err(Trouble::after_more)?;
            left.no_room.extend(again.no_room);
            left.refusal = left.refusal.or(again.refusal);
            if !again.unknown.is_empty() {
                return Err(Trouble::refused("Refused", "redis forgets scripts faster than they are loaded"));
            }
        }
        if !left.no_room.is_empty() {
            let removals = removals(changes, &left.no_room);
            let places: Vec<usize> = (0..removals.len()).collect();
            let mut removed = vec![Position::NONE; removals.len()];
            let outcome = self.send(cx, &removals, &places, &mut removed).await.map_err(Trouble::after_more)?;
            left.refusal = left.refusal.or(outcome.refusal);
            left.no_room.iter().zip(removed).for_each(|(&change, position)| positions[change] = position);
        }
        left.refusal.map_or(Ok(positions), Err)
    }

    /// Refuses writes that can not succeed, without asking. Gives the connection for those that may, if there is one.
    pub(super) fn writable(&self) -> Result<Option<Arc<Connected>>, Trouble> {
        if !self.breaker.is_closed() {
            self.counts.error(ErrorKind::Unreachable);
            return Err(Trouble::unreachable("the breaker is open"));
        }
        if self.link.is_read_only() {
            self.counts.error(ErrorKind::Refused);
            return Err(Trouble::refused("ReadOnly", "the server is a replica"));
        }
        let connected = self.link.writer();
        connected.iter().try_for_each(|connected| self.counts_there(connected))?;
        Ok(connected)
    }

    /// The same connection once it is this call's turn: it may be another one by then.
    pub(super) async fn writing(&self, errand: &Errand) -> Result<Option<Writing<'_>>, Trouble> {
        let writing = self.link.writing(errand.deadline).await;
        writing.iter().try_for_each(|writing| self.counts_there(&writing.connected()).map_err(Trouble::unsent))?;
        Ok(writing)
    }

    /// What is written before the log is begun anew would count as lost with what was there before.
    fn counts_there(&self, connected: &Connected) -> Result<(), Trouble> {
        if self.is_settled(connected) {
            return Ok(());
        }
        Err(Trouble::unreachable("it is not known yet whether the server has all that it had"))
    }

    /// The timeout, and as much again for each MiB.
    pub(super) fn write_allowance(&self, bytes: usize) -> Duration {
        self.options.timeout.mul_f64(1.0 + bytes as f64 / f64::from(1 << 20))
    }

    /// Makes those of the changes.
    async fn send(
        &self,
        cx: &OperationContext,
        changes: &[Change],
        which: &[usize],
        positions: &mut [Position],
    ) -> Result<Left, Trouble> {
        let batch = self.batch(cx.now, changes, which);
        let mut left = Left::default();
        if batch.sent.is_empty() {
            return Ok(left);
        }
        let errand = self.errand(cx, "a batch of writes", self.write_allowance(batch.bytes));
        let commands = batch.commands;
        let writing = self.writing(&errand).await?;
        let connected = writing.as_ref().map(Writing::connected);
        let count = batch.sent.len();
        let query = async move |mut connection| -> RedisResult<Vec<RedisResult<Value>>> {
            all_of(count, commands.query_async(&mut connection).await?)
        };
        let answers = self.call(&self.writes, errand, query, connected.clone()).await?;
        drop(writing);
        for (answer, sent) in answers.into_iter().zip(&batch.sent) {
            match answer.and_then(Told::of) {
                Ok(Told::At(position)) => {
                    positions[sent.change] = position;
                    self.log.published(position);
                    let counter = if sent.kind == SentKind::Set { &self.counts.written } else { &self.counts.removed };
                    Counts::add(counter, 1);
                }
                // Nobody's record: it is not looked for among those of this node.
                Ok(Told::Removed(position)) => {
                    positions[sent.change] = position;
                    Counts::add(&self.counts.removed, 1);
                }
                Ok(Told::Filled(is_stored)) => Counts::add(&self.counts.written, u64::from(is_stored)),
                Err(error) if error.kind() == Kind::Server(ServerErrorKind::NoScript) => left.unknown.push(sent.change),
                Err(error) => {
                    let trouble = self.fail(Trouble::from(&error), connected.as_ref());
                    let full = trouble.kind == ErrorKind::Full;
                    match sent.kind {
                        SentKind::Set if full => left.no_room.push(sent.change),
                        SentKind::Fill if full => {}
                        _ => left.refusal = left.refusal.or(Some(trouble)),
                    }
                    Counts::add(&self.counts.not_written_full, u64::from(full && sent.kind != SentKind::Removal));
                }
            }
        }
        Counts::add(&self.counts.bytes_written, batch.bytes as u64);
        Ok(left)
    }

    async fn load_scripts(&self, cx: &OperationContext) -> Result<(), Trouble> {
        let mut load = Pipeline::new();
        for text in self.scripts.of_changes() {
            load.cmd("SCRIPT").arg("LOAD").arg(text).ignore();
        }
        let query = async move |mut connection| load.exec_async(&mut connection).await;
        let errand = self.errand(cx, "SCRIPT LOAD", self.options.timeout);
        let writing = self.link.writing(errand.deadline).await;
        self.call(&self.writes, errand, query, writing.as_ref().map(Writing::connected)).await
    }

    fn batch(&self, now: UnixMillis, changes: &[Change], which: &[usize]) -> Batch {
        let mut batch = Batch { commands: Pipeline::with_capacity(which.len()), sent: Vec::new(), bytes: 0 };
        batch.commands.ignore_errors();
        for &change in which {
            let (kind, command) = match &changes[change] {
                Change::Set(entry) | Change::Again(entry, _) => match self.life_ms(entry, now) {
                    Some(life_ms) => {
                        let tried = if let Change::Again(_, tried) = &changes[change] { Some(*tried) } else { None };
                        (SentKind::Set, self.set(&mut batch, now, (entry, life_ms), tried))
                    }
                    // Too late to be of use; an older copy must go all the same.
                    None => (SentKind::Removal, self.remove(entry.key())),
                },
                Change::Fill(entry) => match self.life_ms(entry, now) {
                    Some(life_ms) => (SentKind::Fill, self.fill(&mut batch, now, entry, life_ms)),
                    None => continue,
                },
                Change::Remove(key) => (SentKind::Removal, self.remove(key.as_bytes())),
                Change::RemoveTagged(removal) => {
                    let keys = [self.keys.tags().as_bytes(), self.keys.log().as_bytes()];
                    let mut call = self.scripts.remove_tagged.named(&keys);
                    call.arg(&self.origin).arg(self.log_kept()).arg(write_tags(removal));
                    for field in fields(removal) {
                        call.arg(&field).arg(checksum(&field));
                    }
                    (SentKind::Removal, call)
                }
                Change::Follow(_) => continue,
            };
            batch.commands.add_command(command);
            batch.sent.push(Sent { change, kind });
        }
        batch
    }

    /// What is left of the entry's useful life, at most the layer's limit; none if nothing is.
    pub(super) fn life_ms(&self, entry: &Entry, now: UnixMillis) -> Option<u64> {
        let left = entry.useful_until().map_or(self.options.max_ttl, |until| until.since(now));
        let left_ms = u64::try_from(left.min(self.options.max_ttl).as_millis()).expect("a life is at most ten years");
        (left_ms > 0).then_some(left_ms)
    }

    /// `tried` is the place in the log since which others may have changed the key, if the value must not survive that.
    fn set(&self, batch: &mut Batch, now: UnixMillis, (entry, life_ms): (&Entry, u64), tried: Option<Position>) -> Cmd {
        let (key, lease) = (self.keys.entry(entry.key()), self.keys.lease(entry.key()));
        let keys: [&[u8]; 4] = [&key, self.keys.log().as_bytes(), &lease, self.keys.floor().as_bytes()];
        let mut call =
            if tried.is_some() { self.scripts.set_again.named(&keys) } else { self.scripts.set.named(&keys[..3]) };
        call.arg(&self.origin).arg(self.log_kept()).arg(entry.key());
        call.arg(self.envelope(batch, now, entry)).arg(life_ms);
        if let Some(tried) = tried {
            call.arg(tried.to_string()).arg(u8::from(!entry.tags().is_empty()));
        }
        call
    }

    fn fill(&self, batch: &mut Batch, now: UnixMillis, entry: &Entry, life_ms: u64) -> Cmd {
        let key = self.keys.entry(entry.key());
        let mut call = self.scripts.fill.named(&[&key, self.keys.log().as_bytes()]);
        call.arg(entry.key()).arg(self.envelope(batch, now, entry)).arg(life_ms).arg(entry.position().to_string());
        call
    }

    fn envelope(&self, batch: &mut Batch, now: UnixMillis, entry: &Entry) -> Vec<u8> {
        let mut envelope = Vec::new();
        self.options.codec.encode(entry, now, &mut envelope);
        batch.bytes += envelope.len();
        envelope
    }

    fn remove(&self, key: &[u8]) -> Cmd {
        let (entry, lease) = (self.keys.entry(key), self.keys.lease(key));
        let mut call = self.scripts.remove.named(&[&entry, self.keys.log().as_bytes(), &lease]);
        call.arg(&self.origin).arg(self.log_kept()).arg(key);
        call
    }
}

// === impl Told ===

impl Told {
    /// # Errors
    /// [`NO_ANSWER`] for what no script answers.
    fn of(answer: Value) -> RedisResult<Self> {
        match answer {
            Value::BulkString(id) => place::position(&id).map(Self::At),
            Value::Array(list) => match list.as_slice() {
                [Value::BulkString(id)] => place::position(id).map(Self::Removed),
                _ => None,
            },
            Value::Int(stored) => Some(Self::Filled(stored == 1)),
            _ => None,
        }
        .ok_or_else(|| (NO_ANSWER, "the answer to a write makes no sense").into())
    }
}

/// The same keys, to be removed.
fn removals(changes: &[Change], which: &[usize]) -> Vec<Change> {
    let remove = |&change: &usize| match &changes[change] {
        Change::Set(entry) | Change::Again(entry, _) => {
            crate::entry::Key::new(entry.key().to_vec()).ok().map(Change::Remove)
        }
        _ => None,
    };
    which.iter().filter_map(remove).collect()
}

//! Writes: one pipeline for a batch, over the connection that all writes share.

use std::{sync::atomic::Ordering, time::Duration};

use redis::{Pipeline, RedisResult, Value};

use super::{
    Shared,
    counts::Counts,
    keys::{fields, position_text},
    link::Writing,
    trouble::Trouble,
};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    entry::Entry,
    layer::{Change, ErrorKind, TagRemoval},
};

/// Keeps the greatest position of each field; also when memory is short, because a removal must not be lost.
const REMOVE_TAGGED: &str = "#!lua flags=allow-oom
for i = 1, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if not old or old < ARGV[i + 1] then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return redis.status_reply('OK')";

/// A batch as commands, with what must be known when their answers come.
struct Batch {
    commands: Pipeline,
    /// For each command what to do if Redis has no room for it.
    no_room: Vec<NoRoom>,
    written_at: UnixMillis,
    bytes: usize,
    written: u64,
    removed: u64,
}

enum NoRoom {
    /// Remove the older copy of this key instead: the cache works on without the new one.
    Forget(Vec<u8>),
    /// Do without.
    Skip,
    /// Fail: it needs no room, so something else is wrong.
    Fail,
}

// === impl Shared: apply ===

impl Shared {
    /// Applies the changes in their order. If that fails, some of them may have been applied; doing all again is safe.
    pub(super) async fn apply(&self, cx: &OperationContext, changes: &[Change]) -> Result<(), Trouble> {
        self.writable()?;
        let batch = self.batch(cx.now, changes);
        if batch.no_room.is_empty() {
            return Ok(());
        }
        let errand = self.errand(cx, "a batch of writes", self.write_allowance(batch.bytes));
        let commands = batch.commands;
        let writing = self.link.writing(errand.deadline).await;
        let connected = writing.as_ref().map(Writing::connected);
        let query = async move |mut connection| commands.query_async(&mut connection).await;
        let answers: Vec<RedisResult<Value>> = self.call(&self.writes, errand, query, connected.clone()).await?;
        drop(writing);
        let mut forget = Vec::new();
        let mut not_written = 0;
        let mut refusal = None;
        for (answer, no_room) in answers.into_iter().zip(batch.no_room) {
            let Err(error) = answer else { continue };
            let trouble = self.fail(Trouble::from(&error), connected.as_ref());
            match no_room {
                NoRoom::Forget(key) if trouble.kind == ErrorKind::Full => forget.push(key),
                NoRoom::Skip if trouble.kind == ErrorKind::Full => {}
                _ => {
                    refusal = refusal.or(Some(trouble));
                    continue;
                }
            }
            not_written += 1;
        }
        self.forget(cx, &forget).await?;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        Counts::add(&self.counts.written, batch.written - not_written);
        Counts::add(&self.counts.not_written_full, not_written);
        Counts::add(&self.counts.removed, batch.removed);
        Counts::add(&self.counts.bytes_written, batch.bytes as u64);
        Ok(())
    }

    /// Refuses writes that can not succeed, without asking.
    pub(super) fn writable(&self) -> Result<(), Trouble> {
        if !self.breaker.is_closed() {
            self.counts.error(ErrorKind::Unreachable);
            return Err(Trouble::unreachable("the breaker is open"));
        }
        if self.link.is_read_only() {
            self.counts.error(ErrorKind::Refused);
            return Err(Trouble::refused("ReadOnly", "the server is a replica"));
        }
        Ok(())
    }

    /// The timeout, and as much again for each MiB.
    pub(super) fn write_allowance(&self, bytes: usize) -> Duration {
        self.options.timeout.mul_f64(1.0 + bytes as f64 / f64::from(1 << 20))
    }

    /// Removes the keys. Redis does that also when it has no memory left.
    async fn forget(&self, cx: &OperationContext, keys: &[Vec<u8>]) -> Result<(), Trouble> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg(keys);
        let query = async move |mut connection| unlink.exec_async(&mut connection).await;
        let errand = self.errand(cx, "UNLINK", self.options.timeout);
        let writing = self.link.writing(errand.deadline).await;
        self.call(&self.writes, errand, query, writing.as_ref().map(Writing::connected)).await
    }

    fn batch(&self, now: UnixMillis, changes: &[Change]) -> Batch {
        // Never at or below the floor of this node's own last clear, whatever the wall clock does.
        let written_at = UnixMillis(now.0.max(self.floor_ms.load(Ordering::Acquire) + 1));
        self.newest_written_ms.fetch_max(written_at.0, Ordering::AcqRel);
        let (commands, no_room) = (Pipeline::with_capacity(changes.len()), Vec::new());
        let mut batch = Batch { commands, no_room, written_at, bytes: 0, written: 0, removed: 0 };
        batch.commands.ignore_errors();
        for change in changes {
            match change {
                Change::Set(entry) => match self.life(entry, now) {
                    Some(life) => self.set(&mut batch, entry, life, false),
                    // Too late to be of use; an older copy must go all the same.
                    None => self.unlink(&mut batch, entry.key()),
                },
                Change::Fill(entry) => {
                    if let Some(life) = self.life(entry, now) {
                        self.set(&mut batch, entry, life, true);
                    }
                }
                Change::Remove(key) => self.unlink(&mut batch, key.as_bytes()),
                Change::RemoveTagged(removal) => self.remove_tagged(&mut batch, removal),
            }
        }
        batch
    }

    /// What is left of the entry's useful life, at most the layer's limit; none if nothing is.
    fn life(&self, entry: &Entry, now: UnixMillis) -> Option<Duration> {
        let left = entry.useful_until().map_or(self.options.max_ttl, |until| until.since(now));
        Some(left.min(self.options.max_ttl)).filter(|life| *life >= Duration::from_millis(1))
    }

    fn set(&self, batch: &mut Batch, entry: &Entry, life: Duration, only_if_absent: bool) {
        let key = self.keys.entry(entry.key());
        let mut envelope = Vec::new();
        self.options.codec.encode(entry, batch.written_at, &mut envelope);
        batch.bytes += envelope.len();
        batch.written += 1;
        let life_ms = u64::try_from(life.as_millis()).expect("a life is at most ten years");
        let command = batch.commands.cmd("SET").arg(&key).arg(envelope).arg("PX").arg(life_ms);
        if only_if_absent {
            command.arg("NX");
        }
        batch.no_room.push(if only_if_absent { NoRoom::Skip } else { NoRoom::Forget(key) });
    }

    fn unlink(&self, batch: &mut Batch, key: &[u8]) {
        batch.commands.cmd("UNLINK").arg(self.keys.entry(key));
        batch.removed += 1;
        batch.no_room.push(NoRoom::Fail);
    }

    fn remove_tagged(&self, batch: &mut Batch, removal: &TagRemoval) {
        let position = position_text(removal.position);
        let command = batch.commands.cmd("EVAL").arg(REMOVE_TAGGED).arg(1).arg(self.keys.tags());
        for field in fields(removal) {
            command.arg(field).arg(&position);
        }
        batch.removed += 1;
        batch.no_room.push(NoRoom::Fail);
    }
}

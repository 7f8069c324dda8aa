//! Forgetting at large: the floor of a clear, the memory behind it, and removals of tags that no longer matter.

use std::{future::Future, sync::Arc, time::Duration};

use redis::RedisError;
use tokio::time::{interval, sleep};

use super::{
    CONNECT_TIMEOUT, Errand, Shared,
    counts::Counts,
    keys::removal,
    link::Writing,
    place::{self, lua_place},
    trouble::Trouble,
};
use crate::{
    clock::{CLOCKS_APART_MAX, UnixMillis},
    context::OperationContext,
    entry::Position,
    layer::{ErrorKind, TagRemoval, newest_removals::NewestRemovals},
};

/// Removes those of the keys whose entry is below the floor, and what is no entry.
const RECLAIM: &str = concat!(
    lua_place!(),
    "local floor_ms, floor_seq, removed = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
for _, key in ipairs(KEYS) do
  local ms, seq = place(redis.call('GETRANGE', key, 0, 21))
  if not ms or ms < floor_ms or (ms == floor_ms and seq < floor_seq) then removed = removed + redis.call('UNLINK', key) end
end
return removed"
);

/// Forgets removals of tags unless they have become newer.
const FORGET_REMOVALS: &str = "\
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
return redis.status_reply('OK')";

/// Keys looked at by one SCAN, and the pause before the next: Redis serves others in between.
const SCAN_COUNT: usize = 500;
const SCAN_PAUSE: Duration = Duration::from_millis(2);

/// Removals of tags read by one HSCAN, which takes Redis a millisecond.
const REMOVALS_COUNT: usize = 2000;

/// How long one step of background work may take.
const STEP_TIMEOUT: Duration = CONNECT_TIMEOUT;

/// How often removals of tags that no longer matter are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Name and value of a field of a hash.
type Field = (Vec<u8>, Vec<u8>);

/// The task that reclaims what clears leave behind.
pub(super) fn start(shared: &Arc<Shared>) -> impl Future<Output = ()> + Send + 'static {
    let shared = Arc::clone(shared);
    async move {
        let mut prune = interval(PRUNE_EVERY);
        loop {
            tokio::select! {
                () = shared.reclaim.notified() => shared.reclaim().await,
                _ = prune.tick() => {
                    shared.breaker.wait_closed().await;
                    // Tried again in ten minutes.
                    let _ = shared.removals(shared.clock.now()).await;
                }
            }
        }
    }
}

// === impl Shared: clear ===

impl Shared {
    /// Makes all entries of before count as missing, for every node, and has their memory reclaimed.
    pub(super) async fn clear(&self, cx: &OperationContext) -> Result<(), Trouble> {
        let position = self.raise_floor(self.errand(cx, "a clear", self.options.timeout), &self.origin).await?;
        self.log.published(position);
        Ok(())
    }

    /// The record is `origin`'s: nobody's, if this node is to forget what it holds, too.
    async fn raise_floor(&self, errand: Errand, origin: &str) -> Result<Position, Trouble> {
        self.writable()?;
        let mut clear = self.scripts.clear.whole(&[self.keys.floor().as_bytes(), self.keys.log().as_bytes()]);
        clear.arg(origin).arg(self.log_kept());
        let raise = async move |mut connection| clear.query_async::<Vec<u8>>(&mut connection).await;
        let writing = self.writing(&errand).await?;
        let connected = writing.as_ref().map(Writing::connected);
        let id = self.call(&self.writes, errand, raise, connected.clone()).await?;
        let no_answer = || self.fail(Trouble::no_answer("the answer to a clear makes no sense"), connected.as_ref());
        let position = place::position(&id).ok_or_else(no_answer)?;
        self.reclaim.notify_one();
        Ok(position)
    }

    /// How long a step of background work may take.
    pub(super) fn background(&self, what: &'static str) -> Errand {
        Errand { what, deadline: self.clock.monotonic() + STEP_TIMEOUT, allowance: STEP_TIMEOUT }
    }

    /// Frees the memory of everything below the floor. Begins again when Redis goes away meanwhile: what it had seen
    /// may not be what the next server has.
    async fn reclaim(&self) {
        loop {
            self.breaker.wait_closed().await;
            match self.reclaim_once().await {
                Ok(()) => return,
                Err(trouble) => tracing::debug!(error = trouble.message, "reclaiming begins again"),
            }
            sleep(STEP_TIMEOUT).await;
        }
    }

    async fn reclaim_once(&self) -> Result<(), Trouble> {
        let get = async |mut connection| {
            redis::cmd("GET").arg(self.keys.floor()).query_async::<Option<Vec<u8>>>(&mut connection).await
        };
        let Some((floor, _)) = self.step("GET", get).await?.as_deref().and_then(place::twice) else { return Ok(()) };
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(self.keys.all_entries()).arg("COUNT").arg(SCAN_COUNT);
            let step = async |mut connection| scan.query_async::<(u64, Vec<Vec<u8>>)>(&mut connection).await;
            let (next, keys) = self.step("SCAN", step).await?;
            if !keys.is_empty() {
                let mut remove = redis::cmd("EVAL");
                remove.arg(RECLAIM).arg(keys.len()).arg(&keys).arg(floor.millis()).arg(floor.sequence());
                let step = async |mut connection| remove.query_async::<u64>(&mut connection).await;
                Counts::add(&self.counts.reclaimed, self.step("EVAL", step).await?);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
            sleep(SCAN_PAUSE).await;
        }
    }

    /// One exchange of background work.
    async fn step<T>(
        &self,
        what: &'static str,
        call: impl AsyncFnOnce(redis::aio::MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, Trouble> {
        let connected = self.link.writer().ok_or_else(|| Trouble::unreachable("not connected"))?;
        self.measured(&connected, self.background(what), call(connected.connection.clone())).await
    }
}

// === impl Shared: tag removals ===

impl Shared {
    /// The removals that may still matter; those that do not are forgotten.
    pub(super) async fn tag_removals(&self, cx: &OperationContext) -> Result<Vec<TagRemoval>, Trouble> {
        if !self.breaker.is_closed() {
            return Err(Trouble::unreachable("the breaker is open"));
        }
        self.removals(cx.now).await
    }

    /// Each page has a time of its own: however many removals there are, they can be read, and forgotten.
    async fn removals(&self, now: UnixMillis) -> Result<Vec<TagRemoval>, Trouble> {
        let kept = self.options.removals_kept + CLOCKS_APART_MAX;
        let kept_ms = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
        let oldest_ms = now.0.saturating_sub(kept_ms);
        let mut found = NewestRemovals::at_most(self.options.removals_max);
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(self.keys.tags()).arg(cursor).arg("COUNT").arg(REMOVALS_COUNT);
            let query = async move |mut connection| scan.query_async(&mut connection).await;
            let errand = self.background("HSCAN");
            let (next, fields): (u64, Vec<Field>) = self.call(&self.reads, errand, query, self.link.reader()).await?;
            let (mut outdated, mut damaged) = (Vec::new(), Vec::new());
            for (field, value) in fields {
                // The one without a name only keeps the hash from being empty.
                match removal(&field, &value) {
                    _ if field.is_empty() => {}
                    Some(removal) if removal.position.millis() >= oldest_ms => found.add(removal),
                    Some(_) => outdated.push((field, value)),
                    None => damaged.push((field, value)),
                }
            }
            self.forget_removals(&outdated).await;
            self.forget_all_because_of(&damaged).await?;
            cursor = next;
            if cursor == 0 {
                return Ok(found.end());
            }
        }
    }

    /// What was removed is not known any more, so all of before is, on every node.
    async fn forget_all_because_of(&self, damaged: &[Field]) -> Result<(), Trouble> {
        let Some((field, _)) = damaged.first() else { return Ok(()) };
        let count = self.counts.error(ErrorKind::Corrupt);
        let field = field.escape_ascii().to_string();
        tracing::warn!(
            field,
            count,
            "a removal by tag in Redis is damaged; everything cached before counts as removed"
        );
        self.raise_floor(self.background("a clear"), "").await?;
        self.forget_removals(damaged).await;
        Ok(())
    }

    /// Only room is lost if this fails.
    async fn forget_removals(&self, outdated: &[Field]) {
        if outdated.is_empty() {
            return;
        }
        let mut forget = redis::cmd("EVAL");
        forget.arg(FORGET_REMOVALS).arg(1).arg(self.keys.tags()).arg(outdated);
        let forget = async |mut connection| forget.exec_async(&mut connection).await;
        let _ = self.step("EVAL", forget).await;
    }
}

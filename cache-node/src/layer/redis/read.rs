//! Reads: one MGET for the keys and the floor together.

use std::sync::{Arc, atomic::Ordering};

use redis::RedisResult;

use super::{
    Shared,
    counts::Counts,
    place,
    trouble::{Trouble, all_of},
};
use crate::{
    clock::UnixMillis,
    context::OperationContext,
    entry::{
        Key, Position,
        envelope::{HEADER_BYTES, decode},
    },
    layer::{ErrorKind, LayerResult},
};

/// Removes a key unless somebody has written it since: the header holds the checksum of all the rest.
const REMOVE_IF_UNCHANGED: &str = "\
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0";

/// Damaged values that are being removed at once; what is beyond is left for the next read.
const REMOVALS_AT_ONCE: usize = 16;

// === impl Shared: read ===

impl Shared {
    /// Looks the keys up; none if the layer takes no part now.
    pub(super) async fn read(
        self: &Arc<Self>,
        cx: &OperationContext,
        keys: &[Key],
    ) -> Result<Option<Vec<Result<LayerResult, Trouble>>>, Trouble> {
        if !self.breaker.is_closed() {
            Counts::add(&self.counts.not_handled, keys.len() as u64);
            return Ok(None);
        }
        let connected = self.link.reader();
        if connected.as_ref().is_some_and(|connected| !self.is_settled(connected)) {
            Counts::add(&self.counts.not_handled, keys.len() as u64);
            return Ok(None);
        }
        let mut get = redis::cmd("MGET");
        get.arg(self.keys.floor());
        for key in keys {
            get.arg(self.keys.entry(key.as_bytes()));
        }
        let errand = self.errand(cx, "MGET", self.options.timeout);
        let count = 1 + keys.len();
        let query = async move |mut connection| -> RedisResult<Vec<Option<Vec<u8>>>> {
            all_of(count, get.query_async(&mut connection).await?)
        };
        let values = self.call(&self.reads, errand, query, connected).await?;
        let mut values = values.into_iter();
        let floor = values.next().flatten();
        if floor.is_none() && self.is_followed.load(Ordering::Acquire) {
            // It was lost with what else belongs to the log, which is begun anew in a moment. What was cleared is not known.
            Counts::add(&self.counts.not_handled, keys.len() as u64);
            return Ok(None);
        }
        let floor = self.floor(floor.as_deref())?;
        let answer = |(key, value): (&Key, Option<Vec<u8>>)| self.answer(cx.now, key, floor, value);
        Ok(Some(keys.iter().zip(values).map(answer).collect()))
    }

    /// Entries with an older record are of before the last clear.
    fn floor(&self, value: Option<&[u8]>) -> Result<Position, Trouble> {
        let Some(value) = value else { return Ok(Position::NONE) };
        place::twice(value).map(|(floor, _)| floor).ok_or_else(|| {
            // Nobody can tell what was cleared, so nothing can be served.
            self.counts.error(ErrorKind::Corrupt);
            Trouble::corrupt("the floor of the last clear is damaged")
        })
    }

    /// What a value means for who asked for its key.
    pub(super) fn answer(
        self: &Arc<Self>,
        now: UnixMillis,
        key: &Key,
        floor: Position,
        value: Option<Vec<u8>>,
    ) -> Result<LayerResult, Trouble> {
        let miss = || {
            Counts::add(&self.counts.misses, 1);
            LayerResult::Miss
        };
        let Some(value) = value else { return Ok(miss()) };
        Counts::add(&self.counts.bytes_read, value.len() as u64);
        let Some((version, envelope)) = place::stored(&value) else {
            let _ = miss();
            return Err(self.damaged(key, value, "no place of its record, or a damaged one"));
        };
        let (entry, dates) = match decode(key.as_bytes(), envelope) {
            Ok(decoded) => decoded,
            Err(error) => {
                let _ = miss();
                return Err(self.damaged(key, value, &error.to_string()));
            }
        };
        if version < floor {
            Counts::add(&self.counts.below_floor, 1);
            return Ok(miss());
        }
        // Redis forgets entries by its own clock and by the life it was told; this node goes by its own.
        if entry.useful_until().is_some_and(|until| until <= now) || now.since(dates.written_at) >= self.options.max_ttl
        {
            return Ok(miss());
        }
        Counts::add(&self.counts.hits, 1);
        Ok(LayerResult::Hit(entry))
    }

    /// Counts, logs (the first time, the second, the fourth …) and removes what is damaged.
    fn damaged(self: &Arc<Self>, key: &Key, value: Vec<u8>, why: &str) -> Trouble {
        let count = self.counts.error(ErrorKind::Corrupt);
        let trouble = Trouble::corrupt(format!("value of {} bytes under {key:?}: {why}", value.len()));
        if count.is_power_of_two() {
            tracing::warn!(error = trouble.message, count, "what was read from Redis is damaged; it counts as a miss");
        }
        // The tasks of the layer, three of which are always there, bound this.
        if self.tasks.len() < REMOVALS_AT_ONCE && !self.tasks.is_closed() {
            let (shared, key) = (Arc::clone(self), self.keys.entry(key.as_bytes()));
            self.tasks.spawn(async move { shared.remove_damaged(&key, &value).await });
        }
        trouble
    }

    async fn remove_damaged(&self, key: &[u8], value: &[u8]) {
        let Some(connected) = self.link.writer() else { return };
        let header = &value[..value.len().min(place::HEAD_BYTES + HEADER_BYTES)];
        let mut remove = redis::cmd("EVAL");
        remove.arg(REMOVE_IF_UNCHANGED).arg(1).arg(key).arg(header);
        let mut connection = connected.connection.clone();
        let query = async { remove.query_async::<u64>(&mut connection).await };
        if let Ok(removed) = self.measured(&connected, self.background("EVAL"), query).await {
            self.counts.reclaimed.fetch_add(removed, Ordering::Relaxed);
        }
    }
}

//! Leases in Redis, which all nodes of the cache share: one filler for a key in the whole fleet.
//!
//! A lease is a key with a life of its own, so that it ends when its holder dies. It says who holds it, what the newest
//! record of the log was when it was granted, and when it ends: the token, the id and milliseconds since 1970, with
//! spaces between them. The scripts that change an entry unlink the lease of its key. A clear can not, because it knows
//! no keys; a lease that is older than the floor counts as ended.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::{
    Redis, Shared,
    counts::Counts,
    place::{self, lua_place, lua_twice},
    scripts::Prepared,
    trouble::Trouble,
};
use crate::{
    context::OperationContext,
    entry::{Entry, Key, Position},
    layer::{
        LayerError, LayerResult,
        lease::{SharedLeases, Taken},
    },
};

/// KEYS entry, lease, floor, log; ARGV the token, its life in ms, the version of a copy that counts as none. Answers 0
/// and the id of the newest record if the lease is taken now, 1 and the milliseconds that another one has left, or 2 and
/// the copy. Without a floor nobody knows what was cleared, so nothing counts; nor does a lease with more than the
/// minute that any can have: the clock was set back. A damaged copy is none.
const TAKE: &str = concat!(
    "#!lua\n",
    lua_place!(),
    lua_twice!(),
    "local floor_ms, floor_seq = twice(redis.call('GET', KEYS[3]))
local function counts(ms, seq) return floor_ms and (ms > floor_ms or (ms == floor_ms and seq >= floor_seq)) end
local ms, seq = place(redis.call('GETRANGE', KEYS[1], 0, 21))
if ms and counts(ms, seq) and string.format('%.0f-%.0f', ms, seq) ~= ARGV[3] then
  return {2, redis.call('GET', KEYS[1])}
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local lease = redis.call('GET', KEYS[2])
if lease then
  local ms, seq, ends = string.match(lease, '^%d+ (%d+)-(%d+) (%d+)$')
  local left = (tonumber(ends) or 0) - now
  if ms and counts(tonumber(ms), tonumber(seq)) and left > 0 and left <= 60000 then return {1, left} end
end
local id = '0-0'
if redis.call('EXISTS', KEYS[4]) == 1 then
  local stream = redis.call('XINFO', 'STREAM', KEYS[4])
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' then id = stream[i + 1] end
  end
end
redis.call('SET', KEYS[2], string.format('%s %s %.0f', ARGV[1], id, now + tonumber(ARGV[2])), 'PX', ARGV[2])
return {0, id}"
);

/// KEYS entry, lease, floor, log, tags; ARGV the beginning of the lease that must be held, its id (two parts), origin,
/// records kept, key, envelope, life in ms, the tags. Answers the id of the record, or 0 if the fill is refused.
const FILL: &str = concat!(
    "#!lua\n",
    lua_twice!(),
    "local lease = redis.call('GET', KEYS[2])
if not lease or string.sub(lease, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
local granted_ms, granted_seq = tonumber(ARGV[2]), tonumber(ARGV[3])
local function is_newer(id)
  if not id then return false end
  local ms, seq = twice(id)
  return not ms or ms > granted_ms or (ms == granted_ms and seq > granted_seq)
end
if is_newer(redis.call('GET', KEYS[3])) then return 0 end
for i = 9, #ARGV do
  if is_newer(redis.call('HGET', KEYS[5], 't:' .. ARGV[i])) then return 0 end
end
redis.call('UNLINK', KEYS[2])
local id = redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'k', 's', 'w', ARGV[6], 'o', ARGV[4])
local ms, seq = string.match(id, '(%d+)-(%d+)')
local at = struct.pack('>I6I4', tonumber(ms), tonumber(seq))
redis.call('SET', KEYS[1], 'TL' .. at .. at .. ARGV[7], 'PX', ARGV[8])
return id"
);

/// The leases of a cache.
pub struct RedisLeases {
    shared: Arc<Shared>,
    take: Prepared,
    fill: Prepared,
}

// === impl Redis ===

impl Redis {
    /// The leases that this layer keeps.
    pub fn leases(&self) -> RedisLeases {
        let shared = Arc::clone(&self.shared);
        RedisLeases { shared, take: Prepared::new(TAKE), fill: Prepared::new(FILL) }
    }
}

// === impl RedisLeases ===

impl RedisLeases {
    fn taken(&self, cx: &OperationContext, key: &Key, answer: (i64, Value)) -> Result<Taken, Trouble> {
        match answer {
            (0, Value::BulkString(id)) => place::position(&id).map(Taken::Granted),
            (1, Value::Int(left_ms)) => u64::try_from(left_ms).ok().map(Duration::from_millis).map(Taken::Held),
            (2, Value::BulkString(copy)) => {
                let version = place::stored(&copy).map_or(Position::NONE, |(version, _)| version);
                // What is damaged is removed by whoever reads it, and is no copy until then.
                let entry = match self.shared.answer(cx.now, key, Position::NONE, Some(copy)) {
                    Ok(LayerResult::Hit(entry)) => Some(entry),
                    _ => None,
                };
                Some(Taken::Found(entry, version))
            }
            _ => None,
        }
        .ok_or_else(|| Trouble::corrupt("the answer about a lease makes no sense"))
    }
}

#[async_trait]
impl SharedLeases for RedisLeases {
    async fn take(
        &self,
        cx: &OperationContext,
        key: &Key,
        (token, life): (i64, Duration),
        dead: Option<Position>,
    ) -> Result<Taken, LayerError> {
        let keys = &self.shared.keys;
        let (entry, lease) = (keys.entry(key.as_bytes()), keys.lease(key.as_bytes()));
        let keys = [&entry, &lease, keys.floor().as_bytes(), keys.log().as_bytes()];
        let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
        let give = |call: &mut Cmd| {
            call.arg(token).arg(life_ms).arg(dead.map(|dead| dead.to_string()).unwrap_or_default());
        };
        let answer = self.shared.run(cx, (&self.take, "a request for a lease"), &keys, (give, 0)).await?;
        Ok(self.taken(cx, key, answer)?)
    }

    async fn granted(&self, cx: &OperationContext, key: &[u8], token: i64) -> Result<Option<Position>, LayerError> {
        let shared = &self.shared;
        // Of a replica, which may lag, nobody learns whether a lease is held.
        let connected = shared.writable()?;
        let mut get = redis::cmd("GET");
        get.arg(shared.keys.lease(key));
        let query = async move |mut connection| get.query_async(&mut connection).await;
        let errand = shared.errand(cx, "a look at a lease", shared.options.timeout);
        let lease: Option<String> = shared.call(&shared.reads, errand, query, connected).await?;
        Ok(lease.and_then(|lease| granted_to(&lease, token)))
    }

    async fn fill(
        &self,
        cx: &OperationContext,
        (token, granted): (i64, Position),
        entry: &Entry,
    ) -> Result<Option<Position>, LayerError> {
        let shared = &self.shared;
        let Some(life_ms) = shared.life_ms(entry, cx.now) else {
            return Err(Trouble::corrupt("what has no life left is not stored").into());
        };
        let (key, lease) = (shared.keys.entry(entry.key()), shared.keys.lease(entry.key()));
        let (floor, log, tags) = (shared.keys.floor(), shared.keys.log(), shared.keys.tags());
        let keys = [&key[..], &lease, floor.as_bytes(), log.as_bytes(), tags.as_bytes()];
        let mut envelope = Vec::new();
        shared.options.codec.encode(entry, cx.now, &mut envelope);
        let give = |call: &mut Cmd| {
            call.arg(format!("{token} {granted} ")).arg(granted.millis()).arg(granted.sequence());
            call.arg(&shared.origin).arg(shared.log_kept()).arg(entry.key()).arg(&envelope).arg(life_ms);
            for tag in entry.tags().iter() {
                call.arg(tag);
            }
        };
        let answer: Value = shared.run(cx, (&self.fill, "a fill"), &keys, (give, envelope.len())).await?;
        let position = match answer {
            Value::BulkString(id) => place::position(&id),
            _ => None,
        };
        if let Some(position) = position {
            shared.log.published(position);
            Counts::add(&shared.counts.written, 1);
            Counts::add(&shared.counts.bytes_written, envelope.len() as u64);
        }
        Ok(position)
    }
}

/// When the lease was granted, if this token holds it.
fn granted_to(lease: &str, token: i64) -> Option<Position> {
    let mut words = lease.split(' ');
    let holds = words.next()?.parse() == Ok(token);
    words.next().filter(|_| holds).and_then(|id| place::position(id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_told_to_whom_it_belongs_and_nobody_else() {
        let lease = "17 1800000000000-7 1800000010000";
        assert_eq!(granted_to(lease, 17), Some(Position::from_parts(1_800_000_000_000, 7)));
        assert_eq!((granted_to(lease, 1), granted_to("17", 17), granted_to("", 0)), (None, None, None));
    }
}

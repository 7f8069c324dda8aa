//! What Redis does in one step: a change of an entry, its record in the log, and the answer of its position. Every script
//! that changes an entry ends the lease of its key, so that a fill begun before is refused.

mod again;

use redis::{Cmd, Script};

use self::again::SET_AGAIN;
use super::place::lua_twice;

/// KEYS entry, log, lease; ARGV origin, records kept, key, envelope, life in ms. Answers the id of the record.
const SET: &str = "#!lua
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'k', 's', 'w', ARGV[3], 'o', ARGV[1])
local ms, seq = string.match(id, '(%d+)-(%d+)')
local at = struct.pack('>I6I4', tonumber(ms), tonumber(seq))
redis.call('SET', KEYS[1], 'TL' .. at .. at .. ARGV[4], 'PX', ARGV[5])
redis.call('UNLINK', KEYS[3])
return id";

/// KEYS entry, log, lease; ARGV origin, records kept, key. Also when memory is short, because a removal must not be
/// lost. Answers the id.
const REMOVE: &str = "#!lua flags=allow-oom
redis.call('UNLINK', KEYS[1], KEYS[3])
return redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'k', 'r', 'w', ARGV[3], 'o', ARGV[1])";

/// KEYS tags, log; ARGV origin, records kept, the removal, its fields, each with its checksum. While the server's clock is
/// behind the newest id, the record has a millisecond of its own: what its node has called newer than the removal before, by
/// provisional positions of the millisecond before, is to be older than what follows. Answers the id.
const REMOVE_TAGGED: &str = "#!lua flags=allow-oom
local time, stream, last_ms, at = redis.call('TIME'), {}, 0, '*'
if redis.call('EXISTS', KEYS[2]) == 1 then stream = redis.call('XINFO', 'STREAM', KEYS[2]) end
for i = 1, #stream, 2 do
  if stream[i] == 'last-generated-id' then last_ms = tonumber(string.match(stream[i + 1], '^(%d+)-')) end
end
if last_ms >= tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) then
  at = string.format('%.0f-0', last_ms + 1)
end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], at, 'k', 't', 'w', ARGV[3], 'o', ARGV[1])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], id .. ' ' .. id .. ' ' .. ARGV[i + 1]) end
return id";

/// KEYS floor, log; ARGV origin, records kept. All entries of before count as missing from here on. Answers the id.
const CLEAR: &str = "#!lua flags=allow-oom
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'k', 'c', 'w', '', 'o', ARGV[1])
redis.call('SET', KEYS[1], id .. ' ' .. id)
return id";

/// KEYS entry, log; ARGV key, envelope, life in ms, the id up to which the value is known to be the newest. Refused if
/// there is an entry, if one of the records since is about the key or about everything, if one of them may have been
/// trimmed, or if they are too many to look at. Answers 1 if it was stored.
const FILL: &str = "#!lua
if #redis.call('XRANGE', KEYS[2], '-', ARGV[4], 'COUNT', 1) == 0 and redis.call('EXISTS', KEYS[2]) == 1 then
  local facts, stream = {}, redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #stream, 2 do facts[stream[i]] = stream[i + 1] end
  if facts['entries-added'] > facts['length'] and facts['last-generated-id'] ~= ARGV[4] then return 0 end
end
local since = redis.call('XRANGE', KEYS[2], '(' .. ARGV[4], '+', 'COUNT', 65)
if #since > 64 then return 0 end
for _, record in ipairs(since) do
  local kind, what = record[2][2], record[2][4]
  if what == ARGV[1] or (kind ~= 's' and kind ~= 'r' and kind ~= 't' and kind ~= 'a') then return 0 end
end
local ms, seq = string.match(ARGV[4], '(%d+)-(%d+)')
local at = struct.pack('>I6I4', tonumber(ms), tonumber(seq))
if redis.call('SET', KEYS[1], 'TL' .. at .. at .. ARGV[2], 'NX', 'PX', ARGV[3]) then return 1 end
return 0";

/// KEYS log, epoch, and what is kept with it: floor, history, tags; ARGV the id after which to read, how many records at
/// most. Answers epoch, what INFO says of the replication, newest id, records ever added, records there, the records, and
/// whether there is one with that id. If anything is missing that is kept with the log, or the floor is damaged, there is no
/// epoch: what the log was for is lost.
const LOOK: &str = concat!(
    "#!lua flags=no-writes,allow-stale\n",
    lua_twice!(),
    "local epoch, info = redis.call('GET', KEYS[2]), redis.call('INFO', 'replication')
if redis.call('EXISTS', KEYS[4], KEYS[5]) < 2 or not twice(redis.call('GET', KEYS[3])) then epoch = false end
if redis.call('EXISTS', KEYS[1]) == 0 then return {epoch, info, '0-0', 0, 0, {}, 0} end
local facts, stream = {}, redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do facts[stream[i]] = stream[i + 1] end
local records = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local anchor = #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
return {epoch, info, facts['last-generated-id'], facts['entries-added'], facts['length'], records, anchor}"
);

/// Notes who follows the log. KEYS nodes; ARGV node, history, position, and milliseconds: after how many without a word a
/// node is forgotten that trusts nothing any more, after how many without a word from any node the list counts as begun
/// anew, and for how many the node trusts what it holds. Under the empty name the list keeps when the last node spoke, and
/// since when it misses nobody.
const BEAT: &str = "#!lua flags=allow-oom
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local all, last, since = redis.call('HGETALL', KEYS[1]), nil, nil
for i = 1, #all, 2 do
  local seen, rest = string.match(all[i + 1], '^(%d+) (.*)$')
  seen = tonumber(seen) or 0
  if all[i] == '' then
    last, since = seen, tonumber(rest)
  elseif seen + tonumber(ARGV[4]) + (tonumber(string.match(rest or '', '(%d+)$')) or 0) < now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif seen > now then
    redis.call('HSET', KEYS[1], all[i], string.format('%.0f %s', now, rest or ''))
  end
end
if not since or now < last or last + tonumber(ARGV[5]) < now then since = now end
redis.call('HSET', KEYS[1], '', string.format('%.0f %.0f', now, since))
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s %s %s', now, ARGV[2], ARGV[3], ARGV[6]))
return 1";

/// Who follows the log. KEYS nodes, history. Answers the time in milliseconds, the history, and the nodes with what they
/// said.
const CENSUS: &str = "#!lua flags=no-writes,allow-stale
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
return {now, redis.call('GET', KEYS[2]), redis.call('HGETALL', KEYS[1])}";

/// Makes the log, or begins it anew where its past is not certain, and the list of nodes with it. KEYS log, epoch, floor,
/// history, nodes, tags; ARGV origin, a new token, the replication id, the newest id that the caller knows of (its two
/// parts), and whether the caller knows that records were lost. Does nothing if somebody has done it already for this
/// history and no newer id is known. Answers whether it did.
const BEGIN: &str = concat!(
    "#!lua flags=allow-oom\n",
    lua_twice!(),
    "local last_ms, last_seq = 0, 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local stream = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' then
      local ms, seq = string.match(stream[i + 1], '(%d+)-(%d+)')
      last_ms, last_seq = tonumber(ms), tonumber(seq)
    end
  end
end
local seen_ms, seen_seq = tonumber(ARGV[4]), tonumber(ARGV[5])
local behind = last_ms < seen_ms or (last_ms == seen_ms and last_seq < seen_seq)
local history = redis.call('GET', KEYS[4])
local begun = history == ARGV[3] .. ' begun' or (history == ARGV[3] .. ' continued' and ARGV[6] == '0')
local is_whole = redis.call('EXISTS', KEYS[2], KEYS[6]) == 2 and twice(redis.call('GET', KEYS[3]))
if is_whole and begun and not behind then return 0 end
local id = '*'
if behind and tonumber(redis.call('TIME')[1]) * 1000 <= seen_ms then
  id = string.format('%.0f-%.0f', seen_ms, seen_seq + 1)
end
id = redis.call('XADD', KEYS[1], id, 'k', 'g', 'w', '', 'o', ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'NX')
redis.call('SET', KEYS[3], id .. ' ' .. id)
redis.call('SET', KEYS[4], ARGV[3] .. ' begun')
redis.call('HSET', KEYS[6], '', id)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[5], '', string.format('%.0f %.0f', now, now))
return 1"
);

/// Goes on to the next millisecond. KEYS log; ARGV the millisecond that is used up, origin. While the server's clock is
/// behind the newest id, ids differ by their second number alone, and a position has room for a million of those.
const TURN: &str = "#!lua flags=allow-oom
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do
  if stream[i] == 'last-generated-id' and string.match(stream[i + 1], '^(%d+)-') == ARGV[1] then
    redis.call('XADD', KEYS[1], string.format('%.0f-0', tonumber(ARGV[1]) + 1), 'k', 'a', 'w', '', 'o', ARGV[2])
  end
end
return 1";

/// Notes that the log goes on under another replication id. KEYS history; ARGV the earlier id, the present one.
const CONTINUE: &str = "#!lua flags=allow-oom
local history = redis.call('GET', KEYS[1])
if history == ARGV[1] .. ' begun' or history == ARGV[1] .. ' continued' then
  redis.call('SET', KEYS[1], ARGV[2] .. ' continued')
end
return 1";

/// The scripts with their names in Redis's cache.
pub(super) struct Scripts {
    pub(super) set: Prepared,
    pub(super) set_again: Prepared,
    pub(super) remove: Prepared,
    pub(super) remove_tagged: Prepared,
    pub(super) clear: Prepared,
    pub(super) fill: Prepared,
    pub(super) look: Prepared,
    pub(super) begin: Prepared,
    pub(super) turn: Prepared,
    pub(super) go_on: Prepared,
    pub(super) beat: Prepared,
    pub(super) census: Prepared,
}

/// One script.
pub(super) struct Prepared {
    text: &'static str,
    hash: String,
}

// === impl Scripts ===

impl Scripts {
    pub(super) fn new() -> Self {
        let of = Prepared::new;
        Self {
            set: of(SET),
            set_again: of(SET_AGAIN),
            remove: of(REMOVE),
            remove_tagged: of(REMOVE_TAGGED),
            clear: of(CLEAR),
            fill: of(FILL),
            look: of(LOOK),
            begin: of(BEGIN),
            turn: of(TURN),
            go_on: of(CONTINUE),
            beat: of(BEAT),
            census: of(CENSUS),
        }
    }

    /// Those that changes need, to be loaded when Redis does not know them.
    pub(super) fn of_changes(&self) -> [&'static str; 5] {
        [self.set.text, self.set_again.text, self.remove.text, self.remove_tagged.text, self.fill.text]
    }
}

// === impl Prepared ===

impl Prepared {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, hash: Script::new(text).get_hash().to_owned() }
    }

    /// A call by name, for Redis that knows the script.
    pub(super) fn named(&self, keys: &[&[u8]]) -> Cmd {
        begun("EVALSHA", &self.hash, keys)
    }

    /// A call with the text, for what is rare.
    pub(super) fn whole(&self, keys: &[&[u8]]) -> Cmd {
        begun("EVAL", self.text, keys)
    }
}

fn begun(command: &str, script: &str, keys: &[&[u8]]) -> Cmd {
    let mut call = redis::cmd(command);
    call.arg(script).arg(keys.len());
    for key in keys {
        call.arg(*key);
    }
    call
}

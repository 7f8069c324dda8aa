//! A change that must not survive what others have done meanwhile: it may have been carried out before, or was made of the
//! value that was there before.

use crate::layer::redis::place::{lua_place, lua_twice};

/// KEYS entry, log, lease, floor; ARGV as of SET, then the id up to which all records were known, and 1 if the entry has
/// tags. Others may have changed the key since, who must not see it come back. They have not if there is an entry that is
/// not newer than that, or that this node has written. Else the records since tell: if one of them, by others, is about the
/// key, about everything or, for an entry with tags, about any tag, if one may have been trimmed, or if they are too many to
/// look at, the key is removed: by nobody, so that the node that asked for it forgets it, too. Answers the id of the
/// record, in a list if it is that of the removal.
pub(super) const SET_AGAIN: &str = concat!(
    "#!lua\n",
    lua_place!(),
    lua_twice!(),
    "local function is_untouched()
  local head = redis.pcall('GETRANGE', KEYS[1], 0, 21)
  local ms, seq = place(type(head) == 'string' and head or '')
  local floor_ms, floor_seq = twice(redis.call('GET', KEYS[4]))
  if not ms or not floor_ms or ms < floor_ms or (ms == floor_ms and seq < floor_seq) then return false end
  local known_ms, known_seq = string.match(ARGV[6], '(%d+)-(%d+)')
  known_ms, known_seq = tonumber(known_ms), tonumber(known_seq)
  if ms < known_ms or (ms == known_ms and seq <= known_seq) then return true end
  local id = string.format('%.0f-%.0f', ms, seq)
  local record = redis.call('XRANGE', KEYS[2], id, id)[1]
  return record ~= nil and record[2][4] == ARGV[3] and record[2][6] == ARGV[1]
end
local function is_certain()
  if is_untouched() then return true end
  if #redis.call('XRANGE', KEYS[2], '-', ARGV[6], 'COUNT', 1) == 0 and redis.call('EXISTS', KEYS[2]) == 1 then
    local facts, stream = {}, redis.call('XINFO', 'STREAM', KEYS[2])
    for i = 1, #stream, 2 do facts[stream[i]] = stream[i + 1] end
    if facts['entries-added'] > facts['length'] then return false end
  end
  local since = redis.call('XRANGE', KEYS[2], '(' .. ARGV[6], '+', 'COUNT', 1025)
  if #since > 1024 then return false end
  for _, record in ipairs(since) do
    local kind, what, origin = record[2][2], record[2][4], record[2][6]
    if origin ~= ARGV[1] then
      if kind == 't' then
        if ARGV[7] == '1' then return false end
      elseif kind ~= 'a' and (what == ARGV[3] or (kind ~= 's' and kind ~= 'r')) then
        return false
      end
    end
  end
  return true
end
if not is_certain() then
  redis.call('UNLINK', KEYS[1], KEYS[3])
  return {redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'k', 'r', 'w', ARGV[3], 'o', '')}
end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'k', 's', 'w', ARGV[3], 'o', ARGV[1])
local ms, seq = string.match(id, '(%d+)-(%d+)')
local at = struct.pack('>I6I4', tonumber(ms), tonumber(seq))
redis.call('SET', KEYS[1], 'TL' .. at .. at .. ARGV[4], 'PX', ARGV[5])
redis.call('UNLINK', KEYS[3])
return id"
);

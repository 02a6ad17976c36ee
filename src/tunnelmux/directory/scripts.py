"""The scripts that Redis runs for `RedisDirectory`: the rules of `PlaceBook`, one atomic script per
call.

The keys, all of them under PREFIX: `places:N` (hash, device to `generation|node|incarnation|
instance;…`, newest first), `live` (sorted set, `node|incarnation` by the time its lease ends, in
ms), `incarnations` and `nodes` (hashes by node: its newest start, its record as JSON), `version`
of these, `inbox:NODE|INCARNATION` (stream of what was superseded there), `complete` and `writes`
(hashes by `node|incarnation`: whether it has said all, and how often it wrote), `died` (sorted set,
`node|incarnation` that did not leave, by the time of its last beat, in ms), `last` and `grace`;
`events` (stream of all nodes' events) and `events:at` (hash: its epoch, the last number, and the
run of Redis that it is of).
"""

from __future__ import annotations

from tunnelmux.directory.places import DIED_JUST_NOW, MOST_DIED

__all__ = ["PREFIX", "SCRIPTS", "whole"]

PREFIX = "tunnelmux:"

_FUNCTIONS = """
local P = 'tunnelmux:'
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
-- Places whose generation no node has counted are left out: Lua's numbers are whole up to 2^53.
local MOST_GENERATION = 10 ^ 15 - 1
local function read(text)
  local places = {}
  text = string.sub(text or '', 1, LONGEST_ENTRY)
  for g, n, i, x in string.gmatch(text, '(%d+)|([^|;]*)|([^|;]*)|([^|;]*)') do
    if #g < 16 then
      places[#places + 1] = {generation = tonumber(g), node = n, incarnation = i, instance = x}
    end
  end
  return places
end
local function write(places)
  local parts = {}
  for k, p in ipairs(places) do
    parts[k] = string.format('%.0f|%s|%s|%s', p.generation, p.node, p.incarnation, p.instance)
  end
  return table.concat(parts, ';')
end
local function put(key, device, places)
  if #places == 0 then redis.call('HDEL', key, device)
  else redis.call('HSET', key, device, write(places)) end
end
local function is_live(p)
  return redis.call('ZSCORE', P .. 'live', p.node .. '|' .. p.incarnation)
end
local function count_write(me)
  local count = redis.pcall('HINCRBY', P .. 'writes', me, 1)
  if type(count) == 'number' then return count end
  redis.call('HSET', P .. 'writes', me, 1)
  redis.call('HDEL', P .. 'complete', me)
  return 1
end
-- A node whose messages are lost says again what it holds, and is told then what is superseded.
local function empty_inbox(me)
  redis.call('DEL', P .. 'inbox:' .. me)
  redis.call('HDEL', P .. 'complete', me)
end
local function tell(other, device, generation)
  if redis.call('ZSCORE', P .. 'live', other) then
    local id = redis.pcall('XADD', P .. 'inbox:' .. other, 'MAXLEN', '~', 10000, '*',
      'device', device, 'generation', string.format('%.0f', generation))
    -- It takes none where an id is the last that there can be, for one.
    if type(id) == 'table' then empty_inbox(other) end
  end
end
local function claim(key, device, node, incarnation, instance, least, given)
  local newest, kept, gone = 0, {}, {}
  local old = read(redis.call('HGET', key, device))
  for _, p in ipairs(old) do
    if p.generation > newest and p.generation < MOST_GENERATION then newest = p.generation end
    if given > 0 and p.generation > given and p.instance ~= instance then
      tell(node .. '|' .. incarnation, device, given)
      return
    end
  end
  local generation = given
  if given == 0 then generation = math.max(now(), newest + 1, least + 1) end
  if generation > MOST_GENERATION then generation = now() end
  for _, p in ipairs(old) do
    if p.node ~= node and p.instance == instance and is_live(p) then kept[#kept + 1] = p
    else gone[#gone + 1] = p end
  end
  kept[#kept + 1] = {
    generation = generation, node = node, incarnation = incarnation, instance = instance}
  table.sort(kept, function(a, b) return a.generation > b.generation end)
  while #kept > MOST_PLACES do gone[#gone + 1] = table.remove(kept) end
  put(key, device, kept)
  for _, p in ipairs(gone) do
    if p.node ~= node then tell(p.node .. '|' .. p.incarnation, device, p.generation) end
  end
  return generation, gone
end
local function restart(epoch)
  redis.call('DEL', P .. 'events', P .. 'events:at')
  redis.call('HSET', P .. 'events:at', 'epoch', epoch, 'number', 0)
end
-- A replica that took over may lack the last events, and so use their numbers again.
local function find_epoch(spare)
  local info = redis.pcall('INFO', 'server')
  local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
  local at, stream = redis.call('TYPE', P .. 'events:at').ok, redis.call('TYPE', P .. 'events').ok
  if at ~= 'hash' or (stream ~= 'stream' and stream ~= 'none') then restart(spare) end
  local epoch, number = unpack(redis.call('HMGET', P .. 'events:at', 'epoch', 'number'))
  if not epoch or #epoch > 64 or not string.match(number or '', '^%d+$') or #number > 15 then
    restart(spare)
  end
  if redis.call('HGET', P .. 'events:at', 'run') ~= run then
    redis.call('HSET', P .. 'events:at', 'epoch', spare, 'run', run)
    return spare
  end
  return epoch
end
local function announce(spare, most, text)
  local number = redis.call('HINCRBY', P .. 'events:at', 'number', 1)
  local added = redis.pcall('XADD', P .. 'events', 'MAXLEN', '~', most,
    string.format('%.0f-1', number), 'event', text)
  if type(added) == 'table' and added.err then
    -- Its last number is higher: the count was lost, and not the stream.
    restart(spare)
    find_epoch(spare)
    redis.call('HSET', P .. 'events:at', 'number', 1)
    redis.call('XADD', P .. 'events', '1-1', 'event', text)
  end
end
local function note_died(other)
  local ends = redis.call('ZSCORE', P .. 'live', other)
  if ends then
    redis.call('ZADD', P .. 'died', string.format('%.0f', ends - LEASE), other)
    local old = redis.call('ZRANGE', P .. 'died', 0, -1 - MOST_DIED)
    for _, one in ipairs(old) do redis.call('ZREM', P .. 'died', one) end
  end
end
local function forget(other)
  redis.call('ZREM', P .. 'live', other)
  redis.call('HDEL', P .. 'complete', other)
  redis.call('HDEL', P .. 'writes', other)
  redis.call('DEL', P .. 'inbox:' .. other)
  local node, incarnation = string.match(other, '^(.*)|([^|]*)$')
  if node and redis.call('HGET', P .. 'incarnations', node) == incarnation then
    redis.call('HDEL', P .. 'incarnations', node)
    redis.call('HDEL', P .. 'nodes', node)
  end
  local version = tonumber(redis.call('GET', P .. 'version') or '0')
  redis.call('SET', P .. 'version', string.format('%.0f', math.max(now(), version + 1)))
end
"""

_CLAIM = """
local key, device, node, incarnation, instance, least = KEYS[1], unpack(ARGV)
local generation, gone = claim(key, device, node, incarnation, instance, tonumber(least), 0)
local writes = count_write(node .. '|' .. incarnation)
return {string.format('%.0f', generation), write(gone), writes}
"""

_RELEASE = """
local key, device, node, incarnation, generation = KEYS[1], unpack(ARGV)
local kept, removed = {}, 0
for _, p in ipairs(read(redis.call('HGET', key, device))) do
  if p.node == node and p.generation == tonumber(generation) then removed = 1
  else kept[#kept + 1] = p end
end
if removed == 1 then put(key, device, kept) end
return {removed, count_write(node .. '|' .. incarnation)}
"""

_REPUBLISH = """
local key, node, incarnation = KEYS[1], ARGV[1], ARGV[2]
local missed = {}
for i = 3, #ARGV, 3 do
  local device, was_there = ARGV[i], false
  for _, p in ipairs(read(redis.call('HGET', key, device))) do
    if is_live(p) then was_there = true end
  end
  local entered = claim(key, device, node, incarnation, ARGV[i + 1], 0, tonumber(ARGV[i + 2]))
  if entered and not was_there then missed[#missed + 1] = device end
end
return {count_write(node .. '|' .. incarnation), missed}
"""

_MEND = """
local TYPES = {live = 'zset', died = 'zset', incarnations = 'hash', nodes = 'hash',
  complete = 'hash', writes = 'hash', version = 'string', last = 'string', grace = 'string'}
-- Values that none of our scripts writes are removed; then all nodes say again what they hold.
local function mend(me)
  local odd = {}
  TYPES['inbox:' .. me] = 'stream'
  for number = 0, SHARDS - 1 do TYPES['places:' .. number] = 'hash' end
  for key, type in pairs(TYPES) do
    local found = redis.call('TYPE', P .. key).ok
    local is_ours = found == 'none' or found == type
    if is_ours and type == 'string' then
      local value = redis.call('GETRANGE', P .. key, 0, 15)
      is_ours = #value < 16 and string.match(value, '^%d*$')
    end
    if not is_ours then
      redis.call('DEL', P .. key)
      odd[#odd + 1] = P .. key
    end
  end
  local writes = redis.call('HGET', P .. 'writes', me) or ''
  if #writes > 15 or not string.match(writes, '^%d*$') then
    redis.call('HDEL', P .. 'writes', me)
    odd[#odd + 1] = P .. 'writes'
  end
  if #odd > 0 then redis.call('DEL', P .. 'complete') end
  return odd
end
"""

_BEAT = (
    _MEND
    + """
local node, incarnation, record, seen, version = unpack(ARGV)
local me, time = node .. '|' .. incarnation, now()
local odd = mend(me)
local newest = redis.call('HGET', P .. 'incarnations', node)
if newest and newest > incarnation and redis.call('ZSCORE', P .. 'live', node .. '|' .. newest) then
  redis.call('ZREM', P .. 'died', me)  -- it tells of its sessions itself
  return {'taken'}
end
if newest and newest ~= incarnation then
  note_died(node .. '|' .. newest)
  forget(node .. '|' .. newest)
end
redis.call('HSET', P .. 'incarnations', node, incarnation)
local changed = redis.call('HGET', P .. 'nodes', node) ~= record
redis.call('HSET', P .. 'nodes', node, record)
if redis.call('ZADD', P .. 'live', time + LEASE, me) == 1 then changed = true end
-- When no node was heard for a while, or the clock jumped, it was Redis and not the nodes.
local last = tonumber(redis.call('GET', P .. 'last') or '0')
local grace = tonumber(redis.call('GET', P .. 'grace') or '0')
redis.call('SET', P .. 'last', string.format('%.0f', time))
if last > 0 and math.abs(time - last) > LEASE / 2 then
  grace = time + LEASE
  redis.call('SET', P .. 'grace', string.format('%.0f', grace))
  -- Where it was set back, the dead would count as living until it is where it was.
  local least = '(' .. string.format('%.0f', grace)
  local ahead = redis.call('ZRANGEBYSCORE', P .. 'live', least, '+inf')
  for _, other in ipairs(ahead) do redis.call('ZADD', P .. 'live', grace, other) end
end
if grace > time + LEASE then redis.call('DEL', P .. 'grace') end
if time >= grace then
  local dead = redis.call('ZRANGEBYSCORE', P .. 'live', '-inf', time, 'LIMIT', 0, 16)
  for _, other in ipairs(dead) do
    note_died(other)
    forget(other)
  end
end
local now_version = redis.call('GET', P .. 'version')
if changed or not now_version then
  now_version = string.format('%.0f', math.max(time, tonumber(now_version or '0') + 1))
  redis.call('SET', P .. 'version', now_version)
end
-- There is no id after the last that there can be.
if seen ~= '' and type(redis.pcall('XTRIM', P .. 'inbox:' .. me, 'MINID', seen)) == 'table' then
  empty_inbox(me)
end
local messages = redis.call('XRANGE', P .. 'inbox:' .. me, '-', '+', 'COUNT', 1000)
for _, message in ipairs(messages) do
  local size = 0
  for _, field in ipairs(message[2]) do size = size + #field end
  if size > LONGEST_MESSAGE then message[2] = {} end
end
local nodes, died = {}, {}
if now_version ~= version then
  local least = string.format('%.0f', time - DIED_JUST_NOW)
  died = redis.call('ZRANGEBYSCORE', P .. 'died', least, '+inf', 'WITHSCORES')
  local starts = redis.call('HGETALL', P .. 'incarnations')
  for i = 1, #starts, 2 do
    if redis.call('ZSCORE', P .. 'live', starts[i] .. '|' .. starts[i + 1]) then
      local one = redis.call('HGET', P .. 'nodes', starts[i])
      if one and #one <= MOST_BYTES then nodes[#nodes + 1] = one end
    end
  end
end
local complete = redis.call('HEXISTS', P .. 'complete', me)
local writes = tonumber(redis.call('HGET', P .. 'writes', me) or '0')
local was_given_up = redis.call('ZSCORE', P .. 'died', me) and 1 or 0
return {'ok', complete, writes, messages, now_version, nodes, odd, died, was_given_up}
"""
)

_COMPLETE = """
redis.call('HSET', P .. 'complete', ARGV[1], 1)
redis.call('ZREM', P .. 'died', ARGV[1])
return 1
"""

_SWEEP = """
local cursor, event, spare, most = unpack(ARGV)
local time, removed, lost, waiting = now(), 0, 0, 0
local function quoted(text) return string.sub(cjson.encode(text), 2, -2) end
local function tell_lost(device, node, last_beat)
  if lost == 0 then find_epoch(spare) end
  lost = lost + 1
  local seconds = string.format('%.0f', (time - last_beat) / 1000)
  local words = {device = quoted(device), node = quoted(node), seconds = seconds}
  announce(spare, most, (string.gsub(event, '{(%l+)}', words)))
end
local at_once = math.max(1, math.min(250, math.floor(most / 4)))
local found = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', at_once)
for i = 1, #found[2], 2 do
  local device, old, kept, from, last_beat = found[2][i], read(found[2][i + 1]), {}, nil, nil
  for _, p in ipairs(old) do
    local died = tonumber(redis.call('ZSCORE', P .. 'died', p.node .. '|' .. p.incarnation) or nil)
    if is_live(p) then kept[#kept + 1] = p
    elseif died and died > time - LEASE and died <= time then
      -- Its process may live, under a name that another took.
      kept[#kept + 1] = p
      waiting = 1
    elseif died and not from then from, last_beat = p.node, died end
  end
  if #kept < #old then
    removed = removed + #old - #kept
    put(KEYS[1], device, kept)
    if #kept == 0 and from and event ~= '' then tell_lost(device, from, last_beat) end
  end
end
return {found[1], removed, lost, waiting}
"""

_LEAVE = """
forget(ARGV[1])
return 1
"""

_FIND = """
local found = {}
for _, p in ipairs(read(redis.call('HGET', KEYS[1], ARGV[1]))) do
  if is_live(p) then found[#found + 1] = p end
end
return write(found)
"""

_TELL = """
local spare, most = ARGV[1], ARGV[2]
find_epoch(spare)
for i = 3, #ARGV do announce(spare, most, ARGV[i]) end
return 1
"""

_HEAR = """
local spare, known, after, most = unpack(ARGV)
local epoch = find_epoch(spare)
local last = redis.call('HGET', P .. 'events:at', 'number')
local from = epoch == known and tonumber(after) + 1 or 1
local found = redis.call('XRANGE', P .. 'events', string.format('%.0f-0', from), '+', 'COUNT', most)
for _, entry in ipairs(found) do
  if #(entry[2][2]) > MOST_BYTES then entry[2] = {'event', ''} end
end
return {epoch, last, found}
"""

SCRIPTS = {
    "claim": _CLAIM,
    "release": _RELEASE,
    "republish": _REPUBLISH,
    "beat": _BEAT,
    "complete": _COMPLETE,
    "sweep": _SWEEP,
    "leave": _LEAVE,
    "find": _FIND,
    "tell": _TELL,
    "hear": _HEAR,
}
"""The scripts by name, without the prelude that `whole` puts before them."""


_MOST_BYTES = 16_384
# Bytes of one node's record: it has two addresses and a certificate of some 500 bytes.

_LONGEST_ENTRY = 65_536
# Bytes that are read of one device's places: a place has some 200.

_LONGEST_MESSAGE = 1024
# Bytes of a message: it has a device and a generation.


def whole(name: str, *, lease: float, most_places: int, shards: int) -> str:
    """The script of that name as it is sent to Redis; *lease* in seconds, *shards* is how many
    hashes the devices are spread over."""
    numbers = {
        "LEASE": int(lease * 1000),
        "MOST_PLACES": most_places,
        "MOST_DIED": MOST_DIED,
        "DIED_JUST_NOW": int(DIED_JUST_NOW * 1000),
        "MOST_BYTES": _MOST_BYTES,
        "LONGEST_ENTRY": _LONGEST_ENTRY,
        "LONGEST_MESSAGE": _LONGEST_MESSAGE,
        "SHARDS": shards,
    }
    prelude = "".join(f"local {key} = {value}\n" for key, value in numbers.items())
    return prelude + _FUNCTIONS + SCRIPTS[name]

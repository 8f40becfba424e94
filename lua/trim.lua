#!lua flags=allow-oom
-- One part at a time trims the outbox, and head says which: keep its lease, and trim what is safe
-- elsewhere (Kafka has acknowledged it, or the ledger has committed it). Refuses everybody else.
--
-- KEYS  1 head      hash    epoch, seq, trimmer, lease, lease_until_ms, trimmed_seq, trimmed_bytes
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 holder    '<role>:<what tells this process from others>'
--       2 lease_ms  how long the lease lasts from now; 0 gives it back
--       3 role      becomes the trimmer; '' leaves whoever is
--       4 epoch     of the last event to trim; '' for none
--       5 seq       of the last event to trim
--       6 bytes     of the events to trim
--       7 opening   the epoch that was open when they were read; '' for whoever opens it himself
-- RETURNS {kept, trimmer} | {taken, holder, ms left} | {other_trimmer, trimmer} | {opened_anew} | {no_head}
--- @include lib/open.lua
--- @include lib/promoted.lua
--- @include lib/writes_when_full.lua
local LEASE_MAX_MS = 60000 -- a later end is from a clock that was set back since
local holder, lease_ms, role = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local epoch, seq, bytes, opening = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]

if not read_head() then
  return {'no_head'}
end
local kept = redis.call('HMGET', KEYS[1], 'lease', 'lease_until_ms', 'trimmer')
local left = (whole(kept[2]) or 0) - head.server_ms
if kept[1] and kept[1] ~= holder and left > 0 and left <= LEASE_MAX_MS then
  return {'taken', kept[1], left}
end
local trimmer = role ~= '' and role or kept[3] or ''
if epoch ~= '' and trimmer ~= string.match(holder, '^%a*') then
  return {'other_trimmer', trimmer} -- it took over while this one was away
end
if opening ~= '' and tonumber(opening) ~= head.epoch then
  return {'opened_anew'} -- what was read before is not what is in here now
end

begin_writes()
close_if_promoted()
redis.call('HSET', KEYS[1], 'lease', holder, 'lease_until_ms', integer(head.server_ms + lease_ms))
if role ~= '' then
  redis.call('HSET', KEYS[1], 'trimmer', role)
end
if epoch ~= '' then
  redis.call('XTRIM', KEYS[3], 'MINID', epoch .. '-' .. integer(seq + 1))
  local all = redis.call('XLEN', KEYS[3]) == 0
  local trimmed_seq = all and head.seq or math.max(head.trimmed_seq, math.min(seq, head.seq))
  local trimmed_bytes = all and head.written_bytes
    or math.min(head.trimmed_bytes + bytes, head.written_bytes)
  redis.call('HSET', KEYS[1], 'trimmed_seq', integer(trimmed_seq), 'trimmed_bytes', integer(trimmed_bytes))
end
return {'kept', trimmer}

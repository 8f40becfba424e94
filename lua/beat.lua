#!lua flags=allow-oom
-- Whose Redis is this? Head names its ledger, and who writes that ledger beats in it. Refuses another
-- ledger, and a copy of this one while the other beats.
--
-- KEYS  1 head      hash    epoch, seq, ledger, beat, beat_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 ledger    the identity of the ledger that is written to
--       2 beat      the new beat; '' for none any more
--       3 known     the last beats of this ledger's writers, each between two spaces
--       4 claim     1: the ledger is noted where head names none; 2: in place of any other
-- RETURNS {kept} | {other_ledger, its identity} | {beating, the other's beat, ms since it} | {no_head}
--- @include lib/open.lua
--- @include lib/promoted.lua
--- @include lib/writes_when_full.lua
local OVER_AFTER_MS = 10000 -- without a beat for so long its writer is gone
local ledger, beat, known, claim = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if not read_head() then
  return {'no_head'}
end
local kept = redis.call('HMGET', KEYS[1], 'ledger', 'beat', 'beat_ms')
if claim ~= '2' and kept[1] and kept[1] ~= ledger then
  return {'other_ledger', kept[1]}
end
local since = head.server_ms - (whole(kept[3]) or 0)
local is_known = not kept[2] or kept[2] == '' or string.find(known, ' ' .. kept[2] .. ' ', 1, true)
if not is_known and since >= 0 and since < OVER_AFTER_MS then
  return {'beating', kept[2], since}
end

begin_writes()
close_if_promoted()
redis.call('HSET', KEYS[1], 'beat', beat, 'beat_ms', integer(head.server_ms))
if claim == '1' or claim == '2' then
  redis.call('HSET', KEYS[1], 'ledger', ledger)
end
return {'kept'}

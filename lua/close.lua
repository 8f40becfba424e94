#!lua flags=allow-oom
-- Close a partition that was judged to have lost writes. Refuses where it was opened anew since: whoever
-- judged it was away meanwhile.
--
-- KEYS  1 head      hash    epoch, seq, run_id
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 epoch     as judged
--       2 run_id    of head as judged
-- RETURNS {closed} | {changed}
--- @include lib/open.lua
--- @include lib/writes_when_full.lua
local judged = {epoch = ARGV[1], run_id = ARGV[2]}

if not read_head() or integer(head.epoch) ~= judged.epoch or head.run_id ~= judged.run_id then
  return {'changed'}
end
begin_writes()
redis.call('HSET', KEYS[1], 'run_id', '')
return {'closed'}

#!lua flags=allow-oom
-- Open the partition into a new epoch, on the server that was judged. Refuses where head or server
-- have changed since they were judged: another process opened it, or Redis was restarted meanwhile.
-- A full server can be opened too, so that it can be emptied.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms, trimmer
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 epoch     as judged; '' where there was no head
--       2 seq       as judged; '' where there was no head
--       3 run_id    of head as judged; '' where there was no head
--       4 server    run_id of the server that was judged
--       5 replid    of the server that was judged
--       6 opening   the new epoch, above the judged one: nobody was ever given it before
--       7 trimmer   who trims the outbox where head names nobody yet
-- RETURNS {opened, epoch} | {changed} | {outbox_ahead, last id}: an event was written that head does
--         not know, so the next one could not be written
--- @include lib/open.lua
--- @include lib/writes_when_full.lua
local judged = {epoch = ARGV[1], seq = ARGV[2], run_id = ARGV[3], server = ARGV[4], replid = ARGV[5]}
local opening, trimmer = whole(ARGV[6]), ARGV[7]

local kept = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'run_id')
if (kept[1] or '') ~= judged.epoch or (kept[2] or '') ~= judged.seq
    or (kept[3] or '') ~= judged.run_id or not runs_as(judged.server) or not replicates_as(judged.replid) then
  return {'changed'}
end

local seq = whole(kept[2]) or 0
if not opening or opening <= (whole(kept[1]) or 0) then
  return redis.error_reply('ERR epoch ' .. ARGV[6] .. ' is not above the judged one')
end
local trimmed_seq = seq -- where head does not tell: all before the first entry
if redis.call('EXISTS', KEYS[3]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[3])
  for i = 1, #info, 2 do
    local last_epoch, last_seq = string.match(info[i] == 'last-generated-id' and info[i + 1] or '', '(%d+)-(%d+)')
    if last_epoch and (tonumber(last_epoch) >= opening or tonumber(last_seq) > seq) then
      return {'outbox_ahead', info[i + 1]}
    end
    if info[i] == 'first-entry' and info[i + 1] then
      trimmed_seq = tonumber(string.match(info[i + 1][1], '-(%d+)')) - 1
    end
  end
end

read_head()
begin_writes()
redis.call('HSET', KEYS[1], 'epoch', integer(opening), 'seq', integer(seq), 'run_id', judged.server,
  'replid', judged.replid, 'last_ms', integer(head.now))
redis.call('HSETNX', KEYS[1], 'trimmer', trimmer) -- a relay may have taken over since head was judged
redis.call('HSETNX', KEYS[1], 'trimmed_seq', integer(trimmed_seq))
return {'opened', opening}

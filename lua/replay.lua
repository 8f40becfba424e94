#!lua flags=allow-oom
-- Bring a closed partition from an earlier event of the ledger to a later one: what those events changed,
-- with what a repeated call is to be answered, but without telling them to the outbox again.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 events    msgpack [[type, epoch, seq, at_ms, id of the reservation or movement, lines, …], …], the
--                   first one head's next; then of a reserve deadline and tail, of an extend the deadline,
--                   of confirm, release and expire request_id, fingerprint of the part or '' and the state
--                   after it, of a repair the state (-1 for none), of an adopt the state, deadline, creation,
--                   tail and parts, of a movement its fingerprint
--       2 retention_ms     how long an ended reservation and an applied movement are remembered
--       3 lifetime_max_ms  how long after its creation a reservation can be extended to
--       4 with_due  1: put the holds on the lists of their deadlines; 0: the caller does that at the end
--       5 hole_from  where the ledger has lost events that come next: the first one's seq; else ''
--       6 hole_to    the last one's seq: go on behind it
-- RETURNS {replayed, damaged keys} | {changed}: it is open, or its head is not at the event before
--- @include lib/acknowledged.lua
--- @include lib/replay.lua
--- @include lib/writes_when_full.lua
local events = cmsgpack.unpack(ARGV[1])
local limits = {retention_ms = tonumber(ARGV[2]), lifetime_max_ms = tonumber(ARGV[3]), with_due = ARGV[4] == '1'}

local hole_from, hole_to = tonumber(ARGV[5]), tonumber(ARGV[6])

if is_open() or not (head.epoch and head.seq) or (hole_from and hole_from ~= head.seq + 1) then
  return {'changed'}
end
head.seq = hole_to or head.seq
for i, e in ipairs(events) do
  if e[3] ~= head.seq + i or e[2] < head.epoch then
    return {'changed'}
  end
end

begin_writes()
head.now = math.max(head.now, events[#events][4]) -- a partition's clock never runs back
for _, e in ipairs(events) do
  replay(e, limits)
end
write_stocks()
write_due_lists()
redis.call('HSET', KEYS[1], 'epoch', integer(head.epoch), 'seq', integer(head.seq), 'last_ms',
  integer(events[#events][4]))
if not has_after(acknowledged_epoch(), head.acknowledged_seq) then
  redis.call('HSET', KEYS[1], 'acknowledged_seq', integer(head.seq)) -- nothing of it is still to be shipped
end
if redis.call('XLEN', KEYS[3]) == 0 then
  redis.call('HSET', KEYS[1], 'trimmed_seq', integer(head.seq))
end
return {'replayed', damaged}

#!lua flags=allow-oom
-- Tell the outbox of a closed partition what a ledger has to take over that has lost events for good. The
-- units here are right and stay; only the seqs of what is told move to those of the events that tell it.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 events    msgpack [[id or '', order_id, customer_id, created, deadline, fingerprint, state or -1,
--                   parts, hole, reference, reason, lines], …] (engine/events.py has what they mean)
--       2 epoch     of head as judged
--       3 seq       of head as judged
--       4 opening   the new epoch, above the judged one: nobody was ever given it before
-- RETURNS {told, seq} | {changed}: it is open, or head is another one
--- @include lib/outbox.lua
--- @include lib/reservation.lua
--- @include lib/stock.lua
--- @include lib/writes_when_full.lua
local judged_epoch, judged_seq, opening = ARGV[2], ARGV[3], tonumber(ARGV[4])

if is_open() or not (head.epoch and head.seq) or integer(head.epoch) ~= judged_epoch
    or integer(head.seq) ~= judged_seq then
  return {'changed'}
end

begin_writes()
head.epoch = opening
for _, e in ipairs(cmsgpack.unpack(ARGV[1])) do
  local seq, lines = next_seq(), e[12]
  local r = e[1] ~= '' and read_reservation(e[1])
  if r then
    redis.call('SET', r.key, pack_reservation(r, r.state, r.deadline, seq, r.parts), 'KEEPTTL')
  end
  for i = 1, #lines, 6 do
    local s = stock(lines[i], lines[i + 1]) or create_stock(lines[i], lines[i + 1])
    if not s.damaged then
      apply(s, 0, 0, seq)
    end
  end
  emit(cmsgpack.pack({'adopt', seq, head.now, unpack(e)}))
end
write_stocks()
write_outbox()
redis.call('HSET', KEYS[1], 'epoch', integer(head.epoch))
return {'told', head.seq}

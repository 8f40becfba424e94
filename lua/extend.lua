#!lua
-- Move the deadline of held reservations to now + ttl, never to an earlier one and never past what
-- a reservation may last. The entry on the list of the old deadline stays and is passed over.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack, flat: reservation_id, ttl_ms, …
--       2 lifetime_max_ms  how long after its creation a reservation can be extended to
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         {unknown_reservation} | {already_confirmed, value} | {already_released, value} |
--         {reservation_expired, value} | {lifetime_exceeded, value} | {extended, value} | more_due;
--         partition_closed for the whole call (engine/statuses.py)
--- @include lib/writes_unless_full.lua
--- @include lib/batch.lua
--- @include lib/due.lua
--- @include lib/extension.lua
--- @include lib/finish.lua
local values, lifetime_max_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])
local EXTEND_EVENT = '\155' .. cmsgpack.pack('extend')

if not is_open() then
  return 'partition_closed'
end
refuse_when_full()

check_ttls(values)

local function decide(at)
  local id, ttl_ms = values[at], values[at + 1]
  local answer, r, deadline = extension(id, ttl_ms)
  if answer then
    return answer
  elseif head.now + ttl_ms > r.created + lifetime_max_ms then
    return {'lifetime_exceeded', r.value}
  end
  local seq = next_seq()
  local value = pack_reservation(r, HELD, deadline, seq, r.parts)
  begin_writes()
  redis.call('SET', r.key, value)
  add_due(deadline, id)
  emit(EXTEND_EVENT, value, cmsgpack.pack(head.now, id))
  return {'extended', value}
end

local answers = decide_each(values, starts_every(2, values), decide)
write_due_lists()
return finish(answers)

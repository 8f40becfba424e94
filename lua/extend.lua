#!lua
-- Move the deadline of held reservations to now + ttl, never to an earlier one and never past what
-- a reservation may last. The entry on the list of the old deadline stays and is passed over.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack [[reservation_id, ttl_ms], …]
--       2 lifetime_max_ms  how long after its creation a reservation can be extended to
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         {unknown_reservation} | {already_confirmed, value} | {already_released, value} |
--         {reservation_expired, value} | {lifetime_exceeded, value} | {extended, value} | more_due;
--         partition_closed for the whole call (engine/statuses.py)
--- @include lib/writes_unless_full.lua
--- @include lib/batch.lua
--- @include lib/due.lua
--- @include lib/ended.lua
--- @include lib/finish.lua
local commands, lifetime_max_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])

if not is_open() then
  return 'partition_closed'
end
refuse_when_full()

for _, command in ipairs(commands) do
  if not is_quantity(command[2]) then
    return redis.error_reply('ERR ttl_ms ' .. tostring(command[2]) .. ' is not 1 or more')
  end
end

local function decide(command)
  local id, ttl_ms = command[1], command[2]
  local r = read_reservation(id)
  if not r then
    return {'unknown_reservation'}
  end
  if r.state ~= HELD then
    return {ENDED_STATUS[r.state], r.value}
  elseif r.deadline <= head.now then
    return {'reservation_expired', r.value}
  end
  local deadline = math.ceil((head.now + ttl_ms) / 100) * 100
  if deadline <= r.deadline then
    return {'extended', r.value}
  elseif head.now + ttl_ms > r.created + lifetime_max_ms then
    return {'lifetime_exceeded', r.value}
  end
  local seq = next_seq()
  local value = pack_reservation(HELD, r.created, deadline, seq, r.parts, r.body_bytes)
  begin_writes()
  redis.call('SET', r.key, value)
  add_due(deadline, id)
  emit('\150', cmsgpack.pack('extend', head.now, deadline, seq, id), r.body_bytes)
  return {'extended', value}
end

local answers = decide_each(commands, decide, function() return lines_read end)
write_due_lists()
return finish(answers)

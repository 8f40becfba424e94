#!lua flags=allow-oom
-- Mend what reconciliation found, by events: what was found without one is told first, then what takes
-- it back. The ledger applies all lines of an event, Redis only its share.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack, each with its reason first (persister/repair.py); tail: lua/lib/reservation.lua
--                   [reason, 'create', sku, location]: a record that is missing or can't be read, of zeros
--                   [reason, 'correct', sku, location, on_hand, held, quarantined]: take this drift off
--                   [reason, 'give_back', id, created, deadline, parts, tail]: a live reservation of the
--                   ledger that is missing or can't be read ends as released, its units are given back
--                   [reason, 'restore', id, created, deadline, parts, tail, value]: as the ledger has it
--                   [reason, 'end', id, value]: a hold that the ledger doesn't have ends as released;
--                   value: what was judged, byte for byte
--       2 retention_ms  how long an ended reservation is kept
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order: {repaired, epoch, seq} |
--         {changed}: it is no longer as it was judged; partition_closed for the whole call
--- @include lib/writes_when_full.lua
--- @include lib/finish.lua
--- @include lib/mend.lua
local commands, retention_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])

if not is_open() then
  return 'partition_closed'
end

local answers = {}
for i, command in ipairs(commands) do
  local seq = mend(command, retention_ms)
  answers[i] = seq and {'repaired', head.epoch, seq} or {'changed'}
end
write_due_lists()
return finish(answers)

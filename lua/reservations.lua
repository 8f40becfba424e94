#!lua flags=no-writes
-- Read many reservations at once.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  msgpack [reservation_id, …]
-- RETURNS {now_ms, answers, damaged keys}, an answer an id, in order: its value
--         (lua/lib/reservation.lua), or nil for an unknown_reservation | more_due;
--         partition_closed for the whole call
--- @include lib/batch.lua
--- @include lib/open.lua
--- @include lib/reservation.lua
local ids = cmsgpack.unpack(ARGV[1])

if not is_open() then
  return 'partition_closed'
end

local function value_of(at)
  local r = read_reservation(ids[at])
  return r and r.value or false
end

return {head.now, decide_each(ids, starts_every(1, ids), value_of), damaged}

#!lua flags=no-writes
-- Read many reservations at once.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  msgpack [reservation_id, …]
-- RETURNS {now_ms, answers, damaged keys}, an answer an id, in order: its value
--         (lua/lib/reservation.lua), or nil for an unknown_reservation; partition_closed for the
--         whole call
--- @include lib/open.lua
--- @include lib/reservation.lua
local answers = {}

if not is_open() then
  return 'partition_closed'
end

for i, id in ipairs(cmsgpack.unpack(ARGV[1])) do
  local r = read_reservation(id)
  answers[i] = r and r.value or false
end
return {head.now, answers, damaged}

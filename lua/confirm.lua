#!lua flags=allow-oom
-- The customer paid: units of held reservations leave the house (on_hand and held go down).
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack, flat: reservation_id, request_id or '', fingerprint or '', wanted, …;
--                   wanted flat as well: sku, location or '', quantity; or 0 for all that is left
--       2 retention_ms     how long an ended reservation is kept
--       3 lifetime_max_ms  how long after its creation a reservation can be extended to
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         {unknown_reservation} | {request_mismatch} | {already_confirmed, value} |
--         {already_released, value} | {reservation_expired, value} | {invalid_request, sku} |
--         {exceeds_reservation, sku, what is left} | value: confirmed (or {confirmed, value, 1} where it
--         was answered before) | more_due; partition_closed for the whole call (engine/statuses.py)
--- @include lib/writes_when_full.lua
--- @include lib/batch.lua
--- @include lib/finish.lua
--- @include lib/settle.lua
local values, retention_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])
local lifetime_max_ms = tonumber(ARGV[3])

if not is_open() then
  return 'partition_closed'
end

check_wanted(values)
return finish(decide_each(values, starts_every(4, values), function(at)
  return settle('confirm', 'confirmed', values, at, retention_ms, lifetime_max_ms)
end))

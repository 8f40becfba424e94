#!lua flags=allow-oom
-- Take back the units of reservations whose deadline has passed, the oldest lists first.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 entries_max   how many entries of the deadline lists to look at, at most
--       2 retention_ms  how long an ended reservation is kept
-- RETURNS {now_ms, {entries looked at, reservations expired, 1 if more is due}, damaged keys};
--         partition_closed for the whole call
--- @include lib/writes_when_full.lua
--- @include lib/finish.lua
--- @include lib/promoted.lua
--- @include lib/take_back.lua
local entries_max, retention_ms = tonumber(ARGV[1]), tonumber(ARGV[2])

if not is_open() then
  close_if_promoted()
  return 'partition_closed'
end

local looked_at, expired = take_back(entries_max, retention_ms)
return finish({looked_at, expired, nothing_due and 0 or 1})
